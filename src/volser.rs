//! Volume serial numbers.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// The name of a cartridge: 1 to 6 characters from `A-Z 0-9 $ # @ -`.
///
/// Lower case is folded to upper, and blanks around it are dropped, as labels pad it to six.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Volser(String);

impl Volser {
    /// The longest volume serial, in characters: the field of a standard volume label.
    pub const MAX_CHARS: usize = 6;

    /// The volume serial, without padding.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Volser {
    type Err = VolserError;

    fn from_str(given: &str) -> Result<Self, VolserError> {
        let volser = given.trim_matches(' ').to_ascii_uppercase();
        let fits = (1..=Self::MAX_CHARS).contains(&volser.len());
        let allowed = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || "$#@-".contains(c);
        if !fits || !volser.chars().all(allowed) {
            return Err(VolserError {
                got: given.to_owned(),
            });
        }
        Ok(Self(volser))
    }
}

impl TryFrom<String> for Volser {
    type Error = VolserError;

    fn try_from(given: String) -> Result<Self, VolserError> {
        given.parse()
    }
}

impl From<Volser> for String {
    fn from(volser: Volser) -> Self {
        volser.0
    }
}

impl fmt::Display for Volser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A text that is no volume serial.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a volume serial, 1 to 6 characters from A-Z 0-9 $ # @ -, got {got:?}")]
pub struct VolserError {
    /// What was given.
    pub got: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_folded_and_trimmed() {
        for (given, volser) in [("vol001", "VOL001"), ("A  ", "A"), ("$#@-1z", "$#@-1Z")] {
            assert_eq!(given.parse::<Volser>().unwrap().to_string(), volser);
        }
        assert_eq!(
            format!("[{:<6}]", "ab".parse::<Volser>().unwrap()),
            "[AB    ]"
        );
    }

    #[test]
    fn other_texts_are_refused() {
        for given in ["", "   ", "VOL0001", "VOL_01", "A B", "ÄÖ"] {
            assert!(given.parse::<Volser>().is_err(), "{given:?}");
        }
        assert!(serde_json::from_str::<Volser>("\"TOOLONG\"").is_err());
    }
}
