//! Modes, and the cartridge memory.

use super::*;

const CURRENT: u8 = 0;
const CHANGEABLE: u8 = 1;
const SAVED: u8 = 3;

/// Byte 10 of the device configuration page, where SWP is.
fn flags(host: &mut Host, control: u8) -> u8 {
    let page = host.read(&[0x1a, 8, control << 6 | 0x10, 0, 0xff, 0]);
    assert_eq!(page[4] & 0x3f, 0x10);
    page[4 + 10]
}

/// Sets or clears SWP as a host does: what is there, with one bit changed.
fn protect(host: &mut Host, on: bool, save: bool) {
    let page = host.read(&[0x5a, 8, 0x10, 0, 0, 0, 0, 0, 0xff, 0]);
    let mut list = vec![0; 8];
    list.extend(&page[8..]);
    list[8] &= 0x3f;
    list[18] = list[18] & !4 | u8::from(on) << 2;
    let length = u8::try_from(list.len()).unwrap();
    let cdb = [0x55, 0x10 | u8::from(save), 0, 0, 0, 0, 0, 0, length, 0];
    host.write(&cdb, &list);
}

#[test]
fn mode_parameters_in_both_lengths() {
    let mut host = Host::new(DriveKind::Lto);
    let six = host.read(&[0x1a, 0, 0x3f, 0, 0xff, 0]);
    assert_eq!(six[..4], [43, 0, 0x10, 8]);
    assert_eq!(six[4..12], [0x5a, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!((six[12], six[28]), (0x8f, 0x90));
    let ten = host.read(&[0x5a, 0, 0x3f, 0, 0, 0, 0, 0, 0xff, 0]);
    assert_eq!(ten[..8], [0, 46, 0, 0x10, 0, 0, 0, 8]);
    assert_eq!(ten[8..], six[4..]);
    // Only the header and the descriptor, as Linux asks for.
    assert_eq!(host.read(&[0x1a, 0, 0, 0, 0xff, 0]).len(), 12);
    assert_eq!(host.read(&[0x1a, 0, 0x3f, 0, 4, 0]).len(), 4);
    assert_eq!(
        host.check(&[0x1a, 0, 0x25, 0, 0xff, 0]).code,
        (5, 0x24, 0x00)
    );
}

#[test]
fn write_protection_stops_writing_and_a_reset_brings_back_what_was_saved() {
    let mut host = Host::new(DriveKind::Lto);
    assert_eq!(flags(&mut host, CHANGEABLE), 4);
    host.write_block(b"before");
    protect(&mut host, true, false);
    assert_eq!((flags(&mut host, CURRENT), flags(&mut host, SAVED)), (4, 0));
    assert_eq!(host.read(&[0x1a, 0, 0, 0, 0xff, 0])[2], 0x90);
    let refused = plainly(SenseKey::DataProtect, 0x27, 0x02);
    let completion = host.execute(&variable(0x0a, 5), Data::Out(b"after"));
    assert_eq!(Told::from(&completion), refused);
    assert_eq!(host.check(&[0x10, 0, 0, 0, 1, 0]), refused);
    assert_eq!(host.check(&[0x19, 1, 0, 0, 0, 0]), refused);
    // No filemarks: only what is buffered is to go to the medium.
    host.good(&[0x10, 0, 0, 0, 0, 0]);
    host.rewind();
    assert_eq!(host.read_block(6).0, b"before");
    host.drive.reset();
    host.settle();
    assert_eq!(flags(&mut host, CURRENT), 0);

    protect(&mut host, true, true);
    protect(&mut host, false, false);
    assert_eq!((flags(&mut host, CURRENT), flags(&mut host, SAVED)), (0, 4));
    host.drive.reset();
    host.settle();
    assert_eq!(flags(&mut host, CURRENT), 4);
    // Also for a drive that was switched off.
    let directory = host.drive.target().drive().directory().to_owned();
    let mut again = TapeDrive::new(SoftDrive::open(&directory).unwrap());
    again.attentions.clear();
    host.drive = again;
    assert_eq!((flags(&mut host, CURRENT), flags(&mut host, SAVED)), (4, 4));
}

#[test]
fn drive_without_write_protection_refuses_it() {
    let mut host = Host::empty(DriveKind::Lto);
    host.drive = host.drive.without_write_protection();
    host.settle();
    assert_eq!(flags(&mut host, CHANGEABLE), 0);
    let mut list = vec![0; 4];
    list.extend(&host.read(&[0x1a, 8, 0x10, 0, 0xff, 0])[4..]);
    list[4] &= 0x3f;
    host.write(&[0x15, 0x10, 0, 0, 20, 0], &list);
    list[14] |= 4;
    let completion = host.execute(&[0x15, 0x10, 0, 0, 20, 0], Data::Out(&list));
    assert_eq!(Told::from(&completion).code, (5, 0x26, 0x00));
}

#[test]
fn mode_select_that_is_wrong_changes_nothing() {
    let mut host = Host::new(DriveKind::Lto);
    let page = host.read(&[0x1a, 8, 0x10, 0, 0xff, 0])[4..].to_vec();
    let list = |change: fn(&mut Vec<u8>)| {
        let mut list = vec![0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 2, 0];
        list.extend(&page);
        list[12] &= 0x3f;
        list[22] |= 4;
        change(&mut list);
        list
    };
    let changes: [fn(&mut Vec<u8>); 7] = [
        |list| list.truncate(27),
        // PS
        |list| list[12] |= 0x80,
        // Another page length, another density, a page that is not there, a fixed bit.
        |list| list[13] = 13,
        |list| list[4] = 0x44,
        |list| list[12] = 0x25,
        |list| list[22] |= 1,
        |list| list[3] = 7,
    ];
    let codes = [0x1a].into_iter().chain([0x26; 6]);
    for (change, code) in changes.into_iter().zip(codes) {
        let list = list(change);
        let cdb = [0x15, 0x10, 0, 0, u8::try_from(list.len()).unwrap(), 0];
        let completion = host.execute(&cdb, Data::Out(&list));
        assert_eq!(Told::from(&completion).code, (5, code, 0));
        assert_eq!(flags(&mut host, CURRENT), 0);
        assert_eq!(host.drive.modes.block_length(), 0);
    }
    let list = list(|_| ());
    host.write(&[0x15, 0x10, 0, 0, 28, 0], &list);
    assert_eq!(flags(&mut host, CURRENT), 4);
    assert_eq!(host.drive.modes.block_length(), 512);
}

/// READ ATTRIBUTE of values from this one on.
fn attributes(host: &mut Host, service: u8, first: u16) -> Vec<u8> {
    let [a, b] = first.to_be_bytes();
    let mut cdb = [0; 16];
    cdb[0] = 0x8c;
    cdb[1] = service;
    cdb[8..10].copy_from_slice(&[a, b]);
    cdb[12] = 0x40;
    host.read(&cdb)
}

pub(super) fn attribute(host: &mut Host, id: u16) -> Vec<u8> {
    let all = attributes(host, 0, id);
    assert_eq!(all[4..6], id.to_be_bytes());
    let length = usize::from(u16::from_be_bytes(all[7..9].try_into().unwrap()));
    all[9..9 + length].to_vec()
}

fn write_attribute(host: &mut Host, id: u16, format: u8, value: &[u8]) -> Completion {
    let length = u16::try_from(value.len()).unwrap();
    let mut list = u32::from(5 + length).to_be_bytes().to_vec();
    list.extend(id.to_be_bytes());
    list.push(format);
    list.extend(length.to_be_bytes());
    list.extend(value);
    let mut cdb = [0; 16];
    cdb[0] = 0x8d;
    cdb[10..14].copy_from_slice(&u32::try_from(list.len()).unwrap().to_be_bytes());
    host.execute(&cdb, Data::Out(&list))
}

#[test]
fn cartridge_memory_names_the_cartridge() {
    let mut host = Host::new(DriveKind::Lto);
    assert_eq!(
        attribute(&mut host, 0x0806),
        b"VOL001                          "
    );
    let serial = attribute(&mut host, 0x0401);
    assert!(serial.starts_with(b"EKM") && serial.len() == 32);
    assert_eq!(attribute(&mut host, 0x0407), 4096_u64.to_be_bytes());
    assert_eq!(attribute(&mut host, 0x0004), 1014_u64.to_be_bytes());
    assert_eq!(attribute(&mut host, 0x0001), 64_u64.to_be_bytes());
    assert_eq!(attribute(&mut host, 0x0003), 1_u64.to_be_bytes());
    assert_eq!(attribute(&mut host, 0x0224), [0xff; 8]);
    let list = attributes(&mut host, 1, 0);
    assert_eq!(list[4..8], [0, 0, 0, 1]);
    let supported = attributes(&mut host, 5, 0x1400);
    assert_eq!(supported.len(), 4 + 2 * 1024);
    assert_eq!(attributes(&mut host, 2, 0), [0, 2, 0, 1]);
    let mut cdb = [0; 16];
    cdb[0] = 0x8c;
    cdb[8] = 0x14;
    assert_eq!(host.check(&cdb).code, (5, 0x24, 0));
}

#[test]
fn cartridge_memory_keeps_what_hosts_write_and_is_small() {
    let mut host = Host::new(DriveKind::Lto);
    let eedk = vec![0x5a; 500];
    assert_eq!(write_attribute(&mut host, 0x1400, 0, &eedk).status, GOOD);
    assert_eq!(attribute(&mut host, 0x0004), 509_u64.to_be_bytes());
    let full = write_attribute(&mut host, 0x1401, 0, &[1; 505]);
    assert_eq!(Told::from(&full).code, (5, 0x55, 0x06));
    let space = write_attribute(&mut host, 0x1401, 0, &[1; 504]);
    assert_eq!(space.status, GOOD);
    for (id, format, value) in [
        (0x0401, 1, &[b'A'; 32][..]),
        (0x0801, 1, b"short"),
        (0x0806, 0, &[b' '; 32]),
        (0x0900, 0, b"x"),
        (0x1400, 3, b"x"),
    ] {
        let refused = write_attribute(&mut host, id, format, value);
        assert_eq!(Told::from(&refused).code, (5, 0x26, 0), "{id:04x}");
    }
    let image = host.drive.unload().unwrap();
    host.drive.load(&image).unwrap();
    host.settle();
    assert_eq!(attribute(&mut host, 0x1400), eedk);
    // Length 0 deletes.
    assert_eq!(write_attribute(&mut host, 0x1400, 0, &[]).status, GOOD);
    assert_eq!(attribute(&mut host, 0x0004), 505_u64.to_be_bytes());
    // A list that is cut short changes nothing.
    let mut cdb = [0; 16];
    cdb[0] = 0x8d;
    cdb[13] = 9;
    let short = host.execute(&cdb, Data::Out(&[0, 0, 0, 5, 0x14, 0, 0, 0, 9]));
    assert_eq!(Told::from(&short).code, (5, 0x1a, 0));
}
