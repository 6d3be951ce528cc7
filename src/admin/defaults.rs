//! The global key labels, which drives and requests get that name none.

use super::{Reply, conflict, event, known, labels, record, stored};
use crate::audit::Kind;
use crate::key::{Encoding, KekRef};
use crate::keystore::Directory;
use crate::problem::{EkmCode, Problem};
use crate::service::Service;
use crate::store::{Defaults, KekState, KekStates};

/// Sets both, unless one is not written under any more, or nobody here could read what is written
/// under them.
pub(super) async fn set(
    service: &Service,
    operator: &str,
    defaults: Defaults,
    anyway: bool,
) -> Result<Reply, Problem> {
    let named = [&defaults.kek1, &defaults.kek2].into_iter().flatten();
    known(service, named).await?;
    let directory = service.directory().await?;
    let states = stored(service.store().kek_states().await)?;
    let warnings = active(&directory, &states, &defaults)
        .and_then(|()| judge(&directory, &defaults, anyway))
        .map_err(|reason| conflict(EkmCode::EE31, reason))?;
    let before = stored(service.store().defaults().await)?;
    let mut event = event("kek-default", operator);
    event.kind = Kind::ConfigurationManagement;
    event.keks = labels(&defaults.kek1, &defaults.kek2);
    record(service, event).await?;
    stored(service.store().set_defaults(&defaults).await)?;
    let defaults = stored(service.store().defaults().await)?;
    Ok(Reply::DefaultsSet {
        defaults,
        before: Some(before),
        warnings,
    })
}

/// That each may be written under: else every create that names none would be refused.
fn active(directory: &Directory, states: &KekStates, defaults: &Defaults) -> Result<(), String> {
    for named in [&defaults.kek1, &defaults.kek2].into_iter().flatten() {
        let Ok(kek) = directory.by_label(&named.label) else {
            continue;
        };
        let standing = states.of(&kek.hash);
        if let Some(standing) = standing.filter(|standing| standing.state != KekState::Active) {
            return Err(format!(
                "KEK {0} is {1}, so it cannot be a default: it was {2}; name one that is active (ekm kek list), or take that back first: ekm kek activate {0}",
                kek.label,
                standing.state,
                standing.words()
            ));
        }
    }
    Ok(())
}

/// What is to be thought of, or why these cannot be the defaults.
fn judge(directory: &Directory, defaults: &Defaults, anyway: bool) -> Result<Vec<String>, String> {
    let named: Vec<&KekRef> = [&defaults.kek1, &defaults.kek2]
        .into_iter()
        .flatten()
        .collect();
    let partners: Vec<&KekRef> = named
        .iter()
        .copied()
        .filter(|kek| {
            directory
                .by_label(&kek.label)
                .is_ok_and(|known| known.partner.is_some())
        })
        .collect();
    let mut warnings: Vec<String> = partners
        .iter()
        .filter(|kek| kek.encoding == Encoding::Label)
        .map(|kek| {
            format!(
                "{0} is a partner's KEK, and its EEDKs will name it by our label; a partner may call the same key otherwise, so hash is usual: {0}:hash",
                kek.label
            )
        })
        .collect();
    if named.is_empty() || partners.len() < named.len() {
        return Ok(warnings);
    }
    if !anyway {
        let labels: Vec<String> = partners.iter().map(|kek| kek.label.to_string()).collect();
        return Err(format!(
            "{} {}, so no key here could read a cartridge under these defaults, and every create would be refused; name a KEK of your own as one of the two, or say --anyway",
            labels.join(" and "),
            if labels.len() == 1 {
                "is a partner's KEK"
            } else {
                "are partners' KEKs"
            }
        ));
    }
    warnings.push(
        "no key here can read what is written under these defaults, so creates are refused"
            .to_owned(),
    );
    Ok(warnings)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use time::OffsetDateTime;

    use super::*;
    use crate::certificates::Vouched;
    use crate::key::KekHash;
    use crate::store::{Certificates, Partner};

    fn judged(kek1: &str, kek2: Option<&str>, anyway: bool) -> Result<Vec<String>, String> {
        let partner = |label: &str| Partner {
            label: label.parse().unwrap(),
            hash: KekHash::of_spki(label.as_bytes()),
            spki: label.as_bytes().to_vec(),
            certificate: Vec::new(),
            vouched: Vouched::Itself,
            operator: "operator:test".to_owned(),
            confirmed: OffsetDateTime::UNIX_EPOCH,
            seals: Vec::new(),
        };
        let certificates = Certificates {
            partners: vec![partner("BANK"), partner("BROKER")],
            own: Vec::new(),
        };
        let none: [(&str, &[crate::bridge::message::KekOnToken]); 0] = [];
        let directory = Directory::new(none, Arc::from([]), &certificates);
        let defaults = Defaults {
            kek1: Some(kek1.parse().unwrap()),
            kek2: kek2.map(|kek| kek.parse().unwrap()),
        };
        judge(&directory, &defaults, anyway)
    }

    #[test]
    fn partners_keks_alone_are_no_defaults_unless_that_is_said() {
        for kek2 in [None, Some("BROKER:hash")] {
            let refused = judged("BANK:hash", kek2, false).unwrap_err();
            assert!(refused.contains("no key here could read"), "{refused}");
            let warned = judged("BANK:hash", kek2, true).unwrap();
            assert_eq!(warned.len(), 1, "{warned:?}");
        }
        // One of our own beside it.
        assert!(judged("OURS", Some("BANK:hash"), false).unwrap().is_empty());
    }

    #[test]
    fn a_partners_kek_by_our_label_is_warned_of() {
        let warned = judged("OURS", Some("BANK"), false).unwrap();
        assert!(warned[0].contains("BANK:hash"), "{warned:?}");
    }
}
