//! The software tape drive on a Unix socket, without a kernel.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ekm::scsi::{Channel, Data, Drive, Transport as _};
use ekm::softdrive::{DriveKind, Init, SoftDrive, TapeContents, TapeDrive, TapePort, new_tape};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::support::{EKM, wait_for};

/// A drive that `ekm` serves on a socket, with a tape in it whose end is far.
struct Served {
    directory: TempDir,
    process: Child,
}

impl Served {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let names = Init {
            serial: "000007800000".parse().unwrap(),
            wwn: "5005076300C0FFE0".parse().unwrap(),
            kind: DriveKind::Lto,
        };
        SoftDrive::init(&directory.path().join("drive"), &names).unwrap();
        let tape = directory.path().join("tape");
        new_tape(&tape, &"VOL001".parse().unwrap(), 1 << 40).unwrap();
        let mut process = Command::new(EKM)
            .args(["softdrive", "tape", "serve", "socket", "--tape", "tape"])
            .current_dir(directory.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let out = process.stdout.take().unwrap();
        BufReader::new(out).read_line(&mut line).unwrap();
        assert_eq!(line, "socket\n");
        Self { directory, process }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn channel(&self) -> Channel {
        let mut drive = Drive::new(Channel::open(&self.at("socket")).unwrap());
        // Takes the unit attentions of power on and of the cartridge.
        drive.position().unwrap();
        drive.into_inner()
    }

    fn contents(&self) -> TapeContents {
        TapeContents::read(&self.at("tape")).unwrap()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Where there is no kernel for it, a drive is reached by a socket.
#[test]
fn drive_that_is_served_on_a_socket_writes_its_tape() {
    let mut served = Served::new();
    let mut drive = Drive::new(served.channel());
    assert_eq!(drive.unit_serial().unwrap().0, "000007800000");
    assert!(drive.position().unwrap().at_beginning);
    let mut channel = drive.into_inner();
    let write = [0x0a, 0, 0, 0, 5, 0];
    let written = channel
        .execute(&write, Data::Out(b"block"), Duration::from_secs(9))
        .unwrap();
    assert_eq!((written.status, written.transferred), (0, 5));
    assert_eq!(served.contents().clear, 1);

    kill_process(Pid::from_child(&served.process), Signal::TERM).unwrap();
    assert!(served.process.wait().unwrap().success());
    assert!(!served.at("socket").exists());
}

#[test]
fn killed_drive_leaves_every_block_that_it_answered_for() {
    let mut served = Served::new();
    let mut channel = served.channel();
    let process = Pid::from_child(&served.process);
    let writing = std::thread::spawn(move || {
        let block = vec![0x5a; 100_000];
        let mut answered = 0_u64;
        while let Ok(completion) = channel.execute(
            &[0x0a, 0, 0x01, 0x86, 0xa0, 0],
            Data::Out(&block),
            Duration::from_secs(9),
        ) {
            answered += u64::from(completion.status == 0);
        }
        answered
    });
    wait_for("blocks", Duration::from_secs(30), || {
        served.contents().blocks > 20
    });
    kill_process(process, Signal::KILL).unwrap();
    let answered = writing.join().unwrap();
    served.process.wait().unwrap();
    let contents = served.contents();
    assert!(
        (answered..=answered + 1).contains(&contents.blocks),
        "{answered} answers: {contents:?}"
    );
    assert!(!contents.damaged);

    // The tape goes on behind them, in another drive.
    let soft = SoftDrive::open(&served.at("drive")).unwrap();
    let mut drive = TapeDrive::new(soft);
    drive.load(&served.at("tape")).unwrap();
    let mut drive = Drive::new(TapePort::new(drive));
    drive.position().unwrap();
    let mut port = drive.into_inner();
    let limit = Duration::from_secs(9);
    port.execute(&[0x11, 3, 0, 0, 0, 0], Data::None, limit)
        .unwrap();
    port.execute(&[0x0a, 0, 0, 0, 1, 0], Data::Out(b"x"), limit)
        .unwrap();
    assert_eq!(served.contents().blocks, contents.blocks + 1);
}
