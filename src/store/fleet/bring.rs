//! What was queued comes into the database: in its order, and once, however often it is tried.

use super::Fleet;
use super::queue::Entry;
use crate::store::{Issuance, Issued, Store as _, StoreError};

/// Facts that are brought in between two looks at the table.
const AT_ONCE: usize = 500;

/// A fact that the database has now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Brought {
    /// The request's id.
    pub request: String,
    /// Who asked.
    pub peer: String,
    /// The drive.
    pub drive: String,
    /// The cartridge; none for a confirm.
    pub volser: Option<String>,
    /// The data key.
    pub dki: String,
    /// What there is to say of it.
    pub how: String,
}

impl Fleet {
    pub(super) async fn bring_in(&self) -> Vec<Brought> {
        let mut all = Vec::new();
        while all.len() < AT_ONCE
            && !self.is_down()
            && let Some(entry) = self.0.queue.next()
        {
            match self.bring(&entry).await {
                Ok(brought) => all.push(brought),
                Err(error) => {
                    tracing::error!(%error, "what was queued cannot be brought into the database; it is tried again");
                    break;
                }
            }
            if let Err(error) = self.0.queue.done(&entry).await {
                tracing::error!(%error, "the history's queue cannot be written");
                break;
            }
        }
        all
    }

    async fn bring(&self, entry: &Entry) -> Result<Brought, StoreError> {
        match entry {
            Entry::Issue { issuance, at } => {
                let how = self.issue_late(issuance, *at).await?;
                Ok(Brought {
                    request: issuance.request.id.clone(),
                    peer: issuance.request.peer.to_string(),
                    drive: issuance.drive.to_string(),
                    volser: Some(issuance.volser.to_string()),
                    dki: issuance.dki.to_string(),
                    how,
                })
            }
            Entry::Confirm {
                request,
                dki,
                drive,
                stored,
                peer,
            } => {
                let known = self
                    .confirm_late(request, dki, drive, *stored, peer)
                    .await?
                    .is_some();
                Ok(Brought {
                    request: request.clone(),
                    peer: peer.to_string(),
                    drive: drive.to_string(),
                    volser: None,
                    dki: dki.to_string(),
                    how: if known {
                        "the confirm that was queued is in the database".to_owned()
                    } else {
                        "a confirm was queued, and the database has nothing that it is about"
                            .to_owned()
                    },
                })
            }
        }
    }

    async fn issue_late(
        &self,
        issuance: &Issuance,
        at: time::OffsetDateTime,
    ) -> Result<String, StoreError> {
        let brought = "what was given out without the database is in it".to_owned();
        if self.commit_late(issuance.clone(), at).await? == Issued::Now {
            return Ok(brought);
        }
        let request = issuance.request.clone();
        let given = self
            .ask("what a request was given", |sql| async move {
                sql.answered(&request).await
            })
            .await?;
        match given {
            // It was brought in before, and the queue did not hear of it.
            Some((_, given)) if given.dki == issuance.dki => Ok(brought),
            // Another server gave the same request another data key. The drive has one of the two,
            // and both are facts.
            given => {
                let mut beside = issuance.clone();
                beside.request.id = beside_id(&issuance.request.id, &self.0.node);
                // Before is: brought in already.
                let _ = self.commit_late(beside, at).await?;
                let other = given.map(|(_, key)| key.dki.to_string());
                tracing::warn!(
                    request = issuance.request.id,
                    dki = %issuance.dki,
                    other,
                    "a request was given two data keys during the outage; the history keeps both"
                );
                Ok(format!(
                    "{brought}; the same request was given data key {} by another server, and the history keeps both",
                    other.unwrap_or_default()
                ))
            }
        }
    }

    async fn commit_late(
        &self,
        issuance: Issuance,
        at: time::OffsetDateTime,
    ) -> Result<Issued, StoreError> {
        self.change("the history", move |sql| async move {
            sql.issue_at(&issuance, at).await
        })
        .await
    }
}

/// The id of a request whose own has another data key.
fn beside_id(request: &str, node: &str) -> String {
    format!("{request}@{node}")
}
