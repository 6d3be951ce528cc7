//! What one server tells another: versioned JSON over mutual TLS.
//!
//! ```text
//! GET /v1/sync/head                   Head: version, clock, extent of the tables, defaults, policy
//! GET /v1/sync/drives?after=SERIAL    Page<DriveRow>, by serial
//! GET /v1/sync/keks?after=N           Page<KekFact>
//! GET /v1/sync/history?from=ID        Page<HistoryRow>, by id, ID's own row first
//! ```
//!
//! An answer has 1 MiB at most. A reader knows by the head's digest whether the
//! drives that it has are the whole table.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;

use crate::key::{KekHash, KeyLabel};
use crate::store::KekState;
use crate::store::merge::{DefaultsRow, DriveRow};

/// The form of these answers. A reader refuses another.
pub const VERSION: u32 = 1;

/// Largest answer, bytes.
pub const ANSWER: usize = 1 << 20;

/// Most drives of a page.
pub const DRIVES: u32 = 500;

/// Most rows of the history of a page.
pub const HISTORY: u32 = 250;

/// Most KEKs of a page.
pub const KEKS: usize = 200;

/// What a sync begins with, and ends with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// [`VERSION`]
    pub version: u32,
    /// The server's node name.
    pub node: String,
    /// Its clock.
    #[serde(with = "time::serde::rfc3339")]
    pub now: OffsetDateTime,
    /// Its drive table.
    pub drives: Extent,
    /// Its newest row of the history; 0 where there is none.
    pub history: i64,
    /// Its global key labels.
    pub defaults: DefaultsRow,
    /// `[policy]` of its configuration.
    pub policy: serde_json::Value,
    /// The newest seal of its audit chain.
    #[serde(default)]
    pub seal: Option<SealHeld>,
}

/// A seal of an audit chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealHeld {
    /// Its number.
    pub number: u64,
    /// The sequence number of its record.
    pub seq: u64,
    /// The hash of its record, 64 hexadecimal digits.
    pub hash: String,
}

/// How large a drive table is, and which.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// Rows, deletions among them.
    pub rows: u64,
    /// SHA-256 over serial and time of each row, by serial; hexadecimal.
    pub digest: String,
}

/// An [`Extent`] under way.
#[derive(Debug, Default)]
pub struct Measure {
    rows: u64,
    digest: Sha256,
}

impl Measure {
    /// The next row, by serial.
    pub fn add(&mut self, serial: &str, updated: OffsetDateTime, deleted: bool) {
        self.rows += 1;
        self.digest.update(serial);
        self.digest.update([0, u8::from(deleted)]);
        self.digest
            .update(updated.unix_timestamp_nanos().to_be_bytes());
    }

    /// All of it.
    #[must_use]
    pub fn extent(self) -> Extent {
        Extent {
            rows: self.rows,
            digest: hex::encode(self.digest.finalize()),
        }
    }

    /// The extent of these rows.
    #[must_use]
    pub fn of(rows: &[DriveRow]) -> Extent {
        let mut measure = Self::default();
        for row in rows {
            measure.add(row.drive.serial.as_str(), row.updated, row.deleted);
        }
        measure.extent()
    }
}

/// A part of a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page<T> {
    /// [`VERSION`]
    pub version: u32,
    /// Its rows.
    pub rows: Vec<T>,
    /// What to ask for next; none at the end.
    pub next: Option<String>,
}

/// What a server knows of a KEK: to compare with, never to take over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KekFact {
    /// Its label there.
    pub label: KeyLabel,
    /// SHA-256 over its `SubjectPublicKeyInfo`.
    pub hash: KekHash,
    /// Whether a token there holds its private half, or did when it was last seen.
    pub held: bool,
    /// Whether the label is pinned to it there.
    pub registered: bool,
    /// What it may be used for there.
    #[serde(default)]
    pub state: KekState,
    /// A partner's certificate, DER: a proposal. It counts once an operator here has confirmed it,
    /// since the seal of a partner's row is of this site's tokens.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        with = "crate::base64_bytes::maybe"
    )]
    pub partner: Option<Vec<u8>>,
}
