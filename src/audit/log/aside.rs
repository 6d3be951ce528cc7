//! Records that nobody waits for yet, until the writer comes by.

use std::sync::{Mutex, MutexGuard};

use super::{Job, MAX_BATCH, hold};

/// Records that nobody waits for, or not yet. They wake the writer only where he sleeps for good:
/// each would cost him, and whoever is at work beside him, more than its own writing.
#[derive(Debug)]
pub(super) struct Aside(Mutex<Gathered>);

#[derive(Debug)]
struct Gathered {
    jobs: Vec<Job>,
    /// Whether the writer comes for them by himself.
    collected: bool,
}

impl Default for Aside {
    fn default() -> Self {
        Self(Mutex::new(Gathered {
            jobs: Vec::new(),
            collected: false,
        }))
    }
}

impl Aside {
    /// Puts a record; gives it back where nobody would come for it, or where there are too many.
    pub(super) fn put(&self, job: Job) -> Result<(), Box<Job>> {
        let mut gathered = self.gathered();
        if !gathered.collected || gathered.jobs.len() >= MAX_BATCH {
            return Err(job.into());
        }
        gathered.jobs.push(job);
        Ok(())
    }

    /// All of them. The writer comes for further ones.
    pub(super) fn take(&self) -> Vec<Job> {
        let mut gathered = self.gathered();
        gathered.collected = true;
        std::mem::take(&mut gathered.jobs)
    }

    /// Whether there are none. From then on the writer does not come by himself.
    pub(super) fn close(&self) -> bool {
        let mut gathered = self.gathered();
        gathered.collected = !gathered.jobs.is_empty();
        !gathered.collected
    }

    /// The writer has gone. Whoever waits for one of them is told by its drop.
    pub(super) fn end(&self) {
        let mut gathered = self.gathered();
        gathered.collected = false;
        gathered.jobs.clear();
    }

    fn gathered(&self) -> MutexGuard<'_, Gathered> {
        hold(&self.0)
    }
}
