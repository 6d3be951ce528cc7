//! Rekeys are worked through with the database only; a cartridge that is read meanwhile keeps the
//! EEDKs that it has.

use async_trait::async_trait;
use uuid::Uuid;

use super::Fleet;
use crate::key::DataKeyId;
use crate::store::{
    Issuance, Issued, RekeyCount, RekeyFailure, RekeyJob, RekeyPlace, RekeyState, Rekeys,
    StoreError, Unstored,
};

#[async_trait]
impl Rekeys for Fleet {
    async fn add_rekey(&self, job: &RekeyJob) -> Result<(), StoreError> {
        let job = job.clone();
        self.change(
            "rekeys",
            move |sql| async move { sql.add_rekey(&job).await },
        )
        .await
    }

    async fn rekeys(&self, limit: usize) -> Result<Vec<RekeyJob>, StoreError> {
        self.ask("rekeys", |sql| async move { sql.rekeys(limit).await })
            .await
    }

    async fn rekey_job(&self, id: &Uuid) -> Result<Option<RekeyJob>, StoreError> {
        self.ask("rekeys", |sql| async move { sql.rekey_job(id).await })
            .await
    }

    async fn running_rekeys(&self) -> Result<Vec<RekeyJob>, StoreError> {
        self.ask("rekeys", |sql| async move { sql.running_rekeys().await })
            .await
    }

    async fn take_rekey(&self, id: &Uuid, node: &str) -> Result<bool, StoreError> {
        let (id, node) = (*id, node.to_owned());
        self.change("rekeys", move |sql| async move {
            sql.take_rekey(&id, &node).await
        })
        .await
    }

    async fn advance_rekey(
        &self,
        id: &Uuid,
        node: &str,
        place: Option<RekeyPlace>,
        count: &RekeyCount,
        why: Option<&str>,
    ) -> Result<bool, StoreError> {
        let (id, node, count, why) = (*id, node.to_owned(), *count, why.map(str::to_owned));
        self.change("rekeys", move |sql| async move {
            sql.advance_rekey(&id, &node, place, &count, why.as_deref())
                .await
        })
        .await
    }

    async fn turn_rekey(
        &self,
        id: &Uuid,
        from: &[RekeyState],
        to: RekeyState,
        why: Option<&str>,
    ) -> Result<bool, StoreError> {
        let (id, from, why) = (*id, from.to_vec(), why.map(str::to_owned));
        self.change("rekeys", move |sql| async move {
            sql.turn_rekey(&id, &from, to, why.as_deref()).await
        })
        .await
    }

    async fn note_rekey_failure(
        &self,
        id: &Uuid,
        failure: &RekeyFailure,
    ) -> Result<(), StoreError> {
        let (id, failure) = (*id, failure.clone());
        self.change("rekeys", move |sql| async move {
            sql.note_rekey_failure(&id, &failure).await
        })
        .await
    }

    async fn rekey_failures(
        &self,
        id: &Uuid,
        limit: usize,
    ) -> Result<Vec<RekeyFailure>, StoreError> {
        self.ask("rekeys", |sql| async move {
            sql.rekey_failures(id, limit).await
        })
        .await
    }

    async fn issue_unmounted(&self, issuance: &Issuance) -> Result<Issued, StoreError> {
        let issuance = issuance.clone();
        self.change("the history", move |sql| async move {
            sql.issue_unmounted(&issuance).await
        })
        .await
    }

    // The cartridge's own EEDKs do meanwhile; the newer ones wait for its next mount.
    async fn unstored(&self, dki: &DataKeyId) -> Result<Option<Unstored>, StoreError> {
        let asked = self.ask("the history", |sql| async move { sql.unstored(dki).await });
        match asked.await {
            Err(StoreError::Outage { .. }) => Ok(None),
            answer => answer,
        }
    }

    async fn any_unstored(&self) -> Result<bool, StoreError> {
        let asked = self.ask("the history", |sql| async move { sql.any_unstored().await });
        match asked.await {
            Err(StoreError::Outage { .. }) => Ok(false),
            answer => answer,
        }
    }
}
