//! The places that a PIN can come from, and the signs that one has changed.

use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{Handed, MAX_PIN, Pin, PinError, command};

/// Where a token's user PIN comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum PinSource {
    /// A file's first line. It must not be readable by others.
    File(PathBuf),
    /// A systemd credential (`LoadCredential=`), by name.
    Credential(String),
    /// An environment variable of the server, by name. The server takes it out
    /// of its environment when it starts.
    Env(String),
    /// A program and its arguments; the first line that it prints is the PIN.
    /// No shell is involved.
    Command(Vec<String>),
    /// An operator, with `ekm token unlock`, each time a bridge is started.
    Operator,
    /// The PIN pad of the token itself (`CKF_PROTECTED_AUTHENTICATION_PATH`).
    Pad,
}

/// What tells that a source has changed. Neither part is derived from a PIN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generation {
    /// Another one only when an operator has done something about the PIN. A
    /// PIN that was refused is held back for as long as this stays.
    pub change: String,
    /// The same only where the PIN is surely the same, byte for byte.
    pub content: String,
}

impl Generation {
    fn both(text: String) -> Self {
        Self {
            change: text.clone(),
            content: text,
        }
    }

    /// Of a source whose PIN may be another one each time.
    fn unsure(change: String) -> Self {
        Self {
            change,
            content: uuid::Uuid::new_v4().to_string(),
        }
    }
}

/// A PIN as it was read.
#[derive(Debug)]
pub struct Sourced {
    /// The PIN; none where the token asks for it on a pad of its own.
    pub pin: Option<SecretString>,
    /// When it was made.
    pub generation: Generation,
}

impl std::fmt::Display for PinSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => write!(f, "the file {}", path.display()),
            Self::Credential(name) => write!(f, "the systemd credential {name}"),
            Self::Env(name) => write!(f, "the environment variable {name}"),
            Self::Command(words) => write!(
                f,
                "the command {}",
                words.first().map(String::as_str).unwrap_or_default()
            ),
            Self::Operator => f.write_str("an operator (ekm token unlock)"),
            Self::Pad => f.write_str("the token's own PIN pad"),
        }
    }
}

impl PinSource {
    /// Whether each bridge that is started has the PIN with nobody there.
    #[must_use]
    pub const fn unattended(&self) -> bool {
        match self {
            Self::File(_) | Self::Credential(_) | Self::Env(_) | Self::Command(_) => true,
            Self::Operator | Self::Pad => false,
        }
    }

    /// What an operator does about a PIN that is wrong or held back.
    #[must_use]
    pub fn remedy(&self, token: &str) -> String {
        let unlock = format!("ekm token unlock {token}");
        match self {
            Self::File(path) => format!(
                "put the right PIN into {}, and it is tried at once; if it is right as it stands, run: {unlock}",
                path.display()
            ),
            Self::Credential(_) | Self::Env(_) => {
                format!("put the right PIN into {self}, start the server anew, and run: {unlock}")
            }
            Self::Command(_) => {
                format!("make {self} print the right PIN, and run: {unlock}")
            }
            Self::Operator => format!("run: {unlock}, and give the right PIN"),
            Self::Pad => format!("be at the token's PIN pad, and run: {unlock}"),
        }
    }

    /// What is wrong with it that can be seen without reading it.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        match self {
            Self::Credential(name)
                if name.is_empty() || name.contains('/') || name.starts_with('.') =>
            {
                Some(format!("{name:?} is no name of a systemd credential"))
            }
            Self::Env(name) if name.is_empty() || name.contains(['=', '\0']) => {
                Some(format!("{name:?} is no name of an environment variable"))
            }
            Self::Command(words) => match words.first() {
                None => Some("command names no program".to_owned()),
                Some(program) if !Path::new(program).is_absolute() => Some(format!(
                    "command: give the whole path of {program}, beginning with /"
                )),
                Some(program) if !Path::new(program).is_file() => {
                    Some(format!("command: there is no file {program}"))
                }
                Some(_) => None,
            },
            Self::File(_) | Self::Credential(_) | Self::Env(_) | Self::Operator | Self::Pad => None,
        }
    }

    /// Reads the PIN; in the bridge.
    ///
    /// # Errors
    /// It is missing, readable by others, empty or too long.
    pub fn read(&self, token: &str) -> Result<Sourced, PinError> {
        let sourced = |pin, generation| Sourced {
            pin: Some(pin),
            generation,
        };
        match self {
            Self::File(path) => {
                let (pin, meta) = read_file(path, true)?;
                Ok(sourced(pin, Generation::both(stamp(&meta))))
            }
            Self::Credential(name) => {
                let folder =
                    std::env::var_os("CREDENTIALS_DIRECTORY").ok_or_else(|| PinError::Missing {
                        what: format!("{self} is not there (CREDENTIALS_DIRECTORY is not set), and the token's PIN should come from it"),
                    })?;
                // systemd guards the folder; the file may well be mode 0440.
                let (pin, meta) = read_file(&Path::new(&folder).join(name), false)?;
                // Made anew at each start of the unit, so a new file is no sign of a new PIN.
                let generation = Generation {
                    change: format!("credential {name}"),
                    content: stamp(&meta),
                };
                Ok(sourced(pin, generation))
            }
            Self::Env(name) => {
                let (pin, meta) = handed(self)?.ok_or_else(|| PinError::Missing {
                    what: format!("{self} is not set, and the token's PIN should come from it"),
                })?;
                let generation = Generation {
                    change: format!("env {name}"),
                    content: stamp(&meta),
                };
                Ok(sourced(pin, generation))
            }
            Self::Command(words) => {
                let pin = command::run(words, token)?;
                Ok(sourced(
                    pin,
                    Generation::unsure(format!("command {words:?}")),
                ))
            }
            Self::Operator => {
                let (pin, meta) = handed(self)?.ok_or_else(|| PinError::Missing {
                    what: format!(
                        "its PIN comes from an operator each time its bridge is started; run: ekm token unlock {token}"
                    ),
                })?;
                // Each typing is a file of its own: the operator is there and answers for it.
                Ok(sourced(
                    pin,
                    Generation::both(format!("typed {}", stamp(&meta))),
                ))
            }
            Self::Pad => Ok(Sourced {
                pin: None,
                generation: Generation::unsure("pad".to_owned()),
            }),
        }
    }
}

impl Pin {
    /// Reads the PIN; in the bridge.
    ///
    /// # Errors
    /// As for [`PinSource::read`].
    pub fn read(&self, token: &str) -> Result<Sourced, PinError> {
        match self {
            Self::Given(typed) => Ok(Sourced {
                pin: Some(typed.pin.clone()),
                generation: Generation::both(format!("typed {}", typed.id)),
            }),
            Self::Source(source) => source.read(token),
        }
    }

    /// Reads a PIN that a token is initialised with, which a program must see.
    ///
    /// # Errors
    /// As for [`PinSource::read`]; also that it is typed on a pad.
    pub fn read_secret(&self, token: &str) -> Result<SecretString, PinError> {
        self.read(token)?.pin.ok_or_else(|| PinError::Unusable {
            origin: PinSource::Pad.to_string(),
            problem: "not for a program to see",
        })
    }

    /// What an operator does about a PIN that is wrong or held back.
    #[must_use]
    pub fn remedy(&self, token: &str) -> String {
        match self {
            Self::Given(_) => "run the command again, and give the right PIN".to_owned(),
            Self::Source(source) => source.remedy(token),
        }
    }
}

/// What changes when an operator does something about a PIN that is held
/// back: its file, the file's mode, or `ekm token unlock` on any server that
/// shares the ledgers.
#[must_use]
pub fn mended(source: &PinSource, ledgers: &Path) -> Vec<String> {
    let file = match source {
        PinSource::File(path) => std::fs::metadata(path).ok(),
        PinSource::Credential(_)
        | PinSource::Env(_)
        | PinSource::Command(_)
        | PinSource::Operator
        | PinSource::Pad => None,
    };
    let mut stamps: Vec<String> = file
        .iter()
        .map(|meta| {
            let changed = (meta.ctime(), meta.ctime_nsec());
            format!("{} {changed:?} {:o}", stamp(meta), meta.mode())
        })
        .collect();
    let entries = std::fs::read_dir(ledgers).into_iter().flatten().flatten();
    let ledgers = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|end| end == "json"));
    stamps.extend(ledgers.map(|path| {
        let unlocks = super::ledger::unlocks(&path);
        format!("{} {unlocks:?}", path.display())
    }));
    stamps.sort();
    stamps
}

/// Which file it is, and when it was written. Not how long: that is the PIN's.
fn stamp(meta: &Metadata) -> String {
    format!("{}.{:09} {}", meta.mtime(), meta.mtime_nsec(), meta.ino())
}

fn handed(source: &PinSource) -> Result<Option<(SecretString, Metadata)>, PinError> {
    let found = Handed::receive().map_err(|error| PinError::Read {
        path: source.to_string().into(),
        source: error,
    })?;
    found
        .map(|(text, meta)| Ok((first_line(&source.to_string(), &text)?, meta)))
        .transpose()
}

fn read_file(path: &Path, private: bool) -> Result<(SecretString, Metadata), PinError> {
    let fail = |source| PinError::Read {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(fail)?;
    let meta = file.metadata().map_err(fail)?;
    let mode = meta.mode() & 0o777;
    if private && mode & 0o077 != 0 {
        return Err(PinError::Exposed {
            path: path.to_owned(),
            mode,
        });
    }
    let mut text = Zeroizing::new(Vec::with_capacity(512));
    file.take(300).read_to_end(&mut text).map_err(fail)?;
    Ok((first_line(&path.display().to_string(), &text)?, meta))
}

/// The PIN in what was read; nothing of it is in the error.
pub(super) fn first_line(origin: &str, text: &[u8]) -> Result<SecretString, PinError> {
    let unusable = |problem| PinError::Unusable {
        origin: origin.to_owned(),
        problem,
    };
    let line = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.is_empty() {
        return Err(unusable("empty"));
    }
    if line.len() > MAX_PIN {
        return Err(unusable("longer than 255 bytes"));
    }
    let line = std::str::from_utf8(line).map_err(|_| unusable("not UTF-8"))?;
    Ok(SecretString::from(line))
}

/// Whether the text is in there; for what must not be shown.
pub(super) fn without(text: &str, pin: &SecretString) -> String {
    text.replace(pin.expose_secret(), "[redacted]")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn file(folder: &Path, text: &str, mode: u32) -> PathBuf {
        let path = folder.join("pin");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn a_pin_file_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = file(dir.path(), "12345678\n", 0o644);
        let error = PinSource::File(path).read("t").unwrap_err();
        assert!(matches!(error, PinError::Exposed { mode: 0o644, .. }));
    }

    #[test]
    fn the_first_line_is_the_pin() {
        let dir = tempfile::tempdir().unwrap();
        for text in ["1234", "1234\n", "1234\r\nrest\n"] {
            let path = file(dir.path(), text, 0o600);
            let sourced = PinSource::File(path).read("t").unwrap();
            assert_eq!(sourced.pin.unwrap().expose_secret(), "1234", "{text:?}");
        }
        let path = file(dir.path(), "\n1234", 0o600);
        let error = PinSource::File(path).read("t").unwrap_err();
        assert!(matches!(
            error,
            PinError::Unusable {
                problem: "empty",
                ..
            }
        ));
    }

    #[test]
    fn a_file_that_is_written_again_is_another_generation() {
        let dir = tempfile::tempdir().unwrap();
        let path = file(dir.path(), "1234", 0o600);
        let read = || PinSource::File(path.clone()).read("t").unwrap().generation;
        let first = read();
        assert_eq!(first, read());
        crate::files::write_private(&path, b"1234").unwrap();
        assert_ne!(first.change, read().change);
    }

    #[test]
    fn the_length_of_a_pin_is_in_no_generation() {
        let dir = tempfile::tempdir().unwrap();
        let path = file(dir.path(), &"7".repeat(123), 0o600);
        let generation = PinSource::File(path).read("t").unwrap().generation;
        let words = generation.change.split([' ', '.']);
        assert!(
            words.into_iter().all(|word| word != "123"),
            "{generation:?}"
        );
    }

    #[test]
    fn sources_in_a_configuration() {
        #[derive(Deserialize)]
        struct Token {
            pin: PinSource,
        }
        for (text, source) in [
            ("pin = { file = \"p\" }", PinSource::File("p".into())),
            ("pin = { env = \"P\" }", PinSource::Env("P".into())),
            (
                "pin = { command = [\"/bin/echo\", \"1\"] }",
                PinSource::Command(vec!["/bin/echo".into(), "1".into()]),
            ),
            ("pin = \"operator\"", PinSource::Operator),
            ("pin = \"pad\"", PinSource::Pad),
        ] {
            assert_eq!(toml::from_str::<Token>(text).unwrap().pin, source, "{text}");
        }
        assert!(toml::from_str::<Token>("pin = \"1234\"").is_err());
    }

    #[test]
    fn a_command_without_a_whole_path_is_a_fault() {
        for words in [
            vec![],
            vec!["get-pin".to_owned()],
            vec!["/none/such".to_owned()],
        ] {
            assert!(PinSource::Command(words).fault().is_some());
        }
        assert_eq!(PinSource::Command(vec!["/bin/sh".to_owned()]).fault(), None);
    }
}
