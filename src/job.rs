//! Names of jobs.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// What a host calls the job that uses a drive: 1 to 64 printable ASCII characters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct JobName(String);

impl JobName {
    /// The longest name, in characters.
    pub const MAX_CHARS: usize = 64;

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of a program, as far as it can be one.
    #[must_use]
    pub fn of_program(program: &str) -> Option<Self> {
        let file = program.rsplit('/').next().unwrap_or(program);
        let plain = file.chars().filter(|c| c.is_ascii_graphic());
        plain.take(Self::MAX_CHARS).collect::<String>().parse().ok()
    }
}

impl FromStr for JobName {
    type Err = JobNameError;

    fn from_str(given: &str) -> Result<Self, JobNameError> {
        let fits = (1..=Self::MAX_CHARS).contains(&given.len());
        if fits && given.chars().all(|c| c.is_ascii_graphic() || c == ' ') {
            Ok(Self(given.to_owned()))
        } else {
            Err(JobNameError {
                got: given.chars().take(80).collect(),
            })
        }
    }
}

impl TryFrom<String> for JobName {
    type Error = JobNameError;

    fn try_from(given: String) -> Result<Self, JobNameError> {
        given.parse()
    }
}

impl From<JobName> for String {
    fn from(job: JobName) -> Self {
        job.0
    }
}

impl fmt::Display for JobName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A text that is no name of a job.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a job's name, 1 to 64 printable ASCII characters, got {got:?}")]
pub struct JobNameError {
    /// What was given, or its beginning.
    pub got: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_printable_and_short() {
        assert_eq!(
            "PAYROLL 7".parse::<JobName>().unwrap().as_str(),
            "PAYROLL 7"
        );
        for bad in ["", "a\nb", "é", &"x".repeat(65)] {
            assert!(bad.parse::<JobName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_program_gives_its_file_name() {
        let name = |program| JobName::of_program(program).map(String::from);
        assert_eq!(name("/usr/bin/tar"), Some("tar".to_owned()));
        assert_eq!(name("/opt/back\u{7}up"), Some("backup".to_owned()));
        assert_eq!(name("/"), None);
    }
}
