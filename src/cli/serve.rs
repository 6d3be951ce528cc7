//! `ekm serve`

use std::os::unix::process::CommandExt as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

use super::{Context, output, server_runtime};
use crate::audit::AuditError;
use crate::bridge::pin::EnvironmentPins;
use crate::bridge::supervisor::Program;
use crate::config::Config;
use crate::server::{self, Door, Server, ServerError};
use crate::service::Service;

/// How long a command that works on the site by itself is waited for.
const COMMANDS: Duration = Duration::from_secs(30);

/// How often it is looked whether it has ended.
const AGAIN: Duration = Duration::from_millis(100);

/// Opens the state, starts a bridge per token and listens. It starts also
/// while no token is ready, and says so on /readyz.
#[derive(Debug, clap::Args)]
pub(super) struct Serve {
    /// Standard input has the PINs that were in the environment; the server starts itself so.
    #[arg(long, hide = true)]
    pins_on_stdin: bool,
}

impl Serve {
    /// The PINs that were in the environment. What a process is started with
    /// stays readable in `/proc/PID/environ` whatever it does, so this process
    /// takes its own place once, without the variables.
    fn pins(&self, config: &Config) -> anyhow::Result<EnvironmentPins> {
        if self.pins_on_stdin {
            return EnvironmentPins::from_stdin()
                .context("--pins-on-stdin is for the server's own use");
        }
        let failed = "cannot take the PINs out of the environment";
        let Some(pins) = EnvironmentPins::to_stdin(config.pin_variables()).context(failed)? else {
            return Ok(EnvironmentPins::default());
        };
        // By its name, so that the process goes on being called ekm.
        let own = std::env::current_exe()
            .ok()
            .filter(|path| path.exists())
            .unwrap_or_else(|| "/proc/self/exe".into());
        let mut command = std::process::Command::new(own);
        for name in config.pin_variables() {
            command.env_remove(name);
        }
        // Where that succeeds it does not return.
        let error = command
            .args(std::env::args_os().skip(1))
            .arg("--pins-on-stdin")
            .stdin(pins)
            .exec();
        Err(error).context(failed)
    }

    pub(super) fn run(&self, context: &Context) -> anyhow::Result<()> {
        crate::bridge::process::harden_server().context("cannot forbid core dumps")?;
        let config = Config::load(&context.config)?;
        let pins = self.pins(&config)?;
        for token in &config.tokens {
            if token.profile == "embedded" {
                tracing::warn!(
                    token = token.name,
                    "the embedded token keeps its keys in a process of ekm's own: for trying, testing and small sites; its directory is the only copy of the KEKs"
                );
            }
        }
        for exposed in config.exposed_keys() {
            tracing::warn!("{exposed}");
        }
        for caution in config.cautions() {
            tracing::warn!("{caution}");
        }
        for token in config.v15_tokens() {
            tracing::warn!(
                token,
                "policy.pkcs1_v15_eedks = \"allow\": this token wraps and opens EEDKs by RSAES-PKCS1-v1_5, whose padding can be probed by whoever sends EEDKs that were not issued here; what is done against it, and what is left, is in docs/pkcs1-v15.md"
            );
        }
        for keystore in &config.keystores {
            tracing::warn!(
                token = keystore.name,
                file = %keystore.file.display(),
                "a software keystore: its private keys, and every data key that they open, are in the memory of a process of ekm's own; move its KEKs into a token (ekm kek import) and take [[keystores]] out"
            );
        }
        let runtime = server_runtime()?;
        let outcome = runtime.block_on(serve(&config, pins));
        // A bridge that hangs must not keep the server from ending.
        runtime.shutdown_timeout(Duration::from_secs(2));
        outcome
    }
}

async fn serve(config: &Config, pins: EnvironmentPins) -> anyhow::Result<()> {
    let door = Door::open(config).await?;
    let program = Program::own()?.with_pins(pins);
    let service = Arc::new(opened(config, &program).await?);
    let server = Server::new(door, config, service);
    let address = server.address()?;
    // Before anybody hears that it listens, and stops it for that.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tracing::info!(%address, "listening");
    // For whoever started it with port 0; a server goes on when nobody reads it.
    drop(output::say(&format!("listening on https://{address}")));
    tell_systemd(&[sd_notify::NotifyState::Ready]);
    server
        .run(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tell_systemd(&[sd_notify::NotifyState::Stopping]);
        })
        .await?;
    Ok(())
}

/// Opens the site. A command that works on it by itself, for want of a server, is soon done; the
/// next one finds the operators' socket, which is bound by now.
async fn opened(config: &Config, program: &Program) -> Result<Service, ServerError> {
    let until = Instant::now() + COMMANDS;
    loop {
        match server::open_serving(config, program).await {
            Err(ServerError::Audit(AuditError::Locked { .. })) if Instant::now() < until => {
                tokio::time::sleep(AGAIN).await;
            }
            outcome => return outcome,
        }
    }
}

pub(super) fn tell_systemd(states: &[sd_notify::NotifyState]) {
    if let Err(error) = sd_notify::notify(false, states) {
        tracing::warn!(%error, "systemd could not be told");
    }
}
