//! `ekm eedk`

mod failures;
mod probe;

use std::path::PathBuf;

use anyhow::Context as _;

use super::{Context, output};
use crate::key::Eedk;

#[derive(Debug, clap::Subcommand)]
pub(super) enum EedkCommand {
    /// Shows what an EEDK says: its data key, its KEK, how it is wrapped.
    Show {
        /// A file with one EEDK, DER; ekm softdrive show --eedks DIR writes them.
        file: PathBuf,
    },
    /// Looks in a captured blob for keys that another key manager wrapped.
    ///
    /// IBM's EEDK layout is not public. This tries the private keys of a keystore on every place of the
    /// blob where a wrapped key may begin, forwards and backwards, by OAEP with SHA-1 and SHA-256 and by
    /// PKCS#1 v1.5, and looks for what names the keys: hashes, labels in ASCII and EBCDIC. It shows where
    /// what opened, never a key, and stores nothing.
    Probe(probe::Probe),
    /// Shows who sent EEDKs that did not open, where nobody may learn of it (PKCS#1 v1.5).
    ///
    /// EEDKs that are wrapped by RSAES-PKCS1-v1_5 and were never issued here give a drive some key in any
    /// case, so that their padding cannot be probed. Those that did not open are counted: of one peer in
    /// an hour, and under one KEK for ever. Once as many as the policy allows did not, no more are opened
    /// until an operator has found out why and forgives.
    Failures(failures::Failures),
}

impl EedkCommand {
    pub(super) fn run(&self, context: &Context) -> anyhow::Result<()> {
        let file = match self {
            Self::Show { file } => file,
            Self::Probe(probe) => return probe.run(context),
            Self::Failures(failures) => return failures.run(context),
        };
        let limit = u64::try_from(Eedk::MAX_LEN)?;
        let der = crate::files::read_limited(file, limit)
            .with_context(|| format!("cannot read an EEDK from {}", file.display()))?;
        let eedk = Eedk::decode(&der).with_context(|| format!("{} is no EEDK", file.display()))?;
        if context.json {
            return output::json(&serde_json::json!({
                "dki": eedk.dki(),
                "kek": eedk.kek(),
                "wrap": eedk.wrap(),
                "wrapped": hex::encode(eedk.wrapped()),
                "sha256": hex::encode(eedk.digest()),
                "bytes": der.len(),
            }));
        }
        show(&eedk)
    }
}

/// Prints the fields of an EEDK.
pub(super) fn show(eedk: &Eedk) -> anyhow::Result<()> {
    output::fields(&[
        ("data key", eedk.dki().to_string()),
        ("KEK by", eedk.kek().encoding().to_string()),
        ("KEK", eedk.kek().to_string()),
        ("wrapped by", eedk.wrap().to_string()),
        (
            "wrapped key",
            format!(
                "{} bytes, RSA-{}",
                eedk.wrapped().len(),
                eedk.wrapped().len() * 8
            ),
        ),
        ("size", format!("{} bytes DER", eedk.as_der().len())),
        ("sha256", hex::encode(eedk.digest())),
    ])
}
