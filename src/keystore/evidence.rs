//! What tokens do for the audit chain: seals, and anchors that they keep.

use tokio::time::Instant;

use super::tokens::out_of_turn;
use super::{Fault, Tokens};
use crate::bridge::evidence::{Evidence, Evidenced, SealKeyId};
use crate::bridge::message::{Op, Reply};
use crate::bridge::supervisor::Bridge;

/// A key that seals, as a token made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealKeyMade {
    /// The token, by configured name.
    pub token: String,
    /// Its `CKA_ID`.
    pub id: SealKeyId,
    /// Its `SubjectPublicKeyInfo`, DER.
    pub spki: Vec<u8>,
}

/// A server's newest seal, as a token keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenAnchor {
    /// The token, by configured name.
    pub token: String,
    /// The server.
    pub node: String,
    /// The seal's number and hash.
    pub text: String,
}

/// Where an anchor is not kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NotKept {
    /// What each token said that does not keep it.
    pub failed: Vec<String>,
    /// What tokens go on keeping instead: later seals of the same server.
    pub newer: Vec<TokenAnchor>,
}

impl Tokens {
    /// Makes a key that seals on the token of that name, or on the only one.
    ///
    /// # Errors
    /// There is no such token, or it does not make the key.
    pub async fn make_seal_key(
        &self,
        token: Option<&str>,
        bits: u32,
    ) -> Result<SealKeyMade, Fault> {
        let tokens: Vec<&Bridge> = self
            .bridges()
            .iter()
            .filter(|bridge| bridge.key_file().is_none())
            .filter(|bridge| token.is_none_or(|name| bridge.name() == name))
            .collect();
        let [bridge] = tokens.as_slice() else {
            let reason = if tokens.is_empty() {
                "the configuration has no such token".to_owned()
            } else {
                let names: Vec<&str> = tokens.iter().map(|bridge| bridge.name()).collect();
                format!(
                    "there is more than one token; say which with --token: {}",
                    names.join(", ")
                )
            };
            return Err(Fault::Down {
                token: token.unwrap_or("(none named)").to_owned(),
                reason,
            });
        };
        bridge.settled().await?;
        match bridge.ask(Op::Evidence(Evidence::MakeKey { bits })).await? {
            Reply::Evidenced(Evidenced::Key { id, spki }) => Ok(SealKeyMade {
                token: bridge.name().to_owned(),
                id,
                spki,
            }),
            Reply::Evidenced(Evidenced::NotTaken(reason)) => Err(Fault::Unsupported {
                token: bridge.name().to_owned(),
                reason,
            }),
            other => Err(out_of_turn(bridge, &other)),
        }
    }

    /// A signature by one of these keys, the first that a token has: which of them, that token's
    /// name, and the signature.
    ///
    /// # Errors
    /// What each token said.
    pub async fn sign_seal(
        &self,
        keys: &[SealKeyId],
        digest: [u8; 32],
    ) -> Result<(usize, String, Vec<u8>), String> {
        let mut reasons = Vec::new();
        for (index, key) in keys.iter().enumerate() {
            for bridge in self.bridges() {
                let what = Evidence::Sign { key: *key, digest };
                match evidence(bridge, what).await {
                    Ok(Evidenced::Signed(Some(signature))) => {
                        return Ok((index, bridge.name().to_owned(), signature));
                    }
                    Ok(Evidenced::Signed(None)) => {}
                    Ok(Evidenced::NotTaken(reason)) => {
                        reasons.push(format!("token {}: {reason}", bridge.name()));
                    }
                    Ok(other) => reasons.push(strange(bridge, other).to_string()),
                    Err(fault) => reasons.push(fault.to_string()),
                }
            }
        }
        reasons.dedup();
        if reasons.is_empty() {
            reasons.push("no token here has the key that seals".to_owned());
        }
        Err(reasons.join("; "))
    }

    /// Has every token keep a server's newest seal, in the place of an older one.
    pub async fn keep_anchor(&self, node: &str, text: &str) -> NotKept {
        let mut not = NotKept::default();
        for bridge in self.bridges() {
            if bridge.key_file().is_some() {
                continue;
            }
            let what = Evidence::Anchor {
                node: node.to_owned(),
                text: text.to_owned(),
            };
            match evidence(bridge, what).await {
                Ok(Evidenced::Anchored) => {}
                Ok(Evidenced::Newer(kept)) => not.newer.push(TokenAnchor {
                    token: bridge.name().to_owned(),
                    node: node.to_owned(),
                    text: kept,
                }),
                Ok(Evidenced::NotTaken(reason)) => {
                    not.failed
                        .push(format!("token {}: {reason}", bridge.name()));
                }
                Ok(other) => not.failed.push(strange(bridge, other).to_string()),
                Err(fault) => not.failed.push(fault.to_string()),
            }
        }
        not
    }

    /// The anchors that tokens keep.
    pub async fn kept_anchors(&self) -> Vec<TokenAnchor> {
        let mut all = Vec::new();
        for bridge in self.bridges() {
            // One that is down has nothing to say.
            if let Ok(Evidenced::Anchors(anchors)) = evidence(bridge, Evidence::Anchors).await {
                all.extend(anchors.into_iter().map(|(node, text)| TokenAnchor {
                    token: bridge.name().to_owned(),
                    node,
                    text,
                }));
            }
        }
        all
    }
}

async fn evidence(bridge: &Bridge, what: Evidence) -> Result<Evidenced, Fault> {
    let until = Instant::now() + bridge.deadline();
    match bridge.try_ask(&Op::Evidence(what), until).await? {
        Reply::Evidenced(evidenced) => Ok(evidenced),
        other => Err(out_of_turn(bridge, &other)),
    }
}

fn strange(bridge: &Bridge, answer: Evidenced) -> Fault {
    out_of_turn(bridge, &Reply::Evidenced(answer))
}
