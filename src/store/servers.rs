//! The servers that share a state, and what each one's tokens hold.
//!
//! Each server tells of itself every few seconds. Whoever reads the rows can
//! compare: a label that is another key elsewhere, a KEK that a server lacks.

use std::collections::BTreeMap;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Defaults, StoreError};
use crate::key::{KekHash, KeyLabel};

/// A KEK whose private half serves on a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KekHeld {
    /// Its label there.
    pub label: KeyLabel,
    /// Its public-key hash.
    pub hash: KekHash,
}

/// What a token of a server holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenHeld {
    /// Its name in that server's configuration.
    pub name: String,
    /// Its serial number, once it was seen.
    pub serial: String,
    /// Whether what it holds is known: it was up once since that server began to tell of itself.
    pub known: bool,
    /// Its KEKs, as last read.
    pub keks: Vec<KekHeld>,
}

/// A server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyServer {
    /// Its node name, of which there should be one only.
    pub node: String,
    /// New at each start.
    pub instance: Uuid,
    /// Its version.
    pub version: String,
    /// When it started.
    #[serde(with = "time::serde::rfc3339")]
    pub started: OffsetDateTime,
    /// When it last told of itself, by the database's clock: it is set where it is written.
    #[serde(with = "time::serde::rfc3339")]
    pub seen: OffsetDateTime,
    /// The number of the newest change of a KEK's state that its table has; what it gives out is by
    /// that one or a later one.
    #[serde(default)]
    pub knows: i64,
    /// Its tokens; software keystores are not among them.
    pub tokens: Vec<TokenHeld>,
    /// The global labels as it has them.
    pub defaults: Defaults,
}

impl KeyServer {
    /// On how many of its tokens a KEK is; none where not one of them is known yet.
    fn copies(&self, kek: &KekHash) -> Option<usize> {
        let known: Vec<&TokenHeld> = self.tokens.iter().filter(|token| token.known).collect();
        if known.is_empty() {
            return None;
        }
        let holds = |token: &&&TokenHeld| token.keks.iter().any(|held| held.hash == *kek);
        Some(known.iter().filter(holds).count())
    }
}

/// Something that is not the same on all servers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// What differs: a KEK's label, or `defaults`.
    pub what: String,
    /// How.
    pub how: String,
}

/// What is not the same on these servers.
#[must_use]
pub fn differences(servers: &[KeyServer]) -> Vec<Difference> {
    let mut labels: BTreeMap<String, BTreeMap<KekHash, Vec<&str>>> = BTreeMap::new();
    let mut keks: BTreeMap<KekHash, String> = BTreeMap::new();
    for server in servers {
        for held in server.tokens.iter().flat_map(|token| &token.keks) {
            let nodes = labels
                .entry(held.label.folded())
                .or_default()
                .entry(held.hash)
                .or_default();
            if !nodes.contains(&server.node.as_str()) {
                nodes.push(&server.node);
            }
            keks.entry(held.hash)
                .or_insert_with(|| held.label.to_string());
        }
    }
    let mut found = Vec::new();
    for (label, hashes) in labels.iter().filter(|(_, hashes)| hashes.len() > 1) {
        let each: Vec<String> = hashes
            .iter()
            .map(|(hash, nodes)| format!("{} on {}", short(hash), nodes.join(", ")))
            .collect();
        found.push(Difference {
            what: label.clone(),
            how: format!("the label is of different keys: {}", each.join("; ")),
        });
    }
    for (hash, label) in &keks {
        let counts: Vec<(&str, usize)> = servers
            .iter()
            .filter_map(|server| Some((server.node.as_str(), server.copies(hash)?)))
            .collect();
        let lack: Vec<&str> = counts
            .iter()
            .filter(|(_, copies)| *copies == 0)
            .map(|(node, _)| *node)
            .collect();
        let how = if lack.is_empty() {
            let mut numbers: Vec<usize> = counts.iter().map(|(_, copies)| *copies).collect();
            numbers.dedup();
            if numbers.len() < 2 {
                continue;
            }
            let each: Vec<String> = counts
                .iter()
                .map(|(node, copies)| format!("{copies} of {node}"))
                .collect();
            format!("it is on so many tokens: {}", each.join(", "))
        } else {
            format!("it is on no token of {}", lack.join(", "))
        };
        found.push(Difference {
            what: label.clone(),
            how: format!("{how} (KEK {})", short(hash)),
        });
    }
    let mut defaults: Vec<(&Defaults, Vec<&str>)> = Vec::new();
    for server in servers {
        match defaults
            .iter_mut()
            .find(|(known, _)| **known == server.defaults)
        {
            Some((_, nodes)) => nodes.push(&server.node),
            None => defaults.push((&server.defaults, vec![&server.node])),
        }
    }
    if defaults.len() > 1 {
        let each: Vec<String> = defaults
            .iter()
            .map(|(defaults, nodes)| format!("{} on {}", named(defaults), nodes.join(", ")))
            .collect();
        found.push(Difference {
            what: "defaults".to_owned(),
            how: each.join("; "),
        });
    }
    found
}

/// The first of these servers, and its token, that does not have one of the KEKs.
#[must_use]
pub fn lacking<'a>(
    servers: &'a [KeyServer],
    keks: &[(KeyLabel, KekHash)],
) -> Option<(&'a str, &'a str, String)> {
    for server in servers {
        for token in &server.tokens {
            for (label, hash) in keks {
                if !token.keks.iter().any(|held| held.hash == *hash) {
                    return Some((&server.node, &token.name, label.to_string()));
                }
            }
        }
    }
    None
}

fn short(hash: &KekHash) -> String {
    hash.to_string().chars().take(16).collect()
}

fn named(defaults: &Defaults) -> String {
    let labels: Vec<String> = [&defaults.kek1, &defaults.kek2]
        .into_iter()
        .flatten()
        .map(ToString::to_string)
        .collect();
    if labels.is_empty() {
        "none".to_owned()
    } else {
        labels.join(" and ")
    }
}

/// The servers that share the state.
#[async_trait]
pub trait Servers: Send + Sync {
    /// Writes what a server tells of itself; what stood there before.
    async fn tell(&self, server: &KeyServer) -> Result<Option<KeyServer>, StoreError>;
    /// All that ever told of themselves, by node name.
    async fn servers(&self) -> Result<Vec<KeyServer>, StoreError>;
    /// Takes a server out of the list; false where there is none.
    async fn forget_server(&self, node: &str) -> Result<bool, StoreError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(node: &str, tokens: &[&[(&str, u8)]]) -> KeyServer {
        KeyServer {
            node: node.to_owned(),
            instance: Uuid::from_u128(1),
            version: "0".to_owned(),
            started: OffsetDateTime::UNIX_EPOCH,
            seen: OffsetDateTime::UNIX_EPOCH,
            knows: 0,
            tokens: tokens
                .iter()
                .zip(["main", "second"])
                .map(|(keks, name)| TokenHeld {
                    name: name.to_owned(),
                    serial: "1".to_owned(),
                    known: true,
                    keks: keks
                        .iter()
                        .map(|(label, key)| KekHeld {
                            label: label.parse().unwrap(),
                            hash: KekHash::of_spki(&[*key]),
                        })
                        .collect(),
                })
                .collect(),
            defaults: Defaults::default(),
        }
    }

    fn found(servers: &[KeyServer]) -> Vec<String> {
        differences(servers)
            .into_iter()
            .map(|one| format!("{}: {}", one.what, one.how))
            .collect()
    }

    #[test]
    fn servers_that_hold_the_same_do_not_differ() {
        let both: &[&[(&str, u8)]] = &[&[("KEK1", 1), ("KEK2", 2)], &[("kek1", 1)]];
        assert!(found(&[server("a", both), server("b", both)]).is_empty());
        assert!(found(&[]).is_empty());
    }

    #[test]
    fn a_label_of_two_keys_a_missing_kek_and_a_missing_copy_are_told() {
        let one = server("a", &[&[("KEK1", 1), ("KEK2", 2)]]);
        let other = server("b", &[&[("kek1", 3), ("KEK2", 2)], &[("KEK2", 2)]]);
        let all = found(&[one, other]).join("\n");
        assert!(all.contains("the label is of different keys"), "{all}");
        assert!(all.contains("KEK1: it is on no token of b"), "{all}");
        assert!(
            all.contains("KEK2: it is on so many tokens: 1 of a, 2 of b"),
            "{all}"
        );
    }

    #[test]
    fn what_a_server_does_not_know_yet_is_no_difference_but_it_lacks_the_kek() {
        let one = server("a", &[&[("KEK1", 1)]]);
        let mut starting = server("b", &[&[]]);
        starting.tokens[0].known = false;
        let servers = [one, starting];
        assert!(found(&servers).is_empty());
        let kek = ("KEK1".parse().unwrap(), KekHash::of_spki(&[1]));
        assert_eq!(
            lacking(&servers, std::slice::from_ref(&kek)),
            Some(("b", "main", "KEK1".to_owned()))
        );
        assert_eq!(lacking(&servers[..1], &[kek]), None);
    }

    #[test]
    fn defaults_that_differ_are_told() {
        let mut other = server("b", &[]);
        other.defaults.kek1 = Some("KEK1".parse().unwrap());
        let all = found(&[server("a", &[]), other]);
        assert_eq!(all, ["defaults: none on a; KEK1:label on b"]);
    }
}
