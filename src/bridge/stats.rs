//! What a bridge measures of its module: every PKCS#11 call, by function.
//!
//! Measured where the call is made, in numbers that all threads share without
//! a lock, and told to the server every few seconds; a call that does not return, a second
//! after it began.

mod under_way;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::pkcs11::TokenInfo;
use crate::metrics::{Histogram, Latency};
use under_way::{Seat, UnderWay};

/// Time after which a call that has not returned is told of at once.
pub(super) const LONG: Duration = Duration::from_secs(1);

/// The function of a hang where the bridge had told of none.
const UNKNOWN: &str = "unknown";

/// The functions that the bridge calls.
const FUNCTIONS: [&str; 33] = [
    "C_CloseSession",
    "C_CopyObject",
    "C_CreateObject",
    "C_Decrypt",
    "C_DecryptInit",
    "C_DestroyObject",
    "C_Encrypt",
    "C_EncryptInit",
    "C_Finalize",
    "C_FindObjects",
    "C_FindObjectsFinal",
    "C_FindObjectsInit",
    "C_GenerateKey",
    "C_GenerateKeyPair",
    "C_GenerateRandom",
    "C_GetAttributeValue",
    "C_GetInfo",
    "C_GetMechanismInfo",
    "C_GetMechanismList",
    "C_GetSessionInfo",
    "C_GetSlotList",
    "C_GetTokenInfo",
    "C_InitPIN",
    "C_InitToken",
    "C_Initialize",
    "C_Login",
    "C_Logout",
    "C_OpenSession",
    "C_SetAttributeValue",
    "C_Sign",
    "C_SignInit",
    "C_UnwrapKey",
    "C_WrapKey",
];

/// Where a function stands in the list; past its end where it does not.
pub(super) const fn place(function: &str) -> usize {
    let mut rest: &[&str] = &FUNCTIONS;
    let mut at = 0;
    while let [first, others @ ..] = rest {
        if same(first.as_bytes(), function.as_bytes()) {
            return at;
        }
        rest = others;
        at += 1;
    }
    at
}

/// Whether every function of a [`place`] is in the list; for use at compile time.
pub(super) const fn is_listed(place: usize) -> bool {
    place < FUNCTIONS.len()
}

const fn same(mut one: &[u8], mut other: &[u8]) -> bool {
    loop {
        match (one, other) {
            ([], []) => return true,
            ([a, ones @ ..], [b, others @ ..]) if *a == *b => {
                one = ones;
                other = others;
            }
            _ => return false,
        }
    }
}

/// The calls of a module, while they are made.
#[derive(Debug)]
pub(super) struct Calls {
    returned: [OfFunction; FUNCTIONS.len()],
    under_way: UnderWay,
}

impl Default for Calls {
    fn default() -> Self {
        Self {
            returned: std::array::from_fn(|_| OfFunction::default()),
            under_way: UnderWay::default(),
        }
    }
}

#[derive(Debug, Default)]
struct OfFunction {
    took: Latency,
    errors: AtomicU64,
}

/// A call that has begun.
#[derive(Debug)]
pub(super) struct Begun<'a> {
    calls: &'a Calls,
    place: usize,
    at: Instant,
    seat: Option<&'a Seat>,
}

impl Begun<'_> {
    /// Counts it: it has returned.
    pub(super) fn ended(self, good: bool) {
        self.calls.observe(self.place, self.at.elapsed(), good);
        if let Some(seat) = self.seat {
            seat.leave();
        }
    }
}

impl Calls {
    /// A call of the function at that place begins.
    pub(super) fn begin(&self, place: usize) -> Begun<'_> {
        let at = Instant::now();
        Begun {
            calls: self,
            place,
            at,
            seat: self.under_way.enter(place, at),
        }
    }

    fn observe(&self, place: usize, took: Duration, good: bool) {
        if let Some(of_function) = self.returned.get(place) {
            of_function.took.observe(took);
            if !good {
                of_function.errors.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Whether a call has been under way for [`LONG`].
    pub(super) fn hang(&self) -> bool {
        self.under_way.oldest().values().any(|age| *age >= LONG)
    }

    /// What was counted so far, with as many workers at work.
    pub(super) fn read(&self, busy: usize) -> Stats {
        let calls = FUNCTIONS.iter().zip(&self.returned);
        let calls = calls
            .map(|(function, of_function)| {
                let seen = CallsSeen {
                    took: of_function.took.read(),
                    errors: of_function.errors.load(Ordering::Relaxed),
                };
                ((*function).to_owned(), seen)
            })
            .filter(|(_, seen)| seen.took.count() > 0)
            .collect();
        let under_way = self.under_way.oldest().into_iter();
        let under_way = under_way
            .filter_map(|(place, age)| Some(((*FUNCTIONS.get(place)?).to_owned(), age)))
            .collect();
        Stats {
            calls,
            under_way,
            busy,
            ..Stats::default()
        }
    }
}

/// What bridges measured, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// The calls that have returned, by function; those that were never made are not there.
    pub calls: BTreeMap<String, CallsSeen>,
    /// How long the oldest call that has not returned has been under way, by function.
    pub under_way: BTreeMap<String, Duration>,
    /// Bridges that were killed because a call did not return, by its function. The server counts
    /// them.
    pub hangs: BTreeMap<String, u64>,
    /// Workers that are at work on a request.
    pub busy: usize,
    /// What the token says of itself, where its last login failed.
    pub refused: Option<TokenInfo>,
}

/// The calls of one function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallsSeen {
    /// How long they took.
    pub took: Histogram,
    /// How many answered something else than `CKR_OK`.
    pub errors: u64,
}

impl Stats {
    /// Adds what another bridge measured.
    pub fn add(&mut self, other: &Self) {
        for (function, theirs) in &other.calls {
            let mine = self.calls.entry(function.clone()).or_default();
            mine.took.add(&theirs.took);
            mine.errors = mine.errors.saturating_add(theirs.errors);
        }
        for (function, age) in &other.under_way {
            let mine = self.under_way.entry(function.clone()).or_default();
            *mine = (*mine).max(*age);
        }
        for (function, hangs) in &other.hangs {
            let mine = self.hangs.entry(function.clone()).or_default();
            *mine = mine.saturating_add(*hangs);
        }
        self.busy += other.busy;
    }

    /// What stays of it when its bridge has ended: nobody works there any more.
    #[must_use]
    pub fn ended(self) -> Self {
        let Self {
            calls,
            under_way: _,
            hangs,
            busy: _,
            refused: _,
        } = self;
        Self {
            calls,
            hangs,
            ..Self::default()
        }
    }

    /// The function whose call does not return; `unknown` where none was told of as long under way.
    #[must_use]
    pub fn hung(&self) -> String {
        let long = self.under_way.iter().filter(|(_, age)| **age >= LONG);
        let oldest = long.max_by_key(|(_, age)| **age);
        oldest.map_or_else(|| UNKNOWN.to_owned(), |(function, _)| function.clone())
    }

    /// Counts a bridge that is killed because a call of that function does not return.
    pub fn count_hang(&mut self, function: String) {
        let hangs = self.hangs.entry(function).or_default();
        *hangs = hangs.saturating_add(1);
    }

    /// Logins that the token took.
    #[must_use]
    pub fn logins(&self) -> u64 {
        let calls = self.calls.get("C_Login");
        calls.map_or(0, |calls| calls.took.count().saturating_sub(calls.errors))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_function_has_its_place() {
        for (at, function) in FUNCTIONS.iter().enumerate() {
            assert_eq!(place(function), at);
        }
        assert!(is_listed(place("C_WrapKey")));
        assert!(!is_listed(place("C_Wrap")));
        assert!(!is_listed(place("")));
    }

    #[test]
    fn calls_are_counted_by_function_and_added_up() {
        let calls = Calls::default();
        calls.observe(place("C_Login"), Duration::from_millis(3), true);
        calls.observe(place("C_Login"), Duration::from_millis(3), false);
        calls.observe(place("C_UnwrapKey"), Duration::from_millis(1), true);
        calls.observe(usize::MAX, Duration::ZERO, true);
        let mut both = calls.read(2);
        both.add(&calls.read(1));
        assert_eq!(both.busy, 3);
        assert_eq!(both.calls.len(), 2);
        assert_eq!(both.calls["C_Login"].took.count(), 4);
        assert_eq!(both.calls["C_Login"].errors, 2);
        assert_eq!(both.logins(), 2);
    }

    #[test]
    fn a_call_that_does_not_return_is_told_of_by_its_function() {
        let calls = Calls::default();
        let hangs = calls.begin(place("C_UnwrapKey"));
        calls.begin(place("C_WrapKey")).ended(false);
        let seen = calls.read(1);
        assert_eq!(seen.calls.keys().collect::<Vec<_>>(), ["C_WrapKey"]);
        assert_eq!(seen.calls["C_WrapKey"].errors, 1);
        assert_eq!(seen.under_way.keys().collect::<Vec<_>>(), ["C_UnwrapKey"]);
        hangs.ended(true);
        assert!(calls.read(1).under_way.is_empty());
        assert!(!calls.hang());
    }

    #[test]
    fn a_hang_is_of_the_oldest_call_that_is_long_under_way() {
        let aged = |ages: &[(&str, u64)]| Stats {
            under_way: ages
                .iter()
                .map(|(function, millis)| ((*function).to_owned(), Duration::from_millis(*millis)))
                .collect(),
            ..Stats::default()
        };
        let both = aged(&[("C_Sign", 1_500), ("C_WrapKey", 3_000)]);
        assert_eq!(both.hung(), "C_WrapKey");
        // What was just under way at the last report says nothing of what hangs.
        assert_eq!(aged(&[("C_Sign", 2)]).hung(), "unknown");
        assert_eq!(Stats::default().hung(), "unknown");
    }

    #[test]
    fn of_a_bridge_that_has_ended_only_what_it_counted_stays() {
        let calls = Calls::default();
        calls.begin(place("C_Login")).ended(false);
        let _hangs = calls.begin(place("C_Sign"));
        let mut stats = calls.read(4);
        stats.refused = Some(TokenInfo::default());
        stats.count_hang("C_Sign".to_owned());
        let ended = stats.ended();
        assert_eq!(ended.busy, 0);
        assert_eq!(ended.refused, None);
        assert!(ended.under_way.is_empty());
        let mut twice = ended.clone();
        twice.add(&ended);
        assert_eq!(twice.calls["C_Login"].errors, 2);
        assert_eq!(twice.hangs["C_Sign"], 2);
    }

    #[test]
    fn two_bridges_show_the_older_of_their_calls() {
        let aged = |millis| Stats {
            under_way: [("C_Sign".to_owned(), Duration::from_millis(millis))].into(),
            ..Stats::default()
        };
        let mut both = aged(300);
        both.add(&aged(7));
        assert_eq!(both.under_way["C_Sign"], Duration::from_millis(300));
    }
}
