//! The doors: HTTPS with mutual TLS for drives and proxies, a Unix socket for
//! operators.
//!
//! Accepting does nothing slow: handshake and requests run in a task of
//! their own, each under its time limit, and connections are counted. A
//! reload of the certificates or of the revocation list ends every open
//! connection after the request it is serving, since what it was allowed may
//! no longer be so.

mod desk;
mod keeper;
mod listener;
mod monitor;
mod operator;
mod passing;
mod remote;
mod routes;
mod scrape;
mod seats;
mod sync;
mod watchers;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::audit::outlet::{Identity, Outlets};
use crate::audit::{AuditError, AuditLog, Event, Kind, Options, Outcome};
use crate::bridge::supervisor::{Bridge, Program};
use crate::config::{Config, TokenConfigError};
use crate::keystore::Tokens;
use crate::service::{self, STARTING, Service};
use crate::store::{Fleet, Remembered, Sql, Store, StoreError};
use crate::tls::{ServerTls, TlsError};
use desk::Desk;
use monitor::Monitor;
use watchers::Watchers;

pub use operator::{OperatorError, ask, ask_with_pin};
pub use remote::ask_remote;
pub use routes::openapi;

/// How often certificates are looked at for a change.
const RELOAD: Duration = Duration::from_secs(2);

/// How long a server that stops waits for the last seal of its records.
const SEALING: Duration = Duration::from_secs(10);

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
    /// Records cannot be sent anywhere besides.
    #[error("records.syslog: {source}")]
    Outlets {
        /// The cause.
        source: io::Error,
    },
    /// Somebody else has an address.
    #[error(
        "cannot listen on {address} ({key}): the address is in use; is another ekm serve running here? Stop it, or set {key} to another port"
    )]
    Busy {
        /// The address.
        address: std::net::SocketAddr,
        /// What of the configuration names it.
        key: &'static str,
    },
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
    open_with(config, program, false).await
}

/// The same for a server: where the database that it shares is out of reach, it goes on with what
/// it has of it.
///
/// # Errors
/// What cannot be opened.
pub async fn open_serving(config: &Config, program: &Program) -> Result<Service, ServerError> {
    open_with(config, program, true).await
}

async fn open_with(
    config: &Config,
    program: &Program,
    from_cache: bool,
) -> Result<Service, ServerError> {
    // First: its lock is also that of what the state directory has.
    let audit = AuditLog::open(&config.audit, &config.node, log_options(config)?)?;
    let fleet = match &config.database {
        Some(database) => {
            Some(Fleet::open(&config.state, &config.node, database, from_cache).await?)
        }
        None => None,
    };
    let store: Arc<dyn Store> = match &fleet {
        Some(fleet) => Arc::new(Remembered::new(fleet.clone(), REMEMBERED)),
        None => Arc::new(Remembered::new(
            Sql::sqlite(&config.state).await?,
            REMEMBERED,
        )),
    };
    let ledgers = config.state.join("pins");
    let bridges = config
        .tokens
        .iter()
        .map(|token| {
            let hello = token.hello(&ledgers)?;
            config.allows(&hello)?;
            Ok(Bridge::start(program.clone(), hello).ranked(token.rank()))
        })
        .chain(config.keystores.iter().map(|keystore| {
            Ok(Bridge::start(program.clone(), keystore.hello()).ranked(keystore.rank()))
        }))
        .collect::<Result<Vec<_>, TokenConfigError>>()?;
    let tokens = Tokens::new(bridges);
    if let Some(fleet) = fleet.as_ref().filter(|fleet| fleet.is_down()) {
        // Without a token nobody can tell whether the cached table is as it was written.
        tokens.started(STARTING).await;
        service::derive(fleet, &tokens, &std::collections::HashSet::new()).await;
        fleet.believe()?;
    }
    if let Some(fleet) = &fleet {
        // Before the first request: what other servers hold counts for it.
        fleet.look_once().await;
    }
    let service = Service::new(config, store, audit, tokens).await?;
    Ok(match fleet {
        Some(fleet) => service.with_fleet(fleet, config.fleet.clone()),
        None => service,
    })
}

/// How the log is kept, and where its records go besides.
fn log_options(config: &Config) -> Result<Options, ServerError> {
    let failed = |source| ServerError::Outlets { source };
    let targets = config.records.targets();
    let targets = targets.map_err(|reason| failed(io::Error::other(reason)))?;
    let identity = Identity::of(&config.node);
    Ok(Options {
        outlets: Outlets::start(targets, &identity).map_err(failed)?,
        emergency: service::was_on(config),
        ..config.records.options()
    })
}

/// A server that listens.
#[derive(Debug)]
pub struct Server {
    service: Arc<Service>,
    tls: Arc<ServerTls>,
    door: TcpListener,
    desk: Arc<Desk>,
    operators: UnixListener,
    remote: Option<TcpListener>,
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
    remote: Option<TcpListener>,
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
        let listener = listen(server.listen, "[server] listen").await?;
        let scrapes = match &config.metrics {
            Some(metrics) => Some(listen(metrics.listen, "[metrics] listen").await?),
            None => None,
        };
        let socket = config.socket();
        crate::files::private_dir(&config.state).map_err(|source| ServerError::Listen {
            place: socket.display().to_string(),
            source,
        })?;
        let operators = operator::listen(&socket, &config.operators)?;
        let remote = match config.operators.listen {
            Some(address) => Some(listen(address, "[operators] listen").await?),
            None => None,
        };
        Ok(Self {
            tls,
            listener,
            scrapes,
            operators,
            remote,
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
            remote: door.remote,
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
            remote,
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
            reloads.clone(),
        ));
        if let Some(remote) = remote {
            if let Ok(address) = remote.local_addr() {
                tracing::info!(%address, "operators are served at https://{address}");
            }
            tasks.spawn(listener::accept(
                remote,
                Arc::new(remote::desk()),
                remote::router(Arc::clone(&service)),
                Arc::clone(&tls),
                limits,
                stopped.clone(),
                reloads,
            ));
        }
        if let Some(scrapes) = scrapes {
            if let Ok(address) = scrapes.local_addr() {
                tracing::info!(%address, "metrics are at http://{address}/metrics");
            }
            let monitor = Arc::clone(&monitor);
            tasks.spawn(scrape::accept(scrapes, monitor, stopped.clone()));
        }
        tasks.spawn(operator::accept(operators, Arc::clone(&service), stopped));
        let mut watchers = Watchers::noting(monitor.panics().clone());
        // One sender for all its runs: without any, every connection ends after its request.
        let reloaded = Arc::new(reloaded);
        watchers.spawn("certificates", move || {
            watch_certificates(Arc::clone(&tls), Arc::clone(&reloaded))
        });
        // What is by the service alone.
        let of = |service: &Arc<Service>| {
            let service = Arc::clone(service);
            move || Arc::clone(&service)
        };
        let own = of(&service);
        watchers.spawn("fleet", move || own().keep_fleet());
        let own = of(&service);
        watchers.spawn("sync", move || crate::sync::schedule(own()));
        let own = of(&service);
        watchers.spawn("rekeys", move || keeper::rekeys(own()));
        let own = of(&service);
        watchers.spawn("rotations", move || keeper::rotations(own()));
        let own = of(&service);
        watchers.spawn("audit", move || tend_audit(own()));
        let own = Arc::clone(&monitor);
        watchers.spawn("kek-certificates", move || {
            Arc::clone(&own).watch_certificates()
        });
        watchers.spawn("alarms", move || Arc::clone(&monitor).watch());
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
        watchers.shutdown().await;
        record(&service, "stop").await?;
        service.seal_at_stop(SEALING).await;
        Ok(())
    }
}

async fn record(service: &Service, action: &str) -> Result<(), ServerError> {
    let mut event = Event::new(Kind::Runtime, action, Outcome::Success);
    event.detail = Some(format!("ekm {}", env!("CARGO_PKG_VERSION")));
    service.audit().record(event).await?;
    Ok(())
}

async fn listen(
    address: std::net::SocketAddr,
    key: &'static str,
) -> Result<TcpListener, ServerError> {
    TcpListener::bind(address).await.map_err(|source| {
        if source.kind() == io::ErrorKind::AddrInUse {
            return ServerError::Busy { address, key };
        }
        ServerError::Listen {
            place: format!("{address} ({key})"),
            source,
        }
    })
}

/// Seals the records, and what else they need now and then.
async fn tend_audit(service: Arc<Service>) {
    let mut look = tokio::time::interval(Duration::from_secs(1));
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        service.tend_audit().await;
    }
}

/// Takes new certificates in.
async fn watch_certificates(tls: Arc<ServerTls>, reloaded: Arc<watch::Sender<u64>>) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_in_use_is_named_by_its_key() {
        let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = other.local_addr().unwrap();
        let error = listen(address, "[metrics] listen").await.unwrap_err();
        let (told, address) = (error.to_string(), address.to_string());
        for part in [address.as_str(), "[metrics] listen", "another ekm serve"] {
            assert!(told.contains(part), "{told}");
        }
    }
}
