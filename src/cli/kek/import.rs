//! `ekm kek import`

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::Serialize;

use super::own_bridge::{self, OwnBridge};
use super::passwords::PasswordFiles;
use super::spinner;
use crate::admin::{Command, ImportAsked, ImportTo, KEK_BITS, Reply};
use crate::bridge::import::{Import as Asked, Imported, KeyMaterial, Transport, carry_out};
use crate::bridge::message::{Custody, KekOnToken, PrivateHalf};
use crate::bridge::process::harden_server;
use crate::cli::{Context, output, runtime, site};
use crate::key::KeyLabel;
use crate::keyfile::{self, Content, Entry, Format, KeyFile, PrivateKey};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Import {
    /// The file: PKCS#12, JCEKS, JKS or PEM.
    file: PathBuf,

    /// The entry, where the file has more than one key pair.
    #[arg(long)]
    alias: Option<String>,

    /// What the KEK is called in the token, at most 64 characters; the alias where it is not given.
    #[arg(long)]
    label: Option<KeyLabel>,

    /// The token, where the configuration has more than one.
    #[arg(long, value_name = "NAME")]
    token: Option<String>,

    /// token: opens EEDKs inside the token only. host: for drives that the token cannot wrap for.
    #[arg(long, default_value = "token")]
    custody: Custody,

    #[command(flatten)]
    passwords: PasswordFiles,

    /// A file with the token's user PIN, where that comes from an operator; asked for likewise.
    #[arg(long, value_name = "FILE")]
    pin_file: Option<PathBuf>,
}

/// What is printed.
#[derive(Serialize)]
struct Report {
    token: String,
    file: PathBuf,
    alias: String,
    already: bool,
    kek: Box<KekOnToken>,
    transport: Option<Transport>,
    without_certificate: Option<String>,
}

impl Import {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<()> {
        // The key is in this process for a while.
        harden_server().context("cannot forbid core dumps of this process")?;
        let config = context.own_config()?;
        let shown = self.file.display();
        let bytes = keyfile::load(&self.file)?;
        let needed = keyfile::needs_password(&bytes);
        let passwords = self.passwords.read(&self.file, needed)?;
        let opened =
            keyfile::read(&bytes, &passwords).map_err(|error| error.in_file(&self.file))?;
        drop((bytes, passwords));
        let nameless = opened.format == Format::Pem;
        let (alias, key, chain) = choose(&self.file, opened, self.alias.as_deref())?;
        let label = match self.label {
            Some(label) => label,
            // A label that is frozen in a token should be somebody's choice.
            None if nameless && is_numbered(&alias) => {
                bail!("{shown} does not name its key; say with --label what the KEK is called")
            }
            None => alias.parse().with_context(|| {
                format!(
                    "the alias {alias:?} in {shown} cannot be a key label; give one with --label"
                )
            })?,
        };
        if !KEK_BITS.contains(&key.bits()) {
            bail!(
                "the key {alias} in {shown} has {} bits; a KEK has {KEK_BITS:?}, for which an EEDK has room",
                key.bits()
            );
        }
        let asked = ImportAsked {
            label,
            hash: key.hash(),
            bits: key.bits(),
            // Before anything is recorded or asked for: there may be no such token.
            token: Some(
                own_bridge::token(&config, self.token.as_deref())?
                    .name
                    .clone(),
            ),
            custody: self.custody,
            file: name_of(&self.file),
        };
        let name = asked.token.clone().unwrap_or_default();
        let own = OwnBridge::new(&config, &name, self.pin_file.as_deref())?;
        let to = match site::execute(context, Command::KekImport(asked.clone()))? {
            Reply::ImportTo(to) => to,
            other => return site::out_of_turn(&other),
        };
        if let ImportTo {
            already: Some(label),
            token,
        } = &to
        {
            return already(context, token, label, &asked);
        }
        let import = Asked {
            label: asked.label.clone(),
            custody: asked.custody,
            id: *uuid::Uuid::new_v4().as_bytes(),
            key: KeyMaterial::of(key.pkcs8()),
            spki: key.spki().to_vec(),
            certificate: chain.into_iter().next(),
        };
        drop(key);
        let bar = spinner(&format!(
            "importing KEK {} into token {}",
            asked.label, to.token
        ));
        let outcome = runtime()?.block_on(carry_out(&own.program, &own.hello, import));
        bar.finish_and_clear();
        let ended = match &outcome {
            Ok(Imported::Done { transport, .. }) => Ok(transport.to_string()),
            Ok(Imported::Already(_)) => Err("the token had the key already".to_owned()),
            Err(fault) => Err(fault.to_string()),
        };
        let finished = site::execute(
            context,
            Command::KekImported {
                asked: asked.clone(),
                ended,
            },
        );
        let (kek, transport, without_certificate) = match outcome {
            Ok(Imported::Already(kek)) => {
                return already(context, &to.token, &kek.label, &asked);
            }
            Ok(Imported::Done {
                kek,
                transport,
                without_certificate,
            }) => (kek, transport, without_certificate),
            Err(fault) => {
                finished.context("and that it failed could not be recorded")?;
                bail!(fault);
            }
        };
        let served = match finished.with_context(|| {
            format!(
                "KEK {} is in token {} now, but that could not be recorded",
                asked.label, to.token
            )
        })? {
            Reply::Keks(keks) => !keks.is_empty(),
            other => return site::out_of_turn(&other),
        };
        let report = Report {
            token: to.token,
            file: self.file,
            alias,
            already: false,
            kek,
            transport: Some(transport),
            without_certificate,
        };
        if context.json {
            return output::json(&report);
        }
        show(&report, served)
    }
}

/// Without its directory: a record goes to others than those who see this machine.
fn name_of(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

fn listed(entries: &[Entry]) -> String {
    some(entries.iter().map(|entry| entry.alias.as_str()))
}

/// The first few of what may be many, and may have anything in them.
fn some<'a>(texts: impl ExactSizeIterator<Item = &'a str>) -> String {
    const FEW: usize = 20;
    let more = texts.len().saturating_sub(FEW);
    let mut told: Vec<String> = texts
        .take(FEW)
        .map(|text| text.escape_debug().to_string())
        .collect();
    if more > 0 {
        told.push(format!("and {more} more (ekm kek list --file)"));
    }
    told.join(", ")
}

/// Whether it is the name that a key without one is listed under.
fn is_numbered(alias: &str) -> bool {
    alias
        .strip_prefix("key")
        .is_some_and(|number| number.chars().all(|digit| digit.is_ascii_digit()))
}

type Pair = (String, PrivateKey, Vec<Vec<u8>>);

/// The key pair of that alias, or the only one.
fn choose(path: &Path, file: KeyFile, alias: Option<&str>) -> anyhow::Result<Pair> {
    let path = path.display();
    let named = |entry: &Entry| {
        // Java's keystores lower-case their aliases.
        alias.is_none_or(|alias| entry.alias.to_lowercase() == alias.to_lowercase())
    };
    let is_pair = |entry: &Entry| matches!(entry.content, Content::Pair { .. });
    if let Some(alias) = alias
        && !file
            .entries
            .iter()
            .any(|entry| named(entry) && is_pair(entry))
    {
        match file
            .entries
            .iter()
            .find(|entry| named(entry))
            .map(|entry| &entry.content)
        {
            None => bail!(
                "{path} has no alias {alias}; it has {}",
                listed(&file.entries)
            ),
            Some(Content::Unfit { reason, .. }) => {
                bail!("the entry {alias} in {path} cannot be a KEK: {reason}")
            }
            Some(Content::Unreadable { reason }) => {
                bail!("the entry {alias} in {path} cannot be read: {reason}")
            }
            Some(Content::Certificate(_)) => {
                bail!("the entry {alias} in {path} is a certificate alone, without a private key")
            }
            Some(Content::Pair { .. } | Content::Secret { .. }) => {
                bail!("the entry {alias} in {path} is a secret key; a KEK is an RSA key pair")
            }
        }
    }
    let unreadable: Vec<String> = file
        .entries
        .iter()
        .filter_map(|entry| match &entry.content {
            Content::Unreadable { reason } | Content::Unfit { reason, .. } => Some(reason.clone()),
            Content::Pair { .. } | Content::Certificate(_) | Content::Secret { .. } => None,
        })
        .collect();
    let mut pairs: Vec<Entry> = file
        .entries
        .into_iter()
        .filter(|entry| named(entry) && is_pair(entry))
        .collect();
    if pairs.len() > 1 {
        bail!(
            "{path} has {} key pairs; say which with --alias: {}",
            pairs.len(),
            listed(&pairs)
        );
    }
    match pairs.pop() {
        Some(Entry {
            alias,
            content: Content::Pair { key, chain },
            ..
        }) => Ok((alias, key, chain)),
        _ if unreadable.is_empty() => bail!("{path} has no key pair"),
        _ => bail!(
            "{path} has no key pair that can be read: {}",
            some(unreadable.iter().map(String::as_str))
        ),
    }
}

fn already(
    context: &Context,
    token: &str,
    label: &KeyLabel,
    asked: &ImportAsked,
) -> anyhow::Result<()> {
    if context.json {
        return output::json(&serde_json::json!({
            "token": token,
            "already": true,
            "label": label,
            "hash": asked.hash,
        }));
    }
    output::say(&format!(
        "Token {token} has this key already, as {label} (sha256:{}); nothing was changed.",
        asked.hash
    ))
}

fn show(report: &Report, served: bool) -> anyhow::Result<()> {
    let Report {
        token,
        file,
        alias,
        already: _,
        kek,
        transport,
        without_certificate,
    } = report;
    let (custody, provenance) = match &kek.private {
        PrivateHalf::Serves {
            custody,
            provenance,
            ..
        } => (custody.to_string(), provenance.to_string()),
        PrivateHalf::Absent | PrivateHalf::Refused { .. } => ("-".to_owned(), "-".to_owned()),
    };
    let certificate = match without_certificate {
        Some(reason) => format!("not taken by the token: {reason}"),
        None => output::yes(Some(kek.certificate.is_some())).to_owned(),
    };
    let mut fields = vec![
        ("label", kek.label.to_string()),
        ("public-key hash", format!("sha256:{}", kek.hash)),
        ("modulus", format!("{} bits", kek.bits)),
        ("custody", custody),
        ("provenance", provenance),
        ("token", token.clone()),
        ("certificate", certificate),
        ("from", format!("{alias} in {}", file.display())),
    ];
    if let Some(transport) = transport {
        fields.push(("transport", transport.to_string()));
    }
    output::fields(&fields)?;
    let file = file.display();
    for line in [
        "",
        "The token opened a data key that was wrapped for it, and gives the private key out no more.",
        &format!(
            "But {file} still holds it. Keep the file offline as this KEK's backup, or destroy it"
        ),
        "and its copies (shred -u, where the file system writes in place). A copy existed outside of the",
        "token: its EEDKs are as safe as the worst of those, and the provenance stays \"imported\".",
    ] {
        output::say(line)?;
    }
    if !served {
        output::say(&format!(
            "The server's bridge of {token} does not show the key yet; some modules read the list once, so restart it."
        ))?;
    }
    Ok(())
}
