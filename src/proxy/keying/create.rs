//! A new data key for a cartridge that is written from load point.
//!
//! ```text
//! asked for -> looked at -> history -> EEDKs stored, read back -> set -> page 0020h -> confirmed
//! ```
//!
//! The drive refuses to write all the while. Where a step fails, the key is taken away, the
//! cartridge's memory gets back what it held, and the server is told.

use uuid::Uuid;

use super::act::Made;
use super::cartridge::Cartridge;
use super::checks::Able;
use super::error::JobRefused;
use super::history::{Held, History};
use super::home::{Home, Memory};
use super::parameters::Parameters;
use super::protect::{Confirmed, confirm};
use super::report::Keyed;
use super::resolve::spki;
use super::seams::{Keys, Unit, means_absent, still_wanted};
use super::story::{JobRequest, Rules};
use crate::api::{
    Base64, ConfirmRequest, CreateAnswer, CreateRequest, DriveInRequest, EedkInAnswer, MAX_EEDKS,
};
use crate::key::{DataKeyId, Eedk, KekRef};
use crate::scsi::DriveError;
use crate::t10::{AlgorithmIndex, KadType, SetDataEncryption};

/// What a create needs to know.
pub(super) struct Create<'a> {
    pub(super) rules: &'a Rules,
    pub(super) able: &'a Able,
    pub(super) cartridge: &'a Cartridge,
    pub(super) job: &'a JobRequest,
    pub(super) history: &'a History,
}

/// What was made.
#[derive(Debug)]
pub(super) struct Created {
    pub(super) confirmed: Confirmed,
    pub(super) keyed: Keyed,
    pub(super) made: Made,
    pub(super) warnings: Vec<String>,
}

/// EEDKs of fewer bytes than any: a drive that keeps no longer ones keeps none of ours.
const SHORTEST_EEDK: usize = 320;

impl Create<'_> {
    /// Makes, stores, sets and confirms.
    pub(super) fn run(
        &self,
        unit: &mut Unit,
        keys: &mut dyn Keys,
        kek1: Option<KekRef>,
        kek2: Option<KekRef>,
    ) -> Result<Created, JobRefused> {
        let mut request = CreateRequest {
            job: self.job.name.clone(),
            request_id: Uuid::now_v7(),
            drive: DriveInRequest {
                serial: self.rules.serial.clone(),
                public_key: spki(self.able)?,
                stores_eedks: self.able.keeps(1, SHORTEST_EEDK),
                session_key: None,
            },
            volser: self.job.volser.clone(),
            kek1,
            kek2,
        };
        still_wanted(keys)?;
        let answer = keys.create(&request)?;
        let dki = answer.dki;
        let made = self.with(unit, keys, &mut request, answer);
        made.map_err(|(why, memory)| {
            let trouble = self.undo(unit, keys, &request, dki, &memory);
            (*why).then(trouble)
        })
    }

    /// With the answer; an error brings what the cartridge's memory holds by now.
    fn with(
        &self,
        unit: &mut Unit,
        keys: &mut dyn Keys,
        request: &mut CreateRequest,
        mut answer: CreateAnswer,
    ) -> Result<Created, (Box<JobRefused>, Memory)> {
        let old = &self.cartridge.memory;
        let unchanged = |why: JobRefused| (Box::new(why), old.clone());
        let eedks = eedks_of(&answer.eedks, answer.dki).map_err(unchanged)?;
        let longest = eedks.iter().map(Vec::len).max().unwrap_or_default();
        if request.drive.stores_eedks && !self.able.keeps(eedks.len(), longest) {
            // The same request gets the same data key, and now a list without them.
            request.drive.stores_eedks = false;
            answer = self.again(keys, request, answer.dki).map_err(unchanged)?;
        }
        let dki = answer.dki;
        let parameters = Parameters::of(answer.spout.as_ref(), dki, self.able, self.rules)
            .map_err(|why| unchanged(JobRefused::Answer(why)))?;
        let kept_by_drive = !parameters.eedks.is_empty();
        if kept_by_drive && parameters.eedks != eedks {
            let why = "its SPOUT list has other EEDKs than the answer itself".to_owned();
            return Err(unchanged(JobRefused::Answer(why)));
        }
        still_wanted(keys).map_err(|why| unchanged(why.into()))?;
        self.keep_history(request).map_err(unchanged)?;
        let mut warnings = Vec::new();
        let (mut home, memory) = if kept_by_drive {
            (Home::Drive, old.clone())
        } else {
            self.cartridge.still_in(unit).map_err(unchanged)?;
            match self.store(unit, &eedks) {
                Ok(stored) => stored,
                // Half of it may be there.
                Err(why) => {
                    let left = Memory::read(unit).unwrap_or_else(|_| old.unknown());
                    return Err((Box::new(why), left));
                }
            }
        };
        let changed = |why: JobRefused| (Box::new(why), memory.clone());
        self.cartridge.still_in(unit).map_err(changed)?;
        still_wanted(keys).map_err(|why| changed(why.into()))?;
        let (confirmed, status) =
            set(unit, &parameters, dki, self.able.algorithm.index).map_err(changed)?;
        if kept_by_drive && !status.kads.of(KadType::WrappedKey).eq(eedks.iter()) {
            home = Home::Catalog(
                "the drive was given them to keep, and does not show them (page 0020h)".to_owned(),
            );
        }
        if let Home::Catalog(why) = &home {
            warnings.push(format!(
                "the EEDKs of {} are in the key server's catalog alone: {why}. Whoever has the \
                 cartridge and no access to that catalog cannot read it",
                self.job.volser
            ));
        }
        self.told(keys, request, dki, true)
            .map_err(|why| changed(why.into()))?;
        Ok(Created {
            keyed: Keyed {
                dki,
                created: true,
                labels: answer
                    .eedks
                    .iter()
                    .filter_map(|eedk| eedk.label.clone())
                    .collect(),
                key_format: parameters.format.to_string(),
                key_instance: confirmed.key_instance(),
                eedks: home,
                request: request.request_id.to_string(),
            },
            confirmed,
            made: Made {
                memory,
                unused: self.confirm_of(request, dki, false),
            },
            warnings,
        })
    }

    fn again(
        &self,
        keys: &mut dyn Keys,
        request: &CreateRequest,
        dki: DataKeyId,
    ) -> Result<CreateAnswer, JobRefused> {
        let answer = keys.create(request)?;
        if answer.dki == dki {
            return Ok(answer);
        }
        Err(JobRefused::Answer(format!(
            "asked again for data key {dki}, it gives {}",
            answer.dki
        )))
    }

    fn keep_history(&self, request: &CreateRequest) -> Result<(), JobRefused> {
        if !self.cartridge.is_keyed() {
            return Ok(());
        }
        let named = self.cartridge.encrypted.as_ref();
        self.history.keep(&Held {
            volser: self.job.volser.to_string(),
            drive: self.rules.serial.to_string(),
            medium_serial: self.cartridge.medium_serial.as_deref(),
            named: named.map(|encrypted| hex::encode_upper(&encrypted.named)),
            memory: Base64(self.cartridge.memory.bytes()),
            kept: self.cartridge.kept.iter().cloned().map(Base64).collect(),
            request: request.request_id.to_string(),
        })?;
        Ok(())
    }

    /// Stores EEDKs in the cartridge's memory. Where they cannot be there, none of ours are.
    fn store(&self, unit: &mut Unit, eedks: &[Vec<u8>]) -> Result<(Home, Memory), JobRefused> {
        let old = &self.cartridge.memory;
        let why = match old.replace(unit, eedks) {
            Ok(memory) => return Ok((Home::Memory, memory)),
            Err(super::home::NotStored::Drive(error)) if !means_absent(&error) => {
                return Err(error.into());
            }
            Err(why) => why.to_string(),
        };
        // Half of the new ones, or the old ones, would be of no use to anybody.
        let left = Memory::read(unit)?;
        let none = Memory::default();
        match left.overwrite(unit, &none) {
            Ok(()) => Ok((Home::Catalog(why), none)),
            Err(_) => Ok((Home::Catalog(why), Memory::read(unit)?)),
        }
    }

    fn told(
        &self,
        keys: &mut dyn Keys,
        request: &CreateRequest,
        dki: DataKeyId,
        stored: bool,
    ) -> Result<(), super::seams::KeysError> {
        keys.confirm(&self.confirm_of(request, dki, stored))
            .map(drop)
    }

    fn confirm_of(&self, request: &CreateRequest, dki: DataKeyId, stored: bool) -> ConfirmRequest {
        ConfirmRequest {
            request_id: request.request_id,
            serial: self.rules.serial.clone(),
            dki,
            stored,
        }
    }

    /// As it was before; what could not be set right.
    fn undo(
        &self,
        unit: &mut Unit,
        keys: &mut dyn Keys,
        request: &CreateRequest,
        dki: DataKeyId,
        memory: &Memory,
    ) -> Vec<String> {
        let mut trouble = Vec::new();
        if let Err(error) = take_away(unit, self.able.algorithm.index) {
            trouble.push(format!("the key could not be taken away again: {error}"));
        }
        let old = &self.cartridge.memory;
        if let Err(error) = self.cartridge.still_in(unit) {
            trouble.push(format!(
                "the cartridge's memory was left as it is, as another may be in: {error}"
            ));
        } else if memory != old
            && let Err(error) = memory.overwrite(unit, old)
        {
            trouble.push(format!(
                "the cartridge's memory could not be given back what it held, which is in the \
                 host's history: {error}"
            ));
        }
        if let Err(error) = self.told(keys, request, dki, false) {
            trouble.push(format!(
                "the key server could not be told that {dki} is not in use: {error}"
            ));
        }
        trouble
    }
}

/// Sets the key, and has the drive say so.
pub(super) fn set(
    unit: &mut Unit,
    parameters: &Parameters,
    dki: DataKeyId,
    algorithm: AlgorithmIndex,
) -> Result<(Confirmed, crate::t10::Status), JobRefused> {
    let before = unit.encryption_status()?.key_instance;
    unit.set_encryption(parameters.list())?;
    confirm(unit, before, dki, algorithm)
}

/// Takes the drive's key away.
pub(super) fn take_away(unit: &mut Unit, algorithm: AlgorithmIndex) -> Result<(), DriveError> {
    use secrecy::ExposeSecret as _;
    let list = SetDataEncryption::disable(algorithm).encode();
    unit.set_encryption(list.expose_secret())
}

/// The EEDKs of an answer: one or two, all of this data key.
pub(super) fn eedks_of(eedks: &[EedkInAnswer], dki: DataKeyId) -> Result<Vec<Vec<u8>>, JobRefused> {
    if eedks.is_empty() || eedks.len() > MAX_EEDKS {
        return Err(JobRefused::Answer(format!(
            "it has {} EEDKs, expected 1 or {MAX_EEDKS}",
            eedks.len()
        )));
    }
    for (index, eedk) in eedks.iter().enumerate() {
        let read = Eedk::decode(&eedk.eedk.0)
            .map_err(|error| JobRefused::Answer(format!("its EEDK {}: {error}", index + 1)))?;
        if read.dki() != dki {
            return Err(JobRefused::Answer(format!(
                "its EEDK {} is of data key {}, expected {dki}",
                index + 1,
                read.dki()
            )));
        }
    }
    Ok(eedks.iter().map(|eedk| eedk.eedk.0.clone()).collect())
}
