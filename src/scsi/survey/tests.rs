use std::path::Path;

use super::*;
use crate::scsi::scripted::{Scripted, check, good};
use crate::scsi::{Completion, Data};
use crate::softdrive::{DriveKind, Init, SoftDrive, TapeDrive, TapePort, new_tape};
use crate::t10::{
    Algorithm, Attribute, AttributeFormat, Attributes, Designators, ExternalControl, PageList,
    ProtocolList, Sense, SenseKey, UnitSerial,
};

const WHOLE: Depth = Depth::Whole { take_alerts: false };
const CAPABILITIES: &[u8] = include_bytes!("../../../integration/golden/t10/spin-0010-lto.bin");
const PUBLIC_KEY: &[u8] = include_bytes!("../../../integration/golden/t10/spin-0031.bin");
const STATUS: &[u8] = include_bytes!("../../../integration/golden/t10/spin-0020.bin");

/// A software drive with a tape in it.
fn soft(directory: &Path, kind: DriveKind) -> TapeDrive {
    let names = Init {
        serial: "000007800001".parse().unwrap(),
        wwn: "5005076300C0FFE1".parse().unwrap(),
        kind,
    };
    let mut drive = TapeDrive::new(SoftDrive::init(&directory.join("drive"), &names).unwrap());
    let tape = directory.join("VOL001");
    new_tape(&tape, &"VOL001".parse().unwrap(), 1 << 20).unwrap();
    drive.load(&tape).unwrap();
    drive
}

fn survey(drive: TapeDrive) -> Survey {
    Survey::of(&mut Drive::new(TapePort::new(drive)), WHOLE).unwrap()
}

#[test]
fn drive_that_takes_wrapped_keys() {
    let directory = tempfile::tempdir().unwrap();
    let drive = soft(directory.path(), DriveKind::Enterprise);
    let fingerprint = drive.target().drive().fingerprint();
    let survey = survey(drive);
    assert_eq!(survey.drive.as_ref().unwrap().as_str(), "000007800001");
    assert_eq!(survey.wwn.unwrap().to_string(), "5005076300C0FFE1");
    assert_eq!(survey.faults, [""; 0]);
    let state = survey.state.as_ref().unwrap();
    assert_eq!(state.medium, "loaded");
    // Power on, and the cartridge.
    assert_eq!(state.attentions.len(), 2, "{:?}", state.attentions);
    let encryption = state.encryption.as_ref().unwrap();
    assert_eq!(encryption.key_formats, ["00h", "02h"]);
    assert_eq!(
        encryption.wrapping_key,
        Some(format!("sha256:{fingerprint}"))
    );
    assert_eq!(encryption.max_eedks, 2);
    assert_eq!(encryption.clears_on_demount, Some(true));
    let cartridge = state.cartridge.as_ref().unwrap();
    assert_eq!(cartridge.memory_free, Some(1014));
    assert_eq!(cartridge.first_encrypted, None);
    assert_eq!(cartridge.block, Some(0));
    assert!(
        cartridge
            .next_block
            .as_ref()
            .unwrap()
            .status
            .contains("is not moved")
    );
    assert_eq!(cartridge.software_write_protect, Some(false));
    let verdict = survey.verdict.as_ref().unwrap();
    assert_eq!(verdict.ability, Ability::Wrapped);
    assert!(verdict.told[1].contains("drive add 000007800001 --wwn 5005076300C0FFE1"));
    assert_eq!(state.alerts, None);
}

#[test]
fn drive_that_takes_keys_in_clear_alone() {
    let directory = tempfile::tempdir().unwrap();
    let survey = survey(soft(directory.path(), DriveKind::LtoPlain));
    let verdict = survey.verdict.unwrap();
    assert_eq!(verdict.ability, Ability::Plain);
    assert!(verdict.told[0].contains("with your permission"));
    assert!(verdict.told[1].contains("--form t10-00h --custody host"));
    assert_eq!(survey.state.unwrap().encryption.unwrap().wrapping_key, None);
}

#[test]
fn library_managed_drive_has_a_way_out() {
    let directory = tempfile::tempdir().unwrap();
    let survey = survey(soft(directory.path(), DriveKind::Lto).library_managed());
    let verdict = survey.verdict.unwrap();
    assert_eq!(verdict.ability, Ability::ManagedElsewhere);
    assert!(
        verdict.told[0].contains("the library alone"),
        "{:?}",
        verdict.told
    );
    assert!(verdict.told[0].contains("application-managed"));
}

#[test]
fn empty_drive_says_what_it_can_do() {
    let directory = tempfile::tempdir().unwrap();
    let mut drive = soft(directory.path(), DriveKind::Lto);
    drive.unload();
    let survey = survey(drive);
    let state = survey.state.unwrap();
    assert_eq!((state.medium.as_str(), state.cartridge), ("none", None));
    assert_eq!(survey.verdict.unwrap().ability, Ability::Wrapped);
}

#[test]
fn wrapping_key_that_changes_is_not_enrolled() {
    let directory = tempfile::tempdir().unwrap();
    let mut drive = soft(directory.path(), DriveKind::Lto);
    drive.misbehave("changing-key".parse().unwrap());
    let verdict = survey(drive).verdict.unwrap();
    assert_eq!(verdict.ability, Ability::None);
    assert!(verdict.told[0].contains("Do not enrol it"));
}

#[test]
fn misbehaving_drives_are_surveyed_to_an_end() {
    for quirk in [
        "long-pages",
        "short-pages",
        "no-attributes",
        "sense-flood",
        "attention-flood",
    ] {
        let directory = tempfile::tempdir().unwrap();
        let mut drive = soft(directory.path(), DriveKind::Lto);
        drive.misbehave(quirk.parse().unwrap());
        let port = TapePort::new(drive);
        match Survey::of(&mut Drive::new(port), WHOLE) {
            Ok(survey) => assert_eq!(survey.drive.unwrap().as_str(), "000007800001", "{quirk}"),
            Err(error) => assert!(error.to_string().contains("INQUIRY"), "{quirk}: {error}"),
        }
    }
}

#[test]
fn names_alone_take_no_unit_attention() {
    let directory = tempfile::tempdir().unwrap();
    let port = TapePort::new(soft(directory.path(), DriveKind::Lto));
    let survey = Survey::of(&mut Drive::new(port.clone()), Depth::Names).unwrap();
    assert_eq!(survey.drive.unwrap().as_str(), "000007800001");
    assert_eq!((survey.state, survey.verdict), (None, None));
    let mut drive = Drive::new(port);
    assert!(matches!(
        drive.test_unit_ready(),
        Ok(Readiness::Attention(_))
    ));
}

/// A drive that is given as the answers to the CDBs that begin so; it does not have the rest.
struct Described(Vec<(Vec<u8>, Vec<u8>)>);

impl Described {
    /// A drive of this maker, with a cartridge, that encrypts as LTO drives do.
    fn new(vendor: &str, product: &str) -> Self {
        let inquiry = Inquiry {
            device_type: Inquiry::TAPE,
            vendor: vendor.to_owned(),
            product: product.to_owned(),
            revision: "J3UZ".to_owned(),
        };
        Self(Vec::new())
            .with(&[0x12, 0], inquiry.encode())
            .with(
                &[0x12, 1, 0x80],
                UnitSerial("HUJ5485716".to_owned()).encode(),
            )
            .with(
                &[0x12, 1, 0x83],
                Designators::of_naa("500104F000ABCDEF".parse().unwrap()),
            )
            .with(&[0x00], Vec::new())
            .with(
                &[0xa2, 0x00, 0, 0],
                ProtocolList::new(SecurityProtocol::ALL).encode(),
            )
            .spin(
                0x00,
                PageList::of_in(&[InPage::Capabilities, InPage::Status]).encode(),
            )
            .spin(0x10, CAPABILITIES.to_vec())
            .spin(0x20, STATUS.to_vec())
    }

    fn with(mut self, cdb: &[u8], answer: Vec<u8>) -> Self {
        self.0.insert(0, (cdb.to_vec(), answer));
        self
    }

    fn spin(self, page: u8, answer: Vec<u8>) -> Self {
        self.with(&[0xa2, 0x20, 0, page], answer)
    }

    fn attribute(self, id: AttributeId, format: AttributeFormat, value: &[u8]) -> Self {
        let [high, low] = id.0.to_be_bytes();
        let list = Attributes(vec![Attribute::new(id, format, value.to_vec())]);
        self.with(&[0x8c, 0, 0, 0, 0, 0, 0, 0, high, low], list.encode())
    }

    fn survey(self) -> Survey {
        let mut drive = Drive::new(Scripted::new(move |cdb, data: Data<'_>| {
            let found = self.0.iter().find(|(head, _)| cdb.starts_with(head));
            Ok(found.map_or_else(
                || check(Sense::INVALID_FIELD_IN_CDB),
                |(_, answer)| good(data, answer),
            ))
        }));
        Survey::of(&mut drive, WHOLE).unwrap()
    }
}

#[test]
fn hp_lto6() {
    let survey = Described::new("HP", "Ultrium 6-SCSI")
        .spin(0x11, b"\0\x11\0\x02\0\x02".to_vec())
        .spin(0x31, PUBLIC_KEY.to_vec())
        .attribute(
            AttributeId::BARCODE,
            AttributeFormat::Ascii,
            b"A00001L6    ",
        )
        .attribute(
            AttributeId::SPACE_REMAINING,
            AttributeFormat::Binary,
            &[0, 0, 3, 0xf6],
        )
        .attribute(
            AttributeId::FIRST_ENCRYPTED,
            AttributeFormat::Binary,
            &[0xff; 8],
        )
        .attribute(
            AttributeId::FIRST_UNENCRYPTED,
            AttributeFormat::Binary,
            &[0, 0, 0, 0, 0, 9],
        )
        .survey();
    assert_eq!(survey.faults, [""; 0]);
    assert_eq!(survey.drive.as_ref().unwrap().as_str(), "00HUJ5485716");
    assert_eq!(survey.verdict.as_ref().unwrap().ability, Ability::Wrapped);
    assert!(survey.wrapping_key().is_some());
    let state = survey.state.unwrap();
    let cartridge = state.cartridge.unwrap();
    assert_eq!(cartridge.barcode.as_deref(), Some("A00001L6"));
    assert_eq!(cartridge.memory_free, Some(1014));
    assert_eq!(
        (cartridge.first_encrypted, cartridge.first_unencrypted),
        (None, Some(9))
    );
    assert!(state.setting.unwrap().dki.is_some());
}

#[test]
fn quantum_lto4_that_lists_02h_and_has_no_key_for_it() {
    let survey = Described::new("QUANTUM", "ULTRIUM 4")
        .spin(0x11, b"\0\x11\0\x02\0\x02".to_vec())
        .survey();
    assert_eq!(survey.verdict.unwrap().ability, Ability::Plain);
}

#[test]
fn mhvtl_whose_list_of_formats_is_odd() {
    let survey = Described::new("IBM", "ULT3580-TD6")
        .spin(0x11, b"\0\x11\0\x02\0\0".to_vec())
        .survey();
    assert_eq!(survey.verdict.unwrap().ability, Ability::Plain);
    assert_eq!(
        survey.state.unwrap().encryption.unwrap().key_formats,
        ["00h"]
    );
}

#[test]
fn ibm_drive_that_its_library_manages() {
    for (code, ability) in [
        (0x50, Ability::Plain),
        (0x60, Ability::ManagedElsewhere),
        (0x10, Ability::ManagedElsewhere),
    ] {
        let mut page = vec![0, 38, 0, 0, 0, 0, 0, 0, 0x25, 30];
        page.extend([0; 30]);
        page[8 + 27] = code;
        let survey = Described::new("IBM", "ULT3580-HH8")
            .with(&[0x5a, 0, 0x25], page.clone())
            .survey();
        let verdict = survey.verdict.unwrap();
        assert_eq!(verdict.ability, ability, "{:?}", verdict.told);
        // Another maker's page of that number means something else.
        let other = Described::new("HP", "Ultrium 6-SCSI")
            .with(&[0x5a, 0, 0x25], page)
            .survey();
        assert_eq!(other.verdict.unwrap().ability, Ability::Plain);
    }
}

#[test]
fn drive_without_encryption() {
    let survey = Described::new("HP", "Ultrium 3-SCSI")
        .with(&[0xa2], b"\0\0\0\0\0\0\0\x01\0".to_vec())
        .survey();
    assert_eq!(survey.state.unwrap().encryption, None);
    assert_eq!(survey.verdict.unwrap().ability, Ability::None);
}

#[test]
fn capabilities_that_cannot_be_read_are_not_taken_for_none() {
    let survey = Described::new("HP", "Ultrium 6-SCSI")
        .spin(0x10, CAPABILITIES[..40].to_vec())
        .survey();
    assert_eq!(survey.faults.len(), 1);
    assert!(survey.verdict.unwrap().told[0].contains("not known"));
}

#[test]
fn drive_that_lists_no_protocols_is_asked_on() {
    let mut described = Described::new("HP", "Ultrium 6-SCSI");
    described
        .0
        .retain(|(head, _)| !head.starts_with(&[0xa2, 0x00]));
    assert_eq!(described.survey().verdict.unwrap().ability, Ability::Plain);
}

#[test]
fn drive_whose_a_kad_is_too_short() {
    let mut capabilities = Capabilities::decode(CAPABILITIES).unwrap();
    capabilities.external_control = ExternalControl::NotReported;
    let algorithm: &mut Algorithm = &mut capabilities.algorithms[0];
    algorithm.max_akad_len = 0;
    let survey = Described::new("STK", "T10000C")
        .spin(0x10, capabilities.encode())
        .survey();
    let verdict = survey.verdict.unwrap();
    assert_eq!(verdict.ability, Ability::None);
    assert!(verdict.told[0].contains("DKi"));
}

#[test]
fn wrong_page_is_a_fault_and_not_the_end() {
    let survey = Described::new("HP", "Ultrium 6-SCSI")
        .spin(0x20, b"\0\x21\0\0".to_vec())
        .survey();
    assert_eq!(survey.faults.len(), 1);
    assert!(
        survey.faults[0].contains("expected page 0020h"),
        "{:?}",
        survey.faults
    );
    assert!(survey.verdict.is_some());
}

#[test]
fn alerts_are_read_where_they_stay() {
    let mut response = vec![0x12, 0, 0, 12, 0, 0, 0x40, 8];
    response.extend((1u64 << (64 - 48)).to_be_bytes());
    let survey = Described::new("HP", "Ultrium 6-SCSI")
        .with(&[0x4d, 0, 0x40], b"\0\0\0\x03\0\x12\x2e".to_vec())
        .with(&[0x4d, 0, 0x52], response)
        .survey();
    let alerts = survey.state.unwrap().alerts.unwrap();
    assert_eq!(alerts.len(), 1);
    assert_eq!(alerts[0].flag, 48);
    assert!(alerts[0].meaning.unwrap().contains("key manager"));
}

#[test]
fn other_devices_are_refused() {
    let changer = Inquiry {
        device_type: 8,
        vendor: "IBM".to_owned(),
        product: "03584L32".to_owned(),
        revision: "1A10".to_owned(),
    };
    let mut drive = Drive::new(Scripted::saying(&changer.encode()));
    let error = Survey::of(&mut drive, WHOLE).unwrap_err();
    assert!(error.to_string().contains("no tape drive"), "{error}");
}

#[test]
fn drive_that_is_gone_ends_the_survey() {
    let mut turns = 0;
    let mut drive = Drive::new(Scripted::new(move |_, data| {
        turns += 1;
        if turns > 4 {
            return Err(TransportError::TimedOut {
                device: "/dev/sg3".to_owned(),
                seconds: 60,
            });
        }
        Ok(good(
            data,
            &Inquiry {
                device_type: 1,
                vendor: "HP".to_owned(),
                product: String::new(),
                revision: String::new(),
            }
            .encode(),
        ))
    }));
    let error = Survey::of(&mut drive, WHOLE).unwrap_err();
    assert!(error.transport().is_some(), "{error}");
}

#[test]
fn drive_that_refuses_everything_is_still_named() {
    let survey = {
        let described = Described::new("HP", "Ultrium 6-SCSI");
        let mut drive = Drive::new(Scripted::new(move |cdb, data: Data<'_>| {
            if cdb[0] == 0x12 {
                let found = described.0.iter().find(|(head, _)| cdb.starts_with(head));
                return Ok(good(data, &found.unwrap().1));
            }
            Ok(Completion {
                status: Completion::CHECK_CONDITION,
                transferred: 0,
                sense: Sense::new(SenseKey::HardwareError, 0x44, 0)
                    .encode()
                    .to_vec(),
            })
        }));
        Survey::of(&mut drive, WHOLE).unwrap()
    };
    assert_eq!(survey.serial.as_deref(), Some("HUJ5485716"));
    assert_eq!(survey.state.as_ref().unwrap().medium, "not ready");
    assert!(survey.verdict.as_ref().unwrap().told[0].contains("not known"));
    assert!(survey.faults.len() > 2);
}
