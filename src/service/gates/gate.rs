//! One gate: its places, and the requests that wait for one.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::fair::{Bounds, FairQueue, Offered, Ticket};
use super::{Caller, GateSeen, STATE};
use crate::metrics::Latency;
use crate::problem::Problem;
use crate::tls::PeerId;

/// Longest time that a refused request is told to stay away, seconds.
const LONGEST_RETRY: u32 = 60;

/// One gate.
#[derive(Debug)]
pub(super) struct Gate {
    pub(super) name: String,
    places: usize,
    bounds: Bounds,
    state: Mutex<State>,
    waited: Latency,
}

#[derive(Debug)]
struct State {
    free: usize,
    queue: FairQueue<PeerId, oneshot::Sender<Turn>>,
    refused: u64,
    left: u64,
    // How long a place was held of late, seconds.
    held: f64,
}

/// What a waiting request is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// A place is yours.
    Yours,
    /// Another peer, which has less, took this room.
    Displaced,
}

impl Gate {
    pub(super) fn new(name: String, places: usize, bounds: Bounds) -> Self {
        Self {
            name,
            places,
            bounds,
            state: Mutex::new(State {
                free: places,
                queue: FairQueue::new(bounds),
                refused: 0,
                left: 0,
                held: 0.0,
            }),
            waited: Latency::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many are under way or wait.
    pub(super) fn before(&self) -> usize {
        let state = self.state();
        self.places - state.free + state.queue.len()
    }

    pub(super) fn seen(&self) -> GateSeen {
        let state = self.state();
        GateSeen {
            name: self.name.clone(),
            places: self.places,
            under_way: self.places - state.free,
            waiting: state.queue.len(),
            peers: state.queue.peers(),
            most: self.bounds.total,
            refused: state.refused,
            left: state.left,
            waited: self.waited.read(),
        }
    }

    pub(super) async fn enter(
        self: &Arc<Self>,
        peer: &PeerId,
        mut caller: Caller,
    ) -> Result<Place, Problem> {
        let begin = Instant::now();
        let mut waiting = match self.ask(peer) {
            Ok(Asked::Place(place)) => {
                self.waited.observe(Duration::ZERO);
                return Ok(place);
            }
            Ok(Asked::Waits(waiting)) => waiting,
            Err(retry) => return Err(self.busy(retry)),
        };
        let until = caller.until;
        let turn = tokio::select! {
            turn = &mut waiting.turn => turn,
            () = tokio::time::sleep_until(until) => {
                let detail = format!(
                    "the key service is busy: the request's turn at {} did not come within {} s",
                    self.what(),
                    begin.elapsed().as_secs()
                );
                return Err(Problem::busy(detail, self.retry_now()));
            }
            () = caller.gone() => {
                return Err(Problem::unavailable("the client went before its turn came, so nothing was done"));
            }
        };
        match turn {
            Ok(Turn::Yours) => {
                self.waited.observe(begin.elapsed());
                Ok(waiting.arrive())
            }
            Ok(Turn::Displaced) | Err(_) => Err(self.busy(self.retry_now())),
        }
    }

    /// A place, or one in the queue, or the seconds after which to try again.
    fn ask(self: &Arc<Self>, peer: &PeerId) -> Result<Asked, u32> {
        let mut state = self.state();
        // Who waits comes before who comes.
        if state.free > 0 && state.queue.len() == 0 {
            state.free -= 1;
            return Ok(Asked::Place(Place::new(self)));
        }
        let (tell, turn) = oneshot::channel();
        let ticket = match state.queue.offer(peer, tell) {
            Offered::Waits(ticket) => ticket,
            Offered::Displaced(ticket, other) => {
                state.refused += 1;
                // One that has gone needs no word.
                let _ = other.send(Turn::Displaced);
                ticket
            }
            Offered::Full => {
                state.refused += 1;
                return Err(self.retry(&state));
            }
        };
        Ok(Asked::Waits(Waiting {
            gate: Arc::clone(self),
            peer: peer.clone(),
            ticket,
            turn,
            arrived: false,
        }))
    }

    /// Hands a place that has become free to the next in turn.
    fn pass_on(state: &mut State) {
        while let Some(next) = state.queue.next() {
            // One whose task has ended has left the queue, or is about to.
            if next.send(Turn::Yours).is_ok() {
                return;
            }
        }
        state.free += 1;
    }

    /// Seconds after which the queue of now should be through.
    fn retry(&self, state: &State) -> u32 {
        let waiting = u32::try_from(state.queue.len()).unwrap_or(u32::MAX);
        let places = u32::try_from(self.places.max(1)).unwrap_or(u32::MAX);
        let through = Duration::try_from_secs_f64(
            f64::from(waiting) / f64::from(places) * state.held.max(0.001),
        );
        let seconds = through.map_or(u64::MAX, |through| through.as_secs() + 1);
        u32::try_from(seconds).map_or(LONGEST_RETRY, |seconds| seconds.min(LONGEST_RETRY))
    }

    fn what(&self) -> String {
        if self.name == STATE {
            "the state".to_owned()
        } else {
            format!("token {}", self.name)
        }
    }

    fn retry_now(&self) -> u32 {
        self.retry(&self.state())
    }

    fn busy(&self, retry: u32) -> Problem {
        Problem::busy(
            format!(
                "the key service is busy: as many requests wait for {} as may; try again in {retry} s",
                self.what()
            ),
            retry,
        )
    }
}

enum Asked {
    Place(Place),
    Waits(Waiting),
}

/// A request in the queue; dropped, it leaves.
struct Waiting {
    gate: Arc<Gate>,
    peer: PeerId,
    ticket: Ticket,
    turn: oneshot::Receiver<Turn>,
    arrived: bool,
}

impl Waiting {
    /// Takes the place that it was given.
    fn arrive(mut self) -> Place {
        self.arrived = true;
        Place::new(&self.gate)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.arrived {
            return;
        }
        let mut state = self.gate.state();
        if state.queue.leave(&self.peer, self.ticket).is_some() {
            state.left += 1;
        } else if self.turn.try_recv() == Ok(Turn::Yours) {
            // It was given a place at the moment at which it went.
            state.left += 1;
            Gate::pass_on(&mut state);
        }
    }
}

/// A place at a token, held for one exchange.
#[derive(Debug)]
pub(in crate::service) struct Place {
    gate: Arc<Gate>,
    since: Instant,
}

impl Place {
    fn new(gate: &Arc<Gate>) -> Self {
        Self {
            gate: Arc::clone(gate),
            since: Instant::now(),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let held = self.since.elapsed().as_secs_f64();
        let mut state = self.gate.state();
        state.held = 0.9_f64.mul_add(state.held, 0.1 * held);
        Gate::pass_on(&mut state);
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::watch;

    use super::*;

    fn gate(places: usize, total: usize, per_peer: usize) -> Arc<Gate> {
        Arc::new(Gate::new(
            "main".to_owned(),
            places,
            Bounds { total, per_peer },
        ))
    }

    fn peer(name: &str) -> PeerId {
        format!("proxy:{name}").parse().unwrap()
    }

    /// Longer than any of these tests.
    const LONG: Duration = Duration::from_secs(3600);

    /// Starts to wait, and returns once it is in the queue.
    async fn wait(
        gate: &Arc<Gate>,
        name: &str,
        patience: Duration,
    ) -> (
        tokio::task::JoinHandle<Result<Place, Problem>>,
        watch::Sender<()>,
    ) {
        let (caller, here) = Caller::new(Instant::now() + patience);
        let (gate, peer) = (Arc::clone(gate), peer(name));
        let task = tokio::spawn(async move { gate.enter(&peer, caller).await });
        tokio::task::yield_now().await;
        (task, here)
    }

    #[tokio::test]
    async fn a_flood_holds_another_peer_up_for_one_turn() {
        let gate = gate(1, 1_000, 1_000);
        let (first, _stay) = wait(&gate, "flood", LONG).await;
        let place = first.await.unwrap().unwrap();
        let mut flood = Vec::new();
        for _ in 0..500 {
            flood.push(wait(&gate, "flood", LONG).await);
        }
        let (single, _here) = wait(&gate, "single", LONG).await;
        assert_eq!(gate.seen().waiting, 501);
        assert_eq!(gate.seen().peers, 2);
        drop(place);
        let (next, _stays) = flood.remove(0);
        drop(next.await.unwrap().unwrap());
        drop(single.await.unwrap().unwrap());
    }

    #[tokio::test]
    async fn past_the_bound_the_answer_is_busy_and_when_to_come_again() {
        let gate = gate(1, 3, 2);
        let (first, _stay) = wait(&gate, "a", LONG).await;
        let _place = first.await.unwrap().unwrap();
        let _a = [wait(&gate, "a", LONG).await, wait(&gate, "a", LONG).await];
        let (refused, _here) = wait(&gate, "a", LONG).await;
        let problem = refused.await.unwrap().unwrap_err();
        assert_eq!(
            (problem.code.to_string().as_str(), problem.status),
            ("EE0F", 503)
        );
        assert!(problem.detail.contains("busy"), "{problem}");
        assert_eq!(problem.retry_after, Some(1));
        assert_eq!(gate.seen().refused, 1);
        // Another peer still has room.
        let _b = wait(&gate, "b", LONG).await;
        assert_eq!(gate.seen().waiting, 3);
    }

    #[tokio::test]
    async fn who_has_gone_leaves_the_queue_and_loses_no_place() {
        let gate = gate(1, 10, 10);
        let (first, _stay) = wait(&gate, "a", LONG).await;
        let place = first.await.unwrap().unwrap();
        let (gone, here) = wait(&gate, "a", LONG).await;
        let (killed, _here) = wait(&gate, "b", LONG).await;
        let (stays, _stay) = wait(&gate, "c", LONG).await;
        drop(here);
        assert_eq!(gone.await.unwrap().unwrap_err().status, 503);
        killed.abort();
        assert!(killed.await.is_err());
        assert_eq!((gate.seen().waiting, gate.seen().left), (1, 2));
        drop(place);
        drop(stays.await.unwrap().unwrap());
        assert_eq!((gate.seen().under_way, gate.seen().waiting), (0, 0));
    }

    #[tokio::test]
    async fn a_place_that_was_given_to_one_who_went_goes_to_the_next() {
        let gate = gate(1, 10, 10);
        let (first, _stay) = wait(&gate, "a", LONG).await;
        let place = first.await.unwrap().unwrap();
        let (killed, _here) = wait(&gate, "a", LONG).await;
        let (next, _stay) = wait(&gate, "b", LONG).await;
        // Given and gone before its task has run.
        drop(place);
        killed.abort();
        assert!(killed.await.is_err());
        drop(next.await.unwrap().unwrap());
        assert_eq!((gate.seen().under_way, gate.seen().left), (0, 1));
    }

    #[tokio::test]
    async fn waiting_ends_with_the_requests_time() {
        let gate = gate(1, 10, 10);
        let (first, _stay) = wait(&gate, "a", LONG).await;
        let _place = first.await.unwrap().unwrap();
        let (late, _here) = wait(&gate, "a", Duration::from_millis(50)).await;
        assert_eq!(gate.seen().waiting, 1);
        let problem = late.await.unwrap().unwrap_err();
        assert_eq!(problem.status, 503);
        assert!(
            problem.detail.contains("turn at token main did not come"),
            "{problem}"
        );
        assert_eq!((gate.seen().waiting, gate.seen().left), (0, 1));
    }
}
