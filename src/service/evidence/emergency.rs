//! The emergency policy: cartridges are read although the disk takes no audit records.

use serde::{Deserialize, Serialize};
use time::format_description::well_known::Rfc3339;

use crate::audit::{Event, Kind, Outcome};
use crate::config::Config;
use crate::problem::Problem;
use crate::service::{Service, unrecorded};

/// The file that says that the emergency policy is on, in the state directory.
pub(super) const SWITCH: &str = "audit-emergency";

/// How the emergency policy is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EmergencySeen {
    /// Whether it is on.
    pub on: bool,
    /// Whether the disk takes no record.
    pub disk_failed: bool,
    /// Records that are in memory only.
    pub kept: u64,
    /// Records that there was no room for.
    pub lost: u64,
    /// Since when, RFC 3339.
    pub since: Option<String>,
    /// Bytes of disk that are held in reserve.
    pub reserve: u64,
    /// What is to be thought of, one sentence each.
    pub notes: Vec<String>,
}

/// Whether the policy was on when the server ended.
pub(crate) fn was_on(config: &Config) -> bool {
    config.state.join(SWITCH).exists()
}

impl Service {
    /// That more than a resolve may be served.
    pub(in crate::service) fn all_is_served(&self) -> Result<(), Problem> {
        if !self.audit.in_emergency() {
            return Ok(());
        }
        Err(Problem::unavailable(
            "the emergency policy of the audit log is on, so cartridges are read and nothing new is keyed, rekeyed or confirmed; ask another key server, or wait until an operator has made room on the audit disk (ekm audit emergency)",
        ))
    }

    /// Switches the emergency policy, or tells how it is.
    ///
    /// # Errors
    /// It cannot be switched off while the disk takes no records.
    pub(crate) async fn emergency(
        &self,
        operator: &str,
        switch: Option<bool>,
    ) -> Result<EmergencySeen, Problem> {
        let mut notes = Vec::new();
        match switch {
            Some(on) if on != self.audit.in_emergency() => {
                self.switch_emergency(operator, on, &mut notes).await?;
            }
            Some(_) | None => {}
        }
        let gap = self.audit.gap();
        Ok(EmergencySeen {
            on: self.audit.in_emergency(),
            disk_failed: gap.is_some() || self.audit.has_failed(),
            kept: gap.map_or(0, |gap| gap.kept),
            lost: gap.map_or(0, |gap| gap.lost),
            since: gap.and_then(|gap| gap.since.format(&Rfc3339).ok()),
            reserve: self.chain.reserve.held(),
            notes,
        })
    }

    async fn switch_emergency(
        &self,
        operator: &str,
        on: bool,
        notes: &mut Vec<String>,
    ) -> Result<(), Problem> {
        let action = if on {
            "audit-emergency-on"
        } else {
            "audit-emergency-off"
        };
        let mut event = Event::new(Kind::ConfigurationManagement, action, Outcome::Success);
        event.peer = Some(operator.to_owned());
        let chain = &self.chain;
        if !on {
            // While the policy is still on: this has the disk tried.
            self.audit.record(event).await.map_err(|error| {
                tracing::warn!(%error, "the emergency policy stays on");
                Problem::unavailable(format!(
                    "the emergency policy stays on, since the audit disk takes no records yet ({error}); make room on it first"
                ))
            })?;
            if let Err(error) = std::fs::remove_file(&chain.switch)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                notes.push(format!(
                    "{} cannot be removed ({error}), so the policy is on again after a restart",
                    chain.switch.display()
                ));
            }
            self.audit.set_emergency(false);
            chain.known().cleaned = None;
            return Ok(());
        }
        self.audit.set_emergency(true);
        match chain.reserve.release() {
            Ok(0) => {}
            Ok(bytes) => notes.push(format!(
                "{bytes} bytes of reserve were given to the records"
            )),
            Err(error) => notes.push(format!(
                "the reserve cannot be given to the records: {error}"
            )),
        }
        if let Err(error) = crate::files::write_private(&chain.switch, b"on\n") {
            notes.push(format!(
                "{} cannot be written ({error}), so the policy ends with this server",
                chain.switch.display()
            ));
        }
        let receipt = self.audit.record(event).await;
        let receipt = receipt.map_err(|error| unrecorded(&error))?;
        if !receipt.is_durable() {
            notes.push(
                "the disk takes no records: they are kept in memory, and go to syslog where that is configured"
                    .to_owned(),
            );
        }
        Ok(())
    }
}
