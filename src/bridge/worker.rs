//! One thread of a bridge: a session of its own, and the exchanges on it.
//!
//! A warm resolve is three calls (`C_UnwrapKey`, `C_WrapKey`,
//! `C_DestroyObject`), a warm create with two KEKs seven. What fails is
//! classified once, here, and repeated at most twice: nothing that these
//! exchanges leave behind outlives them, so repeating them is safe.

mod attempt;

use std::sync::Arc;

use cryptoki_sys as ck;

use super::faults::{Fault, FaultClass, ckr_name, classify};
use super::message::{Op, Reply};
use super::pkcs11::{CK_OBJECT_HANDLE, CK_SESSION_HANDLE, CallError};
use super::token::{Epoch, Token, is_full};
use crate::key::KekHash;
use attempt::At;

/// Attempts at one exchange, the first included.
const ATTEMPTS: u32 = 3;

/// A thread's share of the token.
#[derive(Debug)]
pub(super) struct Worker {
    token: Arc<Token>,
    session: Option<Session>,
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

    /// Does one thing.
    pub(super) fn run(&mut self, op: &Op) -> Result<Reply, Fault> {
        let mut attempt = 1;
        loop {
            let (error, what) = match self.attempt(op) {
                Ok(reply) => {
                    super::host::scrub_stack();
                    return Ok(reply);
                }
                Err(Failure::Fault(fault)) => {
                    super::host::scrub_stack();
                    return Err(fault);
                }
                Err(Failure::Call(error, what)) => (error, what),
            };
            let class = self.judge(error);
            let last = attempt == ATTEMPTS;
            attempt += 1;
            let seen = self.session.as_ref().map(|session| session.epoch.number);
            match class {
                FaultClass::NewSession if !last => self.drop_session(),
                FaultClass::Login | FaultClass::Find if !last => {
                    self.drop_session();
                    self.token.renew(seen.unwrap_or_default(), None)?;
                }
                FaultClass::Ambiguous => {
                    let fault = self.bad_data(error, &what, op);
                    self.drop_session();
                    return Err(fault);
                }
                FaultClass::NewSession
                | FaultClass::Login
                | FaultClass::Find
                | FaultClass::Request
                | FaultClass::Restart
                | FaultClass::Operator => {
                    self.drop_session();
                    return Err(Fault::Call {
                        token: self.token.name.clone(),
                        function: error.function.to_owned(),
                        name: ckr_name(error.rv),
                        what,
                        class,
                    });
                }
            }
        }
    }

    /// The class of a failure, after a look at what the code alone does not
    /// tell: whether session and login are alive, and whether the canary opens.
    fn judge(&mut self, error: CallError) -> FaultClass {
        let class = classify(error);
        let Some(session) = &self.session else {
            return class;
        };
        if !matches!(class, FaultClass::Ambiguous | FaultClass::Find) {
            return class;
        }
        match self.token.module.session_state(session.handle) {
            Ok(ck::CKS_RW_USER_FUNCTIONS) => {}
            Ok(_) => return FaultClass::Login,
            Err(error) => {
                return match classify(error) {
                    FaultClass::NewSession => FaultClass::NewSession,
                    _ => FaultClass::Restart,
                };
            }
        }
        if class == FaultClass::Find {
            return class;
        }
        let sings = session.epoch.canary.as_ref().is_none_or(|canary| {
            self.token
                .sing(session.handle, &session.epoch.catalog, canary)
                .is_ok()
        });
        if sings { class } else { FaultClass::Restart }
    }

    /// The token is well, so what it was given is not, or is beyond it.
    fn bad_data(&self, error: CallError, what: &str, op: &Op) -> Fault {
        let opened = match op {
            Op::Resolve { eedk, kek, .. }
            | Op::Rekey { eedk, kek, .. }
            | Op::Prove { eedk, kek, .. } => Some((eedk, kek)),
            Op::Create { .. } | Op::Canary | Op::Look | Op::Generate { .. } => None,
        };
        let token = self.token.name.clone();
        match (opened, error.function, &self.session) {
            (Some((eedk, kek)), "C_UnwrapKey" | "C_Decrypt", Some(session)) => {
                if self
                    .token
                    .opens_any(session.handle, &session.epoch.catalog, kek, eedk)
                {
                    return Fault::BadEedk {
                        token,
                        kek: kek.to_string(),
                        function: error.function.to_owned(),
                        name: ckr_name(error.rv),
                    };
                }
                Fault::Unsupported {
                    token,
                    reason: format!(
                        "{}: {} answered {}, and it opens no EEDK that is wrapped by {} under that KEK",
                        what,
                        error.function,
                        ckr_name(error.rv),
                        eedk.wrap()
                    ),
                }
            }
            _ => Fault::Call {
                token,
                function: error.function.to_owned(),
                name: ckr_name(error.rv),
                what: what.to_owned(),
                class: FaultClass::Request,
            },
        }
    }

    fn drop_session(&mut self) {
        if let Some(session) = self.session.take() {
            self.token.session_ended();
            // It may be gone already, and there is nothing else to do with it.
            let _ = self.token.module.close_session(session.handle);
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
            let handle = match self.token.session() {
                Err(error) if is_full(error) => self.token.lend_anchor().ok_or(error),
                opened => opened,
            }
            .during(|| "opening a session".to_owned())?;
            self.token.session_begun();
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
        let session = self.session()?;
        let mut at = At {
            token: &token,
            session,
        };
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
            } => at.resolve(eedk, kek, drive, *custody),
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
            Op::Generate {
                label,
                bits,
                custody,
            } => {
                let kek = token.generate(at.session.handle, label, *bits, *custody)?;
                Ok(Reply::Generated(kek))
            }
        }
    }
}
