//! One try: a connection, an exchange, and what came of it.

use std::sync::Arc;
use std::time::Duration;

use hyper::body::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout, timeout_at};

use super::link::Link;
use super::{Inner, ServiceError, SessionKeys};
use crate::api::{ChallengeAnswer, SessionKeyInRequest};
use crate::client::{Wire, WireError};
use crate::problem::Problem;

/// What is asked.
pub(super) struct Call<'a, 's> {
    pub(super) path: &'static str,
    /// Whether it makes something that another server would make once more.
    pub(super) makes: bool,
    pub(super) session: Option<&'s mut (dyn SessionKeys + 's)>,
    pub(super) body:
        &'a (dyn Fn(Option<SessionKeyInRequest>) -> Result<Bytes, ServiceError> + Send + Sync),
}

/// Why one try brought no answer.
pub(super) enum Miss {
    NotSent(String),
    Lost(String),
    Late(Duration),
    Unusable(String),
    Refused(Box<Problem>),
    Fatal(ServiceError),
}

impl Inner {
    /// One try, on a connection that rests or on a new one.
    pub(super) async fn attempt<T: DeserializeOwned>(
        &self,
        link: &Arc<Link>,
        call: &mut Call<'_, '_>,
        limit: Duration,
    ) -> Result<T, Miss> {
        let _exchange = link.exchange();
        let until = Instant::now() + limit;
        let server = link.address();
        if let Some(mut wire) = self.pool.take(server) {
            let outcome = timeout_at(until, over(&mut wire, call)).await;
            match outcome {
                // A server may end a connection that rests; this tells nothing yet.
                Ok(Err(Miss::NotSent(_) | Miss::Lost(_))) => {}
                Ok(outcome) => {
                    self.pool.keep(server, wire);
                    return outcome;
                }
                Err(_) => return Err(Miss::Late(limit)),
            }
        }
        let mut wire = self.connect(link, until).await?;
        let outcome = timeout_at(until, over(&mut wire, call))
            .await
            .unwrap_or(Err(Miss::Late(limit)));
        if !matches!(
            outcome,
            Err(Miss::NotSent(_) | Miss::Lost(_) | Miss::Late(_))
        ) {
            self.pool.keep(server, wire);
        }
        outcome
    }

    /// A new connection; for who has a turn.
    pub(super) async fn connect(&self, link: &Link, until: Instant) -> Result<Wire, Miss> {
        let late = |_| Miss::NotSent("no room for a connection".to_owned());
        let room = timeout_at(until, self.pool.room()).await.map_err(late)?;
        let server = link.address().to_string();
        let limit = self
            .times
            .connect
            .min(until.saturating_duration_since(Instant::now()));
        let opened = timeout(limit, Wire::open(&server, self.tls.current(), room)).await;
        opened
            .unwrap_or_else(|_| Err(format!("no connection within {}", in_seconds(limit))))
            .map_err(Miss::NotSent)
    }
}

impl Miss {
    /// What follows the server's name in a sentence.
    pub(super) fn told(&self) -> String {
        match self {
            Self::NotSent(reason) => format!("cannot be reached: {reason}"),
            Self::Lost(reason) => format!("took the request and gave no answer: {reason}"),
            Self::Late(limit) => format!("did not answer within {}", in_seconds(*limit)),
            Self::Unusable(reason) => format!("did not answer properly: {reason}"),
            Self::Refused(problem) => problem.to_string(),
            Self::Fatal(error) => error.to_string(),
        }
    }
}

impl From<WireError> for Miss {
    fn from(error: WireError) -> Self {
        match error {
            WireError::NotSent(reason) => Self::NotSent(reason),
            WireError::Lost(reason) => Self::Lost(reason),
        }
    }
}

async fn over<T: DeserializeOwned>(wire: &mut Wire, call: &mut Call<'_, '_>) -> Result<T, Miss> {
    let signed = match &mut call.session {
        None => None,
        Some(drive) => {
            let (status, body) = wire
                .post("/v1/challenge", Bytes::from_static(b"null"))
                .await?;
            let answer: ChallengeAnswer = answer(status, &body)?;
            let signed = drive.sign(&answer.challenge.0);
            Some(signed.map_err(|reason| Miss::Fatal(ServiceError::Session(reason)))?)
        }
    };
    let body = (call.body)(signed).map_err(Miss::Fatal)?;
    let (status, body) = wire.post(call.path, body).await?;
    answer(status, &body)
}

fn answer<T: DeserializeOwned>(status: u16, body: &[u8]) -> Result<T, Miss> {
    if (200..300).contains(&status) {
        // The error's own words may quote what the answer holds, and it holds a key.
        return serde_json::from_slice(body).map_err(|error| {
            let (line, column) = (error.line(), error.column());
            Miss::Unusable(format!(
                "its JSON is not what was expected at line {line} column {column}"
            ))
        });
    }
    Err(match serde_json::from_slice::<Problem>(body) {
        Ok(problem) => Miss::Refused(Box::new(problem)),
        Err(_) => Miss::Unusable(format!("HTTP status {status}")),
    })
}

pub(super) fn written(request: &impl Serialize) -> Result<Bytes, ServiceError> {
    serde_json::to_vec(request)
        .map(Bytes::from)
        .map_err(|error| ServiceError::Request(error.to_string()))
}

pub(super) fn in_seconds(time: Duration) -> String {
    let tenths = time.as_millis() / 100;
    match (tenths / 10, tenths % 10) {
        (whole, 0) => format!("{whole} s"),
        (whole, tenth) => format!("{whole}.{tenth} s"),
    }
}
