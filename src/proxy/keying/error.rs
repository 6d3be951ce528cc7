//! Why a drive is not taken over, and why a job does not get its tape.

use super::history::HistoryError;
use super::protect::Guard;
use super::seams::{HoldError, KeysError};
use crate::drive::DriveSerial;
use crate::key::DataKeyId;
use crate::proxy::JobError;
use crate::scsi::DriveError;
use crate::volser::Volser;

/// Why a drive is not in this host's hands.
#[derive(Debug, thiserror::Error)]
pub enum TakeOverError {
    /// Somebody else uses it. Nothing was sent to it.
    #[error("{0}; it is taken over as soon as that can be done")]
    Held(#[from] HoldError),
    /// It cannot be used. It is held all the same, but where another drive is in its place.
    #[error(transparent)]
    Refused(JobRefused),
}

impl From<JobRefused> for TakeOverError {
    fn from(refused: JobRefused) -> Self {
        match refused {
            JobRefused::Held(error) => Self::Held(error),
            refused => Self::Refused(refused),
        }
    }
}

/// Why a job does not get its tape. The drive refuses to write then, as before, but for
/// [`JobRefused::Unprotected`].
#[derive(Debug, thiserror::Error)]
pub enum JobRefused {
    /// The tape device is not to be had.
    #[error(transparent)]
    Held(#[from] HoldError),
    /// The drive does not do what it is told, or is gone.
    #[error(transparent)]
    Drive(Box<DriveError>),
    /// There is no cartridge.
    #[error("{drive} has no cartridge: load {volser} and start the job again")]
    Empty {
        /// The drive.
        drive: String,
        /// The cartridge.
        volser: Volser,
    },
    /// The cartridge is not ready in time.
    #[error("{drive} is not ready after {seconds} s: look whether its cartridge is loading")]
    NotReady {
        /// The drive.
        drive: String,
        /// How long it was waited for.
        seconds: u64,
    },
    /// Unit attentions without end.
    #[error(
        "{drive} reports one unit attention after another ({count} of them, the last: {last}): it is \
         broken, or being reset all the time"
    )]
    Attentions {
        /// The drive.
        drive: String,
        /// How many.
        count: usize,
        /// The last.
        last: String,
    },
    /// Something happened to the drive or its cartridge meanwhile.
    #[error("{drive}: {what}, while it was being keyed. Nothing was written; start the job again")]
    Disturbed {
        /// The drive.
        drive: String,
        /// The unit attentions.
        what: String,
    },
    /// Another drive than the host's file means.
    #[error("{drive} is drive {got}, and the host's file says {expected}: mend its device there")]
    OtherDrive {
        /// The device.
        drive: String,
        /// What the file says.
        expected: DriveSerial,
        /// What the drive says.
        got: String,
    },
    /// A job has it already.
    #[error("drive {drive} has a job: {job}")]
    InUse {
        /// The drive.
        drive: DriveSerial,
        /// The job.
        job: String,
    },
    /// There is no job that could be ended.
    #[error("drive {drive} has no job")]
    NoJob {
        /// The drive.
        drive: DriveSerial,
    },
    /// This host cannot key it.
    #[error("drive {drive} cannot be keyed from this host: {why}")]
    Unfit {
        /// The drive.
        drive: DriveSerial,
        /// Why, and the way out.
        why: Unfit,
    },
    /// It would write in clear after a reset.
    #[error(
        "{drive} {}; nothing but the job's own errors would keep blocks in clear from a tape after a \
         reset. To use it all the same set unprotected = true for it in the host's file",
        match guard {
            Guard::None => "has no software write protection (mode page 10h, SWP)",
            Guard::CurrentOnly | Guard::Saved => "forgets its software write protection in a reset (SWP is not saved)",
        }
    )]
    Unprotectable {
        /// The drive.
        drive: String,
        /// What it has.
        guard: Guard,
    },
    /// It says that it did something, and shows something else.
    #[error("{drive} does not tell the truth: {what}. It gets no job; have it looked at")]
    Lies {
        /// The drive.
        drive: String,
        /// What was seen.
        what: String,
    },
    /// It rewound, and is not at load point.
    #[error("{drive} was rewound and is at object {object}, not at load point")]
    NotAtLoadPoint {
        /// The drive.
        drive: String,
        /// Where it is.
        object: u64,
    },
    /// Another cartridge than the job's.
    #[error("the cartridge in {drive} has barcode {barcode}, and the job wants {volser}")]
    OtherVolume {
        /// The drive.
        drive: String,
        /// The barcode.
        barcode: String,
        /// The job's.
        volser: Volser,
    },
    /// The host's file does not have what the job names.
    #[error(transparent)]
    Policy(#[from] JobError),
    /// Nobody has said that it may be in clear.
    #[error(
        "this job would write {volser} in clear because it names no data class: name one that \
         encrypts, or, to write in clear, one that says so (--data-class)"
    )]
    ClearByOmission {
        /// The cartridge.
        volser: Volser,
    },
    /// An encrypting job that would add in clear.
    #[error(
        "{volser} is in clear, so what this job adds would be too: write a new cartridge \
         (DISP=NEW), name a data class in clear, or set append_in_clear = \"allow\" in the host's file"
    )]
    AppendInClear {
        /// The cartridge.
        volser: Volser,
    },
    /// Nothing to add to.
    #[error("{volser} is blank, so there is nothing to add to: DISP=NEW starts it")]
    AppendToBlank {
        /// The cartridge.
        volser: Volser,
    },
    /// Nothing is known of what it holds.
    #[error(
        "{drive} does not tell whether {volser} is encrypted ({why}), so nothing is added to it"
    )]
    Unknown {
        /// The drive.
        drive: String,
        /// The cartridge.
        volser: Volser,
        /// What the drive says.
        why: String,
    },
    /// Its blocks name no key that could be asked for.
    #[error(
        "{volser} is encrypted, and {why}: it was not written through this key server, or its key's \
         name is lost"
    )]
    Nameless {
        /// The cartridge.
        volser: Volser,
        /// What is seen.
        why: String,
    },
    /// No key.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The server's answer is not what was asked for.
    #[error("the key server's answer cannot be used: {0}")]
    Answer(String),
    /// The key that was had does not open the cartridge.
    #[error(
        "{drive} has data key {dki} and still cannot decrypt the first encrypted block of {volser}: \
         it is another key, and nothing is written under it"
    )]
    WrongKey {
        /// The drive.
        drive: String,
        /// The key.
        dki: DataKeyId,
        /// The cartridge.
        volser: Volser,
    },
    /// The key that was had has the right name, and does not decrypt.
    #[error(
        "the first encrypted block of {volser} does not open under data key {dki}, so nothing is added: {why}"
    )]
    Undecryptable {
        /// The key.
        dki: DataKeyId,
        /// The cartridge.
        volser: Volser,
        /// What the drive says.
        why: Box<DriveError>,
    },
    /// A data key that was not made here.
    #[error("data key {dki} of {volser} was not made here: it may be read, and nothing is added")]
    NotIssued {
        /// The key.
        dki: DataKeyId,
        /// The cartridge.
        volser: Volser,
    },
    /// The history.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// It failed, and so did what was to set things right again.
    #[error("{why}; and then: {}", trouble.join("; "))]
    Then {
        /// The first failure.
        why: Box<Self>,
        /// What followed.
        trouble: Vec<String>,
    },
    /// It failed, and so did the write protection that was to follow: the drive may be able to write.
    #[error("{why}{}", may_write(trouble.as_deref()))]
    Unprotected {
        /// The first failure.
        why: Box<Self>,
        /// Why it is not protected, where that is something else.
        trouble: Option<String>,
    },
}

fn may_write(trouble: Option<&str>) -> String {
    trouble.map_or_else(String::new, |trouble| {
        format!(
            "; and the drive may be able to write until it is protected again, which is tried all the \
             time: {trouble}"
        )
    })
}

impl From<DriveError> for JobRefused {
    fn from(error: DriveError) -> Self {
        Self::Drive(Box::new(error))
    }
}

impl JobRefused {
    /// Whether the drive is not safe in this host's hands any more, so that it is to be taken over
    /// anew: somebody else has it, another drive is in its place, or it is not known to be protected.
    pub(super) fn means_not_held(&self) -> bool {
        match self {
            Self::Held(_) | Self::OtherDrive { .. } | Self::Unprotected { .. } => true,
            Self::Then { why, .. } => why.means_not_held(),
            _ => false,
        }
    }

    /// This, and then the drive could not be protected, or its cartridge not be let out.
    pub(super) fn unprotected(self, error: &Self) -> Self {
        let (told, trouble) = (self.to_string(), error.to_string());
        Self::Unprotected {
            why: Box::new(self),
            trouble: (told != trouble).then_some(trouble),
        }
    }

    /// This, and what else failed after it.
    pub(super) fn then(self, trouble: Vec<String>) -> Self {
        if trouble.is_empty() {
            return self;
        }
        Self::Then {
            why: Box::new(self),
            trouble,
        }
    }
}

/// Why this host cannot key a drive, and the way out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// Somebody else does.
    #[error(
        "its encryption is managed by {by}. Set its encryption method to application-managed (in \
         the library's operator panel, or with the vendor's tool), or set path = \"out-of-band\" for \
         it in the host's file"
    )]
    Managed {
        /// Who.
        by: String,
    },
    /// It does not encrypt.
    #[error(
        "it offers no AES-256-GCM now; it does with an LTO-4 or newer cartridge, if it encrypts at all"
    )]
    NoAlgorithm,
    /// It encrypts, and not with what is in it.
    #[error(
        "it cannot encrypt on the cartridge that is in it (AVFMV), such as one of LTO-3 or older: \
         load another, or name a data class in clear"
    )]
    NotThisCartridge,
    /// Key format 00h, and nobody has said that it may be used.
    #[error(
        "it takes data keys in clear only (KEY FORMAT 00h). Where its data keys may pass this host, \
         set plain_key = true for it in the host's file, and give it form t10-00h at the key server"
    )]
    PlainOnly,
    /// Page 0031h says something else each time.
    #[error(
        "its wrapping key (page 0031h) changes from one reading to the next; have it looked at"
    )]
    ChangingKey,
}
