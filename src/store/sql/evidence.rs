//! The rows of audit chains: keys that seal, anchors, heads.

use async_trait::async_trait;
use sqlx::Row as _;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Fields, Sql, StoreError};
use crate::audit::HeadMark;
use crate::store::{Anchored, ChainStore, SealKeyRow};

#[async_trait]
impl ChainStore for Sql {
    async fn seal_keys(&self) -> Result<Vec<SealKeyRow>, StoreError> {
        sqlx::query("SELECT * FROM audit_keys ORDER BY made DESC, id")
            .fetch_all(&self.pool)
            .await
            .map_err(|source| self.database(source))?
            .iter()
            .map(|row| {
                let row = self.row(row);
                let id: String = row.get("id")?;
                let mut key = SealKeyRow {
                    id: [0; 16],
                    spki: row.get("spki")?,
                    token: row.get("token")?,
                    made: when(&row, "made")?,
                };
                hex::decode_to_slice(id, &mut key.id).map_err(|_| row.damaged("id"))?;
                Ok(key)
            })
            .collect()
    }

    async fn add_seal_key(&self, key: &SealKeyRow) -> Result<(), StoreError> {
        let SealKeyRow {
            id,
            spki,
            token,
            made,
        } = key;
        let mut transaction = self.begin().await?;
        sqlx::query("INSERT INTO audit_keys (id, spki, token, made) VALUES ($1, $2, $3, $4)")
            .bind(hex::encode(id))
            .bind(spki.as_slice())
            .bind(token.as_str())
            .bind(text(*made))
            .execute(&mut *transaction)
            .await
            .map_err(|source| self.database(source))?;
        self.commit(transaction).await
    }

    async fn anchor(&self, node: &str) -> Result<Option<Anchored>, StoreError> {
        let row =
            sqlx::query("SELECT * FROM audit_anchors WHERE node = $1 ORDER BY number DESC LIMIT 1")
                .bind(node)
                .fetch_optional(&self.pool)
                .await
                .map_err(|source| self.database(source))?;
        row.map(|row| anchored(&self.row(&row))).transpose()
    }

    async fn anchors(&self) -> Result<Vec<Anchored>, StoreError> {
        sqlx::query(
            "SELECT a.* FROM audit_anchors a
             WHERE a.number = (SELECT MAX(b.number) FROM audit_anchors b WHERE b.node = a.node)
             ORDER BY a.node",
        )
        .fetch_all(&self.pool)
        .await
        .map_err(|source| self.database(source))?
        .iter()
        .map(|row| anchored(&self.row(row)))
        .collect()
    }

    async fn add_anchor(&self, anchor: &Anchored) -> Result<bool, StoreError> {
        let Anchored {
            node,
            number,
            seq,
            hash,
            at,
        } = anchor;
        let mut transaction = self.begin().await?;
        sqlx::query(
            "INSERT INTO audit_anchors (node, number, seq, hash, at) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (node, number) DO NOTHING",
        )
        .bind(node.as_str())
        .bind(number.cast_signed())
        .bind(seq.cast_signed())
        .bind(hash.as_str())
        .bind(text(*at))
        .execute(&mut *transaction)
        .await
        .map_err(|source| self.database(source))?;
        let row = sqlx::query("SELECT hash FROM audit_anchors WHERE node = $1 AND number = $2")
            .bind(node.as_str())
            .bind(number.cast_signed())
            .fetch_one(&mut *transaction)
            .await
            .map_err(|source| self.database(source))?;
        let kept: String = row
            .try_get("hash")
            .map_err(|source| self.database(source))?;
        self.commit(transaction).await?;
        Ok(kept == *hash)
    }

    async fn chain_head(&self, node: &str) -> Result<Option<HeadMark>, StoreError> {
        let row = sqlx::query("SELECT * FROM audit_heads WHERE node = $1")
            .bind(node)
            .fetch_optional(&self.pool)
            .await
            .map_err(|source| self.database(source))?;
        row.map(|row| {
            let row = self.row(&row);
            Ok(HeadMark {
                seq: count(&row, "seq")?,
                hash: row.get("hash")?,
            })
        })
        .transpose()
    }

    async fn set_chain_head(&self, node: &str, head: &HeadMark) -> Result<(), StoreError> {
        let HeadMark { seq, hash } = head;
        let mut transaction = self.begin().await?;
        sqlx::query(
            "INSERT INTO audit_heads (node, seq, hash, at) VALUES ($1, $2, $3, $4)
             ON CONFLICT (node) DO UPDATE
             SET seq = excluded.seq, hash = excluded.hash, at = excluded.at",
        )
        .bind(node)
        .bind(seq.cast_signed())
        .bind(hash.as_str())
        .bind(text(OffsetDateTime::now_utc()))
        .execute(&mut *transaction)
        .await
        .map_err(|source| self.database(source))?;
        self.commit(transaction).await
    }
}

fn anchored(row: &Fields<'_>) -> Result<Anchored, StoreError> {
    Ok(Anchored {
        node: row.get("node")?,
        number: count(row, "number")?,
        seq: count(row, "seq")?,
        hash: row.get("hash")?,
        at: when(row, "at")?,
    })
}

fn text(at: OffsetDateTime) -> String {
    at.format(&Rfc3339).unwrap_or_default()
}

fn when(row: &Fields<'_>, name: &'static str) -> Result<OffsetDateTime, StoreError> {
    let at: String = row.get(name)?;
    OffsetDateTime::parse(&at, &Rfc3339).map_err(|_| row.damaged(name))
}

fn count(row: &Fields<'_>, name: &'static str) -> Result<u64, StoreError> {
    let count: i64 = row.get(name)?;
    u64::try_from(count).map_err(|_| row.damaged(name))
}
