use std::time::Duration as Patience;

use super::*;
use crate::store::Sql;

fn peer(n: u32) -> PeerId {
    format!("drive:{n:012}").parse().unwrap()
}

fn kek(n: u8) -> KekHash {
    KekHash::of_spki(&[n])
}

fn limits(per_peer: u32, per_kek: u32) -> PolicyConfig {
    PolicyConfig {
        pkcs1_v15_failures_per_peer: per_peer,
        pkcs1_v15_failures_per_kek: per_kek,
        ..PolicyConfig::default()
    }
}

fn failed(peer: &PeerId, kek: KekHash, at: OffsetDateTime) -> FailedOpening {
    FailedOpening {
        peer: peer.clone(),
        kek,
        at,
        of_peer: true,
        of_kek: true,
    }
}

fn wrong() -> Guarded {
    Guarded::Rejected {
        function: "C_UnwrapKey".to_owned(),
        name: "CKR_ENCRYPTED_DATA_INVALID".to_owned(),
    }
}

#[tokio::test]
async fn a_peer_is_spent_by_its_failures_and_stays_so_over_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let store = Sql::sqlite(directory.path()).await.unwrap();
    let openings = Openings::new(&limits(2, 100), Vec::new());
    for came in [wrong(), Guarded::Opened, wrong()] {
        let place = openings.take(&peer(1), &kek(1)).await.unwrap();
        openings.note(&store, place, &came).await.unwrap();
    }
    let spent = openings.take(&peer(1), &kek(1)).await.unwrap_err();
    assert_eq!(spent, Spent::Peer(peer(1)));
    // Another peer is not concerned.
    drop(openings.take(&peer(2), &kek(1)).await.unwrap());
    let again = Openings::new(&limits(2, 100), store.failed_openings().await.unwrap());
    assert_eq!(again.take(&peer(1), &kek(2)).await.unwrap_err(), spent);
    assert_eq!(again.seen(), openings.seen());
    let whose = Forgiven::Peer(peer(1));
    store.forgive_openings(&whose).await.unwrap();
    again.forget(&whose);
    drop(again.take(&peer(1), &kek(1)).await.unwrap());
    // For the KEK they still count.
    let left = Openings::new(&limits(2, 2), store.failed_openings().await.unwrap());
    assert_eq!(left.take(&peer(2), &kek(1)).await.unwrap_err(), Spent::Kek);
    store
        .forgive_openings(&Forgiven::Kek(kek(1)))
        .await
        .unwrap();
    assert_eq!(store.failed_openings().await.unwrap(), []);
}

#[tokio::test]
async fn failures_hours_apart_spend_no_peer_but_the_kek() {
    let now = OffsetDateTime::now_utc();
    let apart = |n: i64| failed(&peer(1), kek(1), now - Duration::minutes(61 * n));
    let openings = Openings::new(&limits(2, 6), (1..=5).rev().map(apart).collect());
    drop(openings.take(&peer(1), &kek(1)).await.unwrap());
    let openings = Openings::new(&limits(2, 5), (1..=5).rev().map(apart).collect());
    assert_eq!(
        openings.take(&peer(2), &kek(1)).await.unwrap_err(),
        Spent::Kek
    );
    // What was spent once is not free again an hour later.
    let long_ago = |n: i64| failed(&peer(3), kek(2), now - Duration::hours(50 + n / 2));
    let openings = Openings::new(&limits(2, 50), vec![long_ago(0), long_ago(1)]);
    assert_eq!(
        openings.take(&peer(3), &kek(2)).await.unwrap_err(),
        Spent::Peer(peer(3))
    );
}

#[tokio::test]
async fn questions_at_once_are_no_more_than_one_after_another() {
    let directory = tempfile::tempdir().unwrap();
    let store = Sql::sqlite(directory.path()).await.unwrap();
    let openings = Arc::new(Openings::new(&limits(3, 100), Vec::new()));
    let mut asked = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let (openings, store) = (Arc::clone(&openings), store.clone());
        asked.spawn(async move {
            let place = openings.take(&peer(1), &kek(1)).await?;
            tokio::time::sleep(Patience::from_millis(2)).await;
            openings.note(&store, place, &wrong()).await.unwrap();
            Ok::<(), Spent>(())
        });
    }
    let outcomes = asked.join_all().await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 3);
    assert_eq!(store.failed_openings().await.unwrap().len(), 3);
    assert_eq!(
        openings.counted(),
        OpeningsCounted {
            openings: 3,
            refused: 47
        }
    );
}

#[tokio::test]
async fn one_that_was_not_opened_gives_its_place_back() {
    let openings = Openings::new(&limits(1, 1), Vec::new());
    for _ in 0..3 {
        drop(openings.take(&peer(1), &kek(1)).await.unwrap());
    }
    let held = openings.take(&peer(1), &kek(1)).await.unwrap();
    let (peer, kek) = (peer(1), kek(1));
    let other = openings.take(&peer, &kek);
    let waits = tokio::time::timeout(Patience::from_millis(20), other);
    assert!(waits.await.is_err());
    drop(held);
}

#[tokio::test]
async fn the_secret_of_throw_away_keys_stays_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let store = Sql::sqlite(directory.path()).await.unwrap();
    let secret = store.guard_secret().await.unwrap();
    let again = Sql::sqlite(directory.path()).await.unwrap();
    assert_eq!(again.guard_secret().await.unwrap(), secret);
    let other = tempfile::tempdir().unwrap();
    let other = Sql::sqlite(other.path()).await.unwrap();
    assert_ne!(other.guard_secret().await.unwrap(), secret);
    // Not both at once: SQLite may hang over that.
    again.close().await;
    store.close().await;
}
