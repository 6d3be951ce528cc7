//! The bridge process itself: `ekm bridge`, which the server starts.
//!
//! Its standard input is one end of a socket pair. The first message says
//! what it is for; when the socket closes it ends at once, whatever the
//! module is doing, so no bridge outlives its server.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::faults::{Fault, FaultClass};
use super::message::{self, Hello, Reply, Request, Response, Task};
use super::pkcs11::Module;
use super::profile::HsmProfile;
use super::token::{self, Token};
use super::worker::Worker;

/// Requests that wait in the bridge. The server bounds its own queue below this.
const QUEUE: usize = 1024;

/// Runs the bridge until its socket closes.
///
/// # Errors
/// Standard input is not the socket, or the first message is wrong.
pub fn run() -> io::Result<()> {
    // Neither a core dump nor another process of this user may see a key.
    harden_server()?;
    let mut socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let hello: Hello = message::read(&mut socket)?;
    let Hello {
        name,
        profile,
        task,
    } = hello;
    watch(socket.try_clone()?)?;
    let loaded = load(&name, &profile);
    match task {
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
        Task::Serve {
            token,
            pin,
            ledgers,
        } => {
            let workers = profile.session.workers;
            let opened =
                loaded.and_then(|module| Token::open(name, module, profile, &token, pin, ledgers));
            match opened {
                Ok(token) => {
                    answer(&mut socket, Ok(Reply::Ready(token.ready())))?;
                    serve(socket, &Arc::new(token), workers)
                }
                Err(fault) => answer(&mut socket, Err(fault)),
            }
        }
    }
}

/// Ends the process when the server has gone, whatever the other threads wait for.
fn watch(socket: UnixStream) -> io::Result<()> {
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
                    end();
                }
            }
        })?;
    Ok(())
}

fn answer(socket: &mut UnixStream, result: Result<Reply, Fault>) -> io::Result<()> {
    message::write(socket, &Response { id: 0, result })
}

fn load(name: &str, profile: &HsmProfile) -> Result<Module, Fault> {
    let library = profile.module.library.as_str();
    let module = if library == "embedded" {
        Module::embedded()
    } else {
        Module::load(Path::new(library))
    }
    .map_err(|error| Fault::Operator {
        token: name.to_owned(),
        reason: error.to_string(),
    })?;
    module
        .initialize(profile.module.reserved.as_deref())
        .map_err(|error| Fault::call(name, error, format!("initialising {library}")))?;
    Ok(module)
}

type Job = (Request, Instant);

fn serve(mut socket: UnixStream, token: &Arc<Token>, workers: usize) -> io::Result<()> {
    let (sender, receiver) = sync_channel::<Job>(QUEUE);
    let receiver = Arc::new(Mutex::new(receiver));
    let writer = Arc::new(Mutex::new(socket.try_clone()?));
    for index in 0..workers {
        let token = Arc::clone(token);
        let receiver = Arc::clone(&receiver);
        let writer = Arc::clone(&writer);
        std::thread::Builder::new()
            .name(format!("session {index}"))
            .spawn(move || work(&token, &receiver, &writer))?;
    }
    while let Ok(request) = message::read::<Request>(&mut socket) {
        let until = Instant::now() + Duration::from_millis(request.deadline_ms);
        if sender.send((request, until)).is_err() {
            break;
        }
    }
    end()
}

fn work(token: &Arc<Token>, receiver: &Mutex<Receiver<Job>>, writer: &Mutex<UnixStream>) {
    let mut worker = Worker::new(Arc::clone(token));
    loop {
        let next = receiver
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .recv();
        let Ok((
            Request {
                id,
                op,
                deadline_ms,
            },
            until,
        )) = next
        else {
            return;
        };
        let result = if Instant::now() >= until {
            Err(Fault::Deadline {
                token: token.name.clone(),
                seconds: deadline_ms / 1000,
            })
        } else {
            worker.run(&op)
        };
        let restart = matches!(
            result,
            Err(Fault::Call {
                class: FaultClass::Restart,
                ..
            })
        );
        let sent = message::write(
            &mut *writer.lock().unwrap_or_else(PoisonError::into_inner),
            &Response { id, result },
        );
        if restart || sent.is_err() {
            end();
        }
    }
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
