//! Drives that wait for an operator.

use serde::{Deserialize, Serialize};

use super::drives::put_drive;
use super::{DriveChange, Reply, conflict, event, no_drive, record, stored};
use crate::drive::DriveSerial;
use crate::key::{KekHash, SedkForm};
use crate::problem::{EkmCode, Problem};
use crate::service::Service;
use crate::store::{Drive, DriveKey, DriveState, Seen};

/// A drive, and what it showed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DriveSeen {
    /// Its row.
    pub drive: Drive,
    /// What it showed, where that was noted.
    pub seen: Option<Seen>,
}

/// Drives that wait, and those that showed another key than the one that is trusted.
pub(super) async fn list(service: &Service) -> Result<Reply, Problem> {
    let drives = stored(service.store().drives().await)?;
    let mut seen = stored(service.store().sightings().await)?;
    let drives = drives.into_iter().filter_map(|drive| {
        let place = seen.iter().position(|seen| seen.serial == drive.serial);
        let seen = place.map(|place| seen.swap_remove(place));
        let other = seen.as_ref().is_some_and(|seen| seen.other.is_some());
        (drive.state == DriveState::Pending || other).then_some(DriveSeen { drive, seen })
    });
    Ok(Reply::DrivesSeen(drives.collect()))
}

/// Pins the key that a drive showed, if it is the one whose fingerprint the operator compared.
pub(super) async fn accept(
    service: &Service,
    operator: &str,
    serial: &DriveSerial,
    fingerprint: Option<KekHash>,
    mut change: DriveChange,
) -> Result<Reply, Problem> {
    let mut drive = waiting(service, serial).await?;
    let before = drive.clone();
    let refuse = |reason: String| {
        Err(conflict(
            EkmCode::EE2B,
            format!("drive {serial} is not accepted and waits on: {reason}"),
        ))
    };
    match (&drive.key, fingerprint) {
        (DriveKey::Pinned(spki), Some(compared)) => {
            let shown = KekHash::of_spki(spki);
            if shown != compared {
                return refuse(format!(
                    "the key that it showed is sha256:{shown}, not sha256:{compared}; if the drive itself shows the latter, somebody else spoke for it: ekm drive reject {serial}, then ekm drive add {serial} --key PEM"
                ));
            }
        }
        (DriveKey::Pinned(_), None) => {
            return refuse(
                "compare the fingerprint of its key with what the drive shows, and give it with --fingerprint".to_owned(),
            );
        }
        (DriveKey::Certified, None) => {}
        (DriveKey::Certified, Some(_)) => {
            return refuse(
                "it has a certificate of the drive CA, and another key in each session; accept it with --ca instead of a fingerprint".to_owned(),
            );
        }
        (DriveKey::None, _) => {
            return refuse(format!(
                "it showed no key that could be pinned; ekm drive mod {serial} --key PEM --accept"
            ));
        }
    }
    // With a WWN the form that binds the key to it is possible, and is the one for drives of T10.
    if change.form.is_none() && change.wwn.is_some() && drive.key != DriveKey::Certified {
        change.form = Some(SedkForm::T10Wrapped);
    }
    change.accept = true;
    drive.state = DriveState::Active;
    put_drive(
        service,
        operator,
        "drive-accept",
        Some(&before),
        drive,
        change,
    )
    .await
}

/// Says no to a drive that waits. It is not noted again when it asks again.
pub(super) async fn reject(
    service: &Service,
    operator: &str,
    serial: &DriveSerial,
) -> Result<Reply, Problem> {
    let drive = waiting(service, serial).await?;
    let mut event = event("drive-reject", operator);
    event.drive = Some(serial.to_string());
    if let DriveKey::Pinned(spki) = &drive.key {
        event.drive_key = Some(KekHash::of_spki(spki).to_string());
    }
    record(service, event).await?;
    stored(service.store().delete_drive(serial).await)?;
    Ok(Reply::Done)
}

async fn waiting(service: &Service, serial: &DriveSerial) -> Result<Drive, Problem> {
    let drive = stored(service.store().drive(serial).await)?.ok_or_else(|| no_drive(serial))?;
    match drive.state {
        DriveState::Pending => Ok(drive),
        DriveState::Active => Err(conflict(
            EkmCode::EE25,
            format!(
                "drive {serial} does not wait, it is accepted already (ekm drive show {serial})"
            ),
        )),
    }
}
