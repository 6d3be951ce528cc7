//! What is said on the daemon's socket: one JSON object a line, an answer for each.
//!
//! ```text
//! {"command":"verify","which":"all"}
//! {"reply":"verified","servers":[…]}
//! ```
//!
//! Several commands may follow each other on one connection.

mod tape;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use time::OffsetDateTime;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;

use super::config::{KeyPath, NoSuchWord};
use super::keying::{Closed, Opened};
use super::servers::{KeyServers, ServerAddress, ServerAddressError};
use super::service::{Seen, Verified, Which};
use crate::drive::DriveSerial;
use crate::tls::PeerId;
pub use tape::{InBandShown, TapeOpen};

/// Longest line, bytes: a command, or an answer of the daemon's.
pub(super) const MAX_COMMAND: usize = 64 * 1024;
const MAX_REPLY: u64 = 16 << 20;

/// A command to the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Command {
    /// The key servers, and the paths of the drives.
    Display {},
    /// A test exchange with each of these servers.
    Verify {
        /// Which ones.
        which: Which,
    },
    /// Other key servers, or other bounds, until the daemon ends.
    Set(SetServers),
    /// Another path of a drive, or of all that have none of their own, until the daemon ends.
    Path {
        /// The drive; none for the default.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        drive: Option<DriveSerial>,
        /// The path; none for what the host's file says.
        path: Option<KeyPath>,
    },
    /// A job wants its tape. It is keyed, and the job's until the connection ends or it is closed.
    TapeOpen(TapeOpen),
    /// The end of a drive's job.
    TapeClose {
        /// The drive.
        drive: DriveSerial,
        /// Its job, as [`Opened::job`] says; none for whichever has the tape.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        job: Option<u64>,
        /// Whether the cartridge is put out.
        #[serde(default)]
        unload: bool,
    },
}

/// The daemon's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum Reply {
    /// To [`Command::Display`].
    Display(Box<Displayed>),
    /// To [`Command::Verify`].
    Verified {
        /// Of each server.
        servers: Vec<Verified>,
    },
    /// It is done; this is how the servers and paths are now.
    Done(Box<Displayed>),
    /// To [`Command::TapeOpen`].
    TapeOpened(Box<Opened>),
    /// To [`Command::TapeClose`].
    TapeClosed(Box<Closed>),
    /// It is not.
    Failed {
        /// Why, and what to do.
        reason: String,
    },
}

/// What [`Command::Display`] shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Displayed {
    /// The host's file.
    pub file: PathBuf,
    /// The version of the daemon.
    pub version: String,
    /// Whom the host's certificate names.
    pub peer: PeerId,
    /// Until when it is good, UTC; none where it cannot be read now.
    #[serde(with = "time::serde::rfc3339::option")]
    pub certificate_until: Option<OffsetDateTime>,
    /// Whether an operator has changed servers or bounds since the daemon began.
    pub changed: bool,
    /// The key servers.
    pub keys: Seen,
    /// The path of drives that are not listed.
    pub path: PathShown,
    /// Drives with a path of their own.
    pub drives: Vec<DriveShown>,
    /// The drives that this host keys itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub in_band: Vec<InBandShown>,
}

/// A path, and what says so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathShown {
    /// The path.
    pub path: KeyPath,
    /// What says so.
    pub by: PathFrom,
}

/// What says which path a drive has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PathFrom {
    /// An operator's command.
    Command,
    /// A line of the host's file.
    Line(usize),
    /// Nothing does.
    Rule,
}

impl fmt::Display for PathFrom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Command => f.pad("command"),
            Self::Line(line) => f.pad(&format!("line {line}")),
            Self::Rule => f.pad("default"),
        }
    }
}

/// A drive's path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriveShown {
    /// The drive.
    pub serial: DriveSerial,
    /// Its path.
    #[serde(flatten)]
    pub path: PathShown,
}

/// A change of the key servers, as SETIOS makes one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetServers {
    /// Another primary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub primary: Option<ServerAddress>,
    /// Another secondary, or none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secondary: Option<OrNone>,
    /// The whole list instead of the two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub servers: Option<Vec<ServerAddress>>,
    /// Another MAXCONN.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maxconn: Option<u16>,
    /// Another MAXPCONN.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maxpconn: Option<u16>,
}

impl SetServers {
    /// These servers with the change made.
    ///
    /// # Errors
    /// What cannot be so.
    pub fn applied(self, to: KeyServers) -> Result<KeyServers, String> {
        if self == Self::default() {
            return Err("nothing to set; give what is to change".to_owned());
        }
        let Self {
            primary,
            secondary,
            servers,
            maxconn,
            maxpconn,
        } = self;
        let mut set = to;
        if let Some(servers) = servers {
            if primary.is_some() || secondary.is_some() {
                return Err("give primary and secondary, or the whole list".to_owned());
            }
            set.servers = servers.into_iter().map(Into::into).collect();
        }
        if let Some(primary) = primary
            && let Some(first) = set.servers.first_mut()
        {
            *first = primary.into();
        }
        match secondary {
            Some(OrNone(Some(secondary))) => match set.servers.get_mut(1) {
                Some(second) => *second = secondary.into(),
                None => set.servers.push(secondary.into()),
            },
            Some(OrNone(None)) if set.servers.len() > 1 => drop(set.servers.remove(1)),
            Some(OrNone(None)) | None => {}
        }
        set.maxconn = maxconn.unwrap_or(set.maxconn);
        set.maxpconn = maxpconn.unwrap_or(set.maxpconn.min(set.maxconn));
        set.checked().map_err(|error| error.to_string())
    }
}

/// A key server, or `none`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrNone(
    /// The server.
    pub Option<ServerAddress>,
);

impl FromStr for OrNone {
    type Err = ServerAddressError;

    fn from_str(given: &str) -> Result<Self, ServerAddressError> {
        if given.eq_ignore_ascii_case("none") {
            return Ok(Self(None));
        }
        given.parse().map(|server| Self(Some(server)))
    }
}

impl Serialize for OrNone {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            Some(server) => server.serialize(to),
            None => to.serialize_str("none"),
        }
    }
}

impl<'de> Deserialize<'de> for OrNone {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The path as an operator gives it: `in-band`, `out-of-band`, or `default` for what the file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathOrDefault(
    /// The path.
    pub Option<KeyPath>,
);

impl FromStr for PathOrDefault {
    type Err = NoSuchWord;

    fn from_str(given: &str) -> Result<Self, NoSuchWord> {
        if given == "default" {
            return Ok(Self(None));
        }
        given
            .parse()
            .map(|path| Self(Some(path)))
            .map_err(|error: NoSuchWord| NoSuchWord {
                expected: "in-band, out-of-band or default",
                got: error.got,
            })
    }
}

/// Why a command could not be put to the daemon.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nobody listens.
    #[error(
        "no proxy listens on {}; start it with: ekm proxy run --config host.toml",
        .0.display()
    )]
    NoDaemon(PathBuf),
    /// The conversation failed.
    #[error("the proxy on {} did not answer properly: {reason}", path.display())]
    Talk {
        /// The socket.
        path: PathBuf,
        /// What went wrong.
        reason: String,
    },
    /// The daemon said no.
    #[error("{0}")]
    Failed(String),
}

/// A conversation with the daemon.
#[derive(Debug)]
pub struct Control {
    path: PathBuf,
    stream: BufReader<UnixStream>,
}

impl Control {
    /// Connects to the socket.
    ///
    /// # Errors
    /// Nobody listens there, or it cannot be connected to.
    pub async fn connect(path: &Path) -> Result<Self, ControlError> {
        let stream = UnixStream::connect(path)
            .await
            .map_err(|error| match error.kind() {
                std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => {
                    ControlError::NoDaemon(path.to_owned())
                }
                _ => ControlError::Talk {
                    path: path.to_owned(),
                    reason: error.to_string(),
                },
            })?;
        Ok(Self {
            path: path.to_owned(),
            stream: BufReader::new(stream),
        })
    }

    /// Puts a command and waits for its answer, for so long.
    ///
    /// # Errors
    /// There is no answer, or the daemon says no.
    pub async fn ask(
        &mut self,
        command: &Command,
        patience: Duration,
    ) -> Result<Reply, ControlError> {
        let answer = tokio::time::timeout(patience, self.exchange(command));
        let answer = match answer.await {
            Ok(answer) => answer.map_err(|error| error.to_string()),
            Err(_) => Err(format!("no answer within {} s", patience.as_secs())),
        };
        match answer {
            Ok(Reply::Failed { reason }) => Err(ControlError::Failed(reason)),
            Ok(reply) => Ok(reply),
            Err(reason) => Err(ControlError::Talk {
                path: self.path.clone(),
                reason,
            }),
        }
    }

    async fn exchange(&mut self, command: &Command) -> std::io::Result<Reply> {
        let mut line = serde_json::to_vec(command)?;
        line.push(b'\n');
        self.stream.write_all(&line).await?;
        let mut answer = Vec::new();
        let mut bounded = (&mut self.stream).take(MAX_REPLY);
        bounded.read_until(b'\n', &mut answer).await?;
        if answer.is_empty() {
            return Err(std::io::Error::other("it closed the connection"));
        }
        Ok(serde_json::from_slice(&answer)?)
    }
}

#[cfg(test)]
mod tests;
