//! New KEKs.

use super::{KEK_BITS, Reply, conflict, event, record, stored};
use crate::audit::Outcome;
use crate::bridge::message::Custody;
use crate::key::KeyLabel;
use crate::problem::{EkmCode, Problem};
use crate::service::Service;
use crate::store::RegisteredKek;

pub(super) async fn generate(
    service: &Service,
    operator: &str,
    label: KeyLabel,
    bits: u32,
    token: Option<String>,
    (custody, sign): (Custody, bool),
) -> Result<Reply, Problem> {
    if !KEK_BITS.contains(&bits) {
        return Err(conflict(
            EkmCode::EE31,
            format!("a KEK has {KEK_BITS:?} bits, got {bits}"),
        ));
    }
    if let Some(name) = &token
        && is_key_file(service, name)
    {
        return Err(conflict(
            EkmCode::EE31,
            format!(
                "{name} is a software keystore, and those make no keys: ekm only reads their files; make KEK {label} in a token (ekm kek generate {label} --token NAME)"
            ),
        ));
    }
    vacant(service, &label).await?;
    let mut event = event("kek-generate", operator);
    event.outcome = Outcome::Intent;
    event.keks = vec![label.to_string()];
    event.token.clone_from(&token);
    record(service, event.clone()).await?;
    let made = service
        .tokens()
        .generate(token.as_deref(), &label, bits, custody, sign)
        .await;
    let (token, kek) = match made {
        Ok(made) => made,
        Err(fault) => {
            event.outcome = Outcome::Failure;
            event.detail = Some(fault.to_string());
            record(service, event).await?;
            return Err(Problem::from(&fault));
        }
    };
    let provenance = match kek.private {
        crate::bridge::message::PrivateHalf::Serves { provenance, .. } => provenance,
        crate::bridge::message::PrivateHalf::Absent
        | crate::bridge::message::PrivateHalf::Refused { .. } => {
            return Err(Problem::internal(format!(
                "token {token} made KEK {label} so that it cannot serve"
            )));
        }
    };
    event.outcome = Outcome::Success;
    event.token = Some(token.clone());
    event.custody = Some(custody.to_string());
    event.detail = Some(format!(
        "RSA-{bits}, {provenance}, public-key hash {}{}",
        kek.hash,
        if sign {
            ", may sign its own request"
        } else {
            ""
        }
    ));
    record(service, event).await?;
    stored(
        service
            .store()
            .register_kek(&RegisteredKek {
                label: kek.label.clone(),
                hash: kek.hash,
                spki: kek.spki.clone(),
                bits: kek.bits,
                token,
                custody,
                provenance,
            })
            .await,
    )?;
    let directory = service.directory().await?;
    let made = directory
        .keks()
        .iter()
        .filter(|known| known.hash == kek.hash)
        .cloned()
        .collect();
    Ok(Reply::Keks(made))
}

/// That no key has or had the label.
pub(super) async fn vacant(service: &Service, label: &KeyLabel) -> Result<(), Problem> {
    if crate::bridge::trust::reserved(label.as_str()) {
        return Err(conflict(
            EkmCode::EE31,
            format!(
                "the label {label} begins as those of the keys that a token's security officer blesses (ekm drive trust); choose another"
            ),
        ));
    }
    if crate::bridge::evidence::reserved(label.as_str()) {
        return Err(conflict(
            EkmCode::EE31,
            format!(
                "the label {label} begins as those of the keys that seal the audit log (ekm audit key); choose another"
            ),
        ));
    }
    // A key that is made and not registered is one that nobody knows of.
    let seen = service.fleet_seen();
    if let Some((why, since)) = seen.and_then(|seen| seen.outage) {
        return Err(Problem::unavailable(format!(
            "no key is made while the state database is out of reach, since {since}: {why}; nothing was done"
        )));
    }
    service.tokens().look_again().await;
    let directory = service.directory().await?;
    if let Some(kek) = directory.keks().iter().find(|kek| kek.label.same_as(label)) {
        return Err(conflict(
            EkmCode::EE31,
            format!(
                "the label {} is taken by the key {} on {}; labels differ by more than case and trailing blanks",
                kek.label,
                kek.hash,
                kek.place()
            ),
        ));
    }
    if let Some(row) = stored(service.store().keks().await)?
        .iter()
        .find(|row| row.label.same_as(label))
    {
        return Err(conflict(
            EkmCode::EE31,
            format!(
                "the label {} is registered for the key {}, which no token shows now; choose another label",
                row.label, row.hash
            ),
        ));
    }
    Ok(())
}

fn is_key_file(service: &Service, name: &str) -> bool {
    let mut bridges = service.tokens().bridges().iter();
    bridges.any(|bridge| bridge.name() == name && bridge.key_file().is_some())
}
