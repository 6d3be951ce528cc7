//! The doors: HTTPS with mutual TLS for drives and proxies, a Unix socket for
//! operators.
//!
//! Accepting does nothing slow: handshake and requests run in a task of
//! their own, each under its time limit, and connections are counted. A
//! reload of the certificates or of the revocation list ends every open
//! connection after the request it is serving, since what it was allowed may
//! no longer be so.

mod desk;
mod listener;
mod monitor;
mod operator;
mod passing;
mod routes;
mod scrape;
mod seats;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::audit::{AuditError, AuditLog, Event, Kind, Options, Outcome};
use crate::bridge::supervisor::{Bridge, Program};
use crate::config::{Config, TokenConfigError};
use crate::keystore::Tokens;
use crate::service::Service;
use crate::store::{Remembered, Sqlite, StoreError};
use crate::tls::{ServerTls, TlsError};
use desk::Desk;
use monitor::Monitor;

pub use operator::{OperatorError, ask, ask_with_pin};
pub use routes::openapi;

/// How often certificates are looked at for a change.
const RELOAD: Duration = Duration::from_secs(2);

/// How long a server goes by what it has read of the state. Its own changes
/// count at once.
const REMEMBERED: Duration = Duration::from_secs(1);

/// Why a server could not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// State.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Records.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// Certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A token's configuration.
    #[error(transparent)]
    Token(#[from] TokenConfigError),
    /// A door cannot be opened.
    #[error("cannot listen on {place}: {source}")]
    Listen {
        /// Address or path.
        place: String,
        /// The cause.
        source: io::Error,
    },
}

/// Opens state, records and tokens as the configuration says. The records'
/// lock makes sure that nobody else has them open.
///
/// # Errors
/// What cannot be opened.
pub async fn open(config: &Config, program: &Program) -> Result<Service, ServerError> {
    let store = Sqlite::open(&config.state).await?;
    let store = Arc::new(Remembered::new(store, REMEMBERED));
    let audit = AuditLog::open(&config.audit, &config.node, Options::default())?;
    let ledgers = config.state.join("pins");
    let bridges = config
        .tokens
        .iter()
        .map(
            |token| Ok(Bridge::start(program.clone(), token.hello(&ledgers)?).ranked(token.rank())),
        )
        .chain(config.keystores.iter().map(|keystore| {
            Ok(Bridge::start(program.clone(), keystore.hello()).ranked(keystore.rank()))
        }))
        .collect::<Result<Vec<_>, TokenConfigError>>()?;
    Ok(Service::new(config, store, audit, Tokens::new(bridges)))
}

/// A server that listens.
#[derive(Debug)]
pub struct Server {
    service: Arc<Service>,
    tls: Arc<ServerTls>,
    door: TcpListener,
    desk: Arc<Desk>,
    operators: UnixListener,
    monitor: Arc<Monitor>,
    scrapes: Option<TcpListener>,
    limits: listener::Limits,
    stop_time: Duration,
}

/// The drives' door with its certificates, and the operators' door, open
/// before anything is started: a wrong path, a busy port or another server on
/// the same state must not end a token's first login half-way.
#[derive(Debug)]
pub struct Door {
    tls: ServerTls,
    listener: TcpListener,
    scrapes: Option<TcpListener>,
    operators: UnixListener,
}

impl Door {
    /// Loads the certificates and takes the address and the operators' socket.
    /// A socket that is left from a server that died is replaced.
    ///
    /// # Errors
    /// Certificates, address, or that another server has the socket.
    pub async fn open(config: &Config) -> Result<Self, ServerError> {
        let server = &config.server;
        let tls = ServerTls::load(&server.tls_paths())?;
        let listener = listen(server.listen).await?;
        let scrapes = match &config.metrics {
            Some(metrics) => Some(listen(metrics.listen).await?),
            None => None,
        };
        let socket = config.socket();
        crate::files::private_dir(&config.state).map_err(|source| ServerError::Listen {
            place: socket.display().to_string(),
            source,
        })?;
        let operators = operator::listen(&socket)?;
        Ok(Self {
            tls,
            listener,
            scrapes,
            operators,
        })
    }
}

impl Server {
    /// Puts a service behind its doors.
    #[must_use]
    pub fn new(door: Door, config: &Config, service: Arc<Service>) -> Self {
        let server = &config.server;
        let tls = Arc::new(door.tls);
        let desk = Arc::new(Desk::new(
            server.max_connections,
            server.max_connections_per_peer,
        ));
        Self {
            monitor: Arc::new(Monitor::new(
                config,
                Arc::clone(&service),
                Arc::clone(&tls),
                Arc::clone(&desk),
            )),
            service,
            tls,
            door: door.listener,
            scrapes: door.scrapes,
            desk,
            operators: door.operators,
            limits: listener::Limits {
                handshake: Duration::from_secs(server.handshake_seconds),
                request: config.request_time(),
            },
            stop_time: Duration::from_secs(server.stop_seconds),
        }
    }

    /// The address of the drives' door.
    ///
    /// # Errors
    /// The operating system's.
    pub fn address(&self) -> io::Result<std::net::SocketAddr> {
        self.door.local_addr()
    }

    /// Serves until `stop` resolves, then lets requests in flight finish.
    ///
    /// # Errors
    /// The stop cannot be recorded.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Result<(), ServerError> {
        let Self {
            service,
            tls,
            door,
            desk,
            operators,
            monitor,
            scrapes,
            limits,
            stop_time,
        } = self;
        record(&service, "start").await?;
        let (stopping, stopped) = watch::channel(false);
        let (reloaded, reloads) = watch::channel(0_u64);
        let mut tasks = JoinSet::new();
        tasks.spawn(listener::accept(
            door,
            desk,
            routes::router(Arc::clone(&service), Arc::clone(&monitor), limits.request),
            Arc::clone(&tls),
            limits,
            stopped.clone(),
            reloads,
        ));
        if let Some(scrapes) = scrapes {
            if let Ok(address) = scrapes.local_addr() {
                tracing::info!(%address, "metrics are at http://{address}/metrics");
            }
            let monitor = Arc::clone(&monitor);
            tasks.spawn(scrape::accept(scrapes, monitor, stopped.clone()));
        }
        tasks.spawn(operator::accept(operators, Arc::clone(&service), stopped));
        let mut watchers = JoinSet::new();
        watchers.spawn(watch_certificates(tls, reloaded));
        watchers.spawn(Arc::clone(&monitor).watch_certificates());
        watchers.spawn(monitor.watch());
        stop.await;
        tracing::info!("stopping: requests in flight finish, no new ones are taken");
        stopping.send_replace(true);
        let finished = async {
            while tasks.join_next().await.is_some() {}
            service.idle().await;
        };
        if tokio::time::timeout(stop_time, finished).await.is_err() {
            tracing::warn!(
                seconds = stop_time.as_secs(),
                "some requests did not finish in time and were ended"
            );
        }
        watchers.abort_all();
        record(&service, "stop").await
    }
}

async fn record(service: &Service, action: &str) -> Result<(), ServerError> {
    let mut event = Event::new(Kind::Runtime, action, Outcome::Success);
    event.detail = Some(format!("ekm {}", env!("CARGO_PKG_VERSION")));
    service.audit().record(event).await?;
    Ok(())
}

async fn listen(address: std::net::SocketAddr) -> Result<TcpListener, ServerError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| ServerError::Listen {
            place: address.to_string(),
            source,
        })
}

/// Takes new certificates in.
async fn watch_certificates(tls: Arc<ServerTls>, reloaded: watch::Sender<u64>) {
    loop {
        tokio::time::sleep(RELOAD).await;
        if !tls.changed_on_disk() {
            continue;
        }
        match tls.reload() {
            Ok(now) => {
                tracing::info!(expiry = %now.expiry, "certificates taken in anew");
                reloaded.send_modify(|count| *count += 1);
            }
            Err(error) => {
                tracing::error!(%error, "the changed certificates were not taken in; the old ones stay");
            }
        }
    }
}
