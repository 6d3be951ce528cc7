//! The few things that custody `host` does outside the token, and RSA public-key work.
//!
//! Private keys never come here. A data key does, for an instant, where the
//! operator named the drive for it; its buffers are wiped, but the vendor's
//! client library may keep copies, so the bridge is started anew after a set
//! number of such exchanges.

use aws_lc_rs::cipher::{AES_256, EncryptingKey, UnboundCipherKey};
use aws_lc_rs::rsa::{
    OAEP_SHA1_MGF1SHA1, OAEP_SHA256_MGF1SHA256, OAEP_SHA384_MGF1SHA384, OAEP_SHA512_MGF1SHA512,
    OaepAlgorithm, OaepPublicEncryptingKey, Pkcs1PublicEncryptingKey, PublicEncryptingKey,
};
use rsa::pkcs8::{DecodePublicKey, EncodePublicKey};
use rsa::traits::PublicKeyParts;
use rsa::{BigUint, RsaPublicKey};
use secrecy::{ExposeSecret, SecretSlice};

use crate::key::{OaepHash, WrapAlgorithm};

/// An RSA public key as PKCS#11 takes it, both numbers big-endian and unsigned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PublicNumbers {
    pub(super) modulus: Vec<u8>,
    pub(super) exponent: Vec<u8>,
}

/// Why software RSA failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum HostError {
    #[error("the public key is not RSA of 2048 to 8192 bits")]
    PublicKey,
    #[error("the data key is not 32 bytes")]
    KeyLength,
    #[error("the encryption failed")]
    Encrypt,
}

/// Modulus and exponent of a `SubjectPublicKeyInfo`.
pub(super) fn numbers(spki: &[u8]) -> Result<PublicNumbers, HostError> {
    let key = RsaPublicKey::from_public_key_der(spki).map_err(|_| HostError::PublicKey)?;
    if key.n().bits() < 2048 {
        return Err(HostError::PublicKey);
    }
    Ok(PublicNumbers {
        modulus: key.n().to_bytes_be(),
        exponent: key.e().to_bytes_be(),
    })
}

/// The `SubjectPublicKeyInfo` of modulus and exponent, with its length in bits.
pub(super) fn spki(modulus: &[u8], exponent: &[u8]) -> Result<(Vec<u8>, u32), HostError> {
    let key = RsaPublicKey::new_with_max_size(
        BigUint::from_bytes_be(modulus),
        BigUint::from_bytes_be(exponent),
        8192,
    )
    .map_err(|_| HostError::PublicKey)?;
    let bits = u32::try_from(key.n().bits()).map_err(|_| HostError::PublicKey)?;
    let der = key
        .to_public_key_der()
        .map_err(|_| HostError::PublicKey)?
        .into_vec();
    Ok((der, bits))
}

/// A data key under a public key, as the algorithm says; `dki` is the label where it has one.
pub(super) fn wrap(
    spki: &[u8],
    algorithm: WrapAlgorithm,
    dki: &[u8],
    key: &SecretSlice<u8>,
) -> Result<Vec<u8>, HostError> {
    match algorithm {
        WrapAlgorithm::Oaep { hash, .. } => oaep_wrap(spki, hash, algorithm.label(dki), key),
        WrapAlgorithm::Pkcs1V15 => v15_wrap(spki, key),
    }
}

/// RSAES-PKCS1-v1_5 (RFC 8017, 7.2.1).
fn v15_wrap(spki: &[u8], key: &SecretSlice<u8>) -> Result<Vec<u8>, HostError> {
    let public = PublicEncryptingKey::from_der(spki).map_err(|_| HostError::PublicKey)?;
    let public = Pkcs1PublicEncryptingKey::new(public).map_err(|_| HostError::PublicKey)?;
    let mut wrapped = vec![0_u8; public.ciphertext_size()];
    public
        .encrypt(key.expose_secret(), &mut wrapped)
        .map_err(|_| HostError::Encrypt)?;
    Ok(wrapped)
}

/// RSAES-OAEP with MGF1 over the same hash (RFC 8017, 7.1.1).
pub(super) fn oaep_wrap(
    spki: &[u8],
    hash: OaepHash,
    label: &[u8],
    key: &SecretSlice<u8>,
) -> Result<Vec<u8>, HostError> {
    let algorithm: &'static OaepAlgorithm = match hash {
        OaepHash::Sha1 => &OAEP_SHA1_MGF1SHA1,
        OaepHash::Sha256 => &OAEP_SHA256_MGF1SHA256,
        OaepHash::Sha384 => &OAEP_SHA384_MGF1SHA384,
        OaepHash::Sha512 => &OAEP_SHA512_MGF1SHA512,
    };
    let public = PublicEncryptingKey::from_der(spki).map_err(|_| HostError::PublicKey)?;
    let public = OaepPublicEncryptingKey::new(public).map_err(|_| HostError::PublicKey)?;
    let mut wrapped = vec![0_u8; public.ciphertext_size()];
    let label = (!label.is_empty()).then_some(label);
    public
        .encrypt(algorithm, key.expose_secret(), &mut wrapped, label)
        .map_err(|_| HostError::Encrypt)?;
    Ok(wrapped)
}

/// One block under AES-256 (FIPS 197), as `CKM_AES_ECB` does it on a token.
pub(super) fn encrypt_block(
    key: &SecretSlice<u8>,
    block: &[u8; 16],
) -> Result<[u8; 16], HostError> {
    let key =
        UnboundCipherKey::new(&AES_256, key.expose_secret()).map_err(|_| HostError::KeyLength)?;
    let mut encrypted = *block;
    EncryptingKey::ecb(key)
        .and_then(|key| key.encrypt(&mut encrypted))
        .map_err(|_| HostError::Encrypt)?;
    Ok(encrypted)
}

/// Writes over the stack below the caller, where a data key and its AES
/// schedule were moved about.
#[inline(never)]
pub(super) fn scrub_stack() {
    // One sweep, which `black_box` keeps. Byte by byte, as `zeroize` does it, it
    // took half of the bridge's own time.
    let mut below = [0_u8; 32 * 1024];
    std::hint::black_box(&mut below);
}
