//! `ekm eedk failures`

use time::format_description::well_known::Rfc3339;

use crate::admin::{Command, ForgivenTo, Reply};
use crate::cli::{Context, output, site};
use crate::key::KeyLabel;
use crate::service::Whose;
use crate::tls::PeerId;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Failures {
    /// The failures of this peer count no longer for it; for the KEKs they go on counting.
    #[arg(long, value_name = "PEER", conflicts_with = "forgive_kek")]
    forgive_peer: Option<PeerId>,

    /// The failures under this KEK count no longer for it; for the peers they go on counting.
    #[arg(long, value_name = "LABEL")]
    forgive_kek: Option<KeyLabel>,
}

impl Failures {
    pub(super) fn run(&self, context: &Context) -> anyhow::Result<()> {
        let peer = self.forgive_peer.clone().map(ForgivenTo::Peer);
        let forgive = peer.or(self.forgive_kek.clone().map(ForgivenTo::Kek));
        let budgets = match site::execute(context, Command::EedkFailures { forgive })? {
            Reply::Budgets(budgets) => budgets,
            other => return site::out_of_turn(&other),
        };
        if context.json {
            return output::json(&budgets);
        }
        if budgets.is_empty() {
            return output::say("no failures that count");
        }
        output::table(
            &["of", "failures", "limit", "last", "state"],
            budgets.iter().map(|one| {
                let budget = &one.budget;
                let (of, within) = match (&budget.whose, &one.label) {
                    (Whose::Peer(peer), _) => (peer.to_string(), " in 1 h"),
                    (Whose::Kek(_), Some(label)) => (format!("KEK {label}"), ""),
                    (Whose::Kek(hash), None) => (format!("KEK {:.16}", hash.to_string()), ""),
                };
                vec![
                    of,
                    format!("{}{within}", budget.failures),
                    budget.limit.to_string(),
                    budget
                        .last
                        .format(&Rfc3339)
                        .unwrap_or_default()
                        .chars()
                        .take(19)
                        .collect(),
                    if budget.spent() { "spent" } else { "open" }.to_owned(),
                ]
            }),
        )
    }
}
