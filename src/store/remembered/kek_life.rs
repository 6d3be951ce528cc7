//! States of KEKs are remembered, as every request asks for them; moves and schedules are not.

use std::sync::Arc;

use async_trait::async_trait;
use time::OffsetDateTime;

use super::{Change, Read, Remembered};
use crate::key::{KekHash, KeyLabel};
use crate::store::{
    KekLife, KekMove, KekSchedule, KekStates, Moved, StateChange, Store, StoreError,
};
use crate::volser::Volser;

#[async_trait]
impl<S: Store> KekLife for Remembered<S> {
    async fn kek_states(&self) -> Result<Arc<KekStates>, StoreError> {
        match self.look(|memory| self.fresh(memory.states.as_ref())) {
            Ok(states) => Ok(states),
            Err(asked) => {
                let states = self.store.kek_states().await?;
                self.keep(asked, |memory, at| {
                    let value = Arc::clone(&states);
                    memory.states = Some(Read { value, at });
                });
                Ok(states)
            }
        }
    }

    async fn set_kek_state(&self, change: &StateChange) -> Result<bool, StoreError> {
        let _change = Change::begin(&self.memory);
        self.store.set_kek_state(change).await
    }

    async fn overwritten_since(
        &self,
        kek: &KekHash,
        since: OffsetDateTime,
        most: usize,
    ) -> Result<Vec<Volser>, StoreError> {
        self.store.overwritten_since(kek, since, most).await
    }

    async fn move_kek(&self, former: &KeyLabel, successor: &KeyLabel) -> Result<Moved, StoreError> {
        let _change = Change::begin(&self.memory);
        self.store.move_kek(former, successor).await
    }

    async fn kek_moves(&self) -> Result<Vec<KekMove>, StoreError> {
        self.store.kek_moves().await
    }

    async fn put_kek_move(&self, planned: &KekMove) -> Result<(), StoreError> {
        self.store.put_kek_move(planned).await
    }

    async fn kek_schedules(&self) -> Result<Vec<KekSchedule>, StoreError> {
        self.store.kek_schedules().await
    }

    async fn put_kek_schedule(&self, schedule: &KekSchedule) -> Result<(), StoreError> {
        self.store.put_kek_schedule(schedule).await
    }

    async fn note_foreign(&self, kek: &KekHash, volser: Option<&Volser>) -> Result<(), StoreError> {
        self.store.note_foreign(kek, volser).await
    }

    async fn foreign_keks(&self) -> Result<Vec<(KekHash, String)>, StoreError> {
        self.store.foreign_keks().await
    }

    async fn remove_kek_schedule(&self, label: &KeyLabel) -> Result<bool, StoreError> {
        self.store.remove_kek_schedule(label).await
    }

    async fn take_kek_schedule(&self, label: &KeyLabel, node: &str) -> Result<bool, StoreError> {
        self.store.take_kek_schedule(label, node).await
    }

    async fn advance_kek_schedule(
        &self,
        label: &KeyLabel,
        next: &KekSchedule,
    ) -> Result<(), StoreError> {
        self.store.advance_kek_schedule(label, next).await
    }
}
