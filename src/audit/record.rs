//! What a record says, and its line.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;

use super::AuditError;
use super::seal::ChainMark;

/// The longest line, so that a reader's memory has a bound. A record with two EEDKs is about 1 kB.
pub(super) const MAX_LINE: usize = 1024 * 1024;

/// The field of work that an event belongs to (the five that tape key managers have always used).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Kind {
    /// A peer or a token login was recognised or refused.
    Authentication,
    /// A key was asked for, or the server itself changed state.
    Runtime,
    /// A drive, key or volume row was added, changed or removed.
    ResourceManagement,
    /// The configuration or a certificate changed.
    ConfigurationManagement,
    /// State was copied between servers, backed up or restored.
    DataSynchronization,
}

impl Kind {
    /// Its name, as records have it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Authentication => "authentication",
            Self::Runtime => "runtime",
            Self::ResourceManagement => "resource_management",
            Self::ConfigurationManagement => "configuration_management",
            Self::DataSynchronization => "data_synchronization",
        }
    }
}

/// How far the event came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It is about to happen; an answer leaves only after this record. One that no outcome follows
    /// may have happened.
    Intent,
    /// It happened.
    Success,
    /// It was refused or failed.
    Failure,
}

/// One EEDK, told apart without its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EedkMark {
    /// SHA-256 of the whole EEDK, in hexadecimal.
    pub sha256: String,
    /// The KEK that it names, as it names it.
    pub kek: String,
    /// How it names the KEK: `label` or `hash`.
    pub encoding: String,
    /// Whether this site never issued it.
    pub foreign: bool,
    /// Whether it is the one that gave the data key.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub opened: bool,
}

/// One thing that happened. No field ever holds a key or a PIN.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// The field of work.
    pub kind: Kind,
    /// What was done, such as `create`, `resolve`, `rekey`, `confirm` or `kek-generate`.
    pub action: String,
    /// How far it came.
    pub outcome: Outcome,
    /// The request's id; the intent and its outcome share it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    /// Who asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// The drive that the key is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drive: Option<String>,
    /// The cartridge's volume serial.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volser: Option<String>,
    /// The data key identifier, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dki: Option<String>,
    /// The labels of the KEKs that took part.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keks: Vec<String>,
    /// The EEDKs that came in or went out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub eedks: Vec<EedkMark>,
    /// The fingerprint of the public key that the data key was wrapped for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drive_key: Option<String>,
    /// The token that did the work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Where the data key existed in clear: `token` or `host`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub custody: Option<String>,
    /// The EKM's own error code, such as `EE31`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// The full error, or what else a reader needs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// What it says of the chain itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chain: Option<Box<ChainMark>>,
}

impl Event {
    /// An event with nothing but its three names; the rest are plain fields.
    pub fn new(kind: Kind, action: impl Into<String>, outcome: Outcome) -> Self {
        Self {
            kind,
            action: action.into(),
            outcome,
            request: None,
            peer: None,
            drive: None,
            volser: None,
            dki: None,
            keks: Vec::new(),
            eedks: Vec::new(),
            drive_key: None,
            token: None,
            custody: None,
            code: None,
            detail: None,
            chain: None,
        }
    }
}

/// One line of the log, parsed for display. Verification reads the raw bytes instead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The sequence number, from 1.
    pub seq: u64,
    /// When it was written, RFC 3339 in UTC with nanoseconds.
    pub time: String,
    /// The server that wrote it.
    pub node: String,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
    /// The hash of the record before, 64 hexadecimal digits.
    pub prev: String,
    /// The record's own hash, 64 hexadecimal digits.
    pub hash: String,
}

/// Proof that one record is on disk, or, while the emergency policy is on and the disk is full,
/// that it is kept until the disk takes it ([`Receipt::is_durable`]). Only the log's writer makes
/// one.
///
/// ```compile_fail,E0451
/// let receipt = ekm::audit::Receipt { seq: 1, hash: panic!(), durable: true };
/// ```
#[derive(Debug, PartialEq, Eq)]
pub struct Receipt {
    seq: u64,
    hash: Hash,
    durable: bool,
}

impl Receipt {
    pub(super) fn new(head: Head) -> Self {
        let Head { seq, hash } = head;
        Self {
            seq,
            hash,
            durable: true,
        }
    }

    /// Of a record that has no place in the chain yet.
    pub(super) fn in_memory() -> Self {
        let Head { seq, hash } = Head::GENESIS;
        Self {
            seq,
            hash,
            durable: false,
        }
    }

    /// Whether the record is on disk.
    pub fn is_durable(&self) -> bool {
        self.durable
    }

    /// The record's sequence number; 0 where it is not on disk yet.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// The record's hash, 64 hexadecimal digits.
    pub fn hash(&self) -> String {
        self.hash.to_string()
    }
}

/// A SHA-256 value in the chain; displays as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Hash([u8; 32]);

impl Hash {
    fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Lower case only: the digits of `hash` are not under any hash themselves, and there must be
    /// no byte of a line that can change unseen.
    fn parse(digits: &[u8]) -> Option<Self> {
        let mut hash = [0; 32];
        hex::decode_to_slice(digits, &mut hash).ok()?;
        (!digits.iter().any(u8::is_ascii_uppercase)).then_some(Self(hash))
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The end of a chain: the last record, or what stands before the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) seq: u64,
    pub(super) hash: Hash,
}

impl Head {
    /// Before the first record.
    pub(super) const GENESIS: Self = Self {
        seq: 0,
        hash: Hash([0; 32]),
    };

    /// Appends the line of the next record to `out` and returns the new head.
    ///
    /// # Errors
    ///
    /// When the event cannot be encoded or is too long; `out` is then as it was.
    pub(super) fn append(
        self,
        event: &Event,
        node: &str,
        now: OffsetDateTime,
        out: &mut Vec<u8>,
    ) -> Result<Self, AuditError> {
        #[derive(Serialize)]
        struct Body<'a> {
            seq: u64,
            time: String,
            node: &'a str,
            #[serde(flatten)]
            event: &'a Event,
            prev: String,
        }

        let seq = self.seq.saturating_add(1);
        let mut line = serde_json::to_vec(&Body {
            seq,
            time: rfc3339(now),
            node,
            event,
            prev: self.hash.to_string(),
        })
        .map_err(AuditError::Encode)?;
        line.pop();
        let hash = Hash::of(&line);
        line.extend_from_slice(HASH_FIELD);
        line.extend_from_slice(hash.to_string().as_bytes());
        line.extend_from_slice(b"\"}\n");
        if line.len() > MAX_LINE {
            return Err(AuditError::TooLong {
                length: line.len(),
                limit: MAX_LINE,
            });
        }
        out.append(&mut line);
        Ok(Self { seq, hash })
    }
}

/// What the raw bytes of one line say about its place in the chain.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) seq: u64,
    pub(super) prev: Hash,
    /// As written in the line.
    pub(super) stated: Hash,
    /// As its bytes hash.
    pub(super) computed: Hash,
}

impl Link {
    /// Reads a line without its newline; `None` when it has not the shape that the writer gives.
    pub(super) fn parse(line: &[u8]) -> Option<Self> {
        let (body, stated) = split_field(line.strip_suffix(b"}")?, HASH_FIELD)?;
        let (_, prev) = split_field(body, PREV_FIELD)?;
        Some(Self {
            seq: parse_seq(body)?,
            prev,
            stated,
            computed: Hash::of(body),
        })
    }
}

/// The sequence number that a line begins with.
pub(super) fn parse_seq(line: &[u8]) -> Option<u64> {
    let rest = line.strip_prefix(SEQ_FIELD)?;
    let end = rest.iter().position(|byte| *byte == b',')?;
    std::str::from_utf8(rest.get(..end)?).ok()?.parse().ok()
}

/// Splits `…,"name":"<64 hex>"` before its comma.
fn split_field<'a>(bytes: &'a [u8], name: &[u8]) -> Option<(&'a [u8], Hash)> {
    let rest = bytes.strip_suffix(b"\"")?;
    let (rest, digits) = rest.split_at_checked(rest.len().checked_sub(64)?)?;
    Some((rest.strip_suffix(name)?, Hash::parse(digits)?))
}

/// Always nine digits of a second, so that lines sort as text.
pub(super) fn rfc3339(now: OffsetDateTime) -> String {
    let (year, month, day) = now.to_offset(time::UtcOffset::UTC).to_calendar_date();
    let (hour, minute, second, nano) = now.to_offset(time::UtcOffset::UTC).to_hms_nano();
    format!(
        "{year:04}-{:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nano:09}Z",
        u8::from(month)
    )
}

const SEQ_FIELD: &[u8] = b"{\"seq\":";
const PREV_FIELD: &[u8] = b",\"prev\":\"";
const HASH_FIELD: &[u8] = b",\"hash\":\"";

#[cfg(test)]
mod tests {
    use super::*;

    fn line(event: &Event) -> Vec<u8> {
        let mut out = Vec::new();
        let now = time::macros::datetime!(2026-03-01 12:00:00 +1);
        Head::GENESIS.append(event, "a", now, &mut out).unwrap();
        out
    }

    #[test]
    fn a_line_is_these_bytes() {
        let mut event = Event::new(Kind::Runtime, "create", Outcome::Intent);
        event.drive = Some("000001234567".into());
        let line = String::from_utf8(line(&event)).unwrap();
        let body = format!(
            "{{\"seq\":1,\"time\":\"2026-03-01T11:00:00.000000000Z\",\"node\":\"a\",\
             \"kind\":\"runtime\",\"action\":\"create\",\"outcome\":\"intent\",\
             \"drive\":\"000001234567\",\"prev\":\"{}\"",
            "0".repeat(64)
        );
        let hash = hex::encode(Sha256::digest(&body));
        assert_eq!(line, format!("{body},\"hash\":\"{hash}\"}}\n"));
    }

    #[test]
    fn text_of_a_peer_cannot_break_the_line() {
        let mut event = Event::new(Kind::Runtime, "create", Outcome::Failure);
        event.detail = Some("a\nb\",\"hash\":\"00\u{1b}[2J".into());
        let line = line(&event);
        assert_eq!(
            line.iter().filter(|byte| byte.is_ascii_control()).count(),
            1
        );
        let link = Link::parse(line.strip_suffix(b"\n").unwrap()).unwrap();
        assert_eq!(link.stated, link.computed);
        let record: Record = serde_json::from_slice(&line).unwrap();
        assert_eq!(record.event, event);
        assert_eq!(record.hash, link.stated.to_string());
    }

    #[test]
    fn no_byte_of_a_line_can_change_unseen() {
        let mut event = Event::new(Kind::Authentication, "login", Outcome::Success);
        event.keks = vec!["alpha".into()];
        let line = line(&event);
        let line = line.strip_suffix(b"\n").unwrap();
        for place in 0..line.len() {
            for mask in [0x01, 0x20, 0x80] {
                let mut altered = line.to_vec();
                altered[place] ^= mask;
                let seen = Link::parse(&altered).is_none_or(|link| link.stated != link.computed);
                assert!(seen, "byte {place} with {mask:02x}");
            }
        }
    }

    #[test]
    fn a_line_over_the_limit_is_refused() {
        let mut event = Event::new(Kind::Runtime, "create", Outcome::Failure);
        event.detail = Some("x".repeat(MAX_LINE));
        let mut out = Vec::new();
        let refused = Head::GENESIS.append(&event, "a", OffsetDateTime::UNIX_EPOCH, &mut out);
        assert!(matches!(refused, Err(AuditError::TooLong { .. })));
        assert!(out.is_empty());
    }
}
