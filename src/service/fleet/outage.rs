//! What is given out while the database is out of reach, and where that is kept.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::api::DriveInRequest;
use crate::audit::Event;
use crate::policy::ResolveGrant;
use crate::problem::{EkmCode, Problem};
use crate::service::{Service, joined, unstored};
use crate::store::{Issuance, Issued, OutageCreates};

/// What a record says where the history could not be asked.
pub(in crate::service) const UNTRACED: &str = "where the EEDKs come from is not known, as the state database is out of reach; they count as not issued here";

/// Where what is given out is kept.
#[derive(Debug)]
pub(in crate::service) enum PlaceToKeep {
    /// In the state.
    State,
    /// In this server's queue.
    Queue(UnderWay),
}

/// Something that is to be queued, and is not yet.
#[derive(Debug)]
pub(in crate::service) struct UnderWay(Arc<AtomicUsize>);

impl UnderWay {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(count))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Service {
    /// A drive that is not in the table may have been added since it was read, where the database is
    /// out of reach.
    pub(in crate::service) fn unless_away(&self, problem: Problem) -> Problem {
        let down = self.part.as_ref().is_some_and(|part| part.fleet.is_down());
        if !down || problem.code != EkmCode::EF01 {
            return problem;
        }
        Problem::unavailable(format!(
            "{}; that is by the table as it was read before the state database went out of reach",
            problem.detail
        ))
    }

    /// Where a create for that drive is kept.
    pub(in crate::service) fn place_to_keep(
        &self,
        drive: &DriveInRequest,
    ) -> Result<PlaceToKeep, Problem> {
        let Some(part) = self.part.as_ref().filter(|part| part.fleet.is_down()) else {
            return Ok(PlaceToKeep::State);
        };
        let refused = |why: &str| {
            Err(Problem::unavailable(format!(
                "the state database is out of reach, and nothing new is written meanwhile: {why}; cartridges are read all the same"
            )))
        };
        if part.fleet.creates() == OutageCreates::Refuse {
            return refused("database.outage_creates = \"refuse\"");
        }
        if !drive.stores_eedks {
            return refused(
                "this drive stores no EEDKs on the cartridge (stores_eedks), so they would be on this server's disk alone",
            );
        }
        if !part.fleet.keys().any() {
            return refused("no token gave a key for the seal of the local queue");
        }
        let under_way = UnderWay::new(&part.under_way);
        // Where it is back by now, what it was told of others must be looked at again.
        if part.fleet.is_down() {
            Ok(PlaceToKeep::Queue(under_way))
        } else {
            Ok(PlaceToKeep::State)
        }
    }

    /// Keeps what is about to be given out.
    pub(in crate::service) async fn keep(
        &self,
        place: PlaceToKeep,
        issuance: &Issuance,
        event: &mut Event,
    ) -> Result<Issued, Problem> {
        let kept = match (place, &self.part) {
            (PlaceToKeep::Queue(_under_way), Some(part)) => {
                let told = "kept in this server's queue until the state database is back";
                event.detail = joined(event.detail.take(), Some(told.to_owned()));
                part.fleet.queue(issuance).await.map(|()| Issued::Now)
            }
            (PlaceToKeep::State, _) | (_, None) => self.store.issue(issuance).await,
        };
        kept.map_err(|error| unstored(&error))
    }
}

/// A refusal that comes of not knowing where an EEDK comes from is one for now.
pub(in crate::service) fn unless_untraced(problem: Problem, untraced: bool) -> Problem {
    // Of those with this code only that one may be otherwise on another server.
    if untraced && problem.code == EkmCode::EE30 && problem.elsewhere {
        return Problem::unavailable(format!(
            "{}; or it was, and the state database that knows is out of reach",
            problem.detail
        ));
    }
    problem
}

/// Without its history nobody can count what does not open.
pub(in crate::service) fn without_guarded(
    grant: ResolveGrant,
    untraced: bool,
) -> Result<ResolveGrant, Problem> {
    if !untraced || grant.guarded().is_none() {
        return Ok(grant);
    }
    let reason = "it is wrapped by RSAES-PKCS1-v1_5, and whether it was issued here is not known while the state database is out of reach";
    grant
        .unguarded(reason)
        .ok_or_else(|| Problem::unavailable(format!("the EEDK is not opened: {reason}")))
}

/// A rekey needs the history.
pub(in crate::service) fn no_rekey() -> Problem {
    Problem::unavailable(
        "the state database is out of reach, and no cartridge is rekeyed meanwhile; cartridges are read all the same",
    )
}
