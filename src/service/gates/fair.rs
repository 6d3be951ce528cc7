//! A queue that serves its peers in turn.
//!
//! Each peer's own items leave in the order in which they came, and the peers
//! take turns, so that one with a thousand items holds up another's single
//! item for one turn only. Where the queue is full, whoever has most in it
//! gives way to who has less.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// How much may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Items of all peers together.
    pub(crate) total: usize,
    /// Items of one peer.
    pub(crate) per_peer: usize,
}

/// An item's number, for who wants to leave before its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticket(u64);

/// What became of an item that was offered.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Offered<T> {
    /// It waits.
    Waits(Ticket),
    /// It waits, in the place of another peer's newest item, which this is.
    Displaced(Ticket, T),
    /// There is no room for it.
    Full,
}

/// The queue.
#[derive(Debug)]
pub(super) struct FairQueue<P, T> {
    bounds: Bounds,
    // Never an empty one; in each the oldest first.
    peers: HashMap<P, VecDeque<(Ticket, T)>>,
    // The same peers, the next in turn first.
    turns: VecDeque<P>,
    waiting: usize,
    next: u64,
}

impl<P: Clone + Eq + Hash, T> FairQueue<P, T> {
    /// An empty queue.
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            peers: HashMap::new(),
            turns: VecDeque::new(),
            waiting: 0,
            next: 0,
        }
    }

    /// How many items wait.
    pub(super) const fn len(&self) -> usize {
        self.waiting
    }

    /// How many peers have something waiting.
    pub(super) fn peers(&self) -> usize {
        self.peers.len()
    }

    /// Takes an item in, as the last one of its peer.
    pub(super) fn offer(&mut self, peer: &P, item: T) -> Offered<T> {
        let own = self.peers.get(peer).map_or(0, VecDeque::len);
        if own >= self.bounds.per_peer {
            return Offered::Full;
        }
        let displaced = if self.waiting >= self.bounds.total {
            match self.displace(own) {
                Some(item) => Some(item),
                None => return Offered::Full,
            }
        } else {
            None
        };
        let ticket = Ticket(self.next);
        self.next += 1;
        self.waiting += 1;
        let queue = self.peers.entry(peer.clone()).or_insert_with(|| {
            self.turns.push_back(peer.clone());
            VecDeque::new()
        });
        queue.push_back((ticket, item));
        displaced.map_or(Offered::Waits(ticket), |item| {
            Offered::Displaced(ticket, item)
        })
    }

    /// The item whose turn it is.
    pub(super) fn next(&mut self) -> Option<T> {
        let peer = self.turns.pop_front()?;
        let queue = self.peers.get_mut(&peer)?;
        let (_, item) = queue.pop_front()?;
        self.waiting -= 1;
        if queue.is_empty() {
            self.peers.remove(&peer);
        } else {
            self.turns.push_back(peer);
        }
        Some(item)
    }

    /// Takes an item out before its turn; none where it has left already.
    pub(super) fn leave(&mut self, peer: &P, ticket: Ticket) -> Option<T> {
        let queue = self.peers.get_mut(peer)?;
        let at = queue
            .binary_search_by_key(&ticket, |(ticket, _)| *ticket)
            .ok()?;
        let (_, item) = queue.remove(at)?;
        self.waiting -= 1;
        if queue.is_empty() {
            self.forget(peer);
        }
        Some(item)
    }

    /// Takes out the newest item of the peer that has most, if that peer has
    /// more than the `own` of the one who comes, the new one included.
    fn displace(&mut self, own: usize) -> Option<T> {
        let (peer, queue) = self
            .peers
            .iter_mut()
            .max_by_key(|(_, queue)| queue.len())
            .filter(|(_, queue)| queue.len() > own + 1)?;
        let (_, item) = queue.pop_back()?;
        self.waiting -= 1;
        if queue.is_empty() {
            let peer = peer.clone();
            self.forget(&peer);
        }
        Some(item)
    }

    fn forget(&mut self, peer: &P) {
        self.peers.remove(peer);
        self.turns.retain(|other| other != peer);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, VecDeque};

    use proptest::prelude::*;

    use super::*;

    const BOUNDS: Bounds = Bounds {
        total: 1_000,
        per_peer: 600,
    };

    #[test]
    fn a_thousand_requests_of_one_peer_hold_another_up_for_one_turn() {
        let mut queue = FairQueue::new(BOUNDS);
        for item in 0..500 {
            queue.offer(&"proxy", ("proxy", item));
        }
        queue.offer(&"drive", ("drive", 0));
        let served: Vec<_> = std::iter::from_fn(|| queue.next()).take(2).collect();
        assert_eq!(served, [("proxy", 0), ("drive", 0)]);
    }

    #[test]
    fn a_full_queue_makes_room_for_who_has_less() {
        let bounds = Bounds {
            total: 4,
            per_peer: 4,
        };
        let mut queue = FairQueue::new(bounds);
        for item in 0..4 {
            assert!(matches!(queue.offer(&"a", item), Offered::Waits(_)));
        }
        assert_eq!(queue.offer(&"a", 4), Offered::Full);
        assert!(matches!(queue.offer(&"b", 10), Offered::Displaced(_, 3)));
        assert!(matches!(queue.offer(&"b", 11), Offered::Displaced(_, 2)));
        // Two each: nobody has more than the other would have.
        assert_eq!(queue.offer(&"b", 12), Offered::Full);
        let served: Vec<_> = std::iter::from_fn(|| queue.next()).collect();
        assert_eq!(served, [0, 10, 1, 11]);
    }

    #[test]
    fn one_peer_alone_is_bounded() {
        let mut queue = FairQueue::new(Bounds {
            total: 10,
            per_peer: 2,
        });
        assert!(matches!(queue.offer(&"a", 0), Offered::Waits(_)));
        assert!(matches!(queue.offer(&"a", 1), Offered::Waits(_)));
        assert_eq!(queue.offer(&"a", 2), Offered::Full);
        assert!(matches!(queue.offer(&"b", 0), Offered::Waits(_)));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Offer(u8),
        Next,
        Leave(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0_u8..6).prop_map(Step::Offer),
            3 => Just(Step::Next),
            1 => (0_usize..64).prop_map(Step::Leave),
        ];
        prop::collection::vec(step, 0..400)
    }

    proptest! {
        /// Whatever happens: the bounds hold, each peer's items leave in their
        /// order, and nobody who waits is passed over twice for one peer.
        #[test]
        fn any_history_is_fair(steps in steps(), total in 1_usize..12, per_peer in 1_usize..8) {
            let bounds = Bounds { total, per_peer };
            let mut queue = FairQueue::new(bounds);
            let mut model: BTreeMap<u8, VecDeque<u64>> = BTreeMap::new();
            let mut tickets: Vec<(u8, Ticket, u64)> = Vec::new();
            // Who was served since each waiting peer's last turn.
            let mut passed: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
            for (item, step) in (0_u64..).zip(steps) {
                match step {
                    Step::Offer(peer) => match queue.offer(&peer, (peer, item)) {
                        Offered::Waits(ticket) => {
                            model.entry(peer).or_default().push_back(item);
                            tickets.push((peer, ticket, item));
                        }
                        Offered::Displaced(ticket, (other, lost)) => {
                            prop_assert_ne!(peer, other);
                            prop_assert_eq!(model.get_mut(&other).and_then(VecDeque::pop_back), Some(lost));
                            model.entry(peer).or_default().push_back(item);
                            tickets.push((peer, ticket, item));
                        }
                        Offered::Full => {
                            let own = model.get(&peer).map_or(0, VecDeque::len);
                            let waiting: usize = model.values().map(VecDeque::len).sum();
                            let most = model.values().map(VecDeque::len).max().unwrap_or(0);
                            prop_assert!(own >= per_peer || (waiting >= total && most <= own + 1));
                        }
                    },
                    Step::Next => match queue.next() {
                        None => prop_assert!(model.values().all(VecDeque::is_empty)),
                        Some((peer, first)) => {
                            prop_assert_eq!(model.get_mut(&peer).and_then(VecDeque::pop_front), Some(first));
                            passed.remove(&peer);
                            for (other, waiting) in &model {
                                if *other != peer && !waiting.is_empty() {
                                    let before = passed.entry(*other).or_default();
                                    prop_assert!(!before.contains(&peer), "{other} starves behind {peer}");
                                    before.push(peer);
                                }
                            }
                        }
                    },
                    Step::Leave(which) => {
                        if let Some((peer, ticket, item)) = tickets.get(which).copied() {
                            let waits = model.get(&peer).is_some_and(|queue| queue.contains(&item));
                            prop_assert_eq!(queue.leave(&peer, ticket).is_some(), waits);
                            if let Some(queue) = model.get_mut(&peer) {
                                queue.retain(|other| *other != item);
                            }
                        }
                    }
                }
                model.retain(|_, queue| !queue.is_empty());
                passed.retain(|peer, _| model.contains_key(peer));
                let waiting: usize = model.values().map(VecDeque::len).sum();
                prop_assert_eq!(queue.len(), waiting);
                prop_assert_eq!(queue.peers(), model.len());
                prop_assert!(waiting <= total);
                prop_assert!(model.values().all(|queue| queue.len() <= per_peer));
            }
        }
    }
}
