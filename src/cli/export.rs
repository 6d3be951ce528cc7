//! `ekm export` and `ekm import`

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, BufWriter, Read as _, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{Context, output, site};
use crate::admin::{Command, Reply, TablesTaken, TakeMode};
use crate::config::Config;
use crate::key::DataKeyId;
use crate::store::VolumeKey;
use crate::store::merge::{
    Changes, DefaultsRow, DriveRow, KekRow, PartnerRow, TableDump, VolumesTaken, Write as Written,
};

/// The version of the file.
const VERSION: u32 = 1;

/// Longest line, bytes.
const LINE: u64 = 1 << 20;

/// Volume keys that go over the socket at once.
const PAGE: u32 = 500;

/// What is in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
enum What {
    /// The drive table, deletions among it.
    Drivetab,
    /// The default key labels.
    Config,
    /// The KEK registry and partners' KEKs: public halves only.
    Keks,
    /// Which cartridge was keyed with what: EEDKs, no key in clear.
    History,
    /// All of these.
    All,
}

impl What {
    fn has(self, part: Self) -> bool {
        self == Self::All || self == part
    }
}

/// Writes tables as JSON lines, to be read by `ekm import` on another server,
/// or by anything. No key is in it. The file ends with a line that says how many
/// lines it has.
#[derive(Debug, clap::Args)]
pub(super) struct Export {
    /// The file; - is standard output.
    file: PathBuf,
    /// What is written.
    #[arg(long, value_enum, default_value = "all")]
    what: What,
}

/// Takes in what `ekm export` wrote. With --dry-run it only shows what would change.
///
/// --merge: of each drive, and of the defaults, the newest row stands; a drive that
/// was deleted later than the file's row stays deleted, and what was deleted there is
/// deleted here. --rewrite: the tables become those of the file, but what was deleted
/// here later stays deleted too. A label keeps the key that it names here. A partner's
/// row is sealed by tokens: where none of this server's verifies it, nothing is written
/// under it until it is confirmed anew. History is only added to, and its data
/// keys are marked foreign: cartridges are read, nothing is appended.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("mode").required(true).args(["merge", "rewrite"]))]
pub(super) struct Import {
    /// The file.
    file: PathBuf,
    /// The newest row stands.
    #[arg(long)]
    merge: bool,
    /// The tables become those of the file.
    #[arg(long)]
    rewrite: bool,
    /// Shows what would change, and changes nothing.
    #[arg(long)]
    dry_run: bool,
}

/// A line of the file.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Line {
    EkmExport(Head),
    Drive(DriveRow),
    Defaults(DefaultsRow),
    Kek(KekRow),
    Partner(PartnerRow),
    Volume(VolumeKey),
    End(u64),
}

/// The first line.
#[derive(Serialize, Deserialize)]
struct Head {
    version: u32,
    node: String,
    #[serde(with = "time::serde::rfc3339")]
    at: OffsetDateTime,
    what: What,
}

impl Export {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<()> {
        let config = Config::load(&context.config)?;
        if self.file == Path::new("-") {
            let mut out = BufWriter::new(io::stdout().lock());
            self.write(context, &config, &mut out)?;
            return Ok(out.flush()?);
        }
        let path = std::path::absolute(&self.file)?;
        let folder = path.parent().unwrap_or(Path::new("/"));
        let named = || format!("cannot write {}", path.display());
        let mut part = tempfile::NamedTempFile::new_in(folder).with_context(named)?;
        let mut out = BufWriter::new(&mut part);
        let lines = self.write(context, &config, &mut out)?;
        out.flush().with_context(named)?;
        drop(out);
        part.as_file().sync_all().with_context(named)?;
        part.persist(&path).with_context(named)?;
        output::say(&format!("{}: {lines} lines", path.display()))
    }

    fn write(
        &self,
        context: &Context,
        config: &Config,
        out: &mut impl Write,
    ) -> anyhow::Result<u64> {
        let mut out = Lines { out, count: 0 };
        let head = Head {
            version: VERSION,
            node: config.node.clone(),
            at: OffsetDateTime::now_utc(),
            what: self.what,
        };
        out.put(&Line::EkmExport(head))?;
        let dump = match site::execute(context, Command::TablesExport)? {
            Reply::Tables(dump) => *dump,
            other => return site::out_of_turn(&other),
        };
        if self.what.has(What::Drivetab) {
            for row in dump.drives.into_iter().flatten() {
                out.put(&Line::Drive(row))?;
            }
        }
        if let (Some(row), true) = (dump.defaults, self.what.has(What::Config)) {
            out.put(&Line::Defaults(row))?;
        }
        if self.what.has(What::Keks) {
            for row in dump.keks.into_iter().flatten() {
                out.put(&Line::Kek(row))?;
            }
            for row in dump.partners.into_iter().flatten() {
                out.put(&Line::Partner(row))?;
            }
        }
        if self.what.has(What::History) {
            let mut after: Option<(DataKeyId, u32)> = None;
            loop {
                let page =
                    match site::execute(context, Command::VolumesExport { after, most: PAGE })? {
                        Reply::Volumes(page) => page,
                        other => return site::out_of_turn(&other),
                    };
                let Some(last) = page.last() else {
                    break;
                };
                after = Some((last.dki, last.generation));
                for key in page {
                    out.put(&Line::Volume(key))?;
                }
            }
        }
        let end = Line::End(out.count + 1);
        out.put(&end)?;
        Ok(out.count)
    }
}

/// Writes lines and counts them.
struct Lines<'a, W> {
    out: &'a mut W,
    count: u64,
}

impl<W: Write> Lines<'_, W> {
    fn put(&mut self, line: &Line) -> anyhow::Result<()> {
        self.count += 1;
        serde_json::to_writer(&mut *self.out, line).map_err(io::Error::from)?;
        Ok(self.out.write_all(b"\n")?)
    }
}

impl Import {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<()> {
        // Read to its end before anything is done.
        let mut dump = TableDump::default();
        let what = read(&self.file, |line| {
            match line {
                Line::Drive(row) => dump.drives.get_or_insert_default().push(row),
                Line::Defaults(row) => dump.defaults = Some(row),
                Line::Kek(row) => dump.keks.get_or_insert_default().push(row),
                Line::Partner(row) => dump.partners.get_or_insert_default().push(row),
                Line::Volume(_) | Line::EkmExport(_) | Line::End(_) => {}
            }
            Ok(())
        })?;
        // An empty table is not the same as none.
        if what.has(What::Drivetab) {
            dump.drives.get_or_insert_default();
        }
        if what.has(What::Keks) {
            dump.keks.get_or_insert_default();
            dump.partners.get_or_insert_default();
        }
        let mode = if self.rewrite {
            TakeMode::Rewrite
        } else {
            TakeMode::Merge
        };
        let import = Command::TablesImport {
            dump: Box::new(dump),
            mode,
            apply: !self.dry_run,
        };
        let taken = match site::execute(context, import)? {
            Reply::TablesTaken(taken) => *taken,
            other => return site::out_of_turn(&other),
        };
        let volumes = if what.has(What::History) {
            Some(self.volumes(context)?)
        } else {
            None
        };
        if context.json {
            return output::json(&serde_json::json!({
                "dry_run": self.dry_run,
                "changes": taken.changes,
                "kept": taken.changes.kept.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "seals_left": taken.seals_left,
                "history": volumes,
            }));
        }
        show(&taken, volumes)?;
        if self.dry_run {
            output::say("Nothing was changed: --dry-run")?;
        }
        Ok(())
    }

    fn volumes(&self, context: &Context) -> anyhow::Result<VolumesTaken> {
        let mut taken = VolumesTaken::default();
        let mut batch = Vec::new();
        let mut put = |batch: &mut Vec<VolumeKey>| -> anyhow::Result<()> {
            let import = Command::VolumesImport {
                keys: std::mem::take(batch),
                apply: !self.dry_run,
            };
            match site::execute(context, import)? {
                Reply::VolumesTaken(more) => {
                    taken.added += more.added;
                    taken.known += more.known;
                    taken.other += more.other;
                    Ok(())
                }
                other => site::out_of_turn(&other),
            }
        };
        read(&self.file, |line| {
            if let Line::Volume(key) = line {
                batch.push(key);
                if batch.len() >= usize::try_from(PAGE).unwrap_or(usize::MAX) {
                    put(&mut batch)?;
                }
            }
            Ok(())
        })?;
        if !batch.is_empty() {
            put(&mut batch)?;
        }
        Ok(taken)
    }
}

/// Reads a file line by line, its first and its last one checked; what it has.
fn read(path: &Path, mut each: impl FnMut(Line) -> anyhow::Result<()>) -> anyhow::Result<What> {
    let named = || format!("cannot read {}", path.display());
    let mut from = BufReader::new(File::open(path).with_context(named)?);
    let mut what = None;
    let mut count = 0_u64;
    let mut text = Vec::new();
    loop {
        text.clear();
        (&mut from)
            .take(LINE)
            .read_until(b'\n', &mut text)
            .with_context(named)?;
        count += 1;
        let wrong = |why: &str| format!("{}, line {count}: {why}", path.display());
        if text.is_empty() {
            bail!(wrong(
                "it is cut off, as its last line is missing; nothing was done"
            ));
        }
        if text.pop() != Some(b'\n') {
            bail!(wrong(
                "it is cut off or longer than 1 MiB; nothing was done"
            ));
        }
        let line: Line = serde_json::from_slice(&text)
            .map_err(|error| anyhow::anyhow!(wrong(&format!("{error}; nothing was done"))))?;
        match (line, what) {
            (Line::EkmExport(head), None) if head.version == VERSION => what = Some(head.what),
            (Line::EkmExport(head), None) => bail!(wrong(&format!(
                "it is of version {}, and this ekm reads version {VERSION}",
                head.version
            ))),
            (_, None) | (Line::EkmExport(_), Some(_)) => {
                bail!(wrong("this is no file of ekm export; nothing was done"))
            }
            (Line::End(lines), Some(what)) => {
                if lines != count || !from.fill_buf().with_context(named)?.is_empty() {
                    bail!(wrong(&format!(
                        "it should have {lines} lines; nothing was done"
                    )));
                }
                return Ok(what);
            }
            (line, Some(_)) => each(line)?,
        }
    }
}

fn show(taken: &TablesTaken, volumes: Option<VolumesTaken>) -> anyhow::Result<()> {
    let Changes {
        drives,
        defaults,
        keks,
        partners,
        kept,
    } = &taken.changes;
    for Written { row, over } in drives {
        let serial = &row.drive.serial;
        match (over, row.deleted) {
            (Some(over), true) if !over.deleted => {
                output::say(&format!("drive {serial}: deleted"))?;
            }
            (_, true) => {}
            (None, false) => output::say(&format!("drive {serial}: added"))?,
            (Some(over), false) if over.deleted => {
                output::say(&format!("drive {serial}: back in the table"))?;
            }
            (Some(over), false) if over.drive != row.drive => {
                output::say(&format!("drive {serial}: {}", differences(over, row)?))?
            }
            (Some(_), false) => {}
        }
    }
    let label = |kek: &Option<crate::key::KekRef>| {
        kek.as_ref()
            .map_or_else(|| "none".to_owned(), ToString::to_string)
    };
    if let Some(Written { row, .. }) = defaults {
        output::say(&format!(
            "defaults: {}, {}",
            label(&row.defaults.kek1),
            label(&row.defaults.kek2)
        ))?;
    }
    for row in keks {
        output::say(&format!(
            "KEK {}: registered for the key {}",
            row.kek.label, row.kek.hash
        ))?;
    }
    for Written { row, over } in partners {
        match (&row.partner, over) {
            (Some(_), _) => output::say(&format!(
                "partner's KEK {}: added; ekm kek partner list says whether its seal verifies here, and if not: remove it and confirm it anew",
                row.label
            ))?,
            (None, Some(over)) if over.partner.is_some() => {
                output::say(&format!("partner's KEK {}: removed", row.label))?;
            }
            (None, _) => {}
        }
    }
    for one in kept {
        output::say(&format!("kept: {one}"))?;
    }
    for one in &taken.seals_left {
        output::say(&format!("a seal key could not be destroyed: {one}"))?;
    }
    if let Some(VolumesTaken {
        added,
        known,
        other,
    }) = volumes
    {
        output::say(&format!(
            "history: {added} added, {known} known already, {other} kept as they are here"
        ))?;
    }
    if taken.changes.is_empty() {
        output::say("The tables are the same already, or newer")?;
    }
    Ok(())
}

/// Which values of a drive's row change.
fn differences(over: &DriveRow, row: &DriveRow) -> anyhow::Result<String> {
    let (was, is) = (
        serde_json::to_value(&over.drive)?,
        serde_json::to_value(&row.drive)?,
    );
    let changed: Vec<&str> = is
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(name, value)| was.get(name.as_str()) != Some(*value))
        .map(|(name, _)| name.as_str())
        .collect();
    Ok(format!("changed: {}", changed.join(", ")))
}
