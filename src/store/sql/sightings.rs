//! The rows of what drives showed.

use async_trait::async_trait;
use sqlx::any::AnyRow;

use super::{Sql, ticks};
use crate::store::sightings::{Discovered, OtherKey, Seen, Sighting, Sightings, Waiting};
use crate::store::{Drive, DriveState, StoreError};

/// Who adds a drive that waits is alone with that, so that the bound holds over all servers.
const LOCK: &str = "waiting drives";

impl Sql {
    fn seen_of(&self, row: &AnyRow) -> Result<Seen, StoreError> {
        let row = self.row(row);
        let times = row.count("other_times")?;
        let other = match row.maybe_time("other_last")? {
            Some(last) => Some(OtherKey {
                key: row.maybe("other_key")?,
                peer: row.parsed("other_peer")?,
                address: row.get("other_address")?,
                last,
                times,
            }),
            None => None,
        };
        Ok(Seen {
            serial: row.parsed("serial")?,
            key: row.maybe("shown")?,
            peer: row.parsed("peer")?,
            address: row.get("address")?,
            first: row.time("first_seen")?,
            last: row.time("last_seen")?,
            times: row.count("times")?,
            other,
        })
    }

    async fn waiting(
        &self,
        connection: &mut sqlx::AnyConnection,
        peer: &str,
    ) -> Result<(u32, u32), StoreError> {
        let row = sqlx::query(
            "SELECT COUNT(*) AS waiting,
                    COUNT(CASE WHEN s.found_by = $1 THEN 1 END) AS of_peer
             FROM drives d LEFT JOIN sightings s ON s.serial = d.serial
             WHERE d.state = 'pending' AND d.deleted IS NULL",
        )
        .bind(peer)
        .fetch_one(connection)
        .await
        .map_err(|source| self.database(source))?;
        let row = self.row(&row);
        Ok((row.count("waiting")?, row.count("of_peer")?))
    }
}

#[async_trait]
impl Sightings for Sql {
    async fn discover(
        &self,
        drive: &Drive,
        sighting: &Sighting,
        waiting: Waiting,
    ) -> Result<Discovered, StoreError> {
        let Sighting {
            serial,
            key,
            peer,
            address,
            at,
            times,
        } = sighting;
        let mut transaction = self.begin().await?;
        self.alone(&mut transaction, LOCK).await?;
        if drive.state == DriveState::Pending {
            let (all, of_peer) = self.waiting(&mut transaction, &peer.to_string()).await?;
            let known: Option<String> =
                sqlx::query_scalar("SELECT serial FROM drives WHERE serial = $1")
                    .bind(serial.as_str())
                    .fetch_optional(&mut *transaction)
                    .await
                    .map_err(|source| self.database(source))?;
            if known.is_some() {
                return Ok(Discovered::Known);
            }
            if all >= waiting.total || of_peer >= waiting.per_peer {
                return Ok(Discovered::Full);
            }
        }
        if !self.put_row(&mut transaction, drive, "NOTHING").await? {
            return Ok(Discovered::Known);
        }
        sqlx::query(
            "INSERT INTO sightings
             (serial, shown, peer, found_by, address, first_seen, last_seen, times, other_times)
             VALUES ($1, $2, $3, $3, $4, $5, $5, $6, 0)
             ON CONFLICT (serial) DO NOTHING",
        )
        .bind(serial.as_str())
        .bind(key.map(|key| key.to_string()))
        .bind(peer.to_string())
        .bind(address)
        .bind(ticks(*at))
        .bind(i64::from(*times))
        .execute(&mut *transaction)
        .await
        .map_err(|source| self.database(source))?;
        self.commit(transaction).await?;
        Ok(Discovered::Added)
    }

    async fn note_sighting(&self, sighting: &Sighting, other: bool) -> Result<(), StoreError> {
        let Sighting {
            serial,
            key,
            peer,
            address,
            at,
            times,
        } = sighting;
        let mut transaction = self.begin().await?;
        let query = if other {
            // A drive that an operator added has no row here before it shows a wrong key.
            sqlx::query(
                "INSERT INTO sightings
                 (serial, shown, peer, found_by, address, first_seen, last_seen, times,
                  other_key, other_peer, other_address, other_last, other_times)
                 VALUES ($1, NULL, $3, $3, $4, $5, $5, 0, $2, $3, $4, $5, $6)
                 ON CONFLICT (serial) DO UPDATE SET
                     other_key = excluded.other_key, other_peer = excluded.other_peer,
                     other_address = excluded.other_address, other_last = excluded.other_last,
                     other_times = sightings.other_times + excluded.other_times",
            )
        } else {
            sqlx::query(
                "UPDATE sightings SET shown = COALESCE(shown, $2), peer = $3, address = $4,
                     last_seen = $5, times = times + $6
                 WHERE serial = $1",
            )
        };
        query
            .bind(serial.as_str())
            .bind(key.map(|key| key.to_string()))
            .bind(peer.to_string())
            .bind(address)
            .bind(ticks(*at))
            .bind(i64::from(*times))
            .execute(&mut *transaction)
            .await
            .map_err(|source| self.database(source))?;
        self.commit(transaction).await
    }

    async fn sightings(&self) -> Result<Vec<Seen>, StoreError> {
        sqlx::query("SELECT * FROM sightings ORDER BY serial")
            .fetch_all(&self.pool)
            .await
            .map_err(|source| self.database(source))?
            .iter()
            .map(|row| self.seen_of(row))
            .collect()
    }
}
