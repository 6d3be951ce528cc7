//! Throw-away keys: session objects where the token makes them, else token
//! objects under a label that nobody can take for a KEK, destroyed afterwards.

use std::time::Instant;

use cryptoki_sys as ck;

use super::findings::{Outcome, PairKind, PairMade};
use crate::bridge::catalog;
use crate::bridge::host;
use crate::bridge::message::Custody;
use crate::bridge::pkcs11::{
    Attr, CK_OBJECT_HANDLE, CK_SESSION_HANDLE, Call, CallError, Mechanism, Module,
};
use crate::bridge::profile::{HsmProfile, Send as SendAttr, UnwrapTemplate};
use crate::key::KeyLabel;

/// What the label of every throw-away token object begins with.
pub(in crate::bridge) const PREFIX: &str = "ekm-doctor-";

/// A throw-away pair.
#[derive(Clone, Debug)]
pub(in crate::bridge) struct Pair {
    pub(in crate::bridge) public: CK_OBJECT_HANDLE,
    pub(in crate::bridge) private: CK_OBJECT_HANDLE,
    pub(in crate::bridge) spki: Vec<u8>,
    on_token: bool,
    denied_uses: bool,
}

impl Pair {
    /// Makes a pair of `bits` as `ekm kek generate` would, but for its
    /// lifetime: where the token makes no session pair, a token pair; and
    /// where it does not hear what a key is not for, without that. `with`
    /// names the protections.
    pub(in crate::bridge) fn make(
        module: &Module,
        session: CK_SESSION_HANDLE,
        profile: &HsmProfile,
        custody: Custody,
        with: &[PairKind],
        bits: u32,
    ) -> Call<Self> {
        let mut first = None;
        for denied_uses in [SendAttr::Send, SendAttr::Omit] {
            for on_token in [false, true] {
                let profile = shaped(profile, with, denied_uses);
                match Self::generate(module, session, &profile, custody, bits, on_token) {
                    Ok(pair) => return Ok(pair),
                    // What came first says most: the rest are ways round it.
                    Err(error) => {
                        first.get_or_insert(error);
                    }
                }
            }
        }
        Err(first.unwrap_or(CallError::new(
            "C_GenerateKeyPair",
            ck::CKR_FUNCTION_FAILED,
            &[],
        )))
    }

    fn generate(
        module: &Module,
        session: CK_SESSION_HANDLE,
        profile: &HsmProfile,
        custody: Custody,
        bits: u32,
        on_token: bool,
    ) -> Call<Self> {
        let id = *uuid::Uuid::new_v4().as_bytes();
        let label: KeyLabel = format!("{PREFIX}{}", hex::encode(id))
            .parse()
            .map_err(|_| CallError::new("C_GenerateKeyPair", ck::CKR_GENERAL_ERROR, &[]))?;
        let lifetime = |mut template: Vec<Attr>| {
            template.retain(|attr| !attr.is(ck::CKA_TOKEN));
            template.push(Attr::flag(ck::CKA_TOKEN, on_token));
            template
        };
        let handles = module.generate_pair(
            session,
            &Mechanism::Plain(ck::CKM_RSA_PKCS_KEY_PAIR_GEN),
            &lifetime(catalog::public_template(&label, &id, bits, profile)),
            &lifetime(catalog::private_template(
                &label, &id, custody, false, profile,
            )),
        )?;
        let mut pair = Self {
            public: handles.public,
            private: handles.private,
            spki: Vec::new(),
            on_token,
            denied_uses: profile.kek.denied_uses == SendAttr::Send,
        };
        match pair.numbers(module, session) {
            Ok(spki) => pair.spki = spki,
            Err(error) => {
                pair.destroy(module, session);
                return Err(error);
            }
        }
        Ok(pair)
    }

    fn numbers(&self, module: &Module, session: CK_SESSION_HANDLE) -> Call<Vec<u8>> {
        let number = |kind| {
            module
                .attribute(session, self.public, kind)
                .map(|value| value.map(|value| value.to_vec()).unwrap_or_default())
        };
        host::spki(&number(ck::CKA_MODULUS)?, &number(ck::CKA_PUBLIC_EXPONENT)?)
            .map(|(spki, _)| spki)
            .map_err(|_| {
                CallError::new("C_GetAttributeValue", ck::CKR_ATTRIBUTE_VALUE_INVALID, &[])
            })
    }

    /// The same KEK by another object.
    pub(super) fn through(&self, private: CK_OBJECT_HANDLE) -> Self {
        Self {
            private,
            ..self.clone()
        }
    }

    pub(in crate::bridge) fn destroy(&self, module: &Module, session: CK_SESSION_HANDLE) {
        for object in [self.private, self.public] {
            // What stays is found by its label the next time.
            let _ = module.destroy(session, object);
        }
    }

    /// The finding about a pair that was tried to make.
    pub(super) fn finding(
        made: &Call<Self>,
        kind: PairKind,
        start: Instant,
        reads_back: Option<bool>,
    ) -> PairMade {
        PairMade {
            kind,
            made: match made {
                Ok(_) => Outcome::Works,
                Err(error) => (*error).into(),
            },
            on_token: made.as_ref().is_ok_and(|pair| pair.on_token),
            denied_uses: made.as_ref().is_ok_and(|pair| pair.denied_uses),
            milliseconds: u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX),
            reads_back,
        }
    }

    /// Whether the attribute that the kind is named for is there; none where
    /// the token does not say.
    pub(super) fn reads_back(
        &self,
        module: &Module,
        session: CK_SESSION_HANDLE,
        kind: PairKind,
    ) -> Option<bool> {
        let flag = |attribute| module.flag(session, self.private, attribute).ok().flatten();
        match kind {
            PairKind::Plain => flag(ck::CKA_UNWRAP),
            PairKind::UnwrapTemplate | PairKind::TrustedTemplate => module
                .nested_flags(session, self.private, ck::CKA_UNWRAP_TEMPLATE)
                .ok()
                .flatten()
                .map(|template| {
                    template.contains(&(ck::CKA_SENSITIVE, true))
                        && (kind == PairKind::UnwrapTemplate
                            || template.contains(&(ck::CKA_WRAP_WITH_TRUSTED, true)))
                }),
            PairKind::Protected => None,
            PairKind::Frozen => flag(ck::CKA_MODIFIABLE).map(|on| !on),
            PairKind::Uncopyable => flag(ck::CKA_COPYABLE).map(|on| !on),
            PairKind::Host => flag(ck::CKA_DECRYPT),
        }
    }
}

/// The profile, with the protections of the kind.
fn shaped(profile: &HsmProfile, with: &[PairKind], denied_uses: SendAttr) -> HsmProfile {
    let send = |kind| {
        if with.contains(&kind) {
            SendAttr::Send
        } else {
            SendAttr::Omit
        }
    };
    let mut profile = profile.clone();
    let trusted = with.contains(&PairKind::TrustedTemplate);
    profile.kek.unwrap_template = if trusted || with.contains(&PairKind::UnwrapTemplate) {
        UnwrapTemplate::Require
    } else {
        UnwrapTemplate::Never
    };
    profile.data_key.wrap_with_trusted = trusted;
    profile.kek.frozen = send(PairKind::Frozen);
    profile.kek.uncopyable = send(PairKind::Uncopyable);
    profile.kek.denied_uses = denied_uses;
    profile
}

/// Destroys what an interrupted examination left on the token; how many objects.
pub(in crate::bridge) fn sweep(module: &Module, session: CK_SESSION_HANDLE) -> Call<usize> {
    let mut swept = 0;
    for class in [ck::CKO_PRIVATE_KEY, ck::CKO_PUBLIC_KEY] {
        let template = [
            Attr::ulong(ck::CKA_CLASS, class),
            Attr::flag(ck::CKA_TOKEN, true),
        ];
        for object in module.find(session, &template)? {
            let label = module.attribute(session, object, ck::CKA_LABEL)?;
            if label.is_some_and(|label| label.starts_with(PREFIX.as_bytes())) {
                module.destroy(session, object)?;
                swept += 1;
            }
        }
    }
    Ok(swept)
}
