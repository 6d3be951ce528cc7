//! The loops beside the doors: what a server does by itself for as long as it runs.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use tokio::task::JoinSet;

/// Between a panic of a loop and its next beginning.
const AGAIN: Duration = Duration::from_secs(5);

/// How long after a panic it is told of.
const LATE: Duration = Duration::from_secs(600);

/// Panics of loops, by the loop's name.
#[derive(Clone, Debug, Default)]
pub(super) struct Panics(Arc<Mutex<BTreeMap<&'static str, Panicked>>>);

#[derive(Debug)]
struct Panicked {
    times: u32,
    last: Instant,
    said: String,
}

impl Panics {
    fn note(&self, name: &'static str, said: &str) {
        let mut all = self.all();
        let times = all.get(name).map_or(0, |panicked| panicked.times);
        let panicked = Panicked {
            times: times.saturating_add(1),
            last: Instant::now(),
            said: said.to_owned(),
        };
        all.insert(name, panicked);
    }

    /// The loops that panicked in the last ten minutes, and how.
    pub(super) fn of_late(&self) -> Vec<(String, String)> {
        self.since(LATE)
    }

    fn since(&self, late: Duration) -> Vec<(String, String)> {
        let all = self.all();
        let of_late = all.iter().filter(|(_, one)| one.last.elapsed() < late);
        of_late
            .map(|(name, Panicked { times, said, .. })| {
                (
                    (*name).to_owned(),
                    format!("{times} since the start: {said}"),
                )
            })
            .collect()
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<&'static str, Panicked>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Loops that run until the server stops.
#[derive(Debug)]
pub(super) struct Watchers {
    loops: JoinSet<()>,
    again: Duration,
    panics: Panics,
}

impl Watchers {
    pub(super) fn noting(panics: Panics) -> Self {
        Self {
            loops: JoinSet::new(),
            again: AGAIN,
            panics,
        }
    }

    /// Runs a loop, and begins it anew where it panicked. The server goes on meanwhile: drives
    /// wait at its doors, and what a row of a shared state does to one server it does to all.
    pub(super) fn spawn<F>(&mut self, name: &'static str, begin: impl Fn() -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (again, panics) = (self.again, self.panics.clone());
        self.loops.spawn(async move {
            loop {
                let run = AssertUnwindSafe(begin());
                match run.catch_unwind().await {
                    // There is nothing to do for it in this configuration.
                    Ok(()) => return,
                    Err(panic) => {
                        let said = said(&*panic);
                        panics.note(name, said);
                        tracing::error!(
                            watcher = name,
                            panic = said,
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
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn a_loop_that_panicked_is_begun_again_until_the_stop() {
        let mut watchers = Watchers {
            again: Duration::from_millis(1),
            ..Watchers::noting(Panics::default())
        };
        let panics = watchers.panics.clone();
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
        let told = "2 since the start: by a row of another version";
        let told = ("test".to_owned(), told.to_owned());
        assert_eq!(panics.of_late(), [told]);
        assert_eq!(panics.since(Duration::ZERO), []);
        tokio::time::timeout(patience, watchers.shutdown())
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn a_loop_that_has_nothing_to_do_is_not_begun_again() {
        let mut watchers = Watchers::noting(Panics::default());
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
