//! A token that a test plays: a bridge without a process, whose other end the test has.

use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::link::Link;
use super::shared::Shared;
use super::state::LaneState;
use super::{Bridge, Program, Rank};
use crate::bridge::faults::Fault;
use crate::bridge::message::{self, Hello, Ready, Reply, Request, Response, Task};
use crate::bridge::pin::PinSource;
use crate::bridge::pkcs11::TokenInfo;
use crate::bridge::profile::HsmProfile;
use crate::bridge::share::Share;

/// Long enough for a loaded machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// The bridge's end of its socket.
pub(crate) struct Played(UnixStream);

impl Played {
    /// A token that serves, of that priority.
    pub(crate) fn token(name: &str, priority: u8) -> (Bridge, Self) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        for end in [&ours, &theirs] {
            end.set_nonblocking(true).unwrap();
        }
        let hello = Hello {
            name: name.to_owned(),
            profile: HsmProfile::software(),
            task: Task::Keep {
                file: PathBuf::new(),
                password: PinSource::File(PathBuf::new()),
                key_password: None,
            },
        };
        let session = &hello.profile.session;
        let (deadline, sessions) = (session.deadline_seconds, session.workers);
        let share = Share::of(&hello);
        let shared = Arc::new(Shared::new(Program::at(PathBuf::new()), hello, 1));
        let socket = tokio::net::UnixStream::from_std(ours).unwrap();
        let board = Arc::clone(&shared.board);
        let link = Link::start(name.into(), socket, share, board, 0, true).unwrap();
        *shared.links.write().unwrap() = vec![Some(link)];
        let ready = Arc::new(Ready {
            token: TokenInfo::default(),
            keks: Vec::new(),
            probe: None,
            trusted: Vec::new(),
            sessions,
            trouble: None,
        });
        let up = LaneState::Up {
            ready,
            pid: 1,
            silent: false,
        };
        shared.board.post(0, up);
        let (wanted, _) = watch::channel(());
        let bridge = Bridge {
            name: name.into(),
            deadline: Duration::from_secs(deadline),
            rank: Rank {
                priority,
                weight: 1,
            },
            state: shared.board.watch(),
            shared,
            _wanted: Arc::new(wanted),
        };
        (bridge, Self(theirs))
    }

    /// The next question; waits until there is one.
    pub(crate) async fn asked(&mut self) -> Request {
        let start = Instant::now();
        loop {
            match message::read(&mut self.0) {
                Ok(request) => return request,
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}");
                    assert!(start.elapsed() < PATIENCE, "nothing was asked");
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Whether there is no question.
    pub(crate) fn was_not_asked(&mut self) -> bool {
        let next: std::io::Result<Request> = message::read(&mut self.0);
        next.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    }

    /// Answers a question.
    pub(crate) fn says(&mut self, id: u64, result: Result<Reply, Fault>) {
        message::write(&mut self.0, &Response { id, result }).unwrap();
    }
}
