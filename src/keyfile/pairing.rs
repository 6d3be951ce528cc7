//! Which certificate belongs to which key, where a file has them side by side.
//!
//! A certificate belongs to the key that it has the public half of. PKCS#12's localKeyID says the
//! same, and only decides where it must: between several certificates of one key, and for a key
//! that cannot be read.

use std::collections::{HashMap, HashSet};

use time::OffsetDateTime;

use super::certificate::Certificate;
use super::private_key::{PrivateKey, Unused};
use super::unlock::unused;
use super::{Content, Entry};

/// The longest chain that is followed.
const MAX_CHAIN: usize = 8;

/// A key as it lies in the file.
pub(super) struct LooseKey {
    pub(super) alias: Option<String>,
    pub(super) id: Option<Vec<u8>>,
    pub(super) created: Option<OffsetDateTime>,
    /// The key, or why it is not used.
    pub(super) key: Result<PrivateKey, Unused>,
}

/// A certificate as it lies in the file.
pub(super) struct LooseCertificate {
    pub(super) alias: Option<String>,
    pub(super) id: Option<Vec<u8>>,
    /// Java marks those that are entries of their own.
    pub(super) trusted: bool,
    pub(super) der: Vec<u8>,
}

/// The entries: keys with their chains, then the certificates that are in no chain.
pub(super) fn pair(keys: Vec<LooseKey>, certificates: Vec<LooseCertificate>) -> Vec<Entry> {
    let parsed: Vec<Option<Certificate>> = certificates
        .iter()
        .map(|certificate| Certificate::parse(&certificate.der))
        .collect();
    let shelf = Shelf::new(&certificates, &parsed);
    let mut used = HashSet::new();
    let mut entries = Vec::new();
    for (number, key) in (1..).zip(keys) {
        let chain = shelf.chain(&key);
        used.extend(chain.iter().copied());
        let own = chain.first().copied();
        let alias = key
            .alias
            .or_else(|| certificates.get(own?)?.alias.clone())
            .or_else(|| shelf.common_name(own?))
            .unwrap_or_else(|| format!("key{number}"));
        let content = match key.key {
            Ok(key) => Content::Pair {
                key,
                chain: chain
                    .iter()
                    .filter_map(|place| certificates.get(*place))
                    .map(|certificate| certificate.der.clone())
                    .collect(),
            },
            Err(reason) => unused(reason),
        };
        entries.push(Entry {
            alias,
            created: key.created,
            content,
        });
    }
    for (place, certificate) in certificates.iter().enumerate() {
        if used.contains(&place) && !certificate.trusted {
            continue;
        }
        let alias = certificate
            .alias
            .clone()
            .or_else(|| shelf.common_name(place))
            .unwrap_or_else(|| format!("certificate{}", place + 1));
        let content = match parsed.get(place) {
            Some(Some(_)) => Content::Certificate(certificate.der.clone()),
            _ => unused(
                "it is no X.509 certificate, or one of more than 16 KiB; the file is damaged",
            ),
        };
        entries.push(Entry {
            alias,
            created: None,
            content,
        });
    }
    entries
}

/// Certificates, found by what they say.
struct Shelf<'a> {
    parsed: &'a [Option<Certificate>],
    by_key: HashMap<&'a [u8], Vec<usize>>,
    by_subject: HashMap<&'a [u8], usize>,
    by_id: HashMap<&'a [u8], usize>,
}

impl<'a> Shelf<'a> {
    fn new(certificates: &'a [LooseCertificate], parsed: &'a [Option<Certificate>]) -> Self {
        let mut shelf = Self {
            parsed,
            by_key: HashMap::new(),
            by_subject: HashMap::new(),
            by_id: HashMap::new(),
        };
        for (place, (loose, parsed)) in certificates.iter().zip(parsed).enumerate() {
            let Some(parsed) = parsed else { continue };
            shelf
                .by_key
                .entry(&parsed.public_key)
                .or_default()
                .push(place);
            shelf.by_subject.entry(&parsed.subject_der).or_insert(place);
            if let Some(id) = &loose.id {
                shelf.by_id.entry(id).or_insert(place);
            }
        }
        shelf
    }

    /// The places of the key's own certificate, its issuer's, and so on.
    fn chain(&self, key: &LooseKey) -> Vec<usize> {
        let same_id = key.id.as_deref().and_then(|id| self.by_id.get(id)).copied();
        let own = match &key.key {
            Ok(private) => self.by_key.get(private.public()).and_then(|places| {
                let named = places.iter().find(|place| Some(**place) == same_id);
                named.or_else(|| places.first()).copied()
            }),
            Err(_) => same_id,
        };
        let mut chain: Vec<usize> = own.into_iter().collect();
        while let Some(last) = chain.last()
            && chain.len() < MAX_CHAIN
            && let Some(Some(certificate)) = self.parsed.get(*last)
            && let Some(issuer) = self.by_subject.get(certificate.issuer_der.as_slice())
            && !chain.contains(issuer)
        {
            chain.push(*issuer);
        }
        chain
    }

    fn common_name(&self, place: usize) -> Option<String> {
        self.parsed.get(place)?.as_ref()?.common_name.clone()
    }
}
