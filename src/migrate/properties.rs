//! `KeyManagerConfig.properties`: what EKM was told, and what becomes of each line.
//!
//! The rows of [`PROPERTIES`] are code and documentation at once: `ekm migrate ekm21` prints those of
//! the site, `docs/migrating-from-ekm.md` has all of them, and a test holds the document to them.

mod table;

use std::path::{Path, PathBuf};

use java_properties::{LineContent, PropertiesIter};
use secrecy::SecretString;
use zeroize::Zeroizing;

pub use table::{Becomes, PROPERTIES, Property, known};

/// Longest properties file, bytes.
const MAX_FILE: u64 = 1 << 20;

/// The value of a property.
#[derive(Clone, Debug)]
pub enum Value {
    /// As it stands there.
    Text(String),
    /// A password.
    Secret(SecretString),
}

/// One line of a properties file.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Its name, as it stands there.
    pub name: String,
    /// Its value.
    pub value: Value,
    /// Its line, counted from 1.
    pub line: usize,
}

/// A properties file.
#[derive(Clone, Debug)]
pub struct Properties {
    path: PathBuf,
    settings: Vec<Setting>,
    /// Names that are given more than once; the last counts, as in Java.
    pub repeated: Vec<String>,
}

/// Why there are no properties.
#[derive(Debug, thiserror::Error)]
pub enum PropertiesError {
    /// The file.
    #[error("cannot read EKM's configuration {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// EBCDIC, as z/OS writes.
    #[error(
        "{path} looks like EBCDIC; convert it first: iconv -f IBM-1047 -t ISO8859-1 {path} > KeyManagerConfig.txt"
    )]
    Ebcdic {
        /// The file.
        path: PathBuf,
    },
    /// Not a properties file.
    #[error("{path}: {source}; it is to be a Java properties file")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The cause, with the line.
        source: java_properties::PropertiesError,
    },
    /// None of EKM's properties is in it.
    #[error(
        "{path} has no property of EKM's; give the file that EKM is started with, KeyManagerConfig.properties"
    )]
    NotEkm {
        /// The file.
        path: PathBuf,
    },
}

impl Properties {
    /// Reads a properties file.
    ///
    /// # Errors
    /// It cannot be read, is not of that form, or has nothing of EKM in it.
    pub fn read(path: &Path) -> Result<Self, PropertiesError> {
        let owned = || path.to_owned();
        let bytes =
            crate::files::read_limited(path, MAX_FILE).map_err(|source| PropertiesError::Read {
                path: owned(),
                source,
            })?;
        let mut bytes = Zeroizing::new(bytes);
        // `=` of EBCDIC is 7Eh, of ASCII 3Dh.
        if !bytes.contains(&b'=') && !bytes.contains(&b':') && bytes.contains(&0x7E) {
            return Err(PropertiesError::Ebcdic { path: owned() });
        }
        // The crate drops a last line that ends in a backslash and nothing else.
        bytes.push(b'\n');
        let mut found = Self {
            path: owned(),
            settings: Vec::new(),
            repeated: Vec::new(),
        };
        for line in PropertiesIter::new(bytes.as_slice()) {
            let line = line.map_err(|source| PropertiesError::Syntax {
                path: owned(),
                source,
            })?;
            let number = line.line_number();
            let LineContent::KVPair(name, value) = line.consume_content() else {
                continue;
            };
            if !name.is_empty() {
                found.put(name, value, number);
            }
        }
        if !found
            .settings
            .iter()
            .any(|setting| known(&setting.name).is_some())
        {
            return Err(PropertiesError::NotEkm { path: owned() });
        }
        Ok(found)
    }

    fn put(&mut self, name: String, value: String, line: usize) {
        let value = value.trim().to_owned();
        let value = if name.to_ascii_lowercase().contains("password") {
            Value::Secret(value.into())
        } else {
            Value::Text(value)
        };
        let same = |setting: &&mut Setting| setting.name.eq_ignore_ascii_case(&name);
        match self.settings.iter_mut().find(same) {
            Some(setting) => {
                setting.value = value;
                setting.line = line;
                if !self.repeated.contains(&name) {
                    self.repeated.push(name);
                }
            }
            None => self.settings.push(Setting { name, value, line }),
        }
    }

    /// All of them, in the file's order.
    #[must_use]
    pub fn settings(&self) -> &[Setting] {
        &self.settings
    }

    fn setting(&self, name: &str) -> Option<&Setting> {
        let same = |setting: &&Setting| setting.name.eq_ignore_ascii_case(name);
        self.settings.iter().find(same)
    }

    /// A value that is no password; none where it is empty.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        match &self.setting(name)?.value {
            Value::Text(text) => Some(text.as_str()).filter(|text| !text.is_empty()),
            Value::Secret(_) => None,
        }
    }

    /// A password in clear.
    #[must_use]
    pub fn password(&self, name: &str) -> Option<&SecretString> {
        match &self.setting(name)?.value {
            Value::Secret(secret) => Some(secret),
            Value::Text(_) => None,
        }
    }

    /// The file that a property names: as it stands there, relative to `home` (the directory that
    /// EKM is started in) or to this file's folder, or its bare name beside this file, where it was
    /// copied from another machine. The first of them that is there, else the first.
    #[must_use]
    pub fn file(&self, name: &str, home: Option<&Path>) -> Option<PathBuf> {
        let text = self.text(name)?;
        let bare = match text.get(..5) {
            Some(scheme) if scheme.eq_ignore_ascii_case("file:") => {
                let rest = text.get(5..).unwrap_or_default();
                // file:///path has an empty authority.
                match rest.strip_prefix("//") {
                    Some(path) => path,
                    None => rest,
                }
            }
            _ => text,
        };
        let folder = self.path.parent().unwrap_or(Path::new(""));
        let name = bare.rsplit(['/', '\\']).next().unwrap_or(bare);
        let places = [
            home.map(|home| home.join(bare)),
            Some(folder.join(bare)),
            Some(folder.join(name)),
        ];
        let mut places = places.into_iter().flatten();
        let first = places.next()?;
        if first.is_file() {
            return Some(first);
        }
        places.find(|place| place.is_file()).or(Some(first))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::ExposeSecret;

    fn of(text: &[u8]) -> Result<Properties, PropertiesError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("KeyManagerConfig.properties");
        std::fs::write(&path, text).unwrap();
        Properties::read(&path)
    }

    #[test]
    fn java_syntax_is_read() {
        let read = of(
            b"# comment\n! another\r\nTransportListener.tcp.port=3801\n\
              drive.default.alias1 : Tape\\u0020One \nconfig.keystore.file = keys/\\\n   EKMKeys.jck\n\
              config.keystore.password=geheim\ndebug none\nsync.type=all\\",
        )
        .unwrap();
        assert_eq!(read.text("transportlistener.TCP.port"), Some("3801"));
        assert_eq!(read.text("drive.default.alias1"), Some("Tape One"));
        assert_eq!(read.text("config.keystore.file"), Some("keys/EKMKeys.jck"));
        assert_eq!(read.text("debug"), Some("none"));
        assert_eq!(read.text("sync.type"), Some("all"));
        let password = read.password("config.keystore.password").unwrap();
        assert_eq!(password.expose_secret(), "geheim");
        assert_eq!(read.text("config.keystore.password"), None);
        assert!(!format!("{read:?}").contains("geheim"));
    }

    #[test]
    fn the_last_of_a_repeated_property_counts_and_is_told() {
        let read = of(b"fips=On\ndebug=all\nFIPS=Off\n").unwrap();
        assert_eq!(read.text("fips"), Some("Off"));
        assert_eq!(read.repeated, ["FIPS"]);
    }

    #[test]
    fn what_is_no_such_file_is_refused_with_the_way() {
        let text = |result: Result<Properties, PropertiesError>| result.unwrap_err().to_string();
        assert!(text(of(b"a=1\n")).contains("KeyManagerConfig.properties"));
        assert!(text(of(b"debug=\\uZZZZ\n")).contains("hex"));
        // debug~all in code page 1047
        assert!(
            text(of(&[0x84, 0x85, 0x82, 0xA4, 0x87, 0x7E, 0x81, 0x93, 0x93])).contains("iconv")
        );
        assert!(text(of(&vec![b'='; 2 << 20])).contains("1048576"));
    }

    #[test]
    fn each_row_is_found_by_its_name_and_stands_once() {
        for property in PROPERTIES {
            let name = property.name.replace('*', "file");
            let found = known(&name).unwrap();
            assert_eq!(found.name, property.name);
            assert!(!property.why.ends_with('.') && !property.why.is_empty());
        }
        assert_eq!(
            known("admin.SSL.keystore.name").unwrap().name,
            "Admin.ssl.keystore.*"
        );
        assert!(known("colour").is_none());
    }

    #[test]
    fn a_file_is_found_where_ekm_was_or_beside_the_properties() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("k.properties");
        std::fs::write(
            &path,
            "config.drivetable.file.url=FILE:../filedrive.table\nconfig.keystore.file=keys/a.jck\n",
        )
        .unwrap();
        let read = Properties::read(&path).unwrap();
        let file = |name: &str| read.file(name, None).unwrap();
        assert!(file("config.keystore.file").ends_with("keys/a.jck"));
        std::fs::write(folder.path().join("a.jck"), "").unwrap();
        std::fs::write(folder.path().join("filedrive.table"), "").unwrap();
        assert_eq!(file("config.keystore.file"), folder.path().join("a.jck"));
        assert_eq!(
            file("config.drivetable.file.url"),
            folder.path().join("filedrive.table")
        );
    }
}
