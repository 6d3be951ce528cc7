//! A tape drive: its commands as functions, its answers as types.
//!
//! A drive is not trusted to be a good one. Every length that it sends is held against what was
//! asked for, and nothing is asked for without an end:
//!
//! - A command that only reads is repeated after a unit attention, up to four times; the attentions
//!   are kept for whoever asks ([`Drive::take_attentions`]). A command that changes something is
//!   never repeated: a key must not go to the cartridge that came in meanwhile.
//! - BUSY is waited out for about a second and a half.
//! - Pages are read in two steps, four bytes and then exactly the length that these say. Firmware
//!   is known (IBM LTO-8 N4Q0) that refuses a longer allocation length, with 05/24/00.

mod asked;
mod blocks;
mod error;
mod identity;
mod memory;
mod motion;
mod protection;
mod security;
mod setting;

use std::time::Duration;

pub use asked::Asked;
pub use error::DriveError;
pub use identity::{NotReady, Readiness};
pub use protection::WriteProtection;
pub use setting::ModeValues;

use super::{Completion, Data, Transport};
use crate::t10::{PageError, Sense, SenseKey};

/// A drive at the other end of a transport.
#[derive(Debug)]
pub struct Drive<T> {
    transport: T,
    attentions: Vec<Sense>,
}

impl<T: Transport> Drive<T> {
    /// The drive that this transport leads to. Sends nothing.
    pub const fn new(transport: T) -> Self {
        Self {
            transport,
            attentions: Vec::new(),
        }
    }

    /// What the transport is called: `/dev/sg3`.
    pub fn name(&self) -> &str {
        self.transport.name()
    }

    /// The transport again.
    pub fn into_inner(self) -> T {
        self.transport
    }

    /// The unit attentions that came since this was last asked, oldest first; of very many the
    /// last ones.
    ///
    /// They are gone from the drive: 28/00 in here means that the tape driver does not hear of the
    /// new cartridge.
    pub fn take_attentions(&mut self) -> Vec<Sense> {
        std::mem::take(&mut self.attentions)
    }

    /// The same, without taking them.
    pub fn attentions(&self) -> &[Sense] {
        &self.attentions
    }

    /// Carries out one command; answers how many bytes were transferred.
    fn run(&mut self, command: &Command<'_>, mut data: Data<'_>) -> Result<usize, DriveError> {
        let Command {
            asked,
            cdb,
            limit,
            repeat,
        } = *command;
        let room = data.len();
        let mut attentions = 0;
        let mut pauses = BUSY_PAUSES.iter();
        loop {
            let completion = self
                .transport
                .execute(cdb, data.reborrow(), limit)
                .map_err(|source| DriveError::Transport { asked, source })?;
            let device = || self.transport.name().to_owned();
            match completion.status {
                Completion::GOOD => return Ok(completion.transferred.min(room)),
                Completion::CHECK_CONDITION => {}
                Completion::BUSY | Completion::TASK_SET_FULL => match pauses.next() {
                    Some(&pause) => {
                        std::thread::sleep(pause);
                        continue;
                    }
                    None => {
                        return Err(DriveError::Status {
                            device: device(),
                            asked,
                            status: completion.status,
                        });
                    }
                },
                status => {
                    return Err(DriveError::Status {
                        device: device(),
                        asked,
                        status,
                    });
                }
            }
            let sense = Sense::decode(&completion.sense).map_err(|source| DriveError::Sense {
                device: device(),
                asked,
                source,
            })?;
            let deferred = Sense::is_deferred(&completion.sense);
            match sense.key {
                SenseKey::NoSense | SenseKey::RecoveredError | SenseKey::Completed if !deferred => {
                    return Ok(completion.transferred.min(room));
                }
                SenseKey::UnitAttention => {
                    let device = device();
                    self.note(sense);
                    attentions += 1;
                    if repeat == Repeat::Never {
                        return Err(DriveError::Attention {
                            device,
                            asked,
                            sense,
                        });
                    }
                    if attentions > MAX_ATTENTIONS {
                        return Err(DriveError::Attentions {
                            device,
                            asked,
                            count: attentions,
                            sense,
                        });
                    }
                }
                _ => {
                    return Err(DriveError::Refused {
                        device: device(),
                        asked,
                        sense,
                        deferred,
                    });
                }
            }
        }
    }

    fn note(&mut self, attention: Sense) {
        if self.attentions.len() == KEPT_ATTENTIONS {
            self.attentions.remove(0);
        }
        self.attentions.push(attention);
    }

    /// Reads something of a fixed length, all of it.
    fn read_exact<const N: usize>(
        &mut self,
        asked: Asked,
        cdb: &[u8],
    ) -> Result<[u8; N], DriveError> {
        let mut buffer = [0; N];
        let got = self.run(&Command::reading(asked, cdb), Data::In(&mut buffer))?;
        if got < N {
            return Err(self.truncated(asked, N - got));
        }
        Ok(buffer)
    }

    /// Reads a page in two steps: its first `head` bytes, then as much as `total` makes of them.
    /// `cdb` makes the command for an allocation length.
    ///
    /// Where the page has become shorter in between, only what it then has is brought; where it
    /// has become longer it is cut, which its decoder sees.
    fn read_page<C: AsRef<[u8]>>(
        &mut self,
        asked: Asked,
        head: usize,
        limit: usize,
        cdb: impl Fn(u32) -> C,
        total: impl Fn(&[u8]) -> usize,
    ) -> Result<Vec<u8>, DriveError> {
        let first = self.read_some(asked, head, &cdb)?;
        if first.len() < head {
            return Err(self.truncated(asked, head - first.len()));
        }
        let len = total(&first);
        if len > limit {
            return Err(DriveError::TooLong {
                device: self.name().to_owned(),
                asked,
                got: len,
                limit,
            });
        }
        if len <= head {
            return Ok(first.get(..len).map_or(first.clone(), <[u8]>::to_vec));
        }
        let mut page = self.read_some(asked, len, &cdb)?;
        if page.len() < head {
            return Err(self.truncated(asked, head - page.len()));
        }
        // Adapters that report no residual leave zeros behind a page that has become shorter.
        page.truncate(total(&page));
        Ok(page)
    }

    fn read_some<C: AsRef<[u8]>>(
        &mut self,
        asked: Asked,
        len: usize,
        cdb: impl Fn(u32) -> C,
    ) -> Result<Vec<u8>, DriveError> {
        let mut buffer = vec![0; len];
        let cdb = cdb(u32::try_from(len).unwrap_or(u32::MAX));
        let command = Command::reading(asked, cdb.as_ref());
        let got = self.run(&command, Data::In(&mut buffer))?;
        buffer.truncate(got);
        Ok(buffer)
    }

    fn truncated(&self, asked: Asked, missing: usize) -> DriveError {
        self.odd(
            asked,
            PageError::Truncated {
                structure: "the answer",
                missing,
            },
        )
    }

    /// The drive answered with something else.
    fn odd(&self, asked: Asked, source: PageError) -> DriveError {
        DriveError::Page {
            device: self.name().to_owned(),
            asked,
            source,
        }
    }
}

/// One command, and how it is dealt with.
struct Command<'a> {
    asked: Asked,
    cdb: &'a [u8],
    limit: Duration,
    repeat: Repeat,
}

impl<'a> Command<'a> {
    /// A command that only reads.
    const fn reading(asked: Asked, cdb: &'a [u8]) -> Self {
        Self {
            asked,
            cdb,
            limit: QUICK,
            repeat: Repeat::AfterAttention,
        }
    }

    /// A command that changes something.
    const fn changing(asked: Asked, cdb: &'a [u8], limit: Duration) -> Self {
        Self {
            asked,
            cdb,
            limit,
            repeat: Repeat::Never,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Repeat {
    AfterAttention,
    Never,
}

/// For commands that move no tape. A drive that is loading answers them late.
const QUICK: Duration = Duration::from_secs(60);

/// For commands that wind a tape: IBM gives LTO drives 780 s to load or unload.
const WINDING: Duration = Duration::from_secs(15 * 60);

/// A drive has one after power on, one for a new cartridge, and one or two for changed parameters.
const MAX_ATTENTIONS: usize = 4;

const KEPT_ATTENTIONS: usize = 16;

const BUSY_PAUSES: [Duration; 5] = [
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(400),
    Duration::from_millis(800),
];

#[cfg(test)]
mod tests;
