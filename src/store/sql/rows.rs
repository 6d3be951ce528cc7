//! All rows of all tables, out of one database at one moment and into another.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::TryStreamExt as _;
use sqlx::any::AnyRow;
use sqlx::migrate::Migrator;
use sqlx::{Any, AssertSqlSafe, Row as _, Transaction, TypeInfo as _, ValueRef as _};

use super::{Dialect, Sql};
use crate::store::StoreError;
use crate::store::rows::{Cell, CellKind, TableShape};

/// Values of one statement; SQLite takes 32766, PostgreSQL 65535.
const VALUES: usize = 16_000;

/// Rows of one statement.
const ROWS: usize = 500;

/// A database as it is at one moment, whatever is written to it meanwhile.
#[derive(Debug)]
pub struct Snapshot {
    store: Sql,
    transaction: Transaction<'static, Any>,
    tables: Vec<TableShape>,
    migrations: Vec<i64>,
}

/// An empty database that is being filled. Nothing of it stays unless it is committed.
#[derive(Debug)]
pub struct Filling {
    store: Sql,
    transaction: Transaction<'static, Any>,
    tables: Vec<TableShape>,
}

impl Sql {
    /// Begins to read everything. On SQLite this takes the connection, so it
    /// is for a process that does nothing else with it.
    ///
    /// # Errors
    /// The database does not answer, or has a table that is none of ours.
    pub async fn everything(&self) -> Result<Snapshot, StoreError> {
        let mut transaction = self.snapshot().await?;
        if self.dialect == Dialect::Postgres {
            let patience = "SET LOCAL statement_timeout = 0";
            self.statement(&mut transaction, patience).await?;
            let patience = "SET LOCAL idle_in_transaction_session_timeout = 0";
            self.statement(&mut transaction, patience).await?;
        }
        let tables = self.shapes(&mut transaction).await?;
        let migrations =
            sqlx::query_scalar("SELECT version FROM _sqlx_migrations ORDER BY version")
                .fetch_all(&mut *transaction)
                .await
                .map_err(|source| self.database(source))?;
        Ok(Snapshot {
            store: self.clone(),
            transaction,
            tables,
            migrations,
        })
    }

    /// Begins to fill a database that has nothing in it yet.
    ///
    /// # Errors
    /// There is something in it, or it does not answer.
    pub async fn fill(&self) -> Result<Filling, StoreError> {
        let mut transaction = self.begin().await?;
        if self.dialect == Dialect::Postgres {
            let patience = "SET LOCAL idle_in_transaction_session_timeout = 0";
            self.statement(&mut transaction, patience).await?;
        }
        let tables = self.shapes(&mut transaction).await?;
        // What migrations put into it goes; what a server or an operator did stays.
        let something: i64 = sqlx::query_scalar(
            "SELECT (SELECT COUNT(*) FROM drives) + (SELECT COUNT(*) FROM keks)
                  + (SELECT COUNT(*) FROM partners) + (SELECT COUNT(*) FROM data_keys)
                  + (SELECT COUNT(*) FROM settings WHERE name <> 'schema')",
        )
        .fetch_one(&mut *transaction)
        .await
        .map_err(|source| self.database(source))?;
        if something > 0 {
            return Err(self.unfit("it is not empty; a state is restored into an empty database"));
        }
        for table in tables.iter().rev() {
            let sql = AssertSqlSafe(format!("DELETE FROM {}", quoted(&table.name)));
            sqlx::query(sql)
                .persistent(false)
                .execute(&mut *transaction)
                .await
                .map_err(|source| self.database(source))?;
        }
        Ok(Filling {
            store: self.clone(),
            transaction,
            tables,
        })
    }

    /// Closes the connections; SQLite's log is in its file then.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    pub(super) fn unfit(&self, why: &str) -> StoreError {
        StoreError::Unconfigured {
            name: self.name.to_string(),
            why: why.to_owned(),
        }
    }

    async fn statement(
        &self,
        transaction: &mut Transaction<'static, Any>,
        sql: &'static str,
    ) -> Result<(), StoreError> {
        sqlx::query(sql)
            .persistent(false)
            .execute(&mut **transaction)
            .await
            .map(drop)
            .map_err(|source| self.database(source))
    }

    /// Our tables, each after those that it refers to.
    async fn shapes(
        &self,
        transaction: &mut Transaction<'static, Any>,
    ) -> Result<Vec<TableShape>, StoreError> {
        let (columns, references) = match self.dialect {
            Dialect::Sqlite => (
                "SELECT t.name AS name, c.name AS col, c.type AS kind
                 FROM sqlite_master t JOIN pragma_table_info(t.name) c
                 WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite\\_%' ESCAPE '\\'
                   AND t.name <> '_sqlx_migrations'
                 ORDER BY t.name, c.cid",
                "SELECT t.name AS name, f.\"table\" AS other
                 FROM sqlite_master t JOIN pragma_foreign_key_list(t.name) f
                 WHERE t.type = 'table'",
            ),
            Dialect::Postgres => (
                "SELECT CAST(c.table_name AS TEXT) AS name, CAST(c.column_name AS TEXT) AS col,
                        CAST(c.data_type AS TEXT) AS kind
                 FROM information_schema.columns c JOIN information_schema.tables t
                   ON t.table_schema = c.table_schema AND t.table_name = c.table_name
                 WHERE c.table_schema = current_schema() AND t.table_type = 'BASE TABLE'
                   AND c.table_name <> '_sqlx_migrations'
                 ORDER BY c.table_name, c.ordinal_position",
                "SELECT CAST(a.relname AS TEXT) AS name, CAST(b.relname AS TEXT) AS other
                 FROM pg_constraint k JOIN pg_class a ON a.oid = k.conrelid
                 JOIN pg_class b ON b.oid = k.confrelid
                 JOIN pg_namespace n ON n.oid = k.connamespace
                 WHERE k.contype = 'f' AND n.nspname = current_schema()",
            ),
        };
        let mut tables: BTreeMap<String, Vec<(String, CellKind)>> = BTreeMap::new();
        for row in self.rows_of(transaction, columns).await? {
            let row = self.row(&row);
            let (table, column): (String, String) = (row.get("name")?, row.get("col")?);
            let kind: String = row.get("kind")?;
            let kind = match kind.to_ascii_lowercase().as_str() {
                "integer" | "bigint" => CellKind::Integer,
                "text" => CellKind::Text,
                "blob" | "bytea" => CellKind::Blob,
                other => {
                    return Err(self.unfit(&format!(
                        "the column {table}.{column} is of the kind {other}, which a backup does not know"
                    )));
                }
            };
            tables.entry(table).or_default().push((column, kind));
        }
        let mut after: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for row in self.rows_of(transaction, references).await? {
            let row = self.row(&row);
            let (name, other): (String, String) = (row.get("name")?, row.get("other")?);
            if name != other {
                after.entry(name).or_default().insert(other);
            }
        }
        let mut sorted: Vec<TableShape> = Vec::new();
        while !tables.is_empty() {
            let next = tables.keys().find(|name| {
                after
                    .get(*name)
                    .is_none_or(|others| others.iter().all(|other| !tables.contains_key(other)))
            });
            let Some(name) = next.cloned() else {
                return Err(self.unfit("its tables refer to each other in a circle"));
            };
            if let Some(columns) = tables.remove(&name) {
                sorted.push(TableShape { name, columns });
            }
        }
        if let Some(strange) = sorted.iter().find(|table| !table.is_plain()) {
            return Err(self.unfit(&format!("the table {:?} is none of ekm's", strange.name)));
        }
        Ok(sorted)
    }

    async fn rows_of(
        &self,
        transaction: &mut Transaction<'static, Any>,
        sql: &'static str,
    ) -> Result<Vec<AnyRow>, StoreError> {
        sqlx::query(sql)
            .persistent(false)
            .fetch_all(&mut **transaction)
            .await
            .map_err(|source| self.database(source))
    }

    fn cell(&self, row: &AnyRow, index: usize, kind: CellKind) -> Result<Cell, StoreError> {
        let raw = row
            .try_get_raw(index)
            .map_err(|source| self.database(source))?;
        if raw.is_null() || raw.type_info().is_null() {
            return Ok(Cell::Null);
        }
        match kind {
            CellKind::Integer => row.try_get(index).map(Cell::Integer),
            CellKind::Text => row.try_get(index).map(Cell::Text),
            CellKind::Blob => row.try_get(index).map(Cell::Blob),
        }
        .map_err(|source| self.database(source))
    }
}

impl Snapshot {
    /// The tables, each after those that it refers to.
    #[must_use]
    pub fn tables(&self) -> Vec<TableShape> {
        self.tables.clone()
    }

    /// The migrations that made them.
    #[must_use]
    pub fn migrations(&self) -> &[i64] {
        &self.migrations
    }

    /// Gives each row of a table, one after another.
    ///
    /// # Errors
    /// The database's, or what `each` returned.
    pub async fn each<E: From<StoreError>>(
        &mut self,
        table: &TableShape,
        mut each: impl FnMut(Vec<Cell>) -> Result<(), E>,
    ) -> Result<(), E> {
        let names: Vec<String> = table.columns.iter().map(|(name, _)| quoted(name)).collect();
        // Names that `is_plain` has looked at.
        let sql = AssertSqlSafe(format!(
            "SELECT {} FROM {}",
            names.join(", "),
            quoted(&table.name)
        ));
        let store = &self.store;
        let mut rows = sqlx::query(sql)
            .persistent(false)
            .fetch(&mut *self.transaction);
        while let Some(row) = rows
            .try_next()
            .await
            .map_err(|source| store.database(source))?
        {
            let cells = table
                .columns
                .iter()
                .enumerate()
                .map(|(index, (_, kind))| store.cell(&row, index, *kind))
                .collect::<Result<Vec<Cell>, StoreError>>()?;
            each(cells)?;
        }
        Ok(())
    }
}

impl Filling {
    /// That there is such a table, with those columns.
    ///
    /// # Errors
    /// There is not.
    pub fn accepts(&self, table: &TableShape) -> Result<(), StoreError> {
        let known = self.tables.iter().find(|known| known.name == table.name);
        let Some(known) = known else {
            return Err(self.store.unfit(&format!(
                "the backup has a table {:?}, which this ekm does not know",
                table.name
            )));
        };
        match table
            .columns
            .iter()
            .find(|column| !known.columns.contains(column))
        {
            None => Ok(()),
            Some((column, _)) => Err(self.store.unfit(&format!(
                "the backup's table {} has a column {column:?}, which this ekm does not know",
                table.name
            ))),
        }
    }

    /// Adds rows to a table that was accepted.
    ///
    /// # Errors
    /// The database's, or a row of another shape.
    pub async fn add(&mut self, table: &TableShape, rows: &[Vec<Cell>]) -> Result<(), StoreError> {
        self.accepts(table)?;
        let columns = table.columns.len().max(1);
        for some in rows.chunks((VALUES / columns).clamp(1, ROWS)) {
            self.insert(table, some).await?;
        }
        Ok(())
    }

    async fn insert(&mut self, table: &TableShape, rows: &[Vec<Cell>]) -> Result<(), StoreError> {
        let width = table.columns.len();
        let names: Vec<String> = table.columns.iter().map(|(name, _)| quoted(name)).collect();
        let places: Vec<String> = (0..rows.len())
            .map(|row| {
                let numbers: Vec<String> = (1..=width)
                    .map(|column| format!("${}", row * width + column))
                    .collect();
                format!("({})", numbers.join(", "))
            })
            .collect();
        // Names that this database's own tables have.
        let sql = AssertSqlSafe(format!(
            "INSERT INTO {} ({}) VALUES {}",
            quoted(&table.name),
            names.join(", "),
            places.join(", ")
        ));
        let mut query = sqlx::query(sql).persistent(rows.len() == ROWS);
        for row in rows {
            if row.len() != width {
                return Err(self.store.unfit(&format!(
                    "a row of the backup's table {} has {} values where {width} are expected",
                    table.name,
                    row.len()
                )));
            }
            for (cell, (column, kind)) in row.iter().zip(&table.columns) {
                if !cell.fits(*kind) {
                    return Err(self.store.unfit(&format!(
                        "a row of the backup's table {} has another kind of value in {column}",
                        table.name
                    )));
                }
                query = match (cell, kind) {
                    (Cell::Integer(number), _) => query.bind(*number),
                    (Cell::Text(text), _) => query.bind(text.as_str()),
                    (Cell::Blob(bytes), _) => query.bind(bytes.as_slice()),
                    (Cell::Null, CellKind::Integer) => query.bind(None::<i64>),
                    (Cell::Null, CellKind::Text) => query.bind(None::<String>),
                    (Cell::Null, CellKind::Blob) => query.bind(None::<Vec<u8>>),
                };
            }
        }
        query
            .execute(&mut *self.transaction)
            .await
            .map(drop)
            .map_err(|source| self.store.database(source))
    }

    /// Keeps it, and brings the tables up to date.
    ///
    /// # Errors
    /// The database's.
    pub async fn finish(mut self) -> Result<(), StoreError> {
        if self.store.dialect == Dialect::Postgres {
            // Rows that came with their numbers have not moved the counters.
            let counters = "SELECT CAST(a.relname AS TEXT) AS name, CAST(c.attname AS TEXT) AS col
                 FROM pg_attribute c JOIN pg_class a ON a.oid = c.attrelid
                 JOIN pg_namespace n ON n.oid = a.relnamespace
                 WHERE c.attidentity <> '' AND a.relkind = 'r' AND n.nspname = current_schema()";
            for row in self.store.rows_of(&mut self.transaction, counters).await? {
                let row = self.store.row(&row);
                let (table, column): (String, String) = (row.get("name")?, row.get("col")?);
                let sql = AssertSqlSafe(format!(
                    "SELECT setval(pg_get_serial_sequence('{0}', '{1}'),
                                   COALESCE((SELECT MAX({1}) FROM {0}), 0) + 1, false)",
                    quoted(&table),
                    column
                ));
                sqlx::query(sql)
                    .persistent(false)
                    .fetch_one(&mut *self.transaction)
                    .await
                    .map_err(|source| self.store.database(source))?;
            }
        }
        let Self {
            store, transaction, ..
        } = self;
        store.commit(transaction).await?;
        store.migrate().await
    }
}

/// The migrations of this program, those of a backup only where it says which.
pub(super) fn limited(all: Migrator, versions: Option<&[i64]>) -> Migrator {
    match versions {
        None => all,
        Some(versions) => Migrator::with_migrations(
            all.iter()
                .filter(|migration| versions.contains(&migration.version))
                .cloned()
                .collect(),
        ),
    }
}

fn quoted(name: &str) -> String {
    format!("\"{name}\"")
}
