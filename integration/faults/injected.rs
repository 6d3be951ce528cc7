//! Codes of every class, from every function that a warm request calls: what
//! the service answers, and whether the bridge was started anew.

use std::time::Duration;

use cryptoki_sys as ck;
use ekm::bridge::faults::{Asked, explain};
use ekm::bridge::message::{Op, Recipient};
use ekm::key::Eedk;
use ekm::keystore::Custody;
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::Instant;

use super::{Stage, ders, generous, spoil};
use crate::faulty::{Fault, Faulty};
use crate::support::{Bench, Hsm, Kind, wait_for};

/// A vendor's own code.
const VENDORS: u64 = ck::CKR_VENDOR_DEFINED + 0x123;

/// Long enough for a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// What comes of one failed call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// The key all the same, from the same bridge.
    Mended,
    /// The key all the same, from a new bridge.
    Restarted,
    /// HTTP status 500, and no promise that it passes; the bridge stays.
    Refused,
    /// HTTP status 503; the bridge stays.
    NeedsAPerson,
}

use Outcome::{Mended, NeedsAPerson, Refused, Restarted};

/// One failed call of a resolve each.
const RESOLVE: &[(&str, u64, Outcome)] = &[
    ("C_UnwrapKey", ck::CKR_SESSION_HANDLE_INVALID, Mended),
    ("C_UnwrapKey", ck::CKR_OPERATION_ACTIVE, Mended),
    ("C_UnwrapKey", ck::CKR_USER_NOT_LOGGED_IN, Mended),
    ("C_UnwrapKey", ck::CKR_UNWRAPPING_KEY_HANDLE_INVALID, Mended),
    ("C_UnwrapKey", ck::CKR_KEY_FUNCTION_NOT_PERMITTED, Mended),
    ("C_UnwrapKey", ck::CKR_DEVICE_MEMORY, Mended),
    // A good cartridge is not called bad because the token slipped once.
    ("C_UnwrapKey", ck::CKR_GENERAL_ERROR, Mended),
    ("C_UnwrapKey", ck::CKR_DEVICE_ERROR, Mended),
    ("C_UnwrapKey", ck::CKR_WRAPPED_KEY_INVALID, Mended),
    ("C_UnwrapKey", ck::CKR_TEMPLATE_INCONSISTENT, Mended),
    ("C_UnwrapKey", VENDORS, Mended),
    ("C_UnwrapKey", ck::CKR_KEY_EXHAUSTED, NeedsAPerson),
    ("C_UnwrapKey", ck::CKR_DEVICE_REMOVED, Restarted),
    ("C_WrapKey", ck::CKR_WRAPPING_KEY_HANDLE_INVALID, Mended),
    ("C_WrapKey", ck::CKR_KEY_HANDLE_INVALID, Mended),
    ("C_WrapKey", ck::CKR_SESSION_CLOSED, Mended),
    ("C_WrapKey", ck::CKR_FUNCTION_FAILED, Mended),
    ("C_WrapKey", ck::CKR_TOKEN_RESOURCE_EXCEEDED, Mended),
    ("C_WrapKey", ck::CKR_KEY_UNEXTRACTABLE, Refused),
    ("C_WrapKey", ck::CKR_MECHANISM_PARAM_INVALID, Refused),
    ("C_WrapKey", ck::CKR_CRYPTOKI_NOT_INITIALIZED, Restarted),
    ("C_DestroyObject", ck::CKR_OBJECT_HANDLE_INVALID, Mended),
    ("C_DestroyObject", ck::CKR_ACTION_PROHIBITED, Mended),
    ("C_DestroyObject", ck::CKR_DEVICE_ERROR, Mended),
];

/// One failed call of a create and its proofs each.
const CREATE: &[(&str, u64, Outcome)] = &[
    ("C_GenerateKey", ck::CKR_SESSION_HANDLE_INVALID, Mended),
    ("C_GenerateKey", ck::CKR_USER_NOT_LOGGED_IN, Mended),
    ("C_GenerateKey", ck::CKR_DEVICE_MEMORY, Mended),
    ("C_GenerateKey", ck::CKR_GENERAL_ERROR, Mended),
    ("C_GenerateKey", ck::CKR_MECHANISM_INVALID, Refused),
    ("C_GenerateKey", ck::CKR_RANDOM_NO_RNG, NeedsAPerson),
    ("C_GenerateKey", ck::CKR_TOKEN_NOT_PRESENT, Restarted),
    ("C_EncryptInit", ck::CKR_KEY_HANDLE_INVALID, Mended),
    ("C_EncryptInit", ck::CKR_KEY_FUNCTION_NOT_PERMITTED, Refused),
    ("C_Encrypt", ck::CKR_OPERATION_NOT_INITIALIZED, Mended),
    ("C_Encrypt", ck::CKR_DATA_LEN_RANGE, Mended),
    ("C_Encrypt", ck::CKR_HOST_MEMORY, Restarted),
];

async fn faulty(label: &str, profile: Option<String>) -> (Faulty, Stage) {
    let hsm = Hsm::new(Kind::SofthsmInProcess, label).await;
    let faulty = Faulty::before(&hsm);
    let mut config = faulty.config(&hsm, "main");
    if let Some(text) = profile {
        let path = hsm.directory.path().join("own.toml");
        std::fs::write(&path, text).unwrap();
        config.profile = path.display().to_string();
    }
    let bench = Bench::with(vec![config], generous()).await;
    (faulty, Stage::over(hsm, bench).await)
}

/// The EEDKs of a new cartridge, and its data key.
async fn tape(stage: &Stage) -> (Vec<Vec<u8>>, [u8; 32]) {
    let tape = stage.create().await;
    (ders(&tape), stage.key(&tape.sedk))
}

/// How often a function has answered with a code.
fn answered(faulty: &Faulty, function: &str, code: u64) -> usize {
    let code = format!("{code:#x}");
    let log = std::fs::read_to_string(faulty.log()).unwrap();
    log.lines()
        .filter(|line| line.starts_with(&format!("{function} ")) && line.ends_with(&code))
        .count()
}

/// How often a bridge has begun with the module. Unlike places on the board, which are given away
/// again after a minute, it only grows.
fn loaded(faulty: &Faulty) -> u64 {
    faulty.called("C_Initialize")
}

/// Has the next call of the function fail, and says what came of a request.
async fn outcome(
    faulty: &Faulty,
    function: &str,
    code: u64,
    request: impl Future<Output = Result<(), ekm::problem::Problem>>,
) -> Outcome {
    let bridges = loaded(faulty);
    let before = answered(faulty, function, code);
    faulty.strike(Some(function), 0, Some(1), Fault::Answer(code));
    let answer = request.await;
    faulty.heal();
    assert_eq!(
        answered(faulty, function, code),
        before + 1,
        "{function} did not answer {code:#x} once"
    );
    let restarted = loaded(faulty) > bridges;
    match answer {
        Ok(()) if restarted => Restarted,
        Ok(()) => Mended,
        Err(problem) => {
            assert!(!restarted, "{function} {code:#x}: {problem}");
            // The message leads to the table.
            assert!(problem.detail.contains("ekm token explain"), "{problem}");
            match (problem.status, problem.retry_after) {
                (500, None) => Refused,
                (503, Some(_)) => NeedsAPerson,
                other => panic!("{function} {code:#x}: {other:?}: {problem}"),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_failed_call_of_a_resolve_costs_what_its_class_says() {
    let (faulty, stage) = faulty("injected", None).await;
    let (eedks, key) = tape(&stage).await;
    for (function, code, expected) in RESOLVE {
        let request = async {
            let (found, _) = stage.resolve(&[&eedks[0]]).await?;
            assert_eq!(found, key, "{function} {code:#x}");
            Ok(())
        };
        let found = outcome(&faulty, function, *code, request).await;
        assert_eq!(found, *expected, "{function} {code:#x}");
        // Nothing of it stays.
        assert_eq!(stage.resolve(&[&eedks[0]]).await.unwrap(), (key, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_failed_call_of_a_create_costs_what_its_class_says() {
    let (faulty, stage) = faulty("injected", None).await;
    for (function, code, expected) in CREATE {
        let request = async { stage.try_create().await.map(drop) };
        let found = outcome(&faulty, function, *code, request).await;
        assert_eq!(found, *expected, "{function} {code:#x}");
        let (eedks, key) = tape(&stage).await;
        assert_eq!(stage.resolve(&[&eedks[1]]).await.unwrap(), (key, 0));
    }
}

/// Codes of classes operator and full, where no request is in play and no PIN was sent: what
/// `ekm token explain` says of them, and no lock.
#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_that_cannot_open_its_token_is_followed_by_another_until_one_can() {
    let (faulty, stage) = faulty("opening", None).await;
    let (eedks, key) = tape(&stage).await;
    for (function, code) in [
        ("C_Initialize", ck::CKR_ARGUMENTS_BAD),
        ("C_Initialize", ck::CKR_CANT_LOCK),
        ("C_OpenSession", ck::CKR_TOKEN_NOT_INITIALIZED),
        ("C_OpenSession", ck::CKR_SESSION_COUNT),
    ] {
        let before = answered(&faulty, function, code);
        let (_, _, bridges) = stage.token().await;
        faulty.strike(Some(function), 0, None, Fault::Answer(code));
        let pid = i32::try_from(bridges[0]).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
        wait_for("two bridges that fail so", PATIENCE, || {
            answered(&faulty, function, code) >= before + 2
        });
        assert_eq!(stage.token().await.0, "failed", "{function} {code:#x}");
        let asked = Asked::parse(Some(&format!("{code:#x}")), Some(function)).unwrap();
        let told = explain(asked, &[]).remove(0).ekm;
        assert!(told.contains("another"), "{function} {code:#x}: {told}");

        faulty.heal();
        let bridge = &stage.bench.service.tokens().bridges()[0];
        wait_for("the token", PATIENCE, || bridge.state().word() == "ready");
        assert_eq!(stage.resolve(&[&eedks[0]]).await.unwrap(), (key, 0));
    }
}

/// What a cartridge gets from a token that is broken: never that it is bad.
#[tokio::test(flavor = "multi_thread")]
async fn a_broken_token_is_not_the_cartridges_fault() {
    let (faulty, stage) = faulty("broken", None).await;
    let (eedks, key) = tape(&stage).await;
    let bridges = loaded(&faulty);
    faulty.strike(
        Some("C_UnwrapKey"),
        0,
        Some(7),
        Fault::Answer(ck::CKR_DEVICE_ERROR),
    );
    // The canary fails, too, so the bridge is started until the token is well.
    assert_eq!(stage.resolve(&[&eedks[0]]).await.unwrap(), (key, 0));
    assert!(loaded(&faulty) > bridges);
}

/// The same key gives the same verdict, so the second token is not asked.
#[tokio::test(flavor = "multi_thread")]
async fn a_bad_eedk_is_asked_of_one_token_only() {
    let one = Hsm::new(Kind::SofthsmInProcess, "one").await;
    let other = Hsm::new(Kind::SofthsmInProcess, "other").await;
    let key = one.directory.path().join("kek.der");
    {
        use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
        let pair = aws_lc_rs::rsa::KeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap();
        let der: Pkcs8V1Der<'_> = pair.as_der().unwrap();
        std::fs::write(&key, der.as_ref()).unwrap();
    }
    for hsm in [&one, &other] {
        hsm.hand(&["import-private", "SHARED", &key.display().to_string()]);
    }
    let boards = [Faulty::before(&one), Faulty::before(&other)];
    let configs = vec![
        boards[0].config(&one, "main"),
        boards[1].config(&other, "second"),
    ];
    let bench = Bench::with(configs, generous()).await;
    bench.kek("KEK1", "main", Custody::Token).await;
    let drive = crate::support::drive(bench.directory.path(), 1, Kind::SofthsmInProcess.form());
    bench.enrol(&drive).await;
    let stage = Stage {
        bench,
        drive,
        _hsm: one,
    };
    let tape = stage.create_under("SHARED", "KEK1").await.unwrap();
    let eedks = ders(&tape);
    let opened = || -> u64 { boards.iter().map(|board| board.called("C_UnwrapKey")).sum() };
    let mut on_one = 0;
    for number in [3, 4, 2, 8, 9] {
        let bad = spoil(&eedks[0], number);
        let before = opened();
        let refused = stage.resolve(&[&bad]).await.unwrap_err();
        assert_eq!(refused.code, ekm::problem::EkmCode::EE32, "{refused}");
        // Twice the bad one, each time with a good one, and perhaps a canary;
        // on both tokens it would be eight.
        let asked = opened() - before;
        assert!(asked >= 4, "{asked}");
        on_one += usize::from(asked < 8);
        // The other EEDK of the cartridge is tried all the same.
        let saved = stage.resolve(&[&bad, &eedks[1]]).await.unwrap();
        assert_eq!(saved, (stage.key(&tape.sedk), 1));
    }
    // A token that is slow to answer is not waited for alone.
    assert!(on_one > 0);
}

/// A profile's rule goes before the table.
#[tokio::test(flavor = "multi_thread")]
async fn a_profile_says_what_its_vendors_code_means() {
    let text = format!(
        "{}\n[[faults]]\nfunction = \"C_UnwrapKey\"\ncode = {VENDORS:#x}\nclass = \"restart\"\nreason = \"The cluster has no quorum.\"\n",
        include_str!("../../hsm-profiles/softhsm2.toml")
    );
    let (faulty, stage) = faulty("ruled", Some(text)).await;
    let (eedks, key) = tape(&stage).await;
    for (function, expected) in [("C_UnwrapKey", Restarted), ("C_WrapKey", Mended)] {
        let request = async {
            let (found, _) = stage.resolve(&[&eedks[0]]).await?;
            assert_eq!(found, key);
            Ok(())
        };
        let found = outcome(&faulty, function, VENDORS, request).await;
        assert_eq!(found, expected, "{function}");
    }
}

/// A second attempt is begun only if there is time for it: the request may be
/// asked of another token instead.
#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_could_not_end_in_time_is_not_begun() {
    let profile = include_str!("../../hsm-profiles/softhsm2.toml");
    let one_worker = profile.replace("workers = 4", "workers = 1");
    assert_ne!(profile, one_worker);
    let (faulty, stage) = faulty("late", Some(one_worker)).await;
    let (eedks, _) = tape(&stage).await;
    let directory = stage.bench.service.directory().await.unwrap();
    let kek = directory.by_label(&"KEK1".parse().unwrap()).unwrap().hash;
    let resolve = Op::Resolve {
        eedk: Eedk::decode(&eedks[0]).unwrap(),
        kek,
        drive: Recipient {
            form: stage.drive.row.form,
            spki: stage.drive.soft.public_key_spki().to_vec(),
            wwn: stage.drive.row.wwn,
        },
        custody: Custody::Token,
        guard: None,
    };
    // A bridge that has known the token only as slow.
    let slow = Duration::from_millis(700);
    faulty.strike(Some("C_UnwrapKey"), 0, None, Fault::Delay(700));
    let (_, _, old) = stage.token().await;
    let pid = i32::try_from(old[0]).unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    let bridge = &stage.bench.service.tokens().bridges()[0];
    loop {
        let (state, _, bridges) = stage.token().await;
        if state == "ready" && bridges != old {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    bridge
        .try_ask(&resolve, Instant::now() + slow * 10)
        .await
        .unwrap();
    for (time, expected) in [(slow * 10, 2), (slow * 19 / 10, 1)] {
        let lost = Fault::Answer(ck::CKR_SESSION_HANDLE_INVALID);
        faulty.strike(Some("C_WrapKey"), 0, Some(1), lost);
        let before = faulty.called("C_UnwrapKey");
        let answer = bridge.try_ask(&resolve, Instant::now() + time).await;
        assert_eq!(
            faulty.called("C_UnwrapKey") - before,
            expected,
            "{answer:?}"
        );
        match (expected, answer) {
            (2, Ok(_)) => {}
            (1, Err(fault)) => {
                assert!(fault.passes(), "{fault}");
                assert!(fault.to_string().contains("C_WrapKey"), "{fault}");
            }
            other => panic!("{other:?}"),
        }
    }
}
