//! What leaves us opens without us: OpenSSL's command line alone shows an
//! EEDK, opens it with the KEK's private key, and opens what is wrapped for a
//! drive with the drive's.

use std::path::Path;
use std::process::{Command, Output};

use ekm::api::{Base64, CreateAnswer, CreateRequest, DriveInRequest};
use ekm::bridge::message::Provenance;
use ekm::key::{KekRef, SedkForm};
use ekm::policy::{PeerRule, PolicyConfig};
use secrecy::ExposeSecret;
use uuid::Uuid;

use crate::support::{Bench, Hsm, Kind, TestDrive, drive};

fn run(directory: &Path, arguments: &[&str]) -> Output {
    Command::new("openssl")
        .args(arguments)
        .current_dir(directory)
        .output()
        .expect("openssl is installed (scripts/test installs it)")
}

/// What OpenSSL prints for these arguments.
fn openssl(directory: &Path, arguments: &[&str]) -> Vec<u8> {
    let output = run(directory, arguments);
    assert!(
        output.status.success(),
        "openssl {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

/// An RSA-2048 key of OpenSSL's in `kek.pem`, and for the second client in `kek.der`.
fn make_kek(directory: &Path) {
    let bits = "rsa_keygen_bits:2048";
    openssl(
        directory,
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
        directory,
        &[
            "pkcs8", "-topk8", "-nocrypt", "-in", "kek.pem", "-outform", "DER", "-out", "kek.der",
        ],
    );
}

/// A token with the KEK `ESCROW`, which OpenSSL has too, and one drive.
struct Stage {
    hsm: Hsm,
    bench: Bench,
    drive: TestDrive,
}

impl Stage {
    async fn new(kind: Kind) -> Self {
        let hsm = Hsm::new(kind, "openssl").await;
        let directory = hsm.directory.path();
        make_kek(directory);
        let kek = directory.join("kek.der");
        hsm.hand(&["import-private", "ESCROW", &kek.display().to_string()]);
        let policy = PolicyConfig {
            peers: vec![PeerRule {
                peer: "drive:*".to_owned(),
                drives: vec![],
                create_keks: vec!["*".to_owned()],
                rekey_keks: vec![],
            }],
            ..PolicyConfig::default()
        };
        let bench = Bench::new(&[&hsm], policy).await;
        let drive = drive(bench.directory.path(), 1, kind.form());
        bench.enrol(&drive).await;
        Self { hsm, bench, drive }
    }

    async fn create(&self, kek: &str) -> CreateAnswer {
        let request = CreateRequest {
            job: None,
            request_id: Uuid::new_v4(),
            drive: DriveInRequest {
                serial: self.drive.soft.serial().clone(),
                stores_eedks: true,
                public_key: Some(Base64(self.drive.soft.public_key_spki().to_vec())),
                session_key: None,
            },
            volser: "VOL001".parse().unwrap(),
            kek1: Some(kek.parse::<KekRef>().unwrap()),
            kek2: None,
        };
        let service = &self.bench.service;
        let answer = service.create(&self.drive.peer, &request).await.unwrap();
        answer.into_inner()
    }

    /// What the drive takes out of the answer.
    fn data_key(&self, answer: &CreateAnswer) -> [u8; 32] {
        let key = self.drive.soft.unwrap_sedk(&answer.sedk).unwrap();
        *key.expose_secret()
    }

    /// Puts the EEDK into `eedk.der` and has OpenSSL show it.
    fn show(&self, answer: &CreateAnswer) -> String {
        let directory = self.hsm.directory.path();
        std::fs::write(directory.join("eedk.der"), &answer.eedks[0].eedk.0).unwrap();
        let shown = openssl(
            directory,
            &["asn1parse", "-inform", "DER", "-in", "eedk.der"],
        );
        String::from_utf8(shown).unwrap()
    }

    /// Cuts the wrapped key, the last field, out of `eedk.der` into `wrapped`.
    fn cut_out_wrapped_key(&self, shown: &str) {
        let (offset, _) = shown.lines().last().unwrap().split_once(':').unwrap();
        openssl(
            self.hsm.directory.path(),
            &[
                "asn1parse",
                "-inform",
                "DER",
                "-in",
                "eedk.der",
                "-strparse",
                offset.trim(),
                "-noout",
                "-out",
                "wrapped",
            ],
        );
    }
}

/// `openssl pkeyutl -decrypt` of the file `wrapped`.
fn decrypt(directory: &Path, key: &Path, hash: &str, label: &[u8]) -> Output {
    let key = key.display().to_string();
    let options = [
        "rsa_padding_mode:oaep".to_owned(),
        format!("rsa_oaep_md:{hash}"),
        format!("rsa_mgf1_md:{hash}"),
        format!("rsa_oaep_label:{}", hex::encode(label)),
    ];
    let mut arguments = vec!["pkeyutl", "-decrypt", "-inkey", &key, "-in", "wrapped"];
    // An empty label is none: OpenSSL has no way to write it.
    for option in options.iter().take(if label.is_empty() { 3 } else { 4 }) {
        arguments.extend(["-pkeyopt", option]);
    }
    run(directory, &arguments)
}

/// The OAEP that a kind of token makes EEDKs with, as OpenSSL names it.
fn oaep(kind: Kind, dki: &[u8]) -> (&'static str, &[u8]) {
    match kind {
        Kind::Embedded | Kind::Opencryptoki | Kind::Nss => ("sha256", dki),
        Kind::Tpm2 => ("sha256", &[]),
        Kind::Softhsm | Kind::SofthsmInProcess => ("sha1", &[]),
    }
}

async fn an_eedk_shows(kind: Kind) {
    let stage = Stage::new(kind).await;
    let mut answer = stage.create("ESCROW:label").await;
    // OpenSSL shows what could be text as text.
    let text = |byte: &u8| byte.is_ascii_graphic() || b" \t\r\n".contains(byte);
    while answer.dki.as_bytes().iter().all(text) {
        answer = stage.create("ESCROW:label").await;
    }
    let shown = stage.show(&answer);
    let dki = hex::encode_upper(answer.dki.as_bytes());
    let mut expected = vec![
        ("INTEGER", ":01".to_owned()),
        ("OCTET STRING", format!("[HEX DUMP]:{dki}")),
        ("UTF8STRING", ":ESCROW".to_owned()),
        ("OBJECT", ":rsaesOaep".to_owned()),
    ];
    if kind == Kind::Embedded {
        expected.push(("OBJECT", ":sha256".to_owned()));
        expected.push(("OBJECT", ":mgf1".to_owned()));
    }
    for (tag, value) in expected {
        assert!(
            shown
                .lines()
                .any(|line| line.contains(tag) && line.ends_with(&value)),
            "no {tag} {value} in:\n{shown}"
        );
    }
    let by_hash = stage.show(&stage.create("ESCROW:hash").await);
    let hash = fingerprint(stage.hsm.directory.path());
    assert!(
        by_hash.contains(&format!("[HEX DUMP]:{hash}")),
        "no {hash} in:\n{by_hash}"
    );
}

/// SHA-256 over the KEK's `SubjectPublicKeyInfo`, by OpenSSL.
fn fingerprint(directory: &Path) -> String {
    openssl(
        directory,
        &[
            "pkey", "-in", "kek.pem", "-pubout", "-outform", "DER", "-out", "kek.pub",
        ],
    );
    let printed = openssl(directory, &["dgst", "-sha256", "-r", "kek.pub"]);
    let printed = String::from_utf8(printed).unwrap();
    printed
        .split_whitespace()
        .next()
        .unwrap()
        .to_ascii_uppercase()
}

#[tokio::test(flavor = "multi_thread")]
async fn openssl_shows_an_eedk_of_the_embedded_token() {
    an_eedk_shows(Kind::Embedded).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn openssl_shows_an_eedk_of_softhsm() {
    an_eedk_shows(Kind::Softhsm).await;
}

async fn an_eedk_opens_with_the_private_key_alone(kind: Kind) {
    let stage = Stage::new(kind).await;
    let directory = stage.hsm.directory.path();
    let known = stage.bench.service.directory().await.unwrap();
    let kek = known.by_label(&"ESCROW".parse().unwrap()).unwrap();
    assert_eq!(kek.provenance, Some(Provenance::Imported));
    for encoding in ["ESCROW:label", "ESCROW:hash"] {
        let answer = stage.create(encoding).await;
        stage.cut_out_wrapped_key(&stage.show(&answer));
        let (hash, label) = oaep(kind, answer.dki.as_bytes());
        let opened = decrypt(directory, &directory.join("kek.pem"), hash, label);
        assert!(
            opened.status.success(),
            "{}",
            String::from_utf8_lossy(&opened.stderr)
        );
        assert_eq!(opened.stdout, stage.data_key(&answer), "{encoding}");
        // The label is part of the wrap: under another it does not open.
        let other = decrypt(directory, &directory.join("kek.pem"), hash, b"other");
        assert!(!other.status.success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_eedk_of_the_embedded_token_opens_with_openssl_alone() {
    an_eedk_opens_with_the_private_key_alone(Kind::Embedded).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_eedk_of_softhsm_opens_with_openssl_alone() {
    an_eedk_opens_with_the_private_key_alone(Kind::Softhsm).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_t10_key_field_opens_with_the_drives_key_and_openssl_alone() {
    let stage = Stage::new(Kind::Embedded).await;
    let answer = stage.create("ESCROW").await;
    assert_eq!(answer.sedk.form(), SedkForm::T10Wrapped);
    let field = answer.sedk.bytes().expose_secret();
    // Parameter set, label length | descriptors: who the drive is, and 0100h | length | wrapped key.
    let label = [
        &[0x00, 0, 0, 8][..],
        stage.drive.soft.wwn().as_bytes(),
        &[0x04, 0, 0, 2, 1, 0],
    ]
    .concat();
    assert_eq!(field[..4], [0, 0, 0, 18]);
    assert_eq!(field[4..22], label);
    assert_eq!(field[22..24], [1, 0]);
    assert_eq!(field[280..], [0, 0]);
    let directory = stage.hsm.directory.path();
    std::fs::write(directory.join("wrapped"), &field[24..280]).unwrap();
    let key = stage.bench.directory.path().join("drive1/wrapping.key");
    let opened = decrypt(directory, &key, "sha256", &label);
    assert!(
        opened.status.success(),
        "{}",
        String::from_utf8_lossy(&opened.stderr)
    );
    assert_eq!(opened.stdout, stage.data_key(&answer));
    // For another drive it was never wrapped.
    let mut other = label;
    other[4] ^= 1;
    assert!(!decrypt(directory, &key, "sha256", &other).status.success());
}
