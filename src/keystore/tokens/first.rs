//! One token after another, until one answers.

use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::time::Instant;

use crate::bridge::faults::Fault;
use crate::bridge::message::{Op, Reply};
use crate::bridge::supervisor::Bridge;

/// How often a token that is waited for is looked at, where something else can be tried.
const LOOK: Duration = Duration::from_millis(100);

/// Shortest time after which another token is asked too because little is left: one that hangs cannot be
/// told sooner from one that is busy.
const SHORTEST: Duration = Duration::from_secs(1);

/// Asks one token after another until one answers, or fails in a way that is
/// the request's own fault. The next is asked too, and the first answer
/// taken, where one does not answer in the time that it usually needs: an HSM
/// that hangs must not hold up what another can do. One that is silent is given
/// up where no other is left and the request is not patient; all are at `until`.
pub(super) async fn first<'a>(
    order: Vec<&'a Bridge>,
    op: &Op,
    until: Instant,
    patient: bool,
    none: impl Fn() -> Fault,
) -> Result<(&'a Bridge, Reply), Fault> {
    let mut next = order.into_iter();
    let mut asked = FuturesUnordered::new();
    let mut waiting: Vec<(&Bridge, Instant)> = Vec::new();
    let mut worst: Option<Fault> = None;
    let mut patience = Duration::ZERO;
    loop {
        let now = Instant::now();
        let left = until.saturating_duration_since(now);
        if asked.is_empty() || patience.is_zero() {
            match next.next() {
                Some(bridge) => {
                    // Where it hangs, there must be time left for another.
                    patience = bridge.patience().min((left / 2).max(SHORTEST));
                    waiting.push((bridge, now));
                    asked.push(async move { (bridge, bridge.try_ask(op, until).await) });
                }
                None if asked.is_empty() => return Err(worst.unwrap_or_else(&none)),
                None if patient => patience = Duration::MAX,
                None if waiting.iter().all(|(bridge, _)| bridge.is_silent()) => {
                    for (bridge, _) in waiting {
                        worse(&mut worst, bridge.unheard());
                    }
                    return Err(worst.unwrap_or_else(&none));
                }
                None => patience = LOOK,
            }
        }
        let answer = tokio::time::timeout(patience.min(left), asked.next()).await;
        match answer {
            Ok(Some((bridge, Ok(reply)))) => return Ok((bridge, reply)),
            Ok(Some((bridge, Err(fault)))) if fault.elsewhere() => {
                waiting.retain(|(other, _)| other.name() != bridge.name());
                worse(&mut worst, fault);
            }
            Ok(Some((_, Err(fault)))) => return Err(fault),
            Ok(None) => {}
            Err(_) if Instant::now() >= until => {
                for (bridge, since) in waiting {
                    worse(&mut worst, bridge.late(since, until));
                }
                return Err(worst.unwrap_or_else(&none));
            }
            Err(_) => patience = Duration::ZERO,
        }
    }
}

/// Asks one token, and no other after it: what a guarded EEDK comes to is asked once, since two answers
/// tell more than one, and how many were asked would show in time. A token whose bridges did not take
/// the question, or that cannot do it whatever the EEDK is, is passed over.
///
/// # Errors
/// None was asked.
pub(super) async fn once<'a>(
    order: Vec<&'a Bridge>,
    op: &Op,
    until: Instant,
    none: impl Fn() -> Fault,
) -> Result<(&'a Bridge, Result<Reply, Fault>), Fault> {
    let mut worst: Option<Fault> = None;
    for bridge in order {
        let since = Instant::now();
        let until = until.min(since + bridge.deadline());
        let asked = match bridge.taken(op, until).await {
            Ok(asked) => asked,
            Err(fault) => {
                worse(&mut worst, fault);
                continue;
            }
        };
        let said = tokio::time::timeout_at(until, bridge.heard(asked)).await;
        match said.unwrap_or_else(|_| Err(bridge.late(since, until))) {
            Err(fault) if unfit(&fault) => worse(&mut worst, fault),
            said => return Ok((bridge, said)),
        }
    }
    Err(worst.unwrap_or_else(none))
}

/// Whether the token cannot do it by what is known of the KEK and the drive, so that it does not depend
/// on what is in the EEDK.
const fn unfit(fault: &Fault) -> bool {
    match fault {
        Fault::NoKek { .. } | Fault::Refused { .. } | Fault::Unsupported { .. } => true,
        Fault::Call { .. }
        | Fault::BadEedk { .. }
        | Fault::NotTried { .. }
        | Fault::Operator { .. }
        | Fault::WrongPin { .. }
        | Fault::Down { .. }
        | Fault::Deadline { .. } => false,
    }
}

/// Keeps the fault that tells most: one that may pass leaves most hope. That an
/// EEDK is bad is no matter of comparing, and never comes here.
fn worse(worst: &mut Option<Fault>, fault: Fault) {
    if worst.as_ref().is_none_or(|known| !known.passes()) {
        *worst = Some(fault);
    }
}
