//! The state of a server: drive table, KEK registry, defaults, volume history.
//!
//! The trait is what the rest of the crate knows; [`Sql`] keeps it in `SQLite`
//! or `PostgreSQL`. What a create or rekey issued is committed, to the disk, before
//! its answer leaves. The history is never overwritten: an EEDK is issued,
//! then confirmed, then superseded, each a row of its own.

mod approvals;
mod backups;
mod birth;
mod database;
mod evidence;
mod fleet;
mod kek_state;
pub mod merge;
mod openings;
mod partner;
mod rekeys;
mod remembered;
pub mod rows;
mod servers;
mod sightings;
mod sql;
pub mod sync;
mod tables;
mod volumes;

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::bridge::message::{Custody, Provenance};
use crate::copies::KekCopy;
use crate::drive::{DriveSerial, Wwn};
use crate::key::{DataKeyId, Eedk, KekHash, KekRef, KeyLabel, SedkForm};
use crate::tls::PeerId;
use crate::volser::Volser;

pub use approvals::{Approval, ApprovalState, Approvals, Decision, Kept};
pub use backups::{Backup, Backups};
pub use birth::Birth;
pub use database::{DatabaseConfig, OutageCreates};
pub use evidence::{Anchored, ChainStore, SealKeyRow};
pub use fleet::{Brought, Fleet, FleetSeen, LocalKeys};
pub use kek_state::{
    Every, KekLife, KekMove, KekSchedule, KekStanding, KekState, KekStates, MoveState, Moved,
    StateChange,
};
pub use openings::{FailedOpening, Forgiven, Opening};
pub use partner::{Certificates, KekCertificate, Partner, Seal};
pub use rekeys::{
    RekeyAsked, RekeyCount, RekeyFailure, RekeyJob, RekeyPlace, RekeyState, Rekeys, Unstored,
};
pub use remembered::Remembered;
pub use servers::{Difference, KekHeld, KeyServer, Servers, TokenHeld, differences, lacking};
pub use sightings::{Discovered, OtherKey, Seen, Sighting, Sightings, Waiting};
pub use sql::{Filling, Snapshot, Sql};
pub use volumes::{
    DataKeySets, OnMedium, Place, VolumeQuery, VolumeSet, Volumes, VolumesFound, WriteOff,
};

/// SHA-256 of an EEDK's DER.
pub type EedkDigest = [u8; 32];

/// How a drive's key is trusted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DriveKey {
    /// An operator compared this public key, `SubjectPublicKeyInfo` DER.
    Pinned(#[serde(with = "crate::base64_bytes")] Vec<u8>),
    /// The drive CA vouches for it: its certificate carries the serial, and signs session keys.
    Certified,
    /// None: SEDK form `t10-00h`.
    None,
}

/// Whether a drive may have keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum DriveState {
    /// It may.
    Active,
    /// It asked, and waits for an operator.
    Pending,
}

/// A row of the drive table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drive {
    /// Its serial.
    pub serial: DriveSerial,
    /// Its world-wide name.
    pub wwn: Option<Wwn>,
    /// First KEK for its new cartridges.
    pub kek1: Option<KekRef>,
    /// Second KEK for its new cartridges.
    pub kek2: Option<KekRef>,
    /// Its key.
    pub key: DriveKey,
    /// How it takes a data key.
    pub form: SedkForm,
    /// How far from the token its data keys may go.
    pub custody: Custody,
    /// Who may ask for it, besides itself.
    pub speakers: Vec<PeerId>,
    /// Whether it may have keys.
    pub state: DriveState,
}

/// A KEK as it was made or first seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisteredKek {
    /// Its label.
    pub label: KeyLabel,
    /// SHA-256 over its `SubjectPublicKeyInfo`.
    pub hash: KekHash,
    /// Its `SubjectPublicKeyInfo`, DER.
    #[serde(with = "crate::base64_bytes")]
    pub spki: Vec<u8>,
    /// Modulus length, bits.
    pub bits: u32,
    /// The token it was made on, by configured name.
    pub token: String,
    /// What it is for.
    pub custody: Custody,
    /// How it came there.
    pub provenance: Provenance,
}

/// Global key labels, for drives and requests that name none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Defaults {
    /// First KEK.
    pub kek1: Option<KekRef>,
    /// Second KEK.
    pub kek2: Option<KekRef>,
}

/// What makes two requests the same one: who asked, and the id it gave.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RequestKey {
    /// The TLS peer.
    pub peer: PeerId,
    /// Its id for the request.
    pub id: String,
}

/// An EEDK that was issued.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredEedk {
    /// The EEDK.
    pub eedk: Eedk,
    /// Its KEK's label.
    pub kek_label: KeyLabel,
    /// Its KEK's public-key hash.
    pub kek_hash: KekHash,
    /// Whether it was opened again before it was released.
    pub proved: bool,
}

/// Where a data key comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// It was made here.
    Ours,
    /// It came in EEDKs that were not issued here: whoever made them may know it.
    Foreign,
}

/// What a create or rekey gave out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issuance {
    /// The request that caused it.
    pub request: RequestKey,
    /// SHA-256 of that request's meaning.
    pub digest: [u8; 32],
    /// The data key.
    pub dki: DataKeyId,
    /// The cartridge.
    pub volser: Volser,
    /// The drive.
    pub drive: DriveSerial,
    /// The token that made it.
    pub token: String,
    /// Where it was in clear.
    pub custody: Custody,
    /// Where the data key comes from. An earlier row of it stays as it is.
    pub origin: Origin,
    /// Whether this made the data key, so that there can be no earlier row.
    pub new: bool,
    /// One or two EEDKs.
    pub eedks: Vec<StoredEedk>,
    /// The server that gave it, by its node name.
    pub server: String,
    /// The job that it was for, where the host said so.
    pub job: Option<String>,
}

/// What became of an [`Issuance`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "nothing was kept where the request had an answer before"]
pub enum Issued {
    /// It is in the history.
    Now,
    /// The request had been given something already, by this server or
    /// another: nothing was kept, and that is its answer.
    Before,
}

/// How far an EEDK got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum EedkState {
    /// It was given out.
    Issued,
    /// A drive stored it.
    Confirmed,
    /// A drive stored another in its place.
    Superseded,
    /// The drive said that it did not store it.
    Abandoned,
}

impl std::fmt::Display for EedkState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Issued => "issued",
            Self::Confirmed => "confirmed",
            Self::Superseded => "superseded",
            Self::Abandoned => "abandoned",
        })
    }
}

/// One generation of EEDKs of a data key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeKey {
    /// The cartridge.
    pub volser: Volser,
    /// The data key.
    pub dki: DataKeyId,
    /// 1 from the create, one more for each rekey.
    pub generation: u32,
    /// How far it got.
    pub state: EedkState,
    /// The drive that it was made for.
    pub drive: DriveSerial,
    /// The token that made it.
    pub token: String,
    /// Where the data key was in clear.
    pub custody: Custody,
    /// When these EEDKs were made.
    #[serde(with = "time::serde::rfc3339")]
    pub created: OffsetDateTime,
    /// The server that gave them, by its node name; empty where that was not kept.
    #[serde(default)]
    pub server: String,
    /// The job that they were for, where the host said so.
    #[serde(default)]
    pub job: Option<String>,
    /// Its EEDKs.
    pub eedks: Vec<StoredEedk>,
}

/// Why the state cannot be had or changed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database said no.
    #[error("state database {name}: {source}")]
    Database {
        /// The file, or the server and its database.
        name: String,
        /// The cause.
        source: sqlx::Error,
    },
    /// The database's schema is not ours.
    #[error("state database {name}: {source}; was it written by a newer ekm?")]
    Migrate {
        /// The file, or the server and its database.
        name: String,
        /// The cause.
        source: sqlx::migrate::MigrateError,
    },
    /// A row does not read as what was written.
    #[error("state database {name}: {what} does not read back; restore the state from its backup")]
    Damaged {
        /// The file, or the server and its database.
        name: String,
        /// Which value.
        what: String,
    },
    /// The label is registered for another key.
    #[error(
        "the label {label} is registered for the key {registered}, not {got}; choose another label"
    )]
    LabelTaken {
        /// The label.
        label: String,
        /// The registered key's hash.
        registered: String,
        /// The hash that came.
        got: String,
    },
    /// A row is not any more what it was when its change was decided.
    #[error("{what} was changed by somebody else meanwhile; nothing was done, try again")]
    Changed {
        /// Whose row.
        what: String,
    },
    /// Nothing may be written under the KEK any more; it could be when the request was judged.
    #[error(
        "KEK {label} was {state} meanwhile; ask again, and another KEK is taken where one is set"
    )]
    KekClosed {
        /// The label.
        label: String,
        /// The state that it has now.
        state: String,
    },
    /// The configuration does not say how to reach it.
    #[error("state database {name}: {why}")]
    Unconfigured {
        /// The server and its database.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// The database that several servers share is out of reach, and this cannot be had without it.
    #[error(
        "{what}: the state database {name} is out of reach ({}); try again later, see ekm fleet status", bare(.name, .why)
    )]
    Outage {
        /// The server and its database.
        name: String,
        /// What cannot be had.
        what: String,
        /// Why it is out of reach.
        why: String,
    },
    /// A secret cannot be made.
    #[error("the operating system gives no random numbers")]
    NoRandom,
    /// The files cannot be made.
    #[error("cannot use the state directory {path}: {source}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
}

/// Why a database is out of reach, where a sentence names it already.
fn bare<'a>(name: &str, why: &'a str) -> &'a str {
    let cut = why.strip_prefix("state database ");
    let cut = cut.and_then(|rest| rest.strip_prefix(name)?.strip_prefix(": "));
    cut.unwrap_or(why)
}

/// The state, wherever it is.
#[async_trait]
pub trait Store:
    merge::Tables
    + Backups
    + sync::SyncTables
    + KekLife
    + Volumes
    + Rekeys
    + Approvals
    + Sightings
    + ChainStore
    + Servers
    + Send
    + Sync
    + std::fmt::Debug
{
    /// The row of a drive.
    async fn drive(&self, serial: &DriveSerial) -> Result<Option<Drive>, StoreError>;
    /// All drives, by serial.
    async fn drives(&self) -> Result<Vec<Drive>, StoreError>;
    /// Adds or replaces a drive.
    async fn put_drive(&self, drive: &Drive) -> Result<(), StoreError>;
    /// [`put_drive`](Self::put_drive) where the row still is `before`; none: there is no such drive.
    ///
    /// # Errors
    /// [`StoreError::Changed`] where it is another by now.
    async fn change_drive(&self, before: Option<&Drive>, drive: &Drive) -> Result<(), StoreError>;
    /// Adds a drive that asked by itself, unless it has a row or was deleted
    /// before; false where nothing was added.
    async fn discover_drive(&self, drive: &Drive) -> Result<bool, StoreError>;
    /// Marks a drive as deleted; false where there is none.
    async fn delete_drive(&self, serial: &DriveSerial) -> Result<bool, StoreError>;

    /// The KEK registry, by label.
    async fn keks(&self) -> Result<Arc<[RegisteredKek]>, StoreError>;
    /// Registers a KEK; the label must be free or this key's already.
    async fn register_kek(&self, kek: &RegisteredKek) -> Result<(), StoreError>;

    /// Partners' KEKs, and certificates that no token keeps.
    async fn certificates(&self) -> Result<Arc<Certificates>, StoreError>;
    /// Adds a partner's KEK; the label must be free.
    async fn add_partner(&self, partner: &Partner) -> Result<(), StoreError>;
    /// Deletes a partner's KEK; false where there is none.
    async fn delete_partner(&self, label: &KeyLabel) -> Result<bool, StoreError>;
    /// Keeps a KEK's certificate in the place of an older one, or none any more.
    async fn set_certificate(
        &self,
        kek: &KekHash,
        certificate: Option<&[u8]>,
    ) -> Result<(), StoreError>;
    /// The copies of KEKs, oldest first.
    async fn kek_copies(&self) -> Result<Arc<[KekCopy]>, StoreError>;
    /// Adds a copy.
    async fn add_kek_copy(&self, copy: &KekCopy) -> Result<(), StoreError>;

    /// Births that have begun and have not ended, oldest first.
    async fn births(&self) -> Result<Vec<Birth>, StoreError>;
    /// Notes that a birth begins. Durable when it returns.
    async fn begin_birth(&self, birth: &Birth) -> Result<(), StoreError>;
    /// Notes that nothing of a birth is left that is not whole.
    async fn end_birth(&self, ceremony: &uuid::Uuid) -> Result<(), StoreError>;

    /// The global key labels.
    async fn defaults(&self) -> Result<Defaults, StoreError>;
    /// Sets the global key labels.
    async fn set_defaults(&self, defaults: &Defaults) -> Result<(), StoreError>;

    /// Commits what is about to be given out, unless the request was given
    /// something before. Durable when it returns.
    async fn issue(&self, issuance: &Issuance) -> Result<Issued, StoreError>;
    /// What an earlier request of that key was given, with its digest.
    async fn answered(
        &self,
        request: &RequestKey,
    ) -> Result<Option<([u8; 32], VolumeKey)>, StoreError>;
    /// Where the data key of an EEDK comes from, if this EEDK was issued here.
    async fn issued(&self, eedk_sha256: &EedkDigest) -> Result<Option<Origin>, StoreError>;
    /// Where a data key comes from, if anything of it was issued here.
    async fn origin(&self, dki: &DataKeyId) -> Result<Option<Origin>, StoreError>;
    /// Notes that a drive stored (or did not store) what it was given for that
    /// request. None where the request gave nothing of that data key to that drive.
    async fn confirm(
        &self,
        request: &str,
        dki: &DataKeyId,
        drive: &DriveSerial,
        stored: bool,
        peer: &PeerId,
    ) -> Result<Option<VolumeKey>, StoreError>;
    /// The EEDKs of a data key that its cartridge should carry: the newest that a drive confirmed,
    /// else the newest of all.
    async fn data_key(&self, dki: &DataKeyId) -> Result<Option<VolumeKey>, StoreError>;
    /// Notes an opening of which nobody may learn whether it opened. Durable when it returns.
    async fn note_opening(&self, opening: &Opening) -> Result<(), StoreError>;
    /// Those that did not open and still count, oldest first.
    async fn failed_openings(&self) -> Result<Vec<FailedOpening>, StoreError>;
    /// Failures that count no longer.
    async fn forgive_openings(&self, whose: &Forgiven) -> Result<(), StoreError>;
    /// The secret of the throw-away keys, made at the first call.
    async fn guard_secret(&self) -> Result<[u8; 32], StoreError>;
    /// The history, newest first, of one volume or of all.
    async fn volumes(&self, volser: Option<&Volser>) -> Result<Vec<VolumeKey>, StoreError>;
}
