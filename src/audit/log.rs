//! The writer: one thread that shares each sync among all the records that wait for it.

mod stand_in;

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::future::Future;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use time::OffsetDateTime;
use tokio::sync::{mpsc, oneshot};

use super::outlet::{OutletSeen, Outlets};
use super::record::Head;
use super::verify::{file_path, log_files, walk};
use super::{AuditError, Event, HeadMark, Kind, Outcome, Receipt};
use crate::metrics::{Histogram, Latency};
use stand_in::StandIn;

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
        let shared = Arc::clone(&writer.shared);
        // A channel of no places would panic.
        let (sender, receiver) = mpsc::channel(queue.max(1));
        let thread = writer
            .start(receiver)
            .map_err(AuditError::file("start the writer of", dir))?;
        Ok(Self(Arc::new(Inner {
            queue: sender,
            shared,
            _writer: JoinOnDrop(Some(thread)),
        })))
    }

    /// Queues a record, waiting only while the queue is full. Once this returns, the record is
    /// written even if the [`Pending`] is dropped; await that to know when it is durable.
    pub async fn submit(&self, event: Event) -> Pending {
        let (reply, pending) = oneshot::channel();
        // When the writer is gone the job is dropped, and its receiver says so.
        let job = Job {
            event,
            reply: Some(reply),
        };
        drop(self.0.queue.send(job).await);
        Pending(pending)
    }

    /// Queues a record that nobody waits for. It is written, and made durable, with the next one
    /// that somebody waits for; else it is written after 5 ms and durable after 50 more. Where it
    /// cannot be, the log says so and takes no more.
    pub async fn follow(&self, event: Event) {
        let Err(event) = self.0.shared.aside.put(event) else {
            return;
        };
        let (event, reply) = (*event, None);
        drop(self.0.queue.send(Job { event, reply }).await);
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

/// One record that has its place in the batch.
#[derive(Debug)]
struct Written {
    event: Event,
    reply: Option<oneshot::Sender<Result<Receipt, AuditError>>>,
    now: OffsetDateTime,
    head: Head,
}

/// One record on its way to the writer.
#[derive(Debug)]
struct Job {
    event: Event,
    /// Who waits until it is durable.
    reply: Option<oneshot::Sender<Result<Receipt, AuditError>>>,
}

/// Records that are in memory only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GapSeen {
    /// When the first of them came.
    pub since: OffsetDateTime,
    /// How many there are.
    pub kept: u64,
    /// How many there was no room for.
    pub lost: u64,
}

#[derive(Debug)]
struct Shared {
    records: AtomicU64,
    syncs: AtomicU64,
    took: Latency,
    failed: AtomicBool,
    emergency: AtomicBool,
    gap: Mutex<Option<GapSeen>>,
    // The newest durable record.
    head: Mutex<Head>,
    aside: Aside,
    outlets: Outlets,
}

impl Shared {
    fn new(head: Head, emergency: bool, outlets: Outlets) -> Self {
        Self {
            records: AtomicU64::default(),
            syncs: AtomicU64::default(),
            took: Latency::default(),
            failed: AtomicBool::default(),
            emergency: emergency.into(),
            gap: Mutex::default(),
            head: Mutex::new(head),
            aside: Aside::default(),
            outlets,
        }
    }
}

fn hold<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Records that nobody waits for. They wake the writer only where he sleeps for good: each would
/// cost him, and whoever is at work beside him, more than its own writing.
#[derive(Debug)]
struct Aside(Mutex<Gathered>);

#[derive(Debug)]
struct Gathered {
    events: Vec<Event>,
    /// Whether the writer comes for them by himself.
    collected: bool,
}

impl Default for Aside {
    fn default() -> Self {
        Self(Mutex::new(Gathered {
            events: Vec::new(),
            collected: false,
        }))
    }
}

impl Aside {
    /// Puts a record; gives it back where nobody would come for it, or where there are too many.
    fn put(&self, event: Event) -> Result<(), Box<Event>> {
        let mut gathered = self.gathered();
        if !gathered.collected || gathered.events.len() >= MAX_BATCH {
            return Err(event.into());
        }
        gathered.events.push(event);
        Ok(())
    }

    /// All of them. The writer comes for further ones.
    fn take(&self) -> Vec<Event> {
        let mut gathered = self.gathered();
        gathered.collected = true;
        std::mem::take(&mut gathered.events)
    }

    /// Whether there are none. From then on the writer does not come by himself.
    fn close(&self) -> bool {
        let mut gathered = self.gathered();
        gathered.collected = !gathered.events.is_empty();
        !gathered.collected
    }

    fn gathered(&self) -> MutexGuard<'_, Gathered> {
        hold(&self.0)
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

/// The one owner of the files.
#[derive(Debug)]
struct Writer {
    dir: PathBuf,
    node: String,
    rotate_at: u64,
    rotate_after: Option<Duration>,
    current: LogEnd,
    head: Head,
    shared: Arc<Shared>,
    /// Records that were written since the last sync.
    unsynced: u64,
    /// Those of them that nobody waited for, until they are durable.
    loose: Vec<(Event, OffsetDateTime)>,
    /// The lines of all of them. They go out when they are durable: a receiver that had a line
    /// which the disk lost would have another under the same number later.
    unsent: Vec<u8>,
    /// When the first of them was.
    since: Instant,
    /// Why nothing is written any more.
    fault: Option<Arc<io::Error>>,
    stand_in: StandIn,
    /// Held for its lock.
    _lock: File,
}

/// The file that is being appended to.
#[derive(Debug)]
struct LogEnd {
    number: u32,
    path: PathBuf,
    file: File,
    /// Its length in bytes.
    written: u64,
    /// The length in bytes that is known to be on disk.
    durable: u64,
    /// When its first record was written.
    begun: SystemTime,
}

impl Writer {
    fn open(dir: &Path, node: &str, options: Options) -> Result<Self, AuditError> {
        let Options {
            rotate_at,
            rotate_after,
            queue: _,
            outlets,
            emergency,
            memory,
        } = options;
        create_dir(dir)?;
        let lock = lock(dir)?;
        let damaged = |source| AuditError::Damaged {
            dir: dir.into(),
            source: Box::new(source),
        };
        let files = log_files(dir).map_err(damaged)?;
        // Two, because the last may be empty: a new file is made before its first record.
        let newest = files
            .get(files.len().saturating_sub(2)..)
            .unwrap_or_default();
        let walked = walk(newest).map_err(damaged)?;
        let (number, path) = match files.last() {
            Some(last) => (last.number, last.path.clone()),
            None => (1, file_path(dir, 1)),
        };
        let head = match walked.head {
            Some(head) => head,
            None if number == 1 => Head::GENESIS,
            None => {
                return Err(damaged(AuditError::MissingFile {
                    file: file_path(dir, number.saturating_sub(1)),
                }));
            }
        };
        let mut current = LogEnd::open(number, path, files.is_empty())?;
        if files.is_empty() {
            sync_dir(dir)?;
        } else {
            // A writer that was killed may have left lines that are in no
            // disk's memory yet; what follows them must not outlive them.
            current
                .file
                .sync_all()
                .map_err(AuditError::file("sync", &current.path))?;
        }
        let recovered = walked
            .torn
            .map(|torn| current.cut(torn.keep).map(|()| torn))
            .transpose()?;
        let mut writer = Self {
            dir: dir.into(),
            node: node.into(),
            rotate_at,
            rotate_after,
            current,
            head,
            shared: Arc::new(Shared::new(head, emergency, outlets)),
            unsynced: 0,
            loose: Vec::new(),
            unsent: Vec::new(),
            since: Instant::now(),
            fault: None,
            stand_in: StandIn::new(memory),
            _lock: lock,
        };
        if let Some(torn) = recovered {
            let mut event = Event::new(Kind::Runtime, "audit-recovered", Outcome::Success);
            event.detail = Some(format!(
                "cut off {} bytes of an unfinished record from {}",
                torn.bytes,
                torn.file.display()
            ));
            let now = OffsetDateTime::now_utc();
            let mut bytes = Vec::new();
            let head = writer.head.append(&event, &writer.node, now, &mut bytes)?;
            writer.unsent.extend_from_slice(&bytes);
            let before = std::mem::replace(&mut writer.head, head);
            if let Err(error) = writer.write(&bytes).and_then(|()| writer.sync()) {
                writer.head = before;
                if !emergency {
                    let path = &writer.current.path;
                    return Err(AuditError::file("append to", path)(error));
                }
                writer.fail(Arc::new(error));
                writer.keep(event, now);
            }
        }
        Ok(writer)
    }

    fn start(self, queue: mpsc::Receiver<Job>) -> io::Result<JoinHandle<()>> {
        // Of its own, for its timer: whoever opens the log may have none.
        let clock = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()?;
        thread::Builder::new()
            .name("audit".into())
            .spawn(move || clock.block_on(self.run(queue)))
    }

    async fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        let mut jobs = Vec::new();
        // Whether a whole pause went by and nobody came.
        let mut quiet = true;
        loop {
            let more = queue.recv_many(&mut jobs, MAX_BATCH);
            let failed = self.fault.is_some();
            let rests = (failed || quiet && self.current.is_durable()) && self.shared.aside.close();
            let came = if failed {
                // While the emergency policy is on the disk is tried again and again.
                tokio::time::timeout(stand_in::AGAIN, more).await
            } else if rests {
                Ok(more.await)
            } else {
                tokio::time::timeout(GATHER, more).await
            };
            let aside = self.shared.aside.take();
            quiet = jobs.is_empty() && aside.is_empty();
            let aside = aside.into_iter().map(|event| Job { event, reply: None });
            let over = matches!(came, Ok(0));
            let jobs = aside.chain(jobs.drain(..)).collect();
            if let Some(fault) = self.fault.clone() {
                self.stand_in(jobs, &fault, over);
            } else {
                self.append(jobs);
                if self.fault.is_none()
                    && (over || self.lingers())
                    && let Err(error) = self.sync()
                {
                    self.fail(Arc::new(error));
                }
            }
            if over {
                return;
            }
        }
    }

    /// Writes one batch and answers it.
    fn append(&mut self, jobs: Vec<Job>) {
        let mut bytes = Vec::new();
        let mut head = self.head;
        let mut written = Vec::new();
        let mut awaited = false;
        for Job { event, reply } in jobs {
            let now = OffsetDateTime::now_utc();
            match head.append(&event, &self.node, now, &mut bytes) {
                Ok(next) => {
                    head = next;
                    awaited |= reply.is_some();
                    written.push(Written {
                        event,
                        reply,
                        now,
                        head,
                    });
                }
                Err(error) => match reply {
                    // Whoever no longer waits for an answer has none.
                    Some(reply) => drop(reply.send(Err(error))),
                    None => tracing::error!(%error, "an outcome could not be recorded"),
                },
            }
        }
        if written.is_empty() {
            return;
        }
        if self.unsynced == 0 {
            self.since = Instant::now();
        }
        self.head = head;
        self.unsynced += u64::try_from(written.len()).unwrap_or(u64::MAX);
        if !self.shared.outlets.is_empty() {
            self.unsent.extend_from_slice(&bytes);
        }
        let done = self
            .write(&bytes)
            .and_then(|()| if awaited { self.sync() } else { Ok(()) });
        if let Err(error) = done {
            let error = Arc::new(error);
            self.fail(Arc::clone(&error));
            for Written {
                event, reply, now, ..
            } in written
            {
                match reply {
                    // What it tells has happened: it is kept, or counted as lost.
                    None => {
                        self.shared.outlets.put_unchained(&event, &self.node, now);
                        self.keep(event, now);
                    }
                    reply => self.wait_or_refuse(Job { event, reply }, &error),
                }
            }
            return;
        }
        let durable = self.current.is_durable();
        for one in written {
            match one.reply {
                Some(reply) => drop(reply.send(Ok(Receipt::new(one.head)))),
                None if durable => {}
                None => self.loose.push((one.event, one.now)),
            }
        }
    }

    /// Writes whole lines, to a new file where the current one is long enough.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let old = self.rotate_after.is_some_and(|after| {
            self.current.written > 0 && self.current.begun.elapsed().unwrap_or_default() >= after
        });
        if old || self.current.written >= self.rotate_at {
            // What stands before the new file must not be lost after it.
            self.current.sync()?;
            let number = self.current.number.saturating_add(1);
            let path = file_path(&self.dir, number);
            let file = append_options().create_new(true).open(&path)?;
            File::open(&self.dir)?.sync_all()?;
            self.current = LogEnd::begun(number, path, file);
        }
        self.current.write(bytes)
    }

    /// Whether what has been written has waited long enough for a sync to share.
    fn lingers(&self) -> bool {
        !self.current.is_durable() && self.since.elapsed() >= LINGER
    }

    /// Makes durable what has been written.
    fn sync(&mut self) -> io::Result<()> {
        let begun = Instant::now();
        self.current.sync()?;
        self.shared.took.observe(begun.elapsed());
        self.loose.clear();
        for line in self.unsent.split_inclusive(|byte| *byte == b'\n') {
            self.shared.outlets.put_line(line);
        }
        self.unsent.clear();
        *hold(&self.shared.head) = self.head;
        let records = std::mem::take(&mut self.unsynced);
        self.shared.records.fetch_add(records, Ordering::Relaxed);
        self.shared.syncs.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Nothing is written any more. What the disk may have lost is kept, for the day on which it
    /// takes records again.
    fn fail(&mut self, error: Arc<io::Error>) {
        tracing::error!(file = %self.current.path.display(), %error, "the audit log has failed");
        self.shared.failed.store(true, Ordering::Relaxed);
        self.head = *hold(&self.shared.head);
        self.unsynced = 0;
        self.fault = Some(error);
        self.unsent.clear();
        for (event, at) in std::mem::take(&mut self.loose) {
            self.shared.outlets.put_unchained(&event, &self.node, at);
            self.keep(event, at);
        }
    }

    fn failed(&self, error: &Arc<io::Error>) -> AuditError {
        AuditError::Failed {
            file: self.current.path.clone(),
            source: Arc::clone(error),
        }
    }
}

impl LogEnd {
    fn open(number: u32, path: PathBuf, new: bool) -> Result<Self, AuditError> {
        let file = append_options()
            .create_new(new)
            .open(&path)
            .map_err(AuditError::file("open", &path))?;
        let durable = file
            .metadata()
            .map_err(AuditError::file("read", &path))?
            .len();
        Ok(Self {
            number,
            path,
            written: durable,
            durable,
            begun: file
                .metadata()
                .and_then(|file| file.created())
                .unwrap_or_else(|_| SystemTime::now()),
            file,
        })
    }

    /// A new file, that is empty.
    fn begun(number: u32, path: PathBuf, file: File) -> Self {
        Self {
            number,
            path,
            file,
            written: 0,
            durable: 0,
            begun: SystemTime::now(),
        }
    }

    const fn is_durable(&self) -> bool {
        self.written == self.durable
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes).inspect_err(|_| self.cut_off())?;
        self.written = self
            .written
            .saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data().inspect_err(|_| self.cut_off())?;
        self.durable = self.written;
        Ok(())
    }

    /// After a failed sync the kernel calls the lost pages clean: a restart would read them, chain
    /// to them, and lose them later. Nobody was told that they exist. Where this fails too, the
    /// next start finds a torn line or the whole ones.
    fn cut_off(&self) {
        drop(self.file.set_len(self.durable));
    }

    fn cut(&mut self, length: u64) -> Result<(), AuditError> {
        self.file
            .set_len(length)
            .and_then(|()| self.file.sync_all())
            .map_err(AuditError::file("cut the unfinished line off", &self.path))?;
        self.written = length;
        self.durable = length;
        Ok(())
    }
}

fn append_options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.append(true).mode(0o600);
    options
}

fn create_dir(dir: &Path) -> Result<(), AuditError> {
    if dir.is_dir() {
        return Ok(());
    }
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(AuditError::file("create directory", dir))?;
    let dir = fs::canonicalize(dir).map_err(AuditError::file("find", dir))?;
    dir.parent().map_or(Ok(()), sync_dir)
}

fn sync_dir(dir: &Path) -> Result<(), AuditError> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(AuditError::file("sync directory", dir))
}

/// Whether a server or a command has the log in `dir` open for writing.
///
/// # Errors
/// The lock cannot be looked at.
pub fn is_written(dir: &Path) -> io::Result<bool> {
    let file = match File::open(dir.join("lock")) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    match file.try_lock() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

fn lock(dir: &Path) -> Result<File, AuditError> {
    let path = dir.join("lock");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(AuditError::file("open", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(AuditError::Locked { dir: dir.into() }),
        Err(TryLockError::Error(error)) => Err(AuditError::file("lock", path)(error)),
    }
}

/// How long a record that nobody waits for may wait for one that it can be written with.
const GATHER: Duration = Duration::from_millis(5);

/// How long, once written, it may wait for one whose sync it can share.
const LINGER: Duration = Duration::from_millis(50);

/// The most records in one write: a bound on the writer's memory.
const MAX_BATCH: usize = 1024;

#[cfg(test)]
mod tests;
