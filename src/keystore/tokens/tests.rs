use std::path::PathBuf;

use super::*;
use crate::bridge::faults::FaultClass;
use crate::bridge::guard::Guard;
use crate::bridge::message::{Hello, Recipient, Task};
use crate::bridge::pin::PinSource;
use crate::bridge::profile::HsmProfile;
use crate::bridge::supervisor::{Played, Program};
use crate::key::{DataKeyId, Eedk, KekId, SedkForm, WrapAlgorithm};

/// One token whose bridge never comes up.
fn away(directory: &std::path::Path) -> Tokens {
    let hello = Hello {
        name: "main".to_owned(),
        profile: HsmProfile::software(),
        task: Task::Keep {
            file: directory.join("keys.p12"),
            password: PinSource::File(directory.join("password")),
            key_password: None,
        },
    };
    let program = Program::at(PathBuf::from("/nonexistent/ekm"));
    Tokens::new(vec![Bridge::start(program, hello)])
}

/// A token stops serving between the look at who serves and the word why none does, or serves again
/// by then: its drives were told that the KEK is not for them, and did not try again.
#[tokio::test]
async fn a_token_that_comes_or_goes_as_it_is_asked_is_away_and_not_unfit() {
    let directory = tempfile::tempdir().unwrap();
    let tokens = away(directory.path());
    let unfit = || Fault::Unsupported {
        token: "main".to_owned(),
        reason: "made for custody host".to_owned(),
    };
    // What one that was never up holds is not known, whatever it is asked for.
    for fit in [Fit::Holds, Fit::Able, Fit::No] {
        let outcome = tokens.served(|_| fit, &Op::Canary, false, unfit).await;
        let why = outcome.unwrap_err();
        assert!(matches!(why, Fault::Down { .. }), "{fit:?}: {why}");
        assert!(why.passes(), "{fit:?}: {why}");
    }
    let none = Tokens::new(Vec::new());
    let outcome = none.served(|_| Fit::Holds, &Op::Canary, false, unfit).await;
    assert!(matches!(outcome.unwrap_err(), Fault::Unsupported { .. }));
}

/// Two tokens that serve, asked in this order where both may.
fn two() -> (Tokens, [Played; 2]) {
    let (first, one) = Played::token("first", 1);
    let (second, other) = Played::token("second", 2);
    (Tokens::new(vec![first, second]), [one, other])
}

/// A resolve of an EEDK by PKCS#1 v1.5, guarded or not.
fn resolve(guarded: bool) -> Op {
    let kek = KekHash::of_spki(b"kek");
    let named = KekId::Label("KEK".parse().unwrap());
    let dki = DataKeyId::from_random([1; 9]);
    let eedk = Eedk::new(dki, named, WrapAlgorithm::Pkcs1V15, vec![1; 256]).unwrap();
    let guard = guarded.then(|| Guard::new(&[1; 32]).throw_away(&kek, &eedk));
    Op::Resolve {
        eedk,
        kek,
        drive: Recipient {
            form: SedkForm::T10Wrapped,
            spki: Vec::new(),
            wwn: None,
        },
        custody: Custody::Token,
        guard,
    }
}

/// Has whoever may do it, as the exchange does; the answer, with the time that the request has.
fn serve(
    tokens: &Tokens,
    op: Op,
    time: Duration,
) -> tokio::task::JoinHandle<Result<String, Fault>> {
    let tokens = tokens.clone();
    tokio::spawn(deadline::within(Instant::now() + time, async move {
        let none = || tokens.no_maker();
        let served = tokens.served(|_| Fit::Holds, &op, true, none).await;
        served.map(|(bridge, _)| bridge.name().to_owned())
    }))
}

/// Longer than any of these tests.
const LONG: Duration = Duration::from_secs(3600);

/// Far less than a token's own time, and long enough for a loaded machine.
const SOON: Duration = Duration::from_secs(20);

/// A request that had waited for its turn was given as long as one that had not, and its client had an
/// error long before it ended.
#[tokio::test]
async fn a_token_that_hangs_is_waited_for_within_the_time_of_the_request() {
    let (bridge, mut played) = Played::token("first", 1);
    let tokens = Tokens::new(vec![bridge]);
    let served = serve(&tokens, resolve(false), Duration::from_millis(300));
    played.asked().await;
    let ended = tokio::time::timeout(SOON, served).await;
    let fault = ended.expect("it waits on").unwrap().unwrap_err();
    assert_eq!(fault.to_string(), "token first did not answer within 1 s");
}

#[tokio::test]
async fn a_token_is_not_asked_for_a_request_whose_time_is_over() {
    let (bridge, mut played) = Played::token("first", 1);
    let tokens = Tokens::new(vec![bridge]);
    for guarded in [false, true] {
        let served = serve(&tokens, resolve(guarded), Duration::ZERO);
        let fault = served.await.unwrap().unwrap_err();
        assert!(fault.to_string().contains("time was over"), "{fault}");
        assert!(fault.passes() && played.was_not_asked(), "{fault}");
    }
}

#[tokio::test]
async fn who_can_turn_to_another_eedk_keeps_half_of_his_time_for_it() {
    let tokens = two().0;
    let longest = tokens.longest();
    assert_eq!(tokens.time(false), longest);
    deadline::within(Instant::now() + longest, async {
        assert!(tokens.time(false) <= longest / 2);
        assert!(tokens.time(true) > longest / 2);
    })
    .await;
}

/// Two answers to a question that an attacker asks tell more than one, and a second is not counted.
#[tokio::test]
async fn a_guarded_eedk_is_shown_to_one_token_though_it_hangs() {
    // What is not guarded goes to the second after a second.
    let (tokens, [mut first, mut second]) = two();
    let served = serve(&tokens, resolve(false), LONG);
    first.asked().await;
    second.asked().await;
    served.abort();

    let (tokens, [mut first, mut second]) = two();
    let served = serve(&tokens, resolve(true), Duration::from_secs(3));
    first.asked().await;
    let fault = served.await.unwrap().unwrap_err();
    assert!(matches!(fault, Fault::Deadline { .. }), "{fault}");
    assert!(first.was_not_asked() && second.was_not_asked());
}

#[tokio::test]
async fn a_guarded_eedk_is_shown_to_one_token_though_it_fails() {
    let failed = Fault::Call {
        token: "first".to_owned(),
        function: "C_WrapKey".to_owned(),
        name: "CKR_DEVICE_REMOVED".to_owned(),
        what: "wrapping the data key for the drive".to_owned(),
        class: FaultClass::Restart,
    };
    // What is not guarded goes to the second.
    let (tokens, [mut first, mut second]) = two();
    let served = serve(&tokens, resolve(false), SOON);
    let id = first.asked().await.id;
    first.says(id, Err(failed.clone()));
    let id = second.asked().await.id;
    second.says(id, Ok(Reply::Canary(true)));
    assert_eq!(served.await.unwrap().unwrap(), "second");

    let (tokens, [mut first, mut second]) = two();
    let served = serve(&tokens, resolve(true), LONG);
    let id = first.asked().await.id;
    first.says(id, Err(failed.clone()));
    assert_eq!(served.await.unwrap().unwrap_err(), failed);
    assert!(second.was_not_asked());
}

#[tokio::test]
async fn a_token_that_cannot_open_any_guarded_eedk_is_passed_over() {
    let (tokens, [mut first, mut second]) = two();
    let served = serve(&tokens, resolve(true), LONG);
    let id = first.asked().await.id;
    let refused = Fault::Refused {
        token: "first".to_owned(),
        label: "KEK".to_owned(),
        reason: "the token's KEKs are for OAEP".to_owned(),
    };
    first.says(id, Err(refused));
    let id = second.asked().await.id;
    second.says(id, Ok(Reply::Canary(true)));
    assert_eq!(served.await.unwrap().unwrap(), "second");
}
