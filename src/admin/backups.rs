//! Backups: what the tokens show before one is begun, and that it was made.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{Reply, event, record, stored};
use crate::audit::{Kind, Outcome};
use crate::backup::BackedKek;
use crate::bridge::message::PrivateHalf;
use crate::key::{KekHash, KeyLabel};
use crate::policy::BackupBeforeServing;
use crate::problem::Problem;
use crate::service::{STARTING, Service};
use crate::store::Backup;

/// Backups that are listed.
const MOST: u32 = 20;

/// How backups stand.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BackupStatus {
    /// The newest ones, newest first.
    pub backups: Vec<Backup>,
    /// `policy.backup_before_serving`
    pub rule: BackupBeforeServing,
    /// The KEKs whose private halves are here.
    pub keks: Vec<KeptKek>,
}

/// Whether a KEK would outlive its token.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KeptKek {
    /// Its label.
    pub label: KeyLabel,
    /// Its public key's hash.
    pub hash: KekHash,
    /// The tokens that hold it.
    pub tokens: Vec<String>,
    /// The newest backup that it is in.
    #[serde(with = "time::serde::rfc3339::option")]
    pub backed: Option<OffsetDateTime>,
    /// Whether there is a backup or a copy of it that counts.
    pub kept: bool,
}

/// A backup is about to be made: what the tokens hold that are up. What is in
/// a token's database now is in the copy that is made after this.
pub(super) async fn begin(
    service: &Service,
    operator: &str,
    id: &uuid::Uuid,
    file: &str,
) -> Result<Reply, Problem> {
    let mut event = event("backup", operator);
    event.kind = Kind::DataSynchronization;
    event.outcome = Outcome::Intent;
    event.detail = Some(format!("backup {id}, {file}"));
    record(service, event).await?;
    service.tokens().started(STARTING).await;
    service.tokens().look_again().await;
    let mut keks = Vec::new();
    for bridge in service.tokens().bridges() {
        let state = bridge.state();
        for kek in state.found().map(|found| &found.keks).into_iter().flatten() {
            if !matches!(kek.private, PrivateHalf::Absent) {
                keks.push(BackedKek {
                    token: bridge.name().to_owned(),
                    label: kek.label.clone(),
                    hash: kek.hash,
                });
            }
        }
    }
    Ok(Reply::BackupBegun(keks))
}

/// How it ended.
pub(super) async fn end(
    service: &Service,
    operator: &str,
    id: &uuid::Uuid,
    ended: Result<Box<Backup>, String>,
) -> Result<Reply, Problem> {
    let mut event = event("backup", operator);
    event.kind = Kind::DataSynchronization;
    match ended {
        Ok(backup) => {
            event.detail = Some(format!(
                "backup {id}, {}, {} bytes, SHA-256 {}, read back; {}",
                backup.file, backup.bytes, backup.digest, backup.contents
            ));
            event.keks = backup.keks.iter().map(ToString::to_string).collect();
            record(service, event).await?;
            stored(service.store().add_backup(&backup).await)?;
        }
        Err(why) => {
            event.outcome = Outcome::Failure;
            event.detail = Some(format!("backup {id}: {why}"));
            record(service, event).await?;
        }
    }
    Ok(Reply::Done)
}

/// Which backups there are, and which KEKs are in none.
pub(super) async fn status(service: &Service) -> Result<Reply, Problem> {
    service.tokens().started(STARTING).await;
    let directory = service.directory().await?;
    let keks = directory
        .keks()
        .iter()
        .filter(|kek| !kek.tokens.is_empty())
        .map(|kek| KeptKek {
            label: kek.label.clone(),
            hash: kek.hash,
            tokens: kek.tokens.clone(),
            backed: kek.backed(),
            kept: kek.is_kept(),
        })
        .collect();
    Ok(Reply::BackupStatus(Box::new(BackupStatus {
        backups: stored(service.store().backups(MOST).await)?,
        rule: service.policy().backup_before_serving,
        keks,
    })))
}
