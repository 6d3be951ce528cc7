//! The routes of the door for drives and proxies, and their OpenAPI document.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, Extension, FromRequest, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout_at};
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::OpenApi;

use super::listener::Admission;
use super::monitor::Monitor;
use crate::api::{
    Base64, ChallengeAnswer, ConfirmAnswer, ConfirmRequest, CreateAnswer, CreateRequest,
    RekeyAnswer, RekeyRequest, ResolveAnswer, ResolveRequest,
};
use crate::deadline;
use crate::metrics::{Outcome, Verb};
use crate::problem::{EkmCode, Problem};
use crate::service::{Answer, Service, from};
use crate::tls::PeerId;

/// Largest body of a request, bytes: two EEDKs, a certificate and a signature fit many times.
const BODY: usize = 64 * 1024;

/// Time beyond a request's own for the answer that it has by then, and for its record.
const LAST_WORD: Duration = Duration::from_secs(2);

#[derive(OpenApi)]
#[openapi(
    info(
        title = "ekm",
        description = "Data keys for tape drives. Mutual TLS; the client certificate says who asks.",
    ),
    paths(create, resolve, rekey, confirm, challenge, healthz, readyz),
    components(schemas(Problem, crate::api::KekNamed, crate::store::EedkState, EkmCode))
)]
struct Document;

/// The OpenAPI document of this door, as JSON.
///
/// # Errors
/// It cannot be written as JSON.
pub fn openapi() -> Result<String, serde_json::Error> {
    Document::openapi().to_pretty_json()
}

/// The routes, each under its limits.
pub(super) fn router(
    service: Arc<Service>,
    monitor: Arc<Monitor>,
    request_time: Duration,
) -> Router {
    let requests = Arc::clone(monitor.requests());
    Router::new()
        .route("/v1/keys/create", post(create))
        .route("/v1/keys/resolve", post(resolve))
        .route("/v1/keys/rekey", post(rekey))
        .route("/v1/keys/confirm", post(confirm))
        .route("/v1/challenge", post(challenge))
        .route("/v1/openapi.json", get(document))
        .route("/healthz", get(healthz))
        .route(
            "/readyz",
            get(move |service| std::future::ready(readyz(service, &monitor))),
        )
        .merge(super::sync::routes())
        .fallback(nowhere)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(BODY))
        .layer(middleware::from_fn(move |request: Request, next: Next| {
            let verb = Verb::of_path(request.uri().path());
            let counted = verb.map(|verb| requests.begin(verb));
            async move {
                let until = Instant::now() + request_time;
                let answer = deadline::within(until, next.run(request));
                let response = timeout_at(until + LAST_WORD, answer)
                    .await
                    .unwrap_or_else(|_| {
                        Problem::unavailable(format!(
                            "the request took longer than {} s",
                            request_time.as_secs()
                        ))
                        .into_response()
                    });
                if let Some(counted) = counted {
                    let code = response.extensions().get::<EkmCode>();
                    counted.ended(code.map_or(Outcome::Answered, |code| Outcome::Refused(*code)));
                }
                response
            }
        }))
        .layer(CatchPanicLayer::custom(panicked))
        .with_state(service)
}

pub(super) fn panicked(_: Box<dyn std::any::Any + Send>) -> Response {
    tracing::error!("a request ended in a panic; this is a defect");
    Problem::internal("the request failed by a defect of the key manager; its log says more")
        .into_response()
}

/// JSON of a request, or a problem that says what is wrong with it.
pub(super) struct Body<T>(pub(super) T);

impl<T, S> FromRequest<S> for Body<T>
where
    T: DeserializeOwned,
    S: Send + Sync,
{
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let admission = request.extensions().get::<Admission>().cloned();
        let Some(admission) = admission else {
            return Err(Problem::internal("the request came without its peer"));
        };
        let read = json(request, state);
        let Ok(read) = tokio::time::timeout(admission.body_time(), read).await else {
            return Err(Problem::new(
                EkmCode::EE23,
                408,
                format!(
                    "the body did not arrive within {} s",
                    admission.body_time().as_secs()
                ),
            ));
        };
        match read {
            // Now that the whole of it is here, however long that took.
            Ok(body) if admission.stands() => {
                admission.begins();
                Ok(Self(body))
            }
            Ok(_) => Err(Problem::new(
                EkmCode::EE30,
                403,
                "the certificate that this connection was made with is no longer accepted",
            )),
            Err(rejection) => {
                let status = rejection.status();
                let reason = rejection.body_text();
                Err(Problem::new(EkmCode::EE23, status.as_u16(), reason))
            }
        }
    }
}

/// JSON of a request, or where in it something is wrong.
async fn json<T: DeserializeOwned>(
    request: Request,
    state: &(impl Send + Sync),
) -> Result<T, JsonRejection> {
    let known = request.headers().get(header::CONTENT_TYPE);
    if known.is_none_or(|kind| kind != "application/json") {
        let Json(body) = Json::from_request(request, state).await?;
        return Ok(body);
    }
    let bytes = Bytes::from_request(request, state).await?;
    // To keep track of where in it one is costs as much as to read it, so that comes after a fault.
    serde_json::from_slice(&bytes).or_else(|_| Json::from_bytes(&bytes).map(|Json(body)| body))
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let (retry, code) = (self.retry_after, self.code);
        let mut response = (status, Json(self)).into_response();
        // For whoever counts.
        response.extensions_mut().insert(code);
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        if let Some(seconds) = retry {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

fn respond<T: serde::Serialize>(answer: Answer<T>) -> Response {
    match answer {
        Ok(audited) => {
            let mut response = Json(audited.into_inner()).into_response();
            // An answer holds a key for one drive; no cache on the way may keep it.
            response
                .headers_mut()
                .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
            response
        }
        Err(problem) => problem.into_response(),
    }
}

/// A new data key for a cartridge.
#[utoipa::path(post, path = "/v1/keys/create", request_body = CreateRequest,
    responses((status = 200, body = CreateAnswer), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn create(
    State(service): State<Arc<Service>>,
    Extension(peer): Extension<PeerId>,
    Extension(address): Extension<SocketAddr>,
    Body(request): Body<CreateRequest>,
) -> Response {
    let verb = {
        let service = Arc::clone(&service);
        async move { service.create(&peer, &request).await }
    };
    let verb = from(address.ip(), Box::pin(verb));
    respond(service.to_the_end(verb).await)
}

/// The data key of a cartridge that exists.
#[utoipa::path(post, path = "/v1/keys/resolve", request_body = ResolveRequest,
    responses((status = 200, body = ResolveAnswer), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn resolve(
    State(service): State<Arc<Service>>,
    Extension(peer): Extension<PeerId>,
    Extension(address): Extension<SocketAddr>,
    Body(request): Body<ResolveRequest>,
) -> Response {
    let verb = {
        let service = Arc::clone(&service);
        async move { service.resolve(&peer, &request).await }
    };
    let verb = from(address.ip(), Box::pin(verb));
    respond(service.to_the_end(verb).await)
}

/// The same data key under other KEKs; the data stays as it is.
#[utoipa::path(post, path = "/v1/keys/rekey", request_body = RekeyRequest,
    responses((status = 200, body = RekeyAnswer), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn rekey(
    State(service): State<Arc<Service>>,
    Extension(peer): Extension<PeerId>,
    Body(request): Body<RekeyRequest>,
) -> Response {
    let verb = {
        let service = Arc::clone(&service);
        async move { service.rekey(&peer, &request).await }
    };
    respond(service.to_the_end(verb).await)
}

/// The drive has stored the EEDKs, or has not.
#[utoipa::path(post, path = "/v1/keys/confirm", request_body = ConfirmRequest,
    responses((status = 200, body = ConfirmAnswer), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn confirm(
    State(service): State<Arc<Service>>,
    Extension(peer): Extension<PeerId>,
    Body(request): Body<ConfirmRequest>,
) -> Response {
    let verb = {
        let service = Arc::clone(&service);
        async move { service.confirm(&peer, &request).await }
    };
    respond(service.to_the_end(verb).await)
}

/// A challenge for a drive's session key, good once, for 60 s.
#[utoipa::path(post, path = "/v1/challenge",
    responses((status = 200, body = ChallengeAnswer), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn challenge(
    State(service): State<Arc<Service>>,
    Extension(peer): Extension<PeerId>,
) -> Result<Json<ChallengeAnswer>, Problem> {
    let challenge = Base64(service.challenge(&peer)?);
    Ok(Json(ChallengeAnswer { challenge }))
}

async fn document() -> Response {
    match openapi() {
        Ok(text) => ([(header::CONTENT_TYPE, "application/json")], text).into_response(),
        Err(error) => Problem::internal(error.to_string()).into_response(),
    }
}

/// The process answers.
#[utoipa::path(get, path = "/healthz", responses((status = 200, description = "the process answers")))]
async fn healthz() -> &'static str {
    "ok\n"
}

/// Keys can be served now: a token has a KEK that serves, its canary opens, and the records can be
/// written. A site without a KEK, or with none that serves, is not ready.
/// The lines after the first, also those of a refusal, are the alarms that are raised.
#[utoipa::path(get, path = "/readyz", responses((status = 200, description = "keys can be served"),
    (status = 503, body = Problem, content_type = "application/problem+json")))]
fn readyz(State(service): State<Arc<Service>>, monitor: &Monitor) -> Result<String, Problem> {
    service
        .ready()
        .map(|()| format!("ready\n{}", monitor.raised()))
        .map_err(|why| Problem::unavailable(format!("{why}\n{}", monitor.raised()).trim_end()))
}

pub(super) async fn nowhere(request: Request) -> Problem {
    Problem::new(
        EkmCode::EE23,
        404,
        format!(
            "there is no {}; GET /v1/openapi.json lists what there is",
            request.uri().path()
        ),
    )
}

pub(super) async fn wrong_method(request: Request) -> Problem {
    Problem::new(
        EkmCode::EE23,
        405,
        format!(
            "{} does not take {}",
            request.uri().path(),
            request.method()
        ),
    )
}
