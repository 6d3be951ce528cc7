//! `ekm restore`

use std::path::PathBuf;

use super::backup::{not_in_it, passphrase};
use super::{Context, output, runtime, times};
use crate::backup::restore::{self, Asked, Restored};

/// Brings a backup back: the whole file is read and verified first, and where
/// anything is wrong with it, or something stands in its place already, nothing
/// is changed.
///
/// The configuration goes to the directory of --to (or where --config says), and
/// everything else beside it as it was. A state from PostgreSQL goes back into the
/// database that the configuration names, which must be empty, or into SQLite
/// (--sqlite). What is not in a backup, the PINs first of all, is said at the end.
#[derive(Debug, clap::Args)]
pub(super) struct Restore {
    /// The backup.
    file: PathBuf,
    /// The directory that it goes to; made where there is none.
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
    /// A file whose first line is the passphrase; without it, you are asked.
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// What was elsewhere than beside the configuration goes back to where it was; without this, below elsewhere/.
    #[arg(long)]
    in_place: bool,
    /// What is there is moved aside (*.before-restore-…) instead of being in the way.
    #[arg(long)]
    overwrite: bool,
    /// The state goes into SQLite also where it was in PostgreSQL.
    #[arg(long)]
    sqlite: bool,
    /// Only verifies the file and says what is in it.
    #[arg(long, conflicts_with_all = ["to", "in_place", "overwrite", "sqlite"])]
    look: bool,
}

impl Restore {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<()> {
        let passphrase = passphrase(self.passphrase_file.as_deref(), false)?;
        if self.look {
            return self.look(context, &passphrase);
        }
        let config = match &self.to {
            Some(directory) => directory.join("ekm.toml"),
            None => context.config.clone(),
        };
        let operator = format!("operator:uid {}", rustix::process::getuid().as_raw());
        let asked = Asked {
            operator: &operator,
            file: &self.file,
            passphrase: &passphrase,
            config: &config,
            in_place: self.in_place,
            overwrite: self.overwrite,
            sqlite: self.sqlite,
        };
        let restored = runtime()?.block_on(restore::restore(&asked))?;
        if context.json {
            return output::json(&serde_json::json!({
                "manifest": restored.manifest,
                "totals": restored.totals,
                "state": restored.state,
                "aside": restored.aside,
                "elsewhere": restored.elsewhere,
                "unrecorded": restored.unrecorded,
            }));
        }
        let Restored {
            manifest,
            totals,
            state,
            aside,
            elsewhere,
            detached,
            unrecorded,
        } = restored;
        output::say(&format!(
            "The backup of {} from {} is back: {} files, {} rows of state in {state}",
            manifest.node,
            times::shown(manifest.at),
            totals.files,
            totals.rows
        ))?;
        for (path, moved) in aside {
            output::say(&format!(
                "{} was moved to {}",
                path.display(),
                moved.display()
            ))?;
        }
        for (was, is) in elsewhere {
            output::say(&format!(
                "{} is now {}: put it back, or change {}",
                was.display(),
                is.display(),
                config.display()
            ))?;
        }
        if detached {
            output::say(&format!(
                "Take [database] out of {}: the state is in SQLite now",
                config.display()
            ))?;
        }
        if let Some(why) = unrecorded {
            output::say(&format!(
                "The audit log does not say that it was brought back: {why}"
            ))?;
        }
        not_in_it(&manifest.missing)?;
        output::say(&format!(
            "Next: put back what is missing, then ekm config check {0}, ekm --config {0} audit verify, ekm --config {0} serve",
            config.display()
        ))
    }

    fn look(&self, context: &Context, passphrase: &secrecy::SecretString) -> anyhow::Result<()> {
        let (look, totals) = runtime()?.block_on(restore::look(&self.file, passphrase))?;
        let Some(manifest) = look.manifest else {
            return Ok(());
        };
        if context.json {
            return output::json(&serde_json::json!({
                "manifest": manifest,
                "totals": totals,
                "files": look.places,
            }));
        }
        let keks: Vec<String> = manifest
            .keks
            .iter()
            .map(|kek| format!("{} ({})", kek.label, kek.token))
            .collect();
        output::fields(&[
            ("whole", "yes: read to its end".to_owned()),
            ("server", manifest.node.clone()),
            ("made", times::shown(manifest.at)),
            ("by ekm", manifest.ekm.clone()),
            (
                "state",
                format!("{}, {} rows", manifest.database, totals.rows),
            ),
            ("keks", keks.join(", ")),
            ("pins", output::yes(Some(manifest.pins)).to_owned()),
        ])?;
        for place in &look.places {
            output::say(&format!("  {place}"))?;
        }
        not_in_it(&manifest.missing)
    }
}
