//! How the tokens are.

use serde::{Deserialize, Serialize};

use crate::bridge::supervisor::{Bridge, TokenState};
use crate::key::{KekHash, SedkForm};

/// A token as `ekm token status` shows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TokenStatus {
    /// Its configured name.
    pub name: String,
    /// starting, ready, degraded, failed or locked.
    pub state: String,
    /// Why it is not ready.
    pub why: Option<String>,
    /// Since when, RFC 3339.
    pub since: Option<String>,
    /// When a failed token is tried again, RFC 3339.
    pub next: Option<String>,
    /// The processes that drive it.
    pub bridges: Vec<u32>,
    /// Sessions of the bridge that has fewest, and how many the profile wants.
    pub sessions: Option<(usize, usize)>,
    /// Seconds since the token last opened or made an EEDK, or its canary; none where it did not
    /// since its bridges were started.
    pub heard: Option<f64>,
    /// Why no key can be had of it although it answers, and there is nothing to prove it with: no
    /// KEK of it serves.
    #[serde(default)]
    pub keyless: Option<String>,
    /// What its flags say of the user PIN, while it serves or is locked.
    pub pin: Option<String>,
    /// Where its user PIN comes from.
    pub pin_source: Option<String>,
    /// Its PKCS#11 URI, once known.
    pub uri: Option<String>,
    /// Its KEKs.
    pub keks: usize,
    /// SEDK forms that the probe saw it make.
    pub forms: Vec<SedkForm>,
    /// Hashes of the public keys that its security officer has blessed.
    #[serde(default)]
    pub trusted: Vec<KekHash>,
}

pub(super) fn status(bridge: &Bridge) -> TokenStatus {
    let state = bridge.state();
    let time = |at: time::OffsetDateTime| {
        at.truncate_to_second()
            .format(&time::format_description::well_known::Rfc3339)
            .ok()
    };
    let next = match &state {
        TokenState::Failed { next, .. } => time(*next),
        TokenState::Starting { .. }
        | TokenState::Ready { .. }
        | TokenState::Degraded { .. }
        | TokenState::Locked { .. } => None,
    };
    let ready = state.found().filter(|_| state.serves());
    // Of one that is away what it showed says nothing any more; one that is locked has just been asked.
    let shown = bridge
        .token_info()
        .filter(|_| state.serves() || matches!(state, TokenState::Locked { .. }));
    TokenStatus {
        name: bridge.name().to_owned(),
        state: state.word().to_owned(),
        why: state.why(),
        since: time(state.since()),
        next,
        bridges: state.bridges().to_vec(),
        sessions: ready.map(|ready| (ready.sessions, bridge.sessions_wanted())),
        heard: bridge.proof_age().map(|age| age.as_secs_f64()),
        keyless: bridge.keyless(),
        pin: shown
            .as_ref()
            .filter(|_| bridge.key_file().is_none())
            .map(|token| token.pin_words().to_owned()),
        pin_source: bridge.pin_source().map(ToString::to_string),
        uri: match bridge.key_file() {
            Some(file) => Some(format!("file:{}", file.display())),
            None => shown
                .as_ref()
                .map(|token| crate::bridge::uri::TokenUri::of(token).to_string()),
        },
        keks: ready.map_or(0, |ready| ready.keks.len()),
        forms: ready
            .and_then(|ready| ready.probe.clone())
            .map(|probe| probe.forms)
            .unwrap_or_default(),
        trusted: ready.map_or_else(Vec::new, |ready| ready.trusted.clone()),
    }
}

/// An alarm that is raised.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RaisedAlarm {
    /// Its code, `EKM-A…`.
    pub code: String,
    /// Of what; empty where there is only one such thing.
    pub subject: String,
    /// The particulars.
    pub detail: String,
    /// Since when.
    #[serde(with = "time::serde::rfc3339")]
    pub since: time::OffsetDateTime,
}

/// What the running server has raised; nothing where this process is none.
pub(super) fn alarms(service: &crate::service::Service) -> Vec<RaisedAlarm> {
    service
        .alarms()
        .raised()
        .into_iter()
        .map(|(alarm, subject, raised)| RaisedAlarm {
            code: alarm.entry().code.to_owned(),
            subject,
            detail: raised.detail,
            since: raised.since,
        })
        .collect()
}
