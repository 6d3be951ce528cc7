//! Files that must survive a power cut, or must not be read by others.

use std::fs::{DirBuilder, File, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

/// Makes a directory, and those above it, that only its owner may enter.
///
/// # Errors
/// The operating system's.
pub fn private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// An exclusive lock on a file (flock(2)), for as long as this lives. A process that is started
/// meanwhile has a copy of the open file until its exec, and the lock would last as long as that
/// copy: so it is ended and not only closed.
#[derive(Debug)]
pub struct FileLock(File);

impl FileLock {
    /// Takes it, if nobody else has it.
    ///
    /// # Errors
    /// Somebody has it, or the operating system's error.
    pub fn try_new(file: File) -> Result<Self, TryLockError> {
        file.try_lock().map(|()| Self(file))
    }

    /// Waits for it.
    ///
    /// # Errors
    /// The operating system's.
    pub fn wait(file: File) -> io::Result<Self> {
        file.lock().map(|()| Self(file))
    }

    /// The file that is locked.
    #[must_use]
    pub const fn file(&self) -> &File {
        &self.0
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        // Closing it is the next best thing.
        let _ = self.0.unlock();
    }
}

/// Writes a file of mode 0600 so that after a power cut the old or the new
/// one is there, whole: temporary file, fsync, rename, fsync of the directory.
///
/// # Errors
/// The operating system's.
pub fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    // tempfile makes them with mode 0600.
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(content)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    File::open(folder)?.sync_all()
}

/// Reads a file of at most `limit` bytes.
///
/// # Errors
/// The operating system's, or that it is longer.
pub fn read_limited(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let longer = |got| {
        let problem = format!("it has {got} bytes where at most {limit} are expected");
        Err(io::Error::new(io::ErrorKind::InvalidData, problem))
    };
    let length = file.metadata()?.len();
    if length > limit {
        return longer(length);
    }
    // With its room from the start: growing would leave copies behind, and it may be a key.
    let mut content = Vec::with_capacity(usize::try_from(length).unwrap_or_default() + 64);
    // A pipe or device has no length that could be looked at.
    (&file)
        .take(limit.saturating_add(1))
        .read_to_end(&mut content)?;
    let got = u64::try_from(content.len()).unwrap_or(u64::MAX);
    if got > limit {
        return longer(got);
    }
    Ok(content)
}
