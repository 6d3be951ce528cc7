//! Which token: the path attributes of a PKCS#11 URI (RFC 7512, section 2.3).
//!
//! Slot numbers move when a reader is unplugged or a token is initialised, so
//! a token is named by what is written on it.

use std::fmt;
use std::str::FromStr;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde::{Deserialize, Serialize};

use super::pkcs11::TokenInfo;

/// What RFC 7512 lets stand unencoded in a path attribute.
const KEEP: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// A token by label, serial, manufacturer and model; what is not given matches anything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct TokenUri {
    token: Option<String>,
    serial: Option<String>,
    manufacturer: Option<String>,
    model: Option<String>,
}

/// Why a text is no token URI.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum UriError {
    /// It does not start with `pkcs11:`.
    #[error("{0:?} is not a PKCS#11 URI; write for example pkcs11:token=ekm")]
    Scheme(String),
    /// An attribute that does not name a token.
    #[error(
        "PKCS#11 URI: {0:?} does not name a token; token=, serial=, manufacturer= and model= do"
    )]
    Attribute(String),
    /// An attribute twice.
    #[error("PKCS#11 URI: {0} is given twice")]
    Twice(&'static str),
    /// Nothing is named.
    #[error("PKCS#11 URI: give at least token= or serial=, or any token would match")]
    Empty,
    /// Not UTF-8 after decoding.
    #[error("PKCS#11 URI: {0:?} is not UTF-8 when decoded")]
    Text(String),
}

impl TokenUri {
    /// A token by its label alone.
    #[must_use]
    pub fn labelled(label: &str) -> Self {
        Self {
            token: Some(label.to_owned()),
            ..Self::default()
        }
    }

    /// The URI that names exactly this token.
    #[must_use]
    pub fn of(info: &TokenInfo) -> Self {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Self {
            token: some(&info.label),
            serial: some(&info.serial),
            manufacturer: some(&info.manufacturer),
            model: some(&info.model),
        }
    }

    /// Whether it names a serial.
    #[must_use]
    pub const fn has_serial(&self) -> bool {
        self.serial.is_some()
    }

    /// Whether this names the token.
    #[must_use]
    pub fn matches(&self, info: &TokenInfo) -> bool {
        let Self {
            token,
            serial,
            manufacturer,
            model,
        } = self;
        let same =
            |want: &Option<String>, have: &str| want.as_deref().is_none_or(|want| want == have);
        same(token, &info.label)
            && same(serial, &info.serial)
            && same(manufacturer, &info.manufacturer)
            && same(model, &info.model)
    }
}

impl FromStr for TokenUri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        let path = text
            .strip_prefix("pkcs11:")
            .ok_or_else(|| UriError::Scheme(text.to_owned()))?;
        let mut uri = Self::default();
        for part in path.split(';').filter(|part| !part.is_empty()) {
            let (name, value) = part
                .split_once('=')
                .ok_or_else(|| UriError::Attribute(part.to_owned()))?;
            let (name, field) = match name {
                "token" => ("token", &mut uri.token),
                "serial" => ("serial", &mut uri.serial),
                "manufacturer" => ("manufacturer", &mut uri.manufacturer),
                "model" => ("model", &mut uri.model),
                _ => return Err(UriError::Attribute(name.to_owned())),
            };
            let value = percent_decode_str(value)
                .decode_utf8()
                .map_err(|_| UriError::Text(value.to_owned()))?;
            if field.replace(value.into_owned()).is_some() {
                return Err(UriError::Twice(name));
            }
        }
        if uri.token.is_none() && uri.serial.is_none() {
            return Err(UriError::Empty);
        }
        Ok(uri)
    }
}

impl TryFrom<String> for TokenUri {
    type Error = UriError;

    fn try_from(text: String) -> Result<Self, UriError> {
        text.parse()
    }
}

impl From<TokenUri> for String {
    fn from(uri: TokenUri) -> Self {
        uri.to_string()
    }
}

impl fmt::Display for TokenUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            token,
            serial,
            manufacturer,
            model,
        } = self;
        f.write_str("pkcs11:")?;
        let mut first = true;
        for (name, value) in [
            ("model", model),
            ("manufacturer", manufacturer),
            ("serial", serial),
            ("token", token),
        ] {
            if let Some(value) = value {
                let separator = if first { "" } else { ";" };
                write!(f, "{separator}{name}={}", utf8_percent_encode(value, KEEP))?;
                first = false;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_reads_back_what_it_says() {
        let uri: TokenUri = "pkcs11:token=tape%20vault;serial=00ff".parse().unwrap();
        assert_eq!(uri.to_string().parse::<TokenUri>().unwrap(), uri);
        assert_eq!(uri.token.as_deref(), Some("tape vault"));
    }

    #[test]
    fn a_slot_number_is_refused() {
        assert!(matches!(
            "pkcs11:slot-id=3".parse::<TokenUri>(),
            Err(UriError::Attribute(_))
        ));
        assert_eq!("pkcs11:model=x".parse::<TokenUri>(), Err(UriError::Empty));
    }
}
