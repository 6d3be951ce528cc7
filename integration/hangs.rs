//! What a call that does not return costs those who did not make it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ekm::api::{Base64, CreateRequest, DriveInRequest, ResolveRequest};
use ekm::audit::{Event, Outcome};
use ekm::bridge::supervisor::TokenState;
use ekm::client::ClientError;
use ekm::keystore::Custody;
use ekm::policy::PolicyConfig;
use ekm::store::Defaults;
use futures_util::future::{join, join_all};
use uuid::Uuid;

use crate::faulty::{Fault, Faulty};
use crate::several::altered;
use crate::site::Site;
use crate::support::{Bench, Hsm, Kind, TestDrive, drive, wait_for};

/// A service over one token behind the faulty module, with a drive and a KEK.
struct Stage {
    bench: Arc<Bench>,
    drive: Arc<TestDrive>,
    faulty: Faulty,
    _hsm: Hsm,
}

impl Stage {
    async fn new(label: &str, changes: &[(&str, &str)]) -> Self {
        let hsm = Hsm::new(Kind::SofthsmInProcess, label).await;
        let faulty = Faulty::before(&hsm);
        let token = faulty.through(altered(&hsm, "main", changes));
        let bench = Bench::with(vec![token], PolicyConfig::default()).await;
        bench.kek("KEK1", "main", Custody::Token).await;
        let defaults = Defaults {
            kek1: Some("KEK1".parse().unwrap()),
            kek2: None,
        };
        bench.store().set_defaults(&defaults).await.unwrap();
        let drive = drive(bench.directory.path(), 1, hsm.kind.form());
        bench.enrol(&drive).await;
        Self {
            bench: Arc::new(bench),
            drive: Arc::new(drive),
            faulty,
            _hsm: hsm,
        }
    }

    fn shown(&self) -> DriveInRequest {
        DriveInRequest {
            serial: self.drive.soft.serial().clone(),
            stores_eedks: true,
            public_key: None,
            session_key: None,
        }
    }

    fn create(&self) -> tokio::task::JoinHandle<Vec<Base64>> {
        let request = CreateRequest {
            job: None,
            request_id: Uuid::new_v4(),
            drive: self.shown(),
            volser: "HANG01".parse().unwrap(),
            kek1: None,
            kek2: None,
        };
        let (bench, drive) = (Arc::clone(&self.bench), Arc::clone(&self.drive));
        tokio::spawn(async move {
            let answer = bench.service.create(&drive.peer, &request).await;
            let answer = answer.unwrap().into_inner();
            answer.eedks.into_iter().map(|eedk| eedk.eedk).collect()
        })
    }

    fn resolve(&self, eedks: &[Base64]) -> tokio::task::JoinHandle<()> {
        let request = ResolveRequest {
            dki: None,
            request_id: Uuid::new_v4(),
            drive: self.shown(),
            volser: None,
            eedks: eedks.to_vec(),
            append: false,
        };
        let (bench, drive) = (Arc::clone(&self.bench), Arc::clone(&self.drive));
        tokio::spawn(async move {
            bench.service.resolve(&drive.peer, &request).await.unwrap();
        })
    }

    fn bridges(&self) -> Vec<u32> {
        let [bridge] = self.bench.service.tokens().bridges() else {
            panic!("one token is configured");
        };
        bridge.state().bridges().to_vec()
    }

    /// Waits until that function was called more often.
    async fn called(&self, function: &str, before: u64) {
        tokio::task::block_in_place(|| {
            wait_for(function, Duration::from_secs(20), || {
                self.faulty.called(function) > before
            });
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_handed_on_from_a_bridge_that_hung_does_not_end_the_next() {
    let changes = [
        ("processes = 1", "processes = 2"),
        ("workers = 4", "workers = 1"),
        ("deadline_seconds = 30", "deadline_seconds = 3"),
    ];
    let stage = Stage::new("handed-on", &changes).await;
    let eedks = stage.create().await.unwrap();
    tokio::task::block_in_place(|| {
        wait_for("two bridges", Duration::from_secs(60), || {
            stage.bridges().len() == 2
        });
    });
    let both = stage.bridges();

    // One bridge hangs with a request; the other is slow, and always has others to do.
    let before = stage.faulty.called("C_UnwrapKey");
    stage
        .faulty
        .strike(Some("C_UnwrapKey"), 0, Some(1), Fault::Hang);
    stage
        .faulty
        .strike(Some("C_WrapKey"), 0, None, Fault::Delay(700));
    let hung = stage.resolve(&eedks);
    stage.called("C_UnwrapKey", before).await;
    // Some of these are put to the bridge that hangs too, and wait there; the others go on.
    let stop = AtomicBool::new(false);
    let readers = join_all((0..6).map(|_| async {
        while !stop.load(Ordering::Relaxed) {
            stage.resolve(&eedks).await.unwrap();
        }
    }));
    let done = async {
        hung.await.unwrap();
        stop.store(true, Ordering::Relaxed);
    };
    join(readers, done).await;
    let left = stage.bridges();
    assert!(
        both.iter().any(|pid| left.contains(pid)),
        "{both:?} was driving the token, and now {left:?}: the bridge that was well was ended too"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_whose_proof_waits_when_the_bridge_is_killed_is_answered() {
    let changes = [("deadline_seconds = 30", "deadline_seconds = 2")];
    let stage = Stage::new("proof", &changes).await;
    let eedks = stage.create().await.unwrap();
    let killed = stage.bridges();

    let before = stage.faulty.called("C_UnwrapKey");
    stage
        .faulty
        .strike(Some("C_UnwrapKey"), 0, Some(2), Fault::Hang);
    let first = stage.resolve(&eedks);
    stage.called("C_UnwrapKey", before).await;
    // Its proof is the second to hang, and has waited for its whole time when the bridge is ended.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let second = stage.create();
    first.await.unwrap();
    assert_eq!(second.await.unwrap().len(), 1);
    assert_ne!(
        stage.bridges(),
        killed,
        "the bridge that hung is still there"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_is_under_way_when_the_module_wants_a_restart_is_not_cut_off() {
    // With a token that does not show wrong PINs, a login whose answer nobody saw locks it.
    let changes = [(
        "pin_count_low = \"reported\"",
        "pin_count_low = \"unknown\"",
    )];
    let stage = Stage::new("cut-off", &changes).await;
    let eedks = stage.create().await.unwrap();

    let before = stage.faulty.called("C_Login");
    stage
        .faulty
        .strike(Some("C_Login"), 0, Some(1), Fault::Late(800));
    stage.faulty.change(|rules| rules.logins_lost += 1);
    let first = stage.resolve(&eedks);
    stage.called("C_Login", before).await;
    let gone = Fault::Answer(cryptoki_sys::CKR_CRYPTOKI_NOT_INITIALIZED);
    stage.faulty.strike(Some("C_UnwrapKey"), 0, Some(1), gone);
    let second = stage.resolve(&eedks);
    first.await.unwrap();
    second.await.unwrap();
    let state = stage.bench.service.tokens().bridges()[0].state();
    assert!(!matches!(state, TokenState::Locked { .. }), "{state:?}");
}

/// Starts the server anew with so much time for a request, and waits until its token serves.
async fn restart_with(site: &mut Site, request_seconds: u64) {
    let text = std::fs::read_to_string(site.config()).unwrap();
    let times = format!("handshake_seconds = 60\nrequest_seconds = {request_seconds}");
    assert!(text.contains("handshake_seconds = 60"), "{text}");
    std::fs::write(
        site.config(),
        text.replace("handshake_seconds = 60", &times),
    )
    .unwrap();
    site.kill_and_restart();
    site.ready().await;
}

/// How a request ended, by the records.
fn ended(site: &Site, request: Uuid) -> Event {
    let request = Some(request.to_string());
    let records = ekm::audit::read(&site.directory.path().join("audit")).unwrap();
    let mut events = records.map(|record| record.unwrap().event);
    events
        .find(|event| event.request == request && event.outcome != Outcome::Intent)
        .expect("a record of the request's end")
}

/// The token's own time is 30 s. The client had the door's word that the request had taken long, and
/// the record came half a minute later.
#[tokio::test(flavor = "multi_thread")]
async fn a_hung_token_costs_a_request_its_time_and_the_client_is_told_what_is_on_record() {
    let hsm = Hsm::new(Kind::SofthsmInProcess, "in-time").await;
    let faulty = Faulty::before(&hsm);
    let mut site = Site::over(vec![faulty.config(&hsm, "main")], "").await;
    site.generate("KEK1").await;
    site.ekm(&["kek", "default", "--kek1", "KEK1"]);
    let drive = drive(site.directory.path(), 1, hsm.kind.form());
    site.enrol(&drive).await;
    restart_with(&mut site, 8).await;
    let [mut client, mut other] = [site.client(&drive.peer), site.client(&drive.peer)];
    let shown = DriveInRequest {
        serial: drive.soft.serial().clone(),
        stores_eedks: true,
        public_key: None,
        session_key: None,
    };
    let create = || CreateRequest {
        job: None,
        request_id: Uuid::new_v4(),
        drive: shown.clone(),
        volser: "HANG01".parse().unwrap(),
        kek1: None,
        kek2: None,
    };
    let written = client.create(&create()).await.unwrap();
    let resolve = ResolveRequest {
        dki: None,
        request_id: Uuid::new_v4(),
        drive: shown.clone(),
        volser: None,
        eedks: written.eedks.into_iter().map(|one| one.eedk).collect(),
        append: false,
    };

    faulty.strike(Some("C_UnwrapKey"), 0, None, Fault::Hang);
    // It is made, and its proof hangs.
    let create = create();
    let (made, opened) = join(other.create(&create), client.resolve(&resolve)).await;
    for (request, outcome) in [
        (create.request_id, made.map(drop)),
        (resolve.request_id, opened.map(drop)),
    ] {
        let problem = match outcome.unwrap_err() {
            ClientError::Refused(problem) => problem,
            other => panic!("{other}"),
        };
        assert_eq!(problem.status, 503, "{problem}");
        let said = "token main did not answer within ";
        assert!(problem.detail.contains(said), "{problem}");
        let record = ended(&site, request);
        assert_eq!(record.outcome, Outcome::Failure);
        assert_eq!(record.detail, Some(problem.detail));
    }
    // No data key is in the state that nobody has.
    let listed = site.ekm(&["volume", "list", "--json"]);
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 1, "{listed}");
    faulty.heal();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_pair_that_takes_longer_than_a_request_may_is_made_while_drives_ask() {
    let changes = [
        ("workers = 4", "workers = 1"),
        ("deadline_seconds = 30", "deadline_seconds = 1"),
    ];
    let stage = Stage::new("long-making", &changes).await;
    let eedks = stage.create().await.unwrap();
    let [bridge] = stage.bridges()[..] else {
        panic!("one bridge is configured");
    };
    let making = Fault::Delay(5000);
    stage
        .faulty
        .strike(Some("C_GenerateKeyPair"), 0, Some(1), making);
    let before = stage.faulty.called("C_GenerateKeyPair");
    let made = tokio::spawn({
        let bench = Arc::clone(&stage.bench);
        async move { bench.kek("KEK2", "main", Custody::Token).await }
    });
    stage.called("C_GenerateKeyPair", before).await;
    // A drive that waits is answered once the token is free; its time is longer than the making.
    stage.resolve(&eedks).await.unwrap();
    made.await.unwrap();
    assert_eq!(stage.bridges(), [bridge], "the bridge was started anew");
    stage.create().await.unwrap();
}
