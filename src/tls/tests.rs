use std::io;
use std::time::Duration;

use rustls::client::Resumption;
use rustls::pki_types::UnixTime;
use rustls::{
    CertificateError, ClientConfig, ClientConnection, HandshakeKind, ServerConfig, ServerConnection,
};
use tempfile::TempDir;

use super::ca::{Ca, Output, Request};
use super::*;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// A site: its authority, and a server that takes its clients.
struct Site {
    dir: TempDir,
    ca: Ca,
    server: ServerTls,
}

impl Site {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::init(&dir.path().join("ca"), "site", 30 * DAY).unwrap();
        issue(&ca, "server:ekm-1", |_| {});
        let issued = dir.path().join("ca/issued");
        let server = ServerTls::load(&Paths {
            cert: issued.join("server-ekm-1.crt"),
            key: issued.join("server-ekm-1.key"),
            client_ca: ca.cert_path(),
            crl: Some(ca.crl_path()),
        })
        .unwrap();
        Self { dir, ca, server }
    }

    fn issued(&self, file: &str) -> PathBuf {
        self.dir.path().join("ca/issued").join(file)
    }

    /// A client of this site that shows what `ca` issued to `peer`.
    fn client_of(&self, ca: &Ca, peer: &str) -> ClientConfig {
        let issued = ca.cert_path().with_file_name("issued");
        let stem = peer.replace(':', "-");
        client_config(
            &self.ca.cert_path(),
            &issued.join(format!("{stem}.crt")),
            &issued.join(format!("{stem}.key")),
        )
        .unwrap()
    }

    fn client(&self, peer: &str) -> ClientConfig {
        issue(&self.ca, peer, |_| {});
        self.client_of(&self.ca, peer)
    }

    fn refusal(&self, client: ClientConfig) -> rustls::Error {
        handshake(&Arc::new(client), self.server.current()).unwrap_err()
    }
}

fn issue(ca: &Ca, peer: &str, change: impl FnOnce(&mut Request)) {
    let mut request = Request::new(peer.parse().unwrap(), DAY);
    change(&mut request);
    ca.issue(&request).unwrap();
}

/// Lets the two talk until neither has more to say. The server's error comes before the client's.
fn handshake(
    client: &Arc<ClientConfig>,
    server: Arc<ServerConfig>,
) -> Result<(PeerId, HandshakeKind), rustls::Error> {
    let mut client =
        ClientConnection::new(Arc::clone(client), "localhost".try_into().unwrap()).unwrap();
    let mut server = ServerConnection::new(server).unwrap();
    loop {
        let mut moved = false;
        while client.wants_write() {
            let mut bytes = Vec::new();
            client.write_tls(&mut bytes).unwrap();
            server.read_tls(&mut io::Cursor::new(bytes)).unwrap();
            server.process_new_packets()?;
            moved = true;
        }
        while server.wants_write() {
            let mut bytes = Vec::new();
            server.write_tls(&mut bytes).unwrap();
            client.read_tls(&mut io::Cursor::new(bytes)).unwrap();
            client.process_new_packets()?;
            moved = true;
        }
        if !moved {
            break;
        }
    }
    assert_eq!(server.alpn_protocol(), Some(ALPN));
    let certificates = server.peer_certificates().unwrap();
    let peer = PeerId::from_certificate(&certificates[0]).unwrap();
    Ok((peer, server.handshake_kind().unwrap()))
}

#[test]
fn a_client_of_the_site_is_known_by_name() {
    let site = Site::new();
    for name in ["drive:000001234567", "proxy:host-1", "operator:alice"] {
        let client = Arc::new(site.client(name));
        let (peer, _) = handshake(&client, site.server.current()).unwrap();
        assert_eq!(peer, name.parse().unwrap());
    }
}

#[test]
fn tls_1_2_is_spoken_too() {
    let site = Site::new();
    site.client("proxy:old");
    let roots = certificates(&site.ca.cert_path()).unwrap();
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(root_store(Path::new("ca"), &roots).unwrap());
    let mut with = config
        .clone()
        .with_client_auth_cert(
            certificates(&site.issued("proxy-old.crt")).unwrap(),
            private_key(&site.issued("proxy-old.key")).unwrap(),
        )
        .unwrap();
    with.alpn_protocols = vec![ALPN.to_vec()];
    let (peer, _) = handshake(&Arc::new(with), site.server.current()).unwrap();
    assert_eq!(peer.name(), "old");
    let refused = site.refusal(config.with_no_client_auth());
    assert_eq!(refused, rustls::Error::NoCertificatesPresented);
}

#[test]
fn no_certificate_is_refused() {
    let site = Site::new();
    let roots = certificates(&site.ca.cert_path()).unwrap();
    let client = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(VERSIONS)
        .unwrap()
        .with_root_certificates(root_store(Path::new("ca"), &roots).unwrap())
        .with_no_client_auth();
    assert_eq!(site.refusal(client), rustls::Error::NoCertificatesPresented);
}

#[test]
fn a_foreign_ca_is_refused() {
    let (site, other) = (Site::new(), Site::new());
    issue(&other.ca, "operator:mallory", |_| {});
    // Both authorities are called alike, so that only the signature tells them apart.
    let refused = site.refusal(site.client_of(&other.ca, "operator:mallory"));
    let rustls::Error::InvalidCertificate(error) = refused else {
        panic!("{refused:?}");
    };
    assert!(
        matches!(
            error,
            CertificateError::BadSignature | CertificateError::UnknownIssuer
        ),
        "{error:?}"
    );
}

#[test]
fn a_server_of_a_foreign_ca_is_refused_by_the_client() {
    let (site, other) = (Site::new(), Site::new());
    let client = Arc::new(site.client("proxy:a"));
    assert!(handshake(&client, other.server.current()).is_err());
}

#[test]
fn an_expired_certificate_is_refused() {
    let site = Site::new();
    issue(&site.ca, "proxy:late", |request| {
        request.not_before -= 2 * DAY
    });
    let refused = site.refusal(site.client_of(&site.ca, "proxy:late"));
    assert!(
        matches!(
            refused,
            rustls::Error::InvalidCertificate(
                CertificateError::Expired | CertificateError::ExpiredContext { .. }
            )
        ),
        "{refused:?}"
    );
}

#[test]
fn a_servers_certificate_makes_a_client_of_role_server_and_no_other() {
    let site = Site::new();
    let client = Arc::new(site.client("server:ekm-2"));
    let (peer, _) = handshake(&client, site.server.current()).unwrap();
    assert_eq!(peer.to_string(), "server:ekm-2");
    // That of a client makes no server.
    for peer in ["drive:000000000001", "proxy:ekm-1", "operator:ekm-1"] {
        issue(&site.ca, peer, |_| {});
        let name = peer.replace(':', "-");
        let paths = Paths {
            cert: site.issued(&format!("{name}.crt")),
            key: site.issued(&format!("{name}.key")),
            client_ca: site.ca.cert_path(),
            crl: None,
        };
        let impostor = ServerTls::load(&paths).unwrap();
        let client = Arc::new(site.client("server:ekm-2"));
        assert!(handshake(&client, impostor.current()).is_err(), "{peer}");
    }
}

#[test]
fn a_revoked_certificate_is_refused_after_reload() {
    let site = Site::new();
    let client = Arc::new(site.client("proxy:gone"));
    let stays = Arc::new(site.client("proxy:stays"));
    handshake(&client, site.server.current()).unwrap();
    assert!(!site.server.changed_on_disk());
    site.ca.revoke("proxy:gone").unwrap();
    assert!(site.server.changed_on_disk());
    site.server.reload().unwrap();
    assert!(!site.server.changed_on_disk());
    let refused = handshake(&client, site.server.current()).unwrap_err();
    assert_eq!(
        refused,
        rustls::Error::InvalidCertificate(CertificateError::Revoked)
    );
    handshake(&stays, site.server.current()).unwrap();
}

#[test]
fn a_chain_that_was_found_good_is_looked_at_again_after_reload() {
    let site = Site::new();
    issue(&site.ca, "proxy:gone", |_| {});
    let shown = ShownChain::new(certificates(&site.issued("proxy-gone.crt")).unwrap());
    for _ in 0..2 {
        assert!(site.server.admits(&shown));
    }
    site.ca.revoke("proxy:gone").unwrap();
    site.server.reload().unwrap();
    for _ in 0..2 {
        assert!(!site.server.admits(&shown));
    }
}

#[test]
fn a_chain_that_was_found_good_is_refused_once_it_has_ended() {
    let site = Site::new();
    issue(&site.ca, "proxy:short", |_| {});
    let chain = certificates(&site.issued("proxy-short.crt")).unwrap();
    let end = not_after(&chain[0]).unwrap().unix_timestamp();
    let shown = ShownChain::new(chain);
    let at = |second: i64| {
        let second = Duration::from_secs(second.try_into().unwrap());
        site.server
            .admits_at(&shown, UnixTime::since_unix_epoch(second))
    };
    // Less than a minute, for which what was found would be good, before and after.
    assert!(at(end - 30) && at(end - 1));
    assert!(!at(end + 1));
}

#[test]
fn nothing_is_resumed() {
    let site = Site::new();
    let mut client = site.client("proxy:a");
    client.resumption = Resumption::in_memory_sessions(8);
    let client = Arc::new(client);
    for _ in 0..2 {
        let (_, kind) = handshake(&client, site.server.current()).unwrap();
        assert_eq!(kind, HandshakeKind::Full);
    }
}

/// Puts another file in its place: two writes to one file within a tick of the kernel's clock may
/// leave it with the same time.
fn replace(file: &Path, content: &[u8]) {
    let new = file.with_extension("new");
    fs::write(&new, content).unwrap();
    fs::rename(&new, file).unwrap();
}

#[test]
fn reload_keeps_the_old_when_a_file_is_broken() {
    let site = Site::new();
    let client = Arc::new(site.client("proxy:a"));
    issue(&site.ca, "server:other", |_| {});
    let other_key = fs::read(site.issued("server-other.key")).unwrap();
    for (file, content) in [
        (site.issued("server-ekm-1.crt"), b"garbage".as_slice()),
        (site.issued("server-ekm-1.key"), b"garbage"),
        (site.issued("server-ekm-1.key"), &other_key),
        (site.ca.crl_path(), b""),
    ] {
        let before = site.server.current();
        let good = fs::read(&file).unwrap();
        replace(&file, content);
        assert!(site.server.changed_on_disk());
        let error = site.server.reload().unwrap_err();
        let file_name = file.file_name().unwrap().to_str().unwrap();
        assert!(error.to_string().contains(file_name), "{error}");
        assert!(!site.server.changed_on_disk(), "one report for one fault");
        assert!(Arc::ptr_eq(&before, &site.server.current()));
        handshake(&client, site.server.current()).unwrap();
        replace(&file, &good);
        assert!(site.server.changed_on_disk());
        site.server.reload().unwrap();
        assert!(!Arc::ptr_eq(&before, &site.server.current()));
        handshake(&client, site.server.current()).unwrap();
    }
}

#[test]
fn a_missing_file_is_named() {
    let site = Site::new();
    let gone = site.ca.crl_path();
    fs::remove_file(&gone).unwrap();
    let error = site.server.reload().unwrap_err();
    let TlsError::Read { path, .. } = error else {
        panic!("{error:?}");
    };
    assert_eq!(path, gone);
}

#[test]
fn the_soonest_end_counts() {
    let site = Site::new();
    let ends: Vec<_> = site
        .ca
        .list()
        .unwrap()
        .iter()
        .map(|entry| entry.not_after)
        .collect();
    assert_eq!(site.server.expiry(), ends[0]);
    assert!(ends[0] < site.ca.not_after());
    // The server's own certificate now outlives the day that it had.
    issue(&site.ca, "server:ekm-1", |request| {
        request.validity = 20 * DAY
    });
    let reloaded = site.server.reload().unwrap();
    assert_eq!(reloaded.expiry, site.ca.list().unwrap()[1].not_after);
    assert_eq!(reloaded.expiry, site.server.expiry());
}

#[test]
fn a_drives_key_is_taken_from_its_certificate() {
    let site = Site::new();
    let key = rcgen::KeyPair::generate().unwrap();
    let spki = rcgen::PublicKeyData::subject_public_key_info(&key);
    let mut request = Request::new("drive:000001234567".parse().unwrap(), DAY);
    request.spki = Some(spki.clone());
    request.output = Output::Nowhere;
    let issued = site.ca.issue(&request).unwrap();
    assert!(issued.key_pem.is_none());
    let der = CertificateDer::from_pem_slice(issued.cert_pem.as_bytes()).unwrap();
    let roots = site.ca.cert_pem().as_bytes();
    let now = OffsetDateTime::now_utc();

    let drive = verify_drive_certificate(&der, &[], roots, now).unwrap();
    assert_eq!(
        (drive.serial.as_str(), &drive.spki),
        ("000001234567", &spki)
    );

    for (then, what) in [(now + 2 * DAY, "expired"), (now - 2 * DAY, "not valid yet")] {
        let refused = verify_drive_certificate(&der, &[], roots, then);
        assert!(
            matches!(refused, Err(TlsError::DriveCertificate(_))),
            "{what}: {refused:?}"
        );
    }
    let other = Site::new();
    let refused = verify_drive_certificate(&der, &[], other.ca.cert_pem().as_bytes(), now);
    assert!(
        matches!(refused, Err(TlsError::DriveCertificate(_))),
        "{refused:?}"
    );
    let refused = verify_drive_certificate(&der, &[], b"", now);
    assert!(matches!(refused, Err(TlsError::DriveRoots)), "{refused:?}");

    site.ca.revoke(&issued.serial).unwrap();
    let list = fs::read_to_string(site.ca.crl_path()).unwrap();
    let with_list = format!("{}{list}", site.ca.cert_pem());
    let refused = verify_drive_certificate(&der, &[], with_list.as_bytes(), now);
    assert!(
        matches!(
            refused,
            Err(TlsError::DriveCertificate(webpki::Error::CertRevoked))
        ),
        "{refused:?}"
    );
}

#[test]
fn only_a_drives_certificate_is_a_drives() {
    let site = Site::new();
    let now = OffsetDateTime::now_utc();
    let verify = |file: &str| {
        let der = certificates(&site.issued(file)).unwrap().remove(0);
        verify_drive_certificate(&der, &[], site.ca.cert_pem().as_bytes(), now)
    };
    site.client("proxy:a");
    for other in ["proxy-a.crt", "server-ekm-1.crt"] {
        let refused = verify(other);
        assert!(
            matches!(refused, Err(TlsError::NotADrive { .. })),
            "{refused:?}"
        );
    }
}

#[test]
fn a_drive_ca_may_have_intermediates() {
    let params = |name: &str| {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, name);
        params
    };
    let authority = |name| {
        let mut params = params(name);
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params
    };
    let root_key = rcgen::KeyPair::generate().unwrap();
    let root_pem = authority("root").self_signed(&root_key).unwrap().pem();
    let root = rcgen::Issuer::new(authority("root"), root_key);
    let middle_key = rcgen::KeyPair::generate().unwrap();
    let middle_cert = authority("middle").signed_by(&middle_key, &root).unwrap();
    let middle = rcgen::Issuer::new(authority("middle"), middle_key);
    let mut drive = params("drive");
    drive.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    drive.subject_alt_names = vec![rcgen::SanType::URI(
        "urn:ekm:drive:0000ABC00001".try_into().unwrap(),
    )];
    let key = rcgen::KeyPair::generate().unwrap();
    let drive = drive.signed_by(&key, &middle).unwrap();
    let now = OffsetDateTime::now_utc();
    let chain = [middle_cert.der().to_vec()];
    let verified = verify_drive_certificate(drive.der(), &chain, root_pem.as_bytes(), now).unwrap();
    assert_eq!(verified.serial, "0000ABC00001");
    let mut params = params("any");
    params.subject_alt_names = vec![rcgen::SanType::URI(
        "urn:ekm:drive:0000ABC00001".try_into().unwrap(),
    )];
    let any = params.signed_by(&key, &middle).unwrap();
    let refused = verify_drive_certificate(any.der(), &chain, root_pem.as_bytes(), now);
    assert!(matches!(refused, Err(TlsError::DriveUsage)), "{refused:?}");
    assert!(verify_drive_certificate(drive.der(), &[], root_pem.as_bytes(), now).is_err());
}

#[test]
fn a_signature_fits_its_key_scheme_and_message() {
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{
        ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, RSA_PSS_SHA256, RsaKeyPair,
    };

    let message = b"challenge";
    let random = SystemRandom::new();
    let ec = rcgen::KeyPair::generate().unwrap();
    let ec_signer =
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, ec.serialized_der()).unwrap();
    let ec_signature = ec_signer.sign(&random, message).unwrap().as_ref().to_vec();
    let rsa = rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
    let rsa_signer = RsaKeyPair::from_pkcs8(rsa.serialized_der()).unwrap();
    let mut rsa_signature = vec![0; rsa_signer.public_modulus_len()];
    rsa_signer
        .sign(&RSA_PSS_SHA256, &random, message, &mut rsa_signature)
        .unwrap();

    let spki = |key: &rcgen::KeyPair| rcgen::PublicKeyData::subject_public_key_info(key);
    let (ec, rsa) = (spki(&ec), spki(&rsa));
    let cases = [
        (&ec, SignatureScheme::EcdsaP256Sha256, &ec_signature),
        (&rsa, SignatureScheme::RsaPssSha256, &rsa_signature),
    ];
    for (key, scheme, signature) in cases {
        assert_eq!(SignatureScheme::of_key(key).unwrap(), scheme);
        verify_signature(key, scheme, message, signature).unwrap();
        let refused = verify_signature(key, scheme, b"another", signature);
        assert!(matches!(refused, Err(TlsError::Signature)), "{refused:?}");
        let refused = verify_signature(key, scheme, message, &signature[1..]);
        assert!(matches!(refused, Err(TlsError::Signature)), "{refused:?}");
    }
    let refused = verify_signature(&ec, SignatureScheme::RsaPssSha256, message, &rsa_signature);
    assert!(
        matches!(refused, Err(TlsError::SchemeMismatch { .. })),
        "{refused:?}"
    );
    let p384 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    for bad in [
        spki(&p384),
        ec[1..].to_vec(),
        [ec.as_slice(), b"x"].concat(),
    ] {
        let refused = SignatureScheme::of_key(&bad);
        assert!(
            matches!(refused, Err(TlsError::UnsupportedKey)),
            "{refused:?}"
        );
    }
}

#[test]
fn a_certificate_names_one_peer() {
    let key = rcgen::KeyPair::generate().unwrap();
    let named = |uris: &[&str]| {
        let mut params = rcgen::CertificateParams::default();
        params.subject_alt_names = uris
            .iter()
            .map(|uri| rcgen::SanType::URI((*uri).try_into().unwrap()))
            .collect();
        PeerId::from_certificate(params.self_signed(&key).unwrap().der())
    };
    let one = named(&["https://example.org/", "urn:ekm:operator:alice"]).unwrap();
    assert_eq!(one.to_string(), "operator:alice");
    assert_eq!(named(&[]), Err(PeerError::Unnamed));
    assert_eq!(
        named(&["urn:other:operator:alice"]),
        Err(PeerError::Unnamed)
    );
    let two = named(&["urn:ekm:operator:alice", "URN:EKM:operator:bob"]);
    assert_eq!(two, Err(PeerError::Ambiguous));
    assert!(matches!(
        named(&["URN:ekm:operator:a"]),
        Err(PeerError::Form { .. })
    ));
    assert!(matches!(
        named(&["urn:ekm:root:a"]),
        Err(PeerError::Role { .. })
    ));
    assert!(matches!(
        named(&["urn:ekm:drive:1"]),
        Err(PeerError::Name { .. })
    ));
    assert_eq!(
        PeerId::from_certificate(b"\x30\x03"),
        Err(PeerError::Certificate)
    );
}

#[test]
fn files_of_a_client_are_looked_at_one_by_one_and_together() {
    let site = Site::new();
    issue(&site.ca, "drive:000001365054", |_| {});
    issue(&site.ca, "drive:000001365055", |_| {});
    let ca = site.ca.cert_path();
    let cert = site.issued("drive-000001365054.crt");
    let key = site.issued("drive-000001365054.key");
    let other = site.issued("drive-000001365055.key");
    let missing = site.issued("none.crt");
    check_client_files(None, None, None).unwrap();
    check_client_files(Some(&ca), Some(&cert), Some(&key)).unwrap();
    check_client_files(None, Some(&cert), None).unwrap();
    let together = check_client_files(None, Some(&cert), Some(&other));
    assert!(
        matches!(together, Err(TlsError::Identity { .. })),
        "{together:?}"
    );
    let gone = check_client_files(Some(&missing), None, None);
    assert!(matches!(gone, Err(TlsError::Read { .. })), "{gone:?}");
    for (ca, key) in [(Some(key.as_path()), None), (None, Some(cert.as_path()))] {
        let kind = check_client_files(ca, None, key);
        assert!(matches!(kind, Err(TlsError::Pem { .. })), "{kind:?}");
    }
}
