//! Drives that nobody knows yet: over TLS, with the software drive.

use ekm::api::{Base64, CreateRequest, DriveInRequest};
use ekm::client::{ClientError, KeyClient};
use ekm::problem::{EkmCode, Problem};
use serde_json::Value;

use crate::door::House;

fn problem<T>(outcome: Result<T, ClientError>) -> Problem {
    match outcome {
        Err(ClientError::Refused(problem)) => problem,
        Err(error) => panic!("expected a refusal, got {error}"),
        Ok(_) => panic!("expected a refusal, got an answer"),
    }
}

async fn code(client: &mut KeyClient, request: &CreateRequest) -> EkmCode {
    problem(client.create(request).await).code
}

fn pending(house: &House) -> Vec<Value> {
    let text = house.done(&["drive", "pending", "--json"]);
    serde_json::from_str(&text).unwrap()
}

const PENDING: &str = "[policy]\naccept_unknown_drives = \"pending\"";

/// Sightings of one drive are noted once a second.
async fn a_second() {
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drive_that_waits_is_accepted_by_its_fingerprint_only() {
    let house = House::new("", PENDING);
    let (drive, thief) = (house.unknown_drive(1), house.unknown_drive(2));
    let serving = house.serve().await;
    let mut client = house.client_of(&serving, &drive.identity);
    assert_eq!(code(&mut client, &drive.create()).await, EkmCode::EF01);
    a_second().await;
    assert_eq!(code(&mut client, &drive.create()).await, EkmCode::EF01);

    let serial = drive.serial.to_string();
    let text = house.done(&["drive", "pending"]);
    let peer = format!("drive:{serial} at 127.0.0.1");
    for shown in [&drive.soft.fingerprint(), &serial, &peer, "2 times"] {
        assert!(text.contains(shown), "no {shown} in {text}");
    }
    assert!(
        text.lines().all(|line| line.chars().count() <= 100),
        "{text}"
    );
    assert_eq!(house.done(&["drive", "list", "--pending"]), text);

    // Another key does not take the place of the first, and is shown.
    let mut other = drive.create();
    other.drive.public_key = Some(Base64(thief.soft.public_key_spki().to_vec()));
    a_second().await;
    assert_eq!(code(&mut client, &other).await, EkmCode::EF01);
    let text = house.done(&["drive", "pending"]);
    assert!(text.contains("other key"), "{text}");
    assert!(text.contains(&thief.soft.fingerprint()), "{text}");

    for wrong in [
        thief.soft.fingerprint(),
        "sha256:".to_owned() + &"0".repeat(64),
    ] {
        let refused = house.run(&["drive", "accept", &serial, "--fingerprint", &wrong]);
        assert_eq!(refused.status.code(), Some(1));
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(said.contains("EE2B") && said.contains("waits on"), "{said}");
    }
    assert_eq!(pending(&house)[0]["drive"]["state"], "pending");
    assert_eq!(code(&mut client, &drive.create()).await, EkmCode::EF01);

    let right = drive.soft.fingerprint();
    house.done(&[
        "drive",
        "accept",
        &serial,
        "--fingerprint",
        &right,
        "--wwn",
        &drive.wwn,
    ]);
    let answer = client.create(&drive.create()).await.unwrap();
    drive.soft.unwrap_sedk(&answer.sedk).unwrap();

    // It shows another key later: refused, and shown as such.
    a_second().await;
    assert_eq!(code(&mut client, &other).await, EkmCode::EE2B);
    let seen = pending(&house);
    assert_eq!(seen[0]["drive"]["state"], "active");
    assert_eq!(seen[0]["seen"]["other"]["times"], 2);
    let text = house.done(&["drive", "show", &serial]);
    assert!(
        text.contains("other key") && text.contains("(refused)"),
        "{text}"
    );
    let again = house.run(&["drive", "accept", &serial, "--fingerprint", &right]);
    assert!(String::from_utf8_lossy(&again.stderr).contains("accepted already"));
    serving.stop();
    let accepted = house.done(&["audit", "show", "--action", "drive-accept", "--json"]);
    assert!(
        accepted.contains(right.trim_start_matches("sha256:")),
        "{accepted}"
    );
}

/// A drive that an operator added by hand, whose key is another than what speaks for it shows.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_key_for_an_enrolled_drive_is_shown() {
    let house = House::new("", "");
    let drive = house.drive(1);
    let thief = house.unknown_drive(2);
    let serving = house.serve().await;
    let mut client = house.client_of(&serving, &drive.identity);
    client.create(&drive.create()).await.unwrap();
    assert!(pending(&house).is_empty());
    let mut other = drive.create();
    other.drive.public_key = Some(Base64(thief.soft.public_key_spki().to_vec()));
    assert_eq!(code(&mut client, &other).await, EkmCode::EE2B);
    let seen = pending(&house);
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0]["seen"]["other"]["key"], thief.soft.fingerprint());
    client.create(&drive.create()).await.unwrap();
    serving.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_drive_is_not_noted_again() {
    let house = House::new("", PENDING);
    let drive = house.unknown_drive(1);
    let serving = house.serve().await;
    let mut client = house.client_of(&serving, &drive.identity);
    let serial = drive.serial.to_string();
    assert_eq!(code(&mut client, &drive.create()).await, EkmCode::EF01);
    assert_eq!(pending(&house).len(), 1);
    house.done(&["drive", "reject", &serial]);
    assert!(pending(&house).is_empty());
    assert_eq!(code(&mut client, &drive.create()).await, EkmCode::EF01);
    assert!(pending(&house).is_empty());
    let none = house.run(&["drive", "reject", &serial]);
    assert!(String::from_utf8_lossy(&none.stderr).contains("not in the drive table"));
    serving.stop();
}

/// A proxy that may speak for any drive makes serials up: it has its share of the table, and a
/// drive that comes after it gets its row.
#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_peer_cannot_fill_the_table() {
    let house = House::new(
        "",
        &format!("{PENDING}\n[[policy.peers]]\npeer = \"proxy:flood\"\ndrives = [\"*\"]"),
    );
    let drive = house.unknown_drive(1);
    let serving = house.serve().await;
    let mut flood = house.client_of(&serving, &house.identity("proxy", "flood"));
    for n in 100..180 {
        let request = CreateRequest {
            drive: DriveInRequest {
                serial: format!("{n:012}").parse().unwrap(),
                ..drive.create().drive
            },
            ..drive.create()
        };
        assert_eq!(code(&mut flood, &request).await, EkmCode::EF01);
    }
    assert_eq!(pending(&house).len(), 64);
    let mut client = house.client_of(&serving, &drive.identity);
    assert_eq!(code(&mut client, &drive.create()).await, EkmCode::EF01);
    assert_eq!(pending(&house).len(), 65);
    serving.says("too many wait already", 16);
    serving.stop();
}
