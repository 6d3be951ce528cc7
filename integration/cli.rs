//! The command line under wrong input: exit codes, messages that name what
//! failed and what to do next, and never a PIN.

use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::door::{House, HouseDrive, Serving};
use crate::support::{EKM, PIN, example, write_private};

/// Everything that a command said; never a PIN.
fn said(output: &Output) -> String {
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    for pin in [PIN, "12345678", "no-such-pin"] {
        assert!(!text.contains(pin), "a PIN is shown: {text}");
    }
    assert!(!text.contains("panicked"), "{text}");
    text
}

/// The command ends with that code and says all of that.
fn refused(house: &House, code: i32, arguments: &[&str], texts: &[&str]) {
    let output = house.run(arguments);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
    for wanted in texts {
        assert!(
            text.contains(wanted),
            "{arguments:?}: no {wanted:?} in {text}"
        );
    }
}

fn json(house: &House, arguments: &[&str]) -> Value {
    let mut with = arguments.to_vec();
    with.push("--json");
    let text = house.done(&with);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{arguments:?}: {error}\n{text}"))
}

/// An RSA key of that size as PEM files: `NAME.key` and `NAME.pem`.
fn rsa_key(house: &House, name: &str, bits: u32) {
    let openssl = |arguments: &[&str]| {
        let output = Command::new("openssl")
            .args(arguments)
            .current_dir(house.at(""))
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    let (key, pem) = (format!("{name}.key"), format!("{name}.pem"));
    openssl(&[
        "genpkey",
        "-algorithm",
        "RSA",
        "-pkeyopt",
        &format!("rsa_keygen_bits:{bits}"),
        "-out",
        &key,
    ]);
    openssl(&["pkey", "-in", &key, "-pubout", "-out", &pem]);
}

impl House {
    /// Tells the drive its server.
    fn plug(&self, drive: &HouseDrive, serving: &Serving) {
        let path = |path: &Path| path.display().to_string();
        self.done(&[
            "softdrive",
            "connect",
            &drive.directory,
            "--server",
            &serving.address,
            "--ca",
            &path(&drive.identity.ca),
            "--tls-cert",
            &path(&drive.identity.certificate),
            "--tls-key",
            &path(&drive.identity.key),
        ]);
    }

    fn write(&self, drive: &HouseDrive, cartridge: &str, data: &str, more: &[&str]) -> Output {
        self.command(&["softdrive", "write", "--drive", &drive.directory])
            .args(["--cartridge", cartridge, "--volser", "VOL001"])
            .args(more)
            .stdin(std::fs::File::open(self.at(data)).unwrap())
            .output()
            .unwrap()
    }

    fn read(&self, drive: &HouseDrive, cartridge: &str) -> Output {
        self.run(&[
            "softdrive",
            "read",
            "--drive",
            &drive.directory,
            "--cartridge",
            cartridge,
        ])
    }
}

#[test]
fn a_wrong_command_line_is_code_2_and_shows_the_way() {
    let house = House::bare("", "");
    refused(&house, 2, &[], &["Usage"]);
    refused(&house, 2, &["krk", "list"], &["krk", "kek"]);
    refused(&house, 2, &["kek"], &["generate"]);
    refused(&house, 2, &["kek", "generate"], &["LABEL"]);
    refused(&house, 2, &["kek", "export", "X"], &["--public"]);
    refused(&house, 2, &["kek", "default", "--kek2", "X"], &["--kek1"]);
    refused(&house, 2, &["serve", "--pin", "1"], &["--pin"]);
    refused(
        &house,
        2,
        &["tls", "issue", "x", "--role", "king"],
        &["operator"],
    );
    let long = "x".repeat(65);
    refused(&house, 2, &["kek", "generate", &long], &["64", "65"]);
    refused(&house, 2, &["kek", "show", "  "], &["label"]);
    refused(
        &house,
        2,
        &["drive", "show", "98765432101"],
        &["12 characters"],
    );
    refused(&house, 2, &["volume", "show", "VOL0001"], &["VOL0001", "6"]);
    refused(
        &house,
        2,
        &["drive", "add", "1234567890", "--wwn", "50:05"],
        &["16 hexadecimal digits"],
    );
    refused(
        &house,
        2,
        &["drive", "add", "1234567890", "--form", "rsa"],
        &["t10-02h", "rsa-oaep-sha1"],
    );
    refused(
        &house,
        2,
        &["drive", "mod", "1234567890", "--speaker", "library"],
        &["drive:000001234567"],
    );
    refused(
        &house,
        2,
        &["drive", "mod", "1234567890", "--kek1", "A", "--no-kek1"],
        &["--no-kek1"],
    );
}

#[test]
fn config_check_names_every_fault() {
    let house = House::bare("", "");
    house.done(&["config", "check"]);
    std::fs::rename(house.at("pin"), house.at("elsewhere")).unwrap();
    refused(&house, 3, &["config", "check"], &["main: ", "PIN", "pin: "]);
    std::fs::rename(house.at("elsewhere"), house.at("pin")).unwrap();
    refused(
        &house,
        1,
        &["config", "check", "none.toml"],
        &["none.toml", "config example"],
    );
    refused(
        &house,
        1,
        &["kek", "list", "--config", "none.toml"],
        &["none.toml"],
    );

    let good = std::fs::read_to_string(house.at("ekm.toml")).unwrap();
    let bad = good
        .replace(
            "[server]",
            "[server]\nrequest_seconds = 0\nmax_connections = 0\nstop_seconds = 9999",
        )
        .replace("tls/crl.pem", "tls/none.pem")
        .replace("node = \"house\"", "node = \"\"");
    let bad = format!(
        "{bad}\n[[tokens]]\nname = \"main\"\nprofile = \"no-such-hsm\"\nuri = \"pkcs11:token=x\"\npin = {{ file = \"pin\" }}\n[[tokens]]\nname = \"a b\"\nprofile = \"embedded\"\nuri = \"pkcs11:token=y\"\npin = {{ file = \"pin\" }}\n[[policy.peers]]\npeer = \"library1\"\ndrives = [\"1\"]\ncreate_keks = [\"{}\"]\n",
        "K".repeat(65)
    );
    std::fs::write(house.at("bad.toml"), bad).unwrap();
    refused(
        &house,
        3,
        &["config", "check", "bad.toml"],
        &[
            "bad.toml",
            "request_seconds",
            "max_connections",
            "stop_seconds",
            "server.crl",
            "none.pem",
            "node",
            "main is given twice",
            "no-such-hsm",
            "a b",
            "directory = ",
            "library1",
            "12 characters",
            "64 characters",
        ],
    );
    // What is not checked is not served either.
    refused(
        &house,
        1,
        &["--config", "bad.toml", "serve"],
        &["request_seconds"],
    );

    for (fault, texts) in [
        ("stats = \"x\"\n", ["line 1", "stats"]),
        ("[server]\nport = 1\n", ["server", "line"]),
        ("node = \n", ["line 1", "node"]),
        ("\u{0}", ["line 1", ""]),
    ] {
        std::fs::write(house.at("syntax.toml"), format!("{fault}{good}")).unwrap();
        refused(&house, 3, &["config", "check", "syntax.toml"], &texts);
    }
    let uri = good.replace("pkcs11:token=house", "token=house");
    std::fs::write(house.at("uri.toml"), uri).unwrap();
    refused(&house, 3, &["config", "check", "uri.toml"], &["pkcs11:"]);
}

#[test]
fn config_check_warns_of_what_a_server_starts_with_all_the_same() {
    let house = House::bare("request_seconds = 30", "");
    let check = |from: &str, to: &str| {
        let good = std::fs::read_to_string(house.at("ekm.toml")).unwrap();
        std::fs::write(house.at("other.toml"), good.replace(from, to)).unwrap();
        let output = house.run(&["config", "check", "other.toml"]);
        let text = said(&output);
        assert!(output.status.success(), "{text}");
        text
    };
    // The embedded profile's deadline is 30, too.
    let late = check("", "");
    assert!(
        late.contains("warning: tokens main: profile embedded"),
        "{late}"
    );
    assert!(late.contains("server.request_seconds"), "{late}");
    assert!(!late.contains("session.host_exchanges"), "{late}");
    let none = check("request_seconds = 30", "request_seconds = 31");
    assert!(!none.contains("warning"), "{none}");
    let attended = check("pin = { file = \"pin\" }", "pin = \"operator\"");
    assert!(attended.contains("session.host_exchanges"), "{attended}");
}

#[test]
fn an_initialised_token_is_never_initialised_again() {
    let house = House::new("", "");
    for (label, text) in [("house", "already"), ("other", "no uninitialised slot")] {
        refused(
            &house,
            1,
            &[
                "slot",
                "init",
                "--profile",
                "embedded",
                "--label",
                label,
                "--so-pin-file",
                "so-pin",
                "--pin-file",
                "pin",
            ],
            &[text],
        );
    }
    let keks = json(&house, &["kek", "list"]);
    assert_eq!(keks[0]["label"], "KEK1");
    assert_eq!(
        keks[0]["refused"].as_array().map_or(0, Vec::len),
        0,
        "{keks}"
    );
    // A label that a token cannot hold is not cut.
    let long = "x".repeat(33);
    refused(
        &house,
        1,
        &[
            "slot",
            "init",
            "--profile",
            "embedded",
            "--directory",
            "new",
            "--label",
            &long,
            "--so-pin-file",
            "so-pin",
            "--pin-file",
            "pin",
        ],
        &["32"],
    );
    refused(
        &house,
        1,
        &["slot", "list"],
        &["--profile", "embedded", "softhsm2"],
    );
    refused(
        &house,
        1,
        &["slot", "doctor"],
        &["--token NAME (main)", "--profile", "--module"],
    );
    refused(
        &house,
        1,
        &["slot", "list", "--profile", "softhsm2"],
        &["no directory", "softhsm2", "--directory", "slot init"],
    );
    assert!(!house.at("softhsm2").exists(), "a look makes nothing");
    refused(
        &house,
        1,
        &["slot", "list", "--profile", "nCipher"],
        &["nCipher", "softhsm2"],
    );
    refused(
        &house,
        1,
        &["slot", "list", "--module", "/none/module.so"],
        &["token of /none/module.so"],
    );
    // A library, but not of this kind.
    let libc = "/usr/lib/x86_64-linux-gnu/libc.so.6";
    refused(
        &house,
        1,
        &["slot", "list", "--module", libc],
        &["C_GetFunctionList"],
    );
}

impl House {
    /// Counts what reaches the token from now on.
    fn count_calls(&self) {
        let token = self.at("token/token.sql");
        let conf = format!(
            "[[slots]]\nslot = 0\ndbtype = \"sqlite\"\ndbargs = \"{}\"\n",
            token.display()
        );
        std::fs::write(self.at("kryoptic.conf"), conf).unwrap();
        let rest = format!(
            "library = \"{}\"\n[tokens.environment]\nFAULTY_MODULE = \"{}\"\nFAULTY_DIRECTORY = \"{}\"\nFAULTY_LOG = \"{}\"\nKRYOPTIC_CONF = \"{}\"\n",
            example("libfaulty.so").display(),
            example("libembedded.so").display(),
            self.at("count").display(),
            self.at("calls").display(),
            self.at("kryoptic.conf").display(),
        );
        self.configure("", &rest);
    }

    fn logins(&self) -> usize {
        std::fs::read_to_string(self.at("calls"))
            .unwrap_or_default()
            .lines()
            .filter(|line| line.starts_with("C_Login "))
            .count()
    }
}

#[test]
fn a_wrong_pin_reaches_the_token_once() {
    let house = House::bare("", "");
    house.count_calls();
    let logins = || house.logins();
    write_private(&house.at("pin"), "no-such-pin");
    let status = || {
        let output = house.run(&["token", "status"]);
        assert!(output.status.success(), "{output:?}");
        said(&output)
    };
    let first = status();
    assert!(first.contains("locked"), "{first}");
    assert!(first.contains("CKR_PIN_INCORRECT"), "{first}");
    assert_eq!(logins(), 1);
    for _ in 0..3 {
        let again = status();
        assert!(again.contains("held back"), "{again}");
        assert!(again.contains("ekm token unlock main"), "{again}");
        refused(&house, 1, &["kek", "list"], &["held back"]);
        refused(&house, 1, &["kek", "generate", "K"], &["held back"]);
    }
    assert_eq!(logins(), 1, "a refused PIN was sent again");
    // Commands that need no token still work.
    house.done(&["drive", "list"]);
    assert_eq!(logins(), 1);
    write_private(&house.at("pin"), PIN);
    let good = status();
    assert!(good.contains("ready"), "{good}");
    assert_eq!(logins(), 2);
    house.done(&["kek", "list"]);
    for entry in std::fs::read_dir(house.at("state/pins")).unwrap() {
        let ledger = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        assert!(!ledger.contains(PIN) && !ledger.contains("no-such-pin"));
    }
}

/// systemd writes credentials anew at every start, so their file tells nothing of a change.
#[test]
fn a_refused_credential_is_not_sent_again_by_a_restart() {
    let house = House::bare("", "");
    house.count_calls();
    let text = std::fs::read_to_string(house.at("ekm.toml")).unwrap();
    let text = text.replace("pin = { file = \"pin\" }", "pin = { credential = \"pin\" }");
    std::fs::write(house.at("ekm.toml"), text).unwrap();
    refused(&house, 1, &["kek", "list"], &["CREDENTIALS_DIRECTORY"]);
    for _ in 0..3 {
        let _ = std::fs::remove_dir_all(house.at("credentials"));
        std::fs::create_dir(house.at("credentials")).unwrap();
        write_private(&house.at("credentials/pin"), "no-such-pin");
        let output = house
            .command(&["kek", "list"])
            .env("CREDENTIALS_DIRECTORY", house.at("credentials"))
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    }
    assert_eq!(house.logins(), 1, "a refused PIN was sent again");
}

/// The name of a Unix socket has at most 107 bytes.
#[test]
fn a_state_directory_with_a_long_name_is_a_fault_or_works() {
    let house = House::bare("", "");
    let text = std::fs::read_to_string(house.at("ekm.toml")).unwrap();
    let long = "s".repeat(120);
    let text = text.replace("state = \"state\"", &format!("state = \"{long}\""));
    std::fs::write(house.at("ekm.toml"), text).unwrap();
    if house.run(&["config", "check"]).status.success() {
        house.done(&["drive", "list"]);
    } else {
        refused(&house, 3, &["config", "check"], &["state", "107"]);
    }
}

/// The first login of a site is the one whose answer nobody has seen before.
#[test]
fn commands_that_need_no_token_do_not_spend_its_first_login() {
    let house = House::bare("", "");
    for _ in 0..12 {
        house.done(&["drive", "list"]);
        house.done(&["volume", "list"]);
    }
    house.done(&["kek", "list"]);
}

#[test]
fn a_pin_file_that_others_can_read_is_refused_with_the_remedy() {
    let house = House::bare("", "");
    let open = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(house.at("pin"), open).unwrap();
    refused(&house, 1, &["kek", "list"], &["chmod 600", "644"]);
    refused(&house, 0, &["token", "status"], &["chmod 600"]);
    let init = [
        "slot",
        "init",
        "--profile",
        "embedded",
        "--directory",
        "new",
        "--label",
        "new",
        "--so-pin-file",
        "so-pin",
        "--pin-file",
        "pin",
    ];
    refused(&house, 1, &init, &["chmod 600"]);
    let closed = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(house.at("pin"), closed).unwrap();
    house.done(&["kek", "list"]);
    // Half a start leaves a blank token behind, which takes the second one.
    house.done(&init);
    write_private(&house.at("pin"), "\n");
    refused(&house, 1, &["kek", "list"], &["empty"]);
    std::fs::remove_file(house.at("pin")).unwrap();
    refused(&house, 1, &["kek", "list"], &["cannot read the PIN", "pin"]);
}

#[test]
fn a_pin_from_the_environment_is_named_when_it_is_missing() {
    let house = House::bare("", "");
    let text = std::fs::read_to_string(house.at("ekm.toml")).unwrap();
    let text = text.replace("pin = { file = \"pin\" }", "pin = { env = \"TOKEN_PIN\" }");
    std::fs::write(house.at("ekm.toml"), text).unwrap();
    refused(&house, 1, &["kek", "list"], &["TOKEN_PIN"]);
    let with = |arguments: &[&str], pin: &str| {
        house
            .command(arguments)
            .env("TOKEN_PIN", pin)
            .output()
            .unwrap()
    };
    let wrong = with(&["kek", "list"], "no-such-pin");
    assert_eq!(wrong.status.code(), Some(1));
    assert!(said(&wrong).contains("CKR_PIN_INCORRECT"));
    // Nobody can see that a variable has changed; the way out that the message names works.
    let held = with(&["kek", "list"], PIN);
    let text = said(&held);
    assert!(
        text.contains("held back") && text.contains("ekm token unlock main"),
        "{text}"
    );
    let unlocked = with(&["token", "unlock", "main"], PIN);
    assert!(said(&unlocked).contains("ready"), "{}", said(&unlocked));
    let right = with(&["kek", "list"], PIN);
    assert!(right.status.success(), "{}", said(&right));
}

#[test]
fn a_kek_label_is_given_once() {
    let house = House::new("", "");
    refused(
        &house,
        1,
        &["kek", "generate", "KEK1"],
        &["there is a KEK KEK1 already"],
    );
    refused(&house, 1, &["kek", "generate", "kek1  "], &["KEK1", "case"]);
    refused(
        &house,
        1,
        &["kek", "generate", "K2", "--bits", "1024"],
        &["1024", "2048"],
    );
    refused(
        &house,
        1,
        &[
            "kek", "generate", "K2", "--bits", "2048", "--token", "other",
        ],
        &["no token other"],
    );
    refused(&house, 1, &["kek", "show", "K2"], &["K2", "ekm kek list"]);
    refused(&house, 1, &["kek", "export", "K2", "--public"], &["K2"]);
    refused(&house, 1, &["kek", "default", "--kek1", "K2"], &["K2"]);
    assert_eq!(json(&house, &["kek", "list"]).as_array().unwrap().len(), 1);
    // A label of 64 characters that are not bytes.
    let long = "é".repeat(64);
    house.done(&["kek", "generate", &long, "--bits", "2048"]);
    let shown = json(&house, &["kek", "show", &long]);
    assert_eq!(shown[0]["label"], Value::from(long));

    let pem = house.done(&["kek", "export", "kek1", "--public"]);
    let mut openssl = Command::new("openssl")
        .args(["pkey", "-pubin", "-noout", "-text"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    openssl
        .stdin
        .take()
        .unwrap()
        .write_all(pem.as_bytes())
        .unwrap();
    let output = openssl.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success() && text.contains("2048 bit"),
        "{text}"
    );
}

#[test]
fn a_drive_row_that_cannot_serve_is_refused_when_it_is_entered() {
    let house = House::new("", "");
    for (name, bits) in [("two", 2048), ("four", 4096), ("one", 1024)] {
        rsa_key(&house, name, bits);
    }
    let serial = "1013000123";
    let wwn = ["--wwn", "500104f000abcdef"];
    let add = |more: &[&'static str]| {
        let mut arguments = vec!["drive", "add", serial];
        arguments.extend(more);
        arguments
    };
    refused(&house, 1, &add(&wwn), &["--key PEM", "--ca"]);
    refused(
        &house,
        1,
        &add(&["--key", "two.pem"]),
        &["--wwn", "rsa-oaep-sha1"],
    );
    refused(
        &house,
        1,
        &[add(&wwn), vec!["--key", "two.key"]].concat(),
        &["two.key", "private key", "-pubout"],
    );
    refused(
        &house,
        1,
        &[add(&wwn), vec!["--key", "four.pem"]].concat(),
        &["t10-02h", "RSA-2048"],
    );
    refused(
        &house,
        1,
        &[add(&wwn), vec!["--key", "one.pem"]].concat(),
        &["2048"],
    );
    refused(
        &house,
        1,
        &[add(&wwn), vec!["--key", "ekm.toml"]].concat(),
        &["ekm.toml", "PEM"],
    );
    refused(
        &house,
        1,
        &[add(&wwn), vec!["--key", "none.pem"]].concat(),
        &["none.pem"],
    );
    refused(
        &house,
        1,
        &[add(&wwn), vec!["--key", "tls/crl.pem"]].concat(),
        &["tls/crl.pem", "X509 CRL"],
    );
    refused(&house, 1, &add(&["--form", "t10-00h"]), &["--custody host"]);
    refused(
        &house,
        1,
        &[add(&wwn), vec!["--key", "two.pem", "--kek1", "NONE"]].concat(),
        &["NONE"],
    );
    assert_eq!(json(&house, &["drive", "list"]), serde_json::json!([]));

    house.done(&[add(&wwn), vec!["--key", "two.pem"]].concat());
    let shown = json(&house, &["drive", "show", serial]);
    assert_eq!(shown[0]["serial"], "001013000123");
    refused(
        &house,
        1,
        &[add(&wwn), vec!["--key", "two.pem"]].concat(),
        &["001013000123", "drive mod"],
    );
    // What is wrapped for the one would open in the other.
    let second = |wwn, key| ["drive", "add", "1013000124", "--wwn", wwn, "--key", key];
    rsa_key(&house, "three", 2048);
    for (row, told) in [
        (
            second("500104f000abcde0", "two.pem"),
            "public key is that of",
        ),
        (second("500104f000abcdef", "three.pem"), "WWN is that of"),
    ] {
        refused(&house, 1, &row, &[told, "001013000123"]);
    }
    house.done(&second("500104f000abcde0", "three.pem"));
    house.done(&["drive", "del", "1013000124"]);
    house.done(&["drive", "del", serial]);
    for verb in ["show", "del", "mod"] {
        refused(
            &house,
            1,
            &["drive", verb, serial],
            &["001013000123", "not in the drive table", "ekm drive list"],
        );
    }
}

#[test]
fn what_is_no_eedk_is_shown_as_such() {
    let house = House::bare("", "");
    std::fs::write(house.at("garbage"), b"not an EEDK").unwrap();
    std::fs::write(house.at("empty"), b"").unwrap();
    std::fs::write(house.at("big"), vec![0x30; 10 << 20]).unwrap();
    refused(
        &house,
        1,
        &["eedk", "show", "garbage"],
        &["garbage is no EEDK"],
    );
    refused(&house, 1, &["eedk", "show", "empty"], &["empty is no EEDK"]);
    refused(&house, 1, &["eedk", "show", "big"], &["big", "10485760"]);
    refused(&house, 1, &["eedk", "show", "none"], &["none"]);
    refused(&house, 1, &["eedk", "show", "tls"], &["tls"]);
}

/// A file without a length has a limit all the same.
#[test]
fn a_file_without_an_end_is_not_read_into_memory() {
    let house = House::bare("", "");
    for command in ["eedk show /dev/zero", "config check /dev/zero"] {
        let output = Command::new("sh")
            .arg("-c")
            .arg(format!("ulimit -v 4000000; exec {} {command}", EKM))
            .current_dir(house.at(""))
            .output()
            .unwrap();
        let (code, text) = (output.status.code(), said(&output));
        assert!(matches!(code, Some(1 | 3)), "{command}: {code:?} {text}");
        assert!(!text.contains("memory"), "{command}: {text}");
    }
}

#[test]
fn a_damaged_audit_trail_is_code_3_and_names_the_line() {
    let house = House::new("", "");
    house.done(&["audit", "verify"]);
    let name = "audit-00000001.jsonl";
    let whole = std::fs::read_to_string(house.at("audit").join(name)).unwrap();
    let lines: Vec<&str> = whole.lines().collect();
    assert!(lines.len() >= 3, "{whole}");
    let copy = |text: String| {
        let _ = std::fs::remove_dir_all(house.at("copy"));
        std::fs::create_dir(house.at("copy")).unwrap();
        std::fs::write(house.at("copy").join(name), text).unwrap();
    };
    let joined = |lines: &[&str]| lines.iter().map(|line| format!("{line}\n")).collect();
    copy(whole.clone());
    house.done(&["audit", "verify", "copy"]);
    copy(whole.replacen("KEK1", "KEK9", 1));
    refused(
        &house,
        3,
        &["audit", "verify", "copy"],
        &[name, "line 1", "altered"],
    );
    copy(joined(&[lines[0], lines[2]]));
    refused(
        &house,
        3,
        &["audit", "verify", "copy"],
        &[name, "line 2", "removed"],
    );
    copy(joined(&[lines[0], lines[2], lines[1]]));
    refused(&house, 3, &["audit", "verify", "copy"], &[name, "line 2"]);
    copy(joined(&[lines[0], "{}"]));
    refused(&house, 3, &["audit", "verify", "copy"], &[name, "line 2"]);
    copy(whole[..whole.len() - 20].to_owned());
    refused(
        &house,
        3,
        &["audit", "verify", "copy"],
        &[name, "unfinished"],
    );
    copy(String::new());
    refused(&house, 3, &["audit", "verify", "copy"], &["copy"]);
    refused(&house, 1, &["audit", "verify", "none"], &["none"]);
    refused(&house, 1, &["audit", "show", "none"], &["none"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cartridge_is_not_written_over_and_a_damaged_one_is_not_read() {
    let house = House::new("", "");
    let drive = house.drive(1);
    let data: Vec<u8> = (0..600_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    std::fs::write(house.at("data"), &data).unwrap();
    std::fs::write(house.at("nothing"), b"").unwrap();
    let unplugged = house.write(&drive, "cartridge", "data", &[]);
    assert_eq!(unplugged.status.code(), Some(1));
    assert!(said(&unplugged).contains("--server HOST:PORT"));
    let serving = house.serve().await;
    house.plug(&drive, &serving);

    let wrote = house.write(&drive, "cartridge", "data", &[]);
    assert!(wrote.status.success(), "{}", said(&wrote));
    assert!(wrote.stdout.is_empty());
    let before = std::fs::read(house.at("cartridge")).unwrap();
    let again = house.write(&drive, "cartridge", "nothing", &[]);
    assert_eq!(again.status.code(), Some(1));
    assert!(said(&again).contains("--overwrite"), "{}", said(&again));
    assert_eq!(std::fs::read(house.at("cartridge")).unwrap(), before);
    let read = house.read(&drive, "cartridge");
    assert!(
        read.status.success() && read.stdout == data,
        "{}",
        said_error(&read)
    );

    // Nothing is refused to a cartridge of no bytes.
    let wrote = house.write(&drive, "empty", "nothing", &[]);
    assert!(wrote.status.success(), "{}", said(&wrote));
    let read = house.read(&drive, "empty");
    assert!(read.status.success() && read.stdout.is_empty());

    // The stream begins at 8256; before it are two headers.
    for length in [0, 7, 4096, 8192, 8256, 8300, before.len() - 1] {
        std::fs::write(house.at("cut"), &before[..length]).unwrap();
        let read = house.read(&drive, "cut");
        assert_eq!(read.status.code(), Some(1), "{length} bytes were read");
        let text = said_error(&read);
        assert!(
            text.contains("cartridge") || text.contains("block"),
            "{length}: {text}"
        );
        assert!(read.stdout.len() < data.len());
    }
    for place in [8192, 8224, 8256, 300_000, before.len() - 1] {
        let mut flipped = before.clone();
        flipped[place] ^= 1;
        std::fs::write(house.at("flipped"), flipped).unwrap();
        let read = house.read(&drive, "flipped");
        assert_eq!(read.status.code(), Some(1), "byte {place}");
        assert!(!said_error(&read).is_empty());
        // Only whole blocks that are as they were written come out.
        assert!(data.starts_with(&read.stdout), "byte {place}");
    }
    refused(
        &house,
        1,
        &["softdrive", "show", "--cartridge", "data"],
        &["data"],
    );
    refused(
        &house,
        1,
        &["softdrive", "show", "--cartridge", "none"],
        &["none"],
    );
    let other = house.write(&drive, "cartridge", "nothing", &["--overwrite"]);
    assert!(other.status.success(), "{}", said(&other));
    let read = house.read(&drive, "cartridge");
    assert!(read.status.success() && read.stdout.is_empty());
    refused(
        &house,
        1,
        &[
            "softdrive",
            "init",
            &drive.directory,
            "--serial",
            "1234567890",
            "--wwn",
            &drive.wwn,
        ],
        &["never overwritten"],
    );
    serving.stop();
    let gone = house.read(&drive, "cartridge");
    assert_eq!(gone.status.code(), Some(1));
    assert!(
        said(&gone).contains("no key server answered") && said(&gone).contains("cannot be reached"),
        "{}",
        said(&gone)
    );
}

/// The header is there twice, so that cartridge memory may lose one of them.
#[tokio::test(flavor = "multi_thread")]
async fn a_cartridge_with_one_header_damaged_is_still_read() {
    let house = House::new("", "");
    let drive = house.drive(1);
    let serving = house.serve().await;
    house.plug(&drive, &serving);
    let wrote = house.write(&drive, "cartridge", "ekm.toml", &[]);
    assert!(wrote.status.success(), "{}", said(&wrote));
    let whole = std::fs::read(house.at("cartridge")).unwrap();
    for place in [0, 64, 4096, 4096 + 64] {
        let mut scratched = whole.clone();
        scratched[place..place + 64].fill(0xff);
        std::fs::write(house.at("scratched"), &scratched).unwrap();
        let read = house.read(&drive, "scratched");
        assert!(read.status.success(), "byte {place}: {}", said_error(&read));
        assert_eq!(read.stdout, std::fs::read(house.at("ekm.toml")).unwrap());
    }
    serving.stop();
}

fn said_error(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A place that cannot be written to leaves no data key that looks used.
#[tokio::test(flavor = "multi_thread")]
async fn a_cartridge_that_cannot_be_made_leaves_no_data_key_in_use() {
    let house = House::new("", "");
    let drive = house.drive(1);
    let serving = house.serve().await;
    house.plug(&drive, &serving);
    let output = house.write(&drive, "no/such/folder/cartridge", "ekm.toml", &[]);
    assert_eq!(output.status.code(), Some(1));
    let text = said(&output);
    assert!(text.contains("no/such/folder"), "{text}");
    let volumes = json(&house, &["volume", "list"]);
    for volume in volumes.as_array().unwrap() {
        assert_eq!(volume["state"], "abandoned", "{volumes}");
    }
    serving.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_scripts_read_is_json() {
    let house = House::new("", "");
    let drive = house.drive(1);
    std::fs::write(house.at("data"), b"data").unwrap();
    let look = |name: &str| {
        let slots = json(&house, &["slot", "list", "--profile", "embedded"]);
        assert!(
            slots.to_string().contains("CKM_RSA_PKCS_OAEP"),
            "{name}: {slots}"
        );
        assert_eq!(json(&house, &["kek", "list"])[0]["label"], "KEK1", "{name}");
        assert_eq!(
            json(&house, &["kek", "show", "kek1"])[0]["bits"],
            2048,
            "{name}"
        );
        assert!(
            json(&house, &["kek", "default"])
                .to_string()
                .contains("KEK1"),
            "{name}"
        );
        assert_eq!(
            json(&house, &["drive", "list"])[0]["serial"],
            drive.serial.as_str(),
            "{name}"
        );
        let status = json(&house, &["token", "status"]);
        assert_eq!(status[0]["state"], "ready", "{name}: {status}");
        assert!(
            json(&house, &["audit", "show", "--last", "2"]).is_array(),
            "{name}"
        );
        assert_eq!(json(&house, &["audit", "verify"])["first"], 1, "{name}");
    };
    look("without a server");
    let serving = house.serve().await;
    house.plug(&drive, &serving);
    let wrote = house.write(&drive, "cartridge", "data", &[]);
    assert!(wrote.status.success(), "{}", said(&wrote));
    look("with a server");
    let volumes = json(&house, &["volume", "list"]);
    assert_eq!(volumes[0]["volser"], "VOL001");
    assert_eq!(volumes[0]["state"], "confirmed");
    let shown = json(&house, &["volume", "show", "VOL001"]);
    for (name, value) in volumes[0].as_object().unwrap() {
        assert_eq!(shown[0][name], *value, "{name}");
    }
    assert_eq!(
        (&shown[0]["medium"], &shown[0]["catalog"]),
        (&"yes".into(), &true.into())
    );
    refused(
        &house,
        1,
        &["volume", "show", "NONE", "--json"],
        &["[]", "no volume NONE"],
    );
    serving.stop();

    house.done(&[
        "softdrive",
        "show",
        "--cartridge",
        "cartridge",
        "--eedks",
        "eedks",
    ]);
    let shown = json(&house, &["softdrive", "show", "--cartridge", "cartridge"]);
    let eedk = json(&house, &["eedk", "show", "eedks/VOL001-1.der"]);
    assert_eq!(shown["dki"], eedk["dki"]);
    assert_eq!(shown["dki"], volumes[0]["dki"]);
    assert!(json(&house, &["tls", "list"]).is_array());
    let issued = json(&house, &["tls", "issue", "host9", "--role", "proxy"]);
    assert_eq!(issued["peer"], "proxy:host9");
    assert_eq!(json(&house, &["config", "check"])["node"], "house");
}

/// Checks that found something wrong say so in JSON as well.
#[test]
fn a_check_that_fails_is_json_too() {
    let house = House::bare("", "");
    std::fs::create_dir(house.at("damaged")).unwrap();
    std::fs::write(house.at("damaged/audit-00000001.jsonl"), "{}\n").unwrap();
    std::fs::write(house.at("bad.toml"), "node = 1\n").unwrap();
    for arguments in [
        ["audit", "verify", "damaged", "--json"],
        ["config", "check", "bad.toml", "--json"],
    ] {
        let output = house.run(&arguments);
        assert_eq!(output.status.code(), Some(3));
        let text = said(&output);
        assert!(
            serde_json::from_slice::<Value>(&output.stdout).is_ok(),
            "{arguments:?}: {text}"
        );
    }
}

#[test]
fn completions_and_manual_pages_are_made() {
    let house = House::bare("", "");
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = house.done(&["completions", shell]);
        assert!(script.contains("softdrive"), "{shell}");
    }
    // Longer than what an argument may be.
    let script = house.at("completions.bash");
    std::fs::write(&script, house.done(&["completions", "bash"])).unwrap();
    let check = Command::new("bash")
        .arg("-n")
        .arg(&script)
        .output()
        .unwrap();
    assert!(check.status.success(), "{check:?}");
    house.done(&["man", "pages"]);
    for page in ["ekm.1", "ekm-kek-generate.1", "ekm-softdrive-write.1"] {
        let text = std::fs::read_to_string(house.at("pages").join(page)).unwrap();
        assert!(text.contains(".TH"), "{page}");
    }
    let hidden = house.at("pages/ekm-bridge.1");
    assert!(!hidden.exists(), "the token process has a manual page");
}

/// `ekm … | head -1`
#[test]
fn a_reader_that_goes_away_is_no_panic() {
    let house = House::bare("", "");
    for arguments in [
        vec!["completions", "bash"],
        vec!["config", "example"],
        vec!["tls", "list"],
        vec!["tls", "list", "--json"],
        vec!["audit", "show", "--json"],
    ] {
        house.done(&["drive", "list"]);
        let mut child = house
            .command(&arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let mut text = String::new();
        child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        child.wait().unwrap();
        assert!(!text.contains("panicked"), "{arguments:?}: {text}");
    }
}

#[test]
fn the_authority_names_what_it_cannot_do() {
    let house = House::bare("", "");
    refused(&house, 1, &["tls", "init"], &["tls/ca"]);
    refused(
        &house,
        1,
        &["tls", "list", "--ca-dir", "none"],
        &["no certificate authority in none", "ekm tls init"],
    );
    refused(&house, 1, &["tls", "revoke", "nobody"], &["nobody"]);
    refused(
        &house,
        1,
        &["tls", "issue", "../x", "--role", "proxy"],
        &["../x"],
    );
    refused(
        &house,
        1,
        &["tls", "issue", "123", "--role", "drive"],
        &["12 characters"],
    );
    refused(
        &house,
        1,
        &[
            "tls",
            "issue",
            "x",
            "--role",
            "proxy",
            "--host",
            "example.org",
        ],
        &["proxy:x"],
    );
    refused(
        &house,
        1,
        &["tls", "issue", "x", "--role", "proxy", "--days", "99999"],
        &["20"],
    );
    rsa_key(&house, "rsa", 1024);
    refused(
        &house,
        1,
        &[
            "tls",
            "issue",
            "1234567890",
            "--role",
            "drive",
            "--key",
            "rsa.pem",
        ],
        &["2048"],
    );
    refused(
        &house,
        1,
        &["tls", "issue", "x", "--role", "proxy", "--key", "rsa.key"],
        &["rsa.key", "PUBLIC KEY"],
    );
    house.done(&["tls", "issue", "x", "--role", "proxy"]);
    house.done(&["tls", "issue", "x", "--role", "operator"]);
    refused(&house, 1, &["tls", "revoke", "x"], &["<role>:<name>"]);
    house.done(&["tls", "revoke", "proxy:x"]);
    house.done(&["tls", "revoke", "proxy:x"]);
    // Private keys are their owner's.
    let mode = |name: &str| house.at(name).metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("tls/ca.key"), 0o600);
    assert_eq!(mode("tls/issued/proxy-x.key"), 0o600);
    let mut file = std::fs::File::open(house.at("tls/ca.key")).unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
}

#[test]
fn the_demo_does_the_whole_job_on_either_software_token() {
    for profile in ["embedded", "softhsm2"] {
        let output = Command::new(EKM)
            .args(["demo", "--profile", profile])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let complained = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{profile}: {said}\n{complained}");
        for line in ["compared byte by byte", "EF01", "EE32", "audit: good"] {
            assert!(said.contains(line), "{profile}: no {line:?} in\n{said}");
        }
    }
}
