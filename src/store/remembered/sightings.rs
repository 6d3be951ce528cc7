//! What drives showed; a drive that is discovered is a change of the drive table.

use async_trait::async_trait;

use super::{Change, Remembered};
use crate::store::sightings::{Discovered, Seen, Sighting, Sightings, Waiting};
use crate::store::{Drive, Store, StoreError};

#[async_trait]
impl<S: Store> Sightings for Remembered<S> {
    async fn discover(
        &self,
        drive: &Drive,
        sighting: &Sighting,
        waiting: Waiting,
    ) -> Result<Discovered, StoreError> {
        let _change = Change::begin(&self.memory);
        self.store.discover(drive, sighting, waiting).await
    }

    async fn note_sighting(&self, sighting: &Sighting, other: bool) -> Result<(), StoreError> {
        self.store.note_sighting(sighting, other).await
    }

    async fn sightings(&self) -> Result<Vec<Seen>, StoreError> {
        self.store.sightings().await
    }
}
