//! What is done with records while the disk takes none.
//!
//! Without the emergency policy nothing: each is refused, and with it the
//! answer that waits for it. With it, those of resolves are kept in memory and
//! go to the outlets, and the disk is tried again and again. When it takes
//! records again they stand behind a record that says how many they are, each
//! with the time at which it came.
//!
//! They go into a new file. What the old one has behind its last good sync is
//! cut off: the kernel may have called those pages clean although they never
//! reached the disk.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use time::OffsetDateTime;

use super::{GapSeen, Job, LogEnd, Ordering, Writer, append_options, file_path, hold};
use crate::audit::record::rfc3339;
use crate::audit::{ChainMark, Event, Gap, Kind, Outcome, Receipt};

/// Time between two tries of the disk.
pub(super) const AGAIN: Duration = Duration::from_secs(1);

/// Actions that give out or settle something new, which only a disk may witness.
const REFUSED: [&str; 4] = ["create", "rekey", "volume-rekey", "confirm"];

/// The action of the switch: these two have the disk tried at once.
const SWITCH: &str = "audit-emergency-";

/// Records that are in memory.
#[derive(Debug)]
pub(super) struct StandIn {
    kept: VecDeque<(Event, OffsetDateTime)>,
    room: usize,
    lost: u64,
    since: Option<OffsetDateTime>,
    tried: Option<Instant>,
}

impl StandIn {
    pub(super) const fn new(room: usize) -> Self {
        Self {
            kept: VecDeque::new(),
            room,
            lost: 0,
            since: None,
            tried: None,
        }
    }

    fn seen(&self) -> Option<GapSeen> {
        Some(GapSeen {
            since: self.since?,
            kept: u64::try_from(self.kept.len()).unwrap_or(u64::MAX),
            lost: self.lost,
        })
    }
}

/// Whether a record may wait in memory: of what a resolve needs, and that the policy was switched
/// on. A change of the site never does.
fn may_wait(event: &Event) -> bool {
    let gives = REFUSED.contains(&event.action.as_str()) && event.outcome != Outcome::Failure;
    let asked = matches!(event.kind, Kind::Runtime | Kind::Authentication);
    event.chain.is_none() && (asked && !gives || event.action == "audit-emergency-on")
}

impl Writer {
    /// Answers a batch while nothing is written; `last` where there is none after it.
    pub(super) fn stand_in(&mut self, jobs: Vec<Job>, fault: &Arc<io::Error>, last: bool) {
        let emergency = self.shared.emergency.load(Ordering::Relaxed);
        let switched = jobs.iter().any(|job| job.event.action.starts_with(SWITCH));
        let due = self
            .stand_in
            .tried
            .is_none_or(|tried| tried.elapsed() >= AGAIN);
        if emergency && (due || switched || last) {
            self.stand_in.tried = Some(Instant::now());
            match self.mend() {
                Ok(()) => return self.append(jobs),
                Err(error) => tracing::debug!(%error, "the audit disk takes no record yet"),
            }
        }
        for job in jobs {
            self.wait_or_refuse(job, fault);
        }
        if last && let Some(GapSeen { kept, lost, .. }) = self.stand_in.seen() {
            tracing::error!(
                kept,
                lost,
                "the audit disk took no record to the end: those in memory are lost with this process"
            );
        }
    }

    /// Keeps a record in memory where it may wait there; else it is refused.
    pub(super) fn wait_or_refuse(&mut self, job: Job, fault: &Arc<io::Error>) {
        let Job { event, reply } = job;
        let emergency = self.shared.emergency.load(Ordering::Relaxed);
        let answer = if emergency && may_wait(&event) {
            let now = OffsetDateTime::now_utc();
            self.shared.outlets.put_unchained(&event, &self.node, now);
            self.keep(event, now);
            Ok(Receipt::in_memory())
        } else {
            Err(self.failed(fault))
        };
        if let Some(reply) = reply {
            drop(reply.send(answer));
        }
    }

    /// Keeps a record in memory; where there is no room the oldest goes.
    pub(super) fn keep(&mut self, event: Event, at: OffsetDateTime) {
        let memory = &mut self.stand_in;
        memory.since.get_or_insert(at);
        if memory.kept.len() >= memory.room {
            memory.kept.pop_front();
            memory.lost += 1;
        }
        if memory.room > 0 {
            memory.kept.push_back((event, at));
        }
        *hold(&self.shared.gap) = memory.seen();
    }

    /// Begins a new file with what is in memory.
    fn mend(&mut self) -> io::Result<()> {
        // Nobody was told of what stands behind.
        self.current.file.set_len(self.current.durable)?;
        self.current.file.sync_all()?;
        let mut bytes = Vec::new();
        let mut head = self.head;
        let failed = |error| io::Error::other(error);
        if let Some(seen) = self.stand_in.seen() {
            let event = gap(seen);
            let now = OffsetDateTime::now_utc();
            head = head
                .append(&event, &self.node, now, &mut bytes)
                .map_err(failed)?;
        }
        let mut ends = vec![bytes.len()];
        for (event, at) in &self.stand_in.kept {
            head = head
                .append(event, &self.node, *at, &mut bytes)
                .map_err(failed)?;
            ends.push(bytes.len());
        }
        // One that is empty is as good as a new one.
        let used = u32::from(self.current.durable > 0);
        let number = self.current.number.saturating_add(used);
        let path = file_path(&self.dir, number);
        let mut file = append_options().create(true).open(&path)?;
        let written = file
            .set_len(0)
            .and_then(|()| file.write_all(&bytes))
            .and_then(|()| file.sync_all())
            .and_then(|()| File::open(&self.dir)?.sync_all());
        if let Err(error) = written {
            // Where this fails too, the next try empties it.
            drop(fs::remove_file(&path));
            return Err(error);
        }
        let records = u64::try_from(ends.len()).unwrap_or(u64::MAX);
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.current = LogEnd {
            written: length,
            durable: length,
            ..LogEnd::begun(number, path, file)
        };
        self.head = head;
        *hold(&self.shared.head) = head;
        if let Some(seen) = self.stand_in.seen() {
            self.shared.records.fetch_add(records, Ordering::Relaxed);
            self.shared.syncs.fetch_add(1, Ordering::Relaxed);
            // The others went out when they came.
            let first = ends.first().copied().unwrap_or_default();
            self.shared
                .outlets
                .put_line(bytes.get(..first).unwrap_or_default());
            tracing::warn!(
                kept = seen.kept,
                lost = seen.lost,
                "the audit disk takes records again"
            );
        }
        self.stand_in = StandIn::new(self.stand_in.room);
        self.fault = None;
        *hold(&self.shared.gap) = None;
        self.shared.failed.store(false, Ordering::Relaxed);
        Ok(())
    }
}

fn gap(seen: GapSeen) -> Event {
    let GapSeen { since, kept, lost } = seen;
    let mut event = Event::new(Kind::Runtime, "audit-gap", Outcome::Success);
    event.detail = Some(format!(
        "the disk took no record meanwhile; the {kept} behind this one were kept in memory, {lost} more were not"
    ));
    event.chain = Some(Box::new(ChainMark::Gap(Gap {
        since: rfc3339(since),
        kept,
        lost,
    })));
    event
}
