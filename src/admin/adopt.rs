//! `ekm kek adopt --apply`, as the server sees it: what is about to be changed
//! on a token's keys, and what was.

use serde::{Deserialize, Serialize};

use super::{Reply, conflict, event, record, stored};
use crate::audit::Outcome;
use crate::key::{KekHash, KeyLabel};
use crate::problem::{EkmCode, Problem};
use crate::service::Service;

/// Changes of keys that are on a token.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdoptAsked {
    /// The token's configured name.
    pub token: String,
    /// Each change, in words.
    pub changes: Vec<String>,
    /// What the keys are called, or will be.
    pub keks: Vec<(KeyLabel, KekHash)>,
}

/// Whether the changes may be, and the record that they are about to be made; with `ended`,
/// the record of how it ended.
pub(super) async fn adopt(
    service: &Service,
    operator: &str,
    asked: AdoptAsked,
    ended: Option<Result<String, String>>,
) -> Result<Reply, Problem> {
    let mut event = event("kek-adopt", operator);
    event.keks = asked
        .keks
        .iter()
        .map(|(label, _)| label.to_string())
        .collect();
    event.token = Some(asked.token.clone());
    let changes = asked.changes.join("; ");
    let Some(ended) = ended else {
        unique(service, &asked.keks).await?;
        event.outcome = Outcome::Intent;
        event.detail = Some(changes);
        record(service, event).await?;
        return Ok(Reply::Done);
    };
    (event.outcome, event.detail) = match ended {
        Ok(done) => (Outcome::Success, Some(done)),
        Err(reason) => (Outcome::Failure, Some(format!("{changes}: {reason}"))),
    };
    record(service, event).await?;
    service.tokens().look_again().await;
    Ok(Reply::Done)
}

/// That no other key has one of the labels, here or on another token.
async fn unique(service: &Service, keks: &[(KeyLabel, KekHash)]) -> Result<(), Problem> {
    service.tokens().look_again().await;
    let directory = service.directory().await?;
    let registered = stored(service.store().keks().await)?;
    let known = directory
        .keks()
        .iter()
        .map(|kek| (&kek.label, &kek.hash))
        .chain(registered.iter().map(|row| (&row.label, &row.hash)));
    for (label, hash) in known {
        if let Some((wanted, _)) = keks
            .iter()
            .find(|(wanted, of)| wanted.same_as(label) && of != hash)
        {
            return Err(conflict(
                EkmCode::EE31,
                format!("nothing was changed: the label {wanted} is taken by another key, {hash}"),
            ));
        }
    }
    Ok(())
}
