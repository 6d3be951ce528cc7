//! The token that a bridge serves: its slot, its login, its KEKs, its canary.
//!
//! One idle *anchor* session keeps the login for all workers, since closing
//! the last session logs out. Each login begins a new *epoch*; handles found
//! in one epoch are never used in the next, where the same number may be
//! another key.

mod canary;
mod data_key;
mod keks;
mod login;
mod slots;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use cryptoki_sys as ck;

use super::catalog::Catalog;
use super::faults::Fault;
use super::message::{Probe, Ready};
use super::pkcs11::{CK_SESSION_HANDLE, CK_SLOT_ID, Call, CallError, Module, TokenInfo};
use super::profile::HsmProfile;
use super::which::Which;
use canary::Canary;

pub(super) use canary::OTHER;
pub(super) use data_key::{data_key_template, import_template, wrapping};
pub(super) use login::Logins;
pub(super) use slots::{init, list};

/// Reads of a token's KEKs at one look, where the login is lost under the first.
const READS: usize = 2;

/// What was true since the last login or search.
#[derive(Debug)]
pub(super) struct Epoch {
    pub(super) number: u64,
    pub(super) catalog: Catalog,
    // Before any key was refused for not opening a canary.
    as_read: Catalog,
    pub(super) canary: Option<Canary>,
}

/// An open token.
#[derive(Debug)]
pub(super) struct Token {
    pub(super) name: String,
    pub(super) module: Module,
    pub(super) profile: HsmProfile,
    pub(super) info: TokenInfo,
    which: Which,
    // Slot numbers move, also while we run.
    slot: AtomicU64,
    // Workers that were given a session when they last asked for one.
    sessions: AtomicUsize,
    logins: Logins,
    // None while a worker has it for want of another.
    anchor: Mutex<Option<CK_SESSION_HANDLE>>,
    epoch: RwLock<Arc<Epoch>>,
    probe: OnceLock<Probe>,
    // Whether its way of opening by C_Decrypt has been probed.
    decrypts: AtomicBool,
    // Where the next look goes on among those that were refused by a trial.
    retried: AtomicUsize,
}

impl Token {
    /// Finds the token, logs in and reads its KEKs.
    pub(super) fn open(
        name: String,
        module: Module,
        profile: HsmProfile,
        which: Which,
        logins: Logins,
    ) -> Result<Self, Fault> {
        let token = Self::logged_in(name, module, profile, which, logins)?;
        let anchor = *token.anchor();
        if let Some(anchor) = anchor {
            token.look_again(anchor, false)?;
        }
        Ok(token)
    }

    /// Finds the token and logs in; what is on it is not looked at.
    pub(super) fn logged_in(
        name: String,
        module: Module,
        profile: HsmProfile,
        which: Which,
        logins: Logins,
    ) -> Result<Self, Fault> {
        let call = |error, what: &str| Fault::call(&name, error, what);
        let (slot, info) = which.find(&name, &module)?;
        let anchor = module
            .open_session(slot)
            .map_err(|error| call(error, "opening the first session"))?;
        let token = Self {
            epoch: RwLock::new(Arc::new(Epoch {
                number: 0,
                catalog: Catalog::default(),
                as_read: Catalog::default(),
                canary: None,
            })),
            name,
            module,
            profile,
            info,
            which,
            slot: AtomicU64::new(slot),
            sessions: AtomicUsize::new(0),
            logins,
            anchor: Mutex::new(Some(anchor)),
            probe: OnceLock::new(),
            decrypts: AtomicBool::new(false),
            retried: AtomicUsize::new(0),
        };
        token.log_in(anchor)?;
        Ok(token)
    }

    /// What is known in this epoch.
    pub(super) fn epoch(&self) -> Arc<Epoch> {
        Arc::clone(&self.epoch.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// A session for a worker. The slot is looked at first: its number may
    /// show another token now, and ours may have moved.
    pub(super) fn session(&self) -> Call<CK_SESSION_HANDLE> {
        let shown = self.module.token_info(self.slot());
        if !shown.as_ref().is_ok_and(|info| self.which.is(info)) {
            match (self.which.find(&self.name, &self.module), shown) {
                (Ok((slot, _)), _) => {
                    tracing::warn!(
                        token = self.name,
                        slot,
                        "the token has moved to another slot"
                    );
                    self.slot.store(slot, Ordering::Relaxed);
                }
                // A session there would be one on another token.
                (Err(_), Ok(_)) => {
                    return Err(self
                        .module
                        .failed("C_GetTokenInfo", ck::CKR_TOKEN_NOT_PRESENT));
                }
                (Err(_), Err(error)) => return Err(error),
            }
        }
        self.module.open_session(self.slot())
    }

    /// The slot that has the token now.
    pub(super) fn slot(&self) -> CK_SLOT_ID {
        self.slot.load(Ordering::Relaxed)
    }

    /// Workers that were given a session when they last asked for one.
    pub(super) fn sessions(&self) -> usize {
        self.sessions.load(Ordering::Relaxed)
    }

    /// A worker that had no session was given one.
    pub(super) fn session_begun(&self) {
        self.sessions.fetch_add(1, Ordering::Relaxed);
    }

    /// A worker that had one was given none.
    pub(super) fn session_ended(&self) {
        self.sessions.fetch_sub(1, Ordering::Relaxed);
    }

    /// Reads the KEKs again, unless another worker has since `seen`; logging in
    /// first where the login is gone, since what a logged-out session shows is
    /// not what is there. It does so on the anchor, or on the caller's `own`
    /// session where a worker has the anchor and the token gives no other.
    pub(super) fn renew(&self, seen: u64, own: Option<CK_SESSION_HANDLE>) -> Result<(), Fault> {
        let mut anchor = self.anchor();
        if self.epoch().number != seen {
            return Ok(());
        }
        let state = anchor.map(|handle| self.module.session_state(handle));
        let user = ck::CKS_RW_USER_FUNCTIONS;
        let (session, same_login) = match (*anchor, state) {
            (Some(handle), Some(Ok(state))) => (handle, state == user),
            (_, _) => match (self.session(), own) {
                (Ok(handle), _) => (*anchor.insert(handle), false),
                (Err(error), Some(own)) if is_full(error) => {
                    (own, self.module.session_state(own) == Ok(user))
                }
                (Err(error), _) => {
                    return Err(Fault::call(
                        &self.name,
                        error,
                        "opening the first session again",
                    ));
                }
            },
        };
        if !same_login {
            self.log_in(session)?;
        }
        self.look_again(session, same_login)
    }

    /// The anchor, for a worker to work on: where the token gives none to any
    /// worker, the login is kept by that one.
    pub(super) fn lend_anchor(&self) -> Option<CK_SESSION_HANDLE> {
        if self.sessions() > 0 {
            return None;
        }
        self.anchor().take()
    }

    fn anchor(&self) -> MutexGuard<'_, Option<CK_SESSION_HANDLE>> {
        self.anchor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look_again(&self, session: CK_SESSION_HANDLE, same_login: bool) -> Result<(), Fault> {
        let (mut catalog, same_login) = self.read_keks(session, same_login)?;
        // Sessions and imported keys live as long as their epoch.
        let epoch = self.epoch();
        if same_login && epoch.number > 0 && epoch.as_read == catalog {
            self.try_again(session, &epoch);
            return Ok(());
        }
        let as_read = catalog.clone();
        let canary = self.make_canary(session, &mut catalog)?;
        if self.probe.get().is_none()
            && let Some(learned) = super::probe::probe(self, session, &catalog)?
        {
            self.probe.get_or_init(|| learned);
        }
        if !self.decrypts.load(Ordering::Relaxed) {
            let probed = super::probe::decrypts(self, session, &catalog)?;
            self.decrypts.store(probed, Ordering::Relaxed);
        }
        self.begin_epoch(catalog, as_read, canary);
        Ok(())
    }

    fn begin_epoch(&self, catalog: Catalog, as_read: Catalog, canary: Option<Canary>) {
        let mut epoch = self.epoch.write().unwrap_or_else(PoisonError::into_inner);
        let number = epoch.number + 1;
        *epoch = Arc::new(Epoch {
            number,
            catalog,
            as_read,
            canary,
        });
    }

    /// Reads the KEKs, and says whether the login is still the one from before. A login that is
    /// lost in the middle hides the private halves, which are not gone for that: it is made again,
    /// and they are read again.
    fn read_keks(
        &self,
        session: CK_SESSION_HANDLE,
        mut same_login: bool,
    ) -> Result<(Catalog, bool), Fault> {
        let fail = |error| Fault::call(&self.name, error, "reading the KEKs");
        let user = ck::CKS_RW_USER_FUNCTIONS;
        let host_only = self.profile.host_only();
        for _ in 0..READS {
            // A module that does not tell of the login before does not tell of its loss either.
            let told = same_login || self.module.session_state(session) == Ok(user);
            let read = Catalog::read(&self.module, session, host_only, &self.profile);
            // On a session that is gone by now nothing is hidden: a call on it fails.
            let lost = told
                && self
                    .module
                    .session_state(session)
                    .is_ok_and(|state| state != user);
            if !lost {
                return read.map(|catalog| (catalog, same_login)).map_err(fail);
            }
            same_login = false;
            self.log_in(session)?;
        }
        Err(fail(
            self.module
                .failed("C_GetSessionInfo", ck::CKR_USER_NOT_LOGGED_IN),
        ))
    }

    fn unsupported(&self, reason: String) -> Fault {
        Fault::Unsupported {
            token: self.name.clone(),
            reason,
        }
    }

    /// What the server is told of the token.
    pub(super) fn ready(&self) -> Ready {
        Ready {
            // The flags of today.
            token: self
                .module
                .token_info(self.slot())
                .unwrap_or_else(|_| self.info.clone()),
            keks: self.epoch().catalog.keks.clone(),
            trusted: self.epoch().catalog.all_trusted(),
            probe: self.probe.get().cloned(),
            sessions: self.sessions(),
            trouble: self.unkept(),
        }
    }

    /// What is wrong where the token's keys are no longer kept: its process has them, and no other will.
    pub(super) fn unkept(&self) -> Option<String> {
        let reason = self.profile.there().err()?;
        Some(format!(
            "{reason}. What this process has read goes on serving until it ends, and nothing is written under it"
        ))
    }
}

/// Whether the token has no session to give.
pub(super) const fn is_full(error: CallError) -> bool {
    error.rv == ck::CKR_SESSION_COUNT
}
