//! What a module tells of itself, its slots, their tokens and their mechanisms.

use std::ptr;

use cryptoki_sys as ck;

use super::{CK_MECHANISM_TYPE, CK_SLOT_ID, Call, Module, call, length, ulong};

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

impl Module {
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
}

const fn version(version: ck::CK_VERSION) -> (u8, u8) {
    (version.major, version.minor)
}

/// Text of a blank-padded field (PKCS#11 v2.40, 3.2); some tokens pad with NUL.
fn padded(field: &[u8]) -> String {
    String::from_utf8_lossy(field)
        .trim_end_matches([' ', '\0'])
        .to_owned()
}
