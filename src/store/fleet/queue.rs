//! What was given out while the database was out of reach, on the local disk until it is in the
//! database: one sealed line each, synced before its answer leaves.

use std::collections::{HashMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::local::{Kind, LocalKeys, Sealed, Verdict};
use crate::drive::DriveSerial;
use crate::files;
use crate::key::DataKeyId;
use crate::store::{EedkDigest, EedkState, Issuance, Origin, RequestKey, VolumeKey};
use crate::tls::PeerId;

/// Longest file, bytes: some hundred thousand creates.
const MAX_FILE: u64 = 1 << 30;

/// One fact that the database does not have yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Entry {
    /// EEDKs were given out.
    Issue {
        issuance: Box<Issuance>,
        #[serde(with = "time::serde::rfc3339")]
        at: OffsetDateTime,
    },
    /// A drive told what became of them.
    Confirm {
        request: String,
        dki: DataKeyId,
        drive: DriveSerial,
        stored: bool,
        peer: PeerId,
    },
}

/// The queue of one server.
#[derive(Debug)]
pub(super) struct Queue {
    path: PathBuf,
    held: Mutex<Held>,
    // Of whoever changes the file.
    turn: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Debug, Default)]
struct Held {
    waiting: VecDeque<Entry>,
    // Lines of before the start whose seal no key that is here has verified.
    unverified: Vec<String>,
    // Lines that are not as they were written, and are left for an operator.
    rejected: Vec<String>,
    requests: HashMap<RequestKey, Issued>,
    eedks: HashMap<EedkDigest, Origin>,
    keys: HashMap<DataKeyId, RequestKey>,
}

#[derive(Debug)]
struct Issued {
    issuance: Issuance,
    at: OffsetDateTime,
    state: EedkState,
}

/// What is in the queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Waiting {
    /// Creates whose EEDKs are here only.
    pub(super) issued: usize,
    /// All lines that wait.
    pub(super) lines: usize,
    /// Lines whose seal does not verify.
    pub(super) rejected: usize,
}

impl Queue {
    /// Reads what an earlier run left. A last line without its end was never answered.
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        let path = directory.join("fleet-queue.jsonl");
        let text = match files::read_limited(&path, MAX_FILE) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let whole = text
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |at| at + 1);
        if whole < text.len() {
            let file = OpenOptions::new().write(true).open(&path)?;
            file.set_len(u64::try_from(whole).unwrap_or_default())?;
            file.sync_all()?;
        }
        let text = text.get(..whole).unwrap_or_default();
        let unverified = String::from_utf8_lossy(text)
            .lines()
            .map(str::to_owned)
            .collect();
        Ok(Self {
            path,
            held: Mutex::new(Held {
                unverified,
                ..Held::default()
            }),
            turn: Arc::default(),
        })
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at lines of before the start with the keys that are here.
    pub(super) fn verify(&self, keys: &LocalKeys) {
        let mut held = self.held();
        if held.unverified.is_empty() || !keys.any() {
            return;
        }
        let mut good = Vec::new();
        let mut unknown = Vec::new();
        for line in std::mem::take(&mut held.unverified) {
            let sealed = serde_json::from_str::<Sealed>(&line).ok();
            let verdict = sealed.as_ref().map(|one| keys.verify(Kind::Queue, one));
            let entry = sealed.and_then(|one| serde_json::from_str::<Entry>(&one.body).ok());
            match (verdict, entry) {
                (Some(Verdict::Good), Some(entry)) => good.push(entry),
                (Some(Verdict::Unknown), _) => unknown.push(line),
                (Some(Verdict::Good | Verdict::Bad), _) | (None, _) => {
                    tracing::error!(
                        file = %self.path.display(),
                        "a line of the history's queue is not as it was written; it is left there and not brought into the database"
                    );
                    held.rejected.push(line);
                }
            }
        }
        held.unverified = unknown;
        // They are older than what came since the start.
        let later = std::mem::take(&mut held.waiting);
        for entry in good.into_iter().chain(later) {
            held.put(entry);
        }
    }

    /// Whether there are lines of before the start that no key that is here has verified: what is not
    /// found may be in one of them.
    pub(super) fn is_unread(&self) -> bool {
        !self.held().unverified.is_empty()
    }

    /// Adds a fact. On the disk when it returns.
    pub(super) async fn add(&self, keys: &LocalKeys, entry: Entry) -> io::Result<()> {
        let body = serde_json::to_string(&entry)?;
        let mut line = serde_json::to_vec(&keys.seal(Kind::Queue, body))?;
        line.push(b'\n');
        let turn = Arc::clone(&self.turn).lock_owned().await;
        let path = self.path.clone();
        // The turn goes along: the work goes on also where nobody waits for it any more.
        let (written, turn) = tokio::task::spawn_blocking(move || (append(&path, &line), turn))
            .await
            .map_err(io::Error::other)?;
        written?;
        self.held().put(entry);
        drop(turn);
        Ok(())
    }

    /// What is to be brought in next.
    pub(super) fn next(&self) -> Option<Entry> {
        self.held().waiting.front().cloned()
    }

    /// That it is in the database. After the last one the file has only what nobody may believe.
    pub(super) async fn done(&self, entry: &Entry) -> io::Result<()> {
        let turn = Arc::clone(&self.turn).lock_owned().await;
        let rest = {
            let mut held = self.held();
            if held.waiting.front() != Some(entry) {
                return Ok(());
            }
            held.take();
            held.waiting.is_empty().then(|| {
                let left = held.unverified.iter().chain(&held.rejected);
                left.map(|line| format!("{line}\n")).collect::<String>()
            })
        };
        if let Some(rest) = rest {
            let path = self.path.clone();
            return tokio::task::spawn_blocking(move || {
                let written = files::write_private(&path, rest.as_bytes());
                drop(turn);
                written
            })
            .await
            .map_err(io::Error::other)?;
        }
        Ok(())
    }

    /// How much there is.
    pub(super) fn waiting(&self) -> Waiting {
        let held = self.held();
        Waiting {
            issued: held.requests.len(),
            lines: held.waiting.len() + held.unverified.len(),
            rejected: held.rejected.len(),
        }
    }

    /// What a request was given.
    pub(super) fn answered(&self, request: &RequestKey) -> Option<([u8; 32], VolumeKey)> {
        let held = self.held();
        let issued = held.requests.get(request)?;
        Some((issued.issuance.digest, issued.key()))
    }

    /// Where an EEDK's data key comes from.
    pub(super) fn issued(&self, eedk: &EedkDigest) -> Option<Origin> {
        self.held().eedks.get(eedk).copied()
    }

    /// What was given of a data key.
    pub(super) fn data_key(&self, dki: &DataKeyId) -> Option<VolumeKey> {
        let held = self.held();
        let request = held.keys.get(dki)?;
        held.requests.get(request).map(Issued::key)
    }

    /// What a request gave of that data key to that drive, whoever asked.
    pub(super) fn given(
        &self,
        request: &str,
        dki: &DataKeyId,
        drive: &DriveSerial,
    ) -> Option<VolumeKey> {
        self.data_key(dki).filter(|key| key.drive == *drive)?;
        let held = self.held();
        let key = held.keys.get(dki).filter(|key| key.id == request)?;
        held.requests.get(key).map(Issued::key)
    }
}

impl Held {
    fn put(&mut self, entry: Entry) {
        match &entry {
            Entry::Issue { issuance, at } => {
                for stored in &issuance.eedks {
                    self.eedks.insert(stored.eedk.digest(), issuance.origin);
                }
                self.keys.insert(issuance.dki, issuance.request.clone());
                self.requests.insert(
                    issuance.request.clone(),
                    Issued {
                        issuance: issuance.as_ref().clone(),
                        at: *at,
                        state: EedkState::Issued,
                    },
                );
            }
            Entry::Confirm { dki, stored, .. } => {
                if let Some(issued) = self
                    .keys
                    .get(dki)
                    .and_then(|request| self.requests.get_mut(request))
                    // What was said first stands.
                    .filter(|issued| issued.state == EedkState::Issued)
                {
                    issued.state = if *stored {
                        EedkState::Confirmed
                    } else {
                        EedkState::Abandoned
                    };
                }
            }
        }
        self.waiting.push_back(entry);
    }

    /// Takes the first one out. What it said stays known until nothing waits any more, so that a
    /// confirm finds it wherever it is looked for.
    fn take(&mut self) {
        self.waiting.pop_front();
        if self.waiting.is_empty() {
            self.requests.clear();
            self.eedks.clear();
            self.keys.clear();
        }
    }
}

impl Issued {
    fn key(&self) -> VolumeKey {
        let Issuance {
            request: _,
            digest: _,
            dki,
            volser,
            drive,
            token,
            custody,
            origin: _,
            new: _,
            eedks,
            server,
            job,
        } = &self.issuance;
        VolumeKey {
            volser: volser.clone(),
            dki: *dki,
            generation: 1,
            state: self.state,
            drive: drive.clone(),
            token: token.clone(),
            custody: *custody,
            created: self.at,
            server: server.clone(),
            job: job.clone(),
            eedks: eedks.clone(),
        }
    }
}

fn append(path: &Path, line: &[u8]) -> io::Result<()> {
    let fresh = !path.exists();
    let mut file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)?;
    let before = file.metadata()?.len();
    // A file that is longer is not read any more at the next start.
    if u64::try_from(line.len()).is_ok_and(|more| before + more > MAX_FILE) {
        return Err(io::Error::new(
            io::ErrorKind::StorageFull,
            format!(
                "{} is full, and nothing more is given out until the state database is back",
                path.display()
            ),
        ));
    }
    let written = file.write_all(line).and_then(|()| file.sync_all());
    if let Err(error) = written {
        // Half a line would join the next one; nobody was answered by it.
        file.set_len(before)?;
        return Err(error);
    }
    if fresh && let Some(folder) = path.parent() {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bridge::message::Custody;
    use crate::key::{Eedk, KekHash, KekId, OaepHash, WrapAlgorithm};
    use crate::store::StoredEedk;

    fn issue(number: u8) -> Entry {
        let dki = DataKeyId::from_random([number; 9]);
        let kek = KekId::Label("KEK1".parse().unwrap());
        let wrap = WrapAlgorithm::oaep(OaepHash::Sha256, true);
        Entry::Issue {
            issuance: Box::new(Issuance {
                request: RequestKey {
                    peer: "drive:000007800001".parse().unwrap(),
                    id: format!("r{number}"),
                },
                digest: [number; 32],
                dki,
                volser: "VOL001".parse().unwrap(),
                drive: "000007800001".parse().unwrap(),
                token: "main".to_owned(),
                custody: Custody::Token,
                origin: Origin::Ours,
                new: true,
                eedks: vec![StoredEedk {
                    eedk: Eedk::new(dki, kek, wrap, vec![number; 256]).unwrap(),
                    kek_label: "KEK1".parse().unwrap(),
                    kek_hash: KekHash::of_spki(b"k"),
                    proved: true,
                }],
                server: "a".to_owned(),
                job: None,
            }),
            at: OffsetDateTime::from_unix_timestamp(1_790_000_000).unwrap(),
        }
    }

    fn keys(directory: &Path) -> LocalKeys {
        let keys = LocalKeys::open(directory, "a");
        keys.take_in("main", [1; 16], [2; 32]).unwrap();
        keys
    }

    #[tokio::test]
    async fn what_was_queued_is_there_after_a_restart_in_its_order() {
        let directory = tempfile::tempdir().unwrap();
        let keys = keys(directory.path());
        let queue = Queue::open(directory.path()).unwrap();
        for number in 1..=3 {
            queue.add(&keys, issue(number)).await.unwrap();
        }
        let Entry::Issue { issuance, .. } = issue(2) else {
            panic!("no issue")
        };
        let (digest, key) = queue.answered(&issuance.request).unwrap();
        assert_eq!((digest, key.state), ([2; 32], EedkState::Issued));
        drop(queue);

        // A power cut in the middle of a line that nobody was answered by.
        let path = directory.path().join("fleet-queue.jsonl");
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"{\"body\":\"half").unwrap();
        let queue = Queue::open(directory.path()).unwrap();
        assert_eq!((queue.next(), queue.waiting().lines), (None, 3));
        queue.verify(&keys);
        queue.add(&keys, issue(4)).await.unwrap();
        for number in 1..=4 {
            assert_eq!(queue.next(), Some(issue(number)));
            queue.done(&issue(number)).await.unwrap();
        }
        assert_eq!(queue.waiting(), Waiting::default());
        assert_eq!(std::fs::read(&path).unwrap(), b"");
    }

    #[tokio::test]
    async fn a_line_that_somebody_else_wrote_is_not_brought_in() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("fleet-queue.jsonl");
        let keys = keys(directory.path());
        let queue = Queue::open(directory.path()).unwrap();
        queue.add(&keys, issue(1)).await.unwrap();
        let forged = std::fs::read_to_string(&path)
            .unwrap()
            .replace("VOL001", "VOL002");
        std::fs::write(&path, &forged).unwrap();
        let queue = Queue::open(directory.path()).unwrap();
        queue.verify(&keys);
        queue.add(&keys, issue(2)).await.unwrap();
        let waiting = queue.waiting();
        assert_eq!((waiting.lines, waiting.rejected), (1, 1));
        queue.done(&issue(2)).await.unwrap();
        // It stays for whoever finds out where it came from.
        assert_eq!(std::fs::read_to_string(&path).unwrap(), forged);
    }

    #[tokio::test]
    async fn a_confirm_is_known_with_what_it_confirms() {
        let directory = tempfile::tempdir().unwrap();
        let keys = keys(directory.path());
        let queue = Queue::open(directory.path()).unwrap();
        queue.add(&keys, issue(1)).await.unwrap();
        let (dki, drive) = (
            DataKeyId::from_random([1; 9]),
            "000007800001".parse().unwrap(),
        );
        assert!(queue.given("r2", &dki, &drive).is_none());
        assert!(queue.given("r1", &dki, &drive).is_some());
        for stored in [true, false] {
            let confirm = Entry::Confirm {
                request: "r1".to_owned(),
                dki,
                drive: drive.clone(),
                stored,
                peer: "drive:000007800001".parse().unwrap(),
            };
            queue.add(&keys, confirm).await.unwrap();
            assert_eq!(queue.data_key(&dki).unwrap().state, EedkState::Confirmed);
        }
    }
}
