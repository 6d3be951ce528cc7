//! Seals of the chain: signatures that whoever can write the directory cannot make.
//!
//! A seal is a record of the chain. Its signature is by a key on a token that is for nothing else,
//! RSASSA-PKCS1-v1_5 with SHA-256 (RFC 8017, 8.2) over
//!
//! ```text
//! "ekm audit chain, seal, version 1" 00 | SHA-256 of the statement
//!
//! statement: node: NODE LF number: N LF seq: SEQ LF hash: HASH LF
//! ```
//!
//! `seq` and `hash` are of the last record that the seal covers. Each hash stands for all records
//! before it, so the seal does too.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use der::{Decode as _, EncodePem as _};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use spki::SubjectPublicKeyInfoOwned;

use crate::bridge::evidence::SEALED;

/// What a record says of the chain itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChainMark {
    /// A signature over all records up to one.
    Seal(Seal),
    /// Records that were kept in memory while the disk took none stand behind this one.
    Gap(Gap),
    /// Files before one were removed by the retention: the chain may begin there.
    Begins(Begins),
}

/// A seal, as its record has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    /// Its number; each is one more than the one before.
    pub number: u64,
    /// The sequence number of the last record that it covers.
    pub seq: u64,
    /// That record's hash, 64 hexadecimal digits.
    pub hash: String,
    /// SHA-256 of the public key's `SubjectPublicKeyInfo`, 64 hexadecimal digits.
    pub key: String,
    /// The signature, base64.
    pub signature: String,
}

/// What the disk did not take while the emergency policy was on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// The first of these records came then, RFC 3339.
    pub since: String,
    /// How many of them follow this record, each with the time at which it came.
    pub kept: u64,
    /// How many there was no room for in memory either.
    pub lost: u64,
}

/// Where the chain begins after its oldest files were removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begins {
    /// The number of the oldest file that stays.
    pub file: u32,
    /// The sequence number of the last record that was removed.
    pub seq: u64,
    /// Its hash, 64 hexadecimal digits.
    pub hash: String,
}

/// What is signed, before the bridge's prefix: SHA-256 of the statement.
#[must_use]
pub fn statement(node: &str, number: u64, seq: u64, hash: &str) -> [u8; 32] {
    let text = format!("node: {node}\nnumber: {number}\nseq: {seq}\nhash: {hash}\n");
    Sha256::digest(text).into()
}

impl Seal {
    /// Whether its signature is by that key, for the server called `node`.
    #[must_use]
    pub fn is_by(&self, key: &SealKey, node: &str) -> bool {
        let Self {
            number,
            seq,
            hash,
            key: named,
            signature,
        } = self;
        let Ok(signature) = STANDARD.decode(signature) else {
            return false;
        };
        *named == key.fingerprint()
            && key.verifies(&statement(node, *number, *seq, hash), &signature)
    }
}

/// The public half of a key that seals.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealKey {
    spki: Vec<u8>,
    // PKCS#1 (RFC 8017, A.1.1).
    rsa: Vec<u8>,
}

/// Why something is no key to verify seals with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "it is no RSA public key in PEM (BEGIN PUBLIC KEY) or DER; ekm audit key prints the one that seals"
)]
pub struct NoSealKey;

impl SealKey {
    /// Of its `SubjectPublicKeyInfo`, DER.
    ///
    /// # Errors
    /// It is no RSA key.
    pub fn new(spki: &[u8]) -> Result<Self, NoSealKey> {
        let (spki, _) = crate::bridge::rsa_key(spki).ok_or(NoSealKey)?;
        let info = SubjectPublicKeyInfoOwned::from_der(&spki).map_err(|_| NoSealKey)?;
        let rsa = info.subject_public_key.as_bytes().ok_or(NoSealKey)?;
        Ok(Self {
            rsa: rsa.to_vec(),
            spki,
        })
    }

    /// All that a file has: PEM, or one as DER.
    ///
    /// # Errors
    /// It has none, or something else besides.
    pub fn read_all(file: &[u8]) -> Result<Vec<Self>, NoSealKey> {
        use rustls_pki_types::SubjectPublicKeyInfoDer;
        use rustls_pki_types::pem::PemObject as _;
        let mut keys = Vec::new();
        for one in SubjectPublicKeyInfoDer::pem_slice_iter(file) {
            keys.push(Self::new(&one.map_err(|_| NoSealKey)?)?);
        }
        if keys.is_empty() {
            keys.push(Self::new(file)?);
        }
        Ok(keys)
    }

    /// SHA-256 of its `SubjectPublicKeyInfo`, 64 hexadecimal digits.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        hex::encode(Sha256::digest(&self.spki))
    }

    /// Its `SubjectPublicKeyInfo`, PEM.
    #[must_use]
    pub fn pem(&self) -> String {
        SubjectPublicKeyInfoOwned::from_der(&self.spki)
            .ok()
            .and_then(|info| info.to_pem(der::pem::LineEnding::LF).ok())
            .unwrap_or_default()
    }

    /// Whether the signature is by its private half over the bridge's prefix and that digest.
    #[must_use]
    pub fn verifies(&self, digest: &[u8; 32], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, &self.rsa)
            .verify(&[SEALED, digest].concat(), signature)
            .is_ok()
    }
}

/// A seal as it is kept elsewhere: `N:HASH`, its number and the hash of its record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Anchor {
    /// The seal's number.
    pub number: u64,
    /// The hash of its record, 64 hexadecimal digits; none where only the number is known.
    pub hash: Option<String>,
}

/// Why a text is no anchor or head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoAnchor {
    /// Of a seal.
    #[error(
        "an anchor is a seal's number, or number and hash as N:HASH with 64 hexadecimal digits"
    )]
    Seal,
    /// Of the newest record.
    #[error("a head is a record's number and hash, SEQ:HASH with 64 hexadecimal digits")]
    Head,
}

fn digits(hash: &str) -> Option<String> {
    let whole = hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
    whole.then(|| hash.to_ascii_lowercase())
}

impl FromStr for Anchor {
    type Err = NoAnchor;

    fn from_str(text: &str) -> Result<Self, NoAnchor> {
        let (number, hash) = match text.split_once(':') {
            Some((number, hash)) => (number, Some(digits(hash).ok_or(NoAnchor::Seal)?)),
            None => (text, None),
        };
        let number = number.parse().map_err(|_| NoAnchor::Seal)?;
        Ok(Self { number, hash })
    }
}

impl fmt::Display for Anchor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.hash {
            Some(hash) => write!(f, "{}:{hash}", self.number),
            None => write!(f, "{}", self.number),
        }
    }
}

/// The newest record as it is kept elsewhere: `SEQ:HASH`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeadMark {
    /// The record's sequence number.
    pub seq: u64,
    /// Its hash, 64 hexadecimal digits.
    pub hash: String,
}

impl FromStr for HeadMark {
    type Err = NoAnchor;

    fn from_str(text: &str) -> Result<Self, NoAnchor> {
        let (seq, hash) = text.split_once(':').ok_or(NoAnchor::Head)?;
        Ok(Self {
            seq: seq.parse().map_err(|_| NoAnchor::Head)?,
            hash: digits(hash).ok_or(NoAnchor::Head)?,
        })
    }
}

impl fmt::Display for HeadMark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.seq, self.hash)
    }
}
