//! What waits for a second person, and what unknown drives showed.

use ekm::store::{
    Approval, ApprovalState, Approvals as _, Decision, Discovered, Kept, Sighting, Sightings as _,
    Waiting,
};
use time::Duration;

use super::*;

fn now() -> OffsetDateTime {
    // The databases keep microseconds.
    let now = OffsetDateTime::now_utc();
    now.replace_microsecond(now.microsecond()).unwrap()
}

fn approval(id: &str) -> Approval {
    Approval {
        id: id.to_owned(),
        words: "drive-del, serial 000000000001".to_owned(),
        command: "{}".to_owned(),
        permit: true,
        asked_by: "anna".to_owned(),
        asked_uid: Some(1000),
        asker: "operator:anna (uid 1000)".to_owned(),
        asked: now(),
        expires: now() + Duration::hours(1),
        state: ApprovalState::Open,
        decided_by: None,
        decided: None,
        outcome: None,
    }
}

fn decision(state: ApprovalState) -> Decision {
    Decision {
        state,
        by: "operator:bob".to_owned(),
        at: now(),
        expires: None,
        outcome: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_kept_decided_and_used_once_whoever_asks() {
    for two in both().await {
        let asked = approval("00000001");
        assert_eq!(two.one.ask_approval(&asked, 2).await.unwrap(), Kept::New);
        assert_eq!(
            two.other.approval("00000001").await.unwrap().as_ref(),
            Some(&asked)
        );
        let again = approval("00000002");
        let kept = two.other.ask_approval(&again, 2).await.unwrap();
        assert_eq!(kept, Kept::Already(Box::new(asked.clone())));
        for (id, kept) in [("00000003", Kept::New), ("00000004", Kept::Full)] {
            let mut another = approval(id);
            another.asked_by = id.to_owned();
            assert_eq!(two.one.ask_approval(&another, 2).await.unwrap(), kept);
        }

        let permitted = decision(ApprovalState::Permitted);
        let (first, second) = tokio::join!(
            two.one.decide_approval("00000001", &permitted),
            two.other.decide_approval("00000001", &permitted)
        );
        assert_ne!(first.unwrap(), second.unwrap());

        let (first, second) = tokio::join!(
            two.one.use_permit("anna", &asked.words, now()),
            two.other.use_permit("anna", &asked.words, now())
        );
        let used: Vec<Approval> = [first.unwrap(), second.unwrap()]
            .into_iter()
            .flatten()
            .collect();
        assert_eq!(used.len(), 1, "{used:?}");
        assert_eq!(used[0].decided_by.as_deref(), Some("operator:bob"));
        let after = two.one.approval("00000001").await.unwrap().unwrap();
        assert_eq!(after.state, ApprovalState::Used);

        // What is over is decided no more, nor used.
        let mut late = decision(ApprovalState::Running);
        late.at = now() + Duration::hours(2);
        assert!(!two.one.decide_approval("00000003", &late).await.unwrap());
        late.at = now();
        assert!(two.one.decide_approval("00000003", &late).await.unwrap());
        let ended = two
            .other
            .end_approval("00000003", ApprovalState::Done, "done");
        ended.await.unwrap();
        let after = two.one.approval("00000003").await.unwrap().unwrap();
        assert_eq!(after.state, ApprovalState::Done);
        assert_eq!(after.outcome.as_deref(), Some("done"));
        assert_eq!(two.one.approvals().await.unwrap().len(), 2);
    }
}

fn sighting(serial: &str, peer: &str) -> Sighting {
    Sighting {
        serial: serial.parse().unwrap(),
        key: Some(KekHash::of_spki(b"first")),
        peer: peer.parse().unwrap(),
        address: "192.0.2.7".to_owned(),
        at: now(),
        times: 1,
    }
}

fn waiting(serial: &str) -> Drive {
    Drive {
        state: DriveState::Pending,
        ..row(serial, Custody::Token)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_drive_showed_is_kept_and_another_key_beside_it() {
    for two in both().await {
        let serial = "000000000001";
        let bound = Waiting {
            total: 8,
            per_peer: 8,
        };
        let first = sighting(serial, "proxy:p");
        let (drive, store) = (waiting(serial), &two.one);
        let found = store.discover(&drive, &first, bound).await.unwrap();
        assert_eq!(found, Discovered::Added);
        let found = two.other.discover(&drive, &first, bound).await.unwrap();
        assert_eq!(found, Discovered::Known);
        let again = Sighting {
            times: 3,
            address: "192.0.2.8".to_owned(),
            ..first.clone()
        };
        two.other.note_sighting(&again, false).await.unwrap();
        let wrong = Sighting {
            key: Some(KekHash::of_spki(b"other")),
            peer: "proxy:q".parse().unwrap(),
            times: 2,
            ..first.clone()
        };
        two.one.note_sighting(&wrong, true).await.unwrap();
        two.other.note_sighting(&wrong, true).await.unwrap();
        let seen = two.one.sightings().await.unwrap();
        assert_eq!(seen.len(), 1);
        let seen = &seen[0];
        assert_eq!((seen.key, seen.times), (first.key, 4));
        assert_eq!((seen.first, seen.last), (first.at, again.at));
        assert_eq!(seen.address, "192.0.2.8");
        let other = seen.other.as_ref().unwrap();
        assert_eq!((other.key, other.times), (wrong.key, 4));
        assert_eq!(other.peer, wrong.peer);
        // One that an operator deleted stays deleted.
        two.one.delete_drive(&first.serial).await.unwrap();
        let found = two.other.discover(&drive, &first, bound).await.unwrap();
        assert_eq!(found, Discovered::Known);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_drives_wait_than_may_over_two_servers() {
    for two in both().await {
        let bound = Waiting {
            total: 7,
            per_peer: 5,
        };
        let ask = |store: Sql, n: u32, peer: &'static str| async move {
            let serial = format!("{n:012}");
            let (drive, sighting) = (waiting(&serial), sighting(&serial, peer));
            store.discover(&drive, &sighting, bound).await.unwrap()
        };
        for (peer, most, from) in [("proxy:p", 5, 0), ("proxy:q", 2, 100)] {
            let mut tasks = tokio::task::JoinSet::new();
            for n in 0..12 {
                let store = if n % 2 == 0 { &two.one } else { &two.other };
                tasks.spawn(ask(store.clone(), from + n, peer));
            }
            let found = tasks.join_all().await;
            let added = found
                .iter()
                .filter(|one| **one == Discovered::Added)
                .count();
            assert_eq!(added, most, "{peer}: {found:?}");
        }
        assert_eq!(two.one.drives().await.unwrap().len(), 7);
    }
}
