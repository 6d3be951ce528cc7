//! Rekeys of volumes from the catalog: jobs that a server works through, and EEDKs that are not on
//! their cartridge yet.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Issuance, Issued, Place, StoreError, StoredEedk, VolumeQuery};
use crate::key::{DataKeyId, KekRef};
use crate::volser::Volser;

/// What is to be rekeyed, and to what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RekeyAsked {
    /// These volumes; where there are none, all that the query finds.
    pub volsers: Vec<Volser>,
    /// What of the history is meant.
    pub query: VolumeQuery,
    /// First new KEK.
    pub kek1: KekRef,
    /// Second new KEK.
    pub kek2: Option<KekRef>,
    /// Whether the EEDK under the query's KEK alone gives way, to the first new KEK, and another one
    /// is made again under its own.
    pub replace: bool,
    /// Most volumes a second.
    pub rate: Option<u32>,
}

/// How far a rekey is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RekeyState {
    /// A server works on it, or will.
    Running,
    /// It is at its end.
    Done,
    /// An operator ended it.
    Cancelled,
    /// It cannot go on; an operator may resume it.
    Stopped,
}

impl std::fmt::Display for RekeyState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Cancelled => "cancelled",
            Self::Stopped => "stopped",
        })
    }
}

impl std::str::FromStr for RekeyState {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "running" => Ok(Self::Running),
            "done" => Ok(Self::Done),
            "cancelled" => Ok(Self::Cancelled),
            "stopped" => Ok(Self::Stopped),
            _ => Err(()),
        }
    }
}

/// How far it is, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RekeyCount {
    /// Rows of the history that were looked at.
    pub looked: u64,
    /// Data keys with new EEDKs in the catalog.
    pub done: u64,
    /// Those that have the KEKs already, or whose cartridge was given up.
    pub skipped: u64,
    /// Those that could not be rekeyed.
    pub failed: u64,
}

/// Where a rekey is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RekeyPlace {
    /// Behind so many of its volumes.
    Volumes(usize),
    /// Behind that generation.
    Behind(Place),
}

/// A rekey of one or many volumes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RekeyJob {
    /// Its number.
    pub id: Uuid,
    /// What was asked.
    pub asked: RekeyAsked,
    /// Who asked.
    pub operator: String,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub began: OffsetDateTime,
    /// How far it is.
    pub state: RekeyState,
    /// Why it stopped, or what it waits for.
    pub why: Option<String>,
    /// The server that works on it, by its node name; empty before one has begun.
    pub owner: String,
    /// Where it is.
    pub place: Option<RekeyPlace>,
    /// Rows of the history that there are to look at; no further counted than 100,000.
    pub total: u64,
    /// The numbers.
    pub count: RekeyCount,
}

/// A data key that could not be rekeyed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RekeyFailure {
    /// The data key.
    pub dki: DataKeyId,
    /// Its cartridge.
    pub volser: Volser,
    /// Why.
    pub reason: String,
}

/// EEDKs in the catalog that are not on their cartridge yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unstored {
    /// The request that made them, by which they are confirmed.
    pub request: Uuid,
    /// Their generation.
    pub generation: u32,
    /// The EEDKs.
    pub eedks: Vec<StoredEedk>,
}

/// Rekeys, and what they made.
#[async_trait]
pub trait Rekeys: Send + Sync {
    /// Adds a rekey.
    async fn add_rekey(&self, job: &RekeyJob) -> Result<(), StoreError>;
    /// The newest, newest first; so many at most.
    async fn rekeys(&self, limit: usize) -> Result<Vec<RekeyJob>, StoreError>;
    /// The one of that number.
    async fn rekey_job(&self, id: &Uuid) -> Result<Option<RekeyJob>, StoreError>;
    /// Those that are to be worked on.
    async fn running_rekeys(&self) -> Result<Vec<RekeyJob>, StoreError>;
    /// Takes one that runs for a server, for a minute; false where another works on it.
    async fn take_rekey(&self, id: &Uuid, node: &str) -> Result<bool, StoreError>;
    /// Notes where it is, and what it waits for; false where this server is to leave it alone: it was cancelled, or
    /// another one has taken it.
    async fn advance_rekey(
        &self,
        id: &Uuid,
        node: &str,
        place: Option<RekeyPlace>,
        count: &RekeyCount,
        why: Option<&str>,
    ) -> Result<bool, StoreError>;
    /// Ends or resumes it: from one of these states to that; false where it is in none of them.
    /// One that is resumed looks at everything again.
    async fn turn_rekey(
        &self,
        id: &Uuid,
        from: &[RekeyState],
        to: RekeyState,
        why: Option<&str>,
    ) -> Result<bool, StoreError>;
    /// Notes what could not be rekeyed.
    async fn note_rekey_failure(&self, id: &Uuid, failure: &RekeyFailure)
    -> Result<(), StoreError>;
    /// What could not be rekeyed, so many at most.
    async fn rekey_failures(
        &self,
        id: &Uuid,
        limit: usize,
    ) -> Result<Vec<RekeyFailure>, StoreError>;

    /// Commits EEDKs that were made from the catalog's, unless the request made some before: from
    /// now on they are the catalog's, and to be stored when the cartridge is next mounted.
    async fn issue_unmounted(&self, issuance: &Issuance) -> Result<Issued, StoreError>;
    /// EEDKs of a data key that are not on its cartridge yet.
    async fn unstored(&self, dki: &DataKeyId) -> Result<Option<Unstored>, StoreError>;
    /// Whether there are any of any data key.
    async fn any_unstored(&self) -> Result<bool, StoreError>;
}
