//! Commands as a host sends them, and what the tape image says of it afterwards.

mod hostile;
mod keys;
mod model;
mod modes;
mod quirks;
mod records;
mod typed;

use std::time::Duration;

use tempfile::TempDir;

use super::*;
use crate::{
    softdrive::{DriveKind, Init},
    t10::SenseKey,
};

/// A host with a drive, and a tape in it.
struct Host {
    directory: TempDir,
    drive: TapeDrive,
}

const MIB: u64 = 1 << 20;

impl Host {
    fn new(kind: DriveKind) -> Self {
        Self::with(kind, 64 * MIB)
    }

    fn with(kind: DriveKind, capacity: u64) -> Self {
        let mut host = Self::empty(kind);
        let image = host.image();
        new_tape(&image, &"VOL001".parse().unwrap(), capacity).unwrap();
        host.drive.load(&image).unwrap();
        host.settle();
        host
    }

    fn empty(kind: DriveKind) -> Self {
        let directory = TempDir::new().unwrap();
        let names = Init {
            serial: "1013000123".parse().unwrap(),
            wwn: "500104F000ABCDEF".parse().unwrap(),
            kind,
        };
        let soft = SoftDrive::init(&directory.path().join("drive"), &names).unwrap();
        Self {
            drive: TapeDrive::new(soft),
            directory,
        }
    }

    fn image(&self) -> PathBuf {
        self.directory.path().join("tape")
    }

    /// Takes the unit attentions that wait.
    fn settle(&mut self) {
        while !self.drive.attentions.is_empty() {
            self.check(&[0, 0, 0, 0, 0, 0]);
        }
    }

    fn execute(&mut self, cdb: &[u8], data: Data<'_>) -> Completion {
        self.drive.execute(cdb, data, Duration::ZERO).unwrap()
    }

    /// A command without data that ends well.
    fn good(&mut self, cdb: &[u8]) {
        let completion = self.execute(cdb, Data::None);
        assert_eq!(
            (completion.status, completion.sense),
            (GOOD, vec![]),
            "{cdb:02x?}"
        );
    }

    /// A command without data that does not.
    fn check(&mut self, cdb: &[u8]) -> Told {
        Told::from(&self.execute(cdb, Data::None))
    }

    /// Data that the drive returns.
    fn read(&mut self, cdb: &[u8]) -> Vec<u8> {
        let mut buffer = vec![0; 70_000];
        let completion = self.execute(cdb, Data::In(&mut buffer));
        assert_eq!(
            (completion.status, completion.sense),
            (GOOD, vec![]),
            "{cdb:02x?}"
        );
        buffer.truncate(completion.transferred);
        buffer
    }

    /// Data that the drive takes.
    fn write(&mut self, cdb: &[u8], data: &[u8]) {
        let completion = self.execute(cdb, Data::Out(data));
        assert_eq!(
            (completion.status, completion.sense),
            (GOOD, vec![]),
            "{cdb:02x?}"
        );
        assert_eq!(completion.transferred, data.len());
    }

    fn write_block(&mut self, block: &[u8]) {
        self.write(&variable(0x0a, block.len()), block);
    }

    /// READ of one block; what of it came, and how it ended.
    fn read_block(&mut self, length: usize) -> (Vec<u8>, Option<Told>) {
        let mut buffer = vec![0; length];
        let completion = self.execute(&variable(0x08, length), Data::In(&mut buffer));
        buffer.truncate(completion.transferred);
        let told = (completion.status != GOOD).then(|| Told::from(&completion));
        (buffer, told)
    }

    fn filemark(&mut self) {
        self.good(&[0x10, 0, 0, 0, 1, 0]);
    }

    fn rewind(&mut self) {
        self.good(&[0x01, 0, 0, 0, 0, 0]);
    }

    /// The number of the next object.
    fn position(&mut self) -> u32 {
        let answer = self.read(&[0x34, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        u32::from_be_bytes(answer[4..8].try_into().unwrap())
    }

    fn contents(&self) -> TapeContents {
        TapeContents::read(&self.image()).unwrap()
    }
}

/// READ or WRITE of one block of any length.
fn variable(operation: u8, length: usize) -> [u8; 6] {
    let [_, a, b, c] = u32::try_from(length).unwrap().to_be_bytes();
    [operation, 0, a, b, c, 0]
}

/// What a CHECK CONDITION told.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    /// Key, code and qualifier.
    code: (u8, u8, u8),
    /// FILEMARK, EOM and ILI, as one letter each.
    marks: String,
    information: Option<i32>,
}

impl Told {
    fn from(completion: &Completion) -> Self {
        assert_eq!(completion.status, CHECK_CONDITION);
        let sense = &completion.sense;
        assert_eq!(sense.len(), 18);
        let information = i32::from_be_bytes(sense[3..7].try_into().unwrap());
        Self {
            code: (sense[2] & 0x0f, sense[12], sense[13]),
            marks: [(0x80, 'F'), (0x40, 'E'), (0x20, 'I')]
                .iter()
                .filter(|(bit, _)| sense[2] & bit != 0)
                .map(|(_, mark)| mark)
                .collect(),
            information: (sense[0] & 0x80 != 0).then_some(information),
        }
    }
}

fn told(code: (u8, u8, u8), marks: &str, information: i32) -> Told {
    Told {
        code,
        marks: marks.to_owned(),
        information: Some(information),
    }
}

fn plainly(key: SenseKey, asc: u8, ascq: u8) -> Told {
    Told {
        code: (key.code(), asc, ascq),
        marks: String::new(),
        information: None,
    }
}

const READY: [u8; 6] = [0; 6];

#[test]
fn inquiry_and_pages_name_the_drive() {
    let mut host = Host::empty(DriveKind::Lto);
    let standard = host.read(&[0x12, 0, 0, 0, 0xff, 0]);
    assert_eq!(&standard[..5], [0x01, 0x80, 0x06, 0x02, 31]);
    assert_eq!(&standard[8..], b"EKM     SOFTDRIVE LTO   0001");
    assert_eq!(host.read(&[0x12, 0, 0, 0, 5, 0]).len(), 5);
    assert_eq!(
        host.read(&[0x12, 1, 0, 0, 0xff, 0]),
        [1, 0, 0, 3, 0, 0x80, 0x83]
    );
    assert_eq!(
        host.read(&[0x12, 1, 0x80, 0, 0xff, 0]),
        b"\x01\x80\0\x0c001013000123"
    );
    let identification = host.read(&[0x12, 1, 0x83, 0, 0xff, 0]);
    let naa = b"\x01\x03\0\x08\x50\x01\x04\xf0\x00\xab\xcd\xef";
    assert_eq!(&identification[4..16], naa);
    // Still there: INQUIRY takes no unit attention.
    assert_eq!(
        host.check(&READY),
        plainly(SenseKey::UnitAttention, 0x29, 0x00)
    );
    assert_eq!(
        host.check(&[0x12, 1, 0xb1, 0, 0xff, 0]),
        plainly(SenseKey::IllegalRequest, 0x24, 0x00)
    );
}

#[test]
fn drive_without_cartridge_is_not_ready_and_says_when_one_comes() {
    let mut host = Host::empty(DriveKind::Lto);
    host.settle();
    let absent = plainly(SenseKey::NotReady, 0x3a, 0x00);
    for cdb in [
        READY,
        [0x01, 0, 0, 0, 0, 0],
        variable(0x08, 512),
        [0x10, 0, 0, 0, 1, 0],
    ] {
        assert_eq!(host.check(&cdb), absent, "{cdb:02x?}");
    }
    let image = host.image();
    new_tape(&image, &"A".parse().unwrap(), MIB).unwrap();
    host.drive.load(&image).unwrap();
    assert!(matches!(host.drive.load(&image), Err(ImageError::Occupied)));
    let changed = plainly(SenseKey::UnitAttention, 0x28, 0x00);
    assert_eq!(host.check(&READY), changed);
    host.good(&READY);

    // Unloaded by the host, it stays in the mouth.
    host.good(&[0x1b, 0, 0, 0, 0, 0]);
    assert_eq!(host.check(&READY), absent);
    host.good(&[0x1b, 0, 0, 0, 1, 0]);
    assert_eq!(host.check(&READY), changed);
    assert_eq!(host.drive.unload(), Some(image));
    assert_eq!(host.check(&[0x1b, 0, 0, 0, 1, 0]), absent);
}

#[test]
fn tape_is_in_one_drive_only() {
    let host = Host::new(DriveKind::Lto);
    let mut other = Host::empty(DriveKind::Lto);
    assert!(matches!(
        other.drive.load(&host.image()),
        Err(ImageError::InUse)
    ));
}

#[test]
fn unloading_is_refused_where_it_is_prevented() {
    let mut host = Host::new(DriveKind::Lto);
    host.good(&[0x1e, 0, 0, 0, 1, 0]);
    assert_eq!(
        host.check(&[0x1b, 0, 0, 0, 0, 0]),
        plainly(SenseKey::IllegalRequest, 0x53, 0x02)
    );
    host.drive.reset();
    host.settle();
    host.good(&[0x1b, 0, 0, 0, 0, 0]);
}

#[test]
fn request_sense_tells_of_a_unit_attention_once() {
    let mut host = Host::new(DriveKind::Lto);
    host.drive.reset();
    let sense = host.read(&[0x03, 0, 0, 0, 0xff, 0]);
    assert_eq!((sense[2], sense[12], sense[13]), (6, 0x29, 0x03));
    let sense = host.read(&[0x03, 0, 0, 0, 0xff, 0]);
    assert_eq!((sense[2], sense[12]), (0, 0));
    host.good(&READY);
    host.drive.power_cycle().unwrap();
    assert_eq!(host.check(&READY).code, (6, 0x29, 0x00));
    assert_eq!(host.check(&READY).code, (6, 0x28, 0x00));
    host.good(&READY);
}

#[test]
fn block_limits_luns_and_log_pages() {
    let mut host = Host::new(DriveKind::Lto);
    assert_eq!(host.read(&[0x05, 0, 0, 0, 0, 0]), [0, 0x80, 0, 0, 0, 1]);
    let luns = host.read(&[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0]);
    assert_eq!(luns[..4], 8_u32.to_be_bytes());
    assert_eq!(
        host.read(&[0x4d, 0, 0x40, 0, 0, 0, 0, 1, 0, 0]),
        [0, 0, 0, 2, 0, 0x2e]
    );
    let alerts = host.read(&[0x4d, 0, 0x6e, 0, 0, 0, 0, 2, 0, 0]);
    assert_eq!((alerts.len(), &alerts[..4]), (324, &[0x2e, 0, 1, 0x40][..]));
}

#[test]
fn what_the_drive_does_not_have_is_refused() {
    let mut host = Host::new(DriveKind::Lto);
    let unknown = plainly(SenseKey::IllegalRequest, 0x20, 0x00);
    // PERSISTENT RESERVE IN and OUT, WRITE BUFFER, a vendor's, and no command at all.
    for cdb in [
        &[0x5e, 0, 0, 0, 0, 0, 0, 0, 8, 0][..],
        &[0x5f, 0, 0, 0, 0, 0, 0, 0, 24, 0],
        &[0x3b, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[0xc0, 0, 0, 0, 0, 0],
        &[0x5a, 0],
        &[],
    ] {
        assert_eq!(host.check(cdb), unknown, "{cdb:02x?}");
    }
    host.good(&[0x16, 0, 0, 0, 0, 0]);
    host.good(&[0x17, 0, 0, 0, 0, 0]);
}

#[test]
fn file_that_is_no_tape_is_refused() {
    let mut host = Host::empty(DriveKind::Lto);
    let path = host.image();
    for content in [&b""[..], b"EKMCART1", &[0; 100_000]] {
        std::fs::write(&path, content).unwrap();
        assert!(matches!(host.drive.load(&path), Err(ImageError::NotATape)));
    }
    assert!(matches!(
        TapeContents::read(&host.directory.path().join("none")),
        Err(ImageError::Io(_))
    ));
    assert!(new_tape(&path, &"A".parse().unwrap(), MIB).is_err());
}

#[test]
fn debug_shows_no_key() {
    let host = Host::new(DriveKind::Lto);
    let port = TapePort::new(host.drive);
    let shown = format!("{port:?}");
    assert!(shown.contains("VOL001"), "{shown}");
}
