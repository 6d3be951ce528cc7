//! The server's side of a bridge: starts it, asks it, starts it again.
//!
//! One task owns the child and its socket. A request that outlives its time
//! by the grace below means that the module hangs; PKCS#11 has no way to
//! abandon a call, so the child is killed. Pauses between starts grow, and a
//! token that needs its operator is left alone.

mod keeper;

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::faults::{Fault, FaultClass};
use super::message::{self, Hello, Op, Ready, Reply, Response};
use super::pin::{Pin, PinSource};
use keeper::Keeper;

/// Requests that wait for a bridge; past this the token is busy.
const QUEUE: usize = 512;

/// Time past a request's deadline after which the module counts as hung.
const GRACE: Duration = Duration::from_secs(2);

/// Longest time from start to ready: loading, login, probe.
const START: Duration = Duration::from_secs(60);

/// Longest time for a new key pair: RSA-4096 on a smart card takes minutes.
const GENERATE: Duration = Duration::from_secs(600);

/// What the server knows of a token.
#[derive(Clone, Debug)]
pub enum TokenState {
    /// The bridge is loading the module or logging in.
    Starting,
    /// The canary opens.
    Ready {
        /// What the bridge found.
        ready: Arc<Ready>,
        /// The bridge's process.
        pid: u32,
        /// Since when.
        since: OffsetDateTime,
    },
    /// It does not work now; the bridge is started again.
    Failed {
        /// Why.
        why: Fault,
        /// Since when.
        since: OffsetDateTime,
        /// What was found when it last worked.
        last: Option<Arc<Ready>>,
    },
    /// It is left alone until an operator acts.
    Locked {
        /// Why.
        why: Fault,
        /// Since when.
        since: OffsetDateTime,
        /// What was found when it last worked.
        last: Option<Arc<Ready>>,
    },
}

impl TokenState {
    /// What was last found on the token.
    #[must_use]
    pub const fn found(&self) -> Option<&Arc<Ready>> {
        match self {
            Self::Starting => None,
            Self::Ready { ready, .. } => Some(ready),
            Self::Failed { last, .. } | Self::Locked { last, .. } => last.as_ref(),
        }
    }

    /// One word for tables.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready { .. } => "ready",
            Self::Failed { .. } => "failed",
            Self::Locked { .. } => "locked",
        }
    }
}

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

    fn spawn(&self, hello: &Hello) -> io::Result<(Child, UnixStream)> {
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
        if let message::Task::Serve {
            pin: Pin::Source(PinSource::Env(name)),
            ..
        } = &hello.task
            && let Some(value) = std::env::var_os(name)
        {
            command.env(name, value);
        }
        Ok((command.spawn()?, UnixStream::from_std(ours)?))
    }
}

/// Runs a bridge for one task that answers once: listing or initialising.
///
/// # Errors
/// What the bridge says, or that it could not be run.
pub async fn once(program: &Program, hello: &Hello) -> Result<Reply, Fault> {
    let down = |reason: String| Fault::Down {
        token: hello.name.clone(),
        reason,
    };
    let (_child, socket) = program
        .spawn(hello)
        .map_err(|error| down(format!("cannot start the bridge: {error}")))?;
    let (mut reader, mut writer) = socket.into_split();
    let exchange = async {
        send(&mut writer, hello).await?;
        receive(&mut reader).await
    };
    match tokio::time::timeout(START, exchange).await {
        Ok(Ok(Response { result, .. })) => result,
        Ok(Err(error)) => Err(down(format!(
            "the bridge ended without an answer ({error}); did the module crash?"
        ))),
        Err(_) => Err(down(format!(
            "the module did not answer within {} s",
            START.as_secs()
        ))),
    }
}

struct Asked {
    op: Op,
    until: Instant,
    reply: oneshot::Sender<Result<Reply, Fault>>,
}

/// A token behind its bridge.
#[derive(Clone, Debug)]
pub struct Bridge {
    name: Arc<str>,
    deadline: Duration,
    requests: mpsc::Sender<Asked>,
    state: watch::Receiver<TokenState>,
}

impl Bridge {
    /// Starts the bridge and keeps it running for as long as the `Bridge` lives.
    #[must_use]
    pub fn start(program: Program, hello: Hello) -> Self {
        let (requests, queue) = mpsc::channel(QUEUE);
        let (publish, state) = watch::channel(TokenState::Starting);
        let name: Arc<str> = hello.name.as_str().into();
        let deadline = Duration::from_secs(hello.profile.session.deadline_seconds);
        tokio::spawn(Keeper::new(program, hello, queue, publish).run());
        Self {
            name,
            deadline,
            requests,
            state,
        }
    }

    /// The token's configured name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What is known of the token now.
    #[must_use]
    pub fn state(&self) -> TokenState {
        self.state.borrow().clone()
    }

    /// Waits until the token is ready, or is known not to become so soon.
    ///
    /// # Errors
    /// Why it is not ready.
    pub async fn settled(&self) -> Result<Arc<Ready>, Fault> {
        let mut state = self.state.clone();
        let settled = state
            .wait_for(|state| !matches!(state, TokenState::Starting))
            .await
            .map(|state| state.clone());
        match settled {
            Ok(TokenState::Ready { ready, .. }) => Ok(ready),
            Ok(TokenState::Failed { why, .. } | TokenState::Locked { why, .. }) => Err(why),
            Ok(TokenState::Starting) | Err(_) => Err(self.down("the server is stopping")),
        }
    }

    /// Asks the bridge. Asked once more where a bridge ended under the
    /// request: no exchange leaves anything behind on a token.
    ///
    /// # Errors
    /// The token's fault, or that it is down or busy.
    pub async fn ask(&self, op: Op) -> Result<Reply, Fault> {
        let again = !matches!(op, Op::Generate { .. });
        let until = Instant::now() + if again { self.deadline } else { GENERATE };
        match self.ask_once(op.clone(), until).await {
            Err(
                Fault::Down { .. }
                | Fault::Call {
                    class: FaultClass::Restart,
                    ..
                },
            ) if again && !matches!(self.state(), TokenState::Locked { .. }) => {
                self.back(until).await?;
                self.ask_once(op, until).await
            }
            outcome => outcome,
        }
    }

    /// Asks once, now: for whoever can turn to another token instead.
    ///
    /// # Errors
    /// The token's fault, or that it is down or busy.
    pub async fn try_ask(&self, op: Op) -> Result<Reply, Fault> {
        if !matches!(self.state(), TokenState::Ready { .. }) {
            return Err(self.down(self.state().word()));
        }
        self.ask_once(op, Instant::now() + self.deadline).await
    }

    async fn ask_once(&self, op: Op, until: Instant) -> Result<Reply, Fault> {
        let (reply, answer) = oneshot::channel();
        self.requests
            .try_send(Asked { op, until, reply })
            .map_err(|_| self.down("too many requests wait for it"))?;
        // The keeper answers or ends by then, unless it is still opening a token.
        match tokio::time::timeout_at(until + GRACE * 2, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(self.down("its bridge ended")),
            Err(_) => Err(Fault::Deadline {
                token: self.name.to_string(),
                seconds: self.deadline.as_secs(),
            }),
        }
    }

    /// Waits for a bridge that is being started again.
    async fn back(&self, until: Instant) -> Result<(), Fault> {
        let mut state = self.state.clone();
        let ready = state.wait_for(|state| {
            matches!(state, TokenState::Ready { .. } | TokenState::Locked { .. })
        });
        match tokio::time::timeout_at(until, ready).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(match self.state() {
                TokenState::Failed { why, .. } | TokenState::Locked { why, .. } => why,
                TokenState::Starting | TokenState::Ready { .. } => {
                    self.down("it did not come back in time")
                }
            }),
        }
    }

    fn down(&self, reason: &str) -> Fault {
        Fault::Down {
            token: self.name.to_string(),
            reason: reason.to_owned(),
        }
    }
}

async fn send<T: serde::Serialize>(writer: &mut OwnedWriteHalf, message: &T) -> io::Result<()> {
    writer.write_all(&message::encode(message)?).await
}

async fn receive(reader: &mut OwnedReadHalf) -> io::Result<Response> {
    let mut head = [0_u8; 4];
    reader.read_exact(&mut head).await?;
    let mut body = Zeroizing::new(vec![0_u8; message::frame_length(head)?]);
    reader.read_exact(&mut body).await?;
    message::decode(&body)
}
