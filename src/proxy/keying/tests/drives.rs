//! Drives that cannot, that lie, that are somebody else's, and that fail on the way.

use super::*;
use crate::softdrive::Quirk;

/// A drive with a cartridge that does this, and what a job that writes is told.
fn told(quirk: Quirk) -> (House, String) {
    let mut house = House::new();
    house.load("VOL001");
    house.held.take_over().unwrap();
    house.port.drive().misbehave(quirk);
    let refused = house
        .open("VOL001", "SECURE", "DISP=NEW")
        .unwrap_err()
        .to_string();
    house.port.drive().behave();
    assert!(!house.writes(b"sneaked in"), "{refused}");
    (house, refused)
}

#[test]
fn drive_that_lies_about_its_key_gets_no_job() {
    for (quirk, named) in [
        (Quirk::IgnoresKey, "key instance counter"),
        (Quirk::OtherDki, "A-KAD"),
    ] {
        let (house, refused) = told(quirk);
        assert!(refused.contains("does not tell the truth"), "{refused}");
        assert!(refused.contains(named), "{refused}");
        let server = house.keys.server();
        let [(_, stored)] = server.confirmed[..] else {
            panic!("{:?}", server.confirmed);
        };
        assert!(!stored);
        drop(server);
        assert!(house.port.drive().target().data_key().is_none());
        assert_eq!(house.contents("VOL001").blocks, 0);
    }
}

#[test]
fn drive_whose_counter_stands_still_gets_no_second_job() {
    let mut house = House::new();
    house.load("VOL001");
    house.held.take_over().unwrap();
    house.port.drive().misbehave(Quirk::CounterRestarts);
    let mut refused = None;
    for _ in 0..2 {
        match house.open("VOL001", "SECURE", "DISP=NEW") {
            Ok(_) => drop(house.close()),
            Err(error) => refused = Some(error.to_string()),
        }
    }
    let refused = refused.unwrap();
    assert!(refused.contains("key instance counter"), "{refused}");
}

#[test]
fn drive_that_says_it_encrypts_and_does_not_is_found_out_by_its_cartridge() {
    let mut house = House::new();
    house.load("VOL001");
    house.held.take_over().unwrap();
    house.port.drive().misbehave(Quirk::ClaimsEncryption);
    if house.open("VOL001", "SECURE", "DISP=NEW").is_err() {
        return;
    }
    assert!(house.writes(b"clear"));
    let closed = house.close();
    let clear = |alarm: &Alarm| matches!(alarm, Alarm::ClearBlock { .. });
    assert!(closed.alarms.iter().any(clear), "{closed:?}");
}

#[test]
fn nonsense_floods_and_silence_are_clear_errors() {
    for (quirk, named) in [
        (Quirk::LongPages, "that is none"),
        (Quirk::ShortPages, "that is none"),
        (Quirk::SenseFlood, "04/44/00"),
        (Quirk::AttentionFlood, "unit attention"),
        (Quirk::Busy, "busy"),
    ] {
        let (_, refused) = told(quirk);
        assert!(refused.contains(named), "{quirk}: {refused}");
    }
}

#[test]
fn wrapping_key_that_changes_is_not_used() {
    let mut house = House::with(DriveKind::Lto, |drive| drive, |_| {});
    house.load("VOL001");
    house.held.take_over().unwrap();
    house.port.drive().misbehave(Quirk::ChangingPublicKey);
    let refused = house.refused("VOL001", "SECURE", "DISP=NEW");
    assert!(refused.contains("changes from one reading"), "{refused}");
}

#[test]
fn drive_of_a_librarys_is_refused_in_plain_words() {
    let mut house = House::with(DriveKind::LtoPlain, TapeDrive::library_managed, |_| {});
    house.load("VOL001");
    let taken = house.held.take_over().unwrap();
    let unfit = taken.unfit.unwrap();
    assert!(unfit.contains("application-managed"), "{unfit}");
    let refused = house.refused("VOL001", "SECURE", "DISP=NEW");
    assert!(refused.contains("out-of-band"), "{refused}");
}

#[test]
fn key_in_clear_needs_permission() {
    let mut house = House::with(
        DriveKind::LtoPlain,
        |drive| drive,
        |rules| {
            rules.plain_key = false;
        },
    );
    house.load("VOL001");
    house.held.take_over().unwrap();
    let refused = house.refused("VOL001", "SECURE", "DISP=NEW");
    assert!(refused.contains("plain_key = true"), "{refused}");
    // A drive that takes wrapped ones, whose row at the server says 00h.
    let mut house = House::with(
        DriveKind::Lto,
        |drive| drive,
        |rules| {
            rules.plain_key = false;
        },
    );
    house.load("VOL001");
    house.held.take_over().unwrap();
    let refused = house.refused("VOL001", "SECURE", "DISP=NEW");
    assert!(refused.contains("KEY FORMAT 00h"), "{refused}");
    assert_eq!(house.keys.server().confirmed.len(), 1);
}

#[test]
fn drive_without_write_protection_needs_permission() {
    let plain = DriveKind::LtoPlain;
    let mut house = House::with(plain, TapeDrive::without_write_protection, |_| {});
    house.load("VOL001");
    let error = house.held.take_over().unwrap_err().to_string();
    assert!(error.contains("unprotected = true"), "{error}");
    let refused = house.open("VOL001", "SECURE", "DISP=NEW").unwrap_err();
    assert!(
        refused.to_string().contains("unprotected = true"),
        "{refused}"
    );
    house.restart(|rules| rules.unprotected = true);
    assert_eq!(house.held.take_over().unwrap().guard, Guard::None);
    house.open("VOL001", "SECURE", "DISP=NEW").unwrap();
    assert!(house.writes(b"encrypted"));
    assert_eq!(house.close().alarms, []);
    assert_eq!(house.contents("VOL001").clear, 0);
    // The key stays: nothing else keeps blocks in clear from this cartridge.
    assert!(house.writes(b"behind"));
    assert_eq!(house.contents("VOL001").clear, 0);
}

#[test]
fn another_drive_than_the_file_means_is_left_alone() {
    let mut house = House::new();
    house.restart(|rules| rules.serial = "001013000777".parse().unwrap());
    let error = house.held.take_over().unwrap_err().to_string();
    assert!(
        error.contains("001013000777") && error.contains(SERIAL),
        "{error}"
    );
}

#[test]
fn list_that_would_not_encrypt_is_not_sent() {
    type Tamper = fn(&mut Vec<u8>);
    let tampers: [(Tamper, &str); 5] = [
        (|list| list[6] = 0, "ENCRYPTION MODE"),
        (|list| list[4] = 0x20, "SCOPE"),
        (|list| list[5] &= !4, "CKOD"),
        (
            |list| {
                if let Some(last) = list.last_mut() {
                    *last ^= 1;
                }
            },
            "does not name data key",
        ),
        (|list| list.truncate(20), "is none"),
    ];
    for (tamper, named) in tampers {
        let mut house = House::new();
        house.load("VOL001");
        house.held.take_over().unwrap();
        house.keys.server().tamper = Some(tamper);
        let instance = house.port.drive().target().key_instance();
        let refused = house.refused("VOL001", "SECURE", "DISP=NEW");
        assert!(refused.contains(named), "{refused}");
        assert!(house.port.drive().target().data_key().is_none());
        assert!(house.port.drive().target().key_instance() <= instance + 1);
    }
}

#[test]
fn without_a_key_server_nothing_is_written_and_the_old_eedks_stay() {
    let mut house = House::new();
    house.held.take_over().unwrap();
    let first = house.written("VOL001");
    house.load("VOL001");
    house.keys.server().down = true;
    let refused = house.refused("VOL001", "SECURE", "DISP=NEW");
    assert!(refused.contains("no key server answers"), "{refused}");
    let refused = house.refused("VOL001", "", "DISP=MOD");
    assert!(refused.contains("no key server answers"), "{refused}");
    house.keys.server().down = false;
    // One that goes in the middle.
    house.keys.server().confirm_fails = true;
    let refused = house.refused("VOL001", "SECURE", "DISP=NEW");
    assert!(refused.contains("it has gone"), "{refused}");
    assert!(house.port.drive().target().data_key().is_none());
    let memory = house.memory();
    assert_eq!(memory.len(), 2);
    assert!(
        memory
            .iter()
            .all(|eedk| eedk.as_ref().unwrap().dki() == first)
    );
    house.keys.server().confirm_fails = false;
    house.open("VOL001", "SECURE", "DISP=NEW").unwrap();
}

#[test]
fn proxy_that_starts_anew_keeps_the_key_that_it_finds() {
    let mut house = House::new();
    house.held.take_over().unwrap();
    house.load("VOL001");
    let opened = house.open("VOL001", "SECURE", "DISP=NEW").unwrap();
    assert!(house.writes(b"one"));
    // Killed; the job's process still has it open, then not any more.
    house.restart(|_| {});
    house.seat.others.store(true, Ordering::SeqCst);
    house.held.take_over().unwrap_err();
    assert!(
        house.writes(b"two"),
        "nothing was sent to a drive that is in use"
    );
    house.seat.others.store(false, Ordering::SeqCst);
    let taken = house.held.take_over().unwrap();
    let dki = opened.key.unwrap().dki;
    assert_eq!(taken.keyed, Some(dki.to_string()));
    assert_eq!(house.held.inspect().unwrap(), None);
    assert!(!house.writes(b"three"));
    let contents = house.contents("VOL001");
    assert_eq!((contents.clear, contents.encrypted), (0, 2));
}

#[test]
fn reset_while_a_key_is_set_refuses_the_job() {
    let mut house = House::new();
    house.load("VOL001");
    house.held.take_over().unwrap();
    // The server is slow, and meanwhile somebody presses the reset button.
    let port = house.port.clone();
    let mut keys = Interrupted {
        keys: house.keys.clone(),
        port,
    };
    let request = JobRequest {
        name: None,
        volser: "VOL001".parse().unwrap(),
        data_class: Some("SECURE".parse().unwrap()),
        dd: "DISP=NEW".parse().unwrap(),
    };
    let refused = house.held.open(&mut keys, &house.host, &request);
    let refused = refused.unwrap_err().to_string();
    assert!(
        refused.contains("29/03") || refused.contains("reset"),
        "{refused}"
    );
    assert!(!house.writes(b"sneaked in"));
    assert_eq!(house.contents("VOL001").blocks, 0);
}

/// A server during whose answers the drive is reset.
struct Interrupted {
    keys: TestKeys,
    port: TapePort,
}

impl Keys for Interrupted {
    fn create(&mut self, request: &CreateRequest) -> Result<CreateAnswer, KeysError> {
        self.keys.create(request)
    }

    fn resolve(&mut self, request: &ResolveRequest) -> Result<ResolveAnswer, KeysError> {
        self.keys.resolve(request)
    }

    fn confirm(&mut self, request: &ConfirmRequest) -> Result<ConfirmAnswer, KeysError> {
        if request.stored {
            self.port.drive().reset();
        }
        self.keys.confirm(request)
    }
}

#[test]
fn drive_that_forgets_its_protection_is_protected_as_soon_as_it_loses_its_key() {
    let mut house = House::new();
    house.load("VOL001");
    house.held.take_over().unwrap();
    house.open("VOL001", "SECURE", "DISP=NEW").unwrap();
    assert!(!house.held.is_watched());
    // As if its SWP were not saved: a reset brings back that it may write.
    house.held.job.as_mut().unwrap().guard = Guard::CurrentOnly;
    let mut drive = crate::scsi::Drive::new(house.port.clone());
    drive.set_write_protection(false, true).unwrap();
    assert!(house.held.is_watched());
    assert!(house.writes(b"one"));
    house.held.glance();
    assert!(
        house.writes(b"two"),
        "nothing has failed, so nothing was asked"
    );
    house.port.drive().reset();
    // The job's next command is told, and the kernel counts it.
    let failed = write(&mut house.port.clone(), b"three");
    assert_ne!(failed.status, Completion::GOOD);
    house.seat.failures.store(1, Ordering::SeqCst);
    house.held.glance();
    assert!(!house.writes(b"four"));
    let closed = house.close();
    let changed = |alarm: &Alarm| matches!(alarm, Alarm::KeyChanged { .. });
    assert!(closed.alarms.iter().any(changed), "{closed:?}");
    let contents = house.contents("VOL001");
    assert_eq!((contents.clear, contents.encrypted), (0, 2));
}
