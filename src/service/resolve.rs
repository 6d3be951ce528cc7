//! The data key of a cartridge that is read.

use super::answer::{mark_opened, presented_marks, resolve_answer, shown};
use super::cartridge::Cartridge;
use super::words::{event, failures, fingerprint, joined, note_unheard, unrecorded};
use super::{Answer, Service, fleet};
use crate::api::{ResolveAnswer, ResolveRequest};
use crate::audit::{Audited, Event, Receipt};
use crate::exchange;
use crate::keystore::{Custody, Directory};
use crate::policy::{Purpose, Readable, Refusal, authorize_resolve};
use crate::problem::Problem;
use crate::tls::PeerId;

impl Service {
    /// The data key of a cartridge.
    ///
    /// # Errors
    /// The problem, recorded.
    pub async fn resolve(&self, peer: &PeerId, request: &ResolveRequest) -> Answer<ResolveAnswer> {
        let mut event = event(
            "resolve",
            peer,
            &request.request_id,
            Some(&request.drive.serial),
        );
        event.volser = request.volser.as_ref().map(ToString::to_string);
        match self.try_resolve(peer, request, &mut event).await {
            // A data key that was in host memory has that on record before it leaves.
            Ok((answer, _)) if event.custody == Some(Custody::Host.to_string()) => {
                self.close(event, Ok(answer)).await
            }
            // The intent names all that the answer gives; how it ended follows.
            Ok((answer, intent)) => {
                note_unheard(&mut event);
                self.audit.follow(event).await;
                Ok(Audited::new(answer, &intent))
            }
            Err(problem) => self.close(event, Err(problem)).await,
        }
    }

    async fn try_resolve(
        &self,
        peer: &PeerId,
        request: &ResolveRequest,
        event: &mut Event,
    ) -> Result<(ResolveAnswer, Receipt), Problem> {
        let looking = self.gates.arrive(peer).await?;
        let Cartridge {
            presented,
            catalog,
            untraced,
        } = self.cartridge(request).await?;
        let claim = self.claim(&request.drive)?;
        event.eedks = presented_marks(&presented);
        event.detail = catalog
            .as_ref()
            .map(|known| known.note(request.volser.as_ref()));
        if untraced {
            event.detail = joined(event.detail.take(), Some(fleet::UNTRACED.to_owned()));
        }
        let purpose = if request.append {
            Purpose::Append
        } else {
            Purpose::Read
        };
        let grant = self
            .judge(peer, &claim, |known| {
                authorize_resolve(known, peer, &claim, &presented, purpose).map_err(|refusal| {
                    match (refusal, request.dki) {
                        // Only who may speak for the drive is told what is in the history.
                        (Refusal::NoEedk(_), Some(dki)) if presented.is_empty() => {
                            Refusal::UnknownDataKey(dki)
                        }
                        (refusal, _) => refusal,
                    }
                })
            })
            .await
            .map_err(|problem| fleet::unless_untraced(problem, untraced))?;
        let grant = fleet::without_guarded(grant, untraced)?;
        let directory = self.directory().await?;
        event.drive_key = fingerprint(&grant.drive().spki);
        event.dki = granted_dki(grant.readable());
        event.keks = opening(grant.readable(), &directory);
        let dki = grant.readable().first().map(|one| one.eedk.dki());
        let newer = match &dki {
            Some(dki) => self.newer(dki).await?,
            None => None,
        };
        event.detail = joined(
            event.detail.take(),
            newer.as_ref().map(|newer| {
                format!(
                    "EEDKs of generation {} are to be stored on the cartridge",
                    newer.generation
                )
            }),
        );
        // Whoever waits for the rest of a budget holds nobody up.
        drop(looking);
        let (grant, budget) = self.within_budget(peer, grant).await?;
        let keks = grant.readable().iter().map(|one| &one.kek);
        let place = self.gates.enter(&self.tokens, keks, &[], peer).await?;
        let catalog = catalog.map(|known| known.key.eedks).unwrap_or_default();
        // The token is asked first: what else there is to do goes beside its work.
        let (resolved, intent, shown) = tokio::join!(
            biased;
            exchange::resolve(&self.tokens, &grant, &self.guard),
            self.intend(event),
            async { shown(&presented, &catalog, newer, &directory) }
        );
        let resolved = match resolved {
            Ok(resolved) => resolved,
            Err(error) => {
                self.note_unanswered(budget, &error).await?;
                return Err(Problem::from(&error));
            }
        };
        drop(place);
        if let Some(came) = &resolved.guarded {
            self.note_opening(budget, came, resolved.opened, event)
                .await?;
        }
        let intent = intent.await.map_err(|error| unrecorded(&error))?;
        mark_opened(&mut event.eedks, &presented, resolved.opened);
        let opened = grant.readable().iter();
        let mut opened = opened.filter(|one| one.index == resolved.opened);
        let strange = presented.get(resolved.opened);
        if let Some(one) = opened.next()
            && strange.is_some_and(|one| one.origin.is_none())
            && !untraced
        {
            self.note_foreign(&one.kek, request.volser.as_ref()).await;
        }
        event.token = Some(resolved.place.token.clone());
        event.custody = Some(resolved.place.custody.to_string());
        event.detail = joined(event.detail.take(), failures(&resolved.failures));
        let answer = resolve_answer(request.request_id, &presented, shown, resolved)?;
        Ok((answer, intent))
    }
}

/// The labels of the KEKs that may open a cartridge; their hashes where a
/// label is not known.
fn opening(readable: &[Readable], directory: &Directory) -> Vec<String> {
    readable
        .iter()
        .map(|readable| match directory.by_hash(&readable.kek) {
            Some(kek) => kek.label.to_string(),
            None => readable.kek.to_string(),
        })
        .collect()
}

fn granted_dki(readable: &[Readable]) -> Option<String> {
    readable
        .first()
        .map(|readable| readable.eedk.dki().to_string())
}
