//! When an alarm is raised: what is seen of a server, and what of it is wrong.

use std::collections::BTreeMap;

use super::{Alarm, Alarms, Found};
use crate::key::KekHash;
use crate::service::EvidenceSeen;

/// Days before its end at which a certificate is told of.
const CERTIFICATE_DAYS: i64 = 30;

/// Share of a disk that is in use at which it is told of, and at which that is over, per cent.
const DISK: (u64, u64) = (80, 75);

/// Share of the requests that may wait at which it is told of, and at which that is over, per cent.
const WAITING: (usize, usize) = (80, 40);

/// KEKs that are named in an alarm; of more there is the number only.
const NAMED: usize = 5;

/// A token, as an alarm needs it.
#[derive(Clone, Debug)]
pub struct Token {
    /// Its configured name.
    pub name: String,
    /// `starting`, `ready`, `degraded`, `failed` or `locked`.
    pub state: &'static str,
    /// Whether it serves.
    pub serves: bool,
    /// Why it is not ready.
    pub why: Option<String>,
    /// Whether it has been so for long enough to be told of.
    pub lasts: bool,
    /// What says that wrong PINs were given: `CKF_USER_PIN_COUNT_LOW` or worse, or a login.
    pub pin_low: Option<String>,
    /// The KEKs whose private half it holds, as last read; of one that has not been up since the
    /// start, as the registry has them.
    pub keks: Vec<(KekHash, String)>,
    /// KEKs that it held since the start, and does not show any more.
    pub lost: Vec<(KekHash, String)>,
}

/// The requests that wait at a gate.
#[derive(Clone, Debug)]
pub struct Gate {
    /// The token's name, or `(state)`.
    pub name: String,
    /// How many wait.
    pub waiting: usize,
    /// How many may.
    pub most: usize,
    /// How many were refused since the last look.
    pub refused: u64,
}

/// A file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Its size for unprivileged users, bytes.
    pub size: u64,
    /// What is free of it for them, bytes.
    pub free: u64,
}

/// What is seen of a server.
#[derive(Clone, Debug)]
pub struct Sight {
    /// The tokens.
    pub tokens: Vec<Token>,
    /// The requests that wait.
    pub gates: Vec<Gate>,
    /// Time until the first certificate ends.
    pub certificate: time::Duration,
    /// The audit log's file system, where it can be looked at.
    pub audit_disk: Option<Disk>,
    /// The state's.
    pub state_disk: Option<Disk>,
    /// Whether a record could not be made durable.
    pub audit_failed: bool,
    /// KEKs whose certificate has ended or ends soon, and when.
    pub kek_certificates: Vec<(String, String)>,
    /// Partners' KEKs whose seal does not verify, and why.
    pub broken_seals: Vec<(String, String)>,
    /// Budgets of EEDKs that do not open which are spent: whose, and how.
    pub spent: Vec<(String, String)>,
    /// KEKs that were never backed up or copied, where the policy asks for that.
    pub unbacked: Vec<String>,
    /// KEKs of the registry that no token shows, and that nobody has destroyed.
    pub gone: Vec<String>,
    /// Peers whose tables could not be taken in, and why.
    pub unsynced: Vec<(String, String)>,
    /// Peers that differ after a sync, and in what.
    pub unlike: Vec<(String, String)>,
    /// KEKs that were not rotated when that was due, and why.
    pub rotations: Vec<(String, String)>,
    /// Bytes below which the audit log's free disk is told of, whatever its share.
    pub floor: u64,
    /// What is wrong with the audit chain's evidence.
    pub evidence: EvidenceSeen,
    /// What differs between servers that share a state, and how.
    pub differences: Vec<(String, String)>,
    /// What of the history is on this server's disk only.
    pub backlog: Option<String>,
    /// Why the state database is out of reach.
    pub outage: Option<String>,
    /// Loops of the server that panicked of late, and how.
    pub panicked: Vec<(String, String)>,
}

/// What is wrong. What is raised already is over a little later than it rose,
/// so that it does not flicker.
#[must_use]
pub fn found(sight: &Sight, raised: &Alarms) -> Vec<Found> {
    let Sight {
        tokens,
        gates,
        certificate,
        audit_disk,
        state_disk,
        audit_failed,
        kek_certificates,
        broken_seals,
        spent,
        unbacked,
        gone,
        unsynced,
        unlike,
        rotations,
        floor,
        evidence,
        differences,
        backlog,
        outage,
        panicked,
    } = sight;
    let mut all = Vec::new();
    let mut add = |alarm: Alarm, subject: &str, detail: String| {
        all.push(Found {
            alarm,
            subject: subject.to_owned(),
            detail,
        });
    };
    for token in tokens {
        let why = token.why.clone().unwrap_or_else(|| token.state.to_owned());
        match token.state {
            "locked" => add(Alarm::TokenLocked, &token.name, why),
            "failed" | "starting" if token.lasts => add(Alarm::TokenDown, &token.name, why),
            "degraded" if token.lasts => add(Alarm::TokenDegraded, &token.name, why),
            _ => {}
        }
        if let Some(what) = &token.pin_low {
            add(Alarm::PinLow, &token.name, what.clone());
        }
    }
    let (last, mut none) = copies(tokens);
    for label in gone {
        if !none.contains(&label.as_str()) {
            none.push(label);
        }
    }
    if !last.is_empty() {
        add(Alarm::LastCopy, "", named(&last));
    }
    if !none.is_empty() {
        add(Alarm::NoCopy, "", named(&none));
    }
    if certificate.whole_days() < CERTIFICATE_DAYS {
        let days = certificate.whole_days();
        add(Alarm::Certificate, "", format!("in {days} days"));
    }
    for (alarm, disk) in [
        (Alarm::AuditDisk, audit_disk),
        (Alarm::StateDisk, state_disk),
    ] {
        if let Some(used) = disk.as_ref().map(Disk::used) {
            let bound = bound(DISK, raised.is_raised(alarm, ""));
            if used >= bound {
                add(alarm, "", format!("{used} % in use"));
            }
        }
    }
    if let Some(free) = audit_disk.map(|disk| disk.free)
        && free < *floor
        && !all.iter().any(|found| found.alarm == Alarm::AuditDisk)
    {
        all.push(Found {
            alarm: Alarm::AuditDisk,
            subject: String::new(),
            detail: format!("{free} bytes free, less than records.floor_mib"),
        });
    }
    let mut add = |alarm: Alarm, subject: &str, detail: String| {
        all.push(Found {
            alarm,
            subject: subject.to_owned(),
            detail,
        });
    };
    if *audit_failed {
        add(Alarm::AuditFailed, "", "see the log".to_owned());
    }
    for (label, warning) in kek_certificates {
        add(Alarm::KekCertificate, label, warning.clone());
    }
    for (label, reason) in broken_seals {
        add(Alarm::PartnerSeal, label, reason.clone());
    }
    for (whose, how) in spent {
        add(Alarm::PaddingBudget, whose, how.clone());
    }
    if !unbacked.is_empty() {
        let labels: Vec<&str> = unbacked.iter().map(String::as_str).collect();
        add(Alarm::NoBackup, "", named(&labels));
    }
    for (peer, why) in unsynced {
        add(Alarm::SyncFailed, peer, why.clone());
    }
    for (peer, what) in unlike {
        add(Alarm::SyncDiffers, peer, what.clone());
    }
    for (label, why) in rotations {
        add(Alarm::Rotation, label, why.clone());
    }
    let EvidenceSeen {
        late,
        mismatch,
        emergency,
        outlets,
    } = evidence;
    for (alarm, detail) in [
        (Alarm::SealLate, late),
        (Alarm::ChainMismatch, mismatch),
        (Alarm::Emergency, emergency),
    ] {
        if let Some(detail) = detail {
            add(alarm, "", detail.clone());
        }
    }
    for (to, detail) in outlets {
        add(Alarm::Outlet, to, detail.clone());
    }
    for (what, how) in differences {
        add(Alarm::PeerDiffers, what, how.clone());
    }
    if let Some(what) = backlog {
        add(Alarm::HistoryBacklog, "", what.clone());
    }
    if let Some(why) = outage {
        add(Alarm::DatabaseDown, "", why.clone());
    }
    for (watcher, how) in panicked {
        add(Alarm::Watcher, watcher, how.clone());
    }
    for gate in gates {
        let share = gate.waiting * 100 / gate.most.max(1);
        let bound = bound(WAITING, raised.is_raised(Alarm::Busy, &gate.name));
        if share >= bound || gate.refused > 0 {
            let detail = format!(
                "{} of {} wait, {} were refused",
                gate.waiting, gate.most, gate.refused
            );
            add(Alarm::Busy, &gate.name, detail);
        }
    }
    all
}

const fn bound<T: Copy>(rises_and_ends: (T, T), raised: bool) -> T {
    if raised {
        rises_and_ends.1
    } else {
        rises_and_ends.0
    }
}

impl Disk {
    /// The share in use, per cent.
    #[must_use]
    pub const fn used(&self) -> u64 {
        let used = self.size.saturating_sub(self.free);
        match self.size {
            0 => 0,
            size => used.saturating_mul(100) / size,
        }
    }
}

/// The KEKs with one usable copy left of several, and those with none.
fn copies(tokens: &[Token]) -> (Vec<&str>, Vec<&str>) {
    let mut copies: BTreeMap<[u8; 32], (&str, usize, usize)> = BTreeMap::new();
    for token in tokens {
        for (hash, label) in &token.keks {
            let (_, all, usable) = copies.entry(*hash.as_bytes()).or_insert((label, 0, 0));
            *all += 1;
            // One that is away for a moment only is started again, or renewed.
            *usable += usize::from(token.serves || !token.lasts);
        }
        for (hash, label) in &token.lost {
            let (_, all, _) = copies.entry(*hash.as_bytes()).or_insert((label, 0, 0));
            *all += 1;
        }
    }
    let with = |wanted: fn(usize, usize) -> bool| {
        copies
            .values()
            .filter(|(_, all, usable)| wanted(*all, *usable))
            .map(|(label, ..)| *label)
            .collect()
    };
    (
        with(|all, usable| all > 1 && usable == 1),
        with(|_, usable| usable == 0),
    )
}

fn named(labels: &[&str]) -> String {
    let first: Vec<&str> = labels.iter().take(NAMED).copied().collect();
    match labels.len() - first.len() {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}

#[cfg(test)]
mod tests;
