//! What was issued, in one JSON file.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::replace::{Existing, write};
use super::{CaError, PRIVATE, PeerId, Role};

/// One certificate that was issued.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// The serial number, 32 hexadecimal digits.
    pub serial: String,
    /// What the peer is.
    pub role: Role,
    /// The peer's name.
    pub name: String,
    /// The start of its validity.
    #[serde(with = "time::serde::rfc3339")]
    pub not_before: OffsetDateTime,
    /// The end of its validity.
    #[serde(with = "time::serde::rfc3339")]
    pub not_after: OffsetDateTime,
    /// When it was revoked, if it was.
    #[serde(with = "time::serde::rfc3339::option")]
    pub revoked: Option<OffsetDateTime>,
}

impl Entry {
    pub(super) fn new(
        serial: &str,
        peer: &PeerId,
        not_before: OffsetDateTime,
        not_after: OffsetDateTime,
    ) -> Self {
        Self {
            serial: serial.into(),
            role: peer.role(),
            name: peer.name().into(),
            not_before,
            not_after,
            revoked: None,
        }
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Index {
    /// The number of the last revocation list. A list's number may never go back (RFC 5280,
    /// section 5.2.3).
    crl_number: u64,
    issued: Vec<Entry>,
}

impl Index {
    pub(super) fn load(dir: &Path) -> Result<Self, CaError> {
        let path = dir.join(FILE);
        let text = fs::read(&path).map_err(CaError::file("read", &path))?;
        serde_json::from_slice(&text).map_err(|source| CaError::Index { path, source })
    }

    pub(super) fn save(&self, dir: &Path) -> Result<(), CaError> {
        let path = dir.join(FILE);
        match serde_json::to_vec_pretty(self) {
            Ok(text) => write(&path, &text, PRIVATE, Existing::Replace),
            Err(source) => Err(CaError::Index { path, source }),
        }
    }

    pub(super) fn add(&mut self, entry: Entry) {
        self.issued.push(entry);
    }

    pub(super) fn into_entries(self) -> Vec<Entry> {
        self.issued
    }

    pub(super) fn crl_number(&self) -> u64 {
        self.crl_number
    }

    /// Revokes what `selector` names, counts the list that follows, and returns what it named.
    pub(super) fn revoke(
        &mut self,
        selector: &str,
        now: OffsetDateTime,
    ) -> Result<Vec<Entry>, CaError> {
        let peer = selector.parse::<PeerId>().ok();
        let mut named: Vec<&mut Entry> = self
            .issued
            .iter_mut()
            .filter(|entry| match &peer {
                Some(peer) => entry.role == peer.role() && entry.name == peer.name(),
                None => entry.serial.eq_ignore_ascii_case(selector) || entry.name == selector,
            })
            .collect();
        let Some(role) = named.first().map(|entry| entry.role) else {
            return Err(CaError::NotIssued {
                selector: selector.into(),
            });
        };
        if named.iter().any(|entry| entry.role != role) {
            return Err(CaError::Ambiguous {
                selector: selector.into(),
            });
        }
        for entry in &mut named {
            entry.revoked.get_or_insert(now);
        }
        let revoked = named.into_iter().map(|entry| entry.clone()).collect();
        self.crl_number = self.crl_number.saturating_add(1);
        Ok(revoked)
    }

    /// Serial numbers and times of what is revoked.
    ///
    /// # Errors
    ///
    /// When a serial number is none: to leave it out would take its revocation back.
    pub(super) fn revoked(&self) -> Result<Vec<(Vec<u8>, OffsetDateTime)>, CaError> {
        let mut revoked = Vec::new();
        for entry in &self.issued {
            if let Some(time) = entry.revoked {
                let serial = hex::decode(&entry.serial).map_err(|_| CaError::Serial {
                    serial: entry.serial.clone(),
                })?;
                revoked.push((serial, time));
            }
        }
        Ok(revoked)
    }
}

const FILE: &str = "index.json";
