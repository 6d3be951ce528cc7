//! What a bridge is for, and what it is asked to do where it serves no token.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::bridge::adopt::Mend;
use crate::bridge::ceremony::Step;
use crate::bridge::doctor::Exam;
use crate::bridge::doctor::findings::PairKind;
use crate::bridge::import::Import;
use crate::bridge::pin::{Pin, PinSource};
use crate::bridge::rates::Run;
use crate::bridge::trust::Trust;
use crate::bridge::uri::TokenUri;

/// What the bridge is for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Task {
    /// Serve one token until the socket closes.
    Serve {
        /// Which token.
        token: TokenUri,
        /// The serials that it may have, in order of preference; none where the
        /// URI alone says which it is.
        serials: Vec<String>,
        /// Where its user PIN comes from.
        pin: PinSource,
        /// The directory of the files that guard the PIN counters.
        ledgers: PathBuf,
    },
    /// Serve a software keystore until the socket closes.
    Keep {
        /// The key file.
        file: PathBuf,
        /// Where its password comes from.
        password: PinSource,
        /// Where the password of its keys comes from, if that is another one.
        key_password: Option<PinSource>,
    },
    /// Say what slots there are, and end.
    List,
    /// Initialise a token, and end.
    Init {
        /// The new token's label, at most 32 bytes.
        label: String,
        /// The slot, where more than one is free.
        slot: Option<u64>,
        /// The security officer's PIN.
        so_pin: Pin,
        /// The user PIN to set.
        user_pin: Pin,
    },
    /// Log in as security officer, bless public keys, and end.
    Trust {
        /// Which token, which PIN, which keys.
        trust: Trust,
        /// The directory of the files that guard the PIN counters.
        ledgers: PathBuf,
    },
    /// Do one [`Errand`] after another until the socket closes.
    Attend {
        /// Which token; none for the only one that the module shows.
        token: Option<TokenUri>,
        /// The serials that it may have, as for `Serve`.
        serials: Vec<String>,
        /// Its user PIN, where there is to be a login.
        pin: Option<Pin>,
        /// The directory of the files that guard the PIN counters.
        ledgers: PathBuf,
        /// Kinds of throw-away keys that are not to be made: they crashed the module.
        avoid: Vec<PairKind>,
    },
}

/// What a bridge of [`Task::Attend`] is asked to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Errand {
    /// One part of `ekm slot doctor`.
    Examine(Exam),
    /// Throw-away keys for `ekm slot bench`.
    Prepare {
        /// Modulus length, bits.
        bits: u32,
        /// The first bridge removes what an earlier run left; what the others
        /// find is its own.
        first: bool,
    },
    /// One measurement with them.
    Measure(Run),
    /// A key pair is brought into the token. Like every errand it is done once: nobody starts
    /// this bridge again.
    Import(Box<Import>),
    /// What was made under that `CKA_ID` is destroyed.
    Undo([u8; 16]),
    /// A look at every key pair, after these changes.
    Adopt(Vec<Mend>),
    /// One step of a ceremony in which a KEK gets a copy, or comes from one. Like every errand it
    /// is done once: nobody starts this bridge again.
    Ceremony(Box<Step>),
}
