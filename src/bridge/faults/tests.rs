use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use super::FaultClass::{
    Ambiguous, Find, Full, Harmless, Login, NewSession, Operator, Request, Restart,
};
use super::*;

fn class(function: &str, rv: CK_RV) -> FaultClass {
    meaning(function, rv, &[]).class
}

/// Every code of the table, a vendor's and one that no standard has.
fn every_code() -> impl Iterator<Item = CK_RV> {
    CODES
        .iter()
        .map(|row| row.code)
        .chain([ck::CKR_VENDOR_DEFINED + 0x42, 0x7fff_0000])
}

#[test]
fn every_code_has_one_row() {
    let codes: BTreeSet<CK_RV> = CODES.iter().map(|row| row.code).collect();
    assert_eq!(codes.len(), CODES.len());
}

/// The codes as the bindings' own source names them.
fn bound_codes() -> BTreeMap<String, CK_RV> {
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let metadata = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--locked", "--offline"])
        .args(["--filter-platform", &target])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(
        metadata.status.success(),
        "{}",
        String::from_utf8_lossy(&metadata.stderr)
    );
    let metadata: serde_json::Value = serde_json::from_slice(&metadata.stdout).unwrap();
    let manifest = metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .find(|package| package["name"] == "cryptoki-sys")
        .unwrap()["manifest_path"]
        .as_str()
        .unwrap()
        .to_owned();
    let bindings =
        std::path::Path::new(&manifest).with_file_name("src/bindings/x86_64-unknown-linux-gnu.rs");
    let text = std::fs::read_to_string(bindings).unwrap();
    text.lines()
        .filter_map(|line| line.strip_prefix("pub const ")?.split_once(": CK_RV = "))
        .map(|(name, value)| {
            (
                name.to_owned(),
                value.trim_end_matches(';').parse().unwrap(),
            )
        })
        .collect()
}

#[test]
fn every_code_of_the_bindings_has_a_row_under_its_name() {
    let mut bound = bound_codes();
    assert_eq!(bound.remove("CKR_OK"), Some(0));
    assert_eq!(
        bound.remove("CKR_VENDOR_DEFINED"),
        Some(ck::CKR_VENDOR_DEFINED)
    );
    assert!(bound.len() > 100, "{}", bound.len());
    let table: BTreeMap<String, CK_RV> = CODES
        .iter()
        .map(|row| (row.name.to_owned(), row.code))
        .collect();
    assert_eq!(table, bound);
}

#[test]
fn every_code_that_cryptoki_knows_has_a_row() {
    use cryptoki::error::RvError;
    for code in 1..0x1000 {
        let known = !matches!(
            Rv::from(code),
            Rv::Ok | Rv::Error(RvError::UnknownErrorCode(_))
        );
        let listed = CODES.iter().any(|row| row.code == code);
        assert!(listed || !known, "{code:#x}");
    }
}

#[test]
fn the_functions_are_those_that_the_bridge_calls() {
    let mut source = include_str!("../pkcs11.rs").to_owned();
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/bridge/pkcs11");
    for file in std::fs::read_dir(folder).unwrap() {
        source += &std::fs::read_to_string(file.unwrap().path()).unwrap();
    }
    let calls = source.split("call!(").skip(1).filter_map(|after| {
        let name: String = after
            .trim_start()
            .trim_start_matches("self,")
            .trim_start()
            .chars()
            .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
            .collect();
        name.starts_with("C_").then_some(name)
    });
    let called: BTreeSet<String> = calls.collect();
    let listed: BTreeSet<String> = FUNCTIONS.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(called, listed, "FUNCTIONS in faults/functions.rs");
}

#[test]
fn every_function_and_code_has_one_meaning_with_its_reason() {
    for function in FUNCTIONS {
        let rows = || ROWS.iter().filter(|row| row.functions.contains(function));
        let rests = rows().filter(|row| matches!(row.codes, Codes::Rest(_)));
        assert!(rests.count() <= 1, "{function}: two rows for the rest");
        for code in every_code() {
            let exact = rows()
                .filter(|row| match row.codes {
                    Codes::These(codes) => codes.contains(&code),
                    Codes::Vendors => code >= ck::CKR_VENDOR_DEFINED,
                    Codes::Rest(_) => false,
                })
                .count();
            assert!(exact <= 1, "{function} {}: {exact} rows", ckr_name(code));
            let found = meaning(function, code, &[]);
            for text in [
                found.reason,
                found.advice.unwrap_or("-"),
                found.class.action(),
                found.class.advice(),
            ] {
                assert!(!text.trim().is_empty(), "{function} {}", ckr_name(code));
            }
            assert!(found.reason.ends_with('.'), "{}", found.reason);
        }
    }
}

#[test]
fn no_row_speaks_of_a_function_that_is_never_called() {
    for row in ROWS {
        for function in row.functions {
            assert!(FUNCTIONS.contains(function), "{function}");
        }
    }
}

#[test]
fn no_row_is_without_effect() {
    for row in ROWS {
        let counts = row.functions.iter().all(|function| {
            every_code().any(|code| {
                let found = meaning(function, code, &[]);
                found.source == Source::Function && found.reason == row.reason
            })
        });
        assert!(counts, "{:?}: {}", row.functions, row.reason);
    }
}

/// What the modules at hand answered to an EEDK that was tampered with, cut
/// short, or held 20 bytes.
#[test]
fn a_tampered_eedk_does_not_condemn_the_token() {
    for rv in [
        ck::CKR_GENERAL_ERROR,
        ck::CKR_DEVICE_ERROR,
        ck::CKR_FUNCTION_FAILED,
        ck::CKR_WRAPPED_KEY_INVALID,
        ck::CKR_ENCRYPTED_DATA_LEN_RANGE,
        ck::CKR_ENCRYPTED_DATA_INVALID,
        ck::CKR_DATA_LEN_RANGE,
        ck::CKR_KEY_SIZE_RANGE,
        ck::CKR_ARGUMENTS_BAD,
        ck::CKR_TEMPLATE_INCONSISTENT,
    ] {
        for function in OPENS {
            assert_eq!(
                class(function, rv),
                Ambiguous,
                "{function} {}",
                ckr_name(rv)
            );
        }
    }
}

#[test]
fn a_pin_is_never_tried_again_after_a_refusal() {
    for rv in [
        ck::CKR_PIN_INCORRECT,
        ck::CKR_PIN_LOCKED,
        ck::CKR_PIN_EXPIRED,
        ck::CKR_PIN_INVALID,
        ck::CKR_PIN_LEN_RANGE,
        ck::CKR_PIN_TOO_WEAK,
        ck::CKR_USER_PIN_NOT_INITIALIZED,
        ck::CKR_VENDOR_DEFINED + 1,
    ] {
        assert_eq!(class("C_Login", rv), Operator, "{}", ckr_name(rv));
    }
}

/// `Operator`: it was judged. `Ambiguous`: nobody knows. Others: it was not.
#[test]
fn a_login_whose_answer_tells_nothing_of_the_pin_is_never_taken_for_one_that_does() {
    let unjudged: BTreeSet<CK_RV> = every_code()
        .filter(|code| !matches!(class("C_Login", *code), Operator | Ambiguous))
        .collect();
    let those = [
        ck::CKR_USER_ALREADY_LOGGED_IN,
        ck::CKR_SESSION_HANDLE_INVALID,
        ck::CKR_CRYPTOKI_NOT_INITIALIZED,
        ck::CKR_USER_ANOTHER_ALREADY_LOGGED_IN,
        ck::CKR_USER_TOO_MANY_TYPES,
        ck::CKR_SESSION_READ_ONLY_EXISTS,
    ];
    assert_eq!(unjudged, BTreeSet::from(those));
}

#[test]
fn a_token_with_too_many_sessions_is_not_a_broken_token() {
    assert_eq!(class("C_OpenSession", ck::CKR_SESSION_COUNT), Full);
    assert_eq!(class("C_OpenSession", ck::CKR_DEVICE_ERROR), Restart);
    assert_eq!(
        class("C_OpenSession", ck::CKR_SESSION_READ_WRITE_SO_EXISTS),
        Restart
    );
    assert_eq!(class("C_OpenSession", ck::CKR_TOKEN_NOT_PRESENT), Restart);
}

/// What SoftHSM, kryoptic and openCryptoki answered after a logout and after `C_CloseAllSessions`.
#[test]
fn what_a_lost_login_or_session_answers_is_mended_and_not_blamed() {
    for (function, rv, expected) in [
        ("C_UnwrapKey", ck::CKR_UNWRAPPING_KEY_HANDLE_INVALID, Find),
        ("C_Decrypt", ck::CKR_OBJECT_HANDLE_INVALID, Find),
        ("C_Decrypt", ck::CKR_KEY_HANDLE_INVALID, Find),
        ("C_GenerateKey", ck::CKR_USER_NOT_LOGGED_IN, Login),
        ("C_UnwrapKey", ck::CKR_GENERAL_ERROR, Ambiguous),
        ("C_UnwrapKey", ck::CKR_SESSION_HANDLE_INVALID, NewSession),
        ("C_DecryptInit", ck::CKR_OPERATION_ACTIVE, NewSession),
        ("C_WrapKey", ck::CKR_KEY_HANDLE_INVALID, NewSession),
        ("C_WrapKey", ck::CKR_WRAPPING_KEY_HANDLE_INVALID, Find),
        ("C_EncryptInit", ck::CKR_KEY_HANDLE_INVALID, NewSession),
        ("C_DestroyObject", ck::CKR_OBJECT_HANDLE_INVALID, NewSession),
        (
            "C_GetSessionInfo",
            ck::CKR_SESSION_HANDLE_INVALID,
            NewSession,
        ),
        ("C_CloseSession", ck::CKR_SESSION_HANDLE_INVALID, Harmless),
    ] {
        assert_eq!(class(function, rv), expected, "{function} {}", ckr_name(rv));
    }
}

#[test]
fn what_fails_before_a_request_is_in_play_is_the_module() {
    for function in [
        "C_Initialize",
        "C_GetSlotList",
        "C_OpenSession",
        "C_FindObjectsInit",
    ] {
        for code in every_code() {
            let class = class(function, code);
            assert!(
                !matches!(class, Request | Ambiguous | Harmless),
                "{function} {}: {class}",
                ckr_name(code)
            );
        }
    }
}

#[test]
fn codes_are_named_as_the_standard_names_them() {
    assert_eq!(ckr_name(ck::CKR_DEVICE_ERROR), "CKR_DEVICE_ERROR");
    assert_eq!(ckr_name(0x8000_0042), "CKR_VENDOR_DEFINED+0x42");
    for code in every_code() {
        assert_eq!(ckr_code(&ckr_name(code)), Some(code));
        assert_eq!(ckr_code(&ckr_name(code).to_lowercase()), Some(code));
        assert_eq!(ckr_code(&format!("{code:#x}")), Some(code));
        assert_eq!(ckr_code(&code.to_string()), Some(code));
    }
    assert_eq!(ckr_code("device_error"), Some(ck::CKR_DEVICE_ERROR));
    for wrong in ["", "CKR_", "CKR_DEVICE_EROR", "-1", "0x", "C_Login"] {
        assert_eq!(ckr_code(wrong), None, "{wrong}");
    }
}

#[test]
fn the_names_of_the_classes_are_those_of_a_profile() {
    for class in FaultClass::ALL {
        assert_eq!(serde_json::to_value(class).unwrap(), class.name());
    }
}

#[test]
fn a_code_is_explained_with_the_functions_that_mean_something_else() {
    let asked = Asked::parse(Some("session_count"), None).unwrap();
    let rows = explain(asked, &[]);
    assert_eq!(rows[0].class, Full);
    assert!(rows[0].functions.is_empty());
    let one = Asked::parse(Some("0x30"), Some("openSession")).unwrap();
    let rows = explain(one, &[]);
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].class, Restart);
    assert_eq!(rows[0].functions, ["C_OpenSession"]);
    assert!(rows[0].standard.as_ref().unwrap().contains("token"));
    assert!(Asked::parse(Some("CKR_NO"), None).is_err());
    assert!(Asked::parse(None, Some("C_Verify")).is_err());
}

#[test]
fn the_whole_table_has_every_code_and_every_row() {
    let everything = Asked::parse(None, None).unwrap();
    let rows = explain(everything, &[]);
    assert_eq!(rows.len(), CODES.len() + 1 + ROWS.len());
    for row in &rows {
        assert!(!row.codes.is_empty(), "{row:?}");
        assert!(!row.reason.is_empty() && !row.operator.is_empty());
    }
}

/// The supervisor ends such a bridge and starts another, whatever the class; `supervisor/link.rs` has its side.
#[test]
fn what_is_said_of_a_call_that_opens_a_token_is_that_another_bridge_is_started() {
    for function in [
        "C_Initialize",
        "C_GetSlotList",
        "C_GetTokenInfo",
        "C_OpenSession",
        "C_GetSessionInfo",
        "C_FindObjectsInit",
        "C_FindObjects",
    ] {
        for code in every_code() {
            let asked = Asked::parse(Some(&code.to_string()), Some(function)).unwrap();
            let row = explain(asked, &[]).remove(0);
            let told = match row.class {
                Operator | Full | Restart => row.ekm.contains("another"),
                // The same is said of all of them beside the table.
                NewSession | Find | Login => FaultClass::OPENING.contains("another"),
                Harmless | Request | Ambiguous => false,
            };
            assert!(told, "{function} {:?}: {}", row.codes, row.ekm);
            assert!(!row.ekm.contains("does not try again"), "{}", row.ekm);
        }
    }
    let asked = Asked::parse(Some("CKR_ARGUMENTS_BAD"), Some("C_Initialize")).unwrap();
    let row = explain(asked, &[]).remove(0);
    assert_eq!(row.class, Operator);
    assert!(!row.ekm.contains("login"), "{}", row.ekm);
}
