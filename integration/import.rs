//! Keys from outside: `ekm kek import` moves them into real tokens, from where
//! they open what was made for them outside, and can be got out no more.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use ekm::api::{Base64, DriveInRequest, ResolveRequest};
use ekm::audit::Outcome;
use ekm::key::{DataKeyId, Eedk, KekId, OaepHash, SedkForm, WrapAlgorithm};
use ekm::policy::PolicyConfig;
use secrecy::ExposeSecret;
use serde_json::Value;
use tempfile::TempDir;
use uuid::Uuid;

use crate::faulty::{Fault, Faulty};
use crate::site::{Site, certify, configure};
use crate::support::{Bench, Hsm, Kind, TestDrive, drive, write_private};
use crate::tokens::can_be_made;

/// Password of every file here that has one.
pub(crate) const PASSWORD: &str = "file-word";

/// A data key that somebody outside wrapped.
pub(crate) const DATA_KEY: [u8; 32] = *b"a data key that was made outside";

/// A site without a server, and files with keys.
pub(crate) struct Desk {
    pub(crate) hsm: Hsm,
    pub(crate) directory: TempDir,
}

impl Desk {
    pub(crate) async fn new(kind: Kind, label: &str) -> Self {
        let hsm = Hsm::new(kind, label).await;
        let config = hsm.config("main");
        Self::over(hsm, config)
    }

    fn over(hsm: Hsm, config: ekm::config::TokenConfig) -> Self {
        let directory = tempfile::tempdir().unwrap();
        certify(&directory.path().join("tls"));
        configure(&directory.path().join("ekm.toml"), &[config], "");
        write_private(&directory.path().join("word"), PASSWORD);
        write_private(&directory.path().join("wrong"), "no-such-word");
        Self { hsm, directory }
    }

    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.at(name).display().to_string()
    }

    /// What OpenSSL prints for these arguments.
    pub(crate) fn openssl(&self, arguments: &[&str]) -> Vec<u8> {
        openssl(self.directory.path(), arguments)
    }

    /// An RSA key as `NAME.pem`, its public half as `NAME.pub`, and with a certificate in
    /// `NAME.p12`.
    pub(crate) fn key(&self, name: &str, bits: u32) {
        key(self.directory.path(), name, bits);
    }

    /// The program in this directory, started where the token is.
    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(self.hsm.surroundings.program())
            .arg("--config")
            .arg(self.at("ekm.toml"))
            .args(arguments)
            .current_dir(self.directory.path())
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    pub(crate) fn done(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", said(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn refused(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let text = said(&output);
        assert!(!output.status.success(), "{arguments:?}: {text}");
        text
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let mut with = arguments.to_vec();
        with.push("--json");
        serde_json::from_str(&self.done(&with)).unwrap()
    }

    /// Labels of the objects on the token, as another client sees them.
    fn objects(&self) -> usize {
        self.hsm.hand(&["list"]).lines().count()
    }

    /// The records of an action, as outcome and detail.
    pub(crate) fn records(&self, action: &str) -> Vec<(Outcome, String)> {
        records(&self.at("audit"), action)
    }
}

fn said(output: &Output) -> String {
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    for secret in [PASSWORD, "no-such-word", "PRIVATE KEY"] {
        assert!(!text.contains(secret), "a secret is shown: {text}");
    }
    assert!(!text.contains("panicked"), "{text}");
    text
}

pub(crate) fn openssl(directory: &Path, arguments: &[&str]) -> Vec<u8> {
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

fn key(directory: &Path, name: &str, bits: u32) {
    let (pem, public) = (format!("{name}.pem"), format!("{name}.pub"));
    let (certificate, p12) = (format!("{name}.crt"), format!("{name}.p12"));
    let size = format!("rsa_keygen_bits:{bits}");
    let subject = format!("/CN={name}");
    let password = format!("pass:{PASSWORD}");
    for arguments in [
        vec![
            "genpkey",
            "-algorithm",
            "RSA",
            "-pkeyopt",
            &size,
            "-out",
            &pem,
        ],
        vec!["pkey", "-in", &pem, "-pubout", "-out", &public],
        vec![
            "req",
            "-x509",
            "-key",
            &pem,
            "-subj",
            &subject,
            "-out",
            &certificate,
        ],
        vec![
            "pkcs12",
            "-export",
            "-inkey",
            &pem,
            "-in",
            &certificate,
            "-name",
            name,
            "-out",
            &p12,
            "-passout",
            &password,
        ],
    ] {
        openssl(directory, &arguments);
    }
}

pub(crate) fn records(audit: &Path, action: &str) -> Vec<(Outcome, String)> {
    ekm::audit::read(audit)
        .unwrap()
        .map(|record| record.unwrap().event)
        .filter(|event| event.action == action)
        .map(|event| (event.outcome, event.detail.unwrap_or_default()))
        .collect()
}

/// An EEDK that names its KEK by label, made by OpenSSL under the public key in a file, with the
/// hash that the token opens.
pub(crate) fn eedk(directory: &Path, public: &str, label: &str, kind: Kind) -> Vec<u8> {
    let (hash, name) = match kind {
        Kind::Softhsm | Kind::SofthsmInProcess => (OaepHash::Sha1, "sha1"),
        Kind::Embedded | Kind::Opencryptoki | Kind::Nss | Kind::Tpm2 => {
            (OaepHash::Sha256, "sha256")
        }
    };
    std::fs::write(directory.join("dk"), DATA_KEY).unwrap();
    let (md, mgf) = (format!("rsa_oaep_md:{name}"), format!("rsa_mgf1_md:{name}"));
    let wrapped = openssl(
        directory,
        &[
            "pkeyutl",
            "-encrypt",
            "-pubin",
            "-inkey",
            public,
            "-in",
            "dk",
            "-pkeyopt",
            "rsa_padding_mode:oaep",
            "-pkeyopt",
            &md,
            "-pkeyopt",
            &mgf,
        ],
    );
    let algorithm = WrapAlgorithm::oaep(hash, false);
    let kek = KekId::Label(label.parse().unwrap());
    Eedk::new(DataKeyId::from_random([5; 9]), kek, algorithm, wrapped)
        .unwrap()
        .encode()
}

pub(crate) fn request(drive: &TestDrive, eedk: Vec<u8>) -> ResolveRequest {
    ResolveRequest {
        dki: None,
        request_id: Uuid::new_v4(),
        drive: DriveInRequest {
            serial: drive.soft.serial().clone(),
            stores_eedks: true,
            public_key: Some(Base64(drive.soft.public_key_spki().to_vec())),
            session_key: None,
        },
        volser: None,
        eedks: vec![Base64(eedk)],
        append: false,
    }
}

/// The second client reads nothing of the key and cannot wrap it.
pub(crate) fn cannot_be_got_out(hsm: &Hsm, label: &str) {
    let tries = hsm.hand(&["get-out", label]);
    let (reads, wraps): (Vec<&str>, Vec<&str>) =
        tries.lines().partition(|line| line.starts_with("read"));
    assert_eq!(reads.len(), 2, "{tries}");
    assert!(
        reads.iter().all(|line| line.ends_with("Sensitive)")),
        "{tries}"
    );
    assert!(!tries.contains("bytes, another"), "{tries}");
    // What is refused for another reason than the key proves nothing; p11-kit passes none of it on.
    let for_itself = |line: &&str| {
        // Kryoptic says the latter.
        let about_it =
            line.contains("KeyUnextractable") || line.contains("KeyFunctionNotPermitted");
        about_it && line.ends_with("bytes")
    };
    assert!(
        hsm.kind == Kind::Softhsm || wraps.iter().any(for_itself),
        "{tries}"
    );
}

/// Imports two keys, of PEM and PKCS#12, and has each open what was wrapped for it outside.
async fn import_and_resolve(kind: Kind, transport: &str) {
    if !can_be_made(kind) {
        return;
    }
    let desk = Desk::new(kind, "import").await;
    desk.key("old", 2048);
    desk.key("new", 3072);
    // Where a token has a namespace of its own, a program there begins in another directory.
    let (old, new, word) = (
        desk.path("old.pem"),
        desk.path("new.p12"),
        desk.path("word"),
    );
    let text = desk.done(&["kek", "import", &old, "--label", "OLD"]);
    for wanted in [
        "imported",
        transport,
        "still holds it",
        "shred",
        "2048 bits",
    ] {
        assert!(text.contains(wanted), "no {wanted:?} in {text}");
    }
    let arguments = ["kek", "import", &new, "--password-file", &word];
    let report = desk.json(&arguments);
    let way = match transport {
        "C_CreateObject" => "created",
        mechanism => mechanism,
    };
    let told = report["transport"].to_string();
    assert!(told.contains(way), "{told}");
    assert_eq!(report["kek"]["label"], "new");
    let der = openssl(
        desk.directory.path(),
        &["x509", "-in", "new.crt", "-outform", "DER"],
    );
    let certificate: Base64 = serde_json::from_value(report["kek"]["certificate"].clone()).unwrap();
    assert_eq!(certificate.0, der);
    for label in ["OLD", "new"] {
        cannot_be_got_out(&desk.hsm, label);
    }
    // Nothing else was left: a private and a public half each, and a certificate.
    assert_eq!(desk.objects(), 5);
    let again = desk.done(&arguments);
    assert!(again.contains("has this key already, as new"), "{again}");
    assert_eq!(desk.objects(), 5);
    let records = desk.records("kek-import");
    let outcomes: Vec<Outcome> = records.iter().map(|(outcome, _)| *outcome).collect();
    let each = [Outcome::Intent, Outcome::Success];
    assert_eq!(outcomes, [each, each].concat());
    let last = &records.last().unwrap().1;
    assert!(
        last.contains("new.p12") && last.contains(transport),
        "{last}"
    );

    let bench = Bench::new(&[&desk.hsm], PolicyConfig::default()).await;
    let drive = drive(bench.directory.path(), 1, kind.form());
    bench.enrol(&drive).await;
    for (name, label) in [("old.pub", "OLD"), ("new.pub", "NEW")] {
        let eedk = eedk(desk.directory.path(), name, label, kind);
        let answer = bench
            .service
            .resolve(&drive.peer, &request(&drive, eedk))
            .await;
        let answer = answer.unwrap().into_inner();
        let key = drive.soft.unwrap_sedk(&answer.sedk).unwrap();
        assert_eq!(*key.expose_secret(), DATA_KEY, "{label}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_go_into_the_embedded_token_wrapped() {
    import_and_resolve(Kind::Embedded, "CKM_AES_KEY_WRAP_KWP").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_go_into_softhsm_wrapped() {
    import_and_resolve(Kind::SofthsmInProcess, "CKM_AES_KEY_WRAP_PAD").await;
}

/// p11-kit's client passes on no mechanism that wraps with padding.
#[tokio::test(flavor = "multi_thread")]
async fn keys_go_into_softhsm_behind_p11_kit_by_create_object() {
    import_and_resolve(Kind::Softhsm, "C_CreateObject").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_go_into_opencryptoki() {
    import_and_resolve(Kind::Opencryptoki, "C_CreateObject").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_runs_sees_the_key_and_never_has_it() {
    let hsm = Hsm::new(Kind::SofthsmInProcess, "import").await;
    let site = Site::start(&[&hsm], "").await;
    let directory = site.directory.path();
    key(directory, "kek", 2048);
    write_private(&directory.join("word"), PASSWORD);
    let path = |name: &str| directory.join(name).display().to_string();
    let text = site.ekm(&[
        "kek",
        "import",
        &path("kek.p12"),
        "--password-file",
        &path("word"),
    ]);
    assert!(!text.contains("restart it"), "{text}");
    let listed = site.ekm(&["kek", "show", "KEK", "--json"]);
    let listed: Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed[0]["registered"], true, "{listed}");
    assert_eq!(listed[0]["provenance"], "imported", "{listed}");
    let drive = drive(directory, 1, SedkForm::RsaOaepSha1);
    site.enrol(&drive).await;
    let eedk = eedk(directory, "kek.pub", "kek", hsm.kind);
    let mut client = site.client(&drive.peer);
    let answer = client.resolve(&request(&drive, eedk)).await.unwrap();
    let key = drive.soft.unwrap_sedk(&answer.sedk).unwrap();
    assert_eq!(*key.expose_secret(), DATA_KEY);
    // Another key under the label, and the same one under another: each as it says.
    self::key(directory, "other", 2048);
    let refused = Command::new(crate::support::EKM)
        .arg("--config")
        .arg(site.config())
        .args(["kek", "import", &path("other.pem"), "--label", "Kek"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = said(&refused);
    assert!(
        !refused.status.success() && text.contains("taken by another key"),
        "{text}"
    );
    let text = site.ekm(&["kek", "import", &path("kek.pem"), "--label", "SAME"]);
    assert!(text.contains("already, as kek"), "{text}");
    assert_eq!(hsm.hand(&["list"]).lines().count(), 3);
    // Intent and outcome, and the refusal.
    assert_eq!(records(&directory.join("audit"), "kek-import").len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_imported_is_said_and_changes_nothing() {
    let desk = Desk::new(Kind::SofthsmInProcess, "import").await;
    desk.key("one", 2048);
    desk.key("small", 1024);
    let word = ["--password-file", "word"];
    let long = "x".repeat(65);
    let cases: &[(&[&str], &[&str])] = &[
        (&["one.pem"], &["does not name its key", "--label"]),
        (
            &["one.p12", "--password-file", "wrong"],
            &["one.p12", "password"],
        ),
        (
            &["one.p12", word[0], word[1], "--alias", "two"],
            &["no alias two", "one"],
        ),
        (
            &["one.p12", word[0], word[1], "--token", "nowhere"],
            &["no token nowhere", "main"],
        ),
        (&["one.p12", word[0], "none"], &["none"]),
        (&["none.p12", word[0], word[1]], &["none.p12"]),
        (&["one.crt", "--label", "X"], &["one.crt"]),
        (&["small.pem", "--label", "X"], &["small.pem"]),
        (&["one.pem", "--label", &long], &["64"]),
    ];
    for (arguments, texts) in cases {
        let mut command = vec!["kek", "import"];
        command.extend(*arguments);
        let text = desk.refused(&command);
        for wanted in *texts {
            assert!(
                text.contains(wanted),
                "{arguments:?}: no {wanted:?} in {text}"
            );
        }
    }
    std::fs::set_permissions(
        desk.at("word"),
        std::os::unix::fs::PermissionsExt::from_mode(0o644),
    )
    .unwrap();
    let text = desk.refused(&["kek", "import", "one.p12", word[0], word[1]]);
    assert!(text.contains("chmod 600"), "{text}");
    assert_eq!(desk.hsm.hand(&["list"]), "");
    assert!(!desk.at("audit").exists() || desk.records("kek-import").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_label_is_never_given_to_a_second_key() {
    let desk = Desk::new(Kind::SofthsmInProcess, "import").await;
    desk.key("one", 2048);
    desk.key("two", 2048);
    desk.done(&["kek", "import", "one.pem", "--label", "ONE"]);
    let text = desk.refused(&["kek", "import", "two.pem", "--label", "one"]);
    assert!(text.contains("taken by another key"), "{text}");
    // Also where the token has lost it.
    desk.hsm.hand(&["delete-private", "ONE"]);
    let text = desk.refused(&["kek", "import", "two.pem", "--label", "one"]);
    assert!(text.contains("another key"), "{text}");
    // The same key comes back under it.
    let text = desk.done(&["kek", "import", "one.pem", "--label", "ONE"]);
    assert!(text.contains("imported"), "{text}");
    cannot_be_got_out(&desk.hsm, "ONE");
    assert_eq!(desk.objects(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_for_custody_host_decrypts_and_does_not_unwrap() {
    let desk = Desk::new(Kind::Embedded, "import").await;
    desk.key("host", 2048);
    let report = desk.json(&[
        "kek",
        "import",
        "host.p12",
        "--password-file",
        "word",
        "--custody",
        "host",
    ]);
    assert_eq!(
        report["kek"]["private"]["serves"]["custody"], "host",
        "{report}"
    );
    let attributes = desk.hsm.hand(&["attributes", "host"]);
    assert!(attributes.contains("Unwrap(false)"), "{attributes}");
    assert!(attributes.contains("Decrypt(true)"), "{attributes}");
}

/// What fails at any step, with or without an answer, leaves the token as it was.
#[tokio::test(flavor = "multi_thread")]
async fn a_failure_in_the_middle_leaves_nothing_behind() {
    let hsm = Hsm::new(Kind::SofthsmInProcess, "import").await;
    let faulty = Faulty::before(&hsm);
    let config = faulty.config(&hsm, "main");
    let desk = Desk::over(hsm, config);
    desk.key("kek", 2048);
    let import = ["kek", "import", "kek.p12", "--password-file", "word"];
    let memory = cryptoki_sys::CKR_DEVICE_MEMORY;
    let removed = cryptoki_sys::CKR_DEVICE_REMOVED;
    // Each strikes in the command's own bridge: those before and after make no objects.
    for (what, function, skip, fault, wanted) in [
        (
            "the public half",
            "C_CreateObject",
            0,
            Fault::Answer(memory),
            "public half",
        ),
        (
            "its answer",
            "C_CreateObject",
            0,
            Fault::AnswerLost(removed),
            "public half",
        ),
        (
            "the certificate",
            "C_CreateObject",
            1,
            Fault::AnswerLost(removed),
            "certificate",
        ),
        (
            "the private half",
            "C_UnwrapKey",
            1,
            Fault::AnswerLost(removed),
            "private half",
        ),
        (
            "the module",
            "C_CreateObject",
            1,
            Fault::Abort,
            "ended without an answer",
        ),
    ] {
        faulty.strike(Some(function), skip, Some(1), fault);
        let text = desk.refused(&import);
        assert!(text.contains(wanted), "{what}: no {wanted:?} in {text}");
        faulty.heal();
        assert_eq!(desk.hsm.hand(&["list"]), "", "{what}");
        let (outcome, detail) = desk.records("kek-import").pop().unwrap();
        assert_eq!(outcome, Outcome::Failure, "{what}");
        assert!(detail.contains(wanted), "{what}: {detail}");
    }
    // A way that fails is not the only one.
    faulty.strike(
        Some("C_UnwrapKey"),
        1,
        Some(1),
        Fault::AnswerLost(cryptoki_sys::CKR_FUNCTION_FAILED),
    );
    let text = desk.done(&import);
    assert!(
        text.contains("C_CreateObject, in clear to the module, because"),
        "{text}"
    );
    assert!(text.contains("CKR_FUNCTION_FAILED"), "{text}");
    assert_eq!(desk.objects(), 3);
}
