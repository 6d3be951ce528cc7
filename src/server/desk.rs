//! Which connections are let in, and which have to give way.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use std::collections::HashMap;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::oneshot;

use super::seats::{Bounds, NoRoom, Seat, Seats};
use crate::tls::PeerId;

/// Descriptors besides those of the drives' connections: state, records,
/// bridges, operators, certificates being read.
const OTHERS: u64 = 256;

/// How often crowding is told of at most.
const TELL: Duration = Duration::from_secs(10);

/// Whom a connection belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Holder {
    /// Before its handshake; of an IPv6 address the network, since a host has
    /// 2^64 of them (RFC 4291, 2.5.1).
    Address(IpAddr),
    /// Afterwards.
    Peer(PeerId),
}

fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(six) => six.to_ipv4_mapped().map_or_else(
            || IpAddr::V6(Ipv6Addr::from_bits(six.to_bits() >> 64 << 64)),
            IpAddr::V4,
        ),
    }
}

/// The connections of the drives' door.
#[derive(Debug)]
pub(super) struct Desk(Mutex<State>);

#[derive(Debug)]
struct State {
    seats: Seats<Holder>,
    // What tells a connection to end.
    open: HashMap<Seat, oneshot::Sender<()>>,
    limit: usize,
    accepted: u64,
    displaced: u64,
    refused: u64,
    // When an operator was last told of the one and of the other.
    told_displaced: Option<Instant>,
    told_refused: Option<Instant>,
}

/// The door at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct DoorSeen {
    /// Connections that are open.
    pub(super) open: usize,
    /// Most that may be.
    pub(super) limit: usize,
    /// Connections that were let in.
    pub(super) accepted: u64,
    /// Idle connections that gave way to others.
    pub(super) displaced: u64,
    /// Connections that found no room.
    pub(super) refused: u64,
}

impl Desk {
    /// A desk for that many connections, and no more than the operating
    /// system gives descriptors for.
    pub(super) fn new(connections: usize, per_peer: usize) -> Self {
        let limit = affordable(connections);
        let bounds = Bounds {
            total: limit,
            per_holder: per_peer.min(limit),
        };
        Self(Mutex::new(State {
            seats: Seats::new(bounds),
            open: HashMap::new(),
            limit,
            accepted: 0,
            displaced: 0,
            refused: 0,
            told_displaced: None,
            told_refused: None,
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a connection in, if there is room or some can be made.
    pub(super) fn admit(self: &Arc<Self>, address: IpAddr) -> Option<Seated> {
        let mut state = self.state();
        let taken = state.seats.take(Holder::Address(network(address)));
        let seat = state.settle(taken)?;
        state.accepted += 1;
        let (tell, told) = oneshot::channel();
        state.open.insert(seat, tell);
        Some(Seated {
            desk: Arc::clone(self),
            seat,
            told,
        })
    }

    /// How the door is now.
    pub(super) fn seen(&self) -> DoorSeen {
        let state = self.state();
        DoorSeen {
            open: state.seats.taken(),
            limit: state.limit,
            accepted: state.accepted,
            displaced: state.displaced,
            refused: state.refused,
        }
    }
}

impl State {
    /// Tells the connection that has to give way, and the operator.
    fn settle<T>(&mut self, taken: Result<(T, Option<Seat>), NoRoom>) -> Option<T> {
        let (seat, told, crowded) = match taken {
            Ok((seat, None)) => return Some(seat),
            Ok((seat, Some(gives_way))) => {
                self.displaced += 1;
                // Its receiver learns of it by the sender's end.
                drop(self.open.remove(&gives_way));
                (
                    Some(seat),
                    &mut self.told_displaced,
                    "the oldest idle one of whoever has most gave way",
                )
            }
            Err(NoRoom) => {
                self.refused += 1;
                (None, &mut self.told_refused, "a new one was refused")
            }
        };
        if told.is_none_or(|at| at.elapsed() >= TELL) {
            *told = Some(Instant::now());
            tracing::warn!(
                limit = self.limit,
                displaced = self.displaced,
                refused = self.refused,
                "too many are open at the door: {crowded}"
            );
        }
        seat
    }
}

/// A connection's seat, free again when dropped.
#[derive(Debug)]
pub(super) struct Seated {
    desk: Arc<Desk>,
    seat: Seat,
    told: oneshot::Receiver<()>,
}

impl Seated {
    /// The handshake has told whose it is. False where that peer has no room.
    pub(super) fn belongs_to(&self, peer: &PeerId) -> bool {
        let mut state = self.desk.state();
        let moved = state
            .seats
            .belongs_to(self.seat, Holder::Peer(peer.clone()))
            .map(|gives_way| ((), gives_way));
        state.settle(moved).is_some()
    }

    /// Resolves when the connection has to give way.
    pub(super) async fn gives_way(&mut self) {
        // Nothing is sent.
        let _ = (&mut self.told).await;
    }

    /// What marks the seat as busy, for the requests of this connection.
    pub(super) fn mark(&self) -> BusyMark {
        BusyMark {
            desk: Arc::clone(&self.desk),
            seat: self.seat,
        }
    }
}

impl Drop for Seated {
    fn drop(&mut self) {
        let mut state = self.desk.state();
        state.open.remove(&self.seat);
        state.seats.leave(self.seat);
    }
}

/// Marks a seat as busy while a request is at work.
#[derive(Clone, Debug)]
pub(super) struct BusyMark {
    desk: Arc<Desk>,
    seat: Seat,
}

impl BusyMark {
    /// Whether a request is at work there.
    pub(super) fn set(&self, busy: bool) {
        self.desk.state().seats.set_busy(self.seat, busy);
    }
}

/// As many connections as there are descriptors for, after the soft limit was
/// raised as far as need be and may be.
fn affordable(connections: usize) -> usize {
    let wanted = u64::try_from(connections).unwrap_or(u64::MAX);
    let needed = wanted.saturating_add(OTHERS);
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // None is no limit.
    let Some(soft) = current.filter(|soft| *soft < needed) else {
        return connections;
    };
    let raised = maximum.map_or(needed, |hard| hard.min(needed));
    let have = match setrlimit(
        Resource::Nofile,
        Rlimit {
            current: Some(raised),
            maximum,
        },
    ) {
        Ok(()) => raised,
        Err(_) => soft,
    };
    if have >= needed {
        return connections;
    }
    let affordable = usize::try_from(have.saturating_sub(OTHERS)).unwrap_or(connections);
    let affordable = affordable.clamp(1, connections);
    tracing::warn!(
        descriptors = have,
        wanted = connections,
        connections = affordable,
        "there are too few file descriptors for server.max_connections, so fewer are let in; raise the limit (systemd: LimitNOFILE)"
    );
    affordable
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_addresses_of_one_network_count_as_one() {
        assert_eq!(
            network(address("2001:db8:1:2::1")),
            network(address("2001:db8:1:2:ffff::9"))
        );
        assert_ne!(
            network(address("2001:db8:1:2::1")),
            network(address("2001:db8:1:3::1"))
        );
        assert_eq!(network(address("::ffff:192.0.2.1")), address("192.0.2.1"));
    }

    #[tokio::test]
    async fn who_gives_way_is_told_and_frees_its_seat() {
        let desk = Arc::new(Desk::new(2, 2));
        let mut first = desk.admit(address("192.0.2.1")).unwrap();
        let _second = desk.admit(address("192.0.2.1")).unwrap();
        let third = desk.admit(address("192.0.2.2")).unwrap();
        first.gives_way().await;
        assert!(third.belongs_to(&"drive:000000000001".parse().unwrap()));
        drop(first);
        let seen = desk.seen();
        assert_eq!((seen.open, seen.accepted, seen.displaced), (2, 3, 1));
        third.mark().set(true);
        drop(third);
        assert_eq!(desk.seen().open, 1);
    }
}
