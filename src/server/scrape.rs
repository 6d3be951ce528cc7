//! The door for Prometheus: `GET /metrics` over plain HTTP, on an address that
//! the operator names. Nothing secret is on the page, and nothing else is here.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::monitor::Monitor;
use crate::metrics;

/// Connections at once.
const CONNECTIONS: usize = 16;

/// Longest time for one connection: a scrape is one request.
const PATIENCE: Duration = Duration::from_secs(10);

/// Accepts until told to stop.
pub(super) async fn accept(
    door: TcpListener,
    monitor: Arc<Monitor>,
    mut stopped: watch::Receiver<bool>,
) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = door.accept() => accepted,
            _ = stopped.wait_for(|stopped| *stopped) => break,
        };
        while connections.try_join_next().is_some() {}
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection for metrics");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        // One that finds no room is closed; the next scrape comes soon.
        if let Ok(permit) = Arc::clone(&permits).try_acquire_owned() {
            let monitor = Arc::clone(&monitor);
            connections.spawn(async move {
                serve(stream, monitor).await;
                drop(permit);
            });
        }
    }
}

async fn serve(stream: TcpStream, monitor: Arc<Monitor>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = answer(&request, &monitor);
        async move { Ok::<_, std::convert::Infallible>(answer) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    if let Ok(Err(error)) = tokio::time::timeout(PATIENCE, connection).await {
        tracing::debug!(%error, "a connection for metrics ended");
    }
}

fn answer(request: &Request<Incoming>, monitor: &Monitor) -> Response<Full<Bytes>> {
    if request.uri().path() != "/metrics" {
        return say(StatusCode::NOT_FOUND, "there is only GET /metrics here\n");
    }
    if request.method() != Method::GET {
        return say(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
    }
    match monitor.page() {
        Ok(page) => {
            let mut response = say(StatusCode::OK, page);
            response.headers_mut().insert(
                CONTENT_TYPE,
                hyper::header::HeaderValue::from_static(metrics::CONTENT_TYPE),
            );
            response
        }
        Err(error) => {
            tracing::error!(%error, "the measurements cannot be written; this is a defect");
            say(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the measurements cannot be written\n",
            )
        }
    }
}

fn say(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response
}
