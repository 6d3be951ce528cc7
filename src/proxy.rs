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
//! None of that does I/O but reading the host's file, and no key server is asked. [`KeyService`] asks
//! them.

mod config;
pub mod control;
mod daemon;
mod dd;
mod decision;
pub mod ibmekm;
pub mod keying;
mod labels;
mod servers;
mod service;
#[cfg(test)]
mod tests;

pub use config::{
    AppendInClear, ClassName, ClassNameError, DataClass, Device, DeviceError, Generation,
    HOST_EXAMPLE, HostConfig, HostConfigError, HostDrive, InBand, KeyPath, ListedIn, NoSuchWord,
    RecordingFormat, VolumeRange,
};
pub use daemon::{Daemon, DaemonError, Host, ServiceKeys, check_certificates};
pub use dd::{Dd, DdError, DdFault, Disp, DispTwice};
pub use decision::{Asks, Decision, Job, JobError, LabelLevel, Loaded, Place, Reason};
pub use labels::{At, LabelFault, Labels};
pub use servers::{
    KeyServer, KeyServers, KeyServersError, ServerAddress, ServerAddressError, ServerRole,
};
pub use service::{
    ConfirmRefused, Confirmed, Failure, Issuer, KeyService, Seen, Served, ServerSeen, ServerState,
    ServiceError, SessionKeys, Times, VERDICTS, Verdict, Verified, Which,
};
