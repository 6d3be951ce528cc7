//! The people of the configuration.

use super::{Asker, Operator, Role, Shown, Whence};
use crate::admin::Act;
use crate::config::{ApprovalConfig, OperatorsConfig};
use crate::tls::PeerId;

/// One person, whichever way he comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Person {
    /// The name in records.
    pub name: String,
    /// His Unix user.
    pub uid: Option<u32>,
    /// Whom his certificate names.
    pub certificate: Option<PeerId>,
    /// What he may.
    pub roles: Vec<Role>,
}

impl Person {
    /// Whether one of his roles is enough for it.
    #[must_use]
    pub fn may(&self, act: Act) -> bool {
        self.roles
            .iter()
            .any(|role| *role == Role::Owner || act.roles().contains(role))
    }

    /// Whether a second person is needed besides him who is this one. Two names of one Unix user
    /// are one person.
    #[must_use]
    pub fn is(&self, name: &str, uid: Option<u32>) -> bool {
        self.name == name || (uid.is_some() && self.uid == uid)
    }
}

/// Why somebody is no operator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stranger {
    /// Nobody is named, and he is neither root nor who runs the server.
    #[error(
        "{} is neither root nor the user that runs ekm, and the configuration names no other operators ([[operators.people]])", .0.words()
    )]
    NotOwner(Asker),
    /// Somebody is, but not he.
    #[error(
        "{} is none of the operators that the configuration names ([[operators.people]])", .0.words()
    )]
    Unnamed(Asker),
}

/// The people of a site, and what they must do by two.
#[derive(Clone, Debug, Default)]
pub struct Roster {
    people: Vec<Person>,
    approval: ApprovalConfig,
    looks: bool,
}

impl Roster {
    /// The people of a configuration. Who has no Unix user of his name here can come by his
    /// certificate only.
    #[must_use]
    pub fn new(operators: &OperatorsConfig, approval: &ApprovalConfig) -> Self {
        let people = operators.people.iter().map(|person| Person {
            name: person.name.clone(),
            uid: person
                .unix
                .as_deref()
                .and_then(|user| user_id(user).ok().flatten()),
            certificate: person.certificate.clone(),
            roles: person.roles.clone(),
        });
        Self {
            people: people.collect(),
            approval: approval.clone(),
            looks: operators.record_looks,
        }
    }

    /// Which person it is.
    ///
    /// # Errors
    /// None.
    pub fn recognise(&self, asker: &Asker) -> Result<Operator, Stranger> {
        let person = if self.people.is_empty() {
            self.owner(asker)
                .ok_or_else(|| Stranger::NotOwner(asker.clone()))?
        } else {
            let is_he = |person: &&Person| match &asker.shown {
                Shown::Unix(uid) => person.uid == Some(*uid),
                Shown::Certificate(peer) => person.certificate.as_ref() == Some(peer),
            };
            self.people
                .iter()
                .find(is_he)
                .cloned()
                .ok_or_else(|| Stranger::Unnamed(asker.clone()))?
        };
        Ok(Operator {
            person,
            asker: asker.clone(),
        })
    }

    /// Who has all roles where nobody is named.
    fn owner(&self, asker: &Asker) -> Option<Person> {
        let Shown::Unix(uid) = asker.shown else {
            return None;
        };
        // With no server running he has opened the state already.
        let owns = uid == 0
            || uid == rustix::process::geteuid().as_raw()
            || asker.whence == Whence::NoServer;
        owns.then(|| Person {
            name: format!("uid {uid}"),
            uid: Some(uid),
            certificate: None,
            roles: vec![Role::Owner],
        })
    }

    /// The person of that name, as the configuration has him now.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<&Person> {
        self.people.iter().find(|person| person.name == name)
    }

    /// Whether anybody is named.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.people.is_empty()
    }

    /// What must be done by two.
    #[must_use]
    pub const fn approval(&self) -> &ApprovalConfig {
        &self.approval
    }

    /// Whether looks are recorded too.
    #[must_use]
    pub const fn records_looks(&self) -> bool {
        self.looks
    }

    /// Whether a TLS peer of role operator may do that at the drives' door.
    #[must_use]
    pub fn admits(&self, peer: &PeerId, act: Act) -> bool {
        self.people.is_empty()
            || self
                .people
                .iter()
                .any(|person| person.certificate.as_ref() == Some(peer) && person.may(act))
    }
}

/// The number of a Unix user, given by name or number; none where there is no such user.
///
/// # Errors
/// The user database cannot be asked.
pub fn user_id(user: &str) -> Result<Option<u32>, std::io::Error> {
    if let Ok(number) = user.parse() {
        return Ok(Some(number));
    }
    let found = nix::unistd::User::from_name(user)?;
    Ok(found.map(|user| user.uid.as_raw()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_no_operator_is_told_in_a_sentence() {
        let asker = Asker {
            shown: Shown::Unix(0),
            whence: Whence::NoServer,
        };
        assert_eq!(
            Stranger::Unnamed(asker).to_string(),
            "user root (uid 0), working without a server, is none of the operators that the configuration names ([[operators.people]])"
        );
    }
}
