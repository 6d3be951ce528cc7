//! Which token `ekm slot doctor` and `ekm slot bench` are about.

use std::fs::{OpenOptions, TryLockError};
use std::io::IsTerminal;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use secrecy::{ExposeSecret, SecretString};

use super::Which;
use crate::admin::Command;
use crate::bridge::doctor::Appointment;
use crate::bridge::pin::{EnvironmentPins, Pin, PinSource};
use crate::bridge::profile::HsmProfile;
use crate::bridge::supervisor::Program;
use crate::bridge::uri::TokenUri;
use crate::cli::Context;
use crate::config::{Config, TokenConfig};
use crate::files::FileLock;

/// A token of `ekm.toml`, or any token of a module.
#[derive(Debug, clap::Args)]
pub(super) struct Subject {
    /// A token of ekm.toml: its URI, directory and PIN, and its profile
    /// unless another is given.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["module", "directory", "uri", "label"])]
    token: Option<String>,

    #[command(flatten)]
    which: Which,

    /// The token's PKCS#11 URI, where the module shows more than one.
    #[arg(long, value_name = "URI", conflicts_with = "label")]
    uri: Option<TokenUri>,

    /// The token's label, where the module shows more than one.
    #[arg(long, value_name = "TOKEN")]
    label: Option<String>,

    /// A file with the user PIN; asked for on a terminal where it is not
    /// given. Without a PIN there is no login.
    #[arg(long, value_name = "FILE")]
    pin_file: Option<PathBuf>,
}

/// A subject, found.
pub(super) struct Found {
    pub(super) appointment: Appointment,
    /// The profile as its file has it, `{directory}` and all.
    pub(super) profile: HsmProfile,
    /// Somebody chose the profile; it does not just stand in for one.
    pub(super) chosen: bool,
    /// A server is using the token now.
    pub(super) served: bool,
    // Two that remove each other's throw-away keys would both find nonsense.
    _alone: FileLock,
}

impl Found {
    /// The program whose bridges do it; they are handed the PIN where it is in a variable.
    pub(super) fn program(&self) -> anyhow::Result<Program> {
        let variable = match &self.appointment.pin {
            Some(Pin::Source(PinSource::Env(name))) => Some(name.as_str()),
            Some(Pin::Source(_) | Pin::Given(_)) | None => None,
        };
        Ok(Program::own()?.with_pins(EnvironmentPins::of_environment(variable)?))
    }
}

impl Subject {
    /// Looks it up, and sees to it that nobody else is at it.
    pub(super) fn find(&self, context: &Context) -> anyhow::Result<Found> {
        match &self.token {
            Some(name) => self.configured(context, name),
            None => self.any(context),
        }
    }

    fn configured(&self, context: &Context, name: &str) -> anyhow::Result<Found> {
        let config = Config::load(&context.config)?;
        let Some(token) = config.tokens.iter().find(|token| token.name == name) else {
            let names: Vec<&str> = config
                .tokens
                .iter()
                .map(|token| token.name.as_str())
                .collect();
            bail!(
                "{} has no token {name}; it has {}",
                context.config.display(),
                names.join(", ")
            );
        };
        let mut token = token.clone();
        if let Some(profile) = &self.which.profile {
            token.profile.clone_from(profile);
        }
        let pin = match &self.pin_file {
            Some(path) => Some(file(path)?),
            // The server that he gave it to has not kept it.
            None if token.pin == PinSource::Operator => asked()?,
            None => Some(Pin::Source(token.pin.clone())),
        };
        let ledgers = ledgers(&config);
        let alone = alone(&ledgers)?;
        Ok(Found {
            appointment: Appointment {
                name: name.to_owned(),
                profile: token.settled_profile()?,
                token: Some(token.uri.clone()),
                serials: token.serials.clone(),
                pin,
                ledgers,
                sessions: 0,
            },
            profile: unsettled(&token)?,
            chosen: true,
            served: served(&config)?,
            _alone: alone,
        })
    }

    fn any(&self, context: &Context) -> anyhow::Result<Found> {
        if !self.which.given()
            && let Ok(config) = Config::draft(&context.config)
            && !config.tokens.is_empty()
        {
            let names: Vec<&str> = config
                .tokens
                .iter()
                .map(|token| token.name.as_str())
                .collect();
            bail!(
                "say which token: --token NAME ({}), or which module: --profile NAME ({}) or --module LIBRARY.so",
                names.join(", "),
                HsmProfile::shipped().collect::<Vec<_>>().join(", ")
            );
        }
        let profile = self.which.unsettled()?;
        let settled = self.which.found(profile.clone())?;
        // A PIN that the server would hold back is held back here too.
        let ledgers = if context.config.exists() {
            ledgers(&Config::load(&context.config).context(
                "the login ledgers are where ekm.toml says; mend it, or name another with --config",
            )?)
        } else {
            self.which.directory(&profile)?.join("pins")
        };
        let alone = alone(&ledgers)?;
        let pin = match &self.pin_file {
            Some(path) => Some(file(path)?),
            None => asked()?,
        };
        let label = self.label.as_deref().map(TokenUri::labelled);
        Ok(Found {
            appointment: Appointment {
                name: profile.name.clone(),
                profile: settled,
                token: self.uri.clone().or(label),
                serials: Vec::new(),
                pin,
                ledgers,
                sessions: 0,
            },
            profile: if self.which.module.is_some() {
                stand_in(profile, &self.which)
            } else {
                profile
            },
            chosen: self.which.profile.is_some(),
            served: false,
            _alone: alone,
        })
    }
}

/// The profile of a module that has none, without what only this run needed.
fn stand_in(mut profile: HsmProfile, which: &Which) -> HsmProfile {
    let stem = which.module.as_deref().and_then(Path::file_stem);
    profile.name = stem
        .map(|stem| stem.to_string_lossy().into_owned())
        .unwrap_or_default();
    profile.module.environment.clear();
    profile
}

/// A configured token's profile, before its directory is put in.
fn unsettled(token: &TokenConfig) -> anyhow::Result<HsmProfile> {
    let mut profile = HsmProfile::load(&token.profile)?;
    if let Some(library) = &token.library {
        profile.module.library.clone_from(library);
    }
    Ok(profile)
}

pub(in crate::cli) fn ledgers(config: &Config) -> PathBuf {
    config.state.join("pins")
}

/// The lock of whoever examines or measures; the kernel drops it in any case.
pub(in crate::cli) fn alone(ledgers: &Path) -> anyhow::Result<FileLock> {
    let cannot = || format!("cannot keep the login ledgers in {}", ledgers.display());
    crate::files::private_dir(ledgers).with_context(cannot)?;
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(ledgers.join("doctor.lock"))
        .with_context(cannot)?;
    match FileLock::try_new(file) {
        Ok(lock) => Ok(lock),
        Err(TryLockError::WouldBlock) => {
            bail!(
                "another ekm slot doctor, ekm slot bench, ekm kek import, ekm kek adopt or ceremony of a KEK is at work; wait until it has ended"
            )
        }
        Err(TryLockError::Error(error)) => Err(error).with_context(cannot),
    }
}

fn served(config: &Config) -> anyhow::Result<bool> {
    let answer = crate::cli::runtime()?
        .block_on(crate::server::ask(&config.socket(), &Command::TokenStatus));
    Ok(answer.is_ok())
}

pub(in crate::cli) fn file(path: &Path) -> anyhow::Result<Pin> {
    Ok(Pin::Source(PinSource::File(std::path::absolute(path)?)))
}

/// The PIN that somebody types, once: a wrong one is refused by the token.
pub(in crate::cli) fn asked() -> anyhow::Result<Option<Pin>> {
    if !std::io::stdin().is_terminal() {
        return Ok(None);
    }
    let typed = SecretString::from(rpassword::prompt_password(
        "User PIN (nothing: look without a login): ",
    )?);
    Ok((!typed.expose_secret().is_empty()).then(|| Pin::Given(typed.into())))
}
