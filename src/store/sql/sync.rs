//! What a server beside this one reads, and how its history is taken in.

use async_trait::async_trait;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Dialect, HISTORY, Sql, text};
use crate::key::Eedk;
use crate::store::merge::{DefaultsRow, DriveRow};
use crate::store::sync::{Given, GivenRequest, HistoryRow, Reach, SyncTables, Synced, TakenIn};
use crate::store::{EedkState, StoreError, StoredEedk};
use crate::sync::wire::{Extent, Measure};
use crate::tls::PeerId;

pub(super) fn state_of(text: &str) -> Option<EedkState> {
    [
        EedkState::Issued,
        EedkState::Confirmed,
        EedkState::Superseded,
        EedkState::Abandoned,
    ]
    .into_iter()
    .find(|state| state.to_string() == text)
}

impl Sql {
    pub(super) fn time(&self, what: &str, text: &str) -> Result<OffsetDateTime, StoreError> {
        OffsetDateTime::parse(text, &Rfc3339).map_err(|_| StoreError::Damaged {
            name: self.name.to_string(),
            what: what.to_owned(),
        })
    }

    fn history_row(&self, row: &sqlx::any::AnyRow) -> Result<HistoryRow, StoreError> {
        let row = self.row(row);
        let state: String = row.get("state")?;
        let state = state_of(&state).ok_or_else(|| row.damaged("state"))?;
        let given = if state == EedkState::Issued {
            let request = match row.get::<Option<String>>("request")? {
                None => None,
                Some(id) => Some(GivenRequest {
                    peer: row.parsed("asker")?,
                    id,
                    digest: row.get("digest")?,
                }),
            };
            Some(Box::new(Given {
                volser: row.parsed("volser")?,
                drive: row.parsed("drive")?,
                token: row.get("token")?,
                custody: row.parsed("custody")?,
                created: self.time("created", &row.get::<String>("created")?)?,
                server: row.get("server")?,
                job: row.get("job")?,
                eedks: Vec::new(),
                request,
            }))
        } else {
            None
        };
        Ok(HistoryRow {
            id: row.get("id")?,
            dki: row.parsed("dki")?,
            foreign: row.flag("alien")?,
            generation: row.count("generation")?,
            state,
            at: self.time("at", &row.get::<String>("at")?)?,
            peer: row.get("peer")?,
            eedks: Vec::new(),
            given,
        })
    }
}

#[async_trait]
impl SyncTables for Sql {
    async fn drive_rows(&self, after: &str, most: u32) -> Result<Vec<DriveRow>, StoreError> {
        sqlx::query("SELECT * FROM drives WHERE serial > $1 ORDER BY serial LIMIT $2")
            .bind(after)
            .bind(i64::from(most))
            .fetch_all(&self.pool)
            .await
            .map_err(|source| self.database(source))?
            .iter()
            .map(|row| self.drive_row(row))
            .collect()
    }

    async fn drive_extent(&self) -> Result<Extent, StoreError> {
        let rows = sqlx::query("SELECT serial, updated, deleted FROM drives ORDER BY serial")
            .fetch_all(&self.pool)
            .await
            .map_err(|source| self.database(source))?;
        let mut measure = Measure::default();
        for row in &rows {
            let row = self.row(row);
            let serial: String = row.get("serial")?;
            let updated = self.time("updated", &row.get::<String>("updated")?)?;
            let deleted = row.get::<Option<String>>("deleted")?.is_some();
            measure.add(&serial, updated, deleted);
        }
        Ok(measure.extent())
    }

    async fn defaults_row(&self) -> Result<DefaultsRow, StoreError> {
        let mut transaction = self.snapshot().await?;
        let row = self.read_defaults(&mut transaction).await?;
        self.commit(transaction).await?;
        Ok(row)
    }

    async fn history_end(&self) -> Result<i64, StoreError> {
        const END: &str = "SELECT COALESCE(MAX(id), 0) FROM eedk_states";
        if self.dialect == Dialect::Sqlite {
            return sqlx::query_scalar(END)
                .fetch_one(&self.pool)
                .await
                .map_err(|source| self.database(source));
        }
        let mut transaction = self.begin().await?;
        // Those that write next wait behind this one.
        sqlx::query("SET LOCAL lock_timeout = '5s'")
            .execute(&mut *transaction)
            .await
            .map_err(|source| self.database(source))?;
        self.alone(&mut transaction, HISTORY).await?;
        let end = sqlx::query_scalar(END)
            .fetch_one(&mut *transaction)
            .await
            .map_err(|source| self.database(source))?;
        self.commit(transaction).await?;
        Ok(end)
    }

    async fn history_rows(&self, from: i64, most: u32) -> Result<Vec<HistoryRow>, StoreError> {
        let rows = sqlx::query(
            "SELECT s.id AS id, s.dki AS dki, s.generation AS generation, s.state AS state,
                    s.at AS at, s.peer AS peer, k.\"foreign\" AS alien,
                    g.volser AS volser, g.drive AS drive, g.token AS token, g.custody AS custody,
                    g.created AS created, g.server AS server, g.job AS job,
                    e.sha256 AS sha256, e.der AS der, e.kek_label AS kek_label,
                    e.kek_hash AS kek_hash, e.proved AS proved,
                    r.peer AS asker, r.request AS request, r.digest AS digest
             FROM (SELECT * FROM eedk_states WHERE id >= $1 ORDER BY id LIMIT $2) s
             JOIN generations g ON g.dki = s.dki AND g.generation = s.generation
             JOIN data_keys k ON k.dki = s.dki
             JOIN eedks e ON e.dki = s.dki AND e.generation = s.generation
             LEFT JOIN requests r
                    ON s.state = 'issued' AND r.dki = s.dki AND r.generation = s.generation
             ORDER BY s.id, e.position",
        )
        .bind(from)
        .bind(i64::from(most))
        .fetch_all(&self.pool)
        .await
        .map_err(|source| self.database(source))?;
        let mut all: Vec<HistoryRow> = Vec::new();
        for row in &rows {
            let fields = self.row(row);
            let id: i64 = fields.get("id")?;
            if all.last().is_none_or(|last| last.id != id) {
                all.push(self.history_row(row)?);
            }
            let digest: String = fields.get("sha256")?;
            let Some(last) = all.last_mut().filter(|last| !last.eedks.contains(&digest)) else {
                continue;
            };
            last.eedks.push(digest);
            if let Some(given) = &mut last.given {
                given.eedks.push(StoredEedk {
                    eedk: Eedk::decode(&fields.get::<Vec<u8>>("der")?)
                        .map_err(|_| fields.damaged("der"))?,
                    kek_label: fields.parsed("kek_label")?,
                    kek_hash: fields.parsed("kek_hash")?,
                    proved: fields.flag("proved")?,
                });
            }
        }
        Ok(all)
    }

    async fn take_history(
        &self,
        peer: &PeerId,
        rows: &[HistoryRow],
        reach: Option<&Reach>,
        dry: bool,
    ) -> Result<TakenIn, StoreError> {
        let mut transaction = self.begin_history().await?;
        // One at a time over all servers: each has many data keys to itself, in any order.
        self.alone(&mut transaction, "history of another server")
            .await?;
        let mut taken = TakenIn::default();
        for row in rows {
            match &row.given {
                Some(given) => {
                    self.take_given(&mut transaction, row, given, &mut taken)
                        .await?;
                }
                None => {
                    self.take_state(&mut transaction, row, peer, &mut taken)
                        .await?;
                }
            }
        }
        if dry {
            transaction
                .rollback()
                .await
                .map_err(|source| self.database(source))?;
            return Ok(taken);
        }
        if let Some(Reach { id, mark }) = reach {
            sqlx::query(
                "INSERT INTO sync_peers (peer, history, mark) VALUES ($1, $2, $3)
                 ON CONFLICT (peer) DO UPDATE SET history = excluded.history, mark = excluded.mark",
            )
            .bind(peer.to_string())
            .bind(id)
            .bind(mark)
            .execute(&mut *transaction)
            .await
            .map_err(|source| self.database(source))?;
        }
        self.commit(transaction).await?;
        Ok(taken)
    }

    async fn synced(&self, peer: &PeerId) -> Result<Synced, StoreError> {
        let row = sqlx::query("SELECT history, mark, synced FROM sync_peers WHERE peer = $1")
            .bind(peer.to_string())
            .fetch_optional(&self.pool)
            .await
            .map_err(|source| self.database(source))?;
        let Some(row) = row else {
            return Ok(Synced::default());
        };
        let row = self.row(&row);
        let (id, mark): (i64, String) = (row.get("history")?, row.get("mark")?);
        let at: String = row.get("synced")?;
        Ok(Synced {
            reach: (id > 0).then_some(Reach { id, mark }),
            at: if at.is_empty() {
                None
            } else {
                Some(self.time("synced", &at)?)
            },
        })
    }

    async fn note_synced(&self, peer: &PeerId, at: OffsetDateTime) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        sqlx::query(
            "INSERT INTO sync_peers (peer, synced) VALUES ($1, $2)
             ON CONFLICT (peer) DO UPDATE SET synced = excluded.synced",
        )
        .bind(peer.to_string())
        .bind(text(at))
        .execute(&mut *transaction)
        .await
        .map_err(|source| self.database(source))?;
        self.commit(transaction).await
    }
}
