//! `ekm kek csr` and `ekm kek cert`

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use der::pem::LineEnding;
use time::OffsetDateTime;

use super::super::{Context, output, site};
use crate::admin::{Command, Reply};
use crate::certificates::{self, Subject};
use crate::key::KeyLabel;
use crate::tls::ca::Ca;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Asks for a certificate of a KEK.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Csr {
    /// The KEK's label.
    label: KeyLabel,
    /// The name to be certified: CN=NAME,O=NAME,OU=NAME,L=NAME,ST=NAME,C=XX, each part at most
    /// once. CN=LABEL where nothing is given.
    #[arg(long, value_name = "CN=…,O=…")]
    subject: Option<Subject>,
    /// The file for the request, PEM; else it is printed.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

impl Csr {
    pub(in crate::cli) fn run(self, context: &Context) -> anyhow::Result<()> {
        let Self {
            label,
            subject,
            out,
        } = self;
        let der = match site::execute(context, Command::KekRequest { label, subject })? {
            Reply::Request(der) => der,
            other => return site::out_of_turn(&other),
        };
        deliver(context, "CERTIFICATE REQUEST", &der, out.as_deref())
    }
}

#[derive(Debug, clap::Subcommand)]
pub(in crate::cli) enum Cert {
    /// Stores a certificate beside its KEK, in the place of an older one.
    ///
    /// Its public key must be the KEK's. It goes onto the token as a
    /// CKO_CERTIFICATE object with the CKA_ID and label of the pair; where a
    /// token does not take it, into the registry. Once it has ended the KEK
    /// still reads, always, but nothing is written under it (unless
    /// policy.expired_keks = "allow").
    Import {
        /// The KEK's label.
        label: KeyLabel,
        /// PEM or DER; the KEK's certificate first, then those of its issuers, if any. Those
        /// are checked and not kept.
        file: PathBuf,
        /// One token; else every one that serves the KEK.
        #[arg(long, value_name = "NAME")]
        token: Option<String>,
    },
    /// Certifies a KEK that cannot sign a request, by a CA of ekm's.
    ///
    /// In the place of a signature, the token shows that it holds the private
    /// half: it opens a key that was wrapped under the public half just now.
    /// The certificate is printed, or written to --out; store it with: ekm kek
    /// cert import.
    Issue {
        /// The KEK's label.
        label: KeyLabel,
        /// The CA's directory (ekm tls init).
        #[arg(long, value_name = "DIR")]
        ca: PathBuf,
        /// The name to be certified, as for ekm kek csr.
        #[arg(long, value_name = "CN=…,O=…")]
        subject: Option<Subject>,
        /// For how many days.
        #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=36500))]
        days: u32,
        /// The file for the certificate, PEM.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
}

impl Cert {
    pub(in crate::cli) fn run(self, context: &Context) -> anyhow::Result<()> {
        match self {
            Self::Import { label, file, token } => import(context, label, &file, token),
            Self::Issue {
                label,
                ca,
                subject,
                days,
                out,
            } => {
                let ca = Ca::open(&ca)?;
                let subject = match subject {
                    Some(subject) => subject,
                    None => Subject::common_name(label.as_str())?,
                };
                let keks = super::keks(site::execute(context, Command::KekPossession { label })?)?;
                let [kek] = keks.as_slice() else {
                    bail!(
                        "the server gave {} KEKs where one was asked for",
                        keks.len()
                    );
                };
                let der = ca.certify_kek(&kek.spki, &subject, DAY * days)?;
                deliver(context, "CERTIFICATE", &der, out.as_deref())
            }
        }
    }
}

fn import(
    context: &Context,
    label: KeyLabel,
    file: &Path,
    token: Option<String>,
) -> anyhow::Result<()> {
    let chain = certificates::from_file(file)?;
    let command = Command::KekCertificate {
        label,
        chain,
        token,
    };
    let imported = match site::execute(context, command)? {
        Reply::Imported(imported) => imported,
        other => return site::out_of_turn(&other),
    };
    if context.json {
        return output::json(&imported);
    }
    for token in &imported.tokens {
        output::say(&format!("stored on token {token}"))?;
    }
    for (token, reason) in &imported.not_taken {
        output::say(&format!(
            "token {token} does not take it ({reason}); it is kept in the registry"
        ))?;
    }
    let Some(validity) = imported.kek.validity else {
        return Ok(());
    };
    output::say(&format!(
        "KEK {} has a certificate until {}",
        imported.kek.label,
        validity.last_day()
    ))?;
    match validity.warning(OffsetDateTime::now_utc()) {
        Some(warning) => output::say(&format!("{}: {warning}", imported.kek.label)),
        None => Ok(()),
    }
}

fn deliver(
    context: &Context,
    kind: &'static str,
    der: &[u8],
    out: Option<&Path>,
) -> anyhow::Result<()> {
    let pem = der::pem::encode_string(kind, LineEnding::LF, der)
        .map_err(|error| anyhow::anyhow!("cannot write PEM: {error}"))?;
    match out {
        None if context.json => output::json(&serde_json::json!({ "kind": kind, "pem": pem })),
        Some(path) if context.json => {
            std::fs::write(path, pem)
                .with_context(|| format!("cannot write {}", path.display()))?;
            output::json(&serde_json::json!({ "kind": kind, "file": path }))
        }
        Some(path) => {
            std::fs::write(path, pem)
                .with_context(|| format!("cannot write {}", path.display()))?;
            output::say(&format!("wrote {}", path.display()))
        }
        None => output::say(pem.trim_end()),
    }
}
