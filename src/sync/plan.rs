//! What of another server's rows is taken. No I/O.

use std::collections::{BTreeMap, BTreeSet};

use time::OffsetDateTime;

use super::Mode;
use super::compare::Differences;
use crate::key::KekRef;
use crate::keystore::Directory;
use crate::store::merge::{self, Changes, DriveRow, TableDump, Write};
use crate::store::{Drive, DriveKey, DriveState, KekState, KekStates};

/// A rewrite that would delete no more than so many drives is never one that empties a table.
const SOME: usize = 10;

/// What changes, and what does not although the peer says so.
#[derive(Debug)]
pub(super) struct Plan {
    /// What is to be written.
    pub(super) changes: Changes,
    /// What is not taken, a sentence each.
    pub(super) left: Vec<String>,
    /// Drives here that would be deleted, of how many, where that is too many for a rewrite.
    pub(super) emptied: Option<(usize, usize)>,
}

/// The plan of a sync.
pub(super) fn plan(
    ours: &TableDump,
    theirs: &TableDump,
    mode: Mode,
    differences: &Differences,
    known: (&Directory, &KekStates),
    now: OffsetDateTime,
) -> Plan {
    let mut changes = match mode {
        Mode::Merge => merge::merge(ours, theirs),
        Mode::Rewrite => merge::rewrite(ours, theirs, now),
    };
    let mut left: Vec<String> = std::mem::take(&mut changes.kept)
        .iter()
        .map(ToString::to_string)
        .collect();
    changes.drives.retain(|write| {
        let fault = unfit(&write.row, differences);
        left.extend(fault.iter().cloned());
        fault.is_none()
    });
    apart(ours, &mut changes, &mut left);
    if let Some(write) = &changes.defaults {
        let named = [&write.row.defaults.kek1, &write.row.defaults.kek2];
        let bad = named
            .into_iter()
            .flatten()
            .find_map(|kek| no_default(kek, differences, known));
        if let Some(why) = bad {
            left.push(format!("the defaults are not taken: {why}"));
            changes.defaults = None;
        }
    }
    let emptied = emptied(ours, theirs, &changes).filter(|_| mode == Mode::Rewrite);
    Plan {
        changes,
        left,
        emptied,
    }
}

fn unfit(row: &DriveRow, differences: &Differences) -> Option<String> {
    if row.deleted {
        return None;
    }
    let drive = &row.drive;
    let serial = &drive.serial;
    if let Err(reason) = crate::admin::coherent(drive) {
        return Some(format!("drive {serial} is not taken: {reason}"));
    }
    [&drive.kek1, &drive.kek2]
        .into_iter()
        .flatten()
        .find(|kek| differences.two_keys(kek))
        .map(|kek| {
            format!(
                "drive {serial} is not taken: its label {} means another key here",
                kek.label
            )
        })
}

fn no_default(
    kek: &KekRef,
    differences: &Differences,
    (directory, states): (&Directory, &KekStates),
) -> Option<String> {
    let label = &kek.label;
    if differences.two_keys(kek) {
        return Some(format!("{label} means another key here"));
    }
    let mut keks = directory.keks().iter();
    let Some(known) = keks.find(|kek| kek.label.same_as(label)) else {
        return Some(format!("no KEK {label} is known here"));
    };
    // Another server may not know of a rotation here.
    let state = states.state(&known.hash);
    (state != KekState::Active).then(|| format!("KEK {label} is {state} here"))
}

/// No two drives may have one key or one WWN: what is wrapped for the one would open in the other.
fn apart(ours: &TableDump, changes: &mut Changes, left: &mut Vec<String>) {
    // A row that is not taken leaves the old one, which counts too.
    loop {
        let before = changes.drives.len();
        apart_once(ours, changes, left);
        if changes.drives.len() == before {
            return;
        }
    }
}

fn apart_once(ours: &TableDump, changes: &mut Changes, left: &mut Vec<String>) {
    fn active(row: &DriveRow) -> Option<&Drive> {
        (!row.deleted && row.drive.state == DriveState::Active).then_some(&row.drive)
    }
    let written: BTreeMap<&str, &Write<DriveRow>> = changes
        .drives
        .iter()
        .map(|write| (write.row.drive.serial.as_str(), write))
        .collect();
    let stay = ours
        .drives
        .iter()
        .flatten()
        .filter(|row| !written.contains_key(row.drive.serial.as_str()));
    let mut keys: BTreeMap<Vec<u8>, Vec<String>> = BTreeMap::new();
    for drive in stay
        .chain(changes.drives.iter().map(|write| &write.row))
        .filter_map(active)
    {
        for name in names(drive) {
            keys.entry(name).or_default().push(drive.serial.to_string());
        }
    }
    drop(written);
    changes.drives.retain(|write| {
        let Some(drive) = active(&write.row) else {
            return true;
        };
        let other = names(drive).into_iter().find_map(|name| {
            let serials = keys.get(&name)?;
            serials
                .iter()
                .find(|serial| serial.as_str() != drive.serial.as_str())
        });
        if let Some(other) = other {
            left.push(format!(
                "drive {} is not taken: it has the key or the WWN of drive {other}",
                drive.serial
            ));
        }
        other.is_none()
    });
}

/// What no other drive may have.
fn names(drive: &Drive) -> Vec<Vec<u8>> {
    let mut names = Vec::new();
    if let DriveKey::Pinned(spki) = &drive.key {
        names.push(spki.clone());
    }
    names.extend(drive.wwn.map(|wwn| wwn.as_bytes().to_vec()));
    names
}

/// Drives that would be deleted because the peer does not know them, of how many, where that is
/// rather a table that was lost there. What was deleted there has a tombstone, and is meant.
fn emptied(ours: &TableDump, theirs: &TableDump, changes: &Changes) -> Option<(usize, usize)> {
    let drives = theirs.drives.as_ref()?;
    let there: BTreeSet<&str> = drives.iter().map(|row| row.drive.serial.as_str()).collect();
    let ours = ours.drives.iter().flatten();
    let of = ours.filter(|row| !row.deleted).count();
    let deleted = changes
        .drives
        .iter()
        .filter(|write| write.row.deleted && write.over.as_ref().is_some_and(|row| !row.deleted))
        .filter(|write| !there.contains(write.row.drive.serial.as_str()))
        .count();
    let lost = drives.is_empty() || deleted > SOME && deleted > of / 2;
    (deleted > 0 && lost).then_some((deleted, of))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::bridge::message::Custody;
    use crate::key::SedkForm;
    use crate::store::merge::DefaultsRow;
    use crate::store::{Certificates, Defaults};

    fn row(serial: &str, wwn: Option<&str>, seconds: i64) -> DriveRow {
        DriveRow {
            drive: Drive {
                serial: serial.parse().unwrap(),
                wwn: wwn.map(|wwn| wwn.parse().unwrap()),
                kek1: None,
                kek2: None,
                key: DriveKey::None,
                form: SedkForm::T10Plain,
                custody: Custody::Host,
                speakers: Vec::new(),
                state: DriveState::Active,
            },
            updated: OffsetDateTime::from_unix_timestamp(1_800_000_000 + seconds).unwrap(),
            deleted: false,
        }
    }

    fn table(drives: Vec<DriveRow>, label: Option<&str>) -> TableDump {
        TableDump {
            drives: Some(drives),
            defaults: Some(DefaultsRow {
                defaults: Defaults {
                    kek1: label.map(|label| label.parse().unwrap()),
                    kek2: None,
                },
                updated: OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap(),
            }),
            keks: None,
            partners: None,
        }
    }

    fn planned(ours: &TableDump, theirs: &TableDump, mode: Mode) -> Plan {
        let none: [(&str, &[crate::bridge::message::KekOnToken]); 0] = [];
        let directory = Directory::new(none, Arc::from([]), &Certificates::default());
        let now = OffsetDateTime::from_unix_timestamp(1_800_000_100).unwrap();
        let known = (&directory, &KekStates::default());
        plan(ours, theirs, mode, &Differences::default(), known, now)
    }

    const WWN: &str = "5005076300C0FFE1";

    #[test]
    fn no_two_drives_get_one_wwn() {
        let ours = table(vec![row("000000000001", Some(WWN), 0)], None);
        let theirs = table(vec![row("000000000002", Some(WWN), 1)], None);
        let plan = planned(&ours, &theirs, Mode::Merge);
        assert!(plan.changes.drives.is_empty());
        assert!(
            plan.left[0].contains("of drive 000000000001"),
            "{:?}",
            plan.left
        );
        // Where the other goes in the same sync it may.
        let gone = DriveRow {
            deleted: true,
            ..row("000000000001", Some(WWN), 1)
        };
        let theirs = table(vec![gone, row("000000000002", Some(WWN), 1)], None);
        let plan = planned(&ours, &theirs, Mode::Merge);
        assert_eq!(plan.changes.drives.len(), 2, "{:?}", plan.left);
    }

    #[test]
    fn a_row_that_cannot_serve_and_defaults_of_no_known_kek_are_left() {
        let mut bad = row("000000000001", None, 0);
        bad.drive.custody = Custody::Token;
        let plan = planned(
            &table(Vec::new(), None),
            &table(vec![bad], Some("KEK1")),
            Mode::Merge,
        );
        assert!(plan.changes.is_empty());
        assert!(plan.left[0].contains("--custody host"), "{:?}", plan.left);
        assert!(plan.left[1].contains("no KEK KEK1"), "{:?}", plan.left);
    }

    #[test]
    fn a_table_that_was_lost_empties_none() {
        let many = |range: std::ops::Range<u32>| -> Vec<DriveRow> {
            range.map(|n| row(&format!("{n:012}"), None, 0)).collect()
        };
        let ours = table(many(0..30), None);
        let rewrite =
            |theirs: Vec<DriveRow>| planned(&ours, &table(theirs, None), Mode::Rewrite).emptied;
        assert_eq!(rewrite(Vec::new()), Some((30, 30)));
        assert_eq!(rewrite(many(0..10)), Some((20, 30)));
        assert_eq!(rewrite(many(0..16)), None);
        // Deleted there, each by its own: that is meant.
        let mut deleted = many(0..30);
        for row in &mut deleted {
            row.deleted = true;
            row.updated += time::Duration::SECOND;
        }
        assert_eq!(rewrite(deleted), None);
        let plan = planned(&ours, &table(Vec::new(), None), Mode::Merge);
        assert!(plan.changes.is_empty() && plan.emptied.is_none());
    }
}
