//! A data key under other KEKs: by the cartridge's EEDKs, or by the catalog's where no cartridge is
//! at hand.

use uuid::Uuid;

use super::answer::{marks, presented_marks, rekey_answer};
use super::fleet::no_rekey;
use super::known::Traced;
use super::words::{
    event, failures, joined, labels_of, note_unproved, request_key, stored, unrecorded, unstored,
};
use super::{Answer, Service, gates};
use crate::admin::Act;
use crate::api::{RekeyAnswer, RekeyRequest};
use crate::audit::Event;
use crate::exchange::{self, Fresh};
use crate::key::KekRef;
use crate::policy::{DriveClaim, KeyClaim, Purpose, RekeyGrant, authorize_rekey};
use crate::problem::{EkmCode, Problem};
use crate::store::{Issuance, Issued, Origin, StoredEedk, VolumeKey, VolumeSet};
use crate::tls::{PeerId, Role};

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rekeyed {
    /// The catalog has new EEDKs.
    Now,
    /// It had them already, by the same request.
    Before,
}

impl Service {
    /// The data key of a cartridge under other KEKs.
    ///
    /// # Errors
    /// The problem, recorded.
    pub async fn rekey(&self, peer: &PeerId, request: &RekeyRequest) -> Answer<RekeyAnswer> {
        let mut event = event("rekey", peer, &request.request_id, Some(&request.serial));
        event.volser = Some(request.volser.to_string());
        let outcome = self.try_rekey(peer, request, &mut event).await;
        self.close(event, outcome).await
    }

    async fn try_rekey(
        &self,
        peer: &PeerId,
        request: &RekeyRequest,
        event: &mut Event,
    ) -> Result<RekeyAnswer, Problem> {
        self.all_is_served()?;
        let key = request_key(peer, &request.request_id);
        let digest = request.digest();
        let _turn = self.turns.take(key.clone()).await?;
        let looking = self.gates.arrive(peer).await?;
        self.may_rekey(peer, request).await?;
        if let Some(earlier) = self.answered(&key, &digest).await? {
            return Ok(rekeyed_before(request, &earlier, event));
        }
        let Traced {
            presented,
            untraced,
        } = self.presented(&request.eedks).await?;
        if untraced {
            return Err(no_rekey());
        }
        event.eedks = presented_marks(&presented);
        event.keks = [Some(&request.kek1), request.kek2.as_ref()]
            .into_iter()
            .flatten()
            .map(|kek| kek.label.to_string())
            .collect();
        let claim = DriveClaim {
            serial: request.serial.clone(),
            key: KeyClaim::default(),
        };
        let labels = (&request.kek1, request.kek2.as_ref());
        let purpose = Purpose::Rekey {
            known: self.origin(&presented).await?,
        };
        let grant = self
            .judge(peer, &claim, |known| {
                authorize_rekey(known, peer, &request.serial, labels, &presented, purpose)
            })
            .await?;
        let (rekeyed, fresh) = self.put_under(peer, looking, &grant, event).await?;
        let source = presented
            .get(rekeyed.opened)
            .and_then(|presented| presented.origin);
        let dki = fresh
            .first()
            .map(|stored| stored.eedk.dki())
            .ok_or_else(|| Problem::internal("the token made no EEDK"))?;
        event.dki = Some(dki.to_string());
        for mark in &mut event.eedks {
            mark.foreign = source != Some(Origin::Ours);
        }
        let kept = self
            .store
            .issue(&Issuance {
                request: key.clone(),
                digest,
                dki,
                volser: request.volser.clone(),
                drive: request.serial.clone(),
                token: rekeyed.place.token,
                custody: rekeyed.place.custody,
                origin: source.unwrap_or(Origin::Foreign),
                new: false,
                eedks: fresh.clone(),
                server: self.node.clone(),
                job: None,
            })
            .await
            .map_err(|error| unstored(&error))?;
        if kept == Issued::Before
            && let Some(earlier) = self.answered(&key, &digest).await?
        {
            return Ok(rekeyed_before(request, &earlier, event));
        }
        Ok(rekey_answer(request.request_id, dki, &fresh))
    }

    /// Whether an operator's certificate is enough for this rekey; what other peers may is said by
    /// the policy.
    async fn may_rekey(&self, peer: &PeerId, request: &RekeyRequest) -> Result<(), Problem> {
        if peer.role() != Role::Operator {
            return Ok(());
        }
        let prohibited = |detail: String| Err(Problem::new(EkmCode::EE30, 403, detail));
        if !self.roster.admits(peer, Act::Rekey) {
            return prohibited(format!(
                "{peer} has not the role key-admin, which a rekey takes (ekm config roles)"
            ));
        }
        if self.roster.approval().wants(Act::RekeyPartner) {
            let directory = self.directory().await?;
            let mut targets = [Some(&request.kek1), request.kek2.as_ref()]
                .into_iter()
                .flatten()
                .filter_map(|kek| directory.by_label(&kek.label).ok());
            if targets.any(|kek| kek.partner.is_some()) {
                return prohibited(
                    "a rekey for a partner takes a second person (policy.approval), who cannot be asked at this door; use the command line".to_owned(),
                );
            }
        }
        Ok(())
    }

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
    ) -> Answer<Rekeyed> {
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
        event: &mut Event,
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
        let (rekeyed, fresh) = self.put_under(peer, looking, &grant, event).await?;
        event.detail = joined(
            Some("in the catalog; not on the cartridge yet".to_owned()),
            event.detail.take(),
        );
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

    /// Has a token put the data key under the grant's KEKs, with the intent on record, and says on
    /// record what came of it.
    async fn put_under(
        &self,
        peer: &PeerId,
        looking: gates::Place,
        grant: &RekeyGrant,
        event: &mut Event,
    ) -> Result<(exchange::Rekeyed, Vec<StoredEedk>), Problem> {
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
            exchange::rekey(&self.tokens, grant, made),
            self.intend(event)
        );
        let rekeyed = rekeyed.map_err(|error| Problem::from(&error))?;
        drop(place);
        intent.await.map_err(|error| unrecorded(&error))?;
        let fresh = stored(&rekeyed.eedks, grant.keks(), &rekeyed.proved);
        event.eedks = marks(&fresh);
        event.token = Some(rekeyed.place.token.clone());
        event.custody = Some(rekeyed.place.custody.to_string());
        event.detail = failures(&rekeyed.failures);
        note_unproved(event, grant.keks(), &rekeyed.proved);
        Ok((rekeyed, fresh))
    }
}

/// The answer to a rekey was lost: the same EEDKs.
fn rekeyed_before(request: &RekeyRequest, earlier: &VolumeKey, event: &mut Event) -> RekeyAnswer {
    event.dki = Some(earlier.dki.to_string());
    event.eedks = marks(&earlier.eedks);
    event.keks = labels_of(earlier);
    event.detail = Some("the same EEDKs again for a repeated request".to_owned());
    rekey_answer(request.request_id, earlier.dki, &earlier.eedks)
}
