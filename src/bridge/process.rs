//! The bridge process itself: `ekm bridge`, which the server starts.
//!
//! Its standard input is one end of a socket pair. The first message says
//! what it is for; when the socket closes it ends at once, whatever the
//! module is doing, so no bridge outlives its server. Only a login that is
//! under way may end first, for two seconds.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, TryLockError, TryLockResult};
use std::time::{Duration, Instant};

use super::attend;
use super::doctor::Doctor;
use super::faults::{Fault, FaultClass};
use super::inbox::Inbox;
use super::message::{self, Hello, Reply, Request, Response, Task};
use super::outbox::Outbox;
use super::pin::Pin;
use super::pkcs11::{Module, Office};
use super::profile::HsmProfile;
use super::share::Share;
use super::software::{Software, Sources};
use super::stats::Calls;
use super::token::{self, Logins, Token};
use super::trust;
use super::which::Which;
use super::worker::Worker;

/// How often a worker without a session asks for one, where the token has no more to give.
const CROWDED: Duration = Duration::from_millis(250);

/// How long a login that is under way is waited for when the server has gone:
/// network HSMs take a second, and the ledger is synced to a disk that may be busy.
const LOGIN: Duration = Duration::from_secs(2);

/// Runs the bridge until its socket closes.
///
/// # Errors
/// Standard input is not the socket, or the first message is wrong.
pub fn run() -> io::Result<()> {
    // Neither a core dump nor another process of this user may see a key.
    harden_server()?;
    // Ctrl-C at a terminal is for the command that started it, which may wait for an answer.
    // Where it cannot be had, its login is only less well guarded.
    let _ = rustix::process::setpgid(None, None);
    let mut socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let hello: Hello = message::read(&mut socket)?;
    let share = Share::of(&hello);
    let Hello {
        name,
        profile,
        task,
    } = hello;
    let under_way = Arc::new(Mutex::new(()));
    watch(socket.try_clone()?, Arc::clone(&under_way))?;
    let task = match task {
        Task::Keep {
            file,
            password,
            key_password,
        } => {
            let sources = Sources {
                file,
                password,
                key_password,
            };
            return match Software::open(name, profile, sources) {
                Ok(software) => {
                    answer(&mut socket, Ok(Reply::Ready(software.ready())))?;
                    software.serve(&socket)?;
                    end()
                }
                Err(fault) => answer(&mut socket, Err(fault)),
            };
        }
        task => task,
    };
    let outbox = Arc::new(Outbox::new(socket.try_clone()?, share));
    if matches!(task, Task::Serve { .. }) {
        // From now on: loading and opening may fail, or never end.
        let outbox = Arc::clone(&outbox);
        std::thread::Builder::new()
            .name("stats".to_owned())
            .spawn(move || outbox.report())?;
    }
    let loaded = match (&task, profile.there()) {
        // Only this one may begin with nothing.
        (Task::Init { .. }, _) | (_, Ok(())) => load(&name, &profile, outbox.calls()),
        // The disk may be mounted any moment.
        (_, Err(reason)) => Err(Fault::Down {
            token: name.clone(),
            reason,
        }),
    };
    match task {
        // It was answered above: it has no module.
        Task::Keep { .. } => Ok(()),
        Task::List => answer(
            &mut socket,
            loaded.and_then(|module| token::list(&name, &module).map(Reply::Slots)),
        ),
        Task::Init {
            label,
            slot,
            so_pin,
            user_pin,
        } => answer(
            &mut socket,
            loaded.and_then(|module| {
                token::init(&name, &module, &label, slot, &so_pin, &user_pin)
                    .map(Reply::Initialized)
            }),
        ),
        Task::Trust { trust, ledgers } => answer(
            &mut socket,
            loaded.and_then(|module| {
                trust::run(&name, &Office::of(module), &trust, &ledgers, &under_way)
                    .map(Reply::Trusted)
            }),
        ),
        Task::Attend {
            token,
            serials,
            pin,
            ledgers,
            avoid,
        } => {
            let which = token.map(|uri| Which { uri, serials });
            let logins = pin.map(|pin| Logins {
                pin,
                ledgers,
                under_way,
                refused: Arc::clone(outbox.refused()),
            });
            let loaded =
                loaded.map(|module| Doctor::new(name, module, profile, which, logins, avoid));
            attend::run(&mut socket, loaded)?;
            end()
        }
        Task::Serve {
            token,
            serials,
            pin,
            ledgers,
        } => {
            let workers = profile.session.workers;
            let which = Which {
                uri: token,
                serials,
            };
            let logins = Logins {
                pin: Pin::Source(pin),
                ledgers,
                under_way,
                refused: Arc::clone(outbox.refused()),
            };
            let opened =
                loaded.and_then(|module| Token::open(name, module, profile, which, logins));
            match opened {
                Ok(token) => {
                    let token = Arc::new(token);
                    let staff = staff(&token, workers);
                    outbox.open(Ok(Reply::Ready(token.ready())))?;
                    serve(&socket, &token, staff, &outbox)
                }
                Err(fault) => outbox.open(Err(fault)),
            }
        }
    }
}

/// Waits, for a while, until no login is under way; while this is held none begins.
fn quiet(logins: &Mutex<()>) -> TryLockResult<MutexGuard<'_, ()>> {
    let until = Instant::now() + LOGIN;
    loop {
        match logins.try_lock() {
            Err(TryLockError::WouldBlock) if Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(2));
            }
            other => return other,
        }
    }
}

/// Ends the process when the server has gone, whatever the other threads wait
/// for; but a login that is under way may end first, since a PIN whose answer
/// nobody saw is held back.
fn watch(socket: UnixStream, logins: Arc<Mutex<()>>) -> io::Result<()> {
    use rustix::event::{PollFd, PollFlags, poll};
    std::thread::Builder::new()
        .name("server watch".to_owned())
        .spawn(move || {
            loop {
                // No event is asked for: that the other end closed is always told.
                let mut polled = [PollFd::new(&socket, PollFlags::empty())];
                let woken = poll(&mut polled, None);
                let gone = polled
                    .iter()
                    .any(|fd| fd.revents().intersects(PollFlags::HUP | PollFlags::ERR));
                if woken.is_ok() && gone {
                    let _quiet = quiet(&logins);
                    end();
                }
            }
        })?;
    Ok(())
}

fn answer(socket: &mut UnixStream, result: Result<Reply, Fault>) -> io::Result<()> {
    message::write(socket, &Response { id: 0, result })
}

fn load(name: &str, profile: &HsmProfile, calls: &Arc<Calls>) -> Result<Module, Fault> {
    let library = profile.module.library.as_str();
    let module = if library == "embedded" {
        Module::embedded()
    } else {
        Module::load(Path::new(library))
    }
    // It may be installed, or its file system mounted, any moment, and looking for it harms nothing.
    .map_err(|error| Fault::Down {
        token: name.to_owned(),
        reason: error.to_string(),
    })?
    .ruled(profile.faults.clone())
    .counted(Arc::clone(calls));
    module
        .initialize(profile.module.reserved.as_deref())
        .map_err(|error| Fault::call(name, error, format!("initialising {library}")))?;
    Ok(module)
}

/// The workers, each with a session where the token has one to give.
fn staff(token: &Arc<Token>, workers: usize) -> Vec<Worker> {
    (0..workers)
        .map(|_| {
            let mut worker = Worker::new(Arc::clone(token));
            // Its first request tells what is wrong, if anything still is.
            drop(worker.prepare());
            worker
        })
        .collect()
}

fn serve(
    socket: &UnixStream,
    token: &Arc<Token>,
    staff: Vec<Worker>,
    outbox: &Arc<Outbox>,
) -> io::Result<()> {
    // Whoever is free reads the next request himself: no thread stands between.
    let inbox = Arc::new(Inbox::new(socket.try_clone()?)?);
    let mut threads = Vec::new();
    for (index, worker) in staff.into_iter().enumerate() {
        let token = Arc::clone(token);
        let inbox = Arc::clone(&inbox);
        let outbox = Arc::clone(outbox);
        threads.push(
            std::thread::Builder::new()
                .name(format!("session {index}"))
                .spawn(move || {
                    let _ends = EndsBridge(Arc::clone(&token));
                    work(worker, &token, &inbox, &outbox);
                })?,
        );
    }
    for thread in threads {
        // The first that ends has ended the process.
        drop(thread.join());
    }
    end()
}

/// Ends the bridge when a worker ends, also by a panic: what it was asked
/// would never be answered. A login of another worker ends first.
struct EndsBridge(Arc<Token>);

impl Drop for EndsBridge {
    fn drop(&mut self) {
        let _quiet = quiet(self.0.logging_in());
        end();
    }
}

fn work(mut worker: Worker, token: &Token, inbox: &Inbox, outbox: &Outbox) {
    loop {
        // Who has no session must not take a request from those who have.
        while worker.prepare().is_err_and(|fault| crowded(&fault)) && token.sessions() > 0 {
            std::thread::sleep(CROWDED);
        }
        let Ok(Request { id, op, until_ms }) = inbox.next() else {
            return;
        };
        // What it waited for in the socket is part of its time.
        let left = until_ms.saturating_sub(message::now_ms());
        let until = Instant::now() + Duration::from_millis(left);
        outbox.busy.fetch_add(1, Ordering::Relaxed);
        let result = loop {
            let result = worker.run(&op, until);
            // The session was lost on the way, and others took what there was.
            let again = result.as_ref().is_err_and(crowded) && Instant::now() + CROWDED < until;
            if !again {
                break result;
            }
            std::thread::sleep(CROWDED);
        };
        outbox.busy.fetch_sub(1, Ordering::Relaxed);
        let restart = matches!(
            result,
            Err(Fault::Call {
                class: FaultClass::Restart,
                ..
            })
        );
        // The process ends with this answer, and another worker may be logging in.
        let _quiet = restart.then(|| quiet(token.logging_in()));
        let sent = outbox.answer(id, &op, result);
        if restart {
            end();
        }
        if sent.is_err() {
            return;
        }
    }
}

/// Whether the token has no session to give: other programs, or bridges that
/// died a moment ago, have them all.
fn crowded(fault: &Fault) -> bool {
    matches!(
        fault,
        Fault::Call { function, name, .. }
            if function == "C_OpenSession" && name == "CKR_SESSION_COUNT"
    )
}

/// Ends the process now. `exit` would run the module's own clean-up, which
/// may wait for ever on an HSM that does not answer.
fn end() -> ! {
    if let Some(own) =
        rustix::process::Pid::from_raw(i32::try_from(std::process::id()).unwrap_or_default())
    {
        let _ = rustix::process::kill_process(own, rustix::process::Signal::KILL);
    }
    std::process::abort()
}

/// No core dumps and no attaching by other processes of the user: an answer
/// may hold a key.
///
/// # Errors
/// The operating system's.
pub fn harden_server() -> io::Result<()> {
    use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
    setrlimit(
        Resource::Core,
        Rlimit {
            current: Some(0),
            maximum: Some(0),
        },
    )?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}
