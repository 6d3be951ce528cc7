//! Why a key file cannot be used as a whole.

use std::io;
use std::path::{Path, PathBuf};

use super::{Format, MAX_FILE, MAX_ITEMS, MAX_ITERATIONS, MAX_KEYS, MAX_WORK};

/// Why a key file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyFileError {
    /// What is wrong, and with which file.
    #[error("the key file {path}: {fault}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        fault: Box<Self>,
    },
    /// The file cannot be read.
    #[error("cannot read the key file {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// More bytes than any key file has.
    #[error("it has {got} bytes where a key file has at most {MAX_FILE}; is it the right file?")]
    TooLong {
        /// Its length, bytes.
        got: u64,
    },
    /// Neither JKS, JCEKS, PKCS#12 nor PEM.
    #[error("it is neither JKS, JCEKS, PKCS#12 nor PEM: {hint}")]
    Unknown {
        /// What it may be, and what to do.
        hint: &'static str,
    },
    /// The password does not open it.
    #[error("{format}: {problem}")]
    Password {
        /// The file's format.
        format: Format,
        /// What does not open, and what to do.
        problem: String,
    },
    /// It is not as its format wants it, or was changed after it was written.
    #[error("{format}: damaged: {problem}; fetch it again{}, or take it from a backup", how(*.format))]
    Damaged {
        /// The file's format.
        format: Format,
        /// What is wrong, and where.
        problem: String,
    },
    /// A way of sealing that is not read here.
    #[error("{format}: {what} cannot be read; {remedy}")]
    Unsupported {
        /// The file's format.
        format: Format,
        /// What it is.
        what: String,
        /// What to do.
        remedy: &'static str,
    },
    /// It asks for more work than is done for a file.
    #[error(
        "{format}: {what} wants a key derivation of {iterations} iterations, and at most {MAX_ITERATIONS} are made ({MAX_WORK} in a file); write it anew with fewer"
    )]
    Costly {
        /// The file's format.
        format: Format,
        /// What asks for it.
        what: String,
        /// How many iterations.
        iterations: u64,
    },
    /// More entries than are read.
    #[error(
        "{format}: it holds more than {MAX_ITEMS} entries and certificates, or more than {MAX_KEYS} private keys; put the KEKs into a store of their own"
    )]
    TooMany {
        /// The file's format.
        format: Format,
    },
}

/// What damages files most often: a transfer that takes bytes for text.
const fn how(format: Format) -> &'static str {
    match format {
        Format::Jks | Format::Jceks | Format::Pkcs12 => {
            " from where it was made, as binary and not as text"
        }
        Format::Pem => " from where it was made",
    }
}

impl KeyFileError {
    /// Says which file it is, once.
    pub(crate) fn in_file(self, path: &Path) -> Self {
        match self {
            named @ (Self::File { .. } | Self::Read { .. }) => named,
            fault => Self::File {
                path: path.to_owned(),
                fault: Box::new(fault),
            },
        }
    }

    /// What is wrong, without the file's name.
    #[must_use]
    pub fn fault(&self) -> &Self {
        match self {
            Self::File { fault, .. } => fault,
            other => other,
        }
    }

    /// What a file that is of no known format may be.
    pub(super) fn unknown(bytes: &[u8]) -> Self {
        // "-----BEGIN" in EBCDIC.
        const EBCDIC: [u8; 10] = [0x60, 0x60, 0x60, 0x60, 0x60, 0xc2, 0xc5, 0xc7, 0xc9, 0xd5];
        let hint = if bytes.is_empty() {
            "it is empty"
        } else if bytes
            .windows(EBCDIC.len())
            .take(4096)
            .any(|at| at == EBCDIC)
        {
            "it is PEM in EBCDIC; transfer it as text, or convert it: iconv -f IBM-1047 -t ASCII"
        } else if bytes.starts_with(&[0x30]) {
            "it may be a bare certificate or key in DER; convert it to PEM (openssl x509 -inform DER, openssl pkey -inform DER), or it is a PKCS#12 whose beginning is damaged"
        } else {
            "export the keys as PKCS#12 from the program that made it (a CMS key database, .kdb: iKeyman or DCM), and transfer that as binary"
        };
        Self::Unknown { hint }
    }
}
