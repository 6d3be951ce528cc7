//! Operators: what each role may do, what takes two, who comes from where.

mod second;
mod ways;

use std::collections::HashSet;
use std::sync::Arc;

use ekm::admin::{self, Act, Command, Reply};
use ekm::audit::{Event, Kind, Outcome};
use ekm::bridge::supervisor::Program;
use ekm::config::{ApprovalConfig, Config, PersonConfig};
use ekm::operators::{Asker, Role, Shown, Whence};
use ekm::policy::PolicyConfig;
use ekm::problem::{EkmCode, Problem};
use ekm::service::Service;
use ekm::store::DatabaseConfig;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{Bench, EKM, closed};

/// A service without tokens, whose operators come by certificate.
struct Desk {
    service: Arc<Service>,
    config: Config,
    _directory: TempDir,
}

fn person(name: &str, roles: &[Role]) -> PersonConfig {
    PersonConfig {
        name: name.to_owned(),
        unix: None,
        certificate: Some(format!("operator:{name}").parse().unwrap()),
        roles: roles.to_vec(),
    }
}

impl Desk {
    async fn new(people: Vec<PersonConfig>, actions: &[&str]) -> Self {
        Self::sharing(people, actions, None).await
    }

    async fn sharing(
        people: Vec<PersonConfig>,
        actions: &[&str],
        database: Option<DatabaseConfig>,
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let policy = PolicyConfig {
            approval: ApprovalConfig {
                actions: actions.iter().map(ToString::to_string).collect(),
                ..ApprovalConfig::default()
            },
            ..PolicyConfig::default()
        };
        let mut config = Bench::config(directory.path(), Vec::new(), policy);
        config.operators.people = people;
        config.database = database;
        let service = ekm::server::open(&config, &Program::at(EKM.into()))
            .await
            .unwrap();
        Self {
            service: Arc::new(service),
            config,
            _directory: directory,
        }
    }

    async fn ask(&self, name: &str, command: Command) -> Result<Reply, Problem> {
        admin::perform(&self.service, &asker(name), command, None).await
    }

    fn records(&self) -> Vec<Event> {
        records(&self.config.audit)
    }
}

fn records(audit: &std::path::Path) -> Vec<Event> {
    ekm::audit::read(audit)
        .unwrap()
        .map(|record| record.unwrap().event)
        .collect()
}

fn asker(name: &str) -> Asker {
    Asker {
        shown: Shown::Certificate(format!("operator:{name}").parse().unwrap()),
        whence: Whence::Host([192, 0, 2, 7].into()),
    }
}

fn command(value: Value) -> Command {
    serde_json::from_value(value).unwrap()
}

/// One command for each thing that can be asked.
fn samples() -> Vec<Command> {
    let drive = "000000000001";
    let hash = "00".repeat(32);
    let ceremony = "00000000-0000-0000-0000-000000000000";
    let asked = json!({"label": "K", "hash": hash, "bits": 2048, "token": null, "custody": "token", "file": "f"});
    let copy = json!({"act": "proof", "label": "K", "token": "none", "ceremony": ceremony, "kek": hash, "detail": ""});
    let adopt = json!({"token": "none", "changes": [], "keks": []});
    let birth = json!({"ceremony": ceremony, "label": "K", "token": "none", "began": "2026-01-01T00:00:00Z"});
    let offered = json!({"certificate": [], "between": [], "cas": null});
    let change = |of: Value| {
        let mut change = json!({"wwn": null, "key": null, "form": null, "custody": null, "speakers": null, "accept": false});
        for (name, value) in of.as_object().unwrap() {
            change[name] = value.clone();
        }
        change
    };
    let trust = |stage: Value| json!({"command": "drive-trust", "token": "none", "drives": [], "keks": [], "stage": stage});
    let defaults = json!({"kek1": null, "kek2": null});
    let filter = json!({"volser": null, "kek": null, "dki": null, "drive": null, "since": null, "until": null});
    let dump = json!({"drives": null, "defaults": null, "keks": null, "partners": null});
    [
        json!({"command": "drive-list"}),
        json!({"command": "drive-pending"}),
        json!({"command": "drive-add", "serial": drive, "change": change(json!({"form": "t10-00h", "custody": "host"}))}),
        json!({"command": "drive-mod", "serial": drive, "change": change(json!({"key": "certified"}))}),
        json!({"command": "drive-mod", "serial": drive, "change": change(json!({"accept": true}))}),
        json!({"command": "drive-accept", "serial": drive, "fingerprint": hash, "change": change(json!({}))}),
        json!({"command": "drive-reject", "serial": drive}),
        json!({"command": "drive-del", "serial": drive}),
        json!({"command": "drive-import", "drives": [], "defaults": defaults, "apply": true}),
        json!({"command": "drive-import", "drives": [], "defaults": defaults, "apply": false}),
        trust(json!("intent")),
        trust(json!({"failed": "why"})),
        json!({"command": "kek-list"}),
        json!({"command": "kek-generate", "label": "K", "bits": 2048, "token": null, "custody": "token"}),
        json!({"command": "kek-generate", "label": "K", "bits": 2048, "token": null, "custody": "host"}),
        json!({"command": "kek-import", "label": "K", "hash": hash, "bits": 2048, "token": null, "custody": "token", "file": "f"}),
        json!({"command": "kek-imported", "asked": asked, "ended": {"Err": "why"}}),
        json!({"command": "kek-adopt", "asked": adopt, "ended": null}),
        json!({"command": "kek-adopt", "asked": adopt, "ended": {"Err": "why"}}),
        json!({"command": "kek-copy", "asked": copy, "ended": null}),
        json!({"command": "kek-copy", "asked": copy, "ended": {"Err": "why"}}),
        json!({"command": "kek-cleared", "birth": birth, "objects": 0}),
        json!({"command": "kek-copy-stated", "label": "K", "note": "n"}),
        json!({"command": "kek-request", "label": "K", "subject": null}),
        json!({"command": "kek-possession", "label": "K"}),
        json!({"command": "kek-certificate", "label": "K", "chain": [], "token": null}),
        json!({"command": "kek-default", "set": null}),
        json!({"command": "kek-default", "set": defaults}),
        json!({"command": "partner-list"}),
        json!({"command": "partner-add", "label": "P", "offered": offered, "fingerprint": "00"}),
        json!({"command": "partner-remove", "label": "P"}),
        json!({"command": "token-status"}),
        json!({"command": "token-unlock", "token": "none", "last_try": false}),
        json!({"command": "eedk-failures", "forgive": null}),
        json!({"command": "eedk-failures", "forgive": {"peer": "proxy:p"}}),
        json!({"command": "volume-list", "volser": null}),
        json!({"command": "kek-turn", "label": "K", "to": "active", "reason": null}),
        json!({"command": "kek-turn", "label": "K", "to": "retired", "reason": null}),
        json!({"command": "kek-turn", "label": "K", "to": "revoked", "reason": null}),
        json!({"command": "kek-delete", "label": "K"}),
        json!({"command": "kek-impact", "label": "K", "limit": 1}),
        json!({"command": "kek-rotate", "label": "K", "new_label": null, "at": null, "token": null}),
        json!({"command": "kek-schedule", "list": null}),
        json!({"command": "kek-schedule", "remove": "K"}),
        json!({"command": "kek-schedule", "set": {"label": "K", "every": "month", "first": null}}),
        json!({"command": "volume-find", "filter": filter, "limit": 1}),
        json!({"command": "volume-write-off", "volser": "VOL001", "reason": "r"}),
        json!({"command": "volume-rekey", "status": null}),
        json!({"command": "volume-rekey", "cancel": ceremony}),
        json!({"command": "backup-begin", "id": ceremony, "file": "f"}),
        json!({"command": "backup-made", "id": ceremony, "ended": {"Err": "why"}}),
        json!({"command": "backup-status"}),
        json!({"command": "tables-export"}),
        json!({"command": "tables-import", "dump": dump, "mode": "merge", "apply": false}),
        json!({"command": "tables-import", "dump": dump, "mode": "rewrite", "apply": true}),
        json!({"command": "volumes-export", "after": null, "most": 1}),
        json!({"command": "volumes-import", "keys": [], "apply": true}),
        json!({"command": "alarm-list"}),
        json!({"command": "sync", "from": "none", "what": null, "mode": null, "dry_run": true, "force": false}),
        json!({"command": "sync", "from": "none", "what": null, "mode": null, "dry_run": false, "force": false}),
        json!({"command": "audit-seal", "accept": false}),
        json!({"command": "audit-seal", "accept": true}),
        json!({"command": "audit-key", "generate": null, "token": null}),
        json!({"command": "audit-key", "generate": 2048, "token": "none"}),
        json!({"command": "audit-anchors"}),
        json!({"command": "audit-emergency", "switch": null}),
        json!({"command": "audit-emergency", "switch": false}),
        json!({"command": "fleet-status"}),
        json!({"command": "fleet-forget", "node": "none"}),
        json!({"command": "approval-list", "all": true}),
        json!({"command": "approval-decide", "id": "00000000", "verdict": "approve"}),
    ]
    .map(command)
    .into()
}

fn for_a_role(outcome: &Result<Reply, Problem>) -> bool {
    matches!(outcome, Err(problem) if problem.code == EkmCode::EE30 && problem.detail.contains("takes the role"))
}

#[tokio::test(flavor = "multi_thread")]
async fn each_role_does_what_the_table_says_and_its_refusals_are_recorded() {
    let commands = samples();
    let mut covered: HashSet<Act> = commands.iter().flat_map(Command::acts).collect();
    // These two are not asked by a command.
    covered.extend([Act::Rekey, Act::RekeyPartner]);
    for act in Act::ALL {
        assert!(covered.contains(act), "no sample for {}", act.name());
    }

    let people = Role::ALL.map(|role| person(&role.to_string(), &[role]));
    let desk = Desk::new(people.to_vec(), &[]).await;
    let mut refused = 0;
    for role in Role::ALL {
        for command in &commands {
            let acts = command.acts();
            let may = role == Role::Owner || acts.iter().all(|act| act.roles().contains(&role));
            let outcome = desk.ask(&role.to_string(), command.clone()).await;
            assert_eq!(
                !for_a_role(&outcome),
                may,
                "{role}: {command:?}: {outcome:?}"
            );
            if !may {
                refused += 1;
                let last = desk.records().pop().unwrap();
                assert_eq!(last.kind, Kind::Authentication, "{role}: {command:?}");
                assert_eq!(last.outcome, Outcome::Failure);
                assert_eq!(last.action, acts[0].name());
                assert_eq!(last.code.as_deref(), Some("EE30"));
                let who = format!("operator:{role} (certificate operator:{role} at 192.0.2.7)");
                assert_eq!(last.peer.as_deref(), Some(&*who));
            }
        }
    }
    // An auditor alone is refused everything that changes something.
    assert!(refused > 60, "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_not_named_may_nothing_and_that_is_recorded() {
    let desk = Desk::new(vec![person("anna", &[Role::Owner])], &[]).await;
    for asker in [
        asker("eve"),
        // Not even root, nor who runs the server: the configuration names others.
        Asker {
            shown: Shown::Unix(0),
            whence: Whence::Socket,
        },
        Asker {
            shown: Shown::Unix(rustix::process::geteuid().as_raw()),
            whence: Whence::NoServer,
        },
    ] {
        let outcome = admin::perform(&desk.service, &asker, Command::DriveList, None).await;
        let problem = outcome.unwrap_err();
        assert_eq!(problem.code, EkmCode::EE30);
        assert!(
            problem.detail.contains("none of the operators"),
            "{problem}"
        );
        let last = desk.records().pop().unwrap();
        assert_eq!(
            (last.kind, last.outcome),
            (Kind::Authentication, Outcome::Failure)
        );
        assert!(last.peer.unwrap().contains(&asker.to_string()));
    }
    desk.ask("anna", Command::DriveList).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_names_the_owner_alone_may_everything() {
    let desk = Desk::new(Vec::new(), &[]).await;
    let unix = |uid| Asker {
        shown: Shown::Unix(uid),
        whence: Whence::Socket,
    };
    let list = |asker: Asker| {
        let service = Arc::clone(&desk.service);
        async move { admin::perform(&service, &asker, Command::DriveList, None).await }
    };
    list(unix(0)).await.unwrap();
    list(unix(rustix::process::geteuid().as_raw()))
        .await
        .unwrap();
    assert_eq!(list(unix(4_000_000)).await.unwrap_err().code, EkmCode::EE30);
    assert_eq!(list(asker("anna")).await.unwrap_err().code, EkmCode::EE30);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_fails_is_recorded_with_who_gave_it() {
    let desk = Desk::new(vec![person("anna", &[Role::DriveAdmin])], &[]).await;
    let gone = command(json!({"command": "drive-del", "serial": "000000000009"}));
    let problem = desk.ask("anna", gone).await.unwrap_err();
    let last = desk.records().pop().unwrap();
    assert_eq!(last.action, "drive-del");
    assert_eq!(last.outcome, Outcome::Failure);
    assert_eq!(last.detail, Some(problem.detail));
    assert!(last.peer.unwrap().starts_with("operator:anna (certificate"));
}

#[tokio::test(flavor = "multi_thread")]
async fn looks_are_recorded_where_the_configuration_says_so() {
    let mut desk = Desk::new(vec![person("anna", &[Role::Auditor])], &[]).await;
    desk.ask("anna", Command::DriveList).await.unwrap();
    let before = desk.records().len();
    desk.config.operators.record_looks = true;
    let (audit, config) = (desk.config.audit.clone(), desk.config.clone());
    // The lock goes with the service.
    let directory = desk._directory;
    drop(desk.service);
    closed(&config.state).await;
    let again = loop {
        match ekm::server::open(&config, &Program::at(EKM.into())).await {
            Ok(service) => break service,
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
        }
    };
    admin::perform(&again, &asker("anna"), Command::DriveList, None)
        .await
        .unwrap();
    let records = records(&audit);
    assert_eq!(records.len(), before + 1);
    let last = records.last().unwrap();
    assert_eq!(
        (last.action.as_str(), last.outcome),
        ("drive-list", Outcome::Success)
    );
    drop(directory);
}
