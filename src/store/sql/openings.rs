//! The rows of guarded openings, and the secret of their throw-away keys.

use sqlx::Row as _;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Sql, StoreError};
use crate::store::{FailedOpening, Forgiven, Opening};

/// Rows of EEDKs that opened which are kept.
const KEPT: i64 = 1000;

impl Sql {
    /// The same statements whatever came of it.
    pub(super) async fn note_one(&self, opening: &Opening) -> Result<(), StoreError> {
        let Opening {
            peer,
            kek,
            failed,
            at,
        } = opening;
        let mut transaction = self.begin().await?;
        let row = sqlx::query(
            "INSERT INTO openings (peer, kek, failed, of_peer, of_kek, at)
             VALUES ($1, $2, $3, $3, $3, $4) RETURNING id",
        )
        .bind(peer.to_string())
        .bind(kek.to_string())
        .bind(i64::from(*failed))
        .bind(at.format(&Rfc3339).unwrap_or_default())
        .fetch_one(&mut *transaction)
        .await
        .map_err(|source| self.database(source))?;
        let id: i64 = row.try_get("id").map_err(|source| self.database(source))?;
        sqlx::query("DELETE FROM openings WHERE failed = 0 AND id <= $1")
            .bind(id - KEPT)
            .execute(&mut *transaction)
            .await
            .map_err(|source| self.database(source))?;
        self.commit(transaction).await
    }

    pub(super) async fn failed(&self) -> Result<Vec<FailedOpening>, StoreError> {
        sqlx::query("SELECT * FROM openings WHERE failed = 1 ORDER BY id")
            .fetch_all(&self.pool)
            .await
            .map_err(|source| self.database(source))?
            .iter()
            .map(|row| {
                let row = self.row(row);
                let at: String = row.get("at")?;
                Ok(FailedOpening {
                    peer: row.parsed("peer")?,
                    kek: row.parsed("kek")?,
                    at: OffsetDateTime::parse(&at, &Rfc3339).map_err(|_| row.damaged("at"))?,
                    of_peer: row.flag("of_peer")?,
                    of_kek: row.flag("of_kek")?,
                })
            })
            .collect()
    }

    pub(super) async fn forgive(&self, whose: &Forgiven) -> Result<(), StoreError> {
        let (statement, name) = match whose {
            Forgiven::Peer(peer) => (
                "UPDATE openings SET of_peer = 0 WHERE peer = $1",
                peer.to_string(),
            ),
            Forgiven::Kek(kek) => (
                "UPDATE openings SET of_kek = 0 WHERE kek = $1",
                kek.to_string(),
            ),
        };
        let mut transaction = self.begin().await?;
        sqlx::query(statement)
            .bind(name)
            .execute(&mut *transaction)
            .await
            .map_err(|source| self.database(source))?;
        sqlx::query("DELETE FROM openings WHERE failed = 1 AND of_peer = 0 AND of_kek = 0")
            .execute(&mut *transaction)
            .await
            .map_err(|source| self.database(source))?;
        self.commit(transaction).await
    }

    /// Made at the first call, and the same ever after.
    pub(super) async fn secret(&self) -> Result<[u8; 32], StoreError> {
        let mut fresh = [0_u8; 32];
        aws_lc_rs::rand::fill(&mut fresh).map_err(|_| StoreError::NoRandom)?;
        let mut transaction = self.begin().await?;
        sqlx::query(
            "INSERT INTO settings (name, value) VALUES ('guard', $1) ON CONFLICT (name) DO NOTHING",
        )
        .bind(hex::encode(fresh))
        .execute(&mut *transaction)
        .await
        .map_err(|source| self.database(source))?;
        let row = sqlx::query("SELECT value FROM settings WHERE name = 'guard'")
            .fetch_one(&mut *transaction)
            .await
            .map_err(|source| self.database(source))?;
        let row = self.row(&row);
        let text: String = row.get("value")?;
        let mut secret = [0; 32];
        hex::decode_to_slice(text, &mut secret).map_err(|_| row.damaged("guard"))?;
        self.commit(transaction).await?;
        Ok(secret)
    }
}
