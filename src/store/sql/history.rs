//! What was issued and what became of it: rows that are added and never changed.

use sqlx::any::AnyRow;
use sqlx::{Any, Transaction};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Sql, now, text, ticks};
use crate::drive::DriveSerial;
use crate::key::{DataKeyId, Eedk};
use crate::store::{
    EedkState, Issuance, Issued, Origin, RequestKey, StoreError, StoredEedk, VolumeKey,
};
use crate::tls::PeerId;

/// EEDKs of one generation; a statement costs a way to the database and back.
const ONE_EEDK: &str = "INSERT INTO eedks
    (dki, generation, made, sha256, position, der, kek_label, kek_hash, proved)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)";

/// Two of them.
const TWO_EEDKS: &str = "INSERT INTO eedks
    (dki, generation, made, sha256, position, der, kek_label, kek_hash, proved)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9), ($1, $2, $3, $10, $11, $12, $13, $14, $15)";

impl Sql {
    pub(super) async fn insert_issuance(
        &self,
        issuance: &Issuance,
        at: OffsetDateTime,
    ) -> Result<Issued, StoreError> {
        self.insert_set(issuance, false, at, true).await
    }

    /// What was given out without the database is a fact, whatever became of its KEK since.
    pub(super) async fn insert_given_out(
        &self,
        issuance: &Issuance,
        at: OffsetDateTime,
    ) -> Result<Issued, StoreError> {
        self.insert_set(issuance, false, at, false).await
    }

    /// `pending`: made without the cartridge, and to be stored when it is next mounted.
    pub(super) async fn insert_set(
        &self,
        issuance: &Issuance,
        pending: bool,
        at: OffsetDateTime,
        judged: bool,
    ) -> Result<Issued, StoreError> {
        let Issuance {
            request,
            digest,
            dki,
            volser,
            drive,
            token,
            custody,
            origin,
            new,
            eedks,
            server,
            job,
        } = issuance;
        let mut transaction = self.begin_history().await?;
        // A retry that another server does at the same moment waits here, and finds what this one gave.
        self.alone(
            &mut transaction,
            &format!("request {} {}", request.peer, request.id),
        )
        .await?;
        let given = sqlx::query("SELECT dki FROM requests WHERE peer = $1 AND request = $2")
            .bind(request.peer.to_string())
            .bind(&request.id)
            .fetch_optional(&mut *transaction)
            .await
            .map_err(|source| self.database(source))?;
        if given.is_some() {
            return Ok(Issued::Before);
        }
        if judged {
            self.writable(&mut transaction, eedks).await?;
        }
        let dki = dki.to_string();
        if !*new {
            self.alone(&mut transaction, &format!("data key {dki}"))
                .await?;
        }
        // A new data key under an identifier that exists would mix two keys.
        let sql = if *new {
            "INSERT INTO data_keys (dki, \"foreign\", created) VALUES ($1, $2, $3)"
        } else {
            "INSERT INTO data_keys (dki, \"foreign\", created) VALUES ($1, $2, $3)
             ON CONFLICT (dki) DO NOTHING"
        };
        sqlx::query(sql)
            .bind(&dki)
            .bind(i64::from(*origin == Origin::Foreign))
            .bind(text(at))
            .execute(&mut *transaction)
            .await
            .map_err(|source| self.database(source))?;
        let generation = if *new {
            1
        } else {
            let last = sqlx::query(
                "SELECT COALESCE(MAX(generation), 0) AS generation FROM generations WHERE dki = $1",
            )
            .bind(&dki)
            .fetch_one(&mut *transaction)
            .await
            .map_err(|source| self.database(source))?;
            self.row(&last).count("generation")? + 1
        };
        // Which of two confirms is late is told by when their EEDKs were given out, and clocks differ.
        let at = if judged {
            self.after_all(&mut transaction, volser.as_str(), &dki, at)
                .await?
        } else {
            at
        };
        sqlx::query(
            "INSERT INTO generations
             (dki, generation, volser, drive, token, custody, created, made, server, job, pending)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
        )
        .bind(&dki)
        .bind(i64::from(generation))
        .bind(volser.as_str())
        .bind(drive.as_str())
        .bind(token)
        .bind(custody.to_string())
        .bind(text(at))
        .bind(ticks(at))
        .bind(server)
        .bind(job.as_deref())
        .bind(i64::from(pending))
        .execute(&mut *transaction)
        .await
        .map_err(|source| self.database(source))?;
        if pending {
            sqlx::query(
                "INSERT INTO unstored (dki, generation, request) VALUES ($1, $2, $3)
                 ON CONFLICT (dki) DO UPDATE SET generation = excluded.generation,
                     request = excluded.request",
            )
            .bind(&dki)
            .bind(i64::from(generation))
            .bind(&request.id)
            .execute(&mut *transaction)
            .await
            .map_err(|source| self.database(source))?;
        }
        let mut position = 0_i64;
        for some in eedks.chunks(2) {
            let sql = if some.len() == 2 { TWO_EEDKS } else { ONE_EEDK };
            let mut insert = sqlx::query(sql)
                .bind(&dki)
                .bind(i64::from(generation))
                .bind(ticks(at));
            for stored in some {
                insert = insert
                    .bind(hex::encode(stored.eedk.digest()))
                    .bind(position)
                    .bind(stored.eedk.as_der())
                    .bind(stored.kek_label.as_str())
                    .bind(stored.kek_hash.to_string())
                    .bind(i64::from(stored.proved));
                position += 1;
            }
            insert
                .execute(&mut *transaction)
                .await
                .map_err(|source| self.database(source))?;
        }
        self.note(
            &mut transaction,
            &dki,
            generation,
            EedkState::Issued,
            &request.peer,
        )
        .await?;
        sqlx::query("INSERT INTO requests (peer, request, digest, dki, generation) VALUES ($1, $2, $3, $4, $5)")
            .bind(request.peer.to_string())
            .bind(&request.id)
            .bind(digest.as_slice())
            .bind(&dki)
            .bind(i64::from(generation))
            .execute(&mut *transaction)
            .await
            .map_err(|source| self.database(source))?;
        self.commit(transaction).await?;
        Ok(Issued::Now)
    }

    pub(super) async fn earlier(
        &self,
        request: &RequestKey,
    ) -> Result<Option<([u8; 32], VolumeKey)>, StoreError> {
        let row = sqlx::query(
            "SELECT digest, dki, generation FROM requests WHERE peer = $1 AND request = $2",
        )
        .bind(request.peer.to_string())
        .bind(&request.id)
        .fetch_optional(&self.pool)
        .await
        .map_err(|source| self.database(source))?;
        let Some(row) = row else {
            return Ok(None);
        };
        let row = self.row(&row);
        let digest = <[u8; 32]>::try_from(row.get::<Vec<u8>>("digest")?)
            .map_err(|_| row.damaged("digest"))?;
        let key = self
            .volume_key(&row.parsed("dki")?, row.count("generation")?)
            .await?
            .ok_or_else(|| row.damaged("dki"))?;
        Ok(Some((digest, key)))
    }

    pub(super) async fn origin_of_eedk(
        &self,
        eedk_sha256: &[u8; 32],
    ) -> Result<Option<Origin>, StoreError> {
        let found: Option<i64> = sqlx::query_scalar(
            "SELECT k.\"foreign\" FROM eedks e JOIN data_keys k USING (dki) WHERE e.sha256 = $1",
        )
        .bind(hex::encode(eedk_sha256))
        .fetch_optional(&self.pool)
        .await
        .map_err(|source| self.database(source))?;
        Ok(found.map(origin))
    }

    pub(super) async fn origin_of_key(
        &self,
        dki: &DataKeyId,
    ) -> Result<Option<Origin>, StoreError> {
        let found: Option<i64> =
            sqlx::query_scalar("SELECT \"foreign\" FROM data_keys WHERE dki = $1")
                .bind(dki.to_string())
                .fetch_optional(&self.pool)
                .await
                .map_err(|source| self.database(source))?;
        Ok(found.map(origin))
    }

    pub(super) async fn note_confirm(
        &self,
        request: &str,
        dki: &DataKeyId,
        drive: &DriveSerial,
        stored: bool,
        peer: &PeerId,
    ) -> Result<Option<VolumeKey>, StoreError> {
        let state = if stored {
            EedkState::Confirmed
        } else {
            EedkState::Abandoned
        };
        let mut transaction = self.begin_history().await?;
        let found = sqlx::query(
            "SELECT g.generation, g.volser
             FROM requests r JOIN generations g ON g.dki = r.dki AND g.generation = r.generation
             WHERE r.dki = $2 AND (r.request = $1 OR r.request LIKE $1 || '@%')
               AND (g.drive = $3 OR g.pending = 1)",
        )
        // Beside another server's answer of an outage it has that server's name behind it.
        .bind(request)
        .bind(dki.to_string())
        .bind(drive.as_str())
        .fetch_optional(&mut *transaction)
        .await
        .map_err(|source| self.database(source))?;
        let Some(found) = found else {
            return Ok(None);
        };
        let found = self.row(&found);
        let generation = found.count("generation")?;
        let volser: String = found.get("volser")?;
        // Two servers that confirm for one volume would each miss what the other superseded.
        self.alone(&mut transaction, &format!("volume {volser}"))
            .await?;
        let before: String = sqlx::query_scalar(
            "SELECT state FROM eedk_states WHERE dki = $1 AND generation = $2
             ORDER BY id DESC LIMIT 1",
        )
        .bind(dki.to_string())
        .bind(i64::from(generation))
        .fetch_one(&mut *transaction)
        .await
        .map_err(|source| self.database(source))?;
        // What was superseded or abandoned before stays as it is.
        if before == EedkState::Confirmed.to_string() && !stored {
            self.unconfirm(
                &mut transaction,
                &volser,
                &dki.to_string(),
                generation,
                peer,
            )
            .await?;
        }
        if before == EedkState::Issued.to_string() {
            let newer = stored
                && self
                    .newer_confirmed(&mut transaction, &volser, &dki.to_string(), generation)
                    .await?;
            // It comes late: the volume was stored on again since.
            let state = if newer { EedkState::Superseded } else { state };
            if stored && !newer {
                self.supersede(
                    &mut transaction,
                    &volser,
                    &dki.to_string(),
                    generation,
                    peer,
                )
                .await?;
            }
            self.note(&mut transaction, &dki.to_string(), generation, state, peer)
                .await?;
            self.stored_or_gone(&mut transaction, &dki.to_string(), generation)
                .await?;
        }
        self.commit(transaction).await?;
        self.volume_key(dki, generation).await
    }

    pub(super) async fn best_of(&self, dki: &DataKeyId) -> Result<Option<VolumeKey>, StoreError> {
        // Blocks that name it were written, whatever was confirmed of its EEDKs.
        let found = sqlx::query(
            "SELECT g.* FROM generations g WHERE g.dki = $1
             ORDER BY CASE (SELECT state FROM eedk_states s
                            WHERE s.dki = g.dki AND s.generation = g.generation
                            ORDER BY id DESC LIMIT 1)
                      WHEN 'confirmed' THEN 0 WHEN 'issued' THEN 1 WHEN 'superseded' THEN 2 ELSE 3 END,
                      g.made DESC, g.generation DESC
             LIMIT 1",
        )
        .bind(dki.to_string())
        .fetch_optional(&self.pool)
        .await
        .map_err(|source| self.database(source))?;
        match found {
            Some(row) => self.volume_of(&row).await.map(Some),
            None => Ok(None),
        }
    }

    async fn volume_key(
        &self,
        dki: &DataKeyId,
        generation: u32,
    ) -> Result<Option<VolumeKey>, StoreError> {
        let found = sqlx::query("SELECT * FROM generations WHERE dki = $1 AND generation = $2")
            .bind(dki.to_string())
            .bind(i64::from(generation))
            .fetch_optional(&self.pool)
            .await
            .map_err(|source| self.database(source))?;
        match found {
            Some(row) => self.volume_of(&row).await.map(Some),
            None => Ok(None),
        }
    }

    /// That moment, or one after everything that was given out for that volume or data key.
    async fn after_all(
        &self,
        transaction: &mut Transaction<'static, Any>,
        volser: &str,
        dki: &str,
        at: OffsetDateTime,
    ) -> Result<OffsetDateTime, StoreError> {
        // By the moments: there is next to nothing after this one, and a volume may have thousands.
        let last: Option<i64> = sqlx::query_scalar(
            "SELECT MAX(made) FROM generations
             WHERE made >= $1 AND (volser || '' = $2 OR dki || '' = $3)",
        )
        .bind(ticks(at))
        .bind(volser)
        .bind(dki)
        .fetch_one(&mut **transaction)
        .await
        .map_err(|source| self.database(source))?;
        let Some(last) = last else {
            return Ok(at);
        };
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(last.saturating_add(1)) * 1000)
            .map_err(|_| StoreError::Damaged {
                name: self.name.to_string(),
                what: "made".to_owned(),
            })
    }

    /// Whether a drive has confirmed for this volume, or this data key, what was given out after
    /// that generation was.
    async fn newer_confirmed(
        &self,
        transaction: &mut Transaction<'static, Any>,
        volser: &str,
        dki: &str,
        generation: u32,
    ) -> Result<bool, StoreError> {
        let found = sqlx::query(
            "SELECT g.dki FROM generations g
             WHERE (g.volser = $1 OR g.dki = $2)
               AND g.made > (SELECT made FROM generations WHERE dki = $2 AND generation = $3)
               AND (SELECT state FROM eedk_states s
                    WHERE s.dki = g.dki AND s.generation = g.generation
                    ORDER BY id DESC LIMIT 1) = 'confirmed'
             LIMIT 1",
        )
        .bind(volser)
        .bind(dki)
        .bind(i64::from(generation))
        .fetch_optional(&mut **transaction)
        .await
        .map_err(|source| self.database(source))?;
        Ok(found.is_some())
    }

    /// Notes that what this volume held before is superseded, and what was given out before this
    /// was and never confirmed: a confirm of that which comes late changes nothing any more.
    async fn supersede(
        &self,
        transaction: &mut Transaction<'static, Any>,
        volser: &str,
        dki: &str,
        generation: u32,
        peer: &PeerId,
    ) -> Result<(), StoreError> {
        let older = sqlx::query(
            "SELECT o.dki, o.generation FROM
               (SELECT g.dki, g.generation, g.made,
                  (SELECT state FROM eedk_states s
                   WHERE s.dki = g.dki AND s.generation = g.generation
                   ORDER BY id DESC LIMIT 1) AS state
                FROM generations g WHERE g.volser = $1 OR g.dki = $2) AS o
             WHERE NOT (o.dki = $2 AND o.generation = $3)
               AND (o.state = 'confirmed' OR (o.state = 'issued' AND o.made <
                    (SELECT made FROM generations WHERE dki = $2 AND generation = $3)))",
        )
        .bind(volser)
        .bind(dki)
        .bind(i64::from(generation))
        .fetch_all(&mut **transaction)
        .await
        .map_err(|source| self.database(source))?;
        for row in &older {
            let row = self.row(row);
            let dki: String = row.get("dki")?;
            let generation = row.count("generation")?;
            self.note(transaction, &dki, generation, EedkState::Superseded, peer)
                .await?;
            self.stored_or_gone(transaction, &dki, generation).await?;
        }
        Ok(())
    }

    /// Nothing was written under what was confirmed: the volume holds what it held before. What
    /// that confirm superseded is again what it was.
    async fn unconfirm(
        &self,
        transaction: &mut Transaction<'static, Any>,
        volser: &str,
        dki: &str,
        generation: u32,
        peer: &PeerId,
    ) -> Result<(), StoreError> {
        // A confirm notes what it supersedes right before itself, alone with the volume.
        let older = sqlx::query(
            "WITH of_volume AS (
               SELECT s.id, s.dki, s.generation, s.state
               FROM generations g JOIN eedk_states s ON s.dki = g.dki AND s.generation = g.generation
               WHERE g.volser = $1 OR g.dki = $2),
             own AS (
               SELECT MAX(id) AS id FROM of_volume
               WHERE dki = $2 AND generation = $3 AND state = 'confirmed'),
             earlier AS (
               SELECT COALESCE(MAX(id), 0) AS id FROM of_volume
               WHERE state = 'confirmed' AND id < (SELECT id FROM own))
             SELECT o.dki, o.generation,
               (SELECT b.state FROM of_volume b
                WHERE b.dki = o.dki AND b.generation = o.generation AND b.id < o.id
                ORDER BY b.id DESC LIMIT 1) AS state
             FROM of_volume o
             WHERE o.state = 'superseded'
               AND o.id > (SELECT id FROM earlier) AND o.id < (SELECT id FROM own)
               AND o.id = (SELECT MAX(l.id) FROM of_volume l
                           WHERE l.dki = o.dki AND l.generation = o.generation)
             ORDER BY o.id",
        )
        .bind(volser)
        .bind(dki)
        .bind(i64::from(generation))
        .fetch_all(&mut **transaction)
        .await
        .map_err(|source| self.database(source))?;
        self.note(transaction, dki, generation, EedkState::Abandoned, peer)
            .await?;
        for row in &older {
            let fields = self.row(row);
            let (dki, state): (String, String) = (fields.get("dki")?, fields.get("state")?);
            let generation = fields.count("generation")?;
            let state = super::sync::state_of(&state).ok_or_else(|| fields.damaged("state"))?;
            self.note(transaction, &dki, generation, state, peer)
                .await?;
            // A rekey's EEDKs that waited for the next mount do so again.
            sqlx::query(
                "INSERT INTO unstored (dki, generation, request)
                 SELECT g.dki, g.generation, r.request
                 FROM generations g JOIN requests r ON r.dki = g.dki AND r.generation = g.generation
                 WHERE g.dki = $1 AND g.generation = $2 AND g.pending = 1 AND $3 = 'issued'
                 ON CONFLICT (dki) DO NOTHING",
            )
            .bind(&dki)
            .bind(i64::from(generation))
            .bind(state.to_string())
            .execute(&mut **transaction)
            .await
            .map_err(|source| self.database(source))?;
        }
        Ok(())
    }

    /// That generation and older ones need not be stored on their cartridge any more.
    pub(super) async fn stored_or_gone(
        &self,
        transaction: &mut Transaction<'static, Any>,
        dki: &str,
        generation: u32,
    ) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM unstored WHERE dki = $1 AND generation <= $2")
            .bind(dki)
            .bind(i64::from(generation))
            .execute(&mut **transaction)
            .await
            .map_err(|source| self.database(source))?;
        Ok(())
    }

    pub(super) async fn volume_of(&self, row: &AnyRow) -> Result<VolumeKey, StoreError> {
        let fields = self.row(row);
        let dki: DataKeyId = fields.parsed("dki")?;
        let generation = fields.count("generation")?;
        let eedks =
            sqlx::query("SELECT * FROM eedks WHERE dki = $1 AND generation = $2 ORDER BY position")
                .bind(dki.to_string())
                .bind(i64::from(generation))
                .fetch_all(&self.pool)
                .await
                .map_err(|source| self.database(source))?;
        let state: String = sqlx::query_scalar(
            "SELECT state FROM eedk_states WHERE dki = $1 AND generation = $2 ORDER BY id DESC LIMIT 1",
        )
        .bind(dki.to_string())
        .bind(i64::from(generation))
        .fetch_one(&self.pool)
        .await
        .map_err(|source| self.database(source))?;
        let eedks = eedks
            .iter()
            .map(|row| self.stored_eedk(row))
            .collect::<Result<_, StoreError>>()?;
        self.volume_with(row, &state, eedks)
    }

    /// A row of `generations`, with what else belongs to it.
    pub(super) fn volume_with(
        &self,
        row: &AnyRow,
        state: &str,
        eedks: Vec<StoredEedk>,
    ) -> Result<VolumeKey, StoreError> {
        let fields = self.row(row);
        Ok(VolumeKey {
            volser: fields.parsed("volser")?,
            dki: fields.parsed("dki")?,
            generation: fields.count("generation")?,
            state: match state {
                "issued" => EedkState::Issued,
                "confirmed" => EedkState::Confirmed,
                "superseded" => EedkState::Superseded,
                "abandoned" => EedkState::Abandoned,
                _ => return Err(fields.damaged("state")),
            },
            drive: fields.parsed("drive")?,
            token: fields.get("token")?,
            custody: fields.parsed("custody")?,
            created: OffsetDateTime::parse(&fields.get::<String>("created")?, &Rfc3339)
                .map_err(|_| fields.damaged("created"))?,
            server: fields.get("server")?,
            job: fields.get("job")?,
            eedks,
        })
    }

    /// A row of `eedks`.
    pub(super) fn stored_eedk(&self, row: &AnyRow) -> Result<StoredEedk, StoreError> {
        let row = self.row(row);
        Ok(StoredEedk {
            eedk: Eedk::decode(&row.get::<Vec<u8>>("der")?).map_err(|_| row.damaged("der"))?,
            kek_label: row.parsed("kek_label")?,
            kek_hash: row.parsed("kek_hash")?,
            proved: row.flag("proved")?,
        })
    }

    async fn note(
        &self,
        transaction: &mut Transaction<'static, Any>,
        dki: &str,
        generation: u32,
        state: EedkState,
        peer: &PeerId,
    ) -> Result<(), StoreError> {
        sqlx::query("INSERT INTO eedk_states (dki, generation, state, at, peer) VALUES ($1, $2, $3, $4, $5)")
            .bind(dki)
            .bind(i64::from(generation))
            .bind(state.to_string())
            .bind(now())
            .bind(peer.to_string())
            .execute(&mut **transaction)
            .await
            .map_err(|source| self.database(source))?;
        Ok(())
    }
}

const fn origin(foreign: i64) -> Origin {
    if foreign == 0 {
        Origin::Ours
    } else {
        Origin::Foreign
    }
}
