//! Works through a rekey.
//!
//! It is a row of the state. Whichever server has taken it works it through, a step at a time, and
//! each data key's request has a number that follows from the rekey's and the data key's: what a
//! server that died had done is not done twice.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt as _};
use sha2::{Digest as _, Sha256};
use tokio::time::MissedTickBehavior;
use uuid::Uuid;

use super::super::{TAKEN_BACK, event, record, stored, volumes};
use super::MOST_RATE;
use crate::audit::{Audited, Outcome};
use crate::key::{KekRef, KeyLabel};
use crate::problem::Problem;
use crate::service::{Rekeyed, Service};
use crate::store::{
    EedkState, KekMove, KekState, MoveState, Place, RekeyAsked, RekeyFailure, RekeyJob, RekeyPlace,
    RekeyState, VolumeQuery, VolumeSet,
};
use crate::tls::{PeerId, Role};

/// Rows of the history that are worked on in one step.
const STEP: usize = 64;

/// Data keys that are rekeyed at once: few, since drives come first.
const AT_ONCE: usize = 4;

/// So many failures, and nothing that succeeded, end it.
const HOPELESS: u64 = 20;

/// Works through the rekeys that run, as far as can be done now.
///
/// # Errors
/// The state or the records.
pub(crate) async fn work_on_rekeys(service: &Arc<Service>) -> Result<(), Problem> {
    for job in stored(service.store().running_rekeys().await)? {
        if stored(service.store().take_rekey(&job.id, service.node()).await)? {
            run(service, job).await?;
        }
    }
    Ok(())
}

/// How one data key came out.
enum Came {
    Done,
    Skipped,
    Failed(RekeyFailure),
    /// The keystores cannot do it now.
    NotNow(RekeyFailure),
}

async fn run(service: &Arc<Service>, job: RekeyJob) -> Result<(), Problem> {
    let store = service.store();
    let node = service.node();
    let mut place = job.place;
    let mut count = job.count;
    let mut pace = job.asked.rate.map(|rate| {
        let mut pace = tokio::time::interval(between(rate));
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        pace
    });
    loop {
        let Some(Step {
            sets,
            already,
            looked,
            end,
        }) = step(service, &job, place.as_ref()).await?
        else {
            break;
        };
        let mut now = count;
        now.looked += looked;
        now.done += already;
        let mut not_now = Vec::new();
        // Whether one was done after others could not be: it is their keystores that are away.
        let mut overtaken = false;
        let mut beat = Instant::now();
        let mut sets = sets.into_iter();
        loop {
            let mut part = Vec::new();
            for set in sets.by_ref().take(AT_ONCE) {
                if let Some(pace) = &mut pace {
                    pace.tick().await;
                }
                part.push(set);
            }
            if part.is_empty() {
                break;
            }
            let (waited, before) = (!not_now.is_empty(), now.done);
            let each = part.into_iter().map(|set| one(service, &job, set));
            let came: Vec<Came> = stream::iter(each).buffer_unordered(AT_ONCE).collect().await;
            for came in came {
                match came {
                    Came::Done => now.done += 1,
                    Came::Skipped => now.skipped += 1,
                    Came::Failed(failure) => {
                        now.failed += 1;
                        stored(store.note_rekey_failure(&job.id, &failure).await)?;
                        if now.done == 0 && now.failed >= HOPELESS {
                            return stop(service, &job, &failure.reason).await;
                        }
                    }
                    Came::NotNow(failure) => not_now.push(failure),
                }
            }
            overtaken |= waited && now.done > before;
            if !overtaken && not_now.len() >= AT_ONCE * 2 {
                break;
            }
            // A slow one says that it lives, and hears that it was cancelled.
            if beat.elapsed() > Duration::from_secs(5) {
                beat = Instant::now();
                if !stored(
                    store
                        .advance_rekey(&job.id, node, place, &count, None)
                        .await,
                )? {
                    return Ok(());
                }
            }
        }
        if overtaken {
            for failure in std::mem::take(&mut not_now) {
                now.failed += 1;
                stored(store.note_rekey_failure(&job.id, &failure).await)?;
            }
        }
        if let Some(RekeyFailure { reason: why, .. }) = not_now.first() {
            tracing::warn!(rekey = %job.id, why, "a rekey waits");
            // This step is done again; what it did is found done.
            let advanced = store.advance_rekey(&job.id, node, place, &count, Some(why));
            return stored(advanced.await).map(drop);
        }
        count = now;
        place = Some(end);
        if !stored(
            store
                .advance_rekey(&job.id, node, place, &count, None)
                .await,
        )? {
            return Ok(());
        }
    }
    let mut event = event("volume-rekey-end", &job.operator);
    event.request = Some(job.id.to_string());
    event.detail = Some(format!(
        "{} rekeyed in the catalog, {} skipped, {} failed",
        count.done, count.skipped, count.failed
    ));
    if count.failed > 0 {
        event.outcome = Outcome::Failure;
    }
    record(service, event).await?;
    let done = store.turn_rekey(&job.id, &[RekeyState::Running], RekeyState::Done, None);
    stored(done.await).map(drop)
}

/// Time between two volumes. The rate was checked as the rekey was asked for, but the row may be
/// another version's; a timer of no length panics, and would again at whichever server takes it.
fn between(rate: u32) -> Duration {
    Duration::from_secs(1) / rate.clamp(1, MOST_RATE)
}

async fn stop(service: &Service, job: &RekeyJob, why: &str) -> Result<(), Problem> {
    let mut event = event("volume-rekey-end", &job.operator);
    event.request = Some(job.id.to_string());
    event.outcome = Outcome::Failure;
    event.detail = Some(format!("stopped, as the first {HOPELESS} failed: {why}"));
    record(service, event).await?;
    let stopped = service.store().turn_rekey(
        &job.id,
        &[RekeyState::Running],
        RekeyState::Stopped,
        Some(why),
    );
    stored(stopped.await).map(drop)
}

/// A step of a rekey.
struct Step {
    /// What is to be rekeyed.
    sets: Vec<VolumeSet>,
    /// Data keys that this rekey has done, before its server died in the midst of the step.
    already: u64,
    /// Rows that were looked at.
    looked: u64,
    /// Where it ends.
    end: RekeyPlace,
}

/// The next step; none where there is nothing more.
async fn step(
    service: &Service,
    job: &RekeyJob,
    place: Option<&RekeyPlace>,
) -> Result<Option<Step>, Problem> {
    let store = service.store();
    let RekeyAsked { volsers, query, .. } = &job.asked;
    let (page, looked, end): (Vec<Place>, usize, RekeyPlace) = if volsers.is_empty() {
        let behind = match place {
            Some(RekeyPlace::Behind(place)) => Some(place),
            Some(RekeyPlace::Volumes(_)) | None => None,
        };
        let page = stored(store.walk_volumes(query, behind, STEP).await)?;
        let Some(last) = page.last().copied() else {
            return Ok(None);
        };
        let looked = page.len();
        (page, looked, RekeyPlace::Behind(last))
    } else {
        let begun = match place {
            Some(RekeyPlace::Volumes(begun)) => *begun,
            Some(RekeyPlace::Behind(_)) | None => 0,
        };
        let Some(volser) = volsers.get(begun) else {
            return Ok(None);
        };
        let query = VolumeQuery {
            volser: Some(volser.clone()),
            ..query.clone()
        };
        let most = volumes::MOST_VOLUMES;
        let page = stored(store.walk_volumes(&query, None, most).await)?;
        (page, 1, RekeyPlace::Volumes(begun + 1))
    };
    let mut step = Step {
        sets: Vec::new(),
        already: 0,
        looked: u64::try_from(looked).unwrap_or(u64::MAX),
        end,
    };
    let dkis: Vec<_> = page.iter().map(|place| place.dki).collect();
    for key in stored(store.data_keys(&dkis).await)? {
        // The catalog's when the rekey began, whatever became of it since.
        let mut before = key
            .sets
            .iter()
            .filter(|set| set.key.created < job.began && set.key.state != EedkState::Abandoned);
        let Some(base) = before.next_back() else {
            continue;
        };
        let here = page
            .iter()
            .any(|place| (place.dki, place.generation) == (key.dki, base.key.generation));
        match key.catalog() {
            Some(catalog) if here && catalog == base => step.sets.push(base.clone()),
            Some(catalog) if here && catalog.pending && catalog.key.created >= job.began => {
                step.already += 1;
            }
            Some(_) | None => {}
        }
    }
    Ok(Some(step))
}

async fn one(service: &Arc<Service>, job: &RekeyJob, set: VolumeSet) -> Came {
    let failure = |reason: String| RekeyFailure {
        dki: set.key.dki,
        volser: set.key.volser.clone(),
        reason,
    };
    let failed = |reason: String| Came::Failed(failure(reason));
    if set.written_off.is_some() {
        return Came::Skipped;
    }
    let named = |index: usize| {
        let stored = set.key.eedks.get(index)?;
        Some(KekRef {
            label: stored.kek_label.clone(),
            encoding: stored.eedk.kek().encoding(),
        })
    };
    let has = [named(0), named(1)];
    let wants = wanted(&job.asked, &set, &has);
    let same = has
        .iter()
        .zip(&wants)
        .all(|(has, wants)| match (has, wants) {
            (Some(has), Some(wants)) => {
                has.label.same_as(&wants.label) && has.encoding == wants.encoding
            }
            (None, None) => true,
            _ => false,
        });
    if same {
        return Came::Skipped;
    }
    let [Some(kek1), kek2] = wants else {
        return failed("it has no EEDK in the catalog".to_owned());
    };
    let Ok(peer) = PeerId::new(Role::Operator, "rekey") else {
        return failed("a rekey has no name".to_owned());
    };
    let request = request_of(&job.id, set.key.dki.as_bytes());
    let verb = {
        let (service, set) = (Arc::clone(service), set.clone());
        let operator = job.operator.clone();
        async move {
            let keks = (&kek1, kek2.as_ref());
            service
                .rekey_from_catalog(&peer, &operator, request, &set, keks)
                .await
                .map(Audited::into_inner)
        }
    };
    match Arc::clone(service).to_the_end(verb).await {
        Ok(Rekeyed::Now | Rekeyed::Before) => Came::Done,
        Err(problem) if problem.status == 503 => Came::NotNow(failure(problem.detail)),
        Err(problem) => {
            // Else the advice would be to make the KEK active again that was meant to go.
            let why = match closed(service, &job.asked, &set).await {
                Ok(closed) => closed,
                Err(unread) => return Came::NotNow(failure(unread.detail)),
            };
            failed(format!(
                "{}: {}",
                problem.code,
                why.unwrap_or(problem.detail)
            ))
        }
    }
}

/// Why a volume's other EEDK cannot be made again under its own KEK, where that is so: the KEK is
/// not written under any more.
async fn closed(
    service: &Service,
    asked: &RekeyAsked,
    set: &VolumeSet,
) -> Result<Option<String>, Problem> {
    let Some(from) = asked.query.kek.filter(|_| asked.replace) else {
        return Ok(None);
    };
    let states = stored(service.store().kek_states().await)?;
    let other = set
        .key
        .eedks
        .iter()
        .find(|one| one.kek_hash != from && states.state(&one.kek_hash) != KekState::Active);
    let Some(kept) = other else {
        return Ok(None);
    };
    let moves = stored(service.store().kek_moves().await)?;
    Ok(Some(other_closed(
        &kept.kek_label,
        states.state(&kept.kek_hash),
        successor(&moves, &kept.kek_label),
    )))
}

fn other_closed(label: &KeyLabel, state: KekState, successor: Option<&KeyLabel>) -> String {
    let said = match successor {
        Some(successor) => format!("--kek2 {successor}"),
        None => "--kek2 LABEL".to_owned(),
    };
    format!("its other EEDK is under {label}, which is {state}: name its successor with {said}")
}

/// The KEK that is written under in the place of another one, as rotations are on record.
fn successor<'a>(moves: &'a [KekMove], former: &KeyLabel) -> Option<&'a KeyLabel> {
    let mut last = follower(moves, former)?;
    // It may have been rotated since. No longer than there are moves: rows that go round do no harm.
    for _ in moves {
        match follower(moves, &last.successor) {
            Some(next) if next.state == MoveState::Done => last = next,
            Some(_) | None => break,
        }
    }
    Some(&last.successor)
}

fn follower<'a>(moves: &'a [KekMove], former: &KeyLabel) -> Option<&'a KekMove> {
    moves.iter().find(|one| {
        let note = one.note.as_deref().unwrap_or_default();
        let taken_back = one.state == MoveState::Done && note.starts_with(TAKEN_BACK);
        one.former.same_as(former) && !taken_back
    })
}

/// The KEKs that a volume is to have, in order.
fn wanted(asked: &RekeyAsked, set: &VolumeSet, has: &[Option<KekRef>; 2]) -> [Option<KekRef>; 2] {
    let kek1 = || Some(asked.kek1.clone());
    let Some(from) = asked.query.kek.filter(|_| asked.replace) else {
        return [kek1(), asked.kek2.clone()];
    };
    let gives_way = |index: usize| {
        let eedk = set.key.eedks.get(index);
        eedk.is_some_and(|stored| stored.kek_hash == from)
    };
    let [first, second] = has.clone();
    match (gives_way(0), gives_way(1)) {
        (true, true) => [kek1(), None],
        (true, false) => [kek1(), second],
        (false, true) => [first, kek1()],
        (false, false) => [first, second],
    }
}

/// The number of the request for a data key: the same whoever works on the rekey, and when.
fn request_of(job: &Uuid, dki: &[u8]) -> Uuid {
    let digest = Sha256::new()
        .chain_update(job.as_bytes())
        .chain_update(dki)
        .finalize();
    let bytes: [u8; 16] = digest.first_chunk().copied().unwrap_or_default();
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

    use super::*;

    fn moved(former: &str, successor: &str, state: MoveState, note: Option<&str>) -> KekMove {
        KekMove {
            id: Uuid::new_v4(),
            former: former.parse().unwrap(),
            successor: successor.parse().unwrap(),
            due: OffsetDateTime::UNIX_EPOCH,
            operator: "operator:test".to_owned(),
            state,
            note: note.map(str::to_owned),
        }
    }

    #[test]
    fn the_other_eedk_under_a_kek_that_was_rotated_names_its_successor() {
        let taken_back = format!("{TAKEN_BACK} by operator:test");
        let moves = [
            moved("B-3", "B-4", MoveState::Planned, None),
            moved("B-1", "B-X", MoveState::Done, Some(&taken_back)),
            moved("b-1", "B-2", MoveState::Done, None),
            moved("B-2", "B-3", MoveState::Done, None),
        ];
        let label = |text: &str| text.parse::<KeyLabel>().unwrap();
        // The one of a rotation that is only planned is not the newest yet.
        assert_eq!(successor(&moves, &label("B-1")), Some(&label("B-3")));
        assert_eq!(successor(&moves, &label("A")), None);
        assert_eq!(
            other_closed(&label("B-1"), KekState::Retired, Some(&label("B-3"))),
            "its other EEDK is under B-1, which is retired: name its successor with --kek2 B-3"
        );
        assert!(other_closed(&label("A"), KekState::Retired, None).ends_with("--kek2 LABEL"));
        let round = [
            moved("A", "B", MoveState::Done, None),
            moved("B", "A", MoveState::Done, None),
        ];
        assert!(successor(&round, &label("A")).is_some());
    }

    #[tokio::test]
    async fn a_rate_of_the_state_whatever_it_is_makes_a_timer() {
        assert_eq!(between(0), Duration::from_secs(1));
        assert_eq!(between(20), Duration::from_millis(50));
        for rate in [1_000_000_001, u32::MAX] {
            // It panics for no time at all.
            tokio::time::interval(between(rate)).tick().await;
        }
    }
}
