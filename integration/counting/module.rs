//! A PKCS#11 module that forwards every call to another one and counts it.
//!
//! A test loads it in place of a token's module and reads afterwards what the
//! token was asked. Three variables, as a profile's `module.environment` gives
//! them to the bridge:
//!
//! - `COUNTING_MODULE`: path of the module that does the work.
//! - `COUNTING_FILE`: the counters, one `u64` for each name in `FUNCTIONS`, in
//!   the machine's byte order. Every process that is given the file adds to
//!   it, so calls are counted across a restart of the bridge. Made if missing.
//! - `COUNTING_LOG`: optional; one line for each call as it returns: function,
//!   session handle (`-` where there is none) and `CKR_` code, both in hex.
#![expect(
    unsafe_code,
    reason = "a PKCS#11 module is a C interface on both sides; pointers pass through unread"
)]

use std::env;
use std::ffi::c_void;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::mem::offset_of;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use cryptoki_sys::{
    CK_FLAGS, CK_FUNCTION_LIST, CK_NOTIFY, CK_RV, CK_SESSION_HANDLE, CK_SLOT_ID, CK_VERSION,
    CKR_ARGUMENTS_BAD, CKR_FUNCTION_NOT_SUPPORTED, CKR_GENERAL_ERROR, CKR_OK,
};
use libloading::Library;
use rustix::mm::{MapFlags, ProtFlags, mmap};

mod names;
use names::FUNCTIONS;

type Counters = [AtomicU64; FUNCTIONS.len()];

/// The only symbol that a v2.40 module must export (PKCS#11 v2.40, 5.4).
///
/// # Safety
/// `list` is null or can be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn C_GetFunctionList(list: *mut *mut CK_FUNCTION_LIST) -> CK_RV {
    let Some(counted) = Counted::get() else {
        return CKR_GENERAL_ERROR;
    };
    let rv = if list.is_null() {
        CKR_ARGUMENTS_BAD
    } else {
        // SAFETY: the caller gave a place to write to. Nobody writes to a function list.
        unsafe { list.write((&raw const LIST).cast_mut()) };
        CKR_OK
    };
    let this = slot(offset_of!(CK_FUNCTION_LIST, C_GetFunctionList));
    counted.count(this);
    counted.log(this, None, rv);
    rv
}

/// The module that does the work, and what it was asked.
struct Counted {
    // Its own table, copied: modules do not change theirs.
    list: CK_FUNCTION_LIST,
    // Keeps the code behind `list` mapped.
    _library: Library,
    counters: &'static Counters,
    log: Option<File>,
}

impl Counted {
    /// Opened once in a process; some modules connect anew for every
    /// `C_GetFunctionList`.
    fn get() -> Option<&'static Self> {
        static COUNTED: OnceLock<Option<Counted>> = OnceLock::new();
        COUNTED
            .get_or_init(|| {
                Self::open()
                    .inspect_err(|error| eprintln!("counting module: {error}"))
                    .ok()
            })
            .as_ref()
    }

    fn open() -> io::Result<Self> {
        let module = variable("COUNTING_MODULE")?;
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
        Ok(Self {
            // SAFETY: the module gave a list that is valid while it is loaded.
            list: unsafe { list.read() },
            _library: library,
            counters: counters(&variable("COUNTING_FILE")?)?,
            log: match variable("COUNTING_LOG") {
                Err(_) => None,
                Ok(path) => Some(open(OpenOptions::new().append(true), &path)?),
            },
        })
    }

    /// The module's function at that place of the table.
    ///
    /// # Safety
    /// `F` is the type of that function.
    unsafe fn function<F>(&self, slot: usize) -> Option<F> {
        let table = (&raw const self.list).cast::<u8>();
        // SAFETY: `slot` came from a field of the table, and the caller knows the field's type.
        unsafe { table.add(FIRST + slot * POINTER).cast::<Option<F>>().read() }
    }

    fn count(&self, slot: usize) {
        if let Some(counter) = self.counters.get(slot) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// One write for a line, so that lines of several threads do not mix.
    fn log(&self, slot: usize, session: Option<CK_SESSION_HANDLE>, rv: CK_RV) {
        let (Some(mut log), Some(name)) = (self.log.as_ref(), FUNCTIONS.get(slot)) else {
            return;
        };
        let line = match session {
            Some(session) => format!("{name} {session:#x} {rv:#x}\n"),
            None => format!("{name} - {rv:#x}\n"),
        };
        if let Err(error) = log.write_all(line.as_bytes()) {
            eprintln!("counting module: COUNTING_LOG: {error}");
        }
    }
}

fn variable(name: &str) -> io::Result<String> {
    env::var(name).map_err(|error| io::Error::other(format!("{name}: {error}")))
}

fn open(options: &mut OpenOptions, path: &str) -> io::Result<File> {
    options
        .create(true)
        .open(path)
        .map_err(|error| io::Error::other(format!("{path}: {error}")))
}

/// The counters of that file, shared with every process that maps it.
fn counters(path: &str) -> io::Result<&'static Counters> {
    let file = open(OpenOptions::new().read(true).write(true), path)?;
    let size = size_of::<Counters>();
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
    // SAFETY: the mapping begins on a page, is as large as the counters and is never taken away.
    Ok(unsafe { &*mapped.cast::<Counters>() })
}

/// Where the table's first function stands, after the version.
const FIRST: usize = offset_of!(CK_FUNCTION_LIST, C_Initialize);

const POINTER: usize = size_of::<*const c_void>();

/// Index in `FUNCTIONS` of the table's field at that offset.
const fn slot(offset: usize) -> usize {
    (offset - FIRST) / POINTER
}

const fn same(one: &[u8], other: &[u8]) -> bool {
    match (one.split_first(), other.split_first()) {
        (Some((a, one)), Some((b, other))) => *a == *b && same(one, other),
        (None, None) => true,
        _ => false,
    }
}

/// One place of the table; its functions count and forward to the same place
/// of the other module's table.
struct Slot<const INDEX: usize>;

/// Functions by their number of arguments. Those in a session take it first.
/// The argument types are those of the field that a function is put into.
macro_rules! forwarders {
    ($($name:ident($session:ident $(, $arg:ident: $type:ident)*);)*) => {$(
        forwarders!(@ $session $name($($arg: $type),*));
    )*};
    (@ plain $name:ident($($arg:ident: $type:ident),*)) => {
        unsafe extern "C" fn $name<$($type),*>($($arg: $type),*) -> CK_RV {
            Self::forward(|function: unsafe extern "C" fn($($type),*) -> CK_RV| {
                // SAFETY: the caller's own arguments, under the caller's promises.
                (None, unsafe { function($($arg),*) })
            })
        }
    };
    (@ session $name:ident($($arg:ident: $type:ident),*)) => {
        unsafe extern "C" fn $name<$($type),*>(session: CK_SESSION_HANDLE, $($arg: $type),*) -> CK_RV {
            Self::forward(|function: unsafe extern "C" fn(CK_SESSION_HANDLE, $($type),*) -> CK_RV| {
                // SAFETY: the caller's own arguments, under the caller's promises.
                (Some(session), unsafe { function(session, $($arg),*) })
            })
        }
    };
}

impl<const INDEX: usize> Slot<INDEX> {
    fn forward<F>(call: impl FnOnce(F) -> (Option<CK_SESSION_HANDLE>, CK_RV)) -> CK_RV {
        let Some(counted) = Counted::get() else {
            return CKR_GENERAL_ERROR;
        };
        counted.count(INDEX);
        // SAFETY: `table!` puts a function of this slot into the field of its index, whose type is `F`.
        let (session, rv) = match unsafe { counted.function(INDEX) } {
            Some(function) => call(function),
            None => (None, CKR_FUNCTION_NOT_SUPPORTED),
        };
        counted.log(INDEX, session, rv);
        rv
    }

    forwarders! {
        plain1(plain, a: A);
        plain2(plain, a: A, b: B);
        plain3(plain, a: A, b: B, c: C);
        plain4(plain, a: A, b: B, c: C, d: D);
        session1(session);
        session2(session, a: A);
        session3(session, a: A, b: B);
        session4(session, a: A, b: B, c: C);
        session5(session, a: A, b: B, c: C, d: D);
        session6(session, a: A, b: B, c: C, d: D, e: E);
        session8(session, a: A, b: B, c: C, d: D, e: E, f: F, g: G);
    }

    /// `C_OpenSession`: the session is the one that it opened.
    unsafe extern "C" fn open_session(
        slot: CK_SLOT_ID,
        flags: CK_FLAGS,
        application: *mut c_void,
        notify: CK_NOTIFY,
        session: *mut CK_SESSION_HANDLE,
    ) -> CK_RV {
        type OpenSession = unsafe extern "C" fn(
            CK_SLOT_ID,
            CK_FLAGS,
            *mut c_void,
            CK_NOTIFY,
            *mut CK_SESSION_HANDLE,
        ) -> CK_RV;
        Self::forward(|function: OpenSession| {
            // SAFETY: the caller's own arguments, under the caller's promises.
            let rv = unsafe { function(slot, flags, application, notify, session) };
            // SAFETY: the module has just written the handle there.
            let opened = (rv == CKR_OK).then(|| unsafe { session.read() });
            (opened, rv)
        })
    }
}

macro_rules! table {
    ($($name:ident: $forwarder:ident,)*) => {
        CK_FUNCTION_LIST {
            version: CK_VERSION { major: 2, minor: 40 },
            C_GetFunctionList: Some(C_GetFunctionList),
            $($name: Some(Slot::<{
                let slot = slot(offset_of!(CK_FUNCTION_LIST, $name));
                assert!(same(FUNCTIONS[slot].as_bytes(), stringify!($name).as_bytes()));
                slot
            }>::$forwarder),)*
        }
    };
}

/// What the caller gets.
#[expect(clippy::indexing_slicing, reason = "the compiler does it")]
static LIST: CK_FUNCTION_LIST = table! {
    C_Initialize: plain1,
    C_Finalize: plain1,
    C_GetInfo: plain1,
    C_GetSlotList: plain3,
    C_GetSlotInfo: plain2,
    C_GetTokenInfo: plain2,
    C_GetMechanismList: plain3,
    C_GetMechanismInfo: plain3,
    C_InitToken: plain4,
    C_InitPIN: session3,
    C_SetPIN: session5,
    C_OpenSession: open_session,
    C_CloseSession: session1,
    C_CloseAllSessions: plain1,
    C_GetSessionInfo: session2,
    C_GetOperationState: session3,
    C_SetOperationState: session5,
    C_Login: session4,
    C_Logout: session1,
    C_CreateObject: session4,
    C_CopyObject: session5,
    C_DestroyObject: session2,
    C_GetObjectSize: session3,
    C_GetAttributeValue: session4,
    C_SetAttributeValue: session4,
    C_FindObjectsInit: session3,
    C_FindObjects: session4,
    C_FindObjectsFinal: session1,
    C_EncryptInit: session3,
    C_Encrypt: session5,
    C_EncryptUpdate: session5,
    C_EncryptFinal: session3,
    C_DecryptInit: session3,
    C_Decrypt: session5,
    C_DecryptUpdate: session5,
    C_DecryptFinal: session3,
    C_DigestInit: session2,
    C_Digest: session5,
    C_DigestUpdate: session3,
    C_DigestKey: session2,
    C_DigestFinal: session3,
    C_SignInit: session3,
    C_Sign: session5,
    C_SignUpdate: session3,
    C_SignFinal: session3,
    C_SignRecoverInit: session3,
    C_SignRecover: session5,
    C_VerifyInit: session3,
    C_Verify: session5,
    C_VerifyUpdate: session3,
    C_VerifyFinal: session3,
    C_VerifyRecoverInit: session3,
    C_VerifyRecover: session5,
    C_DigestEncryptUpdate: session5,
    C_DecryptDigestUpdate: session5,
    C_SignEncryptUpdate: session5,
    C_DecryptVerifyUpdate: session5,
    C_GenerateKey: session5,
    C_GenerateKeyPair: session8,
    C_WrapKey: session6,
    C_UnwrapKey: session8,
    C_DeriveKey: session6,
    C_SeedRandom: session3,
    C_GenerateRandom: session3,
    C_GetFunctionStatus: session1,
    C_CancelFunction: session1,
    C_WaitForSlotEvent: plain3,
};
