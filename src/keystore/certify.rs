//! What tokens do about certificates, and the seals of partners' KEKs.

use subtle::ConstantTimeEq;
use tokio::time::Instant;

use super::tokens::out_of_turn;
use super::{Fault, Tokens};
use crate::bridge::certify::{Certified, Certify, Mac, SealId};
use crate::bridge::message::{Op, Reply};
use crate::bridge::supervisor::Bridge;
use crate::certificates::Subject;
use crate::key::KekHash;
use crate::store::{Partner, Seal};

/// How the seal of a partner's KEK was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SealSeen {
    /// A token verified it.
    Good,
    /// It does not verify, and why.
    Broken(String),
    /// It cannot be verified now, and why.
    Unknown(String),
}

impl Tokens {
    /// A request for the certificate of a KEK (PKCS#10, DER), signed by the KEK on the first of the
    /// tokens that does it.
    ///
    /// # Errors
    /// None does.
    pub async fn request(
        &self,
        tokens: &[String],
        kek: KekHash,
        subject: &Subject,
    ) -> Result<Vec<u8>, Fault> {
        let subject = subject.clone();
        let what = Certify::Request { kek, subject };
        match self.first_of(tokens, what).await? {
            (_, Certified::Request(der)) => Ok(der),
            (bridge, other) => Err(strange(bridge, other)),
        }
    }

    /// Has one of the tokens open what is wrapped under a KEK's public half; its name.
    ///
    /// # Errors
    /// None does.
    pub async fn possess(&self, tokens: &[String], kek: KekHash) -> Result<String, Fault> {
        match self.first_of(tokens, Certify::Possess { kek }).await? {
            (bridge, Certified::Possessed) => Ok(bridge.name().to_owned()),
            (bridge, other) => Err(strange(bridge, other)),
        }
    }

    /// Stores a KEK's certificate on each of these tokens; what each of them said where it did not.
    pub async fn store_certificate(
        &self,
        tokens: &[String],
        kek: KekHash,
        certificate: &[u8],
    ) -> Vec<(String, Result<(), String>)> {
        let mut outcomes = Vec::new();
        for bridge in self.named(tokens) {
            let what = Certify::Store {
                kek,
                certificate: certificate.to_vec(),
            };
            let outcome = match certify(bridge, what).await {
                Ok(Certified::Stored) => Ok(()),
                Ok(Certified::NotTaken(reason)) => Err(reason),
                Ok(other) => Err(strange(bridge, other).to_string()),
                Err(fault) => Err(fault.to_string()),
            };
            outcomes.push((bridge.name().to_owned(), outcome));
        }
        outcomes
    }

    /// Seals a partner's row on every token that serves and can.
    ///
    /// # Errors
    /// None can: what each said.
    pub async fn seal(&self, digest: [u8; 32]) -> Result<Vec<Seal>, String> {
        let mut seals = Vec::new();
        let mut reasons = Vec::new();
        for bridge in self.bridges() {
            match certify(bridge, Certify::Seal { digest }).await {
                Ok(Certified::Sealed { key, mac }) => seals.push(Seal {
                    token: bridge.name().to_owned(),
                    key,
                    mac,
                }),
                Ok(Certified::NotTaken(reason)) => {
                    reasons.push(format!("token {}: {reason}", bridge.name()));
                }
                Ok(other) => reasons.push(strange(bridge, other).to_string()),
                Err(fault) => reasons.push(fault.to_string()),
            }
        }
        if seals.is_empty() {
            return Err(reasons.join("; "));
        }
        Ok(seals)
    }

    /// Verifies the seal of a partner's row. One token that verifies its own is enough: nobody but
    /// a token makes a seal, so a row that one of them sealed is the one that was confirmed.
    pub async fn verify_seal(&self, partner: &Partner) -> SealSeen {
        let digest = partner.digest();
        let mut unknown = Vec::new();
        let mut wrong = None;
        for seal in &partner.seals {
            // A key may have been cloned to another token, or the token have another name now.
            for bridge in self.bridges() {
                let what = Certify::Reseal {
                    key: seal.key,
                    digest,
                };
                match certify(bridge, what).await {
                    Ok(Certified::Resealed(Some(mac))) if bool::from(mac.ct_eq(&seal.mac)) => {
                        return SealSeen::Good;
                    }
                    Ok(Certified::Resealed(Some(_))) => {
                        wrong.get_or_insert_with(|| bridge.name().to_owned());
                    }
                    Ok(Certified::Resealed(None)) => {}
                    Ok(other) => unknown.push(strange(bridge, other).to_string()),
                    Err(fault) => unknown.push(fault.to_string()),
                }
            }
        }
        match (wrong, unknown.first()) {
            (Some(token), _) => SealSeen::Broken(format!(
                "its row was changed after it was sealed: token {token} gives another seal"
            )),
            (None, Some(reason)) => SealSeen::Unknown(reason.clone()),
            (None, None) => SealSeen::Broken(
                "no token here has the key of its seal: the row was not sealed here, was removed \
                 once, or the token was replaced"
                    .to_owned(),
            ),
        }
    }

    /// Destroys the seal keys of a partner's row, so that the row never verifies again. What could
    /// not be done.
    pub async fn unseal(&self, seals: &[Seal]) -> Vec<String> {
        let mut left = Vec::new();
        for seal in seals {
            if !self.bridges().iter().any(|one| one.name() == seal.token) {
                left.push(format!("the configuration has no token {}", seal.token));
            }
            // It may have been cloned, so every token is asked.
            for bridge in self.bridges() {
                match certify(bridge, Certify::Unseal { key: seal.key }).await {
                    Ok(Certified::Unsealed(_)) => {}
                    Ok(other) => left.push(strange(bridge, other).to_string()),
                    Err(fault) if bridge.name() == seal.token => left.push(fault.to_string()),
                    Err(_) => {}
                }
            }
        }
        left
    }

    /// What HMAC keys of a token, which never leave it, make of a digest: those of the keys that it
    /// has, else a new one.
    ///
    /// # Errors
    /// It cannot, or does not answer.
    pub async fn derive(
        &self,
        token: &str,
        keys: &[SealId],
        digest: [u8; 32],
    ) -> Result<Vec<(SealId, Mac)>, String> {
        let bridge = self.bridges().iter().find(|one| one.name() == token);
        let bridge = bridge.ok_or_else(|| format!("the configuration has no token {token}"))?;
        let mut made = Vec::new();
        for key in keys.iter().copied() {
            match certify(bridge, Certify::Reseal { key, digest }).await {
                Ok(Certified::Resealed(Some(mac))) => made.push((key, mac)),
                Ok(Certified::Resealed(None)) => {}
                Ok(other) => return Err(strange(bridge, other).to_string()),
                Err(fault) => return Err(fault.to_string()),
            }
        }
        if made.is_empty() {
            match certify(bridge, Certify::Seal { digest }).await {
                Ok(Certified::Sealed { key, mac }) => made.push((key, mac)),
                Ok(Certified::NotTaken(reason)) => return Err(reason),
                Ok(other) => return Err(strange(bridge, other).to_string()),
                Err(fault) => return Err(fault.to_string()),
            }
        }
        Ok(made)
    }

    fn named<'a>(&'a self, tokens: &'a [String]) -> impl Iterator<Item = &'a Bridge> {
        self.bridges()
            .iter()
            .filter(|bridge| tokens.iter().any(|name| name == bridge.name()))
    }

    async fn first_of<'a>(
        &'a self,
        tokens: &'a [String],
        what: Certify,
    ) -> Result<(&'a Bridge, Certified), Fault> {
        let mut last = None;
        for bridge in self.named(tokens) {
            match certify(bridge, what.clone()).await {
                Ok(answer) => return Ok((bridge, answer)),
                Err(fault) => last = Some(fault),
            }
        }
        Err(last.unwrap_or_else(|| Fault::Down {
            token: tokens.join(", "),
            reason: "the configuration has no such token".to_owned(),
        }))
    }
}

async fn certify(bridge: &Bridge, what: Certify) -> Result<Certified, Fault> {
    let until = Instant::now() + bridge.deadline();
    match bridge.try_ask(&Op::Certify(what), until).await? {
        Reply::Certified(certified) => Ok(certified),
        other => Err(out_of_turn(bridge, &other)),
    }
}

fn strange(bridge: &Bridge, answer: Certified) -> Fault {
    out_of_turn(bridge, &Reply::Certified(answer))
}
