//! What is made of a data key that is in this process: EEDKs, an SEDK, the
//! proof block. Used in custody `host` only.

use secrecy::{ExposeSecret, SecretSlice};

use super::faults::Fault;
use super::host;
use super::message::{Recipient, WrapUnder};
use crate::key::{DataKeyId, Eedk, OaepHash, Sedk, SedkForm, WrapAlgorithm};
use crate::t10::{WrappedKey, WrappedKeyLabel};

/// Bytes of a data key.
pub(super) const DATA_KEY: usize = 32;

/// A data key in the clear, and whose name faults carry.
pub(super) struct InHost<'a> {
    pub(super) token: &'a str,
    pub(super) key: &'a SecretSlice<u8>,
}

impl InHost<'_> {
    /// The key under each KEK, in this way or as the KEK needs it.
    pub(super) fn eedks(
        &self,
        dki: DataKeyId,
        keks: &[WrapUnder],
        algorithm: WrapAlgorithm,
    ) -> Result<Vec<Eedk>, Fault> {
        keks.iter()
            .map(|kek| {
                let algorithm = kek.way(algorithm);
                let wrapped = host::wrap(&kek.spki, algorithm, dki.as_bytes(), self.key)
                    .map_err(|error| fault(self.token, error, &format!("KEK {}", kek.id)))?;
                eedk(self.token, dki, kek, algorithm, wrapped)
            })
            .collect()
    }

    /// The key for a drive.
    pub(super) fn sedk(&self, drive: &Recipient) -> Result<Sedk, Fault> {
        if drive.form == SedkForm::T10Plain {
            return sedk(self.token, drive, self.key.expose_secret().to_vec());
        }
        let (algorithm, label) = drive_wrap(self.token, drive)?;
        let wrapped = host::wrap(&drive.spki, algorithm, &label, self.key)
            .map_err(|error| fault(self.token, error, "the drive's key"))?;
        sedk(self.token, drive, wrapped)
    }

    /// A block encrypted under the key.
    pub(super) fn block(&self, block: &[u8; 16]) -> Result<[u8; 16], Fault> {
        host::encrypt_block(self.key, block)
            .map_err(|error| fault(self.token, error, "the proof block"))
    }
}

/// OAEP of an SEDK form, and its label.
pub(super) fn drive_wrap(
    token: &str,
    drive: &Recipient,
) -> Result<(WrapAlgorithm, Vec<u8>), Fault> {
    match drive.form {
        SedkForm::T10Wrapped => {
            let label = t10_label(token, drive)?;
            Ok((WrapAlgorithm::oaep(OaepHash::Sha256, true), label.bytes()))
        }
        SedkForm::RsaOaepSha1 => Ok((WrapAlgorithm::oaep(OaepHash::Sha1, false), Vec::new())),
        SedkForm::T10Plain => Err(Fault::Unsupported {
            token: token.to_owned(),
            reason: format!("form {} is the key in clear and is not wrapped", drive.form),
        }),
    }
}

fn t10_label(token: &str, drive: &Recipient) -> Result<WrappedKeyLabel, Fault> {
    drive
        .wwn
        .map(WrappedKeyLabel::new)
        .ok_or_else(|| Fault::Unsupported {
            token: token.to_owned(),
            reason: "form t10-02h binds the key to the drive's WWN, and the drive table has none (ekm drive mod SERIAL --wwn W)".to_owned(),
        })
}

/// An EEDK of a wrapped key.
pub(super) fn eedk(
    token: &str,
    dki: DataKeyId,
    kek: &WrapUnder,
    algorithm: WrapAlgorithm,
    wrapped: Vec<u8>,
) -> Result<Eedk, Fault> {
    Eedk::new(dki, kek.id.clone(), algorithm, wrapped).map_err(|error| Fault::Unsupported {
        token: token.to_owned(),
        reason: format!("KEK {}: {error}", kek.id),
    })
}

/// An SEDK of a key in the drive's form.
pub(super) fn sedk(token: &str, drive: &Recipient, wrapped: Vec<u8>) -> Result<Sedk, Fault> {
    let wrapped = SecretSlice::from(wrapped);
    let bad = |reason: String| Fault::Unsupported {
        token: token.to_owned(),
        reason: format!("the drive's key does not fit form {}: {reason}", drive.form),
    };
    let bytes = match drive.form {
        SedkForm::T10Wrapped => WrappedKey::new(t10_label(token, drive)?, wrapped.expose_secret())
            .map_err(|error| bad(error.to_string()))?
            .encode()
            .into(),
        SedkForm::RsaOaepSha1 | SedkForm::T10Plain => wrapped,
    };
    Sedk::new(drive.form, bytes).map_err(|error| bad(error.to_string()))
}

/// What software RSA or AES could not do.
pub(super) fn fault(token: &str, error: host::HostError, what: &str) -> Fault {
    Fault::Unsupported {
        token: token.to_owned(),
        reason: format!("{what}: {error}"),
    }
}

/// That what was in an EEDK is as long as a data key.
pub(super) fn checked(
    token: &str,
    kek: &str,
    key: SecretSlice<u8>,
) -> Result<SecretSlice<u8>, Fault> {
    if key.expose_secret().len() == DATA_KEY {
        return Ok(key);
    }
    Err(Fault::BadEedk {
        token: token.to_owned(),
        kek: kek.to_owned(),
        function: "length check".to_owned(),
        name: format!(
            "{} bytes inside where a data key has {DATA_KEY}",
            key.expose_secret().len()
        ),
    })
}
