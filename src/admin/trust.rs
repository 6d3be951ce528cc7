//! Trust in drives' keys, kept in step with the drive table.

use serde::{Deserialize, Serialize};

use super::{Reply, event, record, stored};
use crate::audit::{Kind, Outcome};
use crate::bridge::message::Op;
use crate::drive::DriveSerial;
use crate::key::{KekHash, KeyLabel};
use crate::problem::Problem;
use crate::service::Service;
use crate::store::DriveKey;

/// Where the security officer is with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TrustStage {
    /// He is about to log in.
    Intent,
    /// It is done; what was done to each key.
    Done(String),
    /// It is not done; why.
    Failed(String),
}

/// Records what the officer is about to do, or has done.
pub(super) async fn note(
    service: &Service,
    operator: &str,
    token: String,
    drives: &[DriveSerial],
    keks: &[KeyLabel],
    stage: TrustStage,
) -> Result<Reply, Problem> {
    let mut event = event("drive-trust", operator);
    event.kind = Kind::ConfigurationManagement;
    event.token = Some(token);
    let drives: Vec<&str> = drives.iter().map(DriveSerial::as_str).collect();
    event.drive = (!drives.is_empty()).then(|| drives.join(" "));
    event.keks = keks.iter().map(ToString::to_string).collect();
    (event.outcome, event.detail) = match stage {
        TrustStage::Intent => (Outcome::Intent, None),
        TrustStage::Done(what) => (Outcome::Success, Some(what)),
        TrustStage::Failed(why) => (Outcome::Failure, Some(why)),
    };
    record(service, event).await?;
    Ok(Reply::Done)
}

/// Takes the trust from a key that no drive has any more, on every token that
/// shows it. A token that cannot be reached now keeps it until the next
/// `ekm drive trust` there; the record and the log say so.
pub(super) async fn withdraw(
    service: &Service,
    operator: &str,
    serial: &DriveSerial,
    former: &DriveKey,
) -> Result<(), Problem> {
    let DriveKey::Pinned(spki) = former else {
        return Ok(());
    };
    let still = stored(service.store().drives().await)?;
    if still.iter().any(|drive| drive.key == *former) {
        return Ok(());
    }
    let key = KekHash::of_spki(spki);
    for bridge in service.tokens().bridges() {
        let state = bridge.state();
        if !state
            .found()
            .is_some_and(|found| found.trusted.contains(&key))
        {
            continue;
        }
        let mut event = event("drive-distrust", operator);
        event.drive = Some(serial.to_string());
        event.drive_key = Some(key.to_string());
        event.token = Some(bridge.name().to_owned());
        if let Err(fault) = bridge.ask(Op::Distrust { key }).await {
            let why = format!(
                "token {} still trusts the former key of drive {serial}: {fault}; run: ekm drive trust --token {}",
                bridge.name(),
                bridge.name()
            );
            tracing::warn!("{why}");
            event.outcome = Outcome::Failure;
            event.detail = Some(why);
        }
        record(service, event).await?;
    }
    Ok(())
}
