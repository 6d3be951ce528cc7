//! What the server and a bridge say to each other.
//!
//! A frame is a length (4 bytes, big-endian) and that many bytes of postcard.
//! Both ends are this same executable, so the messages carry no version. One
//! request carries a whole exchange, never a single PKCS#11 call. Frames are
//! wiped after use: with SEDK form `t10-00h` one holds a data key.

mod frame;
mod kek;
mod op;
mod task;

use serde::{Deserialize, Serialize};

use super::adopt::Adopted;
use super::ceremony::Stepped;
use super::certify::Certified;
use super::doctor::Finding;
use super::evidence::Evidenced;
use super::faults::Fault;
use super::guard::Guarded;
use super::import::Imported;
use super::pkcs11::TokenInfo;
use super::profile::HsmProfile;
use super::rates::Measured;
use super::stats::Stats;
use super::trust::Trusted;
use crate::key::{Eedk, KekHash, Sedk, SedkForm};

pub use frame::{decode, encode, frame_length, read, write};
pub use kek::{Custody, KekAttributes, KekOnToken, PrivateHalf, Provenance};
pub use op::{Op, Recipient, WrapUnder};
pub use task::{Errand, Task};

/// The first message: which token, and how.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// The token's configured name, for messages.
    pub name: String,
    /// How to drive it, paths settled.
    pub profile: HsmProfile,
    /// What the bridge is for.
    pub task: Task,
}

/// Milliseconds on the clock that server and bridge share (`CLOCK_MONOTONIC`).
#[must_use]
pub fn now_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    let nanoseconds = u64::try_from(now.tv_nsec).unwrap_or_default();
    seconds
        .saturating_mul(1000)
        .saturating_add(nanoseconds / 1_000_000)
}

/// One thing to do, with the time it may take.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Request {
    /// Repeated in the response.
    pub id: u64,
    /// When nobody waits for the answer any more, as [`now_ms`] counts.
    pub until_ms: u64,
    /// What to do.
    pub op: Op,
}

/// What a bridge answers.
#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    /// The token is open; also the answer to `Op::Look` and `Op::Distrust`.
    Ready(Ready),
    /// `Op::Create`
    Created {
        /// In the order of the KEKs.
        eedks: Vec<Eedk>,
        /// For the drive.
        sedk: Sedk,
        /// The block, encrypted.
        proof: [u8; 16],
        /// Where the key was in clear.
        custody: Custody,
    },
    /// `Op::Resolve`
    Resolved {
        /// For the drive.
        sedk: Sedk,
        /// Where the key was in clear.
        custody: Custody,
        /// What came of the EEDK, where that was asked for with a guard.
        guarded: Option<Guarded>,
    },
    /// `Op::Rekey`
    Rekeyed {
        /// In the order of the KEKs.
        eedks: Vec<Eedk>,
        /// The block, encrypted.
        proof: [u8; 16],
        /// Where the key was in clear.
        custody: Custody,
    },
    /// `Op::Prove`
    Proved {
        /// The block, encrypted.
        proof: [u8; 16],
        /// Where the key was in clear.
        custody: Custody,
    },
    /// `Op::Canary`: the canary opened; false where the token holds no KEK to try.
    Canary(bool),
    /// What the bridge measured. Nobody asks for it: it is told every few
    /// seconds and before what may be its last answer, from its start on, as
    /// the answer to a request 0 that there never was.
    Stats(Stats),
    /// `Op::Generate`
    Generated(KekOnToken),
    /// `Op::Certify`
    Certified(Certified),
    /// `Op::Evidence`
    Evidenced(Evidenced),
    /// `Task::List`
    Slots(Vec<SlotOnModule>),
    /// `Task::Init`
    Initialized(SlotOnModule),
    /// `Task::Trust`
    Trusted(Trusted),
    /// `Task::Attend`: the module is loaded; also the answer to `Errand::Prepare`.
    Attending,
    /// `Errand::Examine`
    Found(Box<Finding>),
    /// `Errand::Measure`
    Measured(Measured),
    /// `Errand::Import`
    Imported(Box<Imported>),
    /// `Errand::Undo`, `Op::Destroy`: how many objects were destroyed.
    Undone(usize),
    /// `Errand::Adopt`
    Adopted(Box<Adopted>),
    /// `Errand::Ceremony`
    Ceremony(Stepped),
}

impl Reply {
    /// Whether a data key was in the bridge's memory.
    pub(super) const fn in_host(&self) -> bool {
        matches!(
            self,
            Self::Created {
                custody: Custody::Host,
                ..
            } | Self::Resolved {
                custody: Custody::Host,
                ..
            } | Self::Rekeyed {
                custody: Custody::Host,
                ..
            } | Self::Proved {
                custody: Custody::Host,
                ..
            }
        )
    }
}

/// What the bridge found when it opened its token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// The token.
    pub token: TokenInfo,
    /// The KEKs on it.
    pub keks: Vec<KekOnToken>,
    /// What the probe proved, once there is a KEK to probe with.
    pub probe: Option<Probe>,
    /// Hashes of the public keys that its security officer has blessed, in order.
    pub trusted: Vec<KekHash>,
    /// Workers that have a session; fewer than the profile wants where the
    /// token gives no more.
    pub sessions: usize,
    /// What does not work although requests are answered.
    pub trouble: Option<String>,
}

/// What the token showed that it does, on throw-away objects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// SEDK forms that it made and opened again.
    pub forms: Vec<SedkForm>,
    /// Whether it refuses to wrap a key with `CKA_EXTRACTABLE` false.
    pub refuses_unextractable: bool,
}

/// A slot and what is in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotOnModule {
    /// Slot number; it may be another tomorrow.
    pub id: u64,
    /// The token, where there is one.
    pub token: Option<TokenInfo>,
    /// The token's RFC 7512 URI, where it is initialised.
    pub uri: Option<String>,
    /// The mechanisms that matter here, by name, and whether the token lists them.
    pub mechanisms: Vec<(String, bool)>,
}

/// An answer to the request of that id; id 0 answers [`Hello`].
#[derive(Debug, Serialize, Deserialize)]
pub struct Response {
    /// The request's.
    pub id: u64,
    /// The reply or the fault.
    pub result: Result<Reply, Fault>,
}
