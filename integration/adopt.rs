//! Keys as other programs leave them: `ekm kek adopt` says of each what it is
//! good for, mends what can be mended, and keeps a record of it.

use ekm::audit::Outcome;
use ekm::policy::PolicyConfig;
use serde_json::Value;

use crate::import::Desk;
use crate::support::{Bench, Kind};

impl Desk {
    /// An RSA key in `NAME.der`, and its certificate in `NAME.crt.der`.
    fn der(&self, name: &str, bits: u32) {
        self.key(name, bits);
        let (pem, der) = (format!("{name}.pem"), format!("{name}.der"));
        self.openssl(&[
            "pkcs8", "-topk8", "-nocrypt", "-in", &pem, "-outform", "DER", "-out", &der,
        ]);
        let (crt, der) = (format!("{name}.crt"), format!("{name}.crt.der"));
        self.openssl(&["x509", "-in", &crt, "-outform", "DER", "-out", &der]);
    }

    fn object(&self, kind: &str, file: &str, settings: &[&str]) {
        let path = self.path(file);
        let mut verb = vec!["object", kind, &path];
        verb.extend(settings);
        self.hsm.hand(&verb);
    }

    /// Both halves, the private one with these settings.
    fn pair(&self, label: &str, bits: u32, settings: &[&str]) {
        self.der(label, bits);
        let file = format!("{label}.der");
        let label = format!("label={label}");
        let mut with = vec![label.as_str()];
        with.extend(settings);
        self.object("private", &file, &with);
        self.object("public", &file, &[&label]);
    }

    fn adopt(&self, more: &[&str]) -> Value {
        let mut arguments = vec!["kek", "adopt", "--json"];
        arguments.extend(more);
        serde_json::from_str(&self.done(&arguments)).unwrap()
    }
}

/// The keys that a report has under a label.
fn called<'a>(report: &'a Value, label: &str) -> Vec<&'a Value> {
    let keys = report["keys"].as_array().unwrap();
    keys.iter().filter(|key| key["label"] == label).collect()
}

/// The one key under a label has that verdict, with all of that in its reasons.
fn is(report: &Value, label: &str, verdict: &str, reasons: &[&str]) {
    let keys = called(report, label);
    let [key] = keys.as_slice() else {
        panic!("{label}: {} keys in {report:#}", keys.len());
    };
    assert_eq!(key["verdict"], verdict, "{label}: {key:#}");
    for wanted in reasons {
        assert!(
            key["reasons"].to_string().contains(wanted),
            "{label}: no {wanted:?} in {key:#}"
        );
    }
}

/// A key of each kind, one defect each.
async fn prepared() -> Desk {
    let desk = Desk::new(Kind::SofthsmInProcess, "adopt").await;
    desk.done(&["kek", "generate", "born", "--bits", "2048"]);
    // As Java stores it: the alias is on the certificate, and CKA_ID leads to the key.
    desk.der("java", 2048);
    desk.object("private", "java.der", &["id=01", "decrypt=true"]);
    desk.object("certificate", "java.crt.der", &["id=01", "label=java"]);
    // Likewise, but nothing leads there but the modulus.
    desk.der("modulus", 2048);
    desk.object("private", "modulus.der", &["id=02"]);
    desk.object(
        "certificate",
        "modulus.crt.der",
        &["id=03", "label=modulus"],
    );
    desk.der("public", 2048);
    desk.object("private", "public.der", &["id=04"]);
    desk.object("public", "public.der", &["id=04", "label=public"]);
    desk.pair("decrypts", 2048, &["unwrap=false", "decrypt=true"]);
    desk.pair("idle", 2048, &["unwrap=false"]);
    desk.pair("signs", 2048, &["unwrap=false", "sign=true"]);
    desk.pair("extractable", 2048, &["extractable=true"]);
    desk.pair("readable", 2048, &["sensitive=false"]);
    desk.pair("frozen", 2048, &["extractable=true", "modifiable=false"]);
    desk.pair("small", 1024, &[]);
    desk.hsm.hand(&["ec", "curve"]);
    desk.pair("twice", 2048, &[]);
    desk.der("other", 2048);
    desk.object("private", "other.der", &["label=TWICE"]);
    desk.der("half", 2048);
    desk.object("public", "half.der", &["label=half"]);
    desk.der("nameless", 2048);
    desk.object("private", "nameless.der", &["id=05"]);
    desk.der("blank", 2048);
    desk.object("private", "blank.der", &["label=blank", "modulus=none"]);
    desk
}

#[tokio::test(flavor = "multi_thread")]
async fn each_defect_has_its_verdict_and_what_can_be_mended_is() {
    let desk = prepared().await;
    let before = desk.adopt(&[]);
    is(&before, "born", "usable", &[]);
    is(
        &before,
        "java",
        "usable",
        &[
            "certificate, which has the same CKA_ID",
            "CKA_DECRYPT is TRUE",
            "outside",
        ],
    );
    is(
        &before,
        "modulus",
        "mendable",
        &["CKA_LABEL can become", "certificate"],
    );
    is(
        &before,
        "public",
        "mendable",
        &["CKA_LABEL can become", "public key"],
    );
    is(
        &before,
        "decrypts",
        "host",
        &["custody host", "only where --only names"],
    );
    is(&before, "idle", "mendable", &["CKA_UNWRAP can become TRUE"]);
    is(
        &before,
        "signs",
        "mendable",
        &["CKA_SIGN", "only where --only names"],
    );
    is(
        &before,
        "extractable",
        "mendable",
        &["CKA_EXTRACTABLE can become FALSE", "copies may exist"],
    );
    is(
        &before,
        "readable",
        "mendable",
        &["CKA_SENSITIVE can become TRUE", "copies may exist"],
    );
    is(
        &before,
        "frozen",
        "not",
        &["CKA_EXTRACTABLE is TRUE", "CKA_MODIFIABLE is FALSE"],
    );
    is(&before, "small", "not", &["1024 bits"]);
    is(&before, "curve", "not", &["CKK_EC"]);
    is(&before, "twice", "not", &["has the label twice too"]);
    is(&before, "TWICE", "not", &["has the label TWICE too"]);
    is(
        &before,
        "half",
        "not",
        &["private half is not on this token"],
    );
    is(&before, "blank", "not", &["CKA_MODULUS", "no public half"]);
    let nameless: Vec<&Value> = called_none(&before);
    assert_eq!(nameless.len(), 1, "{before:#}");
    assert_eq!(nameless[0]["verdict"], "not", "{before:#}");
    assert!(desk.records("kek-adopt").is_empty());

    // What it calls usable is what serves, and nothing else.
    let listed = desk.done(&["kek", "list", "--json"]);
    let listed: Vec<Value> = serde_json::from_str(&listed).unwrap();
    let mut serving: Vec<&str> = listed
        .iter()
        .filter(|kek| {
            !kek["custody"].is_null()
                && !["twice", "TWICE"].contains(&kek["label"].as_str().unwrap())
        })
        .map(|kek| kek["label"].as_str().unwrap())
        .collect();
    serving.sort_unstable();
    assert_eq!(serving, ["born", "decrypts", "java"]);

    let after = desk.adopt(&["--apply"]);
    for label in ["modulus", "public", "idle", "extractable", "readable"] {
        is(&after, label, "usable", &["a copy existed outside"]);
    }
    is(&after, "decrypts", "host", &[]);
    is(&after, "signs", "mendable", &[]);
    is(&after, "frozen", "not", &[]);
    assert_eq!(after["mended"].as_array().unwrap().len(), 5, "{after:#}");
    let attributes = desk.hsm.hand(&["attributes", "extractable"]);
    assert!(attributes.contains("Extractable(false)"), "{attributes}");
    assert!(
        attributes.contains("NeverExtractable(false)"),
        "{attributes}"
    );
    let attributes = desk.hsm.hand(&["attributes", "readable"]);
    assert!(
        attributes.contains("AlwaysSensitive(false)"),
        "{attributes}"
    );
    let records = desk.records("kek-adopt");
    let outcomes: Vec<Outcome> = records.iter().map(|(outcome, _)| *outcome).collect();
    assert_eq!(outcomes, [Outcome::Intent, Outcome::Success]);
    assert!(
        records[0]
            .1
            .contains("CKA_EXTRACTABLE of extractable becomes FALSE"),
        "{records:?}"
    );

    // Named, the others follow.
    let after = desk.adopt(&["--apply", "--only", "signs", "--only", "DECRYPTS"]);
    is(&after, "signs", "usable", &[]);
    is(&after, "decrypts", "usable", &[]);
    let text = desk.refused(&["kek", "adopt", "--apply", "--only", "nobody"]);
    assert!(text.contains("--only nobody names 0 keys"), "{text}");
    let bench = Bench::new(&[&desk.hsm], PolicyConfig::default()).await;
    let directory = bench.service.directory().await.unwrap();
    for label in ["java", "modulus", "public", "idle", "signs"] {
        let kek = directory.by_label(&label.parse().unwrap()).unwrap();
        assert!(kek.custody.is_some(), "{label}: {kek:?}");
    }
}

fn called_none(report: &Value) -> Vec<&Value> {
    let keys = report["keys"].as_array().unwrap();
    keys.iter().filter(|key| key["label"].is_null()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_table_fits_and_says_why() {
    let desk = Desk::new(Kind::SofthsmInProcess, "adopt").await;
    let text = desk.done(&["kek", "adopt"]);
    assert!(text.contains("has no key pair"), "{text}");
    let long = "a-label-as-long-as-labels-may-be-of-sixty-four-characters-to-the-d";
    desk.pair(&long[..64], 2048, &["extractable=true", "sensitive=false"]);
    let text = desk.done(&["kek", "adopt"]);
    let widest = text.lines().map(|line| line.chars().count()).max();
    assert!(widest.unwrap() <= 100, "{text}");
    for wanted in [
        "VERDICT",
        "mendable",
        "CKA_EXTRACTABLE",
        "--apply",
        "imported",
    ] {
        assert!(text.contains(wanted), "no {wanted:?} in {text}");
    }
}

/// A certificate with the right CKA_ID and another key names nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_another_key_gives_no_label() {
    let desk = Desk::new(Kind::SofthsmInProcess, "adopt").await;
    desk.der("mine", 2048);
    desk.der("forged", 2048);
    desk.object("private", "mine.der", &["id=01"]);
    desk.object("certificate", "forged.crt.der", &["id=01", "label=mine"]);
    let report = desk.adopt(&[]);
    assert_eq!(called_none(&report)[0]["verdict"], "not", "{report:#}");
    let listed = desk.done(&["kek", "list", "--json"]);
    assert_eq!(listed.trim(), "[]");
}
