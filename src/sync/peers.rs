//! The servers beside this one, and how the syncs from them went.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustls::ClientConfig;
use time::OffsetDateTime;

use super::wire::KekFact;
use super::{SyncConfig, SyncError, SyncReport};
use crate::config::Config;
use crate::key::KekHash;
use crate::store::KekState;
use crate::tls::{ClientPaths, PeerId, TlsError, client_config_with};

/// How old what was read of a peer may be where a KEK is to be destroyed.
const LATELY: Duration = Duration::from_secs(900);

/// How long a peer may read pages after a head.
const SERVED: Duration = Duration::from_secs(3600);

/// The peers of this server, and how the syncs from them went.
#[derive(Debug)]
pub struct Peers {
    pub(super) config: SyncConfig,
    tls: ClientPaths,
    crl: Option<PathBuf>,
    pub(super) turn: tokio::sync::Mutex<()>,
    seen: Mutex<BTreeMap<PeerId, Seen>>,
    served: Mutex<BTreeMap<PeerId, Instant>>,
    started: OffsetDateTime,
}

/// How the syncs from a peer went.
#[derive(Clone, Debug, Default)]
struct Seen {
    /// Why the last one failed.
    failed: Option<String>,
    /// What must be looked at after the last one.
    differs: Option<String>,
    /// When one last came to its end.
    good: Option<OffsetDateTime>,
    /// States of the KEKs there when the history was last read to its end, which is all that was
    /// written under those that were not active by then.
    whole: Option<(Instant, HashMap<KekHash, KekState>)>,
}

/// What a peer may have written under a KEK that is not in the history here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Writes {
    /// Nothing: it did not write under it any more when its history was read to the end.
    Nothing,
    /// It goes on writing.
    Active,
    /// Its history was not read to the end lately.
    Unknown,
}

impl Peers {
    /// The peers that a configuration names.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let server = &config.server;
        Self {
            tls: ClientPaths {
                ca: config
                    .sync
                    .ca
                    .clone()
                    .unwrap_or_else(|| server.client_ca.clone()),
                certificate: server.certificate.clone(),
                key: server.key.clone(),
            },
            // It is of the clients' CA, which another CA's certificates are not in.
            crl: server.crl.clone().filter(|_| config.sync.ca.is_none()),
            config: config.sync.clone(),
            turn: tokio::sync::Mutex::default(),
            seen: Mutex::default(),
            served: Mutex::default(),
            started: OffsetDateTime::now_utc(),
        }
    }

    /// What is configured.
    #[must_use]
    pub const fn config(&self) -> &SyncConfig {
        &self.config
    }

    /// What the next sync connects with. A peer whose certificate was revoked is no peer.
    pub(super) fn tls(&self) -> Result<ClientConfig, TlsError> {
        let ClientPaths {
            ca,
            certificate,
            key,
        } = &self.tls;
        client_config_with(ca, certificate, key, self.crl.as_deref())
    }

    /// Syncs that failed or are late: the peer, and why.
    #[must_use]
    pub fn failing(&self) -> Vec<(String, String)> {
        let now = OffsetDateTime::now_utc();
        let seen = self.seen();
        let from = self.config.from.iter();
        from.filter_map(|from| {
            let known = seen.get(&from.peer).cloned().unwrap_or_default();
            let late = from.every_seconds.and_then(|every| {
                let since = known.good.unwrap_or(self.started).max(self.started);
                let most = Duration::from_secs(every.saturating_mul(2).saturating_add(60));
                (now - since > most).then(|| late(known.good))
            });
            Some((from.peer.to_string(), known.failed.or(late)?))
        })
        .collect()
    }

    /// What differs after the last sync, and must be looked at: the peer, and what.
    #[must_use]
    pub fn differing(&self) -> Vec<(String, String)> {
        let seen = self.seen();
        let each = seen.iter();
        each.filter_map(|(peer, seen)| Some((peer.to_string(), seen.differs.clone()?)))
            .collect()
    }

    /// A peer was given the head.
    pub(crate) fn note_served(&self, peer: &PeerId) {
        let mut served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        served.insert(peer.clone(), Instant::now());
    }

    /// Whether a peer was given the head within the hour.
    pub(crate) fn was_served(&self, peer: &PeerId) -> bool {
        let served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        let at = served.get(peer);
        at.is_some_and(|at| at.elapsed() < SERVED)
    }

    /// A sync of another server on the same state, or before this one started.
    pub(super) fn note_good(&self, peer: &PeerId, at: OffsetDateTime) {
        self.seen().entry(peer.clone()).or_default().good = Some(at);
    }

    /// How a sync went.
    pub(super) fn note(&self, peer: &PeerId, outcome: &Result<SyncReport, SyncError>) {
        let mut all = self.seen();
        let seen = all.entry(peer.clone()).or_default();
        match outcome {
            Ok(report) => {
                seen.failed = None;
                seen.differs = report.differences.alarming();
                seen.good = Some(OffsetDateTime::now_utc());
            }
            Err(error) => seen.failed = Some(error.to_string()),
        }
    }

    /// The history there is here up to where these were the states of the KEKs.
    pub(super) fn note_whole(&self, peer: &PeerId, facts: &[KekFact]) {
        let states = facts.iter().map(|fact| (fact.hash, fact.state)).collect();
        self.seen().entry(peer.clone()).or_default().whole = Some((Instant::now(), states));
    }

    /// What each peer may have written under a KEK that is not in the history here.
    pub(crate) fn writes(&self, kek: &KekHash) -> Vec<(PeerId, Writes)> {
        let seen = self.seen();
        let whole = |peer: &PeerId| {
            let (at, states) = seen.get(peer)?.whole.as_ref()?;
            (at.elapsed() < LATELY).then_some(states)
        };
        let of = |peer: &PeerId| match whole(peer) {
            None => Writes::Unknown,
            Some(states) if states.get(kek) == Some(&KekState::Active) => Writes::Active,
            Some(_) => Writes::Nothing,
        };
        let from = self.config.from.iter();
        from.map(|from| (from.peer.clone(), of(&from.peer)))
            .collect()
    }

    fn seen(&self) -> MutexGuard<'_, BTreeMap<PeerId, Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn late(good: Option<OffsetDateTime>) -> String {
    use time::format_description::well_known::Rfc3339;
    let at = good.and_then(|at| at.truncate_to_second().format(&Rfc3339).ok());
    at.map_or_else(
        || "none has come to its end yet".to_owned(),
        |at| format!("the last one came to its end at {at}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::EXAMPLE;

    #[test]
    fn a_schedule_that_is_not_kept_is_told_of() {
        let mut config: Config = toml::from_str(EXAMPLE).unwrap();
        config.sync = toml::from_str(
            "[[from]]\npeer = \"server:a\"\naddress = \"a:1\"\nevery_seconds = 60\n\
             [[from]]\npeer = \"server:b\"\naddress = \"b:1\"",
        )
        .unwrap();
        let mut peers = Peers::new(&config);
        assert!(peers.failing().is_empty());
        let hour = time::Duration::HOUR;
        peers.started -= hour;
        let [(peer, why)] = peers.failing().try_into().unwrap();
        assert_eq!(peer, "server:a");
        assert!(why.contains("none has come"), "{why}");
        let a = config.sync.from[0].peer.clone();
        peers.note_good(&a, OffsetDateTime::now_utc());
        assert!(peers.failing().is_empty());
        peers.note_good(&a, OffsetDateTime::now_utc() - hour);
        assert!(peers.failing()[0].1.contains("the last one"));
        // A failure says more than that.
        let lost = SyncError::Reach {
            peer: a.clone(),
            address: "a:1".to_owned(),
            reason: "no route".to_owned(),
        };
        peers.note(&a, &Err(lost));
        assert!(peers.failing()[0].1.contains("no route"));
    }
}
