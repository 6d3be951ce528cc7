//! Nothing of audit chains is remembered: it is asked for once an hour.

use async_trait::async_trait;

use super::{Remembered, Store, StoreError};
use crate::audit::HeadMark;
use crate::store::{Anchored, ChainStore, SealKeyRow};

#[async_trait]
impl<S: Store> ChainStore for Remembered<S> {
    async fn seal_keys(&self) -> Result<Vec<SealKeyRow>, StoreError> {
        self.store.seal_keys().await
    }

    async fn add_seal_key(&self, key: &SealKeyRow) -> Result<(), StoreError> {
        self.store.add_seal_key(key).await
    }

    async fn anchor(&self, node: &str) -> Result<Option<Anchored>, StoreError> {
        self.store.anchor(node).await
    }

    async fn anchors(&self) -> Result<Vec<Anchored>, StoreError> {
        self.store.anchors().await
    }

    async fn add_anchor(&self, anchor: &Anchored) -> Result<bool, StoreError> {
        self.store.add_anchor(anchor).await
    }

    async fn chain_head(&self, node: &str) -> Result<Option<HeadMark>, StoreError> {
        self.store.chain_head(node).await
    }

    async fn set_chain_head(&self, node: &str, head: &HeadMark) -> Result<(), StoreError> {
        self.store.set_chain_head(node, head).await
    }
}
