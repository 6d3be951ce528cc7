//! A server starts whether or not its token's module does, and says so.

use std::time::Duration;

use cryptoki_sys as ck;
use ekm::admin::TokenStatus;
use ekm::client::KeyClient;

use super::bridges;
use crate::faulty::{Fault, Faulty};
use crate::several::altered;
use crate::site::Site;
use crate::support::{Hsm, Kind, wait_for};

/// What a bridge may take to open its token: the profile's deadline and ten seconds.
const DEADLINE: u64 = 5;

/// The longest pause between two starts, and time for a slow machine.
const AGAIN: Duration = Duration::from_secs(10 + 20);

/// A server whose token is not there yet, and a peer that asks whether it is.
struct Early {
    site: Site,
    client: KeyClient,
}

impl Early {
    /// A server that listens.
    fn over(token: ekm::config::TokenConfig) -> Self {
        let site = Site::launch(&[token], "");
        let client = site.client(&"operator:watcher".parse().unwrap());
        Self { site, client }
    }

    fn status(&self) -> TokenStatus {
        let text = self.site.ekm(&["token", "status", "--json"]);
        let [status] = serde_json::from_str::<[TokenStatus; 1]>(&text).unwrap();
        status
    }

    fn wait_for(&self, state: &str, patience: Duration) -> TokenStatus {
        wait_for(&format!("the state {state}"), patience, || {
            self.status().state == state
        });
        self.status()
    }

    async fn readyz(&mut self) -> (u16, String) {
        let (status, body) = self.client.get("/readyz").await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    async fn serves_nobody(&mut self, state: &str) {
        let (status, text) = self.readyz().await;
        assert_eq!(status, 503, "{text}");
        assert!(text.contains(&format!("main is {state}")), "{text}");
    }

    async fn serves(mut self) {
        self.wait_for("ready", AGAIN);
        // Without a KEK it gives no key.
        self.site
            .ekm(&["kek", "generate", "KEK1", "--bits", "2048"]);
        let (status, text) = self.readyz().await;
        assert_eq!(status, 200, "{text}");
        self.site.stop();
    }
}

async fn softhsm() -> (Hsm, Faulty) {
    let hsm = Hsm::new(Kind::SofthsmInProcess, "early").await;
    let faulty = Faulty::before(&hsm);
    (hsm, faulty)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_starts_over_a_module_that_hangs_and_serves_when_it_does_not() {
    let (hsm, faulty) = softhsm().await;
    faulty.strike(Some("C_Initialize"), 0, None, Fault::Hang);
    let deadline = format!("deadline_seconds = {DEADLINE}");
    let token = altered(&hsm, "main", &[("deadline_seconds = 30", &deadline)]);
    let mut early = Early::over(faulty.through(token));
    wait_for("the first bridge", AGAIN, || {
        faulty.called("C_Initialize") > 0
    });
    let first = bridges(&faulty);
    early.serves_nobody("").await;
    // On a slow machine it has been given up already.
    let state = early.status().state;
    assert!(["starting", "failed"].contains(&state.as_str()), "{state}");

    let status = early.wait_for("failed", Duration::from_secs(DEADLINE + 10) + AGAIN);
    let why = status.why.unwrap();
    assert!(why.contains("did not open the token within 15 s"), "{why}");
    assert!(status.next.is_some() && status.bridges.is_empty());
    early.serves_nobody("failed").await;
    wait_for("another bridge", AGAIN, || {
        faulty.called("C_Initialize") > 1 && bridges(&faulty).is_disjoint(&first)
    });
    early.serves_nobody("failed").await;
    faulty.heal();
    early.serves().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_starts_over_a_module_that_finds_no_hsm_and_serves_when_it_does() {
    let (hsm, faulty) = softhsm().await;
    let fault = Fault::Answer(ck::CKR_GENERAL_ERROR);
    faulty.strike(Some("C_Initialize"), 0, None, fault);
    let mut early = Early::over(faulty.config(&hsm, "main"));
    let status = early.wait_for("failed", AGAIN);
    let why = status.why.unwrap();
    assert!(
        why.contains("C_Initialize") && why.contains("CKR_GENERAL_ERROR"),
        "{why}"
    );
    assert!(status.next.is_some());
    early.serves_nobody("failed").await;
    // No login was tried, so the pauses stay at a second: with those that
    // grow to ten it would take 42 s.
    wait_for("ten starts", AGAIN, || faulty.called("C_Initialize") >= 10);
    early.serves_nobody("failed").await;
    assert_eq!(faulty.called("C_Login"), 0);
    faulty.heal();
    early.serves().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_starts_without_its_module_and_serves_when_an_operator_has_installed_it() {
    let (hsm, faulty) = softhsm().await;
    let library = hsm.directory.path().join("vendor.so");
    let mut token = faulty.config(&hsm, "main");
    token.library = Some(library.display().to_string());
    let mut early = Early::over(token);
    let status = early.wait_for("failed", AGAIN);
    let why = status.why.unwrap();
    assert!(
        why.contains("cannot load") && why.contains("vendor.so"),
        "{why}"
    );
    early.serves_nobody("failed").await;
    std::os::unix::fs::symlink(Faulty::library(), &library).unwrap();
    early.serves().await;
}
