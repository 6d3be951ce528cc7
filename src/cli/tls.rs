//! `ekm tls`

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use time::format_description::well_known::Rfc3339;

use super::{Context, output};
use crate::tls::ca::{Ca, Entry, Output, Request};
use crate::tls::{PeerId, Role};

/// A day.
const DAY: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, clap::Subcommand)]
pub(super) enum Tls {
    /// Makes the authority: a key, a certificate, an empty revocation list.
    Init {
        #[command(flatten)]
        place: Place,
        /// Its name in the certificate.
        #[arg(long, default_value = "ekm CA")]
        name: String,
        /// How long it lasts, in days; certificates cannot outlast it.
        #[arg(long, default_value_t = 7300)]
        days: u32,
    },
    /// Issues a certificate: who may come in, and as what.
    Issue {
        #[command(flatten)]
        place: Place,
        /// A name; for a drive, its serial of 12 characters.
        name: String,
        /// drive, proxy, operator or server.
        #[arg(long)]
        role: Role,
        /// Host names and addresses of a server; localhost and 127.0.0.1 are always in it.
        #[arg(long = "host", value_name = "NAME|ADDRESS")]
        hosts: Vec<String>,
        /// How long it lasts, in days.
        #[arg(long, default_value_t = 730)]
        days: u32,
        /// Certifies this public key (PEM) and makes no private key: for a drive's own certificate.
        #[arg(long, value_name = "PEM")]
        key: Option<PathBuf>,
        /// Where to write NAME.crt and NAME.key; otherwise issued/ in the authority's directory.
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
    /// Lists what was issued.
    List {
        #[command(flatten)]
        place: Place,
    },
    /// Revokes a certificate; servers take the new list in within seconds.
    Revoke {
        #[command(flatten)]
        place: Place,
        /// Its serial number, role:name, or name.
        which: String,
    },
}

/// Where the authority is.
#[derive(Debug, clap::Args)]
pub(super) struct Place {
    /// The authority's directory; without it tls, and where --config is given, tls beside that file.
    #[arg(long = "ca-dir", value_name = "DIR")]
    directory: Option<PathBuf>,
}

impl Place {
    fn directory(self, context: &Context) -> PathBuf {
        match self.directory {
            Some(directory) => directory,
            None if context.config_named => context.config.with_file_name("tls"),
            None => "tls".into(),
        }
    }
}

impl Tls {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<()> {
        match self {
            Self::Init { place, name, days } => {
                let ca = Ca::init(&place.directory(context), &name, DAY * days)?;
                output::say(&format!(
                    "made {}, good until {}",
                    ca.cert_path().display(),
                    ca.not_after().date()
                ))?;
                output::say("keep its directory to yourself: whoever has ca.key can let anybody in")
            }
            Self::Issue {
                place,
                name,
                role,
                hosts,
                days,
                key,
                out,
            } => {
                let directory = place.directory(context);
                let ca = Ca::open(&directory)?;
                // Serials are upper case everywhere else.
                let name = if role == Role::Drive {
                    name.parse::<crate::drive::DriveSerial>()?.to_string()
                } else {
                    name
                };
                let mut request = Request::new(PeerId::new(role, name)?, DAY * days);
                request.hosts = hosts;
                if let Some(path) = &key {
                    let text = crate::files::read_limited(path, 64 * 1024)
                        .with_context(|| format!("cannot read {}", path.display()))?;
                    let (label, der) = der::pem::decode_vec(&text)
                        .map_err(|error| super::not_pem(path, &text, &error))?;
                    if label != "PUBLIC KEY" {
                        bail!("{} is a {label}; give a PUBLIC KEY", path.display());
                    }
                    request.spki = Some(der);
                }
                let files = out.clone().unwrap_or_else(|| directory.join("issued"));
                if let Some(directory) = out {
                    request.output = Output::Directory(directory);
                }
                let written = files.join(format!("{}-{}.crt", role, request.peer.name()));
                let replaced = serial_of(&written);
                let now = time::OffsetDateTime::now_utc();
                let good = still_good(ca.list()?, &request.peer, now);
                let issued = ca.issue(&request)?;
                if context.json {
                    return output::json(&serde_json::json!({
                        "serial": issued.serial,
                        "peer": request.peer,
                        "not_after": issued.not_after.format(&Rfc3339)?,
                        "certificate": issued.cert_path,
                        "key": issued.key_path,
                        "still_good": good.iter().map(|entry| &entry.serial).collect::<Vec<_>>(),
                    }));
                }
                let path = |path: Option<PathBuf>| {
                    path.map_or_else(|| "-".to_owned(), |path| path.display().to_string())
                };
                output::fields(&[
                    ("peer", request.peer.to_string()),
                    ("serial", issued.serial),
                    ("until", issued.not_after.date().to_string()),
                    ("certificate", path(issued.cert_path)),
                    ("private key", path(issued.key_path)),
                ])?;
                let told = earlier(&good, replaced.as_deref());
                told.iter().try_for_each(|line| output::say(line))
            }
            Self::List { place } => {
                let entries = Ca::open(&place.directory(context))?.list()?;
                if context.json {
                    return output::json(&entries);
                }
                let now = time::OffsetDateTime::now_utc();
                output::table(
                    &["role", "name", "until", "state", "serial"],
                    entries.iter().map(|entry| {
                        let state = match entry.revoked {
                            Some(at) => format!("revoked {}", at.date()),
                            None if entry.not_after < now => "expired".to_owned(),
                            None => "good".to_owned(),
                        };
                        vec![
                            entry.role.to_string(),
                            entry.name.clone(),
                            entry.not_after.date().to_string(),
                            state,
                            entry.serial.clone(),
                        ]
                    }),
                )
            }
            Self::Revoke { place, which } => {
                let revoked = Ca::open(&place.directory(context))?.revoke(&which)?;
                for entry in &revoked {
                    output::say(&format!(
                        "revoked {}:{} ({})",
                        entry.role, entry.name, entry.serial
                    ))?;
                }
                output::say("servers that read this authority's crl.pem take it in within seconds")
            }
        }
    }
}

/// Certificates of that peer that open a door yet.
fn still_good(entries: Vec<Entry>, peer: &PeerId, now: time::OffsetDateTime) -> Vec<Entry> {
    let good = entries.into_iter().filter(|entry| {
        entry.role == peer.role()
            && entry.name == peer.name()
            && entry.revoked.is_none()
            && entry.not_after > now
    });
    good.collect()
}

/// The serial number of the certificate in a file, as the authority lists it.
fn serial_of(file: &Path) -> Option<String> {
    let pem = crate::files::read_limited(file, 64 * 1024).ok()?;
    let (_, der) = der::pem::decode_vec(&pem).ok()?;
    let (_, certificate) = x509_parser::parse_x509_certificate(&der).ok()?;
    let serial = hex::encode(certificate.raw_serial());
    // DER puts a zero before a number whose first bit is set, and none before a small one.
    let serial = serial.strip_prefix("00").unwrap_or(&serial);
    Some(format!("{serial:0>32}"))
}

/// What is said of them, a line each, the newest first; the files of one may have been replaced.
fn earlier(good: &[Entry], replaced: Option<&str>) -> Vec<String> {
    let lines = good.iter().rev().map(|entry| {
        let (serial, until) = (&entry.serial, entry.not_after.date());
        if replaced == Some(serial) {
            format!("replaces {serial}, which stays good until {until}: ekm tls revoke {serial} takes it back")
        } else {
            format!("{serial} of the same name stays good until {until}: ekm tls revoke {serial} takes it back")
        }
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_authority_is_beside_the_configuration_that_was_named() {
        let context = |config_named| Context {
            config: "../b/ekm.toml".into(),
            config_named,
            json: false,
            site: None,
        };
        let place = |directory: Option<&str>| Place {
            directory: directory.map(PathBuf::from),
        };
        let named = place(None).directory(&context(true));
        assert_eq!(named, Path::new("../b/tls"));
        let plain = place(None).directory(&context(false));
        assert_eq!(plain, Path::new("tls"));
        let said = place(Some("ca")).directory(&context(true));
        assert_eq!(said, Path::new("ca"));
    }

    #[test]
    fn a_certificate_that_is_replaced_is_said_to_be_good_yet() {
        let directory = tempfile::tempdir().unwrap();
        let ca = Ca::init(directory.path(), "test CA", DAY * 3).unwrap();
        let now = time::OffsetDateTime::now_utc();
        let peer = PeerId::new(Role::Proxy, "a").unwrap();
        let request = Request::new(peer.clone(), DAY);
        assert!(still_good(ca.list().unwrap(), &peer, now).is_empty());
        let first = ca.issue(&request).unwrap();
        let there = serial_of(first.cert_path.as_ref().unwrap());
        assert_eq!(there.as_ref(), Some(&first.serial));
        let good = still_good(ca.list().unwrap(), &peer, now);
        let told = earlier(&good, there.as_deref());
        assert_eq!(told.len(), 1);
        assert!(
            told[0].starts_with(&format!("replaces {}, which stays good", first.serial)),
            "{told:?}"
        );
        let second = ca.issue(&request).unwrap();
        let good = still_good(ca.list().unwrap(), &peer, now);
        // The files of the first were elsewhere, and are in use there.
        let told = earlier(&good, Some(&second.serial));
        assert!(
            told[0].starts_with(&format!("replaces {}", second.serial)),
            "{told:?}"
        );
        assert!(told[1].starts_with(&first.serial), "{told:?}");
        ca.revoke(&first.serial).unwrap();
        ca.revoke(&second.serial).unwrap();
        assert!(still_good(ca.list().unwrap(), &peer, now).is_empty());
    }
}
