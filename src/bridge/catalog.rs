//! The KEKs on a token, as its attributes tell.
//!
//! Keys are found by class and type, compared by modulus, and never guessed:
//! two keys under one label both appear, and whoever resolves the label sees
//! that it is ambiguous. A private key that may not serve appears with the
//! attribute that forbids it.

use std::collections::HashMap;

use cryptoki_sys as ck;

use super::message::{Custody, KekAttributes, KekOnToken, PrivateHalf, Provenance};
use super::pkcs11::{Attr, CK_OBJECT_HANDLE, CK_SESSION_HANDLE, Call, Module};
use super::profile::{HsmProfile, Send, UnwrapTemplate};
use super::{evidence, host, trust};
use crate::certificates::Validity;
use crate::key::{KekHash, KeyLabel};

/// Modulus lengths of KEKs, bits: those that an EEDK has room for.
pub(super) const BITS: [u32; 3] = [2048, 3072, 4096];

/// How a token refuses a template: before it makes anything.
pub(super) const REFUSES_TEMPLATE: [ck::CK_RV; 4] = [
    ck::CKR_ATTRIBUTE_TYPE_INVALID,
    ck::CKR_ATTRIBUTE_VALUE_INVALID,
    ck::CKR_ATTRIBUTE_READ_ONLY,
    ck::CKR_TEMPLATE_INCONSISTENT,
];

/// Handles of one KEK, good until the next login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Handles {
    pub(super) private: Option<CK_OBJECT_HANDLE>,
    pub(super) public: Option<CK_OBJECT_HANDLE>,
}

/// Everything on a token that can be named as a KEK.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Catalog {
    pub(super) keks: Vec<KekOnToken>,
    handles: HashMap<KekHash, Handles>,
    // Public keys that the security officer has blessed, KEKs' and drives'.
    trusted: HashMap<KekHash, CK_OBJECT_HANDLE>,
}

impl Catalog {
    /// Reads the token as the profile says; `host_only` where it opens EEDKs
    /// by `C_Decrypt` alone.
    pub(super) fn read(
        module: &Module,
        session: CK_SESSION_HANDLE,
        host_only: bool,
        profile: &HsmProfile,
    ) -> Call<Self> {
        let mut catalog = Self::default();
        let certificates = Certificates::read(module, session)?;
        for object in rsa_objects(module, session, ck::CKO_PRIVATE_KEY)? {
            let found = Found::read(module, session, object, Some(&certificates))?;
            let Some(found) = found.filter(Found::is_kek) else {
                continue;
            };
            let asked = profile.kek.unwrap_template;
            let attributes = attributes(module, session, object, asked)?;
            let private = judge(&attributes, found.bits, host_only, profile);
            catalog.add(found, &certificates, private, object);
        }
        for object in rsa_objects(module, session, ck::CKO_PUBLIC_KEY)? {
            let Some(found) = Found::read(module, session, object, None)? else {
                continue;
            };
            let wraps = module.flag(session, object, ck::CKA_WRAP)? == Some(true);
            // By the flag, never by the label: whoever has the user PIN can give a label.
            if wraps
                && (profile.data_key.wrap_with_trusted || !found.is_kek())
                && module.flag(session, object, ck::CKA_TRUSTED)? == Some(true)
            {
                catalog.trusted.insert(found.hash, object);
            }
            if !found.is_kek() {
                continue;
            }
            match catalog.handles.get_mut(&found.hash) {
                Some(handles) if wraps => handles.public = Some(object),
                Some(_) => {}
                None => {
                    let hash = found.hash;
                    catalog.add(found, &certificates, PrivateHalf::Absent, object);
                    if let Some(handles) = catalog.handles.get_mut(&hash).filter(|_| !wraps) {
                        handles.public = None;
                    }
                }
            }
        }
        catalog.keks.sort_by(|a, b| {
            (a.label.folded(), a.hash.as_bytes()).cmp(&(b.label.folded(), b.hash.as_bytes()))
        });
        Ok(catalog)
    }

    fn add(
        &mut self,
        found: Found,
        certificates: &Certificates,
        private: PrivateHalf,
        object: CK_OBJECT_HANDLE,
    ) {
        let Found {
            label,
            id,
            hash,
            spki,
            bits,
        } = found;
        let serves = matches!(private, PrivateHalf::Serves { .. });
        let refused = matches!(private, PrivateHalf::Refused { .. });
        // One key pair stored twice is as safe as its worse half: a twin that
        // can be read or wrapped out gives the key away.
        for kek in self.keks.iter_mut().filter(|kek| kek.hash == hash) {
            if refused {
                kek.private = private.clone();
            }
        }
        let known = self.keks.iter().find(|kek| kek.hash == hash);
        let private = known.map_or(private, |kek| kek.private.clone());
        let listed = self
            .keks
            .iter()
            .any(|kek| kek.hash == hash && kek.label.same_as(&label));
        if !listed {
            self.keks.push(KekOnToken {
                certificate: certificates.of(&id, &spki),
                label,
                hash,
                spki,
                bits,
                private: private.clone(),
            });
        }
        let handles = self.handles.entry(hash).or_insert(Handles {
            private: None,
            public: None,
        });
        match private {
            PrivateHalf::Absent => handles.public = Some(object),
            PrivateHalf::Refused { .. } => handles.private = None,
            // The half whose attributes were taken, not a twin's.
            PrivateHalf::Serves { .. } if serves => {
                handles.private.get_or_insert(object);
            }
            PrivateHalf::Serves { .. } => {}
        }
    }

    /// Marks a KEK as one that may not serve.
    pub(super) fn refuse(&mut self, hash: &KekHash, why: &str) {
        for kek in self.keks.iter_mut().filter(|kek| kek.hash == *hash) {
            if let PrivateHalf::Serves { attributes, .. } = kek.private {
                kek.private = PrivateHalf::Refused {
                    reason: why.to_owned(),
                    attributes,
                };
            }
        }
        if let Some(handles) = self.handles.get_mut(hash) {
            handles.private = None;
        }
    }

    /// Takes a refusal back: the KEK is as it was read.
    pub(super) fn reinstate(&mut self, hash: &KekHash, as_read: &Self) {
        let both = self.keks.iter_mut().zip(&as_read.keks);
        for (kek, read) in both.filter(|(kek, _)| kek.hash == *hash) {
            kek.private.clone_from(&read.private);
        }
        if let Some(handles) = as_read.handles.get(hash) {
            self.handles.insert(*hash, *handles);
        }
    }

    /// KEKs that would serve by what was read, and were refused since; each once, with what they
    /// are for.
    pub(super) fn refused_since(&self, as_read: &Self) -> Vec<(KekHash, Custody)> {
        let mut refused: Vec<(KekHash, Custody)> = Vec::new();
        for (read, now) in as_read.keks.iter().zip(&self.keks) {
            if let (PrivateHalf::Serves { custody, .. }, PrivateHalf::Refused { .. }) =
                (&read.private, &now.private)
                && !refused.iter().any(|(hash, _)| *hash == read.hash)
            {
                refused.push((read.hash, *custody));
            }
        }
        refused
    }

    /// The KEK of that hash, with its handles.
    pub(super) fn kek(&self, hash: &KekHash) -> Option<(&KekOnToken, Handles)> {
        let kek = self.keks.iter().find(|kek| kek.hash == *hash)?;
        Some((kek, *self.handles.get(hash)?))
    }

    /// The public key of that hash that the security officer has blessed.
    pub(super) fn trusted(&self, key: &KekHash) -> Option<CK_OBJECT_HANDLE> {
        self.trusted.get(key).copied()
    }

    /// Hashes of all public keys that he has blessed, in order.
    pub(super) fn all_trusted(&self) -> Vec<KekHash> {
        let mut all: Vec<KekHash> = self.trusted.keys().copied().collect();
        all.sort_unstable();
        all
    }

    /// A KEK that serves in that custody.
    pub(super) fn first(&self, wanted: Custody) -> Option<&KekOnToken> {
        self.keks.iter().find(
            |kek| matches!(kek.private, PrivateHalf::Serves { custody, .. } if custody == wanted),
        )
    }

    /// A KEK to make the canary with, and what it is for.
    pub(super) fn canary(&self) -> Option<(&KekOnToken, Custody)> {
        [Custody::Token, Custody::Host]
            .into_iter()
            .find_map(|custody| self.first(custody).map(|kek| (kek, custody)))
    }
}

struct Found {
    label: KeyLabel,
    id: Vec<u8>,
    hash: KekHash,
    spki: Vec<u8>,
    bits: u32,
}

impl Found {
    /// Whether it may be a KEK by its label, and is no key of a drive or of the officer's, nor one
    /// that seals the audit chain.
    fn is_kek(&self) -> bool {
        let label = self.label.as_str();
        !trust::reserved(label) && !evidence::reserved(label)
    }

    /// `None` where the object has no usable label or numbers: it is no KEK of ours. An object
    /// without a label is called as its certificate is, as Java's keystores do it.
    fn read(
        module: &Module,
        session: CK_SESSION_HANDLE,
        object: CK_OBJECT_HANDLE,
        certificates: Option<&Certificates>,
    ) -> Call<Option<Self>> {
        let get = |kind| {
            module
                .attribute(session, object, kind)
                .map(|value| value.map(|value| value.to_vec()).unwrap_or_default())
        };
        let own = get(ck::CKA_LABEL)?;
        let mut exponent = get(ck::CKA_PUBLIC_EXPONENT)?;
        if exponent.is_empty() {
            // Private keys need not carry it (PKCS#11 v2.40, 2.1.3), and no KEK has another.
            exponent = vec![1, 0, 1];
        }
        let numbers = host::spki(&get(ck::CKA_MODULUS)?, &exponent).ok();
        let Some((spki, bits)) = numbers else {
            return Ok(None);
        };
        let id = get(ck::CKA_ID)?;
        let text = match certificates {
            Some(certificates) if own.is_empty() && !id.is_empty() => {
                certificates.label(module, session, &id, &spki)?
            }
            Some(_) | None => own,
        };
        let label = String::from_utf8(text)
            .ok()
            .and_then(|text| KeyLabel::try_from(text).ok())
            .filter(|label| !label.as_str().starts_with(super::doctor::pairs::PREFIX));
        let Some(label) = label else {
            return Ok(None);
        };
        Ok(Some(Self {
            label,
            id,
            hash: KekHash::of_spki(&spki),
            spki,
            bits,
        }))
    }
}

struct Certificates(Vec<Certificate>);

struct Certificate {
    object: CK_OBJECT_HANDLE,
    id: Vec<u8>,
    der: Vec<u8>,
}

impl Certificate {
    /// Whether it is of this very key; `CKA_ID` alone is only a hint.
    fn is_of(&self, id: &[u8], spki: &[u8]) -> bool {
        self.id == id
            && x509_parser::parse_x509_certificate(&self.der)
                .is_ok_and(|(_, certificate)| certificate.public_key().raw == spki)
    }
}

impl Certificates {
    fn read(module: &Module, session: CK_SESSION_HANDLE) -> Call<Self> {
        let template = [
            Attr::ulong(ck::CKA_CLASS, ck::CKO_CERTIFICATE),
            Attr::flag(ck::CKA_TOKEN, true),
        ];
        let mut found = Vec::new();
        for object in module.find(session, &template)? {
            let id = module.attribute(session, object, ck::CKA_ID)?;
            if let Some(der) = module.attribute(session, object, ck::CKA_VALUE)? {
                let id = id.map(|id| id.to_vec()).unwrap_or_default();
                found.push(Certificate {
                    object,
                    id,
                    der: der.to_vec(),
                });
            }
        }
        Ok(Self(found))
    }

    /// The certificate of this very key; of several, the one that is good for longest.
    fn of(&self, id: &[u8], spki: &[u8]) -> Option<Vec<u8>> {
        let own = self.0.iter().filter(|own| own.is_of(id, spki));
        own.max_by_key(|own| Validity::of(&own.der).map(|validity| validity.not_after))
            .map(|own| own.der.clone())
    }

    /// What the first certificate of this very key that has a label is called; nothing where none has.
    fn label(
        &self,
        module: &Module,
        session: CK_SESSION_HANDLE,
        id: &[u8],
        spki: &[u8],
    ) -> Call<Vec<u8>> {
        for certificate in self.0.iter().filter(|own| own.is_of(id, spki)) {
            let label = module.attribute(session, certificate.object, ck::CKA_LABEL)?;
            if let Some(label) = label.filter(|label| !label.is_empty()) {
                return Ok(label.to_vec());
            }
        }
        Ok(Vec::new())
    }
}

/// Every object of a KEK that is on the token: private halves first, then certificates and public
/// halves.
pub(super) fn objects_of(
    module: &Module,
    session: CK_SESSION_HANDLE,
    kek: &KekHash,
) -> Call<Vec<CK_OBJECT_HANDLE>> {
    let certificates = Certificates::read(module, session)?;
    let mut objects = Vec::new();
    let mut beside = Vec::new();
    for class in [ck::CKO_PRIVATE_KEY, ck::CKO_PUBLIC_KEY] {
        for object in rsa_objects(module, session, class)? {
            let found = Found::read(module, session, object, Some(&certificates))?;
            let Some(found) = found.filter(|found| found.hash == *kek) else {
                continue;
            };
            objects.push(object);
            beside.extend(
                certificates
                    .0
                    .iter()
                    .filter(|certificate| certificate.is_of(&found.id, &found.spki))
                    .map(|certificate| certificate.object),
            );
        }
    }
    beside.sort_unstable();
    beside.dedup();
    objects.extend(beside);
    Ok(objects)
}

fn rsa_objects(
    module: &Module,
    session: CK_SESSION_HANDLE,
    class: ck::CK_OBJECT_CLASS,
) -> Call<Vec<CK_OBJECT_HANDLE>> {
    module.find(
        session,
        &[
            Attr::ulong(ck::CKA_CLASS, class),
            Attr::ulong(ck::CKA_KEY_TYPE, ck::CKK_RSA),
            Attr::flag(ck::CKA_TOKEN, true),
        ],
    )
}

/// The attributes of a private key that matter; its `CKA_UNWRAP_TEMPLATE` only
/// where that is asked for, since not every token can be asked.
pub(super) fn attributes(
    module: &Module,
    session: CK_SESSION_HANDLE,
    object: CK_OBJECT_HANDLE,
    asked: UnwrapTemplate,
) -> Call<KekAttributes> {
    let flag = |kind| module.flag(session, object, kind);
    let template = if asked == UnwrapTemplate::Never {
        None
    } else {
        module.nested_flags(session, object, ck::CKA_UNWRAP_TEMPLATE)?
    };
    let demands = |kind| {
        template
            .as_ref()
            .map(|template| template.contains(&(kind, true)))
    };
    Ok(KekAttributes {
        sensitive: flag(ck::CKA_SENSITIVE)?,
        extractable: flag(ck::CKA_EXTRACTABLE)?,
        always_sensitive: flag(ck::CKA_ALWAYS_SENSITIVE)?,
        never_extractable: flag(ck::CKA_NEVER_EXTRACTABLE)?,
        local: flag(ck::CKA_LOCAL)?,
        unwrap: flag(ck::CKA_UNWRAP)?,
        decrypt: flag(ck::CKA_DECRYPT)?,
        modifiable: flag(ck::CKA_MODIFIABLE)?,
        sign: flag(ck::CKA_SIGN)?,
        unwraps_sensitive: demands(ck::CKA_SENSITIVE),
        unwraps_trusted: demands(ck::CKA_WRAP_WITH_TRUSTED),
    })
}

/// Whether a private key may serve, and for what.
pub(super) fn judge(
    attributes: &KekAttributes,
    bits: u32,
    host_only: bool,
    profile: &HsmProfile,
) -> PrivateHalf {
    let refuse = |reason: &str| PrivateHalf::Refused {
        reason: reason.to_owned(),
        attributes: *attributes,
    };
    if !BITS.contains(&bits) {
        return refuse("its modulus is not 2048, 3072 or 4096 bits long");
    }
    if attributes.sensitive != Some(true) {
        return refuse("CKA_SENSITIVE is not true, so its value can be read from the token");
    }
    if attributes.extractable != Some(false) {
        return refuse("CKA_EXTRACTABLE is not false, so it can be wrapped out of the token");
    }
    let custody = match (attributes.unwrap, attributes.decrypt) {
        (Some(true), _) if !host_only => Custody::Token,
        (_, Some(true)) => Custody::Host,
        _ if host_only => {
            return refuse(
                "CKA_DECRYPT is not true, and this product opens EEDKs by C_Decrypt alone",
            );
        }
        _ => {
            return refuse("neither CKA_UNWRAP nor CKA_DECRYPT is true, so it cannot open an EEDK");
        }
    };
    if custody == Custody::Token && profile.kek.unwrap_template == UnwrapTemplate::Require {
        if attributes.unwraps_sensitive != Some(true) {
            return refuse(
                "CKA_UNWRAP_TEMPLATE does not show CKA_SENSITIVE true, which kek.unwrap_template = \"require\" of the profile asks for",
            );
        }
        if profile.data_key.wrap_with_trusted && attributes.unwraps_trusted != Some(true) {
            return refuse(
                "CKA_UNWRAP_TEMPLATE does not show CKA_WRAP_WITH_TRUSTED true, which kek.unwrap_template = \"require\" with data_key.wrap_with_trusted of the profile asks for",
            );
        }
    }
    PrivateHalf::Serves {
        custody,
        provenance: provenance(attributes),
        attributes: *attributes,
    }
}

/// How a private key came to the token.
pub(super) const fn provenance(attributes: &KekAttributes) -> Provenance {
    match (
        attributes.local,
        attributes.always_sensitive,
        attributes.never_extractable,
    ) {
        (Some(true), Some(true), Some(true)) => Provenance::Born,
        (Some(true), _, _) => Provenance::Copied,
        _ => Provenance::Imported,
    }
}

/// Template of a new KEK's public half.
pub(super) fn public_template(
    label: &KeyLabel,
    id: &[u8],
    bits: u32,
    profile: &HsmProfile,
) -> Vec<Attr> {
    let mut template = vec![
        Attr::flag(ck::CKA_TOKEN, true),
        Attr::flag(ck::CKA_PRIVATE, false),
        Attr::bytes(ck::CKA_LABEL, label.as_str()),
        Attr::bytes(ck::CKA_ID, id),
        Attr::ulong(ck::CKA_MODULUS_BITS, ck::CK_ULONG::from(bits)),
        Attr::bytes(ck::CKA_PUBLIC_EXPONENT, [1, 0, 1]),
    ];
    uses(
        &mut template,
        profile,
        &[
            (ck::CKA_WRAP, true),
            (ck::CKA_ENCRYPT, false),
            (ck::CKA_VERIFY, false),
        ],
    );
    template
}

/// Template of a new KEK's private half.
pub(super) fn private_template(
    label: &KeyLabel,
    id: &[u8],
    custody: Custody,
    sign: bool,
    profile: &HsmProfile,
) -> Vec<Attr> {
    let mut template = vec![
        Attr::flag(ck::CKA_TOKEN, true),
        Attr::flag(ck::CKA_PRIVATE, true),
        Attr::bytes(ck::CKA_LABEL, label.as_str()),
        Attr::bytes(ck::CKA_ID, id),
        Attr::flag(ck::CKA_SENSITIVE, true),
        Attr::flag(ck::CKA_EXTRACTABLE, false),
    ];
    uses(
        &mut template,
        profile,
        &[
            (ck::CKA_UNWRAP, custody == Custody::Token),
            (ck::CKA_DECRYPT, custody == Custody::Host),
            (ck::CKA_SIGN, sign),
        ],
    );
    if profile.kek.frozen == Send::Send {
        template.push(Attr::flag(ck::CKA_MODIFIABLE, false));
    }
    if profile.kek.uncopyable == Send::Send {
        template.push(Attr::flag(ck::CKA_COPYABLE, false));
    }
    demand(&mut template, custody, profile);
    template
}

/// Adds `CKA_UNWRAP_TEMPLATE` to the template of a KEK's private half, made
/// here or brought in, where the profile asks for it: a data key that opens
/// under it is `CKA_SENSITIVE`, and `CKA_WRAP_WITH_TRUSTED` where data keys are.
pub(super) fn demand(template: &mut Vec<Attr>, custody: Custody, profile: &HsmProfile) {
    if profile.kek.unwrap_template == UnwrapTemplate::Never || custody != Custody::Token {
        return;
    }
    let mut demanded = vec![Attr::flag(ck::CKA_SENSITIVE, true)];
    if profile.data_key.wrap_with_trusted {
        demanded.push(Attr::flag(ck::CKA_WRAP_WITH_TRUSTED, true));
    }
    template.push(Attr::template(ck::CKA_UNWRAP_TEMPLATE, demanded));
}

/// The same template without it, to try again where the token refused and the
/// profile only says to try; none where there is nothing to leave out.
pub(super) fn undemanding(template: &[Attr], profile: &HsmProfile) -> Option<Vec<Attr>> {
    let demands = |attr: &Attr| attr.is(ck::CKA_UNWRAP_TEMPLATE);
    (profile.kek.unwrap_template == UnwrapTemplate::Try && template.iter().any(demands)).then(
        || {
            template
                .iter()
                .filter(|attr| !attr.is(ck::CKA_UNWRAP_TEMPLATE))
                .cloned()
                .collect()
        },
    )
}

/// What a key is for and, unless the token refuses to hear it, what it is not for.
pub(super) fn uses(
    template: &mut Vec<Attr>,
    profile: &HsmProfile,
    flags: &[(ck::CK_ATTRIBUTE_TYPE, bool)],
) {
    let wanted = flags
        .iter()
        .filter(|(_, on)| *on || profile.kek.denied_uses == Send::Send);
    template.extend(wanted.map(|(kind, on)| Attr::flag(*kind, *on)));
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: KekAttributes = KekAttributes {
        sensitive: Some(true),
        extractable: Some(false),
        always_sensitive: Some(true),
        never_extractable: Some(true),
        local: Some(true),
        unwrap: Some(true),
        decrypt: Some(false),
        modifiable: Some(false),
        sign: Some(false),
        unwraps_sensitive: Some(true),
        unwraps_trusted: Some(false),
    };

    fn profile() -> HsmProfile {
        HsmProfile::load("softhsm2").unwrap()
    }

    #[test]
    fn a_readable_or_extractable_kek_is_refused_by_attribute_name() {
        for (attributes, name) in [
            (
                KekAttributes {
                    sensitive: Some(false),
                    ..GOOD
                },
                "CKA_SENSITIVE",
            ),
            (
                KekAttributes {
                    sensitive: None,
                    ..GOOD
                },
                "CKA_SENSITIVE",
            ),
            (
                KekAttributes {
                    extractable: Some(true),
                    ..GOOD
                },
                "CKA_EXTRACTABLE",
            ),
            (
                KekAttributes {
                    unwrap: Some(false),
                    ..GOOD
                },
                "CKA_UNWRAP",
            ),
        ] {
            match judge(&attributes, 3072, false, &profile()) {
                PrivateHalf::Refused { reason, .. } => assert!(reason.contains(name), "{reason}"),
                other => panic!("{name}: {other:?}"),
            }
        }
    }

    /// A token with these KEKs, each under one label or two.
    fn shown(keks: &[(&str, u8)]) -> Catalog {
        let mut catalog = Catalog::default();
        for (number, (label, key)) in (1..).zip(keks) {
            let hash = KekHash::of_spki(&[*key]);
            catalog.keks.push(KekOnToken {
                label: label.parse().unwrap(),
                hash,
                spki: vec![*key],
                bits: 3072,
                private: judge(&GOOD, 3072, false, &profile()),
                certificate: None,
            });
            let handles = Handles {
                private: Some(number),
                public: None,
            };
            catalog.handles.insert(hash, handles);
        }
        catalog
    }

    #[test]
    fn a_kek_that_was_refused_by_a_trial_is_known_and_comes_back_as_it_was_read() {
        let as_read = shown(&[("KEK1", 1), ("ALIAS", 1), ("KEK2", 2), ("KEK3", 3)]);
        let mut catalog = as_read.clone();
        assert!(catalog.refused_since(&as_read).is_empty());
        let [one, two] = [1, 2].map(|key: u8| KekHash::of_spki(&[key]));
        catalog.refuse(&one, "it opened no canary");
        catalog.refuse(&two, "nor did it");
        assert_eq!(
            catalog.refused_since(&as_read),
            [(one, Custody::Token), (two, Custody::Token)]
        );
        assert_eq!(catalog.kek(&one).unwrap().1.private, None);
        catalog.reinstate(&one, &as_read);
        assert_eq!(catalog.refused_since(&as_read), [(two, Custody::Token)]);
        assert_eq!(catalog.kek(&one), as_read.kek(&one));
        catalog.reinstate(&two, &as_read);
        assert_eq!(catalog, as_read);
        // What its attributes forbid was never a matter of a trial.
        let mut forbidden = as_read.clone();
        forbidden.refuse(&two, "CKA_SENSITIVE is not true");
        assert!(forbidden.clone().refused_since(&forbidden).is_empty());
    }

    #[test]
    fn provenance_follows_the_attributes() {
        let provenance = |attributes| match judge(&attributes, 3072, false, &profile()) {
            PrivateHalf::Serves { provenance, .. } => provenance,
            other => panic!("{other:?}"),
        };
        assert_eq!(provenance(GOOD), Provenance::Born);
        assert_eq!(
            provenance(KekAttributes {
                never_extractable: Some(false),
                ..GOOD
            }),
            Provenance::Copied
        );
        assert_eq!(
            provenance(KekAttributes {
                local: Some(false),
                ..GOOD
            }),
            Provenance::Imported
        );
    }

    #[test]
    fn a_token_that_only_decrypts_keeps_its_keks_in_host_custody() {
        let both = KekAttributes {
            decrypt: Some(true),
            ..GOOD
        };
        for (host_only, expected) in [(true, Custody::Host), (false, Custody::Token)] {
            match judge(&both, 3072, host_only, &profile()) {
                PrivateHalf::Serves { custody, .. } => assert_eq!(custody, expected),
                other => panic!("{other:?}"),
            }
        }
        match judge(&GOOD, 3072, true, &profile()) {
            PrivateHalf::Refused { reason, .. } => assert!(reason.contains("CKA_DECRYPT")),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_profile_that_requires_an_unwrap_template_refuses_a_kek_without_it() {
        let mut required = profile();
        required.kek.unwrap_template = UnwrapTemplate::Require;
        let reason = |attributes: KekAttributes, profile: &HsmProfile| match judge(
            &attributes,
            3072,
            false,
            profile,
        ) {
            PrivateHalf::Refused { reason, .. } => Some(reason),
            _ => None,
        };
        assert_eq!(reason(GOOD, &required), None);
        for unwraps_sensitive in [Some(false), None] {
            let weak = KekAttributes {
                unwraps_sensitive,
                ..GOOD
            };
            assert!(reason(weak, &required).unwrap().contains("CKA_SENSITIVE"));
            assert_eq!(reason(weak, &profile()), None);
        }
        required.data_key.wrap_with_trusted = true;
        let untrusted = reason(GOOD, &required).unwrap();
        assert!(untrusted.contains("CKA_WRAP_WITH_TRUSTED"), "{untrusted}");
        let trusted = KekAttributes {
            unwraps_trusted: Some(true),
            ..GOOD
        };
        assert_eq!(reason(trusted, &required), None);
    }

    #[test]
    fn only_where_the_profile_says_try_is_it_left_out_after_a_refusal() {
        let mut profile = profile();
        for (says, asked, again) in [
            (UnwrapTemplate::Never, false, false),
            (UnwrapTemplate::Try, true, true),
            (UnwrapTemplate::Require, true, false),
        ] {
            profile.kek.unwrap_template = says;
            let mut template = vec![Attr::flag(ck::CKA_SENSITIVE, true)];
            demand(&mut template, Custody::Token, &profile);
            let has =
                |template: &[Attr]| template.iter().any(|attr| attr.is(ck::CKA_UNWRAP_TEMPLATE));
            assert_eq!(has(&template), asked, "{says:?}");
            let less = undemanding(&template, &profile);
            assert_eq!(less.is_some(), again, "{says:?}");
            assert!(less.is_none_or(|less| !has(&less) && less.len() == 1));
            let mut host = Vec::new();
            demand(&mut host, Custody::Host, &profile);
            assert!(host.is_empty());
        }
    }
}
