use super::template::demand;
use super::*;
use crate::bridge::message::{KekAttributes, Provenance};
use crate::bridge::pkcs11::Attr;
use crate::bridge::profile::UnwrapTemplate;

const GOOD: KekAttributes = KekAttributes {
    sensitive: Some(true),
    extractable: Some(false),
    always_sensitive: Some(true),
    never_extractable: Some(true),
    local: Some(true),
    unwrap: Some(true),
    decrypt: Some(false),
    modifiable: Some(false),
    sign: Some(false),
    unwraps_sensitive: Some(true),
    unwraps_trusted: Some(false),
};

fn profile() -> HsmProfile {
    HsmProfile::load("softhsm2").unwrap()
}

#[test]
fn a_readable_or_extractable_kek_is_refused_by_attribute_name() {
    for (attributes, name) in [
        (
            KekAttributes {
                sensitive: Some(false),
                ..GOOD
            },
            "CKA_SENSITIVE",
        ),
        (
            KekAttributes {
                sensitive: None,
                ..GOOD
            },
            "CKA_SENSITIVE",
        ),
        (
            KekAttributes {
                extractable: Some(true),
                ..GOOD
            },
            "CKA_EXTRACTABLE",
        ),
        (
            KekAttributes {
                unwrap: Some(false),
                ..GOOD
            },
            "CKA_UNWRAP",
        ),
    ] {
        match judge(&attributes, 3072, false, &profile()) {
            PrivateHalf::Refused { reason, .. } => assert!(reason.contains(name), "{reason}"),
            other => panic!("{name}: {other:?}"),
        }
    }
}

/// A token with these KEKs, each under one label or two.
fn shown(keks: &[(&str, u8)]) -> Catalog {
    let mut catalog = Catalog::default();
    for (number, (label, key)) in (1..).zip(keks) {
        let hash = KekHash::of_spki(&[*key]);
        catalog.keks.push(KekOnToken {
            label: label.parse().unwrap(),
            hash,
            spki: vec![*key],
            bits: 3072,
            private: judge(&GOOD, 3072, false, &profile()),
            certificate: None,
        });
        let handles = Handles {
            private: Some(number),
            public: None,
        };
        catalog.handles.insert(hash, handles);
    }
    catalog
}

#[test]
fn a_kek_that_was_refused_by_a_trial_is_known_and_comes_back_as_it_was_read() {
    let as_read = shown(&[("KEK1", 1), ("ALIAS", 1), ("KEK2", 2), ("KEK3", 3)]);
    let mut catalog = as_read.clone();
    assert!(catalog.refused_since(&as_read).is_empty());
    let [one, two] = [1, 2].map(|key: u8| KekHash::of_spki(&[key]));
    catalog.refuse(&one, "it opened no canary");
    catalog.refuse(&two, "nor did it");
    assert_eq!(
        catalog.refused_since(&as_read),
        [(one, Custody::Token), (two, Custody::Token)]
    );
    assert_eq!(catalog.kek(&one).unwrap().1.private, None);
    catalog.reinstate(&one, &as_read);
    assert_eq!(catalog.refused_since(&as_read), [(two, Custody::Token)]);
    assert_eq!(catalog.kek(&one), as_read.kek(&one));
    catalog.reinstate(&two, &as_read);
    assert_eq!(catalog, as_read);
    // What its attributes forbid was never a matter of a trial.
    let mut forbidden = as_read.clone();
    forbidden.refuse(&two, "CKA_SENSITIVE is not true");
    assert!(forbidden.clone().refused_since(&forbidden).is_empty());
}

#[test]
fn provenance_follows_the_attributes() {
    let provenance = |attributes| match judge(&attributes, 3072, false, &profile()) {
        PrivateHalf::Serves { provenance, .. } => provenance,
        other => panic!("{other:?}"),
    };
    assert_eq!(provenance(GOOD), Provenance::Born);
    assert_eq!(
        provenance(KekAttributes {
            never_extractable: Some(false),
            ..GOOD
        }),
        Provenance::Copied
    );
    assert_eq!(
        provenance(KekAttributes {
            local: Some(false),
            ..GOOD
        }),
        Provenance::Imported
    );
}

#[test]
fn a_token_that_only_decrypts_keeps_its_keks_in_host_custody() {
    let both = KekAttributes {
        decrypt: Some(true),
        ..GOOD
    };
    for (host_only, expected) in [(true, Custody::Host), (false, Custody::Token)] {
        match judge(&both, 3072, host_only, &profile()) {
            PrivateHalf::Serves { custody, .. } => assert_eq!(custody, expected),
            other => panic!("{other:?}"),
        }
    }
    match judge(&GOOD, 3072, true, &profile()) {
        PrivateHalf::Refused { reason, .. } => assert!(reason.contains("CKA_DECRYPT")),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_profile_that_requires_an_unwrap_template_refuses_a_kek_without_it() {
    let mut required = profile();
    required.kek.unwrap_template = UnwrapTemplate::Require;
    let reason = |attributes: KekAttributes, profile: &HsmProfile| match judge(
        &attributes,
        3072,
        false,
        profile,
    ) {
        PrivateHalf::Refused { reason, .. } => Some(reason),
        _ => None,
    };
    assert_eq!(reason(GOOD, &required), None);
    for unwraps_sensitive in [Some(false), None] {
        let weak = KekAttributes {
            unwraps_sensitive,
            ..GOOD
        };
        assert!(reason(weak, &required).unwrap().contains("CKA_SENSITIVE"));
        assert_eq!(reason(weak, &profile()), None);
    }
    required.data_key.wrap_with_trusted = true;
    let untrusted = reason(GOOD, &required).unwrap();
    assert!(untrusted.contains("CKA_WRAP_WITH_TRUSTED"), "{untrusted}");
    let trusted = KekAttributes {
        unwraps_trusted: Some(true),
        ..GOOD
    };
    assert_eq!(reason(trusted, &required), None);
}

#[test]
fn only_where_the_profile_says_try_is_it_left_out_after_a_refusal() {
    let mut profile = profile();
    for (says, asked, again) in [
        (UnwrapTemplate::Never, false, false),
        (UnwrapTemplate::Try, true, true),
        (UnwrapTemplate::Require, true, false),
    ] {
        profile.kek.unwrap_template = says;
        let mut template = vec![Attr::flag(ck::CKA_SENSITIVE, true)];
        demand(&mut template, Custody::Token, &profile);
        let has = |template: &[Attr]| template.iter().any(|attr| attr.is(ck::CKA_UNWRAP_TEMPLATE));
        assert_eq!(has(&template), asked, "{says:?}");
        let less = undemanding(&template, &profile);
        assert_eq!(less.is_some(), again, "{says:?}");
        assert!(less.is_none_or(|less| !has(&less) && less.len() == 1));
        let mut host = Vec::new();
        demand(&mut host, Custody::Host, &profile);
        assert!(host.is_empty());
    }
}
