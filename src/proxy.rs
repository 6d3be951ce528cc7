//! The host side: what a job says of its tape, and what is sent to the key server for it.
//!
//! As in DFSMS. A *data class* of the host's file ([`HostConfig`]) turns encryption on by its
//! recording format, and may name key labels; the job's *DD statement* ([`Dd`]) may name others.
//! [`HostConfig::decide`] makes a [`Decision`] of them, and nothing else can make one.
//!
//! - The first level that names any label (DD statement, data class, volume range) supplies both;
//!   levels never mix. Where none does, nothing is sent and the key server decides: drive table,
//!   then its defaults.
//! - Encryption is decided when the first file is written at load point. Later files, and what
//!   DISP=MOD adds, follow the cartridge.
//!
//! No I/O but reading the host's file, and no key server is asked.

mod config;
mod dd;
mod decision;
mod labels;
mod servers;
#[cfg(test)]
mod tests;

pub use config::{
    ClassName, ClassNameError, DataClass, Generation, HOST_EXAMPLE, HostConfig, HostConfigError,
    HostDrive, KeyPath, NoSuchWord, RecordingFormat, VolumeRange,
};
pub use dd::{Dd, DdError, DdFault, Disp};
pub use decision::{Asks, Decision, Job, JobError, LabelLevel, Loaded, Place, Reason};
pub use labels::{At, LabelFault, Labels};
pub use servers::{KeyServers, ServerAddress, ServerAddressError};
