//! Who operators are, and what each may do.
//!
//! An operator shows who he is by the Unix user at the other end of the operators' socket
//! (`SO_PEERCRED`), or by a client certificate of `urn:ekm:operator:NAME`. The configuration gives
//! him a name and roles. Where it names nobody, the user that runs the server, and root, have all
//! roles.

mod roster;

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::tls::PeerId;

pub use roster::{Person, Roster, Stranger, user_id};

/// What an operator may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Keeps the site running: tokens, budgets, what drives and hosts wait for.
    Operator,
    /// Says which drives get keys.
    DriveAdmin,
    /// Makes KEKs, says which are written under, and for whom.
    KeyAdmin,
    /// Looks at everything and changes nothing.
    Auditor,
    /// All of them.
    Owner,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Operator,
        Self::DriveAdmin,
        Self::KeyAdmin,
        Self::Auditor,
        Self::Owner,
    ];
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Operator => "operator",
            Self::DriveAdmin => "drive-admin",
            Self::KeyAdmin => "key-admin",
            Self::Auditor => "auditor",
            Self::Owner => "owner",
        })
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|role| role.to_string() == text)
            .ok_or_else(|| format!("{text:?} is no role (ekm config roles)"))
    }
}

/// By what somebody shows who he is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shown {
    /// The kernel says which user it is.
    Unix(u32),
    /// A client certificate of the door's CA.
    Certificate(PeerId),
}

/// Where he asks from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whence {
    /// Over the operators' socket of this host.
    Socket,
    /// From there, over TLS.
    Host(IpAddr),
    /// On this host, with no server running: the command line works on the state itself.
    NoServer,
}

/// Somebody who asks, and is not known yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asker {
    /// Who he shows that he is.
    pub shown: Shown,
    /// Where from.
    pub whence: Whence,
}

impl Asker {
    /// Who asks and from where, for a sentence that begins with it. Records have no name of the
    /// Unix user, since that is this host's.
    #[must_use]
    pub fn words(&self) -> String {
        let who = match &self.shown {
            Shown::Unix(uid) => {
                let user = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(*uid));
                user.ok().flatten().map_or_else(
                    || format!("uid {uid}"),
                    |user| format!("user {} (uid {uid})", user.name),
                )
            }
            Shown::Certificate(peer) => format!("certificate {peer}"),
        };
        match self.whence {
            Whence::Socket => who,
            Whence::Host(address) => format!("{who} at {address}"),
            Whence::NoServer => format!("{who}, working without a server,"),
        }
    }
}

impl fmt::Display for Asker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.shown {
            Shown::Unix(uid) => write!(f, "uid {uid}")?,
            Shown::Certificate(peer) => write!(f, "certificate {peer}")?,
        }
        match self.whence {
            Whence::Socket => Ok(()),
            Whence::Host(address) => write!(f, " at {address}"),
            Whence::NoServer => f.write_str(", no server"),
        }
    }
}

/// A person of the configuration who asks. Shown in records as
/// `operator:anna (uid 1000)`, `operator:bob (certificate operator:bob at 192.0.2.7)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operator {
    /// Who it is.
    pub person: Person,
    /// How he came.
    pub asker: Asker,
}

impl fmt::Display for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { person, asker } = self;
        match (&asker.shown, asker.whence) {
            // One who has no name but his number.
            (Shown::Unix(uid), whence) if person.name == format!("uid {uid}") => {
                write!(f, "operator:{}", person.name)?;
                match whence {
                    Whence::NoServer => f.write_str(" (no server)"),
                    Whence::Socket | Whence::Host(_) => Ok(()),
                }
            }
            _ => write!(f, "operator:{} ({asker})", person.name),
        }
    }
}
