//! The database's reach: what it is asked, for as long as that may take, and how it is lost and found
//! again.

use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::Fleet;
use crate::store::{DatabaseConfig, Sql, StoreError};

/// How long a database that left a question unanswered has to say anything at all.
const PROBE: Duration = Duration::from_secs(1);

/// A commit waits for the disk, and for the replica: so many times as long as an answer.
const COMMIT: u32 = 4;

/// Commits of one server at once. One whose replica does not answer keeps its connection, and the
/// others are for reading.
const COMMITS: usize = 8;

/// Longest time that connections of a pool that was given up are waited for.
const CLOSING: Duration = Duration::from_secs(60);

#[derive(Clone, Debug)]
pub(super) enum Reach {
    Up(Arc<Up>),
    Down {
        since: OffsetDateTime,
        why: Arc<str>,
    },
}

#[derive(Debug)]
pub(super) struct Up {
    pub(super) sql: Sql,
    commits: Arc<Semaphore>,
}

impl Reach {
    pub(super) fn up(sql: Sql) -> Self {
        Self::Up(Arc::new(Up {
            sql,
            commits: Arc::new(Semaphore::new(COMMITS)),
        }))
    }
}

impl Fleet {
    pub(super) async fn again(&self) {
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

    pub(super) fn up(&self, what: &str) -> Result<Arc<Up>, StoreError> {
        match &*self.0.reach.borrow() {
            Reach::Up(up) => Ok(Arc::clone(up)),
            Reach::Down { why, .. } => Err(self.outage_by(what, why)),
        }
    }

    pub(super) fn outage(&self, what: &str) -> StoreError {
        let why = match &*self.0.reach.borrow() {
            Reach::Up(_) => "it did not answer in its time".into(),
            Reach::Down { why, .. } => Arc::clone(why),
        };
        self.outage_by(what, &why)
    }

    pub(super) fn outage_by(&self, what: &str, why: &str) -> StoreError {
        StoreError::Outage {
            name: self.0.name.clone(),
            what: what.to_owned(),
            why: why.to_owned(),
        }
    }

    /// Resolves when that connection to the database is given up.
    pub(super) async fn given_up(&self, up: &Arc<Up>) {
        let mut reach = self.0.reach.subscribe();
        let other = |reach: &Reach| !matches!(reach, Reach::Up(now) if Arc::ptr_eq(now, up));
        // It ends with the sender, which is here.
        let _ = reach.wait_for(other).await;
    }

    /// Asks the database, for as long as an answer may take.
    ///
    /// # Errors
    /// [`StoreError::Outage`], or what the database says.
    pub(super) async fn ask<T, F>(
        &self,
        what: &str,
        ask: impl FnOnce(Sql) -> F,
    ) -> Result<T, StoreError>
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
    pub(super) async fn change<T, F>(
        &self,
        what: &str,
        change: impl FnOnce(Sql) -> F,
    ) -> Result<T, StoreError>
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
    pub(super) async fn heard<T>(
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

pub(super) async fn connect(
    database: &DatabaseConfig,
    patience: Duration,
) -> Result<Sql, StoreError> {
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
