//! The rows of the servers that share the state.

use async_trait::async_trait;
use sqlx::AssertSqlSafe;
use sqlx::any::AnyRow;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Sql, json, text};
use crate::store::{KeyServer, Servers, StoreError};

/// The rows of servers. By name: a table that gets a column ends what a connection has prepared with `*`.
const SERVERS: &str =
    "SELECT s.node, s.instance, s.version, s.started, s.seen, s.tokens, s.defaults,
    k.state AS knows FROM servers s LEFT JOIN server_knows k ON k.node = s.node";

impl Sql {
    fn server_of(&self, row: &AnyRow) -> Result<KeyServer, StoreError> {
        let row = self.row(row);
        let time = |column: &str| {
            OffsetDateTime::parse(&row.get::<String>(column)?, &Rfc3339)
                .map_err(|_| row.damaged(column))
        };
        Ok(KeyServer {
            node: row.get("node")?,
            instance: row.parsed("instance")?,
            version: row.get("version")?,
            started: time("started")?,
            seen: time("seen")?,
            knows: row.get::<Option<i64>>("knows")?.unwrap_or_default(),
            tokens: row.json("tokens")?,
            defaults: row.json("defaults")?,
        })
    }
}

#[async_trait]
impl Servers for Sql {
    async fn tell(&self, server: &KeyServer) -> Result<Option<KeyServer>, StoreError> {
        let KeyServer {
            node,
            instance,
            version,
            started,
            seen: _,
            knows,
            tokens,
            defaults,
        } = server;
        let mut transaction = self.begin().await?;
        let seen = self.clock(&mut transaction).await?;
        let before = sqlx::query(AssertSqlSafe(format!("{SERVERS} WHERE s.node = $1")))
            .bind(node)
            .fetch_optional(&mut *transaction)
            .await
            .map_err(|source| self.database(source))?;
        sqlx::query(
            "INSERT INTO servers (node, instance, version, started, seen, tokens, defaults)
             VALUES ($1, $2, $3, $4, $5, $6, $7)
             ON CONFLICT (node) DO UPDATE SET instance = excluded.instance,
                 version = excluded.version, started = excluded.started, seen = excluded.seen,
                 tokens = excluded.tokens, defaults = excluded.defaults",
        )
        .bind(node)
        .bind(instance.to_string())
        .bind(version)
        .bind(text(*started))
        .bind(text(seen))
        .bind(json(tokens))
        .bind(json(defaults))
        .execute(&mut *transaction)
        .await
        .map_err(|source| self.database(source))?;
        sqlx::query(
            "INSERT INTO server_knows (node, state) VALUES ($1, $2)
             ON CONFLICT (node) DO UPDATE SET state = excluded.state",
        )
        .bind(node)
        .bind(*knows)
        .execute(&mut *transaction)
        .await
        .map_err(|source| self.database(source))?;
        self.commit(transaction).await?;
        // A newer version may have written something that this one cannot read.
        Ok(before.and_then(|row| self.server_of(&row).ok()))
    }

    async fn servers(&self) -> Result<Vec<KeyServer>, StoreError> {
        sqlx::query(AssertSqlSafe(format!("{SERVERS} ORDER BY s.node")))
            .fetch_all(&self.pool)
            .await
            .map_err(|source| self.database(source))?
            .iter()
            .map(|row| self.server_of(row))
            .collect()
    }

    async fn forget_server(&self, node: &str) -> Result<bool, StoreError> {
        let mut transaction = self.begin().await?;
        sqlx::query("DELETE FROM server_knows WHERE node = $1")
            .bind(node)
            .execute(&mut *transaction)
            .await
            .map_err(|source| self.database(source))?;
        let done = sqlx::query("DELETE FROM servers WHERE node = $1")
            .bind(node)
            .execute(&mut *transaction)
            .await
            .map_err(|source| self.database(source))?;
        self.commit(transaction).await?;
        Ok(done.rows_affected() > 0)
    }
}
