//! What the tests tell the faulty module, and what it tells them.
//!
//! Both sides know a directory with two files. `rules.json` holds [`Rules`];
//! it is replaced as a whole. `board` holds [`Board`], words in the machine's
//! byte order that every client of the token maps, so what it says outlives
//! them. A rule may be given at any time: the module looks at the board's
//! generation at each call and reads the rules again when it has grown.

use std::sync::atomic::AtomicU64;

use serde::{Deserialize, Serialize};

use super::names::FUNCTIONS;

/// File of the [`Rules`].
pub(crate) const RULES: &str = "rules.json";

/// File of the [`Board`].
pub(crate) const BOARD: &str = "board";

/// Clients that the board has room for, the dead ones whose sessions still count included.
pub(crate) const CLIENTS: usize = 256;

/// Memory that all clients of the token share.
#[repr(C)]
pub(crate) struct Board {
    /// Number of the rules that count now.
    pub(crate) generation: AtomicU64,
    /// Calls of all functions.
    pub(crate) all: AtomicU64,
    /// Calls of each function, in the order of [`FUNCTIONS`].
    pub(crate) calls: [AtomicU64; FUNCTIONS.len()],
    /// Wrong user PINs since the last right one.
    pub(crate) wrong_pins: AtomicU64,
    /// Logins as security officer, tried or done.
    pub(crate) officer_logins: AtomicU64,
    /// Who has the module loaded.
    pub(crate) clients: [Client; CLIENTS],
}

/// One process that has the module loaded, or had.
#[repr(C)]
pub(crate) struct Client {
    /// Its process id; 0 for a place that nobody has had.
    pub(crate) pid: AtomicU64,
    /// When it last lived, in milliseconds since 1970.
    pub(crate) seen: AtomicU64,
    /// Its open sessions.
    pub(crate) sessions: AtomicU64,
}

/// How the token misbehaves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rules {
    /// The first that meets a call counts.
    pub(crate) faults: Vec<Rule>,
    /// Which numbers the slots have.
    pub(crate) slots: Slots,
    /// Wrong user PINs that lock the token; none for as many as the module below allows.
    pub(crate) pin_tries: Option<u64>,
    /// The PIN that is typed on the token's own pad; none for a token without one.
    pub(crate) pad: Option<String>,
    /// Sessions of all clients together; none for as many as the module below allows.
    pub(crate) session_limit: Option<SessionLimit>,
    /// How often all open sessions were lost. Each time that it grows they are closed.
    pub(crate) sessions_lost: u64,
    /// How often the login was lost. Each time that it grows every client is logged out.
    pub(crate) logins_lost: u64,
}

/// What happens to some calls.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rule {
    /// `C_UnwrapKey`; none for every function.
    pub(crate) function: Option<String>,
    /// The first call that meets it, by the board's count of that function, or of all.
    pub(crate) first: u64,
    /// Calls that meet it; none for all that follow.
    pub(crate) count: Option<u64>,
    /// What they meet.
    pub(crate) fault: Fault,
}

/// What a call meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Fault {
    /// This `CKR_` code, and the token does nothing.
    Answer(u64),
    /// This `CKR_` code, after the token has done what it was asked.
    AnswerLost(u64),
    /// So many milliseconds before the token is asked.
    Delay(u64),
    /// So many milliseconds after the token has done what it was asked, before the caller hears of it.
    Late(u64),
    /// What `C_Decrypt` gives after the token has done it has one bit turned; the code is the token's.
    Garbled,
    /// It does not return while the rule stands.
    Hang,
    /// The process ends by `SIGABRT`.
    Abort,
    /// The process ends by `SIGSEGV`.
    Segfault,
}

/// Which numbers the slots have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Slots {
    /// Those of the module below.
    #[default]
    AsTheyAre,
    /// Higher by so many; the old numbers are no slots any more.
    Shifted(u64),
    /// Each number shows the token of the next slot; the last one that of the first.
    Rotated,
}

/// How many sessions the token has for all its clients together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SessionLimit {
    /// One more gets `CKR_SESSION_COUNT`.
    pub(crate) most: u64,
    /// How long the sessions of a process that has ended still count, in milliseconds; at most 60,000.
    pub(crate) linger_ms: u64,
    /// Whether `C_GetTokenInfo` tells the limit.
    pub(crate) told: bool,
}
