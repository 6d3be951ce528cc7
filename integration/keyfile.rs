//! Key files as sites have them: made by the real keytool and openssl, opened by `ekm`.

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use aws_lc_rs::rsa::{
    OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, OaepPublicEncryptingKey,
    PrivateDecryptingKey, PublicEncryptingKey,
};
use ekm::key::KekHash;
use ekm::keyfile::{self, Content, Entry, Format, KeyFile, Passwords, PrivateKey};
use secrecy::SecretString;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{EKM, write_private};

const STORE: &str = "store-password";
const KEY: &str = "key-password";

/// Whether there is a keytool. A laptop without one is told so; in CI that is a failure.
pub(crate) fn keytool_is_there() -> bool {
    if Command::new("keytool").arg("-help").output().is_ok() {
        return true;
    }
    let why = "keytool is not there (scripts/test installs openjdk-17-jre-headless)";
    assert!(std::env::var_os("CI").is_none(), "{why}");
    eprintln!("WARNING: SKIPPED, {why}");
    false
}

fn run(directory: &Path, program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(directory)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error} (scripts/test installs it)"));
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

fn passwords(store: &str, key: Option<&str>) -> Passwords {
    Passwords {
        store: SecretString::from(store),
        key: key.map(SecretString::from),
    }
}

fn open(directory: &Path, name: &str, passwords: &Passwords) -> KeyFile {
    keyfile::open(&directory.join(name), passwords).unwrap()
}

fn entry<'a>(file: &'a KeyFile, alias: &str) -> &'a Entry {
    let mut found = file.entries.iter().filter(|entry| entry.alias == alias);
    let entry = found.next();
    assert!(found.next().is_none(), "{alias} twice: {file:?}");
    entry.unwrap_or_else(|| panic!("no {alias}: {file:?}"))
}

/// The key pair of that alias, which works: what is encrypted for its public key opens.
fn pair<'a>(file: &'a KeyFile, alias: &str, bits: u32) -> (&'a PrivateKey, &'a [Vec<u8>]) {
    let Content::Pair { key, chain } = &entry(file, alias).content else {
        panic!("{alias} is no pair: {file:?}");
    };
    assert_eq!(key.bits(), bits, "{alias}");
    let public = PublicEncryptingKey::from_der(key.spki()).unwrap();
    let public = OaepPublicEncryptingKey::new(public).unwrap();
    let mut sealed = vec![0; public.ciphertext_size()];
    let algorithm = &OAEP_SHA256_MGF1SHA256;
    let sealed = public.encrypt(algorithm, b"DK", &mut sealed, None).unwrap();
    let private = PrivateDecryptingKey::from_pkcs8(key.pkcs8()).unwrap();
    let private = OaepPrivateDecryptingKey::new(private).unwrap();
    let mut plain = vec![0; private.min_output_size()];
    let plain = private
        .decrypt(algorithm, sealed, &mut plain, None)
        .unwrap();
    assert_eq!(plain, b"DK");
    (key, chain)
}

fn hash_of_certificate(der: &[u8]) -> KekHash {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).unwrap();
    KekHash::of_spki(certificate.public_key().raw)
}

/// A store of keytool's: three key pairs, a secret key where it takes one, a partner's certificate.
struct Keytool {
    directory: TempDir,
    name: &'static str,
    kind: &'static str,
    /// What each command is given besides.
    with: &'static [&'static str],
}

impl Keytool {
    const PAIRS: [(&'static str, u32); 3] = [
        ("Tape-2048", 2048),
        ("tape-3072", 3072),
        ("tape-4096", 4096),
    ];

    fn new(name: &'static str, kind: &'static str, with: &'static [&'static str]) -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            name,
            kind,
            with,
        }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut all = arguments.to_vec();
        all.extend(["-keystore", self.name, "-storetype", self.kind]);
        all.extend(["-storepass", STORE]);
        all.extend(self.with);
        run(self.directory.path(), "keytool", &all)
    }

    fn pair(&self, alias: &str, bits: u32, key_password: &str, more: &[&str]) {
        let (bits, name) = (bits.to_string(), format!("CN=KEK {alias}, O=Example"));
        let mut arguments = vec!["-genkeypair", "-keyalg", "RSA", "-keysize", &bits];
        arguments.extend(["-alias", alias, "-dname", &name, "-keypass", key_password]);
        arguments.extend(more);
        self.run(&arguments);
    }

    fn certificate(&self, alias: &str) -> Vec<u8> {
        self.run(&["-exportcert", "-alias", alias]).stdout
    }

    fn open(&self, passwords: &Passwords) -> KeyFile {
        open(self.directory.path(), self.name, passwords)
    }

    fn fill(&self, key_password: &str) {
        for (alias, bits) in Self::PAIRS {
            self.pair(alias, bits, key_password, &[]);
        }
        if self.kind != "JKS" {
            for (alias, algorithm, bits) in [("lto000", "AES", "256"), ("lto001", "DESede", "168")]
            {
                let key = ["-genseckey", "-alias", alias, "-keyalg", algorithm];
                let rest = ["-keysize", bits, "-keypass", key_password];
                self.run(&[&key[..], &rest].concat());
            }
        }
        let partner = self.certificate("tape-3072");
        std::fs::write(self.directory.path().join("partner.der"), partner).unwrap();
        let import = ["-importcert", "-noprompt", "-alias", "partner"];
        self.run(&[&import[..], &["-file", "partner.der"]].concat());
    }

    /// All of it is there.
    fn check(&self, format: Format, key_password: Option<&str>) {
        let file = self.open(&passwords(STORE, key_password));
        assert_eq!(file.format, format);
        for (alias, bits) in Self::PAIRS {
            let (key, chain) = pair(&file, &alias.to_lowercase(), bits);
            assert_eq!(chain, [self.certificate(alias)]);
            assert_eq!(key.hash(), hash_of_certificate(&chain[0]));
        }
        let Content::Certificate(der) = &entry(&file, "partner").content else {
            panic!("{file:?}");
        };
        assert_eq!(*der, self.certificate("tape-3072"));
        let secrets = if self.kind == "JKS" { 0 } else { 2 };
        assert_eq!(file.entries.len(), 4 + secrets);
        if secrets > 0 {
            for (alias, name, length) in [("lto000", "AES", 256), ("lto001", "DESede", 192)] {
                let Content::Secret { algorithm, bits } = &entry(&file, alias).content else {
                    panic!("{file:?}");
                };
                assert_eq!((algorithm.as_str(), *bits), (name, Some(length)));
            }
        }
        // A certificate of PKCS#12 has no time.
        let made = |entry: &&Entry| format != Format::Pkcs12 || entry.alias != "partner";
        for entry in file.entries.iter().filter(made) {
            let age = time::OffsetDateTime::now_utc() - entry.created.unwrap();
            assert!(age < Duration::from_secs(600), "{entry:?}");
        }
    }
}

#[test]
fn a_jceks_store_of_keytool_opens() {
    if !keytool_is_there() {
        return;
    }
    let store = Keytool::new("site.jceks", "JCEKS", &[]);
    store.fill(KEY);
    // One whose password is the store's.
    store.pair("same", 2048, STORE, &[]);
    let file = store.open(&passwords(STORE, Some(KEY)));
    pair(&file, "same", 2048);
    // Without the keys' password the store opens, and that one key.
    let file = store.open(&passwords(STORE, None));
    pair(&file, "same", 2048);
    let Content::Unreadable { reason } = &entry(&file, "tape-4096").content else {
        panic!("{file:?}");
    };
    assert!(reason.contains("--key-password-file"), "{reason}");
    store.run(&["-delete", "-alias", "same"]);
    store.check(Format::Jceks, Some(KEY));
}

#[test]
fn a_jks_store_of_keytool_opens() {
    if !keytool_is_there() {
        return;
    }
    let store = Keytool::new("site.jks", "JKS", &[]);
    store.fill(KEY);
    store.check(Format::Jks, Some(KEY));
}

#[test]
fn a_pkcs12_store_of_keytool_opens() {
    if !keytool_is_there() {
        return;
    }
    let store = Keytool::new("site.p12", "PKCS12", &[]);
    store.fill(STORE);
    store.check(Format::Pkcs12, None);
}

#[test]
fn an_old_pkcs12_store_of_keytool_opens() {
    if !keytool_is_there() {
        return;
    }
    let store = Keytool::new("old.p12", "PKCS12", &["-J-Dkeystore.pkcs12.legacy"]);
    store.fill(STORE);
    store.check(Format::Pkcs12, None);
}

/// A chain of two, by an authority of keytool's.
#[test]
fn the_chain_of_a_key_is_whole_in_every_format() {
    if !keytool_is_there() {
        return;
    }
    let store = Keytool::new("chain.jceks", "JCEKS", &[]);
    store.pair("ca", 2048, STORE, &["-ext", "bc:c"]);
    store.pair("tape", 2048, STORE, &["-signer", "ca"]);
    let directory = store.directory.path();
    let import = |kind: &'static str, name: &'static str| {
        let from = [
            "-importkeystore",
            "-srckeystore",
            "chain.jceks",
            "-srcalias",
            "tape",
        ];
        let what = [
            "-srcstorepass",
            STORE,
            "-destkeystore",
            name,
            "-deststoretype",
            kind,
        ];
        let all = [&from[..], &what, &["-deststorepass", STORE]].concat();
        run(directory, "keytool", &all);
    };
    import("JKS", "chain.jks");
    import("PKCS12", "chain.p12");
    let sealed = format!("pass:{STORE}");
    run(
        directory,
        "openssl",
        &[
            "pkcs12",
            "-in",
            "chain.p12",
            "-passin",
            &sealed,
            "-nodes",
            "-out",
            "chain.pem",
        ],
    );
    let expected = [store.certificate("tape"), store.certificate("ca")];
    for name in ["chain.jceks", "chain.jks", "chain.p12", "chain.pem"] {
        let file = open(directory, name, &passwords(STORE, None));
        assert_eq!(pair(&file, "tape", 2048).1, expected, "{name}");
        let entries = if name == "chain.jceks" { 2 } else { 1 };
        assert_eq!(file.entries.len(), entries, "{name}");
    }
}

/// `kek.key` and `kek.crt`, RSA of that size, and all the ways in which OpenSSL writes them.
fn openssl(bits: u32) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let openssl = |arguments: &str| {
        let words: Vec<&str> = arguments.split(' ').collect();
        run(directory.path(), "openssl", &words);
    };
    openssl(&format!(
        "req -x509 -newkey rsa:{bits} -nodes -keyout kek.key -out kek.crt -days 3650 -subj /CN=Tape{bits}"
    ));
    let export =
        format!("pkcs12 -export -inkey kek.key -in kek.crt -name Tape-2026 -passout pass:{STORE}");
    openssl(&format!("{export} -out modern.p12"));
    openssl(&format!("{export} -legacy -out legacy.p12"));
    openssl(&format!("{export} -nomac -out nomac.p12"));
    openssl(&format!(
        "{export} -certpbe NONE -keypbe PBE-SHA1-2DES -macalg sha512 -out mixed.p12"
    ));
    openssl(&format!(
        "{export} -keypbe AES-192-CBC -certpbe DES-EDE3-CBC -macalg sha384 -iter 100000 -out more.p12"
    ));
    openssl(&format!(
        "{export} -certpbe PBE-SHA1-RC2-128 -keypbe NONE -legacy -macalg sha1 -out rc2.p12"
    ));
    openssl(&format!(
        "pkcs8 -topk8 -in kek.key -v2 aes-256-cbc -v2prf hmacWithSHA512 -passout pass:{STORE} -out sealed.pem"
    ));
    openssl("rsa -in kek.key -traditional -out pkcs1.pem");
    openssl(&format!(
        "rsa -in kek.key -traditional -aes256 -passout pass:{STORE} -out old.pem"
    ));
    directory
}

#[test]
fn files_of_openssl_open() {
    for bits in [2048, 3072, 4096] {
        let directory = openssl(bits);
        let pem = std::fs::read(directory.path().join("kek.crt")).unwrap();
        let (_, certificate) = x509_parser::pem::parse_x509_pem(&pem).unwrap();
        let hash = hash_of_certificate(&certificate.contents);
        for name in ["modern", "legacy", "nomac", "mixed", "more", "rc2"] {
            let file = open(
                directory.path(),
                &format!("{name}.p12"),
                &passwords(STORE, None),
            );
            assert_eq!(file.format, Format::Pkcs12);
            let (key, chain) = pair(&file, "Tape-2026", bits);
            assert_eq!(key.hash(), hash, "{name}");
            assert_eq!(chain, std::slice::from_ref(&certificate.contents), "{name}");
            assert_eq!(file.entries.len(), 1, "{name}: {file:?}");
        }
        for name in ["kek.key", "sealed.pem", "pkcs1.pem"] {
            let file = open(directory.path(), name, &passwords(STORE, None));
            assert_eq!(file.format, Format::Pem);
            assert_eq!(pair(&file, "key1", bits).0.hash(), hash, "{name}");
        }
        let file = open(directory.path(), "old.pem", &passwords(STORE, None));
        let Content::Unreadable { reason } = &entry(&file, "key1").content else {
            panic!("{file:?}");
        };
        // What it says is what helps.
        assert!(reason.contains("openssl pkcs8 -topk8 -v2 aes-256-cbc -in FILE -out NEW"));
        let sealed = format!("pass:{STORE}");
        let convert = [
            "pkcs8",
            "-topk8",
            "-v2",
            "aes-256-cbc",
            "-in",
            "old.pem",
            "-out",
            "new.pem",
        ];
        let with = ["-passin", &sealed, "-passout", &sealed];
        run(directory.path(), "openssl", &[&convert[..], &with].concat());
        let file = open(directory.path(), "new.pem", &passwords(STORE, None));
        assert_eq!(pair(&file, "key1", bits).0.hash(), hash);
    }
}

/// What `ekm kek list --file` says, in a gigabyte less than it could want, and how long it took.
fn list(directory: &Path, name: &str, more: &[&str]) -> (Output, Duration) {
    let start = Instant::now();
    let output = Command::new("sh")
        .args(["-c", "ulimit -v 400000; exec \"$@\"", "sh", EKM])
        .args(["--config", "none.toml", "kek", "list", "--file", name])
        .args(more)
        .current_dir(directory)
        .output()
        .unwrap();
    (output, start.elapsed())
}

/// The command fails at once, and says that.
fn refused(directory: &Path, name: &str, texts: &[&str]) {
    let (output, took) = list(directory, name, &["--password-file", "password"]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{name}: {text}");
    for wanted in [name].iter().chain(texts) {
        assert!(text.contains(wanted), "{name}: no {wanted:?} in {text}");
    }
    assert!(
        !text.contains(STORE) && !text.contains("panicked"),
        "{text}"
    );
    // Alone it takes far less; what has no bound takes hours.
    assert!(took < Duration::from_secs(60), "{name}: {took:?}");
}

#[test]
fn hostile_files_get_a_clear_error_in_bounded_time_and_memory() {
    let directory = openssl(2048);
    let directory = directory.path();
    let at = |name: &str| directory.join(name);
    write_private(&at("password"), &format!("{STORE}\n"));
    let modern = std::fs::read(at("modern.p12")).unwrap();

    let huge = std::fs::File::create(at("huge.jks")).unwrap();
    std::io::Write::write_all(&mut &huge, &[0xfe, 0xed, 0xfe, 0xed, 0, 0, 0, 2]).unwrap();
    huge.set_len(1 << 30).unwrap();
    refused(directory, "huge.jks", &["1073741824 bytes", "16777216"]);

    // The largest that is read: four million headers of entries, and one of nothing.
    std::fs::write(
        at("large.jks"),
        [0xfe, 0xed, 0xfe, 0xed, 0, 0, 0, 2, 0xff, 0xff, 0xff, 0xff]
            .iter()
            .copied()
            .chain([0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0].repeat(800_000))
            .collect::<Vec<u8>>(),
    )
    .unwrap();
    refused(directory, "large.jks", &["more than 20000"]);
    let deep = [0x30, 0x80, 2, 1, 3]
        .iter()
        .copied()
        .chain([0x30, 0x80].repeat(8_000_000));
    std::fs::write(at("deep.p12"), deep.collect::<Vec<u8>>()).unwrap();
    refused(directory, "deep.p12", &["damaged"]);
    std::fs::write(
        at("line.pem"),
        [
            b"-----BEGIN PRIVATE KEY-----\n".to_vec(),
            vec![b'A'; 16_000_000],
        ]
        .concat(),
    )
    .unwrap();
    refused(directory, "line.pem", &["has no end line"]);

    // The iteration count of the MAC is the last thing in the file: 2048 becomes 2^31.
    let count = [2, 2, 8, 0];
    assert!(modern.ends_with(&count));
    // The outer header, the version, and what is guarded, whose length has two bytes.
    assert_eq!(modern[7..9], [0x30, 0x82]);
    let mac = 11 + usize::from(u16::from_be_bytes([modern[9], modern[10]]));
    assert_eq!(modern[mac], 0x30);
    assert_eq!(mac + 2 + usize::from(modern[mac + 1]), modern.len());
    let mut costly = modern[..modern.len() - 4].to_vec();
    costly.extend([2, 5, 0, 0x80, 0, 0, 0]);
    costly[mac + 1] += 3;
    let length = u16::from_be_bytes([costly[2], costly[3]]) + 3;
    costly[2..4].copy_from_slice(&length.to_be_bytes());
    std::fs::write(at("costly.p12"), &costly).unwrap();
    refused(
        directory,
        "costly.p12",
        &["its MAC", "2147483648 iterations", "5000000"],
    );

    std::fs::write(at("short.p12"), &modern[..modern.len() / 2]).unwrap();
    refused(directory, "short.p12", &["PKCS#12: damaged", "cut off"]);
    let mut flipped = modern.clone();
    flipped[modern.len() / 2] ^= 4;
    std::fs::write(at("flipped.p12"), &flipped).unwrap();
    refused(directory, "flipped.p12", &["PKCS#12"]);
    std::fs::write(at("empty.p12"), b"").unwrap();
    refused(directory, "empty.p12", &["it is empty"]);
    refused(directory, "none.p12", &["cannot read", "No such file"]);

    write_private(&at("password"), "another\n");
    refused(
        directory,
        "modern.p12",
        &["wrong password", "openssl pkcs12"],
    );
    refused(directory, "sealed.pem", &["wrong password"]);
}

#[test]
fn hostile_stores_of_java_get_a_clear_error_in_bounded_time() {
    if !keytool_is_there() {
        return;
    }
    for (name, kind) in [("site.jceks", "JCEKS"), ("site.jks", "JKS")] {
        let store = Keytool::new(name, kind, &[]);
        store.pair("tape", 2048, STORE, &[]);
        let directory = store.directory.path();
        write_private(&directory.join("password"), &format!("{STORE}\n"));
        let whole = std::fs::read(directory.join(name)).unwrap();
        for cut in [3, 11, 40, whole.len() / 2, whole.len() - 1] {
            std::fs::write(directory.join("short"), &whole[..cut]).unwrap();
            let texts: &[&str] = if cut < 4 {
                &["neither JKS"]
            } else {
                &[kind, "damaged"]
            };
            refused(directory, "short", texts);
        }
        let mut flipped = whole.clone();
        // In the date of the entry, which only the hash protects.
        flipped[12 + 4 + 2 + 4 + 5] ^= 1;
        std::fs::write(directory.join("flipped"), &flipped).unwrap();
        refused(
            directory,
            "flipped",
            &[kind, "the password opens the key \"tape\"", "damaged"],
        );
        write_private(&directory.join("password"), "another\n");
        refused(
            directory,
            name,
            &[kind, "wrong store password", "keytool -list"],
        );
    }
}

#[test]
fn kek_list_shows_a_key_file_without_any_configuration() {
    if !keytool_is_there() {
        return;
    }
    let store = Keytool::new("site.jceks", "JCEKS", &[]);
    store.fill(KEY);
    store.pair(
        "expired",
        2048,
        KEY,
        &["-startdate", "-20d", "-validity", "10"],
    );
    store.pair(&"x".repeat(65), 2048, KEY, &[]);
    store.pair("short", 1024, KEY, &[]);
    let ec = [
        "-genkeypair",
        "-keyalg",
        "EC",
        "-alias",
        "curve",
        "-dname",
        "CN=curve",
    ];
    store.run(&[&ec[..], &["-keypass", KEY]].concat());
    let directory = store.directory.path();
    write_private(&directory.join("password"), &format!("{STORE}\n"));
    write_private(&directory.join("keys"), &format!("{KEY}\n"));
    let files = ["--password-file", "password", "--key-password-file", "keys"];

    let (output, _) = list(directory, "site.jceks", &files);
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        table.starts_with("site.jceks: JCEKS, 10 entries\n ALIAS"),
        "{table}"
    );
    assert!(
        table.contains("expired: its certificate has expired"),
        "{table}"
    );
    assert!(table.contains("at most 64 characters, got 65"), "{table}");
    assert!(
        table.contains("short: no KEK: it is RSA of 1024 bits"),
        "{table}"
    );
    assert!(
        table.contains("curve: no KEK: it is not an RSA key (EC)"),
        "{table}"
    );

    let (output, _) = list(directory, "site.jceks", &[&files[..], &["--json"]].concat());
    let listing: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(listing["format"], "JCEKS");
    let of = |alias: &str| {
        let entries = listing["entries"].as_array().unwrap();
        let entry = entries.iter().find(|entry| entry["alias"] == alias);
        entry.unwrap_or_else(|| panic!("no {alias} in {listing}"))
    };
    let kek = of("tape-3072");
    let hash = hash_of_certificate(&store.certificate("tape-3072")).to_string();
    assert_eq!(
        (&kek["kind"], &kek["bits"]),
        (&"key pair".into(), &3072.into())
    );
    assert_eq!(
        (&kek["hash"], &kek["usable"]),
        (&hash.clone().into(), &true.into())
    );
    assert!(
        kek["subject"]
            .as_str()
            .unwrap()
            .contains("CN=KEK tape-3072"),
        "{kek}"
    );
    assert!(
        table.contains(&hash[..16]) && !table.contains(&hash[..17]),
        "{table}"
    );
    assert_eq!(of("expired")["usable"], true);
    assert_eq!(of("lto000")["kind"], "secret key");
    assert_eq!(of("lto000")["bits"], 256);
    assert_eq!(of("partner")["kind"], "certificate");
    for alias in [&"x".repeat(65), "short", "curve", "lto000", "partner"] {
        assert_eq!(of(alias)["usable"], false, "{alias}");
    }
}

#[test]
fn a_table_of_a_key_file_fits_100_columns() {
    let directory = openssl(2048);
    let directory = directory.path();
    write_private(&directory.join("password"), STORE);
    let (output, _) = list(directory, "modern.p12", &["--password-file", "password"]);
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.contains("Tape-2026"), "{table}");
    for line in table.lines() {
        assert!(line.chars().count() <= 100, "{line}");
    }
}

#[test]
fn passwords_of_key_files_are_asked_for_only_where_they_are_needed() {
    let directory = openssl(2048);
    let directory = directory.path();
    // There is no terminal here: a session of its own has none.
    let list = |name: &str, more: &[&str]| {
        let output = Command::new("setsid")
            .args(["--wait", EKM, "kek", "list", "--file", name])
            .args(more)
            .current_dir(directory)
            .stdin(std::process::Stdio::null())
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(text).unwrap())
    };
    let (code, text) = list("kek.key", &[]);
    assert_eq!(code, Some(0), "{text}");
    let (code, text) = list("modern.p12", &[]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("--password-file"), "{text}");
    std::fs::write(directory.join("open"), STORE).unwrap();
    let mode: std::fs::Permissions = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(directory.join("open"), mode).unwrap();
    let (code, text) = list("modern.p12", &["--password-file", "open"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.contains("password file") && text.contains("chmod 600"),
        "{text}"
    );
    assert!(!text.contains("PIN"), "{text}");
}
