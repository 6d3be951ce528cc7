//! PINs: where they come from, and the guard that never sends a refused one again.
//!
//! A token locks after a few wrong PINs, and a daemon that restarts in a loop
//! gets there in seconds. So before `C_Login` a [`ledger`] says that a login
//! is pending, and afterwards how it ended; whoever leads a login holds the
//! ledger's lock until it has. No PIN, and nothing that is derived from one,
//! is in it: only the token's serial and the [`Generation`] of the source.
//!
//! The server never reads a PIN. The bridge reads it from its [`PinSource`]
//! itself, or finds it in a sealed file without a name ([`Handed`]) that the
//! server passes on unread.

mod command;
mod handed;
pub mod ledger;
mod source;

use std::path::PathBuf;

use secrecy::SecretString;
use serde::{Deserialize, Serialize};

pub use handed::{EnvironmentPins, Handed};
pub use source::{Generation, PinSource, Sourced, mended};

/// Longest PIN, bytes.
const MAX_PIN: usize = 255;

/// A PIN source, or a PIN that an operator typed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Pin {
    /// To be read by the bridge itself.
    Source(PinSource),
    /// Typed for one command; crosses to the bridge on its socket.
    Given(Typed),
}

/// A PIN that an operator has typed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Typed {
    #[serde(with = "given")]
    pin: SecretString,
    // Of the typing, not of the PIN: whoever types again answers for it.
    id: uuid::Uuid,
}

impl From<SecretString> for Typed {
    fn from(pin: SecretString) -> Self {
        Self {
            pin,
            id: uuid::Uuid::new_v4(),
        }
    }
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
    /// The variable or credential is not there, or no operator has given the PIN yet.
    #[error("{what}")]
    Missing {
        /// What is missing, and what to do.
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
    /// The command that prints the PIN did not.
    #[error("the PIN command {program} {problem}; what it said is in the log")]
    Command {
        /// The program.
        program: String,
        /// How it failed.
        problem: String,
    },
    /// The guard holds the PIN back.
    #[error("the PIN is held back: {why}")]
    Held {
        /// Why.
        why: String,
        /// Whether the token refused it, or says that a wrong one was given: not where nobody
        /// saw the answer.
        wrong: bool,
    },
    /// The token itself warns.
    #[error("no login was tried: {what}")]
    Token {
        /// What its flags say.
        what: &'static str,
    },
    /// The token itself says that wrong PINs have used up its tries, all or all but one.
    #[error("no login was tried: {what}")]
    Spent {
        /// What its flags say.
        what: &'static str,
    },
    /// Another process is logging in to the token, and does not come to an end.
    #[error(
        "process {leader} has been logging in to this token for {seconds} s; no login was tried beside it"
    )]
    Led {
        /// The process id, as it was written by that process.
        leader: String,
        /// How long it was waited for, seconds.
        seconds: u64,
    },
    /// The ledger cannot be kept, so no login is tried.
    #[error("cannot keep the login ledger {path}: {source}; no login was tried")]
    Ledger {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
}

impl PinError {
    /// The same said of a key file's password.
    #[must_use]
    pub fn of_password(&self) -> String {
        match self {
            Self::Read { path, source } => {
                format!("cannot read the password from {}: {source}", path.display())
            }
            Self::Exposed { path, mode } => format!(
                "the password file {path} is readable by others (mode {mode:03o}); run: chmod 600 {path}",
                path = path.display()
            ),
            Self::Unusable { origin, problem } => {
                format!("the password from {origin} is {problem}")
            }
            Self::Command { program, problem } => {
                format!("the password command {program} {problem}; what it said is in the log")
            }
            Self::Missing { .. }
            | Self::Held { .. }
            | Self::Token { .. }
            | Self::Spent { .. }
            | Self::Led { .. }
            | Self::Ledger { .. } => self.to_string(),
        }
    }

    /// Whether it may mend itself: no PIN was sent, and trying again later harms nothing.
    #[must_use]
    pub const fn passes(&self) -> bool {
        match self {
            Self::Command { .. } | Self::Led { .. } | Self::Ledger { .. } => true,
            Self::Read { .. }
            | Self::Exposed { .. }
            | Self::Missing { .. }
            | Self::Unusable { .. }
            | Self::Held { .. }
            | Self::Spent { .. }
            | Self::Token { .. } => false,
        }
    }
}
