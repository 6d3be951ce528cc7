//! Several servers on one PostgreSQL: real processes, a database that is killed, hangs or is cut
//! off.

mod load;
mod outage;
mod stage;

use std::collections::HashSet;
use std::time::{Duration, Instant};

use ekm::problem::EkmCode;
use ekm::proxy::{KeyServers, KeyService, ServerState};
use ekm::tls::{ClientPaths, ClientTls};

use crate::door::{Identity, PATIENCE};
use crate::pair::{becomes, is_from, server, times};
use crate::relay::{Relay, Way};
use stage::{Stage, eedks, refused};

/// How long after a change on one server another may still be asked as if there were none. It is
/// taken from when a request was sent, as a slow machine makes the answer late and no older.
const SECOND: Duration = Duration::from_millis(1100);

#[tokio::test(flavor = "multi_thread")]
async fn a_change_on_one_server_counts_on_the_others_within_a_second() {
    let Some(stage) = Stage::new(2, "", "").await else {
        return;
    };
    let (a, b) = (stage.serve(0).await, stage.serve(1).await);
    let mut there = stage.client(&b, 1);
    let serial = stage.drives[1].serial.to_string();
    there.create(&stage.create(1)).await.unwrap();

    stage.on(0, &["drive", "del", &serial]);
    let start = Instant::now();
    let gone = loop {
        let asked = Instant::now();
        match there.create(&stage.create(1)).await {
            Ok(_) => assert!(asked - start < SECOND, "still served"),
            Err(error) => break refused::<()>(Err(error)),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(gone.code, EkmCode::EF01);

    // A default that was set there, and what it takes here.
    stage.on(0, &["kek", "default", "--kek1", "KEK1:hash"]);
    let start = Instant::now();
    let mut own = stage.client(&b, 0);
    loop {
        let asked = Instant::now();
        let answer = own.create(&stage.create(0)).await.unwrap();
        if answer.eedks[0].encoding == ekm::key::Encoding::Hash {
            break;
        }
        assert!(asked - start < SECOND, "still by label");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let status = stage.on(1, &["fleet", "status"]);
    assert!(status.contains("synchronous_commit = on"), "{status}");
    assert!(status.lines().all(|line| line.len() <= 80), "{status}");
    a.stop();
    b.stop();
}

async fn keys(stage: &Stage, relays: &[Relay]) -> KeyService {
    let Identity {
        ca,
        certificate,
        key,
    } = stage.drives[0].identity.clone();
    let paths = ClientPaths {
        ca,
        certificate,
        key,
    };
    let servers = KeyServers::of(relays.iter().map(server).collect()).unwrap();
    KeyService::start(servers, ClientTls::load(paths).unwrap(), times()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_retried_on_the_other_server_is_the_same_data_key() {
    let Some(stage) = Stage::new(1, "", "").await else {
        return;
    };
    let (a, b) = (stage.serve(0).await, stage.serve(1).await);
    let relays = [Relay::to(&a.address).await, Relay::to(&b.address).await];
    let keys = keys(&stage, &relays).await;
    for _ in 0..3 {
        let request = stage.create(0);
        relays[0].lose_one_answer(Way::Closed);
        let served = keys.create(&request, None).await.unwrap();
        assert_eq!(relays[0].to_lose(), 0, "nothing was lost");
        assert!(is_from(&served.by, &relays[1]));
        relays[0].set(Way::Open);
        // What the first one made, and did not get to tell.
        let given = stage.sql(&format!(
            "SELECT g.dki || ' ' || g.server FROM requests r JOIN generations g USING (dki, generation)
             WHERE r.request LIKE '{}%'",
            request.request_id
        ));
        assert_eq!(given.trim(), format!("{} a", served.answer.dki));
        becomes(&keys, 0, ServerState::Ready).await;
    }

    // Both at once, while the first is still working.
    let (mut here, mut there) = (stage.client(&a, 0), stage.client(&b, 0));
    for _ in 0..10 {
        let request = stage.create(0);
        let (one, other) = tokio::join!(here.create(&request), there.create(&request));
        let (one, other) = (one.unwrap(), other.unwrap());
        assert_eq!(one.dki, other.dki);
        assert_eq!(eedks(&one), eedks(&other));
        assert!(stage.opened(0, &one.sedk) == stage.opened(0, &other.sedk));
    }
    assert_eq!(stage.sql("SELECT count(*) FROM data_keys").trim(), "13");
    let made = stage.sql("SELECT DISTINCT dki FROM generations");
    let told: HashSet<String> = (0..2)
        .flat_map(|node| stage.records(node))
        .filter_map(|record| record.event.dki)
        .collect();
    assert!(made.lines().all(|dki| told.contains(dki)));
    a.stop();
    b.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_written_under_a_kek_that_a_peer_lacks_and_the_difference_is_an_alarm() {
    let Some(stage) = Stage::new(1, "", "[fleet]\nnodes = [\"a\", \"b\"]\n").await else {
        return;
    };
    let a = stage.serve(0).await;
    let mut here = stage.client(&a, 0);
    let alone = refused(here.create(&stage.create(0)).await);
    assert_eq!(alone.code, EkmCode::EE31);
    assert!(
        alone.detail.contains("what server b has is not known"),
        "{}",
        alone.detail
    );
    let b = stage.serve(1).await;
    stage
        .becomes(0, "two servers", |status| {
            status["servers"].as_array().unwrap().len() == 2
        })
        .await;
    let start = Instant::now();
    while here.create(&stage.create(0)).await.is_err() {
        assert!(start.elapsed() < PATIENCE, "still refused");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    // Each has a token of its own, so a KEK that is made on one is not on the other.
    stage.on(0, &["kek", "generate", "ONLYA", "--bits", "2048"]);
    let mut request = stage.create(0);
    request.kek1 = Some("ONLYA".parse().unwrap());
    let lacks = refused(here.create(&request).await);
    assert_eq!((lacks.code, lacks.status), (EkmCode::EE31, 409));
    for part in ["ONLYA", "token main of server b", "require_kek_everywhere"] {
        assert!(lacks.detail.contains(part), "{part}: {}", lacks.detail);
    }
    let watcher = stage.house.identity("operator", "watcher");
    let mut watcher = stage.house.client_of(&b, &watcher);
    let start = Instant::now();
    loop {
        let (_, body) = watcher.get("/readyz").await.unwrap();
        let text = String::from_utf8_lossy(&body).into_owned();
        if text.contains("EKM-A23") {
            assert!(text.contains("it is on no token of b"), "{text}");
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(40), "{text}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let status = stage.on(1, &["fleet", "status"]);
    assert!(status.contains("ONLYA: it is on no token of b"), "{status}");
    a.stop();
    b.stop();
}
