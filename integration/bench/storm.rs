//! 1,000 drives that mount in the same second: as 1,000 peers, and as one
//! proxy that speaks for them all. Meanwhile another peer asks one thing at a
//! time.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use ekm::bridge::message::Custody;
use futures_util::future::join_all;
use rustls::ClientConfig;
use serde::Serialize;

use crate::load::{Connection, Template};
use crate::sample::quantile;
use crate::site::Site;
use crate::token::{Kind, Token};

/// The other peer's drive.
const BYSTANDER: u32 = 999_999;

/// How many drives mount, where nothing else is said.
const DRIVES: u32 = 1_000;

/// Connections of the proxy, where nothing else is said.
const PROXY_CONNECTIONS: usize = 64;

/// Arguments.
#[derive(Debug, Args)]
pub(crate) struct Storm {
    /// The program to measure, a release build.
    #[arg(long)]
    ekm: PathBuf,
    /// How many drives mount.
    #[arg(long, default_value_t = DRIVES)]
    drives: u32,
    /// Connections of the proxy.
    #[arg(long, default_value_t = PROXY_CONNECTIONS)]
    proxy_connections: usize,
}

/// What came of one storm.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Outcome {
    /// Who asked.
    pub(crate) name: String,
    /// Drives that got their key.
    pub(crate) got: usize,
    /// Connections and requests that failed.
    pub(crate) refused: usize,
    /// From the first request until none was left, seconds.
    pub(crate) all_s: f64,
    /// Half of those that got their key had it in no more, seconds.
    pub(crate) p50_s: f64,
    /// 99 of 100 of them had it in no more, seconds.
    pub(crate) p99_s: f64,
    /// p99 of the other peer's requests before the storm, milliseconds.
    pub(crate) other_p99_alone_ms: f64,
    /// p99 of its requests in the storm, milliseconds.
    pub(crate) other_p99_in_the_storm_ms: f64,
}

/// A drive that waits for the signal.
struct Mount {
    tls: Arc<ClientConfig>,
    resolve: Template,
}

impl Storm {
    /// The storm with which a run ends.
    pub(crate) fn over(ekm: &Path) -> Self {
        Self {
            ekm: ekm.to_owned(),
            drives: DRIVES,
            proxy_connections: PROXY_CONNECTIONS,
        }
    }

    /// Makes a token, a site and the drives, and has them mount: as peers,
    /// then behind the proxy.
    pub(crate) fn measure(&self) -> anyhow::Result<Vec<Outcome>> {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(self.mount())
    }

    async fn mount(&self) -> anyhow::Result<Vec<Outcome>> {
        let token = Token::new(&self.ekm, Kind::Softhsm)?;
        let site = Site::start(&self.ekm, &token).await?;
        site.kek("KEK2048", 2048, Custody::Token).await?;
        let other = site.drive(BYSTANDER, "KEK2048").await?;
        let (other_resolve, _) = site.cartridge(&other).await?;
        let other = Mount {
            tls: site.itself(&other)?,
            resolve: other_resolve,
        };
        let mut mounts = Vec::new();
        for number in 1..=self.drives {
            let drive = site.dummy(number, "KEK2048").await?;
            let (resolve, _) = site.cartridge(&drive).await?;
            mounts.push(Mount {
                tls: site.itself(&drive)?,
                resolve,
            });
        }
        let peers = Self::peers(&site, &mounts);
        let name = format!("{} peers, a connection each", self.drives);
        let of_peers = Self::beside(&site, &other, name, peers).await?;
        let proxy = self.proxy(&site, &mounts);
        let name = format!("one proxy, {} connections", self.proxy_connections);
        let of_proxy = Self::beside(&site, &other, name, proxy).await?;
        Ok(vec![of_peers, of_proxy])
    }

    /// Every drive connects by itself within one second.
    async fn peers(site: &Site, mounts: &[Mount]) -> Vec<anyhow::Result<Duration>> {
        let mut spread = 0_u64;
        join_all(mounts.iter().map(|mount| {
            // Some order that is none, over one second.
            spread = (spread + 617) % 1_000;
            let wait = Duration::from_millis(spread);
            async move {
                tokio::time::sleep(wait).await;
                let start = Instant::now();
                let mut connection =
                    Connection::open(&site.address, Arc::clone(&mount.tls)).await?;
                connection.ask(&mut mount.resolve.clone()).await?;
                Ok(start.elapsed())
            }
        }))
        .await
    }

    /// All requests are there at once, and the proxy's connections work them off.
    async fn proxy(&self, site: &Site, mounts: &[Mount]) -> Vec<anyhow::Result<Duration>> {
        let start = Instant::now();
        let queue = std::sync::Mutex::new(mounts.iter());
        let tls = site.proxy();
        let working = (0..self.proxy_connections).map(|_| async {
            let mut took = Vec::new();
            let open = match &tls {
                Ok(tls) => Connection::open(&site.address, Arc::clone(tls)).await,
                Err(error) => Err(anyhow::anyhow!("{error}")),
            };
            let mut connection = match open {
                Ok(connection) => connection,
                Err(error) => return vec![Err(error)],
            };
            loop {
                let next = queue
                    .lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner)
                    .next();
                let Some(mount) = next else { return took };
                let asked = connection.ask(&mut mount.resolve.clone()).await;
                took.push(asked.map(|_| start.elapsed()));
            }
        });
        join_all(working).await.into_iter().flatten().collect()
    }

    /// The storm, with the other peer asking before it and during it.
    async fn beside(
        site: &Site,
        other: &Mount,
        name: String,
        storm: impl Future<Output = Vec<anyhow::Result<Duration>>>,
    ) -> anyhow::Result<Outcome> {
        let mut connection = Connection::open(&site.address, Arc::clone(&other.tls)).await?;
        let mut request = other.resolve.clone();
        let mut alone = Vec::new();
        for _ in 0..200 {
            alone.push(connection.ask(&mut request).await?);
        }
        let over = AtomicBool::new(false);
        let start = Instant::now();
        let (outcomes, meanwhile) = futures_util::future::join(
            async {
                let outcomes = storm.await;
                over.store(true, Ordering::Relaxed);
                outcomes
            },
            async {
                let mut took = Vec::new();
                while !over.load(Ordering::Relaxed) {
                    took.push(connection.ask(&mut request).await?);
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Ok::<_, anyhow::Error>(took)
            },
        )
        .await;
        let all = start.elapsed();
        let mut meanwhile = meanwhile?;
        let refused = outcomes.iter().filter(|outcome| outcome.is_err()).count();
        if let Some(error) = outcomes.iter().find_map(|outcome| outcome.as_ref().err()) {
            eprintln!("the first that was refused: {error:#}");
        }
        let mut took: Vec<Duration> = outcomes.into_iter().flatten().collect();
        took.sort_unstable();
        alone.sort_unstable();
        meanwhile.sort_unstable();
        Ok(Outcome {
            name,
            got: took.len(),
            refused,
            all_s: all.as_secs_f64(),
            p50_s: quantile(&took, 50) / 1_000.0,
            p99_s: quantile(&took, 99) / 1_000.0,
            other_p99_alone_ms: quantile(&alone, 99),
            other_p99_in_the_storm_ms: quantile(&meanwhile, 99),
        })
    }
}
