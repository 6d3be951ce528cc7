//! The software drive as a host sees it: security protocols 00h and 20h.
//!
//! It answers as a real drive does, with the pages and the sense codes of SSC-4, for one
//! initiator. What it cannot do it refuses: raw reading, external mode, supplemental keys, U-KADs
//! and clearing on reservations, as it has none.

mod medium;
mod tape;

use aws_lc_rs::rand;
use secrecy::SecretBox;

use super::identity::{DriveKind, SoftDrive};
use crate::{
    key::{DataKeyId, Eedk},
    t10::{
        Algorithm, AlgorithmIndex, Authenticated, Capabilities, Cdb, CheckMode, Clearing,
        ConfigurationAllowed, CryptoSupport, DecryptionMode, Direction, EncryptionMode,
        EncryptionStatus, ExternalControl, ExternalModeSupport, InPage, KadFormat, KadSupport,
        KadType, Kads, KeyField, ManagementCapabilities, NextBlock, NonceSupport, OutPage,
        PageError, PageList, ParametersControl, PositionSupport, ProtocolList, RandomNumber,
        RawDecryption, RawModeSupport, Scope, SecurityAlgorithm, SecurityProtocol, Sense,
        SetDataEncryption, Status,
    },
};

pub use medium::{Medium, MediumKey};
pub(in crate::softdrive) use tape::{Next, Place};

/// A software drive with what it has been told, and perhaps a cartridge in it.
#[derive(Debug)]
pub struct Target {
    drive: SoftDrive,
    medium: Option<Medium>,
    parameters: Option<Parameters>,
    key_instance: u32,
    control: ParametersControl,
    place: Option<Place>,
    on_tape: bool,
}

impl Target {
    /// A drive as it is after power on: no cartridge, no key.
    pub fn new(drive: SoftDrive) -> Self {
        Self {
            drive,
            medium: None,
            parameters: None,
            key_instance: 0,
            control: ParametersControl::NotExclusive,
            place: None,
            on_tape: false,
        }
    }

    /// Who the drive is.
    pub fn drive(&self) -> &SoftDrive {
        &self.drive
    }

    /// Puts a cartridge in, in place of the one that was.
    pub fn load(&mut self, medium: Medium) {
        self.unload();
        self.medium = Some(medium);
    }

    /// Takes the cartridge out, and forgets the key where that was asked for.
    pub fn unload(&mut self) -> Option<Medium> {
        if let Some(parameters) = &self.parameters
            && parameters.clearing.on_demount
        {
            self.forget();
        }
        self.place = None;
        self.medium.take()
    }

    /// Forgets the key, as a reset of the drive does.
    pub fn forget(&mut self) {
        if self.parameters.take().is_some() {
            self.key_instance = self.key_instance.wrapping_add(1);
        }
    }

    /// The cartridge in the drive.
    pub fn medium(&self) -> Option<&Medium> {
        self.medium.as_ref()
    }

    /// The data key that is set, for writing and reading cartridges.
    pub fn data_key(&self) -> Option<&SecretBox<[u8; 32]>> {
        self.parameters
            .as_ref()
            .and_then(|parameters| parameters.key.as_ref())
    }

    /// Names of the data key that is set, as a new cartridge is to carry them.
    pub fn key_names(&self) -> Option<&MediumKey> {
        self.parameters
            .as_ref()
            .and_then(|parameters| parameters.names.as_ref())
    }

    /// Counts the parameter lists that were accepted, and every time that a key was forgotten.
    pub fn key_instance(&self) -> u32 {
        self.key_instance
    }

    /// SECURITY PROTOCOL IN: a page, cut to the allocation length.
    ///
    /// # Errors
    ///
    /// The sense data of the refusal.
    pub fn spin(&self, cdb: &[u8]) -> Result<Vec<u8>, Sense> {
        let cdb = command(cdb, Direction::In)?;
        let mut page = match cdb.protocol {
            SecurityProtocol::Information if cdb.page == 0 => {
                ProtocolList::new(SecurityProtocol::ALL).encode()
            }
            SecurityProtocol::Information => return Err(Sense::INVALID_FIELD_IN_CDB),
            SecurityProtocol::TapeDataEncryption => self.page(cdb.page)?,
        };
        page.truncate(usize::try_from(cdb.length).unwrap_or(usize::MAX));
        Ok(page)
    }

    /// SECURITY PROTOCOL OUT: sets or takes away the key. Nothing changes where it is refused.
    ///
    /// # Errors
    ///
    /// The sense data of the refusal.
    pub fn spout(&mut self, cdb: &[u8], data: &[u8]) -> Result<(), Sense> {
        let cdb = command(cdb, Direction::Out)?;
        if cdb.protocol != SecurityProtocol::TapeDataEncryption {
            return Err(Sense::INVALID_FIELD_IN_CDB);
        }
        if usize::try_from(cdb.length) != Ok(data.len()) {
            return Err(Sense::PARAMETER_LIST_LENGTH);
        }
        let page = OutPage::try_from(cdb.page).map_err(|_| Sense::INVALID_FIELD_IN_CDB)?;
        if !self.by_host() {
            return Err(Sense::CONFIGURATION_PREVENTED);
        }
        match page {
            OutPage::SetDataEncryption => {
                let page = SetDataEncryption::decode(data).map_err(|error| refusal(&error))?;
                self.set(page)
            }
        }
    }

    fn page(&self, code: u16) -> Result<Vec<u8>, Sense> {
        let page = InPage::try_from(code)
            .ok()
            .filter(|page| self.pages().contains(page))
            .ok_or(Sense::INVALID_FIELD_IN_CDB)?;
        Ok(match page {
            InPage::InSupport => PageList::of_in(&self.pages()).encode(),
            InPage::OutSupport => PageList::of_out(OutPage::ALL).encode(),
            InPage::Capabilities => self.capabilities().encode(),
            InPage::KeyFormats => self.drive.kind().key_formats().encode(),
            InPage::Management => ManagementCapabilities {
                lock: self.on_tape,
                ..MANAGEMENT
            }
            .encode(),
            InPage::Status => self.status()?.encode(),
            InPage::NextBlock => self.next_block()?.encode(),
            InPage::Random => {
                let mut number = [0; 32];
                rand::fill(&mut number).map_err(|_| Sense::INTERNAL_FAILURE)?;
                RandomNumber(number).encode()
            }
            InPage::PublicKey => self
                .drive
                .public_key()
                .map_err(|_| Sense::INTERNAL_FAILURE)?
                .encode(),
        })
    }

    /// The pages that can be read: all but the public key, where nothing is wrapped under it.
    fn pages(&self) -> Vec<InPage> {
        let wraps = self.drive.kind() != DriveKind::LtoPlain;
        InPage::ALL
            .iter()
            .copied()
            .filter(|page| wraps || *page != InPage::PublicKey)
            .collect()
    }

    fn capabilities(&self) -> Capabilities {
        let max_eedks = self.drive.kind().max_eedks();
        let loaded = self.medium.is_some();
        Capabilities {
            external_control: if self.by_host() {
                ExternalControl::NotCapable
            } else {
                ExternalControl::Capable
            },
            configuration: if self.by_host() {
                ConfigurationAllowed::Allowed
            } else {
                ConfigurationAllowed::Prevented
            },
            algorithms: vec![Algorithm {
                index: INDEX,
                valid_for_volume: loaded,
                supplemental_keys: false,
                authenticates: true,
                distinguishes: true,
                decrypts: CryptoSupport::Software,
                encrypts: CryptoSupport::Software,
                valid_at_position: if loaded {
                    PositionSupport::Valid
                } else {
                    PositionSupport::NotApplicable
                },
                nonce: NonceSupport::Drive,
                kad_format: true,
                volume_status: true,
                ukad_fixed: false,
                akad_fixed: true,
                max_ukad_len: self.max_ukad(),
                max_akad_len: AKAD_LEN,
                key_len: 32,
                decryption_kad: KadSupport::Allowed,
                external_mode: ExternalModeSupport::NotAllowed,
                raw_mode: RawModeSupport::NotAllowed,
                records_mode: false,
                max_eedks,
                max_supplemental_keys: 0,
                max_eedk_len: if max_eedks > 0 { MAX_EEDK_LEN } else { 0 },
                algorithm: SecurityAlgorithm::AES_GCM_128,
            }],
        }
    }

    fn status(&self) -> Result<Status, Sense> {
        let volume_encrypted = match &self.place {
            Some(place) => place.encrypted,
            None => matches!(self.medium, Some(Medium::Encrypted(_))),
        };
        let mut status = Status {
            nexus_scope: Scope::Public,
            key_scope: Scope::Public,
            encryption: EncryptionMode::Disable,
            decryption: DecryptionMode::Disable,
            algorithm: AlgorithmIndex(0),
            key_instance: self.key_instance,
            control: self.control,
            volume_encrypted,
            check_mode: CheckMode::VendorDefault,
            raw_disabled: true,
            kad_format: KadFormat::Unspecified,
            supplemental_keys: 0,
            kads: Kads::default(),
        };
        if let Some(parameters) = &self.parameters {
            status.nexus_scope = parameters.scope;
            status.key_scope = parameters.scope;
            status.encryption = parameters.encryption;
            status.decryption = parameters.decryption;
            status.algorithm = INDEX;
            status.check_mode = parameters.check_mode;
            status.kad_format = parameters.kad_format;
            status.kads = parameters.kads.clone();
        }
        Ok(status)
    }

    fn next_block(&self) -> Result<NextBlock, Sense> {
        let medium = self.medium.as_ref().ok_or(Sense::MEDIUM_NOT_PRESENT)?;
        if let Some(place) = &self.place {
            return Ok(place.next_block());
        }
        let (encryption, algorithm, kads) = match medium {
            Medium::Blank => (EncryptionStatus::NotABlock, 0, Kads::default()),
            Medium::Plain => (EncryptionStatus::NotEncrypted, 0, Kads::default()),
            Medium::Encrypted(names) => {
                let ours = self.key_names().is_some_and(|set| set.dki == names.dki);
                let encryption = if ours {
                    EncryptionStatus::Decryptable
                } else {
                    EncryptionStatus::KeyMissing
                };
                (encryption, 1, names.kads(Authenticated::NotAttempted)?)
            }
        };
        Ok(NextBlock {
            position: 0,
            encryption,
            algorithm: AlgorithmIndex(algorithm),
            external: false,
            raw_disabled: matches!(medium, Medium::Encrypted(_)),
            kad_format: KadFormat::Unspecified,
            kads,
        })
    }

    fn set(&mut self, page: SetDataEncryption) -> Result<(), Sense> {
        let SetDataEncryption {
            scope,
            lock,
            check_mode,
            raw_decryption,
            supplemental,
            clearing,
            encryption,
            decryption,
            algorithm,
            key,
            kad_format,
            kads,
        } = page;
        let reservations = clearing.on_reservation_preempted || clearing.on_reservation_lost;
        let possible = scope != Scope::Public
            && (!lock || self.on_tape)
            && raw_decryption != RawDecryption::Allow
            && !supplemental
            && !reservations
            && (!clearing.on_demount || self.medium.is_some())
            && encryption != EncryptionMode::External
            && decryption != DecryptionMode::Raw
            && algorithm == INDEX
            && self.drive.kind().key_formats().contains(key.format());
        if !possible {
            return Err(Sense::INVALID_FIELD_IN_PARAMETER_LIST);
        }
        let off = encryption == EncryptionMode::Disable && decryption == DecryptionMode::Disable;
        let (key, names) = if off {
            if !kads.as_slice().is_empty() {
                return Err(Sense::INVALID_FIELD_IN_PARAMETER_LIST);
            }
            (None, None)
        } else {
            let names = if self.on_tape {
                self.fit(&kads)?;
                None
            } else {
                self.names(&kads)?
            };
            // A cartridge that does not say which key it was written with is lost.
            if encryption == EncryptionMode::Encrypt && names.is_none() && !self.on_tape {
                return Err(Sense::INVALID_FIELD_IN_PARAMETER_LIST);
            }
            (Some(self.unwrap(key)?), names)
        };
        self.parameters = Some(Parameters {
            scope,
            check_mode,
            clearing,
            encryption,
            decryption,
            kad_format,
            lock,
            key,
            names,
            kads,
        });
        self.key_instance = self.key_instance.wrapping_add(1);
        Ok(())
    }

    fn unwrap(&self, key: KeyField) -> Result<SecretBox<[u8; 32]>, Sense> {
        match key {
            KeyField::None => Err(Sense::INVALID_FIELD_IN_PARAMETER_LIST),
            KeyField::Plain(key) => Ok(key),
            KeyField::Wrapped(key) => self
                .drive
                .unwrap_key_field(&key)
                .map_err(|_| Sense::UNABLE_TO_DECRYPT_PARAMETER_LIST),
        }
    }

    /// What the descriptors name: an A-KAD with the DKi, and the EEDKs for the cartridge.
    fn names(&self, kads: &Kads) -> Result<Option<MediumKey>, Sense> {
        let mut dki = None;
        let mut eedks = Vec::new();
        for kad in kads.as_slice() {
            match kad.kind() {
                KadType::Authenticated => dki = Some(DataKeyId::try_from(kad.data()).ok()),
                // A real drive does not look into them; this one keeps only what it can read back.
                KadType::WrappedKey => eedks.push(Eedk::decode(kad.data()).ok()),
                KadType::Unauthenticated | KadType::Nonce | KadType::Metadata => {
                    return Err(Sense::INVALID_FIELD_IN_PARAMETER_LIST);
                }
            }
        }
        let eedks: Option<Vec<Eedk>> = eedks.into_iter().collect();
        match (dki, eedks) {
            (None, Some(eedks)) if eedks.is_empty() => Ok(None),
            (Some(Some(dki)), Some(eedks))
                if eedks.len() <= usize::from(self.drive.kind().max_eedks())
                    && eedks.iter().all(|eedk| eedk.dki() == dki) =>
            {
                Ok(Some(MediumKey { dki, eedks }))
            }
            _ => Err(Sense::INVALID_FIELD_IN_PARAMETER_LIST),
        }
    }
}

/// What the drive has been told. `Debug` shows no key.
#[derive(Debug)]
pub(in crate::softdrive) struct Parameters {
    scope: Scope,
    pub(in crate::softdrive) check_mode: CheckMode,
    clearing: Clearing,
    pub(in crate::softdrive) encryption: EncryptionMode,
    pub(in crate::softdrive) decryption: DecryptionMode,
    kad_format: KadFormat,
    pub(in crate::softdrive) lock: bool,
    key: Option<SecretBox<[u8; 32]>>,
    names: Option<MediumKey>,
    pub(in crate::softdrive) kads: Kads,
}

fn command(bytes: &[u8], expected: Direction) -> Result<Cdb, Sense> {
    let cdb = Cdb::decode(bytes).map_err(|error| match error {
        PageError::OperationCode { .. } => Sense::INVALID_COMMAND,
        _ => Sense::INVALID_FIELD_IN_CDB,
    })?;
    if cdb.direction == expected {
        Ok(cdb)
    } else {
        Err(Sense::INVALID_COMMAND)
    }
}

fn refusal(error: &PageError) -> Sense {
    match error {
        PageError::Truncated { .. } | PageError::TrailingBytes { .. } => {
            Sense::PARAMETER_LIST_LENGTH
        }
        // The other errors all name a field.
        _ => Sense::INVALID_FIELD_IN_PARAMETER_LIST,
    }
}

/// As on most drives.
const INDEX: AlgorithmIndex = AlgorithmIndex(1);

/// What [`Target::spout`] takes.
const MANAGEMENT: ManagementCapabilities = ManagementCapabilities {
    lock: false,
    clears_on_demount: true,
    clears_on_reservation_preempted: false,
    clears_on_reservation_lost: false,
    all_nexus: true,
    local: true,
    public: false,
};

/// [`DataKeyId::LEN`] as the page has it.
const AKAD_LEN: u16 = 12;

/// [`Eedk::MAX_LEN`] as the page has it.
const MAX_EEDK_LEN: u16 = 896;

#[cfg(test)]
mod tests;
