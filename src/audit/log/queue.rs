//! The log as whoever records meets it: a queue, with the writer behind it.

use std::fmt;
use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::{GapSeen, Job, Shared, Writer, hold};
use crate::audit::outlet::{OutletSeen, Outlets};
use crate::audit::{AuditError, Event, HeadMark, Receipt};
use crate::metrics::Histogram;

/// How a log is kept.
#[derive(Debug, Clone)]
pub struct Options {
    /// A file that has reached this many bytes is followed by a new one.
    pub rotate_at: u64,
    /// A file whose first record is older than this is followed by a new one.
    pub rotate_after: Option<Duration>,
    /// How many records may wait for the writer before [`AuditLog::submit`] waits too.
    pub queue: usize,
    /// Where each record goes besides.
    pub outlets: Outlets,
    /// Whether the emergency policy is on from the start.
    pub emergency: bool,
    /// How many records are kept in memory while it is on and the disk takes none.
    pub memory: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            rotate_at: 64 * 1024 * 1024,
            rotate_after: None,
            queue: 1024,
            outlets: Outlets::default(),
            emergency: false,
            memory: 10_000,
        }
    }
}

/// What the writer has done since it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stats {
    /// Records made durable.
    pub records: u64,
    /// Syncs that it took.
    pub syncs: u64,
}

/// The log, open for appending. Clones write to the same one; when the last is dropped, what is
/// queued is written, and the directory is free for another process.
#[derive(Debug, Clone)]
pub struct AuditLog(Arc<Inner>);

/// The queue stands before the writer, so that it closes first and the writer can end.
#[derive(Debug)]
struct Inner {
    queue: mpsc::Sender<Job>,
    shared: Arc<Shared>,
    _writer: JoinOnDrop,
}

impl AuditLog {
    /// Opens the log in `dir`, which is made if need be, for the server called `node`.
    ///
    /// A line that a power cut left unfinished, and that was therefore never acknowledged, is cut
    /// off, and a record `audit-recovered` says so. The last two files are verified on the way.
    ///
    /// # Errors
    ///
    /// [`AuditError::Locked`] when another process writes it, [`AuditError::Damaged`] when it is
    /// not what was written, [`AuditError::File`] when a file cannot be handled.
    pub fn open(dir: &Path, node: &str, options: Options) -> Result<Self, AuditError> {
        let queue = options.queue;
        let writer = Writer::open(dir, node, options)?;
        Self::over(writer, queue).map_err(AuditError::file("start the writer of", dir))
    }

    /// The log of a writer, which starts, with so many places in its queue.
    pub(super) fn over(writer: Writer, queue: usize) -> io::Result<Self> {
        let shared = Arc::clone(&writer.shared);
        // A channel of no places would panic.
        let (sender, receiver) = mpsc::channel(queue.max(1));
        let thread = writer.start(receiver)?;
        Ok(Self(Arc::new(Inner {
            queue: sender,
            shared,
            _writer: JoinOnDrop(Some(thread)),
        })))
    }

    /// Queues a record, waiting only while the queue is full. Once this returns, the record is
    /// written even if the [`Pending`] is dropped; await that to know when it is durable.
    pub async fn submit(&self, event: Event) -> Pending {
        self.submit_ahead(event, Duration::ZERO).await
    }

    /// The same for a record that is needed after `spare` and not before. Where that is 6 ms and a
    /// sync's usual time, or more, the record may wait for 2 ms of it, for others that can share its
    /// sync.
    pub async fn submit_ahead(&self, event: Event, spare: Duration) -> Pending {
        let (reply, pending) = oneshot::channel();
        let reply = Some(reply);
        let job = Job { event, reply };
        if self.0.shared.can_wait(spare) {
            self.put(job).await;
        } else {
            self.send(job).await;
        }
        Pending(pending)
    }

    /// Queues a record that nobody waits for. It is written, and made durable, with the next one
    /// that somebody waits for; else it is written after 2 ms and durable after 50 more. Where it
    /// cannot be, the log says so and takes no more.
    pub async fn follow(&self, event: Event) {
        self.put(Job { event, reply: None }).await;
    }

    /// Puts it where the writer comes by, else calls him.
    async fn put(&self, job: Job) {
        if let Err(job) = self.0.shared.aside.put(job) {
            self.send(*job).await;
        }
    }

    async fn send(&self, job: Job) {
        // When the writer is gone the job is dropped, and its receiver says so.
        drop(self.0.queue.send(job).await);
    }

    /// Makes a record durable.
    ///
    /// # Errors
    ///
    /// [`AuditError::Failed`] from the first write or sync error on; [`AuditError::TooLong`] and
    /// [`AuditError::Encode`] for this record only.
    pub async fn record(&self, event: Event) -> Result<Receipt, AuditError> {
        self.submit(event).await.await
    }

    /// [`AuditLog::record`] for a program without an async runtime.
    ///
    /// # Panics
    ///
    /// When called on a thread that drives async tasks.
    ///
    /// # Errors
    ///
    /// As for [`AuditLog::record`].
    pub fn record_blocking(&self, event: Event) -> Result<Receipt, AuditError> {
        let (reply, pending) = oneshot::channel();
        let job = Job {
            event,
            reply: Some(reply),
        };
        drop(self.0.queue.blocking_send(job));
        pending.blocking_recv().unwrap_or(Err(AuditError::Stopped))
    }

    /// What the writer has done so far.
    pub fn stats(&self) -> Stats {
        Stats {
            records: self.0.shared.records.load(Ordering::Relaxed),
            syncs: self.0.shared.syncs.load(Ordering::Relaxed),
        }
    }

    /// How long its syncs took.
    pub fn sync_times(&self) -> Histogram {
        self.0.shared.took.read()
    }

    /// Whether a write or sync has failed, so that no record can be made any more: keys are
    /// served again after a restart, or while the emergency policy is on.
    pub fn has_failed(&self) -> bool {
        self.0.shared.failed.load(Ordering::Relaxed) && !self.in_emergency()
    }

    /// Whether the emergency policy is on: nothing but what a resolve needs is served.
    pub fn in_emergency(&self) -> bool {
        self.0.shared.emergency.load(Ordering::Relaxed)
    }

    /// Switches the emergency policy. The record of it tells the writer to try the disk again.
    pub fn set_emergency(&self, on: bool) {
        self.0.shared.emergency.store(on, Ordering::Relaxed);
    }

    /// What is kept in memory, because the disk takes no record.
    pub fn gap(&self) -> Option<GapSeen> {
        *hold(&self.0.shared.gap)
    }

    /// The newest durable record: its sequence number and its hash. None before the first.
    pub fn head(&self) -> Option<HeadMark> {
        let head = *hold(&self.0.shared.head);
        (head.seq > 0).then(|| HeadMark {
            seq: head.seq,
            hash: head.hash.to_string(),
        })
    }

    /// Where records go besides, and how that is.
    pub fn outlets(&self) -> Vec<OutletSeen> {
        self.0.shared.outlets.seen()
    }
}

/// A queued record; resolves when it is durable, or cannot be made so.
#[must_use = "a record is durable only when this has resolved"]
#[derive(Debug)]
pub struct Pending(oneshot::Receiver<Result<Receipt, AuditError>>);

impl Future for Pending {
    type Output = Result<Receipt, AuditError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0)
            .poll(context)
            .map(|reply| reply.unwrap_or(Err(AuditError::Stopped)))
    }
}

/// Waits for the writer, so that its lock is gone when the last [`AuditLog`] is.
struct JoinOnDrop(Option<JoinHandle<()>>);

impl Drop for JoinOnDrop {
    fn drop(&mut self) {
        if let Some(thread) = self.0.take() {
            // A writer that panicked has dropped its jobs, whose senders were told so.
            drop(thread.join());
        }
    }
}

impl fmt::Debug for JoinOnDrop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinOnDrop")
    }
}
