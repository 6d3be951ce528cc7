//! The requests that a bridge is sent, and which of its workers takes one.
//!
//! Whoever was at work last is at the front: his session has the drives' keys
//! and his core's caches what the last exchange left there. That is how
//! epoll_wait(2) wakes threads that wait on one descriptor, the last to come
//! first. Where they take turns, every exchange begins cold.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};

use super::message::{self, Request};

/// What wakes a worker: a request, once, until it is asked for again.
const WAKES: EventFlags = EventFlags::IN.union(EventFlags::ONESHOT);

/// The bridge's end of the socket, for all its workers.
pub(super) struct Inbox {
    socket: Mutex<UnixStream>,
    ready: OwnedFd,
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
            socket: Mutex::new(socket),
            ready,
        })
    }

    /// Waits for a request and takes it.
    ///
    /// # Errors
    /// The socket closed, or what came is no request.
    pub(super) fn next(&self) -> io::Result<Request> {
        let mut woken = [Event {
            flags: EventFlags::empty(),
            data: EventData::new_u64(0),
        }];
        loop {
            match epoll::wait(&self.ready, &mut woken, None) {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => break,
                Err(error) => return Err(error.into()),
            }
        }
        // Nobody else is woken before this is asked for again below.
        let mut socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        let request = message::read(&mut *socket)?;
        epoll::modify(&self.ready, &*socket, EventData::new_u64(0), WAKES)?;
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    use crate::bridge::message::Op;
    use std::sync::Arc;
    use std::sync::mpsc::channel;
    use std::time::Duration;

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
            let socket = inbox.socket.lock().unwrap();
            epoll::modify(&inbox.ready, &*socket, EventData::new_u64(0), WAKES).unwrap();
            drop(socket);
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
