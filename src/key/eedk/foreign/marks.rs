//! What in a blob names a key: hashes of its public half, its modulus, its label.

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};
use der::asn1::UintRef;
use der::{Decode as _, Sequence};
use serde::Serialize;
use spki::SubjectPublicKeyInfoRef;

use super::ebcdic;

/// Most places that are told.
const MOST: usize = 200;

/// Shortest label that is looked for; shorter ones are everywhere.
const SHORTEST: usize = 4;

/// A place in a blob that names a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mark {
    /// Its first byte, counted from 0.
    pub offset: usize,
    /// The key's alias.
    pub alias: String,
    /// What of the key stands there.
    pub what: &'static str,
}

/// RSAPublicKey (RFC 8017, appendix A.1.1)
#[derive(Sequence)]
struct RsaPublicKey<'a> {
    modulus: UintRef<'a>,
    exponent: UintRef<'a>,
}

/// Finds what names a key: by alias, `SubjectPublicKeyInfo` DER, and certificate DER where there is one.
#[must_use]
pub fn marks(blob: &[u8], alias: &str, spki: &[u8], certificate: Option<&[u8]>) -> Vec<Mark> {
    let mut needles: Vec<(&'static str, Vec<u8>)> = Vec::new();
    let sha1 = |bytes: &[u8]| digest(&SHA1_FOR_LEGACY_USE_ONLY, bytes).as_ref().to_vec();
    let sha256 = |bytes: &[u8]| digest(&SHA256, bytes).as_ref().to_vec();
    needles.push(("SHA-256 of its SubjectPublicKeyInfo", sha256(spki)));
    needles.push(("SHA-1 of its SubjectPublicKeyInfo", sha1(spki)));
    if let Ok(info) = SubjectPublicKeyInfoRef::try_from(spki) {
        let key = info.subject_public_key.raw_bytes();
        // RFC 5280, section 4.2.1.2, method 1
        needles.push(("its subject key identifier (SHA-1 of the key)", sha1(key)));
        needles.push(("SHA-256 of the key", sha256(key)));
        if let Ok(RsaPublicKey { modulus, .. }) = RsaPublicKey::from_der(key) {
            let modulus = modulus.as_bytes();
            needles.push(("its modulus", modulus.to_vec()));
            needles.push((
                "its modulus, reversed",
                modulus.iter().rev().copied().collect(),
            ));
            needles.push(("SHA-1 of its modulus", sha1(modulus)));
            needles.push(("SHA-256 of its modulus", sha256(modulus)));
        }
    }
    if let Some(certificate) = certificate {
        needles.push(("SHA-1 of its certificate", sha1(certificate)));
        needles.push(("SHA-256 of its certificate", sha256(certificate)));
        needles.extend(
            identifier(certificate).map(|id| ("its certificate's subject key identifier", id)),
        );
    }
    let label = alias.trim_end_matches(' ');
    if label.len() >= SHORTEST {
        for case in [label.to_owned(), label.to_lowercase(), label.to_uppercase()] {
            let wide = case.encode_utf16().flat_map(u16::to_be_bytes).collect();
            needles.push(("its label in UTF-16", wide));
            for page in ebcdic::encode(&case).into_iter().flatten() {
                needles.push(("its label in EBCDIC", page));
            }
            needles.push(("its label", case.into_bytes()));
        }
    }
    let mut found: Vec<Mark> = Vec::new();
    for (what, needle) in needles {
        for offset in places(blob, &needle) {
            let mark = Mark {
                offset,
                alias: alias.to_owned(),
                what,
            };
            if found.len() < MOST && !found.contains(&mark) {
                found.push(mark);
            }
        }
    }
    found.sort_by_key(|mark| mark.offset);
    found
}

fn identifier(certificate: &[u8]) -> Option<Vec<u8>> {
    use x509_parser::extensions::ParsedExtension;
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    certificate
        .extensions()
        .iter()
        .find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(identifier) => Some(identifier.0.to_vec()),
            _ => None,
        })
}

fn places<'a>(blob: &'a [u8], needle: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    blob.windows(needle.len().max(1))
        .enumerate()
        .filter(move |(_, window)| *window == needle)
        .map(|(offset, _)| offset)
        .take(MOST)
}
