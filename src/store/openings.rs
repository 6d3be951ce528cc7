//! Openings of EEDKs of which nobody may learn whether they opened (PKCS#1 v1.5).

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::key::KekHash;
use crate::tls::PeerId;

/// One opening.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opening {
    /// Who sent the EEDK.
    pub peer: PeerId,
    /// Its KEK.
    pub kek: KekHash,
    /// Whether it did not open.
    pub failed: bool,
    /// When.
    pub at: OffsetDateTime,
}

/// One that did not open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedOpening {
    /// Who sent the EEDK.
    pub peer: PeerId,
    /// Its KEK.
    pub kek: KekHash,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// Whether it still counts for the peer.
    pub of_peer: bool,
    /// Whether it still counts for the KEK.
    pub of_kek: bool,
}

/// Whose failures no longer count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Forgiven {
    /// A peer's.
    Peer(PeerId),
    /// A KEK's.
    Kek(KekHash),
}
