//! EEDKs of a rekey that a cartridge has not got yet.
//!
//! ```text
//! history -> stored in its memory in place of the old ones, read back -> confirmed
//! ```
//!
//! The cartridge is read by its old ones as well, so what fails here fails no job: the memory gets
//! back what it held, and the next mount tries again.

use super::cartridge::Cartridge;
use super::create::eedks_of;
use super::history::{Held, History};
use super::home::Memory;
use super::seams::{Keys, Unit, still_wanted};
use super::story::{JobRequest, Rules};
use crate::api::{Base64, ConfirmRequest, NewerEedks};
use crate::key::DataKeyId;

/// What storing them needs to know.
pub(super) struct Renew<'a> {
    pub(super) rules: &'a Rules,
    pub(super) cartridge: &'a Cartridge,
    pub(super) job: &'a JobRequest,
    pub(super) history: &'a History,
    pub(super) dki: DataKeyId,
}

impl Renew<'_> {
    /// Stores them, and says so to the server.
    ///
    /// # Errors
    /// Why they are not on the cartridge, or why that is not known to the server, in words.
    pub(super) fn run(
        &self,
        unit: &mut Unit,
        keys: &mut dyn Keys,
        newer: &NewerEedks,
    ) -> Result<(), String> {
        let eedks = eedks_of(&newer.eedks, self.dki).map_err(|why| why.to_string())?;
        if !self.cartridge.kept.is_empty() {
            return Err(
                "this drive keeps EEDKs with the blocks, where they cannot be replaced".to_owned(),
            );
        }
        let named = self.cartridge.encrypted.as_ref();
        if named.and_then(super::cartridge::Encrypted::dki) != Some(self.dki) {
            return Err("the cartridge's blocks do not name that data key".to_owned());
        }
        let there: Vec<Vec<u8>> = self
            .cartridge
            .memory
            .eedks()
            .iter()
            .flatten()
            .map(crate::key::Eedk::encode)
            .collect();
        // Where they are there already, only the confirm was lost.
        if there != eedks {
            still_wanted(keys).map_err(|why| why.to_string())?;
            self.store(unit, newer, &eedks)?;
        }
        keys.confirm(&ConfirmRequest {
            request_id: newer.request_id,
            serial: self.rules.serial.clone(),
            dki: self.dki,
            stored: true,
        })
        .map(drop)
        .map_err(|error| format!("they are stored, and the key server could not be told: {error}"))
    }

    fn store(&self, unit: &mut Unit, newer: &NewerEedks, eedks: &[Vec<u8>]) -> Result<(), String> {
        let words = |error: &dyn std::fmt::Display| error.to_string();
        self.cartridge
            .still_in(unit)
            .map_err(|error| words(&error))?;
        let named = self.cartridge.encrypted.as_ref();
        let held = Held {
            volser: self.job.volser.to_string(),
            drive: self.rules.serial.to_string(),
            medium_serial: self.cartridge.medium_serial.as_deref(),
            named: named.map(|encrypted| hex::encode_upper(&encrypted.named)),
            memory: Base64(self.cartridge.memory.bytes()),
            kept: Vec::new(),
            request: newer.request_id.to_string(),
        };
        self.history.keep(&held).map_err(|error| words(&error))?;
        let old = &self.cartridge.memory;
        let Err(why) = old.replace(unit, eedks) else {
            return Ok(());
        };
        let left = Memory::read(unit).unwrap_or_else(|_| old.unknown());
        if left != *old
            && let Err(error) = left.overwrite(unit, old)
        {
            return Err(format!(
                "{why}; and the memory could not be given back what it held, which is in the host's history: {error}"
            ));
        }
        Err(why.to_string())
    }
}
