//! A second PKCS#11 client, on `cryptoki`: it does to a token what `ekm`
//! would not, and looks at it with other eyes. One process per call, since
//! modules are configured by environment variables.
//!
//! ```text
//! hand MODULE TOKEN PINFILE import-private LABEL PKCS8.der
//! hand MODULE TOKEN PINFILE import-public LABEL PKCS8.der
//! hand MODULE TOKEN PINFILE delete-private LABEL
//! hand MODULE TOKEN PINFILE attributes LABEL
//! hand MODULE TOKEN PINFILE wrap-out LABEL
//! hand MODULE TOKEN PINFILE attack NAME KEK HASH MINE.der
//! hand MODULE TOKEN PINFILE steps
//! hand MODULE TOKEN PINFILE list
//! hand MODULE TOKEN PINFILE object … | ec LABEL | get-out LABEL      (objects.rs)
//! hand MODULE TOKEN PINFILE certificates
//! ```
//!
//! The variable `HAND_RESERVED` is text for `pReserved` of `C_Initialize`.

mod attacks;
mod objects;
mod steps;

use std::error::Error;

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass};
use cryptoki::session::{Session, UserType};
use cryptoki::types::AuthPin;
use ekm::bridge::pkcs11::Module;
use rsa::pkcs8::DecodePrivateKey;
use rsa::traits::{PrivateKeyParts, PublicKeyParts};
use rsa::{BigUint, RsaPrivateKey};

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let [module, token, pin_file, verb @ ..] = words.as_slice() else {
        return Err("hand MODULE TOKEN PINFILE VERB …".into());
    };
    let pkcs11 = Pkcs11::new(module)?;
    // `cryptoki` has no room for the null that NSS wants behind `pReserved`.
    let held = std::env::var("HAND_RESERVED").ok().map(|reserved| {
        let held = Module::load(module.as_ref())?;
        held.initialize(Some(&reserved))
            .map_err(|error| format!("{error:?}"))?;
        Outcome::Ok(held)
    });
    let held = held.transpose()?;
    if held.is_none() {
        pkcs11.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK))?;
    }
    if let ["steps"] = verb {
        return steps::run(&pkcs11, token);
    }
    let session = open(&pkcs11, token, pin_file)?;
    match verb {
        ["import-private", label, key] => import(&session, label, &read(key)?, true),
        ["import-public", label, key] => import(&session, label, &read(key)?, false),
        ["delete-private", label] => delete_private(&session, label),
        ["attributes", label] => attributes(&session, label),
        ["wrap-out", label] => wrap_out(&session, label),
        ["attack", name, kek, hash, mine] => attacks::run(&session, name, kek, hash, mine),
        ["object", kind, path, settings @ ..] => objects::make(&session, kind, path, settings),
        ["ec", label] => objects::ec(&session, label),
        ["get-out", label] => objects::get_out(&session, label),
        ["list"] => list(&session, &[Attribute::Token(true)]),
        ["certificates"] => list(
            &session,
            &[
                Attribute::Token(true),
                Attribute::Class(ObjectClass::CERTIFICATE),
            ],
        ),
        other => Err(format!("hand: no verb {other:?}").into()),
    }
}

fn open(pkcs11: &Pkcs11, token: &str, pin_file: &str) -> Outcome<Session> {
    let slots = pkcs11.get_slots_with_token()?;
    let only = slots.len() == 1;
    let slot = slots
        .into_iter()
        .find(|slot| {
            // `cryptoki` cannot read the clock in openCryptoki's token information.
            pkcs11
                .get_token_info(*slot)
                .map_or(only, |info| info.label() == token)
        })
        .ok_or_else(|| format!("no token {token}"))?;
    let session = pkcs11.open_rw_session(slot)?;
    let pin = std::fs::read_to_string(pin_file)?;
    session.login(UserType::User, Some(&AuthPin::from(pin.trim().to_owned())))?;
    Ok(session)
}

fn read(path: &str) -> Outcome<RsaPrivateKey> {
    Ok(RsaPrivateKey::read_pkcs8_der_file(path)?)
}

fn import(session: &Session, label: &str, key: &RsaPrivateKey, private: bool) -> Outcome<()> {
    let bytes = |number: &BigUint| number.to_bytes_be();
    session.create_object(&[
        Attribute::Class(ObjectClass::PUBLIC_KEY),
        Attribute::KeyType(KeyType::RSA),
        Attribute::Token(true),
        Attribute::Private(false),
        Attribute::Label(label.into()),
        Attribute::Wrap(true),
        Attribute::Modulus(bytes(key.n())),
        Attribute::PublicExponent(bytes(key.e())),
    ])?;
    if !private {
        return Ok(());
    }
    let [p, q] = key.primes() else {
        return Err("not a two-prime key".into());
    };
    let crt = |number: Option<&BigUint>| number.map(bytes).ok_or("no CRT values");
    session.create_object(&[
        Attribute::Class(ObjectClass::PRIVATE_KEY),
        Attribute::KeyType(KeyType::RSA),
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Label(label.into()),
        Attribute::Unwrap(true),
        Attribute::Decrypt(false),
        Attribute::Modulus(bytes(key.n())),
        Attribute::PublicExponent(bytes(key.e())),
        Attribute::PrivateExponent(bytes(key.d())),
        Attribute::Prime1(bytes(p)),
        Attribute::Prime2(bytes(q)),
        Attribute::Exponent1(crt(key.dp())?),
        Attribute::Exponent2(crt(key.dq())?),
        Attribute::Coefficient(
            key.crt_coefficient()
                .map(|number| number.to_bytes_be())
                .ok_or("no CRT coefficient")?,
        ),
    ])?;
    Ok(())
}

fn delete_private(session: &Session, label: &str) -> Outcome<()> {
    for object in session.find_objects(&private(label))? {
        session.destroy_object(object)?;
    }
    Ok(())
}

fn attributes(session: &Session, label: &str) -> Outcome<()> {
    let found = session.find_objects(&private(label))?;
    let object = *found.first().ok_or("no such private key")?;
    let asked = [
        AttributeType::Sensitive,
        AttributeType::Extractable,
        AttributeType::AlwaysSensitive,
        AttributeType::NeverExtractable,
        AttributeType::Local,
        AttributeType::Unwrap,
        AttributeType::Decrypt,
        AttributeType::Modifiable,
    ];
    for attribute in session.get_attributes(object, &asked)? {
        println!("{attribute:?}");
    }
    Ok(())
}

/// What comes of wrapping a private key out under an AES key of this session: `wrapped`, or the
/// name of the `CKR_` code, for each mechanism.
fn wrap_out(session: &Session, label: &str) -> Outcome<()> {
    let found = session.find_objects(&private(label))?;
    let object = *found.first().ok_or("no such private key")?;
    let plain = [
        Attribute::Token(false),
        Attribute::Wrap(true),
        Attribute::ValueLen(32.into()),
    ];
    // A trusted one where the token lets a user make it.
    let trusted = [&plain[..], &[Attribute::Trusted(true)]].concat();
    let wrapping = session
        .generate_key(&Mechanism::AesKeyGen, &trusted)
        .or_else(|_| session.generate_key(&Mechanism::AesKeyGen, &plain))?;
    for (name, mechanism) in [
        ("CKM_AES_KEY_WRAP_PAD", Mechanism::AesKeyWrapPad),
        ("CKM_AES_CBC_PAD", Mechanism::AesCbcPad([0; 16])),
    ] {
        match session.wrap_key(&mechanism, wrapping, object) {
            Ok(_) => println!("{name} wrapped"),
            Err(cryptoki::error::Error::Pkcs11(code, _)) => println!("{name} {code:?}"),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The label of every object on the token, one a line.
fn list(session: &Session, wanted: &[Attribute]) -> Outcome<()> {
    for object in session.find_objects(wanted)? {
        for attribute in session.get_attributes(object, &[AttributeType::Label])? {
            if let Attribute::Label(label) = attribute {
                println!("{}", String::from_utf8_lossy(&label));
            }
        }
    }
    Ok(())
}

fn private(label: &str) -> [Attribute; 2] {
    [
        Attribute::Class(ObjectClass::PRIVATE_KEY),
        Attribute::Label(label.into()),
    ]
}
