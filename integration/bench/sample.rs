//! Windows of time and what was seen in them.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::process::Cpu;

/// What one window saw.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Window {
    /// Finished in each second.
    pub(crate) per_s: f64,
    /// Half of them took no longer, milliseconds.
    pub(crate) p50_ms: f64,
    /// 99 of 100 took no longer, milliseconds.
    pub(crate) p99_ms: f64,
    /// CPU time for each that finished, microseconds.
    pub(crate) cpu: Cpu,
}

impl Window {
    /// From how long each took, and how long all took.
    pub(crate) fn of(mut took: Vec<Duration>, all: Duration) -> Self {
        took.sort_unstable();
        Self {
            per_s: float(took.len()) / all.as_secs_f64(),
            p50_ms: quantile(&took, 50),
            p99_ms: quantile(&took, 99),
            cpu: Cpu::default(),
        }
    }
}

/// The time that so many of a hundred did not exceed, milliseconds; 0 where there is none.
pub(crate) fn quantile(sorted: &[Duration], percent: usize) -> f64 {
    let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted
        .get(at)
        .map_or(0.0, |took| took.as_secs_f64() * 1_000.0)
}

/// The middle one; 0 where there is none.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_unstable_by(f64::total_cmp);
    let upper = values.get(values.len() / 2).copied().unwrap_or_default();
    if values.len() % 2 == 1 {
        return upper;
    }
    let lower = values.get((values.len() / 2).saturating_sub(1));
    (upper + lower.copied().unwrap_or_default()) / 2.0
}

/// The mean; 0 where there is none.
pub(crate) fn mean(values: &[f64]) -> f64 {
    if values.is_empty() {
        return 0.0;
    }
    values.iter().sum::<f64>() / float(values.len())
}

/// A count, for divisions. Counts here are far below 2^32.
pub(crate) fn float(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::INFINITY, f64::from)
}
