//! A second copy of a KEK, made at its birth.
//!
//! A private key that can never be wrapped has one copy, unless the vendor
//! clones its token. So a KEK may be born extractable, be wrapped once under a
//! transport key, and be frozen at once:
//!
//! ```text
//! transport key (AES-256, made here) --C_UnwrapKey--> token: wraps the KEK --> NAME.kekcopy
//!        |                                            then CKA_EXTRACTABLE false
//!        +-- Shamir, M of N --> each share under its holder's passphrase --> NAME-n.share
//! ```
//!
//! The transport key is in host memory while the ceremony lasts: in the command
//! line's process, which splits it, and in a bridge of the command's own, which
//! brings it to the token. The server never has it. Nothing here calls a token;
//! `bridge::ceremony` does.

pub mod file;
mod random;
pub mod secret;
pub mod share;
pub mod transcript;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::key::KekHash;

pub use file::{CopyError, KekCopyFile};
pub use secret::{Quorum, SplitError, TransportKey};
pub use share::{Share, ShareError};

/// What kind of copy it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CopyKind {
    /// Wrapped at its birth under a transport key that is in shares.
    Ceremony,
    /// Unwrapped from such a copy into another token.
    Restored,
    /// An operator says that the vendor's tools have cloned it.
    Stated,
    /// It is in a backup, with the token's database or the key file that has it.
    Backup,
}

impl std::fmt::Display for CopyKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Ceremony => "ceremony",
            Self::Restored => "restored",
            Self::Stated => "stated",
            Self::Backup => "backup",
        })
    }
}

impl std::str::FromStr for CopyKind {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "ceremony" => Ok(Self::Ceremony),
            "restored" => Ok(Self::Restored),
            "stated" => Ok(Self::Stated),
            "backup" => Ok(Self::Backup),
            _ => Err("a copy is ceremony, restored, stated or backup"),
        }
    }
}

/// A copy of a KEK, as the registry has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KekCopy {
    /// The KEK's public-key hash.
    pub kek: KekHash,
    /// What kind of copy it is.
    pub kind: CopyKind,
    /// The ceremony that it comes from.
    pub ceremony: Option<uuid::Uuid>,
    /// The token that it was made on or restored to, by configured name.
    pub token: Option<String>,
    /// That token's serial number.
    pub serial: Option<String>,
    /// Whether the copy opened an EEDK that was made under the public key.
    pub proven: bool,
    /// What an operator said of it.
    pub note: Option<String>,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

impl KekCopy {
    /// In a few words, as `ekm kek show` has it.
    #[must_use]
    pub fn words(&self) -> String {
        let date = self.at.date();
        match self.kind {
            CopyKind::Ceremony => format!(
                "wrapped on {date}, ceremony {}, {}",
                self.ceremony.map(|id| id.to_string()).unwrap_or_default(),
                if self.proven { "proven" } else { "not proven" }
            ),
            CopyKind::Restored => format!(
                "restored to {} (serial {}) on {date}, {}",
                self.token.as_deref().unwrap_or("?"),
                self.serial.as_deref().unwrap_or("?"),
                if self.proven { "proven" } else { "not proven" }
            ),
            CopyKind::Stated => format!(
                "stated on {date}: {}",
                self.note
                    .as_deref()
                    .unwrap_or("cloned by the vendor's tool")
            ),
            CopyKind::Backup => format!(
                "in the backup of {date}, {}",
                self.note.as_deref().unwrap_or("?")
            ),
        }
    }
}
