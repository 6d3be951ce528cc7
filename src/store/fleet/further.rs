//! What only operators and their servers ask of the state: from the database, or not at all. What a
//! cartridge's drive asks for as well has its answer without it.

use std::sync::Arc;

use async_trait::async_trait;
use time::OffsetDateTime;
use uuid::Uuid;

use super::Fleet;
use super::snapshot::Snapshot;
use crate::audit::HeadMark;
use crate::key::{DataKeyId, KekHash, KeyLabel};
use crate::store::merge::{Changes, DefaultsRow, DriveRow, TableDump, Tables, VolumesTaken};
use crate::store::sync::{HistoryRow, Reach, SyncTables, Synced, TakenIn};
use crate::store::{
    Anchored, Approval, ApprovalState, Approvals, Backup, Backups, ChainStore, DataKeySets,
    Decision, Discovered, Drive, Issuance, Issued, KekLife, KekMove, KekSchedule, KekStates, Kept,
    Moved, Place, RekeyCount, RekeyFailure, RekeyJob, RekeyPlace, RekeyState, Rekeys, SealKeyRow,
    Seen, Sighting, Sightings, StateChange, StoreError, Unstored, VolumeKey, VolumeQuery, Volumes,
    VolumesFound, Waiting, WriteOff,
};
use crate::sync::wire::Extent;
use crate::tls::PeerId;
use crate::volser::Volser;

#[async_trait]
impl Tables for Fleet {
    async fn dump_tables(&self) -> Result<TableDump, StoreError> {
        self.ask("the tables", |sql| async move { sql.dump_tables().await })
            .await
    }

    async fn apply(&self, changes: &Changes) -> Result<(), StoreError> {
        let changes = changes.clone();
        self.change(
            "the tables",
            move |sql| async move { sql.apply(&changes).await },
        )
        .await
    }

    async fn volumes_after(
        &self,
        after: Option<(DataKeyId, u32)>,
        most: u32,
    ) -> Result<Vec<VolumeKey>, StoreError> {
        self.ask("the history", |sql| async move {
            sql.volumes_after(after, most).await
        })
        .await
    }

    async fn take_volumes(
        &self,
        keys: &[VolumeKey],
        operator: &str,
        apply: bool,
    ) -> Result<VolumesTaken, StoreError> {
        let (keys, operator) = (keys.to_vec(), operator.to_owned());
        self.change("the history", move |sql| async move {
            sql.take_volumes(&keys, &operator, apply).await
        })
        .await
    }
}

#[async_trait]
impl Backups for Fleet {
    async fn add_backup(&self, backup: &Backup) -> Result<(), StoreError> {
        let backup = backup.clone();
        self.change("the list of backups", move |sql| async move {
            sql.add_backup(&backup).await
        })
        .await
    }

    async fn backups(&self, most: u32) -> Result<Vec<Backup>, StoreError> {
        self.either(
            "the list of backups",
            |sql| async move { sql.backups(most).await },
            |table| table.backups.clone(),
        )
        .await
    }
}

#[async_trait]
impl SyncTables for Fleet {
    async fn drive_rows(&self, after: &str, most: u32) -> Result<Vec<DriveRow>, StoreError> {
        self.ask("the drive table", |sql| async move {
            sql.drive_rows(after, most).await
        })
        .await
    }

    async fn drive_extent(&self) -> Result<Extent, StoreError> {
        self.ask(
            "the drive table",
            |sql| async move { sql.drive_extent().await },
        )
        .await
    }

    async fn defaults_row(&self) -> Result<DefaultsRow, StoreError> {
        self.ask(
            "the defaults",
            |sql| async move { sql.defaults_row().await },
        )
        .await
    }

    async fn history_end(&self) -> Result<i64, StoreError> {
        self.ask("the history", |sql| async move { sql.history_end().await })
            .await
    }

    async fn history_rows(&self, from: i64, most: u32) -> Result<Vec<HistoryRow>, StoreError> {
        self.ask("the history", |sql| async move {
            sql.history_rows(from, most).await
        })
        .await
    }

    async fn take_history(
        &self,
        peer: &PeerId,
        rows: &[HistoryRow],
        reach: Option<&Reach>,
        dry: bool,
    ) -> Result<TakenIn, StoreError> {
        let (peer, rows, reach) = (peer.clone(), rows.to_vec(), reach.cloned());
        self.change("the history", move |sql| async move {
            sql.take_history(&peer, &rows, reach.as_ref(), dry).await
        })
        .await
    }

    async fn synced(&self, peer: &PeerId) -> Result<Synced, StoreError> {
        self.ask("earlier syncs", |sql| async move { sql.synced(peer).await })
            .await
    }

    async fn note_synced(&self, peer: &PeerId, at: OffsetDateTime) -> Result<(), StoreError> {
        let peer = peer.clone();
        self.change("earlier syncs", move |sql| async move {
            sql.note_synced(&peer, at).await
        })
        .await
    }
}

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

#[async_trait]
impl Volumes for Fleet {
    async fn find_volumes(
        &self,
        query: &VolumeQuery,
        limit: usize,
    ) -> Result<VolumesFound, StoreError> {
        self.ask("the history", |sql| async move {
            sql.find_volumes(query, limit).await
        })
        .await
    }

    async fn walk_volumes(
        &self,
        query: &VolumeQuery,
        after: Option<&Place>,
        limit: usize,
    ) -> Result<Vec<Place>, StoreError> {
        self.ask("the history", |sql| async move {
            sql.walk_volumes(query, after, limit).await
        })
        .await
    }

    async fn count_volumes(&self, query: &VolumeQuery, most: usize) -> Result<usize, StoreError> {
        self.ask("the history", |sql| async move {
            sql.count_volumes(query, most).await
        })
        .await
    }

    async fn data_keys(&self, dkis: &[DataKeyId]) -> Result<Vec<DataKeySets>, StoreError> {
        self.ask(
            "the history",
            |sql| async move { sql.data_keys(dkis).await },
        )
        .await
    }

    async fn write_off(&self, volume: &WriteOff) -> Result<(), StoreError> {
        let volume = volume.clone();
        self.change("the history", move |sql| async move {
            sql.write_off(&volume).await
        })
        .await
    }
}

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

#[async_trait]
impl Approvals for Fleet {
    async fn ask_approval(&self, approval: &Approval, most: u32) -> Result<Kept, StoreError> {
        let approval = approval.clone();
        self.change("approvals", move |sql| async move {
            sql.ask_approval(&approval, most).await
        })
        .await
    }

    async fn approvals(&self) -> Result<Vec<Approval>, StoreError> {
        self.ask("approvals", |sql| async move { sql.approvals().await })
            .await
    }

    async fn approval(&self, id: &str) -> Result<Option<Approval>, StoreError> {
        self.ask("approvals", |sql| async move { sql.approval(id).await })
            .await
    }

    async fn decide_approval(&self, id: &str, decision: &Decision) -> Result<bool, StoreError> {
        let (id, decision) = (id.to_owned(), decision.clone());
        self.change("approvals", move |sql| async move {
            sql.decide_approval(&id, &decision).await
        })
        .await
    }

    async fn end_approval(
        &self,
        id: &str,
        state: ApprovalState,
        outcome: &str,
    ) -> Result<(), StoreError> {
        let (id, outcome) = (id.to_owned(), outcome.to_owned());
        self.change("approvals", move |sql| async move {
            sql.end_approval(&id, state, &outcome).await
        })
        .await
    }

    async fn use_permit(
        &self,
        asked_by: &str,
        words: &str,
        now: OffsetDateTime,
    ) -> Result<Option<Approval>, StoreError> {
        let (asked_by, words) = (asked_by.to_owned(), words.to_owned());
        self.change("approvals", move |sql| async move {
            sql.use_permit(&asked_by, &words, now).await
        })
        .await
    }
}

#[async_trait]
impl Sightings for Fleet {
    async fn discover(
        &self,
        drive: &Drive,
        sighting: &Sighting,
        waiting: Waiting,
    ) -> Result<Discovered, StoreError> {
        let (drive, sighting) = (drive.clone(), sighting.clone());
        self.change("the drive table", move |sql| async move {
            sql.discover(&drive, &sighting, waiting).await
        })
        .await
    }

    async fn note_sighting(&self, sighting: &Sighting, other: bool) -> Result<(), StoreError> {
        let sighting = sighting.clone();
        self.change("the drive table", move |sql| async move {
            sql.note_sighting(&sighting, other).await
        })
        .await
    }

    async fn sightings(&self) -> Result<Vec<Seen>, StoreError> {
        self.ask(
            "the drive table",
            |sql| async move { sql.sightings().await },
        )
        .await
    }
}

#[async_trait]
impl ChainStore for Fleet {
    async fn seal_keys(&self) -> Result<Vec<SealKeyRow>, StoreError> {
        self.ask(
            "the keys that seal",
            |sql| async move { sql.seal_keys().await },
        )
        .await
    }

    async fn add_seal_key(&self, key: &SealKeyRow) -> Result<(), StoreError> {
        let key = key.clone();
        self.change("the keys that seal", move |sql| async move {
            sql.add_seal_key(&key).await
        })
        .await
    }

    async fn anchor(&self, node: &str) -> Result<Option<Anchored>, StoreError> {
        self.ask("anchors", |sql| async move { sql.anchor(node).await })
            .await
    }

    async fn anchors(&self) -> Result<Vec<Anchored>, StoreError> {
        self.ask("anchors", |sql| async move { sql.anchors().await })
            .await
    }

    async fn add_anchor(&self, anchor: &Anchored) -> Result<bool, StoreError> {
        let anchor = anchor.clone();
        self.change("anchors", move |sql| async move {
            sql.add_anchor(&anchor).await
        })
        .await
    }

    async fn chain_head(&self, node: &str) -> Result<Option<HeadMark>, StoreError> {
        self.ask("anchors", |sql| async move { sql.chain_head(node).await })
            .await
    }

    async fn set_chain_head(&self, node: &str, head: &HeadMark) -> Result<(), StoreError> {
        let (node, head) = (node.to_owned(), head.clone());
        self.change("anchors", move |sql| async move {
            sql.set_chain_head(&node, &head).await
        })
        .await
    }
}
