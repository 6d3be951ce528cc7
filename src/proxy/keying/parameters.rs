//! The SPOUT 0010h parameter list of a key server's answer: looked at, and passed on as it is.
//!
//! With KEY FORMAT 02h the key in it is wrapped for the drive, so none in clear is in this process.
//! With 00h it is the key itself: memory that is wiped, and that the program keeps from being
//! swapped out.

use secrecy::{ExposeSecret, SecretSlice};
use zeroize::Zeroizing;

use super::checks::Able;
use super::story::Rules;
use crate::api::SecretBytes;
use crate::key::DataKeyId;
use crate::t10::{
    DecryptionMode, EncryptionMode, KadType, KeyField, KeyFormat, RawDecryption, Scope,
    SetDataEncryption,
};

/// Byte of the list that has ALGORITHM INDEX. Servers send the one that most drives have.
const ALGORITHM_INDEX: usize = 8;

/// A parameter list that sets this data key as it must be set.
#[derive(Debug)]
pub(super) struct Parameters {
    list: SecretSlice<u8>,
    /// How the key travels.
    pub(super) format: KeyFormat,
    /// EEDKs in it, for the drive to keep.
    pub(super) eedks: Vec<Vec<u8>>,
}

impl Parameters {
    /// Looks at the list of an answer.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub(super) fn of(
        spout: Option<&SecretBytes>,
        dki: DataKeyId,
        able: &Able,
        rules: &Rules,
    ) -> Result<Self, String> {
        let SecretBytes(list) = spout.ok_or(
            "it has no SPOUT list: this drive's row names a form that T10 drives do not take; \
             ekm drive mod SERIAL --form t10-02h or t10-00h",
        )?;
        let list = list.expose_secret();
        let set = SetDataEncryption::decode(list)
            .map_err(|error| format!("its SPOUT list is none: {error}"))?;
        let format = match set.key {
            KeyField::None => return Err("its SPOUT list has no key".to_owned()),
            KeyField::Plain(_) | KeyField::Wrapped(_) => set.key.format(),
        };
        if format == KeyFormat::Plain && !rules.plain_key {
            return Err(
                "its SPOUT list has the data key in clear (KEY FORMAT 00h), and plain_key is not \
                 set for this drive in the host's file"
                    .to_owned(),
            );
        }
        let as_wanted = [
            (set.scope == Scope::AllNexus, "SCOPE"),
            (set.encryption == EncryptionMode::Encrypt, "ENCRYPTION MODE"),
            (
                matches!(
                    set.decryption,
                    DecryptionMode::Decrypt | DecryptionMode::Mixed
                ),
                "DECRYPTION MODE",
            ),
            (set.raw_decryption != RawDecryption::Allow, "RDMC"),
            (!set.supplemental, "SDK"),
            (set.clearing.on_demount, "CKOD"),
        ];
        if let Some((_, field)) = as_wanted.iter().find(|(good, _)| !good) {
            return Err(format!("its SPOUT list has another {field} than it must"));
        }
        let mut names = set.kads.of(KadType::Authenticated);
        if names.next() != Some(dki.as_bytes()) || names.next().is_some() {
            return Err(format!("its SPOUT list does not name data key {dki}"));
        }
        let mut own = Zeroizing::new(list.to_vec());
        if let Some(index) = own.get_mut(ALGORITHM_INDEX) {
            *index = able.algorithm.index.0;
        }
        Ok(Self {
            list: own.to_vec().into(),
            format,
            eedks: set
                .kads
                .of(KadType::WrappedKey)
                .map(<[u8]>::to_vec)
                .collect(),
        })
    }

    /// The list; it holds the key where the format is 00h.
    pub(super) fn list(&self) -> &[u8] {
        self.list.expose_secret()
    }
}
