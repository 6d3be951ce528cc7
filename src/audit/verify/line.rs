//! A file of a log, line by line.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};

use super::Torn;
use crate::audit::AuditError;
use crate::audit::record::{Head, MAX_LINE};

/// A file, line by line, in one buffer.
#[derive(Debug)]
pub(super) struct Lines {
    pub(super) path: PathBuf,
    reader: BufReader<File>,
    /// The current line without its newline.
    pub(super) buffer: Vec<u8>,
    /// The current line's number, from 1.
    pub(super) number: u64,
    /// The length of all whole lines so far, newlines counted.
    whole: u64,
}

/// What [`Lines::advance`] came upon.
#[derive(Debug)]
pub(super) enum Line {
    Whole,
    /// Bytes, but no newline before the end of the file.
    Torn,
    End,
}

impl Lines {
    pub(super) fn open(path: &Path) -> Result<Self, AuditError> {
        let file = File::open(path).map_err(AuditError::file("open", path))?;
        Ok(Self {
            path: path.into(),
            reader: BufReader::new(file),
            buffer: Vec::new(),
            number: 0,
            whole: 0,
        })
    }

    pub(super) fn advance(&mut self) -> Result<Line, AuditError> {
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

    pub(super) fn torn(&self) -> Result<Torn, AuditError> {
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

    pub(super) fn malformed(&self, before: Option<Head>) -> AuditError {
        AuditError::Malformed {
            file: self.path.clone(),
            line: self.number,
            seq: before.map(|head| head.seq.saturating_add(1)),
        }
    }
}
