//! Reads another server's tables, over mutual TLS, within limits.
//!
//! The peer is one that the configuration names, and may be broken or in other
//! hands all the same: it must be who it says, each page comes in time and has a
//! size, a table has an end, and what does not read ends the sync with nothing
//! written of that table.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::ClientConfig;
use serde::de::DeserializeOwned;
use time::OffsetDateTime;
use tokio::time::timeout;

use super::SyncFrom;
use super::wire::{DRIVES, HISTORY, Head, KEKS, KekFact, Measure, Page, VERSION};
use crate::client::Wire;
use crate::problem::Problem;
use crate::store::StoreError;
use crate::store::merge::DriveRow;
use crate::store::sync::HistoryRow;
use crate::tls::{PeerId, TlsError};

/// Years that a clock may say, also where an operator forces it.
const YEARS: std::ops::RangeInclusive<i32> = 2000..=9000;

/// Most rows of a drive table.
const MOST_DRIVES: u64 = 1_000_000;

/// Most KEKs.
const MOST_KEKS: usize = 100_000;

/// How often a table that changes under the reading is read anew.
const ATTEMPTS: usize = 3;

/// Longest error of a peer that is repeated, characters.
const REPEATED: usize = 300;

/// Why there is no sync.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// The configuration does not name it.
    #[error("{name} is in no [[sync.from]] of the configuration{known}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// Those that are.
        known: String,
    },
    /// One is under way.
    #[error("a sync is under way already; wait for its end")]
    Busy,
    /// The certificate files.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// It cannot be reached, or not trusted.
    #[error("cannot reach {peer} at {address}: {reason}")]
    Reach {
        /// The peer.
        peer: PeerId,
        /// Host and port.
        address: String,
        /// What went wrong.
        reason: String,
    },
    /// Another answers there.
    #[error(
        "{address} is {got}, not {peer}; mend the address or the name in [[sync.from]], or issue the server's certificate anew (ekm tls issue {} --role server)", peer.name()
    )]
    Stranger {
        /// The peer.
        peer: PeerId,
        /// Host and port.
        address: String,
        /// Whom the certificate names.
        got: String,
    },
    /// It said no.
    #[error("{peer} refused: {reason}")]
    Refused {
        /// The peer.
        peer: PeerId,
        /// Its words.
        reason: String,
    },
    /// What it said is no answer.
    #[error("{peer} did not answer properly: {what}: {reason}")]
    Answer {
        /// The peer.
        peer: PeerId,
        /// The path that was asked for.
        what: String,
        /// What went wrong.
        reason: String,
    },
    /// It speaks another form.
    #[error(
        "{peer} gives its tables in form {got}, and this ekm reads form {VERSION}; bring both to one version"
    )]
    Version {
        /// The peer.
        peer: PeerId,
        /// Its form.
        got: u32,
    },
    /// The clocks differ.
    #[error(
        "the clock of {peer} is {seconds} s {direction} ours, and the newest row is to stand: set the clocks right (NTP), or say --force; nothing was changed"
    )]
    Clock {
        /// The peer.
        peer: PeerId,
        /// By how much.
        seconds: u64,
        /// `ahead of` or `behind`.
        direction: &'static str,
    },
    /// A rewrite would empty the table.
    #[error(
        "a rewrite from {peer} would delete {deleted} of {of} drives here; is it the right server, and is its state whole? if so, say --force; nothing was changed"
    )]
    Emptied {
        /// The peer.
        peer: PeerId,
        /// Drives that would go.
        deleted: usize,
        /// Drives that there are.
        of: usize,
    },
    /// It failed after a part was written.
    #[error("{cause}; what was taken before that stays: {taken}")]
    Partly {
        /// What was written.
        taken: String,
        /// Why it went no further.
        cause: Box<Self>,
    },
    /// The state.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The records, or the tokens.
    #[error("{}", .0.detail)]
    Here(Problem),
}

/// A connection to a peer.
#[derive(Debug)]
pub struct Reader {
    peer: PeerId,
    address: String,
    answer: Duration,
    wire: Wire,
}

/// What the head says, and how far the peer's clock is from ours.
#[derive(Debug)]
pub struct Met {
    /// The head.
    pub head: Head,
    /// Ahead of ours: positive. What the way took is left out.
    pub apart: time::Duration,
}

impl Reader {
    /// Connects, and sees that the certificate names the peer.
    ///
    /// # Errors
    /// [`SyncError::Reach`], [`SyncError::Stranger`]
    pub async fn open(
        from: &SyncFrom,
        tls: Arc<ClientConfig>,
        answer: Duration,
    ) -> Result<Self, SyncError> {
        let SyncFrom { peer, address, .. } = from;
        let fail = |reason: String| SyncError::Reach {
            peer: peer.clone(),
            address: address.clone(),
            reason,
        };
        let wire = timeout(answer, Wire::open(address, tls, ()))
            .await
            .map_err(|_| fail(format!("no answer within {} s", answer.as_secs())))?
            .map_err(fail)?;
        let named = match wire.certificate() {
            Some(own) => PeerId::from_certificate(own).map_err(|error| error.to_string()),
            None => Err("without a certificate".to_owned()),
        };
        match named {
            Ok(name) if name == *peer => Ok(Self {
                peer: peer.clone(),
                address: address.clone(),
                answer,
                wire,
            }),
            other => Err(SyncError::Stranger {
                peer: peer.clone(),
                address: address.clone(),
                got: other.map_or_else(|why| format!("nobody ({why})"), |name| name.to_string()),
            }),
        }
    }

    /// The head.
    ///
    /// # Errors
    /// See [`SyncError`].
    pub async fn head(&mut self) -> Result<Met, SyncError> {
        let (before, begun) = (OffsetDateTime::now_utc(), Instant::now());
        let head: Head = self.get("/v1/sync/head").await?;
        let took = begun.elapsed();
        if head.version != VERSION {
            return Err(SyncError::Version {
                peer: self.peer.clone(),
                got: head.version,
            });
        }
        if !YEARS.contains(&head.now.year()) {
            let reason = format!("its clock says the year {}", head.now.year());
            return Err(self.answer("/v1/sync/head", reason));
        }
        if let Some(seal) = &head.seal {
            let digits = seal.hash.bytes().all(|byte| byte.is_ascii_hexdigit());
            let numbers = [seal.number, seal.seq];
            let fits = numbers.iter().all(|number| i64::try_from(*number).is_ok());
            if seal.hash.len() != 64 || !digits || !fits {
                let reason = "its audit seal is none".to_owned();
                return Err(self.answer("/v1/sync/head", reason));
            }
        }
        // It looked at its clock somewhere between.
        let (early, late) = (before, before + took);
        let apart = if head.now < early {
            head.now - early
        } else if head.now > late {
            head.now - late
        } else {
            time::Duration::ZERO
        };
        Ok(Met { head, apart })
    }

    /// The whole drive table, as it was at one moment.
    ///
    /// # Errors
    /// See [`SyncError`].
    pub async fn drives(&mut self, mut head: Head) -> Result<Vec<DriveRow>, SyncError> {
        for _ in 0..ATTEMPTS {
            let drives = self.drives_once(&head).await?;
            if Measure::of(&drives) == head.drives {
                return Ok(drives);
            }
            let now = self.head().await?.head;
            if Measure::of(&drives) == now.drives {
                return Ok(drives);
            }
            head = now;
        }
        Err(self.answer(
            "/v1/sync/drives",
            format!("its drive table was another each of the {ATTEMPTS} times that it was read"),
        ))
    }

    async fn drives_once(&mut self, head: &Head) -> Result<Vec<DriveRow>, SyncError> {
        let path = "/v1/sync/drives";
        let stated = head.drives.rows;
        if stated > MOST_DRIVES {
            let reason = format!("it has {stated} drives, where {MOST_DRIVES} may be");
            return Err(self.answer(path, reason));
        }
        let mut drives: Vec<DriveRow> = Vec::new();
        let mut after = String::new();
        loop {
            let page: Page<DriveRow> = self.page(&format!("{path}?after={after}")).await?;
            let most = usize::try_from(DRIVES).unwrap_or(usize::MAX);
            let last = page
                .rows
                .last()
                .map(|row| row.drive.serial.as_str().to_owned());
            let moves = last.as_ref().is_none_or(|last| *last != after);
            if page.rows.len() > most || page.next.is_some() && (last != page.next || !moves) {
                return Err(self.answer(path, "its pages do not fit together"));
            }
            drives.extend(page.rows);
            // What has grown since the head is more by a page at most, or the head is read anew.
            let got = u64::try_from(drives.len()).unwrap_or(u64::MAX);
            if got > stated.saturating_add(u64::from(DRIVES)) {
                let reason = format!("it says {stated} drives and gives more without an end");
                return Err(self.answer(path, reason));
            }
            match page.next {
                Some(next) => after = next,
                None => return Ok(drives),
            }
        }
    }

    /// What the peer knows of KEKs.
    ///
    /// # Errors
    /// See [`SyncError`].
    pub async fn keks(&mut self) -> Result<Vec<KekFact>, SyncError> {
        let path = "/v1/sync/keks";
        let mut facts = Vec::new();
        loop {
            let page: Page<KekFact> = self.page(&format!("{path}?after={}", facts.len())).await?;
            let got = page.rows.len();
            facts.extend(page.rows);
            let goes_on = page.next.is_some();
            if got > KEKS || goes_on && got == 0 || facts.len() > MOST_KEKS {
                return Err(self.answer(path, "its pages do not fit together"));
            }
            if !goes_on {
                return Ok(facts);
            }
        }
    }

    /// Rows of the history from that number on: a page, and whether more may follow.
    ///
    /// # Errors
    /// See [`SyncError`].
    pub async fn history(&mut self, from: i64) -> Result<(Vec<HistoryRow>, bool), SyncError> {
        let path = format!("/v1/sync/history?from={from}");
        let page: Page<HistoryRow> = self.page(&path).await?;
        let most = usize::try_from(HISTORY).unwrap_or(usize::MAX);
        let mut last = from.saturating_sub(1);
        for row in &page.rows {
            if row.id <= last {
                return Err(self.answer(&path, "its rows are not in their order"));
            }
            last = row.id;
            if let Some(fault) = row.fault() {
                return Err(self.answer(&path, fault));
            }
        }
        let goes_on = page.next.is_some();
        if page.rows.len() > most || goes_on && page.rows.is_empty() {
            return Err(self.answer(&path, "its pages do not fit together"));
        }
        Ok((page.rows, goes_on))
    }

    async fn page<T: DeserializeOwned>(&mut self, path: &str) -> Result<Page<T>, SyncError> {
        let page: Page<T> = self.get(path).await?;
        if page.version == VERSION {
            Ok(page)
        } else {
            Err(SyncError::Version {
                peer: self.peer.clone(),
                got: page.version,
            })
        }
    }

    async fn get<T: DeserializeOwned>(&mut self, path: &str) -> Result<T, SyncError> {
        let asked = timeout(self.answer, self.wire.get(path)).await;
        let (status, body) = match asked {
            Err(_) => {
                let reason = format!("it did not come within {} s", self.answer.as_secs());
                return Err(self.answer(path, reason));
            }
            Ok(Err(lost)) => return Err(self.answer(path, lost)),
            Ok(Ok(answer)) => answer,
        };
        if (200..300).contains(&status) {
            return serde_json::from_slice(&body).map_err(|error| self.answer(path, error));
        }
        Err(match serde_json::from_slice::<Problem>(&body) {
            Ok(problem) => SyncError::Refused {
                peer: self.peer.clone(),
                reason: plain(&problem.detail),
            },
            Err(_) => self.answer(path, format!("status {status}")),
        })
    }

    /// An answer of the peer that is none.
    pub(super) fn answer(&self, what: &str, reason: impl std::fmt::Display) -> SyncError {
        SyncError::Answer {
            peer: self.peer.clone(),
            what: format!("{}{what}", self.address),
            reason: plain(&reason.to_string()),
        }
    }
}

/// A peer's text, which goes to a terminal: short and without control characters.
pub(super) fn plain(text: &str) -> String {
    text.chars()
        .filter(|character| !character.is_control())
        .take(REPEATED)
        .collect()
}

impl From<Problem> for SyncError {
    fn from(problem: Problem) -> Self {
        Self::Here(problem)
    }
}
