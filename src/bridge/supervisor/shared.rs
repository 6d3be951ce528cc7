//! What the bridges of one token share.

use std::io;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::{Mutex as Turn, Notify, watch};

use super::Program;
use super::lane::FIRST;
use super::link::{Link, receive};
use super::state::Board;
use crate::bridge::faults::Fault;
use crate::bridge::message::{Hello, Reply, Response, Task};
use crate::bridge::pin::{Handed, mended};
use crate::bridge::stats::Stats;

/// What the bridges of one token share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) program: Program,
    pub(super) hello: Hello,
    pub(super) board: Arc<Board>,
    /// The running bridges, by lane.
    pub(super) links: RwLock<Vec<Option<Arc<Link>>>>,
    // What bridges that do not serve yet have told, by lane.
    opening: Mutex<Vec<Stats>>,
    past: Mutex<Stats>,
    /// Ends a pause or a lock early.
    pub(super) nudged: Notify,
    /// The PIN that an operator has given, for the next start of each lane.
    pub(super) given: Mutex<Vec<Option<Handed>>>,
    /// Starts that have come to something, good or bad.
    pub(super) tried: watch::Sender<u64>,
    /// Bridges started so far, over all lanes.
    pub(super) starts: AtomicU64,
    /// One bridge starts at a time: where a token is not there, one asks for all, and a PIN that is
    /// refused is refused once. How long the next one is put off.
    pub(super) turn: Turn<Duration>,
}

impl Shared {
    pub(super) fn new(program: Program, hello: Hello, lanes: usize) -> Self {
        let workers = hello.profile.session.workers;
        Self {
            program,
            hello,
            board: Arc::new(Board::new(lanes, workers)),
            links: RwLock::new(vec![None; lanes]),
            opening: Mutex::new(vec![Stats::default(); lanes]),
            past: Mutex::default(),
            nudged: Notify::new(),
            given: Mutex::new(vec![None; lanes]),
            tried: watch::Sender::new(0),
            starts: AtomicU64::new(0),
            turn: Turn::new(FIRST),
        }
    }

    pub(super) fn set_link(&self, lane: usize, link: Option<Arc<Link>>) {
        let mut links = self.links.write().unwrap_or_else(PoisonError::into_inner);
        let Some(entry) = links.get_mut(lane) else {
            return;
        };
        if let Some(link) = &link {
            // Until it tells again, what it told before it was ready.
            let before = self.take_opening(lane);
            let mut stats = link.stats();
            if stats.calls.is_empty() {
                *stats = before;
            }
        }
        if let Some(ended) = std::mem::replace(entry, link) {
            // What it told stays counted. One that crashes, or that is killed, may have counted
            // more since.
            let past = ended.stats().clone().ended();
            self.past().add(&past);
        }
    }

    /// A bridge has ended before it served: what it counted stays counted, and what the token
    /// said of itself stands.
    pub(super) fn not_opened(&self, lane: usize, hung: bool) {
        // Whoever adds up meanwhile would miss it.
        let _links = self.links.write().unwrap_or_else(PoisonError::into_inner);
        let mut told = self.take_opening(lane);
        if hung {
            told.count_hang(told.hung());
        }
        if let Some(token) = &told.refused {
            self.board.shown(token);
        }
        self.past().add(&told.ended());
    }

    fn take_opening(&self, lane: usize) -> Stats {
        let mut opening = self.opening();
        opening
            .get_mut(lane)
            .map(std::mem::take)
            .unwrap_or_default()
    }

    /// What bridges that do not serve yet have measured, by lane.
    pub(super) fn opening(&self) -> MutexGuard<'_, Vec<Stats>> {
        self.opening.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The answer to [`Hello`]; what the bridge tells before it is noted.
    pub(super) async fn opened(
        &self,
        lane: usize,
        socket: &mut UnixStream,
    ) -> io::Result<Response> {
        loop {
            match receive(socket).await? {
                Response {
                    result: Ok(Reply::Stats(stats)),
                    ..
                } => {
                    if let Some(told) = self.opening().get_mut(lane) {
                        *told = stats;
                    }
                }
                response => return Ok(response),
            }
        }
    }

    /// Whether any bridge of the token is up.
    pub(super) fn any_up(&self) -> bool {
        let links = self.links.read().unwrap_or_else(PoisonError::into_inner);
        links.iter().any(Option::is_some)
    }

    /// What bridges that have ended had measured.
    pub(super) fn past(&self) -> MutexGuard<'_, Stats> {
        self.past.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What an operator has given for the next start of this lane; it is gone then.
    pub(super) fn take_given(&self, lane: usize) -> Option<Handed> {
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        given.get_mut(lane).and_then(Option::take)
    }

    pub(super) fn down(&self, reason: String) -> Fault {
        Fault::Down {
            token: self.hello.name.clone(),
            reason,
        }
    }

    pub(super) fn stamp(&self) -> Vec<String> {
        match &self.hello.task {
            Task::Serve { pin, ledgers, .. } => mended(pin, ledgers),
            Task::Keep { .. }
            | Task::List
            | Task::Init { .. }
            | Task::Trust { .. }
            | Task::Attend { .. } => Vec::new(),
        }
    }
}
