//! All configured tokens, each behind its bridge.

use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;

use super::{Directory, Fault, Keystore, Place, WrapKek, Wrapped};
use crate::bridge::message::{Custody, KekOnToken, Op, PrivateHalf, Recipient, Reply, WrapUnder};
use crate::bridge::supervisor::{Bridge, TokenState};
use crate::key::{DataKeyId, Eedk, KekHash, KeyLabel, Sedk};
use crate::store::RegisteredKek;

/// The tokens of a server, in the order of its configuration.
#[derive(Clone, Debug)]
pub struct Tokens {
    bridges: Vec<Bridge>,
}

impl Tokens {
    /// A group of running bridges.
    #[must_use]
    pub const fn new(bridges: Vec<Bridge>) -> Self {
        Self { bridges }
    }

    /// The bridges.
    #[must_use]
    pub fn bridges(&self) -> &[Bridge] {
        &self.bridges
    }

    /// Waits for tokens that are starting, up to the time given.
    pub async fn started(&self, patience: Duration) {
        let settled = join_all(self.bridges.iter().map(Bridge::settled));
        // Those that are not there by then are judged as they are.
        drop(tokio::time::timeout(patience, settled).await);
    }

    /// Whether every token is ready now.
    #[must_use]
    pub fn all_ready(&self) -> bool {
        self.bridges
            .iter()
            .all(|bridge| matches!(bridge.state(), TokenState::Ready { .. }))
    }

    /// Whether any token is ready now.
    #[must_use]
    pub fn any_ready(&self) -> bool {
        self.bridges
            .iter()
            .any(|bridge| matches!(bridge.state(), TokenState::Ready { .. }))
    }

    /// The KEKs on all tokens, as last read.
    #[must_use]
    pub fn directory(&self, registry: Vec<RegisteredKek>) -> Directory {
        // A token that is down still names its keys: they are not unknown,
        // only out of reach, and a label on two keys stays ambiguous.
        let lists: Vec<(&str, Vec<KekOnToken>)> = self
            .bridges
            .iter()
            .filter_map(|bridge| Some((bridge.name(), bridge.state().found()?.keks.clone())))
            .collect();
        Directory::new(
            lists.iter().map(|(name, keks)| (*name, keks.as_slice())),
            registry,
        )
    }

    /// Has every ready token read its KEKs again.
    pub async fn look_again(&self) {
        join_all(self.bridges.iter().map(|bridge| bridge.try_ask(Op::Look))).await;
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
    ) -> Result<(String, KekOnToken), Fault> {
        let no_token = |reason: String| Fault::Down {
            token: token.unwrap_or("(none named)").to_owned(),
            reason,
        };
        let bridge = match (token, self.bridges.as_slice()) {
            (Some(name), bridges) => bridges
                .iter()
                .find(|bridge| bridge.name() == name)
                .ok_or_else(|| no_token(format!("the configuration has no token {name}")))?,
            (None, [only]) => only,
            (None, _) => {
                return Err(no_token(
                    "there is more than one token; say which with --token".to_owned(),
                ));
            }
        };
        bridge.settled().await?;
        let op = Op::Generate {
            label: label.clone(),
            bits,
            custody,
        };
        match bridge.ask(op).await? {
            Reply::Generated(kek) => {
                // So that the published list has it before anyone asks.
                drop(bridge.ask(Op::Look).await);
                Ok((bridge.name().to_owned(), kek))
            }
            other => Err(out_of_turn(bridge, &other)),
        }
    }

    /// The bridges to try for a request that needs the private half of `kek`.
    fn holders<'a>(&'a self, kek: &'a KekHash) -> impl Iterator<Item = &'a Bridge> + Clone {
        self.bridges.iter().filter(|bridge| {
            bridge.state().found().is_some_and(|found| {
                found.keks.iter().any(|entry| {
                    entry.hash == *kek && !matches!(entry.private, PrivateHalf::Absent)
                })
            })
        })
    }

    /// Asks one bridge after another until one answers, or fails in a way
    /// that is the request's own fault; first at once, and if all of them are
    /// down, waiting for one to come back.
    async fn first<'a>(
        bridges: impl Iterator<Item = &'a Bridge> + Clone,
        op: &Op,
        patient: bool,
        none: Fault,
    ) -> Result<(&'a Bridge, Reply), Fault> {
        let mut worst: Option<Fault> = None;
        for bridge in bridges.clone() {
            match bridge.try_ask(op.clone()).await {
                Ok(reply) => return Ok((bridge, reply)),
                Err(fault) if fault.elsewhere() => worse(&mut worst, fault),
                Err(fault) => return Err(fault),
            }
        }
        if !(patient && worst.as_ref().is_some_and(Fault::passes)) {
            return Err(worst.unwrap_or(none));
        }
        for bridge in bridges {
            match bridge.ask(op.clone()).await {
                Ok(reply) => return Ok((bridge, reply)),
                Err(fault) => worse(&mut worst, fault),
            }
        }
        Err(worst.unwrap_or(none))
    }

    /// What to say where no token can be asked: why the first one is not ready.
    fn nobody(&self, kek: Option<&KekHash>) -> Fault {
        let unready = self.bridges.iter().find_map(|bridge| match bridge.state() {
            TokenState::Failed { why, .. } | TokenState::Locked { why, .. } => Some(Fault::Down {
                token: bridge.name().to_owned(),
                reason: why.to_string(),
            }),
            TokenState::Starting => Some(Fault::Down {
                token: bridge.name().to_owned(),
                reason: "it is still starting".to_owned(),
            }),
            TokenState::Ready { .. } => None,
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

/// Keeps the fault that tells most. One token that is well and holds the KEK
/// settles that an EEDK is bad; else one that is down leaves most hope.
fn worse(worst: &mut Option<Fault>, fault: Fault) {
    let settled = |fault: &Fault| matches!(fault, Fault::BadEedk { .. });
    let hopeful = |known: &Fault| known.passes() && !settled(&fault);
    if worst
        .as_ref()
        .is_none_or(|known| !settled(known) && !hopeful(known))
    {
        *worst = Some(fault);
    }
}

fn out_of_turn(bridge: &Bridge, reply: &Reply) -> Fault {
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
        let holds = |bridge: &Bridge| {
            keks.iter().any(|kek| {
                self.holders(&kek.hash)
                    .any(|holder| holder.name() == bridge.name())
            })
        };
        let (near, far): (Vec<&Bridge>, Vec<&Bridge>) =
            self.bridges.iter().partition(|bridge| holds(bridge));
        let order: Vec<&Bridge> = near.into_iter().chain(far).collect();
        match Self::first(order.iter().copied(), &op, true, self.nobody(None)).await? {
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
        match Self::first(self.holders(kek), &op, patient, self.nobody(Some(kek))).await? {
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
        match Self::first(self.holders(kek), &op, patient, self.nobody(Some(kek))).await? {
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
        match Self::first(self.holders(kek), &op, true, self.nobody(Some(kek))).await? {
            (_, Reply::Proved { proof, custody }) => Ok((proof, custody)),
            (bridge, other) => Err(out_of_turn(bridge, &other)),
        }
    }
}
