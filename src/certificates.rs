//! Certificates of KEKs, ours and our partners' (RFC 5280).
//!
//! A certificate says whose a public key is and how long it should be written
//! under. It takes no part in opening a cartridge: an expired KEK reads for ever.

mod chain;
mod subject;

use std::path::Path;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use time::{Duration, OffsetDateTime};

use crate::key::KekHash;

pub use chain::{Vouched, vouched};
pub use subject::{Subject, SubjectError};

/// Longest certificate, bytes. Real ones have one or two thousand.
pub const LONGEST: usize = 16 * 1024;

/// Longest file of certificates, bytes.
const LONGEST_FILE: u64 = 256 * 1024;

/// Most certificates in a file.
const MOST: usize = 16;

/// How long before its end a certificate is warned of.
pub const WARNED: Duration = Duration::days(30);

/// What is wrong with a certificate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// It cannot be read.
    #[error("it is no X.509 certificate in DER, or more than one")]
    Malformed,
    /// It is too long.
    #[error("it has {got} bytes, and at most {LONGEST} are taken")]
    TooLong {
        /// Its length.
        got: usize,
    },
    /// Its key wraps nothing.
    #[error(
        "its public key is not RSA of 2048, 3072 or 4096 bits with the plain identifier rsaEncryption, so no data key can be wrapped under it"
    )]
    Key,
    /// It is not for keys.
    #[error(
        "its key usage does not list keyEncipherment, so its issuer does not want keys wrapped under it; ask for a certificate with that usage"
    )]
    Usage,
    /// It is over.
    #[error("it ended on {0}; ask for a new one")]
    Ended(String),
    /// Its issuer is not known.
    #[error(
        "it was issued by {issuer}, and no CA was given to check that; give the CA's certificate with --ca FILE"
    )]
    NoCa {
        /// The issuer's name.
        issuer: String,
    },
    /// The CA did not issue it.
    #[error("the certificates given with --ca and --chain do not lead to it: {reason}")]
    Chain {
        /// What the path building said.
        reason: String,
    },
    /// It says that it signed itself, and did not.
    #[error("it names itself as its issuer, but its signature is not by its own key")]
    SelfSignature,
    /// The file cannot be read.
    #[error("cannot read {path}: {reason}")]
    File {
        /// The file.
        path: String,
        /// Why.
        reason: String,
    },
}

/// When a certificate is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Validity {
    /// From when.
    #[serde(with = "time::serde::rfc3339")]
    pub not_before: OffsetDateTime,
    /// Until when.
    #[serde(with = "time::serde::rfc3339")]
    pub not_after: OffsetDateTime,
}

impl Validity {
    /// Of a certificate that was read before; none where it cannot be read.
    #[must_use]
    pub fn of(der: &[u8]) -> Option<Self> {
        let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
        Self::read(&certificate)
    }

    fn read(certificate: &x509_parser::certificate::X509Certificate<'_>) -> Option<Self> {
        let time = |seconds: i64| OffsetDateTime::from_unix_timestamp(seconds).ok();
        Some(Self {
            not_before: time(certificate.validity().not_before.timestamp())?,
            not_after: time(certificate.validity().not_after.timestamp())?,
        })
    }

    /// Why nothing may be written under it now; none where something may.
    #[must_use]
    pub fn fault(&self, now: OffsetDateTime) -> Option<String> {
        if now > self.not_after {
            Some(format!("its certificate ended on {}", day(self.not_after)))
        } else if now < self.not_before {
            Some(format!(
                "its certificate is not good before {}",
                self.not_before
                    .format(&time::format_description::well_known::Rfc3339)
                    .unwrap_or_else(|_| day(self.not_before))
            ))
        } else {
            None
        }
    }

    /// What an operator is told of it, where there is something to tell.
    #[must_use]
    pub fn warning(&self, now: OffsetDateTime) -> Option<String> {
        self.fault(now).or_else(|| {
            let left = self.not_after - now;
            (left < WARNED).then(|| {
                format!(
                    "its certificate ends on {}, in {} days",
                    day(self.not_after),
                    left.whole_days()
                )
            })
        })
    }

    /// The last day, `2027-03-31`.
    #[must_use]
    pub fn last_day(&self) -> String {
        day(self.not_after)
    }
}

fn day(at: OffsetDateTime) -> String {
    at.date().to_string()
}

/// A certificate of a key that wraps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The whole of it, DER.
    pub der: Vec<u8>,
    /// Its public key as KEKs are hashed: `SubjectPublicKeyInfo` with `rsaEncryption`, DER.
    pub spki: Vec<u8>,
    /// Modulus length, bits.
    pub bits: u32,
    /// Whom it names, for reading.
    pub subject: String,
    /// Who issued it, for reading.
    pub issuer: String,
    /// Its subject, DER.
    pub subject_der: Vec<u8>,
    /// Its issuer, DER.
    pub issuer_der: Vec<u8>,
    /// Its serial number, a DER INTEGER.
    pub serial_der: Vec<u8>,
    /// When it is good.
    pub validity: Validity,
}

impl Certificate {
    /// Reads one certificate, DER, of an RSA key that may wrap keys.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(der: &[u8]) -> Result<Self, CertificateError> {
        if der.len() > LONGEST {
            return Err(CertificateError::TooLong { got: der.len() });
        }
        let (rest, parsed) =
            x509_parser::parse_x509_certificate(der).map_err(|_| CertificateError::Malformed)?;
        let serial = parsed.raw_serial();
        let (true, Ok(length)) = (rest.is_empty(), u8::try_from(serial.len())) else {
            return Err(CertificateError::Malformed);
        };
        // RFC 5280, 4.1.2.2, has 20 bytes at most; longer ones would need a longer length.
        if length >= 0x80 {
            return Err(CertificateError::Malformed);
        }
        let validity = Validity::read(&parsed).ok_or(CertificateError::Malformed)?;
        let (spki, bits) =
            crate::bridge::rsa_key(parsed.public_key().raw).ok_or(CertificateError::Key)?;
        if !crate::admin::KEK_BITS.contains(&bits) {
            return Err(CertificateError::Key);
        }
        match parsed.key_usage() {
            Ok(None) => {}
            Ok(Some(usage)) if usage.value.key_encipherment() => {}
            Ok(Some(_)) => return Err(CertificateError::Usage),
            Err(_) => return Err(CertificateError::Malformed),
        }
        Ok(Self {
            der: der.to_vec(),
            spki,
            bits,
            subject: readable(&parsed.subject().to_string()),
            issuer: readable(&parsed.issuer().to_string()),
            subject_der: parsed.subject().as_raw().to_vec(),
            issuer_der: parsed.issuer().as_raw().to_vec(),
            serial_der: [&[2, length], serial].concat(),
            validity,
        })
    }

    /// SHA-256 of the certificate, which partners read to each other.
    #[must_use]
    pub fn fingerprint(&self) -> [u8; 32] {
        Sha256::digest(&self.der).into()
    }

    /// The hash by which EEDKs name its key.
    #[must_use]
    pub fn hash(&self) -> KekHash {
        KekHash::of_spki(&self.spki)
    }
}

/// A fingerprint as it is read aloud: `AB:CD:…`.
#[must_use]
pub fn spelled(fingerprint: &[u8]) -> String {
    let pairs: Vec<String> = fingerprint
        .iter()
        .map(|byte| format!("{byte:02X}"))
        .collect();
    pairs.join(":")
}

/// A fingerprint as somebody typed it: hexadecimal, with or without colons and blanks.
#[must_use]
pub fn typed(text: &str) -> Option<[u8; 32]> {
    let text = text.trim();
    let text = text.strip_prefix("sha256:").unwrap_or(text);
    let digits: String = text
        .chars()
        .filter(|one| !matches!(one, ':' | ' ' | '-'))
        .collect();
    hex::decode(digits).ok()?.try_into().ok()
}

/// The certificates of a file: PEM, any number, or one in DER.
///
/// # Errors
/// The file cannot be read, or holds none.
pub fn from_file(path: &Path) -> Result<Vec<Vec<u8>>, CertificateError> {
    let fail = |reason: String| CertificateError::File {
        path: path.display().to_string(),
        reason,
    };
    let content =
        crate::files::read_limited(path, LONGEST_FILE).map_err(|error| fail(error.to_string()))?;
    let pem = content.windows(5).any(|window| window == b"-----");
    if !pem {
        return Ok(vec![content]);
    }
    let found = CertificateDer::pem_slice_iter(&content)
        .take(MOST + 1)
        .map(|der| der.map(|der| der.to_vec()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| fail(format!("its PEM does not read: {error}")))?;
    match found.len() {
        0 => Err(fail("there is no CERTIFICATE in it".to_owned())),
        count if count > MOST => Err(fail(format!("it has more than {MOST} certificates"))),
        _ => Ok(found),
    }
}

/// A name without what would move a terminal's cursor.
fn readable(name: &str) -> String {
    name.chars()
        .map(|one| if one.is_control() { '?' } else { one })
        .take(256)
        .collect()
}

#[cfg(test)]
mod tests;
