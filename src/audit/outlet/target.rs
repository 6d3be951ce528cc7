//! The receivers, and the ways to them.

use std::fmt;
use std::io::{self, Write as _};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use super::format::{self, Facility, Identity};

/// How long a connection, and the sending of one message, may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The systemd journal's socket.
const JOURNAL: &str = "/run/systemd/journal/socket";

/// Where to, and as what.
#[derive(Clone)]
pub struct Target {
    place: Place,
    facility: Facility,
}

#[derive(Clone)]
enum Place {
    /// RFC 5426: a datagram is a message.
    Udp(String),
    /// RFC 6587, 3.4.1: a message has its length before it.
    Tcp(String),
    /// RFC 5425: the same over TLS.
    Tls(String, Arc<ClientConfig>),
    /// A local syslog's socket.
    Unix(PathBuf),
    /// The journal's native protocol.
    Journal(PathBuf),
}

/// Why a text is no target.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no receiver of records; write udp://HOST:514, tcp://HOST:601, tls://HOST:6514, unix:/dev/log or journald"
)]
pub struct TargetError {
    text: String,
}

impl Target {
    /// Reads `udp://HOST:PORT`, `tcp://HOST:PORT`, `tls://HOST:PORT`, `unix:PATH`, `journald`
    /// or `journald:PATH`. `tls` is for the one that is reached by TLS.
    ///
    /// # Errors
    /// It is none of them.
    pub fn new(
        text: &str,
        facility: Facility,
        tls: Option<Arc<ClientConfig>>,
    ) -> Result<Self, TargetError> {
        let none = || TargetError {
            text: text.to_owned(),
        };
        let port = |rest: &str| {
            let (host, port) = rest.rsplit_once(':')?;
            (!host.is_empty() && port.parse::<u16>().is_ok()).then(|| rest.to_owned())
        };
        let place = if let Some(rest) = text.strip_prefix("udp://") {
            Place::Udp(port(rest).ok_or_else(none)?)
        } else if let Some(rest) = text.strip_prefix("tcp://") {
            Place::Tcp(port(rest).ok_or_else(none)?)
        } else if let Some(rest) = text.strip_prefix("tls://") {
            Place::Tls(port(rest).ok_or_else(none)?, tls.ok_or_else(none)?)
        } else if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
            Place::Unix(path.into())
        } else if let Some(path) = text
            .strip_prefix("journald:")
            .filter(|path| !path.is_empty())
        {
            Place::Journal(path.into())
        } else if text == "journald" {
            Place::Journal(JOURNAL.into())
        } else {
            return Err(none());
        };
        Ok(Self { place, facility })
    }

    /// A record as this receiver takes it; none where the line is no record.
    pub(super) fn message(
        &self,
        identity: &Identity,
        raw: &[u8],
        chained: bool,
    ) -> Option<Vec<u8>> {
        match &self.place {
            Place::Journal(_) => format::journal(self.facility, identity, raw, chained),
            Place::Udp(_) | Place::Tcp(_) | Place::Tls(..) | Place::Unix(_) => {
                format::syslog(self.facility, identity, raw, chained)
            }
        }
    }

    /// That so many records did not arrive.
    pub(super) fn lost(&self, identity: &Identity, count: u64) -> Vec<u8> {
        match &self.place {
            Place::Journal(_) => format::journal_lost(self.facility, identity, count),
            Place::Udp(_) | Place::Tcp(_) | Place::Tls(..) | Place::Unix(_) => {
                format::syslog_lost(self.facility, identity, count)
            }
        }
    }

    pub(super) fn connect(&self) -> io::Result<Way> {
        match &self.place {
            Place::Udp(address) => {
                let address = resolve(address)?;
                let own: SocketAddr = if address.is_ipv4() {
                    ([0, 0, 0, 0], 0).into()
                } else {
                    ([0_u16; 8], 0).into()
                };
                let socket = UdpSocket::bind(own)?;
                socket.connect(address)?;
                socket.set_write_timeout(Some(PATIENCE))?;
                Ok(Way::Udp(socket))
            }
            Place::Tcp(address) => Ok(Way::Tcp(stream(address)?)),
            Place::Tls(address, config) => {
                let host = address.rsplit_once(':').map_or("", |(host, _)| host);
                let host = host.trim_start_matches('[').trim_end_matches(']');
                let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
                let connection =
                    ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
                let mut tls = StreamOwned::new(connection, stream(address)?);
                // The handshake, so that what is wrong with a certificate is told as that.
                tls.flush()?;
                Ok(Way::Tls(Box::new(tls)))
            }
            Place::Unix(path) | Place::Journal(path) => {
                let socket = UnixDatagram::unbound()?;
                socket.connect(path)?;
                socket.set_write_timeout(Some(PATIENCE))?;
                Ok(Way::Unix(socket))
            }
        }
    }
}

fn resolve(address: &str) -> io::Result<SocketAddr> {
    address
        .to_socket_addrs()?
        .next()
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "its name has no address"))
}

fn stream(address: &str) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&resolve(address)?, PATIENCE)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Whether a message can never be sent that way.
pub(super) fn is_too_long(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::MSGSIZE.raw_os_error())
}

/// An open way to a receiver.
pub(super) enum Way {
    Udp(UdpSocket),
    Tcp(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
    Unix(UnixDatagram),
}

impl Way {
    pub(super) fn send(&mut self, message: &[u8]) -> io::Result<()> {
        match self {
            Self::Udp(socket) => socket.send(message).map(drop),
            Self::Unix(socket) => socket.send(message).map(drop),
            Self::Tcp(stream) => {
                heard(stream, |stream| stream)?;
                stream.write_all(&framed(message))
            }
            Self::Tls(stream) => {
                heard(stream.as_mut(), |stream| &stream.sock)?;
                stream.write_all(&framed(message))?;
                stream.flush()
            }
        }
    }
}

/// Takes what a receiver has sent without waiting for more; fails where it has closed. The first
/// write after that would succeed, and its message be lost (RFC 6587, 3.2).
fn heard<S: io::Read>(stream: &mut S, socket: impl Fn(&S) -> &TcpStream) -> io::Result<()> {
    socket(stream).set_nonblocking(true)?;
    let mut bytes = [0; 4096];
    let read = stream.read(&mut bytes);
    socket(stream).set_nonblocking(false)?;
    match read {
        Ok(0) => Err(io::Error::new(
            io::ErrorKind::ConnectionAborted,
            "it has closed the connection",
        )),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
        Err(error) => Err(error),
    }
}

fn framed(message: &[u8]) -> Vec<u8> {
    let mut frame = format!("{} ", message.len()).into_bytes();
    frame.extend_from_slice(message);
    frame
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Udp(address) => write!(f, "udp://{address}"),
            Place::Tcp(address) => write!(f, "tcp://{address}"),
            Place::Tls(address, _) => write!(f, "tls://{address}"),
            Place::Unix(path) => write!(f, "unix:{}", path.display()),
            Place::Journal(path) => write!(f, "journald:{}", path.display()),
        }
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
