//! What is told of a drive and a job.

use serde::{Deserialize, Serialize};

use super::home::Home;
use super::protect::Guard;
use crate::drive::DriveSerial;
use crate::key::{DataKeyId, KeyLabel};
use crate::volser::Volser;

/// A drive that is in this host's hands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakenOver {
    /// The drive.
    pub drive: DriveSerial,
    /// How well it refuses to write.
    pub guard: Guard,
    /// The data key that it has already: a DKi, or hexadecimal digits where it is none. It is kept.
    pub keyed: Option<String>,
    /// Why it gets no job, where that is so.
    pub unfit: Option<String>,
}

/// A job that has its tape.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// Its number on this drive, since the proxy began.
    pub job: u64,
    /// The drive.
    pub drive: DriveSerial,
    /// What to open.
    pub tape: String,
    /// The cartridge.
    pub volser: Volser,
    /// Whether its barcode says so too; none where it has none.
    pub barcode: Option<String>,
    /// Whether it may be written.
    pub writes: bool,
    /// Its key; none where it is read or written in clear.
    pub key: Option<Keyed>,
    /// What decided, in the order in which it was looked at.
    pub why: Vec<String>,
    /// What an operator should know.
    pub warnings: Vec<String>,
}

/// The key that a drive has for a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keyed {
    /// The data key.
    pub dki: DataKeyId,
    /// Whether it is a new one.
    pub created: bool,
    /// The labels of its KEKs here, where they are known.
    pub labels: Vec<KeyLabel>,
    /// How it travelled: `00h` is in clear.
    pub key_format: String,
    /// KEY INSTANCE COUNTER of the drive since.
    pub key_instance: u32,
    /// Where the EEDKs are.
    pub eedks: Home,
    /// The request, by which the server's records name it.
    pub request: String,
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Closed {
    /// The drive.
    pub drive: DriveSerial,
    /// The cartridge.
    pub volser: Volser,
    /// What is wrong, worst first.
    pub alarms: Vec<Alarm>,
    /// Blocks in clear.
    pub clear_blocks: ClearBlocks,
    /// What an operator should know.
    pub warnings: Vec<String>,
    /// Whether the cartridge was put out.
    pub unloaded: bool,
}

/// What the look afterwards says of blocks in clear.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "found", content = "why")]
pub enum ClearBlocks {
    /// The job wrote nothing, or was meant to write in clear.
    NotLookedFor,
    /// There are none: by the drive's own count, and by the block at load point.
    None,
    /// The block at load point is encrypted; the drive does not count the others.
    NoneAtLoadPoint,
    /// There are, see the alarm.
    Some,
    /// It cannot be told.
    Unknown(String),
}

/// What must not be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case", tag = "alarm")]
pub enum Alarm {
    /// A block in clear on a cartridge that is encrypted.
    #[error("block {block} of {volser} is in clear")]
    ClearBlock {
        /// The cartridge.
        volser: Volser,
        /// Its number.
        block: u64,
    },
    /// Another key than the one that was set.
    #[error("the drive's key changed during the job: {what}")]
    KeyChanged {
        /// What page 0020h says.
        what: String,
    },
    /// The first block is not under the job's key.
    #[error("the block at load point of {volser} is not under the job's data key {dki}: {what}")]
    OtherKey {
        /// The cartridge.
        volser: Volser,
        /// The job's key.
        dki: DataKeyId,
        /// What the block says.
        what: String,
    },
    /// It was let out all the same, and the drive could write whatever came in.
    #[error(
        "another cartridge is in the drive than the job's, {volser}, and may have been written in clear: {what}"
    )]
    OtherCartridge {
        /// The job's cartridge.
        volser: Volser,
        /// What is in the drive.
        what: String,
    },
    /// The drive may write, and no job has it.
    #[error("the drive is not write protected: {why}")]
    Unprotected {
        /// Why.
        why: String,
    },
    /// The job's processes still have it open.
    #[error("the tape device is still open in another process: {why}")]
    StillOpen {
        /// Why it is not held.
        why: String,
    },
    /// The look afterwards failed.
    #[error("the cartridge could not be looked at: {why}")]
    NotLookedAt {
        /// Why.
        why: String,
    },
    /// It was put out, and the drive still has its key.
    #[error("the cartridge is out, and the drive would not give up its key: {why}")]
    KeyKept {
        /// Why.
        why: String,
    },
}
