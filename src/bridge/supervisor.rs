//! The server's side of a token: its bridges are started, asked, started again.
//!
//! ```text
//! ask -> pick a link -> bridge process          lane 1..N: start, open, serve, pause
//!                  \--> another one                   \--> board: the token's state
//! ```
//!
//! A token may be driven by several bridge processes (`session.processes` of
//! its profile), each a *lane*. A request goes to the lane with the least to
//! do. One that outlives its time by the grace means that the module hangs;
//! PKCS#11 has no way to abandon a call, so that bridge is killed. Pauses
//! between starts grow, and a token that needs its operator is left alone.

mod attended;
mod due;
mod keyless;
mod lane;
mod link;
#[cfg(test)]
mod played;
mod program;
mod shared;
mod socket;
mod state;
mod unlock;
mod warned;

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::sync::watch;
use tokio::time::Instant;

use super::faults::Fault;
use super::message::{self, Hello, Op, Ready, Reply, Response};
use super::pkcs11::TokenInfo;
use super::stats::Stats;
use crate::key::WrapAlgorithm;
use lane::{GRACE, Lane};
use link::{Link, NotPut, receive, restarts};
use shared::Shared;

pub use attended::Attended;
#[cfg(test)]
pub(crate) use played::Played;
pub use program::Program;
pub use state::TokenState;

/// Longest time for a task that answers once: loading, initialising.
const ONCE: Duration = Duration::from_secs(60);

/// Longest time for a new key pair: RSA-4096 on a smart card takes minutes.
const GENERATE: Duration = Duration::from_secs(600);

/// Time without any answer, while some are waited for, after which a token is not called ready.
const DUMB: Duration = Duration::from_secs(5);

/// Shortest time after which another token is asked too, where one does not answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// The same, as a multiple of what an answer took of late.
const PATIENCE_TIMES: u32 = 8;

/// How often a lane with room is looked for while every one is full.
const ROOM: Duration = Duration::from_millis(5);

/// Runs a bridge for one task that answers once: listing or initialising.
///
/// # Errors
/// What the bridge says, or that it could not be run.
pub async fn once(program: &Program, hello: &Hello) -> Result<Reply, Fault> {
    let down = |reason: String| Fault::Down {
        token: hello.name.clone(),
        reason,
    };
    let (_child, mut socket) = program
        .spawn(hello, None)
        .map_err(|error| down(format!("cannot start the bridge: {error}")))?;
    let exchange = async {
        socket.write_all(&message::encode(hello)?).await?;
        receive(&mut socket).await
    };
    match tokio::time::timeout(ONCE, exchange).await {
        Ok(Ok(Response { result, .. })) => result,
        Ok(Err(error)) => Err(down(format!(
            "the bridge ended without an answer ({error}); did the module crash?"
        ))),
        Err(_) => Err(down(format!(
            "the module did not answer within {} s",
            ONCE.as_secs()
        ))),
    }
}

/// Where a token stands among the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rank {
    /// Tokens of the lowest number that serve are used; the next only where none does.
    pub priority: u8,
    /// Its share of the work among tokens of its priority.
    pub weight: u32,
}

impl Default for Rank {
    fn default() -> Self {
        Self {
            priority: 1,
            weight: 1,
        }
    }
}

/// A question that a bridge has taken.
pub(crate) struct Asked {
    answer: tokio::sync::oneshot::Receiver<link::Answer>,
    since: Instant,
    until: Instant,
}

/// A token behind its bridges.
#[derive(Clone, Debug)]
pub struct Bridge {
    name: Arc<str>,
    deadline: Duration,
    rank: Rank,
    shared: Arc<Shared>,
    state: watch::Receiver<TokenState>,
    // The lanes end when the last of these is dropped.
    _wanted: Arc<watch::Sender<()>>,
}

impl Bridge {
    /// Starts the token's bridges and keeps them running for as long as the
    /// `Bridge` lives.
    #[must_use]
    pub fn start(program: Program, hello: Hello) -> Self {
        let lanes = hello.profile.session.processes;
        let name: Arc<str> = hello.name.as_str().into();
        let deadline = Duration::from_secs(hello.profile.session.deadline_seconds);
        let shared = Arc::new(Shared::new(program, hello, lanes));
        let state = shared.board.watch();
        let (wanted, lasts) = watch::channel(());
        for index in 0..lanes {
            tokio::spawn(Lane::new(index, Arc::clone(&shared), lasts.clone()).run());
        }
        Self {
            name,
            deadline,
            rank: Rank::default(),
            shared,
            state,
            _wanted: Arc::new(wanted),
        }
    }

    /// The same token with its place among the others.
    #[must_use]
    pub const fn ranked(mut self, rank: Rank) -> Self {
        self.rank = rank;
        self
    }

    /// Its place among the others.
    #[must_use]
    pub const fn rank(&self) -> Rank {
        self.rank
    }

    /// The token's configured name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What is known of the token now.
    #[must_use]
    pub fn state(&self) -> TokenState {
        self.state.borrow().clone()
    }

    /// Whether it answers requests now.
    #[must_use]
    pub fn serves(&self) -> bool {
        self.state.borrow().serves()
    }

    /// What was last found on it.
    #[must_use]
    pub fn found(&self) -> Option<Arc<Ready>> {
        self.state.borrow().found().cloned()
    }

    /// The longest that one exchange may take.
    #[must_use]
    pub const fn deadline(&self) -> Duration {
        self.deadline
    }

    /// How it wraps and opens EEDKs.
    #[must_use]
    pub fn wraps_by(&self) -> WrapAlgorithm {
        self.shared.hello.profile.wrap_algorithm()
    }

    /// Exchanges that it does at once when all is well: sessions of all its bridges.
    #[must_use]
    pub fn capacity(&self) -> usize {
        let session = &self.shared.hello.profile.session;
        session.workers * session.processes
    }

    /// Sessions that each of its bridges should have.
    #[must_use]
    pub fn sessions_wanted(&self) -> usize {
        self.shared.hello.profile.session.workers
    }

    /// Requests that its bridges have not answered yet.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.links().iter().map(|link| link.under_way()).sum()
    }

    /// Whether requests wait and nothing has been heard of any of its bridges
    /// for a while, or no bridge is there at this moment.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        self.links().iter().all(|link| link.is_silent())
    }

    /// Whether keys can be had of it: it serves, a KEK of it does, and where requests wait,
    /// some bridge was heard in the last seconds.
    #[must_use]
    pub fn answers(&self) -> bool {
        let links = self.links();
        // One that is renewed is back at once, or is not said to serve.
        self.serves()
            && self.keyless().is_none()
            && (links.is_empty() || links.iter().any(|link| link.silence() < DUMB))
    }

    /// Why no key can be had of it although it serves: no KEK of it does. None where one does, or
    /// where it does not serve.
    #[must_use]
    pub fn keyless(&self) -> Option<String> {
        let state = self.state();
        let found = state.found().filter(|_| state.serves())?;
        self.shared.board.keyless(found)
    }

    /// How it is, in one sentence, with its name.
    #[must_use]
    pub fn told(&self) -> String {
        let told = format!("{} {}", self.name, self.state().told());
        match self.keyless() {
            // Where some are refused that is why it is degraded.
            Some(why) if !told.contains(&why) => format!("{told}, but {why}"),
            Some(_) | None => told,
        }
    }

    /// That it is silent, as a fault.
    #[must_use]
    pub fn unheard(&self) -> Fault {
        self.down("it has not answered for a while although requests, or its canary, wait")
    }

    /// Time since the token last opened or made an EEDK, the canary included.
    /// None while no bridge is up, or where it never did since.
    #[must_use]
    pub fn proof_age(&self) -> Option<Duration> {
        let links = self.links();
        links.iter().filter_map(|link| link.proof_age()).min()
    }

    /// How long an answer of this token is waited for before another token is
    /// asked too.
    #[must_use]
    pub fn patience(&self) -> Duration {
        let latency = self.links().iter().map(|link| link.latency()).max();
        let usual = (latency.unwrap_or_default() * PATIENCE_TIMES).max(PATIENCE);
        // There must be time left for the other.
        usual.min(self.deadline / 4)
    }

    /// Time from question to answer of late, of the quickest bridge that serves; zero where one has
    /// not answered yet, or none serves.
    #[must_use]
    pub fn usual(&self) -> Duration {
        let latency = self.links().iter().map(|link| link.latency()).min();
        latency.unwrap_or_default()
    }

    /// Bridges that were started so far, the first ones included.
    #[must_use]
    pub fn starts(&self) -> u64 {
        self.shared.starts.load(Ordering::Relaxed)
    }

    /// What the token last said of itself: also where it refused the PIN, and its flags say how
    /// many tries are left.
    #[must_use]
    pub fn token_info(&self) -> Option<TokenInfo> {
        self.shared.board.token()
    }

    /// What its bridges measured, those that have ended or do not serve yet included; some seconds
    /// old.
    #[must_use]
    pub fn stats(&self) -> Stats {
        // Both under one lock, or one that ends in between would be missed or counted twice.
        let links = self.shared.links.read();
        let links = links.unwrap_or_else(PoisonError::into_inner);
        let mut all = self.shared.past().clone();
        for told in self.shared.opening().iter() {
            all.add(told);
        }
        for link in links.iter().flatten() {
            all.add(&link.stats());
        }
        all
    }

    /// Ends pauses, and has a locked token tried again.
    pub fn nudge(&self) {
        self.shared.nudged.notify_waiters();
    }

    /// Waits until the token serves, or is known not to do so soon.
    ///
    /// # Errors
    /// Why it does not.
    pub async fn settled(&self) -> Result<Arc<Ready>, Fault> {
        let mut state = self.state.clone();
        let settled = state
            .wait_for(|state| !matches!(state, TokenState::Starting { .. }))
            .await
            .map(|state| state.clone());
        match settled {
            Ok(TokenState::Ready { ready, .. } | TokenState::Degraded { ready, .. }) => Ok(ready),
            Ok(TokenState::Failed { why, .. } | TokenState::Locked { why, .. }) => Err(why),
            Ok(TokenState::Starting { .. }) | Err(_) => Err(self.down("the server is stopping")),
        }
    }

    /// Resolves as soon as the token serves.
    pub async fn serving(&self) {
        let mut state = self.state.clone();
        if state.wait_for(TokenState::serves).await.is_err() {
            // It is gone and never will.
            std::future::pending::<()>().await;
        }
    }

    /// Asks the token, waiting for it to come back where it is down. Asked
    /// once more where a bridge ended under the request: no exchange leaves
    /// anything behind on a token. A key is generated once only.
    ///
    /// # Errors
    /// The token's fault, or that it is down or busy.
    pub async fn ask(&self, op: Op) -> Result<Reply, Fault> {
        let again = op.repeatable();
        let until = Instant::now() + if again { self.deadline } else { GENERATE };
        match self.ask_once(&op, until).await {
            Err(fault) if again && self.may_repeat(&fault) => {
                // A call that hung took all of the first time.
                let until = Instant::now() + self.deadline;
                self.back(until).await?;
                self.ask_once(&op, until).await
            }
            outcome => outcome,
        }
    }

    /// Asks now: for whoever can turn to another token instead. Where a bridge
    /// ends under the request, another bridge of the same token is asked. It
    /// ends by `until`, and within the token's own deadline.
    ///
    /// # Errors
    /// The token's fault, or that it is down or busy.
    pub async fn try_ask(&self, op: &Op, until: Instant) -> Result<Reply, Fault> {
        if !self.serves() {
            return Err(self.down(self.state.borrow().word()));
        }
        let attempt = || until.min(Instant::now() + self.deadline);
        match self.ask_once(op, attempt()).await {
            Err(fault) if self.may_repeat(&fault) && self.serves() => {
                self.ask_once(op, attempt()).await
            }
            // One bridge found a new key before another did.
            Err(Fault::NoKek { .. }) if self.links().len() > 1 => {
                self.look().await;
                self.ask_once(op, attempt()).await
            }
            outcome => outcome,
        }
    }

    /// Has every bridge read the token's keys anew.
    pub async fn look(&self) {
        let until = Instant::now() + self.deadline;
        let asked: Vec<_> = self
            .links()
            .iter()
            .filter_map(|link| link.ask(&Op::Look, until).ok())
            .collect();
        for answer in asked {
            // What it found is on the board by then.
            drop(tokio::time::timeout_at(until, answer).await);
        }
    }

    fn may_repeat(&self, fault: &Fault) -> bool {
        (matches!(fault, Fault::Down { .. }) || restarts(fault))
            && !matches!(*self.state.borrow(), TokenState::Locked { .. })
    }

    async fn ask_once(&self, op: &Op, until: Instant) -> Result<Reply, Fault> {
        let asked = self.taken(op, until).await?;
        self.heard(asked).await
    }

    /// Has one of its bridges take a question. Where that fails, none has seen it.
    ///
    /// # Errors
    /// The token is down or busy, or the time is over.
    pub(crate) async fn taken(&self, op: &Op, until: Instant) -> Result<Asked, Fault> {
        let since = Instant::now();
        if since >= until {
            return Err(self.down("the request's time was over before it was asked"));
        }
        loop {
            match self.put(op, until) {
                Ok(answer) => {
                    return Ok(Asked {
                        answer,
                        since,
                        until,
                    });
                }
                // It is renewed, or has as much to do as it may: soon there is room.
                Err(_) if self.serves() && Instant::now() < until => {
                    tokio::time::sleep(ROOM).await;
                }
                Err(NotPut::Full) => return Err(self.down("too many requests wait for it")),
                Err(NotPut::Closing) => return Err(self.down(self.state.borrow().word())),
            }
        }
    }

    /// What it answers to that.
    ///
    /// # Errors
    /// The token's fault, or that no answer came.
    pub(crate) async fn heard(&self, asked: Asked) -> Result<Reply, Fault> {
        let Asked {
            answer,
            since,
            until,
        } = asked;
        // Where the token's own time was over, the lane ends it by then, unless a key pair is made.
        match tokio::time::timeout_at(until + GRACE * 2, answer).await {
            // It knows its own time, and not the request's.
            Ok(Ok(Err(Fault::Deadline { .. }))) | Err(_) => Err(self.late(since, until)),
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(self.down("its bridge ended")),
        }
    }

    /// That it did not answer between then and then, as a fault.
    pub(crate) fn late(&self, since: Instant, until: Instant) -> Fault {
        let had = until.saturating_duration_since(since);
        Fault::Deadline {
            token: self.name.to_string(),
            // A second that was begun counts.
            seconds: had.as_secs() + u64::from(had.subsec_nanos() > 0),
        }
    }

    /// Puts the request to the lane with the least to do.
    fn put(
        &self,
        op: &Op,
        until: Instant,
    ) -> Result<tokio::sync::oneshot::Receiver<link::Answer>, NotPut> {
        let hung = until.max(Instant::now() + self.deadline);
        let mut links = self.links();
        // A silent one last: its module may hang.
        links.sort_by_key(|link| (link.is_silent(), link.under_way()));
        let mut why = NotPut::Closing;
        for link in links {
            match link.ask_for(op, until, hung) {
                Ok(answer) => return Ok(answer),
                Err(NotPut::Full) => why = NotPut::Full,
                Err(NotPut::Closing) => {}
            }
        }
        Err(why)
    }

    fn links(&self) -> Vec<Arc<Link>> {
        let links = self.shared.links.read();
        links
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .flatten()
            .cloned()
            .collect()
    }

    /// Waits for a token that is being started again.
    async fn back(&self, until: Instant) -> Result<(), Fault> {
        let mut state = self.state.clone();
        let ready =
            state.wait_for(|state| state.serves() || matches!(state, TokenState::Locked { .. }));
        match tokio::time::timeout_at(until, ready).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(match self.state() {
                TokenState::Failed { why, .. } | TokenState::Locked { why, .. } => why,
                TokenState::Starting { .. }
                | TokenState::Ready { .. }
                | TokenState::Degraded { .. } => self.down("it did not come back in time"),
            }),
        }
    }

    fn down(&self, reason: &str) -> Fault {
        Fault::Down {
            token: self.name.to_string(),
            reason: reason.to_owned(),
        }
    }
}
