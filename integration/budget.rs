//! What a request asks of the token, call by call.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ekm::api::{
    Base64, ConfirmRequest, CreateAnswer, CreateRequest, DriveInRequest, RekeyRequest,
    ResolveRequest,
};
use ekm::bridge::profile::HsmProfile;
use ekm::config::TokenConfig;
use ekm::key::KekRef;
use ekm::keystore::Custody;
use ekm::policy::{PeerRule, PolicyConfig};
use futures_util::future::join_all;
use uuid::Uuid;

use crate::faulty::Faulty;
use crate::support::{Bench, Hsm, Kind, TestDrive, drive, wait_for};

const DRIVES: u32 = 50;

/// Requests that are counted.
const REQUESTS: usize = 1_000;

/// Requests at once.
const AT_ONCE: usize = 8;

/// Calls that a warm resolve may make.
const RESOLVE: usize = 4;

/// Calls that a warm create with two KEKs may make before its proof.
const CREATE: usize = 8;

/// Calls that the proof of one EEDK may make.
const PROOF: usize = 4;

/// Calls more where the drive's key is not on the session: one comes, the oldest goes.
const KEY_CHANGE: usize = 2;

/// What a token was asked: a counter for each function, and a line for each call.
struct Counted(Faulty);

/// A call as the log has it.
#[derive(Clone, Debug)]
struct Call {
    function: String,
    session: String,
    code: String,
}

impl Counted {
    /// The token, with the faulty module between it and the bridge; all that it does is to count.
    fn between(hsm: &Hsm) -> (Self, TokenConfig) {
        let faulty = Faulty::before(hsm);
        let config = faulty.config(hsm, "main");
        (Self(faulty), config)
    }

    /// Number of calls of each function so far.
    fn counters(&self) -> BTreeMap<String, usize> {
        self.0.counters()
    }

    /// All calls that have returned so far.
    fn calls(&self) -> Vec<Call> {
        let log = fs::read_to_string(self.0.log()).unwrap();
        log.lines()
            .map(|line| {
                let [function, session, code] = *line.split(' ').collect::<Vec<_>>() else {
                    panic!("{line}");
                };
                Call {
                    function: function.to_owned(),
                    session: session.to_owned(),
                    code: code.to_owned(),
                }
            })
            .collect()
    }

    /// Both, at a moment when no call is under way, and no canary between its two calls.
    fn at_rest(&self) -> (BTreeMap<String, usize>, Vec<Call>) {
        let look = || {
            let (before, calls, after) = (self.counters(), self.calls(), self.counters());
            let still = before == after && after.values().sum::<usize>() == calls.len();
            let last: BTreeMap<&str, char> = calls
                .iter()
                .map(|call| (call.session.as_str(), letter(call)))
                .collect();
            let open = last.values().any(|last| *last == 'U');
            (still && !open).then_some((after, calls))
        };
        let seen = RefCell::new(None);
        wait_for("rest on the token", Duration::from_secs(20), || {
            seen.replace(look());
            seen.borrow().is_some()
        });
        seen.into_inner().unwrap()
    }
}

fn tally<'a>(calls: impl IntoIterator<Item = &'a Call>) -> BTreeMap<String, usize> {
    let mut tally = BTreeMap::new();
    for call in calls {
        *tally.entry(call.function.clone()).or_default() += 1;
    }
    tally
}

/// What one message to the bridge was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Exchange {
    Create,
    CreateUnderOne,
    Resolve,
    Rekey,
    Proof,
    Canary,
}

impl Exchange {
    /// By its calls, one letter for each, without the change of a drive's key.
    fn of(calls: &str) -> Option<Self> {
        match calls {
            "GWWWeED" => Some(Self::Create),
            "GWWeED" => Some(Self::CreateUnderOne),
            "UWD" => Some(Self::Resolve),
            "UWWeED" => Some(Self::Rekey),
            "UeED" => Some(Self::Proof),
            "UD" => Some(Self::Canary),
            _ => None,
        }
    }

    /// The most calls that it may make, the change of a drive's key aside. For a rekey the design
    /// names no number; it wraps no more than a create does.
    const fn budget(self) -> usize {
        match self {
            Self::Create | Self::CreateUnderOne | Self::Rekey => CREATE,
            Self::Resolve => RESOLVE,
            Self::Proof => PROOF,
            Self::Canary => 2,
        }
    }
}

/// The letter of a call in [`Exchange::of`]; `?` for what a warm exchange does not make.
fn letter(call: &Call) -> char {
    match call.function.as_str() {
        "C_GenerateKey" => 'G',
        "C_UnwrapKey" => 'U',
        "C_WrapKey" => 'W',
        "C_EncryptInit" => 'e',
        "C_Encrypt" => 'E',
        "C_CreateObject" => 'C',
        "C_DestroyObject" => 'D',
        _ => '?',
    }
}

/// An exchange as it was seen on its session.
struct Seen {
    exchange: Exchange,
    calls: usize,
    /// Whether a drive's key came onto the session, and whether an old one went.
    key_came: bool,
    key_went: bool,
}

/// Takes the calls of all sessions apart into exchanges, those that begin in `range`. On a session
/// they follow each other, and each begins with the data key's object.
fn exchanges(calls: &[Call], range: Range<usize>) -> Vec<Seen> {
    let mut sessions: BTreeMap<&str, Vec<(bool, String)>> = BTreeMap::new();
    for (index, call) in calls.iter().enumerate() {
        let letter = letter(call);
        let on_session = sessions.entry(&call.session).or_default();
        if matches!(letter, 'G' | 'U') {
            on_session.push((range.contains(&index), String::new()));
        }
        // What goes before the first exchange made the session.
        if let Some((_, exchange)) = on_session.last_mut() {
            exchange.push(letter);
        }
    }
    sessions
        .values()
        .flatten()
        .filter(|(counted, _)| *counted)
        .map(|(_, calls)| seen(calls))
        .collect()
}

fn seen(calls: &str) -> Seen {
    let key_went = calls.contains("DC");
    let key_came = calls.contains('C');
    let own = calls.replacen("DC", "", 1).replacen('C', "", 1);
    Seen {
        exchange: Exchange::of(&own).unwrap_or_else(|| panic!("an exchange of calls {calls}")),
        calls: calls.len(),
        key_came,
        key_went,
    }
}

/// Which calls look at the token and its keys: those on the session that keeps the login, and
/// those on none.
fn looks(calls: &[Call]) -> Vec<bool> {
    let anchor = calls
        .iter()
        .find(|call| call.function == "C_Login")
        .map(|call| call.session.clone())
        .unwrap();
    calls
        .iter()
        .map(|call| call.session == anchor || call.session == "-")
        .collect()
}

/// Requests of each kind.
#[derive(Default)]
struct Asked {
    creates: AtomicUsize,
    creates_under_one: AtomicUsize,
    resolves: AtomicUsize,
    rekeys: AtomicUsize,
    confirms: AtomicUsize,
}

/// A service over a counted token, and its drives.
struct Stage {
    bench: Bench,
    drives: Vec<TestDrive>,
    counted: Counted,
}

impl Stage {
    async fn new(hsm: &Hsm) -> Self {
        let (counted, config) = Counted::between(hsm);
        let bench = Bench::with(vec![config], generous()).await;
        bench.kek("KEK1", "main", Custody::Token).await;
        bench.kek("KEK2", "main", Custody::Token).await;
        let mut drives = Vec::new();
        for n in 1..=DRIVES {
            let drive = drive(bench.directory.path(), n, hsm.kind.form());
            bench.enrol(&drive).await;
            drives.push(drive);
        }
        Self {
            bench,
            drives,
            counted,
        }
    }

    /// Writes cartridges until every thread of the bridge has its session; the first
    /// [`AT_ONCE`] drives write in turn.
    async fn warm_up(&self, workers: usize) -> Vec<CreateAnswer> {
        let (_, cold) = self.counted.at_rest();
        let mut tapes = Vec::new();
        loop {
            let creates = (0..AT_ONCE).map(|n| self.create(&self.drives[n], &["KEK1", "KEK2"]));
            tapes.extend(join_all(creates).await);
            let (_, calls) = self.counted.at_rest();
            let sessions: BTreeSet<&str> = calls[cold.len()..]
                .iter()
                .filter(|call| call.function == "C_WrapKey")
                .map(|call| call.session.as_str())
                .collect();
            if sessions.len() == workers {
                return tapes;
            }
            assert!(
                tapes.len() < 1_000,
                "{sessions:?} are the only sessions that do anything; there should be {workers}"
            );
        }
    }

    async fn create(&self, drive: &TestDrive, labels: &[&str]) -> CreateAnswer {
        let mut keks = labels.iter().map(|label| label.parse::<KekRef>().unwrap());
        let request = CreateRequest {
            job: None,
            request_id: Uuid::new_v4(),
            drive: shown(drive),
            volser: "VOL001".parse().unwrap(),
            kek1: keks.next(),
            kek2: keks.next(),
        };
        let answer = self.bench.service.create(&drive.peer, &request).await;
        answer.unwrap().into_inner()
    }

    /// One request; which, of which drive and for which cartridge follows from its number.
    async fn turn(&self, turn: usize, tapes: &[CreateAnswer], asked: &Asked) {
        let mixed = (turn * 2_654_435_761) >> 16;
        let drive = &self.drives[mixed % self.drives.len()];
        let tape = &tapes[mixed % tapes.len()];
        let service = &self.bench.service;
        let count = |kind: &AtomicUsize| kind.fetch_add(1, Ordering::Relaxed);
        match turn % 10 {
            0 | 5 => {
                self.create(drive, &["KEK1", "KEK2:hash"]).await;
                count(&asked.creates);
            }
            1 => {
                self.create(drive, &["KEK2"]).await;
                count(&asked.creates_under_one);
            }
            2 => {
                let request = RekeyRequest {
                    request_id: Uuid::new_v4(),
                    serial: drive.soft.serial().clone(),
                    volser: "VOL001".parse().unwrap(),
                    eedks: eedks(tape),
                    kek1: "KEK2".parse().unwrap(),
                    kek2: Some("KEK1:hash".parse().unwrap()),
                };
                service.rekey(&drive.peer, &request).await.unwrap();
                count(&asked.rekeys);
            }
            3 => {
                // The drive that wrote the cartridge confirms its create.
                let drive = &self.drives[mixed % tapes.len() % AT_ONCE];
                let request = ConfirmRequest {
                    request_id: tape.request_id,
                    serial: drive.soft.serial().clone(),
                    dki: tape.dki,
                    stored: true,
                };
                service.confirm(&drive.peer, &request).await.unwrap();
                count(&asked.confirms);
            }
            _ => {
                let request = ResolveRequest {
                    dki: None,
                    request_id: Uuid::new_v4(),
                    drive: shown(drive),
                    volser: None,
                    eedks: eedks(tape),
                    append: false,
                };
                service.resolve(&drive.peer, &request).await.unwrap();
                count(&asked.resolves);
            }
        }
    }
}

/// Drives may name any KEK, and rekey to any.
fn generous() -> PolicyConfig {
    PolicyConfig {
        peers: vec![PeerRule {
            peer: "drive:*".to_owned(),
            drives: vec![],
            create_keks: vec!["*".to_owned()],
            rekey_keks: vec!["*".to_owned()],
        }],
        ..PolicyConfig::default()
    }
}

fn shown(drive: &TestDrive) -> DriveInRequest {
    DriveInRequest {
        serial: drive.soft.serial().clone(),
        stores_eedks: true,
        public_key: None,
        session_key: None,
    }
}

fn eedks(tape: &CreateAnswer) -> Vec<Base64> {
    tape.eedks.iter().map(|eedk| eedk.eedk.clone()).collect()
}

/// Calls of one kind of exchange.
#[derive(Default)]
struct Cost {
    exchanges: usize,
    calls: usize,
    worst: usize,
    worst_with_key_change: usize,
    keys_came: usize,
    keys_went: usize,
}

impl Cost {
    fn add(&mut self, seen: &Seen) {
        self.exchanges += 1;
        self.calls += seen.calls;
        let worst = if seen.key_came {
            &mut self.worst_with_key_change
        } else {
            &mut self.worst
        };
        *worst = seen.calls.max(*worst);
        self.keys_came += usize::from(seen.key_came);
        self.keys_went += usize::from(seen.key_went);
    }
}

async fn a_thousand_requests(kind: Kind) {
    let hsm = Hsm::new(kind, "budget").await;
    let stage = Arc::new(Stage::new(&hsm).await);
    let workers = HsmProfile::load(kind.profile()).unwrap().session.workers;
    let tapes = Arc::new(stage.warm_up(workers).await);

    let (counters_before, calls_before) = stage.counted.at_rest();
    let asked = Arc::new(Asked::default());
    let next = Arc::new(AtomicUsize::new(0));
    let tasks: Vec<_> = (0..AT_ONCE)
        .map(|_| {
            let (stage, tapes) = (Arc::clone(&stage), Arc::clone(&tapes));
            let (asked, next) = (Arc::clone(&asked), Arc::clone(&next));
            tokio::spawn(async move {
                loop {
                    let turn = next.fetch_add(1, Ordering::Relaxed);
                    if turn >= REQUESTS {
                        return;
                    }
                    stage.turn(turn, &tapes, &asked).await;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let (counters_after, all) = stage.counted.at_rest();

    let warm_all = calls_before.len()..all.len();
    let aside = looks(&all);
    let before = aside
        .iter()
        .take(warm_all.start)
        .filter(|look| !**look)
        .count();
    let calls: Vec<Call> = all
        .iter()
        .zip(&aside)
        .filter(|(_, look)| !**look)
        .map(|(call, _)| call.clone())
        .collect();
    let warm = before..calls.len();
    for call in &calls[warm.clone()] {
        assert_eq!(call.code, "0x0", "{call:?}");
        assert_ne!(
            letter(call),
            '?',
            "a warm request makes no such call: {call:?}"
        );
    }
    // Two accounts of the same: what each function counted, and the lines of the log.
    let mut counted = counters_after;
    for (function, before) in counters_before {
        *counted.get_mut(&function).unwrap() -= before;
    }
    counted.retain(|_, count| *count > 0);
    assert_eq!(counted, tally(&all[warm_all]));
    // Without the looks at the token's keys, every few seconds.
    let counted = tally(&calls[warm.clone()]);

    let mut costs: BTreeMap<Exchange, Cost> = BTreeMap::new();
    for seen in exchanges(&calls, warm) {
        let allowed = seen.exchange.budget() + if seen.key_came { KEY_CHANGE } else { 0 };
        assert!(
            seen.calls <= allowed,
            "{:?} made {} calls, {allowed} are allowed",
            seen.exchange,
            seen.calls
        );
        costs.entry(seen.exchange).or_default().add(&seen);
    }
    println!("{kind:?}: {counted:?}");
    for (exchange, cost) in &costs {
        println!(
            "{kind:?}: {:5} x {exchange:?}: at most {} calls, {} with a change of the drive's key ({} came, {} went), {:.2} in the mean",
            cost.exchanges,
            cost.worst,
            cost.worst_with_key_change,
            cost.keys_came,
            cost.keys_went,
            mean(cost)
        );
    }

    let of = |exchange| costs.get(&exchange).map_or(0, |cost| cost.exchanges);
    let asked_for = |count: &AtomicUsize| count.load(Ordering::Relaxed);
    let Asked {
        creates,
        creates_under_one,
        resolves,
        rekeys,
        confirms,
    } = &*asked;
    let [creates, under_one, resolves, rekeys, confirms] =
        [creates, creates_under_one, resolves, rekeys, confirms].map(asked_for);
    assert_eq!(creates + under_one + resolves + rekeys + confirms, REQUESTS);
    // Nothing is done twice, and nothing besides.
    assert_eq!(of(Exchange::Create), creates);
    assert_eq!(of(Exchange::CreateUnderOne), under_one);
    assert_eq!(of(Exchange::Resolve), resolves);
    assert_eq!(of(Exchange::Rekey), rekeys);
    let proofs = 2 * creates + under_one + 2 * rekeys;
    assert_eq!(of(Exchange::Proof), proofs);
    assert_eq!(counted["C_GenerateKey"], creates + under_one);
    assert_eq!(
        counted["C_UnwrapKey"],
        resolves + rekeys + proofs + of(Exchange::Canary)
    );
    // The drives are more than a session keeps keys of, so both ways were counted.
    let resolve = &costs[&Exchange::Resolve];
    assert!(resolve.keys_came > 0 && resolve.keys_came < resolve.exchanges);
    assert!(resolve.keys_went > 0);
}

fn mean(cost: &Cost) -> f64 {
    let number = |count| f64::from(u32::try_from(count).unwrap());
    number(cost.calls) / number(cost.exchanges)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_requests_stay_within_the_call_budget_on_the_embedded_token() {
    a_thousand_requests(Kind::Embedded).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_requests_stay_within_the_call_budget_on_softhsm() {
    a_thousand_requests(Kind::Softhsm).await;
}
