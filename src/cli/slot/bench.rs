//! `ekm slot bench`

use std::time::Duration;

use anyhow::bail;
use indicatif::{ProgressBar, ProgressStyle};

use super::subject::Subject;
use crate::bridge::rates::{self, Plan, Work};
use crate::cli::{Context, output, runtime};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Bench {
    #[command(flatten)]
    subject: Subject,

    /// Modulus length of the throw-away KEKs: 2048, 3072 or 4096 bits.
    #[arg(long, default_value_t = 2048, value_parser = bits)]
    bits: u32,

    /// Most sessions of one process; 1, 2, 4 … up to it are measured.
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    sessions: u16,

    /// Most processes; 1, 2, 4 … up to it are measured.
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=16))]
    processes: u16,

    /// Milliseconds for each rate, in each of the three rounds.
    #[arg(long, default_value_t = 500, value_name = "N", value_parser = clap::value_parser!(u64).range(10..=60_000))]
    milliseconds: u64,
}

fn bits(text: &str) -> Result<u32, &'static str> {
    match text {
        "2048" => Ok(2048),
        "3072" => Ok(3072),
        "4096" => Ok(4096),
        _ => Err("a KEK has 2048, 3072 or 4096 bits"),
    }
}

impl Bench {
    pub(super) fn run(&self, context: &Context) -> anyhow::Result<()> {
        let found = self.subject.find(context)?;
        if found.appointment.pin.is_none() {
            bail!("give the user PIN with --pin-file; without a login there is nothing to measure");
        }
        let plan = Plan {
            bits: self.bits,
            sessions: self.sessions.into(),
            processes: self.processes.into(),
            time: Duration::from_millis(self.milliseconds),
        };
        let steps = plan.arrangements().len() * Work::ALL.len() * rates::ROUNDS;
        let bar = ProgressBar::new(u64::try_from(steps).unwrap_or_default());
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}") {
            bar.set_style(style);
        }
        let measured = runtime()?.block_on(rates::bench(
            &found.program()?,
            &found.appointment,
            plan,
            &|step| {
                bar.set_message(step.to_owned());
                bar.inc(1);
            },
        ));
        bar.finish_and_clear();
        let measured = measured?;
        if context.json {
            return output::json(&measured);
        }
        if found.served {
            output::say("a server is using the token; what it did meanwhile is missing here")?;
        }
        show(&measured)
    }
}

fn show(measured: &rates::Bench) -> anyhow::Result<()> {
    output::say(&format!(
        "RSA-{}, per second (median / 99th of a hundred, ms)",
        measured.bits
    ))?;
    let names: Vec<String> = Work::ALL.iter().map(ToString::to_string).collect();
    let head: Vec<&str> = ["processes", "sessions each"]
        .into_iter()
        .chain(names.iter().map(String::as_str))
        .collect();
    output::table(
        &head,
        measured.arrangements.iter().map(|arrangement| {
            let rates = Work::ALL.iter().map(|work| {
                let rate = arrangement.rates.iter().find(|rate| rate.work == *work);
                rate.map_or_else(
                    || "-".to_owned(),
                    |rate| {
                        format!(
                            "{:.0} ({:.2} / {:.2})",
                            rate.per_second,
                            f64::from(rate.p50_us) / 1000.0,
                            f64::from(rate.p99_us) / 1000.0
                        )
                    },
                )
            });
            [
                arrangement.processes.to_string(),
                arrangement.sessions.to_string(),
            ]
            .into_iter()
            .chain(rates)
            .collect()
        }),
    )?;
    for (work, why) in &measured.refused {
        output::say(&format!("{work} was not measured: {why}"))?;
    }
    if let Some(advice) = &measured.advice {
        output::say("")?;
        output::say("# in [session] of the profile")?;
        output::say(&format!("workers = {}", advice.workers))?;
        output::say(&format!("processes = {}", advice.processes))?;
        output::say(&format!("# {}", advice.why))?;
    }
    Ok(())
}
