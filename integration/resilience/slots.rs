//! A slot's number is no token's name.

use ekm::api::{CreateRequest, DriveInRequest, ResolveRequest};
use ekm::keystore::Custody;
use ekm::policy::{PeerRule, PolicyConfig};
use secrecy::ExposeSecret as _;
use uuid::Uuid;

use crate::faulty::{Faulty, Hand, Slots};
use crate::support::{Bench, Hsm, Kind, drive, write_private};

/// `CKR_PIN_INCORRECT`, as the faulty module's log has it.
const PIN_INCORRECT: &str = " 0xa0";

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_number_that_shows_another_token_is_not_taken_for_the_old_one() {
    let hsm = Hsm::new(Kind::SofthsmInProcess, "one").await;
    let other_pin = hsm.directory.path().join("other-pin");
    write_private(&other_pin, "9999-9999");
    hsm.init_another("other", &other_pin);
    let faulty = Faulty::before(&hsm);
    let slots = Hand::of(&hsm, &faulty).slots();
    let [(_, served), (_, neighbour)] = slots.as_slice() else {
        panic!("two tokens, and not {slots:?}");
    };
    let config = |label: &str| {
        let mut config = faulty.config(&hsm, "main");
        config.uri = format!("pkcs11:token={label}").parse().unwrap();
        if label == "other" {
            config.pin = ekm::bridge::pin::PinSource::File(other_pin.clone());
        }
        config
    };
    let policy = || PolicyConfig {
        peers: vec![PeerRule {
            peer: "drive:*".to_owned(),
            drives: vec![],
            create_keks: vec!["*".to_owned()],
            rekey_keks: vec![],
        }],
        ..PolicyConfig::default()
    };
    // Another key of the same label, where the number of the served token will show.
    let bench = Bench::with(vec![config(neighbour)], policy()).await;
    bench.kek("KEK", "main", Custody::Token).await;
    drop(bench);

    let bench = Bench::with(vec![config(served)], policy()).await;
    bench.kek("KEK", "main", Custody::Token).await;
    let a = drive(bench.directory.path(), 1, hsm.kind.form());
    bench.enrol(&a).await;
    let shown = || DriveInRequest {
        serial: a.soft.serial().clone(),
        stores_eedks: true,
        public_key: None,
        session_key: None,
    };
    let create = || CreateRequest {
        job: None,
        request_id: Uuid::new_v4(),
        drive: shown(),
        volser: "SLOT01".parse().unwrap(),
        kek1: Some("KEK:hash".parse().unwrap()),
        kek2: None,
    };
    let first = bench.service.create(&a.peer, &create()).await;
    let first = first.unwrap().into_inner();
    let key = |sedk: &ekm::key::Sedk| *a.soft.unwrap_sedk(sedk).unwrap().expose_secret();

    faulty.change(|rules| {
        rules.slots = Slots::Rotated;
        rules.sessions_lost += 1;
    });
    for _ in 0..8 {
        let request = ResolveRequest {
            dki: None,
            request_id: Uuid::new_v4(),
            drive: shown(),
            volser: None,
            eedks: first.eedks.iter().map(|eedk| eedk.eedk.clone()).collect(),
            append: false,
        };
        let read = bench.service.resolve(&a.peer, &request).await;
        let read = read.unwrap().into_inner();
        assert_eq!(key(&read.sedk), key(&first.sedk));
        let new = bench.service.create(&a.peer, &create()).await;
        new.unwrap();
    }
    let keks = bench.service.directory().await.unwrap();
    assert_eq!(keks.keks().len(), 1, "the KEK of another token is listed");
    let log = std::fs::read_to_string(faulty.log()).unwrap();
    assert!(
        !log.lines().any(|line| line.ends_with(PIN_INCORRECT)),
        "the PIN of the one token was sent to the other"
    );
}
