//! What a sync did, or would do.

use serde::{Deserialize, Serialize};

use super::compare::Differences;
use super::{Mode, SyncError, What};
use crate::drive::DriveSerial;
use crate::store::Defaults;
use crate::store::merge::Write;
use crate::store::merge::{Changes, DriveRow};
use crate::tls::PeerId;

/// A sync, as it is reported and recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncReport {
    /// Whose tables.
    pub peer: PeerId,
    /// Its node name.
    pub node: String,
    /// Which tables.
    pub what: What,
    /// Whose rows stand.
    pub mode: Mode,
    /// Whether nothing was written.
    pub dry_run: bool,
    /// How far its clock is ahead of ours, milliseconds; behind: negative. What the way took is
    /// left out.
    pub clock_ahead_ms: i64,
    /// Drives that change, by serial.
    pub drives: Vec<DriveChanged>,
    /// The defaults as they become.
    pub defaults: Option<Defaults>,
    /// The history.
    pub history: Option<HistoryTaken>,
    /// Rows of the peer's that were not taken, and what else is to be thought of; one sentence each.
    pub left: Vec<String>,
    /// What differs all the same.
    pub differences: Differences,
}

/// What becomes of a drive's row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriveChanged {
    /// The drive.
    pub serial: DriveSerial,
    /// `added`, `changed` or `deleted`.
    pub change: String,
    /// Which fields, or what it is that was added.
    pub detail: String,
}

/// What came of the history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryTaken {
    /// Rows that were read.
    pub rows: u64,
    /// Generations that were new here.
    pub generations: u64,
    /// Of these, those whose number was another's here.
    pub renumbered: u64,
    /// States that were new here.
    pub states: u64,
    /// Generations that were left out: one server has the data key for its own, the other does not.
    pub unlike: u64,
    /// Whether it was read from its beginning, because it is not the history of the last time.
    pub anew: bool,
    /// Whether all of it was read; else the next sync goes on from there.
    pub complete: bool,
}

impl SyncReport {
    /// How many drives are `added`, `changed` and `deleted`.
    #[must_use]
    pub fn counts(&self) -> [usize; 3] {
        ["added", "changed", "deleted"].map(|change| {
            let drives = self.drives.iter();
            drives.filter(|drive| drive.change == change).count()
        })
    }

    /// Why it went no further, and what was written before that.
    pub(super) fn partly(&self, cause: SyncError) -> SyncError {
        let history = self.history.unwrap_or_default();
        let some = !self.drives.is_empty() || self.defaults.is_some() || history.rows > 0;
        if self.dry_run || !some {
            return cause;
        }
        SyncError::Partly {
            taken: self.summary(),
            cause: Box::new(cause),
        }
    }

    /// What it did, for a record.
    #[must_use]
    pub fn summary(&self) -> String {
        let [added, changed, deleted] = self.counts();
        let mut text = format!("{} of {}", self.mode, self.what);
        if self.what.drives() {
            text += &format!("; drives: {added} added, {changed} changed, {deleted} deleted");
        }
        if self.what.config() {
            let defaults = self.defaults.as_ref().map_or("as they were", |_| "changed");
            text += &format!("; defaults {defaults}");
        }
        if let Some(history) = &self.history {
            let HistoryTaken {
                generations,
                states,
                unlike,
                complete,
                ..
            } = history;
            text += &format!(
                "; history: {generations} generations, {states} states, {unlike} left out"
            );
            if !complete {
                text += ", goes on at the next";
            }
        }
        if !self.left.is_empty() {
            text += &format!("; {} rows not taken", self.left.len());
        }
        text
    }
}

/// What the changes are, drive by drive.
pub(super) fn changed(changes: &Changes) -> Vec<DriveChanged> {
    let mut all: Vec<DriveChanged> = changes.drives.iter().filter_map(of).collect();
    all.sort_by(|one, other| one.serial.as_str().cmp(other.serial.as_str()));
    all
}

fn of(write: &Write<DriveRow>) -> Option<DriveChanged> {
    let Write { row, over } = write;
    let there = over.as_ref().filter(|over| !over.deleted);
    let serial = row.drive.serial.clone();
    let say = |change: &str, detail: String| {
        Some(DriveChanged {
            serial: serial.clone(),
            change: change.to_owned(),
            detail,
        })
    };
    match (there, row.deleted) {
        (None, false) => {
            let drive = &row.drive;
            say(
                "added",
                format!("form {}, custody {}", drive.form, drive.custody),
            )
        }
        (Some(_), true) => say("deleted", String::new()),
        // A tombstone for a drive that is not there: nothing that is seen.
        (None, true) => None,
        (Some(over), false) => {
            let (old, new) = (&over.drive, &row.drive);
            let fields = [
                ("wwn", old.wwn != new.wwn),
                ("kek1", old.kek1 != new.kek1),
                ("kek2", old.kek2 != new.kek2),
                ("key", old.key != new.key),
                ("form", old.form != new.form),
                ("custody", old.custody != new.custody),
                ("speakers", old.speakers != new.speakers),
                ("state", old.state != new.state),
            ];
            let names: Vec<&str> = fields
                .into_iter()
                .filter_map(|(name, differs)| differs.then_some(name))
                .collect();
            // Where only its time is another nothing is seen, too.
            (!names.is_empty())
                .then(|| names.join(", "))
                .and_then(|names| say("changed", names))
        }
    }
}
