//! A descriptor that is passed over a Unix socket (unix(7), `SCM_RIGHTS`),
//! on an empty line before an HTTP request.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;

use rustix::cmsg_space;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use tokio::io::Interest;
use tokio::net::UnixStream;

use crate::bridge::pin::Handed;

/// Servers skip one that comes before a request (RFC 9112, 2.2).
const EMPTY_LINE: &[u8; 2] = b"\r\n";

/// Sends a PIN ahead of a request.
pub(super) async fn send(stream: &UnixStream, pin: &Handed) -> io::Result<()> {
    stream
        .async_io(Interest::WRITABLE, || {
            let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
            let mut message = SendAncillaryBuffer::new(&mut space);
            let descriptors = [std::os::fd::AsFd::as_fd(pin.descriptor())];
            if !message.push(SendAncillaryMessage::ScmRights(&descriptors)) {
                return Err(io::Error::other("no room for one descriptor"));
            }
            let line = [IoSlice::new(EMPTY_LINE)];
            sendmsg(stream, &line, &mut message, SendFlags::NOSIGNAL)?;
            Ok(())
        })
        .await
}

/// Takes the PIN that comes ahead of a request, if one does.
pub(super) async fn receive(stream: &UnixStream) -> io::Result<Option<Handed>> {
    stream
        .async_io(Interest::READABLE, || {
            let mut line = [0_u8; 2];
            let peeked = recvmsg(
                stream,
                &mut [IoSliceMut::new(&mut line)],
                &mut RecvAncillaryBuffer::default(),
                RecvFlags::PEEK,
            )?;
            if peeked.bytes < line.len() || &line != EMPTY_LINE {
                return Ok(None);
            }
            let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
            let mut message = RecvAncillaryBuffer::new(&mut space);
            recvmsg(
                stream,
                &mut [IoSliceMut::new(&mut line)],
                &mut message,
                RecvFlags::CMSG_CLOEXEC,
            )?;
            let descriptor = message
                .drain()
                .filter_map(|message| match message {
                    RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
                    _ => None,
                })
                .flatten()
                .next();
            descriptor.map(Handed::accept).transpose()
        })
        .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::SecretString;
    use std::os::unix::fs::FileExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn a_pin_passes_as_a_descriptor_and_the_request_after_it_whole() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        let pin = Handed::new(&SecretString::from("4242")).unwrap();
        send(&ours, &pin).await.unwrap();
        ours.write_all(b"POST /command").await.unwrap();
        let got = receive(&theirs).await.unwrap().unwrap();
        let file = std::fs::File::from(got.descriptor().try_clone().unwrap());
        let mut text = [0; 4];
        file.read_exact_at(&mut text, 0).unwrap();
        assert_eq!(&text, b"4242");
        let mut request = [0; 13];
        theirs.read_exact(&mut request).await.unwrap();
        assert_eq!(&request, b"POST /command");
    }

    #[tokio::test]
    async fn a_request_without_a_pin_is_left_as_it_is() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        ours.write_all(b"POST /command").await.unwrap();
        assert!(receive(&theirs).await.unwrap().is_none());
        let mut request = [0; 13];
        theirs.read_exact(&mut request).await.unwrap();
        assert_eq!(&request, b"POST /command");
    }
}
