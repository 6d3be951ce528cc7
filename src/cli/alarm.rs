//! `ekm alarm`

use anyhow::Context as _;
use serde::Serialize;

use super::{Context, output, site, times};
use crate::admin::{Command, RaisedAlarm, Reply};
use crate::alarms::{ALARMS, Entry};

#[derive(Debug, clap::Subcommand)]
pub(super) enum AlarmCommand {
    /// Lists the alarms that the running server has raised; with --json all, and which are raised.
    List {
        /// Only those that are raised, with --json too.
        #[arg(long)]
        raised: bool,
    },
    /// Says what alarms mean and what to do: all of them, or one.
    Explain {
        /// Its code: EKM-A19, or A19.
        code: Option<String>,
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
        match self {
            Self::List { raised } => list(context, raised),
            Self::Explain { code } => explain(context, code.as_deref()),
        }
    }
}

fn list(context: &Context, only: bool) -> anyhow::Result<()> {
    let now = match site::ask_server(context, &Command::AlarmList)? {
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
        .filter(|one| !one.raised.is_empty() || context.json && !only)
        .collect();
    if context.json {
        return output::json(&serde_json::json!({
            "server": now.is_some(),
            "alarms": listed,
        }));
    }
    for Listed { entry, raised } in &listed {
        show(entry)?;
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
        None => output::say(
            "no server runs here, so nothing watches, and what would be raised is not known",
        )?,
        Some(now) if now.is_empty() => output::say("none is raised")?,
        Some(_) => {}
    }
    output::say("ekm alarm explain says what each alarm means")
}

fn explain(context: &Context, code: Option<&str>) -> anyhow::Result<()> {
    let all: &'static [Entry] = &ALARMS;
    let entries = match code {
        Some(code) => std::slice::from_ref(named(code)?),
        None => all,
    };
    if context.json {
        return output::json(&entries);
    }
    entries.iter().try_for_each(show)
}

fn named(code: &str) -> anyhow::Result<&'static Entry> {
    let all: &'static [Entry] = &ALARMS;
    let asked = code.to_uppercase();
    let found = all
        .iter()
        .find(|entry| entry.code == asked || entry.code.strip_prefix("EKM-") == Some(&*asked));
    found.with_context(|| format!("there is no alarm {code}; ekm alarm explain prints all"))
}

fn show(entry: &Entry) -> anyhow::Result<()> {
    output::fields_of_prose(&[
        (entry.code, entry.title.to_owned()),
        ("  do", entry.action.to_owned()),
    ])
}

#[cfg(test)]
mod tests {
    use super::named;

    #[test]
    fn an_alarm_is_found_by_its_code_with_and_without_the_first_letters() {
        for code in ["EKM-A19", "ekm-a19", "A19"] {
            assert_eq!(named(code).unwrap().code, "EKM-A19");
        }
        assert!(named("A999").is_err());
    }
}
