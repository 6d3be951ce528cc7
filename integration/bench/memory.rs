//! What server and bridges hold in memory, under load by 1,000 drives.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use ekm::bridge::message::Custody;

use crate::load::{self, Template};
use crate::process::{children, mib, pss};
use crate::site::Site;
use crate::token::{Kind, Token};

/// Drives whose keys are all used.
const DRIVES: u32 = 1_000;

/// Connections that ask for them.
const CONNECTIONS: usize = 16;

/// What server and bridges together may hold, bytes.
const MOST: u64 = 80 << 20;

/// Pause between two looks at the memory.
const LOOK: Duration = Duration::from_secs(10);

/// Arguments.
#[derive(Debug, Args)]
pub(crate) struct Memory {
    /// The program to measure, a release build.
    #[arg(long)]
    ekm: PathBuf,
    /// How long the load lasts.
    #[arg(long, default_value_t = 10)]
    minutes: u64,
}

impl Memory {
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
        let mut requests: Vec<Template> = Vec::new();
        for number in 1..=DRIVES {
            let drive = site.dummy(number, "KEK2048").await?;
            let (resolve, _) = site.cartridge(&drive).await?;
            // New cartridges as well as old ones, so that the history grows.
            if number % 10 == 0 {
                requests.push(site.create(&drive)?);
            }
            requests.push(resolve);
        }
        let length = Duration::from_secs(self.minutes * 60);
        let mut together = Vec::new();
        let start = Instant::now();
        println!("{DRIVES} drives, {CONNECTIONS} connections; 9 of 10 requests are resolves\n");
        println!("| minute | per second | server PSS MiB | bridge PSS MiB | together |");
        println!("|---:|---:|---:|---:|---:|");
        while start.elapsed() < length {
            let seen = load::window(&site, CONNECTIONS, &requests, LOOK).await?;
            let server = pss(site.pid())?;
            let bridges = children(site.pid())
                .into_iter()
                .map(pss)
                .sum::<anyhow::Result<u64>>()?;
            println!(
                "| {:.1} | {:.0} | {:.1} | {:.1} | {:.1} |",
                start.elapsed().as_secs_f64() / 60.0,
                seen.per_s,
                mib(server),
                mib(bridges),
                mib(server + bridges)
            );
            together.push(server + bridges);
        }
        verdict(&together)
    }
}

/// What the looks come to: the most that was held, and whether it still grew. Bridges are renewed
/// after a number of exchanges, so what counts is how high the peaks are, a third of the time each.
///
/// # Errors
/// It was more than [`MOST`], or the peaks of the last third are higher than those before.
fn verdict(together: &[u64]) -> anyhow::Result<()> {
    let peak = |part: &[u64]| part.iter().copied().max().unwrap_or_default();
    let (before, last) = together.split_at(together.len() * 2 / 3);
    let (before, last) = (peak(before), peak(last));
    let most = before.max(last);
    println!(
        "\nat most {:.1} MiB together; {:.1} in the first two thirds of the time, {:.1} in the last",
        mib(most),
        mib(before),
        mib(last)
    );
    anyhow::ensure!(most < MOST, "that is more than {:.0} MiB", mib(MOST));
    anyhow::ensure!(
        last <= before + before / 20,
        "it still grew; measure for longer, and if it goes on, look for what is kept"
    );
    Ok(())
}
