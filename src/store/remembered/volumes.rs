//! The history is too large to be remembered.

use async_trait::async_trait;

use super::Remembered;
use crate::key::DataKeyId;
use crate::store::{
    DataKeySets, Place, Store, StoreError, VolumeQuery, Volumes, VolumesFound, WriteOff,
};

#[async_trait]
impl<S: Store> Volumes for Remembered<S> {
    async fn find_volumes(
        &self,
        query: &VolumeQuery,
        limit: usize,
    ) -> Result<VolumesFound, StoreError> {
        self.store.find_volumes(query, limit).await
    }

    async fn walk_volumes(
        &self,
        query: &VolumeQuery,
        after: Option<&Place>,
        limit: usize,
    ) -> Result<Vec<Place>, StoreError> {
        self.store.walk_volumes(query, after, limit).await
    }

    async fn count_volumes(&self, query: &VolumeQuery, most: usize) -> Result<usize, StoreError> {
        self.store.count_volumes(query, most).await
    }

    async fn data_keys(&self, dkis: &[DataKeyId]) -> Result<Vec<DataKeySets>, StoreError> {
        self.store.data_keys(dkis).await
    }

    async fn write_off(&self, volume: &WriteOff) -> Result<(), StoreError> {
        self.store.write_off(volume).await
    }
}
