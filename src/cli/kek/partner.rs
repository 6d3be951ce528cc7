//! `ekm kek partner`

use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;

use anyhow::bail;
use time::OffsetDateTime;

use super::super::{Context, output, site};
use crate::admin::{self, Command, Offered, PartnerSeen, Reply};
use crate::certificates::{self, spelled, typed};
use crate::key::KeyLabel;

#[derive(Debug, clap::Subcommand)]
pub(in crate::cli) enum Partner {
    /// Takes in the public key of a business partner, from a certificate.
    ///
    /// A cartridge then carries one EEDK for you and one for the partner. What
    /// is written under a wrong key can be read by whoever has that key, and
    /// nobody here can prove such an EEDK. So compare the fingerprint with
    /// what the partner tells you on the telephone or in person, not with what
    /// came along with the certificate. The row is then sealed by a key on
    /// your tokens; whoever changes it later in the database is noticed.
    ///
    /// Name it by hash, LABEL:hash, since the partner calls the key by another
    /// label: ekm kek default --kek1 OURS --kek2 LABEL:hash.
    Add(Add),
    /// Lists partners' KEKs, and has the tokens verify their seals.
    List,
    /// Removes a partner's KEK: nothing is written under it any more. What was written can still
    /// be read by the partner.
    Remove {
        /// Its label.
        label: KeyLabel,
    },
}

/// What is taken in.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Add {
    /// What you call it; the partner may call it otherwise.
    label: KeyLabel,
    /// The partner's certificate, PEM or DER; those of its issuers may follow in the file.
    certificate: PathBuf,
    /// Certificates between it and the CA, PEM.
    #[arg(long, value_name = "FILE")]
    chain: Option<PathBuf>,
    /// The CA that must have issued it, PEM; needed for a certificate that is not self-signed.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The SHA-256 fingerprint of the certificate, as you have it from the partner. Without this
    /// it is asked for.
    #[arg(long, value_name = "HEX")]
    fingerprint: Option<String>,
}

impl Partner {
    pub(in crate::cli) fn run(self, context: &Context) -> anyhow::Result<()> {
        match self {
            Self::Add(add) => add.run(context),
            Self::List => {
                let partners = partners(site::execute(context, Command::PartnerList)?)?;
                if context.json {
                    return output::json(&partners);
                }
                if partners.is_empty() {
                    return output::say("no partner's KEK is known (ekm kek partner add)");
                }
                partners.iter().try_for_each(|partner| {
                    show(partner)?;
                    output::say("")
                })
            }
            Self::Remove { label } => {
                let command = Command::PartnerRemove {
                    label: label.clone(),
                };
                let removed = match site::execute(context, command)? {
                    Reply::Removed(removed) => removed,
                    other => return site::out_of_turn(&other),
                };
                if context.json {
                    return output::json(&removed);
                }
                output::say(&format!("removed the partner's KEK {label}"))?;
                if !removed.named_by.is_empty() {
                    output::say(&format!(
                        "it is still named by {}: nothing can be created there until that is changed",
                        removed.named_by.join(", ")
                    ))?;
                }
                for left in &removed.seals_left {
                    output::say(&format!(
                        "a key of its seal could not be destroyed: {left}; until it is (CKA_LABEL ekm-seal), someone who kept the row could put it back"
                    ))?;
                }
                Ok(())
            }
        }
    }
}

impl Add {
    fn run(self, context: &Context) -> anyhow::Result<()> {
        let Self {
            label,
            certificate,
            chain,
            ca,
            fingerprint,
        } = self;
        let mut found = certificates::from_file(&certificate)?.into_iter();
        let Some(leaf) = found.next() else {
            bail!("there is no certificate in {}", certificate.display());
        };
        let mut between: Vec<Vec<u8>> = found.collect();
        if let Some(path) = &chain {
            between.extend(certificates::from_file(path)?);
        }
        let cas = ca.as_deref().map(certificates::from_file).transpose()?;
        let offered = Offered {
            certificate: leaf,
            between,
            cas,
        };
        let now = OffsetDateTime::now_utc();
        let (read, by) = admin::look(&offered, now)
            .map_err(|error| anyhow::anyhow!("{}: {error}", certificate.display()))?;
        let fingerprint = match fingerprint {
            Some(fingerprint) => fingerprint,
            None => {
                let mut fields = vec![
                    ("subject", read.subject.clone()),
                    ("issuer", read.issuer.clone()),
                    ("vouched for by", by.to_string()),
                    ("good until", read.validity.last_day()),
                    ("key", format!("RSA-{}, sha256:{}", read.bits, read.hash())),
                    ("fingerprint", spelled(&read.fingerprint())),
                ];
                fields.extend(
                    read.validity
                        .warning(now)
                        .map(|warning| ("warning", warning)),
                );
                output::fields(&fields)?;
                ask()?
            }
        };
        if typed(&fingerprint).is_none() {
            bail!(
                "a fingerprint has 64 hexadecimal digits, with colons or without; nothing was taken in"
            );
        }
        let command = Command::PartnerAdd {
            label: label.clone(),
            offered: Box::new(offered),
            fingerprint,
        };
        let partners = partners(site::execute(context, command)?)?;
        if context.json {
            return output::json(&partners);
        }
        partners.iter().try_for_each(show)?;
        output::say(&format!(
            "name it by hash, since the partner may call it otherwise: {label}:hash"
        ))
    }
}

fn ask() -> anyhow::Result<String> {
    if !io::stdin().is_terminal() {
        bail!(
            "nothing was taken in: give the fingerprint that the partner told you with --fingerprint HEX, or run this on a terminal"
        );
    }
    write!(
        io::stdout(),
        "Type the SHA-256 fingerprint that the partner told you (not the one above): "
    )?;
    io::stdout().flush()?;
    let mut line = String::new();
    io::stdin().read_line(&mut line)?;
    Ok(line)
}

fn partners(reply: Reply) -> anyhow::Result<Vec<PartnerSeen>> {
    match reply {
        Reply::Partners(partners) => Ok(partners),
        other => site::out_of_turn(&other),
    }
}

fn show(partner: &PartnerSeen) -> anyhow::Result<()> {
    let mut fields = vec![
        ("label", partner.label.to_string()),
        ("public-key hash", format!("sha256:{}", partner.hash)),
        ("modulus", format!("{} bits", partner.bits)),
        ("subject", partner.subject.clone()),
        ("issuer", partner.issuer.clone()),
        ("vouched for by", partner.vouched.to_string()),
        ("fingerprint", partner.fingerprint.clone()),
    ];
    if let Some(validity) = &partner.validity {
        fields.push(("good until", validity.last_day()));
        let warning = validity.warning(OffsetDateTime::now_utc());
        fields.extend(warning.map(|warning| ("warning", warning)));
    }
    fields.push((
        "confirmed",
        format!("{} by {}", partner.confirmed, partner.operator),
    ));
    fields.push(("seal", partner.seal.clone()));
    output::fields(&fields)
}
