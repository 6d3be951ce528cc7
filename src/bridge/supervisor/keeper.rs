//! The task that owns a bridge's process: one run after another.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, Interval, interval_at};

use super::{Asked, GRACE, Program, QUEUE, START, TokenState, receive, send};
use crate::bridge::faults::{Fault, FaultClass};
use crate::bridge::message::{self, Custody, Hello, Op, Ready, Reply, Request, Response};
use crate::bridge::pin::{Pin, mended};

/// Time between two canaries.
const CANARY: Duration = Duration::from_secs(5);

/// How often a locked token's PIN source is looked at for a change.
const MENDED: Duration = Duration::from_secs(2);

/// Time that a bridge must have run for the pauses to start small again.
const HEALTHY: Duration = Duration::from_secs(60);

/// Requests that one bridge is given at once; the others wait in the queue.
const UNDER_WAY: usize = 256;

/// Longest time for a message to be taken by the bridge.
const TAKEN: Duration = Duration::from_secs(5);

/// First and longest pause between two starts.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));

/// Why a run of the bridge ended.
enum Ended {
    /// Nobody asks any more.
    Unwanted,
    /// It is started anew on purpose, after its share of host custody.
    Renewed,
    /// It failed, with these requests unanswered.
    Failed(Fault, HashMap<u64, Waiting>),
}

pub(super) struct Keeper {
    pub(super) program: Program,
    pub(super) hello: Hello,
    pub(super) queue: mpsc::Receiver<Asked>,
    pub(super) publish: watch::Sender<TokenState>,
    pause: Duration,
    // As it was when the token was locked.
    stamped: Vec<String>,
}

impl Keeper {
    /// A keeper that has not started yet.
    pub(super) const fn new(
        program: Program,
        hello: Hello,
        queue: mpsc::Receiver<Asked>,
        publish: watch::Sender<TokenState>,
    ) -> Self {
        Self {
            program,
            hello,
            queue,
            publish,
            pause: PAUSES.0,
            stamped: Vec::new(),
        }
    }

    /// Keeps the bridge running until nobody asks any more.
    pub(super) async fn run(mut self) {
        loop {
            let started = Instant::now();
            let (why, unanswered) = match self.one_run().await {
                Ended::Unwanted => return,
                Ended::Renewed => {
                    tracing::info!(
                        token = self.hello.name,
                        "bridge started anew after its share of host custody"
                    );
                    continue;
                }
                Ended::Failed(why, unanswered) => (why, unanswered),
            };
            let since = OffsetDateTime::now_utc();
            let last = self.publish.borrow().found().cloned();
            if locks(&why) {
                tracing::error!(token = self.hello.name, %why, "token locked until an operator acts");
                self.publish.send_replace(TokenState::Locked {
                    why: why.clone(),
                    since,
                    last,
                });
                drop(unanswered);
                self.stamped = self.stamp();
                if !self.refuse_until_mended(&why).await {
                    return;
                }
                continue;
            }
            // A module that dies under every load must not be restarted hot.
            if started.elapsed() > HEALTHY {
                self.pause = PAUSES.0;
            }
            tracing::warn!(token = self.hello.name, %why, pause_ms = self.pause.as_millis(), "bridge ended");
            self.publish.send_replace(TokenState::Failed {
                why: why.clone(),
                since,
                last,
            });
            // Only now do those who waited learn of it, and wait for the next bridge.
            drop(unanswered);
            if !self.wait_out(&why).await {
                return;
            }
            self.pause = (self.pause * 2).min(PAUSES.1);
        }
    }

    fn down(&self, reason: String) -> Fault {
        Fault::Down {
            token: self.hello.name.clone(),
            reason,
        }
    }

    async fn one_run(&mut self) -> Ended {
        let (child, socket) = match self.program.spawn(&self.hello) {
            Ok(started) => started,
            Err(error) => {
                return Ended::Failed(
                    self.down(format!("cannot start the bridge: {error}")),
                    HashMap::new(),
                );
            }
        };
        let (mut reader, mut writer) = socket.into_split();
        let opening = async {
            send(&mut writer, &self.hello).await?;
            receive(&mut reader).await
        };
        let ready = match tokio::time::timeout(START, opening).await {
            Ok(Ok(Response {
                result: Ok(Reply::Ready(ready)),
                ..
            })) => Arc::new(ready),
            Ok(Ok(Response { result: Ok(_), .. })) => {
                return Ended::Failed(
                    self.down("the bridge answered out of turn".to_owned()),
                    HashMap::new(),
                );
            }
            Ok(Ok(Response {
                result: Err(fault), ..
            })) => return Ended::Failed(fault, HashMap::new()),
            Ok(Err(error)) => {
                return Ended::Failed(self.down(format!(
                    "the bridge ended while it opened the token ({error}); did the module crash?"
                )), HashMap::new());
            }
            Err(_) => {
                return Ended::Failed(
                    self.down(format!(
                        "the module did not open the token within {} s",
                        START.as_secs()
                    )),
                    HashMap::new(),
                );
            }
        };
        tracing::info!(
            token = self.hello.name,
            keks = ready.keks.len(),
            "token ready"
        );
        self.publish.send_replace(TokenState::Ready {
            ready,
            // It has not been waited for, so it has one.
            pid: child.id().unwrap_or_default(),
            since: OffsetDateTime::now_utc(),
        });
        let (answers, incoming) = mpsc::channel(QUEUE);
        let pump = tokio::spawn(pump(reader, answers));
        let ended = Run {
            keeper: self,
            writer,
            waiting: HashMap::new(),
            next: 1,
            host_exchanges: 0,
            heard: Instant::now(),
            canary: interval_at(Instant::now() + CANARY, CANARY),
            watchdog: interval_at(Instant::now(), Duration::from_millis(250)),
        }
        .serve(incoming)
        .await;
        pump.abort();
        drop(child);
        ended
    }

    /// Answers what arrives during the pause, and ends it early for nobody:
    /// true when the pause is over, false when nobody asks any more.
    async fn wait_out(&mut self, why: &Fault) -> bool {
        let over = tokio::time::sleep(self.pause);
        tokio::pin!(over);
        loop {
            tokio::select! {
                () = &mut over => return true,
                asked = self.queue.recv() => match asked {
                    Some(asked) => drop(asked.reply.send(Err(why.clone()))),
                    None => return false,
                },
            }
        }
    }

    /// Refuses everything until the operator has done something about the
    /// PIN: true then, false when nobody asks any more.
    async fn refuse_until_mended(&mut self, why: &Fault) -> bool {
        let mut look = tokio::time::interval(MENDED);
        loop {
            tokio::select! {
                _ = look.tick() => {
                    if self.stamp() != self.stamped {
                        tracing::info!(token = self.hello.name, "the PIN's file or its ledger has changed; trying again");
                        return true;
                    }
                }
                asked = self.queue.recv() => match asked {
                    Some(asked) => drop(asked.reply.send(Err(why.clone()))),
                    None => return false,
                },
            }
        }
    }

    fn stamp(&self) -> Vec<String> {
        match &self.hello.task {
            message::Task::Serve {
                pin: Pin::Source(source),
                ledgers,
                ..
            } => mended(Some(source), ledgers),
            message::Task::Serve { ledgers, .. } => mended(None, ledgers),
            message::Task::List | message::Task::Init { .. } => Vec::new(),
        }
    }
}

/// Whether trying again could do harm, or cannot help.
fn locks(why: &Fault) -> bool {
    match why {
        Fault::Operator { .. } => true,
        // Other calls that want an operator concern the one request.
        Fault::Call {
            class: FaultClass::Operator,
            function,
            ..
        } => function == "C_Login",
        Fault::Call { .. } => false,
        Fault::BadEedk { .. }
        | Fault::NotTried { .. }
        | Fault::NoKek { .. }
        | Fault::Refused { .. }
        | Fault::Unsupported { .. }
        | Fault::Down { .. }
        | Fault::Deadline { .. } => false,
    }
}

/// One run of a bridge, from ready to its end.
struct Run<'a> {
    keeper: &'a mut Keeper,
    writer: OwnedWriteHalf,
    waiting: HashMap<u64, Waiting>,
    next: u64,
    host_exchanges: u64,
    heard: Instant,
    canary: Interval,
    watchdog: Interval,
}

struct Waiting {
    until: Instant,
    reply: Option<oneshot::Sender<Result<Reply, Fault>>>,
}

impl Run<'_> {
    async fn serve(mut self, mut incoming: mpsc::Receiver<Response>) -> Ended {
        let why = loop {
            match self.step(&mut incoming).await {
                Ok(None) => {}
                Ok(Some(ended)) => return ended,
                Err(why) => break why,
            }
        };
        Ended::Failed(why, self.waiting)
    }

    /// One event: a request, an answer, a tick. An error ends the bridge.
    async fn step(
        &mut self,
        incoming: &mut mpsc::Receiver<Response>,
    ) -> Result<Option<Ended>, Fault> {
        let renewing = self.host_exchanges >= self.keeper.hello.profile.session.host_exchanges;
        if renewing && self.waiting.is_empty() {
            return Ok(Some(Ended::Renewed));
        }
        let room = !renewing && self.waiting.len() < UNDER_WAY;
        tokio::select! {
            asked = self.keeper.queue.recv(), if room => {
                let Some(Asked { op, until, reply }) = asked else {
                    return Ok(Some(Ended::Unwanted));
                };
                if Instant::now() >= until {
                    let seconds = self.keeper.hello.profile.session.deadline_seconds;
                    let token = self.keeper.hello.name.clone();
                    drop(reply.send(Err(Fault::Deadline { token, seconds })));
                } else if !reply.is_closed() {
                    self.put(op, until, Some(reply)).await?;
                }
            }
            response = incoming.recv() => {
                let response = response.ok_or_else(|| {
                    self.keeper.down("its bridge ended; did the module crash?".to_owned())
                })?;
                self.take(response)?;
            }
            _ = self.canary.tick() => {
                // An answer is as good as a canary, and one that queues behind
                // a backlog would tell of the backlog only.
                let silent = self.heard.elapsed() >= CANARY;
                if silent && self.waiting.is_empty() {
                    let deadline = self.keeper.hello.profile.session.deadline_seconds;
                    let until = Instant::now() + Duration::from_secs(deadline);
                    self.put(Op::Canary, until, None).await?;
                }
            }
            _ = self.watchdog.tick() => {
                let now = Instant::now();
                if self.waiting.values().any(|waiting| now > waiting.until + GRACE) {
                    return Err(self.keeper.down("a PKCS#11 call does not return; the bridge was killed".to_owned()));
                }
            }
        }
        Ok(None)
    }

    async fn put(
        &mut self,
        op: Op,
        until: Instant,
        reply: Option<oneshot::Sender<Result<Reply, Fault>>>,
    ) -> Result<(), Fault> {
        let id = self.next;
        self.next += 1;
        let left = until.saturating_duration_since(Instant::now());
        let request = Request {
            id,
            deadline_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
            op,
        };
        self.waiting.insert(id, Waiting { until, reply });
        match tokio::time::timeout(TAKEN, send(&mut self.writer, &request)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(self.keeper.down(format!("its bridge ended ({error})"))),
            Err(_) => Err(self
                .keeper
                .down("its bridge takes no more messages; it was killed".to_owned())),
        }
    }

    /// Hands an answer to who waits for it. An error ends the bridge: the
    /// module wants a restart, the token its operator, or the canary is dead.
    fn take(&mut self, response: Response) -> Result<(), Fault> {
        let Response { id, result } = response;
        let reply = self.waiting.remove(&id).and_then(|waiting| waiting.reply);
        let ends = match &result {
            Err(fault) if locks(fault) || restarts(fault) || reply.is_none() => Some(fault.clone()),
            Err(_) => None,
            Ok(reply) => {
                self.heard = Instant::now();
                if in_host(reply) {
                    self.host_exchanges += 1;
                }
                if let Reply::Ready(found) = reply {
                    let found = found.clone();
                    self.keeper
                        .publish
                        .send_if_modified(|state| renew(state, found));
                }
                None
            }
        };
        if let Some(reply) = reply {
            drop(reply.send(result));
        }
        ends.map_or(Ok(()), Err)
    }
}

/// Whether a data key was in the bridge's memory.
const fn in_host(reply: &Reply) -> bool {
    matches!(
        reply,
        Reply::Created {
            custody: Custody::Host,
            ..
        } | Reply::Resolved {
            custody: Custody::Host,
            ..
        } | Reply::Rekeyed {
            custody: Custody::Host,
            ..
        } | Reply::Proved {
            custody: Custody::Host,
            ..
        }
    )
}

/// Whether the bridge that says so is about to end.
const fn restarts(fault: &Fault) -> bool {
    matches!(
        fault,
        Fault::Call {
            class: FaultClass::Restart,
            ..
        }
    )
}

/// Puts what was found anew into the published state.
fn renew(state: &mut TokenState, found: Ready) -> bool {
    match state {
        TokenState::Ready { ready, .. } if **ready != found => {
            *ready = Arc::new(found);
            true
        }
        TokenState::Ready { .. }
        | TokenState::Starting
        | TokenState::Failed { .. }
        | TokenState::Locked { .. } => false,
    }
}

async fn pump(mut reader: OwnedReadHalf, answers: mpsc::Sender<Response>) {
    while let Ok(response) = receive(&mut reader).await {
        if answers.send(response).await.is_err() {
            return;
        }
    }
}
