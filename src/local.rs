//! Unix sockets for who runs the program, and for root.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tokio::net::{UnixListener, UnixStream};

/// Listens on a socket of mode 0600, in place of one that nobody listens on.
pub(crate) fn listen(path: &Path) -> io::Result<UnixListener> {
    listen_for(path, None)
}

/// The same; with a group, of mode 0660 and that group's.
pub(crate) fn listen_for(path: &Path, group: Option<u32>) -> io::Result<UnixListener> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "another ekm process works on this site: a server listens there",
        ));
    }
    match std::fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(path)?;
    let mode = if group.is_some() { 0o660 } else { 0o600 };
    std::os::unix::fs::chown(path, None, group)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    Ok(listener)
}

/// Why somebody is not served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Stranger {
    /// The kernel does not say who it is.
    #[error("the peer's user is not known: {0}")]
    Unknown(io::Error),
    /// Neither root nor who runs this.
    #[error("user {0} is another than this program's")]
    Other(u32),
}

/// The user at the other end. The mode of the socket alone would not do: it is set after the socket
/// can be connected to.
pub(crate) fn owner(stream: &UnixStream) -> Result<u32, Stranger> {
    let user = user(stream)?;
    if user == 0 || user == rustix::process::geteuid().as_raw() {
        Ok(user)
    } else {
        Err(Stranger::Other(user))
    }
}

/// The user at the other end, whoever it is.
pub(crate) fn user(stream: &UnixStream) -> Result<u32, Stranger> {
    Ok(stream.peer_cred().map_err(Stranger::Unknown)?.uid())
}
