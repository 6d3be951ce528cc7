//! What the state keeps of audit chains: the keys that seal them, and their anchors.

use async_trait::async_trait;
use time::OffsetDateTime;

use super::StoreError;
use crate::audit::HeadMark;
use crate::bridge::evidence::SealKeyId;

/// A key that seals.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealKeyRow {
    /// Its `CKA_ID`.
    pub id: SealKeyId,
    /// Its `SubjectPublicKeyInfo`, DER.
    pub spki: Vec<u8>,
    /// The token that it was made on, by configured name.
    pub token: String,
    /// When it was made.
    pub made: OffsetDateTime,
}

/// A seal, kept outside the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Anchored {
    /// The server whose chain it is.
    pub node: String,
    /// The seal's number.
    pub number: u64,
    /// The sequence number of the seal's record.
    pub seq: u64,
    /// The hash of the seal's record, 64 hexadecimal digits.
    pub hash: String,
    /// When it was anchored.
    pub at: OffsetDateTime,
}

/// The part of the state that is about audit chains.
#[async_trait]
pub trait ChainStore {
    /// The keys that seal, the newest first.
    async fn seal_keys(&self) -> Result<Vec<SealKeyRow>, StoreError>;
    /// Adds a key that seals.
    async fn add_seal_key(&self, key: &SealKeyRow) -> Result<(), StoreError>;
    /// The newest anchor of a server's chain.
    async fn anchor(&self, node: &str) -> Result<Option<Anchored>, StoreError>;
    /// The newest anchor of each chain, by server.
    async fn anchors(&self) -> Result<Vec<Anchored>, StoreError>;
    /// Keeps an anchor; one that is there stays as it is. False where that one is another.
    async fn add_anchor(&self, anchor: &Anchored) -> Result<bool, StoreError>;
    /// The newest record of a server's chain, as last kept.
    async fn chain_head(&self, node: &str) -> Result<Option<HeadMark>, StoreError>;
    /// Keeps the newest record of a server's chain, in the place of an older one.
    async fn set_chain_head(&self, node: &str, head: &HeadMark) -> Result<(), StoreError>;
}
