//! Commands that take two people: kept, shown, decided about, done once.

use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};

use super::perform::{acts, may, prohibited, refused, run};
use super::{Command, Reply, conflict, event, record, stored};
use crate::audit::Outcome;
use crate::operators::Operator;
use crate::problem::{EkmCode, Problem};
use crate::service::Service;
use crate::store::{Approval, ApprovalState, Decision, Kept};

/// Most requests that wait at once.
const MOST: u32 = 256;

/// What is said about a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// A second person says yes.
    Approve,
    /// A second person says no, and why.
    Reject(Option<String>),
    /// Who asked takes it back.
    Withdraw,
}

/// Whether a command that takes two may go on.
pub(super) enum Answer {
    /// It waits.
    Waits(Box<Approval>),
    /// He approved it.
    Permitted(String),
}

/// Keeps the command until a second person has looked at it; uses up the approval, where he has.
pub(super) async fn ask(
    service: &Service,
    operator: &Operator,
    command: &Command,
    permit: bool,
) -> Result<Answer, Problem> {
    let words = command.words();
    let now = OffsetDateTime::now_utc();
    let name = &operator.person.name;
    if permit {
        let used = stored(service.store().use_permit(name, &words, now).await)?;
        if let Some(used) = used {
            let by = used.decided_by.unwrap_or_default();
            let mut event = event("approval-use", &format!("{operator}, approved by {by}"));
            event.request = Some(used.id);
            event.detail = Some(words);
            record(service, event).await?;
            return Ok(Answer::Permitted(by));
        }
    }
    let command = serde_json::to_string(command)
        .map_err(|error| Problem::internal(format!("the command cannot be kept: {error}")))?;
    let id: String = uuid::Uuid::new_v4().simple().to_string();
    let approval = Approval {
        id: id.chars().take(8).collect(),
        words: words.clone(),
        command,
        permit,
        asked_by: name.clone(),
        asked_uid: operator.person.uid,
        asker: operator.to_string(),
        asked: now,
        expires: now + Duration::hours(service.roster().approval().hours.into()),
        state: ApprovalState::Open,
        decided_by: None,
        decided: None,
        outcome: None,
    };
    let mut event = event("approval-ask", &operator.to_string());
    event.request = Some(approval.id.clone());
    event.detail = Some(words);
    match stored(service.store().ask_approval(&approval, MOST).await)? {
        Kept::New => {
            record(service, event).await?;
            Ok(Answer::Waits(Box::new(approval)))
        }
        Kept::Already(known) => Ok(Answer::Waits(known)),
        Kept::Full => {
            let full = conflict(
                EkmCode::EE30,
                format!(
                    "{MOST} requests wait for a second person already; have some decided first (ekm approval list)"
                ),
            );
            event.outcome = Outcome::Failure;
            event.code = Some(full.code.to_string());
            record(service, event).await?;
            Err(full)
        }
    }
}

/// What waits, and with `all` what was decided.
pub(super) async fn list(service: &Service, all: bool) -> Result<Reply, Problem> {
    let now = OffsetDateTime::now_utc();
    let mut approvals = stored(service.store().approvals().await)?;
    approvals.retain(|one| {
        all || (matches!(
            one.state,
            ApprovalState::Open | ApprovalState::Permitted | ApprovalState::Running
        ) && !one.is_late(now))
    });
    Ok(Reply::Approvals(approvals))
}

/// Decides about one.
pub(super) async fn decide(
    service: &Service,
    operator: &Operator,
    id: &str,
    verdict: Verdict,
) -> Result<Reply, Problem> {
    let approval = stored(service.store().approval(id).await)?.ok_or_else(|| {
        conflict(
            EkmCode::EE30,
            format!("there is no request {id} (ekm approval list --all)"),
        )
    })?;
    let action = match &verdict {
        Verdict::Approve => "approval-approve",
        Verdict::Reject(_) => "approval-reject",
        Verdict::Withdraw => "approval-withdraw",
    };
    let who = operator.to_string();
    if let Err(refusal) = judge(service, operator, &approval, &verdict).await {
        return refused(service, &who, action, refusal).await;
    }
    let now = OffsetDateTime::now_utc();
    let (state, outcome) = match verdict {
        Verdict::Approve if approval.permit => (ApprovalState::Permitted, None),
        Verdict::Approve => (ApprovalState::Running, None),
        Verdict::Reject(why) => (ApprovalState::Rejected, why),
        Verdict::Withdraw => (ApprovalState::Withdrawn, None),
    };
    let minutes = service.roster().approval().minutes;
    let decision = Decision {
        state,
        by: who.clone(),
        at: now,
        expires: (state == ApprovalState::Permitted)
            .then(|| now + Duration::minutes(minutes.into())),
        outcome,
    };
    let mut event = event(action, &who);
    event.request = Some(approval.id.clone());
    event.detail = Some(match &decision.outcome {
        Some(why) => format!("{} asked by {}: {why}", approval.words, approval.asker),
        None => format!("{} asked by {}", approval.words, approval.asker),
    });
    event.outcome = Outcome::Intent;
    record(service, event.clone()).await?;
    if !stored(service.store().decide_approval(id, &decision).await)? {
        let now = stored(service.store().approval(id).await)?.unwrap_or(approval);
        let late = closed(&now);
        event.outcome = Outcome::Failure;
        event.code = Some(late.code.to_string());
        event.detail = Some(late.detail.clone());
        record(service, event).await?;
        return Err(late);
    }
    if state == ApprovalState::Running {
        do_it(service, &who, &approval).await?;
    }
    event.outcome = Outcome::Success;
    record(service, event).await?;
    let approval = stored(service.store().approval(id).await)?.unwrap_or(approval);
    Ok(Reply::Approval(Box::new(approval)))
}

/// Does what was approved. What came of it stands in the request and in the records, under both
/// names.
async fn do_it(service: &Service, who: &str, approval: &Approval) -> Result<(), Problem> {
    let (state, outcome) = match read(approval) {
        Ok(command) => {
            let acts = command.acts();
            let both = format!("{}, approved by {who}", approval.asker);
            match run(service, &both, command, &acts, None).await {
                Ok(_) => (ApprovalState::Done, "done".to_owned()),
                Err(problem) => (ApprovalState::Failed, problem.to_string()),
            }
        }
        Err(problem) => (ApprovalState::Failed, problem.to_string()),
    };
    stored(
        service
            .store()
            .end_approval(&approval.id, state, &outcome)
            .await,
    )
}

fn read(approval: &Approval) -> Result<Command, Problem> {
    serde_json::from_str(&approval.command).map_err(|error| {
        conflict(
            EkmCode::EE23,
            format!(
                "this server does not know the command of request {} ({error}); approve it on the server where it was asked",
                approval.id
            ),
        )
    })
}

/// Whether this operator may say that about it.
async fn judge(
    service: &Service,
    operator: &Operator,
    approval: &Approval,
    verdict: &Verdict,
) -> Result<(), Problem> {
    let now = OffsetDateTime::now_utc();
    if approval.state != ApprovalState::Open || approval.is_late(now) {
        return Err(closed(approval));
    }
    let same = operator.person.is(&approval.asked_by, approval.asked_uid);
    match verdict {
        Verdict::Withdraw if same => return Ok(()),
        Verdict::Withdraw => {
            return Err(prohibited(format!(
                "request {} is {}'s; another person may reject it: ekm approval reject {}",
                approval.id, approval.asked_by, approval.id
            )));
        }
        Verdict::Approve | Verdict::Reject(_) if same => {
            return Err(prohibited(format!(
                "request {} is {}'s own; another person must decide (to take it back: ekm approval withdraw {})",
                approval.id, approval.asked_by, approval.id
            )));
        }
        Verdict::Approve | Verdict::Reject(_) => {}
    }
    let command = read(approval)?;
    let acts = acts(service, &command).await?;
    may(operator, &acts)?;
    if *verdict == Verdict::Approve {
        // Who asked may have lost his role since.
        let able = service
            .roster()
            .named(&approval.asked_by)
            .is_some_and(|person| acts.iter().all(|act| person.may(*act)));
        if !able {
            return Err(prohibited(format!(
                "{}, who asked for it, may not do it any more; reject it: ekm approval reject {}",
                approval.asked_by, approval.id
            )));
        }
    }
    Ok(())
}

/// Nothing can be said about it any more.
fn closed(approval: &Approval) -> Problem {
    let what = match approval.state {
        ApprovalState::Open => format!("has expired at {}", told(approval.expires)),
        state => format!(
            "is {state} already, by {}",
            approval.decided_by.as_deref().unwrap_or("nobody")
        ),
    };
    conflict(
        EkmCode::EE30,
        format!(
            "request {} {what} (ekm approval show {})",
            approval.id, approval.id
        ),
    )
}

fn told(time: OffsetDateTime) -> String {
    time.format(&time::format_description::well_known::Rfc3339)
        .unwrap_or_default()
}
