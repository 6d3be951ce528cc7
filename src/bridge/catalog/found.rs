//! RSA keys as they are found on a token, and the certificates beside them.

use cryptoki_sys as ck;

use crate::bridge::doctor::pairs;
use crate::bridge::pkcs11::{Attr, CK_OBJECT_HANDLE, CK_SESSION_HANDLE, Call, Module};
use crate::bridge::{evidence, host, trust};
use crate::certificates::Validity;
use crate::key::{KekHash, KeyLabel};

pub(super) struct Found {
    pub(super) label: KeyLabel,
    pub(super) id: Vec<u8>,
    pub(super) hash: KekHash,
    pub(super) spki: Vec<u8>,
    pub(super) bits: u32,
}

impl Found {
    /// Whether it may be a KEK by its label, and is no key of a drive or of the officer's, nor one
    /// that seals the audit chain.
    pub(super) fn is_kek(&self) -> bool {
        let label = self.label.as_str();
        !trust::reserved(label) && !evidence::reserved(label)
    }

    /// `None` where the object has no usable label or numbers: it is no KEK of ours. An object
    /// without a label is called as its certificate is, as Java's keystores do it.
    pub(super) fn read(
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
            .filter(|label| !label.as_str().starts_with(pairs::PREFIX));
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

pub(super) struct Certificates(Vec<Certificate>);

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
    pub(super) fn read(module: &Module, session: CK_SESSION_HANDLE) -> Call<Self> {
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
    pub(super) fn of(&self, id: &[u8], spki: &[u8]) -> Option<Vec<u8>> {
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
pub(in crate::bridge) fn objects_of(
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

pub(super) fn rsa_objects(
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
