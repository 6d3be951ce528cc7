//! Whole tables: given out, and taken in from elsewhere.

use time::OffsetDateTime;

use super::{Reply, conflict, drives, event, labels, record, stored, trust};
use crate::audit::{Event, Kind, Outcome};
use crate::key::DataKeyId;
use crate::problem::{EkmCode, Problem};
use crate::service::Service;
use crate::store::merge::{self, Changes, DriveRow, TableDump, Write};
use crate::store::{Drive, DriveKey, DriveState, VolumeKey};

use serde::{Deserialize, Serialize};

/// How tables are taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TakeMode {
    /// The newest row stands.
    Merge,
    /// Ours become the other's.
    Rewrite,
}

/// What came of taking tables in.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TablesTaken {
    /// What was, or would be, written.
    pub changes: Changes,
    /// Seal keys of removed partners that could not be destroyed.
    pub seals_left: Vec<String>,
}

/// The tables, as they are now.
pub(super) async fn give(service: &Service, operator: &str) -> Result<Reply, Problem> {
    let mut event = event("export", operator);
    event.kind = Kind::DataSynchronization;
    record(service, event).await?;
    stored(service.store().dump_tables().await).map(|dump| Reply::Tables(Box::new(dump)))
}

/// Takes tables in, or says only what that would change.
pub(super) async fn take(
    service: &Service,
    operator: &str,
    theirs: &TableDump,
    mode: TakeMode,
    apply: bool,
) -> Result<Reply, Problem> {
    let now = OffsetDateTime::now_utc();
    let refuse = |why: String| Err(conflict(EkmCode::EE25, why));
    let faults = theirs.faults(now);
    if let Some(fault) = faults.first() {
        return refuse(match faults.len() {
            1 => format!("nothing was taken in: {fault}"),
            more => format!(
                "nothing was taken in: {fault}; and {} more faults",
                more - 1
            ),
        });
    }
    let ours = stored(service.store().dump_tables().await)?;
    let changes = match mode {
        TakeMode::Merge => merge::merge(&ours, theirs),
        TakeMode::Rewrite => merge::rewrite(&ours, theirs, now),
    };
    if let Some(fault) = table_fault(&ours, &changes) {
        return refuse(format!("nothing was taken in: {fault}"));
    }
    if !apply || changes.is_empty() {
        return Ok(Reply::TablesTaken(Box::new(TablesTaken {
            changes,
            seals_left: Vec::new(),
        })));
    }
    for event in events(&changes, operator, mode) {
        record(service, event).await?;
    }
    stored(service.store().apply(&changes).await)?;
    service.forget_seals();
    let mut seals_left = Vec::new();
    for write in &changes.partners {
        if let (None, Some(former)) = (
            &write.row.partner,
            write.over.as_ref().and_then(|over| over.partner.as_ref()),
        ) {
            seals_left.extend(service.tokens().unseal(&former.seals).await);
        }
    }
    for Write { row, over } in &changes.drives {
        let former = over.as_ref().map(|over| &over.drive.key);
        if let Some(former) = former.filter(|key| row.deleted || **key != row.drive.key) {
            trust::withdraw(service, operator, &row.drive.serial, former).await?;
        }
    }
    Ok(Reply::TablesTaken(Box::new(TablesTaken {
        changes,
        seals_left,
    })))
}

/// Some of the history.
pub(super) async fn give_volumes(
    service: &Service,
    after: Option<(DataKeyId, u32)>,
    most: u32,
) -> Result<Reply, Problem> {
    let most = most.clamp(1, 10_000);
    stored(service.store().volumes_after(after, most).await).map(Reply::Volumes)
}

/// Takes some of another's history in.
pub(super) async fn take_volumes(
    service: &Service,
    operator: &str,
    keys: &[VolumeKey],
    apply: bool,
) -> Result<Reply, Problem> {
    let later = OffsetDateTime::now_utc() + merge::CLOCKS_APART;
    for key in keys {
        let fault = if key.created > later {
            "is dated later than this computer's clock; set the clocks right"
        } else if key.generation == 0 || !(1..=2).contains(&key.eedks.len()) {
            "has not one or two EEDKs and a generation from 1"
        } else if key.eedks.iter().any(|stored| stored.eedk.dki() != key.dki) {
            "has an EEDK of another data key"
        } else {
            continue;
        };
        return Err(conflict(
            EkmCode::EE25,
            format!(
                "nothing of these was taken in: data key {} {fault}",
                key.dki
            ),
        ));
    }
    if apply {
        let mut event = event("import-history", operator);
        event.kind = Kind::DataSynchronization;
        event.outcome = Outcome::Intent;
        event.detail = keys.first().zip(keys.last()).map(|(first, last)| {
            format!(
                "{} keys of volumes, {} to {}",
                keys.len(),
                first.dki,
                last.dki
            )
        });
        record(service, event).await?;
    }
    stored(service.store().take_volumes(keys, operator, apply).await).map(Reply::VolumesTaken)
}

/// What would be wrong with the drive table after the changes: rows that could never serve, two
/// drives with one key or name.
fn table_fault(ours: &TableDump, changes: &Changes) -> Option<String> {
    let mut rows: std::collections::BTreeMap<&str, &DriveRow> = ours
        .drives
        .iter()
        .flatten()
        .map(|row| (row.drive.serial.as_str(), row))
        .collect();
    for write in &changes.drives {
        rows.insert(write.row.drive.serial.as_str(), &write.row);
    }
    let active: Vec<&Drive> = rows
        .values()
        .filter(|row| !row.deleted && row.drive.state == DriveState::Active)
        .map(|row| &row.drive)
        .collect();
    let mut keys = std::collections::BTreeMap::new();
    let mut names = std::collections::BTreeMap::new();
    for drive in active {
        let written = changes
            .drives
            .iter()
            .any(|write| write.row.drive.serial == drive.serial);
        if written && let Err(fault) = drives::coherent(drive) {
            return Some(format!("drive {}: {fault}", drive.serial));
        }
        let twice = |other: Option<&Drive>, what: &str| {
            other.map(|other| {
                format!(
                    "drives {} and {} would have one {what}; no two drives have one",
                    other.serial, drive.serial
                )
            })
        };
        if let DriveKey::Pinned(spki) = &drive.key
            && let Some(fault) = twice(keys.insert(spki.as_slice(), drive), "public key")
        {
            return Some(fault);
        }
        if let Some(wwn) = &drive.wwn
            && let Some(fault) = twice(names.insert(wwn.to_string(), drive), "WWN")
        {
            return Some(fault);
        }
    }
    None
}

/// A record for each row, before it is written.
fn events(changes: &Changes, operator: &str, mode: TakeMode) -> Vec<Event> {
    let how = match mode {
        TakeMode::Merge => "import, merged",
        TakeMode::Rewrite => "import, rewritten",
    };
    let new = |action: &str, detail: String| {
        let mut event = event(action, operator);
        event.outcome = Outcome::Intent;
        event.kind = Kind::DataSynchronization;
        event.detail = Some(detail);
        event
    };
    let mut all = Vec::new();
    for Write { row, over } in &changes.drives {
        let (action, what) = match (over, row.deleted) {
            (_, true) => ("drive-del", "deleted"),
            (None, false) => ("drive-add", "added"),
            (Some(_), false) => ("drive-mod", "changed"),
        };
        let mut event = new(action, format!("{how}: {what}"));
        event.drive = Some(row.drive.serial.to_string());
        event.keks = labels(&row.drive.kek1, &row.drive.kek2);
        event.custody = Some(row.drive.custody.to_string());
        if let DriveKey::Pinned(spki) = &row.drive.key {
            event.drive_key = Some(crate::key::KekHash::of_spki(spki).to_string());
        }
        all.push(event);
    }
    if let Some(write) = &changes.defaults {
        let mut event = new("kek-default", how.to_owned());
        event.keks = labels(&write.row.defaults.kek1, &write.row.defaults.kek2);
        all.push(event);
    }
    for row in &changes.keks {
        let mut event = new(
            "kek-register",
            format!("{how}: public-key hash {}", row.kek.hash),
        );
        event.keks = vec![row.kek.label.to_string()];
        all.push(event);
    }
    for Write { row, .. } in &changes.partners {
        let action = if row.partner.is_some() {
            "partner-add"
        } else {
            "partner-remove"
        };
        let mut event = new(action, format!("{how}: public-key hash {}", row.hash));
        event.keks = vec![row.label.to_string()];
        all.push(event);
    }
    all
}
