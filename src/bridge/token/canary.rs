//! The canary: an EEDK of the token's own, which tells whether the token or a key is at fault.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use secrecy::{ExposeSecret, SecretSlice};
use subtle::ConstantTimeEq;

use super::{Epoch, Token, wrapping};
use crate::bridge::catalog::Catalog;
use crate::bridge::faults::{Fault, FaultClass};
use crate::bridge::host;
use crate::bridge::message::{Custody, KekOnToken, PrivateHalf};
use crate::bridge::pkcs11::{CK_SESSION_HANDLE, Call};
use crate::key::{Eedk, KekHash, WrapAlgorithm};

/// KEKs that were refused by a trial and are tried again at one look.
const TRIALS: usize = 3;

/// What is wrong with a canary that opens and does not hold what was wrapped.
pub(in crate::bridge) const OTHER: &str =
    "opens to another value than was wrapped: the token does not decrypt rightly";

/// An EEDK of the token's own, to tell a bad EEDK from a broken token.
#[derive(Clone, Debug)]
pub(in crate::bridge) struct Canary {
    kek: KekHash,
    custody: Custody,
    // What was wrapped.
    known: Arc<SecretSlice<u8>>,
    wrapped: Vec<u8>,
}

impl Token {
    /// Tries KEKs again that were refused for opening no canary: that may have been the token's
    /// slip, and else they would stay so until the next login. A look does not fail by it. Those
    /// that open now serve from a new epoch on; without one there is none, as each ends all
    /// sessions.
    pub(super) fn try_again(&self, session: CK_SESSION_HANDLE, epoch: &Epoch) {
        let refused = epoch.catalog.refused_since(&epoch.as_read);
        if refused.is_empty() {
            return;
        }
        let from = self.retried.fetch_add(TRIALS, Ordering::Relaxed) % refused.len();
        let turn = refused.iter().cycle().skip(from);
        let mut catalog = epoch.catalog.clone();
        for (hash, custody) in turn.take(TRIALS.min(refused.len())) {
            let Some((kek, _)) = epoch.as_read.kek(hash) else {
                continue;
            };
            let Ok(canary) = self.canary_of(kek, *custody) else {
                continue;
            };
            // The look's own session where the token gives no other.
            let sung = self
                .sing_apart(&epoch.as_read, &canary)
                .unwrap_or_else(|| self.sing(session, &epoch.as_read, &canary));
            if sung.is_ok_and(|same| same) {
                tracing::info!(
                    token = self.name,
                    kek = %kek.label,
                    "the KEK opens a canary now, and serves"
                );
                catalog.reinstate(hash, &epoch.as_read);
            }
        }
        if catalog != epoch.catalog {
            self.begin_epoch(catalog, epoch.as_read.clone(), epoch.canary.clone());
        }
    }

    /// A canary under the first KEK that opens one. A key that does not is
    /// refused by name; that none does is the token's fault.
    pub(super) fn make_canary(
        &self,
        session: CK_SESSION_HANDLE,
        catalog: &mut Catalog,
    ) -> Result<Option<Canary>, Fault> {
        let mut failed = None;
        while let Some((kek, custody)) = catalog.canary() {
            let (hash, label) = (kek.hash, kek.label.clone());
            let canary = self.canary_of(kek, custody)?;
            let mut sung = self.sing(session, catalog, &canary);
            if !sung.is_ok_and(|same| same) {
                // One slip of the token refuses no key, nor a session that it left stuck.
                let again = self
                    .sing_apart(catalog, &canary)
                    .unwrap_or_else(|| self.sing(session, catalog, &canary));
                if again.is_ok_and(|same| same) {
                    sung = again;
                }
            }
            let (fault, of_key) = match sung {
                Ok(true) => return Ok(Some(canary)),
                Ok(false) => (
                    self.unsupported(format!("the first canary under KEK {label} {OTHER}")),
                    true,
                ),
                Err(error) => (
                    Fault::call(
                        &self.name,
                        error,
                        format!("opening the first canary under KEK {label}"),
                    ),
                    matches!(error.class, FaultClass::Request | FaultClass::Ambiguous),
                ),
            };
            // Anything else is no word about this key.
            if !of_key {
                return Err(fault);
            }
            catalog.refuse(&hash, &fault.to_string());
            failed.get_or_insert(fault);
        }
        failed.map_or(Ok(None), Err)
    }

    fn canary_of(&self, kek: &KekOnToken, custody: Custody) -> Result<Canary, Fault> {
        let (known, wrapped) = self.wrap_nonsense(&kek.spki, self.profile.wrap_algorithm(), &[])?;
        Ok(Canary {
            kek: kek.hash,
            custody,
            known: Arc::new(known),
            wrapped,
        })
    }

    /// Opens the canary on a session of its own; none where the token gives no session.
    fn sing_apart(&self, catalog: &Catalog, canary: &Canary) -> Option<Call<bool>> {
        let session = self.session().ok()?;
        let sung = self.sing(session, catalog, canary);
        // It may be gone already, and there is nothing else to do with it.
        let _ = self.module.close_session(session);
        Some(sung)
    }

    /// A key that opens nothing, and the same under a public key; it may as well come from here.
    fn wrap_nonsense(
        &self,
        spki: &[u8],
        algorithm: WrapAlgorithm,
        dki: &[u8],
    ) -> Result<(SecretSlice<u8>, Vec<u8>), Fault> {
        let unsupported = |reason: String| self.unsupported(reason);
        let mut random = vec![0_u8; 32];
        aws_lc_rs::rand::fill(&mut random)
            .map_err(|_| unsupported("the operating system gives no random numbers".to_owned()))?;
        let known = SecretSlice::from(random);
        let wrapped = host::wrap(spki, algorithm, dki, &known)
            .map_err(|error| unsupported(error.to_string()))?;
        Ok((known, wrapped))
    }

    /// Whether an EEDK of this KEK, wrapped this way, opens at all.
    pub(in crate::bridge) fn opens_any(
        &self,
        session: CK_SESSION_HANDLE,
        catalog: &Catalog,
        kek: &KekHash,
        eedk: &Eedk,
    ) -> bool {
        let Some((entry, handles)) = catalog.kek(kek) else {
            return false;
        };
        let Some(private) = handles.private else {
            return false;
        };
        let Ok((known, wrapped)) = self.wrap_nonsense(&entry.spki, eedk.wrap(), eedk.oaep_label())
        else {
            return false;
        };
        let mechanism = wrapping(eedk.wrap(), eedk.oaep_label());
        match entry.private {
            PrivateHalf::Serves {
                custody: Custody::Host,
                ..
            } => self
                .module
                .decrypt(session, &mechanism, private, &wrapped)
                .is_ok_and(|opened| same(&opened, &known)),
            PrivateHalf::Serves { .. } | PrivateHalf::Absent | PrivateHalf::Refused { .. } => self
                .module
                .unwrap(
                    session,
                    &mechanism,
                    private,
                    &wrapped,
                    &self.unwrap_template(false, self.opens_trusted(entry)),
                )
                .and_then(|key| self.module.destroy(session, key))
                .is_ok(),
        }
    }

    /// Opens the canary, and whether it holds what was wrapped; what fails here is the token's
    /// fault. In custody `token` nothing comes out that could be compared without more calls.
    pub(in crate::bridge) fn sing(
        &self,
        session: CK_SESSION_HANDLE,
        catalog: &Catalog,
        canary: &Canary,
    ) -> Call<bool> {
        let Some((entry, handles)) = catalog.kek(&canary.kek) else {
            return Ok(false);
        };
        let Some(private) = handles.private else {
            return Ok(false);
        };
        let mechanism = wrapping(self.profile.wrap_algorithm(), &[]);
        match canary.custody {
            Custody::Token => {
                let key = self.module.unwrap(
                    session,
                    &mechanism,
                    private,
                    &canary.wrapped,
                    &self.unwrap_template(false, self.opens_trusted(entry)),
                )?;
                self.module.destroy(session, key).map(|()| true)
            }
            Custody::Host => self
                .module
                .decrypt(session, &mechanism, private, &canary.wrapped)
                .map(|opened| same(&opened, &canary.known)),
        }
    }
}

fn same(opened: &SecretSlice<u8>, known: &SecretSlice<u8>) -> bool {
    opened.expose_secret().ct_eq(known.expose_secret()).into()
}
