//! What the records say of a sync.

use std::collections::BTreeMap;

use futures_util::future::try_join_all;

use super::run::Sync;
use super::{SyncError, SyncReport};
use crate::audit::{AuditError, Event, Kind, Outcome};
use crate::key::KekHash;
use crate::problem::Problem;
use crate::store::DriveKey;
use crate::store::merge::Changes;

/// Records that are under way at once.
const RECORDS: usize = 512;

impl Sync<'_> {
    fn event(&self, action: &str, outcome: Outcome) -> Event {
        let mut event = Event::new(Kind::DataSynchronization, action, outcome);
        event.peer = Some(self.who.to_owned());
        event.request = Some(self.id.to_string());
        event
    }

    pub(super) async fn record(&self, outcome: Outcome, detail: String) -> Result<(), SyncError> {
        let mut event = self.event("sync", outcome);
        event.detail = Some(format!(
            "from {} at {}: {detail}",
            self.from.peer, self.from.address
        ));
        self.service
            .audit()
            .record(event)
            .await
            .map(drop)
            .map_err(|error| unrecorded(&error))
    }

    /// Who gets keys, and by which key, is in the records drive by drive, before it is so.
    pub(super) async fn record_intents(
        &self,
        report: &SyncReport,
        changes: &Changes,
    ) -> Result<(), SyncError> {
        self.record(Outcome::Intent, report.summary()).await?;
        let words: BTreeMap<&str, &str> = report
            .drives
            .iter()
            .map(|drive| (drive.serial.as_str(), drive.change.as_str()))
            .collect();
        for some in changes.drives.chunks(RECORDS) {
            let mut pending = Vec::with_capacity(some.len());
            for write in some {
                let drive = &write.row.drive;
                let Some(change) = words.get(drive.serial.as_str()) else {
                    continue;
                };
                let mut event = self.event("sync-drive", Outcome::Intent);
                event.drive = Some(drive.serial.to_string());
                event.detail = Some(format!("{change}, from {}", self.from.peer));
                if !write.row.deleted {
                    let keks = [&drive.kek1, &drive.kek2].into_iter().flatten();
                    event.keks = keks.map(ToString::to_string).collect();
                    event.custody = Some(drive.custody.to_string());
                    if let DriveKey::Pinned(spki) = &drive.key {
                        event.drive_key = Some(KekHash::of_spki(spki).to_string());
                    }
                }
                pending.push(self.service.audit().submit(event).await);
            }
            try_join_all(pending)
                .await
                .map_err(|error| unrecorded(&error))?;
        }
        let Some(write) = &changes.defaults else {
            return Ok(());
        };
        let mut event = self.event("sync-defaults", Outcome::Intent);
        let defaults = &write.row.defaults;
        let keks = [&defaults.kek1, &defaults.kek2].into_iter().flatten();
        event.keks = keks.map(ToString::to_string).collect();
        let recorded = self.service.audit().record(event).await;
        recorded.map(drop).map_err(|error| unrecorded(&error))
    }
}

fn unrecorded(error: &AuditError) -> SyncError {
    SyncError::Here(Problem::internal(format!("it cannot be recorded: {error}")))
}
