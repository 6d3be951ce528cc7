//! The history of one server taken in by another: nothing is changed, all is kept.

use ekm::store::sync::{HistoryRow, Reach, SyncTables as _, TakenIn};

use super::*;

fn peer_server() -> PeerId {
    "server:other".parse().unwrap()
}

/// Everything that a server gives, in pages of two.
async fn given(store: &Sql) -> Vec<HistoryRow> {
    let mut all = Vec::new();
    let mut from = 1;
    loop {
        let page = store.history_rows(from, 2).await.unwrap();
        let Some(last) = page.last() else {
            assert_eq!(
                all.last().map_or(0, |row: &HistoryRow| row.id),
                store.history_end().await.unwrap()
            );
            return all;
        };
        from = last.id + 1;
        // As it is on the way.
        for row in page {
            assert_eq!(row.fault(), None);
            let text = serde_json::to_string(&row).unwrap();
            let back: HistoryRow = serde_json::from_str(&text).unwrap();
            assert_eq!(back, row);
            all.push(back);
        }
    }
}

async fn take(from: &Sql, to: &Sql) -> TakenIn {
    let rows = given(from).await;
    to.take_history(&peer_server(), &rows, None, false)
        .await
        .unwrap()
}

/// Two servers' databases, of each kind.
async fn pairs() -> Vec<(Two, Two)> {
    both().await.into_iter().zip(both().await).collect()
}

fn rekey(request: &str, number: u8, filling: u8) -> Issuance {
    let mut again = issuance(request, number, "VOL001");
    again.new = false;
    again.eedks = vec![eedk(dki(number), "KEK3", filling)];
    again
}

/// Generations of a data key by their EEDKs, and the state of each.
async fn held(store: &Sql) -> Vec<(String, EedkState)> {
    let mut all: Vec<_> = store
        .volumes(None)
        .await
        .unwrap()
        .iter()
        .map(|key| (hex::encode(key.eedks[0].eedk.digest()), key.state))
        .collect();
    all.sort_by(|one, other| one.0.cmp(&other.0));
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn what_both_servers_made_of_one_data_key_is_kept_by_both() {
    for (a, b) in pairs().await {
        let (a, b) = (a.one, b.one);
        let first = issuance("r1", 1, "VOL001");
        assert_eq!(a.issue(&first).await.unwrap(), Issued::Now);
        let new = take(&a, &b).await;
        assert_eq!((new.generations, new.renumbered), (1, 0));
        assert_eq!(b.origin(&first.dki).await.unwrap(), Some(Origin::Ours));
        // Who asks again there gets the same.
        let (digest, again) = b.answered(&first.request).await.unwrap().unwrap();
        assert_eq!((digest, again.dki), (first.digest, first.dki));
        assert_eq!(again.server, "ekm1");

        // Each rekeys it on its own, and a drive stores both, one after the other.
        let (mine, yours) = (rekey("r2", 1, 50), rekey("r3", 1, 60));
        assert_eq!(a.issue(&mine).await.unwrap(), Issued::Now);
        assert_eq!(b.issue(&yours).await.unwrap(), Issued::Now);
        confirm(&a, &mine, true).await;
        confirm(&b, &yours, true).await;
        let new = take(&a, &b).await;
        assert_eq!((new.generations, new.renumbered, new.states), (1, 1, 1));
        let new = take(&b, &a).await;
        assert_eq!((new.generations, new.renumbered), (1, 1));
        assert_eq!(held(&a).await, held(&b).await);
        assert_eq!(held(&a).await.len(), 3);
        for store in [&a, &b] {
            let best = store.data_key(&first.dki).await.unwrap().unwrap();
            assert_eq!(best.state, EedkState::Confirmed);
            assert_eq!(best.eedks, yours.eedks, "the one that was stored last");
            for stored in [&first, &mine, &yours].map(|one| &one.eedks[0]) {
                let known = store.issued(&stored.eedk.digest()).await.unwrap();
                assert_eq!(known, Some(Origin::Ours));
            }
        }
        // Until neither has news for the other.
        take(&a, &b).await;
        take(&b, &a).await;
        assert_eq!(take(&a, &b).await, TakenIn::default());
        assert_eq!(take(&b, &a).await, TakenIn::default());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_never_goes_back() {
    for (a, b) in pairs().await {
        let (a, b) = (a.one, b.one);
        let first = issuance("r1", 1, "VOL001");
        assert_eq!(a.issue(&first).await.unwrap(), Issued::Now);
        take(&a, &b).await;
        // The drive tells the one that it did not store it, and the other that it did.
        assert_eq!(confirm(&a, &first, false).await, Some(EedkState::Abandoned));
        assert_eq!(confirm(&b, &first, true).await, Some(EedkState::Confirmed));
        assert_eq!(take(&a, &b).await.states, 0);
        assert_eq!(take(&b, &a).await.states, 1);
        assert_eq!(held(&a).await[0].1, EedkState::Confirmed);
        assert_eq!(held(&b).await[0].1, EedkState::Confirmed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_foreign_to_one_of_two_is_not_made_the_others_own() {
    for (a, b) in pairs().await {
        let (a, b) = (a.one, b.one);
        let ours = issuance("r1", 1, "VOL001");
        assert_eq!(a.issue(&ours).await.unwrap(), Issued::Now);
        // Under the same identifier, an EEDK that anybody who has the public key can make.
        let mut forged = rekey("r2", 1, 70);
        forged.origin = Origin::Foreign;
        assert_eq!(b.issue(&forged).await.unwrap(), Issued::Now);
        let new = take(&b, &a).await;
        assert_eq!((new.generations, new.unlike), (0, 1));
        let digest = forged.eedks[0].eedk.digest();
        assert_eq!(a.issued(&digest).await.unwrap(), None);
        let new = take(&a, &b).await;
        assert_eq!((new.generations, new.unlike), (0, 1));
        assert_eq!(b.origin(&ours.dki).await.unwrap(), Some(Origin::Foreign));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_is_tried_or_fails_leaves_nothing() {
    for (a, b) in pairs().await {
        let (a, b) = (a.one, b.one);
        let peer = peer_server();
        for number in 1..=3 {
            let one = issuance(&format!("r{number}"), number, "VOL001");
            assert_eq!(a.issue(&one).await.unwrap(), Issued::Now);
        }
        let mut rows = given(&a).await;
        let reach = Reach {
            id: rows[1].id,
            mark: rows[1].mark(),
        };
        let tried = b.take_history(&peer, &rows, Some(&reach), true);
        assert_eq!(tried.await.unwrap().generations, 3);
        assert!(b.volumes(None).await.unwrap().is_empty());
        assert_eq!(b.synced(&peer).await.unwrap().reach, None);

        // The last row is one that a database refuses: two EEDKs that are one.
        let good = rows[2].clone();
        let given = rows[2].given.as_mut().unwrap();
        given.eedks[1] = given.eedks[0].clone();
        let failed = b.take_history(&peer, &rows, Some(&reach), false);
        failed.await.unwrap_err();
        assert!(b.volumes(None).await.unwrap().is_empty());

        rows[2] = good;
        let taken = b.take_history(&peer, &rows, Some(&reach), false);
        assert_eq!(taken.await.unwrap().generations, 3);
        let at = OffsetDateTime::now_utc();
        b.note_synced(&peer, at).await.unwrap();
        let synced = b.synced(&peer).await.unwrap();
        assert_eq!((synced.reach, synced.at), (Some(reach), Some(at)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drive_table_is_read_in_pages_and_measured_whole() {
    use ekm::sync::wire::Measure;
    for two in both().await {
        let serials = ["000007800001", "000007800002", "00000780000A"];
        for serial in serials {
            two.one
                .put_drive(&row(serial, Custody::Token))
                .await
                .unwrap();
        }
        two.one
            .delete_drive(&serials[1].parse().unwrap())
            .await
            .unwrap();
        let mut all = two.other.drive_rows("", 2).await.unwrap();
        assert_eq!(all.len(), 2);
        assert!(all[1].deleted);
        all.extend(two.other.drive_rows(serials[1], 2).await.unwrap());
        assert_eq!(all.len(), 3);
        let extent = two.one.drive_extent().await.unwrap();
        assert_eq!(Measure::of(&all), extent);
        two.one
            .put_drive(&row(serials[0], Custody::Host))
            .await
            .unwrap();
        assert_ne!(two.one.drive_extent().await.unwrap(), extent);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_history_ends_at_no_row_behind_one_that_is_still_being_written() {
    let Some(server) = Postgres::shared() else {
        return;
    };
    let database = server.database();
    let name = database.url.split(['/', '?']).nth(3).unwrap().to_owned();
    let two = Place::Postgres(database).two().await;
    // Holds a create up after its transaction has begun, until it is told to let go.
    let holder = std::thread::spawn({
        let name = name.clone();
        move || {
            let held = "BEGIN; LOCK TABLE generations IN EXCLUSIVE MODE;
                DO $$ BEGIN PERFORM pg_sleep(60); EXCEPTION WHEN query_canceled THEN NULL; END $$;
                COMMIT";
            server.psql(&name, held)
        }
    });
    let until = async |what: &str| {
        for _ in 0..1000 {
            if server.psql(&name, what).trim() == "t" {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        panic!("{what}");
    };
    until("SELECT count(*) > 0 FROM pg_locks WHERE relation = 'generations'::regclass AND mode = 'ExclusiveLock' AND granted").await;
    let created = tokio::spawn({
        let given = issuance("r1", 1, "VOL001");
        async move { (two.one.issue(&given).await, two.one) }
    });
    until("SELECT count(*) > 0 FROM pg_locks WHERE relation = 'generations'::regclass AND NOT granted").await;
    // Only then is the create let go on, so that whoever asks for the end has to wait for it.
    let let_go = async {
        until("SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())").await;
        server.psql(&name, "SELECT pg_cancel_backend(pid) FROM pg_locks WHERE relation = 'generations'::regclass AND mode = 'ExclusiveLock' AND granted");
    };
    let (end, ()) = tokio::join!(two.other.history_end(), let_go);
    let end = end.unwrap();
    let rows = two.other.history_rows(1, 10).await.unwrap();
    assert_eq!(rows.iter().map(|row| row.id).max(), Some(end));
    let (issued, _one) = created.await.unwrap();
    assert_eq!(issued.unwrap(), Issued::Now);
    holder.join().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_took_the_place_of_eedks_must_be_here_before_they_count_for_superseded() {
    for (a, b) in pairs().await {
        let (a, b) = (a.one, b.one);
        let (first, later) = (issuance("r1", 1, "VOL001"), rekey("r2", 1, 50));
        for given in [&first, &later] {
            assert_eq!(a.issue(given).await.unwrap(), Issued::Now);
            confirm(&a, given, true).await;
        }
        let digest = |given: &Issuance| hex::encode(given.eedks[0].eedk.digest());
        let state = async |store: &Sql, given: &Issuance| {
            let all = held(store).await;
            let found = all.iter().find(|(eedk, _)| *eedk == digest(given));
            found.map(|(_, state)| *state)
        };
        assert_eq!(state(&a, &first).await, Some(EedkState::Superseded));
        // A peer that keeps the later one back.
        let mut rows = given(&a).await;
        rows.retain(|row| !row.eedks.contains(&digest(&later)));
        b.take_history(&peer_server(), &rows, None, false)
            .await
            .unwrap();
        assert_eq!(state(&b, &first).await, Some(EedkState::Confirmed));
        assert_eq!(state(&b, &later).await, None);
        take(&a, &b).await;
        assert_eq!(state(&b, &first).await, Some(EedkState::Superseded));
        assert_eq!(state(&b, &later).await, Some(EedkState::Confirmed));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_was_ahead_makes_no_confirm_late() {
    for (a, b) in pairs().await {
        let (a, b) = (a.one, b.one);
        let ahead = issuance("r1", 1, "VOL001");
        assert_eq!(a.issue(&ahead).await.unwrap(), Issued::Now);
        confirm(&a, &ahead, true).await;
        let mut rows = given(&a).await;
        for row in &mut rows {
            row.at += time::Duration::seconds(40);
            if let Some(given) = &mut row.given {
                given.created += time::Duration::seconds(40);
            }
        }
        b.take_history(&peer_server(), &rows, None, false)
            .await
            .unwrap();
        // Given out and stored after that, by a server whose clock is right.
        let now = issuance("r2", 2, "VOL001");
        assert_eq!(b.issue(&now).await.unwrap(), Issued::Now);
        assert_eq!(confirm(&b, &now, true).await, Some(EedkState::Confirmed));
        let states = b.volumes(Some(&now.volser)).await.unwrap();
        let of = |given: &Issuance| {
            states
                .iter()
                .find(|key| key.dki == given.dki)
                .unwrap()
                .state
        };
        assert_eq!(of(&ahead), EedkState::Superseded);
        assert_eq!(of(&now), EedkState::Confirmed);
    }
}
