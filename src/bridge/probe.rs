//! What a token really does, tried at start on throw-away session objects.
//!
//! No template, error code or mechanism list is portable: openCryptoki
//! ignores `CKA_SENSITIVE` on unwrap, NSS wraps keys that are not extractable,
//! SoftHSM has OAEP with SHA-1 only. What is learned here once costs no call
//! later. Takes some 20 calls, and where a token opens EEDKs by `C_Decrypt` alone, two.

use cryptoki_sys as ck;
use secrecy::{ExposeSecret, SecretSlice};
use subtle::ConstantTimeEq;

use super::catalog::Catalog;
use super::faults::Fault;
use super::host;
use super::message::{Custody, Probe};
use super::pkcs11::{Attr, CK_OBJECT_HANDLE, CK_SESSION_HANDLE, Call, Mechanism};
use super::profile::Sensitive;
use super::token::{Token, wrapping};
use crate::key::{OaepHash, SedkForm, WrapAlgorithm};

const BLOCK: [u8; 16] = *b"ekm start-up try";

/// In the place of a DKi.
const DKI: [u8; 12] = *b"EKMprobe....";

/// Tries the token with its first KEK of custody `token`; `None` where it has none.
pub(super) fn probe(
    token: &Token,
    session: CK_SESSION_HANDLE,
    catalog: &Catalog,
) -> Result<Option<Probe>, Fault> {
    let Some(kek) = catalog.first(Custody::Token) else {
        return Ok(None);
    };
    let Some((_, handles)) = catalog.kek(&kek.hash) else {
        return Ok(None);
    };
    let Some(private) = handles.private else {
        return Ok(None);
    };
    let refuse = |reason: String| Fault::Unsupported {
        token: token.name.clone(),
        reason,
    };
    let numbers = host::numbers(&kek.spki).map_err(|error| refuse(error.to_string()))?;
    let mut tried = Tried {
        token,
        session,
        private,
        trusted: token.opens_trusted(kek),
        objects: Vec::new(),
    };
    let outcome = tried.run(&numbers.modulus, &numbers.exponent);
    tried.clean();
    match outcome {
        Ok(Ok(probe)) => Ok(Some(probe)),
        Ok(Err(reason)) => Err(refuse(format!("the start-up probe failed: {reason}"))),
        Err(error) => Err(Fault::call(
            &token.name,
            error,
            format!(
                "the start-up probe with KEK {}; the profile {} may not fit this token",
                kek.label, token.profile.name
            ),
        )),
    }
}

/// Tries a token that has KEKs of custody `host` alone, as the profile says: what is wrapped here
/// under the public half of the first one must come out of it again. Whether there was one to try.
pub(super) fn decrypts(
    token: &Token,
    session: CK_SESSION_HANDLE,
    catalog: &Catalog,
) -> Result<bool, Fault> {
    // One of custody `token` has the canary, and a key beside it is no reason to refuse the token.
    let kek = match (catalog.first(Custody::Token), catalog.first(Custody::Host)) {
        (None, Some(kek)) => kek,
        (Some(_), _) | (None, None) => return Ok(false),
    };
    let handles = catalog.kek(&kek.hash).map(|(_, handles)| handles);
    let Some(private) = handles.and_then(|handles| handles.private) else {
        return Ok(false);
    };
    let refuse = |reason: String| Fault::Unsupported {
        token: token.name.clone(),
        reason,
    };
    let mut random = vec![0_u8; 32];
    aws_lc_rs::rand::fill(&mut random)
        .map_err(|_| refuse("the operating system gives no random numbers".to_owned()))?;
    let known = SecretSlice::from(random);
    let algorithm = token.profile.wrap_algorithm();
    let wrapped = host::wrap(&kek.spki, algorithm, &DKI, &known)
        .map_err(|error| refuse(error.to_string()))?;
    // A canary under another KEK may have left the session stuck, where the token gives one more.
    let apart = token.session().ok();
    let opened = token.module.decrypt(
        apart.unwrap_or(session),
        &wrapping(algorithm, &DKI),
        private,
        &wrapped,
    );
    if let Some(apart) = apart {
        // It may be gone already, and there is nothing else to do with it.
        let _ = token.module.close_session(apart);
    }
    let opened = opened.map_err(|error| {
        Fault::call(
            &token.name,
            error,
            format!(
                "the start-up probe with KEK {}, {algorithm}; the profile {} may not fit this token",
                kek.label, token.profile.name
            ),
        )
    })?;
    if bool::from(opened.expose_secret().ct_eq(known.expose_secret())) {
        return Ok(true);
    }
    Err(refuse(format!(
        "the start-up probe failed: what was wrapped under KEK {} by {algorithm} opens to another value",
        kek.label
    )))
}

struct Tried<'a> {
    token: &'a Token,
    session: CK_SESSION_HANDLE,
    private: CK_OBJECT_HANDLE,
    // What it opens is wrapped under trusted keys only.
    trusted: bool,
    objects: Vec<CK_OBJECT_HANDLE>,
}

impl Tried<'_> {
    fn run(&mut self, modulus: &[u8], exponent: &[u8]) -> Call<Result<Probe, String>> {
        let module = &self.token.module;
        let ecb = Mechanism::Plain(ck::CKM_AES_ECB);
        let public = module.create_object(
            self.session,
            &[
                Attr::ulong(ck::CKA_CLASS, ck::CKO_PUBLIC_KEY),
                Attr::ulong(ck::CKA_KEY_TYPE, ck::CKK_RSA),
                Attr::flag(ck::CKA_TOKEN, false),
                Attr::flag(ck::CKA_PRIVATE, false),
                Attr::flag(ck::CKA_WRAP, true),
                Attr::bytes(ck::CKA_MODULUS, modulus),
                Attr::bytes(ck::CKA_PUBLIC_EXPONENT, exponent),
            ],
        )?;
        self.objects.push(public);
        let born = self.generate(true)?;
        let expected = module.encrypt_block(self.session, &ecb, born, &BLOCK)?;

        let eedk = wrapping(self.token.profile.wrap_algorithm(), &DKI);
        let opened = self.through(&eedk, public, born)?;
        if module.flag(self.session, opened, ck::CKA_SENSITIVE)? != Some(true) {
            return Ok(Err("an unwrapped key is not CKA_SENSITIVE; set data_key.sensitive = \"set-after\" in the profile".to_owned()));
        }
        let value = module.attribute(self.session, opened, ck::CKA_VALUE)?;
        if value.is_some_and(|value| !value.is_empty()) {
            return Ok(Err("CKA_VALUE of an unwrapped data key can be read although it says CKA_SENSITIVE; this token cannot keep a data key".to_owned()));
        }
        if module.encrypt_block(self.session, &ecb, opened, &BLOCK)? != expected {
            return Ok(Err(
                "a key that was wrapped and unwrapped is not the same key".to_owned(),
            ));
        }

        if self.trusted
            && let Some(reason) = self.not_enforced(&eedk, public, opened)?
        {
            return Ok(Err(reason));
        }
        // Under the stand-in below, which nobody has blessed, only a key without that wish goes.
        let to_wrap = if self.trusted { born } else { opened };

        let mut forms = Vec::new();
        for form in &self.token.profile.drive.forms {
            let algorithm = match form {
                SedkForm::T10Wrapped => WrapAlgorithm::oaep(OaepHash::Sha256, true),
                SedkForm::RsaOaepSha1 => WrapAlgorithm::oaep(OaepHash::Sha1, false),
                SedkForm::T10Plain => continue,
            };
            // Its own public key stands in for a drive's: what it wraps it can then open and compare.
            let opened = self.through(
                &wrapping(algorithm, &[0, 0, 0, 8, 0xff, 0, 1]),
                public,
                to_wrap,
            )?;
            if module.encrypt_block(self.session, &ecb, opened, &BLOCK)? != expected {
                return Ok(Err(format!(
                    "an SEDK of form {form} does not hold the key that was wrapped"
                )));
            }
            forms.push(*form);
        }

        if self.token.profile.wrap_algorithm().is_v15()
            && let Some(reason) = self.unguarded(&eedk, public, opened, to_wrap)?
        {
            return Ok(Err(reason));
        }

        let closed = self.generate(false)?;
        let refuses_unextractable = module.wrap(self.session, &eedk, public, closed).is_err();
        Ok(Ok(Probe {
            forms,
            refuses_unextractable,
        }))
    }

    /// What is wrong where the token takes `CKA_WRAP_WITH_TRUSTED` and wraps
    /// such a key under any key all the same.
    fn not_enforced(
        &mut self,
        mechanism: &Mechanism,
        public: CK_OBJECT_HANDLE,
        opened: CK_OBJECT_HANDLE,
    ) -> Call<Option<String>> {
        let module = &self.token.module;
        let aes = Mechanism::Plain(ck::CKM_AES_KEY_GEN);
        let born = module.generate_key(self.session, &aes, &self.token.born_template())?;
        self.objects.push(born);
        let mut keys = vec![("unwrapped", opened)];
        if self.token.profile.data_key.wrap_with_trusted {
            keys.push(("generated", born));
        }
        for (what, key) in keys {
            if module.wrap(self.session, mechanism, public, key).is_ok() {
                return Ok(Some(format!(
                    "a data key that was {what} as CKA_WRAP_WITH_TRUSTED was wrapped under a key that is not trusted: the token does not enforce it; set data_key.wrap_with_trusted = false in the profile"
                )));
            }
        }
        Ok(None)
    }

    /// What would tell a wrong PKCS#1 v1.5 padding from a right one, whatever is done about it.
    fn unguarded(
        &mut self,
        mechanism: &Mechanism,
        public: CK_OBJECT_HANDLE,
        opened: CK_OBJECT_HANDLE,
        to_wrap: CK_OBJECT_HANDLE,
    ) -> Call<Option<String>> {
        let module = &self.token.module;
        if self.token.value_len(self.session, opened)? != Some(32) {
            return Ok(Some(
                "the token does not tell CKA_VALUE_LEN of a key that it opened, so one of another length could not be told from a data key".to_owned(),
            ));
        }
        // Any number is a ciphertext, and hardly any has a right padding inside.
        let numbers = module
            .attribute(self.session, public, ck::CKA_MODULUS)?
            .unwrap_or_default();
        let wrong = vec![0x17; numbers.len()];
        let template = self.token.unwrap_template(true, self.trusted);
        if let Ok(key) = module.unwrap(self.session, mechanism, self.private, &wrong, &template) {
            self.objects.push(key);
        }
        Ok(module
            .wrap(self.session, mechanism, public, to_wrap)
            .err()
            .map(|error| {
                format!(
                    "after a wrong padding the session does not work any more ({} answers {}), so a wrong padding could not be hidden",
                    error.function,
                    super::faults::ckr_name(error.rv)
                )
            }))
    }

    fn generate(&mut self, extractable: bool) -> Call<CK_OBJECT_HANDLE> {
        let mut template = Token::generate_template();
        if !extractable {
            template.retain(|attr| !attr.is(ck::CKA_EXTRACTABLE));
            template.push(Attr::flag(ck::CKA_EXTRACTABLE, false));
        }
        let key = self.token.module.generate_key(
            self.session,
            &Mechanism::Plain(ck::CKM_AES_KEY_GEN),
            &template,
        )?;
        self.objects.push(key);
        Ok(key)
    }

    /// Wraps a key under the KEK's public half and opens it again.
    fn through(
        &mut self,
        mechanism: &Mechanism,
        public: CK_OBJECT_HANDLE,
        key: CK_OBJECT_HANDLE,
    ) -> Call<CK_OBJECT_HANDLE> {
        let module = &self.token.module;
        let wrapped = module.wrap(self.session, mechanism, public, key)?;
        let opened = module.unwrap(
            self.session,
            mechanism,
            self.private,
            &wrapped,
            &self.token.unwrap_template(true, self.trusted),
        )?;
        self.objects.push(opened);
        if self.token.profile.data_key.sensitive == Sensitive::SetAfter {
            module.set_attributes(self.session, opened, &[Attr::flag(ck::CKA_SENSITIVE, true)])?;
        }
        Ok(opened)
    }

    fn clean(&mut self) {
        for object in self.objects.drain(..) {
            // Session objects go with their session in any case.
            let _ = self.token.module.destroy(self.session, object);
        }
    }
}
