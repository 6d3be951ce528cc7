//! Records that nobody waits for, until the writer comes by.

use std::sync::{Mutex, MutexGuard};

use super::{MAX_BATCH, hold};
use crate::audit::Event;

/// Records that nobody waits for. They wake the writer only where he sleeps for good: each would
/// cost him, and whoever is at work beside him, more than its own writing.
#[derive(Debug)]
pub(super) struct Aside(Mutex<Gathered>);

#[derive(Debug)]
struct Gathered {
    events: Vec<Event>,
    /// Whether the writer comes for them by himself.
    collected: bool,
}

impl Default for Aside {
    fn default() -> Self {
        Self(Mutex::new(Gathered {
            events: Vec::new(),
            collected: false,
        }))
    }
}

impl Aside {
    /// Puts a record; gives it back where nobody would come for it, or where there are too many.
    pub(super) fn put(&self, event: Event) -> Result<(), Box<Event>> {
        let mut gathered = self.gathered();
        if !gathered.collected || gathered.events.len() >= MAX_BATCH {
            return Err(event.into());
        }
        gathered.events.push(event);
        Ok(())
    }

    /// All of them. The writer comes for further ones.
    pub(super) fn take(&self) -> Vec<Event> {
        let mut gathered = self.gathered();
        gathered.collected = true;
        std::mem::take(&mut gathered.events)
    }

    /// Whether there are none. From then on the writer does not come by himself.
    pub(super) fn close(&self) -> bool {
        let mut gathered = self.gathered();
        gathered.collected = !gathered.events.is_empty();
        !gathered.collected
    }

    fn gathered(&self) -> MutexGuard<'_, Gathered> {
        hold(&self.0)
    }
}
