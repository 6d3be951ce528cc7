//! Looking at key servers: in the background, and where an operator wants to know.
//!
//! A look is a real exchange: a connection of its own, mutual TLS, and `GET /readyz`, which is 200
//! only while the server can write its records and a token's canary opens.

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::join_all;
use time::OffsetDateTime;
use tokio::time::{Instant, timeout_at};

use super::link::{Link, ServerState};
use super::pool::Turn;
use super::seen::{Verified, Which};
use super::tries::in_seconds;
use super::{Inner, later};
use crate::problem::Problem;
use crate::proxy::servers::ServerRole;

/// A server of which nothing was heard for so long is looked at, also while it is well: that the
/// secondary is gone shall be known before it is needed.
const SILENT: Duration = Duration::from_secs(60);

/// A server that is waited for is looked at no more often than this.
const PRESSED: Duration = Duration::from_millis(500);

/// Looks at the servers until the last service over them is gone.
pub(super) async fn watch(inner: Weak<Inner>) {
    let mut pressed = false;
    loop {
        let Some(inner) = inner.upgrade() else {
            return;
        };
        for listed in &inner.list().links {
            let link = &listed.link;
            if is_due(link, inner.times.probe, pressed)
                && let Some(turn) = inner.pool.turn_now()
                && let Some(look) = link.look()
            {
                let (inner, listed) = (Arc::clone(&inner), listed.clone());
                tokio::spawn(async move {
                    let _looking = look;
                    let outcome = look_at(&inner, &listed.link, listed.answer, turn).await;
                    follows(&inner, &listed.link, &outcome);
                });
            }
        }
        later::tell(&inner);
        let pause = (inner.times.probe / 4).clamp(Duration::from_millis(50), SILENT / 60);
        pressed = tokio::time::timeout(pause, inner.nudge.notified())
            .await
            .is_ok();
    }
}

fn is_due(link: &Link, probe: Duration, pressed: bool) -> bool {
    if link.is_suspect() {
        return true;
    }
    let Some(silent) = link.silent() else {
        return false;
    };
    let usable = link.usable();
    let bound = match (usable, pressed) {
        (true, _) => SILENT,
        (false, true) => PRESSED.min(probe),
        (false, false) => probe,
    };
    silent >= bound
}

/// The exchange, and the time that it took.
async fn look_at(
    inner: &Inner,
    link: &Arc<Link>,
    answer: Duration,
    turn: Turn,
) -> Result<Duration, (ServerState, String)> {
    let _turn = turn;
    let _exchange = link.exchange();
    let begun = Instant::now();
    let until = begun + answer;
    let down = |reason: String| (ServerState::Down, reason);
    let mut wire = inner
        .connect(link, until)
        .await
        .map_err(|miss| down(miss.told()))?;
    let (status, body) = timeout_at(until, wire.get("/readyz"))
        .await
        .map_err(|_| down(format!("did not answer within {}", in_seconds(answer))))?
        .map_err(|error| down(format!("ended the connection: {error}")))?;
    let took = begun.elapsed();
    inner.pool.keep(link.address(), wire);
    if (200..300).contains(&status) {
        return Ok(took);
    }
    match serde_json::from_slice::<Problem>(&body) {
        Ok(problem) => {
            let first = problem.detail.lines().next().unwrap_or_default();
            Err((ServerState::NotReady, format!("is not ready: {first}")))
        }
        Err(_) => Err(down(format!(
            "did not answer properly: HTTP status {status}"
        ))),
    }
}

fn follows(inner: &Inner, link: &Link, outcome: &Result<Duration, (ServerState, String)>) {
    match outcome {
        Ok(_) => {
            let (before, since, _) = link.told();
            inner.is_well(link);
            if !before.usable() {
                let seconds = (OffsetDateTime::now_utc() - since).whole_seconds();
                tracing::info!(server = %link.address(), seconds, "key server is back");
            }
        }
        Err((state, reason)) => inner.is_ill(link, *state, reason),
    }
}

/// Looks at these servers, all at once.
pub(super) async fn verify(inner: &Arc<Inner>, which: Which) -> Vec<Verified> {
    let list = inner.list();
    let looks = (0..)
        .zip(&list.links)
        .filter(|(place, _)| which.has(*place))
        .map(|(place, listed)| async move {
            let link = &listed.link;
            let begun = Instant::now();
            let turn = timeout_at(begun + listed.answer, inner.pool.turn()).await;
            let outcome = match turn {
                Ok(Some(turn)) => {
                    let outcome = look_at(inner, link, listed.answer, turn).await;
                    follows(inner, link, &outcome);
                    outcome.map(drop).map_err(|(_, reason)| reason)
                }
                Ok(None) | Err(_) => Err(format!(
                    "was not asked: all connections (maxconn) were in use for {}",
                    in_seconds(listed.answer)
                )),
            };
            Verified {
                server: link.address().clone(),
                role: ServerRole(place),
                milliseconds: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
                failure: outcome.err(),
            }
        });
    join_all(looks).await
}
