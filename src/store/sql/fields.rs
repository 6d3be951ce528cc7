//! The columns of a row.

use std::str::FromStr;

use sqlx::any::AnyRow;
use sqlx::{Any, Row as _};
use time::OffsetDateTime;

use super::Sql;
use crate::store::StoreError;

/// Reads the columns of one row, naming the column that does not read.
pub(super) struct Fields<'a> {
    pub(super) store: &'a Sql,
    pub(super) row: &'a AnyRow,
}

impl Fields<'_> {
    pub(super) fn get<'r, T>(&'r self, column: &str) -> Result<T, StoreError>
    where
        T: sqlx::Decode<'r, Any> + sqlx::Type<Any>,
    {
        self.row
            .try_get(column)
            .map_err(|source| self.store.database(source))
    }

    /// A truth: both databases keep it as a number.
    pub(super) fn flag(&self, column: &str) -> Result<bool, StoreError> {
        self.get::<i64>(column).map(|number| number != 0)
    }

    pub(super) fn count(&self, column: &str) -> Result<u32, StoreError> {
        let number: i64 = self.get(column)?;
        u32::try_from(number).map_err(|_| self.damaged(column))
    }

    /// A time that [`ticks`] wrote.
    pub(super) fn time(&self, column: &str) -> Result<OffsetDateTime, StoreError> {
        self.maybe_time(column)?.ok_or_else(|| self.damaged(column))
    }

    pub(super) fn maybe_time(&self, column: &str) -> Result<Option<OffsetDateTime>, StoreError> {
        let micros: Option<i64> = self.get(column)?;
        micros
            .map(|micros| {
                OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros) * 1000)
                    .map_err(|_| self.damaged(column))
            })
            .transpose()
    }

    pub(super) fn parsed<T: FromStr>(&self, column: &str) -> Result<T, StoreError> {
        let text: String = self.get(column)?;
        text.parse().map_err(|_| self.damaged(column))
    }

    pub(super) fn maybe<T: FromStr>(&self, column: &str) -> Result<Option<T>, StoreError> {
        let text: Option<String> = self.get(column)?;
        text.map(|text| text.parse().map_err(|_| self.damaged(column)))
            .transpose()
    }

    pub(super) fn json<T: serde::de::DeserializeOwned>(
        &self,
        column: &str,
    ) -> Result<T, StoreError> {
        let text: String = self.get(column)?;
        serde_json::from_str(&text).map_err(|_| self.damaged(column))
    }

    pub(super) fn damaged(&self, what: &str) -> StoreError {
        StoreError::Damaged {
            name: self.store.name.to_string(),
            what: what.to_owned(),
        }
    }
}
