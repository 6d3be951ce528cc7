use proptest::prelude::*;
use tempfile::TempDir;

use super::{
    header::SLOT_LEN,
    stream::{BLOCK_LEN, CHECK_LEN, SALT_LEN, TAG_LEN},
    *,
};
use crate::key::{KekId, OaepHash, WrapAlgorithm};

const BLOCKS: usize = 2 * SLOT_LEN + SALT_LEN + CHECK_LEN;
const SEALED: usize = BLOCK_LEN + TAG_LEN;

fn key(byte: u8) -> SecretBox<[u8; 32]> {
    SecretBox::init_with_mut(|key: &mut [u8; 32]| *key = [byte; 32])
}

fn dki() -> DataKeyId {
    DataKeyId::from_random([1, 2, 3, 4, 5, 6, 7, 8, 9])
}

fn eedk(label: &str) -> Eedk {
    let wrap = WrapAlgorithm::oaep(OaepHash::Sha256, true);
    let kek = KekId::Label(label.parse().unwrap());
    Eedk::new(dki(), kek, wrap, vec![7; 512]).unwrap()
}

fn header() -> Header {
    Header::new("VOL001".parse().unwrap(), dki(), vec![eedk("a"), eedk("b")]).unwrap()
}

fn data(len: usize) -> Vec<u8> {
    (0..=250).cycle().take(len).collect()
}

fn written(len: usize) -> Vec<u8> {
    let mut writer = CartridgeWriter::new(Vec::new(), &header(), &key(1)).unwrap();
    writer.write_all(&data(len)).unwrap();
    writer.finish().unwrap()
}

fn read_with(cartridge: &[u8], key: &SecretBox<[u8; 32]>) -> Result<Vec<u8>, CartridgeError> {
    let mut reader = SealedCartridge::new(cartridge)?.unlock(key)?;
    let mut data = Vec::new();
    match reader.read_to_end(&mut data) {
        Ok(_) => Ok(data),
        Err(error) => Err(error.downcast::<CartridgeError>().unwrap()),
    }
}

fn read(cartridge: &[u8]) -> Result<Vec<u8>, CartridgeError> {
    read_with(cartridge, &key(1))
}

#[test]
fn every_length_comes_back() {
    for (len, blocks) in [
        (0, 1),
        (1, 1),
        (BLOCK_LEN - 1, 1),
        (BLOCK_LEN, 1),
        (BLOCK_LEN + 1, 2),
        (4 * BLOCK_LEN + 3, 5),
    ] {
        let cartridge = written(len);
        assert_eq!(cartridge.len(), BLOCKS + len + blocks * TAG_LEN, "{len}");
        assert_eq!(read(&cartridge).unwrap(), data(len), "{len}");
    }
}

#[test]
fn header_is_read_without_a_key() {
    let cartridge = written(10);
    let sealed = SealedCartridge::new(cartridge.as_slice()).unwrap();
    assert_eq!(*sealed.header(), header());
}

#[test]
fn the_same_data_is_never_encrypted_the_same() {
    let (one, two) = (written(100), written(100));
    assert_eq!(one[..2 * SLOT_LEN], two[..2 * SLOT_LEN]);
    assert_ne!(one[BLOCKS..], two[BLOCKS..]);
}

#[test]
fn wrong_key_is_refused() {
    assert!(matches!(
        read_with(&written(10), &key(2)),
        Err(CartridgeError::WrongKey)
    ));
}

#[test]
fn flipped_bit_is_found() {
    let good = written(BLOCK_LEN + 5);
    for position in [
        BLOCKS,
        BLOCKS + BLOCK_LEN,
        BLOCKS + SEALED - 1,
        BLOCKS + SEALED,
        good.len() - 1,
    ] {
        let mut bad = good.clone();
        bad[position] ^= 1;
        let number = u64::from(position >= BLOCKS + SEALED);
        assert!(
            matches!(read(&bad), Err(CartridgeError::Block { number: n }) if n == number),
            "{position}"
        );
    }
}

#[test]
fn flipped_bit_in_the_salt_is_found() {
    let mut bad = written(5);
    bad[2 * SLOT_LEN] ^= 1;
    assert!(matches!(read(&bad), Err(CartridgeError::WrongKey)));
}

#[test]
fn swapped_blocks_are_found() {
    let good = written(3 * BLOCK_LEN);
    let mut bad = good.clone();
    bad[BLOCKS..BLOCKS + SEALED].copy_from_slice(&good[BLOCKS + SEALED..BLOCKS + 2 * SEALED]);
    bad[BLOCKS + SEALED..BLOCKS + 2 * SEALED].copy_from_slice(&good[BLOCKS..BLOCKS + SEALED]);
    assert!(matches!(
        read(&bad),
        Err(CartridgeError::Block { number: 0 })
    ));
}

#[test]
fn removed_block_is_found() {
    let good = written(3 * BLOCK_LEN);
    let bad = [&good[..BLOCKS], &good[BLOCKS + SEALED..]].concat();
    assert!(read(&bad).is_err());
}

#[test]
fn truncated_file_is_found() {
    let good = written(2 * BLOCK_LEN + 5);
    for len in [
        good.len() - 1,
        good.len() - 5 - TAG_LEN,
        BLOCKS + SEALED,
        BLOCKS + 1,
        BLOCKS,
        BLOCKS - 1,
        2 * SLOT_LEN,
        2 * SLOT_LEN - 1,
        SLOT_LEN,
        8,
    ] {
        assert!(
            matches!(
                read(&good[..len]),
                Err(CartridgeError::Truncated | CartridgeError::Block { .. })
            ),
            "{len}"
        );
    }
}

#[test]
fn appended_bytes_are_found() {
    let mut bad = written(5);
    bad.push(0);
    assert!(read(&bad).is_err());
    let mut bad = written(BLOCK_LEN);
    bad.push(0);
    assert!(read(&bad).is_err());
}

#[test]
fn nothing_is_read_after_an_error() {
    let mut bad = written(2 * BLOCK_LEN);
    bad[BLOCKS] ^= 1;
    let sealed = SealedCartridge::new(bad.as_slice()).unwrap();
    let mut reader = sealed.unlock(&key(1)).unwrap();
    let mut buffer = [0; 16];
    assert!(reader.read(&mut buffer).is_err());
    assert!(reader.read(&mut buffer).is_err());
    assert_eq!(buffer, [0; 16]);
}

#[test]
fn blocks_under_another_volume_serial_are_refused() {
    let good = written(5);
    let other = Header::new("VOL002".parse().unwrap(), dki(), Vec::new()).unwrap();
    let stolen = CartridgeWriter::new(Vec::new(), &other, &key(1)).unwrap();
    let stolen = stolen.finish().unwrap();
    let bad = [&stolen[..2 * SLOT_LEN], &good[2 * SLOT_LEN..]].concat();
    assert!(matches!(
        read(&bad),
        Err(CartridgeError::Block { number: 0 })
    ));
}

#[test]
fn other_files_are_refused() {
    for other in [vec![], vec![0; 3 * SLOT_LEN], b"#!/bin/sh".to_vec()] {
        assert!(matches!(read(&other), Err(CartridgeError::NotACartridge)));
    }
}

#[test]
fn damaged_headers_are_refused() {
    let mut bad = written(5);
    bad[20] ^= 1;
    read(&bad).unwrap();
    bad[SLOT_LEN + 20] ^= 1;
    assert!(matches!(read(&bad), Err(CartridgeError::Header)));
}

#[test]
fn eedks_of_another_data_key_are_refused() {
    let other = DataKeyId::from_random([0; 9]);
    assert!(matches!(
        Header::new("V".parse().unwrap(), other, vec![eedk("a")]),
        Err(CartridgeError::OtherDataKey { .. })
    ));
}

#[test]
fn third_eedk_is_refused() {
    assert!(matches!(
        Header::new("V".parse().unwrap(), dki(), vec![eedk("a"); 3]),
        Err(CartridgeError::TooManyEedks { limit: 2, got: 3 })
    ));
}

/// A cartridge file in a directory that goes away.
fn file(len: usize) -> (TempDir, PathBuf) {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("VOL001.tape");
    let mut file = CartridgeFile::create(&path, Existing::Refuse, &header(), &key(1)).unwrap();
    file.write_all(&data(len)).unwrap();
    assert!(!path.exists());
    file.commit().unwrap();
    (directory, path)
}

#[test]
fn file_appears_whole_or_not_at_all() {
    let (directory, path) = file(BLOCK_LEN + 1);
    let mut reader = SealedCartridge::open(&path)
        .unwrap()
        .unlock(&key(1))
        .unwrap();
    let mut read = Vec::new();
    reader.read_to_end(&mut read).unwrap();
    assert_eq!(read, data(BLOCK_LEN + 1));

    let dropped = directory.path().join("dropped");
    drop(CartridgeFile::create(&dropped, Existing::Refuse, &header(), &key(1)).unwrap());
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[test]
fn file_is_replaced_only_when_that_was_asked_for() {
    let (_directory, path) = file(1);
    let create = |existing| CartridgeFile::create(&path, existing, &header(), &key(2));
    assert!(matches!(
        create(Existing::Refuse),
        Err(CartridgeError::Io(error)) if error.kind() == io::ErrorKind::AlreadyExists
    ));
    create(Existing::Replace).unwrap().commit().unwrap();
    assert!(
        SealedCartridge::open(&path)
            .unwrap()
            .unlock(&key(2))
            .is_ok()
    );
}

#[test]
fn new_eedks_leave_the_blocks_alone() {
    let (_directory, path) = file(BLOCK_LEN + 1);
    let before = fs::read(&path).unwrap();
    for label in ["c", "d", "e"] {
        let written = rewrite_eedks(&path, vec![eedk(label)]).unwrap();
        assert_eq!(written.eedks(), [eedk(label)]);
        assert_eq!(read_header(&path).unwrap(), written);
    }
    let after = fs::read(&path).unwrap();
    assert_eq!(before[2 * SLOT_LEN..], after[2 * SLOT_LEN..]);
    assert_eq!(read(&after).unwrap(), data(BLOCK_LEN + 1));
}

#[test]
fn crash_while_new_eedks_are_written_leaves_the_old_ones() {
    let (_directory, path) = file(1);
    let mut old = header();
    for label in ["c", "d"] {
        let before = fs::read(&path).unwrap();
        rewrite_eedks(&path, vec![eedk(label)]).unwrap();
        let after = fs::read(&path).unwrap();
        // However many bytes of the new slot have reached the disk.
        for reached in (0..2 * SLOT_LEN).step_by(61) {
            let torn = [&after[..reached], &before[reached..]].concat();
            let header = SealedCartridge::new(torn.as_slice()).unwrap().header;
            assert!(
                header == old || header.eedks() == [eedk(label)],
                "{reached}"
            );
        }
        old = read_header(&path).unwrap();
    }
}

#[test]
fn new_eedks_of_another_data_key_are_refused() {
    let (_directory, path) = file(1);
    let wrap = eedk("a").wrap();
    let other = DataKeyId::from_random([0; 9]);
    let other = Eedk::new(other, eedk("a").kek().clone(), wrap, vec![7; 256]).unwrap();
    assert!(matches!(
        rewrite_eedks(&path, vec![other]),
        Err(CartridgeError::OtherDataKey { .. })
    ));
    assert_eq!(read_header(&path).unwrap(), header());
}

#[test]
fn debug_shows_no_key() {
    let writer = CartridgeWriter::new(Vec::new(), &header(), &key(1)).unwrap();
    assert_eq!(
        format!("{writer:?}"),
        "CartridgeWriter { block: 0, state: Open, .. }"
    );
}

/// Takes a number of bytes and then fails.
struct Full(usize);

impl Write for Full {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0 = self
            .0
            .checked_sub(data.len())
            .ok_or(io::ErrorKind::StorageFull)?;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn nothing_is_written_after_an_error() {
    let mut writer = CartridgeWriter::new(Full(BLOCKS), &header(), &key(1)).unwrap();
    assert!(writer.write_all(&data(BLOCK_LEN + 1)).is_err());
    assert!(writer.write(&[1]).is_err());
    assert!(matches!(writer.finish(), Err(CartridgeError::Failed)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn pieces_of_any_size_come_back(
        pieces in proptest::collection::vec(0..BLOCK_LEN, 0..6),
        take in 1..BLOCK_LEN,
    ) {
        let mut writer = CartridgeWriter::new(Vec::new(), &header(), &key(1)).unwrap();
        let mut expected = Vec::new();
        for len in pieces {
            writer.write_all(&data(len)).unwrap();
            expected.extend(data(len));
        }
        let cartridge = writer.finish().unwrap();
        let mut reader = SealedCartridge::new(cartridge.as_slice()).unwrap().unlock(&key(1)).unwrap();
        let mut read: Vec<u8> = Vec::new();
        let mut piece = vec![0; take];
        loop {
            match reader.read(&mut piece).unwrap() {
                0 => break,
                len => read.extend(&piece[..len]),
            }
        }
        prop_assert!(read == expected);
    }
}
