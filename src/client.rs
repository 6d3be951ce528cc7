//! A key server's client: what a drive, a proxy or a test speaks to `/v1/keys/…`.

mod wire;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Bytes;
use rustls::ClientConfig;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api::{
    ChallengeAnswer, ConfirmAnswer, ConfirmRequest, CreateAnswer, CreateRequest, RekeyAnswer,
    RekeyRequest, ResolveAnswer, ResolveRequest,
};
use crate::problem::Problem;
use crate::tls::TlsError;

pub(crate) use wire::{EARLY, OpenError, Wire, WireError};

/// Time for one exchange, connecting included; drives wait for 300 s.
const PATIENCE: Duration = Duration::from_secs(90);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The server said no.
    #[error("{0}")]
    Refused(Problem),
    /// It cannot be reached, or not trusted.
    #[error("cannot reach the key server {server}: {reason}")]
    Reach {
        /// Address and port.
        server: String,
        /// What went wrong.
        reason: String,
    },
    /// What it said is no answer.
    #[error("the key server {server} did not answer properly: {reason}")]
    Answer {
        /// Address and port.
        server: String,
        /// What went wrong.
        reason: String,
    },
    /// The client's own certificate or the CA.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// A connection to one key server, opened when first needed and again when lost.
#[derive(Debug)]
pub struct KeyClient {
    server: String,
    tls: Arc<ClientConfig>,
    open: Option<Wire>,
}

impl KeyClient {
    /// A client of `host:port` with the certificate files given.
    ///
    /// # Errors
    /// The certificate files are wrong.
    pub fn new(
        server: &str,
        ca: &Path,
        certificate: &Path,
        key: &Path,
    ) -> Result<Self, ClientError> {
        Ok(Self {
            server: server.to_owned(),
            tls: Arc::new(crate::tls::client_config(ca, certificate, key)?),
            open: None,
        })
    }

    /// `POST /v1/keys/create`
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn create(&mut self, request: &CreateRequest) -> Result<CreateAnswer, ClientError> {
        self.post("/v1/keys/create", request).await
    }

    /// `POST /v1/keys/resolve`
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn resolve(
        &mut self,
        request: &ResolveRequest,
    ) -> Result<ResolveAnswer, ClientError> {
        self.post("/v1/keys/resolve", request).await
    }

    /// `POST /v1/keys/rekey`
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn rekey(&mut self, request: &RekeyRequest) -> Result<RekeyAnswer, ClientError> {
        self.post("/v1/keys/rekey", request).await
    }

    /// `POST /v1/keys/confirm`
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn confirm(
        &mut self,
        request: &ConfirmRequest,
    ) -> Result<ConfirmAnswer, ClientError> {
        self.post("/v1/keys/confirm", request).await
    }

    /// `POST /v1/challenge`
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn challenge(&mut self) -> Result<Vec<u8>, ClientError> {
        let answer: ChallengeAnswer = self.post("/v1/challenge", &()).await?;
        Ok(answer.challenge.0)
    }

    /// A `GET` of that path: status and body.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn get(&mut self, path: &str) -> Result<(u16, Bytes), ClientError> {
        self.send(path, None).await
    }

    /// A `POST` of any body: status and body.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn post_raw(&mut self, path: &str, body: Bytes) -> Result<(u16, Bytes), ClientError> {
        self.send(path, Some(body)).await
    }

    async fn post<T: DeserializeOwned>(
        &mut self,
        path: &str,
        request: &(impl Serialize + Sync),
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(request).map_err(|error| self.answer(error))?;
        let (status, body) = self.post_raw(path, body.into()).await?;
        if (200..300).contains(&status) {
            return serde_json::from_slice(&body).map_err(|error| self.answer(error));
        }
        match serde_json::from_slice(&body) {
            Ok(problem) => Err(ClientError::Refused(problem)),
            Err(_) => Err(self.answer(format!("status {status}"))),
        }
    }

    async fn send(&mut self, path: &str, body: Option<Bytes>) -> Result<(u16, Bytes), ClientError> {
        let server = self.server.clone();
        tokio::time::timeout(PATIENCE, self.exchange(path, body))
            .await
            .unwrap_or_else(|_| {
                Err(ClientError::Reach {
                    server,
                    reason: format!("no answer within {} s", PATIENCE.as_secs()),
                })
            })
    }

    async fn exchange(
        &mut self,
        path: &str,
        body: Option<Bytes>,
    ) -> Result<(u16, Bytes), ClientError> {
        // A server may end a connection that waits, so the first failure on
        // one that was used before tells nothing. Requests carry their id:
        // asking again is safe.
        if let Some(mut used) = self.open.take()
            && let Ok(answer) = over(&mut used, path, body.clone()).await
        {
            self.open = Some(used);
            return Ok(answer);
        }
        let mut fresh = Wire::open(&self.server, Arc::clone(&self.tls), ())
            .await
            .map_err(|reason| self.reach(reason))?;
        let answer = over(&mut fresh, path, body)
            .await
            .map_err(|error| self.reach(error))?;
        self.open = Some(fresh);
        Ok(answer)
    }

    fn reach(&self, reason: impl std::fmt::Display) -> ClientError {
        ClientError::Reach {
            server: self.server.clone(),
            reason: reason.to_string(),
        }
    }

    fn answer(&self, reason: impl std::fmt::Display) -> ClientError {
        ClientError::Answer {
            server: self.server.clone(),
            reason: reason.to_string(),
        }
    }
}

async fn over(wire: &mut Wire, path: &str, body: Option<Bytes>) -> Result<(u16, Bytes), WireError> {
    match body {
        Some(body) => wire.post(path, body).await,
        None => wire.get(path).await,
    }
}
