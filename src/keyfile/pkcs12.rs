//! PKCS#12 (RFC 7292).
//!
//! ```text
//! PFX ─ AuthenticatedSafe ─ ContentInfo: data, or encryptedData ─ SafeContents ─ SafeBag
//!     └ MacData: HMAC over the AuthenticatedSafe, its key from the store's password
//! ```

use std::ops::ControlFlow;

use aws_lc_rs::{digest, hmac};
use der::asn1::ObjectIdentifier;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::ber::{Ber, INTEGER, Malformed, OCTETS, OID, SEQUENCE, SET, after_head};
use super::derive::{self, Purpose};
use super::pairing::{LooseCertificate, LooseKey, pair};
use super::private_key::{self, PrivateKey, Unused, private_key_info};
use super::scheme::{Scheme, SealError, sealed_key};
use super::unlock::{CONVERT, Locked, Unlocker, unused};
use super::{Content, Entry, Format, KeyFile, KeyFileError, Passwords};

/// The deepest nesting of bags that hold bags.
const MAX_DEPTH: usize = 4;

/// Whether it begins as a PFX: a sequence whose first element is the number 3.
pub(super) fn is_pfx(bytes: &[u8]) -> bool {
    after_head(bytes, SEQUENCE).is_some_and(|content| content.starts_with(&[INTEGER, 1, 3]))
}

/// Reads a PFX.
pub(super) fn read(bytes: &[u8], passwords: &Passwords) -> Result<KeyFile, KeyFileError> {
    let pfx = Pfx::parse(bytes)?;
    let mut unlocker = Unlocker::new(Format::Pkcs12, passwords);
    let sealed = match &pfx.mac {
        Some(mac) if !mac.verify(&pfx.safe, &mut unlocker)? => {
            return Err(mismatch(&pfx.safe, passwords));
        }
        Some(_) => true,
        None => false,
    };
    let mut found = Found::default();
    found.safe(&pfx.safe, &mut unlocker)?;
    if !sealed && found.opened == 0 && found.shut > 0 {
        return Err(KeyFileError::Password {
            format: Format::Pkcs12,
            problem: "wrong password: nothing in it opens (it has no MAC, which would tell a wrong password from a damaged file)".to_owned(),
        });
    }
    let mut entries = pair(found.keys, found.certificates);
    entries.append(&mut found.others);
    Ok(KeyFile {
        format: Format::Pkcs12,
        entries,
    })
}

/// The MAC is wrong: a wrong password, or a changed file. Whether anything opens tells.
fn mismatch(safe: &[u8], passwords: &Passwords) -> KeyFileError {
    let store = Passwords {
        store: passwords.store.clone(),
        key: None,
    };
    let mut found = Found::default();
    let read = found.safe(safe, &mut Unlocker::new(Format::Pkcs12, &store));
    if found.opened > 0 {
        return damaged("the password opens what is in it, but its MAC is wrong");
    }
    match read {
        Err(error @ KeyFileError::Damaged { .. }) => error,
        _ => KeyFileError::Password {
            format: Format::Pkcs12,
            problem: "wrong password, or the file was changed after it was written (the format cannot tell); try it with: openssl pkcs12 -info -noout -in FILE".to_owned(),
        },
    }
}

fn damaged(problem: impl Into<String>) -> KeyFileError {
    KeyFileError::Damaged {
        format: Format::Pkcs12,
        problem: problem.into(),
    }
}

fn unsupported(what: impl Into<String>) -> KeyFileError {
    KeyFileError::Unsupported {
        format: Format::Pkcs12,
        what: what.into(),
        remedy: CONVERT,
    }
}

impl From<Malformed> for KeyFileError {
    /// What is malformed in a PFX; the other formats have their own words.
    fn from(Malformed(what): Malformed) -> Self {
        damaged(format!("{what} is not as it should be, or cut off"))
    }
}

struct Pfx {
    safe: Zeroizing<Vec<u8>>,
    mac: Option<Mac>,
}

impl Pfx {
    fn parse(bytes: &[u8]) -> Result<Self, KeyFileError> {
        let mut file = Ber::new(bytes);
        let mut pfx = file.sequence("the PFX")?;
        // A z/OS data set of fixed records ends in zeros.
        if file.rest().iter().any(|byte| *byte != 0) {
            return Err(damaged("there is more after its end"));
        }
        pfx.number("the version")?;
        let mut content = pfx.sequence("the AuthenticatedSafe")?;
        let kind = content.oid("the kind of the AuthenticatedSafe")?;
        if kind == SIGNED_DATA {
            return Err(unsupported(
                "a file that is protected by a signature and not by a password",
            ));
        }
        if kind != DATA {
            return Err(damaged(format!("its content is of the kind {kind}")));
        }
        let safe = content
            .explicit(0, "the AuthenticatedSafe")?
            .octets(OCTETS, "the AuthenticatedSafe")?;
        let mac = if pfx.is_empty() {
            None
        } else {
            Some(Mac::parse(pfx.sequence("the MAC")?)?)
        };
        Ok(Self { safe, mac })
    }
}

/// MacData: by which hash, and what it should be.
struct Mac {
    hash: &'static digest::Algorithm,
    hmac: hmac::Algorithm,
    expected: Vec<u8>,
    salt: Vec<u8>,
    iterations: u64,
}

impl Mac {
    fn parse(mut data: Ber<'_>) -> Result<Self, KeyFileError> {
        let mut info = data.sequence("the MAC")?;
        let oid = info
            .sequence("the MAC's algorithm")?
            .oid("the MAC's algorithm")?;
        let (hash, hmac) = match oid {
            SHA1 => (
                &digest::SHA1_FOR_LEGACY_USE_ONLY,
                hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
            ),
            SHA224 => (&digest::SHA224, hmac::HMAC_SHA224),
            SHA256 => (&digest::SHA256, hmac::HMAC_SHA256),
            SHA384 => (&digest::SHA384, hmac::HMAC_SHA384),
            SHA512 => (&digest::SHA512, hmac::HMAC_SHA512),
            PBMAC1 => return Err(unsupported("a MAC of the kind PBMAC1")),
            other => return Err(unsupported(format!("a MAC with the algorithm {other}"))),
        };
        let expected = info.octets(OCTETS, "the MAC")?.to_vec();
        let salt = data.octets(OCTETS, "the MAC's salt")?.to_vec();
        // One, where nothing is said.
        let iterations = if data.is_empty() {
            1
        } else {
            data.number("the MAC's iteration count")?
        };
        if salt.len() > 1024 || iterations == 0 {
            return Err(damaged("the MAC's parameters make no sense"));
        }
        Ok(Self {
            hash,
            hmac,
            expected,
            salt,
            iterations,
        })
    }

    fn verify(&self, safe: &[u8], unlocker: &mut Unlocker<'_>) -> Result<bool, KeyFileError> {
        let key = derive::pkcs12(
            self.hash,
            unlocker.store(),
            &self.salt,
            Purpose::Mac,
            self.iterations,
            self.hash.output_len,
            &mut unlocker.budget,
        )
        .map_err(|costly| KeyFileError::Costly {
            format: Format::Pkcs12,
            what: "its MAC".to_owned(),
            iterations: costly.iterations,
        })?;
        let key = hmac::Key::new(self.hmac, &key);
        Ok(hmac::verify(&key, safe, &self.expected).is_ok())
    }
}

/// What is in the bags.
#[derive(Default)]
struct Found {
    keys: Vec<LooseKey>,
    certificates: Vec<LooseCertificate>,
    /// Secret keys, and what does not open.
    others: Vec<Entry>,
    /// How many sealed things opened, and how many did not.
    opened: usize,
    shut: usize,
}

impl Found {
    /// AuthenticatedSafe.
    fn safe(&mut self, safe: &[u8], unlocker: &mut Unlocker<'_>) -> Result<(), KeyFileError> {
        let mut safe = Ber::new(safe).sequence("the AuthenticatedSafe")?;
        let mut number = 0;
        while !safe.is_empty() {
            unlocker.count()?;
            number += 1;
            let mut content = safe.sequence("a safe")?;
            match content.oid("the kind of a safe")? {
                DATA => {
                    let bags = content.explicit(0, "a safe")?.octets(OCTETS, "a safe")?;
                    self.bags(&bags, unlocker, MAX_DEPTH)?;
                }
                ENCRYPTED_DATA => {
                    let data = content.explicit(0, "a sealed safe")?;
                    match self.open(data, unlocker)? {
                        ControlFlow::Continue(bags) => self.bags(&bags, unlocker, MAX_DEPTH)?,
                        ControlFlow::Break(reason) => self.others.push(Entry {
                            alias: format!("(part {number} of the file)"),
                            created: None,
                            content: unused(reason),
                        }),
                    }
                }
                ENVELOPED_DATA => {
                    return Err(unsupported(
                        "a file that is protected by a certificate and not by a password",
                    ));
                }
                other => return Err(damaged(format!("a safe is of the kind {other}"))),
            }
        }
        Ok(())
    }

    /// What is in an EncryptedData (RFC 5652, section 8), or why it does not open.
    fn open(
        &mut self,
        mut data: Ber<'_>,
        unlocker: &mut Unlocker<'_>,
    ) -> Result<ControlFlow<String, Zeroizing<Vec<u8>>>, KeyFileError> {
        let mut data = data.sequence("a sealed safe")?;
        data.number("the version of a sealed safe")?;
        let mut info = data.sequence("a sealed safe")?;
        info.oid("what is in a sealed safe")?;
        let algorithm = info.sequence("how a safe is sealed")?;
        let sealed = info.octets(0x80, "what is sealed in a safe")?;
        let opened = Scheme::parse(algorithm).and_then(|scheme| {
            unlocker.open(&scheme, &sealed, |plain| {
                // Rubbish is no sequence to its very end.
                let mut ber = Ber::new(&plain);
                let whole = ber.sequence("").is_ok() && ber.is_empty();
                whole.then_some(plain)
            })
        });
        match opened {
            Ok(bags) => {
                self.opened += 1;
                Ok(ControlFlow::Continue(bags))
            }
            Err(SealError::Costly(costly)) => Err(KeyFileError::Costly {
                format: Format::Pkcs12,
                what: "a safe in it".to_owned(),
                iterations: costly.iterations,
            }),
            Err(error) => {
                self.shut += 1;
                Ok(ControlFlow::Break(unlocker.locked(error).reason().reason))
            }
        }
    }

    /// SafeContents.
    fn bags(
        &mut self,
        bags: &[u8],
        unlocker: &mut Unlocker<'_>,
        depth: usize,
    ) -> Result<(), KeyFileError> {
        let mut bags = Ber::new(bags).sequence("the bags of a safe")?;
        while !bags.is_empty() {
            let mut bag = bags.sequence("a bag")?;
            let kind = bag.oid("the kind of a bag")?;
            let value = bag.take(0xa0, "what is in a bag")?;
            let named = Named::parse(bag)?;
            self.bag(kind, value, named, unlocker, depth)?;
        }
        Ok(())
    }

    fn bag(
        &mut self,
        kind: ObjectIdentifier,
        value: &[u8],
        named: Named,
        unlocker: &mut Unlocker<'_>,
        depth: usize,
    ) -> Result<(), KeyFileError> {
        match kind {
            KEY_BAG => {
                unlocker.count_key()?;
                let key = PrivateKey::from_pkcs8(value).map_err(Unused::from);
                self.keys.push(named.key(key));
            }
            SHROUDED_KEY_BAG => {
                unlocker.count_key()?;
                let key = unlocker.key(value);
                match &key {
                    Ok(_) => self.opened += 1,
                    Err(Locked::Shut { .. }) => self.shut += 1,
                    Err(Locked::Fault(_)) => {}
                }
                let key = key.map_err(|locked| locked.reason());
                self.keys.push(named.key(key));
            }
            CERTIFICATE_BAG => {
                unlocker.count()?;
                let mut bag = Ber::new(value).sequence("a certificate's bag")?;
                // SDSI certificates (RFC 7292, section 4.2.3) are seen nowhere.
                if bag.oid("the kind of a certificate")? == X509_CERTIFICATE {
                    let der = bag
                        .explicit(0, "a certificate")?
                        .octets(OCTETS, "a certificate")?;
                    self.certificates.push(LooseCertificate {
                        alias: named.alias,
                        id: named.id,
                        trusted: named.trusted,
                        der: der.to_vec(),
                    });
                }
            }
            SECRET_BAG => {
                unlocker.count_key()?;
                let content = self.secret(value, unlocker)?;
                let number = self.others.len() + 1;
                self.others.push(Entry {
                    alias: named.alias.unwrap_or_else(|| format!("secret{number}")),
                    created: named.created,
                    content,
                });
            }
            SAFE_CONTENTS_BAG => {
                unlocker.count()?;
                let Some(depth) = depth.checked_sub(1) else {
                    return Err(damaged("bags in bags, too deep"));
                };
                self.bags(value, unlocker, depth)?;
            }
            // Revocation lists, and what may come.
            _ => unlocker.count()?,
        }
        Ok(())
    }

    /// A secret key, as Java writes it: a shrouded key in a secret bag.
    fn secret(
        &mut self,
        value: &[u8],
        unlocker: &mut Unlocker<'_>,
    ) -> Result<Content, KeyFileError> {
        let mut bag = Ber::new(value).sequence("a secret's bag")?;
        let kind = bag.oid("the kind of a secret")?;
        if kind != SHROUDED_KEY_BAG {
            return Ok(Content::Secret {
                algorithm: kind.to_string(),
                bits: None,
            });
        }
        let sealed = bag.explicit(0, "a secret")?.octets(OCTETS, "a secret")?;
        let opened = sealed_key(&sealed).and_then(|(scheme, sealed)| {
            unlocker.open(&scheme, &sealed, |plain| {
                let (algorithm, key) = private_key_info(&plain).ok()?;
                Some(Content::Secret {
                    algorithm: private_key::name(&algorithm),
                    bits: u32::try_from(8 * key.len()).ok(),
                })
            })
        });
        Ok(match opened {
            Ok(secret) => {
                self.opened += 1;
                secret
            }
            Err(error) => Content::Secret {
                algorithm: format!("unknown: {}", unlocker.locked(error).reason().reason),
                bits: None,
            },
        })
    }
}

/// The attributes of a bag.
#[derive(Default)]
struct Named {
    alias: Option<String>,
    id: Option<Vec<u8>>,
    created: Option<OffsetDateTime>,
    trusted: bool,
}

impl Named {
    fn parse(mut bag: Ber<'_>) -> Result<Self, Malformed> {
        let mut named = Self::default();
        if bag.is_empty() {
            return Ok(named);
        }
        let mut attributes = bag.inside(SET, "the attributes of a bag")?;
        while !attributes.is_empty() {
            let mut attribute = attributes.sequence("an attribute of a bag")?;
            let kind = attribute.oid("an attribute of a bag")?;
            let mut values = attribute.inside(SET, "the value of an attribute")?;
            match kind {
                FRIENDLY_NAME if values.is_next(BMP_STRING) => {
                    let units: Vec<u16> = values
                        .take(BMP_STRING, "a friendlyName")?
                        .chunks_exact(2)
                        .filter_map(|unit| Some(u16::from_be_bytes(unit.try_into().ok()?)))
                        .collect();
                    let name = String::from_utf16_lossy(&units);
                    let name = name.trim_end_matches('\0');
                    named.alias = (!name.is_empty()).then(|| name.to_owned());
                }
                LOCAL_KEY_ID => {
                    let id = values.octets(OCTETS, "a localKeyID")?;
                    named.created = java_time(&id);
                    named.id = Some(id.to_vec());
                }
                TRUSTED_KEY_USAGE => named.trusted = values.is_next(OID),
                _ => {}
            }
        }
        Ok(named)
    }

    fn key(self, key: Result<PrivateKey, Unused>) -> LooseKey {
        LooseKey {
            alias: self.alias,
            id: self.id,
            created: self.created,
            key,
        }
    }
}

/// Java's localKeyID: `Time `, and when the entry was made in milliseconds since 1970.
fn java_time(id: &[u8]) -> Option<OffsetDateTime> {
    let text = std::str::from_utf8(id.strip_prefix(b"Time ")?).ok()?;
    let milliseconds: i64 = text.parse().ok()?;
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(milliseconds) * 1_000_000).ok()
}

const BMP_STRING: u8 = 0x1e;

const DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.1");
const SIGNED_DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.2");
const ENVELOPED_DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.3");
const ENCRYPTED_DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.6");

const KEY_BAG: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.12.10.1.1");
const SHROUDED_KEY_BAG: ObjectIdentifier =
    ObjectIdentifier::new_unwrap("1.2.840.113549.1.12.10.1.2");
const CERTIFICATE_BAG: ObjectIdentifier =
    ObjectIdentifier::new_unwrap("1.2.840.113549.1.12.10.1.3");
const SECRET_BAG: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.12.10.1.5");
const SAFE_CONTENTS_BAG: ObjectIdentifier =
    ObjectIdentifier::new_unwrap("1.2.840.113549.1.12.10.1.6");
const X509_CERTIFICATE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.22.1");

const FRIENDLY_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.20");
const LOCAL_KEY_ID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.21");
/// By which Java marks a certificate as an entry of its own.
const TRUSTED_KEY_USAGE: ObjectIdentifier =
    ObjectIdentifier::new_unwrap("2.16.840.1.113894.746875.1.1");

const PBMAC1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.5.14");
const SHA1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.14.3.2.26");
const SHA224: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.4");
const SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.1");
const SHA384: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.2");
const SHA512: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.3");
