//! What a bridge is asked for the audit chain: its seals, and anchors that the token keeps.
//!
//! The key that seals is for nothing else, and the bridge signs nothing by it
//! but [`SEALED`] and a digest. There is no message that has it sign what the
//! server likes.

use serde::{Deserialize, Serialize};

/// What the labels of a chain's objects on the token begin with; no KEK has such a label.
const RESERVED: &str = "ekm-audit-";

/// `CKA_LABEL` of the keys that seal the audit chain, told apart by `CKA_ID`.
pub const SEAL_KEY: &str = "ekm-audit-seal";

/// What `CKA_LABEL` of a server's anchor begins with; its node name follows.
pub const ANCHOR: &str = "ekm-audit-anchor ";

/// `CKA_APPLICATION` of the anchors.
pub const APPLICATION: &str = "ekm";

/// What is signed begins with this, before the SHA-256 of the statement.
pub const SEALED: &[u8] = b"ekm audit chain, seal, version 1\0";

/// `CKA_ID` of a key that seals.
pub type SealKeyId = [u8; 16];

/// Whether a label is of the chain's objects, and so none of a KEK.
#[must_use]
pub fn reserved(label: &str) -> bool {
    label.to_ascii_lowercase().starts_with(RESERVED)
}

/// What is asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Evidence {
    /// A new key that seals.
    MakeKey {
        /// Modulus length, bits.
        bits: u32,
    },
    /// A seal.
    Sign {
        /// By which key.
        key: SealKeyId,
        /// SHA-256 of the statement.
        digest: [u8; 32],
    },
    /// A server's newest seal is kept as a data object, in the place of an older one.
    Anchor {
        /// The server.
        node: String,
        /// The seal's number and hash.
        text: String,
    },
    /// The anchors that the token keeps.
    Anchors,
}

/// What is answered.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Evidenced {
    /// A new key.
    Key {
        /// Its `CKA_ID`.
        id: SealKeyId,
        /// Its `SubjectPublicKeyInfo`, DER.
        spki: Vec<u8>,
    },
    /// The signature; none where the token does not have the key.
    Signed(Option<Vec<u8>>),
    /// The token keeps it.
    Anchored,
    /// The token goes on keeping this one of the same server, whose number is higher, or the
    /// same for another seal.
    Newer(String),
    /// Node and text of each.
    Anchors(Vec<(String, String)>),
    /// The token does not do it, and why.
    NotTaken(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_s_objects_have_labels_that_no_kek_has() {
        assert!(reserved(SEAL_KEY) && reserved("EKM-Audit-x") && reserved(ANCHOR));
        assert!(!reserved("ekm-auditor") && !reserved("TAPE2026A"));
        assert!(!crate::bridge::trust::reserved(SEAL_KEY));
    }
}
