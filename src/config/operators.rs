//! `[operators]` and `[policy.approval]`: who operators are, how they come, and what takes two.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::admin::{Act, Second};
use crate::operators::{Role, user_id};
use crate::tls::{PeerId, Role as PeerRole};

/// `[operators]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OperatorsConfig {
    /// The operators' socket, where it is not in the state directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    /// The Unix group, by name or number, whose members may connect to the socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Address and port of a door for operators on other hosts, mutual TLS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
    /// Whether commands that change nothing are recorded too.
    pub record_looks: bool,
    /// Who they are; where nobody is named, root and the server's own user may do everything.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub people: Vec<PersonConfig>,
}

/// `[[operators.people]]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PersonConfig {
    /// The name in records and requests.
    pub name: String,
    /// The Unix user, by name or number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unix: Option<String>,
    /// Whom the client certificate names, `operator:NAME`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<PeerId>,
    /// What the person may do.
    pub roles: Vec<Role>,
}

/// `[policy.approval]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ApprovalConfig {
    /// What takes a second person, by the names of `ekm config roles`.
    pub actions: Vec<String>,
    /// How long a request waits for him.
    pub hours: u32,
    /// How long after his approval the first person may do what only he can do himself.
    pub minutes: u32,
}

impl Default for ApprovalConfig {
    fn default() -> Self {
        Self {
            actions: Vec::new(),
            hours: 24,
            minutes: 15,
        }
    }
}

impl ApprovalConfig {
    /// Whether it takes two.
    #[must_use]
    pub fn wants(&self, act: Act) -> bool {
        self.actions.iter().any(|name| name == act.name())
    }

    /// What is wrong with it, one sentence each.
    pub(super) fn faults(&self, operators: &OperatorsConfig) -> Vec<String> {
        let mut faults = Vec::new();
        if !(1..=720).contains(&self.hours) {
            faults.push(format!(
                "policy.approval.hours: {} is not 1 to 720",
                self.hours
            ));
        }
        if !(1..=1440).contains(&self.minutes) {
            faults.push(format!(
                "policy.approval.minutes: {} is not 1 to 1440",
                self.minutes
            ));
        }
        for name in &self.actions {
            let Some(act) = Act::ALL.iter().find(|act| act.name() == name) else {
                faults.push(format!(
                    "policy.approval.actions: {name:?} is no action (ekm config roles)"
                ));
                continue;
            };
            if act.second() == Second::Never {
                faults.push(format!(
                    "policy.approval.actions: {name} cannot wait for a second person (ekm config roles)"
                ));
            }
            let able = operators.people.iter().filter(|person| {
                let mut roles = person.roles.iter();
                roles.any(|role| *role == Role::Owner || act.roles().contains(role))
            });
            if able.count() < 2 {
                faults.push(format!(
                    "policy.approval.actions: {name} takes two people, and fewer of [[operators.people]] may do it"
                ));
            }
        }
        faults
    }
}

impl OperatorsConfig {
    /// The number of the group that may connect to the socket.
    ///
    /// # Errors
    /// There is no such group, in words.
    pub fn group_id(&self) -> Result<Option<u32>, String> {
        let Some(group) = &self.group else {
            return Ok(None);
        };
        if let Ok(number) = group.parse() {
            return Ok(Some(number));
        }
        match nix::unistd::Group::from_name(group) {
            Ok(Some(group)) => Ok(Some(group.gid.as_raw())),
            Ok(None) => Err(format!("there is no group {group} on this host")),
            Err(error) => Err(format!("group {group} cannot be looked up: {error}")),
        }
    }

    /// What is wrong with it, one sentence each.
    pub(super) fn faults(&self) -> Vec<String> {
        let Self {
            socket,
            group,
            listen,
            record_looks: _,
            people,
        } = self;
        let mut faults = Vec::new();
        if let Err(fault) = self.group_id() {
            faults.push(format!("operators.group: {fault}"));
        }
        if group.is_some() && socket.is_none() {
            faults.push(
                "operators.group: the state directory is its owner's alone; set operators.socket to a path in a directory that the group may enter, such as /run/ekm/ekm.sock"
                    .to_owned(),
            );
        }
        if group.is_some() && people.is_empty() {
            faults.push(
                "operators.group: nobody of it could do anything; name people in [[operators.people]]"
                    .to_owned(),
            );
        }
        if listen.is_some() && people.iter().all(|person| person.certificate.is_none()) {
            faults.push(
                "operators.listen: nobody could use it; give a certificate in [[operators.people]]"
                    .to_owned(),
            );
        }
        let mut users: Vec<(u32, &str)> = Vec::new();
        for (index, person) in people.iter().enumerate() {
            let PersonConfig {
                name,
                unix,
                certificate,
                roles,
            } = person;
            let before = people.get(..index).unwrap_or_default();
            if PeerId::new(PeerRole::Operator, name.clone()).is_err() {
                faults.push(format!(
                    "operators.people: {name:?} is no name; use 1 to 64 letters, digits, '.', '_' and '-'"
                ));
            }
            if before.iter().any(|other| other.name == *name) {
                faults.push(format!("operators.people: the name {name} is given twice"));
            }
            if roles.is_empty() {
                faults.push(format!(
                    "operators.people {name}: give roles (ekm config roles)"
                ));
            }
            if unix.is_none() && certificate.is_none() {
                faults.push(format!(
                    "operators.people {name}: say how to know this person: unix, certificate, or both"
                ));
            }
            if let Some(user) = unix {
                match user_id(user) {
                    Ok(None) => faults.push(format!(
                        "operators.people {name}: there is no user {user} on this host"
                    )),
                    Err(error) => faults.push(format!(
                        "operators.people {name}: user {user} cannot be looked up: {error}"
                    )),
                    Ok(Some(uid)) => match users.iter().find(|(other, _)| *other == uid) {
                        Some((_, other)) => faults.push(format!(
                            "operators.people: {other} and {name} are one Unix user (uid {uid}); give one person one name"
                        )),
                        None => users.push((uid, name)),
                    },
                }
            }
            if let Some(peer) = certificate {
                if peer.role() != PeerRole::Operator {
                    faults.push(format!(
                        "operators.people {name}: certificate: {peer} is no operator; write operator:NAME"
                    ));
                }
                if let Some(other) = before
                    .iter()
                    .find(|other| other.certificate.as_ref() == Some(peer))
                {
                    faults.push(format!(
                        "operators.people: {} and {name} have one certificate, {peer}",
                        other.name
                    ));
                }
            }
        }
        faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Example {
        operators: OperatorsConfig,
        policy: Policy,
    }

    #[derive(Deserialize)]
    struct Policy {
        approval: ApprovalConfig,
    }

    #[test]
    fn the_example_in_the_documentation_has_two_people_for_each_action() {
        let text = include_str!("../../docs/operators.md");
        let blocks = text.split("```toml\n").skip(1).take(2);
        let example: String = blocks.filter_map(|rest| rest.split("```").next()).collect();
        let Example { operators, policy } = toml::from_str(&example).unwrap();
        assert!(policy.approval.actions.len() > 1);
        assert_eq!(policy.approval.faults(&operators).join("\n"), "");
    }
}
