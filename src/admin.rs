//! What operators do: the drive table, KEKs, defaults, a look at the state.
//!
//! The same commands run in two places: in the server, reached over its Unix
//! socket, or in the command line itself where no server runs. Every change
//! is recorded before it is made.

mod adopt;
mod certificates;
mod copies;
mod ekm21;
mod import;
mod partners;
mod trust;
mod unlock;

use serde::{Deserialize, Serialize};

use crate::audit::{Event, Kind, Outcome};
use crate::bridge::message::Custody;
use crate::bridge::pin::Handed;
use crate::bridge::supervisor::{Bridge, TokenState};
use crate::certificates::Subject;
use crate::drive::{DriveSerial, Wwn};
use crate::key::{KekHash, KekRef, KeyLabel, SedkForm};
use crate::keystore::{KekError, KnownKek};
use crate::problem::{EkmCode, Problem};
use crate::service::{STARTING, Service};
use crate::store::{Defaults, Drive, DriveKey, DriveState, RegisteredKek, StoreError, VolumeKey};
use crate::tls::PeerId;
use crate::volser::Volser;

pub use adopt::AdoptAsked;
pub use certificates::Imported;
pub use copies::{CopyAct, CopyAsked, CopyMade};
pub use ekm21::{ImportedDrive, Taken, TakenIn};
pub use import::{ImportAsked, ImportTo};
pub use partners::{Offered, PartnerSeen, Removed, look};
pub use trust::TrustStage;
pub use unlock::Unlocked;

/// Modulus lengths that KEKs are made with.
pub const KEK_BITS: [u32; 3] = [2048, 3072, 4096];

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

    fn of(self, old: Option<T>) -> Option<T> {
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
    /// Peers that may ask for it, all of them.
    pub speakers: Option<Vec<PeerId>>,
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
    /// The volume history.
    VolumeList {
        /// One volume, or all.
        volser: Option<Volser>,
    },
}

/// A token as `ekm token status` shows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TokenStatus {
    /// Its configured name.
    pub name: String,
    /// starting, ready, degraded, failed or locked.
    pub state: String,
    /// Why it is not ready.
    pub why: Option<String>,
    /// Since when, RFC 3339.
    pub since: Option<String>,
    /// When a failed token is tried again, RFC 3339.
    pub next: Option<String>,
    /// The processes that drive it.
    pub bridges: Vec<u32>,
    /// Sessions of the bridge that has fewest, and how many the profile wants.
    pub sessions: Option<(usize, usize)>,
    /// Seconds since the token last proved that it works.
    pub heard: Option<f64>,
    /// What its flags say of the user PIN.
    pub pin: Option<String>,
    /// Where its user PIN comes from.
    pub pin_source: Option<String>,
    /// Its PKCS#11 URI, once known.
    pub uri: Option<String>,
    /// Its KEKs.
    pub keks: usize,
    /// SEDK forms that the probe saw it make.
    pub forms: Vec<SedkForm>,
    /// Hashes of the public keys that its security officer has blessed.
    #[serde(default)]
    pub trusted: Vec<KekHash>,
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
    /// Tokens.
    Tokens(Vec<TokenStatus>),
    /// What came of an unlock.
    Unlocked(Box<Unlocked>),
    /// Volume keys, newest first.
    Volumes(Vec<VolumeKey>),
    /// Nothing to show.
    Done,
}

/// Does what the operator asks.
///
/// # Errors
/// What is wrong and what to do.
pub async fn execute(
    service: &Service,
    operator: &str,
    command: Command,
) -> Result<Reply, Problem> {
    execute_with_pin(service, operator, command, None).await
}

/// The same, with a PIN that the operator gives for the token that he unlocks.
///
/// # Errors
/// What is wrong and what to do.
pub async fn execute_with_pin(
    service: &Service,
    operator: &str,
    command: Command,
    pin: Option<Handed>,
) -> Result<Reply, Problem> {
    match command {
        Command::DriveAdd { serial, change } => {
            if stored(service.store().drive(&serial).await)?.is_some() {
                return Err(conflict(
                    EkmCode::EE25,
                    format!("drive {serial} is in the table already; change it with ekm drive mod"),
                ));
            }
            // Session keys are of the 3592's plain kind.
            let form = match change.key {
                Some(DriveKey::Certified) => SedkForm::RsaOaepSha1,
                Some(DriveKey::Pinned(_) | DriveKey::None) | None => SedkForm::T10Wrapped,
            };
            let fresh = Drive {
                serial,
                wwn: None,
                kek1: None,
                kek2: None,
                key: DriveKey::None,
                form,
                custody: Custody::Token,
                speakers: Vec::new(),
                state: DriveState::Active,
            };
            put_drive(service, operator, "drive-add", fresh, *change).await
        }
        Command::DriveMod { serial, change } => {
            let drive =
                stored(service.store().drive(&serial).await)?.ok_or_else(|| no_drive(&serial))?;
            let former = drive.key.clone();
            let put = put_drive(service, operator, "drive-mod", drive, *change).await?;
            trust::withdraw(service, operator, &serial, &former).await?;
            Ok(put)
        }
        Command::DriveDel { serial } => {
            let drive =
                stored(service.store().drive(&serial).await)?.ok_or_else(|| no_drive(&serial))?;
            let mut event = event("drive-del", operator);
            event.drive = Some(serial.to_string());
            record(service, event).await?;
            stored(service.store().delete_drive(&serial).await)?;
            trust::withdraw(service, operator, &serial, &drive.key).await?;
            Ok(Reply::Done)
        }
        Command::DriveTrust {
            token,
            drives,
            keks,
            stage,
        } => trust::note(service, operator, token, &drives, &keks, stage).await,
        Command::DriveList => stored(service.store().drives().await).map(Reply::Drives),
        Command::DriveImport {
            drives,
            defaults,
            apply,
        } => ekm21::take_in(service, operator, drives, &defaults, apply).await,
        Command::KekGenerate {
            label,
            bits,
            token,
            custody,
            sign,
        } => generate(service, operator, label, bits, token, (custody, sign)).await,
        Command::KekImport(asked) => import::prepare(service, operator, asked).await,
        Command::KekImported { asked, ended } => {
            import::finish(service, operator, asked, ended).await
        }
        Command::KekAdopt { asked, ended } => adopt::adopt(service, operator, asked, ended).await,
        Command::KekRequest { label, subject } => {
            certificates::request(service, operator, &label, subject).await
        }
        Command::KekPossession { label } => certificates::possess(service, operator, &label).await,
        Command::KekCertificate {
            label,
            chain,
            token,
        } => certificates::import(service, operator, &label, &chain, token).await,
        Command::PartnerAdd {
            label,
            offered,
            fingerprint,
        } => partners::add(service, operator, label, &offered, &fingerprint).await,
        Command::PartnerList => partners::list(service).await,
        Command::PartnerRemove { label } => partners::remove(service, operator, &label).await,
        Command::KekCopy { asked, ended } => {
            copies::ceremony(service, operator, *asked, ended).await
        }
        Command::KekCopyStated { label, note } => {
            copies::stated(service, operator, &label, note).await
        }
        Command::KekList => {
            // What is on a token that is starting is not known yet.
            service.tokens().started(STARTING).await;
            service.tokens().look_again().await;
            Ok(Reply::Keks(service.directory().await?.keks().to_vec()))
        }
        Command::KekDefault { set } => {
            if let Some(defaults) = set {
                known(
                    service,
                    [&defaults.kek1, &defaults.kek2].into_iter().flatten(),
                )
                .await?;
                let mut event = event("kek-default", operator);
                event.kind = Kind::ConfigurationManagement;
                event.keks = labels(&defaults.kek1, &defaults.kek2);
                record(service, event).await?;
                stored(service.store().set_defaults(&defaults).await)?;
            }
            stored(service.store().defaults().await).map(Reply::Defaults)
        }
        Command::TokenStatus => Ok(Reply::Tokens(
            service.tokens().bridges().iter().map(status).collect(),
        )),
        Command::TokenUnlock { token, last_try } => {
            unlock::unlock(service, operator, &token, last_try, pin)
                .await
                .map(|unlocked| Reply::Unlocked(Box::new(unlocked)))
        }
        Command::VolumeList { volser } => {
            stored(service.store().volumes(volser.as_ref()).await).map(Reply::Volumes)
        }
    }
}

async fn put_drive(
    service: &Service,
    operator: &str,
    action: &str,
    mut drive: Drive,
    change: DriveChange,
) -> Result<Reply, Problem> {
    let DriveChange {
        wwn,
        kek1,
        kek2,
        key,
        form,
        custody,
        speakers,
        accept,
    } = change;
    let named: Vec<KekRef> = [&kek1, &kek2]
        .into_iter()
        .filter_map(|kek| match kek {
            Change::Set(kek) => Some(kek.clone()),
            Change::Keep | Change::Clear => None,
        })
        .collect();
    drive.wwn = wwn.or(drive.wwn);
    drive.kek1 = kek1.of(drive.kek1);
    drive.kek2 = kek2.of(drive.kek2);
    drive.key = key.unwrap_or(drive.key);
    drive.form = form.unwrap_or(drive.form);
    drive.custody = custody.unwrap_or(drive.custody);
    drive.speakers = speakers.unwrap_or(drive.speakers);
    let mut named = named;
    if accept {
        drive.state = DriveState::Active;
        // What its row names was not looked at while it waited.
        named = [&drive.kek1, &drive.kek2]
            .into_iter()
            .flatten()
            .cloned()
            .collect();
    }
    check(service, &drive, &named).await?;
    let mut event = event(action, operator);
    event.drive = Some(drive.serial.to_string());
    event.keks = labels(&drive.kek1, &drive.kek2);
    event.custody = Some(drive.custody.to_string());
    if let DriveKey::Pinned(spki) = &drive.key {
        event.drive_key = Some(KekHash::of_spki(spki).to_string());
    }
    record(service, event).await?;
    stored(service.store().put_drive(&drive).await)?;
    Ok(Reply::Drives(vec![drive]))
}

/// A row that could never serve is refused now, not at three in the morning.
async fn check(service: &Service, drive: &Drive, named: &[KekRef]) -> Result<(), Problem> {
    let refuse = |reason: &str| {
        Err(conflict(
            EkmCode::EE25,
            format!("drive {}: {reason}", drive.serial),
        ))
    };
    match (&drive.key, drive.form) {
        (DriveKey::None, SedkForm::T10Plain) => {}
        (DriveKey::None, _) => {
            return refuse(
                "give its public key with --key PEM, or --ca for a drive with a certificate",
            );
        }
        (DriveKey::Pinned(spki), form) => {
            let bits = crate::bridge::rsa_bits(spki);
            match (bits, form) {
                (None, _) => {
                    return refuse("its public key is not an RSA key of 2048 to 8192 bits");
                }
                (Some(bits), SedkForm::T10Wrapped) if bits != 2048 => {
                    return refuse("form t10-02h takes RSA-2048 only (parameter set 0000h)");
                }
                (Some(_), _) => {}
            }
        }
        (DriveKey::Certified, _) => {}
    }
    if drive.form == SedkForm::T10Plain && drive.custody != Custody::Host {
        return refuse("form t10-00h is the key in clear; say so with --custody host");
    }
    if drive.form == SedkForm::T10Wrapped && drive.wwn.is_none() {
        return refuse(
            "form t10-02h binds the key to the drive's WWN; give it with --wwn, or choose --form rsa-oaep-sha1",
        );
    }
    // Two rows with one key, or one name: what is wrapped for the one opens in the other.
    for other in stored(service.store().drives().await)? {
        // One that waits has nothing but its own word for them.
        if other.serial == drive.serial || other.state == DriveState::Pending {
            continue;
        }
        if matches!(drive.key, DriveKey::Pinned(_)) && other.key == drive.key {
            return refuse(&format!(
                "its public key is that of drive {}; no two drives have one: is it the right file?",
                other.serial
            ));
        }
        if drive.wwn.is_some() && other.wwn == drive.wwn {
            return refuse(&format!(
                "its WWN is that of drive {}; no two drives have one",
                other.serial
            ));
        }
    }
    known(service, named).await
}

/// That each label names one KEK. Tokens that are starting are waited for: what is on them is not
/// known yet.
async fn known(service: &Service, named: impl IntoIterator<Item = &KekRef>) -> Result<(), Problem> {
    let mut named = named.into_iter().peekable();
    if named.peek().is_none() {
        return Ok(());
    }
    let tokens = service.tokens();
    tokens.started(STARTING).await;
    let directory = service.directory().await?;
    for kek in named {
        match directory.by_label(&kek.label) {
            Ok(_) => {}
            Err(error @ KekError::Unknown { .. }) if !tokens.all_serve() => {
                return Err(Problem::unavailable(format!(
                    "{error}; but not all tokens are ready, and it may be on one of those (ekm token status)"
                )));
            }
            Err(error) => return Err(conflict(EkmCode::EE31, error.to_string())),
        }
    }
    Ok(())
}

/// That no key has or had the label.
async fn vacant(service: &Service, label: &KeyLabel) -> Result<(), Problem> {
    if crate::bridge::trust::reserved(label.as_str()) {
        return Err(conflict(
            EkmCode::EE31,
            format!(
                "the label {label} begins as those of the keys that a token's security officer blesses (ekm drive trust); choose another"
            ),
        ));
    }
    service.tokens().look_again().await;
    let directory = service.directory().await?;
    if let Some(kek) = directory.keks().iter().find(|kek| kek.label.same_as(label)) {
        return Err(conflict(
            EkmCode::EE31,
            format!(
                "the label {} is taken by the key {} on {}; labels differ by more than case and trailing blanks",
                kek.label,
                kek.hash,
                match &kek.partner {
                    Some(_) => "(a partner's)".to_owned(),
                    None => kek.tokens.join(", "),
                }
            ),
        ));
    }
    if let Some(row) = stored(service.store().keks().await)?
        .iter()
        .find(|row| row.label.same_as(label))
    {
        return Err(conflict(
            EkmCode::EE31,
            format!(
                "the label {} is registered for the key {}, which no token shows now; choose another label",
                row.label, row.hash
            ),
        ));
    }
    Ok(())
}

async fn generate(
    service: &Service,
    operator: &str,
    label: KeyLabel,
    bits: u32,
    token: Option<String>,
    (custody, sign): (Custody, bool),
) -> Result<Reply, Problem> {
    if !KEK_BITS.contains(&bits) {
        return Err(conflict(
            EkmCode::EE31,
            format!("a KEK has {KEK_BITS:?} bits, got {bits}"),
        ));
    }
    vacant(service, &label).await?;
    let mut event = event("kek-generate", operator);
    event.outcome = Outcome::Intent;
    event.keks = vec![label.to_string()];
    event.token.clone_from(&token);
    record(service, event.clone()).await?;
    let made = service
        .tokens()
        .generate(token.as_deref(), &label, bits, custody, sign)
        .await;
    let (token, kek) = match made {
        Ok(made) => made,
        Err(fault) => {
            event.outcome = Outcome::Failure;
            event.detail = Some(fault.to_string());
            record(service, event).await?;
            return Err(Problem::from(&fault));
        }
    };
    let provenance = match kek.private {
        crate::bridge::message::PrivateHalf::Serves { provenance, .. } => provenance,
        crate::bridge::message::PrivateHalf::Absent
        | crate::bridge::message::PrivateHalf::Refused { .. } => {
            return Err(Problem::internal(format!(
                "token {token} made KEK {label} so that it cannot serve"
            )));
        }
    };
    event.outcome = Outcome::Success;
    event.token = Some(token.clone());
    event.custody = Some(custody.to_string());
    event.detail = Some(format!(
        "RSA-{bits}, {provenance}, public-key hash {}{}",
        kek.hash,
        if sign {
            ", may sign its own request"
        } else {
            ""
        }
    ));
    record(service, event).await?;
    stored(
        service
            .store()
            .register_kek(&RegisteredKek {
                label: kek.label.clone(),
                hash: kek.hash,
                spki: kek.spki.clone(),
                bits: kek.bits,
                token,
                custody,
                provenance,
            })
            .await,
    )?;
    let directory = service.directory().await?;
    let made = directory
        .keks()
        .iter()
        .filter(|known| known.hash == kek.hash)
        .cloned()
        .collect();
    Ok(Reply::Keks(made))
}

fn status(bridge: &Bridge) -> TokenStatus {
    let state = bridge.state();
    let time = |at: time::OffsetDateTime| {
        at.truncate_to_second()
            .format(&time::format_description::well_known::Rfc3339)
            .ok()
    };
    let next = match &state {
        TokenState::Failed { next, .. } => time(*next),
        TokenState::Starting { .. }
        | TokenState::Ready { .. }
        | TokenState::Degraded { .. }
        | TokenState::Locked { .. } => None,
    };
    let ready = state.found().filter(|_| state.serves());
    TokenStatus {
        name: bridge.name().to_owned(),
        state: state.word().to_owned(),
        why: state.why(),
        since: time(state.since()),
        next,
        bridges: state.bridges().to_vec(),
        sessions: ready.map(|ready| (ready.sessions, bridge.sessions_wanted())),
        heard: bridge.proof_age().map(|age| age.as_secs_f64()),
        pin: ready
            .filter(|_| bridge.key_file().is_none())
            .map(|ready| ready.token.pin_words().to_owned()),
        pin_source: bridge.pin_source().map(ToString::to_string),
        uri: match bridge.key_file() {
            Some(file) => Some(format!("file:{}", file.display())),
            None => ready.map(|ready| crate::bridge::uri::TokenUri::of(&ready.token).to_string()),
        },
        keks: ready.map_or(0, |ready| ready.keks.len()),
        forms: ready
            .and_then(|ready| ready.probe.clone())
            .map(|probe| probe.forms)
            .unwrap_or_default(),
        trusted: ready.map_or_else(Vec::new, |ready| ready.trusted.clone()),
    }
}

fn event(action: &str, operator: &str) -> Event {
    let mut event = Event::new(Kind::ResourceManagement, action, Outcome::Success);
    event.peer = Some(operator.to_owned());
    event
}

async fn record(service: &Service, event: Event) -> Result<(), Problem> {
    service
        .audit()
        .record(event)
        .await
        .map(drop)
        .map_err(|error| {
            Problem::internal(format!(
                "nothing was changed, because it cannot be recorded: {error}"
            ))
        })
}

fn stored<T>(outcome: Result<T, StoreError>) -> Result<T, Problem> {
    outcome.map_err(|error| match error {
        StoreError::LabelTaken { .. } => conflict(EkmCode::EE31, error.to_string()),
        StoreError::Database { .. }
        | StoreError::Migrate { .. }
        | StoreError::Damaged { .. }
        | StoreError::Directory { .. } => Problem::internal(error.to_string()),
    })
}

fn labels(kek1: &Option<KekRef>, kek2: &Option<KekRef>) -> Vec<String> {
    [kek1, kek2]
        .into_iter()
        .flatten()
        .map(ToString::to_string)
        .collect()
}

fn no_drive(serial: &DriveSerial) -> Problem {
    Problem::new(
        EkmCode::EF01,
        404,
        format!("drive {serial} is not in the drive table (ekm drive list)"),
    )
}

fn conflict(code: EkmCode, detail: String) -> Problem {
    Problem::new(code, 409, detail)
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
