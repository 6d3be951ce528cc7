//! Nothing of the servers is remembered.

use async_trait::async_trait;

use super::Remembered;
use crate::store::{KeyServer, Servers, Store, StoreError};

#[async_trait]
impl<S: Store> Servers for Remembered<S> {
    async fn tell(&self, server: &KeyServer) -> Result<Option<KeyServer>, StoreError> {
        self.store.tell(server).await
    }

    async fn servers(&self) -> Result<Vec<KeyServer>, StoreError> {
        self.store.servers().await
    }

    async fn forget_server(&self, node: &str) -> Result<bool, StoreError> {
        self.store.forget_server(node).await
    }
}
