//! What another server's history adds to ours: generations where none has their EEDKs, states where
//! they are further on. Nothing that is there is changed.

use sqlx::{Any, Transaction};
use time::OffsetDateTime;

use super::sync::state_of;
use super::{Sql, text, ticks};
use crate::store::sync::{Given, HistoryRow, TakenIn};
use crate::store::{EedkState, StoreError};
use crate::tls::PeerId;

/// How far a state is: of two servers' words the further one stands.
const fn rank(state: EedkState) -> u8 {
    match state {
        EedkState::Issued => 0,
        EedkState::Abandoned => 1,
        EedkState::Confirmed => 2,
        EedkState::Superseded => 3,
    }
}

/// A generation of ours.
struct Ours {
    dki: String,
    generation: i64,
}

impl Sql {
    /// Our generation with that EEDK.
    async fn generation_with(
        &self,
        transaction: &mut Transaction<'static, Any>,
        eedk: &str,
    ) -> Result<Option<Ours>, StoreError> {
        let found = sqlx::query("SELECT dki, generation FROM eedks WHERE sha256 = $1")
            .bind(eedk)
            .fetch_optional(&mut **transaction)
            .await
            .map_err(|source| self.database(source))?;
        found
            .map(|row| {
                let row = self.row(&row);
                Ok(Ours {
                    dki: row.get("dki")?,
                    generation: row.get("generation")?,
                })
            })
            .transpose()
    }

    pub(super) async fn take_given(
        &self,
        transaction: &mut Transaction<'static, Any>,
        row: &HistoryRow,
        given: &Given,
        taken: &mut TakenIn,
    ) -> Result<(), StoreError> {
        let dki = row.dki.to_string();
        for eedk in &row.eedks {
            if let Some(known) = self.generation_with(transaction, eedk).await? {
                taken.unlike += u64::from(known.dki != dki);
                return Ok(());
            }
        }
        self.alone(transaction, &format!("data key {dki}")).await?;
        let known: Option<i64> =
            sqlx::query_scalar("SELECT \"foreign\" FROM data_keys WHERE dki = $1")
                .bind(&dki)
                .fetch_optional(&mut **transaction)
                .await
                .map_err(|source| self.database(source))?;
        match known {
            // What one holds for foreign may be another key under the same identifier. Beside our
            // own it would count as ours.
            Some(foreign) if (foreign != 0) != row.foreign => {
                taken.unlike += 1;
                return Ok(());
            }
            Some(_) => {}
            None => {
                sqlx::query(
                    "INSERT INTO data_keys (dki, \"foreign\", created) VALUES ($1, $2, $3)",
                )
                .bind(&dki)
                .bind(i64::from(row.foreign))
                .bind(text(given.created))
                .execute(&mut **transaction)
                .await
                .map_err(|source| self.database(source))?;
            }
        }
        let generation = self.free_number(transaction, row, taken).await?;
        self.insert_given(transaction, given, &dki, generation)
            .await?;
        self.note_at(transaction, &dki, generation, row.state, row.at, &row.peer)
            .await?;
        taken.generations += 1;
        Ok(())
    }

    /// The generation's own number, or where that is another's here, the next.
    async fn free_number(
        &self,
        transaction: &mut Transaction<'static, Any>,
        row: &HistoryRow,
        taken: &mut TakenIn,
    ) -> Result<i64, StoreError> {
        let wanted = i64::from(row.generation);
        let numbers = sqlx::query(
            "SELECT COALESCE(MAX(generation), 0) AS last,
                    COALESCE(SUM(CASE WHEN generation = $2 THEN 1 ELSE 0 END), 0) AS there
             FROM generations WHERE dki = $1",
        )
        .bind(row.dki.to_string())
        .bind(wanted)
        .fetch_one(&mut **transaction)
        .await
        .map_err(|source| self.database(source))?;
        let numbers = self.row(&numbers);
        let (last, there): (i64, i64) = (numbers.get("last")?, numbers.get("there")?);
        if there == 0 {
            return Ok(wanted);
        }
        taken.renumbered += 1;
        Ok(last + 1)
    }

    async fn insert_given(
        &self,
        transaction: &mut Transaction<'static, Any>,
        given: &Given,
        dki: &str,
        generation: i64,
    ) -> Result<(), StoreError> {
        let Given {
            volser,
            drive,
            token,
            custody,
            created,
            server,
            job,
            eedks,
            request,
        } = given;
        sqlx::query(
            "INSERT INTO generations
             (dki, generation, volser, drive, token, custody, created, made, server, job)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        )
        .bind(dki)
        .bind(generation)
        .bind(volser.as_str())
        .bind(drive.as_str())
        .bind(token)
        .bind(custody.to_string())
        .bind(text(*created))
        .bind(ticks(*created))
        .bind(server)
        .bind(job.as_deref())
        .execute(&mut **transaction)
        .await
        .map_err(|source| self.database(source))?;
        for (position, stored) in (0_i64..).zip(eedks) {
            sqlx::query(
                "INSERT INTO eedks
                 (sha256, dki, generation, position, der, kek_label, kek_hash, proved, made)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
            )
            .bind(hex::encode(stored.eedk.digest()))
            .bind(dki)
            .bind(generation)
            .bind(position)
            .bind(stored.eedk.as_der())
            .bind(stored.kek_label.as_str())
            .bind(stored.kek_hash.to_string())
            .bind(i64::from(stored.proved))
            .bind(ticks(*created))
            .execute(&mut **transaction)
            .await
            .map_err(|source| self.database(source))?;
        }
        let Some(request) = request else {
            return Ok(());
        };
        // The same request may have been answered here, too: then that stays its answer.
        sqlx::query(
            "INSERT INTO requests (peer, request, digest, dki, generation)
             VALUES ($1, $2, $3, $4, $5) ON CONFLICT (peer, request) DO NOTHING",
        )
        .bind(request.peer.to_string())
        .bind(&request.id)
        .bind(request.digest.as_slice())
        .bind(dki)
        .bind(generation)
        .execute(&mut **transaction)
        .await
        .map(drop)
        .map_err(|source| self.database(source))
    }

    pub(super) async fn take_state(
        &self,
        transaction: &mut Transaction<'static, Any>,
        row: &HistoryRow,
        peer: &PeerId,
        taken: &mut TakenIn,
    ) -> Result<(), StoreError> {
        let first = row.eedks.first().map_or("", String::as_str);
        let Some(ours) = self.generation_with(transaction, first).await? else {
            return Ok(());
        };
        if ours.dki != row.dki.to_string() {
            return Ok(());
        }
        let foreign: i64 = sqlx::query_scalar("SELECT \"foreign\" FROM data_keys WHERE dki = $1")
            .bind(&ours.dki)
            .fetch_one(&mut **transaction)
            .await
            .map_err(|source| self.database(source))?;
        // As for its generations: what became of another key under this identifier says nothing of ours.
        if (foreign != 0) != row.foreign {
            return Ok(());
        }
        let volser: String =
            sqlx::query_scalar("SELECT volser FROM generations WHERE dki = $1 AND generation = $2")
                .bind(&ours.dki)
                .bind(ours.generation)
                .fetch_one(&mut **transaction)
                .await
                .map_err(|source| self.database(source))?;
        // As a confirm does: two that settle one volume would each miss what the other wrote.
        self.alone(transaction, &format!("volume {volser}")).await?;
        let before: String = sqlx::query_scalar(
            "SELECT state FROM eedk_states WHERE dki = $1 AND generation = $2
             ORDER BY id DESC LIMIT 1",
        )
        .bind(&ours.dki)
        .bind(ours.generation)
        .fetch_one(&mut **transaction)
        .await
        .map_err(|source| self.database(source))?;
        let before = state_of(&before).ok_or_else(|| StoreError::Damaged {
            name: self.name.to_string(),
            what: "state".to_owned(),
        })?;
        if rank(row.state) <= rank(before) {
            return Ok(());
        }
        // What took its place may not be here yet, or never: until it is, these EEDKs are needed.
        if row.state == EedkState::Superseded
            && !self.succeeded(transaction, &volser, &ours).await?
        {
            return Ok(());
        }
        self.note_at(
            transaction,
            &ours.dki,
            ours.generation,
            row.state,
            row.at,
            &row.peer,
        )
        .await?;
        taken.states += 1;
        self.settled(transaction, &ours.dki, ours.generation, row.state)
            .await?;
        if row.state == EedkState::Confirmed {
            self.settle_volume(transaction, &volser, peer).await?;
        }
        Ok(())
    }

    /// Whether a drive has confirmed another generation for this volume or data key, as far as is
    /// known here.
    async fn succeeded(
        &self,
        transaction: &mut Transaction<'static, Any>,
        volser: &str,
        ours: &Ours,
    ) -> Result<bool, StoreError> {
        let found = sqlx::query(
            "SELECT g.dki FROM generations g
             WHERE (g.volser = $1 OR g.dki = $2) AND NOT (g.dki = $2 AND g.generation = $3)
               AND (SELECT state FROM eedk_states s
                    WHERE s.dki = g.dki AND s.generation = g.generation
                    ORDER BY id DESC LIMIT 1) = 'confirmed'
             LIMIT 1",
        )
        .bind(volser)
        .bind(&ours.dki)
        .bind(ours.generation)
        .fetch_optional(&mut **transaction)
        .await
        .map_err(|source| self.database(source))?;
        Ok(found.is_some())
    }

    /// Of what drives stored on one volume, the last stands. Two servers may each have confirmed one.
    async fn settle_volume(
        &self,
        transaction: &mut Transaction<'static, Any>,
        volser: &str,
        peer: &PeerId,
    ) -> Result<(), StoreError> {
        let rows = sqlx::query(
            "SELECT s.dki AS dki, s.generation AS generation, s.at AS at
             FROM generations g JOIN eedk_states s ON s.dki = g.dki AND s.generation = g.generation
             WHERE g.volser = $1 AND s.state = 'confirmed'
               AND s.id = (SELECT MAX(id) FROM eedk_states l
                           WHERE l.dki = g.dki AND l.generation = g.generation)",
        )
        .bind(volser)
        .fetch_all(&mut **transaction)
        .await
        .map_err(|source| self.database(source))?;
        let mut confirmed = Vec::with_capacity(rows.len());
        for row in &rows {
            let row = self.row(row);
            let at = self.time("at", &row.get::<String>("at")?)?;
            confirmed.push((at, row.get::<String>("dki")?, row.get::<i64>("generation")?));
        }
        confirmed.sort();
        confirmed.pop();
        for (_, dki, generation) in confirmed {
            self.note_at(
                transaction,
                &dki,
                generation,
                EedkState::Superseded,
                OffsetDateTime::now_utc(),
                &peer.to_string(),
            )
            .await?;
            self.settled(transaction, &dki, generation, EedkState::Superseded)
                .await?;
        }
        Ok(())
    }

    /// As after a confirm: what is stored, or has another in its place, waits for no mount.
    async fn settled(
        &self,
        transaction: &mut Transaction<'static, Any>,
        dki: &str,
        generation: i64,
        state: EedkState,
    ) -> Result<(), StoreError> {
        if !matches!(state, EedkState::Confirmed | EedkState::Superseded) {
            return Ok(());
        }
        let generation = u32::try_from(generation).map_err(|_| StoreError::Damaged {
            name: self.name.to_string(),
            what: "generation".to_owned(),
        })?;
        self.stored_or_gone(transaction, dki, generation).await
    }

    async fn note_at(
        &self,
        transaction: &mut Transaction<'static, Any>,
        dki: &str,
        generation: i64,
        state: EedkState,
        at: OffsetDateTime,
        peer: &str,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO eedk_states (dki, generation, state, at, peer) VALUES ($1, $2, $3, $4, $5)",
        )
        .bind(dki)
        .bind(generation)
        .bind(state.to_string())
        .bind(text(at.to_offset(time::UtcOffset::UTC)))
        .bind(peer)
        .execute(&mut **transaction)
        .await
        .map(drop)
        .map_err(|source| self.database(source))
    }
}
