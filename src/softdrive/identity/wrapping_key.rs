//! The RSA key that data keys are wrapped under.

use aws_lc_rs::{
    encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der},
    rsa::{KeySize, OaepAlgorithm, OaepPrivateDecryptingKey, PrivateDecryptingKey},
};
use secrecy::SecretBox;
use zeroize::Zeroizing;

use super::{SoftDriveError, UnwrapError};
use crate::t10::WrappedKey;

/// An RSA-2048 private key that data keys are wrapped for.
pub(super) struct WrappingKey {
    key: OaepPrivateDecryptingKey,
    spki: Vec<u8>,
    pkcs8: Zeroizing<Vec<u8>>,
}

impl WrappingKey {
    pub(super) fn generate() -> Result<Self, SoftDriveError> {
        let key =
            PrivateDecryptingKey::generate(KeySize::Rsa2048).map_err(|_| SoftDriveError::Crypto)?;
        let pkcs8: Pkcs8V1Der<'_> = key.as_der().map_err(|_| SoftDriveError::Crypto)?;
        Self::from_pkcs8(Zeroizing::new(pkcs8.as_ref().to_vec()))
    }

    pub(super) fn from_pkcs8(pkcs8: Zeroizing<Vec<u8>>) -> Result<Self, SoftDriveError> {
        let key =
            PrivateDecryptingKey::from_pkcs8(&pkcs8).map_err(|_| SoftDriveError::WrappingKey)?;
        if key.key_size_bytes() != WrappedKey::WRAPPED_LEN {
            return Err(SoftDriveError::WrappingKey);
        }
        let spki: PublicKeyX509Der<'_> = key
            .public_key()
            .as_der()
            .map_err(|_| SoftDriveError::Crypto)?;
        Ok(Self {
            spki: spki.as_ref().to_vec(),
            key: OaepPrivateDecryptingKey::new(key).map_err(|_| SoftDriveError::Crypto)?,
            pkcs8,
        })
    }

    /// The public key, as DER SubjectPublicKeyInfo.
    pub(super) fn spki(&self) -> &[u8] {
        &self.spki
    }

    /// The private key, as DER PKCS#8.
    pub(super) fn pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }

    /// The data key in an RSAES-OAEP ciphertext.
    pub(super) fn unwrap(
        &self,
        algorithm: &'static OaepAlgorithm,
        label: Option<&[u8]>,
        wrapped: &[u8],
    ) -> Result<SecretBox<[u8; 32]>, UnwrapError> {
        let mut buffer = Zeroizing::new(vec![0; self.key.min_output_size()]);
        let plain = self
            .key
            .decrypt(algorithm, wrapped, &mut buffer, label)
            .map_err(|_| UnwrapError::Refused)?;
        data_key(plain)
    }
}

/// A data key in clear.
pub(super) fn data_key(bytes: &[u8]) -> Result<SecretBox<[u8; 32]>, UnwrapError> {
    if bytes.len() != 32 {
        return Err(UnwrapError::Refused);
    }
    Ok(SecretBox::init_with_mut(|key: &mut [u8; 32]| {
        key.copy_from_slice(bytes);
    }))
}
