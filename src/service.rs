//! What happens to a request between the door and the answer.
//!
//! Each verb is the same short story: known, granted, intended (the record's
//! fsync runs while the token works), exchanged, committed, recorded,
//! answered. Nothing leaves without its record: an answer is an [`Audited`],
//! by the receipt of its outcome, or for a resolve by that of its intent.

mod answer;
mod cartridge;
mod challenge;
mod confirm;
mod create;
mod elsewhere;
mod evidence;
mod fleet;
mod gates;
mod guarded;
mod known;
mod openings;
mod rekeying;
mod resolve;
mod seals;
mod sighted;
mod turns;
mod words;

pub(crate) use evidence::was_on;
pub use evidence::{EmergencySeen, EvidenceSeen, SealMade};
pub(crate) use fleet::derive;
pub use fleet::{FleetStatus, ServerSeen};
pub(crate) use known::STARTING;
pub(crate) use sighted::from;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, RwLock};

use crate::alarms::Alarms;
use crate::audit::{AuditLog, Audited, Event, Outcome};
use crate::bridge::supervisor::Bridge;
use crate::config::Config;
use crate::deadline;
use crate::key::KekHash;
use crate::keystore::{Guard, Tokens};
use crate::operators::Roster;
use crate::policy::PolicyConfig;
use crate::problem::{EkmCode, Problem};
use crate::store::{RequestKey, Store, StoreError, VolumeKey};
use crate::sync::Peers;
use crate::tls::PeerId;
use challenge::Challenges;
use elsewhere::Elsewhere;
use fleet::Part;
pub(crate) use gates::Bounds;
use gates::Caller;
pub use gates::{GateSeen, Gates};
use known::DriveCa;
use openings::Openings;
pub use openings::{BudgetSeen, OpeningsCounted, Whose};
pub(crate) use rekeying::Rekeyed;
use seals::Seals;
use sighted::Sighted;
use turns::Turns;
use words::{joined, note_unheard, unrecorded, unstored};

/// What a verb answers.
pub type Answer<T> = Result<Audited<T>, Problem>;

/// A server's core: state, records, tokens, policy.
#[derive(Debug)]
pub struct Service {
    node: String,
    policy: PolicyConfig,
    roster: Roster,
    sighted: Sighted,
    drive_ca: DriveCa,
    store: Arc<dyn Store>,
    audit: AuditLog,
    tokens: Tokens,
    turns: Turns,
    gates: Gates,
    request_time: Duration,
    challenges: Challenges,
    searched: Mutex<Option<Instant>>,
    seals: Seals,
    chain: evidence::Chain,
    elsewhere: Elsewhere,
    guard: Guard,
    openings: Openings,
    alarms: Arc<Alarms>,
    under_way: Arc<RwLock<()>>,
    peers: Peers,
    work: Notify,
    part: Option<Part>,
}

impl Service {
    /// A service over what is open already.
    ///
    /// # Errors
    /// The state cannot be read.
    pub async fn new(
        config: &Config,
        store: Arc<dyn Store>,
        audit: AuditLog,
        tokens: Tokens,
    ) -> Result<Self, StoreError> {
        let gates = config.gates(&tokens);
        let guard = guarded::guard(&*store).await?;
        let failed = store.failed_openings().await?;
        Ok(Self {
            node: config.node.clone(),
            policy: config.policy.clone(),
            roster: Roster::new(&config.operators, &config.policy.approval),
            sighted: Sighted::default(),
            drive_ca: DriveCa {
                roots: config.server.drive_ca.clone(),
                crl: config.server.crl.clone(),
            },
            store,
            audit,
            tokens,
            turns: Turns::default(),
            gates,
            request_time: config.request_time(),
            challenges: Challenges::default(),
            searched: Mutex::new(None),
            seals: Seals::default(),
            chain: evidence::Chain::new(config),
            elsewhere: Elsewhere::new(config),
            guard,
            openings: Openings::new(&config.policy, failed),
            alarms: Arc::new(Alarms::telling(&config.alarms, &config.node)),
            under_way: Arc::default(),
            peers: Peers::new(config),
            work: Notify::new(),
            part: None,
        })
    }

    /// The server's name.
    #[must_use]
    pub fn node(&self) -> &str {
        &self.node
    }

    /// The state.
    #[must_use]
    pub fn store(&self) -> &dyn Store {
        &*self.store
    }

    /// The rules.
    #[must_use]
    pub const fn policy(&self) -> &PolicyConfig {
        &self.policy
    }

    /// What is raised now; a server that runs looks once a second.
    #[must_use]
    pub const fn alarms(&self) -> &Arc<Alarms> {
        &self.alarms
    }

    /// Servers beside this one that share no database with it.
    #[must_use]
    pub const fn peers(&self) -> &Peers {
        &self.peers
    }

    /// What is allowed here, as JSON: for a server that compares.
    #[must_use]
    pub fn policy_json(&self) -> serde_json::Value {
        serde_json::to_value(&self.policy).unwrap_or_default()
    }

    /// The people of the configuration.
    #[must_use]
    pub const fn roster(&self) -> &Roster {
        &self.roster
    }

    /// The records.
    #[must_use]
    pub const fn audit(&self) -> &AuditLog {
        &self.audit
    }

    /// The tokens.
    #[must_use]
    pub const fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// How many requests are under way at each token, and how many wait.
    #[must_use]
    pub fn gates(&self) -> Vec<GateSeen> {
        self.gates.seen()
    }

    /// Runs a verb to its end, also when whoever asked has gone: a data key
    /// that is in the state must not lack its record.
    ///
    /// # Errors
    /// What the verb says.
    pub async fn to_the_end<T: Send + 'static>(
        self: Arc<Self>,
        verb: impl Future<Output = Result<T, Problem>> + Send + 'static,
    ) -> Result<T, Problem> {
        let under_way = Arc::clone(&self.under_way).read_owned().await;
        let until = deadline::until_or(self.request_time);
        // Dropped with this future: while a verb waits for its turn, nothing is lost with it.
        let (caller, _here) = Caller::new(until);
        tokio::spawn(async move {
            let outcome = caller.wait_for(verb).await;
            drop(under_way);
            outcome
        })
        .await
        .unwrap_or_else(|error| {
            tracing::error!(%error, "a request ended in a panic; this is a defect");
            Err(Problem::internal(
                "the request failed by a defect of the key manager; its log says more",
            ))
        })
    }

    /// Waits until no verb is under way.
    pub async fn idle(&self) {
        drop(self.under_way.write().await);
    }

    /// Says that there is work for whoever works through what operators asked for.
    pub(crate) fn wake(&self) {
        self.work.notify_one();
    }

    /// Waits until there is.
    pub(crate) async fn woken(&self) {
        self.work.notified().await;
    }

    /// A challenge for a drive's session key, good once.
    ///
    /// # Errors
    /// The operating system gives no random numbers.
    pub fn challenge(&self, peer: &PeerId) -> Result<Vec<u8>, Problem> {
        self.challenges
            .give(peer)
            .ok_or_else(|| Problem::internal("the operating system gives no random numbers"))
    }

    /// A place at a token that holds one of the KEKs, when it is this peer's
    /// turn, in exchange for the place at the state.
    async fn place<'a>(
        &self,
        looking: gates::Place,
        peer: &PeerId,
        keks: impl Iterator<Item = &'a KekHash> + Clone,
        barred: &[String],
    ) -> Result<Option<gates::Place>, Problem> {
        drop(looking);
        self.gates.enter(&self.tokens, keks, barred, peer).await
    }

    /// Records how it ended; the answer waits for that record.
    async fn close<T>(&self, mut event: Event, outcome: Result<T, Problem>) -> Answer<T> {
        if let Err(problem) = &outcome {
            event.outcome = Outcome::Failure;
            event.code = Some(problem.code.to_string());
            event.detail = Some(problem.detail.clone());
            tracing::warn!(
                action = event.action,
                drive = event.drive,
                peer = event.peer,
                code = %problem.code,
                detail = problem.detail,
                "request refused"
            );
        } else {
            note_unheard(&mut event);
        }
        let request = event.request.clone();
        let receipt = self
            .audit
            .record(event)
            .await
            .map_err(|error| unrecorded(&error))?;
        match outcome {
            Ok(answer) => Ok(Audited::new(answer, &receipt)),
            Err(problem) => Err(Problem {
                request_id: request,
                ..problem
            }),
        }
    }

    async fn answered(
        &self,
        key: &RequestKey,
        digest: &[u8; 32],
    ) -> Result<Option<VolumeKey>, Problem> {
        match self
            .store
            .answered(key)
            .await
            .map_err(|error| unstored(&error))?
        {
            Some((known, earlier)) if known == *digest => Ok(Some(earlier)),
            Some(_) => Err(Problem::new(
                EkmCode::EE23,
                409,
                "this request id was used before for another request; use a new one",
            )),
            None => Ok(None),
        }
    }

    /// Whether keys can be served now, or why not. A site without a KEK serves none.
    ///
    /// # Errors
    /// What is missing.
    pub fn ready(&self) -> Result<(), String> {
        if self.audit.has_failed() {
            return Err("the audit log has failed; see the server's log and restart it".to_owned());
        }
        if !self.tokens.any_answers() {
            let bridges = self.tokens.bridges();
            let told: Vec<String> = bridges.iter().map(Bridge::told).collect();
            let what = if bridges.iter().any(|bridge| bridge.keyless().is_some()) {
                "no token has a KEK that serves"
            } else {
                "no token is ready"
            };
            return Err(format!("{what}: {}", told.join("; ")));
        }
        Ok(())
    }
}
