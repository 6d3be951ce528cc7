//! The sessions of this process, and those of all clients of the token.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cryptoki_sys::{CK_SESSION_HANDLE, CK_SLOT_ID};

use super::control::{Board, Client, SessionLimit};

/// How often a client says that it lives.
const HEARTBEAT: Duration = Duration::from_millis(20);

/// The sessions of this process, by handle, with the slots of the module below.
pub(crate) struct Sessions {
    open: Mutex<BTreeMap<CK_SESSION_HANDLE, CK_SLOT_ID>>,
    board: &'static Board,
    own: &'static Client,
    // Its lock goes with its process, whatever that dies of.
    counting: Mutex<File>,
}

impl Sessions {
    /// Takes a place on the board, which the process keeps as long as it lives.
    pub(crate) fn of(board: &'static Board, directory: &Path) -> io::Result<Self> {
        let lock = File::create(directory.join("lock"))?;
        lock.lock()?;
        let own = board
            .clients
            .iter()
            .find(|client| !client.lives() && client.gone() > Duration::from_secs(60))
            .ok_or_else(|| io::Error::other("the board has no place for another client"))?;
        own.sessions.store(0, Ordering::Relaxed);
        own.seen.store(now(), Ordering::Relaxed);
        own.pid
            .store(u64::from(std::process::id()), Ordering::Relaxed);
        lock.unlock()?;
        thread::Builder::new()
            .name("heartbeat".to_owned())
            .spawn(move || {
                loop {
                    own.seen.store(now(), Ordering::Relaxed);
                    thread::sleep(HEARTBEAT);
                }
            })?;
        Ok(Self {
            open: Mutex::default(),
            board,
            own,
            counting: Mutex::new(lock),
        })
    }

    /// Whether the token has room for one more; then it is counted.
    pub(crate) fn reserve(&self, limit: Option<SessionLimit>) -> bool {
        let lock = self.counting.lock().unwrap_or_else(PoisonError::into_inner);
        // A lock that cannot be had leaves the count a little wrong, no more.
        let _ = lock.lock();
        let room = limit.is_none_or(|limit| {
            let linger = Duration::from_millis(limit.linger_ms);
            let counted = |client: &&Client| client.lives() || client.gone() < linger;
            let clients = self.board.clients.iter().filter(counted);
            let sessions = clients.map(|client| client.sessions.load(Ordering::Relaxed));
            sessions.sum::<u64>() < limit.most
        });
        if room {
            self.own.sessions.fetch_add(1, Ordering::Relaxed);
        }
        let _ = lock.unlock();
        room
    }

    /// What became of a session that was reserved.
    pub(crate) fn opened(&self, session: Option<CK_SESSION_HANDLE>, slot: CK_SLOT_ID) {
        match session {
            Some(session) => {
                self.open().insert(session, slot);
            }
            None => self.counted_off(1),
        }
    }

    /// A session was closed.
    pub(crate) fn closed(&self, session: CK_SESSION_HANDLE) {
        if self.open().remove(&session).is_some() {
            self.counted_off(1);
        }
    }

    /// All sessions with a slot were closed.
    pub(crate) fn closed_all(&self, slot: CK_SLOT_ID) {
        let mut open = self.open();
        let before = open.len();
        open.retain(|_, of| *of != slot);
        self.counted_off(before - open.len());
    }

    /// The slots that have sessions.
    pub(crate) fn slots(&self) -> Vec<CK_SLOT_ID> {
        let mut slots: Vec<CK_SLOT_ID> = self.open().values().copied().collect();
        slots.sort_unstable();
        slots.dedup();
        slots
    }

    /// Any open session.
    pub(crate) fn any(&self) -> Option<CK_SESSION_HANDLE> {
        self.open().keys().next().copied()
    }

    fn open(&self) -> MutexGuard<'_, BTreeMap<CK_SESSION_HANDLE, CK_SLOT_ID>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn counted_off(&self, sessions: usize) {
        let sessions = u64::try_from(sessions).unwrap_or_default();
        self.own.sessions.fetch_sub(sessions, Ordering::Relaxed);
    }
}

impl Client {
    /// Whether the process is there; one that has ended and was not waited for is not.
    fn lives(&self) -> bool {
        let pid = self.pid.load(Ordering::Relaxed);
        pid != 0
            && fs::read_to_string(format!("/proc/{pid}/stat"))
                .is_ok_and(|stat| !stat.contains(") Z "))
    }

    /// Time since it was last seen.
    fn gone(&self) -> Duration {
        Duration::from_millis(now().saturating_sub(self.seen.load(Ordering::Relaxed)))
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}
