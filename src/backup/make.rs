//! Making a backup: what of a site goes into it, written beside a running
//! server, and read back.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, ErrorKind, Read, Seek as _, SeekFrom, Write};
use std::path::{Path, PathBuf};

use secrecy::SecretString;
use sha2::{Digest as _, Sha256};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _};
use time::OffsetDateTime;

use super::frame::{self, BATCH, Frame, PIECE, Totals};
use super::plan::{Plan, Source, folder, place};
use super::restore::Look;
use super::seal::{Opener, Sealer};
use super::{BackedKek, BackupError, Manifest, Place, VERSION, at};
use crate::config::Config;
use crate::store::Sql;

/// What is to be backed up, and how.
#[derive(Debug)]
pub struct Asked<'a> {
    /// The configuration's file.
    pub config_path: &'a Path,
    /// What is in it.
    pub config: &'a Config,
    /// The backup's file; there must be none yet.
    pub file: &'a Path,
    /// What it is sealed with.
    pub passphrase: &'a SecretString,
    /// PINs and passwords that are in files, too.
    pub with_pins: bool,
    /// The audit records, too.
    pub audit: bool,
    /// The backup's number.
    pub id: uuid::Uuid,
    /// When it was begun.
    pub at: OffsetDateTime,
    /// The KEKs that the tokens and keystores showed before it was begun.
    pub keks: Vec<BackedKek>,
}

/// A backup that was made and read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// Its length, bytes.
    pub bytes: u64,
    /// SHA-256 of the file, hexadecimal.
    pub digest: String,
    /// What it has.
    pub totals: Totals,
    /// What it says of itself.
    pub manifest: Manifest,
    /// The embedded tokens and keystores whose private keys are in it, also where they showed none.
    pub held: Vec<Held>,
    /// Embedded tokens whose private keys should be in it and are not, a sentence each.
    pub lost: Vec<String>,
}

/// An embedded token or a keystore whose file is in a backup, and all its KEKs with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Its configured name.
    pub name: String,
    /// Where its private keys are.
    pub file: PathBuf,
}

/// Makes it.
///
/// # Errors
/// What cannot be read or written. Nothing is left of the file then.
pub async fn make(asked: &Asked<'_>, store: &Sql) -> Result<Made, BackupError> {
    let here = folder(asked.config_path)?;
    let plan = Plan::new(asked, &here)?;
    let mut snapshot = store.everything().await?;
    let manifest = Manifest {
        version: VERSION,
        id: asked.id,
        at: asked.at,
        node: asked.config.node.clone(),
        ekm: env!("CARGO_PKG_VERSION").to_owned(),
        database: asked
            .config
            .database
            .as_ref()
            .map_or_else(|| "sqlite".to_owned(), ToString::to_string),
        migrations: snapshot.migrations().to_vec(),
        state: place(&asked.config.state, &here)?,
        audit: place(&asked.config.audit, &here)?,
        pins: asked.with_pins,
        keks: asked
            .keks
            .iter()
            .filter(|kek| plan.held.iter().any(|held| held.name == kek.token))
            .cloned()
            .collect(),
        missing: plan.missing,
    };
    let path = std::path::absolute(asked.file).map_err(at(asked.file))?;
    if path.exists() {
        return Err(BackupError::Taken(path));
    }
    let into = path.parent().unwrap_or(Path::new("/"));
    // Its own words name a temporary file, which nobody asked for.
    let file = tempfile::NamedTempFile::new_in(into).map_err(|error| BackupError::Directory {
        file: path.clone(),
        directory: into.to_owned(),
        why: error.kind(),
    })?;
    let seal = |source| BackupError::Seal {
        path: asked.file.to_owned(),
        source,
    };
    let to = Hashed::new(BufWriter::new(file));
    let mut to = Sealer::begin(to, asked.passphrase).map_err(seal)?;
    let text =
        serde_json::to_string(&manifest).map_err(|error| BackupError::Inside(error.to_string()))?;
    frame::write(&mut to, &Frame::Manifest(text))?;
    let mut totals = Totals::default();
    for (place, source) in &plan.files {
        totals.files += u64::from(put_file(&mut to, place, source, asked.config).await?);
    }
    for table in snapshot.tables() {
        frame::write(&mut to, &Frame::Table(table.clone()))?;
        let (mut batch, mut size, mut rows) = (Vec::new(), 0, 0_u64);
        let each = |cells: Vec<crate::store::rows::Cell>| -> Result<(), BackupError> {
            size += cells.iter().map(|cell| cell.size()).sum::<usize>();
            rows += 1;
            batch.push(cells);
            if size >= BATCH {
                size = 0;
                frame::write(&mut to, &Frame::Rows(std::mem::take(&mut batch)))?;
            }
            Ok(())
        };
        snapshot.each(&table, each).await?;
        if !batch.is_empty() {
            frame::write(&mut to, &Frame::Rows(batch))?;
        }
        frame::write(&mut to, &Frame::TableEnd { rows })?;
        totals.tables += 1;
        totals.rows += rows;
    }
    drop(snapshot);
    frame::write(&mut to, &Frame::End(totals))?;
    let (file, digest) = to.finish().map_err(at(asked.file))?.end();
    let file = file
        .into_inner()
        .map_err(|error| at(asked.file)(error.into_error()))?;
    file.as_file().sync_all().map_err(at(asked.file))?;
    let bytes = read_back(file.path(), asked.passphrase, &manifest, totals, &digest).await?;
    file.persist_noclobber(&path)
        .map_err(|error| match error.error.kind() {
            // Made by somebody else meanwhile.
            ErrorKind::AlreadyExists => BackupError::Taken(path.clone()),
            _ => at(asked.file)(error.error),
        })?;
    File::open(into)
        .and_then(|folder| folder.sync_all())
        .map_err(at(into))?;
    Ok(Made {
        bytes,
        digest,
        totals,
        manifest,
        held: plan.held,
        lost: plan.lost,
    })
}

/// Opens what was written and goes through it; its length.
async fn read_back(
    path: &Path,
    passphrase: &SecretString,
    manifest: &Manifest,
    totals: Totals,
    digest: &str,
) -> Result<u64, BackupError> {
    let file = File::open(path).map_err(at(path))?;
    // From the disk, as far as that can be asked for: what is in memory proves little.
    let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
    let bytes = file.metadata().map_err(at(path))?.len();
    let mut from = Hashed::new(BufReader::new(file));
    let mut look = Look::default();
    let seen = {
        let mut opened =
            Opener::begin(&mut from, passphrase).map_err(|source| BackupError::Seal {
                path: path.to_owned(),
                source,
            })?;
        frame::walk(&mut opened, &mut look).await?
    };
    let (_, read) = from.end();
    if seen == totals && look.manifest.as_ref() == Some(manifest) && read == digest {
        Ok(bytes)
    } else {
        Err(BackupError::ReadBack(path.to_owned()))
    }
}

/// Writes a file's frames; false where it has gone since it was seen.
async fn put_file(
    to: &mut impl Write,
    place: &Place,
    source: &Source,
    config: &Config,
) -> Result<bool, BackupError> {
    let copy;
    let (path, cut) = match source {
        Source::Whole(path) => (path.as_path(), false),
        Source::Lines(path) => (path.as_path(), true),
        Source::Token(path) => {
            copy = Copied::of(path, &config.state).await?;
            (copy.path.as_path(), false)
        }
    };
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound && *place != Place::Config => {
            return Ok(false);
        }
        Err(error) => return Err(at(path)(error)),
    };
    let most = if cut {
        lines(&mut file).map_err(at(path))?
    } else {
        u64::MAX
    };
    frame::write(
        to,
        &Frame::File {
            place: place.clone(),
        },
    )?;
    let mut file = BufReader::new(file).take(most);
    let mut bytes = 0;
    loop {
        let mut piece = Vec::with_capacity(PIECE);
        (&mut file)
            .take(u64::try_from(PIECE).unwrap_or_default())
            .read_to_end(&mut piece)
            .map_err(at(path))?;
        if piece.is_empty() {
            break;
        }
        bytes += u64::try_from(piece.len()).unwrap_or_default();
        frame::write(to, &Frame::Data(piece))?;
    }
    frame::write(to, &Frame::FileEnd { bytes })?;
    Ok(true)
}

/// Where the last whole line ends.
fn lines(file: &mut File) -> io::Result<u64> {
    let mut end = file.metadata()?.len();
    let mut piece = [0; 4096];
    while end > 0 {
        let from = end.saturating_sub(4096);
        file.seek(SeekFrom::Start(from))?;
        let wanted = usize::try_from(end - from).unwrap_or_default();
        let read = piece.get_mut(..wanted).unwrap_or_default();
        file.read_exact(read)?;
        if let Some(place) = read.iter().rposition(|byte| *byte == b'\n') {
            end = from + u64::try_from(place).unwrap_or_default() + 1;
            break;
        }
        end = from;
    }
    file.seek(SeekFrom::Start(0))?;
    Ok(end)
}

/// A copy of an SQLite database that others write to.
struct Copied {
    path: PathBuf,
    _directory: tempfile::TempDir,
}

impl Copied {
    async fn of(path: &Path, state: &Path) -> Result<Self, BackupError> {
        let fail = |source| BackupError::Token {
            path: path.to_owned(),
            source,
        };
        // Only its owner may enter it.
        let directory = tempfile::Builder::new()
            .prefix(".backup-")
            .tempdir_in(state)
            .map_err(at(state))?;
        let copy = directory.path().join("token.sql");
        let mut connection = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(false)
            .connect()
            .await
            .map_err(fail)?;
        sqlx::query("VACUUM INTO $1")
            .bind(copy.display().to_string())
            .execute(&mut connection)
            .await
            .map_err(fail)?;
        connection.close().await.map_err(fail)?;
        let mut connection = SqliteConnectOptions::new()
            .filename(&copy)
            .connect()
            .await
            .map_err(fail)?;
        let sound: String = sqlx::query_scalar("PRAGMA integrity_check")
            .fetch_one(&mut connection)
            .await
            .map_err(fail)?;
        connection.close().await.map_err(fail)?;
        if sound != "ok" {
            return Err(fail(sqlx::Error::Protocol(format!(
                "its copy is not sound: {sound}"
            ))));
        }
        Ok(Self {
            path: copy,
            _directory: directory,
        })
    }
}

/// SHA-256 of all that is read or written.
struct Hashed<T> {
    inner: T,
    digest: Sha256,
}

impl<T> Hashed<T> {
    fn new(inner: T) -> Self {
        Self {
            inner,
            digest: Sha256::new(),
        }
    }

    fn end(self) -> (T, String) {
        (self.inner, hex::encode(self.digest.finalize()))
    }
}

impl<T: Write> Write for Hashed<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.digest.update(bytes.get(..written).unwrap_or(bytes));
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<T: Read> Read for Hashed<T> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(to)?;
        self.digest.update(to.get(..read).unwrap_or_default());
        Ok(read)
    }
}
