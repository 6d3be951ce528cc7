//! All configured tokens, each behind its bridge.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::{join_all, select_all};
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::time::Instant;

use super::directory::Merged;
use super::{Directory, Fault, Keystore, Place, WrapKek, Wrapped};
use crate::bridge::message::{
    Custody, KekOnToken, Op, PrivateHalf, Ready, Recipient, Reply, WrapUnder,
};
use crate::bridge::supervisor::{Bridge, Rank, TokenState};
use crate::copies::KekCopy;
use crate::key::{DataKeyId, Eedk, KekHash, KeyLabel, Sedk};
use crate::store::{Certificates, RegisteredKek};

/// Looks at a token after a KEK was made on it, until one shows it.
const LOOKS: usize = 5;

/// What a patient request waits at least, besides the time that one call may take.
const AFTER: Duration = Duration::from_secs(10);

/// Time between two rounds of a request that waits for a token.
const AGAIN: Duration = Duration::from_millis(50);

/// How often a token that is waited for is looked at, where something else can be tried.
const LOOK: Duration = Duration::from_millis(100);

/// The tokens of a server, in the order of its configuration.
#[derive(Clone, Debug)]
pub struct Tokens {
    bridges: Vec<Bridge>,
    turn: Arc<AtomicUsize>,
    merged: Arc<Merged>,
}

/// How well a token fits a request, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fit {
    /// It holds the key.
    Holds,
    /// It can do it without.
    Able,
    /// It cannot.
    No,
}

impl Tokens {
    /// A group of running bridges.
    #[must_use]
    pub fn new(bridges: Vec<Bridge>) -> Self {
        Self {
            bridges,
            turn: Arc::default(),
            merged: Arc::default(),
        }
    }

    /// The bridges.
    #[must_use]
    pub fn bridges(&self) -> &[Bridge] {
        &self.bridges
    }

    /// Waits for tokens that are starting, up to the time given.
    pub async fn started(&self, patience: Duration) {
        // Nearly always, and then without a timer.
        if self.all_serve() {
            return;
        }
        let settled = join_all(self.bridges.iter().map(Bridge::settled));
        // Those that are not there by then are judged as they are.
        drop(tokio::time::timeout(patience, settled).await);
    }

    /// Whether every token serves now.
    #[must_use]
    pub fn all_serve(&self) -> bool {
        self.bridges.iter().all(Bridge::serves)
    }

    /// Whether keys can be had of any token now.
    #[must_use]
    pub fn any_answers(&self) -> bool {
        self.bridges.iter().any(Bridge::answers)
    }

    /// The KEKs on all tokens, as last read, with what the registry has of them and of their copies.
    #[must_use]
    pub fn directory(
        &self,
        registry: Arc<[RegisteredKek]>,
        certificates: Arc<Certificates>,
        copies: Arc<[KekCopy]>,
    ) -> Arc<Directory> {
        // A token that is down still names its keys: they are not unknown,
        // only out of reach, and a label on two keys stays ambiguous.
        let shown: Vec<(&str, Arc<Ready>)> = self
            .bridges
            .iter()
            .filter_map(|bridge| Some((bridge.name(), bridge.found()?)))
            .collect();
        self.merged.current(&shown, registry, certificates, copies)
    }

    /// Has every token that serves read its KEKs again.
    pub async fn look_again(&self) {
        join_all(self.bridges.iter().map(Bridge::look)).await;
    }

    /// Makes a KEK on the token of that name, or on the only one.
    ///
    /// # Errors
    /// There is no such token, or its fault.
    pub async fn generate(
        &self,
        token: Option<&str>,
        label: &KeyLabel,
        bits: u32,
        custody: Custody,
        sign: bool,
    ) -> Result<(String, KekOnToken), Fault> {
        let no_token = |reason: String| Fault::Down {
            token: token.unwrap_or("(none named)").to_owned(),
            reason,
        };
        let tokens: Vec<&Bridge> = self
            .bridges
            .iter()
            .filter(|bridge| bridge.key_file().is_none())
            .collect();
        let bridge = match (token, tokens.as_slice()) {
            (Some(name), _) => self
                .bridges
                .iter()
                .find(|bridge| bridge.name() == name)
                .ok_or_else(|| no_token(format!("the configuration has no token {name}")))?,
            (None, [only]) => *only,
            (None, tokens) => {
                let names: Vec<&str> = tokens.iter().map(|bridge| bridge.name()).collect();
                return Err(no_token(format!(
                    "there is more than one token; say which with --token: {}",
                    names.join(", ")
                )));
            }
        };
        bridge.settled().await?;
        let op = Op::Generate {
            label: label.clone(),
            bits,
            custody,
            sign,
        };
        match bridge.ask(op).await? {
            Reply::Generated(kek) => {
                // So that the published list has it before anyone asks; on a token that is busy a
                // look may not end in its time.
                let until = Instant::now() + bridge.deadline();
                for _ in 0..LOOKS {
                    bridge.look().await;
                    if Self::shows(bridge, &kek.hash) || Instant::now() >= until {
                        break;
                    }
                }
                Ok((bridge.name().to_owned(), kek))
            }
            other => Err(out_of_turn(bridge, &other)),
        }
    }

    /// Whether the token is known to have `kek`, or its public half.
    fn shows(bridge: &Bridge, kek: &KekHash) -> bool {
        bridge
            .found()
            .is_some_and(|found| found.keks.iter().any(|entry| entry.hash == *kek))
    }

    /// Whether the token is known to have the private half of `kek`.
    fn holds(bridge: &Bridge, kek: &KekHash) -> bool {
        bridge.found().is_some_and(|found| {
            found
                .keks
                .iter()
                .any(|entry| entry.hash == *kek && !matches!(entry.private, PrivateHalf::Absent))
        })
    }

    /// Asks the tokens that may do it. Where all of them are down and the
    /// request is patient, it waits for one to come back; where it is not, it
    /// does not wait for one that is silent either.
    async fn served(
        &self,
        may: impl Fn(&Bridge) -> Fit,
        op: &Op,
        patient: bool,
        none: Fault,
    ) -> Result<(&Bridge, Reply), Fault> {
        let longest = self.longest();
        // Time for one call that hangs to its end, and for another after that.
        let more = if patient {
            AFTER.max(longest / 2)
        } else {
            Duration::ZERO
        };
        let until = Instant::now() + longest + more;
        loop {
            let mut order = self.order(&may);
            let mut none = none.clone();
            if !patient {
                // Who can turn to another EEDK does not wait for an HSM that hangs.
                let silent = order.extract_if(.., |bridge| bridge.is_silent()).last();
                if let Some(bridge) = silent {
                    none = bridge.unheard();
                }
            }
            let outcome = first(order, op, until, patient, none).await;
            let hopeful: Vec<&Bridge> = self
                .bridges
                .iter()
                // What a token holds that was never up is not known. One that is left to its
                // operator does not come back by itself.
                .filter(|bridge| may(bridge) != Fit::No || bridge.found().is_none())
                .filter(|bridge| !matches!(bridge.state(), TokenState::Locked { .. }))
                .collect();
            let waits = patient
                && !hopeful.is_empty()
                && outcome.as_ref().is_err_and(Fault::passes)
                && Instant::now() + AGAIN < until;
            if !waits {
                return outcome;
            }
            // One that serves and fails all the same is not asked hot.
            tokio::time::sleep(AGAIN).await;
            let back = select_all(hopeful.iter().map(|bridge| Box::pin(bridge.serving())));
            if tokio::time::timeout_at(until, back).await.is_err() {
                return outcome;
            }
        }
    }

    /// The longest that any token may take.
    fn longest(&self) -> Duration {
        let longest = self.bridges.iter().map(Bridge::deadline).max();
        longest.unwrap_or_default()
    }

    /// The tokens that serve and may do it, the one to ask first at the
    /// front: by fitness, silence, priority, and the least to do for its
    /// weight. So each token gets what it sustains: one that is fast is free
    /// again sooner.
    fn order(&self, may: &impl Fn(&Bridge) -> Fit) -> Vec<&Bridge> {
        // Equals take turns.
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let count = self.bridges.len().max(1);
        let mut order: Vec<_> = self
            .bridges
            .iter()
            .enumerate()
            .map(|(index, bridge)| (may(bridge), (index + turn) % count, bridge))
            .filter(|(fit, _, bridge)| *fit != Fit::No && bridge.serves())
            .map(|(fit, turn, bridge)| {
                let Rank { priority, weight } = bridge.rank();
                let waiting = u64::try_from(bridge.under_way()).unwrap_or(u64::MAX);
                let load =
                    waiting.saturating_add(1).saturating_mul(1000) / u64::from(weight.max(1));
                ((bridge.is_silent(), priority, fit, load, turn), bridge)
            })
            .collect();
        order.sort_by_key(|(key, _)| *key);
        order.into_iter().map(|(_, bridge)| bridge).collect()
    }

    /// What to say where no token can be asked: why the first one is not ready.
    fn nobody(&self, kek: Option<&KekHash>) -> Fault {
        let unready = self.bridges.iter().find_map(|bridge| match bridge.state() {
            // It names the token already.
            TokenState::Failed {
                why: why @ Fault::Down { .. },
                ..
            } => Some(why),
            TokenState::Failed { why, .. } | TokenState::Locked { why, .. } => Some(Fault::Down {
                token: bridge.name().to_owned(),
                reason: why.to_string(),
            }),
            TokenState::Starting { .. } => Some(Fault::Down {
                token: bridge.name().to_owned(),
                reason: "it is still starting".to_owned(),
            }),
            TokenState::Ready { .. } | TokenState::Degraded { .. } => None,
        });
        match (unready, kek) {
            (Some(why), _) => why,
            (None, Some(kek)) => Fault::NoKek {
                token: None,
                kek: kek.to_string(),
            },
            (None, None) => Fault::Down {
                token: "(none)".to_owned(),
                reason: "the configuration names no token".to_owned(),
            },
        }
    }
}

/// Asks one token after another until one answers, or fails in a way that is
/// the request's own fault. The next is asked too, and the first answer
/// taken, where one does not answer in the time that it usually needs: an HSM
/// that hangs must not hold up what another can do. One that is silent is given
/// up where no other is left and the request is not patient.
async fn first<'a>(
    order: Vec<&'a Bridge>,
    op: &Op,
    until: Instant,
    patient: bool,
    none: Fault,
) -> Result<(&'a Bridge, Reply), Fault> {
    let mut next = order.into_iter();
    let mut asked = FuturesUnordered::new();
    let mut waiting: Vec<&Bridge> = Vec::new();
    let mut worst: Option<Fault> = None;
    let mut patience = Duration::ZERO;
    loop {
        if asked.is_empty() || patience.is_zero() {
            match next.next() {
                Some(bridge) => {
                    patience = bridge.patience();
                    waiting.push(bridge);
                    asked.push(async move { (bridge, bridge.try_ask(op, until).await) });
                }
                None if asked.is_empty() => return Err(worst.unwrap_or(none)),
                None if patient => patience = Duration::MAX,
                None if waiting.iter().all(|bridge| bridge.is_silent()) => {
                    for bridge in waiting {
                        worse(&mut worst, bridge.unheard());
                    }
                    return Err(worst.unwrap_or(none));
                }
                None => patience = LOOK,
            }
        }
        let answer = tokio::time::timeout(patience, asked.next()).await;
        match answer {
            Ok(Some((bridge, Ok(reply)))) => return Ok((bridge, reply)),
            Ok(Some((bridge, Err(fault)))) if fault.elsewhere() => {
                waiting.retain(|other| other.name() != bridge.name());
                worse(&mut worst, fault);
            }
            Ok(Some((_, Err(fault)))) => return Err(fault),
            Ok(None) => {}
            Err(_) => patience = Duration::ZERO,
        }
    }
}

/// Keeps the fault that tells most: one that may pass leaves most hope. That an
/// EEDK is bad is no matter of comparing, and never comes here.
fn worse(worst: &mut Option<Fault>, fault: Fault) {
    if worst.as_ref().is_none_or(|known| !known.passes()) {
        *worst = Some(fault);
    }
}

/// Only a token that holds the private half will do.
fn holder(kek: &KekHash) -> impl Fn(&Bridge) -> Fit {
    |bridge| {
        if Tokens::holds(bridge, kek) {
            Fit::Holds
        } else {
            Fit::No
        }
    }
}

pub(super) fn out_of_turn(bridge: &Bridge, reply: &Reply) -> Fault {
    tracing::error!(
        token = bridge.name(),
        ?reply,
        "the bridge answered out of turn"
    );
    Fault::Down {
        token: bridge.name().to_owned(),
        reason: "its bridge answered out of turn".to_owned(),
    }
}

fn place(bridge: &Bridge, custody: Custody) -> Place {
    Place {
        token: bridge.name().to_owned(),
        custody,
    }
}

fn under(keks: &[WrapKek]) -> Vec<WrapUnder> {
    keks.iter()
        .map(|kek| WrapUnder {
            id: kek.id(),
            hash: kek.hash,
            spki: kek.spki.clone(),
        })
        .collect()
}

#[async_trait]
impl Keystore for Tokens {
    async fn create(
        &self,
        dki: DataKeyId,
        keks: &[WrapKek],
        drive: &Recipient,
        custody: Custody,
        block: [u8; 16],
    ) -> Result<(Wrapped, Sedk), Fault> {
        let op = Op::Create {
            dki,
            keks: under(keks),
            drive: drive.clone(),
            custody,
            block,
        };
        // A token that holds one of the KEKs first: its proof needs no second token.
        let may = |bridge: &Bridge| {
            if keks.iter().any(|kek| Self::holds(bridge, &kek.hash)) {
                Fit::Holds
            } else {
                Fit::Able
            }
        };
        match self.served(may, &op, true, self.nobody(None)).await? {
            (
                bridge,
                Reply::Created {
                    eedks,
                    sedk,
                    proof,
                    custody,
                },
            ) => Ok((
                Wrapped {
                    eedks,
                    proof,
                    place: place(bridge, custody),
                },
                sedk,
            )),
            (bridge, other) => Err(out_of_turn(bridge, &other)),
        }
    }

    async fn resolve(
        &self,
        eedk: &Eedk,
        kek: &KekHash,
        drive: &Recipient,
        custody: Custody,
        patient: bool,
    ) -> Result<(Sedk, Place), Fault> {
        let op = Op::Resolve {
            eedk: eedk.clone(),
            kek: *kek,
            drive: drive.clone(),
            custody,
        };
        match self
            .served(holder(kek), &op, patient, self.nobody(Some(kek)))
            .await?
        {
            (bridge, Reply::Resolved { sedk, custody }) => Ok((sedk, place(bridge, custody))),
            (bridge, other) => Err(out_of_turn(bridge, &other)),
        }
    }

    async fn rekey(
        &self,
        eedk: &Eedk,
        kek: &KekHash,
        keks: &[WrapKek],
        custody: Custody,
        block: [u8; 16],
        patient: bool,
    ) -> Result<Wrapped, Fault> {
        let op = Op::Rekey {
            eedk: eedk.clone(),
            kek: *kek,
            keks: under(keks),
            custody,
            block,
        };
        match self
            .served(holder(kek), &op, patient, self.nobody(Some(kek)))
            .await?
        {
            (
                bridge,
                Reply::Rekeyed {
                    eedks,
                    proof,
                    custody,
                },
            ) => Ok(Wrapped {
                eedks,
                proof,
                place: place(bridge, custody),
            }),
            (bridge, other) => Err(out_of_turn(bridge, &other)),
        }
    }

    async fn prove(
        &self,
        eedk: &Eedk,
        kek: &KekHash,
        custody: Custody,
        block: [u8; 16],
    ) -> Result<([u8; 16], Custody), Fault> {
        let op = Op::Prove {
            eedk: eedk.clone(),
            kek: *kek,
            custody,
            block,
        };
        match self
            .served(holder(kek), &op, true, self.nobody(Some(kek)))
            .await?
        {
            (_, Reply::Proved { proof, custody }) => Ok((proof, custody)),
            (bridge, other) => Err(out_of_turn(bridge, &other)),
        }
    }
}
