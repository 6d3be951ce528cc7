//! A job on a drive that does not keep its write protection over a reset.

use super::protect::{Guard, Permit, protect};
use super::report::Alarm;
use super::story::HeldDrive;

impl HeldDrive {
    /// Whether [`Self::glance`] is of use: a job writes, and the drive would write in clear after a
    /// reset.
    #[must_use]
    pub fn is_watched(&self) -> bool {
        self.job.as_ref().is_some_and(|job| {
            job.guard == Guard::CurrentOnly && matches!(job.permit, Permit::Encrypted(_))
        })
    }

    /// Looks whether a command has failed since the last glance, which sends nothing to the drive;
    /// and only then, whether it still has the job's key. If not it is write protected at once.
    ///
    /// A unit attention that is taken from `st` so does no harm: nothing is written any more.
    pub fn glance(&mut self) {
        let now = self.hold.failures();
        let Some(job) = self.job.as_mut() else {
            return;
        };
        let Permit::Encrypted(confirmed) = &job.permit else {
            return;
        };
        let unit = &mut self.unit;
        if !job.to_protect {
            if job.failures == now {
                return;
            }
            job.failures = now;
            let status = unit.encryption_status();
            let attentions = unit.take_attentions();
            let seen = match status {
                Err(error) => Err(error.to_string()),
                Ok(status) => confirmed.still(&status),
            };
            let seen = match attentions.first() {
                Some(attention) => Err(attention.to_string()),
                None => seen,
            };
            let Err(what) = seen else {
                return;
            };
            tracing::error!(drive = %self.rules.serial, what, "the drive lost its key in a job; it is write protected");
            job.alarms.push(Alarm::KeyChanged { what });
            job.to_protect = true;
        }
        match protect(unit, true) {
            Ok(_) => job.to_protect = false,
            // Tried again at the next glance, and told once.
            Err(error) => {
                let told = |alarm: &Alarm| matches!(alarm, Alarm::Unprotected { .. });
                if !job.alarms.iter().any(told) {
                    let why = error.to_string();
                    job.alarms.insert(0, Alarm::Unprotected { why });
                }
            }
        }
    }
}
