//! States of KEKs are in the cached table; moves and schedules are asked of the database.

use std::sync::Arc;

use async_trait::async_trait;
use time::OffsetDateTime;

use super::Fleet;
use super::snapshot::Snapshot;
use crate::key::{KekHash, KeyLabel};
use crate::store::{KekLife, KekMove, KekSchedule, KekStates, Moved, StateChange, StoreError};
use crate::volser::Volser;

#[async_trait]
impl KekLife for Fleet {
    // A KEK that was retired is not written under in an outage either.
    async fn kek_states(&self) -> Result<Arc<KekStates>, StoreError> {
        self.either(
            "the states of KEKs",
            |sql| async move { sql.kek_states().await },
            Snapshot::kek_states,
        )
        .await
    }

    async fn set_kek_state(&self, change: &StateChange) -> Result<bool, StoreError> {
        let change = change.clone();
        self.change("the states of KEKs", move |sql| async move {
            sql.set_kek_state(&change).await
        })
        .await
    }

    async fn overwritten_since(
        &self,
        kek: &KekHash,
        since: OffsetDateTime,
        most: usize,
    ) -> Result<Vec<Volser>, StoreError> {
        self.ask("the history", |sql| async move {
            sql.overwritten_since(kek, since, most).await
        })
        .await
    }

    async fn move_kek(&self, former: &KeyLabel, successor: &KeyLabel) -> Result<Moved, StoreError> {
        let (former, successor) = (former.clone(), successor.clone());
        self.change("the drive table", move |sql| async move {
            sql.move_kek(&former, &successor).await
        })
        .await
    }

    async fn kek_moves(&self) -> Result<Vec<KekMove>, StoreError> {
        self.ask("rotations", |sql| async move { sql.kek_moves().await })
            .await
    }

    async fn put_kek_move(&self, planned: &KekMove) -> Result<(), StoreError> {
        let planned = planned.clone();
        self.change("rotations", move |sql| async move {
            sql.put_kek_move(&planned).await
        })
        .await
    }

    async fn kek_schedules(&self) -> Result<Vec<KekSchedule>, StoreError> {
        self.ask("rollovers", |sql| async move { sql.kek_schedules().await })
            .await
    }

    async fn put_kek_schedule(&self, schedule: &KekSchedule) -> Result<(), StoreError> {
        let schedule = schedule.clone();
        self.change("rollovers", move |sql| async move {
            sql.put_kek_schedule(&schedule).await
        })
        .await
    }

    async fn note_foreign(&self, kek: &KekHash, volser: Option<&Volser>) -> Result<(), StoreError> {
        let (kek, volser) = (*kek, volser.cloned());
        self.change("the KEKs", move |sql| async move {
            sql.note_foreign(&kek, volser.as_ref()).await
        })
        .await
    }

    async fn foreign_keks(&self) -> Result<Vec<(KekHash, String)>, StoreError> {
        self.ask("the KEKs", |sql| async move { sql.foreign_keks().await })
            .await
    }

    async fn remove_kek_schedule(&self, label: &KeyLabel) -> Result<bool, StoreError> {
        let label = label.clone();
        self.change("rollovers", move |sql| async move {
            sql.remove_kek_schedule(&label).await
        })
        .await
    }

    async fn take_kek_schedule(&self, label: &KeyLabel, node: &str) -> Result<bool, StoreError> {
        let (label, node) = (label.clone(), node.to_owned());
        self.change("rollovers", move |sql| async move {
            sql.take_kek_schedule(&label, &node).await
        })
        .await
    }

    async fn advance_kek_schedule(
        &self,
        label: &KeyLabel,
        next: &KekSchedule,
    ) -> Result<(), StoreError> {
        let (label, next) = (label.clone(), next.clone());
        self.change("rollovers", move |sql| async move {
            sql.advance_kek_schedule(&label, &next).await
        })
        .await
    }
}
