//! `ekm assess`

use std::path::PathBuf;

use anyhow::Context as _;

use super::migrate::Sources;
use super::{Context, output, site};
use crate::admin::{Command, Reply, TokenStatus};
use crate::assess::models::{LIBRARY, MODELS, Model, TRANSPARENT, model};
use crate::assess::{self, Models, Report, Site};
use crate::bridge::profile::HsmProfile;
use crate::config::Config;
use crate::drive::DriveSerial;
use crate::migrate::history;
use crate::migrate::plan::Plan;

/// Rows of a table that are shown; --json has all.
const ROWS: usize = 200;

/// What of a site will work: each drive, token, key and cartridge.
///
/// It looks at the site of ekm.toml: drive table, tokens, KEKs, history. With
/// --ekm21 it looks at an EKM 2.1 before it is migrated, and at no ekm.toml.
#[derive(Debug, clap::Args)]
pub(super) struct Assess {
    /// EKM's KeyManagerConfig.properties, in place of this site.
    #[arg(long, value_name = "PROPERTIES")]
    ekm21: Option<PathBuf>,

    #[command(flatten)]
    sources: Sources,

    /// What model a drive is; may be given more than once. Its serial does
    /// not tell, so without it what the drive takes is unknown.
    #[arg(long = "model", value_name = "SERIAL=MODEL", value_parser = parse_model)]
    models: Vec<(DriveSerial, &'static str)>,

    /// Prints what is documented of which model, and no more.
    #[arg(long = "models", conflicts_with_all = ["ekm21", "models"])]
    list: bool,
}

fn parse_model(text: &str) -> Result<(DriveSerial, &'static str), String> {
    let (serial, name) = text
        .split_once('=')
        .ok_or("expected SERIAL=MODEL, for example 000001365054=ts1120")?;
    let serial = serial
        .parse()
        .map_err(|error: crate::drive::DriveSerialError| error.to_string())?;
    let known = model(name).ok_or_else(|| {
        let names: Vec<&str> = MODELS.iter().map(|model| model.name).collect();
        format!("no model {name:?} is known; known are {}", names.join(", "))
    })?;
    Ok((serial, known.name))
}

impl Assess {
    pub(super) fn run(&self, context: &Context) -> anyhow::Result<()> {
        if self.list {
            return list(context);
        }
        let models: Models = self
            .models
            .iter()
            .filter_map(|(serial, name)| Some((serial.clone(), model(name)?)))
            .collect();
        let report = match &self.ekm21 {
            Some(properties) => {
                let sources = self.sources.gather(properties)?;
                assess::ekm21::site(&Plan::of(&sources), &sources.history, &models)
            }
            None => here(context, &models)?,
        };
        if context.json {
            return output::json(&report);
        }
        show(&report)
    }
}

fn list(context: &Context) -> anyhow::Result<()> {
    if context.json {
        return output::json(&MODELS);
    }
    output::table(
        &["model", "what", "02h", "00h", "known from"],
        MODELS.iter().map(|model: &Model| {
            vec![
                model.name.to_owned(),
                model.what.to_owned(),
                model.wrapped.to_string(),
                model.plain.to_string(),
                model.source.to_owned(),
            ]
        }),
    )?;
    output::say("")?;
    output::prose(
        "No real drive has been tried with ekm: yes says that it is documented, or was seen.",
    )
}

fn here(context: &Context, models: &Models) -> anyhow::Result<Report> {
    let config = Config::load(&context.config)?;
    let ask = |command| site::execute_with_pin(&config, command, None);
    let mut notes = Vec::new();
    let drives = match ask(Command::DriveList)? {
        Reply::Drives(drives) => drives,
        other => return site::out_of_turn(&other),
    };
    let defaults = match ask(Command::KekDefault {
        set: None,
        anyway: false,
    })? {
        Reply::Defaults(defaults) => defaults,
        other => return site::out_of_turn(&other),
    };
    let volumes = match ask(Command::VolumeList { volser: None })? {
        Reply::VolumesListed(listed) => listed
            .into_iter()
            .map(|listed| listed.key)
            .collect::<Vec<_>>(),
        // A server of an earlier version.
        Reply::Volumes(keys) => keys,
        other => return site::out_of_turn(&other),
    };
    let tokens = match ask(Command::TokenStatus)? {
        Reply::Tokens(tokens) => tokens,
        other => return site::out_of_turn(&other),
    };
    let keks = match ask(Command::KekList) {
        Ok(Reply::Keks(keks)) => Some(keks),
        Ok(other) => return site::out_of_turn(&other),
        Err(error) => {
            notes.push(format!(
                "the KEKs could not be looked at, so of drives and cartridges only the rest was judged: {error}"
            ));
            None
        }
    };
    let ekm21 = history::read(&config.state).context("what EKM keyed is not known")?;
    let embedded = |token: &TokenStatus| {
        config
            .tokens
            .iter()
            .find(|known| known.name == token.name)
            .and_then(|known| HsmProfile::load(&known.profile).ok())
            .is_some_and(|profile| profile.module.library == "embedded")
    };
    let tokens = tokens
        .into_iter()
        .map(|token| {
            let embedded = embedded(&token);
            (token, embedded)
        })
        .collect();
    let site = Site {
        drives,
        defaults,
        tokens,
        keks,
        volumes,
        ekm21,
    };
    Ok(assess::site(&site, models, notes))
}

fn show(report: &Report) -> anyhow::Result<()> {
    output::prose(report.first)?;
    output::say("")?;
    output::prose(
        "Drives (no real drive has been tried with ekm; 02h and 00h: what is documented of the model)",
    )?;
    output::table(
        &[
            "serial",
            "model",
            "02h",
            "00h",
            "library",
            "IBM's own",
            "verdict",
            "why",
        ],
        report.drives.iter().take(ROWS).map(|drive| {
            vec![
                drive.row.name.clone(),
                drive.model.unwrap_or("-").to_owned(),
                drive.ways.t10_02h.to_string(),
                drive.ways.t10_00h.to_string(),
                drive.ways.library.to_string(),
                drive.ways.transparent.to_string(),
                drive.row.verdict.to_string(),
                drive.row.why.clone(),
            ]
        }),
    )?;
    more(report.drives.len())?;
    output::prose(&format!("library: {LIBRARY}"))?;
    output::prose(&format!("IBM's own: {TRANSPARENT}"))?;
    output::say("")?;
    output::say("Stores")?;
    output::table(
        &["store", "verdict", "why", "what leaves it"],
        report.stores.iter().map(|store| {
            vec![
                store.row.name.clone(),
                store.row.verdict.to_string(),
                store.row.why.clone(),
                store.leaves.clone(),
            ]
        }),
    )?;
    output::say("")?;
    output::say("Keys")?;
    output::table(
        &["label", "verdict", "why"],
        report.keys.iter().take(ROWS).map(|key| {
            vec![
                key.name.chars().take(64).collect(),
                key.verdict.to_string(),
                key.why.clone(),
            ]
        }),
    )?;
    more(report.keys.len())?;
    output::say("")?;
    output::say(&format!(
        "Cartridges: {} of the history can be read, {} cannot",
        report.tapes.readable,
        report.tapes.unreadable.len()
    ))?;
    if !report.tapes.unreadable.is_empty() {
        output::table(
            &["volser", "keyed", "under", "why not"],
            report.tapes.unreadable.iter().take(ROWS).map(|tape| {
                vec![
                    tape.volser.clone(),
                    tape.since.clone(),
                    tape.keks.join(", "),
                    tape.why.clone(),
                ]
            }),
        )?;
        more(report.tapes.unreadable.len())?;
    }
    if !report.notes.is_empty() {
        output::say("")?;
        output::say("To be known")?;
    }
    report
        .notes
        .iter()
        .try_for_each(|note| output::prose(&format!("- {note}")))
}

fn more(rows: usize) -> anyhow::Result<()> {
    if rows > ROWS {
        output::say(&format!("… and {} more; --json has all", rows - ROWS))?;
    }
    Ok(())
}
