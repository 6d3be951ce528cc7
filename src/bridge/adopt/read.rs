//! The key objects of a token, paired.

use cryptoki_sys as ck;

use crate::bridge::catalog;
use crate::bridge::doctor::pairs::PREFIX;
use crate::bridge::evidence;
use crate::bridge::host;
use crate::bridge::message::KekAttributes;
use crate::bridge::pkcs11::{
    Attr, CK_ATTRIBUTE_TYPE, CK_OBJECT_HANDLE, CK_SESSION_HANDLE, Call, Module,
};
use crate::bridge::profile::UnwrapTemplate;
use crate::bridge::trust;
use crate::key::KekHash;

/// Largest RSA modulus that is looked at, bits.
const MAX_BITS: usize = 16_384;

/// What every object has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Common {
    pub(super) handle: CK_OBJECT_HANDLE,
    /// Empty where there is none.
    pub(super) label: Vec<u8>,
    /// Likewise.
    pub(super) id: Vec<u8>,
    /// `CKK_`; none of a certificate, and where the token does not say.
    pub(super) kind: Option<ck::CK_KEY_TYPE>,
    pub(super) numbers: Option<Numbers>,
}

/// An RSA public key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Numbers {
    pub(super) bits: usize,
    /// `SubjectPublicKeyInfo`; none of a key too small or odd to wrap under.
    pub(super) spki: Option<Vec<u8>>,
    modulus: Vec<u8>,
}

impl Numbers {
    pub(super) fn new(modulus: &[u8], exponent: &[u8]) -> Option<Self> {
        let start = modulus.iter().position(|byte| *byte != 0)?;
        let modulus = modulus.get(start..)?.to_vec();
        let top = modulus.first()?.leading_zeros();
        let bits = (modulus.len() * 8).saturating_sub(usize::try_from(top).ok()?);
        let exponent: &[u8] = if exponent.is_empty() {
            // Private keys need not carry it, and no KEK has another.
            &[1, 0, 1]
        } else {
            exponent
        };
        (bits <= MAX_BITS).then(|| Self {
            bits,
            spki: host::spki(&modulus, exponent).ok().map(|(spki, _)| spki),
            modulus,
        })
    }

    fn of_certificate(der: &[u8]) -> Option<Self> {
        use x509_parser::public_key::PublicKey;
        let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
        match certificate.public_key().parsed().ok()? {
            PublicKey::RSA(key) => Self::new(key.modulus, key.exponent),
            PublicKey::EC(_)
            | PublicKey::DSA(_)
            | PublicKey::GostR3410(_)
            | PublicKey::GostR3410_2012(_)
            | PublicKey::Unknown(_) => None,
        }
    }
}

/// What a private key has besides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Private {
    pub(super) common: Common,
    pub(super) attributes: KekAttributes,
    pub(super) private: Option<bool>,
    pub(super) sign: Option<bool>,
    pub(super) always_authenticate: Option<bool>,
}

impl std::ops::Deref for Private {
    type Target = Common;

    fn deref(&self) -> &Common {
        &self.common
    }
}

/// A key: a private half with what belongs to it, or a public half alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) private: Option<Private>,
    pub(super) public: Vec<Common>,
    pub(super) certificates: Vec<Common>,
    /// Objects of that `CKA_ID` that are of another key.
    pub(super) strangers: usize,
}

impl Row {
    /// The objects, private first.
    pub(super) fn objects(&self) -> impl Iterator<Item = &Common> {
        let private = self.private.iter().map(|private| &private.common);
        private.chain(&self.public).chain(&self.certificates)
    }

    pub(super) fn is_rsa(&self) -> bool {
        self.objects().next().and_then(|object| object.kind) == Some(ck::CKK_RSA)
    }

    /// The numbers of the private half, or of a public one that stands alone. A private half
    /// whose modulus the token does not give has none: `CKA_ID` alone is a hint, no proof.
    pub(super) fn numbers(&self) -> Option<&Numbers> {
        match &self.private {
            Some(private) => private.numbers.as_ref(),
            None => self.objects().find_map(|object| object.numbers.as_ref()),
        }
    }

    pub(super) fn spki(&self) -> Option<&[u8]> {
        self.numbers()?.spki.as_deref()
    }

    pub(super) fn hash(&self) -> Option<KekHash> {
        self.spki().map(KekHash::of_spki)
    }

    pub(super) fn same_key(&self, other: &Self) -> bool {
        match (self.numbers(), other.numbers()) {
            (Some(one), Some(other)) => one.modulus == other.modulus,
            (_, _) => false,
        }
    }
}

/// All keys of the token that are objects of it and no throw-away ones.
pub(super) fn rows(module: &Module, session: CK_SESSION_HANDLE) -> Call<Vec<Row>> {
    let reader = Reader { module, session };
    let mut public = reader.all(ck::CKO_PUBLIC_KEY)?;
    public.retain(|object| object.kind == Some(ck::CKK_RSA));
    let mut certificates = reader.all(ck::CKO_CERTIFICATE)?;
    let mut rows = Vec::new();
    for common in reader.all(ck::CKO_PRIVATE_KEY)? {
        rows.push(Row {
            private: Some(reader.private(common)?),
            ..Row::default()
        });
    }
    for row in &mut rows {
        let taken = |object: &Common, row: &Row| {
            let Some(private) = &row.private else {
                return false;
            };
            match (&private.numbers, &object.numbers) {
                (Some(one), Some(other)) => one.modulus == other.modulus,
                (Some(_), None) => false,
                // Nothing else to go by.
                (None, _) => !private.id.is_empty() && private.id == object.id,
            }
        };
        let id = row.private.as_ref().map(|private| private.id.clone());
        for (list, certificate) in [(&public, false), (&certificates, true)] {
            for object in list {
                if taken(object, row) {
                    if certificate {
                        row.certificates.push(object.clone());
                    } else {
                        row.public.push(object.clone());
                    }
                } else if !object.id.is_empty() && Some(&object.id) == id.as_ref() {
                    row.strangers += 1;
                }
            }
        }
    }
    let used: Vec<CK_OBJECT_HANDLE> = rows
        .iter()
        .flat_map(Row::objects)
        .map(|object| object.handle)
        .collect();
    public.retain(|object| !used.contains(&object.handle));
    certificates.retain(|object| !used.contains(&object.handle));
    for object in public {
        let own = |other: &Common| matches!((&object.numbers, &other.numbers), (Some(one), Some(other)) if one.modulus == other.modulus);
        let (mine, others) = certificates.into_iter().partition(own);
        certificates = others;
        rows.push(Row {
            public: vec![object],
            certificates: mine,
            ..Row::default()
        });
    }
    // What is left are certificates of others: authorities and partners.
    Ok(rows)
}

struct Reader<'a> {
    module: &'a Module,
    session: CK_SESSION_HANDLE,
}

impl Reader<'_> {
    fn all(&self, class: ck::CK_OBJECT_CLASS) -> Call<Vec<Common>> {
        let template = [
            Attr::ulong(ck::CKA_CLASS, class),
            Attr::flag(ck::CKA_TOKEN, true),
        ];
        let mut found = Vec::new();
        for handle in self.module.find(self.session, &template)? {
            let label = self.bytes(handle, ck::CKA_LABEL)?;
            let blessed = std::str::from_utf8(&label)
                .is_ok_and(|label| trust::reserved(label) || evidence::reserved(label));
            if blessed || label.starts_with(PREFIX.as_bytes()) {
                continue;
            }
            let certificate = class == ck::CKO_CERTIFICATE;
            let kind = if certificate {
                None
            } else {
                ulong(&self.bytes(handle, ck::CKA_KEY_TYPE)?)
            };
            let numbers = if certificate {
                Numbers::of_certificate(&self.bytes(handle, ck::CKA_VALUE)?)
            } else if kind == Some(ck::CKK_RSA) {
                Numbers::new(
                    &self.bytes(handle, ck::CKA_MODULUS)?,
                    &self.bytes(handle, ck::CKA_PUBLIC_EXPONENT)?,
                )
            } else {
                None
            };
            found.push(Common {
                handle,
                label,
                id: self.bytes(handle, ck::CKA_ID)?,
                kind,
                numbers,
            });
        }
        Ok(found)
    }

    fn private(&self, common: Common) -> Call<Private> {
        let flag = |kind| self.module.flag(self.session, common.handle, kind);
        Ok(Private {
            attributes: catalog::attributes(
                self.module,
                self.session,
                common.handle,
                UnwrapTemplate::Never,
            )?,
            private: flag(ck::CKA_PRIVATE)?,
            sign: flag(ck::CKA_SIGN)?,
            always_authenticate: flag(ck::CKA_ALWAYS_AUTHENTICATE)?,
            common,
        })
    }

    fn bytes(&self, object: CK_OBJECT_HANDLE, kind: CK_ATTRIBUTE_TYPE) -> Call<Vec<u8>> {
        let value = self.module.attribute(self.session, object, kind)?;
        Ok(value.map(|value| value.to_vec()).unwrap_or_default())
    }
}

/// A `CK_ULONG` attribute, in the machine's byte order.
fn ulong(bytes: &[u8]) -> Option<ck::CK_ULONG> {
    bytes.try_into().ok().map(ck::CK_ULONG::from_ne_bytes)
}
