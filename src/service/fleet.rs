//! A server that shares its state with others: what it tells of itself and sees of them, and what
//! it may give out while the database is out of reach.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio::time::{Interval, MissedTickBehavior, interval};
use uuid::Uuid;

use super::{Service, joined, unrecorded, unstored};
use crate::api::DriveInRequest;
use crate::audit::{Event, Kind, Outcome};
use crate::bridge::message::PrivateHalf;
use crate::config::FleetConfig;
use crate::key::{KekHash, KeyLabel};
use crate::keystore::Tokens;
use crate::policy::{GrantedKek, ResolveGrant};
use crate::problem::{EkmCode, Problem};
use crate::store::{
    Brought, Defaults, Difference, Fleet, FleetSeen, Issuance, Issued, KekHeld, KekStanding,
    KeyServer, OutageCreates, Servers as _, StoreError, TokenHeld, differences, lacking,
};

/// Time between two looks at the table.
const LOOK: Duration = Duration::from_secs(1);

/// How long after a KEK was retired another server must have told of itself, besides that it knew: a
/// request may be under way by what was remembered a moment before. By the database's clock alone.
const WHOLE: time::Duration = time::Duration::seconds(60);

/// Time after which a server tells of itself again, where nothing has changed.
const TELL: Duration = Duration::from_secs(5);

/// How long servers may differ before that is an alarm: each reads its tokens every few seconds.
const SETTLES: Duration = Duration::from_secs(10);

/// Time after which the seals of partners' rows are verified again.
const SEALS: Duration = Duration::from_secs(30);

/// Time after which a token is asked again for the key that it did not give.
const REFUSED: Duration = Duration::from_secs(600);

/// What a record says where the history could not be asked.
pub(super) const UNTRACED: &str = "where the EEDKs come from is not known, as the state database is out of reach; they count as not issued here";

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

/// Where what is given out is kept.
#[derive(Debug)]
pub(super) enum PlaceToKeep {
    /// In the state.
    State,
    /// In this server's queue.
    Queue(UnderWay),
}

/// Something that is to be queued, and is not yet.
#[derive(Debug)]
pub(super) struct UnderWay(Arc<AtomicUsize>);

impl UnderWay {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(count))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A server, as another sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerSeen {
    /// What it tells of itself.
    #[serde(flatten)]
    pub server: KeyServer,
    /// Seconds since it told.
    pub ago: u64,
    /// Whether it counts: it told lately, or the configuration lists it.
    pub counts: bool,
    /// Whether it is this one.
    pub own: bool,
}

/// How the servers are that share a state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetStatus {
    /// This server's name.
    pub node: String,
    /// The database; none where the state is this server's own.
    pub database: Option<FleetSeen>,
    /// All that told of themselves.
    pub servers: Vec<ServerSeen>,
    /// Servers that the configuration lists and that are not there.
    pub missing: Vec<String>,
    /// What is not the same on those that count.
    pub differences: Vec<Difference>,
    /// Tokens that give no key for the seals on the local disk, and why.
    pub unsealed: Vec<(String, String)>,
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

fn ago(server: &KeyServer) -> Duration {
    Duration::try_from(OffsetDateTime::now_utc() - server.seen).unwrap_or_default()
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

    async fn tell(&self, part: &Part) -> Result<(), StoreError> {
        // That it was there says also that all that it gave out until then is in the history.
        if part.owes() {
            return Ok(());
        }
        // Before the first look at the table nothing is known of what this server told before.
        let Some(knows) = part.fleet.knows() else {
            return Ok(());
        };
        let own = self.own(part, knows, self.store.defaults().await?);
        let due = {
            let seen = part.seen();
            seen.told.as_ref().is_none_or(|(told, at)| {
                at.elapsed() >= TELL
                    || told.knows != own.knows
                    || told.tokens != own.tokens
                    || told.defaults != own.defaults
            })
        };
        if !due {
            return Ok(());
        }
        let before = part.fleet.tell(&own).await?;
        let mut seen = part.seen();
        let again = seen.told.is_some();
        if again && before.is_some_and(|before| before.instance != part.instance) {
            seen.twin = Some(Instant::now());
        }
        seen.told = Some((own, Instant::now()));
        Ok(())
    }

    /// This server as it tells of itself.
    fn own(&self, part: &Part, knows: i64, defaults: Defaults) -> KeyServer {
        let mut seen = part.seen();
        let prior = seen.prior.get_or_insert_with(|| {
            let mut servers = part.fleet.servers_seen().into_iter();
            let own = servers.find(|server| server.node == self.node);
            own.map(|server| server.tokens).unwrap_or_default()
        });
        let bridges = self.tokens.bridges().iter();
        let tokens = bridges
            .filter(|bridge| bridge.key_file().is_none())
            .map(|bridge| {
                let Some(found) = bridge.found() else {
                    let before = prior.iter().find(|token| token.name == bridge.name());
                    return before.cloned().unwrap_or_else(|| TokenHeld {
                        name: bridge.name().to_owned(),
                        serial: String::new(),
                        known: false,
                        keks: Vec::new(),
                    });
                };
                let serves = found
                    .keks
                    .iter()
                    .filter(|kek| matches!(kek.private, PrivateHalf::Serves { .. }));
                TokenHeld {
                    name: bridge.name().to_owned(),
                    serial: found.token.serial.clone(),
                    known: true,
                    keks: serves
                        .map(|kek| KekHeld {
                            label: kek.label.clone(),
                            hash: kek.hash,
                        })
                        .collect(),
                }
            })
            .collect();
        KeyServer {
            node: self.node.clone(),
            instance: part.instance,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started: part.started,
            seen: OffsetDateTime::now_utc(),
            knows,
            tokens,
            defaults,
        }
    }

    /// The servers that count, this one as it is now among them.
    fn counted(&self, part: &Part) -> Vec<KeyServer> {
        let told = part.seen().told.as_ref().map(|told| told.0.clone());
        let mut servers = part.fleet.servers_seen();
        let now = part.now(&servers);
        servers.retain(|server| server.node != self.node && part.counts(server, now));
        if let Some(told) = told {
            servers.push(self.own(part, told.knows, told.defaults));
        }
        servers.sort_by(|one, other| one.node.cmp(&other.node));
        servers
    }

    fn missing(part: &Part, servers: &[KeyServer]) -> Vec<String> {
        let now = part.now(&part.fleet.servers_seen());
        let there: HashSet<&str> = servers
            .iter()
            .filter(|server| now - server.seen <= part.config.peer_time())
            .map(|server| server.node.as_str())
            .collect();
        let listed = part.config.nodes.iter();
        listed
            .filter(|node| !there.contains(node.as_str()))
            .cloned()
            .collect()
    }

    fn compare(&self, part: &Part) {
        let now: HashSet<String> = self.differ(part).into_iter().map(|(key, _)| key).collect();
        let mut seen = part.seen();
        seen.differs.retain(|key, _| now.contains(key));
        for key in now {
            seen.differs.entry(key).or_insert_with(Instant::now);
        }
    }

    /// All that differs, by what it is.
    fn differ(&self, part: &Part) -> Vec<(String, String)> {
        // Without the database they cannot tell of themselves.
        if part.fleet.is_down() {
            return Vec::new();
        }
        let servers = self.counted(part);
        let mut all: Vec<(String, String)> = differences(&servers)
            .into_iter()
            .map(|difference| (difference.what, difference.how))
            .collect();
        let missing = Self::missing(part, &servers).into_iter();
        all.extend(missing.map(|node| {
            let how = "the configuration lists it, and it tells nothing of itself".to_owned();
            (format!("server {node}"), how)
        }));
        let twin = part.seen().twin;
        if twin.is_some_and(|at| at.elapsed() < TELL * 3) {
            let how = "two servers have this node name; give each its own".to_owned();
            all.push((format!("server {}", self.node), how));
        }
        all
    }

    /// What differs for longer than it takes to settle.
    pub(crate) fn fleet_differences(&self) -> Vec<(String, String)> {
        let Some(part) = &self.part else {
            return Vec::new();
        };
        let all = self.differ(part);
        let seen = part.seen();
        let lasts = |key: &String| {
            let since = seen.differs.get(key);
            since.is_some_and(|since| since.elapsed() >= SETTLES)
        };
        all.into_iter().filter(|(key, _)| lasts(key)).collect()
    }

    /// How the database is; none where the state is this server's own.
    pub(crate) fn fleet_seen(&self) -> Option<FleetSeen> {
        self.part.as_ref().map(|part| part.fleet.seen())
    }

    /// That what every server gave out before a KEK's state was changed is in the history that they
    /// share: each has told of itself since, by a table that has the change, and with nothing that is
    /// not in the history.
    ///
    /// # Errors
    /// Which one may have given out what is not.
    pub(crate) async fn history_is_whole(&self, standing: &KekStanding) -> Result<(), Problem> {
        let Some(part) = &self.part else {
            return Ok(());
        };
        let refused = |why: String| Err(Problem::new(EkmCode::EE30, 409, why));
        if part.owes() {
            return refused(
                "what this server gave out in an outage of the state database is not in the history yet; wait until it is (ekm fleet status)"
                    .to_owned(),
            );
        }
        let servers = self.store.servers().await;
        for server in servers.map_err(|error| unstored(&error))? {
            if server.node != self.node
                && server.knows < standing.row
                && server.seen >= standing.since + WHOLE
            {
                return refused(format!(
                    "server {} (version {}) told of itself since, and not that it knows of the change: one of an earlier version has to be upgraded first, one that cannot read its table says why in its log, and one that is gone for good is taken out of the list (ekm fleet forget {})",
                    server.node, server.version, server.node
                ));
            }
            let knows = server.knows >= standing.row && server.seen >= standing.since + WHOLE;
            if server.node != self.node && !knows {
                return refused(format!(
                    "server {} has not told of itself since {}, and may have given out EEDKs that are not in the history yet; wait until it has, a minute at least, or take it out of the list if it is gone for good (ekm fleet forget {})",
                    server.node,
                    standing
                        .since
                        .format(&time::format_description::well_known::Rfc3339)
                        .unwrap_or_default(),
                    server.node
                ));
            }
        }
        Ok(())
    }

    /// How the servers are that share the state.
    pub(crate) async fn fleet_status(&self) -> Result<FleetStatus, Problem> {
        let Some(part) = &self.part else {
            return Ok(FleetStatus {
                node: self.node.clone(),
                database: None,
                servers: Vec::new(),
                missing: Vec::new(),
                differences: Vec::new(),
                unsealed: Vec::new(),
            });
        };
        part.fleet.look_once().await;
        let servers = match part.fleet.servers().await {
            Ok(servers) => servers,
            Err(StoreError::Outage { .. }) => part.fleet.servers_seen(),
            Err(error) => return Err(unstored(&error)),
        };
        let now = part.now(&servers);
        let counted: Vec<KeyServer> = servers
            .iter()
            .filter(|server| part.counts(server, now))
            .cloned()
            .collect();
        Ok(FleetStatus {
            node: self.node.clone(),
            database: Some(part.fleet.seen()),
            missing: Self::missing(part, &counted),
            differences: differences(&counted),
            servers: servers
                .into_iter()
                .map(|server| ServerSeen {
                    ago: ago(&server).as_secs(),
                    counts: part.counts(&server, now),
                    own: server.node == self.node,
                    server,
                })
                .collect(),
            unsealed: part
                .seen()
                .refused
                .iter()
                .map(|(token, (reason, _))| (token.clone(), reason.clone()))
                .collect(),
        })
    }

    /// That every server that counts, and every token of each, has these KEKs, where the
    /// configuration wants that.
    pub(super) fn everywhere(&self, granted: &[GrantedKek]) -> Result<(), Problem> {
        let keks: Vec<_> = granted
            .iter()
            .filter(|granted| !granted.sealed)
            .map(|granted| (granted.kek.label.clone(), granted.kek.hash))
            .collect();
        self.all_have(&keks)
    }

    /// The same of KEKs by label and hash.
    pub(crate) fn all_have(&self, keks: &[(KeyLabel, KekHash)]) -> Result<(), Problem> {
        let Some(part) = self.part.as_ref().filter(|part| part.required) else {
            return Ok(());
        };
        // What the others have is not known yet.
        if part.fleet.knows().is_none() {
            return Err(Problem::unavailable(
                "nothing is written before the table of the servers was read (fleet.require_kek_everywhere = true; ekm fleet status)",
            ));
        }
        let servers = self.counted(part);
        let refused = |label: &str, why: String| {
            Err(Problem::new(
                EkmCode::EE31,
                409,
                format!(
                    "nothing is written under KEK {label}: fleet.require_kek_everywhere = true, and {why} (ekm fleet status)"
                ),
            ))
        };
        if let Some((node, token, label)) = lacking(&servers, keks) {
            let why = format!("token {token} of server {node} does not have it");
            return refused(&label, why);
        }
        let unknown = part.config.nodes.iter().find(|node| {
            **node != self.node && !servers.iter().any(|server| server.node == **node)
        });
        match (unknown, keks.first()) {
            (Some(node), Some((label, _))) => refused(
                label.as_str(),
                format!("what server {node} has is not known, as it was never there"),
            ),
            (None, _) | (_, None) => Ok(()),
        }
    }

    /// A drive that is not in the table may have been added since it was read, where the database is
    /// out of reach.
    pub(super) fn unless_away(&self, problem: Problem) -> Problem {
        let down = self.part.as_ref().is_some_and(|part| part.fleet.is_down());
        if !down || problem.code != EkmCode::EF01 {
            return problem;
        }
        Problem::unavailable(format!(
            "{}; that is by the table as it was read before the state database went out of reach",
            problem.detail
        ))
    }

    /// Where a create for that drive is kept.
    pub(super) fn place_to_keep(&self, drive: &DriveInRequest) -> Result<PlaceToKeep, Problem> {
        let Some(part) = self.part.as_ref().filter(|part| part.fleet.is_down()) else {
            return Ok(PlaceToKeep::State);
        };
        let refused = |why: &str| {
            Err(Problem::unavailable(format!(
                "the state database is out of reach, and nothing new is written meanwhile: {why}; cartridges are read all the same"
            )))
        };
        if part.fleet.creates() == OutageCreates::Refuse {
            return refused("database.outage_creates = \"refuse\"");
        }
        if !drive.stores_eedks {
            return refused(
                "this drive stores no EEDKs on the cartridge (stores_eedks), so they would be on this server's disk alone",
            );
        }
        if !part.fleet.keys().any() {
            return refused("no token gave a key for the seal of the local queue");
        }
        let under_way = UnderWay::new(&part.under_way);
        // Where it is back by now, what it was told of others must be looked at again.
        if part.fleet.is_down() {
            Ok(PlaceToKeep::Queue(under_way))
        } else {
            Ok(PlaceToKeep::State)
        }
    }

    /// Keeps what is about to be given out.
    pub(super) async fn keep(
        &self,
        place: PlaceToKeep,
        issuance: &Issuance,
        event: &mut Event,
    ) -> Result<Issued, Problem> {
        let kept = match (place, &self.part) {
            (PlaceToKeep::Queue(_under_way), Some(part)) => {
                let told = "kept in this server's queue until the state database is back";
                event.detail = joined(event.detail.take(), Some(told.to_owned()));
                part.fleet.queue(issuance).await.map(|()| Issued::Now)
            }
            (PlaceToKeep::State, _) | (_, None) => self.store.issue(issuance).await,
        };
        kept.map_err(|error| unstored(&error))
    }

    /// Takes a server out of the list that is gone for good.
    pub(crate) async fn forget_server(&self, node: &str, mut event: Event) -> Result<(), Problem> {
        let refused = |why: String| Err(Problem::new(EkmCode::EE30, 409, why));
        let part = self.part.as_ref();
        if part.is_some_and(|part| part.config.nodes.iter().any(|listed| listed == node)) {
            return refused(format!(
                "server {node} stands in [fleet] nodes of {}: take it out there, on every server, and restart them first; what a listed server has is asked for before anything is written",
                self.node
            ));
        }
        let servers = self.store.servers().await;
        let servers = servers.map_err(|error| unstored(&error))?;
        let row = servers.iter().find(|server| server.node == node);
        // The last one that was there may be it, long ago.
        let now = newest(&servers).max(OffsetDateTime::now_utc() - CLOCKS);
        if let Some(row) = row
            && now - row.seen < TELL * 3
        {
            return refused(format!(
                "server {node} told of itself {} s ago: stop it first",
                ago(row).as_secs()
            ));
        }
        event.detail = Some(format!("server {node}"));
        self.audit
            .record(event)
            .await
            .map_err(|error| unrecorded(&error))?;
        match self.store.forget_server(node).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(Problem::new(
                EkmCode::EE0F,
                404,
                format!("no server {node} ever told of itself (ekm fleet status)"),
            )),
            Err(error) => Err(unstored(&error)),
        }
    }
}

/// A refusal that comes of not knowing where an EEDK comes from is one for now.
pub(super) fn unless_untraced(problem: Problem, untraced: bool) -> Problem {
    // Of those with this code only that one may be otherwise on another server.
    if untraced && problem.code == EkmCode::EE30 && problem.elsewhere {
        return Problem::unavailable(format!(
            "{}; or it was, and the state database that knows is out of reach",
            problem.detail
        ));
    }
    problem
}

/// Without its history nobody can count what does not open.
pub(super) fn without_guarded(
    grant: ResolveGrant,
    untraced: bool,
) -> Result<ResolveGrant, Problem> {
    if !untraced || grant.guarded().is_none() {
        return Ok(grant);
    }
    let reason = "it is wrapped by RSAES-PKCS1-v1_5, and whether it was issued here is not known while the state database is out of reach";
    grant
        .unguarded(reason)
        .ok_or_else(|| Problem::unavailable(format!("the EEDK is not opened: {reason}")))
}

/// A rekey needs the history.
pub(super) fn no_rekey() -> Problem {
    Problem::unavailable(
        "the state database is out of reach, and no cartridge is rekeyed meanwhile; cartridges are read all the same",
    )
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
