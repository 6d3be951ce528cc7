//! `ekm kek list --file`

use std::path::PathBuf;

use serde::Serialize;
use time::OffsetDateTime;

use super::passwords::PasswordFiles;
use crate::cli::{Context, output};
use crate::key::{KekHash, KeyLabel};
use crate::keyfile::{self, Certificate, Content, Entry};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct List {
    /// A key file to list instead: JKS, JCEKS, PKCS#12 or PEM.
    #[arg(long, value_name = "STORE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    passwords: PasswordFiles,
}

impl List {
    /// Whether a key file is meant, and not the tokens.
    pub(super) const fn of_file(&self) -> bool {
        self.file.is_some()
    }

    pub(super) fn run(self, context: &Context) -> anyhow::Result<()> {
        let Self { file, passwords } = self;
        let path = file.unwrap_or_default();
        let bytes = keyfile::load(&path)?;
        let passwords = passwords.read(&path, keyfile::needs_password(&bytes))?;
        let read = keyfile::read(&bytes, &passwords).map_err(|error| error.in_file(&path))?;
        let now = OffsetDateTime::now_utc();
        let mut rows: Vec<Row> = read
            .entries
            .iter()
            .map(|entry| Row::new(entry, now))
            .collect();
        tell_doubles(&mut rows);
        if context.json {
            return output::json(&Listing {
                file: path.display().to_string(),
                format: read.format.to_string(),
                entries: rows,
            });
        }
        output::say(&format!(
            "{}: {}, {} {}",
            path.display(),
            read.format,
            rows.len(),
            if rows.len() == 1 { "entry" } else { "entries" }
        ))?;
        output::table(
            &[
                "alias",
                "kind",
                "bits",
                "hash",
                "certificate",
                "valid until",
                "kek",
            ],
            rows.iter().map(Row::cells),
        )?;
        for row in &rows {
            if let Some(why) = &row.why {
                output::say(&format!(
                    "{}: {why}",
                    shown(&row.alias, KeyLabel::MAX_CHARS)
                ))?;
            }
        }
        Ok(())
    }
}

#[derive(Serialize)]
struct Listing {
    file: String,
    format: String,
    entries: Vec<Row>,
}

/// What is told of an entry.
#[derive(Serialize)]
struct Row {
    alias: String,
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    bits: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hash: Option<KekHash>,
    #[serde(skip_serializing_if = "Option::is_none")]
    algorithm: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<String>,
    #[serde(skip)]
    common_name: Option<String>,
    #[serde(
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none"
    )]
    valid_until: Option<OffsetDateTime>,
    #[serde(
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none"
    )]
    created: Option<OffsetDateTime>,
    /// Whether it can be a KEK.
    usable: bool,
    /// Why it cannot, or what else there is to know.
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

impl Row {
    fn new(entry: &Entry, now: OffsetDateTime) -> Self {
        let mut row = Self {
            alias: entry.alias.clone(),
            kind: "key pair",
            bits: None,
            hash: None,
            algorithm: None,
            subject: None,
            common_name: None,
            valid_until: None,
            created: entry.created,
            usable: false,
            why: None,
        };
        match &entry.content {
            Content::Pair { key, chain } => {
                row.bits = Some(key.bits());
                row.hash = Some(key.hash());
                row.certificate(chain.first().map(Vec::as_slice));
                match entry.alias.parse::<KeyLabel>() {
                    Ok(_) => row.usable = true,
                    Err(error) => {
                        row.why = Some(format!(
                            "no KEK under this alias: {error}; give it another (keytool -changealias)"
                        ));
                    }
                }
                if row.usable && row.valid_until.is_some_and(|until| until < now) {
                    row.why =
                        Some("its certificate has expired; that hinders no reading".to_owned());
                }
            }
            Content::Certificate(der) => {
                row.kind = "certificate";
                row.certificate(Some(der));
                row.why = Some("no KEK: a certificate without its private key".to_owned());
            }
            Content::Secret { algorithm, bits } => {
                row.kind = "secret key";
                row.bits = *bits;
                row.algorithm = Some(algorithm.clone());
                row.why = Some(format!("no KEK: a secret key ({algorithm})"));
            }
            Content::Unfit { what, reason } => {
                row.algorithm = Some(what.clone());
                row.bits = what.strip_prefix("RSA-").and_then(|bits| bits.parse().ok());
                row.why = Some(format!("no KEK: {reason}"));
            }
            Content::Unreadable { reason } => {
                row.kind = "unreadable";
                row.why = Some(reason.clone());
            }
        }
        row
    }

    fn certificate(&mut self, der: Option<&[u8]>) {
        if let Some(certificate) = der.and_then(Certificate::parse) {
            self.valid_until = Some(certificate.not_after);
            self.common_name = certificate.common_name;
            self.subject = Some(certificate.subject);
        }
    }

    fn cells(&self) -> Vec<String> {
        let dash = || "-".to_owned();
        let name = self.common_name.as_ref().or(self.subject.as_ref());
        vec![
            shown(&self.alias, KeyLabel::MAX_CHARS),
            match &self.algorithm {
                // Of which kind, where it is not RSA.
                Some(algorithm) if self.bits.is_none() && self.kind == "key pair" => {
                    format!("{algorithm} key pair")
                }
                _ => self.kind.to_owned(),
            },
            self.bits.map_or_else(dash, |bits| bits.to_string()),
            self.hash
                .map_or_else(dash, |hash| hash.to_string().chars().take(16).collect()),
            name.map_or_else(dash, |name| shown(name, 24)),
            self.valid_until
                .map_or_else(dash, |until| until.date().to_string()),
            output::yes(Some(self.usable)).to_owned(),
        ]
    }
}

/// Two key pairs of one label are no KEKs, as on a token.
fn tell_doubles(rows: &mut [Row]) {
    let mut seen = std::collections::HashMap::<String, usize>::new();
    let folded = |row: &Row| {
        row.alias
            .parse::<KeyLabel>()
            .ok()
            .map(|label| label.folded())
    };
    for label in rows.iter().filter(|row| row.usable).filter_map(folded) {
        *seen.entry(label).or_default() += 1;
    }
    for row in rows.iter_mut().filter(|row| row.usable) {
        let times = folded(row).and_then(|label| seen.get(&label).copied());
        if times.is_some_and(|times| times > 1) {
            row.usable = false;
            row.why = Some(
                "no KEK under this alias: another key pair has it too; give them different ones"
                    .to_owned(),
            );
        }
    }
}

/// A text of the file's, fit for a terminal and a column.
fn shown(text: &str, width: usize) -> String {
    let mut shown: String = text
        .chars()
        .take(width)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect();
    if text.chars().nth(width).is_some() {
        shown.push('…');
    }
    shown
}
