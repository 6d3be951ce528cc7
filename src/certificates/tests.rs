use super::*;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_RSA_SHA256,
};

/// An RSA key in software; made once, since in a debug build it takes a while.
fn rsa() -> KeyPair {
    use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
    use aws_lc_rs::rsa::{KeyPair as Rsa, KeySize};
    let key = Rsa::generate(KeySize::Rsa2048).unwrap();
    let der: Pkcs8V1Der<'_> = key.as_der().unwrap();
    KeyPair::from_pkcs8_der_and_sign_algo(&der.as_ref().to_vec().into(), &PKCS_RSA_SHA256).unwrap()
}

fn params(name: &str, days: std::ops::Range<i64>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    let now = OffsetDateTime::now_utc();
    params.not_before = now + Duration::days(days.start);
    params.not_after = now + Duration::days(days.end);
    params
}

fn ca(name: &str) -> (Vec<u8>, Issuer<'static, KeyPair>) {
    let key = KeyPair::generate().unwrap();
    let mut params = params(name, -1..100);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&key).unwrap();
    (certificate.der().to_vec(), Issuer::new(params, key))
}

#[test]
fn a_ca_vouches_for_what_it_issued_and_for_nothing_else() {
    let now = OffsetDateTime::now_utc();
    let key = rsa();
    let (root, issuer) = ca("Root");
    let (other, _) = ca("Other");
    let leaf = params("Partner", -1..10).signed_by(&key, &issuer).unwrap();
    let leaf = Certificate::read(leaf.der()).unwrap();
    assert_eq!((leaf.bits, leaf.subject.as_str()), (2048, "CN=Partner"));
    assert_eq!(
        vouched(&leaf, &[], Some(std::slice::from_ref(&root)), now),
        Ok(Vouched::Ca("CN=Root".to_owned()))
    );
    for (cas, part) in [(Some(vec![other]), "do not lead"), (None, "--ca FILE")] {
        let error = vouched(&leaf, &[], cas.as_deref(), now).unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
    }
    // One that has ended is vouched for by nobody.
    let later = now + Duration::days(11);
    assert!(vouched(&leaf, &[], Some(&[root]), later).is_err());
}

#[test]
fn a_chain_leads_over_the_certificates_in_between() {
    let now = OffsetDateTime::now_utc();
    let key = rsa();
    let (root, issuer) = ca("Root");
    let middle_key = KeyPair::generate().unwrap();
    let mut middle = params("Middle", -1..50);
    middle.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let between = middle
        .signed_by(&middle_key, &issuer)
        .unwrap()
        .der()
        .to_vec();
    let leaf = params("Partner", -1..10)
        .signed_by(&key, &Issuer::new(middle, middle_key))
        .unwrap();
    let leaf = Certificate::read(leaf.der()).unwrap();
    let roots = [root];
    assert!(vouched(&leaf, &[], Some(&roots), now).is_err());
    assert!(vouched(&leaf, &[between], Some(&roots), now).is_ok());
}

#[test]
fn self_signed_is_called_so_and_must_be_true() {
    let now = OffsetDateTime::now_utc();
    let key = rsa();
    let own = params("Partner", -1..10).self_signed(&key).unwrap();
    let own = Certificate::read(own.der()).unwrap();
    assert_eq!(vouched(&own, &[], None, now), Ok(Vouched::Itself));
    let mut forged = own.der.clone();
    let last = forged.len() - 1;
    forged[last] ^= 1;
    let forged = Certificate::read(&forged).unwrap();
    assert_eq!(
        vouched(&forged, &[], None, now),
        Err(CertificateError::SelfSignature)
    );
}

#[test]
fn what_cannot_wrap_is_no_certificate_of_a_kek() {
    let elliptic = KeyPair::generate().unwrap();
    let der = params("EC", 0..1).self_signed(&elliptic).unwrap();
    assert_eq!(Certificate::read(der.der()), Err(CertificateError::Key));
    let key = rsa();
    let mut signs = params("Signs", 0..1);
    signs.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let der = signs.self_signed(&key).unwrap();
    assert_eq!(Certificate::read(der.der()), Err(CertificateError::Usage));
    let good = params("Good", 0..1)
        .self_signed(&key)
        .unwrap()
        .der()
        .to_vec();
    let trailing = [good.as_slice(), &[0]].concat();
    for bad in [&trailing[..], &good[..good.len() - 1], &[], &[0x30, 0x84]] {
        assert_eq!(Certificate::read(bad), Err(CertificateError::Malformed));
    }
    assert_eq!(
        Certificate::read(&vec![0; LONGEST + 1]),
        Err(CertificateError::TooLong { got: LONGEST + 1 })
    );
}

#[test]
fn validity_is_told_in_words() {
    let now = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
    let good = |from: i64, to: i64| Validity {
        not_before: now + Duration::days(from),
        not_after: now + Duration::days(to),
    };
    assert_eq!(good(-1, 31).warning(now), None);
    let soon = good(-1, 29);
    assert_eq!(soon.fault(now), None);
    assert!(soon.warning(now).unwrap().contains("in 29 days"));
    assert!(
        good(-2, -1)
            .fault(now)
            .unwrap()
            .contains("ended on 2027-01-14")
    );
    assert!(
        good(1, 2)
            .fault(now)
            .unwrap()
            .contains("not good before 2027-01-16")
    );
}

#[test]
fn a_fingerprint_may_be_typed_in_several_ways() {
    let fingerprint = [0xab; 32];
    let spelled = spelled(&fingerprint);
    for text in [
        spelled.clone(),
        spelled.to_lowercase(),
        spelled.replace(':', ""),
        format!("sha256:{}", spelled.replace(':', " ")),
    ] {
        assert_eq!(typed(&text), Some(fingerprint), "{text}");
    }
    for wrong in ["", "AB", &spelled[..93], "yes"] {
        assert_eq!(typed(wrong), None, "{wrong}");
    }
}

#[test]
fn a_subject_is_read_as_it_is_written() {
    let name = |text: &str| text.parse::<Subject>().unwrap().distinguished_name();
    let mut expected = rcgen::DistinguishedName::new();
    expected.push(DnType::CommonName, "TAPE 2026");
    expected.push(DnType::OrganizationName, "Example, Inc.");
    assert_eq!(name("CN=TAPE 2026, o=Example\\, Inc."), expected);
    let long = format!("CN={}", "x".repeat(65));
    for wrong in [
        "",
        "CN",
        "CN=",
        "X=1",
        "CN=a,CN=b",
        "C=DEU",
        "CN=a\u{7}",
        &long,
    ] {
        assert!(wrong.parse::<Subject>().is_err(), "{wrong}");
    }
}

#[test]
fn files_are_read_as_pem_or_der_and_bounded() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    let (der, _) = ca("Root");
    let pem = der::pem::encode_string("CERTIFICATE", der::pem::LineEnding::LF, &der).unwrap();
    std::fs::write(&path, &der).unwrap();
    assert_eq!(from_file(&path), Ok(vec![der.clone()]));
    std::fs::write(&path, pem.repeat(2)).unwrap();
    assert_eq!(from_file(&path), Ok(vec![der.clone(), der]));
    for bad in [
        pem.repeat(17),
        pem.replace("CERTIFICATE", "PUBLIC KEY"),
        "x".repeat(300_000),
    ] {
        std::fs::write(&path, bad).unwrap();
        assert!(from_file(&path).is_err());
    }
}
