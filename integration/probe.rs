//! `ekm eedk probe`: what OpenSSL wrapped is found in a blob, and nothing is found where nothing is.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::{EKM, write_private};

const DATA_KEY: &[u8; 32] = b"0123456789abcdef0123456789ABCDEF";
const PASSWORD: &str = "probe-me-not";

struct Bench {
    directory: TempDir,
}

impl Bench {
    /// `store.p12` holds the key pairs `one` and `two`.
    fn new() -> Self {
        let bench = Self {
            directory: tempfile::tempdir().unwrap(),
        };
        write_private(&bench.directory.path().join("password"), PASSWORD);
        std::fs::write(bench.directory.path().join("dk"), DATA_KEY).unwrap();
        for alias in ["one", "two"] {
            bench.tool(
                "keytool",
                &[
                    "-genkeypair",
                    "-alias",
                    alias,
                    "-keyalg",
                    "RSA",
                    "-keysize",
                    "2048",
                    "-dname",
                    "CN=probe",
                    "-storetype",
                    "PKCS12",
                    "-storepass",
                    PASSWORD,
                    "-keystore",
                    "store.p12",
                ],
            );
            let certificate = format!("{alias}.crt");
            bench.tool(
                "keytool",
                &[
                    "-exportcert",
                    "-rfc",
                    "-alias",
                    alias,
                    "-storepass",
                    PASSWORD,
                    "-keystore",
                    "store.p12",
                    "-file",
                    &certificate,
                ],
            );
        }
        bench
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn tool(&self, program: &str, arguments: &[&str]) {
        let output = Command::new(program)
            .args(arguments)
            .current_dir(self.path())
            .output()
            .expect("scripts/test installs it");
        assert!(
            output.status.success(),
            "{program} {arguments:?}: {output:?}"
        );
    }

    /// The data key wrapped by OpenSSL.
    fn wrapped(&self, alias: &str, options: &[&str]) -> Vec<u8> {
        let certificate = format!("{alias}.crt");
        let mut arguments = vec![
            "pkeyutl",
            "-encrypt",
            "-certin",
            "-inkey",
            &certificate,
            "-in",
            "dk",
            "-out",
            "wrapped",
        ];
        for option in options {
            arguments.extend(["-pkeyopt", option]);
        }
        self.tool("openssl", &arguments);
        std::fs::read(self.path().join("wrapped")).unwrap()
    }

    fn random(length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        aws_lc_rs::rand::fill(&mut bytes).unwrap();
        bytes
    }

    fn run(&self, blob: &[u8], more: &[&str]) -> std::process::Output {
        std::fs::write(self.path().join("blob"), blob).unwrap();
        Command::new(EKM)
            .args([
                "eedk",
                "probe",
                "blob",
                "--store",
                "store.p12",
                "--password-file",
                "password",
            ])
            .args(more)
            .current_dir(self.path())
            .output()
            .unwrap()
    }

    fn probe(&self, blob: &[u8], more: &[&str]) -> Value {
        let output = self.run(blob, &[more, &["--json"]].concat());
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let hidden = [
            hex::encode(DATA_KEY),
            String::from_utf8(DATA_KEY.to_vec()).unwrap(),
        ];
        assert!(
            !hidden.iter().any(|key| text.contains(key)),
            "the data key is shown: {text}"
        );
        serde_json::from_str(&text).unwrap()
    }
}

fn only(report: &Value) -> &Value {
    let finds = report["finds"].as_array().unwrap();
    assert_eq!(finds.len(), 1, "{report:#}");
    &finds[0]
}

#[test]
fn what_openssl_wrapped_is_found_at_odd_offsets() {
    let bench = Bench::new();
    let oaep = "rsa_padding_mode:oaep";
    let label = "454b4d000102030405060708";
    let label_option = format!("rsa_oaep_label:{label}");
    for (options, padding, certainty, reversed) in [
        (
            vec![oaep, "rsa_oaep_md:sha1"],
            "OAEP SHA-1".to_owned(),
            "certain",
            false,
        ),
        (
            vec![oaep, "rsa_oaep_md:sha256"],
            "OAEP SHA-256".to_owned(),
            "certain",
            true,
        ),
        (
            vec![oaep, "rsa_oaep_md:sha256", label_option.as_str()],
            format!("OAEP SHA-256, label {label}"),
            "certain",
            false,
        ),
        (
            vec!["rsa_padding_mode:pkcs1"],
            "PKCS#1 v1.5".to_owned(),
            "likely",
            false,
        ),
    ] {
        let mut wrapped = bench.wrapped("two", &options);
        if reversed {
            wrapped.reverse();
        }
        let blob = [Bench::random(41), wrapped, vec![0; 300], Bench::random(3)].concat();
        // Elsewhere too bytes may look like a padding, once in some thousand such blobs.
        let report = bench.probe(&blob, &["--label", label, "--offset", "31-51"]);
        let find = only(&report);
        assert_eq!(find["offset"], 41);
        assert_eq!(find["alias"], "two");
        assert_eq!(find["padding"], padding.as_str());
        assert_eq!(find["order"], if reversed { "little" } else { "big" });
        assert_eq!(find["length"], 32);
        assert_eq!(find["certainty"], certainty);
        // SHA-256 of the data key.
        assert_eq!(
            find["fingerprint"],
            hex::encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, DATA_KEY).as_ref())
                [..16]
        );
    }
}

#[test]
fn a_blob_as_text_is_read_and_names_of_keys_are_found() {
    let bench = Bench::new();
    let wrapped = bench.wrapped("one", &["rsa_padding_mode:oaep"]);
    let blob = [b"\x20\x00one-cart".as_slice(), &wrapped].concat();
    let report = bench.probe(hex::encode(&blob).as_bytes(), &[]);
    assert_eq!(report["read_as"], "hexadecimal");
    assert_eq!(only(&report)["offset"], 10);
    assert_eq!(report["bytes"], 266);
    // Labels of three letters are everywhere and are not looked for.
    assert_eq!(report["marks"], serde_json::json!([]));
}

#[test]
fn random_blobs_and_other_keys_give_nothing() {
    let bench = Bench::new();
    // One in some ten thousand looks like a padding by chance; two in a row do not.
    let reports = [(); 2].map(|()| bench.probe(&Bench::random(700), &[]));
    let nothing = |report: &Value| report["finds"] == serde_json::json!([]);
    assert!(reports.iter().any(nothing), "{reports:?}");
    let report = &reports[0];
    assert!(report["attempts"].as_u64().unwrap() > 1000, "{report}");
    let wrapped = bench.wrapped("one", &["rsa_padding_mode:pkcs1"]);
    let report = bench.probe(&wrapped, &["--alias", "two"]);
    assert_eq!(report["finds"], serde_json::json!([]));
    let text = String::from_utf8(bench.run(&wrapped, &["--alias", "two"]).stdout).unwrap();
    assert!(text.contains("No wrapped key opens"), "{text}");
}

#[test]
fn what_cannot_be_probed_is_said() {
    let bench = Bench::new();
    let refused = |blob: &[u8], more: &[&str], wanted: &str| {
        let output = bench.run(blob, more);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && text.contains(wanted), "{text}");
    };
    refused(&Bench::random(70_000), &[], "at most 65536");
    refused(&Bench::random(300_000), &[], "at most 262144");
    refused(&Bench::random(100), &[], "fewer than");
    refused(
        &Bench::random(300),
        &["--alias", "three"],
        "under the alias three",
    );
    refused(&Bench::random(300), &["--offset", "9-1"], "FROM-TO");
    refused(&Bench::random(300), &["--label", "xyz"], "hexadecimal");
    std::fs::write(bench.path().join("store.p12"), "no keystore").unwrap();
    refused(&Bench::random(300), &[], "store.p12");
}
