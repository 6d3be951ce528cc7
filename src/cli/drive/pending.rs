//! `ekm drive pending`, `accept`, `reject`

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Fields, fingerprint, show, state, warn_of_one};
use crate::admin::{Change, Command, DriveSeen, Reply};
use crate::cli::{Context, output, site};
use crate::drive::{DriveSerial, Wwn};
use crate::key::{KekHash, KekRef, SedkForm};
use crate::store::DriveKey;

/// SHA-256 of a public key, with or without `sha256:` before it.
fn compared(text: &str) -> Result<KekHash, String> {
    let digits: String = text
        .strip_prefix("sha256:")
        .or_else(|| text.strip_prefix("SHA256:"))
        .unwrap_or(text)
        .chars()
        .filter(|c| *c != ':')
        .collect();
    digits
        .parse()
        .map_err(|error: crate::key::KekHashError| error.to_string())
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Accept {
    /// Its serial.
    serial: DriveSerial,
    /// SHA-256 of its public key, as the drive itself shows it (its panel, page 0031h, `ekm drive status` on its host).
    #[arg(long, value_parser = compared, required_unless_present = "ca")]
    fingerprint: Option<KekHash>,
    /// It has a certificate of the drive CA, and signs a key for each session.
    #[arg(long, conflicts_with = "fingerprint")]
    ca: bool,
    /// World-wide name, 16 hex digits; form t10-02h binds the key to it.
    #[arg(long)]
    wwn: Option<Wwn>,
    /// How it takes a data key; with --wwn t10-02h, else rsa-oaep-sha1.
    #[arg(long)]
    form: Option<SedkForm>,
    /// First KEK for its new cartridges: LABEL, LABEL:label or LABEL:hash.
    #[arg(long, value_name = "LABEL[:label|:hash]")]
    kek1: Option<KekRef>,
    /// Second KEK for its new cartridges; the site's second default does not count for a drive that has a first one of its own.
    #[arg(long, value_name = "LABEL[:label|:hash]")]
    kek2: Option<KekRef>,
}

impl Accept {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<()> {
        let Self {
            serial,
            fingerprint,
            ca: _,
            wwn,
            form,
            kek1,
            kek2,
        } = self;
        let change = Fields {
            wwn,
            kek1,
            kek2,
            key: None,
            ca: false,
            form,
            custody: None,
            speakers: Vec::new(),
        }
        .change()?;
        let first = matches!(change.kek1, Change::Set(_));
        let command = Command::DriveAccept {
            serial,
            fingerprint,
            change: Box::new(change),
        };
        let drives = match site::execute(context, command)? {
            Reply::Drives(drives) => drives,
            other => return site::out_of_turn(&other),
        };
        if first {
            warn_of_one(context, &drives);
        }
        if context.json {
            return output::json(&drives);
        }
        drives.iter().try_for_each(|drive| show(drive, None, None))
    }
}

/// Drives and what they showed, those that wait and those with another key.
pub(super) fn seen(context: &Context) -> anyhow::Result<Vec<DriveSeen>> {
    match site::execute(context, Command::DrivePending)? {
        Reply::DrivesSeen(drives) => Ok(drives),
        other => site::out_of_turn(&other),
    }
}

pub(super) fn list(context: &Context) -> anyhow::Result<()> {
    let drives = seen(context)?;
    if context.json {
        return output::json(&drives);
    }
    if drives.is_empty() {
        return output::say("no drive waits, and none has shown another key than its own");
    }
    for drive in &drives {
        output::fields(&fields(drive))?;
        output::say("")?;
    }
    output::paragraph(
        "Compare a key's fingerprint with what the drive itself shows before you accept it: ekm drive accept SERIAL --fingerprint F; or ekm drive reject SERIAL.",
    )
}

fn fields(of: &DriveSeen) -> Vec<(&'static str, String)> {
    let DriveSeen { drive, seen } = of;
    let mut fields = vec![
        ("drive", drive.serial.to_string()),
        ("  state", state(drive).to_owned()),
        ("  key", fingerprint(&drive.key)),
    ];
    fields.extend(drive.wwn.map(|wwn| ("  wwn", wwn.to_string())));
    if let Some(seen) = seen {
        if seen.times > 0 {
            fields.extend([
                ("  shown by", format!("{} at {}", seen.peer, seen.address)),
                ("  first", told(seen.first)),
                (
                    "  last",
                    format!("{}, {} times", told(seen.last), seen.times),
                ),
            ]);
        }
        fields.extend(other(of));
    }
    fields
}

/// Another key than that of the row: somebody else speaks for this serial, or the drive has a new
/// key.
pub(super) fn other(of: &DriveSeen) -> Vec<(&'static str, String)> {
    let Some(other) = of.seen.as_ref().and_then(|seen| seen.other.as_ref()) else {
        return Vec::new();
    };
    let key = match other.key {
        Some(key) => format!("sha256:{key}"),
        None => "none".to_owned(),
    };
    let heading = match of.drive.key {
        DriveKey::None => "  shows",
        DriveKey::Pinned(_) | DriveKey::Certified => "  other key",
    };
    vec![
        (heading, format!("{key} (refused)")),
        (
            "    by",
            format!(
                "{} at {}, {}, {} times",
                other.peer,
                other.address,
                told(other.last),
                other.times
            ),
        ),
    ]
}

fn told(time: OffsetDateTime) -> String {
    let time = time.replace_nanosecond(0).unwrap_or(time);
    time.format(&Rfc3339).unwrap_or_default()
}
