//! A server that shares its state with others: its part among them, and what it looks after for as
//! long as it runs.

mod everywhere;
mod outage;
mod servers;
mod status;

pub(super) use outage::{UNTRACED, no_rekey, unless_untraced, without_guarded};
pub use status::{FleetStatus, ServerSeen};

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use tokio::time::{Interval, MissedTickBehavior, interval};
use uuid::Uuid;

use super::Service;
use crate::audit::{Event, Kind, Outcome};
use crate::config::FleetConfig;
use crate::keystore::Tokens;
use crate::store::{Brought, Fleet, KeyServer, TokenHeld};

/// Time between two looks at the table.
const LOOK: Duration = Duration::from_secs(1);

/// Time after which the seals of partners' rows are verified again.
const SEALS: Duration = Duration::from_secs(30);

/// Time after which a token is asked again for the key that it did not give.
const REFUSED: Duration = Duration::from_secs(600);

/// A server's part in a fleet.
#[derive(Debug)]
pub(super) struct Part {
    fleet: Fleet,
    config: FleetConfig,
    required: bool,
    instance: Uuid,
    started: OffsetDateTime,
    // What is on its way into the queue.
    under_way: Arc<AtomicUsize>,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    // What was told last, and when.
    told: Option<(KeyServer, Instant)>,
    // What the tokens held that have not been up since the start.
    prior: Option<Vec<TokenHeld>>,
    // Another server of the same node name.
    twin: Option<Instant>,
    // Since when what differs.
    differs: BTreeMap<String, Instant>,
    // Why tokens gave no key for the seals on the local disk, and when they were asked.
    refused: BTreeMap<String, (String, Instant)>,
}

/// Has each token that serves give its key for what this server keeps on its own disk.
/// Those that are named are left out.
pub(crate) async fn derive(
    fleet: &Fleet,
    tokens: &Tokens,
    but: &HashSet<String>,
) -> Vec<(String, Result<(), String>)> {
    let keys = fleet.keys();
    let mut outcomes = Vec::new();
    for bridge in tokens.bridges() {
        let name = bridge.name();
        let asked = keys.has(name) || but.contains(name);
        if bridge.key_file().is_some() || !bridge.serves() || asked {
            continue;
        }
        let made = tokens
            .derive(name, &keys.listed(name), keys.derivation())
            .await
            .and_then(|made| {
                made.into_iter().try_for_each(|(key, secret)| {
                    keys.take_in(name, key, secret)
                        .map_err(|error| error.to_string())
                })
            });
        outcomes.push((name.to_owned(), made));
    }
    outcomes
}

impl Part {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this server has given out, or is about to, what is not in the history.
    fn owes(&self) -> bool {
        self.under_way.load(Ordering::SeqCst) > 0 || self.fleet.seen().queued > 0
    }

    /// Whether another server counts at that time.
    fn counts(&self, server: &KeyServer, now: OffsetDateTime) -> bool {
        let listed = self.config.nodes.contains(&server.node);
        listed || now - server.seen <= self.config.peer_time()
    }

    /// Now, by the clock of these rows; in an outage, when they were read.
    fn now(&self, servers: &[KeyServer]) -> OffsetDateTime {
        if self.fleet.is_down() {
            return newest(servers);
        }
        newest(servers).max(OffsetDateTime::now_utc() - CLOCKS)
    }
}

/// How far the clocks of servers and database may be apart.
const CLOCKS: time::Duration = time::Duration::MINUTE;

/// When the last of them told of itself: as good as now by the database's clock, which is theirs.
fn newest(servers: &[KeyServer]) -> OffsetDateTime {
    let seen = servers.iter().map(|server| server.seen);
    seen.max().unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

fn every(time: Duration) -> Interval {
    let mut every = interval(time);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    every
}

impl Service {
    /// The same as one of several servers.
    pub(crate) fn with_fleet(mut self, fleet: Fleet, config: Option<FleetConfig>) -> Self {
        let required = config
            .as_ref()
            .is_some_and(|config| config.require_kek_everywhere);
        self.part = Some(Part {
            fleet,
            config: config.unwrap_or_default(),
            required,
            instance: Uuid::new_v4(),
            started: OffsetDateTime::now_utc(),
            under_way: Arc::default(),
            seen: Mutex::default(),
        });
        self
    }

    /// Looks after what is shared, for as long as the server runs.
    pub(crate) async fn keep_fleet(self: Arc<Self>) {
        let Some(part) = &self.part else {
            return;
        };
        // A token that does not answer, or a database, must not hold up the other.
        tokio::join!(
            self.keep_table(part),
            self.keep_keys(part),
            self.keep_told(part)
        );
    }

    async fn keep_table(&self, part: &Part) {
        let mut look = every(LOOK);
        loop {
            look.tick().await;
            for brought in part.fleet.tick().await {
                let record = self.audit.record(brought_in(brought)).await;
                if let Err(error) = record {
                    tracing::error!(%error, "that a queued fact is in the database cannot be recorded");
                }
            }
            if let Some(failed) = part.fleet.failed_seen().filter(|_| !part.fleet.is_down()) {
                self.openings.merge(failed);
            }
        }
    }

    async fn keep_keys(&self, part: &Part) {
        let mut look = every(LOOK);
        let mut seals = Instant::now();
        loop {
            look.tick().await;
            let refused: HashSet<String> = {
                let mut seen = part.seen();
                seen.refused
                    .retain(|_, (_, asked)| asked.elapsed() < REFUSED);
                seen.refused.keys().cloned().collect()
            };
            for (token, outcome) in derive(&part.fleet, &self.tokens, &refused).await {
                let Err(reason) = outcome else { continue };
                tracing::warn!(
                    token,
                    reason,
                    "the token gives no key for the seal of the cached table; it is asked again in ten minutes"
                );
                part.seen().refused.insert(token, (reason, Instant::now()));
            }
            if seals.elapsed() >= SEALS {
                seals = Instant::now();
                self.forget_good_seals();
            }
        }
    }

    async fn keep_told(&self, part: &Part) {
        let mut look = every(LOOK);
        loop {
            look.tick().await;
            if !part.fleet.is_down()
                && let Err(error) = self.tell(part).await
            {
                tracing::warn!(%error, "this server cannot tell the others of itself");
            }
            self.compare(part);
        }
    }
}

fn brought_in(brought: Brought) -> Event {
    let Brought {
        request,
        peer,
        drive,
        volser,
        dki,
        how,
    } = brought;
    let mut event = Event::new(
        Kind::DataSynchronization,
        "history-brought-in",
        Outcome::Success,
    );
    event.request = Some(request);
    event.peer = Some(peer);
    event.drive = Some(drive);
    event.volser = volser;
    event.dki = Some(dki);
    event.detail = Some(how);
    event
}
