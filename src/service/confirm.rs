//! What became of the EEDKs that a drive was given.

use super::answer::marks;
use super::words::{event, unstored};
use super::{Answer, Service};
use crate::api::{ConfirmAnswer, ConfirmRequest};
use crate::audit::Event;
use crate::policy::authorize_confirm;
use crate::problem::{EkmCode, Problem};
use crate::tls::PeerId;

impl Service {
    /// What a drive says became of its newest EEDKs.
    ///
    /// # Errors
    /// The problem, recorded.
    pub async fn confirm(&self, peer: &PeerId, request: &ConfirmRequest) -> Answer<ConfirmAnswer> {
        let mut event = event("confirm", peer, &request.request_id, Some(&request.serial));
        event.dki = Some(request.dki.to_string());
        let outcome = self.try_confirm(peer, request, &mut event).await;
        self.close(event, outcome).await
    }

    async fn try_confirm(
        &self,
        peer: &PeerId,
        request: &ConfirmRequest,
        event: &mut Event,
    ) -> Result<ConfirmAnswer, Problem> {
        self.all_is_served()?;
        let looked = self.look(&request.serial, false).await?;
        authorize_confirm(self.known(&looked), peer, &request.serial)
            .map_err(|refusal| self.unless_away(Problem::from(&refusal)))?;
        let key = self
            .store
            .confirm(
                &request.request_id.to_string(),
                &request.dki,
                &request.serial,
                request.stored,
                peer,
            )
            .await
            .map_err(|error| unstored(&error))?
            .ok_or_else(|| {
                Problem::new(
                    EkmCode::EE30,
                    404,
                    format!(
                        "request {} gave drive {} nothing of data key {}, so there is nothing to confirm",
                        request.request_id, request.serial, request.dki
                    ),
                )
            })?;
        event.volser = Some(key.volser.to_string());
        event.eedks = marks(&key.eedks);
        Ok(ConfirmAnswer {
            request_id: request.request_id,
            state: key.state,
        })
    }
}
