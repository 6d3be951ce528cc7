//! `ekm token unlock`

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use secrecy::SecretString;

use super::{Context, output, site};
use crate::admin::{Command, Reply};
use crate::bridge::pin::{Handed, PinSource};
use crate::config::Config;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Unlock {
    /// The token, as the configuration names it.
    #[arg(value_name = "TOKEN")]
    name: String,

    /// A file with the PIN, where it comes from an operator; asked for where it is not given.
    #[arg(long, value_name = "FILE")]
    pin_file: Option<PathBuf>,

    /// Tries also where the token says that the next wrong PIN locks it.
    #[arg(long)]
    last_try: bool,
}

impl Unlock {
    pub(super) fn run(&self, context: &Context) -> anyhow::Result<()> {
        let pin = match &context.site {
            None => self.pin(&Config::load(&context.config)?)?,
            Some(_) => self.pin_for_another()?,
        };
        let command = Command::TokenUnlock {
            token: self.name.clone(),
            last_try: self.last_try,
        };
        let unlocked = match site::execute_at(context, command, pin.as_ref())? {
            Reply::Unlocked(unlocked) => unlocked,
            other => return site::out_of_turn(&other),
        };
        let in_vain = matches!(unlocked.status.state.as_str(), "locked" | "failed");
        let state = unlocked.status.state.clone();
        if context.json {
            output::json(&unlocked)?;
        } else if unlocked.untried && !in_vain {
            let why = unlocked.status.why.as_deref();
            output::say(&untried(&self.name, &state, why, pin.is_some()))?;
        } else {
            output::say(&format!("tries left before this  {}", unlocked.tries))?;
            super::show(unlocked.status)?;
        }
        if in_vain {
            bail!(
                "token {} was tried and is {state}; `why` above says what to mend",
                self.name
            );
        }
        Ok(())
    }

    /// The PIN for a server whose configuration is not at hand, where a file is given.
    fn pin_for_another(&self) -> anyhow::Result<Option<Handed>> {
        let Some(path) = &self.pin_file else {
            return Ok(None);
        };
        let file = PinSource::File(std::path::absolute(path)?);
        let pin = file.read(&self.name)?.pin;
        pin.map(|pin| handed(&pin)).transpose()
    }

    /// The PIN, where it is the operator who gives it.
    fn pin(&self, config: &Config) -> anyhow::Result<Option<Handed>> {
        let name = &self.name;
        let token = config.tokens.iter().find(|token| token.name == *name);
        match (token.map(|token| &token.pin), &self.pin_file) {
            (Some(PinSource::Operator), Some(path)) => {
                let file = PinSource::File(std::path::absolute(path)?);
                let pin = file.read(name)?.pin;
                pin.map(|pin| handed(&pin)).transpose()
            }
            (Some(PinSource::Operator), None) => {
                let pin = rpassword::prompt_password(format!("User PIN of token {name}: "))
                    .map(SecretString::from)
                    .context("cannot ask for the PIN; give a file with --pin-file")?;
                handed(&pin).map(Some)
            }
            (Some(source), Some(_)) => bail!(
                "the PIN of token {name} comes from {source}: put the right one there, and unlock without --pin-file"
            ),
            // Whether there is such a token is for the server to say, whose configuration counts.
            (_, None) => Ok(None),
            (None, Some(_)) => bail!("the configuration has no token {name}"),
        }
    }
}

fn handed(pin: &SecretString) -> anyhow::Result<Handed> {
    Handed::new(pin).context("cannot put the PIN into a file in memory")
}

/// That nobody may take a token that was up for a PIN that is right.
fn untried(token: &str, state: &str, why: Option<&str>, given: bool) -> String {
    let pin = if given {
        ", and the PIN that was given was not looked at"
    } else {
        ""
    };
    let next = why.map_or_else(String::new, |why| {
        format!(
            "; no PIN is held back, and what is wrong is another thing: {why}; mend that, and ekm token status says when it is ready"
        )
    });
    format!("token {token} is {state}; nothing was tried{pin}{next}")
}

#[cfg(test)]
mod tests {
    use super::untried;

    #[test]
    fn a_pin_that_nobody_looked_at_is_not_called_right() {
        assert_eq!(
            untried("main", "ready", None, true),
            "token main is ready; nothing was tried, and the PIN that was given was not looked at"
        );
        assert_eq!(
            untried("main", "ready", None, false),
            "token main is ready; nothing was tried"
        );
        let told = untried("old", "degraded", Some("old.p12 is gone"), false);
        assert!(told.contains("old.p12 is gone; mend that"), "{told}");
    }
}
