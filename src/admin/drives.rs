//! Rows of the drive table.

use super::{Change, DriveChange, Reply, conflict, event, known, labels, record, stored};
use crate::bridge::message::Custody;
use crate::key::{KekHash, KekRef, SedkForm};
use crate::problem::{EkmCode, Problem};
use crate::service::Service;
use crate::store::{Drive, DriveKey, DriveState};
use crate::tls::PeerId;

pub(super) async fn put_drive(
    service: &Service,
    operator: &str,
    action: &str,
    before: Option<&Drive>,
    mut drive: Drive,
    change: DriveChange,
) -> Result<Reply, Problem> {
    let DriveChange {
        wwn,
        kek1,
        kek2,
        key,
        form,
        custody,
        speakers,
        no_speakers,
        accept,
    } = change;
    let named: Vec<KekRef> = [&kek1, &kek2]
        .into_iter()
        .filter_map(|kek| match kek {
            Change::Set(kek) => Some(kek.clone()),
            Change::Keep | Change::Clear => None,
        })
        .collect();
    drive.wwn = wwn.or(drive.wwn);
    drive.kek1 = kek1.of(drive.kek1);
    drive.kek2 = kek2.of(drive.kek2);
    drive.key = key.unwrap_or(drive.key);
    drive.form = form.unwrap_or(drive.form);
    drive.custody = custody.unwrap_or(drive.custody);
    drive.speakers = speakers_of(drive.speakers, speakers.unwrap_or_default(), &no_speakers)
        .map_err(|reason| conflict(EkmCode::EE25, format!("drive {}: {reason}", drive.serial)))?;
    let mut named = named;
    if accept {
        drive.state = DriveState::Active;
        // What its row names was not looked at while it waited.
        named = [&drive.kek1, &drive.kek2]
            .into_iter()
            .flatten()
            .cloned()
            .collect();
    }
    check(service, &drive, &named).await?;
    let mut event = event(action, operator);
    let speakers: Vec<String> = drive.speakers.iter().map(ToString::to_string).collect();
    event.detail = Some(format!(
        "{}, form {}, wwn {}, speakers: {}",
        match drive.state {
            DriveState::Active => "active",
            DriveState::Pending => "pending",
        },
        drive.form,
        drive
            .wwn
            .map_or_else(|| "none".to_owned(), |wwn| wwn.to_string()),
        if speakers.is_empty() {
            "itself".to_owned()
        } else {
            format!("itself, {}", speakers.join(", "))
        }
    ));
    event.drive = Some(drive.serial.to_string());
    event.keks = labels(&drive.kek1, &drive.kek2);
    event.custody = Some(drive.custody.to_string());
    if let DriveKey::Pinned(spki) = &drive.key {
        event.drive_key = Some(KekHash::of_spki(spki).to_string());
    }
    record(service, event).await?;
    stored(service.store().change_drive(before, &drive).await)?;
    Ok(Reply::Drives(vec![drive]))
}

/// The speakers without those that go and with those that come, each once; or why not.
fn speakers_of(
    mut speakers: Vec<PeerId>,
    more: Vec<PeerId>,
    gone: &[PeerId],
) -> Result<Vec<PeerId>, String> {
    if let Some(absent) = gone.iter().find(|peer| !speakers.contains(peer)) {
        let there: Vec<String> = speakers.iter().map(ToString::to_string).collect();
        let there = if there.is_empty() {
            "none besides the drive itself; who may speak by [[policy.peers]] is taken away in ekm.toml".to_owned()
        } else {
            there.join(", ")
        };
        return Err(format!(
            "{absent} is none of its speakers, and nothing was changed; its speakers are {there}"
        ));
    }
    speakers.retain(|peer| !gone.contains(peer));
    for peer in more {
        if !speakers.contains(&peer) {
            speakers.push(peer);
        }
    }
    Ok(speakers)
}

/// Whether a row by itself could ever serve.
pub(crate) fn coherent(drive: &Drive) -> Result<(), &'static str> {
    match (&drive.key, drive.form) {
        (DriveKey::None, SedkForm::T10Plain) => {}
        (DriveKey::None, _) => {
            return Err(
                "give its public key with --key PEM, or --ca for a drive with a certificate",
            );
        }
        (DriveKey::Pinned(spki), form) => {
            let bits = crate::bridge::rsa_bits(spki);
            match (bits, form) {
                (None, _) => {
                    return Err("its public key is not an RSA key of 2048 to 8192 bits");
                }
                (Some(bits), SedkForm::T10Wrapped) if bits != 2048 => {
                    return Err("form t10-02h takes RSA-2048 only (parameter set 0000h)");
                }
                (Some(_), _) => {}
            }
        }
        (DriveKey::Certified, _) => {}
    }
    if drive.form == SedkForm::T10Plain && drive.custody != Custody::Host {
        return Err("form t10-00h is the key in clear; say so with --custody host");
    }
    if drive.form == SedkForm::T10Wrapped && drive.wwn.is_none() {
        return Err(
            "form t10-02h binds the key to the drive's WWN; give it with --wwn, or choose --form rsa-oaep-sha1",
        );
    }
    Ok(())
}

/// A row that could never serve is refused now, not at three in the morning.
pub(super) async fn check(
    service: &Service,
    drive: &Drive,
    named: &[KekRef],
) -> Result<(), Problem> {
    let refuse = |reason: &str| {
        Err(conflict(
            EkmCode::EE25,
            format!("drive {}: {reason}", drive.serial),
        ))
    };
    if let Err(fault) = coherent(drive) {
        return refuse(fault);
    }
    // Two rows with one key, or one name: what is wrapped for the one opens in the other.
    for other in stored(service.store().drives().await)? {
        // One that waits has nothing but its own word for them.
        if other.serial == drive.serial || other.state == DriveState::Pending {
            continue;
        }
        if matches!(drive.key, DriveKey::Pinned(_)) && other.key == drive.key {
            return refuse(&format!(
                "its public key is that of drive {}; no two drives have one: is it the right file?",
                other.serial
            ));
        }
        if drive.wwn.is_some() && other.wwn == drive.wwn {
            return refuse(&format!(
                "its WWN is that of drive {}; no two drives have one",
                other.serial
            ));
        }
    }
    known(service, named).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peers(names: &[&str]) -> Vec<PeerId> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    #[test]
    fn speakers_are_added_once_and_taken_away_by_name() {
        let two = || peers(&["proxy:host1", "proxy:host2"]);
        let more = speakers_of(two(), peers(&["proxy:host3", "proxy:host1"]), &[]);
        let three = peers(&["proxy:host1", "proxy:host2", "proxy:host3"]);
        assert_eq!(more.unwrap(), three);
        let fewer = speakers_of(two(), Vec::new(), &peers(&["proxy:host1"]));
        assert_eq!(fewer.unwrap(), peers(&["proxy:host2"]));
        let refused = speakers_of(two(), Vec::new(), &peers(&["proxy:host4"])).unwrap_err();
        for named in ["proxy:host4", "proxy:host1, proxy:host2"] {
            assert!(refused.contains(named), "{refused}");
        }
    }
}
