//! A thousand drives that mount in the same second, as after a power cut in
//! the machine room: each gets its key soon, none is refused, and a peer that
//! asks for one key at a time hardly notices.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ekm::admin::{self, DriveChange};
use ekm::api::{Base64, CreateRequest, DriveInRequest, ResolveRequest};
use ekm::bridge::message::Custody;
use ekm::client::{ClientError, KeyClient};
use ekm::drive::DriveSerial;
use ekm::key::SedkForm;
use ekm::store::DriveKey;
use ekm::tls::PeerId;
use rsa::BigUint;
use rsa::pkcs8::EncodePublicKey as _;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::site::Site;
use crate::support::{Hsm, Kind, drive};

/// How many mount.
const DRIVES: u32 = 1_000;

/// In which time all of them have their keys, where the machine is fast.
const ALL: Duration = Duration::from_secs(30);

/// So many single requests tell how fast it is.
const SINGLE: u32 = 50;

/// One part in so many of that time, or of a storm's, is what nine of ten single requests of another
/// peer take at most meanwhile. A process that was not scheduled for a while makes a few late, and
/// not more.
const ANOTHER: u32 = 4;

/// Connections of a proxy that speaks for all drives.
const PROXY: usize = 64;

/// A drive's row and the resolve that it will send.
struct Mount {
    peer: PeerId,
    resolve: ResolveRequest,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_drives_that_mount_in_one_second_get_their_keys() {
    // A connection and its other end for each drive, here and in the server.
    let mut files = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    files.current = files.maximum;
    rustix::process::setrlimit(rustix::process::Resource::Nofile, files).unwrap();

    let hsm = Hsm::new(Kind::SofthsmInProcess, "storm").await;
    let proxy: PeerId = "proxy:library".parse().unwrap();
    let rules = "[[policy.peers]]\npeer = \"proxy:library\"\ndrives = [\"*\"]\n";
    let site = Site::start(&[&hsm], rules).await;
    site.execute(&admin::Command::KekGenerate {
        sign: false,
        label: "KEK1".parse().unwrap(),
        bits: 2048,
        token: None,
        custody: Custody::Token,
    })
    .await;
    site.ekm(&["kek", "default", "--kek1", "KEK1"]);
    let bystander = drive(site.directory.path(), 0, hsm.kind.form());
    site.enrol(&bystander).await;
    let mut other = site.client(&bystander.peer);
    let shows = asking(
        &bystander.row.serial,
        bystander.soft.public_key_spki().to_vec(),
    );
    let written = other
        .create(&CreateRequest {
            job: None,
            request_id: Uuid::new_v4(),
            drive: shows.clone(),
            volser: "VOL001".parse().unwrap(),
            kek1: None,
            kek2: None,
        })
        .await
        .unwrap();
    let eedks: Vec<Base64> = written.eedks.into_iter().map(|one| one.eedk).collect();
    let resolve = |drive: DriveInRequest| ResolveRequest {
        dki: None,
        request_id: Uuid::new_v4(),
        drive,
        volser: None,
        eedks: eedks.clone(),
        append: false,
    };
    let mut mounts = Vec::new();
    for number in 1..=DRIVES {
        let (serial, spki) = enrol(&site, number, hsm.kind.form()).await;
        mounts.push(Mount {
            peer: format!("drive:{serial}").parse().unwrap(),
            resolve: resolve(asking(&serial, spki)),
        });
    }

    let all = time_for_all(&mut other, &resolve(shows.clone())).await;
    let alone: Vec<(KeyClient, ResolveRequest)> = mounts
        .iter()
        .map(|mount| (site.client(&mount.peer), mount.resolve.clone()))
        .collect();
    let meanwhile = Meanwhile::begin(other, resolve(shows));
    let start = Instant::now();
    let mut storm = JoinSet::new();
    for (number, (mut client, request)) in (0_u64..).zip(alone) {
        storm.spawn(async move {
            // In an order of no kind, over one second.
            tokio::time::sleep(Duration::from_millis(number * 617 % 1_000)).await;
            client.resolve(&request).await.map(drop)
        });
    }
    let refused: Vec<String> = refusals(storm.join_all().await);
    assert!(refused.is_empty(), "{} refused: {refused:?}", refused.len());
    let took = start.elapsed();
    assert!(took < all, "{took:?} of {all:?}");
    let (other, p90) = meanwhile.end().await;
    // A turn of each of the others may come before it.
    assert!(p90 < all / ANOTHER, "another peer's p90 was {p90:?}");

    // The same through one peer: a library's proxy.
    let queue = Arc::new(std::sync::Mutex::new(
        mounts
            .into_iter()
            .map(|mount| mount.resolve)
            .collect::<Vec<ResolveRequest>>(),
    ));
    let shows = asking(
        &bystander.row.serial,
        bystander.soft.public_key_spki().to_vec(),
    );
    let meanwhile = Meanwhile::begin(other, resolve(shows));
    let start = Instant::now();
    let mut storm = JoinSet::new();
    for mut client in std::iter::repeat_with(|| site.client(&proxy)).take(PROXY) {
        let queue = Arc::clone(&queue);
        storm.spawn(async move {
            loop {
                let next = queue.lock().unwrap().pop();
                match next {
                    Some(request) => client.resolve(&request).await?,
                    None => return Ok::<(), ClientError>(()),
                };
            }
        });
    }
    let refused = refusals(storm.join_all().await);
    assert!(refused.is_empty(), "{} refused: {refused:?}", refused.len());
    let took = start.elapsed();
    assert!(took < all, "{took:?} of {all:?}");
    let (_, p90) = meanwhile.end().await;
    assert!(
        p90 < took / ANOTHER,
        "another peer's p90 was {p90:?} of {took:?}"
    );
    site.stop();
}

/// The time in which all mount: at most four times as long as one after the other.
async fn time_for_all(client: &mut KeyClient, request: &ResolveRequest) -> Duration {
    let start = Instant::now();
    for _ in 0..SINGLE {
        client.resolve(request).await.unwrap();
    }
    ALL.max(start.elapsed() * 4 * DRIVES / SINGLE)
}

/// Another peer, which asks for one key after another.
struct Meanwhile {
    over: Arc<AtomicBool>,
    asking: tokio::task::JoinHandle<(KeyClient, Vec<Duration>)>,
}

impl Meanwhile {
    fn begin(mut client: KeyClient, request: ResolveRequest) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&over);
        let asking = tokio::spawn(async move {
            let mut took = Vec::new();
            while !ended.load(Ordering::Relaxed) {
                let start = Instant::now();
                client.resolve(&request).await.unwrap();
                took.push(start.elapsed());
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            (client, took)
        });
        Self { over, asking }
    }

    /// Stops it; what nine of ten of its requests took at most.
    async fn end(self) -> (KeyClient, Duration) {
        self.over.store(true, Ordering::Relaxed);
        let (client, mut took) = self.asking.await.unwrap();
        took.sort_unstable();
        let p90 = took[took.len() * 9 / 10];
        (client, p90)
    }
}

fn refusals<E: std::fmt::Display>(outcomes: Vec<Result<(), E>>) -> Vec<String> {
    outcomes
        .into_iter()
        .filter_map(Result::err)
        .map(|error| error.to_string())
        .collect()
}

fn asking(serial: &DriveSerial, spki: Vec<u8>) -> DriveInRequest {
    DriveInRequest {
        serial: serial.clone(),
        public_key: Some(Base64(spki)),
        stores_eedks: false,
        session_key: None,
    }
}

/// A drive with a public key that nobody has the private half of: to make a
/// thousand real ones takes minutes, and the server sees no difference.
async fn enrol(site: &Site, number: u32, form: SedkForm) -> (DriveSerial, Vec<u8>) {
    let serial: DriveSerial = format!("{number:012}").parse().unwrap();
    let mut modulus = [0_u8; 256];
    aws_lc_rs::rand::fill(&mut modulus).unwrap();
    modulus[0] |= 0x80;
    modulus[255] |= 0x01;
    let key = rsa::RsaPublicKey::new(BigUint::from_bytes_be(&modulus), BigUint::from(65_537_u32))
        .unwrap();
    let spki = key.to_public_key_der().unwrap().into_vec();
    site.execute(&admin::Command::DriveAdd {
        serial: serial.clone(),
        change: Box::new(DriveChange {
            wwn: Some(format!("50050763{number:08X}").parse().unwrap()),
            key: Some(DriveKey::Pinned(spki.clone())),
            form: Some(form),
            ..DriveChange::default()
        }),
    })
    .await;
    (serial, spki)
}
