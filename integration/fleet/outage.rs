//! Without the database.

use std::time::{Duration, Instant};

use ekm::api::ConfirmRequest;
use ekm::audit::Outcome;
use ekm::problem::EkmCode;
use ekm::store::EedkState;
use rustix::process::Signal;

use super::stage::{Stage, eedks, reads, refused};
use crate::door::{PATIENCE, Serving};
use crate::support::wait_for;

/// Waits until a server tells of all these alarms at once.
async fn alarms(stage: &Stage, serving: &Serving, codes: &[&str]) {
    let watcher = stage.house.identity("operator", "watcher");
    let mut watcher = stage.house.client_of(serving, &watcher);
    let start = Instant::now();
    loop {
        let (_, body) = watcher.get("/readyz").await.unwrap();
        let text = String::from_utf8_lossy(&body).into_owned();
        if codes.iter().all(|code| text.contains(code)) {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "{text}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_database_a_server_reads_and_queues_what_the_cartridge_keeps() {
    let Some(stage) = Stage::new(1, "", "").await else {
        return;
    };
    let a = stage.serve(0).await;
    let mut here = stage.client(&a, 0);
    let known = here.create(&stage.create(0)).await.unwrap();
    let (tape, key) = (eedks(&known), stage.opened(0, &known.sedk));
    // One that this server has neither made nor read.
    let b = stage.serve(1).await;
    let strange = stage.client(&b, 0).create(&stage.create(0)).await.unwrap();
    b.stop();

    stage.postgres.kill();
    stage
        .becomes(0, "out of reach", |status| {
            !status["database"]["outage"].is_null()
        })
        .await;
    assert!(reads(&stage, &mut here, 0, &tape, &key).await.issued_here);
    let other = stage.opened(0, &strange.sedk);
    let answer = reads(&stage, &mut here, 0, &eedks(&strange), &other).await;
    assert!(!answer.issued_here, "nobody can say so now");
    // Appends only where it is remembered that the data key was made here.
    let mut append = stage.resolve(0, &tape);
    append.append = true;
    here.resolve(&append).await.unwrap();
    let mut append = stage.resolve(0, &eedks(&strange));
    append.append = true;
    let later = refused(here.resolve(&append).await);
    assert_eq!((later.code, later.status), (EkmCode::EE0F, 503));
    assert!(later.detail.contains("out of reach"), "{}", later.detail);

    // Creates only where the EEDKs are read back from the cartridge.
    let request = stage.create(0);
    let queued = here.create(&request).await.unwrap();
    let mut blind = stage.create(0);
    blind.drive.stores_eedks = false;
    let later = refused(here.create(&blind).await);
    assert_eq!((later.code, later.status), (EkmCode::EE0F, 503));
    assert!(later.detail.contains("stores_eedks"), "{}", later.detail);
    // A repeated one is the same.
    assert_eq!(here.create(&request).await.unwrap().dki, queued.dki);
    assert_eq!(stage.status(0)["database"]["at_risk"], 1);
    alarms(&stage, &a, &["EKM-A24", "EKM-A25"]).await;

    // Also after a kill -9, from what is on its disk.
    a.kill();
    let a = stage.serve(0).await;
    let mut here = stage.client(&a, 0);
    reads(&stage, &mut here, 0, &tape, &key).await;
    let again = here.create(&request).await.unwrap();
    assert_eq!(again.dki, queued.dki);
    let more = here.create(&stage.create(0)).await.unwrap();
    let confirm = ConfirmRequest {
        request_id: request.request_id,
        serial: stage.drives[0].serial.clone(),
        dki: queued.dki,
        stored: true,
    };
    let confirmed = here.confirm(&confirm).await.unwrap();
    assert_eq!(confirmed.state, EedkState::Confirmed);

    // It is back, and all of it is in the history, once.
    stage.postgres.up();
    stage
        .becomes(0, "without a backlog", |status| {
            let database = &status["database"];
            database["outage"].is_null() && database["queued"] == 0 && database["at_risk"] == 0
        })
        .await;
    let state = |dki: &ekm::key::DataKeyId| {
        let state = stage.sql(&format!(
            "SELECT state FROM eedk_states WHERE dki = '{dki}' ORDER BY id"
        ));
        state.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(state(&queued.dki), "issued confirmed");
    assert_eq!(state(&more.dki), "issued");
    assert_eq!(stage.sql("SELECT count(*) FROM data_keys").trim(), "4");
    assert!(
        reads(
            &stage,
            &mut here,
            0,
            &eedks(&more),
            &stage.opened(0, &more.sedk)
        )
        .await
        .issued_here
    );
    // It counts as brought in before that is on record, and before the file is empty.
    let brought = || {
        let records = ekm::audit::read(&stage.house.at("audit-a")).unwrap();
        let records = records.filter_map(Result::ok);
        let brought = records.filter(|record| record.event.action == "history-brought-in");
        brought.count()
    };
    wait_for("the records of what was brought in", PATIENCE, || {
        brought() >= 3
    });
    assert_eq!(brought(), 3);
    wait_for("an empty queue", PATIENCE, || {
        std::fs::read(stage.state(0).join("fleet-queue.jsonl"))
            .unwrap()
            .is_empty()
    });
    a.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_two_servers_answered_in_the_outage_keeps_both_data_keys() {
    let Some(stage) = Stage::new(1, "", "").await else {
        return;
    };
    let (a, b) = (stage.serve(0).await, stage.serve(1).await);
    stage.postgres.kill();
    for node in [0, 1] {
        let down = |status: &serde_json::Value| !status["database"]["outage"].is_null();
        stage.becomes(node, "out of reach", down).await;
    }
    let request = stage.create(0);
    let (mut here, mut there) = (stage.client(&a, 0), stage.client(&b, 0));
    let lost = here.create(&request).await.unwrap();
    let given = there.create(&request).await.unwrap();
    assert_ne!(lost.dki, given.dki);
    stage.postgres.up();
    for node in [0, 1] {
        let whole = |status: &serde_json::Value| {
            status["database"]["outage"].is_null() && status["database"]["queued"] == 0
        };
        stage.becomes(node, "without a backlog", whole).await;
    }
    let kept = stage.sql("SELECT dki FROM data_keys");
    for dki in [lost.dki, given.dki] {
        assert!(kept.contains(&dki.to_string()), "{kept}");
    }
    // Whichever the drive has can be confirmed, at either server.
    for (client, dki) in [(&mut there, lost.dki), (&mut here, given.dki)] {
        let confirm = ConfirmRequest {
            request_id: request.request_id,
            serial: stage.drives[0].serial.clone(),
            dki,
            stored: true,
        };
        client.confirm(&confirm).await.unwrap();
    }
    a.stop();
    b.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drive_that_was_deleted_meanwhile_gets_no_key_after_the_maximum_age() {
    let Some(stage) = Stage::new(2, "cache_seconds = 20", "").await else {
        return;
    };
    let (a, b) = (stage.serve(0).await, stage.serve(1).await);
    let mut here = stage.client(&a, 1);
    let made = here.create(&stage.create(1)).await.unwrap();
    let (tape, key) = (eedks(&made), stage.opened(1, &made.sedk));
    stage.wire.cut();
    let cut = Instant::now();
    stage.on(1, &["drive", "del", stage.drives[1].serial.as_str()]);
    // The other server knows soon.
    let mut there = stage.client(&b, 1);
    let gone = loop {
        match there.resolve(&stage.resolve(1, &tape)).await {
            Ok(_) => assert!(cut.elapsed() < PATIENCE, "still served"),
            Err(error) => break refused::<()>(Err(error)),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert_eq!(gone.code, EkmCode::EF01);
    // This one cannot, for as long as its table serves.
    reads(&stage, &mut here, 1, &tape, &key).await;
    tokio::time::sleep(Duration::from_millis(21_500).saturating_sub(cut.elapsed())).await;
    for drive in [0, 1] {
        let mut client = stage.client(&a, drive);
        let closed = refused(client.resolve(&stage.resolve(drive, &tape)).await);
        assert_eq!((closed.code, closed.status), (EkmCode::EE0F, 503));
        assert!(closed.detail.contains("cache_seconds"), "{}", closed.detail);
    }
    // Nor does it start with that.
    a.kill();
    let said = stage.launch(0).await.err().unwrap();
    assert!(said.contains("database.cache_seconds = 20"), "{said}");
    stage.wire.mend();
    let a = stage.serve(0).await;
    let gone = refused(stage.client(&a, 1).resolve(&stage.resolve(1, &tape)).await);
    assert_eq!(gone.code, EkmCode::EF01);
    a.stop();
    b.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cached_table_that_was_changed_on_the_disk_serves_nobody() {
    let Some(stage) = Stage::new(1, "", "").await else {
        return;
    };
    stage.serve(0).await.kill();
    stage.wire.cut();
    let path = stage.state(0).join("fleet-cache.json");
    let good = std::fs::read_to_string(&path).unwrap();
    let serial = stage.drives[0].serial.to_string();
    assert!(good.contains(&serial));
    std::fs::write(&path, good.replace(&serial, "000000000099")).unwrap();
    let said = stage.launch(0).await.err().unwrap();
    assert!(said.contains("its seal does not verify"), "{said}");
    // As it was it serves; another server's it is not.
    std::fs::write(&path, &good).unwrap();
    let a = stage.serve(0).await;
    stage.client(&a, 0).create(&stage.create(0)).await.unwrap();
    a.kill();
    std::fs::remove_file(&path).unwrap();
    let said = stage.launch(0).await.err().unwrap();
    assert!(said.contains("no cached table"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_hangs_costs_a_request_its_time_and_the_next_one_nothing() {
    let Some(stage) = Stage::new(1, "", "").await else {
        return;
    };
    let b = stage.serve(1).await;
    let mut there = stage.client(&b, 0);
    let made = there.create(&stage.create(0)).await.unwrap();
    let (tape, key) = (eedks(&made), stage.opened(0, &made.sedk));
    stage.postgres.signal(Signal::STOP);
    let start = Instant::now();
    reads(&stage, &mut there, 0, &tape, &key).await;
    let first = start.elapsed();
    // An answer's time, and a second to say anything at all.
    assert!(first < Duration::from_secs(15), "{first:?}");
    stage
        .becomes(1, "out of reach", |status| {
            !status["database"]["outage"].is_null()
        })
        .await;
    let start = Instant::now();
    for _ in 0..10 {
        reads(&stage, &mut there, 0, &tape, &key).await;
    }
    let queued = there.create(&stage.create(0)).await.unwrap();
    // Eleven times an answer's time would be more than half a minute.
    assert!(
        start.elapsed() < Duration::from_secs(20),
        "{:?}",
        start.elapsed()
    );
    stage.postgres.signal(Signal::CONT);
    stage
        .becomes(1, "whole", |status| {
            status["database"]["outage"].is_null() && status["database"]["queued"] == 0
        })
        .await;
    let kept = stage.sql("SELECT dki FROM data_keys");
    assert!(kept.contains(&queued.dki.to_string()), "{kept}");
    b.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_answered_before_the_synchronous_replica_has_it() {
    let Some(stage) = Stage::new(1, "", "").await else {
        return;
    };
    let replica = stage.postgres.replica("second");
    stage.wait_for_replica("second");
    let b = stage.serve(1).await;
    let status = stage.status(1);
    assert_eq!(
        status["database"]["durability"],
        "synchronous_commit = remote_apply, synchronous_standby_names = second"
    );
    let on_replica = |dki: &ekm::key::DataKeyId| {
        let count = format!("SELECT count(*) FROM eedks WHERE dki = '{dki}'");
        stage.at_replica(&replica, &count).trim() == "1"
    };
    let mut there = stage.client(&b, 0);
    let made = there.create(&stage.create(0)).await.unwrap();
    assert!(on_replica(&made.dki));
    let (tape, key) = (eedks(&made), stage.opened(0, &made.sedk));

    replica.kill();
    let request = stage.create(0);
    let start = Instant::now();
    let waited = refused(there.create(&request).await);
    let took = start.elapsed();
    assert_eq!((waited.code, waited.status), (EkmCode::EE0F, 503));
    assert!(
        (Duration::from_secs(11)..Duration::from_secs(30)).contains(&took),
        "{took:?}"
    );
    // Reading goes on, and that is no outage: nothing is queued beside the replica.
    reads(&stage, &mut there, 0, &tape, &key).await;
    // One late answer of the database is taken for an outage until the next.
    stage
        .becomes(1, "without an outage", |status| {
            status["database"]["outage"].is_null() && status["database"]["queued"] == 0
        })
        .await;
    let answered = stage.records(1).into_iter().any(|record| {
        record.event.request == Some(request.request_id.to_string())
            && record.event.outcome == Outcome::Success
    });
    assert!(!answered, "it was answered");

    // The retry finds what was committed meanwhile.
    replica.up();
    let again = there.create(&request).await.unwrap();
    assert!(on_replica(&again.dki));
    let given = stage.sql(&format!(
        "SELECT dki FROM requests WHERE request = '{}'",
        request.request_id
    ));
    assert_eq!(given.trim(), again.dki.to_string());
    assert_eq!(stage.sql("SELECT count(*) FROM data_keys").trim(), "2");
    b.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_queued_under_a_kek_that_was_retired_meanwhile_comes_into_the_history() {
    let Some(stage) = Stage::new(1, "", "").await else {
        return;
    };
    let (a, b) = (stage.serve(0).await, stage.serve(1).await);
    let mut here = stage.client(&a, 0);
    stage.wire.cut();
    let down = |status: &serde_json::Value| !status["database"]["outage"].is_null();
    stage.becomes(0, "out of reach", down).await;
    let queued = here.create(&stage.create(0)).await.unwrap();
    let (tape, key) = (eedks(&queued), stage.opened(0, &queued.sedk));
    stage.on(1, &["kek", "retire", "KEK1"]);
    let retired = Instant::now();

    // What the other server may have given out under it is not known, so it stays.
    let refusal = |words: &[&str]| {
        let mut all = vec!["--config", "b.toml", "kek"];
        all.extend(words);
        let output = stage.house.run(&all);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        said.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let said = refusal(&["revoke", "KEK1"]);
    assert!(said.contains("server a has not told of itself"), "{said}");

    stage.wire.mend();
    let whole = |status: &serde_json::Value| {
        status["database"]["outage"].is_null() && status["database"]["queued"] == 0
    };
    stage.becomes(0, "without a backlog", whole).await;
    let state = format!("SELECT state FROM eedk_states WHERE dki = '{}'", queued.dki);
    assert_eq!(stage.sql(&state).trim(), "issued");
    let mut there = stage.client(&b, 0);
    assert!(reads(&stage, &mut there, 0, &tape, &key).await.issued_here);
    let closed = refused(here.create(&stage.create(0)).await);
    assert!(closed.detail.contains("retired"), "{}", closed.detail);
    // Nor is it known before a minute has gone by, which a slow machine takes for the above.
    if retired.elapsed() < Duration::from_secs(50) {
        let said = refusal(&["revoke", "KEK1"]);
        assert!(said.contains("a minute at least"), "{said}");
    }
    a.stop();
    b.stop();
}
