use super::*;

const DAY: Duration = Duration::from_secs(24 * 3600);

fn ca() -> (tempfile::TempDir, Ca) {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::init(&dir.path().join("ca"), "site", 30 * DAY).unwrap();
    (dir, ca)
}

fn request(peer: &str) -> Request {
    Request::new(peer.parse().unwrap(), DAY)
}

fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt as _;
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn keys_are_for_the_owner_only() {
    let (dir, ca) = ca();
    let dir = dir.path().join("ca");
    let issued = ca.issue(&request("proxy:a")).unwrap();
    let key = issued.key_path.unwrap();
    assert_eq!(key, dir.join("issued/proxy-a.key"));
    assert_eq!(
        fs::read_to_string(&key).unwrap(),
        issued.key_pem.unwrap().expose_secret()
    );
    for private in [dir.join("ca.key"), key, dir.join("index.json")] {
        assert_eq!(mode(&private), 0o600, "{}", private.display());
    }
    assert_eq!(mode(&dir), 0o700);
}

#[test]
fn an_authority_is_never_overwritten() {
    let (dir, ca) = ca();
    let again = Ca::init(&dir.path().join("ca"), "site", DAY);
    assert!(matches!(again, Err(CaError::Exists { .. })), "{again:?}");
    let same = Ca::open(&dir.path().join("ca")).unwrap();
    assert_eq!(same.cert_pem(), ca.cert_pem());
    assert_eq!(same.not_after(), ca.not_after());
}

#[test]
fn where_there_is_no_authority_the_way_to_one_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let absent = Ca::open(dir.path()).unwrap_err();
    assert!(matches!(absent, CaError::Absent { .. }), "{absent:?}");
    assert!(absent.to_string().contains("ekm tls init"), "{absent}");
}

#[test]
fn a_key_of_another_authority_is_refused() {
    let (dir, _) = ca();
    let (other, _) = ca();
    fs::copy(other.path().join("ca/ca.key"), dir.path().join("ca/ca.key")).unwrap();
    let refused = Ca::open(&dir.path().join("ca"));
    assert!(
        matches!(refused, Err(CaError::KeyMismatch { .. })),
        "{refused:?}"
    );
}

#[test]
fn what_was_issued_and_revoked_stands_in_the_index() {
    let (dir, ca) = ca();
    let first = ca.issue(&request("proxy:a")).unwrap();
    let second = ca.issue(&request("proxy:a")).unwrap();
    ca.issue(&request("operator:b")).unwrap();
    assert_ne!(first.serial, second.serial);
    assert_eq!(first.serial.len(), 32);

    let revoked = ca.revoke(&first.serial).unwrap();
    assert_eq!(revoked.len(), 1);
    let list = Ca::open(&dir.path().join("ca")).unwrap().list().unwrap();
    let state: Vec<_> = list
        .iter()
        .map(|entry| (entry.name.as_str(), entry.revoked.is_some()))
        .collect();
    assert_eq!(state, [("a", true), ("a", false), ("b", false)]);
    assert_eq!(list[1].not_after, second.not_after);
    assert_eq!(list[1].serial, second.serial);

    let revoked = ca.revoke("proxy:a").unwrap();
    assert_eq!(revoked.len(), 2);
    assert_eq!(revoked[0].revoked, list[0].revoked, "the first time stands");
    assert_eq!(ca.revoke("a").unwrap(), revoked, "again is no error");
    let unknown = ca.revoke("proxy:c");
    assert!(
        matches!(unknown, Err(CaError::NotIssued { .. })),
        "{unknown:?}"
    );
}

#[test]
fn a_name_of_two_roles_is_not_guessed() {
    let (_dir, ca) = ca();
    ca.issue(&request("proxy:a")).unwrap();
    ca.issue(&request("operator:a")).unwrap();
    let refused = ca.revoke("a");
    assert!(
        matches!(refused, Err(CaError::Ambiguous { .. })),
        "{refused:?}"
    );
    assert!(
        ca.list()
            .unwrap()
            .iter()
            .all(|entry| entry.revoked.is_none())
    );
    assert_eq!(ca.revoke("operator:a").unwrap().len(), 1);
}

#[test]
fn a_certificate_does_not_outlive_its_authority() {
    let (_dir, ca) = ca();
    let mut long = request("proxy:a");
    long.validity = 31 * DAY;
    let refused = ca.issue(&long);
    assert!(
        matches!(refused, Err(CaError::OutlivesCa { .. })),
        "{refused:?}"
    );
    long.validity = Duration::MAX;
    let refused = ca.issue(&long);
    assert!(matches!(refused, Err(CaError::Validity)), "{refused:?}");
    assert!(ca.list().unwrap().is_empty());
}

#[test]
fn a_server_is_found_under_all_its_names() {
    let (_dir, ca) = ca();
    let mut server = request("server:ekm-1");
    server.hosts = ["ekm.example.org", "192.0.2.7", "localhost"]
        .map(String::from)
        .into();
    let issued = ca.issue(&server).unwrap();
    let der = CertificateDer::from_pem_slice(issued.cert_pem.as_bytes()).unwrap();
    let certificate = webpki::EndEntityCert::try_from(&der).unwrap();
    for name in ["localhost", "127.0.0.1", "ekm.example.org", "192.0.2.7"] {
        let name = name.try_into().unwrap();
        certificate.verify_is_valid_for_subject_name(&name).unwrap();
    }
    assert_eq!(PeerId::from_certificate(&der).unwrap(), server.peer);

    let mut client = request("proxy:a");
    client.hosts = vec!["ekm.example.org".into()];
    let refused = ca.issue(&client);
    assert!(
        matches!(refused, Err(CaError::HostsOfClient { .. })),
        "{refused:?}"
    );
    let mut bad = request("server:ekm-1");
    bad.hosts = vec!["é".into()];
    let refused = ca.issue(&bad);
    assert!(matches!(refused, Err(CaError::Host { .. })), "{refused:?}");
}

#[test]
fn a_public_key_is_certified_without_a_private_one() {
    let (dir, ca) = ca();
    let rsa = KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
    let mut drive = request("drive:000001234567");
    drive.spki = Some(rsa.subject_public_key_info());
    drive.output = Output::Directory(dir.path().join("out"));
    let issued = ca.issue(&drive).unwrap();
    assert_eq!(
        issued.cert_path,
        Some(dir.path().join("out/drive-000001234567.crt"))
    );
    assert!(issued.key_path.is_none() && issued.key_pem.is_none());
    let der = CertificateDer::from_pem_slice(issued.cert_pem.as_bytes()).unwrap();
    let (_, certificate) = x509_parser::parse_x509_certificate(&der).unwrap();
    assert_eq!(certificate.public_key().raw, rsa.subject_public_key_info());

    drive.spki = Some(vec![0x30, 0]);
    let refused = ca.issue(&drive);
    assert!(matches!(refused, Err(CaError::DriveKey(_))), "{refused:?}");
}

#[test]
fn two_processes_lose_no_entry() {
    let (dir, _ca) = ca();
    let dir = dir.path().join("ca");
    let issuers: Vec<_> = (0..4)
        .map(|number| {
            let ca = Ca::open(&dir).unwrap();
            std::thread::spawn(move || {
                for _ in 0..5 {
                    ca.issue(&request(&format!("proxy:p{number}"))).unwrap();
                }
            })
        })
        .collect();
    for issuer in issuers {
        issuer.join().unwrap();
    }
    assert_eq!(Ca::open(&dir).unwrap().list().unwrap().len(), 20);
}
