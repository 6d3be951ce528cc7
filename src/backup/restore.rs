//! Bringing a backup back. It is read to its end first; only then anything is
//! written, each file beside its place until all are whole.

use std::fs::File;
use std::io::{BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use secrecy::SecretString;
use sha2::{Digest as _, Sha256};
use tempfile::{NamedTempFile, TempPath};

use super::frame::{self, Totals, Visitor};
use super::seal::Opener;
use super::{BackupError, Manifest, Place, at};
use crate::audit::{AuditLog, Event, Kind, Options, Outcome};
use crate::config::Config;
use crate::store::rows::{Cell, TableShape};
use crate::store::{Backup, Backups as _, Filling, Sql};

/// Longest configuration, bytes.
const MAX_CONFIG: usize = 1 << 20;

/// What is to be brought back, and where.
#[derive(Debug)]
pub struct Asked<'a> {
    /// The backup.
    pub file: &'a Path,
    /// What it is sealed with.
    pub passphrase: &'a SecretString,
    /// Where the configuration goes; everything else beside it.
    pub config: &'a Path,
    /// What was elsewhere than beside the configuration goes back to where it was.
    pub in_place: bool,
    /// What is there is moved aside.
    pub overwrite: bool,
    /// The state goes into SQLite also where it was in PostgreSQL.
    pub sqlite: bool,
    /// Who asks, for the audit log.
    pub operator: &'a str,
}

/// What was brought back.
#[derive(Clone, Debug)]
pub struct Restored {
    /// What the backup says of itself.
    pub manifest: Manifest,
    /// What it has.
    pub totals: Totals,
    /// Where the state went.
    pub state: String,
    /// What was moved aside, and to where.
    pub aside: Vec<(PathBuf, PathBuf)>,
    /// Files that were elsewhere than beside the configuration, and where they are now.
    pub elsewhere: Vec<(PathBuf, PathBuf)>,
    /// Whether the configuration still names a PostgreSQL that the state is not in.
    pub detached: bool,
    /// Why the audit log that was brought back does not say so.
    pub unrecorded: Option<String>,
}

/// What is in a backup, without keeping it.
#[derive(Debug, Default)]
pub struct Look {
    /// What it says of itself.
    pub manifest: Option<Manifest>,
    /// The configuration.
    pub config: Vec<u8>,
    /// Its files.
    pub places: Vec<Place>,
}

impl Visitor for Look {
    async fn manifest(&mut self, manifest: &Manifest) -> Result<(), BackupError> {
        manifest.state.check()?;
        manifest.audit.check()?;
        self.manifest = Some(manifest.clone());
        Ok(())
    }

    async fn file(&mut self, place: &Place) -> Result<(), BackupError> {
        self.places.push(place.clone());
        Ok(())
    }

    async fn data(&mut self, bytes: &[u8]) -> Result<(), BackupError> {
        if self.places.last() == Some(&Place::Config) {
            self.config.extend_from_slice(bytes);
            if self.config.len() > MAX_CONFIG {
                return Err(BackupError::Config("it is longer than 1 MiB".to_owned()));
            }
        }
        Ok(())
    }

    async fn file_end(&mut self) -> Result<(), BackupError> {
        Ok(())
    }

    async fn table(&mut self, _: &TableShape) -> Result<(), BackupError> {
        Ok(())
    }

    async fn rows(&mut self, table: &TableShape, rows: Vec<Vec<Cell>>) -> Result<(), BackupError> {
        let width = table.columns.len();
        if rows.iter().all(|row| row.len() == width) {
            Ok(())
        } else {
            Err(BackupError::Inside(format!(
                "a row of the table {} has another number of values than its columns",
                table.name
            )))
        }
    }
}

/// Reads a backup to its end and says what is in it.
///
/// # Errors
/// What is wrong with it.
pub async fn look(file: &Path, passphrase: &SecretString) -> Result<(Look, Totals), BackupError> {
    let mut look = Look::default();
    let totals = frame::walk(&mut opened(file, passphrase)?, &mut look).await?;
    Ok((look, totals))
}

fn opened(file: &Path, passphrase: &SecretString) -> Result<Opener<BufReader<File>>, BackupError> {
    let from = BufReader::new(File::open(file).map_err(at(file))?);
    Opener::begin(from, passphrase).map_err(|source| BackupError::Seal {
        path: file.to_owned(),
        source,
    })
}

/// Brings it back.
///
/// # Errors
/// What is wrong with the backup, or with the place; nothing is changed then.
pub async fn restore(asked: &Asked<'_>) -> Result<Restored, BackupError> {
    let (look, _) = look(asked.file, asked.passphrase).await?;
    let Some(manifest) = look.manifest else {
        return Err(BackupError::Inside("it has no manifest".to_owned()));
    };
    let config_path = std::path::absolute(asked.config).map_err(at(asked.config))?;
    let folder = config_path.parent().unwrap_or(Path::new("/")).to_owned();
    let text = String::from_utf8(look.config)
        .map_err(|_| BackupError::Config("it is no text".to_owned()))?;
    let config = Config::parse(&text, &config_path)
        .map_err(|error| BackupError::Config(error.to_string()))?;
    let target = |place: &Place| place.under(&config_path, &folder, asked.in_place);
    let state = target(&manifest.state);
    let audit = target(&manifest.audit);
    // The configuration that is there now says where its operators knock.
    let now = std::fs::read_to_string(&config_path).ok();
    let now = now.and_then(|text| Config::parse(&text, &config_path).ok());
    let sockets = now.iter().map(Config::socket);
    let answers = |socket: PathBuf| UnixStream::connect(socket).is_ok();
    if sockets.chain([state.join("ekm.sock")]).any(answers)
        || crate::audit::is_written(&audit).map_err(at(&audit))?
    {
        return Err(BackupError::Running(state));
    }
    let targets: Vec<PathBuf> = look.places.iter().map(target).collect();
    let taken = taken(&targets, &state, &audit)?;
    if !taken.is_empty() && !asked.overwrite {
        return Err(BackupError::Exists(taken));
    }
    let aside = move_aside(taken)?;
    let folders = missing_folders(&targets, &state);
    let database = config.database.filter(|_| !asked.sqlite);
    let (mut placed, mut digest) = (Vec::new(), String::new());
    let put = async {
        std::fs::create_dir_all(&folder).map_err(at(&folder))?;
        crate::files::private_dir(&state).map_err(at(&state))?;
        // SQLite's file is made beside its place.
        let making = tempfile::Builder::new()
            .prefix(".restore-")
            .tempdir_in(&state)
            .map_err(at(&state))?;
        let versions = Some(manifest.migrations.as_slice());
        let store = match &database {
            Some(database) => Sql::postgres_as_of(database, versions).await?,
            None => Sql::sqlite_as_of(making.path(), versions).await?,
        };
        let mut put = Put {
            target: &target,
            filling: store.fill().await?,
            current: None,
            whole: Vec::new(),
        };
        let totals = frame::walk(&mut opened(asked.file, asked.passphrase)?, &mut put).await?;
        let Put { filling, whole, .. } = put;
        let noted = noted(asked.file, &manifest)?;
        digest.clone_from(&noted.digest);
        // What is committed in a PostgreSQL cannot be taken back, so the files come before it.
        for (part, path) in whole {
            part.persist(&path)
                .map_err(|error| at(&path)(error.error))?;
            placed.push(path.clone());
            sync_folder(&path)?;
        }
        filling.finish().await?;
        store.add_backup(&noted).await?;
        store.close().await;
        if database.is_none() {
            let path = state.join("state.db");
            std::fs::rename(making.path().join("state.db"), &path).map_err(at(&path))?;
            sync_folder(&path)?;
        }
        Ok(totals)
    };
    let totals = match put.await {
        Ok(totals) => totals,
        Err(error) => {
            for path in &placed {
                drop(std::fs::remove_file(path));
            }
            // Only those that are empty go.
            for folder in folders.iter().rev() {
                drop(std::fs::remove_dir(folder));
            }
            move_back(&aside);
            return Err(error);
        }
    };
    // From here on the records are another continuation of what was backed up.
    let log = AuditLog::open(&audit, &manifest.node, Options::default());
    let mut event = Event::new(Kind::DataSynchronization, "restore", Outcome::Success);
    event.peer = Some(asked.operator.to_owned());
    event.detail = Some(format!(
        "backup {} of {}, {}, SHA-256 {digest}; {} files, {} rows",
        manifest.id,
        at_second(manifest.at),
        asked.file.display(),
        totals.files,
        totals.rows
    ));
    let recorded = match log {
        Ok(log) => log.record(event).await.map(drop),
        Err(error) => Err(error),
    };
    let unrecorded = recorded.err().map(|error| error.to_string());
    let elsewhere = look
        .places
        .iter()
        .chain([&manifest.state, &manifest.audit])
        .filter_map(|place| match place {
            Place::Elsewhere(path) if !asked.in_place => Some((PathBuf::from(path), target(place))),
            Place::Config | Place::Beside(_) | Place::Elsewhere(_) => None,
        })
        .collect();
    Ok(Restored {
        state: database.as_ref().map_or_else(
            || state.join("state.db").display().to_string(),
            ToString::to_string,
        ),
        detached: asked.sqlite && text_names_database(&text),
        manifest,
        totals,
        aside,
        elsewhere,
        unrecorded,
    })
}

fn text_names_database(text: &str) -> bool {
    toml::from_str::<toml::Table>(text).is_ok_and(|table| table.contains_key("database"))
}

fn at_second(at: time::OffsetDateTime) -> String {
    let at = at.truncate_to_second();
    at.format(&time::format_description::well_known::Rfc3339)
        .unwrap_or_default()
}

/// The backup's own row: the one that it came with was not written yet when it was made.
fn noted(file: &Path, manifest: &Manifest) -> Result<Backup, BackupError> {
    let mut digest = Sha256::new();
    let mut from = File::open(file).map_err(at(file))?;
    let bytes = std::io::copy(&mut from, &mut digest).map_err(at(file))?;
    Ok(Backup {
        id: manifest.id,
        at: manifest.at,
        server: manifest.node.clone(),
        file: file.display().to_string(),
        bytes,
        digest: hex::encode(digest.finalize()),
        contents: "restored from it".to_owned(),
        keks: manifest.keks.iter().map(|kek| kek.hash).collect(),
    })
}

/// What stands where the backup's parts go. Directories of state and records
/// count as one thing: two states, or two chains, must not mix.
fn taken(targets: &[PathBuf], state: &Path, audit: &Path) -> Result<Vec<PathBuf>, BackupError> {
    let mut taken = Vec::new();
    for directory in [state, audit] {
        let used = match std::fs::read_dir(directory) {
            Ok(mut entries) => entries.next().is_some(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
            Err(error) => return Err(at(directory)(error)),
        };
        if used {
            taken.push(directory.to_owned());
        }
    }
    for path in targets {
        let inside = taken.iter().any(|directory| path.starts_with(directory));
        if !inside && path.symlink_metadata().is_ok() {
            taken.push(path.clone());
        }
    }
    Ok(taken)
}

/// Folders that are not there yet, the outer ones first.
fn missing_folders(targets: &[PathBuf], state: &Path) -> std::collections::BTreeSet<PathBuf> {
    targets
        .iter()
        .flat_map(|path| path.ancestors().skip(1))
        .chain(state.ancestors())
        .filter(|folder| folder.symlink_metadata().is_err())
        .map(Path::to_owned)
        .collect()
}

fn move_aside(taken: Vec<PathBuf>) -> Result<Vec<(PathBuf, PathBuf)>, BackupError> {
    let now = time::OffsetDateTime::now_utc().unix_timestamp();
    let mut aside = Vec::new();
    for path in taken {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".before-restore-{now}"));
        let to = path.with_file_name(name);
        if let Err(error) = std::fs::rename(&path, &to) {
            move_back(&aside);
            return Err(at(&path)(error));
        }
        aside.push((path, to));
    }
    Ok(aside)
}

/// As far as it goes: what was made in its place since stays beside it.
fn move_back(aside: &[(PathBuf, PathBuf)]) {
    for (path, moved) in aside.iter().rev() {
        drop(std::fs::remove_dir(path));
        if path.symlink_metadata().is_err() {
            drop(std::fs::rename(moved, path));
        }
    }
}

fn sync_folder(path: &Path) -> Result<(), BackupError> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(at(folder))
}

/// Writes what it is given beside its places.
struct Put<'a> {
    target: &'a (dyn Fn(&Place) -> PathBuf + Sync),
    filling: Filling,
    current: Option<(NamedTempFile, PathBuf)>,
    whole: Vec<(TempPath, PathBuf)>,
}

impl Visitor for Put<'_> {
    async fn manifest(&mut self, _: &Manifest) -> Result<(), BackupError> {
        Ok(())
    }

    async fn file(&mut self, place: &Place) -> Result<(), BackupError> {
        let path = (self.target)(place);
        let folder = path.parent().unwrap_or(Path::new("/"));
        crate::files::private_dir(folder).map_err(at(folder))?;
        // tempfile makes them with mode 0600.
        let part = NamedTempFile::new_in(folder).map_err(at(folder))?;
        self.current = Some((part, path));
        Ok(())
    }

    async fn data(&mut self, bytes: &[u8]) -> Result<(), BackupError> {
        match &mut self.current {
            Some((part, path)) => part.write_all(bytes).map_err(at(path)),
            None => Ok(()),
        }
    }

    async fn file_end(&mut self) -> Result<(), BackupError> {
        if let Some((part, path)) = self.current.take() {
            part.as_file().sync_all().map_err(at(&path))?;
            self.whole.push((part.into_temp_path(), path));
        }
        Ok(())
    }

    async fn table(&mut self, table: &TableShape) -> Result<(), BackupError> {
        Ok(self.filling.accepts(table)?)
    }

    async fn rows(&mut self, table: &TableShape, rows: Vec<Vec<Cell>>) -> Result<(), BackupError> {
        Ok(self.filling.add(table, &rows).await?)
    }
}
