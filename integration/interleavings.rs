//! Random interleavings of what drives, operators and broken tokens do,
//! against two tokens that hold the same KEKs. Whatever happens:
//!
//! - what was written can be read, to the same data key, and nobody is told
//!   that a good cartridge is bad;
//! - a drive that was removed gets no key;
//! - every answer has its record.
//!
//! `EKM_TEST_CASES` asks for more cases than CI has time for. Seeds that failed
//! stand in `interleavings.proptest-regressions` and are tried first.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use cryptoki_sys as ck;
use ekm::api::{Base64, CreateRequest, DriveInRequest, RekeyRequest, ResolveRequest};
use ekm::audit::{self, Outcome};
use ekm::key::Sedk;
use ekm::policy::{PeerRule, PolicyConfig};
use ekm::problem::{EkmCode, Problem};
use ekm::store::Defaults;
use futures_util::future::join_all;
use proptest::prelude::*;
use proptest::test_runner::{Config, FileFailurePersistence, TestCaseError, TestRunner};
use rustix::process::{Pid, Signal, kill_process};
use secrecy::ExposeSecret;
use tokio::sync::Mutex;
use uuid::Uuid;

use crate::faulty::{Fault, Faulty, Slots};
use crate::support::{Bench, Hsm, Kind, TestDrive, drive};

const DRIVES: usize = 3;

/// KEKs that both tokens hold; a rotation moves the defaults to the next one.
const KEKS: usize = 4;

/// What a drive asks for.
#[derive(Clone, Debug)]
enum Ask {
    Create {
        drive: usize,
    },
    Resolve {
        drive: usize,
        tape: usize,
        append: bool,
    },
    Rekey {
        drive: usize,
        tape: usize,
        kek: usize,
    },
}

/// What goes wrong with a token.
#[derive(Clone, Debug)]
enum Ill {
    BridgeKilled,
    SessionsLost,
    LoginLost,
    SlotsShifted,
    /// One call of a function answers this code.
    Answers {
        function: &'static str,
        code: u64,
    },
    /// It dies in one of the next calls of a function.
    Crashes {
        function: &'static str,
        skip: u64,
    },
    /// One call takes its time.
    Slow {
        function: &'static str,
    },
}

/// One step; the requests of a step run side by side, beside the fault.
#[derive(Clone, Debug)]
enum Step {
    Ask {
        asked: Vec<Ask>,
        ill: Option<(usize, Ill)>,
    },
    Remove {
        drive: usize,
    },
    Enrol {
        drive: usize,
    },
    Rotate,
}

fn function() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "C_UnwrapKey",
        "C_WrapKey",
        "C_GenerateKey",
        "C_DestroyObject",
        "C_EncryptInit",
        "C_Encrypt",
        "C_CreateObject",
        "C_GetSessionInfo",
        "C_OpenSession",
    ])
}

fn code() -> impl Strategy<Value = u64> {
    prop::sample::select(vec![
        ck::CKR_GENERAL_ERROR,
        ck::CKR_DEVICE_ERROR,
        ck::CKR_FUNCTION_FAILED,
        ck::CKR_SESSION_HANDLE_INVALID,
        ck::CKR_SESSION_CLOSED,
        ck::CKR_USER_NOT_LOGGED_IN,
        ck::CKR_DEVICE_REMOVED,
        ck::CKR_TOKEN_NOT_PRESENT,
        ck::CKR_KEY_HANDLE_INVALID,
        ck::CKR_OBJECT_HANDLE_INVALID,
        ck::CKR_OPERATION_ACTIVE,
        ck::CKR_DEVICE_MEMORY,
        ck::CKR_HOST_MEMORY,
        ck::CKR_CRYPTOKI_NOT_INITIALIZED,
        ck::CKR_VENDOR_DEFINED + 3,
    ])
}

fn ill() -> impl Strategy<Value = Ill> {
    prop_oneof![
        1 => Just(Ill::BridgeKilled),
        1 => Just(Ill::SessionsLost),
        1 => Just(Ill::LoginLost),
        1 => Just(Ill::SlotsShifted),
        4 => (function(), code()).prop_map(|(function, code)| Ill::Answers { function, code }),
        1 => (function(), 0..4_u64).prop_map(|(function, skip)| Ill::Crashes { function, skip }),
        1 => function().prop_map(|function| Ill::Slow { function }),
    ]
}

fn ask() -> impl Strategy<Value = Ask> {
    let drive = 0..DRIVES;
    prop_oneof![
        1 => drive.clone().prop_map(|drive| Ask::Create { drive }),
        2 => (drive.clone(), any::<prop::sample::Index>(), any::<bool>()).prop_map(|(drive, tape, append)| {
            Ask::Resolve { drive, tape: tape.index(1 << 16), append }
        }),
        1 => (drive, any::<prop::sample::Index>(), 0..KEKS).prop_map(|(drive, tape, kek)| Ask::Rekey {
            drive,
            tape: tape.index(1 << 16),
            kek
        }),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let drive = 0..DRIVES;
    let step = prop_oneof![
        8 => (prop::collection::vec(ask(), 1..5), prop::option::of((0..2_usize, ill())))
            .prop_map(|(asked, ill)| Step::Ask { asked, ill }),
        1 => drive.clone().prop_map(|drive| Step::Remove { drive }),
        1 => drive.prop_map(|drive| Step::Enrol { drive }),
        1 => Just(Step::Rotate),
    ];
    prop::collection::vec(step, 4..24)
}

/// A cartridge that a drive was given a key for.
#[derive(Clone, Debug)]
struct Tape {
    /// Every set of EEDKs that it ever had; each must open for ever.
    sets: Vec<Vec<Base64>>,
    key: [u8; 32],
}

/// Two tokens with the same KEKs, each behind the faulty module.
struct Pair {
    hsms: [Hsm; 2],
    faulty: [Faulty; 2],
}

impl Pair {
    async fn new() -> Self {
        let hsms = [
            Hsm::new(Kind::SofthsmInProcess, "one").await,
            Hsm::new(Kind::SofthsmInProcess, "two").await,
        ];
        for kek in 0..KEKS {
            let key = crate::support::pkcs8_key();
            for hsm in &hsms {
                let file = hsm.directory.path().join("kek.der");
                std::fs::write(&file, &key).unwrap();
                hsm.hand(&["import-private", &label(kek), &file.display().to_string()]);
            }
        }
        let faulty = hsms.each_ref().map(Faulty::before);
        Self { hsms, faulty }
    }
}

fn label(kek: usize) -> String {
    format!("KEK{kek}")
}

/// One case: a service of its own over the pair.
struct Case<'a> {
    pair: &'a Pair,
    bench: Bench,
    drives: Vec<TestDrive>,
    enrolled: Vec<bool>,
    tapes: Mutex<Vec<Tape>>,
    answered: Mutex<BTreeSet<String>>,
    kek: usize,
}

impl<'a> Case<'a> {
    async fn new(pair: &'a Pair) -> Self {
        pair.faulty.iter().for_each(Faulty::heal);
        let tokens = ["main", "second"]
            .iter()
            .zip(pair.faulty.iter().zip(&pair.hsms))
            .map(|(name, (faulty, hsm))| faulty.config(hsm, name))
            .collect();
        let bench = Bench::with(tokens, anybody()).await;
        let mut drives = Vec::new();
        for n in 1..=u32::try_from(DRIVES).unwrap() {
            let drive = drive(bench.directory.path(), n, Kind::SofthsmInProcess.form());
            bench.enrol(&drive).await;
            drives.push(drive);
        }
        let case = Self {
            pair,
            bench,
            enrolled: vec![true; drives.len()],
            drives,
            tapes: Mutex::default(),
            answered: Mutex::default(),
            kek: 0,
        };
        case.defaults().await;
        case
    }

    async fn defaults(&self) {
        let named = |kek: usize| Some(label(kek % KEKS).parse().unwrap());
        let defaults = Defaults {
            kek1: named(self.kek),
            kek2: named(self.kek + 1),
        };
        self.bench.store().set_defaults(&defaults).await.unwrap();
    }

    async fn step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match step {
            Step::Ask { asked, ill } => {
                if let Some((token, ill)) = ill {
                    self.fall_ill(*token, ill);
                }
                let outcomes = join_all(asked.iter().map(|ask| self.ask(ask))).await;
                outcomes.into_iter().collect::<Result<(), _>>()?;
            }
            Step::Remove { drive } => {
                let serial = self.drives[*drive].soft.serial();
                self.bench.store().delete_drive(serial).await.unwrap();
                self.enrolled[*drive] = false;
            }
            Step::Enrol { drive } => {
                self.bench.enrol(&self.drives[*drive]).await;
                self.enrolled[*drive] = true;
            }
            Step::Rotate => {
                self.kek += 1;
                self.defaults().await;
            }
        }
        Ok(())
    }

    fn fall_ill(&self, token: usize, ill: &Ill) {
        let faulty = &self.pair.faulty[token];
        match ill {
            Ill::BridgeKilled => {
                let state = self.bench.service.tokens().bridges()[token].state();
                for pid in state.bridges() {
                    let pid = Pid::from_raw(i32::try_from(*pid).unwrap()).unwrap();
                    // It may have ended by itself.
                    let _ = kill_process(pid, Signal::KILL);
                }
            }
            Ill::SessionsLost => faulty.change(|rules| rules.sessions_lost += 1),
            Ill::LoginLost => faulty.change(|rules| rules.logins_lost += 1),
            Ill::SlotsShifted => faulty.change(|rules| {
                rules.slots = match rules.slots {
                    Slots::AsTheyAre | Slots::Rotated => Slots::Shifted(7),
                    Slots::Shifted(by) => Slots::Shifted(by + 1),
                };
            }),
            Ill::Answers { function, code } => {
                faulty.strike(Some(function), 0, Some(1), Fault::Answer(*code));
            }
            Ill::Crashes { function, skip } => {
                faulty.strike(Some(function), *skip, Some(1), Fault::Abort);
            }
            Ill::Slow { function } => {
                faulty.strike(Some(function), 0, Some(1), Fault::Delay(300));
            }
        }
    }

    async fn ask(&self, ask: &Ask) -> Result<(), TestCaseError> {
        match ask {
            Ask::Create { drive } => self.create(*drive).await,
            Ask::Resolve {
                drive,
                tape,
                append,
            } => match self.pick(*tape).await {
                Some((_, tape)) => {
                    let eedks = tape.sets.last().unwrap().clone();
                    self.resolve(*drive, eedks, tape.key, *append).await
                }
                None => Ok(()),
            },
            Ask::Rekey { drive, tape, kek } => match self.pick(*tape).await {
                Some((index, tape)) => self.rekey(*drive, index, &tape, *kek).await,
                None => Ok(()),
            },
        }
    }

    async fn pick(&self, tape: usize) -> Option<(usize, Tape)> {
        let tapes = self.tapes.lock().await;
        let index = tape.checked_rem(tapes.len())?;
        Some((index, tapes[index].clone()))
    }

    async fn create(&self, drive: usize) -> Result<(), TestCaseError> {
        let asker = &self.drives[drive];
        let request = CreateRequest {
            request_id: Uuid::new_v4(),
            drive: shown(asker),
            volser: "RANDOM".parse().unwrap(),
            kek1: None,
            kek2: None,
        };
        let answer = self.bench.service.create(&asker.peer, &request).await;
        let Some(answer) = self.judged(drive, request.request_id, answer).await? else {
            return Ok(());
        };
        let tape = Tape {
            sets: vec![answer.eedks.into_iter().map(|eedk| eedk.eedk).collect()],
            key: data_key(asker, &answer.sedk),
        };
        self.tapes.lock().await.push(tape);
        Ok(())
    }

    async fn resolve(
        &self,
        drive: usize,
        eedks: Vec<Base64>,
        key: [u8; 32],
        append: bool,
    ) -> Result<(), TestCaseError> {
        let asker = &self.drives[drive];
        let request = ResolveRequest {
            request_id: Uuid::new_v4(),
            drive: shown(asker),
            volser: None,
            eedks,
            append,
        };
        let answer = self.bench.service.resolve(&asker.peer, &request).await;
        if let Some(answer) = self.judged(drive, request.request_id, answer).await? {
            prop_assert!(
                data_key(asker, &answer.sedk) == key,
                "a cartridge opened to another key"
            );
        }
        Ok(())
    }

    async fn rekey(
        &self,
        drive: usize,
        index: usize,
        tape: &Tape,
        kek: usize,
    ) -> Result<(), TestCaseError> {
        let asker = &self.drives[drive];
        let request = RekeyRequest {
            request_id: Uuid::new_v4(),
            serial: asker.soft.serial().clone(),
            volser: "RANDOM".parse().unwrap(),
            eedks: tape.sets.last().unwrap().clone(),
            kek1: label(kek).parse().unwrap(),
            kek2: None,
        };
        let answer = self.bench.service.rekey(&asker.peer, &request).await;
        if let Some(answer) = self.judged(drive, request.request_id, answer).await? {
            let set = answer.eedks.into_iter().map(|eedk| eedk.eedk).collect();
            self.tapes.lock().await[index].sets.push(set);
        }
        Ok(())
    }

    /// Holds an answer against what must be so, whatever the tokens do.
    async fn judged<T>(
        &self,
        drive: usize,
        id: Uuid,
        answer: Result<audit::Audited<T>, Problem>,
    ) -> Result<Option<T>, TestCaseError> {
        match answer {
            Ok(answer) => {
                prop_assert!(self.enrolled[drive], "a drive that was removed got a key");
                self.answered.lock().await.insert(id.to_string());
                Ok(Some(answer.into_inner()))
            }
            Err(problem) if !self.enrolled[drive] => {
                prop_assert_eq!(problem.code, EkmCode::EF01, "{}", problem);
                Ok(None)
            }
            // The key service may be out of order; the cartridge never is, nor the drive.
            Err(problem) => {
                prop_assert_eq!(problem.code, EkmCode::EE0F, "{}", problem);
                Ok(None)
            }
        }
    }

    /// With both tokens well again, everything that was ever written is read.
    async fn end(mut self) -> Result<(), TestCaseError> {
        self.pair.faulty.iter().for_each(Faulty::heal);
        for bridge in self.bench.service.tokens().bridges() {
            let back = tokio::time::timeout(Duration::from_secs(30), bridge.serving()).await;
            prop_assert!(back.is_ok(), "{:?} did not come back", bridge.state());
        }
        self.bench.enrol(&self.drives[0]).await;
        self.enrolled[0] = true;
        let tapes = self.tapes.lock().await.clone();
        for tape in &tapes {
            for eedks in &tape.sets {
                let before = self.answered.lock().await.len();
                self.resolve(0, eedks.clone(), tape.key, false).await?;
                prop_assert!(
                    self.answered.lock().await.len() > before,
                    "what was written cannot be read"
                );
            }
        }
        let answered = self.answered.into_inner();
        let directory = self.bench.config.audit.clone();
        let Bench {
            service,
            directory: kept,
            ..
        } = self.bench;
        // Writes what is queued.
        drop(Arc::try_unwrap(service).unwrap());
        if answered.is_empty() {
            // Perhaps nobody asked for anything, and then there is no log.
            return Ok(());
        }
        let verified = audit::verify(&directory);
        prop_assert!(verified.is_ok(), "{:?}", verified.err());
        let recorded: BTreeSet<String> = audit::read(&directory)
            .unwrap()
            .filter_map(Result::ok)
            .filter(|record| record.event.outcome == Outcome::Success)
            .filter_map(|record| record.event.request)
            .collect();
        let missing: Vec<&String> = answered.difference(&recorded).collect();
        prop_assert!(missing.is_empty(), "answered without a record: {missing:?}");
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

#[test]
fn whatever_happens_to_two_tokens_what_was_written_can_be_read() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let pair = runtime.block_on(Pair::new());
    let cases = std::env::var("EKM_TEST_CASES")
        .ok()
        .map_or(16, |cases| cases.parse().unwrap());
    let regressions = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/integration/interleavings.proptest-regressions"
    );
    let mut runner = TestRunner::new(Config {
        cases,
        // Each case takes a second; a smaller one is worth some of them.
        max_shrink_iters: 40,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(regressions))),
        ..Config::default()
    });
    let outcome = runner.run(&steps(), |steps| {
        runtime.block_on(async {
            let mut case = Case::new(&pair).await;
            for step in &steps {
                case.step(step).await?;
            }
            case.end().await
        })
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}
