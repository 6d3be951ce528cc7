//! The door for drives and proxies, as its peers meet it: a real server
//! process, TLS on loopback, and peers that are clumsy, slow or hostile.

use std::io::Read as _;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ekm::api::{Base64, CreateAnswer, CreateRequest, DriveInRequest};
use ekm::client::{ClientError, KeyClient};
use ekm::drive::DriveSerial;
use ekm::problem::{EkmCode, Problem};
use ekm::softdrive::SoftDrive;
use rustix::process::{Pid, Signal, kill_process};
use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject as _;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use uuid::Uuid;

use crate::support::{EKM, PIN, wait_for, write_private};

/// Long enough for a loaded machine, short enough to see a hang.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A site in a directory: a small CA, an embedded token with one KEK, a
/// configuration; everything made by the program itself.
pub(crate) struct House {
    directory: TempDir,
}

impl House {
    /// A site whose `[server]` has these lines besides, and that ends with `rest`.
    pub(crate) fn new(server: &str, rest: &str) -> Self {
        let house = Self::bare(server, rest);
        house.done(&["kek", "generate", "KEK1", "--bits", "2048"]);
        house.done(&["kek", "default", "--kek1", "KEK1"]);
        house
    }

    /// The same without a KEK.
    pub(crate) fn bare(server: &str, rest: &str) -> Self {
        let house = Self {
            directory: tempfile::tempdir().unwrap(),
        };
        house.done(&["tls", "init"]);
        house.done(&["tls", "issue", "ekm1", "--role", "server"]);
        write_private(&house.at("so-pin"), "12345678");
        write_private(&house.at("pin"), PIN);
        house.configure(server, rest);
        house.done(&[
            "slot",
            "init",
            "--profile",
            "embedded",
            "--label",
            "house",
            "--so-pin-file",
            "so-pin",
            "--pin-file",
            "pin",
        ]);
        house
    }

    /// Writes the configuration anew.
    pub(crate) fn configure(&self, server: &str, rest: &str) {
        let text = format!(
            r#"node = "house"
state = "state"
audit = "audit"

[server]
listen = "127.0.0.1:0"
certificate = "tls/issued/server-ekm1.crt"
key = "tls/issued/server-ekm1.key"
client_ca = "tls/ca.crt"
crl = "tls/crl.pem"
drive_ca = "tls/ca.crt"
{server}

[[tokens]]
name = "main"
profile = "embedded"
uri = "pkcs11:token=house"
pin = {{ file = "pin" }}
directory = "token"

{rest}
"#
        );
        std::fs::write(self.at("ekm.toml"), text).unwrap();
    }

    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The program in this directory, with nothing of the tester's surroundings.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(EKM);
        command
            .args(arguments)
            .current_dir(self.directory.path())
            .env_remove("EKM_CONFIG")
            .env_remove("EKM_SOFTDRIVE")
            .env_remove("RUST_LOG")
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs what must succeed, and gives its standard output.
    pub(crate) fn done(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(
            output.status.success(),
            "ekm {}: {}\n{}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// Starts the server and waits until its token is ready.
    pub(crate) async fn serve(&self) -> Serving {
        let serving = self.serve_command(self.command(&["serve"])).await;
        let mut client = self.client_of(&serving, &self.identity("operator", "watcher"));
        let start = Instant::now();
        while client.get("/readyz").await.unwrap().0 != 200 {
            assert!(start.elapsed() < PATIENCE, "not ready:\n{}", serving.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        serving
    }

    /// Starts the server and waits until it listens.
    pub(crate) async fn serve_command(&self, command: Command) -> Serving {
        let serving = self.launch(command, "server.log").await;
        serving.unwrap_or_else(|said| panic!("{said}"))
    }

    /// The same with a log of that name; what it said where it does not listen.
    pub(crate) async fn launch(&self, mut command: Command, log: &str) -> Result<Serving, String> {
        let log = self.at(log);
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let out = child.stdout.take().unwrap();
        let line = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).unwrap();
            line
        })
        .await
        .unwrap();
        let serving = Serving {
            address: line
                .trim()
                .strip_prefix("listening on https://")
                .unwrap_or_default()
                .to_owned(),
            child,
            log,
        };
        if serving.address.is_empty() {
            return Err(format!("{line}\n{}", serving.log()));
        }
        Ok(serving)
    }

    /// A peer's certificate; issued where there is none.
    pub(crate) fn identity(&self, role: &str, name: &str) -> Identity {
        let file = |end: &str| self.at(&format!("tls/issued/{role}-{name}.{end}"));
        if !file("crt").exists() {
            self.done(&["tls", "issue", name, "--role", role]);
        }
        Identity {
            ca: self.at("tls/ca.crt"),
            certificate: file("crt"),
            key: file("key"),
        }
    }

    pub(crate) fn client_of(&self, serving: &Serving, identity: &Identity) -> KeyClient {
        let Identity {
            ca,
            certificate,
            key,
        } = identity;
        KeyClient::new(&serving.address, ca, certificate, key).unwrap()
    }

    /// A drive that is enrolled by its public key, with a certificate for the door.
    pub(crate) fn drive(&self, n: u32) -> HouseDrive {
        let drive = self.unknown_drive(n);
        let pem = format!("drive{n}.pem");
        let key = self.done(&["softdrive", "key", &drive.directory]);
        std::fs::write(self.at(&pem), key).unwrap();
        let serial = drive.serial.to_string();
        self.done(&["drive", "add", &serial, "--wwn", &drive.wwn, "--key", &pem]);
        drive
    }

    /// A drive that is not in the drive table.
    pub(crate) fn unknown_drive(&self, n: u32) -> HouseDrive {
        let serial = format!("{n:012}");
        let (directory, wwn) = (format!("drive{n}"), format!("50050763{n:08X}"));
        self.done(&[
            "softdrive",
            "init",
            &directory,
            "--serial",
            &serial,
            "--wwn",
            &wwn,
        ]);
        HouseDrive {
            identity: self.identity("drive", &serial),
            soft: SoftDrive::open(&self.at(&directory)).unwrap(),
            serial: serial.parse().unwrap(),
            directory,
            wwn,
        }
    }
}

/// The files of a TLS peer.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) ca: PathBuf,
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

/// A software drive of the site.
pub(crate) struct HouseDrive {
    pub(crate) identity: Identity,
    pub(crate) soft: SoftDrive,
    pub(crate) serial: DriveSerial,
    pub(crate) directory: String,
    pub(crate) wwn: String,
}

impl HouseDrive {
    pub(crate) fn create(&self) -> CreateRequest {
        CreateRequest {
            job: None,
            request_id: Uuid::new_v4(),
            drive: DriveInRequest {
                serial: self.serial.clone(),
                stores_eedks: true,
                public_key: Some(Base64(self.soft.public_key_spki().to_vec())),
                session_key: None,
            },
            volser: "VOL001".parse().unwrap(),
            kek1: None,
            kek2: None,
        }
    }
}

/// A running server; killed when a test fails under it.
pub(crate) struct Serving {
    pub(crate) address: String,
    child: Child,
    log: PathBuf,
}

impl Serving {
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    fn ended(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "still there:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends it at once, as `kill -9` does, and waits until it is gone.
    pub(crate) fn kill(mut self) {
        self.signal(Signal::KILL);
        self.ended();
    }

    /// Stops it as systemd would.
    pub(crate) fn stop(mut self) {
        self.signal(Signal::TERM);
        let status = self.ended();
        assert!(status.success(), "{status}\n{}", self.log());
    }

    /// Waits until its log says something that many times.
    pub(crate) fn says(&self, text: &str, times: usize) {
        wait_for(&format!("{text:?} in the log"), PATIENCE, || {
            self.log().matches(text).count() >= times
        });
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A TLS connection without the manners of a client.
async fn connect(
    address: &str,
    config: rustls::ClientConfig,
) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from("127.0.0.1").unwrap();
    TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
}

pub(crate) async fn open(
    address: &str,
    identity: &Identity,
) -> std::io::Result<TlsStream<TcpStream>> {
    let config = ekm::tls::client_config(&identity.ca, &identity.certificate, &identity.key);
    connect(address, config.unwrap()).await
}

/// What came back: status, head, body.
#[derive(Debug)]
pub(crate) struct Heard {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Heard {
    pub(crate) fn problem(&self) -> Problem {
        assert!(
            self.head.contains("content-type: application/problem+json"),
            "{}",
            self.head
        );
        let problem: Problem = serde_json::from_slice(&self.body).unwrap();
        assert_eq!(problem.status, self.status);
        assert_eq!(problem.kind, format!("urn:ekm:code:{}", problem.code));
        assert!(problem.detail.len() > 10, "{problem}");
        problem
    }
}

/// Reads one answer; none where the connection ends first.
pub(crate) async fn hear(stream: &mut TlsStream<TcpStream>) -> Option<Heard> {
    let heard = tokio::time::timeout(PATIENCE, hear_all(stream)).await;
    heard.expect("the server neither answers nor closes")
}

async fn hear_all(stream: &mut TlsStream<TcpStream>) -> Option<Heard> {
    let mut text = Vec::new();
    let end = loop {
        if let Some(at) = text.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        text.push(stream.read_u8().await.ok()?);
    };
    let head = String::from_utf8(text[..end].to_vec())
        .unwrap()
        .to_ascii_lowercase();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some(Heard { status, head, body })
}

/// Whether the server closes the connection without a word.
pub(crate) async fn closed(stream: &mut TlsStream<TcpStream>) -> bool {
    hear(stream).await.is_none()
}

pub(crate) fn post(path: &str, body: &[u8]) -> Vec<u8> {
    let mut request = format!(
        "POST {path} HTTP/1.1\r\nhost: ekm\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    request.extend_from_slice(body);
    request
}

/// Says that on a connection of its own.
pub(crate) async fn say(serving: &Serving, identity: &Identity, request: &[u8]) -> Option<Heard> {
    let mut stream = open(&serving.address, identity).await.unwrap();
    // The server may close before it has taken everything in.
    let _ = stream.write_all(request).await;
    hear(&mut stream).await
}

async fn created(client: &mut KeyClient, drive: &HouseDrive) -> CreateAnswer {
    client.create(&drive.create()).await.unwrap()
}

pub(crate) const GET_HEALTH: &[u8] = b"GET /healthz HTTP/1.1\r\nhost: ekm\r\n\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn without_a_certificate_of_the_ca_there_is_no_entry() {
    let house = House::new("", "");
    let serving = house.serve().await;
    let own = house.identity("proxy", "host1");
    assert_eq!(say(&serving, &own, GET_HEALTH).await.unwrap().status, 200);

    let mut roots = rustls::RootCertStore::empty();
    let ca = rustls::pki_types::CertificateDer::from_pem_file(&own.ca).unwrap();
    roots.add(ca).unwrap();
    let nobody = rustls::ClientConfig::builder_with_provider(Arc::new(
        rustls::crypto::aws_lc_rs::default_provider(),
    ))
    .with_safe_default_protocol_versions()
    .unwrap()
    .with_root_certificates(roots)
    .with_no_client_auth();
    // In TLS 1.3 the client is done before the server has judged it.
    match connect(&serving.address, nobody).await {
        Ok(mut stream) => {
            let _ = stream.write_all(GET_HEALTH).await;
            assert!(closed(&mut stream).await);
        }
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::InvalidData),
    }

    house.done(&["tls", "init", "--ca-dir", "foreign"]);
    house.done(&[
        "tls", "issue", "host1", "--role", "proxy", "--ca-dir", "foreign",
    ]);
    let foreign = Identity {
        ca: own.ca.clone(),
        certificate: house.at("foreign/issued/proxy-host1.crt"),
        key: house.at("foreign/issued/proxy-host1.key"),
    };
    match open(&serving.address, &foreign).await {
        Ok(mut stream) => {
            let _ = stream.write_all(GET_HEALTH).await;
            assert!(closed(&mut stream).await);
        }
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::InvalidData),
    }

    // Another server comes in, and is given nothing that the configuration does not say.
    let server = house.identity("server", "ekm1");
    let tables = b"GET /v1/sync/head HTTP/1.1\r\nhost: ekm\r\n\r\n";
    assert_eq!(say(&serving, &server, tables).await.unwrap().status, 403);
    serving.says("TLS handshake", 2);
    assert_eq!(say(&serving, &own, GET_HEALTH).await.unwrap().status, 200);
    serving.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_speaks_another_protocol_is_closed_with_a_word_in_the_log() {
    let house = House::new("", "");
    let serving = house.serve().await;
    for noise in [
        b"GET /healthz HTTP/1.1\r\nhost: ekm\r\n\r\n".as_slice(),
        b"\0\0\0\x40EKM?",
        b"\xff",
    ] {
        let mut stream = TcpStream::connect(&serving.address).await.unwrap();
        stream.write_all(noise).await.unwrap();
        let mut answer = Vec::new();
        let end = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
        // Closed with bytes unread, which the peer may see as a reset.
        let _ = end.expect("the connection stays open");
        assert!(answer.is_empty(), "{answer:?}");
    }
    serving.says("does not speak TLS", 3);
    assert!(serving.log().contains("IBM's own protocol"));
    serving.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_and_slow_peers_delay_nobody_and_are_closed() {
    let house = House::new("handshake_seconds = 2\nrequest_seconds = 30", "");
    let drive = house.drive(1);
    let serving = house.serve().await;
    let mut silent = Vec::new();
    for _ in 0..50 {
        silent.push(TcpStream::connect(&serving.address).await.unwrap());
    }
    let mut handshaken = open(&serving.address, &drive.identity).await.unwrap();
    let mut slow_head = open(&serving.address, &drive.identity).await.unwrap();
    slow_head
        .write_all(b"POST /v1/keys/create HTTP/1.1\r\nhost: e")
        .await
        .unwrap();
    let mut slow_body = open(&serving.address, &drive.identity).await.unwrap();
    let request = post(
        "/v1/keys/create",
        &serde_json::to_vec(&drive.create()).unwrap(),
    );
    let (most, rest) = request.split_at(request.len() - 20);
    slow_body.write_all(most).await.unwrap();

    let mut client = house.client_of(&serving, &drive.identity);
    created(&mut client, &drive).await;

    // The body trickles in, and that does not keep the request alive.
    let (mut reads, mut writes) = tokio::io::split(slow_body);
    let rest = rest.to_vec();
    let trickle = tokio::spawn(async move {
        for byte in rest {
            tokio::time::sleep(Duration::from_millis(700)).await;
            if writes.write_all(&[byte]).await.is_err() {
                return;
            }
        }
    });
    let mut answer = Vec::new();
    let end = tokio::time::timeout(Duration::from_secs(12), reads.read_to_end(&mut answer)).await;
    let _ = end.expect("a trickling body holds its connection");
    trickle.abort();
    let answer = String::from_utf8_lossy(&answer).to_ascii_lowercase();
    assert!(
        answer.starts_with("http/1.1 408") || answer.is_empty(),
        "{answer}"
    );

    assert!(closed(&mut handshaken).await);
    let late = hear(&mut slow_head).await;
    assert!(
        late.as_ref().is_none_or(|late| late.status == 408),
        "{late:?}"
    );
    for mut stream in silent {
        let end = tokio::time::timeout(PATIENCE, stream.read_u8()).await;
        assert!(end.expect("a silent connection stays open").is_err());
    }
    serving.says("no TLS handshake in time", 50);
    created(&mut client, &drive).await;
    serving.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_understood_gets_a_problem_with_a_code_and_a_sentence() {
    let house = House::new("", "");
    let drive = house.drive(1);
    let serving = house.serve().await;
    let good = serde_json::to_value(drive.create()).unwrap();
    let edited = |edit: &dyn Fn(&mut serde_json::Value)| {
        let mut value = good.clone();
        edit(&mut value);
        serde_json::to_vec(&value).unwrap()
    };
    let create = "/v1/keys/create";
    let cases: Vec<(&str, u16, Vec<u8>)> = vec![
        ("malformed", 400, post(create, b"{\"request_id\": ")),
        ("no JSON", 400, post(create, b"\xff\xfe\0")),
        ("nothing", 400, post(create, b"")),
        ("deep", 422, post(create, "[".repeat(60_000).as_bytes())),
        ("an array", 422, post(create, b"[]")),
        (
            "a number for a volser",
            422,
            post(create, &edited(&|v| v["volser"] = 7.into())),
        ),
        (
            "a long volser",
            422,
            post(create, &edited(&|v| v["volser"] = "VOL0001".into())),
        ),
        (
            "a serial of another form",
            422,
            post(
                create,
                &edited(&|v| v["drive"]["serial"] = "../../etc".into()),
            ),
        ),
        (
            "base64 that is none",
            422,
            post(create, &edited(&|v| v["drive"]["public_key"] = "%%".into())),
        ),
        (
            "no UUID",
            422,
            post(create, &edited(&|v| v["request_id"] = "1".into())),
        ),
        (
            "an unknown field",
            422,
            post(create, &edited(&|v| v["kek3"] = "X".into())),
        ),
        (
            "an unknown field further in",
            422,
            post(create, &edited(&|v| v["drive"]["wwn"] = "X".into())),
        ),
        (
            "a missing field",
            422,
            post(
                create,
                &edited(&|v| drop(v.as_object_mut().unwrap().remove("drive"))),
            ),
        ),
        (
            "a field twice",
            422,
            post(create, br#"{"volser":"A","volser":"B"}"#),
        ),
        ("an unknown route", 404, post("/v2/keys/create", b"{}")),
        (
            "the wrong method",
            405,
            b"GET /v1/keys/create HTTP/1.1\r\nhost: ekm\r\n\r\n".to_vec(),
        ),
        (
            "another content type",
            415,
            b"POST /v1/keys/create HTTP/1.1\r\nhost: ekm\r\ncontent-length: 2\r\n\r\n{}".to_vec(),
        ),
        (
            "an oversized body",
            413,
            post(create, &[b"[\"".as_slice(), &[b'a'; 65 * 1024]].concat()),
        ),
    ];
    for (what, status, request) in cases {
        let heard = say(&serving, &drive.identity, &request).await;
        let heard = heard.unwrap_or_else(|| panic!("{what}: no answer"));
        assert_eq!(heard.status, status, "{what}: {}", heard.head);
        let problem = heard.problem();
        assert_eq!(problem.code, EkmCode::EE23, "{what}: {problem}");
    }
    // A chunked body has no length to be judged by beforehand.
    let mut chunked =
        b"POST /v1/keys/create HTTP/1.1\r\nhost: ekm\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
            .to_vec();
    for _ in 0..70 {
        chunked.extend_from_slice(b"400\r\n");
        chunked.extend_from_slice(&[b' '; 1024]);
        chunked.extend_from_slice(b"\r\n");
    }
    let heard = say(&serving, &drive.identity, &chunked).await.unwrap();
    assert_eq!(heard.status, 413);
    assert_eq!(heard.problem().code, EkmCode::EE23);

    // Heads over the limit never reach a route.
    for head in [
        format!("x: {}\r\n", "a".repeat(64 * 1024)),
        "x: a\r\n".repeat(1000),
    ] {
        let request = format!("GET /healthz HTTP/1.1\r\nhost: ekm\r\n{head}\r\n");
        let heard = say(&serving, &drive.identity, request.as_bytes()).await;
        assert!(
            heard.as_ref().is_none_or(|heard| heard.status == 431),
            "{heard:?}"
        );
    }
    let mut client = house.client_of(&serving, &drive.identity);
    created(&mut client, &drive).await;
    serving.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_describes_itself_and_says_how_it_is() {
    let house = House::new("", "");
    let serving = house.serve().await;
    let mut client = house.client_of(&serving, &house.identity("proxy", "host1"));
    let (status, text) = client.get("/v1/openapi.json").await.unwrap();
    assert_eq!(status, 200);
    let document: serde_json::Value = serde_json::from_slice(&text).unwrap();
    for verb in ["create", "resolve", "rekey", "confirm"] {
        let route = &document["paths"][format!("/v1/keys/{verb}")]["post"];
        assert!(route["requestBody"].is_object(), "{verb}: {route}");
    }
    // What it refers to is in it.
    let text = document.to_string();
    for (at, start) in text.match_indices("\"$ref\":\"#") {
        let path: String = text[at + start.len()..]
            .chars()
            .take_while(|c| *c != '"')
            .collect();
        assert!(document.pointer(&path).is_some(), "{path} leads nowhere");
    }
    assert_eq!(client.get("/healthz").await.unwrap().0, 200);
    assert_eq!(client.get("/readyz").await.unwrap().0, 200);
    serving.stop();

    // Without its token the process lives and says that it cannot serve.
    std::fs::rename(house.at("token"), house.at("token-away")).unwrap();
    let serving = house.serve_command(house.command(&["serve"])).await;
    let identity = house.identity("proxy", "host1");
    serving.says("token=\"main\"", 1);
    let ready = b"GET /readyz HTTP/1.1\r\nhost: ekm\r\n\r\n";
    let heard = say(&serving, &identity, ready).await.unwrap();
    assert_eq!(heard.status, 503);
    assert!(heard.head.contains("retry-after: "), "{}", heard.head);
    assert_eq!(heard.problem().code, EkmCode::EE0F);
    assert!(heard.problem().detail.contains("main"), "{heard:?}");
    assert_eq!(
        say(&serving, &identity, GET_HEALTH).await.unwrap().status,
        200
    );
    serving.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_peer_gets_nothing_more_and_another_goes_on() {
    let house = House::new("", "");
    let (good, bad) = (house.drive(1), house.drive(2));
    let serving = house.serve().await;
    let mut client = house.client_of(&serving, &good.identity);
    created(&mut client, &good).await;
    let request = |drive: &HouseDrive| {
        post(
            "/v1/keys/create",
            &serde_json::to_vec(&drive.create()).unwrap(),
        )
    };
    let mut used = open(&serving.address, &bad.identity).await.unwrap();
    used.write_all(&request(&bad)).await.unwrap();
    assert_eq!(hear(&mut used).await.unwrap().status, 200);
    let mut fresh = open(&serving.address, &bad.identity).await.unwrap();

    house.done(&["tls", "revoke", &format!("drive:{}", bad.serial)]);
    serving.says("certificates taken in anew", 1);
    for stream in [&mut used, &mut fresh] {
        let _ = stream.write_all(&request(&bad)).await;
        assert!(closed(stream).await, "a revoked peer was answered");
    }
    for _ in 0..3 {
        if let Ok(mut stream) = open(&serving.address, &bad.identity).await {
            let _ = stream.write_all(&request(&bad)).await;
            assert!(closed(&mut stream).await, "a revoked peer was answered");
        }
    }
    // Connections that are made after a reload live as long as any.
    let mut stream = open(&serving.address, &good.identity).await.unwrap();
    for _ in 0..3 {
        stream.write_all(&request(&good)).await.unwrap();
        let heard = hear(&mut stream).await;
        let heard = heard.unwrap_or_else(|| panic!("closed:\n{}", serving.log()));
        assert_eq!(heard.status, 200);
    }
    created(&mut client, &good).await;
    serving.stop();
}

/// A head or a body that was begun before the revocation must not bring a key after it.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_begun_before_a_revocation_brings_no_key_after_it() {
    let house = House::new("handshake_seconds = 60", "");
    let bad = house.drive(1);
    let serving = house.serve().await;
    let body = serde_json::to_vec(&bad.create()).unwrap();
    let request = post("/v1/keys/create", &body);
    let mut halves = Vec::new();
    for cut in [30, request.len() - body.len() / 2] {
        let mut stream = open(&serving.address, &bad.identity).await.unwrap();
        stream.write_all(&request[..cut]).await.unwrap();
        stream.flush().await.unwrap();
        halves.push((cut, stream));
    }
    house.done(&["tls", "revoke", &format!("drive:{}", bad.serial)]);
    serving.says("certificates taken in anew", 1);
    for (cut, mut stream) in halves {
        let _ = stream.write_all(&request[cut..]).await;
        let heard = hear(&mut stream).await;
        assert!(
            heard.as_ref().is_none_or(|heard| heard.status != 200),
            "cut at {cut}: a revoked peer got a key"
        );
    }
    serving.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_server_certificate_is_taken_in_without_a_restart() {
    let house = House::new("", "");
    let drive = house.drive(1);
    let serving = house.serve().await;
    let shown = async || {
        let stream = open(&serving.address, &drive.identity).await.unwrap();
        let (_, session) = stream.get_ref();
        session.peer_certificates().unwrap()[0].to_vec()
    };
    let before = shown().await;
    // A broken pair is not taken in, and harms nobody.
    let certificate = house.at("tls/issued/server-ekm1.crt");
    let whole = std::fs::read(&certificate).unwrap();
    std::fs::write(&certificate, "-----BEGIN CERT").unwrap();
    serving.says("were not taken in", 1);
    assert_eq!(shown().await, before);
    std::fs::write(&certificate, whole).unwrap();
    serving.says("certificates taken in anew", 1);
    house.done(&["tls", "issue", "ekm1", "--role", "server"]);
    wait_for_async("the new certificate", async || shown().await != before).await;
    let mut client = house.client_of(&serving, &drive.identity);
    created(&mut client, &drive).await;
    created(&mut client, &drive).await;
    serving.stop();
}

async fn wait_for_async(what: &str, so: impl AsyncFn() -> bool) {
    let start = Instant::now();
    while !so().await {
        assert!(start.elapsed() < PATIENCE, "{what} did not come");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_answers_every_request_that_was_taken() {
    const REQUESTS: usize = 24;
    let house = House::new("handshake_seconds = 60", "");
    let drive = house.drive(1);
    let mut serving = house.serve().await;
    let mut taken = Vec::new();
    for _ in 0..REQUESTS {
        let body = serde_json::to_vec(&drive.create()).unwrap();
        let head = format!(
            "POST /v1/keys/create HTTP/1.1\r\nhost: ekm\r\ncontent-type: application/json\r\nexpect: 100-continue\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let mut stream = open(&serving.address, &drive.identity).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        // The server has taken the request when it asks for the body.
        assert_eq!(hear(&mut stream).await.unwrap().status, 100);
        taken.push((stream, body));
    }
    serving.signal(Signal::TERM);
    serving.says("stopping", 1);
    assert!(
        open(&serving.address, &drive.identity).await.is_err(),
        "a stopping server takes new connections"
    );
    let mut answers = tokio::task::JoinSet::new();
    for (mut stream, body) in taken {
        answers.spawn(async move {
            stream.write_all(&body).await.unwrap();
            let heard = hear(&mut stream)
                .await
                .expect("a taken request is answered");
            assert_eq!(heard.status, 200, "{}", heard.head);
            let answer: CreateAnswer = serde_json::from_slice(&heard.body).unwrap();
            answer.dki
        });
    }
    let keys: std::collections::HashSet<String> = answers
        .join_all()
        .await
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(keys.len(), REQUESTS);
    let status = serving.ended();
    assert_eq!(status.code(), Some(0), "{}", serving.log());
    house.done(&["audit", "verify"]);
    let records: Vec<ekm::audit::Record> = ekm::audit::read(&house.at("audit"))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    for key in keys {
        let recorded = records.iter().any(|record| {
            record.event.dki.as_deref() == Some(&key)
                && record.event.outcome == ekm::audit::Outcome::Success
        });
        assert!(recorded, "no record of {key}");
    }
    assert_eq!(records.last().unwrap().event.action, "stop");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_does_not_wait_for_who_says_nothing() {
    let house = House::new("handshake_seconds = 2\nstop_seconds = 5", "");
    let drive = house.drive(1);
    let mut serving = house.serve().await;
    let _silent = TcpStream::connect(&serving.address).await.unwrap();
    let _handshaken = open(&serving.address, &drive.identity).await.unwrap();
    let mut idle = house.client_of(&serving, &drive.identity);
    created(&mut idle, &drive).await;
    let start = Instant::now();
    serving.signal(Signal::TERM);
    assert_eq!(serving.ended().code(), Some(0));
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "{:?}",
        start.elapsed()
    );
    house.done(&["audit", "verify"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_servers_socket_is_replaced() {
    let house = House::new("", "");
    let mut serving = house.serve().await;
    serving.signal(Signal::KILL);
    serving.ended();
    assert!(house.at("state/ekm.sock").exists());
    // Nobody listens there, so the command does the work itself.
    house.done(&["drive", "list"]);
    let serving = house.serve().await;
    let stat = |path: PathBuf| std::os::unix::fs::MetadataExt::mode(&path.metadata().unwrap());
    assert_eq!(stat(house.at("state/ekm.sock")) & 0o777, 0o600);
    house.done(&["drive", "list"]);
    serving.stop();
    house.done(&["audit", "verify"]);
    // Something that is no socket at all.
    std::fs::remove_file(house.at("state/ekm.sock")).unwrap();
    let serving = house.serve().await;
    house.done(&["drive", "list"]);
    serving.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_server_on_the_same_state_is_refused() {
    let house = House::new("", "");
    let drive = house.drive(1);
    let serving = house.serve().await;
    let second = house.run(&["serve"]);
    assert_eq!(second.status.code(), Some(1));
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(
        said.contains("another ekm process works on this site"),
        "{said}"
    );
    // The first one is none the worse.
    let mut client = house.client_of(&serving, &drive.identity);
    created(&mut client, &drive).await;
    house.done(&["drive", "list"]);

    // The same state with records of its own is no way around.
    let text = std::fs::read_to_string(house.at("ekm.toml")).unwrap();
    std::fs::write(
        house.at("other.toml"),
        text.replace("audit = \"audit\"", "audit = \"other-audit\""),
    )
    .unwrap();
    let second = house.run(&["--config", "other.toml", "serve"]);
    assert_eq!(second.status.code(), Some(1));
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(said.contains("ekm.sock"), "{said}");
    house.done(&["drive", "list"]);
    serving.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn systemd_is_told_of_ready_and_of_stopping() {
    let house = House::new("", "");
    let notify = UnixDatagram::bind(house.at("notify")).unwrap();
    notify.set_read_timeout(Some(PATIENCE)).unwrap();
    let heard = || {
        let mut buffer = [0; 512];
        let length = notify.recv(&mut buffer).expect("systemd is told");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    let mut command = house.command(&["serve"]);
    command.env("NOTIFY_SOCKET", house.at("notify"));
    let serving = house.serve_command(command).await;
    assert!(heard().lines().any(|line| line == "READY=1"));
    serving.signal(Signal::TERM);
    assert!(heard().lines().any(|line| line == "STOPPING=1"));
    serving.stop_again();
}

impl Serving {
    /// Waits for the end of a server that was told to stop before.
    fn stop_again(mut self) {
        assert_eq!(self.ended().code(), Some(0), "{}", self.log());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drive_is_told_why_in_words_that_it_can_act_on() {
    let house = House::new("", "");
    let (known, unknown) = (house.drive(1), house.unknown_drive(2));
    let serving = house.serve().await;
    let mut client = house.client_of(&serving, &unknown.identity);
    let error = client.create(&unknown.create()).await.unwrap_err();
    let ClientError::Refused(problem) = error else {
        panic!("{error}");
    };
    assert_eq!(problem.code, EkmCode::EF01);
    assert!(problem.detail.contains("ekm drive add"), "{problem}");
    assert!(problem.request_id.is_some());
    // Another drive's certificate does not open the known drive's keys.
    let error = client.create(&known.create()).await.unwrap_err();
    assert!(
        matches!(&error, ClientError::Refused(problem) if problem.code == EkmCode::EE30),
        "{error}"
    );
    serving.stop();
}

/// Only the owner's processes may give commands over the socket.
#[test]
fn the_operators_socket_is_private() {
    let house = House::bare("", "");
    let state = house.at("state");
    house.done(&["drive", "list"]);
    let mode =
        |path: &Path| std::os::unix::fs::MetadataExt::mode(&path.metadata().unwrap()) & 0o777;
    assert_eq!(mode(&state), 0o700);
    // A socket that answers nonsense is an error with a name, not a hang or a panic.
    let listener = UnixListener::bind(state.join("ekm.sock")).unwrap();
    let fool = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut some = [0; 64];
        let _ = stream.read(&mut some);
        std::io::Write::write_all(&mut stream, b"220 mail.example ESMTP\r\n").unwrap();
    });
    let output = house.run(&["drive", "list"]);
    fool.join().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("ekm.sock"), "{said}");
}
