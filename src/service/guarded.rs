//! Resolves of EEDKs of which nobody may learn whether they open.
//!
//! The drive gets an answer of one form, whatever came of the EEDK; the operator gets the truth, in
//! the record and in the log.

use std::time::Duration;

use tokio::time::timeout;

use super::openings::Place;
use super::{BudgetSeen, OpeningsCounted, Service, joined, unstored};
use crate::audit::{Event, Outcome};
use crate::deadline;
use crate::exchange::ExchangeError;
use crate::keystore::{Guard, Guarded};
use crate::policy::ResolveGrant;
use crate::problem::{EkmCode, Problem};
use crate::store::{Forgiven, Store, StoreError};
use crate::tls::PeerId;

/// How long a request waits for a place in the budgets.
const PATIENCE: Duration = Duration::from_secs(15);

/// The guard of a server: with the state's secret, so that a throw-away key is the same after a
/// restart and for every token.
///
/// # Errors
/// The state cannot be read or written.
pub(super) async fn guard(store: &dyn Store) -> Result<Guard, StoreError> {
    store.guard_secret().await.map(|secret| Guard::new(&secret))
}

impl Service {
    /// The grant, with a place in the budgets where it has an EEDK that needs one; without that
    /// EEDK where a budget is spent and there is another.
    ///
    /// # Errors
    /// A budget is spent, and there is no other EEDK.
    pub(super) async fn within_budget(
        &self,
        peer: &PeerId,
        grant: ResolveGrant,
    ) -> Result<(ResolveGrant, Option<Place>), Problem> {
        let Some(kek) = grant.guarded() else {
            return Ok((grant, None));
        };
        // Those under way might spend the rest; whoever waits for that holds nothing.
        let Ok(taken) = timeout(deadline::left(PATIENCE), self.openings.take(peer, &kek)).await
        else {
            return Err(Problem::busy(
                "the key service is busy: other EEDKs by PKCS#1 v1.5 are being opened; try again in 5 s",
                5,
            ));
        };
        let spent = match taken {
            Ok(place) => return Ok((grant, Some(place))),
            Err(spent) => spent.to_string(),
        };
        let detail = format!("the EEDK is not opened: {spent}");
        match grant.unguarded(&spent) {
            Some(grant) => Ok((grant, None)),
            None => Err(Problem::new(EkmCode::EE30, 403, detail)),
        }
    }

    /// Commits what came of a guarded EEDK, and tells the operator.
    ///
    /// # Errors
    /// The state cannot be written.
    pub(super) async fn note_opening(
        &self,
        budget: Option<Place>,
        came: &Guarded,
        index: usize,
        event: &mut Event,
    ) -> Result<(), Problem> {
        let number = index + 1;
        let (peer, drive) = (event.peer.clone(), event.drive.clone());
        let what = format!("EEDK {number} is wrapped by RSAES-PKCS1-v1_5 and was not issued here");
        let told = match came {
            Guarded::Opened => {
                tracing::info!(peer, drive, number, "a guarded EEDK opened");
                format!("{what}; it opened")
            }
            Guarded::Rejected { function, name } => {
                tracing::warn!(
                    peer,
                    drive,
                    number,
                    function,
                    answer = name,
                    "a guarded EEDK did not open; the drive was given a throw-away key"
                );
                event.outcome = Outcome::Failure;
                event.code = Some(EkmCode::EE32.to_string());
                format!(
                    "{what}; it did not open ({function}: {name}), and the drive was given a throw-away key, so that nobody can tell"
                )
            }
        };
        event.detail = joined(event.detail.take(), Some(told));
        let Some(place) = budget else {
            return Err(Problem::internal(
                "a guarded EEDK was opened without a budget",
            ));
        };
        self.openings
            .note(&*self.store, place, came)
            .await
            .map_err(|error| unstored(&error))
    }

    /// Counts a guarded EEDK of which a token gave no word: that it failed may come of its padding.
    ///
    /// # Errors
    /// The state cannot be written.
    pub(super) async fn note_unanswered(
        &self,
        budget: Option<Place>,
        error: &ExchangeError,
    ) -> Result<(), Problem> {
        let Some(place) = budget.filter(|_| error.was_asked()) else {
            return Ok(());
        };
        let came = Guarded::Rejected {
            function: "exchange".to_owned(),
            name: error.to_string(),
        };
        self.openings
            .note(&*self.store, place, &came)
            .await
            .map_err(|error| unstored(&error))
    }

    /// The budgets of guarded EEDKs that failures count in.
    #[must_use]
    pub fn budgets(&self) -> Vec<BudgetSeen> {
        self.openings.seen()
    }

    /// What was counted of them since the server started.
    #[must_use]
    pub fn openings(&self) -> OpeningsCounted {
        self.openings.counted()
    }

    /// Has failures count no longer.
    ///
    /// # Errors
    /// The state cannot be written.
    pub(crate) async fn forgive(&self, whose: &Forgiven) -> Result<(), Problem> {
        self.store
            .forgive_openings(whose)
            .await
            .map_err(|error| unstored(&error))?;
        self.openings.forget(whose);
        Ok(())
    }
}
