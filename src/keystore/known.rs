//! A KEK as it is known: who holds it, who held it when it was last seen, whose it is.

use serde::{Deserialize, Serialize};

use crate::bridge::message::{Custody, KekAttributes, Provenance};
use crate::certificates::{Validity, Vouched};
use crate::copies::{CopyKind, KekCopy};
use crate::key::{KekHash, KeyLabel};
use crate::store::KekStanding;

/// A token, or a software keystore, that serves the private half of a KEK.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Its configured name.
    pub token: String,
    /// What the KEK is for there.
    pub custody: Custody,
    /// How it came there.
    pub provenance: Provenance,
}

/// A KEK, from every token that shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownKek {
    /// Its label, as stored.
    pub label: KeyLabel,
    /// SHA-256 over its `SubjectPublicKeyInfo`.
    pub hash: KekHash,
    /// Its `SubjectPublicKeyInfo`, DER.
    #[serde(with = "crate::base64_bytes")]
    pub spki: Vec<u8>,
    /// Modulus length, bits.
    pub bits: u32,
    /// What it is for; `None` where no token serves its private half.
    pub custody: Option<Custody>,
    /// How it came to the first token that serves it.
    pub provenance: Option<Provenance>,
    /// The tokens that serve its private half, by configured name.
    pub tokens: Vec<String>,
    /// Tokens that hold it but may not serve, with the reason.
    pub refused: Vec<(String, String)>,
    /// The attributes of the private half, by token.
    pub attributes: Vec<(String, KekAttributes)>,
    /// Its certificate, DER, where a token or the registry has one; of several the one that is
    /// good for longest.
    #[serde(with = "crate::base64_bytes::maybe")]
    pub certificate: Option<Vec<u8>>,
    /// When that is good.
    pub validity: Option<Validity>,
    /// Whose it is, where it is a partner's.
    pub partner: Option<PartnerKek>,
    /// Whether the registry knows it.
    pub registered: bool,
    /// Serial numbers of the tokens that serve it, each once.
    #[serde(default)]
    pub serials: Vec<String>,
    /// Its copies, as the registry has them.
    #[serde(default)]
    pub copies: Vec<KekCopy>,
    /// Who serves its private half, in the order of `tokens`.
    #[serde(default)]
    pub holders: Vec<Holder>,
    /// Tokens that the registry has it on and that have not been up since the start.
    #[serde(default)]
    pub away: Vec<String>,
    /// Where the registry has it, if no token shows it and none that could is away.
    #[serde(default)]
    pub missing: Option<String>,
    /// What operators said of it last; only where an operator asks.
    #[serde(default)]
    pub standing: Option<KekStanding>,
}

/// What is known of a partner's KEK.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartnerKek {
    /// What its row's seals are over.
    #[serde(skip)]
    pub digest: [u8; 32],
    /// Who vouches for its certificate, besides the operator.
    pub vouched: Vouched,
    /// Who compared its fingerprint.
    pub operator: String,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub confirmed: time::OffsetDateTime,
}

impl KnownKek {
    /// A KEK of which nobody has said more yet.
    #[must_use]
    pub const fn bare(label: KeyLabel, hash: KekHash, spki: Vec<u8>, bits: u32) -> Self {
        Self {
            label,
            hash,
            spki,
            bits,
            custody: None,
            provenance: None,
            tokens: Vec::new(),
            refused: Vec::new(),
            attributes: Vec::new(),
            certificate: None,
            validity: None,
            partner: None,
            registered: false,
            serials: Vec::new(),
            copies: Vec::new(),
            holders: Vec::new(),
            away: Vec::new(),
            missing: None,
            standing: None,
        }
    }

    /// Whether it is known only from the registry, on tokens that have not been up since the start.
    #[must_use]
    pub const fn is_away(&self) -> bool {
        self.tokens.is_empty() && !self.away.is_empty()
    }

    /// The newest backup that it is in.
    #[must_use]
    pub fn backed(&self) -> Option<time::OffsetDateTime> {
        let backups = self.copies.iter();
        backups
            .filter(|copy| copy.kind == CopyKind::Backup)
            .map(|copy| copy.at)
            .max()
    }

    /// Whether it outlives what it is on: in a backup, on a second token, or by a copy
    /// that was proven or stated. A restored one is on a token, and counts as that.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        let tokens: std::collections::BTreeSet<&String> = self.serials.iter().collect();
        tokens.len() > 1
            || self.copies.iter().any(|copy| match copy.kind {
                CopyKind::Backup | CopyKind::Stated => true,
                CopyKind::Ceremony => copy.proven,
                CopyKind::Restored => false,
            })
    }

    /// Where it is, or was when it was last seen, in words.
    #[must_use]
    pub fn place(&self) -> String {
        let mut tokens = self.tokens.clone();
        tokens.extend(self.refused.iter().map(|(token, _)| token.clone()));
        tokens.extend(self.away.iter().map(|token| format!("{token} (not up)")));
        if let Some(token) = &self.missing {
            return format!("no token now; it was on {token}");
        }
        match (tokens.is_empty(), &self.partner) {
            (false, _) => tokens.join(", "),
            (true, Some(_)) => "(a partner's)".to_owned(),
            (true, None) => "a token that has its public half only".to_owned(),
        }
    }

    /// Takes a certificate, if it is good for longer than the one that it has.
    pub(super) fn certify(&mut self, certificate: &[u8]) {
        let Some(validity) = Validity::of(certificate) else {
            return;
        };
        if self
            .validity
            .is_none_or(|known| known.not_after < validity.not_after)
        {
            self.certificate = Some(certificate.to_vec());
            self.validity = Some(validity);
        }
    }
}
