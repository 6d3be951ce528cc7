//! What an operator sees of the key servers.

use std::fmt;
use std::str::FromStr;
use std::sync::PoisonError;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::Inner;
use super::link::{Failure, ServerState};
use crate::drive::DriveSerial;
use crate::key::DataKeyId;
use crate::proxy::NoSuchWord;
use crate::proxy::servers::{ServerAddress, ServerRole};

/// The key servers and their connections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// In the order in which they are tried.
    pub servers: Vec<ServerSeen>,
    /// Most connections at once.
    pub maxconn: u16,
    /// Of these, how many stay open.
    pub maxpconn: u16,
    /// Open connections.
    pub open: usize,
    /// Confirms that wait for their server.
    pub confirms_waiting: usize,
    /// Of these, the first that their server refuses; they are told again all the same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub confirms_refused: Vec<ConfirmRefused>,
}

/// A server that will not hear that nothing was written under a data key. It takes the cartridge's
/// former EEDKs for superseded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfirmRefused {
    /// The server.
    pub server: ServerAddress,
    /// The drive that was given the data key.
    pub drive: DriveSerial,
    /// The data key.
    pub dki: DataKeyId,
    /// When it refused last, UTC.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// Why.
    pub why: String,
}

/// A key server of the list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerSeen {
    /// Where it is.
    pub server: ServerAddress,
    /// Its place in the list, from 0.
    pub role: ServerRole,
    /// How it is.
    pub state: ServerState,
    /// Since when, UTC.
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
    /// Whether the next request goes there first.
    pub next: bool,
    /// Whether the last answer came from there.
    pub answered_last: bool,
    /// What went wrong there last.
    pub failure: Option<Failure>,
    /// Its open connections.
    pub connections: usize,
    /// Of these, how many are at work.
    pub in_use: usize,
}

pub(super) fn seen(inner: &Inner) -> Seen {
    let list = inner.list();
    let last = inner.last.lock().unwrap_or_else(PoisonError::into_inner);
    let next = list.links.iter().position(|listed| listed.link.usable());
    let servers = list.links.iter().enumerate().map(|(place, listed)| {
        let link = &listed.link;
        let (state, since, failure) = link.told();
        let in_use = link.busy();
        ServerSeen {
            server: link.address().clone(),
            role: ServerRole(place),
            state,
            since,
            next: next == Some(place),
            answered_last: last.as_ref() == Some(link.address()),
            failure,
            connections: in_use + inner.pool.resting(link.address()),
            in_use,
        }
    });
    let (maxconn, maxpconn) = inner.pool.bounds();
    Seen {
        servers: servers.collect(),
        maxconn,
        maxpconn,
        open: inner.pool.open(),
        confirms_waiting: inner.later.waiting(),
        confirms_refused: inner.later.refusals(),
    }
}

/// Which servers of the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Which {
    /// The first.
    Primary,
    /// The second.
    Secondary,
    /// All.
    All,
}

impl Which {
    pub(super) const fn has(self, place: usize) -> bool {
        match self {
            Self::Primary => place == 0,
            Self::Secondary => place == 1,
            Self::All => true,
        }
    }
}

impl FromStr for Which {
    type Err = NoSuchWord;

    fn from_str(given: &str) -> Result<Self, NoSuchWord> {
        match given {
            "primary" => Ok(Self::Primary),
            "secondary" => Ok(Self::Secondary),
            "all" => Ok(Self::All),
            _ => Err(NoSuchWord {
                expected: "primary, secondary or all",
                got: given.chars().take(64).collect(),
            }),
        }
    }
}

impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Primary => "primary",
            Self::Secondary => "secondary",
            Self::All => "all",
        })
    }
}

/// How a test exchange with a server went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// Where it is.
    pub server: ServerAddress,
    /// Its place in the list, from 0.
    pub role: ServerRole,
    /// How long it took.
    pub milliseconds: u64,
    /// What went wrong, after the server's name in a sentence; none where it is well.
    pub failure: Option<String>,
}
