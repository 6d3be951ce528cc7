//! `ekm drive`

mod pending;
mod scan;
mod status;
mod trust;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::Serialize;

use super::{Context, output, runtime, site};
use crate::admin::{Change, Command, DriveChange, DriveSeen, Reply, TokenStatus};
use crate::bridge::message::Custody;
use crate::config::Config;
use crate::drive::{DriveSerial, Wwn};
use crate::key::{KekHash, KekRef, SedkForm};
use crate::server;
use crate::store::{Drive, DriveKey, DriveState};
use crate::tls::PeerId;

/// Longest PEM file of a public key, bytes.
const MAX_PEM: u64 = 64 * 1024;

#[derive(Debug, clap::Subcommand)]
pub(super) enum DriveCommand {
    /// Adds a drive (EKM's adddrive).
    ///
    /// A data key goes only to the public key given here. Compare its
    /// fingerprint with what the drive shows on its own panel or page 0031h:
    /// whoever can put another key here can read the tapes.
    Add {
        /// Its serial: 12 characters; one of 10 gets two leading zeros.
        serial: DriveSerial,
        #[command(flatten)]
        fields: Fields,
    },
    /// Changes a drive (EKM's moddrive); what is not given stays.
    Mod {
        /// Its serial.
        serial: DriveSerial,
        #[command(flatten)]
        fields: Fields,
        /// Takes the first KEK away.
        #[arg(long, conflicts_with = "kek1")]
        no_kek1: bool,
        /// Takes the second KEK away.
        #[arg(long, conflicts_with = "kek2")]
        no_kek2: bool,
        /// A TLS peer that may ask for it no more; may be given more than once.
        #[arg(long = "no-speaker", value_name = "PEER")]
        no_speakers: Vec<PeerId>,
        /// Accepts a drive that waits, once its fingerprint is compared.
        #[arg(long)]
        accept: bool,
    },
    /// Deletes a drive (EKM's deldrive): it gets EF01 from then on.
    Del {
        /// Its serial.
        serial: DriveSerial,
    },
    /// Lists drives that wait for an operator, with what they showed, and drives that showed another key than the one that is trusted.
    ///
    /// A drive that is in no table may leave a row here where the
    /// configuration says accept_unknown_drives = "pending". It gets no key.
    Pending,
    /// Accepts a drive that waits, and pins the key that it showed.
    ///
    /// The fingerprint is what you have read from the drive itself, not what
    /// ekm drive pending shows: where the two differ, somebody else spoke for the
    /// drive, and it is not accepted.
    Accept(pending::Accept),
    /// Rejects a drive that waits; it is not noted again.
    Reject {
        /// Its serial.
        serial: DriveSerial,
    },
    /// Has a token's security officer vouch for the key of drives (CKA_TRUSTED).
    ///
    /// For a token whose profile says data_key.wrap_with_trusted: there a data
    /// key is wrapped only for a drive's key, and under a KEK, that the security
    /// officer has blessed, so someone with the user PIN and ekm's process cannot
    /// wrap it for a key of his own. Each drive costs a login of the officer, and
    /// so does each new KEK: without a serial only the KEKs are blessed. What is
    /// blessed and has left the drive table is taken away.
    ///
    /// The login is made by a process of its own, which serves nobody and ends;
    /// a server that uses the token may go on. Not for drives with a certificate
    /// (--ca): their key is another one in each session.
    Trust(trust::TrustDrives),
    /// Shows what a tape drive of this host says of itself, and what ekm can do with it.
    ///
    /// Who it is, whether a cartridge is in, what encryption it can do and who
    /// may set it, the fingerprint of its wrapping key, what it is set to do,
    /// and what the next block says of its key. It only asks, and moves no tape.
    ///
    /// A drive tells a new cartridge or a reset once, to whoever asks first; if
    /// that is not the tape driver, the next write may land in the wrong place.
    /// So this command opens the drive's tape node (as mt does) and its /dev/sgN
    /// alone while it asks. Where somebody else has one of them open, it asks for
    /// the drive's names only, which takes nothing from anybody.
    Status(status::ShowStatus),
    /// Lists the tape drives of this host; sends them nothing.
    Scan(scan::Scan),
    /// Lists the drive table (EKM's listdrives).
    List {
        /// Only drives that wait for an operator, with what they showed.
        #[arg(long)]
        pending: bool,
    },
    /// Shows one drive.
    Show {
        /// Its serial.
        serial: DriveSerial,
    },
}

/// What a drive's row says.
#[derive(Debug, clap::Args)]
pub(super) struct Fields {
    /// World-wide name, 16 hex digits; form t10-02h binds the key to it.
    #[arg(long)]
    wwn: Option<Wwn>,
    /// First KEK for its new cartridges: LABEL, LABEL:label or LABEL:hash.
    #[arg(long, value_name = "LABEL[:label|:hash]")]
    kek1: Option<KekRef>,
    /// Second KEK for its new cartridges; the site's second default does not count for a drive that has a first one of its own.
    #[arg(long, value_name = "LABEL[:label|:hash]")]
    kek2: Option<KekRef>,
    /// Its public key (PUBLIC KEY or CERTIFICATE PEM), pinned.
    #[arg(long, value_name = "PEM")]
    key: Option<PathBuf>,
    /// Trusts session keys that it signs with a certificate of the drive CA.
    #[arg(long, conflicts_with = "key")]
    ca: bool,
    /// How it takes a data key: t10-02h, rsa-oaep-sha1, or t10-00h (in clear).
    #[arg(long)]
    form: Option<SedkForm>,
    /// token, or host where the token cannot wrap for it.
    #[arg(long)]
    custody: Option<Custody>,
    /// A TLS peer that may ask for it besides itself and those that may already, proxy:NAME; may be given more than once.
    #[arg(long = "speaker", value_name = "PEER")]
    speakers: Vec<PeerId>,
}

impl Fields {
    fn change(self) -> anyhow::Result<DriveChange> {
        let Self {
            wwn,
            kek1,
            kek2,
            key,
            ca,
            form,
            custody,
            speakers,
        } = self;
        let key = match (key, ca) {
            (Some(path), _) => Some(DriveKey::Pinned(public_key(&path)?)),
            (None, true) => Some(DriveKey::Certified),
            (None, false) => None,
        };
        Ok(DriveChange {
            wwn,
            kek1: Change::given(kek1),
            kek2: Change::given(kek2),
            key,
            form,
            custody,
            speakers: (!speakers.is_empty()).then_some(speakers),
            no_speakers: Vec::new(),
            accept: false,
        })
    }
}

/// The SubjectPublicKeyInfo of a PUBLIC KEY or CERTIFICATE PEM file.
fn public_key(path: &Path) -> anyhow::Result<Vec<u8>> {
    let text = crate::files::read_limited(path, MAX_PEM)
        .with_context(|| format!("cannot read {}", path.display()))?;
    let (label, der) =
        der::pem::decode_vec(&text).map_err(|error| super::not_pem(path, &text, &error))?;
    match label {
        "PUBLIC KEY" => Ok(der),
        "CERTIFICATE" => {
            let (_, certificate) = x509_parser::parse_x509_certificate(&der)
                .with_context(|| format!("{} is no certificate", path.display()))?;
            Ok(certificate.public_key().raw.to_vec())
        }
        "PRIVATE KEY" | "RSA PRIVATE KEY" => bail!(
            "{} is a private key; give the drive's public key (openssl pkey -pubout)",
            path.display()
        ),
        other => bail!(
            "{} is a {other}; give a PUBLIC KEY or a CERTIFICATE",
            path.display()
        ),
    }
}

impl DriveCommand {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<()> {
        let (command, only) = match self {
            Self::Add { serial, fields } => (
                Command::DriveAdd {
                    serial,
                    change: Box::new(fields.change()?),
                },
                None,
            ),
            Self::Mod {
                serial,
                fields,
                no_kek1,
                no_kek2,
                no_speakers,
                accept,
            } => {
                let mut change = fields.change()?;
                change.accept = accept;
                change.no_speakers = no_speakers;
                if no_kek1 {
                    change.kek1 = Change::Clear;
                }
                if no_kek2 {
                    change.kek2 = Change::Clear;
                }
                (
                    Command::DriveMod {
                        serial,
                        change: Box::new(change),
                    },
                    None,
                )
            }
            Self::Del { serial } => {
                site::execute(
                    context,
                    Command::DriveDel {
                        serial: serial.clone(),
                    },
                )?;
                return output::say(&format!(
                    "drive {serial} is deleted; it gets EF01 from now on"
                ));
            }
            Self::Trust(trust) => return trust.run(context),
            Self::Status(status) => return status.run(context),
            Self::Scan(scan) => return scan.run(context),
            Self::Pending | Self::List { pending: true } => return pending::list(context),
            Self::Accept(accept) => return accept.run(context),
            Self::Reject { serial } => {
                site::execute(
                    context,
                    Command::DriveReject {
                        serial: serial.clone(),
                    },
                )?;
                return output::say(&format!(
                    "drive {serial} is rejected: it gets EF01, and is not noted again; ekm drive add {serial} would still add it"
                ));
            }
            Self::List { pending: false } => {
                let drives = drives(context, Command::DriveList)?;
                return if context.json {
                    output::json(&drives)
                } else {
                    list(&drives)
                };
            }
            Self::Show { serial } => (Command::DriveList, Some(serial)),
        };
        let first = match &command {
            Command::DriveAdd { change, .. } | Command::DriveMod { change, .. } => {
                matches!(change.kek1, Change::Set(_))
            }
            _ => false,
        };
        let mut drives = drives(context, command)?;
        if first {
            warn_of_one(context, &drives);
        }
        if let Some(serial) = only {
            drives.retain(|drive| drive.serial == serial);
            if drives.is_empty() {
                bail!("drive {serial} is not in the drive table (ekm drive list)");
            }
        }
        let trust = match site::of_server(context, &Command::TokenStatus) {
            Some(Reply::Tokens(tokens)) => Some(tokens),
            Some(_) | None => None,
        };
        if context.json {
            let told: Vec<Shown<'_>> = drives
                .iter()
                .map(|drive| Shown {
                    drive,
                    trusted_on: trust.as_deref().map(|tokens| trusted_on(drive, tokens)),
                })
                .collect();
            return output::json(&told);
        }
        let seen = match site::of_server(context, &Command::DrivePending) {
            Some(Reply::DrivesSeen(seen)) => seen,
            Some(_) | None => Vec::new(),
        };
        drives.iter().try_for_each(|drive| {
            let seen = seen.iter().find(|seen| seen.drive.serial == drive.serial);
            show(drive, trust.as_deref(), seen)
        })
    }
}

fn drives(context: &Context, command: Command) -> anyhow::Result<Vec<Drive>> {
    match site::execute(context, command)? {
        Reply::Drives(drives) => Ok(drives),
        other => site::out_of_turn(&other),
    }
}

/// Warns of drives whose cartridges get one EEDK where the site's defaults would give them two.
fn warn_of_one(context: &Context, drives: &[Drive]) {
    let mut with_one = drives
        .iter()
        .filter(|drive| drive.kek1.is_some() && drive.kek2.is_none())
        .peekable();
    if with_one.peek().is_none() {
        return;
    }
    let asked = Command::KekDefault {
        set: None,
        anyway: false,
    };
    // Told beside what is done already: where it cannot be had, nothing is said.
    let Ok(Reply::Defaults(defaults)) = site::execute(context, asked) else {
        return;
    };
    let Some(second) = defaults.kek2 else {
        return;
    };
    for drive in with_one {
        output::tell(&format!(
            "warning: drive {}: cartridges of this drive get one EEDK; the site's second default {second} does not count for a drive with labels of its own (--kek2 {second})",
            drive.serial
        ));
    }
}

/// The drive table of the server that runs on this machine, where one does. Never works on the
/// state itself: this may be any host with a tape drive.
fn table_of_server(context: &Context) -> Option<Vec<Drive>> {
    let runtime = runtime().ok()?;
    let reply = match &context.site {
        Some(site) => runtime.block_on(site.ask(&Command::DriveList, None)).ok(),
        None => {
            let config = Config::load(&context.config).ok()?;
            let socket = config.socket();
            let asked = server::ask(&socket, &Command::DriveList);
            runtime.block_on(asked).ok()
        }
    };
    match reply? {
        Reply::Drives(drives) => Some(drives),
        _ => None,
    }
}

fn list(drives: &[Drive]) -> anyhow::Result<()> {
    output::table(
        &["serial", "state", "form", "custody", "kek1", "kek2", "key"],
        drives.iter().map(|drive| {
            vec![
                drive.serial.to_string(),
                state(drive).to_owned(),
                drive.form.to_string(),
                drive.custody.to_string(),
                kek(drive, &drive.kek1),
                kek(drive, &drive.kek2),
                fingerprint(&drive.key).chars().take(23).collect(),
            ]
        }),
    )
}

/// A drive as `--json` prints it.
#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    drive: &'a Drive,
    /// The tokens whose security officer has blessed its key; null where no server can say.
    trusted_on: Option<Vec<&'a str>>,
}

/// The tokens whose security officer has blessed the drive's key.
fn trusted_on<'a>(drive: &Drive, tokens: &'a [TokenStatus]) -> Vec<&'a str> {
    let DriveKey::Pinned(spki) = &drive.key else {
        return Vec::new();
    };
    let key = KekHash::of_spki(spki);
    tokens
        .iter()
        .filter(|token| token.trusted.contains(&key))
        .map(|token| token.name.as_str())
        .collect()
}

fn trust_words(drive: &Drive, tokens: Option<&[TokenStatus]>) -> String {
    match (&drive.key, tokens) {
        (DriveKey::Certified | DriveKey::None, _) => "- (it has no key of its own here)".to_owned(),
        (DriveKey::Pinned(_), None) => "not known: no server runs".to_owned(),
        (DriveKey::Pinned(_), Some(tokens)) => {
            let on = trusted_on(drive, tokens);
            if on.is_empty() {
                "on no token".to_owned()
            } else {
                format!("on {}", on.join(", "))
            }
        }
    }
}

fn show(
    drive: &Drive,
    tokens: Option<&[TokenStatus]>,
    seen: Option<&DriveSeen>,
) -> anyhow::Result<()> {
    let speakers: Vec<String> = drive.speakers.iter().map(ToString::to_string).collect();
    let mut fields = vec![
        ("serial", drive.serial.to_string()),
        ("state", state(drive).to_owned()),
        (
            "wwn",
            drive
                .wwn
                .map_or_else(|| "-".to_owned(), |wwn| wwn.to_string()),
        ),
        ("kek1", kek(drive, &drive.kek1)),
        ("kek2", kek(drive, &drive.kek2)),
        ("key", fingerprint(&drive.key)),
        ("trusted", trust_words(drive, tokens)),
        ("form", drive.form.to_string()),
        ("custody", drive.custody.to_string()),
        (
            "speakers",
            if speakers.is_empty() {
                "itself".to_owned()
            } else {
                format!("itself, {}", speakers.join(", "))
            },
        ),
    ];
    fields.extend(seen.map(pending::other).unwrap_or_default());
    output::fields(&fields)
}

const fn state(drive: &Drive) -> &'static str {
    match drive.state {
        DriveState::Active => "active",
        DriveState::Pending => "pending",
    }
}

/// Levels never mix: a drive that names one label has one EEDK.
fn kek(drive: &Drive, kek: &Option<KekRef>) -> String {
    match kek {
        Some(kek) => kek.to_string(),
        None if drive.kek1.is_none() && drive.kek2.is_none() => "(default)".to_owned(),
        None => "-".to_owned(),
    }
}

fn fingerprint(key: &DriveKey) -> String {
    match key {
        DriveKey::Pinned(spki) => format!("sha256:{}", KekHash::of_spki(spki)),
        DriveKey::Certified => "certified".to_owned(),
        DriveKey::None => "none".to_owned(),
    }
}
