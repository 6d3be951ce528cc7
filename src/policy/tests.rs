//! What certificates and partners' KEKs mean for a write. The rest is shown with real tokens, in
//! `integration`.

use std::collections::HashSet;
use std::sync::Arc;

use time::{Duration, OffsetDateTime};

use super::*;
use crate::bridge::message::{KekAttributes, KekOnToken, PrivateHalf, Provenance};
use crate::certificates::Vouched;
use crate::key::KekHash;
use crate::store::{Certificates, KekCertificate, Partner};

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
        now: stage.now,
    };
    let eedk = Eedk::new(
        crate::key::DataKeyId::from_random([1; 9]),
        KekId::Label("OURS".parse().unwrap()),
        crate::key::WrapAlgorithm {
            hash: crate::key::OaepHash::Sha256,
            labelled: true,
        },
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
