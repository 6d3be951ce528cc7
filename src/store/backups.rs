//! Backups that were made, and which KEKs are in them.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::StoreError;
use crate::key::KekHash;

/// A backup that was written and read back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backup {
    /// Its own number.
    pub id: uuid::Uuid,
    /// When it was begun: what came after is not in it.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// The server whose it is, by its node name.
    pub server: String,
    /// The file, as it was named.
    pub file: String,
    /// Its length, bytes.
    pub bytes: u64,
    /// SHA-256 of the file, hexadecimal.
    pub digest: String,
    /// What is in it, in a few words.
    pub contents: String,
    /// KEKs whose private halves are in it.
    pub keks: Vec<KekHash>,
}

/// What a state knows of backups. Rows are added and never changed.
#[async_trait]
pub trait Backups: Send + Sync {
    /// Notes one.
    async fn add_backup(&self, backup: &Backup) -> Result<(), StoreError>;
    /// The newest ones, newest first.
    async fn backups(&self, most: u32) -> Result<Vec<Backup>, StoreError>;
}
