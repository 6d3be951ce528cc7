//! What the server and a bridge say to each other.
//!
//! A frame is a length (4 bytes, big-endian) and that many bytes of postcard.
//! Both ends are this same executable, so the messages carry no version. One
//! request carries a whole exchange, never a single PKCS#11 call. Frames are
//! wiped after use: with SEDK form `t10-00h` one holds a data key.

use std::io::{self, Read, Write};
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::adopt::{Adopted, Mend};
use super::ceremony::{Step, Stepped};
use super::certify::{Certified, Certify};
use super::doctor::findings::PairKind;
use super::doctor::{Exam, Finding};
use super::evidence::{Evidence, Evidenced};
use super::faults::Fault;
use super::guard::{Guarded, ThrowAway};
use super::import::{Import, Imported};
use super::pin::{Pin, PinSource};
use super::pkcs11::TokenInfo;
use super::profile::HsmProfile;
use super::rates::{Measured, Run};
use super::stats::Stats;
use super::trust::{Trust, Trusted};
use super::uri::TokenUri;
use crate::drive::Wwn;
use crate::key::{DataKeyId, Eedk, KekHash, KekId, KeyLabel, Sedk, SedkForm, WrapAlgorithm};

/// Largest frame, bytes. A list of 1,000 KEKs fits.
const MAX_FRAME: usize = 4 << 20;

/// Where a data key exists in clear.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Custody {
    /// Only inside the token.
    Token,
    /// For an instant in the bridge's memory, because the operator said so.
    Host,
}

impl std::fmt::Display for Custody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Token => "token",
            Self::Host => "host",
        })
    }
}

impl std::str::FromStr for Custody {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "token" => Ok(Self::Token),
            "host" => Ok(Self::Host),
            _ => Err("custody is token or host"),
        }
    }
}

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

/// A KEK to wrap under: what names it in the EEDK, and its public key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrapUnder {
    /// How the EEDK names it.
    pub id: KekId,
    /// Its public-key hash.
    pub hash: KekHash,
    /// Its `SubjectPublicKeyInfo`, DER.
    pub spki: Vec<u8>,
    /// How the token that holds it opens EEDKs.
    pub wrap: WrapAlgorithm,
}

impl WrapUnder {
    /// How to wrap under it, by a token whose own way is this one: what the KEK's token has the
    /// padding for is wrapped with that padding.
    #[must_use]
    pub fn way(&self, own: WrapAlgorithm) -> WrapAlgorithm {
        if own.padding() == self.wrap.padding() {
            own
        } else {
            self.wrap
        }
    }
}

/// The drive that a data key goes to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipient {
    /// In what form.
    pub form: SedkForm,
    /// The drive's public key, `SubjectPublicKeyInfo` DER; empty for form `t10-00h`.
    pub spki: Vec<u8>,
    /// The drive's world-wide name, for form `t10-02h`.
    pub wwn: Option<Wwn>,
}

/// What a bridge does with its token.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Op {
    /// A new data key.
    Create {
        /// Its identifier.
        dki: DataKeyId,
        /// One or two KEKs.
        keks: Vec<WrapUnder>,
        /// Who gets it.
        drive: Recipient,
        /// How far from the token it may go.
        custody: Custody,
        /// A fresh random block to encrypt under it.
        block: [u8; 16],
    },
    /// The data key of an EEDK, for a drive.
    Resolve {
        /// The EEDK.
        eedk: Eedk,
        /// Which KEK opens it.
        kek: KekHash,
        /// Who gets it.
        drive: Recipient,
        /// How far from the token it may go.
        custody: Custody,
        /// What the drive gets where the EEDK does not open, so that nobody can tell; none for an
        /// EEDK of which it may be told.
        guard: Option<ThrowAway>,
    },
    /// The data key of an EEDK, under other KEKs.
    Rekey {
        /// The EEDK.
        eedk: Eedk,
        /// Which KEK opens it.
        kek: KekHash,
        /// One or two KEKs.
        keks: Vec<WrapUnder>,
        /// How far from the token it may go.
        custody: Custody,
        /// A fresh random block to encrypt under it.
        block: [u8; 16],
    },
    /// Open an EEDK and encrypt a block under what is in it.
    Prove {
        /// The EEDK.
        eedk: Eedk,
        /// Which KEK opens it.
        kek: KekHash,
        /// How far from the token it may go.
        custody: Custody,
        /// The block.
        block: [u8; 16],
    },
    /// Whether an EEDK of the token's own still opens.
    Canary,
    /// The token's KEKs are read anew.
    Look,
    /// A drive's key is blessed no more: it has left the drive table.
    Distrust {
        /// The key.
        key: KekHash,
    },
    /// A new KEK.
    Generate {
        /// Its label.
        label: KeyLabel,
        /// Modulus length, bits.
        bits: u32,
        /// What it is for.
        custody: Custody,
        /// Whether it may sign the request for its own certificate (`CKA_SIGN`).
        sign: bool,
    },
    /// Certificates of KEKs, and the seals of partners' KEKs.
    Certify(Certify),
    /// A KEK is destroyed, with all its objects.
    Destroy {
        /// The KEK.
        kek: KekHash,
    },
    /// Seals of the audit chain, and anchors.
    Evidence(Evidence),
}

impl Op {
    /// Whether doing it twice is the same as doing it once, so that it may be
    /// repeated after a failure, by the bridge itself or on another token.
    ///
    /// | what | why |
    /// |---|---|
    /// | create | its data key is an object of one session and ends with it; EEDKs of a failed attempt never leave the bridge, so the DKi names one key only |
    /// | resolve, rekey, prove | they read what is there; the data key they open is an object of one session |
    /// | canary, look | they read what is there |
    /// | certify | a request is only read; a certificate takes the place of an older one, also of itself; a seal whose answer was lost seals nothing |
    /// | distrust, destroy | a key that was destroyed is not there the second time |
    /// | evidence | a seal whose answer was lost seals nothing; of two anchors the higher number counts; a key that seals is made as a KEK is |
    /// | generate | **never**: a key pair that was made before the answer was lost stays on the token, and a second would be under the same label |
    #[must_use]
    pub const fn repeatable(&self) -> bool {
        match self {
            Self::Create { .. }
            | Self::Resolve { .. }
            | Self::Rekey { .. }
            | Self::Prove { .. }
            | Self::Canary
            | Self::Look
            | Self::Certify(_)
            | Self::Destroy { .. }
            | Self::Evidence(Evidence::Sign { .. } | Evidence::Anchor { .. } | Evidence::Anchors)
            | Self::Distrust { .. } => true,
            Self::Generate { .. } | Self::Evidence(Evidence::MakeKey { .. }) => false,
        }
    }

    /// Whether its answer comes soon where the token is well. Making an RSA key may take minutes.
    #[must_use]
    pub const fn prompt(&self) -> bool {
        !matches!(
            self,
            Self::Generate { .. } | Self::Evidence(Evidence::MakeKey { .. })
        )
    }

    /// Whether it opens an EEDK of which nobody may learn whether it opened.
    #[must_use]
    pub const fn guarded(&self) -> bool {
        matches!(self, Self::Resolve { guard: Some(_), .. })
    }

    /// The EEDK that it opens, and under which KEK. One that is guarded is none: whether it opens
    /// must make no difference.
    #[must_use]
    pub const fn opened(&self) -> Option<(&Eedk, &KekHash)> {
        match self {
            Self::Resolve { guard: Some(_), .. } => None,
            Self::Resolve { eedk, kek, .. }
            | Self::Rekey { eedk, kek, .. }
            | Self::Prove { eedk, kek, .. } => Some((eedk, kek)),
            Self::Create { .. }
            | Self::Canary
            | Self::Look
            | Self::Distrust { .. }
            | Self::Generate { .. }
            | Self::Destroy { .. }
            | Self::Certify(_)
            | Self::Evidence(_) => None,
        }
    }
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
    /// seconds, as the answer to a request 0 that there never was.
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

/// How a KEK came to the token, by `CKA_LOCAL`, `CKA_ALWAYS_SENSITIVE` and
/// `CKA_NEVER_EXTRACTABLE` (PKCS#11 v2.40, 4.4 and 4.9).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Provenance {
    /// Generated there, and never readable or extractable since.
    Born,
    /// Generated there, and extractable once: a copy may exist.
    Copied,
    /// Brought in from outside.
    Imported,
    /// In no token at all: in a key file and, while a server runs, in memory.
    Software,
    /// Brought in from a copy that a ceremony made. The attributes cannot tell; the registry does.
    Restored,
}

impl std::fmt::Display for Provenance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Born => "born",
            Self::Copied => "copied",
            Self::Imported => "imported",
            Self::Software => "software",
            Self::Restored => "restored",
        })
    }
}

/// An RSA key on a token that can be named as a KEK.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct KekOnToken {
    /// Its `CKA_LABEL`.
    #[schema(value_type = String)]
    pub label: KeyLabel,
    /// SHA-256 over its `SubjectPublicKeyInfo`.
    #[schema(value_type = String)]
    pub hash: KekHash,
    /// Its `SubjectPublicKeyInfo`, DER.
    #[serde(with = "crate::base64_bytes")]
    #[schema(value_type = String, format = Byte)]
    pub spki: Vec<u8>,
    /// Modulus length, bits.
    pub bits: u32,
    /// Whether the private half is there and may serve.
    pub private: PrivateHalf,
    /// The certificate beside it, DER, where there is one.
    #[serde(with = "crate::base64_bytes::maybe")]
    #[schema(value_type = Option<String>, format = Byte)]
    pub certificate: Option<Vec<u8>>,
}

/// The private half of a KEK.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum PrivateHalf {
    /// It is not on the token.
    Absent,
    /// It is there and may not serve.
    Refused {
        /// The attribute and what it should be.
        reason: String,
        /// The attributes that matter.
        attributes: KekAttributes,
    },
    /// It serves.
    Serves {
        /// In custody `token` by `C_UnwrapKey`, or `host` by `C_Decrypt`.
        custody: Custody,
        /// How it came there.
        provenance: Provenance,
        /// The attributes that matter.
        attributes: KekAttributes,
    },
}

/// The attributes of a private key that matter, as the token gives them;
/// `None` where it does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct KekAttributes {
    /// `CKA_SENSITIVE`
    pub sensitive: Option<bool>,
    /// `CKA_EXTRACTABLE`
    pub extractable: Option<bool>,
    /// `CKA_ALWAYS_SENSITIVE`
    pub always_sensitive: Option<bool>,
    /// `CKA_NEVER_EXTRACTABLE`
    pub never_extractable: Option<bool>,
    /// `CKA_LOCAL`
    pub local: Option<bool>,
    /// `CKA_UNWRAP`
    pub unwrap: Option<bool>,
    /// `CKA_DECRYPT`
    pub decrypt: Option<bool>,
    /// `CKA_MODIFIABLE`
    pub modifiable: Option<bool>,
    /// `CKA_SIGN`
    pub sign: Option<bool>,
    /// `CKA_UNWRAP_TEMPLATE` has `CKA_SENSITIVE` true: no data key opens into the open.
    pub unwraps_sensitive: Option<bool>,
    /// `CKA_UNWRAP_TEMPLATE` has `CKA_WRAP_WITH_TRUSTED` true: whatever opens is wrapped under
    /// trusted keys only.
    pub unwraps_trusted: Option<bool>,
}

impl KekAttributes {
    /// Each with its name, as the standard spells it.
    #[must_use]
    pub const fn named(&self) -> [(&'static str, Option<bool>); 9] {
        let Self {
            sensitive,
            extractable,
            always_sensitive,
            never_extractable,
            local,
            unwrap,
            decrypt,
            modifiable,
            sign,
            unwraps_sensitive: _,
            unwraps_trusted: _,
        } = *self;
        [
            ("CKA_SENSITIVE", sensitive),
            ("CKA_EXTRACTABLE", extractable),
            ("CKA_ALWAYS_SENSITIVE", always_sensitive),
            ("CKA_NEVER_EXTRACTABLE", never_extractable),
            ("CKA_LOCAL", local),
            ("CKA_UNWRAP", unwrap),
            ("CKA_DECRYPT", decrypt),
            ("CKA_MODIFIABLE", modifiable),
            ("CKA_SIGN", sign),
        ]
    }

    /// Those in its `CKA_UNWRAP_TEMPLATE`, likewise: what a data key that opens under it must be.
    #[must_use]
    pub const fn demanded(&self) -> [(&'static str, Option<bool>); 2] {
        [
            ("CKA_SENSITIVE", self.unwraps_sensitive),
            ("CKA_WRAP_WITH_TRUSTED", self.unwraps_trusted),
        ]
    }
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

/// Encodes a frame, length first.
///
/// # Errors
/// The message is too large.
pub fn encode<T: Serialize>(message: &T) -> io::Result<Zeroizing<Vec<u8>>> {
    // The size first, so that the buffer never moves and leaves a copy behind.
    let size = postcard::experimental::serialized_size(message).map_err(io::Error::other)?;
    let mut body = Zeroizing::new(vec![0; size]);
    postcard::to_slice(message, &mut body).map_err(io::Error::other)?;
    let length = u32::try_from(body.len())
        .ok()
        .filter(|_| body.len() <= MAX_FRAME)
        .ok_or_else(|| io::Error::other("bridge message too large"))?;
    let mut frame = Zeroizing::new(Vec::with_capacity(body.len() + 4));
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(&body);
    Ok(frame)
}

/// The body's length from a frame's first four bytes.
///
/// # Errors
/// It is over the limit.
pub fn frame_length(head: [u8; 4]) -> io::Result<usize> {
    usize::try_from(u32::from_be_bytes(head))
        .ok()
        .filter(|length| *length <= MAX_FRAME)
        .ok_or_else(|| io::Error::other("bridge frame over the limit"))
}

/// Decodes a frame's body.
///
/// # Errors
/// It is not that message.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> io::Result<T> {
    postcard::from_bytes(body).map_err(io::Error::other)
}

/// Reads one message; blocking, the bridge's side.
///
/// # Errors
/// The socket closed or the frame is wrong.
pub fn read<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<T> {
    let mut head = [0_u8; 4];
    from.read_exact(&mut head)?;
    let mut body = Zeroizing::new(vec![0_u8; frame_length(head)?]);
    from.read_exact(&mut body)?;
    decode(&body)
}

/// Writes one message; blocking, the bridge's side.
///
/// # Errors
/// The socket closed.
pub fn write<T: Serialize>(to: &mut impl Write, message: &T) -> io::Result<()> {
    to.write_all(&encode(message)?)
}
