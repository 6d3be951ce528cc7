//! Key files: the software keystores that EKM sites have their KEKs in.
//!
//! ```text
//! JKS     keytool's old default          one SHA-1 over all; each key under its password
//! JCEKS   EKM's own default              the same frame; keys under PBEWithMD5AndTripleDES
//! PKCS#12 keytool today, openssl, RACF,  PFX of RFC 7292: old RC2/3DES/SHA-1 and new PBES2
//!         IBM i's DCM
//! PEM     everything else                PKCS#8, PKCS#1, certificates
//! ```
//!
//! The readers of JKS and PKCS#12 are our own. A key file may come from anybody, and the crates
//! that were looked at (`p12-keystore`, `pkcs12`, `jks`) believe the lengths or the amount of
//! work that a file declares, give up a whole store for one entry, or know DER only, while old
//! tools write BER. Here a file costs bounded time and memory whatever it says:
//!
//! | What | Limit |
//! |---|---|
//! | the file | [`MAX_FILE`] bytes |
//! | iterations of one key derivation | [`MAX_ITERATIONS`] |
//! | iterations of all derivations in a file | [`MAX_WORK`] |
//! | entries and certificates in a file | [`MAX_ITEMS`] |
//! | private keys in a file | [`MAX_KEYS`] |
//! | a certificate | 16 KiB, and 8 in a chain that is put together here |
//!
//! Private keys are checked by aws-lc-rs and are its only; a key that is not RSA of 2048, 3072 or
//! 4096 bits is listed and not used.

mod ber;
mod certificate;
mod derive;
mod error;
mod java;
mod jks;
mod pairing;
mod pem;
mod pkcs12;
mod private_key;
mod scheme;
mod unlock;

#[cfg(test)]
mod tests;

use std::fmt;
use std::path::Path;

use secrecy::SecretString;
use time::OffsetDateTime;
use zeroize::Zeroizing;

pub(crate) use certificate::Certificate;
pub use error::KeyFileError;
pub use private_key::PrivateKey;

/// The longest key file, bytes.
pub const MAX_FILE: u64 = 16 * 1024 * 1024;

/// The most iterations of one key derivation: what Java's keytool takes at most.
pub const MAX_ITERATIONS: u32 = 5_000_000;

/// The most iterations of all derivations in a file, each counted once per block of its output;
/// a hundred keys as keytool seals them for JCEKS today.
pub const MAX_WORK: u64 = 40_000_000;

/// The most entries and certificates in a file.
pub const MAX_ITEMS: usize = 20_000;

/// The most private keys in a file.
pub const MAX_KEYS: usize = 1_000;

/// The format of a key file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Java's own store, magic `FEEDFEED`.
    Jks,
    /// The store of Java's Cryptography Extension, magic `CECECECE`.
    Jceks,
    /// A PFX of PKCS#12 (RFC 7292).
    Pkcs12,
    /// Text of RFC 7468.
    Pem,
}

impl Format {
    /// The format of a file's content, which its name does not tell.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Option<Self> {
        if bytes.starts_with(&jks::MAGIC_JKS) {
            Some(Self::Jks)
        } else if bytes.starts_with(&jks::MAGIC_JCEKS) {
            Some(Self::Jceks)
        } else if pkcs12::is_pfx(bytes) {
            Some(Self::Pkcs12)
        } else if pem::is_pem(bytes) {
            Some(Self::Pem)
        } else {
            None
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Jks => "JKS",
            Self::Jceks => "JCEKS",
            Self::Pkcs12 => "PKCS#12",
            Self::Pem => "PEM",
        })
    }
}

/// What a key file holds.
#[derive(Debug)]
pub struct KeyFile {
    /// Its format.
    pub format: Format,
    /// Its entries, in the order of the file.
    pub entries: Vec<Entry>,
}

/// One entry of a key file.
#[derive(Debug)]
pub struct Entry {
    /// What the file calls it. Java stores lower-case it; it need not be a valid
    /// [`KeyLabel`](crate::key::KeyLabel), nor the only one of this name.
    pub alias: String,
    /// When it was made, where the file says so.
    pub created: Option<OffsetDateTime>,
    /// What it is.
    pub content: Content,
}

/// What an entry is.
#[derive(Debug)]
pub enum Content {
    /// An RSA key pair.
    Pair {
        /// The private key.
        key: PrivateKey,
        /// DER certificates: the key's own, its issuer's, and so on. May be empty, where a file
        /// has the bare key.
        chain: Vec<Vec<u8>>,
    },
    /// A certificate alone, DER.
    Certificate(Vec<u8>),
    /// A secret key: listed, never used.
    Secret {
        /// Its algorithm as the file names it (`AES`), or why that cannot be told.
        algorithm: String,
        /// Its length, where that can be told.
        bits: Option<u32>,
    },
    /// A key that reads well and is no KEK: RSA of another length, or of another kind.
    Unfit {
        /// What it is: `RSA-1024`, `EC`.
        what: String,
        /// Why it is not taken.
        reason: String,
    },
    /// An entry that cannot be read, while the others can.
    Unreadable {
        /// Why, and what to do.
        reason: String,
    },
}

/// The passwords of a key file.
#[derive(Clone, Debug)]
pub struct Passwords {
    /// The store's.
    pub store: SecretString,
    /// The keys', where they have another. Keys that it does not open are tried with the store's.
    pub key: Option<SecretString>,
}

/// Reads a key file.
///
/// # Errors
/// It cannot be read, is longer than [`MAX_FILE`], or what [`read`] says of its content.
pub fn open(path: &Path, passwords: &Passwords) -> Result<KeyFile, KeyFileError> {
    read(&load(path)?, passwords).map_err(|fault| fault.in_file(path))
}

/// The bytes of a key file, for [`Format::of`], [`needs_password`] and [`read`].
///
/// # Errors
/// It cannot be read, or is longer than [`MAX_FILE`].
pub fn load(path: &Path) -> Result<Zeroizing<Vec<u8>>, KeyFileError> {
    match crate::files::read_limited(path, MAX_FILE) {
        Ok(bytes) => Ok(Zeroizing::new(bytes)),
        Err(source) => Err(KeyFileError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

/// Whether a password is needed to read all of it: PEM may be without.
#[must_use]
pub fn needs_password(bytes: &[u8]) -> bool {
    match Format::of(bytes) {
        Some(Format::Pem) => pem::is_sealed(bytes),
        Some(Format::Jks | Format::Jceks | Format::Pkcs12) => true,
        // Reading it says what is wrong.
        None => false,
    }
}

/// Reads the content of a key file.
///
/// # Errors
/// It is of no known format, the password is wrong, it is damaged, or it asks for more work than
/// the limits allow. What is wrong with one entry only is said in its [`Content::Unreadable`].
pub fn read(bytes: &[u8], passwords: &Passwords) -> Result<KeyFile, KeyFileError> {
    let got = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    if got > MAX_FILE {
        return Err(KeyFileError::TooLong { got });
    }
    let format = Format::of(bytes).ok_or_else(|| KeyFileError::unknown(bytes))?;
    match format {
        Format::Jks | Format::Jceks => jks::read(format, bytes, passwords),
        Format::Pkcs12 => pkcs12::read(bytes, passwords),
        Format::Pem => pem::read(bytes, passwords),
    }
}
