//! One token after another, until one answers.

use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::time::Instant;

use crate::bridge::faults::Fault;
use crate::bridge::message::{Op, Reply};
use crate::bridge::supervisor::Bridge;

/// How often a token that is waited for is looked at, where something else can be tried.
const LOOK: Duration = Duration::from_millis(100);

/// Asks one token after another until one answers, or fails in a way that is
/// the request's own fault. The next is asked too, and the first answer
/// taken, where one does not answer in the time that it usually needs: an HSM
/// that hangs must not hold up what another can do. One that is silent is given
/// up where no other is left and the request is not patient.
pub(super) async fn first<'a>(
    order: Vec<&'a Bridge>,
    op: &Op,
    until: Instant,
    patient: bool,
    none: impl Fn() -> Fault,
) -> Result<(&'a Bridge, Reply), Fault> {
    let mut next = order.into_iter();
    let mut asked = FuturesUnordered::new();
    let mut waiting: Vec<&Bridge> = Vec::new();
    let mut worst: Option<Fault> = None;
    let mut patience = Duration::ZERO;
    loop {
        if asked.is_empty() || patience.is_zero() {
            match next.next() {
                Some(bridge) => {
                    patience = bridge.patience();
                    waiting.push(bridge);
                    asked.push(async move { (bridge, bridge.try_ask(op, until).await) });
                }
                None if asked.is_empty() => return Err(worst.unwrap_or_else(&none)),
                None if patient => patience = Duration::MAX,
                None if waiting.iter().all(|bridge| bridge.is_silent()) => {
                    for bridge in waiting {
                        worse(&mut worst, bridge.unheard());
                    }
                    return Err(worst.unwrap_or_else(&none));
                }
                None => patience = LOOK,
            }
        }
        let answer = tokio::time::timeout(patience, asked.next()).await;
        match answer {
            Ok(Some((bridge, Ok(reply)))) => return Ok((bridge, reply)),
            Ok(Some((bridge, Err(fault)))) if fault.elsewhere() => {
                waiting.retain(|other| other.name() != bridge.name());
                worse(&mut worst, fault);
            }
            Ok(Some((_, Err(fault)))) => return Err(fault),
            Ok(None) => {}
            Err(_) => patience = Duration::ZERO,
        }
    }
}

/// Keeps the fault that tells most: one that may pass leaves most hope. That an
/// EEDK is bad is no matter of comparing, and never comes here.
fn worse(worst: &mut Option<Fault>, fault: Fault) {
    if worst.as_ref().is_none_or(|known| !known.passes()) {
        *worst = Some(fault);
    }
}
