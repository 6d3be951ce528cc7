//! Whole tables: read at one moment, written all or not at all.

use async_trait::async_trait;
use sqlx::{Any, Transaction};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Dialect, Fields, Sql, json, label_lock, text};
use crate::drive::DriveSerial;
use crate::key::{DataKeyId, KeyLabel};
use crate::store::merge::{
    Changes, DefaultsRow, DriveRow, KekRow, PartnerRow, TableDump, Tables, VolumesTaken, Write,
};
use crate::store::{
    Defaults, Drive, DriveKey, DriveState, Partner, RegisteredKek, StoreError, VolumeKey,
};

/// A time that a row keeps as text; 1970 where it was not kept.
fn time_of(row: &Fields<'_>, column: &str) -> Result<OffsetDateTime, StoreError> {
    let text: String = row.get(column)?;
    if text.is_empty() {
        return Ok(OffsetDateTime::UNIX_EPOCH);
    }
    OffsetDateTime::parse(&text, &Rfc3339).map_err(|_| row.damaged(column))
}

fn changed(what: String) -> StoreError {
    StoreError::Changed { what }
}

impl Sql {
    /// A transaction that sees the database as it is at one moment.
    pub(super) async fn snapshot(&self) -> Result<Transaction<'static, Any>, StoreError> {
        match self.dialect {
            Dialect::Sqlite => self.pool.begin().await,
            Dialect::Postgres => {
                let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
                self.pool.begin_with(begin).await
            }
        }
        .map_err(|source| self.database(source))
    }

    async fn all(
        &self,
        transaction: &mut Transaction<'static, Any>,
        sql: &'static str,
    ) -> Result<Vec<sqlx::any::AnyRow>, StoreError> {
        sqlx::query(sql)
            .fetch_all(&mut **transaction)
            .await
            .map_err(|source| self.database(source))
    }

    async fn write_drive(
        &self,
        transaction: &mut Transaction<'static, Any>,
        write: &Write<DriveRow>,
    ) -> Result<(), StoreError> {
        let Write { row, over } = write;
        let DriveRow {
            drive,
            updated,
            deleted,
        } = row;
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
        self.drive_is(transaction, serial, over.as_ref()).await?;
        let spki = match key {
            DriveKey::Pinned(spki) => Some(spki.as_slice()),
            DriveKey::Certified | DriveKey::None => None,
        };
        let state = match state {
            DriveState::Active => "active",
            DriveState::Pending => "pending",
        };
        let done = sqlx::query(
            "INSERT INTO drives
             (serial, wwn, kek1, kek2, spki, certified, form, custody, speakers, state, updated, deleted)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
             ON CONFLICT (serial) DO UPDATE SET
                 wwn = excluded.wwn, kek1 = excluded.kek1, kek2 = excluded.kek2,
                 spki = excluded.spki, certified = excluded.certified, form = excluded.form,
                 custody = excluded.custody, speakers = excluded.speakers,
                 state = excluded.state, updated = excluded.updated, deleted = excluded.deleted
             WHERE $13 = 1",
        )
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
        .bind(utc(*updated))
        .bind(deleted.then(|| utc(*updated)))
        .bind(i64::from(over.is_some()))
        .execute(&mut **transaction)
        .await
        .map_err(|source| self.database(source))?;
        if done.rows_affected() == 0 {
            return Err(changed(format!("drive {serial}")));
        }
        Ok(())
    }

    /// That the row reads as it did, and that nobody changes it before the transaction ends.
    async fn drive_is(
        &self,
        transaction: &mut Transaction<'static, Any>,
        serial: &DriveSerial,
        over: Option<&DriveRow>,
    ) -> Result<(), StoreError> {
        let sql = match self.dialect {
            Dialect::Sqlite => "SELECT * FROM drives WHERE serial = $1",
            Dialect::Postgres => "SELECT * FROM drives WHERE serial = $1 FOR UPDATE",
        };
        let now = sqlx::query(sql)
            .bind(serial.as_str())
            .fetch_optional(&mut **transaction)
            .await
            .map_err(|source| self.database(source))?
            .map(|row| self.drive_row(&row))
            .transpose()?;
        if now.as_ref() == over {
            Ok(())
        } else {
            Err(changed(format!("drive {serial}")))
        }
    }

    pub(super) fn drive_row(&self, row: &sqlx::any::AnyRow) -> Result<DriveRow, StoreError> {
        let drive = self.drive_of(row)?;
        let row = self.row(row);
        Ok(DriveRow {
            drive,
            updated: time_of(&row, "updated")?,
            deleted: row.get::<Option<String>>("deleted")?.is_some(),
        })
    }

    pub(super) async fn read_defaults(
        &self,
        transaction: &mut Transaction<'static, Any>,
    ) -> Result<DefaultsRow, StoreError> {
        let row = sqlx::query("SELECT value, updated FROM settings WHERE name = 'defaults'")
            .fetch_optional(&mut **transaction)
            .await
            .map_err(|source| self.database(source))?;
        let Some(row) = row else {
            return Ok(DefaultsRow {
                defaults: Defaults::default(),
                updated: OffsetDateTime::UNIX_EPOCH,
            });
        };
        let row = self.row(&row);
        Ok(DefaultsRow {
            defaults: row.json("value")?,
            updated: time_of(&row, "updated")?,
        })
    }

    async fn write_defaults(
        &self,
        transaction: &mut Transaction<'static, Any>,
        write: &Write<DefaultsRow>,
    ) -> Result<(), StoreError> {
        self.alone(transaction, "defaults").await?;
        let now = self.read_defaults(transaction).await?;
        if write.over.as_ref().is_some_and(|over| *over != now) {
            return Err(changed("the row of the defaults".to_owned()));
        }
        self.put_defaults(transaction, &write.row.defaults, write.row.updated)
            .await
    }

    pub(super) async fn put_defaults(
        &self,
        transaction: &mut Transaction<'static, Any>,
        defaults: &Defaults,
        updated: OffsetDateTime,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO settings (name, value, updated) VALUES ('defaults', $1, $2)
             ON CONFLICT (name) DO UPDATE SET value = excluded.value, updated = excluded.updated",
        )
        .bind(json(defaults))
        .bind(utc(updated))
        .execute(&mut **transaction)
        .await
        .map(drop)
        .map_err(|source| self.database(source))
    }

    /// The key that a label names, a KEK's or a partner's; the label is ours until the end.
    async fn named(
        &self,
        transaction: &mut Transaction<'static, Any>,
        label: &KeyLabel,
    ) -> Result<Option<String>, StoreError> {
        self.alone(transaction, &label_lock(label)).await?;
        sqlx::query_scalar(
            "SELECT hash FROM keks WHERE folded = $1
             UNION ALL SELECT hash FROM partners WHERE folded = $1",
        )
        .bind(label.folded())
        .fetch_optional(&mut **transaction)
        .await
        .map_err(|source| self.database(source))
    }

    async fn write_kek(
        &self,
        transaction: &mut Transaction<'static, Any>,
        row: &KekRow,
    ) -> Result<(), StoreError> {
        let label = &row.kek.label;
        if self.named(transaction, label).await?.is_some() {
            return Err(changed(format!("KEK {label}")));
        }
        self.put_kek(transaction, &row.kek, row.created).await
    }

    pub(super) async fn put_kek(
        &self,
        transaction: &mut Transaction<'static, Any>,
        kek: &RegisteredKek,
        created: OffsetDateTime,
    ) -> Result<(), StoreError> {
        let RegisteredKek {
            label,
            hash,
            spki,
            bits,
            token,
            custody,
            provenance,
        } = kek;
        sqlx::query(
            "INSERT INTO keks (folded, label, hash, spki, bits, token, custody, provenance, created)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        )
        .bind(label.folded())
        .bind(label.as_str())
        .bind(hash.to_string())
        .bind(spki)
        .bind(i64::from(*bits))
        .bind(token)
        .bind(custody.to_string())
        .bind(json(provenance))
        .bind(utc(created))
        .execute(&mut **transaction)
        .await
        .map(drop)
        .map_err(|source| self.database(source))
    }

    async fn write_partner(
        &self,
        transaction: &mut Transaction<'static, Any>,
        write: &Write<PartnerRow>,
    ) -> Result<(), StoreError> {
        let row = &write.row;
        let there = self.named(transaction, &row.label).await?;
        match &row.partner {
            Some(partner) => {
                if there.is_some() {
                    return Err(changed(format!("partner's KEK {}", row.label)));
                }
                self.put_partner(transaction, partner).await
            }
            None => {
                // Only the row that was looked at goes.
                let known = write.over.as_ref().and_then(|over| over.partner.as_ref());
                if let Some(known) = known
                    && there != Some(known.hash.to_string())
                {
                    return Err(changed(format!("partner's KEK {}", row.label)));
                }
                if known.is_some() {
                    self.drop_partner(transaction, &row.label).await?;
                }
                self.note_removed(transaction, &row.label, &row.hash.to_string(), row.updated)
                    .await
            }
        }
    }

    pub(super) async fn put_partner(
        &self,
        transaction: &mut Transaction<'static, Any>,
        partner: &Partner,
    ) -> Result<(), StoreError> {
        let Partner {
            label,
            hash,
            spki,
            certificate,
            vouched,
            operator,
            confirmed,
            seals,
        } = partner;
        sqlx::query("DELETE FROM removed_partners WHERE folded = $1")
            .bind(label.folded())
            .execute(&mut **transaction)
            .await
            .map_err(|source| self.database(source))?;
        sqlx::query(
            "INSERT INTO partners
             (folded, label, hash, spki, certificate, vouched, operator, confirmed, seals)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        )
        .bind(label.folded())
        .bind(label.as_str())
        .bind(hash.to_string())
        .bind(spki)
        .bind(certificate)
        .bind(json(vouched))
        .bind(operator)
        .bind(utc(*confirmed))
        .bind(json(seals))
        .execute(&mut **transaction)
        .await
        .map(drop)
        .map_err(|source| self.database(source))
    }

    pub(super) async fn drop_partner(
        &self,
        transaction: &mut Transaction<'static, Any>,
        label: &KeyLabel,
    ) -> Result<Option<String>, StoreError> {
        sqlx::query_scalar("DELETE FROM partners WHERE folded = $1 RETURNING hash")
            .bind(label.folded())
            .fetch_optional(&mut **transaction)
            .await
            .map_err(|source| self.database(source))
    }

    /// So that the partner does not come back with an older list.
    pub(super) async fn note_removed(
        &self,
        transaction: &mut Transaction<'static, Any>,
        label: &KeyLabel,
        hash: &str,
        at: OffsetDateTime,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO removed_partners (folded, label, hash, removed) VALUES ($1, $2, $3, $4)
             ON CONFLICT (folded) DO UPDATE
             SET label = excluded.label, hash = excluded.hash, removed = excluded.removed",
        )
        .bind(label.folded())
        .bind(label.as_str())
        .bind(hash)
        .bind(utc(at))
        .execute(&mut **transaction)
        .await
        .map(drop)
        .map_err(|source| self.database(source))
    }
}

/// Times are compared as texts in places, so all are of one zone.
fn utc(at: OffsetDateTime) -> String {
    text(at.to_offset(time::UtcOffset::UTC))
}

#[async_trait]
impl Tables for Sql {
    async fn dump_tables(&self) -> Result<TableDump, StoreError> {
        let mut snapshot = self.snapshot().await?;
        let mut drives = Vec::new();
        let rows = "SELECT * FROM drives ORDER BY serial";
        for row in self.all(&mut snapshot, rows).await? {
            drives.push(self.drive_row(&row)?);
        }
        let mut keks = Vec::new();
        let rows = "SELECT * FROM keks ORDER BY folded";
        for row in self.all(&mut snapshot, rows).await? {
            keks.push(KekRow {
                kek: self.kek_of(&row)?,
                created: time_of(&self.row(&row), "created")?,
            });
        }
        let mut partners = Vec::new();
        let rows = "SELECT * FROM partners ORDER BY folded";
        for row in self.all(&mut snapshot, rows).await? {
            let partner = self.partner_of(&row)?;
            partners.push(PartnerRow {
                label: partner.label.clone(),
                hash: partner.hash,
                updated: partner.confirmed,
                partner: Some(partner),
            });
        }
        let rows = "SELECT * FROM removed_partners
                    WHERE folded NOT IN (SELECT folded FROM partners) ORDER BY folded";
        for row in self.all(&mut snapshot, rows).await? {
            let row = self.row(&row);
            partners.push(PartnerRow {
                label: row.parsed("label")?,
                hash: row.parsed("hash")?,
                updated: time_of(&row, "removed")?,
                partner: None,
            });
        }
        let defaults = self.read_defaults(&mut snapshot).await?;
        self.commit(snapshot).await?;
        Ok(TableDump {
            drives: Some(drives),
            defaults: Some(defaults),
            keks: Some(keks),
            partners: Some(partners),
        })
    }

    async fn apply(&self, changes: &Changes) -> Result<(), StoreError> {
        let Changes {
            drives,
            defaults,
            keks,
            partners,
            kept: _,
        } = changes;
        let mut transaction = self.begin().await?;
        for write in drives {
            self.write_drive(&mut transaction, write).await?;
        }
        if let Some(write) = defaults {
            self.write_defaults(&mut transaction, write).await?;
        }
        for row in keks {
            self.write_kek(&mut transaction, row).await?;
        }
        for write in partners {
            self.write_partner(&mut transaction, write).await?;
        }
        self.commit(transaction).await
    }

    async fn volumes_after(
        &self,
        after: Option<(DataKeyId, u32)>,
        most: u32,
    ) -> Result<Vec<VolumeKey>, StoreError> {
        self.page(after, most).await
    }

    async fn take_volumes(
        &self,
        keys: &[VolumeKey],
        operator: &str,
        apply: bool,
    ) -> Result<VolumesTaken, StoreError> {
        self.take_history(keys, operator, apply).await
    }
}
