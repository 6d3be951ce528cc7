//! What a bridge tells its server: answers, and unasked what it measured.
//!
//! What it measured is told every few seconds, at once when a call does not return, and before
//! each answer that may be the bridge's last: with the process goes what it counted.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::faults::{Fault, FaultClass};
use super::message::{self, Op, Reply, Response};
use super::pkcs11::TokenInfo;
use super::share::Share;
use super::stats::{Calls, LONG, Stats};

/// How often the server is told what was measured.
const REPORT: Duration = Duration::from_secs(5);

/// How often the calls under way are looked at.
const LOOK: Duration = Duration::from_millis(250);

/// The writing end of the socket, for all threads.
pub(super) struct Outbox {
    socket: Mutex<UnixStream>,
    calls: Arc<Calls>,
    refused: Arc<Mutex<Option<TokenInfo>>>,
    /// Workers that are at work on a request.
    pub(super) busy: AtomicUsize,
    // What the server counts, too, before it has the bridge started anew.
    answers: AtomicU64,
    in_host: AtomicU64,
    share: Share,
}

impl Outbox {
    /// Takes over the writing end of a bridge that has this share to do.
    pub(super) fn new(socket: UnixStream, share: Share) -> Self {
        Self {
            socket: Mutex::new(socket),
            calls: Arc::default(),
            refused: Arc::default(),
            busy: AtomicUsize::new(0),
            answers: AtomicU64::new(0),
            in_host: AtomicU64::new(0),
            share,
        }
    }

    /// Where the module's calls are counted.
    pub(super) const fn calls(&self) -> &Arc<Calls> {
        &self.calls
    }

    /// What the token says of itself, where its last login failed.
    pub(super) const fn refused(&self) -> &Arc<Mutex<Option<TokenInfo>>> {
        &self.refused
    }

    /// Says whether the token is open.
    ///
    /// # Errors
    /// The server has gone.
    pub(super) fn open(&self, result: Result<Reply, Fault>) -> io::Result<()> {
        let failed = result.is_err();
        if failed {
            self.tell()?;
        }
        message::write(&mut *self.socket(), &Response { id: 0, result })?;
        if failed { Ok(()) } else { self.tell() }
    }

    /// Answers a request.
    ///
    /// # Errors
    /// The server has gone.
    pub(super) fn answer(&self, id: u64, op: &Op, result: Result<Reply, Fault>) -> io::Result<()> {
        if self.spent(&result) || result.as_ref().is_err_and(|fault| last(op, fault)) {
            self.tell()?;
        }
        message::write(&mut *self.socket(), &Response { id, result })
    }

    /// Tells what was measured so far.
    ///
    /// # Errors
    /// The server has gone.
    pub(super) fn tell(&self) -> io::Result<()> {
        // Read under the lock, so that nothing older is told after it.
        let mut socket = self.socket();
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let stats = Stats {
            refused: refused.clone(),
            ..self.calls.read(self.busy.load(Ordering::Relaxed))
        };
        drop(refused);
        let result = Ok(Reply::Stats(stats));
        message::write(&mut *socket, &Response { id: 0, result })
    }

    /// Tells what was measured until the server has gone, also while every worker waits for the
    /// module.
    pub(super) fn report(&self) {
        let mut told = Instant::now();
        let mut hung = false;
        loop {
            std::thread::sleep(LOOK);
            let hangs = self.calls.hang();
            let pause = if hangs == hung {
                if hangs { LONG } else { REPORT }
            } else {
                Duration::ZERO
            };
            if told.elapsed() < pause {
                continue;
            }
            // The watch of the socket ends the process, and lets a login end first.
            if self.tell().is_err() {
                return;
            }
            (told, hung) = (Instant::now(), hangs);
        }
    }

    /// Whether the bridge has done its share with this answer, so that it is started anew.
    fn spent(&self, result: &Result<Reply, Fault>) -> bool {
        // Whoever counts past the share sees what all those before him have counted.
        let in_host = result.as_ref().is_ok_and(Reply::in_host);
        let in_host = self
            .in_host
            .fetch_add(u64::from(in_host), Ordering::AcqRel)
            .saturating_add(u64::from(in_host));
        let answers = self
            .answers
            .fetch_add(1, Ordering::AcqRel)
            .saturating_add(1);
        self.share.is_done(answers, in_host)
    }

    fn socket(&self) -> MutexGuard<'_, UnixStream> {
        self.socket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the bridge may end at that answer: by itself, or by the server, at some faults and at
/// what its own questions come to. What came of a peer's EEDK is not told with its answer, or
/// whoever reads the measurements could tell one from another.
const fn last(op: &Op, fault: &Fault) -> bool {
    match fault {
        Fault::Operator { .. } | Fault::WrongPin { .. } => true,
        Fault::Call { class, .. } => {
            matches!(class, FaultClass::Restart | FaultClass::Operator)
                || matches!(op, Op::Canary | Op::Look)
        }
        Fault::BadEedk { .. }
        | Fault::NotTried { .. }
        | Fault::NoKek { .. }
        | Fault::Refused { .. }
        | Fault::Unsupported { .. }
        | Fault::Down { .. }
        | Fault::Deadline { .. } => matches!(op, Op::Canary | Op::Look),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bridge::message::Custody;
    use crate::bridge::stats::place;

    fn outbox(exchanges: Option<u64>) -> (Outbox, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let share = Share {
            host_exchanges: None,
            exchanges,
        };
        (Outbox::new(ours, share), theirs)
    }

    fn call(class: FaultClass) -> Fault {
        Fault::Call {
            token: "t".into(),
            function: "C_Login".into(),
            name: "CKR_GENERAL_ERROR".into(),
            class,
            what: "logging in".into(),
        }
    }

    /// What the server hears: the errors of `C_Login` for each report, and each answer.
    fn heard(outbox: Outbox, mut theirs: UnixStream) -> Vec<String> {
        drop(outbox);
        let mut heard = Vec::new();
        while let Ok(Response { id, result }) = message::read(&mut theirs) {
            heard.push(match result {
                Ok(Reply::Stats(stats)) => format!("{} told", stats.calls["C_Login"].errors),
                Ok(_) => format!("{id} answered"),
                Err(_) => format!("{id} failed"),
            });
        }
        heard
    }

    #[test]
    fn what_was_counted_is_told_before_a_failed_opening_and_before_what_ends_the_bridge() {
        let (outbox, theirs) = outbox(None);
        let fails = || outbox.calls().begin(place("C_Login")).ended(false);
        fails();
        outbox.open(Err(call(FaultClass::Restart))).unwrap();
        fails();
        let restart = Err(call(FaultClass::Restart));
        outbox.answer(1, &Op::Canary, restart).unwrap();
        fails();
        outbox
            .answer(2, &Op::Look, Err(call(FaultClass::Request)))
            .unwrap();
        let locked = Fault::WrongPin {
            token: "t".into(),
            reason: "refused".into(),
        };
        outbox.answer(3, &Op::Canary, Err(locked)).unwrap();
        outbox
            .answer(4, &Op::Canary, Ok(Reply::Canary(true)))
            .unwrap();
        assert_eq!(
            heard(outbox, theirs),
            [
                "1 told",
                "0 failed",
                "2 told",
                "1 failed",
                "3 told",
                "2 failed",
                "3 told",
                "3 failed",
                "4 answered"
            ]
        );
    }

    #[test]
    fn what_was_counted_is_told_before_the_answers_at_which_a_bridge_is_started_anew() {
        let (outbox, theirs) = outbox(Some(2));
        outbox.calls().begin(place("C_Login")).ended(false);
        for id in 1..=3 {
            outbox
                .answer(id, &Op::Canary, Ok(Reply::Canary(true)))
                .unwrap();
        }
        assert_eq!(
            heard(outbox, theirs),
            ["1 answered", "1 told", "2 answered", "1 told", "3 answered"]
        );
    }

    #[test]
    fn what_came_of_an_eedk_is_not_told_with_its_answer() {
        let bad = Fault::BadEedk {
            token: "t".into(),
            kek: "KEK1".into(),
            function: "C_UnwrapKey".into(),
            name: "CKR_GENERAL_ERROR".into(),
        };
        let asked = Op::Generate {
            sign: false,
            label: "KEK1".parse().unwrap(),
            bits: 2048,
            custody: Custody::Token,
        };
        assert!(!last(&asked, &bad));
        assert!(!last(&asked, &call(FaultClass::Request)));
        assert!(last(&asked, &call(FaultClass::Restart)));
        assert!(last(&Op::Canary, &bad));
    }
}
