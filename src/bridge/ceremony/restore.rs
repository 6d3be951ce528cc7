//! A KEK from its copy: for the proof as a session object, for good on the token.

use cryptoki_sys as ck;
use secrecy::{ExposeSecret, SecretSlice};

use super::{Ceremony, CopiedKek, Restored, WrapFormat, birth, template_refused};
use crate::bridge::carry::{WAYS, Way};
use crate::bridge::catalog;
use crate::bridge::faults::{Fault, ckr_name};
use crate::bridge::host;
use crate::bridge::message::{Custody, KekOnToken, PrivateHalf};
use crate::bridge::pkcs11::{Attr, CK_OBJECT_HANDLE, CallError, Mechanism};
use crate::bridge::profile::Send as SendAttr;
use crate::bridge::token::{data_key_template, wrapping};
use crate::key::KekHash;

impl Ceremony {
    /// Unwraps the copy as an object of this session, opens an EEDK with it, and lets it go.
    pub(super) fn prove_copy(&self, copied: &CopiedKek) -> Result<(), Fault> {
        let (private, _) = self.unwrap_copy(copied, false)?;
        let proved = self.prove(private, copied);
        self.drop_key(private);
        proved
    }

    /// Unwraps the copy into the token. Whatever goes wrong, nothing of it stays.
    pub(super) fn restore(&self, copied: &CopiedKek) -> Result<Restored, Fault> {
        let hash = KekHash::of_spki(&copied.spki);
        if let Some(kek) = self.catalog()?.keks.iter().find(|kek| kek.hash == hash) {
            return Err(self.refused(
                &copied.label,
                format!(
                    "the token has this very key already, labelled {}; nothing was changed",
                    kek.label
                ),
            ));
        }
        self.must_be_free(&copied.label, &copied.id)?;
        self.restore_on_token(copied)
            .map_err(|fault| self.undone(&copied.id, fault))
    }

    fn restore_on_token(&self, copied: &CopiedKek) -> Result<Restored, Fault> {
        let (private, way) = self.unwrap_copy(copied, true)?;
        let mut notes = Vec::new();
        let read = self.attributes(private)?;
        if read.extractable != Some(false) {
            self.set(copied, private, ck::CKA_EXTRACTABLE, false)?;
            notes.push("CKA_EXTRACTABLE was set to false after the unwrap".to_owned());
        }
        if read.sensitive != Some(true) {
            self.set(copied, private, ck::CKA_SENSITIVE, true)?;
            notes.push("CKA_SENSITIVE was set to true after the unwrap, which did not heed it: until then whoever is logged in to the token could have read the KEK".to_owned());
        }
        if self.token.profile.kek.frozen == SendAttr::Send && read.modifiable != Some(false) {
            notes.push(
                "CKA_MODIFIABLE is true: the token took no unwrap template with false".to_owned(),
            );
        }
        self.prove(private, copied)?;
        self.public_half(copied)?;
        let kek = self.shown(&copied.label)?;
        self.judge(copied, &kek)?;
        Ok(Restored {
            kek,
            mechanism: way.name.to_owned(),
            notes,
        })
    }

    fn judge(&self, copied: &CopiedKek, kek: &KekOnToken) -> Result<(), Fault> {
        let refuse = |reason: String| Err(self.refused(&copied.label, reason));
        if kek.hash != KekHash::of_spki(&copied.spki) {
            return refuse(format!("the token shows the key {} in its place", kek.hash));
        }
        match &kek.private {
            PrivateHalf::Serves { custody, .. } if *custody == copied.custody => {}
            PrivateHalf::Serves { custody, .. } => {
                return refuse(format!("it came out for custody {custody}"));
            }
            PrivateHalf::Refused { reason, .. } => {
                return refuse(format!("it may not serve: {reason}"));
            }
            PrivateHalf::Absent => {
                return refuse("the token does not show its private half".to_owned());
            }
        }
        if !birth::imported(kek) {
            return refuse(
                "the token shows it as one that was generated there (CKA_LOCAL), which it was not"
                    .to_owned(),
            );
        }
        Ok(())
    }

    fn set(
        &self,
        copied: &CopiedKek,
        private: CK_OBJECT_HANDLE,
        kind: ck::CK_ATTRIBUTE_TYPE,
        on: bool,
    ) -> Result<(), Fault> {
        self.token
            .module
            .set_attributes(self.session, private, &[Attr::flag(kind, on)])
            .map_err(|error| {
                self.failed(
                    error,
                    format!("protecting KEK {} after its unwrap", copied.label),
                )
            })
    }

    /// The private key, by the first mechanism and template that the token takes.
    fn unwrap_copy(
        &self,
        copied: &CopiedKek,
        on_token: bool,
    ) -> Result<(CK_OBJECT_HANDLE, Way), Fault> {
        let transport = self.transport()?;
        let damaged = || self.refused(&copied.label, "its copy is damaged");
        let wrapped = hex::decode(&copied.wrapped.bytes).map_err(|_| damaged())?;
        let iv = hex::decode(&copied.wrapped.iv).map_err(|_| damaged())?;
        let mut tried: Vec<String> = Vec::new();
        let mut last: Option<CallError> = None;
        for way in WAYS.into_iter().filter(|way| fits(copied, *way)) {
            let mechanism = way.with(&iv).ok_or_else(damaged)?;
            for template in self.templates(copied, on_token) {
                match self.token.module.unwrap(
                    self.session,
                    &mechanism,
                    transport.handle,
                    &wrapped,
                    &template,
                ) {
                    Ok(private) if self.can_be_protected(private)? => return Ok((private, way)),
                    Ok(private) => {
                        self.drop_key(private);
                        tried.push(format!("{}: it came out unprotected for good", way.name));
                    }
                    Err(error) => {
                        tried.push(format!("{}: {}", way.name, ckr_name(error.rv)));
                        last = Some(error);
                        if !template_refused(error) {
                            break;
                        }
                    }
                }
            }
        }
        let what = format!(
            "unwrapping the copy of KEK {} (wrapped by {}; tried {})",
            copied.label,
            copied.wrapped.mechanism,
            tried.join(", ")
        );
        Err(match last {
            Some(error) => self.failed(error, what),
            None => self.unsupported(format!("it cannot do this: {what}")),
        })
    }

    /// Whether it is sensitive and not extractable, or can still be made so: openCryptoki takes
    /// `CKA_SENSITIVE` on unwrap and does not heed it, and `CKA_MODIFIABLE` false it heeds.
    fn can_be_protected(&self, private: CK_OBJECT_HANDLE) -> Result<bool, Fault> {
        let read = self.attributes(private)?;
        Ok(read.modifiable != Some(false)
            || (read.sensitive == Some(true) && read.extractable == Some(false)))
    }

    /// Templates of the private key, the strictest first.
    fn templates(&self, copied: &CopiedKek, on_token: bool) -> Vec<Vec<Attr>> {
        let profile = &self.token.profile;
        let mut full =
            catalog::private_template(&copied.label, &copied.id, copied.custody, false, profile);
        full.retain(|attr| {
            !attr.is(ck::CKA_TOKEN) && !attr.is(ck::CKA_MODIFIABLE) && !attr.is(ck::CKA_COPYABLE)
        });
        full.splice(
            0..0,
            [
                Attr::ulong(ck::CKA_CLASS, ck::CKO_PRIVATE_KEY),
                Attr::ulong(ck::CKA_KEY_TYPE, ck::CKK_RSA),
                Attr::flag(ck::CKA_TOKEN, on_token),
            ],
        );
        let with = |base: &[Attr], more: &[Attr]| {
            let mut template = base.to_vec();
            template.extend_from_slice(more);
            template
        };
        let frozen = Attr::flag(ck::CKA_MODIFIABLE, false);
        let uncopyable = Attr::flag(ck::CKA_COPYABLE, false);
        let mut bare = full.clone();
        bare.retain(|attr| !attr.is(ck::CKA_UNWRAP_TEMPLATE));
        let mut least = bare.clone();
        // openCryptoki hears what a key is for, and takes its protections afterwards.
        least.retain(|attr| !attr.is(ck::CKA_EXTRACTABLE) && !attr.is(ck::CKA_SENSITIVE));
        let mut templates = Vec::new();
        if on_token && profile.kek.frozen == SendAttr::Send {
            if profile.kek.uncopyable == SendAttr::Send {
                // In this order: SoftHSM heeds what came before CKA_MODIFIABLE.
                templates.push(with(&full, &[uncopyable, frozen.clone()]));
            }
            templates.push(with(&full, std::slice::from_ref(&frozen)));
            templates.push(with(&bare, &[frozen]));
        }
        templates.extend([full, bare, least]);
        templates
    }

    fn public_half(&self, copied: &CopiedKek) -> Result<(), Fault> {
        let numbers = host::numbers(&copied.spki)
            .map_err(|error| self.refused(&copied.label, error.to_string()))?;
        let mut template = vec![
            Attr::ulong(ck::CKA_CLASS, ck::CKO_PUBLIC_KEY),
            Attr::ulong(ck::CKA_KEY_TYPE, ck::CKK_RSA),
        ];
        // As at its birth, but for what only a generation is told.
        template.extend(
            catalog::public_template(&copied.label, &copied.id, 0, &self.token.profile)
                .into_iter()
                .filter(|attr| !attr.is(ck::CKA_MODULUS_BITS) && !attr.is(ck::CKA_PUBLIC_EXPONENT)),
        );
        template.push(Attr::bytes(ck::CKA_MODULUS, numbers.modulus));
        template.push(Attr::bytes(ck::CKA_PUBLIC_EXPONENT, numbers.exponent));
        self.token
            .module
            .create_object(self.session, &template)
            .map(drop)
            .map_err(|error| {
                self.failed(
                    error,
                    format!("creating the public half of KEK {}", copied.label),
                )
            })
    }

    /// Opens an EEDK that was made under the public key outside the token.
    fn prove(&self, private: CK_OBJECT_HANDLE, copied: &CopiedKek) -> Result<(), Fault> {
        let none = || self.unsupported("the operating system gives no random numbers");
        let mut secret = [0_u8; 32];
        let mut block = [0_u8; 16];
        aws_lc_rs::rand::fill(&mut secret).map_err(|_| none())?;
        aws_lc_rs::rand::fill(&mut block).map_err(|_| none())?;
        let secret = SecretSlice::from(secret.to_vec());
        let algorithm = self.token.profile.wrap_algorithm();
        let eedk = host::wrap(&copied.spki, algorithm, &[], &secret)
            .map_err(|error| self.refused(&copied.label, error.to_string()))?;
        let mechanism = wrapping(algorithm, &[]);
        let what = || format!("opening an EEDK with the copy of KEK {}", copied.label);
        let module = &self.token.module;
        let opens = match copied.custody {
            Custody::Token => {
                let mut template = data_key_template(true);
                template.push(Attr::flag(ck::CKA_SENSITIVE, true));
                if self.token.profile.data_key.value_len == SendAttr::Send {
                    template.push(Attr::ulong(ck::CKA_VALUE_LEN, 32));
                }
                let key = module
                    .unwrap(self.session, &mechanism, private, &eedk, &template)
                    .map_err(|error| self.failed(error, what()))?;
                let encrypted = module.encrypt_block(
                    self.session,
                    &Mechanism::Plain(ck::CKM_AES_ECB),
                    key,
                    &block,
                );
                self.drop_key(key);
                let expected = host::encrypt_block(&secret, &block)
                    .map_err(|error| self.refused(&copied.label, error.to_string()))?;
                encrypted.map_err(|error| self.failed(error, what()))? == expected
            }
            Custody::Host => {
                let opened = module
                    .decrypt(self.session, &mechanism, private, &eedk)
                    .map_err(|error| self.failed(error, what()))?;
                opened.expose_secret() == secret.expose_secret()
            }
        };
        if opens {
            Ok(())
        } else {
            Err(self.refused(
                &copied.label,
                "the copy opens an EEDK to another data key: it is not the private half of this public key",
            ))
        }
    }
}

/// Whether a mechanism reads what the copy is wrapped in.
fn fits(copied: &CopiedKek, way: Way) -> bool {
    match copied.wrapped.format {
        WrapFormat::Rfc5649 => {
            way.name == "CKM_AES_KEY_WRAP_KWP" || way.name == "CKM_AES_KEY_WRAP_PAD"
        }
        WrapFormat::CbcPad => way.name == "CKM_AES_CBC_PAD",
        WrapFormat::Own => way.name == copied.wrapped.mechanism,
    }
}
