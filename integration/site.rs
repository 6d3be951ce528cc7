//! A site with its doors: `ekm serve` as a process, its configuration file, its certificates.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ekm::admin::{self, DriveChange};
use ekm::client::KeyClient;
use ekm::config::TokenConfig;
use ekm::keystore::Custody;
use ekm::server::ask;
use ekm::tls::ca::{Ca, Request};
use ekm::tls::{ClientPaths, ClientTls, PeerId};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::support::{EKM, Hsm, TestDrive};

/// How long the certificates are good for.
const VALIDITY: Duration = Duration::from_secs(24 * 3600);

/// A running server; killed where a test ends without [`Site::stop`].
pub(crate) struct Site {
    /// Everything of the site: `ekm.toml`, `state`, `audit`, `tls`, and what the server logs, `serve.log`.
    pub(crate) directory: TempDir,
    /// Address and port of the drives' door.
    pub(crate) address: String,
    pub(crate) child: Child,
    ca: Ca,
}

impl Site {
    /// Starts a server over the tokens, named `main`, `second` …, and waits until they are ready.
    /// `policy` is the end of its `ekm.toml`, `[policy]` and what follows; it may be empty.
    pub(crate) async fn start(tokens: &[&Hsm], policy: &str) -> Self {
        let names = ["main", "second", "third"];
        let tokens = tokens
            .iter()
            .zip(names)
            .map(|(hsm, name)| hsm.config(name))
            .collect();
        Self::over(tokens, policy).await
    }

    /// Starts a server over tokens that are configured already, and waits until they are ready.
    pub(crate) async fn over(tokens: Vec<TokenConfig>, policy: &str) -> Self {
        let site = Self::launch(&tokens, policy);
        site.ready().await;
        site
    }

    /// Starts a server over tokens that need not be there, and waits until it listens.
    pub(crate) fn launch(tokens: &[TokenConfig], policy: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let ca = certify(&directory.path().join("tls"));
        configure(&directory.path().join("ekm.toml"), tokens, policy);
        let (child, address) = serve(directory.path());
        Self {
            directory,
            address,
            child,
            ca,
        }
    }

    /// Process id of the server.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The configuration file.
    pub(crate) fn config(&self) -> PathBuf {
        self.directory.path().join("ekm.toml")
    }

    /// A client with a certificate of that peer; one connection for each client.
    pub(crate) fn client(&self, peer: &PeerId) -> KeyClient {
        let issued = self
            .ca
            .issue(&Request::new(peer.clone(), VALIDITY))
            .unwrap();
        KeyClient::new(
            &self.address,
            &self.ca.cert_path(),
            &issued.cert_path.unwrap(),
            &issued.key_path.unwrap(),
        )
        .unwrap()
    }

    /// What a proxy connects with that has a certificate of that peer.
    pub(crate) fn client_tls(&self, peer: &PeerId) -> ClientTls {
        let issued = self
            .ca
            .issue(&Request::new(peer.clone(), VALIDITY))
            .unwrap();
        ClientTls::load(ClientPaths {
            ca: self.ca.cert_path(),
            certificate: issued.cert_path.unwrap(),
            key: issued.key_path.unwrap(),
        })
        .unwrap()
    }

    /// Runs the command line beside the server and returns what it says; it must succeed.
    pub(crate) fn ekm(&self, arguments: &[&str]) -> String {
        let output = Command::new(EKM)
            .arg("--config")
            .arg(self.config())
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "ekm {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// Puts an operator's command to the server.
    pub(crate) async fn execute(&self, command: &admin::Command) -> admin::Reply {
        ask(&self.directory.path().join("state/ekm.sock"), command)
            .await
            .unwrap()
    }

    /// Makes a KEK of custody `token` on the only token.
    pub(crate) async fn generate(&self, label: &str) {
        self.execute(&admin::Command::KekGenerate {
            sign: false,
            label: label.parse().unwrap(),
            bits: 2048,
            token: None,
            custody: Custody::Token,
        })
        .await;
    }

    /// Puts a drive into the table, as its row says.
    pub(crate) async fn enrol(&self, drive: &TestDrive) {
        let row = drive.row.clone();
        self.execute(&admin::Command::DriveAdd {
            serial: row.serial,
            change: Box::new(DriveChange {
                wwn: row.wwn,
                kek1: admin::Change::given(row.kek1),
                kek2: admin::Change::given(row.kek2),
                key: Some(row.key),
                form: Some(row.form),
                custody: Some(row.custody),
                speakers: Some(row.speakers),
                no_speakers: Vec::new(),
                accept: false,
            }),
        })
        .await;
    }

    /// Waits until no token is starting; all must be ready then.
    pub(crate) async fn ready(&self) {
        let begin = Instant::now();
        loop {
            let admin::Reply::Tokens(tokens) = self.execute(&admin::Command::TokenStatus).await
            else {
                panic!("the server gave an answer of another kind");
            };
            if tokens.iter().all(|token| token.state == "ready") {
                return;
            }
            let starting = tokens.iter().any(|token| token.state == "starting");
            assert!(
                starting && begin.elapsed() < Duration::from_secs(60),
                "the tokens are not ready: {tokens:?}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Kills the server, `kill -9`, and starts it anew; it is not waited for its tokens.
    pub(crate) fn kill_and_restart(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let (child, address) = serve(self.directory.path());
        self.child = child;
        self.address = address;
    }

    /// Stops the server as systemd would. It must end well.
    pub(crate) fn stop(mut self) {
        self.terminate();
    }

    /// Stops the server, and leaves its directory to be looked at.
    pub(crate) fn terminate(&mut self) {
        let pid = Pid::from_raw(i32::try_from(self.pid()).unwrap()).unwrap();
        kill_process(pid, Signal::TERM).unwrap();
        let status = self.child.wait().unwrap();
        assert!(status.success(), "the server ended with {status}");
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        // Of no use where it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.directory.path().join("serve.log"));
            eprintln!("what the server logged:\n{}", log.unwrap_or_default());
        }
    }
}

/// A certificate authority, and the server's certificate in `issued`.
pub(crate) fn certify(directory: &Path) -> Ca {
    // What it certifies in the course of a test may not outlive it.
    let ca = Ca::init(directory, "test", VALIDITY * 2).unwrap();
    let server = "server:test".parse().unwrap();
    ca.issue(&Request::new(server, VALIDITY)).unwrap();
    ca
}

/// Writes the configuration of a site over these tokens.
pub(crate) fn configure(path: &Path, tokens: &[TokenConfig], policy: &str) {
    // The handshakes of a thousand clients at once take a slow machine long.
    let doors = r#"node = "test"
state = "state"
audit = "audit"

[server]
listen = "127.0.0.1:0"
certificate = "tls/issued/server-test.crt"
key = "tls/issued/server-test.key"
client_ca = "tls/ca.crt"
crl = "tls/crl.pem"
handshake_seconds = 60
"#;
    let tokens = toml::to_string(&BTreeMap::from([("tokens", tokens)])).unwrap();
    std::fs::write(path, [doors, &tokens, policy].join("\n")).unwrap();
}

/// Starts the server and waits for its address.
fn serve(directory: &Path) -> (Child, String) {
    let log = directory.join("serve.log");
    let mut child = Command::new(EKM)
        .arg("--config")
        .arg(directory.join("ekm.toml"))
        .arg("serve")
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(std::fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let Some(address) = line.trim().strip_prefix("listening on https://") else {
        let _ = child.kill();
        let _ = child.wait();
        panic!(
            "the server did not start:\n{}",
            std::fs::read_to_string(&log).unwrap_or_default()
        );
    };
    let address = address.to_owned();
    (child, address)
}
