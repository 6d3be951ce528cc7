//! What a drive does wrong on purpose.

use super::{
    keys::{dki, page, pages, send, set, status},
    *,
};
use crate::t10::{Cdb, EncryptionMode, InPage, KadType, Status};

#[test]
fn quirks_are_words() {
    for text in [
        "claims-encryption",
        "ignores-key",
        "other-dki",
        "counter-restarts",
        "long-pages",
        "short-pages",
        "changing-key",
        "sense-flood",
        "attention-flood",
        "no-attributes",
        "memory-full",
        "saves-nothing",
        "busy",
        "hang b5",
        "reset-at-write 3",
        "unload-at-write 1",
    ] {
        let quirk: Quirk = text.parse().unwrap();
        assert_eq!(quirk.to_string(), text);
    }
    for text in ["", "hang", "hang x", "reset-at-write", "busy 1", "nice"] {
        assert!(text.parse::<Quirk>().is_err(), "{text}");
    }
}

#[test]
fn drive_that_claims_encryption_writes_in_clear() {
    let mut host = Host::new(DriveKind::Lto);
    host.drive.misbehave(Quirk::ClaimsEncryption);
    set(&mut host, 1);
    assert_eq!(status(&mut host).encryption, EncryptionMode::Encrypt);
    host.write_block(b"secret");
    assert_eq!((host.contents().clear, host.contents().encrypted), (1, 0));
    host.drive.behave();
    host.write_block(b"secret");
    assert_eq!((host.contents().clear, host.contents().encrypted), (1, 1));
}

#[test]
fn drive_that_ignores_a_key_stays_as_it_was() {
    let mut host = Host::new(DriveKind::Lto);
    host.drive.misbehave(Quirk::IgnoresKey);
    set(&mut host, 1);
    assert_eq!(status(&mut host).encryption, EncryptionMode::Disable);
    assert_eq!(status(&mut host).key_instance, 0);
}

#[test]
fn status_page_can_lie() {
    let mut host = Host::new(DriveKind::Lto);
    set(&mut host, 1);
    set(&mut host, 1);
    host.drive.misbehave(Quirk::CounterRestarts);
    assert_eq!(status(&mut host).key_instance, 1);
    let named = |host: &mut Host| {
        status(host)
            .kads
            .of(KadType::Authenticated)
            .eq([dki(1).as_bytes()])
    };
    assert!(named(&mut host));
    host.drive.misbehave(Quirk::OtherDki);
    assert!(!named(&mut host));
    // The first four bytes say how long the lie is.
    let header = host.read(&Cdb::read(InPage::Status, 4).encode());
    let whole = Cdb::page_length(header.try_into().unwrap());
    assert_eq!(
        usize::try_from(whole).unwrap(),
        pages(&mut host, InPage::Status).len()
    );
    host.drive.behave();
    assert!(named(&mut host));
    assert_eq!(status(&mut host).key_instance, 2);
}

#[test]
fn pages_can_have_wrong_lengths() {
    let mut host = Host::new(DriveKind::Lto);
    for quirk in [Quirk::LongPages, Quirk::ShortPages] {
        host.drive.misbehave(quirk);
        for page in [InPage::Status, InPage::Capabilities, InPage::PublicKey] {
            let bytes = pages(&mut host, page);
            assert!(Status::decode(&bytes).is_err());
            let header = bytes[..4].try_into().unwrap();
            let said = usize::try_from(Cdb::page_length(header)).unwrap();
            assert_ne!(said, bytes.len());
        }
        host.drive.behave();
    }
    assert!(Status::decode(&pages(&mut host, InPage::Status)).is_ok());
}

#[test]
fn public_key_can_change() {
    let mut host = Host::new(DriveKind::Lto);
    let honest = pages(&mut host, InPage::PublicKey);
    assert_eq!(pages(&mut host, InPage::PublicKey), honest);
    host.drive.misbehave(Quirk::ChangingPublicKey);
    let first = pages(&mut host, InPage::PublicKey);
    assert!(first != honest && first != pages(&mut host, InPage::PublicKey));
    assert_eq!(first.len(), honest.len());
}

#[test]
fn floods_leave_inquiry_alone() {
    let mut host = Host::new(DriveKind::Lto);
    for (quirk, code) in [
        (Quirk::SenseFlood, (4, 0x44, 0)),
        (Quirk::AttentionFlood, (6, 0x28, 0)),
    ] {
        host.drive.misbehave(quirk);
        for _ in 0..3 {
            assert_eq!(host.check(&READY).code, code);
        }
        host.read(&[0x12, 0, 0, 0, 0xff, 0]);
        host.drive.behave();
        host.good(&READY);
    }
    host.drive.misbehave(Quirk::Busy);
    assert_eq!(host.execute(&READY, Data::None).status, BUSY);
}

#[test]
fn hanging_drive_is_a_time_out_and_others_get_through() {
    let mut host = Host::new(DriveKind::Lto);
    host.drive.misbehave(Quirk::Hang(0xb5));
    host.good(&READY);
    let mut port = TapePort::new(host.drive);
    let asked = port.clone();
    let limit = Duration::from_millis(200);
    let waiting = thread::spawn(move || port.execute(&[0xb5, 0x20], Data::None, limit));
    let mut other = asked.clone();
    let ready = other.execute(&READY, Data::None, limit).unwrap();
    assert_eq!(ready.status, GOOD);
    let error = waiting.join().unwrap().unwrap_err();
    assert!(matches!(error, TransportError::TimedOut { .. }));
    assert_eq!(other.name(), "software drive 001013000123");
    asked.drive().behave();
    let answer = other.execute(
        &[0xb5, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        Data::None,
        limit,
    );
    assert_eq!(answer.unwrap().status, CHECK_CONDITION);
}

#[test]
fn reset_comes_before_the_write_that_was_named() {
    let mut host = Host::new(DriveKind::Lto);
    set(&mut host, 1);
    host.drive.misbehave(Quirk::ResetAtWrite(3));
    host.write_block(b"1");
    host.write_block(b"2");
    let completion = host.execute(&variable(0x0a, 1), Data::Out(b"3"));
    assert_eq!(Told::from(&completion).code, (6, 0x29, 0x03));
    // What a host that does not look writes now is in clear.
    host.write_block(b"4");
    let contents = host.contents();
    assert_eq!((contents.encrypted, contents.clear), (2, 1));

    host.drive.misbehave(Quirk::UnloadAtWrite(1));
    let completion = host.execute(&variable(0x0a, 1), Data::Out(b"5"));
    assert_eq!(Told::from(&completion).code, (2, 0x3a, 0x00));
    assert_eq!(send(&mut host, &page(1, &[])).unwrap().code, (5, 0x26, 0));
}

#[test]
fn drive_can_lack_a_cartridge_memory_or_room_in_it_or_saved_modes() {
    let mut host = Host::new(DriveKind::Lto);
    let read = [0x8c, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];
    let write = [0x8d, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10, 0, 0];
    let list = [0, 0, 0, 6, 0x14, 0x80, 0, 0, 1, 7];
    host.drive.misbehave(Quirk::NoAttributes);
    assert_eq!(host.check(&read).code, (5, 0x20, 0));
    assert_eq!(
        Told::from(&host.execute(&write, Data::Out(&list))).code,
        (5, 0x20, 0)
    );
    host.drive.behave();
    host.drive.misbehave(Quirk::MemoryFull);
    host.read(&read);
    assert_eq!(
        Told::from(&host.execute(&write, Data::Out(&list))).code,
        (5, 0x55, 0x06)
    );
    host.drive.behave();
    host.write(&write, &list);

    let saved = [0x1a, 8, 0xd0, 0, 0xff, 0];
    assert_eq!(host.read(&saved)[4], 0x90);
    host.drive.misbehave(Quirk::SavesNothing);
    assert_eq!(host.check(&saved).code, (5, 0x39, 0));
    assert_eq!(host.read(&[0x1a, 8, 0x10, 0, 0xff, 0])[4], 0x10);
    assert_eq!(host.check(&[0x15, 0x11, 0, 0, 0, 0]).code, (5, 0x24, 0));
}
