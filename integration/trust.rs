//! Wrap-with-trusted, from the security officer's login to the tape.

use std::process::{Command, Output, Stdio};

use ekm::api::{Base64, CreateRequest, DriveInRequest, ResolveRequest};
use ekm::bridge::trust::Trusted;
use ekm::client::{ClientError, KeyClient};
use secrecy::ExposeSecret;
use uuid::Uuid;

use crate::several::altered;
use crate::site::Site;
use crate::support::{EKM, Hsm, Kind, TestDrive, drive, write_private};

const TRUSTED: [(&str, &str); 2] = [
    ("[data_key]", "[data_key]\nwrap_with_trusted = true"),
    ("unwrap_template = \"try\"", "unwrap_template = \"require\""),
];

/// A server over such a token, two KEKs, two drives.
struct Stage {
    hsm: Hsm,
    site: Site,
    a: TestDrive,
    b: TestDrive,
}

impl Stage {
    async fn new(kind: Kind, changes: &[(&str, &str)]) -> Self {
        let hsm = Hsm::new(kind, "trust").await;
        let site = Site::over(vec![altered(&hsm, "main", changes)], "").await;
        for label in ["KEK1", "KEK2"] {
            site.ekm(&["kek", "generate", label, "--bits", "2048"]);
        }
        site.ekm(&["kek", "default", "--kek1", "KEK1", "--kek2", "KEK2"]);
        let a = drive(site.directory.path(), 1, kind.form());
        let b = drive(site.directory.path(), 2, kind.form());
        for drive in [&a, &b] {
            site.enrol(drive).await;
        }
        Self { hsm, site, a, b }
    }

    fn so_pin(&self) -> String {
        self.hsm
            .directory
            .path()
            .join("so-pin")
            .display()
            .to_string()
    }

    fn trust(&self, arguments: &[&str]) -> Trusted {
        let so_pin = self.so_pin();
        let mut all = vec![
            "--json",
            "drive",
            "trust",
            "--yes",
            "--so-pin-file",
            &so_pin,
        ];
        all.extend(arguments);
        serde_json::from_str(&self.site.ekm(&all)).unwrap()
    }

    fn blessed(&self) -> Vec<String> {
        let listed = self.hsm.hand(&["list"]);
        let ours = |label: &&str| label.starts_with("ekm-");
        let mut labels: Vec<String> = listed.lines().filter(ours).map(str::to_owned).collect();
        labels.sort();
        labels
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

async fn write(
    client: &mut KeyClient,
    drive: &TestDrive,
) -> Result<(Vec<Base64>, [u8; 32]), String> {
    let request = CreateRequest {
        job: None,
        request_id: Uuid::new_v4(),
        drive: shown(drive),
        volser: "TRU001".parse().unwrap(),
        kek1: None,
        kek2: None,
    };
    let answer = client.create(&request).await.map_err(told)?;
    let key = *drive
        .soft
        .unwrap_sedk(&answer.sedk)
        .unwrap()
        .expose_secret();
    Ok((
        answer.eedks.into_iter().map(|eedk| eedk.eedk).collect(),
        key,
    ))
}

async fn read(
    client: &mut KeyClient,
    drive: &TestDrive,
    eedks: &[Base64],
) -> Result<[u8; 32], String> {
    let request = ResolveRequest {
        dki: None,
        request_id: Uuid::new_v4(),
        drive: shown(drive),
        volser: None,
        eedks: eedks.to_vec(),
        append: false,
    };
    let answer = client.resolve(&request).await.map_err(told)?;
    Ok(*drive
        .soft
        .unwrap_sedk(&answer.sedk)
        .unwrap()
        .expose_secret())
}

fn told(error: ClientError) -> String {
    error.to_string()
}

fn refused(site: &Site, arguments: &[&str]) -> String {
    let output: Output = Command::new(EKM)
        .arg("--config")
        .arg(site.config())
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(!output.status.success(), "{arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// From a token that refuses every drive to a tape that one drive wrote and another read, and back.
async fn a_tape_is_written_and_read_with_trusted_keys(kind: Kind, changes: &[(&str, &str)]) {
    let stage = Stage::new(kind, changes).await;
    let Stage { site, a, b, .. } = &stage;
    let mut client_a = site.client(&a.peer);
    let mut client_b = site.client(&b.peer);
    let why = write(&mut client_a, a).await.unwrap_err();
    assert!(why.contains("ekm drive trust"), "{why}");

    // Only the KEKs and one drive; the server goes on all the while.
    let serial_a = a.soft.serial().to_string();
    let done = stage.trust(&[&serial_a]);
    let drive_a = format!("ekm-drive-{serial_a}");
    assert_eq!(
        done.blessed,
        [drive_a.as_str(), "ekm-kek-KEK1", "ekm-kek-KEK2"]
    );
    let (eedks, key) = write(&mut client_a, a).await.unwrap();
    assert_eq!(eedks.len(), 2);
    assert_eq!(read(&mut client_a, a, &eedks).await.unwrap(), key);
    let why = read(&mut client_b, b, &eedks).await.unwrap_err();
    assert!(why.contains("not CKA_TRUSTED"), "{why}");

    let done = stage.trust(&["--all"]);
    let serial_b = b.soft.serial().to_string();
    let drive_b = format!("ekm-drive-{serial_b}");
    assert_eq!(done.blessed, [drive_b.as_str()]);
    assert_eq!(
        done.already,
        [drive_a.as_str(), "ekm-kek-KEK1", "ekm-kek-KEK2"]
    );
    assert_eq!(read(&mut client_b, b, &eedks).await.unwrap(), key);

    // Neither is a KEK for it.
    let listed = site.ekm(&["kek", "list"]);
    assert!(!listed.contains("ekm-"), "{listed}");

    // A drive that leaves the table, or gets another key, leaves the token.
    site.ekm(&["drive", "del", &serial_b]);
    let kept = [drive_a.as_str(), "ekm-kek-KEK1", "ekm-kek-KEK2"];
    assert_eq!(stage.blessed(), kept);
    let other = drive(site.directory.path(), 3, kind.form());
    let pem = site.directory.path().join("other.pem");
    std::fs::write(
        &pem,
        der::pem::encode_string(
            "PUBLIC KEY",
            der::pem::LineEnding::LF,
            other.soft.public_key_spki(),
        )
        .unwrap(),
    )
    .unwrap();
    let pem = pem.display().to_string();
    site.ekm(&["drive", "mod", &serial_a, "--key", &pem]);
    assert_eq!(stage.blessed(), kept[1..]);
    let actions = site.ekm(&["audit", "show", "--action", "drive-distrust", "--json"]);
    assert_eq!(
        actions.matches("\"drive-distrust\"").count(),
        2,
        "{actions}"
    );
    let actions = site.ekm(&["audit", "show", "--action", "drive-trust", "--json"]);
    assert_eq!(actions.matches("\"drive-trust\"").count(), 4, "{actions}");
    stage.site.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn trusted_keys_on_softhsm() {
    a_tape_is_written_and_read_with_trusted_keys(Kind::SofthsmInProcess, &TRUSTED).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trusted_keys_on_softhsm_behind_p11_kit() {
    a_tape_is_written_and_read_with_trusted_keys(Kind::Softhsm, &TRUSTED[..1]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_security_officers_pin_that_was_refused_is_not_sent_again() {
    let stage = Stage::new(Kind::SofthsmInProcess, &TRUSTED).await;
    let so_pin = stage.so_pin();
    let right = std::fs::read_to_string(&so_pin).unwrap();
    write_private(stage.so_pin().as_ref(), "99999999");
    let arguments = ["drive", "trust", "--yes", "--so-pin-file", &so_pin];
    let first = refused(&stage.site, &arguments);
    assert!(first.contains("CKR_PIN_INCORRECT"), "{first}");
    let second = refused(&stage.site, &arguments);
    assert!(second.contains("held back"), "{second}");
    write_private(stage.so_pin().as_ref(), right.trim());
    assert_eq!(stage.trust(&[]).blessed, ["ekm-kek-KEK1", "ekm-kek-KEK2"]);
    // The user's PIN has a ledger of its own: the server never noticed.
    stage.site.ekm(&["kek", "list"]);
    let failed = stage
        .site
        .ekm(&["audit", "show", "--action", "drive-trust", "--json"]);
    assert!(failed.contains("CKR_PIN_INCORRECT"), "{failed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_blessed_is_refused_by_name() {
    let stage = Stage::new(Kind::SofthsmInProcess, &TRUSTED).await;
    let so_pin = stage.so_pin();
    stage.site.ekm(&["drive", "add", "000000000009", "--ca"]);
    for (serial, why) in [
        ("000000000009", "another one in each session"),
        ("000000000007", "not in the drive table"),
    ] {
        let arguments = ["drive", "trust", serial, "--yes", "--so-pin-file", &so_pin];
        let said = refused(&stage.site, &arguments);
        assert!(said.contains(why), "{said}");
    }
    let arguments = ["drive", "trust", "--so-pin-file", &so_pin];
    let said = refused(&stage.site, &arguments);
    assert!(said.contains("--yes"), "{said}");
    let said = refused(&stage.site, &["kek", "generate", "ekm-drive-000000000001"]);
    assert!(said.contains("choose another"), "{said}");
    assert_eq!(stage.blessed(), [""; 0]);
}

/// openCryptoki 3.8 knows no `CKA_TRUSTED` (`CKR_TEMPLATE_INCONSISTENT`), kryoptic none on RSA keys.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_cannot_bless_says_so() {
    let hsm = Hsm::new(Kind::Embedded, "trust").await;
    let site = Site::start(&[&hsm], "").await;
    site.ekm(&["kek", "generate", "KEK1", "--bits", "2048"]);
    let so_pin = hsm.directory.path().join("so-pin").display().to_string();
    let said = refused(&site, &["drive", "trust", "--so-pin-file", &so_pin]);
    assert!(said.contains("takes no blessed keys"), "{said}");
    // Before anybody has compared fingerprints.
    assert!(!said.contains("--yes"), "{said}");
}

/// A profile that requires the template refuses a KEK without it, by the attribute's name.
#[tokio::test(flavor = "multi_thread")]
async fn a_kek_without_the_template_that_is_required_is_refused() {
    for kind in [Kind::Embedded, Kind::SofthsmInProcess] {
        let hsm = Hsm::new(kind, "required").await;
        let site = Site::over(vec![altered(&hsm, "main", &TRUSTED[1..])], "").await;
        site.ekm(&["kek", "generate", "GOOD", "--bits", "2048"]);
        let shown = site.ekm(&["kek", "show", "GOOD"]);
        let template = shown.lines().find(|line| line.contains("unwrap template"));
        let template = template.unwrap();
        assert!(template.contains("CKA_SENSITIVE=yes"), "{template}");
        let key = hsm.directory.path().join("key.der");
        std::fs::write(&key, crate::support::pkcs8_key()).unwrap();
        hsm.hand(&["import-private", "BARE", &key.display().to_string()]);
        let listed = site.ekm(&["kek", "list"]);
        assert!(
            listed.contains("BARE is refused on main: CKA_UNWRAP_TEMPLATE"),
            "{listed}"
        );
        assert!(!listed.contains("GOOD is refused"), "{listed}");
        site.stop();
    }
}
