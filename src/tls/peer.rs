//! The name of a peer, as its certificate states it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use x509_parser::extensions::GeneralName;

/// What a peer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// A tape drive that asks for itself.
    Drive,
    /// A host or library that asks on behalf of drives.
    Proxy,
    /// A person who administers the server.
    Operator,
    /// A key server.
    Server,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Drive => "drive",
            Self::Proxy => "proxy",
            Self::Operator => "operator",
            Self::Server => "server",
        })
    }
}

impl FromStr for Role {
    type Err = PeerError;

    fn from_str(text: &str) -> Result<Self, PeerError> {
        match text {
            "drive" => Ok(Self::Drive),
            "proxy" => Ok(Self::Proxy),
            "operator" => Ok(Self::Operator),
            "server" => Ok(Self::Server),
            _ => Err(PeerError::Role { got: text.into() }),
        }
    }
}

/// A peer: its role and its name, `drive:000001234567`.
///
/// A drive's name is its serial of 12 letters and digits. Another name is 1 to 64 letters, digits,
/// `.`, `_` and `-`, and begins with a letter or digit, so that it can stand in a file name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PeerId {
    role: Role,
    name: String,
}

impl PeerId {
    /// A peer of this role and name.
    ///
    /// # Errors
    ///
    /// [`PeerError::Name`] when the name is not of the form that the role asks for.
    pub fn new(role: Role, name: impl Into<String>) -> Result<Self, PeerError> {
        let name = name.into();
        let fits = match role {
            Role::Drive => {
                name.len() == DRIVE_SERIAL && name.bytes().all(|byte| byte.is_ascii_alphanumeric())
            }
            Role::Proxy | Role::Operator | Role::Server => {
                name.len() <= MAX_NAME
                    && name.starts_with(|first: char| first.is_ascii_alphanumeric())
                    && name
                        .bytes()
                        .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
            }
        };
        if fits {
            Ok(Self { role, name })
        } else {
            Err(PeerError::Name { role, got: name })
        }
    }

    /// The peer that a certificate names in its one `urn:ekm:` URI. The caller has verified the
    /// certificate.
    ///
    /// # Errors
    ///
    /// When the certificate cannot be read, or names no peer, or several.
    pub fn from_certificate(der: &[u8]) -> Result<Self, PeerError> {
        let (rest, certificate) =
            x509_parser::parse_x509_certificate(der).map_err(|_| PeerError::Certificate)?;
        if !rest.is_empty() {
            return Err(PeerError::Certificate);
        }
        let names = certificate
            .subject_alternative_name()
            .map_err(|_| PeerError::Certificate)?
            .map(|extension| extension.value.general_names.as_slice())
            .unwrap_or_default();
        let mut ours = names.iter().filter_map(|name| match name {
            // The scheme and namespace of a URN know no case (RFC 8141, section 3.1).
            GeneralName::URI(uri)
                if uri
                    .get(..URN.len())
                    .is_some_and(|start| start.eq_ignore_ascii_case(URN)) =>
            {
                Some(*uri)
            }
            _ => None,
        });
        match (ours.next(), ours.next()) {
            (None, _) => Err(PeerError::Unnamed),
            (Some(_), Some(_)) => Err(PeerError::Ambiguous),
            (Some(uri), None) => uri
                .strip_prefix(URN)
                .ok_or_else(|| PeerError::Form { got: uri.into() })?
                .parse(),
        }
    }

    /// What the peer is.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Its name; of a drive, the serial.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The URI that stands in its certificate.
    pub fn urn(&self) -> String {
        format!("{URN}{self}")
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { role, name } = self;
        write!(f, "{role}:{name}")
    }
}

impl FromStr for PeerId {
    type Err = PeerError;

    fn from_str(text: &str) -> Result<Self, PeerError> {
        let (role, name) = text
            .split_once(':')
            .ok_or_else(|| PeerError::Form { got: text.into() })?;
        Self::new(role.parse()?, name)
    }
}

impl TryFrom<String> for PeerId {
    type Error = PeerError;

    fn try_from(text: String) -> Result<Self, PeerError> {
        text.parse()
    }
}

impl From<PeerId> for String {
    fn from(peer: PeerId) -> Self {
        peer.to_string()
    }
}

/// Why a text or a certificate names no peer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// The bytes are not one certificate.
    #[error("the certificate cannot be read: issue it anew")]
    Certificate,
    /// No URI of ours.
    #[error("the certificate names no peer: issue it with one URI urn:ekm:<role>:<name>")]
    Unnamed,
    /// Several URIs of ours.
    #[error("the certificate names several peers: issue one certificate for each")]
    Ambiguous,
    /// Not `<role>:<name>`.
    #[error("expected <role>:<name>, such as drive:000001234567, got {got:?}")]
    Form {
        /// What was given.
        got: String,
    },
    /// No such role.
    #[error("expected one of drive, proxy, operator and server, got {got:?}")]
    Role {
        /// What was given.
        got: String,
    },
    /// Not a name that this role may have.
    #[error("{got:?} is no name of a {role}: expected {}", name_rule(*.role))]
    Name {
        /// The role.
        role: Role,
        /// What was given.
        got: String,
    },
}

fn name_rule(role: Role) -> &'static str {
    match role {
        Role::Drive => "a serial of 12 letters and digits",
        Role::Proxy | Role::Operator | Role::Server => "1 to 64 letters, digits, '.', '_' and '-'",
    }
}

const URN: &str = "urn:ekm:";
const DRIVE_SERIAL: usize = 12;
/// The common name of a subject holds no more (RFC 5280, appendix A.1, ub-common-name).
const MAX_NAME: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_reads_back_as_it_is_written() {
        for text in [
            "drive:000001234567",
            "proxy:host-1.example",
            "operator:a",
            "server:ekm_2",
        ] {
            let peer: PeerId = text.parse().unwrap();
            assert_eq!(peer.to_string(), text);
            let json = serde_json::to_string(&peer).unwrap();
            assert_eq!(json, format!("\"{text}\""));
            assert_eq!(serde_json::from_str::<PeerId>(&json).unwrap(), peer);
        }
    }

    #[test]
    fn what_names_no_peer_is_refused() {
        let long = format!("proxy:{}", "a".repeat(65));
        for text in [
            "",
            "drive",
            "drive:",
            "drive:1234567",
            "drive:00000123456/",
            "drive:0000012345678",
            "proxy:",
            "proxy:../x",
            "proxy:a b",
            "proxy:a:b",
            "proxy:é",
            "Drive:000001234567",
            "host:a",
            &long,
        ] {
            assert!(text.parse::<PeerId>().is_err(), "{text}");
        }
    }
}
