//! Nothing of approvals is remembered: what one server decides counts for all at once.

use async_trait::async_trait;
use time::OffsetDateTime;

use super::Remembered;
use crate::store::approvals::{Approval, ApprovalState, Approvals, Decision, Kept};
use crate::store::{Store, StoreError};

#[async_trait]
impl<S: Store> Approvals for Remembered<S> {
    async fn ask_approval(&self, approval: &Approval, most: u32) -> Result<Kept, StoreError> {
        self.store.ask_approval(approval, most).await
    }

    async fn approvals(&self) -> Result<Vec<Approval>, StoreError> {
        self.store.approvals().await
    }

    async fn approval(&self, id: &str) -> Result<Option<Approval>, StoreError> {
        self.store.approval(id).await
    }

    async fn decide_approval(&self, id: &str, decision: &Decision) -> Result<bool, StoreError> {
        self.store.decide_approval(id, decision).await
    }

    async fn end_approval(
        &self,
        id: &str,
        state: ApprovalState,
        outcome: &str,
    ) -> Result<(), StoreError> {
        self.store.end_approval(id, state, outcome).await
    }

    async fn use_permit(
        &self,
        asked_by: &str,
        words: &str,
        now: OffsetDateTime,
    ) -> Result<Option<Approval>, StoreError> {
        self.store.use_permit(asked_by, words, now).await
    }
}
