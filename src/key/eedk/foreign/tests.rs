//! What is found and what is not.

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rsa::{
    KeySize, OAEP_SHA1_MGF1SHA1, OAEP_SHA256_MGF1SHA256, OaepPublicEncryptingKey,
    Pkcs1PublicEncryptingKey, PrivateDecryptingKey, PublicEncryptingKey,
};
use zeroize::Zeroizing;

use super::*;

struct Pair {
    public: PublicEncryptingKey,
    private: ProbeKey,
    spki: Vec<u8>,
}

fn pair() -> Pair {
    let key = PrivateDecryptingKey::generate(KeySize::Rsa2048).unwrap();
    let pkcs8: Pkcs8V1Der<'_> = key.as_der().unwrap();
    let spki: PublicKeyX509Der<'_> = key.public_key().as_der().unwrap();
    Pair {
        private: ProbeKey::from_pkcs8(pkcs8.as_ref()).unwrap(),
        spki: spki.as_ref().to_vec(),
        public: key.public_key(),
    }
}

fn random(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    aws_lc_rs::rand::fill(&mut bytes).unwrap();
    bytes
}

fn oaep(pair: &Pair, sha1: bool, label: &[u8], content: &[u8]) -> Vec<u8> {
    let key = OaepPublicEncryptingKey::new(pair.public.clone()).unwrap();
    let algorithm = if sha1 {
        &OAEP_SHA1_MGF1SHA1
    } else {
        &OAEP_SHA256_MGF1SHA256
    };
    let label = (!label.is_empty()).then_some(label);
    let mut room = vec![0; key.ciphertext_size()];
    key.encrypt(algorithm, content, &mut room, label).unwrap();
    room
}

fn pkcs1(pair: &Pair, content: &[u8]) -> Vec<u8> {
    let key = Pkcs1PublicEncryptingKey::new(pair.public.clone()).unwrap();
    let mut room = vec![0; key.ciphertext_size()];
    key.encrypt(content, &mut room).unwrap();
    room
}

fn look(blob: &[u8], keys: &[&dyn Opener], labels: &[Vec<u8>]) -> Report {
    probe(blob, LAYOUTS, keys, labels, &(0..=MAX_BLOB), |_| {}, &|| {}).unwrap()
}

#[test]
fn each_padding_is_found_at_its_place() {
    let (wrong, right) = (pair(), pair());
    let content = random(32);
    let label = random(12);
    let backwards: Vec<u8> = oaep(&right, true, b"", &content)
        .into_iter()
        .rev()
        .collect();
    for (wrapped, padding, order) in [
        (
            oaep(&right, false, b"", &content),
            Padding::OaepSha256(vec![]),
            ByteOrder::Big,
        ),
        (backwards, Padding::OaepSha1(vec![]), ByteOrder::Little),
        (
            oaep(&right, false, &label, &content),
            Padding::OaepSha256(label.clone()),
            ByteOrder::Big,
        ),
        (pkcs1(&right, &content), Padding::Pkcs1, ByteOrder::Big),
    ] {
        let blob = [random(37), wrapped, random(11)].concat();
        let keys: [&dyn Opener; 2] = [&wrong.private, &right.private];
        let report = look(&blob, &keys, std::slice::from_ref(&label));
        // Elsewhere too bytes may look like a padding, once in some ten thousand such blobs.
        let mut finds = report.finds.iter();
        let there = |find: &&Find| (find.offset, find.key, find.order) == (37, 1, order);
        let find = finds.find(there);
        let find = find.unwrap_or_else(|| panic!("{padding}: {report:?}"));
        assert_eq!((&find.padding, find.length), (&padding, 32));
        assert_ne!(find.certainty, Certainty::Chance);
        assert!(report.implicit.is_empty());
        let shown = format!("{report:?}");
        assert!(!shown.contains(&hex::encode(&content)));
    }
}

#[test]
fn pkcs1_around_anything_but_a_data_key_is_no_find() {
    let pair = pair();
    let blob = pkcs1(&pair, &random(31));
    assert!(look(&blob, &[&pair.private], &[]).finds.is_empty());
}

#[test]
fn the_same_content_twice_is_certain() {
    let pair = pair();
    let content = random(32);
    let blob = [pkcs1(&pair, &content), pkcs1(&pair, &content)].concat();
    let report = look(&blob, &[&pair.private], &[]);
    let certain = |find: &&Find| find.certainty == Certainty::Certain;
    assert_eq!(report.finds.iter().filter(certain).count(), 2, "{report:?}");
}

/// A key that opens whatever it is given, as a token with implicit rejection seems to.
struct Implicit;

impl Opener for Implicit {
    fn modulus(&self) -> usize {
        256
    }

    fn open(&self, padding: &Padding, _: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        (*padding == Padding::Pkcs1).then(|| Zeroizing::new(random(32)))
    }
}

#[test]
fn implicit_rejection_is_not_taken_for_success() {
    let report = look(&random(4096), &[&Implicit], &[]);
    assert!(report.finds.is_empty());
    assert_eq!(report.implicit, [0]);
}

/// A key under which every ciphertext of the blob has the right prefix and length by luck.
struct Lucky;

impl Opener for Lucky {
    fn modulus(&self) -> usize {
        256
    }

    fn open(&self, padding: &Padding, ciphertext: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        // Never for the trial's ciphertexts, which begin with a zero.
        let lucky = *padding == Padding::Pkcs1 && ciphertext.starts_with(&[7, 7]);
        lucky.then(|| Zeroizing::new(ciphertext.get(..32).unwrap().to_vec()))
    }
}

#[test]
fn one_lucky_place_among_many_is_told_as_chance() {
    let mut blob = random(60_000);
    blob.chunks_mut(2).for_each(|pair| {
        if pair == [7, 7] {
            pair.fill(8);
        }
    });
    blob.get_mut(30_000..30_002).unwrap().fill(7);
    let report = look(&blob, &[&Lucky], &[]);
    assert!(!report.finds.is_empty());
    let chance = |find: &Find| find.certainty == Certainty::Chance;
    assert!(report.finds.iter().all(chance), "{report:?}");
    assert!(report.chance > 1e-3, "{}", report.chance);
}

#[test]
fn random_blobs_give_nothing() {
    let pair = pair();
    // One in some thousands looks like a padding by chance; three in a row do not.
    let reports = [(); 3].map(|()| look(&random(1500), &[&pair.private], &[]));
    let nothing = |report: &Report| report.finds.is_empty();
    assert!(reports.iter().any(nothing), "{reports:?}");
    assert!(
        reports.iter().all(|report| report.attempts > 2000),
        "{reports:?}"
    );
}

#[test]
fn what_no_encryption_gives_is_not_tried() {
    let pair = pair();
    let zeros = look(&vec![0; MAX_BLOB], &[&pair.private], &[]);
    assert_eq!(zeros.attempts, 0);
    let text = "AliasOne = cert1\n".repeat(1000);
    assert_eq!(look(text.as_bytes(), &[&pair.private], &[]).attempts, 0);
}

#[test]
fn what_would_take_too_long_is_refused_with_the_way() {
    let pair = pair();
    let keys: Vec<&dyn Opener> = vec![&pair.private; 9];
    let try_it = |blob: &[u8], range| probe(blob, LAYOUTS, &keys, &[], &range, |_| {}, &|| {});
    let error = try_it(&random(MAX_BLOB), 0..=MAX_BLOB).unwrap_err();
    assert!(error.to_string().contains("--offset"), "{error}");
    assert!(try_it(&random(MAX_BLOB), 5..=5).is_ok());
    let error = try_it(&random(MAX_BLOB + 1), 0..=0).unwrap_err();
    assert_eq!(error, ProbeError::TooLong { got: MAX_BLOB + 1 });
    let error = try_it(&random(255), 0..=0).unwrap_err();
    let short = ProbeError::TooShort {
        got: 255,
        modulus: 256,
    };
    assert_eq!(error, short);
}

#[test]
fn hashes_and_labels_of_a_key_are_found() {
    let key = pair();
    let hash = crate::key::KekHash::of_spki(&key.spki);
    let blob = [
        random(9).as_slice(),
        hash.as_bytes(),
        b"\xE3\xC1\xD7\xC5\xF0\xF1".as_slice(), // TAPE01 in EBCDIC
        b"tape01".as_slice(),
    ]
    .concat();
    let found = marks(&blob, "Tape01", &key.spki, None);
    let places: Vec<(usize, &str)> = found.iter().map(|mark| (mark.offset, mark.what)).collect();
    assert_eq!(
        places,
        [
            (9, "SHA-256 of its SubjectPublicKeyInfo"),
            (41, "its label in EBCDIC"),
            (47, "its label"),
        ]
    );
    assert!(marks(&blob, "other", &pair().spki, None).is_empty());
}

#[test]
fn text_forms_of_a_blob_are_read() {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let blob = random(300);
    let wrapped = |text: String| {
        let lines: Vec<String> = text
            .as_bytes()
            .chunks(64)
            .map(|line| String::from_utf8(line.to_vec()).unwrap())
            .collect();
        format!("{}\n", lines.join("\r\n"))
    };
    let hexed = wrapped(hex::encode_upper(&blob));
    assert_eq!(decode(hexed.as_bytes()), (blob.clone(), "hexadecimal"));
    let based = wrapped(STANDARD.encode(&blob));
    assert_eq!(decode(based.as_bytes()), (blob.clone(), "base64"));
    assert_eq!(decode(&blob), (blob.clone(), "as it is"));
}
