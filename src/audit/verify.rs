//! Walking a log: over raw bytes, in constant memory, naming the first damage.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::check::{CHAIN_FIELD, Checker, holds};
use super::record::{Head, Link, MAX_LINE, Record, parse_seq};
use super::{AuditError, ChainMark, Expected, Sealed};

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

/// A seal in a log, and where it is.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SealFound {
    /// Its number.
    pub number: u64,
    /// The sequence number of its record.
    pub seq: u64,
    /// The hash of its record, 64 hexadecimal digits.
    pub hash: String,
    /// The sequence number of the last record that it covers.
    pub covers: u64,
    /// The fingerprint of its key.
    pub key: String,
}

/// The newest seal in `dir`, and when it was made; found from the end, without verification.
///
/// # Errors
///
/// When a file cannot be read.
pub fn newest_seal(dir: &Path) -> Result<Option<(SealFound, String)>, AuditError> {
    for file in log_files(dir)?.iter().rev() {
        let mut newest = None;
        let mut lines = Lines::open(&file.path)?;
        while let Line::Whole = lines.advance()? {
            if holds(&lines.buffer, CHAIN_FIELD)
                && let Ok(record) = serde_json::from_slice::<Record>(&lines.buffer)
                && let Some(ChainMark::Seal(seal)) = record.event.chain.as_deref()
            {
                let found = SealFound {
                    number: seal.number,
                    seq: record.seq,
                    hash: record.hash.clone(),
                    covers: seal.seq,
                    key: seal.key.clone(),
                };
                newest = Some((found, record.time));
            }
        }
        if newest.is_some() {
            return Ok(newest);
        }
    }
    Ok(None)
}

/// The hash of the record in `dir` with that sequence number, without verification. None where there
/// is none, or where its file was removed.
///
/// # Errors
///
/// When a file cannot be read.
pub fn hash_at(dir: &Path, seq: u64) -> Result<Option<String>, AuditError> {
    for file in log_files(dir)?.iter().rev() {
        let mut first = None;
        let mut lines = Lines::open(&file.path)?;
        while let Line::Whole = lines.advance()? {
            let Ok(record) = serde_json::from_slice::<Record>(&lines.buffer) else {
                continue;
            };
            if record.seq == seq {
                return Ok(Some(record.hash));
            }
            if *first.get_or_insert(record.seq) > seq {
                break;
            }
        }
        if first.is_some_and(|first| first < seq) {
            return Ok(None);
        }
    }
    Ok(None)
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

/// The records in `dir`, in order, without verification. An unfinished last line, which a running
/// server may be writing just now, ends the iteration.
///
/// # Errors
///
/// When the directory cannot be read or holds no log; each item, when its line is no record.
pub fn read(dir: &Path) -> Result<Records, AuditError> {
    let files = log_files(dir)?;
    if files.is_empty() {
        return Err(AuditError::Empty { dir: dir.into() });
    }
    Ok(Records {
        files: files.into_iter(),
        lines: None,
    })
}

/// The iterator that [`read`] returns.
#[derive(Debug)]
pub struct Records {
    files: std::vec::IntoIter<LogFile>,
    lines: Option<Lines>,
}

impl Iterator for Records {
    type Item = Result<Record, AuditError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let Some(lines) = &mut self.lines else {
                match Lines::open(&self.files.next()?.path) {
                    Ok(lines) => self.lines = Some(lines),
                    Err(error) => return Some(Err(error)),
                }
                continue;
            };
            match lines.advance() {
                Err(error) => {
                    self.lines = None;
                    return Some(Err(error));
                }
                Ok(Line::Whole) => {
                    return Some(
                        serde_json::from_slice(&lines.buffer).map_err(|_| lines.malformed(None)),
                    );
                }
                Ok(Line::Torn | Line::End) => self.lines = None,
            }
        }
    }
}

/// The lines in `dir` with the records that they are, in order, without verification.
///
/// # Errors
///
/// When the directory cannot be read or holds no log; `each`'s own, and a line that is no record.
pub fn lines(
    dir: &Path,
    mut each: impl FnMut(&[u8], Record) -> io::Result<()>,
) -> Result<(), AuditError> {
    let files = log_files(dir)?;
    if files.is_empty() {
        return Err(AuditError::Empty { dir: dir.into() });
    }
    for file in files {
        let mut lines = Lines::open(&file.path)?;
        while let Line::Whole = lines.advance()? {
            let record =
                serde_json::from_slice(&lines.buffer).map_err(|_| lines.malformed(None))?;
            each(&lines.buffer, record).map_err(AuditError::file("copy from", &lines.path))?;
        }
    }
    Ok(())
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

/// A file, line by line, in one buffer.
#[derive(Debug)]
struct Lines {
    path: PathBuf,
    reader: BufReader<File>,
    /// The current line without its newline.
    buffer: Vec<u8>,
    /// The current line's number, from 1.
    number: u64,
    /// The length of all whole lines so far, newlines counted.
    whole: u64,
}

/// What [`Lines::advance`] came upon.
#[derive(Debug)]
enum Line {
    Whole,
    /// Bytes, but no newline before the end of the file.
    Torn,
    End,
}

impl Lines {
    fn open(path: &Path) -> Result<Self, AuditError> {
        let file = File::open(path).map_err(AuditError::file("open", path))?;
        Ok(Self {
            path: path.into(),
            reader: BufReader::new(file),
            buffer: Vec::new(),
            number: 0,
            whole: 0,
        })
    }

    fn advance(&mut self) -> Result<Line, AuditError> {
        self.buffer.clear();
        let limit = u64::try_from(MAX_LINE).unwrap_or(u64::MAX);
        let length = (&mut self.reader)
            .take(limit)
            .read_until(b'\n', &mut self.buffer)
            .map_err(AuditError::file("read", &self.path))?;
        let length = u64::try_from(length).unwrap_or(u64::MAX);
        if length == 0 {
            return Ok(Line::End);
        }
        self.number = self.number.saturating_add(1);
        if self.buffer.pop_if(|byte| *byte == b'\n').is_some() {
            self.whole = self.whole.saturating_add(length);
            return Ok(Line::Whole);
        }
        if length == limit && !self.newline_follows()? {
            return Ok(Line::Torn);
        }
        if length == limit {
            return Err(self.malformed(None));
        }
        Ok(Line::Torn)
    }

    /// Whether an overlong line is at least finished: a tail of zeros, which a power cut can leave,
    /// may be longer than a line may be.
    fn newline_follows(&mut self) -> Result<bool, AuditError> {
        loop {
            let bytes = self
                .reader
                .fill_buf()
                .map_err(AuditError::file("read", &self.path))?;
            if bytes.is_empty() {
                return Ok(false);
            }
            if bytes.contains(&b'\n') {
                return Ok(true);
            }
            let length = bytes.len();
            self.reader.consume(length);
        }
    }

    fn torn(&self) -> Result<Torn, AuditError> {
        let length = fs::metadata(&self.path)
            .map_err(AuditError::file("read", &self.path))?
            .len();
        Ok(Torn {
            file: self.path.clone(),
            line: self.number,
            bytes: length.saturating_sub(self.whole),
            keep: self.whole,
        })
    }

    fn malformed(&self, before: Option<Head>) -> AuditError {
        AuditError::Malformed {
            file: self.path.clone(),
            line: self.number,
            seq: before.map(|head| head.seq.saturating_add(1)),
        }
    }
}
