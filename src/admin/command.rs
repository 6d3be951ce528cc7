//! What an operator asks, and what he gets: the words of the command line and of the admin socket.

use serde::{Deserialize, Serialize};

use super::{
    AdoptAsked, AnchorSeen, BackupStatus, Budget, CopyAsked, CopyMade, DriveSeen, ForgivenTo,
    Impact, ImportAsked, ImportTo, Imported, ImportedDrive, KekTurned, Offered, PartnerSeen,
    RaisedAlarm, RekeyAct, RekeySeen, Removed, Rollovers, RotateWanted, ScheduleAct, SealKeySeen,
    TablesTaken, TakeMode, TakenIn, TokenStatus, TrustStage, Unlocked, Verdict, VolumeFilter,
    VolumeListed,
};
use crate::backup::BackedKek;
use crate::bridge::message::Custody;
use crate::certificates::Subject;
use crate::drive::{DriveSerial, Wwn};
use crate::key::{DataKeyId, KekHash, KekRef, KeyLabel, SedkForm};
use crate::keystore::KnownKek;
use crate::service::{EmergencySeen, FleetStatus, SealMade};
use crate::store::merge::{TableDump, VolumesTaken};
use crate::store::{
    Approval, Backup, Birth, Defaults, Drive, DriveKey, KekMove, KekState, VolumeKey, VolumesFound,
};
use crate::sync::{Ask, SyncReport};
use crate::tls::PeerId;
use crate::volser::Volser;
/// A change of a value that may be there or not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Change<T> {
    /// It stays.
    #[default]
    Keep,
    /// It goes.
    Clear,
    /// It becomes this.
    Set(T),
}

impl<T> Change<T> {
    /// A value that was given is set; one that was not stays.
    #[must_use]
    pub fn given(value: Option<T>) -> Self {
        value.map_or(Self::Keep, Self::Set)
    }

    pub(super) fn of(self, old: Option<T>) -> Option<T> {
        match self {
            Self::Keep => old,
            Self::Clear => None,
            Self::Set(new) => Some(new),
        }
    }
}

/// A change of one drive; what is `None` stays.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DriveChange {
    /// World-wide name.
    pub wwn: Option<Wwn>,
    /// First KEK.
    #[serde(default)]
    pub kek1: Change<KekRef>,
    /// Second KEK.
    #[serde(default)]
    pub kek2: Change<KekRef>,
    /// How its key is trusted.
    pub key: Option<DriveKey>,
    /// SEDK form.
    pub form: Option<SedkForm>,
    /// How far from the token its keys may go.
    pub custody: Option<Custody>,
    /// Peers that may ask for it besides those that may already.
    pub speakers: Option<Vec<PeerId>>,
    /// Peers that may ask for it no more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub no_speakers: Vec<PeerId>,
    /// Accepts a drive that waits.
    pub accept: bool,
}

/// What an operator asks.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "command", deny_unknown_fields)]
pub enum Command {
    /// Adds a drive.
    DriveAdd {
        /// Its serial.
        serial: DriveSerial,
        /// The rest.
        change: Box<DriveChange>,
    },
    /// Changes a drive.
    DriveMod {
        /// Its serial.
        serial: DriveSerial,
        /// What changes.
        change: Box<DriveChange>,
    },
    /// Deletes a drive.
    DriveDel {
        /// Its serial.
        serial: DriveSerial,
    },
    /// The drive table.
    DriveList,
    /// Takes in what another key manager has of drives and defaults.
    DriveImport {
        /// The drives.
        drives: Vec<ImportedDrive>,
        /// The global labels, where there are none yet.
        defaults: Defaults,
        /// False: says only what would be done.
        apply: bool,
    },
    /// The record of what a token's security officer blesses; he does it in a process of his own.
    DriveTrust {
        /// The token's configured name.
        token: String,
        /// The drives.
        drives: Vec<DriveSerial>,
        /// The KEKs' labels.
        keks: Vec<KeyLabel>,
        /// Before it, or after it.
        stage: TrustStage,
    },
    /// Makes a KEK.
    KekGenerate {
        /// Its label.
        label: KeyLabel,
        /// Modulus length, bits.
        bits: u32,
        /// The token, where there is more than one.
        token: Option<String>,
        /// What it is for.
        custody: Custody,
        /// Whether it may sign the request for its own certificate.
        #[serde(default)]
        sign: bool,
    },
    /// A key is about to be imported, by a bridge of the command line's own.
    KekImport(ImportAsked),
    /// How it ended: the way it took, or why it failed.
    KekImported {
        /// What was to be imported.
        asked: ImportAsked,
        /// How it ended.
        ended: Result<String, String>,
    },
    /// Keys of a token are about to be changed, likewise, or have been.
    KekAdopt {
        /// What is to be changed.
        asked: AdoptAsked,
        /// How it ended; none before it has begun.
        ended: Option<Result<String, String>>,
    },
    /// A KEK is about to get a copy, or to come from one, by a bridge of the command line's own.
    KekCopy {
        /// What is to be done.
        asked: Box<CopyAsked>,
        /// How it ended; none before it has begun.
        ended: Option<Result<Box<CopyMade>, String>>,
    },
    /// What an interrupted ceremony left was removed, by a bridge of the command line's own.
    KekCleared {
        /// The birth that did not end.
        birth: Birth,
        /// How many objects were destroyed.
        objects: usize,
    },
    /// An operator says that the vendor's tool has cloned a KEK.
    KekCopyStated {
        /// The KEK's label.
        label: KeyLabel,
        /// Where and how, in his words.
        note: String,
    },
    /// The KEKs, read from the tokens anew.
    KekList,
    /// A request for a KEK's certificate, signed by the KEK.
    KekRequest {
        /// The KEK.
        label: KeyLabel,
        /// The name to be certified; the label where there is none.
        subject: Option<Subject>,
    },
    /// A token shows that it holds the private half of a KEK.
    KekPossession {
        /// The KEK.
        label: KeyLabel,
    },
    /// A KEK's certificate is stored beside it.
    KekCertificate {
        /// The KEK.
        label: KeyLabel,
        /// The certificate, DER, and those of its issuers after it.
        #[serde(with = "crate::base64_bytes::list")]
        chain: Vec<Vec<u8>>,
        /// The token; else each that serves the KEK.
        token: Option<String>,
    },
    /// Adds a partner's KEK.
    PartnerAdd {
        /// What we call it.
        label: KeyLabel,
        /// The certificate, and what vouches for it.
        offered: Box<Offered>,
        /// SHA-256 of the certificate, as the operator has it from the partner.
        fingerprint: String,
    },
    /// Partners' KEKs, their seals verified anew.
    PartnerList,
    /// Deletes a partner's KEK.
    PartnerRemove {
        /// What we call it.
        label: KeyLabel,
    },
    /// The global labels, set first where given.
    KekDefault {
        /// Both labels as they shall be.
        set: Option<Defaults>,
        /// Also where nobody here could read what is written under them.
        #[serde(default)]
        anyway: bool,
    },
    /// The tokens.
    TokenStatus,
    /// A PIN that is held back is tried again.
    TokenUnlock {
        /// The token's configured name.
        token: String,
        /// Even where the token says that it is the last try.
        last_try: bool,
    },
    /// The budgets of EEDKs by PKCS#1 v1.5 that were not issued here and do not open; whoever is
    /// forgiven first, where given.
    EedkFailures {
        /// Whose failures shall count no longer.
        forgive: Option<ForgivenTo>,
    },
    /// A backup is about to be made by the command line: what do the tokens hold.
    BackupBegin {
        /// Its number.
        id: uuid::Uuid,
        /// Its file.
        file: String,
    },
    /// How it ended.
    BackupMade {
        /// Its number.
        id: uuid::Uuid,
        /// What was made, or why not.
        ended: Result<Box<Backup>, String>,
    },
    /// Which backups there are, and which KEKs are in none.
    BackupStatus,
    /// Drives, defaults, KEKs and partners, as they are now.
    TablesExport,
    /// Takes such tables in.
    TablesImport {
        /// The other's.
        dump: Box<TableDump>,
        /// How.
        mode: TakeMode,
        /// False: says only what would be done.
        apply: bool,
    },
    /// So many of the history after one of it.
    VolumesExport {
        /// The last that was given.
        after: Option<(DataKeyId, u32)>,
        /// How many.
        most: u32,
    },
    /// Takes in what of another's history is not known here.
    VolumesImport {
        /// Some of it.
        keys: Vec<VolumeKey>,
        /// False: says only how much.
        apply: bool,
    },
    /// The alarms that are raised.
    AlarmList,
    /// Takes another server's tables in.
    Sync(Ask),
    /// Seals the audit chain.
    AuditSeal {
        /// Also where the chain is not the one that is anchored.
        #[serde(default)]
        accept: bool,
    },
    /// The keys that seal; a new one first, where given.
    AuditKey {
        /// Modulus length of the new one, bits.
        generate: Option<u32>,
        /// Its token, where there is more than one.
        token: Option<String>,
    },
    /// What is known of the chain outside its directory.
    AuditAnchors,
    /// The emergency policy of the audit log, switched first where given.
    AuditEmergency {
        /// On or off.
        switch: Option<bool>,
    },
    /// The servers that share the state, and how their database is.
    FleetStatus,
    /// Takes a server that is gone for good out of the list.
    FleetForget {
        /// Its node name.
        node: String,
    },

    /// The volume history.
    VolumeList {
        /// One volume, or all.
        volser: Option<Volser>,
    },

    /// Gives a KEK another state.
    KekTurn {
        /// Its label.
        label: KeyLabel,
        /// The state: active, retired or revoked.
        to: KekState,
        /// Why.
        reason: Option<String>,
    },
    /// Destroys a KEK.
    KekDelete {
        /// Its label.
        label: KeyLabel,
        /// Also where cartridges outside the history may need it.
        #[serde(default)]
        tapes_elsewhere: bool,
    },
    /// What depends on a KEK.
    KekImpact {
        /// Its label.
        label: KeyLabel,
        /// Most volumes in the list.
        limit: usize,
    },
    /// Puts a new KEK in the place of another one.
    KekRotate(RotateWanted),
    /// Rollovers by the calendar.
    KekSchedule(ScheduleAct),
    /// Searches the history.
    VolumeFind {
        /// What is wanted.
        filter: VolumeFilter,
        /// Most volumes in the list.
        limit: usize,
    },
    /// Gives a volume up.
    VolumeWriteOff {
        /// The volume.
        volser: Volser,
        /// Why.
        reason: String,
    },
    /// Rekeys of volumes by the catalog.
    VolumeRekey(RekeyAct),
    /// Drives that wait for an operator, and what they showed.
    DrivePending,
    /// Accepts a drive that waits: the key that it showed is the one.
    DriveAccept {
        /// Its serial.
        serial: DriveSerial,
        /// SHA-256 over the public key, as the operator has it from the drive; none for one that the drive CA certified.
        fingerprint: Option<KekHash>,
        /// What its row says besides.
        change: Box<DriveChange>,
    },
    /// Rejects a drive that waits.
    DriveReject {
        /// Its serial.
        serial: DriveSerial,
    },
    /// What waits for a second person.
    ApprovalList {
        /// Also what was decided.
        all: bool,
    },
    /// Approves, rejects or withdraws what waits.
    ApprovalDecide {
        /// Which request.
        id: String,
        /// What is said about it.
        verdict: Verdict,
    },
}

/// What an operator gets.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "reply", content = "of")]
pub enum Reply {
    /// Drives.
    Drives(Vec<Drive>),
    /// What came of taking drives in.
    TakenIn(TakenIn),
    /// KEKs.
    Keks(Vec<KnownKek>),
    /// Where a key goes that is to be imported.
    ImportTo(ImportTo),
    /// A request for a certificate (PKCS#10, DER).
    Request(Vec<u8>),
    /// What became of a certificate.
    Imported(Box<Imported>),
    /// Partners' KEKs.
    Partners(Vec<PartnerSeen>),
    /// What became of a removal.
    Removed(Removed),
    /// The global labels.
    Defaults(Defaults),
    /// The global labels as they were set, and what is to be thought of.
    DefaultsSet {
        /// Both labels.
        #[serde(flatten)]
        defaults: Defaults,
        /// Both as they were before; a server of an earlier version does not say.
        #[serde(default)]
        before: Option<Defaults>,
        /// One sentence each.
        warnings: Vec<String>,
    },
    /// An earlier ceremony may have left something, which is to be removed first.
    Left(Box<Birth>),
    /// Tokens.
    Tokens(Vec<TokenStatus>),
    /// What came of an unlock.
    Unlocked(Box<Unlocked>),
    /// Budgets, those that are spent first.
    Budgets(Vec<Budget>),
    /// What the tokens held when a backup was begun.
    BackupBegun(Vec<BackedKek>),
    /// How backups stand.
    BackupStatus(Box<BackupStatus>),
    /// Tables.
    Tables(Box<TableDump>),
    /// What came of taking tables in.
    TablesTaken(Box<TablesTaken>),
    /// How much of a history was taken in.
    VolumesTaken(VolumesTaken),
    /// Alarms that are raised.
    Alarms(Vec<RaisedAlarm>),
    /// A seal of the audit chain.
    Sealed(Box<SealMade>),
    /// Keys that seal, the newest first.
    SealKeys(Vec<SealKeySeen>),
    /// Anchors of audit chains.
    Anchors(Vec<AnchorSeen>),
    /// How the emergency policy is.
    Emergency(EmergencySeen),

    /// The servers.
    Fleet(Box<FleetStatus>),
    /// A page of the history.
    Volumes(Vec<VolumeKey>),
    /// All of the history, newest first.
    VolumesListed(Vec<VolumeListed>),
    /// What a sync did, or would do.
    Synced(Box<SyncReport>),
    /// A KEK's new state.
    KekTurned(Box<KekTurned>),
    /// What depends on a KEK.
    Impact(Box<Impact>),
    /// A rotation that was done, or is planned.
    Rotated(Box<KekMove>),
    /// Rollovers to come.
    Rollovers(Box<Rollovers>),
    /// A part of the history.
    Found(VolumesFound),
    /// Rekeys, newest first.
    Rekeys(Vec<RekeySeen>),
    /// How many rows of the history a rekey would look at; nothing was done.
    RekeyWould {
        /// How many.
        rows: usize,
        /// Whether that is all of them.
        all: bool,
    },

    /// Drives, and what they showed.
    DrivesSeen(Vec<DriveSeen>),
    /// It takes a second person, and waits for one.
    Waits(Box<Approval>),
    /// Requests for approval, newest first.
    Approvals(Vec<Approval>),
    /// One of them, as it is now.
    Approval(Box<Approval>),
    /// Nothing to show.
    Done,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taking_a_kek_away_survives_the_socket() {
        let change = DriveChange {
            kek1: Change::Clear,
            ..DriveChange::default()
        };
        let text = serde_json::to_string(&change).unwrap();
        let back: DriveChange = serde_json::from_str(&text).unwrap();
        assert_eq!((back.kek1, back.kek2), (Change::Clear, Change::Keep));
    }
}
