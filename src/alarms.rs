//! Alarms: what an operator should do something about, each with a code of
//! its own that stays the same.
//!
//! An alarm is told once when it rises and once when it is over, as a log
//! event with the field `alarm`. What is raised stands on `/readyz` and in
//! `/metrics`, and a command of the site's may be told (`alarms::command`). The list
//! below is what `ekm alarm explain` prints.

mod command;
mod sight;

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use time::OffsetDateTime;

use command::{Happened, Runner};

pub use command::AlarmsConfig;
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
    /// Too many EEDKs by PKCS#1 v1.5 did not open.
    PaddingBudget,
    /// A KEK was never backed up or copied.
    NoBackup,
    /// Another server's tables could not be taken in, or not in time.
    SyncFailed,
    /// Another server holds keys, labels or defaults that this one does not.
    SyncDiffers,
    /// A KEK was not rotated when that was due.
    Rotation,
    /// The audit chain was not sealed, or its seal not anchored, when that was due.
    SealLate,
    /// The audit chain is not the one that is anchored.
    ChainMismatch,
    /// The emergency policy of the audit log is on.
    Emergency,
    /// Audit records do not reach a receiver.
    Outlet,
    /// Servers that share a state are not the same.
    PeerDiffers,
    /// What was given out is on this server's disk only.
    HistoryBacklog,
    /// The database that servers share is out of reach.
    DatabaseDown,
    /// A loop of the server panicked.
    Watcher,
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
pub const ALARMS: [Entry; 26] = [
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
        "a token or keystore works, but not as it should: sessions or processes that its profile wants are missing, it does not answer just now, none of its KEKs serves, or its key file cannot be read any more",
        "`ekm token status` says what: where sessions are missing, look for other programs that hold them; a call that does not return is ended by itself; restore a key file before the server stops",
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
        "mend the disk, then restart the server; to have cartridges read meanwhile: `ekm audit emergency on`",
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
    entry(
        Alarm::PaddingBudget,
        "EKM-A14",
        Severity::Error,
        "too many EEDKs by PKCS#1 v1.5 that were not issued here did not open, so no more of them are opened",
        "`ekm eedk failures` says whose; find out in the audit log what was sent, and whether somebody probes paddings, then `ekm eedk failures --forgive-peer` or `--forgive-kek`",
    ),
    entry(
        Alarm::NoBackup,
        "EKM-A15",
        Severity::Warning,
        "KEKs were never backed up or copied",
        "`ekm backup status` says which; make a backup (`ekm backup FILE`), or say of an HSM that its maker's means have done it (`ekm kek copy confirm LABEL`)",
    ),
    entry(
        Alarm::SyncFailed,
        "EKM-A16",
        Severity::Warning,
        "the sync from another server failed or is late, so a drive that was deleted there may still get keys here",
        "the detail says what to mend; it is tried again by itself, and `ekm sync --from PEER --dry-run` tries it now",
    ),
    entry(
        Alarm::SyncDiffers,
        "EKM-A17",
        Severity::Warning,
        "after a sync, the other server has KEKs that no token here holds, a label that means another key here, a KEK of another state, other defaults, or an audit chain that is not the one whose seal was kept here",
        "`ekm sync --from PEER --dry-run` lists them; bring the KEKs here (docs/kek-copies.md), rename one of two keys of one label, retire a KEK on both, set the defaults alike; find out why the log there is another (docs/audit.md)",
    ),
    entry(
        Alarm::Rotation,
        "EKM-A18",
        Severity::Warning,
        "a KEK was not rotated when that was due, so the old one is still written under",
        "`ekm kek schedule list` says why; once that is mended it is done by itself within a minute",
    ),
    entry(
        Alarm::SealLate,
        "EKM-A19",
        Severity::Warning,
        "the audit chain was not sealed, or its seal not anchored, when that was due",
        "the detail says why; it is done by itself once a token that has the key is back; where there is no key: `ekm audit key --generate`",
    ),
    entry(
        Alarm::ChainMismatch,
        "EKM-A20",
        Severity::Error,
        "the audit chain is not the one that is anchored, so it is not sealed",
        "find out who cut it off or put an older copy back; then go on with `ekm audit seal --accept`, which is recorded",
    ),
    entry(
        Alarm::Emergency,
        "EKM-A21",
        Severity::Error,
        "the emergency policy of the audit log is on: cartridges are read, nothing new is keyed",
        "make room on the disk of the audit log, then `ekm audit emergency off`",
    ),
    entry(
        Alarm::Outlet,
        "EKM-A22",
        Severity::Warning,
        "audit records do not reach a syslog or journal, or not all of them",
        "mend the receiver or the way to it; what it missed is in the log: `ekm audit export --since`",
    ),
    entry(
        Alarm::PeerDiffers,
        "EKM-A23",
        Severity::Warning,
        "servers that share a state hold different KEKs, copies or defaults, or one of them is missing",
        "`ekm fleet status` says what differs; bring the KEK to the token that lacks it, start the server, or take one that is gone for good out (`ekm fleet forget`)",
    ),
    entry(
        Alarm::HistoryBacklog,
        "EKM-A24",
        Severity::Error,
        "what was given out is on this server's disk only, not in the history that servers share",
        "bring the state database back, and lose this disk by no means before: it comes into the history by itself; a line that does not verify stays in `fleet-queue.jsonl` of the state directory",
    ),
    entry(
        Alarm::DatabaseDown,
        "EKM-A25",
        Severity::Error,
        "the state database is out of reach, and what is served comes from the cached table",
        "bring it back before the table is too old (`ekm fleet status`), at which nothing is served any more; the server finds it by itself",
    ),
    entry(
        Alarm::Watcher,
        "EKM-A26",
        Severity::Error,
        "something that the server does by itself ended in a panic, which is a defect",
        "it is begun again every few seconds; report it with what the log says of it; what it does is not done meanwhile",
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
pub struct Alarms {
    known: Mutex<Known>,
    command: Option<Runner>,
}

impl Alarms {
    /// That tell the site's command, where there is one.
    #[must_use]
    pub fn telling(config: &AlarmsConfig, node: &str) -> Self {
        Self {
            known: Mutex::default(),
            command: Runner::new(config, node),
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
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
            let new = since.is_none();
            let since = since.unwrap_or_else(OffsetDateTime::now_utc);
            if new {
                tell(alarm, &key.1, &detail);
                self.run(Happened::new(true, alarm, &key.1, &detail, since));
            }
            known.insert(key, Raised { since, detail });
        }
        for ((alarm, subject), raised) in before {
            if !known.contains_key(&(alarm, subject.clone())) {
                over(alarm, &subject, &raised);
                self.run(Happened::new(
                    false,
                    alarm,
                    &subject,
                    &raised.detail,
                    raised.since,
                ));
            }
        }
    }
}

impl Alarms {
    fn run(&self, happened: Happened) {
        if let Some(command) = &self.command {
            command.tell(happened);
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
        let page = include_str!("../docs/operating.md");
        for Entry {
            code,
            title,
            action,
            ..
        } in ALARMS
        {
            let row = format!("| `{code}` | {title} | {action} |");
            assert!(
                page.contains(&row),
                "docs/operating.md lacks the line\n{row}"
            );
        }
    }
}
