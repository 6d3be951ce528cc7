//! `host.toml`: data classes, volume ranges, drives and key servers of a host.
//!
//! Unknown keys are refused, and a check names every fault at once with its line. A value keeps
//! its line, so that a decision can say where it comes from.

mod drive;
mod raw;
/// The text of such a file.
fn text(path: &Path) -> Result<String, HostConfigError> {
    let read = |source| HostConfigError::Read {
        path: path.to_owned(),
        source,
    };
    let text = crate::files::read_limited(path, MAX_FILE).map_err(read)?;
    String::from_utf8(text)
        .map_err(|error| read(std::io::Error::new(std::io::ErrorKind::InvalidData, error)))
}

#[cfg(test)]
mod tests;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize, Serializer};

use super::ibmekm::{self, IbmekmError};
use super::labels::{At, Labels};
use super::servers::KeyServers;
use super::service::Times;
use crate::drive::DriveSerial;
use crate::tls::ClientPaths;
use crate::volser::Volser;

pub use drive::{AppendInClear, Device, DeviceError, HostDrive, InBand};

/// The file that `ekm config example --host` prints.
pub const HOST_EXAMPLE: &str = include_str!("example.toml");

/// Longest file, bytes.
const MAX_FILE: u64 = 1 << 20;

/// `host.toml`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HostConfig {
    /// The file, as it was named.
    #[serde(skip)]
    pub(super) file: PathBuf,
    /// Where requests go; none where the file does not say.
    pub(super) key_servers: Option<KeyServers>,
    /// The file that says it instead.
    pub(super) listed_in: Option<ListedIn>,
    /// How long each may take.
    #[serde(flatten)]
    pub(super) times: Times,
    /// The host's own certificate.
    pub(super) tls: Option<ClientPaths>,
    /// Where the daemon is spoken to.
    pub(super) socket: PathBuf,
    /// The path of drives that have none of their own.
    pub(super) path: Option<At<KeyPath>>,
    pub(super) data_classes: Vec<DataClass>,
    pub(super) volume_ranges: Vec<VolumeRange>,
    pub(super) drives: Vec<HostDrive>,
    pub(super) in_band: InBand,
}

/// `[key_servers] file`: a list in the syntax of `lin_tape`, and the bounds that go with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ListedIn {
    /// The file.
    pub path: PathBuf,
    /// Most connections at once.
    pub maxconn: u16,
    /// Of these, how many stay open.
    pub maxpconn: u16,
}

/// `[[data_classes]]`: how a file is recorded, and under which KEKs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DataClass {
    /// What jobs call it.
    pub name: At<ClassName>,
    /// The recording format, which turns encryption on or off.
    pub format: At<RecordingFormat>,
    /// Its labels, if it names any.
    pub labels: Option<Labels>,
}

/// `[[volume_ranges]]`: the labels of the cartridges from one volume serial to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VolumeRange {
    /// The first.
    pub first: At<Volser>,
    /// The last, of the same length.
    pub last: Volser,
    /// Their labels.
    pub labels: Labels,
}

impl VolumeRange {
    /// Whether it has that volume. Volume serials are compared as ASCII: digits before letters.
    #[must_use]
    pub fn has(&self, volser: &Volser) -> bool {
        let text = volser.as_str();
        text.len() == self.last.as_str().len()
            && (self.first.value.as_str()..=self.last.as_str()).contains(&text)
    }
}

/// How a drive's key requests travel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyPath {
    /// Straight from the control unit to the key server.
    #[default]
    OutOfBand,
    /// Through this host.
    InBand,
}

impl FromStr for KeyPath {
    type Err = NoSuchWord;

    fn from_str(given: &str) -> Result<Self, NoSuchWord> {
        match given {
            "out-of-band" => Ok(Self::OutOfBand),
            "in-band" => Ok(Self::InBand),
            _ => Err(NoSuchWord {
                expected: "out-of-band or in-band",
                got: given.chars().take(64).collect(),
            }),
        }
    }
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::OutOfBand => "out-of-band",
            Self::InBand => "in-band",
        })
    }
}

/// How a 3592 drive records: its generation, and with an `E` before it, encrypted.
///
/// Source: z/OS DFSMS Software Support for IBM System Storage TS1140, TS1130, and TS1120 Tape
/// Drives, data class attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordingFormat {
    /// In clear.
    Efmt(Generation),
    /// Encrypted; there is none of the first generation, which cannot.
    Eefmt(Generation),
}

/// A generation of the 3592.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generation {
    /// 3592 J1A.
    One,
    /// TS1120.
    Two,
    /// TS1130.
    Three,
    /// TS1140.
    Four,
}

impl RecordingFormat {
    const ALL: [(Self, &str, &str); 7] = [
        (Self::Efmt(Generation::One), "EFMT1", "3592 J1A"),
        (Self::Efmt(Generation::Two), "EFMT2", "TS1120"),
        (Self::Efmt(Generation::Three), "EFMT3", "TS1130"),
        (Self::Efmt(Generation::Four), "EFMT4", "TS1140"),
        (Self::Eefmt(Generation::Two), "EEFMT2", "TS1120"),
        (Self::Eefmt(Generation::Three), "EEFMT3", "TS1130"),
        (Self::Eefmt(Generation::Four), "EEFMT4", "TS1140"),
    ];

    /// Whether what is written in it is encrypted.
    #[must_use]
    pub const fn encrypts(self) -> bool {
        match self {
            Self::Efmt(_) => false,
            Self::Eefmt(_) => true,
        }
    }

    fn names(self) -> (&'static str, &'static str) {
        let found = Self::ALL.into_iter().find(|(format, _, _)| *format == self);
        found.map_or(("EEFMT1", ""), |(_, name, drive)| (name, drive))
    }

    /// Its name: `EEFMT4`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.names().0
    }

    /// The drive that brought it: `TS1140`.
    #[must_use]
    pub fn drive(self) -> &'static str {
        self.names().1
    }
}

impl FromStr for RecordingFormat {
    type Err = NoSuchWord;

    fn from_str(given: &str) -> Result<Self, NoSuchWord> {
        let found = Self::ALL
            .into_iter()
            .find(|(_, name, _)| name.eq_ignore_ascii_case(given));
        found.map(|(format, _, _)| format).ok_or_else(|| NoSuchWord {
            expected: "EFMT1, EFMT2, EFMT3, EFMT4 (in clear), EEFMT2, EEFMT3 or EEFMT4 (encrypted)",
            got: given.chars().take(64).collect(),
        })
    }
}

impl fmt::Display for RecordingFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl Serialize for RecordingFormat {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.as_str())
    }
}

/// A word that is none of those expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}, got {got:?}")]
pub struct NoSuchWord {
    /// Those expected.
    pub expected: &'static str,
    /// The beginning of what was given.
    pub got: String,
}

/// The name of a data class: 1 to 8 characters from `A-Z 0-9 $ # @`, the first no digit.
///
/// Lower case is folded to upper.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct ClassName(String);

impl ClassName {
    /// The longest, in characters.
    pub const MAX_CHARS: usize = 8;
}

impl FromStr for ClassName {
    type Err = ClassNameError;

    fn from_str(given: &str) -> Result<Self, ClassNameError> {
        let name = given.to_ascii_uppercase();
        let letter = |c: char| c.is_ascii_uppercase() || "$#@".contains(c);
        if name.len() > Self::MAX_CHARS
            || !name.starts_with(letter)
            || !name.chars().all(|c| letter(c) || c.is_ascii_digit())
        {
            return Err(ClassNameError {
                got: given.chars().take(64).collect(),
            });
        }
        Ok(Self(name))
    }
}

impl fmt::Display for ClassName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A text that is no data class's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected the name of a data class, 1 to 8 characters from A-Z 0-9 $ # @, the first no digit, got {got:?}"
)]
pub struct ClassNameError {
    /// The beginning of what was given.
    pub got: String,
}

/// What only a server's file has.
const SERVER_KEYS: &[&str] = &[
    "node",
    "state",
    "database",
    "fleet",
    "audit",
    "server",
    "metrics",
    "operators",
    "tokens",
    "records",
    "keystores",
    "sync",
    "policy",
    "alarms",
];

fn of_server(error: &toml::de::Error) -> String {
    let hint = "is it a server's file? ekm serve reads that, and ekm config check FILE checks it";
    crate::config::syntax(error, "path", SERVER_KEYS, hint)
}

/// Why there is no configuration of the host.
#[derive(Debug, thiserror::Error)]
pub enum HostConfigError {
    /// The file cannot be read.
    #[error(
        "cannot read the host's configuration {}: {source}; ekm config example --host prints one",
        path.display()
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// It is not TOML of this shape.
    #[error("{}: {}", path.display(), of_server(source))]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The cause, with the line.
        source: Box<toml::de::Error>,
    },
    /// Values are wrong; all of them.
    #[error("{}:\n  {}", path.display(), faults.join("\n  "))]
    Faults {
        /// The file.
        path: PathBuf,
        /// One sentence each, with the line.
        faults: Vec<String>,
    },
    /// The list of key servers that it names.
    #[error(transparent)]
    Servers(#[from] IbmekmError),
}

impl HostConfig {
    /// Reads and checks the file, and the list of key servers where it names one.
    ///
    /// # Errors
    /// The file is unreadable, or its faults, all of them.
    pub fn load(path: &Path) -> Result<Self, HostConfigError> {
        let mut host = Self::parse(path, &text(path)?)?;
        if let Some(listed) = &host.listed_in {
            host.key_servers = Some(KeyServers {
                servers: ibmekm::load(&listed.path)?,
                maxconn: listed.maxconn,
                maxpconn: listed.maxpconn,
            });
        }
        Ok(host)
    }

    /// Where the daemon is spoken to, also by a file with faults: the daemon goes on with what it
    /// read when it started, and its tapes must be closed.
    ///
    /// # Errors
    /// The file cannot be read, or is not TOML.
    pub fn socket_in(path: &Path) -> Result<PathBuf, HostConfigError> {
        raw::socket(path, &text(path)?).map_err(|source| HostConfigError::Syntax {
            path: path.to_owned(),
            source: Box::new(source),
        })
    }

    /// Checks the text of such a file.
    ///
    /// # Errors
    /// Its faults, all of them.
    pub fn parse(path: &Path, text: &str) -> Result<Self, HostConfigError> {
        let raw: raw::Host = toml::from_str(text).map_err(|source| HostConfigError::Syntax {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        raw.check(path, text)
            .map_err(|faults| HostConfigError::Faults {
                path: path.to_owned(),
                faults,
            })
    }

    /// The file, as it was named.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The key servers, if the file names any.
    #[must_use]
    pub const fn key_servers(&self) -> Option<&KeyServers> {
        self.key_servers.as_ref()
    }

    /// Takes the key servers of a list in the syntax of `lin_tape` instead.
    ///
    /// # Errors
    /// The list cannot be read, or its faults.
    pub fn take_ibmekm(&mut self, path: &Path) -> Result<(), IbmekmError> {
        let bounds = self.key_servers.as_ref();
        let (maxconn, maxpconn) = bounds
            .map_or((KeyServers::MAXCONN, KeyServers::MAXPCONN), |servers| {
                (servers.maxconn, servers.maxpconn)
            });
        self.key_servers = Some(KeyServers {
            servers: ibmekm::load(path)?,
            maxconn,
            maxpconn,
        });
        Ok(())
    }

    /// How long each step of a request may take.
    #[must_use]
    pub const fn times(&self) -> &Times {
        &self.times
    }

    /// The host's certificate, if the file names one.
    #[must_use]
    pub const fn tls(&self) -> Option<&ClientPaths> {
        self.tls.as_ref()
    }

    /// Where the daemon is spoken to; where the file does not say, `proxy.sock` beside it.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The data classes.
    #[must_use]
    pub fn data_classes(&self) -> &[DataClass] {
        &self.data_classes
    }

    /// The volume ranges; no two overlap.
    #[must_use]
    pub fn volume_ranges(&self) -> &[VolumeRange] {
        &self.volume_ranges
    }

    /// The drives.
    #[must_use]
    pub fn drives(&self) -> &[HostDrive] {
        &self.drives
    }

    /// What holds for every in-band drive.
    #[must_use]
    pub const fn in_band(&self) -> &InBand {
        &self.in_band
    }

    /// The drives whose keys travel through this host.
    pub fn in_band_drives(&self) -> impl Iterator<Item = &HostDrive> {
        self.drives.iter().filter(|drive| {
            let (path, _) = self.path(&drive.serial.value);
            path == KeyPath::InBand
        })
    }

    /// How that drive's key requests travel, and the line that says so; out-of-band where none does.
    #[must_use]
    pub fn path(&self, serial: &DriveSerial) -> (KeyPath, Option<usize>) {
        let drive = self
            .drives
            .iter()
            .find(|drive| drive.serial.value == *serial);
        let own = drive.and_then(|drive| drive.path);
        own.or(self.path)
            .map_or((KeyPath::default(), None), |path| {
                (path.value, Some(path.at))
            })
    }
}
