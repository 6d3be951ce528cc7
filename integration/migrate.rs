//! From an EKM 2.1 to ekm: a directory as the manual describes it, its keystore made by the real
//! keytool, is looked at, migrated, migrated again, and used.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use ekm::problem::EkmCode;
use serde_json::Value;
use tempfile::TempDir;

use crate::door::{House, post, say};
use crate::support::{EKM, PIN, write_private};

/// The keystore's password.
pub(crate) const PASSWORD: &str = "geheim-123";

pub(crate) const DRIVES: &str = "\
Drive entries: 5

SerialNumber = 000001365054
AliasTwo = null
AliasOne = cert1
SymAlias = null
WWN = 57574E414D453030
Deleted = false
Updated = true
TimeStamp = Sun Sep 03 18:11:35 MST 2006

SerialNumber = 1365055A12
AliasOne = CERT1
AliasTwo = cert2
Deleted = false
Updated = true
TimeStamp = Sun Sep 03 18:12:00 MST 2006

SerialNumber = 000001365056
AliasOne = cert1
Deleted = true
TimeStamp = Sun Sep 03 18:13:00 MST 2006

SerialNumber = 000001365057
SymAlias = lto000
Deleted = false

SerialNumber = 12345
AliasOne = cert1
Deleted = false
";

fn event(volser: &str, second: &str) -> String {
    format!(
        "  <KeyUsageEvent>\n    <DriveSSN>000001365054</DriveSSN>\n    <VolSer>{volser}</VolSer>\n    \
         <DriveWWN>57574E414D453030</DriveWWN>\n    <keyAlias1>cert1</keyAlias1>\n    \
         <keyAlias2>{second}</keyAlias2>\n    <dateTime>2008.01.22 10:20:30</dateTime>\n    \
         <DKi>4B4D00000000000000000001</DKi>\n  </KeyUsageEvent>\n"
    )
}

/// The directory of an EKM 2.1, and an empty one for the site that it becomes.
pub(crate) struct Old {
    pub(crate) directory: TempDir,
}

impl Old {
    /// With a JCEKS keystore: `cert1` and `cert2` are key pairs, `partner` a certificate, `lto000` a
    /// secret key.
    pub(crate) fn new() -> Self {
        let old = Self::without_keystore("JCEKS", "keys/EKMKeys.jck");
        let store = old.at("ekm/keys/EKMKeys.jck");
        for alias in ["cert1", "cert2", "partner0"] {
            keytool(
                &store,
                &[
                    "-genkeypair",
                    "-alias",
                    alias,
                    "-keyalg",
                    "RSA",
                    "-keysize",
                    "2048",
                    "-dname",
                    &format!("CN={alias}"),
                    "-validity",
                    "3650",
                    "-keypass",
                    PASSWORD,
                ],
            );
        }
        let certificate = old.at("partner.pem").display().to_string();
        keytool(
            &store,
            &[
                "-exportcert",
                "-rfc",
                "-alias",
                "partner0",
                "-file",
                &certificate,
            ],
        );
        keytool(&store, &["-delete", "-alias", "partner0"]);
        keytool(
            &store,
            &[
                "-importcert",
                "-noprompt",
                "-alias",
                "partner",
                "-file",
                &certificate,
            ],
        );
        keytool(
            &store,
            &[
                "-genseckey",
                "-alias",
                "lto000",
                "-keyalg",
                "AES",
                "-keysize",
                "256",
                "-keypass",
                PASSWORD,
            ],
        );
        old
    }

    pub(crate) fn without_keystore(kind: &str, file: &str) -> Self {
        let old = Self {
            directory: tempfile::tempdir().unwrap(),
        };
        for folder in ["ekm/keys", "ekm/metadata", "site"] {
            std::fs::create_dir_all(old.at(folder)).unwrap();
        }
        std::fs::write(
            old.at("ekm/KeyManagerConfig.properties"),
            format!(
                "#Tue Jan 22 10:20:30 MST 2008\n\
                 TransportListener.tcp.port = 4801\n\
                 TransportListener.ssl.port = 443\n\
                 TransportListener.ssl.keystore.password.obfuscated = 53D2A0\n\
                 Admin.ssl.keystore.name = keys/EKMKeys.jck\n\
                 config.keystore.file = {file}\n\
                 config.keystore.type = {kind}\n\
                 config.keystore.provider = IBMJCE\n\
                 config.keystore.password.obfuscated = 53D2A0\n\
                 config.drivetable.file.url = FILE:filedrive.table\n\
                 config.keygroup.xml.file = KeyGroups.xml\n\
                 drive.acceptUnknownDrives = true\n\
                 drive.default.alias1 = cert1\n\
                 drive.default.alias2 = cert9\n\
                 Audit.handler.file.directory = audit\n\
                 Audit.metadata.file.name = metadata/EKMData.xml\n\
                 colour = blue\n"
            ),
        )
        .unwrap();
        std::fs::write(
            old.at("ekm/filedrive.table"),
            b"\xAC\xED\x00\x05sr\x00\x13java.util.Hashtable\x13\xBB\x0F%!J\xE4\xB8\x03\x00\x02F",
        )
        .unwrap();
        std::fs::write(old.at("ekm/KeyGroups.xml"), "<KeyGroups/>").unwrap();
        std::fs::write(old.at("ekm/drives.txt"), DRIVES).unwrap();
        let events = [
            event("VOL001", "cert2"),
            event("VOL002", ""),
            event("VOL001", "cert2"),
        ]
        .concat();
        std::fs::write(
            old.at("ekm/metadata/EKMData.xml"),
            format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<KeyUsageEvents>\n{events}</KeyUsageEvents>\n"),
        )
        .unwrap();
        write_private(&old.at("password"), &format!("{PASSWORD}\n"));
        old
    }

    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The program in the site's directory.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        Command::new(EKM)
            .args(arguments)
            .current_dir(self.at("site"))
            .env_remove("EKM_CONFIG")
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// What must succeed.
    pub(crate) fn done(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        // Of a migration it is 3 where something is to be decided, as it is in this site.
        let code = output.status.code();
        let decided = arguments[0] == "migrate" && code == Some(3);
        assert!(
            code == Some(0) || decided,
            "{arguments:?}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(
            !text.contains(PASSWORD) && !text.contains("53D2A0"),
            "{text}"
        );
        text
    }

    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let mut with = arguments.to_vec();
        with.push("--json");
        serde_json::from_str(&self.done(&with)).unwrap()
    }

    fn migrate(&self, more: &[&str]) -> String {
        self.done(&[ARGUMENTS, more].concat())
    }

    /// Makes the site usable, as the steps say.
    fn settle(&self) {
        self.done(&["tls", "init"]);
        self.done(&["tls", "issue", "ekm1", "--role", "server"]);
        write_private(&self.at("site/pin"), PIN);
        write_private(&self.at("site/so-pin"), "12345678");
        self.done(&[
            "slot",
            "init",
            "--profile",
            "embedded",
            "--label",
            "ekm",
            "--so-pin-file",
            "so-pin",
            "--pin-file",
            "pin",
        ]);
        self.done(&["config", "check"]);
    }

    /// Every file of the site except the audit log's lock and the database, with its content.
    fn files(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let mut files = Vec::new();
        let mut folders = vec![self.at("site")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                if path.is_dir() {
                    folders.push(path);
                } else if !name.starts_with("state.db") {
                    files.push((path.clone(), std::fs::read(path).unwrap()));
                }
            }
        }
        files.sort();
        files
    }
}

const ARGUMENTS: &[&str] = &[
    "migrate",
    "ekm21",
    "--config",
    "../ekm/KeyManagerConfig.properties",
    "--drive-table",
    "../ekm/drives.txt",
    "--password-file",
    "../password",
];

fn keytool(store: &Path, arguments: &[&str]) {
    let output = Command::new("keytool")
        .args(arguments)
        .args(["-storetype", "JCEKS", "-storepass", PASSWORD, "-keystore"])
        .arg(store)
        .output()
        .expect("keytool is installed (scripts/test installs it)");
    assert!(
        output.status.success(),
        "keytool {arguments:?}: {}",
        String::from_utf8_lossy(&output.stdout)
    );
}

fn has(text: &str, wanted: &[&str]) {
    for wanted in wanted {
        assert!(text.contains(wanted), "no {wanted:?} in\n{text}");
    }
}

fn row<'a>(rows: &'a Value, key: &str, value: &str) -> &'a Value {
    rows.as_array()
        .unwrap()
        .iter()
        .find(|row| row[key] == value)
        .unwrap_or_else(|| panic!("no {key} {value} in {rows:#}"))
}

#[test]
fn a_look_says_all_and_writes_nothing() {
    let old = Old::new();
    let text = old.migrate(&[]);
    assert!(text.starts_with("Keys and records move; cartridges that IBM's EKM keyed"));
    has(
        &text,
        &[
            "nothing was written",
            "not a property that is known of EKM 2.1",
            "12345",
            "cert9 is used by default and is not in the keystore",
            "KeyGroups.xml",
            "3 records of 2 cartridges",
            "ekm kek import ../ekm/keys/EKMKeys.jck --alias cert1 --password-file ../password",
            "ekm drive mod 001365055A12 --wwn WWN --key 001365055A12.pem --kek1 CERT1 --kek2 cert2 --accept",
        ],
    );
    assert!(old.files().is_empty());

    let plan = old.json(ARGUMENTS);
    assert_eq!(plan["applied"], false);
    let port = row(
        &plan["properties"],
        "property",
        "TransportListener.tcp.port",
    );
    assert_eq!(port["becomes"], "server.listen");
    assert_eq!(port["as_value"], "\"0.0.0.0:4801\"");
    let unknown = row(&plan["properties"], "property", "drive.acceptUnknownDrives");
    assert_eq!(unknown["as_value"], "\"pending\"");
    let drives = &plan["drives"];
    assert_eq!(row(drives, "serial", "000001365054")["verdict"], "moves");
    assert_eq!(row(drives, "serial", "001365055A12")["kek1"], "CERT1");
    assert_eq!(row(drives, "serial", "000001365056")["verdict"], "stays");
    assert_eq!(row(drives, "serial", "12345")["verdict"], "conflict");
    let keys = &plan["keys"];
    let cert1 = row(keys, "alias", "cert1");
    assert_eq!(cert1["verdict"], "moves");
    assert_eq!(cert1["bits"], 2048);
    assert_eq!(
        cert1["used"],
        serde_json::json!(["3 cartridges", "default", "2 drives"])
    );
    assert_eq!(row(keys, "alias", "partner")["kind"], "certificate");
    assert_eq!(row(keys, "alias", "lto000")["verdict"], "stays");
}

#[test]
fn what_is_applied_is_there_and_a_second_time_changes_nothing() {
    let old = Old::new();
    let text = old.migrate(&["--apply"]);
    has(
        &text,
        &[
            "ekm.toml is written",
            "3 drives are added",
            "2 records are added",
        ],
    );
    // Two of the three are the same.
    has(&text, &["which has 2 now"]);
    let history = std::fs::read_to_string(old.at("site/state/ekm21-volumes.jsonl")).unwrap();
    assert_eq!(history.lines().count(), 2);
    assert!(history.contains("\"seen_under\":\"EKM 2.1\""), "{history}");

    let before = old.files();
    let text = old.migrate(&["--apply"]);
    has(
        &text,
        &[
            "there already and is left as it is",
            "0 drives are added; there already with these values: 3",
            "the default labels are set already",
            "0 records are added",
        ],
    );
    let changed: Vec<PathBuf> = old
        .files()
        .into_iter()
        .filter(|file| !before.contains(file))
        .map(|(path, _)| path)
        .collect();
    // A start and a stop are recorded, and no change.
    assert!(
        changed
            .iter()
            .all(|path| path.starts_with(old.at("site/audit"))),
        "{changed:?}"
    );

    old.settle();
    let drives = old.json(&["drive", "list"]);
    assert_eq!(drives.as_array().unwrap().len(), 3);
    let drive = row(&drives, "serial", "000001365054");
    assert_eq!(drive["state"], "pending");
    assert_eq!(drive["kek1"]["label"], "cert1");
    assert_eq!(drive["wwn"], "57574E414D453030");
    let lto = row(&drives, "serial", "000001365057");
    assert_eq!(lto["kek1"], Value::Null);
    assert_eq!(lto["state"], "pending");
    let defaults = old.json(&["kek", "default"]);
    assert_eq!(defaults["kek2"]["label"], "cert9");
    old.done(&["audit", "verify"]);
    let records = old.done(&["audit", "show", "--json"]);
    assert_eq!(records.matches("drive-import").count(), 3, "{records}");
}

#[test]
fn a_migration_with_conflicts_ends_with_3_and_repeats_no_finished_step() {
    let old = Old::new();
    let apply = [ARGUMENTS, &["--apply"]].concat();
    let first = old.run(&apply);
    assert_eq!(first.status.code(), Some(3), "{first:?}");
    let first = String::from_utf8(first.stdout).unwrap();
    has(
        &first,
        &["To be decided or mended", "ekm tls init", "slot init"],
    );
    old.settle();
    let again = old.migrate(&["--apply"]);
    has(&again, &["ekm kek import", "ekm serve"]);
    let (_, left) = again.split_once("What is left to do").unwrap();
    for finished in ["ekm tls init", "ekm slot init"] {
        assert!(!left.contains(finished), "{finished}: {left}");
    }
    let help = old.run(&["migrate", "ekm21", "--help"]);
    let help = String::from_utf8(help.stdout).unwrap();
    assert!(help.contains("Exit code 3"), "{help}");
}

#[test]
fn what_an_operator_changed_or_deleted_stays_so() {
    let old = Old::new();
    old.migrate(&["--apply"]);
    old.settle();
    old.done(&["drive", "del", "000001365057"]);
    let table = std::fs::read_to_string(old.at("ekm/drives.txt")).unwrap();
    std::fs::write(
        old.at("ekm/drives.txt"),
        table.replacen("AliasOne = cert1", "AliasOne = cert2", 1),
    )
    .unwrap();
    let looked = old.migrate(&[]);
    has(
        &looked,
        &["drive 000001365054 is there already and stays as it is: kek1 is cert1:label here"],
    );
    let text = old.migrate(&["--apply"]);
    has(
        &text,
        &[
            "drive 000001365054 is there already and stays as it is: kek1 is cert1:label here and cert2:label in EKM",
            "drive 000001365057 was deleted here and stays so",
        ],
    );
    let drives = old.json(&["drive", "list"]);
    assert_eq!(drives.as_array().unwrap().len(), 2);
    assert_eq!(
        row(&drives, "serial", "000001365054")["kek1"]["label"],
        "cert1"
    );
}

#[test]
fn what_cannot_be_read_is_told_with_the_way_and_the_rest_moves() {
    let old = Old::new();
    // Without the text of listdrives, without a password, and with the metadata's end lost.
    let metadata = old.at("ekm/metadata/EKMData.xml");
    let mut text = std::fs::read(&metadata).unwrap();
    text.truncate(text.len() - 200);
    std::fs::write(&metadata, text).unwrap();
    let arguments = [
        "migrate",
        "ekm21",
        "--config",
        "../ekm/KeyManagerConfig.properties",
    ];
    let text = old.done(&arguments);
    has(
        &text,
        &[
            "listdrives -verbose",
            "--password-file",
            "EKMData.xml is damaged",
            "2 records of 2 cartridges",
        ],
    );

    let refused = |more: &[&str], wanted: &str| {
        let output = old.run(&[&arguments, more].concat());
        assert_eq!(output.status.code(), Some(1), "{more:?}");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains(wanted) && text.starts_with("ekm: "), "{text}");
    };
    refused(
        &["--drive-table", "../ekm/filedrive.table"],
        "serialized Java object",
    );
    refused(&["--drive-table", "../ekm/KeyGroups.xml"], "SerialNumber");
    refused(&["--metadata", "../ekm/drives.txt"], "KeyUsageEvent");
    refused(&["--drive-table", "/dev/zero"], "at most");
    refused(&["--password-file", "../nothing"], "nothing");
    let output = old.run(&["migrate", "ekm21", "--config", "../ekm/drives.txt"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("KeyManagerConfig.properties"));
    let output = old.run(&["migrate", "ekm21"]);
    assert_eq!(output.status.code(), Some(2));
    write_private(&old.at("password"), "wrong-one\n");
    let text = old.done(ARGUMENTS);
    has(&text, &["keys: the key file", "password"]);
    // Drives without the keys that they name are no migration.
    let output = old.run(&[ARGUMENTS, &["--apply"]].concat());
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    has(&text, &["nothing was done", "keys: the key file"]);
}

#[test]
fn keys_in_an_hsm_stay_there_and_its_profile_is_found() {
    let old = Old::without_keystore("PKCS11IMPLKS", "keys/pkcs11.cfg");
    std::fs::write(
        old.at("ekm/keys/pkcs11.cfg"),
        "name = TKLM\nlibrary = /opt/softhsm/lib/libsofthsm2.so\nslot = 0\n",
    )
    .unwrap();
    let text = old.migrate(&["--apply"]);
    has(&text, &["ekm kek adopt", "ekm slot doctor --token main"]);
    let config = std::fs::read_to_string(old.at("site/ekm.toml")).unwrap();
    has(
        &config,
        &[
            "profile = \"softhsm2\"",
            "library = \"/opt/softhsm/lib/libsofthsm2.so\"",
        ],
    );

    let racf = Old::without_keystore("JCECCARACFKS", "safkeyring://EKMSERV/EKMRING");
    let text = racf.migrate(&[]);
    has(
        &text,
        &["RACDCERT EXPORT", "PKDS", "ekm kek import kek.p12"],
    );
}

#[test]
fn a_pending_drive_is_enrolled_as_the_steps_say_and_then_serves() {
    let old = Old::new();
    old.migrate(&["--apply"]);
    old.settle();
    for label in ["cert1", "cert2"] {
        old.done(&[
            "kek",
            "import",
            "../ekm/keys/EKMKeys.jck",
            "--alias",
            label,
            "--password-file",
            "../password",
        ]);
    }
    old.done(&[
        "softdrive",
        "init",
        "drive",
        "--serial",
        "001365055A12",
        "--wwn",
        "5005076300C0FFE1",
    ]);
    let pem = old.done(&["softdrive", "key", "drive"]);
    std::fs::write(old.at("site/001365055A12.pem"), pem).unwrap();
    let refused = old.run(&[
        "drive",
        "mod",
        "001365055A12",
        "--wwn",
        "5005076300C0FFE1",
        "--key",
        "001365055A12.pem",
        "--kek1",
        "cert9",
        "--accept",
    ]);
    assert!(
        String::from_utf8_lossy(&refused.stderr).contains("EE31"),
        "{refused:?}"
    );
    old.done(&[
        "drive",
        "mod",
        "001365055A12",
        "--wwn",
        "5005076300C0FFE1",
        "--key",
        "001365055A12.pem",
        "--kek1",
        "CERT1",
        "--kek2",
        "cert2",
        "--accept",
    ]);
    let report = old.json(&["assess"]);
    assert_eq!(
        row(&report["drives"], "name", "001365055A12")["verdict"],
        "works"
    );
    assert_eq!(
        row(&report["drives"], "name", "000001365054")["verdict"],
        "waits"
    );
    let lost: Vec<&str> = report["tapes"]["unreadable"]
        .as_array()
        .unwrap()
        .iter()
        .map(|tape| tape["volser"].as_str().unwrap())
        .collect();
    assert_eq!(lost, ["VOL001", "VOL002"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_goes_to_the_server_where_one_runs_and_what_waits_gets_no_key() {
    let old = Old::without_keystore("JCEKS", "keys/EKMKeys.jck");
    let house = House::new("", "");
    let drive = house.unknown_drive(7);
    let table = format!(
        "SerialNumber = {}\nAliasOne = KEK1\nSerialNumber = 000001365054\n",
        drive.serial
    );
    std::fs::write(old.at("ekm/drives.txt"), table).unwrap();
    let serving = house.serve().await;
    let path = |name: &str| old.at(name).display().to_string();
    let (properties, table) = (
        path("ekm/KeyManagerConfig.properties"),
        path("ekm/drives.txt"),
    );
    let migrate = [
        "migrate",
        "ekm21",
        "--apply",
        "--config",
        &properties,
        "--drive-table",
        &table,
    ];
    let output = house.run(&migrate);
    // The site's own defaults are kept, which is to be known.
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    has(&text, &["2 drives are added", "ekm.toml is there already"]);
    // The site has defaults of its own.
    has(
        &text,
        &["the default labels stay: here they are KEK1:label"],
    );
    let body = serde_json::to_vec(&drive.create()).unwrap();
    let request = post("/v1/keys/create", &body);
    let heard = say(&serving, &drive.identity, &request).await.unwrap();
    let problem = heard.problem();
    assert_eq!(problem.code, EkmCode::EF01);
    assert!(
        problem.detail.contains("waits for an operator"),
        "{problem}"
    );
    let output = house.run(&migrate);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    has(
        &text,
        &["0 drives are added; there already with these values: 2"],
    );
    serving.stop();
}
