//! The way of a command from whoever gives it: who it is, whether he may, whether it takes two,
//! and the record of a refusal.

use super::{Act, Command, Reply, Second, approvals, event, execute_with_pin, record};
use crate::audit::{Kind, Outcome};
use crate::bridge::message::Custody;
use crate::bridge::pin::Handed;
use crate::operators::{Asker, Operator};
use crate::problem::{EkmCode, Problem};
use crate::service::Service;

/// Does what somebody asks who has yet to be recognised, if he may.
///
/// # Errors
/// What is wrong and what to do; a refusal is recorded.
pub async fn perform(
    service: &Service,
    asker: &Asker,
    command: Command,
    pin: Option<Handed>,
) -> Result<Reply, Problem> {
    let name = command.acts().first().map_or("", |act| act.name());
    let operator = match service.roster().recognise(asker) {
        Ok(operator) => operator,
        Err(stranger) => {
            let refusal = prohibited(stranger.to_string());
            return refused(service, &format!("operator:? ({asker})"), name, refusal).await;
        }
    };
    let acts = acts(service, &command).await?;
    if let Err(refusal) = may(&operator, &acts) {
        return refused(service, &operator.to_string(), name, refusal).await;
    }
    match command {
        Command::ApprovalDecide { id, verdict } => {
            approvals::decide(service, &operator, &id, verdict).await
        }
        command => {
            let second = second(service, &acts);
            if second == Second::Never {
                return run(service, &operator.to_string(), command, &acts, pin).await;
            }
            // A secret is never kept, so that only who has it can come back with it.
            let permit = second == Second::Permitted || pin.is_some();
            match approvals::ask(service, &operator, &command, permit).await? {
                approvals::Answer::Waits(approval) => Ok(Reply::Waits(approval)),
                approvals::Answer::Permitted(by) => {
                    let both = format!("{operator}, approved by {by}");
                    run(service, &both, command, &acts, pin).await
                }
            }
        }
    }
}

/// What a command does, as far as the state must be asked for that.
pub(super) async fn acts(service: &Service, command: &Command) -> Result<Vec<Act>, Problem> {
    let mut acts = command.acts();
    let targets = command.rekeys_to();
    if !targets.is_empty() {
        let directory = service.directory().await?;
        let mut known = targets
            .iter()
            .filter_map(|kek| directory.by_label(&kek.label).ok());
        if known.any(|kek| kek.partner.is_some()) {
            acts.push(Act::RekeyPartner);
        }
    }
    if let Some(label) = command.rotates() {
        let directory = service.directory().await?;
        let custody = directory.by_label(label).ok().and_then(|kek| kek.custody);
        // Where that cannot be told, it may be the host.
        if custody != Some(Custody::Token) {
            acts.push(Act::CustodyHost);
        }
    }
    Ok(acts)
}

/// That each of them is for one of his roles.
pub(super) fn may(operator: &Operator, acts: &[Act]) -> Result<(), Problem> {
    let person = &operator.person;
    let Some(act) = acts.iter().find(|act| !person.may(**act)) else {
        return Ok(());
    };
    let roles: Vec<String> = act.roles().iter().map(ToString::to_string).collect();
    let his: Vec<String> = person.roles.iter().map(ToString::to_string).collect();
    Err(prohibited(format!(
        "{} ({}) takes the role {}; {} has {} (ekm config roles)",
        act.name(),
        act.meaning(),
        roles.join(" or "),
        person.name,
        his.join(", ")
    )))
}

/// Whether a second person is needed, and in which way.
fn second(service: &Service, acts: &[Act]) -> Second {
    let approval = service.roster().approval();
    // What comes after something that was approved belongs to it.
    if acts
        .iter()
        .any(|act| act.looks() || act.second() == Second::Never)
    {
        return Second::Never;
    }
    if !acts.iter().any(|act| approval.wants(*act)) {
        return Second::Never;
    }
    if acts.iter().any(|act| act.second() == Second::Permitted) {
        Second::Permitted
    } else {
        Second::Executed
    }
}

/// Does it. What it changes it records itself before; here what came of it where that was nothing,
/// and looks where the configuration says so.
pub(super) async fn run(
    service: &Service,
    operator: &str,
    command: Command,
    acts: &[Act],
    pin: Option<Handed>,
) -> Result<Reply, Problem> {
    let name = acts.first().map_or("", |act| act.name());
    let looks = acts.iter().all(|act| act.looks());
    let done = execute_with_pin(service, operator, command, pin).await;
    match &done {
        Err(problem) if !looks || service.roster().records_looks() => {
            let mut event = event(name, operator);
            event.outcome = Outcome::Failure;
            event.code = Some(problem.code.to_string());
            event.detail = Some(problem.detail.clone());
            // What was not done needs no record to be undone; it is said in any case.
            drop(service.audit().record(event).await);
        }
        Ok(_) if looks && service.roster().records_looks() => {
            record(service, event(name, operator)).await?;
        }
        Ok(_) | Err(_) => {}
    }
    done
}

pub(super) fn prohibited(detail: String) -> Problem {
    Problem::new(EkmCode::EE30, 403, detail)
}

/// Records a refusal, and is it.
pub(super) async fn refused(
    service: &Service,
    who: &str,
    action: &str,
    refusal: Problem,
) -> Result<Reply, Problem> {
    let mut event = event(action, who);
    event.kind = Kind::Authentication;
    event.outcome = Outcome::Failure;
    event.code = Some(refusal.code.to_string());
    event.detail = Some(refusal.detail.clone());
    tracing::warn!(
        action,
        operator = who,
        detail = refusal.detail,
        "operator refused"
    );
    record(service, event).await?;
    Err(refusal)
}
