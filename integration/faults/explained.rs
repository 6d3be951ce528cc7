//! `ekm token explain`, which needs no server, no configuration and no token.

use std::process::{Command, Output};

use serde_json::Value;

use crate::support::EKM;

fn explain(arguments: &[&str]) -> Output {
    let directory = tempfile::tempdir().unwrap();
    Command::new(EKM)
        .current_dir(directory.path())
        .args(["token", "explain"])
        .args(arguments)
        .output()
        .unwrap()
}

fn text(arguments: &[&str]) -> String {
    let output = explain(arguments);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_message_of_the_log_is_explained_by_its_own_words() {
    let told = text(&["CKR_DEVICE_ERROR", "--function", "C_UnwrapKey"]);
    for wanted in [
        "CKR_DEVICE_ERROR (0x30)",
        "C_UnwrapKey",
        "ambiguous",
        "tampered EEDK",
        "audit record",
    ] {
        assert!(told.contains(wanted), "no {wanted:?} in {told}");
    }
    // The same code where no cartridge is in play.
    let told = text(&["0x30", "--function", "OpenSession"]);
    assert!(told.contains("restart"), "{told}");
}

#[test]
fn the_whole_table_is_there_for_people_and_for_scripts() {
    let told = text(&[]);
    for wanted in [
        "CKR_SESSION_COUNT",
        "C_Login",
        "WHAT YOU MAY DO",
        "operator",
    ] {
        assert!(told.contains(wanted), "no {wanted:?}");
    }
    let rows: Value = serde_json::from_str(&text(&["--json"])).unwrap();
    let rows = rows.as_array().unwrap();
    assert!(rows.len() > 130, "{}", rows.len());
    for row in rows {
        for field in ["codes", "class", "reason", "ekm", "operator"] {
            assert!(!row[field].is_null(), "{row}");
        }
    }
}

#[test]
fn what_is_not_there_is_named() {
    for (arguments, says) in [
        (&["CKR_DEVICE_EROR"][..], "CKR_DEVICE_EROR"),
        (&["--function", "C_Verify"], "C_UnwrapKey"),
        (&["--profile", "sofhtsm"], "softhsm2"),
    ] {
        let output = explain(arguments);
        assert_eq!(output.status.code(), Some(1));
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(told.contains(says), "{told}");
    }
}
