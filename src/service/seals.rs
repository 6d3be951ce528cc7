//! The seals of partners' KEKs: verified by a token before anything is written under one, and
//! again whenever the row has changed.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use super::{Service, unstored};
use crate::key::KeyLabel;
use crate::keystore::SealSeen;
use crate::problem::{EkmCode, Problem};
use crate::store::Partner;

/// What was found of seals.
#[derive(Debug, Default)]
pub(super) struct Seals {
    // Rows whose seal was verified, by what it is over.
    good: Mutex<Arc<HashSet<[u8; 32]>>>,
    // Rows whose seal does not verify, by label, and why.
    broken: Mutex<BTreeMap<String, String>>,
}

impl Seals {
    pub(super) fn good(&self) -> Arc<HashSet<[u8; 32]>> {
        Arc::clone(&self.good.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn note(&self, partner: &Partner, seen: &SealSeen) {
        let label = partner.label.to_string();
        let mut good = self.good.lock().unwrap_or_else(PoisonError::into_inner);
        let mut broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
        match seen {
            SealSeen::Good => {
                Arc::make_mut(&mut good).insert(partner.digest());
                broken.remove(&label);
            }
            SealSeen::Broken(reason) => {
                Arc::make_mut(&mut good).remove(&partner.digest());
                if broken.insert(label, reason.clone()).is_none() {
                    tracing::error!(
                        partner = %partner.label,
                        hash = %partner.hash,
                        reason,
                        "the seal of a partner's KEK does not verify; nothing is written under it"
                    );
                }
            }
            SealSeen::Unknown(_) => {}
        }
    }
}

impl Service {
    /// Verifies the seal of a partner's KEK before something is written under it.
    ///
    /// # Errors
    /// It does not verify, or cannot be verified now.
    pub(super) async fn require_seal(&self, label: &KeyLabel) -> Result<(), Problem> {
        let certificates = self
            .store
            .certificates()
            .await
            .map_err(|error| unstored(&error))?;
        let Some(partner) = certificates
            .partners
            .iter()
            .find(|partner| partner.label.same_as(label))
        else {
            return Ok(());
        };
        match self.see_seal(partner).await {
            SealSeen::Good => Ok(()),
            SealSeen::Broken(reason) => Err(Problem::new(
                EkmCode::EE31,
                409,
                format!(
                    "the seal of the partner's KEK {label} does not verify, so nothing is written under it: {reason}; find out who changed the state, then remove it and confirm the partner's certificate anew (ekm kek partner remove, ekm kek partner add)"
                ),
            )),
            SealSeen::Unknown(reason) => Err(Problem::unavailable(format!(
                "the seal of the partner's KEK {label} cannot be verified now: {reason}"
            ))),
        }
    }

    /// Has the tokens verify the seal of a row, and notes what they say.
    pub(crate) async fn see_seal(&self, partner: &Partner) -> SealSeen {
        let seen = self.tokens.verify_seal(partner).await;
        self.seals.note(partner, &seen);
        seen
    }

    /// Verifies the seals of rows that were not verified yet, or did not verify.
    pub(crate) async fn see_new_seals(&self) {
        let Ok(certificates) = self.store.certificates().await else {
            return;
        };
        for partner in &certificates.partners {
            if !self.seals.good().contains(&partner.digest()) {
                self.see_seal(partner).await;
            }
        }
        let mut broken = self
            .seals
            .broken
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        broken.retain(|label, _| {
            let mut partners = certificates.partners.iter();
            partners.any(|partner| partner.label.as_str() == label)
        });
    }

    /// Partners' KEKs whose seal does not verify, and why.
    #[must_use]
    pub fn broken_seals(&self) -> Vec<(String, String)> {
        let broken = self
            .seals
            .broken
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        broken
            .iter()
            .map(|(label, reason)| (label.clone(), reason.clone()))
            .collect()
    }

    /// Has every seal verified again after a while: another server may have removed the row.
    pub(crate) fn forget_good_seals(&self) {
        let mut good = self
            .seals
            .good
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *good = Arc::default();
    }

    /// Has every seal verified again: a row that was removed and is put back must not pass for
    /// one that was verified before.
    pub(crate) fn forget_seals(&self) {
        let mut good = self
            .seals
            .good
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *good = Arc::default();
        drop(good);
        let mut broken = self
            .seals
            .broken
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        broken.clear();
    }
}
