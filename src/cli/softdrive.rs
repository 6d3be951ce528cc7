//! `ekm softdrive`

mod door;
mod tape;

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use indicatif::{ProgressBar, ProgressStyle};
use secrecy::{ExposeSecret, SecretBox};
use uuid::Uuid;

use super::{Context, eedk, output, runtime};
use crate::api::{
    Base64, ConfirmRequest, CreateAnswer, CreateRequest, DriveInRequest, RekeyRequest,
    ResolveRequest, SecretBytes, SessionKeyInRequest,
};
use crate::drive::{DriveSerial, Wwn};
use crate::key::{Eedk, KekRef, Sedk};
use crate::proxy::{Served, SessionKeys};
use crate::softdrive::{
    CartridgeFile, DriveKind, Existing, Header, Init, Medium, MediumKey, SealedCartridge,
    SoftDrive, Target, read_header, rewrite_eedks,
};
use crate::t10::{Cdb, OutPage, Sense};
use crate::volser::Volser;
use door::Door;

/// Bytes copied at once.
const CHUNK: usize = 256 * 1024;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Softdrive {
    /// Makes a drive: serial, world-wide name, keys, in a directory.
    Init {
        /// The directory.
        directory: PathBuf,
        /// Its serial, 12 characters.
        #[arg(long)]
        serial: DriveSerial,
        /// Its world-wide name, 16 hex digits.
        #[arg(long)]
        wwn: Wwn,
        /// 3592 (EEDKs on the cartridge), lto, or lto-plain (key format 00h only).
        #[arg(long, default_value = "3592")]
        kind: DriveKind,
        #[command(flatten)]
        door: Door,
    },
    /// Says how the drive reaches its key server.
    Connect {
        /// The drive's directory.
        directory: PathBuf,
        #[command(flatten)]
        door: Door,
    },
    /// Installs the drive's own certificate (ekm tls issue SERIAL --role drive --key PEM).
    Certify {
        /// The drive's directory.
        directory: PathBuf,
        /// The certificate, PEM.
        certificate: PathBuf,
    },
    /// Prints the drive's public keys as PEM, for ekm drive add --key.
    Key {
        /// The drive's directory.
        directory: PathBuf,
        /// Prints the key that a drive certificate is issued for instead.
        #[arg(long)]
        certificate: bool,
    },
    /// Writes standard input to a cartridge under a new data key.
    Write {
        #[command(flatten)]
        at: At,
        /// The cartridge's volume serial, at most 6 characters.
        #[arg(long)]
        volser: Volser,
        /// First KEK; where neither is given the drive table or the defaults decide.
        #[arg(long, value_name = "LABEL[:label|:hash]")]
        kek1: Option<KekRef>,
        /// Second KEK.
        #[arg(long, value_name = "LABEL[:label|:hash]")]
        kek2: Option<KekRef>,
        /// Writes over a cartridge that exists.
        #[arg(long)]
        overwrite: bool,
    },
    /// Reads a cartridge to standard output.
    Read {
        #[command(flatten)]
        at: At,
    },
    /// Puts a cartridge's data key under other KEKs; the data stays as it is.
    Rekey {
        #[command(flatten)]
        at: At,
        /// First new KEK.
        #[arg(long, value_name = "LABEL[:label|:hash]")]
        kek1: KekRef,
        /// Second new KEK.
        #[arg(long, value_name = "LABEL[:label|:hash]")]
        kek2: Option<KekRef>,
    },
    /// Shows what a cartridge says in clear; needs no key and no server.
    Show {
        /// The cartridge file.
        #[arg(long, value_name = "FILE")]
        cartridge: PathBuf,
        /// Writes the EEDKs into this directory, one DER file each.
        #[arg(long, value_name = "DIR")]
        eedks: Option<PathBuf>,
    },
    /// Tapes of the software tape drive, as files.
    #[command(subcommand)]
    Tape(tape::Tape),
}

/// A drive with a cartridge in it.
#[derive(Debug, clap::Args)]
pub(super) struct At {
    /// The drive's directory.
    #[arg(
        long,
        env = "EKM_SOFTDRIVE",
        value_name = "DIR",
        default_value = "drive"
    )]
    drive: PathBuf,
    /// The cartridge file.
    #[arg(long, value_name = "FILE")]
    cartridge: PathBuf,
    /// Takes the key under a session key that the drive signs with its certificate.
    #[arg(long)]
    session: bool,
    #[command(flatten)]
    door: Door,
}

impl Softdrive {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<()> {
        match self {
            Self::Init {
                directory,
                serial,
                wwn,
                kind,
                door,
            } => {
                door.check()?;
                let drive = SoftDrive::init(&directory, &Init { serial, wwn, kind })?;
                door.save(&directory)?;
                output::fields(&[
                    ("drive", drive.serial().to_string()),
                    ("wwn", drive.wwn().to_string()),
                    ("kind", drive.kind().to_string()),
                    ("fingerprint", format!("sha256:{}", drive.fingerprint())),
                ])
            }
            Self::Connect { directory, door } => {
                let drive = SoftDrive::open(&directory)?;
                door.check()?;
                door.save(&directory)?;
                output::say(&format!("drive {} asks {}", drive.serial(), door.noted()))
            }
            Self::Certify {
                directory,
                certificate,
            } => {
                let pem = crate::files::read_limited(&certificate, 64 * 1024)
                    .with_context(|| format!("cannot read {}", certificate.display()))?;
                Ok(SoftDrive::open(&directory)?.install_certificate(&pem)?)
            }
            Self::Key {
                directory,
                certificate,
            } => {
                let drive = SoftDrive::open(&directory)?;
                let spki = if certificate {
                    drive.certificate_spki()?
                } else {
                    drive.public_key_spki().to_vec()
                };
                let pem = der::pem::encode_string("PUBLIC KEY", der::pem::LineEnding::LF, &spki)
                    .map_err(|error| anyhow::anyhow!("cannot write PEM: {error}"))?;
                output::say(pem.trim_end())
            }
            Self::Write {
                at,
                volser,
                kek1,
                kek2,
                overwrite,
            } => write(&at, volser, kek1, kek2, overwrite),
            Self::Read { at } => read(&at),
            Self::Rekey { at, kek1, kek2 } => rekey(&at, kek1, kek2),
            Self::Show { cartridge, eedks } => show(context, &cartridge, eedks.as_deref()),
            Self::Tape(tape) => tape.run(context),
        }
    }
}

/// What the drive shows of its key with a request: the one that it was enrolled by, or none where a
/// session key follows.
fn shown(drive: &SoftDrive, session: bool) -> DriveInRequest {
    let public_key = (!session).then(|| Base64(drive.public_key_spki().to_vec()));
    DriveInRequest {
        serial: drive.serial().clone(),
        stores_eedks: drive.kind().max_eedks() > 0,
        public_key,
        session_key: None,
    }
}

/// The drive as whoever signs session keys.
struct Signs<'a>(&'a mut SoftDrive);

impl SessionKeys for Signs<'_> {
    fn sign(&mut self, challenge: &[u8]) -> Result<SessionKeyInRequest, String> {
        let key = self
            .0
            .session_key(challenge)
            .map_err(|error| error.to_string())?;
        Ok(SessionKeyInRequest {
            public_key: Base64(key.spki),
            signature: Base64(key.signature),
            certificate: Base64(key.certificate),
            challenge: Base64(challenge.to_vec()),
        })
    }
}

/// The data key in the drive: by the SPOUT page where there is one, as a host
/// would set it, else by the SEDK alone.
fn take_key(
    drive: SoftDrive,
    medium: Medium,
    sedk: &Sedk,
    spout: Option<&SecretBytes>,
) -> anyhow::Result<SecretBox<[u8; 32]>> {
    let Some(SecretBytes(page)) = spout else {
        return Ok(drive.unwrap_sedk(sedk)?);
    };
    let page = page.expose_secret();
    let look = format!(
        "see whether ekm drive show {} has this drive's WWN {} and wrapping key sha256:{}",
        drive.serial(),
        drive.wwn(),
        drive.fingerprint()
    );
    let mut target = Target::new(drive);
    target.load(medium);
    let cdb = Cdb::write(OutPage::SetDataEncryption, u32::try_from(page.len())?);
    target
        .spout(&cdb.encode(), page)
        .map_err(|sense| refused(sense, &look))?;
    let key = target
        .data_key()
        .context("the drive took the page and has no key")?;
    Ok(SecretBox::init_with(|| *key.expose_secret()))
}

/// That the drive did not take the key; where it cannot unwrap it, what to look at.
fn refused(sense: Sense, look: &str) -> anyhow::Error {
    if sense == Sense::UNABLE_TO_DECRYPT_PARAMETER_LIST {
        anyhow::anyhow!("the drive refused the key: {sense}; {look}")
    } else {
        anyhow::anyhow!("the drive refused the key: {sense}")
    }
}

fn write(
    at: &At,
    volser: Volser,
    kek1: Option<KekRef>,
    kek2: Option<KekRef>,
    overwrite: bool,
) -> anyhow::Result<()> {
    let existing = if overwrite {
        Existing::Replace
    } else {
        Existing::Refuse
    };
    if !overwrite && at.cartridge.exists() {
        bail!(
            "{} exists; --overwrite writes over it, and what is on it is lost",
            at.cartridge.display()
        );
    }
    let runtime = runtime()?;
    let mut drive = SoftDrive::open(&at.drive)?;
    let serial = drive.serial().clone();
    let request = CreateRequest {
        job: None,
        request_id: Uuid::now_v7(),
        drive: shown(&drive, at.session),
        volser: volser.clone(),
        kek1,
        kek2,
    };
    let keys = runtime.block_on(at.door.keys(&at.drive))?;
    let Served { answer, by } = runtime.block_on(async {
        let mut signs = Signs(&mut drive);
        keys.create(&request, at.session.then_some(&mut signs))
            .await
    })?;
    let written = put_on_tape(at, drive, volser, existing, &answer);
    let confirm = ConfirmRequest {
        request_id: request.request_id,
        serial,
        dki: answer.dki,
        stored: written.is_ok(),
    };
    let confirmed = runtime.block_on(keys.confirm(&by, &confirm));
    let bytes = written?;
    confirmed.context("the cartridge is written; only telling the key server so failed")?;
    eprintln_fields(&[
        (
            "wrote",
            format!("{bytes} bytes to {}", at.cartridge.display()),
        ),
        ("data key", answer.dki.to_string()),
    ])
}

/// Takes the key and writes standard input; the bytes written.
fn put_on_tape(
    at: &At,
    drive: SoftDrive,
    volser: Volser,
    existing: Existing,
    answer: &CreateAnswer,
) -> anyhow::Result<u64> {
    let eedks = decode(answer.eedks.iter().map(|eedk| eedk.eedk.0.as_slice()))?;
    let key = take_key(drive, Medium::Blank, &answer.sedk, answer.spout.as_ref())?;
    let header = Header::new(volser, answer.dki, eedks)?;
    let mut cartridge = CartridgeFile::create(&at.cartridge, existing, &header, &key)?;
    let total = std::fs::metadata("/dev/stdin")
        .ok()
        .filter(std::fs::Metadata::is_file)
        .map(|meta| meta.len());
    let bytes = copy(&mut io::stdin().lock(), &mut cartridge, total, "writing")?;
    cartridge.commit()?;
    Ok(bytes)
}

fn read(at: &At) -> anyhow::Result<()> {
    let sealed = SealedCartridge::open(&at.cartridge)
        .map_err(io::Error::from)
        .with_context(|| format!("cannot read the cartridge {}", at.cartridge.display()))?;
    let header = sealed.header().clone();
    let runtime = runtime()?;
    let mut drive = SoftDrive::open(&at.drive)?;
    let request = ResolveRequest {
        dki: None,
        request_id: Uuid::now_v7(),
        drive: shown(&drive, at.session),
        volser: Some(header.volser().clone()),
        eedks: header
            .eedks()
            .iter()
            .map(|eedk| Base64(eedk.encode()))
            .collect(),
        append: false,
    };
    let keys = runtime.block_on(at.door.keys(&at.drive))?;
    let serial = drive.serial().clone();
    let Served { answer, by } = runtime.block_on(async {
        let mut signs = Signs(&mut drive);
        keys.resolve(&request, at.session.then_some(&mut signs))
            .await
    })?;
    let medium = Medium::Encrypted(MediumKey {
        dki: header.dki(),
        eedks: header.eedks().to_vec(),
    });
    let key = take_key(drive, medium, &answer.sedk, answer.spout.as_ref())?;
    let mut plain = sealed.unlock(&key)?;
    let total = std::fs::metadata(&at.cartridge).map(|meta| meta.len()).ok();
    copy(&mut plain, &mut io::stdout().lock(), total, "reading")?;
    let Some(newer) = &answer.newer else {
        return Ok(());
    };
    let eedks = decode(newer.eedks.iter().map(|eedk| eedk.eedk.0.as_slice()))?;
    rewrite_eedks(&at.cartridge, eedks)?;
    let confirm = ConfirmRequest {
        request_id: newer.request_id,
        serial,
        dki: answer.dki,
        stored: true,
    };
    runtime
        .block_on(keys.confirm(&by, &confirm))
        .context("the cartridge was read and has the EEDKs of a rekey; only telling the key server so failed")?;
    eprintln_fields(&[("rekeyed", at.cartridge.display().to_string())])
}

fn rekey(at: &At, kek1: KekRef, kek2: Option<KekRef>) -> anyhow::Result<()> {
    let header = read_header(&at.cartridge)
        .map_err(io::Error::from)
        .with_context(|| format!("cannot read the cartridge {}", at.cartridge.display()))?;
    let runtime = runtime()?;
    let drive = SoftDrive::open(&at.drive)?;
    let keys = runtime.block_on(at.door.keys(&at.drive))?;
    let request = RekeyRequest {
        request_id: Uuid::now_v7(),
        serial: drive.serial().clone(),
        volser: header.volser().clone(),
        eedks: header
            .eedks()
            .iter()
            .map(|eedk| Base64(eedk.encode()))
            .collect(),
        kek1,
        kek2,
    };
    let Served { answer, by } = runtime.block_on(keys.rekey(&request))?;
    let eedks = decode(answer.eedks.iter().map(|eedk| eedk.eedk.0.as_slice()))?;
    rewrite_eedks(&at.cartridge, eedks)?;
    let confirm = ConfirmRequest {
        request_id: request.request_id,
        serial: request.serial,
        dki: answer.dki,
        stored: true,
    };
    runtime
        .block_on(keys.confirm(&by, &confirm))
        .context("the cartridge is rekeyed; only telling the key server so failed")?;
    eprintln_fields(&[
        ("rekeyed", at.cartridge.display().to_string()),
        ("data key", answer.dki.to_string()),
    ])
}

fn show(context: &Context, cartridge: &Path, eedks: Option<&Path>) -> anyhow::Result<()> {
    let header = read_header(cartridge)
        .map_err(io::Error::from)
        .with_context(|| format!("cannot read the cartridge {}", cartridge.display()))?;
    if let Some(directory) = eedks {
        std::fs::create_dir_all(directory)?;
        for (index, eedk) in header.eedks().iter().enumerate() {
            let path = directory.join(format!("{}-{}.der", header.volser(), index + 1));
            std::fs::write(&path, eedk.as_der())
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
    }
    if context.json {
        return output::json(&serde_json::json!({
            "volser": header.volser(),
            "dki": header.dki(),
            "eedks": header.eedks(),
        }));
    }
    output::fields(&[
        ("volser", header.volser().to_string()),
        ("data key", header.dki().to_string()),
        (
            "file",
            format!("{} bytes", std::fs::metadata(cartridge)?.len()),
        ),
    ])?;
    for (index, one) in header.eedks().iter().enumerate() {
        output::say(&format!("EEDK {}", index + 1))?;
        eedk::show(one)?;
    }
    Ok(())
}

fn decode<'a>(ders: impl Iterator<Item = &'a [u8]>) -> anyhow::Result<Vec<Eedk>> {
    ders.map(|der| Eedk::decode(der).context("the key server sent something that is no EEDK"))
        .collect()
}

/// Copies in constant memory, with a bar on a terminal.
fn copy(
    from: &mut impl Read,
    to: &mut impl Write,
    total: Option<u64>,
    verb: &str,
) -> anyhow::Result<u64> {
    let bar = total.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
    let style = ProgressStyle::with_template("{msg} {bar:30} {bytes} {bytes_per_sec} {eta}");
    if let Ok(style) = style {
        bar.set_style(style);
    }
    bar.set_message(verb.to_owned());
    let mut buffer = vec![0_u8; CHUNK];
    let mut copied = 0;
    loop {
        let got = from.read(&mut buffer)?;
        let Some(chunk) = buffer.get(..got).filter(|chunk| !chunk.is_empty()) else {
            break;
        };
        to.write_all(chunk)?;
        copied += u64::try_from(got)?;
        bar.set_position(copied);
    }
    to.flush()?;
    bar.finish_and_clear();
    Ok(copied)
}

/// Standard output is for data.
fn eprintln_fields(pairs: &[(&str, String)]) -> anyhow::Result<()> {
    let mut out = io::stderr().lock();
    for (name, value) in pairs {
        writeln!(out, "{name:9} {value}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_the_drive_cannot_unwrap_has_a_next_step() {
        let unwrap = refused(Sense::UNABLE_TO_DECRYPT_PARAMETER_LIST, "look there");
        assert!(
            unwrap.to_string().ends_with("(05/74/0C); look there"),
            "{unwrap}"
        );
        let other = refused(Sense::MEDIUM_NOT_PRESENT, "look there").to_string();
        assert!(!other.contains("look there"), "{other}");
    }
}
