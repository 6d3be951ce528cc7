//! A cartridge whose EEDKs are missing, damaged or left over is read by the name of its data key.

use ekm::api::{
    Base64, ConfirmRequest, CreateAnswer, CreateRequest, DriveInRequest, RekeyRequest,
    ResolveAnswer, ResolveRequest,
};
use ekm::key::{DataKeyId, KekRef};
use ekm::policy::{PeerRule, PolicyConfig};
use ekm::problem::{EkmCode, Problem};
use secrecy::ExposeSecret as _;
use uuid::Uuid;

use crate::support::{Bench, Hsm, Kind, TestDrive, drive};

struct Stage {
    bench: Bench,
    writer: TestDrive,
    reader: TestDrive,
    _hsm: Hsm,
}

impl Stage {
    async fn new() -> Self {
        let rule = PeerRule {
            peer: "drive:*".to_owned(),
            drives: vec![],
            create_keks: vec!["*".to_owned()],
            rekey_keks: vec!["*".to_owned()],
        };
        let policy = PolicyConfig {
            peers: vec![rule],
            ..PolicyConfig::default()
        };
        let hsm = Hsm::new(Kind::Embedded, "catalog").await;
        let bench = Bench::new(&[&hsm], policy).await;
        for label in ["KEK1", "KEK2"] {
            bench.kek(label, "main", Kind::Embedded.custody()).await;
        }
        let form = Kind::Embedded.form();
        let writer = drive(bench.directory.path(), 1, form);
        let reader = drive(bench.directory.path(), 2, form);
        bench.enrol(&writer).await;
        bench.enrol(&reader).await;
        Self {
            bench,
            writer,
            reader,
            _hsm: hsm,
        }
    }

    async fn create(&self, volser: &str) -> CreateAnswer {
        let request = CreateRequest {
            job: None,
            request_id: Uuid::new_v4(),
            drive: shown(&self.writer),
            volser: volser.parse().unwrap(),
            kek1: Some("KEK1".parse::<KekRef>().unwrap()),
            kek2: Some("KEK2:hash".parse::<KekRef>().unwrap()),
        };
        let answer = self.bench.service.create(&self.writer.peer, &request).await;
        answer.unwrap().into_inner()
    }

    async fn resolve(
        &self,
        drive: &TestDrive,
        eedks: &[Vec<u8>],
        dki: Option<DataKeyId>,
        append: bool,
    ) -> Result<ResolveAnswer, Problem> {
        let request = ResolveRequest {
            request_id: Uuid::new_v4(),
            drive: shown(drive),
            volser: Some("VOL001".parse().unwrap()),
            eedks: eedks.iter().cloned().map(Base64).collect(),
            dki,
            append,
        };
        let answer = self.bench.service.resolve(&drive.peer, &request).await?;
        Ok(answer.into_inner())
    }

    fn details(&self) -> Vec<String> {
        ekm::audit::read(&self.bench.config.audit)
            .unwrap()
            .filter_map(Result::ok)
            .filter(|record| record.event.action == "resolve")
            .filter_map(|record| record.event.detail)
            .collect()
    }
}

fn shown(drive: &TestDrive) -> DriveInRequest {
    DriveInRequest {
        serial: drive.soft.serial().clone(),
        stores_eedks: false,
        public_key: Some(Base64(drive.soft.public_key_spki().to_vec())),
        session_key: None,
    }
}

fn ders(eedks: &[ekm::api::EedkInAnswer]) -> Vec<Vec<u8>> {
    eedks.iter().map(|eedk| eedk.eedk.0.clone()).collect()
}

fn data_key(drive: &TestDrive, sedk: &ekm::key::Sedk) -> [u8; 32] {
    *drive.soft.unwrap_sedk(sedk).unwrap().expose_secret()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cartridge_without_eedks_is_read_by_the_name_of_its_data_key() {
    let stage = Stage::new().await;
    let tape = stage.create("VOL001").await;
    let other = stage.create("VOL002").await;
    let key = data_key(&stage.writer, &tape.sedk);

    // Nothing on the cartridge; what another tape left on it; one of its own that is damaged.
    let mut damaged = ders(&tape.eedks)[0].clone();
    *damaged.last_mut().unwrap() ^= 1;
    for (shown, opened) in [
        (vec![], 0),
        (ders(&other.eedks), 0),
        (vec![damaged.clone()], 1),
        (vec![b"no EEDK".to_vec()], 1),
        (vec![ders(&tape.eedks)[1].clone()], 0),
    ] {
        let answer = stage
            .resolve(&stage.reader, &shown, Some(tape.dki), false)
            .await
            .unwrap();
        assert_eq!(answer.dki, tape.dki);
        assert_eq!(ders(&answer.catalog), ders(&tape.eedks), "{shown:?}");
        assert_eq!(answer.opened, opened, "{shown:?}");
        assert!(answer.issued_here || shown == [damaged.clone()]);
        assert_eq!(data_key(&stage.reader, &answer.sedk), key);
    }
    // Without the name the leftover would have given the other tape's key.
    let answer = stage
        .resolve(&stage.reader, &ders(&other.eedks), None, false)
        .await
        .unwrap();
    assert_eq!(answer.dki, other.dki);
    assert!(answer.catalog.is_empty());

    // An append asks for a key that was issued here, and this one was.
    stage
        .resolve(&stage.writer, &[], Some(tape.dki), true)
        .await
        .unwrap();

    let details = stage.details();
    assert!(
        details
            .iter()
            .any(|detail| detail
                .contains("2 of 2 EEDKs come from the history (generation 1, issued)")),
        "{details:?}"
    );
    // The other tape's key, asked for under this volume serial.
    stage
        .resolve(&stage.reader, &[], Some(other.dki), false)
        .await
        .unwrap();
    assert!(
        stage
            .details()
            .iter()
            .any(|detail| detail.contains("it was made for volume VOL002, not VOL001"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_catalog_gives_the_eedks_that_a_drive_confirmed_last() {
    let stage = Stage::new().await;
    let tape = stage.create("VOL001").await;
    let confirm = async |request_id, stored| {
        let request = ConfirmRequest {
            request_id,
            serial: stage.writer.soft.serial().clone(),
            dki: tape.dki,
            stored,
        };
        let service = &stage.bench.service;
        service.confirm(&stage.writer.peer, &request).await.unwrap();
    };
    let rekey = async || {
        let request = RekeyRequest {
            request_id: Uuid::new_v4(),
            serial: stage.writer.soft.serial().clone(),
            volser: "VOL001".parse().unwrap(),
            eedks: tape.eedks.iter().map(|eedk| eedk.eedk.clone()).collect(),
            kek1: "KEK2".parse().unwrap(),
            kek2: None,
        };
        let service = &stage.bench.service;
        let answer = service.rekey(&stage.writer.peer, &request).await.unwrap();
        (request.request_id, ders(&answer.into_inner().eedks))
    };
    let catalog = async || {
        let answer = stage
            .resolve(&stage.reader, &[], Some(tape.dki), false)
            .await
            .unwrap();
        ders(&answer.catalog)
    };
    confirm(tape.request_id, true).await;

    // A rekey that no drive stored, then one that it did not store, change nothing.
    let (given_up, _) = rekey().await;
    assert_eq!(catalog().await, ders(&tape.eedks));
    confirm(given_up, false).await;
    assert_eq!(catalog().await, ders(&tape.eedks));

    let (request_id, fresh) = rekey().await;
    confirm(request_id, true).await;
    assert_eq!(catalog().await, fresh);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_who_may_speak_for_the_drive_learns_what_the_history_has() {
    let stage = Stage::new().await;
    let tape = stage.create("VOL001").await;
    let unknown = DataKeyId::from_random([7; 9]);
    let problem = stage
        .resolve(&stage.reader, &[], Some(unknown), false)
        .await
        .unwrap_err();
    assert_eq!((problem.code, problem.status), (EkmCode::EE32, 404));
    assert!(problem.detail.contains(&unknown.to_string()), "{problem}");

    let stranger = drive(stage.bench.directory.path(), 3, Kind::Embedded.form());
    for dki in [tape.dki, unknown] {
        let problem = stage
            .resolve(&stranger, &[], Some(dki), false)
            .await
            .unwrap_err();
        assert_eq!(problem.code, EkmCode::EF01, "{problem}");
    }
    // No EEDK and no name is no request.
    let problem = stage
        .resolve(&stage.reader, &[], None, false)
        .await
        .unwrap_err();
    assert_eq!((problem.code, problem.status), (EkmCode::EE23, 400));
}
