//! The door for operators on this host: a Unix socket in the state directory.
//!
//! One command per connection, as JSON over HTTP. The socket is its owner's
//! only, or a group's where the configuration names one; who asks is whom the
//! kernel says (`SO_PEERCRED`), and what he may is the roster's to say. A PIN
//! is in no command: it comes before it as a descriptor ([`Handed`]), on an
//! empty line, and goes on to the bridge unread.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::response::IntoResponse;
use axum::routing::post;
use axum::{Extension, Json, Router};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tower::ServiceExt as _;

use super::{ServerError, passing};
use crate::admin::{self, Command, Reply};
use crate::bridge::pin::Handed;
use crate::config::OperatorsConfig;
use crate::local;
use crate::operators::{Asker, Shown, Whence};
use crate::problem::Problem;
use crate::service::Service;

/// Largest command, and largest answer to one, bytes.
pub(super) const ANSWER: usize = 64 << 20;

/// The longest that a command may take: RSA-4096 on a slow token takes minutes.
pub(super) const PATIENCE: Duration = Duration::from_secs(660);

/// How long somebody may take to begin his command.
const BEGINS: Duration = Duration::from_secs(10);

/// Connections at once, and those of one user: others than the owner may connect.
const CONNECTIONS: usize = 64;
const OF_ONE_USER: usize = 16;

/// Opens the socket, replacing one that nobody listens on.
pub(super) fn listen(
    path: &Path,
    operators: &OperatorsConfig,
) -> Result<UnixListener, ServerError> {
    let fail = |source| ServerError::Listen {
        place: path.display().to_string(),
        source,
    };
    let group = operators
        .group_id()
        .map_err(|reason| fail(io::Error::new(io::ErrorKind::NotFound, reason)))?;
    local::listen_for(path, group).map_err(fail)
}

/// Who has how many connections.
type Users = Arc<Mutex<HashMap<u32, usize>>>;

/// A connection of one user; counted until it is dropped.
struct Place {
    users: Users,
    user: u32,
}

impl Place {
    fn take(users: &Users, user: u32) -> Option<Self> {
        let mut all = users.lock().unwrap_or_else(PoisonError::into_inner);
        let many: usize = all.values().sum();
        let his = all.entry(user).or_default();
        if *his >= OF_ONE_USER || many >= CONNECTIONS {
            return None;
        }
        *his += 1;
        drop(all);
        Some(Self {
            users: Arc::clone(users),
            user,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut all = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(his) = all.get_mut(&self.user) {
            *his -= 1;
            if *his == 0 {
                all.remove(&self.user);
            }
        }
    }
}

/// Accepts until told to stop.
pub(super) async fn accept(
    door: UnixListener,
    service: Arc<Service>,
    mut stopped: watch::Receiver<bool>,
) {
    let router = Router::new()
        .route("/command", post(run))
        // A drive table of tens of thousands of rows comes in one command.
        .layer(axum::extract::DefaultBodyLimit::max(ANSWER))
        .with_state(service);
    let mut connections = JoinSet::new();
    let users = Users::default();
    loop {
        let accepted = tokio::select! {
            accepted = door.accept() => accepted,
            _ = stopped.wait_for(|stopped| *stopped) => break,
        };
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((stream, _)) => {
                connections.spawn(serve(router.clone(), stream, Arc::clone(&users)));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept an operator's connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    while connections.join_next().await.is_some() {}
}

async fn serve(router: Router, stream: UnixStream, users: Users) {
    let user = match local::user(&stream) {
        Ok(user) => user,
        Err(stranger) => {
            tracing::warn!("an operator's connection was closed: {stranger}");
            return;
        }
    };
    let Some(_place) = Place::take(&users, user) else {
        tracing::warn!(
            user,
            "an operator's connection was closed: too many are open"
        );
        return;
    };
    let asker = Asker {
        shown: Shown::Unix(user),
        whence: Whence::Socket,
    };
    let conversation = async {
        let begun = tokio::time::timeout(BEGINS, passing::receive(&stream)).await;
        let pin = begun.map_err(io::Error::other)??;
        let service = service_fn(move |mut request: hyper::Request<Incoming>| {
            request.extensions_mut().insert(asker.clone());
            request.extensions_mut().insert(pin.clone());
            router.clone().oneshot(request)
        });
        hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(BEGINS)
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), service)
            .await
            .map_err(io::Error::other)
    };
    if let Ok(Err(error)) = tokio::time::timeout(PATIENCE, conversation).await {
        tracing::debug!(%error, "an operator's connection ended");
    }
}

async fn run(
    axum::extract::State(service): axum::extract::State<Arc<Service>>,
    Extension(asker): Extension<Asker>,
    Extension(pin): Extension<Option<Handed>>,
    Json(command): Json<Command>,
) -> axum::response::Response {
    perform(service, asker, command, pin).await
}

/// Does it to its end, whatever becomes of the connection.
pub(super) async fn perform(
    service: Arc<Service>,
    asker: Asker,
    command: Command,
    pin: Option<Handed>,
) -> axum::response::Response {
    let work = {
        let service = Arc::clone(&service);
        async move { admin::perform(&service, &asker, command, pin).await }
    };
    match service.to_the_end(work).await {
        Ok(reply) => Json(reply).into_response(),
        Err(problem) => problem.into_response(),
    }
}

/// Why a command could not be put to the running server.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// Nobody listens: no server runs.
    #[error("no server listens on {0}")]
    NoServer(PathBuf),
    /// The server said no.
    #[error(transparent)]
    Refused(Problem),
    /// The asker's own files, before anybody was asked.
    #[error("{0}")]
    Own(String),
    /// There is no connection to the address.
    #[error("{0}")]
    Unreached(String),
    /// The server ended the connection without a word.
    #[error(
        "the server at {place} ended the connection: is your certificate revoked, over, or of another CA? ({reason})"
    )]
    Ended {
        /// Address and port.
        place: String,
        /// How it ended.
        reason: String,
    },
    /// The drives' door.
    #[error(
        "{0} is the drives' door, and takes no operators' commands; theirs is at the port of [operators] listen in the server's configuration"
    )]
    DrivesDoor(String),
    /// The conversation failed.
    #[error("the server at {place} did not answer properly: {reason}")]
    Talk {
        /// The socket, or address and port.
        place: String,
        /// What went wrong.
        reason: String,
    },
}

/// Puts a command to the server that listens on the socket.
///
/// # Errors
/// [`OperatorError::NoServer`] where none runs.
pub async fn ask(path: &Path, command: &Command) -> Result<Reply, OperatorError> {
    ask_with_pin(path, command, None).await
}

/// The same with a PIN, which the server hands on to a bridge.
///
/// # Errors
/// [`OperatorError::NoServer`] where none runs.
pub async fn ask_with_pin(
    path: &Path,
    command: &Command,
    pin: Option<&Handed>,
) -> Result<Reply, OperatorError> {
    let talk = |reason: String| OperatorError::Talk {
        place: path.display().to_string(),
        reason,
    };
    let stream = UnixStream::connect(path)
        .await
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                OperatorError::NoServer(path.to_owned())
            }
            _ => talk(error.to_string()),
        })?;
    if let Some(pin) = pin {
        passing::send(&stream, pin)
            .await
            .map_err(|error| talk(error.to_string()))?;
    }
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| talk(error.to_string()))?;
    let driver = tokio::spawn(connection);
    let body = serde_json::to_vec(command).map_err(|error| talk(error.to_string()))?;
    let request = hyper::Request::post("/command")
        .header("host", "ekm")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| talk(error.to_string()))?;
    let response = tokio::time::timeout(PATIENCE, sender.send_request(request))
        .await
        .map_err(|_| talk(format!("no answer within {} s", PATIENCE.as_secs())))?
        .map_err(|error| talk(error.to_string()))?;
    let status = response.status().as_u16();
    let body = Limited::new(response.into_body(), ANSWER)
        .collect()
        .await
        .map_err(|error| talk(error.to_string()))?
        .to_bytes();
    driver.abort();
    read(status, &body).map_err(|error| match error {
        Ok(problem) => OperatorError::Refused(problem),
        Err(reason) => talk(reason),
    })
}

/// The reply in an answer; a problem, or what is wrong with the answer.
pub(super) fn read(status: u16, body: &[u8]) -> Result<Reply, Result<Problem, String>> {
    if (200..300).contains(&status) {
        return serde_json::from_slice(body).map_err(|error| Err(error.to_string()));
    }
    match serde_json::from_slice(body) {
        Ok(problem) => Err(Ok(problem)),
        Err(_) => Err(Err(String::from_utf8_lossy(body).into_owned())),
    }
}
