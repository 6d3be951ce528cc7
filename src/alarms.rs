//! Alarms: what an operator should do something about, each with a code of
//! its own that stays the same.
//!
//! An alarm is told once when it rises and once when it is over, as a log
//! event with the field `alarm`. What is raised stands on `/readyz` and in
//! `/metrics`. The list below is what `ekm config alarms` prints.

mod sight;

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use time::OffsetDateTime;

pub use sight::{Disk, Gate, Sight, Token, found};

/// What may be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum Alarm {
    /// A token does not work.
    TokenDown,
    /// A token is left alone until an operator acts.
    TokenLocked,
    /// A token works with less than it should.
    TokenDegraded,
    /// Wrong PINs were given.
    PinLow,
    /// A KEK that is on several tokens can be used on one only.
    LastCopy,
    /// A KEK can be used on no token.
    NoCopy,
    /// A certificate of the server or its CA ends soon.
    Certificate,
    /// The audit log's file system fills.
    AuditDisk,
    /// The state's file system fills.
    StateDisk,
    /// A record could not be made durable.
    AuditFailed,
    /// Requests wait, nearly as many as may.
    Busy,
    /// A KEK's certificate has ended or ends soon.
    KekCertificate,
    /// The seal of a partner's KEK does not verify.
    PartnerSeal,
}

/// How much it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Keys are served; soon some may not be.
    Warning,
    /// Some keys, or all, are not served.
    Error,
}

/// An alarm's entry in the list.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Entry {
    /// The alarm.
    #[serde(skip)]
    pub alarm: Alarm,
    /// Its code, which never changes.
    pub code: &'static str,
    /// How much it matters.
    pub severity: Severity,
    /// What it says.
    pub title: &'static str,
    /// What to do.
    pub action: &'static str,
}

const fn entry(
    alarm: Alarm,
    code: &'static str,
    severity: Severity,
    title: &'static str,
    action: &'static str,
) -> Entry {
    Entry {
        alarm,
        code,
        severity,
        title,
        action,
    }
}

/// All alarms.
pub const ALARMS: [Entry; 13] = [
    entry(
        Alarm::TokenDown,
        "EKM-A01",
        Severity::Error,
        "a token does not work",
        "`ekm token status` says why; it is tried again by itself once the HSM and the way to it are mended",
    ),
    entry(
        Alarm::TokenLocked,
        "EKM-A02",
        Severity::Error,
        "a token is left alone until an operator acts",
        "`ekm token status` says what to mend, most often the PIN; nothing is sent to the token before",
    ),
    entry(
        Alarm::TokenDegraded,
        "EKM-A03",
        Severity::Warning,
        "a token works, but sessions or processes that its profile wants are missing, or it does not answer just now",
        "`ekm token status` says what: where sessions are missing, look for other programs that hold them; a call that does not return is ended by itself",
    ),
    entry(
        Alarm::PinLow,
        "EKM-A04",
        Severity::Warning,
        "a token says that wrong PINs were given",
        "find out who gives them before the token locks itself; a login with the right PIN resets the counter",
    ),
    entry(
        Alarm::LastCopy,
        "EKM-A05",
        Severity::Warning,
        "KEKs that are on several tokens can be used on one only",
        "bring the other tokens back: if this one fails too, cartridges cannot be read",
    ),
    entry(
        Alarm::NoCopy,
        "EKM-A06",
        Severity::Error,
        "KEKs can be used on no token",
        "bring a token that holds them back; until then cartridges under them can be read by their other EEDK only",
    ),
    entry(
        Alarm::Certificate,
        "EKM-A07",
        Severity::Warning,
        "a certificate of this server or its CA expires soon",
        "issue a new one (`ekm tls issue`); it is taken in without a restart",
    ),
    entry(
        Alarm::AuditDisk,
        "EKM-A08",
        Severity::Warning,
        "the disk of the audit log fills",
        "archive old audit files elsewhere or enlarge the disk; on a full disk no key is served",
    ),
    entry(
        Alarm::StateDisk,
        "EKM-A09",
        Severity::Warning,
        "the disk of the state fills",
        "make room or enlarge the disk; on a full disk nothing can be created",
    ),
    entry(
        Alarm::AuditFailed,
        "EKM-A10",
        Severity::Error,
        "an audit record could not be made durable, so no key is served",
        "mend the disk, then restart the server",
    ),
    entry(
        Alarm::Busy,
        "EKM-A11",
        Severity::Warning,
        "requests wait for a token, nearly as many as may, or were refused as too many",
        "`ekm slot bench` says what the token sustains; more workers, processes or tokens, or fewer drives that mount at once",
    ),
    entry(
        Alarm::KekCertificate,
        "EKM-A12",
        Severity::Warning,
        "the certificate of a KEK, ours or a partner's, has ended or ends within 30 days",
        "`ekm kek cert import` a new one (a partner's: `ekm kek partner remove`, then `add`); cartridges are read all the same, but nothing is written under it once it has ended",
    ),
    entry(
        Alarm::PartnerSeal,
        "EKM-A13",
        Severity::Error,
        "the seal of a partner's KEK does not verify, so nothing is written under it",
        "find out who changed the state or the token, then remove the partner's KEK and confirm its certificate anew",
    ),
];

impl Alarm {
    /// Its entry in the list.
    #[must_use]
    pub fn entry(self) -> &'static Entry {
        // Every alarm has one; a test sees to it.
        let [first, ..] = &ALARMS;
        ALARMS
            .iter()
            .find(|entry| entry.alarm == self)
            .unwrap_or(first)
    }
}

/// Something that is wrong now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What.
    pub alarm: Alarm,
    /// Of what: a token's name; empty where there is only one such thing.
    pub subject: String,
    /// The particulars.
    pub detail: String,
}

/// An alarm that is raised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Raised {
    /// Since when.
    pub since: OffsetDateTime,
    /// The particulars, as last seen.
    pub detail: String,
}

type Known = BTreeMap<(Alarm, String), Raised>;

/// What is raised now.
#[derive(Debug, Default)]
pub struct Alarms(Mutex<Known>);

impl Alarms {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether an alarm is raised.
    #[must_use]
    pub fn is_raised(&self, alarm: Alarm, subject: &str) -> bool {
        self.known().contains_key(&(alarm, subject.to_owned()))
    }

    /// What is raised.
    #[must_use]
    pub fn raised(&self) -> Vec<(Alarm, String, Raised)> {
        let known = self.known();
        let each = known.iter();
        each.map(|((alarm, subject), raised)| (*alarm, subject.clone(), raised.clone()))
            .collect()
    }

    /// Takes in all that is wrong now: what is new is told, what is over as well.
    pub fn settle(&self, now: Vec<Found>) {
        let mut known = self.known();
        let before = std::mem::take(&mut *known);
        for Found {
            alarm,
            subject,
            detail,
        } in now
        {
            let key = (alarm, subject);
            let since = before.get(&key).map(|raised| raised.since);
            if since.is_none() {
                tell(alarm, &key.1, &detail);
            }
            let since = since.unwrap_or_else(OffsetDateTime::now_utc);
            known.insert(key, Raised { since, detail });
        }
        for ((alarm, subject), raised) in before {
            if !known.contains_key(&(alarm, subject.clone())) {
                over(alarm, &subject, &raised);
            }
        }
    }
}

fn tell(alarm: Alarm, subject: &str, detail: &str) {
    let Entry {
        code,
        title,
        action,
        severity,
        ..
    } = alarm.entry();
    match severity {
        Severity::Error => {
            tracing::error!(
                alarm = code,
                raised = true,
                subject,
                detail,
                action,
                "alarm: {title}"
            );
        }
        Severity::Warning => {
            tracing::warn!(
                alarm = code,
                raised = true,
                subject,
                detail,
                action,
                "alarm: {title}"
            );
        }
    }
}

fn over(alarm: Alarm, subject: &str, raised: &Raised) {
    let Entry { code, title, .. } = alarm.entry();
    let seconds = (OffsetDateTime::now_utc() - raised.since).whole_seconds();
    tracing::info!(
        alarm = code,
        raised = false,
        subject,
        seconds,
        "alarm over: {title}"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_alarm_has_one_entry_and_a_code_of_its_own() {
        let mut codes = std::collections::BTreeSet::new();
        for (n, entry) in ALARMS.iter().enumerate() {
            assert_eq!(entry.code, format!("EKM-A{:02}", n + 1));
            assert!(codes.insert(entry.code));
            assert_eq!(entry.alarm.entry().code, entry.code);
        }
        // The variants are numbered in the order of the list.
        assert_eq!(ALARMS.map(|entry| entry.alarm).len(), codes.len());
    }

    #[test]
    fn an_alarm_rises_once_and_is_over_once() {
        let alarms = Alarms::default();
        let down = |detail: &str| Found {
            alarm: Alarm::TokenDown,
            subject: "main".to_owned(),
            detail: detail.to_owned(),
        };
        alarms.settle(vec![down("first")]);
        let since = alarms.raised()[0].2.since;
        alarms.settle(vec![down("second")]);
        let [(alarm, subject, raised)] = alarms.raised().try_into().unwrap();
        assert_eq!((alarm, subject.as_str()), (Alarm::TokenDown, "main"));
        assert_eq!((raised.since, raised.detail.as_str()), (since, "second"));
        assert!(!alarms.is_raised(Alarm::TokenDown, "second"));
        alarms.settle(Vec::new());
        assert!(alarms.raised().is_empty());
    }

    #[test]
    fn the_readme_lists_every_alarm() {
        let readme = include_str!("../README.md");
        for Entry {
            code,
            title,
            action,
            ..
        } in ALARMS
        {
            let row = format!("| `{code}` | {title} | {action} |");
            assert!(readme.contains(&row), "README.md lacks the line\n{row}");
        }
    }
}
