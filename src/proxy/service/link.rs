//! What is known of one key server of the list.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::proxy::servers::ServerAddress;

/// How a key server is, as far as this host knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServerState {
    /// Nothing was asked of it yet.
    Untried,
    /// It answered last.
    Ready,
    /// It answers, and has no token ready.
    NotReady,
    /// It could not be reached, or did not answer in time.
    Down,
}

impl ServerState {
    /// Whether requests are put to it.
    #[must_use]
    pub const fn usable(self) -> bool {
        matches!(self, Self::Untried | Self::Ready)
    }
}

impl fmt::Display for ServerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Untried => "untried",
            Self::Ready => "ready",
            Self::NotReady => "not ready",
            Self::Down => "down",
        })
    }
}

/// Something that went wrong there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// When, UTC.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// What.
    pub reason: String,
}

/// A key server, as long as any list or request names it.
#[derive(Debug)]
pub(super) struct Link {
    address: ServerAddress,
    condition: Mutex<Condition>,
    /// Exchanges under way.
    busy: AtomicUsize,
    looking: AtomicBool,
    /// Whether it is to be looked at soon, although it is in use.
    suspected: AtomicBool,
}

#[derive(Debug)]
struct Condition {
    state: ServerState,
    since: OffsetDateTime,
    /// When it was last heard of, well or not.
    heard: Option<Instant>,
    failure: Option<Failure>,
}

impl Link {
    pub(super) fn new(address: ServerAddress) -> Arc<Self> {
        Arc::new(Self {
            address,
            condition: Mutex::new(Condition {
                state: ServerState::Untried,
                since: OffsetDateTime::now_utc(),
                heard: None,
                failure: None,
            }),
            busy: AtomicUsize::new(0),
            looking: AtomicBool::new(false),
            suspected: AtomicBool::new(false),
        })
    }

    pub(super) const fn address(&self) -> &ServerAddress {
        &self.address
    }

    fn condition(&self) -> MutexGuard<'_, Condition> {
        self.condition
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn state(&self) -> ServerState {
        self.condition().state
    }

    pub(super) fn usable(&self) -> bool {
        self.state().usable()
    }

    pub(super) fn told(&self) -> (ServerState, OffsetDateTime, Option<Failure>) {
        let condition = self.condition();
        (condition.state, condition.since, condition.failure.clone())
    }

    /// How long nothing was heard of it; none where nothing ever was.
    pub(super) fn silent(&self) -> Option<Duration> {
        self.condition().heard.map(|heard| heard.elapsed())
    }

    /// It answered. Whether it is new that it does.
    pub(super) fn answered(&self) -> bool {
        self.becomes(ServerState::Ready, None)
    }

    /// It did not answer as it should. Whether that is new.
    pub(super) fn failed(&self, state: ServerState, reason: &str) -> bool {
        self.becomes(state, Some(reason))
    }

    /// Something went wrong that says nothing of the server as a whole.
    pub(super) fn note(&self, reason: &str) {
        self.condition().failure = Some(failure(reason));
    }

    /// Has it looked at soon.
    pub(super) fn suspect(&self) {
        self.suspected.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_suspect(&self) -> bool {
        self.suspected.load(Ordering::Relaxed)
    }

    fn becomes(&self, state: ServerState, reason: Option<&str>) -> bool {
        let mut condition = self.condition();
        condition.heard = Some(Instant::now());
        if let Some(reason) = reason {
            condition.failure = Some(failure(reason));
        }
        let before = std::mem::replace(&mut condition.state, state);
        if before != state {
            condition.since = OffsetDateTime::now_utc();
        }
        before.usable() != state.usable()
    }

    pub(super) fn busy(&self) -> usize {
        self.busy.load(Ordering::Relaxed)
    }

    /// Counts an exchange until it is dropped.
    pub(super) fn exchange(self: &Arc<Self>) -> Exchange {
        self.busy.fetch_add(1, Ordering::Relaxed);
        Exchange(Arc::clone(self))
    }

    /// The right to look at it, of one at a time.
    pub(super) fn look(self: &Arc<Self>) -> Option<Look> {
        let taken = self.looking.swap(true, Ordering::Acquire);
        (!taken).then(|| {
            self.suspected.store(false, Ordering::Relaxed);
            Look(Arc::clone(self))
        })
    }
}

fn failure(reason: &str) -> Failure {
    Failure {
        at: OffsetDateTime::now_utc(),
        // A problem's detail may be long; the log has all of it.
        reason: reason.chars().take(500).collect(),
    }
}

/// An exchange that is under way.
#[derive(Debug)]
pub(super) struct Exchange(Arc<Link>);

impl Drop for Exchange {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A look that is under way.
#[derive(Debug)]
pub(super) struct Look(Arc<Link>);

impl Drop for Look {
    fn drop(&mut self) {
        self.0.looking.store(false, Ordering::Release);
    }
}
