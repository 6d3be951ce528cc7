//! JKS and JCEKS: one frame, two magics.
//!
//! ```text
//! magic (4)  version 1 or 2 (4)  number of entries (4)
//! entry:  1 (4)  alias (UTF)  time (8, ms)  key (counted)  chain: number (4), certificates
//!         2 (4)  alias (UTF)  time (8, ms)  certificate
//!         3 (4)  alias (UTF)  time (8, ms)  a serialised SealedObject             (JCEKS only)
//! certificate: its type (UTF; from version 2 on)  DER (counted)
//! SHA-1 (20) over the password in UTF-16, "Mighty Aphrodite", and all of the above
//! ```
//!
//! Source: OpenJDK, `sun.security.provider.JavaKeyStore`, `com.sun.crypto.provider.JceKeyStore`.

use aws_lc_rs::digest;
use subtle::ConstantTimeEq as _;
use time::OffsetDateTime;

use super::ber::Ber;
use super::certificate::Certificate;
use super::derive::Password;
use super::java::{Bytes, Object};
use super::scheme::{Scheme, parameter};
use super::unlock::{Locked, Unlocker, unused};
use super::{Content, Entry, Format, KeyFile, KeyFileError, Passwords};

pub(super) const MAGIC_JKS: [u8; 4] = [0xfe, 0xed, 0xfe, 0xed];
pub(super) const MAGIC_JCEKS: [u8; 4] = [0xce, 0xce, 0xce, 0xce];

/// The SHA-1 at the end, bytes.
const HASH: usize = 20;

/// Reads a store of either.
pub(super) fn read(
    format: Format,
    bytes: &[u8],
    passwords: &Passwords,
) -> Result<KeyFile, KeyFileError> {
    let damaged = |problem: String| KeyFileError::Damaged { format, problem };
    let (body, hash) = bytes
        .len()
        .checked_sub(HASH)
        .and_then(|at| bytes.split_at_checked(at))
        .ok_or_else(|| damaged("it ends in its head".to_owned()))?;
    let mut unlocker = Unlocker::new(format, passwords);
    let entries = entries(body, &mut unlocker)?;
    if !bool::from(integrity(body, unlocker.store()).as_ref().ct_eq(hash)) {
        return Err(mismatch(format, &entries, passwords));
    }
    let entries = entries
        .into_iter()
        .map(|entry| entry.open(&mut unlocker))
        .collect();
    Ok(KeyFile { format, entries })
}

fn integrity(body: &[u8], password: Password<'_>) -> digest::Digest {
    let mut hash = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    hash.update(&password.utf16());
    hash.update(b"Mighty Aphrodite");
    hash.update(body);
    hash.finish()
}

/// The hash is wrong: a wrong password, or a changed file. A key that opens tells.
fn mismatch(format: Format, entries: &[Sealed<'_>], passwords: &Passwords) -> KeyFileError {
    let passwords = Passwords {
        store: passwords.store.clone(),
        key: None,
    };
    let mut unlocker = Unlocker::new(format, &passwords);
    let sealed = entries.iter().find_map(|entry| match entry.kind {
        Kind::Key { sealed, .. } => Some((entry, sealed)),
        Kind::Certificate(_) | Kind::Secret(_) => None,
    });
    if let Some((entry, sealed)) = sealed
        && unlocker.key(sealed).is_ok()
    {
        return KeyFileError::Damaged {
            format,
            problem: format!(
                "the password opens the key {:?}, but the hash over the file is wrong (or the store has another password than this key)",
                entry.alias
            ),
        };
    }
    KeyFileError::Password {
        format,
        problem: "wrong store password, or the file was changed after it was written (the format cannot tell); try it with: keytool -list -keystore FILE"
            .to_owned(),
    }
}

/// An entry as the file has it.
struct Sealed<'a> {
    alias: String,
    created: Option<OffsetDateTime>,
    kind: Kind<'a>,
}

enum Kind<'a> {
    Key {
        sealed: &'a [u8],
        chain: Vec<&'a [u8]>,
    },
    Certificate(&'a [u8]),
    Secret(Object<'a>),
}

/// All entries, which must be all that there is.
fn entries<'a>(
    body: &'a [u8],
    unlocker: &mut Unlocker<'_>,
) -> Result<Vec<Sealed<'a>>, KeyFileError> {
    let format = unlocker.format;
    let damaged = |problem: String| KeyFileError::Damaged { format, problem };
    let mut bytes = Bytes::new(body);
    let mut head = || Some((bytes.u32()?, bytes.u32()?, bytes.u32()?));
    let Some((_magic, version, count)) = head() else {
        return Err(damaged("it ends in its head".to_owned()));
    };
    if !matches!(version, 1 | 2) {
        return Err(damaged(format!("its version is {version}, not 1 or 2")));
    }
    let mut entries = Vec::new();
    for number in 1..=count {
        let entry = Sealed::read(&mut bytes, version, unlocker)?;
        let Some(entry) = entry else {
            let after = entries
                .last()
                .map_or_else(String::new, |last: &Sealed<'_>| {
                    format!(", after {:?}", last.alias)
                });
            return Err(damaged(format!(
                "entry {number} of {count}{after} is cut off or not as it should be"
            )));
        };
        entries.push(entry);
    }
    if !bytes.is_empty() {
        return Err(damaged(format!("there is more after its {count} entries")));
    }
    Ok(entries)
}

impl<'a> Sealed<'a> {
    /// One entry; none where it makes no sense.
    fn read(
        bytes: &mut Bytes<'a>,
        version: u32,
        unlocker: &mut Unlocker<'_>,
    ) -> Result<Option<Self>, KeyFileError> {
        let mut head = || Some((bytes.u32()?, bytes.utf()?, bytes.i64()?));
        let Some((tag, alias, created)) = head() else {
            return Ok(None);
        };
        let created = OffsetDateTime::from_unix_timestamp_nanos(i128::from(created) * 1_000_000);
        let kind = match (tag, unlocker.format) {
            (1, _) => {
                unlocker.count_key()?;
                let mut head = || Some((bytes.counted()?, bytes.u32()?));
                let Some((sealed, count)) = head() else {
                    return Ok(None);
                };
                let mut chain = Vec::new();
                for _ in 0..count {
                    unlocker.count()?;
                    let Some(der) = certificate(bytes, version) else {
                        return Ok(None);
                    };
                    chain.push(der);
                }
                Some(Kind::Key { sealed, chain })
            }
            (2, _) => {
                unlocker.count()?;
                certificate(bytes, version).map(Kind::Certificate)
            }
            (3, Format::Jceks) => {
                unlocker.count()?;
                Object::read(bytes).map(Kind::Secret)
            }
            _ => None,
        };
        Ok(kind.map(|kind| Self {
            alias,
            created: created.ok(),
            kind,
        }))
    }

    fn open(self, unlocker: &mut Unlocker<'_>) -> Entry {
        let content = match self.kind {
            Kind::Key { sealed, chain } => pair(sealed, &chain, unlocker),
            Kind::Certificate(der) if Certificate::parse(der).is_none() => unused(
                "it is no X.509 certificate, or one of more than 16 KiB; the file is damaged",
            ),
            Kind::Certificate(der) => Content::Certificate(der.to_vec()),
            Kind::Secret(object) => secret(&object, unlocker),
        };
        Entry {
            alias: self.alias,
            created: self.created,
            content,
        }
    }
}

fn certificate<'a>(bytes: &mut Bytes<'a>, version: u32) -> Option<&'a [u8]> {
    if version == 2 {
        // "X.509"; what it is, is seen when it is read.
        bytes.utf()?;
    }
    bytes.counted()
}

fn pair(sealed: &[u8], chain: &[&[u8]], unlocker: &mut Unlocker<'_>) -> Content {
    let key = match unlocker.key(sealed) {
        Ok(key) => key,
        Err(locked) => return unused(locked.reason()),
    };
    if let Some(own) = chain.first() {
        match Certificate::parse(own) {
            Some(certificate) if certificate.public_key == key.public() => {}
            Some(_) => return unused("its certificate is of another key; the file is damaged"),
            None => return unused("its certificate is not X.509; the file is damaged"),
        }
    }
    Content::Pair {
        key,
        chain: chain.iter().map(|der| der.to_vec()).collect(),
    }
}

/// A secret key, in a serialised `SealedObject` (or a class of SunJCE that extends it); what is
/// sealed is a serialised `SecretKeySpec` or `KeyRep`.
fn secret(object: &Object<'_>, unlocker: &mut Unlocker<'_>) -> Content {
    let locked = |reason: String| Content::Secret {
        algorithm: format!("unknown: {reason}"),
        bits: None,
    };
    let algorithm = object.text("sealAlg").unwrap_or("no algorithm");
    let (Some(sealed), Some(parameters), "PBEWithMD5AndTripleDES") = (
        object.bytes("encryptedContent"),
        object.bytes("encodedParams"),
        algorithm,
    ) else {
        return locked(format!("it is sealed with {algorithm}"));
    };
    let scheme = Ber::new(parameters)
        .sequence("the parameters")
        .and_then(parameter)
        .ok()
        .and_then(|(salt, iterations)| {
            Some(Scheme::Jceks {
                salt: salt.try_into().ok()?,
                iterations,
            })
        });
    let Some(scheme) = scheme else {
        return locked("its parameters are damaged".to_owned());
    };
    let opened = unlocker.open(&scheme, sealed, |plain| {
        let key = Object::read(&mut Bytes::new(&plain))?;
        let bytes = key.bytes("key").or_else(|| key.bytes("encoded"));
        Some(Content::Secret {
            algorithm: key.text("algorithm")?.to_owned(),
            bits: bytes.and_then(|bytes| u32::try_from(8 * bytes.len()).ok()),
        })
    });
    opened.unwrap_or_else(|error| match unlocker.locked(error) {
        Locked::Shut { .. } => locked("no password opens it".to_owned()),
        Locked::Fault(unused) => locked(unused.reason),
    })
}
