//! The state that several servers share, and what one of them does while it is out of reach.
//!
//! It stands between the database and what is remembered of it, and with
//! PostgreSQL only. Every question has its time. Where the database does not
//! answer, what every request needs is taken from the cached table, until that
//! is too old; what only the database knows is an error that says so. What is
//! given out meanwhile is queued on the local disk and brought in later.
//!
//! A further question of the database goes through [`Fleet::ask`], a change
//! through [`Fleet::change`]: both end when the database is lost.

mod bring;
mod further;
mod kek_life;
mod local;
mod queue;
mod reach;
mod rekeys;
mod snapshot;
mod store;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio::sync::watch;

use super::{DatabaseConfig, FailedOpening, Issuance, KeyServer, StoreError};
use local::Sealed;
use queue::{Entry, Queue};
use reach::{Reach, connect};
use snapshot::{Held, Snapshot};

pub use bring::Brought;
pub use local::LocalKeys;

/// How long a start waits for the database.
const OPENING: Duration = Duration::from_secs(10);

/// Longest time between two writes of the cached table.
const SAVE: Duration = Duration::from_secs(10);

/// How long after the start a token may be on its way that sealed what is queued.
const SETTLED: Duration = Duration::from_secs(300);

/// The state that several servers share.
#[derive(Clone, Debug)]
pub struct Fleet(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    database: DatabaseConfig,
    name: String,
    node: String,
    directory: PathBuf,
    reach: watch::Sender<Reach>,
    held: RwLock<Option<Arc<Held>>>,
    // What a start without the database found, until a token has verified it.
    found: Mutex<Option<Sealed>>,
    saved: Mutex<Option<(Arc<Held>, Instant)>>,
    durability: RwLock<String>,
    keys: LocalKeys,
    queue: Queue,
    opened: Instant,
}

/// How the database and what stands in for it are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetSeen {
    /// The server and its database.
    pub database: String,
    /// Why it is out of reach, and since when; none where it answers.
    pub outage: Option<(String, String)>,
    /// When a commit returns, in the database's own words.
    pub durability: String,
    /// Seconds since the cached table was read; none where there is none.
    pub cache_age: Option<u64>,
    /// Seconds that it serves.
    pub cache_seconds: u64,
    /// Whether it can be written to the disk: a token gave a key for its seal.
    pub sealed: bool,
    /// Creates whose EEDKs are on this server's disk only: at risk until they are in the database.
    pub at_risk: usize,
    /// Lines of the queue, confirms among them.
    pub queued: usize,
    /// Lines of the queue that are not as they were written.
    pub rejected: usize,
}

impl Fleet {
    /// Opens the database. Where it is out of reach, a server that starts goes on with its cached
    /// table, which counts once it is [believed](Self::believe).
    ///
    /// # Errors
    /// The database cannot be used, and there is no cached table or it is not asked for.
    pub async fn open(
        directory: &Path,
        node: &str,
        database: &DatabaseConfig,
        from_cache: bool,
    ) -> Result<Self, StoreError> {
        let local = |source| StoreError::Directory {
            path: directory.to_owned(),
            source,
        };
        crate::files::private_dir(directory).map_err(local)?;
        let (reach, found) = match connect(database, OPENING).await {
            Ok(sql) => (Reach::up(sql), None),
            Err(error) => {
                let outage = matches!(
                    error,
                    StoreError::Database { .. } | StoreError::Outage { .. }
                );
                if !outage || !from_cache {
                    return Err(error);
                }
                let found = match snapshot::load(directory) {
                    Ok(found) => found,
                    Err(why) => {
                        tracing::error!("there is no cached table to serve from: {why}");
                        return Err(error);
                    }
                };
                let why = error.to_string().into();
                let since = OffsetDateTime::now_utc();
                (Reach::Down { since, why }, Some(found))
            }
        };
        Ok(Self(Arc::new(Inner {
            database: database.clone(),
            name: database.to_string(),
            node: node.to_owned(),
            directory: directory.to_owned(),
            reach: watch::channel(reach).0,
            held: RwLock::default(),
            found: Mutex::new(found),
            saved: Mutex::default(),
            durability: RwLock::default(),
            keys: LocalKeys::open(directory, node),
            queue: Queue::open(directory).map_err(local)?,
            opened: Instant::now(),
        })))
    }

    /// The keys by which this server seals what it keeps on its own disk.
    #[must_use]
    pub fn keys(&self) -> &LocalKeys {
        &self.0.keys
    }

    /// Whether the database is out of reach.
    #[must_use]
    pub fn is_down(&self) -> bool {
        matches!(*self.0.reach.borrow(), Reach::Down { .. })
    }

    /// Which creates are served while the database is out of reach.
    #[must_use]
    pub fn creates(&self) -> super::OutageCreates {
        self.0.database.outage_creates
    }

    /// Reads the table where nobody has yet: without a server nobody looks after it.
    pub async fn look_once(&self) {
        if self.held().is_none() {
            self.refresh().await;
        }
    }

    /// Takes in the cached table that the start found, once there is a key for its seal.
    ///
    /// # Errors
    /// It is not as it was written, too old, or nobody can tell.
    pub fn believe(&self) -> Result<(), StoreError> {
        let mut found = self.0.found.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(sealed) = found.as_ref() else {
            return Ok(());
        };
        let held =
            snapshot::verified(sealed, &self.0.keys, self.0.database.cache()).map_err(|why| {
                let path = snapshot::path(&self.0.directory);
                self.outage(&format!(
                    "nothing is served from the cached table {}, as {why}",
                    path.display()
                ))
            })?;
        tracing::warn!(
            age = held.age().as_secs(),
            "the state database is out of reach; served from the cached table"
        );
        *found = None;
        self.hold(held);
        Ok(())
    }

    /// What it looks like.
    #[must_use]
    pub fn seen(&self) -> FleetSeen {
        let outage = match &*self.0.reach.borrow() {
            Reach::Up(_) => None,
            Reach::Down { since, why } => Some((why.to_string(), rfc3339(*since))),
        };
        let waiting = self.0.queue.waiting();
        let durability = self.0.durability.read();
        FleetSeen {
            database: self.0.name.clone(),
            outage,
            durability: durability.unwrap_or_else(PoisonError::into_inner).clone(),
            cache_age: self.held().map(|held| held.age().as_secs()),
            cache_seconds: self.0.database.cache_seconds,
            sealed: self.0.keys.any(),
            at_risk: waiting.issued,
            queued: waiting.lines,
            rejected: waiting.rejected,
        }
    }

    /// The servers, as last read.
    #[must_use]
    pub fn servers_seen(&self) -> Vec<KeyServer> {
        self.held()
            .map(|held| held.snapshot.servers.clone())
            .unwrap_or_default()
    }

    /// The newest change of a KEK's state that the table has, by number; none before the first look.
    #[must_use]
    pub fn knows(&self) -> Option<i64> {
        self.held().map(|held| held.snapshot.newest_state())
    }

    /// Openings that failed, as last read, of all servers.
    #[must_use]
    pub fn failed_seen(&self) -> Option<Vec<FailedOpening>> {
        self.held().map(|held| held.snapshot.failed.clone())
    }

    /// Queues what is about to be given out while the database is out of reach. On the disk when it
    /// returns.
    ///
    /// # Errors
    /// It cannot be sealed or written.
    pub async fn queue(&self, issuance: &Issuance) -> Result<(), StoreError> {
        let entry = Entry::Issue {
            issuance: Box::new(issuance.clone()),
            at: OffsetDateTime::now_utc(),
        };
        self.add(entry).await
    }

    async fn add(&self, entry: Entry) -> Result<(), StoreError> {
        if !self.0.keys.any() {
            return Err(self.outage("no token gave a key for the seal of the local queue"));
        }
        let written = self.0.queue.add(&self.0.keys, entry).await;
        written.map_err(|source| StoreError::Directory {
            path: self.0.directory.clone(),
            source,
        })
    }

    /// Reads the table anew, or looks whether the database is back; brings in what is queued and
    /// writes the cached table. What was brought in.
    pub async fn tick(&self) -> Vec<Brought> {
        self.0.queue.verify(&self.0.keys);
        if self.is_down() {
            self.again().await;
        }
        self.refresh().await;
        let brought = self.bring_in().await;
        self.save().await;
        brought
    }

    async fn refresh(&self) {
        let read = self
            .ask("the table", |sql| async move {
                let durability = sql.durability().await?;
                Snapshot::read(&sql).await.map(|read| (read, durability))
            })
            .await;
        match read {
            Ok((read, durability)) => {
                let mut known = self
                    .0
                    .durability
                    .write()
                    .unwrap_or_else(PoisonError::into_inner);
                *known = durability;
                drop(known);
                self.hold(Held::new(read));
            }
            Err(StoreError::Outage { .. }) => {}
            Err(error) => tracing::warn!(%error, "the table cannot be read"),
        }
    }

    async fn save(&self) {
        let Some(held) = self.held().filter(|_| !self.is_down() && self.0.keys.any()) else {
            return;
        };
        let due = {
            let saved = self.0.saved.lock().unwrap_or_else(PoisonError::into_inner);
            let rest = SAVE.min(self.0.database.cache() / 4);
            saved.as_ref().is_none_or(|(former, at)| {
                at.elapsed() >= rest || !former.snapshot.same_as(&held.snapshot)
            })
        };
        if !due {
            return;
        }
        let (fleet, written) = (self.clone(), Arc::clone(&held));
        let outcome = tokio::task::spawn_blocking(move || {
            snapshot::save(&fleet.0.directory, &fleet.0.keys, &written)
        })
        .await;
        match outcome.map_err(std::io::Error::other).flatten() {
            Ok(()) => {
                let mut saved = self.0.saved.lock().unwrap_or_else(PoisonError::into_inner);
                *saved = Some((held, Instant::now()));
            }
            Err(error) => tracing::warn!(%error, "the cached table cannot be written"),
        }
    }

    fn hold(&self, held: Held) {
        let mut now = self.0.held.write().unwrap_or_else(PoisonError::into_inner);
        *now = Some(Arc::new(held));
    }

    fn held(&self) -> Option<Arc<Held>> {
        let held = self.0.held.read().unwrap_or_else(PoisonError::into_inner);
        held.clone()
    }

    /// The cached table, where it is not too old.
    fn cached(&self, what: &str) -> Result<Arc<Held>, StoreError> {
        let held = self.held().ok_or_else(|| self.outage(what))?;
        let most = self.0.database.cache();
        if held.age() > most {
            return Err(self.outage(&format!(
                "{what}: the cached table is older than database.cache_seconds = {}",
                most.as_secs()
            )));
        }
        Ok(held)
    }

    /// What was not found is not there, unless it may be in what no token has verified yet. Some
    /// minutes after the start, lines that stay are of a token that may never come back, and hold up
    /// nobody.
    fn nowhere<T>(&self, what: &str, found: Option<T>) -> Result<Option<T>, StoreError> {
        if self.0.keys.any() && self.0.opened.elapsed() > SETTLED {
            return Ok(found);
        }
        self.unless_unread(what, found)
    }

    /// Has lines of before the start verified, as soon as a token gave a key: they come before the
    /// answer that the database gives.
    fn read_queue(&self) {
        if self.0.queue.is_unread() && self.0.opened.elapsed() <= SETTLED {
            self.0.queue.verify(&self.0.keys);
        }
    }

    fn unless_unread<T>(&self, what: &str, found: Option<T>) -> Result<Option<T>, StoreError> {
        if found.is_none() && self.0.queue.is_unread() {
            let why = "what this server gave out in an outage before it was started is on its disk, and no token has verified it yet";
            return Err(self.outage_by(what, why));
        }
        Ok(found)
    }
}

fn rfc3339(time: OffsetDateTime) -> String {
    time.truncate_to_second()
        .format(&time::format_description::well_known::Rfc3339)
        .unwrap_or_default()
}
