//! What a server does by itself for operators: rekeys that run, rotations that are due.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::admin;
use crate::service::Service;

/// Between two looks at the rekeys, where nobody wakes it.
const REKEYS: Duration = Duration::from_secs(2);

/// Between two looks at what is due.
const ROTATIONS: Duration = Duration::from_secs(1);

/// Between two attempts after one that failed.
const AGAIN: Duration = Duration::from_secs(60);

/// Works through rekeys.
pub(super) async fn rekeys(service: Arc<Service>) {
    loop {
        if let Err(problem) = admin::work_on_rekeys(&service).await {
            tracing::error!(%problem, "rekeys wait");
        }
        // Nothing depends on who wakes it.
        drop(tokio::time::timeout(REKEYS, service.woken()).await);
    }
}

/// Moves KEKs whose time has come, and rolls over by the calendar.
pub(super) async fn rotations(service: Arc<Service>) {
    let mut quiet = Instant::now();
    loop {
        tokio::time::sleep(ROTATIONS).await;
        if Instant::now() < quiet {
            continue;
        }
        let failed = match admin::work_on_rotations(&service).await {
            Ok(()) => admin::rotation_troubles(&service)
                .await
                .is_ok_and(|troubles| !troubles.is_empty()),
            Err(problem) => {
                tracing::error!(%problem, "rotations wait");
                true
            }
        };
        if failed {
            quiet = Instant::now() + AGAIN;
        }
    }
}
