//! Births that have begun: rows of the settings, since there is hardly ever one.

use sqlx::Row as _;

use super::{Sql, json};
use crate::store::{Birth, StoreError};

fn name(ceremony: &uuid::Uuid) -> String {
    format!("birth:{ceremony}")
}

impl Sql {
    pub(super) async fn open_births(&self) -> Result<Vec<Birth>, StoreError> {
        let rows = sqlx::query("SELECT value FROM settings WHERE name LIKE 'birth:%'")
            .fetch_all(&self.pool)
            .await
            .map_err(|source| self.database(source))?;
        let mut births: Vec<Birth> = rows
            .iter()
            .map(|row| {
                let text: String = row
                    .try_get("value")
                    .map_err(|source| self.database(source))?;
                serde_json::from_str(&text).map_err(|_| StoreError::Damaged {
                    name: self.name.to_string(),
                    what: "a birth".to_owned(),
                })
            })
            .collect::<Result<_, StoreError>>()?;
        births.sort_by_key(|birth| birth.began);
        Ok(births)
    }

    pub(super) async fn insert_birth(&self, birth: &Birth) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        sqlx::query(
            "INSERT INTO settings (name, value) VALUES ($1, $2)
             ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        )
        .bind(name(&birth.ceremony))
        .bind(json(birth))
        .execute(&mut *transaction)
        .await
        .map_err(|source| self.database(source))?;
        self.commit(transaction).await
    }

    pub(super) async fn remove_birth(&self, ceremony: &uuid::Uuid) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        sqlx::query("DELETE FROM settings WHERE name = $1")
            .bind(name(ceremony))
            .execute(&mut *transaction)
            .await
            .map_err(|source| self.database(source))?;
        self.commit(transaction).await
    }
}
