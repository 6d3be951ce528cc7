//! A peer that has the right certificate and gives wrong answers: each gets a clear error and
//! changes nothing.

use std::sync::Arc;
use std::time::Duration;

use ekm::problem::{EkmCode, Problem};
use ekm::store::merge::{DefaultsRow, DriveRow};
use ekm::store::{Defaults, Drive, DriveKey, DriveState, Sql, Store as _};
use ekm::sync::wire::{Extent, Head, Measure, VERSION};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::Twins;
use crate::door::Identity;

/// What it says to a path.
enum Says {
    Json(Value),
    /// The head of an answer and what follows, as it is.
    Raw(Vec<u8>),
    /// A body that never ends.
    Endless,
    /// A byte in a while.
    Slow,
    /// Nothing.
    Silent,
}

type Script = dyn Fn(&str) -> Says + Send + Sync;

/// A server of that identity; it ends with the test's runtime. Its address.
async fn fake(identity: &Identity, script: Arc<Script>) -> String {
    let chain = CertificateDer::pem_file_iter(&identity.certificate)
        .unwrap()
        .collect::<Result<Vec<_>, _>>()
        .unwrap();
    let key = PrivateKeyDer::from_pem_file(&identity.key).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(acceptor.clone(), stream, Arc::clone(&script)));
        }
    });
    address
}

async fn answer(acceptor: TlsAcceptor, stream: TcpStream, script: Arc<Script>) -> Option<()> {
    let mut stream = acceptor.accept(stream).await.ok()?;
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.ok()?);
        }
        let head = String::from_utf8(head).unwrap();
        let path = head.split(' ').nth(1).unwrap();
        let ok = |length: usize| format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
        match script(path) {
            Says::Json(value) => {
                let body = value.to_string();
                let text = ok(body.len()) + &body;
                stream.write_all(text.as_bytes()).await.ok()?;
            }
            Says::Raw(bytes) => stream.write_all(&bytes).await.ok()?,
            Says::Endless => {
                let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
                stream.write_all(head.as_bytes()).await.ok()?;
                let chunk = format!("1000\r\n{}\r\n", " ".repeat(0x1000));
                loop {
                    stream.write_all(chunk.as_bytes()).await.ok()?;
                }
            }
            Says::Slow => {
                stream.write_all(ok(100_000).as_bytes()).await.ok()?;
                loop {
                    stream.write_all(b" ").await.ok()?;
                    stream.flush().await.ok()?;
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
            Says::Silent => {
                stream.flush().await.ok()?;
                tokio::time::sleep(Duration::from_secs(3600)).await;
            }
        }
        stream.flush().await.ok()?;
    }
}

fn head(drives: Extent) -> Head {
    Head {
        version: VERSION,
        node: "fake".to_owned(),
        now: OffsetDateTime::now_utc(),
        drives,
        history: 1,
        defaults: DefaultsRow {
            defaults: Defaults::default(),
            updated: OffsetDateTime::UNIX_EPOCH,
        },
        policy: json!({}),
        seal: None,
    }
}

fn row(serial: &str) -> DriveRow {
    DriveRow {
        drive: Drive {
            serial: serial.parse().unwrap(),
            wwn: None,
            kek1: None,
            kek2: None,
            key: DriveKey::None,
            form: ekm::key::SedkForm::T10Plain,
            custody: ekm::keystore::Custody::Host,
            speakers: Vec::new(),
            state: DriveState::Active,
        },
        updated: OffsetDateTime::now_utc() - Duration::from_secs(60),
        deleted: false,
    }
}

fn page(rows: &Value, next: Option<&str>) -> Says {
    Says::Json(json!({ "version": VERSION, "rows": rows, "next": next }))
}

/// Good in all but what the closure says otherwise.
fn but(
    rows: Vec<DriveRow>,
    other: impl Fn(&str) -> Option<Says> + Send + Sync + 'static,
) -> Arc<Script> {
    let extent = Measure::of(&rows);
    Arc::new(move |path: &str| {
        if let Some(says) = other(path) {
            return says;
        }
        match path {
            "/v1/sync/head" => Says::Json(serde_json::to_value(head(extent.clone())).unwrap()),
            _ if path.starts_with("/v1/sync/drives") => {
                let after = path.rsplit('=').next().unwrap();
                let rest = rows.iter().filter(|row| row.drive.serial.as_str() > after);
                let some: Vec<&DriveRow> = rest.take(500).collect();
                let last = some.last().filter(|_| some.len() == 500);
                let next = last.map(|row| row.drive.serial.as_str().to_owned());
                page(&json!(some), next.as_deref())
            }
            _ => page(&json!([]), None),
        }
    })
}

fn on(path: &'static str, says: impl Fn() -> Says + Send + Sync + 'static) -> Arc<Script> {
    but(vec![row("00000000000A")], move |asked| {
        asked.starts_with(path).then(&says)
    })
}

fn history(rows: Value) -> Arc<Script> {
    on("/v1/sync/history", move || page(&rows, None))
}

fn oversized(length: usize) -> Says {
    let mut bytes = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n").into_bytes();
    bytes.resize(bytes.len() + length, b' ');
    Says::Raw(bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_peer_gets_a_clear_error_and_changes_nothing() {
    let twins = Twins::new();
    let identity = twins.house.identity("server", "ekm1");
    let future = || {
        let mut row = row("00000000000A");
        row.updated = OffsetDateTime::now_utc() + Duration::from_secs(3600);
        vec![row]
    };
    let not_issued = json!([{ "id": 1, "dki": "EKM010101010101010101", "foreign": false,
        "generation": 1, "state": "issued", "at": "2026-01-01T00:00:00Z", "peer": "drive:x",
        "eedks": ["0".repeat(64)] }]);
    let backwards = json!([{ "id": 0, "dki": "EKM010101010101010101", "foreign": false,
        "generation": 1, "state": "confirmed", "at": "2026-01-01T00:00:00Z", "peer": "drive:x",
        "eedks": ["0".repeat(64)] }]);
    let late = vec![row("00000000000A")];
    let cases: Vec<(&str, Arc<Script>, &str)> = vec![
        (
            "oversized",
            on("/v1/sync/drives", || oversized(3 << 20)),
            "length limit",
        ),
        (
            "endless",
            on("/v1/sync/drives", || Says::Endless),
            "length limit",
        ),
        ("slow", on("/v1/sync/drives", || Says::Slow), "within 1 s"),
        ("silent", on("/v1/sync/keks", || Says::Silent), "within 1 s"),
        (
            "malformed",
            on("/v1/sync/drives", || {
                Says::Raw(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n{\"a\":".to_vec())
            }),
            "EOF while parsing",
        ),
        (
            "no HTTP",
            on("/v1/sync/drives", || {
                Says::Raw(b"SSH-2.0-x\r\n\r\n".to_vec())
            }),
            "did not answer properly",
        ),
        (
            "another form",
            on("/v1/sync/drives", || {
                Says::Json(json!({ "version": 7, "rows": [] }))
            }),
            "in form 7",
        ),
        (
            "a refusal that is a novel",
            on("/v1/sync/head", || {
                let novel = "\u{1b}[2J".repeat(1000);
                let problem = Problem::new(EkmCode::EE30, 403, novel);
                let body = serde_json::to_string(&problem).unwrap();
                let head = format!("HTTP/1.1 403 No\r\ncontent-length: {}\r\n\r\n", body.len());
                Says::Raw((head + &body).into_bytes())
            }),
            "server:ekm1 refused: [2J[2J",
        ),
        (
            "pages without an end",
            on("/v1/sync/drives", || {
                let rows: Vec<DriveRow> = (0..400).map(|n| row(&format!("{n:012}"))).collect();
                page(&json!(rows), Some("000000000399"))
            }),
            "pages do not fit together",
        ),
        (
            "KEKs without an end",
            on("/v1/sync/keks", || page(&json!([]), Some("1"))),
            "pages do not fit together",
        ),
        (
            "another table each time",
            on("/v1/sync/drives", || {
                page(&json!([row("00000000000B")]), None)
            }),
            "another each of the 3 times",
        ),
        (
            "too many",
            on("/v1/sync/head", || {
                let extent = Extent {
                    rows: 5_000_000,
                    digest: String::new(),
                };
                Says::Json(serde_json::to_value(head(extent)).unwrap())
            }),
            "it has 5000000 drives",
        ),
        ("a row of tomorrow", but(future(), |_| None), "dated later"),
        (
            "twice the same drive",
            but(vec![row("00000000000A"), row("00000000000A")], |_| None),
            "there twice",
        ),
        (
            "issued, and not what",
            history(not_issued),
            "it says issued, and not what",
        ),
        ("backwards", history(backwards), "not in their order"),
        (
            "another clock",
            but(late.clone(), move |path| {
                let mut head = head(Measure::of(&late));
                head.now += Duration::from_secs(600);
                let head = serde_json::to_value(head).unwrap();
                (path == "/v1/sync/head").then_some(Says::Json(head))
            }),
            "s ahead of ours",
        ),
    ];
    for (name, script, expected) in cases {
        let address = fake(&identity, script).await;
        let from = format!("peer = \"server:ekm1\"\naddress = \"{address}\"\n");
        // Who is not waited for in vain has the time that a slow machine takes.
        let seconds = if expected == "within 1 s" { 1 } else { 15 };
        twins.second_with(&format!("answer_seconds = {seconds}"), &from);
        let what = if expected.contains("order") || expected.contains("not what") {
            "history"
        } else {
            "all"
        };
        let said = twins.refused(&["--what", what]);
        assert!(said.contains(expected), "{name}: {said}");
        assert!(!said.contains('\u{1b}'), "{name}: {said:?}");
        assert!(said.len() < 1000, "{name}: {} bytes", said.len());
        let state = Sql::sqlite(&twins.house.at("state2")).await.unwrap();
        assert!(state.drives().await.unwrap().is_empty(), "{name}");
        assert!(state.volumes(None).await.unwrap().is_empty(), "{name}");
    }
    // The last one's clock was the fault, and who knows that may go on.
    twins.sync(&["--force", "--dry-run"]);
    // The same peer, as it should be.
    let address = fake(&identity, but(vec![row("00000000000A")], |_| None)).await;
    twins.second(&address, "");
    twins.sync(&[]);
    assert_eq!(twins.drives(), ["00000000000A"]);

    // What was written before it failed is not denied.
    let rows = vec![row("00000000000A"), row("00000000000B")];
    let broken = but(rows, |path| {
        path.starts_with("/v1/sync/history").then_some(Says::Silent)
    });
    let address = fake(&identity, broken).await;
    let from = format!("peer = \"server:ekm1\"\naddress = \"{address}\"\n");
    twins.second_with("answer_seconds = 5", &from);
    let said = twins.refused(&["--what", "all"]);
    assert!(said.contains("within 5 s"), "{said}");
    assert!(
        said.contains("stays: merge of all; drives: 1 added"),
        "{said}"
    );
    assert_eq!(twins.drives(), ["00000000000A", "00000000000B"]);

    // An empty table there is a lost one rather than a meant one.
    let address = fake(&identity, but(Vec::new(), |_| None)).await;
    twins.second(&address, "");
    let said = twins.refused(&["--rewrite"]);
    assert!(said.contains("would delete 2 of 2 drives"), "{said}");
    assert_eq!(twins.drives().len(), 2);
    twins.sync(&["--rewrite", "--force"]);
    assert!(twins.drives().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_that_is_killed_leaves_all_or_nothing() {
    const DRIVES: usize = 1500;
    let twins = Twins::new();
    let identity = twins.house.identity("server", "ekm1");
    let rows: Vec<DriveRow> = (0..DRIVES).map(|n| row(&format!("{n:012}"))).collect();
    let address = fake(&identity, but(rows, |_| None)).await;
    twins.second(&address, "");
    let command = || {
        twins
            .house
            .command(&["--config", "ekm2.toml", "sync", "--from", "ekm1"])
    };
    let there = async || {
        let state = Sql::sqlite(&twins.house.at("state2")).await.unwrap();
        state.drives().await.unwrap().len()
    };
    // Each time a little later, until one is done before it is killed.
    let mut wait = Duration::from_millis(100);
    let mut killed = 0;
    loop {
        let mut child = command()
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        tokio::time::sleep(wait).await;
        let ended = child.try_wait().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        let drives = there().await;
        if ended.is_some() || drives == DRIVES {
            assert_eq!(drives, DRIVES);
            break;
        }
        assert_eq!(drives, 0, "killed after {wait:?}");
        killed += 1;
        wait = wait * 3 / 2;
    }
    assert!(killed > 0);
}
