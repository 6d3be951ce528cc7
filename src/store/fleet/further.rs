//! What only operators and their servers ask of the state: from the database, or not at all. What a
//! cartridge's drive asks for as well has its answer without it.

use async_trait::async_trait;
use time::OffsetDateTime;

use super::Fleet;
use crate::audit::HeadMark;
use crate::key::DataKeyId;
use crate::store::merge::{Changes, DefaultsRow, DriveRow, TableDump, Tables, VolumesTaken};
use crate::store::sync::{HistoryRow, Reach, SyncTables, Synced, TakenIn};
use crate::store::{
    Anchored, Approval, ApprovalState, Approvals, Backup, Backups, ChainStore, DataKeySets,
    Decision, Discovered, Drive, Kept, Place, SealKeyRow, Seen, Sighting, Sightings, StoreError,
    VolumeKey, VolumeQuery, Volumes, VolumesFound, Waiting, WriteOff,
};
use crate::sync::wire::Extent;
use crate::tls::PeerId;

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
