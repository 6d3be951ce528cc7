//! What certificates and partners' KEKs mean for a write. The rest is shown with real tokens, in
//! `integration`.

use std::collections::HashSet;
use std::sync::Arc;

use time::{Duration, OffsetDateTime};

use super::*;
use crate::bridge::faults::Fault;
use crate::bridge::message::{KekAttributes, KekOnToken, PrivateHalf, Provenance};
use crate::certificates::Vouched;
use crate::key::{KekHash, KekId};
use crate::store::{Certificates, KekCertificate, KekStates, Partner, RegisteredKek};

/// A key that wraps, and its certificate for some days from now.
fn certified(name: &str, from: i64, to: i64) -> (Vec<u8>, Vec<u8>) {
    use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
    let key = aws_lc_rs::rsa::KeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap();
    let der: Pkcs8V1Der<'_> = key.as_der().unwrap();
    let key = rcgen::KeyPair::from_pkcs8_der_and_sign_algo(
        &der.as_ref().to_vec().into(),
        &rcgen::PKCS_RSA_SHA256,
    )
    .unwrap();
    let mut params = rcgen::CertificateParams::default();
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, name);
    params.not_before = now() + Duration::days(from);
    params.not_after = now() + Duration::days(to);
    let certificate = params.self_signed(&key).unwrap().der().to_vec();
    let spki = crate::certificates::Certificate::read(&certificate)
        .unwrap()
        .spki;
    (spki, certificate)
}

fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc().truncate_to_second()
}

/// OURS on a token, with a certificate in the registry; PARTNER in the registry.
struct Stage {
    directory: Directory,
    drive: Drive,
    config: PolicyConfig,
    defaults: Defaults,
    sealed: HashSet<[u8; 32]>,
    states: KekStates,
    now: OffsetDateTime,
}

impl Stage {
    fn new() -> Self {
        let (ours, certificate) = certified("OURS", -1, 10);
        let (theirs, partners) = certified("PARTNER", -1, 20);
        let on_token = KekOnToken {
            label: "OURS".parse().unwrap(),
            hash: KekHash::of_spki(&ours),
            bits: 2048,
            private: PrivateHalf::Serves {
                custody: Custody::Token,
                provenance: Provenance::Born,
                attributes: KekAttributes {
                    sensitive: Some(true),
                    extractable: Some(false),
                    always_sensitive: Some(true),
                    never_extractable: Some(true),
                    local: Some(true),
                    unwrap: Some(true),
                    decrypt: Some(false),
                    modifiable: Some(false),
                    sign: Some(false),
                    unwraps_sensitive: None,
                    unwraps_trusted: None,
                },
            },
            certificate: None,
            spki: ours.clone(),
        };
        let partner = Partner {
            label: "PARTNER".parse().unwrap(),
            hash: KekHash::of_spki(&theirs),
            spki: theirs,
            certificate: partners,
            vouched: Vouched::Itself,
            operator: "operator:test".to_owned(),
            confirmed: now(),
            seals: Vec::new(),
        };
        let sealed = HashSet::from([partner.digest()]);
        let certificates = Certificates {
            partners: vec![partner],
            own: vec![KekCertificate {
                hash: KekHash::of_spki(&ours),
                certificate,
            }],
        };
        let keks = [on_token];
        let shown = [("main", &keks[..])];
        Self {
            directory: Directory::new(shown, Arc::from([]), &certificates),
            drive: Drive {
                serial: "000000000001".parse().unwrap(),
                wwn: None,
                kek1: Some("OURS".parse().unwrap()),
                kek2: Some("PARTNER:hash".parse().unwrap()),
                key: DriveKey::Pinned(vec![1]),
                form: SedkForm::RsaOaepSha1,
                custody: Custody::Token,
                speakers: Vec::new(),
                state: DriveState::Active,
            },
            config: PolicyConfig::default(),
            defaults: Defaults::default(),
            sealed,
            states: KekStates::default(),
            now: now(),
        }
    }

    fn create(&self) -> Result<CreateGrant, Refusal> {
        let known = Known {
            config: &self.config,
            drive: Some(&self.drive),
            directory: &self.directory,
            defaults: &self.defaults,
            drive_ca: None,
            sealed: &self.sealed,
            states: &self.states,
            now: self.now,
        };
        let claim = DriveClaim {
            serial: self.drive.serial.clone(),
            key: KeyClaim::default(),
        };
        let peer = "drive:000000000001".parse().unwrap();
        authorize_create(known, &peer, &claim, (None, None))
    }

    fn refused(&self) -> String {
        match self.create().unwrap_err() {
            Refusal::KekUnfit { label, reason } => format!("{label}: {reason}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_partners_kek_is_second_and_needs_its_seal_verified() {
    let mut stage = Stage::new();
    let grant = stage.create().unwrap();
    let flags: Vec<_> = grant
        .keks()
        .iter()
        .map(|granted| (granted.provable, granted.sealed))
        .collect();
    assert_eq!(flags, [(true, false), (false, true)]);
    // Whatever the policy says of unproved ones: another row is another one.
    stage.config.unproved_keks = UnprovedKeks::Allow;
    stage.sealed = HashSet::from([[0; 32]]);
    assert!(matches!(
        stage.create(),
        Err(Refusal::Unverified { label }) if label.as_str() == "PARTNER"
    ));
}

#[test]
fn a_partners_kek_alone_makes_no_cartridge() {
    let mut stage = Stage::new();
    stage.drive.kek1 = None;
    assert!(stage.refused().contains("nobody here could read"));
}

#[test]
fn nothing_is_written_under_a_kek_whose_certificate_has_ended() {
    let mut stage = Stage::new();
    stage.now += Duration::days(11);
    let why = stage.refused();
    assert!(why.starts_with("OURS: its certificate ended on"), "{why}");
    assert!(why.contains("ekm kek cert import OURS FILE"), "{why}");
    stage.config.expired_keks = ExpiredKeks::Allow;
    stage.create().unwrap();
    // A partner's as well.
    stage.config.expired_keks = ExpiredKeks::Refuse;
    stage.drive.kek1 = Some("PARTNER:hash".parse().unwrap());
    stage.drive.kek2 = Some("OURS".parse().unwrap());
    stage.now += Duration::days(10);
    let why = stage.refused();
    assert!(
        why.starts_with("PARTNER: its certificate ended on"),
        "{why}"
    );
    assert!(why.contains("ekm kek partner remove PARTNER"), "{why}");
}

#[test]
fn nothing_is_written_under_a_kek_before_its_certificate_begins() {
    let mut stage = Stage::new();
    stage.now -= Duration::days(2);
    assert!(stage.refused().contains("not good before"));
}

#[test]
fn an_expired_kek_reads() {
    let mut stage = Stage::new();
    stage.now += Duration::days(365);
    let known = Known {
        config: &stage.config,
        drive: Some(&stage.drive),
        directory: &stage.directory,
        defaults: &stage.defaults,
        drive_ca: None,
        sealed: &stage.sealed,
        states: &stage.states,
        now: stage.now,
    };
    let eedk = Eedk::new(
        DataKeyId::from_random([1; 9]),
        KekId::Label("OURS".parse().unwrap()),
        crate::key::WrapAlgorithm::oaep(crate::key::OaepHash::Sha256, true),
        vec![1; 256],
    );
    let presented = [Presented {
        eedk: Ok(eedk.unwrap()),
        origin: Some(Origin::Ours),
    }];
    for purpose in [Purpose::Read, Purpose::Append] {
        let (readable, unreadable) = open_by(known, &presented, purpose).unwrap();
        assert_eq!((readable.len(), unreadable.len()), (1, 0));
    }
}

#[test]
fn of_several_certificates_the_one_that_is_good_for_longest_counts() {
    let (spki, early) = certified("EARLY", -1, 5);
    let (_, late) = certified("LATE", -1, 50);
    let hash = KekHash::of_spki(&spki);
    let kek = |certificate: &[u8]| KekOnToken {
        label: "OURS".parse().unwrap(),
        hash,
        spki: spki.clone(),
        bits: 2048,
        private: PrivateHalf::Absent,
        certificate: Some(certificate.to_vec()),
    };
    for (first, second) in [(&early, &late), (&late, &early)] {
        let (one, two) = ([kek(first)], [kek(second)]);
        let shown = [("one", &one[..]), ("two", &two[..])];
        let directory = Directory::new(shown, Arc::from([]), &Certificates::default());
        assert_eq!(directory.keks()[0].certificate.as_ref(), Some(&late));
    }
}

/// One KEK, held by those, and registered on those that are not up.
fn held(holders: &[(&str, Custody, Provenance)], away: &[&str]) -> Directory {
    let (spki, _) = certified("BOTH", -1, 5);
    let keks: Vec<[KekOnToken; 1]> = holders
        .iter()
        .map(|(_, custody, provenance)| {
            [KekOnToken {
                label: "BOTH".parse().unwrap(),
                hash: KekHash::of_spki(&spki),
                spki: spki.clone(),
                bits: 2048,
                private: PrivateHalf::Serves {
                    custody: *custody,
                    provenance: *provenance,
                    attributes: KekAttributes::default(),
                },
                certificate: None,
            }]
        })
        .collect();
    let shown = holders
        .iter()
        .zip(&keks)
        .map(|((name, ..), list)| (*name, &list[..]));
    let row = RegisteredKek {
        label: "BOTH".parse().unwrap(),
        hash: KekHash::of_spki(&spki),
        spki: spki.clone(),
        bits: 2048,
        token: "main".to_owned(),
        custody: Custody::Token,
        provenance: Provenance::Imported,
    };
    Directory::new(shown, Arc::from([row]), &Certificates::default()).with_registry(away, &[])
}

fn written_under(directory: Directory, custody: Custody) -> Result<CreateGrant, Refusal> {
    let mut stage = Stage::new();
    stage.directory = directory;
    stage.drive.custody = custody;
    stage.drive.kek1 = Some("BOTH".parse().unwrap());
    stage.drive.kek2 = None;
    stage.create()
}

#[test]
fn a_keystore_with_a_tokens_kek_is_no_writer_by_the_tokens_provenance() {
    let main = ("main", Custody::Token, Provenance::Imported);
    let old = ("old", Custody::Host, Provenance::Software);
    for custody in [Custody::Token, Custody::Host] {
        let grant = written_under(held(&[main, old], &[]), custody).unwrap();
        assert_eq!(grant.keks()[0].kek.writers, ["main"], "{custody}");
    }
    // Alone it is none, and its custody is another matter.
    let refused = |custody| match written_under(held(&[old], &[]), custody).unwrap_err() {
        Refusal::KekUnfit { reason, .. } => reason,
        other => panic!("{other:?}"),
    };
    assert!(refused(Custody::Host).contains("provenance is software (on old)"));
    assert!(refused(Custody::Token).contains("made for custody host"));
}

#[test]
fn a_kek_whose_token_was_not_seen_yet_is_out_of_reach_and_not_unfit() {
    let old = ("old", Custody::Host, Provenance::Software);
    for holders in [&[][..], &[old]] {
        for custody in [Custody::Token, Custody::Host] {
            let directory = held(holders, &["main", "other"]);
            assert!(directory.keks()[0].missing.is_none());
            match written_under(directory, custody).unwrap_err() {
                Refusal::OutOfReach { away, .. } => assert_eq!(away, ["main"]),
                other => panic!("{other:?}"),
            }
        }
    }
    // What is gone from a token that is up is unknown, and still listed.
    let gone = held(&[], &[]);
    assert_eq!(gone.keks()[0].missing.as_deref(), Some("main"));
    assert!(matches!(
        written_under(gone, Custody::Token),
        Err(Refusal::Kek(KekError::Unknown { .. }))
    ));
}

/// BOTH as token old shows it, beside tokens that are not up; no registry says where it is.
fn shown_by_old(private: PrivateHalf, unseen: &[&str]) -> Directory {
    let (spki, _) = certified("BOTH", -1, 5);
    let keks = [KekOnToken {
        label: "BOTH".parse().unwrap(),
        hash: KekHash::of_spki(&spki),
        spki,
        bits: 2048,
        private,
        certificate: None,
    }];
    let shown = [("old", &keks[..])];
    Directory::new(shown, Arc::from([]), &Certificates::default()).with_registry(unseen, &[])
}

#[test]
fn a_kek_without_a_private_half_here_is_not_unfit_before_every_token_was_seen() {
    let refused = PrivateHalf::Refused {
        reason: "it opened no canary".to_owned(),
        attributes: KekAttributes::default(),
    };
    for private in [PrivateHalf::Absent, refused] {
        let directory = shown_by_old(private.clone(), &["main"]);
        match written_under(directory, Custody::Token).unwrap_err() {
            Refusal::OutOfReach { away, .. } => assert_eq!(away, ["main"]),
            other => panic!("{other:?}"),
        }
        // Once all were, that is the word.
        assert!(matches!(
            written_under(shown_by_old(private, &[]), Custody::Token),
            Err(Refusal::KekUnfit { .. })
        ));
    }
    // Where the policy lets it be written unproved, it must still be readable here.
    for (unseen, away) in [(&["main"][..], true), (&[][..], false)] {
        let mut stage = Stage::new();
        stage.config.unproved_keks = UnprovedKeks::Allow;
        stage.directory = shown_by_old(PrivateHalf::Absent, unseen);
        stage.drive.kek1 = Some("BOTH".parse().unwrap());
        stage.drive.kek2 = None;
        let refusal = stage.create().unwrap_err();
        assert!(refusal.to_string().contains("nobody here could read"));
        assert_eq!(
            matches!(refusal, Refusal::OutOfReach { .. }),
            away,
            "{refusal:?}"
        );
    }
}

/// EEDKs by PKCS#1 v1.5 under OURS, and where each comes from.
fn v15(origins: &[Option<Origin>]) -> Vec<Presented> {
    let eedk = |byte| {
        let kek = KekId::Label("OURS".parse().unwrap());
        let dki = DataKeyId::from_random([1; 9]);
        let wrap = crate::key::WrapAlgorithm::Pkcs1V15;
        Eedk::new(dki, kek, wrap, vec![byte; 256]).unwrap()
    };
    (1..)
        .zip(origins)
        .map(|(byte, origin)| Presented {
            eedk: Ok(eedk(byte)),
            origin: *origin,
        })
        .collect()
}

#[test]
fn eedks_by_v15_are_opened_only_where_the_policy_says_so() {
    let mut stage = Stage::new();
    let presented = v15(&[Some(Origin::Ours)]);
    let opened = |stage: &Stage, presented: &[Presented], purpose| {
        let known = Known {
            config: &stage.config,
            drive: Some(&stage.drive),
            directory: &stage.directory,
            defaults: &stage.defaults,
            drive_ca: None,
            sealed: &stage.sealed,
            states: &stage.states,
            now: stage.now,
        };
        open_by(known, presented, purpose)
    };
    let refused = opened(&stage, &presented, Purpose::Read).unwrap_err();
    assert!(matches!(&refused, Refusal::Unreadable(why) if why.contains("pkcs1_v15_eedks")));
    stage.config.pkcs1_v15_eedks = Pkcs1V15Eedks::Allow;
    let (readable, _) = opened(&stage, &presented, Purpose::Append).unwrap();
    assert!(!readable[0].guarded);

    // Those that were not issued here come last, and of these only the first is tried.
    let presented = v15(&[None, None, Some(Origin::Foreign)]);
    let (readable, unreadable) = opened(&stage, &presented, Purpose::Read).unwrap();
    let order: Vec<(usize, bool)> = readable
        .iter()
        .map(|one| (one.index, one.guarded))
        .collect();
    assert_eq!(order, [(2, false), (0, true)]);
    assert!(matches!(
        unreadable.as_slice(),
        [Fault::NotTried { number: 2, .. }]
    ));
    let presented = v15(&[None]);
    for purpose in [Purpose::Append, Purpose::Rekey { known: None }] {
        let refused = opened(&stage, &presented, purpose).unwrap_err();
        assert!(matches!(refused, Refusal::NotIssued(..)), "{refused}");
    }
}
