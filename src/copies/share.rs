//! A share of a transport key, as its holder keeps it: a text that can be
//! printed and typed in again.
//!
//! ```text
//! -----BEGIN EKM KEK SHARE-----
//! Version: 1
//! Ceremony: 0b54f1a2-…        which ceremony
//! KEK-Label: "TAPE2026A"      the KEK that the transport key wraps
//! KEK-Hash: 9f86d0…           SHA-256 of its SubjectPublicKeyInfo
//! Share: 1
//! Needed: 2
//! Of: 3
//! KDF: argon2id v=19 m=65536 t=3 p=1
//! Salt: …                     16 bytes
//! Nonce: …                    12 bytes
//! Sealed-A: …                 24 bytes
//! Sealed-B: …                 24 bytes
//! Checksum: 1a2b3c4d          of all that stands above
//! -----END EKM KEK SHARE-----
//! ```
//!
//! What is sealed are the 32 values of the polynomials at the share's number,
//! by AES-256-GCM (NIST SP 800-38D) under the key that Argon2id (RFC 9106)
//! makes of the passphrase; everything above is authenticated with it. The
//! checksum is for slips of the pen; it protects nothing.

use argon2::{Algorithm, Argon2, Params, Version};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::secret::{Point, Quorum, SplitError};
use crate::key::{KekHash, KeyLabel};

/// Largest file of a share, bytes.
pub const MOST: u64 = 8 * 1024;

/// Shortest passphrase, characters.
pub const SHORTEST: usize = 12;

const BEGIN: &str = "-----BEGIN EKM KEK SHARE-----";
const END: &str = "-----END EKM KEK SHARE-----";

/// What a share says in clear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShareHead {
    /// The ceremony that it comes from.
    pub ceremony: Uuid,
    /// The KEK's label.
    pub label: KeyLabel,
    /// The KEK's public-key hash.
    pub kek: KekHash,
    /// Its number, from 1.
    pub number: u8,
    /// How many of how many are needed.
    pub quorum: Quorum,
}

/// A share under its holder's passphrase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    head: ShareHead,
    cost: Cost,
    salt: [u8; 16],
    nonce: [u8; NONCE_LEN],
    sealed: [u8; 48],
}

/// What one try of a passphrase costs (RFC 9106, 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cost {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
}

impl Cost {
    /// The second choice of RFC 9106, 4: 64 MiB and three passes; one lane, as one thread computes it.
    const OURS: Self = Self {
        memory_kib: 64 * 1024,
        passes: 3,
        lanes: 1,
    };

    /// A file from elsewhere must not take the machine's memory or the day.
    const fn bearable(self) -> bool {
        self.memory_kib <= 1024 * 1024 && self.passes <= 16 && self.lanes <= 16
    }
}

/// What is wrong with a share.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShareError {
    /// It has no armour.
    #[error("it is no share: the line {BEGIN} is missing")]
    NoBegin,
    /// It ends too soon.
    #[error("it is cut off: the line {END} is missing")]
    NoEnd,
    /// A line has no name.
    #[error("line {line} is not NAME: VALUE")]
    Line {
        /// The line, counted from the first of the armour.
        line: usize,
    },
    /// Another line was expected.
    #[error("line {line} should be {expected}, and is {got:?}")]
    Order {
        /// The line.
        line: usize,
        /// The name that it should have.
        expected: &'static str,
        /// The name that it has.
        got: String,
    },
    /// A line is missing.
    #[error("the line {name} is missing")]
    Missing {
        /// Its name.
        name: &'static str,
    },
    /// The checksum is another.
    #[error(
        "it is damaged or was mistyped: its checksum is {got}, and its lines make {computed}; compare it line by line with the print"
    )]
    Checksum {
        /// The one in the file.
        got: String,
        /// The one of the lines.
        computed: String,
    },
    /// It is of another version.
    #[error("it is of version {got:?}, and this ekm reads version 1")]
    Version {
        /// The version.
        got: String,
    },
    /// A value does not read.
    #[error("{name} does not read: {reason}")]
    Value {
        /// The line's name.
        name: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// It asks for too much.
    #[error(
        "its KDF line asks for more than 1 GiB of memory, 16 passes or 16 lanes; no share of ekm does"
    )]
    Cost,
    /// It does not open.
    #[error("the passphrase is wrong for it")]
    Passphrase,
    /// The passphrase is too short.
    #[error("a passphrase has {SHORTEST} characters at least, got {got}")]
    Short {
        /// How many it has.
        got: usize,
    },
    /// Something that should not fail did.
    #[error("it cannot be sealed or opened: {0}")]
    Cryptography(&'static str),
}

impl Share {
    /// What it says in clear.
    #[must_use]
    pub const fn head(&self) -> &ShareHead {
        &self.head
    }

    /// Seals a point under a passphrase.
    ///
    /// # Errors
    /// The passphrase is too short, or the operating system gives no random numbers.
    pub fn seal(
        head: ShareHead,
        point: &Point,
        passphrase: &SecretString,
    ) -> Result<Self, ShareError> {
        check(passphrase)?;
        let mut share = Self {
            head,
            cost: Cost::OURS,
            salt: [0; 16],
            nonce: [0; NONCE_LEN],
            sealed: [0; 48],
        };
        for random in [&mut share.salt[..], &mut share.nonce[..]] {
            aws_lc_rs::rand::fill(random).map_err(|_| {
                ShareError::Cryptography("the operating system gives no random numbers")
            })?;
        }
        let mut sealed = Zeroizing::new(Vec::with_capacity(48));
        sealed.extend_from_slice(&*point.y);
        share
            .key(passphrase)?
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(share.nonce),
                Aad::from(share.authenticated()),
                &mut *sealed,
            )
            .map_err(|_| ShareError::Cryptography("AES-256-GCM failed"))?;
        share.sealed = sealed
            .as_slice()
            .try_into()
            .map_err(|_| ShareError::Cryptography("AES-256-GCM gave another length"))?;
        Ok(share)
    }

    /// Opens it.
    ///
    /// # Errors
    /// [`ShareError::Passphrase`]: it is another, or the share was changed and its checksum with it.
    pub fn open(&self, passphrase: &SecretString) -> Result<Point, ShareError> {
        let mut sealed = Zeroizing::new(self.sealed);
        let opened = self
            .key(passphrase)?
            .open_in_place(
                Nonce::assume_unique_for_key(self.nonce),
                Aad::from(self.authenticated()),
                &mut *sealed,
            )
            .map_err(|_| ShareError::Passphrase)?;
        let mut y = Zeroizing::new([0; 32]);
        for (to, from) in y.iter_mut().zip(&*opened) {
            *to = *from;
        }
        Ok(Point {
            x: self.head.number,
            y,
        })
    }

    /// As its holder gets it.
    #[must_use]
    pub fn to_text(&self) -> String {
        let body = self.body();
        let lines: String = body
            .iter()
            .map(|(name, value)| format!("{name}: {value}\n"))
            .collect();
        format!(
            "{BEGIN}\n{lines}Checksum: {}\n{END}\n",
            checksum(body.iter().map(|(name, value)| (*name, value.as_str())))
        )
    }

    /// Its checksum, by which holders and auditors can tell shares apart.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        checksum(
            self.body()
                .iter()
                .map(|(name, value)| (*name, value.as_str())),
        )
    }

    /// Reads what [`Share::to_text`] wrote, or what somebody typed from its print.
    ///
    /// # Errors
    /// What is wrong, by line.
    pub fn parse(text: &str) -> Result<Self, ShareError> {
        let values = Lines::read(text)?;
        let [
            version,
            ceremony,
            label,
            kek,
            number,
            needed,
            total,
            kdf,
            salt,
            nonce,
            a,
            b,
        ] = values.0;
        if version != "1" {
            return Err(ShareError::Version { got: version });
        }
        let value = |name, reason: String| ShareError::Value { name, reason };
        let small = |name, text: &str| {
            text.parse::<u8>()
                .map_err(|_| value(name, format!("{text:?} is no small number")))
        };
        let quorum = Quorum::new(small("Needed", &needed)?, small("Of", &total)?)
            .map_err(|error: SplitError| value("Needed", error.to_string()))?;
        let number = small("Share", &number)?;
        if number == 0 || number > quorum.total() {
            return Err(value(
                "Share",
                format!("there is no share {number} of {}", quorum.total()),
            ));
        }
        let mut sealed = [0; 48];
        let (first, second) = sealed.split_at_mut(24);
        bytes("Sealed-A", &a, first)?;
        bytes("Sealed-B", &b, second)?;
        let mut share = Self {
            head: ShareHead {
                ceremony: ceremony
                    .parse()
                    .map_err(|error: uuid::Error| value("Ceremony", error.to_string()))?,
                label: serde_json::from_str(&label)
                    .map_err(|error| value("KEK-Label", error.to_string()))?,
                kek: kek.parse().map_err(|error: crate::key::KekHashError| {
                    value("KEK-Hash", error.to_string())
                })?,
                number,
                quorum,
            },
            cost: cost(&kdf)?,
            salt: [0; 16],
            nonce: [0; NONCE_LEN],
            sealed,
        };
        bytes("Salt", &salt, &mut share.salt)?;
        bytes("Nonce", &nonce, &mut share.nonce)?;
        Ok(share)
    }

    fn body(&self) -> [(&'static str, String); NAMES.len()] {
        let Self {
            head:
                ShareHead {
                    ceremony,
                    label,
                    kek,
                    number,
                    quorum,
                },
            cost:
                Cost {
                    memory_kib,
                    passes,
                    lanes,
                },
            salt,
            nonce,
            sealed,
        } = self;
        let (a, b) = sealed.split_at(24);
        let values = [
            "1".to_owned(),
            ceremony.to_string(),
            serde_json::Value::from(label.as_str()).to_string(),
            kek.to_string(),
            number.to_string(),
            quorum.needed().to_string(),
            quorum.total().to_string(),
            format!("argon2id v=19 m={memory_kib} t={passes} p={lanes}"),
            hex::encode(salt),
            hex::encode(nonce),
            hex::encode(a),
            hex::encode(b),
        ];
        let mut names = NAMES.into_iter();
        values.map(|value| (names.next().unwrap_or_default(), value))
    }

    /// Everything but the sealed bytes: `NAME: VALUE` lines, as they stand in the file.
    fn authenticated(&self) -> Vec<u8> {
        self.body()
            .iter()
            .filter(|(name, _)| !name.starts_with("Sealed"))
            .flat_map(|(name, value)| format!("{name}: {value}\n").into_bytes())
            .collect()
    }

    fn key(&self, passphrase: &SecretString) -> Result<LessSafeKey, ShareError> {
        let failed = |_| ShareError::Cryptography("Argon2id failed; is there memory enough?");
        let Cost {
            memory_kib,
            passes,
            lanes,
        } = self.cost;
        let params = Params::new(memory_kib, passes, lanes, Some(32)).map_err(failed)?;
        let mut key = Zeroizing::new([0; 32]);
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into(passphrase.expose_secret().as_bytes(), &self.salt, &mut *key)
            .map_err(failed)?;
        UnboundKey::new(&AES_256_GCM, &*key)
            .map(LessSafeKey::new)
            .map_err(|_| ShareError::Cryptography("AES-256-GCM took no key"))
    }
}

/// Whether a passphrase is long enough.
///
/// # Errors
/// [`ShareError::Short`]
pub fn check(passphrase: &SecretString) -> Result<(), ShareError> {
    let got = passphrase.expose_secret().chars().count();
    if got < SHORTEST {
        return Err(ShareError::Short { got });
    }
    Ok(())
}

/// The lines of a share, in their order.
const NAMES: [&str; 12] = [
    "Version",
    "Ceremony",
    "KEK-Label",
    "KEK-Hash",
    "Share",
    "Needed",
    "Of",
    "KDF",
    "Salt",
    "Nonce",
    "Sealed-A",
    "Sealed-B",
];

/// The values of [`NAMES`].
struct Lines([String; NAMES.len()]);

impl Lines {
    fn read(text: &str) -> Result<Self, ShareError> {
        let mut lines = text
            .lines()
            .map(str::trim)
            .skip_while(|line| *line != BEGIN);
        if lines.next().is_none() {
            return Err(ShareError::NoBegin);
        }
        let mut found: Vec<(usize, &str, &str)> = Vec::new();
        let mut ended = false;
        for (number, line) in lines.enumerate() {
            if line == END {
                ended = true;
                break;
            }
            if line.is_empty() {
                continue;
            }
            let number = number + 2;
            let (name, value) = line
                .split_once(':')
                .ok_or(ShareError::Line { line: number })?;
            found.push((number, name.trim(), value.trim()));
        }
        if !ended {
            return Err(ShareError::NoEnd);
        }
        let mut values = <[String; NAMES.len()]>::default();
        let mut found = found.into_iter();
        for (to, name) in values.iter_mut().zip(NAMES) {
            *to = take(&mut found, name)?.to_owned();
        }
        let got = take(&mut found, "Checksum")?;
        if let Some((line, name, _)) = found.next() {
            return Err(ShareError::Order {
                line,
                expected: END,
                got: name.to_owned(),
            });
        }
        let computed = checksum(NAMES.into_iter().zip(values.iter().map(String::as_str)));
        if !got.eq_ignore_ascii_case(&computed) {
            return Err(ShareError::Checksum {
                got: got.to_owned(),
                computed,
            });
        }
        Ok(Self(values))
    }
}

fn take<'a>(
    found: &mut impl Iterator<Item = (usize, &'a str, &'a str)>,
    expected: &'static str,
) -> Result<&'a str, ShareError> {
    let (line, name, value) = found.next().ok_or(ShareError::Missing { name: expected })?;
    if name != expected {
        return Err(ShareError::Order {
            line,
            expected,
            got: name.to_owned(),
        });
    }
    Ok(value)
}

/// The first four bytes of the SHA-256 of the lines.
fn checksum<'a>(lines: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut hash = Sha256::new();
    for (name, value) in lines {
        hash.update(format!("{name}: {value}\n").as_bytes());
    }
    let digest = hash.finalize();
    hex::encode(digest.get(..4).unwrap_or_default())
}

fn bytes(name: &'static str, text: &str, to: &mut [u8]) -> Result<(), ShareError> {
    let digits: String = text.chars().filter(|c| !c.is_whitespace()).collect();
    hex::decode_to_slice(&digits, to).map_err(|error| ShareError::Value {
        name,
        reason: format!("expected {} hexadecimal digits: {error}", to.len() * 2),
    })
}

fn cost(text: &str) -> Result<Cost, ShareError> {
    let wrong = || ShareError::Value {
        name: "KDF",
        reason: format!("expected argon2id v=19 m=KIB t=PASSES p=LANES, got {text:?}"),
    };
    let words: Vec<&str> = text.split_whitespace().collect();
    let ["argon2id", "v=19", memory, passes, lanes] = words.as_slice() else {
        return Err(wrong());
    };
    let number = |word: &str, name: &str| {
        word.strip_prefix(name)
            .and_then(|number| number.parse().ok())
            .ok_or_else(wrong)
    };
    let cost = Cost {
        memory_kib: number(memory, "m=")?,
        passes: number(passes, "t=")?,
        lanes: number(lanes, "p=")?,
    };
    if cost.bearable() {
        Ok(cost)
    } else {
        Err(ShareError::Cost)
    }
}

#[cfg(test)]
mod tests;
