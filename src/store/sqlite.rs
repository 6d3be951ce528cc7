//! The state in SQLite, one file beside the server.
//!
//! Write-ahead log with `synchronous = FULL`: a commit that returned is on
//! the disk. Writers take the lock when they begin, so none fails half-way.

mod partners;

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow,
    SqliteSynchronous,
};
use sqlx::{Row, Sqlite as Db, Transaction};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{
    Certificates, Defaults, Drive, DriveKey, DriveState, EedkState, Issuance, Origin, Partner,
    RegisteredKek, RequestKey, Store, StoreError, StoredEedk, VolumeKey,
};
use crate::copies::KekCopy;
use crate::drive::DriveSerial;
use crate::key::{DataKeyId, Eedk, KekHash, KeyLabel};
use crate::tls::PeerId;
use crate::volser::Volser;

/// The state in an SQLite file.
#[derive(Clone, Debug)]
pub struct Sqlite {
    path: PathBuf,
    pool: SqlitePool,
}

impl Sqlite {
    /// Opens `state.db` in the directory, making it and bringing it up to date.
    ///
    /// # Errors
    /// The file cannot be opened, or was written by a newer version.
    pub async fn open(directory: &Path) -> Result<Self, StoreError> {
        crate::files::private_dir(directory).map_err(|source| StoreError::Directory {
            path: directory.to_owned(),
            source,
        })?;
        let path = directory.join("state.db");
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(Duration::from_secs(10));
        let pool = SqlitePoolOptions::new()
            // One: two connections that close at the same moment can deadlock
            // in SQLite (unixClose against the exclusive lock of WalClose,
            // seen with the bundled version), and there is one writer anyway.
            .max_connections(1)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_with(options)
            .await
            .map_err(|source| StoreError::Database {
                path: path.clone(),
                source,
            })?;
        sqlx::migrate!("src/store/migrations")
            .run(&pool)
            .await
            .map_err(|source| StoreError::Migrate {
                path: path.clone(),
                source,
            })?;
        Ok(Self { path, pool })
    }

    fn database(&self, source: sqlx::Error) -> StoreError {
        StoreError::Database {
            path: self.path.clone(),
            source,
        }
    }

    async fn begin(&self) -> Result<Transaction<'static, Db>, StoreError> {
        self.pool
            .begin_with("BEGIN IMMEDIATE")
            .await
            .map_err(|source| self.database(source))
    }

    async fn commit(&self, transaction: Transaction<'static, Db>) -> Result<(), StoreError> {
        transaction
            .commit()
            .await
            .map_err(|source| self.database(source))
    }

    fn row<'a>(&'a self, row: &'a SqliteRow) -> Fields<'a> {
        Fields { store: self, row }
    }

    fn drive_of(&self, row: &SqliteRow) -> Result<Drive, StoreError> {
        let row = self.row(row);
        let spki: Option<Vec<u8>> = row.get("spki")?;
        Ok(Drive {
            serial: row.parsed("serial")?,
            wwn: row.maybe("wwn")?,
            kek1: row.maybe("kek1")?,
            kek2: row.maybe("kek2")?,
            key: match (row.get::<i64>("certified")? != 0, spki) {
                (true, _) => DriveKey::Certified,
                (false, Some(spki)) => DriveKey::Pinned(spki),
                (false, None) => DriveKey::None,
            },
            form: row.parsed("form")?,
            custody: row.parsed("custody")?,
            speakers: row.json("speakers")?,
            state: match row.get::<String>("state")?.as_str() {
                "active" => DriveState::Active,
                "pending" => DriveState::Pending,
                _ => return Err(row.damaged("state")),
            },
        })
    }

    async fn volume_key(
        &self,
        dki: &DataKeyId,
        generation: u32,
    ) -> Result<Option<VolumeKey>, StoreError> {
        let found = sqlx::query("SELECT * FROM generations WHERE dki = ?1 AND generation = ?2")
            .bind(dki.to_string())
            .bind(generation)
            .fetch_optional(&self.pool)
            .await
            .map_err(|source| self.database(source))?;
        match found {
            Some(row) => self.volume_of(&row).await.map(Some),
            None => Ok(None),
        }
    }

    /// Notes that what this volume held before is superseded.
    async fn supersede(
        &self,
        transaction: &mut Transaction<'static, Db>,
        volser: &str,
        dki: &str,
        generation: u32,
        peer: &PeerId,
    ) -> Result<(), StoreError> {
        let older = sqlx::query(
            "SELECT g.dki, g.generation FROM generations g
             WHERE g.volser = ?1 AND NOT (g.dki = ?2 AND g.generation = ?3)
               AND (SELECT state FROM eedk_states s WHERE s.dki = g.dki AND s.generation = g.generation
                    ORDER BY id DESC LIMIT 1) = 'confirmed'",
        )
        .bind(volser)
        .bind(dki)
        .bind(generation)
        .fetch_all(&mut **transaction)
        .await
        .map_err(|source| self.database(source))?;
        for row in &older {
            let row = self.row(row);
            let dki: String = row.get("dki")?;
            let generation: u32 = row.get("generation")?;
            self.note(transaction, &dki, generation, EedkState::Superseded, peer)
                .await?;
        }
        Ok(())
    }

    async fn volume_of(&self, row: &SqliteRow) -> Result<VolumeKey, StoreError> {
        let fields = self.row(row);
        let dki: DataKeyId = fields.parsed("dki")?;
        let generation: u32 = fields.get("generation")?;
        let eedks =
            sqlx::query("SELECT * FROM eedks WHERE dki = ?1 AND generation = ?2 ORDER BY position")
                .bind(dki.to_string())
                .bind(generation)
                .fetch_all(&self.pool)
                .await
                .map_err(|source| self.database(source))?;
        let state: String = sqlx::query_scalar(
            "SELECT state FROM eedk_states WHERE dki = ?1 AND generation = ?2 ORDER BY id DESC LIMIT 1",
        )
        .bind(dki.to_string())
        .bind(generation)
        .fetch_one(&self.pool)
        .await
        .map_err(|source| self.database(source))?;
        Ok(VolumeKey {
            volser: fields.parsed("volser")?,
            dki,
            generation,
            state: match state.as_str() {
                "issued" => EedkState::Issued,
                "confirmed" => EedkState::Confirmed,
                "superseded" => EedkState::Superseded,
                "abandoned" => EedkState::Abandoned,
                _ => return Err(fields.damaged("state")),
            },
            drive: fields.parsed("drive")?,
            token: fields.get("token")?,
            custody: fields.parsed("custody")?,
            created: OffsetDateTime::parse(&fields.get::<String>("created")?, &Rfc3339)
                .map_err(|_| fields.damaged("created"))?,
            eedks: eedks
                .iter()
                .map(|row| {
                    let row = self.row(row);
                    Ok(StoredEedk {
                        eedk: Eedk::decode(&row.get::<Vec<u8>>("der")?)
                            .map_err(|_| row.damaged("der"))?,
                        kek_label: row.parsed("kek_label")?,
                        kek_hash: row.parsed("kek_hash")?,
                        proved: row.get::<i64>("proved")? != 0,
                    })
                })
                .collect::<Result<_, StoreError>>()?,
        })
    }

    /// Inserts a row by that verb; whether one was inserted.
    async fn insert_drive(&self, drive: &Drive, verb: &'static str) -> Result<bool, StoreError> {
        let Drive {
            serial,
            wwn,
            kek1,
            kek2,
            key,
            form,
            custody,
            speakers,
            state,
        } = drive;
        let spki = match key {
            DriveKey::Pinned(spki) => Some(spki.as_slice()),
            DriveKey::Certified | DriveKey::None => None,
        };
        let state = match state {
            DriveState::Active => "active",
            DriveState::Pending => "pending",
        };
        // The verb is one of two constants, never a peer's text.
        let sql = sqlx::AssertSqlSafe(format!(
            "{verb} INTO drives
             (serial, wwn, kek1, kek2, spki, certified, form, custody, speakers, state, updated, deleted)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, NULL)"
        ));
        let mut transaction = self.begin().await?;
        let done = sqlx::query(sql)
            .bind(serial.as_str())
            .bind(wwn.map(|wwn| wwn.to_string()))
            .bind(kek1.as_ref().map(ToString::to_string))
            .bind(kek2.as_ref().map(ToString::to_string))
            .bind(spki)
            .bind(*key == DriveKey::Certified)
            .bind(form.to_string())
            .bind(custody.to_string())
            .bind(json(speakers))
            .bind(state)
            .bind(now())
            .execute(&mut *transaction)
            .await
            .map_err(|source| self.database(source))?;
        self.commit(transaction).await?;
        Ok(done.rows_affected() > 0)
    }

    async fn note(
        &self,
        transaction: &mut Transaction<'static, Db>,
        dki: &str,
        generation: u32,
        state: EedkState,
        peer: &PeerId,
    ) -> Result<(), StoreError> {
        sqlx::query("INSERT INTO eedk_states (dki, generation, state, at, peer) VALUES (?1, ?2, ?3, ?4, ?5)")
            .bind(dki)
            .bind(generation)
            .bind(state.to_string())
            .bind(now())
            .bind(peer.to_string())
            .execute(&mut **transaction)
            .await
            .map_err(|source| self.database(source))?;
        Ok(())
    }
}

/// Reads the columns of one row, naming the column that does not read.
struct Fields<'a> {
    store: &'a Sqlite,
    row: &'a SqliteRow,
}

impl Fields<'_> {
    fn get<'r, T>(&'r self, column: &str) -> Result<T, StoreError>
    where
        T: sqlx::Decode<'r, Db> + sqlx::Type<Db>,
    {
        self.row
            .try_get(column)
            .map_err(|source| self.store.database(source))
    }

    fn parsed<T: FromStr>(&self, column: &str) -> Result<T, StoreError> {
        let text: String = self.get(column)?;
        text.parse().map_err(|_| self.damaged(column))
    }

    fn maybe<T: FromStr>(&self, column: &str) -> Result<Option<T>, StoreError> {
        let text: Option<String> = self.get(column)?;
        text.map(|text| text.parse().map_err(|_| self.damaged(column)))
            .transpose()
    }

    fn json<T: serde::de::DeserializeOwned>(&self, column: &str) -> Result<T, StoreError> {
        let text: String = self.get(column)?;
        serde_json::from_str(&text).map_err(|_| self.damaged(column))
    }

    fn damaged(&self, what: &str) -> StoreError {
        StoreError::Damaged {
            path: self.store.path.clone(),
            what: what.to_owned(),
        }
    }
}

const fn origin(foreign: i64) -> Origin {
    if foreign == 0 {
        Origin::Ours
    } else {
        Origin::Foreign
    }
}

fn now() -> String {
    OffsetDateTime::now_utc()
        .format(&Rfc3339)
        .unwrap_or_default()
}

fn json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

#[async_trait]
impl Store for Sqlite {
    async fn drive(&self, serial: &DriveSerial) -> Result<Option<Drive>, StoreError> {
        let row = sqlx::query("SELECT * FROM drives WHERE serial = ?1 AND deleted IS NULL")
            .bind(serial.as_str())
            .fetch_optional(&self.pool)
            .await
            .map_err(|source| self.database(source))?;
        row.map(|row| self.drive_of(&row)).transpose()
    }

    async fn drives(&self) -> Result<Vec<Drive>, StoreError> {
        sqlx::query("SELECT * FROM drives WHERE deleted IS NULL ORDER BY serial")
            .fetch_all(&self.pool)
            .await
            .map_err(|source| self.database(source))?
            .iter()
            .map(|row| self.drive_of(row))
            .collect()
    }

    async fn put_drive(&self, drive: &Drive) -> Result<(), StoreError> {
        self.insert_drive(drive, "INSERT OR REPLACE")
            .await
            .map(drop)
    }

    async fn discover_drive(&self, drive: &Drive) -> Result<bool, StoreError> {
        self.insert_drive(drive, "INSERT OR IGNORE").await
    }

    async fn delete_drive(&self, serial: &DriveSerial) -> Result<bool, StoreError> {
        let mut transaction = self.begin().await?;
        let done = sqlx::query(
            "UPDATE drives SET deleted = ?2, updated = ?2 WHERE serial = ?1 AND deleted IS NULL",
        )
        .bind(serial.as_str())
        .bind(now())
        .execute(&mut *transaction)
        .await
        .map_err(|source| self.database(source))?;
        self.commit(transaction).await?;
        Ok(done.rows_affected() > 0)
    }

    async fn keks(&self) -> Result<Arc<[RegisteredKek]>, StoreError> {
        sqlx::query("SELECT * FROM keks ORDER BY folded")
            .fetch_all(&self.pool)
            .await
            .map_err(|source| self.database(source))?
            .iter()
            .map(|row| {
                let row = self.row(row);
                Ok(RegisteredKek {
                    label: row.parsed("label")?,
                    hash: row.parsed("hash")?,
                    spki: row.get("spki")?,
                    bits: row.get("bits")?,
                    token: row.get("token")?,
                    custody: row.parsed("custody")?,
                    provenance: row.json("provenance")?,
                })
            })
            .collect()
    }

    async fn register_kek(&self, kek: &RegisteredKek) -> Result<(), StoreError> {
        let RegisteredKek {
            label,
            hash,
            spki,
            bits,
            token,
            custody,
            provenance,
        } = kek;
        let mut transaction = self.begin().await?;
        let taken: Option<String> = sqlx::query_scalar("SELECT hash FROM keks WHERE folded = ?1")
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
        sqlx::query(
            "INSERT INTO keks (folded, label, hash, spki, bits, token, custody, provenance, created)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        )
        .bind(label.folded())
        .bind(label.as_str())
        .bind(hash.to_string())
        .bind(spki)
        .bind(*bits)
        .bind(token)
        .bind(custody.to_string())
        .bind(json(provenance))
        .bind(now())
        .execute(&mut *transaction)
        .await
        .map_err(|source| self.database(source))?;
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
        sqlx::query("SELECT * FROM kek_copies ORDER BY id")
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
                    proven: row.get("proven")?,
                    note: row.get("note")?,
                    at: OffsetDateTime::parse(&at, &Rfc3339).map_err(|_| row.damaged("at"))?,
                })
            })
            .collect()
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
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )
        .bind(kek.to_string())
        .bind(kind.to_string())
        .bind(ceremony.map(|id| id.to_string()))
        .bind(token)
        .bind(serial)
        .bind(*proven)
        .bind(note)
        .bind(at.format(&Rfc3339).unwrap_or_default())
        .execute(&mut *transaction)
        .await
        .map_err(|source| self.database(source))?;
        self.commit(transaction).await
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
        sqlx::query("INSERT OR REPLACE INTO settings (name, value) VALUES ('defaults', ?1)")
            .bind(json(defaults))
            .execute(&mut *transaction)
            .await
            .map_err(|source| self.database(source))?;
        self.commit(transaction).await
    }

    async fn issue(&self, issuance: &Issuance) -> Result<(), StoreError> {
        let Issuance {
            request,
            digest,
            dki,
            volser,
            drive,
            token,
            custody,
            origin,
            new,
            eedks,
        } = issuance;
        let mut transaction = self.begin().await?;
        let dki = dki.to_string();
        // A new data key under an identifier that exists would mix two keys.
        let sql = if *new {
            "INSERT INTO data_keys (dki, \"foreign\", created) VALUES (?1, ?2, ?3)"
        } else {
            "INSERT OR IGNORE INTO data_keys (dki, \"foreign\", created) VALUES (?1, ?2, ?3)"
        };
        sqlx::query(sql)
            .bind(&dki)
            .bind(*origin == Origin::Foreign)
            .bind(now())
            .execute(&mut *transaction)
            .await
            .map_err(|source| self.database(source))?;
        let generation: u32 = sqlx::query_scalar(
            "SELECT COALESCE(MAX(generation), 0) + 1 FROM generations WHERE dki = ?1",
        )
        .bind(&dki)
        .fetch_one(&mut *transaction)
        .await
        .map_err(|source| self.database(source))?;
        sqlx::query(
            "INSERT INTO generations (dki, generation, volser, drive, token, custody, created)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )
        .bind(&dki)
        .bind(generation)
        .bind(volser.as_str())
        .bind(drive.as_str())
        .bind(token)
        .bind(custody.to_string())
        .bind(now())
        .execute(&mut *transaction)
        .await
        .map_err(|source| self.database(source))?;
        for (position, stored) in (0_u32..).zip(eedks) {
            sqlx::query(
                "INSERT INTO eedks (sha256, dki, generation, position, der, kek_label, kek_hash, proved)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            )
            .bind(hex::encode(stored.eedk.digest()))
            .bind(&dki)
            .bind(generation)
            .bind(position)
            .bind(stored.eedk.as_der())
            .bind(stored.kek_label.as_str())
            .bind(stored.kek_hash.to_string())
            .bind(stored.proved)
            .execute(&mut *transaction)
            .await
            .map_err(|source| self.database(source))?;
        }
        self.note(
            &mut transaction,
            &dki,
            generation,
            EedkState::Issued,
            &request.peer,
        )
        .await?;
        sqlx::query("INSERT INTO requests (peer, request, digest, dki, generation) VALUES (?1, ?2, ?3, ?4, ?5)")
            .bind(request.peer.to_string())
            .bind(&request.id)
            .bind(digest.as_slice())
            .bind(&dki)
            .bind(generation)
            .execute(&mut *transaction)
            .await
            .map_err(|source| self.database(source))?;
        self.commit(transaction).await
    }

    async fn answered(
        &self,
        request: &RequestKey,
    ) -> Result<Option<([u8; 32], VolumeKey)>, StoreError> {
        let row = sqlx::query(
            "SELECT digest, dki, generation FROM requests WHERE peer = ?1 AND request = ?2",
        )
        .bind(request.peer.to_string())
        .bind(&request.id)
        .fetch_optional(&self.pool)
        .await
        .map_err(|source| self.database(source))?;
        let Some(row) = row else {
            return Ok(None);
        };
        let row = self.row(&row);
        let digest = <[u8; 32]>::try_from(row.get::<Vec<u8>>("digest")?)
            .map_err(|_| row.damaged("digest"))?;
        let key = self
            .volume_key(&row.parsed("dki")?, row.get("generation")?)
            .await?
            .ok_or_else(|| row.damaged("dki"))?;
        Ok(Some((digest, key)))
    }

    async fn issued(&self, eedk_sha256: &[u8; 32]) -> Result<Option<Origin>, StoreError> {
        let found: Option<i64> = sqlx::query_scalar(
            "SELECT k.\"foreign\" FROM eedks e JOIN data_keys k USING (dki) WHERE e.sha256 = ?1",
        )
        .bind(hex::encode(eedk_sha256))
        .fetch_optional(&self.pool)
        .await
        .map_err(|source| self.database(source))?;
        Ok(found.map(origin))
    }

    async fn origin(&self, dki: &DataKeyId) -> Result<Option<Origin>, StoreError> {
        let found: Option<i64> =
            sqlx::query_scalar("SELECT \"foreign\" FROM data_keys WHERE dki = ?1")
                .bind(dki.to_string())
                .fetch_optional(&self.pool)
                .await
                .map_err(|source| self.database(source))?;
        Ok(found.map(origin))
    }

    async fn confirm(
        &self,
        request: &str,
        dki: &DataKeyId,
        drive: &DriveSerial,
        stored: bool,
        peer: &PeerId,
    ) -> Result<Option<VolumeKey>, StoreError> {
        let state = if stored {
            EedkState::Confirmed
        } else {
            EedkState::Abandoned
        };
        let mut transaction = self.begin().await?;
        let found = sqlx::query(
            "SELECT g.generation, g.volser,
                    (SELECT state FROM eedk_states s WHERE s.dki = g.dki AND s.generation = g.generation
                     ORDER BY id DESC LIMIT 1) AS state
             FROM requests r JOIN generations g ON g.dki = r.dki AND g.generation = r.generation
             WHERE r.request = ?1 AND r.dki = ?2 AND g.drive = ?3",
        )
        .bind(request)
        .bind(dki.to_string())
        .bind(drive.as_str())
        .fetch_optional(&mut *transaction)
        .await
        .map_err(|source| self.database(source))?;
        let Some(found) = found else {
            return Ok(None);
        };
        let found = self.row(&found);
        let generation: u32 = found.get("generation")?;
        // What was confirmed, superseded or abandoned before stays as it is.
        if found.get::<String>("state")? == EedkState::Issued.to_string() {
            if stored {
                let volser: String = found.get("volser")?;
                self.supersede(
                    &mut transaction,
                    &volser,
                    &dki.to_string(),
                    generation,
                    peer,
                )
                .await?;
            }
            self.note(&mut transaction, &dki.to_string(), generation, state, peer)
                .await?;
        }
        self.commit(transaction).await?;
        self.volume_key(dki, generation).await
    }

    async fn volumes(&self, volser: Option<&Volser>) -> Result<Vec<VolumeKey>, StoreError> {
        let rows = sqlx::query(
            "SELECT * FROM generations WHERE ?1 IS NULL OR volser = ?1 ORDER BY rowid DESC",
        )
        .bind(volser.map(Volser::as_str))
        .fetch_all(&self.pool)
        .await
        .map_err(|source| self.database(source))?;
        let mut keys = Vec::with_capacity(rows.len());
        for row in &rows {
            keys.push(self.volume_of(row).await?);
        }
        Ok(keys)
    }
}
