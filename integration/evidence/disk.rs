//! A full audit disk, a real one: the reserve, the emergency policy, the gap.

use std::path::Path;

use ekm::api::Base64;
use ekm::audit::{ChainMark, Outcome};
use ekm::client::ClientError;
use ekm::problem::EkmCode;

use super::{records, resolve};
use crate::door::{House, Serving};
use crate::hardship::SmallDisk;
use crate::support::wait_for;

/// Fills a disk to its last block.
fn fill(at: &Path) {
    use std::io::Write as _;
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(at)
        .unwrap();
    for size in [64 << 10, 4 << 10, 512, 1] {
        while file.write_all(&vec![0; size]).is_ok() {}
    }
}

fn status(house: &House) -> serde_json::Value {
    serde_json::from_str(&house.done(&["audit", "emergency", "status", "--json"])).unwrap()
}

fn refusal<T: std::fmt::Debug>(outcome: Result<T, ClientError>) -> ekm::problem::Problem {
    match outcome {
        Err(ClientError::Refused(problem)) => problem,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_audit_disk_cartridges_are_read_once_an_operator_says_so() {
    let house = House::new("", "[records]\nreserve_mib = 1");
    let Some(_disk) = SmallDisk::mount(&house.at("audit"), "8m") else {
        return;
    };
    let serving = house.serve().await;
    let drive = house.drive(1);
    let mut client = house.client_of(&serving, &drive.identity);
    let created = client.create(&drive.create()).await.unwrap();
    let eedks: Vec<Base64> = created.eedks.iter().map(|one| one.eedk.clone()).collect();
    wait_for("the reserve", crate::door::PATIENCE, || {
        status(&house)["reserve"] == 1 << 20
    });
    let filler = house.at("audit/filler");
    fill(&filler);
    // Nothing is served without a record.
    loop {
        // The file's last block may have room for a few.
        if let Err(error) = client.resolve(&resolve(&drive, &eedks)).await {
            assert_eq!(refusal::<()>(Err(error)).code, EkmCode::EE0F);
            break;
        }
    }
    let refused = refusal(client.create(&drive.create()).await);
    assert_eq!((refused.code, refused.status), (EkmCode::EE0F, 503));
    serving.says("alarm=\"EKM-A10\" raised=true", 1);

    // The operator gives the reserve to the records, and reading goes on, on record.
    house.done(&["audit", "emergency", "on"]);
    serving.says("alarm=\"EKM-A21\" raised=true", 1);
    serving.says("alarm=\"EKM-A10\" raised=false", 1);
    let durable = resolve(&drive, &eedks);
    client.resolve(&durable).await.unwrap();
    let seen = status(&house);
    assert_eq!(
        (&seen["on"], &seen["disk_failed"]),
        (&true.into(), &false.into())
    );
    assert!(has(&house, &durable.request_id.to_string()));
    let refused = refusal(client.create(&drive.create()).await);
    assert_eq!((refused.code, refused.status), (EkmCode::EE0F, 503));
    assert!(refused.detail.contains("emergency"), "{refused}");

    // The reserve is full too: records wait in memory.
    fill(&filler);
    let mut waiting = Vec::new();
    let seen = loop {
        let request = resolve(&drive, &eedks);
        client.resolve(&request).await.unwrap();
        waiting.push(request.request_id.to_string());
        let seen = status(&house);
        if seen["kept"].as_u64().unwrap() > 5 {
            break seen;
        }
        assert!(waiting.len() < 200, "{seen}");
    };
    assert_eq!(
        (&seen["disk_failed"], &seen["lost"]),
        (&true.into(), &0.into())
    );
    // What changes the site is refused, and so is an end of the policy.
    assert!(
        !house
            .run(&["kek", "default", "--kek1", "KEK1"])
            .status
            .success()
    );
    let refused = house.run(&["audit", "emergency", "off"]);
    let text = String::from_utf8(refused.stderr).unwrap();
    assert!(text.contains("stays on"), "{text}");
    assert_eq!(status(&house)["on"], true);

    // Room, by itself: all that waited is written, behind what says how many they are.
    std::fs::remove_file(&filler).unwrap();
    wait_for("the records", crate::door::PATIENCE, || {
        status(&house)["kept"] == 0
    });
    house.done(&["audit", "emergency", "off"]);
    serving.says("alarm=\"EKM-A21\" raised=false", 1);
    client.create(&drive.create()).await.unwrap();
    wait_for("the reserve", crate::door::PATIENCE, || {
        status(&house)["reserve"] == 1 << 20
    });
    serving.stop();
    house.done(&["audit", "verify"]);
    let all = records(&house);
    let gap = all
        .iter()
        .position(|record| record.event.action == "audit-gap");
    let gap = gap.unwrap();
    let Some(ChainMark::Gap(said)) = all[gap].event.chain.as_deref() else {
        panic!("{:?}", all[gap]);
    };
    assert_eq!(said.lost, 0);
    let kept = usize::try_from(said.kept).unwrap();
    let behind = &all[gap + 1..][..kept];
    assert!(behind.iter().all(|record| record.event.action == "resolve"));
    assert!(behind[0].time < all[gap].time && behind[0].time == said.since);
    for id in &waiting {
        for outcome in [Outcome::Intent, Outcome::Success] {
            let found = all.iter().any(|record| {
                record.event.outcome == outcome && record.event.request.as_ref() == Some(id)
            });
            assert!(found, "no {outcome:?} of {id}");
        }
    }
    for action in ["audit-emergency-on", "audit-emergency-off"] {
        let found = all.iter().find(|record| record.event.action == action);
        let peer = found.unwrap().event.peer.clone().unwrap();
        assert!(peer.starts_with("operator:"), "{peer}");
    }
}

fn has(house: &House, request: &str) -> bool {
    records(house)
        .iter()
        .any(|record| record.event.request.as_deref() == Some(request))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_started_on_a_full_disk_reads_while_the_policy_is_on() {
    let house = House::new("", "[records]\nreserve_mib = 0");
    let Some(_disk) = SmallDisk::mount(&house.at("audit"), "256k") else {
        return;
    };
    let serving = house.serve().await;
    let drive = house.drive(1);
    let mut client = house.client_of(&serving, &drive.identity);
    let created = client.create(&drive.create()).await.unwrap();
    let eedks: Vec<Base64> = created.eedks.iter().map(|one| one.eedk.clone()).collect();
    house.done(&["audit", "emergency", "on"]);
    serving.stop();
    let filler = house.at("audit/filler");
    fill(&filler);
    let serving: Serving = house.serve().await;
    serving.says("alarm=\"EKM-A21\" raised=true", 1);
    let mut client = house.client_of(&serving, &drive.identity);
    client.resolve(&resolve(&drive, &eedks)).await.unwrap();
    std::fs::remove_file(&filler).unwrap();
    house.done(&["audit", "emergency", "off"]);
    serving.stop();
    house.done(&["audit", "verify"]);
    // A second server does not begin with it.
    let serving = house.serve().await;
    let mut client = house.client_of(&serving, &drive.identity);
    client.create(&drive.create()).await.unwrap();
    serving.stop();
}
