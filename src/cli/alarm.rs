//! `ekm alarm`

use serde::Serialize;

use super::{Context, output, site, times};
use crate::admin::{Command, RaisedAlarm, Reply};
use crate::alarms::{ALARMS, Entry};

#[derive(Debug, clap::Subcommand)]
pub(super) enum AlarmCommand {
    /// Lists the alarms: code, what it says, what to do; and which the running server has raised.
    List {
        /// Only those that are raised.
        #[arg(long)]
        raised: bool,
    },
}

/// An alarm of the list, and where it is raised.
#[derive(Serialize)]
struct Listed {
    #[serde(flatten)]
    entry: Entry,
    raised: Vec<RaisedAlarm>,
}

impl AlarmCommand {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<()> {
        let Self::List { raised: only } = self;
        let now = match site::of_server(context, &Command::AlarmList) {
            Some(Reply::Alarms(now)) => Some(now),
            Some(other) => return site::out_of_turn(&other),
            None => None,
        };
        let listed = ALARMS.iter().map(|entry| Listed {
            entry: *entry,
            raised: now
                .iter()
                .flatten()
                .filter(|raised| raised.code == entry.code)
                .cloned()
                .collect(),
        });
        let listed: Vec<Listed> = listed
            .filter(|one| !only || !one.raised.is_empty())
            .collect();
        if context.json {
            return output::json(&serde_json::json!({
                "server": now.is_some(),
                "alarms": listed,
            }));
        }
        for Listed { entry, raised } in &listed {
            output::fields(&[
                (entry.code, entry.title.to_owned()),
                ("  do", entry.action.to_owned()),
            ])?;
            for one in raised {
                let subject = if one.subject.is_empty() {
                    String::new()
                } else {
                    format!(" {}", one.subject)
                };
                output::say(&format!(
                    "  RAISED{subject} since {}: {}",
                    times::shown(one.since),
                    one.detail
                ))?;
            }
        }
        match &now {
            None => output::say("no server runs here, so none is raised"),
            Some(now) if now.is_empty() => output::say("none is raised"),
            Some(_) => Ok(()),
        }
    }
}
