use proptest::{prelude::*, sample::select};

use super::*;
use crate::key::{KekHash, KeyLabel};

const LABEL_SHA1: &[u8] = include_bytes!("../../../integration/golden/eedk/label-sha1.der");
pub(super) const LABEL_SHA256: &[u8] =
    include_bytes!("../../../integration/golden/eedk/label-sha256-labelled.der");
const LABEL_V15: &[u8] = include_bytes!("../../../integration/golden/eedk/label-v15.der");
const HASH_V15: &[u8] = include_bytes!("../../../integration/golden/eedk/hash-v15.der");
const HASH_SHA1: &[u8] = include_bytes!("../../../integration/golden/eedk/hash-sha1.der");
const HASH_SHA256: &[u8] =
    include_bytes!("../../../integration/golden/eedk/hash-sha256-labelled.der");

pub(super) fn dki() -> DataKeyId {
    DataKeyId::from_random([0, 1, 2, 3, 4, 5, 6, 7, 8])
}

pub(super) fn label() -> KekId {
    KekId::Label("Tape KEK 2026".parse().unwrap())
}

fn hash() -> KekId {
    KekId::Hash(KekHash::from(std::array::from_fn(|i| {
        0x20 + u8::try_from(i).unwrap()
    })))
}

pub(super) const fn wrap(hash: OaepHash, labelled: bool) -> WrapAlgorithm {
    WrapAlgorithm::oaep(hash, labelled)
}

pub(super) fn counting(len: usize) -> Vec<u8> {
    (0..=255).cycle().take(len).collect()
}

#[test]
fn golden_files_are_read_and_written_byte_for_byte() {
    for (golden, kek, wrap, len) in [
        (LABEL_SHA1, label(), wrap(OaepHash::Sha1, false), 256),
        (LABEL_SHA256, label(), wrap(OaepHash::Sha256, true), 384),
        (HASH_SHA1, hash(), wrap(OaepHash::Sha1, false), 256),
        (HASH_SHA256, hash(), wrap(OaepHash::Sha256, true), 384),
        (LABEL_V15, label(), WrapAlgorithm::Pkcs1V15, 256),
        (HASH_V15, hash(), WrapAlgorithm::Pkcs1V15, 384),
    ] {
        let eedk = Eedk::new(dki(), kek, wrap, counting(len)).unwrap();
        assert_eq!(hex::encode(eedk.encode()), hex::encode(golden));
        assert_eq!(Eedk::decode(golden), Ok(eedk));
    }
}

#[test]
fn v15_has_no_label() {
    assert_eq!(Eedk::decode(LABEL_V15).unwrap().oaep_label(), b"");
}

#[test]
fn a_wrap_algorithm_reads_as_a_profile_has_it() {
    let read = |text: &str| toml::from_str::<WrapAlgorithm>(text);
    let oaep = WrapAlgorithm::oaep(OaepHash::Sha1, false);
    assert_eq!(read("hash = \"sha1\"\nlabelled = false").unwrap(), oaep);
    let v15 = "padding = \"pkcs1-v1.5\"\n";
    assert_eq!(read(v15).unwrap(), WrapAlgorithm::Pkcs1V15);
    for (wrong, reason) in [
        ("labelled = true".to_owned(), "hash"),
        ("hash = \"sha1\"".to_owned(), "labelled"),
        (format!("{v15}hash = \"sha1\""), "leave both out"),
        (format!("{v15}labelled = false"), "leave both out"),
        (format!("{v15}source = 1"), "unknown field"),
    ] {
        let error = read(&wrong).unwrap_err().to_string();
        assert!(error.contains(reason), "{wrong}: {error}");
    }
    for algorithm in [oaep, WrapAlgorithm::Pkcs1V15] {
        let text = toml::to_string(&algorithm).unwrap();
        assert_eq!(read(&text).unwrap(), algorithm);
        let bytes = postcard::to_allocvec(&algorithm).unwrap();
        assert_eq!(postcard::from_bytes::<WrapAlgorithm>(&bytes), Ok(algorithm));
    }
}

#[test]
fn oaep_label_is_the_dki_or_nothing() {
    let labelled = Eedk::decode(LABEL_SHA256).unwrap();
    assert_eq!(labelled.oaep_label(), dki().as_bytes());
    assert_eq!(Eedk::decode(LABEL_SHA1).unwrap().oaep_label(), b"");
}

#[test]
fn two_rsa_3072_eedks_with_labels_of_20_characters_stay_under_1000_bytes() {
    let kek = KekId::Label("a".repeat(20).parse().unwrap());
    for hash in [OaepHash::Sha256, OaepHash::Sha384, OaepHash::Sha512] {
        let eedk = Eedk::new(dki(), kek.clone(), wrap(hash, true), counting(384)).unwrap();
        assert_eq!(2 * eedk.as_der().len(), 994);
    }
}

#[test]
fn the_longest_eedk_fits_the_limit() {
    let longest: KeyLabel = "😀".repeat(64).parse().unwrap();
    let eedk = Eedk::new(
        dki(),
        KekId::Label(longest),
        wrap(OaepHash::Sha512, true),
        counting(512),
    )
    .unwrap();
    assert_eq!(eedk.as_der().len(), 865);
    assert_eq!(Eedk::decode(eedk.as_der()), Ok(eedk));
}

#[test]
fn is_base64_in_json() {
    let eedk = Eedk::decode(LABEL_SHA1).unwrap();
    let json = serde_json::to_string(&eedk).unwrap();
    assert_eq!(json, format!("\"{}\"", STANDARD.encode(LABEL_SHA1)));
    assert_eq!(serde_json::from_str::<Eedk>(&json).unwrap(), eedk);
    assert!(serde_json::from_str::<Eedk>("\"*\"").is_err());
}

#[test]
fn debug_leaves_out_the_wrapped_key() {
    let shown = format!("{:?}", Eedk::decode(LABEL_SHA1).unwrap());
    assert!(shown.contains("Tape KEK 2026"), "{shown}");
    assert!(!shown.contains("17, 18"), "{shown}");
}

fn any_kek() -> impl Strategy<Value = KekId> {
    prop_oneof![
        "[A-Za-z0-9 äß:._-]{0,63}[A-Za-z]".prop_map(|label| KekId::Label(label.parse().unwrap())),
        any::<[u8; 32]>().prop_map(|hash| KekId::Hash(KekHash::from(hash))),
    ]
}

fn any_wrap() -> impl Strategy<Value = WrapAlgorithm> {
    let hashes = vec![
        OaepHash::Sha1,
        OaepHash::Sha256,
        OaepHash::Sha384,
        OaepHash::Sha512,
    ];
    prop_oneof![
        4 => (select(hashes), any::<bool>()).prop_map(|(hash, labelled)| wrap(hash, labelled)),
        1 => Just(WrapAlgorithm::Pkcs1V15),
    ]
}

proptest! {
    #[test]
    fn decodes_what_it_encodes(
        random: [u8; 9],
        kek in any_kek(),
        wrap in any_wrap(),
        len in select(&Eedk::WRAPPED_LENGTHS),
    ) {
        let eedk = Eedk::new(DataKeyId::from_random(random), kek, wrap, counting(len)).unwrap();
        prop_assert_eq!(Eedk::decode(&eedk.encode()), Ok(eedk));
    }

    #[test]
    fn what_decodes_encodes_to_the_same(
        golden in select(&[LABEL_SHA1, LABEL_SHA256, HASH_SHA1, HASH_SHA256, LABEL_V15, HASH_V15]),
        position in 0usize..140,
        byte: u8,
    ) {
        let mut bytes = golden.to_vec();
        bytes[position] = byte;
        if let Ok(eedk) = Eedk::decode(&bytes) {
            prop_assert_eq!(eedk.encode(), bytes);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(eedk) = Eedk::decode(&bytes) {
            prop_assert_eq!(eedk.encode(), bytes);
        }
    }
}
