//! `[fleet]`: what a server expects of those that share its database.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// `[fleet]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FleetConfig {
    /// Node names of the servers that there should be. One that is missing is an alarm.
    pub nodes: Vec<String>,
    /// Minutes after which a server that is not in `nodes` and tells nothing of itself counts no
    /// longer.
    pub peer_minutes: u32,
    /// Whether nothing is written under a KEK that a token of this server or of another lacks.
    pub require_kek_everywhere: bool,
}

impl Default for FleetConfig {
    fn default() -> Self {
        Self {
            nodes: Vec::new(),
            peer_minutes: 10,
            require_kek_everywhere: true,
        }
    }
}

impl FleetConfig {
    /// How long a server counts that tells nothing of itself.
    pub(crate) fn peer_time(&self) -> Duration {
        Duration::from_secs(u64::from(self.peer_minutes) * 60)
    }

    /// What is wrong with it, one sentence each.
    pub(super) fn faults(&self, database: bool) -> Vec<String> {
        let mut faults = Vec::new();
        if !database {
            faults.push(
                "fleet: servers see each other in a database that they share; there is no [database]"
                    .to_owned(),
            );
        }
        if !(1..=7 * 24 * 60).contains(&self.peer_minutes) {
            faults.push(format!(
                "fleet: peer_minutes = {} is not 1 to 10080",
                self.peer_minutes
            ));
        }
        faults
    }
}
