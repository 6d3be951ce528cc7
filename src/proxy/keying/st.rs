//! The seat of a real drive: `/dev/nstN`, which `st` lets one process open at a time.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, fstat, major, minor};
use rustix::io::Errno;

use super::seams::{Hold, HoldError};

/// The tape device of a drive, held by keeping it open.
#[derive(Debug)]
pub struct St {
    tape: String,
    unit: ScsiDevice,
    open: Option<OwnedFd>,
}

/// A SCSI device as sysfs shows it: what `/dev/sgN` and `/dev/nstN` of one drive have in common.
#[derive(Debug)]
struct ScsiDevice {
    sys: PathBuf,
    /// Without symbolic links.
    directory: PathBuf,
}

impl ScsiDevice {
    /// Whether that open tape device is this drive's. Its number decides, and not its name.
    fn is_behind(&self, tape: &OwnedFd) -> std::io::Result<()> {
        let number = fstat(tape)?.st_rdev;
        let device = self
            .sys
            .join("dev/char")
            .join(format!("{}:{}", major(number), minor(number)))
            .join("device");
        match std::fs::canonicalize(&device) {
            Ok(directory) if directory == self.directory => Ok(()),
            Ok(other) => Err(std::io::Error::other(format!(
                "it is the tape device of {}, and the drive is {}: the host's devices have \
                 changed; start the job again",
                other.display(),
                self.directory.display()
            ))),
            Err(error) => Err(std::io::Error::new(
                error.kind(),
                format!(
                    "whose tape device it is cannot be told ({}: {error})",
                    device.display()
                ),
            )),
        }
    }
}

impl St {
    /// The seat of the drive behind that SCSI generic device.
    ///
    /// # Errors
    /// It has no tape device: the `st` module is not loaded, or it is no tape drive.
    pub fn of(sg: &Path) -> std::io::Result<Self> {
        Self::under(Path::new("/"), sg)
    }

    /// The same on a host whose `sys` and `dev` are in that directory.
    pub(super) fn under(root: &Path, sg: &Path) -> std::io::Result<Self> {
        let name = std::fs::canonicalize(sg)?;
        let name = name.file_name().unwrap_or_default();
        let sys = root.join("sys");
        let device = sys.join("class/scsi_generic").join(name).join("device");
        let missing = |error: std::io::Error| {
            std::io::Error::new(
                error.kind(),
                format!(
                    "{} has no tape device ({}: {error}); is the st module loaded?",
                    sg.display(),
                    device.join("scsi_tape").display()
                ),
            )
        };
        let directory = std::fs::canonicalize(&device).map_err(missing)?;
        for entry in std::fs::read_dir(directory.join("scsi_tape")).map_err(missing)? {
            let name = entry?.file_name();
            let name = name.to_string_lossy();
            // nst0l, nst0m and nst0a are the same with other modes.
            if name.strip_prefix("nst").is_some_and(|number| {
                !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit())
            }) {
                return Ok(Self {
                    tape: root.join("dev").join(&*name).display().to_string(),
                    unit: ScsiDevice { sys, directory },
                    open: None,
                });
            }
        }
        Err(missing(std::io::ErrorKind::NotFound.into()))
    }

    /// Its SCSI device in sysfs.
    pub(super) fn directory(&self) -> &Path {
        &self.unit.directory
    }
}

impl Hold for St {
    fn take(&mut self) -> Result<(), HoldError> {
        // st looks at the drive when it is opened, and only then takes a new cartridge or a reset
        // for what it is.
        self.release();
        // Without O_NONBLOCK an open waits for a cartridge.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match rustix::fs::open(self.tape.as_str(), flags, Mode::empty()) {
            Ok(open) => {
                self.unit
                    .is_behind(&open)
                    .map_err(|source| HoldError::Open {
                        tape: self.tape.clone(),
                        source,
                    })?;
                self.open = Some(open);
                Ok(())
            }
            Err(Errno::BUSY) => Err(HoldError::Busy {
                tape: self.tape.clone(),
            }),
            Err(error) => Err(HoldError::Open {
                tape: self.tape.clone(),
                source: error.into(),
            }),
        }
    }

    fn release(&mut self) {
        self.open = None;
    }

    fn tape(&self) -> &str {
        &self.tape
    }

    fn failures(&self) -> Option<u64> {
        failures(&self.unit.directory)
    }
}

/// IOERR_CNT of a SCSI device: commands that did not end with GOOD.
pub(super) fn failures(device: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(device.join("ioerr_cnt")).ok()?;
    u64::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok()
}
