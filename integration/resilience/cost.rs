//! What a fault cost: when the token served again, and which requests failed
//! although they should not.

use std::fmt;
use std::time::{Duration, Instant};

use super::load::Asked;
use super::{HUNG, Ill, MAIN};

/// How soon the token serves again, on a machine that has nothing else to do.
const SOON: Duration = Duration::from_secs(2);

/// The longest that it may take after any fault: the supervisor's long pause would be ten.
pub(super) const LATEST: Duration = Duration::from_secs(6);

/// Least share of the requests outside a fault's window that must succeed, percent.
const SHARE: usize = 95;

/// A fault's time.
pub(super) struct Window {
    pub(super) ill: Ill,
    pub(super) from: Instant,
    /// When the token would serve again whoever asked it anew.
    pub(super) back: Instant,
    /// When the next fault began, or the load ended.
    pub(super) until: Instant,
}

impl Window {
    /// Whether a request ended in it. One that the next fault stopped is that one's.
    fn has(&self, asked: &Asked) -> bool {
        (self.from..self.until).contains(&asked.done)
    }
}

/// What a fault cost.
pub(super) struct Cost<'a> {
    pub(super) window: &'a Window,
    ended: Vec<&'a Asked>,
    /// Those that the fault does not excuse: sent when the token had answered again, and its
    /// two seconds for that were over.
    outside: Vec<&'a Asked>,
    /// From the token's return to its first answer to what was asked after that. An answer of
    /// another token is none.
    first: Option<Duration>,
}

impl<'a> Cost<'a> {
    pub(super) fn of(window: &'a Window, asked: &'a [Asked]) -> Self {
        let ended: Vec<&Asked> = asked.iter().filter(|asked| window.has(asked)).collect();
        let answers = ended.iter().filter(|asked| {
            asked.failed.is_none()
                && asked.token.as_deref() == Some(MAIN)
                && asked.sent >= window.back
        });
        let first = answers
            .map(|asked| asked.done.duration_since(window.back))
            .min();
        let over = window.back + first.unwrap_or(LATEST).max(SOON);
        let outside = ended.iter().copied();
        let outside = outside.filter(|asked| asked.sent >= over).collect();
        Self {
            window,
            ended,
            outside,
            first,
        }
    }

    fn away(&self) -> Duration {
        self.window.back.duration_since(self.window.from)
    }

    /// The requests that failed.
    pub(super) fn refused(&self) -> impl Iterator<Item = &'a Asked> {
        let ended = self.ended.iter().copied();
        ended.filter(|asked| asked.failed.is_some())
    }

    pub(super) fn complaints(&self, least: usize) -> Vec<String> {
        let (all, failed) = (self.outside.len(), failed(&self.outside));
        let mut complaints = Vec::new();
        if self.first.is_none_or(|first| first > LATEST) {
            let first = self.first;
            complaints.push(format!(
                "the first answer of {MAIN} came {first:?} after its return"
            ));
        }
        // Fewer would prove nothing.
        if all < least || failed * 100 > all * (100 - SHARE) {
            complaints.push(format!(
                "{failed} of {all} requests failed outside its window"
            ));
        }
        if self.window.ill == Ill::ModuleHangs && self.away() > HUNG {
            let away = self.away();
            complaints.push(format!("the bridge was let live for {away:?}"));
        }
        let why = self.ended.iter().find_map(|asked| asked.failed.as_deref());
        let why = why.unwrap_or("no request failed");
        complaints
            .into_iter()
            .map(|complaint| format!("{}: {complaint} ({why})", self.window.ill))
            .collect()
    }
}

impl fmt::Display for Cost<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let times = self.ended.iter();
        let slowest = times
            .map(|asked| asked.done.duration_since(asked.sent))
            .max();
        write!(
            f,
            "{:45} away {:4.1} s, first answer {:?} after; {} of {} failed, {} of {} outside its window; slowest {:?}",
            self.window.ill.to_string(),
            self.away().as_secs_f64(),
            self.first,
            failed(&self.ended),
            self.ended.len(),
            failed(&self.outside),
            self.outside.len(),
            slowest,
        )
    }
}

/// The complaint that the token was not back soon after half of the faults, where `start` is what
/// it takes here to have everything run.
pub(super) fn slow(costs: &[Cost<'_>], start: Duration) -> Option<String> {
    // A busy machine takes longer for all that it starts, and keeps this or that fault waiting: so
    // the two seconds grow with a start, and they are asked of half of the faults.
    let bound = SOON.max(start * 2);
    let mut firsts: Vec<Duration> = costs
        .iter()
        .map(|cost| cost.first.unwrap_or(Duration::MAX))
        .collect();
    firsts.sort_unstable();
    let median = firsts[firsts.len() / 2];
    (median > bound).then(|| {
        format!(
            "half of the first answers came {median:?} or later after the return of {MAIN}; a start takes {start:?} here, so {bound:?} would do"
        )
    })
}

fn failed(asked: &[&Asked]) -> usize {
    asked.iter().filter(|asked| asked.failed.is_some()).count()
}
