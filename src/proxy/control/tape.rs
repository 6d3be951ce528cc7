//! What is said of jobs and their tapes.

use serde::{Deserialize, Serialize};

use crate::drive::DriveSerial;
use crate::job::JobName;
use crate::proxy::keying::{DriveState, JobRequest};
use crate::proxy::{Dd, Disp};
use crate::volser::Volser;

/// A job that wants its tape.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TapeOpen {
    /// The drive.
    pub drive: DriveSerial,
    /// The cartridge.
    pub volser: Volser,
    /// DISP, where the statement does not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disp: Option<Disp>,
    /// The job's data class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_class: Option<String>,
    /// Its DD statement.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dd: Option<String>,
    /// The job's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobName>,
    /// Whether the job outlives its connection, until it is closed.
    #[serde(default)]
    pub stays: bool,
}

impl TapeOpen {
    /// What it asks for.
    ///
    /// # Errors
    /// What cannot be read; or DISP is not said, and a tape that is written over is not a thing to
    /// be assumed.
    pub fn request(&self) -> Result<JobRequest, String> {
        let dd = match &self.dd {
            Some(text) => text.parse::<Dd>().map_err(|error| format!("dd: {error}"))?,
            None => Dd::default(),
        };
        let dd = match self.disp {
            Some(disp) => dd.with_disp(disp).map_err(|error| error.to_string())?,
            None if dd.says_disp() => dd,
            None => {
                return Err(
                    "say what becomes of the cartridge: new (written from its beginning), old \
                     (read) or mod (added to)"
                        .to_owned(),
                );
            }
        };
        let class = self.data_class.as_deref();
        Ok(JobRequest {
            volser: self.volser.clone(),
            data_class: class
                .map(|class| {
                    class
                        .parse()
                        .map_err(|error| format!("data class: {error}"))
                })
                .transpose()?,
            dd,
            name: self.job.clone(),
        })
    }
}

/// An in-band drive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InBandShown {
    /// The drive.
    pub serial: DriveSerial,
    /// How it is.
    #[serde(flatten)]
    pub state: DriveState,
}
