//! A profile's own rules: `[[faults]]`.

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use super::{CK_RV, FUNCTIONS, FaultClass, ckr_code, ckr_name, meaning};

/// Longest reason of a rule, characters: it stands in tables and logs.
const MAX_REASON: usize = 300;

/// What one product means by a code: read from a profile, checked there.
///
/// ```toml
/// [[faults]]
/// function = "C_UnwrapKey"      # without it: whichever function answers so
/// code = 0x80000123             # or "CKR_DEVICE_ERROR"
/// class = "restart"
/// reason = "The vendor's manual: the cluster has no quorum."
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct FaultRule {
    function: Option<String>,
    code: CK_RV,
    /// What follows from it.
    pub class: FaultClass,
    /// Why, in one sentence.
    pub reason: String,
}

impl FaultRule {
    /// Whether it speaks of that code from that function.
    #[must_use]
    pub fn covers(&self, function: &str, code: CK_RV) -> bool {
        self.code == code && self.function.as_ref().is_none_or(|own| own == function)
    }

    /// The function that it is for; none for all.
    #[must_use]
    pub fn function(&self) -> Option<&str> {
        self.function.as_deref()
    }

    /// The code.
    #[must_use]
    pub const fn code(&self) -> CK_RV {
        self.code
    }
}

/// Why a rule cannot be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum RuleError {
    #[error("[[faults]] function = \"{0}\": ekm calls no such function; {functions}", functions = FUNCTIONS.join(", "))]
    Function(String),
    #[error("[[faults]] code = {0}: CKR_OK is no fault")]
    Ok(String),
    #[error(
        "[[faults]] code = {0}: the reason must be one sentence of 1 to {MAX_REASON} characters"
    )]
    Reason(String),
    #[error(
        "[[faults]] code = {0}: under C_Login it means that the PIN was refused or that a person is needed, so its class can only be operator (was {1}); a PIN is never tried again"
    )]
    Login(String, FaultClass),
    #[error(
        "[[faults]] code = {0}: class harmless would take a failed call for a good one; choose another class"
    )]
    Harmless(String),
}

/// As it stands in the file.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    // Never skipped: the bridge's messages carry no field names.
    #[serde(default)]
    function: Option<String>,
    code: Code,
    class: FaultClass,
    reason: String,
}

impl TryFrom<Written> for FaultRule {
    type Error = RuleError;

    fn try_from(written: Written) -> Result<Self, RuleError> {
        let Written {
            function,
            code: Code(code),
            class,
            reason,
        } = written;
        let name = ckr_name(code);
        if let Some(unknown) = function
            .as_ref()
            .filter(|function| !FUNCTIONS.contains(&function.as_str()))
        {
            return Err(RuleError::Function(unknown.clone()));
        }
        if code == cryptoki_sys::CKR_OK {
            return Err(RuleError::Ok(name));
        }
        let length = reason.trim().chars().count();
        if !(1..=MAX_REASON).contains(&length) || reason.chars().any(char::is_control) {
            return Err(RuleError::Reason(name));
        }
        if class == FaultClass::Harmless {
            return Err(RuleError::Harmless(name));
        }
        let login = function
            .as_ref()
            .is_none_or(|function| function == "C_Login");
        // What a vendor's code means is the rule's to say; what the standard's means is not.
        if login
            && class != FaultClass::Operator
            && code < cryptoki_sys::CKR_VENDOR_DEFINED
            && meaning("C_Login", code, &[]).class == FaultClass::Operator
        {
            return Err(RuleError::Login(name, class));
        }
        Ok(Self {
            function,
            code,
            class,
            reason: reason.trim().to_owned(),
        })
    }
}

impl From<FaultRule> for Written {
    fn from(rule: FaultRule) -> Self {
        let FaultRule {
            function,
            code,
            class,
            reason,
        } = rule;
        Self {
            function,
            code: Code(code),
            class,
            reason,
        }
    }
}

/// A `CKR_` code: by name or number in a file, a number between processes.
#[derive(Clone, Copy)]
struct Code(CK_RV);

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        if to.is_human_readable() {
            to.serialize_str(&ckr_name(self.0))
        } else {
            self.0.serialize(to)
        }
    }
}

impl<'de> Deserialize<'de> for Code {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        if from.is_human_readable() {
            return from.deserialize_any(NameOrNumber);
        }
        CK_RV::deserialize(from).map(Self)
    }
}

struct NameOrNumber;

impl Visitor<'_> for NameOrNumber {
    type Value = Code;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a CKR_ name such as \"CKR_DEVICE_ERROR\", or the number of a code")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Code, E> {
        ckr_code(text)
            .map(Code)
            .ok_or_else(|| E::custom(format!("PKCS#11 has no code {text:?}; give its number")))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Code, E> {
        CK_RV::try_from(number)
            .map(Code)
            .map_err(|_| E::custom(format!("{number} is no CKR_ code")))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Code, E> {
        self.visit_i64(i64::try_from(number).unwrap_or(-1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Profile {
        faults: Vec<FaultRule>,
    }

    fn read(text: &str) -> Result<Profile, String> {
        toml::from_str(text).map_err(|error| error.to_string())
    }

    const VENDOR: &str = "[[faults]]\nfunction = \"C_UnwrapKey\"\ncode = 0x80000123\nclass = \"restart\"\nreason = \"no quorum\"\n";

    #[test]
    fn a_rule_goes_before_the_table_for_its_function_only() {
        let rules = read(VENDOR).unwrap().faults;
        let of = |function| meaning(function, 0x8000_0123, &rules).class;
        assert_eq!(of("C_UnwrapKey"), FaultClass::Restart);
        assert_eq!(of("C_WrapKey"), FaultClass::Ambiguous);
        assert_eq!(
            meaning("C_UnwrapKey", 0x8000_0123, &rules).reason,
            "no quorum"
        );
    }

    #[test]
    fn a_rule_without_a_function_is_for_all() {
        let text = "[[faults]]\ncode = \"CKR_DEVICE_ERROR\"\nclass = \"restart\"\nreason = \"r\"\n";
        let rules = read(text).unwrap().faults;
        for function in FUNCTIONS {
            let class = meaning(function, cryptoki_sys::CKR_DEVICE_ERROR, &rules).class;
            assert_eq!(class, FaultClass::Restart, "{function}");
        }
    }

    #[test]
    fn a_rule_that_cannot_be_is_named() {
        for (from, to, says) in [
            ("C_UnwrapKey", "C_Unwrap", "calls no such function"),
            ("0x80000123", "\"CKR_DEVICE_EROR\"", "no code"),
            ("0x80000123", "-1", "no CKR_ code"),
            ("0x80000123", "0", "no fault"),
            ("\"restart\"", "\"retry\"", "new-session"),
            ("\"restart\"", "\"harmless\"", "another class"),
            ("no quorum", "", "one sentence"),
            ("no quorum", "a\\nb", "one sentence"),
            ("class", "klass", "klass"),
        ] {
            let error = read(&VENDOR.replace(from, to)).unwrap_err();
            assert!(error.contains(says), "{from} -> {to}: {error}");
        }
    }

    #[test]
    fn no_rule_has_a_refused_pin_tried_again() {
        for function in ["function = \"C_Login\"\n", ""] {
            for class in ["request", "new-session", "login", "ambiguous", "restart"] {
                let text = format!(
                    "[[faults]]\n{function}code = \"CKR_PIN_INCORRECT\"\nclass = \"{class}\"\nreason = \"r\"\n"
                );
                let error = read(&text).unwrap_err();
                assert!(error.contains("never tried again"), "{error}");
            }
        }
        // What a vendor's code means is not for us to say.
        let text = VENDOR.replace("C_UnwrapKey", "C_Login");
        assert_eq!(read(&text).unwrap().faults.len(), 1);
    }

    #[test]
    fn a_rule_crosses_to_the_bridge() {
        let rules = read(&format!(
            "{VENDOR}[[faults]]\ncode = \"CKR_PENDING\"\nclass = \"full\"\nreason = \"r\"\n"
        ))
        .unwrap();
        let sent = postcard::to_allocvec(&rules).unwrap();
        assert_eq!(postcard::from_bytes::<Profile>(&sent).unwrap(), rules);
        let written = toml::to_string(&rules).unwrap();
        assert_eq!(read(&written).unwrap(), rules);
    }
}
