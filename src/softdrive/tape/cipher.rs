//! Encryption of single blocks.
//!
//! ```text
//! HKDF-SHA256 (RFC 5869): salt, data key, "ekm tape v1 block"  ->  block key
//!                         salt, data key, "ekm tape v1 check"  ->  key check, 16 bytes
//! AES-256-GCM: nonce            0000 0000h | counter, 8 bytes
//!              additional data  "ekm tape v1" 00h | medium serial, 32 bytes | object header
//! ```
//!
//! The salt is random and new whenever the drive is given a key or a tape, and the counter
//! is never used twice under one salt, so no nonce is. The object header holds the number of the
//! block, so a block that was moved does not decrypt. The key check tells a wrong key from a
//! damaged block.

use std::fmt;

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    error::Unspecified,
    hkdf, rand,
};
use secrecy::{ExposeSecret, SecretBox};
use subtle::ConstantTimeEq;

use super::image::Seal;

/// The key of blocks that have one salt.
pub(super) struct BlockKey {
    key: LessSafeKey,
    salt: [u8; 16],
    check: [u8; 16],
    counter: u64,
}

impl BlockKey {
    /// A key for new blocks.
    pub(super) fn fresh(data_key: &SecretBox<[u8; 32]>) -> Result<Self, Unspecified> {
        let mut salt = [0; 16];
        rand::fill(&mut salt)?;
        Self::derive(data_key, salt)
    }

    fn derive(data_key: &SecretBox<[u8; 32]>, salt: [u8; 16]) -> Result<Self, Unspecified> {
        let secret = hkdf::Salt::new(hkdf::HKDF_SHA256, &salt).extract(data_key.expose_secret());
        let key = secret.expand(&[b"ekm tape v1 block"], &AES_256_GCM)?;
        let mut full = [0; 32];
        secret
            .expand(&[b"ekm tape v1 check"], hkdf::HKDF_SHA256)?
            .fill(&mut full)?;
        let mut check = [0; 16];
        for (to, from) in check.iter_mut().zip(full) {
            *to = from;
        }
        Ok(Self {
            key: LessSafeKey::new(UnboundKey::from(key)),
            salt,
            check,
            counter: 0,
        })
    }

    /// The key of a block that is there, where this data key is the right one.
    pub(super) fn of(
        data_key: &SecretBox<[u8; 32]>,
        seal: &Seal,
    ) -> Result<Option<Self>, Unspecified> {
        let key = Self::derive(data_key, seal.salt)?;
        Ok(key.opens(seal).then_some(key))
    }

    /// Whether it is the key of this block.
    pub(super) fn opens(&self, seal: &Seal) -> bool {
        self.salt == seal.salt && self.check.ct_eq(&seal.check).into()
    }

    /// What the next block is to say, beside the names of its key.
    pub(super) fn next(&mut self) -> Result<Seal, Unspecified> {
        let counter = self.counter;
        self.counter = counter.checked_add(1).ok_or(Unspecified)?;
        Ok(Seal {
            ukad: None,
            akad: None,
            salt: self.salt,
            check: self.check,
            counter,
        })
    }

    /// Encrypts in place, and gives the authentication code.
    pub(super) fn seal(
        &self,
        seal: &Seal,
        bound: &[u8],
        data: &mut [u8],
    ) -> Result<[u8; 16], Unspecified> {
        let tag =
            self.key
                .seal_in_place_separate_tag(nonce(seal.counter), Aad::from(bound), data)?;
        tag.as_ref().try_into().map_err(|_| Unspecified)
    }

    /// Decrypts in place what is followed by its authentication code.
    pub(super) fn open<'a>(
        &self,
        seal: &Seal,
        bound: &[u8],
        data: &'a mut [u8],
    ) -> Result<&'a [u8], Unspecified> {
        self.key
            .open_in_place(nonce(seal.counter), Aad::from(bound), data)
            .map(|plain| &*plain)
    }
}

impl fmt::Debug for BlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockKey")
            .field("counter", &self.counter)
            .finish_non_exhaustive()
    }
}

fn nonce(counter: u64) -> Nonce {
    let mut nonce = [0; NONCE_LEN];
    let (_, low) = nonce.split_at_mut(NONCE_LEN - 8);
    low.copy_from_slice(&counter.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}
