//! Requests at the drives' door: how many of each verb, how they ended, how
//! long they took.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::{Histogram, Latency};
use crate::problem::EkmCode;

/// What drives and proxies ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// `POST /v1/keys/create`
    Create,
    /// `POST /v1/keys/resolve`
    Resolve,
    /// `POST /v1/keys/rekey`
    Rekey,
    /// `POST /v1/keys/confirm`
    Confirm,
    /// `POST /v1/challenge`
    Challenge,
}

impl Verb {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Create,
        Self::Resolve,
        Self::Rekey,
        Self::Confirm,
        Self::Challenge,
    ];

    /// The verb of a path; none for the others.
    #[must_use]
    pub fn of_path(path: &str) -> Option<Self> {
        match path {
            "/v1/keys/create" => Some(Self::Create),
            "/v1/keys/resolve" => Some(Self::Resolve),
            "/v1/keys/rekey" => Some(Self::Rekey),
            "/v1/keys/confirm" => Some(Self::Confirm),
            "/v1/challenge" => Some(Self::Challenge),
            _ => None,
        }
    }

    /// One word for labels.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Resolve => "resolve",
            Self::Rekey => "rekey",
            Self::Confirm => "confirm",
            Self::Challenge => "challenge",
        }
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It got what it asked for.
    Answered,
    /// It got a problem of that code.
    Refused(EkmCode),
    /// The client went before the answer.
    Gone,
}

impl Outcome {
    /// The label: `ok`, the EKM code, or `gone`.
    #[must_use]
    pub fn label(self) -> String {
        match self {
            Self::Answered => "ok".to_owned(),
            Self::Refused(code) => code.to_string(),
            Self::Gone => "gone".to_owned(),
        }
    }
}

/// The counters.
#[derive(Debug, Default)]
pub struct Requests([OfVerb; Verb::ALL.len()]);

#[derive(Debug, Default)]
struct OfVerb {
    answered: AtomicU64,
    gone: AtomicU64,
    refused: [AtomicU64; EkmCode::ALL.len()],
    took: Latency,
}

/// The counters of one verb at one moment.
#[derive(Clone, Debug)]
pub struct VerbSeen {
    /// The verb.
    pub verb: Verb,
    /// Requests by outcome; those that never happened have none.
    pub outcomes: Vec<(Outcome, u64)>,
    /// How long they took, from the end of the head to the answer.
    pub took: Histogram,
}

impl Requests {
    /// Counts a request that begins now; it ends when what is returned does.
    #[must_use]
    pub fn begin(self: &Arc<Self>, verb: Verb) -> UnderWay {
        UnderWay {
            requests: Arc::clone(self),
            verb,
            begun: Instant::now(),
            outcome: Outcome::Gone,
        }
    }

    fn count(&self, verb: Verb, outcome: Outcome, begun: Instant) {
        let place = Verb::ALL.iter().position(|one| *one == verb);
        let Some(of_verb) = place.and_then(|place| self.0.get(place)) else {
            return;
        };
        let counter = match outcome {
            Outcome::Answered => Some(&of_verb.answered),
            Outcome::Gone => Some(&of_verb.gone),
            Outcome::Refused(code) => EkmCode::ALL
                .iter()
                .position(|one| *one == code)
                .and_then(|place| of_verb.refused.get(place)),
        };
        if let Some(counter) = counter {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        of_verb.took.observe(begun.elapsed());
    }

    /// What was counted so far.
    #[must_use]
    pub fn seen(&self) -> Vec<VerbSeen> {
        let each = Verb::ALL.iter().zip(&self.0);
        each.map(|(verb, of_verb)| {
            let refused = EkmCode::ALL.iter().zip(&of_verb.refused);
            let outcomes = [
                (Outcome::Answered, &of_verb.answered),
                (Outcome::Gone, &of_verb.gone),
            ]
            .into_iter()
            .chain(refused.map(|(code, counter)| (Outcome::Refused(*code), counter)))
            .map(|(outcome, counter)| (outcome, counter.load(Ordering::Relaxed)))
            .filter(|(outcome, count)| *count > 0 || *outcome == Outcome::Answered)
            .collect();
            VerbSeen {
                verb: *verb,
                outcomes,
                took: of_verb.took.read(),
            }
        })
        .collect()
    }
}

/// A request under way. Dropped without an outcome, its client has gone.
#[derive(Debug)]
pub struct UnderWay {
    requests: Arc<Requests>,
    verb: Verb,
    begun: Instant,
    outcome: Outcome,
}

impl UnderWay {
    /// The request has ended.
    pub fn ended(mut self, outcome: Outcome) {
        self.outcome = outcome;
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.requests.count(self.verb, self.outcome, self.begun);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_is_counted_under_its_verb() {
        let requests = Arc::new(Requests::default());
        requests.begin(Verb::Resolve).ended(Outcome::Answered);
        for code in EkmCode::ALL {
            requests.begin(Verb::Resolve).ended(Outcome::Refused(code));
        }
        drop(requests.begin(Verb::Resolve));
        for seen in requests.seen() {
            let asked = seen.verb == Verb::Resolve;
            let counted: u64 = seen.outcomes.iter().map(|(_, count)| count).sum();
            assert_eq!(counted, if asked { 10 } else { 0 });
            assert_eq!(seen.took.count(), counted);
            assert_eq!(seen.outcomes.len(), if asked { 10 } else { 1 });
        }
    }

    #[test]
    fn the_paths_of_the_verbs_are_told_apart() {
        for verb in Verb::ALL {
            let keys = format!("/v1/keys/{}", verb.name());
            let path = match verb {
                Verb::Challenge => "/v1/challenge",
                _ => &keys,
            };
            assert_eq!(Verb::of_path(path), Some(verb));
        }
        assert_eq!(Verb::of_path("/readyz"), None);
    }
}
