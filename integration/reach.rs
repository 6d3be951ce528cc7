//! Keys that are out of reach: whose token is down, was never up, or is not where it should be.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ekm::api::{RekeyRequest, ResolveRequest};
use ekm::bridge::message::Provenance;
use ekm::bridge::supervisor::{Bridge, Program};
use ekm::keystore::Custody;
use ekm::problem::{EkmCode, Problem};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use uuid::Uuid;

use crate::door::{House, PATIENCE};
use crate::software::{Stage, folder, moved, pkcs12};
use crate::support::{EKM, Hsm, Kind, closed, wait_for, write_private};

/// Long enough for an answer that waits for nothing.
const SOON: Duration = Duration::from_secs(3);

/// Takes an embedded token away: its file, and the bridges that have it open.
fn take_away(hsm: &Hsm, bridge: &Bridge) {
    std::fs::rename(file(hsm, "token.sql"), file(hsm, "away.sql")).unwrap();
    for pid in bridge.state().bridges() {
        let pid = Pid::from_raw(i32::try_from(*pid).unwrap()).unwrap();
        kill_process(pid, Signal::KILL).unwrap();
    }
    wait_for("the token's end", PATIENCE, || !bridge.serves());
}

fn bring_back(hsm: &Hsm) {
    std::fs::rename(file(hsm, "away.sql"), file(hsm, "token.sql")).unwrap();
}

fn file(hsm: &Hsm, name: &str) -> PathBuf {
    hsm.directory.path().join(name)
}

/// A token `main` and a software keystore `old`, with the same KEK.
async fn both(write: bool) -> (Hsm, Stage) {
    let directory = folder();
    pkcs12(directory.path(), "keys.p12", "BOTH", &[]);
    let hsm = Hsm::new(Kind::Embedded, "both").await;
    moved(directory.path(), "BOTH", &hsm);
    let stage = Stage::new(directory, "keys.p12", &[&hsm], write).await;
    (hsm, stage)
}

/// The service anew, as after a restart; what waits for a token that is not there goes on.
async fn restarted(stage: Stage) -> Stage {
    let Stage {
        service,
        config,
        drive,
        directory,
    } = stage;
    drop(service);
    closed(&config.state).await;
    let service = ekm::server::open(&config, &Program::at(EKM.into())).await;
    Stage {
        service: Arc::new(service.unwrap()),
        config,
        drive,
        directory,
    }
}

fn tokens(records: &Path, action: &str) -> Vec<String> {
    let records = ekm::audit::read(records).unwrap().filter_map(Result::ok);
    records
        .filter(|record| record.event.action == action)
        .filter_map(|record| record.event.token)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keystore_writes_nothing_while_the_token_with_the_same_kek_is_down() {
    let (hsm, stage) = both(false).await;
    let made = stage.create("BOTH").await.unwrap();
    let eedks: Vec<_> = made.eedks.into_iter().map(|eedk| eedk.eedk).collect();
    take_away(&hsm, &stage.service.tokens().bridges()[0]);
    // It is for reading: that goes on without the token.
    let read = tokio::time::timeout(PATIENCE, stage.resolve(&eedks)).await;
    read.expect("it waited for the token").unwrap();
    let create = stage.create("BOTH");
    tokio::pin!(create);
    let early = tokio::time::timeout(SOON, &mut create).await;
    assert!(early.is_err(), "the keystore made a cartridge: {early:?}");
    bring_back(&hsm);
    create.await.expect("the token is back");
    wait_for("the records", PATIENCE, || {
        tokens(&stage.config.audit, "resolve") == ["old"]
    });
    assert_eq!(tokens(&stage.config.audit, "create"), ["main", "main"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keystore_that_may_write_does_so_while_the_token_is_down() {
    let (hsm, stage) = both(true).await;
    take_away(&hsm, &stage.service.tokens().bridges()[0]);
    stage.create("BOTH").await.unwrap();
    assert_eq!(tokens(&stage.config.audit, "create"), ["old"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keystore_writes_nothing_while_the_token_was_never_up() {
    let (hsm, stage) = both(false).await;
    let made = stage.create("BOTH").await.unwrap();
    let eedks: Vec<_> = made.eedks.into_iter().map(|eedk| eedk.eedk).collect();
    take_away(&hsm, &stage.service.tokens().bridges()[0]);
    let mut stage = restarted(stage).await;
    for bridge in stage.service.tokens().bridges() {
        drop(bridge.settled().await);
    }
    stage.resolve(&eedks).await.unwrap();
    let refused = stage.create("BOTH").await.unwrap_err();
    assert_eq!((refused.code, refused.status), (EkmCode::EE0F, 503));
    assert!(
        refused.detail.contains("token main has not been up"),
        "{refused}"
    );
    // A drive that the keystore may not serve waits for the token, and is told nothing else.
    stage.drive.row.custody = Custody::Token;
    let store = stage.service.store();
    store.put_drive(&stage.drive.row).await.unwrap();
    let resolve = stage.resolve(&eedks);
    tokio::pin!(resolve);
    let early = tokio::time::timeout(SOON, &mut resolve).await;
    assert!(early.is_err(), "it did not wait: {early:?}");
    bring_back(&hsm);
    resolve.await.expect("the token is back");
}

/// The way out of a keystore: its KEK is only read, and the new EEDK is a token's.
#[tokio::test(flavor = "multi_thread")]
async fn a_cartridge_moves_from_a_keystore_that_may_not_write_to_a_token() {
    let directory = folder();
    pkcs12(directory.path(), "keys.p12", "OLD", &[]);
    let hsm = Hsm::new(Kind::Embedded, "new").await;
    let mut stage = Stage::new(directory, "keys.p12", &[&hsm], true).await;
    let label = "NEW".parse().unwrap();
    let made = stage
        .service
        .tokens()
        .generate(None, &label, 2048, Custody::Token, false);
    made.await.unwrap();
    let made = stage.create("OLD").await.unwrap();
    let eedks: Vec<_> = made.eedks.into_iter().map(|eedk| eedk.eedk).collect();
    let allowed = &mut stage.config.policy.write_provenance;
    allowed.retain(|one| *one != Provenance::Software);
    let stage = restarted(stage).await;
    for bridge in stage.service.tokens().bridges() {
        bridge.settled().await.unwrap();
    }
    let rekey = async |kek: &str| -> Result<_, Problem> {
        let request = RekeyRequest {
            request_id: Uuid::new_v4(),
            serial: stage.drive.soft.serial().clone(),
            volser: "OLD001".parse().unwrap(),
            eedks: eedks.clone(),
            kek1: kek.parse().unwrap(),
            kek2: None,
        };
        let operator = "operator:test".parse().unwrap();
        let answer = stage.service.rekey(&operator, &request).await?;
        Ok(answer.into_inner())
    };
    let refused = rekey("OLD").await.unwrap_err();
    assert!(refused.detail.contains("software"), "{refused}");
    let moved = rekey("NEW").await.unwrap();
    let moved: Vec<_> = moved.eedks.into_iter().map(|eedk| eedk.eedk).collect();
    assert_eq!(
        stage.resolve(&moved).await.unwrap(),
        stage.resolve(&eedks).await.unwrap()
    );
}

fn listed(house: &House) -> Value {
    serde_json::from_str(&house.done(&["--json", "kek", "list"])).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_was_never_up_keeps_its_keks_in_sight() {
    let house = House::new("", "");
    std::fs::rename(house.at("token"), house.at("token-away")).unwrap();
    let serving = house.serve_command(house.command(&["serve"])).await;
    serving.says("alarm=\"EKM-A06\" raised=true", 1);
    let keks = listed(&house);
    assert_eq!(keks[0]["label"], "KEK1", "{keks}");
    assert_eq!(keks[0]["away"], serde_json::json!(["main"]), "{keks}");
    let list = house.done(&["kek", "list"]);
    assert!(list.contains("KEK1 is out of reach: token main"), "{list}");
    let shown = house.done(&["kek", "show", "KEK1"]);
    assert!(shown.contains("main (not up)"), "{shown}");
    let assessed = house.done(&["assess"]);
    assert!(assessed.contains("out of reach"), "{assessed}");
    // What is missing is not made anew, and said where it is looked for.
    assert!(!house.at("token").exists());
    let status = house.done(&["token", "status"]);
    for words in ["token.sql", "Mount the disk", "ekm slot init"] {
        assert!(status.contains(words), "{words}: {status}");
    }
    std::fs::rename(house.at("token-away"), house.at("token")).unwrap();
    serving.says("alarm=\"EKM-A06\" raised=false", 1);
    assert_eq!(listed(&house)[0]["tokens"], serde_json::json!(["main"]));
    serving.stop();
}

/// The registry has a KEK on one token; of the other only the token itself tells.
#[tokio::test(flavor = "multi_thread")]
async fn a_cloned_token_that_is_down_when_the_server_starts_is_missed_as_a_copy() {
    let house = House::new("", "");
    ekm::files::private_dir(&house.at("clone")).unwrap();
    for entry in std::fs::read_dir(house.at("token")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), house.at("clone").join(entry.file_name())).unwrap();
    }
    let clone = r#"[[tokens]]
name = "clone"
profile = "embedded"
uri = "pkcs11:token=house"
pin = { file = "pin" }
directory = "clone"
"#;
    house.configure("", clone);
    let serving = house.serve().await;
    let noted = house.at("state/held.json");
    wait_for("a note of both copies", PATIENCE, || {
        std::fs::read_to_string(&noted).is_ok_and(|text| text.matches("KEK1").count() == 2)
    });
    serving.stop();

    std::fs::rename(house.at("clone"), house.at("clone-away")).unwrap();
    let serving = house.serve_command(house.command(&["serve"])).await;
    serving.says("alarm=\"EKM-A05\" raised=true", 1);
    std::fs::rename(house.at("clone-away"), house.at("clone")).unwrap();
    serving.says("alarm=\"EKM-A05\" raised=false", 1);
    serving.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pin_that_locked_a_token_before_it_could_be_read_raises_its_alarm() {
    let house = House::new("", "");
    write_private(&house.at("pin"), "no-such-pin");
    let serving = house.serve_command(house.command(&["serve"])).await;
    serving.says("alarm=\"EKM-A02\" raised=true", 1);
    serving.says("alarm=\"EKM-A04\" raised=true", 1);
    serving.stop();
    // A restart finds it held back, and says so again.
    let serving = house.serve_command(house.command(&["serve"])).await;
    serving.says("alarm=\"EKM-A04\" raised=true", 1);
    assert!(serving.log().contains("held back"));
    serving.stop();
}

const BAD: &str = r#"
[[tokens]]
name = "bad"
profile = "embedded"
uri = "pkcs11:token=bad"
pin = { file = "pin" }
directory = "bad"

[[keystores]]
name = "gone"
file = "gone.p12"
password = { file = "pin" }
"#;

#[test]
fn a_bad_token_stops_no_command_about_another() {
    let house = House::new("", "");
    house.configure("", BAD);
    let output = house.run(&["kek", "list"]);
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{told}");
    for words in ["warning: token bad", "warning: token gone", "gone.p12"] {
        assert!(told.contains(words), "{words}: {told}");
    }
    assert!(String::from_utf8(output.stdout).unwrap().contains("KEK1"));
    house.done(&[
        "kek", "generate", "KEK2", "--bits", "2048", "--token", "main",
    ]);
    house.done(&["kek", "default", "--kek1", "KEK2"]);
    for (arguments, words) in [
        (&["kek", "generate", "K3", "--token", "bad"][..], "no "),
        (&["kek", "default", "--kek1", "NONE"], "NONE"),
    ] {
        let output = house.run(arguments);
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {told}");
        assert!(told.contains(words), "{arguments:?}: {told}");
        assert!(told.contains("bad"), "{arguments:?}: {told}");
    }
    assert!(!house.at("bad").exists(), "a token's directory was made");
    let check = house.run(&["config", "check"]);
    let told = String::from_utf8(check.stdout).unwrap();
    assert_eq!(check.status.code(), Some(3), "{told}");
    assert!(
        told.contains("gone.p12") && told.contains("tokens bad"),
        "{told}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_written_while_the_directory_of_a_token_is_gone() {
    let house = House::new(
        "",
        "[[policy.peers]]\npeer = \"drive:*\"\nrekey_keks = [\"*\"]",
    );
    let drive = house.drive(1);
    let serving = house.serve().await;
    let mut client = house.client_of(&serving, &drive.identity);
    let tape = client.create(&drive.create()).await.unwrap();
    std::fs::rename(house.at("token"), house.at("away")).unwrap();
    // It waits for the token, as for one that is down.
    let made = tokio::time::timeout(SOON, client.create(&drive.create())).await;
    assert!(!matches!(made, Ok(Ok(_))), "a key was made");
    // An EEDK of a rekey is wrapped outside of what is gone, and its proof is not.
    let request = RekeyRequest {
        request_id: Uuid::new_v4(),
        serial: drive.serial.clone(),
        volser: drive.create().volser,
        eedks: tape.eedks.iter().map(|eedk| eedk.eedk.clone()).collect(),
        kek1: tape.eedks[0]
            .label
            .clone()
            .unwrap()
            .to_string()
            .parse()
            .unwrap(),
        kek2: None,
    };
    let mut client = house.client_of(&serving, &drive.identity);
    let made = tokio::time::timeout(SOON, client.rekey(&request)).await;
    assert!(!matches!(made, Ok(Ok(_))), "a rekey was given out");
    let mut client = house.client_of(&serving, &drive.identity);
    let state = || house.done(&["token", "status"]);
    wait_for("the look", Duration::from_secs(30), || {
        state().contains("degraded") && state().contains("Mount the disk")
    });
    // What can be read is read.
    let request = ResolveRequest {
        request_id: Uuid::new_v4(),
        drive: drive.create().drive,
        volser: None,
        eedks: tape.eedks.iter().map(|eedk| eedk.eedk.clone()).collect(),
        dki: None,
        append: false,
    };
    client.resolve(&request).await.unwrap();
    std::fs::rename(house.at("away"), house.at("token")).unwrap();
    client.create(&drive.create()).await.unwrap();
    wait_for("the next look", Duration::from_secs(30), || {
        !state().contains("degraded")
    });
    serving.stop();
}

#[test]
fn the_directory_of_a_token_is_not_made_anew() {
    let house = House::new("", "");
    std::fs::rename(house.at("token"), house.at("away")).unwrap();
    // An empty directory is what a disk that is not mounted leaves.
    for made in [false, true] {
        if made {
            std::fs::create_dir(house.at("token")).unwrap();
        }
        for arguments in [
            &["kek", "list"][..],
            &["kek", "generate", "NEW"],
            &["slot", "list", "--profile", "embedded"],
            &["slot", "doctor", "--token", "main"],
        ] {
            let output = house.run(arguments);
            let told = String::from_utf8(output.stderr).unwrap();
            assert_ne!(output.status.code(), Some(0), "{arguments:?}");
            assert!(told.contains("slot init"), "{arguments:?}: {told}");
        }
        assert_eq!(house.at("token").exists(), made);
    }
    assert_eq!(std::fs::read_dir(house.at("token")).unwrap().count(), 0);
}
