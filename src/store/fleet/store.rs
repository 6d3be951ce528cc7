//! The state as requests and operators ask for it.

use std::sync::Arc;

use async_trait::async_trait;

use super::Fleet;
use super::queue::Entry;
use super::snapshot::Snapshot;
use crate::copies::KekCopy;
use crate::drive::DriveSerial;
use crate::key::{DataKeyId, KekHash, KeyLabel};
use crate::store::{
    Birth, Certificates, Defaults, Drive, EedkDigest, FailedOpening, Forgiven, Issuance, Issued,
    KeyServer, Opening, Origin, Partner, RegisteredKek, RequestKey, Servers, Sql, Store,
    StoreError, VolumeKey,
};
use crate::tls::PeerId;
use crate::volser::Volser;

impl Fleet {
    /// From the database, else from the cached table.
    pub(super) async fn either<T, F>(
        &self,
        what: &str,
        ask: impl FnOnce(Sql) -> F,
        cached: impl FnOnce(&Snapshot) -> T,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        match self.ask(what, ask).await {
            Err(StoreError::Outage { .. }) => self.cached(what).map(|held| cached(&held.snapshot)),
            answer => answer,
        }
    }

    /// A confirm, also of what is in the history beside another answer to the same request.
    pub(super) async fn confirm_late(
        &self,
        request: &str,
        dki: &DataKeyId,
        drive: &DriveSerial,
        stored: bool,
        peer: &PeerId,
    ) -> Result<Option<VolumeKey>, StoreError> {
        let request = request.to_owned();
        let (dki, drive, peer) = (*dki, drive.clone(), peer.clone());
        self.change("the history", move |sql| async move {
            sql.confirm(&request, &dki, &drive, stored, &peer).await
        })
        .await
    }
}

#[async_trait]
impl Store for Fleet {
    async fn drive(&self, serial: &DriveSerial) -> Result<Option<Drive>, StoreError> {
        self.either(
            "the drive table",
            |sql| async move { sql.drive(serial).await },
            |table| {
                let mut drives = table.drives.iter();
                drives.find(|drive| drive.serial == *serial).cloned()
            },
        )
        .await
    }

    async fn drives(&self) -> Result<Vec<Drive>, StoreError> {
        self.either(
            "the drive table",
            |sql| async move { sql.drives().await },
            |table| table.drives.clone(),
        )
        .await
    }

    async fn put_drive(&self, drive: &Drive) -> Result<(), StoreError> {
        let drive = drive.clone();
        self.change("the drive table", move |sql| async move {
            sql.put_drive(&drive).await
        })
        .await
    }

    async fn change_drive(&self, before: Option<&Drive>, drive: &Drive) -> Result<(), StoreError> {
        let (before, drive) = (before.cloned(), drive.clone());
        self.change("the drive table", move |sql| async move {
            sql.change_drive(before.as_ref(), &drive).await
        })
        .await
    }

    async fn discover_drive(&self, drive: &Drive) -> Result<bool, StoreError> {
        let drive = drive.clone();
        self.change("the drive table", move |sql| async move {
            sql.discover_drive(&drive).await
        })
        .await
    }

    async fn delete_drive(&self, serial: &DriveSerial) -> Result<bool, StoreError> {
        let serial = serial.clone();
        self.change("the drive table", move |sql| async move {
            sql.delete_drive(&serial).await
        })
        .await
    }

    async fn keks(&self) -> Result<Arc<[RegisteredKek]>, StoreError> {
        self.either(
            "the KEK registry",
            |sql| async move { sql.keks().await },
            |table| table.keks.clone().into(),
        )
        .await
    }

    async fn register_kek(&self, kek: &RegisteredKek) -> Result<(), StoreError> {
        let kek = kek.clone();
        self.change("the KEK registry", move |sql| async move {
            sql.register_kek(&kek).await
        })
        .await
    }

    async fn certificates(&self) -> Result<Arc<Certificates>, StoreError> {
        self.either(
            "the KEK registry",
            |sql| async move { sql.certificates().await },
            |table| Arc::new(table.certificates.clone()),
        )
        .await
    }

    async fn add_partner(&self, partner: &Partner) -> Result<(), StoreError> {
        let partner = partner.clone();
        self.change("the KEK registry", move |sql| async move {
            sql.add_partner(&partner).await
        })
        .await
    }

    async fn delete_partner(&self, label: &KeyLabel) -> Result<bool, StoreError> {
        let label = label.clone();
        self.change("the KEK registry", move |sql| async move {
            sql.delete_partner(&label).await
        })
        .await
    }

    async fn set_certificate(
        &self,
        kek: &KekHash,
        certificate: Option<&[u8]>,
    ) -> Result<(), StoreError> {
        let (kek, certificate) = (*kek, certificate.map(<[u8]>::to_vec));
        self.change("the KEK registry", move |sql| async move {
            sql.set_certificate(&kek, certificate.as_deref()).await
        })
        .await
    }

    async fn kek_copies(&self) -> Result<Arc<[KekCopy]>, StoreError> {
        self.either(
            "the KEK registry",
            |sql| async move { sql.kek_copies().await },
            |table| table.copies.clone().into(),
        )
        .await
    }

    async fn add_kek_copy(&self, copy: &KekCopy) -> Result<(), StoreError> {
        let copy = copy.clone();
        self.change("the KEK registry", move |sql| async move {
            sql.add_kek_copy(&copy).await
        })
        .await
    }

    async fn births(&self) -> Result<Vec<Birth>, StoreError> {
        match self
            .ask("births of KEKs", |sql| async move { sql.births().await })
            .await
        {
            // Nothing is begun or cleared meanwhile, so that none is missed but in a list.
            Err(StoreError::Outage { .. }) => Ok(Vec::new()),
            births => births,
        }
    }

    async fn begin_birth(&self, birth: &Birth) -> Result<(), StoreError> {
        let birth = birth.clone();
        self.change("births of KEKs", move |sql| async move {
            sql.begin_birth(&birth).await
        })
        .await
    }

    async fn end_birth(&self, ceremony: &uuid::Uuid) -> Result<(), StoreError> {
        let ceremony = *ceremony;
        self.change("births of KEKs", move |sql| async move {
            sql.end_birth(&ceremony).await
        })
        .await
    }

    async fn defaults(&self) -> Result<Defaults, StoreError> {
        self.either(
            "the defaults",
            |sql| async move { sql.defaults().await },
            |table| table.defaults.clone(),
        )
        .await
    }

    async fn set_defaults(&self, defaults: &Defaults) -> Result<(), StoreError> {
        let defaults = defaults.clone();
        self.change("the defaults", move |sql| async move {
            sql.set_defaults(&defaults).await
        })
        .await
    }

    // Never queued here: whoever gives it out without the database says so (`Fleet::queue`).
    async fn issue(&self, issuance: &Issuance) -> Result<Issued, StoreError> {
        let issuance = issuance.clone();
        self.change("the history", move |sql| async move {
            sql.issue(&issuance).await
        })
        .await
    }

    async fn answered(
        &self,
        request: &RequestKey,
    ) -> Result<Option<([u8; 32], VolumeKey)>, StoreError> {
        self.read_queue();
        if let Some(answered) = self.0.queue.answered(request) {
            return Ok(Some(answered));
        }
        match self
            .ask(
                "the history",
                |sql| async move { sql.answered(request).await },
            )
            .await
        {
            // What another server gave the same request nobody can say now; the history keeps both.
            Err(StoreError::Outage { .. }) if self.is_down() => self.nowhere("the history", None),
            answer => self.nowhere("the history", answer?),
        }
    }

    async fn issued(&self, eedk_sha256: &EedkDigest) -> Result<Option<Origin>, StoreError> {
        self.read_queue();
        if let Some(origin) = self.0.queue.issued(eedk_sha256) {
            return Ok(Some(origin));
        }
        let found = self
            .ask("the origin of an EEDK", |sql| async move {
                sql.issued(eedk_sha256).await
            })
            .await?;
        self.nowhere("the origin of an EEDK", found)
    }

    async fn origin(&self, dki: &DataKeyId) -> Result<Option<Origin>, StoreError> {
        let found = self
            .ask("the origin of a data key", |sql| async move {
                sql.origin(dki).await
            })
            .await?;
        self.nowhere("the origin of a data key", found)
    }

    async fn confirm(
        &self,
        request: &str,
        dki: &DataKeyId,
        drive: &DriveSerial,
        stored: bool,
        peer: &PeerId,
    ) -> Result<Option<VolumeKey>, StoreError> {
        self.read_queue();
        if self.0.queue.given(request, dki, drive).is_some() {
            let entry = Entry::Confirm {
                request: request.to_owned(),
                dki: *dki,
                drive: drive.clone(),
                stored,
                peer: peer.clone(),
            };
            self.add(entry).await?;
            // None where it was brought in just now.
            if let Some(key) = self.0.queue.given(request, dki, drive) {
                return Ok(Some(key));
            }
        }
        let found = self.confirm_late(request, dki, drive, stored, peer).await?;
        // For as long as it takes: that nothing was written must not be lost.
        self.unless_unread("the history", found)
    }

    async fn data_key(&self, dki: &DataKeyId) -> Result<Option<VolumeKey>, StoreError> {
        self.read_queue();
        if let Some(key) = self.0.queue.data_key(dki) {
            return Ok(Some(key));
        }
        let found = self
            .ask("the history", |sql| async move { sql.data_key(dki).await })
            .await?;
        self.nowhere("the history", found)
    }

    async fn note_opening(&self, opening: &Opening) -> Result<(), StoreError> {
        let opening = opening.clone();
        self.change("openings", move |sql| async move {
            sql.note_opening(&opening).await
        })
        .await
    }

    async fn failed_openings(&self) -> Result<Vec<FailedOpening>, StoreError> {
        self.either(
            "openings",
            |sql| async move { sql.failed_openings().await },
            |table| table.failed.clone(),
        )
        .await
    }

    async fn forgive_openings(&self, whose: &Forgiven) -> Result<(), StoreError> {
        let whose = whose.clone();
        self.change("openings", move |sql| async move {
            sql.forgive_openings(&whose).await
        })
        .await
    }

    async fn guard_secret(&self) -> Result<[u8; 32], StoreError> {
        let secret = self
            .either(
                "the secret of throw-away keys",
                |sql| async move { sql.guard_secret().await.map(Some) },
                Snapshot::guard,
            )
            .await?;
        secret.ok_or_else(|| self.outage("the secret of throw-away keys"))
    }

    // It may be all of them, which takes its time.
    async fn volumes(&self, volser: Option<&Volser>) -> Result<Vec<VolumeKey>, StoreError> {
        let up = self.up("the history")?;
        tokio::select! {
            answer = up.sql.volumes(volser) => self.heard("the history", &up, Some(answer)).await,
            () = self.given_up(&up) => Err(self.outage("the history")),
        }
    }
}

#[async_trait]
impl Servers for Fleet {
    async fn tell(&self, server: &KeyServer) -> Result<Option<KeyServer>, StoreError> {
        let server = server.clone();
        self.change(
            "the servers",
            move |sql| async move { sql.tell(&server).await },
        )
        .await
    }

    async fn servers(&self) -> Result<Vec<KeyServer>, StoreError> {
        self.either(
            "the servers",
            |sql| async move { sql.servers().await },
            |table| table.servers.clone(),
        )
        .await
    }

    async fn forget_server(&self, node: &str) -> Result<bool, StoreError> {
        let node = node.to_owned();
        self.change("the servers", move |sql| async move {
            sql.forget_server(&node).await
        })
        .await
    }
}
