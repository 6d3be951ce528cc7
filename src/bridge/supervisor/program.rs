//! The program that runs as a bridge, and the surroundings it is given.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Stdio;

use tokio::net::UnixStream;
use tokio::process::{Child, Command};

use crate::bridge::message::{Hello, Task};
use crate::bridge::pin::{Pin, PinSource};

/// Which program runs as the bridge.
#[derive(Clone, Debug)]
pub struct Program(PathBuf);

impl Program {
    /// This very executable.
    ///
    /// # Errors
    /// The operating system does not say where it is.
    pub fn own() -> io::Result<Self> {
        // The file may be replaced by an upgrade while this runs; the bridge
        // must be the same program.
        std::fs::metadata("/proc/self/exe").map(|_| Self("/proc/self/exe".into()))
    }

    /// Another copy of `ekm`, for programs that embed the library.
    #[must_use]
    pub const fn at(path: PathBuf) -> Self {
        Self(path)
    }

    /// Starts it with one end of a socket pair as its standard input.
    pub(super) fn spawn(&self, hello: &Hello) -> io::Result<(Child, UnixStream)> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let mut command = Command::new(&self.0);
        command
            .arg0("ekm")
            .arg("bridge")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .env_clear()
            .kill_on_drop(true);
        // The vendor's library sees what its profile says, not the server's surroundings.
        for name in [
            "PATH",
            "HOME",
            "LANG",
            "TZ",
            "RUST_LOG",
            "EKM_LOG_FORMAT",
            "CREDENTIALS_DIRECTORY",
        ] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command.envs(&hello.profile.module.environment);
        if let Task::Serve {
            pin: Pin::Source(PinSource::Env(name)),
            ..
        }
        | Task::Attend {
            pin: Some(Pin::Source(PinSource::Env(name))),
            ..
        } = &hello.task
            && let Some(value) = std::env::var_os(name)
        {
            command.env(name, value);
        }
        Ok((command.spawn()?, UnixStream::from_std(ours)?))
    }
}
