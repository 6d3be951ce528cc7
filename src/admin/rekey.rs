//! Rekeys of volumes by the catalog: asked for, looked at, ended.

mod work;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Reply, conflict, event, known, record, stored, volumes};
use crate::key::KekRef;
use crate::problem::{EkmCode, Problem};
use crate::service::Service;
use crate::store::{RekeyAsked, RekeyCount, RekeyFailure, RekeyJob, RekeyState};
use crate::volser::Volser;

use volumes::VolumeFilter;
pub(crate) use work::work_on_rekeys;

/// What a rekey does not do.
pub const OLD_EEDKS: &str = "An EEDK that was copied earlier, from a cartridge or a backup, still \
    opens its tape for whoever has the old KEK: a rekey changes the EEDKs, not the data key. Only \
    writing the data anew, under a new data key, ends that.";

/// Most volumes a second that a rekey may be held to; more is as good as no limit.
pub const MOST_RATE: u32 = 100_000;

/// Rows that are counted before it begins.
const COUNTED: usize = 100_000;

/// Failures that are shown.
const SHOWN: usize = 20;

/// What is to be rekeyed.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RekeyWanted {
    /// These volumes.
    pub volsers: Vec<Volser>,
    /// Or what the history has of these.
    pub filter: VolumeFilter,
    /// Whether all are meant that the filter finds.
    pub all_of: bool,
    /// First new KEK.
    pub kek1: KekRef,
    /// Second new KEK.
    pub kek2: Option<KekRef>,
    /// Most volumes a second, from 1 to [`MOST_RATE`].
    pub rate: Option<u32>,
}

/// What an operator does with a rekey.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RekeyAct {
    /// Begins one.
    Start(Box<RekeyWanted>),
    /// Looks at one, or at all.
    Status(Option<Uuid>),
    /// Begins one again that has ended.
    Resume(Uuid),
    /// Ends one.
    Cancel(Uuid),
}

/// A rekey, with what it could not do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RekeySeen {
    /// The rekey.
    #[serde(flatten)]
    pub job: RekeyJob,
    /// The first of those that failed.
    pub failures: Vec<RekeyFailure>,
}

pub(super) async fn act(
    service: &Service,
    operator: &str,
    act: RekeyAct,
) -> Result<Reply, Problem> {
    match act {
        RekeyAct::Start(wanted) => start(service, operator, *wanted).await,
        RekeyAct::Status(None) => {
            let jobs = stored(service.store().rekeys(SHOWN).await)?;
            Ok(Reply::Rekeys(
                jobs.into_iter()
                    .map(|job| RekeySeen {
                        job,
                        failures: Vec::new(),
                    })
                    .collect(),
            ))
        }
        RekeyAct::Status(Some(id)) => seen(service, &id).await,
        RekeyAct::Resume(id) => {
            let from = [RekeyState::Done, RekeyState::Cancelled, RekeyState::Stopped];
            turn(
                service,
                operator,
                "volume-rekey-resume",
                &id,
                &from,
                RekeyState::Running,
            )
            .await
        }
        RekeyAct::Cancel(id) => {
            let from = [RekeyState::Running, RekeyState::Stopped];
            turn(
                service,
                operator,
                "volume-rekey-cancel",
                &id,
                &from,
                RekeyState::Cancelled,
            )
            .await
        }
    }
}

/// That a rekey can be held to the rate.
fn paced(rate: Option<u32>) -> Result<(), Problem> {
    match rate.filter(|rate| !(1..=MOST_RATE).contains(rate)) {
        None => Ok(()),
        Some(rate) => Err(conflict(
            EkmCode::EE30,
            format!(
                "a rate is from 1 to {MOST_RATE} volumes a second, not {rate}; leave --rate out for no limit"
            ),
        )),
    }
}

async fn start(service: &Service, operator: &str, wanted: RekeyWanted) -> Result<Reply, Problem> {
    let RekeyWanted {
        volsers,
        filter,
        all_of,
        kek1,
        kek2,
        rate,
    } = wanted;
    paced(rate)?;
    known(service, [Some(&kek1), kek2.as_ref()].into_iter().flatten()).await?;
    service
        .may_write([Some(&kek1), kek2.as_ref()], None)
        .await?;
    if volsers.is_empty() && filter == VolumeFilter::default() {
        return Err(conflict(
            EkmCode::EE30,
            "say which volumes: --volser V, or --from-kek OLD and other filters".to_owned(),
        ));
    }
    for volser in &volsers {
        volumes::in_history(service, volser).await?;
    }
    let replace = filter.kek.is_some() && kek2.is_none();
    let began = OffsetDateTime::now_utc();
    let mut query = volumes::query(service, &filter).await?;
    // What is made while it runs is not its concern.
    query.until = Some(query.until.map_or(began, |until| until.min(began)));
    let total = if volsers.is_empty() {
        stored(service.store().count_volumes(&query, COUNTED).await)?
    } else {
        volsers.len()
    };
    if volsers.is_empty() && !all_of {
        return Ok(Reply::RekeyWould {
            rows: total,
            all: total < COUNTED,
        });
    }
    let job = RekeyJob {
        id: Uuid::new_v4(),
        asked: RekeyAsked {
            volsers,
            query,
            kek1,
            kek2,
            replace,
            rate,
        },
        operator: operator.to_owned(),
        began,
        state: RekeyState::Running,
        why: None,
        owner: String::new(),
        place: None,
        total: u64::try_from(total).unwrap_or(u64::MAX),
        count: RekeyCount::default(),
    };
    let mut event = event("volume-rekey-start", operator);
    event.request = Some(job.id.to_string());
    event.keks = [Some(&job.asked.kek1), job.asked.kek2.as_ref()]
        .into_iter()
        .flatten()
        .map(ToString::to_string)
        .collect();
    event.detail = serde_json::to_string(&job.asked).ok();
    record(service, event).await?;
    stored(service.store().add_rekey(&job).await)?;
    service.wake();
    seen(service, &job.id).await
}

async fn seen(service: &Service, id: &Uuid) -> Result<Reply, Problem> {
    let job = stored(service.store().rekey_job(id).await)?.ok_or_else(|| {
        Problem::new(
            EkmCode::EE30,
            404,
            format!("there is no rekey {id} (ekm volume rekey --status)"),
        )
    })?;
    let failures = stored(service.store().rekey_failures(id, SHOWN).await)?;
    Ok(Reply::Rekeys(vec![RekeySeen { job, failures }]))
}

async fn turn(
    service: &Service,
    operator: &str,
    action: &str,
    id: &Uuid,
    from: &[RekeyState],
    to: RekeyState,
) -> Result<Reply, Problem> {
    let mut event = event(action, operator);
    event.request = Some(id.to_string());
    record(service, event).await?;
    if !stored(service.store().turn_rekey(id, from, to, None).await)? {
        let Reply::Rekeys(seen) = seen(service, id).await? else {
            return Ok(Reply::Done);
        };
        let state = seen.first().map(|seen| seen.job.state.to_string());
        return Err(conflict(
            EkmCode::EE30,
            format!("rekey {id} is {} already", state.unwrap_or_default()),
        ));
    }
    service.wake();
    seen(service, id).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_that_no_timer_keeps_is_refused_before_it_is_in_the_state() {
        for good in [None, Some(1), Some(20), Some(MOST_RATE)] {
            assert!(paced(good).is_ok(), "{good:?}");
        }
        for bad in [0, MOST_RATE + 1, 1_000_000_001, u32::MAX] {
            let refused = paced(Some(bad)).unwrap_err();
            assert_eq!(refused.code, EkmCode::EE30);
            assert!(refused.detail.contains("--rate"), "{}", refused.detail);
        }
    }
}
