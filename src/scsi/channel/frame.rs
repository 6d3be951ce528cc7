//! The frames on the socket.
//!
//! ```text
//! request                                      answer
//! byte 0-3    "EKMQ"                           byte 0-3    "EKMA"
//!      4      version, 01h                          4      version, 01h
//!      5      data phase: 00h none, 01h in,         5      outcome: 00h the unit ended it,
//!             02h out                                      01h no end in time, 02h no end: reason
//!      6      length of the CDB (c), 1 to 16        6      SCSI status
//!      7      00h                                   7      length of the text (t), 0 to 252
//!      8-11   tag                                   8-11   tag of the request
//!      12-15  length of the data (d)                12-15  bytes transferred (d)
//!      16-19  time limit, milliseconds              16-    text: sense data (00h), or the
//!      20-    CDB, c bytes                                 reason, UTF-8 (02h)
//!      20+c-  data, d bytes, for 02h                16+t-  data, d bytes, for data-in
//! ```
//!
//! Numbers are big-endian. One request at a time on a connection; its answer has the same tag. For
//! data-in, `d` of the request is how much the initiator takes, and the answer never has more.
//! Whoever gets a frame that breaks these rules closes the connection.

use std::time::Duration;

use crate::scsi::Completion;

/// The most data of one command, in bytes.
pub const MAX_DATA: usize = 4 * 1024 * 1024;

/// The longest time limit.
pub const MAX_LIMIT: Duration = Duration::from_secs(3600);

/// How long a frame may take on the socket, once it has begun.
pub const TRANSFER_TIME: Duration = Duration::from_secs(10);

/// Which way the data of a command goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// There is none.
    None,
    /// From the unit.
    In,
    /// To the unit.
    Out,
}

/// A request, without the data that follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    pub(super) tag: u32,
    pub(super) direction: Direction,
    cdb: [u8; MAX_CDB],
    cdb_len: u8,
    pub(super) data_len: usize,
    pub(super) limit: Duration,
}

impl Request {
    /// What is read first.
    pub const HEADER_LEN: usize = 20;

    /// A request.
    ///
    /// # Errors
    ///
    /// [`FrameError`] for a CDB or data of a length that cannot be carried.
    pub fn new(
        tag: u32,
        direction: Direction,
        cdb: &[u8],
        data_len: usize,
        limit: Duration,
    ) -> Result<Self, FrameError> {
        let mut padded = [0; MAX_CDB];
        let cdb_len = u8::try_from(cdb.len()).map_err(|_| FrameError::Cdb)?;
        match padded.get_mut(..cdb.len()) {
            Some(room) if cdb_len > 0 => room.copy_from_slice(cdb),
            _ => return Err(FrameError::Cdb),
        }
        if data_len > MAX_DATA {
            return Err(FrameError::Length);
        }
        Ok(Self {
            tag,
            direction,
            cdb: padded,
            cdb_len,
            data_len,
            limit: limit.min(MAX_LIMIT),
        })
    }

    /// The command.
    pub fn cdb(&self) -> &[u8] {
        self.cdb
            .get(..usize::from(self.cdb_len))
            .unwrap_or_default()
    }

    /// The header and the CDB.
    pub fn encode(&self) -> Vec<u8> {
        let mut frame = b"EKMQ".to_vec();
        let direction = match self.direction {
            Direction::None => 0,
            Direction::In => 1,
            Direction::Out => 2,
        };
        frame.extend([VERSION, direction, self.cdb_len, 0]);
        frame.extend(self.tag.to_be_bytes());
        frame.extend(
            u32::try_from(self.data_len)
                .unwrap_or(u32::MAX)
                .to_be_bytes(),
        );
        let limit = u32::try_from(self.limit.as_millis()).unwrap_or(u32::MAX);
        frame.extend(limit.to_be_bytes());
        frame.extend(self.cdb());
        frame
    }

    /// Reads the header; the CDB is then read into [`Self::cdb_mut`]. What it announces is within
    /// bounds.
    ///
    /// # Errors
    ///
    /// [`FrameError`] that names the rule.
    pub fn decode(header: &[u8; Self::HEADER_LEN]) -> Result<Self, FrameError> {
        let [
            m0,
            m1,
            m2,
            m3,
            version,
            direction,
            cdb_len,
            zero,
            t0,
            t1,
            t2,
            t3,
            d0,
            d1,
            d2,
            d3,
            l0,
            l1,
            l2,
            l3,
        ] = *header;
        if [m0, m1, m2, m3] != *b"EKMQ" {
            return Err(FrameError::Magic);
        }
        if version != VERSION {
            return Err(FrameError::Version { got: version });
        }
        let direction = match direction {
            0 => Direction::None,
            1 => Direction::In,
            2 => Direction::Out,
            got => return Err(FrameError::Code { got }),
        };
        if zero != 0 {
            return Err(FrameError::Code { got: zero });
        }
        if !(1..=MAX_CDB).contains(&usize::from(cdb_len)) {
            return Err(FrameError::Cdb);
        }
        let data_len = usize::try_from(u32::from_be_bytes([d0, d1, d2, d3])).unwrap_or(usize::MAX);
        if data_len > MAX_DATA || (direction == Direction::None && data_len != 0) {
            return Err(FrameError::Length);
        }
        let limit = Duration::from_millis(u32::from_be_bytes([l0, l1, l2, l3]).into());
        Ok(Self {
            tag: u32::from_be_bytes([t0, t1, t2, t3]),
            direction,
            cdb: [0; MAX_CDB],
            cdb_len,
            data_len,
            limit: limit.min(MAX_LIMIT),
        })
    }

    /// Where the CDB goes, in its length.
    pub fn cdb_mut(&mut self) -> &mut [u8] {
        self.cdb
            .get_mut(..usize::from(self.cdb_len))
            .unwrap_or_default()
    }
}

/// What comes back, without the data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The unit ended the command.
    Ended(Completion),
    /// It did not end in time.
    TimedOut,
    /// Its end is not known: why.
    Failed(String),
}

impl Answer {
    /// The header and the text. Sense data and reasons that are too long are cut.
    pub fn encode(&self, tag: u32) -> Vec<u8> {
        let (outcome, status, text, transferred): (u8, u8, &[u8], usize) = match self {
            Self::Ended(completion) => (
                0,
                completion.status,
                &completion.sense,
                completion.transferred,
            ),
            Self::TimedOut => (1, 0, &[], 0),
            Self::Failed(reason) => (2, 0, reason.as_bytes(), 0),
        };
        let text = text.get(..Completion::MAX_SENSE).unwrap_or(text);
        let mut frame = b"EKMA".to_vec();
        frame.extend([VERSION, outcome, status]);
        frame.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
        frame.extend(tag.to_be_bytes());
        frame.extend(u32::try_from(transferred).unwrap_or(u32::MAX).to_be_bytes());
        frame.extend(text);
        frame
    }
}

/// The first bytes of an answer.
#[derive(Clone, Copy, Debug)]
pub struct AnswerHeader {
    outcome: u8,
    status: u8,
    text_len: u8,
    transferred: usize,
}

impl AnswerHeader {
    /// How many they are.
    pub const LEN: usize = 16;

    /// Reads the header of the answer to the request with this tag and this much data.
    ///
    /// # Errors
    ///
    /// [`FrameError`] that names the rule.
    pub fn decode(header: &[u8; Self::LEN], tag: u32, data_len: usize) -> Result<Self, FrameError> {
        let [
            m0,
            m1,
            m2,
            m3,
            version,
            outcome,
            status,
            text_len,
            t0,
            t1,
            t2,
            t3,
            d0,
            d1,
            d2,
            d3,
        ] = *header;
        if [m0, m1, m2, m3] != *b"EKMA" {
            return Err(FrameError::Magic);
        }
        if version != VERSION {
            return Err(FrameError::Version { got: version });
        }
        if outcome > 2 {
            return Err(FrameError::Code { got: outcome });
        }
        if u32::from_be_bytes([t0, t1, t2, t3]) != tag {
            return Err(FrameError::Tag);
        }
        let transferred =
            usize::try_from(u32::from_be_bytes([d0, d1, d2, d3])).unwrap_or(usize::MAX);
        if transferred > data_len || usize::from(text_len) > Completion::MAX_SENSE {
            return Err(FrameError::Length);
        }
        Ok(Self {
            outcome,
            status,
            text_len,
            transferred,
        })
    }

    /// The length of the text that follows.
    pub fn text_len(&self) -> usize {
        self.text_len.into()
    }

    /// The length of the data that follows the text, for data-in.
    pub fn transferred(&self) -> usize {
        self.transferred
    }

    /// The answer.
    pub fn with_text(self, text: Vec<u8>) -> Answer {
        match self.outcome {
            0 => Answer::Ended(Completion {
                status: self.status,
                transferred: self.transferred,
                sense: text,
            }),
            1 => Answer::TimedOut,
            _ => Answer::Failed(
                String::from_utf8_lossy(&text)
                    .chars()
                    .map(|c| if c.is_control() { '?' } else { c })
                    .collect(),
            ),
        }
    }
}

/// A rule of the frames that was broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Not a frame of ours.
    #[error("the other end does not speak the SCSI channel's protocol")]
    Magic,
    /// A frame of another version.
    #[error("the other end speaks version {got} of the SCSI channel's protocol, not version 1")]
    Version {
        /// Its version.
        got: u8,
    },
    /// A code without a meaning.
    #[error("a frame has the unknown code {got:02X}h")]
    Code {
        /// The code.
        got: u8,
    },
    /// A CDB that is empty or longer than 16 bytes.
    #[error("a frame has a CDB that is not 1 to 16 bytes long")]
    Cdb,
    /// Data or text of a length that is not allowed.
    #[error("a frame has data of a length that it must not have (at most 4 MiB)")]
    Length,
    /// The answer to another request.
    #[error("an answer belongs to another request")]
    Tag,
}

const VERSION: u8 = 1;

/// SG_IO takes no longer ones without more ado, and no command of ours is longer.
const MAX_CDB: usize = 16;
