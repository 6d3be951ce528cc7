//! KEKs, as a bridge tells of them: custody, provenance, attributes.

use serde::{Deserialize, Serialize};

use crate::key::{KekHash, KeyLabel};

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
