//! What is inside a backup: frames, each with its length before it.
//!
//! ```text
//! frames = Manifest (File Data* FileEnd)* (Table Rows* TableEnd)* … End
//! frame  = length (4 bytes, big-endian), postcard
//! ```

use std::io::{Read, Write};

use serde::{Deserialize, Serialize};

use super::{BackupError, Manifest, Place, VERSION};
use crate::store::rows::{Cell, TableShape};

/// Most bytes of a frame.
pub const MOST: usize = 4 << 20;

/// Bytes of a file that go into one frame.
pub const PIECE: usize = 48 * 1024;

/// Bytes of rows that go into one frame, about.
pub const BATCH: usize = 128 * 1024;

/// A piece of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Frame {
    /// [`Manifest`], as JSON, so that a newer one can still be named.
    Manifest(String),
    /// A file begins.
    File {
        /// Where it was.
        place: Place,
    },
    /// More of it.
    Data(Vec<u8>),
    /// It is whole.
    FileEnd {
        /// Its length.
        bytes: u64,
    },
    /// A table begins.
    Table(TableShape),
    /// More of it.
    Rows(Vec<Vec<Cell>>),
    /// It is whole.
    TableEnd {
        /// How many rows it has.
        rows: u64,
    },
    /// The backup is whole.
    End(Totals),
}

/// What a backup has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Files.
    pub files: u64,
    /// Tables.
    pub tables: u64,
    /// Rows of all tables.
    pub rows: u64,
}

/// Writes a frame.
///
/// # Errors
/// Writing, or a frame that is too long.
pub fn write(to: &mut impl Write, frame: &Frame) -> Result<(), BackupError> {
    let bytes =
        postcard::to_stdvec(frame).map_err(|error| BackupError::Inside(error.to_string()))?;
    let length = u32::try_from(bytes.len())
        .ok()
        .filter(|_| bytes.len() <= MOST)
        .ok_or_else(|| BackupError::Inside("a row is longer than 4 MiB".to_owned()))?;
    let written = to
        .write_all(&length.to_be_bytes())
        .and_then(|()| to.write_all(&bytes));
    written.map_err(|source| BackupError::File {
        path: "the backup".into(),
        source,
    })
}

/// Who is given what is in a backup, in its order.
pub trait Visitor {
    /// The beginning.
    ///
    /// # Errors
    /// What it says ends the reading.
    fn manifest(&mut self, manifest: &Manifest) -> impl Future<Output = Result<(), BackupError>>;
    /// A file begins.
    ///
    /// # Errors
    /// Likewise.
    fn file(&mut self, place: &Place) -> impl Future<Output = Result<(), BackupError>>;
    /// More of it.
    ///
    /// # Errors
    /// Likewise.
    fn data(&mut self, bytes: &[u8]) -> impl Future<Output = Result<(), BackupError>>;
    /// It is whole.
    ///
    /// # Errors
    /// Likewise.
    fn file_end(&mut self) -> impl Future<Output = Result<(), BackupError>>;
    /// A table begins.
    ///
    /// # Errors
    /// Likewise.
    fn table(&mut self, table: &TableShape) -> impl Future<Output = Result<(), BackupError>>;
    /// More of it.
    ///
    /// # Errors
    /// Likewise.
    fn rows(
        &mut self,
        table: &TableShape,
        rows: Vec<Vec<Cell>>,
    ) -> impl Future<Output = Result<(), BackupError>>;
}

/// Reads a backup to its end, or says what is wrong with it.
///
/// # Errors
/// It is not what a backup is, or what the visitor said.
pub async fn walk(from: &mut impl Read, visitor: &mut impl Visitor) -> Result<Totals, BackupError> {
    let inside = |what: &str| BackupError::Inside(what.to_owned());
    let Frame::Manifest(text) = read(from)? else {
        return Err(inside("it does not begin with its manifest"));
    };
    let manifest = manifest(&text)?;
    visitor.manifest(&manifest).await?;
    let mut totals = Totals::default();
    let mut places = std::collections::BTreeSet::new();
    loop {
        match read(from)? {
            Frame::File { place } => {
                place.check()?;
                if !places.insert(place.clone()) {
                    return Err(inside("a file is in it twice"));
                }
                visitor.file(&place).await?;
                let mut length = 0;
                loop {
                    match read(from)? {
                        Frame::Data(bytes) => {
                            length += u64::try_from(bytes.len()).unwrap_or_default();
                            visitor.data(&bytes).await?;
                        }
                        Frame::FileEnd { bytes } if bytes == length => break,
                        _ => return Err(inside("a file in it is not whole")),
                    }
                }
                visitor.file_end().await?;
                totals.files += 1;
            }
            Frame::Table(table) => {
                if !table.is_plain() {
                    return Err(inside("it has a table of a strange name"));
                }
                visitor.table(&table).await?;
                let mut count = 0;
                loop {
                    match read(from)? {
                        Frame::Rows(rows) => {
                            count += u64::try_from(rows.len()).unwrap_or_default();
                            visitor.rows(&table, rows).await?;
                        }
                        Frame::TableEnd { rows } if rows == count => break,
                        _ => return Err(inside("a table in it is not whole")),
                    }
                }
                totals.tables += 1;
                totals.rows += count;
            }
            Frame::End(said) if said == totals => break,
            _ => return Err(inside("its parts are not in their order")),
        }
    }
    // The last chunk is marked, and nothing comes after it.
    match from.read(&mut [0]) {
        Ok(0) => Ok(totals),
        Ok(_) => Err(inside("something comes after its end")),
        Err(source) => Err(broken(source)),
    }
}

fn manifest(text: &str) -> Result<Manifest, BackupError> {
    #[derive(Deserialize)]
    struct Head {
        version: u32,
    }
    let inside = |error: serde_json::Error| BackupError::Inside(error.to_string());
    let head: Head = serde_json::from_str(text).map_err(inside)?;
    if head.version != VERSION {
        return Err(BackupError::Inside(format!(
            "it is of version {}, and this ekm reads version {VERSION}",
            head.version
        )));
    }
    serde_json::from_str(text).map_err(inside)
}

fn read(from: &mut impl Read) -> Result<Frame, BackupError> {
    let mut length = [0; 4];
    from.read_exact(&mut length).map_err(broken)?;
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length > MOST {
        return Err(BackupError::Inside(
            "a frame is longer than 4 MiB".to_owned(),
        ));
    }
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes).map_err(broken)?;
    let (frame, rest) = postcard::take_from_bytes(&bytes)
        .map_err(|error| BackupError::Inside(error.to_string()))?;
    if rest.is_empty() {
        Ok(frame)
    } else {
        Err(BackupError::Inside(
            "a frame has more than its content".to_owned(),
        ))
    }
}

fn broken(source: std::io::Error) -> BackupError {
    BackupError::File {
        path: "the backup".into(),
        source,
    }
}
