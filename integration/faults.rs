//! A bad EEDK is the cartridge's fault and nobody else's.

mod explained;
mod injected;

use ekm::admin::{self, Command, Reply};
use ekm::api::{Base64, CreateAnswer, CreateRequest, DriveInRequest, ResolveRequest};
use ekm::key::Eedk;
use ekm::keystore::Custody;
use ekm::policy::{PeerRule, PolicyConfig};
use ekm::problem::{EkmCode, Problem};
use futures_util::future::join_all;
use secrecy::ExposeSecret;
use uuid::Uuid;

use crate::support::{Bench, Hsm, Kind, TestDrive, drive};

/// Bad EEDKs that are sent.
const BAD: usize = 200;

/// Requests at a time.
const AT_ONCE: usize = 8;

/// Drives may name any KEK.
fn generous() -> PolicyConfig {
    PolicyConfig {
        peers: vec![PeerRule {
            peer: "drive:*".to_owned(),
            drives: vec![],
            create_keks: vec!["*".to_owned()],
            rekey_keks: vec![],
        }],
        ..PolicyConfig::default()
    }
}

struct Stage {
    bench: Bench,
    drive: TestDrive,
    _hsm: Hsm,
}

impl Stage {
    async fn new(kind: Kind) -> Self {
        let hsm = Hsm::new(kind, "faults").await;
        let bench = Bench::new(&[&hsm], generous()).await;
        Self::over(hsm, bench).await
    }

    async fn over(hsm: Hsm, bench: Bench) -> Self {
        bench.kek("KEK1", "main", Custody::Token).await;
        bench.kek("KEK2", "main", Custody::Token).await;
        let drive = drive(bench.directory.path(), 1, hsm.kind.form());
        bench.enrol(&drive).await;
        Self {
            bench,
            drive,
            _hsm: hsm,
        }
    }

    fn shown(&self) -> DriveInRequest {
        DriveInRequest {
            serial: self.drive.soft.serial().clone(),
            stores_eedks: true,
            public_key: None,
            session_key: None,
        }
    }

    async fn create(&self) -> CreateAnswer {
        self.try_create().await.unwrap()
    }

    async fn try_create(&self) -> Result<CreateAnswer, Problem> {
        self.create_under("KEK1", "KEK2").await
    }

    async fn create_under(&self, kek1: &str, kek2: &str) -> Result<CreateAnswer, Problem> {
        let request = CreateRequest {
            job: None,
            request_id: Uuid::new_v4(),
            drive: self.shown(),
            volser: "VOL001".parse().unwrap(),
            kek1: Some(kek1.parse().unwrap()),
            kek2: Some(kek2.parse().unwrap()),
        };
        let answer = self
            .bench
            .service
            .create(&self.drive.peer, &request)
            .await?;
        Ok(answer.into_inner())
    }

    /// The data key of a cartridge, and which EEDK gave it.
    async fn resolve(&self, eedks: &[&[u8]]) -> Result<([u8; 32], usize), Problem> {
        let request = ResolveRequest {
            dki: None,
            request_id: Uuid::new_v4(),
            drive: self.shown(),
            volser: None,
            eedks: eedks.iter().map(|eedk| Base64(eedk.to_vec())).collect(),
            append: false,
        };
        let answer = self.bench.service.resolve(&self.drive.peer, &request).await;
        let answer = answer?.into_inner();
        Ok((self.key(&answer.sedk), answer.opened))
    }

    fn key(&self, sedk: &ekm::key::Sedk) -> [u8; 32] {
        *self.drive.soft.unwrap_sedk(sedk).unwrap().expose_secret()
    }

    /// State, since when, and by which process the token is driven.
    async fn token(&self) -> (String, Option<String>, Vec<u32>) {
        let reply = admin::execute(&self.bench.service, "operator:test", Command::TokenStatus);
        let Reply::Tokens(tokens) = reply.await.unwrap() else {
            panic!("an answer of another kind");
        };
        let token = &tokens[0];
        (
            token.state.clone(),
            token.since.clone(),
            token.bridges.clone(),
        )
    }
}

/// A cartridge's EEDK, made bad in a way that goes with the number: a bit
/// flipped anywhere, a number larger than the modulus, one for a longer key,
/// or cut short.
fn spoil(good: &[u8], number: usize) -> Vec<u8> {
    let eedk = Eedk::decode(good).unwrap();
    let mut wrapped = eedk.wrapped().to_vec();
    let length = wrapped.len();
    match number % 5 {
        0 => return good[..good.len() - 1 - number % length].to_vec(),
        1 => wrapped.resize(384, 0x5a),
        2 => wrapped[..16].fill(0xff),
        _ => wrapped[number * 31 % length] ^= 1 << (number % 8),
    }
    let bad = Eedk::new(eedk.dki(), eedk.kek().clone(), eedk.wrap(), wrapped);
    bad.unwrap().encode()
}

fn ders(tape: &CreateAnswer) -> Vec<Vec<u8>> {
    let eedks = tape.eedks.iter();
    eedks.map(|eedk| eedk.eedk.0.clone()).collect()
}

async fn bad_eedks_among_good_requests(kind: Kind) {
    let stage = Stage::new(kind).await;
    let tape = stage.create().await;
    let key = stage.key(&tape.sedk);
    let eedks = ders(&tape);
    let before = stage.token().await;
    assert_eq!(before.0, "ready");
    let share = async |task: usize| {
        for number in (task..BAD).step_by(AT_ONCE) {
            let bad = spoil(&eedks[0], number);
            if number % 2 == 0 {
                let refused = stage.resolve(&[&bad]).await.unwrap_err();
                // What is cut short does not even say which KEK it is for.
                let expected = if number % 5 == 0 {
                    EkmCode::EE23
                } else {
                    EkmCode::EE32
                };
                assert_eq!(refused.code, expected, "{number}: {refused}");
                assert_eq!(refused.retry_after, None, "{number}: {refused}");
            } else {
                // The other EEDK of the cartridge opens all the same.
                let saved = stage.resolve(&[&bad, &eedks[1]]).await;
                let saved = saved.unwrap_or_else(|problem| panic!("{number}: {problem}"));
                assert_eq!(saved, (key, 1), "{number}");
            }
            let good = stage.resolve(&[&eedks[0], &eedks[1]]).await;
            let good = good.unwrap_or_else(|problem| panic!("{number}: {problem}"));
            assert_eq!(good, (key, 0), "{number}");
            if number % 10 == 0 {
                stage.create().await;
            }
        }
    };
    join_all((0..AT_ONCE).map(share)).await;
    // The same bridge all along.
    let (_, _, bridges) = stage.token().await;
    assert_eq!(bridges, before.2);
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_eedks_harm_nobody_on_the_embedded_token() {
    bad_eedks_among_good_requests(Kind::Embedded).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_eedks_harm_nobody_on_softhsm() {
    bad_eedks_among_good_requests(Kind::Softhsm).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_eedks_harm_nobody_on_softhsm_in_process() {
    bad_eedks_among_good_requests(Kind::SofthsmInProcess).await;
}
