//! The door for operators on this host: a Unix socket in the state directory.
//!
//! One command per connection, as JSON over HTTP. The directory is open to
//! its owner only, and the peer's user is checked besides. A PIN is in no
//! command: it comes before it as a descriptor ([`Handed`]), on an empty line,
//! and goes on to the bridge unread.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::response::IntoResponse;
use axum::routing::post;
use axum::{Extension, Json, Router};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tower::ServiceExt as _;

use super::{ServerError, passing};
use crate::admin::{self, Command, Reply};
use crate::bridge::pin::Handed;
use crate::problem::Problem;
use crate::service::Service;

/// Largest answer to a command, bytes.
const ANSWER: usize = 64 << 20;

/// The longest that a command may take: RSA-4096 on a slow token takes minutes.
const PATIENCE: Duration = Duration::from_secs(660);

/// Who an operator is in records: `operator:uid 0`.
#[derive(Clone, Debug)]
struct Operator(String);

/// Opens the socket, replacing one that nobody listens on.
pub(super) fn listen(path: &Path) -> Result<UnixListener, ServerError> {
    let fail = |source| ServerError::Listen {
        place: path.display().to_string(),
        source,
    };
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(fail(std::io::Error::new(
            std::io::ErrorKind::AddrInUse,
            "another ekm process works on this site: a server listens there",
        )));
    }
    match std::fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(fail(error)),
    }
    let listener = UnixListener::bind(path).map_err(fail)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(fail)?;
    Ok(listener)
}

/// Accepts until told to stop.
pub(super) async fn accept(
    door: UnixListener,
    service: Arc<Service>,
    mut stopped: watch::Receiver<bool>,
) {
    let router = Router::new()
        .route("/command", post(run))
        .with_state(service);
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = door.accept() => accepted,
            _ = stopped.wait_for(|stopped| *stopped) => break,
        };
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((stream, _)) => {
                connections.spawn(serve(router.clone(), stream));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept an operator's connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    while connections.join_next().await.is_some() {}
}

async fn serve(router: Router, stream: UnixStream) {
    let own = rustix::process::geteuid().as_raw();
    let user = match stream.peer_cred() {
        Ok(credentials) => credentials.uid(),
        Err(error) => {
            tracing::warn!(%error, "an operator's connection was closed: the peer's user is not known");
            return;
        }
    };
    if user != 0 && user != own {
        tracing::warn!(user, "an operator's connection was closed: another user");
        return;
    }
    let operator = Operator(format!("operator:uid {user}"));
    let conversation = async {
        let pin = passing::receive(&stream).await?;
        let service = service_fn(move |mut request: hyper::Request<Incoming>| {
            request.extensions_mut().insert(operator.clone());
            request.extensions_mut().insert(pin.clone());
            router.clone().oneshot(request)
        });
        hyper::server::conn::http1::Builder::new()
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), service)
            .await
            .map_err(std::io::Error::other)
    };
    if let Ok(Err(error)) = tokio::time::timeout(PATIENCE, conversation).await {
        tracing::debug!(%error, "an operator's connection ended");
    }
}

async fn run(
    axum::extract::State(service): axum::extract::State<Arc<Service>>,
    Extension(Operator(operator)): Extension<Operator>,
    Extension(pin): Extension<Option<Handed>>,
    Json(command): Json<Command>,
) -> axum::response::Response {
    let work = {
        let service = Arc::clone(&service);
        async move { admin::execute_with_pin(&service, &operator, command, pin).await }
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
    /// The conversation failed.
    #[error("the server on {path} did not answer properly: {reason}")]
    Talk {
        /// The socket.
        path: PathBuf,
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
        path: path.to_owned(),
        reason,
    };
    let stream = UnixStream::connect(path)
        .await
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => {
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
    let good = response.status().is_success();
    let body = Limited::new(response.into_body(), ANSWER)
        .collect()
        .await
        .map_err(|error| talk(error.to_string()))?
        .to_bytes();
    driver.abort();
    if good {
        serde_json::from_slice(&body).map_err(|error| talk(error.to_string()))
    } else {
        match serde_json::from_slice(&body) {
            Ok(problem) => Err(OperatorError::Refused(problem)),
            Err(_) => Err(talk(String::from_utf8_lossy(&body).into_owned())),
        }
    }
}
