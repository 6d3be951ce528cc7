//! What of a site goes into a backup.

use std::collections::BTreeMap;
use std::io;
use std::path::{Component, Path, PathBuf};

use super::make::{Asked, Held};
use super::{BackupError, Place, at};
use crate::bridge::pin::PinSource;
use crate::bridge::profile::HsmProfile;

/// How a file is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// As it is.
    Whole(PathBuf),
    /// Records, up to the last whole line: more are written meanwhile.
    Lines(PathBuf),
    /// The database of an embedded token, by a copy that SQLite makes.
    Token(PathBuf),
}

/// What goes into a backup.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) files: BTreeMap<Place, Source>,
    pub(super) missing: Vec<String>,
    // Tokens and keystores whose private keys are among the files.
    pub(super) held: Vec<Held>,
    // Embedded tokens whose private keys should be, and are not; a sentence each.
    pub(super) lost: Vec<String>,
}

impl Plan {
    pub(super) fn new(asked: &Asked<'_>, here: &Path) -> Result<Self, BackupError> {
        let config = asked.config;
        let mut plan = Self::default();
        let own = std::path::absolute(asked.config_path).map_err(at(asked.config_path))?;
        plan.files.insert(Place::Config, Source::Whole(own));
        let server = &config.server;
        let certificates = [&server.certificate, &server.key, &server.client_ca];
        let others = [&server.crl, &server.drive_ca, &config.sync.ca];
        let syslog = config.records.syslog.iter();
        let syslog = syslog.flat_map(|to| [&to.ca, &to.certificate, &to.key]);
        let others = others.into_iter().chain(syslog).flatten();
        for path in certificates.into_iter().chain(others) {
            plan.add(path, here)?;
        }
        let ca = server.client_ca.with_file_name("ca.key");
        if ca.exists() {
            plan.missing.push(format!(
                "the private key of the CA, {}: keep a copy of it apart, or issue all certificates anew",
                ca.display()
            ));
        }
        for path in tree(&config.state)? {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            // The database goes in row by row; a socket is no file; what is begun is not whole.
            let passing = name.starts_with("state.db")
                || name.starts_with(".tmp")
                || name.ends_with(".lock")
                || path
                    .components()
                    .any(|part| part.as_os_str().to_string_lossy().starts_with(".backup-"));
            if !passing {
                plan.add(&path, here)?;
            }
        }
        for token in &config.tokens {
            plan.add_token(token, here)?;
            plan.secret(
                &format!("the PIN of token {}", token.name),
                &token.pin,
                asked,
                here,
            )?;
        }
        for keystore in &config.keystores {
            if plan.add(&keystore.file, here)? {
                plan.held.push(Held {
                    name: keystore.name.clone(),
                    file: keystore.file.clone(),
                });
            }
            let name = format!("the password of keystore {}", keystore.name);
            for source in std::iter::once(&keystore.password).chain(&keystore.key_password) {
                plan.secret(&name, source, asked, here)?;
            }
        }
        if let Some(database) = &config.database {
            if let Some(ca) = database.root_certificate() {
                plan.add(&here.join(ca), here)?;
            }
            if let Some(source) = &database.password {
                plan.secret("the database's password", source, asked, here)?;
            }
        }
        if asked.audit {
            for path in tree(&config.audit)? {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                if name.ends_with("lock") || name.starts_with(".tmp") {
                    continue;
                }
                let source = if name.ends_with(".jsonl") {
                    Source::Lines(path.clone())
                } else {
                    Source::Whole(path.clone())
                };
                plan.files.insert(place(&path, here)?, source);
            }
        } else {
            plan.missing.push(format!(
                "the audit records, {}: archive them apart",
                config.audit.display()
            ));
        }
        plan.missing.dedup();
        Ok(plan)
    }

    /// Whether the file is there.
    fn add(&mut self, path: &Path, here: &Path) -> Result<bool, BackupError> {
        let place = place(path, here)?;
        if !path.is_file() {
            self.missing.push(format!(
                "{}, which the configuration names: there is no such file",
                path.display()
            ));
            return Ok(false);
        }
        self.files
            .entry(place)
            .or_insert_with(|| Source::Whole(path.to_owned()));
        Ok(true)
    }

    fn add_token(
        &mut self,
        token: &crate::config::TokenConfig,
        here: &Path,
    ) -> Result<(), BackupError> {
        if Path::new(&token.profile).extension().is_some() {
            self.add(Path::new(&token.profile), here)?;
        }
        let embedded = HsmProfile::load(&token.profile)
            .is_ok_and(|profile| profile.module.library == "embedded")
            && token.library.is_none();
        match &token.directory {
            Some(directory) if embedded => {
                let path = directory.join("token.sql");
                let why = match std::fs::metadata(&path) {
                    Ok(meta) if meta.is_file() => {
                        self.files
                            .insert(place(&path, here)?, Source::Token(path.clone()));
                        self.held.push(Held {
                            name: token.name.clone(),
                            file: path,
                        });
                        return Ok(());
                    }
                    Ok(_) => format!("{} is no file", path.display()),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        format!("there is no {}", path.display())
                    }
                    Err(error) => format!("cannot read {}: {error}", path.display()),
                };
                let why = format!("token {}: {why}", token.name);
                self.lost.push(format!(
                    "{why}; its KEKs are NOT in this backup. Mount the disk that it is on, or restore it, and make another backup"
                ));
                self.missing.push(why);
            }
            Some(directory) => self.missing.push(format!(
                "token {}: its keys, and the directory {}; back them up by the means of its maker",
                token.name,
                directory.display()
            )),
            None => self.missing.push(format!(
                "token {}: its keys are in the HSM; back it up by its maker's means (ekm kek copy confirm LABEL says so to ekm)",
                token.name
            )),
        }
        Ok(())
    }

    fn secret(
        &mut self,
        name: &str,
        source: &PinSource,
        asked: &Asked<'_>,
        here: &Path,
    ) -> Result<(), BackupError> {
        match source {
            PinSource::File(path) if asked.with_pins => drop(self.add(path, here)?),
            PinSource::File(path) => self.missing.push(format!(
                "{name}, which is in {}: keep it apart",
                path.display()
            )),
            PinSource::Credential(_)
            | PinSource::Env(_)
            | PinSource::Command(_)
            | PinSource::Operator
            | PinSource::Pad => self
                .missing
                .push(format!("{name}, which is in no file: keep it apart")),
        }
        Ok(())
    }
}

/// The directory of the configuration, absolute.
pub(super) fn folder(config: &Path) -> Result<PathBuf, BackupError> {
    let own = std::path::absolute(config).map_err(at(config))?;
    Ok(plain(own.parent().unwrap_or(Path::new("/"))))
}

pub(super) fn place(path: &Path, here: &Path) -> Result<Place, BackupError> {
    Place::of(&plain(path), here)
}

/// A path without `.` and `..`, by its text.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                plain.pop();
            }
            Component::CurDir => {}
            other => plain.push(other),
        }
    }
    plain
}

/// The files of a directory and those below, without links and sockets.
fn tree(directory: &Path) -> Result<Vec<PathBuf>, BackupError> {
    let mut found = Vec::new();
    let mut todo = vec![directory.to_owned()];
    while let Some(next) = todo.pop() {
        let entries = match std::fs::read_dir(&next) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(at(&next)(error)),
        };
        for entry in entries {
            let entry = entry.map_err(at(&next))?;
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => todo.push(entry.path()),
                Ok(kind) if kind.is_file() => found.push(entry.path()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(at(&entry.path())(error)),
            }
        }
    }
    found.sort();
    Ok(found)
}
