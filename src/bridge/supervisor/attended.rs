//! A bridge that a command drives step by step and nobody starts again.

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::process::Child;

use super::{ONCE, Program, receive};
use crate::bridge::faults::Fault;
use crate::bridge::message::{self, Errand, Hello, Reply, Response};

/// A bridge of [`Task::Attend`](crate::bridge::message::Task::Attend). It
/// ends when this is dropped.
#[derive(Debug)]
pub struct Attended {
    name: String,
    child: Child,
    socket: UnixStream,
    gone: bool,
}

impl Attended {
    /// Starts it and waits until it has loaded its module.
    ///
    /// # Errors
    /// What the bridge says, or that it could not be run.
    pub async fn start(program: &Program, hello: &Hello) -> Result<Self, Fault> {
        let (child, socket) = program.spawn(hello, None).map_err(|error| Fault::Down {
            token: hello.name.clone(),
            reason: format!("cannot start the bridge: {error}"),
        })?;
        let mut bridge = Self {
            name: hello.name.clone(),
            child,
            socket,
            gone: false,
        };
        bridge.exchange(hello, ONCE).await?;
        Ok(bridge)
    }

    /// Has it do one thing. After a crash, or when `patience` has run out, it
    /// is gone.
    ///
    /// # Errors
    /// What the bridge says, or that it has gone.
    pub async fn ask(&mut self, errand: &Errand, patience: Duration) -> Result<Reply, Fault> {
        self.exchange(errand, patience).await
    }

    /// Whether its process has ended, or was ended.
    #[must_use]
    pub const fn gone(&self) -> bool {
        self.gone
    }

    async fn exchange<T: serde::Serialize>(
        &mut self,
        asked: &T,
        patience: Duration,
    ) -> Result<Reply, Fault> {
        let socket = &mut self.socket;
        let exchange = async {
            socket.write_all(&message::encode(asked)?).await?;
            receive(socket).await
        };
        let reason = match tokio::time::timeout(patience, exchange).await {
            Ok(Ok(Response { result, .. })) => return result,
            Ok(Err(error)) => {
                format!("its bridge ended without an answer ({error}); did the module crash?")
            }
            Err(_) => {
                // A call that hangs can only be left this way.
                let _ = self.child.start_kill();
                format!(
                    "the module did not answer within {} s and was ended",
                    patience.as_secs()
                )
            }
        };
        self.gone = true;
        Err(Fault::Down {
            token: self.name.clone(),
            reason,
        })
    }
}
