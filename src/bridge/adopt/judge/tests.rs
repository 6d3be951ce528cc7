//! Verdicts on what SoftHSM does not make; the rest is in `integration/adopt.rs`.

use super::super::read::{Common, Numbers, Private, Row};
use super::*;
use crate::bridge::message::KekAttributes;
use crate::bridge::profile::HsmProfile;

const GOOD: KekAttributes = KekAttributes {
    sensitive: Some(true),
    extractable: Some(false),
    always_sensitive: Some(true),
    never_extractable: Some(true),
    local: Some(true),
    unwrap: Some(true),
    decrypt: Some(false),
    modifiable: Some(true),
    sign: Some(false),
    unwraps_sensitive: None,
    unwraps_trusted: None,
};

fn object(n: u8, label: &str) -> Common {
    let mut modulus = [n | 1; 256];
    modulus[0] = 0xC1;
    Common {
        handle: n.into(),
        label: label.into(),
        id: vec![n],
        kind: Some(ck::CKK_RSA),
        numbers: Numbers::new(&modulus, &[1, 0, 1]),
    }
}

fn pair(n: u8, label: &str, change: impl FnOnce(&mut Private)) -> Row {
    let mut private = Private {
        common: object(n, label),
        attributes: GOOD,
        private: Some(true),
        sign: Some(false),
        always_authenticate: Some(false),
    };
    change(&mut private);
    Row {
        private: Some(private),
        public: vec![object(n, label)],
        ..Row::default()
    }
}

fn alone(row: Row, host_only: bool) -> KeySeen {
    judge(&row, std::slice::from_ref(&row), host_only)
}

fn reasons(key: &KeySeen) -> String {
    key.reasons.join("; ")
}

#[test]
fn a_good_pair_is_usable_and_nothing_is_said_against_it() {
    let key = alone(pair(1, "GOOD", |_| {}), false);
    assert_eq!(
        (key.verdict, key.custody),
        (Verdict::Usable, Some(Custody::Token))
    );
    assert_eq!(reasons(&key), "");
    assert!(key.mends.is_empty());
}

#[test]
fn a_key_that_wants_its_pin_each_time_cannot_serve() {
    let key = alone(
        pair(1, "PIN", |key| key.always_authenticate = Some(true)),
        false,
    );
    assert_eq!(key.verdict, Verdict::Not);
    assert!(reasons(&key).contains("CKA_ALWAYS_AUTHENTICATE"));
}

#[test]
fn what_a_token_does_not_tell_is_not_taken_for_good() {
    for name in ["CKA_SENSITIVE", "CKA_EXTRACTABLE"] {
        let key = alone(
            pair(1, "MUTE", |key| match name {
                "CKA_SENSITIVE" => key.attributes.sensitive = None,
                _ => key.attributes.extractable = None,
            }),
            false,
        );
        assert_eq!(key.verdict, Verdict::Not, "{name}");
        assert!(reasons(&key).contains(name), "{name}");
    }
}

#[test]
fn a_twin_that_gives_the_key_away_counts() {
    let open = pair(1, "TWIN", |key| key.attributes.extractable = Some(true));
    let rows = [pair(1, "TWIN", |_| {}), open];
    let good = judge(&rows[0], &rows, false);
    assert_eq!(good.verdict, Verdict::Not);
    assert!(reasons(&good).contains("stored twice"));
    assert_eq!(judge(&rows[1], &rows, false).verdict, Verdict::Mendable);
}

#[test]
fn a_product_that_only_decrypts_has_its_keys_in_custody_host() {
    let both = alone(
        pair(1, "BOTH", |key| key.attributes.decrypt = Some(true)),
        true,
    );
    assert_eq!(
        (both.verdict, both.custody),
        (Verdict::Host, Some(Custody::Host))
    );
    assert!(both.mends.is_empty());
    let unwraps = alone(pair(1, "UNWRAPS", |_| {}), true);
    assert_eq!(unwraps.verdict, Verdict::Not);
    assert!(reasons(&unwraps).contains("CKA_DECRYPT"));
}

#[test]
fn a_label_that_no_kek_can_have_is_said() {
    let key = alone(pair(1, &"x".repeat(65), |_| {}), false);
    assert_eq!(key.verdict, Verdict::Not);
    assert!(reasons(&key).contains("at most 64"));
}

/// What is called usable, the catalog lets serve, and for the same custody.
#[test]
fn verdicts_and_the_catalog_agree() {
    let profile = HsmProfile::load("softhsm2").unwrap();
    let flags = [None, Some(false), Some(true)];
    for host_only in [false, true] {
        for case in 0..3_usize.pow(5) {
            let flag = |place: u32| flags[case / 3_usize.pow(place) % 3];
            let attributes = KekAttributes {
                sensitive: flag(0),
                extractable: flag(1),
                unwrap: flag(2),
                decrypt: flag(3),
                modifiable: flag(4),
                ..GOOD
            };
            let key = alone(pair(1, "X", |key| key.attributes = attributes), host_only);
            let serves = match catalog::judge(&attributes, 2048, host_only, &profile) {
                crate::bridge::message::PrivateHalf::Serves { custody, .. } => Some(custody),
                _ => None,
            };
            let promised = match key.verdict {
                Verdict::Usable | Verdict::Host => key.custody,
                Verdict::Mendable | Verdict::Not => None,
            };
            assert_eq!(promised, serves, "{attributes:?}, {host_only}: {key:?}");
            let frozen = attributes.modifiable == Some(false);
            assert!(!frozen || key.mends.is_empty(), "{key:?}");
        }
    }
}
