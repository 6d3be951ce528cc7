//! The module that does the work, what it was asked, and the rules for it.

use std::env;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard};
use std::thread;
use std::time::Duration;

use cryptoki_sys::{CK_FUNCTION_LIST, CK_RV, CK_SESSION_HANDLE, CKR_OK};
use libloading::Library;
use rustix::mm::{MapFlags, ProtFlags, mmap};

use super::control::{BOARD, Board, Fault, RULES, Rule, Rules};
use super::names::FUNCTIONS;
use super::sessions::Sessions;
use super::{FIRST, POINTER};

/// How often a call that hangs looks whether it still should.
const LOOK: Duration = Duration::from_millis(5);

/// What a call does instead of, or besides, asking the token.
#[derive(Clone, Copy)]
pub(crate) enum Met {
    /// Nothing.
    Nothing,
    /// The token is not asked, and this is answered.
    Answer(CK_RV),
    /// The token is asked, and this is answered.
    AnswerLost(CK_RV),
    /// The token is asked, and what it answered comes later.
    Late(Duration),
    /// The token is asked, and what it gave is turned into something else.
    Garbled,
}

/// The module that does the work.
pub(crate) struct Under {
    // Its own table, copied: modules do not change theirs.
    pub(crate) list: CK_FUNCTION_LIST,
    // Keeps the code behind `list` mapped.
    _library: Library,
    directory: PathBuf,
    board: &'static Board,
    rules: RwLock<(u64, Arc<Rules>)>,
    // Held to read by every call, so that sessions are not closed under one.
    calls: RwLock<()>,
    pub(crate) sessions: Sessions,
    log: Option<File>,
}

impl Under {
    /// Opened once in a process; some modules connect anew for every
    /// `C_GetFunctionList`.
    pub(crate) fn get() -> Option<&'static Self> {
        static UNDER: OnceLock<Option<Under>> = OnceLock::new();
        UNDER
            .get_or_init(|| Self::open().inspect_err(complain).ok())
            .as_ref()
    }

    fn open() -> io::Result<Self> {
        let module = variable("FAULTY_MODULE")?;
        // SAFETY: the test names a PKCS#11 module, whose constructors may run.
        let library = unsafe { Library::new(&module) }.map_err(io::Error::other)?;
        let mut list = ptr::null_mut();
        // SAFETY: the symbol has this type in every PKCS#11 module.
        let rv = unsafe {
            let function_list = library
                .get::<unsafe extern "C" fn(*mut *mut CK_FUNCTION_LIST) -> CK_RV>(
                    b"C_GetFunctionList\0",
                )
                .map_err(io::Error::other)?;
            function_list(&raw mut list)
        };
        if rv != CKR_OK || list.is_null() {
            return Err(io::Error::other(format!(
                "{module}: C_GetFunctionList answered {rv:#x} and no function list"
            )));
        }
        let directory = PathBuf::from(variable("FAULTY_DIRECTORY")?);
        fs::create_dir_all(&directory)?;
        let board = board(&directory.join(BOARD))?;
        let generation = board.generation.load(Ordering::Acquire);
        Ok(Self {
            // SAFETY: the module gave a list that is valid while it is loaded.
            list: unsafe { list.read() },
            _library: library,
            board,
            // What was lost before this process was there is no loss to it.
            rules: RwLock::new((generation, Arc::new(rules(&directory)?))),
            calls: RwLock::new(()),
            sessions: Sessions::of(board, &directory)?,
            log: match variable("FAULTY_LOG") {
                Err(_) => None,
                Ok(path) => Some(opened(OpenOptions::new().append(true), Path::new(&path))?),
            },
            directory,
        })
    }

    /// The module's function at that place of the table.
    ///
    /// # Safety
    /// `F` is the type of that function.
    pub(crate) unsafe fn function<F>(&self, slot: usize) -> Option<F> {
        let table = (&raw const self.list).cast::<u8>();
        // SAFETY: `slot` came from a field of the table, and the caller knows the field's type.
        unsafe { table.add(FIRST + slot * POINTER).cast::<Option<F>>().read() }
    }

    /// Counts a call and lets it meet what the rules have for it.
    pub(crate) fn begin(&self, slot: usize) -> (Arc<Rules>, Met) {
        let count = |counter: Option<&std::sync::atomic::AtomicU64>| {
            counter.map_or(0, |counter| counter.fetch_add(1, Ordering::Relaxed))
        };
        let of_all = count(Some(&self.board.all));
        let nth = count(self.board.calls.get(slot));
        let name = FUNCTIONS.get(slot).copied().unwrap_or_default();
        loop {
            let rules = self.rules();
            let met = match fault(&rules, name, nth, of_all) {
                None => Met::Nothing,
                Some(Fault::Answer(rv)) => Met::Answer(rv),
                Some(Fault::AnswerLost(rv)) => Met::AnswerLost(rv),
                Some(Fault::Delay(time)) => {
                    thread::sleep(Duration::from_millis(time));
                    Met::Nothing
                }
                Some(Fault::Late(time)) => Met::Late(Duration::from_millis(time)),
                Some(Fault::Garbled) => Met::Garbled,
                Some(Fault::Hang) => {
                    thread::sleep(LOOK);
                    continue;
                }
                Some(Fault::Abort) => std::process::abort(),
                Some(Fault::Segfault) => segfault(),
            };
            return (rules, met);
        }
    }

    /// To be held while the module below is asked.
    pub(crate) fn call(&self) -> RwLockReadGuard<'_, ()> {
        self.calls.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The rules of now.
    fn rules(&self) -> Arc<Rules> {
        let generation = self.board.generation.load(Ordering::Acquire);
        {
            let known = self.rules.read().unwrap_or_else(PoisonError::into_inner);
            if known.0 == generation {
                return Arc::clone(&known.1);
            }
        }
        let mut known = self.rules.write().unwrap_or_else(PoisonError::into_inner);
        if known.0 != generation {
            match rules(&self.directory) {
                Err(error) => complain(&error),
                Ok(new) => {
                    self.lose(&known.1, &new);
                    *known = (generation, Arc::new(new));
                }
            }
        }
        Arc::clone(&known.1)
    }

    fn lose(&self, known: &Rules, new: &Rules) {
        let _alone = self.calls.write().unwrap_or_else(PoisonError::into_inner);
        if new.logins_lost > known.logins_lost
            && let (Some(session), Some(logout)) = (self.sessions.any(), self.list.C_Logout)
        {
            // SAFETY: a session that the module opened and nobody has closed.
            unsafe { logout(session) };
        }
        if new.sessions_lost > known.sessions_lost
            && let Some(close) = self.list.C_CloseAllSessions
        {
            for slot in self.sessions.slots() {
                // SAFETY: no call is under way.
                unsafe { close(slot) };
                self.sessions.closed_all(slot);
            }
        }
    }

    /// One write for a line, so that lines of several threads do not mix.
    pub(crate) fn log(&self, slot: usize, session: Option<CK_SESSION_HANDLE>, rv: CK_RV) {
        let (Some(mut log), Some(name)) = (self.log.as_ref(), FUNCTIONS.get(slot)) else {
            return;
        };
        let line = match session {
            Some(session) => format!("{name} {session:#x} {rv:#x}\n"),
            None => format!("{name} - {rv:#x}\n"),
        };
        if let Err(error) = log.write_all(line.as_bytes()) {
            complain(&error);
        }
    }

    /// Wrong user PINs since the last right one, over all clients.
    pub(crate) fn officer_logs_in(&self) {
        self.board.officer_logins.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn wrong_pins(&self) -> u64 {
        self.board.wrong_pins.load(Ordering::Relaxed)
    }

    /// A user PIN was right, or it was wrong.
    pub(crate) fn pin_was(&self, right: bool) {
        if right {
            self.board.wrong_pins.store(0, Ordering::Relaxed);
        } else {
            self.board.wrong_pins.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// What a call meets: `nth` of its function and `of_all` among all calls, both from 0.
fn fault(rules: &Rules, function: &str, nth: u64, of_all: u64) -> Option<Fault> {
    let meets = |rule: &&Rule| {
        let number = match &rule.function {
            None => of_all,
            Some(name) if name == function => nth,
            Some(_) => return false,
        };
        let after = number.checked_sub(rule.first);
        after.is_some_and(|after| rule.count.is_none_or(|count| after < count))
    };
    rules.faults.iter().find(meets).map(|rule| rule.fault)
}

fn complain(error: &io::Error) {
    eprintln!("faulty module: {error}");
}

fn segfault() -> ! {
    // SAFETY: none; the first page of a process is never mapped.
    unsafe { ptr::without_provenance_mut::<u64>(64).write_volatile(0) };
    std::process::abort()
}

fn variable(name: &str) -> io::Result<String> {
    env::var(name).map_err(|error| io::Error::other(format!("{name}: {error}")))
}

fn opened(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    options
        .create(true)
        .open(path)
        .map_err(|error| io::Error::other(format!("{}: {error}", path.display())))
}

/// The rules in that directory; none yet is a token without faults.
fn rules(directory: &Path) -> io::Result<Rules> {
    match fs::read(directory.join(RULES)) {
        Ok(text) => Ok(serde_json::from_slice(&text)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Rules::default()),
        Err(error) => Err(error),
    }
}

/// The board in that file, shared with every process that maps it.
fn board(path: &Path) -> io::Result<&'static Board> {
    let file = opened(OpenOptions::new().read(true).write(true), path)?;
    let size = size_of::<Board>();
    file.set_len(u64::try_from(size).map_err(io::Error::other)?)?;
    // SAFETY: a new mapping of the kernel's choice aliases nothing in this process.
    let mapped = unsafe {
        mmap(
            ptr::null_mut(),
            size,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::SHARED,
            &file,
            0,
        )
    }?;
    // SAFETY: the mapping begins on a page, is as large as the board and is never taken away.
    Ok(unsafe { &*mapped.cast::<Board>() })
}
