//! A job's way through a software drive, with a key server of the test's own that can fail.

mod cartridges;
mod drives;
mod jobs;
mod meddled;
mod renewed;
mod ways;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use secrecy::SecretBox;
use tempfile::TempDir;

use super::*;
use crate::api::{
    Base64, ConfirmAnswer, ConfirmRequest, CreateAnswer, CreateRequest, EedkInAnswer, NewerEedks,
    ResolveAnswer, ResolveRequest, SecretBytes,
};
use crate::key::{DataKeyId, Eedk, Encoding, KekId, OaepHash, Sedk, SedkForm, WrapAlgorithm};
use crate::problem::{EkmCode, Problem};
use crate::proxy::{Dd, HostConfig};
use crate::scsi::{Completion, Data, Transport};
use crate::softdrive::{DriveKind, Init, SoftDrive, TapeContents, TapeDrive, TapePort, new_tape};
use crate::store::EedkState;
use crate::t10::{AlgorithmIndex, Kad, KadType, Kads, KeyField, SetDataEncryption};

const SERIAL: &str = "001013000123";
const SECOND: Duration = Duration::from_secs(1);

/// Data classes that encrypt and that do not.
const HOST: &str = r#"
[[data_classes]]
name = "SECURE"
format = "EEFMT4"

[[data_classes]]
name = "PLAIN"
format = "EFMT4"
"#;

/// A key server that keeps its data keys in memory and does what a test tells it.
#[derive(Debug, Default)]
struct Server {
    keys: BTreeMap<DataKeyId, ([u8; 32], Vec<Eedk>)>,
    confirmed: Vec<(DataKeyId, bool)>,
    /// The last resolve.
    resolved: Option<ResolveRequest>,
    /// EEDKs of a create.
    eedks: u8,
    /// Bytes of an EEDK's wrapped key.
    wrapped: usize,
    down: bool,
    confirm_fails: bool,
    /// Gives a data key under the name of another.
    gives_wrong_key: bool,
    foreign: bool,
    /// The job's client goes while a create is answered, and has gone.
    client_goes: bool,
    client_gone: bool,
    /// EEDKs of a rekey that the cartridge has not got.
    newer: Option<NewerEedks>,
    /// Changes the list of an answer.
    tamper: Option<fn(&mut Vec<u8>)>,
}

/// The server, as a job and its test hold it.
#[derive(Clone, Debug)]
struct TestKeys(Arc<Mutex<Server>>);

impl TestKeys {
    fn server(&self) -> std::sync::MutexGuard<'_, Server> {
        self.0.lock().unwrap()
    }
}

fn list(key: [u8; 32], dki: DataKeyId, kept: &[Eedk], server: &Server) -> SecretBytes {
    use secrecy::ExposeSecret as _;
    let mut kads = vec![Kad::new(KadType::Authenticated, dki.as_bytes().to_vec()).unwrap()];
    for eedk in kept {
        kads.push(Kad::new(KadType::WrappedKey, eedk.encode()).unwrap());
    }
    let field = KeyField::Plain(SecretBox::new(Box::new(key)));
    let page = SetDataEncryption::encrypt(AlgorithmIndex(1), field, Kads::new(kads).unwrap());
    let mut bytes = page.encode().expose_secret().to_vec();
    if let Some(tamper) = server.tamper {
        tamper(&mut bytes);
    }
    SecretBytes(bytes.into())
}

fn in_answer(eedks: &[Eedk]) -> Vec<EedkInAnswer> {
    let each = eedks.iter().map(|eedk| EedkInAnswer {
        label: Some("TEST".parse().unwrap()),
        encoding: Encoding::Label,
        eedk: Base64(eedk.encode()),
    });
    each.collect()
}

fn eedk(dki: DataKeyId, number: u8, wrapped: usize) -> Eedk {
    let wrap = WrapAlgorithm::oaep(OaepHash::Sha256, false);
    let kek = KekId::Label("TEST".parse().unwrap());
    let mut bytes = vec![number; wrapped];
    bytes[..12].copy_from_slice(dki.as_bytes());
    Eedk::new(dki, kek, wrap, bytes).unwrap()
}

fn sedk(key: [u8; 32]) -> Sedk {
    Sedk::new(SedkForm::T10Plain, key.to_vec().into()).unwrap()
}

impl Keys for TestKeys {
    fn create(&mut self, request: &CreateRequest) -> Result<CreateAnswer, KeysError> {
        let mut server = self.server();
        if server.down {
            return Err(KeysError::Unreachable("all of them are down".to_owned()));
        }
        server.client_gone = server.client_goes;
        let id = *request.request_id.as_bytes();
        let dki = DataKeyId::from_random(id[..9].try_into().unwrap());
        let (count, wrapped) = (server.eedks, server.wrapped);
        let (key, eedks) = server
            .keys
            .entry(dki)
            .or_insert_with(|| {
                let mut key = [7; 32];
                key[..16].copy_from_slice(&id);
                (
                    key,
                    (0..count).map(|one| eedk(dki, one + 1, wrapped)).collect(),
                )
            })
            .clone();
        let kept: &[Eedk] = if request.drive.stores_eedks {
            &eedks
        } else {
            &[]
        };
        Ok(CreateAnswer {
            request_id: request.request_id,
            dki,
            eedks: in_answer(&eedks),
            sedk: sedk(key),
            spout: Some(list(key, dki, kept, &server)),
        })
    }

    fn resolve(&mut self, request: &ResolveRequest) -> Result<ResolveAnswer, KeysError> {
        let mut server = self.server();
        server.resolved = Some(request.clone());
        if server.down {
            return Err(KeysError::Unreachable("all of them are down".to_owned()));
        }
        let shown = request
            .eedks
            .iter()
            .map(|eedk| Eedk::decode(&eedk.0).unwrap());
        let shown: Vec<Eedk> = shown.collect();
        let opened = shown.iter().position(|shown| {
            let known = server.keys.get(&shown.dki());
            known.is_some_and(|(_, eedks)| eedks.contains(shown))
        });
        let dki = opened.map(|at| shown[at].dki()).or(request.dki);
        let known = dki.and_then(|dki| Some((dki, server.keys.get(&dki)?.clone())));
        let Some((dki, (mut key, eedks))) = known else {
            let problem = Problem::new(EkmCode::EE32, 422, "its key is unknown here");
            return Err(KeysError::Refused(Box::new(problem)));
        };
        if server.gives_wrong_key {
            key[31] ^= 1;
        }
        Ok(ResolveAnswer {
            request_id: request.request_id,
            dki,
            eedks: in_answer(&eedks),
            catalog: Vec::new(),
            newer: server.newer.clone(),
            opened: opened.unwrap_or(shown.len()),
            issued_here: !server.foreign,
            sedk: sedk(key),
            spout: Some(list(key, dki, &[], &server)),
        })
    }

    fn confirm(&mut self, request: &ConfirmRequest) -> Result<ConfirmAnswer, KeysError> {
        let mut server = self.server();
        if server.down || (server.confirm_fails && request.stored) {
            return Err(KeysError::Unreachable("it has gone".to_owned()));
        }
        server.confirmed.push((request.dki, request.stored));
        Ok(ConfirmAnswer {
            request_id: request.request_id,
            state: EedkState::Confirmed,
        })
    }

    fn wanted(&self) -> bool {
        !self.server().client_gone
    }
}

/// The tape device's seat, which a test may take.
#[derive(Clone, Debug, Default)]
struct Seat {
    held: Arc<AtomicBool>,
    others: Arc<AtomicBool>,
    failures: Arc<AtomicU64>,
}

impl Hold for Seat {
    fn take(&mut self) -> Result<(), HoldError> {
        if self.others.load(Ordering::SeqCst) {
            return Err(HoldError::Busy {
                tape: self.tape().to_owned(),
            });
        }
        self.held.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn release(&mut self) {
        self.held.store(false, Ordering::SeqCst);
    }

    fn tape(&self) -> &str {
        "/dev/nst0"
    }

    fn failures(&self) -> Option<u64> {
        Some(self.failures.load(Ordering::SeqCst))
    }
}

/// A drive in this host's hands, its cartridges, and a key server.
struct House {
    directory: TempDir,
    port: TapePort,
    seat: Seat,
    held: HeldDrive,
    keys: TestKeys,
    host: HostConfig,
}

impl House {
    fn new() -> Self {
        Self::with(DriveKind::LtoPlain, |drive| drive, |_| {})
    }

    /// A drive of that kind, changed, under changed rules.
    fn with(
        kind: DriveKind,
        change: impl FnOnce(TapeDrive) -> TapeDrive,
        rules: impl FnOnce(&mut Rules),
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let init = Init {
            serial: SERIAL.parse().unwrap(),
            wwn: "50050763020304a1".parse().unwrap(),
            kind,
        };
        let soft = SoftDrive::init(&directory.path().join("drive"), &init).unwrap();
        let port = TapePort::new(change(TapeDrive::new(soft)));
        let seat = Seat::default();
        let mut own = Rules {
            serial: SERIAL.parse().unwrap(),
            plain_key: true,
            unprotected: false,
            loading: SECOND,
            letting_go: Duration::from_millis(50),
        };
        rules(&mut own);
        let history = History::new(&directory.path().join("history.jsonl"));
        let held = HeldDrive::new(Box::new(port.clone()), Box::new(seat.clone()), own, history);
        let keys = TestKeys(Arc::new(Mutex::new(Server {
            eedks: 2,
            wrapped: 384,
            ..Server::default()
        })));
        Self {
            directory,
            port,
            seat,
            held,
            keys,
            host: HostConfig::parse(Path::new("host.toml"), HOST).unwrap(),
        }
    }

    /// The same drive in the hands of a proxy that has started anew.
    fn restart(&mut self, rules: impl FnOnce(&mut Rules)) {
        let mut own = self.held.rules.clone();
        rules(&mut own);
        let history = History::new(&self.directory.path().join("history.jsonl"));
        self.held = HeldDrive::new(
            Box::new(self.port.clone()),
            Box::new(self.seat.clone()),
            own,
            history,
        );
    }

    fn tape(&self, volser: &str) -> PathBuf {
        let path = self.directory.path().join(volser);
        if !path.exists() {
            new_tape(&path, &volser.parse().unwrap(), 16 << 20).unwrap();
        }
        path
    }

    fn load(&self, volser: &str) {
        self.port.drive().unload();
        self.port.drive().load(&self.tape(volser)).unwrap();
    }

    fn open(&mut self, volser: &str, class: &str, dd: &str) -> Result<Opened, JobRefused> {
        let request = JobRequest {
            name: None,
            volser: volser.parse().unwrap(),
            data_class: (!class.is_empty()).then(|| class.parse().unwrap()),
            dd: dd.parse::<Dd>().unwrap(),
        };
        let opened = self.held.open(&mut self.keys, &self.host, &request);
        assert_eq!(
            opened.is_err(),
            self.seat.held.load(Ordering::SeqCst),
            "the tape device is held exactly while no job has it"
        );
        opened
    }

    fn refused(&mut self, volser: &str, class: &str, dd: &str) -> String {
        let refused = self.open(volser, class, dd).unwrap_err().to_string();
        assert!(!self.writes(b"sneaked in"), "{refused}");
        refused
    }

    /// A job's blocks; whether the drive took the first.
    fn writes(&self, block: &[u8]) -> bool {
        let mut port = self.port.clone();
        // What happened since is told to the job's first command.
        for _ in 0..4 {
            drop(port.execute(&[0; 6], Data::None, SECOND).unwrap());
        }
        write(&mut port, block).status == Completion::GOOD
    }

    fn close(&mut self) -> Closed {
        self.held.close(false).unwrap()
    }

    /// A cartridge that a job has written, taken out again.
    fn written(&mut self, volser: &str) -> DataKeyId {
        self.load(volser);
        let opened = self.open(volser, "SECURE", "DISP=NEW").unwrap();
        assert!(self.writes(b"the first block"));
        self.filemark();
        let closed = self.close();
        assert_eq!(closed.alarms, []);
        self.port.drive().unload();
        opened.key.unwrap().dki
    }

    /// A cartridge that somebody else has written in clear, with whatever drive.
    fn clear_tape(&self, volser: &str) {
        let init = Init {
            serial: "001013000999".parse().unwrap(),
            wwn: "50050763020304ff".parse().unwrap(),
            kind: DriveKind::LtoPlain,
        };
        let path = self.directory.path().join("other");
        let soft = SoftDrive::open(&path).or_else(|_| SoftDrive::init(&path, &init));
        let mut port = TapePort::new(TapeDrive::new(soft.unwrap()));
        port.drive().load(&self.tape(volser)).unwrap();
        for _ in 0..4 {
            drop(port.execute(&[0; 6], Data::None, SECOND).unwrap());
        }
        assert_eq!(write(&mut port, b"VOL1 label").status, Completion::GOOD);
        filemark(&mut port);
    }

    fn filemark(&self) {
        filemark(&mut self.port.clone());
    }

    fn contents(&self, volser: &str) -> TapeContents {
        TapeContents::read(&self.tape(volser)).unwrap()
    }

    /// What is in our attributes of the loaded cartridge.
    fn memory(&mut self) -> Vec<Result<Eedk, String>> {
        home::Memory::read(&mut self.held.unit).unwrap().eedks()
    }
}

fn write(port: &mut TapePort, block: &[u8]) -> Completion {
    let [_, _, high, low] = u32::try_from(block.len()).unwrap().to_be_bytes();
    let cdb = [0x0a, 0, 0, high, low, 0];
    port.execute(&cdb, Data::Out(block), SECOND).unwrap()
}

fn filemark(port: &mut TapePort) {
    let done = port.execute(&[0x10, 0, 0, 0, 1, 0], Data::None, SECOND);
    assert_eq!(done.unwrap().status, Completion::GOOD);
}

/// A block, or the sense data of why not.
fn read(port: &mut TapePort) -> Result<Vec<u8>, Vec<u8>> {
    let mut block = vec![0; 1024];
    let cdb = [0x08, 0x02, 0, 4, 0, 0];
    let done = port.execute(&cdb, Data::In(&mut block), SECOND).unwrap();
    if done.status == Completion::GOOD {
        block.truncate(done.transferred);
        return Ok(block);
    }
    Err(done.sense)
}
