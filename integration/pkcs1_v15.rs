//! EEDKs by RSAES-PKCS1-v1_5: they are made and opened where profile and policy say so, and nobody
//! who sends one that was never issued here learns whether its padding is right.

mod calls;
pub(crate) mod forged;
mod oracle;

use std::path::Path;
use std::process::Command;

use ekm::api::{
    Base64, CreateAnswer, CreateRequest, DriveInRequest, RekeyRequest, ResolveAnswer,
    ResolveRequest,
};
use ekm::audit::{Event, Outcome};
use ekm::bridge::supervisor::Program;
use ekm::config::TokenConfig;
use ekm::key::{Eedk, KekRef, SedkForm, WrapAlgorithm};
use ekm::keystore::Custody;
use ekm::policy::{PeerRule, Pkcs1V15Eedks, PolicyConfig};
use ekm::problem::{EkmCode, Problem};
use secrecy::ExposeSecret;
use tempfile::TempDir;
use uuid::Uuid;

use crate::support::{Bench, EKM, Hsm, Kind, TestDrive, closed, drive};
use forged::Forger;

/// A token of that kind whose profile wraps EEDKs by v1.5, with `KEK1`, and two drives.
struct Stage {
    // Before the token: its bridges end first.
    bench: Bench,
    hsm: Hsm,
    a: TestDrive,
    b: TestDrive,
    custody: Custody,
}

impl Stage {
    async fn new(kind: Kind) -> Self {
        Self::with(kind, Custody::Token, allowing()).await
    }

    async fn with(kind: Kind, custody: Custody, policy: PolicyConfig) -> Self {
        let hsm = Hsm::new(kind, "v15").await;
        let config = v15(&hsm, custody);
        Self::over(hsm, config, custody, policy).await
    }

    async fn over(hsm: Hsm, config: TokenConfig, custody: Custody, policy: PolicyConfig) -> Self {
        let bench = Bench::with(vec![config], policy).await;
        bench.kek("KEK1", "main", custody).await;
        let mut drives = [1, 2].map(|n| drive(bench.directory.path(), n, hsm.kind.form()));
        for drive in &mut drives {
            drive.row.custody = custody;
            bench.enrol(drive).await;
        }
        let [a, b] = drives;
        Self {
            bench,
            hsm,
            a,
            b,
            custody,
        }
    }

    /// The same site after a restart of its server.
    async fn restarted(self, policy: PolicyConfig) -> Self {
        let Self {
            bench,
            hsm,
            a,
            b,
            custody,
        } = self;
        let Bench {
            service,
            config,
            directory,
        } = bench;
        drop(service);
        closed(&config.state).await;
        let bench = Bench::at(directory, config.tokens, policy).await;
        Self {
            bench,
            hsm,
            a,
            b,
            custody,
        }
    }

    async fn forger(&self) -> Forger {
        let directory = self.bench.service.directory().await.unwrap();
        let kek = directory.by_label(&"KEK1".parse().unwrap()).unwrap();
        Forger::new(kek.spki.clone())
    }

    async fn create(&self) -> CreateAnswer {
        self.try_create("KEK1").await.unwrap()
    }

    async fn try_create(&self, label: &str) -> Result<CreateAnswer, Problem> {
        let request = CreateRequest {
            job: None,
            request_id: Uuid::new_v4(),
            drive: shown(&self.a),
            volser: "VOL001".parse().unwrap(),
            kek1: Some(label.parse::<KekRef>().unwrap()),
            kek2: None,
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

    /// The key that drive B has of it.
    async fn key(&self, eedk: &Eedk) -> [u8; 32] {
        let answer = self.resolve(&[eedk.encode()]).await.unwrap();
        data_key(&self.b, &answer.sedk)
    }

    async fn rekey(&self, eedk: &Eedk) -> Result<(), Problem> {
        let request = RekeyRequest {
            request_id: Uuid::new_v4(),
            serial: self.a.soft.serial().clone(),
            volser: "VOL001".parse().unwrap(),
            eedks: vec![Base64(eedk.encode())],
            kek1: "KEK1:hash".parse().unwrap(),
            kek2: None,
        };
        let service = &self.bench.service;
        service.rekey(&self.a.peer, &request).await.map(drop)
    }

    /// The last record of a resolve that has ended.
    async fn last_resolve(&self) -> Event {
        // Written and synced with the next that somebody waits for.
        self.resolve_for(&self.b, &[vec![0]], false)
            .await
            .unwrap_err();
        let records = ekm::audit::read(&self.bench.config.audit).unwrap();
        let mut ended: Vec<Event> = records
            .map(|record| record.unwrap().event)
            .filter(|event| event.action == "resolve" && event.outcome != Outcome::Intent)
            .collect();
        // The one that was only for waiting.
        ended.retain(|event| event.code.as_deref() != Some("EE23"));
        ended.pop().unwrap()
    }

    async fn operator(&self, command: ekm::admin::Command) -> ekm::admin::Reply {
        ekm::admin::execute(&self.bench.service, "operator:test", command)
            .await
            .unwrap()
    }
}

/// The token, its profile changed to v1.5.
fn v15(hsm: &Hsm, custody: Custody) -> TokenConfig {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("hsm-profiles");
    let shipped = folder.join(format!("{}.toml", hsm.kind.profile()));
    let text = std::fs::read_to_string(shipped).unwrap();
    let (before, after) = text.split_once("[eedk]\n").unwrap();
    let (_, after) = after.split_once("\n\n").unwrap();
    let mut text = format!("{before}[eedk]\npadding = \"pkcs1-v1.5\"\n\n{after}");
    if custody == Custody::Host {
        let (before, after) = text.split_once("forms = [").unwrap();
        let (_, after) = after.split_once(']').unwrap();
        text = format!("{before}forms = []{after}");
    }
    let path = hsm.directory.path().join("v15.toml");
    std::fs::write(&path, text).unwrap();
    TokenConfig {
        profile: path.display().to_string(),
        ..hsm.config("main")
    }
}

fn allowing() -> PolicyConfig {
    PolicyConfig {
        pkcs1_v15_eedks: Pkcs1V15Eedks::Allow,
        pkcs1_v15_failures_per_peer: 1000,
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

fn only(answer: &CreateAnswer) -> Eedk {
    let [eedk] = answer.eedks.as_slice() else {
        panic!("{} EEDKs", answer.eedks.len());
    };
    Eedk::decode(&eedk.eedk.0).unwrap()
}

async fn what_is_made_opens(kind: Kind, custody: Custody) {
    let stage = Stage::with(kind, custody, allowing()).await;
    let answer = stage.create().await;
    let eedk = only(&answer);
    assert_eq!(eedk.wrap(), WrapAlgorithm::Pkcs1V15);
    let resolved = stage.resolve(&[eedk.encode()]).await.unwrap();
    assert!(resolved.issued_here);
    let key = data_key(&stage.a, &answer.sedk);
    assert_eq!(data_key(&stage.b, &resolved.sedk), key);
    let record = stage.last_resolve().await;
    assert_eq!((record.outcome, record.detail), (Outcome::Success, None));
    assert_eq!(record.custody, Some(custody.to_string()));
    // What was issued here is rekeyed and appended to as any other.
    stage.rekey(&eedk).await.unwrap();
    let append = stage.resolve_for(&stage.b, &[eedk.encode()], true).await;
    assert_eq!(data_key(&stage.b, &append.unwrap().sedk), key);
    // Nothing of that is in any budget.
    assert_eq!(stage.bench.service.openings().openings, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_embedded_token_makes_by_v15_opens() {
    what_is_made_opens(Kind::Embedded, Custody::Token).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_made_by_v15_in_custody_host_opens() {
    what_is_made_opens(Kind::Embedded, Custody::Host).await;
    what_is_made_opens(Kind::SofthsmInProcess, Custody::Host).await;
    what_is_made_opens(Kind::Softhsm, Custody::Host).await;
}

/// SoftHSM takes 20 bytes for an AES key and says that an unwrapped one has 0. So a length that is not
/// a data key's could not be hidden from the drive.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_does_not_tell_the_length_of_what_it_opens_is_refused() {
    let hsm = Hsm::new(Kind::SofthsmInProcess, "v15").await;
    let tokens = vec![v15(&hsm, Custody::Token)];
    let bench = Bench::with(tokens, allowing()).await;
    let made = bench.try_kek("KEK1", "main", 2048, Custody::Token).await;
    let refused = made.unwrap_err();
    assert!(refused.detail.contains("CKA_VALUE_LEN"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_kek_that_signs_is_made_where_paddings_can_be_probed() {
    let stage = Stage::new(Kind::Embedded).await;
    let command = ekm::admin::Command::KekGenerate {
        label: "SIGNS".parse().unwrap(),
        bits: 2048,
        token: None,
        custody: Custody::Token,
        sign: true,
    };
    let made = ekm::admin::execute(&stage.bench.service, "operator:test", command).await;
    let refused = made.unwrap_err();
    assert!(refused.detail.contains("without --sign"), "{refused}");
}

/// A KEK on a token of each kind: whichever of them makes the cartridge, each EEDK is wrapped as its
/// KEK's token opens it.
#[tokio::test(flavor = "multi_thread")]
async fn a_cartridge_may_have_an_eedk_of_each_kind() {
    let oaep = Hsm::new(Kind::Embedded, "oaep").await;
    let other = Hsm::new(Kind::Embedded, "other").await;
    let second = TokenConfig {
        name: "second".to_owned(),
        ..v15(&other, Custody::Token)
    };
    for first in ["main", "second"] {
        let mut tokens = vec![oaep.config("main"), second.clone()];
        for token in &mut tokens {
            token.priority = if token.name == first { 1 } else { 2 };
        }
        let bench = Bench::with(tokens, allowing()).await;
        let [kek1, kek2] = ["ONE", "TWO"].map(|name| format!("{name}-{first}").to_uppercase());
        bench.kek(&kek1, "main", Custody::Token).await;
        bench.kek(&kek2, "second", Custody::Token).await;
        let drive = drive(bench.directory.path(), 1, Kind::Embedded.form());
        bench.enrol(&drive).await;
        let request = CreateRequest {
            job: None,
            request_id: Uuid::new_v4(),
            drive: shown(&drive),
            volser: "VOL001".parse().unwrap(),
            kek1: Some(kek1.parse().unwrap()),
            kek2: Some(kek2.parse().unwrap()),
        };
        let made = bench.service.create(&drive.peer, &request).await.unwrap();
        let made = made.into_inner();
        let ways: Vec<bool> = made
            .eedks
            .iter()
            .map(|eedk| Eedk::decode(&eedk.eedk.0).unwrap().wrap().is_v15())
            .collect();
        assert_eq!(ways, [false, true], "{first}");
        for eedk in &made.eedks {
            let request = ResolveRequest {
                dki: None,
                request_id: Uuid::new_v4(),
                drive: shown(&drive),
                volser: None,
                eedks: vec![eedk.eedk.clone()],
                append: false,
            };
            let read = bench.service.resolve(&drive.peer, &request).await.unwrap();
            let read = data_key(&drive, &read.into_inner().sedk);
            assert_eq!(read, data_key(&drive, &made.sedk), "{first}");
        }
    }
}

fn openssl(directory: &Path, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new("openssl")
        .args(arguments)
        .current_dir(directory)
        .output()
        .expect("openssl is installed (scripts/test installs it)");
    assert!(
        output.status.success(),
        "openssl {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

async fn openssl_opens_what_is_made(kind: Kind) {
    let hsm = Hsm::new(kind, "openssl").await;
    let directory = hsm.directory.path().to_owned();
    let bits = "rsa_keygen_bits:2048";
    openssl(
        &directory,
        &[
            "genpkey",
            "-algorithm",
            "RSA",
            "-pkeyopt",
            bits,
            "-out",
            "kek.pem",
        ],
    );
    openssl(
        &directory,
        &[
            "pkcs8", "-topk8", "-nocrypt", "-in", "kek.pem", "-outform", "DER", "-out", "kek.der",
        ],
    );
    let kek = directory.join("kek.der");
    hsm.hand(&["import-private", "ESCROW", &kek.display().to_string()]);
    let config = v15(&hsm, Custody::Token);
    let stage = Stage::over(hsm, config, Custody::Token, allowing()).await;
    let answer = stage.try_create("ESCROW").await.unwrap();
    let eedk = only(&answer);
    std::fs::write(directory.join("eedk.der"), eedk.encode()).unwrap();
    let listing = ["asn1parse", "-inform", "DER", "-in", "eedk.der"];
    let shown = String::from_utf8(openssl(&directory, &listing)).unwrap();
    assert!(shown.contains(":rsaEncryption"), "{shown}");
    let (offset, _) = shown.lines().last().unwrap().split_once(':').unwrap();
    let mut cut = listing.to_vec();
    cut.extend(["-strparse", offset.trim(), "-noout", "-out", "wrapped"]);
    openssl(&directory, &cut);
    let opened = openssl(
        &directory,
        &[
            "pkeyutl",
            "-decrypt",
            "-inkey",
            "kek.pem",
            "-in",
            "wrapped",
            "-pkeyopt",
            "rsa_padding_mode:pkcs1",
        ],
    );
    assert_eq!(opened, data_key(&stage.a, &answer.sedk));
}

#[tokio::test(flavor = "multi_thread")]
async fn openssl_opens_what_the_embedded_token_makes_by_v15() {
    openssl_opens_what_is_made(Kind::Embedded).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_with_such_a_profile_is_not_used_unless_the_policy_says_so() {
    let hsm = Hsm::new(Kind::Embedded, "off").await;
    let directory = TempDir::new().unwrap();
    let tokens = vec![v15(&hsm, Custody::Token)];
    let config = Bench::config(directory.path(), tokens, PolicyConfig::default());
    let refused = ekm::server::open(&config, &Program::at(EKM.into())).await;
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("token main is not used"), "{refused}");
    assert!(
        refused.contains("policy.pkcs1_v15_eedks = \"allow\""),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_for_oaep_opens_nothing_by_v15_whatever_the_policy_says() {
    for policy in [allowing(), PolicyConfig::default()] {
        let hsm = Hsm::new(Kind::Embedded, "oaep").await;
        let config = hsm.config("main");
        let allowed = policy.pkcs1_v15_eedks == Pkcs1V15Eedks::Allow;
        let stage = Stage::over(hsm, config, Custody::Token, policy).await;
        let forger = stage.forger().await;
        let mut said = Vec::new();
        let good = std::iter::once(forger.good(&[7; 32]));
        for eedk in good.chain(forger.bad().into_iter().map(|(_, eedk)| eedk)) {
            let refused = stage.resolve(&[eedk.encode()]).await.unwrap_err();
            let code = if allowed {
                EkmCode::EE31
            } else {
                EkmCode::EE32
            };
            assert_eq!(refused.code, code, "{refused}");
            assert!(refused.detail.contains("RSAES-PKCS1-v1_5"), "{refused}");
            said.push((refused.status, refused.detail));
        }
        said.dedup();
        assert_eq!(said.len(), 1, "{said:?}");
        assert_eq!(stage.bench.service.openings().openings, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drive_of_the_wrong_form_is_told_so_whatever_the_padding() {
    let hsm = Hsm::new(Kind::Embedded, "form").await;
    let config = v15(&hsm, Custody::Token);
    let profile = std::fs::read_to_string(&config.profile).unwrap();
    let one = profile.replace("\"t10-02h\", ", "");
    assert_ne!(one, profile);
    std::fs::write(&config.profile, one).unwrap();
    let stage = Stage::over(hsm, config, Custody::Token, allowing()).await;
    assert_eq!(stage.b.row.form, SedkForm::T10Wrapped);
    let forger = stage.forger().await;
    let good = std::iter::once(forger.good(&[7; 32]));
    let mut said = Vec::new();
    for eedk in good.chain(forger.bad().into_iter().map(|(_, eedk)| eedk)) {
        let refused = stage.resolve(&[eedk.encode()]).await.unwrap_err();
        said.push((refused.status, refused.code, refused.detail));
    }
    said.dedup();
    assert_eq!(said.len(), 1, "{said:?}");
}
