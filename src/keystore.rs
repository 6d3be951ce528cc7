//! Where KEKs live, as the exchange sees it: four verbs, and no data key in
//! clear in any of them (but for SEDK form `t10-00h`, which is one).
//!
//! [`Tokens`] is the real thing: every configured token behind its bridge.
//! A request goes to a ready token that holds the key, and to the next one
//! where the first fails in a way that another token may not.

mod certify;
mod directory;
mod tokens;

use async_trait::async_trait;

pub use crate::bridge::faults::Fault;
pub use crate::bridge::message::{Custody, Recipient};
use crate::key::{DataKeyId, Eedk, Encoding, KekHash, KekId, KeyLabel, Sedk};
pub use certify::SealSeen;
pub use directory::{Directory, KekError, KnownKek, PartnerKek};
pub use tokens::Tokens;

/// A KEK to wrap a data key under.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrapKek {
    /// Its label.
    pub label: KeyLabel,
    /// How the EEDK is to name it.
    pub encoding: Encoding,
    /// Its public-key hash.
    pub hash: KekHash,
    /// Its `SubjectPublicKeyInfo`, DER.
    pub spki: Vec<u8>,
}

impl WrapKek {
    /// The name that goes into the EEDK.
    #[must_use]
    pub fn id(&self) -> KekId {
        match self.encoding {
            Encoding::Label => KekId::Label(self.label.clone()),
            Encoding::Hash => KekId::Hash(self.hash),
        }
    }
}

/// Where an exchange took place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The token's configured name.
    pub token: String,
    /// Where the data key was in clear.
    pub custody: Custody,
}

/// A data key under its KEKs, not yet proved.
#[derive(Debug)]
pub struct Wrapped {
    /// In the order of the KEKs.
    pub eedks: Vec<Eedk>,
    /// The random block, encrypted under the data key.
    pub proof: [u8; 16],
    /// Where.
    pub place: Place,
}

/// What the exchange needs of the keys. Drives can cause every call of it.
#[async_trait]
pub trait Keystore: Send + Sync {
    /// A new data key for a drive, under one or two KEKs, and `block`
    /// encrypted under it (AES-256, one block).
    async fn create(
        &self,
        dki: DataKeyId,
        keks: &[WrapKek],
        drive: &Recipient,
        custody: Custody,
        block: [u8; 16],
    ) -> Result<(Wrapped, Sedk), Fault>;

    /// The data key of an EEDK, for a drive. With `patient` a token that is
    /// down or silent is waited for.
    async fn resolve(
        &self,
        eedk: &Eedk,
        kek: &KekHash,
        drive: &Recipient,
        custody: Custody,
        patient: bool,
    ) -> Result<(Sedk, Place), Fault>;

    /// The data key of an EEDK, under other KEKs, and `block` encrypted under
    /// it. With `patient` a token that is down or silent is waited for.
    async fn rekey(
        &self,
        eedk: &Eedk,
        kek: &KekHash,
        keks: &[WrapKek],
        custody: Custody,
        block: [u8; 16],
        patient: bool,
    ) -> Result<Wrapped, Fault>;

    /// `block` encrypted under the data key that an EEDK holds, and where that
    /// key was in clear.
    async fn prove(
        &self,
        eedk: &Eedk,
        kek: &KekHash,
        custody: Custody,
        block: [u8; 16],
    ) -> Result<([u8; 16], Custody), Fault>;
}
