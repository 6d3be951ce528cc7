//! A bridge of the command's own, for what no server need see.

use std::path::Path;

use anyhow::{Context as _, bail};

use crate::bridge::message::{Hello, Task};
use crate::bridge::pin::{EnvironmentPins, Pin, PinSource};
use crate::bridge::supervisor::Program;
use crate::cli::slot::subject;
use crate::config::{Config, TokenConfig};
use crate::files::FileLock;

/// A token, and how to get to it.
pub(super) struct OwnBridge {
    pub(super) program: Program,
    pub(super) hello: Hello,
    // Two that remove what the other has just made would both find nonsense.
    _alone: FileLock,
}

impl OwnBridge {
    /// For the token of that name in the configuration. Its PIN comes from where the
    /// configuration says; one that an operator gives, from the file or the terminal.
    pub(super) fn new(
        config: &Config,
        name: &str,
        pin_file: Option<&Path>,
    ) -> anyhow::Result<Self> {
        let token = token(config, Some(name))?;
        let pin = match (&token.pin, pin_file) {
            (_, Some(path)) => subject::file(path)?,
            (PinSource::Operator, None) => subject::asked()?.with_context(|| {
                format!("the PIN of token {name} comes from an operator: give it with --pin-file, or at a terminal")
            })?,
            (source, None) => Pin::Source(source.clone()),
        };
        let variable = match &pin {
            Pin::Source(PinSource::Env(name)) => Some(name.as_str()),
            Pin::Source(_) | Pin::Given(_) => None,
        };
        let program = Program::own()
            .context("cannot find the ekm executable")?
            .with_pins(EnvironmentPins::of_environment(variable)?);
        let profile = token.settled_profile()?;
        profile.serves()?;
        let ledgers = subject::ledgers(config);
        let alone = subject::alone(&ledgers)?;
        Ok(Self {
            program,
            hello: Hello {
                name: name.to_owned(),
                profile,
                task: Task::Attend {
                    token: Some(token.uri.clone()),
                    serials: token.serials.clone(),
                    pin: Some(pin),
                    ledgers,
                    avoid: Vec::new(),
                },
            },
            _alone: alone,
        })
    }
}

/// The token of that name, or the only one.
pub(super) fn token<'a>(config: &'a Config, name: Option<&str>) -> anyhow::Result<&'a TokenConfig> {
    let names = || {
        let names: Vec<&str> = config
            .tokens
            .iter()
            .map(|token| token.name.as_str())
            .collect();
        names.join(", ")
    };
    match (name, config.tokens.as_slice()) {
        (Some(name), tokens) => match tokens.iter().find(|token| token.name == name) {
            Some(token) => Ok(token),
            None => bail!("the configuration has no token {name}; it has {}", names()),
        },
        (None, [only]) => Ok(only),
        (None, []) => bail!("the configuration has no token"),
        (None, _) => bail!(
            "there is more than one token; say which with --token: {}",
            names()
        ),
    }
}
