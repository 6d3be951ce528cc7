//! The end of the log: the file that is being appended to.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::time::SystemTime;

use crate::audit::AuditError;

/// The file that is being appended to.
#[derive(Debug)]
pub(super) struct LogEnd {
    pub(super) number: u32,
    pub(super) path: PathBuf,
    pub(super) file: File,
    /// Its length in bytes.
    pub(super) written: u64,
    /// The length in bytes that is known to be on disk.
    pub(super) durable: u64,
    /// When its first record was written.
    pub(super) begun: SystemTime,
}

impl LogEnd {
    pub(super) fn open(number: u32, path: PathBuf, new: bool) -> Result<Self, AuditError> {
        let file = append_options()
            .create_new(new)
            .open(&path)
            .map_err(AuditError::file("open", &path))?;
        let durable = file
            .metadata()
            .map_err(AuditError::file("read", &path))?
            .len();
        Ok(Self {
            number,
            path,
            written: durable,
            durable,
            begun: file
                .metadata()
                .and_then(|file| file.created())
                .unwrap_or_else(|_| SystemTime::now()),
            file,
        })
    }

    /// A new file, that is empty.
    pub(super) fn begun(number: u32, path: PathBuf, file: File) -> Self {
        Self {
            number,
            path,
            file,
            written: 0,
            durable: 0,
            begun: SystemTime::now(),
        }
    }

    pub(super) const fn is_durable(&self) -> bool {
        self.written == self.durable
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes).inspect_err(|_| self.cut_off())?;
        self.written = self
            .written
            .saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        Ok(())
    }

    pub(super) fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data().inspect_err(|_| self.cut_off())?;
        self.durable = self.written;
        Ok(())
    }

    /// After a failed sync the kernel calls the lost pages clean: a restart would read them, chain
    /// to them, and lose them later. Nobody was told that they exist. Where this fails too, the
    /// next start finds a torn line or the whole ones.
    fn cut_off(&self) {
        drop(self.file.set_len(self.durable));
    }

    pub(super) fn cut(&mut self, length: u64) -> Result<(), AuditError> {
        self.file
            .set_len(length)
            .and_then(|()| self.file.sync_all())
            .map_err(AuditError::file("cut the unfinished line off", &self.path))?;
        self.written = length;
        self.durable = length;
        Ok(())
    }
}

pub(super) fn append_options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.append(true).mode(0o600);
    options
}
