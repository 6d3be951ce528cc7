//! Of rekeys only that there is nothing to be stored is remembered: every resolve asks for it.

use async_trait::async_trait;
use uuid::Uuid;

use super::{Change, Read, Remembered};
use crate::key::DataKeyId;
use crate::store::{
    Issuance, Issued, RekeyCount, RekeyFailure, RekeyJob, RekeyPlace, RekeyState, Rekeys, Store,
    StoreError, Unstored,
};

#[async_trait]
impl<S: Store> Rekeys for Remembered<S> {
    async fn add_rekey(&self, job: &RekeyJob) -> Result<(), StoreError> {
        self.store.add_rekey(job).await
    }

    async fn rekeys(&self, limit: usize) -> Result<Vec<RekeyJob>, StoreError> {
        self.store.rekeys(limit).await
    }

    async fn rekey_job(&self, id: &Uuid) -> Result<Option<RekeyJob>, StoreError> {
        self.store.rekey_job(id).await
    }

    async fn running_rekeys(&self) -> Result<Vec<RekeyJob>, StoreError> {
        self.store.running_rekeys().await
    }

    async fn take_rekey(&self, id: &Uuid, node: &str) -> Result<bool, StoreError> {
        self.store.take_rekey(id, node).await
    }

    async fn advance_rekey(
        &self,
        id: &Uuid,
        node: &str,
        place: Option<RekeyPlace>,
        count: &RekeyCount,
        why: Option<&str>,
    ) -> Result<bool, StoreError> {
        self.store.advance_rekey(id, node, place, count, why).await
    }

    async fn turn_rekey(
        &self,
        id: &Uuid,
        from: &[RekeyState],
        to: RekeyState,
        why: Option<&str>,
    ) -> Result<bool, StoreError> {
        self.store.turn_rekey(id, from, to, why).await
    }

    async fn note_rekey_failure(
        &self,
        id: &Uuid,
        failure: &RekeyFailure,
    ) -> Result<(), StoreError> {
        self.store.note_rekey_failure(id, failure).await
    }

    async fn rekey_failures(
        &self,
        id: &Uuid,
        limit: usize,
    ) -> Result<Vec<RekeyFailure>, StoreError> {
        self.store.rekey_failures(id, limit).await
    }

    async fn issue_unmounted(&self, issuance: &Issuance) -> Result<Issued, StoreError> {
        // The first one is asked for at once.
        let _change = match self.any_unstored().await {
            Ok(true) => None,
            Ok(false) | Err(_) => Some(Change::begin(&self.memory)),
        };
        self.store.issue_unmounted(issuance).await
    }

    async fn unstored(&self, dki: &DataKeyId) -> Result<Option<Unstored>, StoreError> {
        if !self.any_unstored().await? {
            return Ok(None);
        }
        self.store.unstored(dki).await
    }

    async fn any_unstored(&self) -> Result<bool, StoreError> {
        match self.look(|memory| self.fresh(memory.unstored.as_ref())) {
            Ok(any) => Ok(any),
            Err(asked) => {
                let any = self.store.any_unstored().await?;
                self.keep(asked, |memory, at| {
                    memory.unstored = Some(Read { value: any, at });
                });
                Ok(any)
            }
        }
    }
}
