//! `ekm serve`

use std::sync::Arc;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

use super::{Context, output, runtime};
use crate::bridge::supervisor::Program;
use crate::config::Config;
use crate::server::{self, Door, Server};

/// Opens the state, starts a bridge per token and listens. It starts also
/// while no token is ready, and says so on /readyz.
#[derive(Debug, clap::Args)]
pub(super) struct Serve {}

impl Serve {
    pub(super) fn run(&self, context: &Context) -> anyhow::Result<()> {
        crate::bridge::process::harden_server().context("cannot forbid core dumps")?;
        let config = Config::load(&context.config)?;
        for token in &config.tokens {
            if token.profile == "embedded" {
                tracing::warn!(
                    token = token.name,
                    "the embedded token keeps its keys in a process of ekm's own: for trying, testing and small sites; its directory is the only copy of the KEKs"
                );
            }
        }
        let runtime = runtime()?;
        let outcome = runtime.block_on(serve(&config));
        // A bridge that hangs must not keep the server from ending.
        runtime.shutdown_timeout(std::time::Duration::from_secs(2));
        outcome
    }
}

async fn serve(config: &Config) -> anyhow::Result<()> {
    let door = Door::open(config).await?;
    let service = Arc::new(server::open(config, &Program::own()?).await?);
    let server = Server::new(door, config, service)?;
    let address = server.address()?;
    tracing::info!(%address, "listening");
    // For whoever started it with port 0; a server goes on when nobody reads it.
    drop(output::say(&format!("listening on https://{address}")));
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
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

fn tell_systemd(states: &[sd_notify::NotifyState]) {
    if let Err(error) = sd_notify::notify(false, states) {
        tracing::warn!(%error, "systemd could not be told");
    }
}
