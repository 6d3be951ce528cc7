//! Confirms that wait, on disk: what a process of this host has seen of a cartridge must not end with
//! that process.
//!
//! ```text
//! DIRECTORY/NANOSECONDS-REQUEST.json   {"server": "ekm1:3801", "confirm": {…}}
//! DIRECTORY/….unreadable               one that could not be read, for a person to look at
//! ```
//!
//! A file for each, so that one that is damaged takes no other with it. Their names are in the order in
//! which they came.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::api::ConfirmRequest;
use crate::files::{private_dir, read_limited, write_private};
use crate::proxy::servers::ServerAddress;

/// Longest file, bytes; they have some 200.
const MAX_FILE: u64 = 16 << 10;

const EXTENSION: &str = "json";
const UNREADABLE: &str = "unreadable";

/// A directory of confirms.
#[derive(Debug)]
pub(super) struct Shelf {
    directory: PathBuf,
}

/// One of them.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Fact {
    /// Who is to be told.
    pub(super) server: ServerAddress,
    /// What.
    pub(super) confirm: ConfirmRequest,
}

impl Shelf {
    /// That directory, which is made when it is needed.
    pub(super) fn new(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
        }
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Puts one there; it is on disk when this returns.
    ///
    /// # Errors
    /// The operating system's.
    pub(super) fn keep(&self, fact: &Fact) -> io::Result<PathBuf> {
        if !self.directory.exists() {
            private_dir(&self.directory)?;
            // Without its name above, it would be gone with all that is in it after a power cut.
            if let Some(above) = self.directory.parent() {
                File::open(above)?.sync_all()?;
            }
        }
        let now = OffsetDateTime::now_utc().unix_timestamp_nanos();
        let name = format!("{now:020}-{}.{EXTENSION}", fact.confirm.request_id);
        let file = self.directory.join(name);
        write_private(&file, &serde_json::to_vec(fact)?)?;
        Ok(file)
    }

    /// All that are there, the oldest first. What cannot be read is set aside, and named in the log.
    pub(super) fn read(&self) -> Vec<(PathBuf, Fact)> {
        let files = match self.files() {
            Ok(files) => files,
            Err(error) => {
                tracing::error!(directory = %self.directory.display(), %error, "the confirms that waited when the proxy ended cannot be read; key servers are not told of them");
                return Vec::new();
            }
        };
        let mut facts = Vec::new();
        for file in files {
            match read(&file) {
                Ok(fact) => facts.push((file, fact)),
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::InvalidData | io::ErrorKind::IsADirectory
                    ) =>
                {
                    set_aside(&file, &error);
                }
                // The disk's trouble may pass, and the next start reads it again.
                Err(error) => {
                    tracing::error!(file = %file.display(), %error, "a confirm that waited when the proxy ended cannot be read now; it is left there for the next start");
                }
            }
        }
        facts
    }

    fn files(&self) -> io::Result<Vec<PathBuf>> {
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut files = Vec::new();
        for entry in entries {
            let file = entry?.path();
            if file.extension().is_some_and(|end| end == EXTENSION) {
                files.push(file);
            }
        }
        files.sort();
        Ok(files)
    }
}

fn read(file: &Path) -> io::Result<Fact> {
    let bytes = read_limited(file, MAX_FILE)?;
    serde_json::from_slice(&bytes)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

fn set_aside(file: &Path, error: &io::Error) {
    let aside = file.with_extension(UNREADABLE);
    tracing::error!(file = %file.display(), aside = %aside.display(), %error, "a confirm that waited when the proxy ended cannot be read; it is set aside, and its key server is not told");
    if let Err(error) = fs::rename(file, &aside) {
        tracing::error!(file = %file.display(), %error, "it could not be set aside");
    }
}

/// Takes one away, which has been told.
pub(super) fn forget(file: &Path) {
    let forgotten = fs::remove_file(file).and_then(|()| {
        let above = file.parent().unwrap_or_else(|| Path::new("."));
        File::open(above)?.sync_all()
    });
    if let Err(error) = forgotten
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(file = %file.display(), %error, "a confirm that was told stays on disk; it is told once more when the proxy starts anew, which does no harm");
    }
}
