//! From IBM's EKM 2.1 to `ekm`: what can be read of an EKM, and what becomes of it.
//!
//! ```text
//! properties, drive table, keystore, metadata --read--> Sources --> Plan --apply--> ekm.toml, drive table,
//!                                                                                   defaults, records
//! ```
//!
//! What EKM's files look like is documented in its manual only in part, and no file of a real EKM was at
//! hand: each module says what it takes.

pub mod drivetable;
pub mod history;
pub mod keys;
pub mod metadata;
pub mod plan;
pub mod properties;
pub mod steps;
pub mod stores;
mod toml;

use std::path::{Path, PathBuf};

use secrecy::SecretString;

use crate::bridge::profile::HsmProfile;
use crate::keyfile::{self, Passwords};
use drivetable::DriveTableError;
use metadata::MetadataError;
use plan::Sources;
use properties::{Properties, PropertiesError};
use stores::Fate;

/// What comes first in all that is said of a migration.
pub const FIRST: &str = "Keys and records move; cartridges that IBM's EKM keyed need IBM's EEDK layout, which is not public, so ekm cannot read them.";

/// Longest configuration of an HSM for Java, or file of key groups, bytes.
const MAX_SMALL: u64 = 8 << 20;

/// Where an EKM's files are.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// `KeyManagerConfig.properties`
    pub properties: PathBuf,
    /// The directory that EKM is started in.
    pub home: Option<PathBuf>,
    /// The drive table as text, where it is not the file that the properties name.
    pub drive_table: Option<PathBuf>,
    /// Metadata files, where they are not the one that the properties name.
    pub metadata: Vec<PathBuf>,
}

/// Why nothing can be planned.
#[derive(Debug, thiserror::Error)]
pub enum GatherError {
    /// The properties.
    #[error(transparent)]
    Properties(#[from] PropertiesError),
    /// A drive table that was given by name.
    #[error(transparent)]
    DriveTable(#[from] DriveTableError),
    /// A metadata file that was given by name.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
}

/// Reads what there is of an EKM. What the properties name and cannot be read becomes a note; what was
/// given by name must be readable. `password` opens the keystore; where there is none the properties' own
/// is taken.
///
/// # Errors
/// The properties, or a file that was given by name.
pub fn gather(places: &Places, password: Option<SecretString>) -> Result<Sources, GatherError> {
    let properties = Properties::read(&places.properties)?;
    let home = places.home.as_deref();
    let mut notes = Vec::new();

    let drives = match &places.drive_table {
        Some(path) => Some(drivetable::read(path)?),
        None => match properties.file("config.drivetable.file.url", home) {
            Some(path) => drivetable::read(&path)
                .map_err(|error| notes.push(format!("drives: {error}")))
                .ok(),
            None => {
                notes.push("drives: the properties name no drive table; give the text that EKM's listdrives -verbose prints with --drive-table".to_owned());
                None
            }
        },
    };

    let mut history = Vec::new();
    let named = if places.metadata.is_empty() {
        properties.file("Audit.metadata.file.name", home)
    } else {
        None
    };
    for path in named.iter().chain(&places.metadata) {
        match metadata::read(path) {
            Ok(read) => {
                if let Some(damage) = &read.damage {
                    notes.push(format!(
                        "history: {} is damaged: {damage}; all whole events were taken",
                        path.display()
                    ));
                }
                if read.incomplete > 0 {
                    notes.push(format!(
                        "history: {} records of {} have no volume serial, or a value that is too long, and were left out",
                        read.incomplete,
                        path.display()
                    ));
                }
                history.extend(read.events);
            }
            Err(error) if named.is_some() => notes.push(format!("history: {error}")),
            Err(error) => return Err(error.into()),
        }
    }

    if let Some(path) = properties.file("config.keygroup.xml.file", home)
        && path.is_file()
    {
        notes.push(format!(
            "{}: key groups are of symmetric keys for LTO drives, and are not served; the file was not read",
            path.display()
        ));
    }

    let kind = stores::kind(properties.text("config.keystore.type").unwrap_or("JCEKS"));
    let keystore = properties.file("config.keystore.file", home);
    let mut keys = None;
    let mut hsm = None;
    match (kind.map(|kind| kind.fate), &keystore) {
        (Some(Fate::Stays), Some(path)) => hsm = hsm_of(path, &mut notes),
        (Some(Fate::Moves) | None, Some(path)) => {
            keys = keys_of(path, &properties, password, &mut notes);
        }
        (Some(Fate::Export), _) => notes.push(format!(
            "keys: a {} is not a file that can be read here; export its keys first",
            kind.map_or("keystore", |kind| kind
                .names
                .first()
                .copied()
                .unwrap_or_default())
        )),
        (_, None) => notes.push("keys: the properties name no keystore".to_owned()),
    }

    Ok(Sources {
        properties,
        drives,
        keys,
        history,
        notes,
        now: time::OffsetDateTime::now_utc(),
        keystore: keystore.map(|path| path.display().to_string()),
        password_file: None,
        hsm,
    })
}

fn keys_of(
    path: &Path,
    properties: &Properties,
    password: Option<SecretString>,
    notes: &mut Vec<String>,
) -> Option<Vec<keys::EkmKey>> {
    let own = properties.password("config.keystore.password");
    let Some(store) = password.or_else(|| own.cloned()) else {
        notes.push(format!(
            "keys: {} was not opened, because its password is not known (EKM's obfuscated form cannot be read); give it with --password-file",
            path.display()
        ));
        return None;
    };
    match keyfile::open(path, &Passwords { store, key: None }) {
        Ok(file) => Some(keys::of(&file)),
        Err(error) => {
            notes.push(format!("keys: {error}"));
            None
        }
    }
}

/// The profile that fits the library which Java's PKCS#11 provider is configured with, and that library.
fn hsm_of(path: &Path, notes: &mut Vec<String>) -> Option<(String, String)> {
    let text = match crate::files::read_limited(path, MAX_SMALL) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => {
            notes.push(format!(
                "keys: the HSM's configuration {} cannot be read ({error}); name the HSM in ekm.toml yourself",
                path.display()
            ));
            return None;
        }
    };
    let library = text.lines().find_map(|line| {
        let (name, value) = line.split_once('=')?;
        let named = name.trim().eq_ignore_ascii_case("library");
        named.then(|| value.trim().trim_matches('"').to_owned())
    });
    let Some(library) = library.filter(|library| !library.is_empty()) else {
        notes.push(format!(
            "keys: {} has no line library = …; name the HSM in ekm.toml yourself",
            path.display()
        ));
        return None;
    };
    let file = |library: &str| library.rsplit('/').next().map(str::to_owned);
    let mut fitting = HsmProfile::shipped().filter(|name| {
        HsmProfile::load(name).is_ok_and(|profile| {
            profile.unsupported.is_none() && file(&profile.module.library) == file(&library)
        })
    });
    match (fitting.next(), fitting.next()) {
        (Some(name), None) => Some((name.to_owned(), library)),
        (None, _) => {
            notes.push(format!(
                "keys: no shipped profile has the library {}; write one (ekm slot doctor helps) and name it in ekm.toml",
                keys::shown(&library)
            ));
            None
        }
        (Some(_), Some(_)) => {
            notes.push(format!(
                "keys: several profiles have the library {}; name the right one in ekm.toml",
                keys::shown(&library)
            ));
            None
        }
    }
}
