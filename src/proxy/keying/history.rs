//! What cartridges held before they were written over, kept by this host.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::api::Base64;
use crate::files::private_dir;

/// A file to which lines are added, each on disk before anything is written over.
///
/// The key server knows what it issued itself. What came from elsewhere would be lost with the
/// attribute that held it.
#[derive(Clone, Debug)]
pub struct History {
    path: PathBuf,
}

/// One cartridge at one moment.
#[derive(Debug, Serialize)]
pub(super) struct Held<'a> {
    pub(super) volser: String,
    pub(super) drive: String,
    pub(super) medium_serial: Option<&'a str>,
    /// The A-KAD of its blocks, hexadecimal.
    pub(super) named: Option<String>,
    /// What its memory held of EEDKs, as it was.
    pub(super) memory: Base64,
    /// What the drive kept of them.
    pub(super) kept: Vec<Base64>,
    /// The request for the key that takes their place.
    pub(super) request: String,
}

#[derive(Serialize)]
struct Line<'a> {
    at: String,
    #[serde(flatten)]
    held: &'a Held<'a>,
}

/// Why the history could not be kept.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot write {}, which keeps the EEDKs of cartridges that are written over ([in_band] history \
     in the host's file): {source}",
    path.display()
)]
pub struct HistoryError {
    /// The file.
    pub path: PathBuf,
    /// The cause.
    pub source: std::io::Error,
}

impl History {
    /// A history in that file, which is made when it is needed.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }

    /// Adds a line; it is on disk when this returns.
    pub(super) fn keep(&self, held: &Held<'_>) -> Result<(), HistoryError> {
        self.add(held).map_err(|source| HistoryError {
            path: self.path.clone(),
            source,
        })
    }

    fn add(&self, held: &Held<'_>) -> std::io::Result<()> {
        let at = OffsetDateTime::now_utc()
            .format(&Rfc3339)
            .map_err(std::io::Error::other)?;
        let mut line = serde_json::to_vec(&Line { at, held })?;
        line.push(b'\n');
        if let Some(directory) = self.path.parent().filter(|parent| !parent.exists()) {
            private_dir(directory)?;
        }
        // One write for a line: other drives' threads write here too.
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&self.path)?;
        file.write_all(&line)?;
        file.sync_all()
    }
}
