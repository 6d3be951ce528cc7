use std::{fs, os::unix::fs::PermissionsExt};

use aws_lc_rs::{
    rsa::{OaepAlgorithm, OaepPublicEncryptingKey, PublicEncryptingKey},
    signature::{ECDSA_P256_SHA256_ASN1, ParsedPublicKey},
};
use rcgen::{CertificateParams, Issuer, SubjectPublicKeyInfo};
use tempfile::TempDir;

use super::*;
use crate::t10::WrappedKeyLabel;

/// A new drive, in a directory that goes away.
pub(in crate::softdrive) fn drive(kind: DriveKind) -> (TempDir, SoftDrive) {
    let directory = TempDir::new().unwrap();
    let names = Init {
        serial: "1013000123".parse().unwrap(),
        wwn: "500104F000ABCDEF".parse().unwrap(),
        kind,
    };
    let drive = SoftDrive::init(&directory.path().join("drive"), &names).unwrap();
    (directory, drive)
}

/// What a key manager does for KEY FORMAT 02h.
pub(in crate::softdrive) fn wrap_for(spki: &[u8], wwn: Wwn, key: &[u8]) -> WrappedKey {
    let label = WrappedKeyLabel::new(wwn);
    let wrapped = wrap(
        spki,
        &OAEP_SHA256_MGF1SHA256,
        Some(label.bytes().as_slice()),
        key,
    );
    WrappedKey::new(label, &wrapped).unwrap()
}

fn wrap(
    spki: &[u8],
    algorithm: &'static OaepAlgorithm,
    label: Option<&[u8]>,
    key: &[u8],
) -> Vec<u8> {
    let public = PublicEncryptingKey::from_der(spki).unwrap();
    let public = OaepPublicEncryptingKey::new(public).unwrap();
    let mut wrapped = vec![0; public.ciphertext_size()];
    let len = public
        .encrypt(algorithm, key, &mut wrapped, label)
        .unwrap()
        .len();
    wrapped.truncate(len);
    wrapped
}

fn certify(drive: &SoftDrive) -> String {
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let issuer = Issuer::new(CertificateParams::default(), ca_key);
    let spki = SubjectPublicKeyInfo::from_der(&drive.certificate_spki().unwrap()).unwrap();
    let certificate = CertificateParams::default().signed_by(&spki, &issuer);
    certificate.unwrap().pem()
}

fn t10(key: &WrappedKey) -> Sedk {
    Sedk::from(key)
}

const KEY: [u8; 32] = [0x42; 32];

#[test]
fn a_drive_is_opened_as_it_was_made() {
    let (_directory, drive) = drive(DriveKind::Enterprise);
    let again = SoftDrive::open(&drive.directory).unwrap();
    assert_eq!(again.names, drive.names);
    assert_eq!(again.serial().as_str(), "001013000123");
    assert_eq!(again.public_key_spki(), drive.public_key_spki());
    assert_eq!(
        again.certificate_spki().unwrap(),
        drive.certificate_spki().unwrap()
    );
    assert_eq!(again.fingerprint().len(), 64);
    let page = drive.public_key().unwrap();
    assert_eq!(page.to_spki().unwrap(), drive.public_key_spki());
}

#[test]
fn private_keys_are_for_their_owner_alone() {
    let (_directory, drive) = drive(DriveKind::Lto);
    for name in [WRAPPING_KEY, CERTIFICATE_KEY, CONFIG] {
        let file = fs::metadata(drive.directory.join(name)).unwrap();
        assert_eq!(file.permissions().mode() & 0o777, 0o600, "{name}");
    }
}

#[test]
fn a_drive_is_never_overwritten() {
    let (_directory, drive) = drive(DriveKind::Lto);
    assert!(matches!(
        SoftDrive::init(&drive.directory, &drive.names),
        Err(SoftDriveError::Exists { .. })
    ));
}

#[test]
fn changed_configuration_is_refused() {
    let (_directory, drive) = drive(DriveKind::Lto);
    let path = drive.directory.join(CONFIG);
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("version = 1", "version = 2")).unwrap();
    assert!(matches!(
        SoftDrive::open(&drive.directory),
        Err(SoftDriveError::Version { got: 2, .. })
    ));
    fs::write(&path, text + "extra = 1\n").unwrap();
    assert!(matches!(
        SoftDrive::open(&drive.directory),
        Err(SoftDriveError::Config { .. })
    ));
}

#[test]
fn every_form_gives_the_data_key() {
    let (_directory, drive) = drive(DriveKind::Enterprise);
    let spki = drive.public_key_spki();
    let sha1 = wrap(spki, &OAEP_SHA1_MGF1SHA1, None, &KEY);
    for sedk in [
        t10(&wrap_for(spki, drive.wwn(), &KEY)),
        Sedk::new(SedkForm::RsaOaepSha1, sha1.into()).unwrap(),
        Sedk::new(SedkForm::T10Plain, KEY.to_vec().into()).unwrap(),
    ] {
        let key = drive.unwrap_sedk(&sedk).unwrap();
        assert_eq!(key.expose_secret(), &KEY);
    }
}

#[test]
fn keys_that_openssl_has_wrapped_are_unwrapped() {
    let pkcs8 = include_bytes!("../../../integration/golden/t10/openssl-rsa2048.p8.der");
    let t10 = include_bytes!("../../../integration/golden/t10/openssl-key-field-02h.bin");
    let sha1 = include_bytes!("../../../integration/golden/t10/openssl-oaep-sha1.bin");
    let (_directory, mut drive) = drive(DriveKind::Lto);
    drive.wrapping = WrappingKey::from_pkcs8(Zeroizing::new(pkcs8.to_vec())).unwrap();
    for (form, bytes) in [
        (SedkForm::T10Wrapped, t10.as_slice()),
        (SedkForm::RsaOaepSha1, sha1.as_slice()),
    ] {
        let sedk = Sedk::new(form, bytes.to_vec().into()).unwrap();
        assert_eq!(drive.unwrap_sedk(&sedk).unwrap().expose_secret(), &KEY);
    }
}

#[test]
fn key_for_another_drive_is_refused() {
    let (_directory, drive) = drive(DriveKind::Lto);
    let other = Wwn::from([9; 8]);
    let sedk = t10(&wrap_for(drive.public_key_spki(), other, &KEY));
    assert_eq!(
        drive.unwrap_sedk(&sedk).unwrap_err(),
        UnwrapError::OtherDrive {
            expected: drive.wwn().into(),
            got: other.into()
        }
    );
}

#[test]
fn relabelled_key_of_another_drive_is_refused() {
    let (_directory, drive) = drive(DriveKind::Lto);
    let theirs = wrap_for(drive.public_key_spki(), Wwn::from([9; 8]), &KEY);
    let label = WrappedKeyLabel::new(drive.wwn());
    let relabelled = WrappedKey::new(label, theirs.wrapped()).unwrap();
    assert_eq!(
        drive.unwrap_sedk(&t10(&relabelled)).unwrap_err(),
        UnwrapError::Refused
    );
}

#[test]
fn damaged_key_is_refused() {
    let (_directory, drive) = drive(DriveKind::Lto);
    let good = wrap_for(drive.public_key_spki(), drive.wwn(), &KEY);
    let mut wrapped = good.wrapped().to_vec();
    wrapped[255] ^= 1;
    let damaged = WrappedKey::new(good.label().clone(), &wrapped).unwrap();
    assert_eq!(
        drive.unwrap_sedk(&t10(&damaged)).unwrap_err(),
        UnwrapError::Refused
    );
}

#[test]
fn key_of_another_length_is_refused() {
    let (_directory, drive) = drive(DriveKind::Lto);
    let short = wrap_for(drive.public_key_spki(), drive.wwn(), &[1; 16]);
    assert_eq!(
        drive.unwrap_sedk(&t10(&short)).unwrap_err(),
        UnwrapError::Refused
    );
}

#[test]
fn drive_without_format_02h_takes_no_wrapped_key() {
    let (_directory, drive) = drive(DriveKind::LtoPlain);
    let sedk = t10(&wrap_for(drive.public_key_spki(), drive.wwn(), &KEY));
    assert_eq!(
        drive.unwrap_sedk(&sedk).unwrap_err(),
        UnwrapError::Form {
            form: SedkForm::T10Wrapped
        }
    );
    let plain = Sedk::new(SedkForm::T10Plain, KEY.to_vec().into()).unwrap();
    assert!(drive.unwrap_sedk(&plain).is_ok());
}

#[test]
fn session_key_is_signed_with_the_challenge_and_takes_over() {
    let (_directory, mut drive) = drive(DriveKind::Enterprise);
    let certificate = certify(&drive);
    drive.install_certificate(certificate.as_bytes()).unwrap();

    let session = drive.session_key(b"challenge").unwrap();
    let certificate = drive.certificate_spki().unwrap();
    let public = ParsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &certificate).unwrap();
    let verify = |challenge: &[u8]| {
        let message = session_key_message(challenge, drive.serial(), &session.spki).unwrap();
        public.verify_sig(&message, &session.signature)
    };
    verify(b"challenge").unwrap();
    assert!(verify(b"challengf").is_err());

    let under_session = t10(&wrap_for(&session.spki, drive.wwn(), &KEY));
    let under_wrapping = t10(&wrap_for(drive.public_key_spki(), drive.wwn(), &KEY));
    assert!(drive.unwrap_sedk(&under_session).is_ok());
    assert!(drive.unwrap_sedk(&under_wrapping).is_err());
    assert_ne!(drive.session_key(b"again").unwrap().spki, session.spki);
    assert!(drive.unwrap_sedk(&under_session).is_err());
    drive.end_session();
    assert!(drive.unwrap_sedk(&under_wrapping).is_ok());
}

#[test]
fn session_key_needs_a_certificate_and_a_challenge() {
    let (_directory, mut drive) = drive(DriveKind::Enterprise);
    assert!(matches!(
        drive.session_key(b"challenge"),
        Err(SoftDriveError::NoCertificate)
    ));
    let certificate = certify(&drive);
    drive.install_certificate(certificate.as_bytes()).unwrap();
    assert!(matches!(
        drive.session_key(b""),
        Err(SoftDriveError::Challenge(_))
    ));
}

#[test]
fn certificate_is_kept_and_must_be_its_own() {
    let (_directory, mut drive) = drive(DriveKind::Enterprise);
    let (_other_directory, other) = self::drive(DriveKind::Enterprise);
    assert!(matches!(
        drive.install_certificate(certify(&other).as_bytes()),
        Err(SoftDriveError::Certificate { .. })
    ));
    assert!(drive.install_certificate(b"junk").is_err());
    let certificate = certify(&drive);
    drive.install_certificate(certificate.as_bytes()).unwrap();
    let again = SoftDrive::open(&drive.directory).unwrap();
    assert_eq!(again.certificate(), drive.certificate());
    assert!(again.certificate().is_some());
}

#[test]
fn debug_shows_no_key() {
    let (_directory, drive) = drive(DriveKind::Lto);
    let shown = format!("{drive:?}");
    assert!(shown.contains("001013000123"), "{shown}");
    assert!(!shown.contains("pkcs8"), "{shown}");
}

#[test]
fn kinds_are_read_by_their_names() {
    for kind in DriveKind::ALL {
        assert_eq!(kind.to_string().parse::<DriveKind>().unwrap(), kind);
        assert_eq!(serde_json::to_string(&kind).unwrap(), format!("\"{kind}\""));
    }
    assert!("vhs".parse::<DriveKind>().is_err());
}
