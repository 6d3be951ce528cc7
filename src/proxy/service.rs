//! Keys from a list of key servers: the primary until its retries are exhausted, then the next.
//!
//! - A server that fails is put aside and looked at in the background (mutual TLS, then `/readyz`,
//!   which says that a token's canary opens). As soon as it is well, it is used again: of those that
//!   are well the first in the list is always the one.
//! - A request has [`Times::total`] in all, far less than the 300 s that drives grant. A server that
//!   is silent costs its share of that and no more.
//! - Which refusals are final, and after which another server is asked, is the table [`VERDICTS`].
//!
//! **Lost answers.** A create whose request left, and whose answer did not come, may have made a data
//! key. It is repeated on the same server first: with the same request id that gives the same data
//! key. If that server stays silent, the next one is asked. Two servers that do not share a state make
//! two data keys then. The cartridge gets the second one only, and only that one is confirmed, on the
//! server that made it ([`Served::by`]). The first stays "issued" in the history of the server that
//! went away: its EEDKs are on no cartridge, and nobody has its SEDK. So one data key is on the
//! cartridge and one is confirmed, whatever was lost; that only one is *made* holds where the servers
//! share a state, or the same server answers in the end.
//!
//! A resolve makes nothing, so it may be repeated anywhere.

mod later;
mod link;
mod look;
mod pool;
mod seen;
mod story;
mod tries;
mod verdict;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use serde::{Serialize, Serializer};
use tokio::sync::{Notify, watch};

use crate::api::{
    ConfirmAnswer, ConfirmRequest, CreateAnswer, CreateRequest, RekeyAnswer, RekeyRequest,
    ResolveAnswer, ResolveRequest, SessionKeyInRequest,
};
use crate::problem::Problem;
use crate::proxy::servers::{KeyServers, ServerAddress};
use crate::tls::ClientTls;
use later::Later;
use link::Link;
use pool::Pool;
use tries::{Call, written};

pub use later::Confirmed;
pub use link::{Failure, ServerState};
pub use seen::{ConfirmRefused, Seen, ServerSeen, Verified, Which};
pub use verdict::{VERDICTS, Verdict};

/// The times of a list of key servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Times {
    /// For a connection with its TLS handshake.
    #[serde(rename = "connect_seconds", serialize_with = "seconds")]
    pub connect: Duration,
    /// For one try, connecting included.
    #[serde(rename = "answer_seconds", serialize_with = "seconds")]
    pub answer: Duration,
    /// Further tries on a server before the next one is asked.
    pub retries: u32,
    /// For a request with everything that is tried for it.
    #[serde(rename = "total_seconds", serialize_with = "seconds")]
    pub total: Duration,
    /// Between two looks at a server that is down.
    #[serde(rename = "probe_seconds", serialize_with = "seconds")]
    pub probe: Duration,
    /// Whether a request waits, within its time, while no server can answer.
    #[serde(skip)]
    pub wait: bool,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            answer: Duration::from_secs(30),
            retries: 1,
            total: Duration::from_secs(120),
            probe: Duration::from_secs(5),
            wait: true,
        }
    }
}

fn seconds<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_u64(time.as_secs())
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// A server said no, and that is final.
    #[error("{problem}")]
    Refused {
        /// Which one.
        server: ServerAddress,
        /// What it said.
        problem: Box<Problem>,
    },
    /// No server answered in time.
    #[error("no key server answered{}: {}", within(*seconds), told(why))]
    NoServer {
        /// How long it was tried.
        seconds: u64,
        /// Of each server, why not.
        why: Vec<(ServerAddress, String)>,
    },
    /// There was no connection to be had.
    #[error(
        "all {maxconn} connections (maxconn) were in use for {seconds} s; raise maxconn, or see why the key servers are slow: ekm proxy display"
    )]
    Full {
        /// MAXCONN.
        maxconn: u16,
        /// How long it was waited for.
        seconds: u64,
    },
    /// The drive did not sign a session key.
    #[error("the drive made no session key: {0}")]
    Session(String),
    /// The request is no JSON.
    #[error("the request cannot be written as JSON: {0}")]
    Request(String),
}

/// Nothing, where nothing was waited.
fn within(seconds: u64) -> String {
    match seconds {
        0 => String::new(),
        seconds => format!(" within {seconds} s"),
    }
}

fn told(why: &[(ServerAddress, String)]) -> String {
    let each: Vec<String> = why
        .iter()
        .map(|(server, reason)| format!("{server} {reason}"))
        .collect();
    each.join("; ")
}

/// An answer, and which server gave it.
#[derive(Debug)]
pub struct Served<T> {
    /// The answer.
    pub answer: T,
    /// Who confirms go to.
    pub by: Issuer,
}

/// The server that gave an answer. Another one knows nothing of its data key.
#[derive(Clone, Debug)]
pub struct Issuer(Arc<Link>);

impl Issuer {
    /// Where it is.
    #[must_use]
    pub fn address(&self) -> &ServerAddress {
        self.0.address()
    }
}

/// A drive that makes session keys. Each try has a challenge of its own server's.
pub trait SessionKeys: Send {
    /// A session key, signed over that challenge.
    ///
    /// # Errors
    /// Why there is none.
    fn sign(&mut self, challenge: &[u8]) -> Result<SessionKeyInRequest, String>;
}

/// Keys from a list of key servers. Cheap to clone; what watches the servers ends with the last clone.
#[derive(Clone, Debug)]
pub struct KeyService(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    tls: ClientTls,
    times: Times,
    list: RwLock<Arc<List>>,
    pool: Pool,
    later: Later,
    /// Told when a server can be used again, or the list is another.
    better: watch::Sender<()>,
    /// Has the servers looked at sooner.
    nudge: Notify,
    /// The server that answered last.
    last: Mutex<Option<ServerAddress>>,
}

#[derive(Debug)]
struct List {
    servers: KeyServers,
    links: Vec<Listed>,
}

/// A server in its place of the list.
#[derive(Clone, Debug)]
struct Listed {
    link: Arc<Link>,
    answer: Duration,
}

impl KeyService {
    /// A service over these servers. Nothing is connected yet. Confirms that wait end with it.
    #[expect(
        clippy::unused_async,
        reason = "what watches the servers needs the runtime"
    )]
    pub async fn start(servers: KeyServers, tls: ClientTls, times: Times) -> Self {
        Self::begin(servers, tls, times, |_| Later::default())
    }

    /// The same, whose confirms that wait are files of `directory`, where the next one finds them. It
    /// is made when it is needed.
    ///
    /// A file there that cannot be read is set aside, and named in the log.
    #[expect(
        clippy::unused_async,
        reason = "what watches the servers needs the runtime"
    )]
    pub async fn start_keeping(
        servers: KeyServers,
        tls: ClientTls,
        times: Times,
        directory: &Path,
    ) -> Self {
        Self::begin(servers, tls, times, |list| Later::read(directory, list))
    }

    fn begin(
        servers: KeyServers,
        tls: ClientTls,
        times: Times,
        later: impl FnOnce(&List) -> Later,
    ) -> Self {
        let list = List::new(servers, None, &times);
        let inner = Arc::new(Inner {
            pool: Pool::new(list.servers.maxconn, list.servers.maxpconn),
            later: later(&list),
            list: RwLock::new(Arc::new(list)),
            tls,
            times,
            better: watch::channel(()).0,
            nudge: Notify::new(),
            last: Mutex::new(None),
        });
        tokio::spawn(look::watch(Arc::downgrade(&inner)));
        Self(inner)
    }

    /// A new data key for a cartridge. A drive that is certified and not pinned gives `session`.
    ///
    /// The answer's EEDKs are confirmed with [`KeyService::confirm`] on the same server.
    ///
    /// # Errors
    /// See [`ServiceError`].
    pub async fn create<'a>(
        &self,
        request: &CreateRequest,
        session: Option<&'a mut (dyn SessionKeys + 'a)>,
    ) -> Result<Served<CreateAnswer>, ServiceError> {
        let body = |signed: Option<SessionKeyInRequest>| {
            let mut request = request.clone();
            request.drive.session_key = signed.or(request.drive.session_key);
            written(&request)
        };
        let mut call = Call {
            path: "/v1/keys/create",
            makes: true,
            session,
            body: &body,
        };
        self.0.ask(&mut call).await
    }

    /// The data key of a cartridge.
    ///
    /// # Errors
    /// See [`ServiceError`].
    pub async fn resolve<'a>(
        &self,
        request: &ResolveRequest,
        session: Option<&'a mut (dyn SessionKeys + 'a)>,
    ) -> Result<Served<ResolveAnswer>, ServiceError> {
        let body = |signed: Option<SessionKeyInRequest>| {
            let mut request = request.clone();
            request.drive.session_key = signed.or(request.drive.session_key);
            written(&request)
        };
        let mut call = Call {
            path: "/v1/keys/resolve",
            makes: false,
            session,
            body: &body,
        };
        self.0.ask(&mut call).await
    }

    /// The same data key under other KEKs.
    ///
    /// # Errors
    /// See [`ServiceError`].
    pub async fn rekey(&self, request: &RekeyRequest) -> Result<Served<RekeyAnswer>, ServiceError> {
        let body = |_| written(request);
        let mut call = Call {
            path: "/v1/keys/rekey",
            makes: true,
            session: None,
            body: &body,
        };
        self.0.ask(&mut call).await
    }

    /// Tells the server that gave a data key whether its EEDKs are on the cartridge. No other server
    /// is told: none knows of it.
    ///
    /// # Errors
    /// See [`ServiceError`]; it is not tried for longer than a server's tries take.
    pub async fn confirm(
        &self,
        by: &Issuer,
        request: &ConfirmRequest,
    ) -> Result<ConfirmAnswer, ServiceError> {
        self.0.confirm(&by.0, request).await
    }

    /// The same; where the server is not there now, it is told as soon as it is, by this process or,
    /// after [`KeyService::start_keeping`], by the next.
    ///
    /// # Errors
    /// The server said no. That nothing was written under a data key is told again all the same, every
    /// ten minutes ([`Seen::confirms_refused`]).
    pub async fn confirm_or_later(
        &self,
        by: &Issuer,
        request: &ConfirmRequest,
    ) -> Result<Confirmed, ServiceError> {
        later::confirm_or_later(&self.0, &by.0, request).await
    }

    /// The servers and their bounds.
    #[must_use]
    pub fn servers(&self) -> KeyServers {
        self.0.list().servers.clone()
    }

    /// Replaces the servers and their bounds. Requests under way end the try that they are at, and go
    /// on with the new list.
    pub fn set(&self, servers: KeyServers) {
        let inner = &self.0;
        let mut list = inner.list.write().unwrap_or_else(PoisonError::into_inner);
        let fresh = List::new(servers, Some(&list), &inner.times);
        for gone in &list.links {
            if fresh.find(&gone.link).is_none() {
                inner.pool.close(gone.link.address());
            }
        }
        inner
            .pool
            .set(fresh.servers.maxconn, fresh.servers.maxpconn);
        *list = Arc::new(fresh);
        drop(list);
        inner.better.send_replace(());
    }

    /// How the servers are.
    #[must_use]
    pub fn seen(&self) -> Seen {
        seen::seen(&self.0)
    }

    /// A real exchange with each of these servers, all at once: a connection of its own, mutual TLS,
    /// and the server's word that a token's canary opens.
    pub async fn verify(&self, which: Which) -> Vec<Verified> {
        look::verify(&self.0, which).await
    }
}

impl List {
    /// Servers that are in the list before keep what is known of them.
    fn new(servers: KeyServers, before: Option<&Self>, times: &Times) -> Self {
        let links = servers.servers.iter().map(|server| {
            let known = before.into_iter().flat_map(|list| &list.links);
            let known = known
                .map(|listed| &listed.link)
                .find(|link| *link.address() == server.address);
            Listed {
                link: known.map_or_else(|| Link::new(server.address.clone()), Arc::clone),
                answer: server.answer.unwrap_or(times.answer),
            }
        });
        Self {
            links: links.collect(),
            servers,
        }
    }

    fn find(&self, link: &Arc<Link>) -> Option<&Listed> {
        self.links
            .iter()
            .find(|listed| Arc::ptr_eq(&listed.link, link))
    }
}

impl Inner {
    fn list(&self) -> Arc<List> {
        Arc::clone(&self.list.read().unwrap_or_else(PoisonError::into_inner))
    }
}
