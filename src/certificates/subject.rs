//! The name in a request for a certificate.

use std::str::FromStr;

use rcgen::string::PrintableString;
use rcgen::{DistinguishedName, DnType, DnValue};
use serde::{Deserialize, Serialize};

/// Longest value, characters (RFC 5280, appendix A.1: `ub-common-name` and its like).
const LONGEST: usize = 64;

/// A distinguished name as a person writes it: `CN=TAPE2026,O=Example,C=DE`.
///
/// After RFC 4514: types CN, O, OU, C, L and ST, each once; `\` before a comma that belongs to a
/// value. It is certified in the order given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject(Vec<(Type, String)>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Type {
    Cn,
    O,
    Ou,
    C,
    L,
    St,
}

/// What is wrong with a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubjectError {
    /// A part is not `TYPE=value`.
    #[error("{0:?} in the subject is not TYPE=value; write for example CN=TAPE2026,O=Example,C=DE")]
    Part(String),
    /// A type is not taken.
    #[error("{0:?} in the subject is none of CN, O, OU, C, L, ST")]
    Type(String),
    /// A type comes twice.
    #[error("{0} is in the subject twice")]
    Twice(String),
    /// A value does not fit.
    #[error(
        "{0:?} in the subject: a value has 1 to 64 characters and no control characters, and C two letters"
    )]
    Value(String),
}

impl Subject {
    /// A name of one part.
    ///
    /// # Errors
    /// It is too long, or has control characters.
    pub fn common_name(name: &str) -> Result<Self, SubjectError> {
        Ok(Self(vec![(Type::Cn, fitting(Type::Cn, name.to_owned())?)]))
    }

    pub(crate) fn distinguished_name(&self) -> DistinguishedName {
        let mut name = DistinguishedName::new();
        for (kind, value) in &self.0 {
            let (kind, value) = match kind {
                Type::Cn => (DnType::CommonName, utf8(value)),
                Type::O => (DnType::OrganizationName, utf8(value)),
                Type::Ou => (DnType::OrganizationalUnitName, utf8(value)),
                Type::C => (
                    DnType::CountryName,
                    // RFC 5280 has no other form for it.
                    PrintableString::try_from(value.as_str())
                        .map_or_else(|_| utf8(value), DnValue::PrintableString),
                ),
                Type::L => (DnType::LocalityName, utf8(value)),
                Type::St => (DnType::StateOrProvinceName, utf8(value)),
            };
            name.push(kind, value);
        }
        name
    }
}

fn utf8(value: &str) -> DnValue {
    DnValue::Utf8String(value.to_owned())
}

fn fitting(kind: Type, value: String) -> Result<String, SubjectError> {
    let length = value.chars().count();
    let fits = (1..=LONGEST).contains(&length) && !value.chars().any(char::is_control);
    let country = value.len() == 2 && value.bytes().all(|byte| byte.is_ascii_alphabetic());
    if !fits || (kind == Type::C && !country) {
        return Err(SubjectError::Value(value));
    }
    Ok(value)
}

impl FromStr for Subject {
    type Err = SubjectError;

    fn from_str(text: &str) -> Result<Self, SubjectError> {
        let mut parts: Vec<(Type, String)> = Vec::new();
        for part in split(text) {
            let Some((name, value)) = part.split_once('=') else {
                return Err(SubjectError::Part(part));
            };
            let kind = match name.trim().to_ascii_uppercase().as_str() {
                "CN" => Type::Cn,
                "O" => Type::O,
                "OU" => Type::Ou,
                "C" => Type::C,
                "L" => Type::L,
                "ST" => Type::St,
                _ => return Err(SubjectError::Type(name.trim().to_owned())),
            };
            if parts.iter().any(|(known, _)| *known == kind) {
                return Err(SubjectError::Twice(name.trim().to_owned()));
            }
            parts.push((kind, fitting(kind, value.trim().to_owned())?));
        }
        Ok(Self(parts))
    }
}

/// The parts between commas that no backslash is before.
fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut escaped = false;
    for one in text.chars() {
        let Some(last) = parts.last_mut() else {
            continue;
        };
        match one {
            '\\' if !escaped => {
                escaped = true;
                continue;
            }
            ',' if !escaped => parts.push(String::new()),
            other => last.push(other),
        }
        escaped = false;
    }
    parts
}
