//! Why a drive did not do what it was asked.

use super::Asked;
use crate::scsi::{Completion, TransportError};
use crate::t10::{PageError, Sense};

/// Each names the drive, the command and its page, and says what to do where that is known.
#[derive(Debug, thiserror::Error)]
pub enum DriveError {
    /// The command did not reach it, or its end is not known.
    #[error("{source}, while asked for {asked}")]
    Transport {
        /// The command.
        asked: Asked,
        /// The cause.
        source: TransportError,
    },
    /// It refused, and said why.
    #[error(
        "{device} refused {asked}: {sense}{}{}",
        if *deferred { ", of an earlier command" } else { "" },
        advice(sense)
    )]
    Refused {
        /// The drive.
        device: String,
        /// The command.
        asked: Asked,
        /// What it said.
        sense: Sense,
        /// The sense data is of an earlier command; this one was not carried out.
        deferred: bool,
    },
    /// Something had changed since the last command, so one that changes something was not
    /// carried out. Look anew, then decide anew.
    #[error(
        "{device} has not carried out {asked}, as something has changed: {sense}{}",
        advice(sense)
    )]
    Attention {
        /// The drive.
        device: String,
        /// The command.
        asked: Asked,
        /// What has changed.
        sense: Sense,
    },
    /// Unit attentions without end.
    #[error(
        "{device} answered {asked} with {count} unit attentions in a row, the last of them: \
         {sense}; switch the drive off and on, or look who else uses it"
    )]
    Attentions {
        /// The drive.
        device: String,
        /// The command.
        asked: Asked,
        /// How many came.
        count: usize,
        /// The last of them.
        sense: Sense,
    },
    /// Another end than GOOD and CHECK CONDITION.
    #[error("{device} did not carry out {asked}: {}", status_word(*status))]
    Status {
        /// The drive.
        device: String,
        /// The command.
        asked: Asked,
        /// SAM-5 status code.
        status: u8,
    },
    /// CHECK CONDITION with sense data that says nothing.
    #[error("{device} refused {asked}, and its reason cannot be read: {source}")]
    Sense {
        /// The drive.
        device: String,
        /// The command.
        asked: Asked,
        /// What is wrong with the sense data.
        source: PageError,
    },
    /// It answered with something else.
    #[error("{device} gave an answer to {asked} that is none: {source}")]
    Page {
        /// The drive.
        device: String,
        /// The command.
        asked: Asked,
        /// What is wrong with the answer.
        source: PageError,
    },
    /// Its answer is longer than any that makes sense.
    #[error("{device} has {got} bytes to say to {asked}; at most {limit} are taken")]
    TooLong {
        /// The drive.
        device: String,
        /// The command.
        asked: Asked,
        /// The length that it announced, in bytes.
        got: usize,
        /// The limit, in bytes.
        limit: usize,
    },
    /// We were given something that is no such page; nothing was sent.
    #[error("nothing was sent to {device}: what {asked} should carry is no such page: {source}")]
    Unsendable {
        /// The drive.
        device: String,
        /// The command.
        asked: Asked,
        /// What is wrong with it.
        source: PageError,
    },
}

impl DriveError {
    /// The sense data, where the drive gave some that could be read.
    pub const fn sense(&self) -> Option<Sense> {
        match self {
            Self::Refused { sense, .. }
            | Self::Attention { sense, .. }
            | Self::Attentions { sense, .. } => Some(*sense),
            Self::Transport { .. }
            | Self::Status { .. }
            | Self::Sense { .. }
            | Self::Page { .. }
            | Self::TooLong { .. }
            | Self::Unsendable { .. } => None,
        }
    }

    /// The drive does not have the command or the page.
    pub fn is_unsupported(&self) -> bool {
        matches!(self, Self::Refused { sense, deferred: false, .. } if sense.is_unsupported())
    }

    /// A library, a manager or IBM's own key path has the encryption of this drive, so a host
    /// cannot set keys.
    pub fn is_managed_elsewhere(&self) -> bool {
        self.sense()
            .is_some_and(|sense| sense.is_managed_elsewhere())
    }

    /// It may have been carried out, but nobody knows.
    pub const fn is_unknown(&self) -> bool {
        matches!(self, Self::Transport { .. })
    }
}

fn advice(sense: &Sense) -> String {
    sense
        .advice()
        .map_or_else(String::new, |advice| format!("; {advice}"))
}

fn status_word(status: u8) -> String {
    match status {
        Completion::BUSY => "it stays busy; try again later".to_owned(),
        Completion::TASK_SET_FULL => {
            "it has no room for another command; try again later".to_owned()
        }
        Completion::RESERVATION_CONFLICT => {
            "another host or program has it reserved (sg_persist shows who)".to_owned()
        }
        0x30 => "it needs its contingent allegiance cleared (ACA ACTIVE)".to_owned(),
        0x40 => "the command was aborted (TASK ABORTED)".to_owned(),
        status => format!("status {status:02X}h"),
    }
}
