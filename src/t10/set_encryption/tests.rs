use proptest::{prelude::*, sample::select};

use super::*;
use crate::t10::{Kad, KadType, kad::tests::kads_for_drive, wrapped_key::tests::wrapped_key};

const WRAPPED: &[u8] = include_bytes!("../../../integration/golden/t10/spout-0010-wrapped.bin");
const PLAIN: &[u8] = include_bytes!("../../../integration/golden/t10/spout-0010-plain.bin");
const DISABLE: &[u8] = include_bytes!("../../../integration/golden/t10/spout-0010-disable.bin");
const KEY_FIELD: &[u8] = include_bytes!("../../../integration/golden/t10/key-field-02h.bin");
const DKI: &[u8] = b"EKM\x00\x01\x02\x03\x04\x05\x06\x07\x08";

fn akad() -> Kads {
    Kads::new(vec![
        Kad::new(KadType::Authenticated, DKI.to_vec()).unwrap(),
    ])
    .unwrap()
}

fn plain_key() -> KeyField {
    KeyField::Plain(SecretBox::init_with_mut(|key: &mut [u8; 32]| {
        *key = [0x11; 32];
    }))
}

fn assert_same(page: &SetDataEncryption, bytes: &[u8]) {
    assert_eq!(page.encode().expose_secret(), bytes);
    let read = SetDataEncryption::decode(bytes).unwrap();
    assert_eq!(read.encode().expose_secret(), bytes);
    assert_eq!(read.key.format(), page.key.format());
    assert_eq!(read.kads, page.kads);
}

#[test]
fn wrapped_key_with_a_dki_takes_318_bytes() {
    let key = KeyField::Wrapped(WrappedKey::decode(KEY_FIELD).unwrap());
    assert_eq!(WRAPPED.len(), 318);
    assert_same(
        &SetDataEncryption::encrypt(AlgorithmIndex(1), key, akad()),
        WRAPPED,
    );
}

#[test]
fn plain_key_as_ltfs_sends_it() {
    let mut page = SetDataEncryption::encrypt(AlgorithmIndex(1), plain_key(), akad());
    page.check_mode = CheckMode::VendorDefault;
    page.raw_decryption = RawDecryption::Default;
    page.clearing = Clearing::default();
    assert_same(&page, PLAIN);
}

#[test]
fn disable_is_a_page_of_20_bytes() {
    assert_same(&SetDataEncryption::disable(AlgorithmIndex(1)), DISABLE);
}

#[test]
fn debug_shows_no_key() {
    let page = SetDataEncryption::encrypt(AlgorithmIndex(1), plain_key(), akad());
    let shown = format!("{page:?}");
    assert!(shown.contains("REDACTED"), "{shown}");
    assert!(!shown.contains("17, 17"), "{shown}");
}

fn changed(position: usize, byte: u8) -> PageError {
    let mut page = PLAIN.to_vec();
    page[position] = byte;
    SetDataEncryption::decode(&page).unwrap_err()
}

#[test]
fn truncated_page_is_refused() {
    for cut in 0..WRAPPED.len() {
        assert!(matches!(
            SetDataEncryption::decode(&WRAPPED[..cut]),
            Err(PageError::Truncated { .. })
        ));
    }
}

#[test]
fn trailing_byte_is_refused() {
    assert!(matches!(
        SetDataEncryption::decode(&[WRAPPED, &[0]].concat()),
        Err(PageError::TrailingBytes { got: 1, .. })
    ));
}

#[test]
fn key_length_beyond_the_page_is_refused() {
    assert!(matches!(changed(19, 0xff), PageError::Truncated { .. }));
}

#[test]
fn reserved_bits_are_refused() {
    for (position, byte) in [(4, 0x42), (11, 1), (17, 1)] {
        assert!(matches!(
            changed(position, byte),
            PageError::Reserved { .. }
        ));
    }
}

#[test]
fn unknown_codes_are_refused() {
    for (position, byte) in [(4, 0x60), (5, 0x10), (6, 3), (7, 4), (9, 4), (10, 3)] {
        assert!(matches!(changed(position, byte), PageError::Code { .. }));
    }
}

#[test]
fn key_formats_that_nobody_documents_are_refused() {
    for format in [1, 3] {
        assert_eq!(
            changed(9, format),
            PageError::Code {
                field: "KEY FORMAT",
                got: format
            }
        );
    }
}

#[test]
fn short_plain_key_is_refused() {
    let mut page = DISABLE.to_vec();
    page[3] += 16;
    page[19] = 16;
    page.extend([0; 16]);
    assert_eq!(
        SetDataEncryption::decode(&page).unwrap_err(),
        PageError::Length {
            field: "a key",
            expected: "0 or 32",
            got: 16
        }
    );
}

#[test]
fn junk_in_authenticated_is_refused() {
    assert_eq!(changed(53, 2), PageError::Authenticated { got: 2 });
}

prop_compose! {
    fn any_page()(
        (scope, check_mode) in (select(Scope::ALL), select(CheckMode::ALL)),
        raw_decryption in select(RawDecryption::ALL),
        [lock, supplemental, on_demount, on_reservation_preempted, on_reservation_lost]
            in any::<[bool; 5]>(),
        (encryption, decryption) in (select(EncryptionMode::ALL), select(DecryptionMode::ALL)),
        algorithm: u8,
        wrapped in wrapped_key(),
        which in 0..3,
        kad_format in select(KadFormat::ALL),
        kads in kads_for_drive(),
    ) -> SetDataEncryption {
        SetDataEncryption {
            scope,
            lock,
            check_mode,
            raw_decryption,
            supplemental,
            clearing: Clearing { on_demount, on_reservation_preempted, on_reservation_lost },
            encryption,
            decryption,
            algorithm: AlgorithmIndex(algorithm),
            key: match which {
                0 => KeyField::None,
                1 => plain_key(),
                _ => KeyField::Wrapped(wrapped),
            },
            kad_format,
            kads,
        }
    }
}

proptest! {
    #[test]
    fn round_trips(page in any_page()) {
        let bytes = page.encode();
        let read = SetDataEncryption::decode(bytes.expose_secret()).unwrap();
        prop_assert!(read.encode().expose_secret() == bytes.expose_secret());
        prop_assert_eq!(read.clearing, page.clearing);
        prop_assert_eq!(read.scope, page.scope);
    }

    #[test]
    fn what_decodes_encodes_to_the_same(position in 0..PLAIN.len(), byte: u8) {
        let mut bytes = PLAIN.to_vec();
        bytes[position] = byte;
        if let Ok(page) = SetDataEncryption::decode(&bytes) {
            // Reserved, and ignored.
            bytes[53] &= 0x07;
            prop_assert!(page.encode().expose_secret() == bytes);
        }
    }
}
