//! What a store does with whole tables, and page by page with the history.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::merge::{Changes, TableDump};
use super::{StoreError, VolumeKey};
use crate::key::DataKeyId;

/// What came of taking a history in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumesTaken {
    /// New here.
    pub added: u64,
    /// Known here already.
    pub known: u64,
    /// Other EEDKs are here in their place; ours stay.
    pub other: u64,
}

/// What a store does with whole tables.
#[async_trait]
pub trait Tables: Send + Sync {
    /// Drives, defaults, KEKs and partners, as they were at one moment.
    async fn dump_tables(&self) -> Result<TableDump, StoreError>;
    /// Writes all of the changes, or none where a row has changed since it was
    /// read ([`StoreError::Changed`]).
    async fn apply(&self, changes: &Changes) -> Result<(), StoreError>;
    /// So many of the history after one of it, in the order of data key and generation.
    async fn volumes_after(
        &self,
        after: Option<(DataKeyId, u32)>,
        most: u32,
    ) -> Result<Vec<VolumeKey>, StoreError>;
    /// Takes in what of another's history is not known here, or says only how much that is. Data
    /// keys that are new by it are of foreign origin.
    async fn take_volumes(
        &self,
        keys: &[VolumeKey],
        operator: &str,
        apply: bool,
    ) -> Result<VolumesTaken, StoreError>;
}
