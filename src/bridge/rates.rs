//! `ekm slot bench`: what a token does in a second, with how many sessions
//! and how many bridge processes.
//!
//! Each bridge makes throw-away keys of its own; all of them work at the same
//! time. What is called is what an exchange calls, in a bare loop.

mod rig;

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::doctor::Appointment;
use super::faults::Fault;
use super::message::{Errand, Reply};
use super::supervisor::{Attended, Program};
pub(super) use rig::Rig;

/// How often each arrangement has its turn; odd, for the median.
pub const ROUNDS: usize = 3;

/// Longest time for making the throw-away keys.
const PATIENCE: Duration = Duration::from_secs(600);

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Work {
    /// `C_DecryptInit` and `C_Decrypt`: the RSA operation and nothing else.
    Decrypt,
    /// `C_UnwrapKey`, `C_DestroyObject`.
    Unwrap,
    /// A resolve: `C_UnwrapKey`, `C_WrapKey` for a drive, `C_DestroyObject`.
    Rewrap,
    /// A create: `C_GenerateKey`, `C_WrapKey` under two KEKs and for a drive, `C_DestroyObject`.
    Create,
}

impl Work {
    /// All of it.
    pub const ALL: [Self; 4] = [Self::Decrypt, Self::Unwrap, Self::Rewrap, Self::Create];
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Decrypt => "C_Decrypt",
            Self::Unwrap => "unwrap",
            Self::Rewrap => "rewrap",
            Self::Create => "create",
        })
    }
}

/// One measurement in one bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// What.
    pub work: Work,
    /// Sessions, each with a thread of its own.
    pub sessions: usize,
    /// How long, milliseconds.
    pub milliseconds: u64,
}

/// What one bridge measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// How often it was done.
    pub done: u64,
    /// In how many seconds.
    pub seconds: f64,
    /// How long each took, microseconds; a sample where there are many.
    pub took_us: Vec<u32>,
}

/// A rate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rate {
    /// What.
    pub work: Work,
    /// How often a second, all processes together.
    pub per_second: f64,
    /// Median, microseconds.
    pub p50_us: u32,
    /// 99th of a hundred, microseconds.
    pub p99_us: u32,
}

/// All rates of one arrangement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Arrangement {
    /// Bridge processes.
    pub processes: usize,
    /// Sessions of each.
    pub sessions: usize,
    /// What they reach.
    pub rates: Vec<Rate>,
}

/// The numbers that pay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Advice {
    /// `session.workers`
    pub workers: usize,
    /// `session.processes`
    pub processes: usize,
    /// Why.
    pub why: String,
}

/// Everything measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bench {
    /// Modulus length of the throw-away KEKs, bits.
    pub bits: u32,
    /// Each arrangement.
    pub arrangements: Vec<Arrangement>,
    /// What to write into the profile.
    pub advice: Option<Advice>,
    /// Work that the token does not do, and what it said.
    pub refused: Vec<(Work, String)>,
}

/// What to measure.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Modulus length of the throw-away KEKs, bits.
    pub bits: u32,
    /// Most sessions of one process.
    pub sessions: usize,
    /// Most processes.
    pub processes: usize,
    /// For each rate, in each of the rounds.
    pub time: Duration,
}

impl Plan {
    /// Each arrangement: processes and sessions of each, both doubling.
    #[must_use]
    pub fn arrangements(&self) -> Vec<(usize, usize)> {
        let doubling = |most: usize| {
            std::iter::successors(Some(1_usize), |n| n.checked_mul(2))
                .take_while(move |n| *n <= most)
        };
        doubling(self.processes)
            .flat_map(|processes| doubling(self.sessions).map(move |s| (processes, s)))
            // More threads than that say nothing new on any token.
            .filter(|(processes, sessions)| processes * sessions <= self.sessions * 2)
            .collect()
    }
}

/// Measures, telling each step as it begins.
///
/// # Errors
/// A bridge cannot be started, the PIN is refused, or no throw-away keys can be made.
pub async fn bench(
    program: &Program,
    appointment: &Appointment,
    plan: Plan,
    begins: &dyn Fn(&str),
) -> Result<Bench, Fault> {
    let arranged = plan.arrangements();
    let most = arranged.iter().map(|(processes, _)| *processes).max();
    let mut bridges: Vec<Attended> = Vec::new();
    for index in 0..most.unwrap_or_default() {
        begins(&format!("throw-away RSA-{} keys", plan.bits));
        let mut bridge = Attended::start(program, &appointment.hello(&[])).await?;
        let prepare = Errand::Prepare {
            bits: plan.bits,
            first: index == 0,
        };
        bridge.ask(&prepare, PATIENCE).await?;
        bridges.push(bridge);
    }
    let mut refused: Vec<(Work, String)> = Vec::new();
    let mut windows: Vec<Window> = Vec::new();
    // Every arrangement in turn, and again: what else the machine does then
    // falls on all of them alike.
    for _ in 0..ROUNDS {
        for (processes, sessions) in &arranged {
            for work in Work::ALL {
                if refused.iter().any(|(other, _)| *other == work) {
                    continue;
                }
                begins(&format!("{work}, {processes} × {sessions} sessions"));
                let run = Run {
                    work,
                    sessions: *sessions,
                    milliseconds: u64::try_from(plan.time.as_millis()).unwrap_or(u64::MAX),
                };
                match together(bridges.iter_mut().take(*processes), run).await {
                    Ok((per_second, took_us)) => windows.push(Window {
                        arrangement: (*processes, *sessions),
                        work,
                        per_second,
                        took_us,
                    }),
                    Err(fault) if bridges.iter().any(Attended::gone) => return Err(fault),
                    // What works with fewer sessions is not refused: the token has no more.
                    Err(_) if windows.iter().any(|window| window.work == work) => {}
                    Err(fault) => refused.push((work, fault.to_string())),
                }
            }
        }
    }
    let arrangements: Vec<Arrangement> = arranged
        .into_iter()
        .map(|(processes, sessions)| Arrangement {
            processes,
            sessions,
            rates: Work::ALL
                .into_iter()
                .filter_map(|work| rate(&windows, (processes, sessions), work))
                .collect(),
        })
        .collect();
    Ok(Bench {
        bits: plan.bits,
        advice: advise(&arrangements),
        arrangements,
        refused,
    })
}

/// What one arrangement did in one round.
struct Window {
    arrangement: (usize, usize),
    work: Work,
    per_second: f64,
    took_us: Vec<u32>,
}

/// The median of the rounds, and the latencies of all of them.
fn rate(windows: &[Window], arrangement: (usize, usize), work: Work) -> Option<Rate> {
    let of_it = windows
        .iter()
        .filter(|window| window.arrangement == arrangement && window.work == work);
    let mut rates = Vec::new();
    let mut took = Vec::new();
    for window in of_it {
        rates.push(window.per_second);
        took.extend_from_slice(&window.took_us);
    }
    rates.sort_by(f64::total_cmp);
    took.sort_unstable();
    let at = |percent: usize| {
        let index = took.len().saturating_sub(1) * percent / 100;
        took.get(index).copied().unwrap_or_default()
    };
    Some(Rate {
        work,
        per_second: rates.get(rates.len() / 2).copied()?,
        p50_us: at(50),
        p99_us: at(99),
    })
}

/// One run on some bridges at the same time: the rate, and each latency, microseconds.
async fn together(
    bridges: impl Iterator<Item = &mut Attended>,
    run: Run,
) -> Result<(f64, Vec<u32>), Fault> {
    let errand = Errand::Measure(run);
    let asked = bridges.map(|bridge| bridge.ask(&errand, PATIENCE));
    let mut took = Vec::new();
    let mut per_second = 0.0;
    for reply in futures_util::future::join_all(asked).await {
        if let Reply::Measured(measured) = reply? {
            took.extend(measured.took_us);
            per_second += f64::from(u32::try_from(measured.done).unwrap_or(u32::MAX))
                / measured.seconds.max(f64::EPSILON);
        }
    }
    Ok((per_second, took))
}

/// The smallest arrangement that reaches nearly the best rate of what drives
/// wait for: fewer processes first, then fewer sessions. A worker more than
/// that only waits in the token instead of the queue.
#[must_use]
pub fn advise(arrangements: &[Arrangement]) -> Option<Advice> {
    const NEARLY: f64 = 0.93;
    let counts = |rate: &&Rate| rate.work == Work::Rewrap;
    let of = |arrangement: &Arrangement| {
        let rates = &arrangement.rates;
        let rate = rates
            .iter()
            .find(counts)
            .or_else(|| rates.iter().find(|rate| rate.work == Work::Decrypt))?;
        Some((rate.work, rate.per_second))
    };
    let best = arrangements
        .iter()
        .filter_map(of)
        .map(|(_, rate)| rate)
        .fold(0.0, f64::max);
    let (arrangement, (work, rate)) = arrangements
        .iter()
        .filter_map(|arrangement| Some((arrangement, of(arrangement)?)))
        .filter(|(_, (_, rate))| *rate > 0.0 && *rate >= best * NEARLY)
        .min_by_key(|(arrangement, _)| (arrangement.processes, arrangement.sessions))?;
    let alone = arrangements
        .iter()
        .find(|arrangement| arrangement.processes == 1 && arrangement.sessions == 1)
        .and_then(of)
        .map_or(0.0, |(_, rate)| rate);
    Some(Advice {
        workers: arrangement.sessions,
        processes: arrangement.processes,
        why: format!(
            "{work}: {rate:.0}/s, one session alone {alone:.0}/s, the best of all {best:.0}/s"
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrangement(processes: usize, sessions: usize, per_second: f64) -> Arrangement {
        Arrangement {
            processes,
            sessions,
            rates: vec![Rate {
                work: Work::Rewrap,
                per_second,
                p50_us: 1,
                p99_us: 1,
            }],
        }
    }

    #[test]
    fn more_sessions_are_advised_only_where_they_pay() {
        let advice = advise(&[
            arrangement(1, 1, 1135.0),
            arrangement(1, 2, 2261.0),
            arrangement(1, 4, 2300.0),
            arrangement(2, 1, 2310.0),
        ])
        .unwrap();
        assert_eq!((advice.processes, advice.workers), (1, 2));
    }

    #[test]
    fn a_token_with_a_lock_of_its_own_is_driven_by_several_processes() {
        let advice = advise(&[
            arrangement(1, 1, 834.0),
            arrangement(1, 4, 1084.0),
            arrangement(2, 1, 1973.0),
            arrangement(2, 4, 1990.0),
        ])
        .unwrap();
        assert_eq!((advice.processes, advice.workers), (2, 1));
    }

    #[test]
    fn nothing_is_advised_where_nothing_was_measured() {
        assert_eq!(advise(&[]), None);
        assert_eq!(advise(&[arrangement(1, 1, 0.0)]), None);
    }

    #[test]
    fn arrangements_double() {
        let plan = Plan {
            bits: 2048,
            sessions: 4,
            processes: 2,
            time: Duration::from_secs(1),
        };
        let expected = [(1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (2, 4)];
        assert_eq!(plan.arrangements(), expected);
    }
}
