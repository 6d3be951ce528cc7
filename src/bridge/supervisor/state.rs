//! How a token is, as an operator sees it: one state, out of what each of its
//! bridges is.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::watch;

use super::keyless;
use crate::bridge::faults::Fault;
use crate::bridge::message::Ready;
use crate::bridge::pkcs11::TokenInfo;

/// What the server knows of a token.
#[derive(Clone, Debug)]
pub enum TokenState {
    /// Its first bridge is loading the module or logging in.
    Starting {
        /// Since when.
        since: OffsetDateTime,
        /// What was found when it last worked.
        last: Option<Arc<Ready>>,
    },
    /// The canary opens, or there is no KEK yet to make one with; every bridge and session that the
    /// profile wants is there.
    Ready {
        /// What the bridges found.
        ready: Arc<Ready>,
        /// The bridges' processes.
        bridges: Vec<u32>,
        /// Since when.
        since: OffsetDateTime,
    },
    /// It serves, but not as it should.
    Degraded {
        /// What the bridges found.
        ready: Arc<Ready>,
        /// The bridges' processes.
        bridges: Vec<u32>,
        /// Since when.
        since: OffsetDateTime,
        /// What is not as it should be.
        why: String,
    },
    /// It does not work now; a bridge is started again.
    Failed {
        /// Why.
        why: Fault,
        /// Since when.
        since: OffsetDateTime,
        /// When it is tried again.
        next: OffsetDateTime,
        /// What was found when it last worked.
        last: Option<Arc<Ready>>,
    },
    /// It is left alone until an operator acts.
    Locked {
        /// Why.
        why: Fault,
        /// Since when.
        since: OffsetDateTime,
        /// What was found when it last worked.
        last: Option<Arc<Ready>>,
    },
}

impl TokenState {
    /// Whether requests are answered: ready or degraded.
    #[must_use]
    pub const fn serves(&self) -> bool {
        match self {
            Self::Ready { .. } | Self::Degraded { .. } => true,
            Self::Starting { .. } | Self::Failed { .. } | Self::Locked { .. } => false,
        }
    }

    /// What was last found on the token.
    #[must_use]
    pub const fn found(&self) -> Option<&Arc<Ready>> {
        match self {
            Self::Ready { ready, .. } | Self::Degraded { ready, .. } => Some(ready),
            Self::Starting { last, .. } | Self::Failed { last, .. } | Self::Locked { last, .. } => {
                last.as_ref()
            }
        }
    }

    /// Since when it is so.
    #[must_use]
    pub const fn since(&self) -> OffsetDateTime {
        match self {
            Self::Starting { since, .. }
            | Self::Ready { since, .. }
            | Self::Degraded { since, .. }
            | Self::Failed { since, .. }
            | Self::Locked { since, .. } => *since,
        }
    }

    /// The processes that drive it now.
    #[must_use]
    pub fn bridges(&self) -> &[u32] {
        match self {
            Self::Ready { bridges, .. } | Self::Degraded { bridges, .. } => bridges,
            Self::Starting { .. } | Self::Failed { .. } | Self::Locked { .. } => &[],
        }
    }

    /// Why it is not ready.
    #[must_use]
    pub fn why(&self) -> Option<String> {
        match self {
            Self::Starting { .. } | Self::Ready { .. } => None,
            Self::Degraded { why, .. } => Some(why.clone()),
            Self::Failed { why, .. } | Self::Locked { why, .. } => Some(why.to_string()),
        }
    }

    /// All of it in one sentence, for where there is no table.
    #[must_use]
    pub fn told(&self) -> String {
        let time = |time: OffsetDateTime| {
            time.truncate_to_second()
                .format(&Rfc3339)
                .unwrap_or_default()
        };
        let mut told = format!("is {} since {}", self.word(), time(self.since()));
        if let Self::Failed { next, .. } = self {
            told.push_str(&format!(", is tried again at {}", time(*next)));
        }
        if let Some(why) = self.why() {
            told.push_str(&format!(": {why}"));
        }
        told
    }

    /// One word for tables.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Starting { .. } => "starting",
            Self::Ready { .. } => "ready",
            Self::Degraded { .. } => "degraded",
            Self::Failed { .. } => "failed",
            Self::Locked { .. } => "locked",
        }
    }
}

/// What one bridge of a token is.
#[derive(Clone, Debug)]
pub(super) enum LaneState {
    /// Not known yet.
    Starting,
    /// It answers.
    Up {
        ready: Arc<Ready>,
        pid: u32,
        /// Nothing was heard of it for too long while requests wait.
        silent: bool,
    },
    /// It is started again at that time.
    Down { why: Fault, next: OffsetDateTime },
    /// It waits for an operator.
    Locked { why: Fault },
}

/// The bridges of one token side by side.
#[derive(Debug)]
pub(super) struct Board {
    lanes: Mutex<Vec<LaneState>>,
    // Sessions that each bridge should have.
    workers: usize,
    // Whether a KEK has served on it since the start.
    held: AtomicBool,
    // What the token last said of itself, also to a bridge that was refused.
    token: Mutex<Option<TokenInfo>>,
    published: watch::Sender<TokenState>,
}

impl Board {
    pub(super) fn new(lanes: usize, workers: usize) -> Self {
        Self {
            lanes: Mutex::new(vec![LaneState::Starting; lanes]),
            workers,
            held: AtomicBool::new(false),
            token: Mutex::default(),
            published: watch::Sender::new(TokenState::Starting {
                since: OffsetDateTime::now_utc(),
                last: None,
            }),
        }
    }

    pub(super) fn watch(&self) -> watch::Receiver<TokenState> {
        self.published.subscribe()
    }

    /// Notes what a bridge is now.
    pub(super) fn post(&self, lane: usize, state: LaneState) {
        if let LaneState::Up { ready, .. } = &state {
            self.shown(&ready.token);
        }
        let mut lanes = self.lanes();
        if let Some(entry) = lanes.get_mut(lane) {
            *entry = state;
        }
        self.publish(&lanes, lane);
    }

    /// Notes what a bridge that is up found anew.
    pub(super) fn found(&self, lane: usize, found: Ready) {
        self.shown(&found.token);
        let mut lanes = self.lanes();
        if let Some(LaneState::Up { ready, .. }) = lanes.get_mut(lane)
            && **ready != found
        {
            *ready = Arc::new(found);
            self.publish(&lanes, lane);
        }
    }

    /// Notes what the token says of itself, to whichever bridge.
    pub(super) fn shown(&self, token: &TokenInfo) {
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = Some(token.clone());
    }

    /// What the token last said of itself.
    pub(super) fn token(&self) -> Option<TokenInfo> {
        let token = self.token.lock().unwrap_or_else(PoisonError::into_inner);
        token.clone()
    }

    /// Notes whether a bridge that is up answers what it is asked.
    pub(super) fn heard(&self, lane: usize, now_silent: bool) {
        let mut lanes = self.lanes();
        if let Some(LaneState::Up { silent, .. }) = lanes.get_mut(lane)
            && *silent != now_silent
        {
            *silent = now_silent;
            self.publish(&lanes, lane);
        }
    }

    /// Why no key can be had of it; none where a KEK of it serves.
    pub(super) fn keyless(&self, found: &Ready) -> Option<String> {
        keyless::why(found, self.held.load(Ordering::Relaxed))
    }

    fn lanes(&self) -> MutexGuard<'_, Vec<LaneState>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // Under the lock of `lanes`, so that what is published last is what is so.
    fn publish(&self, lanes: &[LaneState], newest: usize) {
        self.published.send_modify(|state| {
            let before = (state.word(), state.since());
            *state = self.combined(lanes, newest, state);
            if state.word() == before.0 {
                state.keep_since(before.1);
            }
        });
    }

    fn combined(&self, lanes: &[LaneState], newest: usize, before: &TokenState) -> TokenState {
        let since = OffsetDateTime::now_utc();
        let up: Vec<(&Arc<Ready>, u32, bool)> = lanes
            .iter()
            .filter_map(|lane| match lane {
                LaneState::Up { ready, pid, silent } => Some((ready, *pid, *silent)),
                LaneState::Starting | LaneState::Down { .. } | LaneState::Locked { .. } => None,
            })
            .collect();
        let bridges: Vec<u32> = up.iter().map(|(_, pid, _)| *pid).collect();
        // All see one token; who looked last knows best.
        let seen = match lanes.get(newest) {
            Some(LaneState::Up { ready, .. }) => Some(ready),
            _ => up.first().map(|(ready, _, _)| *ready),
        };
        if let Some(ready) = seen.cloned() {
            self.held
                .fetch_or(keyless::serves(&ready), Ordering::Relaxed);
            return match self.trouble(lanes, &up, &ready) {
                None => TokenState::Ready {
                    ready,
                    bridges,
                    since,
                },
                Some(why) => TokenState::Degraded {
                    ready,
                    bridges,
                    since,
                    why,
                },
            };
        }
        let last = before.found().cloned();
        let locked = lanes.iter().find_map(|lane| match lane {
            LaneState::Locked { why } => Some(why.clone()),
            LaneState::Starting | LaneState::Up { .. } | LaneState::Down { .. } => None,
        });
        if let Some(why) = locked {
            return TokenState::Locked { why, since, last };
        }
        let failed = lanes
            .iter()
            .filter_map(|lane| match lane {
                LaneState::Down { why, next } => Some((why.clone(), *next)),
                LaneState::Starting | LaneState::Up { .. } | LaneState::Locked { .. } => None,
            })
            .min_by_key(|(_, next)| *next);
        match failed {
            Some((why, next)) => TokenState::Failed {
                why,
                since,
                next,
                last,
            },
            None => TokenState::Starting { since, last },
        }
    }

    /// What is not as the profile wants it, although some bridge is up.
    fn trouble(
        &self,
        lanes: &[LaneState],
        up: &[(&Arc<Ready>, u32, bool)],
        seen: &Ready,
    ) -> Option<String> {
        let mut troubles = Vec::new();
        // One that is new has none yet, and all is well with it.
        if !seen.keks.is_empty() || self.held.load(Ordering::Relaxed) {
            troubles.extend(self.keyless(seen));
        }
        if up.iter().any(|(_, _, silent)| *silent) {
            troubles.push(
                "it has not answered for a while although requests, or its canary, wait".to_owned(),
            );
        }
        let missing = lanes.iter().find_map(|lane| match lane {
            LaneState::Down { why, .. } | LaneState::Locked { why } => Some(why),
            LaneState::Starting | LaneState::Up { .. } => None,
        });
        if let Some(why) = missing {
            troubles.push(format!(
                "{} of {} bridges are up: {why}",
                up.len(),
                lanes.len()
            ));
        }
        let fewest = up
            .iter()
            .map(|(ready, _, _)| ready.sessions)
            .min()
            .unwrap_or(self.workers);
        if fewest < self.workers {
            troubles.push(format!(
                "a bridge has {fewest} of the {} sessions that the profile wants: the token gives no more (CKR_SESSION_COUNT)",
                self.workers
            ));
        }
        troubles.extend(up.iter().find_map(|(ready, ..)| ready.trouble.clone()));
        (!troubles.is_empty()).then(|| troubles.join("; "))
    }
}

impl TokenState {
    const fn keep_since(&mut self, then: OffsetDateTime) {
        match self {
            Self::Starting { since, .. }
            | Self::Ready { since, .. }
            | Self::Degraded { since, .. }
            | Self::Failed { since, .. }
            | Self::Locked { since, .. } => *since = then,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::keyless::tests::{found, refused, serving};
    use super::*;
    use crate::bridge::message::KekOnToken;

    fn up(pid: u32, sessions: usize) -> LaneState {
        with(pid, sessions, Vec::new())
    }

    fn with(pid: u32, sessions: usize, keks: Vec<KekOnToken>) -> LaneState {
        LaneState::Up {
            ready: Arc::new(found(keks, sessions)),
            pid,
            silent: false,
        }
    }

    fn down() -> LaneState {
        LaneState::Down {
            why: Fault::Down {
                token: "main".into(),
                reason: "unplugged".into(),
            },
            next: OffsetDateTime::UNIX_EPOCH,
        }
    }

    fn now(board: &Board) -> TokenState {
        board.watch().borrow().clone()
    }

    #[test]
    fn one_bridge_of_two_is_degraded_and_says_why_the_other_is_not() {
        let board = Board::new(2, 4);
        board.post(0, up(7, 4));
        assert_eq!(now(&board).word(), "ready");
        board.post(1, up(8, 4));
        assert_eq!(now(&board).bridges(), [7, 8]);
        board.post(1, down());
        let state = now(&board);
        assert_eq!(state.word(), "degraded");
        assert!(state.why().unwrap().contains("unplugged"));
        assert!(state.serves());
        board.post(0, down());
        let state = now(&board);
        assert_eq!(state.word(), "failed");
        assert!(
            state.found().is_some(),
            "a token that is down keeps its keys"
        );
    }

    #[test]
    fn fewer_sessions_than_wanted_and_silence_are_degraded() {
        let board = Board::new(1, 4);
        board.post(0, up(7, 3));
        assert!(now(&board).why().unwrap().contains("CKR_SESSION_COUNT"));
        board.post(0, up(7, 4));
        assert_eq!(now(&board).word(), "ready");
        board.heard(0, true);
        assert_eq!(now(&board).word(), "degraded");
        board.heard(0, false);
        assert_eq!(now(&board).word(), "ready");
    }

    #[test]
    fn a_token_whose_keks_are_all_refused_or_gone_is_degraded_and_a_new_one_is_not() {
        let board = Board::new(1, 4);
        board.post(0, up(7, 4));
        assert_eq!(now(&board).word(), "ready");
        board.found(0, found(vec![refused("KEK1")], 4));
        let why = now(&board).why().unwrap();
        assert!(why.contains("CKA_EXTRACTABLE"), "{why}");
        board.found(0, found(vec![refused("KEK1"), serving("KEK2")], 4));
        assert_eq!(now(&board).word(), "ready");
        // Also where its bridge was started anew meanwhile.
        board.post(0, down());
        board.post(0, up(8, 4));
        assert_eq!(now(&board).word(), "degraded");
        assert!(now(&board).why().unwrap().contains("gone"));
    }

    #[test]
    fn a_state_that_stays_keeps_its_beginning() {
        let board = Board::new(2, 1);
        board.post(0, down());
        let first = now(&board).since();
        std::thread::sleep(std::time::Duration::from_millis(2));
        board.post(1, down());
        assert_eq!(now(&board).since(), first);
    }

    #[test]
    fn what_a_token_shows_when_it_refuses_a_pin_stands_until_it_shows_something_else() {
        let board = Board::new(1, 4);
        assert_eq!(board.token(), None);
        let low = TokenInfo {
            flags: cryptoki_sys::CKF_USER_PIN_COUNT_LOW,
            ..TokenInfo::default()
        };
        board.shown(&low);
        board.post(
            0,
            LaneState::Locked {
                why: Fault::WrongPin {
                    token: "main".into(),
                    reason: "refused".into(),
                },
            },
        );
        assert!(now(&board).found().is_none());
        assert!(board.token().unwrap().user_pin_count_low());
        board.post(0, up(7, 4));
        assert!(!board.token().unwrap().user_pin_count_low());
    }
}
