//! What EKM's keystore holds, as far as a migration goes by it: names and public halves, no key.

use std::collections::BTreeMap;

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::key::{KekHash, KeyLabel};
use crate::keyfile::{Content, Entry, KeyFile};

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "kind")]
pub enum KeyKind {
    /// An RSA key pair.
    Pair {
        /// Modulus length, bits.
        bits: u32,
        /// SHA-256 over its `SubjectPublicKeyInfo`.
        hash: KekHash,
        /// When its certificate begins and ends, RFC 3339.
        validity: Option<(String, String)>,
    },
    /// A certificate without its private key: a partner's, or a CA's.
    Certificate {
        /// SHA-256 over its `SubjectPublicKeyInfo`, where it can be read.
        hash: Option<KekHash>,
        /// When it begins and ends, RFC 3339.
        validity: Option<(String, String)>,
    },
    /// A secret key, for LTO drives.
    Secret {
        /// Its algorithm.
        algorithm: String,
    },
    /// A key that reads well and is no KEK.
    Unfit {
        /// What it is: `RSA-1024`, `EC`.
        what: String,
        /// Why it is not taken.
        reason: String,
    },
    /// An entry that cannot be used.
    Unreadable {
        /// Why.
        reason: String,
    },
}

/// One entry of EKM's keystore.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EkmKey {
    /// Its alias, as the keystore has it.
    pub alias: String,
    /// When it was put there, RFC 3339.
    pub created: Option<String>,
    /// What it is.
    #[serde(flatten)]
    pub kind: KeyKind,
}

impl EkmKey {
    /// The hash of its public half.
    #[must_use]
    pub fn hash(&self) -> Option<KekHash> {
        match &self.kind {
            KeyKind::Pair { hash, .. } => Some(*hash),
            KeyKind::Certificate { hash, .. } => *hash,
            KeyKind::Secret { .. } | KeyKind::Unfit { .. } | KeyKind::Unreadable { .. } => None,
        }
    }

    /// Whether its private half is there.
    #[must_use]
    pub const fn is_pair(&self) -> bool {
        matches!(self.kind, KeyKind::Pair { .. })
    }
}

/// The entries of a key file, without their keys.
#[must_use]
pub fn of(file: &KeyFile) -> Vec<EkmKey> {
    file.entries.iter().map(entry).collect()
}

fn entry(entry: &Entry) -> EkmKey {
    let kind = match &entry.content {
        Content::Pair { key, chain } => KeyKind::Pair {
            bits: key.bits(),
            hash: key.hash(),
            validity: chain.first().and_then(|der| certificate(der)?.1),
        },
        Content::Certificate(der) => {
            let read = certificate(der);
            KeyKind::Certificate {
                hash: read.as_ref().map(|(hash, _)| *hash),
                validity: read.and_then(|(_, validity)| validity),
            }
        }
        Content::Secret { algorithm, .. } => KeyKind::Secret {
            algorithm: algorithm.clone(),
        },
        Content::Unfit { what, reason } => KeyKind::Unfit {
            what: what.clone(),
            reason: reason.clone(),
        },
        Content::Unreadable { reason } => KeyKind::Unreadable {
            reason: reason.clone(),
        },
    };
    EkmKey {
        alias: entry.alias.clone(),
        created: entry.created.and_then(rfc3339),
        kind,
    }
}

type Validity = Option<(String, String)>;

fn certificate(der: &[u8]) -> Option<(KekHash, Validity)> {
    let (_, read) = x509_parser::parse_x509_certificate(der).ok()?;
    let validity = read.validity();
    let dates = (
        rfc3339(validity.not_before.to_datetime()),
        rfc3339(validity.not_after.to_datetime()),
    );
    let dates = match dates {
        (Some(from), Some(to)) => Some((from, to)),
        _ => None,
    };
    Some((KekHash::of_spki(read.public_key().raw), dates))
}

pub(super) fn rfc3339(at: OffsetDateTime) -> Option<String> {
    at.truncate_to_second().format(&Rfc3339).ok()
}

/// What is wrong with the names of a keystore's keys, one sentence each: a KEK needs a label that is
/// its own, by the rules of [`KeyLabel`].
#[must_use]
pub fn conflicts(keys: &[EkmKey]) -> Vec<String> {
    let mut told = Vec::new();
    let mut named: BTreeMap<KeyLabel, Vec<(&str, KekHash)>> = BTreeMap::new();
    let mut hashed: BTreeMap<KekHash, Vec<&str>> = BTreeMap::new();
    for key in keys {
        let Some(hash) = key.hash() else { continue };
        match key.alias.parse::<KeyLabel>() {
            Ok(label) => named.entry(label).or_default().push((&key.alias, hash)),
            Err(error) => told.push(format!(
                "{:?} cannot be a key label: {error}; import it under another (ekm kek import --label)",
                shown(&key.alias)
            )),
        }
        if key.is_pair() {
            hashed.entry(hash).or_default().push(&key.alias);
        }
    }
    for (label, entries) in &named {
        let names = || {
            let names: Vec<&str> = entries.iter().map(|(alias, _)| *alias).collect();
            names.join(", ")
        };
        let first = entries.first().map(|(_, hash)| *hash);
        if entries.iter().any(|(_, hash)| Some(*hash) != first) {
            told.push(format!(
                "{label} is on {} different keys ({}): a label names one key, and case and trailing blanks make no difference; give all but one another label",
                entries.len(),
                names()
            ));
        } else if entries.len() > 1 {
            told.push(format!(
                "{} are one key under names that differ only in case or trailing blanks: import one of them",
                names()
            ));
        }
    }
    for (hash, aliases) in hashed {
        let mut labels: Vec<String> = aliases.iter().map(|alias| alias.to_lowercase()).collect();
        labels.sort();
        labels.dedup();
        if labels.len() > 1 {
            told.push(format!(
                "{} are one key (sha256:{}…): it is imported once; EEDKs that name it by hash are read under any of the labels",
                aliases.join(", "),
                hash.to_string().chars().take(16).collect::<String>()
            ));
        }
    }
    told
}

/// The key pairs whose certificate has ended before `now`, one sentence each.
#[must_use]
pub fn ended(keys: &[EkmKey], now: OffsetDateTime) -> Vec<String> {
    let Some(now) = rfc3339(now.to_offset(time::UtcOffset::UTC)) else {
        return Vec::new();
    };
    keys.iter()
        .filter_map(|key| match &key.kind {
            // Both are in UTC, and of one form, so that their order is that of the texts.
            KeyKind::Pair {
                validity: Some((_, end)),
                ..
            } if *end < now => Some(format!(
                "{}: its certificate ended on {}; such a KEK goes on reading, and new cartridges are better written under another",
                shown(&key.alias),
                end.chars().take(10).collect::<String>()
            )),
            _ => None,
        })
        .collect()
}

/// A text of unknown length, for a message.
pub(super) fn shown(text: &str) -> String {
    if text.chars().count() <= 80 {
        return text.to_owned();
    }
    let head: String = text.chars().take(77).collect();
    format!("{head}…")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(alias: &str, key: u8) -> EkmKey {
        EkmKey {
            alias: alias.to_owned(),
            created: None,
            kind: KeyKind::Pair {
                bits: 2048,
                hash: KekHash::from([key; 32]),
                validity: None,
            },
        }
    }

    #[test]
    fn each_conflict_of_names_is_told_once() {
        let long = "x".repeat(65);
        let told = conflicts(&[
            pair("one", 1),
            pair("ONE ", 2),
            pair("two", 3),
            pair("Two", 3),
            pair("three", 4),
            pair("drei", 4),
            pair(&long, 5),
            pair("good", 6),
        ]);
        let [long, one, two, three] = told.as_slice() else {
            panic!("{told:#?}");
        };
        assert!(long.contains("at most 64 characters, got 65"), "{long}");
        assert!(one.contains("one is on 2 different keys"), "{one}");
        assert!(two.contains("two, Two are one key"), "{two}");
        assert!(three.contains("three, drei are one key"), "{three}");
    }

    #[test]
    fn a_certificate_that_has_ended_is_told() {
        let mut old = pair("old", 1);
        if let KeyKind::Pair { validity, .. } = &mut old.kind {
            let day = |day: &str| format!("{day}T00:00:00Z");
            *validity = Some((day("2008-01-01"), day("2018-01-01")));
        }
        let keys = [old, pair("bare", 2)];
        let told = ended(&keys, time::macros::datetime!(2018-01-01 00:00:01 UTC));
        assert!(
            told.len() == 1 && told.concat().contains("2018-01-01"),
            "{told:?}"
        );
        let before = time::macros::datetime!(2017-12-31 00:00:00 UTC);
        assert_eq!(ended(&keys, before), Vec::<String>::new());
    }

    #[test]
    fn secret_keys_have_no_label_to_be_in_conflict() {
        let secret = EkmKey {
            alias: "x".repeat(200),
            created: None,
            kind: KeyKind::Secret {
                algorithm: "AES".to_owned(),
            },
        };
        assert_eq!(conflicts(&[secret]), Vec::<String>::new());
    }
}
