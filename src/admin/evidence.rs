//! The keys that seal the audit chain, and what is known of the chain outside its directory.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{KEK_BITS, Reply, conflict, event, record, stored};
use crate::audit::{Outcome, SealKey};
use crate::problem::{EkmCode, Problem};
use crate::service::Service;
use crate::store::SealKeyRow;

/// A key that seals, as an operator sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SealKeySeen {
    /// SHA-256 of its `SubjectPublicKeyInfo`, as seals name it.
    pub fingerprint: String,
    /// The token that it was made on.
    pub token: String,
    /// When, RFC 3339.
    #[serde(with = "time::serde::rfc3339")]
    pub made: OffsetDateTime,
    /// Its public half, PEM.
    pub pem: String,
}

/// What is known of a chain somewhere else.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AnchorSeen {
    /// Where: `database`, or a token's name.
    pub place: String,
    /// The server, by node name; a peer that a sync reads as `server:NAME`.
    pub node: String,
    /// A seal, for `--expect-seal`.
    pub seal: Option<String>,
    /// A record, for `--expect-head`.
    pub head: Option<String>,
}

pub(super) async fn keys(
    service: &Service,
    operator: &str,
    generate: Option<u32>,
    token: Option<String>,
) -> Result<Reply, Problem> {
    if let Some(bits) = generate {
        make(service, operator, bits, token).await?;
    }
    let keys = service.seal_keys().await?;
    let keys = keys.into_iter().filter_map(|row| {
        let key = SealKey::new(&row.spki).ok()?;
        Some(SealKeySeen {
            fingerprint: key.fingerprint(),
            token: row.token,
            made: row.made,
            pem: key.pem(),
        })
    });
    Ok(Reply::SealKeys(keys.collect()))
}

async fn make(
    service: &Service,
    operator: &str,
    bits: u32,
    token: Option<String>,
) -> Result<(), Problem> {
    if !KEK_BITS.contains(&bits) {
        return Err(conflict(
            EkmCode::EE31,
            format!("a key that seals has {KEK_BITS:?} bits, got {bits}"),
        ));
    }
    let mut event = event("audit-key", operator);
    event.outcome = Outcome::Intent;
    event.token.clone_from(&token);
    event.detail = Some(format!("RSA-{bits}"));
    record(service, event.clone()).await?;
    let made = match service.tokens().make_seal_key(token.as_deref(), bits).await {
        Ok(made) => made,
        Err(fault) => {
            event.outcome = Outcome::Failure;
            event.detail = Some(fault.to_string());
            record(service, event).await?;
            return Err(Problem::from(&fault));
        }
    };
    let key = SealKey::new(&made.spki).map_err(|error| {
        Problem::internal(format!(
            "the public half that token {} shows: {error}",
            made.token
        ))
    })?;
    event.outcome = Outcome::Success;
    event.token = Some(made.token.clone());
    event.detail = Some(format!("RSA-{bits}, fingerprint {}", key.fingerprint()));
    record(service, event).await?;
    let row = SealKeyRow {
        id: made.id,
        spki: made.spki,
        token: made.token,
        made: OffsetDateTime::now_utc(),
    };
    stored(service.store().add_seal_key(&row).await)
}

pub(super) async fn anchors(service: &Service) -> Result<Reply, Problem> {
    let store = service.store();
    let seals = stored(store.anchors().await)?;
    // Its own first, also where only its newest record is kept yet.
    let mut nodes = vec![service.node()];
    let others = seals.iter().map(|seal| seal.node.as_str());
    nodes.extend(others.filter(|node| *node != service.node()));
    let mut all = Vec::new();
    for node in nodes {
        let seal = seals.iter().find(|seal| seal.node == node);
        let head = stored(store.chain_head(node).await)?;
        if seal.is_some() || head.is_some() {
            all.push(AnchorSeen {
                place: "database".to_owned(),
                node: node.to_owned(),
                seal: seal.map(|seal| format!("{}:{}", seal.number, seal.hash)),
                head: head.map(|head| head.to_string()),
            });
        }
    }
    let kept = service.tokens().kept_anchors().await;
    all.extend(kept.into_iter().map(|anchor| AnchorSeen {
        place: format!("token {}", anchor.token),
        node: anchor.node,
        seal: Some(anchor.text),
        head: None,
    }));
    Ok(Reply::Anchors(all))
}
