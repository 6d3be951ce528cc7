//! The door for operators on other hosts: mutual TLS, with the certificates and
//! the revocation list of the drives' door.
//!
//! The same commands as over the socket, for peers of role operator only. No
//! PIN comes this way: it is handed over on this host, as a descriptor.

use std::net::SocketAddr;
use std::sync::Arc;

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
use crate::client::Wire;
use crate::operators::{Asker, Shown, Whence};
use crate::problem::{EkmCode, Problem};
use crate::service::Service;
use crate::tls::{ClientPaths, PeerId, Role, client_config};

/// Where commands are put.
const PATH: &str = "/v1/operator";

/// Largest command, bytes: another key manager's drives come in batches.
const BODY: usize = 2 << 20;

/// Connections at once, and those of one operator.
const CONNECTIONS: usize = 64;
const OF_ONE_PEER: usize = 8;

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
    let tls = client_config(ca, certificate, key).map_err(|error| {
        talk(match std::error::Error::source(&error) {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        })
    })?;
    let body = serde_json::to_vec(command).map_err(|error| talk(error.to_string()))?;
    let exchange = async {
        let mut wire = Wire::open(server, Arc::new(tls), ()).await?;
        wire.post_up_to(PATH, Bytes::from(body), ANSWER)
            .await
            .map_err(|error| error.to_string())
    };
    let (status, body) = tokio::time::timeout(PATIENCE, exchange)
        .await
        .map_err(|_| talk(format!("no answer within {} s", PATIENCE.as_secs())))?
        .map_err(talk)?;
    operator::read(status, &body).map_err(|error| match error {
        Ok(problem) => OperatorError::Refused(problem),
        Err(reason) => talk(reason),
    })
}
