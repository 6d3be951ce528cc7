//! What takes two people.

use ekm::bridge::pin::Handed;
use ekm::store::{Approval, ApprovalState, Kept};
use secrecy::SecretString;
use time::{Duration, OffsetDateTime};

use super::*;
use crate::postgres::Postgres;

fn people() -> Vec<PersonConfig> {
    vec![
        person("anna", &[Role::DriveAdmin, Role::Operator]),
        person("bob", &[Role::DriveAdmin, Role::Operator]),
        person("dora", &[Role::DriveAdmin]),
        person("carl", &[Role::KeyAdmin]),
        person("audrey", &[Role::Auditor]),
    ]
}

fn in_clear(serial: &str) -> Command {
    command(json!({"command": "drive-add", "serial": serial, "change":
        {"wwn": null, "key": null, "form": "t10-00h", "custody": "host", "speakers": null, "accept": false}}))
}

fn verdict(id: &str, verdict: Value) -> Command {
    command(json!({"command": "approval-decide", "id": id, "verdict": verdict}))
}

fn approve(id: &str) -> Command {
    verdict(id, json!("approve"))
}

fn waits(outcome: Result<Reply, Problem>) -> Approval {
    match outcome.unwrap() {
        Reply::Waits(approval) => *approval,
        other => panic!("it did not wait: {other:?}"),
    }
}

fn decided(outcome: Result<Reply, Problem>) -> Approval {
    match outcome.unwrap() {
        Reply::Approval(approval) => *approval,
        other => panic!("no decision: {other:?}"),
    }
}

async fn drives(desk: &Desk) -> usize {
    desk.service.store().drives().await.unwrap().len()
}

fn detail(outcome: Result<Reply, Problem>) -> String {
    let problem = outcome.unwrap_err();
    assert_eq!(problem.code, EkmCode::EE30, "{problem}");
    problem.detail
}

#[tokio::test(flavor = "multi_thread")]
async fn host_custody_waits_for_another_person_of_that_role() {
    let desk = Desk::new(people(), &["custody-host"]).await;
    let asked = waits(desk.ask("anna", in_clear("000000000001")).await);
    assert!(asked.words.contains("custody host"), "{}", asked.words);
    assert_eq!(drives(&desk).await, 0);
    // Asked again it is the same request.
    let again = waits(desk.ask("anna", in_clear("000000000001")).await);
    assert_eq!(again.id, asked.id);

    for (who, why) in [
        ("anna", "own"),
        ("carl", "takes the role drive-admin"),
        ("audrey", "takes the role"),
        ("eve", "none of the operators"),
    ] {
        let refused = detail(desk.ask(who, approve(&asked.id)).await);
        assert!(refused.contains(why), "{who}: {refused}");
        let last = desk.records().pop().unwrap();
        assert_eq!(last.kind, Kind::Authentication, "{who}");
    }
    assert_eq!(drives(&desk).await, 0);

    let done = decided(desk.ask("bob", approve(&asked.id)).await);
    assert_eq!(done.state, ApprovalState::Done);
    assert_eq!(drives(&desk).await, 1);
    let added = desk
        .records()
        .into_iter()
        .find(|record| record.action == "drive-add" && record.outcome == Outcome::Success)
        .unwrap();
    let both = added.peer.unwrap();
    assert!(
        both.contains("operator:anna") && both.contains("approved by operator:bob"),
        "{both}"
    );
    // Once.
    let late = detail(desk.ask("dora", approve(&asked.id)).await);
    assert!(late.contains("done already"), "{late}");
    // What needs no second person needs none.
    let gone = command(json!({"command": "drive-del", "serial": "000000000001"}));
    assert!(matches!(desk.ask("anna", gone).await, Ok(Reply::Done)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_rejected_by_another_and_withdrawn_by_its_own() {
    let desk = Desk::new(people(), &["custody-host"]).await;
    let one = waits(desk.ask("anna", in_clear("000000000001")).await);
    let rejected = decided(
        desk.ask("bob", verdict(&one.id, json!({"reject": "not that drive"})))
            .await,
    );
    assert_eq!(rejected.state, ApprovalState::Rejected);
    assert_eq!(rejected.outcome.as_deref(), Some("not that drive"));
    let two = waits(desk.ask("anna", in_clear("000000000001")).await);
    assert_ne!(two.id, one.id);
    detail(desk.ask("bob", verdict(&two.id, json!("withdraw"))).await);
    let back = decided(desk.ask("anna", verdict(&two.id, json!("withdraw"))).await);
    assert_eq!(back.state, ApprovalState::Withdrawn);
    detail(desk.ask("bob", approve(&two.id)).await);
    assert_eq!(drives(&desk).await, 0);
    let actions: Vec<String> = desk.records().into_iter().map(|one| one.action).collect();
    for action in ["approval-ask", "approval-reject", "approval-withdraw"] {
        assert!(
            actions.iter().any(|one| one == action),
            "{action}: {actions:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_request_is_approved_by_nobody() {
    let desk = Desk::new(people(), &["custody-host"]).await;
    let before = OffsetDateTime::now_utc() - Duration::hours(2);
    let old = Approval {
        id: "0ld0ld00".to_owned(),
        words: "drive-add".to_owned(),
        command: serde_json::to_string(&in_clear("000000000001")).unwrap(),
        permit: false,
        asked_by: "anna".to_owned(),
        asked_uid: None,
        asker: "operator:anna".to_owned(),
        asked: before,
        expires: before + Duration::hours(1),
        state: ApprovalState::Open,
        decided_by: None,
        decided: None,
        outcome: None,
    };
    let kept = desk.service.store().ask_approval(&old, 256).await.unwrap();
    assert_eq!(kept, Kept::New);
    let late = detail(desk.ask("bob", approve(&old.id)).await);
    assert!(late.contains("expired"), "{late}");
    assert_eq!(drives(&desk).await, 0);
}

/// Two names of one Unix user are one person, even if one of them comes by certificate.
#[tokio::test(flavor = "multi_thread")]
async fn two_names_of_one_unix_user_are_not_two_people() {
    let unix = |name: &str| PersonConfig {
        unix: Some("4242".to_owned()),
        ..person(name, &[Role::DriveAdmin])
    };
    let desk = Desk::new(vec![unix("anna"), unix("anna2")], &["custody-host"]).await;
    let asked = waits(desk.ask("anna", in_clear("000000000001")).await);
    let refused = detail(desk.ask("anna2", approve(&asked.id)).await);
    assert!(refused.contains("own"), "{refused}");
    assert_eq!(drives(&desk).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_lost_his_role_since_gets_nothing_done() {
    let desk = Desk::new(people(), &["custody-host"]).await;
    let asked = waits(desk.ask("anna", in_clear("000000000001")).await);
    let mut other = asked.clone();
    other.id = "gonegone".to_owned();
    other.asked_by = "gerd".to_owned();
    let kept = desk
        .service
        .store()
        .ask_approval(&other, 256)
        .await
        .unwrap();
    assert_eq!(kept, Kept::New);
    let refused = detail(desk.ask("bob", approve(&other.id)).await);
    assert!(refused.contains("may not do it any more"), "{refused}");
}

/// A PIN is never kept: the approval lets the first person come back with it, once.
#[tokio::test(flavor = "multi_thread")]
async fn an_unlock_with_a_pin_is_permitted_and_not_kept() {
    let desk = Desk::new(people(), &["token-unlock"]).await;
    let unlock = || command(json!({"command": "token-unlock", "token": "none", "last_try": false}));
    let with_pin = || async {
        let pin = Handed::new(&SecretString::from("9317-secret")).unwrap();
        admin::perform(&desk.service, &asker("anna"), unlock(), Some(pin)).await
    };
    let asked = waits(with_pin().await);
    assert!(asked.permit);
    assert!(!asked.command.contains("9317"), "{asked:?}");
    let permitted = decided(desk.ask("bob", approve(&asked.id)).await);
    assert_eq!(permitted.state, ApprovalState::Permitted);
    // Another person's permit is nobody else's.
    waits(desk.ask("bob", unlock()).await);
    // It is begun: there is no such token.
    let begun = with_pin().await.unwrap_err();
    assert!(begun.detail.contains("no token none"), "{begun}");
    // The permit is used up.
    let next = waits(with_pin().await);
    assert_ne!(next.id, asked.id);
    let both = desk
        .records()
        .into_iter()
        .rfind(|one| one.action == "token-unlock" && one.outcome == Outcome::Failure)
        .unwrap();
    assert!(both.peer.unwrap().contains("approved by operator:bob"));
}

/// Two servers, two people who approve at the same moment: it is done once.
#[tokio::test(flavor = "multi_thread")]
async fn approved_twice_at_once_on_two_servers_it_is_done_once() {
    let Some(server) = Postgres::shared() else {
        return;
    };
    let database = server.database();
    let one = Desk::sharing(people(), &["custody-host"], Some(database.clone())).await;
    let other = Desk::sharing(people(), &["custody-host"], Some(database)).await;
    for n in 1..=12 {
        let serial = format!("{n:012}");
        let asked = waits(one.ask("anna", in_clear(&serial)).await);
        let (first, second) = tokio::join!(
            one.ask("bob", approve(&asked.id)),
            other.ask("dora", approve(&asked.id))
        );
        let (won, lost) = if first.is_ok() {
            (first, second)
        } else {
            (second, first)
        };
        assert_eq!(decided(won).state, ApprovalState::Done);
        let lost = detail(lost);
        assert!(lost.contains("already"), "{lost}");
    }
    let added = [&one, &other]
        .iter()
        .flat_map(|desk| desk.records())
        .filter(|record| record.action == "drive-add")
        .count();
    assert_eq!(added, 12);
    assert_eq!(drives(&other).await, 12);
}
