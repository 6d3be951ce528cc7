//! Cartridges between two tokens, and drives that a token cannot wrap for.

use ekm::api::{CreateRequest, DriveInRequest, ResolveRequest};
use ekm::key::SedkForm;
use ekm::keystore::Custody;
use ekm::policy::{PolicyConfig, UnprovedKeks};
use ekm::problem::EkmCode;
use uuid::Uuid;

use super::{Stage, code, data_key, ders, generous, private_key};
use crate::support::{Bench, Hsm, Kind, drive};
use crate::tokens::can_be_made;

/// Two KEKs on two tokens: each EEDK is proved where its private half is.
async fn two_tokens_share_a_cartridge(kind: Kind) {
    let (one, two) = (Hsm::new(kind, "one").await, Hsm::new(kind, "two").await);
    let bench = Bench::new(&[&one, &two], generous()).await;
    bench.kek("ON-ONE", "main", Custody::Token).await;
    bench.kek("ON-TWO", "second", Custody::Token).await;
    let a = drive(bench.directory.path(), 1, kind.form());
    let b = drive(bench.directory.path(), 2, kind.form());
    bench.enrol(&a).await;
    bench.enrol(&b).await;
    let stage = Stage {
        hsm: one,
        bench,
        a,
        b,
    };
    let answer = stage.create(&["ON-ONE", "ON-TWO"]).await.unwrap();
    for eedk in ders(&answer) {
        let resolved = stage.resolve(&[eedk]).await.unwrap();
        assert_eq!(
            data_key(&stage.a, &answer.sedk),
            data_key(&stage.b, &resolved.sedk)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_embedded_tokens_share_a_cartridge() {
    two_tokens_share_a_cartridge(Kind::Embedded).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_softhsms_share_a_cartridge() {
    two_tokens_share_a_cartridge(Kind::Softhsm).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unproved_second_kek_needs_the_policy_and_is_recorded() {
    let policy = PolicyConfig {
        unproved_keks: UnprovedKeks::Allow,
        ..generous()
    };
    let stage = Stage::with(Kind::Embedded, policy).await;
    let key = private_key(&stage, 5);
    stage.hsm.hand(&["import-public", "PARTNER", &key]);
    stage.bench.service.tokens().look_again().await;
    let answer = stage.create(&["KEK1", "PARTNER"]).await.unwrap();
    assert_eq!(answer.eedks.len(), 2);
    let keys = stage.bench.store().volumes(None).await.unwrap();
    let proved: Vec<bool> = keys[0].eedks.iter().map(|stored| stored.proved).collect();
    assert_eq!(proved, [true, false]);
    // At least one of the two must be readable here.
    assert_eq!(code(stage.create(&["PARTNER"]).await), EkmCode::EE31);
}

/// Custody `host`, named by the operator: T10 forms on a token that cannot make them.
async fn host_custody_serves_t10_drives(kind: Kind) {
    let hsm = Hsm::new(kind, "host").await;
    let bench = Bench::new(&[&hsm], generous()).await;
    bench.kek("HOSTKEK", "main", Custody::Host).await;
    if kind.custody() == Custody::Token {
        bench.kek("TOKENKEK", "main", Custody::Token).await;
    }
    hostkek_serves_drives(&bench, kind).await;
}

/// HOSTKEK serves the drives that the token does not, where the operator said so.
async fn hostkek_serves_drives(bench: &Bench, kind: Kind) {
    let forms = match kind {
        Kind::Embedded | Kind::Opencryptoki => vec![SedkForm::T10Plain],
        Kind::Nss | Kind::Tpm2 => vec![
            SedkForm::T10Wrapped,
            SedkForm::RsaOaepSha1,
            SedkForm::T10Plain,
        ],
        Kind::Softhsm | Kind::SofthsmInProcess => {
            vec![SedkForm::T10Wrapped, SedkForm::T10Plain]
        }
    };
    for (n, form) in (1..).zip(forms) {
        let mut a = drive(bench.directory.path(), n, form);
        // Without the operator's word there is no host custody.
        bench.enrol(&a).await;
        let mut request = CreateRequest {
            job: None,
            request_id: Uuid::new_v4(),
            drive: DriveInRequest {
                serial: a.soft.serial().clone(),
                stores_eedks: true,
                public_key: None,
                session_key: None,
            },
            volser: "HOST01".parse().unwrap(),
            kek1: Some("HOSTKEK".parse().unwrap()),
            kek2: None,
        };
        let refused = bench
            .service
            .create(&a.peer, &request)
            .await
            .map(drop)
            .unwrap_err();
        assert!(
            matches!(refused.code, EkmCode::EE25 | EkmCode::EE31),
            "{refused}"
        );
        a.row.custody = Custody::Host;
        bench.enrol(&a).await;
        request.request_id = Uuid::new_v4();
        let answer = bench
            .service
            .create(&a.peer, &request)
            .await
            .unwrap()
            .into_inner();
        let key = data_key(&a, &answer.sedk);
        let resolve = ResolveRequest {
            dki: None,
            request_id: Uuid::new_v4(),
            drive: request.drive.clone(),
            volser: None,
            eedks: answer.eedks.iter().map(|eedk| eedk.eedk.clone()).collect(),
            append: true,
        };
        let resolved = bench
            .service
            .resolve(&a.peer, &resolve)
            .await
            .unwrap()
            .into_inner();
        assert_eq!(data_key(&a, &resolved.sedk), key);
        let last = ekm::audit::read(&bench.config.audit)
            .unwrap()
            .map(Result::unwrap)
            .last()
            .unwrap();
        assert_eq!(last.event.custody.as_deref(), Some("host"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn host_custody_on_the_embedded_token() {
    host_custody_serves_t10_drives(Kind::Embedded).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn host_custody_on_softhsm() {
    host_custody_serves_t10_drives(Kind::Softhsm).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn host_custody_on_opencryptoki() {
    if can_be_made(Kind::Opencryptoki) {
        host_custody_serves_t10_drives(Kind::Opencryptoki).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn host_custody_on_a_tpm() {
    if can_be_made(Kind::Tpm2) {
        host_custody_serves_t10_drives(Kind::Tpm2).await;
    }
}

/// NSS tries a new pair that decrypts by encrypting with it, which the public half of a KEK is not
/// for. Who wants custody `host` there has KEKs that may do everything, and none for custody `token`.
#[tokio::test(flavor = "multi_thread")]
async fn nss_makes_no_kek_for_custody_host_beside_those_for_custody_token() {
    if !can_be_made(Kind::Nss) {
        return;
    }
    let hsm = Hsm::new(Kind::Nss, "host").await;
    let bench = Bench::new(&[&hsm], generous()).await;
    let refused = bench.try_kek("HOSTKEK", "main", 2048, Custody::Host).await;
    let why = refused.unwrap_err().detail;
    let answer = "C_GenerateKeyPair answered CKR_KEY_TYPE_INCONSISTENT";
    assert!(why.contains(answer), "{why}");
    let listed = hsm.hand(&["list"]);
    assert!(!listed.contains("HOSTKEK"), "{listed}");
    drop(bench);

    let mut text = include_str!("../../hsm-profiles/nss.toml").to_owned();
    for (from, to) in [
        (r#"["t10-02h", "rsa-oaep-sha1"]"#, "[]"),
        (r#"denied_uses = "send""#, r#"denied_uses = "omit""#),
    ] {
        assert!(text.contains(from), "{from}");
        text = text.replace(from, to);
    }
    let path = hsm.directory.path().join("host.toml");
    std::fs::write(&path, text).unwrap();
    let mut token = hsm.config("main");
    token.profile = path.display().to_string();
    let bench = Bench::with(vec![token], generous()).await;
    bench.kek("HOSTKEK", "main", Custody::Host).await;
    hostkek_serves_drives(&bench, Kind::Nss).await;
    let attributes = hsm.hand(&["attributes", "HOSTKEK"]);
    for may in ["Decrypt(true)", "Unwrap(true)"] {
        assert!(attributes.contains(may), "{attributes}");
    }
}
