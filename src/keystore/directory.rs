//! Which KEKs there are, by label and by hash, over all tokens and the registry.

use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::bridge::message::{Custody, KekAttributes, KekOnToken, PrivateHalf, Provenance, Ready};
use crate::certificates::{Validity, Vouched};
use crate::copies::{CopyKind, KekCopy};
use crate::key::{KekHash, KeyLabel};
use crate::store::{Certificates, RegisteredKek};

/// A KEK, from every token that shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownKek {
    /// Its label, as stored.
    pub label: KeyLabel,
    /// SHA-256 over its `SubjectPublicKeyInfo`.
    pub hash: KekHash,
    /// Its `SubjectPublicKeyInfo`, DER.
    pub spki: Vec<u8>,
    /// Modulus length, bits.
    pub bits: u32,
    /// What it is for; `None` where no token serves its private half.
    pub custody: Option<Custody>,
    /// How it came to the first token that serves it.
    pub provenance: Option<Provenance>,
    /// The tokens that serve its private half, by configured name.
    pub tokens: Vec<String>,
    /// Tokens that hold it but may not serve, with the reason.
    pub refused: Vec<(String, String)>,
    /// The attributes of the private half, by token.
    pub attributes: Vec<(String, KekAttributes)>,
    /// Its certificate, DER, where a token or the registry has one; of several the one that is
    /// good for longest.
    pub certificate: Option<Vec<u8>>,
    /// When that is good.
    pub validity: Option<Validity>,
    /// Whose it is, where it is a partner's.
    pub partner: Option<PartnerKek>,
    /// Whether the registry knows it.
    pub registered: bool,
    /// Serial numbers of the tokens that serve it, each once.
    #[serde(default)]
    pub serials: Vec<String>,
    /// Its copies, as the registry has them.
    #[serde(default)]
    pub copies: Vec<KekCopy>,
}

/// What is known of a partner's KEK.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartnerKek {
    /// What its row's seals are over.
    #[serde(skip)]
    pub digest: [u8; 32],
    /// Who vouches for its certificate, besides the operator.
    pub vouched: Vouched,
    /// Who compared its fingerprint.
    pub operator: String,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub confirmed: time::OffsetDateTime,
}

impl KnownKek {
    /// Takes a certificate, if it is good for longer than the one that it has.
    fn certify(&mut self, certificate: &[u8]) {
        let Some(validity) = Validity::of(certificate) else {
            return;
        };
        if self
            .validity
            .is_none_or(|known| known.not_after < validity.not_after)
        {
            self.certificate = Some(certificate.to_vec());
            self.validity = Some(validity);
        }
    }
}

/// Why a label or hash does not name one usable KEK.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KekError {
    /// Nothing has that label.
    #[error("no token has a KEK labelled {label}; see ekm kek list")]
    Unknown {
        /// The label asked for.
        label: String,
    },
    /// Two different keys have it.
    #[error(
        "the key label {label} matches {count} different keys ({hashes}); delete or rename all but one, or encode by hash"
    )]
    Ambiguous {
        /// The label asked for.
        label: String,
        /// How many.
        count: usize,
        /// Their hashes, shortened.
        hashes: String,
    },
    /// It is not the key that was registered under the label.
    #[error(
        "the key labelled {label} is {found}, but {registered} was registered under that label; the key was replaced"
    )]
    Changed {
        /// The label.
        label: String,
        /// The key on the token.
        found: String,
        /// The key of the registry.
        registered: String,
    },
}

/// All KEKs that are known now.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    keks: Vec<KnownKek>,
    registry: Arc<[RegisteredKek]>,
}

impl Directory {
    /// Merges what the tokens show, one list per token name, with the registry.
    #[must_use]
    pub fn new<'a>(
        tokens: impl IntoIterator<Item = (&'a str, &'a [KekOnToken])>,
        registry: Arc<[RegisteredKek]>,
        certificates: &Certificates,
    ) -> Self {
        let mut keks: Vec<KnownKek> = Vec::new();
        for (token, list) in tokens {
            for kek in list {
                // A key stands under each label that some token gives it.
                let known = keks
                    .iter()
                    .position(|known| known.hash == kek.hash && known.label.same_as(&kek.label));
                let index = known.unwrap_or_else(|| {
                    keks.push(KnownKek {
                        label: kek.label.clone(),
                        hash: kek.hash,
                        spki: kek.spki.clone(),
                        bits: kek.bits,
                        custody: None,
                        provenance: None,
                        tokens: Vec::new(),
                        refused: Vec::new(),
                        attributes: Vec::new(),
                        certificate: None,
                        validity: None,
                        partner: None,
                        registered: registry
                            .iter()
                            .any(|row| row.hash == kek.hash && row.label.same_as(&kek.label)),
                        serials: Vec::new(),
                        copies: Vec::new(),
                    });
                    keks.len() - 1
                });
                let Some(entry) = keks.get_mut(index) else {
                    continue;
                };
                if let Some(certificate) = &kek.certificate {
                    entry.certify(certificate);
                }
                match &kek.private {
                    PrivateHalf::Serves {
                        custody,
                        provenance,
                        attributes,
                    } => {
                        entry.attributes.push((token.to_owned(), *attributes));
                        entry.custody.get_or_insert(*custody);
                        entry.provenance.get_or_insert(*provenance);
                        entry.tokens.push(token.to_owned());
                    }
                    PrivateHalf::Refused { reason, attributes } => {
                        entry.attributes.push((token.to_owned(), *attributes));
                        entry.refused.push((token.to_owned(), reason.clone()));
                    }
                    PrivateHalf::Absent => {}
                }
            }
        }
        for own in &certificates.own {
            for kek in keks.iter_mut().filter(|kek| kek.hash == own.hash) {
                kek.certify(&own.certificate);
            }
        }
        for partner in &certificates.partners {
            let own = Some(PartnerKek {
                digest: partner.digest(),
                vouched: partner.vouched.clone(),
                operator: partner.operator.clone(),
                confirmed: partner.confirmed,
            });
            let known = keks
                .iter_mut()
                .find(|kek| kek.hash == partner.hash && kek.label.same_as(&partner.label));
            if let Some(known) = known {
                known.partner = own;
                known.registered = true;
                known.certify(&partner.certificate);
                continue;
            }
            let mut kek = KnownKek {
                label: partner.label.clone(),
                hash: partner.hash,
                spki: partner.spki.clone(),
                bits: crate::bridge::rsa_bits(&partner.spki).unwrap_or_default(),
                custody: None,
                provenance: None,
                tokens: Vec::new(),
                refused: Vec::new(),
                attributes: Vec::new(),
                certificate: None,
                validity: None,
                partner: own,
                registered: true,
                serials: Vec::new(),
                copies: Vec::new(),
            };
            kek.certify(&partner.certificate);
            keks.push(kek);
        }
        Self { keks, registry }
    }

    /// The same with what the registry knows of copies, and the tokens' serial numbers by
    /// configured name. That a key was restored no attribute tells.
    #[must_use]
    pub fn with_copies<'a>(
        mut self,
        copies: &[KekCopy],
        serials: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Self {
        let serials: Vec<(&str, &str)> = serials.into_iter().collect();
        for kek in &mut self.keks {
            kek.copies = copies
                .iter()
                .filter(|copy| copy.kek == kek.hash)
                .cloned()
                .collect();
            // A key file has no serial number, and is no token.
            for (token, serial) in serials.iter().filter(|(_, serial)| !serial.is_empty()) {
                if kek.tokens.iter().any(|name| name == token)
                    && !kek.serials.iter().any(|known| known == serial)
                {
                    kek.serials.push((*serial).to_owned());
                }
            }
            let first = kek.tokens.first();
            let restored = kek.copies.iter().any(|copy| {
                let is_first = |(token, serial): &(&str, &str)| {
                    first.is_some_and(|first| first == token)
                        && copy.serial.as_deref() == Some(*serial)
                };
                copy.kind == CopyKind::Restored && serials.iter().any(is_first)
            });
            if restored && kek.provenance == Some(Provenance::Imported) {
                kek.provenance = Some(Provenance::Restored);
            }
        }
        self
    }

    /// Every KEK, by label.
    #[must_use]
    pub fn keks(&self) -> &[KnownKek] {
        &self.keks
    }

    /// The one KEK of that label.
    ///
    /// # Errors
    /// None or several have it, or it is not the one registered.
    pub fn by_label(&self, label: &KeyLabel) -> Result<&KnownKek, KekError> {
        let found: Vec<&KnownKek> = self
            .keks
            .iter()
            .filter(|kek| kek.label.same_as(label))
            .collect();
        let kek = match found.as_slice() {
            [] => {
                return Err(KekError::Unknown {
                    label: label.to_string(),
                });
            }
            [kek] => *kek,
            many => {
                return Err(KekError::Ambiguous {
                    label: label.to_string(),
                    count: many.len(),
                    hashes: many
                        .iter()
                        .map(|kek| kek.hash.to_string().chars().take(16).collect::<String>())
                        .collect::<Vec<_>>()
                        .join(", "),
                });
            }
        };
        match self.registry.iter().find(|row| row.label.same_as(label)) {
            Some(row) if row.hash != kek.hash => Err(KekError::Changed {
                label: label.to_string(),
                found: kek.hash.to_string(),
                registered: row.hash.to_string(),
            }),
            Some(_) | None => Ok(kek),
        }
    }

    /// The KEK of that public key, preferring an entry that some token serves.
    #[must_use]
    pub fn by_hash(&self, hash: &KekHash) -> Option<&KnownKek> {
        let mut same = self.keks.iter().filter(|kek| kek.hash == *hash);
        let first = same.next()?;
        if first.tokens.is_empty() {
            same.find(|kek| !kek.tokens.is_empty()).or(Some(first))
        } else {
            Some(first)
        }
    }
}

/// The directory as it was last merged: every request asks for it, and tokens
/// and registry change rarely.
#[derive(Debug, Default)]
pub(super) struct Merged(Mutex<Option<Merge>>);

#[derive(Debug)]
struct Merge {
    shown: Vec<(String, Arc<Ready>)>,
    registry: Arc<[RegisteredKek]>,
    certificates: Arc<Certificates>,
    copies: Arc<[KekCopy]>,
    directory: Arc<Directory>,
}

impl Merged {
    /// What the tokens show now, one entry per token name, merged with the
    /// registry; anew where any of them is another than the last time.
    pub(super) fn current(
        &self,
        shown: &[(&str, Arc<Ready>)],
        registry: Arc<[RegisteredKek]>,
        certificates: Arc<Certificates>,
        copies: Arc<[KekCopy]>,
    ) -> Arc<Directory> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = &*last
            && last.of(shown, &registry, &copies)
            && Arc::ptr_eq(&last.certificates, &certificates)
        {
            return Arc::clone(&last.directory);
        }
        let lists = shown
            .iter()
            .map(|(name, ready)| (*name, ready.keks.as_slice()));
        let serials = shown
            .iter()
            .map(|(name, ready)| (*name, ready.token.serial.as_str()));
        let directory = Directory::new(lists, Arc::clone(&registry), &certificates)
            .with_copies(&copies, serials);
        let directory = Arc::new(directory);
        *last = Some(Merge {
            shown: shown
                .iter()
                .map(|(name, ready)| ((*name).to_owned(), Arc::clone(ready)))
                .collect(),
            registry,
            certificates,
            copies,
            directory: Arc::clone(&directory),
        });
        directory
    }
}

impl Merge {
    fn of(
        &self,
        shown: &[(&str, Arc<Ready>)],
        registry: &Arc<[RegisteredKek]>,
        copies: &Arc<[KekCopy]>,
    ) -> bool {
        Arc::ptr_eq(&self.registry, registry)
            && Arc::ptr_eq(&self.copies, copies)
            && self.shown.len() == shown.len()
            && self
                .shown
                .iter()
                .zip(shown)
                .all(|((known, before), (name, now))| known == name && Arc::ptr_eq(before, now))
    }
}
