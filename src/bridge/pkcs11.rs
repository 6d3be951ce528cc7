//! A PKCS#11 module, called through its function list (PKCS#11 v2.40, section 5).
//!
//! One of the two files of the crate with `unsafe` in them; the other is
//! `scsi/sg/ioctl.rs`. The files below it, one for each group of functions,
//! call the module by the `call!` of this one. `cryptoki` cannot be given a
//! function list that is linked into our own program, calls the wrap functions
//! twice, and gives up on modules whose `C_GetInterface` says
//! `CKR_FUNCTION_NOT_SUPPORTED`; so the bridge calls `cryptoki-sys` itself.
//!
//! Nothing here retries or caches: every function is one call to the module and
//! comes back with its `CKR_` code, and with the class that the fault table
//! gives it.
#![expect(
    unsafe_code,
    reason = "PKCS#11 is a C interface; every block passes pointers to values that outlive the call"
)]

mod info;
mod keys;
mod mechanism;
mod objects;
mod session;
mod template;

use std::ffi::{CString, c_void};
use std::path::Path;
use std::ptr;
use std::sync::Arc;

use cryptoki_sys as ck;

use super::faults::{FaultClass, FaultRule, meaning};
use super::stats::Calls;

pub use cryptoki_sys::{
    CK_ATTRIBUTE_TYPE, CK_MECHANISM_TYPE, CK_OBJECT_HANDLE, CK_RV, CK_SESSION_HANDLE, CK_SLOT_ID,
};
pub use info::{MechanismInfo, ModuleInfo, TokenInfo, TokenLimits};
pub use keys::PairHandles;
pub use mechanism::Mechanism;
pub use session::{Office, Officer, User};
pub use template::Attr;

/// What a failed PKCS#11 call said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallError {
    /// The function, as the standard spells it: `C_UnwrapKey`.
    pub function: &'static str,
    /// The code; `super::faults::ckr_name` spells it.
    pub rv: CK_RV,
    /// What follows from it, by the fault table and the profile's own rules.
    pub class: FaultClass,
}

impl CallError {
    /// A failure, as the fault table and these rules judge it.
    #[must_use]
    pub fn new(function: &'static str, rv: CK_RV, rules: &[FaultRule]) -> Self {
        Self {
            function,
            rv,
            class: meaning(function, rv, rules).class,
        }
    }
}

/// Result of one PKCS#11 call.
pub type Call<T> = Result<T, CallError>;

/// Why a module could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The dynamic loader refused the file.
    #[error(
        "cannot load the PKCS#11 module {path}: {source}; is the vendor's client software installed, and is this the right file?"
    )]
    Library {
        /// The file.
        path: String,
        /// What the loader said.
        source: libloading::Error,
    },
    /// The file is no PKCS#11 module.
    #[error("{path} is not a PKCS#11 module: it does not export C_GetFunctionList")]
    NotAModule {
        /// The file.
        path: String,
    },
    /// `C_GetFunctionList` failed or gave no list.
    #[error("{path}: C_GetFunctionList answered {rv:#x} and no function list")]
    NoList {
        /// The file.
        path: String,
        /// The `CKR_` code.
        rv: CK_RV,
    },
    /// This build has no embedded token.
    #[error(
        "this ekm was built without the embedded token (feature embedded-token); choose another profile"
    )]
    NoEmbedded,
}

/// A loaded module. Its function list is valid for as long as it lives.
#[derive(Debug)]
pub struct Module {
    list: *mut ck::CK_FUNCTION_LIST,
    rules: Vec<FaultRule>,
    calls: Arc<Calls>,
    // Keeps the code behind `list` mapped.
    _library: Option<libloading::Library>,
}

// SAFETY: the list is a table of function pointers that the module never
// changes, and C_Initialize was told CKF_OS_LOCKING_OK.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

/// One call of the module, measured. Whatever a pointer among the arguments points to must be
/// of the length that is given with it, and live until the call returns.
macro_rules! call {
    ($module:expr, $name:ident ( $($arg:expr),* $(,)? )) => {{
        // SAFETY: `list` points to the module's table while the module is loaded.
        match unsafe { (*$module.list).$name } {
            None => Err($module.failed(stringify!($name), cryptoki_sys::CKR_FUNCTION_NOT_SUPPORTED)),
            Some(function) => {
                const PLACE: usize = $crate::bridge::stats::place(stringify!($name));
                const {
                    assert!(
                        $crate::bridge::stats::is_listed(PLACE),
                        "bridge/stats.rs does not list this function"
                    )
                };
                let begun = $module.calls.begin(PLACE);
                // SAFETY: every pointer argument is to a live value of the type and length given.
                let rv = unsafe { function($($arg),*) };
                begun.ended(rv == cryptoki_sys::CKR_OK);
                match rv {
                    cryptoki_sys::CKR_OK => Ok(()),
                    rv => Err($module.failed(stringify!($name), rv)),
                }
            }
        }
    }};
}
use call;

/// Largest wrapped key or attribute that is asked for in one call, bytes:
/// RSA-8192 would fit.
const BUFFER: usize = 1024;

impl Module {
    /// Loads a vendor's module from its file.
    ///
    /// # Errors
    /// The loader's refusal, or that the file is no PKCS#11 module.
    pub fn load(path: &Path) -> Result<Self, LoadError> {
        let shown = path.display().to_string();
        // SAFETY: loading runs the library's constructors; the operator named this file as the module to trust.
        let library =
            unsafe { libloading::Library::new(path) }.map_err(|source| LoadError::Library {
                path: shown.clone(),
                source,
            })?;
        let mut list = ptr::null_mut();
        // SAFETY: the symbol has this type in every PKCS#11 module (PKCS#11 v2.40, 5.4).
        let rv = unsafe {
            library
                .get::<unsafe extern "C" fn(*mut *mut ck::CK_FUNCTION_LIST) -> CK_RV>(
                    b"C_GetFunctionList\0",
                )
                .map_err(|_| LoadError::NotAModule {
                    path: shown.clone(),
                })?(&raw mut list)
        };
        if rv != ck::CKR_OK || list.is_null() {
            return Err(LoadError::NoList { path: shown, rv });
        }
        Ok(Self {
            list,
            rules: Vec::new(),
            calls: Arc::default(),
            _library: Some(library),
        })
    }

    /// The token that is linked into this program. Its list is called
    /// directly, so that no vendor library can bind to exported `C_` symbols.
    ///
    /// # Errors
    /// `NoEmbedded` where the feature is off.
    #[cfg(feature = "embedded-token")]
    pub fn embedded() -> Result<Self, LoadError> {
        let mut list = ptr::null_mut();
        let rv = kryoptic_lib::fns::general::fn_get_function_list(&raw mut list);
        if rv != ck::CKR_OK || list.is_null() {
            return Err(LoadError::NoList {
                path: "embedded".to_owned(),
                rv,
            });
        }
        Ok(Self {
            list: list.cast(),
            rules: Vec::new(),
            calls: Arc::default(),
            _library: None,
        })
    }

    /// The token that would be linked into this program.
    ///
    /// # Errors
    /// Always: this build has none.
    #[cfg(not(feature = "embedded-token"))]
    pub fn embedded() -> Result<Self, LoadError> {
        Err(LoadError::NoEmbedded)
    }

    /// The same module, its failures judged by a profile's rules first.
    #[must_use]
    pub fn ruled(self, rules: Vec<FaultRule>) -> Self {
        Self { rules, ..self }
    }

    /// The same module, its calls counted there: what it did outlives it.
    #[must_use]
    pub(super) fn counted(self, calls: Arc<Calls>) -> Self {
        Self { calls, ..self }
    }

    /// A failure in the words of a call.
    pub(super) fn failed(&self, function: &'static str, rv: CK_RV) -> CallError {
        CallError::new(function, rv, &self.rules)
    }

    /// `C_Initialize` with `CKF_OS_LOCKING_OK`; `reserved` goes to `pReserved`.
    ///
    /// # Errors
    /// The module's code.
    pub fn initialize(&self, reserved: Option<&str>) -> Call<()> {
        let reserved = reserved.and_then(|text| CString::new(text).ok());
        let mut args = InitializeArgs {
            standard: ck::CK_C_INITIALIZE_ARGS {
                CreateMutex: None,
                DestroyMutex: None,
                LockMutex: None,
                UnlockMutex: None,
                flags: ck::CKF_OS_LOCKING_OK,
                pReserved: reserved
                    .as_ref()
                    .map_or(ptr::null_mut(), |text| text.as_ptr().cast_mut().cast()),
            },
            _beyond: ptr::null_mut(),
        };
        call!(self, C_Initialize((&raw mut args).cast()))
    }

    /// `C_Finalize`. Only with no call in flight: anything else is undefined.
    ///
    /// # Errors
    /// The module's code.
    pub fn finalize(&self) -> Call<()> {
        call!(self, C_Finalize(ptr::null_mut()))
    }
}

/// `CK_C_INITIALIZE_ARGS` with a pointer more. NSS calls `pReserved`
/// `LibraryParameters`, and has a `pReserved` of its own behind it; what
/// happens to lie there must be null, or it answers `CKR_ARGUMENTS_BAD`.
#[repr(C)]
struct InitializeArgs {
    standard: ck::CK_C_INITIALIZE_ARGS,
    _beyond: *mut c_void,
}

/// A length as PKCS#11 counts it. Lengths here are far below either type's limit.
fn ulong(value: usize) -> ck::CK_ULONG {
    ck::CK_ULONG::try_from(value).unwrap_or(ck::CK_ULONG::MAX)
}

fn length(value: ck::CK_ULONG) -> usize {
    usize::try_from(value).unwrap_or(0)
}
