//! The token is asked the same, call by call, whatever the padding.

use std::fs;
use std::time::Duration;

use ekm::keystore::Custody;

use super::{Stage, allowing, v15};
use crate::faulty::Faulty;
use crate::support::{Hsm, Kind, wait_for};

/// What the session that an exchange had for itself was used for since so many lines of the log, and
/// that the next one was opened. Beside it a canary may sing, or a worker that did nothing since the
/// KEK was made change to a session of the new epoch.
fn calls(log: &str, since: usize, anchor: &str) -> Vec<String> {
    let calls: Vec<(&str, &str)> = log
        .lines()
        .skip(since)
        .map(|line| {
            let mut fields = line.split(' ');
            (fields.next().unwrap(), fields.next().unwrap())
        })
        .filter(|(_, session)| *session != anchor && *session != "-")
        .collect();
    let at_work = |name: &str| name != "C_CloseSession" && name != "C_OpenSession";
    let ends = calls.iter().enumerate().find(|(place, (name, session))| {
        let mut before = calls[..*place].iter();
        *name == "C_CloseSession" && before.any(|(name, on)| on == session && at_work(name))
    });
    let Some((end, (_, session))) = ends else {
        return Vec::new();
    };
    let (before, after) = calls.split_at(end);
    let used = before
        .iter()
        .filter(|(name, on)| on == session && at_work(name));
    let mut seen: Vec<String> = used.map(|(name, _)| (*name).to_owned()).collect();
    seen.push("C_CloseSession".to_owned());
    let mut after = after.iter().map(|(name, _)| *name);
    seen.extend(
        after
            .find(|name| *name == "C_OpenSession")
            .map(str::to_owned),
    );
    seen
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
