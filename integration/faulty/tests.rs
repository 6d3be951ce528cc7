//! Each fault happens as it was told, seen by the second PKCS#11 client.

use std::time::{Duration, Instant};

use cryptoki_sys as ck;

use super::hand::{Hand, PATIENCE};
use super::{Fault, Faulty, SessionLimit, Slots};
use crate::support::{Hsm, Kind, PIN, wait_for};

async fn softhsm(label: &str) -> (Hsm, Faulty) {
    let hsm = Hsm::new(Kind::SofthsmInProcess, label).await;
    let faulty = Faulty::before(&hsm);
    (hsm, faulty)
}

#[tokio::test]
async fn faulty_answers_what_it_is_told_to() {
    let (hsm, faulty) = softhsm("answers").await;
    let mut hand = Hand::of(&hsm, &faulty);
    hand.log_in();
    for (code, name) in [
        (ck::CKR_DEVICE_ERROR, "DeviceError"),
        (ck::CKR_GENERAL_ERROR, "GeneralError"),
        (ck::CKR_DEVICE_REMOVED, "DeviceRemoved"),
        (ck::CKR_USER_NOT_LOGGED_IN, "UserNotLoggedIn"),
        (ck::CKR_VENDOR_DEFINED + 7, "VendorDefined(2147483655)"),
    ] {
        // The second and third call from now, and no other.
        faulty.strike(Some("C_GenerateRandom"), 1, Some(2), Fault::Answer(code));
        let answers: Vec<String> = (0..4).map(|_| hand.step("random")).collect();
        assert_eq!(answers, ["ok", name, name, "ok"]);
        faulty.heal();
    }
    for (function, step) in [
        ("C_GetSlotList", "slots"),
        ("C_GetTokenInfo", "flags"),
        ("C_OpenSession", "open"),
        ("C_GetSessionInfo", "state"),
        ("C_GenerateKey", "generate"),
        ("C_FindObjectsInit", "keys"),
        ("C_CloseSession", "close"),
    ] {
        faulty.strike(
            Some(function),
            0,
            None,
            Fault::Answer(ck::CKR_FUNCTION_FAILED),
        );
        assert_eq!(hand.step(step), "FunctionFailed", "{function}");
        faulty.heal();
    }
}

#[tokio::test]
async fn faulty_counts_the_calls_of_every_function() {
    let (hsm, faulty) = softhsm("counts").await;
    let mut hand = Hand::of(&hsm, &faulty);
    hand.log_in();
    let before = faulty.counters();
    hand.steps(["random", "random", "generate"]);
    let mut after = faulty.counters();
    for (function, count) in before {
        *after.get_mut(&function).unwrap() -= count;
    }
    after.retain(|_, count| *count > 0);
    assert_eq!(
        after.into_iter().collect::<Vec<_>>(),
        [
            ("C_GenerateKey".to_owned(), 1),
            ("C_GenerateRandom".to_owned(), 2)
        ]
    );
    // A rule for all functions goes by the count of all.
    faulty.strike(None, 1, Some(1), Fault::Answer(ck::CKR_FUNCTION_FAILED));
    assert_eq!(hand.step("random"), "ok");
    assert_eq!(hand.step("generate"), "FunctionFailed");
    hand.steps(["generate"]);
}

#[tokio::test]
async fn faulty_loses_the_answer_of_a_call_that_was_done() {
    let (hsm, faulty) = softhsm("answer-lost").await;
    let mut hand = Hand::of(&hsm, &faulty);
    hand.log_in();
    faulty.strike(
        Some("C_GenerateKey"),
        0,
        Some(1),
        Fault::Answer(ck::CKR_DEVICE_ERROR),
    );
    assert_eq!(hand.step("generate"), "DeviceError");
    assert_eq!(hand.step("keys"), "0");
    faulty.strike(
        Some("C_GenerateKey"),
        0,
        Some(1),
        Fault::AnswerLost(ck::CKR_DEVICE_ERROR),
    );
    assert_eq!(hand.step("generate"), "DeviceError");
    assert_eq!(hand.step("keys"), "1");
}

#[tokio::test]
async fn faulty_delays_and_hangs() {
    let (hsm, faulty) = softhsm("slow").await;
    let mut hand = Hand::of(&hsm, &faulty);
    hand.log_in();
    faulty.strike(Some("C_GenerateRandom"), 0, Some(1), Fault::Delay(300));
    let begin = Instant::now();
    hand.steps(["random"]);
    assert!(begin.elapsed() >= Duration::from_millis(300));

    let keys: u32 = hand.step("keys").parse().unwrap();
    faulty.strike(Some("C_GenerateKey"), 0, Some(1), Fault::Late(300));
    let begin = Instant::now();
    hand.steps(["generate"]);
    assert!(begin.elapsed() >= Duration::from_millis(300));
    assert_eq!(hand.step("keys"), (keys + 1).to_string());

    faulty.strike(Some("C_GenerateRandom"), 0, None, Fault::Hang);
    hand.begin("random");
    let early = hand.answers.recv_timeout(Duration::from_millis(500));
    assert!(early.is_err(), "a call that hangs was answered: {early:?}");
    faulty.heal();
    assert_eq!(hand.answers.recv_timeout(PATIENCE).unwrap(), "ok");
}

#[tokio::test]
async fn faulty_crashes_on_the_nth_call() {
    let (hsm, faulty) = softhsm("crash").await;
    for (fault, signal) in [(Fault::Abort, 6), (Fault::Segfault, 11)] {
        faulty.strike(Some("C_GenerateRandom"), 2, Some(1), fault);
        let mut hand = Hand::of(&hsm, &faulty);
        hand.steps(["open", "random", "random"]);
        assert_eq!(hand.dies_of("random"), Some(signal), "{fault:?}");
        // That call was the only one.
        Hand::of(&hsm, &faulty).steps(["open", "random"]);
    }
}

async fn loses_sessions_and_login(kind: Kind) {
    let hsm = Hsm::new(kind, "losses").await;
    let faulty = Faulty::before(&hsm);
    let mut hands = [Hand::of(&hsm, &faulty), Hand::of(&hsm, &faulty)];
    // A login changes the token's file, and SoftHSM that starts beside one may not find its token.
    for hand in &mut hands {
        hand.steps(["open"]);
    }
    for hand in &mut hands {
        hand.log_in();
        assert_eq!(hand.step("state"), "RwUser");
    }
    faulty.change(|rules| rules.logins_lost += 1);
    for hand in &mut hands {
        assert_eq!(hand.step("state"), "RwPublic");
        hand.steps([&format!("login {PIN}")]);
        assert_eq!(hand.step("state"), "RwUser");
    }
    faulty.change(|rules| rules.sessions_lost += 1);
    for hand in &mut hands {
        for _ in 0..2 {
            assert_eq!(hand.step("state"), "SessionHandleInvalid");
            assert_eq!(hand.step("close"), "SessionHandleInvalid");
        }
        hand.steps(["open"]);
        // The token below has closed them, too, so the login went with the last one.
        assert_eq!(hand.step("state"), "RwPublic");
    }
    // Neither happens again to who comes later.
    let mut late = Hand::of(&hsm, &faulty);
    late.log_in();
    assert_eq!(late.step("state"), "RwUser");
}

#[tokio::test]
async fn faulty_loses_sessions_and_login_of_softhsm() {
    loses_sessions_and_login(Kind::SofthsmInProcess).await;
}

#[tokio::test]
async fn faulty_loses_sessions_and_login_of_the_embedded_token() {
    loses_sessions_and_login(Kind::Embedded).await;
}

/// Slot number by token label.
fn slot(hand: &mut Hand, label: &str) -> u64 {
    let slots = hand.slots();
    slots.iter().find(|(_, have)| have == label).unwrap().0
}

#[tokio::test]
async fn faulty_renumbers_slots() {
    let (hsm, faulty) = softhsm("one").await;
    hsm.init_another("other", &hsm.directory.path().join("pin"));
    let mut hand = Hand::of(&hsm, &faulty);
    let (old, other) = (slot(&mut hand, "one"), slot(&mut hand, "other"));
    assert_eq!(hand.step(&format!("at {old}")), "one");

    faulty.change(|rules| rules.slots = Slots::Shifted(1000));
    assert_eq!(slot(&mut hand, "one"), old + 1000);
    assert_eq!(hand.step(&format!("at {old}")), "SlotIdInvalid");
    hand.log_in();
    assert_eq!(hand.step("state"), "RwUser");

    faulty.change(|rules| rules.slots = Slots::Rotated);
    let (now, other_now) = (slot(&mut hand, "one"), slot(&mut hand, "other"));
    assert_ne!((now, other_now), (old, other));
    assert!(now != old || other_now != other);
    // One of the two old numbers shows the other token, and not an error.
    let shown = [(old, "one"), (other, "other")].map(|(slot, label)| {
        let shows = hand.step(&format!("at {slot}"));
        shows != label && ["one", "other"].contains(&shows.as_str())
    });
    assert!(shown.contains(&true), "no old number shows another token");
    // The session that was opened before is as it was.
    assert_eq!(hand.step("state"), "RwUser");
    hand.steps(["open"]);
    assert_eq!(hand.step("state"), "RwUser");
}

#[tokio::test]
async fn faulty_counts_wrong_pins_over_all_clients() {
    let (hsm, faulty) = softhsm("tries").await;
    faulty.change(|rules| rules.pin_tries = Some(3));
    let try_pin = |pin: &str| {
        let mut hand = Hand::of(&hsm, &faulty);
        hand.steps(["open"]);
        let answer = hand.step(&format!("login {pin}"));
        let flags = hand.step("flags");
        (answer, flags.split_once(" sessions").unwrap().0.to_owned())
    };
    let answered = |answer: &str, flags: &str| (answer.to_owned(), flags.to_owned());
    let wrong = "0000-0000";
    for expected in [
        answered("PinIncorrect", "low=true final=false locked=false"),
        answered("PinIncorrect", "low=true final=true locked=false"),
    ] {
        assert_eq!(try_pin(wrong), expected);
    }
    assert_eq!(
        try_pin(PIN),
        answered("ok", "low=false final=false locked=false")
    );
    for _ in 0..3 {
        assert_eq!(try_pin(wrong).0, "PinIncorrect");
    }
    assert_eq!(faulty.wrong_pins(), 3);
    // Now the right one does not help either.
    for pin in [wrong, PIN] {
        assert_eq!(
            try_pin(pin),
            answered("PinLocked", "low=false final=false locked=true")
        );
    }
}

#[tokio::test]
async fn faulty_limits_sessions_over_all_clients_and_counts_those_of_the_dead() {
    let (hsm, faulty) = softhsm("sessions").await;
    let linger = Duration::from_secs(6);
    faulty.change(|rules| {
        rules.session_limit = Some(SessionLimit {
            most: 4,
            linger_ms: linger.as_millis().try_into().unwrap(),
            told: false,
        });
    });
    let (mut one, mut two) = (Hand::of(&hsm, &faulty), Hand::of(&hsm, &faulty));
    one.steps(["open", "open", "open"]);
    two.steps(["open"]);
    assert_eq!(two.step("open"), "SessionCount");
    assert_eq!(one.step("open"), "SessionCount");
    one.steps(["close"]);
    two.steps(["open"]);
    assert_eq!(two.step("open"), "SessionCount");
    let mut sessions: Vec<u64> = faulty.clients().iter().map(|(_, open)| *open).collect();
    sessions.sort_unstable();
    assert_eq!(sessions, [2, 2]);

    assert!(!two.step("flags").contains("sessions=4"));
    faulty.change(|rules| rules.session_limit.as_mut().unwrap().told = true);
    assert!(two.step("flags").contains("sessions=4"));

    one.child.kill().unwrap();
    let killed = Instant::now();
    one.child.wait().unwrap();
    assert_eq!(two.step("open"), "SessionCount");
    let two = std::cell::RefCell::new(two);
    wait_for("a session of the dead", PATIENCE, || {
        two.borrow_mut().step("open") == "ok"
    });
    let freed = killed.elapsed();
    // From when it last said that it lived, which may be a while before.
    assert!(
        freed + Duration::from_millis(1500) >= linger,
        "sessions of a dead client went after {freed:?}"
    );
    two.borrow_mut().steps(["open"]);
    assert_eq!(two.borrow_mut().step("open"), "SessionCount");
}
