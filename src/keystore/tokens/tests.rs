use std::path::PathBuf;

use super::*;
use crate::bridge::message::{Hello, Task};
use crate::bridge::pin::PinSource;
use crate::bridge::profile::HsmProfile;
use crate::bridge::supervisor::Program;

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
