//! The audit log: append-only, hash-chained, one JSON object per line.
//!
//! ```text
//! {"seq":7,"time":"2026-03-01T12:00:00.000000000Z","node":"a", …event…, "prev":"<64 hex>","hash":"<64 hex>"}
//! ```
//!
//! `hash` is SHA-256 over the bytes of the line that stand before `,"hash":"`; `prev` is the hash of
//! the line before, or 64 zeros in the first. `seq` starts at 1 and never skips. The chain runs
//! through the files `audit-00000001.jsonl`, `audit-00000002.jsonl` and so on.
//!
//! A record is acknowledged only after its `fdatasync`, by a [`Receipt`]. Nothing else makes an
//! [`Audited`] value, so an answer that is typed `Audited` cannot leave before its record.
//!
//! What the chain alone is not: a signature. Whoever can write the directory can cut records off
//! its end, or make the chain anew from some point on. Seals ([`Seal`]) and what is kept of them
//! elsewhere ([`Anchor`]) show both.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

mod check;
mod log;
pub mod outlet;
mod record;
mod reserve;
mod retention;
mod seal;
mod verify;

pub use check::{Expected, Sealed};
pub use log::{AuditLog, GapSeen, Options, Pending, Stats, is_written};
pub use record::{EedkMark, Event, Kind, Outcome, Receipt, Record};
pub use reserve::Reserve;
pub use retention::{Keep, Removal, removable, remove};
pub use seal::{
    Anchor, Begins, ChainMark, Gap, HeadMark, NoAnchor, NoSealKey, Seal, SealKey, statement,
};
pub use verify::{
    Records, SealFound, Verified, hash_at, lines, newest_seal, read, verify, verify_against,
};

/// A value that may leave the process, because a durable record of it exists.
///
/// ```compile_fail,E0451
/// let answer = ekm::audit::Audited { value: "key", record: 1 };
/// ```
#[derive(Debug)]
pub struct Audited<T> {
    value: T,
    record: u64,
}

impl<T> Audited<T> {
    /// Ties `value` to the durable record that `receipt` stands for.
    pub fn new(value: T, receipt: &Receipt) -> Self {
        Self {
            value,
            record: receipt.seq(),
        }
    }

    /// The sequence number of the record.
    pub fn record(&self) -> u64 {
        self.record
    }

    /// The value, to be sent now.
    pub fn into_inner(self) -> T {
        self.value
    }
}

/// Why the log cannot be written, or is not what was once written.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// Another process has the log open for writing.
    #[error(
        "another ekm process works on this site (it holds the audit log {dir}): a server that runs, or one that is just starting; stop it, or try again in a moment"
    )]
    Locked {
        /// The log's directory.
        dir: PathBuf,
    },
    /// A file of the log could not be handled.
    #[error("cannot {action} {path}: check that it exists and belongs to this user")]
    File {
        /// What was being done.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The log is damaged, so that nothing may be appended to it.
    #[error(
        "audit log {dir} is damaged and takes no more records: run `ekm audit verify {dir}`, keep its files, and configure a new directory"
    )]
    Damaged {
        /// The log's directory.
        dir: PathBuf,
        /// The damage.
        source: Box<Self>,
    },
    /// A write or sync failed, now or earlier. What the disk holds of it is unknown, and a second
    /// sync would report success for data that is lost, so that nothing more is taken.
    #[error(
        "audit log file {file} could not be written and takes no more records: mend the disk, then restart ekm"
    )]
    Failed {
        /// The file.
        file: PathBuf,
        /// What the system said the first time.
        source: Arc<io::Error>,
    },
    /// The writer is gone.
    #[error("the audit log's writer has stopped: restart ekm")]
    Stopped,
    /// One record is longer than a line may be.
    #[error(
        "an audit record of {length} bytes is over the limit of {limit}: send a smaller request"
    )]
    TooLong {
        /// The line's length in bytes.
        length: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The event cannot be written as JSON.
    #[error("an audit record cannot be encoded")]
    Encode(#[source] serde_json::Error),
    /// There is nothing to verify or to read.
    #[error("{dir} holds no audit records: name the directory that has the audit-*.jsonl files")]
    Empty {
        /// The directory.
        dir: PathBuf,
    },
    /// A file is missing from the sequence.
    #[error(
        "audit file {file} is missing: put it back from the archive, or treat its records as removed"
    )]
    MissingFile {
        /// The file that should be there.
        file: PathBuf,
    },
    /// A line is not a record as this log writes it.
    #[error(
        "{file} line {line}{} is not an audit record: it was altered after it was written",
        of_record(*.seq)
    )]
    Malformed {
        /// The file.
        file: PathBuf,
        /// The line, counted from 1.
        line: u64,
        /// The sequence number that should stand there, where that is known.
        seq: Option<u64>,
    },
    /// A line's own hash does not fit its bytes.
    #[error(
        "{file} line {line} (record {seq}) was altered: it should hash to {expected}, its bytes hash to {got}"
    )]
    Altered {
        /// The file.
        file: PathBuf,
        /// The line, counted from 1.
        line: u64,
        /// The sequence number that should stand there.
        seq: u64,
        /// The hash in the line.
        expected: String,
        /// The hash of the line's bytes.
        got: String,
    },
    /// Records are missing.
    #[error(
        "{file} line {line}: expected record {expected}, got {got}; those between were removed"
    )]
    MissingRecords {
        /// The file.
        file: PathBuf,
        /// The line, counted from 1.
        line: u64,
        /// The sequence number that should follow.
        expected: u64,
        /// The sequence number of the line.
        got: u64,
    },
    /// Records are all there, but in another order.
    #[error(
        "{file} line {line}: expected record {expected}, got {got}; the lines were reordered or repeated"
    )]
    Reordered {
        /// The file.
        file: PathBuf,
        /// The line, counted from 1.
        line: u64,
        /// The sequence number that should follow.
        expected: u64,
        /// The sequence number of the line.
        got: u64,
    },
    /// A record does not name the one before it.
    #[error(
        "{file} line {line} (record {seq}): the record before hashes to {expected}, but this one follows {got}; one of the two was written anew"
    )]
    Unchained {
        /// The file.
        file: PathBuf,
        /// The line, counted from 1.
        line: u64,
        /// The record's sequence number.
        seq: u64,
        /// The hash of the record before.
        expected: String,
        /// What the line says it is.
        got: String,
    },
    /// A seal does not fit the records that it covers.
    #[error(
        "{file} line {line} (record {seq}): seal {number} {reason}; {}",
        between(*.after, *.seq)
    )]
    WrongSeal {
        /// The file.
        file: PathBuf,
        /// The line of the seal, counted from 1.
        line: u64,
        /// Its record's sequence number.
        seq: u64,
        /// The seal's number.
        number: u64,
        /// What is wrong.
        reason: String,
        /// The last record that a good seal before it covers; 0 where there is none.
        after: u64,
    },
    /// A record is not the one that is known from elsewhere.
    #[error(
        "{file} line {line} (record {seq}): it hashes to {got}, and the {what} known from elsewhere to {expected}; {}",
        between(*.after, *.seq)
    )]
    Another {
        /// The file.
        file: PathBuf,
        /// The line, counted from 1.
        line: u64,
        /// The record's sequence number.
        seq: u64,
        /// `seal 7` or `record 7`.
        what: String,
        /// The hash known from elsewhere.
        expected: String,
        /// The record's.
        got: String,
        /// The last record that a good seal before it covers; 0 where there is none.
        after: u64,
    },
    /// What is known from elsewhere is not there: the end was cut off.
    #[error(
        "{file} line {line} (record {seq}) is the end, and {what}, which is known from elsewhere, is missing: the end of the log was cut off, or written anew without it"
    )]
    CutOff {
        /// The last file with a record.
        file: PathBuf,
        /// The last line, counted from 1.
        line: u64,
        /// The last record's sequence number.
        seq: u64,
        /// `seal 7` or `record 7`.
        what: String,
    },
    /// What is known from elsewhere is of a time before the oldest file.
    #[error(
        "{what} was in a file that the retention has removed: verify against a newer one, or the archive"
    )]
    TooOld {
        /// `seal 7` or `record 7`.
        what: String,
    },
    /// Records follow the last seal.
    #[error(
        "{file} line {line} (record {seq}): no seal covers it and what follows; whoever can write the directory can have made it. Seal the log (ekm audit seal) before it is copied"
    )]
    Unsealed {
        /// The file.
        file: PathBuf,
        /// The line of the first such record, counted from 1.
        line: u64,
        /// Its sequence number.
        seq: u64,
    },
    /// The last line is unfinished. Such a record was never acknowledged.
    #[error(
        "{file} line {line} is unfinished ({bytes} bytes): a power cut, which the next start of ekm repairs, or a running server is writing it; run verify again"
    )]
    TornTail {
        /// The file.
        file: PathBuf,
        /// The line, counted from 1.
        line: u64,
        /// The bytes after the last whole line.
        bytes: u64,
    },
}

fn of_record(seq: Option<u64>) -> String {
    seq.map_or_else(String::new, |seq| format!(" (record {seq})"))
}

fn between(after: u64, seq: u64) -> String {
    format!(
        "a record from {} to {seq} was written anew",
        after.saturating_add(1)
    )
}

impl AuditError {
    fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File {
            action,
            path,
            source,
        }
    }
}

#[cfg(test)]
mod tests;
