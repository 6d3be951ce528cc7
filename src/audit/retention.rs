//! Which old files may go: those that are sealed, anchored elsewhere and old enough.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::verify::{LogFile, last_of, log_files};
use super::{AuditError, Begins};

/// How much is kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Keep {
    /// Files that were written to in this time; none for those of all times.
    pub time: Option<Duration>,
    /// So many of the newest files; none for any number.
    pub files: Option<usize>,
}

/// The oldest files of a log, that may go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removal {
    files: Vec<PathBuf>,
    /// Where the chain begins without them.
    pub begins: Begins,
}

impl Removal {
    /// How many files there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.files.len()
    }
}

/// The oldest files that are beyond both bounds and whose every record is covered by a seal that
/// is anchored; `covered` is the last record that the newest such seal covers. The newest file
/// always stays.
///
/// # Errors
/// A file cannot be read.
pub fn removable(
    dir: &Path,
    keep: Keep,
    covered: u64,
    now: SystemTime,
) -> Result<Option<Removal>, AuditError> {
    if keep == Keep::default() {
        return Ok(None);
    }
    let all = log_files(dir)?;
    let mut going: Vec<&LogFile> = Vec::new();
    let mut end = None;
    let stays = keep.files.unwrap_or(0).max(1);
    for file in all.iter().take(all.len().saturating_sub(stays)) {
        if let Some(time) = keep.time {
            let written = fs::metadata(&file.path)
                .and_then(|file| file.modified())
                .map_err(AuditError::file("read", &file.path))?;
            if now.duration_since(written).unwrap_or_default() < time {
                break;
            }
        }
        let last = last_of(file)?;
        if last.seq > covered {
            break;
        }
        going.push(file);
        end = Some((file.number, last));
    }
    Ok(end.map(|(number, last)| Removal {
        files: going.iter().map(|file| file.path.clone()).collect(),
        begins: Begins {
            file: number.saturating_add(1),
            seq: last.seq,
            hash: last.hash.to_string(),
        },
    }))
}

/// Removes them, the oldest first, once a durable record of where the chain begins exists.
///
/// # Errors
/// One cannot be removed.
pub fn remove(dir: &Path, removal: &Removal) -> Result<(), AuditError> {
    for file in &removal.files {
        fs::remove_file(file).map_err(AuditError::file("remove", file))?;
    }
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(AuditError::file("sync directory", dir))
}
