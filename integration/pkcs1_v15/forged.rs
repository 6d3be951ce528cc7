//! EEDKs that were never issued here: what whoever has a KEK's public key can make.

use aws_lc_rs::rsa::{Pkcs1PublicEncryptingKey, PublicEncryptingKey};
use ekm::key::{DataKeyId, Eedk, KekHash, KekId, WrapAlgorithm};
use rsa::RsaPublicKey;
use rsa::pkcs8::DecodePublicKey as _;
use rsa::traits::PublicKeyParts as _;

pub(crate) struct Forger {
    spki: Vec<u8>,
    key: RsaPublicKey,
}

impl Forger {
    pub(crate) fn new(spki: Vec<u8>) -> Self {
        let key = RsaPublicKey::from_public_key_der(&spki).unwrap();
        Self { spki, key }
    }

    /// An EEDK of that ciphertext.
    pub(crate) fn eedk(&self, wrapped: Vec<u8>) -> Eedk {
        let kek = KekId::Hash(KekHash::of_spki(&self.spki));
        let dki = DataKeyId::from_random([3; 9]);
        Eedk::new(dki, kek, WrapAlgorithm::Pkcs1V15, wrapped).unwrap()
    }

    /// One that opens, and holds this.
    pub(crate) fn good(&self, key: &[u8]) -> Eedk {
        let public = PublicEncryptingKey::from_der(&self.spki).unwrap();
        let public = Pkcs1PublicEncryptingKey::new(public).unwrap();
        let mut wrapped = vec![0; public.ciphertext_size()];
        public.encrypt(key, &mut wrapped).unwrap();
        self.eedk(wrapped)
    }

    /// One whose padded message is this, whatever it is.
    pub(crate) fn of_message(&self, message: &[u8]) -> Eedk {
        let message = rsa::BigUint::from_bytes_be(message);
        self.raw(&message.modpow(self.key.e(), self.key.n()))
    }

    /// The ciphertext of an EEDK, times `s` to the public exponent: its message times `s`.
    pub(crate) fn times(&self, eedk: &Eedk, s: u32) -> Eedk {
        let (n, e) = (self.key.n(), self.key.e());
        let factor = rsa::BigUint::from(s).modpow(e, n);
        self.raw(&(rsa::BigUint::from_bytes_be(eedk.wrapped()) * factor % n))
    }

    fn raw(&self, number: &rsa::BigUint) -> Eedk {
        let bytes = number.to_bytes_be();
        let mut wrapped = vec![0; self.key.size() - bytes.len()];
        wrapped.extend(bytes);
        self.eedk(wrapped)
    }

    /// Every way not to be a data key under the KEK.
    pub(crate) fn bad(&self) -> Vec<(&'static str, Eedk)> {
        let size = self.key.size();
        let message = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut message = vec![0x55; size];
            message[0] = 0;
            message[1] = 2;
            message[size - 33] = 0;
            change(&mut message);
            self.of_message(&message)
        };
        vec![
            ("no padding at all", self.eedk(vec![0x17; size])),
            ("first byte not 00", message(&|message| message[0] = 1)),
            ("block type 01", message(&|message| message[1] = 1)),
            (
                "zero among the first eight of the padding",
                message(&|message| message[5] = 0),
            ),
            (
                "no zero after the padding",
                message(&|message| message[size - 33] = 0x55),
            ),
            ("20 bytes inside", self.good(&[9; 20])),
            ("16 bytes inside", self.good(&[9; 16])),
            ("31 bytes inside", self.good(&[9; 31])),
            ("33 bytes inside", self.good(&[9; 33])),
            ("nothing inside", self.good(&[])),
            ("all that fits inside", self.good(&vec![9; size - 11])),
            ("ciphertext 0", self.eedk(vec![0; size])),
            ("ciphertext out of range", self.eedk(vec![0xff; size])),
            ("longer than the modulus", self.eedk(vec![0x17; size + 128])),
        ]
    }
}
