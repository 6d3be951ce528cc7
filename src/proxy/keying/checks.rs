//! Whether a drive can be keyed by this host, and how.

use super::error::{JobRefused, Unfit};
use super::seams::{Hold, HoldError, Unit};
use super::story::Rules;
use crate::drive::DriveSerial;
use crate::scsi::drive::Readiness;
use crate::scsi::{DriveError, TransportError};
use crate::t10::{
    Algorithm, ConfigurationAllowed, CryptoSupport, DevicePublicKey, EncryptionMethod, KeyFormat,
    ParametersControl,
};

/// Most unit attentions in a row; a drive has a few after a reset.
const MAX_ATTENTIONS: usize = 16;

/// What a drive can do.
#[derive(Clone, Debug)]
pub(super) struct Able {
    /// AES-256-GCM.
    pub(super) algorithm: Algorithm,
    /// Its wrapping key; none where it takes keys in clear only.
    pub(super) public_key: Option<DevicePublicKey>,
}

impl Able {
    /// Whether it keeps that many EEDKs, none longer than that, on the cartridge itself.
    pub(super) fn keeps(&self, count: usize, longest: usize) -> bool {
        count <= usize::from(self.algorithm.max_eedks)
            && longest <= usize::from(self.algorithm.max_eedk_len)
    }
}

/// Takes what unit attentions there are; whether a cartridge is loaded.
///
/// # Errors
/// There is no end of them, or the drive fails.
pub(super) fn settle(unit: &mut Unit) -> Result<Readiness, JobRefused> {
    settle_after(unit, || Ok(()))
}

/// The same for a drive that is held, and which `st` asks first each time, by a fresh open: the next
/// unit attention is for `st`, and not for whoever asks here.
///
/// # Errors
/// As [`settle`]; or somebody else was quicker, and has it.
pub(super) fn settle_held(unit: &mut Unit, hold: &mut dyn Hold) -> Result<Readiness, JobRefused> {
    settle_after(unit, || hold.take())
}

fn settle_after(
    unit: &mut Unit,
    mut first: impl FnMut() -> Result<(), HoldError>,
) -> Result<Readiness, JobRefused> {
    let mut last = None;
    for _ in 0..MAX_ATTENTIONS {
        match unit.test_unit_ready()? {
            Readiness::Attention(sense) => last = Some(sense),
            other => return Ok(other),
        }
        first()?;
    }
    Err(JobRefused::Attentions {
        drive: unit.name().to_owned(),
        count: MAX_ATTENTIONS,
        last: last.map_or_else(String::new, |sense| sense.to_string()),
    })
}

/// Whether nothing has happened to the drive since its attentions were last taken: no reset, no other
/// cartridge, no other host's key.
///
/// # Errors
/// Something has.
pub(super) fn undisturbed(unit: &mut Unit) -> Result<(), JobRefused> {
    let told = settle(unit)?;
    let attentions = unit.take_attentions();
    let ours: Vec<String> = attentions
        .iter()
        // 2A/01 and others tell of parameters that have nothing to do with keys.
        .filter(|sense| sense.asc != 0x2a || sense.ascq >= 0x0d)
        .map(ToString::to_string)
        .collect();
    if told == Readiness::Ready && ours.is_empty() {
        return Ok(());
    }
    Err(JobRefused::Disturbed {
        drive: unit.name().to_owned(),
        what: if ours.is_empty() {
            format!("the cartridge is gone ({told:?})")
        } else {
            ours.join(", ")
        },
    })
}

/// Whether it is the drive that the host's file means.
///
/// # Errors
/// It is another, or does not say.
pub(super) fn identify(unit: &mut Unit, rules: &Rules) -> Result<(), JobRefused> {
    let shown = match unit.unit_serial() {
        Err(DriveError::Transport {
            source: TransportError::OtherDrive { device, got, .. },
            ..
        }) => {
            return Err(JobRefused::OtherDrive {
                drive: device,
                expected: rules.serial.clone(),
                got,
            });
        }
        shown => shown?,
    };
    if shown.0.trim().parse::<DriveSerial>().as_ref() == Ok(&rules.serial) {
        return Ok(());
    }
    Err(JobRefused::OtherDrive {
        drive: unit.name().to_owned(),
        expected: rules.serial.clone(),
        got: shown.0,
    })
}

/// What it can do, where this host may key it.
///
/// # Errors
/// It cannot be keyed from here; in plain words, with the way out.
pub(super) fn able(unit: &mut Unit, rules: &Rules) -> Result<Able, JobRefused> {
    let unfit = |why: Unfit| JobRefused::Unfit {
        drive: rules.serial.clone(),
        why,
    };
    // The vendor's page first: such a drive may refuse the others.
    if let Some(by) = managed_elsewhere(unit)? {
        return Err(unfit(Unfit::Managed { by }));
    }
    let capabilities = unit.capabilities()?;
    if capabilities.configuration == ConfigurationAllowed::Prevented {
        return Err(unfit(Unfit::Managed {
            by: "a library or a management interface (CFG_P)".to_owned(),
        }));
    }
    let control = unit.encryption_status()?.control;
    let by = match control {
        ParametersControl::Library => Some("the library (PARAMETERS CONTROL)"),
        ParametersControl::Management => Some("a management interface (PARAMETERS CONTROL)"),
        ParametersControl::NotReported
        | ParametersControl::NotExclusive
        | ParametersControl::Host => None,
    };
    if let Some(by) = by {
        return Err(unfit(Unfit::Managed { by: by.to_owned() }));
    }
    let algorithm = *capabilities
        .aes_256_gcm()
        .ok_or_else(|| unfit(Unfit::NoAlgorithm))?;
    let works = |support| matches!(support, CryptoSupport::Software | CryptoSupport::Hardware);
    if !works(algorithm.encrypts) || !works(algorithm.decrypts) {
        return Err(unfit(Unfit::Managed {
            by: "an external control (ENCRYPT_C)".to_owned(),
        }));
    }
    let formats = unit.key_formats()?;
    let public_key = if formats.contains(KeyFormat::Wrapped) {
        // Read twice: a key that changes is nobody's.
        let [first, second] = [unit.wrapping_key()?, unit.wrapping_key()?];
        if first != second {
            return Err(unfit(Unfit::ChangingKey));
        }
        Some(first)
    } else {
        None
    };
    if public_key.is_none() && !rules.plain_key {
        return Err(unfit(Unfit::PlainOnly));
    }
    Ok(Able {
        algorithm,
        public_key,
    })
}

/// Who manages an IBM drive's encryption, where it is not the host. Only IBM has that page.
fn managed_elsewhere(unit: &mut Unit) -> Result<Option<String>, DriveError> {
    if unit.inquiry()?.vendor != "IBM" {
        return Ok(None);
    }
    let method = unit.ibm_encryption_method()?;
    Ok(match method {
        None | Some(EncryptionMethod::Application) => None,
        Some(method) => Some(format!("IBM's method {method:?} (mode page 25h)")),
    })
}
