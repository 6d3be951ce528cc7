//! `ekm migrate`

mod progress;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::Serialize;

use super::kek::passwords::first_line;
use super::{Context, Found, output, site};
use crate::admin::{Command, ImportedDrive, Reply, Taken, TakenIn};
use crate::config::Config;
use crate::migrate::history::{self, Merged};
use crate::migrate::keys::KeyKind;
use crate::migrate::plan::{self, Plan};
use crate::migrate::stores::Fate;
use crate::migrate::{Places, gather};
use crate::store::Defaults;

/// Drives in one message to the server.
const BATCH: usize = 500;

/// Rows of a table that are shown; --json has all.
const ROWS: usize = 200;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Migrate {
    /// From IBM's EKM 2.1: its configuration, keys, drive table and records.
    ///
    /// Keys and records move; cartridges that IBM's EKM keyed need IBM's EEDK
    /// layout, which is not public, so ekm cannot read them. Without --apply
    /// nothing is written: it shows what it would do. With --apply it writes
    /// ekm.toml where there is none, adds the drives so that they wait for
    /// their enrolment, sets the default labels where there are none, keeps
    /// EKM's records beside the state, and says what is left to do. A second
    /// time changes nothing more, and leaves out the steps that are done.
    ///
    /// Exit code 3 where something is to be decided or mended first (the list
    /// "To be decided or mended", or a drive that is here with other values);
    /// what could be moved is moved all the same.
    Ekm21(Ekm21),
}

/// Where the EKM's files are.
#[derive(Debug, clap::Args)]
pub(super) struct Ekm21 {
    /// EKM's KeyManagerConfig.properties.
    // The id is that of the global --config, which is ekm.toml and has no meaning here.
    #[arg(
        id = "config",
        long = "config",
        value_name = "PROPERTIES",
        required = true
    )]
    properties: PathBuf,

    /// The ekm.toml to write, or that of the site.
    #[arg(
        long,
        env = "EKM_CONFIG",
        value_name = "FILE",
        default_value = "ekm.toml"
    )]
    to: PathBuf,

    #[command(flatten)]
    sources: Sources,

    /// Does it.
    #[arg(long)]
    apply: bool,
}

/// What else an EKM's files need to be found and opened.
#[derive(Debug, clap::Args)]
pub(super) struct Sources {
    /// The drives, as EKM's listdrives -verbose prints them.
    #[arg(long, value_name = "FILE")]
    drive_table: Option<PathBuf>,

    /// EKM's metadata XML, in place of the one that the properties name; may
    /// be given more than once.
    #[arg(long, value_name = "FILE")]
    metadata: Vec<PathBuf>,

    /// The directory that EKM is started in; relative paths are relative to it.
    #[arg(long, value_name = "DIR")]
    home: Option<PathBuf>,

    /// A file with the keystore's password, mode 0600.
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
}

impl Sources {
    /// Reads what there is of the EKM with those properties.
    pub(super) fn gather(&self, properties: &Path) -> anyhow::Result<plan::Sources> {
        let places = Places {
            properties: properties.to_owned(),
            home: self.home.clone(),
            drive_table: self.drive_table.clone(),
            metadata: self.metadata.clone(),
        };
        let password = self.password_file.as_deref().map(first_line).transpose()?;
        let mut sources = gather(&places, password)?;
        let named = |path: &PathBuf| path.display().to_string();
        sources.password_file = self.password_file.as_ref().map(named);
        Ok(sources)
    }
}

/// What was done, or would be.
#[derive(Serialize)]
struct Done {
    applied: bool,
    /// Whether ekm.toml was written (or would be).
    config_written: bool,
    config_path: PathBuf,
    taken_in: TakenIn,
    kept: Option<Merged>,
}

#[derive(Serialize)]
struct Told<'a> {
    #[serde(flatten)]
    plan: &'a Plan,
    #[serde(flatten)]
    done: &'a Done,
}

impl Migrate {
    pub(super) fn run(&self, context: &Context) -> anyhow::Result<()> {
        let Self::Ekm21(ekm) = self;
        let sources = ekm.sources.gather(&ekm.properties)?;
        let plan = Plan::of(&sources);
        let moves = plan
            .keystore
            .is_none_or(|kind| matches!(kind.fate, Fate::Moves));
        if ekm.apply && moves && ekm.sources.password_file.is_some() && sources.keys.is_none() {
            bail!(
                "nothing was done: a password was given, and no keystore could be opened with it: {}",
                sources
                    .notes
                    .iter()
                    .filter(|note| note.starts_with("keys: "))
                    .map(String::as_str)
                    .collect::<Vec<_>>()
                    .join("; ")
            );
        }
        let done = if ekm.apply {
            apply(&ekm.to, &plan, &sources.history)?
        } else {
            look(&ekm.to, &plan)?
        };
        let steps = progress::of(&ekm.to, &plan);
        let plan = plan.left(&sources, &steps);
        if context.json {
            output::json(&Told {
                plan: &plan,
                done: &done,
            })?;
        } else {
            show(&plan)?;
            tell(&plan, &done)?;
        }
        let kept = |taken: &Taken| matches!(taken, Taken::Kept { .. });
        let undecided = !plan.conflicts.is_empty()
            || done.taken_in.defaults.as_ref().is_some_and(kept)
            || done.taken_in.drives.iter().any(|(_, taken)| kept(taken));
        if undecided { Err(Found.into()) } else { Ok(()) }
    }
}

/// Nothing is written: what is there already, where there is a site.
fn look(to: &Path, plan: &Plan) -> anyhow::Result<Done> {
    let mut done = Done {
        applied: false,
        config_written: !to.exists(),
        config_path: to.to_owned(),
        taken_in: TakenIn {
            drives: Vec::new(),
            defaults: None,
        },
        kept: None,
    };
    if to.exists() {
        let config = Config::draft(to)?;
        // Opening a state makes it.
        if config.state.join("state.db").exists() {
            done.taken_in = take_in(&config, plan, false)?;
        }
    }
    Ok(done)
}

fn apply(
    to: &Path,
    plan: &Plan,
    records: &[crate::migrate::metadata::KeyUse],
) -> anyhow::Result<Done> {
    let written = write_new(to, &plan.config)?;
    let config = Config::draft(to)?;
    let taken_in = take_in(&config, plan, true)?;
    let kept = if records.is_empty() {
        None
    } else {
        Some(history::merge(&config.state, records)?)
    };
    Ok(Done {
        applied: true,
        config_written: written,
        config_path: to.to_owned(),
        taken_in,
        kept,
    })
}

/// Writes a file that is not there; false where one is, which is left as it is.
fn write_new(path: &Path, text: &str) -> anyhow::Result<bool> {
    use std::io::Write as _;
    let failed = || format!("cannot write {}", path.display());
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    if path.exists() {
        return Ok(false);
    }
    let mut file = tempfile::NamedTempFile::new_in(folder).with_context(failed)?;
    file.write_all(text.as_bytes()).with_context(failed)?;
    file.as_file().sync_all().with_context(failed)?;
    match file.persist_noclobber(path) {
        Ok(_) => Ok(true),
        Err(error) if error.error.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error.error).with_context(failed),
    }
}

fn take_in(config: &Config, plan: &Plan, apply: bool) -> anyhow::Result<TakenIn> {
    let drives: Vec<ImportedDrive> = plan.imports().cloned().collect();
    let mut batches: Vec<&[ImportedDrive]> = drives.chunks(BATCH).collect();
    if batches.is_empty() {
        batches.push(&[]);
    }
    let mut all = TakenIn {
        drives: Vec::new(),
        defaults: None,
    };
    for (number, batch) in batches.into_iter().enumerate() {
        let command = Command::DriveImport {
            drives: batch.to_vec(),
            // Once is enough.
            defaults: if number == 0 {
                plan.defaults.clone()
            } else {
                Defaults::default()
            },
            apply,
        };
        match site::execute_with_pin(config, command, None)? {
            Reply::TakenIn(taken) => {
                all.drives.extend(taken.drives);
                all.defaults = all.defaults.or(taken.defaults);
            }
            other => return site::out_of_turn(&other),
        }
    }
    Ok(all)
}

fn heading(text: &str) -> anyhow::Result<()> {
    output::say("")?;
    output::say(text)
}

/// The tables, by kind.
fn show(plan: &Plan) -> anyhow::Result<()> {
    output::say(plan.first)?;
    let (moved, left): (Vec<_>, Vec<_>) =
        plan.properties.iter().partition(|row| row.becomes != "-");
    heading("Properties that become something")?;
    output::table(
        &["property", "value -> what it becomes", "how"],
        moved.iter().map(|row| {
            let becomes = match &row.as_value {
                Some(value) => format!("{} = {value}", row.becomes),
                None => row.becomes.clone(),
            };
            vec![
                row.property.clone(),
                format!("{} -> {becomes}", row.value),
                row.why.clone(),
            ]
        }),
    )?;
    heading("Properties that do not")?;
    output::table(
        &["property", "value", "why not"],
        left.iter()
            .map(|row| vec![row.property.clone(), row.value.clone(), row.why.clone()]),
    )?;
    if let Some(kind) = plan.keystore {
        heading("Keystore")?;
        output::fields(&[
            ("type", kind.names.join(", older ")),
            ("keys are", kind.place.to_owned()),
            ("verdict", kind.fate.to_string()),
            ("how", kind.how.to_owned()),
            ("not", kind.not.to_owned()),
        ])?;
    }
    keys(plan)?;
    drives(plan)?;
    heading("Volume history")?;
    output::say(&format!(
        "{} of {} that EKM keyed; ekm has no EEDK of them and cannot read them",
        counted(plan.history.records, "record"),
        counted(plan.history.cartridges, "cartridge")
    ))
}

fn keys(plan: &Plan) -> anyhow::Result<()> {
    if plan.keys.is_empty() {
        return Ok(());
    }
    heading("Keys")?;
    output::table(
        &["alias", "what", "made", "ends", "used by", "verdict", "how"],
        plan.keys.iter().take(ROWS).map(|row| {
            let (what, ends) = match &row.key.kind {
                KeyKind::Pair { bits, validity, .. } => (format!("RSA-{bits}"), validity.as_ref()),
                KeyKind::Certificate { validity, .. } => {
                    ("certificate".to_owned(), validity.as_ref())
                }
                KeyKind::Secret { .. } => ("secret key".to_owned(), None),
                KeyKind::Unfit { what, .. } => (what.clone(), None),
                KeyKind::Unreadable { .. } => ("unreadable".to_owned(), None),
            };
            let day = |at: &String| at.chars().take(10).collect::<String>();
            vec![
                row.key.alias.chars().take(64).collect(),
                what,
                row.key.created.as_ref().map_or_else(|| "-".to_owned(), day),
                ends.map_or_else(|| "-".to_owned(), |(_, end)| day(end)),
                row.used.join(", "),
                row.verdict.to_string(),
                row.why.clone(),
            ]
        }),
    )?;
    more(plan.keys.len())
}

fn drives(plan: &Plan) -> anyhow::Result<()> {
    if plan.drives.is_empty() {
        return Ok(());
    }
    heading("Drives")?;
    let none = || "-".to_owned();
    output::table(
        &[
            "serial",
            "kek1",
            "kek2",
            "changed",
            "verdict",
            "what is left",
        ],
        plan.drives.iter().take(ROWS).map(|row| {
            vec![
                row.serial.clone(),
                row.kek1.clone().unwrap_or_else(none),
                row.kek2.clone().unwrap_or_else(none),
                row.changed.clone().unwrap_or_else(none),
                row.verdict.to_string(),
                row.why.clone(),
            ]
        }),
    )?;
    more(plan.drives.len())
}

fn counted(count: usize, what: &str) -> String {
    match count {
        1 => format!("1 {what}"),
        count => format!("{count} {what}s"),
    }
}

fn are(count: usize, what: &str) -> String {
    let verb = if count == 1 { "is" } else { "are" };
    format!("{} {verb}", counted(count, what))
}

fn more(rows: usize) -> anyhow::Result<()> {
    if rows > ROWS {
        output::say(&format!("… and {} more; --json has all", rows - ROWS))?;
    }
    Ok(())
}

/// What is to be decided, what was done, and what is left.
fn tell(plan: &Plan, done: &Done) -> anyhow::Result<()> {
    if !plan.conflicts.is_empty() {
        heading("To be decided or mended")?;
        plan.conflicts
            .iter()
            .try_for_each(|conflict| output::say(&format!("- {conflict}")))?;
    }
    if !plan.notes.is_empty() {
        heading("To be known")?;
        plan.notes
            .iter()
            .try_for_each(|note| output::say(&format!("- {note}")))?;
    }
    heading(if done.applied {
        "What was done"
    } else {
        "What would be done with --apply (nothing was written)"
    })?;
    let path = done.config_path.display();
    output::say(&if done.config_written {
        format!("- {path} is written: look at what it says to be decided")
    } else {
        format!("- {path} is there already and is left as it is")
    })?;
    let count = |wanted: fn(&Taken) -> bool| {
        let outcomes = done.taken_in.drives.iter();
        outcomes.filter(|(_, taken)| wanted(taken)).count()
    };
    let added = if done.applied || !done.taken_in.drives.is_empty() {
        count(|taken| *taken == Taken::Added)
    } else {
        plan.imports().count()
    };
    output::say(&format!(
        "- {} added; there already with these values: {}",
        are(added, "drive"),
        count(|taken| *taken == Taken::Same)
    ))?;
    for (serial, taken) in &done.taken_in.drives {
        match taken {
            Taken::Added | Taken::Same => {}
            Taken::Kept { why } => output::say(&format!(
                "- drive {serial} is there already and stays as it is: {why}"
            ))?,
            Taken::Deleted => {
                output::say(&format!("- drive {serial} was deleted here and stays so"))?;
            }
        }
    }
    let labels: Vec<String> = [&plan.defaults.kek1, &plan.defaults.kek2]
        .into_iter()
        .flatten()
        .map(ToString::to_string)
        .collect();
    if !labels.is_empty() {
        output::say(&match &done.taken_in.defaults {
            Some(Taken::Kept { why }) => format!("- the default labels stay: {why}"),
            Some(Taken::Same) => "- the default labels are set already".to_owned(),
            Some(Taken::Added | Taken::Deleted) | None => {
                format!("- the default labels are set: {}", labels.join(" and "))
            }
        })?;
    }
    match &done.kept {
        Some(Merged { added, total }) => output::say(&format!(
            "- {} added to {} in the state directory, which has {total} now",
            are(*added, "record"),
            history::FILE
        ))?,
        None if plan.history.records > 0 => output::say(&format!(
            "- {} kept in {} in the state directory",
            are(plan.history.records, "record"),
            history::FILE
        ))?,
        None => {}
    }
    heading("What is left to do, in this order")?;
    for (number, step) in plan.steps.iter().enumerate() {
        output::say(&format!("{}. {}", number + 1, step.what))?;
        for command in &step.commands {
            output::say(&format!("       {command}"))?;
        }
    }
    Ok(())
}
