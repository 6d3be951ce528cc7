//! One drive, and the way of a job through it.

use std::thread::sleep;
use std::time::{Duration, Instant};

use super::act::{Made, Outcome};
use super::cartridge::Cartridge;
use super::checks::{Able, able, identify, settle_held, undisturbed};
use super::create::take_away;
use super::error::{JobRefused, TakeOverError};
use super::history::History;
use super::protect::{Confirmed, Guard, Permit, lift, protect};
use super::report::{Alarm, Opened, TakenOver};
use super::seams::{Hold, Keys, Unit, means_absent, still_wanted};
use crate::api::ConfirmRequest;
use crate::drive::DriveSerial;
use crate::job::JobName;
use crate::key::DataKeyId;
use crate::proxy::{ClassName, Dd, Disp, HostConfig, HostDrive, Job, Reason};
use crate::scsi::drive::{NotReady, Readiness};
use crate::scsi::{Drive, DriveError, Transport};
use crate::t10::{EncryptionMode, KadType};
use crate::volser::Volser;

/// What the host's file says of a drive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Its serial.
    pub serial: DriveSerial,
    /// Whether it may be given its data key in clear.
    pub plain_key: bool,
    /// Whether it is used although it cannot protect itself.
    pub unprotected: bool,
    /// How long a cartridge may take to become ready.
    pub loading: Duration,
    /// How long the tape device may stay open after a job.
    pub letting_go: Duration,
}

impl From<&HostDrive> for Rules {
    fn from(drive: &HostDrive) -> Self {
        Self {
            serial: drive.serial.value.clone(),
            plain_key: drive.plain_key,
            unprotected: drive.unprotected,
            // IBM gives LTO drives 780 s to load.
            loading: Duration::from_secs(780),
            letting_go: Duration::from_secs(30),
        }
    }
}

/// What a job wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobRequest {
    /// The cartridge.
    pub volser: Volser,
    /// Its data class.
    pub data_class: Option<ClassName>,
    /// Its DD statement, with DISP.
    pub dd: Dd,
    /// Its name.
    pub name: Option<JobName>,
}

/// One drive in this host's hands.
pub struct HeldDrive {
    pub(super) unit: Unit,
    pub(super) hold: Box<dyn Hold>,
    pub(super) rules: Rules,
    pub(super) history: History,
    pub(super) job: Option<OpenJob>,
    /// What the key server does not know yet: nothing was written under that data key.
    pub(super) unused: Option<ConfirmRequest>,
    /// Whether the cartridge is kept in the drive, by this proxy.
    pub(super) kept_in: bool,
    /// How many jobs there have been.
    jobs: u64,
}

impl std::fmt::Debug for HeldDrive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HeldDrive")
            .field("drive", &self.rules.serial)
            .field("job", &self.job)
            .finish_non_exhaustive()
    }
}

/// A job that has the tape.
#[derive(Debug)]
pub(super) struct OpenJob {
    pub(super) request: JobRequest,
    pub(super) permit: Permit,
    /// What the cartridge was before.
    pub(super) cartridge: Cartridge,
    /// What a create has changed.
    pub(super) created: Option<Made>,
    /// How the drive takes its key.
    pub(super) able: Able,
    pub(super) guard: Guard,
    /// What was seen while it had the tape.
    pub(super) alarms: Vec<Alarm>,
    /// How many commands had failed when it was last looked at.
    pub(super) failures: Option<u64>,
    /// Whether its key was seen to be lost, and the drive is not write protected yet.
    pub(super) to_protect: bool,
}

/// Between two looks at a drive that is loading.
const PAUSE: Duration = Duration::from_millis(500);

impl HeldDrive {
    /// A drive, which is not yet taken over. Sends nothing.
    #[must_use]
    pub fn new(
        transport: Box<dyn Transport>,
        hold: Box<dyn Hold>,
        rules: Rules,
        history: History,
    ) -> Self {
        Self {
            unit: Drive::new(transport),
            hold,
            rules,
            history,
            job: None,
            unused: None,
            kept_in: false,
            jobs: 0,
        }
    }

    /// Tells the key server of a data key under which nothing was written, so that what the
    /// cartridge held before counts again.
    ///
    /// # Errors
    /// Why it does not know, in words.
    pub fn tell_unused(&mut self, keys: &mut dyn Keys) -> Result<(), String> {
        let Some(unused) = self.unused.take() else {
            return Ok(());
        };
        keys.confirm(&unused).map(drop).map_err(|error| {
            format!(
                "the key server could not be told that {} is not in use: {error}",
                unused.dki
            )
        })
    }

    /// The drive.
    #[must_use]
    pub const fn serial(&self) -> &DriveSerial {
        &self.rules.serial
    }

    /// The cartridge of the job that has the tape.
    #[must_use]
    pub fn job(&self) -> Option<&Volser> {
        self.job.as_ref().map(|job| &job.request.volser)
    }

    /// The number of the job that has the tape, or had it last: [`Opened::job`].
    #[must_use]
    pub const fn job_number(&self) -> u64 {
        self.jobs
    }

    /// Holds the tape device, and has the drive refuse to write. What is in it stays: a key that is
    /// set is kept, and told.
    ///
    /// # Errors
    /// Somebody else has it, and then nothing was sent to it; or it cannot be protected.
    pub fn take_over(&mut self) -> Result<TakenOver, TakeOverError> {
        self.hold.take()?;
        self.identify()?;
        let unit = &mut self.unit;
        let loaded = settle_held(unit, self.hold.as_mut())?;
        let guard = protect(unit, self.rules.unprotected)?;
        // A proxy that was killed under a job has left it kept in. Only now: a drive that may write must
        // not be given another cartridge.
        let may_be_in = self.kept_in || loaded == Readiness::Ready;
        match unit.allow_removal() {
            Ok(()) => self.kept_in = false,
            // Nothing is kept in then: there is no such command, or no cartridge.
            Err(error) if means_absent(&error) || !may_be_in => {
                tracing::warn!(drive = %self.rules.serial, %error, "the cartridge may be kept in the drive");
            }
            // Tried again with all of this, or it would stay in until the next job ends.
            Err(error) => return Err(JobRefused::from(error).into()),
        }
        let keyed = unit.encryption_status().ok().and_then(|status| {
            let set = status.encryption != EncryptionMode::Disable;
            let named = status.kads.of(KadType::Authenticated).next();
            set.then(|| named.map_or_else(|| "without a name".to_owned(), shown))
        });
        // Without a cartridge it may show no algorithm, and there is time until there is one.
        let unfit = match able(unit, &self.rules) {
            Err(error) if loaded == Readiness::Ready => Some(error.to_string()),
            _ => None,
        };
        Ok(TakenOver {
            drive: self.rules.serial.clone(),
            guard,
            keyed,
            unfit,
        })
    }

    /// Gives the tape to a job: keyed, confirmed, and let go.
    ///
    /// # Errors
    /// The job does not get it. The drive refuses to write, as before; where it may be able to, that is
    /// [`JobRefused::Unprotected`], and it is to be taken over until that succeeds.
    pub fn open(
        &mut self,
        keys: &mut dyn Keys,
        host: &HostConfig,
        request: &JobRequest,
    ) -> Result<Opened, JobRefused> {
        if let Some(job) = self.job() {
            return Err(JobRefused::InUse {
                drive: self.rules.serial.clone(),
                job: job.to_string(),
            });
        }
        self.hold.take()?;
        self.try_open(keys, host, request).map_err(|why| {
            // Somebody else has it, who is not disturbed.
            if let JobRefused::Held(_) = why {
                return why;
            }
            match self.fall_back() {
                Ok(()) => why,
                // Of another drive in its place nothing is wanted.
                Err(_) if why.means_not_held() => why,
                Err(error) => why.unprotected(&error),
            }
        })
    }

    fn try_open(
        &mut self,
        keys: &mut dyn Keys,
        host: &HostConfig,
        request: &JobRequest,
    ) -> Result<Opened, JobRefused> {
        self.ready(keys, request)?;
        let unit = &mut self.unit;
        identify(unit, &self.rules)?;
        let guard = protect(unit, self.rules.unprotected)?;
        let able = able(unit, &self.rules)?;
        let cartridge = Cartridge::look(unit)?;
        if !cartridge.is_called(&request.volser) {
            return Err(JobRefused::OtherVolume {
                drive: unit.name().to_owned(),
                barcode: cartridge.barcode.unwrap_or_default(),
                volser: request.volser.clone(),
            });
        }
        let decision = host.decide(&Job {
            data_class: request.data_class.as_ref(),
            dd: &request.dd,
            volser: Some(&request.volser),
            loaded: cartridge.loaded(),
        })?;
        let Outcome {
            permit,
            key,
            created,
            warnings,
        } = self.act(keys, host, request, &able, &cartridge, &decision)?;
        let mut job = OpenJob {
            request: request.clone(),
            permit,
            cartridge,
            created,
            able,
            guard,
            alarms: Vec::new(),
            failures: None,
            to_protect: false,
        };
        let wanted = still_wanted(keys).map_err(JobRefused::from);
        match wanted.and_then(|()| self.hand_over(&job)) {
            Ok(failures) => job.failures = failures,
            Err(why) => {
                let why = self.not_handed_over(&mut job, why);
                return Err(match self.tell_unused(keys) {
                    Ok(()) => why,
                    Err(trouble) => why.then(vec![trouble]),
                });
            }
        }
        let said = |reasons: &[Reason]| -> Vec<String> {
            let each = reasons.iter();
            each.map(|reason| format!("{}: {}", reason.at, reason.why))
                .collect()
        };
        self.jobs += 1;
        let opened = Opened {
            job: self.jobs,
            drive: self.rules.serial.clone(),
            tape: self.hold.tape().to_owned(),
            volser: request.volser.clone(),
            barcode: job.cartridge.barcode.clone(),
            writes: permit != Permit::Read,
            key,
            why: said(decision.reasons()),
            warnings: [warnings, said(decision.warnings())].concat(),
        };
        self.job = Some(job);
        Ok(opened)
    }

    /// Waits until the cartridge is ready.
    fn ready(&mut self, keys: &dyn Keys, request: &JobRequest) -> Result<(), JobRefused> {
        self.identify()?;
        let begin = Instant::now();
        loop {
            match settle_held(&mut self.unit, self.hold.as_mut())? {
                Readiness::Ready => break,
                Readiness::NotReady(NotReady::NoMedium) => {
                    return Err(JobRefused::Empty {
                        drive: self.unit.name().to_owned().to_owned(),
                        volser: request.volser.clone(),
                    });
                }
                Readiness::NotReady(_) | Readiness::Attention(_)
                    if begin.elapsed() < self.rules.loading =>
                {
                    sleep(PAUSE);
                    still_wanted(keys)?;
                    // Of a cartridge that is ready by now st is told, as it asks first.
                    self.hold.take()?;
                }
                Readiness::NotReady(_) | Readiness::Attention(_) => {
                    return Err(JobRefused::NotReady {
                        drive: self.unit.name().to_owned().to_owned(),
                        seconds: begin.elapsed().as_secs(),
                    });
                }
            }
        }
        // What has happened until now is known; from here on nothing may.
        drop(self.unit.take_attentions());
        Ok(())
    }

    /// Puts the tape where the job's file is, looks once more, and lets go. Gives how many commands
    /// had failed until then.
    fn hand_over(&mut self, job: &OpenJob) -> Result<Option<u64>, JobRefused> {
        let unit = &mut self.unit;
        let dd = &job.request.dd;
        unit.rewind()?;
        match (dd.disp(), dd.file()) {
            (Disp::New | Disp::Old, 1) => {}
            (Disp::New | Disp::Old, file) => unit.space_filemarks(u32::from(file) - 1)?,
            (Disp::Mod, _) => unit.space_to_end()?,
        }
        if let Permit::Encrypted(confirmed) = &job.permit {
            let status = unit.encryption_status()?;
            still(unit, confirmed, &status)?;
        }
        undisturbed(unit)?;
        if job.permit != Permit::Read {
            // The next cartridge would find no write protection, and no key. A job that may write this
            // one in clear may write no other so.
            self.kept_in = true;
            match unit.prevent_removal() {
                Err(error) if means_absent(&error) => {
                    self.kept_in = false;
                    // A drive that protects nothing changes by it no more than it did. Where a block
                    // in clear is forbidden it stays a refusal: the next cartridge would find no key.
                    if job.guard != Guard::None || matches!(job.permit, Permit::Encrypted(_)) {
                        return Err(error.into());
                    }
                    tracing::warn!(%error, "the drive cannot keep its cartridge in, so that another may come in under this job");
                }
                done => done?,
            }
            lift(unit, job.guard)?;
        }
        if let Permit::Encrypted(confirmed) = &job.permit {
            // The commands of the lifting are repeated after a reset, and so would hide it.
            let status = unit.encryption_status()?;
            still(unit, confirmed, &status)?;
        }
        undisturbed(unit)?;
        let failures = self.hold.failures();
        self.hold.release();
        Ok(failures)
    }

    /// Nothing was written: what a create changed is changed back.
    fn not_handed_over(&mut self, job: &mut OpenJob, why: JobRefused) -> JobRefused {
        let mut trouble = Vec::new();
        match protect(&mut self.unit, self.rules.unprotected) {
            Ok(_) => {
                if let Err(error) = self.let_out() {
                    trouble.push(format!("the cartridge is still kept in: {error}"));
                }
            }
            Err(error) => trouble.push(error.to_string()),
        }
        let unit = &mut self.unit;
        if let Some(Made { memory, unused }) = job.created.take() {
            self.unused = Some(unused);
            if let Err(error) = job.cartridge.still_in(unit) {
                trouble.push(format!(
                    "nothing was put back, as another cartridge may be in: {error}"
                ));
                return why.then(trouble);
            }
            if let Err(error) = take_away(unit, job.able.algorithm.index) {
                trouble.push(format!("the key could not be taken away again: {error}"));
            }
            let old = &job.cartridge.memory;
            if memory != *old
                && let Err(error) = memory.overwrite(unit, old)
            {
                trouble.push(format!(
                    "the cartridge's memory could not be given back what it held: {error}"
                ));
            }
        }
        why.then(trouble)
    }

    /// That it is this drive; another's seat is given back. INQUIRY alone, which takes no unit
    /// attention.
    fn identify(&mut self) -> Result<(), JobRefused> {
        identify(&mut self.unit, &self.rules).inspect_err(|error| {
            if let JobRefused::OtherDrive { .. } = error {
                self.hold.release();
            }
        })
    }

    /// Protected, whatever happened. It is held all the time until a job has it. A drive that does
    /// not say that it is this one is sent nothing.
    fn fall_back(&mut self) -> Result<(), JobRefused> {
        self.identify()?;
        protect(&mut self.unit, self.rules.unprotected)?;
        Ok(self.let_out()?)
    }

    /// Lets the cartridge out where it was kept in, which is for a drive that is write protected again.
    pub(super) fn let_out(&mut self) -> Result<(), DriveError> {
        if self.kept_in {
            self.unit.allow_removal()?;
            self.kept_in = false;
        }
        Ok(())
    }
}

/// The drive still has the key that it was given.
fn still(
    unit: &Unit,
    confirmed: &Confirmed,
    status: &crate::t10::Status,
) -> Result<(), JobRefused> {
    confirmed.still(status).map_err(|what| JobRefused::Lies {
        drive: unit.name().to_owned(),
        what,
    })
}

/// An A-KAD as it is told: a DKi, or hexadecimal digits where it is none.
pub(super) fn shown(named: &[u8]) -> String {
    DataKeyId::try_from(named).map_or_else(|_| hex::encode_upper(named), |dki| dki.to_string())
}
