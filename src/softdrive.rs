//! A tape drive in software.
//!
//! ```text
//! SoftDrive   who it is: serial number, world wide name, private keys, certificate   (a directory)
//! Target      what a host sees of it: the T10 pages, and the key that it was given
//! Cartridge   what it writes: volume serial, EEDKs and encrypted blocks              (a file)
//! TapeDrive   all of a tape drive, for a host that writes and reads blocks itself    (a tape image)
//! ```
//!
//! It is the peer that tests and trials run against. It takes the keys of a real drive in the
//! forms of a real drive, but keeps its private keys in files, so it protects nothing that
//! whoever reads these files must not read.

mod cartridge;
mod identity;
mod scsi;
mod tape;

pub use cartridge::{
    CartridgeError, CartridgeFile, CartridgeReader, CartridgeWriter, Existing, Header,
    SealedCartridge, read_header, rewrite_eedks,
};
pub use identity::{DriveKind, Init, SessionKey, SoftDrive, SoftDriveError, UnwrapError};
pub use scsi::{Medium, MediumKey, Target};
pub use tape::{
    DataKeyUse, FileOnTape, ImageError, Quirk, QuirkError, TapeContents, TapeDrive, TapePort,
    new_tape,
};
