//! What a server beside this one reads of the state, and what is taken in of its history.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::merge::{DefaultsRow, DriveRow};
use super::{EedkState, StoreError, StoredEedk};
use crate::bridge::message::Custody;
use crate::drive::DriveSerial;
use crate::key::DataKeyId;
use crate::sync::wire::Extent;
use crate::tls::PeerId;
use crate::volser::Volser;

/// A row of the history: what a generation of EEDKs became. The first of each has all of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryRow {
    /// Its number there, from 1, greater than those before.
    pub id: i64,
    /// The data key.
    pub dki: DataKeyId,
    /// Whether the data key first came in EEDKs that were not issued there.
    pub foreign: bool,
    /// The generation's number there. Another server may have another generation of that number:
    /// what a generation is, its EEDKs say.
    pub generation: u32,
    /// What it became.
    pub state: EedkState,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// Who said so.
    pub peer: String,
    /// SHA-256 of its EEDKs' DER, hexadecimal.
    pub eedks: Vec<String>,
    /// What was given, where `state` is `issued`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub given: Option<Box<Given>>,
}

/// One generation of EEDKs of a data key, as it was given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Given {
    /// The cartridge.
    pub volser: Volser,
    /// The drive.
    pub drive: DriveSerial,
    /// The token that made it, by its name there.
    pub token: String,
    /// Where the data key was in clear.
    pub custody: Custody,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub created: OffsetDateTime,
    /// The server that gave it.
    pub server: String,
    /// The job that it was for.
    pub job: Option<String>,
    /// One or two EEDKs.
    pub eedks: Vec<StoredEedk>,
    /// The request that it answered, so that a retry of it gets the same here.
    pub request: Option<GivenRequest>,
}

/// A request that was answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GivenRequest {
    /// Who asked.
    pub peer: PeerId,
    /// Its id for the request.
    pub id: String,
    /// SHA-256 of the request's meaning.
    #[serde(with = "crate::base64_bytes")]
    pub digest: Vec<u8>,
}

/// No row is older: 2000-01-01, seconds since 1970.
const EARLIEST: i64 = 946_684_800;

/// How much later than its first row a generation may say that it was made.
const MADE: time::Duration = time::Duration::MINUTE;

/// Longest text of a row that another server gives, bytes.
const TEXT: usize = 512;

impl HistoryRow {
    /// What is wrong with it, where another server gave it.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        let Self {
            id,
            dki,
            foreign: _,
            generation,
            state,
            at,
            peer,
            eedks,
            given,
        } = self;
        let fault = |what: &str| Some(format!("row {id} of the history: {what}"));
        if at.unix_timestamp() < EARLIEST {
            return fault("it is older than any");
        }
        if *generation == 0 || peer.len() > TEXT {
            return fault("its generation or its peer cannot be");
        }
        if !(1..=2).contains(&eedks.len())
            || eedks.iter().any(|digest| {
                digest.len() != 64 || !digest.bytes().all(|byte| byte.is_ascii_hexdigit())
            })
        {
            return fault("a generation has one or two EEDKs");
        }
        let Some(given) = given else {
            return (*state == EedkState::Issued)
                .then(|| fault("it says issued, and not what"))
                .flatten();
        };
        let Given {
            volser: _,
            drive: _,
            token,
            custody: _,
            created,
            server,
            job,
            eedks: stored,
            request,
        } = &**given;
        if *state != EedkState::Issued {
            return fault("only what was issued is given");
        }
        let digests: Vec<String> = stored
            .iter()
            .map(|stored| hex::encode(stored.eedk.digest()))
            .collect();
        if digests != *eedks || stored.iter().any(|stored| stored.eedk.dki() != *dki) {
            return fault("its EEDKs are not those that it names");
        }
        if created.unix_timestamp() < EARLIEST || *created > *at + MADE {
            return fault("it was not made when it says");
        }
        if request
            .as_ref()
            .is_some_and(|request| request.digest.len() != 32)
        {
            return fault("the digest of a request has 32 bytes");
        }
        let texts = [Some(token), Some(server), job.as_ref()];
        let id = request.as_ref().map(|request| &request.id);
        if texts
            .into_iter()
            .chain([id])
            .flatten()
            .any(|text| text.len() > TEXT)
        {
            return fault("a text is too long");
        }
        None
    }

    /// What tells it from a row of another history with the same number.
    #[must_use]
    pub fn mark(&self) -> String {
        let first = self.eedks.first().map_or("", String::as_str);
        format!("{} {} {first}", self.state, self.at.unix_timestamp_nanos())
    }
}

/// How far another server's history was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reach {
    /// The last row before which no other can appear any more.
    pub id: i64,
    /// Its [`HistoryRow::mark`].
    pub mark: String,
}

/// What is known of the syncs from a peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Synced {
    /// How far its history was read.
    pub reach: Option<Reach>,
    /// When a sync last came to its end.
    pub at: Option<OffsetDateTime>,
}

/// What came of taking history in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TakenIn {
    /// Generations that were new.
    pub generations: u64,
    /// Of these, generations whose number was another's here, and that have the next free one.
    pub renumbered: u64,
    /// States that were new.
    pub states: u64,
    /// Generations of data keys that one of the two servers holds for its own and the other does
    /// not; they are left out.
    pub unlike: u64,
}

/// What servers that share no database read and note.
#[async_trait]
pub trait SyncTables: Send + Sync {
    /// Rows of the drive table, deletions among them, by serial, after that one.
    async fn drive_rows(&self, after: &str, most: u32) -> Result<Vec<DriveRow>, StoreError>;
    /// The whole table's extent.
    async fn drive_extent(&self) -> Result<Extent, StoreError>;
    /// The global key labels and when they were set.
    async fn defaults_row(&self) -> Result<DefaultsRow, StoreError>;
    /// The number of the newest row of the history; 0 where there is none.
    async fn history_end(&self) -> Result<i64, StoreError>;
    /// Rows of the history from that number on, oldest first.
    async fn history_rows(&self, from: i64, most: u32) -> Result<Vec<HistoryRow>, StoreError>;
    /// Takes rows of a peer's history in, all or none. Nothing that is there is changed: a
    /// generation is added where none has its EEDKs, a state where it is further on. `reach` is
    /// noted with it. Only tried where `dry`.
    async fn take_history(
        &self,
        peer: &PeerId,
        rows: &[HistoryRow],
        reach: Option<&Reach>,
        dry: bool,
    ) -> Result<TakenIn, StoreError>;
    /// What is known of the syncs from a peer.
    async fn synced(&self, peer: &PeerId) -> Result<Synced, StoreError>;
    /// Notes that a sync from a peer came to its end.
    async fn note_synced(&self, peer: &PeerId, at: OffsetDateTime) -> Result<(), StoreError>;
}
