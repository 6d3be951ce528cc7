//! States of KEKs, and KEKs that take another's place.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::StoreError;
use crate::drive::DriveSerial;
use crate::key::{KekHash, KeyLabel};
use crate::volser::Volser;

/// What a KEK may be used for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KekState {
    /// Reading and writing.
    #[default]
    Active,
    /// Reading only.
    Retired,
    /// Nothing.
    Revoked,
    /// It was destroyed; its label stays taken.
    Deleted,
}

impl std::fmt::Display for KekState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Active => "active",
            Self::Retired => "retired",
            Self::Revoked => "revoked",
            Self::Deleted => "deleted",
        })
    }
}

impl std::str::FromStr for KekState {
    type Err = UnknownState;

    fn from_str(text: &str) -> Result<Self, UnknownState> {
        match text {
            "active" => Ok(Self::Active),
            "retired" => Ok(Self::Retired),
            "revoked" => Ok(Self::Revoked),
            "deleted" => Ok(Self::Deleted),
            _ => Err(UnknownState),
        }
    }
}

/// A word that names no state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected active, retired, revoked or deleted")]
pub struct UnknownState;

/// The state of a KEK, with who said so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KekStanding {
    /// The state.
    pub state: KekState,
    /// Since when.
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
    /// Who said so.
    pub by: String,
    /// Why.
    pub reason: Option<String>,
    /// The number of its row: another one has taken its place where this is another.
    #[serde(default)]
    pub row: i64,
}

impl KekStanding {
    /// What it is since when, by whom and why, in words.
    #[must_use]
    pub fn words(&self) -> String {
        let verb = match self.state {
            KekState::Active => "made active",
            KekState::Retired => "retired for writing",
            KekState::Revoked => "revoked",
            KekState::Deleted => "deleted",
        };
        let reason = self
            .reason
            .as_ref()
            .map_or_else(String::new, |reason| format!(": {reason}"));
        format!("{verb} on {} by {}{reason}", self.since.date(), self.by)
    }
}

/// The states of all KEKs that are, or were once, not active.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KekStates(HashMap<KekHash, KekStanding>);

impl KekStates {
    /// What was said of a KEK last; nothing of one that was always active.
    #[must_use]
    pub fn of(&self, kek: &KekHash) -> Option<&KekStanding> {
        self.0.get(kek)
    }

    /// All of them, by hash.
    #[must_use]
    pub fn all(&self) -> Vec<(KekHash, KekStanding)> {
        let mut all: Vec<_> = self
            .0
            .iter()
            .map(|(kek, standing)| (*kek, standing.clone()))
            .collect();
        all.sort_by_key(|(kek, _)| *kek.as_bytes());
        all
    }

    /// Its state.
    #[must_use]
    pub fn state(&self, kek: &KekHash) -> KekState {
        self.of(kek)
            .map_or(KekState::Active, |standing| standing.state)
    }
}

impl FromIterator<(KekHash, KekStanding)> for KekStates {
    fn from_iter<T: IntoIterator<Item = (KekHash, KekStanding)>>(all: T) -> Self {
        Self(all.into_iter().collect())
    }
}

/// A change of a KEK's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateChange {
    /// The KEK.
    pub kek: KekHash,
    /// What it becomes.
    pub state: KekState,
    /// Who says so.
    pub by: String,
    /// Why.
    pub reason: Option<String>,
    /// The row that it was judged by ([`KekStanding::row`]); 0 where there was none.
    pub before: i64,
}

/// What a move has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    /// Whether the global labels named the former KEK.
    pub defaults: bool,
    /// The drives that did.
    pub drives: Vec<DriveSerial>,
}

/// How far a planned move is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MoveState {
    /// Its time has not come, or it could not be done yet.
    Planned,
    /// It is done.
    Done,
}

/// A KEK that takes another's place in defaults and drive table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KekMove {
    /// Its number.
    pub id: uuid::Uuid,
    /// The KEK that is named now.
    pub former: KeyLabel,
    /// The one that is to be named.
    pub successor: KeyLabel,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub due: OffsetDateTime,
    /// Who asked for it.
    pub operator: String,
    /// How far it is.
    pub state: MoveState,
    /// What came of it, or why it could not be done yet.
    pub note: Option<String>,
}

/// How often a KEK is rolled over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Every {
    /// On the first day of each month, 00:00 UTC.
    Month,
    /// On the first day of each year, 00:00 UTC.
    Year,
}

impl std::fmt::Display for Every {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Month => "month",
            Self::Year => "year",
        })
    }
}

impl std::str::FromStr for Every {
    type Err = UnknownPeriod;

    fn from_str(text: &str) -> Result<Self, UnknownPeriod> {
        match text {
            "month" => Ok(Self::Month),
            "year" => Ok(Self::Year),
            _ => Err(UnknownPeriod),
        }
    }
}

/// A word that names no period.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected month or year")]
pub struct UnknownPeriod;

/// A rollover by the calendar.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KekSchedule {
    /// The KEK that is rolled over next: the newest of its line.
    pub label: KeyLabel,
    /// How often.
    pub every: Every,
    /// When next.
    #[serde(with = "time::serde::rfc3339")]
    pub due: OffsetDateTime,
    /// Who set it.
    pub operator: String,
    /// The label of the key that is being made.
    pub making: Option<KeyLabel>,
    /// Why it could not be done when it was due.
    pub trouble: Option<String>,
}

/// States of KEKs, planned moves and schedules.
#[async_trait]
pub trait KekLife: Send + Sync {
    /// The states of all KEKs.
    async fn kek_states(&self) -> Result<Arc<KekStates>, StoreError>;
    /// Changes one; false where its state has changed since it was judged.
    async fn set_kek_state(&self, change: &StateChange) -> Result<bool, StoreError>;
    /// Puts a KEK in the place of another, in the global labels and in the drive table.
    async fn move_kek(&self, former: &KeyLabel, successor: &KeyLabel) -> Result<Moved, StoreError>;
    /// Keeps that a KEK has opened an EEDK which was not issued here: the first time, with its volume.
    async fn note_foreign(&self, kek: &KekHash, volser: Option<&Volser>) -> Result<(), StoreError>;
    /// The KEKs of which that is kept, and when it first was, in words.
    async fn foreign_keks(&self) -> Result<Vec<(KekHash, String)>, StoreError>;
    /// Volumes that held EEDKs under a KEK and were given others since then, by name, so many at most.
    /// A job that wrote nothing after all takes that back.
    async fn overwritten_since(
        &self,
        kek: &KekHash,
        since: OffsetDateTime,
        most: usize,
    ) -> Result<Vec<Volser>, StoreError>;
    /// Planned moves and those that were done, the last first.
    async fn kek_moves(&self) -> Result<Vec<KekMove>, StoreError>;
    /// Adds a move, or replaces it; one that is done stays so.
    async fn put_kek_move(&self, planned: &KekMove) -> Result<(), StoreError>;
    /// The rollovers by the calendar, by label.
    async fn kek_schedules(&self) -> Result<Vec<KekSchedule>, StoreError>;
    /// Adds a schedule for a KEK, or replaces it.
    async fn put_kek_schedule(&self, schedule: &KekSchedule) -> Result<(), StoreError>;
    /// Removes it; false where there is none.
    async fn remove_kek_schedule(&self, label: &KeyLabel) -> Result<bool, StoreError>;
    /// Takes a schedule that is due, for ten minutes; false where another server has it.
    async fn take_kek_schedule(&self, label: &KeyLabel, node: &str) -> Result<bool, StoreError>;
    /// Puts another KEK in the place of the schedule's own, with its next time.
    async fn advance_kek_schedule(
        &self,
        label: &KeyLabel,
        next: &KekSchedule,
    ) -> Result<(), StoreError>;
}
