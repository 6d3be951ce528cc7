//! `host.toml`: data classes, volume ranges, drives and key servers of a host.
//!
//! Unknown keys are refused, and a check names every fault at once with its line. A value keeps
//! its line, so that a decision can say where it comes from.

mod raw;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Serialize, Serializer};

use super::labels::{At, Labels};
use super::servers::KeyServers;
use crate::drive::DriveSerial;
use crate::volser::Volser;

/// The file that `ekm config example --host` prints.
pub const HOST_EXAMPLE: &str = include_str!("example.toml");

/// Longest file, bytes.
const MAX_FILE: u64 = 1 << 20;

/// `host.toml`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HostConfig {
    /// The file, as it was named.
    #[serde(skip)]
    pub(super) file: PathBuf,
    /// Where requests go; none where the file does not say.
    pub(super) key_servers: Option<KeyServers>,
    /// The path of drives that have none of their own.
    pub(super) path: Option<At<KeyPath>>,
    pub(super) data_classes: Vec<DataClass>,
    pub(super) volume_ranges: Vec<VolumeRange>,
    pub(super) drives: Vec<HostDrive>,
}

/// `[[data_classes]]`: how a file is recorded, and under which KEKs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DataClass {
    /// What jobs call it.
    pub name: At<ClassName>,
    /// The recording format, which turns encryption on or off.
    pub format: At<RecordingFormat>,
    /// Its labels, if it names any.
    pub labels: Option<Labels>,
}

/// `[[volume_ranges]]`: the labels of the cartridges from one volume serial to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VolumeRange {
    /// The first.
    pub first: At<Volser>,
    /// The last, of the same length.
    pub last: Volser,
    /// Their labels.
    pub labels: Labels,
}

impl VolumeRange {
    /// Whether it has that volume. Volume serials are compared as ASCII: digits before letters.
    #[must_use]
    pub fn has(&self, volser: &Volser) -> bool {
        let text = volser.as_str();
        text.len() == self.last.as_str().len()
            && (self.first.value.as_str()..=self.last.as_str()).contains(&text)
    }
}

/// `[[drives]]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HostDrive {
    /// Its serial.
    pub serial: At<DriveSerial>,
    /// How its key requests travel; otherwise as the file's own `path` says.
    pub path: Option<At<KeyPath>>,
}

/// How a drive's key requests travel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyPath {
    /// Straight from the control unit to the key server.
    #[default]
    OutOfBand,
    /// Through this host.
    InBand,
}

impl FromStr for KeyPath {
    type Err = NoSuchWord;

    fn from_str(given: &str) -> Result<Self, NoSuchWord> {
        match given {
            "out-of-band" => Ok(Self::OutOfBand),
            "in-band" => Ok(Self::InBand),
            _ => Err(NoSuchWord {
                expected: "out-of-band or in-band",
                got: given.chars().take(64).collect(),
            }),
        }
    }
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::OutOfBand => "out-of-band",
            Self::InBand => "in-band",
        })
    }
}

/// How a 3592 drive records: its generation, and with an `E` before it, encrypted.
///
/// Source: z/OS DFSMS Software Support for IBM System Storage TS1140, TS1130, and TS1120 Tape
/// Drives, data class attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordingFormat {
    /// In clear.
    Efmt(Generation),
    /// Encrypted; there is none of the first generation, which cannot.
    Eefmt(Generation),
}

/// A generation of the 3592.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generation {
    /// 3592 J1A.
    One,
    /// TS1120.
    Two,
    /// TS1130.
    Three,
    /// TS1140.
    Four,
}

impl RecordingFormat {
    const ALL: [(Self, &str, &str); 7] = [
        (Self::Efmt(Generation::One), "EFMT1", "3592 J1A"),
        (Self::Efmt(Generation::Two), "EFMT2", "TS1120"),
        (Self::Efmt(Generation::Three), "EFMT3", "TS1130"),
        (Self::Efmt(Generation::Four), "EFMT4", "TS1140"),
        (Self::Eefmt(Generation::Two), "EEFMT2", "TS1120"),
        (Self::Eefmt(Generation::Three), "EEFMT3", "TS1130"),
        (Self::Eefmt(Generation::Four), "EEFMT4", "TS1140"),
    ];

    /// Whether what is written in it is encrypted.
    #[must_use]
    pub const fn encrypts(self) -> bool {
        match self {
            Self::Efmt(_) => false,
            Self::Eefmt(_) => true,
        }
    }

    fn names(self) -> (&'static str, &'static str) {
        let found = Self::ALL.into_iter().find(|(format, _, _)| *format == self);
        found.map_or(("EEFMT1", ""), |(_, name, drive)| (name, drive))
    }

    /// Its name: `EEFMT4`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.names().0
    }

    /// The drive that brought it: `TS1140`.
    #[must_use]
    pub fn drive(self) -> &'static str {
        self.names().1
    }
}

impl FromStr for RecordingFormat {
    type Err = NoSuchWord;

    fn from_str(given: &str) -> Result<Self, NoSuchWord> {
        let found = Self::ALL
            .into_iter()
            .find(|(_, name, _)| name.eq_ignore_ascii_case(given));
        found.map(|(format, _, _)| format).ok_or_else(|| NoSuchWord {
            expected: "EFMT1, EFMT2, EFMT3, EFMT4 (in clear), EEFMT2, EEFMT3 or EEFMT4 (encrypted)",
            got: given.chars().take(64).collect(),
        })
    }
}

impl fmt::Display for RecordingFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl Serialize for RecordingFormat {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.as_str())
    }
}

/// A word that is none of those expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}, got {got:?}")]
pub struct NoSuchWord {
    /// Those expected.
    pub expected: &'static str,
    /// The beginning of what was given.
    pub got: String,
}

/// The name of a data class: 1 to 8 characters from `A-Z 0-9 $ # @`, the first no digit.
///
/// Lower case is folded to upper.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct ClassName(String);

impl ClassName {
    /// The longest, in characters.
    pub const MAX_CHARS: usize = 8;
}

impl FromStr for ClassName {
    type Err = ClassNameError;

    fn from_str(given: &str) -> Result<Self, ClassNameError> {
        let name = given.to_ascii_uppercase();
        let letter = |c: char| c.is_ascii_uppercase() || "$#@".contains(c);
        if name.len() > Self::MAX_CHARS
            || !name.starts_with(letter)
            || !name.chars().all(|c| letter(c) || c.is_ascii_digit())
        {
            return Err(ClassNameError {
                got: given.chars().take(64).collect(),
            });
        }
        Ok(Self(name))
    }
}

impl fmt::Display for ClassName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A text that is no data class's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected the name of a data class, 1 to 8 characters from A-Z 0-9 $ # @, the first no digit, got {got:?}"
)]
pub struct ClassNameError {
    /// The beginning of what was given.
    pub got: String,
}

/// Why there is no configuration of the host.
#[derive(Debug, thiserror::Error)]
pub enum HostConfigError {
    /// The file cannot be read.
    #[error(
        "cannot read the host's configuration {}: {source}; ekm config example --host prints one",
        path.display()
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// It is not TOML of this shape.
    #[error("{}: {source}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The cause, with the line.
        source: Box<toml::de::Error>,
    },
    /// Values are wrong; all of them.
    #[error("{}:\n  {}", path.display(), faults.join("\n  "))]
    Faults {
        /// The file.
        path: PathBuf,
        /// One sentence each, with the line.
        faults: Vec<String>,
    },
}

impl HostConfig {
    /// Reads and checks the file.
    ///
    /// # Errors
    /// The file is unreadable, or its faults, all of them.
    pub fn load(path: &Path) -> Result<Self, HostConfigError> {
        let read = |source| HostConfigError::Read {
            path: path.to_owned(),
            source,
        };
        let text = crate::files::read_limited(path, MAX_FILE).map_err(read)?;
        let text = String::from_utf8(text)
            .map_err(|error| read(std::io::Error::new(std::io::ErrorKind::InvalidData, error)))?;
        Self::parse(path, &text)
    }

    /// Checks the text of such a file.
    ///
    /// # Errors
    /// Its faults, all of them.
    pub fn parse(path: &Path, text: &str) -> Result<Self, HostConfigError> {
        let raw: raw::Host = toml::from_str(text).map_err(|source| HostConfigError::Syntax {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        raw.check(path, text)
            .map_err(|faults| HostConfigError::Faults {
                path: path.to_owned(),
                faults,
            })
    }

    /// The file, as it was named.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The key servers, if the file names any.
    #[must_use]
    pub const fn key_servers(&self) -> Option<&KeyServers> {
        self.key_servers.as_ref()
    }

    /// The data classes.
    #[must_use]
    pub fn data_classes(&self) -> &[DataClass] {
        &self.data_classes
    }

    /// The volume ranges; no two overlap.
    #[must_use]
    pub fn volume_ranges(&self) -> &[VolumeRange] {
        &self.volume_ranges
    }

    /// The drives.
    #[must_use]
    pub fn drives(&self) -> &[HostDrive] {
        &self.drives
    }

    /// How that drive's key requests travel, and the line that says so; out-of-band where none does.
    #[must_use]
    pub fn path(&self, serial: &DriveSerial) -> (KeyPath, Option<usize>) {
        let drive = self
            .drives
            .iter()
            .find(|drive| drive.serial.value == *serial);
        let own = drive.and_then(|drive| drive.path);
        own.or(self.path)
            .map_or((KeyPath::default(), None), |path| {
                (path.value, Some(path.at))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<HostConfig, HostConfigError> {
        HostConfig::parse(Path::new("host.toml"), text)
    }

    /// All of these, each with its line.
    fn faults(text: &str) -> Vec<String> {
        match parse(text).unwrap_err() {
            HostConfigError::Faults { faults, .. } => faults,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn the_example_is_good() {
        let host = parse(HOST_EXAMPLE).unwrap();
        assert_eq!(host.data_classes.len(), 3);
        let secure = &host.data_classes[1];
        let line = |at: usize| HOST_EXAMPLE.lines().nth(at - 1).unwrap();
        assert!(line(secure.format.at).starts_with("format = \"EEFMT4\""));
        let labels = secure.labels.as_ref().unwrap();
        assert!(line(labels.kek1.at).starts_with("keylabl1 = "));
        let servers = host.key_servers.unwrap();
        assert_eq!((servers.maxconn, servers.maxpconn), (255, 8));
    }

    #[test]
    fn every_fault_is_named_at_once_with_its_line() {
        let text = r#"path = "sideways"
[key_servers]
secondary = "ekm2"
maxconn = 0
maxpconn = 9
[[data_classes]]
name = "9LIVES"
format = "EEFMT1"
keyencd1 = "H"
keylabl2 = "B"
keyencd2 = "X"
[[data_classes]]
name = "TWICE"
format = "EFMT1"
keylabl1 = " "
[[data_classes]]
name = "twice"
format = "eefmt2"
[[volume_ranges]]
first = "VOL200"
last = "VOL100"
keylabl1 = "A"
[[volume_ranges]]
first = "A"
last = "ABC"
[[drives]]
serial = "1"
[[drives]]
serial = "1234567890"
path = "in-band"
[[drives]]
serial = "001234567890"
"#;
        let faults = faults(text);
        for wanted in [
            "line 1: path: expected out-of-band or in-band, got \"sideways\"",
            "line 3: key_servers.secondary: there is no primary",
            "line 4: key_servers.maxconn: 0 is not 1 to 255",
            "line 7: data_classes.name: expected the name of a data class",
            "line 8: data_classes.format: expected EFMT1",
            "line 9: data_classes: KEYENCD1 without KEYLABL1",
            "line 10: data_classes: KEYLABL2 without KEYLABL1",
            "line 11: data_classes.keyencd2: expected encoding",
            "line 15: data_classes.keylabl1: a key label must not be empty",
            "line 17: data_classes.name: TWICE is given twice, first in line 13",
            "line 20: volume_ranges: VOL200 comes after VOL100",
            "line 24: volume_ranges: A and ABC are not of one length",
            "line 24: volume_ranges: it names no label",
            "line 27: drives.serial: expected a drive serial",
            "line 32: drives.serial: 001234567890 is given twice, first in line 29",
        ] {
            assert!(
                faults.iter().any(|fault| fault.starts_with(wanted)),
                "no {wanted:?} in\n{}",
                faults.join("\n")
            );
        }
        assert_eq!(faults.len(), 15, "{}", faults.join("\n"));
    }

    #[test]
    fn ranges_that_overlap_are_a_fault_and_neighbours_are_none() {
        let ranges = |list: &[(&str, &str)]| {
            let each = list.iter().map(|(first, last)| {
                format!(
                    "[[volume_ranges]]\nfirst = \"{first}\"\nlast = \"{last}\"\nkeylabl1 = \"A\"\n"
                )
            });
            parse(&each.collect::<String>())
        };
        for good in [
            [("VOL000", "VOL099"), ("VOL100", "VOL199")],
            [("VOL500", "VOL599"), ("VOL000", "VOL499")],
            // Another length is another kind of volume serial.
            [("A0", "A9"), ("A00000", "A99999")],
        ] {
            ranges(&good).unwrap();
        }
        for (bad, text) in [
            (
                vec![("VOL000", "VOL100"), ("VOL100", "VOL199")],
                "line 6: volume_ranges: VOL100 to VOL199 overlaps VOL000 to VOL100 of line 2",
            ),
            (
                vec![
                    ("VOL300", "VOL300"),
                    ("B00000", "B00000"),
                    ("AAAAAA", "ZZZZZZ"),
                ],
                "overlaps AAAAAA to ZZZZZZ of line 10",
            ),
            (
                vec![("V00", "V99"), ("V10", "V19"), ("V50", "V59")],
                "line 10: volume_ranges: V50 to V59 overlaps V00 to V99 of line 2",
            ),
        ] {
            let error = ranges(&bad).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn the_list_of_key_servers_is_two_names_or_up_to_sixteen() {
        let listed = |text: &str| parse(&format!("[key_servers]\n{text}"));
        let servers = |text: &str| {
            let servers = listed(text).unwrap().key_servers.unwrap();
            let names: Vec<String> = servers.servers.iter().map(ToString::to_string).collect();
            (names.join(" "), servers.maxconn, servers.maxpconn)
        };
        assert_eq!(servers("primary = \"a\""), ("a:3801".to_owned(), 255, 8));
        assert_eq!(
            servers("primary = \"a\"\nsecondary = \"b:1\"\nmaxconn = 4\nmaxpconn = 0"),
            ("a:3801 b:1".to_owned(), 4, 0)
        );
        // The default of maxpconn gives way.
        assert_eq!(servers("primary = \"a\"\nmaxconn = 4").2, 4);
        let names = |n: usize| {
            let names: Vec<String> = (0..n).map(|n| format!("\"ekm{n}\"")).collect();
            format!("servers = [{}]", names.join(", "))
        };
        assert_eq!(servers(&names(16)).0.split(' ').count(), 16);
        for (bad, text) in [
            (
                names(17),
                "line 2: key_servers.servers: 17 servers, at most 16",
            ),
            (names(0), "names no server"),
            (String::new(), "names no server"),
            (format!("primary = \"x\"\n{}", names(1)), "or the list"),
            (
                "primary = \"a\"\nsecondary = \"A:3801\"".to_owned(),
                "line 3: key_servers: a:3801 is listed twice",
            ),
            (
                "primary = \"http://a\"".to_owned(),
                "line 2: key_servers: expected a key server",
            ),
            (
                "primary = \"a\"\nmaxconn = 3\nmaxpconn = 4".to_owned(),
                "line 4: key_servers.maxpconn: 4 is not 0 to 3",
            ),
            (
                "primary = \"a\"\nmaxconn = 256".to_owned(),
                "is not 1 to 255",
            ),
        ] {
            let error = listed(&bad).unwrap_err().to_string();
            assert!(error.contains(text), "{bad}: {error}");
        }
    }

    #[test]
    fn a_path_is_the_drives_or_the_files_or_out_of_band() {
        let serial = |text: &str| text.parse::<DriveSerial>().unwrap();
        let drives = "[[drives]]\nserial = \"1234567890\"\npath = \"in-band\"\n[[drives]]\nserial = \"1234567891\"\n";
        let host = parse(drives).unwrap();
        assert_eq!(host.path(&serial("1234567890")), (KeyPath::InBand, Some(3)));
        assert_eq!(host.path(&serial("1234567891")), (KeyPath::OutOfBand, None));
        assert_eq!(host.path(&serial("1234567892")), (KeyPath::OutOfBand, None));
        let host = parse(&format!("path = \"in-band\"\n{drives}")).unwrap();
        assert_eq!(host.path(&serial("1234567892")), (KeyPath::InBand, Some(1)));
    }

    #[test]
    fn a_file_of_another_shape_or_size_is_refused() {
        let error =
            parse("[[data_classes]]\nname = \"A\"\nformat = \"EFMT1\"\nlabel = \"x\"").unwrap_err();
        assert!(error.to_string().contains("line 4"), "{error}");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("host.toml");
        std::fs::write(&path, vec![b'#'; (1 << 20) + 1]).unwrap();
        let error = HostConfig::load(&path).unwrap_err().to_string();
        assert!(error.contains("at most 1048576"), "{error}");
        std::fs::write(&path, b"path = \"\xff\"").unwrap();
        assert!(
            HostConfig::load(&path)
                .unwrap_err()
                .to_string()
                .contains("utf-8")
        );
    }

    /// A megabyte of faults must not take minutes.
    #[test]
    fn the_largest_file_is_checked_in_time() {
        let range = "[[volume_ranges]]\nfirst=\"A0\"\nlast=\"A1\"\n";
        let text = range.repeat((1 << 20) / range.len());
        let begin = std::time::Instant::now();
        assert!(faults(&text).len() > 20_000);
        assert!(begin.elapsed().as_secs() < 20, "{:?}", begin.elapsed());
    }
}
