//! `ekm audit`

mod evidence;
mod records;

use std::path::PathBuf;

use clap::ValueEnum;

use super::{Context, Found, output, site};
use crate::audit::{Anchor, HeadMark, Kind};
use crate::config::Config;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Audit {
    /// Verifies the chain: that no record was changed, removed, added or moved.
    ///
    /// Works offline, also on a copy of the directory, and names the first bad
    /// record by file, line and number. The chain alone cannot show that its
    /// end was cut off or that it was made anew: give the key that seals
    /// (--key) and what is known from elsewhere (--expect-seal, --expect-head;
    /// ekm audit anchors). Exit code 3 where something is wrong.
    Verify {
        /// The audit directory; otherwise that of the configuration.
        directory: Option<PathBuf>,
        /// The public key that seals, PEM, from ekm audit key; several where
        /// it was changed.
        #[arg(long, value_name = "FILE")]
        key: Vec<PathBuf>,
        /// A seal that must be there: its number, or N:HASH.
        #[arg(long, value_name = "N[:HASH]")]
        expect_seal: Option<Anchor>,
        /// A record that must be there: its number and hash, SEQ:HASH.
        #[arg(long, value_name = "SEQ:HASH")]
        expect_head: Option<HeadMark>,
        /// Every record must be covered by a seal, as after ekm audit seal or
        /// a stop of the server.
        #[arg(long)]
        all_sealed: bool,
    },
    /// Shows the records.
    Show(records::Show),
    /// Prints records as they stand in the log, a JSON object a line.
    Export(records::Chosen),
    /// Seals the chain now.
    ///
    /// A token signs the newest record's hash, which stands for all before it.
    /// The seal is a record itself; its number and hash are kept in the state
    /// database, and where so configured on the tokens and a syslog.
    Seal {
        /// Goes on where the chain is not the one that is anchored, and
        /// records that. Find out first why.
        #[arg(long)]
        accept: bool,
    },
    /// Prints the public key that seals, PEM; makes it first with --generate.
    ///
    /// The key is made on a token for this alone: SENSITIVE, not EXTRACTABLE.
    /// Keep the printed one where the auditor verifies, not where the log is.
    Key {
        /// Makes a new key, which seals from now on.
        #[arg(long)]
        generate: bool,
        /// The token, where the configuration has more than one.
        #[arg(long, value_name = "NAME", requires = "generate")]
        token: Option<String>,
        /// Modulus length: 2048, 3072 or 4096 bits.
        #[arg(long, default_value_t = 3072, requires = "generate")]
        bits: u32,
        /// Prints the older keys too.
        #[arg(long)]
        all: bool,
    },
    /// What is known of the chain outside its directory: the newest seal and
    /// the newest record.
    Anchors,
    /// The emergency policy for a full audit disk: cartridges are read, nothing
    /// new is keyed.
    ///
    /// Switched on, the disk held in reserve is given to the records. Where
    /// that is full too, the records of resolves are kept in memory and sent to
    /// the syslogs, and written when there is room again. An alarm is raised as
    /// long as it is on, and both switches are recorded.
    Emergency {
        /// on, off, or status.
        #[arg(default_value = "status")]
        switch: Switch,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Switch {
    On,
    Off,
    Status,
}

impl Audit {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<()> {
        match self {
            Self::Verify {
                directory,
                key,
                expect_seal,
                expect_head,
                all_sealed,
            } => {
                let directory = place(context, directory)?;
                evidence::verify(
                    context,
                    &directory,
                    &key,
                    expect_seal,
                    expect_head,
                    all_sealed,
                )
            }
            Self::Show(show) => show.run(context),
            Self::Export(chosen) => chosen.export(context),
            Self::Seal { accept } => evidence::seal(context, accept),
            Self::Key {
                generate,
                token,
                bits,
                all,
            } => evidence::key(context, generate.then_some(bits), token, all),
            Self::Anchors => evidence::anchors(context),
            Self::Emergency { switch } => evidence::emergency(context, switch),
        }
    }
}

fn place(context: &Context, directory: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    directory.map_or_else(|| Ok(Config::load(&context.config)?.audit), Ok)
}
