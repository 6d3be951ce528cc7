//! Tokens that need surroundings of their own: openCryptoki a daemon and places that are the whole
//! machine's, a TPM its simulator, resource manager and bus, NSS its own tool.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use crate::support::{EKM, Kind, wait_for, write_private};

/// What each kind of token needs of the machine; `scripts/test` installs it.
fn needs(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Embedded | Kind::Softhsm => &[],
        Kind::SofthsmInProcess => &["/usr/lib/softhsm/libsofthsm2.so"],
        Kind::Opencryptoki => &["/usr/sbin/pkcsslotd", "/usr/bin/nsenter"],
        Kind::Nss => &[
            "/usr/bin/certutil",
            "/usr/lib/x86_64-linux-gnu/libsoftokn3.so",
        ],
        Kind::Tpm2 => &[
            "/usr/bin/swtpm",
            "/usr/sbin/tpm2-abrmd",
            "/usr/bin/dbus-daemon",
            "/usr/lib/x86_64-linux-gnu/libtpm2_pkcs11.so.1",
            "/usr/lib/x86_64-linux-gnu/libtss2-tcti-tabrmd.so.0",
        ],
    }
}

/// Whether such a token can be made here. A laptop that cannot is told so; in CI that is a failure.
pub(crate) fn can_be_made(kind: Kind) -> bool {
    let missing = needs(kind).iter().find(|path| !Path::new(path).exists());
    let namespaces = matches!(kind, Kind::Opencryptoki | Kind::Tpm2);
    let why = if let Some(path) = missing {
        format!("{path} is not there (scripts/test installs it)")
    } else if namespaces && !rustix::process::geteuid().is_root() {
        "only root can give it a namespace of its own".to_owned()
    } else {
        return true;
    };
    assert!(
        std::env::var_os("CI").is_none(),
        "no token of kind {kind:?} can be made: {why}"
    );
    eprintln!("WARNING: SKIPPED, no token of kind {kind:?} can be made: {why}");
    false
}

/// The processes that a token needs beside it, and how others get to it.
#[derive(Default)]
pub(crate) struct Surroundings {
    _daemon: Option<Daemon>,
    // Process in whose mount and IPC namespace the token is to be found.
    namespace: Option<u32>,
    program: Option<PathBuf>,
    profile: Option<PathBuf>,
}

/// Ends with its owner.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Surroundings {
    /// openCryptoki's daemon, with one soft token: label `label`, user PIN `pin`.
    pub(crate) fn opencryptoki(directory: &Path, label: &str, pin: &str) -> Self {
        let place = directory.join("opencryptoki");
        let daemon = namespace(&["--mount", "--ipc"], "opencryptoki", &place);
        let pid = daemon.0.id();
        let wrapper = directory.join("ekm");
        let text =
            format!("#!/bin/sh\nexec nsenter --target {pid} --mount --ipc -- {EKM} \"$@\"\n");
        std::fs::write(&wrapper, text).unwrap();
        std::fs::set_permissions(&wrapper, PermissionsExt::from_mode(0o755)).unwrap();
        let there = Self {
            _daemon: Some(daemon),
            namespace: Some(pid),
            program: Some(wrapper),
            profile: None,
        };
        let socket = place.join("run/pkcsslotd.socket");
        wait_for("pkcsslotd", Duration::from_secs(10), || socket.exists());
        // The PINs that a new token has and that the first change gives must both be replaced.
        for (arguments, typed) in [
            (vec!["-I", "-S", "87654321"], label),
            (vec!["-P", "-S", "87654321", "-n", "12345678"], ""),
            (vec!["-u", "-S", "12345678", "-n", "00000000"], ""),
            (vec!["-p", "-U", "00000000", "-n", pin], ""),
        ] {
            let mut command = there.command(Path::new("/usr/sbin/pkcsconf"));
            done(&typed_into(
                command.args(["-c", "0"]).args(arguments),
                typed,
            ));
        }
        there
    }

    /// A TPM in software and its resource manager, its bus named in a profile of its own.
    pub(crate) fn tpm2(directory: &Path) -> Self {
        let place = directory.join("tpm2");
        let options = ["--net", "--pid", "--fork", "--kill-child"];
        let daemon = namespace(&options, "tpm2", &place);
        let ready = place.join("ready");
        let shipped = include_str!("../hsm-profiles/tpm2-pkcs11.toml");
        let system = "TPM2_PKCS11_TCTI = \"tabrmd:\"";
        assert!(shipped.contains(system), "the shipped profile has changed");
        let own = format!(
            "TPM2_PKCS11_TCTI = \"tabrmd:bus_type=session\"\nDBUS_SESSION_BUS_ADDRESS = \"unix:path={}/bus\"",
            place.display()
        );
        let profile = directory.join("tpm2-pkcs11.toml");
        std::fs::write(&profile, shipped.replace(system, &own)).unwrap();
        let there = Self {
            _daemon: Some(daemon),
            profile: Some(profile),
            ..Self::default()
        };
        wait_for("tpm2-abrmd", Duration::from_secs(20), || ready.exists());
        there
    }

    /// NSS's databases, with the PIN of the file.
    pub(crate) fn nss(directory: &Path) -> Self {
        let databases = format!("sql:{}", directory.display());
        let mut command = Command::new("certutil");
        command.args(["-N", "-d", &databases, "-f"]);
        done(&command.arg(directory.join("pin")).output().unwrap());
        Self::default()
    }

    /// The program that drives such a token: `ekm`, or what starts it where the token is.
    pub(crate) fn program(&self) -> PathBuf {
        self.program.clone().unwrap_or_else(|| EKM.into())
    }

    /// The profile, where it is not the shipped one of the kind.
    pub(crate) fn profile(&self) -> Option<String> {
        let path = self.profile.as_ref()?;
        Some(path.display().to_string())
    }

    /// A program, started where the token is.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let Some(pid) = self.namespace else {
            return Command::new(program);
        };
        let mut command = Command::new("nsenter");
        command.arg("--target").arg(pid.to_string());
        command.args(["--mount", "--ipc", "--"]).arg(program);
        command
    }
}

/// Starts `integration/tokens/NAME PLACE` in new namespaces.
fn namespace(options: &[&str], name: &str, place: &Path) -> Daemon {
    std::fs::create_dir(place).unwrap();
    let child = Command::new("unshare")
        .args(options)
        .arg(
            Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("integration/tokens")
                .join(name),
        )
        .arg(place)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    Daemon(child)
}

fn typed_into(command: &mut Command, text: &str) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    // One that asks for nothing may have ended; its status tells.
    let _ = std::io::Write::write_all(&mut input, format!("{text}\n").as_bytes());
    drop(input);
    child.wait_with_output().unwrap()
}

fn done(output: &Output) {
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The PIN files of a token.
pub(crate) fn pins(directory: &Path, kind: Kind) {
    write_private(&directory.join("pin"), kind.pin());
    write_private(&directory.join("so-pin"), "12345678");
}
