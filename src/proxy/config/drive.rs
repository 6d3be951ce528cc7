//! `[[drives]]` and `[in_band]`: what a host may do with its own drives.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Serialize, Serializer};

use super::{KeyPath, NoSuchWord};
use crate::drive::DriveSerial;
use crate::proxy::labels::At;

/// `[[drives]]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HostDrive {
    /// Its serial.
    pub serial: At<DriveSerial>,
    /// How its key requests travel; otherwise as the file's own `path` says.
    pub path: Option<At<KeyPath>>,
    /// The way to it; otherwise it is looked for among the host's drives by its serial.
    pub device: Option<At<Device>>,
    /// Whether it may be given its data key in clear (KEY FORMAT 00h).
    pub plain_key: bool,
    /// Whether it is used although it cannot protect itself: it has no software write protection, or
    /// none that outlasts a reset.
    pub unprotected: bool,
}

/// The way to a drive.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Device {
    /// A SCSI generic device: `/dev/sg3`, or a name that udev gave it.
    Sg(PathBuf),
    /// A Unix socket that carries CDBs, written `unix:/run/…`: the software drive. In the host's
    /// file it may be relative to that.
    Channel(PathBuf),
}

impl Device {
    const CHANNEL: &str = "unix:";

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Sg(path) | Self::Channel(path) => path,
        }
    }
}

impl FromStr for Device {
    type Err = DeviceError;

    fn from_str(given: &str) -> Result<Self, DeviceError> {
        let (path, channel) = match given.strip_prefix(Self::CHANNEL) {
            Some(path) => (path, true),
            None => (given, false),
        };
        let tape = ["/dev/st", "/dev/nst"]
            .iter()
            .any(|tape| path.starts_with(tape));
        let whole = path.starts_with('/') || channel && !path.is_empty();
        if !whole || path.contains('\0') || tape {
            return Err(DeviceError {
                got: given.chars().take(120).collect(),
            });
        }
        Ok(if channel {
            Self::Channel(path.into())
        } else {
            Self::Sg(path.into())
        })
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sg(path) => write!(f, "{}", path.display()),
            Self::Channel(path) => write!(f, "{}{}", Self::CHANNEL, path.display()),
        }
    }
}

impl Serialize for Device {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// A text that is no way to a drive.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected the SCSI generic device of a drive, as /dev/sg3 (not its /dev/st or /dev/nst), or \
     unix:PATH of a software drive, got {got:?}"
)]
pub struct DeviceError {
    /// The beginning of what was given.
    pub got: String,
}

/// `[in_band]`: what holds for every drive whose keys travel through this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct InBand {
    /// Whether a job whose data class encrypts may add to a cartridge in clear.
    pub append_in_clear: AppendInClear,
    /// What cartridges held before they were written over: one JSON object a line.
    pub history: PathBuf,
}

impl InBand {
    /// Where the history is, if nothing is said.
    pub const HISTORY: &str = "/var/lib/ekm/cartridges.jsonl";

    /// Where the confirms are that wait for their key server: the directory `confirms` beside the
    /// history. A host has no other place for what must outlive its proxy.
    #[must_use]
    pub fn confirms(&self) -> PathBuf {
        self.history.with_file_name("confirms")
    }
}

impl Default for InBand {
    fn default() -> Self {
        Self {
            append_in_clear: AppendInClear::default(),
            history: Self::HISTORY.into(),
        }
    }
}

/// What becomes of DISP=MOD on a cartridge in clear.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AppendInClear {
    /// It is refused, unless the job's data class itself is in clear.
    #[default]
    Refuse,
    /// What is added is in clear, as the rest of the cartridge is.
    Allow,
}

impl FromStr for AppendInClear {
    type Err = NoSuchWord;

    fn from_str(given: &str) -> Result<Self, NoSuchWord> {
        match given {
            "refuse" => Ok(Self::Refuse),
            "allow" => Ok(Self::Allow),
            _ => Err(NoSuchWord {
                expected: "refuse or allow",
                got: given.chars().take(64).collect(),
            }),
        }
    }
}
