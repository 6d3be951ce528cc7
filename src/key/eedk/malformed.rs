//! Every way in which bytes can fail to be an EEDK: the parts of a good one, each of which a test
//! spoils.

use der::asn1::ObjectIdentifier;

use super::{
    tests::{LABEL_SHA256, counting, dki, label, wrap},
    *,
};

fn tlv(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let value = parts.concat();
    let mut der = vec![tag];
    match u8::try_from(value.len()) {
        Ok(len @ 0..0x80) => der.push(len),
        Ok(len) => der.extend([0x81, len]),
        Err(_) => {
            der.push(0x82);
            der.extend(u16::try_from(value.len()).unwrap().to_be_bytes());
        }
    }
    der.extend(value);
    der
}

fn oid(dotted: &str) -> Vec<u8> {
    tlv(0x06, &[ObjectIdentifier::new(dotted).unwrap().as_bytes()])
}

fn sha(number: u8) -> Vec<u8> {
    let oid = oid(&format!("2.16.840.1.101.3.4.2.{number}"));
    tlv(SEQUENCE, &[&oid, &[0x05, 0]])
}

fn mgf1(hash: &[u8]) -> Vec<u8> {
    tlv(SEQUENCE, &[&oid("1.2.840.113549.1.1.8"), hash])
}

/// AlgorithmIdentifier of RSAES-OAEP with these parameters, each with its tag.
fn oaep(parameters: &[(u8, &[u8])]) -> Vec<u8> {
    let parameters: Vec<Vec<u8>> = parameters
        .iter()
        .map(|(tag, value)| tlv(*tag, &[value]))
        .collect();
    let parameters = tlv(SEQUENCE, &[&parameters.concat()]);
    tlv(SEQUENCE, &[&oid("1.2.840.113549.1.1.7"), &parameters])
}

struct Parts {
    version: Vec<u8>,
    dki: Vec<u8>,
    kek: Vec<u8>,
    wrap: Vec<u8>,
    wrapped: Vec<u8>,
}

fn parts() -> Parts {
    Parts {
        version: tlv(0x02, &[&[1]]),
        dki: tlv(0xa0, &[&tlv(OCTET_STRING, &[dki().as_bytes()])]),
        kek: tlv(0xa0, &[&tlv(UTF8_STRING, &[b"Tape KEK 2026"])]),
        wrap: oaep(&[(0xa0, &sha(1)), (0xa1, &mgf1(&sha(1)))]),
        wrapped: tlv(OCTET_STRING, &[&counting(384)]),
    }
}

impl Parts {
    fn der(&self) -> Vec<u8> {
        let Self {
            version,
            dki,
            kek,
            wrap,
            wrapped,
        } = self;
        tlv(SEQUENCE, &[version, dki, kek, wrap, wrapped])
    }

    fn refused(&self) -> EedkError {
        Eedk::decode(&self.der()).unwrap_err()
    }
}

fn refused_wrap(wrap: Vec<u8>) -> EedkError {
    Parts { wrap, ..parts() }.refused()
}

fn refused_kek(kek: Vec<u8>) -> EedkError {
    Parts { kek, ..parts() }.refused()
}

#[test]
fn the_unspoilt_parts_are_the_golden_file() {
    assert_eq!(parts().der(), LABEL_SHA256);
}

#[test]
fn truncated_eedk_is_refused() {
    for cut in 0..LABEL_SHA256.len() {
        assert_eq!(
            Eedk::decode(&LABEL_SHA256[..cut]),
            Err(EedkError::Truncated),
            "{cut}"
        );
    }
}

#[test]
fn trailing_byte_is_refused() {
    let long = [LABEL_SHA256, &[0]].concat();
    assert_eq!(Eedk::decode(&long), Err(EedkError::TrailingBytes));
}

#[test]
fn trailing_field_is_refused() {
    let mut parts = parts();
    parts.wrapped.extend([0x05, 0]);
    assert_eq!(parts.refused(), EedkError::TrailingBytes);
}

#[test]
fn field_that_reaches_beyond_its_sequence_is_refused() {
    let mut parts = parts();
    parts.wrapped[3] += 1;
    assert!(matches!(
        parts.refused(),
        EedkError::Truncated | EedkError::Malformed(_)
    ));
}

#[test]
fn non_minimal_length_is_refused() {
    let wide = [&[0x30, 0x83, 0x00], &LABEL_SHA256[2..]].concat();
    assert!(Eedk::decode(&wide).is_err());
    let version = vec![0x02, 0x81, 1, 1];
    let refused = Parts { version, ..parts() }.refused();
    assert_eq!(refused, EedkError::NotCanonical);
}

#[test]
fn indefinite_length_is_refused() {
    let ber = [&[0x30, 0x80], &LABEL_SHA256[4..], &[0, 0]].concat();
    assert_eq!(Eedk::decode(&ber), Err(EedkError::NotCanonical));
}

#[test]
fn constructed_string_is_refused() {
    let dki = tlv(0x24, &[&parts().dki]);
    assert!(matches!(
        Parts { dki, ..parts() }.refused(),
        EedkError::Malformed(_)
    ));
}

#[test]
fn unknown_version_is_refused() {
    for (version, got) in [(vec![2], "02h"), (vec![1, 0], "0100h")] {
        let version = tlv(0x02, &[&version]);
        let got = got.to_owned();
        assert_eq!(
            Parts { version, ..parts() }.refused(),
            EedkError::UnknownVersion { got }
        );
    }
}

#[test]
fn padded_version_is_refused() {
    let version = tlv(0x02, &[&[0, 1]]);
    assert_eq!(
        Parts { version, ..parts() }.refused(),
        EedkError::NotCanonical
    );
}

#[test]
fn short_dki_is_refused() {
    let dki = tlv(OCTET_STRING, &[b"EKM12345678"]);
    assert_eq!(
        Parts { dki, ..parts() }.refused(),
        EedkError::Dki(DataKeyIdError::WrongLength {
            expected: 12,
            got: 11
        })
    );
}

#[test]
fn empty_label_is_refused() {
    assert_eq!(
        refused_kek(tlv(0xa0, &[&tlv(UTF8_STRING, &[])])),
        EedkError::Label(KeyLabelError::Blank)
    );
}

#[test]
fn label_of_65_characters_is_refused() {
    assert_eq!(
        refused_kek(tlv(0xa0, &[&tlv(UTF8_STRING, &[&[b'x'; 65]])])),
        EedkError::Label(KeyLabelError::TooLong { limit: 64, got: 65 })
    );
}

#[test]
fn label_with_trailing_blanks_is_refused() {
    assert_eq!(
        refused_kek(tlv(0xa0, &[&tlv(UTF8_STRING, &[b"KEK "])])),
        EedkError::NotCanonical
    );
}

#[test]
fn label_that_is_no_utf8_is_refused() {
    assert!(matches!(
        refused_kek(tlv(0xa0, &[&tlv(UTF8_STRING, &[b"\xff"])])),
        EedkError::Malformed(_)
    ));
}

#[test]
fn kek_that_is_neither_label_nor_hash_is_refused() {
    assert!(matches!(
        refused_kek(tlv(0xa2, &[&tlv(UTF8_STRING, &[b"KEK"])])),
        EedkError::Malformed(_)
    ));
}

fn kek_hash(algorithm: &[u8], value: &[u8]) -> Vec<u8> {
    let value = tlv(OCTET_STRING, &[value]);
    tlv(0xa1, &[&tlv(SEQUENCE, &[algorithm, &value])])
}

#[test]
fn kek_hash_of_another_algorithm_is_refused() {
    let sha512 = tlv(SEQUENCE, &[&oid("2.16.840.1.101.3.4.2.3")]);
    assert_eq!(
        refused_kek(kek_hash(&sha512, &[1; 64])),
        EedkError::KekHashAlgorithm {
            got: "2.16.840.1.101.3.4.2.3".to_owned()
        }
    );
}

#[test]
fn kek_hash_algorithm_with_parameters_is_refused() {
    assert_eq!(
        refused_kek(kek_hash(&sha(1), &[1; 32])),
        EedkError::NotCanonical
    );
}

#[test]
fn short_kek_hash_is_refused() {
    let sha256 = tlv(SEQUENCE, &[&oid("2.16.840.1.101.3.4.2.1")]);
    assert_eq!(
        refused_kek(kek_hash(&sha256, &[1; 31])),
        EedkError::KekHashLength { got: 31 }
    );
}

#[test]
fn other_wrap_algorithm_is_refused() {
    let kem = tlv(SEQUENCE, &[&oid("1.2.840.113549.1.9.16.3.14"), &[0x05, 0]]);
    assert_eq!(
        refused_wrap(kem),
        EedkError::WrapAlgorithm {
            got: "1.2.840.113549.1.9.16.3.14".to_owned()
        }
    );
}

#[test]
fn v15_with_other_parameters_than_null_is_refused() {
    let oid = oid("1.2.840.113549.1.1.1");
    for parameters in [&[][..], &[0x30, 0], &[0x04, 0], &sha(1)] {
        let dki = tlv(OCTET_STRING, &[dki().as_bytes()]);
        let wrap = tlv(SEQUENCE, &[&oid, parameters]);
        let refused = Parts {
            dki,
            wrap,
            ..parts()
        }
        .refused();
        assert_eq!(refused, EedkError::NullParameters, "{parameters:?}");
    }
    let wide = tlv(SEQUENCE, &[&oid, &[0x05, 0x81, 0]]);
    assert_eq!(refused_wrap(wide), EedkError::NotCanonical);
    let full = tlv(SEQUENCE, &[&oid, &[0x05, 1, 0]]);
    assert!(
        Eedk::decode(
            &Parts {
                wrap: full,
                ..parts()
            }
            .der()
        )
        .is_err()
    );
}

#[test]
fn v15_with_the_dki_as_label_is_refused() {
    let v15 = tlv(SEQUENCE, &[&oid("1.2.840.113549.1.1.1"), &[0x05, 0]]);
    assert_eq!(refused_wrap(v15), EedkError::LabelWithoutOaep);
}

#[test]
fn missing_wrap_parameters_are_refused() {
    let bare = tlv(SEQUENCE, &[&oid("1.2.840.113549.1.1.7")]);
    assert_eq!(refused_wrap(bare), EedkError::WrapParameters);
}

#[test]
fn unknown_oaep_hash_is_refused() {
    let sha224 = sha(4);
    assert_eq!(
        refused_wrap(oaep(&[(0xa0, &sha224), (0xa1, &mgf1(&sha224))])),
        EedkError::OaepHash {
            got: "2.16.840.1.101.3.4.2.4".to_owned()
        }
    );
}

#[test]
fn mask_over_another_hash_is_refused() {
    for (mask, got) in [
        (Some(mgf1(&sha(3))), OaepHash::Sha512),
        (None, OaepHash::Sha1),
    ] {
        let hash = sha(1);
        let mut parameters = vec![(0xa0, hash.as_slice())];
        parameters.extend(mask.as_deref().map(|mask| (0xa1, mask)));
        assert_eq!(
            refused_wrap(oaep(&parameters)),
            EedkError::MaskHash {
                expected: OaepHash::Sha256,
                got
            }
        );
    }
}

#[test]
fn other_mask_generation_is_refused() {
    let other = tlv(SEQUENCE, &[&oid("1.2.840.113549.1.1.9"), &sha(1)]);
    assert!(matches!(
        refused_wrap(oaep(&[(0xa0, &sha(1)), (0xa1, &other)])),
        EedkError::MaskGeneration { .. }
    ));
}

#[test]
fn hash_without_null_parameters_is_refused() {
    let bare = tlv(SEQUENCE, &[&oid("2.16.840.1.101.3.4.2.1")]);
    assert_eq!(
        refused_wrap(oaep(&[(0xa0, &bare), (0xa1, &mgf1(&bare))])),
        EedkError::NotCanonical
    );
}

#[test]
fn default_hash_spelt_out_is_refused() {
    let sha1 = tlv(SEQUENCE, &[&oid("1.3.14.3.2.26"), &[0x05, 0]]);
    assert_eq!(
        refused_wrap(oaep(&[(0xa0, &sha1), (0xa1, &mgf1(&sha1))])),
        EedkError::NotCanonical
    );
}

#[test]
fn oaep_label_in_the_parameters_is_refused() {
    for label in [&b""[..], dki().as_bytes(), b"EKM"] {
        let label = tlv(OCTET_STRING, &[label]);
        let source = tlv(SEQUENCE, &[&oid("1.2.840.113549.1.1.9"), &label]);
        assert_eq!(
            refused_wrap(oaep(&[
                (0xa0, &sha(1)),
                (0xa1, &mgf1(&sha(1))),
                (0xa2, &source),
            ])),
            EedkError::OaepLabel
        );
    }
}

#[test]
fn wrapped_key_of_another_length_is_refused() {
    for got in [0, 128, 255, 257, 400] {
        let wrapped = tlv(OCTET_STRING, &[&counting(got)]);
        let refused = Parts { wrapped, ..parts() }.refused();
        assert_eq!(refused, EedkError::WrappedLength { got });
        assert_eq!(
            Eedk::new(dki(), label(), wrap(OaepHash::Sha1, false), counting(got)),
            Err(EedkError::WrappedLength { got })
        );
    }
}

#[test]
fn oversize_eedk_is_refused_unread() {
    assert_eq!(
        Eedk::decode(&[0; 897]),
        Err(EedkError::TooLong {
            limit: 896,
            got: 897
        })
    );
}

const SEQUENCE: u8 = 0x30;
const OCTET_STRING: u8 = 0x04;
const UTF8_STRING: u8 = 0x0c;
