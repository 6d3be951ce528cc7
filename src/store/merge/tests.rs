use proptest::prelude::*;

use super::*;
use crate::bridge::message::{Custody, Provenance};
use crate::certificates::Vouched;
use crate::key::SedkForm;
use crate::store::DriveKey;

fn at(second: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_800_000_000 + second).unwrap()
}

fn drive(number: u8, kek: &str, second: i64, state: DriveState) -> DriveRow {
    DriveRow {
        drive: Drive {
            serial: format!("00000780{number:04}").parse().unwrap(),
            wwn: None,
            kek1: Some(kek.parse().unwrap()),
            kek2: None,
            key: DriveKey::Pinned(vec![number]),
            form: SedkForm::RsaOaepSha1,
            custody: Custody::Token,
            speakers: Vec::new(),
            state,
        },
        updated: at(second),
        deleted: false,
    }
}

fn active(number: u8, kek: &str, second: i64) -> DriveRow {
    drive(number, kek, second, DriveState::Active)
}

fn deleted(number: u8, second: i64) -> DriveRow {
    DriveRow {
        deleted: true,
        ..active(number, "A", second)
    }
}

fn drives(rows: &[DriveRow]) -> TableDump {
    TableDump {
        drives: Some(rows.to_vec()),
        ..TableDump::default()
    }
}

fn defaults(kek: &str, second: i64) -> TableDump {
    TableDump {
        defaults: Some(DefaultsRow {
            defaults: Defaults {
                kek1: Some(kek.parse().unwrap()),
                kek2: None,
            },
            updated: at(second),
        }),
        ..TableDump::default()
    }
}

fn kek(label: &str, key: &[u8]) -> KekRow {
    KekRow {
        kek: RegisteredKek {
            label: label.parse().unwrap(),
            hash: KekHash::of_spki(key),
            spki: key.to_vec(),
            bits: 2048,
            token: "main".to_owned(),
            custody: Custody::Token,
            provenance: Provenance::Born,
        },
        created: at(0),
    }
}

fn partner(label: &str, key: &[u8], second: i64) -> PartnerRow {
    let label: KeyLabel = label.parse().unwrap();
    PartnerRow {
        label: label.clone(),
        hash: KekHash::of_spki(key),
        updated: at(second),
        partner: Some(Partner {
            label,
            hash: KekHash::of_spki(key),
            spki: key.to_vec(),
            certificate: Vec::new(),
            vouched: Vouched::Itself,
            operator: "operator:test".to_owned(),
            confirmed: at(second),
            seals: Vec::new(),
        }),
    }
}

fn removed(label: &str, key: &[u8], second: i64) -> PartnerRow {
    PartnerRow {
        partner: None,
        ..partner(label, key, second)
    }
}

fn named(keks: &[KekRow], partners: &[PartnerRow]) -> TableDump {
    TableDump {
        keks: Some(keks.to_vec()),
        partners: Some(partners.to_vec()),
        ..TableDump::default()
    }
}

/// What a store would hold after the changes.
fn applied(mut ours: TableDump, changes: &Changes) -> TableDump {
    let rows = ours.drives.get_or_insert_default();
    for Write { row, over } in &changes.drives {
        let here = rows
            .iter()
            .position(|known| known.drive.serial == row.drive.serial);
        assert_eq!(here.map(|n| rows[n].clone()), *over);
        match here {
            Some(n) => rows[n] = row.clone(),
            None => rows.push(row.clone()),
        }
    }
    rows.sort_by(|a, b| a.drive.serial.cmp(&b.drive.serial));
    if let Some(write) = &changes.defaults {
        ours.defaults = Some(write.row.clone());
    }
    ours
}

#[test]
fn the_newest_row_of_a_drive_stands() {
    let changes = merge(
        &drives(&[active(1, "OLD", 5), active(2, "NEW", 9)]),
        &drives(&[active(1, "NEW", 6), active(2, "OLD", 8), active(3, "X", 1)]),
    );
    let written: Vec<_> = changes.drives.iter().map(|write| &write.row).collect();
    assert_eq!(written, [&active(1, "NEW", 6), &active(3, "X", 1)]);
    let [Kept::DriveNewer(serial)] = &changes.kept[..] else {
        panic!("{:?}", changes.kept);
    };
    assert_eq!(serial.as_str(), "000007800002");
}

#[test]
fn a_drive_that_was_deleted_later_stays_deleted_and_delete_wins_on_a_tie() {
    for second in [5, 6] {
        let ours = drives(&[deleted(1, second)]);
        let theirs = drives(&[active(1, "A", 5)]);
        for changes in [merge(&ours, &theirs), rewrite(&ours, &theirs, at(100))] {
            assert!(changes.is_empty(), "{changes:?}");
            assert!(matches!(changes.kept[..], [Kept::DriveDeleted(_)]));
        }
        assert_eq!(merge(&theirs, &ours).drives[0].row, deleted(1, second));
    }
    // Whoever was added again after that is back.
    let back = merge(&drives(&[deleted(1, 5)]), &drives(&[active(1, "A", 6)]));
    assert_eq!(back.drives[0].row, active(1, "A", 6));
}

#[test]
fn a_deletion_of_a_drive_that_is_not_known_here_is_kept_against_a_third() {
    let changes = merge(&drives(&[]), &drives(&[deleted(1, 9)]));
    let ours = applied(drives(&[]), &changes);
    assert!(merge(&ours, &drives(&[active(1, "A", 5)])).is_empty());
}

#[test]
fn a_drive_that_only_waits_takes_no_operators_place() {
    let ours = drives(&[active(1, "A", 1), deleted(2, 1)]);
    let theirs = drives(&[
        drive(1, "A", 9, DriveState::Pending),
        drive(2, "A", 9, DriveState::Pending),
        drive(3, "A", 9, DriveState::Pending),
    ]);
    for changes in [merge(&ours, &theirs), rewrite(&ours, &theirs, at(100))] {
        assert_eq!(changes.drives.len(), 1, "{changes:?}");
        assert_eq!(changes.drives[0].over, None);
        assert_eq!(changes.kept.len(), 2);
    }
    assert_eq!(merge(&theirs, &ours).drives.len(), 2);
}

#[test]
fn rewrite_takes_older_rows_and_deletes_what_the_other_has_not() {
    let ours = drives(&[
        active(1, "NEW", 9),
        active(2, "A", 9),
        drive(4, "A", 9, DriveState::Pending),
    ]);
    let theirs = drives(&[active(1, "OLD", 5), active(3, "A", 1)]);
    let changes = rewrite(&ours, &theirs, at(100));
    let rows: Vec<DriveRow> = changes.drives.iter().map(|w| w.row.clone()).collect();
    let again = DriveRow {
        updated: at(100),
        ..active(1, "OLD", 0)
    };
    let gone = DriveRow {
        updated: at(100),
        deleted: true,
        ..active(2, "A", 0)
    };
    assert_eq!(rows, [again, active(3, "A", 1), gone]);
    // Our clock stands behind the row that goes: the new one is later all the same.
    for write in rewrite(&ours, &theirs, at(0)).drives {
        assert!(
            write
                .over
                .is_none_or(|over| over.updated < write.row.updated)
        );
    }
    let after = applied(ours, &changes);
    assert!(rewrite(&after, &theirs, at(200)).is_empty());
    // What the other did not tell of is not touched.
    assert!(rewrite(&after, &TableDump::default(), at(200)).is_empty());
}

#[test]
fn the_newer_defaults_stand_and_a_rewrite_takes_the_others() {
    assert!(merge(&defaults("A", 5), &defaults("B", 4)).is_empty());
    assert_eq!(
        merge(&defaults("A", 5), &defaults("B", 4)).kept,
        [Kept::DefaultsNewer]
    );
    let newer = merge(&defaults("A", 5), &defaults("B", 6))
        .defaults
        .unwrap();
    assert_eq!(Some(newer.row), defaults("B", 6).defaults);
    let written = rewrite(&defaults("A", 5), &defaults("B", 4), at(100))
        .defaults
        .unwrap();
    assert_eq!(Some(written.row), defaults("B", 100).defaults);
    let never = TableDump {
        defaults: Some(DefaultsRow {
            defaults: Defaults::default(),
            updated: OffsetDateTime::UNIX_EPOCH,
        }),
        ..TableDump::default()
    };
    assert!(merge(&defaults("A", 5), &never).is_empty());
}

#[test]
fn a_label_keeps_the_key_that_it_names() {
    let ours = named(&[kek("TAPE", b"ours")], &[partner("BANK", b"bank", 1)]);
    let theirs = named(
        &[
            kek("tape", b"theirs"),
            kek("Bank", b"not the bank"),
            kek("NEW", b"new"),
        ],
        &[
            partner("TAPE", b"a partner", 9),
            partner("BANK", b"another bank", 9),
            partner("new", b"not new", 9),
        ],
    );
    for changes in [merge(&ours, &theirs), rewrite(&ours, &theirs, at(100))] {
        assert_eq!(changes.keks, [kek("NEW", b"new")]);
        assert!(changes.partners.is_empty(), "{changes:?}");
        assert_eq!(changes.kept.len(), 5);
    }
}

#[test]
fn a_partner_that_was_confirmed_here_keeps_its_seal() {
    let ours = named(&[], &[partner("BANK", b"bank", 1)]);
    let theirs = named(&[], &[partner("BANK", b"bank", 9)]);
    for changes in [merge(&ours, &theirs), rewrite(&ours, &theirs, at(100))] {
        assert!(changes.is_empty());
        assert!(matches!(changes.kept[..], [Kept::PartnerConfirmed(_)]));
    }
}

#[test]
fn a_partner_that_was_removed_does_not_come_back_with_an_older_list() {
    let gone = named(&[], &[removed("BANK", b"bank", 5)]);
    let there = named(&[], &[partner("BANK", b"bank", 5)]);
    assert!(merge(&gone, &there).is_empty());
    assert!(rewrite(&gone, &there, at(100)).is_empty());
    let [write] = &merge(&there, &gone).partners[..] else {
        panic!("the removal wins on a tie");
    };
    assert_eq!(write.row, removed("BANK", b"bank", 5));
    // Confirmed anew since, or another key under that label.
    let anew = named(&[], &[partner("BANK", b"bank", 6)]);
    assert!(merge(&anew, &gone).is_empty());
    assert_eq!(merge(&gone, &anew).partners.len(), 1);
    let other = named(&[], &[partner("BANK", b"other", 1)]);
    assert!(merge(&other, &gone).is_empty());
    // What a rewrite does not find it removes.
    let changes = rewrite(&there, &named(&[], &[]), at(100));
    assert_eq!(changes.partners[0].row, removed("BANK", b"bank", 100));
}

#[test]
fn tables_from_elsewhere_are_looked_at_before_they_are_believed() {
    let now = at(0);
    let mut wrong = kek("TAPE", b"key");
    wrong.kek.spki = b"another key".to_vec();
    let hostile = TableDump {
        drives: Some(vec![
            active(1, "A", 600),
            active(2, "A", 0),
            active(2, "B", 0),
        ]),
        defaults: defaults("A", 600).defaults,
        keks: Some(vec![wrong, kek("X", b"x"), kek("x", b"y")]),
        partners: Some(vec![partner("X", b"z", 0), removed("x", b"z", 0)]),
    };
    let faults = hostile.faults(now);
    assert_eq!(faults.len(), 7, "{faults:#?}");
    assert!(drives(&[active(1, "A", 200)]).faults(now).is_empty());
}

fn any_row() -> impl Strategy<Value = DriveRow> {
    (1_u8..4, 0_u8..3, 0_i64..4, any::<bool>(), any::<bool>()).prop_map(
        |(number, kek, second, gone, waits)| {
            let state = if waits {
                DriveState::Pending
            } else {
                DriveState::Active
            };
            DriveRow {
                deleted: gone,
                ..drive(number, &format!("KEK{kek}"), second, state)
            }
        },
    )
}

fn any_dump() -> impl Strategy<Value = TableDump> {
    let rows = proptest::collection::vec(any_row(), 0..5);
    (rows, 0_u8..3, 0_i64..3).prop_map(|(rows, kek, second)| {
        let by_serial: BTreeMap<DriveSerial, DriveRow> = rows
            .into_iter()
            .map(|row| (row.drive.serial.clone(), row))
            .collect();
        TableDump {
            drives: Some(by_serial.into_values().collect()),
            ..defaults(&format!("KEK{kek}"), second)
        }
    })
}

proptest! {
    #[test]
    fn servers_that_merge_in_any_order_end_with_the_same(
        a in any_dump(), b in any_dump(), c in any_dump(),
    ) {
        let with = |ours: &TableDump, theirs: &TableDump| applied(ours.clone(), &merge(ours, theirs));
        prop_assert_eq!(with(&a, &b), with(&b, &a));
        prop_assert_eq!(with(&with(&a, &b), &c), with(&a, &with(&b, &c)));
        let both = with(&a, &b);
        prop_assert!(merge(&both, &b).is_empty());
        prop_assert!(merge(&a, &a).is_empty());
    }

    #[test]
    fn a_rewrite_stands_against_what_it_replaced(a in any_dump(), b in any_dump()) {
        let after = applied(a.clone(), &rewrite(&a, &b, at(2)));
        prop_assert!(rewrite(&after, &b, at(3)).is_empty());
        // An older list does not undo it.
        let again = applied(after.clone(), &merge(&after, &a));
        for (row, was) in again.drives.iter().flatten().zip(after.drives.iter().flatten()) {
            prop_assert!(row == was || !by_operator(was), "{row:?} {was:?}");
        }
    }
}
