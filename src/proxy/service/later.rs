//! Confirms whose server is not there: it alone knows the data key, so it is told when it is back.
//!
//! That nothing was written under a data key makes the cartridge's former EEDKs count again; where the
//! server does not hear it, their KEK may be destroyed while a cartridge needs it. So what waits is on
//! disk ([`shelf`]), and such a word is not dropped where the server refuses it: a person must mend what
//! it refuses it for, and then it is told.

mod shelf;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use tokio::task::spawn_blocking;

use super::link::Link;
use super::{ConfirmRefused, Inner, List, ServiceError};
use crate::api::{ConfirmAnswer, ConfirmRequest};
use shelf::{Fact, Shelf};

/// Most that wait in memory; a day of a large library.
const MOST: usize = 10_000;

/// How often a server is tried that is in the list no more.
const UNLISTED: Duration = Duration::from_secs(60);

/// How often a server is told again what it refused.
const REFUSED: Duration = Duration::from_secs(600);

/// Most refusals that are shown.
const SHOWN: usize = 16;

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
    queue: Mutex<VecDeque<Waiting>>,
    telling: AtomicBool,
    /// Where they are on disk; none where they end with this process.
    shelf: Option<Shelf>,
}

/// One of them.
#[derive(Debug)]
struct Waiting {
    link: Arc<Link>,
    request: ConfirmRequest,
    /// Its file; none where it is in memory only.
    file: Option<PathBuf>,
    refused: Option<Refused>,
}

/// What a server would not hear.
#[derive(Debug)]
struct Refused {
    at: OffsetDateTime,
    why: String,
    again: Instant,
}

impl Later {
    /// Those that a process before this one has left in that directory, and those to come.
    pub(super) fn read(directory: &Path, list: &List) -> Self {
        let shelf = Shelf::new(directory);
        let facts = shelf.read();
        let later = Self {
            queue: Mutex::default(),
            telling: AtomicBool::default(),
            shelf: Some(shelf),
        };
        if !facts.is_empty() {
            tracing::info!(waiting = facts.len(), directory = %directory.display(), "confirms wait since the proxy ended; their key servers are told");
        }
        for (file, Fact { server, confirm }) in facts {
            let mut links = list.links.iter().map(|listed| &listed.link);
            let known = links.find(|link| *link.address() == server);
            later.put(Waiting {
                link: known.map_or_else(|| Link::new(server), Arc::clone),
                request: confirm,
                file: Some(file),
                refused: None,
            });
        }
        later
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<Waiting>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn waiting(&self) -> usize {
        self.queue().len()
    }

    /// The first of those that a server refuses.
    pub(super) fn refusals(&self) -> Vec<ConfirmRefused> {
        let queue = self.queue();
        let refused = queue.iter().filter_map(|waiting| {
            let Refused { at, why, .. } = waiting.refused.as_ref()?;
            Some(ConfirmRefused {
                server: waiting.link.address().clone(),
                drive: waiting.request.serial.clone(),
                dki: waiting.request.dki,
                at: *at,
                why: why.clone(),
            })
        });
        refused.take(SHOWN).collect()
    }

    fn put(&self, waiting: Waiting) {
        let mut queue = self.queue();
        if queue.len() >= MOST
            && let Some(oldest) = queue.pop_front()
        {
            oldest.left("too many confirms wait");
        }
        queue.push_back(waiting);
    }

    /// On disk, where there is a place for it.
    fn keep(&self, link: &Link, request: &ConfirmRequest) -> Option<PathBuf> {
        let shelf = self.shelf.as_ref()?;
        let fact = Fact {
            server: link.address().clone(),
            confirm: request.clone(),
        };
        match shelf.keep(&fact) {
            Ok(file) => Some(file),
            Err(error) => {
                tracing::error!(directory = %shelf.directory().display(), %error, dki = %request.dki, stored = request.stored, "a confirm cannot be written to disk; it is lost where the proxy ends before the key server is told");
                None
            }
        }
    }

    /// The server said no. Answers what is not told again.
    fn refused(&self, mut waiting: Waiting, error: &ServiceError) -> Option<Waiting> {
        let Waiting { link, request, .. } = &waiting;
        if request.stored {
            left_open(link, request, &error.to_string());
            return Some(waiting);
        }
        tracing::warn!(server = %link.address(), request = %request.request_id, drive = %request.serial, dki = %request.dki, %error, again_in_seconds = REFUSED.as_secs(), "the key server refuses to hear that nothing was written under a data key, and takes the cartridge's former EEDKs for superseded; it is told again");
        waiting.refused = Some(Refused {
            at: OffsetDateTime::now_utc(),
            // The log has all of it.
            why: error.to_string().chars().take(500).collect(),
            again: Instant::now() + REFUSED,
        });
        self.put(waiting);
        None
    }
}

impl Waiting {
    fn is_due(&self, inner: &Inner) -> bool {
        if let Some(refused) = &self.refused
            && Instant::now() < refused.again
        {
            return false;
        }
        let link = &self.link;
        let listed = inner.list().find(link).is_some();
        link.usable() || (!listed && link.silent().is_none_or(|silent| silent >= UNLISTED))
    }

    /// This process tells it no more.
    fn left(&self, reason: &str) {
        let Self {
            link,
            request,
            file,
            ..
        } = self;
        match file {
            Some(file) => {
                tracing::warn!(server = %link.address(), request = %request.request_id, dki = %request.dki, stored = request.stored, file = %file.display(), reason, "a confirm was not delivered; the key server is told when the proxy starts anew");
            }
            None => left_open(link, request, reason),
        }
    }

    /// It is told, or never will be.
    async fn ended(self) {
        if let Some(file) = self.file {
            drop(spawn_blocking(move || shelf::forget(&file)).await);
        }
    }
}

impl Drop for Later {
    fn drop(&mut self) {
        for waiting in self.queue().drain(..) {
            waiting.left("this process ended before the server was back");
        }
    }
}

pub(super) async fn confirm_or_later(
    inner: &Arc<Inner>,
    link: &Arc<Link>,
    request: &ConfirmRequest,
) -> Result<Confirmed, ServiceError> {
    // On disk before the server is asked: a try may take minutes, and this process may end in them.
    // On the caller's thread, a drive's own: the runtime's would not do it any more once it ends.
    let waiting = Waiting {
        link: Arc::clone(link),
        request: request.clone(),
        file: inner.later.keep(link, request),
        refused: None,
    };
    let failed = if link.usable() {
        match inner.confirm(link, request).await {
            Ok(answer) => {
                waiting.ended().await;
                return Ok(Confirmed::Told(answer));
            }
            Err(error @ (ServiceError::NoServer { .. } | ServiceError::Full { .. })) => {
                error.to_string()
            }
            Err(error) => {
                if let Some(waiting) = inner.later.refused(waiting, &error) {
                    waiting.ended().await;
                }
                return Err(error);
            }
        }
    } else {
        "it is down".to_owned()
    };
    tracing::warn!(server = %link.address(), request = %request.request_id, dki = %request.dki, stored = request.stored, failed, "the key server is told later what became of its data key");
    inner.later.put(waiting);
    Ok(Confirmed::Later)
}

/// What became of the data key is not in its server's history.
fn left_open(link: &Link, request: &ConfirmRequest, reason: &str) {
    tracing::error!(server = %link.address(), request = %request.request_id, drive = %request.serial, dki = %request.dki, stored = request.stored, reason, "a confirm was not delivered; the server's history goes on saying what it said before");
}

/// Tells those that are there again, in a task of its own.
pub(super) fn tell(inner: &Arc<Inner>) {
    if inner.later.waiting() == 0 || inner.later.telling.swap(true, Ordering::Acquire) {
        return;
    }
    let inner = Arc::clone(inner);
    tokio::spawn(async move {
        let later = &inner.later;
        let most = later.waiting();
        for _ in 0..most {
            let Some(waiting) = later.queue().pop_front() else {
                break;
            };
            if !waiting.is_due(&inner) {
                later.queue().push_back(waiting);
                continue;
            }
            let outcome = inner.confirm(&waiting.link, &waiting.request).await;
            match outcome {
                Ok(_) => {
                    tracing::info!(server = %waiting.link.address(), dki = %waiting.request.dki, stored = waiting.request.stored, "confirmed after all");
                    waiting.ended().await;
                }
                Err(ServiceError::NoServer { .. } | ServiceError::Full { .. }) => {
                    later.queue().push_back(waiting);
                }
                Err(error) => {
                    if let Some(waiting) = later.refused(waiting, &error) {
                        waiting.ended().await;
                    }
                }
            }
        }
        later.telling.store(false, Ordering::Release);
    });
}
