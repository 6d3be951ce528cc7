//! `ekm fleet`

use super::{Context, output, site};
use crate::admin::{Command, Reply};
use crate::service::{FleetStatus, ServerSeen};
use crate::store::FleetSeen;

#[derive(Debug, clap::Subcommand)]
pub(super) enum FleetCommand {
    /// Shows the database, what of the history is at risk, all servers, and what differs.
    ///
    /// Ask it on each server: what is queued is on that server's disk, and shown there only.
    Status,
    /// Takes a server that is gone for good out of the list.
    ///
    /// One that runs comes back by itself. Take it out of `nodes` in the configurations of the
    /// others too.
    Forget {
        /// Its node name.
        node: String,
    },
}

impl FleetCommand {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<()> {
        match self {
            Self::Status => match site::execute(context, Command::FleetStatus)? {
                Reply::Fleet(status) if context.json => output::json(&status),
                Reply::Fleet(status) => show(&status),
                other => site::out_of_turn(&other),
            },
            Self::Forget { node } => {
                match site::execute(context, Command::FleetForget { node: node.clone() })? {
                    Reply::Done => output::say(&format!("{node} is no longer in the list")),
                    other => site::out_of_turn(&other),
                }
            }
        }
    }
}

fn show(status: &FleetStatus) -> anyhow::Result<()> {
    let FleetStatus {
        node,
        database,
        servers,
        missing,
        differences,
        unsealed,
    } = status;
    let Some(database) = database else {
        return output::paragraph(&format!(
            "{node} has a state of its own (SQLite) and shares it with nobody; [database] in the configuration names a PostgreSQL database that several servers share."
        ));
    };
    show_database(database)?;
    for (token, reason) in unsealed {
        output::paragraph(&format!(
            "Token {token} gives no key for the seal of the cached table: {reason}"
        ))?;
    }
    output::say("")?;
    output::table(
        &["server", "version", "last seen", "keks", "tokens"],
        servers.iter().map(row),
    )?;
    for node in missing {
        output::paragraph(&format!(
            "{node} is listed under fleet.nodes and tells nothing of itself."
        ))?;
    }
    output::say("")?;
    for difference in differences {
        output::paragraph(&format!("{}: {}", difference.what, difference.how))?;
    }
    let away = database.outage.is_some();
    verdict(away, !missing.is_empty(), !differences.is_empty()).map_or(Ok(()), output::say)
}

/// What can be said of all servers together: that they are the same only where all were compared.
const fn verdict(away: bool, missing: bool, differ: bool) -> Option<&'static str> {
    match (away, missing, differ) {
        (true, ..) => {
            Some("Whether the servers are the same is not known: the database is out of reach.")
        }
        (false, false, false) => Some("The servers hold the same KEKs, copies and defaults."),
        (false, ..) => None,
    }
}

fn show_database(seen: &FleetSeen) -> anyhow::Result<()> {
    let FleetSeen {
        database,
        outage,
        durability,
        cache_age,
        cache_seconds,
        sealed,
        at_risk,
        queued,
        rejected,
    } = seen;
    let mut fields = vec![("database", database.clone())];
    match outage {
        Some((why, since)) => {
            fields.push(("  state", format!("out of reach since {since}")));
            fields.push(("  why", why.clone()));
        }
        None => fields.push(("  state", "answers".to_owned())),
    }
    if !durability.is_empty() {
        fields.push(("  a commit", durability.clone()));
    }
    let age = cache_age.map_or_else(
        || "none yet".to_owned(),
        |age| format!("{age} s old, serves {cache_seconds} s"),
    );
    let sealed = if *sealed { "" } else { "; not on the disk" };
    fields.push(("cached table", format!("{age}{sealed}")));
    let queue = match (at_risk, queued) {
        (0, 0) => "nothing".to_owned(),
        (creates, lines) => {
            format!("{creates} creates in {lines} lines: on this server's disk only")
        }
    };
    fields.push(("at risk", queue));
    if *rejected > 0 {
        fields.push(("  not as written", format!("{rejected} lines")));
    }
    output::fields(&fields)
}

fn row(seen: &ServerSeen) -> Vec<String> {
    let ServerSeen {
        server,
        ago,
        counts,
        own,
    } = seen;
    let node = if *own {
        format!("{} (this)", server.node)
    } else {
        server.node.clone()
    };
    let ago = if *counts {
        format!("{ago} s ago")
    } else {
        format!("{ago} s ago, counts no more")
    };
    let mut hashes: Vec<_> = server
        .tokens
        .iter()
        .flat_map(|token| token.keks.iter().map(|kek| kek.hash))
        .collect();
    hashes.sort_unstable();
    hashes.dedup();
    let tokens: Vec<String> = server
        .tokens
        .iter()
        .map(|token| match (token.known, token.serial.as_str()) {
            (false, _) => format!("{} (not seen yet)", token.name),
            (true, "") => token.name.clone(),
            (true, serial) => format!("{} {serial}", token.name),
        })
        .collect();
    vec![
        node,
        server.version.clone(),
        ago,
        hashes.len().to_string(),
        tokens.join(", "),
    ]
}

#[cfg(test)]
mod tests {
    use super::verdict;

    #[test]
    fn servers_are_the_same_only_where_all_were_compared() {
        let same = |away, missing, differ| {
            verdict(away, missing, differ).is_some_and(|text| text.contains("hold the same"))
        };
        assert!(same(false, false, false));
        assert!(!same(true, false, false));
        assert!(!same(false, true, false));
        assert!(!same(false, false, true));
    }
}
