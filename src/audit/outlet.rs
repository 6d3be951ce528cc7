//! Where records go besides the log: syslog (RFC 5424) and the systemd journal.
//!
//! Each outlet has a queue and a thread of its own. The log's writer puts a
//! record into the queue and never waits: where there is no room the record is
//! counted as lost for that outlet, and the outlet says so once it works again.

mod format;
mod target;

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use time::OffsetDateTime;

use super::Event;
use super::record::rfc3339;
pub use format::{Facility, Identity};
use target::Way;
pub use target::{Target, TargetError};

/// Records that wait for an outlet at most.
const QUEUE: usize = 4096;

/// Time between two tries to reach a receiver.
const AGAIN: Duration = Duration::from_secs(1);

/// How long what is queued is still sent when the log is closed.
const FAREWELL: Duration = Duration::from_secs(2);

/// How often a thread that waits looks whether it should end.
const LOOK: Duration = Duration::from_millis(50);

/// How long a loss is told of.
const RECENT: Duration = Duration::from_secs(60);

/// A record on its way.
#[derive(Debug)]
enum Entry {
    /// As it stands in the log.
    Line(Box<[u8]>),
    /// It has no place in the chain yet.
    Unchained(Box<[u8]>),
}

/// All outlets of a log.
#[derive(Debug, Clone, Default)]
pub struct Outlets(Arc<[Outlet]>);

/// How an outlet is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutletSeen {
    /// Where to.
    pub name: String,
    /// Records that were sent.
    pub sent: u64,
    /// Records that were not.
    pub lost: u64,
    /// Why none is sent now.
    pub down: Option<String>,
    /// Whether some were lost in the last minute.
    pub losing: bool,
}

impl Outlets {
    /// Starts a thread for each target.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn start(targets: Vec<Target>, identity: &Identity) -> io::Result<Self> {
        let outlets = targets
            .into_iter()
            .map(|target| Outlet::start(target, identity.clone()))
            .collect::<io::Result<Vec<_>>>()?;
        Ok(Self(outlets.into()))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Puts a record as it stands in the log, its newline included.
    pub(super) fn put_line(&self, line: &[u8]) {
        for outlet in self.0.iter() {
            outlet.put(|| Entry::Line(line.trim_ascii_end().into()));
        }
    }

    /// Puts a record that has no place in the chain yet.
    pub(super) fn put_unchained(&self, event: &Event, node: &str, at: OffsetDateTime) {
        #[derive(Serialize)]
        struct Body<'a> {
            time: String,
            node: &'a str,
            #[serde(flatten)]
            event: &'a Event,
        }
        if self.0.is_empty() {
            return;
        }
        let body = Body {
            time: rfc3339(at),
            node,
            event,
        };
        let Ok(line) = serde_json::to_vec(&body) else {
            return;
        };
        for outlet in self.0.iter() {
            outlet.put(|| Entry::Unchained(line.as_slice().into()));
        }
    }

    pub(super) fn seen(&self) -> Vec<OutletSeen> {
        self.0.iter().map(Outlet::seen).collect()
    }
}

/// One outlet. When it is dropped, what is queued is sent for a moment longer.
#[derive(Debug)]
struct Outlet {
    name: String,
    queue: Option<SyncSender<Entry>>,
    counts: Arc<Counts>,
    ended: Mutex<Receiver<()>>,
}

#[derive(Debug, Default)]
struct Counts {
    sent: AtomicU64,
    lost: AtomicU64,
    closing: AtomicBool,
    down: Mutex<Option<String>>,
    last_loss: Mutex<Option<Instant>>,
}

impl Counts {
    fn lose(&self) {
        self.lost.fetch_add(1, Ordering::Relaxed);
        *hold(&self.last_loss) = Some(Instant::now());
    }

    fn tell(&self, name: &str, down: Option<String>) {
        let mut known = hold(&self.down);
        match (&*known, &down) {
            (None, Some(reason)) => {
                tracing::warn!(to = name, reason, "audit records do not arrive");
            }
            (Some(_), None) => {
                let lost = self.lost.load(Ordering::Relaxed);
                tracing::info!(to = name, lost, "audit records arrive again");
            }
            (None, None) | (Some(_), Some(_)) => {}
        }
        *known = down;
    }
}

fn hold<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Outlet {
    fn start(target: Target, identity: Identity) -> io::Result<Self> {
        let (queue, entries) = sync_channel(QUEUE);
        let (end, ended) = sync_channel(1);
        let counts = Arc::new(Counts::default());
        let name = target.to_string();
        let sender = Sender {
            name: name.clone(),
            target,
            identity,
            counts: Arc::clone(&counts),
            way: None,
            told_lost: 0,
        };
        thread::Builder::new()
            .name("audit-outlet".to_owned())
            .spawn(move || {
                sender.run(&entries);
                // Whoever waited for it has gone.
                let _ = end.send(());
            })?;
        Ok(Self {
            name,
            queue: Some(queue),
            counts,
            ended: Mutex::new(ended),
        })
    }

    fn put(&self, entry: impl FnOnce() -> Entry) {
        let taken = self.queue.as_ref().map(|queue| queue.try_send(entry()));
        if !matches!(taken, Some(Ok(()))) {
            self.counts.lose();
        }
    }

    fn seen(&self) -> OutletSeen {
        let losing = hold(&self.counts.last_loss).is_some_and(|at| at.elapsed() < RECENT);
        OutletSeen {
            name: self.name.clone(),
            sent: self.counts.sent.load(Ordering::Relaxed),
            lost: self.counts.lost.load(Ordering::Relaxed),
            down: hold(&self.counts.down).clone(),
            losing,
        }
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        // The thread ends when the queue is empty.
        drop(self.queue.take());
        let ended = hold(&self.ended);
        if ended.recv_timeout(FAREWELL) == Err(RecvTimeoutError::Timeout) {
            self.counts.closing.store(true, Ordering::Relaxed);
        }
    }
}

/// What an outlet's thread has.
struct Sender {
    name: String,
    target: Target,
    identity: Identity,
    counts: Arc<Counts>,
    way: Option<Way>,
    // Losses that the receiver was told of.
    told_lost: u64,
}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Sender {
    fn run(mut self, entries: &Receiver<Entry>) {
        while let Ok(entry) = entries.recv() {
            let message = match &entry {
                Entry::Line(line) => self.target.message(&self.identity, line, true),
                Entry::Unchained(line) => self.target.message(&self.identity, line, false),
            };
            match message {
                Some(message) => self.send(&message),
                None => self.counts.lose(),
            }
        }
    }

    /// Sends one message, however long the receiver is away: meanwhile the queue fills.
    fn send(&mut self, message: &[u8]) {
        loop {
            if self.counts.closing.load(Ordering::Relaxed) {
                return self.counts.lose();
            }
            match self.try_send(message) {
                Ok(()) => {
                    self.counts.sent.fetch_add(1, Ordering::Relaxed);
                    return self.counts.tell(&self.name, None);
                }
                Err(error) if target::is_too_long(&error) => return self.counts.lose(),
                Err(error) => {
                    self.way = None;
                    self.counts.tell(&self.name, Some(error.to_string()));
                }
            }
            let until = Instant::now() + AGAIN;
            while Instant::now() < until && !self.counts.closing.load(Ordering::Relaxed) {
                thread::sleep(LOOK);
            }
        }
    }

    fn try_send(&mut self, message: &[u8]) -> io::Result<()> {
        let way = match &mut self.way {
            Some(way) => way,
            None => {
                let way = self.target.connect()?;
                self.way.insert(way)
            }
        };
        let lost = self.counts.lost.load(Ordering::Relaxed);
        if lost > self.told_lost {
            let text = self.target.lost(&self.identity, lost - self.told_lost);
            way.send(&text)?;
            self.told_lost = lost;
        }
        way.send(message)
    }
}

#[cfg(test)]
mod tests;
