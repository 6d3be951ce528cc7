//! A new data key for a cartridge.

use super::answer::{create_answer, mark_opened, marks};
use super::words::{event, fingerprint, labels_of, note_unproved, request_key, stored, unrecorded};
use super::{Answer, Service, gates};
use crate::api::{CreateAnswer, CreateRequest};
use crate::audit::Event;
use crate::exchange::{self, Fresh};
use crate::policy::{DriveClaim, Presented, Purpose, authorize_create, authorize_resolve};
use crate::problem::Problem;
use crate::store::{Issuance, Issued, Origin, VolumeKey};
use crate::tls::PeerId;

impl Service {
    /// A new data key. The same request id gets the same one again.
    ///
    /// # Errors
    /// The problem, recorded.
    pub async fn create(&self, peer: &PeerId, request: &CreateRequest) -> Answer<CreateAnswer> {
        let mut event = event(
            "create",
            peer,
            &request.request_id,
            Some(&request.drive.serial),
        );
        event.volser = Some(request.volser.to_string());
        let outcome = self.try_create(peer, request, &mut event).await;
        self.close(event, outcome).await
    }

    async fn try_create(
        &self,
        peer: &PeerId,
        request: &CreateRequest,
        event: &mut Event,
    ) -> Result<CreateAnswer, Problem> {
        self.all_is_served()?;
        let key = request_key(peer, &request.request_id);
        let digest = request.digest();
        let _turn = self.turns.take(key.clone()).await?;
        let looking = self.gates.arrive(peer).await?;
        let claim = self.claim(&request.drive)?;
        if let Some(earlier) = self.answered(&key, &digest).await? {
            return self
                .create_again(looking, peer, request, &claim, &earlier, event)
                .await;
        }
        let place_to_keep = self.place_to_keep(&request.drive)?;
        let labels = (request.kek1.as_ref(), request.kek2.as_ref());
        let grant = self
            .judge(peer, &claim, |known| {
                authorize_create(known, peer, &claim, labels)
            })
            .await?;
        self.everywhere(grant.keks())?;
        self.register(grant.keks()).await?;
        event.keks = grant
            .keks()
            .iter()
            .map(|kek| kek.kek.label.to_string())
            .collect();
        event.drive_key = fingerprint(&grant.drive().spki);
        let mut barred = self.tokens.keystores();
        barred.retain(|name| {
            !grant
                .keks()
                .iter()
                .any(|kek| kek.kek.writers.contains(name))
        });
        let hashes = grant.keks().iter().map(|kek| &kek.kek.hash);
        let place = self.place(looking, peer, hashes, &barred).await?;
        let fresh = Fresh::new().map_err(|error| Problem::from(&error))?;
        // Here as in the others the token is asked first: it works while the record is written.
        let (issued, intent) = tokio::join!(
            biased;
            exchange::create(&self.tokens, &grant, fresh),
            self.intend(event)
        );
        let issued = issued.map_err(|error| Problem::from(&error))?;
        drop(place);
        intent.await.map_err(|error| unrecorded(&error))?;
        let eedks = stored(&issued.eedks, grant.keks(), &issued.proved);
        event.dki = Some(issued.dki.to_string());
        event.eedks = marks(&eedks);
        event.token = Some(issued.place.token.clone());
        event.custody = Some(issued.place.custody.to_string());
        note_unproved(event, grant.keks(), &issued.proved);
        let issuance = Issuance {
            request: key.clone(),
            digest,
            dki: issued.dki,
            volser: request.volser.clone(),
            drive: request.drive.serial.clone(),
            token: issued.place.token,
            custody: issued.place.custody,
            origin: Origin::Ours,
            new: true,
            eedks: eedks.clone(),
            server: self.node.clone(),
            job: request.job.clone().map(String::from),
        };
        let kept = self.keep(place_to_keep, &issuance, event).await?;
        // Another server did the same request meanwhile: the data key made here is given to nobody.
        if kept == Issued::Before
            && let Some(earlier) = self.answered(&key, &digest).await?
        {
            let looking = self.gates.arrive(peer).await?;
            return self
                .create_again(looking, peer, request, &claim, &earlier, event)
                .await;
        }
        create_answer(
            request.request_id,
            issued.dki,
            &eedks,
            issued.sedk,
            request.drive.stores_eedks,
        )
    }

    /// The answer to a create was lost: the same data key, wrapped again for the drive.
    async fn create_again(
        &self,
        looking: gates::Place,
        peer: &PeerId,
        request: &CreateRequest,
        claim: &DriveClaim,
        earlier: &VolumeKey,
        event: &mut Event,
    ) -> Result<CreateAnswer, Problem> {
        let presented: Vec<Presented> = earlier
            .eedks
            .iter()
            .map(|stored| Presented {
                eedk: Ok(stored.eedk.clone()),
                origin: Some(Origin::Ours),
            })
            .collect();
        let grant = self
            .judge(peer, claim, |known| {
                authorize_resolve(known, peer, claim, &presented, Purpose::Read)
            })
            .await?;
        event.dki = Some(earlier.dki.to_string());
        event.eedks = marks(&earlier.eedks);
        event.keks = labels_of(earlier);
        event.drive_key = fingerprint(&grant.drive().spki);
        event.detail = Some("the same data key again for a repeated request".to_owned());
        let keks = grant.readable().iter().map(|one| &one.kek);
        let place = self.place(looking, peer, keks, &[]).await?;
        let (resolved, intent) = tokio::join!(
            biased;
            exchange::resolve(&self.tokens, &grant, &self.guard),
            self.intend(event)
        );
        let resolved = resolved.map_err(|error| Problem::from(&error))?;
        drop(place);
        intent.await.map_err(|error| unrecorded(&error))?;
        mark_opened(&mut event.eedks, &presented, resolved.opened);
        event.token = Some(resolved.place.token);
        event.custody = Some(resolved.place.custody.to_string());
        create_answer(
            request.request_id,
            earlier.dki,
            &earlier.eedks,
            resolved.sedk,
            request.drive.stores_eedks,
        )
    }
}
