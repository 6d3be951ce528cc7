//! A drive's key pair, made on the host: what the token wraps for it is opened
//! here and compared.

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rsa::{
    KeySize, OAEP_SHA1_MGF1SHA1, OAEP_SHA256_MGF1SHA256, OAEP_SHA384_MGF1SHA384,
    OAEP_SHA512_MGF1SHA512, OaepAlgorithm, OaepPrivateDecryptingKey, PrivateDecryptingKey,
};
use secrecy::{ExposeSecret, SecretSlice};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::bridge::host::{self, PublicNumbers};
use crate::bridge::pkcs11::{CK_OBJECT_HANDLE, CK_SESSION_HANDLE, Call, Module};
use crate::bridge::token::import_template;
use crate::key::{OaepHash, WrapAlgorithm};

// Not Debug: it has a key.
/// A drive that does not exist, and a data key that nobody needs.
pub(in crate::bridge) struct StandIn {
    key: OaepPrivateDecryptingKey,
    numbers: PublicNumbers,
    /// The data key, known on the host.
    pub(in crate::bridge) known: SecretSlice<u8>,
}

impl StandIn {
    /// None where the operating system gives no random numbers.
    pub(in crate::bridge) fn new() -> Option<Self> {
        let key = PrivateDecryptingKey::generate(KeySize::Rsa2048).ok()?;
        let spki: PublicKeyX509Der<'_> = key.public_key().as_der().ok()?;
        let mut known = vec![0; 32];
        aws_lc_rs::rand::fill(&mut known).ok()?;
        Some(Self {
            numbers: host::numbers(spki.as_ref()).ok()?,
            key: OaepPrivateDecryptingKey::new(key).ok()?,
            known: known.into(),
        })
    }

    /// Whether the known data key is what was wrapped for the drive.
    pub(super) fn holds(&self, hash: OaepHash, label: &[u8], wrapped: &[u8]) -> bool {
        let algorithm: &'static OaepAlgorithm = match hash {
            OaepHash::Sha1 => &OAEP_SHA1_MGF1SHA1,
            OaepHash::Sha256 => &OAEP_SHA256_MGF1SHA256,
            OaepHash::Sha384 => &OAEP_SHA384_MGF1SHA384,
            OaepHash::Sha512 => &OAEP_SHA512_MGF1SHA512,
        };
        let mut buffer = Zeroizing::new(vec![0; self.key.min_output_size()]);
        let label = (!label.is_empty()).then_some(label);
        self.key
            .decrypt(algorithm, wrapped, &mut buffer, label)
            .is_ok_and(|opened| self.is_known(opened))
    }

    /// Whether that is the known data key.
    pub(super) fn is_known(&self, key: &[u8]) -> bool {
        self.known.expose_secret().ct_eq(key).into()
    }

    /// The known data key, wrapped under a public key.
    pub(super) fn wrap(&self, spki: &[u8], hash: OaepHash, label: &[u8]) -> Option<Vec<u8>> {
        host::oaep_wrap(spki, hash, label, &self.known).ok()
    }

    /// The same as an EEDK has it.
    pub(in crate::bridge) fn wrap_by(
        &self,
        spki: &[u8],
        algorithm: WrapAlgorithm,
        dki: &[u8],
    ) -> Option<Vec<u8>> {
        host::wrap(spki, algorithm, dki, &self.known).ok()
    }

    /// Modulus and exponent of the drive's public key.
    pub(super) const fn numbers(&self) -> &PublicNumbers {
        &self.numbers
    }

    /// The drive's public key as a session object.
    pub(in crate::bridge) fn import(
        &self,
        module: &Module,
        session: CK_SESSION_HANDLE,
    ) -> Call<CK_OBJECT_HANDLE> {
        module.create_object(session, &import_template(&self.numbers))
    }
}
