//! The connections to all key servers: MAXCONN of them at once, MAXPCONN stay open.
//!
//! Who wants to exchange something takes a *turn*, of which there are MAXCONN, in the order of
//! arrival. A turn is worth one connection: one that rests, or room for a new one; where the ones that
//! rest take all the room, one of them is closed. A connection gives its room back when its socket is
//! closed, and not before.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::client::Wire;
use crate::proxy::servers::ServerAddress;

/// How soon it is looked again whether there is room. A socket that was closed gives it back within
/// a moment.
const AGAIN: Duration = Duration::from_millis(20);

/// The right to one connection.
#[derive(Debug)]
pub(super) struct Turn(#[expect(dead_code, reason = "held for its drop")] OwnedSemaphorePermit);

/// The connections.
#[derive(Debug)]
pub(super) struct Pool {
    turns: Arc<Semaphore>,
    room: Arc<Semaphore>,
    kept: Mutex<Kept>,
}

#[derive(Debug)]
struct Kept {
    maxconn: u16,
    maxpconn: u16,
    /// Those that rest; the one that rests longest first.
    idle: VecDeque<(ServerAddress, Wire)>,
}

impl Pool {
    pub(super) fn new(maxconn: u16, maxpconn: u16) -> Self {
        Self {
            turns: Arc::new(Semaphore::new(maxconn.into())),
            room: Arc::new(Semaphore::new(maxconn.into())),
            kept: Mutex::new(Kept {
                maxconn,
                maxpconn,
                idle: VecDeque::new(),
            }),
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the bounds. Connections in use end their exchange; nobody gets a turn until there are
    /// fewer than the new bound.
    pub(super) fn set(&self, maxconn: u16, maxpconn: u16) {
        let mut kept = self.kept();
        let before = std::mem::replace(&mut kept.maxconn, maxconn);
        kept.maxpconn = maxpconn;
        while kept.idle.len() > maxpconn.into() {
            kept.idle.pop_front();
        }
        drop(kept);
        for bound in [&self.turns, &self.room] {
            if maxconn >= before {
                bound.add_permits((maxconn - before).into());
            } else {
                let bound = Arc::clone(bound);
                let fewer = u32::from(before - maxconn);
                tokio::spawn(async move {
                    if let Ok(permits) = bound.acquire_many(fewer).await {
                        permits.forget();
                    }
                });
            }
        }
    }

    /// A turn, when it comes.
    pub(super) async fn turn(&self) -> Option<Turn> {
        let turn = Arc::clone(&self.turns).acquire_owned().await;
        // They are never closed.
        turn.ok().map(Turn)
    }

    /// A turn, if there is one now.
    pub(super) fn turn_now(&self) -> Option<Turn> {
        Arc::clone(&self.turns).try_acquire_owned().ok().map(Turn)
    }

    /// A connection to that server that rests.
    pub(super) fn take(&self, server: &ServerAddress) -> Option<Wire> {
        let mut kept = self.kept();
        kept.idle.retain(|(_, wire)| !wire.is_closed());
        // The one that rested least: others may be closed for want of use.
        let last = kept.idle.iter().rposition(|(of, _)| of == server)?;
        kept.idle.remove(last).map(|(_, wire)| wire)
    }

    /// Room for a new connection; for who has a turn.
    pub(super) async fn room(&self) -> Option<OwnedSemaphorePermit> {
        loop {
            if let Ok(room) = Arc::clone(&self.room).try_acquire_owned() {
                return Some(room);
            }
            drop(self.kept().idle.pop_front());
            let room = Arc::clone(&self.room).acquire_owned();
            if let Ok(room) = tokio::time::timeout(AGAIN, room).await {
                return room.ok();
            }
        }
    }

    /// Lets a connection rest, or closes it where enough do.
    pub(super) fn keep(&self, server: &ServerAddress, wire: Wire) {
        let mut kept = self.kept();
        kept.idle.retain(|(_, wire)| !wire.is_closed());
        if kept.idle.len() < kept.maxpconn.into() && !wire.is_closed() {
            kept.idle.push_back((server.clone(), wire));
        }
    }

    /// Closes those to a server that rest.
    pub(super) fn close(&self, server: &ServerAddress) {
        self.kept().idle.retain(|(of, _)| of != server);
    }

    /// How many rest, of that server.
    pub(super) fn resting(&self, server: &ServerAddress) -> usize {
        let kept = self.kept();
        let of = |(of, wire): &&(ServerAddress, Wire)| of == server && !wire.is_closed();
        kept.idle.iter().filter(of).count()
    }

    /// MAXCONN and MAXPCONN.
    pub(super) fn bounds(&self) -> (u16, u16) {
        let kept = self.kept();
        (kept.maxconn, kept.maxpconn)
    }

    /// Sockets that are open.
    pub(super) fn open(&self) -> usize {
        let maxconn = usize::from(self.kept().maxconn);
        maxconn.saturating_sub(self.room.available_permits())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn turns_are_given_in_the_order_of_arrival() {
        let pool = Arc::new(Pool::new(1, 0));
        let first = pool.turn().await.unwrap();
        assert!(pool.turn_now().is_none());
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut waiting = Vec::new();
        for n in 0..5 {
            let (pool, order) = (Arc::clone(&pool), Arc::clone(&order));
            waiting.push(tokio::spawn(async move {
                let _turn = pool.turn().await.unwrap();
                order.lock().unwrap().push(n);
            }));
            tokio::task::yield_now().await;
        }
        drop(first);
        for one in waiting {
            one.await.unwrap();
        }
        assert_eq!(*order.lock().unwrap(), [0, 1, 2, 3, 4]);
    }

    #[tokio::test]
    async fn a_lower_bound_holds_once_who_has_a_turn_is_done_and_a_higher_one_at_once() {
        let pool = Pool::new(3, 1);
        let turns = [pool.turn().await, pool.turn().await, pool.turn().await];
        pool.set(1, 0);
        tokio::task::yield_now().await;
        let [first, second, third] = turns;
        for done in [first, second] {
            drop(done);
            assert!(tokio::time::timeout(SOON, pool.turn()).await.is_err());
        }
        drop(third);
        let only = tokio::time::timeout(SOON, pool.turn()).await.unwrap();
        assert!(pool.turn_now().is_none());
        pool.set(2, 0);
        assert!(pool.turn_now().is_some());
        drop(only);
        assert_eq!(pool.bounds(), (2, 0));
        assert_eq!(pool.open(), 0);
    }
}
