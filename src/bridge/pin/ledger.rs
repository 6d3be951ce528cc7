//! The guard of a token's PIN counter: one file and one lock per token.
//!
//! ```text
//! lead      the lock, over all processes and servers that share the state
//! begin     may this PIN be sent?  "pending" to the disk, synced
//! C_Login
//! end       "accepted" or "refused" to the disk, synced; the lock goes
//! ```
//!
//! | What the ledger says of this generation | What is done |
//! |---|---|
//! | nothing, or accepted | it is sent |
//! | refused | held back |
//! | pending, never accepted | held back: it may have been refused unseen |
//! | pending, the very same PIN was accepted before | sent if the token is known to show wrong PINs (`CKF_USER_PIN_COUNT_LOW`) and shows none; else held back |
//!
//! So a wrong PIN is sent once, whatever is killed when, and an HSM that went
//! away under a login with the right PIN costs no operator. What is held back
//! stays so until its source has changed or `ekm token unlock` says otherwise.

use std::fs::{OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cryptoki_sys as ck;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Generation, PinError};
use crate::bridge::faults::{FaultClass, ckr_name};
use crate::bridge::pkcs11::{CallError, TokenInfo};
use crate::bridge::profile::CountLow;
use crate::bridge::uri::TokenUri;
use crate::files::{FileLock, read_limited};

/// How long a login of another process is waited for. A network HSM takes
/// seconds; a module that hangs is killed by its server, and the lock goes with it.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Generations that are remembered; the oldest go first.
const REMEMBERED: usize = 64;

/// Where the ledger of a token is.
#[derive(Clone, Debug)]
pub struct Ledger {
    path: PathBuf,
    serial: String,
}

impl Ledger {
    /// The ledger of that token, whatever the configuration calls it.
    #[must_use]
    pub fn of(folder: &Path, token: &TokenInfo) -> Self {
        let identity = hex::encode(Sha256::digest(TokenUri::of(token).to_string()));
        let name = format!("{}.json", identity.get(..16).unwrap_or("token"));
        Self {
            path: folder.join(name),
            serial: token.serial.clone(),
        }
    }

    /// Becomes the one that may log in to this token, of all processes that
    /// share the ledger. The lock goes when the leader is dropped, or killed.
    ///
    /// # Errors
    /// [`PinError::Led`] where another one leads for longer than `patience`.
    pub fn lead(&self, patience: Duration) -> Result<Leader, PinError> {
        let fail = |source| self.fail(source);
        let begin = Instant::now();
        let path = self.path.with_extension("lock");
        let lock = loop {
            let file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path)
                .map_err(fail)?;
            match FileLock::try_new(file) {
                Ok(lock) => break lock,
                Err(TryLockError::Error(error)) => return Err(fail(error)),
                Err(TryLockError::WouldBlock) if begin.elapsed() >= patience => {
                    // It is only for the message.
                    let leader = read_limited(&path, 16).unwrap_or_default();
                    let leader = String::from_utf8_lossy(&leader);
                    return Err(PinError::Led {
                        leader: leader.trim().to_owned(),
                        seconds: patience.as_secs(),
                    });
                }
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        lock.file().set_len(0).map_err(fail)?;
        lock.file()
            .write_all(format!("{}\n", std::process::id()).as_bytes())
            .map_err(fail)?;
        Ok(Leader {
            _lock: lock,
            ledger: self.clone(),
        })
    }

    fn fail(&self, source: io::Error) -> PinError {
        PinError::Ledger {
            path: self.path.clone(),
            source,
        }
    }

    fn read(&self) -> Result<Book, PinError> {
        read(&self.path).map_err(|error| self.fail(error))
    }
}

fn read(path: &Path) -> io::Result<Book> {
    match std::fs::read(path) {
        Ok(text) => Ok(serde_json::from_slice(&text)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Book::default()),
        Err(error) => Err(error),
    }
}

/// How often an operator has unlocked the token of that ledger.
pub(super) fn unlocks(path: &Path) -> Option<u64> {
    read(path).ok().map(|book| book.unlocks)
}

/// What the file says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Book {
    serial: String,
    /// Times that an operator has unlocked the token.
    unlocks: u64,
    /// The operator allowed the token's last try, once.
    last_try: bool,
    /// Oldest first.
    generations: Vec<Known>,
}

/// What is known of one generation of one source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Known {
    change: String,
    /// The content that the token accepted last.
    accepted: Option<String>,
    held: Option<Held>,
}

/// Why a generation is not simply sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
enum Held {
    /// It was about to be sent then, and no answer was seen.
    Pending { since: String },
    /// The token refused it then.
    Refused { since: String, answer: String },
}

/// The one process that may log in now.
#[derive(Debug)]
pub struct Leader {
    _lock: FileLock,
    ledger: Ledger,
}

impl Leader {
    /// Asks whether this PIN may be sent, and writes down that it will be.
    /// `token` is as it says now, after the lock was taken.
    ///
    /// # Errors
    /// [`PinError::Held`] or [`PinError::Spent`] where it may not be sent.
    pub fn begin(
        self,
        token: &TokenInfo,
        generation: Generation,
        count_low: CountLow,
    ) -> Result<Login, PinError> {
        let mut book = self.ledger.read()?;
        if token.user_pin_locked() {
            return Err(PinError::Spent {
                what: "the user PIN is locked (CKF_USER_PIN_LOCKED); have the token's security officer reset it, then unlock",
            });
        }
        if token.user_pin_final_try() && !book.last_try {
            return Err(PinError::Spent {
                what: "the next wrong PIN locks the token (CKF_USER_PIN_FINAL_TRY); have its security officer reset the user PIN, or make sure that the PIN is right, then unlock with --last-try",
            });
        }
        let known = book.take(&generation.change);
        if let Some(held) = &known.held {
            held.judge(
                known.accepted.as_ref() == Some(&generation.content),
                token,
                count_low,
            )?;
        }
        book.serial.clone_from(&self.ledger.serial);
        book.last_try = false;
        let before = known.clone();
        book.put(Known {
            held: Some(Held::Pending { since: now() }),
            ..known
        });
        let login = Login {
            leader: self,
            book,
            before,
            generation,
        };
        login.write()?;
        Ok(login)
    }

    /// Clears what is held back, because the operator says that the PIN is
    /// mended. A ledger that does not read is replaced.
    ///
    /// # Errors
    /// The ledger cannot be written.
    pub fn unlock(self, last_try: bool) -> Result<(), PinError> {
        let mut book = self.ledger.read().unwrap_or_default();
        book.serial.clone_from(&self.ledger.serial);
        book.unlocks += 1;
        book.last_try = last_try;
        for known in &mut book.generations {
            known.held = None;
        }
        self.write(&book)
    }

    fn write(&self, book: &Book) -> Result<(), PinError> {
        let fail = |source| self.ledger.fail(source);
        let text = serde_json::to_vec_pretty(book).map_err(|error| fail(error.into()))?;
        // Whole or not at all, also when the power goes: a ledger that does
        // not read would hold every PIN back.
        crate::files::write_private(&self.ledger.path, &text).map_err(fail)
    }
}

impl Held {
    /// Whether it may be sent all the same.
    fn judge(&self, same: bool, token: &TokenInfo, count_low: CountLow) -> Result<(), PinError> {
        let hold = |why: String| {
            Err(PinError::Held {
                why,
                wrong: token.user_pin_count_low() || matches!(self, Self::Refused { .. }),
            })
        };
        match self {
            Self::Refused { since, answer } => hold(format!(
                "the token refused it on {since} ({answer}), and nothing has changed since"
            )),
            Self::Pending { since } if !same => hold(format!(
                "it was sent on {since} and the answer was never seen, so the token may have refused it"
            )),
            // It was right once; it is wrong now if it was changed on the token.
            Self::Pending { since } if token.user_pin_count_low() => hold(format!(
                "it was sent on {since} and the answer was never seen, and the token says that a wrong PIN was given since its last login (CKF_USER_PIN_COUNT_LOW)"
            )),
            Self::Pending { since } => match count_low {
                CountLow::Reported => Ok(()),
                CountLow::Unknown => hold(format!(
                    "it was sent on {since} and the answer was never seen; it was right before, but the profile does not say that this token shows a wrong PIN (login.pin_count_low)"
                )),
            },
        }
    }
}

impl Book {
    /// What is known of that generation, taken out.
    fn take(&mut self, change: &str) -> Known {
        match self
            .generations
            .iter()
            .position(|known| known.change == change)
        {
            Some(place) => self.generations.remove(place),
            None => Known {
                change: change.to_owned(),
                accepted: None,
                held: None,
            },
        }
    }

    fn put(&mut self, known: Known) {
        self.generations.push(known);
        let surplus = self.generations.len().saturating_sub(REMEMBERED);
        self.generations.drain(..surplus);
    }
}

/// What the answer to `C_Login` says of the PIN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// It was right.
    Accepted,
    /// It was wrong, or it cannot be used as it is.
    Refused,
    /// It was not looked at.
    NotTried,
    /// That cannot be known: as if nobody had seen the answer.
    Untold,
}

impl Verdict {
    fn of(outcome: Result<(), CallError>, pad: bool) -> Self {
        let error = match outcome {
            Ok(()) => return Self::Accepted,
            Err(error) => error,
        };
        match error.rv {
            // Before the token looks at a PIN (PKCS#11 v2.40, 5.1 and 5.6).
            ck::CKR_USER_ALREADY_LOGGED_IN
            | ck::CKR_USER_ANOTHER_ALREADY_LOGGED_IN
            | ck::CKR_USER_TOO_MANY_TYPES
            | ck::CKR_USER_TYPE_INVALID
            | ck::CKR_SESSION_HANDLE_INVALID
            | ck::CKR_SESSION_READ_ONLY_EXISTS
            | ck::CKR_CRYPTOKI_NOT_INITIALIZED
            | ck::CKR_FUNCTION_NOT_SUPPORTED => Self::NotTried,
            ck::CKR_PIN_INCORRECT
            | ck::CKR_PIN_INVALID
            | ck::CKR_PIN_LEN_RANGE
            | ck::CKR_PIN_EXPIRED
            | ck::CKR_PIN_LOCKED
            | ck::CKR_PIN_TOO_WEAK
            | ck::CKR_USER_PIN_NOT_INITIALIZED => Self::Refused,
            // A vendor's own code may well be his word for a wrong PIN.
            rv if rv >= ck::CKR_VENDOR_DEFINED => Self::Refused,
            // The fault table, or the profile's own rules, say that it is the operator's.
            _ if error.class == FaultClass::Operator => Self::Refused,
            // Nobody was at the pad, or he pressed the red key: it must not ask again by itself.
            _ if pad => Self::Refused,
            _ => Self::Untold,
        }
    }
}

/// One login that the ledger knows of. Dropped without [`Login::end`] it
/// stays pending.
#[derive(Debug)]
pub struct Login {
    leader: Leader,
    book: Book,
    before: Known,
    generation: Generation,
}

impl Login {
    /// Writes down how the login ended; `pad` where no PIN was sent, because
    /// the token asked for it itself. Where the answer does not tell whether
    /// the PIN was right, it stays pending.
    ///
    /// # Errors
    /// The ledger cannot be written.
    pub fn end(mut self, outcome: Result<(), CallError>, pad: bool) -> Result<(), PinError> {
        let mut known = self.book.take(&self.generation.change);
        match Verdict::of(outcome, pad) {
            Verdict::Accepted => {
                known.accepted = Some(self.generation.content.clone());
                known.held = None;
            }
            Verdict::Refused => {
                known.accepted = None;
                known.held = Some(Held::Refused {
                    since: now(),
                    answer: outcome
                        .err()
                        .map_or_else(String::new, |error| ckr_name(error.rv)),
                });
            }
            Verdict::NotTried => known = self.before.clone(),
            Verdict::Untold => return Ok(()),
        }
        self.book.put(known);
        self.write()
    }

    fn write(&self) -> Result<(), PinError> {
        self.leader.write(&self.book)
    }
}

fn now() -> String {
    OffsetDateTime::now_utc()
        .replace_millisecond(0)
        .ok()
        .and_then(|now| now.format(&Rfc3339).ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests;
