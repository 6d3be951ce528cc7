//! Which windows are measured, in which order, and what follows from them.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use ekm::bridge::message::{Custody, Op, Recipient, Reply};
use ekm::bridge::supervisor::{Bridge, Program};
use ekm::key::{Eedk, KekHash, SedkForm};
use serde::Serialize;
use tokio::runtime::Runtime;

use crate::load::{self, Template};
use crate::process::{self, Cpu};
use crate::raw::{Exchange, Loop};
use crate::sample::{Window, float, mean, median};
use crate::site::Site;
use crate::token::{Kind, Token};

/// Connections of the windows over TLS.
pub(crate) const CONNECTIONS: [usize; 4] = [1, 4, 16, 64];

/// How long a bridge may take until its token serves.
const PATIENCE: Duration = Duration::from_secs(60);

/// Requests that are under way at once at a bridge that is saturated.
const UNDER_WAY: usize = 16;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    /// The bare loop, on so many threads.
    Raw(Exchange, usize),
    /// Resolves asked of the bridge, with no server around it.
    Bridge(usize),
    /// Resolves over TLS, on so many connections.
    Resolve(usize),
    /// Creates over TLS.
    Create(usize),
}

/// How a series is measured.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) rounds: u32,
    pub(crate) window: Duration,
    pub(crate) lock: Option<PathBuf>,
}

/// What was found at one point of a series.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Figure {
    /// Finished in each second.
    pub(crate) per_s: f64,
    /// The rate, as a part of the bare loop's in the same round; a create's,
    /// of creates with their proof.
    pub(crate) ratio: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    /// The p50, less that of the same bare loop on one thread in the same round.
    pub(crate) added_p50_ms: f64,
    /// CPU time for each, microseconds.
    pub(crate) cpu: Cpu,
}

/// The points of a series, by number of threads or connections, or `saturation`.
pub(crate) type Series = BTreeMap<String, Figure>;

/// What was found for one kind of token and one length of KEK.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) kind: Kind,
    pub(crate) bits: u32,
    /// Threads of the bare loop beyond which it gets no faster.
    pub(crate) threads: usize,
    pub(crate) raw: BTreeMap<Exchange, Series>,
    pub(crate) bridge: Series,
    pub(crate) resolve: Series,
    pub(crate) create: Series,
    /// Proportional set sizes of the server and of its bridges at the end, bytes; 0 where not told.
    pub(crate) server_pss: u64,
    pub(crate) bridges_pss: u64,
}

impl Plan {
    /// Makes a token and a site, and measures them.
    pub(crate) fn measure(&self, ekm: &Path, kind: Kind, bits: u32) -> anyhow::Result<Part> {
        let load = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let around = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        let mut bench = load.block_on(Bench::set_up(ekm, kind, bits, &around))?;
        let threads = self.threads(&mut bench)?;
        let mut seen: BTreeMap<What, Vec<Vec<Window>>> = BTreeMap::new();
        for round in 0..=self.rounds {
            let _turn = self.turn()?;
            let mut this: BTreeMap<What, Vec<Window>> = BTreeMap::new();
            for what in order(threads) {
                let window = bench.window(what, self.window, &load, &around)?;
                this.entry(what).or_default().push(window);
            }
            // The first round only warms everything up.
            if round > 0 {
                for (what, windows) in this {
                    seen.entry(what).or_default().push(windows);
                }
                eprintln!("  round {round} of {}", self.rounds);
            }
        }
        let pid = bench.site.pid();
        Ok(Part {
            kind,
            bits,
            threads,
            server_pss: process::pss(pid).unwrap_or_default(),
            bridges_pss: process::children(pid)
                .into_iter()
                .filter_map(|pid| process::pss(pid).ok())
                .sum(),
            raw: raw(&seen, threads),
            bridge: series(
                &seen,
                Exchange::Rewrap,
                threads,
                [1, UNDER_WAY],
                What::Bridge,
            ),
            resolve: series(&seen, Exchange::Rewrap, threads, CONNECTIONS, What::Resolve),
            // The server proves every create.
            create: series(&seen, Exchange::Proved, threads, CONNECTIONS, What::Create),
        })
    }

    /// The lock, for as long as it is kept.
    pub(crate) fn turn(&self) -> anyhow::Result<Option<File>> {
        let Some(path) = &self.lock else {
            return Ok(None);
        };
        let file = File::options()
            .create(true)
            .append(true)
            .open(path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        file.lock()?;
        Ok(Some(file))
    }

    /// How many threads of the bare loop pay.
    fn threads(&self, bench: &mut Bench) -> anyhow::Result<usize> {
        let _turn = self.turn()?;
        let counts = [1, 2, 4, 8];
        let mut rates = [const { Vec::new() }; 4];
        for _ in 0..3 {
            for (threads, rates) in counts.into_iter().zip(&mut rates) {
                let seen = bench
                    .raw
                    .window(Exchange::Rewrap, threads, self.window / 3)?;
                rates.push(seen.per_s);
            }
        }
        let mut best = (0.0, 1);
        for (threads, rates) in counts.into_iter().zip(rates) {
            // A thread more must bring something.
            let rate = median(rates);
            if rate > best.0 * 1.03 {
                best = (rate, threads);
            }
        }
        Ok(best.1)
    }
}

/// One round: what is compared stands side by side.
fn order(threads: usize) -> Vec<What> {
    use Exchange::{Create, Decrypt, Proved, Rewrap};
    vec![
        What::Raw(Rewrap, 1),
        What::Resolve(1),
        What::Bridge(1),
        What::Raw(Rewrap, 1),
        What::Raw(Decrypt, 1),
        What::Raw(Rewrap, threads),
        What::Resolve(4),
        What::Resolve(16),
        What::Raw(Rewrap, threads),
        What::Resolve(64),
        What::Bridge(UNDER_WAY),
        What::Raw(Rewrap, threads),
        What::Raw(Create, 1),
        What::Raw(Proved, 1),
        What::Create(1),
        What::Raw(Proved, 1),
        What::Raw(Proved, threads),
        What::Create(4),
        What::Create(16),
        What::Raw(Proved, threads),
        What::Create(64),
        What::Raw(Proved, threads),
        What::Raw(Create, threads),
    ]
}

/// Everything that a window needs.
struct Bench {
    raw: Loop,
    site: Site,
    resolve: Template,
    create: Template,
    bridge: Bridge,
    op: Op,
    // After what uses it.
    _token: Token,
}

impl Bench {
    async fn set_up(ekm: &Path, kind: Kind, bits: u32, around: &Runtime) -> anyhow::Result<Self> {
        let token = Token::new(ekm, kind)?;
        let site = Site::start(ekm, &token).await?;
        let (kek, host_kek) = (format!("KEK{bits}"), format!("HOST{bits}"));
        site.kek(&kek, bits, Custody::Token).await?;
        site.kek(&host_kek, bits, Custody::Host).await?;
        let drive = site.drive(1, &kek).await?;
        let (resolve, request) = site.cartridge(&drive).await?;
        let spki = site.at("drive.spki");
        std::fs::write(&spki, drive.spki())?;
        let profile = token.config()?.settled_profile()?;
        let raw = Loop::start(&profile, &token.pin(), [&kek, &host_kek], &spki)?;

        let hello = token.config()?.hello(&site.at("ledgers"))?;
        let bridge = {
            let _inside = around.enter();
            Bridge::start(Program::at(ekm.to_owned()), hello)
        };
        // SoftHSM may miss a token while another of its processes writes there.
        if tokio::time::timeout(PATIENCE, bridge.serving())
            .await
            .is_err()
        {
            bail!("the token does not serve: {}", bridge.told());
        }
        let found = bridge
            .found()
            .context("the bridge does not see the token")?;
        let hash = found
            .keks
            .iter()
            .find(|known| known.label.as_str() == kek)
            .map(|known| known.hash)
            .context("the bridge does not see the KEK")?;
        let eedk = request.eedks.first().context("no EEDK")?;
        let op = resolve_op(&eedk.0, hash, drive.spki())?;
        Ok(Self {
            raw,
            resolve,
            create: site.create(&drive)?,
            bridge,
            op,
            site,
            _token: token,
        })
    }

    fn window(
        &mut self,
        what: What,
        length: Duration,
        load: &Runtime,
        around: &Runtime,
    ) -> anyhow::Result<Window> {
        let over_tls = |request: &Template, count| {
            let request = std::slice::from_ref(request);
            load.block_on(load::window(&self.site, count, request, length))
        };
        match what {
            What::Raw(exchange, threads) => self.raw.window(exchange, threads, length),
            What::Bridge(count) => around.block_on(bridge(&self.bridge, &self.op, count, length)),
            What::Resolve(count) => over_tls(&self.resolve, count),
            What::Create(count) => over_tls(&self.create, count),
        }
    }
}

fn resolve_op(eedk: &[u8], kek: KekHash, spki: &[u8]) -> anyhow::Result<Op> {
    Ok(Op::Resolve {
        eedk: Eedk::decode(eedk)?,
        kek,
        drive: Recipient {
            form: SedkForm::RsaOaepSha1,
            spki: spki.to_vec(),
            wwn: None,
        },
        custody: Custody::Token,
        guard: None,
    })
}

/// So many requests at once are under way at the bridge.
async fn bridge(
    bridge: &Bridge,
    op: &Op,
    count: usize,
    length: Duration,
) -> anyhow::Result<Window> {
    let op = Arc::new(op.clone());
    let before = Cpu::now(None);
    let start = Instant::now();
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..count {
        let (bridge, op) = (bridge.clone(), Arc::clone(&op));
        asking.spawn(async move {
            let mut took = Vec::new();
            loop {
                let begin = Instant::now();
                let reply = bridge.ask(Op::clone(&op)).await;
                match reply {
                    Ok(Reply::Resolved { .. }) => took.push(begin.elapsed()),
                    other => return Err(anyhow::anyhow!("the bridge answered {other:?}")),
                }
                if start.elapsed() >= length {
                    return Ok(took);
                }
            }
        });
    }
    let mut all = Vec::new();
    while let Some(took) = asking.join_next().await {
        all.extend(took??);
    }
    let elapsed = start.elapsed();
    let count = float(all.len());
    let mut seen = Window::of(all, elapsed);
    seen.cpu = Cpu::now(None).since(before, count);
    Ok(seen)
}

type Seen = BTreeMap<What, Vec<Vec<Window>>>;

/// The bare loop's own figures; its ratio is to its rewrap.
fn raw(seen: &Seen, threads: usize) -> BTreeMap<Exchange, Series> {
    let mut all: BTreeMap<Exchange, Series> = BTreeMap::new();
    for what in seen.keys() {
        if let What::Raw(exchange, count) = *what {
            let figure = figure(seen, *what, What::Raw(Exchange::Rewrap, count), threads);
            let points = all.entry(exchange).or_default();
            if count == threads {
                points.insert("saturation".to_owned(), figure);
            }
            if count == 1 {
                points.insert("1".to_owned(), figure);
            }
        }
    }
    all
}

fn series(
    seen: &Seen,
    exchange: Exchange,
    threads: usize,
    points: impl IntoIterator<Item = usize>,
    what: impl Fn(usize) -> What,
) -> Series {
    let mut series = Series::new();
    let mut best = Figure::default();
    for point in points {
        let beside = What::Raw(exchange, if point == 1 { 1 } else { threads });
        let figure = figure(seen, what(point), beside, threads);
        if figure.per_s > best.per_s {
            best = figure;
        }
        series.insert(point.to_string(), figure);
    }
    series.insert("saturation".to_owned(), best);
    series
}

/// Medians over the rounds, of this and of its ratio to what stands beside it.
fn figure(seen: &Seen, what: What, beside: What, threads: usize) -> Figure {
    let rounds = |what: What| seen.get(&what).map(Vec::as_slice).unwrap_or_default();
    let over_round = |windows: &[Window], of: fn(&Window) -> f64| {
        mean(&windows.iter().map(of).collect::<Vec<f64>>())
    };
    let each = |what: What, of: fn(&Window) -> f64| -> Vec<f64> {
        rounds(what)
            .iter()
            .map(|windows| over_round(windows, of))
            .collect()
    };
    let alone = match beside {
        What::Raw(exchange, _) => What::Raw(exchange, 1),
        other => other,
    };
    debug_assert!(threads > 0, "the bare loop has a thread");
    let per_s = |window: &Window| window.per_s;
    let p50 = |window: &Window| window.p50_ms;
    let ratios = each(what, per_s)
        .into_iter()
        .zip(each(beside, per_s))
        .map(|(own, raw)| own / raw);
    let added = each(what, p50)
        .into_iter()
        .zip(each(alone, p50))
        .map(|(own, raw)| own - raw);
    Figure {
        per_s: median(each(what, per_s)),
        ratio: median(ratios),
        p50_ms: median(each(what, p50)),
        p99_ms: median(each(what, |window| window.p99_ms)),
        added_p50_ms: median(added),
        cpu: Cpu {
            load_us: median(each(what, |window| window.cpu.load_us)),
            server_us: median(each(what, |window| window.cpu.server_us)),
            bridges_us: median(each(what, |window| window.cpu.bridges_us)),
        },
    }
}
