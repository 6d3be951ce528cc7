//! `ekm eedk probe`

use std::ops::RangeInclusive;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::cli::kek::passwords::PasswordFiles;
use crate::cli::{Context, output};
use crate::key::foreign::{self, Find, LAYOUTS, MAX_BLOB, Mark, Opener, ProbeKey, marks, probe};
use crate::keyfile::{self, Content};

/// Longest file: a blob as hexadecimal with colons and line ends.
const MAX_FILE: u64 = 256 * 1024;

/// Where a wrapped key may be in a blob that somebody captured.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Probe {
    /// The blob: a page, an attribute, any bytes; also as text in hexadecimal or base64. At most 64 KiB.
    file: PathBuf,

    /// The keystore with the KEKs: JCEKS, JKS, PKCS#12 or PEM.
    #[arg(long, value_name = "KEYSTORE")]
    store: PathBuf,

    #[command(flatten)]
    passwords: PasswordFiles,

    /// Only this key of the keystore.
    #[arg(long)]
    alias: Option<String>,

    /// An OAEP label to try besides none, in hexadecimal: the DKi, for one; may be given more than once.
    #[arg(long = "label", value_name = "HEX", value_parser = parse_label)]
    labels: Vec<Label>,

    /// Only these offsets: N, or FROM-TO.
    #[arg(long, value_name = "N[-M]", value_parser = parse_offsets)]
    offset: Option<RangeInclusive<usize>>,
}

/// An OAEP label.
#[derive(Clone, Debug)]
struct Label(Vec<u8>);

fn parse_label(text: &str) -> Result<Label, String> {
    match hex::decode(text) {
        Ok(bytes) if (1..=128).contains(&bytes.len()) => Ok(Label(bytes)),
        Ok(_) | Err(_) => Err("expected 1 to 128 bytes in hexadecimal".to_owned()),
    }
}

fn parse_offsets(text: &str) -> Result<RangeInclusive<usize>, String> {
    let (from, to) = text.split_once('-').unwrap_or((text, text));
    match (from.trim().parse(), to.trim().parse()) {
        (Ok(from), Ok(to)) if from <= to => Ok(from..=to),
        _ => Err("expected an offset, or two as FROM-TO, counted from 0".to_owned()),
    }
}

/// A find with the alias of its key.
#[derive(Serialize)]
struct Found<'a> {
    alias: &'a str,
    #[serde(flatten)]
    find: &'a Find,
}

#[derive(Serialize)]
struct Told<'a> {
    bytes: usize,
    read_as: &'static str,
    attempts: u64,
    finds: Vec<Found<'a>>,
    by_chance: f64,
    pkcs1_not_tried: Vec<&'a str>,
    marks: Vec<Mark>,
    not_tried: Vec<String>,
}

impl Probe {
    pub(super) fn run(&self, context: &Context) -> anyhow::Result<()> {
        let file = crate::files::read_limited(&self.file, MAX_FILE)
            .with_context(|| format!("cannot read {}", self.file.display()))?;
        let (blob, read_as) = foreign::decode(&file);
        let bytes = keyfile::load(&self.store)?;
        let passwords = self
            .passwords
            .read(&self.store, keyfile::needs_password(&bytes))?;
        let keys = keyfile::read(&bytes, &passwords).map_err(|error| error.in_file(&self.store))?;
        let mut names = Vec::new();
        let mut openers = Vec::new();
        let mut not_tried = Vec::new();
        let mut named = Vec::new();
        for entry in &keys.entries {
            let wanted = self
                .alias
                .as_ref()
                .is_none_or(|alias| alias.eq_ignore_ascii_case(&entry.alias));
            if !wanted {
                continue;
            }
            match &entry.content {
                Content::Pair { key, chain } => {
                    let certificate = chain.first().map(Vec::as_slice);
                    named.extend(marks(&blob, &entry.alias, key.spki(), certificate));
                    match ProbeKey::from_pkcs8(key.pkcs8()) {
                        Some(opener) => {
                            names.push(entry.alias.as_str());
                            openers.push(opener);
                        }
                        None => {
                            not_tried.push(format!("{}: not a key that can be used", entry.alias))
                        }
                    }
                }
                Content::Certificate(der) => {
                    if let Ok((_, read)) = x509_parser::parse_x509_certificate(der) {
                        let spki = read.public_key().raw;
                        named.extend(marks(&blob, &entry.alias, spki, Some(der)));
                    }
                    not_tried.push(format!("{}: no private key", entry.alias));
                }
                Content::Secret { .. } => {
                    not_tried.push(format!("{}: a secret key", entry.alias));
                }
                Content::Unreadable { reason } | Content::Unfit { reason, .. } => {
                    not_tried.push(format!("{}: {reason}", entry.alias));
                }
            }
        }
        if openers.is_empty() {
            bail!(
                "{} has no RSA private key to try{}",
                self.store.display(),
                self.alias
                    .as_ref()
                    .map_or_else(String::new, |alias| format!(" under the alias {alias}"))
            );
        }
        let labels: Vec<Vec<u8>> = self.labels.iter().map(|label| label.0.clone()).collect();
        let offsets = self.offset.clone().unwrap_or(0..=MAX_BLOB);
        let openers: Vec<&dyn Opener> = openers.iter().map(|key| -> &dyn Opener { key }).collect();
        let bar = bar();
        let report = probe(
            &blob,
            LAYOUTS,
            &openers,
            &labels,
            &offsets,
            |places| bar.set_length(places),
            &|| bar.inc(1),
        );
        bar.finish_and_clear();
        let report = report.with_context(|| format!("cannot probe {}", self.file.display()))?;
        let alias = |key: usize| names.get(key).copied().unwrap_or_default();
        let told = Told {
            bytes: blob.len(),
            read_as,
            attempts: report.attempts,
            finds: report
                .finds
                .iter()
                .map(|find| Found {
                    alias: alias(find.key),
                    find,
                })
                .collect(),
            by_chance: report.chance,
            pkcs1_not_tried: report.implicit.iter().map(|key| alias(*key)).collect(),
            marks: named,
            not_tried,
        };
        if context.json {
            return output::json(&told);
        }
        show(&told)
    }
}

fn show(told: &Told<'_>) -> anyhow::Result<()> {
    output::say(&format!(
        "{} bytes (read {}), {} attempts; nothing is stored",
        told.bytes, told.read_as, told.attempts
    ))?;
    if told.finds.is_empty() {
        output::say("No wrapped key opens under these keys, by OAEP or PKCS#1 v1.5.")?;
    } else {
        output::table(
            &[
                "offset",
                "key",
                "padding",
                "order",
                "bytes out",
                "sha256 begins",
                "certainty",
            ],
            told.finds.iter().map(|found| {
                vec![
                    found.find.offset.to_string(),
                    found.alias.to_owned(),
                    found.find.padding.to_string(),
                    found.find.order.to_string(),
                    found.find.length.to_string(),
                    found.find.fingerprint.clone(),
                    found.find.certainty.to_string(),
                ]
            }),
        )?;
    }
    if told
        .finds
        .iter()
        .any(|found| found.find.certainty == foreign::Certainty::Chance)
    {
        output::say(&format!(
            "By PKCS#1 v1.5 so many places were tried that {:.4} finds are to be expected by chance: narrow it with --offset.",
            told.by_chance
        ))?;
    }
    for alias in &told.pkcs1_not_tried {
        output::say(&format!(
            "{alias}: wrong PKCS#1 v1.5 padding is rejected implicitly here, so v1.5 tells nothing and was left out."
        ))?;
    }
    if !told.marks.is_empty() {
        output::say("")?;
        output::table(
            &["offset", "key", "what stands there"],
            told.marks.iter().map(|mark| {
                vec![
                    mark.offset.to_string(),
                    mark.alias.clone(),
                    mark.what.to_owned(),
                ]
            }),
        )?;
    }
    told.not_tried
        .iter()
        .try_for_each(|text| output::say(&format!("not tried: {text}")))
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::new(0);
    let style =
        ProgressStyle::with_template("{bar:40} {pos}/{len} places {elapsed} (of {duration})");
    if let Ok(style) = style {
        bar.set_style(style);
    }
    bar
}
