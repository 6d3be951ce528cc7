//! A key server's client: what a drive, a proxy or a test speaks to `/v1/keys/…`.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::api::{
    ChallengeAnswer, ConfirmAnswer, ConfirmRequest, CreateAnswer, CreateRequest, RekeyAnswer,
    RekeyRequest, ResolveAnswer, ResolveRequest,
};
use crate::problem::Problem;
use crate::tls::TlsError;

/// Largest answer, bytes.
const ANSWER: usize = 1 << 20;

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
    open: Option<SendRequest<Full<Bytes>>>,
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
        let request = hyper::Request::get(path);
        self.send(request, Bytes::new()).await
    }

    /// A `POST` of any body: status and body.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn post_raw(&mut self, path: &str, body: Bytes) -> Result<(u16, Bytes), ClientError> {
        let request = hyper::Request::post(path).header("content-type", "application/json");
        self.send(request, body).await
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

    async fn send(
        &mut self,
        request: hyper::http::request::Builder,
        body: Bytes,
    ) -> Result<(u16, Bytes), ClientError> {
        let request = request
            .header("host", &self.server)
            .body(Full::new(body))
            .map_err(|error| self.answer(error))?;
        let server = self.server.clone();
        tokio::time::timeout(PATIENCE, self.exchange(request))
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
        request: hyper::Request<Full<Bytes>>,
    ) -> Result<(u16, Bytes), ClientError> {
        // A server may end a connection that waits, so the first failure on
        // one that was used before tells nothing. Requests carry their id:
        // asking again is safe.
        if let Some(mut used) = self.open.take()
            && used.ready().await.is_ok()
            && let Ok(response) = used.send_request(request.clone()).await
        {
            return self.take(used, response).await;
        }
        let mut fresh = self.connect().await?;
        fresh.ready().await.map_err(|error| self.reach(error))?;
        let response = fresh
            .send_request(request)
            .await
            .map_err(|error| self.reach(error))?;
        self.take(fresh, response).await
    }

    async fn take(
        &mut self,
        open: SendRequest<Full<Bytes>>,
        response: hyper::Response<Incoming>,
    ) -> Result<(u16, Bytes), ClientError> {
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), ANSWER)
            .collect()
            .await
            .map_err(|error| self.answer(error))?
            .to_bytes();
        self.open = Some(open);
        Ok((status, body))
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, ClientError> {
        let stream = TcpStream::connect(&self.server)
            .await
            .map_err(|error| self.reach(error))?;
        stream
            .set_nodelay(true)
            .map_err(|error| self.reach(error))?;
        let host = self
            .server
            .rsplit_once(':')
            .map_or(self.server.as_str(), |(host, _)| host);
        let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())
            .map_err(|error| self.reach(error))?;
        let stream = TlsConnector::from(Arc::clone(&self.tls))
            .connect(name, stream)
            .await
            .map_err(|error| self.reach(error))?;
        let (open, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.reach(error))?;
        tokio::spawn(connection);
        Ok(open)
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
