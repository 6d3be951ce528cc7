use super::*;

fn kek(n: u8) -> (KekHash, String) {
    (KekHash::of_spki(&[n]), format!("KEK{n}"))
}

fn token(name: &str, state: &'static str, keks: &[u8]) -> Token {
    Token {
        name: name.to_owned(),
        state,
        serves: state == "ready",
        why: None,
        lasts: true,
        pin_low: None,
        keks: keks.iter().map(|n| kek(*n)).collect(),
        lost: Vec::new(),
    }
}

fn well(tokens: Vec<Token>) -> Sight {
    Sight {
        tokens,
        gates: Vec::new(),
        certificate: time::Duration::days(300),
        audit_disk: None,
        state_disk: None,
        audit_failed: false,
        kek_certificates: Vec::new(),
        broken_seals: Vec::new(),
        spent: Vec::new(),
        unbacked: Vec::new(),
        gone: Vec::new(),
        unsynced: Vec::new(),
        unlike: Vec::new(),
        rotations: Vec::new(),
        floor: 0,
        evidence: EvidenceSeen::default(),
        differences: Vec::new(),
        backlog: None,
        outage: None,
        panicked: Vec::new(),
    }
}

fn alarms(sight: &Sight) -> Vec<(Alarm, String)> {
    found(sight, &Alarms::default())
        .into_iter()
        .map(|found| (found.alarm, found.subject))
        .collect()
}

#[test]
fn a_server_that_is_well_raises_nothing() {
    // A KEK on one token only, as the two of a cartridge may be, is no alarm.
    let tokens = vec![token("a", "ready", &[1]), token("b", "ready", &[2])];
    assert!(alarms(&well(tokens)).is_empty());
}

#[test]
fn a_loop_of_the_server_that_panicked_is_told_by_its_name() {
    let panicked = vec![("rekeys".to_owned(), "3 since the start: row".to_owned())];
    let sight = Sight {
        panicked,
        ..well(Vec::new())
    };
    assert_eq!(alarms(&sight), [(Alarm::Watcher, "rekeys".to_owned())]);
}

#[test]
fn a_token_that_is_down_leaves_last_copies_and_lost_ones() {
    let tokens = vec![token("a", "ready", &[1]), token("b", "failed", &[1, 2])];
    assert_eq!(
        alarms(&well(tokens)),
        [
            (Alarm::TokenDown, "b".to_owned()),
            (Alarm::LastCopy, String::new()),
            (Alarm::NoCopy, String::new()),
        ]
    );
}

#[test]
fn a_key_that_is_gone_from_a_token_that_is_up_leaves_last_copies_and_lost_ones() {
    let mut emptied = token("b", "ready", &[]);
    emptied.lost = vec![kek(1), kek(2)];
    let mut sight = well(vec![token("a", "ready", &[1]), emptied]);
    let told = found(&sight, &Alarms::default());
    let said = |alarm| {
        let one = told.iter().find(|found| found.alarm == alarm);
        one.map(|found| found.detail.as_str())
    };
    assert_eq!(said(Alarm::LastCopy), Some("KEK1"));
    assert_eq!(said(Alarm::NoCopy), Some("KEK2"));
    // And one that the registry alone knows.
    sight.tokens.clear();
    sight.gone = vec!["KEK3".to_owned()];
    assert_eq!(alarms(&sight), [(Alarm::NoCopy, String::new())]);
}

#[test]
fn a_token_that_starts_is_told_of_only_when_that_lasts() {
    let mut starting = token("a", "starting", &[]);
    starting.lasts = false;
    assert!(alarms(&well(vec![starting.clone()])).is_empty());
    starting.lasts = true;
    assert_eq!(
        alarms(&well(vec![starting])),
        [(Alarm::TokenDown, "a".to_owned())]
    );
    assert_eq!(
        alarms(&well(vec![token("a", "locked", &[])])),
        [(Alarm::TokenLocked, "a".to_owned())]
    );
}

#[test]
fn a_disk_rises_at_80_per_cent_and_is_over_below_75() {
    let raised = Alarms::default();
    let at = |used: u64| Sight {
        audit_disk: Some(Disk {
            size: 1000,
            free: 1000 - used * 10,
        }),
        ..well(Vec::new())
    };
    for (used, is) in [
        (79, false),
        (80, true),
        (75, true),
        (74, false),
        (79, false),
    ] {
        raised.settle(found(&at(used), &raised));
        assert_eq!(raised.is_raised(Alarm::AuditDisk, ""), is, "{used} %");
    }
}

#[test]
fn a_disk_below_its_floor_is_told_of_whatever_its_share() {
    let mut sight = well(Vec::new());
    sight.audit_disk = Some(Disk {
        size: 1000,
        free: 900,
    });
    sight.floor = 900;
    assert!(alarms(&sight).is_empty());
    sight.floor = 901;
    assert_eq!(alarms(&sight), [(Alarm::AuditDisk, String::new())]);
    // Both reasons are one alarm.
    sight.audit_disk = Some(Disk {
        size: 1000,
        free: 100,
    });
    assert_eq!(alarms(&sight), [(Alarm::AuditDisk, String::new())]);
}

#[test]
fn what_is_wrong_with_the_audit_chain_is_told_of_each_by_its_own() {
    let mut sight = well(Vec::new());
    sight.evidence = EvidenceSeen {
        late: Some("no token".to_owned()),
        mismatch: Some("cut off".to_owned()),
        emergency: Some("on".to_owned()),
        outlets: vec![("udp://log:514".to_owned(), "away".to_owned())],
    };
    assert_eq!(
        alarms(&sight),
        [
            (Alarm::SealLate, String::new()),
            (Alarm::ChainMismatch, String::new()),
            (Alarm::Emergency, String::new()),
            (Alarm::Outlet, "udp://log:514".to_owned()),
        ]
    );
}

#[test]
fn the_rest_is_told_of_each_by_its_own() {
    let mut sight = well(vec![Token {
        pin_low: Some("CKF_USER_PIN_COUNT_LOW".to_owned()),
        ..token("a", "ready", &[])
    }]);
    sight.certificate = time::Duration::days(29);
    sight.audit_failed = true;
    sight.kek_certificates = vec![("KEK1".to_owned(), "in 3 days".to_owned())];
    sight.broken_seals = vec![("PARTNER".to_owned(), "changed".to_owned())];
    sight.unbacked = vec!["KEK2".to_owned()];
    sight.spent = vec![("drive:000000000001".to_owned(), "10 of 10".to_owned())];
    sight.unsynced = vec![("server:a".to_owned(), "no route".to_owned())];
    sight.unlike = vec![("server:b".to_owned(), "KEK1".to_owned())];
    sight.rotations = vec![("KEK2".to_owned(), "no token".to_owned())];
    sight.differences = vec![("KEK1".to_owned(), "on no token of b".to_owned())];
    sight.backlog = Some("1 create".to_owned());
    sight.outage = Some("it does not answer".to_owned());
    sight.gates = vec![Gate {
        name: "a".to_owned(),
        waiting: 0,
        most: 10,
        refused: 1,
    }];
    assert_eq!(
        alarms(&sight),
        [
            (Alarm::PinLow, "a".to_owned()),
            (Alarm::Certificate, String::new()),
            (Alarm::AuditFailed, String::new()),
            (Alarm::KekCertificate, "KEK1".to_owned()),
            (Alarm::PartnerSeal, "PARTNER".to_owned()),
            (Alarm::PaddingBudget, "drive:000000000001".to_owned()),
            (Alarm::NoBackup, String::new()),
            (Alarm::SyncFailed, "server:a".to_owned()),
            (Alarm::SyncDiffers, "server:b".to_owned()),
            (Alarm::Rotation, "KEK2".to_owned()),
            (Alarm::PeerDiffers, "KEK1".to_owned()),
            (Alarm::HistoryBacklog, String::new()),
            (Alarm::DatabaseDown, String::new()),
            (Alarm::Busy, "a".to_owned()),
        ]
    );
}

#[test]
fn of_many_keks_the_first_are_named() {
    let labels = ["A", "B", "C", "D", "E", "F", "G"];
    assert_eq!(named(&labels), "A, B, C, D, E and 2 more");
    assert_eq!(named(&labels[..2]), "A, B");
}
