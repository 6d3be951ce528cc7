//! The way of a KEK from Java's keystores into a token: what the file opens, the token opens
//! afterwards, and nobody gets the key out again.

use std::path::Path;
use std::process::Command;

use ekm::api::Base64;
use ekm::policy::PolicyConfig;
use secrecy::ExposeSecret;

use crate::import::{DATA_KEY, Desk, cannot_be_got_out, eedk, openssl, request};
use crate::keyfile::keytool_is_there;
use crate::software::Stage;
use crate::support::{Bench, Kind, drive, write_private};
use crate::tokens::can_be_made;

const STORE: &str = "store-word";
const KEYS: &str = "keys-word";

/// File, type, and its keys: alias and bits.
type Store = (
    &'static str,
    &'static str,
    &'static [(&'static str, &'static str)],
);

const STORES: [Store; 3] = [
    (
        "ekm.jck",
        "JCEKS",
        &[("tape-a", "2048"), ("tape-b", "4096")],
    ),
    ("old.jks", "JKS", &[("tape-c", "3072")]),
    ("new.p12", "PKCS12", &[("tape-d", "2048")]),
];

fn keytool(directory: &Path, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new("keytool")
        .args(arguments)
        .current_dir(directory)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "keytool {arguments:?}: {}",
        String::from_utf8_lossy(&output.stdout)
    );
    output.stdout
}

/// Password of the keys, where it is another than the store's: PKCS#12 has one for both.
fn of_keys(kind: &str) -> Option<&'static str> {
    (kind != "PKCS12").then_some(KEYS)
}

/// The stores, and of each key the public half as `ALIAS.pub`.
fn make_stores(directory: &Path) {
    for (file, kind, keys) in STORES {
        let store = ["-keystore", file, "-storetype", kind, "-storepass", STORE];
        for (alias, bits) in keys {
            let name = format!("CN={alias}");
            let word = of_keys(kind).unwrap_or(STORE);
            let made = [
                "-genkeypair",
                "-keyalg",
                "RSA",
                "-keysize",
                bits,
                "-alias",
                alias,
                "-dname",
                &name,
                "-keypass",
                word,
            ];
            keytool(directory, &[&made[..], &store].concat());
            let pem = keytool(
                directory,
                &[&["-exportcert", "-rfc", "-alias", alias][..], &store].concat(),
            );
            let certificate = format!("{alias}.crt");
            std::fs::write(directory.join(&certificate), pem).unwrap();
            let public = format!("{alias}.pub");
            openssl(
                directory,
                &[
                    "x509",
                    "-in",
                    &certificate,
                    "-pubkey",
                    "-noout",
                    "-out",
                    &public,
                ],
            );
        }
    }
}

async fn move_into(kind: Kind) {
    if !can_be_made(kind) || !keytool_is_there() {
        return;
    }
    let desk = Desk::new(kind, "moving").await;
    let directory = desk.directory.path();
    make_stores(directory);
    write_private(&desk.at("store-word"), STORE);
    write_private(&desk.at("keys-word"), KEYS);
    let mut moved = Vec::new();
    for (file, format, keys) in STORES {
        // In the file: a software keystore opens it.
        let copy = tempfile::tempdir().unwrap();
        std::fs::copy(directory.join(file), copy.path().join(file)).unwrap();
        let passwords = (STORE, of_keys(format));
        let stage = Stage::with(copy, file, passwords, &[], false).await;
        for (alias, _) in keys {
            let eedk = eedk(directory, &format!("{alias}.pub"), alias, kind);
            let opened = stage.resolve(&[Base64(eedk.clone())]).await;
            assert_eq!(opened.unwrap(), DATA_KEY, "{alias} of {file}");
            // In whole: openCryptoki's programs start in a directory of their own.
            let [file, store, keys] = [file, "store-word", "keys-word"].map(|name| desk.path(name));
            let mut import = vec!["kek", "import", &file, "--alias", alias];
            import.extend(["--password-file", &store]);
            if of_keys(format).is_some() {
                import.extend(["--key-password-file", &keys]);
            }
            desk.done(&import);
            moved.push((*alias, eedk));
        }
    }
    let bench = Bench::new(&[&desk.hsm], PolicyConfig::default()).await;
    let drive = drive(bench.directory.path(), 1, kind.form());
    bench.enrol(&drive).await;
    for (alias, eedk) in moved {
        cannot_be_got_out(&desk.hsm, alias);
        let asked = request(&drive, eedk);
        let answer = bench.service.resolve(&drive.peer, &asked).await.unwrap();
        let key = drive.soft.unwrap_sedk(&answer.into_inner().sedk).unwrap();
        assert_eq!(*key.expose_secret(), DATA_KEY, "{alias}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keks_of_java_keystores_move_into_the_embedded_token() {
    move_into(Kind::Embedded).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keks_of_java_keystores_move_into_softhsm() {
    move_into(Kind::SofthsmInProcess).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keks_of_java_keystores_move_into_opencryptoki() {
    move_into(Kind::Opencryptoki).await;
}
