//! Backups: a KEK that is in one counts as kept at once.

use async_trait::async_trait;

use super::{Change, Remembered, Store, StoreError};
use crate::store::{Backup, Backups};

#[async_trait]
impl<S: Store> Backups for Remembered<S> {
    async fn add_backup(&self, backup: &Backup) -> Result<(), StoreError> {
        let _change = Change::begin(&self.memory);
        self.store.add_backup(backup).await
    }

    async fn backups(&self, most: u32) -> Result<Vec<Backup>, StoreError> {
        self.store.backups(most).await
    }
}
