//! The list on each kind of token, in the ways that it allows, and what it does not allow.

use std::time::Duration;

use ekm::api::CreateRequest;
use ekm::bridge::message::Probe;
use ekm::bridge::supervisor::Program;
use ekm::key::SedkForm;
use ekm::keystore::Custody;
use ekm::problem::EkmCode;
use rustix::process::{Pid, Signal, kill_process};
use uuid::Uuid;

use super::{Stage, ders, generous, private_key, shown, the_whole_list, what_every_token_does};
use crate::support::{Bench, Kind, drive, example, wait_for};
use crate::tokens::can_be_made;

#[tokio::test(flavor = "multi_thread")]
async fn the_embedded_token_conforms() {
    the_whole_list(Kind::Embedded).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn softhsm_in_its_container_conforms() {
    the_whole_list(Kind::Softhsm).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn softhsm_in_the_bridge_conforms() {
    the_whole_list(Kind::SofthsmInProcess).await;
}

/// What the start-up probe learned of the only token.
fn probed(stage: &Stage) -> Probe {
    let ready = stage.bench.service.tokens().bridges()[0].state();
    ready.found().unwrap().probe.clone().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn opencryptoki_conforms() {
    if !can_be_made(Kind::Opencryptoki) {
        return;
    }
    let stage = the_whole_list(Kind::Opencryptoki).await;
    assert!(probed(&stage).refuses_unextractable);
    without_set_after_opencryptoki_is_refused(&stage).await;
}

/// It takes `CKA_SENSITIVE` in the unwrap template, and makes a key that can be read.
async fn without_set_after_opencryptoki_is_refused(stage: &Stage) {
    let text = include_str!("../../hsm-profiles/opencryptoki-soft.toml");
    let weak = text.replace("sensitive = \"set-after\"", "sensitive = \"send\"");
    assert_ne!(weak, text);
    let path = stage.hsm.directory.path().join("weak.toml");
    std::fs::write(&path, weak).unwrap();
    let mut token = stage.hsm.config("weak");
    token.profile = path.display().to_string();
    let directory = tempfile::tempdir().unwrap();
    let config = Bench::config(directory.path(), vec![token], generous());
    let program = Program::at(stage.hsm.surroundings.program());
    let service = ekm::server::open(&config, &program).await.unwrap();
    let refused = service.tokens().bridges()[0].settled().await.unwrap_err();
    let why = refused.to_string();
    assert!(why.contains("not CKA_SENSITIVE"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nss_conforms() {
    if !can_be_made(Kind::Nss) {
        return;
    }
    let stage = the_whole_list(Kind::Nss).await;
    // It wraps keys whose CKA_EXTRACTABLE is false, and is shown to.
    assert!(!probed(&stage).refuses_unextractable);
}

/// A TPM decrypts, and neither wraps nor unwraps: the list runs in custody `host`.
#[tokio::test(flavor = "multi_thread")]
async fn a_tpm_conforms_in_custody_host() {
    if !can_be_made(Kind::Tpm2) {
        return;
    }
    let stage = Stage::new(Kind::Tpm2).await;
    what_every_token_does(&stage).await;
    a_tpm_keeps_no_data_key(&stage).await;
    a_tpm_makes_no_kek_that_it_cannot_use(&stage).await;
    a_tpm_shows_a_key_from_outside_to_the_next_bridge(&stage).await;
    ekm::audit::verify(&stage.bench.config.audit).unwrap();
}

async fn a_tpm_keeps_no_data_key(stage: &Stage) {
    let inside = drive(stage.bench.directory.path(), 3, SedkForm::T10Wrapped);
    stage.bench.enrol(&inside).await;
    let written = stage.create(&["KEK1"]).await.unwrap();
    let request = CreateRequest {
        job: None,
        request_id: Uuid::new_v4(),
        drive: shown(&inside),
        volser: "VOL003".parse().unwrap(),
        kek1: Some("KEK1".parse().unwrap()),
        kek2: None,
    };
    let created = stage.bench.service.create(&inside.peer, &request).await;
    let created = created.map(drop).unwrap_err();
    assert_eq!(created.code, EkmCode::EE31, "{created}");
    assert!(
        created.detail.contains("made for custody host"),
        "{created}"
    );
    let resolved = stage.resolve_for(&inside, &ders(&written), false).await;
    let resolved = resolved.unwrap_err();
    assert_eq!(resolved.code, EkmCode::EE25, "{resolved}");
    assert!(resolved.detail.contains("--custody host"), "{resolved}");
}

async fn a_tpm_makes_no_kek_that_it_cannot_use(stage: &Stage) {
    for (bits, custody, why) in [
        (2048, Custody::Token, "make it with --custody host"),
        (4096, Custody::Host, "CKR_ATTRIBUTE_VALUE_INVALID"),
    ] {
        let refused = stage.bench.try_kek("NEVER", "main", bits, custody).await;
        let refused = refused.unwrap_err();
        assert!(refused.detail.contains(why), "{refused}");
    }
    let listed = stage.bench.service.directory().await.unwrap();
    assert!(listed.by_label(&"NEVER".parse().unwrap()).is_err());
}

/// Two of the list begin with a key from outside. A TPM takes no private one, and its module shows
/// what another program made only to whoever loads it afterwards.
async fn a_tpm_shows_a_key_from_outside_to_the_next_bridge(stage: &Stage) {
    let hsm = &stage.hsm;
    let (module, environment) = hsm.module();
    let mut hand = hsm.surroundings.command(&example("hand"));
    hand.arg(module).arg(&hsm.label);
    hand.arg(hsm.directory.path().join("pin"));
    hand.args(["import-private", "OUTSIDE", &private_key(stage, 3)]);
    let refused = hand.envs(environment).output().unwrap();
    let why = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success());
    assert!(why.contains("AttributeValueInvalid, CreateObject"), "{why}");

    hsm.hand(&["import-public", "kek1", &private_key(stage, 4)]);
    hsm.hand(&["import-public", "PARTNER", &private_key(stage, 5)]);
    let tokens = stage.bench.service.tokens();
    tokens.look_again().await;
    stage.create(&["KEK1"]).await.unwrap();

    let pids = || tokens.bridges()[0].state().bridges().to_vec();
    let before = pids();
    let bridge = Pid::from_raw(before[0].try_into().unwrap()).unwrap();
    kill_process(bridge, Signal::KILL).unwrap();
    wait_for("the next bridge", Duration::from_secs(60), || {
        let now = pids();
        !now.is_empty() && now != before
    });
    stage.create(&["KEK2"]).await.unwrap();
    for (labels, why) in [
        (vec!["KEK1"], "2 different keys"),
        (vec!["PARTNER"], "private half"),
        (vec!["KEK2", "PARTNER"], "private half"),
    ] {
        let refused = stage.create(&labels).await.unwrap_err();
        assert_eq!(refused.code, EkmCode::EE31, "{refused}");
        assert!(refused.detail.contains(why), "{refused}");
    }
}
