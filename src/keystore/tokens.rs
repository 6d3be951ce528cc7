//! All configured tokens, each behind its bridge.

mod first;
#[cfg(test)]
mod tests;
mod verbs;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::{join_all, select_all};
use tokio::time::Instant;

use super::directory::Merged;
use super::{Directory, Fault};
use crate::bridge::message::{Custody, KekOnToken, Op, PrivateHalf, Ready, Reply};
use crate::bridge::supervisor::{Bridge, Rank, TokenState};
use crate::copies::KekCopy;
use crate::deadline;
use crate::key::{KekHash, KeyLabel};
use crate::store::{Certificates, RegisteredKek};
use first::{first, once};

/// Looks at a token after a KEK was made on it, until one shows it.
const LOOKS: usize = 5;

/// What a patient request waits at least, besides the time that one call may take.
const AFTER: Duration = Duration::from_secs(10);

/// Time between two rounds of a request that waits for a token.
const AGAIN: Duration = Duration::from_millis(50);

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

    /// Names of the software keystores among them.
    #[must_use]
    pub fn keystores(&self) -> Vec<String> {
        self.bridges
            .iter()
            .filter(|bridge| bridge.key_file().is_some())
            .map(|bridge| bridge.name().to_owned())
            .collect()
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

    /// How long a request takes that is put to a token now, by what the quickest of them took of
    /// late; zero where one is not known.
    #[must_use]
    pub fn usual(&self) -> Duration {
        let serving = self.bridges.iter().filter(|bridge| bridge.serves());
        serving.map(Bridge::usual).min().unwrap_or_default()
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
        let shown: Vec<(&str, Option<Arc<Ready>>)> = self
            .bridges
            .iter()
            .map(|bridge| (bridge.name(), bridge.found()))
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

    /// The same, and for a drive of that custody: what was made for custody `host` opens nothing
    /// for a drive that is not enrolled for it.
    fn opens(bridge: &Bridge, kek: &KekHash, custody: Custody) -> bool {
        bridge.found().is_some_and(|found| {
            found.keks.iter().any(|entry| {
                entry.hash == *kek
                    && match entry.private {
                        PrivateHalf::Absent => false,
                        // The token says why.
                        PrivateHalf::Refused { .. } => true,
                        PrivateHalf::Serves { custody: made, .. } => made <= custody,
                    }
            })
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
        none: impl Fn() -> Fault,
    ) -> Result<(&Bridge, Reply), Fault> {
        let until = Instant::now() + self.time(patient);
        loop {
            let mut order = self.order(&may);
            let mut silent = None;
            if !patient {
                // Who can turn to another EEDK does not wait for an HSM that hangs.
                silent = order.extract_if(.., |bridge| bridge.is_silent()).last();
            }
            let none = || silent.map_or_else(|| self.unserved(&may, none()), Bridge::unheard);
            let outcome = if op.guarded() {
                match once(order, op, until, none).await {
                    Ok((bridge, said)) => return said.map(|reply| (bridge, reply)),
                    // Nobody was asked.
                    Err(fault) => Err(fault),
                }
            } else {
                first(order, op, until, patient, none).await
            };
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
                return outcome.map_err(|fault| self.or_away(&may, fault));
            }
            // One that serves and fails all the same is not asked hot.
            tokio::time::sleep(AGAIN).await;
            let back = select_all(hopeful.iter().map(|bridge| Box::pin(bridge.serving())));
            if tokio::time::timeout_at(until, back).await.is_err() {
                return outcome;
            }
        }
    }

    /// The same fault, unless a token that is away holds the key or may: what those that serve cannot do,
    /// that one can perhaps. Nobody waits for it here, as it is likely not to either.
    fn or_away(&self, may: &impl Fn(&Bridge) -> Fit, fault: Fault) -> Fault {
        if fault.passes() || !fault.elsewhere() {
            return fault;
        }
        let holders = self.bridges.iter().filter(|bridge| {
            // What one that was never up holds is not known.
            (may(bridge) == Fit::Holds || bridge.found().is_none())
                && !matches!(bridge.state(), TokenState::Locked { .. })
        });
        match holders.filter_map(unready).next() {
            Some(Fault::Down { token, reason }) => Fault::Down {
                token,
                reason: format!("{reason}; and of the tokens that serve: {fault}"),
            },
            Some(other) => other,
            None => fault,
        }
    }

    /// What to say where no token served: `none`, unless one may do it after all and serves since.
    fn unserved(&self, may: &impl Fn(&Bridge) -> Fit, none: Fault) -> Fault {
        if none.passes() {
            return none;
        }
        let able = self.bridges.iter().find(|bridge| may(bridge) != Fit::No);
        able.map_or(none, |bridge| Fault::Down {
            token: bridge.name().to_owned(),
            reason: "it was not ready a moment ago, and is now".to_owned(),
        })
    }

    /// How long a request may ask, within its own time.
    fn time(&self, patient: bool) -> Duration {
        let longest = self.longest();
        if patient {
            // For one call that hangs to its end, and for another after that.
            deadline::left(longest + AFTER.max(longest / 2))
        } else {
            // Who can turn to another EEDK keeps as long for that.
            deadline::left(longest * 2) / 2
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

    /// What to say where no token can be asked for `kek`: why one that holds it, or was never up
    /// and may, is not ready; else what it is that none can.
    fn nobody(&self, kek: &KekHash, custody: Custody) -> Fault {
        let mut may_hold = self
            .bridges
            .iter()
            .filter(|bridge| bridge.found().is_none() || Self::opens(bridge, kek, custody));
        if let Some(why) = may_hold.find_map(unready) {
            return why;
        }
        match self.bridges.iter().find(|bridge| Self::holds(bridge, kek)) {
            Some(bridge) if bridge.key_file().is_some() => Fault::Unsupported {
                token: bridge.name().to_owned(),
                reason: format!(
                    "KEK {kek} is in a software keystore's memory, so a data key would be there in clear; enrol the drive for that (ekm drive mod SERIAL --custody host), or move the KEK into a token (ekm kek import)"
                ),
            },
            Some(bridge) => Fault::Unsupported {
                token: bridge.name().to_owned(),
                reason: format!(
                    "KEK {kek} was made for custody host, and this drive is not enrolled for it (ekm drive mod SERIAL --custody host)"
                ),
            },
            None => Fault::NoKek {
                token: None,
                kek: kek.to_string(),
            },
        }
    }

    /// What to say where no token can make a data key: why the first one is not ready.
    fn no_maker(&self) -> Fault {
        self.bridges
            .iter()
            .filter(|bridge| bridge.key_file().is_none())
            .chain(&self.bridges)
            .find_map(unready)
            .unwrap_or_else(|| Fault::Down {
                token: "(none)".to_owned(),
                reason: "no token of the configuration may make data keys under these KEKs"
                    .to_owned(),
            })
    }
}

/// Why it cannot be asked now.
fn unready(bridge: &Bridge) -> Option<Fault> {
    match bridge.state() {
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
