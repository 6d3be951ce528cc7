//! The rows of partners and of certificates.

use sqlx::any::AnyRow;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Sql, label_lock, now};
use crate::key::{KekHash, KeyLabel};
use crate::store::{Certificates, KekCertificate, Partner, StoreError};

impl Sql {
    pub(super) async fn read_certificates(&self) -> Result<Certificates, StoreError> {
        let mut all = Certificates::default();
        for row in &sqlx::query("SELECT * FROM partners ORDER BY folded")
            .fetch_all(&self.pool)
            .await
            .map_err(|source| self.database(source))?
        {
            all.partners.push(self.partner_of(row)?);
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

    pub(super) fn partner_of(&self, row: &AnyRow) -> Result<Partner, StoreError> {
        let row = self.row(row);
        Ok(Partner {
            label: row.parsed("label")?,
            hash: row.parsed("hash")?,
            spki: row.get("spki")?,
            certificate: row.get("certificate")?,
            vouched: row.json("vouched")?,
            operator: row.get("operator")?,
            confirmed: OffsetDateTime::parse(&row.get::<String>("confirmed")?, &Rfc3339)
                .map_err(|_| row.damaged("confirmed"))?,
            seals: row.json("seals")?,
        })
    }

    /// The label must be free.
    pub(super) async fn insert_partner(&self, partner: &Partner) -> Result<(), StoreError> {
        let Partner { label, hash, .. } = partner;
        let mut transaction = self.begin().await?;
        self.alone(&mut transaction, &label_lock(label)).await?;
        let taken: Option<String> = sqlx::query_scalar(
            "SELECT hash FROM partners WHERE folded = $1
             UNION ALL SELECT hash FROM keks WHERE folded = $1",
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
        self.put_partner(&mut transaction, partner).await?;
        self.commit(transaction).await
    }

    pub(super) async fn remove_partner(&self, label: &KeyLabel) -> Result<bool, StoreError> {
        let mut transaction = self.begin().await?;
        let removed = self.drop_partner(&mut transaction, label).await?;
        if let Some(hash) = &removed {
            let now = OffsetDateTime::now_utc();
            self.note_removed(&mut transaction, label, hash, now)
                .await?;
        }
        self.commit(transaction).await?;
        Ok(removed.is_some())
    }

    pub(super) async fn replace_certificate(
        &self,
        kek: &KekHash,
        certificate: Option<&[u8]>,
    ) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        let query = match certificate {
            Some(der) => sqlx::query(
                "INSERT INTO kek_certificates (hash, certificate, created) VALUES ($1, $2, $3)
                 ON CONFLICT (hash) DO UPDATE
                 SET certificate = excluded.certificate, created = excluded.created",
            )
            .bind(kek.to_string())
            .bind(der)
            .bind(now()),
            None => {
                sqlx::query("DELETE FROM kek_certificates WHERE hash = $1").bind(kek.to_string())
            }
        };
        query
            .execute(&mut *transaction)
            .await
            .map_err(|source| self.database(source))?;
        self.commit(transaction).await
    }
}
