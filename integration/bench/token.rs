//! A token of the bench's own, and how modules are loaded for it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use ekm::config::TokenConfig;
use tempfile::TempDir;

/// User PIN of the token.
const PIN: &str = "4242-4242";

/// SoftHSM's module.
const SOFTHSM: &str = "/usr/lib/softhsm/libsofthsm2.so";

/// Where a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// SoftHSM, loaded into the process that uses it.
    Softhsm,
    /// SoftHSM behind `p11-kit server`.
    SofthsmBehindP11Kit,
}

impl Kind {
    fn profile(self) -> &'static str {
        match self {
            Self::Softhsm => "softhsm2",
            Self::SofthsmBehindP11Kit => "p11-kit-remote",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Softhsm => "SoftHSM in process",
            Self::SofthsmBehindP11Kit => "SoftHSM behind p11-kit",
        })
    }
}

/// An initialised token in a directory of its own.
#[derive(Debug)]
pub(crate) struct Token {
    kind: Kind,
    directory: TempDir,
    server: Option<Child>,
}

impl Token {
    /// Makes a token.
    pub(crate) fn new(ekm: &Path, kind: Kind) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let at = |name: &str| directory.path().join(name);
        ekm::files::write_private(&at("pin"), PIN.as_bytes())?;
        ekm::files::write_private(&at("so-pin"), b"12345678")?;
        let server = match kind {
            Kind::Softhsm => None,
            Kind::SofthsmBehindP11Kit => Some(p11_kit_server(directory.path())?),
        };
        let output = Command::new(ekm)
            .args(["slot", "init", "--label", "bench", "--profile"])
            .arg(kind.profile())
            .arg("--directory")
            .arg(directory.path())
            .arg("--so-pin-file")
            .arg(at("so-pin"))
            .arg("--pin-file")
            .arg(at("pin"))
            .output()
            .with_context(|| format!("cannot run {}", ekm.display()))?;
        if !output.status.success() {
            bail!(
                "the token cannot be made: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(Self {
            kind,
            directory,
            server,
        })
    }

    /// The token in a configuration.
    pub(crate) fn config(&self) -> anyhow::Result<TokenConfig> {
        let text = format!(
            "name = \"bench\"\nprofile = \"{}\"\nuri = \"pkcs11:token=bench\"\npin = {{ file = \"{}\" }}\ndirectory = \"{}\"\n",
            self.kind.profile(),
            self.pin().display(),
            self.directory.path().display()
        );
        Ok(toml::from_str(&text)?)
    }

    /// The file with its user PIN.
    pub(crate) fn pin(&self) -> PathBuf {
        self.directory.path().join("pin")
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        if let Some(server) = &mut self.server {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

/// SoftHSM behind a socket, `pkcs11.sock` in the directory.
fn p11_kit_server(directory: &Path) -> anyhow::Result<Child> {
    std::fs::create_dir_all(directory.join("tokens"))?;
    let conf = directory.join("server-softhsm2.conf");
    std::fs::write(
        &conf,
        format!(
            "directories.tokendir = {}/tokens\nlog.level = ERROR\n",
            directory.display()
        ),
    )?;
    let socket = directory.join("pkcs11.sock");
    let child = Command::new("p11-kit")
        .args(["server", "--foreground", "--name"])
        .arg(&socket)
        .args(["--provider", SOFTHSM, "pkcs11:"])
        .env("SOFTHSM2_CONF", conf)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot run p11-kit")?;
    let start = Instant::now();
    while !socket.exists() {
        if start.elapsed() > Duration::from_secs(20) {
            bail!("p11-kit server does not listen");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(child)
}
