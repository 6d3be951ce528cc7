//! Servers that share no database: one reads another's drive table, defaults
//! and history, and takes them in.
//!
//! Who reads decides: a server gives its tables to the peers that it names, and
//! writes nothing of another's. The story of a sync: asked, its clock compared,
//! read whole, planned, recorded, written in one transaction, compared. What is
//! read is held against limits before anything is planned ([`Reader`]), and what
//! is planned is pure ([`store::merge`](crate::store::merge), [`compare`]).
//!
//! A sync never touches a token.

pub mod compare;
mod config;
mod peers;
mod plan;
mod reader;
mod records;
mod report;
mod run;
mod schedule;
pub mod wire;

use serde::{Deserialize, Serialize};

pub use config::{SyncConfig, SyncFrom};
pub use peers::Peers;
pub(crate) use peers::Writes;
pub use reader::{Reader, SyncError};
pub use report::{DriveChanged, HistoryTaken, SyncReport};
pub use run::{Ask, run};
pub(crate) use schedule::schedule;

/// Which tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// The drive table.
    #[default]
    Drivetab,
    /// The global key labels; KEKs, partners and policy are compared.
    Config,
    /// What cartridges were keyed with.
    History,
    /// All of these.
    All,
}

impl What {
    /// Whether the drive table is among them.
    #[must_use]
    pub const fn drives(self) -> bool {
        matches!(self, Self::Drivetab | Self::All)
    }

    /// Whether the defaults are among them.
    #[must_use]
    pub const fn config(self) -> bool {
        matches!(self, Self::Config | Self::All)
    }

    /// Whether the history is among them.
    #[must_use]
    pub const fn history(self) -> bool {
        matches!(self, Self::History | Self::All)
    }
}

impl std::fmt::Display for What {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Drivetab => "drivetab",
            Self::Config => "config",
            Self::History => "history",
            Self::All => "all",
        })
    }
}

/// Whose rows stand. The history is merged in either.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The newest row of each drive, and the newest defaults.
    #[default]
    Merge,
    /// The peer's.
    Rewrite,
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Merge => "merge",
            Self::Rewrite => "rewrite",
        })
    }
}
