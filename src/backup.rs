//! A backup: everything of a site that is outside its HSMs, in one file that
//! is encrypted and authenticated as a whole, and read as a stream.
//!
//! ```text
//! file    = header, chunks                              (seal)
//! chunks  = frames: manifest, files, tables, end        (frame)
//! ```
//!
//! [`make`] writes one beside a running server and reads it back; [`restore`]
//! reads it whole before it changes anything.

pub mod frame;
pub mod make;
mod plan;
pub mod restore;
pub mod seal;

use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::key::{KekHash, KeyLabel};
use crate::store::StoreError;

/// The version of what is inside.
pub const VERSION: u32 = 1;

/// What a backup says of itself; the first thing in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`VERSION`]
    pub version: u32,
    /// The backup's own number.
    pub id: uuid::Uuid,
    /// When it was begun; what came after may not be in it.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// The server's node name.
    pub node: String,
    /// The program that made it.
    pub ekm: String,
    /// Where the state was: SQLite, or which PostgreSQL.
    pub database: String,
    /// The state's migrations, by number.
    pub migrations: Vec<i64>,
    /// Where the state directory was.
    pub state: Place,
    /// Where the audit records were.
    pub audit: Place,
    /// Whether PINs and passwords are in it.
    pub pins: bool,
    /// KEKs whose private halves are in it.
    pub keks: Vec<BackedKek>,
    /// What of the site is not in it, one sentence each.
    pub missing: Vec<String>,
}

/// A KEK whose private half is in a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackedKek {
    /// The token or keystore that has it, by configured name.
    pub token: String,
    /// Its label there.
    pub label: KeyLabel,
    /// Its public key's hash.
    pub hash: KekHash,
}

/// Where a file was.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Place {
    /// The configuration itself.
    Config,
    /// Beside the configuration or in a directory below: the path from there.
    Beside(String),
    /// Elsewhere: the absolute path.
    Elsewhere(String),
}

impl Place {
    /// Of an absolute path, seen from the configuration's directory.
    ///
    /// # Errors
    /// The path is no text, or has `..` in it.
    pub fn of(path: &Path, folder: &Path) -> Result<Self, BackupError> {
        let strange = || BackupError::Path(path.display().to_string());
        let text = |path: &Path| path.to_str().map(str::to_owned).ok_or_else(strange);
        let place = match path.strip_prefix(folder) {
            Ok(below) => Self::Beside(text(below)?),
            Err(_) => Self::Elsewhere(text(path)?),
        };
        place.check()?;
        Ok(place)
    }

    /// That a file may be put there: no `..`, no root where there should be none.
    ///
    /// # Errors
    /// [`BackupError::Path`]
    pub fn check(&self) -> Result<(), BackupError> {
        let good = match self {
            Self::Config => true,
            Self::Beside(text) => {
                !text.is_empty()
                    && Path::new(text)
                        .components()
                        .all(|part| matches!(part, Component::Normal(_)))
            }
            Self::Elsewhere(text) => {
                Path::new(text).is_absolute()
                    && Path::new(text)
                        .components()
                        .all(|part| matches!(part, Component::Normal(_) | Component::RootDir))
            }
        };
        // A zero ends a path for the operating system.
        if good && !self.text().contains('\0') {
            Ok(())
        } else {
            Err(BackupError::Path(self.text().to_owned()))
        }
    }

    fn text(&self) -> &str {
        match self {
            Self::Config => "",
            Self::Beside(text) | Self::Elsewhere(text) => text,
        }
    }

    /// Where it goes under a directory: what was elsewhere goes below `elsewhere/`, or back to
    /// where it was.
    #[must_use]
    pub fn under(&self, config: &Path, folder: &Path, in_place: bool) -> PathBuf {
        match self {
            Self::Config => config.to_owned(),
            Self::Beside(text) => folder.join(text),
            Self::Elsewhere(text) if in_place => PathBuf::from(text),
            Self::Elsewhere(text) => folder.join("elsewhere").join(text.trim_start_matches('/')),
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Config => f.write_str("the configuration"),
            Self::Beside(text) | Self::Elsewhere(text) => f.write_str(text),
        }
    }
}

/// Why a backup cannot be made or brought back.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The file itself.
    #[error("{path}: {source}")]
    Seal {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: seal::SealError,
    },
    /// What is inside is not what a backup has.
    #[error("the backup does not read: {0}; it was made by another program, or by a newer ekm")]
    Inside(String),
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// Nothing can be written where the backup should be.
    #[error(
        "cannot make {}: in the directory {}: {why}; name one that is there and that you may write to",
        file.display(), directory.display()
    )]
    Directory {
        /// The file that was to be made.
        file: PathBuf,
        /// Its directory.
        directory: PathBuf,
        /// What the system said.
        why: std::io::ErrorKind,
    },
    /// A path cannot be in a backup.
    #[error("the path {0:?} cannot be in a backup: it must be text without \"..\"")]
    Path(String),
    /// The state.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A token's database.
    #[error("the database of the embedded token, {}: {source}", path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: sqlx::Error,
    },
    /// The file of a backup that is to be made is there already.
    #[error("{} exists already; a backup is never overwritten: choose another name", .0.display())]
    Taken(PathBuf),
    /// There is something already where a backup is to be restored.
    #[error(
        "{} already; nothing was changed. Restore into an empty directory (--to), or say --overwrite: what is there is kept beside as *.before-restore", exist(.0)
    )]
    Exists(Vec<PathBuf>),
    /// A server works on it.
    #[error("a server runs on {}; stop it first", .0.display())]
    Running(PathBuf),
    /// What was read back is not what was written.
    #[error("{}: what was read back is not what was written; is the disk sound? The file was removed", .0.display())]
    ReadBack(PathBuf),
    /// The configuration in the backup.
    #[error("the configuration in the backup: {0}")]
    Config(String),
}

fn exist(paths: &[PathBuf]) -> String {
    let names: Vec<String> = paths
        .iter()
        .take(4)
        .map(|path| path.display().to_string())
        .collect();
    match (names.as_slice(), paths.len() - names.len()) {
        ([one], 0) => format!("{one} exists"),
        (_, 0) => format!("{} exist", names.join(", ")),
        (_, more) => format!("{} and {more} more exist", names.join(", ")),
    }
}

fn at(path: &Path) -> impl FnOnce(std::io::Error) -> BackupError {
    let path = path.to_owned();
    move |source| BackupError::File { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_with_dots_or_a_root_goes_nowhere() {
        for bad in ["", "../x", "a/../../x", "/etc/passwd", "./x", "a\0b"] {
            let refused = Place::Beside(bad.to_owned()).check().unwrap_err();
            assert!(matches!(refused, BackupError::Path(_)), "{bad:?}");
        }
        for bad in ["", "etc/x", "/etc/../x", "/a\0b"] {
            assert!(Place::Elsewhere(bad.to_owned()).check().is_err(), "{bad:?}");
        }
        let folder = Path::new("/site");
        let place = Place::of(Path::new("/site/state/pins/x"), folder).unwrap();
        assert_eq!(place, Place::Beside("state/pins/x".to_owned()));
        let place = Place::of(Path::new("/etc/ssl/ca.pem"), folder).unwrap();
        let config = folder.join("ekm.toml");
        assert_eq!(
            place.under(&config, folder, false),
            Path::new("/site/elsewhere/etc/ssl/ca.pem")
        );
        assert_eq!(
            place.under(&config, folder, true),
            Path::new("/etc/ssl/ca.pem")
        );
    }
}
