//! States of KEKs, the search of the history, rekeys and planned rotations.

use ekm::store::{
    DataKeySets, Every, KekLife, KekMove, KekSchedule, KekState, MoveState, OnMedium, Place,
    RekeyAsked, RekeyCount, RekeyFailure, RekeyJob, RekeyPlace, RekeyState, Rekeys, StateChange,
    VolumeQuery, Volumes, WriteOff,
};
use time::Duration;
use uuid::Uuid;

use super::*;

fn hash(label: &str) -> KekHash {
    KekHash::of_spki(label.as_bytes())
}

fn becomes(label: &str, state: KekState, before: i64) -> StateChange {
    StateChange {
        kek: hash(label),
        state,
        by: "operator:test".to_owned(),
        reason: Some("a test".to_owned()),
        before,
    }
}

fn of_kek(label: &str) -> VolumeQuery {
    VolumeQuery {
        kek: Some(hash(label)),
        ..VolumeQuery::default()
    }
}

/// EEDKs of a rekey of that data key, under another KEK.
fn rekeyed(number: u8, volser: &str, label: &str, filling: u8) -> Issuance {
    let mut fresh = issuance(&Uuid::new_v4().to_string(), number, volser);
    fresh.new = false;
    fresh.request.peer = "operator:rekey".parse().unwrap();
    fresh.eedks = vec![eedk(fresh.dki, label, filling)];
    fresh
}

async fn sets(store: &Sql, number: u8) -> DataKeySets {
    let mut all = store.data_keys(&[dki(number)]).await.unwrap();
    assert_eq!(all.len(), 1);
    all.remove(0)
}

async fn places(store: &Sql, number: u8) -> Vec<&'static str> {
    let sets = sets(store, number).await;
    sets.sets.iter().map(|set| set.place()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kek_has_the_state_that_was_said_last_and_two_do_not_say_it_at_once() {
    for two in both().await {
        assert_eq!(
            two.one.kek_states().await.unwrap().state(&hash("KEK1")),
            KekState::Active
        );
        let change = becomes("KEK1", KekState::Retired, 0);
        let (mine, theirs) = tokio::join!(
            two.one.set_kek_state(&change),
            two.other.set_kek_state(&change)
        );
        assert!(mine.unwrap() != theirs.unwrap());
        let states = two.other.kek_states().await.unwrap();
        let standing = states.of(&hash("KEK1")).unwrap().clone();
        assert_eq!(standing.state, KekState::Retired);
        assert_eq!(standing.reason.as_deref(), Some("a test"));
        let back = becomes("KEK1", KekState::Active, standing.row);
        assert!(two.one.set_kek_state(&back).await.unwrap());
        assert!(!two.one.set_kek_state(&back).await.unwrap());
        let states = two.one.kek_states().await.unwrap();
        assert_eq!(states.state(&hash("KEK1")), KekState::Active);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_issued_under_a_kek_that_was_retired_meanwhile() {
    for two in both().await {
        let given = issuance("r1", 1, "VOL001");
        let change = becomes("KEK2", KekState::Retired, 0);
        assert!(two.other.set_kek_state(&change).await.unwrap());
        let refused = two.one.issue(&given).await.unwrap_err();
        assert!(matches!(refused, StoreError::KekClosed { .. }), "{refused}");
        assert!(two.one.data_keys(&[given.dki]).await.unwrap().is_empty());
        let row = two.one.kek_states().await.unwrap();
        let row = row.of(&hash("KEK2")).unwrap().row;
        let back = becomes("KEK2", KekState::Active, row);
        assert!(two.other.set_kek_state(&back).await.unwrap());
        assert_eq!(two.one.issue(&given).await.unwrap(), Issued::Now);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_history_is_found_by_each_filter_newest_first() {
    for two in both().await {
        let before = OffsetDateTime::now_utc();
        for number in 1..=5 {
            let mut given = issuance(&format!("r{number}"), number, &format!("VOL00{number}"));
            if number > 3 {
                given.drive = "000007800002".parse().unwrap();
                given.eedks = vec![eedk(given.dki, "KEK3", number)];
            }
            assert_eq!(two.one.issue(&given).await.unwrap(), Issued::Now);
        }
        let find = async |query: VolumeQuery, limit: usize| {
            let found = two.other.find_volumes(&query, limit).await.unwrap();
            let volsers = found.volumes.iter().map(|set| set.key.volser.to_string());
            (volsers.collect::<Vec<_>>().join(" "), found.more)
        };
        let all = VolumeQuery::default;
        let said = |text: &str, more: bool| (text.to_owned(), more);
        assert_eq!(
            find(all(), 9).await,
            said("VOL005 VOL004 VOL003 VOL002 VOL001", false)
        );
        assert_eq!(find(all(), 2).await, said("VOL005 VOL004", true));
        assert_eq!(
            find(of_kek("KEK1"), 9).await,
            said("VOL003 VOL002 VOL001", false)
        );
        assert_eq!(find(of_kek("KEK3"), 1).await, said("VOL005", true));
        let volser = VolumeQuery {
            volser: Some("VOL002".parse().unwrap()),
            ..all()
        };
        assert_eq!(find(volser.clone(), 9).await, said("VOL002", false));
        let neither = VolumeQuery {
            kek: Some(hash("KEK3")),
            ..volser
        };
        assert_eq!(find(neither, 9).await, said("", false));
        let by_dki = VolumeQuery {
            dki: Some(dki(4)),
            ..all()
        };
        assert_eq!(find(by_dki, 9).await, said("VOL004", false));
        let by_drive = VolumeQuery {
            drive: Some("000007800002".parse().unwrap()),
            kek: Some(hash("KEK3")),
            ..all()
        };
        assert_eq!(find(by_drive, 9).await, said("VOL005 VOL004", false));
        let earlier = VolumeQuery {
            until: Some(before),
            ..all()
        };
        assert_eq!(find(earlier, 9).await, said("", false));
        let later = VolumeQuery {
            since: Some(before),
            ..all()
        };
        assert_eq!(find(later, 1).await, said("VOL005", true));
        // The list of before, and the walk, say the same.
        assert_eq!(two.one.volumes(None).await.unwrap().len(), 5);
        let mut walked = Vec::new();
        let mut after: Option<Place> = None;
        loop {
            let page = two
                .one
                .walk_volumes(&all(), after.as_ref(), 2)
                .await
                .unwrap();
            let Some(last) = page.last() else { break };
            after = Some(*last);
            walked.extend(page.iter().map(|place| place.dki));
        }
        assert_eq!(walked, (1..=5).map(dki).collect::<Vec<_>>());
        assert_eq!(two.one.count_volumes(&all(), 3).await.unwrap(), 3);
        assert_eq!(two.one.count_volumes(&of_kek("KEK1"), 9).await.unwrap(), 3);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_generation_with_two_eedks_under_one_kek_is_found_once() {
    for two in both().await {
        let mut given = issuance("r1", 1, "VOL001");
        given.eedks = vec![eedk(given.dki, "KEK1", 1), eedk(given.dki, "KEK1", 2)];
        assert_eq!(two.one.issue(&given).await.unwrap(), Issued::Now);
        let found = two.one.find_volumes(&of_kek("KEK1"), 1).await.unwrap();
        assert_eq!((found.volumes.len(), found.more), (1, false));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rekey_is_in_the_catalog_until_any_drive_confirms_it() {
    for two in both().await {
        let given = issuance("r1", 1, "VOL001");
        assert_eq!(two.one.issue(&given).await.unwrap(), Issued::Now);
        assert_eq!(places(&two.one, 1).await, ["medium?, catalog"]);
        confirm(&two.one, &given, true).await.unwrap();
        assert_eq!(places(&two.other, 1).await, ["medium, catalog"]);
        assert!(!two.other.any_unstored().await.unwrap());

        let fresh = rekeyed(1, "VOL001", "KEK9", 9);
        assert_eq!(
            two.other.issue_unmounted(&fresh).await.unwrap(),
            Issued::Now
        );
        assert_eq!(
            two.one.issue_unmounted(&fresh).await.unwrap(),
            Issued::Before
        );
        assert_eq!(places(&two.one, 1).await, ["medium", "catalog"]);
        assert!(two.one.any_unstored().await.unwrap());
        let waiting = two.one.unstored(&given.dki).await.unwrap().unwrap();
        assert_eq!(waiting.request.to_string(), fresh.request.id);
        assert_eq!((waiting.generation, &waiting.eedks), (2, &fresh.eedks));

        // The drive that holds the cartridge now is another one.
        let other: DriveSerial = "000007800009".parse().unwrap();
        let by = peer();
        let confirmed = two
            .one
            .confirm(&fresh.request.id, &fresh.dki, &other, true, &by);
        assert_eq!(
            confirmed.await.unwrap().map(|key| key.state),
            Some(EedkState::Confirmed)
        );
        assert_eq!(places(&two.other, 1).await, ["-", "medium, catalog"]);
        assert!(!two.other.any_unstored().await.unwrap());
        // What a drive was given itself is only its own to confirm.
        let stranger = two
            .one
            .confirm(&given.request.id, &given.dki, &other, true, &by);
        assert!(stranger.await.unwrap().is_none());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_confirm_that_comes_late_brings_no_old_set_back() {
    for two in both().await {
        let given = issuance("r1", 1, "VOL001");
        assert_eq!(two.one.issue(&given).await.unwrap(), Issued::Now);
        let fresh = rekeyed(1, "VOL001", "KEK9", 9);
        assert_eq!(two.one.issue_unmounted(&fresh).await.unwrap(), Issued::Now);
        assert_eq!(places(&two.one, 1).await, ["medium?", "catalog"]);
        confirm(&two.one, &fresh, true).await.unwrap();
        assert_eq!(
            confirm(&two.other, &given, true).await,
            Some(EedkState::Superseded)
        );
        assert_eq!(places(&two.one, 1).await, ["-", "medium, catalog"]);
        // A cartridge that is written anew needs nothing of its former data key.
        let again = rekeyed(1, "VOL001", "KEK8", 8);
        assert_eq!(two.one.issue_unmounted(&again).await.unwrap(), Issued::Now);
        let next = issuance("r2", 2, "VOL001");
        assert_eq!(two.one.issue(&next).await.unwrap(), Issued::Now);
        confirm(&two.one, &next, true).await.unwrap();
        assert_eq!(places(&two.one, 1).await, ["-", "-", "-"]);
        assert!(!two.one.any_unstored().await.unwrap());
    }
}

/// A create counts as written before its job has written: the KEK of what the cartridge held until
/// then could be destroyed while the job ran, and was needed where it wrote nothing.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_job_is_about_to_overwrite_is_known_until_it_has_said_whether_it_did() {
    for two in both().await {
        let day = OffsetDateTime::now_utc() - Duration::hours(24);
        let ahead = OffsetDateTime::now_utc() + Duration::hours(1);
        let under = async |label: &str, since| {
            let found = two.other.overwritten_since(&hash(label), since, 4).await;
            found
                .unwrap()
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
        };
        let given = issuance("r1", 1, "VOL001");
        assert_eq!(two.one.issue(&given).await.unwrap(), Issued::Now);
        confirm(&two.one, &given, true).await.unwrap();
        assert_eq!(under("KEK1", day).await, [""; 0]);
        // A rekey leaves the data key there, whichever EEDKs the cartridge holds.
        let fresh = rekeyed(1, "VOL001", "KEK9", 9);
        assert_eq!(two.one.issue_unmounted(&fresh).await.unwrap(), Issued::Now);
        confirm(&two.one, &fresh, true).await.unwrap();
        assert_eq!(under("KEK1", day).await, [""; 0]);
        let mut next = issuance("r2", 2, "VOL001");
        next.eedks = vec![eedk(next.dki, "KEK8", 8)];
        assert_eq!(two.one.issue(&next).await.unwrap(), Issued::Now);
        confirm(&two.one, &next, true).await.unwrap();
        assert_eq!(under("KEK9", day).await, ["VOL001"]);
        assert_eq!(under("KEK9", ahead).await, [""; 0]);
        assert_eq!(under("KEK8", day).await, [""; 0]);
        // It wrote nothing: what was there counts again.
        confirm(&two.one, &next, false).await.unwrap();
        assert_eq!(under("KEK9", day).await, [""; 0]);
        assert_eq!(sets(&two.one, 1).await.sets[1].medium, OnMedium::Yes);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_given_up_until_it_is_written_anew() {
    for two in both().await {
        let given = issuance("r1", 1, "VOL001");
        assert_eq!(two.one.issue(&given).await.unwrap(), Issued::Now);
        let volume = WriteOff {
            volser: "VOL001".parse().unwrap(),
            reason: "burnt".to_owned(),
            operator: "operator:test".to_owned(),
            at: OffsetDateTime::now_utc(),
        };
        two.other.write_off(&volume).await.unwrap();
        let next = issuance("r2", 2, "VOL001");
        assert_eq!(two.one.issue(&next).await.unwrap(), Issued::Now);
        let written_off = sets(&two.one, 1).await.sets[0].written_off.clone();
        assert_eq!(
            written_off.map(|volume| volume.reason),
            Some("burnt".to_owned())
        );
        let anew = sets(&two.other, 2).await;
        assert_eq!(anew.sets[0].written_off, None);
        assert_eq!(anew.sets[0].medium, OnMedium::Perhaps);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_changes_the_defaults_and_the_drives_that_name_the_former_kek() {
    for two in both().await {
        let first = row("000007800001", Custody::Token);
        let mut second = row("000007800002", Custody::Token);
        second.kek1 = Some("OTHER".parse().unwrap());
        second.kek2 = Some("kek1".parse().unwrap());
        for drive in [&first, &second] {
            two.one.put_drive(drive).await.unwrap();
        }
        let defaults = Defaults {
            kek1: Some("OTHER".parse().unwrap()),
            kek2: Some("KEK1:hash".parse().unwrap()),
        };
        two.one.set_defaults(&defaults).await.unwrap();
        let (former, successor) = ("KEK1".parse().unwrap(), "KEK2".parse().unwrap());
        let moved = two.other.move_kek(&former, &successor).await.unwrap();
        assert!(moved.defaults);
        assert_eq!(moved.drives, [first.serial.clone(), second.serial.clone()]);
        let now = two.one.defaults().await.unwrap();
        assert_eq!(now.kek1, defaults.kek1);
        assert_eq!(now.kek2, Some("KEK2:hash".parse().unwrap()));
        let drive = two.one.drive(&first.serial).await.unwrap().unwrap();
        assert_eq!(
            (drive.kek1, drive.kek2),
            (Some("KEK2:hash".parse().unwrap()), None)
        );
        let drive = two.one.drive(&second.serial).await.unwrap().unwrap();
        assert_eq!(drive.kek2, Some("KEK2".parse().unwrap()));
        let again = two.one.move_kek(&former, &successor).await.unwrap();
        assert_eq!(again, ekm::store::Moved::default());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn moves_and_schedules_are_kept_and_one_server_has_a_schedule_at_a_time() {
    for two in both().await {
        let due = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        let mut planned = KekMove {
            id: Uuid::new_v4(),
            former: "KEK1".parse().unwrap(),
            successor: "KEK2".parse().unwrap(),
            due,
            operator: "operator:test".to_owned(),
            state: MoveState::Planned,
            note: None,
        };
        two.one.put_kek_move(&planned).await.unwrap();
        planned.state = MoveState::Done;
        planned.note = Some("done".to_owned());
        two.other.put_kek_move(&planned).await.unwrap();
        assert_eq!(two.one.kek_moves().await.unwrap(), [planned]);

        let mut schedule = KekSchedule {
            label: "KEK1".parse().unwrap(),
            every: Every::Month,
            due,
            operator: "operator:test".to_owned(),
            making: None,
            trouble: None,
        };
        two.one.put_kek_schedule(&schedule).await.unwrap();
        let take = async |store: &Sql, node: &str| {
            store
                .take_kek_schedule(&schedule.label, node)
                .await
                .unwrap()
        };
        assert!(take(&two.one, "one").await);
        assert!(!take(&two.other, "other").await);
        assert!(take(&two.one, "one").await);
        schedule.making = Some("KEK2".parse().unwrap());
        schedule.trouble = Some("no token".to_owned());
        two.one.put_kek_schedule(&schedule).await.unwrap();
        assert_eq!(two.other.kek_schedules().await.unwrap(), [schedule.clone()]);
        let next = KekSchedule {
            label: "KEK2".parse().unwrap(),
            due: due + Duration::days(30),
            making: None,
            trouble: None,
            ..schedule.clone()
        };
        let advanced = two.one.advance_kek_schedule(&schedule.label, &next);
        advanced.await.unwrap();
        assert_eq!(
            two.other.kek_schedules().await.unwrap(),
            std::slice::from_ref(&next)
        );
        assert!(two.other.remove_kek_schedule(&next.label).await.unwrap());
        assert!(!two.one.remove_kek_schedule(&next.label).await.unwrap());
        // One that was removed meanwhile does not come back.
        two.one
            .advance_kek_schedule(&next.label, &next)
            .await
            .unwrap();
        assert!(two.one.kek_schedules().await.unwrap().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rekey_is_one_servers_until_it_falls_silent_or_is_cancelled() {
    for two in both().await {
        let job = RekeyJob {
            id: Uuid::new_v4(),
            asked: RekeyAsked {
                volsers: Vec::new(),
                query: of_kek("KEK1"),
                kek1: "KEK2".parse().unwrap(),
                kek2: None,
                replace: true,
                rate: Some(5),
            },
            operator: "operator:test".to_owned(),
            began: OffsetDateTime::from_unix_timestamp(1_790_000_000).unwrap(),
            state: RekeyState::Running,
            why: None,
            owner: String::new(),
            place: None,
            total: 7,
            count: RekeyCount::default(),
        };
        two.one.add_rekey(&job).await.unwrap();
        assert_eq!(
            two.other.running_rekeys().await.unwrap(),
            std::slice::from_ref(&job)
        );
        assert!(two.one.take_rekey(&job.id, "one").await.unwrap());
        assert!(!two.other.take_rekey(&job.id, "other").await.unwrap());
        let count = RekeyCount {
            looked: 3,
            done: 1,
            skipped: 1,
            failed: 1,
        };
        let place = RekeyPlace::Behind(Place {
            made: 5,
            dki: dki(1),
            generation: 1,
        });
        let advance = async |store: &Sql, node: &str| {
            store
                .advance_rekey(&job.id, node, Some(place), &count, Some("a reason"))
                .await
                .unwrap()
        };
        assert!(advance(&two.one, "one").await);
        assert!(!advance(&two.other, "other").await);
        let failure = RekeyFailure {
            dki: dki(2),
            volser: "VOL002".parse().unwrap(),
            reason: "it does not open".to_owned(),
        };
        two.one.note_rekey_failure(&job.id, &failure).await.unwrap();
        let seen = two.other.rekey_job(&job.id).await.unwrap().unwrap();
        assert_eq!((seen.count, seen.place), (count, Some(place)));
        assert_eq!(
            (seen.owner.as_str(), seen.why.as_deref()),
            ("one", Some("a reason"))
        );
        assert_eq!(
            two.other.rekey_failures(&job.id, 9).await.unwrap(),
            [failure]
        );
        let turn = async |from: RekeyState, to: RekeyState| {
            two.other
                .turn_rekey(&job.id, &[from], to, None)
                .await
                .unwrap()
        };
        assert!(turn(RekeyState::Running, RekeyState::Cancelled).await);
        assert!(!turn(RekeyState::Running, RekeyState::Cancelled).await);
        assert!(!advance(&two.one, "one").await);
        assert!(two.one.running_rekeys().await.unwrap().is_empty());
        // One that is resumed begins again.
        assert!(turn(RekeyState::Cancelled, RekeyState::Running).await);
        let seen = two.one.rekeys(9).await.unwrap();
        assert_eq!(
            (seen[0].count, seen[0].place),
            (RekeyCount::default(), None)
        );
        assert!(two.one.rekey_failures(&job.id, 9).await.unwrap().is_empty());
        assert!(two.other.take_rekey(&job.id, "other").await.unwrap());
    }
}
