//! What a drive says of itself, put together and in words. Asks only, and moves no tape.

mod verdict;
mod view;

use super::drive::{Drive, DriveError, ModeValues, NotReady, Readiness};
use super::{Transport, TransportError};
use crate::key::{DataKeyId, KekHash};
use crate::t10::{
    AlgorithmIndex, AttributeId, Capabilities, CheckMode, ConfigurationAllowed, CryptoSupport,
    DecryptionMode, EncryptionMethod, EncryptionMode, EncryptionStatus, InPage, Inquiry, KadType,
    Kads, KeyFormat, KeyFormats, ParametersControl, Scope, SecurityProtocol, TapeAlerts,
};

pub use verdict::{Ability, Verdict};
pub use view::{Alert, Cartridge, Encryption, KadView, NextBlock, Setting, State, Survey};

/// How much of a drive is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Its names: INQUIRY and vital product data, which take no unit attention from anybody.
    Names,
    /// All of it.
    Whole {
        /// TapeAlert flags also from page 2Eh, where the drive does not have page 12h. Reading it
        /// takes the flags away from whoever asks next.
        take_alerts: bool,
    },
}

impl Survey {
    /// Asks a drive.
    ///
    /// # Errors
    ///
    /// [`SurveyError`] where it is no tape drive, or no longer answers. That it does not have
    /// something, or answers wrongly, is in the survey.
    pub fn of<T: Transport>(drive: &mut Drive<T>, depth: Depth) -> Result<Self, SurveyError> {
        let inquiry = drive.inquiry()?;
        if inquiry.device_type != Inquiry::TAPE {
            return Err(SurveyError::NotATape {
                device: drive.name().to_owned(),
                got: inquiry.device_type,
                product: format!("{} {}", inquiry.vendor, inquiry.product),
            });
        }
        let mut faults = Faults::default();
        let serial = faults
            .answer(drive.unit_serial())?
            .map(|serial| serial.0)
            .filter(|serial| !serial.is_empty());
        let designators = faults.answer(drive.designators())?;
        let mut survey = Self {
            device: drive.name().to_owned(),
            drive: serial.as_ref().and_then(|serial| serial.parse().ok()),
            serial,
            wwn: designators.and_then(|page| page.logical_unit()),
            vendor: inquiry.vendor,
            product: inquiry.product,
            revision: inquiry.revision,
            state: None,
            faults: Vec::new(),
            verdict: None,
        };
        if let Depth::Whole { take_alerts } = depth {
            let ibm = survey.vendor == "IBM";
            let mut state = State::of(drive, ibm, &mut faults)?;
            state.alerts = alerts(drive, take_alerts, &mut faults)?;
            let taken = drive.take_attentions();
            state.attentions = taken.iter().map(ToString::to_string).collect();
            state.attentions.dedup();
            survey.verdict = Some(Verdict::of(&survey, &state, faults.0.is_empty()));
            survey.state = Some(state);
        }
        survey.faults = faults.0;
        Ok(survey)
    }

    /// The key wrapping public key, DER SubjectPublicKeyInfo.
    pub fn wrapping_key(&self) -> Option<Vec<u8>> {
        let encryption = self.state.as_ref()?.encryption.as_ref()?;
        encryption.key.as_ref()?.to_spki().ok()
    }
}

impl State {
    fn of<T: Transport>(
        drive: &mut Drive<T>,
        ibm: bool,
        faults: &mut Faults,
    ) -> Result<Self, SurveyError> {
        let mut state = Self::default();
        let ready = ready(drive, &mut state, faults)?;
        state.encryption = Encryption::of(drive, ibm, faults)?;
        let encrypts = state.encryption.is_some();
        if encrypts && let Some(status) = faults.answer(drive.encryption_status())? {
            if let Some(encryption) = &mut state.encryption {
                encryption.control = Some(control_word(status.control));
                encryption.managed_elsewhere |= matches!(
                    status.control,
                    ParametersControl::Library | ParametersControl::Management
                );
            }
            state.setting = Some(Setting {
                writing: match status.encryption {
                    EncryptionMode::Disable => "writes in clear",
                    EncryptionMode::External => "takes blocks that are encrypted already",
                    EncryptionMode::Encrypt => "encrypts",
                },
                reading: match status.decryption {
                    DecryptionMode::Disable => "reads no encrypted block",
                    DecryptionMode::Raw => "gives encrypted blocks as they are",
                    DecryptionMode::Decrypt => "decrypts, and reads no other block",
                    DecryptionMode::Mixed => "decrypts, and reads blocks in clear too",
                },
                scope: match status.key_scope {
                    Scope::Public => "of no host's own",
                    Scope::Local => "for one host",
                    Scope::AllNexus => "for all hosts",
                },
                check: match status.check_mode {
                    CheckMode::VendorDefault => "as the maker has it",
                    CheckMode::NoCheck => "nothing",
                    CheckMode::NotExternal => "that blocks were not encrypted elsewhere",
                    CheckMode::NotEncrypt => "that blocks were not encrypted here",
                },
                raw_disabled: status.raw_disabled,
                key_instance: status.key_instance,
                volume_encrypted: status.volume_encrypted,
                dki: dki(&status.kads),
                kads: kads(&status.kads),
            });
        }
        if ready {
            state.cartridge = Some(Cartridge::of(drive, encrypts, faults)?);
        }
        Ok(state)
    }
}

impl Encryption {
    /// None where the drive does not have security protocol 20h.
    fn of<T: Transport>(
        drive: &mut Drive<T>,
        ibm: bool,
        faults: &mut Faults,
    ) -> Result<Option<Self>, SurveyError> {
        // A drive that does not list its protocols may have this one all the same.
        let listed = faults
            .answer(drive.protocols())?
            .is_none_or(|list| list.contains(SecurityProtocol::TapeDataEncryption));
        if !listed {
            return Ok(None);
        }
        let Some(capabilities) = faults.answer(drive.capabilities())? else {
            return Ok(None);
        };
        let mut encryption = Self::of_capabilities(&capabilities);
        // Drives without the page take keys in clear, and nothing else.
        let formats = faults
            .answer(drive.key_formats())?
            .unwrap_or_else(|| KeyFormats::new([KeyFormat::Plain]));
        encryption.key_formats = formats.as_slice().iter().map(ToString::to_string).collect();
        let pages = faults.answer(drive.pages_in())?;
        let has_key = pages.is_some_and(|pages| pages.can_read(InPage::PublicKey))
            || formats.contains(KeyFormat::Wrapped);
        if has_key && let Some(key) = faults.answer(drive.wrapping_key())? {
            let again = faults.answer(drive.wrapping_key())?;
            encryption.wrapping_key_changes = again.is_some_and(|again| again != key);
            encryption.wrapping_key = key
                .to_spki()
                .ok()
                .map(|spki| format!("sha256:{}", KekHash::of_spki(&spki)));
            encryption.key = Some(key);
        }
        if let Some(management) = faults.answer(drive.management_capabilities())? {
            encryption.clears_on_demount = Some(management.clears_on_demount);
            encryption.lock = Some(management.lock);
            encryption.all_nexus = Some(management.all_nexus);
        }
        if ibm && let Some(method) = faults.answer(drive.ibm_encryption_method())?.flatten() {
            encryption.method = Some(method.to_string());
            encryption.managed_elsewhere |= method != EncryptionMethod::Application;
        }
        Ok(Some(encryption))
    }

    fn of_capabilities(capabilities: &Capabilities) -> Self {
        let gcm = capabilities.aes_256_gcm();
        let algorithm = gcm.or(capabilities.algorithms.first());
        let prevented = capabilities.configuration == ConfigurationAllowed::Prevented;
        let external =
            algorithm.is_some_and(|algorithm| algorithm.encrypts == CryptoSupport::ExternalControl);
        Self {
            aes_256_gcm: gcm.is_some_and(|gcm| gcm.encrypts != CryptoSupport::None),
            algorithm_index: algorithm.map_or(0, |algorithm| {
                let AlgorithmIndex(index) = algorithm.index;
                index
            }),
            engine: algorithm.map_or("nothing", |algorithm| match algorithm.encrypts {
                CryptoSupport::None => "nothing",
                CryptoSupport::Software => "the drive, in software",
                CryptoSupport::Hardware => "the drive, in hardware",
                CryptoSupport::ExternalControl => "the drive, under control of somebody else",
            }),
            max_eedks: algorithm.map_or(0, |algorithm| algorithm.max_eedks),
            max_eedk_len: algorithm.map_or(0, |algorithm| algorithm.max_eedk_len),
            max_ukad_len: algorithm.map_or(0, |algorithm| algorithm.max_ukad_len),
            max_akad_len: algorithm.map_or(0, |algorithm| algorithm.max_akad_len),
            configuration: match capabilities.configuration {
                ConfigurationAllowed::NotReported => "not said",
                ConfigurationAllowed::Allowed => "a host may",
                ConfigurationAllowed::Prevented => "a host may not",
            },
            managed_elsewhere: prevented || external,
            ..Self::default()
        }
    }
}

impl Cartridge {
    fn of<T: Transport>(
        drive: &mut Drive<T>,
        encrypts: bool,
        faults: &mut Faults,
    ) -> Result<Self, SurveyError> {
        let mut cartridge = Self::default();
        if let Some((data, page)) =
            faults.answer(drive.device_configuration(ModeValues::Current))?
        {
            cartridge.write_protected = Some(data.write_protected() || page.cartridge_protected());
            cartridge.software_write_protect = Some(page.software_write_protect());
            if page.saveable()
                && let Some((_, saved)) =
                    faults.answer(drive.device_configuration(ModeValues::Saved))?
            {
                cartridge.saved_software_write_protect = Some(saved.software_write_protect());
            }
        }
        cartridge.block = faults
            .answer(drive.position())?
            .and_then(|position| position.object);
        if encrypts && let Some(next) = faults.answer(drive.next_block())? {
            cartridge.next_block = Some(NextBlock {
                status: match next.encryption {
                    EncryptionStatus::Incapable => "unknown: the drive cannot tell",
                    EncryptionStatus::NotNow => "unknown: the drive cannot tell now",
                    EncryptionStatus::NotABlock => {
                        "unknown: a filemark or the end; the tape is not moved"
                    }
                    EncryptionStatus::NotEncrypted => "not encrypted",
                    EncryptionStatus::UnsupportedAlgorithm => {
                        "encrypted, with an algorithm that the drive does not have"
                    }
                    EncryptionStatus::Decryptable => "encrypted, and the drive has its key",
                    EncryptionStatus::KeyMissing => {
                        "encrypted, and the drive does not have its key"
                    }
                },
                dki: dki(&next.kads),
                kads: kads(&next.kads),
            });
        }
        let mut text = |id| -> Result<Option<String>, SurveyError> {
            let attribute = faults.answer(drive.attribute(id))?.flatten();
            Ok(attribute
                .map(|attribute| attribute.text())
                .filter(|text| !text.is_empty()))
        };
        cartridge.barcode = text(AttributeId::BARCODE)?;
        cartridge.medium_serial = text(AttributeId::MEDIUM_SERIAL)?;
        let mut number = |id| -> Result<Option<u64>, SurveyError> {
            let attribute = faults.answer(drive.attribute(id))?.flatten();
            Ok(attribute.and_then(|attribute| attribute.number()))
        };
        cartridge.memory = number(AttributeId::CAPACITY)?;
        cartridge.memory_free = number(AttributeId::SPACE_REMAINING)?;
        // All ones: there is none.
        cartridge.first_encrypted = number(AttributeId::FIRST_ENCRYPTED)?.filter(is_block);
        cartridge.first_unencrypted = number(AttributeId::FIRST_UNENCRYPTED)?.filter(is_block);
        Ok(cartridge)
    }
}

/// Whether a cartridge can be asked about; puts in words how the drive is. A drive has one unit
/// attention after another when much has happened.
fn ready<T: Transport>(
    drive: &mut Drive<T>,
    state: &mut State,
    faults: &mut Faults,
) -> Result<bool, SurveyError> {
    for _ in 0..=MAX_ATTENTIONS {
        let readiness = match drive.test_unit_ready() {
            Err(DriveError::Transport { asked, source }) => {
                return Err(DriveError::Transport { asked, source }.into());
            }
            Err(error) => {
                state.medium = "not ready".to_owned();
                faults.0.push(error.to_string());
                return Ok(false);
            }
            Ok(readiness) => readiness,
        };
        state.medium = match readiness {
            Readiness::Attention(_) => continue,
            Readiness::Ready => "loaded".to_owned(),
            Readiness::NotReady(NotReady::NoMedium) => "none".to_owned(),
            Readiness::NotReady(NotReady::Becoming) => "loading, or winding".to_owned(),
            Readiness::NotReady(NotReady::Unloaded) => "in, but not loaded".to_owned(),
            Readiness::NotReady(NotReady::Other(sense)) => sense.to_string(),
        };
        return Ok(readiness == Readiness::Ready);
    }
    state.medium = "unknown: one unit attention after another".to_owned();
    Ok(false)
}

/// Flags from page 12h, which stay up for others, else from page 2Eh where that is wanted.
fn alerts<T: Transport>(
    drive: &mut Drive<T>,
    take: bool,
    faults: &mut Faults,
) -> Result<Option<Vec<Alert>>, SurveyError> {
    let stays = faults
        .answer(drive.log_pages())?
        .is_some_and(|pages| pages.contains(TapeAlerts::RESPONSE_PAGE));
    let flags = if stays {
        faults.answer(drive.tape_alert_response())?
    } else if take {
        faults.answer(drive.take_tape_alerts())?
    } else {
        None
    };
    Ok(flags.map(|TapeAlerts(flags)| {
        flags
            .into_iter()
            .map(|flag| Alert {
                flag,
                meaning: TapeAlerts::meaning(flag),
            })
            .collect()
    }))
}

/// What went wrong on the way, each once.
#[derive(Debug, Default)]
struct Faults(Vec<String>);

impl Faults {
    /// The answer; none where the drive does not have it, or gave a wrong one. A drive that does
    /// not answer at all is not asked on.
    fn answer<A>(&mut self, answer: Result<A, DriveError>) -> Result<Option<A>, SurveyError> {
        match answer {
            Ok(answer) => Ok(Some(answer)),
            Err(DriveError::Transport { asked, source }) => {
                Err(SurveyError::Drive(DriveError::Transport { asked, source }))
            }
            Err(error) if error.is_unsupported() => Ok(None),
            Err(error) => {
                let told = error.to_string();
                if !self.0.contains(&told) {
                    self.0.push(told);
                }
                Ok(None)
            }
        }
    }
}

/// Why a drive could not be surveyed.
#[derive(Debug, thiserror::Error)]
pub enum SurveyError {
    /// Another device.
    #[error("{device} is no tape drive but a device of type {got:02X}h ({product})")]
    NotATape {
        /// The device.
        device: String,
        /// PERIPHERAL DEVICE TYPE.
        got: u8,
        /// What it calls itself.
        product: String,
    },
    /// It does not answer.
    #[error(transparent)]
    Drive(#[from] DriveError),
}

impl SurveyError {
    /// What the way to the drive says, where that is it.
    pub const fn transport(&self) -> Option<&TransportError> {
        match self {
            Self::Drive(DriveError::Transport { source, .. }) => Some(source),
            Self::Drive(_) | Self::NotATape { .. } => None,
        }
    }
}

const fn control_word(control: ParametersControl) -> &'static str {
    match control {
        ParametersControl::NotReported => "not said",
        ParametersControl::NotExclusive => "anybody, a host too",
        ParametersControl::Host => "hosts alone",
        ParametersControl::Library => "the library alone",
        ParametersControl::Management => "a management interface alone",
    }
}

fn dki(kads: &Kads) -> Option<DataKeyId> {
    kads.of(KadType::Authenticated)
        .find_map(|data| DataKeyId::try_from(data).ok())
}

fn kads(kads: &Kads) -> Vec<KadView> {
    kads.as_slice()
        .iter()
        .map(|kad| {
            let data = kad.data();
            let printable = data.iter().all(|byte| (b' '..=b'~').contains(byte));
            KadView {
                kind: match kad.kind() {
                    KadType::Unauthenticated => "U-KAD",
                    KadType::Authenticated => "A-KAD",
                    KadType::Nonce => "nonce",
                    KadType::Metadata => "M-KAD",
                    KadType::WrappedKey => "WK-KAD",
                },
                hex: hex::encode(data),
                text: (printable && !data.is_empty())
                    .then(|| String::from_utf8_lossy(data).into_owned()),
            }
        })
        .collect()
}

/// Attributes of 6 and of 8 bytes say "none" by all ones.
const fn is_block(number: &u64) -> bool {
    !matches!(*number, u64::MAX | 0xffff_ffff_ffff)
}

const MAX_ATTENTIONS: usize = 4;

#[cfg(test)]
mod tests;
