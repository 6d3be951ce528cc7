//! What happens to a request between the door and the answer.
//!
//! Each verb is the same short story: known, granted, intended (the record's
//! fsync runs while the token works), exchanged, committed, recorded,
//! answered. Nothing leaves without its record: an answer is an [`Audited`],
//! by the receipt of its outcome, or for a resolve by that of its intent.

mod answer;
mod cartridge;
mod challenge;
mod elsewhere;
mod evidence;
mod fleet;
mod gates;
mod guarded;
mod known;
mod openings;
mod rekeying;
mod seals;
mod sighted;
mod turns;

pub(crate) use evidence::was_on;
pub use evidence::{EmergencySeen, EvidenceSeen, SealMade};
pub(crate) use fleet::derive;
pub use fleet::{FleetStatus, ServerSeen};
pub(crate) use known::STARTING;
pub(crate) use sighted::from;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::admin::Act;
use crate::alarms::Alarms;
use crate::api::{
    ConfirmAnswer, ConfirmRequest, CreateAnswer, CreateRequest, RekeyAnswer, RekeyRequest,
    ResolveAnswer, ResolveRequest,
};
use crate::audit::{AuditError, AuditLog, Audited, Event, Kind, Outcome, Receipt};
use crate::config::Config;
use crate::drive::DriveSerial;
use crate::exchange::{self, Fresh};
use crate::key::{Eedk, KekHash};
use crate::keystore::{Custody, Directory, Guard, Tokens};
use crate::operators::Roster;
use crate::policy::{
    DriveClaim, GrantedKek, KeyClaim, PolicyConfig, Presented, Purpose, Readable, Refusal,
    authorize_confirm, authorize_create, authorize_rekey, authorize_resolve,
};
use crate::problem::{EkmCode, Problem};
use crate::store::{
    Issuance, Issued, Origin, RequestKey, Store, StoreError, StoredEedk, VolumeKey,
};
use crate::sync::Peers;
use crate::tls::{PeerId, Role};
use answer::{create_answer, mark_opened, marks, presented_marks, rekey_answer, resolve_answer};
use cartridge::Cartridge;
use challenge::Challenges;
use elsewhere::Elsewhere;
use fleet::Part;
pub(crate) use gates::Bounds;
use gates::Caller;
pub use gates::{GateSeen, Gates};
use known::{DriveCa, Traced};
use openings::Openings;
pub use openings::{BudgetSeen, OpeningsCounted, Whose};
pub(crate) use rekeying::Rekeyed;
use seals::Seals;
use sighted::Sighted;
use tokio::sync::{Notify, RwLock};
use turns::Turns;

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
        // Dropped with this future: while a verb waits for its turn, nothing is lost with it.
        let (caller, _here) = Caller::new(self.request_time);
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

    /// A new data key. The same request id gets the same one again.
    ///
    /// # Errors
    /// The problem, recorded.
    pub async fn create(&self, peer: &PeerId, request: &CreateRequest) -> Answer<CreateAnswer> {
        let mut event = event(
            "create",
            peer,
            &request.request_id,
            Some(&request.drive.serial),
        );
        event.volser = Some(request.volser.to_string());
        let outcome = self.try_create(peer, request, &mut event).await;
        self.close(event, outcome).await
    }

    async fn try_create(
        &self,
        peer: &PeerId,
        request: &CreateRequest,
        event: &mut Event,
    ) -> Result<CreateAnswer, Problem> {
        self.all_is_served()?;
        let key = request_key(peer, &request.request_id);
        let digest = request.digest();
        let _turn = self.turns.take(key.clone()).await;
        let looking = self.gates.arrive(peer).await?;
        let claim = self.claim(&request.drive)?;
        if let Some(earlier) = self.answered(&key, &digest).await? {
            return self
                .create_again(looking, peer, request, &claim, &earlier, event)
                .await;
        }
        let place_to_keep = self.place_to_keep(&request.drive)?;
        let labels = (request.kek1.as_ref(), request.kek2.as_ref());
        let grant = self
            .judge(peer, &claim, |known| {
                authorize_create(known, peer, &claim, labels)
            })
            .await?;
        self.everywhere(grant.keks())?;
        self.register(grant.keks()).await?;
        event.keks = grant
            .keks()
            .iter()
            .map(|kek| kek.kek.label.to_string())
            .collect();
        event.drive_key = fingerprint(&grant.drive().spki);
        let mut barred = self.tokens.keystores();
        barred.retain(|name| {
            !grant
                .keks()
                .iter()
                .any(|kek| kek.kek.writers.contains(name))
        });
        let hashes = grant.keks().iter().map(|kek| &kek.kek.hash);
        let place = self.place(looking, peer, hashes, &barred).await?;
        let fresh = Fresh::new().map_err(|error| Problem::from(&error))?;
        // Here as in the others the token is asked first: it works while the record is written.
        let (issued, intent) = tokio::join!(
            biased;
            exchange::create(&self.tokens, &grant, fresh),
            self.audit.submit(intended(event))
        );
        let issued = issued.map_err(|error| Problem::from(&error))?;
        drop(place);
        intent.await.map_err(|error| unrecorded(&error))?;
        let eedks = stored(&issued.eedks, grant.keks(), &issued.proved);
        event.dki = Some(issued.dki.to_string());
        event.eedks = marks(&eedks);
        event.token = Some(issued.place.token.clone());
        event.custody = Some(issued.place.custody.to_string());
        note_unproved(event, grant.keks(), &issued.proved);
        let issuance = Issuance {
            request: key.clone(),
            digest,
            dki: issued.dki,
            volser: request.volser.clone(),
            drive: request.drive.serial.clone(),
            token: issued.place.token,
            custody: issued.place.custody,
            origin: Origin::Ours,
            new: true,
            eedks: eedks.clone(),
            server: self.node.clone(),
            job: request.job.clone().map(String::from),
        };
        let kept = self.keep(place_to_keep, &issuance, event).await?;
        // Another server did the same request meanwhile: the data key made here is given to nobody.
        if kept == Issued::Before
            && let Some(earlier) = self.answered(&key, &digest).await?
        {
            let looking = self.gates.arrive(peer).await?;
            return self
                .create_again(looking, peer, request, &claim, &earlier, event)
                .await;
        }
        create_answer(
            request.request_id,
            issued.dki,
            &eedks,
            issued.sedk,
            request.drive.stores_eedks,
        )
    }

    /// The answer to a create was lost: the same data key, wrapped again for the drive.
    async fn create_again(
        &self,
        looking: gates::Place,
        peer: &PeerId,
        request: &CreateRequest,
        claim: &DriveClaim,
        earlier: &VolumeKey,
        event: &mut Event,
    ) -> Result<CreateAnswer, Problem> {
        let presented: Vec<Presented> = earlier
            .eedks
            .iter()
            .map(|stored| Presented {
                eedk: Ok(stored.eedk.clone()),
                origin: Some(Origin::Ours),
            })
            .collect();
        let grant = self
            .judge(peer, claim, |known| {
                authorize_resolve(known, peer, claim, &presented, Purpose::Read)
            })
            .await?;
        event.dki = Some(earlier.dki.to_string());
        event.eedks = marks(&earlier.eedks);
        event.keks = labels_of(earlier);
        event.drive_key = fingerprint(&grant.drive().spki);
        event.detail = Some("the same data key again for a repeated request".to_owned());
        let keks = grant.readable().iter().map(|one| &one.kek);
        let place = self.place(looking, peer, keks, &[]).await?;
        let (resolved, intent) = tokio::join!(
            biased;
            exchange::resolve(&self.tokens, &grant, &self.guard),
            self.audit.submit(intended(event))
        );
        let resolved = resolved.map_err(|error| Problem::from(&error))?;
        drop(place);
        intent.await.map_err(|error| unrecorded(&error))?;
        mark_opened(&mut event.eedks, &presented, resolved.opened);
        event.token = Some(resolved.place.token);
        event.custody = Some(resolved.place.custody.to_string());
        create_answer(
            request.request_id,
            earlier.dki,
            &earlier.eedks,
            resolved.sedk,
            request.drive.stores_eedks,
        )
    }

    /// The data key of a cartridge.
    ///
    /// # Errors
    /// The problem, recorded.
    pub async fn resolve(&self, peer: &PeerId, request: &ResolveRequest) -> Answer<ResolveAnswer> {
        let mut event = event(
            "resolve",
            peer,
            &request.request_id,
            Some(&request.drive.serial),
        );
        event.volser = request.volser.as_ref().map(ToString::to_string);
        match self.try_resolve(peer, request, &mut event).await {
            // A data key that was in host memory has that on record before it leaves.
            Ok((answer, _)) if event.custody == Some(Custody::Host.to_string()) => {
                self.close(event, Ok(answer)).await
            }
            // The intent names all that the answer gives; how it ended follows.
            Ok((answer, intent)) => {
                self.audit.follow(event).await;
                Ok(Audited::new(answer, &intent))
            }
            Err(problem) => self.close(event, Err(problem)).await,
        }
    }

    async fn try_resolve(
        &self,
        peer: &PeerId,
        request: &ResolveRequest,
        event: &mut Event,
    ) -> Result<(ResolveAnswer, Receipt), Problem> {
        let looking = self.gates.arrive(peer).await?;
        let Cartridge {
            presented,
            catalog,
            untraced,
        } = self.cartridge(request).await?;
        let claim = self.claim(&request.drive)?;
        event.eedks = presented_marks(&presented);
        event.detail = catalog
            .as_ref()
            .map(|known| known.note(request.volser.as_ref()));
        if untraced {
            event.detail = joined(event.detail.take(), Some(fleet::UNTRACED.to_owned()));
        }
        let purpose = if request.append {
            Purpose::Append
        } else {
            Purpose::Read
        };
        let grant = self
            .judge(peer, &claim, |known| {
                authorize_resolve(known, peer, &claim, &presented, purpose).map_err(|refusal| {
                    match (refusal, request.dki) {
                        // Only who may speak for the drive is told what is in the history.
                        (Refusal::NoEedk(_), Some(dki)) if presented.is_empty() => {
                            Refusal::UnknownDataKey(dki)
                        }
                        (refusal, _) => refusal,
                    }
                })
            })
            .await
            .map_err(|problem| fleet::unless_untraced(problem, untraced))?;
        let grant = fleet::without_guarded(grant, untraced)?;
        let directory = self.directory().await?;
        event.drive_key = fingerprint(&grant.drive().spki);
        event.dki = granted_dki(grant.readable());
        event.keks = opening(grant.readable(), &directory);
        let dki = grant.readable().first().map(|one| one.eedk.dki());
        let newer = match &dki {
            Some(dki) => self.newer(dki).await?,
            None => None,
        };
        event.detail = joined(
            event.detail.take(),
            newer.as_ref().map(|newer| {
                format!(
                    "EEDKs of generation {} are to be stored on the cartridge",
                    newer.generation
                )
            }),
        );
        // Whoever waits for the rest of a budget holds nobody up.
        drop(looking);
        let (grant, budget) = self.within_budget(peer, grant).await?;
        let keks = grant.readable().iter().map(|one| &one.kek);
        let place = self.gates.enter(&self.tokens, keks, &[], peer).await?;
        let (resolved, intent) = tokio::join!(
            biased;
            exchange::resolve(&self.tokens, &grant, &self.guard),
            self.audit.submit(intended(event))
        );
        let resolved = match resolved {
            Ok(resolved) => resolved,
            Err(error) => {
                self.note_unanswered(budget, &error).await?;
                return Err(Problem::from(&error));
            }
        };
        drop(place);
        if let Some(came) = &resolved.guarded {
            self.note_opening(budget, came, resolved.opened, event)
                .await?;
        }
        let intent = intent.await.map_err(|error| unrecorded(&error))?;
        mark_opened(&mut event.eedks, &presented, resolved.opened);
        let opened = grant.readable().iter();
        let mut opened = opened.filter(|one| one.index == resolved.opened);
        let strange = presented.get(resolved.opened);
        if let Some(one) = opened.next()
            && strange.is_some_and(|one| one.origin.is_none())
            && !untraced
        {
            self.note_foreign(&one.kek, request.volser.as_ref()).await;
        }
        event.token = Some(resolved.place.token.clone());
        event.custody = Some(resolved.place.custody.to_string());
        event.detail = joined(event.detail.take(), failures(&resolved.failures));
        let catalog = catalog.map(|known| known.key.eedks).unwrap_or_default();
        let answer = resolve_answer(
            request.request_id,
            &presented,
            &catalog,
            newer,
            &directory,
            resolved,
        )?;
        Ok((answer, intent))
    }

    /// The data key of a cartridge under other KEKs.
    ///
    /// # Errors
    /// The problem, recorded.
    pub async fn rekey(&self, peer: &PeerId, request: &RekeyRequest) -> Answer<RekeyAnswer> {
        let mut event = event("rekey", peer, &request.request_id, Some(&request.serial));
        event.volser = Some(request.volser.to_string());
        let outcome = self.try_rekey(peer, request, &mut event).await;
        self.close(event, outcome).await
    }

    async fn try_rekey(
        &self,
        peer: &PeerId,
        request: &RekeyRequest,
        event: &mut Event,
    ) -> Result<RekeyAnswer, Problem> {
        self.all_is_served()?;
        let key = request_key(peer, &request.request_id);
        let digest = request.digest();
        let _turn = self.turns.take(key.clone()).await;
        let looking = self.gates.arrive(peer).await?;
        self.may_rekey(peer, request).await?;
        if let Some(earlier) = self.answered(&key, &digest).await? {
            return Ok(rekeyed_before(request, &earlier, event));
        }
        let Traced {
            presented,
            untraced,
        } = self.presented(&request.eedks).await?;
        if untraced {
            return Err(fleet::no_rekey());
        }
        event.eedks = presented_marks(&presented);
        event.keks = [Some(&request.kek1), request.kek2.as_ref()]
            .into_iter()
            .flatten()
            .map(|kek| kek.label.to_string())
            .collect();
        let claim = DriveClaim {
            serial: request.serial.clone(),
            key: KeyClaim::default(),
        };
        let labels = (&request.kek1, request.kek2.as_ref());
        let purpose = Purpose::Rekey {
            known: self.origin(&presented).await?,
        };
        let grant = self
            .judge(peer, &claim, |known| {
                authorize_rekey(known, peer, &request.serial, labels, &presented, purpose)
            })
            .await?;
        self.everywhere(grant.keks())?;
        let barred = if grant.readable().iter().any(|one| one.software) {
            Vec::new()
        } else {
            self.tokens.keystores()
        };
        let keks = grant.readable().iter().map(|one| &one.kek);
        let place = self.place(looking, peer, keks, &barred).await?;
        let made = Fresh::new().map_err(|error| Problem::from(&error))?;
        let (rekeyed, intent) = tokio::join!(
            biased;
            exchange::rekey(&self.tokens, &grant, made),
            self.audit.submit(intended(event))
        );
        let rekeyed = rekeyed.map_err(|error| Problem::from(&error))?;
        drop(place);
        intent.await.map_err(|error| unrecorded(&error))?;
        let source = presented
            .get(rekeyed.opened)
            .and_then(|presented| presented.origin);
        let fresh = stored(&rekeyed.eedks, grant.keks(), &rekeyed.proved);
        let dki = fresh
            .first()
            .map(|stored| stored.eedk.dki())
            .ok_or_else(|| Problem::internal("the token made no EEDK"))?;
        event.dki = Some(dki.to_string());
        event.eedks = marks(&fresh);
        for mark in &mut event.eedks {
            mark.foreign = source != Some(Origin::Ours);
        }
        event.token = Some(rekeyed.place.token.clone());
        event.custody = Some(rekeyed.place.custody.to_string());
        event.detail = failures(&rekeyed.failures);
        note_unproved(event, grant.keks(), &rekeyed.proved);
        let kept = self
            .store
            .issue(&Issuance {
                request: key.clone(),
                digest,
                dki,
                volser: request.volser.clone(),
                drive: request.serial.clone(),
                token: rekeyed.place.token,
                custody: rekeyed.place.custody,
                origin: source.unwrap_or(Origin::Foreign),
                new: false,
                eedks: fresh.clone(),
                server: self.node.clone(),
                job: None,
            })
            .await
            .map_err(|error| unstored(&error))?;
        if kept == Issued::Before
            && let Some(earlier) = self.answered(&key, &digest).await?
        {
            return Ok(rekeyed_before(request, &earlier, event));
        }
        Ok(rekey_answer(request.request_id, dki, &fresh))
    }

    /// Whether an operator's certificate is enough for this rekey; what other peers may is said by
    /// the policy.
    async fn may_rekey(&self, peer: &PeerId, request: &RekeyRequest) -> Result<(), Problem> {
        if peer.role() != Role::Operator {
            return Ok(());
        }
        let prohibited = |detail: String| Err(Problem::new(EkmCode::EE30, 403, detail));
        if !self.roster.admits(peer, Act::Rekey) {
            return prohibited(format!(
                "{peer} has not the role key-admin, which a rekey takes (ekm config roles)"
            ));
        }
        if self.roster.approval().wants(Act::RekeyPartner) {
            let directory = self.directory().await?;
            let mut targets = [Some(&request.kek1), request.kek2.as_ref()]
                .into_iter()
                .flatten()
                .filter_map(|kek| directory.by_label(&kek.label).ok());
            if targets.any(|kek| kek.partner.is_some()) {
                return prohibited(
                    "a rekey for a partner takes a second person (policy.approval), who cannot be asked at this door; use the command line".to_owned(),
                );
            }
        }
        Ok(())
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

    /// What a drive says became of its newest EEDKs.
    ///
    /// # Errors
    /// The problem, recorded.
    pub async fn confirm(&self, peer: &PeerId, request: &ConfirmRequest) -> Answer<ConfirmAnswer> {
        let mut event = event("confirm", peer, &request.request_id, Some(&request.serial));
        event.dki = Some(request.dki.to_string());
        let outcome = self.try_confirm(peer, request, &mut event).await;
        self.close(event, outcome).await
    }

    async fn try_confirm(
        &self,
        peer: &PeerId,
        request: &ConfirmRequest,
        event: &mut Event,
    ) -> Result<ConfirmAnswer, Problem> {
        self.all_is_served()?;
        let looked = self.look(&request.serial, false).await?;
        authorize_confirm(self.known(&looked), peer, &request.serial)
            .map_err(|refusal| Problem::from(&refusal))?;
        let key = self
            .store
            .confirm(
                &request.request_id.to_string(),
                &request.dki,
                &request.serial,
                request.stored,
                peer,
            )
            .await
            .map_err(|error| unstored(&error))?
            .ok_or_else(|| {
                Problem::new(
                    EkmCode::EE30,
                    404,
                    format!(
                        "request {} gave drive {} nothing of data key {}, so there is nothing to confirm",
                        request.request_id, request.serial, request.dki
                    ),
                )
            })?;
        event.volser = Some(key.volser.to_string());
        event.eedks = marks(&key.eedks);
        Ok(ConfirmAnswer {
            request_id: request.request_id,
            state: key.state,
        })
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

    /// Whether keys can be served now, or why not.
    ///
    /// # Errors
    /// What is missing.
    pub fn ready(&self) -> Result<(), String> {
        if self.audit.has_failed() {
            return Err("the audit log has failed; see the server's log and restart it".to_owned());
        }
        if !self.tokens.any_answers() {
            let bridges = self.tokens.bridges().iter();
            let states: Vec<String> = bridges
                .map(|bridge| format!("{} {}", bridge.name(), bridge.state().told()))
                .collect();
            return Err(format!("no token is ready: {}", states.join("; ")));
        }
        Ok(())
    }
}

fn event(action: &str, peer: &PeerId, request: &uuid::Uuid, drive: Option<&DriveSerial>) -> Event {
    let mut event = Event::new(Kind::Runtime, action, Outcome::Success);
    event.peer = Some(peer.to_string());
    event.request = Some(request.to_string());
    event.drive = drive.map(ToString::to_string);
    event
}

fn intended(event: &Event) -> Event {
    Event {
        outcome: Outcome::Intent,
        ..event.clone()
    }
}

/// The answer to a rekey was lost: the same EEDKs.
fn rekeyed_before(request: &RekeyRequest, earlier: &VolumeKey, event: &mut Event) -> RekeyAnswer {
    event.dki = Some(earlier.dki.to_string());
    event.eedks = marks(&earlier.eedks);
    event.keks = labels_of(earlier);
    event.detail = Some("the same EEDKs again for a repeated request".to_owned());
    rekey_answer(request.request_id, earlier.dki, &earlier.eedks)
}

fn labels_of(key: &VolumeKey) -> Vec<String> {
    let labels = key.eedks.iter().map(|stored| stored.kek_label.to_string());
    labels.collect()
}

fn request_key(peer: &PeerId, id: &uuid::Uuid) -> RequestKey {
    RequestKey {
        peer: peer.clone(),
        id: id.to_string(),
    }
}

fn fingerprint(spki: &[u8]) -> Option<String> {
    (!spki.is_empty()).then(|| KekHash::of_spki(spki).to_string())
}

fn stored(eedks: &[Eedk], keks: &[GrantedKek], proved: &[bool]) -> Vec<StoredEedk> {
    eedks
        .iter()
        .zip(keks)
        .zip(proved)
        .map(|((eedk, granted), proved)| StoredEedk {
            eedk: eedk.clone(),
            kek_label: granted.kek.label.clone(),
            kek_hash: granted.kek.hash,
            proved: *proved,
        })
        .collect()
}

fn note_unproved(event: &mut Event, keks: &[GrantedKek], proved: &[bool]) {
    for (granted, proved) in keks.iter().zip(proved) {
        if *proved {
            continue;
        }
        event.detail = Some(if granted.sealed {
            format!(
                "the EEDK under {} was not proved: it is a partner's KEK, whose seal was verified",
                granted.kek.label
            )
        } else {
            "an EEDK was not proved: its private half is not here, and policy.unproved_keks allows that".to_owned()
        });
    }
}

fn failures(faults: &[crate::keystore::Fault]) -> Option<String> {
    let texts: Vec<String> = faults.iter().map(ToString::to_string).collect();
    (!texts.is_empty()).then(|| format!("another EEDK does not open: {}", texts.join("; ")))
}

fn joined(one: Option<String>, other: Option<String>) -> Option<String> {
    match (one, other) {
        (Some(one), Some(other)) => Some(format!("{one}; {other}")),
        (one, other) => one.or(other),
    }
}

/// The labels of the KEKs that may open a cartridge; their hashes where a
/// label is not known.
fn opening(readable: &[Readable], directory: &Directory) -> Vec<String> {
    readable
        .iter()
        .map(|readable| match directory.by_hash(&readable.kek) {
            Some(kek) => kek.label.to_string(),
            None => readable.kek.to_string(),
        })
        .collect()
}

fn granted_dki(readable: &[Readable]) -> Option<String> {
    readable
        .first()
        .map(|readable| readable.eedk.dki().to_string())
}

fn unstored(error: &StoreError) -> Problem {
    if let StoreError::KekClosed { .. } = error {
        return Problem::unavailable(error.to_string());
    }
    tracing::error!(%error, "the state cannot be read or written");
    if let StoreError::Outage { what, .. } = error {
        return Problem::unavailable(format!(
            "the key service cannot answer now: its state database is out of reach, and without it there is no {what}; the server's log says why"
        ));
    }
    Problem::unavailable("the key manager's state cannot be read or written; its log says why")
}

fn unrecorded(error: &AuditError) -> Problem {
    tracing::error!(%error, "no audit record, so no answer");
    Problem::unavailable(
        "the audit record cannot be written, so no key is served; the server's log says why",
    )
}
