//! A software keystore: the key files of EKM sites, serving in custody `host`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use ekm::api::{Base64, CreateAnswer, CreateRequest, DriveInRequest, ResolveRequest};
use ekm::bridge::message::Provenance;
use ekm::bridge::pin::PinSource;
use ekm::bridge::supervisor::{Program, TokenState};
use ekm::config::{Config, KeystoreConfig};
use ekm::key::{KekHash, KekRef, SedkForm};
use ekm::keystore::Custody;
use ekm::policy::{PeerRule, Pkcs1V15Eedks, PolicyConfig};
use ekm::problem::{EkmCode, Problem};
use ekm::service::Service;
use secrecy::ExposeSecret;
use tempfile::TempDir;
use uuid::Uuid;

use crate::keyfile::keytool_is_there;
use crate::pkcs1_v15::forged::Forger;
use crate::support::{Bench, EKM, Hsm, Kind, TestDrive, closed, drive, wait_for, write_private};

const PASSWORD: &str = "store-password";

/// A service over a key file, and a drive that is enrolled for it.
pub(crate) struct Stage {
    pub(crate) service: Arc<Service>,
    pub(crate) config: Config,
    pub(crate) drive: TestDrive,
    pub(crate) directory: TempDir,
}

impl Stage {
    /// `hsms` are tokens beside it. `write` lets cartridges be written under its KEKs.
    pub(crate) async fn new(directory: TempDir, file: &str, hsms: &[&Hsm], write: bool) -> Self {
        let word = (PASSWORD, None);
        Self::with(directory, file, word, hsms, write).await
    }

    /// The same, with the passwords of the store and of its keys.
    pub(crate) async fn with(
        directory: TempDir,
        file: &str,
        (store, keys): (&str, Option<&str>),
        hsms: &[&Hsm],
        write: bool,
    ) -> Self {
        let password = directory.path().join("password");
        write_private(&password, store);
        let key_password = keys.map(|keys| {
            let path = directory.path().join("key-password");
            write_private(&path, keys);
            PinSource::File(path)
        });
        let mut policy = PolicyConfig {
            peers: vec![PeerRule {
                peer: "drive:*".to_owned(),
                drives: vec![],
                create_keks: vec!["*".to_owned()],
                rekey_keks: vec![],
            }],
            // It makes no difference here, as a test shows.
            pkcs1_v15_eedks: Pkcs1V15Eedks::Allow,
            ..PolicyConfig::default()
        };
        if write {
            policy.write_provenance.push(Provenance::Software);
        }
        let tokens = hsms.iter().map(|hsm| hsm.config("main")).collect();
        let mut config = Bench::config(directory.path(), tokens, policy);
        config.keystores = vec![KeystoreConfig {
            name: "old".to_owned(),
            file: directory.path().join(file),
            password: PinSource::File(password),
            key_password,
            priority: 9,
            weight: 1,
        }];
        let program = Program::at(EKM.into());
        let service = ekm::server::open(&config, &program).await.unwrap();
        for bridge in service.tokens().bridges() {
            bridge.settled().await.unwrap();
        }
        let mut drive = drive(directory.path(), 1, SedkForm::T10Wrapped);
        drive.row.custody = Custody::Host;
        service.store().put_drive(&drive.row).await.unwrap();
        Self {
            service: Arc::new(service),
            config,
            drive,
            directory,
        }
    }

    fn shown(&self) -> DriveInRequest {
        DriveInRequest {
            serial: self.drive.soft.serial().clone(),
            stores_eedks: true,
            public_key: Some(Base64(self.drive.soft.public_key_spki().to_vec())),
            session_key: None,
        }
    }

    pub(crate) async fn create(&self, kek: &str) -> Result<CreateAnswer, Problem> {
        let request = CreateRequest {
            job: None,
            request_id: Uuid::new_v4(),
            drive: self.shown(),
            volser: "OLD001".parse().unwrap(),
            kek1: Some(kek.parse::<KekRef>().unwrap()),
            kek2: None,
        };
        let answer = self.service.create(&self.drive.peer, &request).await?;
        Ok(answer.into_inner())
    }

    /// The data key, as the drive finds it.
    pub(crate) async fn resolve(&self, eedks: &[Base64]) -> Result<[u8; 32], Problem> {
        let request = ResolveRequest {
            dki: None,
            request_id: Uuid::new_v4(),
            drive: self.shown(),
            volser: None,
            eedks: eedks.to_vec(),
            append: false,
        };
        let answer = self.service.resolve(&self.drive.peer, &request).await?;
        let key = self.drive.soft.unwrap_sedk(&answer.into_inner().sedk);
        Ok(*key.unwrap().expose_secret())
    }

    /// Writes and reads a cartridge under each of these KEKs.
    async fn serves(&self, keks: &[&str]) {
        for kek in keks {
            let made = self.create(kek).await.unwrap();
            let eedks: Vec<_> = made.eedks.iter().map(|eedk| eedk.eedk.clone()).collect();
            let written = *self
                .drive
                .soft
                .unwrap_sedk(&made.sedk)
                .unwrap()
                .expose_secret();
            assert_eq!(self.resolve(&eedks).await.unwrap(), written, "{kek}");
        }
    }

    /// What the server knows the KEK by now.
    async fn hash(&self, label: &str) -> Option<KekHash> {
        let directory = self.service.directory().await.unwrap();
        let found = directory.by_label(&label.parse().unwrap()).ok()?;
        Some(found.hash)
    }
}

pub(crate) fn run(directory: &Path, program: &str, arguments: &[&str]) {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(directory)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error} (scripts/test installs it)"));
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

fn genkeypair(directory: &Path, file: &str, kind: &str, alias: &str, bits: &str) {
    let name = format!("CN={alias}");
    run(
        directory,
        "keytool",
        &[
            "-genkeypair",
            "-keyalg",
            "RSA",
            "-keysize",
            bits,
            "-alias",
            alias,
            "-dname",
            &name,
            "-keystore",
            file,
            "-storetype",
            kind,
            "-storepass",
            PASSWORD,
            "-keypass",
            PASSWORD,
        ],
    );
}

/// A PKCS#12 file of OpenSSL's with one key, under that alias.
pub(crate) fn pkcs12(directory: &Path, file: &str, alias: &str, more: &[&str]) {
    let (key, certificate) = (format!("{alias}.key"), format!("{alias}.crt"));
    run(
        directory,
        "openssl",
        &[
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-subj",
            "/CN=kek",
            "-keyout",
            &key,
            "-out",
            &certificate,
        ],
    );
    let password = format!("pass:{PASSWORD}");
    let mut arguments = vec![
        "pkcs12",
        "-export",
        "-inkey",
        &key,
        "-in",
        &certificate,
        "-name",
        alias,
        "-out",
        file,
        "-passout",
        &password,
    ];
    arguments.extend(more);
    run(directory, "openssl", &arguments);
}

pub(crate) fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_key_of_a_jceks_store_serves() {
    if !keytool_is_there() {
        return;
    }
    let directory = folder();
    for (alias, bits) in [
        ("tape2048", "2048"),
        ("tape3072", "3072"),
        ("tape4096", "4096"),
    ] {
        genkeypair(directory.path(), "EKMKeys.jck", "JCEKS", alias, bits);
    }
    let stage = Stage::new(directory, "EKMKeys.jck", &[], true).await;
    stage.serves(&["TAPE2048", "tape3072", "Tape4096"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_other_format_serves() {
    if !keytool_is_there() {
        return;
    }
    for (file, kind) in [("keys.jks", "JKS"), ("keys.p12", "PKCS12")] {
        let directory = folder();
        genkeypair(directory.path(), file, kind, "tape1", "2048");
        genkeypair(directory.path(), file, kind, "tape2", "2048");
        let stage = Stage::new(directory, file, &[], true).await;
        stage.serves(&["TAPE1", "TAPE2"]).await;
    }
    for more in [&["-legacy"][..], &[]] {
        let directory = folder();
        pkcs12(directory.path(), "openssl.p12", "tape3", more);
        let stage = Stage::new(directory, "openssl.p12", &[], true).await;
        stage.serves(&["TAPE3"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_written_under_its_keks_unless_the_policy_says_so() {
    let directory = folder();
    pkcs12(directory.path(), "keys.p12", "OLD", &[]);
    let stage = Stage::new(directory, "keys.p12", &[], false).await;
    let refused = stage.create("OLD").await.unwrap_err();
    assert_eq!(refused.code, EkmCode::EE31);
    assert!(refused.to_string().contains("software"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drive_that_is_not_enrolled_for_custody_host_gets_nothing() {
    let directory = folder();
    pkcs12(directory.path(), "keys.p12", "OLD", &[]);
    let mut stage = Stage::new(directory, "keys.p12", &[], true).await;
    let made = stage.create("OLD").await.unwrap();
    stage.drive.row.custody = Custody::Token;
    let store = stage.service.store();
    store.put_drive(&stage.drive.row).await.unwrap();
    let eedks: Vec<_> = made.eedks.into_iter().map(|eedk| eedk.eedk).collect();
    stage.resolve(&eedks).await.unwrap_err();
    stage.create("OLD").await.unwrap_err();
    // It was the custody: with it back the cartridge is read.
    stage.drive.row.custody = Custody::Host;
    store.put_drive(&stage.drive.row).await.unwrap();
    stage.resolve(&eedks).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_eedk_is_refused_and_the_keystore_stays_ready() {
    let directory = folder();
    pkcs12(directory.path(), "keys.p12", "OLD", &[]);
    let stage = Stage::new(directory, "keys.p12", &[], true).await;
    let made = stage.create("OLD").await.unwrap();
    let mut eedk = made.eedks[0].eedk.clone();
    *eedk.0.last_mut().unwrap() ^= 1;
    stage.resolve(&[eedk]).await.unwrap_err();
    let state = stage.service.tokens().bridges()[0].state();
    assert!(matches!(state, TokenState::Ready { .. }), "{state:?}");
    stage.serves(&["OLD"]).await;
}

/// EKM's refreshks, by itself. A file that cannot be read takes no key away.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_file_that_changes_is_read_again() {
    let directory = folder();
    pkcs12(directory.path(), "keys.p12", "FIRST", &[]);
    pkcs12(directory.path(), "next.p12", "SECOND", &[]);
    let stage = Stage::new(directory, "keys.p12", &[], true).await;
    let at = |name: &str| -> PathBuf { stage.directory.path().join(name) };
    let look = || async { stage.service.tokens().look_again().await };
    assert!(stage.hash("FIRST").await.is_some());
    let state = || stage.service.tokens().bridges()[0].state();
    std::fs::write(at("keys.p12"), b"half of a fi").unwrap();
    look().await;
    stage.serves(&["FIRST"]).await;
    let why = state().why().expect("it is not as it should be");
    assert_eq!(state().word(), "degraded");
    assert!(why.contains("keys.p12"), "{why}");
    assert!(why.contains("restore the file"), "{why}");
    std::fs::remove_file(at("keys.p12")).unwrap();
    look().await;
    stage.serves(&["FIRST"]).await;
    assert_eq!(state().word(), "degraded");
    std::fs::rename(at("next.p12"), at("keys.p12")).unwrap();
    look().await;
    stage.serves(&["SECOND"]).await;
    assert_eq!(stage.hash("FIRST").await, None);
    assert_eq!(state().word(), "ready");
}

/// Nothing locks where nobody counts: the right password is enough.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_tried_again_once_it_is_put_right() {
    let directory = folder();
    pkcs12(directory.path(), "keys.p12", "OLD", &[]);
    let stage = Stage::new(directory, "keys.p12", &[], true).await;
    let password = stage.directory.path().join("password");
    let Stage {
        service,
        config,
        drive: _,
        directory: _directory,
    } = stage;
    drop(service);
    closed(&config.state).await;
    write_private(&password, "wrong");
    let service = ekm::server::open(&config, &Program::at(EKM.into())).await;
    let service = service.unwrap();
    let bridge = &service.tokens().bridges()[0];
    let fault = bridge.settled().await.unwrap_err().to_string();
    assert!(fault.contains("keys.p12"), "{fault}");
    write_private(&password, PASSWORD);
    let serves = || service.tokens().bridges()[0].serves();
    wait_for("the keystore", Duration::from_secs(15), serves);
}

/// Puts a key that [`pkcs12`] made into a token too.
pub(crate) fn moved(directory: &Path, alias: &str, hsm: &Hsm) {
    let der = hsm.directory.path().join(format!("{alias}.der"));
    let key = directory.join(format!("{alias}.key"));
    let (key, out) = (key.display().to_string(), der.display().to_string());
    let convert = [
        "pkcs8", "-topk8", "-nocrypt", "-in", &key, "-outform", "DER", "-out", &out,
    ];
    run(directory, "openssl", &convert);
    hsm.hand(&["import-private", alias, &out]);
}

/// While a KEK moves it is in both; the token serves it then.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_comes_before_the_keystore_with_the_same_kek() {
    let directory = folder();
    pkcs12(directory.path(), "keys.p12", "BOTH", &[]);
    let hsm = Hsm::new(Kind::Embedded, "both").await;
    moved(directory.path(), "BOTH", &hsm);
    let stage = Stage::new(directory, "keys.p12", &[&hsm], true).await;
    let made = stage.create("BOTH").await.unwrap();
    let eedks: Vec<_> = made.eedks.into_iter().map(|eedk| eedk.eedk).collect();
    stage.resolve(&eedks).await.unwrap();
    let read = |records: &Path| -> Vec<String> {
        let records = ekm::audit::read(records).unwrap().filter_map(Result::ok);
        records
            .filter(|record| record.event.action == "resolve")
            .filter_map(|record| record.event.token)
            .collect()
    };
    wait_for("the resolve's record", Duration::from_secs(5), || {
        read(&stage.config.audit) == ["main"]
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn no_eedk_by_v15_is_opened_whatever_the_policy_says() {
    let directory = TempDir::new().unwrap();
    pkcs12(directory.path(), "keys.p12", "OLD", &[]);
    let stage = Stage::new(directory, "keys.p12", &[], true).await;
    let keks = stage.service.directory().await.unwrap();
    let kek = keks.by_label(&"OLD".parse().unwrap()).unwrap();
    let forger = Forger::new(kek.spki.clone());
    let good = std::iter::once(forger.good(&[7; 32]));
    let mut said = Vec::new();
    for eedk in good.chain(forger.bad().into_iter().map(|(_, eedk)| eedk)) {
        let refused = stage.resolve(&[Base64(eedk.encode())]).await.unwrap_err();
        assert_eq!(refused.code, EkmCode::EE25, "{refused}");
        said.push((refused.status, refused.detail));
    }
    said.dedup();
    assert_eq!(said.len(), 1, "{said:?}");
    assert_eq!(stage.service.openings().openings, 0);
}
