//! The requests that a bridge is sent, and which of its workers takes one.
//!
//! Whoever was at work last is at the front: his session has the drives' keys
//! and his core's caches what the last exchange left there. So a worker that
//! has just answered looks for the next request for a moment before it sleeps,
//! and epoll_wait(2) wakes those that sleep in the same order, the last to come
//! first. Where they take turns, or go to sleep at once, every exchange begins
//! cold: with a token in software that is a fifth of its time.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::message::{self, Request};

/// What wakes a worker: a request, once, until it is asked for again.
const WAKES: EventFlags = EventFlags::IN.union(EventFlags::ONESHOT);

/// What keeps the others asleep meanwhile.
const SLEEPS: EventFlags = EventFlags::ONESHOT;

/// How long a worker that has just answered looks for the next request: a
/// client that asks again at once is back within it. Others can have the core
/// meanwhile, and where the last request took longer to come it is not spent.
const ATTENTIVE: Duration = Duration::from_micros(500);

/// The bridge's end of the socket, for all its workers.
pub(super) struct Inbox {
    socket: Mutex<End>,
    ready: OwnedFd,
}

/// The reading end, and how soon requests come to it.
struct End {
    socket: UnixStream,
    /// Since when it has been empty, as far as whoever looked last knows.
    empty: Option<Instant>,
    /// Whether the last request came within [`ATTENTIVE`] of that.
    brisk: bool,
}

impl Inbox {
    /// Takes over the reading end.
    ///
    /// # Errors
    /// The operating system's.
    pub(super) fn new(socket: UnixStream) -> io::Result<Self> {
        let ready = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&ready, &socket, EventData::new_u64(0), WAKES)?;
        Ok(Self {
            socket: Mutex::new(End {
                socket,
                empty: None,
                brisk: true,
            }),
            ready,
        })
    }

    /// Waits for a request and takes it.
    ///
    /// # Errors
    /// The socket closed, or what came is no request.
    pub(super) fn next(&self) -> io::Result<Request> {
        // One of them looks; whoever else is free sleeps meanwhile.
        match self.socket.try_lock() {
            Ok(mut end) => {
                end.empty = Some(Instant::now());
                if end.brisk {
                    epoll::modify(&self.ready, &end.socket, EventData::new_u64(0), SLEEPS)?;
                    if let Some(request) = self.take(end, ATTENTIVE)? {
                        return Ok(request);
                    }
                }
            }
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Poisoned(_)) => return Err(io::ErrorKind::BrokenPipe.into()),
        }
        loop {
            let mut woken = [Event {
                flags: EventFlags::empty(),
                data: EventData::new_u64(0),
            }];
            match epoll::wait(&self.ready, &mut woken, None) {
                // Nobody else is woken before this one has looked, so it waits for whoever is
                // at the socket.
                Ok(_) => {
                    let end = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
                    if let Some(request) = self.take(end, Duration::ZERO)? {
                        return Ok(request);
                    }
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Takes the request that is there, or comes within `patience`, and lets others be woken again.
    fn take(
        &self,
        mut end: MutexGuard<'_, End>,
        patience: Duration,
    ) -> io::Result<Option<Request>> {
        let request = if comes(&end.socket, patience)? {
            let waited = end.empty.take().map(|since| since.elapsed());
            end.brisk = waited.is_none_or(|waited| waited < ATTENTIVE);
            Some(message::read(&mut end.socket)?)
        } else {
            None
        };
        epoll::modify(&self.ready, &end.socket, EventData::new_u64(0), WAKES)?;
        Ok(request)
    }
}

/// Whether something is there to read, or the other end has closed, within `patience`.
fn comes(socket: &UnixStream, patience: Duration) -> io::Result<bool> {
    const AT_ONCE: Timespec = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let begun = Instant::now();
    loop {
        match poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&AT_ONCE)) {
            Ok(0) if begun.elapsed() >= patience => return Ok(false),
            Ok(0) => std::thread::yield_now(),
            Ok(_) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    use crate::bridge::message::Op;
    use std::sync::Arc;
    use std::sync::mpsc::channel;

    /// Whoever looks in vain lets the others be woken, and may lose the core before he leaves: who
    /// is woken then must not be turned away by him, or the request waits for ever.
    #[test]
    fn a_request_that_comes_as_a_look_ends_is_not_lost() {
        let (theirs, mut ours) = UnixStream::pair().unwrap();
        let inbox = Arc::new(Inbox::new(theirs).unwrap());
        let (took, taken) = channel();
        let sleeper = Arc::clone(&inbox);
        std::thread::spawn(move || {
            while let Ok(request) = sleeper.next() {
                took.send(request.id).unwrap();
            }
        });
        // Long enough for the worker to have gone to sleep.
        std::thread::sleep(ATTENTIVE * 200);
        let end = inbox.socket.lock().unwrap();
        epoll::modify(&inbox.ready, &end.socket, EventData::new_u64(0), WAKES).unwrap();
        let request = Request {
            id: 7,
            until_ms: 1,
            op: Op::Canary,
        };
        ours.write_all(&message::encode(&request).unwrap()).unwrap();
        std::thread::sleep(ATTENTIVE * 200);
        drop(end);
        assert_eq!(taken.recv_timeout(Duration::from_secs(10)), Ok(7));
    }

    #[test]
    fn a_worker_looks_for_the_next_request_only_where_the_last_came_soon() {
        let (theirs, mut ours) = UnixStream::pair().unwrap();
        let inbox = Inbox::new(theirs).unwrap();
        let mut send = |id| {
            let request = Request {
                id,
                until_ms: 1,
                op: Op::Canary,
            };
            ours.write_all(&message::encode(&request).unwrap()).unwrap();
        };
        let brisk = || inbox.socket.lock().unwrap().brisk;
        assert!(brisk());
        // As if the worker had begun to look long ago.
        for id in 1..=2 {
            inbox.socket.lock().unwrap().empty = Instant::now().checked_sub(ATTENTIVE * 2);
            send(id);
            let end = inbox.socket.lock().unwrap();
            let taken = inbox.take(end, Duration::ZERO).unwrap();
            assert_eq!(taken.map(|request| request.id), Some(id));
            assert!(!brisk());
        }
        // It sleeps and is woken, also where it has not looked.
        send(3);
        assert_eq!(inbox.next().unwrap().id, 3);
        inbox.socket.lock().unwrap().empty = Some(Instant::now() + ATTENTIVE);
        send(4);
        let end = inbox.socket.lock().unwrap();
        assert_eq!(inbox.take(end, ATTENTIVE).unwrap().unwrap().id, 4);
        assert!(brisk());
    }

    #[test]
    fn every_request_is_taken_once_however_they_come_and_the_end_reaches_everyone() {
        let (theirs, mut ours) = UnixStream::pair().unwrap();
        let inbox = Arc::new(Inbox::new(theirs).unwrap());
        let (took, taken) = channel();
        let workers: Vec<_> = (0..3)
            .map(|_| {
                let (inbox, took) = (Arc::clone(&inbox), took.clone());
                std::thread::spawn(move || {
                    while let Ok(request) = inbox.next() {
                        took.send(request.id).unwrap();
                    }
                })
            })
            .collect();
        // Some at once, in one write, so that what is left must wake somebody.
        let mut frames = Vec::new();
        for id in 0..50 {
            let request = Request {
                id,
                until_ms: 1,
                op: Op::Canary,
            };
            frames.extend_from_slice(&message::encode(&request).unwrap());
        }
        ours.write_all(&frames).unwrap();
        let mut ids: Vec<u64> = (0..50)
            .map(|_| taken.recv_timeout(Duration::from_secs(10)).unwrap())
            .collect();
        ids.sort_unstable();
        assert_eq!(ids, (0..50).collect::<Vec<_>>());
        drop(ours);
        // In the bridge the first that learns of it ends the process; here each is woken by hand.
        while workers.iter().any(|worker| !worker.is_finished()) {
            let end = inbox.socket.lock().unwrap();
            epoll::modify(&inbox.ready, &end.socket, EventData::new_u64(0), WAKES).unwrap();
            drop(end);
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
