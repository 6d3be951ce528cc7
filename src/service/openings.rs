//! The budget of EEDKs by PKCS#1 v1.5 that were not issued here and do not open.
//!
//! Whether one opens is hidden from whoever sent it (`bridge/guard.rs`), as well as can be; what
//! the token's own time gives away cannot be. So the questions are counted: of one peer in an hour,
//! and under one KEK for ever. Each opening is a row in the state, committed before its answer
//! leaves and the same whatever came of it. A place in both budgets is taken before the token is
//! asked, so that a thousand questions at once are no more than one after another.
//!
//! A budget that is spent stays spent until an operator looks (`ekm eedk failures`). EEDKs that were
//! issued here, and those by OAEP, are opened all the same.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};
use tokio::sync::Notify;

use crate::key::KekHash;
use crate::keystore::Guarded;
use crate::policy::PolicyConfig;
use crate::store::{FailedOpening, Forgiven, Opening, Store, StoreError};
use crate::tls::PeerId;

/// The time in which a peer's failures count together.
const WINDOW: Duration = Duration::HOUR;

/// How long the commit of a failure may take.
const UNCOMMITTED: Duration = Duration::minutes(1);

/// The budgets.
#[derive(Debug)]
pub(super) struct Openings {
    per_peer: usize,
    per_kek: usize,
    known: Arc<Mutex<Known>>,
    ended: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Known {
    failed: Vec<FailedOpening>,
    peers: HashMap<PeerId, usize>,
    keks: HashMap<KekHash, usize>,
    openings: u64,
    refused: u64,
}

/// A place in both budgets, until what came of the EEDK is noted or it was not opened.
#[derive(Debug)]
pub(super) struct Place {
    peer: PeerId,
    kek: KekHash,
    known: Arc<Mutex<Known>>,
    ended: Arc<Notify>,
}

/// A budget that is spent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Spent {
    #[error(
        "it is wrapped by RSAES-PKCS1-v1_5 and was not issued here, and no more of these are opened for {0}: too many did not open; an operator finds out why, then: ekm eedk failures --forgive-peer {0}"
    )]
    Peer(PeerId),
    #[error(
        "it is wrapped by RSAES-PKCS1-v1_5 and was not issued here, and no more of these are opened under its KEK: too many did not open; an operator finds out why, then: ekm eedk failures --forgive-kek LABEL"
    )]
    Kek,
}

/// Whose budget it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Whose {
    /// A peer's.
    Peer(PeerId),
    /// A KEK's, by its public-key hash.
    Kek(KekHash),
}

/// A budget at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BudgetSeen {
    /// Whose it is.
    pub whose: Whose,
    /// Failures that count: of a peer the most that fell into one hour, of a KEK all.
    pub failures: usize,
    /// How many spend it.
    pub limit: usize,
    /// When the last one was.
    #[serde(with = "time::serde::rfc3339")]
    pub last: OffsetDateTime,
}

impl BudgetSeen {
    /// Whether no more are opened.
    #[must_use]
    pub const fn spent(&self) -> bool {
        self.failures >= self.limit
    }
}

/// What was counted since the server started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpeningsCounted {
    /// Guarded openings, whatever came of them.
    pub openings: u64,
    /// Requests that found a budget spent.
    pub refused: u64,
}

impl Openings {
    pub(super) fn new(policy: &PolicyConfig, failed: Vec<FailedOpening>) -> Self {
        let limit = |count| usize::try_from(count).unwrap_or(usize::MAX);
        Self {
            per_peer: limit(policy.pkcs1_v15_failures_per_peer),
            per_kek: limit(policy.pkcs1_v15_failures_per_kek),
            known: Arc::new(Mutex::new(Known {
                failed,
                ..Known::default()
            })),
            ended: Arc::default(),
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        hold(&self.known)
    }

    /// Takes a place; waits where those that are under way might spend the rest.
    pub(super) async fn take(&self, peer: &PeerId, kek: &KekHash) -> Result<Place, Spent> {
        loop {
            let ended = self.ended.notified();
            tokio::pin!(ended);
            // Before the look, or an end in between would be missed.
            ended.as_mut().enable();
            if let Some(outcome) = self.try_take(peer, kek, OffsetDateTime::now_utc()) {
                return outcome;
            }
            ended.await;
        }
    }

    fn try_take(
        &self,
        peer: &PeerId,
        kek: &KekHash,
        now: OffsetDateTime,
    ) -> Option<Result<Place, Spent>> {
        let mut known = self.known();
        if known.worst_hour(peer) >= self.per_peer {
            known.refused += 1;
            return Some(Err(Spent::Peer(peer.clone())));
        }
        if known.of_kek(kek) >= self.per_kek {
            known.refused += 1;
            return Some(Err(Spent::Kek));
        }
        let under_way = |places: Option<&usize>| places.copied().unwrap_or_default();
        let of_peer = known.last_hour(peer, now) + under_way(known.peers.get(peer));
        let of_kek = known.of_kek(kek) + under_way(known.keks.get(kek));
        if of_peer >= self.per_peer || of_kek >= self.per_kek {
            return None;
        }
        *known.peers.entry(peer.clone()).or_default() += 1;
        *known.keks.entry(*kek).or_default() += 1;
        Some(Ok(Place {
            peer: peer.clone(),
            kek: *kek,
            known: Arc::clone(&self.known),
            ended: Arc::clone(&self.ended),
        }))
    }

    /// Commits what came of an EEDK, and frees its place.
    pub(super) async fn note(
        &self,
        store: &dyn Store,
        place: Place,
        came: &Guarded,
    ) -> Result<(), StoreError> {
        let opening = Opening {
            peer: place.peer.clone(),
            kek: place.kek,
            failed: came.rejected(),
            at: OffsetDateTime::now_utc(),
        };
        // Counted even where the state cannot be written; then there is no answer either.
        self.count(&opening);
        drop(place);
        store.note_opening(&opening).await
    }

    /// What all servers have in the state now. An own failure that is not committed yet stays.
    pub(super) fn merge(&self, all: Vec<FailedOpening>) {
        let mut known = self.known();
        let recent = OffsetDateTime::now_utc() - UNCOMMITTED;
        let own = std::mem::replace(&mut known.failed, all);
        for failure in own.into_iter().filter(|failure| failure.at >= recent) {
            let there = known.failed.iter().any(|other| {
                other.peer == failure.peer && other.kek == failure.kek && other.at == failure.at
            });
            if !there {
                known.failed.push(failure);
            }
        }
    }

    fn count(&self, opening: &Opening) {
        let Opening {
            peer,
            kek,
            failed,
            at,
        } = opening;
        let mut known = self.known();
        known.openings += 1;
        if *failed {
            known.failed.push(FailedOpening {
                peer: peer.clone(),
                kek: *kek,
                at: *at,
                of_peer: true,
                of_kek: true,
            });
        }
    }

    /// Every budget that a failure counts in, the fullest first.
    pub(super) fn seen(&self) -> Vec<BudgetSeen> {
        let known = self.known();
        let mut seen: Vec<BudgetSeen> = Vec::new();
        for failure in known.failed.iter().rev() {
            let whose = [
                (failure.of_peer, Whose::Peer(failure.peer.clone())),
                (failure.of_kek, Whose::Kek(failure.kek)),
            ];
            for (_, whose) in whose.into_iter().filter(|(counts, _)| *counts) {
                if seen.iter().any(|budget| budget.whose == whose) {
                    continue;
                }
                let (failures, limit) = match &whose {
                    Whose::Peer(peer) => (known.worst_hour(peer), self.per_peer),
                    Whose::Kek(kek) => (known.of_kek(kek), self.per_kek),
                };
                seen.push(BudgetSeen {
                    whose,
                    failures,
                    limit,
                    last: failure.at,
                });
            }
        }
        seen.sort_by_key(|budget| (!budget.spent(), std::cmp::Reverse(budget.failures)));
        seen
    }

    pub(super) fn counted(&self) -> OpeningsCounted {
        let known = self.known();
        OpeningsCounted {
            openings: known.openings,
            refused: known.refused,
        }
    }

    /// Failures that count no longer; they are gone from the state already.
    pub(super) fn forget(&self, whose: &Forgiven) {
        let mut known = self.known();
        for failure in &mut known.failed {
            match whose {
                Forgiven::Peer(peer) if failure.peer == *peer => failure.of_peer = false,
                Forgiven::Kek(kek) if failure.kek == *kek => failure.of_kek = false,
                Forgiven::Peer(_) | Forgiven::Kek(_) => {}
            }
        }
        known
            .failed
            .retain(|failure| failure.of_peer || failure.of_kek);
    }
}

impl Known {
    /// The most failures of a peer that ever fell into one hour.
    fn worst_hour(&self, peer: &PeerId) -> usize {
        let times: Vec<OffsetDateTime> = self.times(peer).collect();
        let within = |from: &OffsetDateTime| {
            let later = times.iter().filter(|at| *at >= from);
            later.filter(|at| **at - *from <= WINDOW).count()
        };
        times.iter().map(within).max().unwrap_or_default()
    }

    fn last_hour(&self, peer: &PeerId, now: OffsetDateTime) -> usize {
        self.times(peer).filter(|at| now - *at <= WINDOW).count()
    }

    fn times(&self, peer: &PeerId) -> impl Iterator<Item = OffsetDateTime> {
        let failed = self.failed.iter();
        failed
            .filter(move |failure| failure.of_peer && failure.peer == *peer)
            .map(|failure| failure.at)
    }

    fn of_kek(&self, kek: &KekHash) -> usize {
        let failed = self.failed.iter();
        failed
            .filter(|failure| failure.of_kek && failure.kek == *kek)
            .count()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut known = hold(&self.known);
        let Known { peers, keks, .. } = &mut *known;
        lower(peers, &self.peer);
        lower(keks, &self.kek);
        drop(known);
        self.ended.notify_waiters();
    }
}

fn lower<K: std::hash::Hash + Eq>(places: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = places.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            places.remove(key);
        }
    }
}

fn hold(known: &Mutex<Known>) -> MutexGuard<'_, Known> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
