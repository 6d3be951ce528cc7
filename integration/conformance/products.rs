//! The list on each kind of token, in the ways that it allows, and what it does not allow.

use ekm::bridge::message::Probe;
use ekm::bridge::supervisor::Program;

use super::{Stage, generous, the_whole_list};
use crate::support::{Bench, Kind};
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
