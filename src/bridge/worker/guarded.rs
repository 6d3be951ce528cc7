//! The guarded opening of an EEDK (`bridge/guard.rs`), on a session that is closed after it.
//!
//! In custody `token` these calls are made, on the data key where it opened and else on the
//! throw-away key: `C_UnwrapKey` twice, `C_GetAttributeValue`, `C_SetAttributeValue` where the
//! profile says so, `C_WrapKey`. In custody `host`: `C_Decrypt` twice. Then the session is closed,
//! and takes along what is on it: one object more where the EEDK opened. `C_DestroyObject` for that
//! one would be a call more, and a session on which a call failed is closed in any case.
//!
//! Whatever the token answers about the EEDK is a wrong padding, also a code that would else have
//! the exchange repeated: an answer that depends on the padding must not. Where the token itself
//! has failed in between, `C_WrapKey` fails as well, and the exchange is repeated.

use cryptoki_sys as ck;
use secrecy::{ExposeSecret, SecretSlice};
use subtle::ConstantTimeEq;

use super::attempt::{At, Opener};
use super::{During, Failure};
use crate::bridge::faults::{Fault, ckr_name};
use crate::bridge::guard::{Guarded, ThrowAway};
use crate::bridge::host;
use crate::bridge::in_host::{self, DATA_KEY};
use crate::bridge::message::{Custody, Recipient, Reply};
use crate::bridge::pkcs11::{Attr, CK_OBJECT_HANDLE, CallError};
use crate::bridge::profile::Sensitive;
use crate::bridge::token::wrapping;
use crate::key::{Eedk, KekHash};

impl At<'_> {
    pub(super) fn resolve_guarded(
        &mut self,
        eedk: &Eedk,
        kek: &KekHash,
        drive: &Recipient,
        custody: Custody,
        throw_away: &ThrowAway,
    ) -> Result<Reply, Failure> {
        let opener = self.opener(eedk, kek, custody)?;
        let throw_away = throw_away.key();
        let wrapped = self.wrapped(eedk, kek, &throw_away)?;
        // Zeros before a ciphertext may be passed over, and it has another throw-away key with them:
        // who sent both would learn whether it opens. So the token never sees one of another length.
        let misfit = (eedk.wrapped().len() != opener.bytes).then(|| Guarded::Rejected {
            function: "length check".to_owned(),
            name: format!(
                "{} bytes where the KEK gives {}",
                eedk.wrapped().len(),
                opener.bytes
            ),
        });
        let asked = if misfit.is_none() {
            eedk.wrapped()
        } else {
            &wrapped
        };
        match opener.custody {
            Custody::Token => {
                self.must_make(&opener, drive.form)?;
                let other = self.opened(&opener, eedk, &wrapped)?;
                let (key, verdict) = self.either(&opener, eedk, asked, other)?;
                let (key, verdict) = misfit.map_or((key, verdict), |misfit| (other, misfit));
                let sedk = self.sedk_on_token(key, drive, opener.trusted)?;
                Ok(Reply::Resolved {
                    sedk,
                    custody: Custody::Token,
                    guarded: Some(verdict),
                })
            }
            Custody::Host => {
                let known = self
                    .decrypted(&opener, eedk, &wrapped)
                    .during(|| format!("trying KEK {} in host custody", opener.label))?;
                if !bool::from(known.expose_secret().ct_eq(throw_away.expose_secret())) {
                    return Err(self
                        .strange(&opener, "it opened another key than was wrapped")
                        .into());
                }
                let (key, verdict) = match (self.decrypted(&opener, eedk, asked), misfit) {
                    (_, Some(misfit)) => (throw_away, misfit),
                    (Ok(key), None) => match key.expose_secret().len() {
                        DATA_KEY => (key, Guarded::Opened),
                        bytes => (throw_away, of_length(bytes)),
                    },
                    (Err(error), None) => (throw_away, rejected(error)),
                };
                Ok(Reply::Resolved {
                    sedk: self.in_host(&key).sedk(drive)?,
                    custody: Custody::Host,
                    guarded: Some(verdict),
                })
            }
        }
    }

    /// The throw-away key, wrapped as the EEDK is.
    fn wrapped(
        &self,
        eedk: &Eedk,
        kek: &KekHash,
        throw_away: &SecretSlice<u8>,
    ) -> Result<Vec<u8>, Fault> {
        let (entry, _) = self
            .session
            .epoch
            .catalog
            .kek(kek)
            .ok_or_else(|| Fault::NoKek {
                token: Some(self.token.name.clone()),
                kek: kek.to_string(),
            })?;
        host::wrap(&entry.spki, eedk.wrap(), &[], throw_away)
            .map_err(|error| in_host::fault(&self.token.name, error, "the throw-away key"))
    }

    /// The throw-away key on the token; what fails here is the token's fault.
    fn opened(
        &self,
        opener: &Opener,
        eedk: &Eedk,
        wrapped: &[u8],
    ) -> Result<CK_OBJECT_HANDLE, Failure> {
        self.unwrapped(opener, eedk, wrapped)
            .during(|| format!("trying KEK {}", opener.label))
    }

    /// The EEDK's key where it opens and is as long as a data key, else the other.
    fn either(
        &self,
        opener: &Opener,
        eedk: &Eedk,
        asked: &[u8],
        other: CK_OBJECT_HANDLE,
    ) -> Result<(CK_OBJECT_HANDLE, Guarded), Failure> {
        let opened = self.unwrapped(opener, eedk, asked);
        let length = self.length(opened.unwrap_or(other));
        let (key, verdict) = match (opened, length) {
            (Ok(key), Ok(Some(DATA_KEY))) => (key, Guarded::Opened),
            (Ok(_), Ok(Some(bytes))) => (other, of_length(bytes)),
            (Ok(_), Ok(None)) => (
                other,
                Guarded::Rejected {
                    function: "C_GetAttributeValue".to_owned(),
                    name: "no CKA_VALUE_LEN".to_owned(),
                },
            ),
            (Ok(_), Err(error)) | (Err(error), _) => (other, rejected(error)),
        };
        if self.token.profile.data_key.sensitive == Sensitive::SetAfter {
            self.token
                .module
                .set_attributes(
                    self.session.handle,
                    key,
                    &[Attr::flag(ck::CKA_SENSITIVE, true)],
                )
                .during(|| "making the data key sensitive".to_owned())?;
        }
        Ok((key, verdict))
    }

    fn unwrapped(
        &self,
        opener: &Opener,
        eedk: &Eedk,
        wrapped: &[u8],
    ) -> Result<CK_OBJECT_HANDLE, CallError> {
        self.token.module.unwrap(
            self.session.handle,
            &wrapping(eedk.wrap(), &[]),
            opener.private,
            wrapped,
            &self.token.unwrap_template(false, opener.trusted),
        )
    }

    fn decrypted(
        &self,
        opener: &Opener,
        eedk: &Eedk,
        wrapped: &[u8],
    ) -> Result<SecretSlice<u8>, CallError> {
        self.token.module.decrypt(
            self.session.handle,
            &wrapping(eedk.wrap(), &[]),
            opener.private,
            wrapped,
        )
    }

    /// `CKA_VALUE_LEN`, bytes.
    fn length(&self, key: CK_OBJECT_HANDLE) -> Result<Option<usize>, CallError> {
        self.token.value_len(self.session.handle, key)
    }

    fn strange(&self, opener: &Opener, what: &str) -> Fault {
        Fault::Unsupported {
            token: self.token.name.clone(),
            reason: format!("trying KEK {}: {what}", opener.label),
        }
    }
}

fn rejected(error: CallError) -> Guarded {
    Guarded::Rejected {
        function: error.function.to_owned(),
        name: ckr_name(error.rv),
    }
}

fn of_length(bytes: usize) -> Guarded {
    Guarded::Rejected {
        function: "length check".to_owned(),
        name: format!("{bytes} bytes inside where a data key has {DATA_KEY}"),
    }
}
