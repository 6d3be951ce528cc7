//! What `/readyz` says is so, also while a module hangs, and where there is no KEK that serves.

use std::time::{Duration, Instant};

use ekm::admin::TokenStatus;
use ekm::client::KeyClient;
use ekm::keystore::Custody;
use ekm::policy::PolicyConfig;

use crate::faulty::{Fault, Faulty};
use crate::several::altered;
use crate::site::Site;
use crate::support::{Bench, Hsm, Kind, drive, pkcs8_key, wait_for};

/// More than the five seconds to a canary and the five that it may take; less than the 32 after
/// which the bridge of a call that hangs is killed.
const SEEN: Duration = Duration::from_secs(25);

/// Several looks at the keys, which come every five seconds, on a slow machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// More than two canaries take to come.
const CANARIES: Duration = Duration::from_secs(12);

fn watcher(site: &Site) -> KeyClient {
    site.client(&"operator:watcher".parse().unwrap())
}

/// The site's only token.
fn status(site: &Site) -> TokenStatus {
    let text = site.ekm(&["token", "status", "--json"]);
    let [status] = serde_json::from_str::<[TokenStatus; 1]>(&text).unwrap();
    status
}

async fn readyz(client: &mut KeyClient) -> (u16, String) {
    let (status, body) = client.get("/readyz").await.unwrap();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

/// What `/readyz` says once it has that status.
async fn until(client: &mut KeyClient, status: u16) -> String {
    let start = Instant::now();
    loop {
        let (seen, text) = readyz(client).await;
        if seen == status {
            return text;
        }
        assert!(start.elapsed() < SEEN, "still {seen}: {text}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn readyz_does_not_say_ready_of_a_token_that_hangs() {
    let hsm = Hsm::new(Kind::SofthsmInProcess, "hangs").await;
    let faulty = Faulty::before(&hsm);
    let site = Site::over(vec![faulty.config(&hsm, "main")], "").await;
    site.ekm(&["kek", "generate", "KEK1", "--bits", "2048"]);
    let peer = drive(site.directory.path(), 1, Kind::SofthsmInProcess.form()).peer;
    let mut client = site.client(&peer);
    assert_eq!(readyz(&mut client).await.0, 200);
    // The sessions of a bridge may change, and it is the same one.
    let pids = || -> Vec<u64> { faulty.clients().iter().map(|(pid, _)| *pid).collect() };
    let bridges = pids();

    // Nobody asks for a key: the canary alone finds out.
    faulty.strike(None, 0, None, Fault::Hang);
    let text = until(&mut client, 503).await;
    assert!(text.contains("main is degraded since 20"), "{text}");
    assert!(text.contains("has not answered"), "{text}");
    // The site's certificate is good for a day, which is an alarm.
    assert!(text.contains("\\nEKM-A07 "), "{text}");
    assert_eq!(pids(), bridges, "its bridge is the same one");

    faulty.heal();
    let text = until(&mut client, 200).await;
    assert!(text.starts_with("ready\n"), "{text}");
    assert_eq!(pids(), bridges, "its bridge is the same one");

    // One that fails is told with why and when it is tried again.
    faulty.strike(
        Some("C_GetSlotList"),
        0,
        None,
        Fault::Answer(cryptoki_sys::CKR_DEVICE_REMOVED),
    );
    faulty.strike(Some("C_UnwrapKey"), 0, None, Fault::Abort);
    let text = until(&mut client, 503).await;
    assert!(text.contains("main is failed since 20"), "{text}");
    assert!(text.contains("is tried again at 20"), "{text}");
    faulty.heal();
    until(&mut client, 200).await;
    site.stop();
}

/// What `/readyz` says once it is a refusal that has that in it.
async fn until_refused(client: &mut KeyClient, why: &str) -> String {
    let start = Instant::now();
    loop {
        let (status, text) = readyz(client).await;
        if status == 503 && text.contains(why) {
            return text;
        }
        assert!(start.elapsed() < PATIENCE, "no {why:?}: {status} {text}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_none_of_whose_keks_serves_is_not_ready_and_has_no_proof() {
    let hsm = Hsm::new(Kind::SofthsmInProcess, "keyless").await;
    let site = Site::start(&[&hsm], "").await;
    let mut client = watcher(&site);

    // A canary that finds nothing to open proves nothing.
    let start = Instant::now();
    while start.elapsed() < CANARIES {
        let (status, text) = readyz(&mut client).await;
        assert_eq!(status, 503, "{text}");
        assert!(text.contains("no token has a KEK that serves"), "{text}");
        assert!(text.contains("ekm kek generate"), "{text}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let empty = status(&site);
    assert_eq!((empty.state.as_str(), empty.heard), ("ready", None));
    let why = empty.keyless.unwrap();
    assert!(why.contains("ekm kek generate"), "{why}");
    let shown = site.ekm(&["token", "status"]);
    assert!(
        shown.contains("last proof") && !shown.contains("s ago"),
        "{shown}"
    );
    assert!(shown.contains("no canary"), "{shown}");

    // One that may not serve is none either.
    let file = hsm.directory.path().join("open.der");
    std::fs::write(&file, pkcs8_key()).unwrap();
    let file = file.display().to_string();
    hsm.hand(&["object", "private", &file, "label=OPEN", "extractable=true"]);
    let text = until_refused(&mut client, "CKA_EXTRACTABLE").await;
    assert!(text.contains("main is degraded since 20"), "{text}");
    let refused = status(&site);
    assert_eq!((refused.state.as_str(), refused.heard), ("degraded", None));
    assert!(refused.why.unwrap().contains("OPEN"));

    // A KEK can be made all the same, and then keys can be had.
    site.ekm(&["kek", "generate", "KEK1", "--bits", "2048"]);
    until(&mut client, 200).await;
    wait_for("a proof", PATIENCE, || status(&site).heard.is_some());
    assert_eq!(status(&site).state, "ready");

    hsm.hand(&["delete-private", "KEK1"]);
    until_refused(&mut client, "KEK1: its private half is not there").await;
    assert_eq!(status(&site).state, "degraded");
    site.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_decrypts_to_something_else_is_not_ready() {
    let hsm = Hsm::new(Kind::SofthsmInProcess, "garbles").await;
    let faulty = Faulty::before(&hsm);
    let site = Site::over(vec![faulty.config(&hsm, "main")], "").await;
    let host = ["--custody", "host"];
    site.ekm(&[&["kek", "generate", "KEK1", "--bits", "2048"][..], &host].concat());
    let mut client = watcher(&site);
    until(&mut client, 200).await;
    // Every call answers CKR_OK.
    faulty.strike(Some("C_Decrypt"), 0, None, Fault::Garbled);
    let text = until_refused(&mut client, "another value").await;
    assert!(text.contains("main is failed since 20"), "{text}");
    faulty.heal();
    until(&mut client, 200).await;
    site.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_custody_host_is_probed_with_the_label_of_its_profile() {
    let hsm = Hsm::new(Kind::SofthsmInProcess, "probed").await;
    let bench = Bench::new(&[&hsm], PolicyConfig::default()).await;
    bench.kek("KEK1", "main", Custody::Host).await;
    drop(bench);
    // SoftHSM takes none, and the canary has none.
    let labelled = altered(&hsm, "main", &[("labelled = false", "labelled = true")]);
    let site = Site::launch(&[labelled], "");
    wait_for("its refusal", PATIENCE, || status(&site).why.is_some());
    let why = status(&site).why.unwrap();
    assert!(why.contains("start-up probe"), "{why}");
    assert!(why.contains("C_Decrypt"), "{why}");
    site.stop();
}
