//! Certificates of KEKs: requests that OpenSSL verifies, certificates that a CA of OpenSSL's
//! signs, and what becomes of a KEK whose certificate has ended.

use std::path::Path;
use std::process::Command as Process;

use ekm::admin::{self, Command, Imported, Reply};
use ekm::api::{Base64, CreateAnswer, CreateRequest, DriveInRequest, RekeyRequest, ResolveRequest};
use ekm::key::KeyLabel;
use ekm::policy::{ExpiredKeks, PeerRule, PolicyConfig};
use ekm::problem::{EkmCode, Problem};
use uuid::Uuid;

use crate::support::{Bench, Hsm, Kind, TestDrive, drive};
use crate::tokens::can_be_made;

/// What OpenSSL prints, on both outputs; it must succeed.
pub(crate) fn openssl(directory: &Path, arguments: &[&str]) -> String {
    let output = Process::new("openssl")
        .args(arguments)
        .current_dir(directory)
        .output()
        .expect("openssl is installed (scripts/test installs it)");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success(), "openssl {arguments:?}: {said}");
    said
}

/// A CA of OpenSSL's: `ca.crt` and `ca.key`.
pub(crate) fn make_ca(directory: &Path) {
    let extensions = "keyUsage=critical,keyEncipherment\nbasicConstraints=CA:FALSE\n";
    std::fs::write(directory.join("kek.ext"), extensions).unwrap();
    let subject = "/CN=Corporate CA/O=Example";
    openssl(
        directory,
        &[
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.crt",
            "-days", "3650", "-subj", subject,
        ],
    );
}

/// Has the CA certify the public key in `NAME.pub` for some days; `NAME.crt`. With days below zero
/// it ended yesterday.
pub(crate) fn certify(directory: &Path, name: &str, days: i64) {
    let (public, certificate) = (format!("{name}.pub"), format!("{name}.crt"));
    // A request of another key, whose key the CA replaces: so KEKs that do not sign are certified.
    openssl(
        directory,
        &[
            "req",
            "-new",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-keyout",
            "any.key",
            "-out",
            "any.csr",
            "-subj",
            &format!("/CN={name}"),
        ],
    );
    let days = days.to_string();
    let mut arguments = vec![
        "x509",
        "-req",
        "-in",
        "any.csr",
        "-force_pubkey",
        &public,
        "-CA",
        "ca.crt",
        "-CAkey",
        "ca.key",
        "-CAcreateserial",
        "-extfile",
        "kek.ext",
        "-out",
        &certificate,
    ];
    arguments.extend(["-days", &days]);
    openssl(directory, &arguments);
}

pub(crate) fn write_public(directory: &Path, name: &str, spki: &[u8]) {
    let pem = der_pem("PUBLIC KEY", spki);
    std::fs::write(directory.join(format!("{name}.pub")), pem).unwrap();
}

fn der_pem(kind: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> = text
        .as_bytes()
        .chunks(64)
        .map(|line| std::str::from_utf8(line).unwrap())
        .collect();
    format!(
        "-----BEGIN {kind}-----\n{}\n-----END {kind}-----\n",
        lines.join("\n")
    )
}

/// A service, a drive, and a directory for OpenSSL.
struct Stage {
    hsm: Hsm,
    bench: Bench,
    drive: TestDrive,
}

impl Stage {
    async fn new(kind: Kind, expired_keks: ExpiredKeks) -> Self {
        let hsm = Hsm::new(kind, "certificates").await;
        let bench = Bench::new(&[&hsm], policy(expired_keks)).await;
        let drive = drive(bench.directory.path(), 1, kind.form());
        bench.enrol(&drive).await;
        Self { hsm, bench, drive }
    }

    fn path(&self) -> &Path {
        self.bench.directory.path()
    }

    async fn operate(&self, command: Command) -> Result<Reply, Problem> {
        admin::execute(&self.bench.service, "operator:test", command).await
    }

    async fn kek(&self, label: &str, sign: bool) {
        let made = self.operate(Command::KekGenerate {
            label: label.parse().unwrap(),
            bits: 2048,
            token: None,
            custody: self.hsm.kind.custody(),
            sign,
        });
        made.await.unwrap();
        let directory = self.bench.service.directory().await.unwrap();
        let kek = directory.by_label(&label.parse().unwrap()).unwrap();
        write_public(self.path(), label, &kek.spki);
    }

    async fn request(&self, label: &str, subject: Option<&str>) -> Result<(), Problem> {
        let reply = self
            .operate(Command::KekRequest {
                label: label.parse().unwrap(),
                subject: subject.map(|subject| subject.parse().unwrap()),
            })
            .await?;
        let Reply::Request(der) = reply else {
            panic!("{reply:?}")
        };
        let pem = der_pem("CERTIFICATE REQUEST", &der);
        std::fs::write(self.path().join("kek.csr"), pem).unwrap();
        Ok(())
    }

    async fn import(&self, label: &str, file: &str) -> Result<Imported, Problem> {
        let chain = ekm::certificates::from_file(&self.path().join(file)).unwrap();
        let reply = self
            .operate(Command::KekCertificate {
                label: label.parse::<KeyLabel>().unwrap(),
                chain,
                token: None,
            })
            .await?;
        match reply {
            Reply::Imported(imported) => Ok(*imported),
            other => panic!("{other:?}"),
        }
    }

    fn shown(&self) -> DriveInRequest {
        DriveInRequest {
            serial: self.drive.soft.serial().clone(),
            stores_eedks: true,
            public_key: None,
            session_key: None,
        }
    }

    async fn create(&self, label: &str) -> Result<CreateAnswer, Problem> {
        let request = CreateRequest {
            job: None,
            request_id: Uuid::new_v4(),
            drive: self.shown(),
            volser: "CERT01".parse().unwrap(),
            kek1: Some(label.parse().unwrap()),
            kek2: None,
        };
        let answer = self
            .bench
            .service
            .create(&self.drive.peer, &request)
            .await?;
        Ok(answer.into_inner())
    }

    async fn read(&self, tape: &[Base64]) -> Result<(), Problem> {
        let request = ResolveRequest {
            dki: None,
            request_id: Uuid::new_v4(),
            drive: self.shown(),
            volser: None,
            eedks: tape.to_vec(),
            append: true,
        };
        let answer = self.bench.service.resolve(&self.drive.peer, &request).await;
        answer.map(drop)
    }

    async fn rekey(&self, tape: &[Base64], label: &str) -> Result<(), Problem> {
        let request = RekeyRequest {
            request_id: Uuid::new_v4(),
            serial: self.drive.soft.serial().clone(),
            volser: "CERT01".parse().unwrap(),
            eedks: tape.to_vec(),
            kek1: label.parse().unwrap(),
            kek2: None,
        };
        let answer = self.bench.service.rekey(&self.drive.peer, &request).await;
        answer.map(drop)
    }
}

fn policy(expired_keks: ExpiredKeks) -> PolicyConfig {
    PolicyConfig {
        expired_keks,
        peers: vec![PeerRule {
            peer: "drive:*".to_owned(),
            drives: vec![],
            create_keks: vec!["*".to_owned()],
            rekey_keks: vec!["*".to_owned()],
        }],
        ..PolicyConfig::default()
    }
}

fn eedks(answer: &CreateAnswer) -> Vec<Base64> {
    answer.eedks.iter().map(|eedk| eedk.eedk.clone()).collect()
}

async fn requests_and_certificates(kind: Kind) {
    let stage = Stage::new(kind, ExpiredKeks::Refuse).await;
    stage.kek("SIGNS", true).await;
    stage.kek("OPENS", false).await;

    // A request is signed by the KEK itself, and OpenSSL verifies that.
    let name = "CN=TAPE 2026,O=Example\\, Inc.,C=DE";
    stage.request("SIGNS", Some(name)).await.unwrap();
    let path = stage.path();
    let said = openssl(
        path,
        &["req", "-in", "kek.csr", "-verify", "-noout", "-subject"],
    );
    assert!(
        said.contains("verify OK") && said.contains("Example, Inc."),
        "{said}"
    );
    let public = openssl(path, &["req", "-in", "kek.csr", "-noout", "-pubkey"]);
    let known = std::fs::read_to_string(path.join("SIGNS.pub")).unwrap();
    assert_eq!(public.trim(), known.trim());
    // It is a KEK all the same.
    let tape = eedks(&stage.create("SIGNS").await.unwrap());
    stage.read(&tape).await.unwrap();

    // One that does not sign says so, and what to do.
    let refused = stage.request("OPENS", None).await.unwrap_err();
    assert_eq!(refused.code, EkmCode::EE31);
    for part in ["CKA_SIGN", "ekm kek cert issue", "-force_pubkey", "--sign"] {
        assert!(refused.detail.contains(part), "{refused}");
    }
    let possessed = Command::KekPossession {
        label: "OPENS".parse().unwrap(),
    };
    assert!(matches!(stage.operate(possessed).await, Ok(Reply::Keks(keks)) if keks.len() == 1));

    // The CA's answer to the request, and one for the KEK that does not sign, go beside them.
    make_ca(path);
    openssl(
        path,
        &[
            "x509",
            "-req",
            "-in",
            "kek.csr",
            "-CA",
            "ca.crt",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-days",
            "20",
            "-extfile",
            "kek.ext",
            "-out",
            "SIGNS.crt",
        ],
    );
    certify(path, "OPENS", 400);
    let chain = [
        std::fs::read(path.join("SIGNS.crt")).unwrap(),
        std::fs::read(path.join("ca.crt")).unwrap(),
    ];
    std::fs::write(path.join("chain.crt"), chain.concat()).unwrap();
    let imported = stage.import("SIGNS", "chain.crt").await.unwrap();
    assert_eq!(imported.tokens, ["main"], "{imported:?}");
    let validity = imported.kek.validity.unwrap();
    let now = time::OffsetDateTime::now_utc();
    assert!(validity.warning(now).unwrap().contains("in 19 days"));
    let imported = stage.import("OPENS", "OPENS.crt").await.unwrap();
    assert_eq!(imported.kek.validity.unwrap().warning(now), None);
    stage.read(&tape).await.unwrap();

    // A certificate of another key is not stored, and both fingerprints are told.
    let before = stage.bench.service.directory().await.unwrap();
    let refused = stage.import("SIGNS", "OPENS.crt").await.unwrap_err();
    assert_eq!(refused.code, EkmCode::EE31);
    for kek in before.keks() {
        assert!(refused.detail.contains(&kek.hash.to_string()), "{refused}");
    }
    let refused = stage.import("SIGNS", "ca.crt").await.unwrap_err();
    assert!(refused.detail.contains("keyEncipherment") || refused.detail.contains("another key"));
    // What follows the certificate must be its issuers.
    let wrong = [
        std::fs::read(path.join("SIGNS.crt")).unwrap(),
        std::fs::read(path.join("OPENS.crt")).unwrap(),
    ];
    std::fs::write(path.join("wrong.crt"), wrong.concat()).unwrap();
    let refused = stage.import("SIGNS", "wrong.crt").await.unwrap_err();
    assert!(refused.detail.contains("chain of its issuers"), "{refused}");

    // It is on the token: another PKCS#11 client sees it, once, under the KEK's label.
    certify(path, "SIGNS", 500);
    stage.import("SIGNS", "SIGNS.crt").await.unwrap();
    let listed = stage.hsm.hand(&["certificates"]);
    let mut labels: Vec<&str> = listed.lines().collect();
    labels.sort_unstable();
    assert_eq!(labels, ["OPENS", "SIGNS"], "{listed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_and_certificates_on_the_embedded_token() {
    requests_and_certificates(Kind::Embedded).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_and_certificates_on_softhsm() {
    requests_and_certificates(Kind::Softhsm).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_and_certificates_on_opencryptoki() {
    if can_be_made(Kind::Opencryptoki) {
        requests_and_certificates(Kind::Opencryptoki).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_kek_reads_and_does_not_write() {
    let stage = Stage::new(Kind::Embedded, ExpiredKeks::Refuse).await;
    for label in ["OLD", "YOUNG", "OTHER"] {
        stage.kek(label, false).await;
    }
    let old = eedks(&stage.create("OLD").await.unwrap());
    let other = eedks(&stage.create("OTHER").await.unwrap());
    let path = stage.path();
    make_ca(path);
    certify(path, "OLD", -1);
    stage.import("OLD", "OLD.crt").await.unwrap();
    // Reading and appending go on; nothing new is put under it.
    stage.read(&old).await.unwrap();
    stage.rekey(&old, "OTHER").await.unwrap();
    for refused in [
        stage.create("OLD").await.map(drop).unwrap_err(),
        stage.rekey(&other, "OLD").await.unwrap_err(),
    ] {
        assert_eq!(refused.code, EkmCode::EE31);
        for part in [
            "ended on",
            "still read",
            "ekm kek cert import OLD",
            "policy.expired_keks",
        ] {
            assert!(refused.detail.contains(part), "{refused}");
        }
    }
    // A new certificate takes its place.
    certify(path, "OLD", 30);
    stage.import("OLD", "OLD.crt").await.unwrap();
    stage.create("OLD").await.unwrap();
    // And is not given up for one that has ended.
    certify(path, "OLD", -1);
    let refused = stage.import("OLD", "OLD.crt").await.unwrap_err();
    assert!(refused.detail.contains("is good until"), "{refused}");
    stage.create("OLD").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_kek_writes_where_the_policy_says_so() {
    let stage = Stage::new(Kind::SofthsmInProcess, ExpiredKeks::Allow).await;
    stage.kek("OLD", false).await;
    make_ca(stage.path());
    certify(stage.path(), "OLD", -1);
    let imported = stage.import("OLD", "OLD.crt").await.unwrap();
    let now = time::OffsetDateTime::now_utc();
    assert!(imported.kek.validity.unwrap().fault(now).is_some());
    let tape = eedks(&stage.create("OLD").await.unwrap());
    stage.read(&tape).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_does_it_all() {
    let hsm = Hsm::new(Kind::Embedded, "command-line").await;
    let site = crate::site::Site::start(&[&hsm], "").await;
    let path = site.directory.path();
    let at = |name: &str| path.join(name).display().to_string();
    site.ekm(&["kek", "generate", "SIGNS", "--bits", "2048", "--sign"]);
    site.ekm(&["kek", "generate", "OPENS", "--bits", "2048"]);
    site.ekm(&[
        "kek",
        "csr",
        "SIGNS",
        "--subject",
        "CN=S,O=Example",
        "--out",
        &at("s.csr"),
    ]);
    openssl(path, &["req", "-in", "s.csr", "-verify", "-noout"]);
    site.ekm(&[
        "kek",
        "cert",
        "issue",
        "OPENS",
        "--ca",
        &at("tls"),
        "--days",
        "1",
        "--out",
        &at("o.crt"),
    ]);
    let said = openssl(path, &["verify", "-CAfile", "tls/ca.crt", "o.crt"]);
    assert!(said.contains("OK"), "{said}");
    site.ekm(&["kek", "cert", "import", "OPENS", &at("o.crt")]);
    let shown = site.ekm(&["kek", "show", "OPENS"]);
    assert!(
        shown.contains("valid until") && shown.contains("in 0 days"),
        "{shown}"
    );
    let listed = site.ekm(&["kek", "list"]);
    assert!(listed.contains("VALID UNTIL"), "{listed}");
    assert!(
        listed.lines().all(|line| line.chars().count() <= 100),
        "{listed}"
    );
    let records = site.ekm(&["audit", "show", "--json"]);
    for action in ["kek-csr", "kek-possession", "kek-certificate"] {
        assert!(records.contains(action), "{action}");
    }
    // And it is told of.
    let log = path.join("serve.log");
    crate::support::wait_for("alarm EKM-A12", std::time::Duration::from_secs(20), || {
        std::fs::read_to_string(&log).unwrap().contains("EKM-A12")
    });
    site.stop();
}
