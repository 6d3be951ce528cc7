//! The log's directory, and the lock by which one process writes it.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use crate::audit::AuditError;
use crate::files::FileLock;

pub(super) fn create_dir(dir: &Path) -> Result<(), AuditError> {
    if dir.is_dir() {
        return Ok(());
    }
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(AuditError::file("create directory", dir))?;
    let dir = fs::canonicalize(dir).map_err(AuditError::file("find", dir))?;
    dir.parent().map_or(Ok(()), sync_dir)
}

pub(super) fn sync_dir(dir: &Path) -> Result<(), AuditError> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(AuditError::file("sync directory", dir))
}

/// Whether a server or a command has the log in `dir` open for writing.
///
/// # Errors
/// The lock cannot be looked at.
pub fn is_written(dir: &Path) -> io::Result<bool> {
    let file = match File::open(dir.join("lock")) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    match FileLock::try_new(file) {
        Ok(_) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

pub(super) fn lock(dir: &Path) -> Result<FileLock, AuditError> {
    let path = dir.join("lock");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(AuditError::file("open", &path))?;
    match FileLock::try_new(file) {
        Ok(lock) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(AuditError::Locked { dir: dir.into() }),
        Err(TryLockError::Error(error)) => Err(AuditError::file("lock", path)(error)),
    }
}
