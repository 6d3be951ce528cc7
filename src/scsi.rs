//! The seam between whoever sends SCSI commands and whoever carries them out.
//!
//! A [`Transport`] takes a command to a logical unit: `/dev/sgN` by SG_IO, a Unix socket that carries
//! CDBs, or the software drive itself. What it brings back is what the unit said; that the unit could
//! not be asked at all is a [`TransportError`].
//!
//! ```text
//! Drive<T>   typed commands of a tape drive; every answer is checked
//!   Sg         /dev/sgN, by SG_IO
//!   Channel    a Unix socket that carries CDBs; `channel::serve` is its other end
//! Host       which tape drives this host has, from sysfs, and who has one open
//! Survey     what a drive says of itself, and what ekm can do with it
//! ```

pub mod channel;
pub mod drive;
pub mod local;
#[cfg(test)]
mod scripted;
pub mod sg;
pub mod survey;

pub use channel::Channel;
pub use drive::{Drive, DriveError};
pub use local::Host;
pub use sg::Sg;
pub use survey::Survey;

use std::time::Duration;

/// The data phase of a command.
#[derive(Debug)]
pub enum Data<'a> {
    /// There is none.
    None,
    /// From the unit, into this buffer at most.
    In(&'a mut [u8]),
    /// To the unit.
    Out(&'a [u8]),
}

impl Data<'_> {
    /// The same again, for a command that is repeated.
    pub fn reborrow(&mut self) -> Data<'_> {
        match self {
            Self::None => Data::None,
            Self::In(buffer) => Data::In(buffer),
            Self::Out(data) => Data::Out(data),
        }
    }

    /// Its length, in bytes.
    pub fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::In(buffer) => buffer.len(),
            Self::Out(data) => data.len(),
        }
    }

    /// Whether there is none, or none of any length.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A way to one logical unit.
pub trait Transport: Send {
    /// Carries out one command and waits for its end.
    ///
    /// A CHECK CONDITION is a [`Completion`], not an error.
    ///
    /// # Errors
    /// The command did not reach the unit, or its end is not known: a time-out, a transport that is gone.
    fn execute(
        &mut self,
        cdb: &[u8],
        data: Data<'_>,
        limit: Duration,
    ) -> Result<Completion, TransportError>;

    /// What it is, for messages: `/dev/sg3`.
    fn name(&self) -> &str;
}

impl<T: Transport + ?Sized> Transport for &mut T {
    fn execute(
        &mut self,
        cdb: &[u8],
        data: Data<'_>,
        limit: Duration,
    ) -> Result<Completion, TransportError> {
        (**self).execute(cdb, data, limit)
    }

    fn name(&self) -> &str {
        (**self).name()
    }
}

impl<T: Transport + ?Sized> Transport for Box<T> {
    fn execute(
        &mut self,
        cdb: &[u8],
        data: Data<'_>,
        limit: Duration,
    ) -> Result<Completion, TransportError> {
        (**self).execute(cdb, data, limit)
    }

    fn name(&self) -> &str {
        (**self).name()
    }
}

/// How a unit ended a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    /// SAM-5 status code: 00h GOOD, 02h CHECK CONDITION, 08h BUSY, 18h RESERVATION CONFLICT …
    pub status: u8,
    /// Bytes of the data phase that were transferred.
    pub transferred: usize,
    /// Sense data as it came, empty where there is none.
    pub sense: Vec<u8>,
}

impl Completion {
    /// SAM-5 GOOD.
    pub const GOOD: u8 = 0x00;
    /// SAM-5 CHECK CONDITION: sense data says why.
    pub const CHECK_CONDITION: u8 = 0x02;
    /// SAM-5 BUSY.
    pub const BUSY: u8 = 0x08;
    /// SAM-5 RESERVATION CONFLICT.
    pub const RESERVATION_CONFLICT: u8 = 0x18;
    /// SAM-5 TASK SET FULL.
    pub const TASK_SET_FULL: u8 = 0x28;
    /// The most sense data that SPC-4 has, in bytes.
    pub const MAX_SENSE: usize = 252;
}

/// Why the end of a command is not known.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// No answer within the time; the unit may have carried it out.
    #[error("{device} did not answer within {seconds} s")]
    TimedOut {
        /// The transport's name.
        device: String,
        /// How long it was waited for.
        seconds: u64,
    },
    /// The way to the unit.
    #[error("cannot send a command to {device}: {source}")]
    Io {
        /// The transport's name.
        device: String,
        /// The cause.
        source: std::io::Error,
    },
    /// The adapter or the kernel ended the command.
    #[error("{device}: the command was ended on its way ({reason})")]
    Ended {
        /// The transport's name.
        device: String,
        /// Host or driver status in words.
        reason: String,
    },
    /// Another unit is there by now. The command was not sent.
    #[error(
        "{device} is drive {got} now, expected {expected}: nothing is sent to it. Where devices have \
         changed their names, mend its device in the host's file, or leave it out there"
    )]
    OtherDrive {
        /// The transport's name.
        device: String,
        /// The serial that it must have.
        expected: String,
        /// What the unit says.
        got: String,
    },
}
