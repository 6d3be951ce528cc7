//! What a bridge does with its token: the exchanges, and what an operator asks for.

use serde::{Deserialize, Serialize};

use super::Custody;
use crate::bridge::certify::Certify;
use crate::bridge::evidence::Evidence;
use crate::bridge::guard::ThrowAway;
use crate::drive::Wwn;
use crate::key::{DataKeyId, Eedk, KekHash, KekId, KeyLabel, SedkForm, WrapAlgorithm};

/// A KEK to wrap under: what names it in the EEDK, and its public key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrapUnder {
    /// How the EEDK names it.
    pub id: KekId,
    /// Its public-key hash.
    pub hash: KekHash,
    /// Its `SubjectPublicKeyInfo`, DER.
    pub spki: Vec<u8>,
    /// How the token that holds it opens EEDKs.
    pub wrap: WrapAlgorithm,
}

impl WrapUnder {
    /// How to wrap under it, by a token whose own way is this one: what the KEK's token has the
    /// padding for is wrapped with that padding.
    #[must_use]
    pub fn way(&self, own: WrapAlgorithm) -> WrapAlgorithm {
        if own.padding() == self.wrap.padding() {
            own
        } else {
            self.wrap
        }
    }
}

/// The drive that a data key goes to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipient {
    /// In what form.
    pub form: SedkForm,
    /// The drive's public key, `SubjectPublicKeyInfo` DER; empty for form `t10-00h`.
    pub spki: Vec<u8>,
    /// The drive's world-wide name, for form `t10-02h`.
    pub wwn: Option<Wwn>,
}

/// What a bridge does with its token.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Op {
    /// A new data key.
    Create {
        /// Its identifier.
        dki: DataKeyId,
        /// One or two KEKs.
        keks: Vec<WrapUnder>,
        /// Who gets it.
        drive: Recipient,
        /// How far from the token it may go.
        custody: Custody,
        /// A fresh random block to encrypt under it.
        block: [u8; 16],
    },
    /// The data key of an EEDK, for a drive.
    Resolve {
        /// The EEDK.
        eedk: Eedk,
        /// Which KEK opens it.
        kek: KekHash,
        /// Who gets it.
        drive: Recipient,
        /// How far from the token it may go.
        custody: Custody,
        /// What the drive gets where the EEDK does not open, so that nobody can tell; none for an
        /// EEDK of which it may be told.
        guard: Option<ThrowAway>,
    },
    /// The data key of an EEDK, under other KEKs.
    Rekey {
        /// The EEDK.
        eedk: Eedk,
        /// Which KEK opens it.
        kek: KekHash,
        /// One or two KEKs.
        keks: Vec<WrapUnder>,
        /// How far from the token it may go.
        custody: Custody,
        /// A fresh random block to encrypt under it.
        block: [u8; 16],
    },
    /// Open an EEDK and encrypt a block under what is in it.
    Prove {
        /// The EEDK.
        eedk: Eedk,
        /// Which KEK opens it.
        kek: KekHash,
        /// How far from the token it may go.
        custody: Custody,
        /// The block.
        block: [u8; 16],
    },
    /// Whether an EEDK of the token's own still opens.
    Canary,
    /// The token's KEKs are read anew.
    Look,
    /// A drive's key is blessed no more: it has left the drive table.
    Distrust {
        /// The key.
        key: KekHash,
    },
    /// A new KEK.
    Generate {
        /// Its label.
        label: KeyLabel,
        /// Modulus length, bits.
        bits: u32,
        /// What it is for.
        custody: Custody,
        /// Whether it may sign the request for its own certificate (`CKA_SIGN`).
        sign: bool,
    },
    /// Certificates of KEKs, and the seals of partners' KEKs.
    Certify(Certify),
    /// A KEK is destroyed, with all its objects.
    Destroy {
        /// The KEK.
        kek: KekHash,
    },
    /// Seals of the audit chain, and anchors.
    Evidence(Evidence),
}

impl Op {
    /// Whether doing it twice is the same as doing it once, so that it may be
    /// repeated after a failure, by the bridge itself or on another token.
    ///
    /// | what | why |
    /// |---|---|
    /// | create | its data key is an object of one session and ends with it; EEDKs of a failed attempt never leave the bridge, so the DKi names one key only |
    /// | resolve, rekey, prove | they read what is there; the data key they open is an object of one session |
    /// | canary, look | they read what is there |
    /// | certify | a request is only read; a certificate takes the place of an older one, also of itself; a seal whose answer was lost seals nothing |
    /// | distrust, destroy | a key that was destroyed is not there the second time |
    /// | evidence | a seal whose answer was lost seals nothing; of two anchors the higher number counts; a key that seals is made as a KEK is |
    /// | generate | **never**: a key pair that was made before the answer was lost stays on the token, and a second would be under the same label |
    #[must_use]
    pub const fn repeatable(&self) -> bool {
        match self {
            Self::Create { .. }
            | Self::Resolve { .. }
            | Self::Rekey { .. }
            | Self::Prove { .. }
            | Self::Canary
            | Self::Look
            | Self::Certify(_)
            | Self::Destroy { .. }
            | Self::Evidence(Evidence::Sign { .. } | Evidence::Anchor { .. } | Evidence::Anchors)
            | Self::Distrust { .. } => true,
            Self::Generate { .. } | Self::Evidence(Evidence::MakeKey { .. }) => false,
        }
    }

    /// Whether its answer comes soon where the token is well. Making an RSA key may take minutes.
    #[must_use]
    pub const fn prompt(&self) -> bool {
        !matches!(
            self,
            Self::Generate { .. } | Self::Evidence(Evidence::MakeKey { .. })
        )
    }

    /// Whether it opens an EEDK of which nobody may learn whether it opened.
    #[must_use]
    pub const fn guarded(&self) -> bool {
        matches!(self, Self::Resolve { guard: Some(_), .. })
    }

    /// The EEDK that it opens, and under which KEK. One that is guarded is none: whether it opens
    /// must make no difference.
    #[must_use]
    pub const fn opened(&self) -> Option<(&Eedk, &KekHash)> {
        match self {
            Self::Resolve { guard: Some(_), .. } => None,
            Self::Resolve { eedk, kek, .. }
            | Self::Rekey { eedk, kek, .. }
            | Self::Prove { eedk, kek, .. } => Some((eedk, kek)),
            Self::Create { .. }
            | Self::Canary
            | Self::Look
            | Self::Distrust { .. }
            | Self::Generate { .. }
            | Self::Destroy { .. }
            | Self::Certify(_)
            | Self::Evidence(_) => None,
        }
    }
}
