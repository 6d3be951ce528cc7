//! The data key of a cartridge that is read, or written on.
//!
//! Which one that is the blocks say, by the DKi that each of them shows. EEDKs on the cartridge count
//! where they are of that data key; otherwise the server's catalog is asked by the DKi.

use uuid::Uuid;

use super::cartridge::{self, Cartridge, FirstBlock};
use super::checks::Able;
use super::create::{set, take_away};
use super::error::JobRefused;
use super::history::History;
use super::home::Home;
use super::parameters::Parameters;
use super::protect::Confirmed;
use super::renew::Renew;
use super::report::Keyed;
use super::seams::{Keys, KeysError, Unit, still_wanted};
use super::story::{JobRequest, Rules};
use crate::api::{Base64, DriveInRequest, ResolveAnswer, ResolveRequest};
use crate::key::{DataKeyId, Eedk};
use crate::problem::EkmCode;
use crate::t10::EncryptionStatus;

/// What a resolve needs to know.
pub(super) struct Resolve<'a> {
    pub(super) rules: &'a Rules,
    pub(super) able: &'a Able,
    pub(super) cartridge: &'a Cartridge,
    pub(super) job: &'a JobRequest,
    pub(super) append: bool,
    pub(super) history: &'a History,
}

/// What was found.
#[derive(Debug)]
pub(super) struct Resolved {
    /// The key; none where the cartridge begins in clear and its key is not to be had.
    pub(super) key: Option<(Confirmed, Keyed)>,
    pub(super) warnings: Vec<String>,
}

impl Resolve<'_> {
    pub(super) fn run(&self, unit: &mut Unit, keys: &mut dyn Keys) -> Result<Resolved, JobRefused> {
        let mut warnings = Vec::new();
        let asked = self.ask(keys, &mut warnings);
        let (answer, home) = match asked {
            Ok(asked) => asked,
            // Labels in clear can be read by anybody.
            Err(why) if self.labels_alone(&why) => {
                warnings.push(format!(
                    "only blocks in clear can be read, as {} has no key here: {why}",
                    self.job.volser
                ));
                return Ok(Resolved {
                    key: None,
                    warnings,
                });
            }
            Err(why) => return Err(why),
        };
        let dki = answer.dki;
        if let Some(named) = self.named()
            && named != dki
        {
            return Err(JobRefused::Answer(format!(
                "it gives data key {dki}, and the cartridge's blocks are under {named}"
            )));
        }
        if self.append && !answer.issued_here {
            return Err(JobRefused::NotIssued {
                dki,
                volser: self.job.volser.clone(),
            });
        }
        let parameters = Parameters::of(answer.spout.as_ref(), dki, self.able, self.rules)
            .map_err(JobRefused::Answer)?;
        still_wanted(keys)?;
        let index = self.able.algorithm.index;
        let confirmed = set(unit, &parameters, dki, index)
            .and_then(|(confirmed, _)| self.opens(unit, dki, &mut warnings).map(|()| confirmed));
        let confirmed = confirmed.map_err(|why| match take_away(unit, index) {
            Ok(()) => why,
            Err(error) => why.then(vec![format!(
                "the key could not be taken away again: {error}"
            )]),
        })?;
        let home = match &answer.newer {
            Some(newer) => match self.renew(dki).run(unit, keys, newer) {
                Ok(()) => Home::Memory,
                Err(why) => {
                    warnings.push(format!(
                        "new EEDKs of {} (a rekey) are to be stored at its next mount: {why}",
                        self.job.volser
                    ));
                    home
                }
            },
            None => home,
        };
        let keyed = Keyed {
            dki,
            created: false,
            labels: answer
                .eedks
                .iter()
                .filter_map(|eedk| eedk.label.clone())
                .collect(),
            key_format: parameters.format.to_string(),
            key_instance: confirmed.key_instance(),
            eedks: home,
            request: answer.request_id.to_string(),
        };
        Ok(Resolved {
            key: Some((confirmed, keyed)),
            warnings,
        })
    }

    const fn renew(&self, dki: DataKeyId) -> Renew<'_> {
        Renew {
            rules: self.rules,
            cartridge: self.cartridge,
            job: self.job,
            history: self.history,
            dki,
        }
    }

    fn named(&self) -> Option<DataKeyId> {
        self.cartridge
            .encrypted
            .as_ref()
            .and_then(cartridge::Encrypted::dki)
    }

    /// Whether a job that only reads goes on without a key.
    fn labels_alone(&self, why: &JobRefused) -> bool {
        let unknown = match why {
            JobRefused::Nameless { .. } => true,
            JobRefused::Keys(KeysError::Refused(problem)) => unknown_key(problem.code),
            _ => false,
        };
        unknown && !self.append && self.cartridge.first == FirstBlock::Clear
    }

    /// Asks by the cartridge's EEDKs and by the blocks' DKi, for which the catalog may have sound ones.
    fn ask(
        &self,
        keys: &mut dyn Keys,
        warnings: &mut Vec<String>,
    ) -> Result<(ResolveAnswer, Home), JobRefused> {
        let named = self.named();
        let shows_another = self
            .cartridge
            .encrypted
            .as_ref()
            .is_some_and(|encrypted| !encrypted.named.is_empty() && named.is_none());
        if shows_another {
            let encrypted = self.cartridge.encrypted.as_ref();
            let shown = encrypted.map(|encrypted| hex::encode_upper(&encrypted.named));
            return Err(self.nameless(format!(
                "its blocks are named {}, which is no DKi",
                shown.unwrap_or_default()
            )));
        }
        let mut eedks = Vec::new();
        for found in self.cartridge.eedks() {
            match found {
                Ok(eedk) if named.is_none_or(|named| named == eedk.dki()) => eedks.push(eedk),
                Ok(eedk) => warnings.push(format!(
                    "the cartridge holds an EEDK of data key {}, and its blocks are under {}: the \
                     blocks count",
                    eedk.dki(),
                    named.map_or_else(String::new, |named| named.to_string())
                )),
                Err(why) => warnings.push(format!("an EEDK of the cartridge is broken: {why}")),
            }
        }
        if eedks.is_empty() && named.is_none() {
            return Err(self.nameless("neither its blocks nor its memory name a key".to_owned()));
        }
        let answer = keys.resolve(&self.request(&eedks, named)?)?;
        // Those of the server's history follow those of the request.
        if answer.opened < eedks.len() {
            let home = if self.cartridge.kept.is_empty() {
                Home::Memory
            } else {
                Home::Drive
            };
            return Ok((answer, home));
        }
        warnings.push(format!(
            "the key of {} came from the key server's catalog, by {}: the cartridge itself holds no \
             EEDK that opens",
            self.job.volser, answer.dki
        ));
        let why = "the cartridge holds none that opens".to_owned();
        Ok((answer, Home::Catalog(why)))
    }

    fn nameless(&self, why: String) -> JobRefused {
        JobRefused::Nameless {
            volser: self.job.volser.clone(),
            why,
        }
    }

    fn request(
        &self,
        eedks: &[Eedk],
        dki: Option<DataKeyId>,
    ) -> Result<ResolveRequest, JobRefused> {
        Ok(ResolveRequest {
            request_id: Uuid::now_v7(),
            drive: DriveInRequest {
                serial: self.rules.serial.clone(),
                public_key: spki(self.able)?,
                stores_eedks: !self.cartridge.kept.is_empty(),
                session_key: None,
            },
            volser: Some(self.job.volser.clone()),
            eedks: eedks.iter().map(|eedk| Base64(eedk.encode())).collect(),
            dki,
            append: self.append,
        })
    }

    /// Whether the drive can decrypt the cartridge now. What it cannot tell is enough for reading.
    fn opens(
        &self,
        unit: &mut Unit,
        dki: DataKeyId,
        warnings: &mut Vec<String>,
    ) -> Result<(), JobRefused> {
        let at = self
            .cartridge
            .encrypted
            .as_ref()
            .and_then(|found| found.block);
        match at {
            Some(block) if block > 0 => unit.locate(block)?,
            _ => unit.rewind()?,
        }
        let told = match cartridge::next_block(unit)? {
            Ok(block) => match block.encryption {
                // That goes by the key's name. Before anything is added the block itself is read.
                EncryptionStatus::Decryptable if self.append => {
                    return unit.probe_block().map_err(|why| JobRefused::Undecryptable {
                        dki,
                        volser: self.job.volser.clone(),
                        why: Box::new(why),
                    });
                }
                EncryptionStatus::Decryptable => return Ok(()),
                EncryptionStatus::KeyMissing | EncryptionStatus::UnsupportedAlgorithm => {
                    return Err(JobRefused::WrongKey {
                        drive: unit.name().to_owned(),
                        dki,
                        volser: self.job.volser.clone(),
                    });
                }
                other => format!("{other:?}"),
            },
            Err(why) => why,
        };
        if self.append {
            return Err(JobRefused::Unknown {
                drive: unit.name().to_owned(),
                volser: self.job.volser.clone(),
                why: told,
            });
        }
        warnings.push(format!(
            "whether data key {dki} is the one of the cartridge will be seen in reading: {told}"
        ));
        Ok(())
    }
}

/// Whether a refusal says that these EEDKs cannot be opened here.
const fn unknown_key(code: EkmCode) -> bool {
    matches!(code, EkmCode::EE23 | EkmCode::EE31 | EkmCode::EE32)
}

/// The drive's wrapping key, as requests carry it.
pub(super) fn spki(able: &Able) -> Result<Option<Base64>, JobRefused> {
    let key = able.public_key.as_ref().map(|key| key.to_spki());
    key.transpose()
        .map(|spki| spki.map(Base64))
        .map_err(|error| JobRefused::Answer(format!("the drive's wrapping key: {error}")))
}
