//! Random interleavings of what drives, operators and broken tokens do,
//! against two tokens that hold the same KEKs. One of them is well at any
//! time. Whatever happens:
//!
//! - what was written can be read, to the same data key, and nobody is told
//!   that a good cartridge is bad;
//! - a drive that was removed gets no key: one whose request began after the
//!   removal was done; a request that was under way meanwhile may go either way;
//! - what is written is written under KEKs that were the defaults meanwhile;
//! - where the token that is well can do it, nothing fails, and nothing waits
//!   until a call that hangs on the other one is given up;
//! - every answer has its record, refusals too.
//!
//! `EKM_TEST_CASES` asks for more cases than CI has time for. A seed that fails
//! is written into `interleavings.proptest-regressions`, which is committed
//! with the repair, and is tried first from then on. It means another case as
//! soon as the steps are drawn in another way, so what it came down to goes
//! into `again.rs`, step by step.

mod again;
mod pair;
mod records;
mod steps;
mod views;

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ekm::admin::{self, Command, DriveChange};
use ekm::api::{Base64, CreateRequest, DriveInRequest, EedkInAnswer, RekeyRequest, ResolveRequest};
use ekm::audit::Audited;
use ekm::bridge::message::Op;
use ekm::bridge::supervisor::TokenState;
use ekm::key::{Eedk, Sedk};
use ekm::keystore::Custody;
use ekm::policy::{PeerRule, PolicyConfig};
use ekm::problem::{EkmCode, Problem};
use ekm::service::Service;
use ekm::store::Defaults;
use ekm::tls::PeerId;
use futures_util::future::{join, join_all};
use proptest::prelude::*;
use proptest::test_runner::{Config, FileFailurePersistence, TestCaseError, TestRunner};
use rustix::process::{Pid, Signal, kill_process};
use secrecy::ExposeSecret;
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use crate::faulty::{Fault, Faulty, SessionLimit, Slots};
use crate::support::{Bench, TestDrive, lives};
use pair::{DEADLINE, KEKS, Pair, label};
use records::Answers;
use steps::{Ask, Change, DRIVES, Ill, Step, steps};
use views::{Begun, Views};

/// Longest time for a token to be well again.
const PATIENCE: Duration = Duration::from_secs(60);

/// A call that hangs is given up by then: the deadline, and two seconds more.
const GIVEN_UP: Duration = Duration::from_secs(DEADLINE + 2);

/// Where proptest writes the seeds that fail, and finds those that failed before.
const SEEDS: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/integration/interleavings.proptest-regressions"
);

/// KEKs that one case makes: each costs a good part of a second.
const MADE: usize = 2;

/// A cartridge that a drive was given a key for.
#[derive(Clone, Debug)]
struct Tape {
    /// Every set of EEDKs that it ever had; each must open for ever.
    sets: Vec<Set>,
    key: [u8; 32],
}

/// EEDKs that were written together.
#[derive(Clone, Debug)]
struct Set {
    eedks: Vec<Base64>,
    keks: Vec<usize>,
}

/// A KEK of the case.
#[derive(Clone, Debug)]
struct Kek {
    label: String,
    /// The only token that has it; none for both.
    only: Option<usize>,
}

/// What should come of a request, its drive being in the table.
enum Due {
    /// A key, for certain where the token that is well can give it.
    Key { certain: bool },
    /// This code, for certain or not.
    Refusal { code: EkmCode, certain: bool },
}

/// One case: a service of its own over the pair.
struct Case<'a> {
    pair: &'a Pair,
    bench: Bench,
    views: Mutex<Views>,
    tapes: Mutex<Vec<Tape>>,
    keks: Mutex<Vec<Kek>>,
    answers: Mutex<Answers>,
    /// The token that may not be well.
    sick: Mutex<Option<usize>>,
    killed: Mutex<Vec<u32>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<'a> Case<'a> {
    async fn new(pair: &'a Pair) -> Self {
        pair.faulty.iter().for_each(Faulty::heal);
        let bench = Bench::with(pair.tokens(), anybody()).await;
        let made = (0..KEKS).map(|kek| Kek {
            label: label(kek),
            only: None,
        });
        let case = Self {
            pair,
            bench,
            views: Mutex::new(Views::new(DRIVES)),
            tapes: Mutex::default(),
            keks: Mutex::new(made.collect()),
            answers: Mutex::default(),
            sick: Mutex::default(),
            killed: Mutex::default(),
        };
        for drive in 0..DRIVES {
            case.change(&Change::Enrol { drive }).await.unwrap();
        }
        case.move_defaults(0, 1).await.unwrap();
        case
    }

    async fn step(&self, step: &Step) -> Result<(), TestCaseError> {
        if let Some((token, ill)) = &step.ill {
            self.fall_ill(*token, ill).await?;
        }
        let clients = join_all(step.clients.iter().map(async |client| {
            for ask in client {
                self.ask(ask).await?;
            }
            Ok(())
        }));
        let changes = async {
            for change in &step.changes {
                self.change(change).await?;
            }
            Ok(())
        };
        let (clients, changes) = join(clients, changes).await;
        clients.into_iter().chain([changes]).collect()
    }

    /// Has a token fall ill, once the other one is well.
    async fn fall_ill(&self, token: usize, ill: &Ill) -> Result<(), TestCaseError> {
        let before = locked(&self.sick).replace(token);
        if let Some(other) = before.filter(|before| *before != token) {
            self.cure(other).await?;
        }
        let faulty = &self.pair.faulty[token];
        // Two slips within one exchange are no slip any more.
        faulty.change(|rules| rules.faults.clear());
        let meets = |function: &str, skip: u64, calls: u64, fault| {
            faulty.strike(Some(function), skip, Some(calls), fault);
        };
        match *ill {
            Ill::BridgeKilled => self.kill(token),
            Ill::SessionsLost => faulty.change(|rules| rules.sessions_lost += 1),
            Ill::LoginLost => faulty.change(|rules| rules.logins_lost += 1),
            Ill::SlotsShifted => faulty.change(|rules| {
                rules.slots = match rules.slots {
                    Slots::AsTheyAre | Slots::Rotated => Slots::Shifted(7),
                    Slots::Shifted(by) => Slots::Shifted(by + 1),
                };
            }),
            Ill::Crowded { most } => {
                faulty.change(|rules| {
                    rules.session_limit = Some(SessionLimit {
                        most,
                        linger_ms: 1_000,
                        told: false,
                    });
                });
                self.kill(token);
            }
            Ill::Answers {
                function,
                skip,
                code,
            } => meets(function, skip, 1, Fault::Answer(code)),
            Ill::AnswerLost {
                function,
                skip,
                code,
            } => meets(function, skip, 1, Fault::AnswerLost(code)),
            Ill::Crashes { function, skip } => meets(function, skip, 1, Fault::Abort),
            Ill::Slow { function } => meets(function, 0, 1, Fault::Delay(300)),
            Ill::Late { function, millis } => meets(function, 0, 1, Fault::Late(millis)),
            Ill::Hangs { function, calls } => meets(function, 0, calls, Fault::Hang),
        }
        Ok(())
    }

    fn kill(&self, token: usize) {
        let state = self.bench.service.tokens().bridges()[token].state();
        for process in state.bridges() {
            let pid = Pid::from_raw(i32::try_from(*process).unwrap()).unwrap();
            // It may have ended by itself.
            let _ = kill_process(pid, Signal::KILL);
            locked(&self.killed).push(*process);
        }
    }

    /// Ends what a token suffers from, and waits until nothing of it is left.
    async fn cure(&self, token: usize) -> Result<(), TestCaseError> {
        self.pair.faulty[token].change(|rules| {
            rules.faults.clear();
            rules.session_limit = None;
        });
        let bridge = &self.bench.service.tokens().bridges()[token];
        let well = async {
            loop {
                bridge.serving().await;
                let died = locked(&self.killed).iter().all(|process| !lives(*process));
                // A bridge that answers after the last of those who met a fault has outlived it.
                let soon = || Instant::now() + bridge.deadline();
                if died
                    && bridge.under_way() == 0
                    && bridge.try_ask(&Op::Look, soon()).await.is_ok()
                    && bridge.try_ask(&Op::Canary, soon()).await.is_ok()
                    && matches!(bridge.state(), TokenState::Ready { .. })
                {
                    break;
                }
                sleep(Duration::from_millis(10)).await;
            }
        };
        let back = timeout(PATIENCE, well).await;
        prop_assert!(back.is_ok(), "{:?} did not come back", bridge.state());
        Ok(())
    }

    /// Does what an operator does, by his own commands.
    async fn change(&self, change: &Change) -> Result<(), TestCaseError> {
        match *change {
            Change::Remove { drive } if self.enrolled(drive) => {
                let serial = self.pair.drives[drive].soft.serial().clone();
                locked(&self.views).begin_change(drive);
                self.operate(Command::DriveDel { serial }).await?;
                locked(&self.views).end_change(drive, false);
            }
            Change::Enrol { drive } if !self.enrolled(drive) => {
                let row = self.pair.drives[drive].row.clone();
                let change = DriveChange {
                    wwn: row.wwn,
                    key: Some(row.key),
                    form: Some(row.form),
                    ..DriveChange::default()
                };
                let command = Command::DriveAdd {
                    serial: row.serial,
                    change: Box::new(change),
                };
                locked(&self.views).begin_change(drive);
                self.operate(command).await?;
                locked(&self.views).end_change(drive, true);
            }
            Change::Remove { .. } | Change::Enrol { .. } => {}
            Change::Rotate => {
                let next = locked(&self.views).next_shared(KEKS);
                self.move_defaults(next, (next + 1) % KEKS).await?;
            }
            Change::Generate { token } => {
                if locked(&self.keks).len() < KEKS + MADE {
                    self.generate(token).await?;
                }
            }
        }
        Ok(())
    }

    /// Makes a KEK on that token or, where it may not be well, on the other, and writes under it.
    async fn generate(&self, token: usize) -> Result<(), TestCaseError> {
        let sick = *locked(&self.sick);
        let token = sick.map_or(token, |sick| 1 - sick);
        let label = self.pair.next_label();
        self.operate(Command::KekGenerate {
            sign: false,
            label: label.parse().unwrap(),
            bits: 2048,
            token: Some(self.pair.names[token].to_owned()),
            custody: Custody::Token,
        })
        .await?;
        let made = {
            let mut keks = locked(&self.keks);
            keks.push(Kek {
                label,
                only: Some(token),
            });
            keks.len() - 1
        };
        let next = locked(&self.views).next_shared(KEKS);
        self.move_defaults(made, next).await
    }

    async fn move_defaults(&self, kek1: usize, kek2: usize) -> Result<(), TestCaseError> {
        let named = [kek1, kek2].map(|kek| Some(locked(&self.keks)[kek].label.parse().unwrap()));
        let [first, second] = named;
        let set = Some(Defaults {
            kek1: first,
            kek2: second,
        });
        locked(&self.views).begin_defaults([kek1, kek2]);
        self.operate(Command::KekDefault { set, anyway: false })
            .await?;
        locked(&self.views).end_defaults();
        Ok(())
    }

    /// No command of the case needs a token that is not well, so none may fail.
    async fn operate(&self, command: Command) -> Result<(), TestCaseError> {
        let service = Arc::clone(&self.bench.service);
        let shown = format!("{command:?}");
        let work = {
            let service = Arc::clone(&service);
            async move { admin::execute(&service, "operator:test", command).await }
        };
        match service.to_the_end(work).await {
            Ok(_) => Ok(()),
            Err(problem) => Err(TestCaseError::fail(format!("{shown}: {problem}"))),
        }
    }

    fn enrolled(&self, drive: usize) -> bool {
        locked(&self.views).enrolled(drive)
    }

    async fn ask(&self, ask: &Ask) -> Result<(), TestCaseError> {
        match *ask {
            Ask::Create { drive } => self.create(drive, drive).await,
            Ask::Astray { drive, asker } => self.create(drive, asker).await,
            Ask::Resolve {
                drive,
                tape,
                append,
            } => match self.pick(tape) {
                Some((_, tape)) => {
                    let set = tape.sets.last().unwrap();
                    self.resolve(drive, set, tape.key, append).await.map(drop)
                }
                None => Ok(()),
            },
            Ask::Forged { drive, tape, bit } => match self.pick(tape) {
                Some((_, tape)) => self.forged(drive, tape.sets.last().unwrap(), bit).await,
                None => Ok(()),
            },
            Ask::Rekey { drive, tape, kek } => {
                let kek = kek % locked(&self.keks).len();
                self.rekey(drive, tape, Some(kek)).await
            }
            Ask::Nowhere { drive, tape } => self.rekey(drive, tape, None).await,
        }
    }

    fn pick(&self, tape: usize) -> Option<(usize, Tape)> {
        let tapes = locked(&self.tapes);
        let index = tape.checked_rem(tapes.len())?;
        Some((index, tapes[index].clone()))
    }

    /// Whether a token that is well has the KEK.
    fn within_reach(&self, kek: usize) -> bool {
        let only = locked(&self.keks)[kek].only;
        only.is_none_or(|token| *locked(&self.sick) != Some(token))
    }

    fn readable(&self, set: &Set) -> bool {
        set.keks.iter().any(|kek| self.within_reach(*kek))
    }

    fn set(&self, eedks: Vec<EedkInAnswer>) -> Set {
        let keks = locked(&self.keks);
        let by_label = |eedk: &EedkInAnswer| {
            let label = eedk.label.as_ref().unwrap().to_string();
            keks.iter().position(|kek| kek.label == label).unwrap()
        };
        Set {
            keks: eedks.iter().map(by_label).collect(),
            eedks: eedks.into_iter().map(|eedk| eedk.eedk).collect(),
        }
    }

    /// Asks as the server's routes do: side by side with all others, and to the end.
    async fn served<T, V>(
        &self,
        asker: usize,
        verb: impl FnOnce(Arc<Service>, PeerId) -> V,
    ) -> Result<Audited<T>, Problem>
    where
        T: Send + 'static,
        V: Future<Output = Result<Audited<T>, Problem>> + Send + 'static,
    {
        let service = &self.bench.service;
        let verb = verb(Arc::clone(service), self.pair.drives[asker].peer.clone());
        Arc::clone(service).to_the_end(verb).await
    }

    async fn create(&self, drive: usize, asker: usize) -> Result<(), TestCaseError> {
        let id = Uuid::new_v4();
        let request = CreateRequest {
            job: None,
            request_id: id,
            drive: shown(&self.pair.drives[drive]),
            volser: "RANDOM".parse().unwrap(),
            kek1: None,
            kek2: None,
        };
        let begun = locked(&self.views).begin(drive);
        let answer = self
            .served(asker, |service, peer| async move {
                service.create(&peer, &request).await
            })
            .await;
        let defaults = locked(&self.views).defaults_since(&begun);
        let due = if drive == asker {
            let mut keks = defaults.iter().flatten();
            Due::Key {
                certain: keks.all(|kek| self.within_reach(*kek)),
            }
        } else {
            Due::Refusal {
                code: EkmCode::EE30,
                certain: true,
            }
        };
        let Some(answer) = self.judged(&begun, &due, id, answer)? else {
            return Ok(());
        };
        let set = self.set(answer.eedks);
        prop_assert!(
            defaults.iter().any(|both| set.keks == both),
            "written under {:?}, and the defaults were {defaults:?}",
            set.keks
        );
        locked(&self.tapes).push(Tape {
            sets: vec![set],
            key: data_key(&self.pair.drives[drive], &answer.sedk),
        });
        Ok(())
    }

    /// Whether it was read.
    async fn resolve(
        &self,
        drive: usize,
        set: &Set,
        key: [u8; 32],
        append: bool,
    ) -> Result<bool, TestCaseError> {
        let due = Due::Key {
            certain: self.readable(set),
        };
        let sedk = self.open(drive, &set.eedks, append, &due).await?;
        if let Some(sedk) = &sedk {
            prop_assert!(
                data_key(&self.pair.drives[drive], sedk) == key,
                "a cartridge opened to another key"
            );
        }
        Ok(sedk.is_some())
    }

    async fn forged(&self, drive: usize, set: &Set, bit: usize) -> Result<(), TestCaseError> {
        let eedks: Vec<Base64> = set.eedks.iter().map(|eedk| flipped(eedk, bit)).collect();
        let due = Due::Refusal {
            code: EkmCode::EE32,
            certain: set.keks.iter().all(|kek| self.within_reach(*kek)),
        };
        self.open(drive, &eedks, false, &due).await.map(drop)
    }

    async fn open(
        &self,
        drive: usize,
        eedks: &[Base64],
        append: bool,
        due: &Due,
    ) -> Result<Option<Sedk>, TestCaseError> {
        let id = Uuid::new_v4();
        let request = ResolveRequest {
            dki: None,
            request_id: id,
            drive: shown(&self.pair.drives[drive]),
            volser: None,
            eedks: eedks.to_vec(),
            append,
        };
        let begun = locked(&self.views).begin(drive);
        let answer = self
            .served(drive, |service, peer| async move {
                service.resolve(&peer, &request).await
            })
            .await;
        let answer = self.judged(&begun, due, id, answer)?;
        Ok(answer.map(|answer| answer.sedk))
    }

    /// To a KEK, or to one that is nowhere.
    async fn rekey(
        &self,
        drive: usize,
        tape: usize,
        kek: Option<usize>,
    ) -> Result<(), TestCaseError> {
        let Some((index, tape)) = self.pick(tape) else {
            return Ok(());
        };
        let set = tape.sets.last().unwrap();
        let (label, due) = match kek {
            Some(kek) => {
                let certain = self.readable(set) && self.within_reach(kek);
                (locked(&self.keks)[kek].label.clone(), Due::Key { certain })
            }
            // Who knows what is on a token that is not ready.
            None => {
                let due = Due::Refusal {
                    code: EkmCode::EE31,
                    certain: locked(&self.sick).is_none(),
                };
                ("NOWHERE".to_owned(), due)
            }
        };
        let id = Uuid::new_v4();
        let request = RekeyRequest {
            request_id: id,
            serial: self.pair.drives[drive].soft.serial().clone(),
            volser: "RANDOM".parse().unwrap(),
            eedks: set.eedks.clone(),
            kek1: label.parse().unwrap(),
            kek2: None,
        };
        let begun = locked(&self.views).begin(drive);
        let answer = self
            .served(drive, |service, peer| async move {
                service.rekey(&peer, &request).await
            })
            .await;
        if let Some(answer) = self.judged(&begun, &due, id, answer)? {
            let set = self.set(answer.eedks);
            prop_assert_eq!(set.keks.first().copied(), kek);
            locked(&self.tapes)[index].sets.push(set);
        }
        Ok(())
    }

    /// Holds an answer against what must be so, whatever the tokens do.
    fn judged<T>(
        &self,
        begun: &Begun,
        due: &Due,
        id: Uuid,
        answer: Result<Audited<T>, Problem>,
    ) -> Result<Option<T>, TestCaseError> {
        let took = begun.took();
        let standing = locked(&self.views).standing_since(begun);
        let refused = match answer {
            Ok(answer) => {
                prop_assert!(standing.may_be_in, "a drive that was removed got a key");
                prop_assert!(
                    matches!(due, Due::Key { .. }),
                    "a key, and no drive may have it"
                );
                prop_assert!(
                    took < GIVEN_UP || !matches!(due, Due::Key { certain: true }),
                    "it took {:?}, and a token that is well has the key",
                    took
                );
                locked(&self.answers).given(id, answer.record());
                return Ok(Some(answer.into_inner()));
            }
            Err(problem) => problem,
        };
        prop_assert_eq!(&refused.request_id, &Some(id.to_string()), "{}", refused);
        locked(&self.answers).refused(id, &refused);
        // The key service may be out of order; the cartridge never is, nor the drive.
        let right = match due {
            _ if refused.code == EkmCode::EF01 => standing.may_be_out,
            Due::Refusal { code, .. } if refused.code == *code => true,
            Due::Key { certain } | Due::Refusal { certain, .. } => {
                refused.code == EkmCode::EE0F && standing.may_be_in && !certain
            }
        };
        prop_assert!(right, "{} {}", refused.status, refused);
        Ok(None)
    }

    /// With both tokens well again, everything that was ever written is read,
    /// and by none who was removed.
    async fn end(self) -> Result<(), TestCaseError> {
        for token in 0..2 {
            self.cure(token).await?;
        }
        *locked(&self.sick) = None;
        for drive in 0..DRIVES {
            for ask in [
                Ask::Create { drive },
                Ask::Resolve {
                    drive,
                    tape: drive,
                    append: false,
                },
                Ask::Rekey {
                    drive,
                    tape: drive,
                    kek: drive,
                },
            ] {
                self.ask(&ask).await?;
            }
        }
        self.change(&Change::Enrol { drive: 0 }).await?;
        let tapes = locked(&self.tapes).clone();
        for tape in &tapes {
            for set in &tape.sets {
                let read = self.resolve(0, set, tape.key, false).await?;
                prop_assert!(read, "what was written cannot be read");
            }
        }
        let directory = self.bench.config.audit.clone();
        let Bench {
            service,
            directory: kept,
            ..
        } = self.bench;
        // Writes what is queued.
        drop(Arc::try_unwrap(service).unwrap());
        locked(&self.answers).check(&directory)?;
        drop(kept);
        Ok(())
    }
}

/// Drives may write under any KEK, and rekey to any.
fn anybody() -> PolicyConfig {
    PolicyConfig {
        peers: vec![PeerRule {
            peer: "drive:*".to_owned(),
            drives: vec![],
            create_keks: vec!["*".to_owned()],
            rekey_keks: vec!["*".to_owned()],
        }],
        ..PolicyConfig::default()
    }
}

fn shown(drive: &TestDrive) -> DriveInRequest {
    DriveInRequest {
        serial: drive.soft.serial().clone(),
        stores_eedks: true,
        public_key: Some(Base64(drive.soft.public_key_spki().to_vec())),
        session_key: None,
    }
}

fn data_key(drive: &TestDrive, sedk: &Sedk) -> [u8; 32] {
    *drive.soft.unwrap_sedk(sedk).unwrap().expose_secret()
}

/// The EEDK with one bit of its wrapped key flipped.
fn flipped(eedk: &Base64, bit: usize) -> Base64 {
    let eedk = Eedk::decode(&eedk.0).unwrap();
    let mut wrapped = eedk.wrapped().to_vec();
    let at = bit / 8 % wrapped.len();
    wrapped[at] ^= 1 << (bit % 8);
    let bad = Eedk::new(eedk.dki(), eedk.kek().clone(), eedk.wrap(), wrapped);
    Base64(bad.unwrap().encode())
}

async fn run(pair: &Pair, steps: &[Step]) -> Result<(), TestCaseError> {
    let case = Case::new(pair).await;
    for step in steps {
        case.step(step).await?;
    }
    case.end().await
}

#[test]
fn whatever_happens_to_two_tokens_what_was_written_can_be_read() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let pair = runtime.block_on(Pair::new());
    for (name, steps) in again::again() {
        if let Err(error) = runtime.block_on(run(&pair, &steps)) {
            panic!("{name}: {error}");
        }
    }
    let cases = std::env::var("EKM_TEST_CASES")
        .ok()
        .map_or(16, |cases| cases.parse().unwrap());
    assert!(
        Path::new(SEEDS).is_file(),
        "{SEEDS} is not there: it belongs to this test, also while no seed is in it"
    );
    let mut runner = TestRunner::new(Config {
        cases,
        // Each case takes a second; a smaller one is worth some of them.
        max_shrink_iters: 40,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(SEEDS))),
        ..Config::default()
    });
    let outcome = runner.run(&steps(), |steps| runtime.block_on(run(&pair, &steps)));
    if let Err(error) = outcome {
        panic!("{error}");
    }
}
