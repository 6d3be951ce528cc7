//! What a fault of a token costs the drives: a steady load through one fault
//! after another, on a server over one token, driven by one process and by two,
//! and on one over two tokens with the same KEKs, where it should cost nothing.

mod cost;
mod load;
mod orphans;
mod slips;
mod slots;
mod start;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use ekm::admin;
use ekm::audit::{self, Outcome};
use ekm::problem::EkmCode;
use ekm::store::Defaults;
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::sleep;

use crate::faulty::{Fault, Faulty, SessionLimit, Slots};
use crate::several::altered;
use crate::site::Site;
use crate::support::{Hsm, Kind, lives, pkcs8_key, wait_for};
use cost::{Cost, LATEST, Window};
use load::{Asked, Load};

/// The token that the faults happen to.
const MAIN: &str = "main";

/// Seconds that an exchange may take before the module counts as hung.
const DEADLINE: u64 = 5;

/// Longest time until a bridge that hangs is gone: the deadline, the supervisor's two seconds, and
/// more for a slow machine.
const HUNG: Duration = Duration::from_secs(DEADLINE + 10);

/// Workers of a token, over all its bridges.
const WORKERS: u64 = 8;

/// How long the load is watched after each fault, [`LATEST`] included.
const AFTER: Duration = Duration::from_secs(LATEST.as_secs() + 3);

/// The policy of the site: any drive may write under any KEK.
const POLICY: &str = "[policy]
[[policy.peers]]
peer = \"drive:*\"
create_keks = [\"*\"]
";

/// What happens to the token `main`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ill {
    SessionsLost,
    LoginLost,
    SlotsRenumbered,
    BridgeKilled,
    ModuleCrashes,
    SessionsCounted,
    ModuleHangs,
    HsmPaused,
    HsmKilled,
}

/// First the one in which the sessions of bridges that died before would count, too.
const ILLS: [Ill; 9] = [
    Ill::SessionsCounted,
    Ill::SessionsLost,
    Ill::LoginLost,
    Ill::SlotsRenumbered,
    Ill::BridgeKilled,
    Ill::ModuleCrashes,
    Ill::ModuleHangs,
    Ill::HsmKilled,
    Ill::HsmPaused,
];

impl fmt::Display for Ill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SessionsLost => "every session invalidated",
            Self::LoginLost => "login lost",
            Self::SlotsRenumbered => "slots renumbered",
            Self::BridgeKilled => "kill -9 of a bridge",
            Self::ModuleCrashes => "a module that crashes on the nth call",
            Self::SessionsCounted => "too few sessions, those of the dead count for 10 s",
            Self::ModuleHangs => "a module that hangs",
            Self::HsmPaused => "an HSM that is paused for 20 s",
            Self::HsmKilled => "kill -9 and start of the HSM",
        })
    }
}

impl Ill {
    /// Whether it takes one bridge away, and leaves the token's others alone.
    const fn takes_one_bridge(self) -> bool {
        match self {
            Self::SessionsCounted | Self::BridgeKilled | Self::ModuleCrashes => true,
            Self::SessionsLost
            | Self::LoginLost
            | Self::SlotsRenumbered
            | Self::ModuleHangs
            | Self::HsmPaused
            | Self::HsmKilled => false,
        }
    }
}

/// A server under load over one or two tokens with the same KEKs; the first
/// token is in a process or container of its own and behind the faulty module.
struct Stage {
    site: Site,
    hsms: Vec<Hsm>,
    faulty: Faulty,
    /// Bridges of each token.
    processes: u64,
    load: Load,
    /// From nothing that runs to tokens that are ready: what this machine takes for a start, now.
    start: Duration,
    /// Requests outside a fault's window without which there was no load.
    least: usize,
}

impl Stage {
    async fn new(tokens: usize, processes: u64) -> Self {
        let mut hsms = Vec::new();
        for n in 1..=tokens {
            hsms.push(Hsm::new(Kind::Softhsm, &format!("token{n}")).await);
        }
        let key = tempfile::NamedTempFile::new().unwrap();
        for label in ["KEK1", "KEK2"] {
            std::fs::write(&key, pkcs8_key()).unwrap();
            for hsm in &hsms {
                hsm.hand(&["import-private", label, &key.path().display().to_string()]);
            }
        }
        let faulty = Faulty::before(&hsms[0]);
        let workers = format!("workers = {}", WORKERS / processes);
        let driven = format!("processes = {processes}");
        let deadline = format!("deadline_seconds = {DEADLINE}");
        let changes = [
            ("workers = 4", workers.as_str()),
            ("processes = 1", driven.as_str()),
            ("deadline_seconds = 30", deadline.as_str()),
        ];
        let mut configs = vec![faulty.through(altered(&hsms[0], MAIN, &changes))];
        let others = hsms.iter().skip(1);
        configs.extend(others.map(|hsm| altered(hsm, "second", &changes)));
        let begin = Instant::now();
        let site = Site::over(configs, POLICY).await;
        let start = begin.elapsed();
        let labels = ["KEK1", "KEK2"].map(|label| Some(label.parse().unwrap()));
        let [kek1, kek2] = labels;
        let set = Some(Defaults { kek1, kek2 });
        site.execute(&admin::Command::KekDefault { set, anyway: false })
            .await;
        let load = Load::start(&site, Kind::Softhsm).await;
        let mut stage = Self {
            site,
            hsms,
            faulty,
            processes,
            load,
            start,
            least: 0,
        };
        stage.settle_rate().await;
        stage
    }

    /// Measures what the token sustains, and goes on with half of it.
    async fn settle_rate(&mut self) {
        sleep(Duration::from_secs(1)).await;
        let (before, begin) = (self.load.asked().len(), Instant::now());
        sleep(Duration::from_secs(3)).await;
        let done = u32::try_from(self.load.asked().len() - before).unwrap();
        let rate = f64::from(done) / begin.elapsed().as_secs_f64();
        println!("{rate:.0} requests per second at most; the load is half of that");
        assert!(rate > 4.0, "no load worth the name: {rate} per second");
        self.load.set_rate(rate / 2.0);
        // What comes in half a second: a fault is watched for three at least besides its window.
        self.least = usize::try_from(done).unwrap() / 12;
        sleep(Duration::from_secs(1)).await;
    }

    /// The processes that drive the first token.
    fn bridges(&self) -> BTreeSet<u32> {
        bridges(&self.faulty)
    }

    /// Sessions of which a bridge that starts anew gets two fewer than it wants, while those of the
    /// one that died count.
    fn too_few_sessions(&self) -> u64 {
        let each = WORKERS / self.processes + 1;
        each * (self.processes + 1) - 2
    }

    /// What there is more of once the fault was met.
    fn trace(&self, ill: Ill) -> u64 {
        let answers = |code: &str| {
            let log = std::fs::read_to_string(self.faulty.log()).unwrap();
            u64::try_from(log.lines().filter(|line| line.ends_with(code)).count()).unwrap()
        };
        match ill {
            Ill::SessionsLost => answers(" 0xb3"),
            Ill::LoginLost => self.faulty.called("C_Login"),
            Ill::SlotsRenumbered => self.faulty.called("C_GetSlotList"),
            Ill::SessionsCounted => answers(" 0xb1"),
            // No bridge outlives it: a connection to an HSM that was killed is lost, and what waits
            // for one that is paused is overdue long before it goes on.
            Ill::BridgeKilled
            | Ill::ModuleCrashes
            | Ill::ModuleHangs
            | Ill::HsmPaused
            | Ill::HsmKilled => self.faulty.called("C_Initialize"),
        }
    }

    /// Has the fault happen, and gives its time.
    async fn strike(&self, ill: Ill) -> Window {
        let trace = self.trace(ill);
        let from = Instant::now();
        let unwraps = Some("C_UnwrapKey");
        let mut back = None;
        match ill {
            Ill::SessionsLost => self.faulty.change(|rules| rules.sessions_lost += 1),
            Ill::LoginLost => self.faulty.change(|rules| rules.logins_lost += 1),
            // A slot that was renumbered has none of the sessions that it had.
            Ill::SlotsRenumbered => self.faulty.change(|rules| {
                rules.slots = Slots::Shifted(1_000);
                rules.sessions_lost += 1;
            }),
            Ill::BridgeKilled => self.kill_bridge(),
            Ill::ModuleCrashes => {
                let before = self.bridges();
                self.faulty.strike(unwraps, 20, Some(1), Fault::Segfault);
                let crash = self.when("a crash", || !self.bridges().is_superset(&before));
                back = Some(crash.await);
            }
            Ill::SessionsCounted => {
                self.faulty.change(|rules| {
                    rules.session_limit = Some(SessionLimit {
                        most: self.too_few_sessions(),
                        linger_ms: 10_000,
                        told: false,
                    });
                });
                self.kill_bridge();
            }
            Ill::ModuleHangs => {
                let before = self.bridges();
                // How many calls a bridge hangs in goes by the load, so their number ends nothing.
                self.faulty.strike(unwraps, 0, None, Fault::Hang);
                let end = self.when("the end of a bridge that hangs", || {
                    !self.bridges().is_superset(&before)
                });
                back = Some(end.await);
                self.faulty.heal();
            }
            Ill::HsmPaused => {
                self.hsms[0].docker("pause");
                sleep(Duration::from_secs(20)).await;
                self.hsms[0].docker("unpause");
            }
            Ill::HsmKilled => {
                self.hsms[0].docker("kill");
                sleep(Duration::from_secs(1)).await;
                self.hsms[0].docker("start");
                let socket = self.hsms[0].directory.path().join("pkcs11.sock");
                let listens = self.when("the HSM", || UnixStream::connect(&socket).is_ok());
                back = Some(listens.await);
            }
        }
        let back = back.unwrap_or_else(Instant::now);
        sleep((back + AFTER).saturating_duration_since(Instant::now())).await;
        assert!(self.trace(ill) > trace, "{ill}: no bridge has met it");
        self.faulty.heal();
        Window {
            ill,
            from,
            back,
            until: Instant::now(),
        }
    }

    fn kill_bridge(&self) {
        let bridge = self.bridges().pop_first();
        kill(bridge.expect("the token has a bridge"));
    }

    async fn when(&self, what: &str, so: impl Fn() -> bool) -> Instant {
        tokio::task::block_in_place(|| {
            wait_for(what, Duration::from_secs(30), so);
            Instant::now()
        })
    }

    /// Waits for the first token after what was done to it.
    async fn heal(&self) -> Result<(), String> {
        let begin = Instant::now();
        loop {
            let admin::Reply::Tokens(tokens) =
                self.site.execute(&admin::Command::TokenStatus).await
            else {
                panic!("the server gave an answer of another kind");
            };
            if tokens[0].state == "ready" {
                return Ok(());
            }
            if begin.elapsed() > Duration::from_secs(30) {
                return Err(format!(
                    "{MAIN} is {} 30 s later: {:?}",
                    tokens[0].state, tokens[0].why
                ));
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Stops the server, and holds its audit log against what was answered: every answer is on
    /// record, and which token gave it.
    async fn end(mut self) -> (Vec<Asked>, Vec<String>) {
        let (mut asked, mut complaints) = self.load.end().await;
        // At least one that is refused, whatever the faults cost.
        let stranger = load::stranger(&self.site, Kind::Softhsm).await;
        if stranger.answer() != Some(Some(EkmCode::EF01.to_string())) {
            complaints.push(format!("not refused as a stranger: {stranger:?}"));
        }
        self.site.terminate();
        let log = self.site.directory.path().join("audit");
        if let Err(error) = audit::verify(&log) {
            complaints.push(format!("the audit chain: {error}"));
        }
        let (mut recorded, mut tokens) = (BTreeSet::new(), BTreeMap::new());
        for record in audit::read(&log).unwrap() {
            let event = record.unwrap().event;
            if let (Some(request), true) = (event.request, event.outcome != Outcome::Intent) {
                let success = event.outcome == Outcome::Success;
                if let Some(token) = event.token.filter(|_| success) {
                    tokens.insert(request.clone(), token);
                }
                recorded.insert((event.action, request, success, event.code));
            }
        }
        for answered in asked.iter().chain([&stranger]) {
            // Who was not answered was told nothing that could be on record.
            let Some(code) = answered.answer() else {
                continue;
            };
            let (verb, request) = (answered.verb.to_owned(), answered.id.to_string());
            let record = (verb, request, code.is_none(), code);
            if !recorded.contains(&record) {
                complaints.push(format!("no record of an answer: {answered:?}"));
            }
        }
        for answered in &mut asked {
            answered.token = tokens.remove(&answered.id.to_string());
        }
        (asked, complaints)
    }
}

/// The living processes that have the faulty module loaded.
fn bridges(faulty: &Faulty) -> BTreeSet<u32> {
    let clients = faulty.clients().into_iter();
    clients
        .map(|(pid, _)| u32::try_from(pid).unwrap())
        .filter(|pid| lives(*pid))
        .collect()
}

fn kill(pid: u32) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
}

async fn through_every_fault(tokens: usize, processes: u64) {
    let stage = Stage::new(tokens, processes).await;
    let mut windows = Vec::new();
    let mut complaints = Vec::new();
    for ill in ILLS {
        windows.push(stage.strike(ill).await);
        if let Err(why) = stage.heal().await {
            complaints.push(format!("{ill}: {why}"));
        }
    }
    let (least, start) = (stage.least, stage.start);
    let (asked, found) = stage.end().await;
    complaints.extend(found);
    let costs: Vec<Cost<'_>> = windows
        .iter()
        .map(|window| Cost::of(window, &asked))
        .collect();
    complaints.extend(costs.iter().flat_map(|cost| cost.complaints(least)));
    complaints.extend(cost::slow(&costs, start));
    let refused = asked.iter().filter(|asked| asked.failed.is_some());
    if tokens > 1 {
        complaints
            .extend(refused.map(|asked| format!("another token could have served: {asked:?}")));
    }
    if processes > 1 {
        let one_of_two = |cost: &&Cost<'_>| cost.window.ill.takes_one_bridge();
        let refused = costs
            .iter()
            .filter(one_of_two)
            .flat_map(|cost| cost.refused());
        complaints
            .extend(refused.map(|asked| format!("another bridge could have served: {asked:?}")));
    }
    let table: Vec<String> = costs.iter().map(Cost::to_string).collect();
    let table = table.join("\n");
    // Past the harness, which shows nothing of a test that passes.
    let mut shown = std::io::stderr().lock();
    writeln!(
        shown,
        "{tokens} token(s), {processes} process(es) each, started in {start:?}:\n{table}"
    )
    .unwrap();
    assert!(complaints.is_empty(), "{}\n{table}", complaints.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_one_token_comes_through_every_fault_of_it() {
    through_every_fault(1, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_token_two_processes_drive_comes_through_every_fault_of_it() {
    through_every_fault(1, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_fault_of_a_token_costs_a_request_where_another_holds_the_keks() {
    through_every_fault(2, 1).await;
}
