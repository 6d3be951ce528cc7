//! The rows of partners and of certificates.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Sqlite, json, now};
use crate::key::{KekHash, KeyLabel};
use crate::store::{Certificates, KekCertificate, Partner, StoreError};

impl Sqlite {
    pub(super) async fn read_certificates(&self) -> Result<Certificates, StoreError> {
        let mut all = Certificates::default();
        for row in &sqlx::query("SELECT * FROM partners ORDER BY folded")
            .fetch_all(&self.pool)
            .await
            .map_err(|source| self.database(source))?
        {
            let row = self.row(row);
            all.partners.push(Partner {
                label: row.parsed("label")?,
                hash: row.parsed("hash")?,
                spki: row.get("spki")?,
                certificate: row.get("certificate")?,
                vouched: row.json("vouched")?,
                operator: row.get("operator")?,
                confirmed: OffsetDateTime::parse(&row.get::<String>("confirmed")?, &Rfc3339)
                    .map_err(|_| row.damaged("confirmed"))?,
                seals: row.json("seals")?,
            });
        }
        for row in &sqlx::query("SELECT * FROM kek_certificates")
            .fetch_all(&self.pool)
            .await
            .map_err(|source| self.database(source))?
        {
            let row = self.row(row);
            all.own.push(KekCertificate {
                hash: row.parsed("hash")?,
                certificate: row.get("certificate")?,
            });
        }
        Ok(all)
    }

    /// The label must be free.
    pub(super) async fn insert_partner(&self, partner: &Partner) -> Result<(), StoreError> {
        let Partner {
            label,
            hash,
            spki,
            certificate,
            vouched,
            operator,
            confirmed,
            seals,
        } = partner;
        let mut transaction = self.begin().await?;
        let taken: Option<String> = sqlx::query_scalar(
            "SELECT hash FROM partners WHERE folded = ?1
             UNION ALL SELECT hash FROM keks WHERE folded = ?1",
        )
        .bind(label.folded())
        .fetch_optional(&mut *transaction)
        .await
        .map_err(|source| self.database(source))?;
        if let Some(registered) = taken {
            return Err(StoreError::LabelTaken {
                label: label.to_string(),
                registered,
                got: hash.to_string(),
            });
        }
        sqlx::query(
            "INSERT INTO partners
             (folded, label, hash, spki, certificate, vouched, operator, confirmed, seals)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        )
        .bind(label.folded())
        .bind(label.as_str())
        .bind(hash.to_string())
        .bind(spki)
        .bind(certificate)
        .bind(json(vouched))
        .bind(operator)
        .bind(confirmed.format(&Rfc3339).unwrap_or_default())
        .bind(json(seals))
        .execute(&mut *transaction)
        .await
        .map_err(|source| self.database(source))?;
        self.commit(transaction).await
    }

    pub(super) async fn remove_partner(&self, label: &KeyLabel) -> Result<bool, StoreError> {
        let mut transaction = self.begin().await?;
        let done = sqlx::query("DELETE FROM partners WHERE folded = ?1")
            .bind(label.folded())
            .execute(&mut *transaction)
            .await
            .map_err(|source| self.database(source))?;
        self.commit(transaction).await?;
        Ok(done.rows_affected() > 0)
    }

    pub(super) async fn replace_certificate(
        &self,
        kek: &KekHash,
        certificate: Option<&[u8]>,
    ) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        let query = match certificate {
            Some(der) => sqlx::query(
                "INSERT OR REPLACE INTO kek_certificates (hash, certificate, created) VALUES (?1, ?2, ?3)",
            )
            .bind(kek.to_string())
            .bind(der)
            .bind(now()),
            None => sqlx::query("DELETE FROM kek_certificates WHERE hash = ?1").bind(kek.to_string()),
        };
        query
            .execute(&mut *transaction)
            .await
            .map_err(|source| self.database(source))?;
        self.commit(transaction).await
    }
}
