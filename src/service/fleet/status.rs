//! The servers as an operator sees them, and as he takes one out of the list.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::servers::TELL;
use super::{CLOCKS, newest};
use crate::audit::Event;
use crate::problem::{EkmCode, Problem};
use crate::service::{Service, unrecorded, unstored};
use crate::store::{Difference, FleetSeen, KeyServer, Servers as _, StoreError, differences};

/// A server, as another sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerSeen {
    /// What it tells of itself.
    #[serde(flatten)]
    pub server: KeyServer,
    /// Seconds since it told.
    pub ago: u64,
    /// Whether it counts: it told lately, or the configuration lists it.
    pub counts: bool,
    /// Whether it is this one.
    pub own: bool,
}

/// How the servers are that share a state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetStatus {
    /// This server's name.
    pub node: String,
    /// The database; none where the state is this server's own.
    pub database: Option<FleetSeen>,
    /// All that told of themselves.
    pub servers: Vec<ServerSeen>,
    /// Servers that the configuration lists and that are not there.
    pub missing: Vec<String>,
    /// What is not the same on those that count.
    pub differences: Vec<Difference>,
    /// Tokens that give no key for the seals on the local disk, and why.
    pub unsealed: Vec<(String, String)>,
}

impl Service {
    /// How the database is; none where the state is this server's own.
    pub(crate) fn fleet_seen(&self) -> Option<FleetSeen> {
        self.part.as_ref().map(|part| part.fleet.seen())
    }

    /// How the servers are that share the state.
    pub(crate) async fn fleet_status(&self) -> Result<FleetStatus, Problem> {
        let Some(part) = &self.part else {
            return Ok(FleetStatus {
                node: self.node.clone(),
                database: None,
                servers: Vec::new(),
                missing: Vec::new(),
                differences: Vec::new(),
                unsealed: Vec::new(),
            });
        };
        part.fleet.look_once().await;
        let servers = match part.fleet.servers().await {
            Ok(servers) => servers,
            Err(StoreError::Outage { .. }) => part.fleet.servers_seen(),
            Err(error) => return Err(unstored(&error)),
        };
        let now = part.now(&servers);
        let counted: Vec<KeyServer> = servers
            .iter()
            .filter(|server| part.counts(server, now))
            .cloned()
            .collect();
        Ok(FleetStatus {
            node: self.node.clone(),
            database: Some(part.fleet.seen()),
            missing: Self::missing(part, &counted),
            differences: differences(&counted),
            servers: servers
                .into_iter()
                .map(|server| ServerSeen {
                    ago: ago(&server).as_secs(),
                    counts: part.counts(&server, now),
                    own: server.node == self.node,
                    server,
                })
                .collect(),
            unsealed: part
                .seen()
                .refused
                .iter()
                .map(|(token, (reason, _))| (token.clone(), reason.clone()))
                .collect(),
        })
    }

    /// Takes a server out of the list that is gone for good.
    pub(crate) async fn forget_server(&self, node: &str, mut event: Event) -> Result<(), Problem> {
        let refused = |why: String| Err(Problem::new(EkmCode::EE30, 409, why));
        let part = self.part.as_ref();
        if part.is_some_and(|part| part.config.nodes.iter().any(|listed| listed == node)) {
            return refused(format!(
                "server {node} stands in [fleet] nodes of {}: take it out there, on every server, and restart them first; what a listed server has is asked for before anything is written",
                self.node
            ));
        }
        let servers = self.store.servers().await;
        let servers = servers.map_err(|error| unstored(&error))?;
        let row = servers.iter().find(|server| server.node == node);
        // The last one that was there may be it, long ago.
        let now = newest(&servers).max(OffsetDateTime::now_utc() - CLOCKS);
        if let Some(row) = row
            && now - row.seen < TELL * 3
        {
            return refused(format!(
                "server {node} told of itself {} s ago: stop it first",
                ago(row).as_secs()
            ));
        }
        event.detail = Some(format!("server {node}"));
        self.audit
            .record(event)
            .await
            .map_err(|error| unrecorded(&error))?;
        match self.store.forget_server(node).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(Problem::new(
                EkmCode::EE0F,
                404,
                format!("no server {node} ever told of itself (ekm fleet status)"),
            )),
            Err(error) => Err(unstored(&error)),
        }
    }
}

fn ago(server: &KeyServer) -> Duration {
    Duration::try_from(OffsetDateTime::now_utc() - server.seen).unwrap_or_default()
}
