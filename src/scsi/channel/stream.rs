//! Reading and writing on a socket until a moment, however slowly the other end goes.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

/// Reads all of the buffer.
pub(super) fn read_exact(
    stream: &mut UnixStream,
    mut buffer: &mut [u8],
    deadline: Instant,
) -> io::Result<()> {
    while !buffer.is_empty() {
        stream.set_read_timeout(Some(left(deadline)?))?;
        match stream.read(buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => buffer = buffer.get_mut(read..).unwrap_or_default(),
            Err(error) => go_on(error)?,
        }
    }
    Ok(())
}

/// Writes all of the bytes.
pub(super) fn write_all(
    stream: &mut UnixStream,
    mut bytes: &[u8],
    deadline: Instant,
) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.set_write_timeout(Some(left(deadline)?))?;
        match stream.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(error) => go_on(error)?,
        }
    }
    Ok(())
}

/// Whether the other end is there and has said nothing: what it has said would belong to nothing.
pub(super) fn is_idle(stream: &UnixStream) -> bool {
    matches!(peek(stream), Err(Errno::AGAIN))
}

/// Whether the other end has gone, and left nothing behind.
pub(super) fn is_closed(stream: &UnixStream) -> bool {
    matches!(peek(stream), Ok(0) | Err(Errno::CONNRESET))
}

fn peek(stream: &UnixStream) -> Result<usize, Errno> {
    let mut byte = [0u8; 1];
    let (_, read) = recv(stream, &mut byte, RecvFlags::PEEK | RecvFlags::DONTWAIT)?;
    Ok(read)
}

/// What is left until the moment.
fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    Ok(left)
}

/// A time that has run out is found at the next look at the clock.
fn go_on(error: io::Error) -> io::Result<()> {
    match error.kind() {
        io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Ok(()),
        _ => Err(error),
    }
}
