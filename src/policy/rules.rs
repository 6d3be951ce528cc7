//! The policy's part of the configuration.

use serde::{Deserialize, Serialize};

use super::Refusal;
use crate::bridge::message::Provenance;
use crate::config::ApprovalConfig;
use crate::drive::DriveSerial;
use crate::key::KeyLabel;
use crate::tls::{PeerId, Role};

/// What happens to a drive that is not in the drive table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AcceptUnknown {
    /// It gets EF01.
    #[default]
    Reject,
    /// It gets EF01 and a row that waits for an operator.
    Pending,
    /// It gets a row, if the drive CA certified it; otherwise EF01.
    Accept,
}

/// What happens to a KEK whose private half is on no token here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnprovedKeks {
    /// Nothing is written under it.
    #[default]
    Refuse,
    /// It may be the second KEK, unproved, and the record says so.
    Allow,
}

/// What happens to a KEK whose certificate has ended or is not good yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExpiredKeks {
    /// It reads; nothing is written under it.
    #[default]
    Refuse,
    /// It may be written under as any other.
    Allow,
}

/// Whether EEDKs may be wrapped by RSAES-PKCS1-v1_5.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pkcs1V15Eedks {
    /// No token with such a profile is used, and none is opened.
    #[default]
    Refuse,
    /// By the tokens whose profile says so.
    Allow,
}

/// Whether what is written must outlive the loss of one token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RequireCopy {
    /// It need not.
    #[default]
    Off,
    /// By a second token, or by a copy of which an operator stated that the vendor's tool made it.
    Stated,
    /// By a second token, or by a copy that opened an EEDK.
    Proven,
}

impl std::fmt::Display for RequireCopy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::Stated => "stated",
            Self::Proven => "proven",
        })
    }
}

/// Whether a KEK must be in a backup, or have a copy, before it is written under.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackupBeforeServing {
    /// It need not.
    #[default]
    Off,
    /// It is told of.
    Warn,
    /// Nothing is written under it before.
    Require,
}

impl std::fmt::Display for BackupBeforeServing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::Warn => "warn",
            Self::Require => "require",
        })
    }
}

/// `[policy]` of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PolicyConfig {
    /// What happens to unknown drives.
    pub accept_unknown_drives: AcceptUnknown,
    /// Whether EEDKs that were never issued here may be read (they are marked in the record).
    pub read_unissued_eedks: bool,
    /// What happens to KEKs whose EEDKs cannot be proved.
    pub unproved_keks: UnprovedKeks,
    /// What happens to KEKs whose certificate has ended.
    pub expired_keks: ExpiredKeks,
    /// Provenances that may be written under.
    pub write_provenance: Vec<Provenance>,
    /// Whether a KEK must have a second copy before anything is written under it.
    pub require_copy: RequireCopy,
    /// Whether a KEK must be in a backup, or have a copy, before anything is written under it.
    pub backup_before_serving: BackupBeforeServing,
    /// Whether EEDKs may be wrapped by RSAES-PKCS1-v1_5.
    pub pkcs1_v15_eedks: Pkcs1V15Eedks,
    /// Of those that were not issued here, how many that do not open one peer may send in an hour.
    pub pkcs1_v15_failures_per_peer: u32,
    /// How many that do not open are taken for one KEK, of all peers together and for ever.
    pub pkcs1_v15_failures_per_kek: u32,
    /// What takes a second person.
    #[serde(skip_serializing_if = "takes_one")]
    pub approval: ApprovalConfig,
    /// What peers may do beyond asking for their own drive.
    pub peers: Vec<PeerRule>,
}

fn takes_one(approval: &ApprovalConfig) -> bool {
    *approval == ApprovalConfig::default()
}

impl Default for PolicyConfig {
    fn default() -> Self {
        Self {
            accept_unknown_drives: AcceptUnknown::Reject,
            read_unissued_eedks: true,
            unproved_keks: UnprovedKeks::Refuse,
            expired_keks: ExpiredKeks::Refuse,
            write_provenance: vec![
                Provenance::Born,
                Provenance::Copied,
                Provenance::Imported,
                Provenance::Restored,
            ],
            require_copy: RequireCopy::Off,
            backup_before_serving: BackupBeforeServing::Off,
            pkcs1_v15_eedks: Pkcs1V15Eedks::Refuse,
            pkcs1_v15_failures_per_peer: 10,
            pkcs1_v15_failures_per_kek: 500,
            approval: ApprovalConfig::default(),
            peers: Vec::new(),
        }
    }
}

/// `[[policy.peers]]`: what one peer, or all of a role, may do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerRule {
    /// `proxy:NAME`, `drive:SERIAL` …, or `proxy:*`.
    pub peer: String,
    /// Serials it may speak for; `*` for every drive of the table.
    #[serde(default)]
    pub drives: Vec<String>,
    /// Labels it may name in a create; `*` for any.
    #[serde(default)]
    pub create_keks: Vec<String>,
    /// Labels it may rekey to; `*` for any.
    #[serde(default)]
    pub rekey_keks: Vec<String>,
}

impl PeerRule {
    fn is_of(&self, peer: &PeerId) -> bool {
        self.peer == peer.to_string() || self.peer == format!("{}:*", peer.role())
    }
}

impl PolicyConfig {
    fn rules<'a>(&'a self, peer: &'a PeerId) -> impl Iterator<Item = &'a PeerRule> {
        self.peers.iter().filter(move |rule| rule.is_of(peer))
    }

    /// Whether a rule lets the peer speak for the drive.
    #[must_use]
    pub fn speaks_for(&self, peer: &PeerId, serial: &DriveSerial) -> bool {
        self.rules(peer).flat_map(|rule| &rule.drives).any(|drive| {
            drive == "*"
                || drive
                    .parse::<DriveSerial>()
                    .is_ok_and(|drive| drive == *serial)
        })
    }

    /// Whether the peer may name the KEK in a create.
    ///
    /// # Errors
    /// [`Refusal::NotItsKek`]
    pub fn may_create_under(&self, peer: &PeerId, label: &KeyLabel) -> Result<(), Refusal> {
        if self.rules(peer).any(|rule| lists(&rule.create_keks, label)) {
            return Ok(());
        }
        Err(Refusal::NotItsKek {
            peer: peer.clone(),
            verb: "create under",
            key: "create_keks",
            label: label.to_string(),
        })
    }

    /// Whether the peer may rekey to the KEK. Operators may.
    ///
    /// # Errors
    /// [`Refusal::NotItsKek`]
    pub fn may_rekey_to(&self, peer: &PeerId, label: &KeyLabel) -> Result<(), Refusal> {
        if peer.role() == Role::Operator
            || self.rules(peer).any(|rule| lists(&rule.rekey_keks, label))
        {
            return Ok(());
        }
        Err(Refusal::NotItsKek {
            peer: peer.clone(),
            verb: "rekey to",
            key: "rekey_keks",
            label: label.to_string(),
        })
    }

    /// What is wrong with the rules, as `ekm config check` tells it.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for (name, value) in [
            ("peer", self.pkcs1_v15_failures_per_peer),
            ("kek", self.pkcs1_v15_failures_per_kek),
        ] {
            if !(1..=10_000).contains(&value) {
                faults.push(format!(
                    "policy.pkcs1_v15_failures_per_{name}: {value} is not 1 to 10000"
                ));
            }
        }
        for rule in &self.peers {
            let PeerRule {
                peer,
                drives,
                create_keks,
                rekey_keks,
            } = rule;
            let known = match peer.strip_suffix(":*") {
                Some(role) => role.parse::<Role>().is_ok(),
                None => peer.parse::<PeerId>().is_ok(),
            };
            if !known {
                faults.push(format!(
                    "policy.peers: {peer:?} is no peer; write for example proxy:library1 or proxy:*"
                ));
            }
            for drive in drives.iter().filter(|drive| *drive != "*") {
                if let Err(error) = drive.parse::<DriveSerial>() {
                    faults.push(format!("policy.peers {peer}: drives: {error}"));
                }
            }
            for label in create_keks
                .iter()
                .chain(rekey_keks)
                .filter(|label| *label != "*")
            {
                if let Err(error) = label.parse::<KeyLabel>() {
                    faults.push(format!("policy.peers {peer}: {label:?}: {error}"));
                }
            }
        }
        faults
    }
}

fn lists(labels: &[String], label: &KeyLabel) -> bool {
    labels.iter().any(|listed| {
        listed == "*"
            || listed
                .parse::<KeyLabel>()
                .is_ok_and(|listed| listed.same_as(label))
    })
}
