//! One at a time for requests of the same id, so that a retry that overtakes
//! its original does not make a second data key.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{Mutex as Turn, OwnedMutexGuard};

use crate::store::RequestKey;

/// The requests under way.
#[derive(Debug, Default)]
pub(super) struct Turns(Mutex<HashMap<RequestKey, Weak<Turn<()>>>>);

impl Turns {
    /// Waits until no other request of that id is under way.
    pub(super) async fn take(&self, key: RequestKey) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            turns.retain(|_, turn| turn.strong_count() > 0);
            let known = turns.get(&key).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let turn = Arc::new(Turn::new(()));
                turns.insert(key, Arc::downgrade(&turn));
                turn
            })
        };
        turn.lock_owned().await
    }
}
