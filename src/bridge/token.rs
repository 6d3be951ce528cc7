//! The token that a bridge serves: its slot, its login, its KEKs, its canary.
//!
//! One idle *anchor* session keeps the login for all workers, since closing
//! the last session logs out. Each login begins a new *epoch*; handles found
//! in one epoch are never used in the next, where the same number may be
//! another key.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use cryptoki_sys as ck;

use super::catalog::{self, Catalog};
use super::faults::{Fault, FaultClass};
use super::host;
use super::message::{Custody, KekOnToken, PrivateHalf, Probe, Ready, SlotOnModule};
use super::pin::ledger::{self, Ledger};
use super::pin::{Pin, PinError, Sourced};
use super::pkcs11::{
    Attr, CK_OBJECT_HANDLE, CK_SESSION_HANDLE, CK_SLOT_ID, Call, CallError, Mechanism, Module,
    TokenInfo,
};
use super::profile::{CountLow, Generate, HsmProfile, Send as SendAttr};
use super::uri::TokenUri;
use super::which::Which;
use crate::key::{KekHash, KeyLabel, OaepHash, WrapAlgorithm};

/// The mechanisms that `ekm slot list` tells of.
const MECHANISMS: &[(ck::CK_MECHANISM_TYPE, &str)] = &[
    (ck::CKM_RSA_PKCS_KEY_PAIR_GEN, "CKM_RSA_PKCS_KEY_PAIR_GEN"),
    (ck::CKM_RSA_PKCS_OAEP, "CKM_RSA_PKCS_OAEP"),
    (ck::CKM_AES_KEY_GEN, "CKM_AES_KEY_GEN"),
    (ck::CKM_AES_ECB, "CKM_AES_ECB"),
    (ck::CKM_SHA256, "CKM_SHA256"),
];

/// KEKs that were refused by a trial and are tried again at one look.
const TRIALS: usize = 3;

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

/// An EEDK of the token's own, to tell a bad EEDK from a broken token.
#[derive(Clone, Debug)]
pub(super) struct Canary {
    pub(super) kek: KekHash,
    pub(super) custody: Custody,
    pub(super) wrapped: Vec<u8>,
}

/// How a token is logged in to.
#[derive(Clone, Debug)]
pub(super) struct Logins {
    /// Its user PIN.
    pub(super) pin: Pin,
    /// The directory of the files that guard the PIN counters.
    pub(super) ledgers: PathBuf,
    /// Held over a login: the bridge does not end itself in the middle of one.
    pub(super) under_way: Arc<Mutex<()>>,
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
    // Workers that have a session.
    sessions: AtomicUsize,
    logins: Logins,
    // None while a worker has it for want of another.
    anchor: Mutex<Option<CK_SESSION_HANDLE>>,
    epoch: RwLock<Arc<Epoch>>,
    probe: OnceLock<Probe>,
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

    /// Workers that have a session.
    pub(super) fn sessions(&self) -> usize {
        self.sessions.load(Ordering::Relaxed)
    }

    /// A worker has opened a session.
    pub(super) fn session_begun(&self) {
        self.sessions.fetch_add(1, Ordering::Relaxed);
    }

    /// A worker's session is gone.
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

    /// The anchor, for a worker to work on: where no worker has a session and
    /// the token gives no more, the login is kept by that one.
    pub(super) fn lend_anchor(&self) -> Option<CK_SESSION_HANDLE> {
        if self.sessions() > 0 {
            return None;
        }
        self.anchor().take()
    }

    fn anchor(&self) -> MutexGuard<'_, Option<CK_SESSION_HANDLE>> {
        self.anchor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Logs in as the user, if nobody has, under the guard of the PIN counter.
    fn log_in(&self, session: CK_SESSION_HANDLE) -> Result<(), Fault> {
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
                    super::faults::ckr_name(error.rv),
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

    /// Tries KEKs again that were refused for opening no canary: that may have been the token's
    /// slip, and else they would stay so until the next login. A look does not fail by it. Those
    /// that open now serve from a new epoch on; without one there is none, as each ends all
    /// sessions.
    fn try_again(&self, session: CK_SESSION_HANDLE, epoch: &Epoch) {
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
            if sung.is_ok() {
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
    fn make_canary(
        &self,
        session: CK_SESSION_HANDLE,
        catalog: &mut Catalog,
    ) -> Result<Option<Canary>, Fault> {
        let mut failed = None;
        while let Some((kek, custody)) = catalog.canary() {
            let (hash, label) = (kek.hash, kek.label.clone());
            let canary = self.canary_of(kek, custody)?;
            let sung = self.sing(session, catalog, &canary).or_else(|error| {
                // One slip of the token refuses no key, nor a session that it left stuck.
                self.sing_apart(catalog, &canary)
                    .unwrap_or_else(|| self.sing(session, catalog, &canary))
                    .map_err(|_| error)
            });
            match sung {
                Ok(()) => return Ok(Some(canary)),
                Err(error) => {
                    let fault = Fault::call(
                        &self.name,
                        error,
                        format!("opening the first canary under KEK {label}"),
                    );
                    // Anything else is no word about this key.
                    if !matches!(error.class, FaultClass::Request | FaultClass::Ambiguous) {
                        return Err(fault);
                    }
                    catalog.refuse(&hash, &fault.to_string());
                    failed.get_or_insert(fault);
                }
            }
        }
        failed.map_or(Ok(None), Err)
    }

    fn canary_of(&self, kek: &KekOnToken, custody: Custody) -> Result<Canary, Fault> {
        let wrapped = self.wrap_nonsense(&kek.spki, self.profile.wrap_algorithm(), &[])?;
        Ok(Canary {
            kek: kek.hash,
            custody,
            wrapped,
        })
    }

    /// Opens the canary on a session of its own; none where the token gives no session.
    fn sing_apart(&self, catalog: &Catalog, canary: &Canary) -> Option<Call<()>> {
        let session = self.session().ok()?;
        let sung = self.sing(session, catalog, canary);
        // It may be gone already, and there is nothing else to do with it.
        let _ = self.module.close_session(session);
        Some(sung)
    }

    /// A key that opens nothing, under a public key; it may as well come from here.
    pub(super) fn wrap_nonsense(
        &self,
        spki: &[u8],
        algorithm: WrapAlgorithm,
        dki: &[u8],
    ) -> Result<Vec<u8>, Fault> {
        let unsupported = |reason: String| self.unsupported(reason);
        let mut random = [0_u8; 32];
        aws_lc_rs::rand::fill(&mut random)
            .map_err(|_| unsupported("the operating system gives no random numbers".to_owned()))?;
        host::wrap(spki, algorithm, dki, &random.to_vec().into())
            .map_err(|error| unsupported(error.to_string()))
    }

    /// Whether an EEDK of this KEK, wrapped this way, opens at all.
    pub(super) fn opens_any(
        &self,
        session: CK_SESSION_HANDLE,
        catalog: &Catalog,
        kek: &KekHash,
        eedk: &crate::key::Eedk,
    ) -> bool {
        let Some((entry, handles)) = catalog.kek(kek) else {
            return false;
        };
        let Some(private) = handles.private else {
            return false;
        };
        let Ok(wrapped) = self.wrap_nonsense(&entry.spki, eedk.wrap(), eedk.oaep_label()) else {
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
                .is_ok(),
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
            "{reason} What this process has read goes on serving until it ends, and nothing is written under it"
        ))
    }

    /// Held while a login is under way.
    pub(super) fn logging_in(&self) -> &Mutex<()> {
        &self.logins.under_way
    }

    /// Opens the canary; what fails here is the token's fault.
    pub(super) fn sing(
        &self,
        session: CK_SESSION_HANDLE,
        catalog: &Catalog,
        canary: &Canary,
    ) -> Call<()> {
        let Some((entry, handles)) = catalog.kek(&canary.kek) else {
            return Ok(());
        };
        let Some(private) = handles.private else {
            return Ok(());
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
                self.module.destroy(session, key)
            }
            Custody::Host => self
                .module
                .decrypt(session, &mechanism, private, &canary.wrapped)
                .map(drop),
        }
    }

    /// Template of a data key made on the token.
    pub(super) fn generate_template() -> Vec<Attr> {
        let mut template = data_key_template(true);
        template.push(Attr::flag(ck::CKA_SENSITIVE, true));
        template.push(Attr::flag(ck::CKA_EXTRACTABLE, true));
        template.push(Attr::ulong(ck::CKA_VALUE_LEN, 32));
        template
    }

    /// The same as the profile wants it on a cartridge.
    pub(super) fn born_template(&self) -> Vec<Attr> {
        let mut template = Self::generate_template();
        if self.profile.data_key.wrap_with_trusted {
            template.push(Attr::flag(ck::CKA_WRAP_WITH_TRUSTED, true));
        }
        template
    }

    /// Whether what opens under that KEK is wrapped under trusted keys only:
    /// the profile wants it so, or the KEK demands it.
    pub(super) fn opens_trusted(&self, kek: &KekOnToken) -> bool {
        let demands = match &kek.private {
            PrivateHalf::Serves { attributes, .. } | PrivateHalf::Refused { attributes, .. } => {
                attributes.unwraps_trusted == Some(true)
            }
            PrivateHalf::Absent => false,
        };
        demands || self.profile.data_key.wrap_with_trusted
    }

    /// `CKA_VALUE_LEN` of a secret key, bytes; none where the token does not say.
    pub(super) fn value_len(
        &self,
        session: CK_SESSION_HANDLE,
        key: CK_OBJECT_HANDLE,
    ) -> Call<Option<usize>> {
        let value = self
            .module
            .attribute(session, key, ck::CKA_VALUE_LEN)?
            .unwrap_or_default();
        let bytes = value.first_chunk::<8>().filter(|_| value.len() == 8);
        Ok(bytes.and_then(|bytes| usize::try_from(u64::from_ne_bytes(*bytes)).ok()))
    }

    /// Template of a data key that an EEDK holds; `proof` lets it encrypt a
    /// block, `trusted` has it wrapped under trusted keys only.
    pub(super) fn unwrap_template(&self, proof: bool, trusted: bool) -> Vec<Attr> {
        let mut template = data_key_template(proof);
        if trusted {
            template.push(Attr::flag(ck::CKA_WRAP_WITH_TRUSTED, true));
        }
        let profile = &self.profile.data_key;
        if profile.sensitive == super::profile::Sensitive::Send {
            template.push(Attr::flag(ck::CKA_SENSITIVE, true));
        }
        if profile.extractable == SendAttr::Send {
            template.push(Attr::flag(ck::CKA_EXTRACTABLE, true));
        }
        if profile.value_len == SendAttr::Send {
            template.push(Attr::ulong(ck::CKA_VALUE_LEN, 32));
        }
        template
    }

    /// Destroys the blessed object of a key, and looks again. Taking trust away
    /// needs no officer; giving it does.
    pub(super) fn distrust(&self, session: CK_SESSION_HANDLE, key: &KekHash) -> Result<(), Fault> {
        let seen = self.epoch().number;
        self.renew(seen, Some(session))?;
        if let Some(object) = self.epoch().catalog.trusted(key) {
            self.module.destroy(session, object).map_err(|error| {
                Fault::call(
                    &self.name,
                    error,
                    "taking the trust from a drive's former key",
                )
            })?;
            self.renew(self.epoch().number, Some(session))?;
        }
        Ok(())
    }

    /// Destroys a KEK for good, and looks again: how many objects there were. Where the token does
    /// not let its private half go, nothing is destroyed.
    pub(super) fn destroy_kek(
        &self,
        session: CK_SESSION_HANDLE,
        kek: &KekHash,
    ) -> Result<usize, Fault> {
        let fail = |error| Fault::call(&self.name, error, format!("destroying the KEK {kek}"));
        self.renew(self.epoch().number, Some(session))?;
        let objects = catalog::objects_of(&self.module, session, kek).map_err(fail)?;
        for object in &objects {
            self.module.destroy(session, *object).map_err(fail)?;
        }
        self.renew(self.epoch().number, Some(session))?;
        Ok(objects.len())
    }

    /// Makes a KEK, and looks at what the token made.
    pub(super) fn generate(
        &self,
        session: CK_SESSION_HANDLE,
        label: &KeyLabel,
        bits: u32,
        custody: Custody,
        sign: bool,
    ) -> Result<KekOnToken, Fault> {
        let refused = |reason: String| Fault::Refused {
            token: self.name.clone(),
            label: label.to_string(),
            reason,
        };
        if self.profile.kek.generate == Generate::VendorTool {
            return Err(self.unsupported(format!(
                "KEK {label} cannot be made through PKCS#11 on this product; make it with the vendor's tool (profile {}), and ekm finds it by its label",
                self.profile.name
            )));
        }
        if self.profile.host_only() && custody == Custody::Token {
            return Err(self.unsupported(format!(
                "KEK {label} would have to open EEDKs inside the token, and this product cannot unwrap and wrap (profile {}: drive.forms = []); make it with --custody host",
                self.profile.name
            )));
        }
        if sign && self.profile.wrap_algorithm().is_v15() {
            return Err(self.unsupported(format!(
                "KEK {label} would sign and open EEDKs by PKCS#1 v1.5, and whoever probes v1.5 paddings under a key can also make signatures by it; make it without --sign"
            )));
        }
        if super::trust::reserved(label.as_str()) {
            return Err(refused(
                "labels that begin so are for keys that the security officer blesses (ekm drive trust); choose another label"
                    .to_owned(),
            ));
        }
        let seen = self.epoch();
        // Read again first: another program may have made the label since.
        self.renew(seen.number, Some(session))?;
        if let Some(kek) = self
            .epoch()
            .catalog
            .keks
            .iter()
            .find(|kek| kek.label.same_as(label))
        {
            return Err(refused(format!(
                "the token already has the label {} (hash {}); choose another label",
                kek.label, kek.hash
            )));
        }
        let mut id = [0_u8; 16];
        aws_lc_rs::rand::fill(&mut id)
            .map_err(|_| refused("the operating system gives no random numbers".to_owned()))?;
        let public = catalog::public_template(label, &id, bits, &self.profile);
        let private = catalog::private_template(label, &id, custody, sign, &self.profile);
        let make = |private: &[Attr]| {
            let mechanism = Mechanism::Plain(ck::CKM_RSA_PKCS_KEY_PAIR_GEN);
            self.module
                .generate_pair(session, &mechanism, &public, private)
        };
        let pair = make(&private)
            .or_else(|error| {
                // Refused for its template there is no pair, so this makes no second one.
                let refused = catalog::REFUSES_TEMPLATE.contains(&error.rv);
                let less = catalog::undemanding(&private, &self.profile).filter(|_| refused);
                less.map_or(Err(error), |less| make(&less))
            })
            .map_err(|error| {
                Fault::call(
                    &self.name,
                    error,
                    format!("generating KEK {label}, RSA-{bits}"),
                )
            })?;
        self.renew(self.epoch().number, Some(session))?;
        let epoch = self.epoch();
        let kek = epoch
            .catalog
            .keks
            .iter()
            .find(|kek| kek.label.same_as(label))
            .ok_or_else(|| {
                refused("the token does not show the key that it just made".to_owned())
            })?;
        if let PrivateHalf::Refused { reason, .. } = &kek.private {
            // A key that may never serve must not stay under the label.
            for object in [pair.private, pair.public] {
                let _ = self.module.destroy(session, object);
            }
            return Err(refused(format!(
                "the token made it so that {reason}; it was deleted again"
            )));
        }
        Ok(kek.clone())
    }
}

/// Whether the token has no session to give.
pub(super) const fn is_full(error: CallError) -> bool {
    error.rv == ck::CKR_SESSION_COUNT
}

/// Every slot of the module.
pub(super) fn list(name: &str, module: &Module) -> Result<Vec<SlotOnModule>, Fault> {
    let fail = |error| Fault::call(name, error, "listing the slots");
    module
        .slots(false)
        .map_err(fail)?
        .into_iter()
        .map(|slot| {
            let token = module.token_info(slot).ok();
            let listed = module.mechanisms(slot).unwrap_or_default();
            Ok(SlotOnModule {
                id: slot,
                uri: token
                    .as_ref()
                    .filter(|token| token.initialized())
                    .map(|token| TokenUri::of(token).to_string()),
                token,
                mechanisms: MECHANISMS
                    .iter()
                    .map(|(mechanism, name)| ((*name).to_owned(), listed.contains(mechanism)))
                    .collect(),
            })
        })
        .collect()
}

/// Initialises the one free slot, or the slot named. A token that is
/// initialised already is never touched: erasing it would erase its KEKs.
pub(super) fn init(
    name: &str,
    module: &Module,
    label: &str,
    slot: Option<u64>,
    so_pin: &Pin,
    user_pin: &Pin,
) -> Result<SlotOnModule, Fault> {
    let operator = |reason: String| Fault::Operator {
        token: name.to_owned(),
        reason,
    };
    let call = |error, what: &str| Fault::call(name, error, what);
    if label.is_empty() || label.len() > 32 {
        return Err(operator("a token label has 1 to 32 bytes".to_owned()));
    }
    let slots = list(name, module)?;
    if slots
        .iter()
        .filter_map(|slot| slot.token.as_ref())
        .any(|token| token.initialized() && token.label == label)
    {
        return Err(operator(format!(
            "there is a token {label:?} already, and initialising would erase its keys; choose another label"
        )));
    }
    let free: Vec<u64> = slots
        .iter()
        .filter(|slot| {
            slot.token
                .as_ref()
                .is_some_and(|token| !token.initialized())
        })
        .map(|slot| slot.id)
        .collect();
    let slot = match (slot, free.as_slice()) {
        (Some(slot), _) if free.contains(&slot) => slot,
        (Some(slot), _) => {
            return Err(operator(format!(
                "slot {slot} is not free: it is missing, empty or initialised already (see ekm slot list)"
            )));
        }
        (None, [only]) => *only,
        (None, []) => {
            return Err(operator(
                "there is no uninitialised slot (see ekm slot list)".to_owned(),
            ));
        }
        (None, many) => {
            return Err(operator(format!(
                "slots {many:?} are free; say which with --slot"
            )));
        }
    };
    let pin_error = |error: PinError| operator(error.to_string());
    let so_pin = so_pin.read_secret(name).map_err(pin_error)?;
    let user_pin = user_pin.read_secret(name).map_err(pin_error)?;
    let officer = module
        .init_token(slot, &so_pin, label)
        .map_err(|error| call(error, "initialising the token"))?;
    // Some modules move the token to another slot number when it is initialised.
    let (slot, _) = Which::labelled(label).find(name, module)?;
    let session = module
        .open_session(slot)
        .map_err(|error| call(error, "opening a session on the new token"))?;
    module
        .login_as_officer(session, &so_pin, officer)
        .map_err(|error| call(error, "logging in as security officer"))?;
    module.init_pin(session, &user_pin).map_err(|error| {
        call(
            error,
            "setting the user PIN; the token is initialised, its user PIN is not set",
        )
    })?;
    module
        .logout(session)
        .map_err(|error| call(error, "logging out"))?;
    list(name, module)?
        .into_iter()
        .find(|listed| listed.id == slot)
        .ok_or_else(|| operator("the new token has vanished".to_owned()))
}

/// Template of a drive's or a partner's public key, imported to wrap under.
pub(super) fn import_template(numbers: &host::PublicNumbers) -> Vec<Attr> {
    vec![
        Attr::ulong(ck::CKA_CLASS, ck::CKO_PUBLIC_KEY),
        Attr::ulong(ck::CKA_KEY_TYPE, ck::CKK_RSA),
        Attr::flag(ck::CKA_TOKEN, false),
        Attr::flag(ck::CKA_PRIVATE, false),
        Attr::flag(ck::CKA_WRAP, true),
        Attr::flag(ck::CKA_ENCRYPT, false),
        Attr::flag(ck::CKA_VERIFY, false),
        Attr::bytes(ck::CKA_MODULUS, numbers.modulus.clone()),
        Attr::bytes(ck::CKA_PUBLIC_EXPONENT, numbers.exponent.clone()),
    ]
}

/// What every data key's template has; `encrypt` lets it encrypt a block.
pub(super) fn data_key_template(encrypt: bool) -> Vec<Attr> {
    vec![
        Attr::ulong(ck::CKA_CLASS, ck::CKO_SECRET_KEY),
        Attr::ulong(ck::CKA_KEY_TYPE, ck::CKK_AES),
        Attr::flag(ck::CKA_TOKEN, false),
        Attr::flag(ck::CKA_PRIVATE, true),
        Attr::flag(ck::CKA_ENCRYPT, encrypt),
        Attr::flag(ck::CKA_DECRYPT, false),
        Attr::flag(ck::CKA_WRAP, false),
        Attr::flag(ck::CKA_UNWRAP, false),
        Attr::flag(ck::CKA_SIGN, false),
        Attr::flag(ck::CKA_VERIFY, false),
        Attr::flag(ck::CKA_DERIVE, false),
    ]
}

/// `CKM_RSA_PKCS_OAEP` or `CKM_RSA_PKCS` as the algorithm says; `dki` is the label where it has one.
pub(super) fn wrapping(algorithm: WrapAlgorithm, dki: &[u8]) -> Mechanism {
    let WrapAlgorithm::Oaep { hash, .. } = algorithm else {
        return Mechanism::Plain(ck::CKM_RSA_PKCS);
    };
    let (hash, mgf) = match hash {
        OaepHash::Sha1 => (ck::CKM_SHA_1, ck::CKG_MGF1_SHA1),
        OaepHash::Sha256 => (ck::CKM_SHA256, ck::CKG_MGF1_SHA256),
        OaepHash::Sha384 => (ck::CKM_SHA384, ck::CKG_MGF1_SHA384),
        OaepHash::Sha512 => (ck::CKM_SHA512, ck::CKG_MGF1_SHA512),
    };
    Mechanism::Oaep {
        hash,
        mgf,
        label: algorithm.label(dki).to_vec(),
    }
}
