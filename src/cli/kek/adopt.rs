//! `ekm kek adopt`

use std::path::PathBuf;

use anyhow::bail;
use serde::Serialize;

use super::own_bridge::{self, OwnBridge};
use super::spinner;
use crate::admin::{AdoptAsked, Command, Reply};
use crate::bridge::adopt::{Adopted, Half, KeySeen, Mend, Mended, Value, Verdict, look};
use crate::cli::{Context, Found, output, runtime, site};
use crate::key::KeyLabel;

/// Columns of what is printed.
const COLUMNS: usize = 100;

/// Longest label in the table; JSON has it whole.
const LABEL: usize = 36;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Adopt {
    /// The token, where the configuration has more than one.
    #[arg(long, value_name = "NAME")]
    token: Option<String>,

    /// Makes the changes that would make keys usable, and looks again.
    #[arg(long)]
    apply: bool,

    /// With --apply: only this key, by its label, its CKA_ID or the beginning of its hash; may be
    /// given several times. A key that signs, or that serves with custody host, is changed only
    /// where it is named.
    #[arg(long, value_name = "KEY", requires = "apply")]
    only: Vec<String>,

    /// A file with the token's user PIN, where that comes from an operator; asked for on a
    /// terminal where it is not given.
    #[arg(long, value_name = "FILE")]
    pin_file: Option<PathBuf>,
}

/// What is printed.
#[derive(Serialize)]
struct Report<'a> {
    token: &'a str,
    applied: bool,
    #[serde(flatten)]
    adopted: &'a Adopted,
}

impl Adopt {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<()> {
        let config = context.own_config()?;
        let token = own_bridge::token(&config, self.token.as_deref())?;
        let own = OwnBridge::new(&config, &token.name, self.pin_file.as_deref())?;
        let runtime = runtime()?;
        let visit = |mends: Vec<Mend>| {
            let bar = spinner(&format!("looking at the keys of token {}", token.name));
            let adopted = runtime.block_on(look(&own.program, &own.hello, mends));
            bar.finish_and_clear();
            adopted
        };
        let mut adopted = visit(Vec::new())?;
        let mends = if self.apply {
            self.chosen(&adopted.keys)?
        } else {
            Vec::new()
        };
        if !mends.is_empty() {
            let asked = AdoptAsked {
                token: token.name.clone(),
                changes: mends.iter().map(|(key, mend)| change(key, mend)).collect(),
                keks: mends
                    .iter()
                    .filter_map(|(key, mend)| Some((label(key)?, mend.hash)))
                    .collect(),
            };
            let begun = Command::KekAdopt {
                asked: asked.clone(),
                ended: None,
            };
            done(&site::execute(context, begun)?)?;
            let outcome = visit(mends.into_iter().map(|(_, mend)| mend.clone()).collect());
            let ended = match &outcome {
                Ok(adopted) => ended(&adopted.mended),
                Err(fault) => Err(fault.to_string()),
            };
            let ended = Command::KekAdopt {
                asked,
                ended: Some(ended),
            };
            done(&site::execute(context, ended)?)?;
            adopted = outcome?;
        }
        if context.json {
            output::json(&Report {
                token: &token.name,
                applied: self.apply,
                adopted: &adopted,
            })?;
        } else {
            self.show(&token.name, &adopted)?;
        }
        if adopted.mended.iter().any(|mended| mended.error.is_some()) {
            return Err(Found.into());
        }
        Ok(())
    }

    /// The changes to make, each with its key.
    fn chosen<'a>(&self, keys: &'a [KeySeen]) -> anyhow::Result<Vec<(&'a KeySeen, &'a Mend)>> {
        for name in &self.only {
            let called = keys.iter().filter(|key| key.is_called(name)).count();
            if called != 1 {
                bail!(
                    "--only {name} names {called} keys of the token (ekm kek adopt); give its whole CKA_ID, or more of its hash"
                );
            }
        }
        let named = |key: &KeySeen| self.only.iter().any(|name| key.is_called(name));
        Ok(keys
            .iter()
            .flat_map(|key| key.mends.iter().map(move |mend| (key, mend)))
            .filter(|(key, mend)| {
                if self.only.is_empty() {
                    !mend.by_name
                } else {
                    named(key)
                }
            })
            .collect())
    }

    fn show(&self, token: &str, adopted: &Adopted) -> anyhow::Result<()> {
        if adopted.keys.is_empty() {
            return output::say(&format!("token {token} has no key pair"));
        }
        for Mended { mend, error } in &adopted.mended {
            let key = adopted.keys.iter().find(|key| key.hash == Some(mend.hash));
            let key = key.map_or_else(|| mend.hash.to_string(), short);
            let (attribute, to) = (&mend.attribute, &mend.to);
            let line = match error {
                None => format!("{key}: {attribute} is {to} now"),
                Some(error) => format!("{key}: {attribute} is not {to}: {error}"),
            };
            folded("", &line)?;
        }
        if !adopted.mended.is_empty() {
            output::say("")?;
        }
        output::table(
            &["key", "kind", "halves", "provenance", "verdict"],
            adopted.keys.iter().map(|key| {
                vec![
                    short(key),
                    key.kind.clone(),
                    halves(key),
                    key.provenance
                        .map_or_else(|| "-".to_owned(), |provenance| provenance.to_string()),
                    key.verdict.to_string(),
                ]
            }),
        )?;
        for key in adopted.keys.iter().filter(|key| !key.reasons.is_empty()) {
            let hash = key
                .hash
                .map(|hash| hash.to_string().chars().take(16).collect::<String>());
            output::say("")?;
            folded(
                "",
                &format!(
                    "{} (CKA_ID {}, hash {}): {}",
                    short(key),
                    if key.id.is_empty() { "none" } else { &key.id },
                    hash.as_deref().unwrap_or("unknown"),
                    key.verdict
                ),
            )?;
            for reason in &key.reasons {
                folded("  ", reason)?;
            }
        }
        let mendable = adopted
            .keys
            .iter()
            .filter(|key| key.verdict == Verdict::Mendable)
            .count();
        if mendable > 0 && !self.apply {
            output::say("")?;
            folded(
                "",
                &format!(
                    "{mendable} can be mended: ekm kek adopt --token {token} --apply does it, with --only KEY for one key. Other programs that use these keys are met by it too."
                ),
            )?;
        }
        Ok(())
    }
}

fn done(reply: &Reply) -> anyhow::Result<()> {
    match reply {
        Reply::Done => Ok(()),
        other => site::out_of_turn(other),
    }
}

fn change(key: &KeySeen, mend: &Mend) -> String {
    format!("{} of {} becomes {}", mend.attribute, name(key), mend.to)
}

/// For the record: what the token did of it.
fn ended(mended: &[Mended]) -> Result<String, String> {
    let text = mended
        .iter()
        .map(|Mended { mend, error }| {
            let Mend {
                attribute,
                to,
                hash,
                ..
            } = mend;
            match error {
                None => format!("{attribute} of {hash} is {to}"),
                Some(error) => format!("{attribute} of {hash} is not {to}: {error}"),
            }
        })
        .collect::<Vec<_>>()
        .join("; ");
    if mended.iter().any(|mended| mended.error.is_some()) {
        Err(text)
    } else {
        Ok(text)
    }
}

/// What the key is called, or will be.
fn label(key: &KeySeen) -> Option<KeyLabel> {
    let new = key.mends.iter().find_map(|mend| match &mend.to {
        Value::Label(label) => Some(label.clone()),
        Value::Flag(_) => None,
    });
    new.or_else(|| key.label.as_ref()?.parse().ok())
}

fn name(key: &KeySeen) -> String {
    key.label.clone().unwrap_or_else(|| "(no label)".to_owned())
}

fn short(key: &KeySeen) -> String {
    // Whoever made the key chose the label.
    let name: String = name(key)
        .chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect();
    if name.chars().count() <= LABEL {
        return name;
    }
    name.chars().take(LABEL - 1).chain(['…']).collect()
}

fn halves(key: &KeySeen) -> String {
    let words: Vec<&str> = key
        .halves
        .iter()
        .map(|half| match half {
            Half::Private => "private",
            Half::Public => "public",
            Half::Certificate => "cert",
        })
        .collect();
    words.join("+")
}

/// Prints a paragraph within the columns, each of its lines indented.
fn folded(indent: &str, text: &str) -> anyhow::Result<()> {
    let mut line = indent.to_owned();
    for word in text.split(' ') {
        let blank = usize::from(line.len() > indent.len());
        let full = line.chars().count() + blank + word.chars().count() > COLUMNS;
        if full && line.len() > indent.len() {
            output::say(&line)?;
            line = format!("{indent}  ");
            line.push_str(word);
        } else {
            line.push_str(if blank == 1 { " " } else { "" });
            line.push_str(word);
        }
    }
    output::say(&line)
}
