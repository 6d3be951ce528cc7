//! `ekm kek retire`, `activate`, `revoke`, `delete`, `impact`

use super::tell;
use crate::admin::{Command, Reply};
use crate::cli::{Context, output, site};
use crate::key::KeyLabel;
use crate::store::{KekState, OnMedium};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Turn {
    /// Its label.
    label: KeyLabel,
    /// Why: for the registry and the audit log.
    #[arg(long)]
    reason: Option<String>,
}

impl Turn {
    pub(super) fn run(self, context: &Context, to: KekState) -> anyhow::Result<()> {
        let Self { label, reason } = self;
        turned(context, Command::KekTurn { label, to, reason })
    }
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Delete {
    /// Its label.
    label: KeyLabel,
    /// Says that you mean it: a key that was destroyed is back only from a copy.
    #[arg(long, required = true)]
    destroy: bool,
    /// Also where cartridges that the history does not know may need it: it was imported, or has opened what was not issued here (ekm kek impact says which).
    #[arg(long)]
    tapes_elsewhere: bool,
}

impl Delete {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<()> {
        let Self {
            label,
            destroy: _,
            tapes_elsewhere,
        } = self;
        turned(
            context,
            Command::KekDelete {
                label,
                tapes_elsewhere,
            },
        )
    }
}

fn turned(context: &Context, command: Command) -> anyhow::Result<()> {
    let turned = match site::execute(context, command)? {
        Reply::KekTurned(turned) => turned,
        other => return site::out_of_turn(&other),
    };
    for warning in &turned.warnings {
        tell(&format!("warning: {warning}"));
    }
    if context.json {
        return output::json(&turned);
    }
    output::fields(&[
        ("label", turned.label.to_string()),
        ("state", turned.standing.state.to_string()),
        ("it was", turned.standing.words()),
        ("public-key hash", format!("sha256:{}", turned.hash)),
    ])
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct ImpactOf {
    /// Its label.
    label: KeyLabel,
    /// Most volumes in the list; the counts are of all.
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: usize,
}

impl ImpactOf {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<()> {
        let Self { label, limit } = self;
        let impact = match site::execute(context, Command::KekImpact { label, limit })? {
            Reply::Impact(impact) => impact,
            other => return site::out_of_turn(&other),
        };
        if context.json {
            return output::json(&impact);
        }
        output::fields(&[
            ("KEK", format!("{} ({})", impact.label, impact.state)),
            ("volumes with an EEDK under it", impact.volumes.to_string()),
            ("  on the cartridge", impact.on_medium.to_string()),
            ("  in the catalog", impact.in_catalog.to_string()),
            ("nothing else here opens", impact.only.to_string()),
            ("given up by name", impact.written_off.to_string()),
        ])?;
        if let Some(why) = &impact.elsewhere {
            output::paragraph(&format!(
                "There may be more, which the history does not know: {why}."
            ))?;
        }
        if impact.list.is_empty() {
            return Ok(());
        }
        output::say("")?;
        output::table_with_names(
            &["dki"],
            &["volser", "dki", "cartridge", "catalog", "also opened by"],
            impact.list.iter().map(|affected| {
                let others = [&affected.medium_other, &affected.catalog_other];
                let mut others: Vec<String> = others
                    .into_iter()
                    .flatten()
                    .map(ToString::to_string)
                    .collect();
                others.dedup();
                vec![
                    affected.volser.to_string(),
                    affected.dki.to_string(),
                    match affected.medium {
                        OnMedium::Yes => "yes",
                        OnMedium::Perhaps => "perhaps",
                        OnMedium::No => "no",
                    }
                    .to_owned(),
                    output::yes(Some(affected.catalog)).to_owned(),
                    if others.is_empty() {
                        "nothing".to_owned()
                    } else {
                        others.join(", ")
                    },
                ]
            }),
        )?;
        let listed = u64::try_from(impact.list.len()).unwrap_or(u64::MAX);
        if listed < impact.volumes {
            output::say(&format!(
                "and {} more (--limit)",
                impact.volumes.saturating_sub(listed)
            ))?;
        }
        Ok(())
    }
}
