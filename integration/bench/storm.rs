//! 1,000 drives that mount in the same second: as 1,000 peers, and as one
//! proxy that speaks for them all. Meanwhile another peer asks one thing at a
//! time.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use ekm::bridge::message::Custody;
use futures_util::future::join_all;
use rustls::ClientConfig;

use crate::load::{Connection, Template};
use crate::sample::quantile;
use crate::site::Site;
use crate::token::{Kind, Token};

/// The other peer's drive.
const BYSTANDER: u32 = 999_999;

/// Arguments.
#[derive(Debug, Args)]
pub(crate) struct Storm {
    /// The program to measure, a release build.
    #[arg(long)]
    ekm: PathBuf,
    /// How many drives mount.
    #[arg(long, default_value_t = 1_000)]
    drives: u32,
    /// Connections of the proxy.
    #[arg(long, default_value_t = 64)]
    proxy_connections: usize,
}

/// A drive that waits for the signal.
struct Mount {
    tls: Arc<ClientConfig>,
    resolve: Template,
}

impl Storm {
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(self.measure())
    }

    async fn measure(&self) -> anyhow::Result<()> {
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
        println!(
            "| storm | got their key | refused | all within s | p50 s | p99 s | other peer's p99 ms, alone | in the storm |"
        );
        println!("|---|---:|---:|---:|---:|---:|---:|---:|");
        let peers = Self::peers(&site, &mounts);
        Self::beside(&site, &other, "1,000 peers, a connection each", peers).await?;
        let proxy = self.proxy(&site, &mounts);
        let name = format!("one proxy, {} connections", self.proxy_connections);
        Self::beside(&site, &other, &name, proxy).await
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
        name: &str,
        storm: impl Future<Output = Vec<anyhow::Result<Duration>>>,
    ) -> anyhow::Result<()> {
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
        println!(
            "| {name} | {} | {refused} | {:.1} | {:.2} | {:.2} | {:.1} | {:.1} |",
            took.len(),
            all.as_secs_f64(),
            quantile(&took, 50) / 1_000.0,
            quantile(&took, 99) / 1_000.0,
            quantile(&alone, 99),
            quantile(&meanwhile, 99)
        );
        Ok(())
    }
}
