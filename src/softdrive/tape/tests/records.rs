//! Blocks, filemarks and positions.

use std::{fs, os::unix::fs::FileExt as _};

use super::*;

const SPACE_BLOCKS: u8 = 0;
const SPACE_FILEMARKS: u8 = 1;

fn space(code: u8, count: i32) -> [u8; 6] {
    let [_, a, b, c] = count.to_be_bytes();
    [0x11, code, a, b, c, 0]
}

fn locate(object: u32) -> [u8; 10] {
    let [a, b, c, d] = object.to_be_bytes();
    [0x2b, 0, 0, a, b, c, d, 0, 0, 0]
}

fn low(length: usize) -> u8 {
    length.to_le_bytes()[0]
}

/// Two files: blocks of 100, 200 and 300 bytes, a filemark, a block of 400 bytes, a filemark.
fn two_files(host: &mut Host) {
    for length in [100, 200, 300] {
        host.write_block(&vec![low(length); length]);
    }
    host.filemark();
    host.write_block(&[4; 400]);
    host.filemark();
}

const END: (u8, u8, u8) = (8, 0x00, 0x05);

#[test]
fn blocks_come_back_in_their_length_and_order() {
    let mut host = Host::new(DriveKind::Lto);
    two_files(&mut host);
    host.rewind();
    for length in [100, 200] {
        let (block, told) = host.read_block(length);
        assert_eq!((block, told), (vec![low(length); length], None));
    }
    // Shorter than asked for: what is there, and the difference.
    let (block, told_of) = host.read_block(512);
    assert_eq!(block, [44; 300]);
    assert_eq!(told_of, Some(told((0, 0, 0), "I", 212)));
    let (block, told_of) = host.read_block(512);
    assert_eq!((block.len(), told_of), (0, Some(told((0, 0, 1), "F", 512))));
    // Longer than asked for: its beginning, and the rest is passed.
    let (block, told_of) = host.read_block(150);
    assert_eq!(block, [4; 150]);
    assert_eq!(told_of, Some(told((0, 0, 0), "I", -250)));
    assert_eq!(host.read_block(10).1, Some(told((0, 0, 1), "F", 10)));
    assert_eq!(host.read_block(10).1, Some(told(END, "", 10)));
    assert_eq!(host.read_block(10).1, Some(told(END, "", 10)));
    assert_eq!(host.position(), 6);
    // No byte asked for: the tape does not move.
    host.rewind();
    assert_eq!(host.read_block(0), (vec![], None));
    assert_eq!(host.position(), 0);
}

#[test]
fn suppressed_length_indicator_is_silent() {
    let mut host = Host::new(DriveKind::Lto);
    host.write_block(&[7; 100]);
    host.rewind();
    let mut cdb = variable(0x08, 512);
    cdb[1] = 2;
    assert_eq!(host.read(&cdb), [7; 100]);
    cdb[1] = 3;
    assert_eq!(host.check(&cdb).code, (5, 0x24, 0));
}

#[test]
fn fixed_blocks_are_counted() {
    let mut host = Host::new(DriveKind::Lto);
    // Fixed length was not set.
    assert_eq!(host.check(&[0x0a, 1, 0, 0, 1, 0]).code, (5, 0x24, 0));
    let select = [0, 0, 0x10, 8, 0, 0, 0, 0, 0, 0, 2, 0];
    host.write(&[0x15, 0x10, 0, 0, 12, 0], &select);
    let data: Vec<u8> = (0..512 * 5).map(|n: u32| n.to_be_bytes()[2]).collect();
    host.write(&[0x0a, 1, 0, 0, 5, 0], &data);
    host.write_block(&[1; 100]);
    host.filemark();
    assert_eq!(host.contents().files[0].blocks, 6);
    host.rewind();
    assert_eq!(host.read(&[0x08, 1, 0, 0, 2, 0]), data[..1024]);
    let mut buffer = vec![0; 512 * 10];
    let completion = host.execute(&[0x08, 1, 0, 0, 10, 0], Data::In(&mut buffer));
    assert_eq!(completion.transferred, 512 * 3);
    assert_eq!(Told::from(&completion), told((0, 0, 0), "I", 7));
    assert_eq!(buffer[..512 * 3], data[1024..]);
    assert_eq!(host.check(&[0x08, 1, 0, 0, 4, 0]), told((0, 0, 1), "F", 4));
    // A reset takes the block length away.
    host.drive.reset();
    host.settle();
    assert_eq!(host.check(&[0x08, 1, 0, 0, 1, 0]).code, (5, 0x24, 0));
}

#[test]
fn write_shorter_than_its_cdb_is_refused() {
    let mut host = Host::new(DriveKind::Lto);
    let completion = host.execute(&variable(0x0a, 100), Data::Out(&[1; 99]));
    assert_eq!(Told::from(&completion).code, (5, 0x24, 0));
    // Longer than any block may be.
    let long = vec![0; 8 * 1024 * 1024 + 1];
    let completion = host.execute(&variable(0x0a, long.len()), Data::Out(&long));
    assert_eq!(Told::from(&completion).code, (5, 0x24, 0));
    host.write_block(&long[1..]);
    assert_eq!(host.position(), 1);
}

#[test]
fn spacing_stops_where_the_standard_says() {
    let mut host = Host::new(DriveKind::Lto);
    two_files(&mut host);
    host.rewind();
    host.good(&space(SPACE_BLOCKS, 2));
    assert_eq!(host.position(), 2);
    assert_eq!(host.check(&space(SPACE_BLOCKS, 5)), told((0, 0, 1), "F", 4));
    assert_eq!(host.position(), 4);
    assert_eq!(
        host.check(&space(SPACE_BLOCKS, -1)),
        told((0, 0, 1), "F", 1)
    );
    assert_eq!(host.position(), 3);
    assert_eq!(
        host.check(&space(SPACE_BLOCKS, -9)),
        told((0, 0, 4), "E", 6)
    );
    assert_eq!(host.position(), 0);
    host.good(&space(SPACE_FILEMARKS, 1));
    assert_eq!(host.position(), 4);
    assert_eq!(host.check(&space(SPACE_FILEMARKS, 3)), told(END, "", 2));
    assert_eq!(host.position(), 6);
    host.good(&space(SPACE_FILEMARKS, -2));
    assert_eq!(host.position(), 3);
    assert_eq!(
        host.check(&space(SPACE_FILEMARKS, -1)),
        told((0, 0, 4), "E", 1)
    );
    assert_eq!(host.position(), 0);
    host.good(&space(3, 0));
    assert_eq!(host.position(), 6);
    assert_eq!(host.check(&space(SPACE_BLOCKS, 1)), told(END, "", 1));
    host.good(&space(SPACE_BLOCKS, 0));
    assert_eq!(host.check(&space(4, 1)).code, (5, 0x24, 0));

    // SPACE(16), two filemarks back.
    let mut long = [0; 16];
    long[0] = 0x91;
    long[1] = SPACE_FILEMARKS;
    long[4..12].copy_from_slice(&(-2_i64).to_be_bytes());
    host.good(&long);
    assert_eq!(host.position(), 3);
}

#[test]
fn locating_and_positions() {
    let mut host = Host::new(DriveKind::Lto);
    two_files(&mut host);
    let short = host.read(&[0x34, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!((short.len(), short[0]), (20, 0));
    for object in [0, 5, 2, 6] {
        host.good(&locate(object));
        assert_eq!(host.position(), object);
    }
    assert_eq!(host.check(&locate(7)).code, END);
    assert_eq!(host.position(), 6);

    let mut long = [0; 16];
    long[0] = 0x92;
    // A file by its number.
    long[1] = 1 << 3;
    long[11] = 1;
    host.good(&long);
    let position = host.read(&[0x34, 6, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(position.len(), 32);
    assert_eq!(position[8..16], 4_u64.to_be_bytes());
    assert_eq!(position[16..24], 1_u64.to_be_bytes());
    long[11] = 3;
    assert_eq!(host.check(&long).code, END);
    long[1] = 3 << 3;
    host.good(&long);
    assert_eq!(host.position(), 6);
    // Another partition.
    long[1] = 2;
    long[3] = 1;
    assert_eq!(host.check(&long).code, (5, 0x24, 0));
    host.rewind();
    let short = host.read(&[0x34, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(short[0], 0x80);
}

#[test]
fn writing_cuts_off_what_was_behind() {
    let mut host = Host::new(DriveKind::Lto);
    two_files(&mut host);
    host.good(&locate(1));
    host.write_block(&[9; 50]);
    let contents = host.contents();
    assert_eq!((contents.blocks, contents.files.len()), (2, 1));
    assert!(!contents.files[0].ended);
    assert_eq!(host.read_block(10).1, Some(told(END, "", 10)));
    host.rewind();
    assert_eq!(host.read_block(100).0, [100; 100]);
    assert_eq!(host.read_block(50).0, [9; 50]);

    host.good(&locate(1));
    host.good(&[0x19, 1, 0, 0, 0, 0]);
    assert_eq!(host.contents().blocks, 1);
    host.rewind();
    host.filemark();
    assert_eq!(host.contents().files[0].blocks, 0);
}

#[test]
fn end_of_the_tape_is_told_early_and_then_for_good() {
    let mut host = Host::with(DriveKind::Lto, MIB);
    let block = vec![3; 100_000];
    let mut told_of = Vec::new();
    for _ in 0..11 {
        let completion = host.execute(&variable(0x0a, block.len()), Data::Out(&block));
        told_of.push((completion.status != GOOD).then(|| Told::from(&completion)));
        assert!(completion.transferred == block.len() || told_of.len() == 11);
    }
    assert!(told_of[..9].iter().all(Option::is_none));
    assert_eq!(told_of[9], Some(told((0, 0, 2), "E", 0)));
    assert_eq!(told_of[10], Some(told((0xd, 0, 2), "E", 100_000)));
    assert_eq!(host.check(&[0x10, 0, 0, 0, 1, 0]), told((0, 0, 2), "E", 0));
    assert_eq!(host.contents().blocks, 10);
    let position = host.read(&[0x34, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(position[0], 0x40);
}

#[test]
fn tape_comes_back_as_it_was_written() {
    let mut host = Host::new(DriveKind::Lto);
    two_files(&mut host);
    let image = host.drive.unload().unwrap();
    host.drive.load(&image).unwrap();
    host.settle();
    assert_eq!(host.position(), 0);
    assert_eq!(host.read_block(100).0, [100; 100]);
    host.good(&locate(6));
    host.write_block(&[5; 10]);
    assert_eq!(host.contents().blocks, 5);
}

#[test]
fn block_that_was_written_in_part_is_none() {
    let mut host = Host::new(DriveKind::Lto);
    two_files(&mut host);
    host.write_block(&[8; 1000]);
    let image = host.drive.unload().unwrap();
    let whole = fs::metadata(&image).unwrap().len();
    let file = fs::OpenOptions::new().write(true).open(&image).unwrap();
    for length in [whole - 1, whole - 500, whole - 1050, whole - 1112 + 20] {
        file.set_len(length).unwrap();
        let contents = host.contents();
        assert_eq!((contents.blocks, contents.damaged), (4, false), "{length}");
    }
    host.drive.load(&image).unwrap();
    host.settle();
    host.good(&locate(6));
    host.write_block(&[6; 20]);
    host.good(&locate(6));
    assert_eq!(host.read_block(20), (vec![6; 20], None));
    assert_eq!(host.contents().blocks, 5);
}

#[test]
fn damaged_object_is_a_medium_error_and_can_be_written_over() {
    let mut host = Host::new(DriveKind::Lto);
    two_files(&mut host);
    let image = host.drive.unload().unwrap();
    let file = fs::OpenOptions::new().write(true).open(&image).unwrap();
    // In the header of the second block.
    file.write_all_at(&[0xff], 69_632 + 104 + 100 + 4 + 10)
        .unwrap();
    let contents = host.contents();
    assert_eq!((contents.blocks, contents.damaged), (1, true));
    host.drive.load(&image).unwrap();
    host.settle();
    host.good(&locate(1));
    assert_eq!(host.read_block(200).1, Some(told((3, 0x11, 0), "", 200)));
    assert_eq!(host.check(&space(SPACE_BLOCKS, 1)).code, (3, 0x11, 0));
    assert_eq!(host.position(), 1);
    host.write_block(&[1; 30]);
    host.rewind();
    host.good(&space(SPACE_BLOCKS, 2));
    assert!(!host.contents().damaged);
}

#[test]
fn many_blocks_are_found_again() {
    let mut host = Host::new(DriveKind::Lto);
    for n in 0..10_000_u32 {
        host.write_block(&n.to_be_bytes());
    }
    for object in [9_999, 0, 5_000, 4_097, 8_191] {
        host.good(&locate(object));
        assert_eq!(host.read_block(4).0, object.to_be_bytes());
    }
    let marks = host.drive.image.as_ref().unwrap();
    assert!(format!("{marks:?}").matches("Spot").count() <= 4_100);
}
