//! A software keystore behind the same messages as a token: the RSA private
//! keys of a key file, in the memory of a bridge process of its own.
//!
//! It exists for sites that come from such a keystore and must go on reading.
//! Every data key that it opens is in that memory for an instant, so all its
//! KEKs are of custody `host`. There is no PIN counter and so no ledger: a
//! password that is wrong is tried again as soon as a file has changed.

mod keys;

use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use aws_lc_rs::rand;
use secrecy::{ExposeSecret, SecretSlice};
use subtle::ConstantTimeEq;

use super::certify::{Certified, Certify};
use super::evidence::{Evidence, Evidenced};
use super::faults::Fault;
use super::in_host::{self, DATA_KEY, InHost};
use super::inbox::Inbox;
use super::message::{self, Custody, Op, Ready, Recipient, Reply, Request, Response, WrapUnder};
use super::pin::PinSource;
use super::pkcs11::TokenInfo;
use super::profile::HsmProfile;
use super::stats::Stats;
use crate::key::{DataKeyId, Eedk, KekHash, OaepHash, WrapAlgorithm};
use keys::{Keys, Version};

/// How often the server is told that the bridge is there.
const REPORT: Duration = Duration::from_secs(5);

/// The hash of its canary, which never leaves it.
const CANARY: OaepHash = OaepHash::Sha256;

/// Where a software keystore is, and what opens it.
#[derive(Clone, Debug)]
pub(super) struct Sources {
    /// The key file.
    pub(super) file: PathBuf,
    /// Where its password comes from.
    pub(super) password: PinSource,
    /// Where the password of its keys comes from, if that is another one.
    pub(super) key_password: Option<PinSource>,
}

/// An open software keystore.
#[derive(Debug)]
pub(super) struct Software {
    name: String,
    profile: HsmProfile,
    sources: Sources,
    keys: RwLock<Arc<Keys>>,
    // The files whose reading failed last, so that it is told once, and why it failed.
    failed: Mutex<Option<(Version, String)>>,
    busy: AtomicUsize,
}

impl Software {
    /// Opens the key file.
    ///
    /// # Errors
    /// [`Fault::Down`]: a file or a password may be put right at any moment.
    pub(super) fn open(
        name: String,
        profile: HsmProfile,
        sources: Sources,
    ) -> Result<Arc<Self>, Fault> {
        let version = Version::of(&sources);
        let keys = Keys::read(&name, &sources, version).map_err(|reason| Fault::Down {
            token: name.clone(),
            reason,
        })?;
        Ok(Arc::new(Self {
            name,
            profile,
            sources,
            keys: RwLock::new(Arc::new(keys)),
            failed: Mutex::new(None),
            busy: AtomicUsize::new(0),
        }))
    }

    /// What the server is told of it.
    pub(super) fn ready(&self) -> Ready {
        let file = self.sources.file.file_name().unwrap_or_default();
        let keys = self.keys();
        Ready {
            token: TokenInfo {
                label: file.to_string_lossy().into_owned(),
                manufacturer: "ekm".to_owned(),
                model: format!("{} file", keys.format),
                ..TokenInfo::default()
            },
            keks: keys.keks.clone(),
            trusted: Vec::new(),
            probe: None,
            sessions: self.profile.session.workers,
            trouble: self.failed().as_ref().map(|(_, reason)| {
                format!(
                    "its file has changed and cannot be read: {reason}; the keys read before go on serving until the server stops: restore the file"
                )
            }),
        }
    }

    /// Answers requests until the socket closes.
    ///
    /// # Errors
    /// The operating system's.
    pub(super) fn serve(self: &Arc<Self>, socket: &UnixStream) -> io::Result<()> {
        let inbox = Arc::new(Inbox::new(socket.try_clone()?)?);
        let outbox = Arc::new(Mutex::new(socket.try_clone()?));
        let mut threads = Vec::new();
        for index in 0..self.profile.session.workers {
            let (own, inbox, outbox) = (Arc::clone(self), Arc::clone(&inbox), Arc::clone(&outbox));
            threads.push(
                std::thread::Builder::new()
                    .name(format!("session {index}"))
                    .spawn(move || own.work(&inbox, &outbox))?,
            );
        }
        // Whoever cannot write any more has lost the server, and so have all.
        while self.report(&outbox).is_ok() && !threads.iter().any(|thread| thread.is_finished()) {
            std::thread::sleep(REPORT);
        }
        Ok(())
    }

    fn report(&self, outbox: &Mutex<UnixStream>) -> io::Result<()> {
        let stats = Stats {
            busy: self.busy.load(Ordering::Relaxed),
            ..Stats::default()
        };
        send(outbox, 0, Ok(Reply::Stats(stats)))
    }

    fn work(&self, inbox: &Inbox, outbox: &Mutex<UnixStream>) {
        while let Ok(Request { id, op, until_ms }) = inbox.next() {
            self.busy.fetch_add(1, Ordering::Relaxed);
            let result = if message::now_ms() < until_ms {
                self.run(&op)
            } else {
                Err(Fault::Deadline {
                    token: self.name.clone(),
                    seconds: self.profile.session.deadline_seconds,
                })
            };
            super::host::scrub_stack();
            self.busy.fetch_sub(1, Ordering::Relaxed);
            if send(outbox, id, result).is_err() {
                return;
            }
        }
    }

    fn run(&self, op: &Op) -> Result<Reply, Fault> {
        match op {
            Op::Create {
                dki,
                keks,
                drive,
                custody,
                block,
            } => self.create(*dki, keks, drive, *custody, block),
            Op::Resolve {
                eedk,
                kek,
                drive,
                custody,
                guard: _,
            } => {
                let key = self.opened(eedk, kek, *custody)?;
                Ok(Reply::Resolved {
                    sedk: self.in_host(&key).sedk(drive)?,
                    custody: Custody::Host,
                    guarded: None,
                })
            }
            Op::Rekey {
                eedk,
                kek,
                keks,
                custody,
                block,
            } => {
                let key = self.opened(eedk, kek, *custody)?;
                let made = self.in_host(&key);
                Ok(Reply::Rekeyed {
                    eedks: made.eedks(eedk.dki(), keks, self.profile.wrap_algorithm())?,
                    proof: made.block(block)?,
                    custody: Custody::Host,
                })
            }
            Op::Prove {
                eedk,
                kek,
                custody,
                block,
            } => {
                let key = self.opened(eedk, kek, *custody)?;
                Ok(Reply::Proved {
                    proof: self.in_host(&key).block(block)?,
                    custody: Custody::Host,
                })
            }
            Op::Canary => self.sing(),
            Op::Look => {
                self.look_again();
                Ok(Reply::Ready(self.ready()))
            }
            Op::Certify(what) => self.certify(what).map(Reply::Certified),
            Op::Evidence(what) => Ok(Reply::Evidenced(evidence(what))),
            // Nobody blesses a key here.
            Op::Distrust { .. } => Ok(Reply::Ready(self.ready())),
            Op::Destroy { kek } => Err(self.unsupported(format!(
                "the KEK {kek} is in a key file, which ekm only reads; remove the file, or take [[keystores]] out of the configuration"
            ))),
            Op::Generate { label, .. } => Err(self.unsupported(format!(
                "KEK {label} cannot be made in a software keystore; make it in a token (ekm kek generate --token NAME)"
            ))),
        }
    }

    /// Key files are only read, and what is in one is no place for a seal.
    fn certify(&self, what: &Certify) -> Result<Certified, Fault> {
        match what {
            Certify::Request { .. } | Certify::Possess { .. } => Err(self.unsupported(
                "a key in a file is certified by the tools that made the file (keytool, openssl); ekm reads key files only".to_owned(),
            )),
            Certify::Store { .. } => Ok(Certified::NotTaken("ekm does not write key files".to_owned())),
            Certify::Seal { .. } => Ok(Certified::NotTaken("a software keystore seals nothing".to_owned())),
            Certify::Reseal { .. } => Ok(Certified::Resealed(None)),
            Certify::Unseal { .. } => Ok(Certified::Unsealed(false)),
        }
    }

    fn create(
        &self,
        dki: DataKeyId,
        keks: &[WrapUnder],
        drive: &Recipient,
        custody: Custody,
        block: &[u8; 16],
    ) -> Result<Reply, Fault> {
        self.agreed(custody, "it makes data keys in its own memory")?;
        let mut key = zeroize::Zeroizing::new(vec![0; DATA_KEY]);
        rand::fill(&mut key)
            .map_err(|_| self.unsupported("the system gives no random numbers".to_owned()))?;
        let key = SecretSlice::from(std::mem::take(&mut *key));
        let made = self.in_host(&key);
        Ok(Reply::Created {
            eedks: made.eedks(dki, keks, self.profile.wrap_algorithm())?,
            sedk: made.sedk(drive)?,
            proof: made.block(block)?,
            custody: Custody::Host,
        })
    }

    /// The data key in an EEDK.
    fn opened(
        &self,
        eedk: &Eedk,
        kek: &KekHash,
        custody: Custody,
    ) -> Result<SecretSlice<u8>, Fault> {
        let keys = self.keys();
        let private = keys.private(kek).ok_or_else(|| Fault::NoKek {
            token: Some(self.name.clone()),
            kek: kek.to_string(),
        })?;
        self.agreed(custody, &format!("KEK {kek} is in its memory"))?;
        // The library tells a wrong v1.5 padding by an error, and how long it takes.
        let WrapAlgorithm::Oaep { hash, .. } = eedk.wrap() else {
            return Err(self.unsupported(format!(
                "KEK {kek}: the EEDK is wrapped by {}, which a software keystore does not open",
                eedk.wrap()
            )));
        };
        let opened = private
            .open(hash, eedk.oaep_label(), eedk.wrapped())
            .ok_or_else(|| Fault::BadEedk {
                token: self.name.clone(),
                kek: kek.to_string(),
                function: "RSAES-OAEP decryption".to_owned(),
                name: "an error".to_owned(),
            })?;
        in_host::checked(&self.name, &kek.to_string(), opened)
    }

    fn agreed(&self, custody: Custody, why: &str) -> Result<(), Fault> {
        if custody == Custody::Host {
            return Ok(());
        }
        Err(self.unsupported(format!(
            "a software keystore: {why}, so a data key would be there in clear; enrol the drive for that (ekm drive mod SERIAL --custody host), or move the KEK into a token (ekm kek import)"
        )))
    }

    /// That the first key opens what is wrapped under it.
    fn sing(&self) -> Result<Reply, Fault> {
        let keys = self.keys();
        let Some((kek, private)) = keys.first() else {
            return Ok(Reply::Canary(false));
        };
        let known = SecretSlice::from(vec![0x55; DATA_KEY]);
        let wrapped = super::host::oaep_wrap(&kek.spki, CANARY, &[], &known)
            .map_err(|error| in_host::fault(&self.name, error, "the canary"))?;
        private
            .open(CANARY, &[], &wrapped)
            .filter(|opened| opened.expose_secret().ct_eq(known.expose_secret()).into())
            .map(|_| Reply::Canary(true))
            .ok_or_else(|| self.unsupported(format!("KEK {} opens nothing", kek.label)))
    }

    /// Reads the file again where it, or a password's file, has changed. Where
    /// that fails the keys that are known go on serving: whoever replaces a
    /// keystore does not do it in one moment.
    fn look_again(&self) {
        let version = Version::of(&self.sources);
        if self.keys().version == version {
            *self.failed() = None;
            return;
        }
        let begun = Instant::now();
        match Keys::read(&self.name, &self.sources, version.clone()) {
            Ok(keys) => {
                tracing::info!(
                    token = self.name,
                    file = %self.sources.file.display(),
                    keks = keys.keks.len(),
                    took_ms = begun.elapsed().as_millis(),
                    "the key file was read again"
                );
                *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
                *self.failed() = None;
            }
            Err(reason) => {
                let mut failed = self.failed();
                if failed.as_ref().map(|(version, _)| version) != Some(&version) {
                    tracing::error!(
                        token = self.name,
                        reason,
                        "the key file has changed and cannot be read; the keys read before go on serving until the server stops"
                    );
                }
                *failed = Some((version, reason));
            }
        }
    }

    fn failed(&self) -> MutexGuard<'_, Option<(Version, String)>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keys(&self) -> Arc<Keys> {
        Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn in_host<'a>(&'a self, key: &'a SecretSlice<u8>) -> InHost<'a> {
        InHost {
            token: &self.name,
            key,
        }
    }

    fn unsupported(&self, reason: String) -> Fault {
        Fault::Unsupported {
            token: self.name.clone(),
            reason,
        }
    }
}

fn send(outbox: &Mutex<UnixStream>, id: u64, result: Result<Reply, Fault>) -> io::Result<()> {
    message::write(
        &mut *outbox.lock().unwrap_or_else(PoisonError::into_inner),
        &Response { id, result },
    )
}
/// A key that seals belongs into a token.
fn evidence(what: &Evidence) -> Evidenced {
    match what {
        Evidence::Sign { .. } => Evidenced::Signed(None),
        Evidence::Anchors => Evidenced::Anchors(Vec::new()),
        Evidence::MakeKey { .. } | Evidence::Anchor { .. } => {
            Evidenced::NotTaken("a software keystore seals nothing".to_owned())
        }
    }
}
