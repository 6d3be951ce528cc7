//! Which KEKs may be written under, and who may take part in it.

use super::{ExpiredKeks, GrantedKek, Known, PolicyConfig, Refusal, UnprovedKeks, backups, copies};
use crate::bridge::message::Custody;
use crate::key::KekRef;
use crate::keystore::{Holder, KnownKek, WrapKek};
use crate::store::KekState;

/// The KEKs to write under, each fit for it.
pub(super) fn write_keks(
    known: Known<'_>,
    labels: [Option<&KekRef>; 2],
    custody: Custody,
) -> Result<Vec<GrantedKek>, Refusal> {
    let mut keks: Vec<GrantedKek> = Vec::new();
    let mut chosen: Vec<&KnownKek> = Vec::new();
    for label in labels.into_iter().flatten() {
        let kek = known.directory.by_label(&label.label)?;
        let writers = fit(known, kek, custody)?;
        let granted = GrantedKek {
            kek: WrapKek {
                label: kek.label.clone(),
                encoding: label.encoding,
                hash: kek.hash,
                spki: kek.spki.clone(),
                writers: writers.clone(),
            },
            provable: !writers.is_empty(),
            sealed: kek.partner.is_some(),
            registered: kek.registered,
        };
        if !keks.contains(&granted) {
            keks.push(granted);
            chosen.push(kek);
        }
    }
    if !keks.iter().any(|granted| granted.provable) {
        let labels: Vec<String> = keks
            .iter()
            .map(|granted| granted.kek.label.to_string())
            .collect();
        let (label, reason) = (
            labels.join(" and "),
            "no token here holds a private half, so nobody here could read the cartridge"
                .to_owned(),
        );
        let unseen = known.directory.unseen();
        // A partner's private half is the partner's, whatever token comes up.
        if unseen.is_empty() || chosen.iter().all(|kek| kek.partner.is_some()) {
            return Err(Refusal::KekUnfit { label, reason });
        }
        return Err(Refusal::OutOfReach {
            label,
            reason,
            away: unseen.to_vec(),
        });
    }
    copies::required(known.config.require_copy, &chosen)?;
    backups::required(known.config.backup_before_serving, &chosen)?;
    Ok(keks)
}

/// The tokens that may prove an EEDK under this KEK, none where nobody needs to; or why it may
/// not be written.
fn fit(known: Known<'_>, kek: &KnownKek, custody: Custody) -> Result<Vec<String>, Refusal> {
    let config = known.config;
    let unfit = |reason: String| Refusal::KekUnfit {
        label: kek.label.to_string(),
        reason,
    };
    if let Some(standing) = known.states.of(&kek.hash) {
        match standing.state {
            KekState::Active => {}
            KekState::Retired => {
                return Err(unfit(format!(
                    "it was {}; cartridges under it are still read; write under another KEK, or take that back (ekm kek activate {})",
                    standing.words(),
                    kek.label
                )));
            }
            KekState::Revoked | KekState::Deleted => {
                return Err(Refusal::Revoked {
                    label: kek.label.clone(),
                    words: standing.words(),
                });
            }
        }
    }
    if let Some(partner) = &kek.partner
        && !known.sealed.contains(&partner.digest)
    {
        return Err(Refusal::Unverified {
            label: kek.label.clone(),
        });
    }
    let expired = kek.validity.and_then(|validity| validity.fault(known.now));
    if let (Some(fault), ExpiredKeks::Refuse) = (expired, config.expired_keks) {
        return Err(unfit(expired_words(kek, &fault)));
    }
    // The registry says where it is, or else any that was not seen yet may have it.
    let away = if kek.away.is_empty() {
        known.directory.unseen()
    } else {
        &kek.away
    };
    let now = |reason: String| {
        if away.is_empty() {
            return unfit(reason);
        }
        Refusal::OutOfReach {
            label: kek.label.to_string(),
            reason,
            away: away.to_vec(),
        }
    };
    if kek.holders.is_empty() && kek.away.is_empty() {
        if let Some((token, reason)) = kek.refused.first() {
            return Err(now(format!("token {token} holds it, but {reason}")));
        }
        if kek.partner.is_some() {
            return Ok(Vec::new());
        }
        return match config.unproved_keks {
            UnprovedKeks::Allow => Ok(Vec::new()),
            UnprovedKeks::Refuse => Err(now(
                "its private half is not on any token here, so the EEDK cannot be proved"
                    .to_owned(),
            )),
        };
    }
    writers(config, kek, custody).map_err(now)
}

/// The holders of the KEK that may take part in writing under it, each by its own custody and
/// provenance: that another one may is no word about a software keystore.
fn writers(config: &PolicyConfig, kek: &KnownKek, custody: Custody) -> Result<Vec<String>, String> {
    let of_custody: Vec<&Holder> = kek
        .holders
        .iter()
        .filter(|holder| holder.custody <= custody)
        .collect();
    let writers: Vec<String> = of_custody
        .iter()
        .filter(|holder| config.write_provenance.contains(&holder.provenance))
        .map(|holder| holder.token.clone())
        .collect();
    if !writers.is_empty() {
        return Ok(writers);
    }
    Err(match (of_custody.first(), kek.holders.is_empty()) {
        (Some(holder), _) => format!(
            "its provenance is {} (on {}), and policy.write_provenance does not list that",
            holder.provenance, holder.token
        ),
        (None, false) => {
            "it was made for custody host, and the drive is not enrolled for that".to_owned()
        }
        (None, true) => "no token that is up holds its private half".to_owned(),
    })
}

/// An expired KEK reads for ever; who wants to write has three ways.
fn expired_words(kek: &KnownKek, fault: &str) -> String {
    let label = &kek.label;
    let renew = if kek.partner.is_some() {
        format!("ask the partner for a new one (ekm kek partner remove {label}, then add)")
    } else {
        format!("give it a new one (ekm kek cert import {label} FILE)")
    };
    format!(
        "{fault}; cartridges under it are still read; {renew}, write under another KEK, or set policy.expired_keks = \"allow\""
    )
}
