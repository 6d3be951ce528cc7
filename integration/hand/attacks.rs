//! What someone can do with the user PIN alone, tried on a KEK of `ekm`'s:
//!
//! ```text
//! hand MODULE TOKEN PINFILE attack NAME KEK HASH MINE.der
//! ```
//!
//! `NAME` is `weak-template`, `foreign-key`, `flip-decrypt` or `copy-decrypt`,
//! `HASH` the OAEP hash, `sha1` or `sha256`, `MINE.der` the PKCS#8 of a key
//! pair of the attacker's. The data key is known, so that what was got can be
//! told from what was not. Says `remains`, or `stopped: FUNCTION CKR_CODE`:
//! the refusal on the way that leads furthest.

use std::error::Error as StdError;

use aws_lc_rs::rsa::{
    OAEP_SHA1_MGF1SHA1, OAEP_SHA256_MGF1SHA256, OaepAlgorithm, OaepPrivateDecryptingKey,
    OaepPublicEncryptingKey, PrivateDecryptingKey, PublicEncryptingKey,
};
use cryptoki::error::Error;
use cryptoki::mechanism::rsa::{PkcsMgfType, PkcsOaepParams, PkcsOaepSource};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use rsa::pkcs8::{DecodePrivateKey, EncodePublicKey};
use rsa::traits::PublicKeyParts;
use rsa::{BigUint, RsaPrivateKey, RsaPublicKey};

use crate::{Outcome, private};

/// The data key in the EEDK that is attacked.
const KNOWN: [u8; 32] = *b"the data key that the tape has..";

/// How it went.
enum Ended {
    Remains,
    /// Function and code, and how far the way had led.
    Stopped(String),
}

/// Tries one attack, and says how it ended.
pub(crate) fn run(session: &Session, name: &str, kek: &str, hash: &str, mine: &str) -> Outcome<()> {
    let attack = Attack::new(session, kek, hash, mine)?;
    let ended = match name {
        "weak-template" => attack.weak_template()?,
        "foreign-key" => attack.foreign_key()?,
        "flip-decrypt" => attack.flip_decrypt()?,
        "copy-decrypt" => attack.copy_decrypt()?,
        other => return Err(format!("hand: no attack {other}").into()),
    };
    match ended {
        Ended::Remains => println!("remains"),
        Ended::Stopped(by) => println!("stopped: {by}"),
    }
    Ok(())
}

struct Attack<'a> {
    session: &'a Session,
    kek: ObjectHandle,
    eedk: Vec<u8>,
    hash: Hash,
    mine: RsaPrivateKey,
    mine_der: Vec<u8>,
}

#[derive(Clone, Copy)]
enum Hash {
    Sha1,
    Sha256,
}

impl Hash {
    fn mechanism(self) -> Mechanism<'static> {
        let (hash, mgf) = match self {
            Self::Sha1 => (MechanismType::SHA1, PkcsMgfType::MGF1_SHA1),
            Self::Sha256 => (MechanismType::SHA256, PkcsMgfType::MGF1_SHA256),
        };
        Mechanism::RsaPkcsOaep(PkcsOaepParams::new(hash, mgf, PkcsOaepSource::empty()))
    }

    fn oaep(self) -> &'static OaepAlgorithm {
        match self {
            Self::Sha1 => &OAEP_SHA1_MGF1SHA1,
            Self::Sha256 => &OAEP_SHA256_MGF1SHA256,
        }
    }
}

impl<'a> Attack<'a> {
    fn new(session: &'a Session, label: &str, hash: &str, mine: &str) -> Outcome<Self> {
        let hash = match hash {
            "sha1" => Hash::Sha1,
            "sha256" => Hash::Sha256,
            other => return Err(format!("hand: no hash {other}").into()),
        };
        let found = session.find_objects(&private(label))?;
        let kek = *found.first().ok_or("no such private key")?;
        let public = session.find_objects(&[
            Attribute::Class(ObjectClass::PUBLIC_KEY),
            Attribute::Label(label.into()),
        ])?;
        let public = *public.first().ok_or("no such public key")?;
        let mine_der = std::fs::read(mine)?;
        Ok(Self {
            session,
            kek,
            eedk: wrap(&numbers(session, public)?, hash)?,
            hash,
            mine: RsaPrivateKey::from_pkcs8_der(&mine_der)?,
            mine_der,
        })
    }

    fn unwrap(&self, more: &[Attribute]) -> Result<ObjectHandle, Error> {
        let mut template = vec![
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::AES),
            Attribute::Token(false),
        ];
        template.extend_from_slice(more);
        let mechanism = self.hash.mechanism();
        self.session
            .unwrap_key(&mechanism, self.kek, &self.eedk, &template)
    }

    /// Every template that might leave the data key open.
    fn weak_template(&self) -> Outcome<Ended> {
        let open = Attribute::Sensitive(false);
        let out = Attribute::Extractable(true);
        let mut best = Furthest::default();
        for weak in [
            vec![open.clone(), out.clone()],
            vec![open],
            vec![out],
            vec![],
        ] {
            match self.unwrap(&weak) {
                Err(error) => best.note(&error)?,
                Ok(key) => {
                    let value = self.session.get_attributes(key, &[AttributeType::Value])?;
                    if value.contains(&Attribute::Value(KNOWN.to_vec())) {
                        return Ok(Ended::Remains);
                    }
                }
            }
        }
        best.ended()
    }

    /// Every template that might let it be wrapped, under a key of the
    /// attacker's: as it is, and as one that he makes trusted himself.
    fn foreign_key(&self) -> Outcome<Ended> {
        let mut best = Furthest::default();
        let bytes = |number: &BigUint| number.to_bytes_be();
        let mut keys = Vec::new();
        for trusted in [false, true] {
            let mut template = vec![
                Attribute::Class(ObjectClass::PUBLIC_KEY),
                Attribute::KeyType(KeyType::RSA),
                Attribute::Token(false),
                Attribute::Wrap(true),
                Attribute::Modulus(bytes(self.mine.n())),
                Attribute::PublicExponent(bytes(self.mine.e())),
            ];
            if trusted {
                template.push(Attribute::Trusted(true));
            }
            match self.session.create_object(&template) {
                Ok(key) => keys.push(key),
                Err(error) => best.note(&error)?,
            }
        }
        if let Some(mine) = keys.first() {
            match self.session.copy_object(*mine, &[Attribute::Trusted(true)]) {
                Ok(key) => keys.push(key),
                Err(error) => best.note(&error)?,
            }
        }
        let flags = [Attribute::Sensitive(true), Attribute::Extractable(true)];
        for trusted in [
            vec![],
            vec![Attribute::WrapWithTrusted(true)],
            vec![Attribute::WrapWithTrusted(false)],
        ] {
            for some in 0..4_usize {
                let mut template: Vec<Attribute> = flags
                    .iter()
                    .enumerate()
                    .filter(|(at, _)| some & (1 << at) == 0)
                    .map(|(_, flag)| flag.clone())
                    .collect();
                template.extend(trusted.clone());
                let key = match self.unwrap(&template) {
                    Ok(key) => key,
                    Err(error) => {
                        best.note(&error)?;
                        continue;
                    }
                };
                for mine in &keys {
                    let mechanism = self.hash.mechanism();
                    match self.session.wrap_key(&mechanism, *mine, key) {
                        Ok(wrapped) if self.opens(&wrapped)? => return Ok(Ended::Remains),
                        Ok(_) => return Err("what was wrapped is another key".into()),
                        Err(error) => best.note(&error)?,
                    }
                }
            }
        }
        best.ended()
    }

    fn flip_decrypt(&self) -> Outcome<Ended> {
        if self.decrypts(self.kek).unwrap_or(false) {
            return Ok(Ended::Remains);
        }
        let set = self
            .session
            .update_attributes(self.kek, &[Attribute::Decrypt(true)]);
        self.after(set.map(|()| self.kek))
    }

    fn copy_decrypt(&self) -> Outcome<Ended> {
        let template = [Attribute::Token(false), Attribute::Decrypt(true)];
        self.after(self.session.copy_object(self.kek, &template))
    }

    fn after(&self, key: Result<ObjectHandle, Error>) -> Outcome<Ended> {
        let mut best = Furthest::default();
        match key.and_then(|key| self.decrypts(key)) {
            Ok(true) => return Ok(Ended::Remains),
            Ok(false) => return Err("what was decrypted is another key".into()),
            Err(error) => best.note(&error)?,
        }
        best.ended()
    }

    fn decrypts(&self, key: ObjectHandle) -> Result<bool, Error> {
        let mechanism = self.hash.mechanism();
        let opened = self.session.decrypt(&mechanism, key, &self.eedk)?;
        Ok(opened == KNOWN)
    }

    fn opens(&self, wrapped: &[u8]) -> Outcome<bool> {
        let key = PrivateDecryptingKey::from_pkcs8(&self.mine_der)?;
        let key = OaepPrivateDecryptingKey::new(key)?;
        let mut opened = vec![0; key.min_output_size()];
        let opened = key.decrypt(self.hash.oaep(), wrapped, &mut opened, None)?;
        Ok(*opened == KNOWN)
    }
}

fn numbers(session: &Session, public: ObjectHandle) -> Outcome<RsaPublicKey> {
    let (mut modulus, mut exponent) = (None, None);
    let asked = [AttributeType::Modulus, AttributeType::PublicExponent];
    for attribute in session.get_attributes(public, &asked)? {
        match attribute {
            Attribute::Modulus(bytes) => modulus = Some(BigUint::from_bytes_be(&bytes)),
            Attribute::PublicExponent(bytes) => exponent = Some(BigUint::from_bytes_be(&bytes)),
            _ => {}
        }
    }
    let number = |number: Option<BigUint>| number.ok_or("no RSA public key");
    Ok(RsaPublicKey::new(number(modulus)?, number(exponent)?)?)
}

/// The known data key, wrapped outside as an EEDK has it.
fn wrap(kek: &RsaPublicKey, hash: Hash) -> Outcome<Vec<u8>> {
    let der = kek.to_public_key_der()?;
    let key = OaepPublicEncryptingKey::new(PublicEncryptingKey::from_der(der.as_bytes())?)?;
    let mut wrapped = vec![0; key.ciphertext_size()];
    key.encrypt(hash.oaep(), &KNOWN, &mut wrapped, None)?;
    Ok(wrapped)
}

/// The refusal on the way that led furthest; of those the first.
#[derive(Default)]
struct Furthest(Option<(usize, String)>);

impl Furthest {
    fn note(&mut self, error: &Error) -> Result<(), Box<dyn StdError>> {
        let Error::Pkcs11(code, function) = error else {
            return Err(error.to_string().into());
        };
        let function = format!("C_{function:?}");
        let order = ["C_CopyObject", "C_CreateObject", "C_UnwrapKey", "C_WrapKey"];
        let rank = order.iter().position(|name| *name == function).unwrap_or(0);
        if self.0.as_ref().is_none_or(|(known, _)| *known < rank) {
            self.0 = Some((rank, format!("{function} {}", ckr(&format!("{code:?}")))));
        }
        Ok(())
    }

    fn ended(self) -> Outcome<Ended> {
        let (_, by) = self
            .0
            .ok_or("every way was open, and none led to the key")?;
        Ok(Ended::Stopped(by))
    }
}

/// The name of the standard for `cryptoki`'s: `KeyNotWrappable` is `CKR_KEY_NOT_WRAPPABLE`.
fn ckr(name: &str) -> String {
    let mut standard = String::from("CKR");
    for letter in name.chars() {
        if letter.is_ascii_uppercase() {
            standard.push('_');
        }
        standard.push(letter.to_ascii_uppercase());
    }
    standard
}
