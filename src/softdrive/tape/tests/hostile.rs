//! Commands that no host should send, and images that are not as they were written.

use std::fs;

use proptest::{collection::vec, prelude::*, sample::select};

use super::{
    keys::{disable, set},
    *,
};

/// Every operation that the drive has, and some that it has not.
const OPERATIONS: [u8; 32] = [
    0x00, 0x01, 0x03, 0x05, 0x08, 0x0a, 0x10, 0x11, 0x12, 0x15, 0x16, 0x19, 0x1a, 0x1b, 0x1e, 0x2b,
    0x34, 0x4d, 0x55, 0x5a, 0x5e, 0x5f, 0x8c, 0x8d, 0x91, 0x92, 0xa0, 0xa2, 0xb5, 0x7f, 0xa3, 0xc1,
];

/// Bytes as hosts send them: mostly small, some large.
fn bytes(most: usize) -> impl Strategy<Value = Vec<u8>> {
    vec(
        prop_oneof![3 => Just(0_u8), 3 => 0_u8..0x20, 1 => any::<u8>()],
        0..most,
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_command_is_answered(
        commands in vec((select(&OPERATIONS[..]), bytes(16), bytes(300), any::<bool>()), 1..60),
    ) {
        let mut host = Host::with(DriveKind::Enterprise, MIB);
        set(&mut host, 1);
        host.write_block(b"block");
        for (operation, rest, data, out) in commands {
            let cdb = [&[operation][..], &rest].concat();
            let mut buffer = data.clone();
            let given = buffer.len();
            let phase = if out { Data::Out(&data) } else { Data::In(&mut buffer) };
            let completion = host.execute(&cdb, phase);
            prop_assert!(completion.transferred <= given.max(8), "{:02x?}", cdb);
            prop_assert_eq!(completion.status == GOOD, completion.sense.is_empty());
            if host.drive.loaded().is_none() {
                host.drive.unload();
                host.drive.load(&host.image()).unwrap();
            }
        }
        let contents = host.contents();
        prop_assert!(!contents.damaged);
    }

    #[test]
    fn encrypted_block_is_never_read_as_something_else(
        changes in vec((any::<prop::sample::Index>(), 1_u8..), 1..4),
        cut: Option<prop::sample::Index>,
    ) {
        let mut host = Host::new(DriveKind::LtoPlain);
        let blocks: Vec<Vec<u8>> = (1_u8..6).map(|n| vec![n; 100 * usize::from(n)]).collect();
        set(&mut host, 1);
        for block in &blocks {
            host.write_block(block);
            host.filemark();
        }
        disable(&mut host);
        let image = host.drive.unload().unwrap();
        let mut bytes = fs::read(&image).unwrap();
        // Most of the cartridge memory is empty; what matters is behind it, and the label.
        let spots: Vec<usize> = (0..100).chain(69_632..bytes.len()).collect();
        for (spot, change) in changes {
            bytes[*spot.get(&spots)] ^= change;
        }
        if let Some(cut) = cut {
            bytes.truncate(*cut.get(&spots));
        }
        fs::write(&image, bytes).unwrap();
        if host.drive.load(&image).is_err() {
            return Ok(());
        }
        host.settle();
        set(&mut host, 1);
        let mut expected = blocks.iter();
        for _ in 0..12 {
            let (block, told) = host.read_block(500);
            let whole = told.as_ref().is_none_or(|told| told.marks == "I");
            if whole {
                prop_assert!(expected.any(|written| *written == block), "{:?}", block);
            }
        }
    }
}

#[test]
fn block_from_elsewhere_on_the_tape_does_not_decrypt() {
    let mut host = Host::new(DriveKind::LtoPlain);
    set(&mut host, 1);
    for n in [1, 2] {
        host.write_block(&[n; 64]);
    }
    let image = host.image();
    let bytes = fs::read(&image).unwrap();
    let (front, objects) = bytes.split_at(69_632);
    let (first, second) = objects.split_at(objects.len() / 2);
    // The data of the second under the header of the first.
    let header = 104 + 12;
    let moved = [front, &first[..header], &second[header..], second].concat();
    fs::write(&image, moved).unwrap();
    host.rewind();
    assert_eq!(host.read_block(64).1.unwrap().code, (3, 0x74, 0x04));
    host.good(&[0x11, 0, 0, 0, 1, 0]);
    assert_eq!(host.read_block(64), (vec![2; 64], None));
}
