//! `ekm volume find`

use time::OffsetDateTime;

use super::sets;
use crate::admin::{Command, Reply, VolumeFilter};
use crate::cli::{Context, output, site, times};
use crate::drive::DriveSerial;
use crate::key::{DataKeyId, KeyLabel};
use crate::volser::Volser;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Find {
    /// The cartridge.
    #[arg(long)]
    volser: Option<Volser>,
    /// A KEK that one of the EEDKs is under, also one that is gone.
    #[arg(long, value_name = "LABEL")]
    kek: Option<KeyLabel>,
    #[command(flatten)]
    rest: Filters,
    /// Most lines.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = lines)]
    limit: usize,
}

/// The filters that a rekey has as well.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Filters {
    /// The data key, as cartridge and records show it: 3 ASCII characters and 18 hexadecimal digits.
    #[arg(long)]
    pub(super) dki: Option<DataKeyId>,
    /// The drive that it was made for.
    #[arg(long, value_name = "SERIAL")]
    pub(super) drive: Option<DriveSerial>,
    /// Made then or later: 2026-11-30 (00:00 UTC) or 2026-11-30T18:00:00+01:00.
    #[arg(long, value_name = "TIME", value_parser = times::parse)]
    pub(super) since: Option<OffsetDateTime>,
    /// Made before.
    #[arg(long, value_name = "TIME", value_parser = times::parse)]
    pub(super) until: Option<OffsetDateTime>,
}

fn lines(text: &str) -> Result<usize, String> {
    let lines = text.parse::<usize>().ok().filter(|lines| *lines > 0);
    lines.ok_or_else(|| format!("expected a number of lines, 1 or more, got {text:?}"))
}

impl Find {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<()> {
        let Self {
            volser,
            kek,
            rest,
            limit,
        } = self;
        let filter = rest.filter(volser, kek);
        let found = match site::execute(context, Command::VolumeFind { filter, limit })? {
            Reply::Found(found) => found,
            other => return site::out_of_turn(&other),
        };
        sets(context, &found)?;
        if found.more && !context.json {
            output::say(&format!(
                "there are more than {}; say --limit, or narrow it down (--since, --until)",
                found.volumes.len()
            ))?;
        }
        Ok(())
    }
}

impl Filters {
    pub(super) fn filter(self, volser: Option<Volser>, kek: Option<KeyLabel>) -> VolumeFilter {
        let Self {
            dki,
            drive,
            since,
            until,
        } = self;
        VolumeFilter {
            volser,
            kek,
            dki,
            drive,
            since,
            until,
        }
    }
}
