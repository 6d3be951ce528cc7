//! Rollovers by the calendar: every month or every year, and what is taken back of them.

use serde::{Deserialize, Serialize};
use time::{Date, Month, OffsetDateTime, Time};
use uuid::Uuid;

use super::{already, carry_out, follows, make, planned, written_under};
use crate::admin::kek_states::still_named;
use crate::admin::{Reply, conflict, event, record, stored};
use crate::audit::Kind;
use crate::key::KeyLabel;
use crate::problem::{EkmCode, Problem};
use crate::service::{STARTING, Service};
use crate::store::{Every, KekMove, KekSchedule, KekState, MoveState};

/// What an operator does with rollovers by the calendar.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScheduleAct {
    /// Sets one.
    Set {
        /// The KEK that is written under now.
        label: KeyLabel,
        /// How often.
        every: Every,
        /// When first; else when the next period begins.
        #[serde(default, with = "time::serde::rfc3339::option")]
        first: Option<OffsetDateTime>,
    },
    /// Takes one away.
    Remove(KeyLabel),
    /// Looks at all, and at the moves that are planned.
    List,
}

/// Rollovers that are to come.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Rollovers {
    /// By the calendar.
    pub schedules: Vec<KekSchedule>,
    /// Planned moves, and the last that were done.
    pub moves: Vec<KekMove>,
    /// KEKs that were made for what was taken back now, and are active still.
    #[serde(default)]
    pub left: Vec<KeyLabel>,
}

/// Moves that were done and are still shown.
const SHOWN: usize = 20;

pub(in crate::admin) async fn schedule(
    service: &Service,
    operator: &str,
    act: ScheduleAct,
) -> Result<Reply, Problem> {
    let mut left = Vec::new();
    match act {
        ScheduleAct::Set {
            label,
            every,
            first,
        } => {
            service.tokens().started(STARTING).await;
            let kek = written_under(service, &label).await?;
            unplanned(service, &kek.label).await?;
            let due = first.unwrap_or_else(|| next(every, OffsetDateTime::now_utc()));
            let mut event = event("kek-schedule-set", operator);
            event.kind = Kind::ConfigurationManagement;
            event.keks = vec![kek.label.to_string()];
            event.detail = Some(format!("every {every}, first at {due}"));
            record(service, event).await?;
            let schedule = KekSchedule {
                label: kek.label,
                every,
                due,
                operator: operator.to_owned(),
                making: None,
                trouble: None,
            };
            stored(service.store().put_kek_schedule(&schedule).await)?;
            service.wake();
        }
        ScheduleAct::Remove(label) => {
            let mut event = event("kek-schedule-remove", operator);
            event.kind = Kind::ConfigurationManagement;
            event.keks = vec![label.to_string()];
            record(service, event).await?;
            let removed = stored(service.store().remove_kek_schedule(&label).await)?;
            let back = take_back(service, operator, &label).await?;
            if !removed && back.is_empty() {
                return Err(conflict(
                    EkmCode::EE31,
                    format!(
                        "there is no schedule and no planned rotation for KEK {label} (ekm kek schedule list)"
                    ),
                ));
            }
            left = active(service, back).await?;
        }
        ScheduleAct::List => {}
    }
    let mut moves = stored(service.store().kek_moves().await)?;
    moves.sort_by_key(|planned| planned.state == MoveState::Done);
    moves.truncate(SHOWN);
    Ok(Reply::Rollovers(Box::new(Rollovers {
        schedules: stored(service.store().kek_schedules().await)?,
        moves,
        left,
    })))
}

/// That no rotation of a KEK is planned: of two, the second would leave a new KEK over that nothing
/// names.
async fn unplanned(service: &Service, label: &KeyLabel) -> Result<(), Problem> {
    let planned = planned(service, label).await?;
    planned.map_or(Ok(()), |one| Err(already(&one)))
}

/// What the note of a move begins with that was taken back.
pub const TAKEN_BACK: &str = "taken back";

/// Takes back what is planned for a KEK, which stays in use. The KEKs that were made for it stay, too:
/// which they are.
async fn take_back(
    service: &Service,
    operator: &str,
    label: &KeyLabel,
) -> Result<Vec<KeyLabel>, Problem> {
    let mut made = Vec::new();
    for planned in stored(service.store().kek_moves().await)? {
        if planned.state == MoveState::Planned && planned.former.same_as(label) {
            let back = KekMove {
                state: MoveState::Done,
                note: Some(format!(
                    "{TAKEN_BACK} by {operator}; KEK {label} stays in use"
                )),
                ..planned
            };
            stored(service.store().put_kek_move(&back).await)?;
            made.push(back.successor);
        }
    }
    Ok(made)
}

/// Those of the KEKs that may be written under, and that nothing names.
async fn active(service: &Service, keks: Vec<KeyLabel>) -> Result<Vec<KeyLabel>, Problem> {
    let directory = service.directory().await?;
    let states = stored(service.store().kek_states().await)?;
    let active = |label: &KeyLabel| {
        let known = directory.by_label(label);
        known.is_ok_and(|kek| states.state(&kek.hash) == KekState::Active)
    };
    let mut left = Vec::new();
    for label in keks.into_iter().filter(active) {
        // One that is named already is in use, whatever became of the rest of its rotation.
        if still_named(service, &label).await?.is_empty() {
            left.push(label);
        }
    }
    Ok(left)
}

/// When the next month or year begins, UTC.
fn next(every: Every, after: OffsetDateTime) -> OffsetDateTime {
    let (year, month) = match every {
        Every::Year => (after.year() + 1, Month::January),
        Every::Month if after.month() == Month::December => (after.year() + 1, Month::January),
        Every::Month => (after.year(), after.month().next()),
    };
    Date::from_calendar_date(year, month, 1)
        .map_or(after, |date| date.with_time(Time::MIDNIGHT).assume_utc())
}

pub(super) async fn roll(service: &Service, schedule: KekSchedule) -> Result<(), Problem> {
    service.tokens().started(STARTING).await;
    let label = match &schedule.making {
        Some(label) => label.clone(),
        None => {
            let label = follows(service, &schedule.label, schedule.due).await?;
            let making = KekSchedule {
                making: Some(label.clone()),
                ..schedule.clone()
            };
            stored(service.store().put_kek_schedule(&making).await)?;
            label
        }
    };
    let operator = format!("{} (by schedule)", schedule.operator);
    service.tokens().look_again().await;
    let made = service.directory().await?.by_label(&label).is_ok();
    if !made {
        let old = written_under(service, &schedule.label).await?;
        make(service, &operator, &old, label.clone(), None).await?;
    }
    let moves = stored(service.store().kek_moves().await)?;
    let planned = moves
        .into_iter()
        .find(|planned| planned.successor.same_as(&label))
        .unwrap_or_else(|| KekMove {
            id: Uuid::new_v4(),
            former: schedule.label.clone(),
            successor: label.clone(),
            due: schedule.due,
            operator,
            state: MoveState::Planned,
            note: None,
        });
    if planned.state == MoveState::Planned {
        carry_out(service, planned).await?;
    }
    let next = KekSchedule {
        label,
        due: next(schedule.every, OffsetDateTime::now_utc().max(schedule.due)),
        making: None,
        trouble: None,
        ..schedule.clone()
    };
    stored(
        service
            .store()
            .advance_kek_schedule(&schedule.label, &next)
            .await,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    #[test]
    fn periods_begin_on_their_first_day() {
        let at = datetime!(2026-12-31 23:59:59 UTC);
        assert_eq!(next(Every::Month, at), datetime!(2027-01-01 0:00 UTC));
        assert_eq!(next(Every::Year, at), datetime!(2027-01-01 0:00 UTC));
        let begin = datetime!(2027-01-01 0:00 UTC);
        assert_eq!(next(Every::Month, begin), datetime!(2027-02-01 0:00 UTC));
        assert_eq!(next(Every::Year, begin), datetime!(2028-01-01 0:00 UTC));
    }
}
