//! `ekm approval`

use anyhow::bail;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Context, output, site};
use crate::admin::{Command, Reply, Verdict};
use crate::store::{Approval, ApprovalState};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Approvals {
    /// Lists what waits for a second person.
    List {
        /// Also what was decided, and what has expired.
        #[arg(long)]
        all: bool,
    },
    /// Shows one request: what it is, who asked, until when it waits.
    Show {
        /// Its number, eight hexadecimal digits.
        id: String,
    },
    /// Approves a request of another person; the server does it at once.
    ///
    /// It takes a role that may do it, and another person than the one who
    /// asked: another name and another Unix user. Where a PIN or a file of his
    /// goes with it, nothing is done yet: he gives his command again, within the
    /// minutes of policy.approval.
    Approve {
        /// Its number.
        id: String,
    },
    /// Says no to a request of another person.
    Reject {
        /// Its number.
        id: String,
        /// Why; it stands in the request and in the record.
        #[arg(long)]
        reason: Option<String>,
    },
    /// Takes a request of your own back.
    Withdraw {
        /// Its number.
        id: String,
    },
}

impl Approvals {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<()> {
        let (id, verdict) = match self {
            Self::List { all } => return list(context, all),
            Self::Show { id } => return show_one(context, &id),
            Self::Approve { id } => (id, Verdict::Approve),
            Self::Reject { id, reason } => (id, Verdict::Reject(reason)),
            Self::Withdraw { id } => (id, Verdict::Withdraw),
        };
        let approval = match site::execute(context, Command::ApprovalDecide { id, verdict })? {
            Reply::Approval(approval) => approval,
            other => return site::out_of_turn(&other),
        };
        if context.json {
            output::json(&approval)?;
        } else {
            show(&approval)?;
        }
        if approval.state == ApprovalState::Failed {
            bail!(
                "it was approved and failed: {}",
                approval.outcome.unwrap_or_default()
            );
        }
        Ok(())
    }
}

fn approvals(context: &Context, all: bool) -> anyhow::Result<Vec<Approval>> {
    match site::execute(context, Command::ApprovalList { all })? {
        Reply::Approvals(approvals) => Ok(approvals),
        other => site::out_of_turn(&other),
    }
}

fn list(context: &Context, all: bool) -> anyhow::Result<()> {
    let approvals = approvals(context, all)?;
    if context.json {
        return output::json(&approvals);
    }
    output::table_with_names(
        &["id", "state", "until"],
        &["id", "state", "asked by", "until", "what"],
        approvals.iter().map(|one| {
            vec![
                one.id.clone(),
                state(one),
                one.asked_by.clone(),
                minute(one.expires),
                one.words.clone(),
            ]
        }),
    )
}

fn show_one(context: &Context, id: &str) -> anyhow::Result<()> {
    let approvals = approvals(context, true)?;
    let Some(approval) = approvals.iter().find(|one| one.id == id) else {
        bail!("there is no request {id} (ekm approval list --all)");
    };
    if context.json {
        return output::json(approval);
    }
    show(approval)
}

fn show(approval: &Approval) -> anyhow::Result<()> {
    let mut fields = vec![
        ("request", approval.id.clone()),
        ("what", approval.words.clone()),
        ("asked by", approval.asker.clone()),
        ("asked", told(approval.asked)),
        ("state", state(approval)),
        ("until", told(approval.expires)),
    ];
    fields.extend(approval.decided_by.clone().map(|by| ("decided by", by)));
    fields.extend(approval.decided.map(|at| ("decided", told(at))));
    fields.extend(approval.outcome.clone().map(|what| ("outcome", what)));
    if approval.permit && approval.state == ApprovalState::Permitted {
        fields.push((
            "next",
            format!("{} gives the command again", approval.asked_by),
        ));
    }
    output::fields(&fields)
}

fn state(approval: &Approval) -> String {
    if approval.is_late(OffsetDateTime::now_utc()) {
        "expired".to_owned()
    } else {
        approval.state.to_string()
    }
}

fn told(time: OffsetDateTime) -> String {
    let time = time.replace_nanosecond(0).unwrap_or(time);
    time.format(&Rfc3339).unwrap_or_default()
}

fn minute(time: OffsetDateTime) -> String {
    told(time)
        .chars()
        .take(16)
        .collect::<String>()
        .replace('T', " ")
}
