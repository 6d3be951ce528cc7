//! The door for drives and proxies: accept, handshake, requests.

use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls_pki_types::CertificateDer;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tower::ServiceExt as _;

use super::desk::{BusyMark, Desk, Seated};
use crate::tls::{PeerId, ServerTls, ShownChain};

/// Largest head of a request, bytes.
const HEAD: usize = 16 * 1024;

/// Most header lines of a request.
const HEADERS: usize = 64;

/// First byte of every TLS connection (RFC 8446, 5.1: handshake).
const TLS_HANDSHAKE: u8 = 0x16;

/// How long an idle connection that has to give way may take to end.
const GIVES_WAY: Duration = Duration::from_secs(2);

/// The times that a peer may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) handshake: Duration,
    pub(super) request: Duration,
}

/// Accepts until told to stop, then waits for what is open.
pub(super) async fn accept(
    door: TcpListener,
    desk: Arc<Desk>,
    router: axum::Router,
    tls: Arc<ServerTls>,
    limits: Limits,
    mut stopped: watch::Receiver<bool>,
    reloads: watch::Receiver<u64>,
) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = door.accept() => accepted,
            _ = stopped.wait_for(|stopped| *stopped) => break,
        };
        // So that the set does not keep what is over.
        while connections.try_join_next().is_some() {}
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors: spinning would not bring any back.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Some(seated) = desk.admit(address.ip()) else {
            continue;
        };
        let connection = Connection {
            router: router.clone(),
            tls: Arc::clone(&tls),
            limits,
            stopped: stopped.clone(),
            reloads: from_now(&reloads),
        };
        connections.spawn(connection.serve(stream, address, seated));
    }
    drop(door);
    while connections.join_next().await.is_some() {}
}

type Handshaken = (TlsStream<TcpStream>, PeerId, Vec<CertificateDer<'static>>);

/// Lets a handler ask whether its peer would still be let in: a request that
/// began before a revocation must not bring a key after it.
#[derive(Clone, Debug)]
pub(super) struct Admission {
    tls: Arc<ServerTls>,
    client: Arc<ShownChain>,
    busy: BusyMark,
    body: Duration,
}

impl Admission {
    /// How long the body of a request may take.
    pub(super) const fn body_time(&self) -> Duration {
        self.body
    }

    /// The whole request is here: from now on it is not the peer that is slow.
    pub(super) fn begins(&self) {
        self.busy.set(true);
    }

    /// Whether the peer would be let in now.
    pub(super) fn stands(&self) -> bool {
        self.tls.admits(&self.client)
    }
}

struct Connection {
    router: axum::Router,
    tls: Arc<ServerTls>,
    limits: Limits,
    stopped: watch::Receiver<bool>,
    reloads: watch::Receiver<u64>,
}

impl Connection {
    async fn serve(mut self, stream: TcpStream, address: std::net::SocketAddr, mut seated: Seated) {
        let handshake = tokio::time::timeout(self.limits.handshake, self.handshake(stream));
        let handshake = tokio::select! {
            handshake = handshake => handshake,
            () = seated.gives_way() => {
                tracing::debug!(%address, "connection closed before its handshake: it gave way");
                return;
            }
        };
        let (stream, peer, chain) = match handshake {
            Ok(Ok(ready)) => ready,
            Ok(Err(reason)) => {
                tracing::warn!(%address, reason, "connection closed");
                return;
            }
            Err(_) => {
                tracing::warn!(%address, seconds = self.limits.handshake.as_secs(), "connection closed: no TLS handshake in time");
                return;
            }
        };
        if !seated.belongs_to(&peer) {
            tracing::debug!(%address, %peer, "connection closed: this peer has as many as it may");
            return;
        }
        let router = self.router.clone();
        let busy = seated.mark();
        let admission = Admission {
            tls: Arc::clone(&self.tls),
            client: Arc::new(ShownChain::new(chain)),
            busy: busy.clone(),
            body: self.limits.handshake,
        };
        let service = service_fn(move |mut request: hyper::Request<Incoming>| {
            request.extensions_mut().insert(peer.clone());
            request.extensions_mut().insert(address);
            request.extensions_mut().insert(admission.clone());
            let (router, busy) = (router.clone(), busy.clone());
            async move {
                let response = router.oneshot(request).await;
                busy.set(false);
                response
            }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.handshake)
            .max_buf_size(HEAD)
            .max_headers(HEADERS)
            .serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        let outcome = tokio::select! {
            outcome = &mut connection => outcome,
            () = over(&mut self.stopped, &mut self.reloads) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
            () = seated.gives_way() => {
                connection.as_mut().graceful_shutdown();
                // Dropped where it is in the middle of a head or a body.
                tokio::time::timeout(GIVES_WAY, connection).await.unwrap_or(Ok(()))
            }
        };
        if let Err(error) = outcome {
            tracing::debug!(%address, %error, "connection ended");
        }
    }

    async fn handshake(&self, stream: TcpStream) -> Result<Handshaken, String> {
        // Answers are small, and the drive waits for each.
        drop(stream.set_nodelay(true));
        let mut first = [0_u8];
        let seen = stream
            .peek(&mut first)
            .await
            .map_err(|error| error.to_string())?;
        if seen == 1 && first != [TLS_HANDSHAKE] {
            return Err("the peer does not speak TLS; if it is a TS11x0 control unit, a library or a z/OS proxy, it speaks IBM's own protocol, which is not public and not supported".to_owned());
        }
        let stream = TlsAcceptor::from(self.tls.current())
            .accept(stream)
            .await
            .map_err(|error| format!("TLS handshake: {error}"))?;
        let chain: Vec<CertificateDer<'static>> = stream
            .get_ref()
            .1
            .peer_certificates()
            .unwrap_or_default()
            .iter()
            .map(|certificate| certificate.clone().into_owned())
            .collect();
        let certificate = chain.first().ok_or("the peer showed no certificate")?;
        let peer = PeerId::from_certificate(certificate).map_err(|error| error.to_string())?;
        Ok((stream, peer, chain))
    }
}

/// The reloads that are still to come.
fn from_now(reloads: &watch::Receiver<u64>) -> watch::Receiver<u64> {
    let mut reloads = reloads.clone();
    reloads.mark_unchanged();
    reloads
}

/// Resolves when open connections should end after their request.
async fn over(stopped: &mut watch::Receiver<bool>, reloads: &mut watch::Receiver<u64>) {
    tokio::select! {
        _ = stopped.wait_for(|stopped| *stopped) => {}
        // An error means that the server has ended.
        _ = reloads.changed() => {}
    }
}
