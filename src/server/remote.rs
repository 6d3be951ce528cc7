//! The door for operators on other hosts: mutual TLS, with the certificates and
//! the revocation list of the drives' door.
//!
//! The same commands as over the socket, for peers of role operator only. No
//! PIN comes this way: it is handed over on this host, as a descriptor.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{DefaultBodyLimit, Extension, State};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Router, middleware};
use hyper::body::Bytes;
use tower_http::catch_panic::CatchPanicLayer;

use super::desk::Desk;
use super::operator::{self, ANSWER, OperatorError, PATIENCE};
use super::routes::{Body, nowhere, panicked, wrong_method};
use crate::admin::{Command, Reply};
use crate::audit::{Event, Kind, Outcome};
use crate::client::{EARLY, OpenError, Wire};
use crate::operators::{Asker, Shown, Whence};
use crate::problem::{EkmCode, Problem};
use crate::service::Service;
use crate::tls::{ClientPaths, PeerId, Role, TlsError, client_config};

/// Where commands are put.
const PATH: &str = "/v1/operator";

/// Largest command, bytes: another key manager's drives come in batches.
const BODY: usize = 2 << 20;

/// Connections at once, and those of one operator.
const CONNECTIONS: usize = 64;
const OF_ONE_PEER: usize = 8;

/// How long after the handshake a server that ends the connection has refused the certificate.
const JUDGED: Duration = Duration::from_secs(2);

/// Who is let in.
pub(super) fn desk() -> Desk {
    Desk::new(CONNECTIONS, OF_ONE_PEER)
}

/// The one route, under its limits.
pub(super) fn router(service: Arc<Service>) -> Router {
    Router::new()
        .route(PATH, post(run))
        .fallback(nowhere)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(BODY))
        .layer(middleware::from_fn_with_state(
            Arc::clone(&service),
            operators_only,
        ))
        .layer(CatchPanicLayer::custom(panicked))
        .with_state(service)
}

/// A drive or proxy has a certificate of the same CA, and no business here.
async fn operators_only(
    State(service): State<Arc<Service>>,
    Extension(peer): Extension<PeerId>,
    Extension(address): Extension<SocketAddr>,
    request: axum::extract::Request,
    next: middleware::Next,
) -> Response {
    if peer.role() == Role::Operator {
        return next.run(request).await;
    }
    let detail = format!("{peer} is no operator; this door is for certificates of operators");
    let mut event = Event::new(Kind::Authentication, "operator-door", Outcome::Failure);
    event.peer = Some(format!("{peer} at {}", address.ip()));
    event.code = Some(EkmCode::EE30.to_string());
    event.detail = Some(detail.clone());
    match service.audit().record(event).await {
        Ok(_) => Problem::new(EkmCode::EE30, 403, detail).into_response(),
        Err(error) => Problem::internal(error.to_string()).into_response(),
    }
}

async fn run(
    State(service): State<Arc<Service>>,
    Extension(peer): Extension<PeerId>,
    Extension(address): Extension<SocketAddr>,
    Body(command): Body<Command>,
) -> Response {
    let asker = Asker {
        shown: Shown::Certificate(peer),
        whence: Whence::Host(address.ip()),
    };
    let work = operator::perform(service, asker, command, None);
    tokio::time::timeout(PATIENCE, work)
        .await
        .unwrap_or_else(|_| {
            Problem::unavailable(format!(
            "the command goes on, and took longer than {} s so far; its end is in the audit log",
            PATIENCE.as_secs()
        ))
        .into_response()
        })
}

/// Puts a command to the operators' door of a server at `host:port`.
///
/// # Errors
/// The server said no, or the conversation failed.
pub async fn ask_remote(
    server: &str,
    paths: &ClientPaths,
    command: &Command,
) -> Result<Reply, OperatorError> {
    let talk = |reason: String| OperatorError::Talk {
        place: server.to_owned(),
        reason,
    };
    let ClientPaths {
        ca,
        certificate,
        key,
    } = paths;
    let tls = client_config(ca, certificate, key)
        .map_err(|error| OperatorError::Own(own_fault(&error, paths)))?;
    let body = serde_json::to_vec(command).map_err(|error| talk(error.to_string()))?;
    let exchange = async {
        let mut wire = Wire::connect(server, Arc::new(tls), ())
            .await
            .map_err(|error| unopened(server, error))?;
        let opened = Instant::now();
        let answer = wire.post_up_to(PATH, Bytes::from(body), ANSWER).await;
        answer.map_err(|error| {
            let reason = error.to_string();
            // In TLS 1.3 the client is through before the server has judged its certificate.
            if opened.elapsed() < JUDGED && !reason.starts_with(EARLY) {
                OperatorError::Ended {
                    place: server.to_owned(),
                    reason,
                }
            } else {
                talk(reason)
            }
        })
    };
    let (status, body) = tokio::time::timeout(PATIENCE, exchange)
        .await
        .map_err(|_| talk(format!("no answer within {} s", PATIENCE.as_secs())))??;
    operator::read(status, &body).map_err(|error| match error {
        Ok(problem) if is_nowhere(&problem) => OperatorError::DrivesDoor(server.to_owned()),
        Ok(problem) => OperatorError::Refused(problem),
        Err(reason) => talk(reason),
    })
}

/// Whether a door has no place for operators' commands at all.
fn is_nowhere(problem: &Problem) -> bool {
    problem.status == 404 && problem.detail.starts_with(&format!("there is no {PATH};"))
}

/// What is wrong with the asker's own files.
fn own_fault(error: &TlsError, paths: &ClientPaths) -> String {
    if let TlsError::Read { path, source } = error {
        let whose = if *path == paths.certificate {
            "your certificate"
        } else if *path == paths.key {
            "the private key of your certificate"
        } else {
            "the CA of the server's certificate"
        };
        return format!("cannot read {whose}, {}: {source}", path.display());
    }
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

fn unopened(server: &str, error: OpenError) -> OperatorError {
    match error {
        OpenError::Connect(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            OperatorError::Unreached(format!(
                "nothing listens at {server}: does the server run, and is this the port of [operators] listen?"
            ))
        }
        OpenError::Connect(error) => {
            OperatorError::Unreached(format!("there is no way to {server}: {error}"))
        }
        OpenError::Ended(reason) => OperatorError::Ended {
            place: server.to_owned(),
            reason,
        },
        OpenError::Other(reason) => OperatorError::Talk {
            place: server.to_owned(),
            reason,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::ca::{Ca, Request};

    const DAY: Duration = Duration::from_secs(24 * 3600);

    #[tokio::test]
    async fn what_is_wrong_on_this_side_is_not_blamed_on_the_server() {
        let directory = tempfile::tempdir().unwrap();
        let ca = Ca::init(&directory.path().join("ca"), "test CA", DAY * 3).unwrap();
        let anna = PeerId::new(Role::Operator, "anna".to_owned()).unwrap();
        let issued = ca.issue(&Request::new(anna, DAY)).unwrap();
        let mut paths = ClientPaths {
            ca: ca.cert_path(),
            certificate: issued.cert_path.unwrap(),
            key: issued.key_path.unwrap(),
        };
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap().to_string();
        let ends = std::thread::spawn(move || drop(listener.accept()));
        let asked = ask_remote(&server, &paths, &Command::AlarmList).await;
        assert!(
            matches!(asked, Err(OperatorError::Ended { .. })),
            "{asked:?}"
        );
        ends.join().unwrap();
        let asked = ask_remote(&server, &paths, &Command::AlarmList).await;
        let told = asked.unwrap_err().to_string();
        assert!(
            told.contains(&format!("nothing listens at {server}")),
            "{told}"
        );
        paths.certificate = directory.path().join("none.crt");
        let asked = ask_remote(&server, &paths, &Command::AlarmList).await;
        let told = asked.unwrap_err().to_string();
        assert!(told.contains("cannot read your certificate"), "{told}");
    }

    #[test]
    fn only_a_door_without_the_path_is_the_drives_door() {
        let of = |detail: &str| Problem::new(EkmCode::EE23, 404, detail);
        assert!(is_nowhere(&of(
            "there is no /v1/operator; GET /v1/openapi.json lists what there is"
        )));
        assert!(!is_nowhere(&of("there is no volume ABC123")));
    }
}
