use secrecy::ExposeSecret;
use tempfile::TempDir;

use super::*;
use crate::{
    drive::Wwn,
    key::{KekId, OaepHash, WrapAlgorithm},
    softdrive::{
        cartridge::Header,
        identity::tests::{drive, wrap_for},
    },
    t10::{DevicePublicKey, Kad, KeyFormat, KeyFormats},
};

const KEY: [u8; 32] = [0x42; 32];

fn target(kind: DriveKind) -> (TempDir, Target) {
    let (directory, drive) = drive(kind);
    let mut target = Target::new(drive);
    target.load(Medium::Blank);
    (directory, target)
}

fn read(target: &Target, page: InPage) -> Vec<u8> {
    target.spin(&Cdb::read(page, 0x4000).encode()).unwrap()
}

fn send(target: &mut Target, page: &SetDataEncryption) -> Result<(), Sense> {
    let bytes = page.encode();
    let length = u32::try_from(bytes.expose_secret().len()).unwrap();
    let cdb = Cdb::write(OutPage::SetDataEncryption, length);
    target.spout(&cdb.encode(), bytes.expose_secret())
}

fn status(target: &Target) -> Status {
    Status::decode(&read(target, InPage::Status)).unwrap()
}

fn next_block(target: &Target) -> NextBlock {
    NextBlock::decode(&read(target, InPage::NextBlock)).unwrap()
}

fn dki() -> DataKeyId {
    DataKeyId::from_random([1, 2, 3, 4, 5, 6, 7, 8, 9])
}

fn eedk(label: &str) -> Eedk {
    let wrap = WrapAlgorithm::oaep(OaepHash::Sha256, true);
    let kek = KekId::Label(label.parse().unwrap());
    Eedk::new(dki(), kek, wrap, vec![7; 384]).unwrap()
}

fn kads(eedks: &[Eedk]) -> Kads {
    let eedks = eedks.to_vec();
    let names = MediumKey { dki: dki(), eedks };
    names.kads(Authenticated::NotReported).unwrap()
}

fn plain(byte: u8) -> KeyField {
    KeyField::Plain(SecretBox::init_with_mut(|key: &mut [u8; 32]| {
        *key = [byte; 32];
    }))
}

/// A wrapped key for the drive with this name, under the key of its page 0031h.
fn wrapped(target: &Target, wwn: Wwn) -> KeyField {
    let page = read(target, InPage::PublicKey);
    let spki = DevicePublicKey::decode(&page).unwrap().to_spki().unwrap();
    KeyField::Wrapped(wrap_for(&spki, wwn, &KEY))
}

fn encrypt(key: KeyField, kads: Kads) -> SetDataEncryption {
    SetDataEncryption::encrypt(INDEX, key, kads)
}

fn invalid_field(result: Result<(), Sense>) {
    assert_eq!(result, Err(Sense::INVALID_FIELD_IN_PARAMETER_LIST));
}

#[test]
fn wrapped_key_sets_key_names_and_counter() {
    let (_directory, mut target) = target(DriveKind::Enterprise);
    let key = wrapped(&target, target.drive().wwn());
    let eedks = [eedk("a"), eedk("b")];
    send(&mut target, &encrypt(key, kads(&eedks))).unwrap();

    assert_eq!(target.data_key().unwrap().expose_secret(), &KEY);
    assert_eq!(target.key_names().unwrap().eedks, eedks);
    let status = status(&target);
    assert_eq!(status.key_instance, 1);
    assert_eq!(status.encryption, EncryptionMode::Encrypt);
    assert_eq!(status.decryption, DecryptionMode::Mixed);
    assert!(
        status
            .kads
            .of(KadType::Authenticated)
            .eq([dki().as_bytes()])
    );
    assert_eq!(status.kads.of(KadType::WrappedKey).count(), 2);
}

#[test]
fn plain_key_is_taken_by_every_kind() {
    for kind in DriveKind::ALL {
        let (_directory, mut target) = target(kind);
        send(&mut target, &encrypt(plain(5), kads(&[]))).unwrap();
        assert_eq!(target.data_key().unwrap().expose_secret(), &[5; 32]);
    }
}

#[test]
fn wrapped_key_for_another_drive_is_refused_and_changes_nothing() {
    let (_directory, mut target) = target(DriveKind::Lto);
    send(&mut target, &encrypt(plain(5), kads(&[]))).unwrap();
    let key = wrapped(&target, Wwn::from([9; 8]));
    assert_eq!(
        send(&mut target, &encrypt(key, kads(&[]))),
        Err(Sense::UNABLE_TO_DECRYPT_PARAMETER_LIST)
    );
    assert_eq!(target.data_key().unwrap().expose_secret(), &[5; 32]);
    assert_eq!(status(&target).key_instance, 1);
}

#[test]
fn wrapped_key_under_another_key_is_refused() {
    let (_directory, mut target) = target(DriveKind::Lto);
    let (_other_directory, other) = self::target(DriveKind::Lto);
    let key = wrapped(&other, target.drive().wwn());
    assert_eq!(
        send(&mut target, &encrypt(key, kads(&[]))),
        Err(Sense::UNABLE_TO_DECRYPT_PARAMETER_LIST)
    );
    assert!(target.data_key().is_none());
}

#[test]
fn drive_without_format_02h_says_so_and_refuses_it() {
    let (_directory, mut target) = target(DriveKind::LtoPlain);
    let formats = KeyFormats::decode(&read(&target, InPage::KeyFormats)).unwrap();
    assert_eq!(formats.as_slice(), [KeyFormat::Plain]);
    let list = PageList::decode_in(&read(&target, InPage::InSupport)).unwrap();
    assert!(!list.can_read(InPage::PublicKey));
    assert_eq!(
        target.spin(&Cdb::read(InPage::PublicKey, 4).encode()),
        Err(Sense::INVALID_FIELD_IN_CDB)
    );
    let (_other_directory, other) = self::target(DriveKind::Lto);
    let key = wrapped(&other, target.drive().wwn());
    invalid_field(send(&mut target, &encrypt(key, kads(&[]))));
}

#[test]
fn disable_takes_the_key_away_and_counts() {
    let (_directory, mut target) = target(DriveKind::Lto);
    send(&mut target, &encrypt(plain(5), kads(&[]))).unwrap();
    send(&mut target, &SetDataEncryption::disable(INDEX)).unwrap();
    assert!(target.data_key().is_none());
    let status = status(&target);
    assert_eq!(status.key_instance, 2);
    assert_eq!(status.encryption, EncryptionMode::Disable);
}

#[test]
fn disable_with_descriptors_is_refused() {
    let (_directory, mut target) = target(DriveKind::Lto);
    let mut page = SetDataEncryption::disable(INDEX);
    page.kads = kads(&[]);
    invalid_field(send(&mut target, &page));
}

#[test]
fn key_is_forgotten_with_the_cartridge() {
    let (_directory, mut target) = target(DriveKind::Lto);
    send(&mut target, &encrypt(plain(5), kads(&[]))).unwrap();
    assert_eq!(target.unload(), Some(Medium::Blank));
    assert!(target.data_key().is_none());
}

#[test]
fn clear_on_demount_needs_a_cartridge() {
    let (_directory, mut target) = target(DriveKind::Lto);
    target.unload();
    invalid_field(send(&mut target, &encrypt(plain(5), kads(&[]))));
    let mut page = encrypt(plain(5), kads(&[]));
    page.clearing = Clearing::default();
    send(&mut target, &page).unwrap();
    target.load(Medium::Blank);
    assert!(target.data_key().is_some());
}

#[test]
fn what_the_drive_cannot_do_is_refused() {
    let (_directory, mut target) = target(DriveKind::Enterprise);
    let spoil: [fn(&mut SetDataEncryption); 10] = [
        |page| page.scope = Scope::Public,
        |page| page.lock = true,
        |page| page.supplemental = true,
        |page| page.raw_decryption = RawDecryption::Allow,
        |page| page.clearing.on_reservation_lost = true,
        |page| page.clearing.on_reservation_preempted = true,
        |page| page.encryption = EncryptionMode::External,
        |page| page.decryption = DecryptionMode::Raw,
        |page| page.algorithm = AlgorithmIndex(2),
        |page| page.key = KeyField::None,
    ];
    for spoil in spoil {
        let mut page = encrypt(plain(5), kads(&[]));
        spoil(&mut page);
        invalid_field(send(&mut target, &page));
    }
    assert_eq!(target.key_instance(), 0);
}

#[test]
fn descriptors_that_the_cartridge_cannot_hold_are_refused() {
    let (_directory, mut target) = target(DriveKind::Enterprise);
    let akad = |data: &[u8]| Kad::new(KadType::Authenticated, data.to_vec()).unwrap();
    let wkad = |data: &[u8]| Kad::new(KadType::WrappedKey, data.to_vec()).unwrap();
    let other = Eedk::new(
        DataKeyId::from_random([0; 9]),
        eedk("a").kek().clone(),
        eedk("a").wrap(),
        vec![7; 256],
    )
    .unwrap();
    let dki = dki();
    let dki = dki.as_bytes();
    for bad in [
        vec![],
        vec![akad(b"EKM")],
        vec![
            Kad::new(KadType::Unauthenticated, vec![1]).unwrap(),
            akad(dki),
        ],
        vec![akad(dki), Kad::new(KadType::Nonce, vec![1]).unwrap()],
        vec![wkad(eedk("a").as_der())],
        vec![akad(dki), wkad(b"junk")],
        vec![akad(dki), wkad(other.as_der())],
        std::iter::once(akad(dki))
            .chain(["a", "b", "c"].map(|label| wkad(eedk(label).as_der())))
            .collect(),
    ] {
        let kads = Kads::new(bad).unwrap();
        invalid_field(send(&mut target, &encrypt(plain(5), kads)));
    }
}

#[test]
fn drive_that_keeps_no_eedks_refuses_them() {
    let (_directory, mut target) = target(DriveKind::Lto);
    invalid_field(send(&mut target, &encrypt(plain(5), kads(&[eedk("a")]))));
    let read = Capabilities::decode(&read(&target, InPage::Capabilities)).unwrap();
    let gcm = read.aes_256_gcm().unwrap();
    assert_eq!((gcm.max_eedks, gcm.max_eedk_len), (0, 0));
}

#[test]
fn capabilities_say_what_the_cartridge_holds() {
    let (_directory, target) = target(DriveKind::Enterprise);
    let read = Capabilities::decode(&read(&target, InPage::Capabilities)).unwrap();
    let gcm = read.aes_256_gcm().unwrap();
    assert_eq!(usize::from(gcm.max_eedks), Header::MAX_EEDKS);
    assert_eq!(usize::from(gcm.max_eedk_len), Eedk::MAX_LEN);
    assert_eq!(usize::from(gcm.max_akad_len), DataKeyId::LEN);
}

#[test]
fn next_block_names_the_missing_key_with_its_eedks() {
    let (_directory, mut target) = target(DriveKind::Enterprise);
    assert_eq!(next_block(&target).encryption, EncryptionStatus::NotABlock);
    target.load(Medium::Plain);
    assert_eq!(
        next_block(&target).encryption,
        EncryptionStatus::NotEncrypted
    );
    assert!(!status(&target).volume_encrypted);

    let eedks = vec![eedk("a"), eedk("b")];
    let header = Header::new("VOL001".parse().unwrap(), dki(), eedks.clone()).unwrap();
    target.load(Medium::from(&header));
    assert!(status(&target).volume_encrypted);
    let next = next_block(&target);
    assert_eq!(next.encryption, EncryptionStatus::KeyMissing);
    let read = next.kads.of(KadType::WrappedKey).map(Eedk::decode);
    assert_eq!(read.collect::<Result<Vec<_>, _>>().unwrap(), eedks);

    send(&mut target, &encrypt(plain(5), kads(&[]))).unwrap();
    assert_eq!(
        next_block(&target).encryption,
        EncryptionStatus::Decryptable
    );
}

#[test]
fn next_block_without_a_cartridge_is_refused() {
    let (_directory, mut target) = target(DriveKind::Lto);
    target.unload();
    assert_eq!(
        target.spin(&Cdb::read(InPage::NextBlock, 4).encode()),
        Err(Sense::MEDIUM_NOT_PRESENT)
    );
}

#[test]
fn every_page_in_the_list_can_be_read_in_two_steps() {
    let (_directory, target) = target(DriveKind::Enterprise);
    for &page in InPage::ALL {
        let header = target.spin(&Cdb::read(page, Cdb::HEADER_LEN).encode());
        let length = Cdb::page_length(header.unwrap().try_into().unwrap());
        let whole = target.spin(&Cdb::read(page, length).encode()).unwrap();
        assert_eq!(whole.len(), usize::try_from(length).unwrap());
        assert_eq!(read(&target, page).len(), whole.len());
    }
    let list = PageList::decode_in(&read(&target, InPage::InSupport)).unwrap();
    assert!(InPage::ALL.iter().all(|page| list.can_read(*page)));
}

#[test]
fn random_number_differs_at_every_read() {
    let (_directory, target) = target(DriveKind::Lto);
    assert_ne!(read(&target, InPage::Random), read(&target, InPage::Random));
}

#[test]
fn protocols_are_listed() {
    let (_directory, target) = target(DriveKind::Lto);
    let cdb = |page| Cdb {
        direction: Direction::In,
        protocol: SecurityProtocol::Information,
        page,
        length: 64,
    };
    let list = ProtocolList::decode(&target.spin(&cdb(0).encode()).unwrap()).unwrap();
    assert!(list.contains(SecurityProtocol::TapeDataEncryption));
    assert_eq!(
        target.spin(&cdb(2).encode()),
        Err(Sense::INVALID_FIELD_IN_CDB)
    );
}

#[test]
fn wrong_commands_are_refused() {
    let (_directory, mut target) = target(DriveKind::Lto);
    let write = Cdb::write(OutPage::SetDataEncryption, 20).encode();
    let read = Cdb::read(InPage::Status, 20).encode();
    assert_eq!(target.spin(&write), Err(Sense::INVALID_COMMAND));
    assert_eq!(target.spout(&read, &[]), Err(Sense::INVALID_COMMAND));
    assert_eq!(target.spin(&[0; 6]), Err(Sense::INVALID_COMMAND));
    assert_eq!(target.spin(&read[..11]), Err(Sense::INVALID_FIELD_IN_CDB));
    assert_eq!(
        target.spout(&write, &[0; 19]),
        Err(Sense::PARAMETER_LIST_LENGTH)
    );
    let mut unknown = write;
    unknown[3] = 0x11;
    assert_eq!(
        target.spout(&unknown, &[0; 20]),
        Err(Sense::INVALID_FIELD_IN_CDB)
    );
}

#[test]
fn truncated_parameter_list_is_refused() {
    let (_directory, mut target) = target(DriveKind::Lto);
    let page = SetDataEncryption::disable(INDEX).encode();
    let cut = &page.expose_secret()[..19];
    let cdb = Cdb::write(OutPage::SetDataEncryption, 19);
    assert_eq!(
        target.spout(&cdb.encode(), cut),
        Err(Sense::PARAMETER_LIST_LENGTH)
    );
}

#[test]
fn debug_shows_no_key() {
    let (_directory, mut target) = target(DriveKind::Lto);
    send(&mut target, &encrypt(plain(5), kads(&[]))).unwrap();
    let shown = format!("{target:?}");
    assert!(shown.contains("REDACTED"), "{shown}");
    assert!(!shown.contains("5, 5, 5"), "{shown}");
}
