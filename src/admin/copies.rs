//! Copies of KEKs: the command line makes them with a bridge of its own, and
//! tells here what it is about to do and what came of it.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{Reply, births, conflict, event, record, stored, vacant};
use crate::audit::Outcome;
use crate::bridge::message::{Custody, Provenance};
use crate::copies::{CopyKind, KekCopy};
use crate::key::{KekHash, KeyLabel};
use crate::keystore::KnownKek;
use crate::problem::{EkmCode, Problem};
use crate::service::Service;
use crate::store::RegisteredKek;

/// Looks at the tokens until one shows what was just made.
const LOOKS: usize = 5;

/// What is done with a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CopyAct {
    /// A KEK is born with one.
    Birth,
    /// A KEK comes from one.
    Restore,
    /// It is shown that one is still good.
    Proof,
}

impl CopyAct {
    const fn action(self) -> &'static str {
        match self {
            Self::Birth => "kek-generate-with-copy",
            Self::Restore => "kek-restore",
            Self::Proof => "kek-copy-prove",
        }
    }
}

/// What an operator is about to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CopyAsked {
    /// What is done.
    pub act: CopyAct,
    /// The KEK's label.
    pub label: KeyLabel,
    /// The token, by configured name.
    pub token: String,
    /// The ceremony that the copy is of.
    pub ceremony: uuid::Uuid,
    /// The KEK's public-key hash, where there is a KEK yet.
    pub kek: Option<KekHash>,
    /// How many of how many shares are needed, and what else the record should say.
    pub detail: String,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CopyMade {
    /// The KEK's public-key hash.
    pub kek: KekHash,
    /// Serial number of the token.
    pub serial: String,
    /// Whether the copy opened an EEDK.
    pub proven: bool,
    /// The files that were written, and what else the record should say.
    pub detail: String,
}

/// Records what is about to be done, or what came of it.
pub(super) async fn ceremony(
    service: &Service,
    operator: &str,
    asked: CopyAsked,
    ended: Option<Result<Box<CopyMade>, String>>,
) -> Result<Reply, Problem> {
    let mut event = event(asked.act.action(), operator);
    event.keks = vec![asked.label.to_string()];
    event.token = Some(asked.token.clone());
    let told = |detail: &str| format!("ceremony {}: {detail}", asked.ceremony);
    match ended {
        None => {
            match (asked.act, &asked.kek) {
                (CopyAct::Birth, _) => {
                    if let Some(birth) = births::left(service, operator, &asked).await? {
                        return Ok(Reply::Left(Box::new(birth)));
                    }
                    vacant(service, &asked.label).await?;
                }
                (CopyAct::Restore, Some(kek)) => {
                    its_own(service, &asked.label, kek).await?;
                    missing_there(service, &asked.token, kek).await?;
                }
                (CopyAct::Restore | CopyAct::Proof, _) => {}
            }
            event.outcome = Outcome::Intent;
            event.detail = Some(told(&asked.detail));
            record(service, event).await?;
            if asked.act == CopyAct::Birth {
                births::begin(service, &asked).await?;
            }
            Ok(Reply::Done)
        }
        Some(Err(failure)) => {
            event.outcome = Outcome::Failure;
            event.detail = Some(told(&failure));
            record(service, event).await?;
            if asked.act == CopyAct::Birth {
                births::failed(service, &asked).await?;
            }
            Ok(Reply::Done)
        }
        Some(Ok(made)) => {
            event.outcome = Outcome::Success;
            event.detail = Some(told(&format!(
                "{}; public-key hash {}; {}",
                made.detail,
                made.kek,
                if made.proven { "proven" } else { "not proven" }
            )));
            record(service, event).await?;
            if asked.act == CopyAct::Birth {
                stored(service.store().end_birth(&asked.ceremony).await)?;
            }
            register(service, &asked, &made).await
        }
    }
}

/// That no other key has the label: a restored KEK keeps its own.
async fn its_own(service: &Service, label: &KeyLabel, kek: &KekHash) -> Result<(), Problem> {
    service.tokens().look_again().await;
    let directory = service.directory().await?;
    let shown = directory
        .keks()
        .iter()
        .find(|known| known.label.same_as(label) && known.hash != *kek)
        .map(|known| known.hash);
    let registered = stored(service.store().keks().await)?
        .iter()
        .find(|row| row.label.same_as(label) && row.hash != *kek)
        .map(|row| row.hash);
    match shown.or(registered) {
        None => Ok(()),
        Some(other) => Err(conflict(
            EkmCode::EE31,
            format!(
                "the label {label} is the key {other}'s here, and the copy is of the key {kek}; two keys under one label could not be told apart"
            ),
        )),
    }
}

/// That the token does not serve the KEK already.
async fn missing_there(service: &Service, token: &String, kek: &KekHash) -> Result<(), Problem> {
    let directory = service.directory().await?;
    let there = directory
        .keks()
        .iter()
        .find(|known| known.hash == *kek && known.tokens.contains(token));
    match there {
        None => Ok(()),
        Some(known) => Err(conflict(
            EkmCode::EE31,
            format!(
                "token {token} has this very key already, labelled {}; nothing was changed",
                known.label
            ),
        )),
    }
}

/// Puts the copy into the registry, and the KEK where it is new.
async fn register(service: &Service, asked: &CopyAsked, made: &CopyMade) -> Result<Reply, Problem> {
    let CopyMade {
        kek,
        serial,
        proven,
        detail: _,
    } = made;
    // Before the KEK itself: where that fails it is registered at its first use.
    stored(
        service
            .store()
            .add_kek_copy(&KekCopy {
                kek: *kek,
                kind: match asked.act {
                    CopyAct::Birth | CopyAct::Proof => CopyKind::Ceremony,
                    CopyAct::Restore => CopyKind::Restored,
                },
                ceremony: Some(asked.ceremony),
                token: Some(asked.token.clone()),
                serial: Some(serial.clone()),
                proven: *proven,
                note: None,
                at: OffsetDateTime::now_utc().truncate_to_second(),
            })
            .await,
    )?;
    if asked.act == CopyAct::Proof {
        return Ok(Reply::Done);
    }
    let shown = seen(service, asked, kek).await?;
    if let Some(known) = shown.first() {
        stored(
            service
                .store()
                .register_kek(&RegisteredKek {
                    label: known.label.clone(),
                    hash: known.hash,
                    spki: known.spki.clone(),
                    bits: known.bits,
                    token: asked.token.clone(),
                    custody: known.custody.unwrap_or(Custody::Token),
                    provenance: match asked.act {
                        CopyAct::Restore => Provenance::Restored,
                        CopyAct::Birth | CopyAct::Proof => Provenance::Copied,
                    },
                })
                .await,
        )?;
    }
    let directory = service.directory().await?;
    Ok(Reply::Keks(of(directory.keks(), kek)))
}

/// The KEK as the tokens show it, looked for until the one that was asked does.
async fn seen(
    service: &Service,
    asked: &CopyAsked,
    kek: &KekHash,
) -> Result<Vec<KnownKek>, Problem> {
    for look in 1..=LOOKS {
        service.tokens().look_again().await;
        let found = of(service.directory().await?.keks(), kek);
        let there = |known: &KnownKek| known.tokens.contains(&asked.token);
        if found.iter().any(there) || look == LOOKS {
            return Ok(found);
        }
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    Ok(Vec::new())
}

fn of(keks: &[KnownKek], hash: &KekHash) -> Vec<KnownKek> {
    keks.iter()
        .filter(|known| known.hash == *hash)
        .cloned()
        .collect()
}

/// An operator's word for what no PKCS#11 call shows.
pub(super) async fn stated(
    service: &Service,
    operator: &str,
    label: &KeyLabel,
    note: String,
) -> Result<Reply, Problem> {
    service.tokens().look_again().await;
    let directory = service.directory().await?;
    let known = directory
        .by_label(label)
        .map_err(|error| conflict(EkmCode::EE31, error.to_string()))?;
    if known.tokens.is_empty() {
        return Err(conflict(
            EkmCode::EE31,
            format!(
                "no token that is up has the private half of KEK {label} (ekm kek show {label}), so there is nothing to clone"
            ),
        ));
    }
    let mut event = event("kek-copy-confirm", operator);
    event.keks = vec![known.label.to_string()];
    event.token = known.tokens.first().cloned();
    event.detail = Some(format!(
        "stated, not proven: {note}; public-key hash {}",
        known.hash
    ));
    record(service, event).await?;
    stored(
        service
            .store()
            .add_kek_copy(&KekCopy {
                kek: known.hash,
                kind: CopyKind::Stated,
                ceremony: None,
                token: known.tokens.first().cloned(),
                serial: known.serials.first().cloned(),
                proven: false,
                note: Some(note),
                at: OffsetDateTime::now_utc().truncate_to_second(),
            })
            .await,
    )?;
    let directory = service.directory().await?;
    Ok(Reply::Keks(of(directory.keks(), &known.hash)))
}
