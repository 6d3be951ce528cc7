//! With custody `token` no data key is ever in a process of ours: their memory is searched for them.

mod memory;
mod needles;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ekm::api::{Base64, CreateRequest, DriveInRequest, ResolveRequest};
use ekm::client::KeyClient;
use ekm::key::{Sedk, SedkForm};
use ekm::keystore::Custody;
use secrecy::ExposeSecret;
use tokio::sync::watch;
use uuid::Uuid;

use crate::door::PATIENCE;
use crate::faulty::{Fault, Faulty};
use crate::site::Site;
use crate::support::{Hsm, Kind, TestDrive, drive, wait_for};
use memory::{Image, Paused, children};
use needles::{Form, Needles};

/// Data keys that must not be seen.
const KEYS: usize = 100;

/// Connections at once, each of a drive of its own.
const CONNECTIONS: u32 = 8;

/// A data key as the drive got it, and the EEDKs of its cartridge.
#[derive(Clone)]
struct Tape {
    key: [u8; 32],
    eedks: Vec<Base64>,
}

/// A drive with its connection.
struct Peer {
    drive: TestDrive,
    client: KeyClient,
}

impl Peer {
    async fn create(&mut self) -> Tape {
        let request = CreateRequest {
            job: None,
            request_id: Uuid::new_v4(),
            drive: self.shown(),
            volser: "VOL001".parse().unwrap(),
            kek1: None,
            kek2: None,
        };
        let answer = self.client.create(&request).await.unwrap();
        Tape {
            key: self.key(&answer.sedk),
            eedks: answer.eedks.into_iter().map(|eedk| eedk.eedk).collect(),
        }
    }

    async fn resolve(&mut self, tape: &Tape) {
        let request = ResolveRequest {
            dki: None,
            request_id: Uuid::new_v4(),
            drive: self.shown(),
            volser: None,
            eedks: tape.eedks.clone(),
            append: false,
        };
        let answer = self.client.resolve(&request).await.unwrap();
        assert_eq!(self.key(&answer.sedk), tape.key);
    }

    fn shown(&self) -> DriveInRequest {
        DriveInRequest {
            serial: self.drive.soft.serial().clone(),
            stores_eedks: true,
            public_key: None,
            session_key: None,
        }
    }

    fn key(&self, sedk: &Sedk) -> [u8; 32] {
        *self.drive.soft.unwrap_sedk(sedk).unwrap().expose_secret()
    }
}

/// Drives that create [`KEYS`] data keys, then resolve them until they are told to stop.
struct Load {
    peers: Vec<tokio::task::JoinHandle<()>>,
    tapes: Arc<Mutex<Vec<Tape>>>,
    done: watch::Receiver<usize>,
    stop: Arc<AtomicBool>,
}

impl Load {
    fn begin(peers: Vec<Peer>) -> Self {
        let tapes = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let begun = Arc::new(AtomicUsize::new(0));
        let (count, done) = watch::channel(0);
        let count = Arc::new(count);
        let peers = peers
            .into_iter()
            .map(|mut peer| {
                let (tapes, stop) = (Arc::clone(&tapes), Arc::clone(&stop));
                let (begun, count) = (Arc::clone(&begun), Arc::clone(&count));
                tokio::spawn(async move {
                    while !stop.load(Ordering::Relaxed) {
                        let turn = begun.fetch_add(1, Ordering::Relaxed);
                        if turn < KEYS {
                            let tape = peer.create().await;
                            tapes.lock().unwrap().push(tape);
                        } else {
                            let tape = {
                                let tapes = tapes.lock().unwrap();
                                tapes[turn % tapes.len()].clone()
                            };
                            peer.resolve(&tape).await;
                        }
                        count.send_modify(|count| *count += 1);
                    }
                })
            })
            .collect();
        Self {
            peers,
            tapes,
            done,
            stop,
        }
    }

    /// Waits until so many requests are answered.
    async fn reach(&mut self, answered: usize) {
        let reached = self.done.wait_for(|done| *done >= answered);
        reached.await.expect("no drive failed");
    }

    /// Stops, and returns the number of requests and the data keys.
    async fn end(self) -> (usize, Vec<[u8; 32]>) {
        self.stop.store(true, Ordering::Relaxed);
        for peer in self.peers {
            peer.await.unwrap();
        }
        let tapes = self.tapes.lock().unwrap();
        let keys = tapes.iter().map(|tape| tape.key).collect();
        (*self.done.borrow(), keys)
    }
}

/// Whether this process may look into others; if not, a test has nothing to say.
fn may_look(pid: u32) -> bool {
    let refused = match Image::of(pid) {
        Ok(_) => return true,
        Err(error) => format!("the memory of another process cannot be read: {error}"),
    };
    assert!(
        std::env::var_os("CI").is_none(),
        "{refused}; in CI the tests run as root"
    );
    eprintln!("WARNING: {refused}; WHETHER IT HOLDS KEYS IS NOT TESTED (run the tests as root)");
    false
}

/// Both processes at one moment, standing still.
fn look(serve: u32, bridge: u32, when: &str) -> [(String, Image); 2] {
    let _paused = [Paused::new(serve), Paused::new(bridge)];
    [("ekm serve", serve), ("the bridge", bridge)]
        .map(|(name, pid)| (format!("{name} {when}"), Image::of(pid).unwrap()))
}

#[tokio::test(flavor = "multi_thread")]
async fn no_data_key_is_in_the_memory_of_server_or_bridge() {
    let hsm = Hsm::new(Kind::Softhsm, "secrecy").await;
    let site = Site::start(&[&hsm], "").await;
    if !may_look(site.pid()) {
        return;
    }
    for label in ["KEK1", "KEK2"] {
        site.ekm(&["kek", "generate", label, "--bits", "2048"]);
    }
    site.ekm(&["kek", "default", "--kek1", "KEK1", "--kek2", "KEK2:hash"]);
    let [bridge] = *children(site.pid()) else {
        panic!("one token has one bridge");
    };

    let mut peers = Vec::new();
    for n in 1..=CONNECTIONS {
        let drive = drive(site.directory.path(), n, SedkForm::RsaOaepSha1);
        site.enrol(&drive).await;
        let client = site.client(&drive.peer);
        peers.push(Peer { drive, client });
    }
    let mut load = Load::begin(peers);
    let mut images = Vec::new();
    for answered in [20, 60, KEYS, 4 * KEYS] {
        load.reach(answered).await;
        images.extend(look(
            site.pid(),
            bridge,
            &format!("after {answered} answers"),
        ));
    }
    let (answered, keys) = load.end().await;
    assert_eq!(keys.len(), KEYS);
    images.extend(look(site.pid(), bridge, "after the load"));
    println!("{answered} requests answered");

    let needles = Needles::new(&keys);
    println!("{} needles of {KEYS} data keys", needles.len());
    for (name, image) in &images {
        let begin = Instant::now();
        let found = image.find(&needles);
        println!(
            "{name}: {} maps, {} bytes searched in {:?}",
            image.maps(),
            image.len(),
            begin.elapsed()
        );
        assert_eq!(image.unread(), [""; 0], "{name}");
        assert!(found.is_empty(), "{name} holds data keys: {found:?}");
    }

    site.stop();
}

/// The search sees a key where there is one: in custody `host`, the bridge while `C_Decrypt` has
/// answered and the key is not wrapped for the drive yet. Even then it is not in the server.
#[tokio::test(flavor = "multi_thread")]
async fn a_data_key_in_host_custody_is_seen_in_the_bridge_and_nowhere_else() {
    let hsm = Hsm::new(Kind::Softhsm, "host-custody").await;
    let faulty = Faulty::before(&hsm);
    let site = Site::over(vec![faulty.config(&hsm, "main")], "").await;
    if !may_look(site.pid()) {
        return;
    }
    site.ekm(&["kek", "generate", "HOST", "--custody", "host"]);
    let [bridge] = *children(site.pid()) else {
        panic!("one token has one bridge");
    };
    let mut drive = drive(site.directory.path(), 1, SedkForm::T10Wrapped);
    drive.row.custody = Custody::Host;
    drive.row.kek1 = Some("HOST".parse().unwrap());
    site.enrol(&drive).await;
    let client = site.client(&drive.peer);
    let mut peer = Peer { drive, client };
    let tape = peer.create().await;
    let needles = Needles::new(&[tape.key]);

    let before = faulty.called("C_Decrypt");
    faulty.strike(Some("C_Decrypt"), 0, Some(1), Fault::Late(10_000));
    let resolving = tokio::spawn(async move { peer.resolve(&tape).await });
    tokio::task::block_in_place(|| {
        wait_for("the call", PATIENCE, || faulty.called("C_Decrypt") > before);
    });
    // It is counted as it begins, and the key is there when the token has done its part.
    let begun = Instant::now();
    let serve_image = loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let [serve_image, bridge_image] = {
            let _paused = [Paused::new(site.pid()), Paused::new(bridge)];
            [site.pid(), bridge].map(|pid| Image::of(pid).unwrap())
        };
        let found = bridge_image.find(&needles);
        println!("the bridge with a data key in host custody: {found:?}");
        if found.keys().any(|(_, form)| *form == Form::Half) {
            break serve_image;
        }
        assert!(
            begun.elapsed() < Duration::from_secs(8),
            "no half of the key was seen: {found:?}"
        );
    };
    resolving.await.unwrap();
    assert_eq!(serve_image.find(&needles), [].into());
    site.stop();
}
