//! Whole tables: read past the memory, and written so that it forgets.

use async_trait::async_trait;

use super::{Change, Remembered, Store, StoreError};
use crate::key::DataKeyId;
use crate::store::VolumeKey;
use crate::store::merge::{Changes, TableDump, Tables, VolumesTaken};

#[async_trait]
impl<S: Store> Tables for Remembered<S> {
    async fn dump_tables(&self) -> Result<TableDump, StoreError> {
        self.store.dump_tables().await
    }

    async fn apply(&self, changes: &Changes) -> Result<(), StoreError> {
        let _change = Change::begin(&self.memory);
        self.store.apply(changes).await
    }

    async fn volumes_after(
        &self,
        after: Option<(DataKeyId, u32)>,
        most: u32,
    ) -> Result<Vec<VolumeKey>, StoreError> {
        self.store.volumes_after(after, most).await
    }

    async fn take_volumes(
        &self,
        keys: &[VolumeKey],
        operator: &str,
        apply: bool,
    ) -> Result<VolumesTaken, StoreError> {
        self.store.take_volumes(keys, operator, apply).await
    }
}
