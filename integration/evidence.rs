//! The audit log as evidence: sealed by tokens, anchored elsewhere, verified
//! offline, sent to syslog, and kept going on a full disk.

mod disk;
mod tokens;

use std::io::Read as _;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ekm::api::{Base64, ResolveRequest};
use ekm::audit::{Kind as Work, Outcome, Record};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;
use uuid::Uuid;

use crate::door::{House, HouseDrive, PATIENCE, Serving};
use crate::support::wait_for;

pub(crate) fn resolve(drive: &HouseDrive, eedks: &[Base64]) -> ResolveRequest {
    ResolveRequest {
        dki: None,
        request_id: Uuid::new_v4(),
        drive: drive.create().drive,
        volser: None,
        eedks: eedks.to_vec(),
        append: false,
    }
}

fn records(house: &House) -> Vec<Record> {
    ekm::audit::read(&house.at("audit"))
        .unwrap()
        .map(Result::unwrap)
        .collect()
}

/// What `ekm audit anchors` says of the newest seal in the database.
fn anchored(house: &House) -> String {
    let all: Value = serde_json::from_str(&house.done(&["audit", "anchors", "--json"])).unwrap();
    all[0]["seal"].as_str().unwrap().to_owned()
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

fn alarm(serving: &Serving, code: &str, raised: bool) -> bool {
    serving
        .log()
        .contains(&format!("alarm=\"{code}\" raised={raised}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_seals_its_records_and_an_auditor_verifies_them_offline() {
    let house = House::new("", "[records]\nseal_minutes = 1\nanchor_tokens = true");
    let serving = house.serve().await;
    // There is no key yet, and the configuration wants seals.
    serving.says("alarm=\"EKM-A19\" raised=true", 1);
    let refused = house.run(&["audit", "seal"]);
    assert_eq!(refused.status.code(), Some(1));
    let text = String::from_utf8(refused.stderr).unwrap();
    assert!(text.contains("ekm audit key --generate"), "{text}");
    house.done(&["audit", "key", "--generate", "--bits", "2048"]);
    wait_for("the first seal", PATIENCE, || {
        records(&house).iter().any(|record| {
            record.event.action == "audit-seal" && record.event.outcome == Outcome::Success
        })
    });
    serving.says("alarm=\"EKM-A19\" raised=false", 1);
    let pem = house.done(&["audit", "key"]);
    std::fs::write(house.at("auditor.pem"), &pem).unwrap();
    // The key is no KEK, and none can have its name.
    assert!(!house.done(&["kek", "list"]).contains("ekm-audit"));
    let refused = house.run(&["kek", "generate", "ekm-audit-x"]);
    assert!(!refused.status.success());
    let drive = house.drive(1);
    let mut client = house.client_of(&serving, &drive.identity);
    for _ in 0..3 {
        client.create(&drive.create()).await.unwrap();
    }
    let on_demand = house.done(&["audit", "seal"]);
    assert!(on_demand.contains("sealed by token main"), "{on_demand}");
    client.create(&drive.create()).await.unwrap();
    serving.stop();
    // Everything is sealed at the stop, and the newest seal is known elsewhere.
    let last = records(&house).pop().unwrap();
    assert_eq!(last.event.action, "audit-seal");
    let anchor = anchored(&house);
    assert!(anchor.ends_with(&last.hash), "{anchor}");
    let listed = house.done(&["audit", "anchors"]);
    assert!(
        listed.contains(&format!("token main house seal {anchor}")),
        "{listed}"
    );
    // On a copy, with nothing but the public key.
    copy(&house.at("audit"), &house.at("copy"));
    let verify = |more: &[&str]| {
        let mut all = vec!["audit", "verify", "copy", "--key", "auditor.pem"];
        all.extend(more);
        house.run(&all)
    };
    let good = verify(&["--expect-seal", &anchor, "--all-sealed"]);
    let text = String::from_utf8(good.stdout).unwrap();
    assert_eq!(good.status.code(), Some(0), "{text}");
    assert!(text.contains("signatures good"), "{text}");
    // Cut back to the first seal.
    let file = house.at("copy/audit-00000001.jsonl");
    let whole = std::fs::read_to_string(&file).unwrap();
    let first = whole
        .lines()
        .position(|line| line.contains("audit-seal") && line.contains("\"success\""))
        .unwrap();
    let cut: String = whole
        .lines()
        .take(first + 1)
        .map(|line| format!("{line}\n"))
        .collect();
    std::fs::write(&file, cut).unwrap();
    // By itself it looks well.
    assert_eq!(verify(&["--all-sealed"]).status.code(), Some(0));
    let found = verify(&["--expect-seal", &anchor]);
    let text = String::from_utf8(found.stdout).unwrap();
    assert_eq!(found.status.code(), Some(3), "{text}");
    let place = format!(
        "audit-00000001.jsonl line {} (record {})",
        first + 1,
        first + 1
    );
    assert!(text.contains(&place) && text.contains("cut off"), "{text}");
    // A server that is given such a log says so, and seals it only when it is told to.
    std::fs::copy(&file, house.at("audit/audit-00000001.jsonl")).unwrap();
    let serving = house.serve().await;
    serving.says("alarm=\"EKM-A20\" raised=true", 1);
    let refused = house.run(&["audit", "seal"]);
    assert_eq!(refused.status.code(), Some(1));
    let accepted = house.done(&["audit", "seal", "--accept"]);
    let number: u64 = anchor.split(':').next().unwrap().parse().unwrap();
    assert!(
        accepted.contains(&format!("seal {}:", number + 1)),
        "{accepted}"
    );
    serving.says("alarm=\"EKM-A20\" raised=false", 1);
    serving.stop();
    house.done(&["audit", "verify", "--key", "auditor.pem", "--all-sealed"]);
}

/// What stands behind the last seal is known to the database for a while.
#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_was_cut_off_behind_the_last_seal_shows_at_the_next_start() {
    let house = House::new("", "");
    let serving = house.serve().await;
    let head = || {
        let anchors: Value =
            serde_json::from_str(&house.done(&["audit", "anchors", "--json"])).unwrap();
        anchors[0]["head"].as_str().map(str::to_owned)
    };
    wait_for("the newest record in the database", PATIENCE, || {
        head().is_some()
    });
    serving.kill();
    let kept = head().unwrap();
    let seq: usize = kept.split(':').next().unwrap().parse().unwrap();
    let file = house.at("audit/audit-00000001.jsonl");
    let whole = std::fs::read_to_string(&file).unwrap();
    let lines: Vec<&str> = whole.lines().take(seq - 1).collect();
    std::fs::write(&file, lines.join("\n") + "\n").unwrap();

    let serving = house.serve().await;
    serving.says("alarm=\"EKM-A20\" raised=true", 1);
    assert_eq!(head(), Some(kept.clone()), "it was overwritten");
    serving.stop();
    // It is not forgotten by a start, and there is no key here that seals.
    let serving = house.serve().await;
    serving.says("alarm=\"EKM-A20\" raised=true", 1);
    assert_eq!(house.run(&["audit", "seal"]).status.code(), Some(1));
    let accepted = house.run(&["audit", "seal", "--accept"]);
    let said = String::from_utf8_lossy(&accepted.stderr).into_owned();
    assert!(said.contains("is accepted"), "{said}");
    serving.says("alarm=\"EKM-A20\" raised=false", 1);
    wait_for("a newer record in the database", PATIENCE, || {
        head() != Some(kept.clone())
    });
    serving.stop();
    let records = records(&house);
    let accepted = records
        .iter()
        .find(|record| record.event.action == "audit-accept");
    assert!(
        accepted
            .unwrap()
            .event
            .detail
            .as_ref()
            .unwrap()
            .contains("cut off")
    );
    let serving = house.serve().await;
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert!(!serving.log().contains("EKM-A20"), "{}", serving.log());
    serving.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seal_that_no_token_makes_is_late_and_is_made_when_it_is_back() {
    let house = House::new("", "");
    house.done(&["audit", "key", "--generate", "--bits", "2048"]);
    std::fs::rename(house.at("token"), house.at("token-away")).unwrap();
    let serving = house.serve_command(house.command(&["serve"])).await;
    serving.says("alarm=\"EKM-A19\" raised=true", 1);
    // The bridge may have made an empty one.
    let _ = std::fs::remove_dir_all(house.at("token"));
    std::fs::rename(house.at("token-away"), house.at("token")).unwrap();
    serving.says("alarm=\"EKM-A19\" raised=false", 1);
    assert!(
        records(&house)
            .iter()
            .any(|record| record.event.action == "audit-seal")
    );
    serving.stop();
    house.done(&["audit", "verify", "--all-sealed"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_key_that_is_served_is_on_record_with_all_that_names_it() {
    let house = House::new("", "");
    let serving = house.serve().await;
    let drive = house.drive(1);
    let mut client = house.client_of(&serving, &drive.identity);
    let request = drive.create();
    let created = client.create(&request).await.unwrap();
    let eedks: Vec<Base64> = created.eedks.iter().map(|one| one.eedk.clone()).collect();
    client.resolve(&resolve(&drive, &eedks)).await.unwrap();
    // As after an answer that was lost.
    client.create(&request).await.unwrap();
    serving.stop();
    let hash = |der: &[u8]| hex::encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, der));
    let all = records(&house);
    let served: Vec<_> = all
        .iter()
        .map(|record| &record.event)
        .filter(|event| event.kind == Work::Runtime && event.drive.is_some())
        .filter(|event| event.outcome == Outcome::Success)
        .collect();
    assert_eq!(served.len(), 3);
    for (event, opened) in served.into_iter().zip([false, true, true]) {
        let action = event.action.as_str();
        assert_eq!(event.kind, Work::Runtime, "{action}");
        assert_eq!(event.drive.as_deref(), Some(drive.serial.as_str()));
        assert_eq!(
            event.peer.as_deref(),
            Some(format!("drive:{}", drive.serial).as_str())
        );
        assert_eq!(event.keks, ["KEK1"], "{action}");
        assert_eq!(event.token.as_deref(), Some("main"), "{action}");
        assert_eq!(event.custody.as_deref(), Some("token"), "{action}");
        let [eedk] = event.eedks.as_slice() else {
            panic!("{action}: {:?}", event.eedks);
        };
        assert_eq!(eedk.sha256, hash(&eedks[0].0), "{action}");
        assert_eq!(eedk.opened, opened, "{action}");
        assert!(event.dki.is_some(), "{action}");
    }
    // The commands sort them by the field of work, and by time.
    let shown = |arguments: &[&str]| house.done(arguments).lines().count();
    let runtime = all.iter().filter(|one| one.event.kind == Work::Runtime);
    assert_eq!(
        shown(&["audit", "show", "--type", "runtime"]),
        runtime.count() + 1
    );
    let drives = house.done(&["audit", "show", "--type", "resource_management"]);
    assert!(
        drives.contains("drive-add") && !drives.contains("resolve"),
        "{drives}"
    );
    assert_eq!(shown(&["audit", "export"]), all.len());
    assert_eq!(shown(&["audit", "export", "--until", "2001-01-01"]), 0);
    let since = &all[all.len() - 2].time[..26];
    let exported = house.done(&["audit", "export", "--since", since]);
    assert_eq!(exported.lines().count(), 2, "{exported}");
    let whole = std::fs::read_to_string(house.at("audit/audit-00000001.jsonl")).unwrap();
    assert!(whole.ends_with(&exported));
    let refused = house.run(&["audit", "show", "--type", "weather"]);
    assert_eq!(refused.status.code(), Some(2));
}

/// Takes one connection with TLS, and gives what came until it ended.
fn tls_receiver(house: &House) -> (std::net::SocketAddr, std::thread::JoinHandle<Vec<u8>>) {
    house.done(&["tls", "issue", "log1", "--role", "server"]);
    let file = |end: &str| house.at(&format!("tls/issued/server-log1.{end}"));
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(file("crt"))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    let key = PrivateKeyDer::from_pem_file(file("key")).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let taken = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let connection = rustls::ServerConnection::new(Arc::new(config)).unwrap();
        let mut tls = rustls::StreamOwned::new(connection, stream);
        let mut all = Vec::new();
        // It ends without a close_notify.
        let _ = tls.read_to_end(&mut all);
        all
    });
    (address, taken)
}

#[tokio::test(flavor = "multi_thread")]
async fn records_go_to_a_syslog_by_tls_and_a_wrong_certificate_stops_no_key() {
    let house = House::new("", "");
    let (address, taken) = tls_receiver(&house);
    house.configure(
        "",
        &format!("[[records.syslog]]\nto = \"tls://{address}\"\nca = \"tls/ca.crt\""),
    );
    let serving = house.serve().await;
    serving.stop();
    let all = taken.join().unwrap();
    let text = String::from_utf8(all).unwrap();
    for action in ["start", "stop"] {
        assert!(text.contains(&format!(" {action} [ekm@32473 ")), "{text}");
    }
    // Another CA than the receiver's.
    house.done(&["tls", "init", "--ca-dir", "other"]);
    let (address, _never) = tls_receiver(&house);
    house.configure(
        "",
        &format!("[[records.syslog]]\nto = \"tls://{address}\"\nca = \"other/ca.crt\""),
    );
    let begun = Instant::now();
    let serving = house.serve().await;
    let drive = house.drive(1);
    let mut client = house.client_of(&serving, &drive.identity);
    client.create(&drive.create()).await.unwrap();
    serving.says("alarm=\"EKM-A22\" raised=true", 1);
    assert!(alarm(&serving, "EKM-A22", true));
    serving.stop();
    assert!(begun.elapsed() < PATIENCE + Duration::from_secs(30));
    // What is no receiver is told before anything starts.
    house.configure("", "[[records.syslog]]\nto = \"telnet://log1\"");
    let refused = house.run(&["config", "check"]);
    assert_eq!(refused.status.code(), Some(3));
}
