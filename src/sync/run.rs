//! One sync, from its question to its record.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio::time::timeout;
use uuid::Uuid;

use super::compare::{self, DefaultsDiffer};
use super::plan::{Plan, plan};
use super::reader::{Met, plain};
use super::report::changed;
use super::wire::{Head, KekFact, SealHeld};
use super::{HistoryTaken, Mode, Reader, SyncError, SyncFrom, SyncReport, What};
use crate::audit::Outcome;
use crate::bridge::supervisor::Bridge;
use crate::key::KekHash;
use crate::keystore::Directory;
use crate::service::{STARTING, Service};
use crate::store::merge::{Changes, DriveRow, TableDump};
use crate::store::sync::{HistoryRow, Reach};
use crate::store::{Anchored, DriveKey, StoreError};

/// How far the peer's clock may be from ours.
const APART: time::Duration = time::Duration::minutes(2);

/// Time for reading everything but the history.
const READING: Duration = Duration::from_secs(300);

/// Time for the history; the next sync goes on from there.
const HISTORY: Duration = Duration::from_secs(240);

/// How often a plan is made anew because a row changed meanwhile.
const PLANS: usize = 3;

/// What a sync is asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ask {
    /// The peer, by its name in the configuration.
    pub from: String,
    /// Which tables; else as configured.
    pub what: Option<What>,
    /// Whose rows stand; else as configured.
    pub mode: Option<Mode>,
    /// Whether nothing is written.
    pub dry_run: bool,
    /// Also where the clocks differ, or a rewrite would empty the table.
    pub force: bool,
}

/// Takes a peer's tables in, or says what that would change. `who` asks, as records name him.
///
/// # Errors
/// See [`SyncError`]; nothing was changed, except that whole pages of the history stay.
pub async fn run(service: &Service, who: &str, ask: &Ask) -> Result<SyncReport, SyncError> {
    let peers = service.peers();
    let Some(from) = peers.config.named(&ask.from) else {
        let names: Vec<String> = peers
            .config
            .from
            .iter()
            .map(|one| one.peer.to_string())
            .collect();
        return Err(SyncError::Unknown {
            name: ask.from.clone(),
            known: if names.is_empty() {
                "; there is none (docs/sync.md)".to_owned()
            } else {
                format!("; there are {}", names.join(", "))
            },
        });
    };
    let _turn = peers.turn.try_lock().map_err(|_| SyncError::Busy)?;
    let sync = Sync {
        service,
        who,
        from,
        what: ask.what.unwrap_or(from.what),
        mode: ask.mode.unwrap_or(from.mode),
        ask,
        id: Uuid::new_v4(),
    };
    let mut outcome = sync.run().await;
    if ask.dry_run {
        return outcome;
    }
    let (result, detail) = match &outcome {
        Ok(report) => (Outcome::Success, report.summary()),
        Err(error) => (Outcome::Failure, error.to_string()),
    };
    if let Err(error) = sync.record(result, detail).await
        && outcome.is_ok()
    {
        outcome = Err(error);
    }
    peers.note(&from.peer, &outcome);
    outcome
}

/// One that is under way.
pub(super) struct Sync<'a> {
    pub(super) service: &'a Service,
    pub(super) who: &'a str,
    pub(super) from: &'a SyncFrom,
    what: What,
    mode: Mode,
    ask: &'a Ask,
    pub(super) id: Uuid,
}

/// What was read of a peer, but its history.
struct Read {
    met: Met,
    facts: Vec<KekFact>,
    tables: TableDump,
}

impl Sync<'_> {
    async fn run(&self) -> Result<SyncReport, SyncError> {
        let Self {
            service, from, ask, ..
        } = self;
        let peers = service.peers();
        // Read anew, as they may have been renewed.
        let tls = peers.tls()?;
        let answer = peers.config.answer_time();
        let mut reader = Reader::open(from, Arc::new(tls), answer).await?;
        let read = timeout(READING, self.read(&mut reader));
        let read = read.await.unwrap_or_else(|_| {
            let reason = format!("its tables did not come within {} s", READING.as_secs());
            Err(reader.answer("/v1/sync", reason))
        })?;
        // What is on a token that is starting is not known yet.
        service.tokens().started(STARTING).await;
        let directory = service.directory().await?;
        let mut differences = compare::keks(&directory, &read.facts);
        differences.policy = compare::policy(&service.policy_json(), &read.met.head.policy);
        let states = service.store().kek_states().await?;
        differences.states = compare::states(&directory, &states, &read.facts);
        differences.chain = self.keep_seal(read.met.head.seal.as_ref()).await?;
        let mut report = SyncReport {
            peer: from.peer.clone(),
            node: plain(&read.met.head.node),
            what: self.what,
            mode: self.mode,
            dry_run: ask.dry_run,
            clock_ahead_ms: i64::try_from(read.met.apart.whole_milliseconds()).unwrap_or(i64::MAX),
            drives: Vec::new(),
            defaults: None,
            history: None,
            left: Vec::new(),
            differences,
        };
        self.take_tables(&reader, &read, &directory, &mut report)
            .await?;
        let mut to_the_end = false;
        if self.what.history() {
            if !ask.dry_run {
                let end = read.met.head.history;
                let what = format!("history up to row {end} there");
                self.record(Outcome::Intent, what).await?;
            }
            let history = report.history.insert(HistoryTaken::default());
            let taken = self.take_history(&mut reader, &read.met.head, history);
            match taken.await {
                Ok(end) => to_the_end = end,
                Err(cause) => return Err(report.partly(cause)),
            }
        }
        let ours = report.defaults.clone();
        let ours = match ours.filter(|_| ask.dry_run) {
            Some(would_be) => would_be,
            None => service.store().defaults().await?,
        };
        let theirs = &read.met.head.defaults.defaults;
        if ours != *theirs {
            report.differences.defaults = Some(DefaultsDiffer {
                ours,
                theirs: theirs.clone(),
            });
        }
        if !ask.dry_run {
            let now = OffsetDateTime::now_utc();
            let noted = service.store().note_synced(&from.peer, now).await;
            noted.map_err(|error| report.partly(error.into()))?;
            // Whoever retires a KEK waits for those that write under it, so this is all of it.
            if to_the_end {
                peers.note_whole(&from.peer, &read.facts);
            }
        }
        Ok(report)
    }

    /// Keeps the peer's newest audit seal, so that a cut of its log shows here; says what is wrong
    /// with it.
    async fn keep_seal(&self, seal: Option<&SealHeld>) -> Result<Option<String>, SyncError> {
        let store = self.service.store();
        // No node has such a name.
        let node = self.from.peer.to_string();
        let kept = store.anchor(&node).await?;
        let wrong = compare::chain(kept.as_ref(), seal);
        if let Some(seal) = seal
            && wrong.is_none()
            && !self.ask.dry_run
        {
            let anchor = Anchored {
                node,
                number: seal.number,
                seq: seal.seq,
                hash: seal.hash.clone(),
                at: OffsetDateTime::now_utc(),
            };
            store.add_anchor(&anchor).await?;
        }
        Ok(wrong)
    }

    async fn read(&self, reader: &mut Reader) -> Result<Read, SyncError> {
        let met = reader.head().await?;
        let apart = met.apart;
        if apart.abs() > APART && !self.ask.force {
            return Err(SyncError::Clock {
                peer: self.from.peer.clone(),
                seconds: apart.whole_seconds().unsigned_abs(),
                direction: if apart.is_negative() {
                    "behind"
                } else {
                    "ahead of"
                },
            });
        }
        let facts = reader.keks().await?;
        // One that is of the same rows and times is not read.
        let drives = if self.what.drives()
            && self.service.store().drive_extent().await? != met.head.drives
        {
            Some(reader.drives(met.head.clone()).await?)
        } else {
            None
        };
        let config = self.what.config();
        let tables = TableDump {
            drives,
            defaults: config.then(|| met.head.defaults.clone()),
            // Compared, and not taken: a label is pinned where a key is, and the seals of partners'
            // rows are of the other's tokens.
            keks: None,
            partners: None,
        };
        // Where the clocks may differ, its rows are of its clock.
        let now = OffsetDateTime::now_utc().max(met.head.now);
        let old = tables.drives.iter().flatten();
        let old = old
            .filter(|row| row.updated < OffsetDateTime::UNIX_EPOCH)
            .map(|row| format!("drive {} is dated before 1970", row.drive.serial));
        if let Some(fault) = tables.faults(now).into_iter().chain(old).next() {
            return Err(reader.answer("/v1/sync", fault));
        }
        Ok(Read { met, facts, tables })
    }

    /// Drives and defaults, all or nothing.
    async fn take_tables(
        &self,
        reader: &Reader,
        read: &Read,
        directory: &Directory,
        report: &mut SyncReport,
    ) -> Result<(), SyncError> {
        let store = self.service.store();
        let mut attempt = 1;
        loop {
            let ours = store.dump_tables().await?;
            let states = store.kek_states().await?;
            let now = OffsetDateTime::now_utc();
            let Plan {
                changes,
                left,
                emptied,
            } = plan(
                &ours,
                &read.tables,
                self.mode,
                &report.differences,
                (directory, &states),
                now,
            );
            if let Some((deleted, of)) = emptied.filter(|_| !self.ask.force) {
                return Err(SyncError::Emptied {
                    peer: self.from.peer.clone(),
                    deleted,
                    of,
                });
            }
            report.drives = changed(&changes);
            report.defaults = changes
                .defaults
                .as_ref()
                .map(|write| write.row.defaults.clone());
            report.left = left;
            report.left.extend(self.blessed(&changes));
            if self.ask.dry_run || changes.is_empty() {
                return Ok(());
            }
            self.record_intents(report, &changes).await?;
            match store.apply(&changes).await {
                Ok(()) => return Ok(()),
                // Somebody changed a row meanwhile; what he did counts in the next plan.
                Err(StoreError::Changed { .. }) if attempt < PLANS => attempt += 1,
                Err(StoreError::Changed { what }) => {
                    let why = format!("{what} was changed here again and again meanwhile");
                    return Err(reader.answer("/v1/sync", why));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Drives that lose their key here, and whose key a token's security officer has blessed.
    fn blessed(&self, changes: &Changes) -> Vec<String> {
        let bridges = self.service.tokens().bridges().iter();
        let trusted: Vec<(String, Vec<KekHash>)> = bridges.filter_map(trusted).collect();
        if trusted.is_empty() {
            return Vec::new();
        }
        let key = |row: &DriveRow| match &row.drive.key {
            DriveKey::Pinned(spki) if !row.deleted => Some(KekHash::of_spki(spki)),
            DriveKey::Pinned(_) | DriveKey::Certified | DriveKey::None => None,
        };
        let mut all = Vec::new();
        for write in &changes.drives {
            let Some(lost) = write.over.as_ref().and_then(key) else {
                continue;
            };
            if key(&write.row) == Some(lost) {
                continue;
            }
            for (token, _) in trusted.iter().filter(|(_, keys)| keys.contains(&lost)) {
                all.push(format!(
                    "drive {} loses its key here, and token {token} still trusts that key; the next ekm drive trust there takes it away",
                    write.row.drive.serial
                ));
            }
        }
        all
    }

    async fn take_history(
        &self,
        reader: &mut Reader,
        head: &Head,
        taken: &mut HistoryTaken,
    ) -> Result<bool, SyncError> {
        let store = self.service.store();
        let peer = &self.from.peer;
        let begun = Instant::now();
        let newest = OffsetDateTime::now_utc().max(head.now) + APART;
        let known = store.synced(peer).await?.reach;
        // None once the row that was read last has been looked at.
        let mut check = known.clone();
        let mut next = known.as_ref().map_or(1, |reach| reach.id);
        let mut reach: Option<Reach> = None;
        loop {
            let (mut rows, more) = reader.history(next).await?;
            if let Some(known) = check.take() {
                let same = |row: &HistoryRow| row.id == known.id && row.mark() == known.mark;
                if !rows.first().is_some_and(same) {
                    // Another database is behind that name now, or an older state of it.
                    taken.anew = true;
                    next = 1;
                    continue;
                }
                rows.remove(0);
            }
            let last = rows.last().map_or(next, |row| row.id);
            if let Some(row) = rows.iter().find(|row| row.at > newest) {
                let reason = format!("row {} of the history is dated in the future", row.id);
                return Err(reader.answer("/v1/sync/history", reason));
            }
            for row in &rows {
                // Behind that end another with a smaller number may still appear.
                if row.id <= head.history {
                    reach = Some(Reach {
                        id: row.id,
                        mark: row.mark(),
                    });
                }
            }
            if !rows.is_empty() {
                let dry = self.ask.dry_run;
                let new = store.take_history(peer, &rows, reach.as_ref(), dry).await?;
                taken.rows += u64::try_from(rows.len()).unwrap_or(u64::MAX);
                taken.generations += new.generations;
                taken.renumbered += new.renumbered;
                taken.states += new.states;
                taken.unlike += new.unlike;
            }
            if !more || last >= head.history {
                taken.complete = true;
                return Ok(!more);
            }
            if begun.elapsed() > HISTORY {
                return Ok(false);
            }
            next = last.saturating_add(1);
        }
    }
}

fn trusted(bridge: &Bridge) -> Option<(String, Vec<KekHash>)> {
    let state = bridge.state();
    let found = state.found()?;
    (!found.trusted.is_empty()).then(|| (bridge.name().to_owned(), found.trusted.clone()))
}
