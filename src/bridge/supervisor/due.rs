//! When a token is asked for its canary.

use std::time::Duration;

/// Once nothing has been opened for so many periods, the canary is asked for also behind requests.
const UNPROVED: u32 = 3;

/// What waits for a bridge's answer.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct UnderWay {
    /// All of it.
    pub(super) requests: usize,
    /// Whether a key pair is made, which may take minutes.
    pub(super) making: bool,
}

/// The time for the answer to a canary that is due now, the token's own `deadline` or more; none
/// where none is due. `proof` is how long ago an EEDK was last opened or made, if ever.
pub(super) fn canary(
    period: Duration,
    proof: Option<Duration>,
    under_way: UnderWay,
    deadline: Duration,
) -> Option<Duration> {
    let old = |bound: Duration| proof.is_none_or(|age| age >= bound);
    // An EEDK that was opened is as good as a canary.
    if under_way.requests == 0 {
        return old(period).then_some(deadline);
    }
    // Behind a backlog it would tell of the backlog only, until so many requests have failed that
    // they may not be at fault. All that is before it has ended within one deadline, and it has
    // another for itself: a healthy token that is slow does not let it be overdue. Behind a key
    // pair that is made it would only wait.
    (!under_way.making && old(period * UNPROVED)).then_some(deadline * 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD: Duration = Duration::from_secs(5);
    const DEADLINE: Duration = Duration::from_secs(30);

    fn due(proof: Option<u64>, requests: usize, making: bool) -> Option<u64> {
        let proof = proof.map(Duration::from_secs);
        let under_way = UnderWay { requests, making };
        canary(PERIOD, proof, under_way, DEADLINE).map(|time| time.as_secs())
    }

    #[test]
    fn an_idle_token_is_asked_when_nothing_was_opened_for_a_period() {
        assert_eq!(due(Some(4), 0, false), None);
        assert_eq!(due(Some(5), 0, false), Some(30));
        assert_eq!(due(None, 0, false), Some(30));
    }

    #[test]
    fn a_token_where_all_requests_fail_is_asked_all_the_same_and_has_time() {
        assert_eq!(due(Some(5), 1, false), None);
        assert_eq!(due(Some(14), 8, false), None);
        assert_eq!(due(Some(15), 8, false), Some(60));
        assert_eq!(due(None, 8, false), Some(60));
    }

    #[test]
    fn no_canary_waits_behind_a_key_pair_that_is_made() {
        assert_eq!(due(Some(600), 1, true), None);
        assert_eq!(due(None, 3, true), None);
    }
}
