//! `[records]`: how audit records are sealed, kept and sent.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::audit::outlet::{Facility, Target};
use crate::audit::{Keep, Options};

/// Minutes between two seals where nothing else is said.
const SEAL_MINUTES: u64 = 60;

/// `[records]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RecordsConfig {
    /// Minutes between two seals of the chain; 0 for none. Where it is said, a missing key is an
    /// alarm; where it is not, it is 60 as soon as there is a key.
    pub seal_minutes: Option<u64>,
    /// Whether the newest seal is kept as a data object on the tokens too.
    pub anchor_tokens: bool,
    /// Mebibytes after which a new file begins.
    pub rotate_mib: u64,
    /// Days after which a new file begins.
    pub rotate_days: Option<u64>,
    /// Days for which sealed and anchored files are kept; for ever without it.
    pub keep_days: Option<u64>,
    /// Newest files that are kept in any case; without `keep_days`, the only ones.
    pub keep_files: Option<usize>,
    /// Mebibytes of disk that are held for an emergency.
    pub reserve_mib: u64,
    /// Mebibytes below which free disk is an alarm, whatever its share.
    pub floor_mib: u64,
    /// Records that are kept in memory while the emergency policy is on and the disk is full.
    pub memory_records: usize,
    /// Where records go besides.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub syslog: Vec<SyslogConfig>,
}

impl Default for RecordsConfig {
    fn default() -> Self {
        Self {
            seal_minutes: None,
            anchor_tokens: false,
            rotate_mib: 64,
            rotate_days: None,
            keep_days: None,
            keep_files: None,
            reserve_mib: 16,
            floor_mib: 0,
            memory_records: 10_000,
            syslog: Vec::new(),
        }
    }
}

/// `[[records.syslog]]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SyslogConfig {
    /// `udp://HOST:514`, `tcp://HOST:601`, `tls://HOST:6514`, `unix:/dev/log` or `journald`.
    pub to: String,
    /// The messages' facility.
    #[serde(default)]
    pub facility: Facility,
    /// The CAs of a receiver that is reached by TLS, PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// The certificate to show it, PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<PathBuf>,
    /// That certificate's private key, PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
}

impl RecordsConfig {
    pub(super) fn settle(&mut self, folder: &Path) {
        for syslog in &mut self.syslog {
            let SyslogConfig {
                to: _,
                facility: _,
                ca,
                certificate,
                key,
            } = syslog;
            for path in [ca, certificate, key].into_iter().flatten() {
                *path = folder.join(&*path);
            }
        }
    }

    /// What is wrong with it, one sentence each.
    pub(super) fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for (name, value, range) in [
            ("seal_minutes", self.seal_minutes.unwrap_or(0), 0..=10_080),
            ("rotate_mib", self.rotate_mib, 1..=65_536),
            ("rotate_days", self.rotate_days.unwrap_or(1), 1..=3_650),
            ("keep_days", self.keep_days.unwrap_or(1), 1..=36_500),
            ("reserve_mib", self.reserve_mib, 0..=65_536),
        ] {
            if !range.contains(&value) {
                faults.push(format!(
                    "records.{name}: {value} is not {} to {}",
                    range.start(),
                    range.end()
                ));
            }
        }
        if self.keep_files == Some(0) {
            faults.push(
                "records.keep_files: at least the newest file is kept, so 1 or more".to_owned(),
            );
        }
        if self.memory_records > 1_000_000 {
            faults.push(format!(
                "records.memory_records: {} is not 0 to 1000000",
                self.memory_records
            ));
        }
        for syslog in &self.syslog {
            if let Err(fault) = syslog.target() {
                faults.push(format!("records.syslog: {fault}"));
            }
        }
        faults
    }

    /// The time between two seals; none where there shall be none.
    #[must_use]
    pub fn sealing(&self) -> Option<Duration> {
        let minutes = self.seal_minutes.unwrap_or(SEAL_MINUTES);
        (minutes > 0).then(|| Duration::from_secs(minutes.saturating_mul(60)))
    }

    /// What is kept.
    #[must_use]
    pub fn keep(&self) -> Keep {
        Keep {
            time: self.keep_days.map(days),
            files: self.keep_files,
        }
    }

    /// How the log is kept, but for its outlets.
    #[must_use]
    pub fn options(&self) -> Options {
        Options {
            rotate_at: self.rotate_mib.saturating_mul(1024 * 1024),
            rotate_after: self.rotate_days.map(days),
            memory: self.memory_records,
            ..Options::default()
        }
    }

    /// The receivers.
    ///
    /// # Errors
    /// What is wrong with one.
    pub fn targets(&self) -> Result<Vec<Target>, String> {
        self.syslog.iter().map(SyslogConfig::target).collect()
    }

    /// Bytes that are held for an emergency.
    #[must_use]
    pub const fn reserve(&self) -> u64 {
        self.reserve_mib.saturating_mul(1024 * 1024)
    }

    /// Bytes below which free disk is an alarm.
    #[must_use]
    pub const fn floor(&self) -> u64 {
        self.floor_mib.saturating_mul(1024 * 1024)
    }
}

const fn days(days: u64) -> Duration {
    Duration::from_secs(days.saturating_mul(24 * 60 * 60))
}

impl SyslogConfig {
    fn target(&self) -> Result<Target, String> {
        let Self {
            to,
            facility,
            ca,
            certificate,
            key,
        } = self;
        let identity = match (certificate, key) {
            (Some(certificate), Some(key)) => Some((certificate.as_path(), key.as_path())),
            (None, None) => None,
            _ => return Err(format!("{to}: certificate and key go together")),
        };
        let tls = match (to.starts_with("tls://"), ca) {
            (false, None) if identity.is_none() => None,
            (false, _) => return Err(format!("{to}: ca, certificate and key are for tls://")),
            (true, None) => {
                return Err(format!("{to}: name the CA of its certificate: ca = \"…\""));
            }
            (true, Some(ca)) => {
                let config = crate::tls::sender_config(ca, identity);
                Some(Arc::new(config.map_err(|error| format!("{to}: {error}"))?))
            }
        };
        Target::new(to, *facility, tls).map_err(|error| error.to_string())
    }
}
