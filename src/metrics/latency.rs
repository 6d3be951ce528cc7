//! How long things take, in buckets that several threads fill without a lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Upper bounds of the buckets, microseconds: from a call to a token in
/// process to the longest time that a request may take. One more bucket has
/// what takes longer.
pub const BOUNDS: [u64; 18] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 2_500_000, 5_000_000, 10_000_000, 30_000_000, 60_000_000,
];

const BUCKETS: usize = BOUNDS.len() + 1;

/// Times that were taken, while they are taken.
#[derive(Debug, Default)]
pub struct Latency {
    buckets: [AtomicU64; BUCKETS],
    microseconds: AtomicU64,
}

impl Latency {
    /// Counts one time. Two additions, no lock.
    pub fn observe(&self, took: Duration) {
        let took = u64::try_from(took.as_nanos().div_ceil(1_000)).unwrap_or(u64::MAX);
        let at = BOUNDS.partition_point(|bound| *bound < took);
        if let Some(bucket) = self.buckets.get(at) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.microseconds.fetch_add(took, Ordering::Relaxed);
    }

    /// What was counted so far.
    #[must_use]
    pub fn read(&self) -> Histogram {
        Histogram {
            buckets: std::array::from_fn(|at| {
                self.buckets
                    .get(at)
                    .map_or(0, |bucket| bucket.load(Ordering::Relaxed))
            }),
            microseconds: self.microseconds.load(Ordering::Relaxed),
        }
    }
}

/// Times that were taken, at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Histogram {
    /// How many in each bucket of [`BOUNDS`], and beyond the last.
    pub buckets: [u64; BUCKETS],
    /// Their sum, each rounded up.
    pub microseconds: u64,
}

impl Histogram {
    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Adds what another one counted.
    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.buckets.iter_mut().zip(other.buckets) {
            *mine = mine.saturating_add(theirs);
        }
        self.microseconds = self.microseconds.saturating_add(other.microseconds);
    }

    /// Their sum.
    #[must_use]
    pub const fn sum(&self) -> Duration {
        Duration::from_micros(self.microseconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_on_a_bound_is_in_the_bucket_that_ends_there() {
        let latency = Latency::default();
        for microseconds in [1, 100, 101, 60_000_000, 60_000_001] {
            latency.observe(Duration::from_micros(microseconds));
        }
        let seen = latency.read();
        assert_eq!(seen.count(), 5);
        assert_eq!((seen.buckets[0], seen.buckets[1]), (2, 1));
        assert_eq!((seen.buckets[17], seen.buckets[18]), (1, 1));
        assert_eq!(seen.sum(), Duration::from_micros(120_000_203));
    }

    #[test]
    fn two_are_added_bucket_by_bucket() {
        let (one, two) = (Latency::default(), Latency::default());
        one.observe(Duration::from_micros(50));
        two.observe(Duration::from_micros(60));
        two.observe(Duration::from_secs(3));
        let mut both = one.read();
        both.add(&two.read());
        assert_eq!(both.count(), 3);
        assert_eq!(both.buckets[0], 2);
    }
}
