//! Records as they stand in a log, without verification.

use std::io;
use std::path::Path;

use super::line::{Line, Lines};
use super::{LogFile, log_files};
use crate::audit::check::{CHAIN_FIELD, holds};
use crate::audit::record::Record;
use crate::audit::{AuditError, ChainMark};

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
