//! States of KEKs: retired for writing, revoked, destroyed.

use serde::{Deserialize, Serialize};

use super::{Reply, conflict, event, record, stored, volumes};
use crate::audit::Outcome;
use crate::bridge::message::{Op, Reply as BridgeReply};
use crate::key::{KekHash, KekRef, KeyLabel};
use crate::keystore::KnownKek;
use crate::problem::{EkmCode, Problem};
use crate::service::{STARTING, Service};
use crate::store::{Defaults, KekStanding, KekState, RegisteredKek, StateChange};

/// What became of a KEK.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KekTurned {
    /// Its label.
    pub label: KeyLabel,
    /// Its public key's hash.
    pub hash: KekHash,
    /// Its state now.
    pub standing: KekStanding,
    /// What is to be thought of, one sentence each.
    pub warnings: Vec<String>,
}

/// Gives a KEK another state.
pub(super) async fn turn(
    service: &Service,
    operator: &str,
    label: &KeyLabel,
    to: KekState,
    reason: Option<String>,
) -> Result<Reply, Problem> {
    service.tokens().started(STARTING).await;
    let (label, hash) = volumes::named(service, label).await?;
    own(service, &label).await?;
    let states = stored(service.store().kek_states().await)?;
    let now = states.of(&hash).cloned();
    let state = states.state(&hash);
    let no = |why: String| Err(conflict(EkmCode::EE30, why));
    if to == KekState::Deleted {
        return delete(service, operator, &label, false).await;
    }
    let mut elsewhere = None;
    match (state, to) {
        (KekState::Deleted, _) if !on_a_token(service, &hash).await? => {
            return no(format!(
                "KEK {label} was destroyed and is on no token here, so it cannot become {to}; restore it from a copy first (ekm kek restore)"
            ));
        }
        (state, to) if state == to => {
            let words = now.as_ref().map(KekStanding::words).unwrap_or_default();
            return no(format!("KEK {label} is {state} already ({words})"));
        }
        (KekState::Active, KekState::Revoked) => {
            return no(format!(
                "KEK {label} is still written under; retire it first, so that no volume comes to it any more: ekm kek retire {label}"
            ));
        }
        (_, KekState::Revoked) => {
            known_to_all(service, now.as_ref()).await?;
            let impact = volumes::impact(service, &label, 3).await?;
            impact.refusal("revoked")?;
            elsewhere = impact.elsewhere;
        }
        (_, KekState::Active | KekState::Retired | KekState::Deleted) => {}
    }
    let action = match to {
        KekState::Active => "kek-activate",
        KekState::Retired => "kek-retire",
        KekState::Revoked => "kek-revoke",
        KekState::Deleted => "kek-delete",
    };
    let mut event = event(action, operator);
    event.keks = vec![label.to_string()];
    event.detail = Some(match &reason {
        Some(reason) => format!("it was {state}: {reason}"),
        None => format!("it was {state}"),
    });
    record(service, event).await?;
    if to == KekState::Retired {
        pin(service, &label).await?;
    }
    let change = StateChange {
        kek: hash,
        state: to,
        by: operator.to_owned(),
        reason,
        before: now.map(|standing| standing.row).unwrap_or_default(),
    };
    changed(service, &label, &change).await?;
    let mut warnings = match to {
        KekState::Active => Vec::new(),
        KekState::Retired | KekState::Revoked | KekState::Deleted => {
            still_named(service, &label).await?
        }
    };
    warnings.extend(elsewhere.map(|why| {
        format!(
            "cartridges that the history does not know may need {label}, and cannot be read now: {why}; ekm kek retire {label} has them read again"
        )
    }));
    turned(service, label, hash, warnings).await
}

/// That no other server can have written under a KEK since it was retired without the history
/// saying so.
async fn known_to_all(service: &Service, standing: Option<&KekStanding>) -> Result<(), Problem> {
    match standing {
        Some(standing) => service.history_is_whole(standing).await,
        None => Ok(()),
    }
}

async fn on_a_token(service: &Service, kek: &KekHash) -> Result<bool, Problem> {
    let directory = service.directory().await?;
    Ok(directory
        .by_hash(kek)
        .is_some_and(|kek| !kek.tokens.is_empty()))
}

/// Destroys a KEK on its tokens; with `elsewhere` also one that cartridges outside the history may
/// need.
pub(super) async fn delete(
    service: &Service,
    operator: &str,
    label: &KeyLabel,
    elsewhere: bool,
) -> Result<Reply, Problem> {
    let tokens = service.tokens();
    tokens.started(STARTING).await;
    tokens.look_again().await;
    let (label, hash) = volumes::named(service, label).await?;
    own(service, &label).await?;
    let states = stored(service.store().kek_states().await)?;
    if states.state(&hash) == KekState::Active {
        return Err(conflict(
            EkmCode::EE30,
            format!(
                "KEK {label} is still written under; retire it first, so that no volume comes to it any more: ekm kek retire {label}"
            ),
        ));
    }
    let named = still_named(service, &label).await?;
    if let Some(first) = named.first() {
        return Err(conflict(EkmCode::EE30, first.clone()));
    }
    known_to_all(service, states.of(&hash)).await?;
    let impact = volumes::impact(service, &label, 3).await?;
    impact.refusal("deleted")?;
    if let Some(why) = impact.elsewhere.filter(|_| !elsewhere) {
        return Err(conflict(
            EkmCode::EE30,
            format!(
                "KEK {label} is not destroyed: no volume of the history has an EEDK under it, but cartridges that the history does not know may need it: {why}. Where none of them is wanted any more, say so: ekm kek delete {label} --destroy --tapes-elsewhere"
            ),
        ));
    }
    let directory = service.directory().await?;
    let known = directory.keks().iter().filter(|kek| kek.hash == hash);
    let mut holders: Vec<&str> = Vec::new();
    for kek in known {
        if let Some(token) = kek.away.first() {
            return Err(Problem::unavailable(format!(
                "KEK {label} is on token {token} too, which is not up (ekm token status); nothing was destroyed"
            )));
        }
        let tokens = kek
            .tokens
            .iter()
            .chain(kek.refused.iter().map(|(token, _)| token));
        holders.extend(tokens.map(String::as_str));
    }
    holders.sort_unstable();
    holders.dedup();
    // Revoked before the first object goes: who makes it active meanwhile loses, or this does.
    let state = states.state(&hash);
    if state != KekState::Deleted {
        let judged = states.of(&hash);
        let change = StateChange {
            kek: hash,
            state: KekState::Revoked,
            by: operator.to_owned(),
            reason: judged.and_then(|standing| standing.reason.clone()),
            before: judged.map(|standing| standing.row).unwrap_or_default(),
        };
        let mut event = event("kek-revoke", operator);
        event.keks = vec![label.to_string()];
        event.detail = Some(format!("it was {state}, and is about to be destroyed"));
        record(service, event).await?;
        changed(service, &label, &change).await?;
    }
    for name in holders {
        destroy(service, operator, &label, hash, name).await?;
    }
    let standing = stored(service.store().kek_states().await)?;
    let standing = standing.of(&hash).cloned();
    if standing
        .as_ref()
        .is_none_or(|standing| standing.state != KekState::Deleted)
    {
        let change = StateChange {
            kek: hash,
            state: KekState::Deleted,
            by: operator.to_owned(),
            reason: standing
                .as_ref()
                .and_then(|standing| standing.reason.clone()),
            before: standing.map(|standing| standing.row).unwrap_or_default(),
        };
        let mut event = event("kek-delete", operator);
        event.keks = vec![label.to_string()];
        event.detail = Some(format!(
            "no token here has the key {hash} any more; its label stays taken"
        ));
        record(service, event).await?;
        changed(service, &label, &change).await?;
    }
    turned(service, label, hash, Vec::new()).await
}

async fn destroy(
    service: &Service,
    operator: &str,
    label: &KeyLabel,
    kek: KekHash,
    token: &str,
) -> Result<(), Problem> {
    let mut bridges = service.tokens().bridges().iter();
    let Some(bridge) = bridges.find(|bridge| bridge.name() == token) else {
        return Ok(());
    };
    let mut event = event("kek-delete", operator);
    event.outcome = Outcome::Intent;
    event.keks = vec![label.to_string()];
    event.token = Some(token.to_owned());
    record(service, event.clone()).await?;
    let done = bridge.ask(Op::Destroy { kek }).await;
    bridge.look().await;
    match done {
        Ok(reply) => {
            event.outcome = Outcome::Success;
            if let BridgeReply::Undone(objects) = reply {
                event.detail = Some(format!("{objects} objects destroyed"));
            }
            record(service, event).await
        }
        Err(fault) => {
            event.outcome = Outcome::Failure;
            event.detail = Some(fault.to_string());
            record(service, event).await?;
            Err(Problem {
                detail: format!(
                    "token {token} keeps KEK {label}: {fault}; nothing is read or written under a revoked one (ekm kek revoke {label}), or destroy it with the vendor's tool and run this again"
                ),
                ..Problem::from(&fault)
            })
        }
    }
}

async fn changed(service: &Service, label: &KeyLabel, change: &StateChange) -> Result<(), Problem> {
    if stored(service.store().set_kek_state(change).await)? {
        return Ok(());
    }
    Err(conflict(
        EkmCode::EE30,
        format!(
            "somebody else gave KEK {label} another state meanwhile; look at it (ekm kek show {label}) and ask again"
        ),
    ))
}

async fn turned(
    service: &Service,
    label: KeyLabel,
    hash: KekHash,
    warnings: Vec<String>,
) -> Result<Reply, Problem> {
    let states = stored(service.store().kek_states().await)?;
    let standing = states
        .of(&hash)
        .cloned()
        .ok_or_else(|| Problem::internal(format!("KEK {label} has no state")))?;
    Ok(Reply::KekTurned(Box::new(KekTurned {
        label,
        hash,
        standing,
        warnings,
    })))
}

/// A partner's KEK is theirs to retire.
async fn own(service: &Service, label: &KeyLabel) -> Result<(), Problem> {
    let certificates = stored(service.store().certificates().await)?;
    let mut partners = certificates.partners.iter();
    match partners.find(|partner| partner.label.same_as(label)) {
        Some(partner) => Err(conflict(
            EkmCode::EE31,
            format!(
                "{0} is a partner's KEK; take it away with: ekm kek partner remove {0}",
                partner.label
            ),
        )),
        None => Ok(()),
    }
}

/// Puts a KEK into the registry that is on a token only, so that its label stays its own.
async fn pin(service: &Service, label: &KeyLabel) -> Result<(), Problem> {
    let directory = service.directory().await?;
    let Ok(kek) = directory.by_label(label) else {
        return Ok(());
    };
    let (Some(custody), Some(provenance), Some(token)) =
        (kek.custody, kek.provenance, kek.tokens.first())
    else {
        return Ok(());
    };
    let row = RegisteredKek {
        label: kek.label.clone(),
        hash: kek.hash,
        spki: kek.spki.clone(),
        bits: kek.bits,
        token: token.clone(),
        custody,
        provenance,
    };
    stored(service.store().register_kek(&row).await)
}

/// Where a KEK is still named for new cartridges.
pub(super) async fn still_named(
    service: &Service,
    label: &KeyLabel,
) -> Result<Vec<String>, Problem> {
    let names = |kek: &Option<KekRef>| kek.as_ref().is_some_and(|kek| kek.label.same_as(label));
    let mut told = Vec::new();
    let defaults = stored(service.store().defaults().await)?;
    if names(&defaults.kek1) || names(&defaults.kek2) {
        told.push(format!(
            "the global labels still name KEK {label}; set others: ekm kek default{}",
            others(&defaults, label)
        ));
    }
    let drives = stored(service.store().drives().await)?;
    let drives: Vec<String> = drives
        .iter()
        .filter(|drive| names(&drive.kek1) || names(&drive.kek2))
        .map(|drive| drive.serial.to_string())
        .collect();
    if let Some(first) = drives.first() {
        told.push(format!(
            "KEK {label} is still named by the rows of drives, of {first} for one ({} in all); set others: ekm drive mod {first} --kek1 LABEL",
            drives.len()
        ));
    }
    Ok(told)
}

/// The options that name another KEK in the place of one. Both labels are set together, so the one
/// that stays is named as it stands: left out it would be dropped.
fn others(defaults: &Defaults, label: &KeyLabel) -> String {
    let option = |name: &str, kek: &Option<KekRef>| match kek {
        Some(kek) if kek.label.same_as(label) => format!(" {name} LABEL"),
        Some(kek) => format!(" {name} {kek}"),
        None => String::new(),
    };
    option("--kek1", &defaults.kek1) + &option("--kek2", &defaults.kek2)
}

/// Says of each KEK what operators said of it; those that were destroyed are left out.
pub(super) async fn name(service: &Service, keks: &mut Vec<KnownKek>) -> Result<(), Problem> {
    let states = stored(service.store().kek_states().await)?;
    keks.retain(|kek| {
        states.state(&kek.hash) != KekState::Deleted
            || !kek.tokens.is_empty()
            || !kek.refused.is_empty()
    });
    for kek in keks {
        kek.standing = states.of(&kek.hash).cloned();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_for_the_defaults_keeps_the_label_that_stays() {
        let defaults = Defaults {
            kek1: Some("TAPE2026A".parse().unwrap()),
            kek2: Some("TAPE2026B:hash".parse().unwrap()),
        };
        let advice = |label: &str| others(&defaults, &label.parse().unwrap());
        assert_eq!(advice("tape2026a"), " --kek1 LABEL --kek2 TAPE2026B:hash");
        assert_eq!(advice("TAPE2026B"), " --kek1 TAPE2026A:label --kek2 LABEL");
        let one = Defaults {
            kek2: None,
            ..defaults
        };
        assert_eq!(others(&one, &"TAPE2026A".parse().unwrap()), " --kek1 LABEL");
    }
}
