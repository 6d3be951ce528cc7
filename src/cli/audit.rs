//! `ekm audit`

use std::path::PathBuf;

use super::{Context, Found, output};
use crate::audit::{AuditError, Record, read, verify};
use crate::config::Config;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Audit {
    /// Verifies the chain: that no record was changed, removed, added or moved.
    ///
    /// It cannot show that records were cut off at the end, or that the whole
    /// chain was made anew: keep the head hash that it prints somewhere else.
    Verify {
        /// The audit directory; otherwise that of the configuration.
        directory: Option<PathBuf>,
    },
    /// Shows the records.
    Show {
        /// The audit directory; otherwise that of the configuration.
        directory: Option<PathBuf>,
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
        /// Only the last so many.
        #[arg(long, value_name = "N")]
        last: Option<usize>,
    },
}

impl Audit {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<()> {
        match self {
            Self::Verify { directory } => {
                let directory = place(context, directory)?;
                match verify(&directory) {
                    Ok(verified) if context.json => output::json(&verified),
                    Ok(verified) => output::say(&format!(
                        "{}: good; {} records in {} file(s), {} to {}\nhead {}",
                        directory.display(),
                        verified.records,
                        verified.files,
                        verified.first,
                        verified.last,
                        verified.head_hash
                    )),
                    Err(error @ AuditError::File { .. }) => Err(error.into()),
                    Err(error) if context.json => {
                        output::json(&serde_json::json!({ "fault": error.to_string() }))?;
                        Err(Found.into())
                    }
                    Err(error) => {
                        output::say(&format!("{}: {error}", directory.display()))?;
                        Err(Found.into())
                    }
                }
            }
            Self::Show {
                directory,
                drive,
                volser,
                action,
                request,
                last,
            } => {
                let wanted = |have: &Option<String>, want: &Option<String>| {
                    want.as_ref().is_none_or(|want| have.as_ref() == Some(want))
                };
                let mut records = Vec::new();
                for record in read(&place(context, directory)?)? {
                    let record = record?;
                    let event = &record.event;
                    if wanted(&event.drive, &drive)
                        && wanted(&event.volser, &volser)
                        && wanted(&event.request, &request)
                        && action.as_ref().is_none_or(|action| event.action == *action)
                    {
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
    }
}

fn place(context: &Context, directory: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    directory.map_or_else(|| Ok(Config::load(&context.config)?.audit), Ok)
}

fn show(records: &[Record]) -> anyhow::Result<()> {
    output::table(
        &[
            "seq", "time", "action", "outcome", "drive", "volser", "what",
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
                event.action.clone(),
                format!("{:?}", event.outcome).to_lowercase(),
                text(&event.drive),
                text(&event.volser),
                what.join(" "),
            ]
        }),
    )
}
