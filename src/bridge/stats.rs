//! What a bridge measures of its module: every PKCS#11 call, by function.
//!
//! Measured where the call is made, in numbers that all threads share without
//! a lock, and told to the server every few seconds.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::metrics::{Histogram, Latency};

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
pub(super) struct Calls([OfFunction; FUNCTIONS.len()]);

impl Default for Calls {
    fn default() -> Self {
        Self(std::array::from_fn(|_| OfFunction::default()))
    }
}

#[derive(Debug, Default)]
struct OfFunction {
    took: Latency,
    errors: AtomicU64,
}

impl Calls {
    /// Counts one call of the function at that place.
    pub(super) fn observe(&self, place: usize, took: Duration, good: bool) {
        if let Some(of_function) = self.0.get(place) {
            of_function.took.observe(took);
            if !good {
                of_function.errors.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// What was counted so far, with as many workers at work.
    pub(super) fn read(&self, busy: usize) -> Stats {
        let calls = FUNCTIONS.iter().zip(&self.0);
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
        Stats { calls, busy }
    }
}

/// What bridges measured, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// The calls, by function; those that were never made are not there.
    pub calls: BTreeMap<String, CallsSeen>,
    /// Workers that are at work on a request.
    pub busy: usize,
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
        self.busy += other.busy;
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
}
