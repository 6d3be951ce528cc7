//! Which failures of a bridge are worth a warning.

use std::time::Duration;

use tokio::time::Instant;

/// A failure that stays the same is a warning this often at most.
const AGAIN: Duration = Duration::from_secs(60);

/// The failure that was last warned of.
#[derive(Debug, Default)]
pub(super) struct Warned {
    last: Option<(String, Instant)>,
    /// How often it has been the same one since.
    since: u64,
}

impl Warned {
    /// Whether to warn of this failure, and how often it has come since the last warning.
    pub(super) fn takes(&mut self, why: &str, now: Instant) -> Option<u64> {
        match &self.last {
            Some((last, at)) if last == why => {
                self.since += 1;
                if now.saturating_duration_since(*at) < AGAIN {
                    return None;
                }
            }
            Some(_) | None => self.since = 0,
        }
        self.last = Some((why.to_owned(), now));
        Some(std::mem::take(&mut self.since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_that_stays_the_same_is_warned_of_once_a_minute() {
        let mut warned = Warned::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(warned.takes("away", at(0)), Some(0));
        for seconds in 1..60 {
            assert_eq!(warned.takes("away", at(seconds)), None);
        }
        assert_eq!(warned.takes("away", at(60)), Some(60));
        assert_eq!(warned.takes("away", at(61)), None);
        assert_eq!(warned.takes("gone", at(62)), Some(0));
        assert_eq!(warned.takes("away", at(63)), Some(0));
    }
}
