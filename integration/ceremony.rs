//! A second copy of a KEK: made at its birth, restored from two of three
//! shares, and asked for by the policy. Every step is a command line.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use ekm::bridge::message::Provenance;
use ekm::copies::secret::{self, Point};
use ekm::copies::{KekCopyFile, Share};
use ekm::keystore::KnownKek;
use secrecy::SecretString;
use tempfile::TempDir;

use crate::faulty::{Fault, Faulty};
use crate::site::{Site, certify, configure};
use crate::support::{EKM, Hsm, Kind, TestDrive, drive, write_private};
use crate::tokens::can_be_made;

const PHRASES: [&str; 3] = [
    "the first holder's own words",
    "the second holder's own words",
    "the third holder's own words",
];

const PROVEN: &str = "[policy]\nrequire_copy = \"proven\"\n";

/// Where a ceremony's files go, and its holders.
struct Table {
    directory: TempDir,
}

impl Table {
    fn new() -> Self {
        let table = Self {
            directory: tempfile::tempdir().unwrap(),
        };
        for (phrase, n) in PHRASES.iter().zip(1..) {
            write_private(&table.at(&format!("phrase-{n}")), &format!("{phrase}\n"));
        }
        write_private(&table.at("phrase-wrong"), "nobody's words at all\n");
        table
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn path(&self, name: &str) -> String {
        self.at(name).display().to_string()
    }

    /// `ekm kek generate LABEL --copy …` with three holders.
    fn generate(&self, label: &str) -> Vec<String> {
        let mut words = vec![
            "kek".to_owned(),
            "generate".to_owned(),
            label.to_owned(),
            "--bits".to_owned(),
            "2048".to_owned(),
            "--shares".to_owned(),
            "2-of-3".to_owned(),
            "--copy".to_owned(),
            self.path(&format!("{label}.kekcopy")),
            "--share-dir".to_owned(),
            self.path("shares"),
            "--transcript".to_owned(),
            self.path(&format!("{label}.txt")),
        ];
        for n in 1..=3 {
            words.push("--passphrase-file".to_owned());
            words.push(self.path(&format!("phrase-{n}")));
        }
        words
    }

    /// `VERB… COPY --share …` with these shares and the passphrases of their holders.
    fn with_shares(&self, verb: &[&str], label: &str, shares: &[u8]) -> Vec<String> {
        let mut words: Vec<String> = verb.iter().map(|word| (*word).to_owned()).collect();
        words.push(self.path(&format!("{label}.kekcopy")));
        for n in shares {
            words.push("--share".to_owned());
            words.push(self.path(&format!("shares/{label}-{n}.share")));
            words.push("--passphrase-file".to_owned());
            words.push(self.path(&format!("phrase-{n}")));
        }
        words
    }

    fn share(&self, label: &str, n: u8) -> Share {
        let text = std::fs::read_to_string(self.at(&format!("shares/{label}-{n}.share"))).unwrap();
        Share::parse(&text).unwrap()
    }

    /// The transport key, as two holders know it.
    fn transport_key(&self, label: &str) -> [u8; 32] {
        let copy = std::fs::read(self.at(&format!("{label}.kekcopy"))).unwrap();
        let copy = KekCopyFile::parse(&copy).unwrap();
        let points: Vec<Point> = [(1, PHRASES[0]), (2, PHRASES[1])]
            .map(|(n, phrase)| {
                let phrase = SecretString::from(phrase.to_owned());
                self.share(label, n).open(&phrase).unwrap()
            })
            .into();
        let points: Vec<&Point> = points.iter().collect();
        let key = secret::combine(&points, copy.quorum().unwrap()).unwrap();
        copy.authenticate(&key).unwrap();
        *key.expose()
    }

    /// The files that a ceremony would have left.
    fn files(&self) -> Vec<PathBuf> {
        let of = |directory: PathBuf| {
            let entries = std::fs::read_dir(directory).into_iter().flatten();
            entries.map(|entry| entry.unwrap().path()).filter(|path| {
                let name = path.file_name().unwrap().to_string_lossy();
                path.is_file() && !name.starts_with("phrase")
            })
        };
        of(self.at("")).chain(of(self.at("shares"))).collect()
    }
}

/// A configuration without a server, and the program where its token is.
struct Alone<'a> {
    hsm: &'a Hsm,
    directory: TempDir,
}

impl<'a> Alone<'a> {
    fn new(hsm: &'a Hsm, faulty: Option<&Faulty>, policy: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let token = hsm.config("main");
        let token = match faulty {
            Some(faulty) => faulty.through(token),
            None => token,
        };
        certify(&directory.path().join("tls"));
        configure(&directory.path().join("ekm.toml"), &[token], policy);
        Self { hsm, directory }
    }

    fn run(&self, words: &[String]) -> Output {
        self.hsm
            .surroundings
            .command(Path::new(EKM))
            .arg("--config")
            .arg(self.directory.path().join("ekm.toml"))
            .args(words)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    fn done(&self, words: &[String]) -> String {
        let output = self.run(words);
        assert!(output.status.success(), "{words:?}: {}", error(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    fn keks(&self) -> Vec<KnownKek> {
        serde_json::from_str(&self.done(&words(&["kek", "list", "--json"]))).unwrap()
    }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn error(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

impl Site {
    fn run(&self, words: &[String]) -> Output {
        Command::new(EKM)
            .arg("--config")
            .arg(self.config())
            .args(words)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    fn done(&self, words: &[String]) -> String {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        self.ekm(&words)
    }

    fn refused(&self, words: &[String]) -> String {
        let output = self.run(words);
        assert!(!output.status.success(), "{words:?} was not refused");
        error(&output)
    }

    fn kek(&self, label: &str) -> KnownKek {
        let keks: Vec<KnownKek> =
            serde_json::from_str(&self.ekm(&["kek", "list", "--json"])).unwrap();
        keks.into_iter()
            .find(|kek| kek.label.as_str() == label)
            .unwrap()
    }

    /// Writes or reads a cartridge with the drive, over TLS.
    fn tape(&self, table: &Table, drive: &TestDrive, verb: &[&str], input: &Path) -> Output {
        let serial = drive.soft.serial();
        drop(self.client(&drive.peer));
        let tls = self.directory.path().join("tls");
        let certificate = tls.join(format!("issued/drive-{serial}"));
        let number = serial.as_str().trim_start_matches('0');
        let directory = table.at(&format!("drive{number}"));
        self.done(&words(&[
            "softdrive",
            "connect",
            &directory.display().to_string(),
            "--server",
            &self.address,
            "--ca",
            &tls.join("ca.crt").display().to_string(),
            "--tls-cert",
            &certificate.with_extension("crt").display().to_string(),
            "--tls-key",
            &certificate.with_extension("key").display().to_string(),
        ]));
        Command::new(EKM)
            .arg("softdrive")
            .args(verb)
            .arg("--drive")
            .arg(&directory)
            .stdin(std::fs::File::open(input).unwrap())
            .output()
            .unwrap()
    }
}

fn data(table: &Table) -> PathBuf {
    let path = table.at("phrase-data");
    std::fs::write(
        &path,
        "what must be readable in thirty years\n".repeat(9_000),
    )
    .unwrap();
    path
}

/// What the hand gets that tries to wrap the KEK out.
fn stays_in(hsm: &Hsm, label: &str) {
    let tried = hsm.hand(&["wrap-out", label]);
    assert_eq!(tried.lines().count(), 2, "{tried}");
    assert!(!tried.contains("wrapped"), "{tried}");
    let refused = ["KeyUnextractable", "KeyFunctionNotPermitted"];
    assert!(refused.iter().any(|code| tried.contains(code)), "{tried}");
    let attributes = hsm.hand(&["attributes", label]);
    for expected in ["Sensitive(true)", "Extractable(false)", "Unwrap(true)"] {
        assert!(attributes.contains(expected), "{attributes}");
    }
}

async fn a_tape_outlives_its_token(kind: Kind) {
    let (first, second) = (
        Hsm::new(kind, "first").await,
        Hsm::new(kind, "second").await,
    );
    let table = Table::new();
    let site = Site::start(&[&first], PROVEN).await;
    // A KEK with one copy is nothing to write under here.
    site.ekm(&["kek", "generate", "LONE", "--bits", "2048"]);
    let said = site.done(&table.generate("TAPE"));
    assert!(said.contains("A proven copy"), "{said}");
    stays_in(&first, "TAPE");
    let kek = site.kek("TAPE");
    assert_eq!(kek.provenance, Some(Provenance::Copied));
    assert!(kek.copies.iter().any(|copy| copy.proven));
    assert!(site.ekm(&["kek", "list"]).contains("proven"));

    let mut drive = drive(table.directory.path(), 1, kind.form());
    let input = data(&table);
    let cartridge = table.path("phrase-cartridge");
    drive.row.kek1 = Some("LONE".parse().unwrap());
    site.enrol(&drive).await;
    let write = ["write", "--cartridge", &cartridge, "--volser", "VOL001"];
    let refused = site.tape(&table, &drive, &write, &input);
    assert!(!refused.status.success());
    assert!(error(&refused).contains("EE31"), "{}", error(&refused));
    assert!(
        error(&refused).contains("require_copy"),
        "{}",
        error(&refused)
    );
    site.ekm(&[
        "drive",
        "mod",
        drive.soft.serial().as_str(),
        "--kek1",
        "TAPE",
    ]);
    let written = site.tape(&table, &drive, &write, &input);
    assert!(written.status.success(), "{}", error(&written));
    site.stop();
    drop(first);

    // The token and all that its site knew are gone.
    drive.row.kek1 = None;
    let site = Site::start(&[&second], PROVEN).await;
    let one = site.refused(&table.with_shares(&["kek", "restore"], "TAPE", &[2]));
    assert!(
        one.contains("1 share was given, and 2 shares are needed: 1 more"),
        "{one}"
    );
    assert_eq!(second.hand(&["list"]), "");
    site.enrol(&drive).await;
    let read = ["read", "--cartridge", &cartridge];
    assert!(!site.tape(&table, &drive, &read, &input).status.success());

    site.done(&table.with_shares(&["kek", "restore"], "TAPE", &[3, 1]));
    stays_in(&second, "TAPE");
    let kek = site.kek("TAPE");
    assert_eq!(kek.provenance, Some(Provenance::Restored));
    let read = site.tape(&table, &drive, &read, &input);
    assert!(read.status.success(), "{}", error(&read));
    assert!(read.stdout == std::fs::read(&input).unwrap());

    // Restored, it is on one token again. That its copy is still good is enough.
    let cartridge = table.path("phrase-cartridge-2");
    site.ekm(&[
        "drive",
        "mod",
        drive.soft.serial().as_str(),
        "--kek1",
        "TAPE",
    ]);
    let write = ["write", "--cartridge", &cartridge, "--volser", "VOL002"];
    let refused = site.tape(&table, &drive, &write, &input);
    assert!(
        error(&refused).contains("require_copy"),
        "{}",
        error(&refused)
    );
    for pair in [[1, 2], [2, 3], [1, 3], [3, 2]] {
        site.done(&table.with_shares(&["kek", "copy", "prove"], "TAPE", &pair));
    }
    let written = site.tape(&table, &drive, &write, &input);
    assert!(written.status.success(), "{}", error(&written));
    // Nothing of the proofs stayed, and it is not restored over itself.
    assert_eq!(second.hand(&["list"]), "TAPE\nTAPE\n");
    let twice = site.refused(&table.with_shares(&["kek", "restore"], "TAPE", &[1, 2]));
    assert!(twice.contains("has this very key already"), "{twice}");
    stays_in(&second, "TAPE");
    site.ekm(&["audit", "verify"]);
    site.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tape_outlives_its_embedded_token() {
    a_tape_outlives_its_token(Kind::Embedded).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tape_outlives_its_softhsm() {
    a_tape_outlives_its_token(Kind::SofthsmInProcess).await;
}

/// A KEK goes from one product to another where both know RFC 5649.
#[tokio::test(flavor = "multi_thread")]
async fn a_kek_goes_from_softhsm_to_the_embedded_token() {
    let softhsm = Hsm::new(Kind::SofthsmInProcess, "first").await;
    let embedded = Hsm::new(Kind::Embedded, "second").await;
    let table = Table::new();
    Alone::new(&softhsm, None, "").done(&table.generate("TAPE"));
    let other = Alone::new(&embedded, None, "");
    other.done(&table.with_shares(&["kek", "restore"], "TAPE", &[2, 3]));
    stays_in(&embedded, "TAPE");
    assert_eq!(other.keks()[0].provenance, Some(Provenance::Restored));
}

#[tokio::test(flavor = "multi_thread")]
async fn opencryptoki_makes_a_copy_and_restores_one() {
    if !can_be_made(Kind::Opencryptoki) {
        return;
    }
    let first = Hsm::new(Kind::Opencryptoki, "first").await;
    let second = Hsm::new(Kind::Opencryptoki, "second").await;
    let table = Table::new();
    let said = Alone::new(&first, None, "").done(&table.generate("TAPE"));
    assert!(said.contains("A proven copy"), "{said}");
    stays_in(&first, "TAPE");
    let other = Alone::new(&second, None, "");
    other.done(&table.with_shares(&["kek", "restore"], "TAPE", &[1, 3]));
    stays_in(&second, "TAPE");
    assert_eq!(other.keks()[0].provenance, Some(Provenance::Restored));
}

/// Each defect is told with the share that has it, and nothing comes to the token.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_share_is_said() {
    let (first, second) = (
        Hsm::new(Kind::Embedded, "first").await,
        Hsm::new(Kind::Embedded, "second").await,
    );
    let table = Table::new();
    let here = Alone::new(&first, None, "");
    here.done(&table.generate("TAPE"));
    here.done(&table.generate("OTHER"));
    let there = Alone::new(&second, None, "");
    let good = table.with_shares(&["kek", "restore"], "TAPE", &[1, 2]);
    let refused = |words: &[String], share: &str, defect: &str| {
        let output = there.run(words);
        let told = error(&output);
        assert!(!output.status.success(), "{words:?}");
        assert!(told.contains(share), "{told}");
        assert!(told.contains(defect), "{told}");
        assert_eq!(second.hand(&["list"]), "", "{told}");
    };
    let replaced = |from: &str, to: &str| -> Vec<String> {
        let (from, to) = (table.path(from), table.path(to));
        let swap = |word: &String| {
            if *word == from {
                to.clone()
            } else {
                word.clone()
            }
        };
        good.iter().map(swap).collect()
    };
    refused(
        &replaced("phrase-2", "phrase-wrong"),
        "share 2 of 3",
        "the passphrase is wrong",
    );
    refused(
        &replaced("shares/TAPE-2.share", "shares/OTHER-2.share"),
        "OTHER-2.share is of another copy: of KEK OTHER",
        "this copy is of KEK TAPE",
    );
    refused(
        &replaced("shares/TAPE-2.share", "shares/TAPE-1.share"),
        "TAPE-1.share",
        "are both share 1",
    );
    let text = std::fs::read_to_string(table.at("shares/TAPE-2.share")).unwrap();
    let sealed = text
        .lines()
        .find(|line| line.starts_with("Sealed-A"))
        .unwrap();
    let digit = sealed.chars().last().unwrap();
    let other = if digit == '0' { '1' } else { '0' };
    let slip = format!("{}{other}", sealed.strip_suffix(digit).unwrap());
    write_private(&table.at("shares/slip"), &text.replace(sealed, &slip));
    refused(
        &replaced("shares/TAPE-2.share", "shares/slip"),
        "shares/slip",
        "damaged or was mistyped",
    );
    write_private(&table.at("shares/half"), &text[..text.len() / 2]);
    refused(
        &replaced("shares/TAPE-2.share", "shares/half"),
        "shares/half",
        "cut off",
    );
    // The copy itself: its wrapped key changed, and the authentication tells.
    let copy = std::fs::read_to_string(table.at("TAPE.kekcopy")).unwrap();
    let at = copy.find("\"bytes\": \"").unwrap() + 20;
    let mut changed = copy.clone();
    let digit = if &copy[at..=at] == "0" { "1" } else { "0" };
    changed.replace_range(at..=at, digit);
    write_private(&table.at("changed.kekcopy"), &changed);
    refused(
        &replaced("TAPE.kekcopy", "changed.kekcopy"),
        "the shares make a key that is not this copy's",
        "the file was changed",
    );
    there.done(&good);
    let modes = |path: PathBuf| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    for file in table.files().iter().filter(|file| !file.ends_with("slip")) {
        assert_eq!(modes(file.clone()), 0o600, "{}", file.display());
    }
}

/// What undoes the point of a ceremony is refused before there is a key.
#[tokio::test(flavor = "multi_thread")]
async fn a_ceremony_keeps_its_own_rules() {
    let hsm = Hsm::new(Kind::Embedded, "rules").await;
    let here = Alone::new(&hsm, None, "");
    let table = Table::new();
    let folder = table.directory.path().display().to_string();
    for (from, to, told) in [
        ("phrase-2", table.path("phrase-1"), "another holder's"),
        ("shares", folder, "in one directory"),
        (
            "TAPE.kekcopy",
            table.path("medium/TAPE.kekcopy"),
            "medium mounted",
        ),
    ] {
        let from = table.path(from);
        let mut words = table.generate("TAPE");
        for word in words.iter_mut().filter(|word| **word == from) {
            word.clone_from(&to);
        }
        let output = here.run(&words);
        assert!(!output.status.success(), "{told}");
        assert!(error(&output).contains(told), "{}", error(&output));
    }
    assert!(!table.at("medium").exists());
    assert_eq!(here.keks(), []);
    // Twice is once too often, and harms nothing.
    here.done(&table.generate("TAPE"));
    let restore = table.with_shares(&["kek", "restore"], "TAPE", &[1, 2]);
    let output = here.run(&restore);
    let told = error(&output);
    assert!(told.contains("this very key already"), "{told}");
    assert!(!told.contains("destroy"), "{told}");
    assert_eq!(here.keks().len(), 1);
}

/// Neither transport key nor passphrases are in what a ceremony leaves.
#[tokio::test(flavor = "multi_thread")]
async fn a_ceremony_leaves_no_secret() {
    let hsm = Hsm::new(Kind::SofthsmInProcess, "first").await;
    let table = Table::new();
    let here = Alone::new(&hsm, None, "");
    let output = here.run(&table.generate("TAPE"));
    assert!(output.status.success(), "{}", error(&output));
    let key = table.transport_key("TAPE");
    let secrets: Vec<Vec<u8>> = PHRASES
        .iter()
        .map(|phrase| phrase.as_bytes().to_vec())
        .chain([
            key.to_vec(),
            key[..16].to_vec(),
            hex::encode(key).into_bytes(),
            hex::encode(&key[..16]).into_bytes(),
        ])
        .collect();
    let mut looked = vec![output.stdout, output.stderr];
    let mut left = table.files();
    assert_eq!(left.len(), 5, "{left:?}");
    let mut folders = vec![
        here.directory.path().to_owned(),
        hsm.directory.path().to_owned(),
    ];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.is_file() {
                left.push(path);
            }
        }
    }
    looked.extend(left.iter().map(|path| std::fs::read(path).unwrap()));
    for text in &looked {
        for secret in &secrets {
            assert!(!text.windows(secret.len()).any(|window| window == secret));
        }
    }
    // The transcript tells what an auditor asks.
    let transcript = std::fs::read_to_string(table.at("TAPE.txt")).unwrap();
    let hash = here.keks()[0].hash.to_string();
    for told in [
        hash.as_str(),
        "uid ",
        "CKM_AES_KEY_WRAP_PAD",
        "C_UnwrapKey under a throw-away RSA-2048 session pair",
        "CKA_EXTRACTABLE        yes -> no",
        "CKA_SENSITIVE          yes -> yes",
        "CKA_WRAP_WITH_TRUSTED was not set",
        "a proven copy",
        &format!("checksum {}", table.share("TAPE", 3).fingerprint()),
    ] {
        assert!(transcript.contains(told), "{told}\n{transcript}");
    }
    for file in ["TAPE.kekcopy", "shares/TAPE-1.share"] {
        use sha2::Digest as _;
        let digest = sha2::Sha256::digest(std::fs::read(table.at(file)).unwrap());
        assert!(transcript.contains(&hex::encode(digest)), "{file}");
    }
    let records = here.done(&words(&["audit", "show", "--json"]));
    assert!(records.contains("kek-generate-with-copy"), "{records}");
    assert!(records.contains(&hash), "{records}");
    here.done(&words(&["audit", "verify"]));
}

/// Whatever fails between the birth and the end, no key and no file stays.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_extractable_is_left_when_the_middle_fails() {
    let hsm = Hsm::new(Kind::SofthsmInProcess, "first").await;
    let faulty = Faulty::before(&hsm);
    let here = Alone::new(&hsm, Some(&faulty), "");
    let table = Table::new();
    // Two wraps of a throw-away key, by CKM_AES_KEY_WRAP_KWP and CKM_AES_KEY_WRAP_PAD, come first.
    for (function, skip, count, fault) in [
        ("C_GenerateKeyPair", 1, Some(1), Fault::AnswerLost(0x05)),
        ("C_WrapKey", 2, Some(1), Fault::Answer(0x06)),
        ("C_WrapKey", 2, Some(1), Fault::Segfault),
        ("C_SetAttributeValue", 0, Some(1), Fault::Answer(0x10)),
        ("C_SetAttributeValue", 0, Some(1), Fault::AnswerLost(0x05)),
        ("C_SetAttributeValue", 0, Some(1), Fault::Abort),
        // It says that it has, and has not.
        ("C_SetAttributeValue", 0, Some(1), Fault::Answer(0)),
        // The proof, after the files were written. Before it come the transport key twice, for it
        // is not made trusted, the throw-away key once, and the transport key again.
        ("C_UnwrapKey", 4, None, Fault::Answer(0x06)),
        ("C_UnwrapKey", 4, None, Fault::Abort),
    ] {
        faulty.strike(Some(function), skip, count, fault);
        let output = here.run(&table.generate("TAPE"));
        faulty.heal();
        let told = error(&output);
        let what = format!("{function} {skip} {fault:?}: {told}");
        assert!(!output.status.success(), "{what}");
        assert!(
            told.contains("the key was destroyed") || told.contains("nothing of"),
            "{what}"
        );
        assert_eq!(hsm.hand(&["list"]), "", "{what}");
        assert_eq!(table.files(), Vec::<PathBuf>::new(), "{what}");
        let records = here.done(&words(&["audit", "show", "--json"]));
        assert!(records.contains("failure"), "{what}\n{records}");
    }
    // The label is free, and the token well.
    here.done(&table.generate("TAPE"));
    stays_in(&hsm, "TAPE");
}

/// A ceremony that is killed leaves a key that could be wrapped out. It is named, it never serves,
/// and the next ceremony under its label removes it and nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_ceremony_left_is_named_and_removed_by_the_next() {
    let hsm = Hsm::new(Kind::SofthsmInProcess, "first").await;
    let faulty = Faulty::before(&hsm);
    let here = Alone::new(&hsm, Some(&faulty), "");
    let table = Table::new();
    // Two wraps of a throw-away key come first; there is no KEK yet that a bridge would probe with.
    faulty.strike(Some("C_WrapKey"), 2, None, Fault::Hang);
    let mut child = here
        .hsm
        .surroundings
        .command(Path::new(EKM))
        .arg("--config")
        .arg(here.directory.path().join("ekm.toml"))
        .args(table.generate("TAPE"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let patience = std::time::Duration::from_secs(60);
    // Of the KEK, which is there by then.
    crate::support::wait_for("the wrap that hangs", patience, || {
        faulty.called("C_WrapKey") > 2
    });
    child.kill().unwrap();
    child.wait().unwrap();
    // Else its bridge would go on with the ceremony.
    let ended = |(pid, _): &(u64, u64)| !crate::support::lives(u32::try_from(*pid).unwrap());
    crate::support::wait_for("the end of its bridge", patience, || {
        faulty.clients().iter().all(ended)
    });
    faulty.heal();
    here.done(&words(&["kek", "generate", "OTHER", "--bits", "2048"]));
    let left = here.keks();
    let tape = left.iter().find(|kek| kek.label.as_str() == "TAPE");
    let (_, reason) = &tape.unwrap().refused[0];
    for part in ["CKA_EXTRACTABLE", "interrupted", "CKA_ID"] {
        assert!(reason.contains(part), "{reason}");
    }
    let output = here.run(&table.generate("TAPE"));
    let told = error(&output);
    assert!(output.status.success(), "{told}");
    assert!(told.contains("removing what it left"), "{told}");
    stays_in(&hsm, "TAPE");
    let keks = here.keks();
    let labels: Vec<&str> = keks.iter().map(|kek| kek.label.as_str()).collect();
    assert_eq!(labels, ["OTHER", "TAPE"]);
    assert!(keks.iter().all(|kek| kek.refused.is_empty()), "{keks:?}");
    let records = here.done(&words(&["audit", "show", "--json"]));
    assert!(records.contains("kek-ceremony-clear"), "{records}");
}

/// A token that wraps no private key says so before anything is made.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_wraps_no_private_key_says_so() {
    let hsm = Hsm::new(Kind::SofthsmInProcess, "first").await;
    let faulty = Faulty::before(&hsm);
    let here = Alone::new(&hsm, Some(&faulty), "");
    let table = Table::new();
    faulty.strike(Some("C_WrapKey"), 0, None, Fault::Answer(0x54));
    let output = here.run(&table.generate("TAPE"));
    let told = error(&output);
    assert!(!output.status.success());
    for part in ["C_WrapKey", "CKR_FUNCTION_NOT_SUPPORTED", "copy confirm"] {
        assert!(told.contains(part), "{told}");
    }
    assert_eq!(hsm.hand(&["list"]), "");
    assert_eq!(table.files(), Vec::<PathBuf>::new());
}

/// Restoring leaves nothing half-way either.
#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_fails_leaves_nothing() {
    let first = Hsm::new(Kind::SofthsmInProcess, "first").await;
    let table = Table::new();
    Alone::new(&first, None, "").done(&table.generate("TAPE"));
    let second = Hsm::new(Kind::SofthsmInProcess, "second").await;
    let faulty = Faulty::before(&second);
    let here = Alone::new(&second, Some(&faulty), "");
    let restore = table.with_shares(&["kek", "restore"], "TAPE", &[1, 2]);
    for (function, skip, fault) in [
        ("C_UnwrapKey", 2, Fault::Answer(0x06)),
        ("C_UnwrapKey", 2, Fault::Segfault),
        ("C_CreateObject", 0, Fault::AnswerLost(0x05)),
        ("C_CreateObject", 0, Fault::Abort),
    ] {
        faulty.strike(Some(function), skip, Some(1), fault);
        let output = here.run(&restore);
        faulty.heal();
        let told = error(&output);
        assert!(!output.status.success(), "{function} {fault:?}");
        assert_eq!(second.hand(&["list"]), "", "{function} {fault:?}: {told}");
    }
    here.done(&restore);
    stays_in(&second, "TAPE");
}

/// The policy's other ways to a second copy: another token, and an operator's word.
#[tokio::test(flavor = "multi_thread")]
async fn require_copy_counts_tokens_and_statements() {
    let (first, second) = (
        Hsm::new(Kind::Embedded, "first").await,
        Hsm::new(Kind::Embedded, "second").await,
    );
    let table = Table::new();
    let input = data(&table);
    for rule in ["proven", "stated"] {
        let policy = format!("[policy]\nrequire_copy = \"{rule}\"\n");
        let site = Site::start(&[&first, &second], &policy).await;
        let (a, b, c) = (format!("A{rule}"), format!("B{rule}"), format!("C{rule}"));
        for (label, token) in [(&a, "main"), (&b, "second"), (&c, "main")] {
            site.ekm(&["kek", "generate", label, "--bits", "2048", "--token", token]);
        }
        let n = if rule == "proven" { 11 } else { 12 };
        let drive = drive(table.directory.path(), n, Kind::Embedded.form());
        site.enrol(&drive).await;
        let write = |kek1: &str, kek2: Option<&str>| {
            let cartridge = table.path(&format!("phrase-{rule}-{kek1}-{}", kek2.unwrap_or("")));
            let _ = std::fs::remove_file(&cartridge);
            let serial = drive.soft.serial().as_str();
            let mut modify = vec!["drive", "mod", serial, "--kek1", kek1];
            modify.extend(kek2.into_iter().flat_map(|kek2| ["--kek2", kek2]));
            site.ekm(&modify);
            let write = ["write", "--cartridge", &cartridge, "--volser", "VOL001"];
            site.tape(&table, &drive, &write, &input)
        };
        let refused = write(&a, None);
        assert!(
            error(&refused).contains("require_copy"),
            "{}",
            error(&refused)
        );
        site.ekm(&[
            "kek",
            "copy",
            "confirm",
            &a,
            "--note",
            "backup HSM 7, 3 March",
        ]);
        let stated = write(&a, None);
        assert_eq!(
            stated.status.success(),
            rule == "stated",
            "{}",
            error(&stated)
        );
        assert!(
            site.ekm(&["kek", "show", &a])
                .contains("backup HSM 7, 3 March")
        );
        // A second KEK on the same token is lost with it; one on another token is not.
        let same = write(&c, None);
        assert!(!same.status.success());
        let other = write(&c, Some(&b));
        assert!(other.status.success(), "{}", error(&other));
        site.stop();
    }
}
