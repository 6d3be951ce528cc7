//! The drive table.

use sqlx::any::AnyRow;
use sqlx::{Any, Transaction};

use super::{Dialect, Sql, json, now};
use crate::drive::DriveSerial;
use crate::store::{Drive, DriveKey, DriveState, StoreError};

/// What becomes of a drive's row that is there.
const REPLACED: &str = "UPDATE SET wwn = excluded.wwn, kek1 = excluded.kek1, kek2 = excluded.kek2,
    spki = excluded.spki, certified = excluded.certified, form = excluded.form,
    custody = excluded.custody, speakers = excluded.speakers,
    state = excluded.state, updated = excluded.updated, deleted = NULL";

impl Sql {
    pub(super) async fn one_drive(
        &self,
        serial: &DriveSerial,
    ) -> Result<Option<Drive>, StoreError> {
        let row = sqlx::query("SELECT * FROM drives WHERE serial = $1 AND deleted IS NULL")
            .bind(serial.as_str())
            .fetch_optional(&self.pool)
            .await
            .map_err(|source| self.database(source))?;
        row.map(|row| self.drive_of(&row)).transpose()
    }

    pub(super) async fn all_drives(&self) -> Result<Vec<Drive>, StoreError> {
        sqlx::query("SELECT * FROM drives WHERE deleted IS NULL ORDER BY serial")
            .fetch_all(&self.pool)
            .await
            .map_err(|source| self.database(source))?
            .iter()
            .map(|row| self.drive_of(row))
            .collect()
    }

    pub(super) async fn replace_drive(&self, drive: &Drive) -> Result<(), StoreError> {
        self.insert_drive(drive, REPLACED).await.map(drop)
    }

    pub(super) async fn exchange_drive(
        &self,
        before: Option<&Drive>,
        drive: &Drive,
    ) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        self.alone(&mut transaction, &format!("drive {}", drive.serial))
            .await?;
        let sql = match self.dialect {
            Dialect::Sqlite => "SELECT * FROM drives WHERE serial = $1 AND deleted IS NULL",
            Dialect::Postgres => {
                "SELECT * FROM drives WHERE serial = $1 AND deleted IS NULL FOR UPDATE"
            }
        };
        let now = sqlx::query(sql)
            .bind(drive.serial.as_str())
            .fetch_optional(&mut *transaction)
            .await
            .map_err(|source| self.database(source))?
            .map(|row| self.drive_of(&row))
            .transpose()?;
        if now.as_ref() != before {
            return Err(StoreError::Changed {
                what: format!("drive {}", drive.serial),
            });
        }
        self.put_row(&mut transaction, drive, REPLACED).await?;
        self.commit(transaction).await
    }

    pub(super) async fn discovered(&self, drive: &Drive) -> Result<bool, StoreError> {
        self.insert_drive(drive, "NOTHING").await
    }

    pub(super) async fn remove_drive(&self, serial: &DriveSerial) -> Result<bool, StoreError> {
        let mut transaction = self.begin().await?;
        let done = sqlx::query(
            "UPDATE drives SET deleted = $2, updated = $2 WHERE serial = $1 AND deleted IS NULL",
        )
        .bind(serial.as_str())
        .bind(now())
        .execute(&mut *transaction)
        .await
        .map_err(|source| self.database(source))?;
        self.commit(transaction).await?;
        Ok(done.rows_affected() > 0)
    }

    pub(super) fn drive_of(&self, row: &AnyRow) -> Result<Drive, StoreError> {
        let row = self.row(row);
        let spki: Option<Vec<u8>> = row.get("spki")?;
        Ok(Drive {
            serial: row.parsed("serial")?,
            wwn: row.maybe("wwn")?,
            kek1: row.maybe("kek1")?,
            kek2: row.maybe("kek2")?,
            key: match (row.flag("certified")?, spki) {
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

    /// Inserts a row, doing that where there is one; whether one was inserted or changed.
    async fn insert_drive(
        &self,
        drive: &Drive,
        conflict: &'static str,
    ) -> Result<bool, StoreError> {
        let mut transaction = self.begin().await?;
        let done = self.put_row(&mut transaction, drive, conflict).await?;
        self.commit(transaction).await?;
        Ok(done)
    }

    pub(super) async fn put_row(
        &self,
        transaction: &mut Transaction<'static, Any>,
        drive: &Drive,
        conflict: &'static str,
    ) -> Result<bool, StoreError> {
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
        // One of two constants, never a peer's text.
        let sql = sqlx::AssertSqlSafe(format!(
            "INSERT INTO drives
             (serial, wwn, kek1, kek2, spki, certified, form, custody, speakers, state, updated, deleted)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, NULL)
             ON CONFLICT (serial) DO {conflict}"
        ));
        let done = sqlx::query(sql)
            .bind(serial.as_str())
            .bind(wwn.map(|wwn| wwn.to_string()))
            .bind(kek1.as_ref().map(ToString::to_string))
            .bind(kek2.as_ref().map(ToString::to_string))
            .bind(spki)
            .bind(i64::from(*key == DriveKey::Certified))
            .bind(form.to_string())
            .bind(custody.to_string())
            .bind(json(speakers))
            .bind(state)
            .bind(now())
            .execute(&mut **transaction)
            .await
            .map_err(|source| self.database(source))?;
        Ok(done.rows_affected() > 0)
    }
}
