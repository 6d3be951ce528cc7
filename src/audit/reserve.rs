//! Disk space that is held for the day on which the disk is full.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate, statvfs};

/// A file of zeros in the audit directory. Its removal makes room for records.
#[derive(Debug, Clone)]
pub struct Reserve {
    path: PathBuf,
    bytes: u64,
}

impl Reserve {
    /// The reserve of that many bytes in the audit directory.
    #[must_use]
    pub fn of(directory: &Path, bytes: u64) -> Self {
        Self {
            path: directory.join("reserve"),
            bytes,
        }
    }

    /// Bytes that it holds now.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.path.metadata().map_or(0, |file| file.len())
    }

    /// Whether it is as long as it should be.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.held() >= self.bytes
    }

    /// Makes it, unless it is there, where it leaves three times as much free.
    ///
    /// # Errors
    /// The disk is too small or too full for it, or cannot be written.
    pub fn make(&self) -> io::Result<()> {
        if self.bytes == 0 || self.is_whole() {
            return Ok(());
        }
        let folder = self.path.parent().unwrap_or(Path::new("."));
        let disk = statvfs(folder)?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        if free < self.bytes.saturating_mul(4) {
            return Err(io::Error::new(
                io::ErrorKind::StorageFull,
                "it would take more than a quarter of what is free",
            ));
        }
        let made = self.write();
        if made.is_err() {
            self.release()?;
        }
        made
    }

    fn write(&self) -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&self.path)?;
        match fallocate(&file, FallocateFlags::empty(), 0, self.bytes) {
            Ok(()) => {}
            // Not every file system can; then its blocks are written.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {
                let zeros = [0; 64 * 1024];
                let mut left = self.bytes;
                while left > 0 {
                    let part = zeros
                        .get(..usize::try_from(left).unwrap_or(zeros.len()))
                        .unwrap_or(&zeros);
                    file.write_all(part)?;
                    left = left.saturating_sub(u64::try_from(part.len()).unwrap_or(left));
                }
            }
            Err(error) => return Err(error.into()),
        }
        file.sync_all()
    }

    /// Gives its room to the records; how many bytes that was.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn release(&self) -> io::Result<u64> {
        let held = self.held();
        match std::fs::remove_file(&self.path) {
            Ok(()) => {
                let folder = self.path.parent().unwrap_or(Path::new("."));
                File::open(folder)?.sync_all()?;
                Ok(held)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_real_blocks_and_gives_them_back() {
        use std::os::unix::fs::MetadataExt as _;
        let dir = tempfile::tempdir().unwrap();
        let reserve = Reserve::of(dir.path(), 100_000);
        reserve.make().unwrap();
        let file = dir.path().join("reserve").metadata().unwrap();
        assert!(file.blocks() * 512 >= 100_000, "{} blocks", file.blocks());
        assert!(reserve.is_whole());
        reserve.make().unwrap();
        assert_eq!(reserve.release().unwrap(), 100_000);
        assert_eq!((reserve.release().unwrap(), reserve.held()), (0, 0));
    }

    #[test]
    fn it_never_fills_a_disk() {
        let dir = tempfile::tempdir().unwrap();
        let refused = Reserve::of(dir.path(), 1 << 60).make().unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::StorageFull);
        assert!(!dir.path().join("reserve").exists());
    }
}
