//! The budgets of EEDKs by PKCS#1 v1.5 that do not open, and whom an operator forgives.

use serde::{Deserialize, Serialize};

use super::{Reply, conflict, event, record};
use crate::key::{KekHash, KeyLabel};
use crate::problem::{EkmCode, Problem};
use crate::service::{BudgetSeen, Service, Whose};
use crate::store::Forgiven;
use crate::tls::PeerId;

/// Whose failures shall count no longer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ForgivenTo {
    /// A peer's.
    Peer(PeerId),
    /// A KEK's, by its label.
    Kek(KeyLabel),
}

/// A budget, and the label of the KEK where it is one's.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Budget {
    /// The KEK's label, where it is known.
    pub label: Option<KeyLabel>,
    /// The budget.
    #[serde(flatten)]
    pub budget: BudgetSeen,
}

/// Forgives, if asked to, and tells of all budgets.
pub(super) async fn failures(
    service: &Service,
    operator: &str,
    forgive: Option<ForgivenTo>,
) -> Result<Reply, Problem> {
    let directory = service.directory().await?;
    let label = |hash: &KekHash| directory.by_hash(hash).map(|kek| kek.label.clone());
    if let Some(whom) = forgive {
        let mut event = event("eedk-forgive", operator);
        let whose = match whom {
            ForgivenTo::Peer(peer) => {
                event.detail = Some(format!("failures of {peer} count no longer"));
                Forgiven::Peer(peer)
            }
            ForgivenTo::Kek(name) => {
                let kek = directory
                    .by_label(&name)
                    .map_err(|error| conflict(EkmCode::EE31, error.to_string()))?;
                event.keks = vec![kek.label.to_string()];
                event.detail = Some("failures under the KEK count no longer".to_owned());
                Forgiven::Kek(kek.hash)
            }
        };
        let counted = service
            .budgets()
            .into_iter()
            .any(|budget| match (&budget.whose, &whose) {
                (Whose::Peer(peer), Forgiven::Peer(forgiven)) => peer == forgiven,
                (Whose::Kek(kek), Forgiven::Kek(forgiven)) => kek == forgiven,
                (Whose::Peer(_), Forgiven::Kek(_)) | (Whose::Kek(_), Forgiven::Peer(_)) => false,
            });
        if !counted {
            return Err(conflict(
                EkmCode::EE30,
                "nothing counts there, so there is nothing to forgive; see ekm eedk failures"
                    .to_owned(),
            ));
        }
        record(service, event).await?;
        service.forgive(&whose).await?;
    }
    let budgets = service.budgets().into_iter().map(|budget| Budget {
        label: match &budget.whose {
            Whose::Peer(_) => None,
            Whose::Kek(kek) => label(kek),
        },
        budget,
    });
    Ok(Reply::Budgets(budgets.collect()))
}
