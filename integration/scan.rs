//! `ekm drive status` and `ekm drive scan`: against the software drive over a SCSI channel, and
//! against a drive that a kernel has.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, spawn};
use std::time::Duration;

use ekm::scsi::channel::{listen, serve};
use ekm::softdrive::{DriveKind, Init, SoftDrive, TapeDrive, TapePort, new_tape};
use serde_json::Value;
use tempfile::TempDir;

use crate::door::House;
use crate::support::EKM;
use crate::uml::{Guest, possible};

const LIMIT: Duration = Duration::from_secs(180);

/// A software drive with a tape in it, behind a socket.
struct Served {
    directory: TempDir,
    port: TapePort,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Served {
    fn new(kind: DriveKind, change: impl FnOnce(TapeDrive) -> TapeDrive) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let names = Init {
            serial: "000007800001".parse().unwrap(),
            wwn: "5005076300C0FFE1".parse().unwrap(),
            kind,
        };
        let soft = SoftDrive::init(&directory.path().join("drive"), &names).unwrap();
        let mut drive = change(TapeDrive::new(soft));
        let tape = directory.path().join("VOL001");
        new_tape(&tape, &"VOL001".parse().unwrap(), 1 << 20).unwrap();
        drive.load(&tape).unwrap();
        let port = TapePort::new(drive);
        let listener = listen(&directory.path().join("drive.scsi")).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (mut unit, seen) = (port.clone(), Arc::clone(&stop));
        let thread = spawn(move || serve(&listener, &mut unit, &seen).unwrap());
        Self {
            directory,
            port,
            stop,
            thread: Some(thread),
        }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn status(&self, arguments: &[&str]) -> Output {
        Command::new(EKM)
            .args(["drive", "status"])
            .arg(self.at("drive.scsi"))
            .args(arguments)
            .current_dir(self.directory.path())
            .output()
            .unwrap()
    }

    fn shown(&self, arguments: &[&str]) -> String {
        good(&self.status(arguments))
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().unwrap().join();
        if !std::thread::panicking() {
            ended.unwrap();
        }
    }
}

fn good(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn bad(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(!text.contains("panicked"), "{text}");
    text
}

#[test]
fn status_of_a_drive_over_the_channel_in_words() {
    let served = Served::new(DriveKind::Enterprise, |drive| drive);
    let fingerprint = served
        .port
        .drive()
        .target()
        .drive()
        .fingerprint()
        .to_string();
    let text = served.shown(&[]);
    println!("{text}");
    for words in [
        "000007800001",
        "5005076300C0FFE1",
        "loaded",
        "AES-256-GCM",
        "00h in clear, 02h wrapped for the drive",
        &format!("sha256:{fingerprint}"),
        "2 of at most 896 bytes",
        "writes in clear",
        "1014 free",
        "is not moved",
        "ekm can key this drive.",
        "never in clear on this host",
        "power on",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    // What it has told once it does not tell again.
    assert!(!served.shown(&[]).contains("power on"));
    assert!(served.port.drive().target().data_key().is_none());
}

#[test]
fn status_fits_a_terminal() {
    let served = Served::new(DriveKind::Lto, |drive| drive);
    for line in served.shown(&[]).lines() {
        // The fingerprint alone has 71 characters.
        let width = line.chars().count();
        assert!(width <= 80 || line.contains("sha256:"), "{width}: {line}");
    }
}

#[test]
fn status_as_json_and_the_key_as_pem() {
    let served = Served::new(DriveKind::Lto, |drive| drive);
    let text = served.shown(&["--json", "--export-key", "drive.pem", "--take-alerts"]);
    let status: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(status["drive"], "000007800001");
    assert_eq!(status["wwn"], "5005076300C0FFE1");
    assert_eq!(status["verdict"]["ability"], "wrapped");
    assert_eq!(status["in_use"], Value::Null);
    assert_eq!(status["enrolled"], Value::Null);
    let state = &status["state"];
    assert_eq!(state["encryption"]["key_formats"][1], "02h");
    assert_eq!(state["encryption"]["max_akad_len"], 12);
    assert_eq!(state["cartridge"]["memory_free"], 1014);
    assert_eq!(state["setting"]["key_instance"], 0);
    assert_eq!(state["alerts"], serde_json::json!([]));
    assert_eq!(status["faults"], serde_json::json!([]));

    let pem = std::fs::read_to_string(served.at("drive.pem")).unwrap();
    let (_, spki) = der::pem::decode_vec(pem.as_bytes()).unwrap();
    assert_eq!(spki, served.port.drive().target().drive().public_key_spki());
    let plain = Served::new(DriveKind::LtoPlain, |drive| drive);
    let said = bad(&plain.status(&["--export-key", "drive.pem"]));
    assert!(said.contains("no wrapping key"), "{said}");
    assert!(!plain.at("drive.pem").exists());
}

#[test]
fn status_of_drives_that_ekm_cannot_simply_key() {
    let plain = Served::new(DriveKind::LtoPlain, |drive| drive).shown(&[]);
    assert!(plain.contains("with your permission"), "{plain}");
    let managed = Served::new(DriveKind::Lto, TapeDrive::library_managed).shown(&[]);
    assert!(managed.contains("The way out"), "{managed}");
    assert!(managed.contains("a host may not"), "{managed}");
}

#[test]
fn status_of_misbehaving_drives_ends() {
    for quirk in [
        "attention-flood",
        "sense-flood",
        "changing-key",
        "short-pages",
        "busy",
    ] {
        let served = Served::new(DriveKind::Lto, |drive| drive);
        served.port.drive().misbehave(quirk.parse().unwrap());
        let output = served.status(&[]);
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(
            matches!(output.status.code(), Some(0 | 1)),
            "{quirk}: {text}"
        );
        assert!(!text.contains("panicked"), "{quirk}: {text}");
        println!("{quirk}:\n{text}\n");
    }
}

#[test]
fn status_of_what_is_no_drive_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let run = |path: &Path| {
        let output = Command::new(EKM)
            .args(["drive", "status"])
            .arg(path)
            .output();
        bad(&output.unwrap())
    };
    let file = directory.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert!(run(&file).contains("no SCSI generic device"));
    assert!(run(Path::new("/dev/null")).contains("ekm drive scan"));
    assert!(run(&directory.path().join("sg9")).contains("no drive at"));
    let socket = directory.path().join("drive.scsi");
    drop(listen(&socket).unwrap());
    assert!(run(&socket).contains("no drive answers"));
}

#[test]
fn status_and_scan_of_a_drive_that_a_kernel_has() {
    if !possible() {
        return;
    }
    let guest = Guest::new();
    guest.drive(0, DriveKind::Lto);
    guest.tape("VOL001", 16);
    let notes = guest.run(
        "
drive 0
tell 0 load VOL001
mt-st -f /dev/nst0 rewind
dd if=/dev/urandom of=/dev/nst0 bs=64k count=3 2>/dev/null
note scan \"$EKM\" drive scan
note scan-json \"$EKM\" --json drive scan
note status \"$EKM\" drive status /dev/sg0
note by-tape \"$EKM\" --json drive status /dev/nst0
note place mt-st -f /dev/nst0 tell
# Somebody writes, and a new cartridge is told of meanwhile.
exec 9>/dev/nst0
note busy \"$EKM\" drive status /dev/sg0
note busy-json \"$EKM\" --json drive status /dev/sg0
note forced \"$EKM\" drive status /dev/sg0 --force
exec 9>&-
# A cartridge that was changed: the tape driver hears of it all the same.
tell 0 unload
tell 0 load VOL001
note changed \"$EKM\" drive status /dev/sg0
note heard mt-st -f /dev/nst0 status
tell 0 unload
note empty \"$EKM\" drive status /dev/sg0
note gone \"$EKM\" drive status /dev/sg7
note wrong \"$EKM\" drive status /dev/null
",
        LIMIT,
    );
    let scan = notes.good("scan");
    println!("{scan}");
    assert!(
        scan.contains("/dev/sg0") && scan.contains("/dev/nst0"),
        "{scan}"
    );
    assert!(scan.contains("000007800000"), "{scan}");
    let scan: Value = serde_json::from_str(&notes.good("scan-json")).unwrap();
    assert_eq!(scan[0]["wwn"], "5005076300C0FFE0");
    assert_eq!(scan[0]["enrolled"], Value::Null);

    let status = notes.good("status");
    println!("{status}");
    assert!(status.contains("ekm can key this drive."), "{status}");
    assert!(status.contains("loaded"), "{status}");
    let status: Value = serde_json::from_str(&notes.good("by-tape")).unwrap();
    assert_eq!(status["device"], "/dev/sg0");
    // Three blocks and a filemark; nothing has moved.
    assert_eq!(status["state"]["cartridge"]["block"], 4);
    assert_eq!(notes.good("place").trim(), "At block 4.");

    let busy = notes.good("busy");
    println!("{busy}");
    assert!(
        busy.contains("/dev/nst0 is open (init, process 1)") || busy.contains("is open ("),
        "{busy}"
    );
    assert!(
        busy.contains("000007800000") && busy.contains("Nothing more was asked"),
        "{busy}"
    );
    let busy: Value = serde_json::from_str(&notes.good("busy-json")).unwrap();
    assert_eq!(busy["state"], Value::Null);
    let forced = notes.good("forced");
    assert!(
        forced.contains("--force") && forced.contains("AES-256-GCM"),
        "{forced}"
    );

    let changed = notes.good("changed");
    println!("{changed}");
    assert!(!changed.contains("medium may have changed"), "{changed}");
    let heard = notes.good("heard");
    assert!(heard.contains("File number=0, block number=0"), "{heard}");
    assert!(notes.good("empty").contains("none"));
    assert!(notes.bad("gone").contains("no drive at /dev/sg7"));
    assert!(notes.bad("wrong").contains("no SCSI generic device"));
    assert_eq!(guest.contents("VOL001").blocks, 3);
}

#[tokio::test]
async fn status_says_whether_the_drive_table_has_the_drive_and_its_key() {
    let house = House::new("", "");
    let served = Served::new(DriveKind::Lto, |drive| drive);
    let socket = served.at("drive.scsi").display().to_string();
    let enrolled = || -> Value {
        let arguments = [
            "--json",
            "drive",
            "status",
            &socket,
            "--export-key",
            "drive.pem",
        ];
        let status: Value = serde_json::from_str(&house.done(&arguments)).unwrap();
        status["enrolled"].clone()
    };
    assert_eq!(enrolled(), Value::Null);

    let serving = house.serve().await;
    assert_eq!(enrolled()["state"], "no");
    let add = |key| {
        let (serial, wwn) = ("000007800001", "5005076300C0FFE1");
        house.done(&["drive", "add", serial, "--wwn", wwn, "--key", key])
    };
    add("drive.pem");
    let row = enrolled();
    assert_eq!(
        (&row["state"], &row["same_key"]),
        (&"active".into(), &true.into())
    );

    house.done(&["drive", "del", "000007800001"]);
    let other = house.unknown_drive(5);
    let pem = house.done(&["softdrive", "key", &other.directory]);
    std::fs::write(house.at("other.pem"), pem).unwrap();
    add("other.pem");
    assert_eq!(enrolled()["same_key"], false);
    let words = house.done(&["drive", "status", &socket]);
    assert!(words.contains("NOT with this wrapping key"), "{words}");
    serving.stop();
}
