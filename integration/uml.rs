//! A machine in user-mode Linux with tape drives that its kernel takes for real: a script runs in
//! it, with Debian's tape programs and with ours, and the test reads what they said.
//!
//! What the guest writes goes to one directory of the host, [`Guest::share`]; of all else it sees
//! the host's files and can write none. Each guest is a process group of its own that is killed when
//! its time is up.

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use ekm::softdrive::{DriveKind, Init, SoftDrive, TapeContents, new_tape};
use rustix::process::{Pid, Signal, kill_process_group};
use tempfile::TempDir;

use crate::support::{EKM, example};

/// What the machine and its scripts need: a program, and the Debian package that has it.
const NEEDED: [(&str, &str); 9] = [
    ("linux.uml", "user-mode-linux"),
    ("insmod", "kmod"),
    ("ip", "iproute2"),
    ("cc", "gcc"),
    ("mt-st", "mt-st"),
    ("stenc", "stenc"),
    ("sg_raw", "sg3-utils"),
    ("sg_read_attr", "sg3-utils"),
    ("tar", "tar"),
];

/// Whether this computer can run the machine; what is missing is an error in CI.
pub(crate) fn possible() -> bool {
    if cfg!(not(target_arch = "x86_64")) {
        eprintln!("WARNING: SKIPPED, no tape was run: there is no user-mode Linux but for x86-64");
        return false;
    }
    let path = std::env::var("PATH").unwrap_or_default();
    let folders: Vec<&str> = path.split(':').chain(["/sbin", "/usr/sbin"]).collect();
    let missing: Vec<&str> = NEEDED
        .into_iter()
        .filter(|(tool, _)| {
            !folders
                .iter()
                .any(|folder| Path::new(folder).join(tool).exists())
        })
        .map(|(_, package)| package)
        .collect();
    if missing.is_empty() {
        return true;
    }
    let what = format!("Debian packages missing: {}", missing.join(" "));
    assert!(std::env::var_os("CI").is_none(), "{what}");
    eprintln!("WARNING: SKIPPED, no tape was run: {what}");
    false
}

/// A machine that can be booted, and what it shares with its host.
pub(crate) struct Guest {
    directory: TempDir,
}

impl Guest {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        for name in ["share", "share/notes", "machine"] {
            std::fs::create_dir(directory.path().join(name)).unwrap();
        }
        let made = Command::new("cc")
            .args(["-O2", "-shared", "-fPIC", "-o"])
            .arg(directory.path().join("machine/xstate.so"))
            .arg(source("power_cut/xstate.c"))
            .status()
            .unwrap();
        assert!(made.success());
        Self { directory }
    }

    /// What the guest has as its working directory, /mnt.
    pub(crate) fn share(&self) -> PathBuf {
        self.directory.path().join("share")
    }

    /// A drive of the guest, for `drive N` in its script.
    pub(crate) fn drive(&self, n: u8, kind: DriveKind) -> SoftDrive {
        let names = Init {
            serial: format!("00000780000{n}").parse().unwrap(),
            wwn: format!("5005076300C0FFE{n}").parse().unwrap(),
            kind,
        };
        SoftDrive::init(&self.share().join(format!("drive{n}")), &names).unwrap()
    }

    /// A tape of the guest, named by its volume serial.
    pub(crate) fn tape(&self, volser: &str, mebibytes: u64) {
        let volume = volser.parse().unwrap();
        new_tape(&self.share().join(volser), &volume, mebibytes << 20).unwrap();
    }

    /// What is on a tape.
    pub(crate) fn contents(&self, volser: &str) -> TapeContents {
        TapeContents::read(&self.share().join(volser)).unwrap()
    }

    /// Boots, runs the script and powers off. The script has `tapes.sh` at hand, `$EKM` and
    /// `$TCMU`.
    pub(crate) fn run(&self, script: &str, limit: Duration) -> Notes {
        let console = self.boot(script, None, limit);
        assert!(
            console.contains("guest: exit 0"),
            "the script of the guest failed:\n{console}"
        );
        Notes {
            directory: self.share().join("notes"),
            console,
        }
    }

    /// Boots, runs the script and cuts the power when it prints a line that begins so.
    pub(crate) fn cut(&self, script: &str, sign: &str, limit: Duration) {
        let console = self.boot(script, Some(sign), limit);
        assert!(
            !console.contains("guest: exit"),
            "the guest ended by itself:\n{console}"
        );
    }

    /// Runs the machine until it is off or has given the sign; its console.
    fn boot(&self, script: &str, sign: Option<&str>, limit: Duration) -> String {
        let machine = self.directory.path().join("machine");
        let path = machine.join("script");
        let tcmu = example("tcmu");
        let text = format!(
            "EKM={EKM}\nTCMU={}\nexport RUST_BACKTRACE=1\n{script}",
            tcmu.display()
        );
        std::fs::write(&path, text).unwrap();
        let mut child = Command::new("linux.uml")
            .env_remove("TMPDIR")
            .env("HOME", &machine)
            .env("LD_PRELOAD", machine.join("xstate.so"))
            .arg("mem=512M")
            .arg(format!("uml_dir={}/", machine.display()))
            .args([
                "rootfstype=hostfs",
                "ro",
                "con=null",
                "con0=null,fd:1",
                "quiet",
            ])
            .arg(format!("init={}", source("uml/guest.sh").display()))
            .arg(format!("GUEST_SHARE={}", self.share().display()))
            .arg(format!("GUEST_RUN={}", path.display()))
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let group = Pid::from_child(&child);
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            let mut line = Vec::new();
            while out.read_until(b'\n', &mut line).is_ok_and(|got| got > 0) {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                line.clear();
                if sender.send(text).is_err() {
                    return;
                }
            }
        });
        let end = Instant::now() + limit;
        let mut console = Vec::new();
        let in_time = loop {
            match lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    let cut = sign.is_some_and(|sign| line.starts_with(sign));
                    console.push(line);
                    if cut {
                        break true;
                    }
                }
                Err(RecvTimeoutError::Disconnected) => break true,
                Err(RecvTimeoutError::Timeout) => break false,
            }
        };
        let _ = kill_process_group(group, Signal::KILL);
        child.wait().unwrap();
        let console = console.join("\n");
        assert!(in_time, "the guest took longer than {limit:?}:\n{console}");
        console
    }
}

/// What the commands of a guest said, by the names of their notes.
pub(crate) struct Notes {
    directory: PathBuf,
    pub(crate) console: String,
}

impl Notes {
    fn read(&self, name: &str, end: &str) -> String {
        let path = self.directory.join(format!("{name}.{end}"));
        match std::fs::read(&path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) => panic!("no note {name}: {error}\n{}", self.console),
        }
    }

    /// What a command that succeeded said on standard output.
    pub(crate) fn good(&self, name: &str) -> String {
        let (code, error) = (self.read(name, "code"), self.read(name, "err"));
        let out = self.read(name, "out");
        assert_eq!(code.trim(), "0", "{name}: {out}{error}\n{}", self.console);
        out
    }

    /// What a command that failed said, on both outputs.
    pub(crate) fn bad(&self, name: &str) -> String {
        let said = self.read(name, "out") + &self.read(name, "err");
        assert_ne!(self.read(name, "code").trim(), "0", "{name}: {said}");
        said
    }
}

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("integration")
        .join(name)
}
