//! The rows of backups.

use async_trait::async_trait;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Sql, json, text};
use crate::copies::{CopyKind, KekCopy};
use crate::store::{Backup, Backups, StoreError};

impl Sql {
    /// The newest backup of each KEK, as a copy of it.
    pub(super) async fn backed_keks(&self) -> Result<Vec<KekCopy>, StoreError> {
        let rows = sqlx::query(
            "SELECT k.kek AS kek, b.at AS at, b.file AS file
             FROM backed_keks k JOIN backups b ON b.id = k.backup
             ORDER BY k.kek",
        )
        .fetch_all(&self.pool)
        .await
        .map_err(|source| self.database(source))?;
        rows.iter()
            .map(|row| {
                let row = self.row(row);
                let at: String = row.get("at")?;
                Ok(KekCopy {
                    kek: row.parsed("kek")?,
                    kind: CopyKind::Backup,
                    ceremony: None,
                    token: None,
                    serial: None,
                    proven: false,
                    note: Some(row.get("file")?),
                    at: OffsetDateTime::parse(&at, &Rfc3339).map_err(|_| row.damaged("at"))?,
                })
            })
            .collect()
    }
}

#[async_trait]
impl Backups for Sql {
    async fn add_backup(&self, backup: &Backup) -> Result<(), StoreError> {
        let Backup {
            id,
            at,
            server,
            file,
            bytes,
            digest,
            contents,
            keks,
        } = backup;
        let mut transaction = self.begin().await?;
        sqlx::query(
            "INSERT INTO backups (id, at, server, file, bytes, digest, contents, keks)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (id) DO NOTHING",
        )
        .bind(id.to_string())
        .bind(text(at.to_offset(time::UtcOffset::UTC)))
        .bind(server)
        .bind(file)
        .bind(i64::try_from(*bytes).unwrap_or(i64::MAX))
        .bind(digest)
        .bind(contents)
        .bind(json(keks))
        .execute(&mut *transaction)
        .await
        .map_err(|source| self.database(source))?;
        for kek in keks {
            sqlx::query(
                "INSERT INTO backed_keks (backup, kek) VALUES ($1, $2)
                 ON CONFLICT (kek) DO UPDATE SET backup = excluded.backup",
            )
            .bind(id.to_string())
            .bind(kek.to_string())
            .execute(&mut *transaction)
            .await
            .map_err(|source| self.database(source))?;
        }
        self.commit(transaction).await
    }

    async fn backups(&self, most: u32) -> Result<Vec<Backup>, StoreError> {
        let rows = sqlx::query("SELECT * FROM backups ORDER BY at DESC, id LIMIT $1")
            .bind(i64::from(most))
            .fetch_all(&self.pool)
            .await
            .map_err(|source| self.database(source))?;
        let mut all = Vec::with_capacity(rows.len());
        for row in &rows {
            let row = self.row(row);
            let (id, at): (String, String) = (row.get("id")?, row.get("at")?);
            all.push(Backup {
                id: id.parse().map_err(|_| row.damaged("id"))?,
                at: OffsetDateTime::parse(&at, &Rfc3339).map_err(|_| row.damaged("at"))?,
                server: row.get("server")?,
                file: row.get("file")?,
                bytes: u64::try_from(row.get::<i64>("bytes")?).unwrap_or_default(),
                digest: row.get("digest")?,
                contents: row.get("contents")?,
                keks: row.json("keks")?,
            });
        }
        Ok(all)
    }
}
