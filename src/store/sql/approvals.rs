//! The rows of what waits for a second person.

use async_trait::async_trait;
use sqlx::any::AnyRow;
use time::OffsetDateTime;

use super::{Sql, ticks};
use crate::store::StoreError;
use crate::store::approvals::{Approval, ApprovalState, Approvals, Decision, Kept};

/// Who adds a request is alone with that.
const LOCK: &str = "approvals";

impl Sql {
    fn approval_of(&self, row: &AnyRow) -> Result<Approval, StoreError> {
        let row = self.row(row);
        let uid: Option<i64> = row.get("asked_uid")?;
        Ok(Approval {
            id: row.get("id")?,
            words: row.get("words")?,
            command: row.get("command")?,
            permit: row.flag("permit")?,
            asked_by: row.get("asked_by")?,
            asked_uid: uid.and_then(|uid| u32::try_from(uid).ok()),
            asker: row.get("asker")?,
            asked: row.time("asked")?,
            expires: row.time("expires")?,
            state: row.parsed("state")?,
            decided_by: row.get("decided_by")?,
            decided: row.maybe_time("decided")?,
            outcome: row.get("outcome")?,
        })
    }
}

#[async_trait]
impl Approvals for Sql {
    async fn ask_approval(&self, approval: &Approval, most: u32) -> Result<Kept, StoreError> {
        let Approval {
            id,
            words,
            command,
            permit,
            asked_by,
            asked_uid,
            asker,
            asked,
            expires,
            state,
            decided_by: _,
            decided: _,
            outcome: _,
        } = approval;
        let mut transaction = self.begin().await?;
        self.alone(&mut transaction, LOCK).await?;
        let open = sqlx::query("SELECT * FROM approvals WHERE state = 'open' AND expires > $1")
            .bind(ticks(*asked))
            .fetch_all(&mut *transaction)
            .await
            .map_err(|source| self.database(source))?;
        for row in &open {
            let known = self.approval_of(row)?;
            if known.asked_by == *asked_by && known.words == *words && known.command == *command {
                return Ok(Kept::Already(Box::new(known)));
            }
        }
        if u32::try_from(open.len()).unwrap_or(u32::MAX) >= most {
            return Ok(Kept::Full);
        }
        sqlx::query(
            "INSERT INTO approvals
             (id, words, command, permit, asked_by, asked_uid, asker, asked, expires, state)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        )
        .bind(id)
        .bind(words)
        .bind(command)
        .bind(i64::from(*permit))
        .bind(asked_by)
        .bind(asked_uid.map(i64::from))
        .bind(asker)
        .bind(ticks(*asked))
        .bind(ticks(*expires))
        .bind(state.to_string())
        .execute(&mut *transaction)
        .await
        .map_err(|source| self.database(source))?;
        self.commit(transaction).await?;
        Ok(Kept::New)
    }

    async fn approvals(&self) -> Result<Vec<Approval>, StoreError> {
        sqlx::query("SELECT * FROM approvals ORDER BY asked DESC, id LIMIT 1000")
            .fetch_all(&self.pool)
            .await
            .map_err(|source| self.database(source))?
            .iter()
            .map(|row| self.approval_of(row))
            .collect()
    }

    async fn approval(&self, id: &str) -> Result<Option<Approval>, StoreError> {
        sqlx::query("SELECT * FROM approvals WHERE id = $1")
            .bind(id)
            .fetch_optional(&self.pool)
            .await
            .map_err(|source| self.database(source))?
            .map(|row| self.approval_of(&row))
            .transpose()
    }

    async fn decide_approval(&self, id: &str, decision: &Decision) -> Result<bool, StoreError> {
        let Decision {
            state,
            by,
            at,
            expires,
            outcome,
        } = decision;
        let mut transaction = self.begin().await?;
        // Of two servers the one that comes second waits for the row, and finds it decided.
        let done = sqlx::query(
            "UPDATE approvals SET state = $2, decided_by = $3, decided = $4,
                 expires = COALESCE($5, expires), outcome = $6
             WHERE id = $1 AND state = 'open' AND expires > $4",
        )
        .bind(id)
        .bind(state.to_string())
        .bind(by)
        .bind(ticks(*at))
        .bind(expires.map(ticks))
        .bind(outcome)
        .execute(&mut *transaction)
        .await
        .map_err(|source| self.database(source))?;
        self.commit(transaction).await?;
        Ok(done.rows_affected() == 1)
    }

    async fn end_approval(
        &self,
        id: &str,
        state: ApprovalState,
        outcome: &str,
    ) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        sqlx::query(
            "UPDATE approvals SET state = $2, outcome = $3 WHERE id = $1 AND state = 'running'",
        )
        .bind(id)
        .bind(state.to_string())
        .bind(outcome)
        .execute(&mut *transaction)
        .await
        .map_err(|source| self.database(source))?;
        self.commit(transaction).await
    }

    async fn use_permit(
        &self,
        asked_by: &str,
        words: &str,
        now: OffsetDateTime,
    ) -> Result<Option<Approval>, StoreError> {
        let mut transaction = self.begin().await?;
        self.alone(&mut transaction, LOCK).await?;
        let row = sqlx::query(
            "SELECT * FROM approvals
             WHERE state = 'permitted' AND asked_by = $1 AND words = $2 AND expires > $3
             ORDER BY asked LIMIT 1",
        )
        .bind(asked_by)
        .bind(words)
        .bind(ticks(now))
        .fetch_optional(&mut *transaction)
        .await
        .map_err(|source| self.database(source))?;
        let Some(row) = row else {
            return Ok(None);
        };
        let permit = self.approval_of(&row)?;
        sqlx::query("UPDATE approvals SET state = 'used' WHERE id = $1")
            .bind(&permit.id)
            .execute(&mut *transaction)
            .await
            .map_err(|source| self.database(source))?;
        self.commit(transaction).await?;
        Ok(Some(permit))
    }
}
