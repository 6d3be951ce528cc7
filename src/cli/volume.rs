//! `ekm volume`

use super::{Context, output, site};
use crate::admin::{Command, Reply};
use crate::store::VolumeKey;
use crate::volser::Volser;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Volume {
    /// Lists what every cartridge was keyed with, newest first.
    List,
    /// Shows the keys of one cartridge, newest first, and the state of each.
    Show {
        /// Its volume serial.
        volser: Volser,
    },
}

impl Volume {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<()> {
        let volser = match self {
            Self::List => None,
            Self::Show { volser } => Some(volser),
        };
        let keys = match site::execute(context, Command::VolumeList { volser })? {
            Reply::Volumes(keys) => keys,
            other => return site::out_of_turn(&other),
        };
        if context.json {
            return output::json(&keys);
        }
        output::table(
            &[
                "volser", "state", "dki", "gen", "keks", "drive", "custody", "created",
            ],
            keys.iter().map(|key| {
                vec![
                    key.volser.to_string(),
                    key.state.to_string(),
                    key.dki.to_string(),
                    key.generation.to_string(),
                    keks(key),
                    key.drive.to_string(),
                    key.custody.to_string(),
                    key.created
                        .format(&time::format_description::well_known::Rfc3339)
                        .unwrap_or_default()
                        .chars()
                        .take(19)
                        .collect(),
                ]
            }),
        )
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
