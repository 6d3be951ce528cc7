//! One thread of a bridge: a session of its own, and the exchanges on it.
//!
//! A warm resolve is three calls (`C_UnwrapKey`, `C_WrapKey`,
//! `C_DestroyObject`), a warm create with two KEKs seven. What fails is
//! classified once, by the fault table, and mended here as its class says:
//!
//! - a session on which any call failed is closed, since some modules leave it
//!   stuck (tpm2-pkcs11 in `CKR_OPERATION_ACTIVE`) or with objects on it;
//! - an exchange is repeated only where [`Op::repeatable`] says so, at most
//!   [`ATTEMPTS`] times, and never when it could not end within its request's time;
//! - an EEDK is called bad only after it failed twice while a fresh EEDK under
//!   the same KEK opened; a token only after its canary failed on a new session;
//! - an EEDK whose opening is guarded is neither good nor bad for anybody here:
//!   its exchange takes a session of its own (`guarded.rs`).

mod attempt;
mod certify;
mod evidence;
mod forms;
mod guarded;

use std::sync::Arc;
use std::time::{Duration, Instant};

use cryptoki_sys as ck;

use super::evidence::Evidence;
use super::faults::{Fault, FaultClass, OPENS, ckr_name};
use super::message::{Op, Reply};
use super::pkcs11::{CK_OBJECT_HANDLE, CK_SESSION_HANDLE, CallError};
use super::token::{Epoch, Token, is_full};
use crate::key::KekHash;
use attempt::At;

/// Attempts at one exchange, the first included.
const ATTEMPTS: u32 = 3;

/// First pause where the token is full; each further one is as much longer.
const PAUSE: Duration = Duration::from_millis(100);

/// A thread's share of the token.
#[derive(Debug)]
pub(super) struct Worker {
    token: Arc<Token>,
    session: Option<Session>,
    // Whether the token gave it a session when it last asked for one. Between two of its sessions
    // it lacks none.
    served: bool,
    // Of all attempts that succeeded.
    quickest: Option<Duration>,
}

#[derive(Debug)]
struct Session {
    handle: CK_SESSION_HANDLE,
    epoch: Arc<Epoch>,
    // Newest last; an object of this session and of no other.
    imported: Vec<(KekHash, CK_OBJECT_HANDLE)>,
}

/// A failed attempt: one to classify, or one that is settled.
enum Failure {
    Call(CallError, String),
    Fault(Fault),
}

/// Who is to blame.
enum Verdict {
    /// The token, and what follows: it does not open what it should, or has no
    /// session now to try it on.
    Token(FaultClass),
    /// What the exchange was given, or what this token can do.
    Data(Fault),
    /// Nobody: the token's keys are others than they were when it failed.
    Changed,
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// Names what was being done when a call failed.
trait During<T> {
    fn during(self, what: impl FnOnce() -> String) -> Result<T, Failure>;
}

impl<T> During<T> for Result<T, CallError> {
    fn during(self, what: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|error| Failure::Call(error, what()))
    }
}

impl Worker {
    /// A worker without a session yet.
    pub(super) const fn new(token: Arc<Token>) -> Self {
        Self {
            token,
            session: None,
            served: false,
            quickest: None,
        }
    }

    /// Opens the worker's session, where it has none or an old one.
    ///
    /// # Errors
    /// The token gives none.
    pub(super) fn prepare(&mut self) -> Result<(), Fault> {
        match self.session() {
            Ok(_) => Ok(()),
            Err(Failure::Fault(fault)) => Err(fault),
            Err(Failure::Call(error, what)) => Err(Fault::call(&self.token.name, error, what)),
        }
    }

    /// Does one thing, and is done with it by `until` unless a call hangs.
    pub(super) fn run(&mut self, op: &Op, until: Instant) -> Result<Reply, Fault> {
        let outcome = self.repeat(op, until);
        super::host::scrub_stack();
        outcome
    }

    fn repeat(&mut self, op: &Op, until: Instant) -> Result<Reply, Fault> {
        if !self.in_time(until) {
            return Err(Fault::Deadline {
                token: self.token.name.clone(),
                seconds: self.token.profile.session.deadline_seconds,
            });
        }
        let mut attempt = 1;
        // A failure that the cure of its class did not mend, or that proved
        // not to be the token's, may happen once.
        let mut doubted = false;
        loop {
            let begun = Instant::now();
            let (error, what) = match self.attempt(op) {
                Ok(reply) if op.guarded() => {
                    self.drop_session();
                    return Ok(reply);
                }
                Ok(reply) => {
                    let took = begun.elapsed();
                    self.quickest = Some(self.quickest.map_or(took, |known| known.min(took)));
                    return Ok(reply);
                }
                Err(Failure::Fault(fault)) => return Err(self.settled(fault)),
                Err(Failure::Call(error, what)) => (error, what),
            };
            let seen = self.session.as_ref().map(|session| session.epoch.number);
            let class = self.look_closer(error);
            self.drop_session();
            let token = Arc::clone(&self.token);
            let fault = |class| Fault::call(&token.name, CallError { class, ..error }, &*what);
            let again = op.repeatable() && attempt < ATTEMPTS && self.in_time(until);
            match class {
                FaultClass::Request | FaultClass::Restart | FaultClass::Operator => {
                    return Err(fault(class));
                }
                FaultClass::NewSession if again => {}
                FaultClass::Full if again => {
                    std::thread::sleep(
                        (PAUSE * attempt).min(until.saturating_duration_since(Instant::now())),
                    );
                }
                FaultClass::Full => return Err(fault(class)),
                FaultClass::Login | FaultClass::Find if again => {
                    let renewed = self.token.renew(seen.unwrap_or_default(), None);
                    renewed.map_err(|fault| self.settled(fault))?;
                }
                FaultClass::Ambiguous | FaultClass::Harmless => {
                    match self.verdict(error, &what, op) {
                        Verdict::Token(class) => return Err(fault(class)),
                        // It has failed twice, and the token is well.
                        Verdict::Data(bad) if doubted => return Err(bad),
                        Verdict::Data(_) if again => doubted = true,
                        Verdict::Changed if again => {}
                        // Once is too little to call a cartridge bad.
                        Verdict::Data(_) | Verdict::Changed => return Err(fault(class)),
                    }
                }
                // The cure did not help, or there is no time for it.
                FaultClass::NewSession | FaultClass::Login | FaultClass::Find => {
                    return Err(fault(if attempt < ATTEMPTS {
                        class
                    } else {
                        self.sings().err().unwrap_or(FaultClass::Request)
                    }));
                }
            }
            attempt += 1;
        }
    }

    /// Whether an attempt that begins now can end in time: none was ever
    /// quicker than the quickest.
    fn in_time(&self, until: Instant) -> bool {
        until.saturating_duration_since(Instant::now()) > self.quickest.unwrap_or_default()
    }

    /// The class of a failure, after a look at what the code alone does not
    /// tell: whether the session and its login are alive.
    fn look_closer(&self, error: CallError) -> FaultClass {
        let Some(session) = &self.session else {
            return error.class;
        };
        if !matches!(
            error.class,
            FaultClass::Ambiguous | FaultClass::Find | FaultClass::Harmless
        ) {
            return error.class;
        }
        match self.token.module.session_state(session.handle) {
            Ok(ck::CKS_RW_USER_FUNCTIONS) => error.class,
            Ok(_) => FaultClass::Login,
            Err(lost) if lost.class == FaultClass::NewSession => FaultClass::NewSession,
            Err(_) => FaultClass::Restart,
        }
    }

    /// Whether the canary opens on this worker's session, a new one where the
    /// last was closed; else what follows for the token. Without a KEK there is
    /// no canary, and a session that opens is all that can be asked for.
    fn sings(&mut self) -> Result<(), FaultClass> {
        let token = Arc::clone(&self.token);
        let session = self.tried()?;
        session.epoch.canary.as_ref().map_or(Ok(()), |canary| {
            match token.sing(session.handle, &session.epoch.catalog, canary) {
                Ok(true) => Ok(()),
                Ok(false) | Err(_) => Err(FaultClass::Restart),
            }
        })
    }

    /// The session to try the token on; else what follows for the token.
    fn tried(&mut self) -> Result<&mut Session, FaultClass> {
        let why = |failure| match failure {
            // Others have the sessions now, which says nothing against it.
            Failure::Call(error, _) if error.class == FaultClass::Full => FaultClass::Full,
            Failure::Call(..) | Failure::Fault(_) => FaultClass::Restart,
        };
        let session = self.session().map_err(why)?;
        let (handle, seen) = (session.handle, session.epoch.number);
        if self.token.module.session_state(handle) != Ok(ck::CKS_RW_USER_FUNCTIONS) {
            // Where the one that was closed was the last, the login went with it.
            self.drop_session();
            self.token
                .renew(seen, None)
                .map_err(|_| FaultClass::Restart)?;
        }
        self.session().map_err(why)
    }

    /// Who is to blame for a failure that the code does not tell of: found out
    /// on a new session with an EEDK that is known to be good.
    fn verdict(&mut self, error: CallError, what: &str, op: &Op) -> Verdict {
        let name = self.token.name.clone();
        let opened = op.opened().filter(|_| OPENS.contains(&error.function));
        let Some((eedk, kek)) = opened else {
            let class = FaultClass::Request;
            let bad = Fault::call(&name, CallError { class, ..error }, what);
            return self
                .sings()
                .map_or_else(Verdict::Token, |()| Verdict::Data(bad));
        };
        let token = Arc::clone(&self.token);
        let session = match self.tried() {
            Ok(session) => session,
            Err(class) => return Verdict::Token(class),
        };
        if session.epoch.catalog.kek(kek).is_none() {
            return Verdict::Changed;
        }
        if token.opens_any(session.handle, &session.epoch.catalog, kek, eedk) {
            return Verdict::Data(Fault::BadEedk {
                token: name,
                kek: kek.to_string(),
                function: error.function.to_owned(),
                name: ckr_name(error.rv),
            });
        }
        if let Err(class) = self.sings() {
            return Verdict::Token(class);
        }
        // The token is well and this KEK opens nothing of this kind: the KEK
        // may be another by now.
        let (seen, own) = match &self.session {
            Some(session) => (session.epoch.number, Some(session.handle)),
            None => (0, None),
        };
        if self.token.renew(seen, own).is_err() {
            return Verdict::Token(FaultClass::Restart);
        }
        if self.token.epoch().number != seen {
            return Verdict::Changed;
        }
        Verdict::Data(Fault::Unsupported {
            token: name,
            reason: format!(
                "{}: {} answered {}, and it opens no EEDK that is wrapped by {} under that KEK",
                what,
                error.function,
                ckr_name(error.rv),
                eedk.wrap()
            ),
        })
    }

    /// A fault that came whole, from a login or a search: where it does not
    /// tell whose it is, the canary does.
    fn settled(&mut self, fault: Fault) -> Fault {
        let unclear = matches!(
            fault,
            Fault::Call {
                class: FaultClass::Ambiguous
                    | FaultClass::NewSession
                    | FaultClass::Login
                    | FaultClass::Find,
                ..
            }
        );
        if !unclear {
            return fault;
        }
        self.drop_session();
        let sings = self.sings();
        match fault {
            Fault::Call {
                token,
                function,
                name,
                what,
                class,
            } => Fault::Call {
                token,
                function,
                name,
                what,
                class: sings.err().unwrap_or(class),
            },
            other => other,
        }
    }

    fn drop_session(&mut self) {
        if let Some(session) = self.session.take() {
            // It may be gone already, and there is nothing else to do with it.
            let _ = self.token.module.close_session(session.handle);
        }
    }

    fn note_session(&mut self, served: bool) {
        match (std::mem::replace(&mut self.served, served), served) {
            (false, true) => self.token.session_begun(),
            (true, false) => self.token.session_ended(),
            _ => {}
        }
    }

    fn session(&mut self) -> Result<&mut Session, Failure> {
        let epoch = self.token.epoch();
        if self
            .session
            .as_ref()
            .is_some_and(|session| session.epoch.number != epoch.number)
        {
            self.drop_session();
        }
        if self.session.is_none() {
            let opened = self.token.session();
            self.note_session(opened.is_ok());
            let handle = match opened {
                Err(error) if is_full(error) => self.token.lend_anchor().ok_or(error),
                opened => opened,
            }
            .during(|| "opening a session".to_owned())?;
            self.note_session(true);
            self.session = Some(Session {
                handle,
                epoch,
                imported: Vec::new(),
            });
        }
        self.session.as_mut().ok_or_else(|| {
            Failure::Fault(Fault::Down {
                token: self.token.name.clone(),
                reason: "it gave no session".to_owned(),
            })
        })
    }

    fn attempt(&mut self, op: &Op) -> Result<Reply, Failure> {
        let token = Arc::clone(&self.token);
        if !op.repeatable() {
            // The session must not turn out to be dead half-way.
            self.drop_session();
        }
        let session = self.session()?;
        let mut at = At {
            token: &token,
            session,
        };
        // What is written now could be read until the process ends, and then never again. Whatever
        // token wraps an EEDK, the one that holds its KEK is asked for the proof.
        if let Op::Create { .. }
        | Op::Prove { .. }
        | Op::Generate { .. }
        | Op::Evidence(Evidence::MakeKey { .. }) = op
            && let Some(reason) = token.unkept()
        {
            let token = token.name.clone();
            return Err(Fault::Down { token, reason }.into());
        }
        match op {
            Op::Create {
                dki,
                keks,
                drive,
                custody,
                block,
            } => at.create(*dki, keks, drive, *custody, block),
            Op::Resolve {
                eedk,
                kek,
                drive,
                custody,
                guard: None,
            } => at.resolve(eedk, kek, drive, *custody),
            Op::Resolve {
                eedk,
                kek,
                drive,
                custody,
                guard: Some(throw_away),
            } => at.resolve_guarded(eedk, kek, drive, *custody, throw_away),
            Op::Rekey {
                eedk,
                kek,
                keks,
                custody,
                block,
            } => at.rekey(eedk, kek, keks, *custody, block),
            Op::Prove {
                eedk,
                kek,
                custody,
                block,
            } => at.prove(eedk, kek, *custody, block),
            Op::Canary => at.canary(),
            Op::Look => {
                token.renew(at.session.epoch.number, Some(at.session.handle))?;
                Ok(Reply::Ready(token.ready()))
            }
            Op::Distrust { key } => {
                token.distrust(at.session.handle, key)?;
                Ok(Reply::Ready(token.ready()))
            }
            Op::Generate {
                label,
                bits,
                custody,
                sign,
            } => {
                let kek = token.generate(at.session.handle, label, *bits, *custody, *sign)?;
                Ok(Reply::Generated(kek))
            }
            Op::Certify(what) => at.certify(what).map(Reply::Certified),
            Op::Destroy { kek } => {
                let objects = token.destroy_kek(at.session.handle, kek)?;
                Ok(Reply::Undone(objects))
            }
            Op::Evidence(what) => at.evidence(what).map(Reply::Evidenced),
        }
    }
}
