use super::*;
use crate::bridge::doctor::findings::{Defence, PairMade};
use crate::bridge::doctor::findings::{Outcome, Sessions, Trusted, UnwrappedKey};
use crate::bridge::profile::{Send, Sensitive};

fn refused(code: &str) -> Outcome {
    Outcome::Refused {
        function: "C_UnwrapKey".to_owned(),
        code: code.to_owned(),
    }
}

fn rung_of(sent: Sent, key: Option<(bool, bool)>) -> Rung {
    Rung {
        sent,
        unwrap: if key.is_some() {
            Outcome::Works
        } else {
            refused("CKR_ATTRIBUTE_READ_ONLY")
        },
        key: key.map(|(sensitive, wraps)| UnwrappedKey {
            sensitive: Some(sensitive),
            extractable: Some(wraps),
            value_len: None,
            readable: !sensitive,
            set_after: if sensitive {
                Outcome::Untried("it is CKA_SENSITIVE already".to_owned())
            } else {
                Outcome::Works
            },
            wrap: if wraps {
                Outcome::Works
            } else {
                refused("CKR_KEY_UNEXTRACTABLE")
            },
        }),
    }
}

/// A token where a template works so: whether the key is sensitive and wraps.
fn token(ladder: impl Fn(Sent) -> Option<(bool, bool)>) -> Examination {
    let ladder: Vec<Rung> = Sent::ladder()
        .into_iter()
        .map(|sent| rung_of(sent, ladder(sent)))
        .collect();
    let fit = rung(&ladder);
    let hashes = [
        OaepHash::Sha256,
        OaepHash::Sha384,
        OaepHash::Sha512,
        OaepHash::Sha1,
    ];
    Examination {
        login: Some(Outcome::Works),
        pairs: PairKind::ALL
            .into_iter()
            .map(|kind| PairMade {
                kind,
                made: Outcome::Works,
                on_token: false,
                denied_uses: true,
                milliseconds: 1,
                reads_back: Some(true),
            })
            .collect(),
        data_keys: Some(DataKeys {
            import: Outcome::Works,
            generate: Outcome::Works,
            random: Outcome::Works,
            opened_with: Some(OaepHash::Sha256),
            fits: fit.map(|(sent, _)| sent),
            set_after: fit.is_some_and(|(_, set_after)| set_after),
            ladder,
            oaep: hashes
                .into_iter()
                .flat_map(|hash| [true, false].map(|labelled| (hash, labelled)))
                .map(|(hash, labelled)| Oaep {
                    hash,
                    labelled,
                    unwrap: Outcome::Works,
                    wrap: Outcome::Works,
                    decrypt: Outcome::Works,
                })
                .collect(),
            v15: V15 {
                unwrap: refused("CKR_MECHANISM_INVALID"),
                decrypt: refused("CKR_MECHANISM_INVALID"),
            },
            under_unwrap_template: Outcome::Works,
            under_protected: Outcome::Works,
        }),
        ..Examination::default()
    }
}

fn lines(fitting: &Fitting) -> Vec<(&str, &str)> {
    let breaking = fitting.differences.iter().filter(|line| line.breaks);
    breaking
        .map(|line| (line.field.as_str(), line.token.as_str()))
        .collect()
}

fn embedded() -> HsmProfile {
    HsmProfile::load("embedded").unwrap()
}

#[test]
fn a_token_that_takes_everything_fits_the_profile_that_sends_everything() {
    let fitting = fit(
        &token(|sent| Some((true, sent.extractable))),
        &embedded(),
        false,
    );
    assert_eq!(fitting.differences, []);
    assert_eq!(fitting.profile, Some(embedded()));
}

/// As openCryptoki 3.27 is: `CKA_SENSITIVE` is ignored, `CKA_EXTRACTABLE` and
/// `CKA_VALUE_LEN` are refused, and what is unwrapped can be wrapped.
#[test]
fn a_token_that_ignores_sensitive_gets_set_after_and_no_unwrap_template() {
    let found = token(|sent| (!sent.extractable && !sent.value_len).then_some((false, true)));
    let fitting = fit(&found, &embedded(), false);
    assert_eq!(
        lines(&fitting),
        [
            ("data_key.sensitive", "\"set-after\""),
            ("data_key.extractable", "\"omit\""),
            ("data_key.value_len", "\"omit\""),
            ("kek.unwrap_template", "\"never\""),
        ]
    );
    let profile = fitting.profile.unwrap();
    assert_eq!(profile.data_key.sensitive, Sensitive::SetAfter);
    assert!(fit(&found, &profile, false).fits());
    assert_eq!(profile.check(), Ok(()));
}

#[test]
fn what_a_chosen_profile_has_right_is_left_alone() {
    // Works without CKA_EXTRACTABLE, as NSS does, and with it.
    let found = token(|_| Some((true, true)));
    let mut given = embedded();
    given.data_key.extractable = Send::Omit;
    given.data_key.value_len = Send::Omit;
    let fitting = fit(&found, &given, false);
    assert_eq!(fitting.differences, []);
    assert_eq!(fitting.profile, Some(given.clone()));
    let best = fit(&found, &given, true).profile.unwrap();
    assert_eq!(best.data_key.extractable, Send::Send);
}

/// As a TPM is: it decrypts, and neither wraps nor unwraps.
#[test]
fn a_token_that_only_decrypts_is_for_host_custody() {
    let mut found = token(|_| None);
    for pair in &mut found.pairs {
        pair.denied_uses = false;
    }
    let data_keys = found.data_keys.as_mut().unwrap();
    data_keys.generate = refused("CKR_FUNCTION_NOT_SUPPORTED");
    for oaep in &mut data_keys.oaep {
        oaep.unwrap = refused("CKR_FUNCTION_NOT_SUPPORTED");
        oaep.wrap = oaep.unwrap.clone();
        if oaep.labelled {
            oaep.decrypt = refused("CKR_GENERAL_ERROR");
        }
    }
    let fitting = fit(&found, &embedded(), false);
    let able: Vec<bool> = fitting
        .verdicts
        .iter()
        .map(|verdict| verdict.able)
        .collect();
    assert_eq!(able, [false, false, true, false]);
    let lines = lines(&fitting);
    assert!(lines.contains(&("drive.forms", "[]")), "{lines:?}");
    assert!(lines.contains(&("eedk.labelled", "false")), "{lines:?}");
    assert!(
        lines.contains(&("kek.denied_uses", "\"omit\"")),
        "{lines:?}"
    );
    let profile = fitting.profile.unwrap();
    assert_eq!(profile.check(), Ok(()));
    assert!(fit(&found, &profile, false).fits());
}

/// As NSS 3.87 is: its check of a new pair wants to encrypt under the public half.
#[test]
fn a_token_whose_host_keks_must_do_more_is_left_to_custody_token() {
    let mut found = token(|sent| Some((true, sent.extractable)));
    let host = found
        .pairs
        .iter_mut()
        .find(|pair| pair.kind == PairKind::Host);
    host.unwrap().denied_uses = false;
    let fitting = fit(&found, &embedded(), false);
    assert_eq!(fitting.differences, []);
    let able: Vec<bool> = fitting
        .verdicts
        .iter()
        .map(|verdict| verdict.able)
        .collect();
    assert_eq!(able, [true, true, false, false]);
}

#[test]
fn a_kek_that_may_also_decrypt_is_no_kek_for_custody_token() {
    let mut found = token(|sent| Some((true, sent.extractable)));
    for pair in &mut found.pairs {
        pair.denied_uses = false;
    }
    let fitting = fit(&found, &embedded(), false);
    assert!(!fitting.verdicts[0].able && !fitting.verdicts[1].able);
    assert_eq!(fitting.profile.unwrap().check(), Ok(()));
}

#[test]
fn workers_stay_below_the_sessions_that_the_token_gives() {
    let mut found = token(|sent| Some((true, sent.extractable)));
    found.sessions = Some(Sessions {
        opened: 16,
        bound: 64,
        ended: Some(refused("CKR_SESSION_COUNT")),
    });
    let mut given = embedded();
    assert!(fit(&found, &given, false).fits());
    given.session.workers = 16;
    given.session.processes = 4;
    let profile = fit(&found, &given, false).profile.unwrap();
    assert_eq!((profile.session.workers, profile.session.processes), (3, 4));
    assert_eq!(profile.session.limit, Some(16));
    assert_eq!(profile.check(), Ok(()));
}

#[test]
fn a_token_that_makes_no_keks_is_not_judged_further() {
    let mut found = token(|_| None);
    for pair in &mut found.pairs {
        pair.made = refused("CKR_FUNCTION_NOT_SUPPORTED");
    }
    let data_keys = found.data_keys.as_mut().unwrap();
    for oaep in &mut data_keys.oaep {
        oaep.decrypt = Outcome::Untried("there is no throw-away KEK".to_owned());
    }
    let fitting = fit(&found, &embedded(), false);
    assert_eq!(lines(&fitting), [("kek.generate", "\"vendor-tool\"")]);
    assert_eq!(fitting.profile, None);
}

#[test]
fn trust_that_the_user_can_give_himself_is_worth_nothing() {
    let stopped = Defence::quietly("C_WrapKey", "CKR_KEY_NOT_WRAPPABLE");
    let mut found = token(|sent| Some((true, sent.extractable)));
    found.trusted = Some(Trusted {
        user_creates: Outcome::Works,
        user_sets: refused("CKR_ATTRIBUTE_READ_ONLY"),
        user_copies: refused("CKR_ATTRIBUTE_READ_ONLY"),
        generated: stopped.clone(),
        unwrapped: stopped,
    });
    let able = |found: &Examination| {
        let verdicts = fit(found, &embedded(), false).verdicts;
        let trusted = verdicts.iter().find(|v| v.way == Way::WrapWithTrusted);
        trusted.unwrap().able
    };
    assert!(!able(&found));
    found.trusted.as_mut().unwrap().user_creates = refused("CKR_ATTRIBUTE_READ_ONLY");
    assert!(able(&found));
}

#[test]
fn what_was_not_looked_at_is_not_judged() {
    let fitting = fit(&Examination::default(), &embedded(), false);
    assert!(fitting.verdicts.is_empty() && fitting.profile.is_none() && fitting.fits());
}

/// A token like ICSF's: PKCS#1 v1.5 and no OAEP.
fn v15_only() -> Examination {
    let mut found = token(|_| None);
    let data_keys = found.data_keys.as_mut().unwrap();
    for oaep in &mut data_keys.oaep {
        for outcome in [&mut oaep.unwrap, &mut oaep.wrap, &mut oaep.decrypt] {
            *outcome = refused("CKR_MECHANISM_INVALID");
        }
    }
    data_keys.v15 = V15 {
        unwrap: Outcome::Works,
        decrypt: Outcome::Works,
    };
    found
}

#[test]
fn a_token_without_oaep_gets_v15_in_custody_host() {
    let found = v15_only();
    let fitting = fit(&found, &embedded(), false);
    let profile = fitting.profile.clone().unwrap();
    assert_eq!(profile.eedk, WrapAlgorithm::Pkcs1V15);
    assert!(profile.host_only());
    assert!(lines(&fitting).contains(&("eedk.padding", "\"pkcs1-v1.5\"")));
    let host = fitting
        .verdicts
        .iter()
        .find(|one| one.way == Way::HostCustody);
    let host = host.unwrap();
    assert!(
        host.able && host.why.contains("pkcs1_v15_eedks"),
        "{host:?}"
    );
    let words = without_oaep(found.data_keys.as_ref().unwrap()).unwrap();
    assert!(words.contains("no OAEP"), "{words}");
}

#[test]
fn a_token_that_has_oaep_is_never_told_to_use_v15() {
    let mut found = token(|sent| Some((true, sent.extractable)));
    found.data_keys.as_mut().unwrap().v15 = V15 {
        unwrap: Outcome::Works,
        decrypt: Outcome::Works,
    };
    assert_eq!(without_oaep(found.data_keys.as_ref().unwrap()), None);
    assert_eq!(fit(&found, &embedded(), true).differences, []);
    // One that uses it is told of OAEP, and works as it is.
    let mut given = embedded();
    given.eedk = WrapAlgorithm::Pkcs1V15;
    let fitting = fit(&found, &given, false);
    assert!(fitting.fits());
    let [difference] = fitting.differences.as_slice() else {
        panic!("{:?}", fitting.differences);
    };
    assert_eq!(
        (difference.field.as_str(), difference.token.as_str()),
        ("eedk.padding", "\"oaep\"")
    );
    assert_eq!(
        fitting.profile.unwrap().eedk,
        WrapAlgorithm::oaep(OaepHash::Sha256, true)
    );
}
