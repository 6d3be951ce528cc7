//! `ekm token unlock`: an operator has done something about a PIN.

use serde::{Deserialize, Serialize};

use super::{TokenStatus, conflict, event, record, status};
use crate::audit::{Kind, Outcome};
use crate::bridge::pin::{Handed, PinSource};
use crate::bridge::supervisor::Bridge;
use crate::problem::{EkmCode, Problem};
use crate::service::Service;

/// What came of an unlock.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Unlocked {
    /// What the token's flags said of its user PIN before.
    pub tries: String,
    /// Whether all of its bridges were up, so that nothing was tried and no PIN looked at.
    #[serde(default)]
    pub untried: bool,
    /// How the token is now.
    pub status: TokenStatus,
}

/// Clears what is held back for a token, and has its bridges try at once.
pub(super) async fn unlock(
    service: &Service,
    operator: &str,
    token: &str,
    last_try: bool,
    pin: Option<Handed>,
) -> Result<Unlocked, Problem> {
    let bridges = service.tokens().bridges();
    let Some(bridge) = bridges.iter().find(|bridge| bridge.name() == token) else {
        let names: Vec<&str> = bridges.iter().map(Bridge::name).collect();
        return Err(refuse(format!(
            "the configuration has no token {token}; it has {}",
            names.join(", ")
        )));
    };
    match (bridge.pin_source(), &pin) {
        (Some(PinSource::Operator), None) => {
            return Err(refuse(format!(
                "the PIN of token {token} comes from an operator: give it to ekm token unlock"
            )));
        }
        (Some(PinSource::Operator), Some(_)) | (_, None) => {}
        (source, Some(_)) => {
            return Err(refuse(format!(
                "the PIN of token {token} comes from {}, not from an operator: put the right one there, and unlock without giving one",
                source.map(ToString::to_string).unwrap_or_default()
            )));
        }
    }
    // Before anything is cleared: the token may have no try left.
    let shown = bridge
        .shown()
        .await
        .map_err(|fault| Problem::from(&fault))?;
    if shown.iter().any(|token| token.user_pin_locked()) {
        return Err(refuse(format!(
            "token {token} says that its user PIN is locked (CKF_USER_PIN_LOCKED): only its security officer can reset it"
        )));
    }
    let last = shown.iter().any(|token| token.user_pin_final_try());
    if last && !last_try {
        return Err(refuse(format!(
            "token {token} says that the next wrong PIN locks it (CKF_USER_PIN_FINAL_TRY): have its security officer reset the user PIN, or, if you are sure of the PIN, unlock with --last-try"
        )));
    }
    let tries = if last {
        "one (CKF_USER_PIN_FINAL_TRY)"
    } else if shown.iter().any(|token| token.user_pin_count_low()) {
        "more than one; a wrong PIN was given since the last login (CKF_USER_PIN_COUNT_LOW)"
    } else {
        "as far as the token tells, all of them"
    };
    let mut event = event("token-unlock", operator);
    event.kind = Kind::Authentication;
    event.token = Some(token.to_owned());
    event.outcome = Outcome::Intent;
    event.detail = Some(format!("tries left: {tries}"));
    record(service, event.clone()).await?;
    let untried = bridge.lanes_down().is_empty();
    let done = bridge.unlock(&shown, last, pin.as_ref()).await;
    let status = status(bridge);
    event.outcome = if done.is_ok() && bridge.serves() {
        Outcome::Success
    } else {
        Outcome::Failure
    };
    event.detail = Some(match (&done, &status.why) {
        (Err(fault), _) => fault.to_string(),
        (Ok(()), Some(why)) => format!("{}: {why}", status.state),
        (Ok(()), None) if untried => format!("{}; nothing was tried", status.state),
        (Ok(()), None) => status.state.clone(),
    });
    record(service, event).await?;
    done.map_err(|fault| Problem::from(&fault))?;
    Ok(Unlocked {
        tries: tries.to_owned(),
        untried,
        status,
    })
}

fn refuse(detail: String) -> Problem {
    conflict(EkmCode::EE31, detail)
}
