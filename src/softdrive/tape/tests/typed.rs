//! The commands of `crate::scsi::Drive`, which knows nothing of this drive: both read the standard.

use secrecy::ExposeSecret;

use super::{
    keys::{dki, page},
    *,
};
use crate::{
    scsi::{Drive, drive::ModeValues},
    t10::{
        Attribute, AttributeFormat, AttributeId, Attributes, EncryptionMode, EncryptionStatus,
        KadType,
    },
};

#[test]
fn typed_commands_understand_the_drive() {
    let host = Host::new(DriveKind::Enterprise);
    let port = TapePort::new(host.drive);
    let mut drive = Drive::new(port.clone());

    let inquiry = drive.inquiry().unwrap();
    assert_eq!((inquiry.device_type, &*inquiry.vendor), (1, "EKM"));
    assert_eq!(drive.unit_serial().unwrap().0, "001013000123");
    let unit = drive.designators().unwrap().logical_unit();
    assert_eq!(unit, Some(port.drive().target().drive().wwn()));
    assert!(drive.log_pages().unwrap().contains(0x2e));
    assert!(drive.take_tape_alerts().unwrap().0.is_empty());
    assert!(drive.tape_alert_response().unwrap_err().is_unsupported());
    assert_eq!(drive.ibm_encryption_method().unwrap(), None);
    assert!(drive.management_capabilities().unwrap().lock);
    assert_eq!(drive.capabilities().unwrap().algorithms[0].max_eedks, 2);
    drive.random_number().unwrap();
    drive.wrapping_key().unwrap().to_spki().unwrap();

    let position = drive.position().unwrap();
    assert_eq!((position.at_beginning, position.object), (true, Some(0)));
    drive
        .set_encryption(page(1, &[]).encode().expose_secret())
        .unwrap();
    let status = drive.encryption_status().unwrap();
    assert_eq!(status.encryption, EncryptionMode::Encrypt);
    port.clone()
        .execute(&variable(0x0a, 3), Data::Out(b"one"), Duration::ZERO)
        .unwrap();
    assert_eq!(drive.position().unwrap().object, Some(1));
    port.clone()
        .execute(&[1, 0, 0, 0, 0, 0], Data::None, Duration::ZERO)
        .unwrap();
    let next = drive.next_block().unwrap();
    assert_eq!(next.encryption, EncryptionStatus::Decryptable);
    assert!(next.kads.of(KadType::Authenticated).eq([dki(1).as_bytes()]));

    drive.prevent_removal().unwrap();
    drive.unload().unwrap_err();
    drive.allow_removal().unwrap();
    drive.unload().unwrap();
    drive.load().unwrap();
    drive.take_attentions();
    let status = drive.encryption_status().unwrap();
    assert_eq!(status.encryption, EncryptionMode::Disable);
}

#[test]
fn typed_commands_protect_and_save() {
    let host = Host::new(DriveKind::Lto);
    let port = TapePort::new(host.drive);
    let mut drive = Drive::new(port.clone());
    let protected = |drive: &mut Drive<TapePort>, values| {
        let (_, page) = drive.device_configuration(values).unwrap();
        page.software_write_protect()
    };
    assert!(protected(&mut drive, ModeValues::Changeable));
    assert!(!drive.set_software_write_protect(true).unwrap());
    assert!(drive.set_software_write_protect(true).unwrap());
    assert!(protected(&mut drive, ModeValues::Current));
    assert!(!protected(&mut drive, ModeValues::Saved));
    let (data, page) = drive.device_configuration(ModeValues::Current).unwrap();
    assert!(data.write_protected() && page.saveable());
    port.drive().reset();
    drive.take_attentions();
    assert!(!protected(&mut drive, ModeValues::Current));
}

#[test]
fn typed_commands_read_and_write_the_cartridge_memory() {
    let host = Host::new(DriveKind::Lto);
    let mut drive = Drive::new(TapePort::new(host.drive));
    let text = |drive: &mut Drive<TapePort>, id| drive.attribute(id).unwrap().unwrap().text();
    assert_eq!(text(&mut drive, AttributeId::BARCODE), "VOL001");
    assert!(text(&mut drive, AttributeId::MEDIUM_SERIAL).starts_with("EKM"));
    let space = |drive: &mut Drive<TapePort>| {
        drive
            .attribute(AttributeId::SPACE_REMAINING)
            .unwrap()
            .unwrap()
            .number()
    };
    assert_eq!(space(&mut drive), Some(1014));
    let eedk = AttributeId(0x1480);
    assert!(drive.supported_attributes().unwrap().contains(eedk));
    assert!(!drive.attribute_list().unwrap().contains(eedk));
    // Not there, which this drive tells as it tells of one that it does not know.
    assert!(drive.attribute(eedk).unwrap_err().is_unsupported());
    let pieces: Vec<_> = (0x1480..0x1485)
        .map(|id| Attribute::new(AttributeId(id), AttributeFormat::Binary, vec![7; 248]))
        .collect();
    drive
        .write_attributes(&Attributes(pieces.clone()))
        .unwrap_err();
    drive
        .write_attributes(&Attributes(pieces[..3].to_vec()))
        .unwrap();
    assert_eq!(space(&mut drive), Some(1014 - 3 * 253));
    assert_eq!(drive.attributes_from(eedk).unwrap().0, pieces[..3]);
    let gone = Attribute::new(eedk, AttributeFormat::Binary, vec![]);
    drive.write_attributes(&Attributes(vec![gone])).unwrap();
    assert_eq!(space(&mut drive), Some(1014 - 2 * 253));
}
