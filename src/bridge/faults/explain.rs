//! The fault table for people: what `ekm token explain` prints.

use cryptoki_sys as ck;
use serde::Serialize;

use super::{
    CK_RV, CODES, Codes, FUNCTIONS, FaultClass, FaultRule, FunctionRow, Meaning, ROWS, Source,
    ckr_code, ckr_name, in_general, meaning, standard,
};

/// What somebody wants explained: a code, a function, both or everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    code: Option<CK_RV>,
    function: Option<&'static str>,
}

/// Why there is nothing to explain.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// No such code.
    #[error(
        "there is no code {0:?}; give a name such as CKR_DEVICE_ERROR, or a number such as 0x30 (ekm token explain lists them all)"
    )]
    Code(String),
    /// No such function.
    #[error("ekm calls no function {name:?}; it calls {functions}", functions = FUNCTIONS.join(", "))]
    Function {
        /// What was asked for.
        name: String,
    },
}

impl Asked {
    /// By the names that a log line has; `CKR_` and `C_` may be left out, and
    /// a code may be a number.
    ///
    /// # Errors
    /// There is no such code or function.
    pub fn parse(code: Option<&str>, function: Option<&str>) -> Result<Self, AskError> {
        let code = code
            .map(|text| ckr_code(text).ok_or_else(|| AskError::Code(text.to_owned())))
            .transpose()?;
        let function = function
            .map(|text| {
                let bare = text.trim();
                FUNCTIONS
                    .iter()
                    .copied()
                    .find(|known| {
                        known.eq_ignore_ascii_case(bare)
                            || known
                                .get(2..)
                                .is_some_and(|short| short.eq_ignore_ascii_case(bare))
                    })
                    .ok_or_else(|| AskError::Function {
                        name: text.to_owned(),
                    })
            })
            .transpose()?;
        Ok(Self { code, function })
    }

    /// Whether a code was named.
    #[must_use]
    pub const fn names_a_code(&self) -> bool {
        self.code.is_some()
    }
}

/// One row of the table, in words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explained {
    /// The functions that it is for; none for all that have no row of their own.
    pub functions: Vec<String>,
    /// The codes, by name.
    pub codes: Vec<String>,
    /// The code's number, where it is one code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub number: Option<CK_RV>,
    /// Whether the codes are all those that no other row of the function has.
    pub others: bool,
    /// What the standard says of the code, where it is one code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub standard: Option<String>,
    /// Its class.
    pub class: FaultClass,
    /// Who says so.
    pub source: Source,
    /// Why it is of that class.
    pub reason: String,
    /// What `ekm` does about it.
    pub ekm: &'static str,
    /// What an operator may do.
    pub operator: String,
}

/// The rows that answer what was asked, under a profile's rules.
#[must_use]
pub fn explain(asked: Asked, rules: &[FaultRule]) -> Vec<Explained> {
    match (asked.code, asked.function) {
        (Some(code), Some(function)) => {
            vec![one(&[function], code, meaning(function, code, rules))]
        }
        (Some(code), None) => of_code(code, rules),
        (None, Some(function)) => CODES
            .iter()
            .map(|row| one(&[function], row.code, meaning(function, row.code, rules)))
            .chain([vendors(
                &[function],
                meaning(function, ck::CKR_VENDOR_DEFINED, &[]),
            )])
            .chain(rules.iter().filter(|rule| own(rule, function)).map(of_rule))
            .collect(),
        (None, None) => rules
            .iter()
            .map(of_rule)
            .chain(
                CODES
                    .iter()
                    .map(|row| one(&[], row.code, in_general(row.code))),
            )
            .chain([vendors(&[], in_general(ck::CKR_VENDOR_DEFINED))])
            .chain(ROWS.iter().map(of_row))
            .collect(),
    }
}

/// Whether a rule is for a vendor's own code under that function: those are
/// not among the table's.
fn own(rule: &FaultRule, function: &str) -> bool {
    rule.code() >= ck::CKR_VENDOR_DEFINED && rule.covers(function, rule.code())
}

/// What a code means in general, and then by each function that means
/// something else, those of one meaning together.
fn of_code(code: CK_RV, rules: &[FaultRule]) -> Vec<Explained> {
    let mut rows = vec![one(&[], code, in_general(code))];
    let mut groups: Vec<(Meaning<'_>, Vec<&str>)> = Vec::new();
    for function in FUNCTIONS {
        let found = meaning(function, code, rules);
        match groups.iter_mut().find(|(known, _)| *known == found) {
            Some((_, functions)) => functions.push(function),
            None if matches!(found.source, Source::Function | Source::Profile) => {
                groups.push((found, vec![function]));
            }
            None => {}
        }
    }
    rows.extend(
        groups
            .into_iter()
            .map(|(found, functions)| one(&functions, code, found)),
    );
    rows
}

fn one(functions: &[&str], code: CK_RV, found: Meaning<'_>) -> Explained {
    Explained {
        codes: vec![ckr_name(code)],
        number: Some(code),
        standard: standard(code),
        ..said(functions, found)
    }
}

fn vendors(functions: &[&str], found: Meaning<'_>) -> Explained {
    Explained {
        codes: vec!["CKR_VENDOR_DEFINED and above".to_owned()],
        ..said(functions, found)
    }
}

fn of_rule(rule: &FaultRule) -> Explained {
    let functions: Vec<&str> = rule.function().into_iter().collect();
    let found = Meaning {
        class: rule.class,
        reason: &rule.reason,
        advice: None,
        action: None,
        source: Source::Profile,
    };
    one(&functions, rule.code(), found)
}

fn of_row(row: &FunctionRow) -> Explained {
    let codes = match row.codes {
        Codes::These(codes) => codes.iter().copied().map(ckr_name).collect(),
        Codes::Vendors => vec!["CKR_VENDOR_DEFINED and above".to_owned()],
        Codes::Rest(_) => CODES
            .iter()
            .filter(|code| {
                row.functions.iter().any(|function| {
                    let found = meaning(function, code.code, &[]);
                    found.source == Source::Function && found.reason == row.reason
                })
            })
            .map(|code| code.name.to_owned())
            .collect(),
    };
    let found = Meaning {
        class: row.class,
        reason: row.reason,
        advice: row.advice,
        action: row.action,
        source: Source::Function,
    };
    Explained {
        codes,
        others: matches!(row.codes, Codes::Rest(_)),
        ..said(row.functions, found)
    }
}

fn said(functions: &[&str], found: Meaning<'_>) -> Explained {
    let Meaning {
        class,
        reason,
        advice,
        action,
        source,
    } = found;
    Explained {
        functions: functions.iter().map(|name| (*name).to_owned()).collect(),
        codes: Vec::new(),
        number: None,
        others: false,
        standard: None,
        class,
        source,
        reason: reason.to_owned(),
        ekm: action.unwrap_or(class.action()),
        operator: advice.unwrap_or(class.advice()).to_owned(),
    }
}
