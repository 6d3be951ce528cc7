//! A power cut takes nothing that was promised: the server runs in a
//! user-mode Linux on a disk of its own, and the whole machine is killed
//! while it writes. `integration/power_cut/README.md` says what such a cut
//! loses.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ekm::audit::{Outcome, Record};
use ekm::store::{EedkState, VolumeKey};
use rustix::process::{Pid, Signal, kill_process_group};
use tempfile::TempDir;

use crate::support::{EKM, example, wait_for, write_private};

/// Cuts while keys are being made.
const ROUNDS: u32 = 5;

/// After so many answers the power goes, at the earliest and at the latest.
const ANSWERS: (u64, u64) = (20, 200);

/// Longest silence of the machine.
const SILENCE: Duration = Duration::from_secs(60);

const SERIAL: &str = "000007800001";

/// What a client was told.
#[derive(Debug)]
struct Promise {
    request: String,
    dki: String,
    what: What,
}

#[derive(Debug)]
enum What {
    /// A data key, with the digests of its EEDKs.
    Created(Vec<String>),
    Confirmed,
}

impl Promise {
    /// What a line of the writer promises.
    fn parse(line: &str) -> Option<Self> {
        let words: Vec<&str> = line.split(' ').collect();
        let (request, dki, what) = match words.as_slice() {
            ["ANSWER", request, dki, eedks @ ..] => {
                let eedks = eedks.iter().map(|eedk| (*eedk).to_owned());
                (request, dki, What::Created(eedks.collect()))
            }
            ["CONFIRMED", request, dki] => (request, dki, What::Confirmed),
            _ => return None,
        };
        Some(Self {
            request: (*request).to_owned(),
            dki: (*dki).to_owned(),
            what,
        })
    }
}

#[test]
fn every_answer_outlives_a_power_cut() {
    if !possible() {
        return;
    }
    let mut dice = Dice::from_time();
    let start = Instant::now();
    let machine = Machine::new();
    let mut promises = Vec::new();
    let mut last = 0;
    for round in 1..=ROUNDS {
        let mut boot = machine.boot(round, true);
        let kept = boot.kept();
        kept.holds(&promises);
        assert!(
            kept.unlocked == 0 || round > 1 && !round.is_multiple_of(2),
            "the PIN was held back, and no power went while a token was logged in to"
        );
        // Its first line was synced: the file is there, and the rest went with the power.
        assert!(
            round == 1 || (1..=1 + last / 2).contains(&kept.unsynced),
            "no power was cut: {} of {last} lines that were never synced are there",
            kept.unsynced
        );
        let wanted = dice.between(ANSWERS.0, ANSWERS.1);
        let before = promises.len();
        boot.cut_after(wanted, dice.between(0, 20), &mut promises);
        last = promises.len() - before;
        println!(
            "round {round}: {} unsynced lines before it; cut after {wanted} answers, {last} read; {:.1} s",
            kept.unsynced,
            start.elapsed().as_secs_f32()
        );
        if round.is_multiple_of(2) {
            // Once more, while it starts and reads what the cut left; what it writes is its own.
            let boot = machine.boot(50 + round, true);
            boot.cut_in_start(dice.between(0, 2500));
        }
    }
    let mut boot = machine.boot(ROUNDS + 1, false);
    let kept = boot.kept();
    kept.holds(&promises);
    assert_eq!(kept.unlocked, 0, "no power went in a start");
    boot.ended();
    let torn = kept.records.iter().map(|record| &record.event);
    println!(
        "{} answers kept, {} unfinished records cut off; {:.1} s",
        promises.len(),
        torn.filter(|event| event.action == "audit-recovered")
            .count(),
        start.elapsed().as_secs_f32()
    );
}

/// Whether this computer can run the machine; what is missing is an error in CI.
fn possible() -> bool {
    if cfg!(not(target_arch = "x86_64")) {
        eprintln!("WARNING: SKIPPED, no power was cut: there is no user-mode Linux but for x86-64");
        return false;
    }
    let path = std::env::var("PATH").unwrap_or_default();
    let folders: Vec<&str> = path.split(':').chain(["/sbin", "/usr/sbin"]).collect();
    let missing: Vec<&str> = ["linux.uml", "mkfs.ext4", "ip", "cc"]
        .into_iter()
        .filter(|tool| {
            !folders
                .iter()
                .any(|folder| Path::new(folder).join(tool).exists())
        })
        .collect();
    if missing.is_empty() {
        return true;
    }
    let what = format!("{missing:?} missing (Debian: user-mode-linux e2fsprogs iproute2 gcc)");
    assert!(std::env::var_os("CI").is_none(), "{what}");
    eprintln!("WARNING: SKIPPED, no power was cut: {what}");
    false
}

/// Numbers from a seed that is printed (splitmix64).
struct Dice(u64);

impl Dice {
    fn from_time() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let seed = now.as_secs() ^ u64::from(now.subsec_nanos()) << 32;
        println!("seed {seed}");
        Self(seed)
    }

    fn between(&mut self, low: u64, high: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        low + (mixed ^ (mixed >> 31)) % (high - low + 1)
    }
}

/// A machine with a site on its disk.
struct Machine {
    directory: TempDir,
}

impl Machine {
    /// Makes the site here and the disk from it.
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let site = directory.path().join("site");
        std::fs::create_dir(&site).unwrap();
        make_site(&site);
        let disk = directory.path().join("disk");
        let file = std::fs::File::create(&disk).unwrap();
        file.set_len(256 * 1024 * 1024).unwrap();
        let made = Command::new("mkfs.ext4")
            .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
            .args(["-q", "-F", "-d"])
            .args([&site, &disk])
            .status()
            .unwrap();
        assert!(made.success());
        Self { directory }
    }

    fn disk(&self) -> PathBuf {
        self.directory.path().join("disk")
    }

    /// Boots: what the disk holds is shown, then keys are made where `write` says so.
    fn boot(&self, round: u32, write: bool) -> Boot {
        let writer = example("writer");
        let mut script = String::new();
        // The first command waits for the token. Where the power went in the middle of a login, the
        // PIN is held back, and an operator says that it is right.
        writeln!(
            script,
            "#!/bin/bash
set -euo pipefail
export RUST_LOG=error
unlocked=0
if ! {EKM} kek list >/dev/null 2>/run/first; then
    grep 'the PIN is held back' /run/first
    {EKM} token unlock main
    {EKM} kek list >/dev/null
    unlocked=1
fi
echo \"UNLOCKED $unlocked\"
echo BEGIN volumes
{EKM} --json volume list
echo END
echo BEGIN records
{EKM} --json audit show
echo END
{EKM} audit verify
echo \"UNSYNCED $(cat unsynced-{} 2>/dev/null | grep -ac '^[A-Z]' || true)\"",
            round.saturating_sub(1)
        )
        .unwrap();
        if write {
            writeln!(script, "exec {} {EKM} {round} 4", writer.display()).unwrap();
        }
        let path = self.directory.path().join("run");
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        let uml = Path::new(env!("CARGO_MANIFEST_DIR")).join("integration/power_cut/uml");
        Boot::new(
            Command::new(uml)
                .arg(self.directory.path())
                .arg(self.disk())
                .arg(path),
        )
    }
}

/// A token with two KEKs and a server with one drive, as an operator makes them.
fn make_site(site: &Path) {
    let ekm = |line: &str| {
        let output = Command::new(EKM)
            .args(line.split_whitespace())
            .current_dir(site)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "ekm {line}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        output.stdout
    };
    let config = "node = \"ekm1\"
state = \"state\"
audit = \"audit\"

[server]
listen = \"127.0.0.1:0\"
certificate = \"tls/issued/server-ekm1.crt\"
key = \"tls/issued/server-ekm1.key\"
client_ca = \"tls/ca.crt\"

[[tokens]]
name = \"main\"
profile = \"embedded\"
uri = \"pkcs11:token=ekm1\"
pin = { file = \"pin\" }
directory = \"token\"
";
    std::fs::write(site.join("ekm.toml"), config).unwrap();
    write_private(&site.join("pin"), "4242-4242");
    write_private(&site.join("so-pin"), "12345678");
    ekm("tls init");
    ekm("tls issue ekm1 --role server");
    ekm(&format!("tls issue {SERIAL} --role drive"));
    ekm("slot init --profile embedded --label ekm1 --so-pin-file so-pin --pin-file pin");
    ekm("kek generate TAPE2026A --bits 2048");
    ekm("kek generate TAPE2026B --bits 2048");
    let wwn = "5005076300C0FFE1";
    ekm(&format!(
        "softdrive init drive --serial {SERIAL} --wwn {wwn}"
    ));
    std::fs::write(site.join("drive.pem"), ekm("softdrive key drive")).unwrap();
    ekm(&format!(
        "drive add {SERIAL} --wwn {wwn} --key drive.pem --form t10-02h --kek1 TAPE2026A:label --kek2 TAPE2026B:hash"
    ));
}

/// The machine while it is on.
struct Boot {
    child: Child,
    group: Pid,
    lines: Receiver<String>,
    console: Vec<String>,
}

impl Boot {
    fn new(command: &mut Command) -> Self {
        let mut child = command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            let mut line = Vec::new();
            // What has no line end was cut off in the middle: nobody was told.
            while out.read_until(b'\n', &mut line).is_ok() && line.pop() == Some(b'\n') {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                if sender.send(text).is_err() {
                    return;
                }
                line.clear();
            }
        });
        Self {
            group: Pid::from_child(&child),
            child,
            lines,
            console: Vec::new(),
        }
    }

    /// The next line; none where the machine is off.
    fn line(&mut self) -> Option<String> {
        match self.lines.recv_timeout(SILENCE) {
            Ok(line) => {
                self.console.push(line.clone());
                Some(line)
            }
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("silence: {}", self.tail()),
        }
    }

    /// The next line that begins so, without that.
    fn until(&mut self, start: &str) -> String {
        while let Some(line) = self.line() {
            if let Some(rest) = line.strip_prefix(start) {
                return rest.to_owned();
            }
        }
        panic!("no {start:?}: {}", self.tail());
    }

    fn section(&mut self, name: &str) -> String {
        self.until(&format!("BEGIN {name}"));
        let mut text = String::new();
        loop {
            match self.line() {
                Some(line) if line == "END" => return text,
                Some(line) => {
                    text.push_str(&line);
                    text.push('\n');
                }
                None => panic!("{name} has no end: {}", self.tail()),
            }
        }
    }

    /// What the disk holds, by the program itself.
    fn kept(&mut self) -> Kept {
        self.until("guest: up");
        let unlocked = self.until("UNLOCKED ").parse().unwrap();
        let volumes: Vec<VolumeKey> = serde_json::from_str(&self.section("volumes")).unwrap();
        let records: Vec<Record> = serde_json::from_str(&self.section("records")).unwrap();
        let verdict = self.line().unwrap_or_default();
        assert!(
            verdict.contains(": good; "),
            "the chain of records is broken: {}",
            self.tail()
        );
        Kept {
            unlocked,
            volumes,
            records,
            unsynced: self.until("UNSYNCED ").parse().unwrap(),
        }
    }

    /// Reads so many answers, waits a little and cuts the power.
    fn cut_after(mut self, wanted: u64, milliseconds: u64, promises: &mut Vec<Promise>) {
        let mut read = 0;
        while read < wanted {
            let Some(line) = self.line() else {
                panic!("it ended after {read} answers: {}", self.tail());
            };
            assert!(!line.starts_with("guest: exit"), "{}", self.tail());
            if let Some(promise) = Promise::parse(&line) {
                promises.push(promise);
                read += 1;
            }
        }
        std::thread::sleep(Duration::from_millis(milliseconds));
        self.cut();
        while let Some(line) = self.line() {
            promises.extend(Promise::parse(&line));
        }
    }

    fn cut_in_start(mut self, milliseconds: u64) {
        self.until("guest: up");
        std::thread::sleep(Duration::from_millis(milliseconds));
        self.cut();
    }

    /// The script and the machine end well.
    fn ended(&mut self) {
        assert_eq!(self.until("guest: exit "), "0", "{}", self.tail());
        self.child.wait().unwrap();
    }

    /// Kills all of it, and waits until nothing can write any more.
    fn cut(&mut self) {
        let _ = kill_process_group(self.group, Signal::KILL);
        self.child.wait().unwrap();
        let group = self.group.as_raw_nonzero().to_string();
        wait_for("the end of the machine", SILENCE, || !alive(&group));
    }

    fn tail(&self) -> String {
        let from = self.console.len().saturating_sub(40);
        self.console[from..].join("\n")
    }
}

impl Drop for Boot {
    fn drop(&mut self) {
        let _ = kill_process_group(self.group, Signal::KILL);
        drop(self.child.wait());
    }
}

/// Whether a process of the group is there that is no zombie.
fn alive(group: &str) -> bool {
    let processes = std::fs::read_dir("/proc").unwrap();
    processes.flatten().any(|process| {
        let stat = std::fs::read_to_string(process.path().join("stat")).unwrap_or_default();
        // After the name: state, parent, group.
        let mut fields = stat.rsplit(") ").next().unwrap_or_default().split(' ');
        let state = fields.next();
        fields.nth(1) == Some(group) && state != Some("Z")
    })
}

/// What the disk held after a boot.
struct Kept {
    /// Whether an operator had to say that the PIN is right, as 0 or 1.
    unlocked: u8,
    volumes: Vec<VolumeKey>,
    records: Vec<Record>,
    /// Lines of the last round's file that was synced after its first line only.
    unsynced: usize,
}

impl Kept {
    /// Every promise has its records and its rows.
    fn holds(&self, promises: &[Promise]) {
        for Promise { request, dki, what } in promises {
            let volume = self.volume(dki);
            let stored = volume.eedks.iter().map(|stored| stored.eedk.digest());
            let stored: Vec<String> = stored.map(hex::encode).collect();
            match what {
                What::Created(eedks) => {
                    assert_eq!(eedks.len(), 2, "create {request}");
                    assert_eq!(stored, *eedks, "data key {dki}");
                    self.recorded(request, "create", dki, eedks);
                }
                What::Confirmed => {
                    assert_eq!(volume.state, EedkState::Confirmed, "data key {dki}");
                    self.recorded(request, "confirm", dki, &stored);
                }
            }
        }
    }

    fn volume(&self, dki: &str) -> &VolumeKey {
        self.volumes
            .iter()
            .find(|volume| volume.dki.to_string() == dki)
            .unwrap_or_else(|| panic!("data key {dki} was given out and is not in the state"))
    }

    /// A create has its intent before its success; a confirm has a success.
    fn recorded(&self, request: &str, action: &str, dki: &str, eedks: &[String]) {
        let of = |outcome: Outcome| {
            self.records.iter().position(|record| {
                let event = &record.event;
                event.request.as_deref() == Some(request)
                    && event.action == action
                    && event.outcome == outcome
            })
        };
        let success = of(Outcome::Success)
            .unwrap_or_else(|| panic!("{action} {request} was answered and has no record"));
        if action == "create" {
            let intent = of(Outcome::Intent);
            assert!(
                intent.is_some_and(|intent| intent < success),
                "create {request} has no intent before its success"
            );
        }
        let event = &self.records[success].event;
        assert_eq!(event.dki.as_deref(), Some(dki));
        let marks: Vec<&String> = event.eedks.iter().map(|mark| &mark.sha256).collect();
        assert_eq!(
            marks,
            eedks.iter().collect::<Vec<_>>(),
            "{action} {request}"
        );
    }
}
