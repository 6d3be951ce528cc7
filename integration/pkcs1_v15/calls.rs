//! The token is asked the same, call by call, whatever the padding.

use std::fs;
use std::time::Duration;

use ekm::keystore::Custody;

use super::{Stage, allowing, v15};
use crate::faulty::Faulty;
use crate::support::{Hsm, Kind, wait_for};

/// What the bridge's sessions for work were used for since so many lines of the log.
fn calls(log: &str, since: usize, anchor: &str) -> Vec<String> {
    log.lines()
        .skip(since)
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .filter(|call| call[1] != anchor && call[1] != "-")
        .map(|call| call[0].to_owned())
        // A worker that did nothing since the KEK was made first opens a session of the new epoch.
        .skip_while(|call| call == "C_CloseSession" || call == "C_OpenSession")
        .collect()
}

async fn the_same_calls_are_made(kind: Kind, custody: Custody, expected: &[&str]) {
    let hsm = Hsm::new(kind, "calls").await;
    let faulty = Faulty::before(&hsm);
    let config = faulty.through(v15(&hsm, custody));
    let stage = Stage::over(hsm, config, custody, allowing()).await;
    let forger = stage.forger().await;
    let read = || fs::read_to_string(faulty.log()).unwrap();
    let anchor = read()
        .lines()
        .find(|line| line.starts_with("C_Login "))
        .map(|line| line.split(' ').nth(1).unwrap().to_owned())
        .unwrap();
    let mut eedks = vec![("good", forger.good(&[7; 32]))];
    eedks.extend(forger.bad());
    for (what, eedk) in eedks {
        let since = read().lines().count();
        stage.resolve(&[eedk.encode()]).await.unwrap();
        // The worker opens its next session.
        let ended = || calls(&read(), since, &anchor);
        wait_for("the next session", Duration::from_secs(5), || {
            ended().last().is_some_and(|last| last == "C_OpenSession")
        });
        assert_eq!(ended(), expected, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_embedded_token_is_asked_the_same_whatever_the_padding() {
    let expected = [
        "C_UnwrapKey",
        "C_UnwrapKey",
        "C_GetAttributeValue",
        "C_CreateObject",
        "C_WrapKey",
        "C_CloseSession",
        "C_OpenSession",
    ];
    the_same_calls_are_made(Kind::Embedded, Custody::Token, &expected).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_custody_host_the_token_is_asked_the_same_whatever_the_padding() {
    let expected = [
        "C_DecryptInit",
        "C_Decrypt",
        "C_DecryptInit",
        "C_Decrypt",
        "C_CloseSession",
        "C_OpenSession",
    ];
    the_same_calls_are_made(Kind::Embedded, Custody::Host, &expected).await;
    the_same_calls_are_made(Kind::SofthsmInProcess, Custody::Host, &expected).await;
}
