//! The program that runs as a bridge, and the surroundings it is given.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Stdio;

use tokio::net::UnixStream;
use tokio::process::{Child, Command};

use crate::bridge::message::{Hello, Task};
use crate::bridge::pin::{EnvironmentPins, Handed, Pin, PinSource};

/// Which program runs as the bridge, and the PINs that came in the environment.
#[derive(Clone, Debug)]
pub struct Program {
    path: PathBuf,
    pins: EnvironmentPins,
}

impl Program {
    /// This very executable.
    ///
    /// # Errors
    /// The operating system does not say where it is.
    pub fn own() -> io::Result<Self> {
        // The file may be replaced by an upgrade while this runs; the bridge
        // must be the same program.
        std::fs::metadata("/proc/self/exe").map(|_| Self::at("/proc/self/exe".into()))
    }

    /// Another copy of `ekm`, for programs that embed the library.
    #[must_use]
    pub fn at(path: PathBuf) -> Self {
        Self {
            path,
            pins: EnvironmentPins::default(),
        }
    }

    /// The same program, whose bridges are handed these PINs.
    #[must_use]
    pub fn with_pins(self, pins: EnvironmentPins) -> Self {
        Self { pins, ..self }
    }

    /// What the bridge gets as its standard output, which it has no other use
    /// for: its PIN, where that does not come from a source of the bridge's own.
    fn handed(&self, hello: &Hello, given: Option<&Handed>) -> io::Result<Stdio> {
        let pin = match &hello.task {
            Task::Serve { pin, .. }
            | Task::Keep { password: pin, .. }
            | Task::Attend {
                pin: Some(Pin::Source(pin)),
                ..
            } => pin,
            Task::List | Task::Init { .. } | Task::Trust { .. } | Task::Attend { .. } => {
                return Ok(Stdio::null());
            }
        };
        let handed = match pin {
            PinSource::Env(name) => self.pins.get(name),
            PinSource::Operator => given,
            PinSource::File(_)
            | PinSource::Credential(_)
            | PinSource::Command(_)
            | PinSource::Pad => None,
        };
        handed.map_or_else(|| Ok(Stdio::null()), Handed::stdio)
    }

    /// Starts it with one end of a socket pair as its standard input; `given`
    /// is the PIN that an operator has given for this start.
    pub(super) fn spawn(
        &self,
        hello: &Hello,
        given: Option<&Handed>,
    ) -> io::Result<(Child, UnixStream)> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let mut command = Command::new(&self.path);
        command
            .arg0("ekm")
            .arg("bridge")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(self.handed(hello, given)?)
            .env_clear();
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
        Ok((command.spawn()?, UnixStream::from_std(ours)?))
    }
}
