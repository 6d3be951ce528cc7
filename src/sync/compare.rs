//! What two servers hold differently. No I/O, and nothing is changed by it.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::reader::plain;
use super::wire::{KekFact, SealHeld};
use crate::key::{KekHash, KekRef, KeyLabel};
use crate::keystore::{Directory, KnownKek};
use crate::store::{Anchored, Defaults, KekState, KekStates};

/// What differs after a sync.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Differences {
    /// KEKs that tokens there hold and none here does.
    pub missing_keks: Vec<NamedKek>,
    /// Labels that mean two keys. Nothing that names one is taken over.
    pub labels: Vec<LabelDiffers>,
    /// KEKs of the registry there that nobody holds now and nothing here knows.
    pub unknown_keks: Vec<NamedKek>,
    /// Partners' KEKs there that are not confirmed here.
    pub partners: Vec<NamedKek>,
    /// The global key labels.
    pub defaults: Option<DefaultsDiffer>,
    /// Values of `[policy]`.
    pub policy: Vec<PolicyDiffers>,
    /// KEKs that may be used for more on one server than on the other.
    #[serde(default)]
    pub states: Vec<StateDiffers>,
    /// Why the audit chain there is not the one whose newest seal was kept here.
    #[serde(default)]
    pub chain: Option<String>,
    /// Tokens here that were not looked at, so that they may hold what is missing.
    pub not_seen: Vec<String>,
}

/// A KEK.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedKek {
    /// Its label there.
    pub label: KeyLabel,
    /// Its public key's hash.
    pub hash: KekHash,
}

/// A label of two keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabelDiffers {
    /// The label.
    pub label: KeyLabel,
    /// The key that it names here.
    pub ours: KekHash,
    /// The key that it names there.
    pub theirs: KekHash,
}

/// Both servers' defaults.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DefaultsDiffer {
    /// Ours.
    pub ours: Defaults,
    /// Theirs.
    pub theirs: Defaults,
}

/// A value of `[policy]` that is another there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyDiffers {
    /// Its key.
    pub key: String,
    /// Ours, as JSON.
    pub ours: String,
    /// Theirs.
    pub theirs: String,
}

/// A KEK of two states.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateDiffers {
    /// Its label there.
    pub label: KeyLabel,
    /// Its state here.
    pub ours: KekState,
    /// Its state there.
    pub theirs: KekState,
}

impl Differences {
    /// What an operator must look at: keys that are missing here, labels of two keys, states,
    /// defaults, the peer's audit chain.
    #[must_use]
    pub fn alarming(&self) -> Option<String> {
        let Self {
            missing_keks,
            labels,
            unknown_keks: _,
            partners: _,
            defaults,
            policy: _,
            states,
            chain,
            not_seen: _,
        } = self;
        let mut parts = Vec::new();
        if !labels.is_empty() {
            let names = labels.iter().map(|one| one.label.to_string());
            parts.push(format!("labels of two keys: {}", few(names)));
        }
        if !missing_keks.is_empty() {
            let names = missing_keks.iter().map(|one| one.label.to_string());
            parts.push(format!("KEKs that no token here holds: {}", few(names)));
        }
        if !states.is_empty() {
            let each = states.iter().map(|one| {
                let StateDiffers {
                    label,
                    ours,
                    theirs,
                } = one;
                format!("{label} ({ours} here, {theirs} there)")
            });
            parts.push(format!("states of KEKs: {}", few(each)));
        }
        parts.extend(chain.clone());
        if let Some(DefaultsDiffer { ours, theirs }) = defaults {
            parts.push(format!(
                "defaults {} here, {} there",
                named(ours),
                named(theirs)
            ));
        }
        (!parts.is_empty()).then(|| parts.join("; "))
    }

    /// Whether the label means another key there.
    #[must_use]
    pub fn two_keys(&self, kek: &KekRef) -> bool {
        self.labels.iter().any(|one| one.label.same_as(&kek.label))
    }
}

/// Names that an alarm has at most; of more there is the number only.
const NAMED: usize = 5;

fn few(names: impl Iterator<Item = String>) -> String {
    let all: Vec<String> = names.collect();
    let first: Vec<&str> = all.iter().take(NAMED).map(String::as_str).collect();
    match all.len() - first.len() {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}

/// Both labels, in words.
#[must_use]
pub fn named(defaults: &Defaults) -> String {
    let all: Vec<String> = [&defaults.kek1, &defaults.kek2]
        .into_iter()
        .flatten()
        .map(ToString::to_string)
        .collect();
    if all.is_empty() {
        "none".to_owned()
    } else {
        all.join(" and ")
    }
}

/// The KEKs of the two.
#[must_use]
pub fn keks(ours: &Directory, theirs: &[KekFact]) -> Differences {
    let mut differences = Differences {
        not_seen: ours.unseen().to_vec(),
        ..Differences::default()
    };
    let holds = |kek: &KnownKek| !kek.tokens.is_empty() || kek.is_away();
    for fact in theirs {
        let same = |kek: &&KnownKek| kek.hash == fact.hash;
        let all = ours.keks();
        let labelled: Vec<&KnownKek> = all
            .iter()
            .filter(|kek| kek.label.same_as(&fact.label))
            .collect();
        if let Some(other) = labelled.first()
            && !labelled.iter().any(|kek| kek.hash == fact.hash)
        {
            differences.labels.push(LabelDiffers {
                label: fact.label.clone(),
                ours: other.hash,
                theirs: fact.hash,
            });
        }
        let known = all.iter().find(same).is_some();
        let held = all.iter().filter(same).any(holds);
        let kek = NamedKek {
            label: fact.label.clone(),
            hash: fact.hash,
        };
        if fact.partner.is_some() {
            if !known {
                differences.partners.push(kek);
            }
        } else if fact.held {
            if !held {
                differences.missing_keks.push(kek);
            }
        } else if fact.registered && !known {
            differences.unknown_keks.push(kek);
        }
    }
    differences
}

/// The KEKs of the two that both know, where their states differ.
#[must_use]
pub fn states(directory: &Directory, ours: &KekStates, theirs: &[KekFact]) -> Vec<StateDiffers> {
    let both = theirs
        .iter()
        .filter(|fact| directory.keks().iter().any(|kek| kek.hash == fact.hash));
    both.filter_map(|fact| {
        let state = ours.state(&fact.hash);
        (state != fact.state).then(|| StateDiffers {
            label: fact.label.clone(),
            ours: state,
            theirs: fact.state,
        })
    })
    .collect()
}

/// Why the peer's newest seal is not one that may follow the one that was kept of it.
#[must_use]
pub fn chain(kept: Option<&Anchored>, now: Option<&SealHeld>) -> Option<String> {
    let kept = kept?;
    match now {
        Some(now) if now.number > kept.number => None,
        Some(now) if now.number == kept.number && now.hash == kept.hash => None,
        Some(now) => Some(format!(
            "its newest audit seal is {}:{}, and seal {}:{} was kept here: its audit log was cut, written anew or put back from a copy",
            now.number, now.hash, kept.number, kept.hash
        )),
        None => Some(format!(
            "its audit log has no seal, and seal {}:{} was kept here: the log was removed, or its state is a new one",
            kept.number, kept.hash
        )),
    }
}

/// The policies of the two, as JSON objects. A value that only one of two versions knows is none.
#[must_use]
pub fn policy(ours: &Value, theirs: &Value) -> Vec<PolicyDiffers> {
    let (Value::Object(ours), Value::Object(theirs)) = (ours, theirs) else {
        return Vec::new();
    };
    ours.iter()
        .filter_map(|(key, value)| {
            let other = theirs.get(key).filter(|other| *other != value)?;
            Some(PolicyDiffers {
                key: key.clone(),
                ours: value.to_string(),
                theirs: plain(&other.to_string()),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::bridge::message::{Custody, Provenance};
    use crate::store::{Certificates, RegisteredKek};

    fn registered(label: &str, key: &[u8]) -> RegisteredKek {
        RegisteredKek {
            label: label.parse().unwrap(),
            hash: KekHash::of_spki(key),
            spki: key.to_vec(),
            bits: 2048,
            token: "main".to_owned(),
            custody: Custody::Token,
            provenance: Provenance::Born,
        }
    }

    /// A directory of the registry alone, its one token not up yet.
    fn directory(rows: &[RegisteredKek]) -> Directory {
        let none: [(&str, &[crate::bridge::message::KekOnToken]); 0] = [];
        Directory::new(none, Arc::from(rows), &Certificates::default())
            .with_registry(&["main"], &[])
    }

    fn fact(label: &str, key: &[u8], held: bool) -> KekFact {
        KekFact {
            label: label.parse().unwrap(),
            hash: KekHash::of_spki(key),
            held,
            registered: true,
            state: KekState::Active,
            partner: None,
        }
    }

    #[test]
    fn keks_are_compared_by_hash_and_labels_by_what_they_name() {
        let ours = directory(&[registered("KEK1", b"1"), registered("KEK2", b"2")]);
        let theirs = [
            // The same key under another label is no difference.
            fact("OTHER", b"1", true),
            // In another case it is the same label, and another key.
            fact("kek2", b"22", true),
            fact("GONE", b"3", false),
            KekFact {
                partner: Some(vec![1]),
                ..fact("BANK", b"4", false)
            },
        ];
        let found = keks(&ours, &theirs);
        let labels = |keks: &[NamedKek]| {
            keks.iter()
                .map(|kek| kek.label.to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(labels(&found.missing_keks), ["kek2"]);
        assert_eq!(labels(&found.unknown_keks), ["GONE"]);
        assert_eq!(labels(&found.partners), ["BANK"]);
        let [differs] = found.labels.as_slice() else {
            panic!("{:?}", found.labels);
        };
        assert_eq!(differs.ours, KekHash::of_spki(b"2"));
        assert_eq!(differs.theirs, KekHash::of_spki(b"22"));
        assert_eq!(found.not_seen, ["main"]);
        let told = found.alarming().unwrap();
        assert!(told.contains("labels of two keys: kek2"), "{told}");
    }

    #[test]
    fn a_kek_that_is_retired_on_one_side_only_is_told_of() {
        let ours = directory(&[registered("KEK1", b"1"), registered("KEK2", b"2")]);
        let retired = KekFact {
            state: KekState::Retired,
            ..fact("KEK1", b"1", true)
        };
        let elsewhere = KekFact {
            state: KekState::Revoked,
            ..fact("KEK9", b"9", true)
        };
        let theirs = [retired, fact("KEK2", b"2", true), elsewhere];
        let differences = Differences {
            states: states(&ours, &KekStates::default(), &theirs),
            ..Differences::default()
        };
        let told = differences.alarming().unwrap();
        assert_eq!(told, "states of KEKs: KEK1 (active here, retired there)");
    }

    #[test]
    fn a_peer_s_chain_goes_on_from_the_seal_that_was_kept() {
        let kept = |number, hash: &str| Anchored {
            node: "server:a".to_owned(),
            number,
            seq: 9,
            hash: hash.to_owned(),
            at: time::OffsetDateTime::UNIX_EPOCH,
        };
        let now = |number, hash: &str| SealHeld {
            number,
            seq: 9,
            hash: hash.to_owned(),
        };
        let five = kept(5, "aa");
        assert_eq!(chain(None, Some(&now(1, "aa"))), None);
        assert_eq!(chain(Some(&five), Some(&now(5, "aa"))), None);
        assert_eq!(chain(Some(&five), Some(&now(6, "bb"))), None);
        for other in [Some(now(5, "bb")), Some(now(4, "aa")), None] {
            let told = chain(Some(&five), other.as_ref()).unwrap();
            assert!(told.contains("seal 5:aa"), "{told}");
        }
    }

    #[test]
    fn a_policy_that_one_version_does_not_know_is_no_difference() {
        let ours = serde_json::json!({"a": 1, "b": "x", "c": true});
        let theirs = serde_json::json!({"a": 1, "b": "y", "d": 5});
        let found = policy(&ours, &theirs);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(
            (found[0].key.as_str(), found[0].theirs.as_str()),
            ("b", "\"y\"")
        );
        assert!(policy(&ours, &serde_json::json!([1])).is_empty());
    }
}
