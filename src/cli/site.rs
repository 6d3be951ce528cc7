//! Where an operator's command runs: in the server, if one runs, else here.

use anyhow::{Context as _, bail};
use futures_util::future::join_all;

use super::{Context, runtime};
use crate::admin::{self, Change, Command, Reply};
use crate::bridge::pin::{EnvironmentPins, Handed};
use crate::bridge::supervisor::{Bridge, Program};
use crate::config::Config;
use crate::server::{self, OperatorError};

/// Puts a command to the server of the configuration, or does it here.
pub(super) fn execute(context: &Context, command: Command) -> anyhow::Result<Reply> {
    execute_with_pin(&Config::load(&context.config)?, command, None)
}

/// The same, with a PIN for the server to hand on.
pub(super) fn execute_with_pin(
    config: &Config,
    command: Command,
    pin: Option<&Handed>,
) -> anyhow::Result<Reply> {
    let runtime = runtime()?;
    let reply = runtime.block_on(async {
        match server::ask_with_pin(&config.socket(), &command, pin).await {
            Err(OperatorError::NoServer(_)) if pin.is_some() => {
                bail!("no server runs, and the PIN is for its bridge; start it first: ekm serve")
            }
            Err(OperatorError::NoServer(_)) => here(config, command).await,
            outcome => Ok(outcome?),
        }
    });
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    reply
}

async fn here(config: &Config, command: Command) -> anyhow::Result<Reply> {
    let program = Program::own()
        .context("cannot find the ekm executable")?
        .with_pins(EnvironmentPins::of_environment(config.pin_variables())?);
    let needs_tokens = match &command {
        Command::DriveDel { .. }
        | Command::DriveList
        | Command::DriveImport { .. }
        | Command::DriveTrust { .. }
        | Command::VolumeList { .. } => false,
        Command::KekDefault { set } => set.is_some(),
        Command::DriveAdd { change, .. } | Command::DriveMod { change, .. } => {
            change.accept
                || matches!(change.kek1, Change::Set(_))
                || matches!(change.kek2, Change::Set(_))
        }
        Command::KekGenerate { .. }
        | Command::KekImport(_)
        | Command::KekImported { .. }
        | Command::KekAdopt { .. }
        | Command::KekCopy { .. }
        | Command::KekCopyStated { .. }
        | Command::KekList
        | Command::KekRequest { .. }
        | Command::KekPossession { .. }
        | Command::KekCertificate { .. }
        | Command::PartnerAdd { .. }
        | Command::PartnerList
        | Command::PartnerRemove { .. }
        | Command::TokenStatus
        | Command::TokenUnlock { .. } => true,
    };
    let mut config = config.clone();
    if !needs_tokens {
        // A bridge that is ended in the middle of its login leaves the PIN held back.
        config.tokens.clear();
        config.keystores.clear();
    }
    let service = server::open(&config, &program).await?;
    let tolerant = matches!(
        command,
        Command::TokenStatus
            | Command::TokenUnlock { .. }
            // What was done to a token is recorded also where it has gone since.
            | Command::KekImported { .. }
            | Command::KekAdopt { ended: Some(_), .. }
            | Command::KekCopy { ended: Some(_), .. }
    );
    // All of them, before one's fault ends the others in the middle of a login.
    let settled = join_all(service.tokens().bridges().iter().map(Bridge::settled)).await;
    for outcome in settled {
        if let Err(fault) = outcome
            && !tolerant
        {
            bail!(fault);
        }
    }
    let user = rustix::process::getuid().as_raw();
    Ok(admin::execute(&service, &format!("operator:uid {user}"), command).await?)
}

/// The reply was of another kind than the command's.
pub(super) fn out_of_turn<T>(reply: &Reply) -> anyhow::Result<T> {
    bail!("the server gave an answer of another kind ({reply:?}); is it of this version?")
}
