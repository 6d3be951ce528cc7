//! What a bridge is asked about certificates, and about the seals of partners' KEKs.
//!
//! The bridge signs two things only, and each by a key that is for nothing
//! else: a request for the certificate of the very KEK that signs it, and
//! [`SEALED`] before a digest, by a seal key. There is no message that has it
//! sign what the server likes.

use serde::{Deserialize, Serialize};

use crate::certificates::Subject;
use crate::key::KekHash;

/// `CKA_LABEL` of the keys that seal partners' KEKs; one for each, told apart by `CKA_ID`.
pub const SEAL_LABEL: &str = "ekm-seal";

/// What is sealed begins with this, before the SHA-256 of the row.
pub const SEALED: &[u8] = b"ekm partner KEK, sealed row, version 1\0";

/// `CKA_ID` of a seal key.
pub type SealId = [u8; 16];

/// HMAC-SHA-256 (RFC 2104), made on the token.
pub type Mac = [u8; 32];

/// What is asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Certify {
    /// A PKCS#10 request, signed by the KEK.
    Request {
        /// Which KEK.
        kek: KekHash,
        /// The name to be certified.
        subject: Subject,
    },
    /// Whether the token opens what is wrapped under the KEK's public half.
    Possess {
        /// Which KEK.
        kek: KekHash,
    },
    /// The KEK's certificate is stored beside it, in the place of an older one.
    Store {
        /// Which KEK.
        kek: KekHash,
        /// The certificate, DER.
        certificate: Vec<u8>,
    },
    /// A new seal key, and the seal by it.
    Seal {
        /// SHA-256 of the row.
        digest: [u8; 32],
    },
    /// The seal that a seal key gives, to compare.
    Reseal {
        /// Which seal key.
        key: SealId,
        /// SHA-256 of the row.
        digest: [u8; 32],
    },
    /// A seal key is destroyed: what it sealed never verifies again.
    Unseal {
        /// Which seal key.
        key: SealId,
    },
}

/// What is answered.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Certified {
    /// The request, DER.
    Request(Vec<u8>),
    /// The token opened it.
    Possessed,
    /// The certificate is on the token.
    Stored,
    /// The token does not take it, and why.
    NotTaken(String),
    /// A new seal.
    Sealed {
        /// Its key.
        key: SealId,
        /// The seal.
        mac: Mac,
    },
    /// What the seal key gives; none where the token does not have it.
    Resealed(Option<Mac>),
    /// Whether there was such a seal key.
    Unsealed(bool),
}
