//! One list of what a keystore must do, run on every kind of token.

mod custody;
mod products;

use ekm::api::{
    Base64, ConfirmRequest, CreateAnswer, CreateRequest, DriveInRequest, RekeyRequest,
    ResolveAnswer, ResolveRequest,
};
use ekm::drive::DriveSerial;
use ekm::key::{DataKeyId, Eedk, Encoding, KekHash, KekId, KekRef, SedkForm, WrapAlgorithm};
use ekm::keystore::Custody;
use ekm::policy::{PeerRule, PolicyConfig};
use ekm::problem::{EkmCode, Problem};
use ekm::softdrive::{DriveKind, Medium, Target};
use ekm::store::{Defaults, EedkState};
use ekm::t10::{Cdb, OutPage};
use secrecy::ExposeSecret;
use uuid::Uuid;

use crate::support::{Bench, Hsm, Kind, TestDrive, drive, drive_of};

/// Two KEKs on one token, two enrolled drives.
struct Stage {
    hsm: Hsm,
    bench: Bench,
    a: TestDrive,
    b: TestDrive,
}

impl Stage {
    async fn new(kind: Kind) -> Self {
        Self::with(kind, generous()).await
    }

    async fn with(kind: Kind, policy: PolicyConfig) -> Self {
        let hsm = Hsm::new(kind, "conformance").await;
        let bench = Bench::new(&[&hsm], policy).await;
        bench.kek("KEK1", "main", kind.custody()).await;
        bench.kek("KEK2", "main", kind.custody()).await;
        let mut a = drive(bench.directory.path(), 1, kind.form());
        let mut b = drive(bench.directory.path(), 2, kind.form());
        for drive in [&mut a, &mut b] {
            drive.row.custody = kind.custody();
        }
        bench.enrol(&a).await;
        bench.enrol(&b).await;
        Self { hsm, bench, a, b }
    }

    async fn create(&self, labels: &[&str]) -> Result<CreateAnswer, Problem> {
        self.create_as(Uuid::new_v4(), labels).await
    }

    async fn create_as(&self, request_id: Uuid, labels: &[&str]) -> Result<CreateAnswer, Problem> {
        let mut keks = labels.iter().map(|label| label.parse::<KekRef>().unwrap());
        let request = CreateRequest {
            job: None,
            request_id,
            drive: shown(&self.a),
            volser: "VOL001".parse().unwrap(),
            kek1: keks.next(),
            kek2: keks.next(),
        };
        let answer = self.bench.service.create(&self.a.peer, &request).await?;
        Ok(answer.into_inner())
    }

    async fn resolve(&self, eedks: &[Vec<u8>]) -> Result<ResolveAnswer, Problem> {
        self.resolve_for(&self.b, eedks, false).await
    }

    async fn resolve_for(
        &self,
        drive: &TestDrive,
        eedks: &[Vec<u8>],
        append: bool,
    ) -> Result<ResolveAnswer, Problem> {
        let request = ResolveRequest {
            dki: None,
            request_id: Uuid::new_v4(),
            drive: shown(drive),
            volser: None,
            eedks: eedks.iter().cloned().map(Base64).collect(),
            append,
        };
        let answer = self.bench.service.resolve(&drive.peer, &request).await?;
        Ok(answer.into_inner())
    }
}

/// Drives may name any KEK, and rekey to any.
fn generous() -> PolicyConfig {
    PolicyConfig {
        peers: vec![PeerRule {
            peer: "drive:*".to_owned(),
            drives: vec![],
            create_keks: vec!["*".to_owned()],
            rekey_keks: vec!["*".to_owned()],
        }],
        ..PolicyConfig::default()
    }
}

fn shown(drive: &TestDrive) -> DriveInRequest {
    DriveInRequest {
        serial: drive.soft.serial().clone(),
        stores_eedks: true,
        public_key: Some(Base64(drive.soft.public_key_spki().to_vec())),
        session_key: None,
    }
}

fn data_key(drive: &TestDrive, sedk: &ekm::key::Sedk) -> [u8; 32] {
    *drive.soft.unwrap_sedk(sedk).unwrap().expose_secret()
}

fn ders(answer: &CreateAnswer) -> Vec<Vec<u8>> {
    answer
        .eedks
        .iter()
        .map(|eedk| eedk.eedk.0.clone())
        .collect()
}

fn code<T: std::fmt::Debug>(outcome: Result<T, Problem>) -> EkmCode {
    outcome.unwrap_err().code
}

async fn one_kek_gives_one_eedk(stage: &Stage) {
    for (label, encoding) in [
        ("KEK1:label", Encoding::Label),
        ("KEK1:hash", Encoding::Hash),
    ] {
        let answer = stage.create(&[label]).await.unwrap();
        let [eedk] = answer.eedks.as_slice() else {
            panic!("{} EEDKs", answer.eedks.len());
        };
        assert_eq!(eedk.encoding, encoding);
        let resolved = stage.resolve(&ders(&answer)).await.unwrap();
        assert_eq!(
            data_key(&stage.a, &answer.sedk),
            data_key(&stage.b, &resolved.sedk)
        );
        assert_eq!(resolved.dki, answer.dki);
        assert!(resolved.issued_here);
    }
}

async fn either_of_two_eedks_opens(stage: &Stage) {
    let answer = stage.create(&["KEK1:label", "KEK2:hash"]).await.unwrap();
    let eedks = ders(&answer);
    assert_eq!(eedks.len(), 2);
    let key = data_key(&stage.a, &answer.sedk);
    for eedk in &eedks {
        let resolved = stage.resolve(std::slice::from_ref(eedk)).await.unwrap();
        assert_eq!(data_key(&stage.b, &resolved.sedk), key);
        // A hash is resolved back to a label.
        assert!(resolved.eedks[0].label.is_some());
    }
    let swapped = [eedks[1].clone(), eedks[0].clone()];
    let resolved = stage.resolve(&swapped).await.unwrap();
    assert_eq!(data_key(&stage.b, &resolved.sedk), key);
}

async fn two_creates_have_two_data_keys(stage: &Stage) {
    let one = stage.create(&["KEK1"]).await.unwrap();
    let other = stage.create(&["KEK1"]).await.unwrap();
    assert_ne!(one.dki, other.dki);
    assert_ne!(
        data_key(&stage.a, &one.sedk),
        data_key(&stage.a, &other.sedk)
    );
}

async fn a_retried_create_gives_the_same_data_key(stage: &Stage) {
    let id = Uuid::new_v4();
    let first = stage.create_as(id, &["KEK1", "KEK2"]).await.unwrap();
    let again = stage.create_as(id, &["KEK1", "KEK2"]).await.unwrap();
    assert_eq!(first.dki, again.dki);
    assert_eq!(first.eedks, again.eedks);
    assert_eq!(
        data_key(&stage.a, &first.sedk),
        data_key(&stage.a, &again.sedk)
    );
    // The same id for another request is a mistake, not a retry.
    assert_eq!(code(stage.create_as(id, &["KEK2"]).await), EkmCode::EE23);
}

async fn retries_at_once_give_one_data_key(stage: &Stage) {
    let id = Uuid::new_v4();
    let (one, two, three) = tokio::join!(
        stage.create_as(id, &["KEK1"]),
        stage.create_as(id, &["KEK1"]),
        stage.create_as(id, &["KEK1"]),
    );
    let dki = one.unwrap().dki;
    assert_eq!(two.unwrap().dki, dki);
    assert_eq!(three.unwrap().dki, dki);
}

async fn rekey_keeps_the_data_key(stage: &Stage) {
    let answer = stage.create(&["KEK1"]).await.unwrap();
    let request = RekeyRequest {
        request_id: Uuid::new_v4(),
        serial: stage.a.soft.serial().clone(),
        volser: "VOL001".parse().unwrap(),
        eedks: answer.eedks.iter().map(|eedk| eedk.eedk.clone()).collect(),
        kek1: "KEK2:hash".parse().unwrap(),
        kek2: None,
    };
    let service = &stage.bench.service;
    let rekeyed = service
        .rekey(&stage.a.peer, &request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(rekeyed.dki, answer.dki);
    let fresh: Vec<Vec<u8>> = rekeyed
        .eedks
        .iter()
        .map(|eedk| eedk.eedk.0.clone())
        .collect();
    assert_ne!(fresh, ders(&answer));
    let resolved = stage.resolve(&fresh).await.unwrap();
    assert_eq!(
        data_key(&stage.a, &answer.sedk),
        data_key(&stage.b, &resolved.sedk)
    );
    let again = service
        .rekey(&stage.a.peer, &request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(again.eedks, rekeyed.eedks);
}

async fn confirm_closes_a_create(stage: &Stage) {
    let volser = "VOL001".parse().unwrap();
    let confirm = async |answer: &CreateAnswer, drive: &TestDrive| {
        let request = ConfirmRequest {
            request_id: answer.request_id,
            serial: drive.soft.serial().clone(),
            dki: answer.dki,
            stored: true,
        };
        let service = &stage.bench.service;
        service
            .confirm(&drive.peer, &request)
            .await
            .map(|answer| answer.into_inner().state)
    };
    let state_of = async |dki: DataKeyId| {
        let keys = stage.bench.store().volumes(Some(&volser)).await.unwrap();
        keys.iter().find(|key| key.dki == dki).unwrap().state
    };
    let old = stage.create(&["KEK1"]).await.unwrap();
    assert_eq!(state_of(old.dki).await, EedkState::Issued);
    // Another drive has nothing to say of it.
    assert_eq!(code(confirm(&old, &stage.b).await), EkmCode::EE30);
    assert_eq!(confirm(&old, &stage.a).await.unwrap(), EedkState::Confirmed);
    let new = stage.create(&["KEK1"]).await.unwrap();
    assert_eq!(confirm(&new, &stage.a).await.unwrap(), EedkState::Confirmed);
    assert_eq!(state_of(old.dki).await, EedkState::Superseded);
    // A confirmation that comes late does not bring the old one back.
    assert_eq!(
        confirm(&old, &stage.a).await.unwrap(),
        EedkState::Superseded
    );
    let made_up = CreateAnswer {
        request_id: Uuid::new_v4(),
        ..new
    };
    assert_eq!(code(confirm(&made_up, &stage.a).await), EkmCode::EE30);
}

async fn a_foreign_kek_is_unknown(stage: &Stage) {
    let answer = stage.create(&["KEK1"]).await.unwrap();
    let eedk = Eedk::decode(&ders(&answer)[0]).unwrap();
    for kek in [
        KekId::Label("NOT-OURS".parse().unwrap()),
        KekId::Hash(KekHash::of_spki(b"some other site's key")),
    ] {
        let foreign = Eedk::new(eedk.dki(), kek, eedk.wrap(), eedk.wrapped().to_vec()).unwrap();
        assert_eq!(
            code(stage.resolve(&[foreign.encode()]).await),
            EkmCode::EE32
        );
    }
    // One readable EEDK is enough; the other's failure is noted, not fatal.
    let foreign = Eedk::new(
        eedk.dki(),
        KekId::Label("NOT-OURS".parse().unwrap()),
        eedk.wrap(),
        eedk.wrapped().to_vec(),
    )
    .unwrap();
    let both = [foreign.encode(), eedk.encode()];
    assert_eq!(stage.resolve(&both).await.unwrap().opened, 1);
    assert_eq!(code(stage.create(&["NOT-OURS"]).await), EkmCode::EE31);
}

async fn a_tampered_eedk_does_not_open_and_harms_nobody(stage: &Stage) {
    let answer = stage.create(&["KEK1:label", "KEK2:label"]).await.unwrap();
    let eedks = ders(&answer);
    let good = Eedk::decode(&eedks[0]).unwrap();
    for index in [0, 17, good.wrapped().len() - 1] {
        let mut wrapped = good.wrapped().to_vec();
        wrapped[index] ^= 0x20;
        let bad = Eedk::new(good.dki(), good.kek().clone(), good.wrap(), wrapped).unwrap();
        assert_eq!(code(stage.resolve(&[bad.encode()]).await), EkmCode::EE32);
        let saved = stage
            .resolve(&[bad.encode(), eedks[1].clone()])
            .await
            .unwrap();
        assert_eq!(saved.opened, 1);
    }
    // The token was not blamed for the cartridge.
    assert_eq!(stage.bench.service.ready(), Ok(()));
    stage.resolve(&eedks).await.unwrap();
}

async fn truncated_and_oversized_eedks_are_refused_by_name(stage: &Stage) {
    let answer = stage.create(&["KEK1"]).await.unwrap();
    let whole = ders(&answer).remove(0);
    let truncated = whole[..whole.len() - 1].to_vec();
    let mut oversized = whole.clone();
    oversized.extend(vec![0; 4096]);
    let mut trailing = whole.clone();
    trailing.push(0);
    for bad in [truncated, oversized, trailing, Vec::new()] {
        assert_eq!(code(stage.resolve(&[bad]).await), EkmCode::EE23);
    }
    assert_eq!(code(stage.resolve(&[]).await), EkmCode::EE23);
    let three = vec![whole; 3];
    assert_eq!(code(stage.resolve(&three).await), EkmCode::EE23);
}

/// Anyone with a KEK's public key can make an EEDK that opens.
async fn a_forged_eedk_is_marked_and_never_appended_under(stage: &Stage) {
    let kek = {
        let directory = stage.bench.service.directory().await.unwrap();
        directory
            .by_label(&"KEK1".parse().unwrap())
            .unwrap()
            .clone()
    };
    let answer = stage.create(&["KEK1"]).await.unwrap();
    let wrap = Eedk::decode(&ders(&answer)[0]).unwrap().wrap();
    let dki = DataKeyId::from_random([7; 9]);
    let forged = Eedk::new(
        dki,
        KekId::Hash(kek.hash),
        wrap,
        forge(&kek.spki, wrap, &dki, &[0x5a; 32]),
    )
    .unwrap();
    let read = stage.resolve(&[forged.encode()]).await.unwrap();
    assert!(!read.issued_here);
    assert_eq!(data_key(&stage.b, &read.sedk), [0x5a; 32]);
    let append = stage.resolve_for(&stage.b, &[forged.encode()], true).await;
    assert_eq!(code(append), EkmCode::EE30);
    let records = ekm::audit::read(&stage.bench.config.audit).unwrap();
    let marked = records
        .filter_map(Result::ok)
        .any(|record| record.event.dki == Some(dki.to_string()) && record.event.eedks[0].foreign);
    assert!(marked, "no record marks the forged EEDK");
    // Beside one that was issued here, the forged one is not even tried.
    let mixed = [forged.encode(), ders(&answer).remove(0)];
    let read = stage.resolve(&mixed).await.unwrap();
    assert_eq!((read.opened, read.dki), (1, answer.dki));
}

async fn a_damaged_eedk_does_not_hide_the_good_one(stage: &Stage) {
    let answer = stage.create(&["KEK1", "KEK2"]).await.unwrap();
    let eedks = ders(&answer);
    let key = data_key(&stage.a, &answer.sedk);
    for byte in 0..eedks[0].len().min(120) {
        let mut damaged = eedks[0].clone();
        damaged[byte] ^= 0x04;
        let resolved = stage
            .resolve_for(&stage.b, &[damaged, eedks[1].clone()], true)
            .await;
        let resolved = resolved.unwrap_or_else(|problem| panic!("byte {byte}: {problem}"));
        assert_eq!(resolved.opened, 1, "byte {byte}");
        assert_eq!(data_key(&stage.b, &resolved.sedk), key);
    }
}

async fn a_rekey_does_not_launder_a_forged_eedk(stage: &Stage) {
    let directory = stage.bench.service.directory().await.unwrap();
    let kek = directory
        .by_label(&"KEK1".parse().unwrap())
        .unwrap()
        .clone();
    let answer = stage.create(&["KEK1"]).await.unwrap();
    let wrap = Eedk::decode(&ders(&answer)[0]).unwrap().wrap();
    let rekey = async |eedk: &Eedk| {
        let request = RekeyRequest {
            request_id: Uuid::new_v4(),
            serial: stage.a.soft.serial().clone(),
            volser: "VOL007".parse().unwrap(),
            eedks: vec![Base64(eedk.encode())],
            kek1: "KEK2".parse().unwrap(),
            kek2: None,
        };
        let outcome = stage.bench.service.rekey(&stage.a.peer, &request).await;
        outcome.map(ekm::audit::Audited::into_inner)
    };
    let forge = |dki: DataKeyId| {
        let wrapped = forge(&kek.spki, wrap, &dki, &[0x5a; 32]);
        Eedk::new(dki, KekId::Hash(kek.hash), wrap, wrapped).unwrap()
    };
    // Under the name of a data key that was made here.
    assert_eq!(code(rekey(&forge(answer.dki)).await), EkmCode::EE30);
    // Under a name of its own it may be rekeyed, as a partner's cartridge may,
    // and stays what it is.
    let rekeyed = rekey(&forge(DataKeyId::from_random([8; 9]))).await.unwrap();
    let fresh = vec![rekeyed.eedks[0].eedk.0.clone()];
    assert!(stage.resolve(&fresh).await.unwrap().issued_here);
    let append = stage.resolve_for(&stage.b, &fresh, true).await;
    assert_eq!(code(append), EkmCode::EE30);
}

fn forge(spki: &[u8], wrap: WrapAlgorithm, dki: &DataKeyId, key: &[u8]) -> Vec<u8> {
    use aws_lc_rs::rsa::{
        OAEP_SHA1_MGF1SHA1, OAEP_SHA256_MGF1SHA256, OaepPublicEncryptingKey, PublicEncryptingKey,
    };
    let public =
        OaepPublicEncryptingKey::new(PublicEncryptingKey::from_der(spki).unwrap()).unwrap();
    let algorithm = match wrap {
        WrapAlgorithm::Oaep {
            hash: ekm::key::OaepHash::Sha1,
            ..
        } => &OAEP_SHA1_MGF1SHA1,
        WrapAlgorithm::Oaep {
            hash: ekm::key::OaepHash::Sha256,
            ..
        } => &OAEP_SHA256_MGF1SHA256,
        other => panic!("{other:?}"),
    };
    let mut wrapped = vec![0; public.ciphertext_size()];
    let label = wrap.labelled().then_some(dki.as_bytes().as_slice());
    public.encrypt(algorithm, key, &mut wrapped, label).unwrap();
    wrapped
}

async fn a_key_that_is_not_the_pinned_one_gets_nothing(stage: &Stage) {
    let mut drive = shown(&stage.a);
    drive.public_key = Some(Base64(stage.b.soft.public_key_spki().to_vec()));
    let request = CreateRequest {
        job: None,
        request_id: Uuid::new_v4(),
        drive,
        volser: "VOL002".parse().unwrap(),
        kek1: None,
        kek2: None,
    };
    let outcome = stage.bench.service.create(&stage.a.peer, &request).await;
    assert_eq!(outcome.map(drop).unwrap_err().code, EkmCode::EE2B);
}

async fn a_drive_speaks_for_itself_only(stage: &Stage) {
    let request = CreateRequest {
        job: None,
        request_id: Uuid::new_v4(),
        drive: shown(&stage.a),
        volser: "VOL002".parse().unwrap(),
        kek1: None,
        kek2: None,
    };
    let outcome = stage.bench.service.create(&stage.b.peer, &request).await;
    assert_eq!(outcome.map(drop).unwrap_err().code, EkmCode::EE30);
    let mut unknown = request;
    unknown.drive.serial = "999999999999".parse::<DriveSerial>().unwrap();
    let outcome = stage.bench.service.create(&stage.b.peer, &unknown).await;
    assert_eq!(outcome.map(drop).unwrap_err().code, EkmCode::EF01);
}

async fn labels_come_from_the_first_level_that_names_any(stage: &Stage) {
    // Nobody names a label.
    assert_eq!(code(stage.create(&[]).await), EkmCode::EE31);
    let defaults = Defaults {
        kek1: Some("KEK2:hash".parse().unwrap()),
        kek2: Some("KEK1:hash".parse().unwrap()),
    };
    stage.bench.store().set_defaults(&defaults).await.unwrap();
    let by_default = stage.create(&[]).await.unwrap();
    assert_eq!(by_default.eedks.len(), 2);
    assert_eq!(by_default.eedks[0].label, Some("KEK2".parse().unwrap()));
    let mut row = stage.a.row.clone();
    row.kek1 = Some("kek1 ".parse().unwrap());
    stage.bench.store().put_drive(&row).await.unwrap();
    // The drive names one label: levels do not mix, so there is one EEDK.
    let by_drive = stage.create(&[]).await.unwrap();
    assert_eq!(by_drive.eedks.len(), 1);
    assert_eq!(by_drive.eedks[0].label, Some("KEK1".parse().unwrap()));
    let by_request = stage.create(&["KEK2"]).await.unwrap();
    assert_eq!(by_request.eedks[0].label, Some("KEK2".parse().unwrap()));
    stage.bench.store().put_drive(&stage.a.row).await.unwrap();
    stage
        .bench
        .store()
        .set_defaults(&Defaults::default())
        .await
        .unwrap();
}

/// Last on the list, since it leaves the label ambiguous.
async fn a_label_on_two_keys_is_refused(stage: &Stage) {
    let key = private_key(stage, 3);
    stage.hsm.hand(&["import-private", "kek1", &key]);
    stage.bench.service.tokens().look_again().await;
    let refused = stage.create(&["KEK1"]).await.unwrap_err();
    assert_eq!(refused.code, EkmCode::EE31);
    assert!(
        refused.detail.contains("2 different keys"),
        "{}",
        refused.detail
    );
    stage.create(&["KEK2"]).await.unwrap();
}

async fn a_kek_without_its_private_half_is_not_written_under(stage: &Stage) {
    let key = private_key(stage, 4);
    stage.hsm.hand(&["import-public", "PARTNER", &key]);
    stage.bench.service.tokens().look_again().await;
    for labels in [vec!["PARTNER"], vec!["KEK2", "PARTNER"]] {
        let refused = stage.create(&labels).await.unwrap_err();
        assert_eq!(refused.code, EkmCode::EE31, "{refused}");
        assert!(refused.detail.contains("private half"), "{refused}");
    }
}

/// A software drive's key in a file, as PKCS#8 DER.
fn private_key(stage: &Stage, n: u32) -> String {
    use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
    let key = aws_lc_rs::rsa::KeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap();
    let der: Pkcs8V1Der<'_> = key.as_der().unwrap();
    let path = stage.bench.directory.path().join(format!("key{n}.der"));
    std::fs::write(&path, der.as_ref()).unwrap();
    path.display().to_string()
}

async fn the_other_client_sees_the_same_attributes(stage: &Stage) {
    let kind = stage.hsm.kind;
    let seen = stage.hsm.hand(&["attributes", "KEK1"]);
    let host = kind.custody() == Custody::Host;
    for attribute in [
        "Sensitive(true)".to_owned(),
        "Extractable(false)".to_owned(),
        "AlwaysSensitive(true)".to_owned(),
        "NeverExtractable(true)".to_owned(),
        // NSS says so of no key.
        format!("Local({})", kind != Kind::Nss),
        format!("Unwrap({})", !host),
        format!("Decrypt({host})"),
        "Modifiable(false)".to_owned(),
    ] {
        assert!(seen.contains(&attribute), "{attribute} is not in:\n{seen}");
    }
}

async fn the_whole_list(kind: Kind) -> Stage {
    let stage = Stage::new(kind).await;
    what_every_token_does(&stage).await;
    a_kek_without_its_private_half_is_not_written_under(&stage).await;
    a_label_on_two_keys_is_refused(&stage).await;
    ekm::audit::verify(&stage.bench.config.audit).unwrap();
    stage
}

async fn what_every_token_does(stage: &Stage) {
    the_other_client_sees_the_same_attributes(stage).await;
    one_kek_gives_one_eedk(stage).await;
    either_of_two_eedks_opens(stage).await;
    two_creates_have_two_data_keys(stage).await;
    a_retried_create_gives_the_same_data_key(stage).await;
    retries_at_once_give_one_data_key(stage).await;
    rekey_keeps_the_data_key(stage).await;
    confirm_closes_a_create(stage).await;
    a_foreign_kek_is_unknown(stage).await;
    a_tampered_eedk_does_not_open_and_harms_nobody(stage).await;
    truncated_and_oversized_eedks_are_refused_by_name(stage).await;
    a_forged_eedk_is_marked_and_never_appended_under(stage).await;
    a_damaged_eedk_does_not_hide_the_good_one(stage).await;
    a_rekey_does_not_launder_a_forged_eedk(stage).await;
    a_key_that_is_not_the_pinned_one_gets_nothing(stage).await;
    a_drive_speaks_for_itself_only(stage).await;
    labels_come_from_the_first_level_that_names_any(stage).await;
}

/// An LTO drive has no room for EEDKs of its own, and refuses a page that carries them.
#[tokio::test(flavor = "multi_thread")]
async fn an_lto_drive_takes_the_page_of_a_create() {
    let stage = Stage::new(Kind::Embedded).await;
    stage.bench.kek("HOSTKEK", "main", Custody::Host).await;
    for (n, kind, form, kek) in [
        (71, DriveKind::Lto, SedkForm::T10Wrapped, "KEK1"),
        (72, DriveKind::LtoPlain, SedkForm::T10Plain, "HOSTKEK"),
    ] {
        let mut lto = drive_of(stage.bench.directory.path(), n, form, kind);
        if form == SedkForm::T10Plain {
            lto.row.custody = Custody::Host;
        }
        stage.bench.enrol(&lto).await;
        let mut request = CreateRequest {
            job: None,
            request_id: Uuid::new_v4(),
            drive: shown(&lto),
            volser: "LTO001".parse().unwrap(),
            kek1: Some(kek.parse().unwrap()),
            kek2: None,
        };
        request.drive.stores_eedks = false;
        let answer = stage.bench.service.create(&lto.peer, &request).await;
        let answer = answer.unwrap().into_inner();
        let key = data_key(&lto, &answer.sedk);
        let page = answer.spout.unwrap().0;
        let page = page.expose_secret();
        let cdb = Cdb::write(OutPage::SetDataEncryption, page.len().try_into().unwrap());
        let mut target = Target::new(lto.soft);
        target.load(Medium::Blank);
        target.spout(&cdb.encode(), page).unwrap();
        assert_eq!(target.data_key().unwrap().expose_secret(), &key);
        // The EEDKs are in the answer all the same, for whoever keeps them.
        assert_eq!(answer.eedks.len(), 1);
    }
}
