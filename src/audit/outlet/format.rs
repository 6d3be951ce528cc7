//! A record as a message of syslog (RFC 5424) or of the systemd journal.

use serde::{Deserialize, Serialize};
use syslog_fmt::Severity;
use syslog_fmt::v5424::{Config, Formatter, Msg, Timestamp};

use crate::audit::{ChainMark, Event, Outcome};

/// `SD-ID` of the record's fields. 32473 is the enterprise number for examples (RFC 5612), as this
/// program has none of its own.
const SD_ID: &str = "ekm@32473";

/// `APP-NAME`
const APP: &str = "ekm";

/// Which facility the messages have (RFC 5424, table 1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "they are the names of the facilities")]
pub enum Facility {
    User,
    Daemon,
    Auth,
    #[default]
    Authpriv,
    Local0,
    Local1,
    Local2,
    Local3,
    Local4,
    Local5,
    Local6,
    Local7,
}

impl Facility {
    const fn code(self) -> syslog_fmt::Facility {
        use syslog_fmt::Facility as Code;
        match self {
            Self::User => Code::User,
            Self::Daemon => Code::Daemon,
            Self::Auth => Code::Auth,
            Self::Authpriv => Code::Authpriv,
            Self::Local0 => Code::Local0,
            Self::Local1 => Code::Local1,
            Self::Local2 => Code::Local2,
            Self::Local3 => Code::Local3,
            Self::Local4 => Code::Local4,
            Self::Local5 => Code::Local5,
            Self::Local6 => Code::Local6,
            Self::Local7 => Code::Local7,
        }
    }
}

/// Who sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    host: String,
    process: String,
    node: String,
}

impl Identity {
    /// This host and process, as the server called `node`.
    #[must_use]
    pub fn of(node: &str) -> Self {
        let host = rustix::system::uname();
        Self {
            host: header(&host.nodename().to_string_lossy(), 255),
            process: std::process::id().to_string(),
            node: node.to_owned(),
        }
    }
}

/// A header's field: printable US-ASCII, `-` where nothing is left.
fn header(text: &str, longest: usize) -> String {
    let kept: String = text
        .chars()
        .filter(char::is_ascii_graphic)
        .take(longest)
        .collect();
    if kept.is_empty() {
        "-".to_owned()
    } else {
        kept
    }
}

/// What a line says, as far as a message has a field for it.
#[derive(Deserialize)]
struct Line {
    #[serde(default)]
    seq: Option<u64>,
    time: String,
    node: String,
    #[serde(flatten)]
    event: Event,
    #[serde(default)]
    hash: Option<String>,
}

impl Line {
    fn severity(&self) -> Severity {
        let gap = matches!(self.event.chain.as_deref(), Some(ChainMark::Gap(_)));
        match self.event.outcome {
            _ if gap => Severity::Warning,
            Outcome::Failure => Severity::Warning,
            Outcome::Intent | Outcome::Success => Severity::Info,
        }
    }

    /// The names and values of its fields.
    fn fields(&self, chained: bool) -> Vec<(&'static str, String)> {
        let Event {
            kind,
            action,
            outcome,
            request,
            peer,
            drive,
            volser,
            dki,
            keks,
            eedks: _,
            drive_key: _,
            token,
            custody,
            code,
            detail: _,
            chain,
        } = &self.event;
        let outcome = match outcome {
            Outcome::Intent => "intent",
            Outcome::Success => "success",
            Outcome::Failure => "failure",
        };
        let mut fields = vec![
            ("node", self.node.clone()),
            ("kind", kind.name().to_owned()),
            ("action", action.clone()),
            ("outcome", outcome.to_owned()),
        ];
        let keks = (!keks.is_empty()).then(|| keks.join(" "));
        let seal = match chain.as_deref() {
            Some(ChainMark::Seal(seal)) => Some(seal.number.to_string()),
            Some(ChainMark::Gap(_) | ChainMark::Begins(_)) | None => None,
        };
        let seq = self.seq.map(|seq| seq.to_string());
        let maybe = [
            ("seq", seq.as_ref()),
            ("hash", self.hash.as_ref()),
            ("seal", seal.as_ref()),
            ("request", request.as_ref()),
            ("peer", peer.as_ref()),
            ("drive", drive.as_ref()),
            ("volser", volser.as_ref()),
            ("dki", dki.as_ref()),
            ("keks", keks.as_ref()),
            ("token", token.as_ref()),
            ("custody", custody.as_ref()),
            ("code", code.as_ref()),
        ];
        fields.extend(
            maybe
                .into_iter()
                .filter_map(|(name, value)| Some((name, value?.clone()))),
        );
        if !chained {
            fields.push(("chained", "no".to_owned()));
        }
        for (_, value) in &mut fields {
            // A receiver that takes a newline for the end of a message sees none.
            *value = value.replace(char::is_control, " ");
        }
        fields
    }
}

fn formatter(facility: Facility, identity: &Identity) -> Formatter {
    Config {
        facility: facility.code(),
        hostname: Some(&identity.host),
        app_name: Some(APP),
        proc_id: Some(&identity.process),
    }
    .into_formatter()
}

/// `TIME-SECFRAC` has six digits at most, and a record's time has nine.
fn micros(time: &str) -> String {
    match (time.get(..26), time.strip_suffix('Z')) {
        (Some(short), Some(_)) if time.len() == 30 => format!("{short}Z"),
        _ => "-".to_owned(),
    }
}

/// A syslog message; none where the line is no record.
pub(super) fn syslog(
    facility: Facility,
    identity: &Identity,
    raw: &[u8],
    chained: bool,
) -> Option<Vec<u8>> {
    let line: Line = serde_json::from_slice(raw).ok()?;
    let fields = line.fields(chained);
    let mut out = Vec::with_capacity(raw.len().saturating_add(1024));
    let elements = [(
        SD_ID,
        fields.iter().map(|(name, value)| (*name, value.as_str())),
    )];
    formatter(facility, identity)
        .write_with_data(
            &mut out,
            line.severity(),
            Timestamp::PreformattedString(micros(&line.time)),
            Msg::Utf8Str(std::str::from_utf8(raw).ok()?),
            Some(&header(&line.event.action, 32)),
            elements,
        )
        .ok()?;
    Some(out)
}

/// A syslog message that says how many records did not arrive.
pub(super) fn syslog_lost(facility: Facility, identity: &Identity, count: u64) -> Vec<u8> {
    let mut out = Vec::new();
    let now = crate::audit::record::rfc3339(time::OffsetDateTime::now_utc());
    let number = count.to_string();
    let elements = [(
        SD_ID,
        [("node", identity.node.as_str()), ("lost", number.as_str())],
    )];
    let text = lost_text(count);
    // Nothing fails that is written into memory.
    drop(formatter(facility, identity).write_with_data(
        &mut out,
        Severity::Warning,
        Timestamp::PreformattedString(micros(&now)),
        Msg::Utf8Str(&text),
        Some("audit-lost"),
        elements,
    ));
    out
}

fn lost_text(count: u64) -> String {
    format!("{count} audit records did not arrive here; the log itself has them")
}

/// A message of the journal's native protocol; none where the line is no record.
pub(super) fn journal(
    facility: Facility,
    identity: &Identity,
    raw: &[u8],
    chained: bool,
) -> Option<Vec<u8>> {
    let line: Line = serde_json::from_slice(raw).ok()?;
    let text = std::str::from_utf8(raw).ok()?;
    let mut out = journal_head(facility, identity, line.severity(), text);
    for (name, value) in line.fields(chained) {
        out.push_str(&format!("EKM_{}={value}\n", name.to_uppercase()));
    }
    Some(out.into_bytes())
}

/// A message of the journal that says how many records did not arrive.
pub(super) fn journal_lost(facility: Facility, identity: &Identity, count: u64) -> Vec<u8> {
    let mut out = journal_head(facility, identity, Severity::Warning, &lost_text(count));
    out.push_str(&format!("EKM_NODE={}\nEKM_LOST={count}\n", identity.node));
    out.into_bytes()
}

fn journal_head(facility: Facility, identity: &Identity, severity: Severity, text: &str) -> String {
    let priority = match severity {
        Severity::Warning => 4,
        _ => 6,
    };
    let facility = facility.number();
    // JSON has no newline in it, so no field is of the protocol's binary kind.
    format!(
        "MESSAGE={text}\nPRIORITY={priority}\nSYSLOG_FACILITY={facility}\nSYSLOG_IDENTIFIER={APP}\nSYSLOG_PID={}\n",
        identity.process
    )
}

impl Facility {
    /// Its number (RFC 5424, table 1).
    const fn number(self) -> u8 {
        match self {
            Self::User => 1,
            Self::Daemon => 3,
            Self::Auth => 4,
            Self::Authpriv => 10,
            Self::Local0 => 16,
            Self::Local1 => 17,
            Self::Local2 => 18,
            Self::Local3 => 19,
            Self::Local4 => 20,
            Self::Local5 => 21,
            Self::Local6 => 22,
            Self::Local7 => 23,
        }
    }
}
