//! `[sync]`: who may read this server's tables, and whose it reads.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Mode, What};
use crate::tls::{PeerId, Role};

/// Longest time between two syncs, seconds.
const WEEK: u64 = 7 * 24 * 3600;

/// `[sync]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SyncConfig {
    /// Peers of role server that may read the drive table, defaults, KEKs' hashes and history.
    pub serve: Vec<PeerId>,
    /// Whose tables are taken in.
    pub from: Vec<SyncFrom>,
    /// Seconds for connecting, and for each page that is read.
    pub answer_seconds: u64,
    /// The CA of the peers' certificates, PEM; that of `[server]` where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
}

/// `[[sync.from]]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SyncFrom {
    /// Whom its certificate names: `server:NAME`.
    pub peer: PeerId,
    /// Host and port of its door.
    pub address: String,
    /// Seconds between two syncs; where left out, only `ekm sync` does one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every_seconds: Option<u64>,
    /// Which tables.
    #[serde(default)]
    pub what: What,
    /// Whose rows stand.
    #[serde(default)]
    pub mode: Mode,
}

impl Default for SyncConfig {
    fn default() -> Self {
        Self {
            serve: Vec::new(),
            from: Vec::new(),
            answer_seconds: 30,
            ca: None,
        }
    }
}

impl SyncConfig {
    /// Whether nothing is configured.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Makes relative paths those of the configuration's directory.
    pub(crate) fn settle(&mut self, folder: &Path) {
        if let Some(ca) = &mut self.ca {
            *ca = folder.join(&*ca);
        }
    }

    /// What is wrong with it, one sentence each.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let Self {
            serve,
            from,
            answer_seconds,
            ca,
        } = self;
        let servers = serve.iter().chain(from.iter().map(|one| &one.peer));
        for peer in servers.filter(|peer| peer.role() != Role::Server) {
            faults.push(format!(
                "sync: {peer} is no server; tables are exchanged between servers only (ekm tls issue NAME --role server)"
            ));
        }
        if !(1..=300).contains(answer_seconds) {
            faults.push(format!(
                "sync.answer_seconds: {answer_seconds} is not 1 to 300"
            ));
        }
        if let Some(ca) = ca.as_ref().filter(|path| !path.is_file()) {
            faults.push(format!("sync.ca: there is no file {}", ca.display()));
        }
        for (index, one) in from.iter().enumerate() {
            let SyncFrom {
                peer,
                address,
                every_seconds,
                ..
            } = one;
            let port = address
                .rsplit_once(':')
                .filter(|(host, _)| !host.is_empty())
                .and_then(|(_, port)| port.parse::<u16>().ok());
            if port.is_none_or(|port| port == 0) {
                faults.push(format!(
                    "sync.from {peer}: address {address:?} is not HOST:PORT"
                ));
            }
            if every_seconds.is_some_and(|every| !(1..=WEEK).contains(&every)) {
                faults.push(format!(
                    "sync.from {peer}: every_seconds is not 1 to {WEEK} (a week)"
                ));
            }
            if from.iter().take(index).any(|other| other.peer == *peer) {
                faults.push(format!("sync.from: {peer} is given twice"));
            }
        }
        faults
    }

    /// The peer of that name, `server:NAME` or `NAME`.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<&SyncFrom> {
        self.from
            .iter()
            .find(|one| one.peer.name() == name || one.peer.to_string() == name)
    }

    /// Time for connecting, and for each page.
    #[must_use]
    pub const fn answer_time(&self) -> Duration {
        Duration::from_secs(self.answer_seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> SyncConfig {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn a_peer_is_found_by_either_name() {
        let config = read("[[from]]\npeer = \"server:ekm1\"\naddress = \"ekm1:3801\"");
        assert!(config.faults().is_empty());
        for name in ["ekm1", "server:ekm1"] {
            let found = config.named(name).unwrap();
            assert_eq!((found.what, found.mode), (What::Drivetab, Mode::Merge));
        }
        assert!(config.named("ekm2").is_none());
    }

    #[test]
    fn what_cannot_be_a_peer_is_a_fault() {
        let text = "serve = [\"proxy:host1\"]\nanswer_seconds = 0\n\
                    [[from]]\npeer = \"server:a\"\naddress = \"a\"\nevery_seconds = 0\n\
                    [[from]]\npeer = \"server:a\"\naddress = \"a:1\"\n";
        let faults = read(text).faults().join("\n");
        for part in [
            "proxy:host1 is no server",
            "answer_seconds",
            "not HOST:PORT",
            "every_seconds",
            "given twice",
        ] {
            assert!(faults.contains(part), "{part}: {faults}");
        }
    }
}
