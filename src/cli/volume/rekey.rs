//! `ekm volume rekey`

use std::thread::sleep;
use std::time::Duration;

use anyhow::bail;
use indicatif::{ProgressBar, ProgressStyle};
use uuid::Uuid;

use super::find::Filters;
use crate::admin::{Command, MOST_RATE, OLD_EEDKS, RekeyAct, RekeySeen, RekeyWanted, Reply};
use crate::cli::{Context, output, site, times};
use crate::key::{KekRef, KeyLabel};
use crate::store::RekeyState;
use crate::volser::Volser;

/// Between two looks at how far it is.
const LOOK: Duration = Duration::from_millis(300);

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Rekey {
    /// A volume; may be given again.
    #[arg(long, value_name = "VOLSER")]
    volser: Vec<Volser>,
    /// Volumes with an EEDK under this KEK. Without --kek2 it alone gives way, to --kek1: the other
    /// EEDK of a volume is made again under its own KEK.
    #[arg(long, value_name = "LABEL", conflicts_with = "volser")]
    from_kek: Option<KeyLabel>,
    #[command(flatten)]
    filters: Filters,
    /// All that the filters find. Without it only their number is said.
    #[arg(long)]
    all_of: bool,
    /// First new KEK: LABEL, LABEL:label or LABEL:hash.
    #[arg(long, value_name = "LABEL[:label|:hash]", required_unless_present_any = ["status", "resume", "cancel"])]
    kek1: Option<KekRef>,
    /// Second new KEK.
    #[arg(long, value_name = "LABEL[:label|:hash]")]
    kek2: Option<KekRef>,
    /// Most volumes a second, such as 20 or 20/s; from 1 to 100000. Drives come first in any case.
    #[arg(long, value_name = "N/s", value_parser = rate)]
    rate: Option<u32>,
    /// Begins it and does not wait for its end.
    #[arg(long)]
    no_wait: bool,
    /// Shows how far rekeys are, or one of them.
    #[arg(long, value_name = "ID", value_parser = id, num_args = 0..=1, conflicts_with_all = ["kek1", "resume", "cancel"])]
    status: Option<Option<Uuid>>,
    /// Begins a rekey again that was cancelled, was stopped, or has failures; what is done stays.
    #[arg(long, value_name = "ID", value_parser = id, conflicts_with_all = ["kek1", "cancel"])]
    resume: Option<Uuid>,
    /// Ends a rekey; what is done stays.
    #[arg(long, value_name = "ID", value_parser = id, conflicts_with = "kek1")]
    cancel: Option<Uuid>,
}

fn id(text: &str) -> Result<Uuid, String> {
    text.parse()
        .map_err(|_| "expected an id from ekm volume rekey --status".to_owned())
}

fn rate(text: &str) -> Result<u32, String> {
    let number = text.strip_suffix("/s").unwrap_or(text);
    number
        .parse::<u32>()
        .ok()
        .filter(|rate| (1..=MOST_RATE).contains(rate))
        .ok_or_else(|| {
            format!(
                "expected volumes a second from 1 to {MOST_RATE}, such as 20/s, got {text:?}; leave --rate out for no limit"
            )
        })
}

impl Rekey {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<()> {
        let Self {
            volser,
            from_kek,
            filters,
            all_of,
            kek1,
            kek2,
            rate,
            no_wait,
            status,
            resume,
            cancel,
        } = self;
        let act = match (status, resume, cancel, kek1) {
            (Some(id), ..) => {
                let jobs = ask(context, RekeyAct::Status(id))?;
                return shown(context, &jobs, id.is_some());
            }
            (_, Some(id), ..) => RekeyAct::Resume(id),
            (_, _, Some(id), _) => {
                let jobs = ask(context, RekeyAct::Cancel(id))?;
                return shown(context, &jobs, true);
            }
            (.., Some(kek1)) => RekeyAct::Start(Box::new(RekeyWanted {
                volsers: volser,
                filter: filters.filter(None, from_kek),
                all_of,
                kek1,
                kek2,
                rate,
            })),
            (.., None) => bail!("say the new KEK: --kek1 LABEL"),
        };
        let jobs = ask(context, act)?;
        let [begun] = jobs.as_slice() else {
            return shown(context, &jobs, true);
        };
        if no_wait {
            shown(context, &jobs, true)?;
        } else {
            let ended = wait(context, begun.clone())?;
            shown(context, std::slice::from_ref(&ended), true)?;
            if ended.job.state != RekeyState::Done || ended.job.count.failed > 0 {
                bail!(
                    "not everything is rekeyed; mend what is said above, then: ekm volume rekey --resume {}",
                    ended.job.id
                );
            }
        }
        if context.json {
            return Ok(());
        }
        output::say("")?;
        output::paragraph(OLD_EEDKS)
    }
}

fn ask(context: &Context, act: RekeyAct) -> anyhow::Result<Vec<RekeySeen>> {
    match site::execute(context, Command::VolumeRekey(act))? {
        Reply::Rekeys(jobs) => Ok(jobs),
        Reply::RekeyWould { rows, all } => {
            bail!("{}", would(rows, all))
        }
        other => site::out_of_turn(&other),
    }
}

/// Shows how far it is until it ends. It goes on where this is left.
fn wait(context: &Context, begun: RekeySeen) -> anyhow::Result<RekeySeen> {
    let bar = ProgressBar::new(begun.job.total);
    if let Ok(style) =
        ProgressStyle::with_template("{bar:30} {pos} of {len} {msg} {elapsed}, {eta} to go")
    {
        bar.set_style(style);
    }
    let mut seen = begun;
    while seen.job.state == RekeyState::Running {
        let count = &seen.job.count;
        // More may come to light than was counted.
        bar.set_length(seen.job.total.max(count.looked));
        bar.set_position(count.looked);
        let waits = seen.job.why.as_ref();
        bar.set_message(match (waits, count.failed) {
            (Some(why), _) => format!("waits: {why}"),
            (None, 0) => String::new(),
            (None, failed) => format!("{failed} failed"),
        });
        sleep(LOOK);
        let mut jobs = ask(context, RekeyAct::Status(Some(seen.job.id)))?;
        let Some(now) = jobs.pop() else {
            bail!("the rekey {} is gone from the state", seen.job.id);
        };
        seen = now;
    }
    bar.finish_and_clear();
    Ok(seen)
}

fn shown(context: &Context, jobs: &[RekeySeen], whole: bool) -> anyhow::Result<()> {
    if context.json {
        return output::json(&jobs);
    }
    output::table_with_names(
        &["rekey", "began"],
        &["rekey", "state", "rekeyed", "skipped", "failed", "began"],
        jobs.iter().map(|RekeySeen { job, .. }| {
            vec![
                job.id.to_string(),
                state(job.state, job.count.failed),
                job.count.done.to_string(),
                job.count.skipped.to_string(),
                job.count.failed.to_string(),
                times::shown(job.began),
            ]
        }),
    )?;
    if !whole {
        return Ok(());
    }
    for RekeySeen { job, failures } in jobs {
        if let Some(why) = &job.why {
            output::paragraph(&format!("{}: {why}", job.state))?;
        }
        for failure in failures {
            output::paragraph(&format!("{}: {}", failure.volser, failure.reason))?;
        }
    }
    Ok(())
}

/// What is said where only the number is asked for.
fn would(rows: usize, all: bool) -> String {
    match (rows, all) {
        (0, _) => "no set of EEDKs fits, and nothing was done".to_owned(),
        (1, true) => "1 set of EEDKs fits, and nothing was done; say --all-of to rekey the volume that it is of".to_owned(),
        (rows, all) => {
            let more = if all { "" } else { " or more" };
            format!(
                "{rows}{more} sets of EEDKs fit, and nothing was done; say --all-of to rekey the volumes that they are of"
            )
        }
    }
}

/// The state of a rekey; one at its end that left some out is not simply done.
fn state(state: RekeyState, failed: u64) -> String {
    match (state, failed) {
        (RekeyState::Done, 1..) => format!("{state}, {failed} failed"),
        (state, _) => state.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rekey_with_failures_is_not_simply_done() {
        assert_eq!(state(RekeyState::Done, 0), "done");
        assert_eq!(state(RekeyState::Done, 1), "done, 1 failed");
        assert_eq!(state(RekeyState::Running, 2), "running");
    }

    #[test]
    fn what_would_be_rekeyed_is_said_by_number() {
        assert!(would(0, true).starts_with("no set of EEDKs fits,"));
        assert!(would(1, true).starts_with("1 set of EEDKs fits,"));
        assert!(would(2, true).starts_with("2 sets of EEDKs fit,"));
        assert!(would(9, false).starts_with("9 or more sets of EEDKs fit,"));
    }

    #[test]
    fn a_rate_has_bounds_and_the_error_says_them() {
        assert_eq!(rate("20"), Ok(20));
        assert_eq!(rate("20/s"), Ok(20));
        assert_eq!(rate("100000/s"), Ok(MOST_RATE));
        for bad in ["0", "100001", "2000000000/s", "99999999999", "-1", "many"] {
            let error = rate(bad).unwrap_err();
            assert!(error.contains("from 1 to 100000"), "{error}");
        }
    }
}
