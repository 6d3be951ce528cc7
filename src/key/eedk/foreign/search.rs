//! Trying private keys on the places of a blob.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use aws_lc_rs::rsa::{
    OAEP_SHA1_MGF1SHA1, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey,
    Pkcs1PrivateDecryptingKey, PrivateDecryptingKey,
};
use serde::{Serialize, Serializer};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::{ByteOrder, Candidate, ForeignLayout, MAX_BLOB};

/// Most work of one probe, in private-key operations of RSA-2048: some minutes. One of RSA-3072 counts
/// as 3.4 of them, one of RSA-4096 as 8.
pub const MAX_WORK: u64 = 1_000_000;

/// Largest chance that a PKCS#1 v1.5 find is none, for it to count as one.
const CHANCE: f64 = 1e-3;

/// Lengths of a data key, bytes.
const KEY_LENGTHS: [usize; 3] = [16, 24, 32];

/// Random ciphertexts that are tried to see whether PKCS#1 v1.5 is rejected implicitly.
const TRIALS: usize = 32;

/// How a wrapped key may be padded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Padding {
    /// RSAES-OAEP with SHA-1 and this label.
    OaepSha1(Vec<u8>),
    /// RSAES-OAEP with SHA-256 and this label.
    OaepSha256(Vec<u8>),
    /// RSAES-PKCS1-v1_5.
    Pkcs1,
}

impl fmt::Display for Padding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (hash, label) = match self {
            Self::OaepSha1(label) => ("SHA-1", label),
            Self::OaepSha256(label) => ("SHA-256", label),
            Self::Pkcs1 => return f.write_str("PKCS#1 v1.5"),
        };
        write!(f, "OAEP {hash}")?;
        if label.is_empty() {
            Ok(())
        } else {
            write!(f, ", label {}", hex::encode(label))
        }
    }
}

impl Serialize for Padding {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What opens a wrapped key.
pub trait Opener: Sync {
    /// The length of its modulus, bytes.
    fn modulus(&self) -> usize;
    /// Opens a ciphertext of that length.
    fn open(&self, padding: &Padding, ciphertext: &[u8]) -> Option<Zeroizing<Vec<u8>>>;
}

/// An RSA private key that is tried; in constant time, by aws-lc-rs.
pub struct ProbeKey {
    oaep: OaepPrivateDecryptingKey,
    pkcs1: Pkcs1PrivateDecryptingKey,
}

impl fmt::Debug for ProbeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProbeKey").finish_non_exhaustive()
    }
}

impl ProbeKey {
    /// From PrivateKeyInfo DER; none where aws-lc-rs refuses the key.
    #[must_use]
    pub fn from_pkcs8(pkcs8: &[u8]) -> Option<Self> {
        let key = PrivateDecryptingKey::from_pkcs8(pkcs8).ok()?;
        Some(Self {
            oaep: OaepPrivateDecryptingKey::new(key.clone()).ok()?,
            pkcs1: Pkcs1PrivateDecryptingKey::new(key).ok()?,
        })
    }
}

impl Opener for ProbeKey {
    fn modulus(&self) -> usize {
        self.oaep.key_size_bytes()
    }

    fn open(&self, padding: &Padding, ciphertext: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let mut room = Zeroizing::new(vec![0; self.modulus()]);
        let opened = match padding {
            Padding::OaepSha1(label) => {
                self.oaep
                    .decrypt(&OAEP_SHA1_MGF1SHA1, ciphertext, &mut room, given(label))
            }
            Padding::OaepSha256(label) => {
                self.oaep
                    .decrypt(&OAEP_SHA256_MGF1SHA256, ciphertext, &mut room, given(label))
            }
            Padding::Pkcs1 => self.pkcs1.decrypt(ciphertext, &mut room),
        };
        opened.ok().map(|opened| Zeroizing::new(opened.to_vec()))
    }
}

fn given(label: &[u8]) -> Option<&[u8]> {
    (!label.is_empty()).then_some(label)
}

/// How sure a find is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Certainty {
    /// OAEP's own check, or the same content in two places.
    Certain,
    /// PKCS#1 v1.5, a data key's length, and few enough places tried that it is hardly chance.
    Likely,
    /// PKCS#1 v1.5 and a data key's length, but so many places were tried that it may be chance.
    Chance,
}

impl fmt::Display for Certainty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Certain => "certain",
            Self::Likely => "likely",
            Self::Chance => "may be chance",
        })
    }
}

/// A wrapped key that opens. Nothing of its content is kept but a fingerprint.
#[derive(Clone, Debug, Serialize)]
pub struct Find {
    /// The layout by which it was found.
    pub layout: &'static str,
    /// Its first byte, counted from 0.
    pub offset: usize,
    /// The order of its bytes.
    pub order: ByteOrder,
    /// Which of the keys opens it, by its place among them.
    #[serde(skip)]
    pub key: usize,
    /// How it is padded.
    pub padding: Padding,
    /// Bytes that came out.
    pub length: usize,
    /// The first eight bytes of the content's SHA-256, in hexadecimal.
    pub fingerprint: String,
    /// How sure it is.
    pub certainty: Certainty,
    #[serde(skip)]
    digest: [u8; 32],
}

/// What a probe found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// What opens, by offset.
    pub finds: Vec<Find>,
    /// Places and paddings that were tried.
    pub attempts: u64,
    /// The keys for which PKCS#1 v1.5 tells nothing, as it is rejected implicitly.
    pub implicit: Vec<usize>,
    /// How many of the finds by PKCS#1 v1.5 are to be expected by chance.
    pub chance: f64,
}

/// Why a blob is not probed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// The blob.
    #[error(
        "the blob has {got} bytes, and at most {MAX_BLOB} are probed; cut out what may hold the wrapped key"
    )]
    TooLong {
        /// Its length, bytes.
        got: usize,
    },
    /// The blob.
    #[error(
        "the blob has {got} bytes, fewer than a key wrapped under the smallest of the keys ({modulus} bytes)"
    )]
    TooShort {
        /// Its length, bytes.
        got: usize,
        /// The smallest modulus, bytes.
        modulus: usize,
    },
    /// There are too many ways.
    #[error(
        "it would take {work} private-key operations, and at most {MAX_WORK} are made; narrow it with --offset FROM-TO or --alias ALIAS"
    )]
    TooMuch {
        /// Operations, in those of RSA-2048.
        work: u64,
    },
}

/// One place to try with one key.
struct Job<'a> {
    key: usize,
    opener: &'a dyn Opener,
    layout: &'static str,
    candidate: Candidate,
}

/// Tries the keys on a blob, at offsets of that range, with OAEP under no label and under each of `labels`,
/// and with PKCS#1 v1.5. `begun` is told how many places there are, `progress` each that was tried.
///
/// # Errors
/// The blob has no fitting length, or there is too much to try.
pub fn probe(
    blob: &[u8],
    layouts: &[&'static dyn ForeignLayout],
    openers: &[&dyn Opener],
    labels: &[Vec<u8>],
    offsets: &std::ops::RangeInclusive<usize>,
    begun: impl FnOnce(u64),
    progress: &(dyn Fn() + Sync),
) -> Result<Report, ProbeError> {
    if blob.len() > MAX_BLOB {
        return Err(ProbeError::TooLong { got: blob.len() });
    }
    let smallest = openers.iter().map(|opener| opener.modulus()).min();
    if let Some(modulus) = smallest.filter(|modulus| *modulus > blob.len()) {
        return Err(ProbeError::TooShort {
            got: blob.len(),
            modulus,
        });
    }
    let mut oaep = vec![
        Padding::OaepSha256(Vec::new()),
        Padding::OaepSha1(Vec::new()),
    ];
    for label in labels {
        oaep.push(Padding::OaepSha256(label.clone()));
        oaep.push(Padding::OaepSha1(label.clone()));
    }
    let mut jobs = Vec::new();
    let mut work = 0_u64;
    for (key, opener) in openers.iter().enumerate() {
        let modulus = opener.modulus();
        let each = weight(modulus) * (1 + to_u64(oaep.len()));
        for layout in layouts {
            for candidate in layout.candidates(blob, modulus) {
                if offsets.contains(&candidate.offset) {
                    work += each;
                    jobs.push(Job {
                        key,
                        opener: *opener,
                        layout: layout.name(),
                        candidate,
                    });
                }
            }
        }
    }
    let work = work / 10;
    if work > MAX_WORK {
        return Err(ProbeError::TooMuch { work });
    }
    begun(to_u64(jobs.len()));
    let implicit: Vec<usize> = openers
        .iter()
        .enumerate()
        .filter(|(_, opener)| rejects_implicitly(**opener))
        .map(|(key, _)| key)
        .collect();

    let next = AtomicUsize::new(0);
    let found = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let finds = job.run(blob, &oaep, !implicit.contains(&job.key));
                    if !finds.is_empty() {
                        let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
                        found.extend(finds);
                    }
                    progress();
                }
            });
        }
    });
    let finds = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    let chance = jobs
        .iter()
        .filter(|job| !implicit.contains(&job.key))
        .map(|job| luck(job.opener.modulus()))
        .sum();
    Ok(Report {
        finds: judged(finds, chance),
        attempts: to_u64(jobs.len()) * (1 + to_u64(oaep.len())),
        implicit,
        chance,
    })
}

impl Job<'_> {
    fn run(&self, blob: &[u8], oaep: &[Padding], pkcs1: bool) -> Vec<Find> {
        let Candidate { offset, order } = self.candidate;
        let end = offset.saturating_add(self.opener.modulus());
        let Some(ciphertext) = blob.get(offset..end) else {
            return Vec::new();
        };
        let mut ciphertext = ciphertext.to_vec();
        if order == ByteOrder::Little {
            ciphertext.reverse();
        }
        let ways = oaep.iter().chain(pkcs1.then_some(&Padding::Pkcs1));
        ways.filter_map(|padding| {
            let content = self.opener.open(padding, &ciphertext)?;
            let fits = *padding != Padding::Pkcs1 || KEY_LENGTHS.contains(&content.len());
            fits.then(|| {
                let digest: [u8; 32] = Sha256::digest(&*content).into();
                Find {
                    layout: self.layout,
                    offset,
                    order,
                    key: self.key,
                    padding: padding.clone(),
                    length: content.len(),
                    fingerprint: hex::encode(digest).chars().take(16).collect(),
                    certainty: Certainty::Chance,
                    digest,
                }
            })
        })
        .collect()
    }
}

/// How sure each is, once all are known.
fn judged(mut finds: Vec<Find>, chance: f64) -> Vec<Find> {
    let digests: Vec<[u8; 32]> = finds.iter().map(|find| find.digest).collect();
    for find in &mut finds {
        let again = digests
            .iter()
            .filter(|digest| **digest == find.digest)
            .count()
            > 1;
        find.certainty = if find.padding != Padding::Pkcs1 || again {
            Certainty::Certain
        } else if chance <= CHANCE {
            Certainty::Likely
        } else {
            Certainty::Chance
        };
    }
    finds.sort_by_key(|find| (find.offset, find.key));
    finds
}

/// The chance that random bytes look like PKCS#1 v1.5 around a data key: `00 02`, no zero, then a zero
/// just before the last 16, 24 or 32 bytes.
fn luck(modulus: usize) -> f64 {
    KEY_LENGTHS
        .iter()
        .map(|length| {
            let padding = modulus.saturating_sub(3 + length);
            let exponent = i32::try_from(padding).unwrap_or(i32::MAX);
            (255.0_f64 / 256.0).powi(exponent) / 256.0_f64.powi(3)
        })
        .sum()
}

/// Whether wrong padding gives random content in place of an error: then a success says nothing.
fn rejects_implicitly(opener: &dyn Opener) -> bool {
    let mut succeeded = 0;
    for _ in 0..TRIALS {
        let mut ciphertext = vec![0; opener.modulus()];
        // Without random numbers nothing is known, and v1.5 is not relied on.
        if aws_lc_rs::rand::fill(&mut ciphertext).is_err() {
            return true;
        }
        // Below any modulus.
        if let Some(first) = ciphertext.first_mut() {
            *first = 0;
        }
        succeeded += usize::from(opener.open(&Padding::Pkcs1, &ciphertext).is_some());
    }
    succeeded > 1
}

/// What an operation costs, in tenths of one of RSA-2048.
const fn weight(modulus: usize) -> u64 {
    match modulus {
        0..=256 => 10,
        257..=384 => 34,
        385..=512 => 80,
        _ => 640,
    }
}

fn to_u64(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}
