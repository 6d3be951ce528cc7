//! The EEDK: a data key wrapped under one KEK, as a cartridge stores it.
//!
//! The layout is DER (X.690), so that `openssl asn1parse -inform DER` shows it:
//!
//! ```text
//! Eedk ::= SEQUENCE {
//!     version     INTEGER (1),
//!     dki         CHOICE {
//!         bare    OCTET STRING (SIZE (12)),               -- the OAEP label is empty
//!         label   [0] EXPLICIT OCTET STRING (SIZE (12)) },  -- the OAEP label is the DKi
//!     kek         CHOICE {
//!         label   [0] EXPLICIT UTF8String,
//!         hash    [1] EXPLICIT SEQUENCE {
//!             algorithm  AlgorithmIdentifier,         -- id-sha256, no parameters (RFC 5754)
//!             value      OCTET STRING (SIZE (32)) } },
//!     wrap        AlgorithmIdentifier,                -- id-RSAES-OAEP, or rsaEncryption
//!     wrappedKey  OCTET STRING (SIZE (256 | 384 | 512)) }
//! ```
//!
//! The parameters are RSAES-OAEP-params (RFC 8017, appendix A.2.1; hash parameters NULL as in
//! RFC 4055, section 2.1). DER omits what equals a default, so SHA-1 leaves out `[0]` and `[1]`.
//! The parameters never say the OAEP label, `[2]`: it could only repeat the DKi, and the 29 bytes
//! of that would keep two RSA-3072 EEDKs out of a cartridge memory of 1,000 bytes. The tag of
//! `dki` says it instead.
//!
//! `rsaEncryption` (1.2.840.113549.1.1.1, parameters NULL; RFC 8017, appendix A.1) stands for
//! RSAES-PKCS1-v1_5, as in RFC 3370, section 4.2.1. It has no label, so `dki` is bare then. Nothing
//! binds such a wrapped key to its DKi, and only a token whose profile says so opens one.
//!
//! An EEDK says what was wrapped and how, not who wrapped it: whoever has the KEK's public key
//! can make one. It is no proof of anything until the token has opened it.

pub mod foreign;
mod layout;
mod wrap;

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{DataKeyId, DataKeyIdError, KekId, KeyLabelError};
pub use wrap::{OaepHash, Padding, WrapAlgorithm};

/// A data key wrapped under one KEK.
///
/// Decoding is strict and bounded, and what decodes encodes back to the same bytes.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Eedk {
    dki: DataKeyId,
    kek: KekId,
    wrap: WrapAlgorithm,
    wrapped: Vec<u8>,
    der: Vec<u8>,
}

impl Eedk {
    /// The longest encoding, in bytes: RSA-4096, SHA-512 with the DKi as OAEP label, and a label
    /// of 64 characters of four bytes each take 865.
    pub const MAX_LEN: usize = 896;

    /// The lengths that a wrapped key may have, in bytes: the moduli of RSA-2048, 3072 and 4096.
    pub const WRAPPED_LENGTHS: [usize; 3] = [256, 384, 512];

    /// An EEDK from its parts.
    ///
    /// # Errors
    ///
    /// [`EedkError::WrappedLength`] where `wrapped` is no RSA ciphertext of a length we use.
    pub fn new(
        dki: DataKeyId,
        kek: KekId,
        wrap: WrapAlgorithm,
        wrapped: Vec<u8>,
    ) -> Result<Self, EedkError> {
        if !Self::WRAPPED_LENGTHS.contains(&wrapped.len()) {
            return Err(EedkError::WrappedLength { got: wrapped.len() });
        }
        let der = layout::encode(&dki, &kek, wrap, &wrapped)?;
        Ok(Self {
            dki,
            kek,
            wrap,
            wrapped,
            der,
        })
    }

    /// Reads an EEDK from its DER.
    ///
    /// # Errors
    ///
    /// An [`EedkError`] that names the defect.
    pub fn decode(der: &[u8]) -> Result<Self, EedkError> {
        if der.len() > Self::MAX_LEN {
            return Err(EedkError::TooLong {
                limit: Self::MAX_LEN,
                got: der.len(),
            });
        }
        let (dki, kek, wrap, wrapped) = layout::decode(der)?;
        let eedk = Self::new(dki, kek, wrap, wrapped)?;
        if eedk.der != der {
            return Err(EedkError::NotCanonical);
        }
        Ok(eedk)
    }

    /// Its DER.
    pub fn encode(&self) -> Vec<u8> {
        self.der.clone()
    }

    /// Its DER, borrowed.
    pub fn as_der(&self) -> &[u8] {
        &self.der
    }

    /// SHA-256 of its DER, which names this EEDK in records.
    pub fn digest(&self) -> [u8; 32] {
        Sha256::digest(&self.der).into()
    }

    /// The data key that it holds.
    pub fn dki(&self) -> DataKeyId {
        self.dki
    }

    /// The KEK that it is wrapped under.
    pub fn kek(&self) -> &KekId {
        &self.kek
    }

    /// How it is wrapped.
    pub fn wrap(&self) -> WrapAlgorithm {
        self.wrap
    }

    /// The wrapped key, as long as the KEK's modulus.
    pub fn wrapped(&self) -> &[u8] {
        &self.wrapped
    }

    /// The OAEP label that it is wrapped with: the DKi, or nothing.
    pub fn oaep_label(&self) -> &[u8] {
        self.wrap.label(self.dki.as_bytes())
    }
}

impl TryFrom<String> for Eedk {
    type Error = EedkError;

    fn try_from(given: String) -> Result<Self, EedkError> {
        Self::decode(&STANDARD.decode(given).map_err(|_| EedkError::Base64)?)
    }
}

impl From<Eedk> for String {
    fn from(eedk: Eedk) -> Self {
        STANDARD.encode(eedk.der)
    }
}

impl fmt::Debug for Eedk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Eedk")
            .field("dki", &self.dki.to_string())
            .field("kek", &self.kek.to_string())
            .field("wrap", &self.wrap)
            .field("wrapped_len", &self.wrapped.len())
            .finish_non_exhaustive()
    }
}

/// Why bytes are no EEDK of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EedkError {
    /// Longer than [`Eedk::MAX_LEN`].
    #[error("an EEDK has at most {limit} bytes, got {got}")]
    TooLong {
        /// The limit, in bytes.
        limit: usize,
        /// The length of what was given, in bytes.
        got: usize,
    },
    /// The bytes end before the structure does.
    #[error("the EEDK is cut short")]
    Truncated,
    /// Something follows the structure, or a part of it.
    #[error("the EEDK has bytes that belong to no field of it")]
    TrailingBytes,
    /// Well-formed, but not the one encoding that DER allows.
    #[error("the EEDK is not in canonical DER")]
    NotCanonical,
    /// No such structure at all.
    #[error("the EEDK does not have the expected layout")]
    Malformed(#[source] der::Error),
    /// The text form is not base64.
    #[error("expected the base64 of an EEDK")]
    Base64,
    /// A version that we do not know.
    #[error("expected EEDK version 1, got {got}")]
    UnknownVersion {
        /// The INTEGER, in hexadecimal.
        got: String,
    },
    /// The DKi is none.
    #[error("the EEDK holds no data key identifier")]
    Dki(#[source] DataKeyIdError),
    /// The key label is none.
    #[error("the EEDK holds no key label")]
    Label(#[source] KeyLabelError),
    /// The KEK is named by a hash that is not SHA-256.
    #[error("expected the KEK's hash to be SHA-256 (2.16.840.1.101.3.4.2.1), got {got}")]
    KekHashAlgorithm {
        /// The object identifier.
        got: String,
    },
    /// The KEK's hash has another length.
    #[error("expected a KEK hash of 32 bytes, got {got}")]
    KekHashLength {
        /// Its length, in bytes.
        got: usize,
    },
    /// Wrapped with neither of the two.
    #[error(
        "expected the wrap to be RSAES-OAEP (1.2.840.113549.1.1.7) or RSAES-PKCS1-v1_5 (1.2.840.113549.1.1.1), got {got}"
    )]
    WrapAlgorithm {
        /// The object identifier.
        got: String,
    },
    /// The RSAES-OAEP parameters are missing.
    #[error("the EEDK lacks the RSAES-OAEP parameters")]
    WrapParameters,
    /// RSAES-PKCS1-v1_5 with other parameters than NULL.
    #[error("expected NULL as the parameters of RSAES-PKCS1-v1_5")]
    NullParameters,
    /// RSAES-PKCS1-v1_5, and a DKi that says that it is a label.
    #[error("RSAES-PKCS1-v1_5 has no label, and the DKi's tag says that it is one")]
    LabelWithoutOaep,
    /// An OAEP hash that we do not know.
    #[error("expected SHA-1, SHA-256, SHA-384 or SHA-512 as OAEP hash, got {got}")]
    OaepHash {
        /// The object identifier.
        got: String,
    },
    /// The mask generation function is not MGF1.
    #[error("expected MGF1 (1.2.840.113549.1.1.8) as mask generation, got {got}")]
    MaskGeneration {
        /// The object identifier.
        got: String,
    },
    /// MGF1 has another hash than OAEP.
    #[error("expected MGF1 over {expected}, the OAEP hash, got {got}")]
    MaskHash {
        /// The OAEP hash.
        expected: OaepHash,
        /// The hash of MGF1.
        got: OaepHash,
    },
    /// The parameters say an OAEP label, which is the DKi's tag to say.
    #[error("expected no OAEP label in the RSAES-OAEP parameters, as the DKi's tag says it")]
    OaepLabel,
    /// The wrapped key is as long as no modulus that we use.
    #[error("expected a wrapped key of 256, 384 or 512 bytes, got {got}")]
    WrappedLength {
        /// Its length, in bytes.
        got: usize,
    },
}

#[cfg(test)]
mod malformed;
#[cfg(test)]
mod tests;
