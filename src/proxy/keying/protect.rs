//! Write protection, and what it takes to lift it.

use serde::{Deserialize, Serialize};

use super::error::JobRefused;
use super::seams::{Unit, means_absent};
use super::story::shown;
use crate::key::DataKeyId;
use crate::t10::{AlgorithmIndex, DecryptionMode, EncryptionMode, KadType, Status};

/// How well a drive refuses to write by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Guard {
    /// Also after a reset.
    Saved,
    /// Until a reset.
    CurrentOnly,
    /// It does not.
    None,
}

/// The drive itself says that it encrypts under this key. Made from page 0020h, after a key was set, and by
/// nothing else.
///
/// ```compile_fail,E0451
/// use ekm::proxy::keying::Confirmed;
/// let forged = Confirmed { dki: "EKM000000000000000000".parse().unwrap(), key_instance: 1, algorithm: ekm::t10::AlgorithmIndex(1) };
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confirmed {
    dki: DataKeyId,
    key_instance: u32,
    algorithm: AlgorithmIndex,
}

impl Confirmed {
    /// The data key.
    #[must_use]
    pub const fn dki(&self) -> DataKeyId {
        self.dki
    }

    /// KEY INSTANCE COUNTER when it was set.
    #[must_use]
    pub const fn key_instance(&self) -> u32 {
        self.key_instance
    }

    /// Whether the drive still has this very key, set by nobody else since.
    pub(super) fn still(&self, status: &Status) -> Result<(), String> {
        if status.encryption == EncryptionMode::Disable {
            return Err("it has none any more: it was reset, or somebody took it away".to_owned());
        }
        if status.key_instance != self.key_instance {
            return Err(format!(
                "its key instance counter is {}, expected {}: somebody else set one",
                status.key_instance, self.key_instance
            ));
        }
        says(status, &self.dki, self.algorithm)
    }
}

/// What a job may do with the tape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permit {
    /// Read; the drive refuses to write.
    Read,
    /// Write, under that key.
    Encrypted(Confirmed),
    /// Write in clear.
    InClear(ClearByName),
}

/// A data class that the job named, and that is in clear; or the host's word for appends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClearByName(());

impl ClearByName {
    /// Where the host's file has decided so.
    pub(super) const fn decided() -> Self {
        Self(())
    }
}

/// What page 0020h says of the key, or how it differs from what it should.
fn says(status: &Status, dki: &DataKeyId, algorithm: AlgorithmIndex) -> Result<(), String> {
    if status.encryption != EncryptionMode::Encrypt {
        return Err(format!(
            "its ENCRYPTION MODE is {:?}, expected Encrypt",
            status.encryption
        ));
    }
    if !matches!(
        status.decryption,
        DecryptionMode::Decrypt | DecryptionMode::Mixed
    ) {
        return Err(format!(
            "its DECRYPTION MODE is {:?}, expected Decrypt or Mixed",
            status.decryption
        ));
    }
    if status.algorithm != algorithm {
        return Err(format!(
            "its ALGORITHM INDEX is {:02X}h, expected {:02X}h",
            status.algorithm.0, algorithm.0
        ));
    }
    let mut names = status.kads.of(KadType::Authenticated);
    match (names.next(), names.next()) {
        (Some(name), None) if name == dki.as_bytes() => Ok(()),
        (Some(name), None) => Err(format!("its A-KAD is {}, expected {dki}", shown(name))),
        (None, _) => Err(format!("it shows no A-KAD, expected {dki}")),
        (Some(_), Some(_)) => Err("it shows more than one A-KAD".to_owned()),
    }
}

/// Asks the drive which key it has, after one was set.
///
/// # Errors
/// It has another, or none; then it is not to be trusted.
pub(super) fn confirm(
    unit: &mut Unit,
    before: u32,
    dki: DataKeyId,
    algorithm: AlgorithmIndex,
) -> Result<(Confirmed, Status), JobRefused> {
    let status = unit.encryption_status()?;
    let drive = unit.name().to_owned();
    let lies = |what: String| JobRefused::Lies {
        drive: drive.clone(),
        what,
    };
    let expected = before.wrapping_add(1);
    if status.key_instance != expected {
        return Err(lies(format!(
            "its key instance counter went from {before} to {}, expected {expected}",
            status.key_instance
        )));
    }
    says(&status, &dki, algorithm).map_err(lies)?;
    let confirmed = Confirmed {
        dki,
        key_instance: expected,
        algorithm,
    };
    Ok((confirmed, status))
}

/// Has the drive refuse to write from now on, and after a reset.
///
/// # Errors
/// It does not, and the operator has not said that it is used all the same.
pub(super) fn protect(unit: &mut Unit, unprotected: bool) -> Result<Guard, JobRefused> {
    let before = unit.write_protection()?;
    let guard = match (before.current, before.saved) {
        (None, _) => Guard::None,
        (Some(true), Some(true)) => Guard::Saved,
        // A drive writes what it saves to a memory that wears.
        (Some(_), saved) => set(unit, saved != Some(true))?,
    };
    match guard {
        Guard::Saved => Ok(guard),
        Guard::CurrentOnly | Guard::None if unprotected => Ok(guard),
        Guard::CurrentOnly | Guard::None => Err(JobRefused::Unprotectable {
            drive: unit.name().to_owned(),
            guard,
        }),
    }
}

fn set(unit: &mut Unit, save: bool) -> Result<Guard, JobRefused> {
    // A drive without saved pages refuses SP.
    if let Err(error) = unit.set_write_protection(true, save) {
        if !means_absent(&error) {
            return Err(error.into());
        }
        match unit.set_write_protection(true, false) {
            Ok(()) => {}
            // It shows the bit, and does not let it be set.
            Err(error) if means_absent(&error) => return Ok(Guard::None),
            Err(error) => return Err(error.into()),
        }
    }
    let after = unit.write_protection()?;
    match (after.current, after.saved) {
        (Some(true), Some(true)) => Ok(Guard::Saved),
        (Some(true), _) => Ok(Guard::CurrentOnly),
        _ => Err(JobRefused::Lies {
            drive: unit.name().to_owned(),
            what: "it accepted write protection (mode page 10h, SWP) and shows none".to_owned(),
        }),
    }
}

/// Lets the drive write until the next reset.
///
/// # Errors
/// It does not do exactly that; it is to be protected again then.
pub(super) fn lift(unit: &mut Unit, guard: Guard) -> Result<(), JobRefused> {
    if guard == Guard::None {
        return Ok(());
    }
    unit.set_write_protection(false, false)?;
    let after = unit.write_protection()?;
    let saved = guard != Guard::Saved || after.saved == Some(true);
    if after.current == Some(false) && saved {
        return Ok(());
    }
    Err(JobRefused::Lies {
        drive: unit.name().to_owned(),
        what: format!(
            "told to clear the current write protection alone, it shows {} and {} as saved",
            value(after.current),
            value(after.saved)
        ),
    })
}

const fn value(swp: Option<bool>) -> &'static str {
    match swp {
        Some(true) => "on",
        Some(false) => "off",
        None => "nothing",
    }
}
