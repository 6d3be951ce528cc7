//! What EKM keyed, kept beside the state: `ekm21-volumes.jsonl`.
//!
//! The volume history of the state is of EEDKs that were issued here, each with its data key's
//! identifier and its bytes. EKM's records have neither, so they have no row there: a row without an
//! EEDK would say that a cartridge can be read. They are kept as they are, one JSON object a line, and
//! `ekm assess` reads them.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::metadata::KeyUse;

/// The file's name in the state directory.
pub const FILE: &str = "ekm21-volumes.jsonl";

/// Longest file, bytes: over a million records.
const MAX_FILE: u64 = 256 << 20;

const SEEN_UNDER: &str = "EKM 2.1";

#[derive(Serialize, Deserialize)]
struct Row {
    /// Who keyed it.
    seen_under: String,
    #[serde(flatten)]
    used: KeyUse,
}

/// Why the records cannot be had or kept.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// The file.
    #[error("cannot use {path}, the records of EKM 2.1: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A line is not what was written.
    #[error(
        "{path}, line {line}: {source}; restore it from the backup of the state, or move it away and migrate again"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// The cause.
        source: serde_json::Error,
    },
}

/// How many records a merge found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Merged {
    /// Those that were not there before.
    pub added: usize,
    /// All that are there now.
    pub total: usize,
}

/// The records that are kept in a state directory; none where there is no file.
///
/// # Errors
/// The file cannot be read, or a line of it is damaged.
pub fn read(state: &Path) -> Result<BTreeSet<KeyUse>, HistoryError> {
    let path = state.join(FILE);
    let bytes = match crate::files::read_limited(&path, MAX_FILE) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(source) => return Err(HistoryError::File { path, source }),
    };
    let mut records = BTreeSet::new();
    for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        if line.is_empty() {
            continue;
        }
        let row: Row = serde_json::from_slice(line).map_err(|source| HistoryError::Damaged {
            path: path.clone(),
            line: index + 1,
            source,
        })?;
        records.insert(row.used);
    }
    Ok(records)
}

/// Adds records to those of a state directory; the same record again changes nothing.
///
/// # Errors
/// As [`read`], or the file cannot be written.
pub fn merge(state: &Path, records: &[KeyUse]) -> Result<Merged, HistoryError> {
    let mut kept = read(state)?;
    let before = kept.len();
    kept.extend(records.iter().cloned());
    let merged = Merged {
        added: kept.len() - before,
        total: kept.len(),
    };
    if merged.added > 0 {
        let path = state.join(FILE);
        write(&path, kept).map_err(|source| HistoryError::File { path, source })?;
    }
    Ok(merged)
}

fn write(path: &Path, records: BTreeSet<KeyUse>) -> io::Result<()> {
    let mut text = Vec::new();
    for used in records {
        let seen_under = SEEN_UNDER.to_owned();
        serde_json::to_writer(&mut text, &Row { seen_under, used })?;
        text.push(b'\n');
    }
    if let Some(folder) = path.parent() {
        crate::files::private_dir(folder)?;
    }
    crate::files::write_private(path, &text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(volser: &str) -> KeyUse {
        KeyUse {
            volser: volser.to_owned(),
            alias1: "cert\"1".to_owned(),
            ..KeyUse::default()
        }
    }

    #[test]
    fn a_second_merge_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let first = merge(folder.path(), &[used("B"), used("A"), used("B")]).unwrap();
        assert_eq!(first, Merged { added: 2, total: 2 });
        let text = std::fs::read(folder.path().join(FILE)).unwrap();
        let again = merge(folder.path(), &[used("A"), used("B")]).unwrap();
        assert_eq!(again, Merged { added: 0, total: 2 });
        assert_eq!(std::fs::read(folder.path().join(FILE)).unwrap(), text);
        let more = merge(folder.path(), &[used("C")]).unwrap();
        assert_eq!(more, Merged { added: 1, total: 3 });
        assert_eq!(read(folder.path()).unwrap().len(), 3);
    }

    #[test]
    fn a_damaged_line_is_named_and_nothing_is_written_over() {
        let folder = tempfile::tempdir().unwrap();
        merge(folder.path(), &[used("A")]).unwrap();
        let path = folder.path().join(FILE);
        let mut text = std::fs::read(&path).unwrap();
        text.truncate(text.len() - 5);
        std::fs::write(&path, &text).unwrap();
        let error = merge(folder.path(), &[used("B")]).unwrap_err().to_string();
        assert!(error.contains("line 1"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), text);
    }
}
