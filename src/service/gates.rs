//! The requests that wait: one gate before each token, and one before the state.
//!
//! An exchange needs a place at its token. There are a few for each of the
//! token's workers, enough to keep them busy and few enough that whoever
//! comes next is soon served. Where none is free the request waits, and the
//! peers are served in turn. A gate of its own for each token, so that one
//! that hangs holds up nobody whose key is on another.
//!
//! What is looked up in the state before comes first, and has a gate for the
//! same reason: a thousand requests that wait there for each other would hold
//! up whoever comes next.
//!
//! Drives wait for minutes, so a request waits for as long as its time allows
//! before it is refused. Past the bounds it is refused at once.

mod fair;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use crate::bridge::message::PrivateHalf;
use crate::key::KekHash;
use crate::keystore::Tokens;
use crate::metrics::{Histogram, Latency};
use crate::problem::Problem;
use crate::tls::PeerId;
pub(crate) use fair::Bounds;
use fair::{FairQueue, Offered, Ticket};

/// Places for each worker of a token: one at work, and others on their way to
/// it or from it, whose records are being written.
const PER_WORKER: usize = 4;

/// Requests that are looked up at once; the state has one connection.
const LOOKUPS: usize = 16;

/// The name of the gate before the state; no token has such a one.
const STATE: &str = "(state)";

/// Longest time that a refused request is told to stay away, seconds.
const LONGEST_RETRY: u32 = 60;

tokio::task_local! {
    /// Who waits for the answer of the verb that this task runs.
    static CALLER: Caller;
}

/// Who waits for a verb's answer: until when, and whether still.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    until: Instant,
    // None for who does not go.
    stays: Option<watch::Receiver<()>>,
}

impl Caller {
    /// One that waits for that long, or until what is returned beside it is dropped.
    pub(super) fn new(patience: Duration) -> (Self, watch::Sender<()>) {
        let (here, stays) = watch::channel(());
        let caller = Self {
            stays: Some(stays),
            ..Self::staying(patience)
        };
        (caller, here)
    }

    /// One that waits for that long in any case.
    fn staying(patience: Duration) -> Self {
        Self {
            until: Instant::now() + patience,
            stays: None,
        }
    }

    /// Runs a verb for this caller.
    pub(super) async fn wait_for<T>(self, verb: impl Future<Output = T>) -> T {
        CALLER.scope(self, verb).await
    }

    async fn gone(&mut self) {
        match &mut self.stays {
            // Nothing is ever sent: an error is the other end's going.
            Some(stays) => while stays.changed().await.is_ok() {},
            None => std::future::pending().await,
        }
    }
}

/// The gates of a server's tokens, in the order of the configuration.
#[derive(Debug)]
pub struct Gates {
    state: Arc<Gate>,
    gates: Vec<Arc<Gate>>,
    patience: Duration,
}

/// A gate at one moment.
#[derive(Clone, Debug)]
pub struct GateSeen {
    /// The token's configured name, or `(state)`.
    pub name: String,
    /// How many requests may be under way behind it at once.
    pub places: usize,
    /// How many are.
    pub under_way: usize,
    /// How many requests wait.
    pub waiting: usize,
    /// Of how many peers.
    pub peers: usize,
    /// How many may wait.
    pub most: usize,
    /// Requests that were refused because the gate was full.
    pub refused: u64,
    /// Requests that left before their turn: their client went, or their time was over.
    pub left: u64,
    /// How long requests waited for their place.
    pub waited: Histogram,
}

impl Gates {
    /// Empty gates for tokens of that many workers each.
    pub(crate) fn new(
        tokens: impl IntoIterator<Item = (String, usize)>,
        bounds: Bounds,
        patience: Duration,
    ) -> Self {
        let gates = tokens
            .into_iter()
            .map(|(token, workers)| Arc::new(Gate::new(token, workers * PER_WORKER, bounds)))
            .collect();
        let state = Arc::new(Gate::new(STATE.to_owned(), LOOKUPS, bounds));
        Self {
            state,
            gates,
            patience,
        }
    }

    /// Waits for a place at the state.
    ///
    /// # Errors
    /// Too many wait, or the request's time is over.
    pub(super) async fn arrive(&self, peer: &PeerId) -> Result<Place, Problem> {
        self.state.enter(peer, self.caller()).await
    }

    /// Waits for a place at a token that holds one of the KEKs. Of several
    /// that are ready, the one with the fewest before. Who waits for a token
    /// waits not at one that is `barred` from what he asks.
    ///
    /// # Errors
    /// The gate is full, or the request's time is over.
    pub(super) async fn enter<'a>(
        &self,
        tokens: &Tokens,
        keks: impl Iterator<Item = &'a KekHash> + Clone,
        barred: &[String],
        peer: &PeerId,
    ) -> Result<Option<Place>, Problem> {
        let Some(gate) = self.choose(tokens, keks, barred) else {
            return Ok(None);
        };
        gate.enter(peer, self.caller()).await.map(Some)
    }

    fn caller(&self) -> Caller {
        // There is none in a program that embeds the service and waits itself.
        CALLER
            .try_with(Clone::clone)
            .unwrap_or_else(|_| Caller::staying(self.patience))
    }

    fn choose<'a>(
        &self,
        tokens: &Tokens,
        keks: impl Iterator<Item = &'a KekHash> + Clone,
        barred: &[String],
    ) -> Option<&Arc<Gate>> {
        if let [only] = self.gates.as_slice() {
            return Some(only);
        }
        self.gates.iter().min_by_key(|gate| {
            let standing = standing(tokens, &gate.name, keks.clone());
            (barred.contains(&gate.name), standing, gate.before())
        })
    }

    /// How each gate is now.
    pub(crate) fn seen(&self) -> Vec<GateSeen> {
        let all = [&self.state].into_iter().chain(&self.gates);
        all.map(|gate| gate.seen()).collect()
    }
}

/// How little a token is fit for work under one of the KEKs, by the order in
/// which the keystore asks: whether it lacks the private halves, is down, is
/// silent, and its priority. One that is down and has the key is waited for.
fn standing<'a>(
    tokens: &Tokens,
    name: &str,
    mut keks: impl Iterator<Item = &'a KekHash> + Clone,
) -> (bool, bool, bool, u8) {
    let Some(bridge) = tokens.bridges().iter().find(|one| one.name() == name) else {
        return (true, true, true, u8::MAX);
    };
    let holds = bridge.found().is_some_and(|found| {
        keks.any(|kek| {
            found
                .keks
                .iter()
                .any(|one| one.hash == *kek && !matches!(one.private, PrivateHalf::Absent))
        })
    });
    (
        !holds,
        !bridge.serves(),
        bridge.is_silent(),
        bridge.rank().priority,
    )
}

/// One gate.
#[derive(Debug)]
struct Gate {
    name: String,
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
    fn new(name: String, places: usize, bounds: Bounds) -> Self {
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
    fn before(&self) -> usize {
        let state = self.state();
        self.places - state.free + state.queue.len()
    }

    fn seen(&self) -> GateSeen {
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

    async fn enter(self: &Arc<Self>, peer: &PeerId, mut caller: Caller) -> Result<Place, Problem> {
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
pub(super) struct Place {
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
        let (caller, here) = Caller::new(patience);
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
