//! The state in a database: SQLite in one file beside the server, or
//! PostgreSQL where several servers share it. The statements are the same.
//!
//! SQLite: write-ahead log with `synchronous = FULL`; writers take the lock
//! when they begin, so none fails half-way. PostgreSQL: a commit waits for the
//! disk, and for the synchronous replica where there is one, whatever the
//! role's own setting is; what must not happen twice takes a lock of the
//! transaction. Either way a commit that returned is durable.

mod approvals;
mod backups;
mod births;
mod drives;
mod evidence;
mod fields;
mod history;
mod kek_life;
mod openings;
mod pages;
mod partners;
mod rekeys;
mod rows;
mod servers;
mod sightings;
mod sync;
mod tables;
mod take;
mod volumes;

pub use rows::{Filling, Snapshot};

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sha2::{Digest, Sha256};
use sqlx::any::{AnyConnectOptions, AnyPoolOptions, AnyRow};
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Any, AnyConnection, AnyPool, ConnectOptions, Transaction};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{
    Birth, Certificates, DatabaseConfig, Defaults, Drive, FailedOpening, Forgiven, Issuance,
    Issued, Opening, Origin, Partner, RegisteredKek, RequestKey, Store, StoreError, VolumeKey,
};
use crate::copies::KekCopy;
use crate::drive::DriveSerial;
use crate::key::{DataKeyId, KekHash, KeyLabel};
use crate::tls::PeerId;
use crate::volser::Volser;
use fields::Fields;

/// Connections of one server to PostgreSQL.
const CONNECTIONS: u32 = 16;

/// How long a request waits for one of them, a new one included.
const CONNECTING: Duration = Duration::from_secs(5);

/// Which statements of the state a program knows. The database says the least
/// that may still use it (`schema` in its settings).
const SCHEMA: i64 = 5;

/// What only one of the two databases wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialect {
    Sqlite,
    Postgres,
}

/// The state in a database.
#[derive(Clone)]
pub struct Sql {
    name: Arc<str>,
    dialect: Dialect,
    pool: AnyPool,
}

// The pool's own would show the connection's options, a password among them.
impl std::fmt::Debug for Sql {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sql")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Sql {
    /// Opens the database that the configuration names, else `state.db` in the
    /// directory, and brings it up to date.
    ///
    /// # Errors
    /// It cannot be reached or opened, or a newer version has changed it so
    /// that this one must not use it.
    pub async fn open(
        directory: &Path,
        database: Option<&DatabaseConfig>,
    ) -> Result<Self, StoreError> {
        match database {
            Some(database) => Self::postgres(database).await,
            None => Self::sqlite(directory).await,
        }
    }

    /// Opens `state.db` in the directory, making it and bringing it up to date.
    ///
    /// # Errors
    /// The file cannot be opened, or was written by a newer version.
    pub async fn sqlite(directory: &Path) -> Result<Self, StoreError> {
        Self::sqlite_as_of(directory, None).await
    }

    /// The same with these migrations only: the tables of an older version.
    ///
    /// # Errors
    /// As for [`sqlite`](Self::sqlite), or this version does not know them all.
    pub async fn sqlite_as_of(
        directory: &Path,
        versions: Option<&[i64]>,
    ) -> Result<Self, StoreError> {
        crate::files::private_dir(directory).map_err(|source| StoreError::Directory {
            path: directory.to_owned(),
            source,
        })?;
        let path = directory.join("state.db");
        let name: Arc<str> = path.display().to_string().into();
        let url = SqliteConnectOptions::new()
            .filename(&path)
            .create_if_missing(true)
            .to_url_lossy();
        let pool = AnyPoolOptions::new()
            // One: two connections that close at the same moment can deadlock
            // in SQLite (unixClose against the exclusive lock of WalClose,
            // seen with the bundled version), and there is one writer anyway.
            .max_connections(1)
            .idle_timeout(None)
            .max_lifetime(None)
            .test_before_acquire(false)
            .after_connect(|connection, _| {
                Box::pin(run(
                    connection,
                    // The time to wait first: the next may find another process at work.
                    "PRAGMA busy_timeout = 10000; PRAGMA journal_mode = WAL;
                     PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON",
                ))
            });
        let options = AnyConnectOptions::from_url(&url).map_err(|source| StoreError::Database {
            name: name.to_string(),
            source,
        })?;
        Self::connect(name, Dialect::Sqlite, pool, options, versions).await
    }

    /// Opens a PostgreSQL database and brings its tables up to date.
    ///
    /// # Errors
    /// It cannot be reached, does not let us in, or a newer version has
    /// changed it so that this one must not use it.
    pub async fn postgres(database: &DatabaseConfig) -> Result<Self, StoreError> {
        Self::postgres_as_of(database, None).await
    }

    /// The same with these migrations only: the tables of an older version.
    ///
    /// # Errors
    /// As for [`postgres`](Self::postgres), or this version does not know them all.
    pub async fn postgres_as_of(
        database: &DatabaseConfig,
        versions: Option<&[i64]>,
    ) -> Result<Self, StoreError> {
        let pool = AnyPoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(CONNECTING)
            .after_connect(|connection, _| {
                Box::pin(run(
                    connection,
                    // A role or a database may say less; remote_apply says more.
                    "SELECT set_config('synchronous_commit', 'on', false)
                       WHERE current_setting('synchronous_commit') NOT IN ('on', 'remote_apply');
                     SET statement_timeout = '20s'; SET idle_in_transaction_session_timeout = '20s'",
                ))
            });
        // A password may come from a command, which takes its time.
        let config = database.clone();
        let options = tokio::task::spawn_blocking(move || config.options())
            .await
            .map_err(|error| StoreError::Unconfigured {
                name: database.to_string(),
                why: error.to_string(),
            })??;
        Self::connect(
            database.to_string().into(),
            Dialect::Postgres,
            pool,
            options,
            versions,
        )
        .await
    }

    async fn connect(
        name: Arc<str>,
        dialect: Dialect,
        pool: AnyPoolOptions,
        options: AnyConnectOptions,
        versions: Option<&[i64]>,
    ) -> Result<Self, StoreError> {
        sqlx::any::install_default_drivers();
        let fail = |source| StoreError::Database {
            name: name.to_string(),
            source,
        };
        let pool = pool.connect_with(options).await.map_err(fail)?;
        let store = Self {
            name: Arc::clone(&name),
            dialect,
            pool,
        };
        store.migrate_to(versions).await?;
        Ok(store)
    }

    /// Makes what the tables lack. What newer versions added is left alone,
    /// so that servers of two versions can share a database for a while.
    async fn migrate(&self) -> Result<(), StoreError> {
        self.migrate_to(None).await
    }

    async fn migrate_to(&self, versions: Option<&[i64]>) -> Result<(), StoreError> {
        let fail = |source| StoreError::Migrate {
            name: self.name.to_string(),
            source,
        };
        let all: Migrator = match self.dialect {
            Dialect::Sqlite => sqlx::migrate!("src/store/migrations/sqlite"),
            Dialect::Postgres => sqlx::migrate!("src/store/migrations/postgres"),
        };
        if let Some(newer) = versions
            .into_iter()
            .flatten()
            .find(|version| !all.iter().any(|known| known.version == **version))
        {
            return Err(fail(MigrateError::VersionTooNew(*newer, SCHEMA)));
        }
        let mut migrator = rows::limited(all, versions);
        migrator.set_ignore_missing(true);
        migrator.run(&self.pool).await.map_err(fail)?;
        let least: Option<String> =
            sqlx::query_scalar("SELECT value FROM settings WHERE name = 'schema'")
                .fetch_optional(&self.pool)
                .await
                .map_err(|source| self.database(source))?;
        match least.map(|least| least.parse::<i64>()) {
            Some(Ok(least)) if least > SCHEMA => {
                Err(fail(MigrateError::VersionTooNew(least, SCHEMA)))
            }
            Some(Err(_)) => Err(StoreError::Damaged {
                name: self.name.to_string(),
                what: "schema".to_owned(),
            }),
            _ => Ok(()),
        }
    }

    /// When a commit returns, in the database's own words.
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn durability(&self) -> Result<String, StoreError> {
        if self.dialect == Dialect::Sqlite {
            return Ok("synchronous = FULL".to_owned());
        }
        let row = sqlx::query(
            "SELECT current_setting('synchronous_commit') AS waits,
                    current_setting('synchronous_standby_names') AS replicas",
        )
        .fetch_one(&self.pool)
        .await
        .map_err(|source| self.database(source))?;
        let row = self.row(&row);
        let (waits, replicas): (String, String) = (row.get("waits")?, row.get("replicas")?);
        Ok(if replicas.is_empty() {
            format!("synchronous_commit = {waits}, no synchronous replica")
        } else {
            format!("synchronous_commit = {waits}, synchronous_standby_names = {replicas}")
        })
    }

    /// Whether the database answers.
    pub(super) async fn ping(&self) -> Result<(), StoreError> {
        sqlx::query("SELECT 1")
            .execute(&self.pool)
            .await
            .map(drop)
            .map_err(|source| self.database(source))
    }

    /// [`Store::issue`] of what was given out at that time.
    pub(super) async fn issue_at(
        &self,
        issuance: &Issuance,
        at: OffsetDateTime,
    ) -> Result<Issued, StoreError> {
        self.insert_given_out(issuance, at).await
    }

    fn database(&self, source: sqlx::Error) -> StoreError {
        StoreError::Database {
            name: self.name.to_string(),
            source,
        }
    }

    async fn begin(&self) -> Result<Transaction<'static, Any>, StoreError> {
        match self.dialect {
            Dialect::Sqlite => self.pool.begin_with("BEGIN IMMEDIATE").await,
            Dialect::Postgres => self.pool.begin().await,
        }
        .map_err(|source| self.database(source))
    }

    /// Begins a transaction that adds to the history. It takes nothing else before this: whoever
    /// waits to be alone with the history must wait for nobody who waits behind it.
    async fn begin_history(&self) -> Result<Transaction<'static, Any>, StoreError> {
        let mut transaction = self.begin().await?;
        self.beside(&mut transaction, HISTORY).await?;
        Ok(transaction)
    }

    /// The database's own time: servers that share it need not agree on theirs.
    async fn clock(
        &self,
        transaction: &mut Transaction<'static, Any>,
    ) -> Result<OffsetDateTime, StoreError> {
        if self.dialect == Dialect::Sqlite {
            return Ok(OffsetDateTime::now_utc());
        }
        let row = sqlx::query(
            "SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT) AS micros",
        )
        .fetch_one(&mut **transaction)
        .await
        .map_err(|source| self.database(source))?;
        self.row(&row).time("micros")
    }

    /// Has the transaction alone with what that name stands for, over all
    /// servers, until it ends. An SQLite writer is alone in any case.
    async fn alone(
        &self,
        transaction: &mut Transaction<'static, Any>,
        name: &str,
    ) -> Result<(), StoreError> {
        if self.dialect == Dialect::Sqlite {
            return Ok(());
        }
        sqlx::query("SELECT 1 FROM (SELECT pg_advisory_xact_lock($1)) AS locked")
            .bind(lock_number(name))
            .fetch_one(&mut **transaction)
            .await
            .map(drop)
            .map_err(|source| self.database(source))
    }

    /// Has the transaction there together with others that say so of that name, and with none that
    /// is alone with it.
    async fn beside(
        &self,
        transaction: &mut Transaction<'static, Any>,
        name: &str,
    ) -> Result<(), StoreError> {
        if self.dialect == Dialect::Sqlite {
            return Ok(());
        }
        sqlx::query("SELECT 1 FROM (SELECT pg_advisory_xact_lock_shared($1)) AS locked")
            .bind(lock_number(name))
            .fetch_one(&mut **transaction)
            .await
            .map(drop)
            .map_err(|source| self.database(source))
    }

    async fn commit(&self, transaction: Transaction<'static, Any>) -> Result<(), StoreError> {
        transaction
            .commit()
            .await
            .map_err(|source| self.database(source))
    }

    fn row<'a>(&'a self, row: &'a AnyRow) -> Fields<'a> {
        Fields { store: self, row }
    }

    fn kek_of(&self, row: &AnyRow) -> Result<RegisteredKek, StoreError> {
        let row = self.row(row);
        Ok(RegisteredKek {
            label: row.parsed("label")?,
            hash: row.parsed("hash")?,
            spki: row.get("spki")?,
            bits: row.count("bits")?,
            token: row.get("token")?,
            custody: row.parsed("custody")?,
            provenance: row.json("provenance")?,
        })
    }
}

/// Who adds a label, to the KEKs or to the partners, is alone with it.
fn label_lock(label: &KeyLabel) -> String {
    format!("label {}", label.folded())
}

/// Held by each transaction that adds to the history, beside the others.
const HISTORY: &str = "history";

/// The number by which PostgreSQL locks a name.
fn lock_number(name: &str) -> i64 {
    Sha256::digest(name)
        .first_chunk()
        .map_or(0, |bytes| i64::from_be_bytes(*bytes))
}

async fn run(connection: &mut AnyConnection, statements: &'static str) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(statements)
        .execute(connection)
        .await
        .map(drop)
}

/// Microseconds since 1970, for order and search.
fn ticks(time: OffsetDateTime) -> i64 {
    i64::try_from(time.unix_timestamp_nanos() / 1000).unwrap_or(i64::MAX)
}

fn text(time: OffsetDateTime) -> String {
    time.format(&Rfc3339).unwrap_or_default()
}

fn now() -> String {
    text(OffsetDateTime::now_utc())
}

fn json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

#[async_trait]
impl Store for Sql {
    async fn drive(&self, serial: &DriveSerial) -> Result<Option<Drive>, StoreError> {
        self.one_drive(serial).await
    }

    async fn drives(&self) -> Result<Vec<Drive>, StoreError> {
        self.all_drives().await
    }

    async fn put_drive(&self, drive: &Drive) -> Result<(), StoreError> {
        self.replace_drive(drive).await
    }

    async fn change_drive(&self, before: Option<&Drive>, drive: &Drive) -> Result<(), StoreError> {
        self.exchange_drive(before, drive).await
    }

    async fn discover_drive(&self, drive: &Drive) -> Result<bool, StoreError> {
        self.discovered(drive).await
    }

    async fn delete_drive(&self, serial: &DriveSerial) -> Result<bool, StoreError> {
        self.remove_drive(serial).await
    }

    async fn keks(&self) -> Result<Arc<[RegisteredKek]>, StoreError> {
        sqlx::query("SELECT * FROM keks ORDER BY folded")
            .fetch_all(&self.pool)
            .await
            .map_err(|source| self.database(source))?
            .iter()
            .map(|row| self.kek_of(row))
            .collect()
    }

    async fn register_kek(&self, kek: &RegisteredKek) -> Result<(), StoreError> {
        let RegisteredKek { label, hash, .. } = kek;
        let mut transaction = self.begin().await?;
        self.alone(&mut transaction, &label_lock(label)).await?;
        let taken: Option<String> = sqlx::query_scalar("SELECT hash FROM keks WHERE folded = $1")
            .bind(label.folded())
            .fetch_optional(&mut *transaction)
            .await
            .map_err(|source| self.database(source))?;
        match taken {
            Some(registered) if registered == hash.to_string() => return Ok(()),
            Some(registered) => {
                return Err(StoreError::LabelTaken {
                    label: label.to_string(),
                    registered,
                    got: hash.to_string(),
                });
            }
            None => {}
        }
        self.put_kek(&mut transaction, kek, OffsetDateTime::now_utc())
            .await?;
        self.commit(transaction).await
    }

    async fn certificates(&self) -> Result<Arc<Certificates>, StoreError> {
        self.read_certificates().await.map(Arc::new)
    }

    async fn add_partner(&self, partner: &Partner) -> Result<(), StoreError> {
        self.insert_partner(partner).await
    }

    async fn delete_partner(&self, label: &KeyLabel) -> Result<bool, StoreError> {
        self.remove_partner(label).await
    }

    async fn set_certificate(
        &self,
        kek: &KekHash,
        certificate: Option<&[u8]>,
    ) -> Result<(), StoreError> {
        self.replace_certificate(kek, certificate).await
    }

    async fn kek_copies(&self) -> Result<Arc<[KekCopy]>, StoreError> {
        let mut copies = sqlx::query("SELECT * FROM kek_copies ORDER BY id")
            .fetch_all(&self.pool)
            .await
            .map_err(|source| self.database(source))?
            .iter()
            .map(|row| {
                let row = self.row(row);
                let at: String = row.get("at")?;
                Ok(KekCopy {
                    kek: row.parsed("kek")?,
                    kind: row.parsed("kind")?,
                    ceremony: row.maybe("ceremony")?,
                    token: row.get("token")?,
                    serial: row.get("serial")?,
                    proven: row.flag("proven")?,
                    note: row.get("note")?,
                    at: OffsetDateTime::parse(&at, &Rfc3339).map_err(|_| row.damaged("at"))?,
                })
            })
            .collect::<Result<Vec<KekCopy>, StoreError>>()?;
        copies.extend(self.backed_keks().await?);
        Ok(copies.into())
    }

    async fn add_kek_copy(&self, copy: &KekCopy) -> Result<(), StoreError> {
        let KekCopy {
            kek,
            kind,
            ceremony,
            token,
            serial,
            proven,
            note,
            at,
        } = copy;
        let mut transaction = self.begin().await?;
        sqlx::query(
            "INSERT INTO kek_copies (kek, kind, ceremony, token, serial, proven, note, at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        )
        .bind(kek.to_string())
        .bind(kind.to_string())
        .bind(ceremony.map(|id| id.to_string()))
        .bind(token)
        .bind(serial)
        .bind(i64::from(*proven))
        .bind(note)
        .bind(at.format(&Rfc3339).unwrap_or_default())
        .execute(&mut *transaction)
        .await
        .map_err(|source| self.database(source))?;
        self.commit(transaction).await
    }

    async fn births(&self) -> Result<Vec<Birth>, StoreError> {
        self.open_births().await
    }

    async fn begin_birth(&self, birth: &Birth) -> Result<(), StoreError> {
        self.insert_birth(birth).await
    }

    async fn end_birth(&self, ceremony: &uuid::Uuid) -> Result<(), StoreError> {
        self.remove_birth(ceremony).await
    }

    async fn defaults(&self) -> Result<Defaults, StoreError> {
        let row = sqlx::query("SELECT value FROM settings WHERE name = 'defaults'")
            .fetch_optional(&self.pool)
            .await
            .map_err(|source| self.database(source))?;
        row.map_or_else(
            || Ok(Defaults::default()),
            |row| self.row(&row).json("value"),
        )
    }

    async fn set_defaults(&self, defaults: &Defaults) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        self.put_defaults(&mut transaction, defaults, OffsetDateTime::now_utc())
            .await?;
        self.commit(transaction).await
    }

    async fn issue(&self, issuance: &Issuance) -> Result<Issued, StoreError> {
        self.insert_issuance(issuance, OffsetDateTime::now_utc())
            .await
    }

    async fn answered(
        &self,
        request: &RequestKey,
    ) -> Result<Option<([u8; 32], VolumeKey)>, StoreError> {
        self.earlier(request).await
    }

    async fn issued(&self, eedk_sha256: &[u8; 32]) -> Result<Option<Origin>, StoreError> {
        self.origin_of_eedk(eedk_sha256).await
    }

    async fn origin(&self, dki: &DataKeyId) -> Result<Option<Origin>, StoreError> {
        self.origin_of_key(dki).await
    }

    async fn confirm(
        &self,
        request: &str,
        dki: &DataKeyId,
        drive: &DriveSerial,
        stored: bool,
        peer: &PeerId,
    ) -> Result<Option<VolumeKey>, StoreError> {
        self.note_confirm(request, dki, drive, stored, peer).await
    }

    async fn data_key(&self, dki: &DataKeyId) -> Result<Option<VolumeKey>, StoreError> {
        self.best_of(dki).await
    }

    async fn note_opening(&self, opening: &Opening) -> Result<(), StoreError> {
        self.note_one(opening).await
    }

    async fn failed_openings(&self) -> Result<Vec<FailedOpening>, StoreError> {
        self.failed().await
    }

    async fn forgive_openings(&self, whose: &Forgiven) -> Result<(), StoreError> {
        self.forgive(whose).await
    }

    async fn guard_secret(&self) -> Result<[u8; 32], StoreError> {
        self.secret().await
    }

    async fn volumes(&self, volser: Option<&Volser>) -> Result<Vec<VolumeKey>, StoreError> {
        self.history(volser).await
    }
}
