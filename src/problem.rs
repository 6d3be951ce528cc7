//! What a drive learns of a failure: an EKM code and a sentence (RFC 9457).
//!
//! The codes are the Encryption Key Manager's own, so that what an operator
//! looks up is what he finds. Which failure gets which code is decided here
//! and nowhere else; the audit record keeps the whole cause.

use serde::{Deserialize, Serialize};

use crate::bridge::faults::{Fault, FaultClass};
use crate::exchange::ExchangeError;
use crate::keystore::KekError;
use crate::policy::Refusal;

/// An EKM code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
pub enum EkmCode {
    /// Internal error, or the key service is not available.
    EE0F,
    /// The message could not be understood.
    EE23,
    /// The drive table does not fit the request.
    EE25,
    /// The drive's key or signature is not the one that is trusted.
    EE2B,
    /// The request is prohibited.
    EE30,
    /// The keystore does not fit the request: label, private key.
    EE31,
    /// The cartridge's key is unknown here.
    EE32,
    /// The drive is not configured.
    EF01,
}

impl EkmCode {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::EE0F,
        Self::EE23,
        Self::EE25,
        Self::EE2B,
        Self::EE30,
        Self::EE31,
        Self::EE32,
        Self::EF01,
    ];

    /// What it means, in a few words.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::EE0F => "encryption key service error",
            Self::EE23 => "request not understood",
            Self::EE25 => "drive table does not fit",
            Self::EE2B => "drive key or signature not trusted",
            Self::EE30 => "request prohibited",
            Self::EE31 => "keystore does not fit",
            Self::EE32 => "cartridge key unknown here",
            Self::EF01 => "drive not configured",
        }
    }
}

impl std::fmt::Display for EkmCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self:?}")
    }
}

/// `application/problem+json`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Problem {
    /// `urn:ekm:code:` and the code.
    #[serde(rename = "type")]
    pub kind: String,
    /// The code's meaning.
    pub title: String,
    /// HTTP status.
    pub status: u16,
    /// What happened and what to do.
    pub detail: String,
    /// The EKM code.
    pub code: EkmCode,
    /// The request's id, where it was understood so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// Seconds after which trying again may help.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<u32>,
    /// Whether another key server may answer otherwise: what is missing is knowledge of this one's,
    /// such as a KEK or a cartridge's history, and not permission.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub elsewhere: bool,
}

impl Problem {
    /// A problem of that code and status.
    #[must_use]
    pub fn new(code: EkmCode, status: u16, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("urn:ekm:code:{code}"),
            title: code.title().to_owned(),
            status,
            detail: detail.into(),
            code,
            request_id: None,
            retry_after: None,
            elsewhere: code == EkmCode::EE32,
        }
    }

    /// The key service cannot answer now; later it may.
    #[must_use]
    pub fn unavailable(detail: impl Into<String>) -> Self {
        Self {
            retry_after: Some(5),
            ..Self::new(EkmCode::EE0F, 503, detail)
        }
    }

    /// Too much is asked of the key service; after `retry_after` seconds it may answer.
    #[must_use]
    pub fn busy(detail: impl Into<String>, retry_after: u32) -> Self {
        Self {
            retry_after: Some(retry_after),
            ..Self::new(EkmCode::EE0F, 503, detail)
        }
    }

    /// Something is wrong with the server itself; the log has the cause.
    #[must_use]
    pub fn internal(detail: impl Into<String>) -> Self {
        Self::new(EkmCode::EE0F, 500, detail)
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({}): {}", self.code, self.title, self.detail)
    }
}

impl std::error::Error for Problem {}

impl From<&Refusal> for Problem {
    fn from(refusal: &Refusal) -> Self {
        let (code, status) = match refusal {
            Refusal::OutOfReach { .. } => return Self::unavailable(refusal.to_string()),
            Refusal::UnknownDrive { .. } | Refusal::PendingDrive { .. } => (EkmCode::EF01, 403),
            Refusal::NotItsDrive { .. }
            | Refusal::NotItsKek { .. }
            | Refusal::NotIssued(..)
            | Refusal::Revoked { .. } => (EkmCode::EE30, 403),
            Refusal::DriveKey { .. } => (EkmCode::EE2B, 403),
            Refusal::DriveTable { .. } => (EkmCode::EE25, 409),
            Refusal::NoLabel { .. }
            | Refusal::Kek(_)
            | Refusal::KekUnfit { .. }
            | Refusal::Unverified { .. }
            | Refusal::NoCopy { .. }
            | Refusal::NoBackup { .. } => (EkmCode::EE31, 409),
            Refusal::Unreadable(_) => (EkmCode::EE32, 422),
            Refusal::UnknownDataKey(_) => (EkmCode::EE32, 404),
            Refusal::NoEedk(_) => (EkmCode::EE23, 400),
        };
        // A drive that is not in the table is none of these: it may have been taken out of it.
        let unknown_here = matches!(
            refusal,
            Refusal::NotIssued(..)
                | Refusal::Unreadable(_)
                | Refusal::Kek(KekError::Unknown { .. })
        );
        Self {
            elsewhere: unknown_here,
            ..Self::new(code, status, refusal.to_string())
        }
    }
}

impl From<&Fault> for Problem {
    fn from(fault: &Fault) -> Self {
        let detail = fault.to_string();
        match fault {
            Fault::BadEedk { .. } | Fault::NotTried { .. } | Fault::NoKek { .. } => {
                Self::new(EkmCode::EE32, 422, detail)
            }
            Fault::Refused { .. } => Self::new(EkmCode::EE31, 409, detail),
            Fault::Unsupported { .. } => Self::new(EkmCode::EE25, 409, detail),
            Fault::Call {
                class: FaultClass::Request,
                ..
            } => Self::internal(detail),
            Fault::Call { .. }
            | Fault::Operator { .. }
            | Fault::WrongPin { .. }
            | Fault::Down { .. }
            | Fault::Deadline { .. } => Self::unavailable(detail),
        }
    }
}

impl From<&ExchangeError> for Problem {
    fn from(error: &ExchangeError) -> Self {
        match error {
            ExchangeError::Token(fault) => Self::from(fault),
            ExchangeError::NoneOpens(faults) => {
                // One token that is down may hold the key: later is better than never.
                let worst = faults
                    .iter()
                    .map(Self::from)
                    .max_by_key(|problem| (problem.status == 503, problem.status == 500));
                match worst {
                    Some(problem) => Self {
                        detail: error.to_string(),
                        ..problem
                    },
                    None => Self::new(EkmCode::EE32, 422, error.to_string()),
                }
            }
            ExchangeError::NotProved { .. } => Self::internal(error.to_string()),
            // The cartridge is not to blame: it was never written.
            ExchangeError::Unprovable { fault, .. } => match **fault {
                Fault::BadEedk { .. } | Fault::NotTried { .. } => Self::internal(error.to_string()),
                _ => Self {
                    detail: error.to_string(),
                    ..Self::from(&**fault)
                },
            },
            ExchangeError::NoRandom => Self::internal(error.to_string()),
        }
    }
}
