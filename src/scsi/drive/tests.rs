mod asking;

use std::sync::Mutex;

use proptest::{collection::vec, prelude::*};

use super::*;
use crate::scsi::TransportError;
use crate::scsi::scripted::{Scripted, check, good};
use crate::t10::{AttributeId, Attributes, KeyFormat, OutPage};

const CAPABILITIES: &[u8] = include_bytes!("../../../integration/golden/t10/spin-0010-lto.bin");
const WRAPPED: &[u8] = include_bytes!("../../../integration/golden/t10/spout-0010-wrapped.bin");
const PUBLIC_KEY: &[u8] = include_bytes!("../../../integration/golden/t10/spin-0031.bin");

const NEW_MEDIUM: Sense = Sense::new(SenseKey::UnitAttention, 0x28, 0x00);
const RESET: Sense = Sense::new(SenseKey::UnitAttention, 0x29, 0x00);

fn ended(status: u8) -> Completion {
    Completion {
        status,
        transferred: 0,
        sense: Vec::new(),
    }
}

#[test]
fn page_is_read_in_its_exact_length() {
    let transport = Scripted::saying(CAPABILITIES);
    let asked = transport.asked();
    Drive::new(transport).capabilities().unwrap();
    assert_eq!(
        *asked.lock().unwrap(),
        [
            [0xa2, 0x20, 0x00, 0x10, 0, 0, 0, 0, 0, 4, 0, 0],
            [0xa2, 0x20, 0x00, 0x10, 0, 0, 0, 0, 0, 44, 0, 0],
        ]
    );
}

#[test]
fn drive_that_refuses_a_longer_length_is_read() {
    // IBM LTO-8 with firmware N4Q0.
    let mut drive = Drive::new(Scripted::new(|cdb, data| {
        Ok(if [4, 44].contains(&cdb[9]) && cdb[8] == 0 {
            good(data, CAPABILITIES)
        } else {
            check(Sense::INVALID_FIELD_IN_CDB)
        })
    }));
    assert!(drive.capabilities().unwrap().aes_256_gcm().is_some());
}

#[test]
fn key_formats_of_known_drives() {
    use KeyFormat::{Plain, Wrapped};
    for (page, formats) in [
        // HP LTO-6, and the table of Quantum's LTO-4 manual.
        (&b"\0\x11\0\x02\0\x02"[..], &[Plain, Wrapped][..]),
        // mhvtl: one format in two bytes.
        (b"\0\x11\0\x02\0\0", &[Plain]),
        (b"\0\x11\0\x01\0", &[Plain]),
    ] {
        let mut drive = Drive::new(Scripted::saying(page));
        assert_eq!(drive.key_formats().unwrap().as_slice(), formats);
    }
}

#[test]
fn reading_goes_on_after_unit_attentions_and_keeps_them() {
    let mut attentions = vec![RESET, NEW_MEDIUM];
    let mut drive = Drive::new(Scripted::new(move |_, data| {
        Ok(attentions
            .pop()
            .map_or_else(|| good(data, CAPABILITIES), check))
    }));
    drive.capabilities().unwrap();
    assert_eq!(drive.take_attentions(), [NEW_MEDIUM, RESET]);
    assert_eq!(drive.take_attentions(), []);
}

#[test]
fn unit_attentions_without_end_are_not_followed() {
    let transport = Scripted::playing(vec![check(RESET)]);
    let asked = transport.asked();
    let mut drive = Drive::new(transport);
    let error = drive.encryption_status().unwrap_err();
    assert!(matches!(error, DriveError::Attentions { count: 5, .. }));
    assert_eq!(asked.lock().unwrap().len(), 5);
    assert!(error.to_string().contains("power on"), "{error}");
    for _ in 0..10 {
        let _ = drive.encryption_status();
    }
    assert_eq!(drive.take_attentions().len(), KEPT_ATTENTIONS);
}

#[test]
fn key_is_not_sent_again_after_a_unit_attention() {
    let transport = Scripted::playing(vec![check(NEW_MEDIUM), ended(0)]);
    let asked = transport.asked();
    let mut drive = Drive::new(transport);
    let error = drive.set_encryption(WRAPPED).unwrap_err();
    assert!(
        matches!(
            error,
            DriveError::Attention {
                sense: NEW_MEDIUM,
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(asked.lock().unwrap().len(), 1);
    drive.set_encryption(WRAPPED).unwrap();
}

#[test]
fn nothing_that_changes_a_drive_is_repeated() {
    type Change = fn(&mut Drive<Scripted>) -> Result<(), DriveError>;
    let changes: [Change; 6] = [
        Drive::load,
        Drive::unload,
        Drive::prevent_removal,
        Drive::allow_removal,
        |drive| drive.mode_select(0x10, &[0; 8]),
        |drive| drive.write_attributes(&Attributes::default()),
    ];
    for change in changes {
        let transport = Scripted::playing(vec![check(RESET), ended(0)]);
        let asked = transport.asked();
        let error = change(&mut Drive::new(transport)).unwrap_err();
        assert!(matches!(error, DriveError::Attention { .. }), "{error}");
        assert_eq!(asked.lock().unwrap().len(), 1);
    }
}

#[test]
fn key_reaches_the_transport_from_where_it_lies() {
    static SEEN: Mutex<Option<usize>> = Mutex::new(None);
    let page = WRAPPED.to_vec();
    let mut drive = Drive::new(Scripted::new(|_, data| {
        if let Data::Out(bytes) = &data {
            *SEEN.lock().unwrap() = Some(bytes.as_ptr().addr());
        }
        Ok(good(data, &[]))
    }));
    drive.set_encryption(&page).unwrap();
    assert_eq!(*SEEN.lock().unwrap(), Some(page.as_ptr().addr()));
}

#[test]
fn bytes_that_are_no_page_are_not_sent() {
    let transport = Scripted::saying(&[]);
    let asked = transport.asked();
    let mut drive = Drive::new(transport);
    let long = [WRAPPED, &[0]].concat();
    for page in [
        &b""[..],
        b"\0\x10",
        &WRAPPED[..WRAPPED.len() - 1],
        &long,
        PUBLIC_KEY,
    ] {
        let error = drive.set_encryption(page).unwrap_err();
        assert!(matches!(error, DriveError::Unsendable { .. }), "{error}");
    }
    assert_eq!(asked.lock().unwrap().len(), 0);
}

#[test]
fn library_managed_drive_is_refused_with_the_way_out() {
    let mut drive = Drive::new(Scripted::playing(vec![check(
        Sense::CONFIGURATION_PREVENTED,
    )]));
    let error = drive.set_encryption(WRAPPED).unwrap_err();
    assert!(error.is_managed_elsewhere() && !error.is_unsupported());
    let told = error.to_string();
    for word in [
        "/dev/sg3",
        "SECURITY PROTOCOL OUT",
        "0010h",
        "prevented by a library",
        "05/74/21",
        "application-managed",
    ] {
        assert!(told.contains(word), "{word}: {told}");
    }
}

#[test]
fn system_managed_ibm_drive_is_told_of() {
    for key in [SenseKey::UnitAttention, SenseKey::DataProtect] {
        let sense = Sense::new(key, 0xef, 0x10);
        let mut drive = Drive::new(Scripted::playing(vec![check(sense)]));
        let error = drive.set_encryption(WRAPPED).unwrap_err();
        assert!(error.is_managed_elsewhere());
        assert!(
            error.to_string().contains("system- or library-managed"),
            "{error}"
        );
    }
}

#[test]
fn readiness_of_a_drive() {
    let no_medium = Sense::MEDIUM_NOT_PRESENT;
    let ready = |completion| {
        Drive::new(Scripted::playing(vec![completion]))
            .test_unit_ready()
            .unwrap()
    };
    assert_eq!(ready(ended(0)), Readiness::Ready);
    assert_eq!(
        ready(check(no_medium)),
        Readiness::NotReady(NotReady::NoMedium)
    );
    for (ascq, why) in [
        (0x01, NotReady::Becoming),
        (0x02, NotReady::Unloaded),
        (
            0x12,
            NotReady::Other(Sense::new(SenseKey::NotReady, 0x04, 0x12)),
        ),
    ] {
        let sense = Sense::new(SenseKey::NotReady, 0x04, ascq);
        assert_eq!(ready(check(sense)), Readiness::NotReady(why));
    }
    assert_eq!(ready(check(NEW_MEDIUM)), Readiness::Attention(NEW_MEDIUM));
}

#[test]
fn recovered_error_is_no_error() {
    let mut drive = Drive::new(Scripted::new(|_, data| {
        Ok(Completion {
            transferred: good(data, CAPABILITIES).transferred,
            ..check(Sense::new(SenseKey::RecoveredError, 0x37, 0))
        })
    }));
    drive.capabilities().unwrap();
}

#[test]
fn deferred_error_is_not_taken_for_an_end() {
    let mut sense = Sense::new(SenseKey::RecoveredError, 0x0c, 0).encode();
    sense[0] = 0x71;
    let deferred = Completion {
        sense: sense.to_vec(),
        ..check(RESET)
    };
    let error = Drive::new(Scripted::playing(vec![deferred]))
        .load()
        .unwrap_err();
    assert!(matches!(error, DriveError::Refused { deferred: true, .. }));
    assert!(
        error.to_string().contains("of an earlier command"),
        "{error}"
    );
}

#[test]
fn flood_of_sense_is_read_as_far_as_it_matters() {
    let mut sense = Sense::INVALID_COMMAND.encode().to_vec();
    sense.resize(1 << 20, 0xff);
    let flood = Completion {
        sense,
        ..check(RESET)
    };
    let error = Drive::new(Scripted::playing(vec![flood]))
        .inquiry()
        .unwrap_err();
    assert_eq!(error.sense(), Some(Sense::INVALID_COMMAND));
    assert!(error.is_unsupported());
}

#[test]
fn check_condition_without_readable_sense_is_told_so() {
    for sense in [&b""[..], &[0xff; 18], b"\x70\0\x05"] {
        let silent = Completion {
            sense: sense.to_vec(),
            ..check(RESET)
        };
        let error = Drive::new(Scripted::playing(vec![silent]))
            .inquiry()
            .unwrap_err();
        assert!(matches!(error, DriveError::Sense { .. }), "{error}");
    }
}

#[test]
fn busy_is_waited_out_and_not_for_ever() {
    let busy = ended(Completion::BUSY);
    let mut drive = Drive::new(Scripted::playing(vec![
        busy.clone(),
        busy.clone(),
        ended(0),
    ]));
    drive.allow_removal().unwrap();
    let error = Drive::new(Scripted::playing(vec![busy]))
        .allow_removal()
        .unwrap_err();
    assert!(error.to_string().contains("busy"), "{error}");
    let error = Drive::new(Scripted::playing(vec![ended(0x18)]))
        .allow_removal()
        .unwrap_err();
    assert!(error.to_string().contains("reserved"), "{error}");
}

#[test]
fn wrong_lengths_are_found() {
    let error = |bytes: &[u8]| {
        Drive::new(Scripted::saying(bytes))
            .capabilities()
            .unwrap_err()
    };
    assert!(matches!(error(b"\0\x10"), DriveError::Page { .. }));
    assert!(matches!(
        error(&CAPABILITIES[..43]),
        DriveError::Page { .. }
    ));
    assert!(matches!(
        error(b"\0\x10\xff\xff"),
        DriveError::TooLong { got: 65539, .. }
    ));
    assert!(matches!(error(b"\0\x10\0\0"), DriveError::Page { .. }));
    let told = error(PUBLIC_KEY).to_string();
    assert!(told.contains("expected page 0010h, got 0031h"), "{told}");
}

#[test]
fn page_that_changes_its_length_between_two_reads() {
    // Shorter, with and without a residual: what it then says is taken.
    for short in [&b"\0\x11\0\x01\0"[..], b"\0\x11\0\x01\0\0\0\0"] {
        let mut first = true;
        let mut drive = Drive::new(Scripted::new(move |_, data| {
            let page = if first {
                &b"\0\x11\0\x04\0\x01\x02\x03"[..]
            } else {
                short
            };
            first = false;
            Ok(good(data, page))
        }));
        assert_eq!(drive.key_formats().unwrap().as_slice(), [KeyFormat::Plain]);
    }
    // Longer: it is cut, and that is found.
    let mut first = true;
    let mut drive = Drive::new(Scripted::new(move |_, data| {
        let page = if first {
            &b"\0\x11\0\x01\0"[..]
        } else {
            b"\0\x11\0\x04\0\x01\x02\x03"
        };
        first = false;
        Ok(good(data, page))
    }));
    assert!(matches!(drive.key_formats(), Err(DriveError::Page { .. })));
}

#[test]
fn transport_that_claims_more_than_there_was_room_for() {
    let mut drive = Drive::new(Scripted::new(|_, data| {
        Ok(Completion {
            transferred: usize::MAX,
            ..good(data, CAPABILITIES)
        })
    }));
    drive.capabilities().unwrap();
}

#[test]
fn lost_command_is_told_as_unknown() {
    let mut drive = Drive::new(Scripted::new(|_, _| {
        Err(TransportError::TimedOut {
            device: "/dev/sg3".to_owned(),
            seconds: 60,
        })
    }));
    let error = drive.set_encryption(WRAPPED).unwrap_err();
    assert!(error.is_unknown());
    let told = error.to_string();
    assert!(
        told.contains("/dev/sg3") && told.contains("SECURITY PROTOCOL OUT"),
        "{told}"
    );
}

#[test]
fn cdbs_are_as_the_standards_have_them() {
    let transport = Scripted::saying(&[0; 64]);
    let asked = transport.asked();
    let mut drive = Drive::new(transport);
    let _ = drive.inquiry();
    let _ = drive.unit_serial();
    let _ = drive.test_unit_ready();
    let _ = drive.protocols();
    let _ = drive.mode_sense(0x30, 0x20, ModeValues::Saved);
    let _ = drive.take_tape_alerts();
    drive.load().unwrap();
    drive.unload().unwrap();
    drive.prevent_removal().unwrap();
    let seen: Vec<String> = asked.lock().unwrap().iter().map(hex::encode).collect();
    assert_eq!(
        seen,
        [
            "120000002400",
            "120180000400",
            "000000000000",
            "a20000000000000000080000",
            "5a00f020000000000800",
            "4d006e00000000000400",
            "1b0000000100",
            "1b0000000000",
            "1e0000000100",
        ]
    );
    assert_eq!(OutPage::SetDataEncryption.code(), 0x10);
}

proptest! {
    /// A drive that answers anything, at any length, with any status.
    #[test]
    fn no_answer_does_harm(
        answers in vec((vec(any::<u8>(), 0..96), any::<usize>(), 0usize..6), 1..8),
    ) {
        let mut turn = 0;
        let mut drive = Drive::new(Scripted::new(move |_, data| {
            let (bytes, transferred, kind) = &answers[turn % answers.len()];
            turn += 1;
            let completion = good(data, bytes);
            Ok(match kind {
                0..=2 => completion,
                3 => Completion { transferred: *transferred, ..completion },
                4 => Completion { status: Completion::CHECK_CONDITION, sense: bytes.clone(), ..completion },
                _ => Completion { status: 0x18, ..completion },
            })
        }));
        let _ = drive.inquiry();
        let _ = (drive.unit_serial(), drive.designators(), drive.test_unit_ready());
        let _ = (drive.protocols(), drive.pages_in(), drive.pages_out(), drive.capabilities());
        let _ = (drive.key_formats(), drive.management_capabilities(), drive.random_number());
        let _ = (drive.encryption_status(), drive.next_block(), drive.wrapping_key());
        let _ = (drive.attribute(AttributeId::BARCODE), drive.attribute_list());
        let _ = (drive.attributes_from(AttributeId(0)), drive.supported_attributes());
        let _ = (drive.set_software_write_protect(true), drive.ibm_encryption_method());
        let _ = (drive.log_pages(), drive.tape_alert_response(), drive.take_tape_alerts());
        let _ = (drive.position(), drive.set_encryption(WRAPPED));
    }
}
