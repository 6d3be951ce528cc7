//! PINs: where they come from, and the guard that never sends a refused one again.
//!
//! A token locks after a few wrong PINs, and a daemon that restarts in a loop
//! gets there in seconds. So before `C_Login` a *ledger* file says that a
//! login is pending, and afterwards how it ended. A PIN that was refused, or
//! whose answer nobody saw, is not sent again until its source has changed.
//! The ledger holds the token's serial and the source's generation (file
//! time, size and inode); nothing that is derived from the PIN.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::pkcs11::{CallError, TokenInfo};

/// Times that an accepted PIN is sent again although the answer to it was not seen.
const UNSEEN: u32 = 3;

/// Longest PIN that is read from a file, bytes.
const MAX_PIN: u64 = 255;

/// Where a PIN comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum PinSource {
    /// A file's first line. It must not be readable by others.
    File(PathBuf),
    /// A systemd credential (`LoadCredential=`), by name.
    Credential(String),
    /// An environment variable of the server, by name.
    Env(String),
}

/// What changes when an operator does something about a PIN that is held
/// back: its file, the file's mode, or a ledger.
#[must_use]
pub fn mended(source: Option<&PinSource>, ledgers: &Path) -> Vec<String> {
    let file = match source {
        Some(PinSource::File(path)) => std::fs::metadata(path).ok(),
        Some(PinSource::Credential(_) | PinSource::Env(_)) | None => None,
    };
    let stamp = |meta: &std::fs::Metadata| {
        let changed = (meta.ctime(), meta.ctime_nsec());
        format!("{} {changed:?} {:o}", generation(meta), meta.mode())
    };
    let mut stamps: Vec<String> = file.iter().map(stamp).collect();
    let entries = std::fs::read_dir(ledgers).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.path().extension().is_some_and(|end| end == "json")) {
        let meta = entry.metadata().ok();
        let meta = meta.as_ref().map(stamp).unwrap_or_default();
        stamps.push(format!("{} {meta}", entry.path().display()));
    }
    stamps.sort();
    stamps
}

fn generation(meta: &std::fs::Metadata) -> String {
    format!(
        "{}.{:09} {} {}",
        meta.mtime(),
        meta.mtime_nsec(),
        meta.len(),
        meta.ino()
    )
}

/// A PIN source, or a PIN that an operator typed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Pin {
    /// To be read by the bridge itself.
    Source(PinSource),
    /// Typed by an operator for this one run; crosses to the bridge on its socket.
    Given(#[serde(with = "given")] SecretString),
}

mod given {
    use secrecy::{ExposeSecret, SecretString};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(pin: &SecretString, to: S) -> Result<S::Ok, S::Error> {
        pin.expose_secret().serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<SecretString, D::Error> {
        String::deserialize(from).map(SecretString::from)
    }
}

/// Why a PIN could not be had or may not be sent.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// The source cannot be read.
    #[error("cannot read the PIN from {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The file is readable by others.
    #[error("the PIN file {path} is readable by others (mode {mode:03o}); run: chmod 600 {path}")]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The variable or credential is not there.
    #[error("{what} is not set, and the token's PIN should come from it")]
    Missing {
        /// Which variable or credential.
        what: String,
    },
    /// Empty or too long.
    #[error("the PIN from {origin} is {problem}")]
    Unusable {
        /// Where it came from.
        origin: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The guard holds the PIN back.
    #[error(
        "the PIN is held back: {why}; put the right PIN into its source, or if the PIN is right after all remove {ledger}, and start again"
    )]
    Held {
        /// Why.
        why: String,
        /// The ledger file.
        ledger: PathBuf,
    },
    /// The token itself warns.
    #[error(
        "the token says that {what}; have its security officer reset the user PIN, no login was tried"
    )]
    Token {
        /// What its flags say.
        what: &'static str,
    },
    /// The ledger cannot be kept, so no login is tried.
    #[error(
        "cannot keep the login ledger {path}: {source}; no login was tried; if the file is damaged and the PIN is right, remove it"
    )]
    Ledger {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
}

impl Pin {
    /// Reads the PIN, and tells the generation of its source.
    ///
    /// # Errors
    /// The source is missing, readable by others, empty or too long.
    pub fn read(&self) -> Result<(SecretString, String), PinError> {
        match self {
            // A typed PIN is new each time: the operator is there and answers for it.
            Self::Given(pin) => Ok((pin.clone(), format!("typed {}", uuid::Uuid::new_v4()))),
            Self::Source(PinSource::File(path)) => {
                private(path)?;
                read_file(path)
            }
            Self::Source(PinSource::Credential(name)) => {
                let folder =
                    std::env::var_os("CREDENTIALS_DIRECTORY").ok_or_else(|| PinError::Missing {
                        what: format!("the systemd credential {name} (CREDENTIALS_DIRECTORY)"),
                    })?;
                // systemd guards the folder; the file may well be mode 0440.
                let (pin, _) = read_file(&Path::new(&folder).join(name))?;
                Ok((pin, format!("credential {name}")))
            }
            Self::Source(PinSource::Env(name)) => {
                let text = std::env::var(name).map_err(|_| PinError::Missing {
                    what: format!("the environment variable {name}"),
                })?;
                let pin = usable(&format!("the environment variable {name}"), text)?;
                Ok((pin, format!("env {name}")))
            }
        }
    }
}

fn private(path: &Path) -> Result<(), PinError> {
    let meta = std::fs::metadata(path).map_err(|source| PinError::Read {
        path: path.to_owned(),
        source,
    })?;
    let mode = meta.mode() & 0o777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    Err(PinError::Exposed {
        path: path.to_owned(),
        mode,
    })
}

fn read_file(path: &Path) -> Result<(SecretString, String), PinError> {
    let fail = |source| PinError::Read {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(fail)?;
    let meta = file.metadata().map_err(fail)?;
    let mut text = Zeroizing::new(String::with_capacity(512));
    file.take(MAX_PIN + 2)
        .read_to_string(&mut text)
        .map_err(fail)?;
    let line = text.lines().next().unwrap_or_default().to_owned();
    Ok((
        usable(&path.display().to_string(), line)?,
        generation(&meta),
    ))
}

fn usable(origin: &str, text: String) -> Result<SecretString, PinError> {
    let pin = SecretString::from(text);
    let length = pin.expose_secret().len();
    let problem = if length == 0 {
        "empty"
    } else if u64::try_from(length).unwrap_or(u64::MAX) > MAX_PIN {
        "longer than 255 bytes"
    } else {
        return Ok(pin);
    };
    Err(PinError::Unusable {
        origin: origin.to_owned(),
        problem,
    })
}

/// What the ledger file says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    /// Token serial and source generation of a login that was started and not seen to end.
    pending: Option<Login>,
    /// How often in a row that happened.
    #[serde(default)]
    unseen: u32,
    /// The last login that the token accepted.
    accepted: Option<Login>,
    /// The last login that the token refused.
    refused: Option<Login>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Login {
    serial: String,
    generation: String,
}

/// One login attempt that the ledger knows of. Held until its end is written.
#[derive(Debug)]
pub struct LoginGuard {
    // One login leader per token over all processes of this host.
    _lock: File,
    path: PathBuf,
    entry: Entry,
    login: Login,
}

impl LoginGuard {
    /// Asks whether this PIN may be sent, and writes down that it will be.
    ///
    /// # Errors
    /// [`PinError::Held`] or [`PinError::Token`] where it may not be sent.
    pub fn begin(ledger: &Path, token: &TokenInfo, generation: String) -> Result<Self, PinError> {
        if token.user_pin_locked() {
            return Err(PinError::Token {
                what: "the user PIN is locked (CKF_USER_PIN_LOCKED)",
            });
        }
        if token.user_pin_final_try() {
            return Err(PinError::Token {
                what: "the next wrong PIN locks it (CKF_USER_PIN_FINAL_TRY)",
            });
        }
        let fail = |source| PinError::Ledger {
            path: ledger.to_owned(),
            source,
        };
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(ledger.with_extension("lock"))
            .map_err(fail)?;
        lock.lock().map_err(fail)?;
        let entry: Entry = match std::fs::read(ledger) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| fail(error.into()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Entry::default(),
            Err(error) => return Err(fail(error)),
        };
        let login = Login {
            serial: token.serial.clone(),
            generation,
        };
        let held = |why: &str| PinError::Held {
            why: why.to_owned(),
            ledger: ledger.to_owned(),
        };
        if entry.refused.as_ref() == Some(&login) {
            return Err(held(
                "the token refused it, and its source has not changed since",
            ));
        }
        // A PIN that this token took before is safe to repeat, a few times: it
        // may have been changed on the token. Any other may have been refused
        // just before the power went.
        let unseen = if entry.pending.as_ref() == Some(&login) {
            entry.unseen + 1
        } else {
            0
        };
        let trusted = entry.accepted.as_ref() == Some(&login) && unseen <= UNSEEN;
        if unseen > 0 && !trusted {
            return Err(held(
                "it was sent before and the answer was never seen, so it may have been refused",
            ));
        }
        let mut guard = Self {
            _lock: lock,
            path: ledger.to_owned(),
            entry,
            login,
        };
        guard.entry.pending = Some(guard.login.clone());
        guard.entry.unseen = unseen;
        guard.write()?;
        Ok(guard)
    }

    /// Writes down how the login ended. Where the answer does not tell whether
    /// the PIN was right, it stays pending, as if nobody had seen the answer.
    ///
    /// # Errors
    /// The ledger cannot be written.
    pub fn end(mut self, outcome: Result<(), CallError>) -> Result<(), PinError> {
        use super::faults::FaultClass;
        match outcome {
            Ok(()) => {
                self.entry.accepted = Some(self.login.clone());
                self.entry.refused = None;
            }
            // A vendor's own code may well be his word for a wrong PIN.
            Err(error)
                if error.class == FaultClass::Operator
                    || error.rv >= cryptoki_sys::CKR_VENDOR_DEFINED =>
            {
                self.entry.refused = Some(self.login.clone());
            }
            Err(_) => return Ok(()),
        }
        self.entry.pending = None;
        self.entry.unseen = 0;
        self.write()
    }

    fn write(&self) -> Result<(), PinError> {
        let fail = |source| PinError::Ledger {
            path: self.path.clone(),
            source,
        };
        let text = serde_json::to_vec(&self.entry).map_err(|error| fail(error.into()))?;
        // Whole or not at all, also when the power goes: a ledger that does
        // not read would hold every PIN back.
        crate::files::write_private(&self.path, &text).map_err(fail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> TokenInfo {
        TokenInfo {
            label: "ekm".into(),
            serial: "1".into(),
            manufacturer: String::new(),
            model: String::new(),
            flags: 0,
            max_rw_sessions: 0,
            min_pin: 4,
            max_pin: 32,
        }
    }

    const REFUSED: CallError = CallError {
        function: "C_Login",
        rv: cryptoki_sys::CKR_PIN_INCORRECT,
        class: crate::bridge::faults::FaultClass::Operator,
    };

    #[test]
    fn a_refused_pin_is_held_until_its_source_changes() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = dir.path().join("ledger");
        let guard = LoginGuard::begin(&ledger, &token(), "1".into()).unwrap();
        guard.end(Err(REFUSED)).unwrap();
        assert!(matches!(
            LoginGuard::begin(&ledger, &token(), "1".into()),
            Err(PinError::Held { .. })
        ));
        LoginGuard::begin(&ledger, &token(), "2".into()).unwrap();
    }

    #[test]
    fn a_login_whose_answer_was_not_seen_is_held() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = dir.path().join("ledger");
        drop(LoginGuard::begin(&ledger, &token(), "1".into()).unwrap());
        assert!(matches!(
            LoginGuard::begin(&ledger, &token(), "1".into()),
            Err(PinError::Held { .. })
        ));
    }

    #[test]
    fn an_answer_that_does_not_tell_leaves_the_pin_pending() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = dir.path().join("ledger");
        let lost = Err(CallError::new(
            "C_Login",
            cryptoki_sys::CKR_DEVICE_ERROR,
            &[],
        ));
        let guard = LoginGuard::begin(&ledger, &token(), "1".into()).unwrap();
        guard.end(lost).unwrap();
        assert!(matches!(
            LoginGuard::begin(&ledger, &token(), "1".into()),
            Err(PinError::Held { .. })
        ));
        // One that was accepted once is repeated, but not for ever.
        let guard = LoginGuard::begin(&ledger, &token(), "2".into()).unwrap();
        guard.end(Ok(())).unwrap();
        let sent = (0..20)
            .take_while(|_| {
                LoginGuard::begin(&ledger, &token(), "2".into())
                    .and_then(|guard| guard.end(lost))
                    .is_ok()
            })
            .count();
        assert_eq!(sent, 1 + usize::try_from(UNSEEN).unwrap());
    }

    #[test]
    fn a_pin_that_was_accepted_before_survives_a_power_cut() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = dir.path().join("ledger");
        let guard = LoginGuard::begin(&ledger, &token(), "1".into()).unwrap();
        guard.end(Ok(())).unwrap();
        drop(LoginGuard::begin(&ledger, &token(), "1".into()).unwrap());
        LoginGuard::begin(&ledger, &token(), "1".into()).unwrap();
    }

    #[test]
    fn the_last_try_is_not_ours_to_take() {
        let dir = tempfile::tempdir().unwrap();
        let mut warned = token();
        warned.flags = cryptoki_sys::CKF_USER_PIN_FINAL_TRY;
        assert!(matches!(
            LoginGuard::begin(&dir.path().join("ledger"), &warned, "1".into()),
            Err(PinError::Token { .. })
        ));
    }

    #[test]
    fn a_pin_file_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pin");
        std::fs::write(&path, "12345678\n").unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        std::fs::set_permissions(&path, mode).unwrap();
        let error = Pin::Source(PinSource::File(path)).read().unwrap_err();
        assert!(matches!(error, PinError::Exposed { mode: 0o644, .. }));
    }
}
