//! Challenges for session keys: given once, taken back once, within a minute.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Bytes of a challenge.
const LENGTH: usize = 32;

/// How long a challenge is good.
const LIFE: Duration = Duration::from_secs(60);

/// Most challenges that wait; past this a flood would cost memory.
const MOST: usize = 100_000;

/// The challenges that were given and not taken back.
#[derive(Debug, Default)]
pub(super) struct Challenges(Mutex<HashMap<[u8; LENGTH], Instant>>);

impl Challenges {
    /// A new one; none where too many wait or there is no randomness.
    pub(super) fn give(&self) -> Option<Vec<u8>> {
        let mut challenge = [0; LENGTH];
        aws_lc_rs::rand::fill(&mut challenge).ok()?;
        let mut given = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if given.len() >= MOST {
            given.retain(|_, at| at.elapsed() < LIFE);
        }
        if given.len() >= MOST {
            return None;
        }
        given.insert(challenge, Instant::now());
        Some(challenge.to_vec())
    }

    /// Whether it was given, is not used, and is not too old.
    pub(super) fn take(&self, challenge: &[u8]) -> bool {
        let Ok(challenge) = <[u8; LENGTH]>::try_from(challenge) else {
            return false;
        };
        let mut given = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        given
            .remove(&challenge)
            .is_some_and(|at| at.elapsed() < LIFE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_challenge_is_good_once() {
        let challenges = Challenges::default();
        let challenge = challenges.give().unwrap();
        assert!(challenges.take(&challenge));
        assert!(!challenges.take(&challenge));
        assert!(!challenges.take(&[0; 31]));
    }
}
