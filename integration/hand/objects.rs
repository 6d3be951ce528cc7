//! Objects as other programs leave them on a token, attribute by attribute,
//! and whether a private key can be got out of one.
//!
//! ```text
//! object private|public PKCS8.der NAME=VALUE …
//! object certificate CERTIFICATE.der NAME=VALUE …
//! ec LABEL
//! get-out LABEL
//! ```
//!
//! `NAME=VALUE` is `label=TEXT`, `id=HEX`, `modulus=none`, or a flag:
//! `sensitive=false`.

use cryptoki::mechanism::Mechanism;
use cryptoki::object::{
    Attribute, AttributeInfo, AttributeType, CertificateType, KeyType, ObjectClass,
};
use cryptoki::session::Session;
use rsa::traits::{PrivateKeyParts, PublicKeyParts};
use rsa::{BigUint, RsaPrivateKey};

use crate::{Outcome, private, read};

/// The curve P-256, as `CKA_EC_PARAMS` names it.
const P256: [u8; 10] = [6, 8, 42, 134, 72, 206, 61, 3, 1, 7];

/// Makes an object.
pub(crate) fn make(session: &Session, kind: &str, path: &str, settings: &[&str]) -> Outcome<()> {
    let mut template = match kind {
        "private" => private_key(&read(path)?)?,
        "public" => public_key(&read(path)?),
        "certificate" => certificate(&std::fs::read(path)?)?,
        other => return Err(format!("hand: no object {other}").into()),
    };
    for setting in settings {
        let (name, value) = setting.split_once('=').ok_or("NAME=VALUE")?;
        let attribute = attribute(name, value)?;
        let kind = attribute.attribute_type();
        template.retain(|other| other.attribute_type() != kind);
        template.push(attribute);
    }
    session.create_object(&template)?;
    Ok(())
}

fn attribute(name: &str, value: &str) -> Outcome<Attribute> {
    let flag = || value.parse::<bool>();
    Ok(match name {
        "label" => Attribute::Label(value.into()),
        "id" => Attribute::Id(hex::decode(value)?),
        "modulus" => Attribute::Modulus(Vec::new()),
        "private" => Attribute::Private(flag()?),
        "sensitive" => Attribute::Sensitive(flag()?),
        "extractable" => Attribute::Extractable(flag()?),
        "modifiable" => Attribute::Modifiable(flag()?),
        "unwrap" => Attribute::Unwrap(flag()?),
        "decrypt" => Attribute::Decrypt(flag()?),
        "sign" => Attribute::Sign(flag()?),
        other => return Err(format!("hand: no attribute {other}").into()),
    })
}

fn bytes(number: &BigUint) -> Vec<u8> {
    number.to_bytes_be()
}

fn private_key(key: &RsaPrivateKey) -> Outcome<Vec<Attribute>> {
    let [p, q] = key.primes() else {
        return Err("not a two-prime key".into());
    };
    let crt = |number: Option<&BigUint>| number.map(bytes).ok_or("no CRT values");
    let coefficient = key.crt_coefficient().ok_or("no CRT coefficient")?;
    Ok(vec![
        Attribute::Class(ObjectClass::PRIVATE_KEY),
        Attribute::KeyType(KeyType::RSA),
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Unwrap(true),
        Attribute::Decrypt(false),
        Attribute::Sign(false),
        Attribute::Modulus(bytes(key.n())),
        Attribute::PublicExponent(bytes(key.e())),
        Attribute::PrivateExponent(bytes(key.d())),
        Attribute::Prime1(bytes(p)),
        Attribute::Prime2(bytes(q)),
        Attribute::Exponent1(crt(key.dp())?),
        Attribute::Exponent2(crt(key.dq())?),
        Attribute::Coefficient(coefficient.to_bytes_be()),
    ])
}

fn public_key(key: &RsaPrivateKey) -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::PUBLIC_KEY),
        Attribute::KeyType(KeyType::RSA),
        Attribute::Token(true),
        Attribute::Private(false),
        Attribute::Modulus(bytes(key.n())),
        Attribute::PublicExponent(bytes(key.e())),
    ]
}

fn certificate(der: &[u8]) -> Outcome<Vec<Attribute>> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der)?;
    Ok(vec![
        Attribute::Class(ObjectClass::CERTIFICATE),
        Attribute::CertificateType(CertificateType::X_509),
        Attribute::Token(true),
        Attribute::Private(false),
        Attribute::Subject(certificate.subject().as_raw().to_vec()),
        Attribute::Value(der.to_vec()),
    ])
}

/// Generates a key pair that is not RSA.
pub(crate) fn ec(session: &Session, label: &str) -> Outcome<()> {
    let common = || vec![Attribute::Token(true), Attribute::Label(label.into())];
    let mut public = common();
    public.push(Attribute::EcParams(P256.to_vec()));
    session.generate_key_pair(&Mechanism::EccKeyPairGen, &public, &common())?;
    Ok(())
}

/// Tries to get the secret numbers of a private key, by reading and by wrapping, and says what
/// came of each try: `read CKA_…: Some(Sensitive)`, `wrap CKM_…: KeyUnextractable, another 40 bytes`.
pub(crate) fn get_out(session: &Session, label: &str) -> Outcome<()> {
    let found = session.find_objects(&private(label))?;
    let key = *found.first().ok_or("no such private key")?;
    for number in [AttributeType::PrivateExponent, AttributeType::Prime1] {
        match session.get_attribute_info(key, &[number])?.first() {
            Some(AttributeInfo::Available(length)) => println!("read {number}: {length} bytes"),
            other => println!("read {number}: {other:?}"),
        }
    }
    let wrapping = session.generate_key(
        &Mechanism::AesKeyGen,
        &[
            Attribute::Token(false),
            Attribute::ValueLen(32.into()),
            Attribute::Wrap(true),
            // Kryoptic wants it too.
            Attribute::Encrypt(true),
        ],
    )?;
    // What the wrapping key can wrap, so that a refusal is seen to be about the private key.
    let control = session.generate_key(
        &Mechanism::AesKeyGen,
        &[
            Attribute::Token(false),
            Attribute::ValueLen(32.into()),
            Attribute::Extractable(true),
        ],
    )?;
    for mechanism in [
        Mechanism::AesKeyWrapPad,
        Mechanism::AesCbcPad([0; 16]),
        Mechanism::AesKeyWrap,
    ] {
        let told = |key| match session.wrap_key(&mechanism, wrapping, key) {
            Ok(wrapped) => Ok(format!("{} bytes", wrapped.len())),
            Err(cryptoki::error::Error::Pkcs11(code, _)) => Ok(format!("{code:?}")),
            Err(error) => Err(error),
        };
        let name = mechanism.mechanism_type();
        println!("wrap {name}: {}, another {}", told(key)?, told(control)?);
    }
    Ok(())
}
