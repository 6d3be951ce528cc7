//! What a migration will do: made of what was read, with no I/O, and shown before it is done.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::drivetable::{DriveTable, EkmDrive};
use super::keys::{self, EkmKey, shown};
use super::metadata::KeyUse;
use super::properties::{self, Becomes, Properties, Value};
use super::steps::Progress;
use super::stores::{self, StoreKind};
use super::toml::{self, Mapped};
use crate::admin::ImportedDrive;
use crate::drive::{DriveSerial, Wwn};
use crate::key::{KekRef, KeyLabel};
use crate::store::Defaults;

/// What was read of an EKM 2.1.
#[derive(Clone, Debug)]
pub struct Sources {
    /// Its configuration.
    pub properties: Properties,
    /// Its drive table, where there is one.
    pub drives: Option<DriveTable>,
    /// Its keys, where its keystore could be opened.
    pub keys: Option<Vec<EkmKey>>,
    /// Its records of cartridges.
    pub history: Vec<KeyUse>,
    /// What could not be read, or is not served, one sentence each.
    pub notes: Vec<String>,
    /// When it was read.
    pub now: time::OffsetDateTime,
    /// The keystore's file, as a command would name it.
    pub keystore: Option<String>,
    /// The file with its password, as a command would name it, where one was given.
    pub password_file: Option<String>,
    /// The profile of the HSM that EKM used, and its library, where its configuration names one.
    pub hsm: Option<(String, String)>,
}

/// What becomes of one property.
#[derive(Clone, Debug, Serialize)]
pub struct PropertyRow {
    /// Its name.
    pub property: String,
    /// Its value; never a password.
    pub value: String,
    /// Key of `ekm.toml`, or what is moved; `-` for nothing.
    pub becomes: String,
    /// The value there.
    pub as_value: Option<String>,
    /// How, or why not.
    pub why: String,
}

/// Whether something can be moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It is.
    Moves,
    /// An operator has something to decide or to mend first.
    Conflict,
    /// It is not.
    Stays,
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Moves => "moves",
            Self::Conflict => "conflict",
            Self::Stays => "stays",
        })
    }
}

/// What becomes of one drive.
#[derive(Clone, Debug, Serialize)]
pub struct DriveRow {
    /// Its serial: 12 characters where it is one, else as EKM has it.
    pub serial: String,
    /// First KEK.
    pub kek1: Option<String>,
    /// Second KEK.
    pub kek2: Option<String>,
    /// When EKM changed it last.
    pub changed: Option<String>,
    /// Whether it is moved.
    pub verdict: Verdict,
    /// What is to be done, or why not.
    pub why: String,
    /// What goes into the drive table.
    #[serde(skip)]
    pub import: Option<ImportedDrive>,
}

/// What becomes of one key.
#[derive(Clone, Debug, Serialize)]
pub struct KeyRow {
    /// The key.
    #[serde(flatten)]
    pub key: EkmKey,
    /// What names it: `kek1 default`, so many drives, so many cartridges.
    pub used: Vec<String>,
    /// Whether it is moved.
    pub verdict: Verdict,
    /// How, or why not.
    pub why: String,
}

/// EKM's records of cartridges.
#[derive(Clone, Debug, Default, Serialize)]
pub struct History {
    /// How many.
    pub records: usize,
    /// Of how many cartridges.
    pub cartridges: usize,
}

/// One thing that an operator does, in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// What and why.
    pub what: String,
    /// The commands.
    pub commands: Vec<String>,
}

/// What a migration will do.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// The first sentence: what does not move.
    pub first: &'static str,
    /// The properties, in the file's order.
    pub properties: Vec<PropertyRow>,
    /// The kind of EKM's keystore.
    pub keystore: Option<&'static StoreKind>,
    /// Its keys.
    pub keys: Vec<KeyRow>,
    /// The drives.
    pub drives: Vec<DriveRow>,
    /// The default labels.
    pub defaults: Defaults,
    /// The history.
    pub history: History,
    /// What an operator has to decide or to mend.
    pub conflicts: Vec<String>,
    /// What else is to be known.
    pub notes: Vec<String>,
    /// What is left to do, in order.
    pub steps: Vec<Step>,
    /// The text of `ekm.toml`.
    #[serde(skip)]
    pub config: String,
}

impl Plan {
    /// The same, with the steps that are left after what is done already.
    #[must_use]
    pub fn left(mut self, sources: &Sources, done: &Progress) -> Self {
        self.steps = super::steps::of(&self, sources, done);
        self
    }

    /// Makes the plan.
    #[must_use]
    pub fn of(sources: &Sources) -> Self {
        let mut conflicts = Vec::new();
        let mut notes = sources.notes.clone();
        let mapped = toml::mapped(&sources.properties);
        conflicts.extend(mapped.iter().filter_map(|mapped| {
            let fault = mapped.fault.as_ref()?;
            Some(format!("{}: {fault}", mapped.property))
        }));
        conflicts.extend(sources.properties.repeated.iter().map(|name| {
            format!("the property {name} is given more than once; the last one counts, as in EKM")
        }));
        let type_name = sources.properties.text("config.keystore.type");
        // What Java takes where the property is missing is of no help here; EKM's default is.
        let kind = stores::kind(type_name.unwrap_or("JCEKS"));
        if kind.is_none() {
            conflicts.push(format!(
                "config.keystore.type {:?} is none that EKM 2.1 knows",
                shown(type_name.unwrap_or_default())
            ));
        }
        let defaults = defaults(&sources.properties, &mut conflicts);
        let drives = drives(sources.drives.as_ref(), &mut conflicts);
        if let Some(table) = &sources.drives
            && !table.unknown.is_empty()
        {
            notes.push(format!(
                "the drive table has fields that are not known and were passed over: {}",
                table.unknown.join(", ")
            ));
        }
        let used = Used::of(&defaults, &drives, &sources.history);
        let keys = sources.keys.as_deref().unwrap_or_default();
        conflicts.extend(keys::conflicts(keys));
        notes.extend(keys::ended(keys, sources.now));
        if sources.keys.is_some() {
            conflicts.extend(used.missing(keys));
        }
        let keys = key_rows(keys, &used);
        let cartridges: BTreeSet<&str> = sources
            .history
            .iter()
            .map(|used| used.volser.as_str())
            .collect();
        let history = History {
            records: sources.history.len(),
            cartridges: cartridges.len(),
        };
        let (profile, library) = sources.hsm.clone().unzip();
        let mut plan = Self {
            first: super::FIRST,
            properties: property_rows(&sources.properties, &mapped),
            keystore: kind,
            keys,
            drives,
            defaults,
            history,
            conflicts,
            notes,
            steps: Vec::new(),
            config: toml::write(&mapped, profile.as_deref(), library.as_deref()),
        };
        plan.steps = super::steps::of(&plan, sources, &Progress::default());
        plan
    }

    /// The drives that go into the drive table.
    pub fn imports(&self) -> impl Iterator<Item = &ImportedDrive> {
        self.drives.iter().filter_map(|row| row.import.as_ref())
    }
}

fn property_rows(properties: &Properties, mapped: &[Mapped]) -> Vec<PropertyRow> {
    properties
        .settings()
        .iter()
        .map(|setting| {
            let value = match &setting.value {
                Value::Text(text) => shown(text),
                Value::Secret(_) => "(not shown)".to_owned(),
            };
            let (becomes, why) = match properties::known(&setting.name) {
                Some(row) => (row.becomes, row.why),
                None => (
                    Becomes::Nothing,
                    "not a property that is known of EKM 2.1: look whether it matters to you",
                ),
            };
            let as_value = mapped
                .iter()
                .find(|mapped| mapped.property.eq_ignore_ascii_case(&setting.name))
                .map(|mapped| mapped.value.clone());
            PropertyRow {
                property: setting.name.clone(),
                value,
                becomes: becomes.to_string(),
                as_value,
                why: why.to_owned(),
            }
        })
        .collect()
}

/// A label of EKM's; what is wrong with it goes among the conflicts.
fn label(
    alias: Option<&str>,
    whose: &str,
    conflicts: &mut Vec<String>,
) -> Result<Option<KekRef>, ()> {
    let Some(alias) = alias else { return Ok(None) };
    match alias.parse::<KeyLabel>() {
        // EKM stores the label in the EEDK where nothing else is said.
        Ok(label) => Ok(Some(KekRef {
            label,
            encoding: crate::key::Encoding::Label,
        })),
        Err(error) => {
            conflicts.push(format!(
                "{whose}: {:?} is no key label: {error}",
                shown(alias)
            ));
            Err(())
        }
    }
}

fn defaults(properties: &Properties, conflicts: &mut Vec<String>) -> Defaults {
    let mut of = |name: &str| label(properties.text(name), name, conflicts).ok().flatten();
    Defaults {
        kek1: of("drive.default.alias1"),
        kek2: of("drive.default.alias2"),
    }
}

fn drives(table: Option<&DriveTable>, conflicts: &mut Vec<String>) -> Vec<DriveRow> {
    let drives = table.map_or([].as_slice(), |table| &table.drives);
    let mut rows: Vec<DriveRow> = Vec::new();
    let mut seen: BTreeMap<DriveSerial, usize> = BTreeMap::new();
    for drive in drives {
        let row = drive_row(drive, conflicts);
        let serial = row.import.as_ref().map(|import| import.serial.clone());
        let Some(serial) = serial else {
            rows.push(row);
            continue;
        };
        let Some(first) = seen.get(&serial).and_then(|index| rows.get_mut(*index)) else {
            seen.insert(serial, rows.len());
            rows.push(row);
            continue;
        };
        if first.import != row.import {
            conflicts.push(format!(
                "drive {serial} stands in the drive table twice with different values (changed {} and {}); leave the right one in and try again",
                first.changed.as_deref().unwrap_or("-"),
                row.changed.as_deref().unwrap_or("-")
            ));
            first.verdict = Verdict::Conflict;
            first.import = None;
            first.why = "twice in the drive table, with different values".to_owned();
        }
    }
    rows
}

fn drive_row(drive: &EkmDrive, conflicts: &mut Vec<String>) -> DriveRow {
    let mut row = DriveRow {
        serial: shown(&drive.serial),
        kek1: drive.alias1.as_deref().map(shown),
        kek2: drive.alias2.as_deref().map(shown),
        changed: drive.changed.as_deref().map(shown),
        verdict: Verdict::Conflict,
        why: String::new(),
        import: None,
    };
    if drive.deleted {
        row.verdict = Verdict::Stays;
        "EKM has it as deleted".clone_into(&mut row.why);
        return row;
    }
    let whose = format!("drive {} (line {})", row.serial, drive.line);
    let serial = match drive.serial.parse::<DriveSerial>() {
        Ok(serial) => serial,
        Err(error) => {
            conflicts.push(format!("{whose}: {error}"));
            "its serial is none".clone_into(&mut row.why);
            return row;
        }
    };
    row.serial = serial.to_string();
    let kek1 = label(drive.alias1.as_deref(), &whose, conflicts);
    let kek2 = label(drive.alias2.as_deref(), &whose, conflicts);
    let (Ok(kek1), Ok(kek2)) = (kek1, kek2) else {
        "an alias is no key label; without it the drive would write under the defaults"
            .clone_into(&mut row.why);
        return row;
    };
    if kek1.is_some() && kek1 == kek2 {
        conflicts.push(format!(
            "{whose}: both aliases are one label; it is taken once"
        ));
    }
    let kek2 = kek2.filter(|kek2| kek1.as_ref() != Some(kek2));
    // One alias is used for both EEDKs there, and gives one EEDK here.
    let (kek1, kek2) = match (kek1, kek2) {
        (None, second) => (second, None),
        both => both,
    };
    let wwn = match drive.wwn.as_deref().map(str::parse::<Wwn>) {
        None => None,
        Some(Ok(wwn)) => Some(wwn),
        Some(Err(error)) => {
            conflicts.push(format!("{whose}: {error}; it is moved without"));
            None
        }
    };
    row.verdict = Verdict::Moves;
    row.why = if drive.symmetric.is_some() && kek1.is_none() {
        "waits for its enrolment; it had symmetric keys (LTO), which do not move"
    } else {
        "waits for its enrolment: its public key, which EKM's table does not have"
    }
    .to_owned();
    row.import = Some(ImportedDrive {
        serial,
        wwn,
        kek1,
        kek2,
    });
    row
}

/// Which labels are used by what.
#[derive(Default)]
struct Used {
    by: BTreeMap<KeyLabel, BTreeMap<&'static str, usize>>,
}

impl Used {
    fn of(defaults: &Defaults, drives: &[DriveRow], history: &[KeyUse]) -> Self {
        let mut used = Self::default();
        for kek in [&defaults.kek1, &defaults.kek2].into_iter().flatten() {
            used.count(kek.label.clone(), "default");
        }
        for import in drives.iter().filter_map(|row| row.import.as_ref()) {
            for kek in [&import.kek1, &import.kek2].into_iter().flatten() {
                used.count(kek.label.clone(), "drives");
            }
        }
        for alias in history.iter().flat_map(KeyUse::aliases) {
            if let Ok(label) = alias.parse() {
                used.count(label, "cartridges");
            }
        }
        used
    }

    fn count(&mut self, label: KeyLabel, what: &'static str) {
        *self.by.entry(label).or_default().entry(what).or_default() += 1;
    }

    fn words(&self, label: &KeyLabel) -> Vec<String> {
        let counts = self.by.get(label).into_iter().flatten();
        counts
            .map(|(what, count)| match (*what, count) {
                ("default", _) => "default".to_owned(),
                (what, 1) => format!("1 {}", what.trim_end_matches('s')),
                (what, count) => format!("{count} {what}"),
            })
            .collect()
    }

    /// Labels that the keystore does not have.
    fn missing(&self, keys: &[EkmKey]) -> Vec<String> {
        let there: BTreeSet<KeyLabel> = keys
            .iter()
            .filter(|key| key.hash().is_some())
            .filter_map(|key| key.alias.parse().ok())
            .collect();
        self.by
            .keys()
            .filter(|label| !there.contains(label))
            .map(|label| {
                format!(
                    "{label} is used by {} and is not in the keystore: find the keystore that has it",
                    self.words(label).join(", ")
                )
            })
            .collect()
    }
}

fn key_rows(keys: &[EkmKey], used: &Used) -> Vec<KeyRow> {
    keys.iter()
        .map(|key| {
            let label = key.alias.parse::<KeyLabel>().ok();
            let (verdict, why) = match &key.kind {
                keys::KeyKind::Pair { .. } if label.is_none() => {
                    (Verdict::Conflict, "needs another label".to_owned())
                }
                keys::KeyKind::Pair { .. } => (Verdict::Moves, "ekm kek import".to_owned()),
                keys::KeyKind::Certificate { .. } => (
                    Verdict::Stays,
                    "no private key: where it is a partner's, add it as such; a CA's is not needed"
                        .to_owned(),
                ),
                keys::KeyKind::Secret { algorithm } => (
                    Verdict::Stays,
                    format!("a secret key ({algorithm}) for LTO drives: not served"),
                ),
                keys::KeyKind::Unfit { reason, .. } | keys::KeyKind::Unreadable { reason } => {
                    (Verdict::Conflict, reason.clone())
                }
            };
            KeyRow {
                used: label.map(|label| used.words(&label)).unwrap_or_default(),
                key: key.clone(),
                verdict,
                why,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests;
