//! Drives whose names move, and who asks a drive first.

use std::os::unix::fs::symlink;
use std::thread::JoinHandle;

use super::*;
use crate::proxy::HostDrive;
use crate::scsi::TransportError;
use crate::scsi::channel::{listen, serve};
use crate::t10::{Sense, SenseKey};

const OTHER: &str = "001013000777";
const INQUIRY: u8 = 0x12;
const BECOMING_READY: Sense = Sense::new(SenseKey::NotReady, 0x04, 0x01);
const POWERED_ON: Sense = Sense::new(SenseKey::UnitAttention, 0x29, 0x01);

/// A drive of the host's file.
fn drive(serial: &str, device: Option<&Path>) -> HostDrive {
    let device = device.map_or_else(String::new, |path| {
        format!("device = \"{}\"\n", path.display())
    });
    host_drive(serial, &device)
}

fn host_drive(serial: &str, device: &str) -> HostDrive {
    let text = format!("path = \"in-band\"\n[[drives]]\nserial = \"{serial}\"\n{device}");
    let host = HostConfig::parse(Path::new("host.toml"), &text).unwrap();
    host.in_band_drives().next().unwrap().clone()
}

/// A drive that remembers the operation codes that it was sent.
#[derive(Clone, Debug)]
struct Recorded {
    port: TapePort,
    asked: Arc<Mutex<Vec<u8>>>,
}

impl Recorded {
    fn new(directory: &Path, serial: &str) -> Self {
        let init = Init {
            serial: serial.parse().unwrap(),
            wwn: "50050763020304a1".parse().unwrap(),
            kind: DriveKind::LtoPlain,
        };
        let soft = SoftDrive::init(&directory.join(serial), &init).unwrap();
        Self::of(&TapePort::new(TapeDrive::new(soft)))
    }

    fn of(port: &TapePort) -> Self {
        Self {
            port: port.clone(),
            asked: Arc::default(),
        }
    }

    fn asked(&self) -> Vec<u8> {
        self.asked.lock().unwrap().clone()
    }
}

impl Transport for Recorded {
    fn execute(
        &mut self,
        cdb: &[u8],
        data: Data<'_>,
        limit: Duration,
    ) -> Result<Completion, TransportError> {
        self.asked.lock().unwrap().push(cdb[0]);
        self.port.execute(cdb, data, limit)
    }

    fn name(&self) -> &str {
        "recorded"
    }
}

/// A drive behind a socket, until it is dropped.
struct Served {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Served {
    fn new(socket: &Path, mut unit: Recorded) -> Self {
        let listener = listen(socket).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let thread = std::thread::spawn(move || serve(&listener, &mut unit, &seen).unwrap());
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// MODE SELECT of a header alone.
fn mode_select(way: &mut Way) -> Result<Completion, TransportError> {
    way.execute(&[0x15, 0x10, 0, 0, 4, 0], Data::Out(&[0; 4]), SECOND)
}

#[test]
fn socket_of_another_drive_is_sent_inquiry_alone() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("drive.scsi");
    let unit = Recorded::new(directory.path(), SERIAL);
    let _served = Served::new(&socket, unit.clone());
    let device = format!("device = \"unix:{}\"\n", socket.display());
    let (mut other, _) = way(&host_drive(OTHER, &device));
    for _ in 0..2 {
        let error = mode_select(&mut other).unwrap_err();
        assert!(
            matches!(error, TransportError::OtherDrive { .. }),
            "{error}"
        );
        let error = error.to_string();
        assert!(error.contains(SERIAL) && error.contains(OTHER), "{error}");
    }
    let asked = unit.asked();
    assert!(asked.iter().all(|code| *code == INQUIRY), "{asked:02X?}");
    // The drive itself.
    let (mut own, _) = way(&host_drive(SERIAL, &device));
    mode_select(&mut own).unwrap();
    assert_eq!(unit.asked().last(), Some(&0x15));
}

#[test]
fn drive_that_is_another_after_a_new_connection_is_sent_inquiry_alone() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("drive.scsi");
    let device = format!("device = \"unix:{}\"\n", socket.display());
    let (mut way, _) = way(&host_drive(SERIAL, &device));
    let first = Recorded::new(directory.path(), SERIAL);
    let served = Served::new(&socket, first.clone());
    mode_select(&mut way).unwrap();
    drop(served);
    let second = Recorded::new(directory.path(), OTHER);
    let served = Served::new(&socket, second.clone());
    let error = mode_select(&mut way).unwrap_err();
    assert!(
        matches!(error, TransportError::OtherDrive { .. }),
        "{error}"
    );
    let asked = second.asked();
    assert!(asked.iter().all(|code| *code == INQUIRY), "{asked:02X?}");
    // It comes back, and is used again without a lost command.
    drop(served);
    let _served = Served::new(&socket, first.clone());
    mode_select(&mut way).unwrap();
}

/// What stands for `sys` and `dev`: drive `a`, whose serial is [`SERIAL`], is sg0, drive `b` sg1.
/// Nodes are `/dev/null` (1:3) and `/dev/zero` (1:5), which every host has.
struct Names(TempDir);

const NODES: [(&str, &str); 2] = [("/dev/null", "1:3"), ("/dev/zero", "1:5")];

impl Names {
    fn new() -> Self {
        let names = Self(tempfile::tempdir().unwrap());
        for (drive, sg, serial) in [("a", "sg0", SERIAL), ("b", "sg1", OTHER)] {
            let device = names.at(&format!("sys/devices/{drive}"));
            std::fs::create_dir_all(&device).unwrap();
            std::fs::write(device.join("type"), "1\n").unwrap();
            let page = [b"\x01\x80\0\x0c", serial.as_bytes()].concat();
            std::fs::write(device.join("vpd_pg80"), page).unwrap();
            let class = names.at("sys/class/scsi_generic").join(sg);
            std::fs::create_dir_all(&class).unwrap();
            symlink(&device, class.join("device")).unwrap();
            std::fs::create_dir_all(names.at("dev")).unwrap();
            std::fs::write(names.at("dev").join(sg), "").unwrap();
        }
        for (n, (node, _)) in NODES.iter().enumerate() {
            symlink(node, names.at(&format!("dev/nst{n}"))).unwrap();
        }
        names.tapes("a", "b");
        names.numbers("a", "b");
        names
    }

    fn at(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    /// Whose nst0 and nst1 are, as their drives say.
    fn tapes(&self, first: &str, second: &str) {
        for (drive, tape) in [(first, "nst0"), (second, "nst1")] {
            let tapes = self.at(&format!("sys/devices/{drive}/scsi_tape"));
            drop(std::fs::remove_dir_all(&tapes));
            std::fs::create_dir_all(tapes.join(tape)).unwrap();
            std::fs::create_dir_all(tapes.join(format!("{tape}a"))).unwrap();
        }
    }

    /// Whose nst0 and nst1 are, as their numbers say.
    fn numbers(&self, first: &str, second: &str) {
        for (drive, (_, number)) in [first, second].into_iter().zip(NODES) {
            let class = self.at("sys/dev/char").join(number);
            drop(std::fs::remove_dir_all(&class));
            std::fs::create_dir_all(&class).unwrap();
            let device = self.at(&format!("sys/devices/{drive}"));
            symlink(device, class.join("device")).unwrap();
        }
    }
}

#[test]
fn tape_device_that_moves_while_it_is_held_is_looked_for_anew() {
    let names = Names::new();
    let sg = names.at("dev/sg0");
    for device in [None, Some(sg.as_path())] {
        names.tapes("a", "b");
        names.numbers("a", "b");
        let (_, mut seat) = way::way_under(names.0.path(), &drive(SERIAL, device));
        seat.take().unwrap();
        assert_eq!(Path::new(seat.tape()), names.at("dev/nst0"));
        // Both drives were away, and have come back the other way round.
        names.tapes("b", "a");
        names.numbers("b", "a");
        seat.take().unwrap();
        assert_eq!(Path::new(seat.tape()), names.at("dev/nst1"));
    }
}

#[test]
fn tape_device_of_another_drive_is_not_held() {
    let names = Names::new();
    let (_, mut seat) = way::way_under(names.0.path(), &drive(SERIAL, None));
    // The node has got the number of the other drive's in between.
    names.numbers("b", "a");
    let error = seat.take().unwrap_err().to_string();
    assert!(error.contains("it is the tape device of"), "{error}");
    std::fs::remove_dir_all(names.at("sys/dev/char")).unwrap();
    let error = seat.take().unwrap_err().to_string();
    assert!(error.contains("cannot be told"), "{error}");
    names.numbers("a", "b");
    seat.take().unwrap();
}

#[test]
fn another_drive_in_its_place_is_sent_inquiry_alone_and_is_not_held() {
    let mut house = House::new();
    house.load("VOL001");
    let unit = Recorded::of(&house.port);
    let mut rules = house.held.rules.clone();
    rules.serial = OTHER.parse().unwrap();
    let history = History::new(&house.directory.path().join("history.jsonl"));
    let seat = Box::new(house.seat.clone());
    house.held = HeldDrive::new(Box::new(unit.clone()), seat, rules, history);
    let error = house.held.take_over().unwrap_err().to_string();
    assert!(error.contains(OTHER), "{error}");
    assert!(!house.seat.held.load(Ordering::SeqCst));
    let refused = house.held.open(&mut house.keys, &house.host, &request());
    let refused = refused.unwrap_err();
    assert!(
        matches!(refused, JobRefused::OtherDrive { .. }),
        "{refused}"
    );
    assert!(!house.seat.held.load(Ordering::SeqCst));
    let asked = unit.asked();
    assert!(asked.iter().all(|code| *code == INQUIRY), "{asked:02X?}");
}

fn request() -> JobRequest {
    JobRequest {
        name: None,
        volser: "VOL001".parse().unwrap(),
        data_class: Some("SECURE".parse().unwrap()),
        dd: "DISP=NEW".parse().unwrap(),
    }
}

/// What happens once the drive has given its first answer.
type Then = Box<dyn FnOnce() + Send>;

/// A drive whose first TEST UNIT READY through here ends with that sense.
struct First {
    unit: Recorded,
    answer: Option<(Sense, Then)>,
}

impl Transport for First {
    fn execute(
        &mut self,
        cdb: &[u8],
        data: Data<'_>,
        limit: Duration,
    ) -> Result<Completion, TransportError> {
        if cdb[0] == 0
            && let Some((sense, then)) = self.answer.take()
        {
            self.unit.asked.lock().unwrap().push(0);
            then();
            return Ok(Completion {
                status: Completion::CHECK_CONDITION,
                transferred: 0,
                sense: sense.encode().to_vec(),
            });
        }
        self.unit.execute(cdb, data, limit)
    }

    fn name(&self) -> &str {
        "first"
    }
}

/// The unit attentions that a tape driver heard: ASC and ASCQ.
type Heard = Arc<Mutex<Vec<(u8, u8)>>>;

/// A seat with a tape driver that asks the drive when it is opened, as `st` does.
#[derive(Debug)]
struct Asking {
    seat: Seat,
    port: TapePort,
    heard: Heard,
}

impl Hold for Asking {
    fn take(&mut self) -> Result<(), HoldError> {
        self.seat.take()?;
        loop {
            let done = self.port.execute(&[0; 6], Data::None, SECOND).unwrap();
            match Sense::decode(&done.sense) {
                Ok(sense) if sense.key == SenseKey::UnitAttention => {
                    self.heard.lock().unwrap().push((sense.asc, sense.ascq));
                }
                _ => return Ok(()),
            }
        }
    }

    fn release(&mut self) {
        self.seat.release();
    }

    fn tape(&self) -> &str {
        self.seat.tape()
    }

    fn failures(&self) -> Option<u64> {
        self.seat.failures()
    }
}

/// A protected drive without a cartridge that answers so; what its tape driver hears, and what it is
/// sent.
fn answering(sense: Sense, then: Then) -> (House, Heard, Recorded) {
    let mut house = House::new();
    house.held.take_over().unwrap();
    let unit = Recorded::of(&house.port);
    let heard = Arc::new(Mutex::new(Vec::new()));
    let hold = Asking {
        seat: house.seat.clone(),
        port: house.port.clone(),
        heard: Arc::clone(&heard),
    };
    let first = First {
        unit: unit.clone(),
        answer: Some((sense, then)),
    };
    let history = History::new(&house.directory.path().join("history.jsonl"));
    let rules = house.held.rules.clone();
    house.held = HeldDrive::new(Box::new(first), Box::new(hold), rules, history);
    (house, heard, unit)
}

/// A cartridge that comes in when it is told.
fn cartridge() -> (TempDir, Arc<Mutex<Option<TapePort>>>, Then) {
    let directory = tempfile::tempdir().unwrap();
    let tape = directory.path().join("VOL001");
    new_tape(&tape, &"VOL001".parse().unwrap(), 16 << 20).unwrap();
    let port = Arc::new(Mutex::new(None::<TapePort>));
    let into = Arc::clone(&port);
    let then = Box::new(move || {
        let port = into.lock().unwrap();
        port.as_ref().unwrap().drive().load(&tape).unwrap();
    });
    (directory, port, then)
}

#[test]
fn new_cartridge_is_told_to_the_tape_driver_and_not_taken_from_it() {
    let (_directory, port, then) = cartridge();
    let (mut house, heard, _) = answering(BECOMING_READY, then);
    *port.lock().unwrap() = Some(house.port.clone());
    house.open("VOL001", "SECURE", "DISP=NEW").unwrap();
    assert_eq!(*heard.lock().unwrap(), [(0x28, 0x00)]);
}

#[test]
fn attentions_behind_the_first_are_told_to_the_tape_driver() {
    let (_directory, port, then) = cartridge();
    let (mut house, heard, _) = answering(POWERED_ON, then);
    *port.lock().unwrap() = Some(house.port.clone());
    house.held.take_over().unwrap();
    assert_eq!(*heard.lock().unwrap(), [(0x28, 0x00)]);
}

#[test]
fn drive_that_somebody_else_gets_while_it_loads_is_sent_nothing_more() {
    let seat: Arc<Mutex<Option<Seat>>> = Arc::default();
    let taken = Arc::clone(&seat);
    let then = Box::new(move || {
        let seat = taken.lock().unwrap();
        seat.as_ref().unwrap().others.store(true, Ordering::SeqCst);
    });
    let (mut house, _, unit) = answering(BECOMING_READY, then);
    *seat.lock().unwrap() = Some(house.seat.clone());
    let refused = house.held.open(&mut house.keys, &house.host, &request());
    let refused = refused.unwrap_err();
    assert!(matches!(refused, JobRefused::Held(_)), "{refused}");
    assert_eq!(unit.asked().last(), Some(&0x00));
}

#[tokio::test]
async fn drive_that_is_lost_to_somebody_else_is_taken_over_again() {
    let House {
        directory: _directory,
        seat,
        held,
        keys,
        host,
        ..
    } = House::new();
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
    // Somebody gets in between while the seat is let go and taken anew.
    seat.others.store(true, Ordering::SeqCst);
    let (_here, client) = JobClient::new();
    let refused = thread.open(request(), client).await.unwrap_err();
    assert!(refused.contains("in use by another program"), "{refused}");
    assert!(becomes(|state| matches!(state, DriveState::NotHeld { .. })).await);
    seat.others.store(false, Ordering::SeqCst);
    assert!(becomes(|state| matches!(state, DriveState::Held(_))).await);
}
