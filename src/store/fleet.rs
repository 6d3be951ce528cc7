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
mod local;
mod queue;
mod snapshot;
mod store;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use super::{DatabaseConfig, FailedOpening, Issuance, KeyServer, Sql, StoreError};
use local::Sealed;
use queue::{Entry, Queue};
use snapshot::{Held, Snapshot};

pub use bring::Brought;
pub use local::LocalKeys;

/// How long a start waits for the database.
const OPENING: Duration = Duration::from_secs(10);

/// How long a database that left a question unanswered has to say anything at all.
const PROBE: Duration = Duration::from_secs(1);

/// A commit waits for the disk, and for the replica: so many times as long as an answer.
const COMMIT: u32 = 4;

/// Commits of one server at once. One whose replica does not answer keeps its connection, and the
/// others are for reading.
const COMMITS: usize = 8;

/// Longest time between two writes of the cached table.
const SAVE: Duration = Duration::from_secs(10);

/// Longest time that connections of a pool that was given up are waited for.
const CLOSING: Duration = Duration::from_secs(60);

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

#[derive(Clone, Debug)]
enum Reach {
    Up(Arc<Up>),
    Down {
        since: OffsetDateTime,
        why: Arc<str>,
    },
}

#[derive(Debug)]
struct Up {
    sql: Sql,
    commits: Arc<Semaphore>,
}

impl Reach {
    fn up(sql: Sql) -> Self {
        Self::Up(Arc::new(Up {
            sql,
            commits: Arc::new(Semaphore::new(COMMITS)),
        }))
    }
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

    async fn again(&self) {
        match connect(&self.0.database, self.0.database.answer() + PROBE).await {
            Ok(sql) => {
                tracing::info!(database = self.0.name, "the state database answers again");
                self.0.reach.send_replace(Reach::up(sql));
            }
            Err(error) => {
                self.0.reach.send_modify(|reach| {
                    if let Reach::Down { why, .. } = reach {
                        *why = error.to_string().into();
                    }
                });
            }
        }
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

    fn up(&self, what: &str) -> Result<Arc<Up>, StoreError> {
        match &*self.0.reach.borrow() {
            Reach::Up(up) => Ok(Arc::clone(up)),
            Reach::Down { why, .. } => Err(self.outage_by(what, why)),
        }
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

    fn outage(&self, what: &str) -> StoreError {
        let why = match &*self.0.reach.borrow() {
            Reach::Up(_) => "it did not answer in its time".into(),
            Reach::Down { why, .. } => Arc::clone(why),
        };
        self.outage_by(what, &why)
    }

    fn outage_by(&self, what: &str, why: &str) -> StoreError {
        StoreError::Outage {
            name: self.0.name.clone(),
            what: what.to_owned(),
            why: why.to_owned(),
        }
    }

    /// Resolves when that connection to the database is given up.
    async fn given_up(&self, up: &Arc<Up>) {
        let mut reach = self.0.reach.subscribe();
        let other = |reach: &Reach| !matches!(reach, Reach::Up(now) if Arc::ptr_eq(now, up));
        // It ends with the sender, which is here.
        let _ = reach.wait_for(other).await;
    }

    /// Asks the database, for as long as an answer may take.
    ///
    /// # Errors
    /// [`StoreError::Outage`], or what the database says.
    async fn ask<T, F>(&self, what: &str, ask: impl FnOnce(Sql) -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let up = self.up(what)?;
        let answer = tokio::select! {
            answer = timeout(self.0.database.answer(), ask(up.sql.clone())) => answer,
            () = self.given_up(&up) => return Err(self.outage(what)),
        };
        self.heard(what, &up, answer.ok()).await
    }

    /// Changes the database, for as long as a commit may take. What was sent goes on without whoever
    /// asked: a connection whose commit waits for a replica is of no use to anybody else.
    ///
    /// # Errors
    /// [`StoreError::Outage`], after which it may be committed all the same, or what the database
    /// says.
    async fn change<T, F>(&self, what: &str, change: impl FnOnce(Sql) -> F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        let up = self.up(what)?;
        let change = change(up.sql.clone());
        let commits = Arc::clone(&up.commits);
        let work = async {
            // Never closed.
            let place = commits.acquire_owned().await.ok();
            let task = tokio::spawn(async move {
                let outcome = change.await;
                drop(place);
                outcome
            });
            task.await
        };
        let patience = self.0.database.answer() * COMMIT;
        let answer = tokio::select! {
            answer = timeout(patience, work) => answer,
            () = self.given_up(&up) => return Err(self.outage(what)),
        };
        let answer = match answer {
            Ok(Ok(answer)) => Some(answer),
            Ok(Err(error)) => {
                tracing::error!(%error, "a change of the state ended in a panic; this is a defect");
                return Err(self.outage(what));
            }
            Err(_) => None,
        };
        self.heard(what, &up, answer).await
    }

    /// What came of a question; none where its time was over.
    async fn heard<T>(
        &self,
        what: &str,
        up: &Arc<Up>,
        answer: Option<Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        match answer {
            Some(Err(error)) if lost(&error) => {
                self.lose(up, &error.to_string());
                Err(self.outage(what))
            }
            Some(answer) => answer,
            None => {
                // One statement may wait for a lock or a replica, with all else well.
                let alive = timeout(PROBE, up.sql.ping()).await;
                if !matches!(alive, Ok(Ok(()))) {
                    self.lose(up, "it does not answer");
                }
                Err(self.outage(what))
            }
        }
    }

    fn lose(&self, up: &Arc<Up>, why: &str) {
        let lost = self.0.reach.send_if_modified(|reach| {
            let current = matches!(reach, Reach::Up(now) if Arc::ptr_eq(now, up));
            if current {
                *reach = Reach::Down {
                    since: OffsetDateTime::now_utc(),
                    why: why.into(),
                };
            }
            current
        });
        if !lost {
            return;
        }
        tracing::error!(
            database = self.0.name,
            why,
            "the state database is out of reach; what every request needs is served from the cached table"
        );
        let sql = up.sql.clone();
        tokio::spawn(async move {
            // Its connections may hang.
            let _ = timeout(CLOSING, sql.close()).await;
        });
    }
}

async fn connect(database: &DatabaseConfig, patience: Duration) -> Result<Sql, StoreError> {
    let late = || StoreError::Outage {
        name: database.to_string(),
        what: "the state".to_owned(),
        why: format!("it does not answer within {} s", patience.as_secs()),
    };
    timeout(patience, Sql::postgres(database))
        .await
        .unwrap_or_else(|_| Err(late()))
}

/// Whether the database is not there, or ends the connection.
fn lost(error: &StoreError) -> bool {
    let source = match error {
        StoreError::Outage { .. } => return true,
        StoreError::Database { source, .. } => source,
        StoreError::Migrate { .. }
        | StoreError::Damaged { .. }
        | StoreError::LabelTaken { .. }
        | StoreError::Changed { .. }
        | StoreError::KekClosed { .. }
        | StoreError::Unconfigured { .. }
        | StoreError::NoRandom
        | StoreError::Directory { .. } => return false,
    };
    match source {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => true,
        // 57P: operator intervention; 08: connection exception; 53300: too many connections
        // (PostgreSQL documentation, appendix A).
        sqlx::Error::Database(said) => said.code().is_some_and(|code| {
            code.starts_with("57P") || code.starts_with("08") || code == "53300"
        }),
        _ => false,
    }
}

fn rfc3339(time: OffsetDateTime) -> String {
    time.truncate_to_second()
        .format(&time::format_description::well_known::Rfc3339)
        .unwrap_or_default()
}
