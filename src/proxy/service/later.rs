//! Confirms whose server is not there: it alone knows the data key, so it is told when it is back.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::link::Link;
use super::{Inner, ServiceError};
use crate::api::{ConfirmAnswer, ConfirmRequest};

/// Most that wait; a day of a large library.
const MOST: usize = 10_000;

/// How often a server is tried that is in the list no more.
const UNLISTED: Duration = Duration::from_secs(60);

/// How a confirm ended.
#[derive(Debug)]
pub enum Confirmed {
    /// The server knows.
    Told(ConfirmAnswer),
    /// It is told when it is back.
    Later,
}

/// The confirms that wait.
#[derive(Debug, Default)]
pub(super) struct Later {
    queue: Mutex<VecDeque<(Arc<Link>, ConfirmRequest)>>,
    telling: AtomicBool,
}

impl Later {
    fn queue(&self) -> MutexGuard<'_, VecDeque<(Arc<Link>, ConfirmRequest)>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn waiting(&self) -> usize {
        self.queue().len()
    }
}

impl Drop for Later {
    fn drop(&mut self) {
        for (link, request) in self.queue().drain(..) {
            left_open(
                &link,
                &request,
                "this process ended before the server was back",
            );
        }
    }
}

pub(super) async fn confirm_or_later(
    inner: &Arc<Inner>,
    link: &Arc<Link>,
    request: &ConfirmRequest,
) -> Result<Confirmed, ServiceError> {
    let failed = if link.usable() {
        match inner.confirm(link, request).await {
            Ok(answer) => return Ok(Confirmed::Told(answer)),
            Err(error @ (ServiceError::NoServer { .. } | ServiceError::Full { .. })) => {
                error.to_string()
            }
            Err(error) => return Err(error),
        }
    } else {
        "it is down".to_owned()
    };
    tracing::warn!(server = %link.address(), request = %request.request_id, dki = %request.dki, stored = request.stored, failed, "the key server is told later what became of its data key");
    let mut queue = inner.later.queue();
    if queue.len() >= MOST
        && let Some((link, oldest)) = queue.pop_front()
    {
        left_open(&link, &oldest, "too many confirms wait");
    }
    queue.push_back((Arc::clone(link), request.clone()));
    Ok(Confirmed::Later)
}

/// What became of the data key is not in its server's history.
fn left_open(link: &Link, request: &ConfirmRequest, reason: &str) {
    tracing::error!(server = %link.address(), request = %request.request_id, drive = %request.serial, dki = %request.dki, stored = request.stored, reason, "a confirm was not delivered; the server's history goes on saying \"issued\"");
}

/// Tells those that are there again, in a task of its own.
pub(super) fn tell(inner: &Arc<Inner>) {
    if inner.later.waiting() == 0 || inner.later.telling.swap(true, Ordering::Acquire) {
        return;
    }
    let inner = Arc::clone(inner);
    tokio::spawn(async move {
        let waiting = inner.later.waiting();
        for _ in 0..waiting {
            let Some((link, request)) = inner.later.queue().pop_front() else {
                break;
            };
            let listed = inner.list().find(&link).is_some();
            let ready =
                link.usable() || (!listed && link.silent().is_none_or(|silent| silent >= UNLISTED));
            let outcome = if ready {
                inner.confirm(&link, &request).await.map(drop)
            } else {
                inner.later.queue().push_back((link, request));
                continue;
            };
            match outcome {
                Ok(()) => {
                    tracing::info!(server = %link.address(), dki = %request.dki, "confirmed after all");
                }
                Err(ServiceError::NoServer { .. } | ServiceError::Full { .. }) => {
                    inner.later.queue().push_back((link, request));
                }
                Err(error) => left_open(&link, &request, &error.to_string()),
            }
        }
        inner.later.telling.store(false, Ordering::Release);
    });
}
