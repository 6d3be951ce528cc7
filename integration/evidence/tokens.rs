//! Seals by each kind of token, checked by OpenSSL and by the second client.

use std::process::Command as Process;

use ekm::admin::{self, Command, Reply};
use ekm::audit::{ChainMark, Expected, SealKey, statement, verify_against};
use ekm::bridge::evidence::{SEAL_KEY, SEALED};
use ekm::bridge::supervisor::Program;
use ekm::policy::PolicyConfig;

use crate::support::{Bench, Hsm, Kind, closed};
use crate::tokens::can_be_made;

async fn seals(kind: Kind) {
    if !can_be_made(kind) {
        return;
    }
    let hsm = Hsm::new(kind, "seals").await;
    let root = tempfile::tempdir().unwrap();
    let mut config = Bench::config(
        root.path(),
        vec![hsm.config("main")],
        PolicyConfig::default(),
    );
    config.records.anchor_tokens = true;
    let program = Program::at(hsm.surroundings.program());
    let service = ekm::server::open(&config, &program).await.unwrap();
    for bridge in service.tokens().bridges() {
        bridge.settled().await.unwrap();
    }
    let ask = async |command| admin::execute(&service, "operator:test", command).await;
    let made = ask(Command::AuditKey {
        generate: Some(2048),
        token: None,
    });
    let Reply::SealKeys(keys) = made.await.unwrap() else {
        panic!("no keys");
    };
    let [key] = keys.as_slice() else {
        panic!("{keys:?}");
    };
    let mut anchor = String::new();
    for number in 1..=2 {
        let sealed = ask(Command::AuditSeal { accept: false }).await.unwrap();
        let Reply::Sealed(made) = sealed else {
            panic!("{sealed:?}");
        };
        assert_eq!(made.seal.number, number);
        match made.not_anchored.as_slice() {
            [] if kind != Kind::Nss => {}
            // It keeps no data objects, and says so.
            [reason] if kind == Kind::Nss => {
                assert!(reason.contains("CKR_ATTRIBUTE_VALUE_INVALID"), "{reason}");
            }
            other => panic!("{other:?}"),
        }
        anchor = format!("{number}:{}", made.seal.hash);
    }
    // The token keeps one anchor, the newest.
    let Reply::Anchors(anchors) = ask(Command::AuditAnchors).await.unwrap() else {
        panic!("no anchors");
    };
    let kept: Vec<_> = anchors
        .iter()
        .filter(|one| one.place == "token main")
        .map(|one| (one.node.as_str(), one.seal.as_deref()))
        .collect();
    if kind == Kind::Nss {
        assert!(kept.is_empty(), "{kept:?}");
    } else {
        assert_eq!(kept, [("test", Some(anchor.as_str()))]);
    }
    // It is no KEK.
    let Reply::Keks(keks) = ask(Command::KekList).await.unwrap() else {
        panic!("no KEKs");
    };
    assert!(keks.is_empty(), "{keks:?}");
    let seal_key = SealKey::read_all(key.pem.as_bytes()).unwrap();
    let expected = Expected {
        keys: seal_key,
        seal: Some(anchor.parse().unwrap()),
        head: service.audit().head(),
        sealed: true,
    };
    drop(service);
    let verified = verify_against(&config.audit, &expected).unwrap();
    assert!(
        verified.sealed.verified && verified.sealed.seals == 2,
        "{verified:?}"
    );
    openssl_agrees(&config, &key.pem);
    let seen = hsm.hand(&["attributes", SEAL_KEY]);
    for attribute in [
        "Sensitive(true)",
        "Extractable(false)",
        "Unwrap(false)",
        "Decrypt(false)",
    ] {
        assert!(seen.contains(attribute), "{attribute} is not in:\n{seen}");
    }
}

/// The last seal, verified as anybody could.
fn openssl_agrees(config: &ekm::config::Config, pem: &str) {
    use base64::Engine as _;
    let last = ekm::audit::read(&config.audit)
        .unwrap()
        .last()
        .unwrap()
        .unwrap();
    let Some(ChainMark::Seal(seal)) = last.event.chain.as_deref() else {
        panic!("{last:?}");
    };
    let at = |name: &str| config.state.join(name);
    let digest = statement("test", seal.number, seal.seq, &seal.hash);
    std::fs::write(at("message"), [SEALED, &digest].concat()).unwrap();
    let signature = base64::engine::general_purpose::STANDARD.decode(&seal.signature);
    std::fs::write(at("signature"), signature.unwrap()).unwrap();
    std::fs::write(at("seal.pem"), pem).unwrap();
    let output = Process::new("openssl")
        .args(["dgst", "-sha256", "-verify"])
        .arg(at("seal.pem"))
        .arg("-signature")
        .arg(at("signature"))
        .arg(at("message"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_embedded_token_seals() {
    seals(Kind::Embedded).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn softhsm_in_its_container_seals() {
    seals(Kind::Softhsm).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn softhsm_in_the_bridge_seals() {
    seals(Kind::SofthsmInProcess).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn opencryptoki_seals() {
    seals(Kind::Opencryptoki).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nss_seals() {
    seals(Kind::Nss).await;
}

/// The newest seal stands where a thief of the directory cannot take it back: on the token.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_is_put_back_takes_no_anchor_from_the_token() {
    let hsm = Hsm::new(Kind::Embedded, "anchor").await;
    let root = tempfile::tempdir().unwrap();
    let mut config = Bench::config(
        root.path(),
        vec![hsm.config("main")],
        PolicyConfig::default(),
    );
    config.records.anchor_tokens = true;
    let program = Program::at(hsm.surroundings.program());
    let open = async || {
        let service = ekm::server::open(&config, &program).await.unwrap();
        for bridge in service.tokens().bridges() {
            bridge.settled().await.unwrap();
        }
        service
    };
    let service = open().await;
    let generate = Command::AuditKey {
        generate: Some(2048),
        token: None,
    };
    let made = admin::execute(&service, "operator:test", generate).await;
    assert!(matches!(made.unwrap(), Reply::SealKeys(_)));
    let first = service.seal_audit(false).await.unwrap();
    assert!(first.seal.number == 1 && first.not_anchored.is_empty());
    drop(service);
    closed(&config.state).await;

    let places = [config.state.clone(), config.audit.clone()];
    let copy = tempfile::tempdir().unwrap();
    let aside = |number: usize| copy.path().join(number.to_string());
    for (number, place) in places.iter().enumerate() {
        copied(place, &aside(number));
    }
    let service = open().await;
    let second = service.seal_audit(false).await.unwrap();
    assert!(second.seal.number == 2 && second.not_anchored.is_empty());
    drop(service);
    closed(&config.state).await;
    for (number, place) in places.iter().enumerate() {
        std::fs::remove_dir_all(place).unwrap();
        copied(&aside(number), place);
    }

    // Nothing in the directories tells that the second seal was made.
    let service = open().await;
    let again = service.seal_audit(false).await.unwrap();
    assert_eq!(again.seal.number, 2);
    let kept = format!("token main keeps seal 2:{}", second.seal.hash);
    assert!(again.not_anchored.concat().contains(&kept), "{again:?}");
    assert!(service.evidence().mismatch.unwrap().contains(&kept));
    let refused = service.seal_audit(false).await.unwrap_err();
    assert!(refused.detail.contains("--accept"), "{refused:?}");
    let accepted = service.seal_audit(true).await.unwrap();
    assert!(accepted.seal.number == 3 && accepted.not_anchored.is_empty());
    assert_eq!(service.evidence().mismatch, None);
    let anchors = service.tokens().kept_anchors().await;
    let texts: Vec<_> = anchors.iter().map(|anchor| anchor.text.as_str()).collect();
    assert_eq!(texts, [format!("3:{}", accepted.seal.hash)]);
}

/// Copies a directory with all that is in it.
fn copied(from: &std::path::Path, to: &std::path::Path) {
    let done = Process::new("cp").arg("-a").args([from, to]).status();
    assert!(done.unwrap().success());
}
