//! The servers that share a state: what each tells of itself, and what is not the same on all.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use time::OffsetDateTime;

use super::Part;
use crate::bridge::message::PrivateHalf;
use crate::service::Service;
use crate::store::{
    Defaults, KekHeld, KeyServer, Servers as _, StoreError, TokenHeld, differences,
};

/// Time after which a server tells of itself again, where nothing has changed.
pub(super) const TELL: Duration = Duration::from_secs(5);

/// How long servers may differ before that is an alarm: each reads its tokens every few seconds.
const SETTLES: Duration = Duration::from_secs(10);

impl Service {
    pub(super) async fn tell(&self, part: &Part) -> Result<(), StoreError> {
        // That it was there says also that all that it gave out until then is in the history.
        if part.owes() {
            return Ok(());
        }
        // Before the first look at the table nothing is known of what this server told before.
        let Some(knows) = part.fleet.knows() else {
            return Ok(());
        };
        let own = self.own(part, knows, self.store.defaults().await?);
        let due = {
            let seen = part.seen();
            seen.told.as_ref().is_none_or(|(told, at)| {
                at.elapsed() >= TELL
                    || told.knows != own.knows
                    || told.tokens != own.tokens
                    || told.defaults != own.defaults
            })
        };
        if !due {
            return Ok(());
        }
        let before = part.fleet.tell(&own).await?;
        let mut seen = part.seen();
        let again = seen.told.is_some();
        if again && before.is_some_and(|before| before.instance != part.instance) {
            seen.twin = Some(Instant::now());
        }
        seen.told = Some((own, Instant::now()));
        Ok(())
    }

    /// This server as it tells of itself.
    fn own(&self, part: &Part, knows: i64, defaults: Defaults) -> KeyServer {
        let mut seen = part.seen();
        let prior = seen.prior.get_or_insert_with(|| {
            let mut servers = part.fleet.servers_seen().into_iter();
            let own = servers.find(|server| server.node == self.node);
            own.map(|server| server.tokens).unwrap_or_default()
        });
        let bridges = self.tokens.bridges().iter();
        let tokens = bridges
            .filter(|bridge| bridge.key_file().is_none())
            .map(|bridge| {
                let Some(found) = bridge.found() else {
                    let before = prior.iter().find(|token| token.name == bridge.name());
                    return before.cloned().unwrap_or_else(|| TokenHeld {
                        name: bridge.name().to_owned(),
                        serial: String::new(),
                        known: false,
                        keks: Vec::new(),
                    });
                };
                let serves = found
                    .keks
                    .iter()
                    .filter(|kek| matches!(kek.private, PrivateHalf::Serves { .. }));
                TokenHeld {
                    name: bridge.name().to_owned(),
                    serial: found.token.serial.clone(),
                    known: true,
                    keks: serves
                        .map(|kek| KekHeld {
                            label: kek.label.clone(),
                            hash: kek.hash,
                        })
                        .collect(),
                }
            })
            .collect();
        KeyServer {
            node: self.node.clone(),
            instance: part.instance,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started: part.started,
            seen: OffsetDateTime::now_utc(),
            knows,
            tokens,
            defaults,
        }
    }

    /// The servers that count, this one as it is now among them.
    pub(super) fn counted(&self, part: &Part) -> Vec<KeyServer> {
        let told = part.seen().told.as_ref().map(|told| told.0.clone());
        let mut servers = part.fleet.servers_seen();
        let now = part.now(&servers);
        servers.retain(|server| server.node != self.node && part.counts(server, now));
        if let Some(told) = told {
            servers.push(self.own(part, told.knows, told.defaults));
        }
        servers.sort_by(|one, other| one.node.cmp(&other.node));
        servers
    }

    pub(super) fn missing(part: &Part, servers: &[KeyServer]) -> Vec<String> {
        let now = part.now(&part.fleet.servers_seen());
        let there: HashSet<&str> = servers
            .iter()
            .filter(|server| now - server.seen <= part.config.peer_time())
            .map(|server| server.node.as_str())
            .collect();
        let listed = part.config.nodes.iter();
        listed
            .filter(|node| !there.contains(node.as_str()))
            .cloned()
            .collect()
    }

    pub(super) fn compare(&self, part: &Part) {
        let now: HashSet<String> = self.differ(part).into_iter().map(|(key, _)| key).collect();
        let mut seen = part.seen();
        seen.differs.retain(|key, _| now.contains(key));
        for key in now {
            seen.differs.entry(key).or_insert_with(Instant::now);
        }
    }

    /// All that differs, by what it is.
    fn differ(&self, part: &Part) -> Vec<(String, String)> {
        // Without the database they cannot tell of themselves.
        if part.fleet.is_down() {
            return Vec::new();
        }
        let servers = self.counted(part);
        let mut all: Vec<(String, String)> = differences(&servers)
            .into_iter()
            .map(|difference| (difference.what, difference.how))
            .collect();
        let missing = Self::missing(part, &servers).into_iter();
        all.extend(missing.map(|node| {
            let how = "the configuration lists it, and it tells nothing of itself".to_owned();
            (format!("server {node}"), how)
        }));
        let twin = part.seen().twin;
        if twin.is_some_and(|at| at.elapsed() < TELL * 3) {
            let how = "two servers have this node name; give each its own".to_owned();
            all.push((format!("server {}", self.node), how));
        }
        all
    }

    /// What differs for longer than it takes to settle.
    pub(crate) fn fleet_differences(&self) -> Vec<(String, String)> {
        let Some(part) = &self.part else {
            return Vec::new();
        };
        let all = self.differ(part);
        let seen = part.seen();
        let lasts = |key: &String| {
            let since = seen.differs.get(key);
            since.is_some_and(|since| since.elapsed() >= SETTLES)
        };
        all.into_iter().filter(|(key, _)| lasts(key)).collect()
    }
}
