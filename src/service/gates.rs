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
mod gate;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::bridge::message::PrivateHalf;
use crate::deadline;
use crate::key::KekHash;
use crate::keystore::Tokens;
use crate::metrics::Histogram;
use crate::problem::Problem;
use crate::tls::PeerId;
pub(crate) use fair::Bounds;
use gate::Gate;
pub(super) use gate::Place;

/// Places for each worker of a token: one at work, and others on their way to
/// it or from it, whose records are being written.
const PER_WORKER: usize = 4;

/// Requests that are looked up at once; the state has one connection.
const LOOKUPS: usize = 16;

/// The name of the gate before the state; no token has such a one.
const STATE: &str = "(state)";

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
    /// One that waits until then, or until what is returned beside it is dropped.
    pub(super) fn new(until: Instant) -> (Self, watch::Sender<()>) {
        let (here, stays) = watch::channel(());
        let caller = Self {
            stays: Some(stays),
            ..Self::staying(until)
        };
        (caller, here)
    }

    /// One that waits until then in any case.
    const fn staying(until: Instant) -> Self {
        Self { until, stays: None }
    }

    /// Runs a verb for this caller.
    pub(super) async fn wait_for<T>(self, verb: impl Future<Output = T>) -> T {
        deadline::within(self.until, CALLER.scope(self, verb)).await
    }

    /// Why it does not hear what is said to it now, where it does not.
    fn unheard(&self) -> Option<&'static str> {
        let stays = self.stays.as_ref();
        // Nothing is ever sent: an error is the other end's going.
        let gone = stays.is_some_and(|stays| stays.has_changed().is_err());
        if !gone {
            return None;
        }
        Some(if Instant::now() < self.until {
            "the client had gone before this answer, and did not get it"
        } else {
            "the request's time was over before this answer: the client has an error instead"
        })
    }

    async fn gone(&mut self) {
        match &mut self.stays {
            // Nothing is ever sent: an error is the other end's going.
            Some(stays) => while stays.changed().await.is_ok() {},
            None => std::future::pending().await,
        }
    }
}

/// Why whoever asked for the verb that this task runs does not hear its answer, where that is so.
pub(super) fn unheard() -> Option<&'static str> {
    CALLER.try_with(Caller::unheard).ok().flatten()
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
            .unwrap_or_else(|_| Caller::staying(deadline::until_or(self.patience)))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_answer_that_comes_when_its_client_has_gone_is_known_as_such() {
        let hour = Duration::from_secs(3600);
        for (until, why) in [
            (Instant::now() + hour, "the client had gone"),
            (Instant::now(), "time was over"),
        ] {
            let (caller, here) = Caller::new(until);
            caller
                .wait_for(async move {
                    assert_eq!(deadline::until(), Some(until));
                    assert_eq!(unheard(), None);
                    drop(here);
                    let said = unheard().unwrap();
                    assert!(said.contains(why), "{said}");
                })
                .await;
        }
        assert_eq!(unheard(), None);
    }
}
