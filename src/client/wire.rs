//! One connection to a key server: mutual TLS and HTTP/1.1, one exchange after another.

use std::fmt;
use std::io;
use std::sync::Arc;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

/// Largest answer, bytes.
const ANSWER: usize = 1 << 20;

/// How the reason begins where an answer had begun to come.
pub(crate) const EARLY: &str = "the answer ended early";

/// Why there is no connection.
#[derive(Debug)]
pub(crate) enum OpenError {
    /// Nobody took it, or there is no way there.
    Connect(io::Error),
    /// The server ended it before both had agreed.
    Ended(String),
    /// What came is not as it must be: another protocol, a certificate that is not trusted.
    Other(String),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(error) => error.fmt(f),
            Self::Ended(reason) | Self::Other(reason) => f.write_str(reason),
        }
    }
}

/// Why an exchange brought no answer.
#[derive(Debug)]
pub(crate) enum WireError {
    /// The request has not left.
    NotSent(String),
    /// It has, or a part of it; whether the server does what it says is not known.
    Lost(String),
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotSent(reason) | Self::Lost(reason) => f.write_str(reason),
        }
    }
}

/// An open connection.
#[derive(Debug)]
pub(crate) struct Wire {
    server: String,
    certificate: Option<CertificateDer<'static>>,
    sender: SendRequest<Full<Bytes>>,
    driver: JoinHandle<()>,
    under_way: bool,
}

impl Wire {
    /// Connects to `host:port`. `held` is dropped when the socket has been closed.
    pub(crate) async fn open<G: Send + 'static>(
        server: &str,
        tls: Arc<ClientConfig>,
        held: G,
    ) -> Result<Self, String> {
        Self::connect(server, tls, held)
            .await
            .map_err(|error| error.to_string())
    }

    /// The same, for whom it makes a difference why there is no connection.
    pub(crate) async fn connect<G: Send + 'static>(
        server: &str,
        tls: Arc<ClientConfig>,
        held: G,
    ) -> Result<Self, OpenError> {
        let stream = TcpStream::connect(server)
            .await
            .map_err(OpenError::Connect)?;
        stream.set_nodelay(true).map_err(OpenError::Connect)?;
        let host = server.rsplit_once(':').map_or(server, |(host, _)| host);
        let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())
            .map_err(|error| OpenError::Other(error.to_string()))?;
        let stream = TlsConnector::from(tls)
            .connect(name, stream)
            .await
            .map_err(|error| unagreed(&error))?;
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let certificate = chain.first().map(|own| own.clone().into_owned());
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| OpenError::Other(error.to_string()))?;
        let driver = tokio::spawn(async move {
            let _held = held;
            // How it ended is told by the exchange that it ended under.
            drop(connection.await);
        });
        Ok(Self {
            server: server.to_owned(),
            certificate,
            sender,
            driver,
            under_way: false,
        })
    }

    /// The server's certificate, verified.
    pub(crate) const fn certificate(&self) -> Option<&CertificateDer<'static>> {
        self.certificate.as_ref()
    }

    /// Whether the server has ended it.
    pub(crate) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// `GET PATH`: status and body.
    pub(crate) async fn get(&mut self, path: &str) -> Result<(u16, Bytes), WireError> {
        self.exchange(hyper::Request::get(path), Bytes::new(), ANSWER)
            .await
    }

    /// `POST PATH` of JSON: status and body.
    pub(crate) async fn post(
        &mut self,
        path: &str,
        body: Bytes,
    ) -> Result<(u16, Bytes), WireError> {
        self.post_up_to(path, body, ANSWER).await
    }

    /// The same, where the answer may have that many bytes.
    pub(crate) async fn post_up_to(
        &mut self,
        path: &str,
        body: Bytes,
        limit: usize,
    ) -> Result<(u16, Bytes), WireError> {
        let request = hyper::Request::post(path).header("content-type", "application/json");
        self.exchange(request, body, limit).await
    }

    async fn exchange(
        &mut self,
        request: hyper::http::request::Builder,
        body: Bytes,
        limit: usize,
    ) -> Result<(u16, Bytes), WireError> {
        let not_sent = |error: &dyn fmt::Display| WireError::NotSent(error.to_string());
        let request = request
            .header("host", &self.server)
            .body(Full::new(body))
            .map_err(|error| not_sent(&error))?;
        self.sender
            .ready()
            .await
            .map_err(|error| not_sent(&told(&error)))?;
        // Dropped in the middle of this, the connection is of no use any more.
        self.under_way = true;
        let response = self
            .sender
            .try_send_request(request)
            .await
            .map_err(|mut failed| {
                let reason = told(failed.error());
                match failed.take_message() {
                    Some(_) => WireError::NotSent(reason),
                    None => WireError::Lost(reason),
                }
            })?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), limit)
            .collect()
            .await
            .map_err(|error| WireError::Lost(format!("{EARLY}: {error}")))?
            .to_bytes();
        self.under_way = false;
        Ok((status, body))
    }
}

/// Whose fault it is that there is no TLS: an error of rustls's own is about what the server sent,
/// but for an alert, by which it says no.
fn unagreed(error: &io::Error) -> OpenError {
    let own = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match own {
        Some(rustls::Error::AlertReceived(_)) | None => OpenError::Ended(error.to_string()),
        Some(_) => OpenError::Other(error.to_string()),
    }
}

/// hyper's error with its cause: that alone says what the network did.
fn told(error: &hyper::Error) -> String {
    let cause = std::error::Error::source(error);
    cause.map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}

impl Drop for Wire {
    fn drop(&mut self) {
        // One that rests says goodbye in TLS. One that hangs must not be waited for.
        if self.under_way {
            self.driver.abort();
        }
    }
}
