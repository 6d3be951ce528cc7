//! What data keys are made, opened and wrapped by: templates and mechanisms.

use cryptoki_sys as ck;

use super::Token;
use crate::bridge::host;
use crate::bridge::message::{KekOnToken, PrivateHalf};
use crate::bridge::pkcs11::{Attr, CK_OBJECT_HANDLE, CK_SESSION_HANDLE, Call, Mechanism};
use crate::bridge::profile::{Send, Sensitive};
use crate::key::{OaepHash, WrapAlgorithm};

impl Token {
    /// Template of a data key made on the token.
    pub(in crate::bridge) fn generate_template() -> Vec<Attr> {
        let mut template = data_key_template(true);
        template.push(Attr::flag(ck::CKA_SENSITIVE, true));
        template.push(Attr::flag(ck::CKA_EXTRACTABLE, true));
        template.push(Attr::ulong(ck::CKA_VALUE_LEN, 32));
        template
    }

    /// The same as the profile wants it on a cartridge.
    pub(in crate::bridge) fn born_template(&self) -> Vec<Attr> {
        let mut template = Self::generate_template();
        if self.profile.data_key.wrap_with_trusted {
            template.push(Attr::flag(ck::CKA_WRAP_WITH_TRUSTED, true));
        }
        template
    }

    /// Whether what opens under that KEK is wrapped under trusted keys only:
    /// the profile wants it so, or the KEK demands it.
    pub(in crate::bridge) fn opens_trusted(&self, kek: &KekOnToken) -> bool {
        let demands = match &kek.private {
            PrivateHalf::Serves { attributes, .. } | PrivateHalf::Refused { attributes, .. } => {
                attributes.unwraps_trusted == Some(true)
            }
            PrivateHalf::Absent => false,
        };
        demands || self.profile.data_key.wrap_with_trusted
    }

    /// `CKA_VALUE_LEN` of a secret key, bytes; none where the token does not say.
    pub(in crate::bridge) fn value_len(
        &self,
        session: CK_SESSION_HANDLE,
        key: CK_OBJECT_HANDLE,
    ) -> Call<Option<usize>> {
        let value = self
            .module
            .attribute(session, key, ck::CKA_VALUE_LEN)?
            .unwrap_or_default();
        let bytes = value.first_chunk::<8>().filter(|_| value.len() == 8);
        Ok(bytes.and_then(|bytes| usize::try_from(u64::from_ne_bytes(*bytes)).ok()))
    }

    /// Template of a data key that an EEDK holds; `proof` lets it encrypt a
    /// block, `trusted` has it wrapped under trusted keys only.
    pub(in crate::bridge) fn unwrap_template(&self, proof: bool, trusted: bool) -> Vec<Attr> {
        let mut template = data_key_template(proof);
        if trusted {
            template.push(Attr::flag(ck::CKA_WRAP_WITH_TRUSTED, true));
        }
        let profile = &self.profile.data_key;
        if profile.sensitive == Sensitive::Send {
            template.push(Attr::flag(ck::CKA_SENSITIVE, true));
        }
        if profile.extractable == Send::Send {
            template.push(Attr::flag(ck::CKA_EXTRACTABLE, true));
        }
        if profile.value_len == Send::Send {
            template.push(Attr::ulong(ck::CKA_VALUE_LEN, 32));
        }
        template
    }
}

/// Template of a drive's or a partner's public key, imported to wrap under.
pub(in crate::bridge) fn import_template(numbers: &host::PublicNumbers) -> Vec<Attr> {
    vec![
        Attr::ulong(ck::CKA_CLASS, ck::CKO_PUBLIC_KEY),
        Attr::ulong(ck::CKA_KEY_TYPE, ck::CKK_RSA),
        Attr::flag(ck::CKA_TOKEN, false),
        Attr::flag(ck::CKA_PRIVATE, false),
        Attr::flag(ck::CKA_WRAP, true),
        Attr::flag(ck::CKA_ENCRYPT, false),
        Attr::flag(ck::CKA_VERIFY, false),
        Attr::bytes(ck::CKA_MODULUS, numbers.modulus.clone()),
        Attr::bytes(ck::CKA_PUBLIC_EXPONENT, numbers.exponent.clone()),
    ]
}

/// What every data key's template has; `encrypt` lets it encrypt a block.
pub(in crate::bridge) fn data_key_template(encrypt: bool) -> Vec<Attr> {
    vec![
        Attr::ulong(ck::CKA_CLASS, ck::CKO_SECRET_KEY),
        Attr::ulong(ck::CKA_KEY_TYPE, ck::CKK_AES),
        Attr::flag(ck::CKA_TOKEN, false),
        Attr::flag(ck::CKA_PRIVATE, true),
        Attr::flag(ck::CKA_ENCRYPT, encrypt),
        Attr::flag(ck::CKA_DECRYPT, false),
        Attr::flag(ck::CKA_WRAP, false),
        Attr::flag(ck::CKA_UNWRAP, false),
        Attr::flag(ck::CKA_SIGN, false),
        Attr::flag(ck::CKA_VERIFY, false),
        Attr::flag(ck::CKA_DERIVE, false),
    ]
}

/// `CKM_RSA_PKCS_OAEP` or `CKM_RSA_PKCS` as the algorithm says; `dki` is the label where it has one.
pub(in crate::bridge) fn wrapping(algorithm: WrapAlgorithm, dki: &[u8]) -> Mechanism {
    let WrapAlgorithm::Oaep { hash, .. } = algorithm else {
        return Mechanism::Plain(ck::CKM_RSA_PKCS);
    };
    let (hash, mgf) = match hash {
        OaepHash::Sha1 => (ck::CKM_SHA_1, ck::CKG_MGF1_SHA1),
        OaepHash::Sha256 => (ck::CKM_SHA256, ck::CKG_MGF1_SHA256),
        OaepHash::Sha384 => (ck::CKM_SHA384, ck::CKG_MGF1_SHA384),
        OaepHash::Sha512 => (ck::CKM_SHA512, ck::CKG_MGF1_SHA512),
    };
    Mechanism::Oaep {
        hash,
        mgf,
        label: algorithm.label(dki).to_vec(),
    }
}
