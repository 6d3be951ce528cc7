//! Whose cartridge it is, and where its EEDKs are.

use super::*;
use crate::t10::{Attribute, AttributeFormat, AttributeId, Attributes};

fn attribute(house: &mut House, id: u16, value: &[u8]) {
    let format = if id == 0x0806 {
        AttributeFormat::Ascii
    } else {
        AttributeFormat::Binary
    };
    let attribute = Attribute::new(AttributeId(id), format, value.to_vec());
    let mut drive = crate::scsi::Drive::new(house.port.clone());
    drive.test_unit_ready().unwrap();
    drive.test_unit_ready().unwrap();
    drive
        .write_attributes(&Attributes(vec![attribute]))
        .unwrap();
}

#[test]
fn cartridge_of_another_barcode_is_refused() {
    let mut house = House::new();
    house.held.take_over().unwrap();
    house.load("VOL001");
    let refused = house.refused("VOL002", "SECURE", "DISP=NEW");
    assert!(
        refused.contains("VOL001") && refused.contains("VOL002"),
        "{refused}"
    );
    attribute(&mut house, 0x0806, format!("{:<32}", "VOL002L6").as_bytes());
    house.open("VOL002", "SECURE", "DISP=NEW").unwrap();
    house.close();
    let refused = house.refused("VOL00", "SECURE", "DISP=NEW");
    assert!(refused.contains("VOL002L6"), "{refused}");
}

#[test]
fn no_cartridge_is_said_at_once() {
    let mut house = House::new();
    house.held.take_over().unwrap();
    let refused = house.open("VOL001", "SECURE", "DISP=NEW").unwrap_err();
    assert!(refused.to_string().contains("load VOL001"), "{refused}");
}

#[test]
fn broken_attributes_are_replaced_by_the_catalog() {
    let mut house = House::new();
    house.held.take_over().unwrap();
    let dki = house.written("VOL001");
    house.load("VOL001");
    attribute(
        &mut house,
        0x1480,
        &[0x30, 0x82, 0, 9, 1, 2, 3, 4, 5, 6, 7, 8, 9],
    );
    attribute(&mut house, 0x1481, b"scribble");
    let opened = house.open("VOL001", "", "DISP=MOD").unwrap();
    let key = opened.key.unwrap();
    assert_eq!(key.dki, dki);
    assert!(matches!(key.eedks, Home::Catalog(_)), "{:?}", key.eedks);
    let told = opened.warnings.join("; ");
    assert!(
        told.contains("catalog") && told.contains("broken"),
        "{told}"
    );
    assert_eq!(
        house.keys.server().resolved.as_ref().unwrap().dki,
        Some(dki)
    );
    assert!(house.writes(b"more"));
    house.close();
}

#[test]
fn blocks_count_and_not_the_eedks_of_another_key() {
    let mut house = House::new();
    house.held.take_over().unwrap();
    let first = house.written("VOL001");
    let second = house.written("VOL002");
    // EEDKs of the second on the first.
    let stale = house.keys.server().keys[&second].1.clone();
    house.load("VOL001");
    house.port.execute(&[0; 6], Data::None, SECOND).unwrap();
    let old = home::Memory::read(&mut house.held.unit).unwrap();
    let stale: Vec<Vec<u8>> = stale.iter().map(Eedk::encode).collect();
    old.replace(&mut house.held.unit, &stale).unwrap();
    let opened = house.open("VOL001", "", "DISP=OLD").unwrap();
    assert_eq!(opened.key.unwrap().dki, first);
    let asked = house.keys.server().resolved.clone().unwrap();
    assert_eq!((asked.eedks.len(), asked.dki), (0, Some(first)));
    assert_eq!(read(&mut house.port).unwrap(), b"the first block");
}

#[test]
fn full_memory_leaves_the_eedks_to_the_catalog_loudly() {
    let mut house = House::new();
    house.held.take_over().unwrap();
    house.load("VOL001");
    attribute(&mut house, 0x1623, &[7; 200]);
    let opened = house.open("VOL001", "SECURE", "DISP=NEW").unwrap();
    let key = opened.key.unwrap();
    assert!(
        matches!(&key.eedks, Home::Catalog(why) if why.contains("room")),
        "{key:?}"
    );
    assert!(
        opened.warnings[0].contains("catalog alone"),
        "{opened:?}",
        opened = opened.warnings
    );
    assert!(house.writes(b"one"));
    house.filemark();
    assert_eq!(house.close().alarms, []);
    assert_eq!(house.memory(), []);
    // Another application's attribute stays.
    let mut drive = crate::scsi::Drive::new(house.port.clone());
    let other = drive.attribute(AttributeId(0x1623)).unwrap().unwrap();
    assert_eq!(other.value, [7; 200]);
    // And it is found by the name in its blocks.
    house.load("VOL001");
    let opened = house.open("VOL001", "", "DISP=OLD").unwrap();
    assert_eq!(opened.key.unwrap().dki, key.dki);
}

#[test]
fn two_eedks_of_rsa_3072_fit_a_small_memory() {
    let mut house = House::new();
    house.held.take_over().unwrap();
    house.load("VOL001");
    let opened = house.open("VOL001", "SECURE", "DISP=NEW").unwrap();
    assert_eq!(opened.key.unwrap().eedks, Home::Memory);
    assert_eq!(house.memory().len(), 2);
}

#[test]
fn drive_that_keeps_eedks_is_given_them() {
    let mut house = House::with(DriveKind::Enterprise, |drive| drive, |_| {});
    house.held.take_over().unwrap();
    house.load("VOL001");
    let opened = house.open("VOL001", "SECURE", "DISP=NEW").unwrap();
    let key = opened.key.unwrap();
    assert!(house.writes(b"kept"));
    house.filemark();
    assert_eq!(house.close().alarms, []);
    assert_eq!(house.memory(), []);
    assert_eq!(house.contents("VOL001").eedks[&key.dki.to_string()], 2);
    house.load("VOL001");
    let opened = house.open("VOL001", "", "DISP=OLD").unwrap();
    assert_eq!(opened.key.unwrap().eedks, Home::Drive);
    assert_eq!(
        house.keys.server().resolved.as_ref().unwrap().eedks.len(),
        2
    );
    assert_eq!(key.eedks, Home::Drive);
}

#[test]
fn foreign_cartridge_is_not_read_and_its_labels_in_clear_are() {
    let mut house = House::new();
    house.held.take_over().unwrap();
    // Encrypted from load point by somebody else: no key, nothing to read.
    let dki = house.written("VOL001");
    house.keys.server().keys.remove(&dki);
    house.load("VOL001");
    let refused = house.refused("VOL001", "", "DISP=OLD");
    assert!(refused.contains("EE32"), "{refused}");
    // A label in clear before the encrypted blocks.
    house.clear_tape("VOL002");
    house.load("VOL002");
    let text = format!("{HOST}\n[in_band]\nappend_in_clear = \"allow\"");
    house.host = HostConfig::parse(Path::new("host.toml"), &text).unwrap();
    house.open("VOL002", "", "DISP=MOD").unwrap();
    let list = list(
        [9; 32],
        "FOR000000000000000001".parse().unwrap(),
        &[],
        &house.keys.server(),
    );
    let mut foreign = crate::scsi::Drive::new(house.port.clone());
    use secrecy::ExposeSecret as _;
    foreign.set_encryption(list.0.expose_secret()).unwrap();
    assert!(house.writes(b"foreign data"));
    house.filemark();
    house.close();
    house.load("VOL002");
    let opened = house.open("VOL002", "", "DISP=OLD").unwrap();
    assert_eq!(opened.key, None);
    assert!(
        opened.warnings[0].contains("only blocks in clear"),
        "{:?}",
        opened.warnings
    );
    assert_eq!(read(&mut house.port).unwrap(), b"VOL1 label");
    assert!(!house.writes(b"oops"));
    house.close();
    // Nothing is added to it, and it may be written over.
    let refused = house.refused("VOL002", "", "DISP=MOD");
    assert!(refused.contains("EE32"), "{refused}");
    house.open("VOL002", "SECURE", "DISP=NEW").unwrap();
}
