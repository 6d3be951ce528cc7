//! The audit chain's seals, anchors, retention, and the emergency policy.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;

use super::words::unstored_as_told;
use super::{Service, unrecorded, unstored};
use crate::audit::{
    Anchor, AuditError, AuditLog, ChainMark, Event, Keep, Kind, Outcome, Reserve, Seal, SealFound,
    SealKey, hash_at, newest_seal, removable, remove, statement,
};
use crate::config::Config;
use crate::problem::Problem;
use crate::store::{Anchored, SealKeyRow, StoreError};

/// How often a seal that is due is tried.
const AGAIN: Duration = Duration::from_secs(5);

/// How often an anchor that was not taken is tried again.
const ANCHORING: Duration = Duration::from_secs(60);

/// How often the newest record is kept in the database.
const HEADS: Duration = Duration::from_secs(10);

/// How often it is looked for files that may go.
const CLEANING: Duration = Duration::from_secs(60);

/// How long a seal may be late before that is an alarm.
const LATE: Duration = Duration::from_secs(10);

/// The file that says that the emergency policy is on, in the state directory.
const SWITCH: &str = "audit-emergency";

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

/// A seal that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealMade {
    /// The seal.
    pub seal: SealFound,
    /// The token that made it.
    pub token: String,
    /// Where it could not be anchored, and why.
    pub not_anchored: Vec<String>,
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

/// How the emergency policy is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EmergencySeen {
    /// Whether it is on.
    pub on: bool,
    /// Whether the disk takes no record.
    pub disk_failed: bool,
    /// Records that are in memory only.
    pub kept: u64,
    /// Records that there was no room for.
    pub lost: u64,
    /// Since when, RFC 3339.
    pub since: Option<String>,
    /// Bytes of disk that are held in reserve.
    pub reserve: u64,
    /// What is to be thought of, one sentence each.
    pub notes: Vec<String>,
}

/// Whether the policy was on when the server ended.
pub(crate) fn was_on(config: &Config) -> bool {
    config.state.join(SWITCH).exists()
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

    /// Puts a seal on record, and takes note of it as the newest; with `accepted`, of a chain that
    /// is the right one from now on.
    ///
    /// The writer writes what is queued also where nobody waits for it any more. A caller that is
    /// cut off here, as at the stop, would leave a seal that this server does not know of, and the
    /// next one would have its number: a log that counts as forged for ever. So this part is a
    /// task of its own, and has the lock until it has ended; whoever makes the next seal waits.
    async fn put(
        &self,
        audit: &AuditLog,
        alone: OwnedMutexGuard<()>,
        mut event: Event,
        seal: Seal,
        accepted: bool,
    ) -> Result<(SealFound, OwnedMutexGuard<()>), AuditError> {
        let (audit, known) = (audit.clone(), Arc::clone(&self.known));
        let put = tokio::spawn(async move {
            let (number, covers, key) = (seal.number, seal.seq, seal.key.clone());
            event.chain = Some(Box::new(ChainMark::Seal(seal)));
            let receipt = audit.record(event).await?;
            let found = SealFound {
                number,
                seq: receipt.seq(),
                hash: receipt.hash(),
                covers,
                key,
            };
            let mut held = known.lock().unwrap_or_else(PoisonError::into_inner);
            if accepted {
                held.mismatch = None;
            }
            held.newest = Some(Some((found.clone(), OffsetDateTime::now_utc())));
            drop(held);
            Ok::<_, AuditError>((found, alone))
        });
        put.await.unwrap_or(Err(AuditError::Stopped))
    }
}

impl Service {
    /// Seals the chain, and anchors the seal. With `accept`, also where the chain is not the one
    /// that is anchored: its seals go on from the anchored number.
    ///
    /// # Errors
    /// No key, no token that has it, or the seal cannot be recorded.
    pub async fn seal_audit(&self, accept: bool) -> Result<SealMade, Problem> {
        let chain = &self.chain;
        let alone = Arc::clone(&chain.sealing).lock_owned().await;
        let anchored = self.compare_chain().await?;
        if let Some(mismatch) = chain.known().mismatch.clone().filter(|_| !accept) {
            return Err(Problem::unavailable(format!(
                "nothing is sealed: {mismatch}; find out why, then say ekm audit seal --accept"
            )));
        }
        let keys = self.store.seal_keys().await;
        let keys = keys.map_err(|error| unstored(&error))?;
        let found = chain.known().mismatch.clone();
        if keys.is_empty()
            && let Some(mismatch) = found
        {
            let mut event = Event::new(Kind::Runtime, "audit-accept", Outcome::Success);
            event.detail = Some(format!("accepted by an operator: {mismatch}"));
            let receipt = self.audit.record(event).await;
            receipt.map_err(|error| unrecorded(&error))?;
            chain.known().mismatch = None;
            return Err(Problem::unavailable(
                "what was found is accepted, and that is on record; nothing is sealed, as there is no key that seals: ekm audit key --generate",
            ));
        }
        if keys.is_empty() {
            return Err(Problem::unavailable(
                "there is no key that seals; make one on a token: ekm audit key --generate",
            ));
        }
        if self.audit.gap().is_some() {
            return Err(Problem::unavailable(
                "the audit disk takes no records now, so there is nothing to seal; make room on it",
            ));
        }
        let Some(head) = self.audit.head() else {
            return Err(Problem::unavailable("there is no audit record yet"));
        };
        let newest = chain.newest().await.map_err(|error| unrecorded(&error))?;
        let last = newest.map_or(0, |(seal, _)| seal.number);
        let mut number = last.max(anchored.map_or(0, |anchor| anchor.number)) + 1;
        if accept && chain.anchor_tokens {
            number = number.max(self.highest_kept().await.saturating_add(1));
        }
        let digest = statement(&self.node, number, head.seq, &head.hash);
        let ids: Vec<_> = keys.iter().map(|key| key.id).collect();
        let (which, token, signature) = self
            .tokens
            .sign_seal(&ids, digest)
            .await
            .map_err(|reason| Problem::unavailable(format!("nothing is sealed: {reason}")))?;
        let key = keys.get(which).and_then(|row| SealKey::new(&row.spki).ok());
        let key = key.filter(|key| key.verifies(&digest, &signature)).ok_or_else(|| {
            Problem::internal(format!(
                "token {token} made a seal that does not verify under the key that the state has for it; make a new one: ekm audit key --generate"
            ))
        })?;
        let mut event = Event::new(Kind::Runtime, "audit-seal", Outcome::Success);
        event.token = Some(token.clone());
        let accepted = chain.known().mismatch.clone().filter(|_| accept);
        if let Some(mismatch) = &accepted {
            event.detail = Some(format!("accepted by an operator: {mismatch}"));
        }
        let seal = Seal {
            number,
            seq: head.seq,
            hash: head.hash,
            key: key.fingerprint(),
            signature: STANDARD.encode(signature),
        };
        let put = chain.put(&self.audit, alone, event, seal, accepted.is_some());
        let (seal, _alone) = put.await.map_err(|error| unrecorded(&error))?;
        let not_anchored = self.anchor(&seal).await;
        Ok(SealMade {
            seal,
            token,
            not_anchored,
        })
    }

    /// The highest number of this server's seals that tokens keep.
    async fn highest_kept(&self) -> u64 {
        let kept = self.tokens.kept_anchors().await;
        kept.iter()
            .filter(|anchor| anchor.node == self.node)
            .filter_map(|anchor| anchor.text.parse::<Anchor>().ok())
            .map(|anchor| anchor.number)
            .max()
            .unwrap_or(0)
    }

    /// Keeps a seal elsewhere; what did not take it.
    async fn anchor(&self, seal: &SealFound) -> Vec<String> {
        let mut failed = Vec::new();
        let anchor = Anchored {
            node: self.node.clone(),
            number: seal.number,
            seq: seal.seq,
            hash: seal.hash.clone(),
            at: OffsetDateTime::now_utc(),
        };
        match self.store.add_anchor(&anchor).await {
            Ok(true) => self.chain.known().anchored = Some(seal.clone()),
            Ok(false) => {
                let reason = format!(
                    "another seal {} of {} is anchored in the state database: two servers have the name {}, or the audit directory was put back from a copy",
                    seal.number, self.node, self.node
                );
                self.chain.known().mismatch = Some(reason.clone());
                failed.push(reason);
            }
            Err(error) => failed.push(error.to_string()),
        }
        if self.chain.anchor_tokens {
            let text = format!("{}:{}", seal.number, seal.hash);
            let not_kept = self.tokens.keep_anchor(&self.node, &text).await;
            failed.extend(not_kept.failed);
            if let Some(newer) = not_kept.newer.first() {
                let reason = format!(
                    "token {} keeps seal {} of {}, and this is seal {text}: the audit log and the state were put back from a copy, or two servers have the name {}",
                    newer.token, newer.text, self.node, self.node
                );
                self.chain.known().mismatch = Some(reason.clone());
                failed.push(reason);
            }
        }
        let told = (!failed.is_empty()).then(|| failed.join("; "));
        self.chain.known().unanchored = told;
        failed
    }

    /// Compares the chain with its newest anchor in the database, once.
    async fn compare_chain(&self) -> Result<Option<Anchored>, Problem> {
        let anchored = self.store.anchor(&self.node).await;
        let anchored = anchored.map_err(|error| self.chain.unread(&error))?;
        let newest = self.chain.newest().await;
        let newest = newest.map_err(|error| unrecorded(&error))?;
        if self.chain.known().compared {
            self.chain.known().told_unread = None;
            return Ok(anchored);
        }
        let cut = self.compare_head().await?;
        let mut known = self.chain.known();
        if !known.compared {
            known.compared = true;
            let own = newest.map(|(seal, _)| seal);
            known.mismatch = mismatch(own.as_ref(), anchored.as_ref(), &self.node).or(cut);
            if known.mismatch.is_none()
                && let Some(own) = own
            {
                if anchored
                    .as_ref()
                    .is_some_and(|anchor| anchor.number == own.number)
                {
                    known.anchored = Some(own);
                } else {
                    known.unanchored = Some(format!("seal {} is not anchored yet", own.number));
                }
            }
        }
        Ok(anchored)
    }

    /// Why the chain does not hold the newest record that the database knows of.
    async fn compare_head(&self) -> Result<Option<String>, Problem> {
        let kept = self.store.chain_head(&self.node).await;
        let kept = kept.map_err(|error| self.chain.unread(&error))?;
        self.chain.known().told_unread = None;
        let (Some(kept), Some(own)) = (kept, self.audit.head()) else {
            return Ok(None);
        };
        let node = &self.node;
        if kept.seq > own.seq {
            return Ok(Some(format!(
                "the audit log of {node} ends with record {}, and the state database knows record {kept}: its end was cut off, an older copy was put back, or it was begun anew",
                own.seq
            )));
        }
        let (directory, seq) = (self.chain.directory.clone(), kept.seq);
        let looked = tokio::task::spawn_blocking(move || hash_at(&directory, seq));
        let found = looked.await.unwrap_or(Err(AuditError::Stopped));
        let found = found.map_err(|error| unrecorded(&error))?;
        Ok(found.filter(|hash| *hash != kept.hash).map(|hash| {
            format!(
                "record {} of {node} hashes to {hash}, and the state database knows {kept}: the end of the audit log was cut off or written anew",
                kept.seq
            )
        }))
    }

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

    /// Anchors the newest seal where that failed before.
    async fn tend_anchor(&self) {
        let due = {
            let mut known = self.chain.known();
            let due = known.unanchored.is_some()
                && known.mismatch.is_none()
                && known.anchoring.is_none_or(|at| at.elapsed() >= ANCHORING);
            if due {
                known.anchoring = Some(Instant::now());
            }
            due
        };
        if !due {
            return;
        }
        // Before the look, so that none that is newer is overtaken.
        let _alone = self.chain.sealing.lock().await;
        let newest = self.chain.known().newest.clone().flatten();
        if let Some((seal, _)) = newest {
            self.anchor(&seal).await;
        }
    }

    async fn tend_seals(&self) {
        let Some(interval) = self.chain.interval else {
            return;
        };
        let newest = self.chain.newest().await.ok().flatten();
        // Where nothing but the seal itself has been recorded since, there is nothing to seal.
        let head = self.audit.head().map_or(0, |head| head.seq);
        let now = OffsetDateTime::now_utc();
        let sealed = newest
            .as_ref()
            .is_some_and(|(seal, at)| seal.seq == head || (now - *at).unsigned_abs() < interval);
        {
            let mut known = self.chain.known();
            if sealed {
                known.due_since = None;
                known.late = None;
                return;
            }
            if known.tried.is_some_and(|at| at.elapsed() < AGAIN) {
                return;
            }
            known.tried = Some(Instant::now());
        }
        let keys = self.store.seal_keys().await;
        let there = keys.as_ref().is_ok_and(|keys| !keys.is_empty());
        if !there && !self.chain.demanded && newest.is_none() && keys.is_ok() {
            // While the state was away it was not known that no key seals here.
            let mut known = self.chain.known();
            known.due_since = None;
            known.late = None;
            return;
        }
        self.chain
            .known()
            .due_since
            .get_or_insert_with(Instant::now);
        match self.seal_audit(false).await {
            Ok(made) => {
                tracing::info!(
                    number = made.seal.number,
                    token = made.token,
                    "audit chain sealed"
                );
                let mut known = self.chain.known();
                known.due_since = None;
                known.late = None;
            }
            Err(problem) => {
                let mut known = self.chain.known();
                let overdue = known.due_since.is_some_and(|since| since.elapsed() >= LATE);
                if overdue || known.late.is_some() || !there {
                    known.late = Some(problem.detail);
                }
            }
        }
    }

    /// Keeps the newest record in the database, so that a cut behind the last seal shows too.
    async fn tend_head(&self) {
        {
            // One that is another's, or that shows a cut, stays.
            let known = self.chain.known();
            if !known.compared || known.mismatch.is_some() {
                return;
            }
        }
        let Some(head) = self.audit.head() else {
            return;
        };
        let due = self
            .chain
            .known()
            .head
            .is_none_or(|(seq, at)| seq != head.seq && at.elapsed() >= HEADS);
        if due && self.store.set_chain_head(&self.node, &head).await.is_ok() {
            self.chain.known().head = Some((head.seq, Instant::now()));
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

    /// The last seal of a server that stops, as far as a token makes it in time. One that is on its
    /// way to the log comes first.
    pub(crate) async fn seal_at_stop(&self, patience: Duration) {
        if self.chain.interval.is_none() {
            return;
        }
        if !self
            .store
            .seal_keys()
            .await
            .is_ok_and(|keys| !keys.is_empty())
        {
            return;
        }
        match tokio::time::timeout(patience, self.seal_audit(false)).await {
            Ok(Ok(_)) => {}
            Ok(Err(problem)) => {
                tracing::warn!(
                    reason = problem.detail,
                    "the audit chain was not sealed at the end"
                );
            }
            Err(_) => tracing::warn!("the audit chain was not sealed at the end: no token in time"),
        }
        self.chain.known().head = None;
        self.tend_head().await;
    }

    /// The keys that seal, the newest first.
    ///
    /// # Errors
    /// The state cannot be read.
    pub async fn seal_keys(&self) -> Result<Vec<SealKeyRow>, Problem> {
        self.store
            .seal_keys()
            .await
            .map_err(|error| unstored(&error))
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

    /// That more than a resolve may be served.
    pub(super) fn all_is_served(&self) -> Result<(), Problem> {
        if !self.audit.in_emergency() {
            return Ok(());
        }
        Err(Problem::unavailable(
            "the emergency policy of the audit log is on, so cartridges are read and nothing new is keyed, rekeyed or confirmed; ask another key server, or wait until an operator has made room on the audit disk (ekm audit emergency)",
        ))
    }

    /// Switches the emergency policy, or tells how it is.
    ///
    /// # Errors
    /// It cannot be switched off while the disk takes no records.
    pub(crate) async fn emergency(
        &self,
        operator: &str,
        switch: Option<bool>,
    ) -> Result<EmergencySeen, Problem> {
        let mut notes = Vec::new();
        match switch {
            Some(on) if on != self.audit.in_emergency() => {
                self.switch_emergency(operator, on, &mut notes).await?;
            }
            Some(_) | None => {}
        }
        let gap = self.audit.gap();
        Ok(EmergencySeen {
            on: self.audit.in_emergency(),
            disk_failed: gap.is_some() || self.audit.has_failed(),
            kept: gap.map_or(0, |gap| gap.kept),
            lost: gap.map_or(0, |gap| gap.lost),
            since: gap.and_then(|gap| gap.since.format(&Rfc3339).ok()),
            reserve: self.chain.reserve.held(),
            notes,
        })
    }

    async fn switch_emergency(
        &self,
        operator: &str,
        on: bool,
        notes: &mut Vec<String>,
    ) -> Result<(), Problem> {
        let action = if on {
            "audit-emergency-on"
        } else {
            "audit-emergency-off"
        };
        let mut event = Event::new(Kind::ConfigurationManagement, action, Outcome::Success);
        event.peer = Some(operator.to_owned());
        let chain = &self.chain;
        if !on {
            // While the policy is still on: this has the disk tried.
            self.audit.record(event).await.map_err(|error| {
                tracing::warn!(%error, "the emergency policy stays on");
                Problem::unavailable(format!(
                    "the emergency policy stays on, since the audit disk takes no records yet ({error}); make room on it first"
                ))
            })?;
            if let Err(error) = std::fs::remove_file(&chain.switch)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                notes.push(format!(
                    "{} cannot be removed ({error}), so the policy is on again after a restart",
                    chain.switch.display()
                ));
            }
            self.audit.set_emergency(false);
            chain.known().cleaned = None;
            return Ok(());
        }
        self.audit.set_emergency(true);
        match chain.reserve.release() {
            Ok(0) => {}
            Ok(bytes) => notes.push(format!(
                "{bytes} bytes of reserve were given to the records"
            )),
            Err(error) => notes.push(format!(
                "the reserve cannot be given to the records: {error}"
            )),
        }
        if let Err(error) = crate::files::write_private(&chain.switch, b"on\n") {
            notes.push(format!(
                "{} cannot be written ({error}), so the policy ends with this server",
                chain.switch.display()
            ));
        }
        let receipt = self.audit.record(event).await;
        let receipt = receipt.map_err(|error| unrecorded(&error))?;
        if !receipt.is_durable() {
            notes.push(
                "the disk takes no records: they are kept in memory, and go to syslog where that is configured"
                    .to_owned(),
            );
        }
        Ok(())
    }
}

/// Why a chain is not the one that is anchored.
fn mismatch(own: Option<&SealFound>, anchored: Option<&Anchored>, node: &str) -> Option<String> {
    let anchor = anchored?;
    match own {
        Some(own) if own.number > anchor.number => None,
        Some(own) if own.number == anchor.number && own.hash == anchor.hash => None,
        Some(own) if own.number == anchor.number => Some(format!(
            "seal {} of {node} hashes to {}, and the one that is anchored in the state database to {}: the audit log was written anew",
            own.number, own.hash, anchor.hash
        )),
        Some(own) => Some(format!(
            "the newest seal of {node} is {}, and seal {} is anchored in the state database: the end of the audit log was cut off, or an older copy was put back",
            own.number, anchor.number
        )),
        None => Some(format!(
            "the audit log has no seal, and seal {} of {node} is anchored in the state database: another directory, or the log was removed",
            anchor.number
        )),
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::audit::Options;

    /// The stop ends whoever waits for a seal's record, and makes a seal of its own at once.
    #[tokio::test]
    async fn a_seal_that_was_cut_off_as_it_was_recorded_keeps_its_number() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let audit = AuditLog::open(path, "node", Options::default()).unwrap();
        let chain = Chain {
            directory: path.to_owned(),
            switch: path.join(SWITCH),
            reserve: Reserve::of(path, 0),
            interval: None,
            demanded: false,
            anchor_tokens: false,
            keep: Keep::default(),
            sealing: Arc::default(),
            known: Arc::default(),
        };
        assert_eq!(chain.newest().await.unwrap(), None);
        let event = Event::new(Kind::Runtime, "audit-seal", Outcome::Success);
        let seal = Seal {
            number: 1,
            seq: 0,
            hash: "00".to_owned(),
            key: "11".to_owned(),
            signature: String::new(),
        };
        let alone = Arc::clone(&chain.sealing).lock_owned().await;
        let put = chain.put(&audit, alone, event, seal, false);
        assert!(put.now_or_never().is_none());

        let _next = chain.sealing.lock().await;
        let (newest, _) = chain.newest().await.unwrap().unwrap();
        assert_eq!(newest.number, 1);
        let (written, _) = newest_seal(path).unwrap().unwrap();
        assert_eq!(written, newest);
    }
}
