//! What goes wrong for a moment while a token's keys are looked at takes no KEK away.

use std::time::{Duration, Instant};

use cryptoki_sys as ck;
use ekm::keystore::KnownKek;

use crate::faulty::{Fault, Faulty};
use crate::site::Site;
use crate::support::{Hsm, Kind, wait_for};

/// Several looks, which a bridge takes every five seconds, on a slow machine.
const PATIENCE: Duration = Duration::from_secs(40);

/// How long a call of a look takes during which something happens to the token.
const SLOW: Duration = Duration::from_secs(3);

fn keks(site: &Site) -> Vec<KnownKek> {
    serde_json::from_str(&site.ekm(&["kek", "list", "--json"])).unwrap()
}

/// The tokens that serve the KEK of that label.
fn serving(site: &Site, label: &str) -> Vec<String> {
    let keks = keks(site);
    let kek = keks.iter().find(|kek| kek.label.as_str() == label);
    kek.map(|kek| kek.tokens.clone()).unwrap_or_default()
}

/// Calls that answered that code, by their lines in the log.
fn answered(faulty: &Faulty, function: &str, code: ck::CK_RV) -> usize {
    let log = std::fs::read_to_string(faulty.log()).unwrap();
    let end = format!(" {code:#x}");
    let of = |line: &&str| line.split(' ').next() == Some(function) && line.ends_with(&end);
    log.lines().filter(of).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kek_that_two_slips_at_the_start_refused_serves_again_by_itself() {
    let hsm = Hsm::new(Kind::SofthsmInProcess, "slips").await;
    let faulty = Faulty::before(&hsm);
    let site = Site::over(vec![faulty.config(&hsm, "main")], "").await;
    for label in ["KEK1", "KEK2"] {
        site.ekm(&["kek", "generate", label, "--bits", "2048"]);
    }
    site.stop();

    // The first canary of the next bridge is under KEK1, and it is tried twice.
    let slip = ck::CKR_DEVICE_ERROR;
    faulty.strike(Some("C_UnwrapKey"), 0, Some(2), Fault::Answer(slip));
    let site = Site::over(vec![faulty.config(&hsm, "main")], "").await;
    assert_eq!(answered(&faulty, "C_UnwrapKey", slip), 2);
    assert_eq!(serving(&site, "KEK2"), ["main"]);
    let logins = faulty.called("C_Login");
    wait_for("KEK1", PATIENCE, || serving(&site, "KEK1") == ["main"]);
    assert_eq!(faulty.called("C_Login"), logins);
    site.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_is_lost_in_the_middle_of_a_look_takes_no_kek_away() {
    let hsm = Hsm::new(Kind::SofthsmInProcess, "lost").await;
    let faulty = Faulty::before(&hsm);
    let site = Site::over(vec![faulty.config(&hsm, "main")], "").await;
    site.ekm(&["kek", "generate", "KEK1", "--bits", "2048"]);

    // Certificates are looked for first, then private keys: what is lost between the two hides them.
    let before = faulty.called("C_FindObjectsInit");
    let slow = Fault::Late(SLOW.as_millis().try_into().unwrap());
    faulty.strike(Some("C_FindObjectsInit"), 0, Some(1), slow);
    wait_for("a look", PATIENCE, || {
        faulty.called("C_FindObjectsInit") > before
    });
    let logins = faulty.called("C_Login");
    faulty.change(|rules| rules.logins_lost += 1);
    let end = Instant::now() + SLOW + Duration::from_secs(6);
    while Instant::now() < end {
        assert_eq!(serving(&site, "KEK1"), ["main"]);
    }
    assert!(faulty.called("C_Login") > logins, "the login was not lost");
    site.stop();
}
