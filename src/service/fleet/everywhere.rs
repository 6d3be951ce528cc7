//! What every server must have, or have told, before something is done.

use crate::key::{KekHash, KeyLabel};
use crate::policy::GrantedKek;
use crate::problem::{EkmCode, Problem};
use crate::service::{Service, unstored};
use crate::store::{KekStanding, lacking};

/// How long after a KEK was retired another server must have told of itself, besides that it knew: a
/// request may be under way by what was remembered a moment before. By the database's clock alone.
const WHOLE: time::Duration = time::Duration::seconds(60);

impl Service {
    /// That what every server gave out before a KEK's state was changed is in the history that they
    /// share: each has told of itself since, by a table that has the change, and with nothing that is
    /// not in the history.
    ///
    /// # Errors
    /// Which one may have given out what is not.
    pub(crate) async fn history_is_whole(&self, standing: &KekStanding) -> Result<(), Problem> {
        let Some(part) = &self.part else {
            return Ok(());
        };
        let refused = |why: String| Err(Problem::new(EkmCode::EE30, 409, why));
        if part.owes() {
            return refused(
                "what this server gave out in an outage of the state database is not in the history yet; wait until it is (ekm fleet status)"
                    .to_owned(),
            );
        }
        let servers = self.store.servers().await;
        for server in servers.map_err(|error| unstored(&error))? {
            if server.node != self.node
                && server.knows < standing.row
                && server.seen >= standing.since + WHOLE
            {
                return refused(format!(
                    "server {} (version {}) told of itself since, and not that it knows of the change: one of an earlier version has to be upgraded first, one that cannot read its table says why in its log, and one that is gone for good is taken out of the list (ekm fleet forget {})",
                    server.node, server.version, server.node
                ));
            }
            let knows = server.knows >= standing.row && server.seen >= standing.since + WHOLE;
            if server.node != self.node && !knows {
                return refused(format!(
                    "server {} has not told of itself since {}, and may have given out EEDKs that are not in the history yet; wait until it has, a minute at least, or take it out of the list if it is gone for good (ekm fleet forget {})",
                    server.node,
                    standing
                        .since
                        .format(&time::format_description::well_known::Rfc3339)
                        .unwrap_or_default(),
                    server.node
                ));
            }
        }
        Ok(())
    }

    /// That every server that counts, and every token of each, has these KEKs, where the
    /// configuration wants that.
    pub(in crate::service) fn everywhere(&self, granted: &[GrantedKek]) -> Result<(), Problem> {
        let keks: Vec<_> = granted
            .iter()
            .filter(|granted| !granted.sealed)
            .map(|granted| (granted.kek.label.clone(), granted.kek.hash))
            .collect();
        self.all_have(&keks)
    }

    /// The same of KEKs by label and hash.
    pub(crate) fn all_have(&self, keks: &[(KeyLabel, KekHash)]) -> Result<(), Problem> {
        let Some(part) = self.part.as_ref().filter(|part| part.required) else {
            return Ok(());
        };
        // What the others have is not known yet.
        if part.fleet.knows().is_none() {
            return Err(Problem::unavailable(
                "nothing is written before the table of the servers was read (fleet.require_kek_everywhere = true; ekm fleet status)",
            ));
        }
        let servers = self.counted(part);
        let refused = |label: &str, why: String| {
            Err(Problem::new(
                EkmCode::EE31,
                409,
                format!(
                    "nothing is written under KEK {label}: fleet.require_kek_everywhere = true, and {why} (ekm fleet status)"
                ),
            ))
        };
        if let Some((node, token, label)) = lacking(&servers, keks) {
            let why = format!("token {token} of server {node} does not have it");
            return refused(&label, why);
        }
        let unknown = part.config.nodes.iter().find(|node| {
            **node != self.node && !servers.iter().any(|server| server.node == **node)
        });
        match (unknown, keks.first()) {
            (Some(node), Some((label, _))) => refused(
                label.as_str(),
                format!("what server {node} has is not known, as it was never there"),
            ),
            (None, _) | (_, None) => Ok(()),
        }
    }
}
