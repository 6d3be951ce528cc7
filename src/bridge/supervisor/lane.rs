//! One bridge of a token, kept running: one process after another.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use time::OffsetDateTime;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::process::Child;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::link::{Link, Over, Unanswered, locks};
use super::shared::Shared;
use super::state::LaneState;
use super::warned::Warned;
use super::{due, keyless};
use crate::bridge::faults::{Fault, FaultClass};
use crate::bridge::message::{self, Op, Ready, Reply, Response};
use crate::bridge::share::Share;

/// Time past a request's deadline after which the module counts as hung.
pub(super) const GRACE: Duration = Duration::from_secs(2);

/// Time between two canaries, and between two looks at the token's keys.
const CANARY: Duration = Duration::from_secs(5);

/// A look at the keys may take this part of the time at most: 1 in 50.
const LOOKS: u32 = 50;

/// How often a locked token's PIN source is looked at for a change.
const MENDED: Duration = Duration::from_secs(2);

/// How often the requests under way are looked at.
const WATCH: Duration = Duration::from_millis(250);

/// How long a bridge that is started anew on purpose may take before it counts as gone.
const RENEWAL: Duration = Duration::from_secs(1);

/// How long a bridge may take to end once its socket is closed. It waits two
/// seconds for a login that is under way.
const ENDING: Duration = Duration::from_millis(2500);

/// First pause between two starts.
pub(super) const FIRST: Duration = Duration::from_millis(200);

/// Longest pause where the token was not there, so that no login was tried,
/// or where the last bridge was of use before it ended.
const SHORT: Duration = Duration::from_secs(1);

/// Longest pause for a module that dies before it has served anybody.
const LONG: Duration = Duration::from_secs(10);

/// Time for a bridge to open its token, besides the profile's deadline: loading, probe.
pub(super) const OPENING: Duration = Duration::from_secs(10);

/// Why a run of the bridge ended.
struct Failed {
    why: Fault,
    unanswered: Option<Unanswered>,
    /// Whether it has been logged.
    told: bool,
    /// The longest that the next start is put off.
    most: Duration,
}

enum Ended {
    /// It is started anew on purpose.
    Renewed,
    /// It failed.
    Failed {
        failed: Failed,
        /// Whether its canary or an exchange succeeded before.
        worked: bool,
    },
}

/// One bridge of a token.
pub(super) struct Lane {
    index: usize,
    shared: Arc<Shared>,
    // Closed when nobody asks any more.
    wanted: watch::Receiver<()>,
    warned: Mutex<Warned>,
}

impl Lane {
    pub(super) fn new(index: usize, shared: Arc<Shared>, wanted: watch::Receiver<()>) -> Self {
        Self {
            index,
            shared,
            wanted,
            warned: Mutex::default(),
        }
    }

    /// Keeps a bridge running until nobody asks any more.
    pub(super) async fn run(self) {
        let shared = Arc::clone(&self.shared);
        let mut wanted = self.wanted.clone();
        tokio::select! {
            () = self.keep(&shared) => {}
            // Never sent to: it changes when it closes.
            _ = wanted.changed() => {}
        }
        shared.set_link(self.index, None);
    }

    async fn keep(&self, shared: &Shared) {
        let token = shared.hello.name.as_str();
        let mut renewing = false;
        loop {
            let turn = if renewing {
                self.turn_soon(shared).await
            } else {
                shared.turn.lock().await
            };
            // Before the PIN is read: a change from now on is one that the bridge may not have seen.
            let stamp = shared.stamp();
            let opened = if std::mem::take(&mut renewing) {
                self.open_soon(shared).await
            } else {
                self.open(shared).await
            };
            let (failed, mut turn) = match opened {
                Err(failed) => (*failed, turn),
                Ok((child, socket, ready)) => {
                    drop(turn);
                    match self.serve(shared, child, socket, ready).await {
                        Ended::Renewed => {
                            renewing = true;
                            *self.warned() = Warned::default();
                            tracing::info!(
                                token,
                                bridge = self.index,
                                "bridge started anew after its share of exchanges"
                            );
                            continue;
                        }
                        Ended::Failed { failed, worked } => {
                            if worked {
                                // It is news again that it ends.
                                *self.warned() = Warned::default();
                            }
                            // Those who waited turn elsewhere now, whatever this lane waits for.
                            let failed = self.report(shared, failed, FIRST);
                            let mut turn = shared.turn.lock().await;
                            if worked {
                                *turn = FIRST;
                            }
                            (failed, turn)
                        }
                    }
                }
            };
            if locks(&failed.why) {
                self.report(shared, failed, FIRST);
                shared.tried.send_modify(|tried| *tried += 1);
                drop(turn);
                self.until_mended(shared, &stamp).await;
                continue;
            }
            let pause = (*turn).min(failed.most);
            // From what was waited: many tries while the token was away must not
            // make the first one after it is back a long one.
            *turn = (pause * 2).min(LONG);
            self.report(shared, failed, pause);
            shared.tried.send_modify(|tried| *tried += 1);
            // While none is up one asks for all. Else the others are not to wait for this one.
            let turn = (!shared.any_up()).then_some(turn);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = shared.nudged.notified() => {}
            }
            drop(turn);
        }
    }

    /// The turn of a bridge that is expected back at once. Where another one
    /// keeps it, the token is not shown as ready any longer.
    async fn turn_soon<'a>(&self, shared: &'a Shared) -> tokio::sync::MutexGuard<'a, Duration> {
        match tokio::time::timeout(RENEWAL, shared.turn.lock()).await {
            Ok(turn) => turn,
            Err(_) => {
                shared.board.post(self.index, LaneState::Starting);
                shared.turn.lock().await
            }
        }
    }

    /// [`Lane::open`] for the same bridge.
    async fn open_soon(&self, shared: &Shared) -> Result<(Child, UnixStream, Ready), Box<Failed>> {
        let opening = self.open(shared);
        tokio::pin!(opening);
        match tokio::time::timeout(RENEWAL, &mut opening).await {
            Ok(opened) => opened,
            Err(_) => {
                shared.board.post(self.index, LaneState::Starting);
                opening.await
            }
        }
    }

    fn warned(&self) -> MutexGuard<'_, Warned> {
        self.warned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Posts a failure, and only then lets go of those who wait for an answer,
    /// so that what they find is how it is.
    fn report(&self, shared: &Shared, failed: Failed, pause: Duration) -> Failed {
        let Failed {
            why,
            unanswered,
            told,
            most,
        } = failed;
        let token = shared.hello.name.as_str();
        if locks(&why) {
            if !told {
                tracing::error!(token, bridge = self.index, %why, "token locked until an operator acts");
            }
            shared
                .board
                .post(self.index, LaneState::Locked { why: why.clone() });
        } else {
            if !told {
                let pause_ms = pause.as_millis();
                let warn = self.warned().takes(&why.to_string(), Instant::now());
                match warn {
                    Some(0) => {
                        tracing::warn!(token, bridge = self.index, %why, pause_ms, "bridge ended");
                    }
                    Some(times) => {
                        tracing::warn!(token, bridge = self.index, %why, pause_ms, times, "bridge ended, as before");
                    }
                    None => {
                        tracing::debug!(token, bridge = self.index, %why, pause_ms, "bridge ended");
                    }
                }
            }
            shared.board.post(
                self.index,
                LaneState::Down {
                    why: why.clone(),
                    next: OffsetDateTime::now_utc() + pause,
                },
            );
        }
        drop(unanswered);
        Failed {
            why,
            unanswered: None,
            told: true,
            most,
        }
    }

    /// Starts a process and has it open its token.
    async fn open(&self, shared: &Shared) -> Result<(Child, UnixStream, Ready), Box<Failed>> {
        let fail = |why: Fault, most| {
            Box::new(Failed {
                why,
                unanswered: None,
                told: false,
                most,
            })
        };
        shared
            .starts
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let given = shared.take_given(self.index);
        let started = shared.program.spawn(&shared.hello, given.as_ref());
        let (mut child, mut socket) = match started {
            Ok(started) => started,
            Err(error) => {
                return Err(fail(
                    shared.down(format!("cannot start the bridge: {error}")),
                    LONG,
                ));
            }
        };
        let limit = OPENING + Duration::from_secs(shared.hello.profile.session.deadline_seconds);
        let opening = async {
            socket.write_all(&message::encode(&shared.hello)?).await?;
            shared.opened(self.index, &mut socket).await
        };
        let opened = tokio::time::timeout(limit, opening).await;
        let ready = matches!(
            opened,
            Ok(Ok(Response {
                result: Ok(Reply::Ready(_)),
                ..
            }))
        );
        if !ready {
            shared.not_opened(self.index, opened.is_err());
        }
        match opened {
            Ok(Ok(Response { result, .. })) => match result {
                Ok(Reply::Ready(ready)) => Ok((child, socket, ready)),
                Ok(_) => Err(fail(
                    shared.down("the bridge answered out of turn".to_owned()),
                    LONG,
                )),
                Err(why) => {
                    let most = if before_login(&why) { SHORT } else { LONG };
                    Err(fail(why, most))
                }
            },
            Ok(Err(error)) => Err(fail(
                shared.down(format!(
                    "the bridge ended while it opened the token ({error}); did the module crash?"
                )),
                LONG,
            )),
            Err(_) => {
                // It does not return from a call, and would not notice that nobody waits.
                let _ = child.start_kill();
                Err(fail(
                    shared.down(format!(
                        "the module did not open the token within {} s; its bridge was killed",
                        limit.as_secs()
                    )),
                    LONG,
                ))
            }
        }
    }

    /// Lets a bridge serve until it ends.
    async fn serve(
        &self,
        shared: &Shared,
        child: Child,
        socket: UnixStream,
        ready: Ready,
    ) -> Ended {
        let child = Serving(Some(child));
        let profile = &shared.hello.profile.session;
        tracing::info!(
            token = shared.hello.name,
            bridge = self.index,
            keks = ready.keks.len(),
            "token ready"
        );
        let link = Link::start(
            shared.hello.name.as_str().into(),
            socket,
            Share::of(&shared.hello),
            Arc::clone(&shared.board),
            self.index,
            // A key file is read before the bridge says that it is ready, and nothing is opened.
            keyless::serves(&ready) && !matches!(shared.hello.task, message::Task::Keep { .. }),
        );
        let link = match link {
            Ok(link) => link,
            Err(error) => {
                return Ended::Failed {
                    failed: Failed {
                        why: shared.down(format!("its bridge cannot be heard: {error}")),
                        told: false,
                        most: LONG,
                        unanswered: None,
                    },
                    worked: false,
                };
            }
        };
        shared.set_link(self.index, Some(Arc::clone(&link)));
        shared.board.post(
            self.index,
            LaneState::Up {
                ready: Arc::new(ready),
                // It has not been waited for, so it has one.
                pid: child.pid().unwrap_or_default(),
                silent: false,
            },
        );
        shared.tried.send_modify(|tried| *tried += 1);
        let deadline = Duration::from_secs(profile.deadline_seconds);
        let over = tokio::select! {
            over = link.over() => over,
            over = watch(&link, shared, self.index) => over,
            over = tend(&link, deadline) => over,
        };
        link.end(over.clone());
        shared.set_link(self.index, None);
        link.hang_up();
        drop(child);
        match over {
            Over::Renewed => Ended::Renewed,
            Over::Failed(why) => Ended::Failed {
                failed: Failed {
                    why,
                    told: false,
                    most: if link.served() { SHORT } else { LONG },
                    unanswered: Some(link.unanswered()),
                },
                worked: link.worked(),
            },
        }
    }

    /// Waits until the operator has done something about the PIN.
    async fn until_mended(&self, shared: &Shared, stamp: &[String]) {
        let mut look = interval(MENDED);
        loop {
            tokio::select! {
                _ = look.tick() => {}
                () = shared.nudged.notified() => return,
            }
            if shared.stamp() != stamp {
                tracing::info!(
                    token = shared.hello.name,
                    "the PIN's file or its ledger has changed; trying again"
                );
                return;
            }
        }
    }
}

/// A bridge that serves. It ends by itself when its socket is closed, and may
/// be logging in again until then; so it is killed only after a while. One that
/// is still opening its token is left to itself, with its socket.
struct Serving(Option<Child>);

impl Serving {
    fn pid(&self) -> Option<u32> {
        self.0.as_ref().and_then(Child::id)
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let Some(mut child) = self.0.take() else {
            return;
        };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        runtime.spawn(async move {
            if tokio::time::timeout(ENDING, child.wait()).await.is_err() {
                // It may have ended this moment.
                let _ = child.kill().await;
            }
        });
    }
}

/// Notes silence, and ends a bridge whose module does not return from a call:
/// PKCS#11 has no way to abandon one.
async fn watch(link: &Link, shared: &Shared, lane: usize) -> Over {
    let mut tick = interval(WATCH);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        shared.board.heard(lane, link.is_silent());
        if link.is_overdue(GRACE) {
            let function = link.stats().hung();
            shared.past().count_hang(function);
            return Over::Failed(Fault::Down {
                token: link.token().to_owned(),
                reason: "a PKCS#11 call does not return; the bridge was killed".to_owned(),
            });
        }
    }
}

/// Has the canary opened while nothing else is, and the keys looked at from time to time.
async fn tend(link: &Link, deadline: Duration) -> Over {
    let mut look_at = Instant::now() + CANARY;
    loop {
        tokio::time::sleep(CANARY).await;
        let due = due::canary(CANARY, link.proof_age(), link.at_work(), deadline);
        if let Some(time) = due
            && let Some(over) = ask(link, &Op::Canary, time).await
        {
            return over;
        }
        if Instant::now() >= look_at {
            let begun = Instant::now();
            if let Some(over) = ask(link, &Op::Look, deadline).await {
                return over;
            }
            look_at = Instant::now() + (begun.elapsed() * LOOKS).max(CANARY);
        }
    }
}

/// What a question of our own comes to, where it ends the bridge.
async fn ask(link: &Link, op: &Op, deadline: Duration) -> Option<Over> {
    let Ok(answer) = link.ask(op, Instant::now() + deadline) else {
        return None;
    };
    match answer.await {
        Ok(Ok(_)) => None,
        // It waited in vain for its turn or for a session; whether the bridge is well is for
        // the watch to judge.
        Ok(Err(
            Fault::Deadline { .. }
            | Fault::Call {
                class: FaultClass::Full,
                ..
            },
        )) => None,
        Ok(Err(why)) => Some(Over::Failed(why)),
        // It ends, and says why by itself.
        Err(_) => None,
    }
}

/// Whether the token was not there: no login was tried, so asking again soon does no harm.
fn before_login(why: &Fault) -> bool {
    match why {
        Fault::Down { .. } => true,
        Fault::Call {
            function, class, ..
        } => {
            *class != FaultClass::Operator
                && matches!(
                    function.as_str(),
                    "C_Initialize" | "C_GetSlotList" | "C_GetTokenInfo" | "C_OpenSession"
                )
        }
        Fault::BadEedk { .. }
        | Fault::NotTried { .. }
        | Fault::NoKek { .. }
        | Fault::Refused { .. }
        | Fault::Unsupported { .. }
        | Fault::Operator { .. }
        | Fault::WrongPin { .. }
        | Fault::Deadline { .. } => false,
    }
}
