//! How drives come into the table, who may speak for them, and which keys
//! peers may name: over TLS, with a real server process.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use ekm::api::{
    Base64, ConfirmRequest, CreateRequest, DriveInRequest, RekeyRequest, ResolveRequest,
    SessionKeyInRequest,
};
use ekm::client::{ClientError, KeyClient};
use ekm::drive::session_key_message;
use ekm::problem::{EkmCode, Problem};
use ekm::softdrive::SoftDrive;
use ekm::store::{Drive, DriveKey, DriveState, VolumeKey};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject as _;
use secrecy::ExposeSecret as _;
use uuid::Uuid;

use crate::door::{House, HouseDrive, Serving};

/// Makes a good session key a bad one.
type Edit<'a> = dyn Fn(&mut SessionKeyInRequest) + 'a;

fn problem<T>(outcome: Result<T, ClientError>) -> Problem {
    match outcome {
        Err(ClientError::Refused(problem)) => problem,
        Err(error) => panic!("expected a refusal, got {error}"),
        Ok(_) => panic!("expected a refusal, got an answer"),
    }
}

impl House {
    /// The drive table.
    fn drives(&self) -> Vec<Drive> {
        serde_json::from_str(&self.done(&["drive", "list", "--json"])).unwrap()
    }

    fn volumes(&self) -> Vec<VolumeKey> {
        serde_json::from_str(&self.done(&["volume", "list", "--json"])).unwrap()
    }

    /// Has the drive's own key certified by an authority.
    pub(crate) fn certify(&self, drive: &mut HouseDrive, authority: &str) {
        let certificate = self.certificate(drive, &drive.serial.to_string(), authority);
        self.done(&["softdrive", "certify", &drive.directory, &certificate]);
        drive.soft = SoftDrive::open(&self.at(&drive.directory)).unwrap();
    }

    /// A certificate of that serial for the drive's own key; its file.
    fn certificate(&self, drive: &HouseDrive, serial: &str, authority: &str) -> String {
        let pem = format!("{}-certificate.pem", drive.directory);
        let key = self.done(&["softdrive", "key", &drive.directory, "--certificate"]);
        std::fs::write(self.at(&pem), key).unwrap();
        let out = format!("{}-{authority}-{serial}", drive.directory);
        self.done(&[
            "tls", "issue", serial, "--role", "drive", "--key", &pem, "--ca-dir", authority,
            "--out", &out,
        ]);
        format!("{out}/drive-{serial}.crt")
    }

    fn client(&self, serving: &Serving, role: &str, name: &str) -> KeyClient {
        self.client_of(serving, &self.identity(role, name))
    }
}

/// What a certified drive shows: a new session key, signed with the server's challenge.
async fn session(drive: &mut HouseDrive, client: &mut KeyClient) -> SessionKeyInRequest {
    let challenge = client.challenge().await.unwrap();
    let key = drive.soft.session_key(&challenge).unwrap();
    SessionKeyInRequest {
        public_key: Base64(key.spki),
        signature: Base64(key.signature),
        certificate: Base64(key.certificate),
        challenge: Base64(challenge),
    }
}

/// A create by session key.
fn create_by(drive: &HouseDrive, session: SessionKeyInRequest) -> CreateRequest {
    CreateRequest {
        job: None,
        drive: DriveInRequest {
            public_key: None,
            session_key: Some(session),
            ..drive.create().drive
        },
        ..drive.create()
    }
}

fn resolve(drive: &HouseDrive, eedks: Vec<Base64>) -> ResolveRequest {
    ResolveRequest {
        dki: None,
        request_id: Uuid::new_v4(),
        drive: drive.create().drive,
        volser: None,
        eedks,
        append: false,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_drive_is_rejected_and_leaves_no_row() {
    let house = House::new("", "");
    let mut drive = house.unknown_drive(1);
    house.certify(&mut drive, "tls");
    let serving = house.serve().await;
    let mut client = house.client_of(&serving, &drive.identity);
    assert_eq!(
        problem(client.create(&drive.create()).await).code,
        EkmCode::EF01
    );
    let session = session(&mut drive, &mut client).await;
    let request = create_by(&drive, session);
    assert_eq!(problem(client.create(&request).await).code, EkmCode::EF01);
    assert_eq!(house.drives(), []);
    serving.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pending_drive_waits_for_its_operator() {
    let house = House::new("", "[policy]\naccept_unknown_drives = \"pending\"");
    let (drive, thief) = (house.unknown_drive(1), house.unknown_drive(2));
    let serving = house.serve().await;
    let mut client = house.client_of(&serving, &drive.identity);
    for _ in 0..2 {
        let refused = problem(client.create(&drive.create()).await);
        assert_eq!(refused.code, EkmCode::EF01);
        assert!(refused.detail.contains("drive accept"), "{refused}");
    }
    let serial = drive.serial.to_string();
    let shown = house.done(&["drive", "show", &serial]);
    assert!(shown.contains(&drive.soft.fingerprint()), "{shown}");
    assert!(shown.contains("pending"), "{shown}");

    // What it shows later does not take the place of what the operator compares.
    let mut other = drive.create();
    other.drive.public_key = Some(Base64(thief.soft.public_key_spki().to_vec()));
    assert_eq!(problem(client.create(&other).await).code, EkmCode::EF01);
    assert_eq!(house.drives().len(), 1);

    house.done(&["drive", "mod", &serial, "--accept"]);
    let answer = client.create(&drive.create()).await.unwrap();
    drive.soft.unwrap_sedk(&answer.sedk).unwrap();
    assert_eq!(
        problem(client.create(&other).await).code,
        EkmCode::EE2B,
        "only the accepted key gets data keys"
    );
    serving.stop();
}

/// An operator who accepts by serial would pin the stranger's key.
#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_makes_no_pending_row_for_another_drive() {
    let house = House::new("", "[policy]\naccept_unknown_drives = \"pending\"");
    let (drive, stranger) = (house.unknown_drive(1), house.unknown_drive(2));
    let serving = house.serve().await;
    let mut client = house.client_of(&serving, &stranger.identity);
    let mut request = drive.create();
    request.drive.public_key = Some(Base64(stranger.soft.public_key_spki().to_vec()));
    let refused = problem(client.create(&request).await);
    assert!(
        matches!(refused.code, EkmCode::EF01 | EkmCode::EE30),
        "{refused}"
    );
    assert_eq!(house.drives(), []);
    serving.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unfit_pending_key_cannot_be_accepted() {
    let house = House::new("", "[policy]\naccept_unknown_drives = \"pending\"");
    let drive = house.unknown_drive(1);
    let serving = house.serve().await;
    let mut client = house.client_of(&serving, &drive.identity);
    let mut request = drive.create();
    request.drive.public_key = Some(Base64(b"no key at all".to_vec()));
    assert_eq!(problem(client.create(&request).await).code, EkmCode::EF01);
    let serial = drive.serial.to_string();
    let output = house.run(&["drive", "mod", &serial, "--accept"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("RSA"), "{said}");
    assert!(
        house
            .drives()
            .iter()
            .all(|drive| drive.state == DriveState::Pending)
    );
    serving.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certified_drive_is_accepted_on_its_certificate() {
    let house = House::new("", "[policy]\naccept_unknown_drives = \"accept\"");
    let mut drive = house.unknown_drive(1);
    house.certify(&mut drive, "tls");
    let serving = house.serve().await;
    let mut client = house.client_of(&serving, &drive.identity);
    // Its wrapping key alone vouches for nothing.
    assert_eq!(
        problem(client.create(&drive.create()).await).code,
        EkmCode::EF01
    );
    assert_eq!(house.drives(), []);

    let first = session(&mut drive, &mut client).await;
    let request = create_by(&drive, first.clone());
    let answer = client.create(&request).await.unwrap();
    drive.soft.unwrap_sedk(&answer.sedk).unwrap();
    let rows = house.drives();
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].key, DriveKey::Certified);
    assert_eq!(rows[0].state, DriveState::Active);

    // The same again is a replay, also in a new request and over a new connection.
    let mut again = house.client_of(&serving, &drive.identity);
    let replay = create_by(&drive, first);
    assert_eq!(problem(again.create(&replay).await).code, EkmCode::EE2B);
    assert_eq!(problem(client.create(&request).await).code, EkmCode::EE2B);
    // So is the lasting key.
    let lasting = problem(client.create(&drive.create()).await);
    assert_eq!(lasting.code, EkmCode::EE2B, "{lasting}");
    serving.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_drive_ca_did_not_vouch_for_is_refused() {
    let house = House::new("", "[policy]\naccept_unknown_drives = \"accept\"");
    let (mut drive, mut other) = (house.unknown_drive(1), house.unknown_drive(2));
    house.certify(&mut drive, "tls");
    house.certify(&mut other, "tls");
    house.done(&["tls", "init", "--ca-dir", "foreign"]);
    let foreign = house.certificate(&drive, &drive.serial.to_string(), "foreign");
    let foreign = rustls::pki_types::CertificateDer::from_pem_file(house.at(&foreign)).unwrap();
    let proxy = house.identity("proxy", "host1");
    let proxy = rustls::pki_types::CertificateDer::from_pem_file(&proxy.certificate).unwrap();
    let serving = house.serve().await;
    let mut client = house.client_of(&serving, &drive.identity);

    let mut attempts: Vec<(&str, CreateRequest)> = Vec::new();
    let good = session(&mut drive, &mut client).await;
    let flipped = |bytes: &Base64| {
        let mut bytes = bytes.0.clone();
        *bytes.last_mut().unwrap() ^= 1;
        Base64(bytes)
    };
    let edits: [(&str, &Edit<'_>); 6] = [
        ("a wrong signature", &|s| {
            s.signature = flipped(&s.signature)
        }),
        ("no signature", &|s| s.signature = Base64(Vec::new())),
        ("another key than was signed", &|s| {
            s.public_key = flipped(&s.public_key);
        }),
        ("a foreign CA", &|s| {
            s.certificate = Base64(foreign.to_vec())
        }),
        ("a proxy's certificate", &|s| {
            s.certificate = Base64(proxy.to_vec());
        }),
        ("no certificate", &|s| s.certificate = Base64(b"x".to_vec())),
    ];
    for (what, edit) in edits {
        let mut bad = session(&mut drive, &mut client).await;
        edit(&mut bad);
        attempts.push((what, create_by(&drive, bad)));
    }
    // The other drive's certificate and session, under this drive's serial.
    let others = session(&mut other, &mut client).await;
    attempts.push(("another drive's session", create_by(&drive, others)));
    let mut made_up = good.clone();
    made_up.challenge = Base64(vec![7; 32]);
    attempts.push(("a made-up challenge", create_by(&drive, made_up)));
    let mut empty = good;
    empty.challenge = Base64(Vec::new());
    attempts.push(("no challenge", create_by(&drive, empty)));
    for (what, request) in attempts {
        let refused = problem(client.create(&request).await);
        assert!(
            matches!(refused.code, EkmCode::EF01 | EkmCode::EE2B),
            "{what}: {refused}"
        );
        assert_eq!(house.drives(), [], "{what}");
    }
    serving.stop();
}

/// Signed as it should be, but nothing that a data key can be wrapped for.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_key_that_is_no_rsa_key_is_the_drives_fault_not_the_tokens() {
    let house = House::new("", "[policy]\naccept_unknown_drives = \"accept\"");
    let mut drive = house.unknown_drive(1);
    house.certify(&mut drive, "tls");
    let certificate = drive.soft.certificate().unwrap().to_vec();
    let elliptic = drive.soft.certificate_spki().unwrap();
    let der = PrivatePkcs8KeyDer::from_pem_file(
        house.at(&format!("{}/certificate.key", drive.directory)),
    )
    .unwrap();
    let signer =
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, der.secret_pkcs8_der()).unwrap();
    let small = {
        use rsa::pkcs8::EncodePublicKey as _;
        let mut random = rsa::rand_core::OsRng;
        let key = rsa::RsaPrivateKey::new(&mut random, 1024).unwrap();
        key.to_public_key().to_public_key_der().unwrap().into_vec()
    };
    let serving = house.serve().await;
    let mut client = house.client_of(&serving, &drive.identity);
    for (what, spki) in [
        ("an elliptic key", elliptic),
        ("a small key", small),
        ("garbage", b"garbage".to_vec()),
        ("nothing", Vec::new()),
    ] {
        let challenge = client.challenge().await.unwrap();
        let message = session_key_message(&challenge, &drive.serial, &spki).unwrap();
        let signature = signer.sign(&SystemRandom::new(), &message).unwrap();
        let request = create_by(
            &drive,
            SessionKeyInRequest {
                public_key: Base64(spki),
                signature: Base64(signature.as_ref().to_vec()),
                certificate: Base64(certificate.clone()),
                challenge: Base64(challenge),
            },
        );
        let refused = problem(client.create(&request).await);
        assert!(
            matches!(
                refused.code,
                EkmCode::EF01 | EkmCode::EE2B | EkmCode::EE23 | EkmCode::EE25
            ),
            "{what}: {refused}"
        );
    }
    assert_eq!(client.get("/readyz").await.unwrap().0, 200);
    // The right key still works.
    let session = session(&mut drive, &mut client).await;
    let answer = client.create(&create_by(&drive, session)).await.unwrap();
    drive.soft.unwrap_sedk(&answer.sedk).unwrap();
    serving.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_drive_does_not_come_back_by_itself() {
    let house = House::new("", "[policy]\naccept_unknown_drives = \"accept\"");
    let mut drive = house.unknown_drive(1);
    house.certify(&mut drive, "tls");
    let serving = house.serve().await;
    let mut client = house.client_of(&serving, &drive.identity);
    let first = session(&mut drive, &mut client).await;
    client.create(&create_by(&drive, first)).await.unwrap();
    house.done(&["drive", "del", &drive.serial.to_string()]);
    let second = session(&mut drive, &mut client).await;
    let refused = problem(client.create(&create_by(&drive, second)).await);
    assert_eq!(refused.code, EkmCode::EF01);
    assert_eq!(house.drives(), []);
    serving.stop();
}

/// The drive itself is shut out by TLS; its session keys may come through a proxy.
#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_drive_certificate_vouches_for_nothing() {
    let house = House::new(
        "",
        "[[policy.peers]]\npeer = \"proxy:host1\"\ndrives = [\"*\"]",
    );
    let mut drive = house.unknown_drive(1);
    house.certify(&mut drive, "tls");
    let serial = drive.serial.to_string();
    house.done(&["drive", "add", &serial, "--ca", "--form", "rsa-oaep-sha1"]);
    let serving = house.serve().await;
    let mut proxy = house.client(&serving, "proxy", "host1");
    let first = session(&mut drive, &mut proxy).await;
    proxy.create(&create_by(&drive, first)).await.unwrap();
    house.done(&["tls", "revoke", &format!("drive:{serial}")]);
    serving.stop();
    // Not even a restart may be needed, but it must do.
    let serving = house.serve().await;
    let mut proxy = house.client(&serving, "proxy", "host1");
    let second = session(&mut drive, &mut proxy).await;
    let refused = problem(proxy.create(&create_by(&drive, second)).await);
    assert_eq!(refused.code, EkmCode::EE2B);
    serving.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drive_enrolled_with_the_ca_writes_and_reads_by_session_keys() {
    let house = House::new("", "");
    let mut drive = house.unknown_drive(1);
    house.certify(&mut drive, "tls");
    let serial = drive.serial.to_string();
    house.done(&["drive", "add", &serial, "--ca", "--form", "rsa-oaep-sha1"]);
    let serving = house.serve().await;
    let door = |command: &mut std::process::Command| {
        command
            .args(["--drive", &drive.directory, "--cartridge", "cartridge"])
            .args(["--server", &serving.address])
            .arg("--ca")
            .arg(&drive.identity.ca)
            .arg("--tls-cert")
            .arg(&drive.identity.certificate)
            .arg("--tls-key")
            .arg(&drive.identity.key)
            .output()
            .unwrap()
    };
    let data = std::fs::File::open(house.at("ekm.toml")).unwrap();
    let mut write = house.command(&["softdrive", "write", "--session", "--volser", "VOL001"]);
    let wrote = door(write.stdin(data));
    let said = String::from_utf8_lossy(&wrote.stderr).into_owned();
    assert!(wrote.status.success(), "{said}");
    let mut read = house.command(&["softdrive", "read", "--session"]);
    let read = door(&mut read);
    assert!(read.status.success(), "{read:?}");
    assert_eq!(read.stdout, std::fs::read(house.at("ekm.toml")).unwrap());
    // Without a session key there is no key for it.
    let mut plain = house.command(&["softdrive", "read"]);
    let plain = door(&mut plain);
    assert_eq!(plain.status.code(), Some(1));
    let said = String::from_utf8_lossy(&plain.stderr).into_owned();
    assert!(said.contains("EE2B"), "{said}");
    assert!(plain.stdout.is_empty());
    serving.stop();
}

/// The default form takes the key of page 0031h; what can never serve is refused when it is entered.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_with_the_ca_and_the_default_form_serves_or_is_refused() {
    let house = House::new("", "");
    let mut drive = house.unknown_drive(1);
    house.certify(&mut drive, "tls");
    let serial = drive.serial.to_string();
    let added = house.run(&["drive", "add", &serial, "--ca", "--wwn", &drive.wwn]);
    if !added.status.success() {
        let said = String::from_utf8_lossy(&added.stderr).into_owned();
        assert!(said.contains("--form"), "{said}");
        return;
    }
    let serving = house.serve().await;
    let output = house
        .command(&["softdrive", "write", "--session", "--volser", "VOL001"])
        .args(["--drive", &drive.directory, "--cartridge", "cartridge"])
        .args(["--server", &serving.address])
        .arg("--ca")
        .arg(&drive.identity.ca)
        .arg("--tls-cert")
        .arg(&drive.identity.certificate)
        .arg("--tls-key")
        .arg(&drive.identity.key)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    serving.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_speaks_for_the_drives_that_it_was_given() {
    let house = House::new(
        "",
        "[[policy.peers]]\npeer = \"proxy:ruled\"\ndrives = [\"000000000002\"]",
    );
    let (one, two) = (house.drive(1), house.drive(2));
    let serving = house.serve().await;
    let mut ruled = house.client(&serving, "proxy", "ruled");
    let mut speaker = house.client(&serving, "proxy", "speaker");
    for client in [&mut ruled, &mut speaker] {
        let refused = problem(client.create(&one.create()).await);
        assert_eq!(refused.code, EkmCode::EE30, "{refused}");
        assert!(refused.detail.contains("--speaker"), "{refused}");
    }
    let serial = one.serial.to_string();
    house.done(&["drive", "mod", &serial, "--speaker", "proxy:speaker"]);
    // One more takes nothing from the first.
    house.done(&["drive", "mod", &serial, "--speaker", "proxy:more"]);
    let shown = house.done(&["drive", "show", &serial]);
    assert!(shown.contains("proxy:speaker, proxy:more"), "{shown}");
    let shown = house.done(&["drive", "mod", &serial, "--no-speaker", "proxy:more"]);
    assert!(!shown.contains("proxy:more"), "{shown}");
    let answer = speaker.create(&one.create()).await.unwrap();
    // The proxy carries the key; only the drive can open it.
    one.soft.unwrap_sedk(&answer.sedk).unwrap();
    assert!(two.soft.unwrap_sedk(&answer.sedk).is_err());
    ruled.create(&two.create()).await.unwrap();
    for (client, drive) in [(&mut ruled, &one), (&mut speaker, &two)] {
        assert_eq!(
            problem(client.create(&drive.create()).await).code,
            EkmCode::EE30
        );
    }
    // What it may not create it may not resolve or confirm either.
    let eedks = vec![answer.eedks[0].eedk.clone()];
    let refused = problem(ruled.resolve(&resolve(&one, eedks)).await);
    assert_eq!(refused.code, EkmCode::EE30);
    let confirm = ConfirmRequest {
        request_id: Uuid::new_v4(),
        serial: one.serial.clone(),
        dki: answer.dki,
        stored: false,
    };
    assert_eq!(problem(ruled.confirm(&confirm).await).code, EkmCode::EE30);
    serving.stop();
}

/// A data key identifier stands in clear on every cartridge.
#[tokio::test(flavor = "multi_thread")]
async fn a_drive_cannot_tell_what_became_of_another_drives_key() {
    let house = House::new("", "");
    let (one, two) = (house.drive(1), house.drive(2));
    let serving = house.serve().await;
    let mut first = house.client_of(&serving, &one.identity);
    let mut second = house.client_of(&serving, &two.identity);
    let answer = first.create(&one.create()).await.unwrap();
    let outcome = second
        .confirm(&ConfirmRequest {
            request_id: Uuid::new_v4(),
            serial: two.serial.clone(),
            dki: answer.dki,
            stored: false,
        })
        .await;
    assert_eq!(
        house.volumes()[0].state,
        ekm::store::EedkState::Issued,
        "another drive has abandoned the key"
    );
    assert_eq!(problem(outcome).code, EkmCode::EE30);
    serving.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_names_only_the_keks_it_was_given() {
    let house = House::new(
        "",
        "[[policy.peers]]\npeer = \"drive:000000000001\"\ncreate_keks = [\"kek1\"]\nrekey_keks = [\"KEK2\"]",
    );
    house.done(&["kek", "generate", "KEK2", "--bits", "2048"]);
    let (one, two) = (house.drive(1), house.drive(2));
    let serving = house.serve().await;
    let mut listed = house.client_of(&serving, &one.identity);
    let mut plain = house.client_of(&serving, &two.identity);
    let naming = |drive: &HouseDrive, labels: [Option<&str>; 2]| CreateRequest {
        job: None,
        kek1: labels[0].map(|label| label.parse().unwrap()),
        kek2: labels[1].map(|label| label.parse().unwrap()),
        ..drive.create()
    };
    let answer = listed
        .create(&naming(&one, [Some("KEK1:hash"), None]))
        .await
        .unwrap();
    for labels in [
        [Some("KEK2"), None],
        [Some("KEK1"), Some("KEK2")],
        [None, Some("KEK2")],
        // What is not there and what is not allowed look alike.
        [Some("NOT-THERE"), None],
    ] {
        let refused = problem(listed.create(&naming(&one, labels)).await);
        assert_eq!(refused.code, EkmCode::EE30, "{labels:?}: {refused}");
        assert!(refused.detail.contains("create_keks"), "{refused}");
    }
    let refused = problem(plain.create(&naming(&two, [Some("KEK1"), None])).await);
    assert_eq!(refused.code, EkmCode::EE30, "{refused}");
    // Named by nobody, the default serves both.
    plain.create(&two.create()).await.unwrap();

    let rekey = |drive: &HouseDrive, kek: &str| RekeyRequest {
        request_id: Uuid::new_v4(),
        serial: drive.serial.clone(),
        volser: "VOL001".parse().unwrap(),
        eedks: answer.eedks.iter().map(|eedk| eedk.eedk.clone()).collect(),
        kek1: kek.parse().unwrap(),
        kek2: None,
    };
    let rekeyed = listed.rekey(&rekey(&one, "KEK2")).await.unwrap();
    assert_eq!(rekeyed.dki, answer.dki);
    let refused = problem(listed.rekey(&rekey(&one, "KEK1")).await);
    assert_eq!(refused.code, EkmCode::EE30, "{refused}");
    let refused = problem(plain.rekey(&rekey(&two, "KEK2")).await);
    assert_eq!(refused.code, EkmCode::EE30, "{refused}");
    serving.stop();
}

/// The row decides on custody, and the history says who did it.
#[tokio::test(flavor = "multi_thread")]
async fn a_drive_rekeys_in_its_own_name_only() {
    let house = House::new(
        "",
        "[[policy.peers]]\npeer = \"drive:000000000001\"\nrekey_keks = [\"*\"]",
    );
    let (one, two) = (house.drive(1), house.drive(2));
    let serving = house.serve().await;
    let mut client = house.client_of(&serving, &one.identity);
    let answer = client.create(&one.create()).await.unwrap();
    let mut request = RekeyRequest {
        request_id: Uuid::new_v4(),
        serial: two.serial.clone(),
        volser: "VOL001".parse().unwrap(),
        eedks: answer.eedks.iter().map(|eedk| eedk.eedk.clone()).collect(),
        kek1: "KEK1:hash".parse().unwrap(),
        kek2: None,
    };
    let refused = problem(client.rekey(&request).await);
    assert_eq!(refused.code, EkmCode::EE30, "{refused}");
    request.serial = one.serial.clone();
    client.rekey(&request).await.unwrap();
    serving.stop();
}

/// `proxy:*` and its like speak of a whole role.
#[tokio::test(flavor = "multi_thread")]
async fn a_rule_for_all_drives_can_be_configured() {
    let house = House::new("", "");
    house.configure(
        "",
        "[[policy.peers]]\npeer = \"drive:*\"\ncreate_keks = [\"*\"]",
    );
    let said = house.run(&["config", "check"]);
    assert!(
        said.status.success(),
        "{}",
        String::from_utf8_lossy(&said.stdout)
    );
    let drive = house.drive(1);
    let serving = house.serve().await;
    let mut client = house.client_of(&serving, &drive.identity);
    let request = CreateRequest {
        job: None,
        kek1: Some("KEK1".parse().unwrap()),
        ..drive.create()
    };
    client.create(&request).await.unwrap();
    serving.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_rekeys_and_gets_no_data_key() {
    let house = House::new("", "");
    house.done(&["kek", "generate", "KEK2", "--bits", "2048"]);
    let drive = house.drive(1);
    let serving = house.serve().await;
    let mut client = house.client_of(&serving, &drive.identity);
    let mut operator = house.client(&serving, "operator", "anna");
    let answer = client.create(&drive.create()).await.unwrap();
    let key = drive.soft.unwrap_sedk(&answer.sedk).unwrap();

    let refused = problem(operator.create(&drive.create()).await);
    assert_eq!(refused.code, EkmCode::EE30, "{refused}");
    let old: Vec<Base64> = answer.eedks.iter().map(|eedk| eedk.eedk.clone()).collect();
    let refused = problem(operator.resolve(&resolve(&drive, old.clone())).await);
    assert_eq!(refused.code, EkmCode::EE30, "{refused}");

    let rekeyed = operator
        .rekey(&RekeyRequest {
            request_id: Uuid::new_v4(),
            serial: drive.serial.clone(),
            volser: "VOL001".parse().unwrap(),
            eedks: old,
            kek1: "KEK2".parse().unwrap(),
            kek2: Some("KEK1:hash".parse().unwrap()),
        })
        .await
        .unwrap();
    assert_eq!(rekeyed.dki, answer.dki);
    assert_eq!(rekeyed.eedks.len(), 2);
    for eedk in rekeyed.eedks {
        let resolved = client
            .resolve(&resolve(&drive, vec![eedk.eedk]))
            .await
            .unwrap();
        let again = drive.soft.unwrap_sedk(&resolved.sedk).unwrap();
        assert_eq!(again.expose_secret(), key.expose_secret());
    }
    serving.stop();
}
