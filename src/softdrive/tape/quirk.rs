//! Misbehaviour, so that whoever talks to drives can be tested against bad ones.

use std::{fmt, str::FromStr};

/// What a drive does wrong.
///
/// Written as a word and perhaps a number: `hang b5`, `reset-at-write 3`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Quirk {
    /// `claims-encryption`: takes a key, says on page 0020h that it encrypts, and writes in clear.
    ClaimsEncryption,
    /// `ignores-key`: takes a key with GOOD, and stays as it was.
    IgnoresKey,
    /// `other-dki`: page 0020h names another data key than the one that was given.
    OtherDki,
    /// `counter-restarts`: the key instance counter is always 1 while there is a key.
    CounterRestarts,
    /// `long-pages`: length fields of SPIN pages say 16 bytes more than there are.
    LongPages,
    /// `short-pages`: length fields of SPIN pages say 1 byte less than there are.
    ShortPages,
    /// `changing-key`: page 0031h is another key at every reading.
    ChangingPublicKey,
    /// `sense-flood`: every command but INQUIRY ends with 04/44/00.
    SenseFlood,
    /// `attention-flood`: every command but INQUIRY and REQUEST SENSE ends with 06/28/00.
    AttentionFlood,
    /// `no-attributes`: has no cartridge memory: READ and WRITE ATTRIBUTE end with 05/20/00.
    NoAttributes,
    /// `memory-full`: WRITE ATTRIBUTE ends with 05/55/06.
    MemoryFull,
    /// `saves-nothing`: no mode page can be saved: SP is refused, saved values are 05/39/00.
    SavesNothing,
    /// `busy`: every command ends with status BUSY.
    Busy,
    /// `hang OPERATION`: never answers this operation code, in hexadecimal.
    Hang(u8),
    /// `reset-at-write N`: a logical unit reset comes before the N-th WRITE from now, and then no
    /// more.
    ResetAtWrite(u32),
    /// `unload-at-write N`: the cartridge is ejected before the N-th WRITE from now.
    UnloadAtWrite(u32),
}

impl fmt::Display for Quirk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hang(operation) => write!(f, "hang {operation:02x}"),
            Self::ResetAtWrite(count) => write!(f, "reset-at-write {count}"),
            Self::UnloadAtWrite(count) => write!(f, "unload-at-write {count}"),
            plain => {
                let name = PLAIN
                    .iter()
                    .find(|(_, quirk)| quirk == plain)
                    .map_or("", |(name, _)| name);
                f.write_str(name)
            }
        }
    }
}

impl FromStr for Quirk {
    type Err = QuirkError;

    fn from_str(given: &str) -> Result<Self, QuirkError> {
        let unknown = || QuirkError {
            got: given.to_owned(),
        };
        let (name, number) = given.split_once(' ').unwrap_or((given, ""));
        let count = || number.parse().map_err(|_| unknown());
        match name {
            "hang" => u8::from_str_radix(number, 16)
                .map(Self::Hang)
                .map_err(|_| unknown()),
            "reset-at-write" => count().map(Self::ResetAtWrite),
            "unload-at-write" => count().map(Self::UnloadAtWrite),
            _ => PLAIN
                .iter()
                .find(|(plain, _)| *plain == given)
                .map(|(_, quirk)| *quirk)
                .ok_or_else(unknown),
        }
    }
}

/// A text that is no misbehaviour.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected a misbehaviour of a drive, such as \"claims-encryption\" or \"hang b5\", got {got:?}"
)]
pub struct QuirkError {
    /// What was given.
    pub got: String,
}

const PLAIN: [(&str, Quirk); 13] = [
    ("claims-encryption", Quirk::ClaimsEncryption),
    ("ignores-key", Quirk::IgnoresKey),
    ("other-dki", Quirk::OtherDki),
    ("counter-restarts", Quirk::CounterRestarts),
    ("long-pages", Quirk::LongPages),
    ("short-pages", Quirk::ShortPages),
    ("changing-key", Quirk::ChangingPublicKey),
    ("sense-flood", Quirk::SenseFlood),
    ("attention-flood", Quirk::AttentionFlood),
    ("no-attributes", Quirk::NoAttributes),
    ("memory-full", Quirk::MemoryFull),
    ("saves-nothing", Quirk::SavesNothing),
    ("busy", Quirk::Busy),
];
