//! What a request may have seen of the drive table and the defaults, from when
//! it began to when it was answered.

use std::time::{Duration, Instant};

/// The drive table and the defaults, with their changes as they begin and end.
pub(super) struct Views {
    drives: Vec<Row>,
    // All that ever were; the last may not be in force yet.
    defaults: Vec<[usize; 2]>,
    in_force: usize,
}

struct Row {
    enrolled: bool,
    changing: bool,
    changes: u64,
}

/// What was so when a request began.
pub(super) struct Begun {
    drive: usize,
    enrolled: bool,
    changing: bool,
    changes: u64,
    in_force: usize,
    at: Instant,
}

impl Begun {
    /// Time since the request began.
    pub(super) fn took(&self) -> Duration {
        self.at.elapsed()
    }
}

/// What a request may go by.
pub(super) struct Standing {
    pub(super) may_be_in: bool,
    pub(super) may_be_out: bool,
}

impl Views {
    pub(super) fn new(drives: usize) -> Self {
        let row = |_| Row {
            enrolled: false,
            changing: false,
            changes: 0,
        };
        Self {
            drives: (0..drives).map(row).collect(),
            defaults: Vec::new(),
            in_force: 0,
        }
    }

    pub(super) fn enrolled(&self, drive: usize) -> bool {
        self.drives[drive].enrolled
    }

    pub(super) fn begin_change(&mut self, drive: usize) {
        let row = &mut self.drives[drive];
        row.changing = true;
        row.changes += 1;
    }

    pub(super) fn end_change(&mut self, drive: usize, enrolled: bool) {
        let row = &mut self.drives[drive];
        row.changing = false;
        row.enrolled = enrolled;
    }

    pub(super) fn begin_defaults(&mut self, keks: [usize; 2]) {
        self.defaults.push(keks);
    }

    pub(super) fn end_defaults(&mut self) {
        self.in_force = self.defaults.len() - 1;
    }

    /// The KEK after the newest default among the first `shared` ones.
    pub(super) fn next_shared(&self, shared: usize) -> usize {
        let newest = self.defaults.last().into_iter().flatten();
        let newest = newest.copied().find(|kek| *kek < shared);
        newest.map_or(0, |kek| (kek + 1) % shared)
    }

    /// To be called before the request is made.
    pub(super) fn begin(&self, drive: usize) -> Begun {
        let Row {
            enrolled,
            changing,
            changes,
        } = self.drives[drive];
        Begun {
            drive,
            enrolled,
            changing,
            changes,
            in_force: self.in_force,
            at: Instant::now(),
        }
    }

    /// Whether the drive was in the table: both may be, where it changed meanwhile.
    pub(super) fn standing_since(&self, begun: &Begun) -> Standing {
        let changed = begun.changing || self.drives[begun.drive].changes != begun.changes;
        Standing {
            may_be_in: begun.enrolled || changed,
            may_be_out: !begun.enrolled || changed,
        }
    }

    /// The defaults that were in force at some time since.
    pub(super) fn defaults_since(&self, begun: &Begun) -> Vec<[usize; 2]> {
        self.defaults[begun.in_force..].to_vec()
    }
}
