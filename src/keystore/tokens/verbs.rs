//! The four verbs, and which of the tokens may do each.
//!
//! | verb | who may |
//! |---|---|
//! | create | a writer of one of the KEKs first; any token; a software keystore only as a writer |
//! | resolve | who opens the KEK for a drive of that custody |
//! | rekey | likewise; a software keystore where the grant says so |
//! | prove | a writer of the KEK that opens it |

use async_trait::async_trait;

use super::{Fit, Tokens, out_of_turn};
use crate::bridge::message::{Custody, Op, Recipient, Reply, WrapUnder};
use crate::bridge::supervisor::Bridge;
use crate::key::{DataKeyId, Eedk, KekHash, OaepHash, Sedk, WrapAlgorithm};
use crate::keystore::{Fault, Keystore, Opened, Opening, Place, ThrowAway, WrapKek, Wrapped};

/// How a KEK that no token here holds is wrapped under, by a token that has no OAEP itself.
const ELSEWHERE: WrapAlgorithm = WrapAlgorithm::oaep(OaepHash::Sha256, true);

/// Whether the rules let the token take part in writing under that KEK.
fn writes(bridge: &Bridge, kek: &WrapKek) -> bool {
    kek.writers.iter().any(|name| name == bridge.name())
}

/// Only a token that opens the KEK will do.
fn opener(opening: Opening<'_>, custody: Custody) -> impl Fn(&Bridge) -> Fit {
    move |bridge| {
        let barred = !opening.software && bridge.key_file().is_some();
        if !barred && Tokens::opens(bridge, opening.kek, custody) {
            Fit::Holds
        } else {
            Fit::No
        }
    }
}

fn place(bridge: &Bridge, custody: Custody) -> Place {
    Place {
        token: bridge.name().to_owned(),
        custody,
    }
}

impl Tokens {
    /// The KEKs, each with the way in which the token that holds it opens EEDKs; OAEP before PKCS#1
    /// v1.5 where several hold it, and where none here does.
    fn under(&self, keks: &[WrapKek]) -> Vec<WrapUnder> {
        let way = |kek: &KekHash| {
            let holders = self
                .bridges
                .iter()
                .filter(|bridge| Self::holds(bridge, kek));
            holders
                .map(Bridge::wraps_by)
                .min_by_key(|way| way.is_v15())
                .unwrap_or(ELSEWHERE)
        };
        keks.iter()
            .map(|kek| WrapUnder {
                id: kek.id(),
                hash: kek.hash,
                spki: kek.spki.clone(),
                wrap: way(&kek.hash),
            })
            .collect()
    }
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
            keks: self.under(keks),
            drive: drive.clone(),
            custody,
            block,
        };
        // A token that holds one of the KEKs first: its proof needs no second token. What a
        // software keystore makes is in its memory, whoever proves it.
        let may = |bridge: &Bridge| {
            let writer = |kek: &&WrapKek| writes(bridge, kek);
            let mut written = keks.iter().filter(writer);
            if written.any(|kek| Self::holds(bridge, &kek.hash)) {
                Fit::Holds
            } else if bridge.key_file().is_some() {
                Fit::No
            } else {
                Fit::Able
            }
        };
        match self.served(may, &op, true, || self.no_maker()).await? {
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
        opening: Opening<'_>,
        drive: &Recipient,
        custody: Custody,
        guard: Option<ThrowAway>,
    ) -> Result<Opened, Fault> {
        let op = Op::Resolve {
            eedk: opening.eedk.clone(),
            kek: *opening.kek,
            drive: drive.clone(),
            custody,
            guard,
        };
        let none = || self.nobody(opening.kek, custody);
        let may = opener(opening, custody);
        match self.served(may, &op, opening.patient, none).await? {
            (
                bridge,
                Reply::Resolved {
                    sedk,
                    custody,
                    guarded,
                },
            ) => Ok(Opened {
                sedk,
                place: place(bridge, custody),
                guarded,
            }),
            (bridge, other) => Err(out_of_turn(bridge, &other)),
        }
    }

    async fn rekey(
        &self,
        opening: Opening<'_>,
        keks: &[WrapKek],
        custody: Custody,
        block: [u8; 16],
    ) -> Result<Wrapped, Fault> {
        let op = Op::Rekey {
            eedk: opening.eedk.clone(),
            kek: *opening.kek,
            keks: self.under(keks),
            custody,
            block,
        };
        let none = || self.nobody(opening.kek, custody);
        let may = opener(opening, custody);
        match self.served(may, &op, opening.patient, none).await? {
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
        kek: &WrapKek,
        custody: Custody,
        block: [u8; 16],
    ) -> Result<([u8; 16], Custody), Fault> {
        let op = Op::Prove {
            eedk: eedk.clone(),
            kek: kek.hash,
            custody,
            block,
        };
        let may = |bridge: &Bridge| {
            if writes(bridge, kek) && Self::opens(bridge, &kek.hash, custody) {
                Fit::Holds
            } else {
                Fit::No
            }
        };
        let none = || self.nobody(&kek.hash, custody);
        match self.served(may, &op, true, none).await? {
            (_, Reply::Proved { proof, custody }) => Ok((proof, custody)),
            (bridge, other) => Err(out_of_turn(bridge, &other)),
        }
    }
}
