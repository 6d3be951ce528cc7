//! Several bridges on one token, several tokens behind one server.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ekm::api::{Base64, CreateRequest, DriveInRequest, ResolveRequest};
use ekm::bridge::supervisor::{Program, TokenState};
use ekm::config::TokenConfig;
use ekm::keystore::Custody;
use ekm::policy::PolicyConfig;
use ekm::store::Defaults;
use futures_util::future::join_all;
use rustix::process::{Pid, Signal, kill_process};
use uuid::Uuid;

use crate::faulty::{Fault, Faulty, SessionLimit};
use crate::support::{Bench, EKM, Hsm, Kind, TestDrive, drive, pkcs8_key, wait_for};

/// The token's profile with other values in it, as a site's own file.
pub(crate) fn altered(hsm: &Hsm, name: &str, changes: &[(&str, &str)]) -> TokenConfig {
    let shipped = format!(
        "{}/hsm-profiles/{}.toml",
        env!("CARGO_MANIFEST_DIR"),
        hsm.kind.profile()
    );
    let mut text = std::fs::read_to_string(shipped).unwrap();
    for (from, to) in changes {
        assert!(text.contains(from), "the profile has no {from}");
        text = text.replace(from, to);
    }
    let path = hsm.directory.path().join("altered.toml");
    std::fs::write(&path, text).unwrap();
    let mut config = hsm.config(name);
    config.profile = path.display().to_string();
    config
}

async fn default_kek(bench: &Bench, label: &str) {
    let defaults = Defaults {
        kek1: Some(label.parse().unwrap()),
        kek2: None,
    };
    bench.store().set_defaults(&defaults).await.unwrap();
}

fn shown(drive: &TestDrive) -> DriveInRequest {
    DriveInRequest {
        serial: drive.soft.serial().clone(),
        stores_eedks: true,
        public_key: None,
        session_key: None,
    }
}

fn wanted(drive: &TestDrive) -> CreateRequest {
    CreateRequest {
        job: None,
        request_id: Uuid::new_v4(),
        drive: shown(drive),
        volser: "MANY01".parse().unwrap(),
        kek1: None,
        kek2: None,
    }
}

async fn create(bench: &Bench, drive: &TestDrive) -> Vec<Base64> {
    let request = wanted(drive);
    let answer = bench.service.create(&drive.peer, &request).await;
    let answer = answer.unwrap().into_inner();
    answer.eedks.into_iter().map(|eedk| eedk.eedk).collect()
}

/// The token that opened the cartridge, as the record says.
async fn resolve(bench: &Bench, drive: &TestDrive, eedks: &[Base64]) -> String {
    let request = ResolveRequest {
        dki: None,
        request_id: Uuid::new_v4(),
        drive: shown(drive),
        volser: None,
        eedks: eedks.to_vec(),
        append: false,
    };
    bench.service.resolve(&drive.peer, &request).await.unwrap();
    request.request_id.to_string()
}

/// Reads the tape with so many requests under way at any time, so often each.
async fn steadily(
    bench: &Bench,
    drive: &TestDrive,
    eedks: &[Base64],
    readers: usize,
    reads: usize,
) -> Vec<String> {
    let readers = (0..readers).map(|_| async {
        let mut done = Vec::new();
        for _ in 0..reads {
            done.push(resolve(bench, drive, eedks).await);
        }
        done
    });
    join_all(readers).await.into_iter().flatten().collect()
}

/// How many of these requests each token answered. The record of a resolve's
/// outcome may be written a moment after its answer.
fn shares(bench: &Bench, requests: &[String]) -> BTreeMap<String, usize> {
    let all = || recorded(bench, requests).values().sum::<usize>() == requests.len();
    wait_for("the record of every answer", Duration::from_secs(30), all);
    recorded(bench, requests)
}

fn recorded(bench: &Bench, requests: &[String]) -> BTreeMap<String, usize> {
    let mut shares = BTreeMap::new();
    for record in ekm::audit::read(&bench.config.audit)
        .unwrap()
        .filter_map(Result::ok)
    {
        let ours = record
            .event
            .request
            .as_ref()
            .is_some_and(|id| requests.contains(id));
        if let Some(token) = record.event.token.filter(|_| ours) {
            *shares.entry(token).or_default() += 1;
        }
    }
    shares
}

fn state(bench: &Bench, token: usize) -> TokenState {
    bench.service.tokens().bridges()[token].state()
}

fn kill(pid: u32) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn four_bridges_drive_one_token_and_one_that_dies_costs_nothing() {
    for kind in [Kind::Embedded, Kind::Softhsm] {
        let hsm = Hsm::new(kind, "four").await;
        let config = altered(&hsm, "main", &[("processes = 1", "processes = 4")]);
        let bench = Bench::with(vec![config], PolicyConfig::default()).await;
        // Made by one of them, and known to all.
        bench.kek("KEK", "main", Custody::Token).await;
        default_kek(&bench, "KEK").await;
        wait_for("four bridges", Duration::from_secs(20), || {
            state(&bench, 0).bridges().len() == 4
        });
        let a = drive(bench.directory.path(), 1, kind.form());
        bench.enrol(&a).await;
        let tapes = join_all((0..16).map(|_| create(&bench, &a))).await;
        wait_for("ready", Duration::from_secs(60), || {
            state(&bench, 0).word() == "ready"
        });

        let killed = state(&bench, 0).bridges()[1];
        let reads = join_all(
            tapes
                .iter()
                .cycle()
                .take(64)
                .map(|tape| resolve(&bench, &a, tape)),
        );
        let death = async {
            kill(killed);
            let begun = Instant::now();
            while !matches!(state(&bench, 0), TokenState::Degraded { .. }) {
                assert!(
                    begun.elapsed() < Duration::from_secs(5),
                    "{:?}",
                    state(&bench, 0)
                );
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        // Each of the reads must succeed, those that the dead one had among them.
        tokio::join!(reads, death);
        wait_for("the fourth bridge again", Duration::from_secs(20), || {
            let state = state(&bench, 0);
            state.bridges().len() == 4 && state.word() == "ready"
        });
        assert!(!state(&bench, 0).bridges().contains(&killed));
    }
}

/// Two tokens with one KEK.
async fn twins(labels: [&str; 2]) -> (Vec<Hsm>, Vec<Faulty>) {
    let key = pkcs8_key();
    let mut hsms = Vec::new();
    for label in labels {
        let hsm = Hsm::new(Kind::SofthsmInProcess, label).await;
        let file = hsm.directory.path().join("kek.der");
        std::fs::write(&file, &key).unwrap();
        hsm.hand(&["import-private", "KEK", &file.display().to_string()]);
        hsms.push(hsm);
    }
    let faulty = hsms.iter().map(Faulty::before).collect();
    (hsms, faulty)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_load_goes_by_priority_and_by_what_each_token_sustains() {
    let (hsms, faulty) = twins(["fast", "slow"]).await;
    let at = |index: usize, name: &str| faulty[index].config(&hsms[index], name);
    let bench = Bench::with(
        vec![at(0, "main"), at(1, "second")],
        PolicyConfig::default(),
    )
    .await;
    default_kek(&bench, "KEK").await;
    let a = drive(bench.directory.path(), 1, Kind::SofthsmInProcess.form());
    bench.enrol(&a).await;
    let tape = create(&bench, &a).await;

    let read = async |count: usize| {
        let mut requests = Vec::new();
        for _ in 0..count / 8 {
            requests.extend(join_all((0..8).map(|_| resolve(&bench, &a, &tape))).await);
        }
        shares(&bench, &requests)
    };
    let even = read(80).await;
    assert!(even["main"] >= 25 && even["second"] >= 25, "{even:?}");

    // One token takes 300 ms for each key: the other gets the most of it.
    faulty[1].strike(Some("C_UnwrapKey"), 0, None, Fault::Delay(300));
    let requests = steadily(&bench, &a, &tape, 8, 25).await;
    let uneven = shares(&bench, &requests);
    let slow = uneven.get("second").copied().unwrap_or_default();
    assert!(uneven["main"] > 2 * slow, "{uneven:?}");
    faulty[1].heal();
    drop(bench);

    // The second one is for when the first is gone.
    let mut spare = at(1, "second");
    spare.priority = 2;
    let bench = Bench::with(vec![at(0, "main"), spare], PolicyConfig::default()).await;
    bench.enrol(&a).await;
    let requests = join_all((0..40).map(|_| resolve(&bench, &a, &tape))).await;
    // One that is not answered for a second is asked of the other too.
    assert!(shares(&bench, &requests)["main"] >= 36);
    faulty[0].strike(Some("C_Initialize"), 0, None, Fault::Abort);
    kill(state(&bench, 0).bridges()[0]);
    let requests = join_all((0..40).map(|_| resolve(&bench, &a, &tape))).await;
    let shares = shares(&bench, &requests);
    assert_eq!(shares.values().sum::<usize>(), 40, "{shares:?}");
    assert!(shares["second"] >= 30, "{shares:?}");
}

/// With four requests under way at any time, three at the one and one at the
/// other is the only division in which whoever has answered is asked next. So
/// the shares are 3 to 1 where both are as fast, which the delay sees to, and
/// within the bounds where either takes twice as long as the other.
#[tokio::test(flavor = "multi_thread")]
async fn equals_share_the_load_by_their_weight() {
    let (hsms, faulty) = twins(["heavy", "light"]).await;
    let mut heavy = faulty[0].config(&hsms[0], "main");
    heavy.weight = 3;
    let light = faulty[1].config(&hsms[1], "second");
    let bench = Bench::with(vec![heavy, light], PolicyConfig::default()).await;
    default_kek(&bench, "KEK").await;
    let a = drive(bench.directory.path(), 1, Kind::SofthsmInProcess.form());
    bench.enrol(&a).await;
    let tape = create(&bench, &a).await;
    for token in &faulty {
        token.strike(Some("C_UnwrapKey"), 0, None, Fault::Delay(100));
    }
    let requests = steadily(&bench, &a, &tape, 4, 40).await;
    let shares = shares(&bench, &requests);
    assert_eq!(shares.values().sum::<usize>(), 160, "{shares:?}");
    assert!((96..=144).contains(&shares["main"]), "{shares:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_hangs_costs_a_moment_where_another_has_the_key() {
    let (hsms, faulty) = twins(["hangs", "goes-on"]).await;
    let bench = Bench::with(
        vec![
            faulty[0].config(&hsms[0], "main"),
            faulty[1].config(&hsms[1], "second"),
        ],
        PolicyConfig::default(),
    )
    .await;
    default_kek(&bench, "KEK").await;
    let a = drive(bench.directory.path(), 1, Kind::SofthsmInProcess.form());
    bench.enrol(&a).await;
    let tape = create(&bench, &a).await;
    faulty[0].strike(Some("C_UnwrapKey"), 0, None, Fault::Hang);
    let begun = Instant::now();
    join_all((0..8).map(|_| resolve(&bench, &a, &tape))).await;
    assert!(
        begun.elapsed() < Duration::from_secs(10),
        "{:?}, and the deadline is 30 s",
        begun.elapsed()
    );
    // And it is seen for what it is, long before its calls are overdue.
    wait_for("a degraded token", Duration::from_secs(5), || {
        state(&bench, 0).why().is_some()
    });
    faulty[0].heal();
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_come_go_or_double_are_noticed_by_themselves() {
    let hsm = Hsm::new(Kind::SofthsmInProcess, "changing").await;
    let bench = Bench::new(&[&hsm], PolicyConfig::default()).await;
    bench.kek("KEK", "main", Custody::Token).await;
    let file = hsm.directory.path().join("kek.der");
    let known = |label: &str| {
        let found = state(&bench, 0).found().cloned().unwrap();
        found
            .keks
            .iter()
            .filter(|kek| kek.label.as_str() == label)
            .filter(|kek| !matches!(kek.private, ekm::bridge::message::PrivateHalf::Absent))
            .count()
    };
    let patience = Duration::from_secs(60);
    std::fs::write(&file, pkcs8_key()).unwrap();
    hsm.hand(&["import-private", "NEW", &file.display().to_string()]);
    wait_for("a key that another program made", patience, || {
        known("NEW") == 1
    });
    std::fs::write(&file, pkcs8_key()).unwrap();
    hsm.hand(&["import-private", "NEW", &file.display().to_string()]);
    wait_for("a second key of one label", patience, || known("NEW") == 2);
    hsm.hand(&["delete-private", "NEW"]);
    wait_for("that the keys are gone", patience, || known("NEW") == 0);
    assert_eq!(known("KEK"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn any_node_of_a_cluster_is_the_token_and_no_other_is() {
    let hsm = Hsm::new(Kind::SofthsmInProcess, "cluster").await;
    let bench = Bench::new(&[&hsm], PolicyConfig::default()).await;
    let serial = state(&bench, 0).found().unwrap().token.serial.clone();
    drop(bench);
    let mut node = hsm.config("main");
    node.serials = vec!["not-there".to_owned(), serial];
    let bench = Bench::with(vec![node.clone()], PolicyConfig::default()).await;
    assert_eq!(state(&bench, 0).word(), "ready");
    drop(bench);
    node.serials.pop();
    let directory = tempfile::tempdir().unwrap();
    let config = Bench::config(directory.path(), vec![node], PolicyConfig::default());
    let service = ekm::server::open(&config, &Program::at(EKM.into()))
        .await
        .unwrap();
    let why = service.tokens().bridges()[0].settled().await.unwrap_err();
    assert!(why.to_string().contains("not-there"), "{why}");
    // No login was tried: it is asked for again soon, and the operator sees when.
    assert!(matches!(
        service.tokens().bridges()[0].state(),
        TokenState::Failed { .. }
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_with_one_session_left_serves_with_one() {
    let hsm = Hsm::new(Kind::SofthsmInProcess, "crowded").await;
    let faulty = Faulty::before(&hsm);
    let bench = Bench::with(vec![faulty.config(&hsm, "main")], PolicyConfig::default()).await;
    bench.kek("KEK", "main", Custody::Token).await;
    default_kek(&bench, "KEK").await;
    let a = drive(bench.directory.path(), 1, Kind::SofthsmInProcess.form());
    bench.enrol(&a).await;
    let tape = create(&bench, &a).await;
    // A bridge has five sessions, and those of the one that died count on.
    faulty.change(|rules| {
        rules.session_limit = Some(SessionLimit {
            most: 6,
            linger_ms: 60_000,
            told: true,
        });
    });
    kill(state(&bench, 0).bridges()[0]);
    let begun = Instant::now();
    join_all((0..16).map(|_| resolve(&bench, &a, &tape))).await;
    assert!(
        begun.elapsed() < Duration::from_secs(20),
        "{:?}",
        begun.elapsed()
    );
    let crowded = state(&bench, 0);
    assert_eq!(crowded.word(), "degraded", "{crowded:?}");
    assert!(crowded.why().unwrap().contains("CKR_SESSION_COUNT"));
    faulty.change(|rules| rules.session_limit.as_mut().unwrap().linger_ms = 0);
    wait_for("all its sessions", Duration::from_secs(30), || {
        state(&bench, 0).word() == "ready"
    });
    join_all((0..16).map(|_| resolve(&bench, &a, &tape))).await;
}

/// A token that lacks the drive's form answered for one that has it and was starting anew: the
/// drive was told that its table does not fit, and its job ended.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_cannot_does_not_speak_for_one_that_is_away() {
    let (able, other) = (
        Hsm::new(Kind::SofthsmInProcess, "able").await,
        Hsm::new(Kind::SofthsmInProcess, "other").await,
    );
    let form = Kind::SofthsmInProcess.form();
    let faulty = Faulty::before(&able);
    let lacking = altered(
        &other,
        "other",
        &[("forms = [\"rsa-oaep-sha1\"]", "forms = []")],
    );
    let tokens = vec![faulty.config(&able, "able"), lacking];
    let bench = Bench::with(tokens, PolicyConfig::default()).await;
    bench.kek("KEK", "able", Custody::Token).await;
    default_kek(&bench, "KEK").await;
    let a = drive(bench.directory.path(), 1, form);
    bench.enrol(&a).await;
    create(&bench, &a).await;
    // It is away for seconds: a bridge has five sessions, and those of the one that died count on.
    faulty.change(|rules| {
        rules.session_limit = Some(SessionLimit {
            most: 1,
            linger_ms: 60_000,
            told: true,
        });
    });
    kill(state(&bench, 0).bridges()[0]);
    wait_for("the bridge to be missed", Duration::from_secs(5), || {
        !bench.service.tokens().bridges()[0].serves()
    });
    let refused = bench.service.create(&a.peer, &wanted(&a)).await;
    let problem = refused.unwrap_err();
    assert_eq!(problem.status, 503, "{problem:?}");
    assert!(problem.detail.contains("other"), "{problem:?}");
    faulty.change(|rules| rules.session_limit = None);
    wait_for("the bridge", Duration::from_secs(30), || {
        bench.service.tokens().bridges()[0].serves()
    });
    create(&bench, &a).await;
}
