//! The audit chain's evidence: its seals and their anchors, what is kept of its files, and the
//! emergency policy.

mod anchors;
mod emergency;
mod sealing;

pub use emergency::EmergencySeen;
pub(crate) use emergency::was_on;
pub use sealing::SealMade;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::Instant;

use super::words::unstored_as_told;
use super::{Service, unstored};
use crate::audit::{
    AuditError, ChainMark, Event, Keep, Kind, Outcome, Reserve, SealFound, newest_seal, removable,
    remove,
};
use crate::config::Config;
use crate::problem::Problem;
use crate::store::StoreError;
use emergency::SWITCH;

/// How often it is looked for files that may go.
const CLEANING: Duration = Duration::from_secs(60);

/// What a server knows of its chain's evidence.
#[derive(Debug)]
pub(super) struct Chain {
    directory: PathBuf,
    switch: PathBuf,
    reserve: Reserve,
    interval: Option<Duration>,
    demanded: bool,
    anchor_tokens: bool,
    keep: Keep,
    // One seal at a time.
    sealing: Arc<tokio::sync::Mutex<()>>,
    known: Arc<Mutex<Known>>,
}

#[derive(Debug, Default)]
struct Known {
    // The newest seal, once it was looked for, and when it was made.
    newest: Option<Option<(SealFound, OffsetDateTime)>>,
    tried: Option<Instant>,
    due_since: Option<Instant>,
    late: Option<String>,
    // The newest seal that is anchored in the database.
    anchored: Option<SealFound>,
    unanchored: Option<String>,
    anchoring: Option<Instant>,
    // The chain is not the one that is anchored.
    mismatch: Option<String>,
    compared: bool,
    head: Option<(u64, Instant)>,
    cleaned: Option<Instant>,
    told_reserve: bool,
    // Why the state could not be read, as the log has it.
    told_unread: Option<String>,
}

/// What is wrong with the evidence now, in words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EvidenceSeen {
    /// Why a seal is late.
    pub late: Option<String>,
    /// Why the chain is not the one that is anchored.
    pub mismatch: Option<String>,
    /// That the emergency policy is on.
    pub emergency: Option<String>,
    /// Receivers that records do not reach.
    pub outlets: Vec<(String, String)>,
}

impl Chain {
    pub(super) fn new(config: &Config) -> Self {
        let records = &config.records;
        Self {
            directory: config.audit.clone(),
            switch: config.state.join(SWITCH),
            reserve: Reserve::of(&config.audit, records.reserve()),
            interval: records.sealing(),
            demanded: records.seal_minutes.is_some_and(|minutes| minutes > 0),
            anchor_tokens: records.anchor_tokens,
            keep: records.keep(),
            sealing: Arc::default(),
            known: Arc::default(),
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// That the state cannot be read. It is asked each second, and an outage may last for hours: the
    /// log has what is new.
    fn unread(&self, error: &StoreError) -> Problem {
        let told = self.known().told_unread.replace(error.to_string());
        if told.is_some_and(|told| told == error.to_string()) {
            unstored_as_told(error)
        } else {
            unstored(error)
        }
    }

    /// The newest seal of the chain; looked for once.
    async fn newest(&self) -> Result<Option<(SealFound, OffsetDateTime)>, AuditError> {
        if let Some(newest) = self.known().newest.clone() {
            return Ok(newest);
        }
        let directory = self.directory.clone();
        let looked = tokio::task::spawn_blocking(move || newest_seal(&directory));
        let found = looked.await.unwrap_or(Err(AuditError::Stopped))?;
        let found = found.map(|(seal, time)| {
            let time = OffsetDateTime::parse(&time, &Rfc3339);
            (seal, time.unwrap_or(OffsetDateTime::UNIX_EPOCH))
        });
        self.known().newest = Some(found.clone());
        Ok(found)
    }
}

impl Service {
    /// What is to be done now and then, once a second: seals, anchors, retention, the reserve.
    pub(crate) async fn tend_audit(&self) {
        if !self.chain.known().compared {
            // What is wrong is an alarm from now on; a database that is away is asked again.
            drop(self.compare_chain().await);
        }
        self.tend_anchor().await;
        self.tend_seals().await;
        self.tend_head().await;
        let clean = {
            let mut known = self.chain.known();
            let due = known.cleaned.is_none_or(|at| at.elapsed() >= CLEANING);
            if due {
                known.cleaned = Some(Instant::now());
            }
            due
        };
        if clean {
            if !self.audit.in_emergency() {
                let reserve = self.chain.reserve.clone();
                let made = tokio::task::spawn_blocking(move || reserve.make()).await;
                let failed = matches!(made, Ok(Err(_)));
                let told = std::mem::replace(&mut self.chain.known().told_reserve, failed);
                if let (Ok(Err(error)), false) = (made, told) {
                    tracing::warn!(%error, "no disk is held in reserve for audit records");
                }
            }
            if let Err(error) = self.retain().await {
                tracing::warn!(%error, "old audit files stay");
            }
        }
    }

    /// Removes old files that are sealed and anchored, once that is on record.
    async fn retain(&self) -> Result<(), AuditError> {
        let anchored = self.chain.known().anchored.clone();
        let Some(covered) = anchored.map(|seal| seal.covers) else {
            return Ok(());
        };
        let (directory, keep) = (self.chain.directory.clone(), self.chain.keep);
        let now = std::time::SystemTime::now();
        let looked = tokio::task::spawn_blocking({
            let directory = directory.clone();
            move || removable(&directory, keep, covered, now)
        });
        let Some(removal) = looked.await.unwrap_or(Err(AuditError::Stopped))? else {
            return Ok(());
        };
        let mut event = Event::new(
            Kind::ResourceManagement,
            "audit-retention",
            Outcome::Success,
        );
        event.detail = Some(format!(
            "{} file(s) removed, up to record {}",
            removal.count(),
            removal.begins.seq
        ));
        event.chain = Some(Box::new(ChainMark::Begins(removal.begins.clone())));
        self.audit.record(event).await?;
        let removed = tokio::task::spawn_blocking(move || remove(&directory, &removal));
        removed.await.unwrap_or(Err(AuditError::Stopped))
    }

    /// What is wrong with the evidence now.
    #[must_use]
    pub fn evidence(&self) -> EvidenceSeen {
        let known = self.chain.known();
        let emergency = self.audit.in_emergency().then(|| match self.audit.gap() {
            Some(gap) => format!(
                "the disk takes no records: {} are in memory, {} were lost",
                gap.kept, gap.lost
            ),
            None => "nothing but resolves is served".to_owned(),
        });
        let outlets = self.audit.outlets().into_iter().filter_map(|outlet| {
            let why = match outlet.down {
                Some(reason) => reason,
                None if outlet.losing => "some were lost just now".to_owned(),
                None => return None,
            };
            let told = format!("{why}; {} sent, {} lost", outlet.sent, outlet.lost);
            Some((outlet.name, told))
        });
        EvidenceSeen {
            late: known.late.clone().or_else(|| known.unanchored.clone()),
            mismatch: known.mismatch.clone(),
            emergency,
            outlets: outlets.collect(),
        }
    }
}
