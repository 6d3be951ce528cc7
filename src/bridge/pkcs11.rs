//! A PKCS#11 module, called through its function list (PKCS#11 v2.40, section 5).
//!
//! One of the two files of the crate with `unsafe` in them; the other is
//! `scsi/sg/ioctl.rs`. `cryptoki` cannot be given a function list that is
//! linked into our own program, calls the wrap functions twice, and gives up on
//! modules whose `C_GetInterface` says `CKR_FUNCTION_NOT_SUPPORTED`; so the
//! bridge calls `cryptoki-sys` itself.
//!
//! Nothing here retries or caches: every function is one call to the module and
//! comes back with its `CKR_` code, and with the class that the fault table
//! gives it.
#![expect(
    unsafe_code,
    reason = "PKCS#11 is a C interface; every block passes pointers to values that outlive the call"
)]

use std::ffi::{CString, c_void};
use std::path::Path;
use std::ptr;
use std::time::Instant;

use cryptoki_sys as ck;
use secrecy::{ExposeSecret, SecretSlice, SecretString};
use zeroize::Zeroizing;

use super::faults::{FaultClass, FaultRule, meaning};
use super::stats::{Calls, Stats, is_listed, place};

pub use cryptoki_sys::{
    CK_ATTRIBUTE_TYPE, CK_MECHANISM_TYPE, CK_OBJECT_HANDLE, CK_RV, CK_SESSION_HANDLE, CK_SLOT_ID,
};

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

/// One attribute of a template, owned.
#[derive(Clone, Debug)]
pub struct Attr {
    kind: CK_ATTRIBUTE_TYPE,
    value: Value,
}

#[derive(Clone)]
enum Value {
    Bytes(Vec<u8>),
    Secret(Zeroizing<Vec<u8>>),
    Nested(Vec<Attr>),
}

impl std::fmt::Debug for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Bytes(bytes) => bytes.fmt(f),
            Self::Secret(_) => f.write_str("[redacted]"),
            Self::Nested(template) => template.fmt(f),
        }
    }
}

impl Attr {
    /// A `CK_BBOOL` attribute.
    #[must_use]
    pub fn flag(kind: CK_ATTRIBUTE_TYPE, on: bool) -> Self {
        Self {
            kind,
            value: Value::Bytes(vec![u8::from(on)]),
        }
    }

    /// A `CK_ULONG` attribute, in the machine's byte order.
    #[must_use]
    pub fn ulong(kind: CK_ATTRIBUTE_TYPE, value: ck::CK_ULONG) -> Self {
        Self {
            kind,
            value: Value::Bytes(value.to_ne_bytes().to_vec()),
        }
    }

    /// Whether it is the attribute of that type.
    #[must_use]
    pub const fn is(&self, kind: CK_ATTRIBUTE_TYPE) -> bool {
        self.kind == kind
    }

    /// A byte-string attribute.
    #[must_use]
    pub fn bytes(kind: CK_ATTRIBUTE_TYPE, value: impl Into<Vec<u8>>) -> Self {
        Self {
            kind,
            value: Value::Bytes(value.into()),
        }
    }

    /// A number of a private key, wiped afterwards and never shown.
    pub(super) fn secret(kind: CK_ATTRIBUTE_TYPE, value: &[u8]) -> Self {
        Self {
            kind,
            value: Value::Secret(Zeroizing::new(value.to_vec())),
        }
    }

    /// An attribute whose value is a template: `CKA_UNWRAP_TEMPLATE`.
    #[must_use]
    pub fn template(kind: CK_ATTRIBUTE_TYPE, value: Vec<Self>) -> Self {
        Self {
            kind,
            value: Value::Nested(value),
        }
    }
}

/// Attributes as the module reads them. The raw structures point into the
/// `Attr`s and into `nested`, so both are borrowed for as long as it lives.
struct RawTemplate<'a> {
    attributes: Vec<ck::CK_ATTRIBUTE>,
    _nested: Vec<Self>,
    _source: &'a [Attr],
}

impl<'a> RawTemplate<'a> {
    fn new(source: &'a [Attr]) -> Self {
        let mut nested = Vec::new();
        let attributes = source
            .iter()
            .map(|attr| {
                let (pointer, length): (*mut c_void, usize) = match &attr.value {
                    Value::Bytes(bytes) if bytes.is_empty() => (ptr::null_mut(), 0),
                    Value::Bytes(bytes) => (bytes.as_ptr().cast_mut().cast(), bytes.len()),
                    Value::Secret(bytes) => (bytes.as_ptr().cast_mut().cast(), bytes.len()),
                    Value::Nested(inner) => {
                        let mut raw = RawTemplate::new(inner);
                        let pointer = raw.attributes.as_mut_ptr().cast();
                        let length = raw.attributes.len() * size_of::<ck::CK_ATTRIBUTE>();
                        nested.push(raw);
                        (pointer, length)
                    }
                };
                ck::CK_ATTRIBUTE {
                    type_: attr.kind,
                    pValue: pointer,
                    ulValueLen: ulong(length),
                }
            })
            .collect();
        Self {
            attributes,
            _nested: nested,
            _source: source,
        }
    }

    fn parts(&mut self) -> (*mut ck::CK_ATTRIBUTE, ck::CK_ULONG) {
        (self.attributes.as_mut_ptr(), ulong(self.attributes.len()))
    }
}

/// A mechanism with the parameters that this crate uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// A mechanism without parameters.
    Plain(CK_MECHANISM_TYPE),
    /// `CKM_RSA_PKCS_OAEP` with `CK_RSA_PKCS_OAEP_PARAMS` (PKCS#11 v2.40, 2.1.7).
    Oaep {
        /// `CKM_SHA_1`, `CKM_SHA256` …
        hash: CK_MECHANISM_TYPE,
        /// `CKG_MGF1_SHA1` …
        mgf: ck::CK_RSA_PKCS_MGF_TYPE,
        /// `pSourceData`; empty for none.
        label: Vec<u8>,
    },
    /// A mechanism whose parameter is an initialisation vector: `CKM_AES_CBC_PAD`.
    Iv {
        /// The mechanism.
        mechanism: CK_MECHANISM_TYPE,
        /// The vector.
        iv: [u8; 16],
    },
}

impl Mechanism {
    /// Calls `body` with the raw structure, whose parameter lives that long.
    fn with<T>(&self, body: impl FnOnce(*mut ck::CK_MECHANISM) -> T) -> T {
        match self {
            Self::Plain(mechanism) => {
                let mut raw = ck::CK_MECHANISM {
                    mechanism: *mechanism,
                    pParameter: ptr::null_mut(),
                    ulParameterLen: 0,
                };
                body(&raw mut raw)
            }
            Self::Oaep { hash, mgf, label } => {
                let mut params = ck::CK_RSA_PKCS_OAEP_PARAMS {
                    hashAlg: *hash,
                    mgf: *mgf,
                    source: ck::CKZ_DATA_SPECIFIED,
                    pSourceData: if label.is_empty() {
                        ptr::null_mut()
                    } else {
                        label.as_ptr().cast_mut().cast()
                    },
                    ulSourceDataLen: ulong(label.len()),
                };
                let mut raw = ck::CK_MECHANISM {
                    mechanism: ck::CKM_RSA_PKCS_OAEP,
                    pParameter: (&raw mut params).cast(),
                    ulParameterLen: ulong(size_of::<ck::CK_RSA_PKCS_OAEP_PARAMS>()),
                };
                body(&raw mut raw)
            }
            Self::Iv { mechanism, iv } => {
                let mut raw = ck::CK_MECHANISM {
                    mechanism: *mechanism,
                    pParameter: iv.as_ptr().cast_mut().cast(),
                    ulParameterLen: ulong(iv.len()),
                };
                body(&raw mut raw)
            }
        }
    }
}

/// What `C_GetTokenInfo` says, in the parts that matter here.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct TokenInfo {
    /// Token label, blank padding removed.
    pub label: String,
    /// Serial number, blank padding removed.
    pub serial: String,
    /// Manufacturer, blank padding removed.
    pub manufacturer: String,
    /// Model, blank padding removed.
    pub model: String,
    /// `CKF_` flags of the token.
    pub flags: u64,
    /// `ulMaxRwSessionCount`; 0 stands for "effectively infinite" or "not told".
    pub max_rw_sessions: u64,
    /// Shortest PIN, in bytes.
    pub min_pin: u64,
    /// Longest PIN, in bytes.
    pub max_pin: u64,
}

impl TokenInfo {
    /// Whether the token has been initialised (`CKF_TOKEN_INITIALIZED`).
    #[must_use]
    pub const fn initialized(&self) -> bool {
        self.flags & ck::CKF_TOKEN_INITIALIZED != 0
    }

    /// Whether the next wrong user PIN locks it (`CKF_USER_PIN_FINAL_TRY`).
    #[must_use]
    pub const fn user_pin_final_try(&self) -> bool {
        self.flags & ck::CKF_USER_PIN_FINAL_TRY != 0
    }

    /// Whether the user PIN is locked (`CKF_USER_PIN_LOCKED`).
    #[must_use]
    pub const fn user_pin_locked(&self) -> bool {
        self.flags & ck::CKF_USER_PIN_LOCKED != 0
    }

    /// What the flags say of the user PIN, in words.
    #[must_use]
    pub const fn pin_words(&self) -> &'static str {
        if self.user_pin_locked() {
            "locked"
        } else if self.user_pin_final_try() {
            "the next wrong one locks it"
        } else if self.user_pin_count_low() {
            "a wrong one was given since the last login"
        } else {
            "good"
        }
    }

    /// The worst flag that says that wrong user PINs were given.
    #[must_use]
    pub const fn wrong_pins(&self) -> Option<&'static str> {
        if self.user_pin_locked() {
            Some("CKF_USER_PIN_LOCKED")
        } else if self.user_pin_final_try() {
            Some("CKF_USER_PIN_FINAL_TRY")
        } else if self.user_pin_count_low() {
            Some("CKF_USER_PIN_COUNT_LOW")
        } else {
            None
        }
    }

    /// Whether the security officer's PIN is locked (`CKF_SO_PIN_LOCKED`).
    #[must_use]
    pub const fn so_pin_locked(&self) -> bool {
        self.flags & ck::CKF_SO_PIN_LOCKED != 0
    }

    /// Whether his next wrong PIN locks it (`CKF_SO_PIN_FINAL_TRY`).
    #[must_use]
    pub const fn so_pin_final_try(&self) -> bool {
        self.flags & ck::CKF_SO_PIN_FINAL_TRY != 0
    }

    /// Whether it asks for the PIN on a pad of its own (`CKF_PROTECTED_AUTHENTICATION_PATH`).
    #[must_use]
    pub const fn protected_authentication_path(&self) -> bool {
        self.flags & ck::CKF_PROTECTED_AUTHENTICATION_PATH != 0
    }

    /// Whether a wrong PIN was given since the last login (`CKF_USER_PIN_COUNT_LOW`).
    #[must_use]
    pub const fn user_pin_count_low(&self) -> bool {
        self.flags & ck::CKF_USER_PIN_COUNT_LOW != 0
    }
}

/// What `C_GetInfo` says.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ModuleInfo {
    /// Version of the PKCS#11 interface: major and minor.
    pub cryptoki: (u8, u8),
    /// Manufacturer, blank padding removed.
    pub manufacturer: String,
    /// Description, blank padding removed.
    pub description: String,
    /// Version of the library: major and minor.
    pub version: (u8, u8),
}

/// What `C_GetTokenInfo` says of the token besides what names it; `None`
/// stands for `CK_UNAVAILABLE_INFORMATION`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct TokenLimits {
    /// `ulMaxSessionCount`; 0 is "effectively infinite".
    pub max_sessions: Option<u64>,
    /// `ulSessionCount`, sessions of this application.
    pub sessions: Option<u64>,
    /// `ulMaxRwSessionCount`; 0 is "effectively infinite".
    pub max_rw_sessions: Option<u64>,
    /// `ulTotalPrivateMemory`, bytes.
    pub total_private_memory: Option<u64>,
    /// `ulFreePrivateMemory`, bytes.
    pub free_private_memory: Option<u64>,
    /// Hardware version: major and minor.
    pub hardware: (u8, u8),
    /// Firmware version: major and minor.
    pub firmware: (u8, u8),
    /// `utcTime`, `YYYYMMDDhhmmssxx`; only where `CKF_CLOCK_ON_TOKEN`.
    pub utc_time: Option<String>,
}

/// What `C_GetMechanismInfo` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct MechanismInfo {
    /// Smallest key, bits or bytes as the mechanism counts.
    pub min_key: u64,
    /// Largest key, likewise.
    pub max_key: u64,
    /// `CKF_` flags of the mechanism.
    pub flags: u64,
}

/// A public RSA key pair's two new handles, public first.
#[derive(Clone, Copy, Debug)]
pub struct PairHandles {
    /// The public half.
    pub public: CK_OBJECT_HANDLE,
    /// The private half.
    pub private: CK_OBJECT_HANDLE,
}

/// Who logs in to be served. The security officer is not among them
/// ([`Officer`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum User {
    /// `CKU_USER`
    User,
    /// A vendor's own, from 0x80000000 on
    Vendor(u32),
}

/// `CK_C_INITIALIZE_ARGS` with a pointer more. NSS calls `pReserved`
/// `LibraryParameters`, and has a `pReserved` of its own behind it; what
/// happens to lie there must be null, or it answers `CKR_ARGUMENTS_BAD`.
#[repr(C)]
struct InitializeArgs {
    standard: ck::CK_C_INITIALIZE_ARGS,
    _beyond: *mut c_void,
}

/// Leave to log in as security officer (`CKU_SO`), once. It comes from
/// [`Module::init_token`], and [`Office`] has one of its own: a process that
/// serves a token does neither, and so cannot have it.
///
/// ```compile_fail
/// use ekm::bridge::pkcs11::{Module, Officer};
/// # fn serving(module: &Module, pin: &secrecy::SecretString) {
/// module.login_as_officer(1, pin, Officer(()));
/// # }
/// ```
#[derive(Debug)]
pub struct Officer(());

/// A module that is the security officer's alone: it has been given away, so
/// no token can be served with it, and a process loads its module once.
///
/// ```compile_fail,E0382
/// use ekm::bridge::pkcs11::{Module, Office, User};
/// # fn officer(module: Module, pin: &secrecy::SecretString) {
/// let office = Office::of(module);
/// module.login(1, User::User, Some(pin));
/// # }
/// ```
#[derive(Debug)]
pub struct Office(Module);

impl Office {
    /// Gives the module to the officer.
    #[must_use]
    pub const fn of(module: Module) -> Self {
        Self(module)
    }

    /// Everything that needs no other login than his.
    #[must_use]
    pub const fn module(&self) -> &Module {
        &self.0
    }

    /// `C_Login` as `CKU_SO`. The caller guards the PIN counter.
    ///
    /// # Errors
    /// The module's code.
    pub fn login(&self, session: CK_SESSION_HANDLE, pin: &SecretString) -> Call<()> {
        self.0.login_as_officer(session, pin, Officer(()))
    }
}

/// A loaded module. Its function list is valid for as long as it lives.
#[derive(Debug)]
pub struct Module {
    list: *mut ck::CK_FUNCTION_LIST,
    rules: Vec<FaultRule>,
    calls: Calls,
    // Keeps the code behind `list` mapped.
    _library: Option<libloading::Library>,
}

// SAFETY: the list is a table of function pointers that the module never
// changes, and C_Initialize was told CKF_OS_LOCKING_OK.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

macro_rules! call {
    ($module:expr, $name:ident ( $($arg:expr),* $(,)? )) => {{
        // SAFETY: `list` points to the module's table while the module is loaded.
        match unsafe { (*$module.list).$name } {
            None => Err($module.failed(stringify!($name), ck::CKR_FUNCTION_NOT_SUPPORTED)),
            Some(function) => {
                const PLACE: usize = place(stringify!($name));
                const { assert!(is_listed(PLACE), "bridge/stats.rs does not list this function") };
                let begun = Instant::now();
                // SAFETY: every pointer argument is to a live value of the type and length given.
                let rv = unsafe { function($($arg),*) };
                $module.calls.observe(PLACE, begun.elapsed(), rv == ck::CKR_OK);
                match rv {
                    ck::CKR_OK => Ok(()),
                    rv => Err($module.failed(stringify!($name), rv)),
                }
            }
        }
    }};
}

/// Largest wrapped key or attribute that is asked for in one call, bytes:
/// RSA-8192 would fit.
const BUFFER: usize = 1024;

/// Most attributes that a nested template is read with: more than the standard has flags for a key.
const NESTED: usize = 64;

impl Module {
    /// What was measured so far, with as many workers at work.
    pub(super) fn stats(&self, busy: usize) -> Stats {
        self.calls.read(busy)
    }

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
            calls: Calls::default(),
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
            calls: Calls::default(),
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

    /// The slots, all of them or those with a token.
    ///
    /// # Errors
    /// The module's code.
    pub fn slots(&self, with_token: bool) -> Call<Vec<CK_SLOT_ID>> {
        let present = u8::from(with_token);
        let mut count = 0;
        call!(
            self,
            C_GetSlotList(present, ptr::null_mut(), &raw mut count)
        )?;
        // A slot may appear between the two calls.
        let mut slots = vec![0; length(count).saturating_add(8)];
        count = ulong(slots.len());
        call!(
            self,
            C_GetSlotList(present, slots.as_mut_ptr(), &raw mut count)
        )?;
        slots.truncate(length(count));
        Ok(slots)
    }

    /// `C_GetTokenInfo`.
    ///
    /// # Errors
    /// The module's code; `CKR_TOKEN_NOT_PRESENT` for an empty slot.
    pub fn token_info(&self, slot: CK_SLOT_ID) -> Call<TokenInfo> {
        let mut info = ck::CK_TOKEN_INFO::default();
        call!(self, C_GetTokenInfo(slot, &raw mut info))?;
        Ok(TokenInfo {
            label: padded(&info.label),
            serial: padded(&info.serialNumber),
            manufacturer: padded(&info.manufacturerID),
            model: padded(&info.model),
            flags: info.flags,
            max_rw_sessions: if info.ulMaxRwSessionCount == ck::CK_UNAVAILABLE_INFORMATION {
                0
            } else {
                info.ulMaxRwSessionCount
            },
            min_pin: info.ulMinPinLen,
            max_pin: info.ulMaxPinLen,
        })
    }

    /// `C_GetInfo`.
    ///
    /// # Errors
    /// The module's code.
    pub fn info(&self) -> Call<ModuleInfo> {
        let mut info = ck::CK_INFO::default();
        call!(self, C_GetInfo(&raw mut info))?;
        Ok(ModuleInfo {
            cryptoki: version(info.cryptokiVersion),
            manufacturer: padded(&info.manufacturerID),
            description: padded(&info.libraryDescription),
            version: version(info.libraryVersion),
        })
    }

    /// The rest of `C_GetTokenInfo`.
    ///
    /// # Errors
    /// The module's code; `CKR_TOKEN_NOT_PRESENT` for an empty slot.
    pub fn token_limits(&self, slot: CK_SLOT_ID) -> Call<TokenLimits> {
        let mut info = ck::CK_TOKEN_INFO::default();
        call!(self, C_GetTokenInfo(slot, &raw mut info))?;
        let told = |value| (value != ck::CK_UNAVAILABLE_INFORMATION).then_some(value);
        Ok(TokenLimits {
            max_sessions: told(info.ulMaxSessionCount),
            sessions: told(info.ulSessionCount),
            max_rw_sessions: told(info.ulMaxRwSessionCount),
            total_private_memory: told(info.ulTotalPrivateMemory),
            free_private_memory: told(info.ulFreePrivateMemory),
            hardware: version(info.hardwareVersion),
            firmware: version(info.firmwareVersion),
            utc_time: (info.flags & ck::CKF_CLOCK_ON_TOKEN != 0).then(|| padded(&info.utcTime)),
        })
    }

    /// `C_GetMechanismInfo`.
    ///
    /// # Errors
    /// The module's code; `CKR_MECHANISM_INVALID` where the token lacks it.
    pub fn mechanism_info(
        &self,
        slot: CK_SLOT_ID,
        mechanism: CK_MECHANISM_TYPE,
    ) -> Call<MechanismInfo> {
        let mut info = ck::CK_MECHANISM_INFO::default();
        call!(self, C_GetMechanismInfo(slot, mechanism, &raw mut info))?;
        Ok(MechanismInfo {
            min_key: info.ulMinKeySize,
            max_key: info.ulMaxKeySize,
            flags: info.flags,
        })
    }

    /// The mechanisms of a slot's token.
    ///
    /// # Errors
    /// The module's code.
    pub fn mechanisms(&self, slot: CK_SLOT_ID) -> Call<Vec<CK_MECHANISM_TYPE>> {
        let mut count = 0;
        call!(
            self,
            C_GetMechanismList(slot, ptr::null_mut(), &raw mut count)
        )?;
        let mut list = vec![0; length(count)];
        call!(
            self,
            C_GetMechanismList(slot, list.as_mut_ptr(), &raw mut count)
        )?;
        list.truncate(length(count));
        Ok(list)
    }

    /// `C_InitToken`: erases the token in the slot and names it. Whoever has
    /// done that may log in to it as its security officer.
    ///
    /// # Errors
    /// The module's code.
    pub fn init_token(
        &self,
        slot: CK_SLOT_ID,
        so_pin: &SecretString,
        label: &str,
    ) -> Call<Officer> {
        let mut name = [b' '; 32];
        for (to, from) in name.iter_mut().zip(label.bytes()) {
            *to = from;
        }
        let (pin, pin_len) = pin_parts(so_pin);
        call!(self, C_InitToken(slot, pin, pin_len, name.as_mut_ptr())).map(|()| Officer(()))
    }

    /// `C_InitPIN`, in a session of the SO.
    ///
    /// # Errors
    /// The module's code.
    pub fn init_pin(&self, session: CK_SESSION_HANDLE, pin: &SecretString) -> Call<()> {
        let (pin, pin_len) = pin_parts(pin);
        call!(self, C_InitPIN(session, pin, pin_len))
    }

    /// A read-write session.
    ///
    /// # Errors
    /// The module's code.
    pub fn open_session(&self, slot: CK_SLOT_ID) -> Call<CK_SESSION_HANDLE> {
        let mut session = 0;
        call!(
            self,
            C_OpenSession(
                slot,
                ck::CKF_SERIAL_SESSION | ck::CKF_RW_SESSION,
                ptr::null_mut(),
                None,
                &raw mut session,
            )
        )?;
        Ok(session)
    }

    /// `C_CloseSession`.
    ///
    /// # Errors
    /// The module's code.
    pub fn close_session(&self, session: CK_SESSION_HANDLE) -> Call<()> {
        call!(self, C_CloseSession(session))
    }

    /// The state of a session (`CKS_`), which tells whether the user is logged in.
    ///
    /// # Errors
    /// The module's code.
    pub fn session_state(&self, session: CK_SESSION_HANDLE) -> Call<ck::CK_STATE> {
        let mut info = ck::CK_SESSION_INFO::default();
        call!(self, C_GetSessionInfo(session, &raw mut info))?;
        Ok(info.state)
    }

    /// `C_Login` as `CKU_USER`; without a PIN the token asks for it on its own
    /// pad. The caller guards the PIN counter.
    ///
    /// # Errors
    /// The module's code.
    pub fn login(
        &self,
        session: CK_SESSION_HANDLE,
        user: User,
        pin: Option<&SecretString>,
    ) -> Call<()> {
        let user = match user {
            User::User => ck::CKU_USER,
            // With the vendor's bit it is no type of the standard, whatever the profile says.
            User::Vendor(number) => ck::CK_USER_TYPE::from(number | 0x8000_0000),
        };
        let (pin, pin_len) = pin.map_or((ptr::null_mut(), 0), pin_parts);
        call!(self, C_Login(session, user, pin, pin_len))
    }

    /// `C_Login` as `CKU_SO`: on the token that was initialised just now, or
    /// by an [`Office`].
    ///
    /// # Errors
    /// The module's code.
    pub fn login_as_officer(
        &self,
        session: CK_SESSION_HANDLE,
        pin: &SecretString,
        Officer(()): Officer,
    ) -> Call<()> {
        let (pin, pin_len) = pin_parts(pin);
        call!(self, C_Login(session, ck::CKU_SO, pin, pin_len))
    }

    /// `C_Logout`.
    ///
    /// # Errors
    /// The module's code.
    pub fn logout(&self, session: CK_SESSION_HANDLE) -> Call<()> {
        call!(self, C_Logout(session))
    }

    /// All objects that match the template.
    ///
    /// # Errors
    /// The module's code.
    pub fn find(
        &self,
        session: CK_SESSION_HANDLE,
        template: &[Attr],
    ) -> Call<Vec<CK_OBJECT_HANDLE>> {
        let mut raw = RawTemplate::new(template);
        let (pointer, count) = raw.parts();
        call!(self, C_FindObjectsInit(session, pointer, count))?;
        let mut found = Vec::new();
        let outcome = loop {
            let mut batch = [0; 64];
            let mut got = 0;
            if let Err(error) = call!(
                self,
                C_FindObjects(session, batch.as_mut_ptr(), 64, &raw mut got)
            ) {
                break Err(error);
            }
            found.extend(batch.iter().take(length(got)));
            if got == 0 {
                break Ok(());
            }
        };
        // The search must end on the session even when it failed.
        let end = call!(self, C_FindObjectsFinal(session));
        outcome.and(end)?;
        Ok(found)
    }

    /// One attribute of an object; `None` where the token does not have it or will not say.
    ///
    /// # Errors
    /// The module's code, other than "no such attribute", "sensitive" and "too long for the buffer".
    pub fn attribute(
        &self,
        session: CK_SESSION_HANDLE,
        object: CK_OBJECT_HANDLE,
        kind: CK_ATTRIBUTE_TYPE,
    ) -> Call<Option<Zeroizing<Vec<u8>>>> {
        let mut value = Zeroizing::new(vec![0_u8; BUFFER * 4]);
        let mut raw = ck::CK_ATTRIBUTE {
            type_: kind,
            pValue: value.as_mut_ptr().cast(),
            ulValueLen: ulong(value.len()),
        };
        match call!(self, C_GetAttributeValue(session, object, &raw mut raw, 1)) {
            Ok(()) if raw.ulValueLen == ck::CK_UNAVAILABLE_INFORMATION => Ok(None),
            Ok(()) => {
                value.truncate(length(raw.ulValueLen));
                Ok(Some(value))
            }
            Err(CallError {
                rv:
                    ck::CKR_ATTRIBUTE_TYPE_INVALID
                    | ck::CKR_ATTRIBUTE_SENSITIVE
                    | ck::CKR_BUFFER_TOO_SMALL,
                ..
            }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A `CK_BBOOL` attribute.
    ///
    /// # Errors
    /// As [`Self::attribute`].
    pub fn flag(
        &self,
        session: CK_SESSION_HANDLE,
        object: CK_OBJECT_HANDLE,
        kind: CK_ATTRIBUTE_TYPE,
    ) -> Call<Option<bool>> {
        Ok(self
            .attribute(session, object, kind)?
            .and_then(|value| value.first().map(|byte| *byte != 0)))
    }

    /// The `CK_BBOOL` attributes in a template that is an attribute itself,
    /// `CKA_UNWRAP_TEMPLATE`; empty where there is no template, `None` where
    /// the token does not say.
    ///
    /// # Errors
    /// The module's code, but for a refusal to tell.
    pub fn nested_flags(
        &self,
        session: CK_SESSION_HANDLE,
        object: CK_OBJECT_HANDLE,
        kind: CK_ATTRIBUTE_TYPE,
    ) -> Call<Option<Vec<(CK_ATTRIBUTE_TYPE, bool)>>> {
        // How many, how long each, and what: one call each (PKCS#11 v2.40, C_GetAttributeValue).
        let mut outer = ck::CK_ATTRIBUTE {
            type_: kind,
            pValue: ptr::null_mut(),
            ulValueLen: 0,
        };
        let ask = |outer: &mut ck::CK_ATTRIBUTE| match call!(
            self,
            C_GetAttributeValue(session, object, ptr::from_mut(outer), 1)
        ) {
            Ok(()) => Ok(outer.ulValueLen != ck::CK_UNAVAILABLE_INFORMATION),
            Err(CallError {
                rv: ck::CKR_ATTRIBUTE_SENSITIVE | ck::CKR_BUFFER_TOO_SMALL,
                ..
            }) => Ok(false),
            Err(error) if matches!(error.class, FaultClass::Request | FaultClass::Ambiguous) => {
                Ok(false)
            }
            Err(error) => Err(error),
        };
        match ask(&mut outer) {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            // The object has no such attribute, which is no template.
            Err(CallError {
                rv: ck::CKR_ATTRIBUTE_TYPE_INVALID,
                ..
            }) => return Ok(Some(Vec::new())),
            Err(error) => return Err(error),
        }
        let count = length(outer.ulValueLen) / size_of::<ck::CK_ATTRIBUTE>();
        if count == 0 {
            return Ok(Some(Vec::new()));
        }
        if count > NESTED {
            return Ok(None);
        }
        // "Which are there?" (PKCS#11 v3.1, C_GetAttributeValue); older modules write over it in any case.
        let empty = ck::CK_ATTRIBUTE {
            type_: ck::CK_UNAVAILABLE_INFORMATION,
            pValue: ptr::null_mut(),
            ulValueLen: 0,
        };
        let mut inner = vec![empty; count];
        outer.pValue = inner.as_mut_ptr().cast();
        if !ask(&mut outer)? || inner.iter().any(|attr| length(attr.ulValueLen) > BUFFER) {
            return Ok(None);
        }
        let mut values: Vec<Vec<u8>> = inner
            .iter()
            .map(|attr| vec![0; length(attr.ulValueLen)])
            .collect();
        for (attr, value) in inner.iter_mut().zip(&mut values) {
            attr.pValue = value.as_mut_ptr().cast();
        }
        if !ask(&mut outer)? {
            return Ok(None);
        }
        let flags = inner.iter().zip(&values).filter_map(|(attr, value)| {
            let [byte] = value.as_slice() else {
                return None;
            };
            Some((attr.type_, *byte != 0))
        });
        Ok(Some(flags.collect()))
    }

    /// `C_SetAttributeValue`.
    ///
    /// # Errors
    /// The module's code.
    pub fn set_attributes(
        &self,
        session: CK_SESSION_HANDLE,
        object: CK_OBJECT_HANDLE,
        template: &[Attr],
    ) -> Call<()> {
        let mut raw = RawTemplate::new(template);
        let (pointer, count) = raw.parts();
        call!(self, C_SetAttributeValue(session, object, pointer, count))
    }

    /// `C_CreateObject`.
    ///
    /// # Errors
    /// The module's code.
    pub fn create_object(
        &self,
        session: CK_SESSION_HANDLE,
        template: &[Attr],
    ) -> Call<CK_OBJECT_HANDLE> {
        let mut raw = RawTemplate::new(template);
        let (pointer, count) = raw.parts();
        let mut object = 0;
        call!(
            self,
            C_CreateObject(session, pointer, count, &raw mut object)
        )?;
        Ok(object)
    }

    /// `C_CopyObject`: a copy with other attributes.
    ///
    /// # Errors
    /// The module's code.
    pub fn copy_object(
        &self,
        session: CK_SESSION_HANDLE,
        object: CK_OBJECT_HANDLE,
        template: &[Attr],
    ) -> Call<CK_OBJECT_HANDLE> {
        let mut raw = RawTemplate::new(template);
        let (pointer, count) = raw.parts();
        let mut copy = 0;
        call!(
            self,
            C_CopyObject(session, object, pointer, count, &raw mut copy)
        )?;
        Ok(copy)
    }

    /// `C_DestroyObject`.
    ///
    /// # Errors
    /// The module's code.
    pub fn destroy(&self, session: CK_SESSION_HANDLE, object: CK_OBJECT_HANDLE) -> Call<()> {
        call!(self, C_DestroyObject(session, object))
    }

    /// `C_GenerateKey`.
    ///
    /// # Errors
    /// The module's code.
    pub fn generate_key(
        &self,
        session: CK_SESSION_HANDLE,
        mechanism: &Mechanism,
        template: &[Attr],
    ) -> Call<CK_OBJECT_HANDLE> {
        let mut raw = RawTemplate::new(template);
        let (pointer, count) = raw.parts();
        let mut object = 0;
        mechanism.with(|mechanism| {
            call!(
                self,
                C_GenerateKey(session, mechanism, pointer, count, &raw mut object)
            )
        })?;
        Ok(object)
    }

    /// `C_GenerateKeyPair`.
    ///
    /// # Errors
    /// The module's code.
    pub fn generate_pair(
        &self,
        session: CK_SESSION_HANDLE,
        mechanism: &Mechanism,
        public: &[Attr],
        private: &[Attr],
    ) -> Call<PairHandles> {
        let mut raw_public = RawTemplate::new(public);
        let (public_pointer, public_count) = raw_public.parts();
        let mut raw_private = RawTemplate::new(private);
        let (private_pointer, private_count) = raw_private.parts();
        let mut handles = PairHandles {
            public: 0,
            private: 0,
        };
        mechanism.with(|mechanism| {
            call!(
                self,
                C_GenerateKeyPair(
                    session,
                    mechanism,
                    public_pointer,
                    public_count,
                    private_pointer,
                    private_count,
                    &raw mut handles.public,
                    &raw mut handles.private,
                )
            )
        })?;
        Ok(handles)
    }

    /// `C_WrapKey` in one call, without the size query that makes most
    /// modules wrap twice.
    ///
    /// # Errors
    /// The module's code; `CKR_BUFFER_TOO_SMALL` past 1,024 bytes.
    pub fn wrap(
        &self,
        session: CK_SESSION_HANDLE,
        mechanism: &Mechanism,
        wrapping: CK_OBJECT_HANDLE,
        key: CK_OBJECT_HANDLE,
    ) -> Call<Vec<u8>> {
        let mut wrapped = vec![0_u8; BUFFER];
        let mut size = ulong(BUFFER);
        mechanism.with(|mechanism| {
            call!(
                self,
                C_WrapKey(
                    session,
                    mechanism,
                    wrapping,
                    key,
                    wrapped.as_mut_ptr(),
                    &raw mut size,
                )
            )
        })?;
        wrapped.truncate(length(size));
        Ok(wrapped)
    }

    /// `C_UnwrapKey`.
    ///
    /// # Errors
    /// The module's code.
    pub fn unwrap(
        &self,
        session: CK_SESSION_HANDLE,
        mechanism: &Mechanism,
        unwrapping: CK_OBJECT_HANDLE,
        wrapped: &[u8],
        template: &[Attr],
    ) -> Call<CK_OBJECT_HANDLE> {
        let mut raw = RawTemplate::new(template);
        let (pointer, count) = raw.parts();
        let mut object = 0;
        mechanism.with(|mechanism| {
            call!(
                self,
                C_UnwrapKey(
                    session,
                    mechanism,
                    unwrapping,
                    wrapped.as_ptr().cast_mut(),
                    ulong(wrapped.len()),
                    pointer,
                    count,
                    &raw mut object,
                )
            )
        })?;
        Ok(object)
    }

    /// `C_EncryptInit` and `C_Encrypt` of one AES block.
    ///
    /// # Errors
    /// The module's code, under the name of the call that failed.
    pub fn encrypt_block(
        &self,
        session: CK_SESSION_HANDLE,
        mechanism: &Mechanism,
        key: CK_OBJECT_HANDLE,
        block: &[u8; 16],
    ) -> Call<[u8; 16]> {
        mechanism.with(|mechanism| call!(self, C_EncryptInit(session, mechanism, key)))?;
        let mut input = *block;
        let mut out = [0_u8; 32];
        let mut size = ulong(out.len());
        call!(
            self,
            C_Encrypt(
                session,
                input.as_mut_ptr(),
                ulong(input.len()),
                out.as_mut_ptr(),
                &raw mut size,
            )
        )?;
        match (size, out.first_chunk::<16>()) {
            (16, Some(encrypted)) => Ok(*encrypted),
            _ => Err(self.failed("C_Encrypt", ck::CKR_DATA_LEN_RANGE)),
        }
    }

    /// `C_DecryptInit` and `C_Decrypt`; only custody `host` calls this.
    ///
    /// # Errors
    /// The module's code, under the name of the call that failed.
    pub fn decrypt(
        &self,
        session: CK_SESSION_HANDLE,
        mechanism: &Mechanism,
        key: CK_OBJECT_HANDLE,
        data: &[u8],
    ) -> Call<SecretSlice<u8>> {
        mechanism.with(|mechanism| call!(self, C_DecryptInit(session, mechanism, key)))?;
        let mut out = Zeroizing::new([0_u8; BUFFER]);
        let mut size = ulong(BUFFER);
        call!(
            self,
            C_Decrypt(
                session,
                data.as_ptr().cast_mut(),
                ulong(data.len()),
                out.as_mut_ptr(),
                &raw mut size,
            )
        )?;
        let plain = out.get(..length(size)).unwrap_or_default();
        Ok(SecretSlice::from(plain.to_vec()))
    }

    /// `C_SignInit` and `C_Sign`: a signature by a private key, or a MAC by a secret one.
    ///
    /// # Errors
    /// The module's code, under the name of the call that failed.
    pub fn sign(
        &self,
        session: CK_SESSION_HANDLE,
        mechanism: &Mechanism,
        key: CK_OBJECT_HANDLE,
        data: &[u8],
    ) -> Call<Vec<u8>> {
        mechanism.with(|mechanism| call!(self, C_SignInit(session, mechanism, key)))?;
        let mut out = vec![0_u8; BUFFER];
        let mut size = ulong(BUFFER);
        call!(
            self,
            C_Sign(
                session,
                data.as_ptr().cast_mut(),
                ulong(data.len()),
                out.as_mut_ptr(),
                &raw mut size,
            )
        )?;
        out.truncate(length(size));
        Ok(out)
    }

    /// `C_GenerateRandom` into a secret buffer; only custody `host` calls this.
    ///
    /// # Errors
    /// The module's code.
    pub fn random(&self, session: CK_SESSION_HANDLE, bytes: usize) -> Call<SecretSlice<u8>> {
        let mut out = Zeroizing::new(vec![0_u8; bytes]);
        call!(
            self,
            C_GenerateRandom(session, out.as_mut_ptr(), ulong(bytes))
        )?;
        Ok(SecretSlice::from(std::mem::take(&mut *out)))
    }
}

/// Private keys, which are longer than what [`Module::wrap`] has room for.
impl Module {
    /// Room for a wrapped RSA-8192 private key.
    const PRIVATE: usize = 8 * BUFFER;

    /// `C_WrapKey` of an RSA private key, in one call.
    ///
    /// # Errors
    /// The module's code; `CKR_BUFFER_TOO_SMALL` past 8,192 bytes.
    pub fn wrap_private(
        &self,
        session: CK_SESSION_HANDLE,
        mechanism: &Mechanism,
        wrapping: CK_OBJECT_HANDLE,
        key: CK_OBJECT_HANDLE,
    ) -> Call<Vec<u8>> {
        let mut wrapped = vec![0_u8; Self::PRIVATE];
        let mut size = ulong(Self::PRIVATE);
        mechanism.with(|mechanism| {
            call!(
                self,
                C_WrapKey(
                    session,
                    mechanism,
                    wrapping,
                    key,
                    wrapped.as_mut_ptr(),
                    &raw mut size,
                )
            )
        })?;
        wrapped.truncate(length(size));
        Ok(wrapped)
    }
}

const fn version(version: ck::CK_VERSION) -> (u8, u8) {
    (version.major, version.minor)
}

fn pin_parts(pin: &SecretString) -> (*mut u8, ck::CK_ULONG) {
    let text = pin.expose_secret();
    (text.as_ptr().cast_mut(), ulong(text.len()))
}

/// A length as PKCS#11 counts it. Lengths here are far below either type's limit.
fn ulong(value: usize) -> ck::CK_ULONG {
    ck::CK_ULONG::try_from(value).unwrap_or(ck::CK_ULONG::MAX)
}

fn length(value: ck::CK_ULONG) -> usize {
    usize::try_from(value).unwrap_or(0)
}

/// Text of a blank-padded field (PKCS#11 v2.40, 3.2); some tokens pad with NUL.
fn padded(field: &[u8]) -> String {
    String::from_utf8_lossy(field)
        .trim_end_matches([' ', '\0'])
        .to_owned()
}
