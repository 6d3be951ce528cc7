//! The state in SQLite, one file beside the server.
//!
//! Write-ahead log with `synchronous = FULL`: a commit that returned is on
//! the disk. Writers take the lock when they begin, so none fails half-way.

use std::path::{Path, PathBuf};
use std::str::FromStr;
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
    Defaults, Drive, DriveKey, DriveState, EedkState, Issuance, RegisteredKek, RequestKey, Store,
    StoreError, StoredEedk, VolumeKey,
};
use crate::drive::DriveSerial;
use crate::key::{DataKeyId, Eedk};
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
            .max_connections(4)
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

    /// The newest generation of a data key, or the one given.
    async fn volume_key(
        &self,
        dki: &DataKeyId,
        generation: Option<u32>,
    ) -> Result<Option<VolumeKey>, StoreError> {
        let found = sqlx::query(
            "SELECT k.*, e.generation AS gen FROM data_keys k JOIN eedks e USING (dki)
             WHERE k.dki = ?1 AND (?2 IS NULL OR e.generation = ?2)
             ORDER BY e.generation DESC LIMIT 1",
        )
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

    async fn volume_of(&self, row: &SqliteRow) -> Result<VolumeKey, StoreError> {
        let fields = self.row(row);
        let dki: DataKeyId = fields.parsed("dki")?;
        let generation: u32 = fields.get("gen")?;
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
        let mut transaction = self.begin().await?;
        sqlx::query(
            "INSERT OR REPLACE INTO drives
             (serial, wwn, kek1, kek2, spki, certified, form, custody, speakers, state, updated, deleted)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, NULL)",
        )
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
        self.commit(transaction).await
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

    async fn keks(&self) -> Result<Vec<RegisteredKek>, StoreError> {
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
            eedks,
        } = issuance;
        let mut transaction = self.begin().await?;
        let dki = dki.to_string();
        // A rekey may be of a data key that another site issued.
        sqlx::query(
            "INSERT OR IGNORE INTO data_keys (dki, volser, drive, token, custody, created) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )
        .bind(&dki)
        .bind(volser.as_str())
        .bind(drive.as_str())
        .bind(token)
        .bind(custody.to_string())
        .bind(now())
        .execute(&mut *transaction)
        .await
        .map_err(|source| self.database(source))?;
        let generation: u32 =
            sqlx::query_scalar("SELECT COALESCE(MAX(generation), 0) + 1 FROM eedks WHERE dki = ?1")
                .bind(&dki)
                .fetch_one(&mut *transaction)
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
            .volume_key(&row.parsed("dki")?, Some(row.get("generation")?))
            .await?
            .ok_or_else(|| row.damaged("dki"))?;
        Ok(Some((digest, key)))
    }

    async fn issued(&self, eedk_sha256: &[u8; 32]) -> Result<Option<(DataKeyId, u32)>, StoreError> {
        let row = sqlx::query("SELECT dki, generation FROM eedks WHERE sha256 = ?1")
            .bind(hex::encode(eedk_sha256))
            .fetch_optional(&self.pool)
            .await
            .map_err(|source| self.database(source))?;
        row.map(|row| {
            let row = self.row(&row);
            Ok((row.parsed("dki")?, row.get("generation")?))
        })
        .transpose()
    }

    async fn confirm(
        &self,
        dki: &DataKeyId,
        stored: bool,
        peer: &PeerId,
    ) -> Result<Option<VolumeKey>, StoreError> {
        let Some(mut key) = self.volume_key(dki, None).await? else {
            return Ok(None);
        };
        let state = if stored {
            EedkState::Confirmed
        } else {
            EedkState::Abandoned
        };
        // A confirmation that is repeated changes nothing.
        if key.state == state {
            return Ok(Some(key));
        }
        let mut transaction = self.begin().await?;
        if stored {
            let older = sqlx::query(
                "SELECT k.dki, s.generation FROM data_keys k JOIN eedk_states s USING (dki)
                 WHERE k.volser = ?1 AND NOT (k.dki = ?2 AND s.generation = ?3)
                   AND s.id = (SELECT MAX(id) FROM eedk_states l WHERE l.dki = s.dki AND l.generation = s.generation)
                   AND s.state = 'confirmed'",
            )
            .bind(key.volser.as_str())
            .bind(dki.to_string())
            .bind(key.generation)
            .fetch_all(&mut *transaction)
            .await
            .map_err(|source| self.database(source))?;
            for row in &older {
                let row = self.row(row);
                let dki: String = row.get("dki")?;
                let generation: u32 = row.get("generation")?;
                self.note(
                    &mut transaction,
                    &dki,
                    generation,
                    EedkState::Superseded,
                    peer,
                )
                .await?;
            }
        }
        self.note(
            &mut transaction,
            &dki.to_string(),
            key.generation,
            state,
            peer,
        )
        .await?;
        self.commit(transaction).await?;
        key.state = state;
        Ok(Some(key))
    }

    async fn volumes(&self, volser: Option<&Volser>) -> Result<Vec<VolumeKey>, StoreError> {
        let rows = sqlx::query(
            "SELECT DISTINCT k.*, e.generation AS gen FROM data_keys k JOIN eedks e USING (dki)
             WHERE ?1 IS NULL OR k.volser = ?1
             ORDER BY k.created DESC, e.generation DESC",
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
