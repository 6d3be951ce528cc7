//! What an operator does about a token that is left alone: `ekm token unlock`.

use std::path::Path;
use std::sync::PoisonError;
use std::time::Duration;

use super::lane::OPENING;
use super::{Bridge, once};
use crate::bridge::faults::Fault;
use crate::bridge::message::{Hello, Reply, Task};
use crate::bridge::pin::ledger::Ledger;
use crate::bridge::pin::{Handed, PinError, PinSource};
use crate::bridge::pkcs11::TokenInfo;
use crate::bridge::which::Which;

/// How long a login that is under way is waited for.
const LED: Duration = Duration::from_secs(5);

impl Bridge {
    /// Where its user PIN comes from.
    #[must_use]
    pub fn pin_source(&self) -> Option<&PinSource> {
        match &self.shared.hello.task {
            Task::Serve { pin, .. } | Task::Keep { password: pin, .. } => Some(pin),
            Task::List | Task::Init { .. } | Task::Trust { .. } | Task::Attend { .. } => None,
        }
    }

    /// The key file, where it is a software keystore.
    #[must_use]
    pub fn key_file(&self) -> Option<&Path> {
        match &self.shared.hello.task {
            Task::Keep { file, .. } => Some(file),
            Task::Serve { .. }
            | Task::List
            | Task::Init { .. }
            | Task::Trust { .. }
            | Task::Attend { .. } => None,
        }
    }

    /// The token as it shows itself now, with its PIN flags, to a process of
    /// its own that does not log in. Several where the nodes of a cluster show,
    /// none where it is a software keystore, which counts no tries.
    ///
    /// # Errors
    /// The module's, or that no token matches.
    pub async fn shown(&self) -> Result<Vec<TokenInfo>, Fault> {
        if self.key_file().is_some() {
            return Ok(Vec::new());
        }
        let hello = Hello {
            task: Task::List,
            ..self.shared.hello.clone()
        };
        let which = self.which();
        let Reply::Slots(slots) = once(&self.shared.program, &hello).await? else {
            return Err(self.down("its bridge answered out of turn"));
        };
        let shown: Vec<TokenInfo> = slots
            .into_iter()
            .filter_map(|slot| slot.token)
            .filter(|token| token.initialized() && which.is(token))
            .collect();
        if shown.is_empty() {
            return Err(self.down(&format!(
                "no initialised token matches {}; is the HSM reachable?",
                which.uri
            )));
        }
        Ok(shown)
    }

    /// Clears what is held back for these tokens, hands on the PIN that the
    /// operator gave, and waits until each bridge that was not up has tried.
    /// The PIN is kept for the next start of those bridges, and no longer.
    ///
    /// # Errors
    /// The ledger cannot be written, or a login that is under way does not end.
    pub async fn unlock(
        &self,
        shown: &[TokenInfo],
        last_try: bool,
        pin: Option<&Handed>,
    ) -> Result<(), Fault> {
        let which = self.which();
        let mut tried = self.shared.tried.subscribe();
        let before = *tried.borrow_and_update();
        let down: Vec<usize> = self.lanes_down();
        if let Task::Serve { ledgers, .. } = &self.shared.hello.task {
            let ledgers: Vec<Ledger> = shown
                .iter()
                .map(|token| Ledger::of(ledgers, &which.counted(token)))
                .collect();
            let cleared = tokio::task::spawn_blocking(move || {
                ledgers
                    .iter()
                    .try_for_each(|ledger| ledger.lead(LED)?.unlock(last_try))
            });
            cleared
                .await
                .unwrap_or_else(|error| {
                    Err(PinError::Ledger {
                        path: "(all)".into(),
                        source: std::io::Error::other(error),
                    })
                })
                .map_err(|error| self.down(&error.to_string()))?;
        }
        {
            let mut given = self
                .shared
                .given
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            for lane in &down {
                if let Some(place) = given.get_mut(*lane) {
                    *place = pin.cloned();
                }
            }
        }
        self.nudge();
        let all = before + u64::try_from(down.len()).unwrap_or_default();
        let patience = OPENING + self.deadline;
        // What has not come to an end by then shows in the token's state.
        drop(tokio::time::timeout(patience, tried.wait_for(|tried| *tried >= all)).await);
        Ok(())
    }

    fn which(&self) -> Which {
        match &self.shared.hello.task {
            Task::Serve { token, serials, .. } => Which {
                uri: token.clone(),
                serials: serials.clone(),
            },
            Task::Keep { .. }
            | Task::List
            | Task::Init { .. }
            | Task::Trust { .. }
            | Task::Attend { .. } => Which::labelled(""),
        }
    }

    /// The bridges that are not up now.
    pub(crate) fn lanes_down(&self) -> Vec<usize> {
        let links = self.shared.links.read();
        links
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .enumerate()
            .filter(|(_, link)| link.is_none())
            .map(|(lane, _)| lane)
            .collect()
    }
}
