//! A data key under other KEKs, by the catalog's EEDKs: no cartridge is at hand.

use uuid::Uuid;

use super::fleet::no_rekey;
use super::known::Traced;
use super::{
    Service, event, failures, intended, joined, note_unproved, request_key, stored, unrecorded,
    unstored,
};
use crate::audit::Audited;
use crate::exchange::{self, Fresh};
use crate::key::KekRef;
use crate::policy::{DriveClaim, KeyClaim, Purpose, authorize_rekey};
use crate::problem::Problem;
use crate::service::answer::marks;
use crate::store::{Issuance, Issued, VolumeSet};
use crate::tls::PeerId;

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rekeyed {
    /// The catalog has new EEDKs.
    Now,
    /// It had them already, by the same request.
    Before,
}

impl Service {
    /// Puts the data key of a set of EEDKs under other KEKs, and the new EEDKs into the catalog. The
    /// same request makes them once.
    ///
    /// # Errors
    /// The problem, recorded.
    pub(crate) async fn rekey_from_catalog(
        &self,
        peer: &PeerId,
        operator: &str,
        request: Uuid,
        set: &VolumeSet,
        keks: (&KekRef, Option<&KekRef>),
    ) -> Result<Audited<Rekeyed>, Problem> {
        let key = request_key(peer, &request);
        let before = self
            .store
            .answered(&key)
            .await
            .map_err(|error| unstored(&error))?;
        let mut event = event("volume-rekey", peer, &request, Some(&set.key.drive));
        event.peer = Some(operator.to_owned());
        event.volser = Some(set.key.volser.to_string());
        event.dki = Some(set.key.dki.to_string());
        let outcome = match before {
            // It is on record since it was made.
            Some(_) => {
                event.detail = Some("made before, by the same request".to_owned());
                Ok(Rekeyed::Before)
            }
            None => self.try_catalog(peer, request, set, keks, &mut event).await,
        };
        self.close(event, outcome).await
    }

    async fn try_catalog(
        &self,
        peer: &PeerId,
        request: Uuid,
        set: &VolumeSet,
        keks: (&KekRef, Option<&KekRef>),
        event: &mut crate::audit::Event,
    ) -> Result<Rekeyed, Problem> {
        self.all_is_served()?;
        let looking = self.gates.arrive(peer).await?;
        let decoded = set.key.eedks.iter();
        let Traced {
            presented,
            untraced,
        } = self
            .traced(decoded.map(|stored| Ok(stored.eedk.clone())).collect())
            .await?;
        if untraced {
            return Err(no_rekey());
        }
        let source = presented
            .iter()
            .find_map(|one| one.origin)
            .ok_or_else(|| Problem::internal("the catalog's EEDKs are not in the history"))?;
        event.eedks = marks(&set.key.eedks);
        event.keks = [Some(keks.0), keks.1]
            .into_iter()
            .flatten()
            .map(|kek| kek.label.to_string())
            .collect();
        let claim = DriveClaim {
            serial: set.key.drive.clone(),
            key: KeyClaim::default(),
        };
        let purpose = Purpose::Rekey {
            known: Some(source),
        };
        let grant = self
            .judge(peer, &claim, |known| {
                authorize_rekey(known, peer, &claim.serial, keks, &presented, purpose)
            })
            .await?;
        self.everywhere(grant.keks())?;
        self.register(grant.keks()).await?;
        let barred = if grant.readable().iter().any(|one| one.software) {
            Vec::new()
        } else {
            self.tokens.keystores()
        };
        let openers = grant.readable().iter().map(|one| &one.kek);
        let place = self.place(looking, peer, openers, &barred).await?;
        let made = Fresh::new().map_err(|error| Problem::from(&error))?;
        let (rekeyed, intent) = tokio::join!(
            biased;
            exchange::rekey(&self.tokens, &grant, made),
            self.audit.submit(intended(event))
        );
        let rekeyed = rekeyed.map_err(|error| Problem::from(&error))?;
        drop(place);
        intent.await.map_err(|error| unrecorded(&error))?;
        let fresh = stored(&rekeyed.eedks, grant.keks(), &rekeyed.proved);
        event.eedks = marks(&fresh);
        event.token = Some(rekeyed.place.token.clone());
        event.custody = Some(rekeyed.place.custody.to_string());
        event.detail = joined(
            Some("in the catalog; not on the cartridge yet".to_owned()),
            failures(&rekeyed.failures),
        );
        note_unproved(event, grant.keks(), &rekeyed.proved);
        let kept = self
            .store
            .issue_unmounted(&Issuance {
                request: request_key(peer, &request),
                digest: [0; 32],
                dki: set.key.dki,
                volser: set.key.volser.clone(),
                drive: set.key.drive.clone(),
                token: rekeyed.place.token,
                custody: rekeyed.place.custody,
                origin: source,
                new: false,
                eedks: fresh,
                server: self.node.clone(),
                job: None,
            })
            .await
            .map_err(|error| unstored(&error))?;
        Ok(match kept {
            Issued::Now => Rekeyed::Now,
            Issued::Before => Rekeyed::Before,
        })
    }
}
