//! What a resolve is about: the cartridge's EEDKs, and those that the history has for its data key.

use super::known::Traced;
use super::{Service, unstored};
use crate::api::{self, ResolveRequest};
use crate::key::{DataKeyId, Eedk};
use crate::policy::Presented;
use crate::problem::{EkmCode, Problem};
use crate::store::{StoreError, Unstored, VolumeKey};
use crate::volser::Volser;

/// The EEDKs of one resolve.
pub(super) struct Cartridge {
    /// Those of the request, then those of the history. None where the request has none and names a
    /// data key that the history does not know.
    pub(super) presented: Vec<Presented>,
    /// What the history has for the data key that the request names.
    pub(super) catalog: Option<Known>,
    /// Whether it could not be looked up where all of them come from.
    pub(super) untraced: bool,
}

/// What the history has for a data key.
pub(super) struct Known {
    pub(super) key: VolumeKey,
    /// How many of its EEDKs the request did not have.
    missing: usize,
}

impl Known {
    /// What the record says of it.
    pub(super) fn note(&self, volser: Option<&Volser>) -> String {
        let Self { key, missing } = self;
        let mut note = format!(
            "asked by {}: {missing} of {} EEDKs come from the history (generation {}, {})",
            key.dki,
            key.eedks.len(),
            key.generation,
            key.state
        );
        // A cartridge may have got another bar code; whoever reads the record should see both.
        if let Some(asked) = volser.filter(|asked| **asked != key.volser) {
            note.push_str(&format!(
                "; it was made for volume {}, not {asked}",
                key.volser
            ));
        }
        note
    }
}

impl Service {
    /// EEDKs of a rekey that the data key's cartridge has not got yet.
    pub(super) async fn newer(&self, dki: &DataKeyId) -> Result<Option<Unstored>, Problem> {
        self.store
            .unstored(dki)
            .await
            .map_err(|error| unstored(&error))
    }

    /// The EEDKs by which a request's data key may be opened.
    ///
    /// Where the request names its data key, an EEDK of another one is a leftover of what the
    /// cartridge held before, and is left aside.
    pub(super) async fn cartridge(&self, request: &ResolveRequest) -> Result<Cartridge, Problem> {
        let Some(dki) = request.dki else {
            let Traced {
                presented,
                untraced,
            } = self.presented(&request.eedks).await?;
            return Ok(Cartridge {
                presented,
                catalog: None,
                untraced,
            });
        };
        let mut eedks = api::eedks(&request.eedks, 0)
            .map_err(|reason| Problem::new(EkmCode::EE23, 400, reason))?;
        eedks.retain(|eedk| eedk.as_ref().map_or(true, |eedk| eedk.dki() == dki));
        let known = match self.store.data_key(&dki).await {
            Ok(known) => known,
            // Without the history the cartridge's own may do.
            Err(StoreError::Outage { .. }) if eedks.iter().any(Result::is_ok) => None,
            Err(error) => return Err(unstored(&error)),
        };
        let newer = match &known {
            Some(_) => self.newer(&dki).await?,
            None => None,
        };
        let mut catalog = known.map(|key| {
            let shown: Vec<_> = eedks.iter().flatten().map(Eedk::digest).collect();
            let missing: Vec<_> = key
                .eedks
                .iter()
                .map(|stored| stored.eedk.clone())
                .filter(|eedk| !shown.contains(&eedk.digest()))
                .collect();
            let count = missing.len();
            eedks.extend(missing.into_iter().map(Ok));
            Known {
                key,
                missing: count,
            }
        });
        // The cartridge's own first: those of a rekey are needed where its KEK is gone.
        if let (Some(known), Some(newer)) = (&mut catalog, newer) {
            let shown: Vec<_> = eedks.iter().flatten().map(Eedk::digest).collect();
            for stored in newer.eedks {
                if !shown.contains(&stored.eedk.digest()) {
                    known.missing += 1;
                    eedks.push(Ok(stored.eedk.clone()));
                    known.key.eedks.push(stored);
                }
            }
        }
        let Traced {
            presented,
            untraced,
        } = self.traced(eedks).await?;
        Ok(Cartridge {
            presented,
            catalog,
            untraced,
        })
    }
}
