//! Business partners: a cartridge with one EEDK for us and one for them, and a row that nobody
//! changes unnoticed.

use std::path::Path;
use std::process::{Command as Process, Stdio};
use std::time::Duration;

use ekm::admin::{self, Command, Offered, PartnerSeen, Reply, VolumeFilter};
use ekm::api::{CreateAnswer, CreateRequest, DriveInRequest, ResolveRequest};
use ekm::certificates::{Certificate, spelled};
use ekm::key::{KekHash, KekRef};
use ekm::keystore::Custody;
use ekm::policy::{PeerRule, PolicyConfig};
use ekm::problem::{EkmCode, Problem};
use secrecy::ExposeSecret;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool};
use uuid::Uuid;

use crate::certificates::{certify, make_ca, openssl, write_public};
use crate::site::Site;
use crate::support::{Bench, EKM, Hsm, Kind, TestDrive, drive, wait_for};
use crate::tokens::can_be_made;

/// Lets drives name KEKs.
const GENEROUS: &str = r#"
[policy]
[[policy.peers]]
peer = "drive:*"
create_keks = ["*"]
"#;

fn generous() -> PolicyConfig {
    PolicyConfig {
        peers: vec![PeerRule {
            peer: "drive:*".to_owned(),
            drives: vec![],
            create_keks: vec!["*".to_owned()],
            rekey_keks: vec![],
        }],
        ..PolicyConfig::default()
    }
}

fn shown(drive: &TestDrive) -> DriveInRequest {
    DriveInRequest {
        serial: drive.soft.serial().clone(),
        stores_eedks: true,
        public_key: None,
        session_key: None,
    }
}

fn create(drive: &TestDrive, keks: &[&str]) -> CreateRequest {
    let mut keks = keks.iter().map(|kek| kek.parse::<KekRef>().unwrap());
    CreateRequest {
        job: None,
        request_id: Uuid::new_v4(),
        drive: shown(drive),
        volser: "PART01".parse().unwrap(),
        kek1: keks.next(),
        kek2: keks.next(),
    }
}

fn resolve(drive: &TestDrive, tape: &CreateAnswer, append: bool) -> ResolveRequest {
    ResolveRequest {
        dki: None,
        request_id: Uuid::new_v4(),
        drive: shown(drive),
        volser: None,
        eedks: tape.eedks.iter().map(|eedk| eedk.eedk.clone()).collect(),
        append,
    }
}

fn data_key(drive: &TestDrive, sedk: &ekm::key::Sedk) -> [u8; 32] {
    *drive.soft.unwrap_sedk(sedk).unwrap().expose_secret()
}

fn fingerprint(path: &Path) -> String {
    let chain = ekm::certificates::from_file(path).unwrap();
    spelled(&Certificate::read(&chain[0]).unwrap().fingerprint())
}

/// Two sites with a server, a token and a state each. They have one label for different keys, and
/// different labels for one key.
async fn two_sites_exchange_a_cartridge(kind: Kind) {
    let (one, two) = (
        Hsm::new(kind, "site-a").await,
        Hsm::new(kind, "site-b").await,
    );
    let a = Site::start(&[&one], GENEROUS).await;
    let b = Site::start(&[&two], GENEROUS).await;
    let here = |site: &Site, name: &str| site.directory.path().join(name).display().to_string();
    for site in [&a, &b] {
        site.ekm(&["kek", "generate", "OUR-2026", "--bits", "2048"]);
    }
    // B's key goes to A in a certificate.
    b.ekm(&[
        "kek",
        "cert",
        "issue",
        "OUR-2026",
        "--ca",
        &here(&b, "tls"),
        "--days",
        "1",
        "--out",
        &here(&b, "b.crt"),
    ]);
    let told = fingerprint(&b.directory.path().join("b.crt"));
    let added = a.ekm(&[
        "kek",
        "partner",
        "add",
        "PARTNER-B",
        &here(&b, "b.crt"),
        "--ca",
        &here(&b, "tls/ca.crt"),
        "--fingerprint",
        &told,
    ]);
    assert!(
        added.contains("PARTNER-B:hash") && added.contains("good"),
        "{added}"
    );
    let listed = a.ekm(&["kek", "list"]);
    assert!(listed.contains("partner"), "{listed}");
    a.ekm(&[
        "kek",
        "default",
        "--kek1",
        "OUR-2026",
        "--kek2",
        "PARTNER-B:hash",
    ]);

    let (at_a, at_b) = (
        drive(a.directory.path(), 1, kind.form()),
        drive(b.directory.path(), 2, kind.form()),
    );
    a.enrol(&at_a).await;
    b.enrol(&at_b).await;
    let (mut drive_a, mut drive_b) = (a.client(&at_a.peer), b.client(&at_b.peer));

    // By the defaults: ours by label, the partner's by hash.
    let tape = drive_a.create(&create(&at_a, &[])).await.unwrap();
    assert_eq!(tape.eedks.len(), 2);
    let key = data_key(&at_a, &tape.sedk);
    let read = drive_a.resolve(&resolve(&at_a, &tape, true)).await.unwrap();
    assert_eq!(data_key(&at_a, &read.sedk), key);
    // B has another key under the label of the first EEDK, and its own under the hash of the second.
    let read = drive_b
        .resolve(&resolve(&at_b, &tape, false))
        .await
        .unwrap();
    assert_eq!(data_key(&at_b, &read.sedk), key);
    // B's history has no row of it, and its key is needed all the same.
    b.ekm(&["kek", "retire", "OUR-2026"]);
    let told = b.ekm(&["kek", "impact", "OUR-2026", "--json"]);
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["volumes"], 0, "{told}");
    let why = told["elsewhere"].as_str().unwrap();
    assert!(why.contains("were not issued here"), "{told}");
    let delete = |more: &[&str]| {
        let mut words = vec!["kek", "delete", "OUR-2026", "--destroy"];
        words.extend(more);
        Process::new(EKM)
            .arg("--config")
            .arg(b.config())
            .args(words)
            .output()
            .unwrap()
    };
    let refused = delete(&[]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("--tapes-elsewhere"), "{said}");
    b.ekm(&["kek", "activate", "OUR-2026"]);
    // It was not issued at B, so B appends nothing.
    let refused = drive_b
        .resolve(&resolve(&at_b, &tape, true))
        .await
        .unwrap_err();
    assert!(
        refused.to_string().contains("nothing is appended"),
        "{refused}"
    );

    // By label B cannot find its key: it does not call it so.
    let tape = drive_a
        .create(&create(&at_a, &["OUR-2026", "PARTNER-B:label"]))
        .await
        .unwrap();
    let refused = drive_b
        .resolve(&resolve(&at_b, &tape, false))
        .await
        .unwrap_err();
    let refused = refused.to_string();
    assert!(
        refused.contains("EE32") && refused.contains("PARTNER-B"),
        "{refused}"
    );

    // Nobody here could read a cartridge for the partner alone.
    let refused = drive_a
        .create(&create(&at_a, &["PARTNER-B:hash"]))
        .await
        .unwrap_err();
    assert!(
        refused.to_string().contains("nobody here could read"),
        "{refused}"
    );

    let shown = a.ekm(&["volume", "list"]);
    assert!(shown.contains("unproved"), "{shown}");
    let records = a.ekm(&["audit", "show", "--json"]);
    assert!(
        records.contains("partner's KEK, whose seal was verified"),
        "{records}"
    );
    for site in [a, b] {
        site.ekm(&["audit", "verify"]);
        site.stop();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_sites_with_embedded_tokens_exchange_a_cartridge() {
    two_sites_exchange_a_cartridge(Kind::Embedded).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_sites_with_softhsms_exchange_a_cartridge() {
    two_sites_exchange_a_cartridge(Kind::SofthsmInProcess).await;
}

/// A service with a KEK and a drive, and partners that OpenSSL made.
struct Stage {
    hsm: Hsm,
    bench: Bench,
    drive: TestDrive,
}

impl Stage {
    async fn new(kind: Kind) -> Self {
        let hsm = Hsm::new(kind, "partner").await;
        let bench = Bench::new(&[&hsm], generous()).await;
        bench.kek("OURS", "main", kind.custody()).await;
        let mut drive = drive(bench.directory.path(), 1, kind.form());
        drive.row.custody = kind.custody();
        bench.enrol(&drive).await;
        make_ca(bench.directory.path());
        Self { hsm, bench, drive }
    }

    fn path(&self) -> &Path {
        self.bench.directory.path()
    }

    /// A partner's certificate, by the CA; `NAME.crt`.
    fn partner(&self, name: &str, days: i64) {
        let (key, public) = (format!("{name}.key"), format!("{name}.pub"));
        openssl(
            self.path(),
            &[
                "genpkey",
                "-algorithm",
                "RSA",
                "-pkeyopt",
                "rsa_keygen_bits:2048",
                "-out",
                &key,
            ],
        );
        openssl(
            self.path(),
            &["pkey", "-in", &key, "-pubout", "-out", &public],
        );
        certify(self.path(), name, days);
    }

    async fn operate(&self, command: Command) -> Result<Reply, Problem> {
        admin::execute(&self.bench.service, "operator:test", command).await
    }

    fn offered(&self, name: &str, ca: bool) -> Offered {
        let read = |name: &str| ekm::certificates::from_file(&self.path().join(name)).unwrap();
        Offered {
            certificate: read(&format!("{name}.crt")).remove(0),
            between: Vec::new(),
            cas: ca.then(|| read("ca.crt")),
        }
    }

    async fn add(&self, label: &str, name: &str) -> Result<Reply, Problem> {
        self.add_by(label, self.offered(name, true)).await
    }

    async fn add_by(&self, label: &str, offered: Offered) -> Result<Reply, Problem> {
        use sha2::{Digest, Sha256};
        let fingerprint = spelled(&Sha256::digest(&offered.certificate));
        self.operate(Command::PartnerAdd {
            label: label.parse().unwrap(),
            offered: Box::new(offered),
            fingerprint,
        })
        .await
    }

    async fn list(&self) -> Vec<PartnerSeen> {
        match self.operate(Command::PartnerList).await.unwrap() {
            Reply::Partners(partners) => partners,
            other => panic!("{other:?}"),
        }
    }

    async fn create(&self, partner: &str) -> Result<CreateAnswer, Problem> {
        let request = create(&self.drive, &["OURS", &format!("{partner}:hash")]);
        let answer = self
            .bench
            .service
            .create(&self.drive.peer, &request)
            .await?;
        Ok(answer.into_inner())
    }

    /// Someone who can write the database, and has nothing else.
    async fn tamper(&self) -> SqlitePool {
        let file = self.bench.config.state.join("state.db");
        SqlitePool::connect_with(SqliteConnectOptions::new().filename(file))
            .await
            .unwrap()
    }
}

/// What another process changed counts after a second.
async fn noticed() {
    tokio::time::sleep(Duration::from_millis(1_200)).await;
}

async fn run(pool: &SqlitePool, sql: &'static str) {
    assert!(
        sqlx::query(sql)
            .execute(pool)
            .await
            .unwrap()
            .rows_affected()
            > 0,
        "{sql}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_was_changed_in_the_database_is_refused() {
    let stage = Stage::new(Kind::Embedded).await;
    for name in ["GOOD", "OTHER", "EVIL"] {
        stage.partner(name, 90);
    }
    stage.add("GOOD", "GOOD").await.unwrap();
    stage.add("OTHER", "OTHER").await.unwrap();
    stage.create("GOOD").await.unwrap();

    // He has a key pair and a certificate of the same CA, and puts them in the partner's place.
    let evil = stage.offered("EVIL", true).certificate;
    let evil = Certificate::read(&evil).unwrap();
    let pool = stage.tamper().await;
    let keep = "CREATE TABLE kept AS SELECT * FROM partners";
    sqlx::query(keep).execute(&pool).await.unwrap();
    let swap = async || {
        sqlx::query(
            "UPDATE partners SET spki = ?1, hash = ?2, certificate = ?3 WHERE label = 'GOOD'",
        )
        .bind(&evil.spki)
        .bind(KekHash::of_spki(&evil.spki).to_string())
        .bind(&evil.der)
        .execute(&pool)
        .await
        .unwrap();
    };
    let refused = async |what: &str| {
        noticed().await;
        let problem = stage.create("GOOD").await.unwrap_err();
        assert_eq!(problem.code, EkmCode::EE31, "{what}: {problem}");
        assert!(problem.detail.contains("seal"), "{what}: {problem}");
        let broken = stage.bench.service.broken_seals();
        assert_eq!(broken.len(), 1, "{what}: {broken:?}");
        let listed = stage.list().await;
        assert!(
            listed[0].seal.starts_with("DOES NOT VERIFY"),
            "{what}: {listed:?}"
        );
    };
    swap().await;
    refused("his own key").await;
    run(
        &pool,
        "UPDATE partners SET seals = (SELECT seals FROM partners WHERE label = 'OTHER') WHERE label = 'GOOD'",
    )
    .await;
    refused("another row's seal").await;
    run(
        &pool,
        "UPDATE partners SET seals = '[]' WHERE label = 'GOOD'",
    )
    .await;
    refused("no seal").await;
    // The other partner's row is as it was.
    stage.create("OTHER").await.unwrap();

    // As it was sealed it is good again.
    run(&pool, "DELETE FROM partners WHERE label = 'GOOD'").await;
    run(
        &pool,
        "INSERT INTO partners SELECT * FROM kept WHERE label = 'GOOD'",
    )
    .await;
    noticed().await;
    stage.create("GOOD").await.unwrap();
    assert!(
        stage
            .list()
            .await
            .iter()
            .all(|partner| partner.seal == "good")
    );

    // A row that was removed does not come back: the key of its seal is gone.
    let removed = stage
        .operate(Command::PartnerRemove {
            label: "GOOD".parse().unwrap(),
        })
        .await
        .unwrap();
    let Reply::Removed(removed) = removed else {
        panic!("{removed:?}")
    };
    assert!(
        removed.seals_left.is_empty() && removed.named_by.is_empty(),
        "{removed:?}"
    );
    let unknown = stage.create("GOOD").await.unwrap_err();
    assert!(
        unknown.detail.contains("no token has a KEK labelled GOOD"),
        "{unknown}"
    );
    run(
        &pool,
        "INSERT INTO partners SELECT * FROM kept WHERE label = 'GOOD'",
    )
    .await;
    refused("a row that was removed").await;
    pool.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_row_raises_an_alarm_of_its_own() {
    let hsm = Hsm::new(Kind::SofthsmInProcess, "alarm").await;
    let site = Site::start(&[&hsm], "").await;
    let path = site.directory.path();
    make_ca(path);
    openssl(
        path,
        &[
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "p.key", "-out", "p.crt",
            "-subj", "/CN=P",
        ],
    );
    let certificate = path.join("p.crt");
    let added = site.ekm(&[
        "kek",
        "partner",
        "add",
        "P",
        &certificate.display().to_string(),
        "--fingerprint",
        &fingerprint(&certificate),
    ]);
    assert!(added.contains("self-signed"), "{added}");
    let file = path.join("state/state.db");
    let pool = SqlitePool::connect_with(SqliteConnectOptions::new().filename(file))
        .await
        .unwrap();
    run(
        &pool,
        "UPDATE partners SET operator = 'operator:someone else'",
    )
    .await;
    pool.close().await;
    let log = path.join("serve.log");
    wait_for("alarm EKM-A13", Duration::from_secs(20), || {
        std::fs::read_to_string(&log).unwrap().contains("EKM-A13")
    });
    site.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_partners_key_is_refused() {
    let stage = Stage::new(Kind::Embedded).await;
    stage.partner("PARTNER", 90);
    stage.partner("ENDED", -1);
    let why = |outcome: Result<Reply, Problem>| {
        let problem = outcome.unwrap_err();
        assert_eq!(problem.code, EkmCode::EE31, "{problem}");
        problem.detail
    };
    // The fingerprint must be the certificate's.
    let offered = stage.offered("PARTNER", true);
    let detail = why(stage
        .operate(Command::PartnerAdd {
            label: "P".parse().unwrap(),
            offered: Box::new(offered.clone()),
            fingerprint: "00".repeat(32),
        })
        .await);
    let right = spelled(
        &Certificate::read(&offered.certificate)
            .unwrap()
            .fingerprint(),
    );
    assert!(detail.contains(&right), "{detail}");
    // Somebody must vouch for it, and it must be good.
    let detail = why(stage.add_by("P", stage.offered("PARTNER", false)).await);
    assert!(detail.contains("--ca FILE"), "{detail}");
    let detail = why(stage.add("P", "ENDED").await);
    assert!(detail.contains("ended on"), "{detail}");
    // Labels and keys are told apart.
    let detail = why(stage.add("ours", "PARTNER").await);
    assert!(detail.contains("label is taken"), "{detail}");
    let directory = stage.bench.service.directory().await.unwrap();
    let ours = directory.by_label(&"OURS".parse().unwrap()).unwrap();
    write_public(stage.path(), "MINE", &ours.spki);
    certify(stage.path(), "MINE", 90);
    let detail = why(stage.add("P", "MINE").await);
    assert!(detail.contains("private half is here"), "{detail}");
    stage.add("P", "PARTNER").await.unwrap();
    let detail = why(stage.add("Q", "PARTNER").await);
    assert!(detail.contains("the partner's KEK P already"), "{detail}");
    // A KEK is not made under a partner's label.
    let made = stage.bench.try_kek("p", "main", 2048, Custody::Token).await;
    assert!(made.unwrap_err().detail.contains("a partner's"));
    // Nothing is stored without somebody's word.
    let certificate = stage.path().join("PARTNER.crt");
    let output = Process::new(EKM)
        .args(["kek", "partner", "add", "R"])
        .arg(&certificate)
        .arg("--ca")
        .arg(stage.path().join("ca.crt"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && said.contains("--fingerprint"),
        "{said}"
    );
    assert_eq!(stage.list().await.len(), 1);
}

/// Which tokens seal.
async fn seals(kind: Kind) {
    let stage = Stage::new(kind).await;
    stage.partner("PARTNER", 90);
    stage.add("P", "PARTNER").await.unwrap();
    stage.create("P").await.unwrap();
    // The seal's key is the token's, and cannot be had.
    let listed = stage.hsm.hand(&["list"]);
    assert!(listed.contains("ekm-seal"), "{listed}");
    let removed = stage.operate(Command::PartnerRemove {
        label: "P".parse().unwrap(),
    });
    removed.await.unwrap();
    let listed = stage.hsm.hand(&["list"]);
    assert!(!listed.contains("ekm-seal"), "{listed}");
    // What went to them is found all the same.
    let filter = VolumeFilter {
        kek: Some("p".parse().unwrap()),
        ..VolumeFilter::default()
    };
    let found = stage
        .operate(Command::VolumeFind { filter, limit: 9 })
        .await;
    let Reply::Found(found) = found.unwrap() else {
        panic!("nothing found");
    };
    assert_eq!(found.volumes.len(), 1, "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_embedded_token_seals() {
    seals(Kind::Embedded).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn softhsm_seals() {
    seals(Kind::Softhsm).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn opencryptoki_seals() {
    if can_be_made(Kind::Opencryptoki) {
        seals(Kind::Opencryptoki).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nss_seals() {
    if can_be_made(Kind::Nss) {
        seals(Kind::Nss).await;
    }
}
