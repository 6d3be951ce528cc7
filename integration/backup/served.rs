//! Backups, exports and alarms of a server that runs.

use std::process::{Command, Output, Stdio};

use ekm::api::{CreateRequest, DriveInRequest};
use ekm::key::SedkForm;

use super::PASSPHRASE;
use crate::site::Site;
use crate::support::{EKM, Hsm, Kind, TestDrive, drive, write_private};

/// A new cartridge, or why not.
async fn create(site: &Site, drive: &TestDrive, volser: &str) -> Result<(), String> {
    let request = CreateRequest {
        job: None,
        request_id: uuid::Uuid::new_v4(),
        drive: DriveInRequest {
            serial: drive.row.serial.clone(),
            stores_eedks: true,
            public_key: None,
            session_key: None,
        },
        volser: volser.parse().unwrap(),
        kek1: None,
        kek2: None,
    };
    let answer = site.client(&drive.peer).create(&request).await;
    answer.map(drop).map_err(|error| error.to_string())
}

fn ekm(site: &Site, arguments: &[&str]) -> Output {
    Command::new(EKM)
        .arg("--config")
        .arg(site.config())
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn refused(site: &Site, arguments: &[&str]) -> String {
    let output = ekm(site, arguments);
    assert!(!output.status.success(), "{arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_written_under_a_kek_that_was_never_backed_up() {
    let hsm = Hsm::new(Kind::Embedded, "ekm").await;
    let told = tempfile::tempdir().unwrap();
    let log = told.path().join("alarms");
    let script = told.path().join("alarm");
    std::fs::write(
        &script,
        format!("#!/bin/sh\necho \"$1 $2 $3 $4\" >> {}\n", log.display()),
    )
    .unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(&script, mode).unwrap();
    let policy = format!(
        "[policy]\nbackup_before_serving = \"require\"\n[alarms]\ncommand = [\"{}\"]\n",
        script.display()
    );
    let site = Site::start(&[&hsm], &policy).await;
    site.ekm(&["kek", "generate", "TAPE2026A", "--bits", "2048"]);
    site.ekm(&["kek", "default", "--kek1", "TAPE2026A"]);
    let folder = tempfile::tempdir().unwrap();
    let drive = drive(folder.path(), 1, SedkForm::T10Wrapped);
    site.enrol(&drive).await;
    let no = create(&site, &drive, "VOL001").await.unwrap_err();
    assert!(no.contains("backup_before_serving"), "{no}");
    assert!(site.ekm(&["kek", "show", "TAPE2026A"]).contains("in none"));
    assert!(site.ekm(&["backup", "status"]).contains("never"));
    crate::support::wait_for("the alarm", std::time::Duration::from_secs(20), || {
        std::fs::read_to_string(&log)
            .is_ok_and(|text| text.contains("raised EKM-A15") && text.contains("TAPE2026A"))
    });
    let raised = site.ekm(&["alarm", "list", "--raised"]);
    assert!(
        raised.contains("EKM-A15") && raised.contains("TAPE2026A"),
        "{raised}"
    );

    let file = folder.path().join("site.ekmbackup");
    let file = file.to_str().unwrap();
    let words = folder.path().join("passphrase");
    write_private(&words, PASSPHRASE);
    let words = words.to_str().unwrap();
    let short = folder.path().join("short");
    write_private(&short, "short");
    let no = refused(
        &site,
        &["backup", file, "--passphrase-file", short.to_str().unwrap()],
    );
    assert!(no.contains("12 characters"), "{no}");
    let made = site.ekm(&["backup", file, "--passphrase-file", words]);
    assert!(made.contains("TAPE2026A (main)"), "{made}");
    assert!(made.contains("PIN of token main"), "{made}");
    let again = refused(&site, &["backup", file, "--passphrase-file", words]);
    assert!(
        again.contains("exists already; a backup is never overwritten: choose another name")
            && !again.contains("--overwrite"),
        "{again}"
    );
    create(&site, &drive, "VOL001").await.unwrap();
    let status = site.ekm(&["backup", "status", "--json"]);
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["keks"][0]["kept"], true, "{status}");
    assert!(site.ekm(&["kek", "list"]).contains("backup"));
    let looked = site.ekm(&["restore", file, "--look", "--passphrase-file", words]);
    assert!(
        looked.contains("token.sql") && !looked.contains("/pin\n"),
        "{looked}"
    );
    crate::support::wait_for("its end", std::time::Duration::from_secs(20), || {
        std::fs::read_to_string(&log).is_ok_and(|text| text.contains("over EKM-A15"))
    });
    // A KEK that was made after it is not in it.
    site.ekm(&["kek", "generate", "TAPE2027", "--bits", "2048"]);
    site.ekm(&["kek", "default", "--kek1", "TAPE2027"]);
    let no = create(&site, &drive, "VOL002").await.unwrap_err();
    assert!(no.contains("TAPE2027"), "{no}");
    let records = site.ekm(&["audit", "show", "--action", "backup", "--json"]);
    assert!(records.contains("read back"), "{records}");
    // Nothing but the audit and the file itself has the passphrase or the PIN.
    let bytes = std::fs::read(file).unwrap();
    let pin = crate::support::PIN.as_bytes();
    assert!(!bytes.windows(pin.len()).any(|window| window == pin));
    site.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_exported_comes_in_and_what_was_deleted_since_stays_deleted() {
    let hsm = Hsm::new(Kind::Embedded, "ekm").await;
    let site = Site::start(&[&hsm], "").await;
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let drives: Vec<TestDrive> = (1..=3)
        .map(|n| drive(folder.path(), n, SedkForm::T10Wrapped))
        .collect();
    for one in &drives {
        site.enrol(one).await;
    }
    site.ekm(&["kek", "generate", "TAPE2026A", "--bits", "2048"]);
    site.ekm(&["kek", "default", "--kek1", "TAPE2026A"]);
    create(&site, &drives[0], "VOL001").await.unwrap();
    site.ekm(&["export", &at("all")]);
    site.ekm(&["export", "--what", "drivetab", &at("drives")]);
    let drives = std::fs::read_to_string(at("drives")).unwrap();
    assert_eq!(drives.lines().count(), 5, "{drives}");

    site.ekm(&["drive", "del", "000000000002"]);
    site.ekm(&["drive", "mod", "000000000003", "--kek1", "TAPE2026A"]);
    let preview = site.ekm(&["import", &at("all"), "--rewrite", "--dry-run"]);
    assert!(
        preview.contains("drive 000000000003: changed: kek1"),
        "{preview}"
    );
    assert!(
        preview.contains("kept: drive 000000000002 was deleted here later"),
        "{preview}"
    );
    assert!(preview.contains("1 known already"), "{preview}");
    let none = site.ekm(&["import", &at("all"), "--merge"]);
    assert!(none.contains("same already, or newer"), "{none}");
    let table = site.ekm(&["drive", "list", "--json"]);
    assert!(
        !table.contains("000000000002") && table.contains("TAPE2026A"),
        "{table}"
    );
    site.ekm(&["import", &at("drives"), "--rewrite"]);
    let table = site.ekm(&["drive", "list", "--json"]);
    assert!(
        !table.contains("000000000002") && !table.contains("TAPE2026A"),
        "{table}"
    );
    let records = site.ekm(&["audit", "show", "--action", "drive-mod", "--json"]);
    assert!(records.contains("import, rewritten"), "{records}");

    // A file that is cut off, or was mended by hand, does nothing.
    for (text, why) in [
        (drives[..drives.len() - 12].to_owned(), "cut off"),
        (
            drives.lines().skip(1).collect::<Vec<_>>().join("\n"),
            "no file of ekm export",
        ),
        (
            drives.replace("\"end\":5", "\"end\":6"),
            "should have 6 lines",
        ),
        (
            drives.replacen("000000000003", "000000000001", 1),
            "there twice",
        ),
        (
            drives.replacen("\"updated\":\"20", "\"updated\":\"29", 1),
            "set the clocks right",
        ),
    ] {
        std::fs::write(
            at("bad"),
            text + if why == "no file of ekm export" {
                "\n"
            } else {
                ""
            },
        )
        .unwrap();
        let no = refused(&site, &["import", &at("bad"), "--rewrite"]);
        assert!(no.contains(why), "{why}: {no}");
    }
    let again = site.ekm(&["drive", "list", "--json"]);
    assert_eq!(again, table);
    assert!(refused(&site, &["import", &at("drives")]).contains("--merge"));
    site.stop();

    // On another server: the history is known, and its data key is foreign.
    let other = Hsm::new(Kind::Embedded, "other").await;
    let second = Site::start(&[&other], "").await;
    let taken = second.ekm(&["import", &at("all"), "--merge"]);
    assert!(taken.contains("drive 000000000002: added"), "{taken}");
    assert!(taken.contains("KEK TAPE2026A: registered"), "{taken}");
    assert!(taken.contains("history: 1 added"), "{taken}");
    assert!(
        second
            .ekm(&["volume", "show", "VOL001"])
            .contains("TAPE2026A")
    );
    second.stop();
}
