//! The file of a wrapped KEK, `NAME.kekcopy`: JSON, and no secret without the shares.
//!
//! It is authenticated by HMAC-SHA256 under a key that HKDF (RFC 5869) makes of
//! the transport key, so shares that do not belong to it, or a file that was
//! changed, are found out before a token is asked. What a token makes of it is
//! proved by the public key.

use aws_lc_rs::{hkdf, hmac};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::secret::{Quorum, TransportKey};
use crate::bridge::ceremony::{CopiedKek, WrappedKek};
use crate::bridge::message::Custody;
use crate::key::{KekHash, KeyLabel};

/// Largest file, bytes; an RSA-4096 key takes some 6,000.
pub const MOST: u64 = 64 * 1024;

const FORMAT: &str = "ekm-kek-copy";
const VERSION: u32 = 1;

/// A wrapped KEK and what it takes to make it a KEK again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KekCopyFile {
    /// What was copied, when and how.
    pub copy: Body,
    /// HMAC-SHA256 over the JSON of `copy`, without blanks, hexadecimal.
    authentication: String,
}

/// The part that is authenticated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Body {
    format: String,
    version: u32,
    /// The ceremony.
    pub ceremony: Uuid,
    /// When it was.
    #[serde(with = "time::serde::rfc3339")]
    pub made: OffsetDateTime,
    /// The token that the KEK was born on: its label and serial number.
    pub token: String,
    /// The KEK's label.
    pub label: KeyLabel,
    /// The KEK's public-key hash.
    pub hash: KekHash,
    /// Modulus length, bits.
    pub bits: u32,
    /// What the KEK is for.
    pub custody: Custody,
    /// `CKA_ID`, hexadecimal.
    id: String,
    /// `SubjectPublicKeyInfo`, DER in base64.
    spki: String,
    /// How many of how many shares are needed.
    pub needed: u8,
    /// How many shares there are.
    pub shares: u8,
    /// How the private key is wrapped.
    wrapped: WrappedKek,
}

/// What is wrong with such a file.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// It is no JSON of that kind.
    #[error("it is no copy of a KEK: {0}")]
    Syntax(#[from] serde_json::Error),
    /// It is of another kind or version.
    #[error("it is {format:?} version {version}, and this ekm reads {FORMAT:?} version {VERSION}")]
    Version {
        /// What it says it is.
        format: String,
        /// And of which version.
        version: u32,
    },
    /// A value does not read.
    #[error("it is damaged: {0}")]
    Value(&'static str),
    /// The shares are not of this copy, or it was changed.
    #[error(
        "the shares make a key that is not this copy's: one of them is of another copy, or the file was changed"
    )]
    Authentication,
}

impl KekCopyFile {
    /// What a ceremony writes.
    #[must_use]
    pub fn new(
        ceremony: Uuid,
        token: String,
        kek: &CopiedKek,
        bits: u32,
        quorum: Quorum,
        key: &TransportKey,
    ) -> Self {
        let CopiedKek {
            label,
            id,
            custody,
            spki,
            wrapped,
        } = kek;
        let copy = Body {
            format: FORMAT.to_owned(),
            version: VERSION,
            ceremony,
            made: OffsetDateTime::now_utc().truncate_to_second(),
            token,
            label: label.clone(),
            hash: KekHash::of_spki(spki),
            bits,
            custody: *custody,
            id: hex::encode(id),
            spki: BASE64_STANDARD.encode(spki),
            needed: quorum.needed(),
            shares: quorum.total(),
            wrapped: wrapped.clone(),
        };
        let authentication = hex::encode(hmac::sign(&authenticator(key), &copy.bytes()));
        Self {
            copy,
            authentication,
        }
    }

    /// As it is written.
    ///
    /// # Errors
    /// There is no JSON of it.
    pub fn to_text(&self) -> Result<String, CopyError> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// Reads it; whose it is shows when the shares are there.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &[u8]) -> Result<Self, CopyError> {
        let read: Self = serde_json::from_slice(text)?;
        let Body {
            format, version, ..
        } = &read.copy;
        if format != FORMAT || *version != VERSION {
            return Err(CopyError::Version {
                format: format.clone(),
                version: *version,
            });
        }
        let spki = BASE64_STANDARD
            .decode(&read.copy.spki)
            .map_err(|_| CopyError::Value("spki is not base64"))?;
        if KekHash::of_spki(&spki) != read.copy.hash {
            return Err(CopyError::Value("spki has another hash than it says"));
        }
        read.quorum()?;
        read.copied()?;
        Ok(read)
    }

    /// How many of how many shares are needed.
    ///
    /// # Errors
    /// The numbers do not fit.
    pub fn quorum(&self) -> Result<Quorum, CopyError> {
        Quorum::new(self.copy.needed, self.copy.shares)
            .map_err(|_| CopyError::Value("needed and shares do not fit"))
    }

    /// Whether the key that the shares make is this copy's.
    ///
    /// # Errors
    /// [`CopyError::Authentication`]
    pub fn authenticate(&self, key: &TransportKey) -> Result<(), CopyError> {
        let tag = hex::decode(&self.authentication)
            .map_err(|_| CopyError::Value("authentication is not hexadecimal"))?;
        hmac::verify(&authenticator(key), &self.copy.bytes(), &tag)
            .map_err(|_| CopyError::Authentication)
    }

    /// What a token needs of it.
    ///
    /// # Errors
    /// A value does not read.
    pub fn copied(&self) -> Result<CopiedKek, CopyError> {
        let Body {
            label,
            custody,
            id,
            spki,
            wrapped,
            ..
        } = &self.copy;
        Ok(CopiedKek {
            label: label.clone(),
            id: hex::decode(id)
                .ok()
                .filter(|id| !id.is_empty() && id.len() <= 64)
                .ok_or(CopyError::Value("id is not 1 to 64 bytes in hexadecimal"))?,
            custody: *custody,
            spki: BASE64_STANDARD
                .decode(spki)
                .map_err(|_| CopyError::Value("spki is not base64"))?,
            wrapped: wrapped.clone(),
        })
    }
}

impl Body {
    fn bytes(&self) -> Vec<u8> {
        // Strings and numbers only: there is JSON of it always.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

fn authenticator(key: &TransportKey) -> hmac::Key {
    let secret = hkdf::Salt::new(hkdf::HKDF_SHA256, b"ekm kek copy v1").extract(key.expose());
    let mut bytes = Zeroizing::new([0; 32]);
    // It fails for lengths over 8,160 bytes only, and then nothing authenticates.
    let _ = secret
        .expand(&[b"authentication"], hkdf::HKDF_SHA256)
        .and_then(|okm| okm.fill(&mut *bytes));
    hmac::Key::new(hmac::HMAC_SHA256, &*bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bridge::ceremony::WrapFormat;

    fn copied() -> CopiedKek {
        CopiedKek {
            label: "TAPE2026A".parse().unwrap(),
            id: vec![1; 16],
            custody: Custody::Token,
            spki: vec![0x30, 1, 2, 3],
            wrapped: WrappedKek {
                mechanism: "CKM_AES_KEY_WRAP_KWP".to_owned(),
                format: WrapFormat::Rfc5649,
                iv: String::new(),
                bytes: hex::encode([9; 40]),
            },
        }
    }

    fn made(key: &TransportKey) -> KekCopyFile {
        let quorum = Quorum::new(2, 3).unwrap();
        KekCopyFile::new(
            Uuid::new_v4(),
            "ekm 1234".to_owned(),
            &copied(),
            3072,
            quorum,
            key,
        )
    }

    #[test]
    fn a_copy_comes_back_from_its_file_under_its_own_key_only() {
        let key = TransportKey::new().unwrap();
        let file = made(&key);
        let read = KekCopyFile::parse(file.to_text().unwrap().as_bytes()).unwrap();
        assert_eq!(read, file);
        assert_eq!(read.copied().unwrap(), copied());
        read.authenticate(&key).unwrap();
        assert!(matches!(
            read.authenticate(&TransportKey::new().unwrap()),
            Err(CopyError::Authentication)
        ));
    }

    #[test]
    fn a_file_that_was_changed_is_found_out() {
        let key = TransportKey::new().unwrap();
        let text = made(&key).to_text().unwrap();
        for (from, to) in [
            ("TAPE2026A", "TAPE2026B"),
            ("0909", "0908"),
            ("3072", "4096"),
            ("\"needed\": 2", "\"needed\": 3"),
            ("\"token\",\n", "\"host\",\n"),
        ] {
            assert!(text.contains(from), "{from}");
            let changed = text.replacen(from, to, 1);
            let read = KekCopyFile::parse(changed.as_bytes()).unwrap();
            assert!(
                matches!(read.authenticate(&key), Err(CopyError::Authentication)),
                "{from}"
            );
        }
    }

    #[test]
    fn malformed_copies_are_named_after_their_defect() {
        let text = made(&TransportKey::new().unwrap()).to_text().unwrap();
        let parse = |text: &str| KekCopyFile::parse(text.as_bytes()).unwrap_err().to_string();
        assert!(parse("").contains("no copy of a KEK"));
        assert!(parse("{}").contains("missing field `copy`"));
        assert!(parse(text.get(..text.len() / 2).unwrap()).contains("EOF"));
        assert!(parse(&text.replace("\"version\": 1", "\"version\": 2")).contains("version 2"));
        assert!(parse(&text.replace("\"copy\"", "\"more\"")).contains("unknown field"));
        assert!(parse(&text.replace("MAECAw==", "MAECBA==")).contains("another hash"));
        assert!(parse(&text.replace("\"shares\": 3", "\"shares\": 1")).contains("do not fit"));
        assert!(parse(&text.replace("\"id\": \"01", "\"id\": \"0")).contains("id is not"));
    }
}
