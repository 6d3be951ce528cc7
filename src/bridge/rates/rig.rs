//! The bridge's side of a measurement: a token, throw-away keys, and threads
//! that do one kind of work each on a session of its own.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use cryptoki_sys as ck;

use super::{Measured, Run, Work};
use crate::bridge::doctor::pairs::{self, Pair};
use crate::bridge::doctor::stand_in::StandIn;
use crate::bridge::faults::Fault;
use crate::bridge::message::Custody;
use crate::bridge::pkcs11::{
    Attr, CK_OBJECT_HANDLE, CK_SESSION_HANDLE, Call, CallError, Mechanism,
};
use crate::bridge::profile::Sensitive;
use crate::bridge::token::{Token, wrapping};
use crate::key::{OaepHash, SedkForm, WrapAlgorithm};

/// Latencies that one bridge tells of one run; past this every other is left out.
const SAMPLES: usize = 100_000;

/// In the place of a DKi.
const DKI: &[u8] = b"EKMbench....";

/// A token with throw-away keys.
pub(in crate::bridge) struct Rig {
    token: Token,
    session: CK_SESSION_HANDLE,
    drive: StandIn,
    kek: Pair,
    other_kek: Pair,
    host: Call<Pair>,
}

impl Rig {
    pub(in crate::bridge) fn new(token: Token, bits: u32, first: bool) -> Result<Self, Fault> {
        let call = |error, what: &str| Fault::call(&token.name, error, what);
        let session = token
            .session()
            .map_err(|error| call(error, "opening a session"))?;
        if first {
            pairs::sweep(&token.module, session)
                .map_err(|error| call(error, "removing what an earlier run left"))?;
        }
        let drive = StandIn::new().ok_or_else(|| Fault::Unsupported {
            token: token.name.clone(),
            reason: "the operating system gives no random numbers".to_owned(),
        })?;
        let pair = |custody| Pair::make(&token.module, session, &token.profile, custody, &[], bits);
        let kek = |error| call(error, "making a throw-away KEK");
        Ok(Self {
            kek: pair(Custody::Token).map_err(kek)?,
            other_kek: pair(Custody::Token).map_err(kek)?,
            host: pair(Custody::Host),
            session,
            drive,
            token,
        })
    }

    pub(in crate::bridge) fn leave(self) {
        let pairs = [Some(self.kek), Some(self.other_kek), self.host.ok()];
        for pair in pairs.into_iter().flatten() {
            pair.destroy(&self.token.module, self.session);
        }
    }

    /// Does one kind of work on so many sessions for so long.
    pub(in crate::bridge) fn measure(&self, run: Run) -> Result<Measured, Fault> {
        let barrier = Barrier::new(run.sessions + 1);
        let time = Duration::from_millis(run.milliseconds);
        let (outcomes, seconds) = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..run.sessions)
                .map(|_| scope.spawn(|| self.work(run.work, time, &barrier)))
                .collect();
            barrier.wait();
            let start = Instant::now();
            let outcomes: Vec<Call<Vec<u32>>> = threads
                .into_iter()
                .map(|thread| {
                    thread.join().unwrap_or(Err(CallError::new(
                        "C_OpenSession",
                        ck::CKR_GENERAL_ERROR,
                        &[],
                    )))
                })
                .collect();
            (outcomes, start.elapsed().as_secs_f64())
        });
        let mut took_us = Vec::new();
        for outcome in outcomes {
            took_us.extend(outcome.map_err(|error| {
                Fault::call(
                    &self.token.name,
                    error,
                    format!(
                        "measuring {}; does the profile {} fit (ekm slot doctor)?",
                        run.work, self.token.profile.name
                    ),
                )
            })?);
        }
        let done = u64::try_from(took_us.len()).unwrap_or(u64::MAX);
        while took_us.len() > SAMPLES {
            took_us = took_us.into_iter().step_by(2).collect();
        }
        Ok(Measured {
            done,
            seconds,
            took_us,
        })
    }

    fn work(&self, work: Work, time: Duration, barrier: &Barrier) -> Call<Vec<u32>> {
        let hand = self.hand(work);
        // Every thread arrives, or the others wait for ever.
        barrier.wait();
        let mut hand = hand?;
        let begin = Instant::now();
        let mut took = Vec::new();
        let outcome = loop {
            if begin.elapsed() >= time {
                break Ok(took);
            }
            let start = Instant::now();
            if let Err(error) = hand.once() {
                break Err(error);
            }
            took.push(u32::try_from(start.elapsed().as_micros()).unwrap_or(u32::MAX));
        };
        hand.close();
        outcome
    }

    /// One session, with what it needs for the work; done once already.
    fn hand(&self, work: Work) -> Call<Hand<'_>> {
        let session = self.token.session()?;
        let mut hand = Hand {
            rig: self,
            session,
            work,
            drive: 0,
            to_drive: self.to_drive(),
            opening: wrapping(self.token.profile.wrap_algorithm(), DKI),
            wrapped: Vec::new(),
        };
        let ready = hand.ready().and_then(|()| hand.once());
        match ready {
            Ok(()) => Ok(hand),
            Err(error) => {
                hand.close();
                Err(error)
            }
        }
    }

    /// How the profile's first form is wrapped.
    fn to_drive(&self) -> Mechanism {
        let t10 = self.token.profile.drive.forms.first() == Some(&SedkForm::T10Wrapped);
        let (hash, label): (_, &[u8]) = if t10 {
            (OaepHash::Sha256, &[0, 0, 0, 8, 0x50, 5, 7, 0x63])
        } else {
            (OaepHash::Sha1, &[])
        };
        wrapping(WrapAlgorithm::oaep(hash, t10), label)
    }
}

struct Hand<'a> {
    rig: &'a Rig,
    session: CK_SESSION_HANDLE,
    work: Work,
    drive: CK_OBJECT_HANDLE,
    to_drive: Mechanism,
    opening: Mechanism,
    wrapped: Vec<u8>,
}

impl Hand<'_> {
    fn ready(&mut self) -> Call<()> {
        let Rig {
            token, drive, kek, ..
        } = self.rig;
        let algorithm = token.profile.wrap_algorithm();
        let pair = match (self.work, &self.rig.host) {
            (Work::Decrypt, Ok(host)) => host,
            (Work::Decrypt, Err(error)) => return Err(*error),
            (Work::Unwrap | Work::Rewrap | Work::Create, _) => kek,
        };
        self.wrapped = drive
            .wrap_by(&pair.spki, algorithm, DKI)
            .unwrap_or_default();
        self.drive = drive.import(&token.module, self.session)?;
        Ok(())
    }

    fn once(&mut self) -> Call<()> {
        match self.work {
            Work::Decrypt => self.decrypt(),
            Work::Unwrap => self.unwrap(false),
            Work::Rewrap => self.unwrap(true),
            Work::Create => self.create(),
        }
    }

    fn decrypt(&self) -> Call<()> {
        let private = self.rig.host.as_ref().map_err(|error| *error)?.private;
        let module = &self.rig.token.module;
        module
            .decrypt(self.session, &self.opening, private, &self.wrapped)
            .map(drop)
    }

    fn unwrap(&self, wrap: bool) -> Call<()> {
        let token = &self.rig.token;
        let module = &token.module;
        let key = module.unwrap(
            self.session,
            &self.opening,
            self.rig.kek.private,
            &self.wrapped,
            &token.unwrap_template(false, false),
        )?;
        if token.profile.data_key.sensitive == Sensitive::SetAfter {
            module.set_attributes(self.session, key, &[Attr::flag(ck::CKA_SENSITIVE, true)])?;
        }
        if wrap {
            module.wrap(self.session, &self.to_drive, self.drive, key)?;
        }
        module.destroy(self.session, key)
    }

    fn create(&self) -> Call<()> {
        let module = &self.rig.token.module;
        let key = module.generate_key(
            self.session,
            &Mechanism::Plain(ck::CKM_AES_KEY_GEN),
            &Token::generate_template(),
        )?;
        for kek in [&self.rig.kek, &self.rig.other_kek] {
            module.wrap(self.session, &self.opening, kek.public, key)?;
        }
        module.wrap(self.session, &self.to_drive, self.drive, key)?;
        module.destroy(self.session, key)
    }

    fn close(self) {
        // Its objects go with it.
        let _ = self.rig.token.module.close_session(self.session);
    }
}
