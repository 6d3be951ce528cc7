//! `ekm sync`

use super::{Context, output, site};
use crate::admin::{Command, Reply};
use crate::sync::compare::{Differences, named};
use crate::sync::{Ask, Mode, SyncReport, What};

/// Most rows that stay or are left out which are told of.
const TOLD: usize = 20;

/// Takes in what another server has (EKM's sync).
///
/// The peer is one of [[sync.from]] in ekm.toml, and must name this server in
/// its own [sync] serve. Nothing of the peer's is changed, and no token is
/// touched: keys are compared by their hashes, and what is missing is listed.
///
/// With --merge the newest row of each drive stands, and a deletion where both
/// are of one moment: a drive that was deleted on either server gets no key
/// from this one any more. With --rewrite the drive table and the defaults
/// become the peer's; drives that only this server has are deleted. The history
/// is merged in both: nothing of it is ever changed or removed.
///
/// See what it would do first: --dry-run.
#[derive(Debug, clap::Args)]
pub(super) struct SyncCommand {
    /// The peer: server:NAME, or NAME.
    #[arg(long, value_name = "PEER")]
    from: String,
    /// The newest row stands; without this and --rewrite, as ekm.toml says.
    #[arg(long)]
    merge: bool,
    /// The peer's rows stand.
    #[arg(long, conflicts_with = "merge")]
    rewrite: bool,
    /// Which tables; without this, as ekm.toml says. config: the default labels; KEKs, partners and policy are compared.
    #[arg(long)]
    what: Option<What>,
    /// Says what would change, and changes nothing.
    #[arg(long)]
    dry_run: bool,
    /// Also where the clocks are more than two minutes apart, or a rewrite would empty the drive table.
    #[arg(long)]
    force: bool,
}

impl SyncCommand {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<()> {
        let Self {
            from,
            merge,
            rewrite,
            what,
            dry_run,
            force,
        } = self;
        let mode = match (merge, rewrite) {
            (true, _) => Some(Mode::Merge),
            (false, true) => Some(Mode::Rewrite),
            (false, false) => None,
        };
        let ask = Ask {
            from,
            what,
            mode,
            dry_run,
            force,
        };
        let report = match site::execute(context, Command::Sync(ask))? {
            Reply::Synced(report) => report,
            other => return site::out_of_turn(&other),
        };
        if context.json {
            return output::json(&report);
        }
        show(&report)
    }
}

fn show(report: &SyncReport) -> anyhow::Result<()> {
    if !report.drives.is_empty() {
        output::table(
            &["drive", "change", "what"],
            report.drives.iter().map(|drive| {
                vec![
                    drive.serial.to_string(),
                    drive.change.clone(),
                    drive.detail.clone(),
                ]
            }),
        )?;
        output::say("")?;
    }
    if let Some(defaults) = &report.defaults {
        output::say(&format!("defaults: {}", named(defaults)))?;
    }
    let tense = if report.dry_run {
        "nothing was changed; it would be"
    } else {
        "done"
    };
    output::paragraph(&format!("{}: {tense}: {}", report.peer, report.summary()))?;
    for left in report.left.iter().take(TOLD) {
        output::paragraph(&format!("- {left}"))?;
    }
    if let Some(more) = report.left.len().checked_sub(TOLD).filter(|more| *more > 0) {
        output::say(&format!("- and {more} more (--json has all)"))?;
    }
    if report.history.is_some_and(|history| history.anew) {
        output::paragraph(
            "The peer's history is not the one that was read before (its state was restored, or is a new one), so it was read from its beginning.",
        )?;
    }
    differences(&report.differences)
}

fn differences(found: &Differences) -> anyhow::Result<()> {
    let Differences {
        missing_keks,
        labels,
        unknown_keks,
        partners,
        defaults,
        policy,
        states,
        chain,
        not_seen,
    } = found;
    let mut rows = Vec::new();
    let mut add = |what: &str, which: String, detail: String| {
        rows.push(vec![what.to_owned(), which, detail]);
    };
    let short = |hash: &crate::key::KekHash| hash.to_string().chars().take(16).collect::<String>();
    for one in labels {
        let detail = format!("{} here, {} there", short(&one.ours), short(&one.theirs));
        add("label of two keys", one.label.to_string(), detail);
    }
    for kek in missing_keks {
        add(
            "KEK on no token here",
            kek.label.to_string(),
            short(&kek.hash),
        );
    }
    for kek in unknown_keks {
        let detail = format!("{}, and on no token there", short(&kek.hash));
        add("KEK not known here", kek.label.to_string(), detail);
    }
    for kek in partners {
        let detail = "confirm its certificate here: ekm kek partner add".to_owned();
        add("partner", kek.label.to_string(), detail);
    }
    if let Some(differ) = defaults {
        let detail = format!(
            "{} here, {} there",
            named(&differ.ours),
            named(&differ.theirs)
        );
        add("defaults", String::new(), detail);
    }
    for one in states {
        let detail = format!("{} here, {} there", one.ours, one.theirs);
        add("state of a KEK", one.label.to_string(), detail);
    }
    for one in policy {
        let detail = format!("{} here, {} there", one.ours, one.theirs);
        add("policy", one.key.clone(), detail);
    }
    if !rows.is_empty() {
        output::say("")?;
        output::table(&["differs", "which", "how"], rows)?;
    }
    if let Some(chain) = chain {
        output::paragraph(&format!("The peer's audit log: {chain}."))?;
    }
    if !not_seen.is_empty() {
        output::paragraph(&format!(
            "Not looked at, and may hold what is missing: {}.",
            not_seen.join(", ")
        ))?;
    }
    Ok(())
}
