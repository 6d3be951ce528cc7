//! The loops beside the doors: what a server does by itself for as long as it runs.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::task::JoinSet;

/// Between a panic of a loop and its next beginning.
const AGAIN: Duration = Duration::from_secs(5);

/// Loops that run until the server stops.
#[derive(Debug)]
pub(super) struct Watchers {
    loops: JoinSet<()>,
    again: Duration,
}

impl Watchers {
    pub(super) fn new() -> Self {
        Self {
            loops: JoinSet::new(),
            again: AGAIN,
        }
    }

    /// Runs a loop, and begins it anew where it panicked. The server goes on meanwhile: drives
    /// wait at its doors, and what a row of a shared state does to one server it does to all.
    pub(super) fn spawn<F>(&mut self, name: &'static str, begin: impl Fn() -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let again = self.again;
        self.loops.spawn(async move {
            loop {
                let run = AssertUnwindSafe(begin());
                match run.catch_unwind().await {
                    // There is nothing to do for it in this configuration.
                    Ok(()) => return,
                    Err(panic) => {
                        tracing::error!(
                            watcher = name,
                            panic = said(&*panic),
                            seconds = again.as_secs(),
                            "what the server does by itself ended in a panic, and is begun again; this is a defect"
                        );
                    }
                }
                tokio::time::sleep(again).await;
            }
        });
    }

    /// Ends them all, wherever they are.
    pub(super) async fn shutdown(&mut self) {
        self.loops.shutdown().await;
    }
}

/// What a panic said.
fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("nothing")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn a_loop_that_panicked_is_begun_again_until_the_stop() {
        let mut watchers = Watchers {
            again: Duration::from_millis(1),
            ..Watchers::new()
        };
        let (begun, third) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let (count, there) = (Arc::clone(&begun), Arc::clone(&third));
        watchers.spawn("test", move || {
            let (count, there) = (Arc::clone(&count), Arc::clone(&there));
            async move {
                let before = count.fetch_add(1, Ordering::Relaxed);
                assert!(before >= 2, "by a row of another version");
                there.notify_one();
                std::future::pending::<()>().await;
            }
        });
        let patience = Duration::from_secs(60);
        tokio::time::timeout(patience, third.notified())
            .await
            .unwrap();
        assert_eq!(begun.load(Ordering::Relaxed), 3);
        tokio::time::timeout(patience, watchers.shutdown())
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn a_loop_that_has_nothing_to_do_is_not_begun_again() {
        let mut watchers = Watchers::new();
        watchers.spawn("test", || std::future::ready(()));
        assert!(watchers.loops.join_next().await.unwrap().is_ok());
    }

    #[test]
    fn what_a_panic_said_is_told() {
        assert_eq!(said(&"text"), "text");
        assert_eq!(said(&"text".to_owned()), "text");
        assert_eq!(said(&7), "nothing");
    }
}
