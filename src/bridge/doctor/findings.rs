//! What an examination found, as data. Printing is the command line's.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::bridge::faults::ckr_name;
use crate::bridge::message::{KekOnToken, SlotOnModule};
use crate::bridge::pkcs11::{Call, CallError, MechanismInfo, ModuleInfo, TokenInfo, TokenLimits};
use crate::key::{OaepHash, WrapAlgorithm};

/// How a try ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The token did it, and the result was right.
    Works,
    /// The token said no.
    Refused {
        /// The function, as the standard spells it.
        function: String,
        /// The `CKR_` name.
        code: String,
    },
    /// The token said yes and did something else.
    Wrong(String),
    /// It was not tried, and why.
    Untried(String),
}

impl Outcome {
    /// Whether the token did it.
    #[must_use]
    pub fn works(&self) -> bool {
        *self == Self::Works
    }

    /// In a table whose head names the function: the `CKR_` code alone.
    #[must_use]
    pub fn short(&self) -> &str {
        match self {
            Self::Works => "yes",
            Self::Refused { code, .. } => code,
            Self::Wrong(_) => "WRONG",
            Self::Untried(_) => "-",
        }
    }

    /// In a sentence that says why something cannot be done.
    #[must_use]
    pub fn why(&self) -> String {
        match self {
            Self::Works => "it works".to_owned(),
            Self::Refused { function, code } => format!("{function} answers {code}"),
            Self::Wrong(what) => what.clone(),
            Self::Untried(why) => format!("it was not tried, as {why}"),
        }
    }

    pub(super) fn untried(why: &str) -> Self {
        Self::Untried(why.to_owned())
    }

    /// What a comparison showed.
    pub(super) fn same(equal: bool) -> Self {
        if equal {
            Self::Works
        } else {
            Self::Wrong("what came out is not the key that went in".to_owned())
        }
    }
}

impl From<CallError> for Outcome {
    fn from(error: CallError) -> Self {
        Self::Refused {
            function: error.function.to_owned(),
            code: ckr_name(error.rv),
        }
    }
}

impl From<Call<Self>> for Outcome {
    fn from(call: Call<Self>) -> Self {
        call.unwrap_or_else(Self::from)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Works => f.write_str("yes"),
            Self::Refused { function, code } => write!(f, "no: {function} {code}"),
            Self::Wrong(what) => write!(f, "wrong: {what}"),
            Self::Untried(why) => write!(f, "not tried: {why}"),
        }
    }
}

/// How an attack ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Defence {
    /// The token stops it.
    Stopped {
        /// The function that refused.
        function: String,
        /// The `CKR_` name, or what the token did instead.
        code: String,
    },
    /// It succeeded, and what the attacker has.
    NotStopped(String),
    /// It was not tried, and why.
    Untried(String),
}

impl Defence {
    /// Whether the token stops it.
    #[must_use]
    pub const fn stopped(&self) -> bool {
        matches!(self, Self::Stopped { .. })
    }

    pub(super) fn quietly(function: &str, instead: &str) -> Self {
        Self::Stopped {
            function: function.to_owned(),
            code: instead.to_owned(),
        }
    }
}

impl From<CallError> for Defence {
    fn from(error: CallError) -> Self {
        Self::Stopped {
            function: error.function.to_owned(),
            code: ckr_name(error.rv),
        }
    }
}

impl fmt::Display for Defence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopped { function, code } => {
                write!(f, "the token stops it: {function} {code}")
            }
            Self::NotStopped(how) => write!(f, "not stopped: {how}"),
            Self::Untried(why) => write!(f, "not tried: {why}"),
        }
    }
}

/// What can be seen without a login.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Surface {
    /// Path of the library, or `embedded`.
    pub library: String,
    /// `C_GetInfo`
    pub module: ModuleInfo,
    /// All slots.
    pub slots: Vec<SlotOnModule>,
    /// The token to look at.
    pub token: Option<SeenToken>,
    /// Why there is none.
    pub no_token: Option<String>,
}

/// A token as it shows itself to anybody.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenToken {
    /// Slot number, today.
    pub slot: u64,
    /// Its RFC 7512 URI.
    pub uri: String,
    /// `C_GetTokenInfo`
    pub info: TokenInfo,
    /// The flags that are set, `CKF_` names.
    pub flags: Vec<String>,
    /// The rest of `C_GetTokenInfo`.
    pub limits: TokenLimits,
    /// Seconds that its clock is ahead of ours; only where it has one.
    pub clock_ahead: Option<i64>,
    /// The mechanisms that matter.
    pub mechanisms: Vec<MechanismSeen>,
}

/// A mechanism and what the token says of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MechanismSeen {
    /// `CKM_` name.
    pub name: String,
    /// What `ekm` uses it for.
    pub purpose: String,
    /// Whether the token lists it.
    pub listed: bool,
    /// Key sizes and flags; only where the token says.
    pub info: Option<MechanismInfo>,
    /// The flags that are set, `CKF_` names without the prefix.
    pub flags: Vec<String>,
}

/// How many sessions can be open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sessions {
    /// Read-write sessions open at the same time, the first one included.
    pub opened: usize,
    /// More were not tried.
    pub bound: usize,
    /// What ended it before the bound.
    pub ended: Option<Outcome>,
}

/// A kind of throw-away RSA-2048 key pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PairKind {
    /// A KEK for custody `token` without further protection.
    Plain,
    /// With `CKA_UNWRAP_TEMPLATE { CKA_SENSITIVE }`.
    UnwrapTemplate,
    /// With `CKA_UNWRAP_TEMPLATE { CKA_SENSITIVE, CKA_WRAP_WITH_TRUSTED }`.
    TrustedTemplate,
    /// With `CKA_MODIFIABLE` false.
    Frozen,
    /// With `CKA_COPYABLE` false.
    Uncopyable,
    /// With all of these that the token takes one by one.
    Protected,
    /// A KEK for custody `host`: `CKA_DECRYPT` instead of `CKA_UNWRAP`.
    Host,
}

impl PairKind {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Plain,
        Self::UnwrapTemplate,
        Self::TrustedTemplate,
        Self::Frozen,
        Self::Uncopyable,
        Self::Protected,
        Self::Host,
    ];
}

impl fmt::Display for PairKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Plain => "plain KEK",
            Self::UnwrapTemplate => "KEK with CKA_UNWRAP_TEMPLATE",
            Self::TrustedTemplate => "the same, for trusted keys only",
            Self::Frozen => "KEK with CKA_MODIFIABLE false",
            Self::Uncopyable => "KEK with CKA_COPYABLE false",
            Self::Protected => "KEK with all that it takes",
            Self::Host => "KEK for custody host",
        })
    }
}

/// What came of making one kind of pair.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PairMade {
    /// Which.
    pub kind: PairKind,
    /// As a session object, or else as a token object that is destroyed afterwards.
    pub made: Outcome,
    /// Whether it had to be a token object.
    pub on_token: bool,
    /// Whether the uses that it is not for were sent as well, as false.
    pub denied_uses: bool,
    /// How long the token took, milliseconds.
    pub milliseconds: u64,
    /// Whether the attribute that the kind is named for reads back as sent.
    pub reads_back: Option<bool>,
}

/// Which attributes go with `C_UnwrapKey`, besides those that always do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sent {
    /// `CKA_SENSITIVE` true.
    pub sensitive: bool,
    /// `CKA_EXTRACTABLE` true.
    pub extractable: bool,
    /// `CKA_VALUE_LEN` 32.
    pub value_len: bool,
}

impl Sent {
    /// Every combination, the most explicit one first.
    #[must_use]
    pub fn ladder() -> Vec<Self> {
        let both = [true, false];
        let mut ladder = Vec::new();
        for sensitive in both {
            for extractable in both {
                for value_len in both {
                    ladder.push(Self {
                        sensitive,
                        extractable,
                        value_len,
                    });
                }
            }
        }
        ladder
    }
}

impl fmt::Display for Sent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [
            (self.sensitive, "SENSITIVE"),
            (self.extractable, "EXTRACTABLE"),
            (self.value_len, "VALUE_LEN"),
        ];
        let sent: Vec<&str> = names
            .iter()
            .filter(|(sent, _)| *sent)
            .map(|(_, name)| *name)
            .collect();
        f.pad(&if sent.is_empty() {
            "none of the three".to_owned()
        } else {
            sent.join(" ")
        })
    }
}

/// One unwrap template, tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rung {
    /// What was sent.
    pub sent: Sent,
    /// `C_UnwrapKey`, and whether the key is the one that was wrapped.
    pub unwrap: Outcome,
    /// What came of it.
    pub key: Option<UnwrappedKey>,
}

/// A data key that came out of `C_UnwrapKey`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnwrappedKey {
    /// `CKA_SENSITIVE`, read back.
    pub sensitive: Option<bool>,
    /// `CKA_EXTRACTABLE`, read back.
    pub extractable: Option<bool>,
    /// `CKA_VALUE_LEN`, read back, bytes.
    pub value_len: Option<u64>,
    /// `CKA_VALUE` could be read.
    pub readable: bool,
    /// `C_SetAttributeValue` of `CKA_SENSITIVE`, where it was not true; after
    /// it the value must not be readable.
    pub set_after: Outcome,
    /// `C_WrapKey` for a drive, opened again on the host.
    pub wrap: Outcome,
}

/// One OAEP hash, with or without a label.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Oaep {
    /// Hash of OAEP and MGF1.
    pub hash: OaepHash,
    /// Whether there is a label.
    pub labelled: bool,
    /// `C_UnwrapKey` of what the host wrapped.
    pub unwrap: Outcome,
    /// `C_WrapKey` under a public key from outside, opened on the host.
    pub wrap: Outcome,
    /// `C_Decrypt`, for custody `host`.
    pub decrypt: Outcome,
}

/// RSAES-PKCS1-v1_5, the way of a token that has no OAEP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct V15 {
    /// `C_UnwrapKey` of what the host wrapped, with the first template that does.
    pub unwrap: Outcome,
    /// `C_Decrypt`, for custody `host`.
    pub decrypt: Outcome,
}

/// Everything tried around data keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataKeys {
    /// `C_CreateObject` of a drive's RSA public key as a session object.
    pub import: Outcome,
    /// `C_GenerateKey` of an AES-256 session key that can be wrapped and not read.
    pub generate: Outcome,
    /// `C_GenerateRandom`, for custody `host`.
    pub random: Outcome,
    /// The hash that the templates were tried with; none where nothing opens.
    pub opened_with: Option<OaepHash>,
    /// Each unwrap template.
    pub ladder: Vec<Rung>,
    /// The one that keeps a data key and still lets it be wrapped.
    pub fits: Option<Sent>,
    /// Whether `CKA_SENSITIVE` must be set after the unwrap.
    pub set_after: bool,
    /// Each OAEP.
    pub oaep: Vec<Oaep>,
    /// The other way.
    pub v15: V15,
    /// A KEK with `CKA_UNWRAP_TEMPLATE` opens with that template too.
    pub under_unwrap_template: Outcome,
    /// A KEK with all that it takes opens with that template too.
    pub under_protected: Outcome,
}

/// What someone could do who has the PIN and the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AttackName {
    /// Unwrap an EEDK with a weak template and read the data key.
    WeakTemplate,
    /// Wrap a data key for a public key of his own.
    ForeignKey,
    /// Turn on `CKA_DECRYPT` of the KEK and decrypt the EEDK.
    FlipDecrypt,
    /// Copy the KEK with `CKA_DECRYPT` on.
    CopyDecrypt,
    /// Put another `CKA_UNWRAP_TEMPLATE` in the place of the KEK's, on itself or on a copy.
    LoosenTemplate,
    /// Wrap out a key that has `CKA_EXTRACTABLE` false.
    WrapUnextractable,
    /// Have a key of 20 bytes opened as AES-256.
    ShortKey,
}

impl fmt::Display for AttackName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::WeakTemplate => "unwrap with a weak template and read the data key",
            Self::ForeignKey => "wrap the data key for a public key of one's own",
            Self::FlipDecrypt => "turn on CKA_DECRYPT of the KEK and decrypt",
            Self::CopyDecrypt => "copy the KEK with CKA_DECRYPT and decrypt",
            Self::LoosenTemplate => "loosen CKA_UNWRAP_TEMPLATE and read the data key",
            Self::WrapUnextractable => "wrap out a key with CKA_EXTRACTABLE false",
            Self::ShortKey => "pass off 20 bytes as an AES key",
        })
    }
}

/// An attack, tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attack {
    /// Which.
    pub name: AttackName,
    /// On which kind of KEK; none where it does not matter.
    pub against: Option<PairKind>,
    /// How it ended.
    pub defence: Defence,
}

/// Wrapping with trusted keys only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trusted {
    /// The user makes a public key with `CKA_TRUSTED` true; it should be refused.
    pub user_creates: Outcome,
    /// The user sets `CKA_TRUSTED` later; it should be refused.
    pub user_sets: Outcome,
    /// The user copies a public key with `CKA_TRUSTED` true; it should be refused.
    pub user_copies: Outcome,
    /// A generated `CKA_WRAP_WITH_TRUSTED` key, wrapped under a key that is not trusted.
    pub generated: Defence,
    /// The same with a key that was unwrapped.
    pub unwrapped: Defence,
}

/// A KEK on the token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KekSeen {
    /// What its attributes say.
    pub kek: KekOnToken,
    /// An EEDK in the way of the profile, made on the host with a DKi, opens under it.
    pub opens: Outcome,
}

/// The KEKs on the token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keks {
    /// The way of the profile, in which each was tried.
    pub way: WrapAlgorithm,
    /// All of them.
    pub keks: Vec<KekSeen>,
    /// Labels that are on two different keys.
    pub ambiguous: Vec<String>,
}

/// How long a call takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latency {
    /// The function or functions.
    pub call: String,
    /// How often it was called.
    pub times: usize,
    /// The median, nanoseconds.
    pub p50_ns: u64,
    /// The longest, nanoseconds.
    pub max_ns: u64,
}

/// All that was found. What is `None` was not looked at; `interrupted` and
/// `login` say why.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Examination {
    /// Without a login.
    pub surface: Option<Surface>,
    /// The login: `untried` without a PIN, `wrong` with why it was held back or refused.
    pub login: Option<Outcome>,
    /// Throw-away objects of an earlier examination that were destroyed.
    pub leftovers: usize,
    /// Sessions.
    pub sessions: Option<Sessions>,
    /// Throw-away pairs.
    pub pairs: Vec<PairMade>,
    /// Data keys.
    pub data_keys: Option<DataKeys>,
    /// Attacks.
    pub attacks: Vec<Attack>,
    /// Wrap with trusted.
    pub trusted: Option<Trusted>,
    /// KEKs.
    pub keks: Option<Keks>,
    /// Call latency.
    pub latency: Vec<Latency>,
    /// What was begun and not ended: the part, and what happened to the module.
    pub interrupted: Vec<(String, String)>,
}
