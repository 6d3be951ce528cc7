//! What will work at a site: before a migration from EKM's files, and after it from state and tokens.

use serde_json::Value;

use crate::door::House;
use crate::migrate::Old;
use crate::support::write_private;

fn row<'a>(rows: &'a Value, name: &str) -> &'a Value {
    rows.as_array()
        .unwrap()
        .iter()
        .find(|row| row["name"] == name)
        .unwrap_or_else(|| panic!("no {name} in {rows:#}"))
}

fn assess(house: &House, more: &[&str]) -> Value {
    let text = house.done(&[&["assess", "--json"], more].concat());
    serde_json::from_str(&text).unwrap()
}

#[test]
fn an_ekm_is_judged_before_it_is_migrated() {
    let old = Old::new();
    let arguments = [
        "assess",
        "--ekm21",
        "../ekm/KeyManagerConfig.properties",
        "--drive-table",
        "../ekm/drives.txt",
        "--password-file",
        "../password",
        "--model",
        "1365054=hp-lto6",
    ];
    // A serial of seven digits is none.
    let output = old.run(&arguments);
    assert_eq!(output.status.code(), Some(2));
    let mut arguments = arguments;
    arguments[8] = "0001365054=HP-LTO6";
    let report = old.json(&arguments);
    let drives = &report["drives"];
    let known = row(drives, "000001365054");
    assert_eq!(known["verdict"], "waits");
    assert_eq!(known["ways"]["t10_02h"], "yes");
    assert_eq!(known["ways"]["transparent"], "no");
    assert_eq!(known["ways"]["library"], "no");
    let unknown = row(drives, "001365055A12");
    assert_eq!(unknown["verdict"], "unknown");
    assert_eq!(unknown["ways"]["t10_02h"], "unknown");
    assert_eq!(row(drives, "000001365056")["verdict"], "no");
    assert_eq!(row(&report["keys"], "cert1")["verdict"], "waits");
    assert_eq!(row(&report["keys"], "lto000")["verdict"], "no");
    assert_eq!(row(&report["stores"], "JCEKS")["verdict"], "waits");
    let tapes = report["tapes"]["unreadable"].as_array().unwrap();
    assert_eq!(tapes.len(), 2, "{tapes:?}");
    assert_eq!(tapes[0]["keks"], serde_json::json!(["cert1", "cert2"]));

    let text = old.done(&arguments);
    assert!(
        text.starts_with("Keys and records move; cartridges that IBM's EKM keyed"),
        "{text}"
    );
    // Nothing of a site was made.
    assert!(!old.at("site/state").exists() && !old.at("site/audit").exists());

    let refused = old.run(&["assess", "--model", "000001365054=ts9999"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("ts1120"));
}

#[test]
fn a_site_is_judged_by_its_state_and_its_tokens() {
    let house = House::new("", "");
    let drive = |serial: &str, more: &[&str]| {
        house.done(&[&["drive", "add", serial], more].concat());
    };
    drive("000000000001", &["--form", "t10-00h", "--custody", "host"]);
    house.done(&[
        "softdrive",
        "init",
        "d2",
        "--serial",
        "000000000002",
        "--wwn",
        "5005076300C0FFE2",
    ]);
    let pem = house.done(&["softdrive", "key", "d2"]);
    std::fs::write(house.at("d2.pem"), pem).unwrap();
    drive(
        "000000000002",
        &["--wwn", "5005076300C0FFE2", "--key", "d2.pem"],
    );

    let report = assess(&house, &["--model", "000000000002=ibm-lto4"]);
    // Its KEK opens only inside the token.
    assert_eq!(row(&report["drives"], "000000000001")["verdict"], "no");
    house.done(&[
        "kek",
        "generate",
        "KEK2",
        "--bits",
        "2048",
        "--custody",
        "host",
    ]);
    house.done(&["drive", "mod", "000000000001", "--kek1", "KEK2"]);
    let after = assess(&house, &[]);
    assert_eq!(row(&after["drives"], "000000000001")["verdict"], "host");
    assert_eq!(row(&after["keys"], "KEK2")["verdict"], "host");
    let wrapped = row(&report["drives"], "000000000002");
    assert_eq!(wrapped["verdict"], "no");
    assert!(
        wrapped["why"].as_str().unwrap().contains("t10-00h"),
        "{wrapped}"
    );
    let report = assess(&house, &[]);
    assert_eq!(row(&report["drives"], "000000000002")["verdict"], "works");
    let token = row(&report["stores"], "main");
    assert_eq!(token["verdict"], "works");
    assert!(
        token["leaves"].as_str().unwrap().contains("own process"),
        "{token}"
    );
    assert_eq!(row(&report["keys"], "KEK1")["verdict"], "works");
    assert_eq!(report["tapes"]["unreadable"], serde_json::json!([]));

    // A default that no token has any more, and a token that is not there.
    house.done(&["kek", "default", "--none"]);
    let report = assess(&house, &[]);
    let without = row(&report["drives"], "000000000002");
    assert!(
        without["why"].as_str().unwrap().contains("no default"),
        "{without}"
    );
    write_private(&house.at("pin"), "no-such-pin");
    let report = assess(&house, &[]);
    assert_eq!(row(&report["stores"], "main")["verdict"], "unknown");
    let note = report["notes"][0].as_str().unwrap();
    assert!(note.contains("KEKs could not be looked at"), "{note}");
}

#[test]
fn what_is_documented_of_drive_models_is_printed() {
    let house = House::bare("", "");
    let text = house.done(&["assess", "--models"]);
    for model in ["ts1120", "hp-lto6", "No real drive has been tried"] {
        assert!(text.contains(model), "{text}");
    }
}
