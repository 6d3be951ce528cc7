//! Frames: a message as bytes, its length first.

use std::io::{self, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

/// Largest frame, bytes. A list of 1,000 KEKs fits.
const MAX_FRAME: usize = 4 << 20;

/// Encodes a frame, length first.
///
/// # Errors
/// The message is too large.
pub fn encode<T: Serialize>(message: &T) -> io::Result<Zeroizing<Vec<u8>>> {
    // The size first, so that the buffer never moves and leaves a copy behind.
    let size = postcard::experimental::serialized_size(message).map_err(io::Error::other)?;
    let mut body = Zeroizing::new(vec![0; size]);
    postcard::to_slice(message, &mut body).map_err(io::Error::other)?;
    let length = u32::try_from(body.len())
        .ok()
        .filter(|_| body.len() <= MAX_FRAME)
        .ok_or_else(|| io::Error::other("bridge message too large"))?;
    let mut frame = Zeroizing::new(Vec::with_capacity(body.len() + 4));
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(&body);
    Ok(frame)
}

/// The body's length from a frame's first four bytes.
///
/// # Errors
/// It is over the limit.
pub fn frame_length(head: [u8; 4]) -> io::Result<usize> {
    usize::try_from(u32::from_be_bytes(head))
        .ok()
        .filter(|length| *length <= MAX_FRAME)
        .ok_or_else(|| io::Error::other("bridge frame over the limit"))
}

/// Decodes a frame's body.
///
/// # Errors
/// It is not that message.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> io::Result<T> {
    postcard::from_bytes(body).map_err(io::Error::other)
}

/// Reads one message; blocking, the bridge's side.
///
/// # Errors
/// The socket closed or the frame is wrong.
pub fn read<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<T> {
    let mut head = [0_u8; 4];
    from.read_exact(&mut head)?;
    let mut body = Zeroizing::new(vec![0_u8; frame_length(head)?]);
    from.read_exact(&mut body)?;
    decode(&body)
}

/// Writes one message; blocking, the bridge's side.
///
/// # Errors
/// The socket closed.
pub fn write<T: Serialize>(to: &mut impl Write, message: &T) -> io::Result<()> {
    to.write_all(&encode(message)?)
}
