//! `ekm slot doctor`

mod report;

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use indicatif::{ProgressBar, ProgressStyle};

use super::subject::Subject;
use crate::bridge::doctor::findings::{Examination, Outcome};
use crate::bridge::doctor::{self, fitting};
use crate::bridge::profile::HsmProfile;
use crate::cli::{self, Context, output, runtime};
use report::Report;

/// Sessions that are opened beside those of a server: enough to see that more can be had.
const BESIDE_A_SERVER: usize = 2;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Doctor {
    #[command(flatten)]
    subject: Subject,

    /// Writes the profile that fits into a new file.
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,

    /// Sessions to open at the same time, at most; beside a server 2.
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    sessions: u16,
}

impl Doctor {
    pub(super) fn run(&self, context: &Context) -> anyhow::Result<()> {
        let mut found = self.subject.find(context)?;
        let sessions = usize::from(self.sessions);
        found.appointment.sessions = if found.served {
            sessions.min(BESIDE_A_SERVER)
        } else {
            sessions
        };
        let bar = ProgressBar::new(1);
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}") {
            bar.set_style(style);
        }
        let examined = runtime()?.block_on(doctor::examine(
            &found.program()?,
            &found.appointment,
            &|exam, parts| {
                bar.set_length(u64::try_from(parts).unwrap_or_default());
                bar.set_message(exam.to_string());
                bar.inc(1);
            },
        ));
        bar.finish_and_clear();
        let examination = examined?;
        let mut fitting = fitting::fit(&examination, &found.profile, !found.chosen);
        if let Some(profile) = &mut fitting.profile {
            describe(profile, &examination, self.write.as_deref());
            if !found.chosen {
                profile.description = product(&examination);
            }
        }
        if !found.chosen {
            // There is nothing that it could differ from.
            fitting.differences.clear();
        }
        let toml = fitting
            .profile
            .as_ref()
            .map(|profile| text(profile, &examination))
            .transpose()?;
        if let (Some(path), Some(toml)) = (&self.write, &toml) {
            write(path, toml)?;
        }
        let report = Report {
            token: found.appointment.name,
            profile: found.chosen.then_some(found.profile.name),
            beside_a_server: found.served,
            fits: if found.chosen {
                fitting.fits()
            } else {
                // Whether any would, unless it could not be looked at.
                fitting.profile.is_some() || fitting.verdicts.is_empty()
            },
            verdicts: fitting.verdicts,
            differences: fitting.differences,
            profile_that_fits: toml,
            examination,
        };
        if context.json {
            output::json(&report)?;
        } else {
            report.show(self.write.as_deref())?;
        }
        conclude(&report)
    }
}

/// Exit code 1 where the token could not be looked at, 3 where it does not
/// do what its profile says.
fn conclude(report: &Report) -> anyhow::Result<()> {
    let found = &report.examination;
    if let Some(Outcome::Wrong(why)) = &found.login {
        bail!("{why}");
    }
    let missing = found
        .surface
        .as_ref()
        .and_then(|surface| surface.no_token.as_ref());
    if let Some(why) = missing {
        bail!("{why}");
    }
    if found.login == Some(Outcome::Works) && found.data_keys.is_none() {
        let (part, why) = found.interrupted.first().cloned().unwrap_or_default();
        bail!("the examination did not get to its end: {part}: {why}");
    }
    if report.fits {
        Ok(())
    } else {
        Err(cli::Found.into())
    }
}

/// Who says that the profile fits, and what it is for.
fn describe(profile: &mut HsmProfile, found: &Examination, path: Option<&Path>) {
    if let Some(stem) = path.and_then(Path::file_stem) {
        profile.name = stem.to_string_lossy().into_owned();
    }
    let date = time::OffsetDateTime::now_utc().date();
    profile.verified = format!(
        "by ekm slot doctor {} on {date}: {}",
        env!("CARGO_PKG_VERSION"),
        product(found)
    );
}

/// The product as it calls itself, on one line.
fn product(found: &Examination) -> String {
    let Some(surface) = &found.surface else {
        return String::new();
    };
    let (major, minor) = surface.module.version;
    let module = format!(
        "{} {} {major}.{minor}",
        surface.module.manufacturer, surface.module.description
    );
    let token = surface.token.as_ref().map(|token| {
        let (major, minor) = token.limits.firmware;
        format!(
            ", token {} {}, firmware {major}.{minor}",
            token.info.manufacturer, token.info.model
        )
    });
    let text = format!("{module}{}", token.unwrap_or_default());
    // What a token says of itself goes into a comment and a TOML string.
    text.chars().filter(|c| !c.is_control()).collect()
}

/// A whole profile, ready to be saved.
fn text(profile: &HsmProfile, found: &Examination) -> anyhow::Result<String> {
    let mut body =
        toml::to_string_pretty(profile).context("the profile cannot be written as TOML")?;
    // What is empty need not be there.
    for empty in [
        "folders = []\n",
        "[module.environment]\n\n",
        "[module.files]\n\n",
    ] {
        body = body.replace(empty, "");
    }
    Ok(format!(
        "# {}\n# Printed by `ekm slot doctor`; the fields are explained in hsm-profiles/README.md.\n{body}",
        product(found)
    ))
}

fn write(path: &Path, toml: &str) -> anyhow::Result<()> {
    let cannot = || format!("cannot write the profile to {}", path.display());
    let mut file = std::fs::File::create_new(path).with_context(cannot)?;
    file.write_all(toml.as_bytes()).with_context(cannot)?;
    file.sync_all().with_context(cannot)
}
