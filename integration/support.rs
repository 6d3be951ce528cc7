//! What every test starts from: a token of its own, a site of its own.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::tokens::{self, Surroundings};
use ekm::bridge::pin::PinSource;
use ekm::bridge::supervisor::Program;
use ekm::config::{Config, ServerConfig, TokenConfig};
use ekm::drive::DriveSerial;
use ekm::key::{KeyLabel, SedkForm};
use ekm::keystore::Custody;
use ekm::policy::PolicyConfig;
use ekm::problem::Problem;
use ekm::service::Service;
use ekm::softdrive::{DriveKind, Init, SoftDrive};
use ekm::store::{Drive, DriveKey, DriveState, Store};
use ekm::tls::PeerId;
use rustix::process::{Pid, Signal, kill_process_group};
use tempfile::TempDir;
use testcontainers::core::{Mount, WaitFor};
use testcontainers::runners::AsyncRunner;
use testcontainers::{ContainerAsync, GenericImage, ImageExt};

/// The program under test.
pub(crate) const EKM: &str = env!("CARGO_BIN_EXE_ekm");

/// The client's side of p11-kit.
pub(crate) const P11_KIT_CLIENT: &str = "/usr/lib/x86_64-linux-gnu/pkcs11/p11-kit-client.so";

/// User PIN of every test token.
pub(crate) const PIN: &str = "4242-4242";

/// A file beside the program: `examples/NAME`, which `cargo test` builds.
pub(crate) fn example(name: &str) -> PathBuf {
    let path = Path::new(EKM).with_file_name("examples").join(name);
    assert!(path.exists(), "{} is not built", path.display());
    path
}

/// The kinds of token. Everything runs on the first two, the conformance list on all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// kryoptic, in the bridge.
    Embedded,
    /// SoftHSM behind p11-kit, in a container.
    Softhsm,
    /// SoftHSM, loaded into the bridge.
    SofthsmInProcess,
    /// openCryptoki's soft token, in the bridge, with a daemon of its own.
    Opencryptoki,
    /// NSS softokn, in the bridge.
    Nss,
    /// A TPM 2.0 in software; custody `host` only.
    Tpm2,
}

impl Kind {
    pub(crate) fn profile(self) -> &'static str {
        match self {
            Self::Embedded => "embedded",
            Self::Softhsm => "p11-kit-remote",
            Self::SofthsmInProcess => "softhsm2",
            Self::Opencryptoki => "opencryptoki-soft",
            Self::Nss => "nss",
            Self::Tpm2 => "tpm2-pkcs11",
        }
    }

    /// The user PIN; openCryptoki takes eight characters at most.
    pub(crate) fn pin(self) -> &'static str {
        if self == Self::Opencryptoki {
            "42424242"
        } else {
            PIN
        }
    }

    /// The custody of its KEKs.
    pub(crate) fn custody(self) -> Custody {
        if self == Self::Tpm2 {
            Custody::Host
        } else {
            Custody::Token
        }
    }

    /// The form that the token makes for a drive by itself; with a TPM, that `ekm` makes beside it.
    pub(crate) fn form(self) -> SedkForm {
        match self {
            Self::Embedded | Self::Opencryptoki | Self::Nss | Self::Tpm2 => SedkForm::T10Wrapped,
            Self::Softhsm | Self::SofthsmInProcess => SedkForm::RsaOaepSha1,
        }
    }
}

/// What keeps a remote token running; dropping it stops the token.
enum Remote {
    None,
    Container(Box<ContainerAsync<GenericImage>>),
    Local(Local),
}

/// A `p11-kit server` of this machine, in a process group with the processes
/// that it makes for its clients.
struct Local {
    directory: PathBuf,
    server: Mutex<Child>,
}

impl Local {
    fn start(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            server: Mutex::new(local_softhsm(directory)),
        }
    }

    fn server(&self) -> MutexGuard<'_, Child> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What that command of `docker` does to a container.
    fn docker(&self, command: &str) {
        let mut server = self.server();
        match command {
            "pause" => signal_group(&server, Signal::STOP),
            "unpause" => signal_group(&server, Signal::CONT),
            "kill" => {
                signal_group(&server, Signal::KILL);
                server.wait().unwrap();
            }
            "start" => *server = local_softhsm(&self.directory),
            other => panic!("docker {other} is nothing that a process can do"),
        }
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        let mut server = self.server();
        // One that has been waited for has no group any more.
        if matches!(server.try_wait(), Ok(None)) {
            signal_group(&server, Signal::KILL);
            let _ = server.wait();
        }
    }
}

fn signal_group(leader: &Child, signal: Signal) {
    let group = Pid::from_raw(i32::try_from(leader.id()).unwrap()).unwrap();
    kill_process_group(group, signal).unwrap();
}

/// An initialised token.
pub(crate) struct Hsm {
    pub(crate) kind: Kind,
    pub(crate) label: String,
    // Before the directory: its processes write there until they end.
    pub(crate) surroundings: Surroundings,
    remote: Remote,
    pub(crate) directory: TempDir,
}

impl Hsm {
    /// Makes a token of that kind.
    pub(crate) async fn new(kind: Kind, label: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        tokens::pins(directory.path(), kind);
        let remote = if kind == Kind::Softhsm {
            softhsm(directory.path()).await
        } else {
            Remote::None
        };
        let surroundings = match kind {
            Kind::Embedded | Kind::Softhsm | Kind::SofthsmInProcess => Surroundings::default(),
            Kind::Opencryptoki => Surroundings::opencryptoki(directory.path(), label, kind.pin()),
            Kind::Nss => Surroundings::nss(directory.path()),
            Kind::Tpm2 => Surroundings::tpm2(directory.path()),
        };
        // The profile gives NSS's token its label.
        let label = if kind == Kind::Nss { "ekm" } else { label };
        let hsm = Self {
            kind,
            label: label.to_owned(),
            surroundings,
            remote,
            directory,
        };
        if !matches!(kind, Kind::Opencryptoki | Kind::Nss) {
            hsm.init();
        }
        hsm
    }

    fn profile(&self) -> String {
        let shipped = || self.kind.profile().to_owned();
        self.surroundings.profile().unwrap_or_else(shipped)
    }

    fn init(&self) {
        self.init_another(&self.label, &self.directory.path().join("pin"));
    }

    /// Makes another token in the same module, with its user PIN in that file.
    pub(crate) fn init_another(&self, label: &str, pin_file: &Path) {
        let dir = self.directory.path();
        let output = Command::new(EKM)
            .args([
                "slot",
                "init",
                "--profile",
                &self.profile(),
                "--label",
                label,
            ])
            .arg("--directory")
            .arg(dir)
            .arg("--so-pin-file")
            .arg(dir.join("so-pin"))
            .arg("--pin-file")
            .arg(pin_file)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// The token in a configuration.
    pub(crate) fn config(&self, name: &str) -> TokenConfig {
        TokenConfig {
            name: name.to_owned(),
            profile: self.profile(),
            uri: format!("pkcs11:token={}", self.label).parse().unwrap(),
            serials: Vec::new(),
            pin: PinSource::File(self.directory.path().join("pin")),
            priority: 1,
            weight: 1,
            directory: Some(self.directory.path().to_owned()),
            library: None,
            environment: std::collections::BTreeMap::new(),
        }
    }

    /// A module that another PKCS#11 client can load for this token, and the environment it needs.
    pub(crate) fn module(&self) -> (PathBuf, Vec<(&'static str, String)>) {
        let dir = self.directory.path().display();
        match self.kind {
            Kind::Embedded => {
                let conf = self.directory.path().join("kryoptic.conf");
                let text = format!(
                    "[[slots]]\nslot = 0\ndbtype = \"sqlite\"\ndbargs = \"{dir}/token.sql\"\n"
                );
                std::fs::write(&conf, text).unwrap();
                (
                    example("libembedded.so"),
                    vec![("KRYOPTIC_CONF", conf.display().to_string())],
                )
            }
            Kind::SofthsmInProcess => (
                "/usr/lib/softhsm/libsofthsm2.so".into(),
                vec![("SOFTHSM2_CONF", format!("{dir}/softhsm2.conf"))],
            ),
            Kind::Opencryptoki => ("libopencryptoki.so.0".into(), Vec::new()),
            Kind::Nss => (
                "libsoftokn3.so".into(),
                vec![(
                    "HAND_RESERVED",
                    format!("configdir='sql:{dir}' dbTokenDescription='ekm'"),
                )],
            ),
            Kind::Tpm2 => (
                "libtpm2_pkcs11.so.1".into(),
                vec![
                    ("TPM2_PKCS11_STORE", format!("{dir}/store")),
                    ("TPM2_PKCS11_TCTI", "tabrmd:bus_type=session".to_owned()),
                    (
                        "DBUS_SESSION_BUS_ADDRESS",
                        format!("unix:path={dir}/tpm2/bus"),
                    ),
                ],
            ),
            Kind::Softhsm => (
                P11_KIT_CLIENT.into(),
                vec![(
                    "P11_KIT_SERVER_ADDRESS",
                    format!("unix:path={dir}/pkcs11.sock"),
                )],
            ),
        }
    }

    /// Does to the token's container what that command of `docker` does: `pause`, `unpause`,
    /// `kill`, `start`; without Docker, to its server's processes.
    pub(crate) fn docker(&self, command: &str) {
        let container = match &self.remote {
            Remote::None => panic!("no docker {command} for a token in the bridge"),
            Remote::Local(local) => return local.docker(command),
            Remote::Container(container) => container,
        };
        let done = Command::new("docker")
            .args([command, container.id()])
            .stdout(Stdio::null())
            .status();
        assert!(done.unwrap().success(), "docker {command}");
    }

    /// Has the second PKCS#11 client do something.
    pub(crate) fn hand(&self, verb: &[&str]) -> String {
        let (module, environment) = self.module();
        let output = self
            .surroundings
            .command(&example("hand"))
            .arg(module)
            .arg(&self.label)
            .arg(self.directory.path().join("pin"))
            .args(verb)
            .envs(environment)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{verb:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }
}

/// SoftHSM with one blank slot, its socket in the directory: in a container,
/// or on a laptop without Docker as a process.
async fn softhsm(directory: &Path) -> Remote {
    let image = std::env::var("EKM_TEST_SOFTHSM_IMAGE").ok();
    let socket = directory.join("pkcs11.sock");
    let remote = match image {
        Some(image) => {
            let (name, tag) = image.split_once(':').unwrap_or((&image, "latest"));
            let container = GenericImage::new(name, tag)
                .with_wait_for(WaitFor::message_on_stdout("softhsm-serve: ready"))
                .with_mount(Mount::bind_mount(
                    directory.display().to_string(),
                    "/run/p11",
                ))
                .start()
                .await
                .expect("the SoftHSM container starts");
            Remote::Container(Box::new(container))
        }
        None => {
            assert!(
                std::env::var_os("CI").is_none(),
                "EKM_TEST_SOFTHSM_IMAGE is not set, and in CI SoftHSM must run in its container (scripts/test)"
            );
            eprintln!(
                "WARNING: no SoftHSM image (EKM_TEST_SOFTHSM_IMAGE); SoftHSM runs as a process of this machine instead"
            );
            Remote::Local(Local::start(directory))
        }
    };
    wait_for("the token's socket", Duration::from_secs(20), || {
        socket.exists()
    });
    remote
}

fn local_softhsm(directory: &Path) -> Child {
    std::fs::create_dir_all(directory.join("tokens")).unwrap();
    let conf = directory.join("server-softhsm2.conf");
    std::fs::write(
        &conf,
        format!(
            "directories.tokendir = {}/tokens\nlog.level = ERROR\n",
            directory.display()
        ),
    )
    .unwrap();
    Command::new("p11-kit")
        .args(["server", "-f", "-n"])
        .arg(directory.join("pkcs11.sock"))
        .args(["--provider", "/usr/lib/softhsm/libsofthsm2.so", "pkcs11:"])
        .env("SOFTHSM2_CONF", conf)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .expect("p11-kit is installed (scripts/test installs it)")
}

/// Waits until something is so; fails by name when it does not become so.
pub(crate) fn wait_for(what: &str, patience: Duration, so: impl Fn() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(
            start.elapsed() < patience,
            "{what} did not come within {patience:?}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A new RSA-2048 key pair, PKCS#8 DER: for a KEK that several tokens hold.
pub(crate) fn pkcs8_key() -> Vec<u8> {
    use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
    use aws_lc_rs::rsa::{KeyPair, KeySize};
    let key = KeyPair::generate(KeySize::Rsa2048).unwrap();
    let der: Pkcs8V1Der<'_> = key.as_der().unwrap();
    der.as_ref().to_vec()
}

/// Whether the process is there and not a zombie.
pub(crate) fn lives(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// Waits until a service that was dropped has left its database: SQLite's last connection is closed
/// by a thread of its own, and takes the log beside the file away.
pub(crate) async fn closed(state: &Path) {
    let start = Instant::now();
    while state.join("state.db-wal").exists() {
        assert!(start.elapsed().as_secs() < 60, "the database stays open");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub(crate) fn write_private(path: &Path, text: &str) {
    ekm::files::write_private(path, text.as_bytes()).unwrap();
}

/// A software drive and the row that it has in the drive table.
pub(crate) struct TestDrive {
    pub(crate) soft: SoftDrive,
    pub(crate) row: Drive,
    pub(crate) peer: PeerId,
}

/// Makes drive number `n` in a directory, enrolled by its public key.
pub(crate) fn drive(directory: &Path, n: u32, form: SedkForm) -> TestDrive {
    let kind = match form {
        SedkForm::T10Plain => DriveKind::LtoPlain,
        SedkForm::T10Wrapped | SedkForm::RsaOaepSha1 => DriveKind::Enterprise,
    };
    drive_of(directory, n, form, kind)
}

/// Makes a drive of that kind.
pub(crate) fn drive_of(directory: &Path, n: u32, form: SedkForm, kind: DriveKind) -> TestDrive {
    let serial: DriveSerial = format!("{n:012}").parse().unwrap();
    let soft = SoftDrive::init(
        &directory.join(format!("drive{n}")),
        &Init {
            serial: serial.clone(),
            wwn: format!("50050763{n:08X}").parse().unwrap(),
            kind,
        },
    )
    .unwrap();
    let row = Drive {
        serial: serial.clone(),
        wwn: Some(soft.wwn()),
        kek1: None,
        kek2: None,
        key: match form {
            SedkForm::T10Plain => DriveKey::None,
            SedkForm::T10Wrapped | SedkForm::RsaOaepSha1 => {
                DriveKey::Pinned(soft.public_key_spki().to_vec())
            }
        },
        form,
        custody: Custody::Token,
        speakers: Vec::new(),
        state: DriveState::Active,
    };
    TestDrive {
        soft,
        row,
        peer: format!("drive:{serial}").parse().unwrap(),
    }
}

/// A service over tokens, without its doors.
pub(crate) struct Bench {
    pub(crate) service: Arc<Service>,
    pub(crate) config: Config,
    pub(crate) directory: TempDir,
}

impl Bench {
    /// Opens a service over the tokens, named `main`, `second` …, and waits until they are ready.
    pub(crate) async fn new(tokens: &[&Hsm], policy: PolicyConfig) -> Self {
        let names = ["main", "second", "third"];
        let program = tokens.first().map(|hsm| hsm.surroundings.program());
        let tokens = tokens
            .iter()
            .zip(names)
            .map(|(hsm, name)| hsm.config(name))
            .collect();
        let program = program.unwrap_or_else(|| EKM.into());
        Self::run(tempfile::tempdir().unwrap(), tokens, policy, program).await
    }

    /// Opens a service over tokens as configured, and waits until they are ready.
    pub(crate) async fn with(tokens: Vec<TokenConfig>, policy: PolicyConfig) -> Self {
        Self::at(tempfile::tempdir().unwrap(), tokens, policy).await
    }

    /// The same in a directory that is there already.
    pub(crate) async fn at(
        directory: TempDir,
        tokens: Vec<TokenConfig>,
        policy: PolicyConfig,
    ) -> Self {
        Self::run(directory, tokens, policy, EKM.into()).await
    }

    async fn run(
        directory: TempDir,
        tokens: Vec<TokenConfig>,
        policy: PolicyConfig,
        program: PathBuf,
    ) -> Self {
        let config = Self::config(directory.path(), tokens, policy);
        let service = ekm::server::open(&config, &Program::at(program))
            .await
            .unwrap();
        for bridge in service.tokens().bridges() {
            bridge.settled().await.unwrap();
        }
        Self {
            service: Arc::new(service),
            config,
            directory,
        }
    }

    /// A configuration whose doors are never opened.
    pub(crate) fn config(
        directory: &Path,
        tokens: Vec<TokenConfig>,
        policy: PolicyConfig,
    ) -> Config {
        let at = |name: &str| directory.join(name);
        Config {
            alarms: ekm::alarms::AlarmsConfig::default(),
            node: "test".to_owned(),
            state: at("state"),
            database: None,
            fleet: None,
            audit: at("audit"),
            server: ServerConfig {
                listen: ([127, 0, 0, 1], 0).into(),
                certificate: at("unused"),
                key: at("unused"),
                client_ca: at("unused"),
                crl: None,
                drive_ca: None,
                max_connections: 64,
                max_connections_per_peer: 64,
                max_waiting: 4096,
                max_waiting_per_peer: 2048,
                handshake_seconds: 5,
                request_seconds: 60,
                stop_seconds: 10,
            },
            metrics: None,
            operators: ekm::config::OperatorsConfig::default(),
            tokens,
            records: ekm::config::RecordsConfig::default(),
            keystores: Vec::new(),
            sync: ekm::sync::SyncConfig::default(),
            policy,
        }
    }

    /// Makes a KEK on the token of that name.
    pub(crate) async fn kek(&self, label: &str, token: &str, custody: Custody) {
        self.try_kek(label, token, 2048, custody).await.unwrap();
    }

    /// The same, where it may be refused.
    pub(crate) async fn try_kek(
        &self,
        label: &str,
        token: &str,
        bits: u32,
        custody: Custody,
    ) -> Result<(), Problem> {
        let command = ekm::admin::Command::KekGenerate {
            sign: false,
            label: label.parse::<KeyLabel>().unwrap(),
            bits,
            token: Some(token.to_owned()),
            custody,
        };
        let made = ekm::admin::execute(&self.service, "operator:test", command).await;
        made.map(drop)
    }

    /// Puts a drive into the table.
    pub(crate) async fn enrol(&self, drive: &TestDrive) {
        self.store().put_drive(&drive.row).await.unwrap();
    }

    pub(crate) fn store(&self) -> &dyn Store {
        self.service.store()
    }
}
