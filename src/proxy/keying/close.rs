//! The end of a job: held and protected again, and the cartridge looked at.

use std::thread::sleep;
use std::time::{Duration, Instant};

use super::act::Made;
use super::cartridge::{Cartridge, FirstBlock, at_load_point, counted, next_block};
use super::checks::settle;
use super::create::take_away;
use super::error::JobRefused;
use super::protect::{Confirmed, Permit, protect};
use super::report::{Alarm, ClearBlocks, Closed};
use super::seams::{HoldError, Unit};
use super::story::{HeldDrive, OpenJob, shown};
use crate::key::DataKeyId;
use crate::scsi::drive::Readiness;
use crate::t10::{EncryptionMode, EncryptionStatus, KadType};

/// How many filemarks at load point are passed over to find a block.
const FILEMARKS: u64 = 4;

/// Between two attempts to hold the tape device.
const PAUSE: Duration = Duration::from_millis(200);

impl HeldDrive {
    /// Takes the tape back from its job, looks at the cartridge, and puts it out where that is asked.
    ///
    /// The drive refuses to write from the first moment on, also where a process of the job still has
    /// it open.
    ///
    /// # Errors
    /// There is no job. What is found wrong is an [`Alarm`] instead.
    pub fn close(&mut self, unload: bool) -> Result<Closed, JobRefused> {
        let job = self.job.take().ok_or_else(|| JobRefused::NoJob {
            drive: self.rules.serial.clone(),
        })?;
        let mut closed = Closed {
            drive: self.rules.serial.clone(),
            volser: job.request.volser.clone(),
            alarms: job.alarms.clone(),
            clear_blocks: ClearBlocks::NotLookedFor,
            warnings: Vec::new(),
            unloaded: false,
        };
        // Where a process of the job still has it open, the drive refuses to write while that is
        // waited for.
        let held = match self.hold.take() {
            Ok(()) => Ok(()),
            Err(_) => {
                let now = protect(&mut self.unit, self.rules.unprotected);
                if let Err(error) = now {
                    tracing::error!(drive = %closed.drive, %error, "not write protected after a job");
                }
                self.hold_again()
            }
        };
        if let Err(error) = &held {
            closed.alarms.push(Alarm::StillOpen {
                why: error.to_string(),
            });
        }
        let settled = settle(&mut self.unit);
        match protect(&mut self.unit, self.rules.unprotected) {
            Ok(_) => {
                if let Err(error) = self.let_out() {
                    closed
                        .warnings
                        .push(format!("the cartridge is still kept in the drive: {error}"));
                }
            }
            // It stays in: the drive might write the next one in clear. Whoever takes it over lets it
            // out once it is protected.
            Err(error) => {
                closed.alarms.insert(
                    0,
                    Alarm::Unprotected {
                        why: error.to_string(),
                    },
                );
                if self.kept_in {
                    closed.warnings.push(
                        "the cartridge is kept in the drive until it is write protected".to_owned(),
                    );
                }
            }
        }
        match settled {
            Ok(Readiness::Ready) => {
                let same = job.permit == Permit::Read || self.is_the_jobs(&job, &mut closed);
                if held.is_ok() {
                    if let Permit::Encrypted(confirmed) = &job.permit {
                        self.look(&job, confirmed, same, &mut closed);
                    }
                    if unload {
                        self.put_out(&job, &mut closed);
                    }
                }
            }
            Ok(_) if job.permit != Permit::Read => {
                closed.clear_blocks =
                    ClearBlocks::Unknown("the cartridge is out of the drive".to_owned());
            }
            Ok(_) => closed.unloaded = true,
            Err(error) => closed.alarms.push(Alarm::NotLookedAt {
                why: error.to_string(),
            }),
        }
        for alarm in &closed.alarms {
            tracing::error!(drive = %closed.drive, volser = %closed.volser, %alarm, "after a job");
        }
        Ok(closed)
    }

    /// Looks at the cartridge of a drive that had a key when it was taken over: the first block in
    /// clear that it has, if any. Whether it is to have one nobody knows any more.
    ///
    /// # Errors
    /// The drive cannot be asked.
    pub fn inspect(&mut self) -> Result<Option<u64>, JobRefused> {
        let found = Cartridge::look(&mut self.unit)?;
        Ok(match found.first {
            FirstBlock::Clear => Some(0),
            FirstBlock::None | FirstBlock::Encrypted | FirstBlock::Unknown(_) => found.first_clear,
        })
    }

    fn hold_again(&mut self) -> Result<(), HoldError> {
        let begin = Instant::now();
        loop {
            match self.hold.take() {
                Err(HoldError::Busy { .. }) if begin.elapsed() < self.rules.letting_go => {
                    sleep(PAUSE);
                }
                other => return other,
            }
        }
    }

    /// Whether the cartridge of a job that could write is still the one in the drive: what the job was
    /// allowed, and what is seen now, is of that one alone.
    fn is_the_jobs(&mut self, job: &OpenJob, closed: &mut Closed) -> bool {
        let alarm = match job.cartridge.exchanged(&mut self.unit) {
            Ok(None) => return true,
            Ok(Some(what)) => {
                closed.clear_blocks =
                    ClearBlocks::Unknown("another cartridge is in the drive".to_owned());
                Alarm::OtherCartridge {
                    volser: job.request.volser.clone(),
                    what,
                }
            }
            Err(error) => {
                closed.clear_blocks = ClearBlocks::Unknown(
                    "the drive does not say which cartridge it has".to_owned(),
                );
                Alarm::NotLookedAt {
                    why: error.to_string(),
                }
            }
        };
        closed.alarms.push(alarm);
        false
    }

    /// `same`: whether it is the job's cartridge; another one says nothing of what the job wrote.
    fn look(&mut self, job: &OpenJob, confirmed: &Confirmed, same: bool, closed: &mut Closed) {
        let unit = &mut self.unit;
        match unit.encryption_status() {
            Ok(status) => {
                if let Err(what) = confirmed.still(&status) {
                    closed.alarms.push(Alarm::KeyChanged { what });
                }
            }
            Err(error) => closed.alarms.push(Alarm::NotLookedAt {
                why: error.to_string(),
            }),
        }
        if !same {
            return;
        }
        match look_for_clear(unit, job, confirmed.dki(), closed) {
            Ok(Wrote::Something) => {}
            Ok(Wrote::Nothing) => {
                self.unused = job.created.as_ref().map(|made| made.unused.clone());
                give_back(unit, job, closed);
            }
            Err(error) => closed.alarms.push(Alarm::NotLookedAt {
                why: error.to_string(),
            }),
        }
    }

    fn put_out(&mut self, job: &OpenJob, closed: &mut Closed) {
        let unit = &mut self.unit;
        if let Err(error) = unit.unload() {
            closed
                .warnings
                .push(format!("the cartridge was not put out: {error}"));
            return;
        }
        closed.unloaded = true;
        // CKOD has taken the key by now; a drive that did not is told.
        let gone = |unit: &mut Unit| {
            unit.encryption_status()
                .map(|status| status.encryption == EncryptionMode::Disable)
        };
        match gone(unit) {
            Ok(true) => {}
            Ok(false) => {
                closed.warnings.push(
                    "the drive kept its key although it was to clear it on demount (CKOD); it was \
                     taken away"
                        .to_owned(),
                );
                let taken = take_away(unit, job.able.algorithm.index);
                if let Err(error) = taken {
                    closed.alarms.push(Alarm::KeyKept {
                        why: error.to_string(),
                    });
                }
            }
            Err(error) => closed.alarms.push(Alarm::KeyKept {
                why: error.to_string(),
            }),
        }
    }
}

/// Whether a job has written.
enum Wrote {
    Something,
    Nothing,
}

/// Looks for blocks in clear on a cartridge that the job was to write under its key.
fn look_for_clear(
    unit: &mut Unit,
    job: &OpenJob,
    dki: DataKeyId,
    closed: &mut Closed,
) -> Result<Wrote, JobRefused> {
    let volser = &job.request.volser;
    let block = at_load_point(unit)?;
    let (clear, encrypted) = counted(unit)?;
    let created = job.created.is_some();
    let unwritten = created && job.cartridge.is_unwritten(unit, block.as_ref().ok())?;
    let mut at = 0;
    let mut block = block;
    // A job may begin with filemarks.
    while created
        && !unwritten
        && at < FILEMARKS
        && matches!(&block, Ok(block) if block.encryption == EncryptionStatus::NotABlock)
        && unit.locate(at + 1).is_ok()
    {
        at += 1;
        block = next_block(unit)?;
    }
    let told = block.as_ref().ok().map(|block| block.encryption);
    let found = if created && told == Some(EncryptionStatus::NotEncrypted) {
        Some(at)
    } else {
        // What was in clear before is not the job's where it wrote nothing, or behind it.
        let all = created && !unwritten;
        clear.filter(|block| all || job.cartridge.first_clear != Some(*block))
    };
    if let Some(block) = found {
        closed.clear_blocks = ClearBlocks::Some;
        // Blocks in clear name no key, so that nothing tells an old one from one of the job's.
        if block == 0 && job.cartridge.first == FirstBlock::Clear {
            closed.warnings.push(format!(
                "{volser} began in clear before the job too: block 0 is the old one if the job wrote \
                 nothing, which cannot be told; write the cartridge anew, or keep it as one in clear"
            ));
        }
        closed.alarms.push(Alarm::ClearBlock {
            volser: volser.clone(),
            block,
        });
        return Ok(Wrote::Something);
    }
    if unwritten {
        return Ok(Wrote::Nothing);
    }
    closed.clear_blocks = match (&block, told) {
        (Ok(block), Some(status)) if is_encrypted(status) => {
            let named = block.kads.of(KadType::Authenticated).next();
            if named != Some(dki.as_bytes().as_slice()) {
                closed.alarms.push(Alarm::OtherKey {
                    volser: volser.clone(),
                    dki,
                    what: named.map_or_else(|| "it names none".to_owned(), shown),
                });
            }
            match (clear, encrypted) {
                (Some(_), _) => ClearBlocks::Unknown("it had blocks in clear before".to_owned()),
                (None, Some(_)) => ClearBlocks::None,
                (None, None) => ClearBlocks::NoneAtLoadPoint,
            }
        }
        (Err(why), _) => ClearBlocks::Unknown(why.clone()),
        (Ok(_), Some(EncryptionStatus::NotABlock)) if clear.is_none() && encrypted.is_some() => {
            ClearBlocks::None
        }
        (Ok(_), Some(EncryptionStatus::NotEncrypted)) => {
            ClearBlocks::Unknown("it began in clear before the job".to_owned())
        }
        (Ok(_), _) => ClearBlocks::Unknown("the drive cannot tell what its blocks are".to_owned()),
    };
    Ok(Wrote::Something)
}

const fn is_encrypted(status: EncryptionStatus) -> bool {
    matches!(
        status,
        EncryptionStatus::Decryptable
            | EncryptionStatus::KeyMissing
            | EncryptionStatus::UnsupportedAlgorithm
    )
}

/// The cartridge holds what it held, so its memory gets back the EEDKs of that.
fn give_back(unit: &mut Unit, job: &OpenJob, closed: &mut Closed) {
    closed.warnings.push(format!(
        "the job wrote nothing at load point of {}: it holds what it held before",
        job.request.volser
    ));
    let Some(Made { memory, .. }) = &job.created else {
        return;
    };
    let old = &job.cartridge.memory;
    if let Err(error) = job.cartridge.still_in(unit) {
        closed
            .warnings
            .push(format!("its memory was left as it is: {error}"));
        return;
    }
    if memory != old
        && let Err(error) = memory.overwrite(unit, old)
    {
        closed.warnings.push(format!(
            "the cartridge's memory could not be given back what it held, which is in the host's \
             history: {error}"
        ));
    }
    // The drive's key is for blocks that are not there.
    if let Err(error) = take_away(unit, job.able.algorithm.index) {
        closed
            .warnings
            .push(format!("the key of the job stays set: {error}"));
    }
}
