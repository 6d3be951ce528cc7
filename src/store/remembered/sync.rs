//! What servers beside this one read, past the memory; the history only grows.

use async_trait::async_trait;
use time::OffsetDateTime;

use super::{Remembered, Store, StoreError};
use crate::store::merge::{DefaultsRow, DriveRow};
use crate::store::sync::{HistoryRow, Reach, SyncTables, Synced, TakenIn};
use crate::sync::wire::Extent;
use crate::tls::PeerId;

#[async_trait]
impl<S: Store> SyncTables for Remembered<S> {
    async fn drive_rows(&self, after: &str, most: u32) -> Result<Vec<DriveRow>, StoreError> {
        self.store.drive_rows(after, most).await
    }

    async fn drive_extent(&self) -> Result<Extent, StoreError> {
        self.store.drive_extent().await
    }

    async fn defaults_row(&self) -> Result<DefaultsRow, StoreError> {
        self.store.defaults_row().await
    }

    async fn history_end(&self) -> Result<i64, StoreError> {
        self.store.history_end().await
    }

    async fn history_rows(&self, from: i64, most: u32) -> Result<Vec<HistoryRow>, StoreError> {
        self.store.history_rows(from, most).await
    }

    async fn take_history(
        &self,
        peer: &PeerId,
        rows: &[HistoryRow],
        reach: Option<&Reach>,
        dry: bool,
    ) -> Result<TakenIn, StoreError> {
        self.store.take_history(peer, rows, reach, dry).await
    }

    async fn synced(&self, peer: &PeerId) -> Result<Synced, StoreError> {
        self.store.synced(peer).await
    }

    async fn note_synced(&self, peer: &PeerId, at: OffsetDateTime) -> Result<(), StoreError> {
        self.store.note_synced(peer, at).await
    }
}
