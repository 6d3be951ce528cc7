//! A Unix socket that carries SCSI commands, for a unit without a kernel in between.
//!
//! [`Channel`] is the initiator's end, a [`Transport`]; [`serve`] is the unit's end and gives what
//! comes in to a [`Transport`] of its own: the software drive, or a real one behind another
//! process. Frames are in [`frame`].
//!
//! Whoever can write to the socket can do to the drive what SCSI can, so [`listen`] makes it for its
//! owner alone. Nothing is encrypted: keys in clear (KEY FORMAT 00h) pass as they are, as over any
//! SCSI cable. It is meant for one machine.

pub mod frame;
mod server;
mod stream;

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use server::{listen, serve};

use self::frame::{Answer, AnswerHeader, Direction, FrameError, Request};
use super::{Completion, Data, Transport, TransportError};

/// The initiator's end of the socket.
#[derive(Debug)]
pub struct Channel {
    path: PathBuf,
    name: String,
    stream: Option<UnixStream>,
    tag: u32,
}

impl Channel {
    /// Connects to the socket.
    ///
    /// # Errors
    ///
    /// [`ChannelError`] where nobody listens there.
    pub fn open(path: &Path) -> Result<Self, ChannelError> {
        let stream = UnixStream::connect(path).map_err(|source| ChannelError {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            path: path.to_owned(),
            name: path.display().to_string(),
            stream: Some(stream),
            tag: 0,
        })
    }

    /// Whether the next command goes through the connection that the last one went through. Otherwise
    /// it makes a new one, and another unit may be at its end.
    #[must_use]
    pub fn stands(&self) -> bool {
        self.stream.as_ref().is_some_and(stream::is_idle)
    }

    /// The connection, anew where the other end has closed the last one. A command whose end is
    /// not known is never sent again.
    fn connected(&mut self) -> io::Result<UnixStream> {
        match self.stream.take() {
            Some(stream) if stream::is_idle(&stream) => Ok(stream),
            _ => UnixStream::connect(&self.path),
        }
    }

    fn exchange(
        &mut self,
        cdb: &[u8],
        mut data: Data<'_>,
        limit: Duration,
    ) -> Result<Answer, ExchangeError> {
        self.tag = self.tag.wrapping_add(1);
        let tag = self.tag;
        let direction = match &data {
            Data::None => Direction::None,
            Data::In(_) => Direction::In,
            Data::Out(_) => Direction::Out,
        };
        let head = Request::new(tag, direction, cdb, data.len(), limit)
            .map_err(ExchangeError::Frame)?
            .encode();
        let mut stream = self.connected().map_err(ExchangeError::Io)?;

        let deadline = Instant::now() + frame::TRANSFER_TIME;
        stream::write_all(&mut stream, &head, deadline).map_err(ExchangeError::Io)?;
        if let Data::Out(bytes) = &data {
            // From where it lies, as it may be a key.
            stream::write_all(&mut stream, bytes, deadline).map_err(ExchangeError::Io)?;
        }

        let deadline = Instant::now() + limit.min(frame::MAX_LIMIT) + frame::TRANSFER_TIME;
        let mut head = [0; AnswerHeader::LEN];
        stream::read_exact(&mut stream, &mut head, deadline).map_err(ExchangeError::Io)?;
        let header = AnswerHeader::decode(&head, tag, data.len()).map_err(ExchangeError::Frame)?;
        let mut text = vec![0; header.text_len()];
        stream::read_exact(&mut stream, &mut text, deadline).map_err(ExchangeError::Io)?;
        if let Data::In(buffer) = &mut data {
            let room = buffer
                .get_mut(..header.transferred())
                .ok_or(ExchangeError::Frame(FrameError::Length))?;
            stream::read_exact(&mut stream, room, deadline).map_err(ExchangeError::Io)?;
        }
        let answer = header.with_text(text);
        self.stream = Some(stream);
        Ok(answer)
    }
}

impl Transport for Channel {
    fn execute(
        &mut self,
        cdb: &[u8],
        data: Data<'_>,
        limit: Duration,
    ) -> Result<Completion, TransportError> {
        let seconds = limit.as_secs();
        let device = self.name.clone();
        let timed_out = |device| TransportError::TimedOut { device, seconds };
        match self.exchange(cdb, data, limit) {
            Ok(Answer::Ended(completion)) => Ok(completion),
            Ok(Answer::TimedOut) => Err(timed_out(device)),
            Ok(Answer::Failed(reason)) => Err(TransportError::Ended { device, reason }),
            Err(ExchangeError::Io(error)) if error.kind() == io::ErrorKind::TimedOut => {
                Err(timed_out(device))
            }
            Err(ExchangeError::Io(source)) => Err(TransportError::Io { device, source }),
            Err(ExchangeError::Frame(error)) => Err(TransportError::Io {
                device,
                source: io::Error::new(io::ErrorKind::InvalidData, error),
            }),
        }
    }

    fn name(&self) -> &str {
        &self.name
    }
}

enum ExchangeError {
    Io(io::Error),
    Frame(FrameError),
}

/// Nobody listens at a socket.
#[derive(Debug, thiserror::Error)]
#[error("no drive answers at {path}: {source}; is the program running that serves it?")]
pub struct ChannelError {
    /// The socket.
    pub path: PathBuf,
    /// The cause.
    pub source: io::Error,
}

#[cfg(test)]
mod tests;
