//! Keying a tape drive for a job, in-band: the host sets the key that the drive encrypts with.
//!
//! In T10's application-managed mode a drive neither asks for a key nor waits for one. Left alone it
//! writes in clear, so everything here fails closed. [`HeldDrive`] is one drive and where it stands:
//!
//! ```text
//!             take_over                open                        close
//! (a drive) ------------> protected ---------> with a job ------------------> protected
//!                             |                    |                              |
//!             held: nobody else opens it           |                              held again,
//!             SWP on, saved and current            |                              SWP on, looked at
//!                                                  |
//!        cartridge looked at -> decision -> key asked, set, confirmed -> Permit -> SWP off, let go
//! ```
//!
//! What keeps blocks in clear from the tape, one behind the other:
//!
//! 1. *The hold.* `/dev/nstN` is open here, and `st` lets nobody else open it. It ends with this
//!    process, so it is not enough.
//! 2. *Software write protection* (SWP, mode page 10h), current and saved. The drive itself refuses
//!    to write. For a job that writes only the current value is cleared: a reset, which also loses
//!    the key, brings the saved one back. It outlives this process.
//! 3. *The permit.* Only [`Confirmed`], which is made from the drive's own status page and from
//!    nothing else, or a data class that the job named and that is in clear, lets SWP be cleared.
//! 4. *The key stays* after a job until the cartridge leaves the drive (CKOD): whoever got past the
//!    others would write encrypted.
//! 5. *The look afterwards.* The cartridge is asked for blocks in clear, and the drive whether its
//!    key is the one that was set, and whether the cartridge is the job's.
//!
//! The permit is for one cartridge. Before SWP is cleared, for whichever job, the drive is told to
//! keep it in (PREVENT MEDIUM REMOVAL), until SWP is back.
//!
//! What keeps a cartridge from being lost to a wrong key: a new data key only for DISP=NEW at load
//! point; its EEDKs stored and read back before it is set; what the cartridge held before is in the
//! host's history and is put back when the job does not come about; an existing cartridge's key is
//! the one that its own blocks name, and before anything is added the drive itself must say that it
//! can decrypt the block at load point.
//!
//! No command is sent to a drive that somebody else has open: a unit attention is reported once, and
//! belongs to `st`, which would otherwise go on at a place where the tape no longer is. For that
//! reason a job begins with a fresh open of the tape device, before the first command.
//!
//! Everything here blocks, and works for one drive: each has a thread of its own, so that one that
//! hangs costs its own job. What it needs of the world are the seams
//! [`Transport`](crate::scsi::Transport), [`Keys`] and [`Hold`].

mod act;
mod cartridge;
mod checks;
mod close;
mod create;
mod error;
mod history;
mod home;
mod parameters;
mod protect;
mod renew;
mod report;
mod resolve;
mod seams;
mod st;
mod story;
#[cfg(test)]
mod tests;
mod thread;
mod watch;
mod way;

pub use act::in_clear_is_said;
pub use cartridge::{Cartridge, Encrypted, FirstBlock};
pub use error::{JobRefused, TakeOverError, Unfit};
pub use history::{History, HistoryError};
pub use home::Home;
pub use protect::{ClearByName, Confirmed, Guard, Permit};
pub use report::{Alarm, ClearBlocks, Closed, Keyed, Opened, TakenOver};
pub use seams::{Hold, HoldError, JobClient, Keys, KeysError, NoHold};
pub use st::St;
pub use story::{HeldDrive, JobRequest, Rules};
pub use thread::{DriveState, DriveThread};
pub use way::{Way, WaySeat, way};
