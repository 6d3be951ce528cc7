//! Who sits at the door: connections, counted by whom they belong to.
//!
//! Before its handshake a connection belongs to an address, afterwards to the
//! peer of its certificate. Where there is no room, one that is idle gives
//! way: the oldest one of whoever has most. So silent connections, however
//! often renewed, keep nobody out.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;

/// How many connections there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    /// Of everybody.
    pub(super) total: usize,
    /// Of one holder.
    pub(super) per_holder: usize,
}

/// A connection's number; a higher one came later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Seat(u64);

/// There is no room, and everybody who has no less is at work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NoRoom;

/// The seats that are taken.
#[derive(Debug)]
pub(super) struct Seats<H> {
    bounds: Bounds,
    taken: HashMap<Seat, H>,
    // Never an empty one.
    holders: HashMap<H, Held>,
    next: u64,
}

#[derive(Debug, Default)]
struct Held {
    idle: BTreeSet<Seat>,
    busy: usize,
}

impl Held {
    fn all(&self) -> usize {
        self.idle.len() + self.busy
    }
}

impl<H: Clone + Eq + Hash> Seats<H> {
    /// All free.
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            taken: HashMap::new(),
            holders: HashMap::new(),
            next: 0,
        }
    }

    /// How many are taken.
    pub(super) fn taken(&self) -> usize {
        self.taken.len()
    }

    /// Takes a seat, idle at first. With it comes the seat that has to give
    /// way, which is free already.
    ///
    /// # Errors
    /// [`NoRoom`]
    pub(super) fn take(&mut self, holder: H) -> Result<(Seat, Option<Seat>), NoRoom> {
        let gives_way = if self.taken.len() >= self.bounds.total {
            Some(self.give_way(&holder)?)
        } else {
            self.own_gives_way(&holder)?
        };
        let seat = Seat(self.next);
        self.next += 1;
        self.holders
            .entry(holder.clone())
            .or_default()
            .idle
            .insert(seat);
        self.taken.insert(seat, holder);
        Ok((seat, gives_way))
    }

    /// A seat gets another holder: the handshake has told who it is. With it
    /// comes the seat of that holder that has to give way.
    ///
    /// # Errors
    /// [`NoRoom`]; the seat is free then.
    pub(super) fn belongs_to(&mut self, seat: Seat, holder: H) -> Result<Option<Seat>, NoRoom> {
        if !self.taken.contains_key(&seat) {
            // It had to give way in the meantime.
            return Err(NoRoom);
        }
        self.leave(seat);
        let gives_way = self.own_gives_way(&holder)?;
        self.holders
            .entry(holder.clone())
            .or_default()
            .idle
            .insert(seat);
        self.taken.insert(seat, holder);
        Ok(gives_way)
    }

    /// Whether a request is under way there; such a seat gives way to nobody.
    pub(super) fn set_busy(&mut self, seat: Seat, busy: bool) {
        let Some(held) = self
            .taken
            .get(&seat)
            .and_then(|holder| self.holders.get_mut(holder))
        else {
            return;
        };
        if busy && held.idle.remove(&seat) {
            held.busy += 1;
        } else if !busy && held.idle.insert(seat) {
            held.busy -= 1;
        }
    }

    /// The connection has ended.
    pub(super) fn leave(&mut self, seat: Seat) {
        let Some(holder) = self.taken.remove(&seat) else {
            return;
        };
        if let Some(held) = self.holders.get_mut(&holder) {
            if !held.idle.remove(&seat) {
                held.busy -= 1;
            }
            if held.all() == 0 {
                self.holders.remove(&holder);
            }
        }
    }

    /// Frees the oldest idle seat of a holder that has as many as one may.
    fn own_gives_way(&mut self, holder: &H) -> Result<Option<Seat>, NoRoom> {
        let Some(held) = self.holders.get(holder) else {
            return Ok(None);
        };
        if held.all() < self.bounds.per_holder {
            return Ok(None);
        }
        let seat = held.idle.first().copied().ok_or(NoRoom)?;
        self.leave(seat);
        Ok(Some(seat))
    }

    /// Frees the oldest idle seat of the holder that has most and more than
    /// this one, or of this one itself.
    fn give_way(&mut self, holder: &H) -> Result<Seat, NoRoom> {
        let own = self.holders.get(holder).map_or(0, Held::all);
        let seat = self
            .holders
            .iter()
            .filter(|(who, held)| held.all() > own || *who == holder)
            .filter_map(|(_, held)| Some((held.all(), *held.idle.first()?)))
            // Of those that have as many, the one whose seat is oldest.
            .max_by_key(|(all, oldest)| (*all, std::cmp::Reverse(*oldest)))
            .map(|(_, oldest)| oldest)
            .ok_or(NoRoom)?;
        self.leave(seat);
        Ok(seat)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seats(total: usize, per_holder: usize) -> Seats<&'static str> {
        Seats::new(Bounds { total, per_holder })
    }

    #[test]
    fn a_thousand_silent_connections_make_room_for_an_honest_one() {
        let mut seats = seats(1_000, 1_000);
        let silent: Vec<Seat> = (0..1_000)
            .map(|_| seats.take("silent").unwrap().0)
            .collect();
        let (honest, gave_way) = seats.take("honest").unwrap();
        assert_eq!(gave_way, Some(silent[0]));
        // Renewed as fast as they can be, they displace each other.
        for _ in 0..5_000 {
            let (_, gave_way) = seats.take("silent").unwrap();
            assert!(gave_way.is_some_and(|seat| seat != honest));
        }
        assert_eq!(seats.belongs_to(honest, "drive"), Ok(None));
        assert_eq!(seats.taken(), 1_000);
    }

    #[test]
    fn one_holder_has_its_bound_and_renews_within_it() {
        let mut seats = seats(10, 2);
        let (first, _) = seats.take("a").unwrap();
        let (second, _) = seats.take("a").unwrap();
        seats.set_busy(first, true);
        assert_eq!(seats.take("a").unwrap().1, Some(second));
        let last = Seat(2);
        seats.set_busy(last, true);
        assert_eq!(seats.take("a"), Err(NoRoom));
        seats.set_busy(last, false);
        assert_eq!(seats.take("a").unwrap().1, Some(last));
        assert_eq!(seats.taken(), 2);
    }

    #[test]
    fn who_is_at_work_gives_way_to_nobody() {
        let mut seats = seats(2, 2);
        for _ in 0..2 {
            let (seat, _) = seats.take("a").unwrap();
            seats.set_busy(seat, true);
        }
        assert_eq!(seats.take("b"), Err(NoRoom));
    }

    #[test]
    fn with_one_seat_each_the_oldest_idle_one_gives_way_to_a_newcomer() {
        let mut seats = seats(2, 2);
        let (first, _) = seats.take("a").unwrap();
        seats.take("b").unwrap();
        assert_eq!(seats.take("c").unwrap().1, Some(first));
    }

    #[test]
    fn a_seat_that_gave_way_during_its_handshake_stays_lost() {
        let mut seats = seats(1, 1);
        let (first, _) = seats.take("a").unwrap();
        assert_eq!(seats.take("b").unwrap().1, Some(first));
        assert_eq!(seats.belongs_to(first, "peer"), Err(NoRoom));
        seats.leave(first);
        assert_eq!(seats.taken(), 1);
    }

    proptest! {
        /// Whatever happens, the bounds hold and what is counted is what is there.
        #[test]
        fn any_history_keeps_the_bounds(
            steps in prop::collection::vec((0_u8..5, 0_u8..4, 0_usize..40), 0..400),
            total in 1_usize..12,
            per_holder in 1_usize..8,
        ) {
            let mut seats = Seats::new(Bounds { total, per_holder });
            let mut all: Vec<Seat> = Vec::new();
            for (step, holder, which) in steps {
                let seat = all.get(which).copied();
                match (step, seat) {
                    (0, _) => if let Ok((seat, _)) = seats.take(holder) {
                        all.push(seat);
                    },
                    (1, Some(seat)) => drop(seats.belongs_to(seat, holder)),
                    (2, Some(seat)) => seats.set_busy(seat, true),
                    (3, Some(seat)) => seats.set_busy(seat, false),
                    (_, Some(seat)) => seats.leave(seat),
                    (_, None) => {}
                }
                prop_assert!(seats.taken() <= total);
                let held: usize = seats.holders.values().map(Held::all).sum();
                prop_assert_eq!(held, seats.taken());
                prop_assert!(seats.holders.values().all(|held| (1..=per_holder).contains(&held.all())));
            }
        }
    }
}
