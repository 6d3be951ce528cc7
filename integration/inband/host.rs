//! A host with its daemon, its drives behind sockets, and jobs that wait for the test.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use ekm::drive::DriveSerial;
use ekm::scsi::{Completion, Data, Transport};
use ekm::softdrive::{SoftDrive, TapeDrive, TapePort, new_tape};
use secrecy::ExposeSecret as _;
use serde_json::Value;

use crate::door::{House, PATIENCE, Serving};
use crate::support::wait_for;

const SECOND: Duration = Duration::from_secs(1);

pub(super) const POLICY: &str =
    "[[policy.peers]]\npeer = \"proxy:host1\"\ndrives = [\"*\"]\ncreate_keks = [\"*\"]";

/// A software drive behind its socket.
pub(super) struct Unit {
    pub(super) serial: DriveSerial,
    pub(super) port: TapePort,
    pub(super) socket: PathBuf,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Unit {
    pub(super) fn start(house: &House, n: u32, kind: &str) -> Self {
        let serial: DriveSerial = format!("{n:012}").parse().unwrap();
        let (directory, wwn) = (format!("drive{n}"), format!("50050763{n:08X}"));
        house.done(&[
            "softdrive",
            "init",
            &directory,
            "--serial",
            serial.as_str(),
            "--wwn",
            &wwn,
            "--kind",
            kind,
        ]);
        if kind == "lto-plain" {
            house.done(&[
                "drive",
                "add",
                serial.as_str(),
                "--wwn",
                &wwn,
                "--form",
                "t10-00h",
                "--custody",
                "host",
            ]);
        } else {
            let pem = format!("drive{n}.pem");
            let key = house.done(&["softdrive", "key", &directory]);
            std::fs::write(house.at(&pem), key).unwrap();
            house.done(&[
                "drive",
                "add",
                serial.as_str(),
                "--wwn",
                &wwn,
                "--key",
                &pem,
            ]);
        }
        let soft = SoftDrive::open(&house.at(&directory)).unwrap();
        let port = TapePort::new(TapeDrive::new(soft));
        let socket = house.at(&format!("drive{n}.sock"));
        let listener = ekm::scsi::channel::listen(&socket).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (mut port, stop) = (port.clone(), Arc::clone(&stop));
            move || ekm::scsi::channel::serve(&listener, &mut port, &stop).unwrap()
        });
        Self {
            serial,
            port,
            socket,
            stop,
            thread: Some(thread),
        }
    }

    pub(super) fn load(&self, house: &House, volser: &str) {
        let path = house.at(volser);
        if !path.exists() {
            new_tape(&path, &volser.parse().unwrap(), 16 << 20).unwrap();
        }
        self.port.drive().unload();
        self.port.drive().load(&path).unwrap();
    }

    /// A job's block; whether the drive took it.
    pub(super) fn writes(&self, block: &[u8]) -> bool {
        let mut port = self.port.clone();
        for _ in 0..4 {
            drop(port.execute(&[0; 6], Data::None, SECOND).unwrap());
        }
        let [_, _, high, low] = u32::try_from(block.len()).unwrap().to_be_bytes();
        let cdb = [0x0a, 0, 0, high, low, 0];
        let done = port.execute(&cdb, Data::Out(block), SECOND).unwrap();
        done.status == Completion::GOOD
    }

    pub(super) fn filemark(&self) {
        let mut port = self.port.clone();
        port.execute(&[0x10, 0, 0, 0, 1, 0], Data::None, SECOND)
            .unwrap();
    }

    pub(super) fn reads(&self) -> Option<Vec<u8>> {
        let mut block = vec![0; 1024];
        let cdb = [0x08, 0x02, 0, 4, 0, 0];
        let mut port = self.port.clone();
        let done = port.execute(&cdb, Data::In(&mut block), SECOND).unwrap();
        block.truncate(done.transferred);
        (done.status == Completion::GOOD).then_some(block)
    }

    pub(super) fn data_key(&self) -> Option<[u8; 32]> {
        let drive = self.port.drive();
        drive.target().data_key().map(|key| *key.expose_secret())
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// The host's daemon; killed when a test ends.
pub(super) struct Proxy {
    pub(super) child: Child,
    pub(super) log: PathBuf,
}

impl Proxy {
    pub(super) fn start(house: &House) -> Self {
        let log = house.at("proxy.log");
        let mut child = house
            .command(&["--config", "host.toml", "proxy", "run"])
            .stdout(Stdio::piped())
            .stderr(
                std::fs::File::options()
                    .create(true)
                    .append(true)
                    .open(&log)
                    .unwrap(),
            )
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let proxy = Self { child, log };
        assert!(line.starts_with("listening on"), "{line}\n{}", proxy.log());
        proxy
    }

    pub(super) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub(super) fn says(&self, text: &str, times: usize) {
        wait_for(&format!("{text:?} in the proxy's log"), PATIENCE, || {
            self.log().matches(text).count() >= times
        });
    }

    pub(super) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("what the proxy logged:\n{}", self.log());
        }
    }
}

/// A job whose command waits for the test.
pub(super) struct Job {
    pub(super) child: Child,
    pub(super) in_it: PathBuf,
    pub(super) out: PathBuf,
}

pub(super) fn host_file(house: &House, servers: &[&Serving], units: &[&Unit], more: &str) {
    let identity = house.identity("proxy", "host1");
    let servers: Vec<String> = servers
        .iter()
        .map(|server| format!("{:?}", server.address))
        .collect();
    let mut text = format!(
        r#"path = "in-band"
socket = "proxy.sock"

[tls]
ca = {:?}
certificate = {:?}
key = {:?}

[key_servers]
servers = [{}]
connect_seconds = 2
answer_seconds = 5
total_seconds = 8
probe_seconds = 1

[in_band]
history = {:?}

[[data_classes]]
name = "SECURE"
format = "EEFMT4"
"#,
        identity.ca,
        identity.certificate,
        identity.key,
        servers.join(", "),
        house.at("history.jsonl"),
    );
    for unit in units {
        text += &format!(
            "\n[[drives]]\nserial = \"{}\"\ndevice = \"unix:{}\"\n{more}\n",
            unit.serial,
            unit.socket.display()
        );
    }
    std::fs::write(house.at("host.toml"), text).unwrap();
}

pub(super) fn arguments<'a>(unit: &'a Unit, volser: &'a str, disp: &'a str) -> Vec<&'a str> {
    let mut arguments = vec![
        "--config",
        "host.toml",
        "--json",
        "tape",
        "run",
        "--drive",
        unit.serial.as_str(),
        "--volser",
        volser,
        "--disp",
        disp,
    ];
    if disp == "new" {
        arguments.extend(["--data-class", "SECURE"]);
    }
    arguments
}

/// Starts a job and waits until its command runs.
pub(super) fn job(house: &House, unit: &Unit, volser: &str, disp: &str) -> Job {
    let (in_it, out) = (house.at("in"), house.at("out"));
    let _ = std::fs::remove_file(&in_it);
    let _ = std::fs::remove_file(&out);
    let mut arguments = arguments(unit, volser, disp);
    let script = "echo \"$EKM_VOLSER $EKM_TAPE\" > in.new; mv in.new in; while [ ! -e out ]; do sleep 0.05; done";
    arguments.extend(["--", "sh", "-c", script]);
    let mut child = house
        .command(&arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let begin = std::time::Instant::now();
    while !in_it.exists() {
        if let Some(status) = child.try_wait().unwrap() {
            let output = child.wait_with_output().unwrap();
            panic!("{status}: {}", String::from_utf8_lossy(&output.stderr));
        }
        assert!(begin.elapsed() < PATIENCE, "the job's command does not run");
        std::thread::sleep(Duration::from_millis(20));
    }
    Job { child, in_it, out }
}

impl Job {
    pub(super) fn end(self) -> Output {
        std::fs::write(&self.out, "").unwrap();
        let output = self.child.wait_with_output().unwrap();
        let _ = std::fs::remove_file(&self.in_it);
        output
    }

    pub(super) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        std::fs::write(&self.out, "").unwrap();
    }
}

/// A job that does not get its tape, and what it says.
pub(super) fn refused(house: &House, unit: &Unit, volser: &str, disp: &str) -> String {
    let mut arguments = arguments(unit, volser, disp);
    arguments.extend(["--", "touch", "ran"]);
    let output = house.run(&arguments);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(!house.at("ran").exists(), "the command ran");
    assert!(!unit.writes(b"sneaked in"));
    String::from_utf8(output.stderr).unwrap()
}

/// The reports on standard error, opened and closed.
pub(super) fn reports(output: &Output) -> (Value, Value) {
    let text = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<Value> = text
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let of = |name: &str| {
        let found = lines.iter().find_map(|line| line.get(name));
        found.unwrap_or_else(|| panic!("no {name}: {text}")).clone()
    };
    (of("opened"), of("closed"))
}

/// Whether a process has these bytes anywhere in its memory.
pub(super) fn holds(pid: u32, needle: &[u8]) -> bool {
    use std::os::unix::fs::FileExt as _;
    let memory = std::fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let mut read = 0;
    for line in maps.lines() {
        let (range, rest) = line.split_once(' ').unwrap();
        if !rest.starts_with('r') || line.ends_with("[vvar]") || line.ends_with("[vsyscall]") {
            continue;
        }
        let (begin, end) = range.split_once('-').unwrap();
        let begin = u64::from_str_radix(begin, 16).unwrap();
        let end = u64::from_str_radix(end, 16).unwrap();
        let mut bytes = vec![0; usize::try_from(end - begin).unwrap()];
        if memory.read_exact_at(&mut bytes, begin).is_err() {
            continue;
        }
        read += bytes.len();
        if bytes.windows(needle.len()).any(|window| window == needle) {
            return true;
        }
    }
    assert!(read > 1 << 20, "the memory could not be read");
    false
}
