//! Seals: the token's signature under the newest record, when one is due and when one is asked for.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;

use super::Chain;
use crate::audit::{
    AuditError, AuditLog, ChainMark, Event, Kind, Outcome, Seal, SealFound, SealKey, statement,
};
use crate::problem::Problem;
use crate::service::{Service, unrecorded, unstored};
use crate::store::SealKeyRow;

/// How often a seal that is due is tried.
const AGAIN: Duration = Duration::from_secs(5);

/// How long a seal may be late before that is an alarm.
const LATE: Duration = Duration::from_secs(10);

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

impl Chain {
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

    pub(super) async fn tend_seals(&self) {
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
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::super::SWITCH;
    use super::*;
    use crate::audit::{Keep, Options, Reserve, newest_seal};

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
