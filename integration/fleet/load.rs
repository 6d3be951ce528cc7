//! Three servers under load, and one fault after another.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ekm::api::Base64;
use ekm::audit::Outcome;
use ekm::key::DataKeyId;
use ekm::proxy::{KeyServers, KeyService, Times};
use ekm::tls::{ClientPaths, ClientTls};
use rustix::process::{Pid, Signal, kill_process};
use uuid::Uuid;

use super::stage::{NODES, Stage, eedks, reads};
use crate::door::{Identity, PATIENCE};
use crate::pair::server;
use crate::relay::Relay;

/// Drives, each with a list of two or three servers.
const DRIVES: usize = 6;

/// Time between two requests of a drive.
const PACE: Duration = Duration::from_millis(60);

/// Seconds that the database is away; `EKM_TEST_OUTAGE_SECONDS` says another number.
const OUTAGE: u64 = 8;

/// A cartridge, and its data key.
struct Tape {
    dki: DataKeyId,
    eedks: Vec<Base64>,
    key: [u8; 32],
}

#[derive(Default)]
struct Seen {
    tapes: Vec<Arc<Tape>>,
    /// Requests that were answered, and the data key that they gave.
    answered: Vec<(Uuid, DataKeyId)>,
    created: Vec<DataKeyId>,
    failed: Vec<String>,
    wrong: Vec<String>,
}

struct Shared {
    stage: Stage,
    seen: Mutex<Seen>,
    over: AtomicBool,
}

async fn drive(shared: Arc<Shared>, relays: Vec<Relay>, n: usize) {
    let stage = &shared.stage;
    let Identity {
        ca,
        certificate,
        key,
    } = stage.drives[n].identity.clone();
    let paths = ClientPaths {
        ca,
        certificate,
        key,
    };
    // Each begins with another one, and every second drive has two only.
    let mut list: Vec<_> = (0..3).map(|at| server(&relays[(at + n) % 3])).collect();
    list.truncate(3 - n % 2);
    let times = Times {
        connect: Duration::from_secs(2),
        answer: Duration::from_secs(6),
        retries: 1,
        total: Duration::from_secs(30),
        probe: Duration::from_millis(200),
        wait: true,
    };
    let tls = ClientTls::load(paths).unwrap();
    let keys = KeyService::start(KeyServers::of(list).unwrap(), tls, times).await;
    let mut turn = u32::try_from(n).unwrap();
    while !shared.over.load(Ordering::Relaxed) {
        turn = turn.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let mixed = usize::try_from(turn >> 16).unwrap();
        let tape = {
            let seen = shared.seen.lock().unwrap();
            let count = seen.tapes.len();
            (mixed % 4 != 0 && count > 0).then(|| Arc::clone(&seen.tapes[mixed % count]))
        };
        match tape {
            None => {
                let request = stage.create(n);
                let outcome = keys.create(&request, None).await;
                let mut seen = shared.seen.lock().unwrap();
                match outcome {
                    Ok(served) => {
                        let answer = served.answer;
                        seen.answered.push((request.request_id, answer.dki));
                        seen.created.push(answer.dki);
                        seen.tapes.push(Arc::new(Tape {
                            dki: answer.dki,
                            eedks: eedks(&answer),
                            key: stage.opened(n, &answer.sedk),
                        }));
                    }
                    Err(error) => seen.failed.push(format!("create by {n}: {error}")),
                }
            }
            Some(tape) => {
                let request = stage.resolve(n, &tape.eedks);
                let outcome = keys.resolve(&request, None).await;
                let mut seen = shared.seen.lock().unwrap();
                match outcome {
                    Ok(served) => {
                        let answer = served.answer;
                        seen.answered.push((request.request_id, answer.dki));
                        if answer.dki != tape.dki || stage.opened(n, &answer.sedk) != tape.key {
                            seen.wrong.push(format!("{} gave another key", tape.dki));
                        }
                    }
                    Err(error) => seen.failed.push(format!("resolve by {n}: {error}")),
                }
            }
        }
        tokio::time::sleep(PACE).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_servers_lose_nothing_whatever_is_killed_under_load() {
    let Some(stage) = Stage::new(u32::try_from(DRIVES).unwrap(), "", "").await else {
        return;
    };
    let (a, b, c) = (
        stage.serve(0).await,
        stage.serve(1).await,
        stage.serve(2).await,
    );
    let relays = vec![
        Relay::to(&a.address).await,
        Relay::to(&b.address).await,
        Relay::to(&c.address).await,
    ];
    let shared = Arc::new(Shared {
        stage,
        seen: Mutex::default(),
        over: AtomicBool::new(false),
    });
    let drives: Vec<_> = (0..DRIVES)
        .map(|n| tokio::spawn(drive(Arc::clone(&shared), relays.clone(), n)))
        .collect();
    let stage = &shared.stage;
    let pause = |seconds| tokio::time::sleep(Duration::from_secs(seconds));
    let done = || shared.seen.lock().unwrap().answered.len();
    let more_than = async |least: usize| {
        let start = Instant::now();
        while done() <= least {
            assert!(start.elapsed() < PATIENCE, "{} of {least} answers", done());
            pause(1).await;
        }
    };
    pause(2).await;
    more_than(20).await;

    // A server.
    b.kill();
    pause(2).await;
    let b = stage.serve(1).await;
    relays[1].leads_to(&b.address);
    pause(1).await;

    // The database.
    let before = done();
    let outage = std::env::var("EKM_TEST_OUTAGE_SECONDS").ok();
    let outage = outage.map_or(OUTAGE, |seconds| seconds.parse().unwrap());
    stage.postgres.signal(Signal::KILL);
    pause(outage).await;
    more_than(before + 20).await;
    let meanwhile = done() - before;
    stage.postgres.kill();
    stage.postgres.up();
    pause(2).await;

    // A token's process.
    let tokens: serde_json::Value =
        serde_json::from_str(&stage.on(2, &["token", "status", "--json"])).unwrap();
    let bridge = tokens[0]["bridges"][0].as_i64().unwrap();
    let bridge = Pid::from_raw(i32::try_from(bridge).unwrap()).unwrap();
    kill_process(bridge, Signal::KILL).unwrap();
    pause(2).await;

    shared.over.store(true, Ordering::Relaxed);
    for drive in drives {
        drive.await.unwrap();
    }
    for node in 0..3 {
        let whole = |status: &serde_json::Value| {
            status["database"]["outage"].is_null() && status["database"]["queued"] == 0
        };
        stage.becomes(node, "without a backlog", whole).await;
    }
    // All that was written can be read, and is in the history as it is on the tape.
    let tapes = shared.seen.lock().unwrap().tapes.clone();
    let kept = stage.sql("SELECT sha256 || ' ' || dki FROM eedks");
    let kept: HashSet<&str> = kept.lines().collect();
    let mut client = stage.client(&a, 0);
    for tape in &tapes {
        reads(stage, &mut client, 0, &tape.eedks, &tape.key).await;
        for eedk in &tape.eedks {
            let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &eedk.0);
            let row = format!("{} {}", hex::encode(digest), tape.dki);
            assert!(kept.contains(row.as_str()), "{row} is not kept");
        }
    }
    drop(client);
    for serving in [a, b, c] {
        serving.stop();
    }

    let seen = std::mem::take(&mut *shared.seen.lock().unwrap());
    assert!(seen.wrong.is_empty(), "{:#?}", seen.wrong);
    assert!(seen.failed.is_empty(), "{:#?}", seen.failed);
    println!(
        "{} answers, {} creates, {meanwhile} answers without the database, {outage} s at least",
        seen.answered.len(),
        seen.created.len()
    );
    // No lost history.
    let history = stage.sql("SELECT dki FROM generations");
    let history: HashSet<&str> = history.lines().collect();
    for dki in &seen.created {
        assert!(history.contains(dki.to_string().as_str()), "{dki} is lost");
    }
    // Every answer has its record, on the server that gave it.
    let mut recorded: HashMap<String, HashSet<Option<String>>> = HashMap::new();
    for node in 0..NODES.len() {
        for record in stage.records(node) {
            let event = record.event;
            let good = event.outcome == Outcome::Success
                || (event.action == "resolve" && event.outcome == Outcome::Intent);
            if let Some(request) = event.request.filter(|_| good) {
                recorded.entry(request).or_default().insert(event.dki);
            }
        }
    }
    for (request, dki) in &seen.answered {
        let told = recorded.get(&request.to_string());
        assert!(
            told.is_some_and(|told| told.contains(&Some(dki.to_string()))),
            "{request} gave {dki} without a record: {told:?}"
        );
    }
}
