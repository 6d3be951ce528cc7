//! Opening an EEDK that is wrapped by RSAES-PKCS1-v1_5 and was never issued here.
//!
//! Whoever learns of made-up ciphertexts whether their padding is right opens any ciphertext under
//! that KEK (Bleichenbacher 1998; on `C_UnwrapKey`: Bardou and others 2012). So a wrong padding is
//! no error: the drive is given a throw-away key instead (implicit rejection), and whoever asked
//! cannot tell. The throw-away key of a ciphertext is always the same, as the right one would be.
//!
//! The bridge wraps the throw-away key under the KEK's own public half and has the token open that
//! first, on the same session and in the same way. So the token makes both keys whatever comes of
//! the EEDK, and a token that is broken is known by what it should have opened. Which calls are
//! made, and how many, does not depend on the padding; `worker/guarded.rs` has them.
//!
//! An EEDK that was issued here has the padding that we gave it, which is no secret: it is opened
//! as any other.

use aws_lc_rs::hmac;
use secrecy::{ExposeSecret, SecretBox, SecretSlice};
use serde::{Deserialize, Serialize};

use crate::key::{Eedk, KekHash};

/// Before what is put through HMAC, so that the secret serves nothing else.
const PREFIX: &[u8] = b"ekm throw-away key of an EEDK\0";

/// The secret that throw-away keys come from. Who has it can tell one from a data key; it opens
/// nothing.
pub struct Guard(SecretBox<[u8; 32]>);

impl Guard {
    /// From the state's secret.
    #[must_use]
    pub fn new(secret: &[u8; 32]) -> Self {
        Self(SecretBox::init_with(|| *secret))
    }

    /// The throw-away key of a ciphertext under a KEK. It depends on nothing else of the EEDK,
    /// since the right key does not either.
    #[must_use]
    pub fn throw_away(&self, kek: &KekHash, eedk: &Eedk) -> ThrowAway {
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.0.expose_secret());
        let mut context = hmac::Context::with_key(&key);
        context.update(PREFIX);
        context.update(kek.as_bytes());
        context.update(eedk.wrapped());
        let mut bytes = [0; 32];
        for (byte, made) in bytes.iter_mut().zip(context.sign().as_ref()) {
            *byte = *made;
        }
        ThrowAway(bytes)
    }
}

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Guard")
    }
}

/// An AES-256 key that a drive is given in the place of one that did not come out.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThrowAway([u8; 32]);

impl ThrowAway {
    pub(super) fn key(&self) -> SecretSlice<u8> {
        SecretSlice::from(self.0.to_vec())
    }
}

impl std::fmt::Debug for ThrowAway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ThrowAway")
    }
}

/// What came of an EEDK whose opening was guarded. For records, never for who asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Guarded {
    /// It opened, and the drive has its data key.
    Opened,
    /// It did not, and the drive has a throw-away key.
    Rejected {
        /// The PKCS#11 function, or the check.
        function: String,
        /// The `CKR_` name, or what was wrong.
        name: String,
    },
}

impl Guarded {
    /// Whether the drive has a throw-away key.
    #[must_use]
    pub const fn rejected(&self) -> bool {
        matches!(self, Self::Rejected { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{DataKeyId, KekId, WrapAlgorithm};

    fn eedk(dki: u8, wrapped: u8) -> Eedk {
        let kek = KekId::Label("KEK".parse().unwrap());
        let dki = DataKeyId::from_random([dki; 9]);
        Eedk::new(dki, kek, WrapAlgorithm::Pkcs1V15, vec![wrapped; 256]).unwrap()
    }

    #[test]
    fn a_ciphertext_has_one_throw_away_key_whatever_the_eedk_says_besides() {
        let guard = Guard::new(&[1; 32]);
        let kek = KekHash::of_spki(b"kek");
        let key = guard.throw_away(&kek, &eedk(1, 1));
        assert!(key == guard.throw_away(&kek, &eedk(2, 1)));
        assert!(key == Guard::new(&[1; 32]).throw_away(&kek, &eedk(1, 1)));
        assert!(key != guard.throw_away(&kek, &eedk(1, 2)));
        assert!(key != guard.throw_away(&KekHash::of_spki(b"other"), &eedk(1, 1)));
        assert!(key != Guard::new(&[2; 32]).throw_away(&kek, &eedk(1, 1)));
    }

    #[test]
    fn neither_secret_nor_key_is_shown() {
        let guard = Guard::new(&[0x5a; 32]);
        let key = guard.throw_away(&KekHash::of_spki(b"kek"), &eedk(1, 1));
        assert_eq!(format!("{guard:?} {key:?}"), "Guard ThrowAway");
    }
}
