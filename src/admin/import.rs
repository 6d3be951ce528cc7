//! `ekm kek import`, as the server sees it: whether it may be, and that it was.
//!
//! The key itself goes from the command line to a bridge of the command's own
//! and never comes here.

use serde::{Deserialize, Serialize};

use super::{KEK_BITS, Reply, conflict, event, record, stored};
use crate::audit::{Event, Outcome};
use crate::bridge::message::{Custody, PrivateHalf};
use crate::bridge::supervisor::Bridge;
use crate::key::{KekHash, KeyLabel};
use crate::problem::{EkmCode, Problem};
use crate::service::Service;
use crate::store::RegisteredKek;

/// How often the token is looked at until it shows the key: one that is busy may not answer at once.
const LOOKS: usize = 3;

/// A key that is to be imported.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImportAsked {
    /// What it shall be called.
    pub label: KeyLabel,
    /// SHA-256 over its `SubjectPublicKeyInfo`.
    pub hash: KekHash,
    /// Modulus length, bits.
    pub bits: u32,
    /// The token, where there is more than one.
    pub token: Option<String>,
    /// What it is for.
    pub custody: Custody,
    /// Name of the file that it comes from.
    pub file: String,
}

impl ImportAsked {
    fn event(&self, operator: &str, outcome: Outcome, detail: &str) -> Event {
        let mut event = event("kek-import", operator);
        event.outcome = outcome;
        event.keks = vec![self.label.to_string()];
        event.token.clone_from(&self.token);
        event.custody = Some(self.custody.to_string());
        event.detail = Some(format!(
            "RSA-{}, public-key hash {}, from the file {}{detail}",
            self.bits, self.hash, self.file
        ));
        event
    }
}

/// Where the key goes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ImportTo {
    /// The token's configured name.
    pub token: String,
    /// The label under which the token has the key already; then there is nothing to do.
    pub already: Option<KeyLabel>,
}

/// Whether the key may go there, and the record that it is about to.
pub(super) async fn prepare(
    service: &Service,
    operator: &str,
    mut asked: ImportAsked,
) -> Result<Reply, Problem> {
    let refuse = |reason: String| conflict(EkmCode::EE31, reason);
    if !KEK_BITS.contains(&asked.bits) {
        return Err(refuse(format!(
            "the key in {} has {} bits; a KEK has {KEK_BITS:?}, for which an EEDK has room",
            asked.file, asked.bits
        )));
    }
    let bridges = service.tokens().bridges();
    let names = || {
        let names: Vec<&str> = bridges.iter().map(Bridge::name).collect();
        names.join(", ")
    };
    let token = match (&asked.token, bridges) {
        (Some(name), bridges) if bridges.iter().any(|bridge| bridge.name() == name) => name.clone(),
        (Some(name), _) => {
            return Err(refuse(format!(
                "the configuration has no token {name}; it has {}",
                names()
            )));
        }
        (None, [only]) => only.name().to_owned(),
        (None, _) => {
            return Err(refuse(format!(
                "there is more than one token; say which with --token: {}",
                names()
            )));
        }
    };
    if crate::bridge::trust::reserved(asked.label.as_str()) {
        return Err(refuse(format!(
            "the label {} begins as those of the keys that a token's security officer blesses (ekm drive trust); give another with --label",
            asked.label
        )));
    }
    asked.token = Some(token.clone());
    service.tokens().look_again().await;
    let directory = service.directory().await?;
    for kek in directory.keks() {
        if kek.hash != asked.hash && kek.label.same_as(&asked.label) {
            return Err(refuse(format!(
                "the label {} is taken by another key, {}; give another with --label (ekm kek show {0} tells where it is)",
                kek.label, kek.hash
            )));
        }
        if kek.hash == asked.hash && kek.tokens.contains(&token) {
            return Ok(Reply::ImportTo(ImportTo {
                token,
                already: Some(kek.label.clone()),
            }));
        }
    }
    if let Some(row) = stored(service.store().keks().await)?
        .iter()
        .find(|row| row.hash != asked.hash && row.label.same_as(&asked.label))
    {
        return Err(refuse(format!(
            "the label {} is registered for another key, {}, which no token shows now; give another with --label",
            row.label, row.hash
        )));
    }
    record(service, asked.event(operator, Outcome::Intent, "")).await?;
    Ok(Reply::ImportTo(ImportTo {
        token,
        already: None,
    }))
}

/// Records how it ended: how the key got there, or why it did not. Where the token shows the
/// key, its label is pinned to it.
pub(super) async fn finish(
    service: &Service,
    operator: &str,
    asked: ImportAsked,
    ended: Result<String, String>,
) -> Result<Reply, Problem> {
    let way = match ended {
        Ok(way) => way,
        Err(reason) => {
            let failed = asked.event(operator, Outcome::Failure, &format!("; {reason}"));
            record(service, failed).await?;
            return Ok(Reply::Done);
        }
    };
    let done = asked.event(operator, Outcome::Success, &format!(", imported by {way}"));
    record(service, done).await?;
    let mut tries = 0..LOOKS;
    let shown = loop {
        service.tokens().look_again().await;
        let shown: Vec<_> = service
            .directory()
            .await?
            .keks()
            .iter()
            .filter(|kek| {
                let here = asked
                    .token
                    .as_ref()
                    .is_some_and(|token| kek.tokens.contains(token));
                kek.hash == asked.hash && here
            })
            .cloned()
            .collect();
        if !shown.is_empty() || tries.next().is_none() {
            break shown;
        }
    };
    for bridge in service.tokens().bridges() {
        let named = asked.token.as_deref() == Some(bridge.name());
        let Some(found) = bridge.found().filter(|_| named) else {
            continue;
        };
        let kek = found
            .keks
            .iter()
            .find(|kek| kek.hash == asked.hash && kek.label.same_as(&asked.label));
        if let Some(kek) = kek
            && let PrivateHalf::Serves {
                custody,
                provenance,
                ..
            } = kek.private
        {
            let row = RegisteredKek {
                label: kek.label.clone(),
                hash: kek.hash,
                spki: kek.spki.clone(),
                bits: kek.bits,
                token: bridge.name().to_owned(),
                custody,
                provenance,
            };
            stored(service.store().register_kek(&row).await)?;
        }
    }
    Ok(Reply::Keks(shown))
}
