//! What commands say and print: in the words of what they are about, and for scripts.

use std::process::Command;

use serde_json::Value;

use crate::door::House;
use crate::support::write_private;

fn openssl(house: &House, arguments: &[&str]) {
    let output = Command::new("openssl")
        .args(arguments)
        .current_dir(house.at(""))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// Standard output and error of what ends with that code.
fn said(house: &House, code: i32, arguments: &[&str]) -> String {
    let output = house.run(arguments);
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
    text
}

fn json(house: &House, arguments: &[&str]) -> Value {
    let text = house.done(&[&["--json"], arguments].concat());
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{arguments:?}: {error}\n{text}"))
}

/// Where bytes are written as a list of numbers.
fn numbers(value: &Value, place: &str, found: &mut Vec<String>) {
    match value {
        Value::Array(all) if all.len() > 8 && all.iter().all(Value::is_number) => {
            found.push(place.to_owned());
        }
        Value::Array(all) => all.iter().for_each(|one| numbers(one, place, found)),
        Value::Object(all) => all
            .iter()
            .for_each(|(name, one)| numbers(one, &format!("{place}.{name}"), found)),
        _ => {}
    }
}

#[test]
fn no_bytes_are_printed_as_a_list_of_numbers() {
    let house = House::new("", "");
    house.done(&["kek", "generate", "SIGNS", "--bits", "2048", "--sign"]);
    house.done(&[
        "kek", "cert", "issue", "SIGNS", "--ca", "tls", "--out", "kek.crt",
    ]);
    house.done(&["kek", "cert", "import", "SIGNS", "kek.crt"]);
    openssl(
        &house,
        &["genpkey", "-algorithm", "RSA", "-out", "drive.key"],
    );
    openssl(
        &house,
        &["pkey", "-in", "drive.key", "-pubout", "-out", "drive.pem"],
    );
    house.done(&[
        "drive",
        "add",
        "000000000001",
        "--key",
        "drive.pem",
        "--wwn",
        "5000000000000001",
    ]);
    for arguments in [
        &["kek", "list"][..],
        &["kek", "show", "SIGNS"],
        &["kek", "adopt"],
        &["drive", "list"],
        &["drive", "show", "000000000001"],
        &["volume", "list"],
        &["token", "status"],
        &["slot", "list", "--profile", "embedded"],
        &["assess"],
        &["audit", "show"],
    ] {
        let mut found = Vec::new();
        numbers(&json(&house, arguments), "", &mut found);
        assert!(found.is_empty(), "{arguments:?}: {found:?}");
    }
    let kek = json(&house, &["kek", "show", "SIGNS"]);
    for field in ["spki", "certificate"] {
        // DER of a sequence.
        let text = kek[0][field].as_str().unwrap();
        assert!(text.starts_with("MII"), "{field}: {text}");
    }
    let drive = json(&house, &["drive", "show", "000000000001"]);
    assert!(
        drive[0]["key"]["pinned"]
            .as_str()
            .unwrap()
            .starts_with("MII")
    );
    assert_eq!(drive[0]["trusted_on"], Value::Null);
    let shown = house.done(&["drive", "show", "000000000001"]);
    assert!(shown.contains("not known: no server runs"), "{shown}");
}

#[test]
fn pem_is_printed_as_json_where_that_is_asked_for() {
    let house = House::new("", "");
    house.done(&["kek", "generate", "SIGNS", "--bits", "2048", "--sign"]);
    let key = json(&house, &["kek", "export", "SIGNS", "--public"]);
    assert_eq!(key["kind"], "PUBLIC KEY");
    let pem = key["pem"].as_str().unwrap();
    assert!(pem.starts_with("-----BEGIN PUBLIC KEY-----"), "{pem}");
    let request = json(&house, &["kek", "csr", "SIGNS"]);
    assert_eq!(request["kind"], "CERTIFICATE REQUEST");
    let refused = said(&house, 1, &["--json", "config", "example"]);
    assert!(refused.contains("leave --json away"), "{refused}");
}

#[test]
fn keys_that_cannot_be_keks_are_told_by_what_they_are() {
    let house = House::bare("", "");
    write_private(&house.at("password"), "store-password");
    openssl(
        &house,
        &[
            "genpkey",
            "-algorithm",
            "RSA",
            "-pkeyopt",
            "rsa_keygen_bits:1024",
            "-out",
            "short.pem",
        ],
    );
    openssl(
        &house,
        &[
            "genpkey",
            "-algorithm",
            "EC",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-out",
            "ec.pem",
        ],
    );
    for (file, words) in [
        (
            "short.pem",
            &["1024", "it is RSA of 1024 bits, and a KEK has 2048"][..],
        ),
        (
            "ec.pem",
            &["EC key pair", "it is not an RSA key (EC), and KEKs are RSA"],
        ),
    ] {
        let text = said(&house, 0, &["kek", "list", "--file", file]);
        assert!(!text.contains("unreadable"), "{text}");
        for word in words {
            assert!(text.contains(word), "{file}: no {word:?} in {text}");
        }
    }
}

#[test]
fn a_keystore_is_told_of_its_password_and_that_it_makes_no_keys() {
    let old =
        "[[keystores]]\nname = \"old\"\nfile = \"old.pem\"\npassword = { file = \"password\" }\n";
    let house = House::new("", "");
    house.configure("", old);
    openssl(&house, &["genpkey", "-algorithm", "RSA", "-out", "old.pem"]);
    let status = house.done(&["token", "status"]);
    assert!(status.contains("cannot read the password from"), "{status}");
    assert!(!status.contains("cannot read the PIN"), "{status}");
    let check = said(&house, 3, &["config", "check"]);
    assert!(check.contains("cannot read the password from"), "{check}");
    write_private(&house.at("password"), "any");
    let refused = said(&house, 1, &["kek", "generate", "NEW", "--token", "old"]);
    assert!(refused.contains("make no keys"), "{refused}");
    assert!(!refused.contains("EE25"), "{refused}");
}

#[test]
fn a_command_of_the_host_names_no_default_of_the_server() {
    let house = House::bare("", "");
    let help = house.done(&["tape", "policy", "explain", "--help"]);
    assert!(!help.contains("[default: ekm.toml]"), "{help}");
    assert!(help.contains("host.toml"), "{help}");
}
