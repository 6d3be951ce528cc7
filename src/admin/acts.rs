//! What each command is, who may give it, and whether it can wait for a second person.
//!
//! The table is code and documentation at once: `ekm config roles` prints it.
mod words;

use super::{Command, DriveChange, RekeyAct, ScheduleAct, TrustStage};
use crate::bridge::message::Custody;
use crate::key::{KekRef, KeyLabel, SedkForm};
use crate::operators::Role;
use crate::store::KekState;
use crate::sync::What;

/// Whether a command can wait until a second person has approved it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Second {
    /// No: it changes nothing, or it belongs to something that was approved.
    Never,
    /// The server keeps it, and does it when it is approved.
    Executed,
    /// Only the first person can do it, since a secret or a file of his goes with it. The approval
    /// lets him, once, for some minutes.
    Permitted,
}

macro_rules! acts {
    ($($act:ident $name:literal [$($role:ident)*] $second:ident $meaning:literal)*) => {
        /// What a command does, as roles and approvals see it. A command may be several: a drive
        /// that is changed to custody `host` is both `drive-mod` and `custody-host`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Act {
            $(#[doc = $meaning] $act,)*
        }

        impl Act {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$act,)*];

            /// Its name in the configuration and in records.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$act => $name,)* }
            }

            /// The roles of which one is needed; the owner has all.
            #[must_use]
            pub const fn roles(self) -> &'static [Role] {
                match self { $(Self::$act => &[$(Role::$role,)*],)* }
            }

            /// Whether it can wait for a second person.
            #[must_use]
            pub const fn second(self) -> Second {
                match self { $(Self::$act => Second::$second,)* }
            }

            /// What it does, in a few words.
            #[must_use]
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$act => $meaning,)* }
            }
        }
    };
}

acts! {
    DriveList      "drive-list"      [Operator DriveAdmin KeyAdmin Auditor] Never "shows the drive table"
    DrivePending   "drive-pending"   [Operator DriveAdmin KeyAdmin Auditor] Never "shows the drives that wait, and what they showed"
    DriveAdd       "drive-add"       [DriveAdmin] Executed  "adds a drive"
    DriveMod       "drive-mod"       [DriveAdmin] Executed  "changes a drive"
    DriveKey       "drive-key"       [DriveAdmin] Executed  "says which key a drive has, by add or mod"
    DriveAccept    "drive-accept"    [DriveAdmin] Executed  "accepts a drive that waits"
    DriveReject    "drive-reject"    [DriveAdmin] Executed  "rejects a drive that waits"
    DriveDel       "drive-del"       [DriveAdmin] Executed  "deletes a drive"
    DriveImport    "drive-import"    [DriveAdmin] Executed  "takes in another key manager's drives"
    DriveTrust     "drive-trust"     [DriveAdmin KeyAdmin] Permitted "has a security officer bless keys"
    DriveTrusted   "drive-trusted"   [DriveAdmin KeyAdmin] Never "records what the officer did"
    CustodyHost    "custody-host"    [DriveAdmin KeyAdmin] Executed "lets data keys of a drive or KEK be in clear in the host"

    KekList        "kek-list"        [Operator DriveAdmin KeyAdmin Auditor] Never "shows the KEKs"
    KekGenerate    "kek-generate"    [KeyAdmin] Executed  "makes a KEK"
    KekImport      "kek-import"      [KeyAdmin] Permitted "imports a KEK's key from a file"
    KekImported    "kek-imported"    [KeyAdmin] Never     "records how an import ended"
    KekAdopt       "kek-adopt"       [KeyAdmin] Permitted "changes keys that are on a token"
    KekAdopted     "kek-adopted"     [KeyAdmin] Never     "records how that ended"
    KekCopy        "kek-copy"        [KeyAdmin] Permitted "makes a KEK with a copy, restores or proves one"
    KekCopied      "kek-copied"      [KeyAdmin] Never     "records how that ended, clears what it left"
    KekCopyStated  "kek-copy-stated" [KeyAdmin] Executed  "states that a vendor's tool copied a KEK"
    KekRequest     "kek-request"     [KeyAdmin] Never     "has a KEK sign the request for its certificate"
    KekPossession  "kek-possession"  [KeyAdmin Auditor] Never "has a token show that it holds a KEK"
    KekCertificate "kek-certificate" [KeyAdmin] Executed  "stores a KEK's certificate"
    DefaultShow    "default-show"    [Operator DriveAdmin KeyAdmin Auditor] Never "shows the global labels"
    DefaultSet     "default-set"     [KeyAdmin] Executed  "sets the global labels"

    PartnerList    "partner-list"    [Operator DriveAdmin KeyAdmin Auditor] Never "shows partners' KEKs"
    PartnerAdd     "partner-add"     [KeyAdmin] Executed  "adds a partner's KEK"
    PartnerRemove  "partner-remove"  [KeyAdmin] Executed  "removes a partner's KEK"
    Rekey          "rekey"           [KeyAdmin] Never     "rekeys a cartridge by an operator's certificate"
    RekeyPartner   "rekey-partner"   [KeyAdmin] Executed  "rekeys a cartridge for a partner"

    TokenStatus    "token-status"    [Operator DriveAdmin KeyAdmin Auditor] Never "shows the tokens"
    TokenUnlock    "token-unlock"    [Operator KeyAdmin] Executed "has a PIN tried again that was held back"
    EedkFailures   "eedk-failures"   [Operator DriveAdmin KeyAdmin Auditor] Never "shows budgets of EEDKs that do not open"
    EedkForgive    "eedk-forgive"    [Operator KeyAdmin] Executed "forgives one"
    VolumeList     "volume-list"     [Operator DriveAdmin KeyAdmin Auditor] Never "shows the volume history"

    KekRetire      "retire"          [KeyAdmin] Executed  "retires a KEK for writing"
    KekActivate    "activate"        [KeyAdmin] Executed  "has a KEK written under again"
    KekRevoke      "revoke"          [KeyAdmin] Executed  "has a KEK neither written under nor read"
    KekDelete      "kek-delete"      [KeyAdmin] Executed  "destroys a KEK"
    KekImpact      "kek-impact"      [Operator DriveAdmin KeyAdmin Auditor] Never "shows what depends on a KEK"
    KekRotate      "kek-rotate"      [KeyAdmin] Executed  "puts a new KEK in the place of another"
    ScheduleList   "schedule-list"   [Operator DriveAdmin KeyAdmin Auditor] Never "shows rollovers by the calendar"
    ScheduleSet    "schedule-set"    [KeyAdmin] Executed  "sets or removes one"
    VolumeFind     "volume-find"     [Operator DriveAdmin KeyAdmin Auditor] Never "searches the volume history"
    VolumeWriteOff "volume-write-off" [KeyAdmin] Executed "gives a volume up"
    VolumeRekey    "volume-rekey"    [KeyAdmin] Executed  "rekeys volumes by the catalog"
    RekeyStatus    "rekey-status"    [Operator DriveAdmin KeyAdmin Auditor] Never "shows such rekeys"

    Backup         "backup"          [Operator KeyAdmin] Never "records a backup"
    BackupStatus   "backup-status"   [Operator DriveAdmin KeyAdmin Auditor] Never "shows backups, and KEKs that are in none"
    Export         "export"          [Operator DriveAdmin KeyAdmin Auditor] Never "gives tables and history out"
    Import         "import"          [KeyAdmin] Permitted "takes another server's tables or history in"
    Sync           "sync"            [DriveAdmin] Executed "takes a peer's tables in"
    AlarmList      "alarm-list"      [Operator DriveAdmin KeyAdmin Auditor] Never "shows the alarms that are raised"

    AuditShow      "audit-show"      [Operator DriveAdmin KeyAdmin Auditor] Never "shows seals' keys, anchors and the emergency policy"
    AuditSeal      "audit-seal"      [Operator KeyAdmin] Executed "seals the audit chain"
    AuditAccept    "audit-accept"    [KeyAdmin] Executed "goes on with a chain that is not the one that is anchored"
    AuditKey       "audit-key"       [KeyAdmin] Executed "makes a key that seals the audit chain"
    AuditEmergency "audit-emergency" [Operator KeyAdmin] Executed "switches the emergency policy of the audit log"

    FleetStatus    "fleet-status"    [Operator DriveAdmin KeyAdmin Auditor] Never "shows the servers that share the state"
    FleetForget    "fleet-forget"    [Operator KeyAdmin] Executed "takes a server that has gone out of the list"

    ApprovalList   "approval-list"   [Operator DriveAdmin KeyAdmin Auditor] Never "shows what waits for a second person"
    ApprovalDecide "approval-decide" [Operator DriveAdmin KeyAdmin] Never "approves, rejects, withdraws; besides the role for what it is about"
}

impl Act {
    /// Whether it changes nothing.
    #[must_use]
    pub const fn looks(self) -> bool {
        match self {
            Self::DriveList
            | Self::DrivePending
            | Self::KekList
            | Self::KekPossession
            | Self::DefaultShow
            | Self::PartnerList
            | Self::TokenStatus
            | Self::EedkFailures
            | Self::VolumeList
            | Self::KekImpact
            | Self::ScheduleList
            | Self::VolumeFind
            | Self::RekeyStatus
            | Self::BackupStatus
            | Self::Export
            | Self::AlarmList
            | Self::AuditShow
            | Self::FleetStatus
            | Self::ApprovalList => true,
            Self::DriveAdd
            | Self::DriveMod
            | Self::DriveKey
            | Self::DriveAccept
            | Self::DriveReject
            | Self::DriveDel
            | Self::DriveImport
            | Self::DriveTrust
            | Self::DriveTrusted
            | Self::CustodyHost
            | Self::KekGenerate
            | Self::KekImport
            | Self::KekImported
            | Self::KekAdopt
            | Self::KekAdopted
            | Self::KekCopy
            | Self::KekCopied
            | Self::KekCopyStated
            | Self::KekRequest
            | Self::KekCertificate
            | Self::DefaultSet
            | Self::PartnerAdd
            | Self::PartnerRemove
            | Self::Rekey
            | Self::RekeyPartner
            | Self::TokenUnlock
            | Self::EedkForgive
            | Self::KekRetire
            | Self::KekActivate
            | Self::KekRevoke
            | Self::KekDelete
            | Self::KekRotate
            | Self::ScheduleSet
            | Self::VolumeWriteOff
            | Self::VolumeRekey
            | Self::Backup
            | Self::Import
            | Self::Sync
            | Self::AuditSeal
            | Self::AuditAccept
            | Self::AuditKey
            | Self::AuditEmergency
            | Self::FleetForget
            | Self::ApprovalDecide => false,
        }
    }
}

impl Command {
    /// What it does; the first is its name. Each needs a role of its own, and where one of them
    /// takes a second person, all of it waits.
    #[must_use]
    pub fn acts(&self) -> Vec<Act> {
        match self {
            Self::DriveAdd { change, .. } => changes(Act::DriveAdd, change),
            Self::DriveMod { change, .. } => changes(Act::DriveMod, change),
            Self::DriveDel { .. } => vec![Act::DriveDel],
            Self::DriveList => vec![Act::DriveList],
            Self::DrivePending => vec![Act::DrivePending],
            Self::DriveAccept { change, .. } => changes(Act::DriveAccept, change),
            Self::DriveReject { .. } => vec![Act::DriveReject],
            Self::DriveImport { apply: false, .. } => vec![Act::DriveList],
            Self::DriveImport {
                apply: true,
                defaults,
                ..
            } if defaults.kek1.is_some() || defaults.kek2.is_some() => {
                vec![Act::DriveImport, Act::DefaultSet]
            }
            Self::DriveImport { apply: true, .. } => vec![Act::DriveImport],
            Self::DriveTrust { stage, .. } => match stage {
                TrustStage::Intent => vec![Act::DriveTrust],
                TrustStage::Done(_) | TrustStage::Failed(_) => vec![Act::DriveTrusted],
            },
            Self::KekGenerate { custody, .. } => with_custody(Act::KekGenerate, *custody),
            Self::KekImport(asked) => with_custody(Act::KekImport, asked.custody),
            Self::KekImported { .. } => vec![Act::KekImported],
            Self::KekAdopt { ended: None, .. } => vec![Act::KekAdopt],
            Self::KekAdopt { ended: Some(_), .. } => vec![Act::KekAdopted],
            Self::KekCopy { ended: None, .. } => vec![Act::KekCopy],
            Self::KekCopy { ended: Some(_), .. } | Self::KekCleared { .. } => {
                vec![Act::KekCopied]
            }
            Self::KekCopyStated { .. } => vec![Act::KekCopyStated],
            Self::KekList => vec![Act::KekList],
            Self::KekRequest { .. } => vec![Act::KekRequest],
            Self::KekPossession { .. } => vec![Act::KekPossession],
            Self::KekCertificate { .. } => vec![Act::KekCertificate],
            Self::PartnerAdd { .. } => vec![Act::PartnerAdd],
            Self::PartnerList => vec![Act::PartnerList],
            Self::PartnerRemove { .. } => vec![Act::PartnerRemove],
            Self::KekDefault { set: None, .. } => vec![Act::DefaultShow],
            Self::KekDefault { set: Some(_), .. } => vec![Act::DefaultSet],
            Self::TokenStatus => vec![Act::TokenStatus],
            Self::TokenUnlock { .. } => vec![Act::TokenUnlock],
            Self::EedkFailures { forgive: None } => vec![Act::EedkFailures],
            Self::EedkFailures { forgive: Some(_) } => vec![Act::EedkForgive],
            Self::VolumeList { .. } => vec![Act::VolumeList],
            Self::KekTurn { to, .. } => vec![match to {
                KekState::Active => Act::KekActivate,
                KekState::Retired => Act::KekRetire,
                KekState::Revoked => Act::KekRevoke,
                KekState::Deleted => Act::KekDelete,
            }],
            Self::KekDelete { .. } => vec![Act::KekDelete],
            Self::KekImpact { .. } => vec![Act::KekImpact],
            Self::KekRotate(_) => vec![Act::KekRotate, Act::KekGenerate, Act::KekRetire],
            Self::KekSchedule(ScheduleAct::List) => vec![Act::ScheduleList],
            // It is a rotation, and one after another.
            Self::KekSchedule(ScheduleAct::Set { .. }) => vec![
                Act::ScheduleSet,
                Act::KekRotate,
                Act::KekGenerate,
                Act::KekRetire,
            ],
            Self::KekSchedule(ScheduleAct::Remove(_)) => vec![Act::ScheduleSet],
            Self::VolumeFind { .. } => vec![Act::VolumeFind],
            Self::VolumeWriteOff { .. } => vec![Act::VolumeWriteOff],
            Self::VolumeRekey(RekeyAct::Status(_)) => vec![Act::RekeyStatus],
            Self::VolumeRekey(RekeyAct::Start(_) | RekeyAct::Resume(_) | RekeyAct::Cancel(_)) => {
                vec![Act::VolumeRekey]
            }
            Self::BackupBegin { .. } | Self::BackupMade { .. } => vec![Act::Backup],
            Self::BackupStatus => vec![Act::BackupStatus],
            Self::TablesExport | Self::VolumesExport { .. } => vec![Act::Export],
            Self::TablesImport { apply: false, .. } | Self::VolumesImport { apply: false, .. } => {
                vec![Act::Export]
            }
            // Whoever writes the drive table says which keys drives have.
            Self::TablesImport {
                apply: true, dump, ..
            } => {
                let mut acts = vec![Act::Import, Act::DriveImport];
                acts.extend(TABLE);
                if dump.defaults.is_some() {
                    acts.push(Act::DefaultSet);
                }
                if dump.partners.is_some() {
                    acts.extend([Act::PartnerAdd, Act::PartnerRemove]);
                }
                acts
            }
            Self::VolumesImport { apply: true, .. } => vec![Act::Import],
            Self::Sync(ask) if ask.dry_run => vec![Act::DriveList],
            Self::Sync(ask) => {
                let mut acts = vec![Act::Sync, Act::DriveImport];
                acts.extend(TABLE);
                if !matches!(ask.what, Some(What::Drivetab | What::History)) {
                    acts.push(Act::DefaultSet);
                }
                acts
            }
            Self::AlarmList => vec![Act::AlarmList],
            Self::AuditSeal { accept: false } => vec![Act::AuditSeal],
            Self::AuditSeal { accept: true } => vec![Act::AuditSeal, Act::AuditAccept],
            Self::AuditKey { generate: None, .. }
            | Self::AuditAnchors
            | Self::AuditEmergency { switch: None } => vec![Act::AuditShow],
            Self::AuditKey {
                generate: Some(_), ..
            } => vec![Act::AuditKey],
            Self::AuditEmergency { switch: Some(_) } => vec![Act::AuditEmergency],
            Self::FleetStatus => vec![Act::FleetStatus],
            Self::FleetForget { .. } => vec![Act::FleetForget],
            Self::ApprovalList { .. } => vec![Act::ApprovalList],
            Self::ApprovalDecide { .. } => vec![Act::ApprovalDecide],
        }
    }

    /// The KEK that it has another made in the place of, for the same custody.
    #[must_use]
    pub const fn rotates(&self) -> Option<&KeyLabel> {
        match self {
            Self::KekRotate(wanted) => Some(&wanted.label),
            Self::KekSchedule(ScheduleAct::Set { label, .. }) => Some(label),
            _ => None,
        }
    }

    /// The labels that cartridges are rekeyed to by it: one of a partner's makes it
    /// [`Act::RekeyPartner`] besides.
    #[must_use]
    pub fn rekeys_to(&self) -> Vec<&KekRef> {
        match self {
            Self::VolumeRekey(RekeyAct::Start(wanted)) => {
                std::iter::once(&wanted.kek1).chain(&wanted.kek2).collect()
            }
            _ => Vec::new(),
        }
    }
}

/// What whoever writes the whole drive table does to single drives.
const TABLE: [Act; 4] = [
    Act::DriveKey,
    Act::DriveAccept,
    Act::DriveDel,
    Act::CustodyHost,
];

fn changes(act: Act, change: &DriveChange) -> Vec<Act> {
    let mut acts = vec![act];
    if change.accept && act != Act::DriveAccept {
        acts.push(Act::DriveAccept);
    }
    if change.key.is_some() {
        acts.push(Act::DriveKey);
    }
    if change.custody == Some(Custody::Host) || change.form == Some(SedkForm::T10Plain) {
        acts.push(Act::CustodyHost);
    }
    acts
}

fn with_custody(act: Act, custody: Custody) -> Vec<Act> {
    match custody {
        Custody::Host => vec![act, Act::CustodyHost],
        Custody::Token => vec![act],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_acts_have_one_name_and_each_has_a_role() {
        for (index, act) in Act::ALL.iter().enumerate() {
            let mut before = Act::ALL.iter().take(index);
            assert!(before.all(|other| other.name() != act.name()), "{act:?}");
            assert!(!act.roles().is_empty(), "{act:?}");
            // An auditor changes nothing, and what changes nothing waits for nobody.
            if act.roles().contains(&Role::Auditor) {
                assert!(act.looks(), "{act:?}");
            }
            if act.looks() {
                assert_eq!(act.second(), Second::Never, "{act:?}");
            }
        }
    }
}
