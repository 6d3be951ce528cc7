//! The conversation with one running bridge.
//!
//! Whoever asks writes his own request, and the one reader hands each answer
//! to who waits for it: no task stands between, since each hop costs a good
//! part of what a session costs on a token in software.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::due::UnderWay;
use super::socket::{Outbox, halves};
use super::state::Board;
use crate::bridge::faults::{Fault, FaultClass};
use crate::bridge::message::{self, Op, Ready, Reply, Request, Response};
use crate::bridge::share::Share;
use crate::bridge::stats::Stats;

/// Requests that one bridge is given at once.
const UNDER_WAY: usize = 256;

/// Time without any answer, while one is waited for, after which a bridge counts as silent.
const SILENT: Duration = Duration::from_secs(1);

/// Why a conversation ended.
#[derive(Clone, Debug)]
pub(super) enum Over {
    /// It is started anew on purpose, after its share of exchanges.
    Renewed,
    /// The bridge, its module or its token failed.
    Failed(Fault),
}

/// Why a request was not put.
#[derive(Clone, Copy, Debug)]
pub(super) enum NotPut {
    /// The bridge is ending or about to be renewed.
    Closing,
    /// It has as much to do as it may have.
    Full,
}

pub(super) type Answer = Result<Reply, Fault>;

struct Waiting {
    since: Instant,
    // When an answer that has not come means that the module hangs.
    hung: Instant,
    prompt: bool,
    reply: oneshot::Sender<Answer>,
}

/// Those who wait for an answer; dropping them tells them that the bridge ended.
pub(super) struct Unanswered(
    #[expect(dead_code, reason = "kept for its drop")] HashMap<u64, Waiting>,
);

/// A running bridge.
pub(super) struct Link {
    token: Arc<str>,
    outbox: Outbox,
    waiting: Mutex<Waitings>,
    next: AtomicU64,
    // Recent time from question to answer, microseconds.
    latency: AtomicU64,
    served: AtomicBool,
    worked: AtomicBool,
    share: Share,
    stats: Mutex<Stats>,
    over: watch::Sender<Option<Over>>,
    board: Arc<Board>,
    lane: usize,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link")
            .field("token", &self.token)
            .field("lane", &self.lane)
            .finish_non_exhaustive()
    }
}

struct Waitings {
    open: bool,
    by_id: HashMap<u64, Waiting>,
    // Of those who wait, the ones whose answer should come soon.
    prompt: usize,
    heard: Instant,
    // When the token last did what it is there for, if ever.
    proved: Option<Instant>,
    host_exchanges: u64,
    exchanges: u64,
}

impl Waitings {
    /// The first key pair that is made, which may take minutes.
    fn making(&self) -> Option<u64> {
        if self.by_id.len() == self.prompt {
            return None;
        }
        let made = self.by_id.iter().filter(|(_, waiting)| !waiting.prompt);
        made.map(|(id, _)| *id).min()
    }

    /// A key pair was made: for what may have waited for that the token's time begins now.
    fn made(&mut self) {
        for waiting in self.by_id.values_mut().filter(|waiting| waiting.prompt) {
            let time = waiting.hung.saturating_duration_since(waiting.since);
            waiting.hung = waiting.hung.max(self.heard + time);
        }
    }
}

impl Link {
    /// Takes over a socket whose bridge has said that it is ready; `proved` where its canary has
    /// opened before.
    ///
    /// # Errors
    /// The operating system's: the socket cannot be waited for.
    pub(super) fn start(
        token: Arc<str>,
        socket: UnixStream,
        share: Share,
        board: Arc<Board>,
        lane: usize,
        proved: bool,
    ) -> io::Result<Arc<Self>> {
        let (inlet, outbox) = halves(socket)?;
        let link = Arc::new(Self {
            token,
            outbox,
            waiting: Mutex::new(Waitings {
                open: true,
                by_id: HashMap::new(),
                prompt: 0,
                heard: Instant::now(),
                proved: proved.then(Instant::now),
                host_exchanges: 0,
                exchanges: 0,
            }),
            next: AtomicU64::new(1),
            latency: AtomicU64::new(0),
            served: AtomicBool::new(false),
            worked: AtomicBool::new(false),
            share,
            stats: Mutex::default(),
            over: watch::Sender::new(None),
            board,
            lane,
        });
        tokio::spawn(Arc::clone(&link).read(inlet));
        tokio::spawn(Arc::clone(&link).write_on());
        Ok(link)
    }

    /// Puts a request; the answer comes by the receiver, which is dropped
    /// unanswered where the bridge ends.
    pub(super) fn ask(&self, op: &Op, until: Instant) -> Result<oneshot::Receiver<Answer>, NotPut> {
        self.ask_for(op, until, until)
    }

    /// The same for whoever waits until `until` only. That his time is short is no fault of the
    /// module's: it counts as hung where there is no answer at `hung`, and not before.
    pub(super) fn ask_for(
        &self,
        op: &Op,
        until: Instant,
        hung: Instant,
    ) -> Result<oneshot::Receiver<Answer>, NotPut> {
        let now = Instant::now();
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let left = until.saturating_duration_since(now);
        let request = Request {
            id,
            until_ms: u64::try_from(left.as_millis())
                .unwrap_or(u64::MAX)
                .saturating_add(message::now_ms()),
            op: op.clone(),
        };
        let frame = match message::encode(&request) {
            Ok(frame) => frame,
            Err(error) => {
                self.end(Over::Failed(
                    self.down(format!("a request does not encode: {error}")),
                ));
                return Err(NotPut::Closing);
            }
        };
        let (reply, answer) = oneshot::channel();
        {
            let mut waiting = self.waiting();
            if !waiting.open {
                return Err(NotPut::Closing);
            }
            if waiting.by_id.len() >= UNDER_WAY {
                return Err(NotPut::Full);
            }
            let prompt = op.prompt();
            if prompt {
                if waiting.prompt == 0 {
                    // Silence counts from the moment that somebody waits.
                    waiting.heard = now;
                }
                waiting.prompt += 1;
            }
            waiting.by_id.insert(
                id,
                Waiting {
                    since: now,
                    hung,
                    prompt,
                    reply,
                },
            );
        }
        if let Err(error) = self.outbox.put(frame) {
            self.end(Over::Failed(
                self.down(format!("its bridge ended ({error})")),
            ));
        }
        Ok(answer)
    }

    /// The token's configured name.
    pub(super) fn token(&self) -> &str {
        &self.token
    }

    /// Whether it has done an exchange for somebody.
    pub(super) fn served(&self) -> bool {
        self.served.load(Ordering::Relaxed)
    }

    /// Whether it has opened or made an EEDK since it came up, the canary included, or has at
    /// least answered where it has none.
    pub(super) fn worked(&self) -> bool {
        self.worked.load(Ordering::Relaxed)
    }

    /// Requests that are not answered yet.
    pub(super) fn under_way(&self) -> usize {
        self.waiting().by_id.len()
    }

    /// The same, in the terms of a canary that may be due.
    pub(super) fn at_work(&self) -> UnderWay {
        let waiting = self.waiting();
        UnderWay {
            requests: waiting.by_id.len(),
            making: waiting.making().is_some(),
        }
    }

    /// Recent time from question to answer.
    pub(super) fn latency(&self) -> Duration {
        Duration::from_micros(self.latency.load(Ordering::Relaxed))
    }

    /// Time since the token last opened or made an EEDK, the canary included; none where it never
    /// did.
    pub(super) fn proof_age(&self) -> Option<Duration> {
        self.waiting().proved.map(|at| at.elapsed())
    }

    /// Time since the bridge last answered, or since it was last asked; zero
    /// while nobody waits for an answer that should come soon.
    pub(super) fn silence(&self) -> Duration {
        let waiting = self.waiting();
        if waiting.prompt == 0 {
            return Duration::ZERO;
        }
        waiting.heard.elapsed()
    }

    /// Whether somebody waits and nothing has been heard for too long.
    pub(super) fn is_silent(&self) -> bool {
        self.silence() > SILENT
    }

    /// Whether a request has outlived the token's time by `grace`. One that came after a key pair
    /// that is being made is not held against the token: it may have to wait until that is there.
    pub(super) fn is_overdue(&self, grace: Duration) -> bool {
        let now = Instant::now();
        let waiting = self.waiting();
        let making = waiting.making();
        waiting.by_id.iter().any(|(id, waiting)| {
            let behind = waiting.prompt && making.is_some_and(|first| first < *id);
            now > waiting.hung + grace && !behind
        })
    }

    /// Resolves when the conversation is over.
    pub(super) async fn over(&self) -> Over {
        let mut over = self.over.subscribe();
        match over
            .wait_for(Option::is_some)
            .await
            .map(|over| over.clone())
        {
            Ok(Some(over)) => over,
            // The sender is a field of ours.
            Ok(None) | Err(_) => Over::Failed(self.down("its bridge ended".to_owned())),
        }
    }

    /// Ends the conversation; the first reason counts.
    pub(super) fn end(&self, why: Over) {
        self.waiting().open = false;
        self.over.send_if_modified(|over| {
            let first = over.is_none();
            if first {
                *over = Some(why);
            }
            first
        });
    }

    /// Closes the socket, at which the bridge ends by itself.
    pub(super) fn hang_up(&self) {
        self.outbox.close();
    }

    /// Those who will not be answered any more.
    pub(super) fn unanswered(&self) -> Unanswered {
        let mut waiting = self.waiting();
        waiting.open = false;
        waiting.prompt = 0;
        Unanswered(std::mem::take(&mut waiting.by_id))
    }

    fn waiting(&self) -> MutexGuard<'_, Waitings> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn down(&self, reason: String) -> Fault {
        Fault::Down {
            token: self.token.to_string(),
            reason,
        }
    }

    async fn read(self: Arc<Self>, mut inlet: Receiver) {
        let mut over = self.over.subscribe();
        loop {
            let response = tokio::select! {
                response = receive(&mut inlet) => response,
                _ = over.changed() => return,
            };
            match response {
                Ok(response) => self.take(response),
                Err(error) => {
                    self.end(Over::Failed(self.down(format!(
                        "its bridge ended ({error}); did the module crash?"
                    ))));
                    return;
                }
            }
        }
    }

    async fn write_on(self: Arc<Self>) {
        let mut over = self.over.subscribe();
        tokio::select! {
            error = self.outbox.drain() => {
                self.end(Over::Failed(self.down(format!("its bridge ended ({error})"))));
            }
            _ = over.changed() => {}
        }
    }

    /// Hands an answer to who waits for it. Some answers end the bridge: the
    /// module wants a restart, the token its operator.
    fn take(&self, response: Response) {
        let Response { id, result } = response;
        // No proof that the module works.
        if let Ok(Reply::Stats(stats)) = result {
            if let Some(token) = &stats.refused {
                self.board.shown(token);
            }
            *self.stats() = stats;
            return;
        }
        let ends = result
            .as_ref()
            .err()
            .filter(|fault| locks(fault) || restarts(fault))
            .cloned();
        let proved = result.as_ref().is_ok_and(proves);
        let (waited, renewed) = {
            let mut waiting = self.waiting();
            let waited = waiting.by_id.remove(&id);
            if waited.as_ref().is_some_and(|waited| waited.prompt) {
                waiting.prompt -= 1;
            }
            waiting.heard = Instant::now();
            if waited.as_ref().is_some_and(|waited| !waited.prompt) {
                waiting.made();
            }
            if proved {
                waiting.proved = Some(waiting.heard);
            }
            if result.as_ref().is_ok_and(Reply::in_host) {
                waiting.host_exchanges += 1;
            }
            waiting.exchanges += 1;
            let renewing = self
                .share
                .is_done(waiting.exchanges, waiting.host_exchanges);
            if renewing {
                waiting.open = false;
            }
            (waited, renewing && waiting.by_id.is_empty())
        };
        if proved || matches!(result, Ok(Reply::Canary(_))) {
            self.worked.store(true, Ordering::Relaxed);
        }
        match &result {
            Ok(Reply::Ready(found)) => self.board.found(self.lane, Ready::clone(found)),
            Ok(Reply::Canary(_)) | Err(_) => {}
            Ok(_) => self.served.store(true, Ordering::Relaxed),
        }
        if let Some(why) = ends {
            // Before the answer: who gets it may ask again at once.
            self.end(Over::Failed(why));
        }
        if let Some(Waiting { since, reply, .. }) = waited {
            if proved {
                self.note(since.elapsed());
            }
            drop(reply.send(result));
        }
        if renewed {
            self.end(Over::Renewed);
        }
    }

    /// What the bridge last said that it measured.
    pub(super) fn stats(&self) -> MutexGuard<'_, Stats> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, took: Duration) {
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let before = self.latency.load(Ordering::Relaxed);
        let now = if before == 0 {
            took
        } else {
            before - before / 8 + took / 8
        };
        // Two at once may lose one of them, which an average can bear.
        self.latency.store(now, Ordering::Relaxed);
    }
}

pub(super) async fn receive<R: tokio::io::AsyncRead + Unpin>(
    reader: &mut R,
) -> io::Result<Response> {
    let mut head = [0_u8; 4];
    reader.read_exact(&mut head).await?;
    let mut body = Zeroizing::new(vec![0_u8; message::frame_length(head)?]);
    reader.read_exact(&mut body).await?;
    message::decode(&body)
}

/// Whether trying again could do harm, or cannot help.
pub(super) fn locks(why: &Fault) -> bool {
    match why {
        Fault::Operator { .. } | Fault::WrongPin { .. } => true,
        // Other calls that want an operator concern the one request.
        Fault::Call {
            class: FaultClass::Operator,
            function,
            ..
        } => function == "C_Login",
        Fault::Call { .. }
        | Fault::BadEedk { .. }
        | Fault::NotTried { .. }
        | Fault::NoKek { .. }
        | Fault::Refused { .. }
        | Fault::Unsupported { .. }
        | Fault::Down { .. }
        | Fault::Deadline { .. } => false,
    }
}

/// Whether the bridge that says so is about to end.
pub(super) const fn restarts(fault: &Fault) -> bool {
    matches!(
        fault,
        Fault::Call {
            class: FaultClass::Restart,
            ..
        }
    )
}

/// Whether such an answer shows that the token's keys work, which reading its objects does not,
/// nor that there is no KEK to make a canary with.
const fn proves(reply: &Reply) -> bool {
    matches!(
        reply,
        Reply::Created { .. }
            | Reply::Resolved { .. }
            | Reply::Rekeyed { .. }
            | Reply::Proved { .. }
            | Reply::Canary(true)
    )
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::bridge::faults::FUNCTIONS;
    use crate::bridge::message::Custody;

    fn link() -> (Arc<Link>, std::os::unix::net::UnixStream) {
        link_of(true)
    }

    fn link_of(proved: bool) -> (Arc<Link>, std::os::unix::net::UnixStream) {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let socket = UnixStream::from_std(ours).unwrap();
        let board = Arc::new(Board::new(1, 1));
        let share = Share {
            host_exchanges: Some(64),
            exchanges: None,
        };
        let link = Link::start("t".into(), socket, share, board, 0, proved).unwrap();
        (link, theirs)
    }

    #[tokio::test]
    async fn a_bridge_that_reads_nothing_holds_nobody_up_and_loses_nothing() {
        let (link, mut theirs) = link();
        let until = Instant::now() + Duration::from_secs(30);
        let key = vec![7_u8; 200_000];
        let op = Op::Create {
            dki: crate::key::DataKeyId::from_random([0; 9]),
            keks: Vec::new(),
            drive: message::Recipient {
                form: crate::key::SedkForm::RsaOaepSha1,
                spki: key,
                wwn: None,
            },
            custody: Custody::Token,
            block: [0; 16],
        };
        let answers: Vec<_> = (0..8).map(|_| link.ask(&op, until).unwrap()).collect();
        assert_eq!(link.under_way(), 8);
        let read = tokio::task::spawn_blocking(move || {
            (0..8)
                .map(|_| {
                    let request: Request = message::read(&mut theirs).unwrap();
                    let response = Response {
                        id: request.id,
                        result: Ok(Reply::Canary(true)),
                    };
                    message::write(&mut theirs, &response).unwrap();
                    request.id
                })
                .collect::<Vec<_>>()
        });
        for answer in answers {
            assert!(matches!(answer.await, Ok(Ok(Reply::Canary(true)))));
        }
        assert_eq!(read.await.unwrap(), (1..=8).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn that_whoever_asks_has_little_time_is_no_hang() {
        let (link, _theirs) = link();
        let now = Instant::now();
        let hour = Duration::from_secs(3600);
        let _brief = link.ask_for(&Op::Canary, now, now + hour).unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert!(!link.is_overdue(Duration::ZERO));
        let _hangs = link.ask(&Op::Canary, now).unwrap();
        assert!(link.is_overdue(Duration::ZERO));
    }

    #[tokio::test]
    async fn a_bridge_that_ends_leaves_nobody_waiting() {
        let (link, mut theirs) = link();
        let until = Instant::now() + Duration::from_secs(30);
        let answer = link.ask(&Op::Canary, until).unwrap();
        tokio::task::spawn_blocking(move || theirs.read_exact(&mut [0; 4]).unwrap())
            .await
            .unwrap();
        assert!(matches!(
            link.over().await,
            Over::Failed(Fault::Down { .. })
        ));
        drop(link.unanswered());
        assert!(answer.await.is_err());
        assert!(matches!(link.ask(&Op::Canary, until), Err(NotPut::Closing)));
    }

    #[tokio::test]
    async fn only_an_eedk_that_was_opened_proves_that_a_token_works() {
        let (link, mut theirs) = link();
        let until = Instant::now() + Duration::from_secs(30);
        let mut say = |result| {
            let request: Request = message::read(&mut theirs).unwrap();
            let id = request.id;
            message::write(&mut theirs, &Response { id, result }).unwrap();
        };
        tokio::time::sleep(Duration::from_millis(50)).await;
        // Neither being asked nor a failure does.
        let answer = link.ask(&Op::Canary, until).unwrap();
        assert!(link.proof_age().unwrap() >= Duration::from_millis(50));
        say(Err(Fault::Deadline {
            token: "t".into(),
            seconds: 1,
        }));
        assert!(answer.await.unwrap().is_err());
        assert!(link.proof_age().unwrap() >= Duration::from_millis(50));
        // Nor that there is no KEK to try.
        let answer = link.ask(&Op::Canary, until).unwrap();
        say(Ok(Reply::Canary(false)));
        assert!(answer.await.unwrap().is_ok());
        assert!(link.proof_age().unwrap() >= Duration::from_millis(50));
        let answer = link.ask(&Op::Canary, until).unwrap();
        let asked = Instant::now();
        say(Ok(Reply::Canary(true)));
        assert!(answer.await.unwrap().is_ok());
        assert!(link.proof_age().unwrap() <= asked.elapsed());
    }

    #[tokio::test]
    async fn a_token_without_a_kek_has_no_last_proof_until_it_has_opened_something() {
        let (link, mut theirs) = link_of(false);
        let until = Instant::now() + Duration::from_secs(30);
        for opened in [false, true] {
            assert_eq!(link.proof_age(), None);
            let answer = link.ask(&Op::Canary, until).unwrap();
            let request: Request = message::read(&mut theirs).unwrap();
            let response = Response {
                id: request.id,
                result: Ok(Reply::Canary(opened)),
            };
            message::write(&mut theirs, &response).unwrap();
            assert!(answer.await.unwrap().is_ok());
            assert!(link.worked());
        }
        assert!(link.proof_age().is_some());
    }

    #[tokio::test]
    async fn a_token_that_makes_a_kek_is_not_silent() {
        let (link, _theirs) = link();
        let until = Instant::now() + Duration::from_secs(30);
        let generate = Op::Generate {
            sign: false,
            label: "KEK1".parse().unwrap(),
            bits: 4096,
            custody: Custody::Token,
        };
        let _made = link.ask(&generate, until).unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(link.silence(), Duration::ZERO);
        assert!(link.at_work().making);
        // A request that waits meanwhile counts, from when it was put.
        let asked = Instant::now();
        let _answer = link.ask(&Op::Canary, until).unwrap();
        assert!(link.silence() <= asked.elapsed());
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(link.silence() >= Duration::from_millis(50));
    }

    #[tokio::test]
    async fn what_waits_while_a_kek_is_made_is_no_hang() {
        let (link, mut theirs) = link();
        let generate = Op::Generate {
            sign: false,
            label: "KEK1".parse().unwrap(),
            bits: 4096,
            custody: Custody::Token,
        };
        let time = Duration::from_millis(500);
        let hour = Instant::now() + Duration::from_secs(3600);
        let made = link.ask(&generate, hour).unwrap();
        let _behind = link.ask(&Op::Canary, Instant::now() + time).unwrap();
        tokio::time::sleep(time * 4).await;
        assert!(!link.is_overdue(Duration::ZERO));
        let id = message::read::<Request>(&mut theirs).unwrap().id;
        let result = Ok(Reply::Canary(true));
        message::write(&mut theirs, &Response { id, result }).unwrap();
        made.await.unwrap().unwrap();
        // It has its turn, and the time for it begins anew.
        assert!(!link.is_overdue(time));
        tokio::time::sleep(time * 2).await;
        assert!(link.is_overdue(Duration::ZERO));
    }

    #[tokio::test]
    async fn a_kek_that_is_to_be_made_hides_no_call_that_hung_before() {
        let (link, _theirs) = link();
        let generate = Op::Generate {
            sign: false,
            label: "KEK1".parse().unwrap(),
            bits: 4096,
            custody: Custody::Token,
        };
        let hour = Instant::now() + Duration::from_secs(3600);
        let _hangs = link.ask(&Op::Canary, Instant::now()).unwrap();
        let _waits = link.ask(&generate, hour).unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert!(link.is_overdue(Duration::ZERO));
        // And one that is never made is a hang itself.
        let (link, _theirs) = self::link();
        let _never = link.ask(&generate, Instant::now()).unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert!(link.is_overdue(Duration::ZERO));
    }

    /// `ekm token explain` says of any other call that another bridge is started.
    #[test]
    fn of_all_calls_only_a_login_locks_a_token() {
        for function in FUNCTIONS {
            for class in FaultClass::ALL {
                let fault = Fault::Call {
                    token: "t".to_owned(),
                    function: (*function).to_owned(),
                    name: "CKR_ARGUMENTS_BAD".to_owned(),
                    what: String::new(),
                    class,
                };
                let refused = *function == "C_Login" && class == FaultClass::Operator;
                assert_eq!(locks(&fault), refused, "{function} {class}");
            }
        }
    }
}
