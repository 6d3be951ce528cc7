//! What a key costs, beside what the token alone would take for it.
//!
//! ```text
//! bench run --ekm target/release/ekm [--quick] [--json FILE] [--table FILE] [--plot FILE]
//! bench memory --ekm target/release/ekm --minutes 10
//! bench storm --ekm target/release/ekm
//! bench history --ekm target/release/ekm
//! bench volumes --directory DIR [--postgres URL]
//! ```
//!
//! Everything runs on this machine over loopback, in a directory that is
//! thrown away. Only ratios to the bare loop of the same run tell anything:
//! windows of the loop and of the server alternate, and medians are taken.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "its figures are what it is run for"
)]

mod history;
mod load;
mod memory;
mod plan;
mod plot;
mod process;
mod raw;
mod report;
mod sample;
mod site;
mod storm;
mod token;
mod volumes;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};

use plan::Plan;
use report::Report;
use token::Kind;

#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Rates and times, as ratios to the token's own; at the end the storm.
    Run(Run),
    /// What server and bridges hold in memory under load by 1,000 drives.
    Memory(memory::Memory),
    /// 1,000 drives that mount in the same second.
    Storm(storm::Storm),
    /// What the look into the history costs a resolve.
    History(history::History),
    /// The history at ten thousand volumes and at ten million.
    Volumes(volumes::Volumes),
    /// The bare loop; the others start it with the module's environment.
    #[command(hide = true)]
    Raw(raw::Raw),
}

#[derive(Debug, Args)]
struct Run {
    /// The program to measure, a release build.
    #[arg(long)]
    ekm: PathBuf,
    /// SoftHSM in process and RSA-2048 only, and no storm.
    #[arg(long)]
    quick: bool,
    /// Where the figures go, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Where the table goes, as Markdown.
    #[arg(long)]
    table: Option<PathBuf>,
    /// Where the plot goes, as SVG.
    #[arg(long)]
    plot: Option<PathBuf>,
    /// Rounds; each has every window once or several times.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Length of a window in milliseconds.
    #[arg(long, default_value_t = 1500)]
    window: u64,
    /// A file that is locked (flock(2)) for each round and for the storm, for
    /// machines whose other work takes the same lock.
    #[arg(long)]
    lock: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().what {
        What::Run(run) => run.run(),
        What::Memory(memory) => memory.run(),
        What::Storm(storm) => {
            print!("{}", report::storm_table(&storm.measure()?));
            Ok(())
        }
        What::History(history) => history.run(),
        What::Volumes(volumes) => volumes.run(),
        What::Raw(raw) => raw.run(),
    }
}

impl Run {
    fn run(&self) -> anyhow::Result<()> {
        let parts: &[(Kind, u32)] = if self.quick {
            &[(Kind::Softhsm, 2048)]
        } else {
            &[
                (Kind::Softhsm, 2048),
                (Kind::Softhsm, 3072),
                (Kind::Softhsm, 4096),
                (Kind::SofthsmBehindP11Kit, 2048),
                (Kind::SofthsmBehindP11Kit, 3072),
                (Kind::SofthsmBehindP11Kit, 4096),
            ]
        };
        let plan = Plan {
            rounds: self.rounds,
            window: Duration::from_millis(self.window),
            lock: self.lock.clone(),
        };
        let mut report = Report::new(&self.ekm)?;
        let measured = self.fill(&mut report, &plan, parts);
        // What fails must not take an hour's figures with it.
        self.tell(&report)?;
        measured
    }

    /// Measures one part after another, and the storm.
    fn fill(&self, report: &mut Report, plan: &Plan, parts: &[(Kind, u32)]) -> anyhow::Result<()> {
        for (kind, bits) in parts {
            eprintln!("{kind}, RSA-{bits}");
            report.parts.push(plan.measure(&self.ekm, *kind, *bits)?);
        }
        if !self.quick {
            report.storms = self.storm(plan)?;
        }
        Ok(())
    }

    fn storm(&self, plan: &Plan) -> anyhow::Result<Vec<storm::Outcome>> {
        eprintln!("mount storm");
        let _turn = plan.turn()?;
        storm::Storm::over(&self.ekm).measure()
    }

    /// Prints the table, and writes the files that were asked for.
    fn tell(&self, report: &Report) -> anyhow::Result<()> {
        let table = report.table();
        println!("{table}");
        for (path, text) in [
            (&self.table, table),
            (&self.json, report.json()?),
            (&self.plot, plot::draw(report)),
        ] {
            if let Some(path) = path {
                std::fs::write(path, text)
                    .with_context(|| format!("cannot write {}", path.display()))?;
            }
        }
        Ok(())
    }
}
