//! Where KEKs live, as the exchange sees it: four verbs, and no data key in
//! clear in any of them (but for SEDK form `t10-00h`, which is one).
//!
//! [`Tokens`] is the real thing: every configured token behind its bridge.
//! A request goes to a ready token that holds the key, and to the next one
//! where the first fails in a way that another token may not.

mod certify;
mod directory;
mod evidence;
mod known;
mod tokens;

use async_trait::async_trait;

pub use crate::bridge::faults::Fault;
pub use crate::bridge::guard::{Guard, Guarded, ThrowAway};
pub use crate::bridge::message::{Custody, Recipient};
use crate::key::{DataKeyId, Eedk, Encoding, KekHash, KekId, KeyLabel, Sedk};
pub use certify::SealSeen;
pub use directory::{Directory, KekError};
pub use evidence::{NotKept, SealKeyMade, TokenAnchor};
pub use known::{Holder, KnownKek, PartnerKek};
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
    /// The tokens that may take part in writing under it, by configured name: those that hold
    /// its private half in a way that the rules let write. They alone prove its EEDKs.
    pub writers: Vec<String>,
}

/// An EEDK that is to be opened.
#[derive(Clone, Copy, Debug)]
pub struct Opening<'a> {
    /// The EEDK.
    pub eedk: &'a Eedk,
    /// The KEK that opens it.
    pub kek: &'a KekHash,
    /// Whether a software keystore may open it.
    pub software: bool,
    /// Whether a token that is down or silent is waited for.
    pub patient: bool,
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

/// A data key that came out of an EEDK, or what was given in its place.
#[derive(Debug)]
pub struct Opened {
    /// For the drive.
    pub sedk: Sedk,
    /// Where.
    pub place: Place,
    /// What came of the EEDK, where its opening was guarded.
    pub guarded: Option<Guarded>,
}

/// What the exchange needs of the keys. Drives can cause every call of it, and it
/// ends with the time of the request.
#[async_trait]
pub trait Keystore: Send + Sync {
    /// A new data key for a drive, under one or two KEKs, and `block`
    /// encrypted under it (AES-256, one block). A software keystore makes one
    /// only where it is a writer of one of the KEKs.
    async fn create(
        &self,
        dki: DataKeyId,
        keks: &[WrapKek],
        drive: &Recipient,
        custody: Custody,
        block: [u8; 16],
    ) -> Result<(Wrapped, Sedk), Fault>;

    /// The data key of an EEDK, for a drive. With a `guard` the drive gets that
    /// key where the EEDK does not open, and one token is asked, once.
    async fn resolve(
        &self,
        opening: Opening<'_>,
        drive: &Recipient,
        custody: Custody,
        guard: Option<ThrowAway>,
    ) -> Result<Opened, Fault>;

    /// The data key of an EEDK, under other KEKs, and `block` encrypted under it.
    async fn rekey(
        &self,
        opening: Opening<'_>,
        keks: &[WrapKek],
        custody: Custody,
        block: [u8; 16],
    ) -> Result<Wrapped, Fault>;

    /// `block` encrypted under the data key that an EEDK holds, by a writer of
    /// its KEK, and where that key was in clear.
    async fn prove(
        &self,
        eedk: &Eedk,
        kek: &WrapKek,
        custody: Custody,
        block: [u8; 16],
    ) -> Result<([u8; 16], Custody), Fault>;
}
