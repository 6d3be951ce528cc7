//! Files of keytool (OpenJDK 17) and OpenSSL 3.0, all with one RSA-2048 key `tape-2026`, and what
//! becomes of them when they are damaged. The iteration counts are low, so that every damage can
//! be tried.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use secrecy::SecretString;

use super::*;

const JCEKS: &[u8] = include_bytes!("../../integration/golden/keyfile/site.jceks");
const JKS: &[u8] = include_bytes!("../../integration/golden/keyfile/site.jks");
const JAVA_P12: &[u8] = include_bytes!("../../integration/golden/keyfile/java.p12");
const LEGACY_P12: &[u8] = include_bytes!("../../integration/golden/keyfile/legacy.p12");
const MODERN_P12: &[u8] = include_bytes!("../../integration/golden/keyfile/modern.p12");
const BAGS_PEM: &[u8] = include_bytes!("../../integration/golden/keyfile/bags.pem");
const PKCS1_PEM: &[u8] = include_bytes!("../../integration/golden/keyfile/pkcs1.pem");
const SEALED_PEM: &[u8] = include_bytes!("../../integration/golden/keyfile/sealed.pem");
const DEK_PEM: &[u8] = include_bytes!("../../integration/golden/keyfile/dek.pem");

const ALL: [(&str, &[u8]); 9] = [
    ("site.jceks", JCEKS),
    ("site.jks", JKS),
    ("java.p12", JAVA_P12),
    ("legacy.p12", LEGACY_P12),
    ("modern.p12", MODERN_P12),
    ("bags.pem", BAGS_PEM),
    ("pkcs1.pem", PKCS1_PEM),
    ("sealed.pem", SEALED_PEM),
    ("dek.pem", DEK_PEM),
];

fn passwords(store: &str, key: Option<&str>) -> Passwords {
    Passwords {
        store: SecretString::from(store),
        key: key.map(SecretString::from),
    }
}

fn right() -> Passwords {
    passwords("store-password", Some("key-password"))
}

fn entry<'a>(file: &'a KeyFile, alias: &str) -> &'a Content {
    let entry = file.entries.iter().find(|entry| entry.alias == alias);
    &entry
        .unwrap_or_else(|| panic!("no {alias} in {file:?}"))
        .content
}

fn key<'a>(file: &'a KeyFile, alias: &str) -> (&'a PrivateKey, &'a [Vec<u8>]) {
    match entry(file, alias) {
        Content::Pair { key, chain } => (key, chain),
        other => panic!("{alias} is {other:?}"),
    }
}

fn reason<'a>(file: &'a KeyFile, alias: &str) -> &'a str {
    match entry(file, alias) {
        Content::Unreadable { reason } | Content::Unfit { reason, .. } => reason,
        other => panic!("{alias} is {other:?}"),
    }
}

fn failure(bytes: &[u8], passwords: &Passwords) -> String {
    read(bytes, passwords).unwrap_err().to_string()
}

/// The one key of all the files.
fn hash() -> crate::key::KekHash {
    let file = read(PKCS1_PEM, &passwords("", None)).unwrap();
    key(&file, "key1").0.hash()
}

#[test]
fn every_format_gives_the_same_key_and_its_certificate() {
    for (name, bytes, format) in [
        ("site.jceks", JCEKS, Format::Jceks),
        ("site.jks", JKS, Format::Jks),
        ("java.p12", JAVA_P12, Format::Pkcs12),
        ("legacy.p12", LEGACY_P12, Format::Pkcs12),
        ("modern.p12", MODERN_P12, Format::Pkcs12),
        ("bags.pem", BAGS_PEM, Format::Pem),
        ("sealed.pem", SEALED_PEM, Format::Pem),
    ] {
        let file = read(bytes, &right()).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(file.format, format, "{name}");
        let alias = if name == "sealed.pem" {
            "Tape KEK 2026"
        } else {
            "tape-2026"
        };
        let (key, chain) = key(&file, alias);
        assert_eq!((key.bits(), key.hash()), (2048, hash()), "{name}");
        let [own] = chain else {
            panic!("{name}: {} certificates", chain.len());
        };
        let certificate = Certificate::parse(own).unwrap();
        assert_eq!(certificate.public_key, key.public(), "{name}");
        let taken = aws_lc_rs::rsa::PrivateDecryptingKey::from_pkcs8(key.pkcs8());
        assert!(taken.is_ok(), "{name}");
    }
}

#[test]
fn jceks_lists_secret_keys_and_certificates() {
    let file = read(JCEKS, &right()).unwrap();
    assert_eq!(file.entries.len(), 3);
    assert!(file.entries.iter().all(|entry| entry.created.is_some()));
    assert!(matches!(entry(&file, "partner"), Content::Certificate(_)));
    match entry(&file, "lto001") {
        Content::Secret { algorithm, bits } => {
            assert_eq!((algorithm.as_str(), *bits), ("AES", Some(256)));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_key_with_a_password_of_its_own_leaves_the_others_usable() {
    for bytes in [JCEKS, JKS] {
        let file = read(bytes, &passwords("store-password", None)).unwrap();
        assert!(reason(&file, "tape-2026").contains("--key-password-file"));
        let file = read(bytes, &passwords("store-password", Some("other"))).unwrap();
        assert!(reason(&file, "tape-2026").contains("neither the key password"));
    }
    let file = read(JCEKS, &passwords("store-password", None)).unwrap();
    assert!(matches!(entry(&file, "partner"), Content::Certificate(_)));
    match entry(&file, "lto001") {
        Content::Secret { algorithm, bits } => {
            assert!(algorithm.contains("no password opens it"), "{algorithm}");
            assert_eq!(*bits, None);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_wrong_password_is_called_so() {
    for (name, bytes) in ALL {
        if ["bags.pem", "pkcs1.pem", "dek.pem"].contains(&name) {
            continue;
        }
        let text = failure(bytes, &passwords("wrong", None));
        assert!(text.contains("wrong"), "{name}: {text}");
        assert!(!text.contains("store-password"), "{name}: {text}");
    }
}

#[test]
fn a_changed_file_whose_password_is_right_is_called_damaged() {
    let key = passwords("key-password", None);
    let text = failure(JKS, &key);
    assert!(
        text.contains("the password opens the key \"tape-2026\""),
        "{text}"
    );
    for bytes in [LEGACY_P12, MODERN_P12] {
        let mut changed = bytes.to_vec();
        // In the MAC's salt, the last bytes but for the iteration count.
        let at = changed.len() - 5;
        changed[at] ^= 1;
        let text = failure(&changed, &right());
        assert!(text.contains("its MAC is wrong"), "{text}");
    }
}

#[test]
fn pem_is_read_in_all_its_forms() {
    let none = passwords("", None);
    assert!(!needs_password(BAGS_PEM));
    assert!(!needs_password(PKCS1_PEM));
    assert!(needs_password(SEALED_PEM));
    let file = read(PKCS1_PEM, &none).unwrap();
    assert!(key(&file, "key1").1.is_empty());
    let file = read(DEK_PEM, &none).unwrap();
    assert!(reason(&file, "key1").contains("openssl pkcs8 -topk8"));
    let both = [BAGS_PEM, PKCS1_PEM].concat();
    let file = read(&both, &none).unwrap();
    assert_eq!(file.entries.len(), 2);
}

#[test]
fn pkcs12_in_base64_is_read_whatever_it_is_called() {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(LEGACY_P12);
    for label in ["CERTIFICATE", "PKCS12"] {
        let pem = format!("-----BEGIN {label}-----\r\n{text}\r\n-----END {label}-----\r\n");
        assert!(needs_password(pem.as_bytes()));
        let file = read(pem.as_bytes(), &right()).unwrap();
        assert_eq!(file.format, Format::Pkcs12);
        assert_eq!(key(&file, "tape-2026").0.hash(), hash());
    }
}

/// The same as BER: no length is told, and octet strings are in pieces of 100 bytes.
fn to_ber(der: &[u8]) -> Vec<u8> {
    let mut ber = Vec::new();
    let mut rest = ber::Ber::new(der);
    while !rest.is_empty() {
        let element = rest.any().unwrap();
        let pieces = |tag: u8| {
            let mut out = vec![tag | 0x20, 0x80];
            for piece in element.content.chunks(100) {
                out.extend([ber::OCTETS, u8::try_from(piece.len()).unwrap()]);
                out.extend(piece);
            }
            out
        };
        let mut out = match element.tag {
            constructed if constructed & 0x20 != 0 => {
                let mut out = vec![constructed, 0x80];
                out.extend(to_ber(element.content));
                out
            }
            // [0] IMPLICIT OCTET STRING of EncryptedContentInfo.
            tag @ (ber::OCTETS | 0x80) if element.content.len() > 40 => pieces(tag),
            tag => {
                ber.extend([tag, u8::try_from(element.content.len()).unwrap()]);
                ber.extend(element.content);
                continue;
            }
        };
        out.extend([0, 0]);
        ber.append(&mut out);
    }
    ber
}

#[test]
fn pkcs12_in_ber_is_read_as_racf_writes_it() {
    for der in [LEGACY_P12, MODERN_P12, JAVA_P12] {
        let ber = to_ber(der);
        assert_ne!(ber, der);
        assert_eq!(Format::of(&ber), Some(Format::Pkcs12));
        let mut padded = ber;
        padded.extend([0; 77]);
        let file = read(&padded, &right()).unwrap();
        let (key, chain) = key(&file, "tape-2026");
        assert_eq!((key.hash(), chain.len()), (hash(), 1));
    }
}

#[test]
fn a_file_of_another_kind_is_told_what_it_may_be() {
    let none = passwords("", None);
    for (bytes, hint) in [
        (&b""[..], "it is empty"),
        (&[0x30, 0x82, 1, 1, 0x30], "DER"),
        (
            &[
                0x60, 0x60, 0x60, 0x60, 0x60, 0xc2, 0xc5, 0xc7, 0xc9, 0xd5, 0x40,
            ],
            "EBCDIC",
        ),
        (b"hello", "PKCS#12"),
    ] {
        let text = failure(bytes, &none);
        assert!(text.contains(hint), "{text}");
    }
}

/// A store with one entry, its hash right.
fn jks(magic: [u8; 4], count: u32, entry: &[u8]) -> Vec<u8> {
    let mut body = magic.to_vec();
    body.extend(2_u32.to_be_bytes());
    body.extend(count.to_be_bytes());
    body.extend(entry);
    let password: Vec<u8> = "store-password"
        .encode_utf16()
        .flat_map(u16::to_be_bytes)
        .collect();
    let hashed = [&password[..], b"Mighty Aphrodite", &body].concat();
    let sha1 = &aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY;
    body.extend(aws_lc_rs::digest::digest(sha1, &hashed).as_ref());
    body
}

fn jks_entry(tag: u32, alias: &[u8]) -> Vec<u8> {
    let mut entry = tag.to_be_bytes().to_vec();
    entry.extend(u16::try_from(alias.len()).unwrap().to_be_bytes());
    entry.extend(alias);
    entry.extend([0; 8]);
    entry
}

#[test]
fn malformed_java_stores_are_called_damaged() {
    let key = |rest: &[u8]| [&jks_entry(1, b"k"), rest].concat();
    for (defect, count, entry, wanted) in [
        (
            "more entries than there are",
            u32::MAX,
            vec![],
            "entry 1 of 4294967295",
        ),
        (
            "more after the last",
            0,
            vec![1],
            "more after its 0 entries",
        ),
        ("a tag that is none", 1, jks_entry(7, b"k"), "entry 1 of 1"),
        (
            "an alias that is no UTF-8",
            1,
            jks_entry(2, &[0xff]),
            "entry 1 of 1",
        ),
        ("a secret key in JKS", 1, jks_entry(3, b"k"), "entry 1 of 1"),
        ("a key of 4 GiB", 1, key(&[0xff; 4]), "entry 1 of 1"),
        (
            "a chain of 4 billion",
            1,
            key(&[0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]),
            "entry 1 of 1",
        ),
    ] {
        let text = failure(&jks(jks::MAGIC_JKS, count, &entry), &right());
        assert!(text.contains("damaged"), "{defect}: {text}");
        assert!(text.contains(wanted), "{defect}: {text}");
    }
}

#[test]
fn a_jceks_key_of_two_billion_iterations_costs_nothing() {
    let sealed = sealed(
        &[0x2b, 6, 1, 4, 1, 0x2a, 2, 0x13, 1],
        &[2, 5, 0, 0x80, 0, 0, 0],
    );
    let mut entry = jks_entry(1, b"k");
    entry.extend(u32::try_from(sealed.len()).unwrap().to_be_bytes());
    entry.extend(&sealed);
    entry.extend([0; 4]);
    let start = Instant::now();
    let file = read(&jks(jks::MAGIC_JCEKS, 1, &entry), &right()).unwrap();
    assert!(
        reason(&file, "k").contains("2147483648 iterations"),
        "{file:?}"
    );
    assert!(start.elapsed() < Duration::from_secs(30));
}

/// EncryptedPrivateKeyInfo with that algorithm and iteration count, and nothing sensible in it.
fn sealed(oid: &[u8], iterations: &[u8]) -> Vec<u8> {
    fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
        [&[tag, u8::try_from(content.len()).unwrap()], content].concat()
    }
    let parameters = tlv(0x30, &[&tlv(4, &[7; 8]), iterations].concat());
    let algorithm = tlv(0x30, &[tlv(6, oid), parameters].concat());
    tlv(0x30, &[algorithm, tlv(4, &[9; 32])].concat())
}

#[test]
fn a_store_of_too_many_entries_is_refused() {
    let certificate = [&jks_entry(2, b"k")[..], &[0; 6]].concat();
    let text = failure(
        &jks(jks::MAGIC_JKS, u32::MAX, &certificate.repeat(MAX_ITEMS + 1)),
        &right(),
    );
    assert!(text.contains("more than 20000"), "{text}");
    let key = [&jks_entry(1, b"k")[..], &[0; 8]].concat();
    let text = failure(
        &jks(jks::MAGIC_JKS, u32::MAX, &key.repeat(MAX_KEYS + 1)),
        &right(),
    );
    assert!(text.contains("1000 private keys"), "{text}");
}

#[test]
fn the_work_of_many_keys_together_is_bounded() {
    let sealed = sealed(
        &[0x2b, 6, 1, 4, 1, 0x2a, 2, 0x13, 1],
        &[2, 3, 0x4c, 0x4b, 0x40],
    );
    let passwords = right();
    let mut unlocker = unlock::Unlocker::new(Format::Jceks, &passwords);
    for _ in 0..MAX_WORK / u64::from(MAX_ITERATIONS) {
        unlocker.budget.spend(u64::from(MAX_ITERATIONS), 1).unwrap();
    }
    let reason = unlocker.key(&sealed).unwrap_err().reason();
    assert!(
        reason.reason.contains("still done for this file"),
        "{reason:?}"
    );
}

#[test]
fn a_key_that_is_no_kek_is_told_why() {
    use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
    use private_key::KeyFault;
    let ec = aws_lc_rs::signature::EcdsaKeyPair::generate(
        &aws_lc_rs::signature::ECDSA_P256_SHA256_ASN1_SIGNING,
    )
    .unwrap();
    let der = ec.to_pkcs8v1().unwrap();
    let fault = PrivateKey::from_pkcs8(der.as_ref()).unwrap_err();
    assert_eq!(
        fault.to_string(),
        "it is not an RSA key (EC), and KEKs are RSA"
    );
    let large = aws_lc_rs::rsa::KeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap();
    let der: Pkcs8V1Der<'_> = large.as_der().unwrap();
    // One bit of the last part, the coefficient, so that the parts do not fit.
    let mut unfit = der.as_ref().to_vec();
    *unfit.last_mut().unwrap() ^= 1;
    assert_eq!(
        PrivateKey::from_pkcs8(&unfit).unwrap_err(),
        KeyFault::Inconsistent
    );
    let huge = [
        &[0x30, 0x82, 0x20, 0x08, 2, 1, 0, 2, 0x82, 0x20, 0x01][..],
        &[0xff; 0x2001],
    ]
    .concat();
    let fault = PrivateKey::from_pkcs1(&huge).unwrap_err();
    assert_eq!(fault, KeyFault::Size(0x2001 * 8));
}

#[test]
fn nothing_secret_is_in_debug() {
    let file = read(PKCS1_PEM, &right()).unwrap();
    let text = format!("{file:?} {:?}", right());
    assert!(!text.contains("store-password"), "{text}");
    assert!(text.len() < 600, "{text}");
}

#[test]
fn truncation_at_every_byte_is_an_error_and_no_panic() {
    for (name, bytes) in ALL {
        let pem = name.ends_with(".pem");
        for length in 0..bytes.len() {
            let outcome = read(&bytes[..length], &right());
            // A text may end after a block, or without its last newline.
            assert!(pem || outcome.is_err(), "{name} of {length} bytes");
        }
    }
}

#[test]
fn a_bit_flipped_in_the_head_is_no_panic() {
    for (_, bytes) in ALL {
        for at in 0..64 {
            let mut flipped = bytes.to_vec();
            flipped[at] ^= 1 << (at % 8);
            let _ = read(&flipped, &right());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(250))]

    #[test]
    fn flipped_bits_never_give_another_key(
        which in 0..ALL.len(),
        flips in proptest::collection::vec((any::<prop::sample::Index>(), 0..8_u8), 1..4),
    ) {
        let (_, bytes) = ALL[which];
        let mut flipped = bytes.to_vec();
        for (at, bit) in flips {
            let at = at.index(flipped.len());
            flipped[at] ^= 1_u8 << bit;
        }
        if let Ok(file) = read(&flipped, &right()) {
            for entry in &file.entries {
                if let Content::Pair { key, .. } = &entry.content {
                    prop_assert_eq!(key.hash(), hash());
                }
            }
        }
    }

    #[test]
    fn random_bytes_after_a_magic_are_no_panic(
        magic in prop::sample::select(vec![
            vec![0xfe, 0xed, 0xfe, 0xed, 0, 0, 0, 2],
            vec![0xce, 0xce, 0xce, 0xce, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 3, 0, 1, b'k', 0, 0, 0, 0, 0, 0, 0, 0, 0xac, 0xed, 0, 5],
            vec![0x30, 0x80, 2, 1, 3],
            b"-----BEGIN PRIVATE KEY-----\n".to_vec(),
        ]),
        rest in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let _ = read(&[magic, rest].concat(), &right());
    }
}
