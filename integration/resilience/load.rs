//! Eight drives that write and read all the time, each on a connection of its own.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ekm::api::{Base64, CreateRequest, DriveInRequest, ResolveRequest};
use ekm::client::{ClientError, KeyClient};
use ekm::key::{DataKeyId, Sedk};
use ekm::problem::Problem;
use secrecy::ExposeSecret as _;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::site::Site;
use crate::support::{Kind, TestDrive, drive};

/// Drives, and connections.
pub(super) const DRIVES: u32 = 8;

/// One in so many requests is a create.
const CREATES: u32 = 4;

/// What a drive asked and how it went.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) id: Uuid,
    pub(super) verb: &'static str,
    pub(super) sent: Instant,
    pub(super) done: Instant,
    /// Why there was no 200.
    pub(super) failed: Option<String>,
    /// The token that gave the answer, once the records have been read.
    pub(super) token: Option<String>,
    /// The refusal, where the server gave one.
    refused: Option<Problem>,
}

impl Asked {
    fn new(id: Uuid, verb: &'static str, sent: Instant, failed: Option<&ClientError>) -> Self {
        Self {
            id,
            verb,
            sent,
            done: Instant::now(),
            failed: failed.map(ToString::to_string),
            token: None,
            refused: match failed {
                Some(ClientError::Refused(problem)) => Some(problem.clone()),
                _ => None,
            },
        }
    }

    /// What the answer's record must say: no code, or that of the refusal.
    /// None where there was no answer of the service.
    pub(super) fn answer(&self) -> Option<Option<String>> {
        match (&self.failed, &self.refused) {
            (None, _) => Some(None),
            (Some(_), Some(problem)) => Some(Some(problem.code.to_string())),
            (Some(_), None) => None,
        }
    }
}

/// A cartridge, and the data key that its create gave to the drive.
struct Tape {
    dki: DataKeyId,
    eedks: Vec<Base64>,
    key: [u8; 32],
}

/// What all drives share.
#[derive(Default)]
struct Shared {
    tapes: Mutex<Vec<Tape>>,
    asked: Mutex<Vec<Asked>>,
    wrong: Mutex<Vec<String>>,
    /// Microseconds from one request of a drive to its next; 0 for none.
    pace: AtomicU64,
    over: AtomicBool,
}

/// A load that runs until it is ended.
pub(super) struct Load {
    shared: Arc<Shared>,
    drives: Vec<JoinHandle<()>>,
}

impl Load {
    /// Enrols the drives and lets them ask as fast as they are answered.
    pub(super) async fn start(site: &Site, kind: Kind) -> Self {
        let shared = Arc::new(Shared::default());
        let mut drives = Vec::new();
        for n in 1..=DRIVES {
            let drive = drive(site.directory.path(), n, kind.form());
            site.enrol(&drive).await;
            let client = site.client(&drive.peer);
            drives.push(tokio::spawn(run(Arc::clone(&shared), drive, client, n)));
        }
        Self { shared, drives }
    }

    /// Has all drives together ask so many times in a second.
    pub(super) fn set_rate(&self, per_second: f64) {
        let pause = Duration::from_secs_f64(f64::from(DRIVES) / per_second);
        let pause = u64::try_from(pause.as_micros()).unwrap();
        self.shared.pace.store(pause, Ordering::Relaxed);
    }

    /// All requests that have ended so far, in the order in which they ended.
    pub(super) fn asked(&self) -> Vec<Asked> {
        lock(&self.shared.asked).clone()
    }

    /// Waits for the requests under way. Then all that was asked, and each
    /// data key that was not the cartridge's.
    pub(super) async fn end(self) -> (Vec<Asked>, Vec<String>) {
        self.shared.over.store(true, Ordering::Relaxed);
        for drive in self.drives {
            drive.await.unwrap();
        }
        let asked = lock(&self.shared.asked).clone();
        let wrong = lock(&self.shared.wrong).clone();
        (asked, wrong)
    }
}

async fn run(shared: Arc<Shared>, drive: TestDrive, mut client: KeyClient, n: u32) {
    // A walk through the cartridges of its own for each drive, the same in every run.
    let mut turn = n;
    let mut next = Instant::now();
    while !shared.over.load(Ordering::Relaxed) {
        turn = turn.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let (id, sent) = (Uuid::new_v4(), Instant::now());
        let mixed = turn >> 16;
        let picked = {
            let tapes = lock(&shared.tapes);
            let at = usize::try_from(mixed).unwrap() % tapes.len().max(1);
            let create = mixed.is_multiple_of(CREATES);
            let tape = tapes.get(at).filter(|_| !create);
            tape.map(|tape| (tape.dki, tape.eedks.clone(), tape.key))
        };
        let (verb, outcome) = match picked {
            None => ("create", create(&shared, &drive, &mut client, id).await),
            Some((dki, eedks, key)) => {
                let outcome = resolve(&drive, &mut client, id, eedks).await;
                let outcome = outcome.map(|(got, opened)| {
                    if (got, opened) != (dki, key) {
                        lock(&shared.wrong).push(format!("{dki}: resolve {id} gave another key"));
                    }
                });
                ("resolve", outcome)
            }
        };
        lock(&shared.asked).push(Asked::new(id, verb, sent, outcome.as_ref().err()));
        let pace = Duration::from_micros(shared.pace.load(Ordering::Relaxed));
        // What could not be asked in time is not asked later.
        next = (next + pace).max(Instant::now());
        tokio::time::sleep_until(next.into()).await;
    }
}

/// What a drive asks that is in no table.
pub(super) async fn stranger(site: &Site, kind: Kind) -> Asked {
    let drive = drive(site.directory.path(), DRIVES + 1, kind.form());
    let mut client = site.client(&drive.peer);
    let (id, sent) = (Uuid::new_v4(), Instant::now());
    let outcome = create(&Shared::default(), &drive, &mut client, id).await;
    Asked::new(id, "create", sent, outcome.as_ref().err())
}

async fn create(
    shared: &Shared,
    drive: &TestDrive,
    client: &mut KeyClient,
    request_id: Uuid,
) -> Result<(), ClientError> {
    let request = CreateRequest {
        job: None,
        request_id,
        drive: shown(drive),
        volser: "LOAD01".parse().unwrap(),
        kek1: None,
        kek2: None,
    };
    let answer = client.create(&request).await?;
    assert_eq!(answer.request_id, request_id);
    let tape = Tape {
        dki: answer.dki,
        eedks: answer.eedks.into_iter().map(|eedk| eedk.eedk).collect(),
        key: open(drive, &answer.sedk),
    };
    lock(&shared.tapes).push(tape);
    Ok(())
}

async fn resolve(
    drive: &TestDrive,
    client: &mut KeyClient,
    request_id: Uuid,
    eedks: Vec<Base64>,
) -> Result<(DataKeyId, [u8; 32]), ClientError> {
    let request = ResolveRequest {
        dki: None,
        request_id,
        drive: shown(drive),
        volser: None,
        eedks,
        append: false,
    };
    let answer = client.resolve(&request).await?;
    assert_eq!(answer.request_id, request_id);
    Ok((answer.dki, open(drive, &answer.sedk)))
}

/// The data key, as the drive unwraps it.
fn open(drive: &TestDrive, sedk: &Sedk) -> [u8; 32] {
    *drive.soft.unwrap_sedk(sedk).unwrap().expose_secret()
}

fn shown(drive: &TestDrive) -> DriveInRequest {
    DriveInRequest {
        serial: drive.soft.serial().clone(),
        stores_eedks: true,
        public_key: None,
        session_key: None,
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
