//! A PKCS#11 module that forwards every call to another one, counts it, and
//! misbehaves as it is told.
//!
//! A test loads it in place of a token's module. Three variables, as a
//! profile's `module.environment` gives them to the bridge:
//!
//! - `FAULTY_MODULE`: path of the module that does the work.
//! - `FAULTY_DIRECTORY`: where the rules and the board are (`control.rs`).
//!   Every process that is given the directory is a client of one token: calls
//!   are counted, PINs and sessions limited for all of them together, and what
//!   was counted stays when a client ends. Made if missing.
//! - `FAULTY_LOG`: optional; one line for each call as it returns: function,
//!   session handle (`-` where there is none) and `CKR_` code, both in hex.
#![expect(
    unsafe_code,
    reason = "a PKCS#11 module is a C interface on both sides; pointers pass through unread"
)]

use std::ffi::c_void;
use std::mem::offset_of;

use cryptoki_sys::{
    CK_BBOOL, CK_BYTE, CK_FLAGS, CK_FUNCTION_LIST, CK_NOTIFY, CK_RV, CK_SESSION_HANDLE,
    CK_SESSION_INFO, CK_SLOT_ID, CK_TOKEN_INFO, CK_ULONG, CK_USER_TYPE, CK_UTF8CHAR, CK_VERSION,
    CKF_PROTECTED_AUTHENTICATION_PATH, CKF_USER_PIN_COUNT_LOW, CKF_USER_PIN_FINAL_TRY,
    CKF_USER_PIN_LOCKED, CKR_ARGUMENTS_BAD, CKR_FUNCTION_NOT_SUPPORTED, CKR_GENERAL_ERROR, CKR_OK,
    CKR_PIN_INCORRECT, CKR_PIN_LOCKED, CKR_SESSION_COUNT, CKR_SLOT_ID_INVALID, CKU_SO, CKU_USER,
};

mod control;
mod names;
mod sessions;
mod under;

use control::{Rules, Slots};
use names::FUNCTIONS;
use under::{Met, Under};

/// The only symbol that a v2.40 module must export (PKCS#11 v2.40, 5.4).
///
/// # Safety
/// `list` is null or can be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn C_GetFunctionList(list: *mut *mut CK_FUNCTION_LIST) -> CK_RV {
    let Some(under) = Under::get() else {
        return CKR_GENERAL_ERROR;
    };
    let this = slot(offset_of!(CK_FUNCTION_LIST, C_GetFunctionList));
    let rv = match under.begin(this) {
        (_, Met::Answer(rv) | Met::AnswerLost(rv)) => rv,
        (_, Met::Nothing | Met::Late(_) | Met::Garbled) if list.is_null() => CKR_ARGUMENTS_BAD,
        (_, Met::Nothing | Met::Late(_) | Met::Garbled) => {
            // SAFETY: the caller gave a place to write to. Nobody writes to a function list.
            unsafe { list.write((&raw const LIST).cast_mut()) };
            CKR_OK
        }
    };
    under.log(this, None, rv);
    rv
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

/// The slot's number in the module below.
fn below(under: &Under, rules: &Rules, shown: CK_SLOT_ID) -> Option<CK_SLOT_ID> {
    match rules.slots {
        Slots::AsTheyAre => Some(shown),
        Slots::Shifted(by) => shown.checked_sub(by),
        Slots::Rotated => neighbour(under, shown, 1),
    }
}

/// The number that the caller knows the slot by.
fn shown(under: &Under, rules: &Rules, below: CK_SLOT_ID) -> CK_SLOT_ID {
    match rules.slots {
        Slots::AsTheyAre => below,
        Slots::Shifted(by) => below + by,
        Slots::Rotated => neighbour(under, below, -1).unwrap_or(below),
    }
}

/// The slot so many places further among those with a token, in a circle.
fn neighbour(under: &Under, slot: CK_SLOT_ID, places: isize) -> Option<CK_SLOT_ID> {
    let list = under.list.C_GetSlotList?;
    let mut slots = [0; 64];
    let mut count = CK_ULONG::try_from(slots.len()).ok()?;
    // SAFETY: the array is as long as `count` says.
    let rv = unsafe { list(1, slots.as_mut_ptr(), &raw mut count) };
    let slots = slots.get(..usize::try_from(count).ok()?)?;
    let at = isize::try_from(slots.iter().position(|have| *have == slot)?).ok()?;
    let there = (at + places).rem_euclid(isize::try_from(slots.len()).ok()?);
    let there = slots.get(usize::try_from(there).ok()?)?;
    (rv == CKR_OK).then_some(*there)
}

/// What a forwarder is given: the module below, the rules of this call and what it meets.
#[derive(Clone, Copy)]
struct At<'a> {
    under: &'a Under,
    rules: &'a Rules,
    met: Met,
}

/// The session that a call was in or opened, and what it answered.
type Answered = (Option<CK_SESSION_HANDLE>, CK_RV);

/// One place of the table; its functions count and forward to the same place
/// of the other module's table.
struct Slot<const INDEX: usize>;

/// Functions by their number of arguments. Those in a session, or about a
/// slot, take it first. The argument types are those of the field that a
/// function is put into.
macro_rules! forwarders {
    ($($name:ident($kind:ident $(, $arg:ident: $type:ident)*);)*) => {$(
        forwarders!(@ $kind $name($($arg: $type),*));
    )*};
    (@ plain $name:ident($($arg:ident: $type:ident),*)) => {
        unsafe extern "C" fn $name<$($type),*>($($arg: $type),*) -> CK_RV {
            Self::forward(|_, function: unsafe extern "C" fn($($type),*) -> CK_RV| {
                // SAFETY: the caller's own arguments, under the caller's promises.
                (None, unsafe { function($($arg),*) })
            })
        }
    };
    (@ session $name:ident($($arg:ident: $type:ident),*)) => {
        unsafe extern "C" fn $name<$($type),*>(session: CK_SESSION_HANDLE, $($arg: $type),*) -> CK_RV {
            Self::forward(|_, function: unsafe extern "C" fn(CK_SESSION_HANDLE, $($type),*) -> CK_RV| {
                // SAFETY: the caller's own arguments, under the caller's promises.
                (Some(session), unsafe { function(session, $($arg),*) })
            })
        }
    };
    (@ slot $name:ident($($arg:ident: $type:ident),*)) => {
        unsafe extern "C" fn $name<$($type),*>(slot: CK_SLOT_ID, $($arg: $type),*) -> CK_RV {
            Self::about(slot, |_, slot, function: unsafe extern "C" fn(CK_SLOT_ID, $($type),*) -> CK_RV| {
                // SAFETY: the caller's own arguments, under the caller's promises.
                (None, unsafe { function(slot, $($arg),*) })
            })
        }
    };
}

impl<const INDEX: usize> Slot<INDEX> {
    fn forward<F>(call: impl FnOnce(At<'_>, F) -> Answered) -> CK_RV {
        let Some(under) = Under::get() else {
            return CKR_GENERAL_ERROR;
        };
        let (rules, met) = under.begin(INDEX);
        let ask = || {
            let _asked = under.call();
            let at = At {
                under,
                rules: &rules,
                met,
            };
            // SAFETY: `table!` puts a function of this slot into the field of its index, whose type is `F`.
            match unsafe { under.function(INDEX) } {
                Some(function) => call(at, function),
                None => (None, CKR_FUNCTION_NOT_SUPPORTED),
            }
        };
        let (session, rv) = match met {
            Met::Nothing | Met::Garbled => ask(),
            Met::Answer(rv) => (None, rv),
            Met::AnswerLost(rv) => (ask().0, rv),
            Met::Late(time) => {
                let answered = ask();
                std::thread::sleep(time);
                answered
            }
        };
        under.log(INDEX, session, rv);
        rv
    }

    /// A call about a slot, by the number that it has below.
    fn about<F>(slot: CK_SLOT_ID, call: impl FnOnce(At<'_>, CK_SLOT_ID, F) -> Answered) -> CK_RV {
        Self::forward(|at, function| match below(at.under, at.rules, slot) {
            Some(slot) => call(at, slot, function),
            None => (None, CKR_SLOT_ID_INVALID),
        })
    }

    forwarders! {
        plain1(plain, a: A);
        plain3(plain, a: A, b: B, c: C);
        slot2(slot, a: A);
        slot3(slot, a: A, b: B);
        slot4(slot, a: A, b: B, c: C);
        session1(session);
        session2(session, a: A);
        session3(session, a: A, b: B);
        session4(session, a: A, b: B, c: C);
        session5(session, a: A, b: B, c: C, d: D);
        session6(session, a: A, b: B, c: C, d: D, e: E);
        session8(session, a: A, b: B, c: C, d: D, e: E, f: F, g: G);
    }

    unsafe extern "C" fn finalize(reserved: *mut c_void) -> CK_RV {
        Self::forward(|at, function: unsafe extern "C" fn(*mut c_void) -> CK_RV| {
            // SAFETY: the caller's own arguments, under the caller's promises.
            let rv = unsafe { function(reserved) };
            if rv == CKR_OK {
                for slot in at.under.sessions.slots() {
                    at.under.sessions.closed_all(slot);
                }
            }
            (None, rv)
        })
    }

    unsafe extern "C" fn get_slot_list(
        present: CK_BBOOL,
        slots: *mut CK_SLOT_ID,
        count: *mut CK_ULONG,
    ) -> CK_RV {
        type GetSlotList = unsafe extern "C" fn(CK_BBOOL, *mut CK_SLOT_ID, *mut CK_ULONG) -> CK_RV;
        Self::forward(|at, function: GetSlotList| {
            // SAFETY: the caller's own arguments, under the caller's promises.
            let rv = unsafe { function(present, slots, count) };
            // The circle has the same numbers.
            if let Slots::Shifted(by) = at.rules.slots
                && rv == CKR_OK
                && !slots.is_null()
            {
                // SAFETY: the module has just written so many slots there.
                let count = usize::try_from(unsafe { count.read() }).unwrap_or_default();
                // SAFETY: as above.
                for slot in unsafe { std::slice::from_raw_parts_mut(slots, count) } {
                    *slot += by;
                }
            }
            (None, rv)
        })
    }

    unsafe extern "C" fn get_token_info(slot: CK_SLOT_ID, info: *mut CK_TOKEN_INFO) -> CK_RV {
        type GetTokenInfo = unsafe extern "C" fn(CK_SLOT_ID, *mut CK_TOKEN_INFO) -> CK_RV;
        Self::about(slot, |at, slot, function: GetTokenInfo| {
            // SAFETY: the caller's own arguments, under the caller's promises.
            let rv = unsafe { function(slot, info) };
            if rv == CKR_OK {
                // SAFETY: the module has just written there.
                Self::say_limits(at, unsafe { &mut *info });
            }
            (None, rv)
        })
    }

    fn say_limits(at: At<'_>, info: &mut CK_TOKEN_INFO) {
        if let Some(tries) = at.rules.pin_tries {
            let wrong = at.under.wrong_pins();
            for (flag, so) in [
                (CKF_USER_PIN_COUNT_LOW, wrong > 0 && wrong < tries),
                (CKF_USER_PIN_FINAL_TRY, wrong + 1 == tries),
                (CKF_USER_PIN_LOCKED, wrong >= tries),
            ] {
                info.flags = if so {
                    info.flags | flag
                } else {
                    info.flags & !flag
                };
            }
        }
        if at.rules.pad.is_some() {
            info.flags |= CKF_PROTECTED_AUTHENTICATION_PATH;
        }
        if let Some(limit) = at.rules.session_limit.filter(|limit| limit.told) {
            info.ulMaxSessionCount = limit.most;
            info.ulMaxRwSessionCount = limit.most;
        }
    }

    /// The session is the one that it opened.
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
        Self::about(slot, |at, slot, function: OpenSession| {
            if !at.under.sessions.reserve(at.rules.session_limit) {
                return (None, CKR_SESSION_COUNT);
            }
            // SAFETY: the caller's own arguments, under the caller's promises.
            let rv = unsafe { function(slot, flags, application, notify, session) };
            // SAFETY: the module has just written the handle there.
            let opened = (rv == CKR_OK).then(|| unsafe { session.read() });
            at.under.sessions.opened(opened, slot);
            (opened, rv)
        })
    }

    unsafe extern "C" fn close_session(session: CK_SESSION_HANDLE) -> CK_RV {
        type CloseSession = unsafe extern "C" fn(CK_SESSION_HANDLE) -> CK_RV;
        Self::forward(|at, function: CloseSession| {
            // SAFETY: the caller's own arguments, under the caller's promises.
            let rv = unsafe { function(session) };
            if rv == CKR_OK {
                at.under.sessions.closed(session);
            }
            (Some(session), rv)
        })
    }

    unsafe extern "C" fn close_all_sessions(slot: CK_SLOT_ID) -> CK_RV {
        Self::about(
            slot,
            |at, slot, function: unsafe extern "C" fn(CK_SLOT_ID) -> CK_RV| {
                // SAFETY: the caller's own arguments, under the caller's promises.
                let rv = unsafe { function(slot) };
                if rv == CKR_OK {
                    at.under.sessions.closed_all(slot);
                }
                (None, rv)
            },
        )
    }

    unsafe extern "C" fn get_session_info(
        session: CK_SESSION_HANDLE,
        info: *mut CK_SESSION_INFO,
    ) -> CK_RV {
        type GetSessionInfo =
            unsafe extern "C" fn(CK_SESSION_HANDLE, *mut CK_SESSION_INFO) -> CK_RV;
        Self::forward(|at, function: GetSessionInfo| {
            // SAFETY: the caller's own arguments, under the caller's promises.
            let rv = unsafe { function(session, info) };
            if rv == CKR_OK {
                // SAFETY: the module has just written there.
                let info = unsafe { &mut *info };
                info.slotID = shown(at.under, at.rules, info.slotID);
            }
            (Some(session), rv)
        })
    }

    unsafe extern "C" fn decrypt(
        session: CK_SESSION_HANDLE,
        data: *mut CK_BYTE,
        length: CK_ULONG,
        out: *mut CK_BYTE,
        size: *mut CK_ULONG,
    ) -> CK_RV {
        type Decrypt = unsafe extern "C" fn(
            CK_SESSION_HANDLE,
            *mut CK_BYTE,
            CK_ULONG,
            *mut CK_BYTE,
            *mut CK_ULONG,
        ) -> CK_RV;
        Self::forward(|at, function: Decrypt| {
            // SAFETY: the caller's own arguments, under the caller's promises.
            let rv = unsafe { function(session, data, length, out, size) };
            if rv == CKR_OK && matches!(at.met, Met::Garbled) && !out.is_null() {
                // SAFETY: the module has just written there.
                unsafe { out.write(out.read() ^ 1) };
            }
            (Some(session), rv)
        })
    }

    unsafe extern "C" fn login(
        session: CK_SESSION_HANDLE,
        user: CK_USER_TYPE,
        pin: *mut CK_UTF8CHAR,
        length: CK_ULONG,
    ) -> CK_RV {
        type Login = unsafe extern "C" fn(
            CK_SESSION_HANDLE,
            CK_USER_TYPE,
            *mut CK_UTF8CHAR,
            CK_ULONG,
        ) -> CK_RV;
        Self::forward(|at, function: Login| {
            let tries = at.rules.pin_tries.filter(|_| user == CKU_USER);
            if tries.is_some_and(|tries| at.under.wrong_pins() >= tries) {
                return (Some(session), CKR_PIN_LOCKED);
            }
            if user == CKU_SO {
                at.under.officer_logs_in();
            }
            let rv = match at.rules.pad.as_ref().filter(|_| pin.is_null()) {
                None => {
                    // SAFETY: the caller's own arguments, under the caller's promises.
                    unsafe { function(session, user, pin, length) }
                }
                Some(typed) => {
                    let mut typed = typed.clone().into_bytes();
                    let Ok(length) = typed.len().try_into() else {
                        return (Some(session), CKR_GENERAL_ERROR);
                    };
                    // SAFETY: the text lives until the call returns.
                    unsafe { function(session, user, typed.as_mut_ptr(), length) }
                }
            };
            if user == CKU_USER && matches!(rv, CKR_OK | CKR_PIN_INCORRECT) {
                at.under.pin_was(rv == CKR_OK);
            }
            (Some(session), rv)
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
    C_Finalize: finalize,
    C_GetInfo: plain1,
    C_GetSlotList: get_slot_list,
    C_GetSlotInfo: slot2,
    C_GetTokenInfo: get_token_info,
    C_GetMechanismList: slot3,
    C_GetMechanismInfo: slot3,
    C_InitToken: slot4,
    C_InitPIN: session3,
    C_SetPIN: session5,
    C_OpenSession: open_session,
    C_CloseSession: close_session,
    C_CloseAllSessions: close_all_sessions,
    C_GetSessionInfo: get_session_info,
    C_GetOperationState: session3,
    C_SetOperationState: session5,
    C_Login: login,
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
    C_Decrypt: decrypt,
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
