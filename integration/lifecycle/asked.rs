//! What an operator asks for and cannot mean: said at once, with what to say instead.

use std::process::{Output, Stdio};

use super::*;
use crate::support::EKM;

/// What a command says on standard output and standard error, and its exit code.
fn said(stage: &Stage, arguments: &[&str]) -> (i32, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = std::process::Command::new(EKM)
        .arg("--config")
        .arg(stage.site.config())
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

/// The command ends with 1, and says all of that.
#[track_caller]
fn not_done(stage: &Stage, arguments: &[&str], wanted: &[&str]) {
    let (code, out, error) = said(stage, arguments);
    assert_eq!(code, 1, "{arguments:?}: {out}{error}");
    for text in wanted {
        assert!(
            error.contains(text),
            "{arguments:?}: no {text:?} in {error}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_default_is_an_active_kek_and_what_is_dropped_is_said() {
    let stage = Stage::new(&["TAPE2026A", "TAPE2026B", "TAPE2027A"]).await;
    stage.site.ekm(&[
        "kek",
        "default",
        "--kek1",
        "TAPE2026A",
        "--kek2",
        "TAPE2026B:hash",
    ]);
    let Reply::KekTurned(turned) = stage.turn("TAPE2026A", KekState::Retired).await.unwrap() else {
        panic!("not retired");
    };
    let advice = "ekm kek default --kek1 LABEL --kek2 TAPE2026B:hash";
    assert!(turned.warnings[0].contains(advice), "{turned:?}");
    let again = ["kek", "default", "--kek1", "TAPE2026A"];
    not_done(
        &stage,
        &again,
        &[
            "EE31",
            "is retired",
            "retired for writing on",
            "kek activate",
        ],
    );
    let shown = stage.site.ekm(&["kek", "default"]);
    assert!(shown.contains("TAPE2026B:hash"), "{shown}");
    stage.turn("TAPE2026A", KekState::Revoked).await.unwrap();
    not_done(&stage, &again, &["EE31", "is revoked"]);

    let shown = stage.site.ekm(&["kek", "default", "--kek1", "TAPE2027A"]);
    assert!(
        shown.contains("kek2  (none; it was TAPE2026B:hash)"),
        "{shown}"
    );
    let shown = stage.site.ekm(&["kek", "default"]);
    assert!(shown.contains("kek2  (none)"), "{shown}");
    stage.site.stop();
}

fn rotated(kek: &str, to: &str) -> Command {
    Command::KekRotate(RotateWanted {
        label: label(kek),
        new_label: Some(label(to)),
        at: None,
        token: None,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rekey_whose_other_kek_was_rotated_too_says_its_successor() {
    let mut stage = Stage::new(&["TAPE2026A", "TAPE2026B"]).await;
    stage.site.ekm(&[
        "kek",
        "default",
        "--kek1",
        "TAPE2026A",
        "--kek2",
        "TAPE2026B",
    ]);
    stage.create("VOL001", "").await;
    for (kek, to) in [("TAPE2026A", "TAPE2027A"), ("TAPE2026B", "TAPE2027B")] {
        stage.ask(rotated(kek, to)).await.unwrap();
    }
    let wanted = from("TAPE2026A", "TAPE2027A");
    let job = stage.rekey(RekeyAct::Start(Box::new(wanted.clone())));
    let seen = ended(&stage, job.await.job.id).await;
    assert_eq!((seen.job.count.done, seen.job.count.failed), (0, 1));
    assert_eq!(
        seen.failures[0].reason,
        "EE31: its other EEDK is under TAPE2026B, which is retired: name its successor with --kek2 TAPE2027B"
    );
    let status = stage.site.ekm(&["volume", "rekey", "--status"]);
    assert!(status.contains("done, 1 failed"), "{status}");
    let job = stage.rekey(RekeyAct::Start(Box::new(RekeyWanted {
        kek2: Some("TAPE2027B".parse().unwrap()),
        ..wanted
    })));
    let seen = ended(&stage, job.await.job.id).await;
    assert_eq!((seen.job.count.done, seen.job.count.failed), (1, 0));
    stage.site.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_for_a_time_that_is_past_is_refused() {
    let stage = Stage::new(&["TAPE1"]).await;
    let arguments = ["kek", "rotate", "TAPE1", "--at", "2020-01-01"];
    let (code, _, error) = said(&stage, &arguments);
    assert_eq!(code, 2, "{error}");
    assert!(
        error.contains("2020-01-01 is past; leave --at out to rotate now"),
        "{error}"
    );
    let past = stage.ask(Command::KekRotate(RotateWanted {
        label: label("TAPE1"),
        new_label: None,
        at: Some(OffsetDateTime::now_utc() - Duration::from_secs(3600)),
        token: None,
    }));
    let problem = past.await.unwrap_err();
    assert!(problem.detail.contains("is past"), "{problem}");
    let list = stage.site.ekm(&["kek", "list"]);
    assert!(list.contains("TAPE1") && !list.contains("TAPE2"), "{list}");
    stage.site.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_is_not_in_the_history_is_no_success() {
    let stage = Stage::new(&["OLD", "NEW"]).await;
    let rekey = ["volume", "rekey", "--volser", "VOL777", "--kek1", "NEW"];
    not_done(
        &stage,
        &rekey,
        &["volume VOL777 is not in the history (ekm volume find)"],
    );
    let jobs = RekeyAct::Status(None);
    let Reply::Rekeys(jobs) = stage.ask(Command::VolumeRekey(jobs)).await.unwrap() else {
        panic!("no list of rekeys");
    };
    assert!(jobs.is_empty(), "{jobs:?}");
    not_done(&stage, &["volume", "show", "VOL777"], &["no volume VOL777"]);
    let (code, out, error) = said(&stage, &["volume", "find", "--volser", "VOL777"]);
    assert_eq!(
        (code, out.as_str(), error.as_str()),
        (0, "", "no volume fits\n")
    );
    stage.site.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_label_that_would_be_read_as_another_is_not_given_to_a_new_kek() {
    let stage = Stage::new(&["TAPE1"]).await;
    let ending = "a label must not end in :label or :hash, which say how the cartridge names it";
    let blank = "a label must not begin with a blank";
    for (bad, why) in [
        ("TAPE2:hash", ending),
        ("TAPE2:Label", ending),
        (" TAPE2", blank),
    ] {
        not_done(&stage, &["kek", "generate", bad], &["EE31", why]);
        not_done(
            &stage,
            &["kek", "rotate", "TAPE1", "--new-label", bad],
            &[why],
        );
    }
    stage.site.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_rotation_of_a_kek_is_planned_and_what_is_left_of_it_is_named() {
    let stage = Stage::new(&["TAPE1"]).await;
    let again = ["kek", "rotate", "TAPE1", "--at", "2199-01-01"];
    stage.site.ekm(&again);
    let planned = "TAPE1 is planned for 2199-01-01 already, by TAPE2: ekm kek rotate TAPE1 does that now, ekm kek schedule remove TAPE1 takes it back";
    not_done(&stage, &again, &[planned]);
    let other = ["kek", "rotate", "TAPE1", "--new-label", "OTHER"];
    not_done(&stage, &other, &[planned]);
    let set = ["kek", "schedule", "set", "TAPE1", "--every", "year"];
    not_done(&stage, &set, &[planned]);
    let list = stage.site.ekm(&["kek", "list"]);
    assert!(!list.contains("TAPE3"), "{list}");
    let (code, _, error) = said(&stage, &["kek", "schedule", "remove", "TAPE1"]);
    assert_eq!(code, 0, "{error}");
    assert!(
        error.contains("TAPE2 was made for the rotation that is taken back"),
        "{error}"
    );
    stage.site.ekm(&set);
    not_done(&stage, &again, &["TAPE1 is rotated every year already"]);
    stage.site.stop();
}

/// A KEK that may be known to others had to wait for the day of its rotation, or left over the one
/// that was made for that.
#[tokio::test(flavor = "multi_thread")]
async fn a_planned_rotation_is_done_at_once_where_that_is_asked_for() {
    let stage = Stage::new(&["TAPE1"]).await;
    stage.site.ekm(&["kek", "default", "--kek1", "TAPE1"]);
    stage
        .site
        .ekm(&["kek", "rotate", "TAPE1", "--at", "2199-01-01"]);
    stage.site.ekm(&["kek", "rotate", "TAPE1"]);
    let list = stage.site.ekm(&["kek", "list"]);
    assert!(!list.contains("TAPE3"), "{list}");
    let defaults = stage.site.ekm(&["kek", "default"]);
    assert!(defaults.contains("TAPE2"), "{defaults}");
    not_done(&stage, &["kek", "rotate", "TAPE1"], &["retired"]);
    stage.site.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_was_given_up_shows_it_and_is_not_given_up_again() {
    let mut stage = Stage::new(&["OLD"]).await;
    stage.create("VOL001", "OLD").await;
    let burnt = ["volume", "write-off", "VOL001", "--reason", "burnt"];
    stage.site.ekm(&burnt);
    for look in [["volume", "list"], ["volume", "find"]] {
        let shown = stage.site.ekm(&look);
        assert!(shown.contains("confirmed, given up"), "{shown}");
    }
    let shown = stage.site.ekm(&["volume", "show", "VOL001"]);
    let last = shown.lines().last().unwrap();
    assert!(
        last.starts_with("given up on ") && last.ends_with(": burnt"),
        "{shown}"
    );
    let again = ["volume", "write-off", "VOL001", "--reason", "lost"];
    not_done(&stage, &again, &["given up on ", ": burnt"]);
    // What is written later counts, and can be given up as well.
    stage.create("VOL001", "OLD").await;
    assert_eq!(stage.impact("OLD").await.volumes, 1);
    stage.site.ekm(&again);
    assert_eq!(stage.impact("OLD").await.volumes, 0);
    stage.site.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_said_in_the_words_of_what_was_asked() {
    let mut stage = Stage::new(&["TAPE2026A"]).await;
    let there = "there is a KEK TAPE2026A already (on ";
    let case = "case and trailing blanks";
    let (code, _, error) = said(&stage, &["kek", "generate", "TAPE2026A"]);
    assert_eq!(code, 1, "{error}");
    assert!(error.contains(there) && !error.contains(case), "{error}");
    not_done(&stage, &["kek", "generate", "tape2026a"], &[there, case]);

    stage.create("VOL001", "TAPE2026A").await;
    stage.turn("TAPE2026A", KekState::Retired).await.unwrap();
    let problem = stage
        .turn("TAPE2026A", KekState::Revoked)
        .await
        .unwrap_err();
    assert!(
        problem.detail.contains("1 volume has an EEDK under it"),
        "{problem}"
    );

    for (arguments, wanted) in [
        (
            ["volume", "rekey", "--cancel", "99"],
            "expected an id from ekm volume rekey --status",
        ),
        (["volume", "find", "--limit", "0"], "1 or more"),
    ] {
        let (code, _, error) = said(&stage, &arguments);
        assert_eq!(code, 2, "{error}");
        assert!(error.contains(wanted), "{error}");
    }
    stage.site.stop();
}
