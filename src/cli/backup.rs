//! `ekm backup`

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use secrecy::{ExposeSecret as _, SecretString};
use time::OffsetDateTime;

use super::kek::passwords::first_line;
use super::{Context, Found, output, runtime, site, times};
use crate::admin::{BackupStatus, Command, Reply};
use crate::backup::make::{self, Held, Made};
use crate::backup::{BackedKek, seal};
use crate::config::Config;
use crate::store::{Backup, Sql};

/// Makes a backup of everything that is outside the HSMs, beside a running
/// server or without one: the state, the configuration, this server's
/// certificates and keys, PIN ledgers, audit records, key files, and the
/// database of an embedded token, which is the only copy of its KEKs.
///
/// The file is encrypted under a passphrase (Argon2id, AES-256-GCM), read back
/// after it was written, and in its place only when it is whole. Without the
/// passphrase it is worth nothing: keep that apart, and keep it. PINs are not in
/// it unless you say so. `ekm restore` brings it back. Where an embedded token's database
/// should be in it and is missing, the file is made without it, with a warning and exit code 3.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct BackupCommand {
    /// The file to make; there must be none yet.
    #[arg(required = true)]
    file: Option<PathBuf>,
    /// A file whose first line is the passphrase, 12 characters at least; without it, you are asked.
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// PINs and passwords that are in files go into it too: whoever has the passphrase has the keys.
    #[arg(long)]
    with_pins: bool,
    /// Leaves the audit records out, where they are archived by other means.
    #[arg(long)]
    without_audit: bool,
    #[command(subcommand)]
    about: Option<About>,
}

#[derive(Debug, clap::Subcommand)]
enum About {
    /// Which backups were made, and which KEKs are in none.
    Status,
}

impl BackupCommand {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<()> {
        match (&self.about, &self.file) {
            (Some(About::Status), _) => status(context),
            (None, Some(file)) => self.make(context, file),
            (None, None) => bail!("name the file to make: ekm backup FILE"),
        }
    }

    fn make(&self, context: &Context, file: &Path) -> anyhow::Result<()> {
        let config = Config::load(&context.config)?;
        let passphrase = passphrase(self.passphrase_file.as_deref(), true)?;
        seal::check(&passphrase)?;
        let file = std::path::absolute(file)?;
        let id = uuid::Uuid::new_v4();
        let at = OffsetDateTime::now_utc();
        let begin = Command::BackupBegin {
            id,
            file: file.display().to_string(),
        };
        let keks = match site::execute(context, begin)? {
            Reply::BackupBegun(keks) => keks,
            other => return site::out_of_turn(&other),
        };
        let made = self.made(context, &config, &file, &passphrase, (id, at), keks);
        let ended = match &made {
            Ok(made) => Ok(Box::new(noted(made, &file))),
            Err(error) => Err(format!("{error:#}")),
        };
        let told = site::execute(context, Command::BackupMade { id, ended });
        let made = made?;
        told.with_context(|| {
            format!(
                "the backup {} was made and read back, but the state does not know of it",
                file.display()
            )
        })?;
        show(context, &made, &file)?;
        if made.lost.is_empty() {
            return Ok(());
        }
        for lost in &made.lost {
            output::tell(&format!("WARNING: {lost}"));
        }
        Err(Found.into())
    }

    fn made(
        &self,
        context: &Context,
        config: &Config,
        file: &Path,
        passphrase: &SecretString,
        (id, at): (uuid::Uuid, OffsetDateTime),
        keks: Vec<BackedKek>,
    ) -> anyhow::Result<Made> {
        let asked = make::Asked {
            config_path: &context.config,
            config,
            file,
            passphrase,
            with_pins: self.with_pins,
            audit: !self.without_audit,
            id,
            at,
            keks,
        };
        runtime()?.block_on(async {
            let store = Sql::open(&config.state, config.database.as_ref()).await?;
            let made = make::make(&asked, &store).await;
            store.close().await;
            Ok(made?)
        })
    }
}

fn noted(made: &Made, file: &Path) -> Backup {
    Backup {
        id: made.manifest.id,
        at: made.manifest.at,
        server: made.manifest.node.clone(),
        file: file.display().to_string(),
        bytes: made.bytes,
        digest: made.digest.clone(),
        contents: contents(made),
        keks: made.manifest.keks.iter().map(|kek| kek.hash).collect(),
    }
}

fn contents(made: &Made) -> String {
    format!(
        "{} files, {} rows of state, {}",
        made.totals.files,
        made.totals.rows,
        if made.manifest.pins {
            "PINs among the files"
        } else {
            "no PINs"
        }
    )
}

fn show(context: &Context, made: &Made, file: &Path) -> anyhow::Result<()> {
    if context.json {
        return output::json(&serde_json::json!({
            "file": file,
            "backup": noted(made, file),
            "keks": made.manifest.keks,
            "missing": made.manifest.missing,
            "warnings": made.lost,
        }));
    }
    output::say(&format!(
        "{}: {} bytes, read back; {}",
        file.display(),
        made.bytes,
        contents(made)
    ))?;
    output::say(&format!("SHA-256 {}", made.digest))?;
    keks_in_it(made)
        .iter()
        .try_for_each(|line| output::say(line))?;
    if made.manifest.pins {
        output::say(
            "PINs are in it: whoever has the file and its passphrase opens every cartridge",
        )?;
    }
    not_in_it(&made.manifest.missing)
}

/// The KEKs that were shown, and the files that have all of a token's, whether it showed any or not.
fn keks_in_it(made: &Made) -> Vec<String> {
    let keks = &made.manifest.keks;
    let labels: Vec<String> = keks
        .iter()
        .map(|kek| format!("{} ({})", kek.label, kek.token))
        .collect();
    let mut lines = Vec::new();
    if !labels.is_empty() {
        lines.push(format!("KEKs in it: {}", labels.join(", ")));
    }
    for Held { name, file } in &made.held {
        let file = file.display();
        lines.push(if keks.iter().any(|kek| kek.token == *name) {
            format!("All KEKs of {name} are in it, by its file {file}")
        } else {
            format!(
                "All KEKs of {name} are in it, by its file {file}; {name} showed none now, and ekm backup status counts only what was shown: where it has any, unlock it and make another backup"
            )
        });
    }
    if lines.is_empty() {
        lines.push(if made.lost.is_empty() {
            "No KEK is in it: those in an HSM are backed up by its maker's means".to_owned()
        } else {
            "No KEK is in it: see the warning".to_owned()
        });
    }
    lines
}

pub(super) fn not_in_it(missing: &[String]) -> anyhow::Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    output::say("Not in it:")?;
    missing
        .iter()
        .try_for_each(|one| output::say(&format!("  {one}")))
}

/// From a file, or typed; twice where it is a new one.
pub(super) fn passphrase(file: Option<&Path>, new: bool) -> anyhow::Result<SecretString> {
    if let Some(path) = file {
        return first_line(path);
    }
    let ask = |prompt: &str| {
        rpassword::prompt_password(prompt)
            .map(SecretString::from)
            .context("cannot ask for the passphrase; give a file with --passphrase-file")
    };
    let typed = ask("Passphrase of the backup: ")?;
    if new {
        let again = ask("The same again: ")?;
        if typed.expose_secret() != again.expose_secret() {
            bail!("the two are not the same; nothing was done");
        }
    }
    Ok(typed)
}

fn status(context: &Context) -> anyhow::Result<()> {
    let status = match site::execute(context, Command::BackupStatus)? {
        Reply::BackupStatus(status) => status,
        other => return site::out_of_turn(&other),
    };
    if context.json {
        return output::json(&status);
    }
    let BackupStatus {
        backups,
        rule,
        keks,
    } = *status;
    if backups.is_empty() {
        output::say("No backup was made yet: ekm backup FILE")?;
    } else {
        output::table_with_names(
            &["made"],
            &["made", "server", "keks", "bytes", "file"],
            backups.iter().map(|backup| {
                vec![
                    times::shown(backup.at),
                    backup.server.clone(),
                    backup.keks.len().to_string(),
                    backup.bytes.to_string(),
                    backup.file.clone(),
                ]
            }),
        )?;
    }
    output::say("")?;
    output::table(
        &["kek", "token", "backed up", "kept"],
        keks.iter().map(|kek| {
            vec![
                kek.label.to_string(),
                kek.tokens.join(", "),
                kek.backed
                    .map_or_else(|| "never".to_owned(), |at| at.date().to_string()),
                if kek.kept { "yes" } else { "NO" }.to_owned(),
            ]
        }),
    )?;
    output::say(&format!(
        "policy.backup_before_serving = \"{rule}\": {}",
        match rule {
            crate::policy::BackupBeforeServing::Off => "a KEK that is not kept is written under",
            crate::policy::BackupBeforeServing::Warn =>
                "a KEK that is not kept is written under, and an alarm is raised",
            crate::policy::BackupBeforeServing::Require =>
                "nothing is written under a KEK that is not kept",
        }
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::frame::Totals;
    use crate::backup::{Manifest, Place};

    #[test]
    fn an_embedded_token_s_keks_are_in_it_also_where_it_is_locked() {
        let mut made = Made {
            bytes: 0,
            digest: String::new(),
            totals: Totals::default(),
            manifest: Manifest {
                version: 1,
                id: uuid::Uuid::new_v4(),
                at: OffsetDateTime::now_utc(),
                node: "ekm1".to_owned(),
                ekm: "0".to_owned(),
                database: "sqlite".to_owned(),
                migrations: Vec::new(),
                state: Place::Beside("state".to_owned()),
                audit: Place::Beside("audit".to_owned()),
                pins: false,
                keks: Vec::new(),
                missing: Vec::new(),
            },
            held: Vec::new(),
            lost: Vec::new(),
        };
        assert!(keks_in_it(&made)[0].contains("its maker's means"));
        made.lost.push("token main: there is no file".to_owned());
        assert_eq!(keks_in_it(&made), ["No KEK is in it: see the warning"]);
        made.held.push(Held {
            name: "main".to_owned(),
            file: "/site/token/token.sql".into(),
        });
        let told = keks_in_it(&made);
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(
            told[0].starts_with("All KEKs of main are in it, by its file /site/token/token.sql"),
            "{told:?}"
        );
    }
}
