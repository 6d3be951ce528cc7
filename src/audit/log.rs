//! The writer: one thread that shares each sync among all the records that wait for it.

mod aside;
mod directory;
mod end;
mod queue;
mod stand_in;

pub use directory::is_written;
pub use queue::{AuditLog, Options, Pending, Stats};

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use tokio::sync::{mpsc, oneshot};

use super::outlet::Outlets;
use super::record::Head;
use super::verify::{file_path, log_files, walk};
use super::{AuditError, Event, Kind, Outcome, Receipt};
use crate::files::FileLock;
use crate::metrics::Latency;
use aside::Aside;
use directory::{create_dir, lock, sync_dir};
use end::{LogEnd, append_options};
use stand_in::StandIn;

/// One record that has its place in the batch.
#[derive(Debug)]
struct Written {
    event: Event,
    reply: Option<oneshot::Sender<Result<Receipt, AuditError>>>,
    now: OffsetDateTime,
    head: Head,
}

impl Written {
    /// The record as it came, and when.
    fn job(self) -> (Job, OffsetDateTime) {
        let Self {
            event, reply, now, ..
        } = self;
        (Job { event, reply }, now)
    }
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
    /// Recent time of a sync, microseconds.
    recent: AtomicU64,
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
            recent: AtomicU64::default(),
            failed: AtomicBool::default(),
            emergency: emergency.into(),
            gap: Mutex::default(),
            head: Mutex::new(head),
            aside: Aside::default(),
            outlets,
        }
    }

    fn synced(&self, took: Duration) {
        self.took.observe(took);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let before = self.recent.load(Ordering::Relaxed);
        // There is one writer, so nothing comes in between.
        let now = before - before / 8 + micros / 8;
        self.recent.store(now, Ordering::Relaxed);
    }

    /// Whether a record that is needed after `spare` is durable by then though it waits for others.
    fn can_wait(&self, spare: Duration) -> bool {
        let sync = Duration::from_micros(self.recent.load(Ordering::Relaxed));
        spare >= AHEAD + sync
    }
}

fn hold<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
    _lock: FileLock,
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
            let done = writer.current.write(&bytes).and_then(|()| writer.sync());
            if let Err(error) = done {
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
            let closed =
                (failed || quiet && self.current.is_durable()) && self.shared.aside.close();
            let came = match (closed, failed) {
                // While the emergency policy is on the disk is tried again and again.
                (true, true) => tokio::time::timeout(stand_in::AGAIN, more).await,
                (true, false) => Ok(more.await),
                (false, _) => tokio::time::timeout(GATHER, more).await,
            };
            let aside = self.shared.aside.take();
            quiet = jobs.is_empty() && aside.is_empty();
            let over = matches!(came, Ok(0));
            let jobs = aside.into_iter().chain(jobs.drain(..)).collect();
            if let Some(fault) = self.fault.clone() {
                self.stand_in(jobs, &fault, over);
            } else {
                self.append(jobs);
            }
            if self.fault.is_none()
                && (over || self.lingers())
                && let Err(error) = self.sync()
            {
                self.fail(Arc::new(error));
            }
            if over {
                return;
            }
        }
    }

    /// Writes one batch and answers it.
    fn append(&mut self, jobs: Vec<Job>) {
        if !jobs.is_empty()
            && let Err(error) = self.rotate()
        {
            let now = OffsetDateTime::now_utc();
            return self.unwritten(jobs.into_iter().map(|job| (job, now)).collect(), error);
        }
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
            .current
            .write(&bytes)
            .and_then(|()| if awaited { self.sync() } else { Ok(()) });
        if let Err(error) = done {
            let jobs = written.into_iter().map(Written::job).collect();
            return self.unwritten(jobs, error);
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

    /// What becomes of records that the disk does not take, and it takes no more from now on.
    fn unwritten(&mut self, jobs: Vec<(Job, OffsetDateTime)>, error: io::Error) {
        let error = Arc::new(error);
        self.fail(Arc::clone(&error));
        for (job, now) in jobs {
            let Job { event, reply } = job;
            match reply {
                // What it tells has happened: it is kept, or counted as lost.
                None => {
                    self.shared.outlets.put_unchained(&event, &self.node, now);
                    self.keep(event, now);
                }
                reply => self.wait_or_refuse(Job { event, reply }, &error),
            }
        }
    }

    /// Begins a new file where the current one is long enough.
    fn rotate(&mut self) -> io::Result<()> {
        let old = self.rotate_after.is_some_and(|after| {
            self.current.written > 0 && self.current.begun.elapsed().unwrap_or_default() >= after
        });
        if !old && self.current.written < self.rotate_at {
            return Ok(());
        }
        // What stands before the new file must not be lost after it. Where there will be none, what
        // follows stands behind all of it all the same.
        self.sync()?;
        let number = self.current.number.saturating_add(1);
        let path = file_path(&self.dir, number);
        let file = append_options().create_new(true).open(&path)?;
        File::open(&self.dir)?.sync_all()?;
        self.current = LogEnd::begun(number, path, file);
        Ok(())
    }

    /// Whether what has been written has waited long enough for a sync to share.
    fn lingers(&self) -> bool {
        !self.current.is_durable() && self.since.elapsed() >= LINGER
    }

    /// Makes durable what has been written.
    fn sync(&mut self) -> io::Result<()> {
        let begun = Instant::now();
        self.current.sync()?;
        self.shared.synced(begun.elapsed());
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

impl Drop for Writer {
    fn drop(&mut self) {
        self.shared.aside.end();
    }
}

/// How long a record that nobody waits for yet may wait for others that it can be written with.
const GATHER: Duration = Duration::from_millis(2);

/// A record waits as long also where it is not needed sooner than this and a sync's usual time. A
/// timer may be a millisecond late, and the writer at work on others.
const AHEAD: Duration = Duration::from_millis(6);

/// How long a record that nobody waits for at all, once written, may wait for one whose sync it can
/// share.
const LINGER: Duration = Duration::from_millis(50);

/// The most records in one write: a bound on the writer's memory.
const MAX_BATCH: usize = 1024;

#[cfg(test)]
mod tests;
