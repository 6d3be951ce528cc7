//! What is checked beside the chain itself: seals, and what is known of it from elsewhere.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

use super::record::{Hash, Head, Link, Record};
use super::seal::{Anchor, Begins, ChainMark, HeadMark, Seal, SealKey};
use super::verify::file_path;
use super::{AuditError, SealFound};

/// How far behind its own record the last one that a seal covers may be, so that a reader's memory
/// has a bound.
pub(crate) const SEAL_REACH: u64 = 50_000;

/// What raw bytes of a line say that it speaks of the chain. No text of a peer can, since a quote
/// in a string is escaped.
pub(super) const CHAIN_FIELD: &[u8] = b",\"chain\":{\"";

/// What is known of a log from elsewhere.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expected {
    /// Keys that may have sealed it; without one, signatures are not checked.
    pub keys: Vec<SealKey>,
    /// A seal that it must have.
    pub seal: Option<Anchor>,
    /// A record that it must have.
    pub head: Option<HeadMark>,
    /// Whether a seal must cover every record.
    pub sealed: bool,
}

/// What the seals of a log cover.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Sealed {
    /// How many there are.
    pub seals: u64,
    /// The newest.
    pub newest: Option<SealFound>,
    /// Whether their signatures were verified.
    pub verified: bool,
    /// Records that no seal covers.
    pub unsealed: u64,
}

/// Where a record stands.
#[derive(Debug, Clone)]
struct Place {
    file: Arc<Path>,
    line: u64,
    seq: u64,
}

/// Goes along with the walk.
#[derive(Debug)]
pub(super) struct Checker<'a> {
    expected: &'a Expected,
    // The newest hashes, for the seals to come.
    recent: VecDeque<(Head, Place)>,
    newest: Option<SealFound>,
    seals: u64,
    // The last record that a seal covers.
    covered: u64,
    // The first record after it; where the seal itself stands does not count.
    loose: Option<Place>,
    // What stands before the first record, where that is not the log's very first.
    before: Option<Head>,
    explained: bool,
    oldest_seal: Option<u64>,
    seal_seen: bool,
    head_seen: bool,
    last: Option<Place>,
}

impl<'a> Checker<'a> {
    pub(super) const fn new(expected: &'a Expected) -> Self {
        Self {
            expected,
            recent: VecDeque::new(),
            newest: None,
            seals: 0,
            covered: 0,
            loose: None,
            before: None,
            explained: false,
            oldest_seal: None,
            seal_seen: false,
            head_seen: false,
            last: None,
        }
    }

    /// A record that fits the chain so far.
    pub(super) fn record(
        &mut self,
        raw: &[u8],
        file: &Arc<Path>,
        line: u64,
        head: Head,
    ) -> Result<(), AuditError> {
        let place = Place {
            file: Arc::clone(file),
            line,
            seq: head.seq,
        };
        if self.last.is_none() && head.seq > 1 {
            self.before = Link::parse(raw).map(|link| Head {
                seq: head.seq.saturating_sub(1),
                hash: link.prev,
            });
        }
        let mark = if holds(raw, CHAIN_FIELD) {
            let record: Record =
                serde_json::from_slice(raw).map_err(|_| AuditError::Malformed {
                    file: file.to_path_buf(),
                    line,
                    seq: Some(head.seq),
                })?;
            record.event.chain.map(|mark| (record.node, *mark))
        } else {
            None
        };
        let mut sealing = false;
        match mark {
            Some((node, ChainMark::Seal(seal))) => {
                self.seal(&seal, &node, &place, head)?;
                sealing = true;
            }
            Some((_, ChainMark::Begins(begins))) => self.begins(&begins),
            Some((_, ChainMark::Gap(_))) | None => {}
        }
        if !sealing {
            self.loose.get_or_insert_with(|| place.clone());
        }
        if let Some(wanted) = &self.expected.head
            && wanted.seq == head.seq
        {
            self.known(&format!("record {}", head.seq), &wanted.hash, &place, head)?;
            self.head_seen = true;
            self.loose = None;
        }
        self.recent.push_back((head, place.clone()));
        let bound = usize::try_from(SEAL_REACH).unwrap_or(usize::MAX);
        if self.recent.len() > bound {
            self.recent.pop_front();
        }
        self.last = Some(place);
        Ok(())
    }

    fn seal(
        &mut self,
        seal: &Seal,
        node: &str,
        place: &Place,
        head: Head,
    ) -> Result<(), AuditError> {
        let wrong = |reason: String| AuditError::WrongSeal {
            file: place.file.to_path_buf(),
            line: place.line,
            seq: place.seq,
            number: seal.number,
            reason,
            after: self.covered,
        };
        if let Some(newest) = &self.newest
            && seal.number <= newest.number
        {
            return Err(wrong(format!("follows seal {}", newest.number)));
        }
        let covered = self.hash_of(seal.seq);
        match covered {
            Some(hash) if hash.to_string() == seal.hash => {}
            Some(hash) => {
                return Err(wrong(format!(
                    "says that record {} hashes to {}, and it hashes to {hash}",
                    seal.seq, seal.hash
                )));
            }
            None => {
                return Err(wrong(format!(
                    "covers record {}, which is not near before it",
                    seal.seq
                )));
            }
        }
        if !self.expected.keys.is_empty() {
            let mut keys = self.expected.keys.iter();
            if !keys.any(|key| seal.is_by(key, node)) {
                let known = keys_named(&self.expected.keys);
                return Err(wrong(format!(
                    "has no signature by a key that was given ({known}); it names the key {}",
                    seal.key
                )));
            }
        }
        if let Some(wanted) = &self.expected.seal
            && wanted.number == seal.number
        {
            if let Some(hash) = &wanted.hash {
                self.known(&format!("seal {}", seal.number), hash, place, head)?;
            }
            self.seal_seen = true;
        }
        // Those that came between what it covers and itself wait for the next one, unless the
        // seal's own hash is known.
        let known = self.expected.seal.as_ref();
        let known = known.is_some_and(|known| known.number == seal.number && known.hash.is_some());
        self.loose = match self.place_in_recent(seal.seq.saturating_add(1)) {
            Some((_, next)) if !known => Some(next.clone()),
            Some(_) | None => None,
        };
        self.seals = self.seals.saturating_add(1);
        self.oldest_seal.get_or_insert(seal.number);
        self.covered = seal.seq;
        self.newest = Some(SealFound {
            number: seal.number,
            seq: head.seq,
            hash: head.hash.to_string(),
            covers: seal.seq,
            key: seal.key.clone(),
        });
        Ok(())
    }

    fn begins(&mut self, begins: &Begins) {
        // A removal that a power cut stopped half-way leaves files that were to go.
        self.explained |= self.before.is_some_and(|before| {
            before.seq < begins.seq
                || before.seq == begins.seq && before.hash.to_string() == begins.hash
        });
    }

    fn hash_of(&self, seq: u64) -> Option<Hash> {
        if seq == 0 {
            return None;
        }
        if let Some(before) = self.before.filter(|before| before.seq == seq) {
            return Some(before.hash);
        }
        self.place_in_recent(seq).map(|(head, _)| head.hash)
    }

    fn place_in_recent(&self, seq: u64) -> Option<&(Head, Place)> {
        let first = self.recent.front()?.0.seq;
        self.recent
            .get(usize::try_from(seq.checked_sub(first)?).ok()?)
    }

    /// That a record is the one that is known from elsewhere.
    fn known(
        &self,
        what: &str,
        expected: &str,
        place: &Place,
        head: Head,
    ) -> Result<(), AuditError> {
        let got = head.hash.to_string();
        if got == expected {
            return Ok(());
        }
        Err(AuditError::Another {
            file: place.file.to_path_buf(),
            line: place.line,
            seq: place.seq,
            what: what.to_owned(),
            expected: expected.to_owned(),
            got,
            after: self.covered,
        })
    }

    /// What is missing at the end.
    pub(super) fn end(self, dir: &Path, first_file: u32) -> Result<Sealed, AuditError> {
        let Some(last) = self.last else {
            return Ok(Sealed::default());
        };
        if first_file > 1 && !self.explained {
            return Err(AuditError::MissingFile {
                file: file_path(dir, first_file.saturating_sub(1)),
            });
        }
        let cut = |what: String| AuditError::CutOff {
            file: last.file.to_path_buf(),
            line: last.line,
            seq: last.seq,
            what,
        };
        if let Some(wanted) = self.expected.head.as_ref().filter(|_| !self.head_seen) {
            let what = format!("record {}", wanted.seq);
            let removed = self.before.is_some_and(|before| wanted.seq <= before.seq);
            return Err(if removed {
                AuditError::TooOld { what }
            } else {
                cut(what)
            });
        }
        if let Some(wanted) = self.expected.seal.as_ref().filter(|_| !self.seal_seen) {
            let what = format!("seal {}", wanted.number);
            let removed = self.before.is_some()
                && self
                    .oldest_seal
                    .is_some_and(|oldest| wanted.number < oldest);
            return Err(if removed {
                AuditError::TooOld { what }
            } else {
                cut(what)
            });
        }
        if self.expected.sealed
            && let Some(loose) = self.loose
        {
            return Err(AuditError::Unsealed {
                file: loose.file.to_path_buf(),
                line: loose.line,
                seq: loose.seq,
            });
        }
        let sealing = self
            .newest
            .as_ref()
            .is_some_and(|seal| seal.seq == last.seq);
        let open = last.seq.saturating_sub(self.covered);
        Ok(Sealed {
            seals: self.seals,
            newest: self.newest,
            verified: self.seals > 0 && !self.expected.keys.is_empty(),
            unsealed: open.saturating_sub(u64::from(sealing)),
        })
    }
}

fn keys_named(keys: &[SealKey]) -> String {
    let names: Vec<String> = keys.iter().map(SealKey::fingerprint).collect();
    names.join(", ")
}

/// Whether `bytes` has `wanted` somewhere.
pub(super) fn holds(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}
