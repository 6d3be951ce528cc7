//! One at a time for requests of the same id, so that a retry that overtakes
//! its original does not make a second data key.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{Mutex as Turn, OwnedMutexGuard};
use tokio::time::timeout_at;

use crate::deadline;
use crate::problem::Problem;
use crate::store::RequestKey;

/// The requests under way.
#[derive(Debug, Default)]
pub(super) struct Turns(Mutex<HashMap<RequestKey, Weak<Turn<()>>>>);

impl Turns {
    /// Waits until no other request of that id is under way.
    ///
    /// # Errors
    /// The request's time is over.
    pub(super) async fn take(&self, key: RequestKey) -> Result<OwnedMutexGuard<()>, Problem> {
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
        // Nearly always, and then without a timer.
        if let Ok(held) = Arc::clone(&turn).try_lock_owned() {
            return Ok(held);
        }
        let Some(until) = deadline::until() else {
            return Ok(turn.lock_owned().await);
        };
        timeout_at(until, turn.lock_owned()).await.map_err(|_| {
            Problem::busy(
                "the key service is busy: the same request came before and is still being worked on; try again in 5 s",
                5,
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::*;

    #[tokio::test]
    async fn a_repeat_waits_for_the_first_for_its_own_time_and_no_longer() {
        let turns = Turns::default();
        let key = RequestKey {
            peer: "proxy:a".parse().unwrap(),
            id: "1".to_owned(),
        };
        let first = turns.take(key.clone()).await.unwrap();
        let until = Instant::now() + Duration::from_millis(50);
        let late = deadline::within(until, turns.take(key.clone())).await;
        let late = late.unwrap_err();
        assert_eq!((late.status, late.retry_after), (503, Some(5)));
        drop(first);
        drop(turns.take(key).await.unwrap());
    }
}
