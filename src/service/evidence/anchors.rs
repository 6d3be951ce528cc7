//! Where a seal is kept beside the log, and whether the log is still the one of which that is known.

use std::time::Duration;

use time::OffsetDateTime;
use tokio::time::Instant;

use crate::audit::{Anchor, AuditError, SealFound, hash_at};
use crate::problem::Problem;
use crate::service::{Service, unrecorded};
use crate::store::Anchored;

/// How often an anchor that was not taken is tried again.
const ANCHORING: Duration = Duration::from_secs(60);

/// How often the newest record is kept in the database.
const HEADS: Duration = Duration::from_secs(10);

impl Service {
    /// The highest number of this server's seals that tokens keep.
    pub(super) async fn highest_kept(&self) -> u64 {
        let kept = self.tokens.kept_anchors().await;
        kept.iter()
            .filter(|anchor| anchor.node == self.node)
            .filter_map(|anchor| anchor.text.parse::<Anchor>().ok())
            .map(|anchor| anchor.number)
            .max()
            .unwrap_or(0)
    }

    /// Keeps a seal elsewhere; what did not take it.
    pub(super) async fn anchor(&self, seal: &SealFound) -> Vec<String> {
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
    pub(super) async fn compare_chain(&self) -> Result<Option<Anchored>, Problem> {
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

    /// Anchors the newest seal where that failed before.
    pub(super) async fn tend_anchor(&self) {
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

    /// Keeps the newest record in the database, so that a cut behind the last seal shows too.
    pub(super) async fn tend_head(&self) {
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
