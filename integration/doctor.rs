//! `ekm slot doctor` and `ekm slot bench` on tokens whose truths are known.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use cryptoki_sys::CKR_TEMPLATE_INCONSISTENT;
use ekm::bridge::doctor::findings::{
    AttackName, Defence, Examination, Oaep, Outcome, PairKind, PairMade, Rung, Sent,
};
use ekm::bridge::doctor::fitting::{Difference, Verdict, Way};
use ekm::bridge::message::{PrivateHalf, Provenance};
use ekm::bridge::profile::HsmProfile;
use ekm::bridge::rates::{Bench, Work};
use ekm::key::{OaepHash, WrapAlgorithm};
use serde::Deserialize;

use crate::faulty::{Fault, Faulty, SessionLimit};
use crate::site::Site;
use crate::support::{EKM, Hsm, Kind, pkcs8_key, wait_for, write_private};
use crate::tokens::can_be_made;

/// What `--json` gives.
#[derive(Debug, Deserialize)]
struct Report {
    beside_a_server: bool,
    fits: bool,
    verdicts: Vec<Verdict>,
    differences: Vec<Difference>,
    profile_that_fits: Option<String>,
    examination: Examination,
}

impl Report {
    fn verdict(&self, way: Way) -> &Verdict {
        let mut verdicts = self.verdicts.iter();
        verdicts.find(|verdict| verdict.way == way).unwrap()
    }

    fn able(&self, way: Way) -> bool {
        self.verdict(way).able
    }

    /// The way is not possible, for that reason.
    fn unable(&self, way: Way, why: &str) {
        let verdict = self.verdict(way);
        assert!(!verdict.able && verdict.why.contains(why), "{verdict:?}");
    }

    fn pair(&self, kind: PairKind) -> &PairMade {
        let mut pairs = self.examination.pairs.iter();
        pairs.find(|pair| pair.kind == kind).unwrap()
    }

    fn oaep(&self, hash: OaepHash, labelled: bool) -> &Oaep {
        let data_keys = self.examination.data_keys.as_ref().unwrap();
        data_keys
            .oaep
            .iter()
            .find(|oaep| oaep.hash == hash && oaep.labelled == labelled)
            .unwrap()
    }

    fn rung(&self, sensitive: bool, extractable: bool, value_len: bool) -> &Rung {
        let sent = Sent {
            sensitive,
            extractable,
            value_len,
        };
        let data_keys = self.examination.data_keys.as_ref().unwrap();
        data_keys
            .ladder
            .iter()
            .find(|rung| rung.sent == sent)
            .unwrap()
    }

    fn defence(&self, name: AttackName, against: Option<PairKind>) -> &Defence {
        &self
            .examination
            .attacks
            .iter()
            .find(|attack| attack.name == name && attack.against == against)
            .unwrap()
            .defence
    }

    /// How every attack ended: the beginning of what the doctor says of it.
    fn attacks(&self, ended: &[(AttackName, Option<PairKind>, &str)]) {
        assert_eq!(self.examination.attacks.len(), ended.len());
        for (name, against, begins) in ended {
            let defence = self.defence(*name, *against).to_string();
            assert!(
                defence.starts_with(begins),
                "{name} on {against:?}: {defence}"
            );
        }
    }

    fn breaking(&self) -> Vec<&str> {
        let breaking = self
            .differences
            .iter()
            .filter(|difference| difference.breaks);
        breaking
            .map(|difference| difference.field.as_str())
            .collect()
    }
}

/// Runs `ekm slot …` on a token.
fn slot(hsm: &Hsm, verb: &str, profile: &str, more: &[&str]) -> Output {
    let dir = hsm.directory.path();
    Command::new(hsm.surroundings.program())
        .args(["--config", "/nonexistent/ekm.toml", "slot", verb])
        .args(["--profile", profile, "--label", &hsm.label, "--directory"])
        .arg(dir)
        .args(more)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn with_pin(hsm: &Hsm, more: &[&str]) -> Vec<String> {
    let pin = hsm.directory.path().join("pin").display().to_string();
    let all = ["--pin-file", &pin].into_iter().chain(more.iter().copied());
    all.map(str::to_owned).collect()
}

fn doctor(hsm: &Hsm, profile: &str, more: &[&str]) -> (i32, Report) {
    let arguments = with_pin(hsm, &[&["--json"], more].concat());
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    report(&slot(hsm, "doctor", profile, &arguments))
}

fn report(output: &Output) -> (i32, Report) {
    let report = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", said(output)));
    (output.status.code().unwrap(), report)
}

fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn refused(code: &str) -> impl Fn(&Outcome) -> bool {
    move |outcome| matches!(outcome, Outcome::Refused { code: got, .. } if got == code)
}

fn nothing_is_left_on(hsm: &Hsm) {
    let labels = hsm.hand(&["list"]);
    assert!(!labels.contains("ekm-doctor-"), "{labels}");
}

/// The shipped profile fits; the one that is printed parses, and the doctor is content with it.
fn the_doctor_is_content(hsm: &Hsm) -> Report {
    let path = hsm.directory.path().join("fits.toml");
    let written = path.display().to_string();
    let shipped = hsm.config("main").profile;
    let (code, report) = doctor(hsm, &shipped, &["--write", &written]);
    assert_eq!(report.breaking(), Vec::<&str>::new());
    assert!(code == 0 && report.fits, "exit code {code}");
    assert_eq!(report.examination.interrupted, []);
    let profile = HsmProfile::load(&written).unwrap();
    assert_eq!(profile.name, "fits");
    assert_eq!(
        report.profile_that_fits.as_deref(),
        Some(std::fs::read_to_string(&path).unwrap().as_str())
    );
    let (code, again) = doctor(hsm, &written, &[]);
    assert_eq!(again.differences, []);
    assert_eq!(code, 0);
    if hsm.kind != Kind::Tpm2 {
        nothing_is_left_on(hsm);
    }
    report
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_knows_the_embedded_token() {
    let hsm = Hsm::new(Kind::Embedded, "doctor").await;
    let report = the_doctor_is_content(&hsm);
    assert!(report.able(Way::T10Wrapped) && report.able(Way::Plain3592));
    assert!(report.able(Way::HostCustody));
    // It knows no CKA_TRUSTED for RSA public keys.
    assert!(!report.able(Way::WrapWithTrusted));
    for hash in [OaepHash::Sha1, OaepHash::Sha256, OaepHash::Sha512] {
        let oaep = report.oaep(hash, true);
        assert!(oaep.unwrap.works() && oaep.wrap.works() && oaep.decrypt.works());
    }
    assert!(report.rung(true, true, true).unwrap.works());
    assert!(report.defence(AttackName::ShortKey, None).stopped());
    let template = Some(PairKind::UnwrapTemplate);
    assert!(report.defence(AttackName::WeakTemplate, template).stopped());
    // CKA_MODIFIABLE false does not keep it from copying a key with other uses.
    let copy = |kind| report.defence(AttackName::CopyDecrypt, Some(kind));
    assert!(!copy(PairKind::Frozen).stopped());
    assert!(copy(PairKind::Uncopyable).stopped());
    assert!(!report.defence(AttackName::ForeignKey, None).stopped());
    // Whoever is logged in copies a key and calls the copy trusted.
    let trusted = report.examination.trusted.as_ref().unwrap();
    assert!(trusted.user_copies.works(), "{trusted:?}");
    let through = Some(PairKind::TrustedTemplate);
    assert!(!report.defence(AttackName::ForeignKey, through).stopped());
    // And he takes the template off, unless the KEK is frozen and not copyable.
    let loosen = |kind| report.defence(AttackName::LoosenTemplate, Some(kind));
    assert!(!loosen(PairKind::UnwrapTemplate).stopped());
    assert!(loosen(PairKind::Protected).stopped());
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_knows_softhsm_in_process() {
    let hsm = Hsm::new(Kind::SofthsmInProcess, "doctor").await;
    let report = the_doctor_is_content(&hsm);
    softhsm(&report);
    let weak = |kind| report.defence(AttackName::WeakTemplate, Some(kind));
    assert!(weak(PairKind::UnwrapTemplate).stopped());
    let through = Some(PairKind::TrustedTemplate);
    assert!(report.defence(AttackName::ForeignKey, through).stopped());
    for kind in [PairKind::UnwrapTemplate, PairKind::Protected] {
        let loosen = report.defence(AttackName::LoosenTemplate, Some(kind));
        assert!(loosen.stopped(), "{loosen}");
    }
    let trusted = report.verdict(Way::WrapWithTrusted);
    assert!(trusted.why.contains("and so do KEKs"), "{trusted:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_knows_softhsm_behind_p11_kit() {
    let hsm = Hsm::new(Kind::Softhsm, "doctor").await;
    let report = the_doctor_is_content(&hsm);
    softhsm(&report);
    // p11-kit passes no nested template on.
    let template = report.pair(PairKind::UnwrapTemplate);
    assert!(refused("CKR_DEVICE_ERROR")(&template.made));
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_knows_opencryptoki() {
    if !can_be_made(Kind::Opencryptoki) {
        return;
    }
    let hsm = Hsm::new(Kind::Opencryptoki, "doctor").await;
    let report = the_doctor_is_content(&hsm);
    for way in [Way::T10Wrapped, Way::Plain3592, Way::HostCustody] {
        assert!(report.able(way), "{way}");
    }
    report.unable(Way::WrapWithTrusted, "CKR_ATTRIBUTE_TYPE_INVALID");

    let unknown = refused("CKR_ATTRIBUTE_TYPE_INVALID");
    assert!(unknown(&report.pair(PairKind::UnwrapTemplate).made));
    assert!(unknown(&report.pair(PairKind::Uncopyable).made));
    assert!(report.pair(PairKind::Frozen).made.works());

    let read_only = refused("CKR_ATTRIBUTE_READ_ONLY");
    assert!(read_only(&report.rung(true, true, false).unwrap));
    assert!(report.rung(true, false, true).unwrap.works());
    // It hears CKA_SENSITIVE only afterwards.
    let deaf = report.rung(true, false, false).key.as_ref().unwrap();
    assert!(deaf.readable && deaf.sensitive == Some(false));
    let after = report.rung(false, false, false).key.as_ref().unwrap();
    assert!(after.set_after.works() && after.wrap.works());
    assert!(report.examination.data_keys.as_ref().unwrap().set_after);

    let (plain, template) = (PairKind::Plain, PairKind::UnwrapTemplate);
    let (frozen, uncopyable) = (PairKind::Frozen, PairKind::Uncopyable);
    report.attacks(&[
        (AttackName::WeakTemplate, Some(plain), "not stopped"),
        (AttackName::WeakTemplate, Some(template), "not tried"),
        (AttackName::LoosenTemplate, Some(template), "not tried"),
        (
            AttackName::LoosenTemplate,
            Some(PairKind::Protected),
            "not tried",
        ),
        (AttackName::ForeignKey, None, "not stopped"),
        (
            AttackName::ForeignKey,
            Some(PairKind::TrustedTemplate),
            "not tried",
        ),
        (AttackName::CopyDecrypt, Some(plain), "not stopped"),
        (AttackName::CopyDecrypt, Some(frozen), "not stopped"),
        (AttackName::CopyDecrypt, Some(uncopyable), "not tried"),
        (AttackName::FlipDecrypt, Some(plain), "not stopped"),
        (AttackName::FlipDecrypt, Some(frozen), "the token stops it"),
        (AttackName::WrapUnextractable, None, "the token stops it"),
        (AttackName::ShortKey, None, "not stopped"),
    ]);
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_knows_nss() {
    if !can_be_made(Kind::Nss) {
        return;
    }
    let hsm = Hsm::new(Kind::Nss, "doctor").await;
    let report = the_doctor_is_content(&hsm);
    assert!(report.able(Way::T10Wrapped) && report.able(Way::Plain3592));
    report.unable(Way::HostCustody, "makes no KEK for it");
    report.unable(Way::WrapWithTrusted, "wrapped it all the same");
    let trusted = report.examination.trusted.as_ref().unwrap();
    assert!(trusted.user_creates.works(), "{trusted:?}");

    let (plain, template) = (PairKind::Plain, PairKind::UnwrapTemplate);
    let (frozen, uncopyable) = (PairKind::Frozen, PairKind::Uncopyable);
    // It takes every protection, and keeps to one.
    for kind in [plain, template, frozen, uncopyable, PairKind::Protected] {
        let pair = report.pair(kind);
        assert!(pair.made.works() && pair.denied_uses, "{pair:?}");
    }
    report.attacks(&[
        (AttackName::WeakTemplate, Some(plain), "not stopped"),
        (AttackName::WeakTemplate, Some(template), "not stopped"),
        (AttackName::LoosenTemplate, Some(template), "not tried"),
        (
            AttackName::LoosenTemplate,
            Some(PairKind::Protected),
            "not tried",
        ),
        (AttackName::ForeignKey, None, "not stopped"),
        (
            AttackName::ForeignKey,
            Some(PairKind::TrustedTemplate),
            "not stopped",
        ),
        (AttackName::CopyDecrypt, Some(plain), "not stopped"),
        (AttackName::CopyDecrypt, Some(frozen), "not stopped"),
        (AttackName::CopyDecrypt, Some(uncopyable), "not stopped"),
        (AttackName::FlipDecrypt, Some(plain), "not stopped"),
        (AttackName::FlipDecrypt, Some(frozen), "the token stops it"),
        (AttackName::WrapUnextractable, None, "not stopped"),
        (AttackName::ShortKey, None, "the token stops it"),
    ]);
    // What it does decrypt, it decrypts for a KEK that may do everything.
    let host = report.pair(PairKind::Host);
    assert!(host.made.works() && !host.denied_uses, "{host:?}");
    assert!(report.oaep(OaepHash::Sha256, true).decrypt.works());
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_knows_a_tpm() {
    if !can_be_made(Kind::Tpm2) {
        return;
    }
    let hsm = Hsm::new(Kind::Tpm2, "doctor").await;
    let report = the_doctor_is_content(&hsm);
    assert!(report.able(Way::HostCustody));
    for way in [Way::T10Wrapped, Way::Plain3592] {
        report.unable(way, "may decrypt and sign as well");
    }
    report.unable(Way::WrapWithTrusted, "CKR_FUNCTION_NOT_SUPPORTED");
    let not_there = refused("CKR_FUNCTION_NOT_SUPPORTED");
    for rung in &report.examination.data_keys.as_ref().unwrap().ladder {
        assert!(not_there(&rung.unwrap), "{rung:?}");
    }
    for hash in [OaepHash::Sha1, OaepHash::Sha256] {
        assert!(report.oaep(hash, false).decrypt.works(), "{hash}");
        let labelled = report.oaep(hash, true);
        assert!(refused("CKR_GENERAL_ERROR")(&labelled.decrypt), "{hash}");
        assert!(matches!(labelled.wrap, Outcome::Untried(_)));
    }
    let (plain, template) = (PairKind::Plain, PairKind::UnwrapTemplate);
    let (frozen, uncopyable) = (PairKind::Frozen, PairKind::Uncopyable);
    let none = "the token stops it: C_UnwrapKey CKR_FUNCTION_NOT_SUPPORTED";
    let no_copy = "the token stops it: C_CopyObject CKR_FUNCTION_NOT_SUPPORTED";
    report.attacks(&[
        (AttackName::WeakTemplate, Some(plain), none),
        (AttackName::WeakTemplate, Some(template), "not tried"),
        (AttackName::LoosenTemplate, Some(template), "not tried"),
        (
            AttackName::LoosenTemplate,
            Some(PairKind::Protected),
            "the token stops it",
        ),
        (AttackName::ForeignKey, None, none),
        (
            AttackName::ForeignKey,
            Some(PairKind::TrustedTemplate),
            "not tried",
        ),
        (AttackName::CopyDecrypt, Some(plain), no_copy),
        (AttackName::CopyDecrypt, Some(frozen), no_copy),
        (AttackName::CopyDecrypt, Some(uncopyable), no_copy),
        (AttackName::FlipDecrypt, Some(plain), "not stopped"),
        (AttackName::FlipDecrypt, Some(frozen), "not stopped"),
        (AttackName::WrapUnextractable, None, "not tried"),
        (AttackName::ShortKey, None, none),
    ]);
    // Where it refuses to make a pair, it keeps a half; the next examination removes it.
    let labels = hsm.hand(&["list"]);
    let left = labels.matches("ekm-doctor-").count();
    let (_, next) = doctor(&hsm, &hsm.config("main").profile, &[]);
    assert_eq!(next.examination.leftovers, left, "{labels}");
}

/// What is true of SoftHSM 2.6, however it is reached.
fn softhsm(report: &Report) {
    let bad = refused("CKR_ARGUMENTS_BAD");
    assert!(bad(&report.oaep(OaepHash::Sha256, false).unwrap));
    assert!(bad(&report.oaep(OaepHash::Sha1, true).unwrap));
    assert!(report.oaep(OaepHash::Sha1, false).unwrap.works());
    assert!(refused("CKR_ATTRIBUTE_READ_ONLY")(
        &report.rung(true, true, true).unwrap
    ));
    assert!(report.rung(true, true, false).unwrap.works());
    let open = report.rung(false, true, false).key.as_ref().unwrap();
    assert!(open.readable && open.sensitive == Some(false));
    let locked_in = report.rung(true, false, false).key.as_ref().unwrap();
    assert!(refused("CKR_KEY_UNEXTRACTABLE")(&locked_in.wrap));

    softhsm_attacks(report);

    assert!(report.able(Way::Plain3592) && report.able(Way::HostCustody));
    assert!(!report.able(Way::T10Wrapped));
    assert!(report.able(Way::WrapWithTrusted));
    let latency = &report.examination.latency;
    assert!(
        latency
            .iter()
            .any(|latency| latency.call.contains("C_UnwrapKey"))
    );
}

/// Which attacks SoftHSM 2.6 stops.
fn softhsm_attacks(report: &Report) {
    assert!(!report.defence(AttackName::ShortKey, None).stopped());
    assert!(!report.defence(AttackName::ForeignKey, None).stopped());
    assert!(
        report
            .defence(AttackName::WrapUnextractable, None)
            .stopped()
    );
    for (name, kind, stopped) in [
        (AttackName::WeakTemplate, PairKind::Plain, false),
        (AttackName::FlipDecrypt, PairKind::Plain, false),
        (AttackName::FlipDecrypt, PairKind::Frozen, true),
        (AttackName::CopyDecrypt, PairKind::Plain, false),
        (AttackName::CopyDecrypt, PairKind::Frozen, true),
        (AttackName::CopyDecrypt, PairKind::Uncopyable, true),
    ] {
        let defence = report.defence(name, Some(kind));
        assert_eq!(defence.stopped(), stopped, "{name} on {kind}: {defence}");
    }
}

/// Shipped profile text with some lines changed, as a file of the site.
fn profile_with(hsm: &Hsm, changes: &[(&str, &str)]) -> PathBuf {
    let name = hsm.kind.profile();
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("hsm-profiles/{name}.toml"));
    let mut text = std::fs::read_to_string(shipped).unwrap();
    for (from, to) in changes {
        assert!(text.contains(from), "{from}");
        text = text.replace(from, to);
    }
    let path = hsm.directory.path().join("wrong.toml");
    std::fs::write(&path, text).unwrap();
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_profile_is_told_line_by_line() {
    let hsm = Hsm::new(Kind::SofthsmInProcess, "doctor").await;
    let wrong = profile_with(
        &hsm,
        &[
            ("hash = \"sha1\"", "hash = \"sha256\""),
            ("labelled = false", "labelled = true"),
            ("[\"rsa-oaep-sha1\"]", "[\"t10-02h\", \"rsa-oaep-sha1\"]"),
            ("value_len = \"omit\"", "value_len = \"send\""),
        ],
    );
    let wrong = wrong.display().to_string();
    let fits = hsm
        .directory
        .path()
        .join("mended.toml")
        .display()
        .to_string();
    let (code, report) = doctor(&hsm, &wrong, &["--write", &fits]);
    assert_eq!(code, 3);
    let lines = [
        "eedk.hash",
        "eedk.labelled",
        "drive.forms",
        "data_key.value_len",
    ];
    assert_eq!(report.breaking(), lines);
    let hash = &report.differences[0];
    assert_eq!(
        (hash.profile.as_str(), hash.token.as_str()),
        ("\"sha256\"", "\"sha1\"")
    );
    assert!(hash.why.contains("CKR_ARGUMENTS_BAD"), "{}", hash.why);
    assert_eq!(doctor(&hsm, &fits, &[]).0, 0);

    // A person reads the same.
    let arguments = with_pin(&hsm, &[]);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let output = slot(&hsm, "doctor", &wrong, &arguments);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(3));
    assert!(
        text.contains("the token does not do what the profile"),
        "{text}"
    );
    let line = text
        .lines()
        .find(|line| line.contains("data_key.value_len"))
        .unwrap();
    assert!(line.contains("CKR_ATTRIBUTE_READ_ONLY"), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_module_without_a_profile_gets_one() {
    let hsm = Hsm::new(Kind::SofthsmInProcess, "doctor").await;
    let path = hsm.directory.path().join("found.toml");
    let (module, environment) = hsm.module();
    let output = Command::new(EKM)
        .args(["--config", "/nonexistent/ekm.toml", "slot", "doctor"])
        .args(["--json", "--label", &hsm.label, "--module"])
        .arg(module)
        .arg("--directory")
        .arg(hsm.directory.path())
        .arg("--write")
        .arg(&path)
        .args(with_pin(&hsm, &[]))
        .envs(environment)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let (code, report) = report(&output);
    assert_eq!((code, report.fits), (0, true));
    assert_eq!(report.differences, []);
    let found = HsmProfile::load(&path.display().to_string()).unwrap();
    let shipped = HsmProfile::load("softhsm2").unwrap();
    assert!(found.description.contains("SoftHSM"), "{found:?}");
    assert_eq!(found.module.library, shipped.module.library);
    assert_eq!(
        (found.eedk, found.drive, found.data_key, found.kek),
        (shipped.eedk, shipped.drive, shipped.data_key, shipped.kek)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_pin_is_held_back_from_the_doctor_too() {
    let hsm = Hsm::new(Kind::SofthsmInProcess, "doctor").await;
    let pin = hsm.directory.path().join("pin");
    let right = std::fs::read_to_string(&pin).unwrap();
    write_private(&pin, "9999-9999");
    let arguments = with_pin(&hsm, &["--json"]);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let run = || slot(&hsm, "doctor", "softhsm2", &arguments);
    let first = run();
    assert_eq!(first.status.code(), Some(1));
    assert!(
        said(&first).contains("CKR_PIN_INCORRECT"),
        "{}",
        said(&first)
    );
    let (code, report) = report(&run());
    assert_eq!(code, 1);
    match report.examination.login {
        Some(Outcome::Wrong(why)) => assert!(why.contains("held back"), "{why}"),
        other => panic!("{other:?}"),
    }
    // What needs no login was looked at all the same.
    let token = report.examination.surface.unwrap().token.unwrap();
    assert!(token.flags.contains(&"CKF_USER_PIN_COUNT_LOW".to_owned()));
    assert_eq!(report.examination.data_keys, None);
    write_private(&pin, &right);
    assert_eq!(run().status.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_pin_the_doctor_says_what_it_did_not_look_at() {
    let hsm = Hsm::new(Kind::Embedded, "doctor").await;
    let (code, report) = report(&slot(&hsm, "doctor", "embedded", &["--json"]));
    assert_eq!(code, 0);
    assert!(matches!(
        report.examination.login,
        Some(Outcome::Untried(_))
    ));
    let surface = report.examination.surface.unwrap();
    assert!(
        surface
            .token
            .unwrap()
            .mechanisms
            .iter()
            .any(|mechanism| mechanism.listed)
    );
    assert_eq!(report.profile_that_fits, None);
    let text = said(&slot(&hsm, "doctor", "embedded", &[]));
    assert!(text.contains("not looked at"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_not_there_is_an_error() {
    let hsm = Hsm::new(Kind::SofthsmInProcess, "doctor").await;
    let arguments = with_pin(&hsm, &["--uri", "pkcs11:token=another"]);
    let output = Command::new(EKM)
        .args([
            "--config",
            "/nonexistent",
            "slot",
            "doctor",
            "--profile",
            "softhsm2",
        ])
        .arg("--directory")
        .arg(hsm.directory.path())
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("another"), "{}", said(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_interrupted_doctor_left_is_removed_and_nothing_else() {
    let hsm = Hsm::new(Kind::SofthsmInProcess, "doctor").await;
    let key = hsm.directory.path().join("key.der");
    let import = |label: &str| {
        let private = aws_lc_rs::rsa::KeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap();
        let der: Pkcs8V1Der<'_> = private.as_der().unwrap();
        std::fs::write(&key, der.as_ref()).unwrap();
        hsm.hand(&["import-private", label, &key.display().to_string()]);
    };
    import("ekm-doctor-0123");
    import("TAPE2026");
    // The same label, but for its case, on another key.
    import("tape2026");
    let (code, report) = doctor(&hsm, "softhsm2", &[]);
    assert_eq!((code, report.examination.leftovers), (0, 2));
    nothing_is_left_on(&hsm);
    let keks = report.examination.keks.unwrap();
    assert_eq!(keks.ambiguous, ["tape2026"]);
    assert_eq!(keks.keks.len(), 2);
    for seen in &keks.keks {
        assert!(seen.opens.works(), "{:?}", seen.opens);
        assert!(matches!(
            seen.kek.private,
            PrivateHalf::Serves {
                provenance: Provenance::Imported,
                ..
            }
        ));
    }
    assert_eq!(hsm.hand(&["list"]).lines().count(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kek_is_tried_in_the_way_of_the_profile_and_in_no_other() {
    let hsm = Hsm::new(Kind::SofthsmInProcess, "doctor").await;
    let key = hsm.directory.path().join("key.der");
    std::fs::write(&key, pkcs8_key()).unwrap();
    hsm.hand(&["import-private", "TAPE2026", &key.display().to_string()]);
    let opens = |profile: &str| {
        let (_, report) = doctor(&hsm, profile, &[]);
        let keks = report.examination.keks.unwrap();
        (keks.way, keks.keks[0].opens.clone())
    };
    let (way, opened) = opens("softhsm2");
    assert_eq!(way, WrapAlgorithm::oaep(OaepHash::Sha1, false));
    assert!(opened.works(), "{opened:?}");
    // SoftHSM opens OAEP without a label, and no EEDK of this profile.
    let labelled = profile_with(&hsm, &[("labelled = false", "labelled = true")]);
    let (way, opened) = opens(&labelled.display().to_string());
    assert_eq!(way, WrapAlgorithm::oaep(OaepHash::Sha1, true));
    assert!(refused("CKR_ARGUMENTS_BAD")(&opened), "{opened:?}");
    let v15 = profile_with(
        &hsm,
        &[
            ("hash = \"sha1\"\n", "padding = \"pkcs1-v1.5\"\n"),
            ("labelled = false\n", ""),
        ],
    );
    let (way, opened) = opens(&v15.display().to_string());
    assert_eq!(way, WrapAlgorithm::Pkcs1V15);
    assert!(opened.works(), "{opened:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_goes_on_while_its_token_is_examined() {
    let hsm = Hsm::new(Kind::SofthsmInProcess, "doctor").await;
    let site = Site::start(&[&hsm], "").await;
    // Its bridges, and since when it has been ready.
    let status = || {
        let text = site.ekm(&["token", "status", "--json"]);
        let tokens: serde_json::Value = serde_json::from_str(&text).unwrap();
        ["state", "since", "bridges", "keks"].map(|field| tokens[0][field].clone())
    };
    let before = status();
    let text = site.ekm(&["slot", "doctor", "--token", "main", "--json"]);
    let report: Report = serde_json::from_str(&text).unwrap();
    assert!(report.fits && report.beside_a_server);
    assert_eq!(report.examination.sessions.unwrap().bound, 2);
    assert_eq!(status(), before);
    site.stop();
}

/// A profile that reaches SoftHSM through the faulty module.
fn through(faulty: &Faulty, hsm: &Hsm, change: impl Fn(&mut HsmProfile)) -> String {
    let mut profile = HsmProfile::load("softhsm2").unwrap();
    profile.module.library = Faulty::library().display().to_string();
    profile.module.environment = faulty.environment();
    profile.module.keeps = None;
    profile.module.files.clear();
    profile.module.folders.clear();
    change(&mut profile);
    let path = hsm.directory.path().join("faulty.toml");
    std::fs::write(&path, toml::to_string(&profile).unwrap()).unwrap();
    path.display().to_string()
}

/// The next making of a key pair is refused, which is a session pair.
fn no_session_pair(faulty: &Faulty) {
    let refusal = Fault::Answer(CKR_TEMPLATE_INCONSISTENT);
    faulty.strike(Some("C_GenerateKeyPair"), 0, Some(1), refusal);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_costs_one_part_of_the_examination() {
    let hsm = Hsm::new(Kind::SofthsmInProcess, "doctor").await;
    let faulty = Faulty::before(&hsm);
    let profile = through(&faulty, &hsm, |_| ());
    faulty.strike(Some("C_CopyObject"), 0, Some(1), Fault::Abort);
    let (code, report) = doctor(&hsm, &profile, &[]);
    assert_eq!(code, 0);
    let [(part, why)] = report.examination.interrupted.as_slice() else {
        panic!("{:?}", report.examination.interrupted);
    };
    assert!(
        part.contains("wrap with trusted") && why.contains("crash"),
        "{part}: {why}"
    );
    // What came after it was tried, in another bridge.
    softhsm_attacks(&report);
    assert!(!report.examination.latency.is_empty());
    nothing_is_left_on(&hsm);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_limit_is_found_and_held_against_the_workers() {
    let hsm = Hsm::new(Kind::SofthsmInProcess, "doctor").await;
    let faulty = Faulty::before(&hsm);
    faulty.change(|rules| {
        rules.session_limit = Some(SessionLimit {
            most: 16,
            linger_ms: 0,
            told: true,
        });
    });
    let profile = through(&faulty, &hsm, |profile| profile.session.workers = 32);
    let (code, report) = doctor(&hsm, &profile, &[]);
    assert_eq!(code, 3);
    let sessions = report.examination.sessions.as_ref().unwrap();
    let full = refused("CKR_SESSION_COUNT");
    assert!(full(sessions.ended.as_ref().unwrap()));
    assert!((14..=16).contains(&sessions.opened), "{sessions:?}");
    let surface = report.examination.surface.as_ref().unwrap();
    let limits = &surface.token.as_ref().unwrap().limits;
    assert_eq!(limits.max_rw_sessions, Some(16));
    assert_eq!(report.breaking(), ["session.workers", "session.limit"]);
    let fits = hsm.directory.path().join("fits.toml");
    std::fs::write(&fits, report.profile_that_fits.unwrap()).unwrap();
    assert_eq!(doctor(&hsm, &fits.display().to_string(), &[]).0, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_makes_no_session_pair_is_left_as_it_was() {
    let hsm = Hsm::new(Kind::SofthsmInProcess, "doctor").await;
    let faulty = Faulty::before(&hsm);
    let profile = through(&faulty, &hsm, |_| ());
    no_session_pair(&faulty);
    let (code, report) = doctor(&hsm, &profile, &[]);
    assert_eq!(code, 0);
    let plain = &report.examination.pairs[0];
    assert!(plain.made.works() && plain.on_token && plain.denied_uses);
    assert_eq!(report.examination.keks.unwrap().keks, []);
    nothing_is_left_on(&hsm);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_doctor_left_is_removed_by_the_next() {
    let hsm = Hsm::new(Kind::SofthsmInProcess, "doctor").await;
    let faulty = Faulty::before(&hsm);
    let profile = through(&faulty, &hsm, |_| ());
    no_session_pair(&faulty);
    faulty.strike(Some("C_CopyObject"), 0, None, Fault::Hang);
    let mut killed = Command::new(EKM)
        .args(["--config", "/nonexistent/ekm.toml", "slot", "doctor"])
        .args(["--profile", &profile, "--label", &hsm.label, "--directory"])
        .arg(hsm.directory.path())
        .args(with_pin(&hsm, &[]))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for("the call that hangs", Duration::from_secs(60), || {
        faulty.called("C_CopyObject") > 0
    });
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert!(hsm.hand(&["list"]).contains("ekm-doctor-"));
    faulty.heal();
    let (code, report) = doctor(&hsm, &profile, &[]);
    assert_eq!((code, report.examination.leftovers), (0, 2));
    nothing_is_left_on(&hsm);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_try_of_a_pin_is_not_the_doctors() {
    let hsm = Hsm::new(Kind::SofthsmInProcess, "doctor").await;
    let faulty = Faulty::before(&hsm);
    let profile = through(&faulty, &hsm, |_| ());
    faulty.change(|rules| rules.pin_tries = Some(2));
    let pin = hsm.directory.path().join("pin");
    let right = std::fs::read_to_string(&pin).unwrap();
    write_private(&pin, "9999-9999");
    assert_eq!(doctor(&hsm, &profile, &[]).0, 1);
    assert_eq!(faulty.called("C_Login"), 1);
    write_private(&pin, &right);
    let (code, report) = doctor(&hsm, &profile, &[]);
    assert_eq!(code, 1);
    match report.examination.login {
        Some(Outcome::Wrong(why)) => assert!(why.contains("CKF_USER_PIN_FINAL_TRY"), "{why}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(faulty.called("C_Login"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn bench_measures_and_advises() {
    let hsm = Hsm::new(Kind::SofthsmInProcess, "doctor").await;
    let quick = [
        "--json",
        "--sessions",
        "2",
        "--processes",
        "2",
        "--milliseconds",
        "60",
    ];
    let arguments = with_pin(&hsm, &quick);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let output = slot(&hsm, "bench", "softhsm2", &arguments);
    assert!(output.status.success(), "{}", said(&output));
    let bench: Bench = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((bench.bits, bench.refused.len()), (2048, 0));
    let arranged: Vec<_> = bench
        .arrangements
        .iter()
        .map(|arrangement| (arrangement.processes, arrangement.sessions))
        .collect();
    assert_eq!(arranged, [(1, 1), (1, 2), (2, 1), (2, 2)]);
    for arrangement in &bench.arrangements {
        assert_eq!(arrangement.rates.len(), Work::ALL.len());
        for rate in &arrangement.rates {
            assert!(rate.per_second > 0.0 && rate.p50_us > 0, "{rate:?}");
            assert!(rate.p99_us >= rate.p50_us, "{rate:?}");
        }
    }
    let advice = bench.advice.unwrap();
    assert!(arranged.contains(&(advice.processes, advice.workers)));
    nothing_is_left_on(&hsm);
}
