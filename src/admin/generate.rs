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

/// That a key which is made here may be called so. One that is found on a token, or imported, is called
/// as cartridges name it.
fn plain(label: &KeyLabel) -> Result<(), Problem> {
    let text = label.as_str();
    let folded = label.folded();
    // LABEL:hash would be read as another label's hash.
    if folded.ends_with(":label") || folded.ends_with(":hash") {
        return Err(conflict(
            EkmCode::EE31,
            format!(
                "a label must not end in :label or :hash, which say how the cartridge names it; choose another than {text}"
            ),
        ));
    }
    // No listing shows it, and trailing blanks make no difference.
    if text.starts_with(char::is_whitespace) {
        return Err(conflict(
            EkmCode::EE31,
            format!("a label must not begin with a blank, as {text:?} does; leave it out"),
        ));
    }
    Ok(())
}

/// That no key has or had the label, and that it may be one.
pub(super) async fn vacant(service: &Service, label: &KeyLabel) -> Result<(), Problem> {
    plain(label)?;
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
        // Where both are written alike, that labels are compared without case is no news.
        let alike = if kek.label.as_str() == label.as_str() {
            ""
        } else {
            " (labels differ by more than case and trailing blanks)"
        };
        return Err(conflict(
            EkmCode::EE31,
            format!(
                "there is a KEK {} already (on {}); choose another label{alike}",
                kek.label,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_label_is_not_read_as_another_labels_encoding_nor_hidden_by_a_blank() {
        let judged = |text: &str| plain(&text.parse().unwrap());
        for good in ["TAPE2026A", "site:kek", "hash", "KEK:hash:2", "A B "] {
            assert!(judged(good).is_ok(), "{good:?}");
        }
        for bad in ["KEK:hash", "KEK:LABEL", "kek:Hash  "] {
            let refused = judged(bad).unwrap_err();
            assert!(refused.detail.contains(":label or :hash"), "{refused}");
        }
        for bad in [" KEK", "\u{3000}KEK"] {
            let refused = judged(bad).unwrap_err();
            assert!(refused.detail.contains("begin with a blank"), "{refused}");
        }
    }
}
