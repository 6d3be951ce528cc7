//! KEKs that follow one another: rotated by hand, at a time, or by the calendar.

mod calendar;

pub(super) use calendar::schedule;
pub use calendar::{Rollovers, ScheduleAct, TAKEN_BACK};

use std::time::Duration;

use serde::{Deserialize, Serialize};
use time::{OffsetDateTime, Time, UtcOffset};
use uuid::Uuid;

use super::successor::successor;
use super::{Reply, conflict, event, generate, record, stored, volumes};
use crate::audit::{Kind, Outcome};
use crate::key::{Encoding, KekRef, KeyLabel};
use crate::keystore::KnownKek;
use crate::problem::{EkmCode, Problem};
use crate::service::{STARTING, Service};
use crate::store::{KekMove, KekSchedule, KekState, MoveState, StateChange};
use calendar::roll;

/// What is wanted of a rotation.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RotateWanted {
    /// The KEK that is written under now.
    pub label: KeyLabel,
    /// The new one's label; else one that follows from the old one's.
    pub new_label: Option<KeyLabel>,
    /// When it takes the old one's place; else at once.
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub at: Option<OffsetDateTime>,
    /// The token that the new one is made on; else one that has the old one.
    pub token: Option<String>,
}

pub(super) async fn rotate(
    service: &Service,
    operator: &str,
    wanted: RotateWanted,
) -> Result<Reply, Problem> {
    let RotateWanted {
        label,
        new_label,
        at,
        token,
    } = wanted;
    let now = OffsetDateTime::now_utc();
    to_come(at, now)?;
    service.tokens().started(STARTING).await;
    let old = written_under(service, &label).await?;
    if let Some(planned) = planned(service, &old.label).await? {
        let same = new_label.is_none_or(|label| label.same_as(&planned.successor));
        if at.is_some() || !same {
            return Err(already(&planned));
        }
        // What was planned is not waited for: a KEK that may be known to others goes at once.
        let sooner = KekMove {
            due: now,
            operator: operator.to_owned(),
            ..planned
        };
        stored(service.store().put_kek_move(&sooner).await)?;
        let done = carry_out(service, sooner).await?;
        return Ok(Reply::Rotated(Box::new(done)));
    }
    unscheduled(service, &old.label).await?;
    let due = at.unwrap_or(now);
    let label = match new_label {
        Some(label) => label,
        None => follows(service, &old.label, due).await?,
    };
    let made = make(service, operator, &old, label, token).await?;
    let planned = KekMove {
        id: Uuid::new_v4(),
        former: old.label.clone(),
        successor: made,
        due,
        operator: operator.to_owned(),
        state: MoveState::Planned,
        note: None,
    };
    if due > now {
        let mut event = event("kek-rotate-plan", operator);
        event.keks = vec![planned.former.to_string(), planned.successor.to_string()];
        event.detail = Some(format!("at {due}"));
        record(service, event).await?;
    }
    stored(service.store().put_kek_move(&planned).await)?;
    if due <= now {
        return carry_out(service, planned)
            .await
            .map(|done| Reply::Rotated(Box::new(done)));
    }
    Ok(Reply::Rotated(Box::new(planned)))
}

/// How long ago a time may be that was given as one to come: the request took a while, and clocks
/// differ.
const GRACE: Duration = Duration::from_secs(60);

/// That a rotation is not wanted for a time that is past: a slip of the pen, as the year before,
/// would retire a KEK at once.
fn to_come(at: Option<OffsetDateTime>, now: OffsetDateTime) -> Result<(), Problem> {
    match at.filter(|at| *at < now - GRACE) {
        None => Ok(()),
        Some(at) => Err(conflict(
            EkmCode::EE31,
            format!("--at {at} is past; leave --at out to rotate now"),
        )),
    }
}

/// The rotation that is planned for a KEK.
async fn planned(service: &Service, label: &KeyLabel) -> Result<Option<KekMove>, Problem> {
    let mut moves = stored(service.store().kek_moves().await)?.into_iter();
    Ok(moves.find(|one| one.state == MoveState::Planned && one.former.same_as(label)))
}

fn already(planned: &KekMove) -> Problem {
    let label = &planned.former;
    conflict(
        EkmCode::EE31,
        format!(
            "{label} is planned for {} already, by {}: ekm kek rotate {label} does that now, ekm kek schedule remove {label} takes it back",
            day(planned.due),
            planned.successor
        ),
    )
}

/// That a KEK is not rotated by the calendar, which would find it retired when its day comes.
async fn unscheduled(service: &Service, label: &KeyLabel) -> Result<(), Problem> {
    let schedules = stored(service.store().kek_schedules().await)?;
    match schedules.iter().find(|one| one.label.same_as(label)) {
        None => Ok(()),
        Some(one) => Err(conflict(
            EkmCode::EE31,
            format!(
                "{label} is rotated every {} already, next on {}: ekm kek schedule remove {label} takes that back; after the rotation its successor can have it: ekm kek schedule set NEW --every {}",
                one.every,
                day(one.due),
                one.every
            ),
        )),
    }
}

/// A day, with the time where that is not 00:00 UTC.
fn day(at: OffsetDateTime) -> String {
    let at = at.to_offset(UtcOffset::UTC);
    if at.time() == Time::MIDNIGHT {
        return at.date().to_string();
    }
    format!("{} {:02}:{:02} UTC", at.date(), at.hour(), at.minute())
}

/// The KEK of that label, if it is written under.
async fn written_under(service: &Service, label: &KeyLabel) -> Result<KnownKek, Problem> {
    let directory = service.directory().await?;
    let kek = directory
        .by_label(label)
        .map_err(|error| conflict(EkmCode::EE31, error.to_string()))?;
    if kek.partner.is_some() {
        return Err(conflict(
            EkmCode::EE31,
            format!(
                "{} is a partner's KEK, which the partner rotates",
                kek.label
            ),
        ));
    }
    let states = stored(service.store().kek_states().await)?;
    match states.of(&kek.hash) {
        Some(standing) if standing.state != KekState::Active => Err(conflict(
            EkmCode::EE30,
            format!(
                "KEK {} was {}, so nothing is left to rotate; make a new one: ekm kek generate",
                kek.label,
                standing.words()
            ),
        )),
        _ => Ok(kek.clone()),
    }
}

async fn follows(
    service: &Service,
    label: &KeyLabel,
    at: OffsetDateTime,
) -> Result<KeyLabel, Problem> {
    let directory = service.directory().await?;
    let registry = stored(service.store().keks().await)?;
    successor(label, at, |label| {
        directory.keks().iter().any(|kek| kek.label.same_as(label))
            || registry.iter().any(|row| row.label.same_as(label))
    })
    .map_err(|why| conflict(EkmCode::EE31, why))
}

/// Makes the new KEK: as long as the old one, for the same custody, beside it.
async fn make(
    service: &Service,
    operator: &str,
    old: &KnownKek,
    label: KeyLabel,
    token: Option<String>,
) -> Result<KeyLabel, Problem> {
    let token = token.or_else(|| old.tokens.first().cloned());
    let Some(custody) = old.custody else {
        return Err(Problem::unavailable(format!(
            "no token that is up has KEK {} (ekm token status), so it is not known what a new one must be",
            old.label
        )));
    };
    generate(
        service,
        operator,
        label.clone(),
        old.bits,
        token,
        (custody, false),
    )
    .await?;
    Ok(label)
}

/// Puts the new KEK in the old one's place, and retires that. What was done before is done again,
/// and changes nothing then.
async fn carry_out(service: &Service, planned: KekMove) -> Result<KekMove, Problem> {
    let KekMove {
        former, successor, ..
    } = &planned;
    let new = KekRef {
        label: successor.clone(),
        encoding: Encoding::Label,
    };
    let fit = match service.directory().await?.by_label(successor) {
        Ok(kek) => match service.may_write([Some(&new), None], kek.custody).await {
            Ok(()) => service.all_have(&[(kek.label.clone(), kek.hash)]),
            refused => refused,
        },
        Err(error) => Err(conflict(EkmCode::EE31, error.to_string())),
    };
    let mut event = event("kek-rotate", &planned.operator);
    event.kind = Kind::ConfigurationManagement;
    event.keks = vec![former.to_string(), successor.to_string()];
    if let Err(problem) = fit {
        let why = format!("KEK {former} stays in use: {}", problem.detail);
        if planned.note.as_ref() != Some(&why) {
            event.outcome = Outcome::Failure;
            event.detail = Some(why.clone());
            record(service, event).await?;
            let planned = KekMove {
                note: Some(why.clone()),
                ..planned
            };
            stored(service.store().put_kek_move(&planned).await)?;
        }
        return Err(Problem {
            detail: format!("{why}. It is tried again every minute"),
            ..problem
        });
    }
    event.outcome = Outcome::Intent;
    record(service, event.clone()).await?;
    let moved = stored(service.store().move_kek(former, successor).await)?;
    retire(service, &planned).await?;
    let drives: Vec<String> = moved.drives.iter().map(ToString::to_string).collect();
    let note = match (moved.defaults, drives.as_slice()) {
        (false, []) => "no default named the old one".to_owned(),
        (true, []) => "the global labels name the new one".to_owned(),
        (false, drives) => format!("drives {} name the new one", drives.join(", ")),
        (true, drives) => format!(
            "the global labels and drives {} name the new one",
            drives.join(", ")
        ),
    };
    event.outcome = Outcome::Success;
    event.detail = Some(note.clone());
    record(service, event).await?;
    let done = KekMove {
        state: MoveState::Done,
        note: Some(note),
        ..planned
    };
    stored(service.store().put_kek_move(&done).await)?;
    Ok(done)
}

async fn retire(service: &Service, planned: &KekMove) -> Result<(), Problem> {
    let (label, hash) = volumes::named(service, &planned.former).await?;
    let states = stored(service.store().kek_states().await)?;
    if states.state(&hash) != KekState::Active {
        return Ok(());
    }
    let reason = format!("{} took its place", planned.successor);
    let mut event = event("kek-retire", &planned.operator);
    event.keks = vec![label.to_string()];
    event.detail = Some(reason.clone());
    record(service, event).await?;
    let change = StateChange {
        kek: hash,
        state: KekState::Retired,
        by: planned.operator.clone(),
        reason: Some(reason),
        before: states
            .of(&hash)
            .map(|standing| standing.row)
            .unwrap_or_default(),
    };
    // Where another server was quicker, it is retired too.
    stored(service.store().set_kek_state(&change).await).map(drop)
}

/// Does what is due: planned moves, and rollovers by the calendar.
///
/// # Errors
/// The state or the records. What could not be done is noted there, and tried again.
pub(crate) async fn work(service: &Service) -> Result<(), Problem> {
    let now = OffsetDateTime::now_utc();
    let due = |one: &KekMove| one.state == MoveState::Planned && one.due <= now;
    if stored(service.store().kek_moves().await)?.iter().any(due) {
        service.tokens().started(STARTING).await;
    }
    // As they are now: one may have been taken back meanwhile.
    for planned in stored(service.store().kek_moves().await)? {
        if due(&planned) {
            let (former, successor) = (planned.former.clone(), planned.successor.clone());
            if let Err(problem) = carry_out(service, planned).await {
                tracing::error!(%former, %successor, %problem, "a KEK was not rotated");
            }
        }
    }
    for schedule in stored(service.store().kek_schedules().await)? {
        let node = service.node();
        if schedule.due > now
            || !stored(
                service
                    .store()
                    .take_kek_schedule(&schedule.label, node)
                    .await,
            )?
        {
            continue;
        }
        let label = schedule.label.clone();
        if let Err(problem) = roll(service, schedule.clone()).await {
            tracing::error!(%label, %problem, "a KEK was not rolled over");
            // What is being made stays noted.
            let all = stored(service.store().kek_schedules().await)?;
            if let Some(now) = all.into_iter().find(|one| one.label.same_as(&label)) {
                let trouble = Some(problem.detail);
                stored(
                    service
                        .store()
                        .put_kek_schedule(&KekSchedule { trouble, ..now })
                        .await,
                )?;
            }
        }
    }
    Ok(())
}

/// What was due and could not be done: the KEK, and why.
pub(crate) async fn troubles(service: &Service) -> Result<Vec<(String, String)>, Problem> {
    let now = OffsetDateTime::now_utc();
    let moves = stored(service.store().kek_moves().await)?;
    let schedules = stored(service.store().kek_schedules().await)?;
    let overdue = moves
        .into_iter()
        .filter(|planned| planned.state == MoveState::Planned && planned.due <= now)
        .filter_map(|planned| Some((planned.former.to_string(), planned.note?)));
    let mut all: Vec<(String, String)> = schedules
        .into_iter()
        .filter_map(|schedule| Some((schedule.label.to_string(), schedule.trouble?)))
        .collect();
    all.extend(overdue);
    all.sort();
    all.dedup_by(|one, other| one.0 == other.0);
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    #[test]
    fn a_time_that_is_past_is_no_time_to_rotate_at() {
        let now = datetime!(2026-11-30 12:00 UTC);
        assert!(to_come(None, now).is_ok());
        assert!(to_come(Some(datetime!(2027-01-01 0:00 UTC)), now).is_ok());
        assert!(to_come(Some(datetime!(2026-11-30 11:59:30 UTC)), now).is_ok());
        let refused = to_come(Some(datetime!(2026-11-30 11:58 UTC)), now).unwrap_err();
        assert!(refused.detail.contains("is past"), "{refused}");
    }

    #[test]
    fn a_day_is_said_with_its_time_where_it_has_one() {
        assert_eq!(day(datetime!(2027-01-01 1:00 +1)), "2027-01-01");
        assert_eq!(day(datetime!(2027-01-01 18:05 +1)), "2027-01-01 17:05 UTC");
    }
}
