//! What a fault of a token costs the drives: a steady load through one fault
//! after another, on a server over one token, and on one over two tokens with
//! the same KEKs, where it should cost nothing.

mod load;
mod orphans;
mod slips;
mod slots;
mod start;

use std::collections::BTreeSet;
use std::fmt;
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
use load::{Asked, Load};

/// Seconds that an exchange may take before the module counts as hung.
const DEADLINE: u64 = 5;

/// Longest time until a bridge that hangs is gone: the deadline, the supervisor's two seconds, and
/// more for a slow machine.
const HUNG: Duration = Duration::from_secs(DEADLINE + 10);

/// Workers of a bridge: one that is killed leaves nine of sixteen sessions counted.
const WORKERS: u64 = 8;

/// Within so much the server must serve again, once the token is back: a slow machine needs more
/// than a second, and the supervisor's long pause would be ten.
const BACK: Duration = Duration::from_secs(6);

/// How long the load is watched after each fault, [`BACK`] included.
const AFTER: Duration = Duration::from_secs(9);

/// Least share of the requests outside a fault's window that must succeed, percent.
const SHARE: usize = 95;

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
            Self::SessionsCounted => "16 sessions, those of the dead count for 10 s",
            Self::ModuleHangs => "a module that hangs",
            Self::HsmPaused => "an HSM that is paused for 20 s",
            Self::HsmKilled => "kill -9 and start of the HSM",
        })
    }
}

/// A fault's time.
struct Window {
    ill: Ill,
    from: Instant,
    /// When the token would serve again whoever asked it anew.
    back: Instant,
    /// When the next fault began, or the load ended.
    until: Instant,
}

impl Window {
    /// Whether a request ended in it. One that the next fault stopped is that one's.
    fn has(&self, asked: &Asked) -> bool {
        (self.from..self.until).contains(&asked.done)
    }

    /// Whether the fault may be the reason that a request failed.
    fn excuses(&self, asked: &Asked) -> bool {
        asked.sent < self.back + BACK
    }
}

/// A server under load over one or two tokens with the same KEKs; the first
/// token is in a process or container of its own and behind the faulty module.
struct Stage {
    site: Site,
    hsms: Vec<Hsm>,
    faulty: Faulty,
    load: Load,
    /// Requests outside a fault's window without which there was no load.
    least: usize,
}

impl Stage {
    async fn new(tokens: usize) -> Self {
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
        let workers = format!("workers = {WORKERS}");
        let deadline = format!("deadline_seconds = {DEADLINE}");
        let changes = [
            ("workers = 4", workers.as_str()),
            ("deadline_seconds = 30", &deadline),
        ];
        let mut configs = vec![faulty.through(altered(&hsms[0], "main", &changes))];
        let others = hsms.iter().skip(1);
        configs.extend(others.map(|hsm| altered(hsm, "second", &changes)));
        let site = Site::over(configs, POLICY).await;
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
            load,
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
        // What comes in half a second: a fault is watched for three besides its window.
        self.least = usize::try_from(done).unwrap() / 12;
        sleep(Duration::from_secs(1)).await;
    }

    /// The processes that drive the first token.
    fn bridges(&self) -> BTreeSet<u32> {
        bridges(&self.faulty)
    }

    /// What there is more of once the fault was met; none where nothing tells.
    fn trace(&self, ill: Ill) -> Option<u64> {
        let answers = |code: &str| {
            let log = std::fs::read_to_string(self.faulty.log()).unwrap();
            u64::try_from(log.lines().filter(|line| line.ends_with(code)).count()).unwrap()
        };
        match ill {
            Ill::SessionsLost => Some(answers(" 0xb3")),
            Ill::LoginLost => Some(self.faulty.called("C_Login")),
            Ill::SlotsRenumbered => Some(self.faulty.called("C_GetSlotList")),
            Ill::SessionsCounted => Some(answers(" 0xb1")),
            Ill::BridgeKilled | Ill::ModuleCrashes | Ill::ModuleHangs => {
                Some(self.faulty.called("C_Initialize"))
            }
            Ill::HsmPaused | Ill::HsmKilled => None,
        }
    }

    /// Has the fault happen, and gives its time.
    async fn strike(&self, ill: Ill) -> Window {
        let trace = self.trace(ill);
        let from = Instant::now();
        let unwraps = Some("C_UnwrapKey");
        let mut back = from;
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
                back = self
                    .when("a crash", || !self.bridges().is_superset(&before))
                    .await;
            }
            Ill::SessionsCounted => {
                self.faulty.change(|rules| {
                    rules.session_limit = Some(SessionLimit {
                        most: 16,
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
                back = self
                    .when("the end of a bridge that hangs", || {
                        !self.bridges().is_superset(&before)
                    })
                    .await;
                self.faulty.heal();
            }
            Ill::HsmPaused => {
                self.hsms[0].docker("pause");
                sleep(Duration::from_secs(20)).await;
                self.hsms[0].docker("unpause");
                back = Instant::now();
            }
            Ill::HsmKilled => {
                self.hsms[0].docker("kill");
                sleep(Duration::from_secs(1)).await;
                self.hsms[0].docker("start");
                let socket = self.hsms[0].directory.path().join("pkcs11.sock");
                back = self
                    .when("the HSM", || UnixStream::connect(&socket).is_ok())
                    .await;
            }
        }
        sleep((back + AFTER).saturating_duration_since(Instant::now())).await;
        let met = trace.is_none_or(|before| self.trace(ill) > Some(before));
        assert!(met, "{ill}: the bridge has not met it");
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
                    "main is {} 30 s later: {:?}",
                    tokens[0].state, tokens[0].why
                ));
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Stops the server, and holds its audit log against what was answered.
    async fn end(mut self) -> (Vec<Asked>, Vec<String>) {
        let (asked, mut complaints) = self.load.end().await;
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
        let mut recorded = BTreeSet::new();
        for record in audit::read(&log).unwrap() {
            let event = record.unwrap().event;
            if let (Some(request), true) = (event.request, event.outcome != Outcome::Intent) {
                let success = event.outcome == Outcome::Success;
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

/// What a fault cost.
struct Cost<'a> {
    window: &'a Window,
    ended: Vec<&'a Asked>,
    /// Those that the fault does not excuse.
    outside: Vec<&'a Asked>,
    /// From the token's return to the first answer.
    first: Option<Duration>,
}

impl<'a> Cost<'a> {
    fn of(window: &'a Window, asked: &'a [Asked]) -> Self {
        let ended: Vec<&Asked> = asked.iter().filter(|asked| window.has(asked)).collect();
        let outside = ended.iter().copied();
        let outside = outside.filter(|asked| !window.excuses(asked)).collect();
        let answers = ended.iter().filter(|asked| asked.failed.is_none());
        let first = answers
            .filter_map(|asked| asked.done.checked_duration_since(window.back))
            .min();
        Self {
            window,
            ended,
            outside,
            first,
        }
    }

    fn away(&self) -> Duration {
        self.window.back.duration_since(self.window.from)
    }

    fn complaints(&self, least: usize) -> Vec<String> {
        let (all, failed) = (self.outside.len(), failed(&self.outside));
        let mut complaints = Vec::new();
        if self.first.is_none_or(|first| first > BACK) {
            let first = self.first;
            complaints.push(format!("the first answer came {first:?} after its return"));
        }
        // Fewer would prove nothing.
        if all < least || failed * 100 > all * (100 - SHARE) {
            complaints.push(format!(
                "{failed} of {all} requests failed outside its window"
            ));
        }
        if self.window.ill == Ill::ModuleHangs && self.away() > HUNG {
            let away = self.away();
            complaints.push(format!("the bridge was let live for {away:?}"));
        }
        let why = self.ended.iter().find_map(|asked| asked.failed.as_deref());
        let why = why.unwrap_or("no request failed");
        complaints
            .into_iter()
            .map(|complaint| format!("{}: {complaint} ({why})", self.window.ill))
            .collect()
    }
}

impl fmt::Display for Cost<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let times = self.ended.iter();
        let slowest = times
            .map(|asked| asked.done.duration_since(asked.sent))
            .max();
        write!(
            f,
            "{:45} away {:4.1} s, first answer {:?} after; {} of {} failed, {} of {} outside its window; slowest {:?}",
            self.window.ill.to_string(),
            self.away().as_secs_f64(),
            self.first,
            failed(&self.ended),
            self.ended.len(),
            failed(&self.outside),
            self.outside.len(),
            slowest,
        )
    }
}

fn failed(asked: &[&Asked]) -> usize {
    asked.iter().filter(|asked| asked.failed.is_some()).count()
}

async fn through_every_fault(tokens: usize) {
    let stage = Stage::new(tokens).await;
    let mut windows = Vec::new();
    let mut complaints = Vec::new();
    for ill in ILLS {
        windows.push(stage.strike(ill).await);
        if let Err(why) = stage.heal().await {
            complaints.push(format!("{ill}: {why}"));
        }
    }
    let least = stage.least;
    let (asked, found) = stage.end().await;
    complaints.extend(found);
    let costs: Vec<Cost<'_>> = windows
        .iter()
        .map(|window| Cost::of(window, &asked))
        .collect();
    complaints.extend(costs.iter().flat_map(|cost| cost.complaints(least)));
    let refused = asked.iter().filter(|asked| asked.failed.is_some());
    if tokens > 1 {
        complaints
            .extend(refused.map(|asked| format!("another token could have served: {asked:?}")));
    }
    let table: Vec<String> = costs.iter().map(Cost::to_string).collect();
    let table = table.join("\n");
    println!("{tokens} token(s):\n{table}");
    assert!(complaints.is_empty(), "{}\n{table}", complaints.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_one_token_comes_through_every_fault_of_it() {
    through_every_fault(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_fault_of_a_token_costs_a_request_where_another_holds_the_keks() {
    through_every_fault(2).await;
}
