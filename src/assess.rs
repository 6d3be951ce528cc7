//! What of a site will work: each drive, store, key and cartridge, with a word and a sentence.
//!
//! Nothing here does I/O: what the state, the tokens or an EKM's files say comes in as values.

mod drives;
pub mod ekm21;
pub mod models;
mod tapes;

pub use drives::{DriveRow, Ways};
pub use tapes::{LostTape, Tapes};

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::admin::TokenStatus;
use crate::bridge::message::{Custody, Provenance};
use crate::drive::DriveSerial;
use crate::keystore::KnownKek;
use crate::migrate::metadata::KeyUse;
use crate::store::{Defaults, Drive, VolumeKey};
use drives::drive_row;
use models::Model;
use tapes::tapes;

/// A verdict in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Word {
    /// It will.
    Works,
    /// It will, with data keys in clear outside the token for an instant.
    Host,
    /// It will once an operator has done something.
    Waits,
    /// It is not known.
    Unknown,
    /// It will not.
    No,
}

impl std::fmt::Display for Word {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Works => "works",
            Self::Host => "host",
            Self::Waits => "waits",
            Self::Unknown => "unknown",
            Self::No => "no",
        })
    }
}

/// A verdict on one thing.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What it is about.
    pub name: String,
    /// The word.
    pub verdict: Word,
    /// One sentence.
    pub why: String,
}

/// A verdict on a store: a token, or EKM's keystore.
#[derive(Clone, Debug, Serialize)]
pub struct StoreRow {
    /// Name, word and sentence.
    #[serde(flatten)]
    pub row: Row,
    /// What leaves it in clear.
    pub leaves: String,
}

/// The whole.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The first sentence.
    pub first: &'static str,
    /// Each drive.
    pub drives: Vec<DriveRow>,
    /// Each store.
    pub stores: Vec<StoreRow>,
    /// Each key.
    pub keys: Vec<Row>,
    /// The cartridges.
    pub tapes: Tapes,
    /// What could not be looked at.
    pub notes: Vec<String>,
}

/// What a site's state and tokens say.
#[derive(Clone, Debug, Default)]
pub struct Site {
    /// The drive table.
    pub drives: Vec<Drive>,
    /// The global labels.
    pub defaults: Defaults,
    /// The tokens, and for each whether it is linked into the bridge.
    pub tokens: Vec<(TokenStatus, bool)>,
    /// The KEKs; none where the tokens could not be asked.
    pub keks: Option<Vec<KnownKek>>,
    /// The volume history.
    pub volumes: Vec<VolumeKey>,
    /// What EKM keyed.
    pub ekm21: BTreeSet<KeyUse>,
}

/// The models that an operator told, by serial.
pub type Models = BTreeMap<DriveSerial, &'static Model>;

/// Judges a site.
#[must_use]
pub fn site(site: &Site, models: &Models, notes: Vec<String>) -> Report {
    Report {
        first: crate::migrate::FIRST,
        drives: site
            .drives
            .iter()
            .map(|drive| drive_row(site, drive, models.get(&drive.serial).copied()))
            .collect(),
        stores: site
            .tokens
            .iter()
            .map(|(token, embedded)| store_row(token, *embedded))
            .collect(),
        keys: site.keks.iter().flatten().map(key_row).collect(),
        tapes: tapes(site),
        notes,
    }
}

fn row(name: impl Into<String>, verdict: Word, why: impl Into<String>) -> Row {
    Row {
        name: name.into(),
        verdict,
        why: why.into(),
    }
}

/// A software keystore shows among the tokens.
fn key_file(token: &TokenStatus) -> bool {
    token
        .uri
        .as_ref()
        .is_some_and(|uri| uri.starts_with("file:"))
}

fn serving(token: &TokenStatus) -> bool {
    token.state == "ready" || token.state == "degraded"
}

fn store_row(token: &TokenStatus, embedded: bool) -> StoreRow {
    let serves = serving(token);
    if key_file(token) {
        let state = &token.state;
        return StoreRow {
            row: match (serves, &token.why) {
                (true, _) => row(
                    &token.name,
                    Word::Host,
                    "a key file that serves: custody host, and drives enrolled for it",
                ),
                (false, why) => row(
                    &token.name,
                    Word::Unknown,
                    format!("{state}: {}", why.as_deref().unwrap_or("-")),
                ),
            },
            leaves: "it is no token: its keys, and each data key, are in ekm's memory".to_owned(),
        };
    }
    let row = if serves {
        let forms: Vec<String> = token.forms.iter().map(ToString::to_string).collect();
        if forms.is_empty() {
            row(
                &token.name,
                Word::Host,
                "it decrypts and cannot wrap for drives: custody host only",
            )
        } else {
            row(
                &token.name,
                Word::Works,
                format!("{}; it makes {}", token.state, forms.join(" and ")),
            )
        }
    } else {
        let why = token.why.clone().unwrap_or_default();
        row(
            &token.name,
            Word::Unknown,
            format!("{}: {why}", token.state),
        )
    };
    let leaves = match (serves, token.forms.is_empty(), embedded) {
        (false, _, _) => "not known",
        (true, _, true) => {
            "the token is in ekm's own process: whoever reads its memory may find keys"
        }
        (true, true, false) => "each data key, in ekm's memory for an instant",
        (true, false, false) => {
            "nothing in clear in custody token; in custody host each data key, for an instant"
        }
    };
    StoreRow {
        row,
        leaves: leaves.to_owned(),
    }
}

fn key_row(kek: &KnownKek) -> Row {
    let name = kek.label.to_string();
    let refused = || {
        let reasons = kek.refused.iter();
        let texts: Vec<String> = reasons
            .map(|(token, why)| format!("{token}: {why}"))
            .collect();
        texts.join("; ")
    };
    match (kek.custody, kek.tokens.len()) {
        (None, _) if kek.partner.is_some() => row(
            name,
            Word::Works,
            "a partner's: cartridges can carry an EEDK for them, which nobody here reads",
        ),
        (None, _) if kek.is_away() => row(
            name,
            Word::Unknown,
            format!("it is out of reach: {}", kek.place()),
        ),
        (None, _) if kek.missing.is_some() => row(
            name,
            Word::No,
            format!("{}; cartridges under it alone cannot be read", kek.place()),
        ),
        (None, _) if kek.refused.is_empty() => row(
            name,
            Word::No,
            "its private half is on no token: a partner's, or lost; cartridges under it alone cannot be read",
        ),
        (None, _) => row(name, Word::No, format!("refused on {}", refused())),
        (Some(custody), tokens) => {
            let verdict = match custody {
                Custody::Token => Word::Works,
                Custody::Host => Word::Host,
            };
            let provenance = match kek.provenance {
                Some(Provenance::Restored) => "restored from a ceremony's copy",
                Some(Provenance::Imported) => "imported: a copy may be where it came from",
                Some(Provenance::Copied) => "made on the token, and was extractable once",
                Some(Provenance::Software) => {
                    "in a key file: new cartridges only where policy.write_provenance lists \"software\""
                }
                Some(Provenance::Born) | None => "made on the token",
            };
            let copies = match tokens {
                0 | 1 if kek.copies.iter().any(|copy| copy.proven) => {
                    "one token has it, and there is a proven copy"
                }
                0 | 1 if !kek.copies.is_empty() => {
                    "one token has it, and there is said to be a copy"
                }
                0 | 1 => "one token has it and no copy is known",
                _ => "several tokens have it",
            };
            row(name, verdict, format!("{copies}; {provenance}"))
        }
    }
}

#[cfg(test)]
mod tests;
