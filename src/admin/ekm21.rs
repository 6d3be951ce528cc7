//! The drive table and the defaults of an EKM 2.1, taken in so that a second time changes nothing.

use serde::{Deserialize, Serialize};

use super::{Reply, event, labels, record, stored};
use crate::audit::Kind;
use crate::bridge::message::Custody;
use crate::drive::{DriveSerial, Wwn};
use crate::key::{KekRef, SedkForm};
use crate::problem::Problem;
use crate::service::Service;
use crate::store::{Defaults, Drive, DriveKey, DriveState};

/// A drive as another key manager's table has it: without the key that a data key would go to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImportedDrive {
    /// Its serial.
    pub serial: DriveSerial,
    /// Its world-wide name.
    pub wwn: Option<Wwn>,
    /// First KEK for its new cartridges.
    pub kek1: Option<KekRef>,
    /// Second KEK.
    pub kek2: Option<KekRef>,
}

/// What came of one of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "outcome")]
pub enum Taken {
    /// It was not there, and is now (or would be).
    Added,
    /// It is there with these values.
    Same,
    /// It is there with others, which stay.
    Kept {
        /// What differs.
        why: String,
    },
    /// It was deleted here, and stays deleted.
    Deleted,
}

/// What came of taking them in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakenIn {
    /// Each drive, in the order given.
    pub drives: Vec<(DriveSerial, Taken)>,
    /// The defaults; none where none were given.
    pub defaults: Option<Taken>,
}

/// Adds drives that wait for their enrolment, and the defaults where there are none. With `apply` false
/// it says what would be done.
///
/// That a label names a KEK is not looked at: the KEKs come into the tokens after this. A drive that
/// waits gets no key, and the command that accepts it names the labels again.
pub(super) async fn take_in(
    service: &Service,
    operator: &str,
    drives: Vec<ImportedDrive>,
    defaults: &Defaults,
    apply: bool,
) -> Result<Reply, Problem> {
    let mut taken = Vec::with_capacity(drives.len());
    for drive in drives {
        let serial = drive.serial.clone();
        taken.push((serial, take_drive(service, operator, drive, apply).await?));
    }
    Ok(Reply::TakenIn(TakenIn {
        drives: taken,
        defaults: take_defaults(service, operator, defaults, apply).await?,
    }))
}

async fn take_drive(
    service: &Service,
    operator: &str,
    drive: ImportedDrive,
    apply: bool,
) -> Result<Taken, Problem> {
    if let Some(there) = stored(service.store().drive(&drive.serial).await)? {
        return Ok(compare(&there, &drive));
    }
    if !apply {
        return Ok(Taken::Added);
    }
    let mut event = event("drive-import", operator);
    event.drive = Some(drive.serial.to_string());
    event.keks = labels(&drive.kek1, &drive.kek2);
    event.detail = Some("from EKM 2.1; it waits for its enrolment".to_owned());
    record(service, event).await?;
    let row = Drive {
        serial: drive.serial,
        wwn: drive.wwn,
        kek1: drive.kek1,
        kek2: drive.kek2,
        key: DriveKey::None,
        form: SedkForm::T10Wrapped,
        custody: Custody::Token,
        speakers: Vec::new(),
        state: DriveState::Pending,
    };
    // One that an operator deleted stays deleted.
    let added = stored(service.store().discover_drive(&row).await)?;
    Ok(if added { Taken::Added } else { Taken::Deleted })
}

fn compare(there: &Drive, drive: &ImportedDrive) -> Taken {
    let mut differs = Vec::new();
    let text = |kek: &Option<KekRef>| {
        kek.as_ref()
            .map_or_else(|| "none".to_owned(), ToString::to_string)
    };
    for (name, here, ekm) in [
        ("kek1", &there.kek1, &drive.kek1),
        ("kek2", &there.kek2, &drive.kek2),
    ] {
        if here != ekm {
            differs.push(format!(
                "{name} is {} here and {} in EKM",
                text(here),
                text(ekm)
            ));
        }
    }
    if drive.wwn.is_some() && there.wwn.is_some() && there.wwn != drive.wwn {
        differs.push("it has another WWN here".to_owned());
    }
    if differs.is_empty() {
        Taken::Same
    } else {
        Taken::Kept {
            why: differs.join("; "),
        }
    }
}

async fn take_defaults(
    service: &Service,
    operator: &str,
    defaults: &Defaults,
    apply: bool,
) -> Result<Option<Taken>, Problem> {
    if *defaults == Defaults::default() {
        return Ok(None);
    }
    let there = stored(service.store().defaults().await)?;
    if there == *defaults {
        return Ok(Some(Taken::Same));
    }
    if there != Defaults::default() {
        return Ok(Some(Taken::Kept {
            why: format!(
                "here they are {}",
                labels(&there.kek1, &there.kek2).join(" and ")
            ),
        }));
    }
    if apply {
        let mut event = event("kek-default", operator);
        event.kind = Kind::ConfigurationManagement;
        event.keks = labels(&defaults.kek1, &defaults.kek2);
        event.detail = Some("from EKM 2.1".to_owned());
        record(service, event).await?;
        stored(service.store().set_defaults(defaults).await)?;
    }
    Ok(Some(Taken::Added))
}
