//! Which KEKs there are, by label and by hash, over all tokens and the registry.

use std::sync::{Arc, Mutex, PoisonError};

use super::known::{Holder, KnownKek, PartnerKek};
use crate::bridge::message::{KekOnToken, PrivateHalf, Provenance, Ready};
use crate::copies::{CopyKind, KekCopy};
use crate::key::{KekHash, KeyLabel};
use crate::store::{Certificates, RegisteredKek};

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
    // Tokens that have not been up since the start.
    unseen: Vec<String>,
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
                    let mut fresh =
                        KnownKek::bare(kek.label.clone(), kek.hash, kek.spki.clone(), kek.bits);
                    fresh.registered = registry
                        .iter()
                        .any(|row| row.hash == kek.hash && row.label.same_as(&kek.label));
                    keks.push(fresh);
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
                        entry.holders.push(Holder {
                            token: token.to_owned(),
                            custody: *custody,
                            provenance: *provenance,
                        });
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
            let bits = crate::bridge::rsa_bits(&partner.spki).unwrap_or_default();
            let mut kek = KnownKek::bare(
                partner.label.clone(),
                partner.hash,
                partner.spki.clone(),
                bits,
            );
            kek.partner = own;
            kek.registered = true;
            kek.certify(&partner.certificate);
            keks.push(kek);
        }
        Self {
            keks,
            registry,
            unseen: Vec::new(),
        }
    }

    /// The same with what the registry has of KEKs that no token shows: on tokens that have not
    /// been up since the start (`unseen`), whose KEKs are out of reach and not unknown, or gone.
    #[must_use]
    pub fn with_registry(mut self, unseen: &[&str], copies: &[KekCopy]) -> Self {
        let rows = Arc::clone(&self.registry);
        for row in rows.iter() {
            let restored = copies
                .iter()
                .filter(|copy| copy.kek == row.hash && copy.kind == CopyKind::Restored)
                .filter_map(|copy| copy.token.as_deref());
            let mut away: Vec<&str> = Vec::new();
            for place in std::iter::once(row.token.as_str()).chain(restored) {
                if unseen.contains(&place) && !away.contains(&place) {
                    away.push(place);
                }
            }
            let shown = self.keks.iter().any(|kek| kek.hash == row.hash);
            if shown && away.is_empty() {
                continue;
            }
            let known = self
                .keks
                .iter()
                .position(|kek| kek.hash == row.hash && kek.label.same_as(&row.label));
            let index = known.unwrap_or_else(|| {
                let mut fresh =
                    KnownKek::bare(row.label.clone(), row.hash, row.spki.clone(), row.bits);
                fresh.registered = true;
                self.keks.push(fresh);
                self.keks.len() - 1
            });
            let Some(entry) = self.keks.get_mut(index) else {
                continue;
            };
            entry.away = away.iter().map(|token| (*token).to_owned()).collect();
            if !shown && away.is_empty() {
                entry.missing = Some(row.token.clone());
            }
        }
        self.unseen = unseen.iter().map(|token| (*token).to_owned()).collect();
        self
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
            let copies = &kek.copies;
            for holder in &mut kek.holders {
                let here = |(token, serial): &(&str, &str)| {
                    *token == holder.token
                        && copies.iter().any(|copy| {
                            copy.kind == CopyKind::Restored
                                && copy.serial.as_deref() == Some(*serial)
                        })
                };
                if holder.provenance == Provenance::Imported && serials.iter().any(here) {
                    holder.provenance = Provenance::Restored;
                }
            }
            if let Some(first) = kek.holders.first() {
                kek.provenance = Some(first.provenance);
            }
        }
        self
    }

    /// Tokens that have not been up since the start, and may hold any KEK.
    #[must_use]
    pub fn unseen(&self) -> &[String] {
        &self.unseen
    }

    /// Every KEK, also those that are out of reach or gone.
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
            .filter(|kek| kek.missing.is_none() && kek.label.same_as(label))
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
        let here = |kek: &&KnownKek| kek.hash == *hash && kek.missing.is_none();
        let mut same = self.keks.iter().filter(here);
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
    shown: Vec<(String, Option<Arc<Ready>>)>,
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
        shown: &[(&str, Option<Arc<Ready>>)],
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
        let found: Vec<(&str, &Ready)> = shown
            .iter()
            .filter_map(|(name, ready)| Some((*name, ready.as_deref()?)))
            .collect();
        let unseen: Vec<&str> = shown
            .iter()
            .filter(|(_, ready)| ready.is_none())
            .map(|(name, _)| *name)
            .collect();
        let lists = found
            .iter()
            .map(|(name, ready)| (*name, ready.keks.as_slice()));
        let serials = found
            .iter()
            .map(|(name, ready)| (*name, ready.token.serial.as_str()));
        let directory = Directory::new(lists, Arc::clone(&registry), &certificates)
            .with_registry(&unseen, &copies)
            .with_copies(&copies, serials);
        let directory = Arc::new(directory);
        *last = Some(Merge {
            shown: shown
                .iter()
                .map(|(name, ready)| ((*name).to_owned(), ready.clone()))
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
        shown: &[(&str, Option<Arc<Ready>>)],
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
                .all(|((known, before), (name, now))| known == name && same(before, now))
    }
}

fn same(before: &Option<Arc<Ready>>, now: &Option<Arc<Ready>>) -> bool {
    match (before, now) {
        (Some(before), Some(now)) => Arc::ptr_eq(before, now),
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    }
}
