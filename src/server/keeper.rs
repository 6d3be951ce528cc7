//! What a server does by itself for operators: rekeys that run, rotations that are due.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::admin;
use crate::problem::Problem;
use crate::service::Service;

/// Between two looks at the rekeys, where nobody wakes it.
const REKEYS: Duration = Duration::from_secs(2);

/// Between two looks at what is due.
const ROTATIONS: Duration = Duration::from_secs(1);

/// Between two attempts after one that failed.
const AGAIN: Duration = Duration::from_secs(60);

/// What was told last of a work that waits. It is tried again every few seconds, and what is the
/// matter may last for hours.
#[derive(Debug, Default)]
struct Told(Option<String>);

impl Told {
    /// Whether the outcome is another trouble than the last one.
    fn is_new(&mut self, outcome: Result<(), &Problem>) -> bool {
        let trouble = outcome.err().map(ToString::to_string);
        let new = trouble.is_some() && trouble != self.0;
        self.0 = trouble;
        new
    }
}

/// Works through rekeys.
pub(super) async fn rekeys(service: Arc<Service>) {
    let mut told = Told::default();
    loop {
        let worked = admin::work_on_rekeys(&service).await;
        let new = told.is_new(worked.as_ref().copied());
        if let (Err(problem), true) = (&worked, new) {
            tracing::error!(%problem, "rekeys wait");
        }
        // Nothing depends on who wakes it.
        drop(tokio::time::timeout(REKEYS, service.woken()).await);
    }
}

/// Moves KEKs whose time has come, and rolls over by the calendar.
pub(super) async fn rotations(service: Arc<Service>) {
    let mut quiet = Instant::now();
    let mut told = Told::default();
    loop {
        tokio::time::sleep(ROTATIONS).await;
        if Instant::now() < quiet {
            continue;
        }
        let worked = admin::work_on_rotations(&service).await;
        let new = told.is_new(worked.as_ref().copied());
        let failed = match worked {
            Ok(()) => admin::rotation_troubles(&service)
                .await
                .is_ok_and(|troubles| !troubles.is_empty()),
            Err(problem) => {
                if new {
                    tracing::error!(%problem, "rotations wait");
                }
                true
            }
        };
        if failed {
            quiet = Instant::now() + AGAIN;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trouble_that_lasts_is_told_once() {
        let (away, full) = (Problem::internal("away"), Problem::internal("full"));
        let mut told = Told::default();
        assert!(told.is_new(Err(&away)));
        assert!(!told.is_new(Err(&away)));
        assert!(told.is_new(Err(&full)));
        assert!(!told.is_new(Ok(())));
        assert!(told.is_new(Err(&full)));
    }
}
