//! Cartridge memory, mode pages and position.

use super::*;
use crate::t10::{Attribute, AttributeFormat, AttributeList};

/// A cartridge memory with these attributes.
fn memory(attributes: Vec<Attribute>) -> Scripted {
    Scripted::new(move |cdb, data| {
        let first = u16::from_be_bytes([cdb[8], cdb[9]]);
        let rest = attributes.iter().filter(|one| one.id.0 >= first);
        let list = match cdb[1] {
            0 => Attributes(rest.cloned().collect()).encode(),
            _ => AttributeList(rest.map(|one| one.id).collect()).encode(),
        };
        Ok(good(data, &list))
    })
}

fn text(id: AttributeId, text: &str) -> Attribute {
    Attribute::new(id, AttributeFormat::Ascii, text.as_bytes().to_vec())
}

#[test]
fn attribute_is_read_in_its_exact_length() {
    let transport = memory(vec![
        text(AttributeId(0x0401), "SERIAL"),
        text(AttributeId::BARCODE, "A00001L6"),
        text(AttributeId(0x1400), "more"),
    ]);
    let asked = transport.asked();
    let mut drive = Drive::new(transport);
    let barcode = drive.attribute(AttributeId::BARCODE).unwrap().unwrap();
    assert_eq!(barcode.text(), "A00001L6");
    let lengths: Vec<_> = asked.lock().unwrap().iter().map(|cdb| cdb[13]).collect();
    assert_eq!(lengths, [9, 17]);
    assert_eq!(drive.attribute(AttributeId(0x0807)).unwrap(), None);
    assert_eq!(drive.attribute(AttributeId(0x1623)).unwrap(), None);
    assert_eq!(drive.attributes_from(AttributeId(0)).unwrap().0.len(), 3);
    assert!(
        drive
            .attribute_list()
            .unwrap()
            .contains(AttributeId::BARCODE)
    );
}

#[test]
fn attribute_that_lies_of_its_length_is_found() {
    for bytes in [
        &b"\0\0\0"[..],
        b"\0\0\0\x0d\x08\x06",
        b"\0\0\0\x0d\x08\x06\x01\0\x08A",
        b"\0\0\0\x0d\x08\x06\x01\xff\xffA",
    ] {
        let mut drive = Drive::new(Scripted::saying(bytes));
        assert!(drive.attribute(AttributeId::BARCODE).is_err(), "{bytes:?}");
    }
    let mut drive = Drive::new(Scripted::saying(b"\xff\xff\xff\xff"));
    assert!(matches!(
        drive.attribute_list(),
        Err(DriveError::TooLong { .. })
    ));
}

#[test]
fn attributes_are_written_through() {
    let transport = Scripted::new(|_, data| match data {
        Data::Out(bytes) => {
            assert_eq!(bytes, b"\0\0\0\x07\x14\x00\x00\0\x02\xab\xcd");
            Ok(ended(0))
        }
        _ => Ok(check(Sense::INVALID_COMMAND)),
    });
    let asked = transport.asked();
    let value = Attribute::new(
        AttributeId(0x1400),
        AttributeFormat::Binary,
        vec![0xab, 0xcd],
    );
    Drive::new(transport)
        .write_attributes(&Attributes(vec![value]))
        .unwrap();
    let cdb = asked.lock().unwrap()[0].clone();
    assert_eq!(cdb, [0x8d, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 11, 0, 0]);
}

/// A drive with a device configuration page that can be set.
fn configurable() -> Scripted {
    let mut page = b"\x90\x0e\0\0\0\0\0\x64\x40\0\x18\0\0\0\x01\0".to_vec();
    Scripted::new(move |cdb, data| match (cdb[0], data) {
        (0x5a, _) if cdb[2] & 0xc0 == 0xc0 => {
            Ok(check(Sense::new(SenseKey::IllegalRequest, 0x39, 0)))
        }
        (0x5a, data) => {
            let head = [0, 22, 0, 0x10, 0, 0, 0, 0];
            Ok(good(data, &[&head[..], &page].concat()))
        }
        (0x55, Data::Out(list)) => {
            assert_eq!((list[1], list[3], list[8]), (0, 0x10, 0x10));
            page = list[8..].to_vec();
            page[0] |= 0x80;
            Ok(ended(0))
        }
        _ => Ok(check(Sense::INVALID_COMMAND)),
    })
}

#[test]
fn write_protection_is_set_and_taken_away() {
    let transport = configurable();
    let asked = transport.asked();
    let mut drive = Drive::new(transport);
    assert!(!drive.set_software_write_protect(true).unwrap());
    let (_, page) = drive.device_configuration(ModeValues::Current).unwrap();
    assert!(page.software_write_protect());
    assert!(drive.set_software_write_protect(true).unwrap());
    assert!(drive.set_software_write_protect(false).unwrap());
    let selects = asked
        .lock()
        .unwrap()
        .iter()
        .filter(|cdb| cdb[0] == 0x55)
        .count();
    assert_eq!(selects, 2);
    assert!(drive.device_configuration(ModeValues::Saved).is_err());
}

#[test]
fn position_in_the_form_that_the_drive_has() {
    let mut long = [0; 32];
    (long[0], long[15], long[23]) = (0, 9, 1);
    let position = Drive::new(Scripted::saying(&long)).position().unwrap();
    assert_eq!((position.object, position.file), (Some(9), Some(1)));

    let mut drive = Drive::new(Scripted::new(|cdb, data| {
        let mut short = [0; 20];
        (short[0], short[7]) = (0x80, 0);
        Ok(match cdb[1] {
            0 => good(data, &short),
            _ => check(Sense::INVALID_FIELD_IN_CDB),
        })
    }));
    assert!(drive.position().unwrap().at_beginning);
}
