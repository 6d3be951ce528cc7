//! The bridge of a ceremony, and what must be undone when it ends badly.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use super::own_bridge::OwnBridge;
use crate::bridge::ceremony::{Step, Stepped};
use crate::bridge::faults::Fault;
use crate::bridge::message::{Errand, Reply};
use crate::bridge::supervisor::Attended;

/// Longest time for one step; RSA-4096 on a slow token takes minutes.
const PATIENCE: Duration = Duration::from_secs(600);

/// A ceremony's bridge.
pub(super) struct Stage<'a> {
    own: &'a OwnBridge,
    bridge: Attended,
}

impl<'a> Stage<'a> {
    /// Starts it. From here on a signal does not end this process: what is on
    /// the token must be frozen or destroyed first.
    pub(super) async fn set(own: &'a OwnBridge) -> anyhow::Result<Self> {
        for kind in [
            SignalKind::interrupt(),
            SignalKind::terminate(),
            SignalKind::hangup(),
        ] {
            // Whoever has asked for a signal once does not die of it any more.
            drop(signal(kind)?);
        }
        Ok(Self {
            own,
            bridge: Attended::start(&own.program, &own.hello).await?,
        })
    }

    /// Has it do a step.
    pub(super) async fn step(&mut self, step: Step) -> Result<Stepped, Fault> {
        match self
            .bridge
            .ask(&Errand::Ceremony(Box::new(step)), PATIENCE)
            .await?
        {
            Reply::Ceremony(stepped) => Ok(stepped),
            other => Err(self.out_of_turn(&format!("{other:?}"))),
        }
    }

    /// Destroys what has that `CKA_ID`, by another bridge where this one has
    /// gone; what there is to say about it.
    pub(super) async fn undo(&mut self, id: &[u8]) -> String {
        let undone = async {
            if self.bridge.gone() {
                self.bridge = Attended::start(&self.own.program, &self.own.hello).await?;
            }
            self.step(Step::Undo { id: id.to_vec() }).await
        };
        match undone.await {
            Ok(Stepped::Undone(0)) => "nothing of the key is on the token".to_owned(),
            Ok(_) => "the key was destroyed".to_owned(),
            Err(fault) => format!(
                "THE KEY COULD NOT BE DESTROYED ({fault}); it may be on the token and extractable: destroy the objects with CKA_ID {} with the token's own tool",
                hex::encode(id)
            ),
        }
    }

    /// A bridge of this very program gave an answer of another kind.
    pub(super) fn out_of_turn(&self, got: &str) -> Fault {
        Fault::Down {
            token: self.own.hello.name.clone(),
            reason: format!("the bridge gave an answer of another kind ({got})"),
        }
    }
}
