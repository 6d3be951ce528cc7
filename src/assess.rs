//! What of a site will work: each drive, store, key and cartridge, with a word and a sentence.
//!
//! Nothing here does I/O: what the state, the tokens or an EKM's files say comes in as values.

pub mod ekm21;
pub mod models;

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::admin::TokenStatus;
use crate::bridge::message::{Custody, Provenance};
use crate::drive::DriveSerial;
use crate::key::{KekHash, SedkForm};
use crate::keystore::KnownKek;
use crate::migrate::metadata::KeyUse;
use crate::store::{Defaults, Drive, DriveKey, DriveState, EedkState, VolumeKey};
use models::{May, Model};

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

/// The ways to a data key that a drive may have.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Ways {
    /// T10 key format 02h.
    pub t10_02h: May,
    /// T10 key format 00h, in custody `host`.
    pub t10_00h: May,
    /// Through a library that manages keys.
    pub library: May,
    /// Through IBM's own transparent path.
    pub transparent: May,
}

impl Ways {
    fn of(model: Option<&Model>) -> Self {
        Self {
            t10_02h: model.map_or(May::Unknown, |model| model.wrapped),
            t10_00h: model.map_or(May::Unknown, |model| model.plain),
            library: May::No,
            transparent: May::No,
        }
    }
}

/// A verdict on a drive.
#[derive(Clone, Debug, Serialize)]
pub struct DriveRow {
    /// Serial, word and sentence.
    #[serde(flatten)]
    pub row: Row,
    /// Its model, where it was told.
    pub model: Option<&'static str>,
    /// What is documented of that model.
    pub ways: Ways,
}

/// A cartridge that cannot be read, and why.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct LostTape {
    /// Its volume serial.
    pub volser: String,
    /// When it was keyed last, as it was recorded.
    pub since: String,
    /// What it was keyed under.
    pub keks: Vec<String>,
    /// Why.
    pub why: String,
}

/// The cartridges.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Tapes {
    /// How many of the history can be read.
    pub readable: usize,
    /// Those that cannot.
    pub unreadable: Vec<LostTape>,
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

fn drive_row(site: &Site, drive: &Drive, model: Option<&'static Model>) -> DriveRow {
    let (verdict, why) = drive_verdict(site, drive, model);
    DriveRow {
        row: row(drive.serial.to_string(), verdict, why),
        model: model.map(|model| model.name),
        ways: Ways::of(model),
    }
}

fn drive_verdict(site: &Site, drive: &Drive, model: Option<&Model>) -> (Word, String) {
    let serial = &drive.serial;
    if drive.state == DriveState::Pending {
        return (
            Word::Waits,
            format!("enrol it: ekm drive mod {serial} --wwn WWN --key PEM --accept"),
        );
    }
    if let Some(why) = misfit(drive, model) {
        return (Word::No, why);
    }
    let keks = match keks_of(site, drive) {
        Ok(keks) => keks,
        Err(why) => return (Word::No, why),
    };
    let serves = |(token, _): &(TokenStatus, bool)| serving(token);
    if !site.tokens.iter().any(serves) {
        return (
            Word::Unknown,
            "no token is ready, so what they can wrap is not known (ekm token status)".to_owned(),
        );
    }
    let mut forms = site.tokens.iter().flat_map(|(token, _)| &token.forms);
    let made = forms.any(|made| *made == drive.form);
    if let Some(kek) = keks.iter().find(|kek| kek.is_away()) {
        return (
            Word::Unknown,
            format!("its KEK {} is out of reach: {}", kek.label, kek.place()),
        );
    }
    let of = |custody| keks.iter().find(move |kek| kek.custody == Some(custody));
    match (drive.custody, made) {
        (Custody::Token, true) => match of(Custody::Host) {
            None => (
                Word::Works,
                format!("form {}, wrapped by the token", drive.form),
            ),
            Some(kek) => (
                Word::No,
                format!(
                    "its KEK {} was made for custody host, and it is not enrolled for that",
                    kek.label
                ),
            ),
        },
        (Custody::Token, false) => (
            Word::No,
            format!(
                "no token makes the form {}: enrol it for another form, or with --custody host",
                drive.form
            ),
        ),
        (Custody::Host, true) => match of(Custody::Host) {
            None => (
                Word::Works,
                format!("form {}, wrapped by the token", drive.form),
            ),
            Some(_) => in_host(drive),
        },
        (Custody::Host, false) => match of(Custody::Token) {
            None => in_host(drive),
            Some(kek) => (
                Word::No,
                format!(
                    "its KEK {} opens only inside the token: make one with ekm kek generate LABEL --custody host",
                    kek.label
                ),
            ),
        },
    }
}

fn in_host(drive: &Drive) -> (Word, String) {
    let why = if drive.form == SedkForm::T10Plain {
        "format 00h: the data key is in clear in ekm's memory for an instant, and on the way to the drive".to_owned()
    } else {
        format!(
            "form {}, wrapped by ekm: the data key is in its memory for an instant",
            drive.form
        )
    };
    (Word::Host, why)
}

/// Why a row cannot work, by itself or for a drive of that model.
fn misfit(drive: &Drive, model: Option<&Model>) -> Option<String> {
    let serial = &drive.serial;
    let takes = |model: &Model| match drive.form {
        SedkForm::T10Wrapped => model.wrapped,
        SedkForm::T10Plain => model.plain,
        SedkForm::RsaOaepSha1 => May::Unknown,
    };
    match (model, drive.form) {
        (Some(model), SedkForm::T10Wrapped) if takes(model) == May::No => Some(format!(
            "it is enrolled for format 02h, which a drive of this model ({}) does not take: ekm drive mod {serial} --form t10-00h --custody host",
            model.what
        )),
        (Some(model), _) if takes(model) == May::No => Some(format!(
            "a drive of this model ({}) does not take the form {}",
            model.what, drive.form
        )),
        (_, SedkForm::T10Wrapped | SedkForm::RsaOaepSha1) if drive.key == DriveKey::None => Some(
            format!("it has no public key: ekm drive mod {serial} --key PEM"),
        ),
        _ => None,
    }
}

/// The KEKs that a drive writes under, or why it cannot. None where the tokens could not be asked.
fn keks_of<'a>(site: &'a Site, drive: &Drive) -> Result<Vec<&'a KnownKek>, String> {
    let own = [&drive.kek1, &drive.kek2];
    let named = if own.iter().any(|kek| kek.is_some()) {
        own
    } else {
        [&site.defaults.kek1, &site.defaults.kek2]
    };
    let labels: Vec<_> = named.into_iter().flatten().map(|kek| &kek.label).collect();
    if labels.is_empty() {
        return Err("it has no key label, and there is no default: ekm kek default".to_owned());
    }
    let Some(keks) = &site.keks else {
        return Ok(Vec::new());
    };
    labels
        .into_iter()
        .map(|label| {
            keks.iter()
                .find(|kek| kek.missing.is_none() && kek.label.same_as(label))
                .ok_or_else(|| format!("its KEK {label} is on no token: writing gets EE31"))
        })
        .collect()
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

fn tapes(site: &Site) -> Tapes {
    let mut tapes = Tapes::default();
    let served: BTreeSet<KekHash> = site
        .keks
        .iter()
        .flatten()
        .filter(|kek| kek.custody.is_some())
        .map(|kek| kek.hash)
        .collect();
    // Newest first: the first row of a volume that counts says how it is now.
    let mut seen = BTreeSet::new();
    for key in &site.volumes {
        let counts = match key.state {
            EedkState::Issued | EedkState::Confirmed => true,
            EedkState::Superseded | EedkState::Abandoned => false,
        };
        if !counts || !seen.insert(key.volser.to_string()) {
            continue;
        }
        if site.keks.is_none() || key.eedks.iter().any(|eedk| served.contains(&eedk.kek_hash)) {
            tapes.readable += 1;
            continue;
        }
        let keks: Vec<String> = key
            .eedks
            .iter()
            .map(|eedk| eedk.kek_label.to_string())
            .collect();
        tapes.unreadable.push(LostTape {
            volser: key.volser.to_string(),
            since: key.created.date().to_string(),
            keks,
            why: match out_of_reach(site, key) {
                Some(place) => format!("not before a token is up that has its KEK: {place}"),
                None => "none of its KEKs is on a token".to_owned(),
            },
        });
    }
    tapes
        .unreadable
        .extend(keyed_by_ekm(&site.ekm21, |volser| seen.contains(volser)));
    tapes
}

/// Where one of its KEKs is, if on a token that has not been up.
fn out_of_reach(site: &Site, key: &VolumeKey) -> Option<String> {
    site.keks
        .iter()
        .flatten()
        .filter(|kek| kek.is_away())
        .find(|kek| key.eedks.iter().any(|eedk| eedk.kek_hash == kek.hash))
        .map(KnownKek::place)
}

/// The cartridges that EKM keyed, by volume serial, without those that have been written here since.
fn keyed_by_ekm<'a>(
    records: impl IntoIterator<Item = &'a KeyUse>,
    rewritten: impl Fn(&str) -> bool,
) -> Vec<LostTape> {
    let mut last: BTreeMap<&str, &KeyUse> = BTreeMap::new();
    for used in records {
        // Dates are texts; in the form that the manual shows their order is that of time.
        last.insert(&used.volser, used);
    }
    last.into_iter()
        .filter(|(volser, _)| !rewritten(&volser.to_ascii_uppercase()))
        .map(|(volser, used)| LostTape {
            volser: volser.to_owned(),
            since: used.date_time.clone(),
            keks: used.aliases().map(str::to_owned).collect(),
            why: "keyed by EKM 2.1: its EEDK is of IBM's layout".to_owned(),
        })
        .collect()
}

#[cfg(test)]
mod tests;
