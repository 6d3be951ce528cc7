//! The token's part in making a second copy of a KEK, and in restoring one.
//!
//! It is done in a bridge of the command line's own, one [`Step`] after
//! another, and never repeated: a key pair that was made before an answer was
//! lost stays on the token. What must not stay there has the `CKA_ID` that the
//! ceremony gave it, so that [`Step::Undo`] finds it, also in the next bridge.

mod birth;
mod restore;
mod transport;

use cryptoki_sys as ck;
use serde::{Deserialize, Serialize};

use super::catalog::Catalog;
use super::doctor::Doctor;
use super::faults::Fault;
use super::message::{Custody, KekAttributes, KekOnToken};
use super::pkcs11::{Attr, CK_OBJECT_HANDLE, CK_SESSION_HANDLE, CallError, TokenInfo};
use super::token::Token;
use crate::copies::TransportKey;
use crate::key::KeyLabel;

/// What the bytes of a wrapped private key are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WrapFormat {
    /// AES key wrap with padding (RFC 5649) of a PKCS#8 `PrivateKeyInfo`.
    Rfc5649,
    /// AES-CBC with PKCS#7 padding of a PKCS#8 `PrivateKeyInfo`.
    CbcPad,
    /// Something that only a token of this product may understand.
    Own,
}

/// A private key under the transport key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WrappedKek {
    /// The mechanism that wrapped it: `CKM_AES_KEY_WRAP_KWP` …
    pub mechanism: String,
    /// What came of that.
    pub format: WrapFormat,
    /// Initialisation vector, hexadecimal; empty where the mechanism has none.
    pub iv: String,
    /// The wrapped key, hexadecimal.
    pub bytes: String,
}

/// A KEK that is to come from its copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopiedKek {
    /// Its label.
    pub label: KeyLabel,
    /// Its `CKA_ID`.
    pub id: Vec<u8>,
    /// What it is for.
    pub custody: Custody,
    /// Its `SubjectPublicKeyInfo`, DER.
    pub spki: Vec<u8>,
    /// Its private key, wrapped.
    pub wrapped: WrappedKek,
}

/// One thing to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Step {
    /// Log in and bring the transport key in.
    Open {
        /// The key.
        key: TransportKey,
        /// Wrap a throw-away key under it first, to see whether the token can.
        wraps: bool,
        /// A label and a `CKA_ID` that nothing on the token may have: what has them
        /// afterwards is this ceremony's, and may be destroyed.
        vacant: Option<(KeyLabel, Vec<u8>)>,
    },
    /// Make a KEK, wrap it and freeze it.
    Bear {
        /// Its label.
        label: KeyLabel,
        /// Modulus length, bits.
        bits: u32,
        /// What it is for.
        custody: Custody,
        /// Its `CKA_ID`.
        id: Vec<u8>,
    },
    /// Unwrap a copy as a session object and open an EEDK with it.
    Prove(CopiedKek),
    /// Unwrap a copy into the token.
    Restore(CopiedKek),
    /// Destroy what has that `CKA_ID`.
    Undo {
        /// The `CKA_ID`.
        id: Vec<u8>,
    },
    /// The same with what an interrupted ceremony left, unless its key was frozen.
    Clear {
        /// The KEK's label.
        label: KeyLabel,
        /// The `CKA_ID`.
        id: Vec<u8>,
    },
}

/// What came of a step.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Stepped {
    /// [`Step::Open`]
    Opened(Box<Opened>),
    /// [`Step::Bear`]
    Born(Box<Born>),
    /// [`Step::Prove`]
    Proved,
    /// [`Step::Restore`]
    Restored(Box<Restored>),
    /// [`Step::Undo`]: how many objects were destroyed.
    Undone(usize),
}

/// The transport key is in the token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// The token.
    pub token: TokenInfo,
    /// How the transport key came in.
    pub brought: String,
    /// Whether the token takes it for trusted (`CKA_TRUSTED`).
    pub trusted: bool,
    /// The mechanism that will wrap, and whether the token could unwrap by it again.
    pub wraps_by: Option<(String, bool)>,
}

/// A KEK that was born with a copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Born {
    /// As the token shows it now.
    pub kek: KekOnToken,
    /// The copy.
    pub wrapped: WrappedKek,
    /// Its attributes while it was wrapped.
    pub before: KekAttributes,
    /// Its attributes now.
    pub after: KekAttributes,
    /// What refused to wrap it again: function and `CKR_` code.
    pub refusal: String,
    /// What else there is to say.
    pub notes: Vec<String>,
}

/// A KEK that came from its copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    /// As the token shows it.
    pub kek: KekOnToken,
    /// The mechanism that unwrapped it.
    pub mechanism: String,
    /// What else there is to say.
    pub notes: Vec<String>,
}

/// The bridge's side: a token, and the transport key on it.
#[derive(Debug)]
pub(super) struct Ceremony {
    token: Token,
    session: CK_SESSION_HANDLE,
    transport: Option<transport::Transport>,
}

impl Ceremony {
    /// Logs in.
    pub(super) fn begin(doctor: &mut Doctor) -> Result<Self, Fault> {
        let token = doctor.logged_in()?;
        let session = token
            .session()
            .map_err(|error| Fault::call(&token.name, error, "opening a session"))?;
        Ok(Self {
            token,
            session,
            transport: None,
        })
    }

    /// Does one step.
    pub(super) fn step(&mut self, step: Step) -> Result<Stepped, Fault> {
        match step {
            Step::Open { key, wraps, vacant } => {
                if let Some((label, id)) = vacant {
                    self.must_be_free(&label, &id)?;
                }
                self.open(&key, wraps)
            }
            Step::Bear {
                label,
                bits,
                custody,
                id,
            } => {
                self.must_be_free(&label, &id)?;
                self.bear(&label, bits, custody, &id)
                    .map(|born| Stepped::Born(Box::new(born)))
            }
            Step::Prove(copied) => self.prove_copy(&copied).map(|()| Stepped::Proved),
            Step::Restore(copied) => self
                .restore(&copied)
                .map(|restored| Stepped::Restored(Box::new(restored))),
            Step::Undo { id } => self.undo(&id).map(Stepped::Undone),
            Step::Clear { label, id } => self.clear(&label, &id).map(Stepped::Undone),
        }
    }

    /// The transport key, once it was brought in.
    fn transport(&self) -> Result<&transport::Transport, Fault> {
        self.transport.as_ref().ok_or_else(|| Fault::Down {
            token: self.token.name.clone(),
            reason: "no transport key is on it".to_owned(),
        })
    }

    fn catalog(&self) -> Result<Catalog, Fault> {
        Catalog::read(
            &self.token.module,
            self.session,
            self.token.profile.host_only(),
            &self.token.profile,
        )
        .map_err(|error| self.failed(error, "reading the KEKs"))
    }

    fn must_be_free(&self, label: &KeyLabel, id: &[u8]) -> Result<(), Fault> {
        let catalog = self.catalog()?;
        if let Some(kek) = catalog.keks.iter().find(|kek| kek.label.same_as(label)) {
            return Err(self.refused(
                label,
                format!(
                    "the token already has the label {} (hash {}); choose another label or token, or if an interrupted ceremony left it (ekm kek show {label}: CKA_EXTRACTABLE), destroy it with the token's own tool",
                    kek.label, kek.hash
                ),
            ));
        }
        let template = [Attr::flag(ck::CKA_TOKEN, true), Attr::bytes(ck::CKA_ID, id)];
        let found = self
            .token
            .module
            .find(self.session, &template)
            .map_err(|error| self.failed(error, "looking for the KEK's CKA_ID"))?;
        if found.is_empty() {
            return Ok(());
        }
        Err(self.refused(
            label,
            format!(
                "the token has an object with its CKA_ID {}; is it the KEK's own, under another label?",
                hex::encode(id)
            ),
        ))
    }

    /// Destroys the token objects with that `CKA_ID`.
    fn undo(&self, id: &[u8]) -> Result<usize, Fault> {
        let mut destroyed = 0;
        for class in [ck::CKO_PRIVATE_KEY, ck::CKO_PUBLIC_KEY] {
            let template = [
                Attr::ulong(ck::CKA_CLASS, class),
                Attr::flag(ck::CKA_TOKEN, true),
                Attr::bytes(ck::CKA_ID, id),
            ];
            let found = self
                .token
                .module
                .find(self.session, &template)
                .map_err(|error| self.failed(error, "looking for what the ceremony left"))?;
            for object in found {
                self.token
                    .module
                    .destroy(self.session, object)
                    .map_err(|error| self.failed(error, "destroying what the ceremony left"))?;
                destroyed += 1;
            }
        }
        Ok(destroyed)
    }

    /// Destroys what an interrupted ceremony left. A key that is not extractable any more may be
    /// in use, and its ceremony have ended but for the record.
    fn clear(&self, label: &KeyLabel, id: &[u8]) -> Result<usize, Fault> {
        let template = [
            Attr::ulong(ck::CKA_CLASS, ck::CKO_PRIVATE_KEY),
            Attr::flag(ck::CKA_TOKEN, true),
            Attr::bytes(ck::CKA_ID, id),
        ];
        let module = &self.token.module;
        let found = module
            .find(self.session, &template)
            .map_err(|error| self.failed(error, "looking for what a ceremony left"))?;
        for object in found {
            let extractable = module
                .flag(self.session, object, ck::CKA_EXTRACTABLE)
                .map_err(|error| self.failed(error, "reading CKA_EXTRACTABLE"))?;
            if extractable != Some(true) {
                return Err(self.refused(
                    label,
                    format!(
                        "the key that a ceremony left (CKA_ID {}) is not extractable, so it may be in use, and is not destroyed; see ekm kek show {label}",
                        hex::encode(id)
                    ),
                ));
            }
        }
        self.undo(id)
    }

    /// A fault after which nothing of that `CKA_ID` may stay; it says whether it did.
    fn undone(&self, id: &[u8], fault: Fault) -> Fault {
        let told = match self.undo(id) {
            Ok(0) => "nothing of it is on the token".to_owned(),
            Ok(_) => "the key was destroyed".to_owned(),
            Err(error) => format!(
                "AND THE KEY WAS NOT DESTROYED ({error}): it may be extractable, destroy it with the token's own tool (CKA_ID {})",
                hex::encode(id)
            ),
        };
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
                what: format!("{what} ({told})"),
                class,
            },
            Fault::Refused {
                token,
                label,
                reason,
            } => Fault::Refused {
                token,
                label,
                reason: format!("{reason}; {told}"),
            },
            Fault::Unsupported { token, reason } => Fault::Unsupported {
                token,
                reason: format!("{reason}; {told}"),
            },
            other => other,
        }
    }

    fn failed(&self, error: CallError, what: impl Into<String>) -> Fault {
        Fault::call(&self.token.name, error, what)
    }

    fn refused(&self, label: &KeyLabel, reason: impl Into<String>) -> Fault {
        Fault::Refused {
            token: self.token.name.clone(),
            label: label.to_string(),
            reason: reason.into(),
        }
    }

    fn unsupported(&self, reason: impl Into<String>) -> Fault {
        Fault::Unsupported {
            token: self.token.name.clone(),
            reason: reason.into(),
        }
    }

    /// A key of this session that nobody needs any more.
    fn drop_key(&self, object: CK_OBJECT_HANDLE) {
        // It ends with the session in any case.
        let _ = self.token.module.destroy(self.session, object);
    }
}

/// Whether the template is to blame, and another may do.
const fn template_refused(error: CallError) -> bool {
    matches!(
        error.rv,
        ck::CKR_ATTRIBUTE_READ_ONLY
            | ck::CKR_ATTRIBUTE_TYPE_INVALID
            | ck::CKR_ATTRIBUTE_VALUE_INVALID
            | ck::CKR_TEMPLATE_INCOMPLETE
            | ck::CKR_TEMPLATE_INCONSISTENT
            | ck::CKR_USER_NOT_LOGGED_IN
    )
}
