//! PIN safety: a wrong PIN reaches the token once, whatever is restarted or
//! killed when; each place that a PIN can come from; and where no PIN may be.

mod away;
mod memory;

use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use cryptoki_sys as ck;
use ekm::bridge::pin::PinSource;
use ekm::bridge::supervisor::{Program, TokenState};
use ekm::config::TokenConfig;
use ekm::policy::PolicyConfig;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::Value;

use crate::faulty::{Fault, Faulty};
use crate::support::{Bench, EKM, Hsm, Kind, PIN, lives, wait_for, write_private};

/// A PIN that the token refuses, and that is in nothing else.
const WRONG: &str = "no-such-pin-7391";

/// Long enough for a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A site over a token that counts what reaches it.
struct Place {
    hsm: Hsm,
    faulty: Faulty,
    token: TokenConfig,
}

impl Place {
    /// A site over a SoftHSM token in the bridge.
    async fn new(label: &str) -> Self {
        let hsm = Hsm::new(Kind::SofthsmInProcess, label).await;
        let token = hsm.config("main");
        Self::over(hsm, token)
    }

    /// A site over that token.
    fn over(hsm: Hsm, token: TokenConfig) -> Self {
        let faulty = Faulty::before(&hsm);
        let token = faulty.through(token);
        let place = Self { hsm, faulty, token };
        place.done(&["tls", "init"]);
        place.done(&["tls", "issue", "ekm1", "--role", "server"]);
        place.configure();
        place
    }

    /// Has the token driven by that many bridge processes.
    fn processes(&mut self, processes: usize) {
        let shipped = include_str!("../hsm-profiles/softhsm2.toml");
        let text = shipped.replace("processes = 1", &format!("processes = {processes}"));
        assert_ne!(text, shipped);
        let path = self.at("many.toml");
        std::fs::write(&path, text).unwrap();
        self.token.profile = path.display().to_string();
        self.configure();
    }

    fn source(&mut self, source: PinSource) {
        self.token.pin = source;
        self.configure();
    }

    fn configure(&self) {
        self.configure_as("ekm.toml", "audit");
    }

    fn configure_as(&self, file: &str, audit: &str) {
        let doors = format!(
            r#"node = "test"
state = "state"
audit = "{audit}"

[server]
listen = "127.0.0.1:0"
certificate = "tls/issued/server-ekm1.crt"
key = "tls/issued/server-ekm1.key"
client_ca = "tls/ca.crt"
"#
        );
        let tokens = std::collections::BTreeMap::from([("tokens", [&self.token])]);
        let text = [doors, toml::to_string(&tokens).unwrap()].join("\n");
        std::fs::write(self.at(file), text).unwrap();
    }

    fn at(&self, name: &str) -> PathBuf {
        self.hsm.directory.path().join(name)
    }

    fn pin_file(&self) -> PathBuf {
        self.at("pin")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(EKM);
        command
            .args(arguments)
            .current_dir(self.at(""))
            .env_remove("EKM_CONFIG")
            .env_remove("RUST_LOG")
            .stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn done(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let text = said(&output);
        assert!(output.status.success(), "ekm {arguments:?}: {text}");
        text
    }

    /// What a command says that must fail.
    fn refused(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let text = said(&output);
        assert_eq!(output.status.code(), Some(1), "ekm {arguments:?}: {text}");
        text
    }

    /// The token as `ekm token status` shows it: in the server, or with bridges of its own.
    fn status(&self) -> Value {
        let output = self.run(&["token", "status", "--json"]);
        assert!(output.status.success(), "{}", said(&output));
        let all: Value = serde_json::from_slice(&output.stdout).unwrap();
        all[0].clone()
    }

    fn state(&self) -> String {
        self.status()["state"].as_str().unwrap().to_owned()
    }

    fn why(&self) -> String {
        self.status()["why"].as_str().unwrap_or_default().to_owned()
    }

    fn wait_for(&self, state: &str) {
        wait_for(&format!("the state {state}"), PATIENCE, || {
            self.state() == state
        });
    }

    fn serve(&self) -> Server {
        self.serve_with(self.command(&["serve"]))
    }

    fn serve_with(&self, mut command: Command) -> Server {
        let log = self.at("serve.log");
        let child = command
            .stdout(Stdio::null())
            .stderr(
                std::fs::File::options()
                    .create(true)
                    .append(true)
                    .open(&log)
                    .unwrap(),
            )
            .spawn()
            .unwrap();
        let server = Server { child, log };
        let socket = self.at("state/ekm.sock");
        wait_for("the operators' socket", PATIENCE, || {
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
        });
        server
    }

    /// `C_Login` calls that reached the token.
    fn logins(&self) -> u64 {
        self.faulty.called("C_Login")
    }

    /// How often a bridge has begun with the module. Unlike places on the
    /// board, which are given away again after a minute, it only grows.
    fn loaded(&self) -> u64 {
        self.faulty.called("C_Initialize")
    }

    /// The processes that drive the token now.
    fn bridge_pids(&self) -> Vec<u32> {
        let status = self.status();
        let pids = status["bridges"].as_array().unwrap();
        pids.iter()
            .map(|pid| u32::try_from(pid.as_u64().unwrap()).unwrap())
            .collect()
    }

    /// What the ledgers say; there is nothing of a PIN in it.
    fn ledger(&self) -> String {
        let text: String = std::fs::read_dir(self.at("state/pins"))
            .unwrap()
            .map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap())
            .collect();
        no_pin("the ledger", text.as_bytes());
        text
    }

    fn audit(&self) -> Vec<(String, ekm::audit::Outcome)> {
        ekm::audit::read(&self.at("audit"))
            .unwrap()
            .map(|record| record.unwrap().event)
            .map(|event| (event.action, event.outcome))
            .collect()
    }
}

fn no_pin(what: &str, text: &[u8]) {
    for pin in [PIN, WRONG] {
        let found = text
            .windows(pin.len())
            .any(|window| window == pin.as_bytes());
        assert!(!found, "a PIN is in {what}");
    }
}

/// Everything that a command said; never a PIN.
fn said(output: &Output) -> String {
    no_pin("what was said", &output.stdout);
    no_pin("what was said", &output.stderr);
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn kill(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

/// A running server; killed when dropped.
struct Server {
    child: Child,
    log: PathBuf,
}

impl Server {
    fn stop(mut self) {
        kill(self.child.id(), Signal::TERM);
        let status = self.child.wait().unwrap();
        assert!(status.success(), "the server ended with {status}");
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// No PIN where anybody could look, and none in the memory of the server,
    /// which faces the network.
    fn knows_no_pin(&self, bridges: &[u32]) {
        no_pin("the log", &std::fs::read(&self.log).unwrap());
        for pid in bridges.iter().chain([&self.child.id()]) {
            for file in ["environ", "cmdline"] {
                let path = format!("/proc/{pid}/{file}");
                no_pin(&path, &std::fs::read(&path).unwrap());
            }
        }
        memory::search(self.child.id(), |text| no_pin("the server's memory", text));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Of no use where it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            eprintln!("what the server logged:\n{log}");
        }
    }
}

/// Looks at a held token again, with nothing about its PIN changed: so many bridges, all that it
/// has, start anew, each twice.
fn look_again(place: &Place, bridges: u64) {
    for mode in [0o400, 0o600] {
        touch(place, mode, bridges);
    }
    // They are held back and end; one that had not would answer for an unlock that comes now.
    wait_for("their end", PATIENCE, || {
        !place.faulty.clients().into_iter().map(pid).any(lives)
    });
}

/// Changes nothing of the PIN but its file's mode, and waits for that many new bridges.
fn touch(place: &Place, mode: u32, bridges: u64) {
    let before = place.loaded();
    let mode = std::fs::Permissions::from_mode(mode);
    std::fs::set_permissions(place.pin_file(), mode).unwrap();
    wait_for("new bridges", PATIENCE, || {
        place.loaded() >= before + bridges
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_pin_reaches_the_token_once_over_all_bridges_and_servers() {
    let mut place = Place::new("once").await;
    place.processes(4);
    write_private(&place.pin_file(), WRONG);
    for _ in 0..3 {
        // They start one after another, so each has by then, and what comes later are restarts.
        let first = place.loaded() + 4;
        let server = place.serve();
        wait_for("its four bridges", PATIENCE, || place.loaded() >= first);
        place.wait_for("locked");
        assert_eq!(place.logins(), 1, "{}", place.why());
        look_again(&place, 4);
        place.wait_for("locked");
        assert_eq!(place.logins(), 1, "{}", place.why());
        let restarts = place.loaded() - first;
        assert!(restarts >= 8, "{restarts} restarts of four bridges");
        server.stop();
    }
    // Commands without a server start bridges of their own.
    assert_eq!(place.state(), "locked");
    let why = place.refused(&["kek", "list"]);
    assert!(
        why.contains("held back") && why.contains("ekm token unlock main"),
        "{why}"
    );
    assert_eq!(place.logins(), 1);

    // A second server on the state starts no bridge at all.
    let server = place.serve();
    place.wait_for("locked");
    place.configure_as("second.toml", "audit2");
    let why = place.refused(&["--config", "second.toml", "serve"]);
    assert!(
        why.contains("another ekm process works on this site"),
        "{why}"
    );
    assert_eq!(place.logins(), 1);
    place.ledger();

    // The operator's act: the right PIN, which each of the four bridges sends.
    write_private(&place.pin_file(), PIN);
    place.wait_for("ready");
    assert_eq!(place.logins(), 1 + 4);
    server.knows_no_pin(&place.bridge_pids());
}

/// Programs that embed the library need not open the doors that keep servers apart.
#[tokio::test(flavor = "multi_thread")]
async fn two_servers_on_one_state_have_one_login_leader() {
    let mut place = Place::new("two").await;
    place.processes(2);
    write_private(&place.pin_file(), WRONG);
    let program = Program::at(EKM.into());
    let root = tempfile::tempdir().unwrap();
    let config = |audit: &str| {
        let mut config = Bench::config(
            root.path(),
            vec![place.token.clone()],
            PolicyConfig::default(),
        );
        config.audit = root.path().join(audit);
        config
    };
    let (one, two) = (config("one"), config("two"));
    // Their bridges go on meanwhile.
    let one = ekm::server::open(&one, &program).await.unwrap();
    let two = ekm::server::open(&two, &program).await.unwrap();
    for service in [&one, &two] {
        let bridge = &service.tokens().bridges()[0];
        bridge.settled().await.unwrap_err();
        // One that waited in vain for the other's login tries again before it is locked.
        tokio::task::block_in_place(|| {
            wait_for("the lock", PATIENCE, || {
                matches!(bridge.state(), TokenState::Locked { .. })
            });
        });
    }
    assert_eq!(place.logins(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_killed_before_the_answer_does_not_send_the_pin_twice() {
    let place = Place::new("killed").await;
    write_private(&place.pin_file(), WRONG);
    place
        .faulty
        .strike(Some("C_Login"), 0, None, Fault::Delay(3_000));
    let server = place.serve();
    wait_for("the login", PATIENCE, || place.logins() == 1);
    assert!(place.ledger().contains("pending"));
    let bridge = place.faulty.clients().last().unwrap().0;
    kill(u32::try_from(bridge).unwrap(), Signal::KILL);
    place.wait_for("locked");
    assert!(
        place.why().contains("the answer was never seen"),
        "{}",
        place.why()
    );
    look_again(&place, 1);
    server.stop();
    let server = place.serve();
    place.wait_for("locked");
    assert_eq!(
        place.logins(),
        1,
        "a PIN whose answer nobody saw was sent again"
    );

    // The operator says that it is right, and is wrong: once more, and no more.
    place.faulty.heal();
    let unlocked = place.refused(&["token", "unlock", "main"]);
    assert!(
        unlocked.contains("locked") && unlocked.contains("CKR_PIN_INCORRECT"),
        "{unlocked}"
    );
    look_again(&place, 1);
    assert_eq!((place.logins(), place.faulty.wrong_pins()), (2, 1));
    let unlocked = place.refused(&["token", "unlock", "main"]);
    assert!(unlocked.contains("CKF_USER_PIN_COUNT_LOW"), "{unlocked}");
    assert_eq!((place.logins(), place.faulty.wrong_pins()), (3, 2));
    write_private(&place.pin_file(), PIN);
    place.wait_for("ready");
    server.stop();
    let unlocks: Vec<_> = place
        .audit()
        .into_iter()
        .filter(|(action, _)| action == "token-unlock")
        .map(|(_, outcome)| outcome)
        .collect();
    use ekm::audit::Outcome::{Failure, Intent};
    assert_eq!(unlocks, [Intent, Failure, Intent, Failure]);
}

/// A server of four bridges is killed while a wrong PIN is on its way, with a
/// second server on its state, and three times after that: the token has seen
/// the PIN once, and serves both when the operator has mended it. `refusals`
/// is how often the token itself has refused by then.
async fn killed_between_pending_and_the_answer(label: &str, fault: Fault, refusals: u64) {
    let mut place = Place::new(label).await;
    place.processes(4);
    place.configure_as("second.toml", "audit2");
    write_private(&place.pin_file(), WRONG);
    place.faulty.strike(Some("C_Login"), 0, None, fault);
    let mut server = place.serve();
    wait_for("the login", PATIENCE, || place.logins() == 1);
    assert!(place.ledger().contains("pending"));
    let first: Vec<u32> = place.faulty.clients().into_iter().map(pid).collect();

    // Another `ekm serve` has no way in; a program that embeds the library has one.
    let why = place.refused(&["--config", "second.toml", "serve"]);
    assert!(
        why.contains("another ekm process works on this site"),
        "{why}"
    );
    let mut config = Bench::config(
        &place.at(""),
        vec![place.token.clone()],
        PolicyConfig::default(),
    );
    config.audit = place.at("audit3");
    let before = place.loaded();
    let second = ekm::server::open(&config, &Program::at(EKM.into()))
        .await
        .unwrap();
    let seconds_state = || second.tokens().bridges()[0].state();
    wait_for("the second server's bridge", PATIENCE, || {
        place.loaded() > before
    });
    wait_for("what the token does by itself", PATIENCE, || {
        place.faulty.wrong_pins() == refusals
    });
    assert_eq!(place.logins(), 1);

    server.kill();
    wait_for("the end of its bridges", PATIENCE, || {
        !first.iter().any(|pid| lives(*pid))
    });
    assert!(place.ledger().contains("pending"));
    // From here on the token answers, so that the right PIN can be seen to serve.
    place.faulty.heal();
    for _ in 0..3 {
        let before = place.loaded();
        server = place.serve();
        wait_for("its four bridges", PATIENCE, || {
            place.loaded() >= before + 4
        });
        place.wait_for("locked");
        let why = place.why();
        assert!(why.contains("the answer was never seen"), "{why}");
        assert_eq!(place.logins(), 1, "{why}");
        server.kill();
    }
    server = place.serve();
    place.wait_for("locked");
    wait_for("the second server", PATIENCE, || {
        matches!(seconds_state(), TokenState::Locked { .. })
    });
    // All eight of them.
    touch(&place, 0o400, 8);
    place.wait_for("locked");
    assert_eq!(place.logins(), 1, "{}", place.why());

    write_private(&place.pin_file(), PIN);
    place.done(&["token", "unlock", "main"]);
    place.wait_for("ready");
    wait_for("the second server", PATIENCE, || {
        seconds_state().word() == "ready"
    });
    assert_eq!(place.logins(), 1 + 8);
    assert_eq!(place.faulty.wrong_pins(), 0);
    place.done(&["kek", "generate", "KEK1", "--bits", "2048"]);
    server.knows_no_pin(&place.bridge_pids());
    server.stop();
}

fn pid((pid, _): (u64, u64)) -> u32 {
    u32::try_from(pid).unwrap()
}

/// Longer than a bridge waits for it when its server has gone.
const MINUTE: u64 = 60_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_server_killed_before_the_token_has_seen_the_pin_does_not_send_it_twice() {
    killed_between_pending_and_the_answer("unseen", Fault::Delay(MINUTE), 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_killed_after_the_token_has_refused_the_pin_does_not_send_it_twice() {
    killed_between_pending_and_the_answer("seen", Fault::Late(MINUTE), 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_killed_over_a_login_that_hangs_does_not_send_the_pin_twice() {
    killed_between_pending_and_the_answer("hangs", Fault::Hang, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_killed_after_a_login_without_an_answer_does_not_send_the_pin_twice() {
    let lost = Fault::AnswerLost(ck::CKR_DEVICE_ERROR);
    killed_between_pending_and_the_answer("unanswered", lost, 1).await;
}

/// An HSM that goes away under every login, and comes back, costs no operator.
#[tokio::test(flavor = "multi_thread")]
async fn a_right_pin_whose_answers_are_lost_brings_the_token_back_by_itself() {
    let place = Place::new("lost").await;
    let _server = place.serve();
    place.wait_for("ready");
    let lost = Fault::AnswerLost(ck::CKR_DEVICE_ERROR);
    place.faulty.strike(Some("C_Login"), 0, Some(4), lost);
    kill(place.bridge_pids()[0], Signal::KILL);
    wait_for("the sixth login", PATIENCE, || place.logins() == 6);
    place.wait_for("ready");
}

/// A PIN that was right until it was changed on the token is a wrong PIN.
#[tokio::test(flavor = "multi_thread")]
async fn a_pin_that_has_become_wrong_is_sent_once_also_where_the_answer_is_lost() {
    let place = Place::new("became").await;
    let _server = place.serve();
    place.wait_for("ready");
    // To the ledger, a PIN that was changed on the token looks as this does:
    // the file is the same and what is in it is not right any more.
    let file = std::fs::File::options()
        .write(true)
        .open(place.pin_file())
        .unwrap();
    let written = file.metadata().unwrap().modified().unwrap();
    file.write_all_at(WRONG.as_bytes(), 0).unwrap();
    file.set_modified(written).unwrap();
    let lost = Fault::AnswerLost(ck::CKR_DEVICE_ERROR);
    place.faulty.strike(Some("C_Login"), 0, None, lost);
    let before = place.logins();
    kill(place.bridge_pids()[0], Signal::KILL);
    place.wait_for("locked");
    assert!(
        place.why().contains("CKF_USER_PIN_COUNT_LOW"),
        "{}",
        place.why()
    );
    look_again(&place, 1);
    assert_eq!(place.logins(), before + 1);
    assert_eq!(place.faulty.wrong_pins(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_try_is_the_operators() {
    let place = Place::new("last").await;
    place.faulty.change(|rules| rules.pin_tries = Some(2));
    write_private(&place.pin_file(), WRONG);
    let server = place.serve();
    place.wait_for("locked");
    // The token has one try left now, and even a new PIN is not tried by itself.
    write_private(&place.pin_file(), PIN);
    wait_for("the look at the flags", PATIENCE, || {
        place.why().contains("CKF_USER_PIN_FINAL_TRY")
    });
    let why = place.refused(&["token", "unlock", "main"]);
    assert!(why.contains("--last-try"), "{why}");
    assert_eq!(place.logins(), 1);
    let unlocked = place.done(&["token", "unlock", "main", "--last-try"]);
    assert!(unlocked.contains("ready"), "{unlocked}");
    assert_eq!(place.logins(), 2);
    server.stop();

    place.faulty.change(|rules| rules.pin_tries = Some(1));
    write_private(&place.pin_file(), WRONG);
    assert_eq!(place.state(), "locked");
    assert_eq!(place.logins(), 2, "the only try was taken by itself");
}

/// Ctrl-C goes to every process that the terminal started.
#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_during_the_very_first_login_does_not_hold_the_pin_back() {
    let place = Place::new("ctrl-c").await;
    place
        .faulty
        .strike(Some("C_Login"), 0, Some(1), Fault::Hang);
    let mut child = place
        .command(&["kek", "list"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .unwrap();
    wait_for("the login", PATIENCE, || place.logins() == 1);
    let group = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    kill_process_group(group, Signal::INT).unwrap();
    assert!(!child.wait().unwrap().success());
    // The bridge has two seconds for it.
    place.faulty.heal();
    place.done(&["kek", "list"]);
    assert_eq!(place.logins(), 2);
}

/// systemd writes credentials anew at every start, so a new file is no sign of a new PIN.
#[tokio::test(flavor = "multi_thread")]
async fn a_credential_that_was_refused_waits_for_the_operator() {
    let mut place = Place::new("credential").await;
    place.source(PinSource::Credential("pin".into()));
    let give = |pin: &str| {
        let folder = place.at("credentials");
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir(&folder).unwrap();
        write_private(&folder.join("pin"), pin);
        let mut command = place.command(&["serve"]);
        command.env("CREDENTIALS_DIRECTORY", folder);
        place.serve_with(command)
    };
    for _ in 0..2 {
        let server = give(WRONG);
        place.wait_for("locked");
        server.stop();
    }
    assert_eq!(place.logins(), 1);
    let server = give(PIN);
    place.wait_for("locked");
    assert!(
        place.why().contains("ekm token unlock main"),
        "{}",
        place.why()
    );
    let unlocked = place.done(&["token", "unlock", "main"]);
    assert!(unlocked.contains("ready"), "{unlocked}");
    assert_eq!(place.logins(), 2);
    server.knows_no_pin(&place.bridge_pids());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pin_from_the_environment_is_taken_out_of_it_and_outlives_a_bridge() {
    let mut place = Place::new("environment").await;
    place.source(PinSource::Env("EKM_TEST_PIN".into()));
    let mut command = place.command(&["serve"]);
    command.env("EKM_TEST_PIN", PIN);
    let server = place.serve_with(command);
    place.wait_for("ready");
    let first = place.bridge_pids();
    server.knows_no_pin(&first);
    kill(first[0], Signal::KILL);
    wait_for("another bridge", PATIENCE, || {
        let now = place.bridge_pids();
        !now.is_empty() && now != first
    });
    server.knows_no_pin(&place.bridge_pids());
    server.stop();

    let text = place.refused(&["kek", "list"]);
    assert!(text.contains("EKM_TEST_PIN is not set"), "{text}");
    let output = place
        .command(&["kek", "list"])
        .env("EKM_TEST_PIN", PIN)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", said(&output));
}

/// A program that prints a PIN, and something of it on standard error.
fn program(path: &Path, pin: &str) {
    script(
        path,
        &format!("echo \"asked for $1; it is {pin}\" >&2\necho {pin}\n"),
    );
}

/// Puts a program in its place. A file that is being run cannot be written, so it is another one.
fn script(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, format!("#!/bin/sh\n{text}")).unwrap();
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o700)).unwrap();
    std::fs::rename(&new, path).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_prints_the_pin_and_a_refused_one_waits_for_the_operator() {
    let mut place = Place::new("command").await;
    let path = place.at("get-pin");
    program(&path, WRONG);
    place.source(PinSource::Command(vec![
        path.display().to_string(),
        "tape token".into(),
    ]));
    let server = place.serve();
    place.wait_for("locked");
    // Another program is no sign of another PIN.
    program(&path, PIN);
    server.stop();
    let server = place.serve();
    place.wait_for("locked");
    assert_eq!(place.logins(), 1);
    let unlocked = place.done(&["token", "unlock", "main"]);
    assert!(unlocked.contains("ready"), "{unlocked}");
    server.knows_no_pin(&place.bridge_pids());
    let log = std::fs::read_to_string(&server.log).unwrap();
    assert!(
        log.contains("asked for tape token; it is [redacted]"),
        "{log}"
    );
    server.stop();

    // One that fails is asked again: nothing was sent.
    script(&path, "echo the vault is sealed >&2\nexit 3\n");
    let server = place.serve();
    place.wait_for("failed");
    assert!(place.why().contains("exit status: 3"), "{}", place.why());
    program(&path, PIN);
    place.wait_for("ready");
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_gives_the_pin_each_time_a_bridge_is_started() {
    let mut place = Place::new("operator").await;
    place.processes(2);
    place.source(PinSource::Operator);
    let text = place.refused(&["kek", "list"]);
    assert!(text.contains("ekm token unlock main"), "{text}");
    write_private(&place.at("typed"), PIN);
    write_private(&place.at("mistyped"), WRONG);
    let give = |file: &str| place.done(&["token", "unlock", "main", "--pin-file", file]);
    let text = place.refused(&["token", "unlock", "main", "--pin-file", "typed"]);
    assert!(text.contains("no server runs"), "{text}");

    let server = place.serve();
    place.wait_for("locked");
    assert!(
        place.why().contains("ekm token unlock main"),
        "{}",
        place.why()
    );
    assert_eq!(place.logins(), 0);
    let text = place.refused(&["token", "unlock", "main", "--pin-file", "mistyped"]);
    assert!(text.contains("CKR_PIN_INCORRECT"), "{text}");
    assert_eq!(
        place.logins(),
        1,
        "one bridge is enough to learn that it is wrong"
    );
    give("typed");
    place.wait_for("ready");
    assert_eq!(place.logins(), 3);
    let pids = place.bridge_pids();
    server.knows_no_pin(&pids);

    // The server has kept nothing.
    kill(pids[0], Signal::KILL);
    place.wait_for("degraded");
    wait_for("the word for the operator", PATIENCE, || {
        place.why().contains("ekm token unlock main")
    });
    assert_eq!(place.logins(), 3);
    give("typed");
    place.wait_for("ready");
    assert_eq!(place.logins(), 4);
    server.knows_no_pin(&place.bridge_pids());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pin_pad_asks_once_and_then_when_the_operator_is_there() {
    let mut place = Place::new("pad").await;
    place.source(PinSource::Pad);
    let text = place.refused(&["kek", "list"]);
    assert!(text.contains("CKF_PROTECTED_AUTHENTICATION_PATH"), "{text}");
    assert_eq!(place.logins(), 0);

    place
        .faulty
        .change(|rules| rules.pad = Some(PIN.to_owned()));
    let cancelled = Fault::Answer(ck::CKR_FUNCTION_CANCELED);
    place.faulty.strike(Some("C_Login"), 0, Some(1), cancelled);
    let _server = place.serve();
    place.wait_for("locked");
    assert_eq!(place.logins(), 1);
    let unlocked = place.done(&["token", "unlock", "main"]);
    assert!(unlocked.contains("ready"), "{unlocked}");
    assert_eq!(place.logins(), 2);
}

/// The security officer logs in to initialise a token, and never while one is served.
#[tokio::test(flavor = "multi_thread")]
async fn the_security_officer_never_logs_in_while_a_token_is_served() {
    let place = Place::new("officer").await;
    let server = place.serve();
    place.wait_for("ready");
    place.done(&["kek", "generate", "KEK1", "--bits", "2048"]);
    kill(place.bridge_pids()[0], Signal::KILL);
    wait_for("another login", PATIENCE, || place.logins() == 2);
    place.wait_for("ready");
    place.done(&["token", "unlock", "main"]);
    server.stop();
    assert_eq!(place.faulty.officer_logins(), 0);
}
