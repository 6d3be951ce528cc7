//! A site in a directory: a token, `ekm serve` as a process, drives and their cartridges.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use ekm::admin::{self, DriveChange};
use ekm::api::{Base64, CreateRequest, DriveInRequest, ResolveRequest};
use ekm::bridge::message::Custody;
use ekm::client::KeyClient;
use ekm::config::TokenConfig;
use ekm::drive::DriveSerial;
use ekm::key::SedkForm;
use ekm::server::ask;
use ekm::softdrive::{DriveKind, Init, SoftDrive};
use ekm::store::DriveKey;
use ekm::tls::ca::{Ca, Request};
use rsa::BigUint;
use rsa::pkcs8::EncodePublicKey as _;
use rustix::process::{Pid, Signal, kill_process};
use rustls::ClientConfig;
use tempfile::TempDir;
use uuid::Uuid;

use crate::load::Template;
use crate::token::Token;

/// How long the certificates are good for.
const VALIDITY: Duration = Duration::from_secs(24 * 3600);

/// The peer that speaks for all drives.
const PROXY: &str = "proxy:bench";

/// A site whose server runs.
#[derive(Debug)]
pub(crate) struct Site {
    directory: TempDir,
    ca: Ca,
    child: Child,
    /// Address and port of the drives' door.
    pub(crate) address: String,
}

/// A drive in software, whose public key is in the drive table.
#[derive(Debug)]
pub(crate) struct Drive {
    /// The drive; none where nobody has the private key.
    pub(crate) soft: Option<SoftDrive>,
    serial: DriveSerial,
    spki: Vec<u8>,
}

impl Drive {
    /// `SubjectPublicKeyInfo` of its key, DER.
    pub(crate) fn spki(&self) -> &[u8] {
        &self.spki
    }
}

impl Site {
    /// Starts a server over the token, and waits until it is ready.
    pub(crate) async fn start(ekm: &Path, token: &Token) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let tls = directory.path().join("tls");
        let ca = Ca::init(&tls, "bench", VALIDITY * 2)?;
        ca.issue(&Request::new("server:bench".parse()?, VALIDITY))?;
        configure(&directory.path().join("ekm.toml"), &token.config()?)?;
        let (child, address) = serve(ekm, directory.path())?;
        let site = Self {
            directory,
            ca,
            child,
            address,
        };
        site.ready().await?;
        Ok(site)
    }

    /// Process id of the server.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A file or directory of the site.
    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    async fn execute(&self, command: &admin::Command) -> anyhow::Result<admin::Reply> {
        ask(&self.at("state/ekm.sock"), command)
            .await
            .map_err(|error| anyhow::anyhow!("{error}"))
    }

    async fn ready(&self) -> anyhow::Result<()> {
        let start = Instant::now();
        loop {
            if let admin::Reply::Tokens(tokens) = self.execute(&admin::Command::TokenStatus).await?
                && tokens.iter().all(|token| token.state == "ready")
            {
                return Ok(());
            }
            if start.elapsed() > Duration::from_secs(60) {
                bail!(
                    "the token is not ready; see {}",
                    self.at("serve.log").display()
                );
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Makes a KEK.
    pub(crate) async fn kek(&self, label: &str, bits: u32, custody: Custody) -> anyhow::Result<()> {
        self.execute(&admin::Command::KekGenerate {
            sign: false,
            label: label.parse()?,
            bits,
            token: None,
            custody,
        })
        .await?;
        Ok(())
    }

    /// A drive with both halves of its key, enrolled, its cartridges under that KEK.
    pub(crate) async fn drive(&self, number: u32, kek: &str) -> anyhow::Result<Drive> {
        let serial: DriveSerial = format!("{number:012}").parse()?;
        let soft = SoftDrive::init(
            &self.at(&format!("drive{number}")),
            &Init {
                serial: serial.clone(),
                wwn: wwn(number).parse()?,
                kind: DriveKind::Enterprise,
            },
        )?;
        let drive = Drive {
            serial,
            spki: soft.public_key_spki().to_vec(),
            soft: Some(soft),
        };
        self.enrol(&drive, number, kek).await?;
        Ok(drive)
    }

    /// A drive with a public key that nobody has the private half of: to make
    /// a thousand real ones takes minutes, and the server sees no difference.
    pub(crate) async fn dummy(&self, number: u32, kek: &str) -> anyhow::Result<Drive> {
        let mut modulus = [0_u8; 256];
        aws_lc_rs::rand::fill(&mut modulus).context("no random numbers")?;
        if let (Some(first), _) = (modulus.first_mut(), ()) {
            *first |= 0x80;
        }
        if let Some(last) = modulus.last_mut() {
            *last |= 1;
        }
        let key =
            rsa::RsaPublicKey::new(BigUint::from_bytes_be(&modulus), BigUint::from(65_537_u32))?;
        let drive = Drive {
            serial: format!("{number:012}").parse()?,
            spki: key.to_public_key_der()?.into_vec(),
            soft: None,
        };
        self.enrol(&drive, number, kek).await?;
        Ok(drive)
    }

    async fn enrol(&self, drive: &Drive, number: u32, kek: &str) -> anyhow::Result<()> {
        self.execute(&admin::Command::DriveAdd {
            serial: drive.serial.clone(),
            change: Box::new(DriveChange {
                wwn: Some(wwn(number).parse()?),
                kek1: admin::Change::Set(kek.parse()?),
                kek2: admin::Change::Keep,
                key: Some(DriveKey::Pinned(drive.spki.clone())),
                form: Some(SedkForm::RsaOaepSha1),
                custody: Some(Custody::Token),
                speakers: Some(vec![PROXY.parse()?]),
                no_speakers: Vec::new(),
                accept: false,
            }),
        })
        .await?;
        Ok(())
    }

    /// TLS of the proxy that speaks for all drives.
    pub(crate) fn proxy(&self) -> anyhow::Result<Arc<ClientConfig>> {
        self.tls(PROXY)
    }

    /// TLS of a drive that speaks for itself.
    pub(crate) fn itself(&self, drive: &Drive) -> anyhow::Result<Arc<ClientConfig>> {
        self.tls(&format!("drive:{}", drive.serial))
    }

    fn tls(&self, peer: &str) -> anyhow::Result<Arc<ClientConfig>> {
        let (certificate, key) = self.issued(peer)?;
        let ca = self.ca.cert_path();
        Ok(Arc::new(ekm::tls::client_config(&ca, &certificate, &key)?))
    }

    fn issued(&self, peer: &str) -> anyhow::Result<(PathBuf, PathBuf)> {
        let file = |end: &str| self.at(&format!("tls/issued/{}.{end}", peer.replace(':', "-")));
        if !file("crt").exists() {
            self.ca.issue(&Request::new(peer.parse()?, VALIDITY))?;
        }
        Ok((file("crt"), file("key")))
    }

    /// A create for the drive, to be sent with ever new ids.
    pub(crate) fn create(&self, drive: &Drive) -> anyhow::Result<Template> {
        Template::new(&self.address, "/v1/keys/create", &create(drive)?)
    }

    /// A cartridge of the drive is written, and the resolve of it is given
    /// back. Where the drive has its private key, the answer must open.
    pub(crate) async fn cartridge(
        &self,
        drive: &Drive,
    ) -> anyhow::Result<(Template, ResolveRequest)> {
        let (certificate, key) = self.issued(PROXY)?;
        let mut client = KeyClient::new(&self.address, &self.ca.cert_path(), &certificate, &key)?;
        let answer = client.create(&create(drive)?).await?;
        let resolve = ResolveRequest {
            dki: None,
            request_id: Uuid::new_v4(),
            drive: asking(drive),
            volser: Some("VOL001".parse()?),
            eedks: answer.eedks.into_iter().map(|one| one.eedk).collect(),
            append: false,
        };
        if let Some(soft) = &drive.soft {
            use secrecy::ExposeSecret as _;
            let resolved = client.resolve(&resolve).await?;
            let (made, read) = (
                soft.unwrap_sedk(&answer.sedk)?,
                soft.unwrap_sedk(&resolved.sedk)?,
            );
            if made.expose_secret() != read.expose_secret() {
                bail!("the resolve gave another data key than the create");
            }
        }
        let template = Template::new(&self.address, "/v1/keys/resolve", &resolve)?;
        Ok((template, resolve))
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let _ = self.child.wait();
    }
}

fn wwn(number: u32) -> String {
    format!("50050763{number:08X}")
}

fn asking(drive: &Drive) -> DriveInRequest {
    DriveInRequest {
        serial: drive.serial.clone(),
        public_key: Some(Base64(drive.spki.clone())),
        stores_eedks: true,
        session_key: None,
    }
}

fn create(drive: &Drive) -> anyhow::Result<CreateRequest> {
    Ok(CreateRequest {
        job: None,
        request_id: Uuid::new_v4(),
        drive: asking(drive),
        volser: "VOL001".parse()?,
        kek1: None,
        kek2: None,
    })
}

fn configure(path: &Path, token: &TokenConfig) -> anyhow::Result<()> {
    let doors = r#"node = "bench"
state = "state"
audit = "audit"

[server]
listen = "127.0.0.1:0"
certificate = "tls/issued/server-bench.crt"
key = "tls/issued/server-bench.key"
client_ca = "tls/ca.crt"
crl = "tls/crl.pem"
max_connections = 2048
"#;
    let tokens = toml::to_string(&BTreeMap::from([("tokens", [token])]))?;
    std::fs::write(path, [doors, &tokens].join("\n"))?;
    Ok(())
}

/// Starts the server and waits for its address.
fn serve(ekm: &Path, directory: &Path) -> anyhow::Result<(Child, String)> {
    let mut child = Command::new(ekm)
        .arg("--config")
        .arg(directory.join("ekm.toml"))
        .arg("serve")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(std::fs::File::create(directory.join("serve.log"))?)
        .spawn()
        .with_context(|| format!("cannot run {}", ekm.display()))?;
    let mut line = String::new();
    let out = child.stdout.take().context("no standard output")?;
    BufReader::new(out).read_line(&mut line)?;
    let Some(address) = line.trim().strip_prefix("listening on https://") else {
        let _ = child.wait();
        let log = std::fs::read_to_string(directory.join("serve.log"));
        bail!("the server did not start: {}", log.unwrap_or_default());
    };
    Ok((child, address.to_owned()))
}
