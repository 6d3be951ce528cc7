//! How a data key is wrapped under a KEK.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The RSA encryption scheme of an EEDK.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub enum WrapAlgorithm {
    /// RSAES-OAEP (RFC 8017, section 7.1) with MGF1 over the same hash.
    Oaep {
        /// The hash, also MGF1's.
        hash: OaepHash,
        /// Whether the OAEP label is the DKi; otherwise it is empty.
        labelled: bool,
    },
    /// RSAES-PKCS1-v1_5 (RFC 8017, section 7.2), for tokens that have no OAEP.
    Pkcs1V15,
}

impl WrapAlgorithm {
    /// RSAES-OAEP.
    #[must_use]
    pub const fn oaep(hash: OaepHash, labelled: bool) -> Self {
        Self::Oaep { hash, labelled }
    }

    /// Whether the OAEP label is the DKi.
    #[must_use]
    pub const fn labelled(self) -> bool {
        matches!(self, Self::Oaep { labelled: true, .. })
    }

    /// The OAEP label of a data key: its DKi, or nothing.
    #[must_use]
    pub const fn label(self, dki: &[u8]) -> &[u8] {
        if self.labelled() { dki } else { &[] }
    }

    /// The same without a label.
    #[must_use]
    pub const fn unlabelled(self) -> Self {
        match self {
            Self::Oaep { hash, .. } => Self::oaep(hash, false),
            Self::Pkcs1V15 => self,
        }
    }

    /// The padding alone.
    #[must_use]
    pub const fn padding(self) -> Padding {
        match self {
            Self::Oaep { .. } => Padding::Oaep,
            Self::Pkcs1V15 => Padding::Pkcs1V15,
        }
    }

    /// Whether it is RSAES-PKCS1-v1_5, whose padding can be probed (Bleichenbacher 1998).
    #[must_use]
    pub const fn is_v15(self) -> bool {
        matches!(self, Self::Pkcs1V15)
    }
}

impl fmt::Display for WrapAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Oaep { hash, labelled } => {
                let label = if *labelled { ", label DKi" } else { "" };
                write!(f, "RSAES-OAEP {hash}{label}")
            }
            Self::Pkcs1V15 => f.write_str("RSAES-PKCS1-v1_5"),
        }
    }
}

/// A padding of RSA encryption.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Padding {
    /// RSAES-OAEP.
    #[default]
    #[serde(rename = "oaep")]
    Oaep,
    /// RSAES-PKCS1-v1_5.
    #[serde(rename = "pkcs1-v1.5")]
    Pkcs1V15,
}

/// The hash of an OAEP wrap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OaepHash {
    /// SHA-1, for tokens that have no other OAEP. OAEP does not rest on its collision resistance.
    Sha1,
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

impl fmt::Display for OaepHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Sha1 => "SHA-1",
            Self::Sha256 => "SHA-256",
            Self::Sha384 => "SHA-384",
            Self::Sha512 => "SHA-512",
        })
    }
}

/// As a profile has it: hash and label only where there is OAEP.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    padding: Padding,
    // Never skipped: the bridge's messages carry no field names.
    #[serde(default)]
    hash: Option<OaepHash>,
    #[serde(default)]
    labelled: Option<bool>,
}

impl TryFrom<Written> for WrapAlgorithm {
    type Error = &'static str;

    fn try_from(written: Written) -> Result<Self, Self::Error> {
        let Written {
            padding,
            hash,
            labelled,
        } = written;
        match (padding, hash, labelled) {
            (Padding::Oaep, Some(hash), Some(labelled)) => Ok(Self::oaep(hash, labelled)),
            (Padding::Oaep, None, _) => Err("missing field `hash`: OAEP needs one"),
            (Padding::Oaep, _, None) => Err("missing field `labelled`: OAEP has a label or none"),
            (Padding::Pkcs1V15, None, None) => Ok(Self::Pkcs1V15),
            (Padding::Pkcs1V15, _, _) => {
                Err("padding \"pkcs1-v1.5\" has no hash and no label; leave both out")
            }
        }
    }
}

impl From<WrapAlgorithm> for Written {
    fn from(algorithm: WrapAlgorithm) -> Self {
        let (hash, labelled) = match algorithm {
            WrapAlgorithm::Oaep { hash, labelled } => (Some(hash), Some(labelled)),
            WrapAlgorithm::Pkcs1V15 => (None, None),
        };
        Self {
            padding: algorithm.padding(),
            hash,
            labelled,
        }
    }
}
