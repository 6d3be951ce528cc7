//! What happens between two commands of the proxy.

use super::*;
use crate::scsi::TransportError;
use crate::softdrive::Quirk;

/// Called before each command: whatever it does, and perhaps an end of the command that the drive
/// never sees.
type Before = Box<dyn FnMut(&[u8], &TapePort) -> Option<Completion> + Send>;

struct Meddled {
    port: TapePort,
    before: Before,
}

impl Transport for Meddled {
    fn execute(
        &mut self,
        cdb: &[u8],
        data: Data<'_>,
        limit: Duration,
    ) -> Result<Completion, TransportError> {
        match (self.before)(cdb, &self.port) {
            Some(completion) => Ok(completion),
            None => self.port.execute(cdb, data, limit),
        }
    }

    fn name(&self) -> &str {
        "meddled"
    }
}

impl House {
    /// The drive in the hands of a proxy whose commands pass by `before`.
    fn meddle(
        &mut self,
        before: impl FnMut(&[u8], &TapePort) -> Option<Completion> + Send + 'static,
    ) {
        let transport = Meddled {
            port: self.port.clone(),
            before: Box::new(before),
        };
        self.held = HeldDrive::new(
            Box::new(transport),
            Box::new(self.seat.clone()),
            self.held.rules.clone(),
            History::new(&self.directory.path().join("history.jsonl")),
        );
        self.held.take_over().unwrap();
    }

    fn command(&self, cdb: &[u8]) -> Completion {
        let mut port = self.port.clone();
        port.execute(cdb, Data::None, SECOND).unwrap()
    }
}

const UNLOAD: [u8; 6] = [0x1b, 0, 0, 0, 0, 0];

#[test]
fn cartridge_stays_in_while_a_job_writes_it() {
    let mut house = House::new();
    house.load("VOL001");
    house.held.take_over().unwrap();
    house.open("VOL001", "SECURE", "DISP=NEW").unwrap();
    assert!(house.writes(b"one"));
    // The next one would have no key, and no write protection.
    let refused = house.command(&UNLOAD);
    assert_eq!(refused.sense.get(12..14), Some(&[0x53, 0x02][..]));
    assert!(house.writes(b"two"));
    assert_eq!(house.close().alarms, []);
    assert_eq!(house.command(&UNLOAD).status, Completion::GOOD);

    // One that was left so by a proxy that died is let go by the next.
    house.load("VOL002");
    house.open("VOL002", "SECURE", "DISP=NEW").unwrap();
    house.restart(|_| {});
    house.held.take_over().unwrap();
    assert_eq!(house.command(&UNLOAD).status, Completion::GOOD);
}

#[test]
fn cartridge_of_a_job_in_clear_stays_in_until_the_job_is_closed() {
    let mut house = House::new();
    house.load("VOL001");
    house.held.take_over().unwrap();
    house.open("VOL001", "PLAIN", "DISP=NEW").unwrap();
    assert!(house.writes(b"meant to be in clear"));
    // The next one may be one that is to be encrypted.
    let refused = house.command(&UNLOAD);
    assert_eq!(refused.sense.get(12..14), Some(&[0x53, 0x02][..]));
    assert_eq!(house.close().alarms, []);
    assert!(!house.writes(b"after"));
    assert_eq!(house.command(&UNLOAD).status, Completion::GOOD);

    // A reader's is not kept in.
    house.load("VOL001");
    house.open("VOL001", "", "DISP=OLD").unwrap();
    house.command(&[0; 6]);
    assert_eq!(house.command(&UNLOAD).status, Completion::GOOD);
    house.close();

    // One that was left so by a proxy that died is let go by the next.
    house.load("VOL002");
    house.open("VOL002", "PLAIN", "DISP=NEW").unwrap();
    house.restart(|_| {});
    house.held.take_over().unwrap();
    assert!(!house.writes(b"nobody's"));
    assert_eq!(house.command(&UNLOAD).status, Completion::GOOD);
}

#[test]
fn another_cartridge_at_the_end_of_a_job_in_clear_raises_the_alarm() {
    let mut house = House::new();
    house.load("VOL001");
    house.held.take_over().unwrap();
    house.open("VOL001", "PLAIN", "DISP=NEW").unwrap();
    assert!(house.writes(b"meant to be in clear"));
    // By hand, which no command prevents.
    house.load("VOL002");
    assert!(house.writes(b"meant to be encrypted"));
    let closed = house.close();
    let other = |alarm: &Alarm| matches!(alarm, Alarm::OtherCartridge { what, .. } if what.contains("VOL002"));
    assert!(closed.alarms.iter().any(other), "{closed:?}");
    assert!(matches!(closed.clear_blocks, ClearBlocks::Unknown(_)));
    assert!(!house.writes(b"after"));
}

#[test]
fn blank_cartridge_put_in_under_a_job_does_not_say_that_the_job_wrote_nothing() {
    let mut house = House::new();
    house.load("VOL001");
    house.held.take_over().unwrap();
    let opened = house.open("VOL001", "SECURE", "DISP=NEW").unwrap();
    let dki = opened.key.unwrap().dki;
    assert!(house.writes(b"encrypted"));
    house.filemark();
    house.load("VOL002");
    let closed = house.close();
    let other = |alarm: &Alarm| matches!(alarm, Alarm::OtherCartridge { .. });
    let changed = |alarm: &Alarm| matches!(alarm, Alarm::KeyChanged { .. });
    assert!(closed.alarms.iter().any(other), "{closed:?}");
    assert!(closed.alarms.iter().any(changed), "{closed:?}");
    let mut keys = house.keys.clone();
    house.held.tell_unused(&mut keys).unwrap();
    assert_eq!(keys.server().confirmed, [(dki, true)]);
}

/// Fails as the drive does whose inside is broken.
fn broken() -> Option<Completion> {
    Some(Completion {
        status: Completion::CHECK_CONDITION,
        transferred: 0,
        sense: crate::t10::Sense::INTERNAL_FAILURE.encode().to_vec(),
    })
}

#[test]
fn job_in_clear_that_is_not_handed_over_lets_its_cartridge_out() {
    let mut house = House::new();
    house.load("VOL001");
    let mut kept_in = false;
    house.meddle(move |cdb, _| match cdb {
        [0x1e, _, _, _, 1, ..] => {
            kept_in = true;
            None
        }
        // The first command of the lifting.
        [0x15 | 0x1a | 0x55 | 0x5a, ..] if kept_in => {
            kept_in = false;
            broken()
        }
        _ => None,
    });
    let refused = house.refused("VOL001", "PLAIN", "DISP=NEW");
    assert!(refused.contains("44/00"), "{refused}");
    assert_eq!(house.command(&UNLOAD).status, Completion::GOOD);
}

/// A drive without write protection and without PREVENT ALLOW MEDIUM REMOVAL got encrypted jobs, under
/// which the next cartridge would have found neither key nor protection.
#[test]
fn drive_that_cannot_keep_its_cartridge_in_gets_no_job_that_must_encrypt() {
    let without = TapeDrive::without_write_protection;
    let permitted = |rules: &mut Rules| rules.unprotected = true;
    let mut house = House::with(DriveKind::LtoPlain, without, permitted);
    house.load("VOL001");
    house.meddle(|cdb, _| {
        matches!(cdb, [0x1e, ..]).then(|| Completion {
            status: Completion::CHECK_CONDITION,
            transferred: 0,
            sense: crate::t10::Sense::INVALID_COMMAND.encode().to_vec(),
        })
    });
    let refused = house.open("VOL001", "SECURE", "DISP=NEW").unwrap_err();
    assert!(refused.to_string().contains("20/00"), "{refused}");
    // It changes nothing for a job in clear, and keeps nothing in that would have to be let out.
    house.open("VOL001", "PLAIN", "DISP=NEW").unwrap();
    assert_eq!(house.close().warnings, [""; 0]);
}

#[test]
fn cartridge_that_is_not_let_out_at_once_is_let_out_at_the_next_take_over() {
    let mut house = House::new();
    house.load("VOL001");
    let mut fail = 0;
    house.meddle(move |cdb, _| {
        let allows = matches!(cdb, [0x1e, _, _, _, 0, ..]);
        let after_the_job = fail > 0;
        fail += usize::from(matches!(cdb, [0x1e, _, _, _, 1, ..]) || (allows && after_the_job));
        // That of the close, and that of the take-over behind it.
        if allows && matches!(fail, 2 | 3) {
            return broken();
        }
        None
    });
    house.open("VOL001", "PLAIN", "DISP=NEW").unwrap();
    let closed = house.close();
    assert!(closed.warnings[0].contains("kept in"), "{closed:?}");
    let refused = house.command(&UNLOAD);
    assert_eq!(refused.sense.get(12..14), Some(&[0x53, 0x02][..]));
    let error = house.held.take_over().unwrap_err();
    assert!(matches!(error, TakeOverError::Refused(_)), "{error}");
    house.held.take_over().unwrap();
    assert_eq!(house.command(&UNLOAD).status, Completion::GOOD);
}

#[tokio::test]
async fn protection_that_failed_after_it_was_lifted_is_tried_until_it_succeeds() {
    for class in ["SECURE", "PLAIN"] {
        let mut house = House::new();
        house.load("VOL001");
        let down = Arc::new(AtomicBool::new(false));
        let link = Arc::clone(&down);
        let (mut kept_in, mut lifted) = (false, false);
        house.meddle(move |cdb, _| {
            match cdb {
                [0x1e, _, _, _, 1, ..] => kept_in = true,
                [0x55, ..] if kept_in => lifted = true,
                // The next command but those that read back the lifting; from now on all of them fail.
                [first, ..] if lifted && *first != 0x5a => {
                    (kept_in, lifted) = (false, false);
                    link.store(true, Ordering::SeqCst);
                }
                _ => {}
            }
            if link.load(Ordering::SeqCst) {
                return broken();
            }
            None
        });
        let House {
            directory: _directory,
            mut port,
            held,
            keys,
            host,
            ..
        } = house;
        let thread = DriveThread::start(held, Box::new(keys), Arc::new(host)).unwrap();
        let becomes = async |wanted: fn(&DriveState) -> bool| {
            for _ in 0..1200 {
                if wanted(&thread.state()) {
                    return true;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            false
        };
        assert!(becomes(|state| matches!(state, DriveState::Held(_))).await);
        let request = JobRequest {
            name: None,
            volser: "VOL001".parse().unwrap(),
            data_class: Some(class.parse().unwrap()),
            dd: "DISP=NEW".parse().unwrap(),
        };
        let (_here, client) = JobClient::new();
        let refused = thread.open(request, client).await.unwrap_err();
        assert!(down.load(Ordering::SeqCst), "{refused}");
        assert!(refused.contains("may be able to write"), "{refused}");
        assert!(matches!(thread.state(), DriveState::NotHeld { .. }));
        down.store(false, Ordering::SeqCst);
        assert!(becomes(|state| matches!(state, DriveState::Held(_))).await);
        let refused = write(&mut port, b"sneaked in");
        assert_eq!(refused.sense.get(12..14), Some(&[0x27, 0x02][..]));
        let out = port.execute(&UNLOAD, Data::None, SECOND).unwrap();
        assert_eq!(out.status, Completion::GOOD);
    }
}

#[test]
fn cartridge_that_stays_in_as_its_drive_is_not_protected_is_let_out_with_the_protection() {
    let mut house = House::new();
    house.load("VOL001");
    let down = Arc::new(AtomicBool::new(false));
    let link = Arc::clone(&down);
    house.meddle(move |cdb, _| {
        let modes = matches!(cdb, [0x15 | 0x1a | 0x55 | 0x5a, ..]);
        (modes && link.load(Ordering::SeqCst))
            .then(broken)
            .flatten()
    });
    house.open("VOL001", "PLAIN", "DISP=NEW").unwrap();
    down.store(true, Ordering::SeqCst);
    let closed = house.close();
    assert!(matches!(closed.alarms[..], [Alarm::Unprotected { .. }]));
    let refused = house.command(&UNLOAD);
    assert_eq!(refused.sense.get(12..14), Some(&[0x53, 0x02][..]));
    house.held.take_over().unwrap_err();
    down.store(false, Ordering::SeqCst);
    house.held.take_over().unwrap();
    assert!(!house.writes(b"after"));
    assert_eq!(house.command(&UNLOAD).status, Completion::GOOD);
}

#[test]
fn drive_that_lost_its_key_is_protected_at_the_next_glance_where_the_first_could_not() {
    let mut house = House::new();
    house.load("VOL001");
    let down = Arc::new(AtomicBool::new(false));
    let link = Arc::clone(&down);
    house.meddle(move |_, _| link.load(Ordering::SeqCst).then(broken).flatten());
    house.open("VOL001", "SECURE", "DISP=NEW").unwrap();
    // As if its SWP were not saved: a reset brings back that it may write.
    house.held.job.as_mut().unwrap().guard = Guard::CurrentOnly;
    let mut drive = crate::scsi::Drive::new(house.port.clone());
    drive.set_write_protection(false, true).unwrap();
    assert!(house.writes(b"one"));
    house.port.drive().reset();
    drop(write(&mut house.port.clone(), b"two"));
    house.seat.failures.store(1, Ordering::SeqCst);
    down.store(true, Ordering::SeqCst);
    house.held.glance();
    down.store(false, Ordering::SeqCst);
    house.held.glance();
    assert!(!house.writes(b"three"));
    let closed = house.close();
    assert!(matches!(closed.alarms[0], Alarm::Unprotected { .. }));
    let contents = house.contents("VOL001");
    assert_eq!((contents.clear, contents.encrypted), (0, 1));
}

#[test]
fn reset_between_the_last_look_and_the_lifting_refuses_the_job() {
    let mut house = House::new();
    house.load("VOL001");
    let mut kept_in = false;
    house.meddle(move |cdb, port| {
        match cdb {
            [0x1e, _, _, _, 1, ..] => kept_in = true,
            [0x1a | 0x5a, ..] if kept_in => {
                kept_in = false;
                port.drive().reset();
            }
            _ => {}
        }
        None
    });
    let refused = house.refused("VOL001", "SECURE", "DISP=NEW");
    assert!(
        refused.contains("key") || refused.contains("reset"),
        "{refused}"
    );
    assert_eq!(house.contents("VOL001").blocks, 0);
}

#[test]
fn blocks_in_clear_behind_a_filemark_are_found() {
    let mut house = House::new();
    house.load("VOL001");
    house.held.take_over().unwrap();
    house.port.drive().misbehave(Quirk::ClaimsEncryption);
    house.open("VOL001", "SECURE", "DISP=NEW").unwrap();
    // Takes what is to be told.
    house.command(&[0; 6]);
    house.filemark();
    assert!(house.writes(b"clear"));
    let closed = house.close();
    let clear = |alarm: &Alarm| matches!(alarm, Alarm::ClearBlock { .. });
    assert!(closed.alarms.iter().any(clear), "{closed:?}");
}

#[test]
fn eedks_of_a_tape_that_begins_with_a_filemark_stay_when_it_is_written_anew() {
    let mut house = House::new();
    house.held.take_over().unwrap();
    let mut write = || {
        house.load("VOL001");
        let opened = house.open("VOL001", "SECURE", "DISP=NEW").unwrap();
        for _ in 0..4 {
            house.command(&[0; 6]);
        }
        house.filemark();
        assert!(house.writes(b"behind a filemark"));
        house.filemark();
        let closed = house.close();
        assert_eq!(closed.alarms, []);
        assert!(
            !closed
                .warnings
                .iter()
                .any(|warning| warning.contains("wrote nothing")),
            "{closed:?}"
        );
        opened.key.unwrap().dki
    };
    let first = write();
    let second = write();
    assert_ne!(first, second);
    let memory = house.memory();
    assert_eq!(memory.len(), 2);
    assert!(
        memory
            .iter()
            .all(|eedk| eedk.as_ref().unwrap().dki() == second)
    );
}

#[test]
fn eedks_that_are_stored_by_half_are_taken_back() {
    let mut house = House::new();
    house.held.take_over().unwrap();
    let first = house.written("VOL001");
    house.load("VOL001");
    let mut writes = 0;
    house.meddle(move |cdb, _| {
        writes += usize::from(cdb[0] == 0x8d);
        (cdb[0] == 0x8d && writes == 2).then(|| Completion {
            status: 2,
            transferred: 0,
            sense: crate::t10::Sense::INTERNAL_FAILURE.encode().to_vec(),
        })
    });
    let refused = house.refused("VOL001", "SECURE", "DISP=NEW");
    assert!(refused.contains("44/00"), "{refused}");
    let memory = house.memory();
    assert_eq!(memory.len(), 2, "{refused}");
    assert!(
        memory
            .iter()
            .all(|eedk| eedk.as_ref().unwrap().dki() == first)
    );
}

/// A server during whose answer another cartridge is put in.
struct Swapped {
    keys: TestKeys,
    port: TapePort,
    other: PathBuf,
}

impl Keys for Swapped {
    fn create(&mut self, request: &CreateRequest) -> Result<CreateAnswer, KeysError> {
        self.port.drive().unload();
        self.port.drive().load(&self.other).unwrap();
        self.keys.create(request)
    }

    fn resolve(&mut self, request: &ResolveRequest) -> Result<ResolveAnswer, KeysError> {
        self.keys.resolve(request)
    }

    fn confirm(&mut self, request: &ConfirmRequest) -> Result<ConfirmAnswer, KeysError> {
        self.keys.confirm(request)
    }
}

#[test]
fn cartridge_that_is_put_in_meanwhile_keeps_its_eedks() {
    let mut house = House::new();
    house.held.take_over().unwrap();
    let (one, two) = (house.written("VOL001"), house.written("VOL002"));
    house.load("VOL001");
    let mut keys = Swapped {
        keys: house.keys.clone(),
        port: house.port.clone(),
        other: house.tape("VOL002"),
    };
    let request = JobRequest {
        name: None,
        volser: "VOL001".parse().unwrap(),
        data_class: Some("SECURE".parse().unwrap()),
        dd: "DISP=NEW".parse().unwrap(),
    };
    let refused = house.held.open(&mut keys, &house.host, &request);
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("28/00"), "{refused}");
    let of = |house: &mut House, dki| {
        let memory = house.memory();
        assert_eq!(memory.len(), 2);
        assert!(
            memory
                .iter()
                .all(|eedk| eedk.as_ref().unwrap().dki() == dki)
        );
    };
    of(&mut house, two);
    house.load("VOL001");
    of(&mut house, one);
}
