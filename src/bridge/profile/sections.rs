//! The sections of a profile, and the words in them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::bridge::pkcs11::User;
use crate::key::SedkForm;

/// The library and its surroundings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModuleProfile {
    /// Path of the PKCS#11 library, or `embedded`.
    pub library: String,
    /// Environment of the bridge process; `{directory}` stands for the token's directory.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// `pReserved` of `C_Initialize`; `{directory}` as above.
    #[serde(default)]
    pub reserved: Option<String>,
    /// The file or folder that every token of this product has; without it there is none.
    /// `{directory}` as above, and the directory itself where this is left out.
    #[serde(default)]
    pub keeps: Option<String>,
    /// Files to make in a new token's directory if they are not there: name to content.
    #[serde(default)]
    pub files: BTreeMap<String, String>,
    /// Folders to make in a new token's directory if they are not there.
    #[serde(default)]
    pub folders: Vec<String>,
}

/// Whether a token shows that a wrong PIN was given (PKCS#11 v2.40, 3.2: the
/// PIN flags "may always be set to false if the token does not support the
/// functionality or will not reveal the information").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CountLow {
    /// The first wrong user PIN sets `CKF_USER_PIN_COUNT_LOW`, and the next right one clears it.
    Reported,
    /// Nobody has looked, or it does not.
    #[default]
    Unknown,
}

/// Who logs in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoginProfile {
    /// `userType` of `C_Login`: 1 is `CKU_USER`, from 0x80000000 on they are a vendor's own.
    #[serde(default = "LoginProfile::cku_user")]
    pub user_type: u32,
    /// Whether the token shows that a wrong PIN was given.
    #[serde(default)]
    pub pin_count_low: CountLow,
}

impl LoginProfile {
    pub(super) const CKU_USER: u32 = 1;
    pub(super) const CKU_VENDOR_DEFINED: u32 = 0x8000_0000;

    const fn cku_user() -> u32 {
        Self::CKU_USER
    }

    /// As `C_Login` takes it.
    #[must_use]
    pub const fn user(&self) -> User {
        if self.user_type == Self::CKU_USER {
            User::User
        } else {
            User::Vendor(self.user_type)
        }
    }
}

impl Default for LoginProfile {
    fn default() -> Self {
        Self {
            user_type: Self::CKU_USER,
            pin_count_low: CountLow::default(),
        }
    }
}

/// What the token can wrap for a drive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DriveProfile {
    /// SEDK forms that the token makes itself; none where it cannot wrap and unwrap.
    pub forms: Vec<SedkForm>,
}

/// Whether an attribute goes into a template.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Send {
    /// It is sent.
    Send,
    /// It is left out: the token refuses it.
    #[default]
    Omit,
}

/// How an unwrapped key becomes sensitive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sensitive {
    /// `CKA_SENSITIVE` in the unwrap template.
    Send,
    /// `C_SetAttributeValue` after the unwrap, because the template's is ignored.
    SetAfter,
}

/// Attributes of data keys on unwrap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataKeyProfile {
    /// How it becomes sensitive.
    pub sensitive: Sensitive,
    /// Whether `CKA_EXTRACTABLE` true is sent.
    pub extractable: Send,
    /// Whether `CKA_VALUE_LEN` 32 is sent.
    pub value_len: Send,
    /// Whether data keys are `CKA_WRAP_WITH_TRUSTED`: the token wraps them only under public
    /// keys that its security officer has blessed (`ekm drive trust`).
    #[serde(default)]
    pub wrap_with_trusted: bool,
    /// Whether its security officer can bless public keys at all (`CKA_TRUSTED`); true where
    /// nobody knows that he cannot.
    #[serde(default = "blesses")]
    pub blesses: bool,
}

const fn blesses() -> bool {
    true
}

/// How KEKs come into the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Generate {
    /// `C_GenerateKeyPair` with `CKM_RSA_PKCS_KEY_PAIR_GEN`.
    Pkcs11,
    /// Only with the vendor's own tools.
    VendorTool,
}

/// Whether a KEK has `CKA_UNWRAP_TEMPLATE`, by which the token itself refuses to open a data key
/// in any weaker way (PKCS#11 v2.40, 4.9).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UnwrapTemplate {
    /// It is not asked for: the token refuses it, or does not keep to it.
    Never,
    /// It is asked for; where the token refuses it the KEK is made without.
    Try,
    /// It is asked for, and a KEK that does not show it is refused.
    Require,
}

/// Attributes of new KEKs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KekProfile {
    /// How KEKs come into the token.
    pub generate: Generate,
    /// Whether KEKs have `CKA_UNWRAP_TEMPLATE`.
    pub unwrap_template: UnwrapTemplate,
    /// Whether the uses that a KEK is not for are sent as well, as false.
    pub denied_uses: Send,
    /// Whether `CKA_MODIFIABLE` false is sent, so that no usage flag can be turned on later.
    pub frozen: Send,
    /// Whether `CKA_COPYABLE` false is sent, so that no copy can be made that has other uses.
    #[serde(default)]
    pub uncopyable: Send,
}

/// Sessions and times.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionProfile {
    /// Bridge processes that drive the token, each with as many workers. More than one is for a
    /// module that does one exchange at a time, whatever the number of sessions.
    pub processes: usize,
    /// Threads of one such process, each with a session of its own.
    pub workers: usize,
    /// Most sessions that the token allows; `None` where no limit is known.
    #[serde(default)]
    pub limit: Option<usize>,
    /// Longest time that one exchange may take before the module counts as hung, seconds.
    pub deadline_seconds: u64,
    /// Host-custody exchanges after which the bridge is started anew.
    pub host_exchanges: u64,
    /// Exchanges of any custody after which the bridge is started anew, for a module that never
    /// frees all that a session object took; `None` for one that does.
    #[serde(default)]
    pub exchanges: Option<u64>,
}
