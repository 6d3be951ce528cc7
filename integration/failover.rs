//! A list of key servers: real servers, and ways to them that fail.

mod certified;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ekm::api::{Base64, ConfirmRequest, CreateAnswer};
use ekm::problem::EkmCode;
use ekm::proxy::{
    Confirmed, KeyServers, KeyService, Served, ServerState, ServiceError, Times, Which,
};
use rustix::process::Signal;
use secrecy::ExposeSecret as _;
use tokio::task::JoinSet;

use crate::door::PATIENCE;
use crate::pair::{Pair, becomes, is_from, server, times};
use crate::relay::{Relay, Way};
use crate::support::wait_for;

fn eedks(answer: &CreateAnswer) -> Vec<Base64> {
    answer.eedks.iter().map(|one| one.eedk.clone()).collect()
}

fn confirm(pair: &Pair, drive: usize, answer: &CreateAnswer) -> ConfirmRequest {
    ConfirmRequest {
        request_id: answer.request_id,
        serial: pair.drives[drive].serial.clone(),
        dki: answer.dki,
        stored: true,
    }
}

fn refused<T: std::fmt::Debug>(outcome: Result<T, ServiceError>) -> (String, EkmCode) {
    match outcome {
        Err(ServiceError::Refused { server, problem }) => (server.to_string(), problem.code),
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_the_primary_during_two_hundred_mounts_fails_none() {
    let pair = Arc::new(Pair::new(1));
    let ([primary, _secondary], relays) = pair.both().await;
    let keys = pair.keys(&relays, times()).await;
    let first = keys.create(&pair.create(0), None).await.unwrap();
    assert!(is_from(&first.by, &relays[0]));
    let key = *pair.drives[0]
        .soft
        .unwrap_sedk(&first.answer.sedk)
        .unwrap()
        .expose_secret();
    let tape = eedks(&first.answer);

    let next = Arc::new(AtomicUsize::new(0));
    let mut mounts = JoinSet::new();
    for _ in 0..16 {
        let (pair, keys, next) = (Arc::clone(&pair), keys.clone(), Arc::clone(&next));
        let tape = tape.clone();
        mounts.spawn(async move {
            let mut by_secondary = 0;
            loop {
                let n = next.fetch_add(1, Ordering::SeqCst);
                if n >= 200 {
                    return by_secondary;
                }
                // Every fourth one writes.
                let by = if n % 4 == 0 {
                    keys.create(&pair.create(0), None).await.unwrap().by
                } else {
                    let request = pair.resolve(0, &tape);
                    let served = keys.resolve(&request, None).await.unwrap();
                    let opened = pair.drives[0]
                        .soft
                        .unwrap_sedk(&served.answer.sedk)
                        .unwrap();
                    assert!(*opened.expose_secret() == key);
                    served.by
                };
                let secondary = &keys.servers().servers[1].address;
                by_secondary += usize::from(by.address() == secondary);
            }
        });
    }
    while next.load(Ordering::SeqCst) < 60 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    primary.signal(Signal::KILL);
    let by_secondary: usize = mounts.join_all().await.into_iter().sum();
    assert!(by_secondary > 50, "{by_secondary} of 200");
    let seen = keys.seen();
    assert_eq!(seen.servers[0].state, ServerState::Down);
    assert!(seen.servers[0].failure.is_some() && seen.servers[1].next);

    // Used again as soon as it is back, without anybody's doing.
    drop(primary);
    let primary = pair.serve(0).await;
    relays[0].leads_to(&primary.address);
    becomes(&keys, 0, ServerState::Ready).await;
    let again = keys.resolve(&pair.resolve(0, &tape), None).await.unwrap();
    assert!(is_from(&again.by, &relays[0]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_hangs_costs_its_time_and_no_more() {
    let pair = Pair::new(1);
    let (_servings, relays) = pair.both().await;
    let brief = Times {
        connect: Duration::from_secs(2),
        answer: Duration::from_secs(2),
        ..times()
    };
    let keys = pair.keys(&relays, brief).await;
    let Served { answer, .. } = keys.create(&pair.create(0), None).await.unwrap();
    let tape = eedks(&answer);
    relays[0].set(Way::Silent);
    // A resolve is the same anywhere: it has one try there.
    let start = Instant::now();
    let served = keys.resolve(&pair.resolve(0, &tape), None).await.unwrap();
    assert!(is_from(&served.by, &relays[1]));
    let took = start.elapsed();
    assert!(
        (Duration::from_millis(1900)..Duration::from_secs(9)).contains(&took),
        "{took:?}"
    );
    // The next ones do not wait for it at all, or they would take ten seconds.
    let start = Instant::now();
    for _ in 0..5 {
        let served = keys.resolve(&pair.resolve(0, &tape), None).await.unwrap();
        assert!(is_from(&served.by, &relays[1]));
    }
    assert!(start.elapsed() < Duration::from_secs(6));
    let seen = keys.seen();
    let failure = seen.servers[0].failure.clone().unwrap().reason;
    assert!(
        failure.contains("did not answer") || failure.contains("no connection"),
        "{failure}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn with_both_down_a_request_waits_its_time_and_says_why() {
    let pair = Pair::new(1);
    let (_servings, relays) = pair.both().await;
    for relay in &relays {
        relay.set(Way::Closed);
    }
    let patient = Times {
        total: Duration::from_secs(3),
        ..times()
    };
    let keys = pair.keys(&relays, patient).await;
    for _ in 0..2 {
        let start = Instant::now();
        let failed = keys.create(&pair.create(0), None).await.unwrap_err();
        let took = start.elapsed();
        assert!(
            (Duration::from_millis(2900)..Duration::from_secs(9)).contains(&took),
            "{took:?}"
        );
        let text = failed.to_string();
        assert!(
            text.starts_with("no key server answered within 3 s: "),
            "{text}"
        );
        for relay in &relays {
            let said = format!("{} cannot be reached: ", relay.address);
            assert!(text.contains(&said), "{text}");
        }
    }
    // One comes back while a request waits.
    let keys = pair.keys(&relays, times()).await;
    let waiting = {
        let (keys, request) = (keys.clone(), pair.create(0));
        tokio::spawn(async move { keys.create(&request, None).await })
    };
    tokio::time::sleep(Duration::from_secs(1)).await;
    relays[1].set(Way::Open);
    let served = waiting.await.unwrap().unwrap();
    assert!(is_from(&served.by, &relays[1]));
    // Who does not want to wait is told at once.
    relays[1].set(Way::Closed);
    let hasty = Times {
        wait: false,
        ..times()
    };
    let keys = pair.keys(&relays, hasty).await;
    let start = Instant::now();
    keys.create(&pair.create(0), None).await.unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(8));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_lost_is_had_again_from_the_same_server_with_the_same_data_key() {
    let pair = Pair::new(1);
    let (_servings, relays) = pair.both().await;
    let keys = pair.keys(&relays, times()).await;
    // On a new connection, and then on one that rested.
    for made in 1..=2 {
        relays[0].lose_one_answer(Way::Open);
        let served = keys.create(&pair.create(0), None).await.unwrap();
        assert_eq!(relays[0].to_lose(), 0, "nothing was lost");
        assert!(is_from(&served.by, &relays[0]));
        let confirmed = keys
            .confirm(&served.by, &confirm(&pair, 0, &served.answer))
            .await;
        confirmed.unwrap();
        let history = pair.history(0);
        assert_eq!(history.len(), made, "{history:?}");
        assert!(history.contains(&(served.answer.dki.to_string(), "confirmed".to_owned())));
    }
    assert_eq!(pair.history(1), []);
}

/// The two servers share no state, so each makes a data key. One of them is on the cartridge, and
/// that one is confirmed; of the other nobody has an SEDK.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_lost_with_its_server_leaves_one_data_key_on_the_cartridge() {
    let pair = Pair::new(1);
    let (_servings, relays) = pair.both().await;
    let drive = &pair.drives[0];
    let (a, b) = (relays[0].address.to_string(), relays[1].address.to_string());
    let own = |path: &std::path::Path| path.display().to_string();
    let (ca, certificate, key) = (
        own(&drive.identity.ca),
        own(&drive.identity.certificate),
        own(&drive.identity.key),
    );
    let directory = &drive.directory;
    pair.house.done(&[
        "softdrive",
        "connect",
        directory,
        "--server",
        &a,
        "--server",
        &b,
        "--ca",
        &ca,
        "--tls-cert",
        &certificate,
        "--tls-key",
        &key,
    ]);
    relays[0].lose_one_answer(Way::Closed);
    let written = pair
        .house
        .command(&["softdrive", "write", "--drive", directory])
        .args(["--cartridge", "tape", "--volser", "VOL001"])
        .stdin(std::fs::File::open(pair.house.at("ekm.toml")).unwrap())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&written.stderr);
    assert!(written.status.success(), "{said}");
    assert_eq!(relays[0].to_lose(), 0, "nothing was lost");
    relays[0].set(Way::Open);

    let show = ["softdrive", "show", "--cartridge", "tape", "--json"];
    let shown: serde_json::Value = serde_json::from_str(&pair.house.done(&show)).unwrap();
    let on_tape = shown["dki"].as_str().unwrap().to_owned();
    assert_eq!(pair.history(1), [(on_tape.clone(), "confirmed".to_owned())]);
    let [(other, state)] = &pair.history(0)[..] else {
        panic!("{:?}", pair.history(0));
    };
    assert!(*other != on_tape && state == "issued", "{other} {state}");

    // Both servers open it: the KEK is the same.
    let original = std::fs::read_to_string(pair.house.at("ekm.toml")).unwrap();
    for one in [&a, &b] {
        let read = [
            "softdrive",
            "read",
            "--drive",
            directory,
            "--cartridge",
            "tape",
            "--server",
            one,
        ];
        assert!(pair.house.done(&read) == original);
    }
    // Neither is there: the message names both, at once.
    for relay in &relays {
        relay.set(Way::Closed);
    }
    let read = [
        "softdrive",
        "read",
        "--drive",
        directory,
        "--cartridge",
        "tape",
    ];
    let failed = pair.house.run(&read);
    let said = String::from_utf8_lossy(&failed.stderr);
    assert_eq!(failed.status.code(), Some(1));
    assert!(said.contains(&a) && said.contains(&b), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_server_forbids_is_asked_of_no_other() {
    let pair = Pair::new(2);
    let (_servings, relays) = pair.both().await;
    let keys = pair.keys(&relays, times()).await;
    let Served { answer, .. } = keys.create(&pair.create(1), None).await.unwrap();
    // Taken out of the primary's table; the secondary's is behind.
    pair.on(0, &["drive", "del", pair.drives[1].serial.as_str()]);
    let request = pair.resolve(1, &eedks(&answer));
    let by = refused(keys.resolve(&request, None).await);
    assert_eq!(by, (relays[0].address.to_string(), EkmCode::EF01));
    assert!(pair.recorded(0, &request.request_id));
    assert!(!pair.recorded(1, &request.request_id));
    assert_eq!(relays[1].accepted(), 0);
    assert_eq!(keys.seen().servers[0].state, ServerState::Ready);

    // A drive's key that is not the one that is trusted.
    let mut request = pair.create(0);
    request.drive.public_key = pair.create(1).drive.public_key;
    let by = refused(keys.create(&request, None).await);
    assert_eq!(by, (relays[0].address.to_string(), EkmCode::EE2B));
    assert_eq!(relays[1].accepted(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_server_does_not_know_is_asked_of_the_next() {
    let pair = Pair::new(1);
    let (_servings, relays) = pair.both().await;
    let keys = pair.keys(&relays, times()).await;
    pair.on(1, &["kek", "generate", "ONLYB", "--bits", "2048"]);
    let mut request = pair.create(0);
    request.kek1 = Some("ONLYB".parse().unwrap());
    let Served { answer, by } = keys.create(&request, None).await.unwrap();
    assert!(is_from(&by, &relays[1]));
    let served = keys
        .resolve(&pair.resolve(0, &eedks(&answer)), None)
        .await
        .unwrap();
    assert!(is_from(&served.by, &relays[1]));
    // What was keyed there can only be appended to there.
    let mut append = pair.resolve(0, &eedks(&answer));
    append.append = true;
    let served = keys.resolve(&append, None).await.unwrap();
    assert!(is_from(&served.by, &relays[1]));
    // The primary is none the worse for it.
    assert!(keys.seen().servers[0].next);
    let served = keys.create(&pair.create(0), None).await.unwrap();
    assert!(is_from(&served.by, &relays[0]));
    // Nobody knows it: what the first one said.
    request.kek1 = Some("NOBODYS".parse().unwrap());
    request.request_id = uuid::Uuid::new_v4();
    let by = refused(keys.create(&request, None).await);
    assert_eq!(by, (relays[0].address.to_string(), EkmCode::EE31));
}

/// Of three connections, so many may seem to be open: a relay counts one until it has read its end,
/// and the next one may come to it sooner.
const LATE: usize = 6;

/// Waits until all are answered, and looks meanwhile at how many connections there are.
async fn all_within(keys: &KeyService, mut mounts: JoinSet<Result<(), ServiceError>>, most: usize) {
    while !mounts.is_empty() {
        let open = keys.seen().open;
        assert!(open <= most, "{open} connections");
        let next = tokio::time::timeout(Duration::from_millis(2), mounts.join_next());
        if let Ok(Some(outcome)) = next.await {
            outcome.unwrap().unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn there_are_never_more_connections_than_maxconn() {
    let pair = Pair::new(1);
    let (_servings, relays) = pair.both().await;
    let few = |servers: &[&Relay]| KeyServers {
        servers: servers.iter().map(|relay| server(relay)).collect(),
        maxconn: 3,
        maxpconn: 2,
    };
    let keys = pair.keys_of(few(&[&relays[0], &relays[1]]), times()).await;
    let Served { answer, .. } = keys.create(&pair.create(0), None).await.unwrap();
    let tape = eedks(&answer);
    let mut mounts = JoinSet::new();
    for _ in 0..40 {
        let (keys, request) = (keys.clone(), pair.resolve(0, &tape));
        mounts.spawn(async move { keys.resolve(&request, None).await.map(drop) });
    }
    all_within(&keys, mounts, 3).await;
    assert!(relays[0].most() <= LATE, "{}", relays[0].most());
    // A socket is closed a moment after its exchange.
    wait_for("the end of all but two", PATIENCE, || {
        relays[0].open() == 2 && keys.seen().open == 2
    });
    let seen = keys.seen();
    assert_eq!((seen.maxconn, seen.maxpconn), (3, 2));
    assert_eq!(seen.servers[0].connections, 2);

    // They hang: three at a time, the others wait for their turn.
    relays[0].set(Way::Silent);
    let mut mounts = JoinSet::new();
    for _ in 0..12 {
        let (keys, request) = (keys.clone(), pair.resolve(0, &tape));
        mounts.spawn(async move { keys.resolve(&request, None).await.map(drop) });
    }
    all_within(&keys, mounts, 3).await;
    assert!(relays[0].most() <= LATE, "{}", relays[0].most());

    // Fewer, at run time.
    let fewer = KeyServers {
        servers: vec![server(&relays[1])],
        maxconn: 1,
        maxpconn: 0,
    };
    keys.set(fewer);
    let before = relays[1].accepted();
    let mut mounts = JoinSet::new();
    for _ in 0..6 {
        let (keys, request) = (keys.clone(), pair.resolve(0, &tape));
        mounts.spawn(async move { keys.resolve(&request, None).await.map(drop) });
    }
    for outcome in mounts.join_all().await {
        outcome.unwrap();
    }
    assert_eq!(relays[1].accepted() - before, 6);
    // A socket is closed a moment after its exchange.
    wait_for("the end of all connections", PATIENCE, || {
        keys.seen().open == 0 && relays[1].open() == 0
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_confirm_waits_for_the_server_that_made_the_data_key() {
    let pair = Pair::new(1);
    let (_servings, relays) = pair.both().await;
    let keys = pair.keys(&relays, times()).await;
    let Served { answer, by } = keys.create(&pair.create(0), None).await.unwrap();
    relays[0].set(Way::Closed);
    let request = confirm(&pair, 0, &answer);
    keys.confirm(&by, &request).await.unwrap_err();
    let told = keys.confirm_or_later(&by, &request).await.unwrap();
    assert!(matches!(told, Confirmed::Later), "{told:?}");
    assert_eq!(keys.seen().confirms_waiting, 1);
    assert_eq!(pair.history(0)[0].1, "issued");
    // No other is asked: it would only be a refusal in its records.
    assert!(!pair.recorded(1, &request.request_id));
    relays[0].set(Way::Open);
    let start = Instant::now();
    while keys.seen().confirms_waiting > 0 || pair.history(0)[0].1 != "confirmed" {
        assert!(start.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_confirm_that_waits_is_told_by_a_proxy_that_starts_anew() {
    let pair = Pair::new(1);
    let (_servings, relays) = pair.both().await;
    let directory = pair.house.at("confirms");
    let keys = pair.keys_keeping(&relays, &directory).await;
    let Served { answer, by } = keys.create(&pair.create(0), None).await.unwrap();
    let request = confirm(&pair, 0, &answer);
    keys.confirm(&by, &request).await.unwrap();
    relays[0].set(Way::Closed);
    // The job wrote nothing.
    let request = ConfirmRequest {
        stored: false,
        ..request
    };
    let told = keys.confirm_or_later(&by, &request).await.unwrap();
    assert!(matches!(told, Confirmed::Later), "{told:?}");
    drop((keys, by));
    assert_eq!(pair.history(0)[0].1, "confirmed");
    relays[0].set(Way::Open);
    let keys = pair.keys_keeping(&relays, &directory).await;
    wait_for("the confirm, and the end of its file", PATIENCE, || {
        pair.history(0)[0].1 == "abandoned" && std::fs::read_dir(&directory).unwrap().count() == 0
    });
    assert_eq!(keys.seen().confirms_waiting, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_word_that_nothing_was_written_is_kept_and_shown() {
    let pair = Pair::new(1);
    let (_servings, relays) = pair.both().await;
    let directory = pair.house.at("confirms");
    let keys = pair.keys_keeping(&relays, &directory).await;
    let Served { answer, by } = keys.create(&pair.create(0), None).await.unwrap();
    for (stored, kept) in [(true, 0), (false, 1)] {
        let request = ConfirmRequest {
            request_id: uuid::Uuid::new_v4(),
            stored,
            ..confirm(&pair, 0, &answer)
        };
        let (_, code) = refused(keys.confirm_or_later(&by, &request).await);
        assert_eq!(code, EkmCode::EE30);
        let seen = keys.seen();
        assert_eq!(seen.confirms_refused.len(), kept);
        assert_eq!(seen.confirms_waiting, kept);
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), kept);
    }
    assert_eq!(keys.seen().confirms_refused[0].dki, answer.dki);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_a_token_is_passed_over_until_it_has_one() {
    let pair = Pair::new(1);
    let (token, away) = (pair.house.at("token"), pair.house.at("away"));
    std::fs::rename(&token, &away).unwrap();
    let primary = pair.launch(0).await;
    let secondary = pair.serve(1).await;
    let relays = [
        Relay::to(&primary.address).await,
        Relay::to(&secondary.address).await,
    ];
    let keys = pair.keys(&relays, times()).await;
    let served = keys.create(&pair.create(0), None).await.unwrap();
    assert!(is_from(&served.by, &relays[1]));
    becomes(&keys, 0, ServerState::NotReady).await;
    let verified = keys.verify(Which::All).await;
    let failure = verified[0].failure.clone().unwrap();
    assert!(
        failure.starts_with("is not ready: no token is ready"),
        "{failure}"
    );
    assert_eq!(verified[1].failure, None);
    let _ = std::fs::remove_dir_all(&token);
    std::fs::rename(&away, &token).unwrap();
    becomes(&keys, 0, ServerState::Ready).await;
    let served = keys.create(&pair.create(0), None).await.unwrap();
    assert!(is_from(&served.by, &relays[0]));
}
