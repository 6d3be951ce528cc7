//! Looks after a running server: what it measures, and what it raises alarms for.

mod fleet;
mod held;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::desk::Desk;
use super::watchers::Panics;
use crate::alarms::{self, ALARMS, Alarms, Disk, Sight};
use crate::bridge::faults::Fault;
use crate::bridge::message::PrivateHalf;
use crate::bridge::supervisor::{Bridge, TokenState};
use crate::config::Config;
use crate::key::KekHash;
use crate::metrics::{Page, Requests, Value, families};
use crate::policy::BackupBeforeServing;
use crate::service::{Service, Whose};
use crate::store::KekState;
use crate::tls::ServerTls;
use held::Held;

/// Time between two looks.
const LOOK: Duration = Duration::from_secs(1);

/// Time between two looks at certificates and seals.
const SELDOM: Duration = Duration::from_secs(5);

/// States of a token, as one word each, and how long they may last before
/// they are told of; a token that is only started anew is no alarm.
const STATES: [(&str, Duration); 5] = [
    ("starting", Duration::from_secs(60)),
    ("ready", Duration::MAX),
    ("degraded", Duration::from_secs(10)),
    ("failed", Duration::from_secs(2)),
    ("locked", Duration::ZERO),
];

/// What is looked at.
#[derive(Debug)]
pub(super) struct Monitor {
    service: Arc<Service>,
    tls: Arc<ServerTls>,
    desk: Arc<Desk>,
    requests: Arc<Requests>,
    alarms: Arc<Alarms>,
    state: PathBuf,
    audit: PathBuf,
    floor: u64,
    seen: Mutex<Seen>,
    panics: Panics,
}

/// What the last look saw, and the next one compares with.
#[derive(Debug, Default)]
struct Seen {
    // Each token's state, and since when.
    tokens: HashMap<String, (&'static str, Instant)>,
    // Requests that each gate had refused.
    refused: HashMap<String, u64>,
    audit_disk: Option<Disk>,
    state_disk: Option<Disk>,
    // KEKs whose certificate has ended or ends soon, and when.
    kek_certificates: Vec<(String, String)>,
    // KEKs here that were never backed up or copied, where the policy asks for that.
    unbacked: Vec<String>,
    // What the registry has on tokens that have not been up since the start.
    away: HashMap<String, Vec<(KekHash, String)>>,
    // What the tokens held before the start, and what is noted for the next one.
    before: Held,
    noted: Held,
    // Why that could not be noted.
    unnoted: Option<String>,
    // What each token has held since the start, and since when it does not show it.
    held: HashMap<String, HashMap<KekHash, (String, Option<Instant>)>>,
    // KEKs that are revoked or destroyed: nobody misses them.
    ended: HashSet<KekHash>,
    // KEKs of the registry that no token shows.
    gone: Vec<String>,
    // KEKs that were not rotated when that was due, and why.
    rotations: Vec<(String, String)>,
}

impl Monitor {
    pub(super) fn new(
        config: &Config,
        service: Arc<Service>,
        tls: Arc<ServerTls>,
        desk: Arc<Desk>,
    ) -> Self {
        let before = Held::read(&held::file(&config.state));
        let seen = Seen {
            noted: before.clone(),
            before,
            ..Seen::default()
        };
        Self {
            alarms: Arc::clone(service.alarms()),
            service,
            tls,
            desk,
            requests: Arc::default(),
            state: config.state.clone(),
            audit: config.audit.clone(),
            floor: config.records.floor(),
            seen: Mutex::new(seen),
            panics: Panics::default(),
        }
    }

    /// Where the server's loops note their panics.
    pub(super) const fn panics(&self) -> &Panics {
        &self.panics
    }

    /// The counters of the drives' door.
    pub(super) const fn requests(&self) -> &Arc<Requests> {
        &self.requests
    }

    /// The alarms that are raised, a line each.
    pub(super) fn raised(&self) -> String {
        let raised = self.alarms.raised();
        raised
            .iter()
            .map(|(alarm, subject, raised)| {
                let entry = alarm.entry();
                let subject = if subject.is_empty() {
                    String::new()
                } else {
                    format!(" ({subject})")
                };
                format!(
                    "{} {}{subject}: {}\n",
                    entry.code, entry.title, raised.detail
                )
            })
            .collect()
    }

    /// Looks at everything once a second and raises what is to be raised.
    pub(super) async fn watch(self: Arc<Self>) {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            look.tick().await;
            let (audit, state) = (self.audit.clone(), self.state.clone());
            // A file system on the network may not answer.
            let disks = tokio::task::spawn_blocking(move || (disk(&audit), disk(&state)));
            if let Ok((audit_disk, state_disk)) = disks.await {
                let mut seen = self.seen();
                seen.audit_disk = audit_disk;
                seen.state_disk = state_disk;
            }
            let sight = self.sight();
            self.alarms.settle(alarms::found(&sight, &self.alarms));
        }
    }

    /// Looks at the certificates of KEKs, and has seals verified that were not yet. A token may
    /// not answer, and the other looks do not wait for that.
    pub(super) async fn watch_certificates(self: Arc<Self>) {
        let mut look = tokio::time::interval(SELDOM);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            look.tick().await;
            let states = self.service.store().kek_states().await;
            if let (Ok(directory), Ok(states)) = (self.service.directory().await, states) {
                let now = time::OffsetDateTime::now_utc();
                let keks = directory.keks().iter();
                let mut seen = self.seen();
                seen.kek_certificates = keks
                    .filter_map(|kek| Some((kek.label.to_string(), kek.validity?.warning(now)?)))
                    .collect();
                let told = self.service.policy().backup_before_serving != BackupBeforeServing::Off;
                seen.unbacked = directory
                    .keks()
                    .iter()
                    .filter(|kek| told && !kek.tokens.is_empty() && !kek.is_kept())
                    .map(|kek| kek.label.to_string())
                    .collect();
                let ended = |kek: &KekHash| states.state(kek) >= KekState::Revoked;
                seen.ended = states.all().into_iter().map(|(kek, _)| kek).collect();
                seen.ended.retain(ended);
                seen.gone = directory
                    .keks()
                    .iter()
                    .filter(|kek| kek.missing.is_some() && kek.partner.is_none())
                    .filter(|kek| !ended(&kek.hash))
                    .map(|kek| kek.label.to_string())
                    .collect();
                seen.away.clear();
                for kek in directory.keks() {
                    for token in &kek.away {
                        let on_it = seen.away.entry(token.clone()).or_default();
                        on_it.push((kek.hash, kek.label.to_string()));
                    }
                }
            }
            if let Ok(troubles) = crate::admin::rotation_troubles(&self.service).await {
                self.seen().rotations = troubles;
            }
            self.note_held().await;
            self.service.see_new_seals().await;
        }
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sight(&self) -> Sight {
        let mut seen = self.seen();
        let bridges = self.service.tokens().bridges();
        let tokens = bridges.iter().map(|bridge| seen.token(bridge)).collect();
        let gates = self.service.gates();
        let gates = gates
            .into_iter()
            .map(|gate| {
                let before = seen
                    .refused
                    .insert(gate.name.clone(), gate.refused)
                    .unwrap_or_default();
                alarms::Gate {
                    name: gate.name,
                    waiting: gate.waiting,
                    most: gate.most,
                    refused: gate.refused - before,
                }
            })
            .collect();
        Sight {
            tokens,
            gates,
            certificate: self.tls.expiry() - time::OffsetDateTime::now_utc(),
            audit_disk: seen.audit_disk,
            state_disk: seen.state_disk,
            audit_failed: self.service.audit().has_failed(),
            kek_certificates: seen.kek_certificates.clone(),
            broken_seals: self.service.broken_seals(),
            spent: spent(&self.service),
            unbacked: seen.unbacked.clone(),
            gone: seen.gone.clone(),
            unsynced: self.service.peers().failing(),
            unlike: self.service.peers().differing(),
            rotations: seen.rotations.clone(),
            floor: self.floor,
            evidence: self.service.evidence(),
            differences: self.service.fleet_differences(),
            backlog: fleet::backlog(&self.service),
            outage: fleet::outage(&self.service),
            panicked: self.panics.of_late(),
        }
    }

    /// All measurements, in the Prometheus text format.
    ///
    /// # Errors
    /// They cannot be written; a defect.
    pub(super) fn page(&self) -> Result<String, fmt::Error> {
        let mut page = Page::default();
        page.add(families::BUILD, &[env!("CARGO_PKG_VERSION")], true);
        let raised = self.alarms.raised();
        for entry in &ALARMS {
            let count = raised
                .iter()
                .filter(|(alarm, ..)| *alarm == entry.alarm)
                .count();
            page.add(families::ALARM, &[entry.code], count);
        }
        self.add_requests(&mut page);
        self.add_door(&mut page);
        for bridge in self.service.tokens().bridges() {
            add_token(&mut page, bridge);
        }
        self.add_site(&mut page);
        page.text()
    }

    fn add_requests(&self, page: &mut Page) {
        for seen in self.requests.seen() {
            let verb = seen.verb.name();
            for (outcome, count) in seen.outcomes {
                let labels = [verb, &outcome.label()];
                page.add(families::REQUESTS, &labels, Value::Count(count));
            }
            page.add(families::REQUEST_SECONDS, &[verb], Value::Times(seen.took));
        }
        for gate in self.service.gates() {
            let name = [gate.name.as_str()];
            page.add(families::PLACES, &name, gate.places);
            page.add(families::UNDER_WAY, &name, gate.under_way);
            page.add(families::WAITING, &name, gate.waiting);
            page.add(families::WAITING_PEERS, &name, gate.peers);
            page.add(families::REFUSED, &name, Value::Count(gate.refused));
            page.add(families::LEFT, &name, Value::Count(gate.left));
            page.add(families::WAIT_SECONDS, &name, Value::Times(gate.waited));
        }
    }

    fn add_door(&self, page: &mut Page) {
        let door = self.desk.seen();
        page.add(families::CONNECTIONS, &[], door.open);
        page.add(families::CONNECTIONS_LIMIT, &[], door.limit);
        page.add(families::ACCEPTED, &[], Value::Count(door.accepted));
        page.add(families::DISPLACED, &[], Value::Count(door.displaced));
        page.add(families::UNSEATED, &[], Value::Count(door.refused));
    }

    fn add_site(&self, page: &mut Page) {
        let counted = self.service.openings();
        page.add(families::GUARDED, &[], Value::Count(counted.openings));
        let refused = Value::Count(counted.refused);
        page.add(families::GUARDED_REFUSED, &[], refused);
        page.add(families::GUARDED_SPENT, &[], spent(&self.service).len());
        fleet::add(&self.service, page);
        let audit = self.service.audit();
        let stats = audit.stats();
        page.add(families::AUDIT_RECORDS, &[], Value::Count(stats.records));
        page.add(
            families::AUDIT_SYNC_SECONDS,
            &[],
            Value::Times(audit.sync_times()),
        );
        page.add(families::AUDIT_FAILED, &[], audit.has_failed());
        page.add(families::AUDIT_EMERGENCY, &[], audit.in_emergency());
        let kept = audit.gap().map_or(0, |gap| gap.kept);
        page.add(
            families::AUDIT_MEMORY,
            &[],
            usize::try_from(kept).unwrap_or(usize::MAX),
        );
        for outlet in audit.outlets() {
            let to = [outlet.name.as_str()];
            page.add(families::OUTLET_SENT, &to, Value::Count(outlet.sent));
            page.add(families::OUTLET_LOST, &to, Value::Count(outlet.lost));
        }
        let expiry = self.tls.expiry() - time::OffsetDateTime::UNIX_EPOCH;
        page.add(
            families::CERTIFICATE,
            &[],
            Value::Level(expiry.as_seconds_f64()),
        );
        let seen = self.seen();
        for (directory, disk) in [("audit", seen.audit_disk), ("state", seen.state_disk)] {
            if let Some(Disk { size, free }) = disk {
                page.add(families::DISK_FREE, &[directory], bytes(free));
                page.add(families::DISK_SIZE, &[directory], bytes(size));
            }
        }
    }
}

impl Seen {
    fn token(&mut self, bridge: &Bridge) -> alarms::Token {
        let state = bridge.state();
        let (name, word) = (bridge.name().to_owned(), state.word());
        let now = Instant::now();
        let noted = self.tokens.entry(name.clone()).or_insert((word, now));
        if noted.0 != word {
            *noted = (word, now);
        }
        let since = noted.1;
        let patience = STATES
            .iter()
            .find(|(known, _)| *known == word)
            .map_or(Duration::ZERO, |(_, patience)| *patience);
        let found = state.found();
        let keks: Vec<(KekHash, String)> = match found {
            Some(found) => found
                .keks
                .iter()
                .filter(|kek| matches!(kek.private, PrivateHalf::Serves { .. }))
                .map(|kek| (kek.hash, kek.label.to_string()))
                .collect(),
            None => self.away(bridge.name()),
        };
        let lost = match found {
            Some(_) => self.lost(&name, &keks),
            None => Vec::new(),
        };
        alarms::Token {
            name,
            state: word,
            serves: state.serves(),
            why: state.why(),
            lasts: since.elapsed() >= patience,
            pin_low: match &state {
                // It may have been locked before anything could be read on it.
                TokenState::Locked { why, .. } if matches!(why, Fault::WrongPin { .. }) => {
                    Some(why.to_string())
                }
                _ => bridge
                    .token_info()
                    .and_then(|token| token.wrong_pins())
                    .map(str::to_owned),
            },
            keks,
            lost,
        }
    }

    /// The KEKs that a token held since the start, and has not shown for a while.
    fn lost(&mut self, token: &str, keks: &[(KekHash, String)]) -> Vec<(KekHash, String)> {
        let held = self.held.entry(token.to_owned()).or_default();
        for (kek, label) in keks {
            held.insert(*kek, (label.clone(), None));
        }
        let mut lost = Vec::new();
        for (kek, (label, since)) in held.iter_mut() {
            if keks.iter().any(|(shown, _)| shown == kek) || self.ended.contains(kek) {
                *since = None;
                continue;
            }
            // One that an operator destroys is known as ended by then.
            if since.get_or_insert_with(Instant::now).elapsed() > SELDOM * 2 {
                lost.push((*kek, label.clone()));
            }
        }
        lost
    }
}

fn add_token(page: &mut Page, bridge: &Bridge) {
    let (name, state) = (bridge.name(), bridge.state());
    for (word, _) in STATES {
        page.add(families::TOKEN_STATE, &[name, word], state.word() == word);
    }
    page.add(families::TOKEN_BRIDGES, &[name], state.bridges().len());
    let starts = Value::Count(bridge.starts());
    page.add(families::TOKEN_STARTS, &[name], starts);
    page.add(families::TOKEN_REQUESTS, &[name], bridge.under_way());
    if let Some(heard) = bridge.proof_age() {
        page.add(families::TOKEN_HEARD, &[name], heard);
    }
    let stats = bridge.stats();
    page.add(families::TOKEN_BUSY, &[name], stats.busy);
    page.add(families::TOKEN_WORKERS, &[name], bridge.capacity());
    let logins = Value::Count(stats.logins());
    page.add(families::TOKEN_LOGINS, &[name], logins);
    for (function, calls) in &stats.calls {
        let labels = [name, function.as_str()];
        page.add(families::CALL_SECONDS, &labels, Value::Times(calls.took));
        page.add(families::CALL_ERRORS, &labels, Value::Count(calls.errors));
    }
    for (function, age) in &stats.under_way {
        page.add(families::CALL_AGE, &[name, function.as_str()], *age);
    }
    for (function, hangs) in &stats.hangs {
        let hangs = Value::Count(*hangs);
        page.add(families::CALL_HANGS, &[name, function.as_str()], hangs);
    }
    let found = state.found();
    page.add(
        families::TOKEN_KEKS,
        &[name],
        found.map_or(0, |found| found.keks.len()),
    );
    if let Some(token) = bridge.token_info() {
        for (flag, set) in [
            ("CKF_USER_PIN_COUNT_LOW", token.user_pin_count_low()),
            ("CKF_USER_PIN_FINAL_TRY", token.user_pin_final_try()),
            ("CKF_USER_PIN_LOCKED", token.user_pin_locked()),
        ] {
            page.add(families::TOKEN_PIN, &[name, flag], set);
        }
    }
}

/// Budgets of EEDKs that do not open which are spent: whose, and how.
fn spent(service: &Service) -> Vec<(String, String)> {
    let budgets = service.budgets();
    let spent = budgets.iter().filter(|budget| budget.spent());
    spent
        .map(|budget| {
            let (whose, within) = match &budget.whose {
                Whose::Peer(peer) => (peer.to_string(), " in an hour"),
                Whose::Kek(kek) => (format!("KEK {kek}"), ""),
            };
            let how = format!("{} of {}{within}", budget.failures, budget.limit);
            (whose, how)
        })
        .collect()
}

/// The file system that a directory is on; none where it cannot be looked at.
fn disk(directory: &Path) -> Option<Disk> {
    let seen = rustix::fs::statvfs(directory).ok()?;
    // What only root may use is neither free nor part of it.
    let reserved = seen.f_bfree.saturating_sub(seen.f_bavail);
    Some(Disk {
        size: (seen.f_blocks.saturating_sub(reserved)).saturating_mul(seen.f_frsize),
        free: seen.f_bavail.saturating_mul(seen.f_frsize),
    })
}

fn bytes(count: u64) -> Value {
    // Past 2^53 the last digits do not matter.
    let (high, low) = (count >> 32, count & 0xffff_ffff);
    let half = |bits: u64| f64::from(u32::try_from(bits).unwrap_or(u32::MAX));
    Value::Level(half(high).mul_add(4_294_967_296.0, half(low)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_counted_past_four_gigabytes() {
        assert_eq!(bytes(5), Value::Level(5.0));
        assert_eq!(bytes(10 << 40), Value::Level(10_995_116_277_760.0));
    }

    #[test]
    fn a_disk_has_no_more_free_than_it_has() {
        let disk = disk(Path::new("/")).unwrap();
        assert!(disk.free <= disk.size && disk.size > 0, "{disk:?}");
    }
}
