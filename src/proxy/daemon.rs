//! The host's daemon: the key servers, the paths of the drives, and the socket to be spoken to.

mod conversation;
mod door;
mod jobs;
mod paths;

pub use jobs::ServiceKeys;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::watch;

use super::config::{HostConfig, KeyPath};
use super::control::{Displayed, PathFrom, SetServers};
use super::service::{KeyService, Which};
use crate::drive::DriveSerial;
use crate::local;
use crate::tls::{ClientTls, PeerError, PeerId, Role, TlsError};
use jobs::Drives;
use paths::Paths;

/// How long commands that are under way may take after a stop.
const STOP: Duration = Duration::from_secs(20);

/// Why the daemon cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The host's file lacks what the daemon lives by.
    #[error("{} has no {table}; ekm config example --host shows one", file.display())]
    Lacks {
        /// The file.
        file: PathBuf,
        /// What is missing.
        table: &'static str,
    },
    /// Certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The host's certificate names nobody.
    #[error("{}: {source}", file.display())]
    Nobody {
        /// The certificate.
        file: PathBuf,
        /// Why not.
        source: PeerError,
    },
    /// It names somebody else than a proxy.
    #[error(
        "{} is the certificate of {peer}, and a host is a proxy; have one issued with: ekm tls issue NAME --role proxy",
        file.display()
    )]
    NotAProxy {
        /// The certificate.
        file: PathBuf,
        /// Whom it names.
        peer: PeerId,
    },
    /// The thread of a drive.
    #[error("cannot start the thread of a drive: {0}")]
    Thread(std::io::Error),
    /// Memory that is not swapped out.
    #[error(
        "cannot lock memory, which data keys in clear (plain_key) need: {0}; set \
         LimitMEMLOCK=infinity in the proxy's unit"
    )]
    Lock(std::io::Error),
    /// The socket.
    #[error("cannot listen on {}: {source}", path.display())]
    Listen {
        /// Its path.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
}

/// What the daemon works with: shared by all who speak to it.
#[derive(Debug)]
pub struct Host {
    config: HostConfig,
    peer: PeerId,
    keys: KeyService,
    paths: Mutex<Paths>,
    /// Whether the servers were changed. Held while they are.
    changed: Mutex<bool>,
    drives: Drives,
    /// Whether it was told to stop.
    stopping: AtomicBool,
}

/// The daemon, listening.
#[derive(Debug)]
pub struct Daemon {
    host: Arc<Host>,
    door: UnixListener,
}

/// What a host's file says of certificates, checked: whom the host's own names.
///
/// # Errors
/// They are missing, cannot be used, or are not those of a proxy.
pub fn check_certificates(config: &HostConfig) -> Result<(ClientTls, PeerId), DaemonError> {
    let paths = config.tls().ok_or_else(|| DaemonError::Lacks {
        file: config.file().to_owned(),
        table: "[tls]",
    })?;
    let tls = ClientTls::load(paths.clone())?;
    let file = paths.certificate.clone();
    match paths.peer()? {
        Ok(peer) if peer.role() == Role::Proxy => Ok((tls, peer)),
        Ok(peer) => Err(DaemonError::NotAProxy { file, peer }),
        Err(source) => Err(DaemonError::Nobody { file, source }),
    }
}

impl Daemon {
    /// Loads the certificates and takes the socket.
    ///
    /// # Errors
    /// See [`DaemonError`].
    pub async fn open(config: HostConfig) -> Result<Self, DaemonError> {
        let lacks = |table| DaemonError::Lacks {
            file: config.file().to_owned(),
            table,
        };
        let servers = config
            .key_servers()
            .cloned()
            .ok_or_else(|| lacks("[key_servers]"))?;
        let (tls, peer) = check_certificates(&config)?;
        let path = config.socket();
        let door = local::listen(path).map_err(|source| DaemonError::Listen {
            path: path.to_owned(),
            source,
        })?;
        let waiting = config.in_band().confirms();
        let keys = KeyService::start_keeping(servers, tls, *config.times(), &waiting).await;
        let drives = Drives::start(&config, &keys)?;
        Ok(Self {
            host: Arc::new(Host {
                config,
                peer,
                keys,
                paths: Mutex::default(),
                changed: Mutex::new(false),
                drives,
                stopping: AtomicBool::new(false),
            }),
            door,
        })
    }

    /// What it works with.
    #[must_use]
    pub const fn host(&self) -> &Arc<Host> {
        &self.host
    }

    /// Serves until `stop` resolves, then lets commands under way finish.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let Self { host, door } = self;
        host.look_around();
        let (stopping, stopped) = watch::channel(false);
        let mut serving = tokio::spawn(door::accept(door, Arc::clone(&host), stopped));
        stop.await;
        tracing::info!("stopping: commands under way finish, no new ones are taken");
        host.stopping.store(true, Ordering::Relaxed);
        stopping.send_replace(true);
        if tokio::time::timeout(STOP, &mut serving).await.is_err() {
            serving.abort();
            tracing::warn!(
                seconds = STOP.as_secs(),
                "some commands did not finish in time and were ended"
            );
        }
    }
}

impl Host {
    /// The host's file as it was read.
    #[must_use]
    pub const fn config(&self) -> &HostConfig {
        &self.config
    }

    /// Whom the host's certificate names.
    #[must_use]
    pub const fn peer(&self) -> &PeerId {
        &self.peer
    }

    /// Whether it was told to stop.
    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// The drives that this host keys itself.
    const fn drives(&self) -> &Drives {
        &self.drives
    }

    /// Where keys come from.
    #[must_use]
    pub const fn keys(&self) -> &KeyService {
        &self.keys
    }

    /// How that drive's key requests travel, and what says so.
    #[must_use]
    pub fn path(&self, serial: &DriveSerial) -> (KeyPath, PathFrom) {
        let paths = self.paths.lock().unwrap_or_else(PoisonError::into_inner);
        paths.of(&self.config, serial)
    }

    /// Gives a drive, or all that have none of their own, another path until the daemon ends.
    ///
    /// # Errors
    /// Too many drives have one.
    pub(super) fn set_path(
        &self,
        drive: Option<DriveSerial>,
        path: Option<KeyPath>,
    ) -> Result<(), String> {
        if let (Some(serial), Some(KeyPath::InBand)) = (&drive, path)
            && self.drives.of(serial).is_err()
        {
            return Err(format!(
                "drive {serial} is not held by this proxy, so nothing would keep it from writing in clear; give it path = \"in-band\" in [[drives]] of the host's file and start the proxy anew"
            ));
        }
        let mut paths = self.paths.lock().unwrap_or_else(PoisonError::into_inner);
        paths.set(drive, path)
    }

    /// Changes the key servers until the daemon ends.
    ///
    /// # Errors
    /// The change cannot be made.
    pub(super) fn set_servers(&self, change: SetServers) -> Result<(), String> {
        let mut changed = self.changed.lock().unwrap_or_else(PoisonError::into_inner);
        let servers = change.applied(self.keys.servers())?;
        self.keys.set(servers);
        *changed = true;
        drop(changed);
        self.look_around();
        Ok(())
    }

    /// What there is to see.
    #[must_use]
    pub fn display(&self) -> Displayed {
        let changed = *self.changed.lock().unwrap_or_else(PoisonError::into_inner);
        let paths = self.paths.lock().unwrap_or_else(PoisonError::into_inner);
        Displayed {
            file: self.config.file().to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            peer: self.peer.clone(),
            certificate_until: self
                .config
                .tls()
                .and_then(|paths| paths.expiry().ok().flatten()),
            changed,
            keys: self.keys.seen(),
            path: paths.usual(&self.config),
            drives: paths.drives(&self.config),
            in_band: self.drives.shown(),
        }
    }

    /// Looks at the servers, so that what is down is known before a tape waits for it.
    fn look_around(&self) {
        let keys = self.keys.clone();
        tokio::spawn(async move {
            for verified in keys.verify(Which::All).await {
                if verified.failure.is_none() {
                    tracing::info!(server = %verified.server, role = %verified.role, milliseconds = verified.milliseconds, "key server is ready");
                }
            }
        });
    }
}
