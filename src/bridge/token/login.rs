//! The login, under the guard of the PIN counter.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cryptoki_sys as ck;

use super::Token;
use crate::bridge::faults::{Fault, FaultClass, ckr_name};
use crate::bridge::pin::ledger::{self, Ledger};
use crate::bridge::pin::{Pin, PinError, Sourced};
use crate::bridge::pkcs11::{CK_SESSION_HANDLE, TokenInfo};
use crate::bridge::profile::CountLow;

/// How a token is logged in to.
#[derive(Clone, Debug)]
pub(in crate::bridge) struct Logins {
    /// Its user PIN.
    pub(in crate::bridge) pin: Pin,
    /// The directory of the files that guard the PIN counters.
    pub(in crate::bridge) ledgers: PathBuf,
    /// Held over a login: the bridge does not end itself in the middle of one.
    pub(in crate::bridge) under_way: Arc<Mutex<()>>,
    /// What the token says of itself, where the last login failed.
    pub(in crate::bridge) refused: Arc<Mutex<Option<TokenInfo>>>,
}

impl Logins {
    fn refused(&self) -> MutexGuard<'_, Option<TokenInfo>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Token {
    /// Held while a login is under way.
    pub(in crate::bridge) fn logging_in(&self) -> &Mutex<()> {
        &self.logins.under_way
    }

    /// Logs in as the user, if nobody has, under the guard of the PIN counter. Where that fails,
    /// the token's flags say what it thinks of the PIN, and the server is told with the fault.
    pub(super) fn log_in(&self, session: CK_SESSION_HANDLE) -> Result<(), Fault> {
        let outcome = self.log_in_once(session);
        let shown = match outcome {
            Ok(()) => None,
            Err(_) => self.module.token_info(self.slot()).ok(),
        };
        // Its slot may have another token by now.
        *self.logins.refused() = shown.filter(|info| self.which.is(info));
        outcome
    }

    fn log_in_once(&self, session: CK_SESSION_HANDLE) -> Result<(), Fault> {
        if self.module.session_state(session) == Ok(ck::CKS_RW_USER_FUNCTIONS) {
            return Ok(());
        }
        let leader = Ledger::of(&self.logins.ledgers, &self.which.counted(&self.info))
            .lead(ledger::PATIENCE)
            .map_err(|error| self.no_login(&error))?;
        // The flags must be today's, after what another leader has just done.
        let info = self
            .module
            .token_info(self.slot())
            .map_err(|error| Fault::call(&self.name, error, "asking for the PIN flags"))?;
        if !self.which.is(&info) {
            return Err(Fault::Down {
                token: self.name.clone(),
                reason: "its slot shows another token now".to_owned(),
            });
        }
        if info.user_pin_count_low() {
            tracing::warn!(
                token = self.name,
                "CKF_USER_PIN_COUNT_LOW: a wrong PIN was given since the last login"
            );
        }
        let Sourced { pin, generation } = self
            .logins
            .pin
            .read(&self.name)
            .map_err(|error| self.no_login(&error))?;
        let pad = pin.is_none();
        if pad && !info.protected_authentication_path() {
            return Err(self.no_login(&PinError::Token {
                what: "the token has no PIN pad (CKF_PROTECTED_AUTHENTICATION_PATH is not set); name another source in pin",
            }));
        }
        // What one node of a cluster shows need not be what another has seen.
        let count_low = if self.which.serials.is_empty() {
            self.profile.login.pin_count_low
        } else {
            CountLow::Unknown
        };
        let under_way = self.logins.under_way.lock();
        let under_way = under_way.unwrap_or_else(PoisonError::into_inner);
        let login = leader
            .begin(&info, generation, count_low)
            .map_err(|error| self.no_login(&error))?;
        let outcome = self
            .module
            .login(session, self.profile.login.user(), pin.as_ref());
        login
            .end(outcome, pad)
            .map_err(|error| self.no_login(&error))?;
        drop(under_way);
        match outcome {
            Ok(()) => Ok(()),
            Err(error) if error.rv == ck::CKR_USER_ALREADY_LOGGED_IN => Ok(()),
            Err(error) if error.class == FaultClass::Operator => {
                let token = self.name.clone();
                let reason = format!(
                    "C_Login answered {}; it is not tried again by itself; {}",
                    ckr_name(error.rv),
                    self.logins.pin.remedy(&self.name)
                );
                Err(match error.rv {
                    ck::CKR_PIN_INCORRECT | ck::CKR_PIN_LOCKED => Fault::WrongPin { token, reason },
                    _ => Fault::Operator { token, reason },
                })
            }
            Err(error) => Err(Fault::call(&self.name, error, "logging in")),
        }
    }

    /// No PIN was sent. Where that may mend itself it is tried again later.
    fn no_login(&self, error: &PinError) -> Fault {
        let token = self.name.clone();
        let remedy = self.logins.pin.remedy(&self.name);
        match error {
            PinError::Ledger { .. } => Fault::Down {
                reason: format!(
                    "{error}; if the file is damaged and the PIN is right, run: ekm token unlock {token}"
                ),
                token,
            },
            error if error.passes() => Fault::Down {
                token,
                reason: error.to_string(),
            },
            PinError::Held { wrong: true, .. } => Fault::WrongPin {
                token,
                reason: format!("{error}; {remedy}"),
            },
            PinError::Held { wrong: false, .. } => Fault::Operator {
                token,
                reason: format!("{error}; {remedy}"),
            },
            PinError::Spent { .. } => Fault::WrongPin {
                token,
                reason: error.to_string(),
            },
            error => Fault::Operator {
                token,
                reason: error.to_string(),
            },
        }
    }
}
