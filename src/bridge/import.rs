//! `ekm kek import`: a key pair from a file goes into a token, and stays there.
//!
//! ```text
//! command line                                child: ekm bridge
//! carry_out --- the key, socket pair -------> import -> C_UnwrapKey, else C_CreateObject
//!   undo where it failed, in a fresh bridge     read back, prove, public half, certificate
//! ```
//!
//! The bridge is one of the command's own, so a server never has the private
//! key, and no other process than these two. An import is never repeated: a
//! key that was made before an answer was lost stays on the token. So all that
//! one makes has a `CKA_ID` that nothing else has, and after a failure
//! whatever has it is destroyed.

mod proof;
mod transport;

use std::time::Duration;

use cryptoki_sys as ck;
use der::Encode as _;
use der::asn1::AnyRef;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use super::catalog::{self, Catalog};
use super::faults::{Fault, FaultClass};
use super::host;
use super::message::{Custody, Errand, Hello, KekAttributes, KekOnToken, PrivateHalf, Reply};
use super::pkcs11::{Attr, CK_OBJECT_HANDLE, CK_SESSION_HANDLE, CallError};
use super::supervisor::{Attended, Program};
use super::token::Token;
use crate::key::{KekHash, KeyLabel};

pub(super) use proof::opens;

/// Longest time for one errand: a throw-away pair on a slow token takes minutes.
const PATIENCE: Duration = Duration::from_secs(300);

/// A private key, PKCS#8 DER (RFC 5208); wiped, and never shown.
#[derive(Clone)]
pub struct KeyMaterial(Zeroizing<Vec<u8>>);

impl KeyMaterial {
    /// A copy of that key.
    #[must_use]
    pub fn of(pkcs8: &[u8]) -> Self {
        Self(Zeroizing::new(pkcs8.to_vec()))
    }
}

impl std::fmt::Debug for KeyMaterial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[redacted]")
    }
}

impl Serialize for KeyMaterial {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(to)
    }
}

impl<'de> Deserialize<'de> for KeyMaterial {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        // Postcard tells the length first, so the buffer never moves and leaves no copy behind.
        Vec::deserialize(from).map(|bytes| Self(Zeroizing::new(bytes)))
    }
}

/// A key pair to bring into a token.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Import {
    /// What it shall be called.
    pub label: KeyLabel,
    /// What it is for.
    pub custody: Custody,
    /// `CKA_ID` of all that is made: fresh, so that what a failure leaves can be told from all else.
    pub id: [u8; 16],
    /// The private key.
    pub key: KeyMaterial,
    /// Its `SubjectPublicKeyInfo`, DER.
    pub spki: Vec<u8>,
    /// Its certificate, DER, where there is one.
    pub certificate: Option<Vec<u8>>,
}

/// How the private key got into the token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// By `C_UnwrapKey` with this mechanism, wrapped under a throw-away key of the token.
    Unwrapped(String),
    /// By `C_CreateObject`, in clear to the module, since it could not be wrapped.
    Created {
        /// Why not.
        why: String,
    },
}

impl std::fmt::Display for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unwrapped(mechanism) => write!(
                f,
                "C_UnwrapKey with {mechanism}, wrapped under a throw-away key of the token"
            ),
            Self::Created { why } => {
                write!(f, "C_CreateObject, in clear to the module, because {why}")
            }
        }
    }
}

/// What came of an import.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Imported {
    /// The token had the key already, and nothing was changed.
    Already(Box<KekOnToken>),
    /// It is there now.
    Done {
        /// As the token shows it.
        kek: Box<KekOnToken>,
        /// How it got there.
        transport: Transport,
        /// Why the token did not take the certificate, where it did not.
        without_certificate: Option<String>,
    },
}

/// Brings the key into the token with a bridge of its own. After a failure the
/// token is as it was, or the error says what is left.
///
/// # Errors
/// What the bridge says, or that it has gone.
pub async fn carry_out(program: &Program, hello: &Hello, asked: Import) -> Result<Imported, Fault> {
    let mut bridge = Attended::start(program, hello).await?;
    let id = asked.id;
    let errand = Errand::Import(Box::new(asked));
    let failed = match bridge.ask(&errand, PATIENCE).await {
        Ok(Reply::Imported(imported)) => return Ok(*imported),
        Ok(other) => out_of_turn(&hello.name, &other),
        Err(fault) => fault,
    };
    drop(errand);
    // The module may be in any state now; a fresh one has no part in the failure.
    drop(bridge);
    match undone(program, hello, id).await {
        Ok(()) => Err(failed),
        Err(fault) => Err(Fault::Operator {
            token: hello.name.clone(),
            reason: format!(
                "{failed}; and what was made by then could not be removed ({fault}): destroy the objects with CKA_ID {} with the vendor's tool",
                hex::encode(id)
            ),
        }),
    }
}

async fn undone(program: &Program, hello: &Hello, id: [u8; 16]) -> Result<(), Fault> {
    let mut bridge = Attended::start(program, hello).await?;
    match bridge.ask(&Errand::Undo(id), PATIENCE).await? {
        Reply::Undone(_) => Ok(()),
        other => Err(out_of_turn(&hello.name, &other)),
    }
}

fn out_of_turn(token: &str, reply: &Reply) -> Fault {
    Fault::Down {
        token: token.to_owned(),
        reason: format!("the bridge gave an answer of another kind ({reply:?})"),
    }
}

/// The bridge's side.
pub(super) fn import(token: &Token, asked: &Import) -> Result<Imported, Fault> {
    let work = Work::new(token, asked)?;
    let done = work.run();
    work.close();
    host::scrub_stack();
    done
}

/// Destroys every object of that `CKA_ID`; how many there were.
pub(super) fn undo(token: &Token, id: &[u8; 16]) -> Result<usize, Fault> {
    let fail = |error| Fault::call(&token.name, error, "removing what an import had made");
    let session = token.session().map_err(fail)?;
    let mine = [
        Attr::bytes(ck::CKA_ID, *id),
        Attr::flag(ck::CKA_TOKEN, true),
    ];
    let found = token.module.find(session, &mine).map_err(fail)?;
    for object in &found {
        token.module.destroy(session, *object).map_err(fail)?;
    }
    let _ = token.module.close_session(session);
    Ok(found.len())
}

/// Whether a failure says nothing about the way that was tried, but about the token.
const fn ends(error: CallError) -> bool {
    matches!(
        error.class,
        FaultClass::Restart | FaultClass::Login | FaultClass::Operator
    )
}

/// An import under way.
struct Work<'a> {
    token: &'a Token,
    session: CK_SESSION_HANDLE,
    asked: &'a Import,
    hash: KekHash,
    bits: u32,
}

impl<'a> Work<'a> {
    fn new(token: &'a Token, asked: &'a Import) -> Result<Self, Fault> {
        let bits = super::rsa_bits(&asked.spki).ok_or_else(|| Fault::Unsupported {
            token: token.name.clone(),
            reason: format!("the key for {} is not an RSA key", asked.label),
        })?;
        if token.profile.host_only() && asked.custody == Custody::Token {
            return Err(Fault::Unsupported {
                token: token.name.clone(),
                reason: format!(
                    "KEK {} would have to open EEDKs inside the token, and this product cannot unwrap and wrap (profile {}: drive.forms = []); import it with --custody host",
                    asked.label, token.profile.name
                ),
            });
        }
        let session = token
            .session()
            .map_err(|error| Fault::call(&token.name, error, "opening a session"))?;
        Ok(Self {
            token,
            session,
            asked,
            hash: KekHash::of_spki(&asked.spki),
            bits,
        })
    }

    fn run(&self) -> Result<Imported, Fault> {
        let before = self.catalog()?;
        if let Some(kek) = self.met(&before)? {
            return Ok(Imported::Already(Box::new(kek)));
        }
        let (private, transport) = self.private_half()?;
        if !self.opens(private)? {
            return Err(self.refused(
                "what was wrapped under the file's public key does not open under the imported private key"
                    .to_owned(),
            ));
        }
        if !before.keks.iter().any(|kek| kek.hash == self.hash) {
            self.public_half()?;
        }
        let without_certificate = match &self.asked.certificate {
            Some(der) => self.certificate(der)?,
            None => None,
        };
        let after = self.catalog()?;
        let kek = after
            .keks
            .iter()
            .find(|kek| kek.hash == self.hash && kek.label.same_as(&self.asked.label))
            .ok_or_else(|| {
                self.refused("the token does not show the key that it just took".to_owned())
            })?;
        match &kek.private {
            PrivateHalf::Serves { .. } => Ok(Imported::Done {
                kek: Box::new(kek.clone()),
                transport,
                without_certificate,
            }),
            PrivateHalf::Refused { reason, .. } => Err(self.refused(reason.clone())),
            PrivateHalf::Absent => {
                Err(self.refused("the token does not show its private half".to_owned()))
            }
        }
    }

    fn close(&self) {
        // It may be stuck; what is on it ends with the bridge in any case.
        let _ = self.token.module.close_session(self.session);
    }

    fn catalog(&self) -> Result<Catalog, Fault> {
        Catalog::read(
            &self.token.module,
            self.session,
            self.token.profile.host_only(),
            &self.token.profile,
        )
        .map_err(|error| self.fault(error, "reading the KEKs"))
    }

    /// The key, where the token has it; an error where it has the label for another.
    fn met(&self, catalog: &Catalog) -> Result<Option<KekOnToken>, Fault> {
        let label = &self.asked.label;
        let mut same = None;
        for kek in &catalog.keks {
            if kek.hash != self.hash && kek.label.same_as(label) {
                return Err(self.refused(format!(
                    "the token has the label {} for another key (hash {}); give another with --label",
                    kek.label, kek.hash
                )));
            }
            if kek.hash == self.hash {
                match &kek.private {
                    PrivateHalf::Absent => {}
                    PrivateHalf::Serves { .. } => same = Some(kek.clone()),
                    PrivateHalf::Refused { reason, .. } => {
                        return Err(self.refused(format!(
                            "the token has this key already, as {}, and it may not serve: {reason}; ekm kek adopt says whether that can be mended",
                            kek.label
                        )));
                    }
                }
            }
        }
        Ok(same)
    }

    /// The private half, by the best way that works.
    fn private_half(&self) -> Result<(CK_OBJECT_HANDLE, Transport), Fault> {
        let why = match self.unwrapped()? {
            Ok((object, mechanism)) => return Ok((object, Transport::Unwrapped(mechanism))),
            Err(why) => why,
        };
        let template = self.template();
        let less = catalog::undemanding(&template, &self.token.profile);
        let create = |template: Vec<Attr>| {
            let template = transport::in_clear(template, &self.asked.key).ok_or_else(|| {
                self.refused("the file's key is no RSA private key in PKCS#8".to_owned())
            })?;
            Ok(self.token.module.create_object(self.session, &template))
        };
        let mut created = create(template)?;
        if let Err(error) = created
            && catalog::REFUSES_TEMPLATE.contains(&error.rv)
            && let Some(less) = less
        {
            // Some answers are lost.
            undo(self.token, &self.asked.id)?;
            created = create(less)?;
        }
        let object = created.map_err(|error| self.fault(error, "creating the private half"))?;
        match self.protected(object) {
            Ok(()) => Ok((object, Transport::Created { why })),
            Err(reason) => Err(self.refused(format!("the token took it so that {reason}"))),
        }
    }

    /// Template of the private half, without its numbers.
    fn template(&self) -> Vec<Attr> {
        let Import {
            label, custody, id, ..
        } = self.asked;
        let mut template = vec![
            Attr::ulong(ck::CKA_CLASS, ck::CKO_PRIVATE_KEY),
            Attr::ulong(ck::CKA_KEY_TYPE, ck::CKK_RSA),
        ];
        template.extend(catalog::private_template(
            label,
            id,
            *custody,
            false,
            &self.token.profile,
        ));
        // Last: SoftHSM, when it unwraps, takes nothing that comes after it.
        let (frozen, mut template): (Vec<Attr>, Vec<Attr>) = template
            .into_iter()
            .partition(|attr| attr.is(ck::CKA_MODIFIABLE));
        template.extend(frozen);
        template
    }

    /// Whether it is so that it may serve, mended where the token took the template for less; else
    /// why not.
    fn protected(&self, object: CK_OBJECT_HANDLE) -> Result<(), String> {
        let read = || {
            let asked = self.token.profile.kek.unwrap_template;
            catalog::attributes(&self.token.module, self.session, object, asked)
                .map_err(|error| self.fault(error, "reading it back").to_string())
        };
        let mut found = read()?;
        let wrong = |found: &KekAttributes| {
            found.sensitive != Some(true) || found.extractable != Some(false)
        };
        if wrong(&found) {
            for (attribute, on) in [(ck::CKA_SENSITIVE, true), (ck::CKA_EXTRACTABLE, false)] {
                // What it came to is read back.
                let _ = self.token.module.set_attributes(
                    self.session,
                    object,
                    &[Attr::flag(attribute, on)],
                );
            }
            found = read()?;
        }
        let profile = &self.token.profile;
        match catalog::judge(&found, self.bits, profile.host_only(), profile) {
            PrivateHalf::Serves { custody, .. } if custody == self.asked.custody => Ok(()),
            PrivateHalf::Serves { custody, .. } => Err(format!("it is for custody {custody}")),
            PrivateHalf::Refused { reason, .. } => Err(reason),
            PrivateHalf::Absent => Err("it is not there".to_owned()),
        }
    }

    fn public_half(&self) -> Result<(), Fault> {
        let numbers =
            host::numbers(&self.asked.spki).map_err(|error| self.refused(error.to_string()))?;
        let Import { label, id, .. } = self.asked;
        let mut template = vec![
            Attr::ulong(ck::CKA_CLASS, ck::CKO_PUBLIC_KEY),
            Attr::ulong(ck::CKA_KEY_TYPE, ck::CKK_RSA),
        ];
        template.extend(
            catalog::public_template(label, id, self.bits, &self.token.profile)
                .into_iter()
                // The numbers say it; some tokens refuse to hear it twice.
                .filter(|attr| !attr.is(ck::CKA_MODULUS_BITS) && !attr.is(ck::CKA_PUBLIC_EXPONENT)),
        );
        template.push(Attr::bytes(ck::CKA_MODULUS, numbers.modulus));
        template.push(Attr::bytes(ck::CKA_PUBLIC_EXPONENT, numbers.exponent));
        self.token
            .module
            .create_object(self.session, &template)
            .map(drop)
            .map_err(|error| self.fault(error, "creating the public half"))
    }

    /// Puts the certificate beside it; why not, where the token has no room for one. A KEK serves
    /// without.
    fn certificate(&self, der: &[u8]) -> Result<Option<String>, Fault> {
        let Some(template) = certificate_template(&self.asked.label, &self.asked.id, der) else {
            return Ok(Some("it is no X.509 certificate".to_owned()));
        };
        match self.token.module.create_object(self.session, &template) {
            Ok(_) => Ok(None),
            Err(error) if error.class == FaultClass::Request => Ok(Some(
                self.fault(error, "creating the certificate").to_string(),
            )),
            Err(error) => Err(self.fault(error, "creating the certificate")),
        }
    }

    /// Whether the private half opens what is wrapped under the file's public key.
    fn opens(&self, private: CK_OBJECT_HANDLE) -> Result<bool, Fault> {
        opens(
            self.token,
            self.session,
            private,
            &self.asked.spki,
            self.asked.custody,
        )
    }

    fn fault(&self, error: CallError, what: &str) -> Fault {
        Fault::call(
            &self.token.name,
            error,
            format!("importing KEK {}: {what}", self.asked.label),
        )
    }

    fn refused(&self, reason: String) -> Fault {
        Fault::Refused {
            token: self.token.name.clone(),
            label: self.asked.label.to_string(),
            reason,
        }
    }
}

/// Template of a certificate object (PKCS#11 v2.40, 4.6.3).
fn certificate_template(label: &KeyLabel, id: &[u8], der: &[u8]) -> Option<Vec<Attr>> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    // `CKA_SERIAL_NUMBER` is the whole INTEGER, with its tag.
    let serial = AnyRef::new(der::Tag::Integer, certificate.raw_serial())
        .ok()?
        .to_der()
        .ok()?;
    Some(vec![
        Attr::ulong(ck::CKA_CLASS, ck::CKO_CERTIFICATE),
        Attr::ulong(ck::CKA_CERTIFICATE_TYPE, ck::CKC_X_509),
        Attr::flag(ck::CKA_TOKEN, true),
        Attr::flag(ck::CKA_PRIVATE, false),
        Attr::bytes(ck::CKA_LABEL, label.as_str()),
        Attr::bytes(ck::CKA_ID, id),
        Attr::bytes(ck::CKA_SUBJECT, certificate.subject().as_raw()),
        Attr::bytes(ck::CKA_ISSUER, certificate.issuer().as_raw()),
        Attr::bytes(ck::CKA_SERIAL_NUMBER, serial),
        Attr::bytes(ck::CKA_VALUE, der),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_crosses_to_the_bridge_whole_and_is_never_shown() {
        let asked = Import {
            label: "X".parse().unwrap(),
            custody: Custody::Token,
            id: [7; 16],
            key: KeyMaterial::of(&[0xAB; 2400]),
            spki: vec![1],
            certificate: None,
        };
        let frame = super::super::message::encode(&asked).unwrap();
        let back: Import = super::super::message::decode(&frame[4..]).unwrap();
        assert_eq!(*back.key.0, [0xAB; 2400]);
        let shown = format!("{back:?}");
        assert!(shown.contains("[redacted]"), "{shown}");
        assert!(!shown.contains("171"), "{shown}");
        let number = format!("{:?}", Attr::secret(ck::CKA_PRIVATE_EXPONENT, &[0xAB; 32]));
        assert!(!number.contains("171"), "{number}");
    }
}
