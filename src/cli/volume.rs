//! `ekm volume`

mod find;
mod rekey;

use anyhow::bail;

use super::{Context, output, site, times};
use crate::admin::{Command, MOST_VOLUMES, Reply, VolumeFilter, VolumeListed};
use crate::store::{VolumeKey, VolumesFound, WriteOff};
use crate::volser::Volser;

/// What stands under a cartridge's line on a narrow terminal.
pub(super) const NARROW: output::Narrow<'static> = output::Narrow {
    whole: &["dki", "created"],
    drops: &[],
    below: &["keks", "custody", "gen", "drive"],
};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Volume {
    /// Lists what every cartridge was keyed with, newest first.
    List,
    /// Searches what cartridges were keyed with, newest first.
    ///
    /// Each filter that is given must hold. A line is a set of EEDKs of a data key. Its place says
    /// where it is: on the medium, when a drive has confirmed it; in the catalog, when it is the
    /// newest that counts; "medium?" where a drive was given it and did not say what became of it;
    /// "-" where others have taken its place.
    Find(find::Find),
    /// Shows the keys of one cartridge, newest first, and the state of each.
    Show {
        /// Its volume serial.
        volser: Volser,
    },
    /// Gives a volume up: its KEKs may go, whatever becomes of its data.
    WriteOff {
        /// Its volume serial.
        volser: Volser,
        /// Why: for the history and the audit log.
        #[arg(long)]
        reason: String,
    },
    /// Puts volumes under other KEKs: in the catalog at once, on the cartridge when it is next mounted.
    ///
    /// The server makes new EEDKs from the catalog's. The data key stays, and so does the data. A
    /// server works through the rekey and goes on with it after a restart; this command shows how
    /// far it is, and may be left with Ctrl-C. When a cartridge is next mounted, its host is told to
    /// store the new EEDKs on it, and confirms them; until then it is read by its old ones.
    ///
    /// An EEDK that was copied earlier still opens its tape for whoever has the old KEK.
    Rekey(rekey::Rekey),
}

impl Volume {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<()> {
        match self {
            Self::List => list(context),
            Self::Find(find) => find.run(context),
            Self::Show { volser } => show(context, volser),
            Self::WriteOff { volser, reason } => {
                let command = Command::VolumeWriteOff { volser, reason };
                match site::execute(context, command)? {
                    Reply::Found(found) => sets(context, &found),
                    other => site::out_of_turn(&other),
                }
            }
            Self::Rekey(rekey) => rekey.run(context),
        }
    }
}

fn list(context: &Context) -> anyhow::Result<()> {
    let listed = match site::execute(context, Command::VolumeList { volser: None })? {
        Reply::VolumesListed(listed) => listed,
        // A server of an earlier version.
        Reply::Volumes(keys) => keys
            .into_iter()
            .map(|key| VolumeListed {
                key,
                written_off: None,
            })
            .collect(),
        other => return site::out_of_turn(&other),
    };
    if context.json {
        return output::json(&listed);
    }
    output::table_narrow(
        NARROW,
        &[
            "volser", "state", "dki", "gen", "keks", "drive", "custody", "created",
        ],
        listed.iter().map(|listed| {
            let key = &listed.key;
            vec![
                key.volser.to_string(),
                state(key, listed.written_off.as_ref()),
                key.dki.to_string(),
                key.generation.to_string(),
                keks(key),
                key.drive.to_string(),
                key.custody.to_string(),
                times::shown(key.created),
            ]
        }),
    )
}

fn show(context: &Context, volser: Volser) -> anyhow::Result<()> {
    let filter = VolumeFilter {
        volser: Some(volser.clone()),
        ..VolumeFilter::default()
    };
    let limit = MOST_VOLUMES;
    let found = match site::execute(context, Command::VolumeFind { filter, limit })? {
        Reply::Found(found) => found,
        other => return site::out_of_turn(&other),
    };
    if context.json {
        output::json(&found.volumes)?;
    }
    if found.volumes.is_empty() {
        bail!("no volume {volser} in the history (ekm volume find)");
    }
    if context.json {
        return Ok(());
    }
    sets(context, &found)?;
    let given_up = found
        .volumes
        .iter()
        .filter_map(|set| set.written_off.as_ref());
    let mut told: Vec<String> = given_up.map(WriteOff::words).collect();
    // Each set has its own, and those of one write-off are beside each other.
    told.dedup();
    told.iter().try_for_each(|words| output::say(words))
}

/// Prints sets of EEDKs, a line each.
fn sets(context: &Context, found: &VolumesFound) -> anyhow::Result<()> {
    if context.json {
        return output::json(found);
    }
    if found.volumes.is_empty() {
        output::tell("no volume fits");
        return Ok(());
    }
    output::table_narrow(
        NARROW,
        &[
            "volser", "place", "state", "dki", "gen", "keks", "drive", "created",
        ],
        found.volumes.iter().map(|set| {
            let key = &set.key;
            vec![
                key.volser.to_string(),
                set.place().to_owned(),
                state(key, set.written_off.as_ref()),
                key.dki.to_string(),
                key.generation.to_string(),
                keks(key),
                key.drive.to_string(),
                times::shown(key.created),
            ]
        }),
    )
}

/// How far EEDKs got, and whether their volume was given up since.
fn state(key: &VolumeKey, written_off: Option<&WriteOff>) -> String {
    match written_off {
        Some(_) => format!("{}, given up", key.state),
        None => key.state.to_string(),
    }
}

fn keks(key: &VolumeKey) -> String {
    let texts: Vec<String> = key
        .eedks
        .iter()
        .map(|stored| {
            let proved = if stored.proved { "" } else { " (unproved)" };
            format!(
                "{}:{}{proved}",
                stored.kek_label,
                stored.eedk.kek().encoding()
            )
        })
        .collect();
    texts.join(", ")
}
