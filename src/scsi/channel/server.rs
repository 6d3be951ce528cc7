//! The unit's end of the socket.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use zeroize::Zeroizing;

use super::frame::{Answer, Direction, FrameError, Request, TRANSFER_TIME};
use super::stream;
use crate::scsi::{Data, Transport, TransportError};

/// Makes a socket that only its owner may use, in place of one that an earlier run has left.
///
/// # Errors
///
/// What the system says; [`io::ErrorKind::AddrInUse`] where somebody listens there.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    if UnixStream::connect(path).is_ok() {
        return Err(io::ErrorKind::AddrInUse.into());
    }
    // It has its name only once it has its mode.
    let unnamed = path.with_extension(format!("{}.new", std::process::id()));
    match std::fs::remove_file(&unnamed) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&unnamed)?;
    std::fs::set_permissions(&unnamed, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&unnamed, path)?;
    Ok(listener)
}

/// Gives the commands of all who connect to a unit, one command at a time, until `stop` is set;
/// it looks there four times a second.
///
/// Nobody can hold it up: a frame that has begun must be there within [`super::frame::TRANSFER_TIME`], what it
/// announces is held against limits before memory is taken for it, and of more than sixteen
/// connections the last ones are closed at once. A command whose initiator has gone before
/// its turn came is not carried out.
///
/// # Errors
///
/// What the system says of the listening socket. Trouble with one connection ends that one.
pub fn serve(
    listener: &UnixListener,
    unit: &mut dyn Transport,
    stop: &AtomicBool,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let name = unit.name().to_owned();
    let (unit, name) = (Mutex::new(unit), name.as_str());
    let connections = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        while !stop.load(Ordering::Relaxed) {
            if !readable(listener)? {
                continue;
            }
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if passing(&error) => continue,
                Err(error) => return Err(error),
            };
            if connections.load(Ordering::Relaxed) >= MAX_CONNECTIONS {
                tracing::warn!(unit = name, "too many connections; one is closed");
                continue;
            }
            connections.fetch_add(1, Ordering::Relaxed);
            let (unit, connections) = (&unit, &connections);
            scope.spawn(move || {
                if let Err(error) = converse(stream, unit, stop) {
                    tracing::warn!(unit = name, %error, "a connection was closed");
                }
                connections.fetch_sub(1, Ordering::Relaxed);
            });
        }
        Ok(())
    })
}

/// The most connections at one time.
pub(super) const MAX_CONNECTIONS: usize = 16;

fn converse(
    mut stream: UnixStream,
    unit: &Mutex<&mut dyn Transport>,
    stop: &AtomicBool,
) -> Result<(), ConnectionError> {
    stream.set_nonblocking(false)?;
    while !stop.load(Ordering::Relaxed) {
        // Between commands an initiator may take its time.
        if !readable(&stream)? {
            continue;
        }
        let Some(Received { request, mut data }) = receive(&mut stream)? else {
            return Ok(());
        };
        let answer = {
            let mut unit = unit.lock().unwrap_or_else(PoisonError::into_inner);
            if !stream::is_idle(&stream) {
                return Err(ConnectionError::Gone);
            }
            let phase = match request.direction {
                Direction::None => Data::None,
                Direction::In => Data::In(&mut data),
                Direction::Out => Data::Out(&data),
            };
            match unit.execute(request.cdb(), phase, request.limit) {
                Ok(mut completion) => {
                    completion.transferred = completion.transferred.min(data.len());
                    Answer::Ended(completion)
                }
                Err(TransportError::TimedOut { .. }) => Answer::TimedOut,
                Err(error) => Answer::Failed(error.to_string()),
            }
        };
        let deadline = Instant::now() + TRANSFER_TIME;
        stream::write_all(&mut stream, &answer.encode(request.tag), deadline)?;
        if let (Direction::In, Answer::Ended(completion)) = (request.direction, &answer) {
            let bytes = data.get(..completion.transferred).unwrap_or(&data);
            stream::write_all(&mut stream, bytes, deadline)?;
        }
    }
    Ok(())
}

/// A request with its data, or with room for it.
struct Received {
    request: Request,
    data: Zeroizing<Vec<u8>>,
}

/// The next request; none where the initiator has gone.
fn receive(stream: &mut UnixStream) -> Result<Option<Received>, ConnectionError> {
    if stream::is_closed(stream) {
        return Ok(None);
    }
    let deadline = Instant::now() + TRANSFER_TIME;
    let mut header = [0; Request::HEADER_LEN];
    stream::read_exact(stream, &mut header, deadline)?;
    let mut request = Request::decode(&header)?;
    stream::read_exact(stream, request.cdb_mut(), deadline)?;
    // In its final length from the start, so that a key lies in one place only.
    let mut data = Zeroizing::new(vec![0; request.data_len]);
    if request.direction == Direction::Out {
        stream::read_exact(stream, &mut data, deadline)?;
    }
    Ok(Some(Received { request, data }))
}

/// Whether something can be read, or accepted, within a quarter of a second.
fn readable(socket: &impl AsFd) -> io::Result<bool> {
    let mut sockets = [PollFd::new(socket, PollFlags::IN)];
    let quarter = Timespec {
        tv_sec: 0,
        tv_nsec: 250_000_000,
    };
    match poll(&mut sockets, Some(&quarter)) {
        Ok(ready) => Ok(ready > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// An error of one caller, who has gone again.
fn passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted
    )
}

#[derive(Debug, thiserror::Error)]
enum ConnectionError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("the initiator went away before its command's turn came")]
    Gone,
}
