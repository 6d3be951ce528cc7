//! Syncs at their times, done by the running server.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use time::OffsetDateTime;

use super::{Ask, SyncError, SyncFrom, run};
use crate::service::Service;

/// Shortest and longest pause after a sync that failed. It grows, and is no longer than the time
/// between two syncs.
const PAUSES: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(600));

/// While an operator's own is under way.
const BUSY: Duration = Duration::from_secs(1);

/// Does every sync that has a time, until the server ends.
pub(crate) async fn schedule(service: Arc<Service>) {
    let from = service.peers().config().from.clone();
    join_all(from.into_iter().filter_map(|from| {
        let every = Duration::from_secs(from.every_seconds?);
        Some(keep(Arc::clone(&service), from, every))
    }))
    .await;
}

async fn keep(service: Arc<Service>, from: SyncFrom, every: Duration) {
    let ask = Ask {
        from: from.peer.to_string(),
        what: None,
        mode: None,
        dry_run: false,
        force: false,
    };
    let mut pause = PAUSES.0;
    let mut goes_on = false;
    loop {
        // One of another server on the same state counts, and one before this server started.
        let last = service.store().synced(&from.peer).await;
        if let Some(at) = last.ok().and_then(|synced| synced.at) {
            service.peers().note_good(&from.peer, at);
            let since = (OffsetDateTime::now_utc() - at).unsigned_abs();
            let rest = every.checked_sub(since).filter(|rest| !rest.is_zero());
            if let Some(rest) = rest.filter(|_| !goes_on) {
                tokio::time::sleep(rest).await;
                continue;
            }
        }
        match run(&service, "schedule", &ask).await {
            Ok(report) => {
                pause = PAUSES.0;
                tracing::info!(peer = %from.peer, "sync: {}", report.summary());
                // The rest of a long history follows at once.
                goes_on = report.history.is_some_and(|history| !history.complete);
                tokio::time::sleep(if goes_on { BUSY } else { every }).await;
            }
            Err(SyncError::Busy) => tokio::time::sleep(BUSY).await,
            Err(error) => {
                tracing::warn!(peer = %from.peer, %error, "a sync failed");
                tokio::time::sleep(pause.min(every)).await;
                pause = (pause * 2).min(PAUSES.1);
            }
        }
    }
}
