//! What an interrupted ceremony may have left on a token.
//!
//! A birth is noted in the state before its key is made, with the `CKA_ID` that the key will
//! have, and struck out when the key is whole, or gone. So what has that `CKA_ID` and is not
//! whole is the ceremony's own, and may be destroyed.

use time::OffsetDateTime;

use super::{CopyAsked, Reply, event, record, stored};
use crate::audit::Outcome;
use crate::key::KeyLabel;
use crate::keystore::KnownKek;
use crate::problem::Problem;
use crate::service::Service;
use crate::store::Birth;

/// What an earlier ceremony of that label may have left there, with the record that it is to be
/// removed. One whose key is whole is struck out.
pub(super) async fn left(
    service: &Service,
    operator: &str,
    asked: &CopyAsked,
) -> Result<Option<Birth>, Problem> {
    let births = stored(service.store().births().await)?;
    let Some(birth) = of(&births, &asked.label, &asked.token).cloned() else {
        return Ok(None);
    };
    service.tokens().look_again().await;
    let directory = service.directory().await?;
    let whole = directory
        .keks()
        .iter()
        .any(|kek| kek.label.same_as(&birth.label) && kek.tokens.contains(&birth.token));
    if whole {
        stored(service.store().end_birth(&birth.ceremony).await)?;
        return Ok(None);
    }
    let mut event = event("kek-ceremony-clear", operator);
    event.outcome = Outcome::Intent;
    event.keks = vec![birth.label.to_string()];
    event.token = Some(birth.token.clone());
    event.detail = Some(format!("ceremony {}", birth.ceremony));
    record(service, event).await?;
    Ok(Some(birth))
}

fn of<'a>(births: &'a [Birth], label: &KeyLabel, token: &str) -> Option<&'a Birth> {
    births
        .iter()
        .find(|birth| birth.token == token && birth.label.same_as(label))
}

/// Notes that one begins.
pub(super) async fn begin(service: &Service, asked: &CopyAsked) -> Result<(), Problem> {
    let birth = Birth {
        ceremony: asked.ceremony,
        label: asked.label.clone(),
        token: asked.token.clone(),
        began: OffsetDateTime::now_utc().truncate_to_second(),
    };
    stored(service.store().begin_birth(&birth).await)
}

/// One has failed. It is struck out where the token, looked at anew, has nothing of that label.
pub(super) async fn failed(service: &Service, asked: &CopyAsked) -> Result<(), Problem> {
    let mut bridges = service.tokens().bridges().iter();
    let Some(bridge) = bridges.find(|bridge| bridge.name() == asked.token) else {
        return Ok(());
    };
    bridge.look().await;
    let gone = bridge.serves()
        && bridge.found().is_some_and(|found| {
            let mut keks = found.keks.iter();
            keks.all(|kek| !kek.label.same_as(&asked.label))
        });
    if gone {
        stored(service.store().end_birth(&asked.ceremony).await)?;
    }
    Ok(())
}

/// What one left is removed, or was not there.
pub(super) async fn cleared(
    service: &Service,
    operator: &str,
    birth: &Birth,
    objects: usize,
) -> Result<Reply, Problem> {
    let mut event = event("kek-ceremony-clear", operator);
    event.keks = vec![birth.label.to_string()];
    event.token = Some(birth.token.clone());
    event.detail = Some(format!(
        "ceremony {}: {objects} objects destroyed",
        birth.ceremony
    ));
    record(service, event).await?;
    stored(service.store().end_birth(&birth.ceremony).await)?;
    Ok(Reply::Done)
}

/// Says of each key that a token refuses and a ceremony left, what it is.
pub(super) fn name(births: &[Birth], keks: &mut [KnownKek]) {
    for kek in keks {
        for (token, reason) in &mut kek.refused {
            if let Some(birth) = of(births, &kek.label, token) {
                reason.push_str("; ");
                reason.push_str(&birth.words());
            }
        }
    }
}
