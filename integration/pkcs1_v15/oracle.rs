//! Whoever sends EEDKs of his own making sees no difference between one that opens and one that
//! does not.

use std::collections::BTreeSet;

use ekm::admin::{Command, ForgivenTo, Reply};
use ekm::api::ResolveAnswer;
use ekm::audit::Outcome;
use ekm::key::Eedk;
use ekm::keystore::Custody;
use ekm::policy::PolicyConfig;
use ekm::problem::{EkmCode, Problem};
use ekm::service::Whose;
use secrecy::ExposeSecret;
use serde_json::Value;

use super::{Stage, allowing, data_key, only};
use crate::support::Kind;

/// All of an answer but what must differ from one to the next: the values of its identifiers, and
/// the bytes of its keys.
fn shape(answer: &ResolveAnswer) -> Value {
    fn blank(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                for (name, field) in fields {
                    match (name.as_str(), &field) {
                        ("request_id", _) => *field = "id".into(),
                        ("sedk" | "spout" | "eedk" | "bytes" | "key", Value::String(text)) => {
                            *field = text.len().into();
                        }
                        _ => blank(field),
                    }
                }
            }
            Value::Array(items) => items.iter_mut().for_each(blank),
            _ => {}
        }
    }
    let mut value = serde_json::to_value(answer).unwrap();
    blank(&mut value);
    value
}

async fn no_wrong_padding_is_told(kind: Kind, custody: Custody) {
    let stage = Stage::with(kind, custody, allowing()).await;
    let forger = stage.forger().await;
    let known = [0x5a; 32];
    let good = forger.good(&known);
    let answer = stage.resolve(&[good.encode()]).await.unwrap();
    assert_eq!(data_key(&stage.b, &answer.sedk), known);
    assert!(!answer.issued_here);
    let record = stage.last_resolve().await;
    assert_eq!(record.outcome, Outcome::Success);
    let detail = record.detail.unwrap();
    assert!(detail.ends_with("it opened"), "{detail}");
    assert_eq!(record.custody, Some(custody.to_string()));
    let expected = shape(&answer);
    let length = answer.sedk.bytes().expose_secret().len();
    for (what, eedk) in forger.bad() {
        let answer = stage.resolve(&[eedk.encode()]).await.unwrap();
        // Only the EEDK that was sent may be longer.
        if eedk.wrapped().len() == good.wrapped().len() {
            assert_eq!(shape(&answer), expected, "{what}");
        }
        assert_eq!(answer.sedk.bytes().expose_secret().len(), length, "{what}");
        let key = data_key(&stage.b, &answer.sedk);
        assert_ne!(key, known, "{what}");
        // As the right key would be, it is the same again.
        assert_eq!(stage.key(&eedk).await, key, "{what}");
        let record = stage.last_resolve().await;
        // It is told CKA_VALUE_LEN, and cuts what is longer.
        let cuts = kind == Kind::Embedded && custody == Custody::Token;
        if cuts && matches!(what, "33 bytes inside" | "all that fits inside") {
            assert_eq!((key, record.outcome), ([9; 32], Outcome::Success));
            continue;
        }
        assert_eq!(record.outcome, Outcome::Failure, "{what}");
        assert_eq!(record.code.as_deref(), Some("EE32"), "{what}");
        let detail = record.detail.unwrap();
        assert!(detail.contains("it did not open ("), "{what}: {detail}");
        assert!(detail.contains("throw-away key"), "{what}: {detail}");
        println!("{what}: {detail}");
    }
    // The token was not blamed, and serves.
    assert_eq!(stage.bench.service.ready(), Ok(()));
    let answer = stage.create().await;
    let key = data_key(&stage.a, &answer.sedk);
    assert_eq!(stage.key(&only(&answer)).await, key);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_wrong_padding_is_told_by_the_embedded_token() {
    no_wrong_padding_is_told(Kind::Embedded, Custody::Token).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_wrong_padding_is_told_of_softhsm_behind_p11_kit() {
    no_wrong_padding_is_told(Kind::Softhsm, Custody::Host).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_wrong_padding_is_told_in_custody_host() {
    no_wrong_padding_is_told(Kind::Embedded, Custody::Host).await;
    no_wrong_padding_is_told(Kind::SofthsmInProcess, Custody::Host).await;
}

/// Bleichenbacher's questions about a cartridge of ours: its ciphertext times powers.
#[tokio::test(flavor = "multi_thread")]
async fn an_attacker_sees_no_difference_between_ciphertexts() {
    let stage = Stage::new(Kind::Embedded).await;
    let forger = stage.forger().await;
    let answer = stage.create().await;
    let ours = only(&answer);
    let mut keys = BTreeSet::from([data_key(&stage.a, &answer.sedk)]);
    let mut shapes = Vec::new();
    let mut asked: Vec<Eedk> = (2..40).map(|s| forger.times(&ours, s)).collect();
    asked.extend((0..4).map(|n| forger.good(&[n; 32])));
    for eedk in &asked {
        let answer = stage.resolve(&[eedk.encode()]).await.unwrap();
        shapes.push(shape(&answer));
        assert!(keys.insert(data_key(&stage.b, &answer.sedk)));
    }
    shapes.dedup();
    assert_eq!(shapes.len(), 1, "{shapes:?}");
    // Nor does asking again tell, of another bridge, by another EEDK with the same ciphertext.
    let stage = stage.restarted(allowing()).await;
    for eedk in &asked {
        assert!(!keys.insert(stage.key(eedk).await));
    }
}

/// A cartridge whose first EEDK is damaged and whose second is whole.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_gives_some_key_in_any_case_is_tried_last() {
    let stage = Stage::new(Kind::Embedded).await;
    let answer = stage.create().await;
    let whole = only(&answer);
    let mut wrapped = whole.wrapped().to_vec();
    wrapped[17] ^= 0x20;
    let damaged = Eedk::new(whole.dki(), whole.kek().clone(), whole.wrap(), wrapped).unwrap();
    let resolved = stage
        .resolve(&[damaged.encode(), whole.encode()])
        .await
        .unwrap();
    assert_eq!(resolved.opened, 1);
    let key = data_key(&stage.a, &answer.sedk);
    assert_eq!(data_key(&stage.b, &resolved.sedk), key);
    assert_eq!(stage.bench.service.openings().openings, 0);
    // Of two of them the first alone is tried, and the record says so.
    let forger = stage.forger().await;
    let (first, second) = (forger.good(&[1; 32]), forger.good(&[2; 32]));
    let resolved = stage
        .resolve(&[first.encode(), second.encode()])
        .await
        .unwrap();
    assert_eq!(data_key(&stage.b, &resolved.sedk), [1; 32]);
    let detail = stage.last_resolve().await.detail.unwrap();
    assert!(detail.contains("only the first is tried"), "{detail}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_appended_or_rekeyed_under_one_that_was_not_issued_here() {
    let stage = Stage::new(Kind::Embedded).await;
    let forger = stage.forger().await;
    let mut said = Vec::new();
    for eedk in [forger.good(&[1; 32]), forger.eedk(vec![0x17; 256])] {
        let rekey = stage.rekey(&eedk).await.unwrap_err();
        let append = stage.resolve_for(&stage.b, &[eedk.encode()], true).await;
        said.push([rekey, append.unwrap_err()].map(
            |Problem {
                 code,
                 status,
                 detail,
                 ..
             }| {
                assert_eq!(code, EkmCode::EE30);
                (status, detail)
            },
        ));
    }
    said.dedup();
    assert_eq!(said.len(), 1, "{said:?}");
    assert_eq!(stage.bench.service.openings().openings, 0);
}

fn two_per_peer() -> PolicyConfig {
    PolicyConfig {
        pkcs1_v15_failures_per_peer: 2,
        ..allowing()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_whose_budget_is_spent_learns_nothing_more_until_an_operator_forgives() {
    let stage = Stage::with(Kind::Embedded, Custody::Token, two_per_peer()).await;
    let forger = stage.forger().await;
    let ours = stage.create().await;
    let (good, bad) = (forger.good(&[1; 32]), forger.eedk(vec![0x17; 256]));
    stage.key(&bad).await;
    stage.key(&good).await;
    stage.key(&bad).await;
    let refused = async |stage: &Stage, eedk: &Eedk| {
        let problem = stage.resolve(&[eedk.encode()]).await.unwrap_err();
        (problem.code, problem.status, problem.detail)
    };
    let told = refused(&stage, &good).await;
    assert_eq!((told.0, told.1), (EkmCode::EE30, 403));
    assert!(
        told.2.contains("--forgive-peer drive:000000000002"),
        "{told:?}"
    );
    assert_eq!(refused(&stage, &bad).await, told);
    let record = stage.last_resolve().await;
    assert_eq!(record.outcome, Outcome::Failure);
    assert_eq!(record.code.as_deref(), Some("EE30"));
    // What was issued here opens, and the other peer asks what it likes.
    let key = data_key(&stage.a, &ours.sedk);
    assert_eq!(stage.key(&only(&ours)).await, key);
    let both = [bad.encode(), only(&ours).encode()];
    assert_eq!(stage.resolve(&both).await.unwrap().opened, 1);
    let other = stage.resolve_for(&stage.a, &[good.encode()], false).await;
    assert_eq!(data_key(&stage.a, &other.unwrap().sedk), [1; 32]);

    let stage = stage.restarted(two_per_peer()).await;
    assert_eq!(refused(&stage, &good).await, told);
    let failures = async |stage: &Stage, forgive| match stage
        .operator(Command::EedkFailures { forgive })
        .await
    {
        Reply::Budgets(budgets) => budgets,
        other => panic!("{other:?}"),
    };
    let budgets = failures(&stage, None).await;
    let whose: Vec<(bool, usize)> = budgets
        .iter()
        .map(|one| (one.budget.spent(), one.budget.failures))
        .collect();
    assert_eq!(whose, [(true, 2), (false, 2)], "{budgets:?}");
    assert_eq!(budgets[0].budget.whose, Whose::Peer(stage.b.peer.clone()));
    assert_eq!(budgets[1].label, Some("KEK1".parse().unwrap()));
    let peer = ForgivenTo::Peer(stage.b.peer.clone());
    let left = failures(&stage, Some(peer)).await;
    assert_eq!(left.len(), 1, "{left:?}");
    assert_eq!(stage.key(&good).await, [1; 32]);
    // Forgiving is on record, and a second time there is nothing to forgive.
    let records = ekm::audit::read(&stage.bench.config.audit).unwrap();
    let forgiven = records.map(|record| record.unwrap().event);
    assert_eq!(
        forgiven
            .filter(|event| event.action == "eedk-forgive")
            .count(),
        1
    );
    let again = Command::EedkFailures {
        forgive: Some(ForgivenTo::Peer(stage.b.peer.clone())),
    };
    let service = &stage.bench.service;
    assert!(
        ekm::admin::execute(service, "operator:test", again)
            .await
            .is_err()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kek_whose_budget_is_spent_is_spent_for_every_peer() {
    let policy = PolicyConfig {
        pkcs1_v15_failures_per_kek: 2,
        ..allowing()
    };
    let stage = Stage::with(Kind::Embedded, Custody::Token, policy).await;
    let forger = stage.forger().await;
    let (good, bad) = (forger.good(&[1; 32]), forger.eedk(vec![0x17; 256]));
    for drive in [&stage.a, &stage.b] {
        stage
            .resolve_for(drive, &[bad.encode()], false)
            .await
            .unwrap();
    }
    for drive in [&stage.a, &stage.b] {
        for eedk in [&good, &bad] {
            let refused = stage.resolve_for(drive, &[eedk.encode()], false).await;
            let refused = refused.unwrap_err();
            assert_eq!(refused.code, EkmCode::EE30);
            assert!(refused.detail.contains("--forgive-kek"), "{refused}");
        }
    }
    let forgive = Some(ForgivenTo::Kek("KEK1".parse().unwrap()));
    stage.operator(Command::EedkFailures { forgive }).await;
    assert_eq!(stage.key(&good).await, [1; 32]);
}
