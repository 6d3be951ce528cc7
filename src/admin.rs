//! What operators do: the drive table, KEKs, defaults, a look at the state.
//!
//! The same commands run in two places: in the server, reached over its Unix
//! socket, or in the command line itself where no server runs. Every change
//! is recorded before it is made.

mod acts;
mod adopt;
mod approvals;
mod backups;
mod births;
mod certificates;
mod command;
mod copies;
mod defaults;
mod drives;
mod eedks;
mod ekm21;
mod evidence;
mod fleet;
mod generate;
mod import;
mod kek_states;
mod partners;
mod pending;
mod perform;
mod rekey;
mod rotation;
mod status;
mod successor;
mod sync;
mod tables;
mod trust;
mod unlock;
mod volumes;

use crate::audit::{Event, Kind, Outcome};
use crate::bridge::message::Custody;
use crate::bridge::pin::Handed;
use crate::drive::DriveSerial;
use crate::key::{KekRef, SedkForm};
use crate::keystore::KekError;
use crate::problem::{EkmCode, Problem};
use crate::service::{STARTING, Service};
use crate::store::{Drive, DriveKey, DriveState, StoreError};

pub(crate) use drives::coherent;
use drives::put_drive;
use generate::{generate, vacant};
use status::status;

pub use acts::{Act, Second};
pub use adopt::AdoptAsked;
pub use approvals::Verdict;
pub use backups::{BackupStatus, KeptKek};
pub use certificates::Imported;
pub use command::{Change, Command, DriveChange, Reply};
pub use copies::{CopyAct, CopyAsked, CopyMade};
pub use eedks::{Budget, ForgivenTo};
pub use ekm21::{ImportedDrive, Taken, TakenIn};
pub use evidence::{AnchorSeen, SealKeySeen};
pub use import::{ImportAsked, ImportTo};
pub use kek_states::KekTurned;
pub use partners::{Offered, PartnerSeen, Removed, look};
pub use pending::DriveSeen;
pub use perform::perform;
pub(crate) use rekey::work_on_rekeys;
pub use rekey::{MOST_RATE, OLD_EEDKS, RekeyAct, RekeySeen, RekeyWanted};
pub use rotation::{Rollovers, RotateWanted, ScheduleAct, TAKEN_BACK};
pub(crate) use rotation::{troubles as rotation_troubles, work as work_on_rotations};
pub use status::{RaisedAlarm, TokenStatus};
pub use tables::{TablesTaken, TakeMode};
pub use trust::TrustStage;
pub use unlock::Unlocked;
pub use volumes::{Affected, Impact, MOST_VOLUMES, VolumeFilter, VolumeListed};

/// Modulus lengths that KEKs are made with.
pub const KEK_BITS: [u32; 3] = [2048, 3072, 4096];

/// Does what the operator asks; [`perform`] is the way of those who may not.
///
/// # Errors
/// What is wrong and what to do.
pub async fn execute(
    service: &Service,
    operator: &str,
    command: Command,
) -> Result<Reply, Problem> {
    execute_with_pin(service, operator, command, None).await
}

/// The same, with a PIN that the operator gives for the token that he unlocks.
///
/// # Errors
/// What is wrong and what to do.
pub async fn execute_with_pin(
    service: &Service,
    operator: &str,
    command: Command,
    pin: Option<Handed>,
) -> Result<Reply, Problem> {
    match command {
        Command::DriveAdd { serial, change } => {
            if stored(service.store().drive(&serial).await)?.is_some() {
                return Err(conflict(
                    EkmCode::EE25,
                    format!("drive {serial} is in the table already; change it with ekm drive mod"),
                ));
            }
            // Session keys are of the 3592's plain kind.
            let form = match change.key {
                Some(DriveKey::Certified) => SedkForm::RsaOaepSha1,
                Some(DriveKey::Pinned(_) | DriveKey::None) | None => SedkForm::T10Wrapped,
            };
            let fresh = Drive {
                serial,
                wwn: None,
                kek1: None,
                kek2: None,
                key: DriveKey::None,
                form,
                custody: Custody::Token,
                speakers: Vec::new(),
                state: DriveState::Active,
            };
            put_drive(service, operator, "drive-add", None, fresh, *change).await
        }
        Command::DriveMod { serial, change } => {
            let drive =
                stored(service.store().drive(&serial).await)?.ok_or_else(|| no_drive(&serial))?;
            let former = drive.key.clone();
            let before = drive.clone();
            let put = put_drive(
                service,
                operator,
                "drive-mod",
                Some(&before),
                drive,
                *change,
            )
            .await?;
            trust::withdraw(service, operator, &serial, &former).await?;
            Ok(put)
        }
        Command::DriveDel { serial } => {
            let drive =
                stored(service.store().drive(&serial).await)?.ok_or_else(|| no_drive(&serial))?;
            let mut event = event("drive-del", operator);
            event.drive = Some(serial.to_string());
            record(service, event).await?;
            stored(service.store().delete_drive(&serial).await)?;
            trust::withdraw(service, operator, &serial, &drive.key).await?;
            Ok(Reply::Done)
        }
        Command::DriveTrust {
            token,
            drives,
            keks,
            stage,
        } => trust::note(service, operator, token, &drives, &keks, stage).await,
        Command::DriveList => stored(service.store().drives().await).map(Reply::Drives),
        Command::DriveImport {
            drives,
            defaults,
            apply,
        } => ekm21::take_in(service, operator, drives, &defaults, apply).await,
        Command::KekGenerate {
            label,
            bits,
            token,
            custody,
            sign,
        } => generate(service, operator, label, bits, token, (custody, sign)).await,
        Command::KekImport(asked) => import::prepare(service, operator, asked).await,
        Command::KekImported { asked, ended } => {
            import::finish(service, operator, asked, ended).await
        }
        Command::KekAdopt { asked, ended } => adopt::adopt(service, operator, asked, ended).await,
        Command::KekRequest { label, subject } => {
            certificates::request(service, operator, &label, subject).await
        }
        Command::KekPossession { label } => certificates::possess(service, operator, &label).await,
        Command::KekCertificate {
            label,
            chain,
            token,
        } => certificates::import(service, operator, &label, &chain, token).await,
        Command::PartnerAdd {
            label,
            offered,
            fingerprint,
        } => partners::add(service, operator, label, &offered, &fingerprint).await,
        Command::PartnerList => partners::list(service).await,
        Command::PartnerRemove { label } => partners::remove(service, operator, &label).await,
        Command::KekCopy { asked, ended } => {
            copies::ceremony(service, operator, *asked, ended).await
        }
        Command::KekCopyStated { label, note } => {
            copies::stated(service, operator, &label, note).await
        }
        Command::KekList => {
            // What is on a token that is starting is not known yet.
            service.tokens().started(STARTING).await;
            service.tokens().look_again().await;
            let mut keks = service.directory().await?.keks().to_vec();
            births::name(&stored(service.store().births().await)?, &mut keks);
            kek_states::name(service, &mut keks).await?;
            Ok(Reply::Keks(keks))
        }
        Command::KekCleared { birth, objects } => {
            births::cleared(service, operator, &birth, objects).await
        }
        Command::KekDefault { set: None, .. } => {
            stored(service.store().defaults().await).map(Reply::Defaults)
        }
        Command::KekDefault {
            set: Some(defaults),
            anyway,
        } => defaults::set(service, operator, defaults, anyway).await,
        Command::TokenStatus => Ok(Reply::Tokens(
            service.tokens().bridges().iter().map(status).collect(),
        )),
        Command::TokenUnlock { token, last_try } => {
            unlock::unlock(service, operator, &token, last_try, pin)
                .await
                .map(|unlocked| Reply::Unlocked(Box::new(unlocked)))
        }
        Command::EedkFailures { forgive } => eedks::failures(service, operator, forgive).await,
        Command::BackupBegin { id, file } => backups::begin(service, operator, &id, &file).await,
        Command::BackupMade { id, ended } => backups::end(service, operator, &id, ended).await,
        Command::BackupStatus => backups::status(service).await,
        Command::TablesExport => tables::give(service, operator).await,
        Command::TablesImport { dump, mode, apply } => {
            tables::take(service, operator, &dump, mode, apply).await
        }
        Command::VolumesExport { after, most } => tables::give_volumes(service, after, most).await,
        Command::VolumesImport { keys, apply } => {
            tables::take_volumes(service, operator, &keys, apply).await
        }
        Command::AlarmList => Ok(Reply::Alarms(status::alarms(service))),

        Command::Sync(ask) => sync::sync(service, operator, &ask).await,
        Command::AuditSeal { accept } => {
            let sealed = service.seal_audit(accept).await?;
            Ok(Reply::Sealed(Box::new(sealed)))
        }
        Command::AuditKey { generate, token } => {
            evidence::keys(service, operator, generate, token).await
        }
        Command::AuditAnchors => evidence::anchors(service).await,
        Command::AuditEmergency { switch } => service
            .emergency(operator, switch)
            .await
            .map(Reply::Emergency),
        Command::FleetStatus => fleet::status(service).await,
        Command::FleetForget { node } => fleet::forget(service, operator, &node).await,
        Command::VolumeList { volser } => volumes::list(service, volser.as_ref()).await,

        Command::KekTurn { label, to, reason } => {
            kek_states::turn(service, operator, &label, to, reason).await
        }
        Command::KekDelete {
            label,
            tapes_elsewhere,
        } => kek_states::delete(service, operator, &label, tapes_elsewhere).await,
        Command::KekImpact { label, limit } => volumes::impact(service, &label, limit)
            .await
            .map(|impact| Reply::Impact(Box::new(impact))),
        Command::KekRotate(wanted) => rotation::rotate(service, operator, wanted).await,
        Command::KekSchedule(act) => rotation::schedule(service, operator, act).await,
        Command::VolumeFind { filter, limit } => volumes::find(service, &filter, limit).await,
        Command::VolumeWriteOff { volser, reason } => {
            volumes::write_off(service, operator, &volser, reason).await
        }
        Command::VolumeRekey(act) => rekey::act(service, operator, act).await,
        Command::DrivePending => pending::list(service).await,
        Command::DriveAccept {
            serial,
            fingerprint,
            change,
        } => pending::accept(service, operator, &serial, fingerprint, *change).await,
        Command::DriveReject { serial } => pending::reject(service, operator, &serial).await,
        Command::ApprovalList { all } => approvals::list(service, all).await,
        Command::ApprovalDecide { .. } => Err(perform::prohibited(
            "only a person decides about a request, and nobody is named here".to_owned(),
        )),
    }
}

/// That each label names one KEK. Tokens that are starting are waited for: what is on them is not
/// known yet.
async fn known(service: &Service, named: impl IntoIterator<Item = &KekRef>) -> Result<(), Problem> {
    let mut named = named.into_iter().peekable();
    if named.peek().is_none() {
        return Ok(());
    }
    let tokens = service.tokens();
    tokens.started(STARTING).await;
    // Before the look: one that comes up meanwhile is not in what is read.
    let all_serve = tokens.all_serve();
    let directory = service.directory().await?;
    for kek in named {
        match directory.by_label(&kek.label) {
            Ok(_) => {}
            Err(error @ KekError::Unknown { .. }) if !all_serve => {
                return Err(Problem::unavailable(format!(
                    "{error}; but not all tokens are ready, and it may be on one of those (ekm token status)"
                )));
            }
            Err(error) => return Err(conflict(EkmCode::EE31, error.to_string())),
        }
    }
    Ok(())
}

fn event(action: &str, operator: &str) -> Event {
    let mut event = Event::new(Kind::ResourceManagement, action, Outcome::Success);
    event.peer = Some(operator.to_owned());
    event
}

async fn record(service: &Service, event: Event) -> Result<(), Problem> {
    service
        .audit()
        .record(event)
        .await
        .map(drop)
        .map_err(|error| {
            Problem::internal(format!(
                "nothing was changed, because it cannot be recorded: {error}"
            ))
        })
}

fn stored<T>(outcome: Result<T, StoreError>) -> Result<T, Problem> {
    outcome.map_err(|error| match error {
        StoreError::LabelTaken { .. }
        | StoreError::Changed { .. }
        | StoreError::KekClosed { .. } => conflict(EkmCode::EE31, error.to_string()),
        StoreError::Outage { .. } => Problem::unavailable(error.to_string()),
        StoreError::Database { .. }
        | StoreError::Migrate { .. }
        | StoreError::Unconfigured { .. }
        | StoreError::Damaged { .. }
        | StoreError::NoRandom
        | StoreError::Directory { .. } => Problem::internal(error.to_string()),
    })
}

fn labels(kek1: &Option<KekRef>, kek2: &Option<KekRef>) -> Vec<String> {
    [kek1, kek2]
        .into_iter()
        .flatten()
        .map(ToString::to_string)
        .collect()
}

fn no_drive(serial: &DriveSerial) -> Problem {
    Problem::new(
        EkmCode::EF01,
        404,
        format!("drive {serial} is not in the drive table (ekm drive list)"),
    )
}

fn conflict(code: EkmCode, detail: String) -> Problem {
    Problem::new(code, 409, detail)
}
