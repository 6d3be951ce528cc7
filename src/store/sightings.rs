//! What drives showed that an operator has to judge: those that wait, and those that show
//! another key than the one that is trusted.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{Drive, StoreError};
use crate::drive::DriveSerial;
use crate::key::KekHash;
use crate::tls::PeerId;

/// A drive as it showed itself once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// The drive.
    pub serial: DriveSerial,
    /// SHA-256 over the public key that it showed.
    pub key: Option<KekHash>,
    /// Who spoke for it.
    pub peer: PeerId,
    /// Where from.
    pub address: String,
    /// When.
    pub at: OffsetDateTime,
    /// How often, where several are noted at once.
    pub times: u32,
}

/// What a drive showed since it was first seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// The drive.
    pub serial: DriveSerial,
    /// SHA-256 over the public key that it showed first; none where it was an operator who added it.
    pub key: Option<KekHash>,
    /// Who spoke for it last.
    pub peer: PeerId,
    /// Where from.
    pub address: String,
    /// When it was first seen.
    #[serde(with = "time::serde::rfc3339")]
    pub first: OffsetDateTime,
    /// When it was last seen with that key.
    #[serde(with = "time::serde::rfc3339")]
    pub last: OffsetDateTime,
    /// How often.
    pub times: u32,
    /// Another key that was shown for it.
    pub other: Option<OtherKey>,
}

/// A key that is not the one of the row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OtherKey {
    /// SHA-256 over the last one.
    pub key: Option<KekHash>,
    /// Who showed it.
    pub peer: PeerId,
    /// Where from.
    pub address: String,
    /// When, the last time.
    #[serde(with = "time::serde::rfc3339")]
    pub last: OffsetDateTime,
    /// How often such were shown.
    pub times: u32,
}

/// How many drives may wait for an operator.
#[derive(Clone, Copy, Debug)]
pub struct Waiting {
    /// In all.
    pub total: u32,
    /// Of those that one peer spoke for.
    pub per_peer: u32,
}

/// What became of a drive that nobody knew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discovered {
    /// It has a row now.
    Added,
    /// It has a row, or was deleted or rejected by an operator: nothing was done.
    Known,
    /// Too many wait.
    Full,
}

/// What drives showed.
#[async_trait]
pub trait Sightings {
    /// Adds a drive that asked by itself, with what it showed, unless it has a row, was deleted
    /// before, or too many wait. The bound holds over all servers.
    async fn discover(
        &self,
        drive: &Drive,
        sighting: &Sighting,
        waiting: Waiting,
    ) -> Result<Discovered, StoreError>;
    /// It was seen again, with the key of its row or with another one.
    async fn note_sighting(&self, sighting: &Sighting, other: bool) -> Result<(), StoreError>;
    /// What all of them showed, by serial.
    async fn sightings(&self) -> Result<Vec<Seen>, StoreError>;
}
