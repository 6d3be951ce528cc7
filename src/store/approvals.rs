//! What waits for a second person.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::StoreError;

/// How far a request for approval came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ApprovalState {
    /// It waits.
    Open,
    /// Somebody approved it, and a server does it. One that stays so: that server died under it.
    Running,
    /// It was approved and done.
    Done,
    /// It was approved and failed.
    Failed,
    /// It was approved, and the first person may do it now.
    Permitted,
    /// He has begun it.
    Used,
    /// Somebody said no.
    Rejected,
    /// Who asked took it back.
    Withdrawn,
}

impl std::fmt::Display for ApprovalState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Open => "open",
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Permitted => "permitted",
            Self::Used => "used",
            Self::Rejected => "rejected",
            Self::Withdrawn => "withdrawn",
        })
    }
}

impl std::str::FromStr for ApprovalState {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [
            Self::Open,
            Self::Running,
            Self::Done,
            Self::Failed,
            Self::Permitted,
            Self::Used,
            Self::Rejected,
            Self::Withdrawn,
        ]
        .into_iter()
        .find(|state| state.to_string() == text)
        .ok_or_else(|| format!("{text:?} is no state of an approval"))
    }
}

/// A command that takes two people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Approval {
    /// Eight hexadecimal digits.
    pub id: String,
    /// What it is, in words.
    pub words: String,
    /// The command as JSON; no secret is in it.
    pub command: String,
    /// True where only who asked can do it himself, once it is approved.
    pub permit: bool,
    /// Who asked: the name in the configuration.
    pub asked_by: String,
    /// His Unix user.
    pub asked_uid: Option<u32>,
    /// How he came, as in records.
    pub asker: String,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub asked: OffsetDateTime,
    /// Until when it waits; of a permitted one, until when it may be done.
    #[serde(with = "time::serde::rfc3339")]
    pub expires: OffsetDateTime,
    /// How far it came.
    pub state: ApprovalState,
    /// Who decided, as in records.
    pub decided_by: Option<String>,
    /// When.
    #[serde(with = "time::serde::rfc3339::option")]
    pub decided: Option<OffsetDateTime>,
    /// What came of it.
    pub outcome: Option<String>,
}

impl Approval {
    /// Whether its time is over before anything came of it.
    #[must_use]
    pub fn is_late(&self, now: OffsetDateTime) -> bool {
        matches!(self.state, ApprovalState::Open | ApprovalState::Permitted) && self.expires <= now
    }
}

/// What becomes of an open request.
#[derive(Clone, Debug)]
pub struct Decision {
    /// The state that it gets.
    pub state: ApprovalState,
    /// Who decided, as in records.
    pub by: String,
    /// When.
    pub at: OffsetDateTime,
    /// Until when it is good, where that changes.
    pub expires: Option<OffsetDateTime>,
    /// Why, or what came of it.
    pub outcome: Option<String>,
}

/// What became of a new request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    /// It waits now.
    New,
    /// The same person asked the same already.
    Already(Box<Approval>),
    /// Too many wait.
    Full,
}

/// Requests for approval, seen by all servers that share the state.
#[async_trait]
pub trait Approvals {
    /// Keeps a request, unless it waits already or `most` wait. Durable when it returns.
    async fn ask_approval(&self, approval: &Approval, most: u32) -> Result<Kept, StoreError>;
    /// The newest thousand, newest first.
    async fn approvals(&self) -> Result<Vec<Approval>, StoreError>;
    /// One of them.
    async fn approval(&self, id: &str) -> Result<Option<Approval>, StoreError>;
    /// Decides about one that waits and whose time is not over; false where somebody else has, or
    /// it is. Durable when it returns, and of all servers one gets true.
    async fn decide_approval(&self, id: &str, decision: &Decision) -> Result<bool, StoreError>;
    /// What came of one that was running.
    async fn end_approval(
        &self,
        id: &str,
        state: ApprovalState,
        outcome: &str,
    ) -> Result<(), StoreError>;
    /// Uses up a permit of that person for that command, if there is one and its time is not over.
    async fn use_permit(
        &self,
        asked_by: &str,
        words: &str,
        now: OffsetDateTime,
    ) -> Result<Option<Approval>, StoreError>;
}
