//! The bare loop: the calls of an exchange on one module, with nothing around them.
//!
//! It is a process of its own, because modules take their configuration from
//! the environment. Each line of its standard input is a window to measure,
//! each line of its standard output what it saw.

use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;
use cryptoki_sys as ck;
use ekm::bridge::faults::ckr_name;
use ekm::bridge::pkcs11::{Attr, CallError, Mechanism, Module, User};
use ekm::bridge::profile::HsmProfile;
use rsa::RsaPublicKey;
use rsa::pkcs8::DecodePublicKey as _;
use rsa::traits::PublicKeyParts as _;
use serde::{Deserialize, Serialize};

use crate::process::Cpu;
use crate::sample::Window;

/// Most threads of the loop.
const THREADS: usize = 8;

/// What the loop does once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Exchange {
    /// `C_DecryptInit`, `C_Decrypt`: a data key comes out in clear.
    Decrypt,
    /// `C_UnwrapKey`, `C_WrapKey`, `C_DestroyObject`: a resolve.
    Rewrap,
    /// `C_GenerateKey`, `C_WrapKey` twice, `C_DestroyObject`: a create under
    /// one KEK, not proved.
    Create,
    /// The same with its proof: `C_Encrypt` too, then `C_UnwrapKey`,
    /// `C_Encrypt`, `C_DestroyObject`.
    Proved,
}

#[derive(Debug, Serialize, Deserialize)]
struct Order {
    exchange: Exchange,
    threads: usize,
    millis: u64,
}

/// Arguments of the process.
#[derive(Debug, Args)]
pub(crate) struct Raw {
    module: PathBuf,
    pin: PathBuf,
    /// Label of the KEK that serves in custody `token`.
    kek: String,
    /// Label of the KEK that serves in custody `host`.
    host_kek: String,
    /// The drive's public key, SubjectPublicKeyInfo DER.
    drive: PathBuf,
}

/// The process, seen from outside.
#[derive(Debug)]
pub(crate) struct Loop {
    child: Child,
    orders: ChildStdin,
    seen: BufReader<ChildStdout>,
}

impl Loop {
    /// Starts it on the token of that profile.
    pub(crate) fn start(
        profile: &HsmProfile,
        pin: &Path,
        keks: [&str; 2],
        drive: &Path,
    ) -> anyhow::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("raw")
            .arg(&profile.module.library)
            .arg(pin)
            .args(keks)
            .arg(drive)
            .envs(&profile.module.environment)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let orders = child.stdin.take().context("no standard input")?;
        let seen = child.stdout.take().context("no standard output")?;
        Ok(Self {
            child,
            orders,
            seen: BufReader::new(seen),
        })
    }

    /// Measures one window.
    pub(crate) fn window(
        &mut self,
        exchange: Exchange,
        threads: usize,
        length: Duration,
    ) -> anyhow::Result<Window> {
        let millis = u64::try_from(length.as_millis())?;
        let order = Order {
            exchange,
            threads,
            millis,
        };
        let before = Cpu::of_token(self.child.id());
        writeln!(self.orders, "{}", serde_json::to_string(&order)?)?;
        let mut line = String::new();
        self.seen.read_line(&mut line)?;
        let mut seen: Window = serde_json::from_str(&line)
            .context("the bare loop ended; its standard error says why")?;
        let count = seen.per_s * length.as_secs_f64();
        seen.cpu = Cpu::of_token(self.child.id()).since(before, count);
        Ok(seen)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The calls of one thread: a session, and the handles on it.
struct Hand<'a> {
    module: &'a Module,
    session: ck::CK_SESSION_HANDLE,
    private: ck::CK_OBJECT_HANDLE,
    public: ck::CK_OBJECT_HANDLE,
    host_private: ck::CK_OBJECT_HANDLE,
    drive: ck::CK_OBJECT_HANDLE,
    wrapped: Vec<u8>,
    host_wrapped: Vec<u8>,
}

impl Raw {
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let module = Module::load(&self.module)?;
        module.initialize(None).map_err(told)?;
        let slots = module.slots(true).map_err(told)?;
        let slot = slots
            .into_iter()
            .find(|slot| {
                module
                    .token_info(*slot)
                    .is_ok_and(|info| info.label == "bench")
            })
            .context("no token labelled bench")?;
        let anchor = module.open_session(slot).map_err(told)?;
        let pin = std::fs::read_to_string(&self.pin)?.trim().to_owned();
        module
            .login(anchor, User::User, Some(&pin.into()))
            .map_err(told)?;
        let hands = (0..THREADS)
            .map(|_| self.hand(&module, slot))
            .collect::<anyhow::Result<Vec<_>>>()?;
        for line in std::io::stdin().lock().lines() {
            let order: Order = serde_json::from_str(&line?)?;
            let window = measure(&hands, &order)?;
            println!("{}", serde_json::to_string(&window)?);
        }
        Ok(())
    }

    fn hand<'a>(&self, module: &'a Module, slot: ck::CK_SLOT_ID) -> anyhow::Result<Hand<'a>> {
        let session = module.open_session(slot).map_err(told)?;
        let find = |class, label: &str| {
            let template = [
                Attr::ulong(ck::CKA_CLASS, class),
                Attr::bytes(ck::CKA_LABEL, label),
            ];
            let found = module.find(session, &template).map_err(told)?;
            found
                .first()
                .copied()
                .with_context(|| format!("no object of the KEK {label}"))
        };
        let public = find(ck::CKO_PUBLIC_KEY, &self.kek)?;
        let host_public = find(ck::CKO_PUBLIC_KEY, &self.host_kek)?;
        let mut hand = Hand {
            module,
            session,
            private: find(ck::CKO_PRIVATE_KEY, &self.kek)?,
            public,
            host_private: find(ck::CKO_PRIVATE_KEY, &self.host_kek)?,
            drive: import(module, session, &std::fs::read(&self.drive)?)?,
            wrapped: Vec::new(),
            host_wrapped: Vec::new(),
        };
        let key = hand.generate().map_err(told)?;
        hand.wrapped = hand.wrap(public, key).map_err(told)?;
        hand.host_wrapped = hand.wrap(host_public, key).map_err(told)?;
        module.destroy(session, key).map_err(told)?;
        Ok(hand)
    }
}

impl Hand<'_> {
    fn once(&self, exchange: Exchange) -> Result<(), CallError> {
        let (module, session) = (self.module, self.session);
        match exchange {
            Exchange::Decrypt => module
                .decrypt(session, &oaep(), self.host_private, &self.host_wrapped)
                .map(drop),
            Exchange::Rewrap => {
                let key = self.unwrap(&self.wrapped)?;
                self.wrap(self.drive, key)?;
                module.destroy(session, key)
            }
            Exchange::Create => {
                let key = self.generate()?;
                self.wrap(self.public, key)?;
                self.wrap(self.drive, key)?;
                module.destroy(session, key)
            }
            Exchange::Proved => {
                let key = self.generate()?;
                let wrapped = self.wrap(self.public, key)?;
                self.wrap(self.drive, key)?;
                self.encrypt(key)?;
                module.destroy(session, key)?;
                let again = self.unwrap(&wrapped)?;
                self.encrypt(again)?;
                module.destroy(session, again)
            }
        }
    }

    fn generate(&self) -> Result<ck::CK_OBJECT_HANDLE, CallError> {
        let mut template = data_key();
        template.push(Attr::ulong(ck::CKA_VALUE_LEN, 32));
        let mechanism = Mechanism::Plain(ck::CKM_AES_KEY_GEN);
        self.module
            .generate_key(self.session, &mechanism, &template)
    }

    fn wrap(
        &self,
        under: ck::CK_OBJECT_HANDLE,
        key: ck::CK_OBJECT_HANDLE,
    ) -> Result<Vec<u8>, CallError> {
        self.module.wrap(self.session, &oaep(), under, key)
    }

    fn unwrap(&self, wrapped: &[u8]) -> Result<ck::CK_OBJECT_HANDLE, CallError> {
        self.module
            .unwrap(self.session, &oaep(), self.private, wrapped, &data_key())
    }

    fn encrypt(&self, key: ck::CK_OBJECT_HANDLE) -> Result<[u8; 16], CallError> {
        let mechanism = Mechanism::Plain(ck::CKM_AES_ECB);
        self.module
            .encrypt_block(self.session, &mechanism, key, &[7; 16])
    }
}

/// Runs one thread per hand until the time is over.
fn measure(hands: &[Hand<'_>], order: &Order) -> anyhow::Result<Window> {
    let over = AtomicBool::new(false);
    let start = Instant::now();
    let took = std::thread::scope(|scope| {
        let threads: Vec<_> = hands
            .iter()
            .take(order.threads)
            .map(|hand| {
                let over = &over;
                scope.spawn(move || -> Result<Vec<Duration>, CallError> {
                    let mut took = Vec::new();
                    // Once at least: others are divided by this.
                    loop {
                        let begin = Instant::now();
                        hand.once(order.exchange)?;
                        took.push(begin.elapsed());
                        if over.load(Ordering::Relaxed) {
                            return Ok(took);
                        }
                    }
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(order.millis));
        over.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for thread in threads {
            match thread.join() {
                Ok(took) => all.extend(took.map_err(told)?),
                Err(_) => bail!("a thread of the bare loop ended in a panic"),
            }
        }
        Ok(all)
    })?;
    Ok(Window::of(took, start.elapsed()))
}

fn import(
    module: &Module,
    session: ck::CK_SESSION_HANDLE,
    spki: &[u8],
) -> anyhow::Result<ck::CK_OBJECT_HANDLE> {
    let key = RsaPublicKey::from_public_key_der(spki)?;
    module
        .create_object(
            session,
            &[
                Attr::ulong(ck::CKA_CLASS, ck::CKO_PUBLIC_KEY),
                Attr::ulong(ck::CKA_KEY_TYPE, ck::CKK_RSA),
                Attr::flag(ck::CKA_TOKEN, false),
                Attr::flag(ck::CKA_PRIVATE, false),
                Attr::flag(ck::CKA_WRAP, true),
                Attr::bytes(ck::CKA_MODULUS, key.n().to_bytes_be()),
                Attr::bytes(ck::CKA_PUBLIC_EXPONENT, key.e().to_bytes_be()),
            ],
        )
        .map_err(told)
}

/// The template that the bridge sends for a data key on SoftHSM.
fn data_key() -> Vec<Attr> {
    vec![
        Attr::ulong(ck::CKA_CLASS, ck::CKO_SECRET_KEY),
        Attr::ulong(ck::CKA_KEY_TYPE, ck::CKK_AES),
        Attr::flag(ck::CKA_TOKEN, false),
        Attr::flag(ck::CKA_PRIVATE, true),
        Attr::flag(ck::CKA_ENCRYPT, true),
        Attr::flag(ck::CKA_DECRYPT, false),
        Attr::flag(ck::CKA_WRAP, false),
        Attr::flag(ck::CKA_UNWRAP, false),
        Attr::flag(ck::CKA_SIGN, false),
        Attr::flag(ck::CKA_VERIFY, false),
        Attr::flag(ck::CKA_DERIVE, false),
        Attr::flag(ck::CKA_SENSITIVE, true),
        Attr::flag(ck::CKA_EXTRACTABLE, true),
    ]
}

/// OAEP with SHA-1 and no label, the only one that SoftHSM 2.6.1 does.
fn oaep() -> Mechanism {
    Mechanism::Oaep {
        hash: ck::CKM_SHA_1,
        mgf: ck::CKG_MGF1_SHA1,
        label: Vec::new(),
    }
}

fn told(error: CallError) -> anyhow::Error {
    anyhow::anyhow!("{} answered {}", error.function, ckr_name(error.rv))
}
