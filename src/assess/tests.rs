//! Verdicts of a site.

use time::macros::datetime;

use super::*;
use crate::bridge::message::Custody;
use crate::key::{DataKeyId, Eedk, KekHash, KekId, KekRef, OaepHash, SedkForm, WrapAlgorithm};
use crate::store::{DriveKey, DriveState, EedkState, StoredEedk};

fn kek(label: &str, hash: u8, custody: Option<Custody>) -> KnownKek {
    let (label, hash) = (label.parse().unwrap(), KekHash::from([hash; 32]));
    KnownKek {
        custody,
        provenance: custody.map(|_| Provenance::Imported),
        tokens: custody.map(|_| "main".to_owned()).into_iter().collect(),
        registered: true,
        ..KnownKek::bare(label, hash, Vec::new(), 2048)
    }
}

fn token(state: &str, forms: &[SedkForm]) -> (TokenStatus, bool) {
    let status = TokenStatus {
        name: "main".to_owned(),
        state: state.to_owned(),
        why: Some("it is not there".to_owned()),
        since: None,
        next: None,
        bridges: Vec::new(),
        sessions: None,
        heard: None,
        keyless: None,
        pin: None,
        pin_source: None,
        uri: None,
        keks: 1,
        forms: forms.to_vec(),
        trusted: Vec::new(),
    };
    (status, false)
}

fn volume(volser: &str, dki: u8, hash: u8, state: EedkState) -> VolumeKey {
    let dki = DataKeyId::from_random([dki; 9]);
    let kek_hash = KekHash::from([hash; 32]);
    let wrap = WrapAlgorithm::oaep(OaepHash::Sha256, false);
    let eedk = Eedk::new(dki, KekId::Hash(kek_hash), wrap, vec![1; 256]).unwrap();
    VolumeKey {
        server: "ekm1".to_owned(),
        job: None,
        volser: volser.parse().unwrap(),
        dki,
        generation: 1,
        state,
        drive: "000000000001".parse().unwrap(),
        token: "main".to_owned(),
        custody: Custody::Token,
        created: datetime!(2026-01-02 03:04:05 UTC),
        eedks: vec![StoredEedk {
            eedk,
            kek_label: "kek".parse().unwrap(),
            kek_hash,
            proved: true,
        }],
    }
}

fn drive(state: DriveState, form: SedkForm, custody: Custody, key: DriveKey) -> Drive {
    Drive {
        serial: "000000000001".parse().unwrap(),
        wwn: None,
        kek1: None,
        kek2: None,
        key,
        form,
        custody,
        speakers: Vec::new(),
        state,
    }
}

fn judge(site: &Site, model: Option<&str>) -> Word {
    let serial: DriveSerial = "000000000001".parse().unwrap();
    let models = model
        .map(|name| (serial, models::model(name).unwrap()))
        .into_iter()
        .collect();
    let report = super::site(site, &models, Vec::new());
    report.drives.first().unwrap().row.verdict
}

fn with(drive: Drive) -> Site {
    let named = |label: &str| KekRef {
        label: label.parse().unwrap(),
        encoding: crate::key::Encoding::Label,
    };
    Site {
        drives: vec![drive],
        defaults: Defaults {
            kek1: Some(named("kek")),
            kek2: None,
        },
        tokens: vec![token("ready", &[SedkForm::T10Wrapped])],
        keks: Some(vec![kek("KEK", 1, Some(Custody::Token))]),
        ..Site::default()
    }
}

#[test]
fn each_drive_has_the_word_that_fits() {
    use Custody::{Host, Token};
    use DriveState::{Active, Pending};
    use SedkForm::{RsaOaepSha1, T10Plain, T10Wrapped};
    let pinned = || DriveKey::Pinned(vec![1]);
    // Drive, model, the custody of its KEK.
    for (row, model, kek_custody, word) in [
        (
            drive(Pending, T10Wrapped, Token, DriveKey::None),
            None,
            Token,
            Word::Waits,
        ),
        (
            drive(Active, T10Wrapped, Token, pinned()),
            None,
            Token,
            Word::Works,
        ),
        (
            drive(Active, T10Wrapped, Token, pinned()),
            None,
            Host,
            Word::No,
        ),
        (
            drive(Active, T10Wrapped, Host, pinned()),
            None,
            Host,
            Word::Host,
        ),
        (
            drive(Active, T10Wrapped, Host, pinned()),
            None,
            Token,
            Word::Works,
        ),
        (
            drive(Active, T10Wrapped, Token, pinned()),
            Some("hp-lto6"),
            Token,
            Word::Works,
        ),
        (
            drive(Active, T10Wrapped, Token, pinned()),
            Some("ibm-lto4"),
            Token,
            Word::No,
        ),
        (
            drive(Active, T10Wrapped, Token, DriveKey::None),
            None,
            Token,
            Word::No,
        ),
        (
            drive(Active, RsaOaepSha1, Token, pinned()),
            None,
            Token,
            Word::No,
        ),
        (
            drive(Active, RsaOaepSha1, Host, pinned()),
            None,
            Host,
            Word::Host,
        ),
        (
            drive(Active, T10Plain, Host, DriveKey::None),
            Some("ibm-lto4"),
            Host,
            Word::Host,
        ),
        (
            drive(Active, T10Plain, Host, DriveKey::None),
            None,
            Token,
            Word::No,
        ),
    ] {
        let mut site = with(row.clone());
        site.keks = Some(vec![kek("KEK", 1, Some(kek_custody))]);
        assert_eq!(
            judge(&site, model),
            word,
            "{row:?} {model:?} {kek_custody:?}"
        );
    }
    let active = || drive(Active, T10Wrapped, Token, pinned());
    let mut down = with(active());
    down.tokens = vec![token("failed", &[])];
    assert_eq!(judge(&down, None), Word::Unknown);
    let mut without_default = with(active());
    without_default.defaults = Defaults::default();
    assert_eq!(judge(&without_default, None), Word::No);
    let mut lost = with(active());
    lost.keks = Some(vec![kek("other", 2, Some(Token))]);
    assert_eq!(judge(&lost, None), Word::No);
}

#[test]
fn cartridges_that_cannot_be_read_are_named_once() {
    let ekm = |volser: &str| KeyUse {
        volser: volser.to_owned(),
        alias1: "cert1".to_owned(),
        ..KeyUse::default()
    };
    let site = Site {
        keks: Some(vec![
            kek("here", 1, Some(Custody::Token)),
            kek("partner", 2, None),
        ]),
        volumes: vec![
            volume("GOOD", 1, 1, EedkState::Confirmed),
            // Written anew under a KEK that is here; what was before does not count.
            volume("ANEW", 3, 1, EedkState::Issued),
            volume("ANEW", 2, 9, EedkState::Superseded),
            volume("THEIRS", 4, 2, EedkState::Confirmed),
            volume("LOST", 5, 9, EedkState::Confirmed),
            volume("NEVER", 6, 9, EedkState::Abandoned),
        ],
        ekm21: [ekm("OLD001"), ekm("anew"), ekm("OLD001")].into(),
        ..Site::default()
    };
    let tapes = tapes(&site);
    assert_eq!(tapes.readable, 2);
    let names: Vec<&str> = tapes
        .unreadable
        .iter()
        .map(|tape| tape.volser.as_str())
        .collect();
    assert_eq!(names, ["THEIRS", "LOST", "OLD001"]);
    let last = tapes.unreadable.last().unwrap();
    assert!(last.why.contains("IBM"), "{last:?}");
}

#[test]
fn keys_and_tokens_have_their_words() {
    let word = |kek: &KnownKek| key_row(kek).verdict;
    assert_eq!(word(&kek("k", 1, Some(Custody::Token))), Word::Works);
    assert_eq!(word(&kek("k", 1, Some(Custody::Host))), Word::Host);
    assert_eq!(word(&kek("k", 1, None)), Word::No);
    let mut refused = kek("k", 1, None);
    refused.refused = vec![("main".to_owned(), "CKA_SENSITIVE is false".to_owned())];
    assert!(key_row(&refused).why.contains("CKA_SENSITIVE"));
    let (ready, _) = token("ready", &[SedkForm::RsaOaepSha1]);
    assert_eq!(store_row(&ready, false).row.verdict, Word::Works);
    assert!(store_row(&ready, true).leaves.contains("own process"));
    let (host, _) = token("ready", &[]);
    assert_eq!(store_row(&host, false).row.verdict, Word::Host);
    let (mut file, _) = token("ready", &[SedkForm::T10Wrapped]);
    file.uri = Some("file:/srv/EKMKeys.jck".to_owned());
    let file = store_row(&file, false);
    assert_eq!(file.row.verdict, Word::Host);
    assert!(file.leaves.contains("no token"));
    let (failed, _) = token("failed", &[]);
    assert!(
        store_row(&failed, false)
            .row
            .why
            .contains("it is not there")
    );
}

#[test]
fn models_are_named_once_and_say_where_it_is_known_from() {
    let mut names: Vec<&str> = models::MODELS.iter().map(|model| model.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), models::MODELS.len());
    assert!(models::MODELS.iter().all(|model| !model.source.is_empty()));
}
