//! Keys, and what becomes of blocks with and without them.

use secrecy::{ExposeSecret, SecretBox};

use super::{modes::attribute, *};
use crate::{
    key::DataKeyId,
    softdrive::identity::tests::wrap_for,
    t10::{
        AlgorithmIndex, Capabilities, Cdb, CheckMode, ConfigurationAllowed, DecryptionMode,
        DevicePublicKey, EncryptionMode, EncryptionStatus, InPage, Kad, KadType, Kads, KeyField,
        NextBlock, OutPage, ParametersControl, SetDataEncryption, Status,
    },
};

pub(super) fn dki(n: u8) -> DataKeyId {
    DataKeyId::from_random([n; 9])
}

fn kad(kind: KadType, data: &[u8]) -> Kad {
    Kad::new(kind, data.to_vec()).unwrap()
}

pub(super) fn page(n: u8, further: &[Kad]) -> SetDataEncryption {
    let mut kads = vec![kad(KadType::Authenticated, dki(n).as_bytes())];
    kads.extend_from_slice(further);
    let key = KeyField::Plain(SecretBox::init_with_mut(|key: &mut [u8; 32]| {
        *key = [n; 32]
    }));
    SetDataEncryption::encrypt(AlgorithmIndex(1), key, Kads::new(kads).unwrap())
}

pub(super) fn send(host: &mut Host, page: &SetDataEncryption) -> Option<Told> {
    let bytes = page.encode();
    let bytes = bytes.expose_secret();
    let cdb = Cdb::write(
        OutPage::SetDataEncryption,
        u32::try_from(bytes.len()).unwrap(),
    );
    let completion = host.execute(&cdb.encode(), Data::Out(bytes));
    (completion.status != GOOD).then(|| Told::from(&completion))
}

/// Gives the drive key number `n`.
pub(super) fn set(host: &mut Host, n: u8) {
    assert_eq!(send(host, &page(n, &[])), None);
}

pub(super) fn disable(host: &mut Host) {
    let page = SetDataEncryption::disable(AlgorithmIndex(1));
    assert_eq!(send(host, &page), None);
}

pub(super) fn pages(host: &mut Host, page: InPage) -> Vec<u8> {
    host.read(&Cdb::read(page, 0x4000).encode())
}

pub(super) fn status(host: &mut Host) -> Status {
    Status::decode(&pages(host, InPage::Status)).unwrap()
}

fn next_block(host: &mut Host) -> NextBlock {
    NextBlock::decode(&pages(host, InPage::NextBlock)).unwrap()
}

const NO_KEY: (u8, u8, u8) = (7, 0x74, 0x01);
const IN_CLEAR: (u8, u8, u8) = (7, 0x74, 0x02);
const OTHER_KEY: (u8, u8, u8) = (7, 0x74, 0x03);

/// A label in clear, two blocks under key 1, one under key 2, and one in clear.
fn mixed_tape(host: &mut Host) {
    host.write_block(b"label");
    set(host, 1);
    host.write_block(b"one");
    host.write_block(b"two");
    set(host, 2);
    host.write_block(b"three");
    disable(host);
    host.write_block(b"four");
    host.rewind();
}

#[test]
fn image_says_of_each_block_what_it_is() {
    let mut host = Host::new(DriveKind::Lto);
    mixed_tape(&mut host);
    let contents = host.contents();
    assert_eq!((contents.clear, contents.encrypted), (2, 3));
    let keys = &contents.files[0].data_keys;
    let keys: Vec<_> = keys
        .iter()
        .map(|used| (used.dki.clone(), used.blocks))
        .collect();
    assert_eq!(keys, [(dki(1).to_string(), 2), (dki(2).to_string(), 1)]);
    let image = std::fs::read(host.image()).unwrap();
    let holds = |text: &[u8]| image.windows(text.len()).any(|part| part == text);
    assert!(holds(b"label") && holds(b"four"));
    assert!(!holds(b"three"));
    // The first encrypted block, and the first in clear behind it.
    assert_eq!(attribute(&mut host, 0x0224), 1_u64.to_be_bytes());
    assert_eq!(attribute(&mut host, 0x0225), 4_u64.to_be_bytes());
    assert!(status(&mut host).volume_encrypted);
}

#[test]
fn block_is_read_with_its_key_only_and_the_tape_waits_for_it() {
    let mut host = Host::new(DriveKind::Lto);
    mixed_tape(&mut host);
    assert_eq!(host.read_block(5).0, b"label");
    let no_key = host.read_block(3).1.unwrap();
    assert_eq!((no_key.code, no_key.information), (NO_KEY, Some(3)));
    assert_eq!(host.position(), 1);
    set(&mut host, 2);
    assert_eq!(host.read_block(3).1.unwrap().code, OTHER_KEY);
    assert_eq!(host.position(), 1);
    set(&mut host, 1);
    assert_eq!(host.read_block(3), (b"one".to_vec(), None));
    assert_eq!(host.read_block(3), (b"two".to_vec(), None));
    assert_eq!(host.read_block(5).1.unwrap().code, OTHER_KEY);
    set(&mut host, 2);
    assert_eq!(host.read_block(5), (b"three".to_vec(), None));
    assert_eq!(host.read_block(4), (b"four".to_vec(), None));
}

#[test]
fn decrypt_mode_refuses_blocks_in_clear() {
    let mut host = Host::new(DriveKind::Lto);
    mixed_tape(&mut host);
    let mut strict = page(1, &[]);
    strict.decryption = DecryptionMode::Decrypt;
    assert_eq!(send(&mut host, &strict), None);
    assert_eq!(host.read_block(5).1.unwrap().code, IN_CLEAR);
    assert_eq!(host.position(), 0);
    let mut writing_only = page(1, &[]);
    writing_only.decryption = DecryptionMode::Disable;
    assert_eq!(send(&mut host, &writing_only), None);
    assert_eq!(host.read_block(5).0, b"label");
    assert_eq!(host.read_block(3).1.unwrap().code, NO_KEY);
    let mut external = page(1, &[]);
    external.check_mode = CheckMode::NotEncrypt;
    assert_eq!(send(&mut host, &external), None);
    assert_eq!(host.read_block(3).1.unwrap().code, (7, 0x74, 0x09));
}

#[test]
fn next_block_page_follows_the_tape() {
    let mut host = Host::new(DriveKind::Lto);
    mixed_tape(&mut host);
    assert_eq!(
        next_block(&mut host).encryption,
        EncryptionStatus::NotEncrypted
    );
    host.read_block(5);
    let next = next_block(&mut host);
    assert_eq!(next.position, 1);
    assert_eq!(next.encryption, EncryptionStatus::KeyMissing);
    assert!(next.kads.of(KadType::Authenticated).eq([dki(1).as_bytes()]));
    set(&mut host, 1);
    assert_eq!(
        next_block(&mut host).encryption,
        EncryptionStatus::Decryptable
    );
    // To where key 2 begins, by its own name.
    host.good(&[0x11, 0, 0, 0, 2, 0]);
    let next = next_block(&mut host);
    assert_eq!(next.encryption, EncryptionStatus::KeyMissing);
    assert!(next.kads.of(KadType::Authenticated).eq([dki(2).as_bytes()]));
    host.good(&[0x11, 3, 0, 0, 0, 0]);
    assert_eq!(
        next_block(&mut host).encryption,
        EncryptionStatus::NotABlock
    );
    host.drive.unload();
    let told = host.check(&Cdb::read(InPage::NextBlock, 4).encode());
    assert_eq!(told.code, (2, 0x3a, 0));
}

#[test]
fn damaged_encrypted_block_fails_its_authentication() {
    let mut host = Host::new(DriveKind::Lto);
    set(&mut host, 1);
    host.write_block(&[7; 1000]);
    let image = host.image();
    let mut bytes = std::fs::read(&image).unwrap();
    let last = bytes.len() - 100;
    bytes[last] ^= 1;
    std::fs::write(&image, bytes).unwrap();
    host.rewind();
    assert_eq!(host.read_block(1000).1.unwrap().code, (3, 0x74, 0x04));
    assert_eq!(host.position(), 0);
}

#[test]
fn equal_blocks_are_unlike_on_the_tape() {
    let mut host = Host::new(DriveKind::Lto);
    set(&mut host, 1);
    host.write_block(&[7; 64]);
    host.write_block(&[7; 64]);
    set(&mut host, 1);
    host.write_block(&[7; 64]);
    let image = std::fs::read(host.image()).unwrap();
    let length = (image.len() - 69_632) / 3;
    let mut data: Vec<_> = image[69_632..]
        .chunks(length)
        .map(|object| object[116..116 + 64].to_vec())
        .collect();
    data.sort();
    data.dedup();
    assert_eq!(data.len(), 3);
}

#[test]
fn key_goes_with_the_cartridge_and_with_a_reset() {
    let mut host = Host::new(DriveKind::Lto);
    let forgotten: [fn(&mut Host); 4] = [
        |host| {
            let image = host.drive.unload().unwrap();
            host.drive.load(&image).unwrap();
        },
        |host| {
            host.good(&[0x1b, 0, 0, 0, 0, 0]);
            host.good(&[0x1b, 0, 0, 0, 1, 0]);
        },
        |host| host.drive.reset(),
        |host| host.drive.power_cycle().unwrap(),
    ];
    for (n, forget) in (0_u32..).zip(forgotten) {
        set(&mut host, 1);
        host.write_block(b"secret");
        assert_eq!(status(&mut host).key_instance, 2 * n + 1);
        forget(&mut host);
        host.settle();
        let status = status(&mut host);
        assert_eq!(status.encryption, EncryptionMode::Disable);
        assert_eq!(status.key_instance, 2 * n + 2);
        host.rewind();
        assert_eq!(host.read_block(6).1.unwrap().code, NO_KEY);
    }
}

#[test]
fn lock_stops_reading_and_writing_when_the_key_changes() {
    let mut host = Host::new(DriveKind::Lto);
    let mut locked = page(1, &[]);
    locked.lock = true;
    assert_eq!(send(&mut host, &locked), None);
    host.write_block(b"secret");
    let image = host.drive.unload().unwrap();
    host.drive.load(&image).unwrap();
    host.settle();
    let changed = (7, 0x2a, 0x13);
    let completion = host.execute(&variable(0x0a, 5), Data::Out(b"clear"));
    assert_eq!(Told::from(&completion).code, changed);
    assert_eq!(host.read_block(6).1.unwrap().code, changed);
    // Nothing is written in clear before somebody says so.
    assert_eq!(host.contents().clear, 0);
    set(&mut host, 1);
    assert_eq!(host.read_block(6), (b"secret".to_vec(), None));
    assert_eq!(send(&mut host, &locked), None);
    host.drive.reset();
    host.settle();
    host.write_block(b"clear");
}

#[test]
fn names_of_any_kind_are_kept_with_the_block() {
    let mut host = Host::new(DriveKind::LtoPlain);
    let named = |kads| SetDataEncryption {
        kads: Kads::new(kads).unwrap(),
        ..page(1, &[])
    };
    let ukad = kad(KadType::Unauthenticated, b"my key");
    assert_eq!(send(&mut host, &named(vec![ukad.clone()])), None);
    assert_eq!(status(&mut host).kads.as_slice(), [ukad]);
    host.write_block(b"x");
    host.rewind();
    let next = next_block(&mut host);
    assert!(next.kads.of(KadType::Unauthenticated).eq([b"my key"]));
    assert!(next.kads.of(KadType::Authenticated).eq([[0; 12]]));
    let used = &host.contents().files[0].data_keys[0];
    assert_eq!(used.name.as_deref(), Some("my key"));
    assert_eq!(used.dki, "00".repeat(12));
    for kads in [
        vec![kad(KadType::Unauthenticated, &[1; 33])],
        vec![kad(KadType::Authenticated, &[1; 11])],
        vec![kad(KadType::Nonce, &[1])],
        vec![kad(KadType::WrappedKey, &[1])],
    ] {
        assert_eq!(send(&mut host, &named(kads)).unwrap().code, (5, 0x26, 0x00));
    }
}

#[test]
fn wrapped_keys_stay_on_the_tape_and_can_be_renewed() {
    let mut host = Host::new(DriveKind::Enterprise);
    let wrapped = |data: &[u8]| kad(KadType::WrappedKey, data);
    let first = [wrapped(b"EEDK 1"), wrapped(b"EEDK 2")];
    assert_eq!(send(&mut host, &page(1, &first)), None);
    // Nothing is kept before there is a block of theirs.
    assert!(host.contents().eedks.is_empty());
    host.write_block(b"one");
    assert_eq!(host.contents().eedks[&dki(1).to_string()], 2);
    let image = host.drive.unload().unwrap();
    host.drive.load(&image).unwrap();
    host.settle();
    let next = next_block(&mut host);
    assert!(next.kads.of(KadType::WrappedKey).eq([b"EEDK 1", b"EEDK 2"]));

    // The same key under another KEK: the block stays as it is.
    assert_eq!(send(&mut host, &page(1, &[wrapped(b"EEDK 3")])), None);
    let next = next_block(&mut host);
    assert!(next.kads.of(KadType::WrappedKey).eq([b"EEDK 3"]));
    assert_eq!(host.read_block(3), (b"one".to_vec(), None));

    // Another key from the beginning: what belonged to the old blocks goes.
    host.rewind();
    assert_eq!(send(&mut host, &page(2, &[wrapped(b"EEDK 4")])), None);
    host.write_block(b"two");
    assert_eq!(host.contents().eedks.len(), 1);
    let three = [wrapped(b"1"), wrapped(b"2"), wrapped(b"3")];
    assert_eq!(
        send(&mut host, &page(2, &three)).unwrap().code,
        (5, 0x26, 0)
    );
}

#[test]
fn wrapped_key_of_format_02h_is_taken() {
    let mut host = Host::new(DriveKind::Lto);
    let public = DevicePublicKey::decode(&pages(&mut host, InPage::PublicKey)).unwrap();
    let wwn = host.drive.target().drive().wwn();
    let mut page = page(1, &[]);
    page.key = KeyField::Wrapped(wrap_for(&public.to_spki().unwrap(), wwn, &[1; 32]));
    assert_eq!(send(&mut host, &page), None);
    host.write_block(b"wrapped");
    disable(&mut host);
    host.rewind();
    set(&mut host, 1);
    assert_eq!(host.read_block(7), (b"wrapped".to_vec(), None));
}

#[test]
fn library_managed_drive_takes_no_key_from_a_host() {
    let mut host = Host::empty(DriveKind::Lto);
    host.drive = host.drive.library_managed();
    host.settle();
    let capabilities = Capabilities::decode(&pages(&mut host, InPage::Capabilities)).unwrap();
    assert_eq!(capabilities.configuration, ConfigurationAllowed::Prevented);
    assert_eq!(status(&mut host).control, ParametersControl::Library);
    assert_eq!(
        send(&mut host, &page(1, &[])).unwrap().code,
        (5, 0x74, 0x21)
    );
}
