//! The RSA keys of a key file, ready to open EEDKs.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use aws_lc_rs::rsa::{
    OAEP_SHA1_MGF1SHA1, OAEP_SHA256_MGF1SHA256, OAEP_SHA384_MGF1SHA384, OAEP_SHA512_MGF1SHA512,
    OaepAlgorithm, OaepPrivateDecryptingKey, PrivateDecryptingKey,
};
use secrecy::SecretSlice;
use zeroize::Zeroizing;

use super::Sources;
use crate::bridge::message::{Custody, KekAttributes, KekOnToken, PrivateHalf, Provenance};
use crate::bridge::pin::PinSource;
use crate::key::{KekHash, KeyLabel, OaepHash};
use crate::keyfile::{self, Content, Entry, Format, Passwords, PrivateKey};

/// What a key file held when it was read.
#[derive(Debug)]
pub(super) struct Keys {
    /// Which files these were.
    pub(super) version: Version,
    /// Its format.
    pub(super) format: Format,
    /// What can be named as a KEK.
    pub(super) keks: Vec<KekOnToken>,
    private: HashMap<KekHash, Private>,
}

/// Which files were read: inode and time of each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Version(Vec<Option<(u64, i64, i64)>>);

impl Version {
    pub(super) fn of(sources: &Sources) -> Self {
        let stamp = |path: &Path| {
            let meta = std::fs::metadata(path).ok()?;
            Some((meta.ino(), meta.mtime(), meta.mtime_nsec()))
        };
        let passwords = [Some(&sources.password), sources.key_password.as_ref()];
        let passwords = passwords.into_iter().flatten().filter_map(|source| {
            let PinSource::File(path) = source else {
                return None;
            };
            Some(stamp(path))
        });
        Self(
            std::iter::once(stamp(&sources.file))
                .chain(passwords)
                .collect(),
        )
    }
}

impl Keys {
    /// Reads the file; what it holds besides RSA keys is told and left out.
    pub(super) fn read(name: &str, sources: &Sources, version: Version) -> Result<Self, String> {
        let password = |source: &PinSource| {
            let sourced = source.read(name).map_err(|error| error.of_password())?;
            sourced
                .pin
                .ok_or_else(|| format!("a key file's password cannot come from {source}"))
        };
        let passwords = Passwords {
            store: password(&sources.password)?,
            key: sources.key_password.as_ref().map(password).transpose()?,
        };
        let file = keyfile::open(&sources.file, &passwords).map_err(|error| error.to_string())?;
        let mut keys = Self {
            version,
            format: file.format,
            keks: Vec::new(),
            private: HashMap::new(),
        };
        for entry in file.entries {
            let alias = entry.alias.clone();
            if let Err(reason) = keys.add(entry) {
                tracing::warn!(
                    token = name,
                    file = %sources.file.display(),
                    alias,
                    reason,
                    "an entry of the key file does not serve as a KEK"
                );
            }
        }
        keys.keks.sort_by(|a, b| {
            (a.label.folded(), a.hash.as_bytes()).cmp(&(b.label.folded(), b.hash.as_bytes()))
        });
        Ok(keys)
    }

    fn add(&mut self, entry: Entry) -> Result<(), String> {
        let (key, chain) = match entry.content {
            Content::Pair { key, chain } => (key, chain),
            // A certificate of somebody else's is nothing to be warned of.
            Content::Certificate(_) => return Ok(()),
            Content::Secret { algorithm, .. } => {
                return Err(format!("it is a secret key ({algorithm}); KEKs are RSA"));
            }
            Content::Unfit { reason, .. } | Content::Unreadable { reason } => return Err(reason),
        };
        let label = KeyLabel::try_from(entry.alias).map_err(|error| error.to_string())?;
        let private = Private::new(&key).ok_or("aws-lc-rs does not take the key")?;
        let hash = key.hash();
        self.keks.push(KekOnToken {
            label,
            hash,
            spki: key.spki().to_vec(),
            bits: key.bits(),
            private: PrivateHalf::Serves {
                custody: Custody::Host,
                provenance: Provenance::Software,
                attributes: KekAttributes::default(),
            },
            certificate: chain.into_iter().next(),
        });
        self.private.insert(hash, private);
        Ok(())
    }

    /// The private half of that KEK.
    pub(super) fn private(&self, hash: &KekHash) -> Option<&Private> {
        self.private.get(hash)
    }

    /// A KEK to try the keystore with.
    pub(super) fn first(&self) -> Option<(&KekOnToken, &Private)> {
        let kek = self.keks.first()?;
        Some((kek, self.private.get(&kek.hash)?))
    }
}

/// A private key that opens EEDKs, in constant time.
pub(super) struct Private(OaepPrivateDecryptingKey);

impl std::fmt::Debug for Private {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Private")
    }
}

impl Private {
    fn new(key: &PrivateKey) -> Option<Self> {
        let key = PrivateDecryptingKey::from_pkcs8(key.pkcs8()).ok()?;
        OaepPrivateDecryptingKey::new(key).ok().map(Self)
    }

    /// RSAES-OAEP with MGF1 over the same hash (RFC 8017, 7.1.2); nothing where
    /// it does not open, whatever the reason.
    pub(super) fn open(
        &self,
        hash: OaepHash,
        label: &[u8],
        wrapped: &[u8],
    ) -> Option<SecretSlice<u8>> {
        let algorithm: &'static OaepAlgorithm = match hash {
            OaepHash::Sha1 => &OAEP_SHA1_MGF1SHA1,
            OaepHash::Sha256 => &OAEP_SHA256_MGF1SHA256,
            OaepHash::Sha384 => &OAEP_SHA384_MGF1SHA384,
            OaepHash::Sha512 => &OAEP_SHA512_MGF1SHA512,
        };
        let mut buffer = Zeroizing::new(vec![0; self.0.min_output_size()]);
        let label = (!label.is_empty()).then_some(label);
        let opened = self
            .0
            .decrypt(algorithm, wrapped, &mut buffer, label)
            .ok()?;
        Some(SecretSlice::from(opened.to_vec()))
    }
}
