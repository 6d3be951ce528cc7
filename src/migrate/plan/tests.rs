//! What a plan says of drives, labels and what is missing.

use super::*;
use crate::migrate::drivetable;
use crate::migrate::keys::KeyKind;

fn plan(properties: &str, table: &str, keys: Option<Vec<EkmKey>>) -> Plan {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("k.properties");
    std::fs::write(&path, format!("debug=none\n{properties}")).unwrap();
    Plan::of(&Sources {
        properties: Properties::read(&path).unwrap(),
        drives: Some(drivetable::parse(table)),
        keys,
        history: Vec::new(),
        notes: Vec::new(),
        now: time::OffsetDateTime::UNIX_EPOCH,
        keystore: None,
        password_file: None,
        hsm: None,
    })
}

fn only(plan: &Plan) -> &DriveRow {
    let [row] = plan.drives.as_slice() else {
        panic!("{plan:#?}");
    };
    row
}

fn labels(row: &DriveRow) -> (Option<String>, Option<String>) {
    let text = |kek: &Option<KekRef>| kek.as_ref().map(|kek| kek.label.to_string());
    let import = row.import.as_ref().unwrap();
    (text(&import.kek1), text(&import.kek2))
}

const SERIAL: &str = "SerialNumber = 000001365054\n";

#[test]
fn one_label_is_the_first_one() {
    let plan = plan("", &format!("{SERIAL}AliasTwo = b\n"), None);
    assert_eq!(labels(only(&plan)), (Some("b".to_owned()), None));
}

#[test]
fn one_label_in_both_places_is_taken_once_and_told() {
    let plan = plan("", &format!("{SERIAL}AliasOne = b\nAliasTwo = B\n"), None);
    assert_eq!(labels(only(&plan)), (Some("b".to_owned()), None));
    assert!(
        plan.conflicts
            .iter()
            .any(|told| told.contains("taken once")),
        "{plan:#?}"
    );
}

#[test]
fn a_drive_whose_label_is_none_does_not_move_under_the_defaults() {
    let long = "x".repeat(65);
    let plan = plan("", &format!("{SERIAL}AliasOne = {long}\n"), None);
    let row = only(&plan);
    assert_eq!(
        (row.verdict, row.import.is_none()),
        (Verdict::Conflict, true)
    );
    assert!(
        plan.conflicts.first().unwrap().contains("at most 64"),
        "{plan:#?}"
    );
    assert_eq!(plan.imports().count(), 0);
}

#[test]
fn a_drive_that_stands_there_twice_moves_only_where_both_say_the_same() {
    let same = format!("{SERIAL}AliasOne = a\nSerialNumber = 0001365054\nAliasOne = A\n");
    let same_plan = plan("", &same, None);
    assert_eq!(
        (same_plan.drives.len(), same_plan.imports().count()),
        (1, 1)
    );
    assert!(same_plan.conflicts.is_empty(), "{same_plan:#?}");
    let other = format!("{same}{SERIAL}AliasOne = b\nTimeStamp = today\n");
    let plan = plan("", &other, None);
    assert_eq!((plan.drives.len(), plan.imports().count()), (1, 0));
    let told = plan.conflicts.first().unwrap();
    assert!(told.contains("twice") && told.contains("today"), "{told}");
}

#[test]
fn a_wrong_wwn_is_told_and_the_drive_moves_without_it() {
    let plan = plan("", &format!("{SERIAL}WWN = 50:05\n"), None);
    assert_eq!(only(&plan).import.as_ref().unwrap().wwn, None);
    assert!(
        plan.conflicts.first().unwrap().contains("16 hexadecimal"),
        "{plan:#?}"
    );
}

#[test]
fn labels_that_nothing_has_are_told_only_where_the_keystore_was_read() {
    let properties = "drive.default.alias1=there\ndrive.default.alias2=gone\n";
    let keys = vec![EkmKey {
        alias: "THERE".to_owned(),
        created: None,
        kind: KeyKind::Pair {
            bits: 2048,
            hash: crate::key::KekHash::from([1; 32]),
            validity: None,
        },
    }];
    let read = plan(properties, "", Some(keys));
    let [told] = read.conflicts.as_slice() else {
        panic!("{read:#?}");
    };
    assert!(told.contains("gone is used by default"), "{told}");
    assert_eq!(read.keys.first().unwrap().used, ["default"]);
    assert!(plan(properties, "", None).conflicts.is_empty());
}

#[test]
fn passwords_are_in_no_plan() {
    let plan = plan(
        "config.keystore.password=geheim\nAdmin.ssl.keystore.password=geheim\n",
        "",
        None,
    );
    assert!(!format!("{plan:?}").contains("geheim"));
    assert!(!serde_json::to_string(&plan).unwrap().contains("geheim"));
}

#[test]
fn an_unknown_type_of_keystore_is_told() {
    let plan = plan("config.keystore.type=BKS\n", "", None);
    assert!(plan.conflicts.first().unwrap().contains("BKS"), "{plan:#?}");
    assert!(plan.keystore.is_none());
}
