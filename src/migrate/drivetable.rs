//! EKM's drive table, as its operator can get it out: the text of `listdrives -verbose`.
//!
//! The file that `config.drivetable.file.url` names is a serialized Java object and is refused with
//! what to do instead. What `export -drivetab` writes is not documented and was never seen; where it
//! is text of the form below it is taken.
//!
//! What is taken, in UTF-8 or ISO 8859-1, with blanks and line ends as they come:
//!
//! ```text
//! SerialNumber = 000001365054      a drive begins with its serial number
//! AliasOne = cert1                 first KEK; also rec1; empty or null: none
//! AliasTwo = cert2                 second KEK; also rec2
//! SymAlias = null                  LTO's symmetric key; also symrec
//! WWN = 57574E414D453030           16 hexadecimal digits; also WWNN, DriveWWN
//! Deleted = false                  true: the drive is left out
//! Updated = true                   not used
//! TimeStamp = Sun Sep 03 18:11:35 MST 2006
//! ```
//!
//! Names are taken in any case, `:` is as good as `=`, several fields may share a line, and the order
//! within a drive is free. Everything before the first serial number is passed over. Other names are
//! kept as unknown and told.

use std::path::{Path, PathBuf};

use serde::Serialize;

/// Longest file, bytes.
pub const MAX_TABLE: u64 = 8 << 20;

/// Most drives.
const MAX_DRIVES: usize = 100_000;

/// The first bytes of a serialized Java object: `STREAM_MAGIC` and `STREAM_VERSION` (Java Object
/// Serialization Specification, 6.4.2).
const JAVA_SERIALIZED: [u8; 4] = [0xAC, 0xED, 0x00, 0x05];

/// A drive as EKM has it; texts as they are written there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct EkmDrive {
    /// `SerialNumber`
    pub serial: String,
    /// `AliasOne`
    pub alias1: Option<String>,
    /// `AliasTwo`
    pub alias2: Option<String>,
    /// `SymAlias`
    pub symmetric: Option<String>,
    /// `WWN`
    pub wwn: Option<String>,
    /// `Deleted`
    pub deleted: bool,
    /// `TimeStamp`
    pub changed: Option<String>,
    /// The line that it begins on, counted from 1.
    pub line: usize,
}

/// What the text holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DriveTable {
    /// Its drives, in order.
    pub drives: Vec<EkmDrive>,
    /// Names of fields that are not known, each once, at most 20.
    pub unknown: Vec<String>,
}

/// Why there is no drive table.
#[derive(Debug, thiserror::Error)]
pub enum DriveTableError {
    /// The file.
    #[error("cannot read the drive table {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// EKM's own file.
    #[error(
        "{path} is a serialized Java object, EKM's own drive table, and only EKM can read it; in EKM's command line run: listdrives -verbose (or export -drivetab -url FILE), save what it prints, and give that with --drive-table"
    )]
    Serialized {
        /// The file.
        path: PathBuf,
    },
    /// Nothing of the kind.
    #[error(
        "{path} holds no drive: no line has SerialNumber = …; give the text that EKM's listdrives -verbose prints with --drive-table"
    )]
    NoDrives {
        /// The file.
        path: PathBuf,
    },
    /// Too many.
    #[error("{path} holds more than {limit} drives")]
    TooMany {
        /// The file.
        path: PathBuf,
        /// The limit.
        limit: usize,
    },
}

/// Reads a drive table.
///
/// # Errors
/// It cannot be read, is EKM's own file, or holds no drive.
pub fn read(path: &Path) -> Result<DriveTable, DriveTableError> {
    let bytes =
        crate::files::read_limited(path, MAX_TABLE).map_err(|source| DriveTableError::Read {
            path: path.to_owned(),
            source,
        })?;
    if bytes.starts_with(&JAVA_SERIALIZED) {
        return Err(DriveTableError::Serialized {
            path: path.to_owned(),
        });
    }
    let table = parse(&String::from_utf8_lossy(&bytes));
    match table.drives.len() {
        0 => Err(DriveTableError::NoDrives {
            path: path.to_owned(),
        }),
        got if got > MAX_DRIVES => Err(DriveTableError::TooMany {
            path: path.to_owned(),
            limit: MAX_DRIVES,
        }),
        _ => Ok(table),
    }
}

#[derive(Clone, Copy)]
enum Field {
    Serial,
    Alias1,
    Alias2,
    Symmetric,
    Wwn,
    Deleted,
    Updated,
    Changed,
}

const FIELDS: &[(&str, Field)] = &[
    ("serialnumber", Field::Serial),
    ("aliasone", Field::Alias1),
    ("rec1", Field::Alias1),
    ("aliastwo", Field::Alias2),
    ("rec2", Field::Alias2),
    ("symalias", Field::Symmetric),
    ("symrec", Field::Symmetric),
    ("drivewwn", Field::Wwn),
    ("wwnn", Field::Wwn),
    ("wwn", Field::Wwn),
    ("deleted", Field::Deleted),
    ("updated", Field::Updated),
    ("timestamp", Field::Changed),
];

/// Reads the drives out of a text.
#[must_use]
pub fn parse(text: &str) -> DriveTable {
    let mut table = DriveTable::default();
    for (number, line) in text.lines().enumerate() {
        let pairs = pairs(line);
        if pairs.is_empty() {
            let name = line.split(['=', ':']).next().unwrap_or_default().trim();
            let is_field = line.contains('=') && !name.is_empty() && !table.drives.is_empty();
            if is_field && table.unknown.len() < 20 && !table.unknown.iter().any(|n| n == name) {
                table.unknown.push(name.chars().take(40).collect());
            }
        }
        for (field, value) in pairs {
            let value = value.trim_matches(|c: char| c.is_whitespace() || ",;\"'".contains(c));
            let given = (!value.is_empty() && !value.eq_ignore_ascii_case("null"))
                .then(|| value.to_owned());
            if let Field::Serial = field {
                if table.drives.len() <= MAX_DRIVES {
                    table.drives.push(EkmDrive {
                        serial: value.to_owned(),
                        line: number + 1,
                        ..EkmDrive::default()
                    });
                }
                continue;
            }
            let Some(drive) = table.drives.last_mut() else {
                continue;
            };
            match field {
                Field::Alias1 => drive.alias1 = given,
                Field::Alias2 => drive.alias2 = given,
                Field::Symmetric => drive.symmetric = given,
                Field::Wwn => drive.wwn = given,
                Field::Deleted => drive.deleted = value.eq_ignore_ascii_case("true"),
                Field::Changed => drive.changed = given,
                Field::Serial | Field::Updated => {}
            }
        }
    }
    table
}

/// The known fields of a line with their values, each up to where the next begins.
fn pairs(line: &str) -> Vec<(Field, &str)> {
    let folded = line.to_ascii_lowercase();
    let mut found: Vec<(usize, usize, Field)> = Vec::new();
    for (name, field) in FIELDS {
        for (at, _) in folded.match_indices(name) {
            let before = folded.get(..at).and_then(|before| before.chars().last());
            let rest = folded.get(at + name.len()..).unwrap_or_default();
            let blanks = rest.len() - rest.trim_start_matches([' ', '\t']).len();
            let separated = rest
                .get(blanks..)
                .is_some_and(|rest| rest.starts_with(['=', ':']));
            let begins = !before.is_some_and(char::is_alphanumeric);
            if begins && separated {
                found.push((at, at + name.len() + blanks + 1, *field));
            }
        }
    }
    found.sort_by_key(|(at, _, _)| *at);
    // A line of a hostile file may have many; each drive has a handful.
    found.truncate(64);
    let ends = found.iter().skip(1).map(|(at, _, _)| *at);
    let ends: Vec<usize> = ends.chain([line.len()]).collect();
    found
        .iter()
        .zip(ends)
        .filter_map(|((_, begin, field), end)| Some((*field, line.get(*begin..end)?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> EkmDrive {
        let table = parse(text);
        let [drive] = table.drives.as_slice() else {
            panic!("{table:?}");
        };
        drive.clone()
    }

    #[test]
    fn the_output_of_listdrives_is_read() {
        let drive = one(
            "Drive entries: 1\n\nDriveEntry:\n  SerialNumber = 000001365054\n  AliasTwo = cert2\n  \
             AliasOne = Cert One\n  SymAlias = null\n  WWN = 57574E414D453030\n  Deleted = false\n  \
             Updated = true\n  TimeStamp = Sun Sep 03 18:11:35 MST 2006\n",
        );
        assert_eq!(drive.serial, "000001365054");
        assert_eq!(drive.alias1.as_deref(), Some("Cert One"));
        assert_eq!(drive.alias2.as_deref(), Some("cert2"));
        assert_eq!((&drive.symmetric, drive.deleted), (&None, false));
        assert_eq!(drive.wwn.as_deref(), Some("57574E414D453030"));
        let stamp = "Sun Sep 03 18:11:35 MST 2006";
        assert_eq!(drive.changed.as_deref(), Some(stamp));
    }

    #[test]
    fn fields_may_share_a_line() {
        let drive = one("serialnumber:1365054A12, rec1: a ,rec2: b; deleted: TRUE\r\n");
        assert_eq!(drive.serial, "1365054A12");
        assert_eq!(drive.alias1.as_deref(), Some("a"));
        assert_eq!(drive.alias2.as_deref(), Some("b"));
        assert!(drive.deleted);
    }

    #[test]
    fn what_is_not_known_is_told() {
        let table = parse("SerialNumber = 000001365054\nColour = blue\nColour = red\n");
        assert_eq!(table.unknown, ["Colour"]);
    }

    #[test]
    fn a_serialized_file_is_refused_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("filedrive.table");
        std::fs::write(&path, b"\xAC\xED\x00\x05sr\x00\x11java.util.Hashtable").unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("serialized Java object"), "{error}");
        std::fs::write(&path, b"nothing of it").unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("SerialNumber"), "{error}");
    }

    #[test]
    fn a_line_without_end_takes_no_time() {
        let start = std::time::Instant::now();
        let table = parse(&"wwn=".repeat(1 << 20));
        assert!(table.drives.is_empty());
        // It would take hours if each were looked at to the end.
        assert!(start.elapsed() < std::time::Duration::from_secs(60));
    }
}
