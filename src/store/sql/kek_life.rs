//! States of KEKs, planned moves, schedules.

use std::sync::Arc;

use async_trait::async_trait;
use sqlx::{Any, Transaction};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Fields, Sql, json, now, text, ticks};
use crate::key::{KekHash, KekRef, KeyLabel};
use crate::store::{
    Defaults, KekLife, KekMove, KekSchedule, KekStanding, KekState, KekStates, MoveState, Moved,
    StateChange, StoreError, StoredEedk,
};
use crate::volser::Volser;

/// How long a server has a schedule that it took, microseconds.
const TAKEN: i64 = 600_000_000;

/// What the name of a setting begins with that says that a KEK opened what was not issued here.
const FOREIGN: &str = "foreign:";

/// Who gives a KEK another state is alone with it; who writes under it may be many.
pub(super) fn kek_lock(kek: &KekHash) -> String {
    format!("kek {kek}")
}

impl Sql {
    /// That every KEK may be written under now, and until the transaction ends.
    pub(super) async fn writable(
        &self,
        transaction: &mut Transaction<'static, Any>,
        eedks: &[StoredEedk],
    ) -> Result<(), StoreError> {
        for stored in eedks {
            self.beside(transaction, &kek_lock(&stored.kek_hash))
                .await?;
            let state: Option<String> = sqlx::query_scalar(
                "SELECT state FROM kek_states WHERE kek = $1 ORDER BY id DESC LIMIT 1",
            )
            .bind(stored.kek_hash.to_string())
            .fetch_optional(&mut **transaction)
            .await
            .map_err(|source| self.database(source))?;
            if let Some(state) = state.filter(|state| *state != KekState::Active.to_string()) {
                return Err(StoreError::KekClosed {
                    label: stored.kek_label.to_string(),
                    state,
                });
            }
        }
        Ok(())
    }

    fn moment_of(row: &Fields<'_>, column: &str) -> Result<OffsetDateTime, StoreError> {
        let text: String = row.get(column)?;
        OffsetDateTime::parse(&text, &Rfc3339).map_err(|_| row.damaged(column))
    }

    pub(super) fn moment(row: &Fields<'_>, column: &str) -> Result<OffsetDateTime, StoreError> {
        let micros: i64 = row.get(column)?;
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros) * 1000)
            .map_err(|_| row.damaged(column))
    }
}

#[async_trait]
impl KekLife for Sql {
    async fn kek_states(&self) -> Result<Arc<KekStates>, StoreError> {
        let rows = sqlx::query(
            "SELECT * FROM kek_states WHERE id IN (SELECT MAX(id) FROM kek_states GROUP BY kek)",
        )
        .fetch_all(&self.pool)
        .await
        .map_err(|source| self.database(source))?;
        let states: Result<KekStates, StoreError> = rows
            .iter()
            .map(|row| {
                let row = self.row(row);
                let standing = KekStanding {
                    state: row.parsed("state")?,
                    since: Self::moment_of(&row, "at")?,
                    by: row.get("operator")?,
                    reason: row.get("reason")?,
                    row: row.get("id")?,
                };
                Ok((row.parsed::<KekHash>("kek")?, standing))
            })
            .collect();
        states.map(Arc::new)
    }

    async fn set_kek_state(&self, change: &StateChange) -> Result<bool, StoreError> {
        let StateChange {
            kek,
            state,
            by,
            reason,
            before,
        } = change;
        let mut transaction = self.begin().await?;
        self.alone(&mut transaction, &kek_lock(kek)).await?;
        let last: Option<i64> =
            sqlx::query_scalar("SELECT id FROM kek_states WHERE kek = $1 ORDER BY id DESC LIMIT 1")
                .bind(kek.to_string())
                .fetch_optional(&mut *transaction)
                .await
                .map_err(|source| self.database(source))?;
        if last.unwrap_or_default() != *before {
            return Ok(false);
        }
        let at = text(self.clock(&mut transaction).await?);
        sqlx::query(
            "INSERT INTO kek_states (kek, state, reason, operator, at) VALUES ($1, $2, $3, $4, $5)",
        )
        .bind(kek.to_string())
        .bind(state.to_string())
        .bind(reason.as_deref())
        .bind(by)
        .bind(at)
        .execute(&mut *transaction)
        .await
        .map_err(|source| self.database(source))?;
        self.commit(transaction).await?;
        Ok(true)
    }

    async fn overwritten_since(
        &self,
        kek: &KekHash,
        since: OffsetDateTime,
        most: usize,
    ) -> Result<Vec<Volser>, StoreError> {
        // Materialized: the planner would walk all volumes to find a few.
        let rows = sqlx::query(
            "WITH lately AS MATERIALIZED (
               SELECT s.id, s.dki, s.generation FROM eedk_states s
               WHERE s.state = 'superseded' AND s.at >= $1
                 AND EXISTS (SELECT 1 FROM eedks e WHERE e.dki = s.dki
                       AND e.generation = s.generation AND e.kek_hash = $2))
             SELECT DISTINCT g.volser FROM lately s
             JOIN generations g ON g.dki = s.dki AND g.generation = s.generation
             WHERE EXISTS (SELECT 1 FROM eedk_states c WHERE c.dki = s.dki
                     AND c.generation = s.generation AND c.id < s.id AND c.state = 'confirmed')
               AND NOT EXISTS (SELECT 1 FROM generations o WHERE o.dki = s.dki
                     AND (SELECT state FROM eedk_states n WHERE n.dki = o.dki
                          AND n.generation = o.generation ORDER BY id DESC LIMIT 1) = 'confirmed')
             LIMIT $3",
        )
        .bind(text(since))
        .bind(kek.to_string())
        .bind(i64::try_from(most).unwrap_or(i64::MAX))
        .fetch_all(&self.pool)
        .await
        .map_err(|source| self.database(source))?;
        rows.iter()
            .map(|row| self.row(row).parsed("volser"))
            .collect()
    }

    async fn move_kek(&self, former: &KeyLabel, successor: &KeyLabel) -> Result<Moved, StoreError> {
        let moved = |kek: &Option<KekRef>| {
            kek.as_ref()
                .filter(|kek| kek.label.same_as(former))
                .map(|kek| KekRef {
                    label: successor.clone(),
                    encoding: kek.encoding,
                })
        };
        let mut done = Moved::default();
        let mut transaction = self.begin().await?;
        self.alone(&mut transaction, "defaults").await?;
        let row = sqlx::query("SELECT value FROM settings WHERE name = 'defaults'")
            .fetch_optional(&mut *transaction)
            .await
            .map_err(|source| self.database(source))?;
        let defaults: Defaults = match &row {
            Some(row) => self.row(row).json("value")?,
            None => Defaults::default(),
        };
        let (kek1, kek2) = (moved(&defaults.kek1), moved(&defaults.kek2));
        if kek1.is_some() || kek2.is_some() {
            done.defaults = true;
            let defaults = Defaults {
                kek1: kek1.or(defaults.kek1),
                kek2: kek2.or(defaults.kek2),
            };
            sqlx::query("UPDATE settings SET value = $1, updated = $2 WHERE name = 'defaults'")
                .bind(json(&defaults))
                .bind(now())
                .execute(&mut *transaction)
                .await
                .map_err(|source| self.database(source))?;
        }
        let rows = sqlx::query(
            "SELECT serial, kek1, kek2 FROM drives WHERE deleted IS NULL ORDER BY serial",
        )
        .fetch_all(&mut *transaction)
        .await
        .map_err(|source| self.database(source))?;
        for row in &rows {
            let row = self.row(row);
            let (old1, old2) = (row.maybe("kek1")?, row.maybe("kek2")?);
            let (kek1, kek2) = (moved(&old1), moved(&old2));
            if kek1.is_none() && kek2.is_none() {
                continue;
            }
            let serial: String = row.get("serial")?;
            sqlx::query("UPDATE drives SET kek1 = $2, kek2 = $3, updated = $4 WHERE serial = $1")
                .bind(&serial)
                .bind(kek1.or(old1).map(|kek| kek.to_string()))
                .bind(kek2.or(old2).map(|kek| kek.to_string()))
                .bind(now())
                .execute(&mut *transaction)
                .await
                .map_err(|source| self.database(source))?;
            done.drives.push(row.parsed("serial")?);
        }
        self.commit(transaction).await?;
        Ok(done)
    }

    async fn kek_moves(&self) -> Result<Vec<KekMove>, StoreError> {
        sqlx::query("SELECT * FROM kek_moves ORDER BY due DESC, id")
            .fetch_all(&self.pool)
            .await
            .map_err(|source| self.database(source))?
            .iter()
            .map(|row| {
                let row = self.row(row);
                Ok(KekMove {
                    id: row.parsed("id")?,
                    former: row.parsed("former")?,
                    successor: row.parsed("successor")?,
                    due: Self::moment(&row, "due")?,
                    operator: row.get("operator")?,
                    state: match row.get::<String>("state")?.as_str() {
                        "planned" => MoveState::Planned,
                        "done" => MoveState::Done,
                        _ => return Err(row.damaged("state")),
                    },
                    note: row.get("note")?,
                })
            })
            .collect()
    }

    async fn put_kek_move(&self, planned: &KekMove) -> Result<(), StoreError> {
        let KekMove {
            id,
            former,
            successor,
            due,
            operator,
            state,
            note,
        } = planned;
        let mut transaction = self.begin().await?;
        sqlx::query(
            "INSERT INTO kek_moves (id, former, successor, due, operator, state, note)
             VALUES ($1, $2, $3, $4, $5, $6, $7)
             ON CONFLICT (id) DO UPDATE SET state = excluded.state, note = excluded.note,
                 due = excluded.due
             WHERE kek_moves.state <> 'done'",
        )
        .bind(id.to_string())
        .bind(former.as_str())
        .bind(successor.as_str())
        .bind(ticks(*due))
        .bind(operator)
        .bind(match state {
            MoveState::Planned => "planned",
            MoveState::Done => "done",
        })
        .bind(note.as_deref())
        .execute(&mut *transaction)
        .await
        .map_err(|source| self.database(source))?;
        self.commit(transaction).await
    }

    async fn kek_schedules(&self) -> Result<Vec<KekSchedule>, StoreError> {
        sqlx::query("SELECT * FROM kek_schedules ORDER BY folded")
            .fetch_all(&self.pool)
            .await
            .map_err(|source| self.database(source))?
            .iter()
            .map(|row| {
                let row = self.row(row);
                Ok(KekSchedule {
                    label: row.parsed("label")?,
                    every: row.parsed("every")?,
                    due: Self::moment(&row, "due")?,
                    operator: row.get("operator")?,
                    making: row.maybe("making")?,
                    trouble: row.get("trouble")?,
                })
            })
            .collect()
    }

    async fn put_kek_schedule(&self, schedule: &KekSchedule) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        self.insert_schedule(&mut transaction, schedule).await?;
        self.commit(transaction).await
    }

    async fn note_foreign(&self, kek: &KekHash, volser: Option<&Volser>) -> Result<(), StoreError> {
        let volume = volser.map_or_else(
            || "of a volume without a name".to_owned(),
            |volser| format!("of volume {volser}"),
        );
        let mut transaction = self.begin().await?;
        sqlx::query(
            "INSERT INTO settings (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING",
        )
        .bind(format!("{FOREIGN}{kek}"))
        .bind(json(&format!("first {volume} at {}", now())))
        .execute(&mut *transaction)
        .await
        .map_err(|source| self.database(source))?;
        self.commit(transaction).await
    }

    async fn foreign_keks(&self) -> Result<Vec<(KekHash, String)>, StoreError> {
        sqlx::query("SELECT name, value FROM settings WHERE name LIKE 'foreign:%' ORDER BY name")
            .fetch_all(&self.pool)
            .await
            .map_err(|source| self.database(source))?
            .iter()
            .map(|row| {
                let row = self.row(row);
                let name: String = row.get("name")?;
                let kek = name.trim_start_matches(FOREIGN).parse();
                let kek = kek.map_err(|_| row.damaged("name"))?;
                Ok((kek, row.json("value")?))
            })
            .collect()
    }

    async fn remove_kek_schedule(&self, label: &KeyLabel) -> Result<bool, StoreError> {
        let mut transaction = self.begin().await?;
        let done = sqlx::query("DELETE FROM kek_schedules WHERE folded = $1")
            .bind(label.folded())
            .execute(&mut *transaction)
            .await
            .map_err(|source| self.database(source))?;
        self.commit(transaction).await?;
        Ok(done.rows_affected() > 0)
    }

    async fn take_kek_schedule(&self, label: &KeyLabel, node: &str) -> Result<bool, StoreError> {
        let at = ticks(OffsetDateTime::now_utc());
        let mut transaction = self.begin().await?;
        let done = sqlx::query(
            "UPDATE kek_schedules SET owner = $2, beat = $3
             WHERE folded = $1 AND (owner = $2 OR beat < $4)",
        )
        .bind(label.folded())
        .bind(node)
        .bind(at)
        .bind(at - TAKEN)
        .execute(&mut *transaction)
        .await
        .map_err(|source| self.database(source))?;
        self.commit(transaction).await?;
        Ok(done.rows_affected() > 0)
    }

    async fn advance_kek_schedule(
        &self,
        label: &KeyLabel,
        next: &KekSchedule,
    ) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        let done = sqlx::query("DELETE FROM kek_schedules WHERE folded = $1")
            .bind(label.folded())
            .execute(&mut *transaction)
            .await
            .map_err(|source| self.database(source))?;
        // One that was removed meanwhile stays removed.
        if done.rows_affected() > 0 {
            self.insert_schedule(&mut transaction, next).await?;
        }
        self.commit(transaction).await
    }
}

impl Sql {
    async fn insert_schedule(
        &self,
        transaction: &mut Transaction<'static, Any>,
        schedule: &KekSchedule,
    ) -> Result<(), StoreError> {
        let KekSchedule {
            label,
            every,
            due,
            operator,
            making,
            trouble,
        } = schedule;
        sqlx::query(
            "INSERT INTO kek_schedules
             (folded, label, every, due, operator, making, owner, beat, trouble)
             VALUES ($1, $2, $3, $4, $5, $6, '', 0, $7)
             ON CONFLICT (folded) DO UPDATE SET label = excluded.label, every = excluded.every,
                 due = excluded.due, operator = excluded.operator, making = excluded.making,
                 trouble = excluded.trouble",
        )
        .bind(label.folded())
        .bind(label.as_str())
        .bind(every.to_string())
        .bind(ticks(*due))
        .bind(operator)
        .bind(making.as_ref().map(KeyLabel::as_str))
        .bind(trouble.as_deref())
        .execute(&mut **transaction)
        .await
        .map_err(|source| self.database(source))?;
        Ok(())
    }
}
