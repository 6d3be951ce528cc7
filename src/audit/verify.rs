//! Walking a log: over raw bytes, in constant memory, naming the first damage.

mod line;
mod records;

pub use records::{Records, SealFound, hash_at, lines, newest_seal, read};

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::check::Checker;
use super::record::{Head, Link, parse_seq};
use super::{AuditError, Expected, Sealed};
use line::{Line, Lines};

/// A log without damage.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Verified {
    /// How many records there are.
    pub records: u64,
    /// The first sequence number.
    pub first: u64,
    /// The last sequence number.
    pub last: u64,
    /// The last record's hash. Kept where this log's writer cannot reach, it proves later that no
    /// record up to here was cut off or written anew.
    pub head_hash: String,
    /// How many files there are.
    pub files: u64,
    /// What its seals cover.
    pub sealed: Sealed,
}

/// Walks the log in `dir` from its first record to its last.
///
/// # Errors
///
/// The first damage, each kind by its own variant; [`AuditError::Empty`] without any record.
pub fn verify(dir: &Path) -> Result<Verified, AuditError> {
    verify_against(dir, &Expected::default())
}

/// The same, against what is known of the log from elsewhere. The log may begin with a later file
/// where a record says that the retention removed those before.
///
/// # Errors
///
/// As for [`verify`], and what is not as it is known.
pub fn verify_against(dir: &Path, expected: &Expected) -> Result<Verified, AuditError> {
    let files = log_files(dir)?;
    let mut checker = Checker::new(expected);
    let walked = walk_with(&files, &mut |raw, file, line, head| {
        checker.record(raw, file, line, head)
    })?;
    if let Some(torn) = walked.torn {
        return Err(AuditError::TornTail {
            file: torn.file,
            line: torn.line,
            bytes: torn.bytes,
        });
    }
    let (Some(first), Some(head)) = (walked.first, walked.head) else {
        return Err(AuditError::Empty { dir: dir.into() });
    };
    let sealed = checker.end(dir, files.first().map_or(1, |file| file.number))?;
    Ok(Verified {
        records: walked.records,
        first,
        last: head.seq,
        head_hash: head.hash.to_string(),
        files: u64::try_from(files.len()).unwrap_or(u64::MAX),
        sealed,
    })
}

/// The last record of a file.
///
/// # Errors
///
/// When the file cannot be read, or has none.
pub(super) fn last_of(file: &LogFile) -> Result<Head, AuditError> {
    let walked = walk(std::slice::from_ref(file))?;
    walked.head.ok_or_else(|| AuditError::Empty {
        dir: file.path.clone(),
    })
}

/// One file of a log.
#[derive(Debug, Clone)]
pub(super) struct LogFile {
    pub(super) number: u32,
    pub(super) path: PathBuf,
}

/// What [`walk`] found.
#[derive(Debug)]
pub(super) struct Walked {
    records: u64,
    first: Option<u64>,
    /// The last whole record.
    pub(super) head: Option<Head>,
    pub(super) torn: Option<Torn>,
}

/// An unfinished line at the end of the last file.
#[derive(Debug)]
pub(super) struct Torn {
    pub(super) file: PathBuf,
    line: u64,
    pub(super) bytes: u64,
    /// The length of the file up to its last whole line.
    pub(super) keep: u64,
}

/// The path of the file with this number.
pub(super) fn file_path(dir: &Path, number: u32) -> PathBuf {
    dir.join(format!("audit-{number:08}.jsonl"))
}

/// The files of the log in `dir`, in order.
///
/// # Errors
///
/// When the directory cannot be read, or a number between the first and the last is missing.
pub(super) fn log_files(dir: &Path) -> Result<Vec<LogFile>, AuditError> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(AuditError::file("read directory", dir))? {
        let entry = entry.map_err(AuditError::file("read directory", dir))?;
        let number = entry.file_name().to_str().and_then(file_number);
        if let Some(number) = number {
            files.push(LogFile {
                number,
                path: entry.path(),
            });
        }
    }
    files.sort_by_key(|file| file.number);
    for (file, number) in files
        .iter()
        .zip(files.first().map_or(1, |file| file.number)..)
    {
        if file.number != number {
            return Err(AuditError::MissingFile {
                file: file_path(dir, number),
            });
        }
    }
    Ok(files)
}

fn file_number(name: &str) -> Option<u32> {
    let digits = name.strip_prefix("audit-")?.strip_suffix(".jsonl")?;
    (digits.len() == 8 && digits.bytes().all(|digit| digit.is_ascii_digit()))
        .then(|| digits.parse().ok())
        .flatten()
}

/// Walks `files`, consecutive ones of a log. The chain before their first is taken as it says,
/// unless that is the log's very first.
///
/// # Errors
///
/// The first damage. An unfinished line at the very end is no damage but part of the result.
pub(super) fn walk(files: &[LogFile]) -> Result<Walked, AuditError> {
    walk_with(files, &mut |_, _, _, _| Ok(()))
}

/// What is told each record that fits: its line, the file, the line's number, and its end.
type Told<'a> = &'a mut dyn FnMut(&[u8], &Arc<Path>, u64, Head) -> Result<(), AuditError>;

/// The same, telling of each record on the way.
fn walk_with(files: &[LogFile], tell: Told<'_>) -> Result<Walked, AuditError> {
    let mut walked = Walked {
        records: 0,
        first: None,
        head: None,
        torn: None,
    };
    let genesis = files.first().is_some_and(|file| file.number == 1);
    let mut head = genesis.then_some(Head::GENESIS);
    let mut rest = files;
    while let Some((file, later)) = rest.split_first() {
        let mut lines = Lines::open(&file.path)?;
        let path: Arc<Path> = file.path.as_path().into();
        loop {
            match lines.advance()? {
                Line::Whole => {
                    let (next, line) = (check(head, &mut lines, later)?, lines.number);
                    tell(&lines.buffer, &path, line, next)?;
                    walked.records = walked.records.saturating_add(1);
                    walked.first.get_or_insert(next.seq);
                    walked.head = Some(next);
                    head = Some(next);
                }
                Line::Torn if later.is_empty() => {
                    walked.torn = Some(lines.torn()?);
                    break;
                }
                Line::Torn => return Err(lines.malformed(head)),
                Line::End => break,
            }
        }
        rest = later;
    }
    Ok(walked)
}

/// Checks the line that `lines` stands on against the chain so far.
fn check(head: Option<Head>, lines: &mut Lines, later: &[LogFile]) -> Result<Head, AuditError> {
    let link = Link::parse(&lines.buffer).ok_or_else(|| lines.malformed(head))?;
    let Link {
        seq,
        prev,
        stated,
        computed,
    } = link;
    let (file, line) = (lines.path.clone(), lines.number);
    if stated != computed {
        return Err(AuditError::Altered {
            file,
            line,
            seq: head.map_or(seq, |head| head.seq.saturating_add(1)),
            expected: stated.to_string(),
            got: computed.to_string(),
        });
    }
    if let Some(head) = head {
        let expected = head.seq.saturating_add(1);
        if seq > expected && !occurs_later(expected, lines, later)? {
            return Err(AuditError::MissingRecords {
                file,
                line,
                expected,
                got: seq,
            });
        }
        if seq != expected {
            return Err(AuditError::Reordered {
                file,
                line,
                expected,
                got: seq,
            });
        }
        if prev != head.hash {
            return Err(AuditError::Unchained {
                file,
                line,
                seq,
                expected: head.hash.to_string(),
                got: prev.to_string(),
            });
        }
    }
    Ok(Head { seq, hash: stated })
}

/// Whether record `wanted` stands somewhere behind the current line.
fn occurs_later(wanted: u64, lines: &mut Lines, later: &[LogFile]) -> Result<bool, AuditError> {
    while let Line::Whole = lines.advance()? {
        if parse_seq(&lines.buffer) == Some(wanted) {
            return Ok(true);
        }
    }
    for file in later {
        let mut lines = Lines::open(&file.path)?;
        while let Line::Whole = lines.advance()? {
            if parse_seq(&lines.buffer) == Some(wanted) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}
