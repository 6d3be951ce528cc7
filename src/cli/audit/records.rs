//! `ekm audit show`, `export`

use std::io::{self, Write as _};
use std::path::PathBuf;

use super::{Context, Kind, output, place};
use crate::audit::{Record, lines, read};

/// Which records.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Chosen {
    /// The audit directory; otherwise that of the configuration.
    directory: Option<PathBuf>,
    /// Only this field of work.
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<Kind>,
    /// Only from this time on: 2026-03-01, or 2026-03-01T12:00:00, UTC.
    #[arg(long, value_name = "TIME", value_parser = time_of)]
    since: Option<String>,
    /// Only before this time, likewise.
    #[arg(long, value_name = "TIME", value_parser = time_of)]
    until: Option<String>,
    /// Only this drive.
    #[arg(long)]
    drive: Option<String>,
    /// Only this cartridge.
    #[arg(long)]
    volser: Option<String>,
    /// Only this action: create, resolve, rekey, confirm, drive-add …
    #[arg(long)]
    action: Option<String>,
    /// Only this request.
    #[arg(long)]
    request: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Show {
    #[command(flatten)]
    chosen: Chosen,
    /// Only the last so many.
    #[arg(long, value_name = "N")]
    last: Option<usize>,
}

/// The beginning of a record's time: such texts sort as the times do.
fn time_of(text: &str) -> Result<String, String> {
    let text = text.trim_end_matches('Z');
    let whole = match text.len() {
        10 => format!("{text}T00:00:00"),
        16 => format!("{text}:00"),
        _ => text.to_owned(),
    };
    let zoned = format!("{whole}Z");
    time::OffsetDateTime::parse(&zoned, &time::format_description::well_known::Rfc3339)
        .map(|_| whole)
        .map_err(|_| format!("{text} is no time; write 2026-03-01 or 2026-03-01T12:00:00, UTC"))
}

impl Chosen {
    fn has(&self, record: &Record) -> bool {
        let Self {
            directory: _,
            kind,
            since,
            until,
            drive,
            volser,
            action,
            request,
        } = self;
        let wanted = |have: &Option<String>, want: &Option<String>| {
            want.as_ref().is_none_or(|want| have.as_ref() == Some(want))
        };
        let event = &record.event;
        wanted(&event.drive, drive)
            && wanted(&event.volser, volser)
            && wanted(&event.request, request)
            && action.as_ref().is_none_or(|action| event.action == *action)
            && kind.is_none_or(|kind| event.kind == kind)
            && since.as_ref().is_none_or(|since| record.time >= *since)
            && until.as_ref().is_none_or(|until| record.time < *until)
    }

    pub(super) fn export(self, context: &Context) -> anyhow::Result<()> {
        let directory = place(context, self.directory.clone())?;
        let mut out = io::BufWriter::new(io::stdout().lock());
        lines(&directory, |line, record| {
            if self.has(&record) {
                out.write_all(line)?;
                out.write_all(b"\n")?;
            }
            Ok(())
        })?;
        Ok(out.flush()?)
    }
}

impl Show {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<()> {
        let Self { chosen, last } = self;
        let mut records = Vec::new();
        for record in read(&place(context, chosen.directory.clone())?)? {
            let record = record?;
            if chosen.has(&record) {
                records.push(record);
            }
            if let Some(last) = last.filter(|last| records.len() > *last) {
                records.drain(..records.len() - last);
            }
        }
        if context.json {
            return output::json(&records);
        }
        show(&records)
    }
}

fn show(records: &[Record]) -> anyhow::Result<()> {
    let narrow = output::Narrow {
        below: &["what", "drive", "volser", "who"],
        ..output::Narrow::default()
    };
    output::table_narrow(
        narrow,
        &[
            "seq", "time", "who", "action", "outcome", "drive", "volser", "what",
        ],
        records.iter().map(|record| {
            let event = &record.event;
            let text = |field: &Option<String>| field.clone().unwrap_or_else(|| "-".to_owned());
            let mut what: Vec<String> = Vec::new();
            what.extend(event.code.clone());
            what.extend(event.dki.clone());
            if !event.keks.is_empty() {
                what.push(event.keks.join("+"));
            }
            what.extend(event.detail.clone());
            vec![
                record.seq.to_string(),
                record.time.chars().take(19).collect(),
                text(&event.peer),
                event.action.clone(),
                format!("{:?}", event.outcome).to_lowercase(),
                text(&event.drive),
                text(&event.volser),
                what.join(" "),
            ]
        }),
    )
}
