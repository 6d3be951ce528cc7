//! What is measured of a token that refuses its PIN, and of a module that fails or hangs: the
//! bridges that saw it do not live to report every five seconds.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use cryptoki_sys as ck;
use serde_json::Value;

use super::{DOOR, address, scrape};
use crate::door::{House, PATIENCE, Serving};
use crate::faulty::{Fault, Faulty};
use crate::several::altered;
use crate::support::{Hsm, Kind, PIN, write_private};

const ERRORS: &str = "ekm_pkcs11_errors_total";

const READY: &str = r#"ekm_token_state{token="main",state="ready"}"#;

const LOCKED: &str = r#"ekm_token_state{token="main",state="locked"}"#;

const LOW: &str = r#"ekm_token_pin_flag{token="main",flag="CKF_USER_PIN_COUNT_LOW"}"#;

type Measured = BTreeMap<String, f64>;

/// A site whose token is a SoftHSM behind the faulty module.
struct Site {
    house: House,
    faulty: Faulty,
    hsm: Hsm,
}

impl Site {
    async fn new(label: &str, changes: &[(&str, &str)]) -> Self {
        let hsm = Hsm::new(Kind::SofthsmInProcess, label).await;
        let faulty = Faulty::before(&hsm);
        let token = faulty.through(altered(&hsm, "main", changes));
        let house = House::bare("", "");
        // In place of the house's own token.
        let text = std::fs::read_to_string(house.at("ekm.toml")).unwrap();
        let (doors, _) = text.split_once("[[tokens]]").unwrap();
        let tokens = BTreeMap::from([("tokens", [&token])]);
        let tokens = toml::to_string(&tokens).unwrap();
        std::fs::write(house.at("ekm.toml"), format!("{doors}\n{tokens}\n{DOOR}\n")).unwrap();
        Self { house, faulty, hsm }
    }

    /// The server, and where its measurements are.
    async fn serve(&self) -> (Serving, String) {
        let command = self.house.command(&["serve"]);
        let serving = self.house.serve_command(command).await;
        let address = address(&serving);
        (serving, address)
    }

    fn pin(&self, pin: &str) {
        write_private(&self.hsm.directory.path().join("pin"), pin);
    }

    fn status(&self) -> Value {
        let text = self.house.done(&["--json", "token", "status"]);
        let all: Value = serde_json::from_str(&text).unwrap();
        all[0].clone()
    }

    /// How often a function has answered with that code.
    fn met(&self, function: &str, code: ck::CK_RV) -> f64 {
        let log = std::fs::read_to_string(self.faulty.log()).unwrap();
        let (begin, end) = (format!("{function} "), format!(" {code:#x}"));
        let met = log
            .lines()
            .filter(|line| line.starts_with(&begin) && line.ends_with(&end));
        met.map(|_| 1.0).sum()
    }
}

fn of(family: &str, function: &str) -> String {
    format!(r#"{family}{{token="main",function="{function}"}}"#)
}

/// Waits for a page on which something is so.
async fn page(address: &str, what: &str, so: impl Fn(&Measured) -> bool) -> Measured {
    let start = Instant::now();
    loop {
        let page = scrape(address).await;
        if so(&page) {
            return page;
        }
        assert!(
            start.elapsed() < PATIENCE,
            "{what} did not come to be on the page:\n{page:#?}"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_pin_is_counted_and_the_flags_are_those_that_the_token_shows_while_it_is_locked()
{
    let site = Site::new("refused", &[]).await;
    site.pin("no-such-pin-7391");
    let (serving, address) = site.serve().await;
    let told = page(&address, "the lock", |page| page[LOCKED] == 1.0).await;
    assert_eq!(told.get(&of(ERRORS, "C_Login")), Some(&1.0), "{told:#?}");
    assert_eq!(told[r#"ekm_token_logins_total{token="main"}"#], 0.0);
    assert_eq!(told.get(LOW), Some(&1.0), "{told:#?}");
    assert_eq!(
        told[r#"ekm_token_pin_flag{token="main",flag="CKF_USER_PIN_LOCKED"}"#],
        0.0
    );
    let status = site.status();
    assert_eq!(status["state"], "locked");
    assert_eq!(status["pin"], "a wrong one was given since the last login");
    let uri = status["uri"].as_str().unwrap();
    assert!(uri.contains("token=refused"), "{uri}");
    serving.stop();

    // A later server sends the token nothing, and shows what it says all the same.
    let (serving, address) = site.serve().await;
    let told = page(&address, "the lock", |page| page[LOCKED] == 1.0).await;
    assert_eq!(told.get(&of(ERRORS, "C_Login")), None);
    assert_eq!(told.get(LOW), Some(&1.0), "{told:#?}");
    site.pin(PIN);
    let told = page(&address, "the token's return", |page| page[READY] == 1.0).await;
    assert_eq!(told.get(LOW), Some(&0.0), "{told:#?}");
    assert_eq!(site.status()["pin"], "good");
    serving.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_at_which_a_bridge_does_not_open_its_token_or_ends_are_counted() {
    let site = Site::new("ends", &[]).await;
    let broken = Fault::Answer(ck::CKR_GENERAL_ERROR);
    site.faulty.strike(Some("C_Initialize"), 0, Some(2), broken);
    let (serving, address) = site.serve().await;
    let told = page(&address, "a token that is ready", |page| page[READY] == 1.0).await;
    assert_eq!(
        told.get(&of(ERRORS, "C_Initialize")),
        Some(&2.0),
        "{told:#?}"
    );
    let starts = r#"ekm_token_bridge_starts_total{token="main"}"#;
    let before = told[starts];
    assert_eq!(before, 3.0);

    // A look at the keys meets it, and then the bridges that are started in place of that one. A
    // call may come between the count and the rule.
    let gone = ck::CKR_CRYPTOKI_NOT_INITIALIZED;
    let function = "C_FindObjectsInit";
    site.faulty
        .strike(Some(function), 0, Some(3), Fault::Answer(gone));
    let counted = of(ERRORS, function);
    page(&address, "every error", |page| {
        let met = site.met(function, gone);
        met > 0.0 && page[starts] > before && page[READY] == 1.0 && page.get(&counted) == Some(&met)
    })
    .await;
    serving.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_does_not_return_is_on_the_page_by_its_function_and_so_is_the_kill() {
    let changes = [("deadline_seconds = 30", "deadline_seconds = 12")];
    let site = Site::new("hangs", &changes).await;
    let (serving, address) = site.serve().await;
    page(&address, "a token that is ready", |page| page[READY] == 1.0).await;

    let function = "C_FindObjectsInit";
    site.faulty.strike(Some(function), 0, None, Fault::Hang);
    let (age, hangs) = (
        of("ekm_pkcs11_call_age_seconds", function),
        of("ekm_pkcs11_hangs_total", function),
    );
    let told = page(&address, "a call that hangs", |page| {
        page.get(&age).is_some_and(|age| *age >= 1.0)
    })
    .await;
    assert_eq!(told.get(&hangs), None, "it was not killed yet");
    // That call, and none of the bridge that is started in its place.
    let made = site.faulty.called(function);
    site.faulty.change(|rules| {
        for rule in &mut rules.faults {
            rule.count = Some(made - rule.first);
        }
    });
    page(&address, "the kill", |page| {
        page.get(&hangs).is_some_and(|hangs| *hangs >= 1.0)
            && page[READY] == 1.0
            && !page.contains_key(&age)
    })
    .await;
    serving.stop();
}
