//! What the look into the history costs a resolve: cartridges whose EEDKs are
//! remembered, against cartridges of which each is looked up in the database.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::ensure;
use clap::Args;
use ekm::bridge::message::Custody;

use crate::load;
use crate::sample::{Window, median};
use crate::site::Site;
use crate::token::{Kind, Token};

/// More than a server remembers, so that none is when it comes again.
const CARTRIDGES: usize = 18_000;

/// Few enough to be remembered.
const REMEMBERED: usize = 16;

const CONNECTIONS: usize = 8;

const WINDOW: Duration = Duration::from_secs(3);

/// What the rate with look-ups must be of that without.
const LEAST: f64 = 0.9;

/// Arguments.
#[derive(Debug, Args)]
pub(crate) struct History {
    /// The program to measure, a release build.
    #[arg(long)]
    ekm: PathBuf,
    /// Rounds; each has a window of both.
    #[arg(long, default_value_t = 7)]
    rounds: u32,
}

impl History {
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
        let drive = site.dummy(1, "KEK2048").await?;
        eprintln!("{CARTRIDGES} cartridges are made");
        let mut all = Vec::with_capacity(CARTRIDGES);
        for _ in 0..CARTRIDGES {
            all.push(site.cartridge(&drive).await?.0);
        }
        let few = all.get(..REMEMBERED).unwrap_or_default();
        let mut ratios = Vec::new();
        println!("| round | remembered, per second | looked up, per second | ratio |");
        println!("|---:|---:|---:|---:|");
        // The first warms up.
        for round in 0..=self.rounds {
            let without: Window = load::window(&site, CONNECTIONS, few, WINDOW).await?;
            let with: Window = load::window(&site, CONNECTIONS, &all, WINDOW).await?;
            let ratio = with.per_s / without.per_s;
            if round > 0 {
                println!(
                    "| {round} | {:.0} | {:.0} | {ratio:.2} |",
                    without.per_s, with.per_s
                );
                ratios.push(ratio);
            }
        }
        let ratio = median(ratios);
        println!("\nmedian {ratio:.2}");
        ensure!(ratio >= LEAST, "that is less than {LEAST}");
        Ok(())
    }
}
