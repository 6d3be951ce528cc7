//! The KEKs on a token, as its attributes tell.
//!
//! Keys are found by class and type, compared by modulus, and never guessed:
//! two keys under one label both appear, and whoever resolves the label sees
//! that it is ambiguous. A private key that may not serve appears with the
//! attribute that forbids it.

use std::collections::HashMap;

use cryptoki_sys as ck;

use super::host;
use super::message::{Custody, KekAttributes, KekOnToken, PrivateHalf, Provenance};
use super::pkcs11::{Attr, CK_OBJECT_HANDLE, CK_SESSION_HANDLE, Call, Module};
use super::profile::{HsmProfile, Send};
use crate::certificates::Validity;
use crate::key::{KekHash, KeyLabel};

/// Modulus lengths of KEKs, bits: those that an EEDK has room for.
pub(super) const BITS: [u32; 3] = [2048, 3072, 4096];

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
}

impl Catalog {
    /// Reads the token; `host_only` where it opens EEDKs by `C_Decrypt` alone.
    pub(super) fn read(module: &Module, session: CK_SESSION_HANDLE, host_only: bool) -> Call<Self> {
        let mut catalog = Self::default();
        let certificates = Certificates::read(module, session)?;
        for object in rsa_objects(module, session, ck::CKO_PRIVATE_KEY)? {
            let Some(found) = Found::read(module, session, object, Some(&certificates))? else {
                continue;
            };
            let attributes = attributes(module, session, object)?;
            let private = judge(&attributes, found.bits, host_only);
            catalog.add(found, &certificates, private, object);
        }
        for object in rsa_objects(module, session, ck::CKO_PUBLIC_KEY)? {
            let Some(found) = Found::read(module, session, object, None)? else {
                continue;
            };
            let wraps = module.flag(session, object, ck::CKA_WRAP)? == Some(true);
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

    /// The KEK of that hash, with its handles.
    pub(super) fn kek(&self, hash: &KekHash) -> Option<(&KekOnToken, Handles)> {
        let kek = self.keks.iter().find(|kek| kek.hash == *hash)?;
        Some((kek, *self.handles.get(hash)?))
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

pub(super) fn attributes(
    module: &Module,
    session: CK_SESSION_HANDLE,
    object: CK_OBJECT_HANDLE,
) -> Call<KekAttributes> {
    let flag = |kind| module.flag(session, object, kind);
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
    })
}

/// Whether a private key may serve, and for what.
pub(super) fn judge(attributes: &KekAttributes, bits: u32, host_only: bool) -> PrivateHalf {
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
    if profile.kek.unwrap_template == Send::Send && custody == Custody::Token {
        template.push(Attr::template(
            ck::CKA_UNWRAP_TEMPLATE,
            vec![Attr::flag(ck::CKA_SENSITIVE, true)],
        ));
    }
    template
}

/// What a key is for and, unless the token refuses to hear it, what it is not for.
fn uses(template: &mut Vec<Attr>, profile: &HsmProfile, flags: &[(ck::CK_ATTRIBUTE_TYPE, bool)]) {
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
    };

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
            match judge(&attributes, 3072, false) {
                PrivateHalf::Refused { reason, .. } => assert!(reason.contains(name), "{reason}"),
                other => panic!("{name}: {other:?}"),
            }
        }
    }

    #[test]
    fn provenance_follows_the_attributes() {
        let provenance = |attributes| match judge(&attributes, 3072, false) {
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
            match judge(&both, 3072, host_only) {
                PrivateHalf::Serves { custody, .. } => assert_eq!(custody, expected),
                other => panic!("{other:?}"),
            }
        }
        match judge(&GOOD, 3072, true) {
            PrivateHalf::Refused { reason, .. } => assert!(reason.contains("CKA_DECRYPT")),
            other => panic!("{other:?}"),
        }
    }
}
