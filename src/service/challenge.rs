//! Challenges for session keys: given once, taken back once, within a minute.
//!
//! Both all of them and those of one peer are bounded. Past a bound the oldest
//! is forgotten, of the peer that asks or of the one that has most, so a flood
//! costs its own peer the challenges that it does not use, and nobody else's.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::tls::PeerId;

/// Bytes of a challenge.
const LENGTH: usize = 32;

/// How long a challenge is good.
const LIFE: Duration = Duration::from_secs(60);

/// Most challenges that wait, some 10 MB.
const MOST: usize = 100_000;

/// Most that wait of one peer: a proxy may ask for a thousand drives at once.
const MOST_OF_PEER: usize = 4_096;

/// The challenges that were given and not taken back.
#[derive(Debug, Default)]
pub(super) struct Challenges(Mutex<Given>);

#[derive(Debug, Default)]
struct Given {
    all: HashMap<[u8; LENGTH], Note>,
    // By the order in which they were given; never an empty one.
    of_peer: HashMap<PeerId, BTreeMap<u64, [u8; LENGTH]>>,
    next: u64,
}

#[derive(Debug)]
struct Note {
    at: Instant,
    number: u64,
    peer: PeerId,
}

impl Challenges {
    /// A new one; none where the operating system gives no random numbers.
    pub(super) fn give(&self, peer: &PeerId) -> Option<Vec<u8>> {
        let mut challenge = [0; LENGTH];
        aws_lc_rs::rand::fill(&mut challenge).ok()?;
        let mut given = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        given.note(challenge, peer, MOST, MOST_OF_PEER);
        Some(challenge.to_vec())
    }

    /// Whether it was given, is not used, and is not too old.
    pub(super) fn take(&self, challenge: &[u8]) -> bool {
        let Ok(challenge) = <[u8; LENGTH]>::try_from(challenge) else {
            return false;
        };
        let mut given = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        given
            .forget(&challenge)
            .is_some_and(|note| note.at.elapsed() < LIFE)
    }
}

impl Given {
    fn note(&mut self, challenge: [u8; LENGTH], peer: &PeerId, most: usize, most_of_peer: usize) {
        self.forget_old(peer);
        let own = self.of_peer.get(peer).map_or(0, BTreeMap::len);
        let gives_way = if own >= most_of_peer {
            Some(peer.clone())
        } else if self.all.len() >= most {
            let fullest = self.of_peer.iter().max_by_key(|(_, own)| own.len());
            fullest.map(|(fullest, _)| fullest.clone())
        } else {
            None
        };
        if let Some(oldest) = gives_way.and_then(|peer| self.oldest(&peer)) {
            self.forget(&oldest);
        }
        let number = self.next;
        self.next += 1;
        let own = self.of_peer.entry(peer.clone()).or_default();
        own.insert(number, challenge);
        let (at, peer) = (Instant::now(), peer.clone());
        self.all.insert(challenge, Note { at, number, peer });
    }

    fn oldest(&self, peer: &PeerId) -> Option<[u8; LENGTH]> {
        self.of_peer.get(peer)?.values().next().copied()
    }

    /// Forgets what this peer did not use in time.
    fn forget_old(&mut self, peer: &PeerId) {
        while let Some(oldest) = self.oldest(peer)
            && self
                .all
                .get(&oldest)
                .is_some_and(|note| note.at.elapsed() >= LIFE)
        {
            self.forget(&oldest);
        }
    }

    fn forget(&mut self, challenge: &[u8; LENGTH]) -> Option<Note> {
        let note = self.all.remove(challenge)?;
        if let Some(own) = self.of_peer.get_mut(&note.peer) {
            own.remove(&note.number);
            if own.is_empty() {
                self.of_peer.remove(&note.peer);
            }
        }
        Some(note)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(name: &str) -> PeerId {
        format!("proxy:{name}").parse().unwrap()
    }

    #[test]
    fn a_challenge_is_good_once() {
        let challenges = Challenges::default();
        let challenge = challenges.give(&peer("a")).unwrap();
        assert!(challenges.take(&challenge));
        assert!(!challenges.take(&challenge));
        assert!(!challenges.take(&[0; 31]));
    }

    #[test]
    fn a_flood_costs_its_own_peer_the_oldest_and_another_peer_nothing() {
        let challenges = Challenges::default();
        let other = challenges.give(&peer("other")).unwrap();
        let first = challenges.give(&peer("flood")).unwrap();
        let second = challenges.give(&peer("flood")).unwrap();
        for _ in 0..MOST_OF_PEER - 1 {
            challenges.give(&peer("flood")).unwrap();
        }
        assert!(!challenges.take(&first));
        assert!(challenges.take(&second));
        assert!(challenges.take(&other));
    }

    #[test]
    fn where_all_are_too_many_the_peer_that_has_most_loses_its_oldest() {
        let mut given = Given::default();
        for n in 0..4 {
            given.note([n; LENGTH], &peer("most"), 5, 5);
        }
        given.note([10; LENGTH], &peer("a"), 5, 5);
        given.note([11; LENGTH], &peer("b"), 5, 5);
        assert!(given.forget(&[0; LENGTH]).is_none());
        assert!(given.forget(&[10; LENGTH]).is_some());
        assert!(given.forget(&[11; LENGTH]).is_some());
        assert_eq!((given.all.len(), given.of_peer.len()), (3, 1));
    }
}
