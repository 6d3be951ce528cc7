//! `/dev/sgN`: Linux' SCSI generic driver, by SG_IO.
//!
//! Only this device, never `/dev/stN`: the tape driver's node belongs to whoever writes the tape,
//! and can be open once. A command sent here does not go through the tape driver's hands, so unit
//! attentions that it brings are lost to that driver; see [`super::local::Claim`].

mod ioctl;

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, OFlags, Stat, fstat, major, openat, stat};
use rustix::io::Errno;

use self::ioctl::{Ended, sg_io};
use super::{Completion, Data, Transport, TransportError};

/// An open `/dev/sgN`.
#[derive(Debug)]
pub struct Sg {
    device: OwnedFd,
    name: String,
}

impl Sg {
    /// Opens the device, beside others that have it open.
    ///
    /// # Errors
    ///
    /// [`OpenError`], which says what to do.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        Self::open_with(path, OFlags::empty())
    }

    /// Opens the device alone (`O_EXCL`): nobody else has it open, and nobody else can open it.
    ///
    /// # Errors
    ///
    /// [`OpenError::Busy`] where somebody has it open.
    pub fn open_alone(path: &Path) -> Result<Self, OpenError> {
        Self::open_with(path, OFlags::EXCL)
    }

    fn open_with(path: &Path, flags: OFlags) -> Result<Self, OpenError> {
        let error = |errno| OpenError::of(path, errno);
        // Looked at first: opening another device, a tape's for one, can already do something.
        is_generic(path, &stat(path).map_err(error)?)?;
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | flags;
        let device = openat(CWD, path, flags, Mode::empty()).map_err(error)?;
        is_generic(path, &fstat(&device).map_err(error)?)?;
        Ok(Self {
            device,
            name: path.display().to_string(),
        })
    }
}

impl Transport for Sg {
    fn execute(
        &mut self,
        cdb: &[u8],
        data: Data<'_>,
        limit: Duration,
    ) -> Result<Completion, TransportError> {
        let len = data.len();
        // No time at all would be taken for the kernel's own 60 s.
        let milliseconds = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX).max(1);
        match sg_io(self.device.as_fd(), cdb, data, milliseconds) {
            Ok(ended) => completion(&self.name, len, limit, ended),
            Err(Errno::INTR) => Err(TransportError::Ended {
                device: self.name.clone(),
                reason: "a signal came in the middle; it may have been carried out".to_owned(),
            }),
            Err(errno) => Err(TransportError::Io {
                device: self.name.clone(),
                source: errno.into(),
            }),
        }
    }

    fn name(&self) -> &str {
        &self.name
    }
}

/// What the driver says, as an answer of the unit's or as none.
fn completion(
    device: &str,
    len: usize,
    limit: Duration,
    ended: Ended,
) -> Result<Completion, TransportError> {
    let Ended {
        mut status,
        host,
        driver,
        residual,
        sense,
    } = ended;
    // Bit 0 is reserved, and so is bit 7.
    status &= 0x7e;
    let driver = driver & 0x0f;
    if host == DID_TIME_OUT || driver == DRIVER_TIMEOUT {
        return Err(TransportError::TimedOut {
            device: device.to_owned(),
            seconds: limit.as_secs(),
        });
    }
    // Some kernels put these codes beside a status that says the same better.
    let told_by_status = status != Completion::GOOD && (0x10..=0x13).contains(&host);
    if host != 0 && !told_by_status {
        return Err(TransportError::Ended {
            device: device.to_owned(),
            reason: host_word(host),
        });
    }
    match driver {
        0 => {}
        DRIVER_SENSE => {
            // Some adapters bring sense data and forget the status.
            if status == Completion::GOOD && !sense.is_empty() {
                status = Completion::CHECK_CONDITION;
            }
        }
        code => {
            return Err(TransportError::Ended {
                device: device.to_owned(),
                reason: driver_word(code),
            });
        }
    }
    let residual = usize::try_from(residual).unwrap_or(0);
    Ok(Completion {
        status,
        transferred: len.saturating_sub(residual),
        sense,
    })
}

/// A `DID_` code in words.
///
/// Source: Linux, `include/scsi/scsi_status.h`.
fn host_word(code: u16) -> String {
    let (name, meaning) = match code {
        0x01 => (
            "DID_NO_CONNECT",
            "the drive cannot be reached; cable, power, path?",
        ),
        0x02 => ("DID_BUS_BUSY", "the bus stayed busy"),
        0x04 => ("DID_BAD_TARGET", "there is no such drive any more"),
        0x05 => ("DID_ABORT", "the command was aborted"),
        0x06 => (
            "DID_PARITY",
            "a transmission error; look at cable and adapter",
        ),
        0x07 => ("DID_ERROR", "the adapter failed"),
        0x08 => ("DID_RESET", "the bus or the drive was reset"),
        0x09 => (
            "DID_BAD_INTR",
            "the adapter sent an interrupt that nobody expected",
        ),
        0x0a => (
            "DID_PASSTHROUGH",
            "the command was forced past the kernel's queue",
        ),
        0x0b => ("DID_SOFT_ERROR", "the adapter asks for another try"),
        0x0c => ("DID_IMM_RETRY", "the adapter asks for another try"),
        0x0d => ("DID_REQUEUE", "the adapter asks for another try"),
        0x0e => ("DID_TRANSPORT_DISRUPTED", "the link to the drive was lost"),
        0x0f => ("DID_TRANSPORT_FAILFAST", "the link to the drive is down"),
        0x10 => ("DID_TARGET_FAILURE", "the drive failed for good"),
        0x11 => ("DID_NEXUS_FAILURE", "the drive is reserved by another host"),
        0x12 => ("DID_ALLOC_FAILURE", "the drive has no space"),
        0x13 => ("DID_MEDIUM_ERROR", "the medium failed"),
        0x14 => ("DID_TRANSPORT_MARGINAL", "the link to the drive is bad"),
        code => return format!("host status {code:02X}h"),
    };
    format!("{name}: {meaning}")
}

/// A `DRIVER_` code in words.
///
/// Source: Linux before 5.14, `include/scsi/scsi.h`.
fn driver_word(code: u16) -> String {
    let (name, meaning) = match code {
        0x01 => ("DRIVER_BUSY", "the kernel's driver was busy"),
        0x02 => (
            "DRIVER_SOFT",
            "the kernel's driver met an error that may pass",
        ),
        0x03 => ("DRIVER_MEDIA", "the kernel's driver met a medium error"),
        0x04 => ("DRIVER_ERROR", "the kernel's driver failed"),
        0x05 => ("DRIVER_INVALID", "the kernel's driver refused the command"),
        0x07 => ("DRIVER_HARD", "the kernel's driver met an error that stays"),
        code => return format!("driver status {code:02X}h"),
    };
    format!("{name}: {meaning}")
}

fn is_generic(path: &Path, stat: &Stat) -> Result<(), OpenError> {
    let character = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
    match (character, major(stat.st_rdev)) {
        (true, SG_MAJOR) => Ok(()),
        (true, ST_MAJOR) => Err(OpenError::Tape {
            path: path.to_owned(),
        }),
        _ => Err(OpenError::NotGeneric {
            path: path.to_owned(),
        }),
    }
}

/// Why `/dev/sgN` is not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another file.
    #[error("{path} is no SCSI generic device; give /dev/sgN (ekm drive scan lists them)")]
    NotGeneric {
        /// The file.
        path: PathBuf,
    },
    /// The tape driver's node.
    #[error(
        "{path} belongs to the tape driver; give the drive's /dev/sgN (ekm drive scan lists them)"
    )]
    Tape {
        /// The file.
        path: PathBuf,
    },
    /// Somebody has it open alone, or has it open at all.
    #[error("{path} is in use by another program")]
    Busy {
        /// The device.
        path: PathBuf,
    },
    /// Not for this user.
    #[error("{path} may not be opened; run as root, or as a member of its group (often tape)")]
    Denied {
        /// The device.
        path: PathBuf,
    },
    /// The drive is gone, or never was.
    #[error("there is no drive at {path}; is it switched on, and the sg module loaded?")]
    NoDrive {
        /// The device.
        path: PathBuf,
    },
    /// Something else.
    #[error("cannot open {path}: {source}")]
    Io {
        /// The device.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
}

impl OpenError {
    fn of(path: &Path, errno: Errno) -> Self {
        let path = path.to_owned();
        match errno {
            Errno::BUSY => Self::Busy { path },
            Errno::ACCESS | Errno::PERM => Self::Denied { path },
            Errno::NOENT | Errno::NODEV | Errno::NXIO => Self::NoDrive { path },
            errno => Self::Io {
                path,
                source: errno.into(),
            },
        }
    }
}

const SG_MAJOR: u32 = 21;
const ST_MAJOR: u32 = 9;
const DID_TIME_OUT: u16 = 0x03;
const DRIVER_TIMEOUT: u16 = 0x06;
const DRIVER_SENSE: u16 = 0x08;

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    fn ended(status: u8, host: u16, driver: u16) -> Ended {
        Ended {
            status,
            host,
            driver,
            ..Ended::default()
        }
    }

    fn told(ended: Ended) -> Result<Completion, TransportError> {
        completion("/dev/sg3", 100, LIMIT, ended)
    }

    #[test]
    fn residual_is_what_was_not_transferred() {
        for (residual, transferred) in [(0, 100), (96, 4), (-5, 100), (i32::MAX, 0)] {
            let completion = told(Ended {
                residual,
                ..Ended::default()
            });
            assert_eq!(completion.unwrap().transferred, transferred);
        }
    }

    #[test]
    fn time_out_is_told_by_either_code() {
        for ended in [ended(0, 3, 0), ended(0, 0, 6), ended(2, 3, 8)] {
            assert!(matches!(
                told(ended),
                Err(TransportError::TimedOut { seconds: 30, .. })
            ));
        }
    }

    #[test]
    fn reset_is_told_in_words() {
        let error = told(ended(0, 8, 0)).unwrap_err().to_string();
        assert!(
            error.contains("/dev/sg3") && error.contains("DID_RESET"),
            "{error}"
        );
        for host in 1..=0x20u16 {
            assert!(told(ended(0, host, 0)).is_err(), "{host:02X}");
        }
        for driver in [1, 2, 3, 4, 5, 7, 9] {
            assert!(told(ended(0, 0, driver)).is_err(), "{driver:02X}");
        }
    }

    #[test]
    fn reservation_conflict_is_the_drives_answer() {
        let completion = told(ended(0x18, 0x11, 0)).unwrap();
        assert_eq!(completion.status, Completion::RESERVATION_CONFLICT);
    }

    #[test]
    fn sense_without_status_is_a_check_condition() {
        let completion = told(Ended {
            sense: vec![0x70],
            ..ended(0, 0, 8)
        });
        assert_eq!(completion.unwrap().status, Completion::CHECK_CONDITION);
        assert_eq!(told(ended(2, 0, 8)).unwrap().status, 2);
    }

    #[test]
    fn other_files_are_not_opened() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("sg0");
        std::fs::write(&file, "").unwrap();
        for path in [file.as_path(), Path::new("/dev/null"), directory.path()] {
            assert!(matches!(Sg::open(path), Err(OpenError::NotGeneric { .. })));
        }
        assert!(matches!(
            Sg::open(&directory.path().join("none")),
            Err(OpenError::NoDrive { .. })
        ));
    }
}
