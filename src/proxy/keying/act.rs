//! From a decision to what a job may do with the tape.

use super::cartridge::{Cartridge, FirstBlock};
use super::checks::Able;
use super::create::{Create, Created, take_away};
use super::error::{JobRefused, Unfit};
use super::home::Memory;
use super::protect::{ClearByName, Permit};
use super::report::Keyed;
use super::resolve::{Resolve, Resolved};
use super::seams::Keys;
use super::story::{HeldDrive, JobRequest};
use crate::api::ConfirmRequest;
use crate::proxy::{AppendInClear, Asks, Decision, Disp, HostConfig};
use crate::t10::EncryptionMode;

/// What a decision came to.
pub(super) struct Outcome {
    pub(super) permit: Permit,
    pub(super) key: Option<Keyed>,
    pub(super) created: Option<Made>,
    pub(super) warnings: Vec<String>,
}

/// What a create has changed.
#[derive(Debug)]
pub(super) struct Made {
    /// What the cartridge's memory holds since.
    pub(super) memory: Memory,
    /// What the key server is told where nothing is written under the data key after all.
    pub(super) unused: ConfirmRequest,
}

impl Outcome {
    const fn without_key(permit: Permit) -> Self {
        Self {
            permit,
            key: None,
            created: None,
            warnings: Vec::new(),
        }
    }
}

impl HeldDrive {
    /// Does what was decided.
    pub(super) fn act(
        &mut self,
        keys: &mut dyn Keys,
        host: &HostConfig,
        request: &JobRequest,
        able: &Able,
        cartridge: &Cartridge,
        decision: &Decision,
    ) -> Result<Outcome, JobRefused> {
        let needs_key = matches!(decision.asks(), Asks::Create { .. } | Asks::Resolve { .. });
        if needs_key && !able.algorithm.valid_for_volume {
            return Err(JobRefused::Unfit {
                drive: self.rules.serial.clone(),
                why: Unfit::NotThisCartridge,
            });
        }
        match decision.asks() {
            Asks::Create { kek1, kek2 } => {
                let create = Create {
                    rules: &self.rules,
                    able,
                    cartridge,
                    job: request,
                    history: &self.history,
                };
                let unit = &mut self.unit;
                let Created {
                    confirmed,
                    keyed,
                    made,
                    warnings,
                } = create.run(unit, keys, kek1.clone(), kek2.clone())?;
                Ok(Outcome {
                    permit: Permit::Encrypted(confirmed),
                    key: Some(keyed),
                    created: Some(made),
                    warnings,
                })
            }
            Asks::Resolve { append } => {
                let resolve = Resolve {
                    rules: &self.rules,
                    able,
                    cartridge,
                    job: request,
                    append: *append,
                    history: &self.history,
                };
                let Resolved { key, warnings } = resolve.run(&mut self.unit, keys)?;
                let (permit, key) = match key {
                    Some((confirmed, keyed)) if *append => {
                        (Permit::Encrypted(confirmed), Some(keyed))
                    }
                    Some((_, keyed)) => (Permit::Read, Some(keyed)),
                    None => (Permit::Read, None),
                };
                Ok(Outcome {
                    permit,
                    key,
                    created: None,
                    warnings,
                })
            }
            Asks::ResolveIfEncrypted { append: false } => Ok(Outcome::without_key(Permit::Read)),
            Asks::ResolveIfEncrypted { append: true } => Err(JobRefused::Unknown {
                drive: self.unit.name().to_owned().to_owned(),
                volser: request.volser.clone(),
                why: match &cartridge.first {
                    FirstBlock::Unknown(why) => why.clone(),
                    other => format!("{other:?}"),
                },
            }),
            Asks::Nothing if request.dd.disp() == Disp::Old => {
                Ok(Outcome::without_key(Permit::Read))
            }
            Asks::Nothing => self.in_clear(host, request, able, cartridge),
        }
    }

    /// A job that writes in clear: only where somebody said so.
    fn in_clear(
        &mut self,
        host: &HostConfig,
        request: &JobRequest,
        able: &Able,
        cartridge: &Cartridge,
    ) -> Result<Outcome, JobRefused> {
        in_clear_is_said(host, request, cartridge.is_blank())?;
        let encrypts = encrypts(host, request);
        let unit = &mut self.unit;
        // A key that an earlier job left would encrypt under a name that nobody expects here.
        if unit.encryption_status()?.encryption != EncryptionMode::Disable {
            take_away(unit, able.algorithm.index)?;
        }
        let mut outcome = Outcome::without_key(Permit::InClear(ClearByName::decided()));
        outcome.warnings.push(format!(
            "{} is written in clear, as {} says",
            request.volser,
            match (&request.data_class, encrypts) {
                (Some(name), Some(false)) => format!("data class {name}"),
                _ => "append_in_clear of the host's file".to_owned(),
            }
        ));
        Ok(outcome)
    }
}

/// Whether the job's data class encrypts; none where it names none.
fn encrypts(host: &HostConfig, request: &JobRequest) -> Option<bool> {
    let name = request.data_class.as_ref()?;
    let mut classes = host.data_classes().iter();
    let class = classes.find(|class| class.name.value == *name)?;
    Some(class.format.value.encrypts())
}

/// Whether somebody has said that a job whose file would be in clear may write so. `blank`: whether
/// there is nothing on its cartridge.
///
/// # Errors
/// Why it is refused.
pub fn in_clear_is_said(
    host: &HostConfig,
    request: &JobRequest,
    blank: bool,
) -> Result<(), JobRefused> {
    let encrypts = encrypts(host, request);
    let volser = || request.volser.clone();
    if request.dd.disp() == Disp::New && request.dd.file() == 1 {
        if encrypts != Some(false) {
            return Err(JobRefused::ClearByOmission { volser: volser() });
        }
        return Ok(());
    }
    let allowed = host.in_band().append_in_clear == AppendInClear::Allow;
    if blank && encrypts == Some(true) {
        return Err(JobRefused::AppendToBlank { volser: volser() });
    }
    if encrypts != Some(false) && !allowed {
        return Err(JobRefused::AppendInClear { volser: volser() });
    }
    Ok(())
}
