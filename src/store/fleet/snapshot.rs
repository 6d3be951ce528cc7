//! The cached table: what requests need of the database, as it was last read.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize, Serializer};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::local::{Kind, LocalKeys, Sealed, Verdict};
use crate::copies::KekCopy;
use crate::files;
use crate::key::KekHash;
use crate::store::{
    Backup, Backups as _, Certificates, Defaults, Drive, FailedOpening, KekLife as _, KekStanding,
    KekStates, KeyServer, RegisteredKek, Servers as _, Sql, Store as _, StoreError,
};

/// Newest backups that are kept of the list: which KEKs are in one.
const BACKUPS: u32 = 100;

/// Longest file, bytes.
const MAX_FILE: u64 = 256 << 20;

/// How far ahead of this clock a file's time may be.
const AHEAD: Duration = Duration::from_secs(60);

/// What was read of the database.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Snapshot {
    #[serde(with = "time::serde::rfc3339")]
    pub(super) taken: OffsetDateTime,
    pub(super) drives: Vec<Drive>,
    pub(super) keks: Vec<RegisteredKek>,
    pub(super) certificates: Certificates,
    pub(super) copies: Vec<KekCopy>,
    pub(super) defaults: Defaults,
    pub(super) failed: Vec<FailedOpening>,
    pub(super) servers: Vec<KeyServer>,
    pub(super) backups: Vec<Backup>,
    states: Vec<(KekHash, KekStanding)>,
    /// The secret of throw-away keys, hexadecimal.
    #[serde(serialize_with = "exposed")]
    guard: SecretString,
}

fn exposed<S: Serializer>(secret: &SecretString, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(secret.expose_secret())
}

impl Snapshot {
    /// Reads it anew.
    pub(super) async fn read(sql: &Sql) -> Result<Self, StoreError> {
        // Before it is read: what it says is at least as new as that.
        let taken = OffsetDateTime::now_utc();
        let (drives, keks) = (sql.drives().await?, sql.keks().await?);
        let (certificates, copies) = (sql.certificates().await?, sql.kek_copies().await?);
        let guard = Zeroizing::new(sql.guard_secret().await?);
        let guard = Zeroizing::new(hex::encode(guard.as_slice()));
        Ok(Self {
            taken,
            drives,
            keks: keks.to_vec(),
            certificates: certificates.as_ref().clone(),
            copies: copies.to_vec(),
            defaults: sql.defaults().await?,
            failed: sql.failed_openings().await?,
            servers: sql.servers().await?,
            backups: sql.backups(BACKUPS).await?,
            states: sql.kek_states().await?.all(),
            guard: SecretString::from(guard.as_str()),
        })
    }

    pub(super) fn kek_states(&self) -> Arc<KekStates> {
        Arc::new(self.states.iter().cloned().collect())
    }

    /// The number of the newest change of a KEK's state.
    pub(super) fn newest_state(&self) -> i64 {
        let rows = self.states.iter().map(|(_, standing)| standing.row);
        rows.max().unwrap_or_default()
    }

    pub(super) fn guard(&self) -> Option<[u8; 32]> {
        let mut secret = [0; 32];
        hex::decode_to_slice(self.guard.expose_secret(), &mut secret).ok()?;
        Some(secret)
    }

    /// Whether both say the same, whenever they were taken and whoever was last there.
    pub(super) fn same_as(&self, other: &Self) -> bool {
        self.drives == other.drives
            && self.keks == other.keks
            && self.certificates == other.certificates
            && self.copies == other.copies
            && self.defaults == other.defaults
            && self.failed == other.failed
            && self.backups == other.backups
            && self.states == other.states
            && self.guard.expose_secret() == other.guard.expose_secret()
    }
}

/// A snapshot and its age.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) snapshot: Snapshot,
    since: Instant,
    before: Duration,
}

impl Held {
    pub(super) fn new(snapshot: Snapshot) -> Self {
        let before = age_of(snapshot.taken);
        Self {
            snapshot,
            since: Instant::now(),
            before,
        }
    }

    /// The greater of what the two clocks say, so that setting one back makes nothing younger.
    pub(super) fn age(&self) -> Duration {
        age_of(self.snapshot.taken).max(self.before + self.since.elapsed())
    }
}

fn age_of(taken: OffsetDateTime) -> Duration {
    Duration::try_from(OffsetDateTime::now_utc() - taken).unwrap_or_default()
}

/// The cached table on the disk.
pub(super) fn path(directory: &Path) -> PathBuf {
    directory.join("fleet-cache.json")
}

/// Writes it, sealed.
pub(super) fn save(directory: &Path, keys: &LocalKeys, held: &Held) -> std::io::Result<()> {
    let sealed = keys.seal(Kind::Cache, serde_json::to_string(&held.snapshot)?);
    let text = Zeroizing::new(serde_json::to_vec(&sealed)?);
    // The guard's secret is in it.
    drop(Zeroizing::new(sealed.body));
    files::write_private(&path(directory), &text)
}

/// Reads what was written; nothing in it is believed before [`verified`].
pub(super) fn load(directory: &Path) -> Result<Sealed, String> {
    let path = path(directory);
    let fail = |why: String| format!("{}: {why}", path.display());
    let text = files::read_limited(&path, MAX_FILE).map_err(|error| fail(error.to_string()))?;
    let text = Zeroizing::new(text);
    serde_json::from_slice(&text).map_err(|error| fail(error.to_string()))
}

/// The cached table, if its seal is by a key that is here and it is not too old.
pub(super) fn verified(sealed: &Sealed, keys: &LocalKeys, most: Duration) -> Result<Held, String> {
    match keys.verify(Kind::Cache, sealed) {
        Verdict::Good => {}
        Verdict::Bad => return Err("its seal does not verify: it was changed".to_owned()),
        Verdict::Unknown => {
            return Err("no token that is ready has the key of its seal".to_owned());
        }
    }
    let snapshot: Snapshot =
        serde_json::from_str(&sealed.body).map_err(|error| error.to_string())?;
    if snapshot.taken > OffsetDateTime::now_utc() + AHEAD {
        return Err("its time is ahead of this computer's clock".to_owned());
    }
    let held = Held::new(snapshot);
    if held.age() > most {
        return Err(format!(
            "it is {} s old, and database.cache_seconds = {}",
            held.age().as_secs(),
            most.as_secs()
        ));
    }
    Ok(held)
}
