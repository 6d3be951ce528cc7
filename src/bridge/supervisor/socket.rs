//! The server's end of a bridge's socket, in two halves.
//!
//! Only what comes is waited for. A socket that is registered for writing too is told of every
//! frame that the other end has taken: that would wake the server for nothing with each request, on
//! the core on which the bridge has just begun its work.

use std::collections::VecDeque;
use std::io::{self, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::net::unix::pipe::{Receiver, Sender};
use tokio::sync::Notify;
use zeroize::Zeroizing;

/// Both halves of a socket. It closes when both are gone.
///
/// # Errors
/// The operating system's.
pub(super) fn halves(socket: tokio::net::UnixStream) -> io::Result<(Receiver, Outbox)> {
    // No longer registered for both directions.
    let socket = socket.into_std()?;
    // Of tokio's safe types only those for pipes wait for one direction. They read(2), write(2) and
    // look at nothing else, and so a socket will do.
    let inlet = Receiver::from_owned_fd_unchecked(socket.try_clone()?.into())?;
    let outbox = Outbox {
        socket,
        backlog: Mutex::default(),
        more: Notify::new(),
    };
    Ok((inlet, outbox))
}

/// Frames on their way out. The socket takes most of them at once; what it
/// does not take is written on by one task.
pub(super) struct Outbox {
    socket: UnixStream,
    backlog: Mutex<VecDeque<(Zeroizing<Vec<u8>>, usize)>>,
    more: Notify,
}

impl Outbox {
    /// Puts a frame.
    ///
    /// # Errors
    /// The socket is closed.
    pub(super) fn put(&self, frame: Zeroizing<Vec<u8>>) -> io::Result<()> {
        let mut backlog = self.backlog();
        let at = if backlog.is_empty() {
            written(|rest| (&self.socket).write(rest), &frame, 0)?
        } else {
            0
        };
        if at < frame.len() {
            backlog.push_back((frame, at));
            self.more.notify_one();
        }
        Ok(())
    }

    /// Writes on what was left, for as long as the socket lives.
    pub(super) async fn drain(&self) -> io::Error {
        loop {
            self.more.notified().await;
            if let Err(error) = self.empty().await {
                return error;
            }
        }
    }

    /// Closes the socket in both directions.
    pub(super) fn close(&self) {
        // It may be closed already.
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
    }

    /// Writes until nothing is left.
    async fn empty(&self) -> io::Result<()> {
        // A descriptor of its own, and only for as long as there is something to wait for.
        let socket = Sender::from_owned_fd_unchecked(self.socket.try_clone()?.into())?;
        while self.step(&socket)? {
            socket.writable().await?;
        }
        Ok(())
    }

    /// Writes what the socket takes now; whether more is left.
    fn step(&self, socket: &Sender) -> io::Result<bool> {
        let mut backlog = self.backlog();
        while let Some((frame, at)) = backlog.front_mut() {
            *at = written(|rest| socket.try_write(rest), frame, *at)?;
            if *at < frame.len() {
                return Ok(true);
            }
            backlog.pop_front();
        }
        Ok(false)
    }

    fn backlog(&self) -> MutexGuard<'_, VecDeque<(Zeroizing<Vec<u8>>, usize)>> {
        self.backlog.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes what the socket takes now, and tells up to where the frame is out.
fn written(
    write: impl Fn(&[u8]) -> io::Result<usize>,
    frame: &[u8],
    from: usize,
) -> io::Result<usize> {
    let mut at = from;
    while let Some(rest) = frame.get(at..).filter(|rest| !rest.is_empty()) {
        match write(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => at += written,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(at)
}
