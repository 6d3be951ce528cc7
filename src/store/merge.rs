//! What becomes of this server's tables when another's are taken in: from a
//! file, or from a server beside it. No I/O, so that it can be looked at first.
//!
//! Merge: of each drive the newest row stands, and a deletion where both are of
//! one moment. A deletion is a row too, kept for ever, so whoever was deleted
//! does not come back with an older list. Whatever order servers merge in, they
//! end with the same drives and defaults. Rewrite: drives, defaults and partners
//! become the other's; but what was deleted here later than the other's row stays
//! deleted. In both a label keeps the key that it names, a drive that waits takes
//! no operator's place, and a partner's row that was confirmed here is removed or stays,
//! and is never replaced, since its seal is of this server's tokens.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};

use super::{Defaults, Drive, DriveState, Partner, RegisteredKek};
use crate::drive::DriveSerial;
use crate::key::{KekHash, KeyLabel};

pub use super::tables::{Tables, VolumesTaken};

/// How far ahead of this clock another's times may be: one row from far ahead
/// would stand against every later change.
pub const CLOCKS_APART: Duration = Duration::minutes(5);

/// A drive's row, or its deletion.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriveRow {
    /// The row, as it was where it is deleted.
    pub drive: Drive,
    /// When it was last changed, or deleted.
    #[serde(with = "time::serde::rfc3339")]
    pub updated: OffsetDateTime,
    /// Whether it is deleted.
    #[serde(default)]
    pub deleted: bool,
}

/// The global key labels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DefaultsRow {
    /// The labels.
    pub defaults: Defaults,
    /// When they were set; 1970 where that was not kept.
    #[serde(with = "time::serde::rfc3339")]
    pub updated: OffsetDateTime,
}

/// A row of the KEK registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KekRow {
    /// The KEK.
    pub kek: RegisteredKek,
    /// When it was registered.
    #[serde(with = "time::serde::rfc3339")]
    pub created: OffsetDateTime,
}

/// A partner's KEK, or its removal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartnerRow {
    /// What it is called.
    pub label: KeyLabel,
    /// Its public key's hash.
    pub hash: KekHash,
    /// When it was confirmed, or removed.
    #[serde(with = "time::serde::rfc3339")]
    pub updated: OffsetDateTime,
    /// The row; none where it was removed.
    pub partner: Option<Partner>,
}

/// A server's tables. What is `None` was not asked for, and nothing is done about it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableDump {
    /// The drive table, deletions among it.
    pub drives: Option<Vec<DriveRow>>,
    /// The global key labels.
    pub defaults: Option<DefaultsRow>,
    /// The KEK registry.
    pub keks: Option<Vec<KekRow>>,
    /// Partners' KEKs, removals among them.
    pub partners: Option<Vec<PartnerRow>>,
}

/// A row to be written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Write<T> {
    /// As it shall be.
    pub row: T,
    /// As it was when that was decided; it is not written where it has changed since.
    pub over: Option<T>,
}

/// What is to be done to our tables.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    /// Drives that are added, changed or deleted.
    pub drives: Vec<Write<DriveRow>>,
    /// The global key labels.
    pub defaults: Option<Write<DefaultsRow>>,
    /// KEKs that become known.
    pub keks: Vec<KekRow>,
    /// Partners' KEKs that are added or removed.
    pub partners: Vec<Write<PartnerRow>>,
    /// Where ours stands against the other's.
    pub kept: Vec<Kept>,
}

/// A row of ours that differs from the other's and stays as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum Kept {
    /// It was deleted later than the other's row was changed.
    #[error("drive {0} was deleted here later than that row was changed, and stays deleted")]
    DriveDeleted(DriveSerial),
    /// Ours is newer.
    #[error("drive {0} was changed here later, and stays as it is")]
    DriveNewer(DriveSerial),
    /// Theirs only waits for an operator.
    #[error("drive {0} waits for an operator there; what an operator decided here stays")]
    DriveWaits(DriveSerial),
    /// Ours are newer.
    #[error("the defaults were set here later, and stay")]
    DefaultsNewer,
    /// The label is another key's.
    #[error("the label {label} is the key {ours} here and {theirs} there; it stays ours")]
    LabelTaken {
        /// The label.
        label: KeyLabel,
        /// The key that it names here.
        ours: KekHash,
        /// The key that it names there.
        theirs: KekHash,
    },
    /// It was removed later than the other's row was confirmed.
    #[error("partner's KEK {0} was removed here later than it was confirmed there, and stays away")]
    PartnerRemoved(KeyLabel),
    /// Another row of the same key was confirmed here.
    #[error(
        "partner's KEK {0} was confirmed here with another certificate or at another time, and stays; remove it first to take the other"
    )]
    PartnerConfirmed(KeyLabel),
}

impl Changes {
    /// Whether nothing would be written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Self {
            drives,
            defaults,
            keks,
            partners,
            kept: _,
        } = self;
        drives.is_empty() && defaults.is_none() && keks.is_empty() && partners.is_empty()
    }
}

impl TableDump {
    /// What is wrong with tables that came from elsewhere, one sentence each.
    #[must_use]
    pub fn faults(&self, now: OffsetDateTime) -> Vec<String> {
        let Self {
            drives,
            defaults,
            keks,
            partners,
        } = self;
        let mut faults = Vec::new();
        let ahead = |at: OffsetDateTime| at > now + CLOCKS_APART;
        let late = |what: String| {
            format!("{what} is dated later than this computer's clock; set the clocks right")
        };
        let mut seen = BTreeSet::new();
        for row in drives.iter().flatten() {
            let serial = &row.drive.serial;
            if ahead(row.updated) {
                faults.push(late(format!("drive {serial}")));
            }
            if !seen.insert(serial.as_str().to_owned()) {
                faults.push(format!("drive {serial} is there twice"));
            }
        }
        if defaults.as_ref().is_some_and(|row| ahead(row.updated)) {
            faults.push(late("the row of the defaults".to_owned()));
        }
        let mut seen = BTreeSet::new();
        for KekRow { kek, created } in keks.iter().flatten() {
            let label = &kek.label;
            if ahead(*created) {
                faults.push(late(format!("KEK {label}")));
            }
            if kek.hash != KekHash::of_spki(&kek.spki) {
                faults.push(format!("KEK {label}: its hash is not that of its key"));
            }
            if !seen.insert(label.folded()) {
                faults.push(format!("the label {label} is there twice"));
            }
        }
        for row in partners.iter().flatten() {
            let label = &row.label;
            if ahead(row.updated) {
                faults.push(late(format!("partner's KEK {label}")));
            }
            if let Some(partner) = &row.partner {
                if row.hash != KekHash::of_spki(&partner.spki) || row.hash != partner.hash {
                    faults.push(format!(
                        "partner's KEK {label}: its hash is not that of its key"
                    ));
                }
                if !partner.label.same_as(label) {
                    faults.push(format!(
                        "partner's KEK {label}: its row says {}",
                        partner.label
                    ));
                }
                // A removed one's label may be a KEK's by now.
                if !seen.insert(label.folded()) {
                    faults.push(format!("the label {label} is there twice"));
                }
            }
        }
        let mut seen = BTreeSet::new();
        for row in partners.iter().flatten() {
            if !seen.insert(row.label.folded()) {
                faults.push(format!("partner's KEK {} is there twice", row.label));
            }
        }
        faults
    }
}

/// What merging theirs into ours changes.
#[must_use]
pub fn merge(ours: &TableDump, theirs: &TableDump) -> Changes {
    let mut changes = Changes::default();
    let here = by_serial(ours);
    for row in theirs.drives.iter().flatten() {
        let over = here.get(&row.drive.serial).copied();
        match over {
            Some(over) if over == row => {}
            Some(over) if rank(over) > rank(row) => {
                if !same(over, row) {
                    changes.kept.push(stands(over, row));
                }
            }
            _ => changes.drives.push(Write {
                row: row.clone(),
                over: over.cloned(),
            }),
        }
    }
    if let (Some(over), Some(row)) = (&ours.defaults, &theirs.defaults)
        && over != row
    {
        if settled(row) > settled(over) {
            changes.defaults = Some(Write {
                row: row.clone(),
                over: Some(over.clone()),
            });
        } else if over.defaults != row.defaults {
            changes.kept.push(Kept::DefaultsNewer);
        }
    }
    keks_and_partners(ours, theirs, &mut changes);
    changes
}

/// What has to change so that ours become theirs; rows that this decides are of `now`.
#[must_use]
pub fn rewrite(ours: &TableDump, theirs: &TableDump, now: OffsetDateTime) -> Changes {
    let mut changes = Changes::default();
    let here = by_serial(ours);
    for row in theirs.drives.iter().flatten() {
        let over = here.get(&row.drive.serial).copied();
        match over {
            Some(over) if same(over, row) => {}
            Some(over) if over.deleted && !row.deleted && over.updated >= row.updated => {
                changes.kept.push(stands(over, row));
            }
            Some(over) if by_operator(over) && !by_operator(row) => {
                changes
                    .kept
                    .push(Kept::DriveWaits(row.drive.serial.clone()));
            }
            Some(over) => changes.drives.push(Write {
                row: DriveRow {
                    updated: after(over.updated, row.updated, now),
                    ..row.clone()
                },
                over: Some(over.clone()),
            }),
            None => changes.drives.push(Write {
                row: row.clone(),
                over: None,
            }),
        }
    }
    if let Some(drives) = &theirs.drives {
        let there: BTreeSet<&DriveSerial> = drives.iter().map(|row| &row.drive.serial).collect();
        let gone = here
            .into_values()
            .filter(|row| !row.deleted && by_operator(row) && !there.contains(&row.drive.serial));
        changes.drives.extend(gone.map(|over| Write {
            row: DriveRow {
                updated: after(over.updated, over.updated, now),
                deleted: true,
                ..over.clone()
            },
            over: Some(over.clone()),
        }));
    }
    if let (Some(over), Some(row)) = (&ours.defaults, &theirs.defaults)
        && over.defaults != row.defaults
    {
        changes.defaults = Some(Write {
            row: DefaultsRow {
                updated: after(over.updated, row.updated, now),
                ..row.clone()
            },
            over: Some(over.clone()),
        });
    }
    keks_and_partners(ours, theirs, &mut changes);
    if let Some(partners) = &theirs.partners {
        let there: BTreeSet<String> = partners.iter().map(|row| row.label.folded()).collect();
        let gone = ours
            .partners
            .iter()
            .flatten()
            .filter(|row| row.partner.is_some() && !there.contains(&row.label.folded()));
        changes.partners.extend(gone.map(|over| Write {
            row: PartnerRow {
                updated: after(over.updated, over.updated, now),
                partner: None,
                ..over.clone()
            },
            over: Some(over.clone()),
        }));
    }
    changes
}

/// The same in both modes: no key of a label changes, and no seal that verifies here is lost.
fn keks_and_partners(ours: &TableDump, theirs: &TableDump, changes: &mut Changes) {
    let mut named: BTreeMap<String, KekHash> = BTreeMap::new();
    for KekRow { kek, .. } in ours.keks.iter().flatten() {
        named.insert(kek.label.folded(), kek.hash);
    }
    let mut partners: BTreeMap<String, &PartnerRow> = BTreeMap::new();
    for row in ours.partners.iter().flatten() {
        partners.insert(row.label.folded(), row);
        if row.partner.is_some() {
            named.entry(row.label.folded()).or_insert(row.hash);
        }
    }
    let taken = |label: &KeyLabel, ours: KekHash, theirs: KekHash| Kept::LabelTaken {
        label: label.clone(),
        ours,
        theirs,
    };
    for row in theirs.keks.iter().flatten() {
        let (label, hash) = (&row.kek.label, row.kek.hash);
        match named.get(&label.folded()) {
            Some(known) if *known == hash => {}
            Some(known) => changes.kept.push(taken(label, *known, hash)),
            None => {
                named.insert(label.folded(), hash);
                changes.keks.push(row.clone());
            }
        }
    }
    for row in theirs.partners.iter().flatten() {
        let label = &row.label;
        let over = partners.get(&label.folded()).copied();
        let write = || Write {
            row: row.clone(),
            over: over.cloned(),
        };
        match (&row.partner, over, named.get(&label.folded())) {
            (Some(_), _, Some(known)) if *known != row.hash => {
                changes.kept.push(taken(label, *known, row.hash));
            }
            (
                Some(partner),
                Some(PartnerRow {
                    partner: Some(ours),
                    ..
                }),
                _,
            ) => {
                if ours.digest() != partner.digest() {
                    changes.kept.push(Kept::PartnerConfirmed(label.clone()));
                }
            }
            // The key is a KEK of ours.
            (Some(_), _, Some(_)) => {}
            (Some(_), Some(removed), None) if removed.updated >= row.updated => {
                changes.kept.push(Kept::PartnerRemoved(label.clone()));
            }
            (Some(_), _, None) => {
                named.insert(label.folded(), row.hash);
                changes.partners.push(write());
            }
            (None, Some(ours), _) => {
                let newer = row.updated >= ours.updated;
                let other = ours.partner.is_some() && ours.hash != row.hash;
                if newer && !other && ours != row {
                    changes.partners.push(write());
                }
            }
            (None, None, _) => changes.partners.push(write()),
        }
    }
}

fn by_serial(dump: &TableDump) -> BTreeMap<&DriveSerial, &DriveRow> {
    dump.drives
        .iter()
        .flatten()
        .map(|row| (&row.drive.serial, row))
        .collect()
}

/// Whether an operator decided it; a drive that waits has only asked.
fn by_operator(row: &DriveRow) -> bool {
    row.deleted || row.drive.state != DriveState::Pending
}

/// Which of two rows of a drive stands: the greater. The text decides where all else is the
/// same, so that every server decides alike.
fn rank(row: &DriveRow) -> (bool, OffsetDateTime, bool, String) {
    let text = serde_json::to_string(&row.drive).unwrap_or_default();
    (by_operator(row), row.updated, row.deleted, text)
}

/// The same for the defaults: none are less than some.
fn settled(row: &DefaultsRow) -> (OffsetDateTime, bool, String) {
    let text = serde_json::to_string(&row.defaults).unwrap_or_default();
    (row.updated, row.defaults != Defaults::default(), text)
}

fn same(one: &DriveRow, other: &DriveRow) -> bool {
    one.deleted == other.deleted && (one.deleted || one.drive == other.drive)
}

fn stands(over: &DriveRow, row: &DriveRow) -> Kept {
    let serial = row.drive.serial.clone();
    if over.deleted {
        Kept::DriveDeleted(serial)
    } else if by_operator(row) {
        Kept::DriveNewer(serial)
    } else {
        Kept::DriveWaits(serial)
    }
}

/// A time that stands against the row that goes: the other's own where it does, else now.
fn after(over: OffsetDateTime, theirs: OffsetDateTime, now: OffsetDateTime) -> OffsetDateTime {
    if theirs > over {
        theirs
    } else {
        now.max(over + Duration::MICROSECOND)
    }
}

#[cfg(test)]
mod tests;
