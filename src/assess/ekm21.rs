//! The same for an EKM 2.1 before it is migrated, from its files.

use std::collections::BTreeSet;

use super::models::May;
use super::tapes::keyed_by_ekm;
use super::{DriveRow, Models, Report, StoreRow, Tapes, Ways, Word, row};
use crate::drive::DriveSerial;
use crate::migrate::keys::KeyKind;
use crate::migrate::metadata::KeyUse;
use crate::migrate::plan::{Plan, Verdict};
use crate::migrate::stores::Fate;

/// Judges what an EKM has, by the plan of its migration.
#[must_use]
pub fn site(plan: &Plan, history: &[KeyUse], models: &Models) -> Report {
    Report {
        first: plan.first,
        drives: plan
            .drives
            .iter()
            .map(|drive| self::drive(drive, models))
            .collect(),
        stores: vec![store(plan)],
        keys: plan.keys.iter().map(key).collect(),
        tapes: Tapes {
            readable: 0,
            unreadable: {
                let records: BTreeSet<&KeyUse> = history.iter().collect();
                keyed_by_ekm(records, |_| false)
            },
        },
        notes: plan.conflicts.iter().chain(&plan.notes).cloned().collect(),
    }
}

fn drive(drive: &crate::migrate::plan::DriveRow, models: &Models) -> DriveRow {
    let serial = drive.serial.parse::<DriveSerial>().ok();
    let model = serial.and_then(|serial| models.get(&serial).copied());
    let ways = Ways::of(model);
    let (verdict, why) = match (drive.verdict, ways.t10_02h, ways.t10_00h) {
        (Verdict::Stays | Verdict::Conflict, _, _) => (Word::No, drive.why.clone()),
        (Verdict::Moves, May::Yes, _) => (
            Word::Waits,
            "application-managed, by format 02h, once it is enrolled".to_owned(),
        ),
        (Verdict::Moves, _, May::Yes) => (
            Word::Waits,
            "application-managed, by format 00h in custody host, once it is enrolled".to_owned(),
        ),
        (Verdict::Moves, _, _) => (
            Word::Unknown,
            match model {
                Some(model) => format!(
                    "which key formats an {} takes is not known; its page 0011h says so",
                    model.what
                ),
                None => {
                    "tell its model with --model; its page 0011h says which key formats it takes"
                        .to_owned()
                }
            },
        ),
    };
    DriveRow {
        row: row(&drive.serial, verdict, why),
        model: model.map(|model| model.name),
        ways,
    }
}

fn store(plan: &Plan) -> StoreRow {
    let Some(kind) = plan.keystore else {
        return StoreRow {
            row: row(
                "keystore",
                Word::Unknown,
                "its type is none that EKM 2.1 knows",
            ),
            leaves: "not known".to_owned(),
        };
    };
    let name = kind.names.join(", ");
    let (verdict, leaves) = match kind.fate {
        Fate::Stays => (Word::Works, "nothing: the keys stay in the HSM"),
        Fate::Moves => (
            Word::Waits,
            "the KEKs, from the file into the token; the file goes on holding them",
        ),
        Fate::Export => (
            Word::Waits,
            "the KEKs, where the system exports them at all; otherwise nothing, and they do not move",
        ),
    };
    StoreRow {
        row: row(name, verdict, format!("{}; {}", kind.how, kind.not)),
        leaves: leaves.to_owned(),
    }
}

fn key(key: &crate::migrate::plan::KeyRow) -> super::Row {
    let verdict = match (&key.key.kind, key.verdict) {
        (KeyKind::Pair { .. }, Verdict::Moves) => Word::Waits,
        (KeyKind::Certificate { .. }, _) => Word::Waits,
        _ => Word::No,
    };
    row(&key.key.alias, verdict, &key.why)
}
