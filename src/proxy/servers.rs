//! The host's list of key servers, as `EKM PRIMARY=…,SECONDARY=…,MAXCONN=,MAXPCONN=` of IECIOSxx.

use std::collections::HashSet;
use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;
use std::time::Duration;

use rustls_pki_types::ServerName;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The key servers in the order in which they are tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeyServers {
    /// One to [`KeyServers::MAX`] of them; the first is the primary.
    pub servers: Vec<KeyServer>,
    /// Most connections at once, of all servers (MAXCONN).
    pub maxconn: u16,
    /// Of these, how many stay open (MAXPCONN).
    pub maxpconn: u16,
}

impl KeyServers {
    /// Most servers of a list.
    pub const MAX: usize = 16;
    /// MAXCONN where nothing is said, and its highest value.
    pub const MAXCONN: u16 = 255;
    /// MAXPCONN where nothing is said.
    pub const MAXPCONN: u16 = 8;

    /// A list with the bounds that hold where nothing is said.
    ///
    /// # Errors
    /// It has none, too many, or one twice.
    pub fn of(servers: Vec<KeyServer>) -> Result<Self, KeyServersError> {
        Self {
            servers,
            maxconn: Self::MAXCONN,
            maxpconn: Self::MAXPCONN,
        }
        .checked()
    }

    /// The list, if it can be one.
    ///
    /// # Errors
    /// It has no server, too many, or one twice; or the bounds do not fit.
    pub fn checked(self) -> Result<Self, KeyServersError> {
        let Self {
            servers,
            maxconn,
            maxpconn,
        } = &self;
        if servers.is_empty() {
            return Err(KeyServersError::None);
        }
        if servers.len() > Self::MAX {
            return Err(KeyServersError::TooMany(servers.len()));
        }
        let mut seen = HashSet::new();
        if let Some(twice) = servers.iter().find(|one| !seen.insert(&one.address)) {
            return Err(KeyServersError::Twice(twice.address.clone()));
        }
        if !(1..=Self::MAXCONN).contains(maxconn) {
            return Err(KeyServersError::Maxconn(*maxconn));
        }
        if maxpconn > maxconn {
            return Err(KeyServersError::Maxpconn(*maxpconn, *maxconn));
        }
        Ok(self)
    }
}

/// Why these are no list of key servers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyServersError {
    /// There is none.
    #[error("there is no key server in the list; name at least a primary")]
    None,
    /// There are too many.
    #[error("{0} key servers, at most {max}", max = KeyServers::MAX)]
    TooMany(usize),
    /// One is there twice.
    #[error("{0} is listed twice")]
    Twice(ServerAddress),
    /// MAXCONN.
    #[error("maxconn: {0} is not 1 to {max}", max = KeyServers::MAXCONN)]
    Maxconn(u16),
    /// MAXPCONN.
    #[error("maxpconn: {0} is not 0 to {1}, which is maxconn")]
    Maxpconn(u16, u16),
}

/// A key server of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyServer {
    /// Where it is.
    pub address: ServerAddress,
    /// How long one try may take there; otherwise as [`Times::answer`](super::Times) says.
    pub answer: Option<Duration>,
}

impl From<ServerAddress> for KeyServer {
    fn from(address: ServerAddress) -> Self {
        Self {
            address,
            answer: None,
        }
    }
}

impl fmt::Display for KeyServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)
    }
}

impl Serialize for KeyServer {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.address.serialize(to)
    }
}

/// What a server of the list is called: `primary`, `secondary`, then `server 3` and so on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerRole(
    /// Its place in the list, from 0.
    pub usize,
);

impl fmt::Display for ServerRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.pad("primary"),
            1 => f.pad("secondary"),
            place => f.pad(&format!("server {}", place + 1)),
        }
    }
}

impl Serialize for ServerRole {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ServerRole {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        (0..KeyServers::MAX)
            .map(Self)
            .find(|role| role.to_string() == text)
            .ok_or_else(|| serde::de::Error::custom(format!("{text:?} is no server's role")))
    }
}

/// Host name or address, and port, of a key server.
///
/// Written `host`, `host:port`, `[IPv6]:port`, or an IPv6 address alone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServerAddress {
    host: String,
    port: u16,
}

impl ServerAddress {
    /// The EKM's own port, where none is given.
    pub const PORT: u16 = 3801;
}

impl FromStr for ServerAddress {
    type Err = ServerAddressError;

    fn from_str(given: &str) -> Result<Self, ServerAddressError> {
        let refused = || ServerAddressError {
            got: given.chars().take(300).collect(),
        };
        let bare_v6 = given.parse::<Ipv6Addr>().is_ok();
        let (host, port) = match given.rsplit_once(':') {
            Some((host, port)) if !bare_v6 && !(given.ends_with(']')) => (host, Some(port)),
            Some(_) | None => (given, None),
        };
        let (host, is_v6) = match host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
        {
            Some(host) => (host, true),
            None => (host, bare_v6),
        };
        if is_v6 != host.parse::<Ipv6Addr>().is_ok() || ServerName::try_from(host).is_err() {
            return Err(refused());
        }
        let port = match port {
            None => Self::PORT,
            Some(port) if port.bytes().all(|digit| digit.is_ascii_digit()) => {
                port.parse().map_err(|_| refused())?
            }
            Some(_) => return Err(refused()),
        };
        if port == 0 {
            return Err(refused());
        }
        Ok(Self {
            host: host.to_ascii_lowercase(),
            port,
        })
    }
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        f.pad(&if host.contains(':') {
            format!("[{host}]:{port}")
        } else {
            format!("{host}:{port}")
        })
    }
}

impl Serialize for ServerAddress {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ServerAddress {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A text that is no key server's address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a key server, host or host:port ([address]:port for IPv6), got {got:?}")]
pub struct ServerAddressError {
    /// The beginning of what was given.
    pub got: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_with_and_without_port() {
        for (given, read) in [
            ("ekm1", "ekm1:3801"),
            ("EKM1.example.com:441", "ekm1.example.com:441"),
            ("192.0.2.1", "192.0.2.1:3801"),
            ("192.0.2.1:1441", "192.0.2.1:1441"),
            ("2001:db8::1", "[2001:db8::1]:3801"),
            ("[2001:db8::1]", "[2001:db8::1]:3801"),
            ("[2001:db8::1]:441", "[2001:db8::1]:441"),
        ] {
            assert_eq!(given.parse::<ServerAddress>().unwrap().to_string(), read);
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for given in [
            "",
            ":",
            "ekm1:",
            ":3801",
            "ekm1:0",
            "ekm1:+1",
            "ekm1:65536",
            "ekm1:x",
            "a b",
            "[ekm1]:1",
            "[]:1",
            "https://ekm1",
            "2001:db8::1:g",
            "[::1]x",
        ] {
            assert!(given.parse::<ServerAddress>().is_err(), "{given:?}");
        }
    }
}
