//! What servers beside this one read of it: `GET /v1/sync/…`, for peers of role server that the
//! configuration names. Read only. The form is in [`wire`](crate::sync::wire).

use std::sync::Arc;

use axum::extract::{Extension, State};
use axum::http::{Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use time::OffsetDateTime;

use super::listener::Admission;
use crate::audit::{Event, Kind, Outcome};
use crate::problem::{EkmCode, Problem};
use crate::service::Service;
use crate::store::StoreError;
use crate::sync::wire::{ANSWER, DRIVES, HISTORY, Head, KEKS, KekFact, Page, SealHeld, VERSION};
use crate::tls::{PeerId, Role};

/// Room for what stands around a page's rows, bytes.
const AROUND: usize = 1024;

/// The routes.
pub(super) fn routes() -> Router<Arc<Service>> {
    Router::new()
        .route("/v1/sync/head", get(head))
        .route("/v1/sync/drives", get(drives))
        .route("/v1/sync/keks", get(keks))
        .route("/v1/sync/history", get(history))
}

async fn head(
    State(service): State<Arc<Service>>,
    Extension(peer): Extension<PeerId>,
    Extension(admission): Extension<Admission>,
) -> Result<Response, Problem> {
    if let Err(problem) = admit(&service, &peer, &admission) {
        record(&service, &peer, Err(&problem)).await?;
        return Err(problem);
    }
    let store = service.store();
    let head = Head {
        version: VERSION,
        node: service.node().to_owned(),
        drives: stored(store.drive_extent().await)?,
        history: stored(store.history_end().await)?,
        defaults: stored(store.defaults_row().await)?,
        policy: service.policy_json(),
        seal: stored(store.anchor(service.node()).await)?.map(|seal| SealHeld {
            number: seal.number,
            seq: seal.seq,
            hash: seal.hash,
        }),
        now: OffsetDateTime::now_utc(),
    };
    record(&service, &peer, Ok(&head)).await?;
    service.peers().note_served(&peer);
    Ok(no_store(Json(head).into_response()))
}

async fn drives(
    State(service): State<Arc<Service>>,
    Extension(peer): Extension<PeerId>,
    Extension(admission): Extension<Admission>,
    uri: Uri,
) -> Result<Response, Problem> {
    begun(&service, &peer, &admission)?;
    let after = asked(&uri, "after").unwrap_or_default();
    let rows = stored(service.store().drive_rows(after, DRIVES).await)?;
    let more = full(rows.len(), DRIVES);
    page(rows, more, |rows| {
        let last = rows.last()?;
        Some(last.drive.serial.to_string())
    })
}

async fn keks(
    State(service): State<Arc<Service>>,
    Extension(peer): Extension<PeerId>,
    Extension(admission): Extension<Admission>,
    uri: Uri,
) -> Result<Response, Problem> {
    begun(&service, &peer, &admission)?;
    let after: usize = number(&uri, "after")?;
    let directory = service.directory().await?;
    let states = stored(service.store().kek_states().await)?;
    let known = directory.keks().iter().skip(after);
    let facts: Vec<KekFact> = known
        .take(KEKS)
        .map(|kek| KekFact {
            label: kek.label.clone(),
            hash: kek.hash,
            held: !kek.tokens.is_empty() || kek.is_away(),
            registered: kek.registered,
            state: states.state(&kek.hash),
            partner: kek.partner.as_ref().and(kek.certificate.clone()),
        })
        .collect();
    let more = after.saturating_add(facts.len()) < directory.keks().len();
    page(facts, more, |facts| {
        Some(after.saturating_add(facts.len()).to_string())
    })
}

async fn history(
    State(service): State<Arc<Service>>,
    Extension(peer): Extension<PeerId>,
    Extension(admission): Extension<Admission>,
    uri: Uri,
) -> Result<Response, Problem> {
    begun(&service, &peer, &admission)?;
    let from: i64 = number(&uri, "from")?;
    let rows = stored(service.store().history_rows(from, HISTORY).await)?;
    let more = full(rows.len(), HISTORY);
    page(rows, more, |rows| {
        Some(rows.last()?.id.saturating_add(1).to_string())
    })
}

fn full(rows: usize, most: u32) -> bool {
    usize::try_from(most).is_ok_and(|most| rows >= most)
}

/// Who may read here.
fn admit(service: &Service, peer: &PeerId, admission: &Admission) -> Result<(), Problem> {
    let refuse = |why: String| Err(Problem::new(EkmCode::EE30, 403, why));
    if !admission.stands() {
        return refuse(
            "the certificate that this connection was made with is no longer accepted".to_owned(),
        );
    }
    if peer.role() != Role::Server {
        return refuse(format!(
            "{peer} is no server; tables are given to servers only"
        ));
    }
    if !service.peers().config().serve.contains(peer) {
        return refuse(format!(
            "{} gives its tables only to the servers that [sync] serve names, and {peer} is not among them",
            service.node()
        ));
    }
    admission.begins();
    Ok(())
}

/// The head is what stands in the records, so it comes before the pages.
fn begun(service: &Service, peer: &PeerId, admission: &Admission) -> Result<(), Problem> {
    admit(service, peer, admission)?;
    if service.peers().was_served(peer) {
        Ok(())
    } else {
        Err(Problem::new(
            EkmCode::EE23,
            409,
            "ask for /v1/sync/head first",
        ))
    }
}

async fn record(
    service: &Service,
    peer: &PeerId,
    outcome: Result<&Head, &Problem>,
) -> Result<(), Problem> {
    let kind = Kind::DataSynchronization;
    let mut event = match outcome {
        Ok(head) => {
            let mut event = Event::new(kind, "sync-serve", Outcome::Success);
            event.detail = Some(format!(
                "{} drives, history up to {}",
                head.drives.rows, head.history
            ));
            event
        }
        Err(problem) => {
            let mut event = Event::new(kind, "sync-serve", Outcome::Failure);
            event.code = Some(problem.code.to_string());
            event.detail = Some(problem.detail.clone());
            event
        }
    };
    event.peer = Some(peer.to_string());
    let recorded = service.audit().record(event).await;
    recorded.map(drop).map_err(|error| {
        Problem::internal(format!(
            "nothing is given, because it cannot be recorded: {error}"
        ))
    })
}

fn asked<'a>(uri: &'a Uri, name: &str) -> Option<&'a str> {
    // Serials and numbers: nothing that would be encoded.
    uri.query()?
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .find_map(|(key, value)| (key == name).then_some(value))
}

fn number<T: std::str::FromStr + Default>(uri: &Uri, name: &str) -> Result<T, Problem> {
    let Some(text) = asked(uri, name) else {
        return Ok(T::default());
    };
    text.parse()
        .map_err(|_| Problem::new(EkmCode::EE23, 400, format!("{name} is not a number")))
}

/// As many of the rows as an answer holds.
fn page<T: Serialize>(
    mut rows: Vec<T>,
    mut more: bool,
    next: impl Fn(&[T]) -> Option<String>,
) -> Result<Response, Problem> {
    loop {
        let page = Page {
            version: VERSION,
            next: if more { next(&rows) } else { None },
            rows,
        };
        let body =
            serde_json::to_vec(&page).map_err(|error| Problem::internal(error.to_string()))?;
        rows = page.rows;
        if body.len() <= ANSWER - AROUND || rows.len() <= 1 {
            let kind = [(header::CONTENT_TYPE, "application/json")];
            return Ok(no_store((kind, body).into_response()));
        }
        rows.truncate(rows.len() / 2);
        more = true;
    }
}

fn no_store(mut response: Response) -> Response {
    let value = header::HeaderValue::from_static("no-store");
    response.headers_mut().insert(header::CACHE_CONTROL, value);
    response
}

fn stored<T>(outcome: Result<T, StoreError>) -> Result<T, Problem> {
    outcome.map_err(|error| {
        tracing::error!(%error, "a table cannot be given to a server");
        Problem::unavailable("the state cannot be read; the server's log says why")
    })
}
