//! The exchange: a data key is made, read back or put under other KEKs.
//!
//! It takes nothing but a grant, which only the policy makes, and knows no
//! backend, no network and no disk. An EEDK is proved before it is released:
//! it is opened again on a token that holds the private half, and both data
//! keys encrypt one fresh random block. A bit flipped in an EEDK would be a
//! tape lost for ever, found out ten years later.

use futures_util::future::try_join_all;

use crate::key::{DataKeyId, Eedk, Sedk};
use crate::keystore::{
    Custody, Fault, Guard, Guarded, Keystore, Opened, Opening, Place, ThrowAway, Wrapped,
};
use crate::policy::{CreateGrant, Readable, RekeyGrant, ResolveGrant};

/// Fresh random numbers for one create or rekey.
#[derive(Clone, Copy, Debug)]
pub struct Fresh {
    /// The random part of the new DKi.
    pub dki: [u8; 9],
    /// The block that the proof encrypts. Never a constant: under AES-GCM the
    /// encrypted zero block is the hash subkey.
    pub block: [u8; 16],
}

impl Fresh {
    /// From the operating system.
    ///
    /// # Errors
    /// It gives no random numbers.
    pub fn new() -> Result<Self, ExchangeError> {
        let mut fresh = Self {
            dki: [0; 9],
            block: [0; 16],
        };
        aws_lc_rs::rand::fill(&mut fresh.dki)
            .and_then(|()| aws_lc_rs::rand::fill(&mut fresh.block))
            .map_err(|_| ExchangeError::NoRandom)?;
        Ok(fresh)
    }
}

/// A new data key, proved, for one drive.
#[derive(Debug)]
pub struct Issued {
    /// Its identifier.
    pub dki: DataKeyId,
    /// One or two EEDKs, in the order of the grant's KEKs.
    pub eedks: Vec<Eedk>,
    /// Which of them were opened again and found right.
    pub proved: Vec<bool>,
    /// The same key for the drive.
    pub sedk: Sedk,
    /// Where it was made.
    pub place: Place,
}

/// An existing data key for one drive.
#[derive(Debug)]
pub struct Resolved {
    /// The EEDK that opened, counted from 0.
    pub opened: usize,
    /// The key for the drive.
    pub sedk: Sedk,
    /// Where it was opened.
    pub place: Place,
    /// What was wrong with the EEDKs tried before.
    pub failures: Vec<Fault>,
    /// What came of the EEDK, where nobody may learn of it.
    pub guarded: Option<Guarded>,
}

/// An existing data key under other KEKs, proved.
#[derive(Debug)]
pub struct Rekeyed {
    /// The EEDK that opened, counted from 0.
    pub opened: usize,
    /// One or two EEDKs, in the order of the grant's KEKs.
    pub eedks: Vec<Eedk>,
    /// Which of them were opened again and found right.
    pub proved: Vec<bool>,
    /// Where it was done.
    pub place: Place,
    /// What was wrong with the EEDKs tried before.
    pub failures: Vec<Fault>,
}

/// Why an exchange gave no key.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ExchangeError {
    /// A token's fault.
    #[error(transparent)]
    Token(#[from] Fault),
    /// No EEDK opened; the faults in order.
    #[error("no EEDK of the cartridge opens: {}", list(.0))]
    NoneOpens(Vec<Fault>),
    /// An EEDK does not hold the key that was wrapped.
    #[error(
        "the EEDK under KEK {kek} was opened again and holds another key than the one wrapped; nothing was released, have the token looked at"
    )]
    NotProved {
        /// The KEK's label.
        kek: String,
    },
    /// An EEDK could not be opened again.
    #[error("the EEDK under KEK {kek} could not be opened again, so it was not released: {fault}")]
    Unprovable {
        /// The KEK's label.
        kek: String,
        /// Why.
        fault: Box<Fault>,
    },
    /// The operating system gives no random numbers.
    #[error("the operating system gives no random numbers")]
    NoRandom,
}

impl ExchangeError {
    /// Whether a token may have looked at an EEDK: it failed in a call, or in time.
    #[must_use]
    pub fn was_asked(&self) -> bool {
        let asked = |fault: &Fault| matches!(fault, Fault::Call { .. } | Fault::Deadline { .. });
        match self {
            Self::Token(fault) => asked(fault),
            Self::NoneOpens(faults) => faults.iter().any(asked),
            Self::Unprovable { fault, .. } => asked(fault),
            Self::NotProved { .. } => true,
            Self::NoRandom => false,
        }
    }
}

fn list(faults: &[Fault]) -> String {
    let texts: Vec<String> = faults.iter().map(ToString::to_string).collect();
    texts.join("; ")
}

/// Makes a data key.
///
/// # Errors
/// The token's fault, or that an EEDK was not proved; then nothing is released.
pub async fn create(
    keystore: &dyn Keystore,
    grant: &CreateGrant,
    fresh: Fresh,
) -> Result<Issued, ExchangeError> {
    let dki = DataKeyId::from_random(fresh.dki);
    let keks: Vec<_> = grant
        .keks()
        .iter()
        .map(|granted| granted.kek.clone())
        .collect();
    let (wrapped, sedk) = keystore
        .create(dki, &keks, grant.drive(), grant.custody(), fresh.block)
        .await?;
    let proof = prove(
        keystore,
        grant.keks(),
        grant.custody(),
        fresh.block,
        &wrapped,
    )
    .await?;
    Ok(Issued {
        dki,
        eedks: wrapped.eedks,
        proved: proof.proved,
        sedk,
        place: Place {
            custody: proof.custody,
            ..wrapped.place
        },
    })
}

/// Opens a data key by the first EEDK that opens. No token is waited for before
/// every EEDK was tried: the other may open at once. Then those are waited for
/// whose fault may pass; what is settled, such as a bad EEDK, is not asked again.
///
/// An EEDK that is guarded always gives some key, so it is tried only where
/// every other has failed for good.
///
/// # Errors
/// None opens.
pub async fn resolve(
    keystore: &dyn Keystore,
    grant: &ResolveGrant,
    guard: &Guard,
) -> Result<Resolved, ExchangeError> {
    let mut failures = grant.unreadable().to_vec();
    let (last, mut left): (Vec<&Readable>, Vec<&Readable>) =
        grant.readable().iter().partition(|one| one.guarded);
    for &waits in rounds(left.len()) {
        let mut passing = Vec::new();
        let mut patient = waits;
        for readable in std::mem::take(&mut left) {
            match open(keystore, grant, readable, patient, None).await {
                Ok(opened) => {
                    failures.extend(passing);
                    return Ok(opened.into_resolved(readable, failures));
                }
                Err(fault) if !waits && fault.passes() => {
                    left.push(readable);
                    passing.push(fault);
                }
                Err(fault) => failures.push(fault),
            }
            // A request has the time to wait for one token, not for two in turn.
            patient = false;
        }
    }
    // Later, with the right key, is better than now with one that may be useless.
    if !failures.iter().any(Fault::passes) {
        for readable in last {
            let instead = Some(guard.throw_away(&readable.kek, &readable.eedk));
            match open(keystore, grant, readable, true, instead).await {
                Ok(opened) => return Ok(opened.into_resolved(readable, failures)),
                Err(fault) => failures.push(fault),
            }
        }
    }
    Err(ExchangeError::NoneOpens(failures))
}

async fn open(
    keystore: &dyn Keystore,
    grant: &ResolveGrant,
    readable: &Readable,
    patient: bool,
    instead: Option<ThrowAway>,
) -> Result<Opened, Fault> {
    let opening = opening(readable, patient);
    let asked = keystore.resolve(opening, grant.drive(), grant.custody(), instead);
    asked.await
}

impl Opened {
    fn into_resolved(self, readable: &Readable, failures: Vec<Fault>) -> Resolved {
        Resolved {
            opened: readable.index,
            sedk: self.sedk,
            place: self.place,
            failures,
            guarded: self.guarded,
        }
    }
}

/// Puts a data key under other KEKs.
///
/// # Errors
/// None opens, or a new EEDK was not proved; then nothing is released.
pub async fn rekey(
    keystore: &dyn Keystore,
    grant: &RekeyGrant,
    fresh: Fresh,
) -> Result<Rekeyed, ExchangeError> {
    let keks: Vec<_> = grant
        .keks()
        .iter()
        .map(|granted| granted.kek.clone())
        .collect();
    let mut failures = grant.unreadable().to_vec();
    let mut left: Vec<_> = grant.readable().iter().collect();
    for &waits in rounds(left.len()) {
        let mut passing = Vec::new();
        let mut patient = waits;
        for readable in std::mem::take(&mut left) {
            let asked = keystore.rekey(
                opening(readable, patient),
                &keks,
                grant.custody(),
                fresh.block,
            );
            match asked.await {
                Ok(wrapped) => {
                    let proof = prove(
                        keystore,
                        grant.keks(),
                        grant.custody(),
                        fresh.block,
                        &wrapped,
                    )
                    .await?;
                    failures.extend(passing);
                    return Ok(Rekeyed {
                        opened: readable.index,
                        eedks: wrapped.eedks,
                        proved: proof.proved,
                        place: Place {
                            custody: proof.custody,
                            ..wrapped.place
                        },
                        failures,
                    });
                }
                Err(fault) if !waits && fault.passes() => {
                    left.push(readable);
                    passing.push(fault);
                }
                Err(fault) => failures.push(fault),
            }
            // A request has the time to wait for one token, not for two in turn.
            patient = false;
        }
    }
    Err(ExchangeError::NoneOpens(failures))
}

const fn opening(readable: &Readable, patient: bool) -> Opening<'_> {
    Opening {
        eedk: &readable.eedk,
        kek: &readable.kek,
        software: readable.software,
        patient,
    }
}

/// Whether each round waits for a token to come back. Where there are two EEDKs, both are tried
/// before either is waited for.
const fn rounds(eedks: usize) -> &'static [bool] {
    if eedks > 1 { &[false, true] } else { &[true] }
}

async fn prove(
    keystore: &dyn Keystore,
    keks: &[crate::policy::GrantedKek],
    custody: Custody,
    block: [u8; 16],
    wrapped: &Wrapped,
) -> Result<Proof, ExchangeError> {
    let (expected, made_in) = (wrapped.proof, wrapped.place.custody);
    let each = try_join_all(
        keks.iter()
            .zip(&wrapped.eedks)
            .map(|(granted, eedk)| async move {
                if !granted.provable {
                    return Ok((false, Custody::Token));
                }
                let kek = granted.kek.label.to_string();
                match keystore.prove(eedk, &granted.kek, custody, block).await {
                    Ok((proof, custody)) if proof == expected => Ok((true, custody)),
                    Ok(_) => Err(ExchangeError::NotProved { kek }),
                    Err(fault) => Err(ExchangeError::Unprovable {
                        kek,
                        fault: Box::new(fault),
                    }),
                }
            }),
    )
    .await?;
    Ok(Proof {
        proved: each.iter().map(|(proved, _)| *proved).collect(),
        // A key that was in host memory only to be proved was in host memory.
        custody: each
            .into_iter()
            .map(|(_, custody)| custody)
            .fold(made_in, Ord::max),
    })
}

/// What the proofs of a data key's EEDKs showed.
struct Proof {
    proved: Vec<bool>,
    custody: Custody,
}
