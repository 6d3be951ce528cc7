//! The history page by page, and what of another's history is not known here.

use sqlx::{Any, Transaction};

use super::{Sql, text, ticks};
use crate::key::DataKeyId;
use crate::store::merge::VolumesTaken;
use crate::store::{EedkState, StoreError, VolumeKey};

impl Sql {
    pub(super) async fn page(
        &self,
        after: Option<(DataKeyId, u32)>,
        most: u32,
    ) -> Result<Vec<VolumeKey>, StoreError> {
        let (dki, generation) = after.map_or_else(
            || (String::new(), 0),
            |(dki, generation)| (dki.to_string(), generation),
        );
        let rows = sqlx::query(
            "SELECT * FROM generations
             WHERE (dki, generation) > ($1, $2)
             ORDER BY dki, generation LIMIT $3",
        )
        .bind(dki)
        .bind(i64::from(generation))
        .bind(i64::from(most))
        .fetch_all(&self.pool)
        .await
        .map_err(|source| self.database(source))?;
        let mut keys = Vec::with_capacity(rows.len());
        for row in &rows {
            keys.push(self.volume_of(row).await?);
        }
        Ok(keys)
    }

    pub(super) async fn take_history(
        &self,
        keys: &[VolumeKey],
        operator: &str,
        apply: bool,
    ) -> Result<VolumesTaken, StoreError> {
        let mut transaction = self.begin_history().await?;
        let mut taken = VolumesTaken::default();
        for key in keys {
            self.take_one(&mut transaction, key, operator, &mut taken)
                .await?;
        }
        if apply {
            self.commit(transaction).await?;
        }
        Ok(taken)
    }

    async fn take_one(
        &self,
        transaction: &mut Transaction<'static, Any>,
        key: &VolumeKey,
        operator: &str,
        taken: &mut VolumesTaken,
    ) -> Result<(), StoreError> {
        let dki = key.dki.to_string();
        self.alone(transaction, &format!("data key {dki}")).await?;
        let known: Vec<String> = sqlx::query_scalar(
            "SELECT sha256 FROM eedks WHERE dki = $1 AND generation = $2 ORDER BY position",
        )
        .bind(&dki)
        .bind(i64::from(key.generation))
        .fetch_all(&mut **transaction)
        .await
        .map_err(|source| self.database(source))?;
        let theirs: Vec<String> = key
            .eedks
            .iter()
            .map(|stored| hex::encode(stored.eedk.digest()))
            .collect();
        if !known.is_empty() {
            if known == theirs {
                taken.known += 1;
            } else {
                taken.other += 1;
            }
            return Ok(());
        }
        for digest in &theirs {
            let there: Option<String> =
                sqlx::query_scalar("SELECT dki FROM eedks WHERE sha256 = $1")
                    .bind(digest)
                    .fetch_optional(&mut **transaction)
                    .await
                    .map_err(|source| self.database(source))?;
            if there.is_some() {
                taken.other += 1;
                return Ok(());
            }
        }
        let foreign: Option<i64> =
            sqlx::query_scalar("SELECT \"foreign\" FROM data_keys WHERE dki = $1")
                .bind(&dki)
                .fetch_optional(&mut **transaction)
                .await
                .map_err(|source| self.database(source))?;
        // Beside our own it would count as ours, and who wrote the file may know what is in it.
        if foreign == Some(0) {
            taken.other += 1;
            return Ok(());
        }
        // Whoever wrote the file may know the data key, so nothing is appended under it.
        sqlx::query(
            "INSERT INTO data_keys (dki, \"foreign\", created) VALUES ($1, 1, $2)
             ON CONFLICT (dki) DO NOTHING",
        )
        .bind(&dki)
        .bind(text(key.created))
        .execute(&mut **transaction)
        .await
        .map_err(|source| self.database(source))?;
        sqlx::query(
            "INSERT INTO generations
             (dki, generation, volser, drive, token, custody, created, made, server, job)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        )
        .bind(&dki)
        .bind(i64::from(key.generation))
        .bind(key.volser.as_str())
        .bind(key.drive.as_str())
        .bind(&key.token)
        .bind(key.custody.to_string())
        .bind(text(key.created.to_offset(time::UtcOffset::UTC)))
        .bind(ticks(key.created))
        .bind(&key.server)
        .bind(key.job.as_deref())
        .execute(&mut **transaction)
        .await
        .map_err(|source| self.database(source))?;
        for (position, stored) in (0_i64..).zip(&key.eedks) {
            sqlx::query(
                "INSERT INTO eedks
                 (sha256, dki, generation, position, der, kek_label, kek_hash, proved, made)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
            )
            .bind(hex::encode(stored.eedk.digest()))
            .bind(&dki)
            .bind(i64::from(key.generation))
            .bind(position)
            .bind(stored.eedk.as_der())
            .bind(stored.kek_label.as_str())
            .bind(stored.kek_hash.to_string())
            .bind(i64::from(stored.proved))
            .bind(ticks(key.created))
            .execute(&mut **transaction)
            .await
            .map_err(|source| self.database(source))?;
        }
        let states = [EedkState::Issued, key.state];
        let some = if key.state == EedkState::Issued { 1 } else { 2 };
        for state in states.into_iter().take(some) {
            sqlx::query(
                "INSERT INTO eedk_states (dki, generation, state, at, peer)
                 VALUES ($1, $2, $3, $4, $5)",
            )
            .bind(&dki)
            .bind(i64::from(key.generation))
            .bind(state.to_string())
            .bind(super::now())
            .bind(operator)
            .execute(&mut **transaction)
            .await
            .map_err(|source| self.database(source))?;
        }
        taken.added += 1;
        Ok(())
    }
}
