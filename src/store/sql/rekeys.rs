//! Rekeys from the catalog, and EEDKs that are not on their cartridge yet.

use async_trait::async_trait;
use sqlx::AssertSqlSafe;
use sqlx::any::AnyRow;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use super::{Sql, json, now, text, ticks};
use crate::key::DataKeyId;
use crate::store::{
    Issuance, Issued, RekeyCount, RekeyFailure, RekeyJob, RekeyPlace, RekeyState, Rekeys,
    StoreError, Unstored,
};

/// How long a server has a rekey since it last said where it is, microseconds.
const TAKEN: i64 = 60_000_000;

impl Sql {
    fn rekey_of(&self, row: &AnyRow) -> Result<RekeyJob, StoreError> {
        let row = self.row(row);
        let began: String = row.get("began")?;
        let place: Option<String> = row.get("place")?;
        let number = |column: &str| {
            let number: i64 = row.get(column)?;
            u64::try_from(number).map_err(|_| row.damaged(column))
        };
        Ok(RekeyJob {
            id: row.parsed("id")?,
            asked: row.json("asked")?,
            operator: row.get("operator")?,
            began: OffsetDateTime::parse(&began, &Rfc3339).map_err(|_| row.damaged("began"))?,
            state: row.parsed("state")?,
            why: row.get("why")?,
            owner: row.get("owner")?,
            place: match place {
                Some(_) => Some(row.json::<RekeyPlace>("place")?),
                None => None,
            },
            total: number("total")?,
            count: RekeyCount {
                looked: number("looked")?,
                done: number("done")?,
                skipped: number("skipped")?,
                failed: number("failed")?,
            },
        })
    }
}

fn number(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[async_trait]
impl Rekeys for Sql {
    async fn add_rekey(&self, job: &RekeyJob) -> Result<(), StoreError> {
        let RekeyJob {
            id,
            asked,
            operator,
            began,
            state,
            why,
            owner,
            place,
            total,
            count,
        } = job;
        let mut transaction = self.begin().await?;
        sqlx::query(
            "INSERT INTO rekeys (id, asked, operator, began, made, state, why, owner, beat, place,
                                 total, looked, done, skipped, failed)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 0, $9, $10, $11, $12, $13, $14)",
        )
        .bind(id.to_string())
        .bind(json(asked))
        .bind(operator)
        .bind(text(*began))
        .bind(ticks(*began))
        .bind(state.to_string())
        .bind(why.as_deref())
        .bind(owner)
        .bind(place.as_ref().map(json))
        .bind(number(*total))
        .bind(number(count.looked))
        .bind(number(count.done))
        .bind(number(count.skipped))
        .bind(number(count.failed))
        .execute(&mut *transaction)
        .await
        .map_err(|source| self.database(source))?;
        self.commit(transaction).await
    }

    async fn rekeys(&self, limit: usize) -> Result<Vec<RekeyJob>, StoreError> {
        sqlx::query("SELECT * FROM rekeys ORDER BY made DESC, id LIMIT $1")
            .bind(i64::try_from(limit).unwrap_or(i64::MAX))
            .fetch_all(&self.pool)
            .await
            .map_err(|source| self.database(source))?
            .iter()
            .map(|row| self.rekey_of(row))
            .collect()
    }

    async fn rekey_job(&self, id: &Uuid) -> Result<Option<RekeyJob>, StoreError> {
        let row = sqlx::query("SELECT * FROM rekeys WHERE id = $1")
            .bind(id.to_string())
            .fetch_optional(&self.pool)
            .await
            .map_err(|source| self.database(source))?;
        row.map(|row| self.rekey_of(&row)).transpose()
    }

    async fn running_rekeys(&self) -> Result<Vec<RekeyJob>, StoreError> {
        sqlx::query("SELECT * FROM rekeys WHERE state = 'running' ORDER BY made, id")
            .fetch_all(&self.pool)
            .await
            .map_err(|source| self.database(source))?
            .iter()
            .map(|row| self.rekey_of(row))
            .collect()
    }

    async fn take_rekey(&self, id: &Uuid, node: &str) -> Result<bool, StoreError> {
        let at = ticks(OffsetDateTime::now_utc());
        let mut transaction = self.begin().await?;
        let done = sqlx::query(
            "UPDATE rekeys SET owner = $2, beat = $3
             WHERE id = $1 AND state = 'running' AND (owner = $2 OR beat < $4)",
        )
        .bind(id.to_string())
        .bind(node)
        .bind(at)
        .bind(at - TAKEN)
        .execute(&mut *transaction)
        .await
        .map_err(|source| self.database(source))?;
        self.commit(transaction).await?;
        Ok(done.rows_affected() > 0)
    }

    async fn advance_rekey(
        &self,
        id: &Uuid,
        node: &str,
        place: Option<RekeyPlace>,
        count: &RekeyCount,
        why: Option<&str>,
    ) -> Result<bool, StoreError> {
        let mut transaction = self.begin().await?;
        let done = sqlx::query(
            "UPDATE rekeys SET place = $3, looked = $4, done = $5, skipped = $6, failed = $7,
                 beat = $8, why = $9
             WHERE id = $1 AND owner = $2 AND state = 'running'",
        )
        .bind(id.to_string())
        .bind(node)
        .bind(place.as_ref().map(json))
        .bind(number(count.looked))
        .bind(number(count.done))
        .bind(number(count.skipped))
        .bind(number(count.failed))
        .bind(ticks(OffsetDateTime::now_utc()))
        .bind(why)
        .execute(&mut *transaction)
        .await
        .map_err(|source| self.database(source))?;
        self.commit(transaction).await?;
        Ok(done.rows_affected() > 0)
    }

    async fn turn_rekey(
        &self,
        id: &Uuid,
        from: &[RekeyState],
        to: RekeyState,
        why: Option<&str>,
    ) -> Result<bool, StoreError> {
        // The names of states, which are constants.
        let states: Vec<String> = from.iter().map(|state| format!("'{state}'")).collect();
        let anew = if to == RekeyState::Running {
            ", place = NULL, looked = 0, done = 0, skipped = 0, failed = 0, owner = '', beat = 0"
        } else {
            ""
        };
        let sql = AssertSqlSafe(format!(
            "UPDATE rekeys SET state = $2, why = $3{anew} WHERE id = $1 AND state IN ({})",
            states.join(", ")
        ));
        let mut transaction = self.begin().await?;
        let done = sqlx::query(sql)
            .bind(id.to_string())
            .bind(to.to_string())
            .bind(why)
            .execute(&mut *transaction)
            .await
            .map_err(|source| self.database(source))?;
        if done.rows_affected() > 0 && to == RekeyState::Running {
            sqlx::query("DELETE FROM rekey_failures WHERE rekey = $1")
                .bind(id.to_string())
                .execute(&mut *transaction)
                .await
                .map_err(|source| self.database(source))?;
        }
        self.commit(transaction).await?;
        Ok(done.rows_affected() > 0)
    }

    async fn note_rekey_failure(
        &self,
        id: &Uuid,
        failure: &RekeyFailure,
    ) -> Result<(), StoreError> {
        let RekeyFailure {
            dki,
            volser,
            reason,
        } = failure;
        let mut transaction = self.begin().await?;
        sqlx::query(
            "INSERT INTO rekey_failures (rekey, dki, volser, reason, at) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (rekey, dki) DO UPDATE SET reason = excluded.reason, at = excluded.at",
        )
        .bind(id.to_string())
        .bind(dki.to_string())
        .bind(volser.as_str())
        .bind(reason)
        .bind(now())
        .execute(&mut *transaction)
        .await
        .map_err(|source| self.database(source))?;
        self.commit(transaction).await
    }

    async fn rekey_failures(
        &self,
        id: &Uuid,
        limit: usize,
    ) -> Result<Vec<RekeyFailure>, StoreError> {
        sqlx::query("SELECT * FROM rekey_failures WHERE rekey = $1 ORDER BY dki LIMIT $2")
            .bind(id.to_string())
            .bind(i64::try_from(limit).unwrap_or(i64::MAX))
            .fetch_all(&self.pool)
            .await
            .map_err(|source| self.database(source))?
            .iter()
            .map(|row| {
                let row = self.row(row);
                Ok(RekeyFailure {
                    dki: row.parsed("dki")?,
                    volser: row.parsed("volser")?,
                    reason: row.get("reason")?,
                })
            })
            .collect()
    }

    async fn issue_unmounted(&self, issuance: &Issuance) -> Result<Issued, StoreError> {
        self.insert_set(issuance, true, OffsetDateTime::now_utc(), true)
            .await
    }

    async fn unstored(&self, dki: &DataKeyId) -> Result<Option<Unstored>, StoreError> {
        let rows = sqlx::query(
            "SELECT u.request, u.generation, e.der, e.kek_label, e.kek_hash, e.proved
             FROM unstored u JOIN eedks e ON e.dki = u.dki AND e.generation = u.generation
             WHERE u.dki = $1 ORDER BY e.position",
        )
        .bind(dki.to_string())
        .fetch_all(&self.pool)
        .await
        .map_err(|source| self.database(source))?;
        let Some(first) = rows.first() else {
            return Ok(None);
        };
        let first = self.row(first);
        Ok(Some(Unstored {
            request: first.parsed("request")?,
            generation: first.count("generation")?,
            eedks: rows
                .iter()
                .map(|row| self.stored_eedk(row))
                .collect::<Result<_, StoreError>>()?,
        }))
    }

    async fn any_unstored(&self) -> Result<bool, StoreError> {
        let found: Option<i64> = sqlx::query_scalar("SELECT generation FROM unstored LIMIT 1")
            .fetch_optional(&self.pool)
            .await
            .map_err(|source| self.database(source))?;
        Ok(found.is_some())
    }
}
